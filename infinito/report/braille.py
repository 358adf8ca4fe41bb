"""Curves in a terminal: two by four dots a character, drawn with braille patterns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.text import Text

from infinito.report.curves import Curve, Panel
from infinito.report.run_log import RunLog

_ROWS, _MOST_COLUMNS, _LABEL = 7, 72, 9
_STYLES = ("blue", "yellow", "green", "magenta", "cyan", "red")
_MOST_NAMES = 6  # curves that have a line of their own below the picture
_BLANK = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column


def drawn(panel: Panel, runs: Sequence[RunLog], width: int) -> Iterator[Text]:
    """Lines of a panel against steps: title, picture, steps, and the ends of each curve."""
    columns = max(10, min(_MOST_COLUMNS, width - _LABEL - 2))
    values = [value for curve in panel.curves for value in curve.values]
    low, high = min(values), max(values)
    if panel.from_zero:
        low = min(low, 0.0)
    steps = [[float(step or 0) for step in run.axes()["steps"]] for run in runs]
    last = max(steps[curve.run][curve.at[-1]] for curve in panel.curves)
    canvas = _Canvas(columns, last, low, high, panel.logarithmic)
    for number, curve in enumerate(panel.curves):
        canvas.draw([steps[curve.run][at] for at in curve.at], curve.values, number)
    unit = f" ({panel.unit})" if panel.unit else ""
    yield Text.assemble((panel.title, "bold"), unit)
    names = {0: f"{high:.4g}", _ROWS - 1: f"{low:.4g}"}
    for row, line in enumerate(canvas.lines()):
        yield Text(f"{names.get(row, ''):>{_LABEL}} ").append_text(line)
    ends = f"{last:.0f} steps"
    yield Text(" " * (_LABEL + 1) + "0" + ends.rjust(columns - 1), style="dim")
    yield from _named(panel.curves)


def _named(curves: Sequence[Curve]) -> Iterator[Text]:
    for number, curve in enumerate(curves[:_MOST_NAMES]):
        ends = f"{curve.values[0]:.5g} -> {curve.values[-1]:.5g}"
        yield Text.assemble(" " * (_LABEL + 1), (f"{curve.label}: {ends}", _style(number)))
    if len(curves) > _MOST_NAMES:
        yield Text(f"{'':{_LABEL + 1}}and {len(curves) - _MOST_NAMES} more")


def _style(number: int) -> str:
    return _STYLES[number % len(_STYLES)]


class _Canvas:
    """Dots of all curves; a character has the colour of the curve that came last to it."""

    def __init__(self, columns: int, last: float, low: float, high: float, log: bool) -> None:
        rise = math.log if log else float
        self._rise, self._low, self._high, self._last = rise, rise(low), rise(high), last or 1.0
        self._cells = [[0] * columns for _ in range(_ROWS)]
        self._styles = [[""] * columns for _ in range(_ROWS)]

    def draw(self, steps: Sequence[float], values: Sequence[float], number: int) -> None:
        """A line through the points, dot by dot."""
        places = [self._place(step, value) for step, value in zip(steps, values, strict=True)]
        for (x0, y0), (x1, y1) in zip(places, places[1:] or places, strict=False):
            length = max(abs(x1 - x0), abs(y1 - y0), 1)
            for at in range(length + 1):
                x, y = x0 + (x1 - x0) * at / length, y0 + (y1 - y0) * at / length
                self._dot(round(x), round(y), number)

    def lines(self) -> Iterator[Text]:
        for cells, styles in zip(self._cells, self._styles, strict=True):
            line = Text()
            for cell, style in zip(cells, styles, strict=True):
                line.append(chr(_BLANK + cell), style=style)
            yield line

    def _place(self, step: float, value: float) -> tuple[int, int]:
        width, height = 2 * len(self._cells[0]) - 1, 4 * _ROWS - 1
        span = self._high - self._low
        share = (self._rise(value) - self._low) / span if span else 0.5
        return round(step / self._last * width), round((1 - share) * height)

    def _dot(self, x: int, y: int, number: int) -> None:
        self._cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
        self._styles[y // 4][x // 2] = _style(number)
