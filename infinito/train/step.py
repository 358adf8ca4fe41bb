"""One optimizer step: forward, backward, clip, check, update."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infinito.errors import DivergedError
from infinito.model.loss import IGNORED
from infinito.model.transformer import Transformer
from infinito.optim.optimizers import Optimizers
from infinito.runtime.precision import autocast

_SMALLEST_SCALE = 2.0**-10


@dataclass(frozen=True)
class StepResult:
    """What a step saw: summed loss (nats), target tokens, gradient norm before clipping."""

    loss_sum: float
    targets: int
    grad_norm: float
    skipped: bool

    @property
    def loss(self) -> float:
        """Mean nats a target token."""
        return self.loss_sum / self.targets


def accumulate_gradients(
    model: Transformer,
    scaler: torch.amp.GradScaler,
    sequences: Tensor,
    batch_size: int,
    precision: str,
) -> tuple[Tensor, int]:
    """Forward and backward over ``sequences`` (N, T + 1) in parts of ``batch_size``.

    The loss is divided by the target tokens of the whole step, so the gradient does not depend
    on how the step is split. Returns the summed loss (device scalar) and the number of targets.
    """
    inputs, targets = sequences[:, :-1], sequences[:, 1:]
    count = int((targets != IGNORED).sum())
    total = torch.zeros((), device=sequences.device)
    for part, target in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
        with autocast(precision, sequences.device.type):
            loss = model.loss(part, target)
        scaler.scale(loss / count).backward()
        total += loss.detach()
    return total, count


def training_step(
    model: Transformer,
    optimizers: Optimizers,
    scaler: torch.amp.GradScaler,
    sequences: Tensor,
    batch_size: int,
    precision: str,
    max_grad_norm: float,
) -> StepResult:
    """Take one step on ``sequences``; stop before the update if anything is not finite."""
    optimizers.zero_grad()
    loss_sum, count = accumulate_gradients(model, scaler, sequences, batch_size, precision)
    for part in optimizers.parts:
        scaler.unscale_(part.optimizer)
    limit = max_grad_norm or math.inf
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    result = StepResult(loss_sum.item(), count, norm.item(), not bool(norm.isfinite()))
    _require_finite(result, scaler)
    for part in optimizers.parts:
        scaler.step(part.optimizer)
    scaler.update()
    return result


def _require_finite(result: StepResult, scaler: torch.amp.GradScaler) -> None:
    """float16 may overflow a gradient now and then: the scaler skips that update and backs off."""
    backing_off = scaler.is_enabled() and scaler.get_scale() > _SMALLEST_SCALE
    if math.isfinite(result.loss_sum) and (not result.skipped or backing_off):
        return
    raise DivergedError(
        f"training diverged: loss {result.loss:g}, gradient norm {result.grad_norm:g}; "
        "the update was not applied",
        "lower --lr, lengthen training.warmup_steps, or lower training.max_grad_norm",
    )
