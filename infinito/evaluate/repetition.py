"""How repetitive a text is, beside what people write. Pure Python, on words.

Definitions as in Welleck et al. 2020 ("Neural text generation with unlikelihood training"),
Li et al. 2016 (distinct-n) and Su et al. 2022 (diversity). Figures of texts of different length
cannot be compared: all of them grow or fall with length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

NGRAM_SIZES = (1, 2, 3, 4)
SPANS = (16, 32, 128, 512)
_FEWEST_WORDS = 50


@dataclass(frozen=True)
class HumanReference:
    """Mean repetition of windows of human text; where two figures differ, the larger one.

    Attributes:
        words: length of the windows.
        seq_rep_2: and the others: mean over the windows.
        seq_rep_4_p90: nine windows of ten repeat less.
        seq_rep_4_p99: 99 of 100 repeat less; more than this deserves suspicion.
    """

    words: int
    seq_rep_2: float
    seq_rep_3: float
    seq_rep_4: float
    seq_rep_4_p90: float
    seq_rep_4_p99: float


HUMAN_SOURCE = (
    "validation and test split of WikiText-2 (tokens version), counted in space-separated words "
    "with <eos> for each line end and <unk>; the larger of the two splits"
)
_HUMAN = (
    HumanReference(100, 0.073, 0.020, 0.0078, 0.021, 0.113),
    HumanReference(128, 0.085, 0.023, 0.0088, 0.024, 0.112),
    HumanReference(256, 0.126, 0.035, 0.0135, 0.03, 0.12),
    HumanReference(512, 0.174, 0.051, 0.020, 0.04, 0.10),
    HumanReference(1024, 0.226, 0.072, 0.030, 0.05, 0.12),
)
# Share of words that also occur among the previous 16, 32, 128 and 512, in the same texts.
HUMAN_REP = dict(zip(SPANS, (0.21, 0.33, 0.53, 0.66), strict=True))


def words_of(text: str) -> list[str]:
    """Space-separated words, each line end counting as the word ``<eos>``."""
    return text.replace("\n", " <eos> ").split()


def seq_rep(words: Sequence[str], size: int) -> float | None:
    """1 - distinct / all n-grams of one text; None if it has no n-gram."""
    share = distinct([words], size)
    return None if share is None else 1 - share


def rep(words: Sequence[str], span: int) -> float | None:
    """Share of words that occur among the ``span`` words before them; None for no words."""
    if not words:
        return None
    last: dict[str, int] = {}
    repeated = 0
    for place, word in enumerate(words):
        repeated += place - last.get(word, -math.inf) <= span
        last[word] = place
    return repeated / len(words)


def distinct(samples: Sequence[Sequence[str]], size: int) -> float | None:
    """Distinct / all n-grams over all samples together; None if there are none."""
    ngrams = [tuple(words[i : i + size]) for words in samples for i in range(len(words) - size + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def diversity(words: Sequence[str]) -> float | None:
    """Product of 1 - seq-rep-n for n = 2, 3, 4; None if the text is shorter than 4 words."""
    shares = [seq_rep(words, size) for size in (2, 3, 4)]
    return None if None in shares else math.prod(1 - share for share in shares if share is not None)


def human_reference(n_words: int) -> HumanReference | None:
    """The human figures for the nearest length (by ratio); None below 50 words."""
    if n_words < _FEWEST_WORDS:
        return None
    return min(_HUMAN, key=lambda reference: abs(math.log(n_words / reference.words)))


def above_human(words: Sequence[str]) -> bool | None:
    """Whether seq-rep-4 lies above 99 % of human texts; None if too short to say."""
    reference, repeated = human_reference(len(words)), seq_rep(words, 4)
    return None if reference is None or repeated is None else repeated > reference.seq_rep_4_p99


def repetition_report(text: str) -> dict[str, Any]:
    """All figures of one text as plain data, the human ones of its length beside them."""
    words = words_of(text)
    reference = human_reference(len(words))
    return {
        "words": len(words),
        **{f"seq_rep_{size}": seq_rep(words, size) for size in NGRAM_SIZES},
        **{f"rep_{span}": rep(words, span) for span in SPANS},
        "diversity": diversity(words),
        "above_human_p99": above_human(words),
        "human": asdict(reference) if reference is not None else None,
    }


def human_summary() -> dict[str, Any]:
    """The human figures that do not depend on a text's length, and where all of them come from."""
    return {"source": HUMAN_SOURCE, **{f"rep_{span}": HUMAN_REP[span] for span in SPANS}}
