"""Which curves a run has: one list of panels for the page, the pictures and the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from infinito.checkpoint.survey import finite
from infinito.report.run_log import RunLog


@dataclass(frozen=True)
class Curve:
    """Values of one measure of a run.

    Attributes:
        run: number of the run.
        label: what it is called beside the curves of the same panel.
        faint: drawn in the background (the training loss behind the validation's).
        at: the line of metrics of each value.
        values: finite numbers.
    """

    run: int
    label: str
    faint: bool
    at: list[int]
    values: list[float]


@dataclass(frozen=True)
class Panel:
    """Curves that share a vertical axis.

    Attributes:
        name: of its file, without an ending.
        title, unit, hint: for people; the hint says how to read it.
        keys: of a line of metrics, and the label of each one's curve.
        logarithmic, from_zero: of the vertical axis.
        curves: of all runs.
    """

    name: str
    title: str
    unit: str
    hint: str
    keys: dict[str, str]
    logarithmic: bool = False
    from_zero: bool = False
    curves: list[Curve] = field(default_factory=list)

    def of(self, curves: Iterable[Curve]) -> list[Panel]:
        """This panel with those of ``curves`` that have values, or none where none has."""
        there = [curve for curve in curves if curve.values]
        positive = all(value > 0 for curve in there for value in curve.values)
        logarithmic = self.logarithmic and positive
        return [replace(self, curves=there, logarithmic=logarithmic)] if there else []


MEASURES = (
    Panel(
        "loss", "Loss", "nats a token",
        "The lower the better. Validation rising while training falls: overfitting.",
        {"loss": "training", "valid_loss": "validation"},
    ),
    Panel(
        "word-perplexity", "Word perplexity", "validation",
        "Comparable between tokenizers, on the same text only.",
        {"valid_word_perplexity": "validation"}, logarithmic=True,
    ),
    Panel(
        "bits-per-byte", "Bits per byte", "validation",
        "Like perplexity, for text of any language.", {"valid_bits_per_byte": "validation"},
    ),
    Panel(
        "learning-rate", "Learning rate", "AdamW groups",
        "Warm-up, then the schedule.", {"learning_rate": "rate"}, from_zero=True,
    ),
    Panel(
        "gradient-norm", "Gradient norm", "before clipping",
        "Spikes go along with spikes of the loss.", {"grad_norm": "norm"}, logarithmic=True,
    ),
    Panel(
        "throughput", "Throughput", "tokens a second",
        "Without evaluating and saving.", {"tokens_per_second": "tokens/s"}, from_zero=True,
    ),
    Panel(
        "memory", "Memory", "MB at the peak", "Of the whole process.", {"memory_mb": "memory"},
        from_zero=True,
    ),
)  # fmt: skip
#: Of one run each, since every layer and head (or expert) has a curve.
INNER_MEASURES = (
    Panel(
        "lambda", "λ of each head", "",
        "Above 1, a head looks more sharply; below 1, more evenly.",
        {"attention_lambda": "head"},
    ),
    Panel(
        "expert-load", "Load of each expert", "share of the tokens",
        "Even loads are good: an expert near 0 has died.", {"expert_load": "expert"},
        from_zero=True,
    ),
    Panel(
        "router-entropy", "Entropy of the router", "nats",
        "How undecided a layer's router is among its experts.", {"router_entropy": ""},
    ),
)  # fmt: skip


def panels(runs: Sequence[RunLog]) -> list[Panel]:
    """Panels with something in them, curves of all runs together."""
    found = []
    for measure in MEASURES:
        curves = [
            _curve(
                number, label, len(runs), key == "loss", run, [line.get(key) for line in run.lines]
            )
            for number, run in enumerate(runs)
            for key, label in measure.keys.items()
        ]
        found += measure.of(curves)
    return found


def inner_panels(runs: Sequence[RunLog]) -> list[Panel]:
    """Panels of what goes on inside, of each run by itself."""
    found = []
    for number, run in enumerate(runs):
        for measure in INNER_MEASURES:
            ((key, part),) = measure.keys.items()
            rows = [dict(_flat(line.get(key), part)) for line in run.lines]
            labels = list(dict.fromkeys(label for row in rows for label in row))
            curves = [
                _curve(number, label, 1, False, run, [row.get(label) for row in rows])
                for label in labels
            ]
            title = f"{measure.title}, {run.name}" if len(runs) > 1 else measure.title
            name = f"{measure.name}-{number + 1}" if len(runs) > 1 else measure.name
            found += replace(measure, name=name, title=title).of(curves)
    return found


def _curve(
    number: int, label: str, n_runs: int, faint: bool, run: RunLog, cells: Sequence[Any]
) -> Curve:
    known = [(at, value) for at, cell in enumerate(cells) if (value := finite(cell)) is not None]
    if n_runs > 1:
        label = f"{run.name}, {label}" if faint else run.name
    return Curve(number, label, faint, [at for at, _ in known], [value for _, value in known])


def _flat(value: object, part: str) -> Iterator[tuple[str, object]]:
    """A cell a layer, or one a layer and ``part`` (head, expert) of it; both count from 0."""
    for layer, row in enumerate(value if isinstance(value, list) else []):
        if isinstance(row, list):
            for index, cell in enumerate(row):
                yield f"layer {layer} {part} {index}", cell
        else:
            yield f"layer {layer}", row
