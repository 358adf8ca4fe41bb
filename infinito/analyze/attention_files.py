"""The files of an analysis: ``attention.json`` and the plots."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infinito.analyze.attention_report import AttentionReport
from infinito.analyze.plots import attention_figure, entropy_figure, lambda_figure
from infinito.checkpoint.atomic import atomic_writer, cannot_write, write_text_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 150


def write_files(report: AttentionReport, plain: dict[str, Any], directory: Path) -> list[Path]:
    """Write ``plain`` and the plots of ``report`` to ``directory`` (made if absent).

    Returns the files written: attention.json, attention.png, entropy.png, and lambda.png where
    lambda is trained (one that an earlier analysis left there is removed otherwise).

    Raises:
        ResourceError: the directory or a file cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(directory, error) from error
    document = directory / "attention.json"
    write_text_atomic(document, json.dumps(plain, indent=2, allow_nan=False) + "\n")
    figures = {"attention.png": attention_figure(report), "entropy.png": entropy_figure(report)}
    if report.lambda_is_trained:
        figures["lambda.png"] = lambda_figure(report)
    else:
        _remove(directory / "lambda.png")
    for name, figure in figures.items():
        _save(figure, directory / name)
    return [document, *(directory / name for name in figures)]


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def _save(figure: Figure, path: Path) -> None:
    drawn = io.BytesIO()
    # Equal reports give equal files: without this the file names the version of the library.
    figure.savefig(drawn, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    with atomic_writer(path, len(drawn.getvalue())) as file:
        file.write(drawn.getvalue())
