"""Shards of a state, written by all processes in the background and read whole by the first.

Torch's distributed checkpoint in safetensors files. What is read maps files, so that no process
ever holds a whole state.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from infinito.errors import ResourceError

_FILE_BYTES = 1 << 28  # a file of shards is put together in memory before it is written


def is_shard(value: object) -> bool:
    """Whether ``value`` is a tensor of which each process holds a part."""
    return hasattr(value, "device_mesh")


class ShardWriter:
    """Writes shards while training goes on; all processes make one, and use it alike."""

    def __init__(self) -> None:
        # Its own group: what it exchanges must not mix with the exchange of gradients.
        self._group = dist.new_group(backend="gloo")

    def start(self, place: Path, shards: Mapping[str, Tensor]) -> Future[Any]:
        """Copy this process's part to host memory, and write it to ``place`` in a thread.

        The directory must be the same for all. The future ends once all processes have written.
        """
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save

        files, size = dict[str, int](), 0
        for name, shard in shards.items():
            files[name] = 1 + size // _FILE_BYTES
            size += shard.numel() * shard.element_size()
        writer = HuggingFaceStorageWriter(str(place), files, save_distributed=True)
        future = async_save(dict(shards), storage_writer=writer, process_group=self._group)
        assert isinstance(future, Future)
        return future


def wait_for_shards(written: Future[Any]) -> None:
    """Wait until all processes have written what :meth:`ShardWriter.start` began.

    Raises:
        ResourceError: one of them could not.
        DistError: one of them ended.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        written.result()
    except CheckpointException as error:
        for rank, (reason, _) in error.failures.items():
            if isinstance(reason, OSError):
                raise ResourceError(
                    f"process {rank} cannot write its part of a checkpoint: {reason}",
                    "free some space; files written earlier are untouched",
                ) from error
        raise dist.DistError(str(error)) from error


def read_whole(place: Path, shards: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose shards lie in ``place``, each in a file there that it maps.

    ``shards`` say shapes and dtypes. Their own files are removed. Raises OSError.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    wholes: dict[str, Tensor] = {}
    for number, (name, shard) in enumerate(shards.items()):
        file = place / f"whole-{number}"
        with file.open("wb") as reserved:  # a full disk is told here, and kills where it is mapped
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(reserved.fileno(), 0, shard.numel() * shard.element_size())
        flat = torch.from_file(str(file), shared=True, size=shard.numel(), dtype=shard.dtype)
        wholes[name] = flat.view(shard.shape)
    warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads
    load(wholes, storage_reader=HuggingFaceStorageReader(str(place)), no_dist=True)
    for path in place.glob("*.safetensors"):
        path.unlink()
    return wholes
