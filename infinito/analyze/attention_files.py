"""The files of an analysis: ``attention.json`` and the plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infinito.analyze.attention_report import AttentionReport
from infinito.analyze.plots import attention_figure, entropy_figure, lambda_figure
from infinito.checkpoint.atomic import cannot_write, make_directory, write_text_atomic
from infinito.telemetry.figures import save_figures


def write_files(report: AttentionReport, plain: dict[str, Any], directory: Path) -> list[Path]:
    """Write ``plain`` and the plots of ``report`` to ``directory`` (made if absent).

    Returns the files written: attention.json, attention.png, entropy.png, and lambda.png where
    lambda is trained (one that an earlier analysis left there is removed otherwise).

    Raises:
        ResourceError: the directory or a file cannot be written.
    """
    make_directory(directory)
    document = directory / "attention.json"
    write_text_atomic(document, json.dumps(plain, indent=2, allow_nan=False) + "\n")
    figures = {"attention.png": attention_figure(report), "entropy.png": entropy_figure(report)}
    if report.lambda_is_trained:
        figures["lambda.png"] = lambda_figure(report)
    else:
        try:
            (directory / "lambda.png").unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(directory / "lambda.png", error) from error
    return [document, *save_figures(figures, directory)]
