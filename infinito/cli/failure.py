"""How a failure is told: the message and the exit code of every exception that ends a command."""

from __future__ import annotations

import errno
import sys
import traceback

from infinito.cli.output import say
from infinito.errors import InfinitoError, Interrupted, ResourceError, remedy_of
from infinito.version import __version__

BUG = 1
USAGE = 2
INTERRUPTED = 130

# What the operating system refuses for want of a resource or a permission, not through a bug.
_RESOURCE_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO,
    errno.EMFILE, errno.ENOMEM, errno.ENAMETOOLONG,
}  # fmt: skip
_MEMORY_PHRASES = ("can't allocate memory", "not enough memory", "out of memory")


def report(error: BaseException) -> int:
    """Print ``error`` on stderr the way a user should see it; return the exit code."""
    foreseen = error if isinstance(error, InfinitoError) else _as_resource_error(error)
    if isinstance(foreseen, Interrupted):  # a wish that was granted, not an error
        say(foreseen.message)
        say(f"help: {foreseen.remedy}")
        return foreseen.exit_code
    if foreseen is not None:
        say_error(foreseen.message, foreseen.remedy)
        return foreseen.exit_code
    say("".join(traceback.format_exception(error)).rstrip("\n"))
    say(f"error: this is a bug in infinito {__version__}; please report it with the lines above")
    return BUG


def say_error(message: str, remedy: str = "") -> None:
    """Print ``error: message`` and, where there is one, ``help: remedy``."""
    say(f"error: {message}")
    if remedy:
        say(f"help: {remedy}")


def _as_resource_error(error: BaseException) -> ResourceError | None:
    if is_out_of_memory(error):
        first_line = (str(error).strip() or "the request was refused").splitlines()[0]
        return ResourceError(
            f"out of memory: {first_line}",
            "lower training.batch_size (and raise training.gradient_accumulation_steps as much), "
            "data.sequence_length or the model's size, or set training.activation_checkpointing",
        )
    if isinstance(error, OSError) and error.errno in _RESOURCE_ERRNOS:
        place = f" ({error.filename})" if error.filename else ""
        return ResourceError(f"{error.strerror}{place}", remedy_of(error))
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on the host or on a device."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # never imported for this: without it, it raised nothing
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # torch's CPU allocator raises a bare RuntimeError
    return isinstance(error, RuntimeError) and any(p in str(error) for p in _MEMORY_PHRASES)
