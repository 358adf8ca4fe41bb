"""``infinito train --data``: a config for a text of the user's, from its size and a time budget.

The text bounds the model and the passes over it, and the budget bounds both by counted FLOPs at
the rate that a few real steps reach here. What the user sets wins, and the rest follows from it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from infinito.checkpoint.atomic import format_size
from infinito.config.explain import printable
from infinito.config.loading import load_config, override_config
from infinito.config.overrides import parse_overrides
from infinito.config.schema import Config
from infinito.data.cache import Cache
from infinito.data.files import find_files
from infinito.data.order import sequences_per_epoch
from infinito.data.prepare import Dataset, prepare
from infinito.data.sources import open_corpus
from infinito.errors import ConfigError, DataError, ResourceError
from infinito.model.count import count_flops, count_parameters
from infinito.runtime.events import reading
from infinito.train.automatic import resolve
from infinito.train.rehearsal import duration_text, seconds_of_a_step
from infinito.train.trainer import Trainer

LEAST_BYTES = 20_000
# More text changes no choice, and is not counted.
_COUNTED_BYTES = 1 << 26
# An id for each thousand bytes is seen often enough to be learnt; WikiText-2's 8192 stand there.
_BYTES_AN_ID, _VOCABULARIES = 1000, (512, 1024, 2048, 4096, 8192)
_LONG_TEXT_BYTES = 4_000_000  # from here on, sequences of 256 tokens instead of 128
# More passes only overfit a small text, and so do more parameters a token (docs/log.md). A model
# that the time shows fewer than five tokens a parameter would have been better off smaller.
_PASSES, _PARAMETERS_A_TOKEN, _TOKENS_A_PARAMETER = 5, 4, 5
_SHAPES = ((64, 2), (96, 3), (128, 4), (192, 4), (256, 6), (384, 6), (512, 8), (768, 12))
_FIRST_MEASURED = 3
# Of the same tokens, twice the steps of half the size taught more (docs/log.md).
_ENOUGH_STEPS = 2000
_EVALUATIONS, _EVALUATING_SHARE, _LARGEST_EVALUATION = 10, 0.1, 0.25
_TRAINING_SHARE = 0.9  # the rest: start, saves, samples


class Row(NamedTuple):
    """A choice, and why it was made."""

    setting: str
    reason: str


@dataclass
class _Choices:
    """What was chosen so far, under what the user set."""

    settings: Sequence[str]
    extra: Mapping[str, object]
    values: dict[str, object]
    rows: list[Row] = field(default_factory=list)

    def config(self, more: Mapping[str, object] | None = None) -> Config:
        """The config so far, ``more`` included."""
        base = load_config(None, (), self.values | dict(more or {}))
        return override_config(base, self.settings, self.extra)

    def choose(self, reason: str, values: Mapping[str, object]) -> Config:
        """Take ``values`` where the user set none; a row tells which are in force and why."""
        given = {".".join(path) for path in parse_overrides(self.settings, self.extra).values}
        self.values |= values
        config = self.config()
        section = next(iter(values)).partition(".")[0]
        shown = [f"{key.rpartition('.')[2]} {attrgetter(key)(config)}" for key in values]
        why = "as you set it" if given >= set(values) else reason
        self.rows.append(Row(printable(f"{section}.{', '.join(shown)}"), why))
        return config


def own_text_config(
    path: str,
    minutes: float,
    settings: Sequence[str],
    extra: Mapping[str, object],
    cache: Cache,
) -> tuple[Config, list[Row]]:
    """A config for the text ``path`` that trains for about ``minutes``, and its choices as rows.

    ``settings`` and ``extra`` are those of :func:`load_config`; they win.

    Raises:
        DataError: the text is missing, unreadable, too small, or too large for so little time.
        ConfigError: what the user set makes no config.
    """
    find_files(path, "--data")  # what is wrong with it is told of the option that was typed
    chosen = _Choices(settings, extra, {"data.train_file": path})
    config = chosen.config()
    if config.training.init_from:
        raise ConfigError(
            "--data chooses a model, and training.init_from brings one", "write a config: --config"
        )
    n_bytes = _count_bytes(open_corpus(config.data).documents("train"), path)
    size = format_size(n_bytes) + (" or more" if n_bytes >= _COUNTED_BYTES else "")
    if config.tokenizer.kind == "bpe":
        ids = max((v for v in _VOCABULARIES if v * _BYTES_AN_ID <= n_bytes), default=512)
        chosen.choose(f"an id for each {_BYTES_AN_ID} bytes of {size} of training text",
                      {"tokenizer.vocab_size": ids})  # fmt: skip
    config = chosen.choose(
        f"tokens; 256 from {format_size(_LONG_TEXT_BYTES)} of text on",
        {"data.sequence_length": 256 if n_bytes >= _LONG_TEXT_BYTES else 128},
    )
    with reading(alone=True):  # the run tells all this again
        config = resolve(config)
        dataset = prepare(config, cache=cache)
    _choose_batch(chosen, config, dataset.splits["train"].n_tokens)
    budget = _Budget(chosen, dataset, 60 * minutes)
    budget.choose_model()
    words = dataset.tokenizer.decode(dataset.splits["valid"].tokens[:40].tolist()).split()
    chosen.choose(
        "the held-out text's first words, for the model to go on",
        {"training.sample_prompt": " ".join(words[:4])[:40]},
    )
    return budget.choose_steps(), chosen.rows


def _choose_batch(chosen: _Choices, config: Config, n_tokens: int) -> None:
    most = 16 if config.device == "cpu" else 64
    sequences = _PASSES * sequences_per_epoch(n_tokens, config.data.sequence_length)
    batch = max((b for b in (4, 8, 16, 32, 64) if b <= most and b * _ENOUGH_STEPS <= sequences),
                default=4)  # fmt: skip
    chosen.choose(f"sequences a step: {_PASSES} passes in {_ENOUGH_STEPS} steps, 4 to {most} of "
                  f"them on {config.device}", {"training.batch_size": batch})  # fmt: skip


class _Budget:
    """The model and the steps that a text and a time allow, at a measured rate."""

    def __init__(self, chosen: _Choices, dataset: Dataset, seconds: float) -> None:
        self._chosen, self._dataset, self._seconds = chosen, dataset, seconds
        self._train = dataset.splits["train"].n_tokens
        self._rate = 0.0  # FLOPs a second

    def choose_model(self) -> None:
        """The largest shape for which text, memory and time suffice."""
        shapes = [self._shape(d_model, n_layers) for d_model, n_layers in _SHAPES]
        allowed = [number for number, shape in enumerate(shapes) if self._text_allows(shape)]
        best, measured = min(_FIRST_MEASURED, max(allowed, default=0)), -1
        while best > measured:  # a model of another size may reach another rate
            measured = best
            self._measure(shapes[measured])
            best = max((n for n in allowed if self._time_allows(shapes[n])), default=0)
        if best < measured:
            self._measure(shapes[best])
        config = self._resolved(shapes[best])
        bound = "the time" if best + 1 in allowed else "the text"
        speed = self._rate / self._flops(config) * config.data.sequence_length
        self._chosen.choose(
            f"{self._inner_parameters(config)} parameters inside; {bound} allows no more "
            f"({self._train} tokens, {speed:.0f} tokens/s here)",
            shapes[best],
        )

    def _measure(self, shape: Mapping[str, object]) -> None:
        config = self._resolved(shape)
        step = seconds_of_a_step(Trainer(config, self._dataset))
        self._rate = self._flops(config) * config.training.sequences_per_step / step

    def choose_steps(self) -> Config:
        """As many steps as time and text allow, and evaluations that take little of it."""
        config = self._resolved({})
        training, length = config.training, config.data.sequence_length
        step = self._flops(config) * training.sequences_per_step / self._rate
        evaluation = self._flops(config) / 3 / self._rate  # forward only
        evaluation *= self._dataset.splits["valid"].n_tokens / length
        if evaluation > _LARGEST_EVALUATION * self._seconds:
            raise DataError(
                f"scoring the held-out text takes {duration_text(evaluation)}, too much of "
                f"{duration_text(self._seconds)}",
                f"give --minutes {math.ceil(evaluation / _LARGEST_EVALUATION / 60)}, less text, "
                "or a smaller held-out text with --set data.valid_file=FILE",
            )
        evaluations = int(_EVALUATING_SHARE * self._seconds / max(evaluation, 1e-9))
        evaluations = min(max(evaluations, 1), _EVALUATIONS)
        timed = int((_TRAINING_SHARE * self._seconds - evaluations * evaluation) / step)
        epoch = sequences_per_epoch(self._train, length) / training.sequences_per_step
        steps = max(10, min(timed, math.ceil(_PASSES * epoch)))
        limit = "as long as asked for" if steps < _PASSES * epoch else "more only overfit"
        seconds = steps * step + evaluations * evaluation
        values: dict[str, object] = {"training.max_steps": steps}
        if self._chosen.config(values).training.max_steps is None:  # lifted: --epochs
            values = {"training.epochs": steps / epoch}
        training = self._chosen.choose(
            f"{steps / epoch:.1f} passes over the text, about {duration_text(seconds)}: {limit}",
            values,
        ).training
        steps = training.max_steps or max(1, round(training.epochs * epoch))
        self._choose_recipe(steps, steps / epoch)
        every = math.ceil(steps / evaluations)
        return self._chosen.choose(
            f"{evaluations} evaluations of {evaluation:.1f} s",
            {"training.eval_every": every, "training.save_every": every},
        )

    def _choose_recipe(self, steps: int, passes: float) -> None:
        self._chosen.choose(
            "the text is seen " + ("more than once" if passes > 1 else "once at most"),
            {"model.dropout": 0.1 if passes > 1 else 0.0},
        )
        self._chosen.values |= {
            "training.muon_learning_rate": 0.02,
            "training.schedule": "wsd",
            "training.decay_fraction": 0.5,
            "training.warmup_steps": min(100, max(5, steps // 20)),
        }
        self._chosen.choose(
            "as in configs/ (docs/log.md)",
            {"training.optimizer": "muon", "training.learning_rate": 0.003},
        )

    def _shape(self, d_model: int, n_layers: int) -> dict[str, object]:
        values: dict[str, object] = {"model.d_model": d_model, "model.n_layers": n_layers}
        width = self._chosen.config({**values, "model.n_heads": 1}).model.d_model
        even = [h for h in range(1, max(2, width // 64) + 1) if width % (2 * h) == 0]
        return {**values, "model.n_heads": max(even, default=1)}

    def _resolved(self, values: Mapping[str, object]) -> Config:
        with reading(alone=True):
            return resolve(self._chosen.config(values))

    def _text_allows(self, shape: Mapping[str, object]) -> bool:
        try:
            config = self._resolved(shape)
        except ResourceError:  # nor does the memory
            return False
        return self._inner_parameters(config) <= _PARAMETERS_A_TOKEN * self._train

    def _time_allows(self, shape: Mapping[str, object]) -> bool:
        config = self._resolved(shape)
        sequences = _TRAINING_SHARE * self._seconds * self._rate / self._flops(config)
        needed = _TOKENS_A_PARAMETER * self._inner_parameters(config)
        return sequences * config.data.sequence_length >= min(needed, _PASSES * self._train)

    def _flops(self, config: Config) -> int:
        """Of training on one sequence."""
        vocab_size, length = self._dataset.tokenizer.vocab_size, config.data.sequence_length
        return count_flops(config.model, vocab_size, 1, length).training

    def _inner_parameters(self, config: Config) -> int:
        vocab_size, length = self._dataset.tokenizer.vocab_size, config.data.sequence_length
        count = count_parameters(config.model, vocab_size, length)
        return count.attention + count.feed_forward


def run_name(path: str) -> str:
    """The name of a run on a text: its file's or folder's, without endings and wildcards."""
    parts = Path(path).expanduser().absolute().parts
    named = [part for part in parts if not set("*?[") & set(part)]
    return named[-1].split(".")[0].strip(os.sep) or "text"


def _count_bytes(documents: Iterable[str], path: str) -> int:
    """UTF-8 bytes of a training text, as far as they matter."""
    total = 0
    for document in documents:
        total += len(document.encode())
        if total >= _COUNTED_BYTES:
            return total
    if total < LEAST_BYTES:
        raise DataError(
            f"{path} leaves {total} bytes of text to learn from, and {LEAST_BYTES} are the least "
            "of which a model learns more than to repeat them",
            "give more text; or choose all settings yourself: infinito config init my.yaml",
        )
    return total
