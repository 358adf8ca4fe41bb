"""``distributed.strategy``: who holds the weights. ddp: each process all; fsdp2: each a part.

Both are torch's own (``DistributedDataParallel``, ``fully_shard``). The gradients of a step are
added up over the processes in its last backward pass, while that is still under way; they are
sums and no means, since the loss of each part is already divided by the targets of all.

What shards is imported where it is used, and known by what it can do: it takes 0.6 s to import,
which a command of one process need not wait for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infinito.distributed.ranks import is_first, largest, world_size
from infinito.errors import ConfigError

Strategy = Literal["none", "ddp", "fsdp2"]


def distribute(
    model: nn.Module, blocks: Iterable[nn.Module], methods: Iterable[str], strategy: Strategy
) -> nn.Module:
    """What is called in the place of ``model`` in training; ``model`` itself with one process.

    Under fsdp2 its parameters become shards; ``methods`` name what is called beside ``forward``.
    """
    if world_size() == 1:
        return model
    require_strategy(strategy)
    if strategy == "fsdp2":
        _shard(model, blocks, methods)
        return model
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    wrapped.register_comm_hook(None, lambda state, bucket: _sum(bucket.buffer()))
    return wrapped


def require_strategy(strategy: Strategy) -> None:
    """Raise ConfigError where there are several processes, and the strategy is none."""
    if world_size() > 1 and strategy == "none":
        raise ConfigError(
            f"distributed.strategy is none, and there are {world_size()} processes",
            "set distributed.strategy=ddp (or fsdp2), or start one process",
        )


def _shard(model: nn.Module, blocks: Iterable[nn.Module], methods: Iterable[str]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    for part in (*blocks, model):
        sharded = fully_shard(part, mesh=mesh)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    for method in methods:
        register_fsdp_forward_method(model, method)


def _sum(gradients: Tensor) -> torch.futures.Future[Tensor]:
    """DDP's own hook, which divides by the number of processes, without that."""
    sums: torch.futures.Future[list[Tensor]]
    sums = dist.all_reduce(gradients, async_op=True).get_future()
    return sums.then(lambda done: done.value()[0])


@contextmanager
def exchanging(model: nn.Module, now: bool) -> Iterator[None]:
    """The body passes forward and backward; gradients are exchanged in it, or kept for later."""
    if isinstance(model, DistributedDataParallel) and not now:
        with model.no_sync():
            yield
        return
    may_shard: Any = model
    if hasattr(model, "set_requires_gradient_sync"):
        may_shard.set_requires_gradient_sync(now)
    yield


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """In the body, each process holds the whole weights of its model; all must enter it."""
    parts: list[Any] = [part for part in model.modules() if hasattr(part, "unshard")]
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be a shard or a partial sum, put together in every process."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite that any process has of tensors that may be shards."""
    own = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return not largest(not all(bool(tensor.isfinite().all()) for tensor in own))


def gathered(tensor: Tensor, now: bool = True) -> Tensor:
    """A tensor that may be a shard, whole and on the host of the first process; others get none.

    Unless it is to be gathered ``now``: it is left as it is.
    """
    full = whole(tensor) if now else tensor
    if full is tensor:
        return tensor
    return full.cpu() if is_first() else full.new_empty(0)


def copy_whole(target: Any, source: Tensor) -> None:
    """Fill ``target``, which may be a shard, from the whole ``source`` that each process has."""
    if hasattr(target, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = target.device_mesh, target.placements
        source = source.to(target.device, target.dtype)
        source = distribute_tensor(source, mesh, placements, src_data_rank=None)
    target.copy_(source)
