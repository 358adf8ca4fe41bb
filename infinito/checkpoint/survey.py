"""What a run directory holds, checkpoint by checkpoint, for ``infinito runs``. No torch."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from infinito.checkpoint.discover import (
    BEST_FILE,
    LAST_FILE,
    METRICS_FILE,
    find_steps,
    is_plain_file,
    verify_step,
)
from infinito.checkpoint.lock import is_locked
from infinito.checkpoint.manifest import ManifestEntry, read_manifest
from infinito.checkpoint.record import json_object, read_record
from infinito.checkpoint.verify import inspect_checkpoint
from infinito.config.loading import config_from_plain
from infinito.errors import CheckpointError


def survey_run(run: Path) -> dict[str, Any]:
    """All checkpoints of ``run`` as JSON-ready data, each verified; a damaged one says why.

    ``state`` is ``running`` (a process has the directory), ``finished`` (its newest checkpoint
    has no step left to take) or ``stopped``. ``loss`` is the training loss (nats a token) of the
    last metrics line up to the step, and ``valid_word_perplexity`` that of the last evaluation up
    to it; None where there is none.
    """
    survey = _Survey(_training_losses(run / METRICS_FILE))
    found, _ = find_steps(run)
    manifest = read_manifest(run)
    for step, path in found.items():
        # A run that goes on meanwhile removes old checkpoints: one that has gone is left out.
        with contextlib.suppress(FileNotFoundError):
            survey.add(path, step, manifest.get(path.name))
    for name, mark in ((BEST_FILE, "best"), (LAST_FILE, "last")):
        if is_plain_file(run / name):
            survey.mark(run / name, mark)
    started = read_record(run).get("started")
    shown = started if type(started) is str else None
    state = "running" if is_locked(run) else "finished" if survey.is_finished else "stopped"
    return {"run": str(run), "started": shown, "state": state, "checkpoints": survey.rows}


class _Survey:
    """Rows of checkpoints as they are found, and the content of the newest whole one."""

    def __init__(self, losses: dict[int, float]) -> None:
        self.rows: list[dict[str, Any]] = []
        self._losses = losses
        self._newest: dict[str, Any] | None = None

    def add(self, path: Path, step: int, entry: ManifestEntry | None) -> None:
        """A row for the step file ``path``."""
        try:
            content = verify_step(path, step, entry)
        except CheckpointError as error:
            self.rows.append(_row(path, step, "damaged", reason=error.message))
        else:
            self._add_whole(path, content)

    def mark(self, link: Path, mark: str) -> None:
        """Mark the row that ``link`` stands for, or add a row where its step file is gone."""
        for row in self.rows:
            with contextlib.suppress(FileNotFoundError):
                if link.samefile(link.with_name(row["file"])):
                    row[mark] = True
                    return
        try:
            content = inspect_checkpoint(link)
        except CheckpointError as error:
            known = {"reason": error.message, mark: True}
            self.rows.append(_row(link, None, "damaged", **known))
            return
        for row in self.rows:
            if row["step"] == content["step"]:  # a copy, where the file system has no links
                row[mark] = True
                return
        self._add_whole(link, content)
        self.rows[-1][mark] = True

    @property
    def is_finished(self) -> bool:
        """Whether the newest checkpoint has no step left to take."""
        return self._newest is not None and _is_finished(self._newest)

    def _add_whole(self, path: Path, content: dict[str, Any]) -> None:
        self.rows.append(_whole(path, content, self._losses))
        if self._newest is None or content["step"] > self._newest["step"]:
            self._newest = content


def _is_finished(content: dict[str, Any]) -> bool:
    """What ``Trainer.finished`` says once it is loaded, from counters alone."""
    try:
        training = config_from_plain(content["config"], "", CheckpointError).training
    except CheckpointError:
        return False
    if training.out_of_patience([e["valid_loss"] for e in content["evaluations"]]):
        return True
    if training.max_steps is not None:
        return bool(content["step"] >= training.max_steps)
    try:
        per_epoch = round(content["sequences"] / content["epoch"])
    except (ZeroDivisionError, OverflowError):  # no step was taken, or numbers of no run
        return False
    return bool(content["sequences"] >= max(1, round(training.epochs * per_epoch)))


def _whole(path: Path, content: dict[str, Any], losses: dict[int, float]) -> dict[str, Any]:
    step = content["step"]
    evaluations = content["evaluations"]
    perplexity = evaluations[-1].get("valid_word_perplexity") if evaluations else None
    logged = [at for at in losses if at <= step]
    return _row(
        path, step, "ok",
        epoch=float(content["epoch"]),
        loss=losses[max(logged)] if logged else None,
        valid_word_perplexity=finite(perplexity),
    )  # fmt: skip


def _row(path: Path, step: int | None, status: str, **known: Any) -> dict[str, Any]:
    return {
        "file": path.name,
        "step": step,
        "epoch": None,
        "loss": None,
        "valid_word_perplexity": None,
        "bytes": path.stat().st_size,
        "best": False,
        "last": False,
        "status": status,
        "reason": None,
        **known,
    }


def _training_losses(metrics: Path) -> dict[int, float]:
    """Training loss by step from metrics.jsonl; lines that are not records are passed over."""
    losses: dict[int, float] = {}
    if not is_plain_file(metrics):
        return losses
    with metrics.open("rb") as file:
        for line in file:
            record = json_object(line) or {}
            loss = finite(record.get("loss"))
            if type(record.get("step")) is int and loss is not None:
                losses[record["step"]] = loss
    return losses


def finite(value: Any) -> float | None:
    """``value`` where it is a finite number, whatever a stranger's JSON says it is."""
    # Bounds instead of isfinite: an integer beyond the range of floats is an overflow there.
    is_number = type(value) in (int, float) and -1e300 < value < 1e300
    return float(value) if is_number else None
