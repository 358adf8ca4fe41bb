"""The files of a report: report.html and a picture of each of its plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from infinito.analyze.plots import attention_figure, entropy_figure
from infinito.checkpoint.atomic import make_directory, write_text_atomic
from infinito.checkpoint.discover import holds_run
from infinito.errors import CheckpointError, ConfigError
from infinito.report.curve_plots import curves_figure
from infinito.report.curves import Panel, inner_panels, panels
from infinito.report.model_view import ModelView, view_model
from infinito.report.page import render
from infinito.report.run_log import RunLog, read_run
from infinito.runtime.events import note
from infinito.telemetry.figures import save_figures

REPORT_FILE = "report.html"


def read_runs(paths: Sequence[Path]) -> list[RunLog]:
    """Each run once, in the order given. Raises as ``read_run`` does.

    An earlier report among them (`infinito report checkpoints/*`) is passed over.
    """
    chosen = [path for path in dict.fromkeys(paths) if not _is_report(path)]
    return [read_run(path) for path in chosen or paths]


def _is_report(path: Path) -> bool:
    return (path / REPORT_FILE).is_file() and not holds_run(path)


def write_report(paths: Sequence[Path], directory: Path | None) -> list[Path]:
    """Write the report of run directories; return its files, the page first.

    Without ``directory`` it goes to the run's own, or of several runs to ``report`` beside the
    first. What a run lacks (data, a checkpoint, evaluations) is left out with the reason.

    Raises:
        CheckpointError, ConfigError: a run cannot be read.
        ResourceError: a file cannot be written.
    """
    runs = read_runs(paths)
    views = []
    for number, run in enumerate(runs):
        views.append(view_model(run))
        runs[number] = replace(run, flops_per_token=views[-1].flops_per_token)
        if views[-1].missing:
            note(f"{run.path}: no text coloured by surprise: {views[-1].missing}")
    place = directory or (
        runs[0].path if len(runs) == 1 else runs[0].path.resolve().parent / "report"
    )
    make_directory(place)
    page = place / REPORT_FILE
    write_text_atomic(page, render(runs, views))
    return [page, *_pictures(runs, views, place)]


def _pictures(runs: Sequence[RunLog], views: Sequence[ModelView], place: Path) -> list[Path]:
    figures = {
        f"{panel.name}.png": curves_figure([panel], runs)
        for panel in [*panels(runs), *inner_panels(runs)]
    }
    for number, view in enumerate(views, 1):
        if view.attention is not None:
            ending = f"-{number}.png" if len(runs) > 1 else ".png"
            figures[f"attention{ending}"] = attention_figure(view.attention)
            figures[f"entropy{ending}"] = entropy_figure(view.attention)
    return save_figures(figures, place)


def read_curves(paths: Sequence[Path]) -> tuple[list[Panel], list[RunLog]]:
    """All panels of the runs, and the runs. Raises as ``read_run``, and where there is none."""
    runs = read_runs(paths)
    found = [*panels(runs), *inner_panels(runs)]
    if not found:
        names = " and ".join(map(str, paths))
        raise CheckpointError(
            f"no line of metrics in {names} yet", "wait for the first, or train on"
        )
    return found, runs


def write_plot(paths: Sequence[Path], file: Path) -> None:
    """Write all curves of the runs as one PNG. Raises as ``read_curves``, and ConfigError."""
    if file.suffix.lower() != ".png":
        raise ConfigError(f"--output {file} is no .png file", "name it curves.png, for example")
    save_figures({file.name: curves_figure(*read_curves(paths))}, file.parent)
