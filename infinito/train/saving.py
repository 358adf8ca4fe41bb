"""Checkpoints of shards that one process need not hold: all write, the first puts them together.

Each step's shards lie in ``shards.tmp`` of the run until their checkpoint is whole; it is the same
self-contained file, by the same steps (:mod:`infinito.checkpoint.run_directory`). A death in
between leaves the checkpoints before it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from infinito.checkpoint.atomic import cannot_write, format_size, make_directory
from infinito.checkpoint.run_directory import SHARDS, RunDirectory
from infinito.distributed.ranks import from_first, processes_here, world_size
from infinito.distributed.shards import ShardWriter, is_shard, read_whole, wait_for_shards
from infinito.runtime.events import note
from infinito.runtime.memory import available_bytes
from infinito.train.callbacks import Save
from infinito.train.plan import checkpoint_bytes
from infinito.train.run import Turn
from infinito.train.trainer import Trainer


def saves_shards(trainer: Trainer) -> bool:
    """Whether checkpoints are put together from files (``distributed.checkpoint``); it is told.

    The first process decides, for all.
    """
    config = trainer.config.distributed
    if world_size() == 1 or config.strategy != "fsdp2":
        return False
    if config.checkpoint != "auto":
        return config.checkpoint == "sharded"
    size, free = checkpoint_bytes(trainer), from_first(lambda: available_bytes("cpu"))
    if processes_here() == world_size():  # to copy all parts takes as much as the whole
        sharded, reason = False, "one machine has all of its parts anyway"
    else:
        sharded = free is not None and size > free // 2
        known = f"of the {format_size(free)} left" if free else "of what is left, as it seems"
        reason = f"{format_size(size)}, {'more' if sharded else 'less'} than half {known}"
    note(f"checkpoint {'sharded' if sharded else 'gathered'}: {reason}")
    return sharded


def saver(trainer: Trainer, directory: RunDirectory | None) -> Save:
    """What writes the checkpoints of a run; all processes make it."""
    return SaveShards(directory) if saves_shards(trainer) else Save(directory)


class SaveShards(Save):
    """Writes as ``Save`` does, in the background; a save waits for the one before."""

    files_at_once = 2

    def __init__(self, directory: RunDirectory | None) -> None:
        super().__init__(directory)
        self._writer = ShardWriter()
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[Any] | None = None

    def after_step(self, trainer: Trainer, turn: Turn) -> None:
        """Save if it is due; wait for it where it is the last."""
        if self._pending is not None and self._pending.done():
            self.wait()
        super().after_step(trainer, turn)
        if trainer.finished or turn.stop:
            self.wait()

    def write(self, trainer: Trainer, is_best: bool) -> None:
        """Begin to write the checkpoint of this step."""
        self.wait()
        shards: dict[str, Tensor] = {}
        # Training goes on meanwhile: what is no shard is copied, what is one when it is staged.
        content = _changed(
            trainer.state(gather=False),
            lambda path, value: (
                shards.setdefault(path, value) if is_shard(value) else deepcopy(value)
            ),
        )
        place = Path(from_first(self._new_place))
        written = self._pending = self._writer.start(place, shards)
        if self._directory is not None:
            finish = partial(
                self._finish, self._directory, written, place, shards, content, is_best
            )
            self._pending = self._thread.submit(copy_context().run, finish)

    def wait(self) -> None:
        """Until nothing is being written; the first process raises what went wrong."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        wait([pending])
        if self._directory is not None:
            pending.result()

    def _new_place(self) -> str:
        assert self._directory is not None
        place = self._directory.path / SHARDS
        shutil.rmtree(place, ignore_errors=True)
        make_directory(place)
        return str(place)

    @staticmethod
    def _finish(
        directory: RunDirectory,
        written: Future[Any],
        place: Path,
        shards: dict[str, Tensor],
        content: dict[str, Any],
        is_best: bool,
    ) -> None:
        try:
            wait_for_shards(written)
            wholes = read_whole(place, shards)
            content = _changed(content, lambda path, value: wholes.get(path, value))
            directory.save(content["step"], content, is_best)
        except OSError as error:
            raise cannot_write(place, error) from error
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _changed(value: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    """``value`` with what ``change`` makes of each item that is no dict, given its path."""
    if isinstance(value, dict):
        return {key: _changed(item, change, f"{path}/{key}") for key, item in value.items()}
    return change(path, value)
