"""Find the checkpoint that a user means: a file, a run directory, or the most recent run.

Time stamps of files are never consulted, since copies, clocks and archives change them. A run
directory is read by the names of its step files, and a file counts when it verifies.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, Literal

from infinito.checkpoint.manifest import ManifestEntry, entry_of, read_manifest
from infinito.checkpoint.record import RECORD_FILE, start_time
from infinito.checkpoint.verify import REMEDY, inspect_checkpoint
from infinito.errors import CheckpointError
from infinito.runtime.events import note, reading
from infinito.runtime.paths import command

RUNS_DIRECTORY = Path("checkpoints")
LAST_FILE = "last.pt"
BEST_FILE = "best.pt"
METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.yaml"
_STEP_NAME = re.compile(r"step-([0-9]{1,18})\.pt")
_TRAIN_FIRST = "give another checkpoint, or train one first: infinito train --config FILE"


def step_name(step: int) -> str:
    """The file name of the checkpoint of ``step``."""
    return f"step-{step:06d}.pt"


def is_plain_file(path: Path) -> bool:
    """Whether ``path`` itself is a regular file: no link, directory, pipe or device."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def find_steps(run: Path) -> tuple[dict[int, Path], list[str]]:
    """Step files of ``run`` by step, ascending, and the names that look like some but are not."""
    found: dict[int, Path] = {}
    odd: list[str] = []
    try:
        paths = sorted(run.iterdir())
    except OSError as error:
        raise CheckpointError(f"cannot read {run}: {error.strerror}", _TRAIN_FIRST) from error
    for path in paths:
        match = _STEP_NAME.fullmatch(path.name)
        if match and is_plain_file(path) and int(match[1]) not in found:
            found[int(match[1])] = path
        elif path.name.startswith("step-"):
            odd.append(path.name)
    return dict(sorted(found.items())), odd


def holds_run(directory: Path) -> bool:
    """Whether ``directory`` has any file that a run writes."""
    names = (RECORD_FILE, CONFIG_FILE, METRICS_FILE, LAST_FILE, BEST_FILE)
    # lexists: a link that leads nowhere would be written through all the same
    return any(os.path.lexists(directory / name) for name in names) or bool(
        find_steps(directory)[0]
    )


def has_checkpoint(directory: Path) -> bool:
    """Whether ``directory`` has a file named like a checkpoint of a run; it may be damaged."""
    return bool(find_steps(directory)[0]) or any(
        (directory / name).exists() for name in (LAST_FILE, BEST_FILE)
    )


def ended_without_checkpoint(directory: Path) -> bool:
    """Whether a run started in ``directory`` and left no checkpoint: it may start over there."""
    return start_time(directory) > 0 and not any(directory.rglob("*.pt"))


def verify_step(path: Path, step: int, entry: ManifestEntry | None) -> dict[str, Any]:
    """Content of a step file without tensors; CheckpointError unless all of it is as written."""
    content = inspect_checkpoint(path)
    if content["step"] != step:
        raise CheckpointError(f"cannot use {path}: it holds step {content['step']}", REMEDY)
    try:
        is_as_listed = entry is None or entry == entry_of(path)
    except OSError as error:  # a run that goes on removed it meanwhile
        raise CheckpointError(f"cannot use {path}: {error.strerror}", REMEDY) from error
    if not is_as_listed:
        raise CheckpointError(
            f"cannot use {path}: checksum mismatch (MANIFEST.json lists another content)", REMEDY
        )
    return content


def newest_verified(run: Path) -> Path | None:
    """The checkpoint of the highest step that verifies; damaged ones are announced and passed."""
    found, odd = find_steps(run)
    manifest = read_manifest(run)
    for name in odd:
        note(f"{run / name} is not a checkpoint file; ignored")
    for step, path in reversed(found.items()):
        try:
            verify_step(path, step, manifest.get(path.name))
        except CheckpointError as error:
            note(f"{error.message}; trying the one before")
        else:
            return path
    # A directory that someone thinned out may have only these.
    rest = (run / LAST_FILE, run / BEST_FILE)
    return next((path for path in rest if step_of(path) is not None), None)


def step_of(path: Path) -> int | None:
    """The step that a checkpoint holds; None where it is absent, a link or damaged."""
    if not is_plain_file(path):
        return None
    try:
        step: int = inspect_checkpoint(path)["step"]
    except CheckpointError:
        return None
    return step


def resolve_checkpoint(reference: str | None, prefer: Literal["best", "newest"]) -> Path:
    """The checkpoint file that ``reference`` means. Raises CheckpointError.

    A file is taken as it is. A run directory stands for its best checkpoint (its newest while
    there is none), or for its newest. None is the run under ``checkpoints/`` that was started
    last. What was chosen or passed over is announced.
    """
    if reference is None:
        return _of_most_recent_run(prefer)
    path = _existing(reference)
    if not path.is_dir():
        return path
    chosen = _of_run(path, prefer)
    if chosen is None:
        raise _without_checkpoint(path)
    return chosen


def directory_of(reference: str) -> Path:
    """The run directory that ``reference`` is, or in which the checkpoint that it is lies.

    Raises CheckpointError where there is no such file, or nothing like a checkpoint in it.
    """
    path = _existing(reference)
    if not path.is_dir():
        return path.parent
    if not has_checkpoint(path):
        raise _without_checkpoint(path)
    return path


def _existing(reference: str) -> Path:
    # os.path: pathlib calls "" the working directory, and trips over long names.
    if not os.path.exists(reference):
        raise CheckpointError(
            f"there is no checkpoint or run directory {reference or repr(reference)}",
            "give a .pt file or a run directory; `infinito runs` lists them",
        )
    return Path(reference)


def find_runs(directory: Path) -> list[Path]:
    """Run directories: ``directory`` itself, or those right below it, latest start first."""
    if not directory.is_dir():
        return []
    if holds_run(directory):
        return [directory]
    runs = sorted(path for path in directory.iterdir() if path.is_dir() and holds_run(path))
    return sorted(runs, key=start_time, reverse=True)


def suggest_other(damaged: Path) -> str:
    """The remedy for a damaged file: names the newest good checkpoint beside it, if any."""

    with reading(alone=True):  # the damage is already being reported
        good = newest_verified(damaged.parent) if damaged.parent.is_dir() else None
    if good is None or good == damaged:
        return REMEDY
    return f"use {good}, the newest checkpoint of the run that verifies"


def _without_checkpoint(run: Path) -> CheckpointError:
    config, remedy = run / CONFIG_FILE, _TRAIN_FIRST
    if is_plain_file(run / "config.json"):
        made = command("import", run, "--output", "NEW.pt")
        return CheckpointError(f"{run} is a folder for transformers, no run", f"first {made}")
    if ended_without_checkpoint(run) and is_plain_file(config):
        again = command("train", "--config", config)
        remedy = f"it ended before its first checkpoint; again: {again}"
    return CheckpointError(f"{run} has no checkpoint that can be used", remedy)


def _of_most_recent_run(prefer: Literal["best", "newest"]) -> Path:
    for run in find_runs(RUNS_DIRECTORY):
        chosen = _of_run(run, prefer)
        if chosen is not None:
            note(f"using {chosen}, of the most recent run")
            return chosen
        note(f"{run} has no checkpoint that can be used; looking at the run before")
    raise CheckpointError(f"there is no run with a checkpoint under {RUNS_DIRECTORY}", _TRAIN_FIRST)


def _of_run(run: Path, prefer: Literal["best", "newest"]) -> Path | None:
    best = run / BEST_FILE
    if prefer == "newest" or not is_plain_file(best):
        return newest_verified(run)
    try:
        inspect_checkpoint(best)
    except CheckpointError as error:
        raise CheckpointError(error.message, suggest_other(best)) from error
    return best
