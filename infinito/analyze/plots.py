"""Pictures of an analysis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infinito.analyze.attention_report import AttentionReport
from infinito.telemetry.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Weights below are drawn alike; uniform attention over 128 keys is 0.008.
FAINTEST = 1e-3
#: A picture of many heads is no wider or higher than this.
_LARGEST_INCHES = 24.0
_NARROWEST_INCHES = 4.8
_MOST_NUMBERS = 32  # of heads in a row, each with its number in the cell
_MOST_NAMES = 10  # heads with a colour of their own


def attention_figure(report: AttentionReport) -> Figure:
    """The weights of the first window: a mosaic of matrices, layers down and heads across."""
    from matplotlib.colors import LogNorm

    layers, heads, drawn, _ = report.example.shape
    side = min(1.6, _LARGEST_INCHES / max(layers, heads))
    figure, axes = _figure(heads * side + 1.8, layers * side + 1.2)
    mosaic, centres = _mosaic(report.example.numpy())
    image = axes.imshow(
        mosaic, norm=LogNorm(FAINTEST, 1.0), cmap="viridis", interpolation="antialiased"
    )
    _name_axes(axes, centres[:layers], centres[:heads])
    axes.set_title(
        f"{report.kind} attention, first {drawn} positions of the first window\n"
        "queries downwards, keys to the right",
        fontsize=9,
    )
    axes.spines[:].set_visible(False)
    colours = figure.colorbar(image, extend="min", shrink=min(1.0, 3.0 / (layers * side)))
    colours.set_label("weight")
    return figure


def _mosaic(matrices: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[float]]:
    """(L, H, N, N) as one picture with gaps, NaN where a key lies ahead; and the cells' centres."""
    layers, heads, size, _ = matrices.shape
    gap = max(1, size // 16)
    pitch = size + gap
    mosaic = np.full((layers * pitch - gap, heads * pitch - gap), np.nan, np.float32)
    visible = np.tril(np.ones((size, size), bool))
    for layer in range(layers):
        for head in range(heads):
            top, left = layer * pitch, head * pitch
            cell = np.where(visible, np.maximum(matrices[layer, head], 1e-30), np.nan)
            mosaic[top : top + size, left : left + size] = cell
    return mosaic, [index * pitch + (size - 1) / 2 for index in range(max(layers, heads))]


def entropy_figure(report: AttentionReport) -> Figure:
    """Normalised entropy by layer and head, with the number in each cell."""
    values = np.array(report.statistic("normalised_entropy"))
    layers, heads = values.shape
    side = min(0.6, _LARGEST_INCHES / max(layers, heads))
    figure, axes = _figure(heads * side + 1.8, layers * side + 1.2)
    image = axes.imshow(values, vmin=0.0, vmax=1.0, cmap="viridis")
    _name_axes(axes, range(layers), range(heads))
    axes.set_title("entropy / ln(visible keys)\n1 = uniform attention", fontsize=9)
    if max(layers, heads) <= _MOST_NUMBERS:
        for (layer, head), value in np.ndenumerate(values):
            colour = "black" if value > 0.6 else "white"
            axes.text(
                head, layer, f"{value:.2f}", color=colour, ha="center", va="center", fontsize=8
            )
    figure.colorbar(image)
    return figure


def lambda_figure(report: AttentionReport) -> Figure:
    """lambda of each head, a point a head, by layer."""
    values = np.array(report.lambdas)
    layers, heads = values.shape
    figure, axes = _figure(min(_LARGEST_INCHES, 0.6 * layers + 2.4), 3.2)
    spread = np.linspace(-0.25, 0.25, heads) if heads > 1 else np.zeros(1)
    named = heads <= _MOST_NAMES
    for head in range(heads):
        axes.plot(
            np.arange(layers) + spread[head], values[:, head], "o", markersize=4,
            color=f"C{head if named else 0}", label=f"head {head}",
        )  # fmt: skip
    axes.set_xticks(range(layers), [str(layer) for layer in range(layers)])
    axes.set_xlabel("layer, its heads from left to right")
    axes.set_ylabel("lambda")
    axes.set_title(f"lambda of each head, {report.kind} attention", fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    if named:
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    return new_figure(max(width, _NARROWEST_INCHES), height, "compressed")


def _name_axes(axes: Axes, layers: Sequence[float], heads: Sequence[float]) -> None:
    axes.set_yticks(layers, [str(layer) for layer in range(len(layers))], fontsize=8)
    axes.set_xticks(heads, [str(head) for head in range(len(heads))], fontsize=8)
    axes.set_ylabel("layer")
    axes.set_xlabel("head")
    axes.tick_params(length=0)
