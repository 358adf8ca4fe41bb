"""Pictures, drawn without pyplot: no window, no global state."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from infinito.checkpoint.atomic import atomic_writer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Layout = Literal["constrained", "compressed"]


def new_figure(width: float, height: float, layout: Layout) -> tuple[Figure, Axes]:
    """A figure of so many inches with one plot, laid out by one of matplotlib's engines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    return figure, figure.add_subplot()


def save_figures(figures: Mapping[str, Figure], directory: Path) -> list[Path]:
    """Write each as a PNG of its name; the files. Equal figures give equal files. ResourceError."""
    for name, figure in figures.items():
        drawn = io.BytesIO()
        # Without the empty entry the file would name the version of the library.
        figure.savefig(drawn, format="png", dpi=150, metadata={"Software": None})
        with atomic_writer(directory / name, len(drawn.getvalue())) as file:
            file.write(drawn.getvalue())
    return [directory / name for name in figures]
