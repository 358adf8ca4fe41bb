"""Every failure that a user can meet. The class decides the exit code of the program.

A message says what went wrong, where and why; ``remedy`` says what to do about it. Errors of
these classes are printed as one short block on stderr, without a traceback. Anything else that
escapes is a bug, and the only case (exit code 1) that shows one.
"""

from __future__ import annotations

import errno


class InfinitoError(Exception):
    """A failure that was foreseen: ``message`` (what, where, why) and ``remedy`` (what to do)."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class ConfigError(InfinitoError):
    """The command line or a config file is wrong (exit code 2)."""

    exit_code = 2


class DataError(InfinitoError):
    """Text or tokenizer missing, unreadable, too short or changed (exit code 3)."""

    exit_code = 3


class CheckpointError(InfinitoError):
    """A checkpoint is missing, damaged, incompatible or hostile (exit code 4)."""

    exit_code = 4


class DivergedError(InfinitoError):
    """A loss, gradient or weight is not finite (exit code 5)."""

    exit_code = 5


class ResourceError(InfinitoError):
    """Disk, memory, device or run directory cannot be had (exit code 6)."""

    exit_code = 6


class Interrupted(InfinitoError):  # noqa: N818 - a stop that was asked for is no error
    """A signal stopped the run after its step was finished and saved (exit code 128 + signal)."""

    def __init__(self, message: str, remedy: str, signal_number: int) -> None:
        super().__init__(message, remedy)
        self.exit_code = 128 + signal_number


def remedy_of(error: OSError) -> str:
    """What to do about a file that the system refuses to make or to write."""
    if error.errno == errno.ENAMETOOLONG:
        return "choose a shorter name"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file is in the way: name another place, or move it"
    return "check free space, quota, file size limits and permissions, or name another place"
