"""What a user may choose about sampling, checked before anything heavy is imported. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from infinito.errors import ConfigError

SEED_LIMIT = 2**63
_Rule = tuple[type, Callable[[float], bool], str]

_RULES: dict[str, _Rule] = {
    "max_new_tokens": (int, lambda x: x >= 0, "a whole number, 0 or more"),
    "temperature": (float, lambda x: x >= 0, "a finite number, 0 (greedy) or more"),
    "top_k": (int, lambda x: x >= 0, "a whole number, 0 (off) or more"),
    "top_p": (float, lambda x: 0 <= x <= 1, "a number from 0 to 1 (off)"),
    "min_p": (float, lambda x: 0 <= x <= 1, "a number from 0 (off) to 1"),
    "repetition_penalty": (float, lambda x: x > 0, "a finite number above 0 (1 is off)"),
    "no_repeat_ngram_size": (int, lambda x: x >= 0, "a whole number, 0 (off) or more"),
    "num_samples": (int, lambda x: x >= 1, "a whole number, 1 or more"),
    "seed": (int, lambda x: 0 <= x < SEED_LIMIT, "a whole number from 0 to 2^63 - 1"),
}


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen, and when to end.

    Attributes:
        max_new_tokens: tokens a sample at most.
        temperature: divides the logits; 0 is greedy, the lowest id winning ties.
        top_k: keep the k largest logits and all that tie with the k-th; 0 is off.
        top_p: keep the smallest set of tokens with at least this mass; 1 is off.
        min_p: keep tokens with at least this share of the largest probability; 0 is off.
        repetition_penalty: CTRL's penalty of every id in prompt and continuation; 1 is off.
        no_repeat_ngram_size: never complete an n-gram of ids a second time; 0 is off.
        num_samples: continuations; sample i depends on (seed, i), not on how many there are.
        seed: of the random draws; unused by greedy decoding.
        stop: texts that end a sample; they and what follows are cut off.
        allow_unknown: let the text ``<unk>`` be generated.

    Raises:
        ConfigError: naming each option out of range.
    """

    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.2
    no_repeat_ngram_size: int = 0
    num_samples: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    allow_unknown: bool = False

    def __post_init__(self) -> None:
        """Check every option."""
        problems = [
            f"--{name.replace('_', '-')} is {getattr(self, name)!r}, but must be {meaning}"
            for name, (kind, allowed, meaning) in _RULES.items()
            if not _fits(getattr(self, name), kind, allowed)
        ]
        if not all(isinstance(text, str) and text for text in self.stop):
            problems.append("--stop is an empty text, which would end every sample at once")
        if problems:
            raise ConfigError("; ".join(problems), "correct the option, or leave it out")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0


def _fits(value: object, kind: type, allowed: Callable[[float], bool]) -> bool:
    kinds = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    return math.isfinite(value) and allowed(value)
