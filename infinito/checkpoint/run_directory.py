"""A run's directory: one process owns it, and nothing in it is lost.

Saving follows one order (contract, "Files of a run"): the step file whole and durable, then the
links last.pt and best.pt, then the manifest, and only then are old step files removed, after the
new one was read back and verified. A crash between any two of these leaves a directory that
resumes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from infinito.checkpoint import history
from infinito.checkpoint.atomic import (
    TEMPORARY_SUFFIX,
    cannot_write,
    copy_atomic,
    format_size,
    fsync_directory,
    link_or_copy,
    make_directory,
    make_numbered,
    require_space,
    write_text_atomic,
)
from infinito.checkpoint.discover import (
    BEST_FILE,
    CONFIG_FILE,
    LAST_FILE,
    METRICS_FILE,
    RUNS_DIRECTORY,
    ended_without_checkpoint,
    find_steps,
    has_checkpoint,
    holds_run,
    is_plain_file,
    newest_verified,
    step_name,
    step_of,
    verify_step,
)
from infinito.checkpoint.lock import LOCK_FILE, RunLock
from infinito.checkpoint.manifest import (
    MANIFEST_FILE,
    ManifestEntry,
    entry_of,
    read_manifest,
    write_manifest,
)
from infinito.checkpoint.record import RECORD_FILE, record_text, start_time
from infinito.errors import CheckpointError, ResourceError
from infinito.runtime.events import note
from infinito.runtime.paths import command, shown

#: The directory of a checkpoint whose parts several processes write.
SHARDS = "shards" + TEMPORARY_SUFFIX
_OWN_FILES = (LAST_FILE, BEST_FILE, MANIFEST_FILE, METRICS_FILE, CONFIG_FILE, RECORD_FILE)


class RunDirectory(contextlib.AbstractContextManager["RunDirectory"]):
    """A locked run directory. Use ``create`` or ``open_existing``.

    As a context manager it is closed at the end; a start that fails before its first save leaves
    nothing.
    """

    def __init__(self, path: Path, lock: RunLock, keep_last: int) -> None:
        """Wrap a directory whose lock is held; ``create`` and ``open_existing`` see to that."""
        self.path = path
        self.keep_last = keep_last
        self._lock = lock
        self._is_new = False
        self._made: list[Path] = []
        self._has_saved = False
        self._best_step: int | None = None
        self._kept: dict[str, Callable[[], object]] = {}
        self._start_time = 0.0

    @classmethod
    def create(
        cls, path: str | Path | None, name: str, *, keep_last: int = 2, root: Path = RUNS_DIRECTORY
    ) -> RunDirectory:
        """Make and lock the directory of a new run: ``path``, or ``root/<name>-<number>``.

        Where a run ended before its first checkpoint, the new one takes its place, and says so.
        Raises ResourceError when it cannot be written to or already holds a run.
        """
        wanted = root if path is None else Path(path)
        missing = _missing(wanted)
        try:
            wanted.mkdir(parents=True, exist_ok=True)
            made = make_numbered(root, name) if path is None else wanted
        except OSError as error:
            raise _cannot_make(wanted, error) from error
        run = cls(made.absolute(), RunLock(made), keep_last)
        if not holds_run(made):
            run._is_new, run._made = True, [made, *missing] if path is None else missing
        elif ended_without_checkpoint(made):
            run._start_over()
        else:
            run.close()
            raise _occupied(made)
        return run

    @classmethod
    def open_existing(cls, path: Path, *, keep_last: int = 2) -> RunDirectory:
        """Lock a directory to resume in, and remove unfinished files of dead processes.

        Raises ResourceError when another process has it or it cannot be written to.
        """
        run = cls(path, RunLock(path), keep_last)
        run._remove_leftovers()
        run._own_metrics()
        run._best_step = run._find_best_step()
        return run

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the directory, after a failure with :meth:`abandon`."""
        (self.abandon if kind else self.close)()

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def abandon(self) -> None:
        """Undo ``create`` and ``adopt`` after a start that failed before its first save; close.

        A directory that was opened, or that has a checkpoint of its own, keeps everything.
        """
        if self._is_new and not self._has_saved:
            own = [self.path / name for name in (*_OWN_FILES, LOCK_FILE)]
            # What stopped the start is about to be reported; a failed tidying must not hide it.
            with contextlib.suppress(OSError, CheckpointError):
                for path in (*self.steps().values(), *own):
                    path.unlink(missing_ok=True)
                for made in self._made:
                    made.rmdir()
        self.close()

    def record_start(self, arguments: Sequence[str], facts: Mapping[str, Any]) -> None:
        """Write run.json: start time, versions, host, and the command line without secrets."""
        self.write_text(RECORD_FILE, record_text(self.path, arguments, facts))
        self._start_time = start_time(self.path)

    def write_text(self, name: str, text: str) -> None:
        """Write one of the run's text files (config.yaml) atomically, and keep it."""
        self.keep(name, partial(write_text_atomic, self.path / name, text))
        self._kept[name]()

    def keep(self, name: str, write: Callable[[], object]) -> None:
        """Have ``save`` call ``write`` where the file ``name`` was deleted while training."""
        self._kept[name] = write

    def require_space(self, n_bytes: int) -> None:
        """Raise ResourceError unless ``n_bytes`` more bytes fit on the run's file system."""
        require_space(self.path, n_bytes)

    def save(self, step: int, content: dict[str, Any], is_best: bool) -> Path:
        """Write the checkpoint of ``step`` and remove what ``keep_last`` no longer covers.

        Returns the step file. Where the directory or a file that is kept was deleted meanwhile, it
        is made again and that is announced. Raises ResourceError when the system refuses; whatever
        was saved before is then untouched.
        """
        self._make_again()
        try:
            return self._save(step, content, is_best)
        except (ResourceError, FileNotFoundError):
            if not self._make_again():
                raise
            return self._save(step, content, is_best)  # it was deleted just then

    def _save(self, step: int, content: dict[str, Any], is_best: bool) -> Path:
        from infinito.checkpoint.format import write_checkpoint

        path = self.path / step_name(step)
        manifest = read_manifest(self.path)
        if manifest.pop(path.name, None) is not None:
            # Saved again: a crash before the new entry must not leave the old one beside it.
            write_manifest(self.path, manifest)
        sha256 = write_checkpoint(path, content)
        link_or_copy(path, self.path / LAST_FILE)
        if is_best:
            link_or_copy(path, self.path / BEST_FILE)
            self._best_step = step
        self._has_saved = True
        manifest[path.name] = ManifestEntry(sha256, path.stat().st_size)
        surplus = self._surplus(step, path, manifest[path.name])
        kept = [old for at, old in self.steps().items() if at not in surplus]
        # A crash after a rename leaves a whole file without an entry: it gets one here.
        write_manifest(self.path, {p.name: manifest.get(p.name) or entry_of(p) for p in kept})
        self._remove(list(surplus.values()))
        return path

    def steps(self) -> dict[int, Path]:
        """Step files by step, ascending. They may be damaged."""
        return find_steps(self.path)[0]

    def newest_verified(self) -> Path | None:
        """The checkpoint of the highest step that verifies; those passed over are announced."""
        return newest_verified(self.path) if self.path.is_dir() else None

    def rewind(self, step: int) -> history.SetAside:
        """Set aside all that is later than ``step``; the caller announces what is returned."""
        aside = history.rewind(self.path, step)
        self._best_step = self._find_best_step()
        return aside

    def adopt(self, checkpoint: Path, source_run: Path) -> None:
        """Copy ``checkpoint`` here with the history of ``source_run`` that led to it."""
        history.adopt(self.path, checkpoint, source_run)
        self._best_step = self._find_best_step()

    def _make_again(self) -> bool:
        """Make what was deleted meanwhile, with a lock; whether there was anything."""
        gone = [self.path / name for name in self._kept if not os.path.lexists(self.path / name)]
        if not self._lock.is_in(self.path):
            gone.insert(0, self.path / LOCK_FILE if self.path.is_dir() else self.path)
            self._lock_again()
        for path in gone:
            if path.name in self._kept:
                self._kept[path.name]()
        if gone:
            names = ", ".join(str(shown(path)) for path in gone)
            note(f"deleted while training, made again: {names}")
        return bool(gone)

    def _lock_again(self) -> None:
        make_directory(self.path)
        lock = RunLock(self.path)
        if start_time(self.path) not in (0, self._start_time):
            lock.release()
            raise ResourceError(
                f"{self.path} was replaced while training, and holds another run",
                "the steps since the last save are lost; look for it where the directory went",
            )
        self._lock.release()
        self._lock = lock

    def _start_over(self) -> None:
        self._remove_leftovers()
        self._own_metrics()
        aside = history.rewind(self.path, 0)
        was = "" if aside.is_empty else f"; {aside.describe()}"
        note(f"starting over in {shown(self.path)}, which holds no checkpoint{was}")

    def _surplus(self, step: int, path: Path, entry: ManifestEntry) -> dict[int, Path]:
        """Step files that may go, given that the one just written proves to be whole."""
        found = self.steps()
        kept = {*list(found)[-self.keep_last :], step, self._best_step}
        surplus = {at: old for at, old in found.items() if at not in kept}
        if surplus:
            try:
                verify_step(path, step, entry)
            except CheckpointError as error:
                note(f"{error.message}; older checkpoints are kept")
                return {}
        return surplus

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            try:
                path.unlink()
            except OSError as error:
                note(f"cannot remove the old checkpoint {path}: {error.strerror}")
        if paths:
            fsync_directory(self.path)

    def _find_best_step(self) -> int | None:
        best = self.path / BEST_FILE
        if not is_plain_file(best):
            return None
        for step, path in self.steps().items():
            if os.path.samefile(best, path):
                return step
        return step_of(best)

    def _own_metrics(self) -> None:
        """The log alone is written in place: let no file elsewhere be written with it."""
        metrics = self.path / METRICS_FILE
        if is_plain_file(metrics):
            if metrics.stat().st_nlink > 1:
                copy_atomic(metrics, metrics)
        elif os.path.lexists(metrics):
            self.close()
            raise ResourceError(
                f"{metrics} is a link or no regular file; the log is written to a file of the run",
                "put the file itself there, or remove it",
            )

    def _remove_leftovers(self) -> None:
        for path in sorted(self.path.glob(f"*{TEMPORARY_SUFFIX}")):
            name = path.name.removesuffix(TEMPORARY_SUFFIX)
            is_own = name in _OWN_FILES or (name.startswith("step-") and name.endswith(".pt"))
            if path.name == SHARDS and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
                note(f"removed {path}, left unfinished by an earlier process")
            if is_own and is_plain_file(path):
                size = format_size(path.stat().st_size)
                self._remove([path])
                note(f"removed {path}, left unfinished by an earlier process ({size})")


def _occupied(path: Path) -> ResourceError:
    """The error for a directory that holds a run, or files that could be one's."""
    if has_checkpoint(path):
        remedy = f"continue it with `{command('resume', path)}`, or choose another --output-dir"
        return ResourceError(f"{path} already holds a run", remedy)
    return ResourceError(
        f"{path} already holds a run, or files named like those of one",
        "choose another --output-dir, or move the files away",
    )


def _cannot_make(path: Path, error: OSError) -> ResourceError:
    at = Path(error.filename or path)
    if not at.is_symlink() or at.exists():
        return cannot_write(path, error)
    return ResourceError(
        f"cannot write {path}: {at} is a link to {at.readlink()}, which is not there",
        f"make {at.readlink()}, or remove the link",
    )


def _missing(path: Path) -> list[Path]:
    """``path`` and those of its parents that do not exist yet, innermost first."""
    return [at for at in (path, *path.parents) if not os.path.exists(at)]
