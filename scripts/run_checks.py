"""What must hold in a run's directory at any moment, for the scripts that hurt runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

TIMING_FIELDS = {"seconds", "tokens_per_second", "memory_mb", "eta_seconds"}


class BrokenPromiseError(Exception):
    """What was found to be wrong."""


def names(run: Path) -> set[str]:
    """File names in ``run``, empty while it is absent."""
    return set(os.listdir(run)) if run.is_dir() else set()


def log_size(run: Path) -> int:
    """Bytes of the log, 0 while it is absent."""
    log = run / "metrics.jsonl"
    return log.stat().st_size if log.exists() else 0


def read_log(run: Path) -> list[dict[str, Any]]:
    """Whole lines of the log without what depends on speed. Only the last line may be cut."""
    path = run / "metrics.jsonl"
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    lines = []
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise BrokenPromiseError(f"line {number} of the log is broken: {text!r}") from error
        lines.append({name: value for name, value in line.items() if name not in TIMING_FIELDS})
    steps = [line["step"] for line in lines]
    if steps != sorted(set(steps)):
        raise BrokenPromiseError(f"the steps of the log do not increase: {steps}")
    return lines


def verify(run: Path) -> tuple[int, int]:
    """Check every finished file and the manifest of a run that no process is writing.

    Returns the highest finished step (0 without one) and how many files were read.
    """
    from infinito.checkpoint.discover import find_steps, verify_step
    from infinito.checkpoint.manifest import read_manifest
    from infinito.checkpoint.verify import inspect_checkpoint
    from infinito.errors import CheckpointError

    if not run.is_dir():
        return 0, 0
    found, odd = find_steps(run)
    manifest = read_manifest(run)
    strange = [name for name in odd if not name.endswith(".pt.tmp")]
    if strange:
        raise BrokenPromiseError(f"names that no save gives: {strange}")
    missing = manifest.keys() - {path.name for path in found.values()}
    if missing:
        raise BrokenPromiseError(f"the manifest lists files that are gone: {missing}")
    links = [run / name for name in ("last.pt", "best.pt") if (run / name).exists()]
    try:
        for step, path in found.items():
            verify_step(path, step, manifest.get(path.name))
        for link in links:
            inspect_checkpoint(link)
    except CheckpointError as error:
        raise BrokenPromiseError(error.message) from error
    return max(found, default=0), len(found) + len(links)


def final_files(run: Path) -> dict[str, bytes]:
    """The files that equal runs have in common, by name."""
    wanted = [*run.glob("*.pt"), run / "MANIFEST.json", run / "config.yaml"]
    return {path.name: path.read_bytes() for path in wanted}


def compare(run: Path, files: dict[str, bytes], log: list[dict[str, Any]]) -> None:
    """A finished run against the files and the log of one that must be equal."""
    found = final_files(run)
    different = sorted(name for name in found | files if found.get(name) != files.get(name))
    if different:
        raise BrokenPromiseError(f"not as in the unbroken run: {', '.join(different)}")
    if read_log(run) != log:
        raise BrokenPromiseError("the log is not that of the unbroken run")
