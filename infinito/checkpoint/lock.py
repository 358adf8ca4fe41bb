"""One process per run directory: an flock that the system releases however the process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from infinito.checkpoint.atomic import cannot_write
from infinito.errors import ResourceError

LOCK_FILE = ".lock"


class RunLock:
    """Exclusive use of a run directory, from construction until ``release`` or process end.

    Raises ResourceError naming the process that holds it, or why the directory is not writable.
    """

    def __init__(self, run: Path) -> None:
        """Take the lock of the directory ``run``, without waiting."""
        path = run / LOCK_FILE
        try:
            # Not truncated on opening: the file names its holder until the lock is ours.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            raise cannot_write(path, error) from error
        if os.fstat(self._descriptor).st_nlink > 1:  # writing the pid would change a file elsewhere
            os.close(self._descriptor)
            raise ResourceError(
                f"{path} is a hard link to a file that is somewhere else too",
                f"while no process uses {run}, delete {path}",
            )
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise ResourceError(
                f"{run} is in use by another process (pid {holder or 'unknown'})",
                "wait for it to end, stop it, or choose another --output-dir",
            ) from error
        except OSError as error:
            os.close(self._descriptor)
            raise cannot_write(path, error) from error
        with contextlib.suppress(OSError):  # a full disk, which what is written next will name
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def is_in(self, run: Path) -> bool:
        """Whether it is the lock of ``run`` as that is now: directories can be made anew."""
        try:
            return os.path.samestat((run / LOCK_FILE).lstat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def release(self) -> None:
        """Let others have the directory. The file stays: removing it would race with them."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1


def is_locked(run: Path) -> bool:
    """Whether a process has the directory ``run`` now.

    A file that names nobody is not tried: trying takes the lock for a moment, in which a run that
    starts would be refused.
    """
    try:
        descriptor = os.open(run / LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if os.read(descriptor, 1):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a directory of that name, or a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False
