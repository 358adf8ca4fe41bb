"""What a run directory holds, checkpoint by checkpoint, for ``infinito runs``. No torch."""

from __future__ import annotations

import contextlib
import json
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
from infinito.checkpoint.manifest import ManifestEntry, read_manifest
from infinito.checkpoint.record import read_record
from infinito.checkpoint.verify import inspect_checkpoint
from infinito.errors import CheckpointError


def survey_run(run: Path) -> dict[str, Any]:
    """All checkpoints of ``run`` as JSON-ready data, each verified; a damaged one says why.

    ``loss`` is the training loss (nats a token) of the last metrics line up to the step, and
    ``valid_word_perplexity`` that of the last evaluation up to it; None where there is none.
    """
    found, _ = find_steps(run)
    manifest = read_manifest(run)
    losses = _training_losses(run / METRICS_FILE)
    rows = []
    for step, path in found.items():
        # A run that goes on meanwhile removes old checkpoints: one that has gone is left out.
        with contextlib.suppress(FileNotFoundError):
            rows.append(_survey(path, step, manifest.get(path.name), losses))
    for name, mark in ((BEST_FILE, "best"), (LAST_FILE, "last")):
        if is_plain_file(run / name):
            _mark(rows, run / name, mark, losses)
    started = read_record(run).get("started")
    shown = started if type(started) is str else None
    return {"run": str(run), "started": shown, "checkpoints": rows}


def _survey(
    path: Path, step: int, entry: ManifestEntry | None, losses: dict[int, float]
) -> dict[str, Any]:
    try:
        content = verify_step(path, step, entry)
    except CheckpointError as error:
        return _damaged(path, step, error)
    return _whole(path, content, losses)


def _mark(rows: list[dict[str, Any]], link: Path, mark: str, losses: dict[int, float]) -> None:
    """Mark the row that ``link`` stands for, or add a row where its step file is gone."""
    for row in rows:
        with contextlib.suppress(FileNotFoundError):
            if link.samefile(link.with_name(row["file"])):
                row[mark] = True
                return
    try:
        content = inspect_checkpoint(link)
    except CheckpointError as error:
        rows.append(_damaged(link, None, error) | {mark: True})
        return
    for row in rows:
        if row["step"] == content["step"]:  # a copy, where the file system has no links
            row[mark] = True
            return
    rows.append(_whole(link, content, losses) | {mark: True})


def _whole(path: Path, content: dict[str, Any], losses: dict[int, float]) -> dict[str, Any]:
    step = content["step"]
    evaluations = content["evaluations"]
    perplexity = evaluations[-1].get("valid_word_perplexity") if evaluations else None
    logged = [at for at in losses if at <= step]
    return _row(path, step) | {
        "epoch": float(content["epoch"]),
        "loss": losses[max(logged)] if logged else None,
        "valid_word_perplexity": _finite(perplexity),
        "status": "ok",
    }


def _damaged(path: Path, step: int | None, error: CheckpointError) -> dict[str, Any]:
    return _row(path, step) | {"status": "damaged", "reason": error.message}


def _row(path: Path, step: int | None) -> dict[str, Any]:
    return {
        "file": path.name,
        "step": step,
        "epoch": None,
        "loss": None,
        "valid_word_perplexity": None,
        "bytes": path.stat().st_size,
        "best": False,
        "last": False,
        "status": "",
        "reason": None,
    }


def _training_losses(metrics: Path) -> dict[int, float]:
    """Training loss by step from metrics.jsonl; lines that are not records are passed over."""
    losses: dict[int, float] = {}
    if not is_plain_file(metrics):
        return losses
    with metrics.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and type(record.get("step")) is int:
                loss = _finite(record.get("loss"))
                if loss is not None:
                    losses[record["step"]] = loss
    return losses


def _finite(value: Any) -> float | None:
    # Bounds instead of isfinite: an integer beyond the range of floats is an overflow there.
    is_number = type(value) in (int, float) and -1e300 < value < 1e300
    return float(value) if is_number else None
