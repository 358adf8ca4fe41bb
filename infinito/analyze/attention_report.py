"""What an analysis found: numbers for each head, as plain data and as rows of a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from infinito.analyze.patterns import FEWEST_KEYS, STATISTICS, uniform_patterns
from infinito.attention.kinds import Kind

HEADERS = (
    "layer", "head", "entropy", "normalised", "max weight", "distance", "first", "self", "lambda",
)  # fmt: skip


@dataclass(frozen=True)
class AttentionReport:
    """Patterns of every head, means over ``n_positions`` query positions.

    Attributes:
        kind: of the attention score.
        n_windows: windows read.
        length: tokens a window.
        means: (L, P, H) float64, the statistics of ``patterns.STATISTICS`` by layer and head.
        lambdas: lambda by layer and head.
        lambda_is_trained: whether lambda is a parameter of the model.
        example: (L, H, N, N) float32, the weights of the first N positions of the first window.
    """

    kind: Kind
    n_windows: int
    length: int
    means: Tensor = field(repr=False)
    lambdas: list[list[float]]
    lambda_is_trained: bool
    example: Tensor = field(repr=False)

    @property
    def n_positions(self) -> int:
        """Query positions that the means are over: those that see two keys or more."""
        return self.n_windows * (self.length - FEWEST_KEYS + 1)

    @property
    def heads(self) -> list[dict[str, Any]]:
        """One entry a head: layer, head (both from 0), statistics and lambda."""
        return [
            {
                "layer": layer,
                "head": head,
                **dict(zip(STATISTICS, self.means[layer, :, head].tolist(), strict=True)),
                "lambda": value,
            }
            for layer, values in enumerate(self.lambdas)
            for head, value in enumerate(values)
        ]

    @property
    def mean(self) -> dict[str, float]:
        """Each statistic, averaged over all heads of all layers."""
        return dict(zip(STATISTICS, self.means.mean((0, 2)).tolist(), strict=True))

    def statistic(self, name: str) -> list[list[float]]:
        """One statistic by layer and head."""
        values: list[list[float]] = self.means[:, STATISTICS.index(name)].tolist()
        return values

    def to_plain(self) -> dict[str, Any]:
        """The report for ``--json``. ``uniform`` is what heads would have that weigh all alike."""
        return {
            "kind": self.kind,
            "n_windows": self.n_windows,
            "window_tokens": self.length,
            "n_positions": self.n_positions,
            "fewest_visible_keys": FEWEST_KEYS,
            "lambda_is_trained": self.lambda_is_trained,
            "heads": self.heads,
            "mean": self.mean,
            "uniform": uniform_patterns(self.length),
        }

    def rows(self) -> list[list[str]]:
        """Cells under ``HEADERS``: the heads, their mean, and uniform attention to compare with."""
        table = [[str(entry["layer"]), str(entry["head"]), *_cells(entry)] for entry in self.heads]
        table.append(["mean", "", *_cells(self.mean)])
        table.append(["uniform", "", *_cells(uniform_patterns(self.length))])
        return table


def _cells(entry: dict[str, Any]) -> list[str]:
    forms = {"mean_distance": ".2f"}
    cells = [format(entry[name], forms.get(name, ".4f")) for name in STATISTICS]
    return [*cells, format(entry["lambda"], ".4f") if "lambda" in entry else "-"]
