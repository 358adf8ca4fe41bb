"""Move a run back to an earlier step, or carry its history into another directory.

Nothing is deleted: what lies after the step goes to ``set-aside-<number>/`` in the run directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from infinito.checkpoint.atomic import (
    atomic_writer,
    cannot_write,
    copy_atomic,
    fsync_directory,
    link_or_copy,
    make_numbered,
)
from infinito.checkpoint.discover import (
    BEST_FILE,
    LAST_FILE,
    METRICS_FILE,
    find_steps,
    is_plain_file,
    step_name,
    step_of,
)
from infinito.checkpoint.manifest import ManifestEntry, entry_of, read_manifest, write_manifest
from infinito.checkpoint.record import json_object
from infinito.checkpoint.verify import inspect_checkpoint
from infinito.runtime.paths import shown


@dataclass
class SetAside:
    """What a rewind of ``run`` put away, for the announcement."""

    run: Path
    directory: Path | None = None
    checkpoints: list[str] = field(default_factory=list)
    metric_lines: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing later than the step."""
        return not self.checkpoints and not self.metric_lines

    def place(self) -> Path:
        """The directory for it, made when it is first needed."""
        self.directory = self.directory or make_numbered(self.run, "set-aside")
        return self.directory

    def describe(self) -> str:
        """One line for the user: what went where."""
        parts = [", ".join(self.checkpoints)] if self.checkpoints else []
        if self.metric_lines:
            lines = "line" if self.metric_lines == 1 else "lines"
            parts.append(f"{self.metric_lines} {lines} of {METRICS_FILE}")
        where = self.directory and shown(self.directory)
        return f"set aside in {where}: {' and '.join(parts) or 'nothing'}"


def rewind(run: Path, step: int) -> SetAside:
    """Leave in ``run`` only what was there at ``step``; return what was set aside.

    The order keeps every moment of a crash harmless: the manifest forgets the later files, they
    move latest first, and metrics follow when no later checkpoint is left to need them.
    Raises ResourceError where the directory cannot be changed, CheckpointError where the step
    file of ``step`` is damaged.
    """
    aside = SetAside(run)
    found, _ = find_steps(run)
    later = [found[at] for at in sorted(found, reverse=True) if at > step]
    links = [run / name for name in (LAST_FILE, BEST_FILE) if _is_later(run / name, step)]
    if later:
        gone = {path.name for path in later}
        kept = {name: entry for name, entry in read_manifest(run).items() if name not in gone}
        write_manifest(run, kept)
    try:
        for path in [*links, *later]:
            path.rename(aside.place() / path.name)
            aside.checkpoints.append(path.name)
        fsync_directory(run)
        if step in found:
            _repair_links(run, found[step])
        _cut_metrics(step, aside)
    except OSError as error:
        raise cannot_write(run, error) from error
    return aside


def adopt(run: Path, checkpoint: Path, source_run: Path) -> None:
    """Start ``run`` with the history of ``source_run`` up to ``checkpoint``, which stays as it is.

    Goes along: the checkpoint, the best one where it is not later, and the metrics until then.
    Raises CheckpointError where ``checkpoint`` does not verify, ResourceError on a full disk.
    """
    step: int = inspect_checkpoint(checkpoint)["step"]
    entries: dict[str, ManifestEntry] = {}
    best = source_run / BEST_FILE
    best_step = step_of(best)
    if best_step is not None and best_step < step:
        entries |= _copy_checkpoint(best, run, best_step, BEST_FILE)
    entries |= _copy_checkpoint(checkpoint, run, step, LAST_FILE)
    if best_step == step:
        link_or_copy(run / step_name(step), run / BEST_FILE)
    write_manifest(run, entries)
    metrics = source_run / METRICS_FILE
    if is_plain_file(metrics):
        _copy_lines(metrics, run / METRICS_FILE, step)


def _repair_links(run: Path, checkpoint: Path) -> None:
    """Point last.pt and best.pt where they were when ``checkpoint`` was complete.

    A crash between a step file and its links leaves them behind, a rewind takes them away.
    """
    content = inspect_checkpoint(checkpoint)
    best = content["best"].get("step") if content["best"] else None
    for name, wanted in ((LAST_FILE, content["step"]), (BEST_FILE, best)):
        target = run / step_name(wanted) if type(wanted) is int else None
        if target is not None and step_of(run / name) != wanted and step_of(target) == wanted:
            link_or_copy(target, run / name)


def _copy_checkpoint(source: Path, run: Path, step: int, link: str) -> dict[str, ManifestEntry]:
    target = run / step_name(step)
    copy_atomic(source, target)
    link_or_copy(target, run / link)
    return {target.name: entry_of(target)}


def _is_later(path: Path, step: int) -> bool:
    """Whether a link names a later step. A damaged one is put aside too: it could be any step."""
    at = step_of(path)
    return at > step if at is not None else is_plain_file(path)


def _lines(metrics: Path, step: int) -> Iterator[tuple[bytes, bool]]:
    """Lines of a metrics file, and whether each is later than ``step`` or cut short by a crash."""
    is_later = False
    with metrics.open("rb") as file:
        for line in file:
            record = json_object(line)
            at = record and record.get("step")
            if type(at) is int:  # a line without a step (a note) goes with the one before it
                is_later = at > step
            yield line, is_later or record is None or not line.endswith(b"\n")


def _cut_metrics(step: int, aside: SetAside) -> None:
    metrics = aside.run / METRICS_FILE
    if not is_plain_file(metrics):
        return
    later = [line for line, is_later in _lines(metrics, step) if is_later]
    if later:
        aside.metric_lines = len(later)
        with atomic_writer(aside.place() / METRICS_FILE) as file:
            file.writelines(later)
        _copy_lines(metrics, metrics, step)


def _copy_lines(metrics: Path, target: Path, step: int) -> None:
    """The lines until ``step``, which ``target`` then holds."""
    with atomic_writer(target, metrics.stat().st_size) as file:
        file.writelines(line for line, is_later in _lines(metrics, step) if not is_later)
