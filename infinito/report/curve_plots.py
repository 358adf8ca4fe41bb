"""The panels of a report as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from infinito.report.curves import Panel
from infinito.report.run_log import RunLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#1f5fbf", "#b8510d", "#0b755d", "#8a3ea8", "#806300", "#b5304f", "#46617a", "#4f6a0c")
_COLUMNS = 2
_MOST_NAMES = 8  # curves that are named beside the picture
_WITH_POINTS = 30


def curves_figure(panels: Sequence[Panel], runs: Sequence[RunLog]) -> Figure:
    """Panels against steps, two in a row; one alone is larger."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 if columns == 1 else 5.4 * columns, 3.2 * rows), layout="tight")
    for number, panel in enumerate(panels, 1):
        _draw(figure.add_subplot(rows, columns, number), panel, runs)
    return figure


def _draw(axes: Axes, panel: Panel, runs: Sequence[RunLog]) -> None:
    strong = {curve.run for curve in panel.curves if not curve.faint}
    for number, curve in enumerate(panel.curves):
        steps = runs[curve.run].axes()["steps"]
        faint = curve.faint and curve.run in strong
        inner = len({other.run for other in panel.curves}) == 1 and not curve.faint
        axes.plot(
            [float(steps[at] or 0) for at in curve.at], curve.values,
            color=_COLOURS[(number if inner else curve.run) % len(_COLOURS)],
            linewidth=1.0 if faint else 1.6, alpha=0.5 if faint else 1.0, label=curve.label,
            marker="" if faint or len(curve.at) > _WITH_POINTS else "o", markersize=3,
        )  # fmt: skip
    if panel.logarithmic:
        axes.set_yscale("log")
    elif panel.from_zero:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_title(f"{panel.title}{f' ({panel.unit})' if panel.unit else ''}", fontsize=10)
    axes.set_xlabel("steps", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    # Curves of several runs cannot be told apart without names, however many they are.
    if 1 < len(panel.curves) <= _MOST_NAMES or len({curve.run for curve in panel.curves}) > 1:
        axes.legend(frameon=False, fontsize=7)
