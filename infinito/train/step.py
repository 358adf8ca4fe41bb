"""One optimizer step: forward, backward, clip, check, update."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from infinito.distributed.ranks import share_of, summed
from infinito.distributed.rows import computing
from infinito.distributed.strategy import exchanging, whole
from infinito.errors import DivergedError
from infinito.model.language_model import TrainingLoss
from infinito.optim.optimizers import Optimizers
from infinito.runtime.precision import autocast

_SMALLEST_SCALE = 2.0**-10


@dataclass(frozen=True)
class StepResult:
    """What a step saw: summed loss (nats), target tokens, gradient norm before clipping.

    ``measurements``: auxiliary losses and what else the model measured, summed over the targets,
    float64 and not on the device.
    """

    loss_sum: float
    targets: int
    grad_norm: float
    measurements: dict[str, Tensor] = field(default_factory=dict)

    @property
    def skipped(self) -> bool:
        """Whether a gradient overflowed, so that no parameter was updated."""
        return not math.isfinite(self.grad_norm)

    @property
    def loss(self) -> float:
        """Mean nats a target token."""
        return self.loss_sum / self.targets


def accumulate_gradients(
    model: nn.Module,
    scaler: torch.amp.GradScaler,
    sequences: Tensor,
    batch_size: int,
    precision: str,
) -> tuple[Tensor, int, dict[str, Tensor]]:
    """Forward and backward over ``sequences`` (N, T + 1) in parts of ``batch_size``.

    ``model`` is a LanguageModel, or what wraps one and is called like it. Of each part a process
    computes its share, and gradients are exchanged in the last one: so they are those of the
    whole step, while what is returned is this process's.

    The loss is divided by the target tokens of the whole step, so the gradient does not depend
    on how the step is split; but how even a load is, is said of each part by itself. Returns the
    summed loss (device scalar), the number of targets and the summed measurements.
    """
    inputs, targets = sequences[:, :-1], sequences[:, 1:]
    count = targets.numel()
    total, seen = torch.zeros((), device=sequences.device), dict[str, Tensor]()
    parts = list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))
    for number, (part, target) in enumerate(parts, start=1):
        share = share_of(len(part))
        with computing(share), exchanging(model, number == len(parts)):
            with autocast(precision, sequences.device.type):
                loss: TrainingLoss = model(part[share.rows], target[share.rows])
            scaler.scale(loss.objective / count).backward()
        total += loss.nats.detach()
        for name, value in loss.seen.items():
            seen[name] = seen.get(name, 0.0) + value
    return total, count, seen


def training_step(
    model: nn.Module,
    optimizers: Optimizers,
    scaler: torch.amp.GradScaler,
    sequences: Tensor,
    batch_size: int,
    precision: str,
    max_grad_norm: float,
) -> StepResult:
    """Take one step on ``sequences``, or none if anything is not finite.

    The host waits for the device once, to read the loss and the norm: what comes of them holds
    for every optimizer alike.
    """
    optimizers.zero_grad()
    loss_sum, count, seen = accumulate_gradients(model, scaler, sequences, batch_size, precision)
    for part in optimizers.parts:
        scaler.unscale_(part.optimizer)
    limit = max_grad_norm or math.inf
    norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
    loss_sum, *sums = summed([loss_sum, *seen.values()])
    loss, grad_norm = torch.stack((loss_sum, norm)).tolist()
    measurements = {name: s.cpu().double() for name, s in zip(seen, sums, strict=True)}
    result = StepResult(loss, count, grad_norm, measurements)
    if result.skipped or not math.isfinite(loss):
        _back_off(result, scaler)
        return result
    for part in optimizers.parts:
        part.optimizer.step()
    scaler.update()
    return result


def _back_off(result: StepResult, scaler: torch.amp.GradScaler) -> None:
    """float16 may overflow a gradient now and then: the next step has a smaller loss scale.

    Raises:
        DivergedError: No loss scale is to blame.
    """
    scale = scaler.get_scale()
    if math.isfinite(result.loss_sum) and scale > _SMALLEST_SCALE:
        scaler.update()
        if scaler.get_scale() < scale:
            return
    raise DivergedError(
        f"training diverged: loss {result.loss:g}, gradient norm {result.grad_norm:g}; "
        "the update was not applied",
        "lower --lr, lengthen training.warmup_steps, or lower training.max_grad_norm",
    )
