"""The processes of one run (ranks): joining them, and the few things that they tell each other.

Torch's own process group carries it all, started from the variables that ``torchrun`` and
``infinito train --nproc`` set alike. Everything here does nothing in a run of one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from infinito.distributed.launch import LOST, MEETING_FILE, RUN_FILE, WORKPLACE
from infinito.distributed.rows import Share
from infinito.errors import ConfigError, ResourceError
from infinito.runtime.events import reading

T = TypeVar("T")

# One process may tokenise a large text while the others wait.
_PATIENCE = timedelta(hours=2)
_LAUNCHER = os.getppid()


def world_size() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def processes_here() -> int:
    """How many of them this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def is_orphan() -> bool:
    """Whether the launcher is gone, which would pass on signals and notice a death."""
    return world_size() > 1 and os.getppid() != _LAUNCHER


def is_under_another_launcher() -> bool:
    """Whether torchrun or the like started the processes, and not ``--nproc``."""
    return world_size() > 1 and WORKPLACE not in os.environ


def is_first() -> bool:
    """Whether this is the process that owns the directory, the log and the terminal."""
    return not dist.is_initialized() or dist.get_rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Within the body this process is one of the run's, where a launcher started several.

    All but the first are silent. Each takes the graphics card of its number on its machine, so
    that ``cuda`` is its own.

    Raises:
        ResourceError: another process ended, so that this one cannot go on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if _own_card() < torch.cuda.device_count():
        torch.cuda.set_device(_own_card())
    try:
        _meet()
        with reading(alone=True) if dist.get_rank() else nullcontext():
            yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise _lost(error) from error
    _part()


def _meet() -> None:
    if WORKPLACE not in os.environ:
        dist.init_process_group(timeout=_PATIENCE)  # where the launcher's variables say
        return
    dist.init_process_group(
        init_method=Path(os.environ[WORKPLACE], MEETING_FILE).as_uri(),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=_PATIENCE,
    )


def _part() -> None:
    """Leave together: gloo aborts a process whose partner goes while it is still leaving."""
    with suppress(RuntimeError):  # the work is done; who is gone already is not missed
        dist.barrier()
    dist.destroy_process_group()


def _own_card() -> int:
    return int(os.environ["LOCAL_RANK"])


def require_own_device(device: str) -> None:
    """Refuse a device that the processes of a machine would have to share.

    Raises:
        ConfigError: it is one card.
        ResourceError: there are fewer cards than processes.
    """
    if world_size() == 1 or device == "cpu":
        return
    if device != "cuda":
        raise ConfigError(f"{world_size()} processes cannot share {device}", "use cuda, or cpu")
    if _own_card() >= torch.cuda.device_count():
        raise ResourceError(
            f"{processes_here()} processes on a machine with {torch.cuda.device_count()} cards",
            "start one process a card",
        )


def _lost(error: Exception) -> BaseException:
    """What to do without the others: the launcher tells why, if it is ours."""
    if WORKPLACE in os.environ:
        return SystemExit(LOST)
    reason = str(error).strip().splitlines()[0][:200]
    return ResourceError(
        f"another process of this run ended, or cannot be reached ({reason})",
        "see what it said, and resume the run: `infinito resume RUN_DIR` under the same launcher",
    )


def tell_launcher(directory: Path) -> None:
    """Let the launcher know which run to name, should a process die."""
    if WORKPLACE in os.environ:
        Path(os.environ[WORKPLACE], RUN_FILE).write_text(str(directory), encoding="utf-8")


def resume_words(directory: Path) -> list[object]:
    """The words of the command that goes on with a run as it was started."""
    ours = ["--nproc", world_size()] if WORKPLACE in os.environ else []
    return ["resume", directory, *ours]


# -- what they tell each other ----------------------------------------------------------------


def share_of(rows: int) -> Share:
    """This process's part of a batch of so many rows; parts differ by one row at most.

    Raises:
        ConfigError: there are not enough rows.
    """
    count, rank = world_size(), dist.get_rank() if dist.is_initialized() else 0
    if rows < count:
        raise ConfigError(
            f"training.batch_size {rows} is that of all processes, and there are {count}",
            f"use --batch-size {count} or more (and lower "
            "training.gradient_accumulation_steps to keep the step), or fewer processes",
        )
    return Share(rank * rows // count, (rank + 1) * rows // count, rows)


def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor (floats, on one device) added up over the processes, in one exchange."""
    if world_size() == 1:
        return list(tensors)
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if world_size() == 1:
        return number
    value = torch.tensor(int(number))
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` returns in the first process, in all of them; plain data."""
    if world_size() == 1:
        return make()
    box = [make() if is_first() else None]
    dist.broadcast_object_list(box)
    return box[0]  # type: ignore[return-value]


@contextmanager
def first_goes_ahead() -> Iterator[None]:
    """The first process passes through the body before the others enter it: it fills caches."""
    if not is_first():
        largest(0)
    yield
    if is_first():
        largest(0)
