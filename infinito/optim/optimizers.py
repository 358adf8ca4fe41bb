"""AdamW for all parameters, or Muon for the hidden matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infinito.config.training_config import TrainingConfig
from infinito.distributed.strategy import copy_whole
from infinito.errors import CheckpointError
from infinito.kernels.fusion import Plan
from infinito.model.roles import Role, declared_parameters
from infinito.optim.muon import PlannedMuon
from infinito.runtime.events import note

State = dict[str, dict[str, Any]]

_REMEDY = "use another checkpoint of the run (`infinito runs` lists them)"
#: Their rows stand for tokens, positions and experts each by itself: no matrix for Muon.
_TABLES = (Role.TABLE, Role.ROUTER)


@dataclass
class Part:
    """One torch optimizer, its parameters by name, its peak rate."""

    optimizer: torch.optim.Optimizer
    parameters: dict[str, nn.Parameter]
    peak_learning_rate: float


class Optimizers:
    """The optimizers of a run, stepped together; their state is stored by parameter name.

    The state is made here and not by the first step, which may be skipped: so it is always whole.
    """

    def __init__(self, model: nn.Module, training: TrainingConfig) -> None:
        self.parts = list(_build(model, training))

    def set_learning_rate(self, factor: float) -> None:
        """Set each learning rate to its peak times ``factor``."""
        for part in self.parts:
            for group in part.optimizer.param_groups:
                group["lr"] = part.peak_learning_rate * factor

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self.parts:
            part.optimizer.zero_grad(set_to_none=True)

    def state(self) -> State:
        """{parameter name: {field: tensor}}, the live tensors; they may be shards."""
        return {
            name: dict(part.optimizer.state[parameter])
            for part in self.parts
            for name, parameter in part.parameters.items()
        }

    def load_state(self, state: State) -> None:
        """Copy a stored state into the live tensors, which lie where their parameters lie.

        Raises:
            CheckpointError: Parameters, fields, dtypes or shapes are not those of this state.
        """
        own = self.state()
        _require_names("the optimizer state", state.keys(), own.keys())
        for name, fields in own.items():
            _require_names(f"the optimizer state of {name}", state[name].keys(), fields.keys())
            for field, tensor in fields.items():
                _require_like(f"{name}.{field}", state[name][field], tensor)
        for name, fields in own.items():
            for field, tensor in fields.items():
                copy_whole(tensor, state[name][field])


def _require_names(what: str, found: Set[str], wanted: Set[str]) -> None:
    if missing := sorted(wanted - found)[:3]:
        raise CheckpointError(f"{what} lacks {', '.join(missing)}", _REMEDY)
    if unknown := sorted(found - wanted)[:3]:
        raise CheckpointError(f"{what} names {', '.join(unknown)}, unknown to this run", _REMEDY)


def _require_like(what: str, found: Any, wanted: Tensor) -> None:
    if not isinstance(found, Tensor) or (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
        seen = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else "no tensor"
        raise CheckpointError(
            f"optimizer field {what} is {seen}, not {wanted.dtype} {tuple(wanted.shape)}", _REMEDY
        )


def _build(model: nn.Module, training: TrainingConfig) -> Iterator[Part]:
    """Gains, biases and lambdas never decay; tables and routers take AdamW under either."""
    trained = [(n, p, role) for n, p, role in declared_parameters(model) if p.requires_grad]
    matrices = {name: p for name, p, role in trained if role is Role.MATRIX}
    tables = {name: p for name, p, role in trained if role in _TABLES}
    others = {name: p for name, p, role in trained if role not in (Role.MATRIX, *_TABLES)}
    if training.optimizer == "muon":
        yield _muon(matrices, training)
        matrices = {}
    decayed = {**matrices, **tables}
    groups: list[dict[str, Any]] = [
        {"params": list(decayed.values()), "weight_decay": training.weight_decay},
        {"params": list(others.values()), "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=1e-8,
        fused=True,
    )
    every = {**decayed, **others}
    yield _part(adamw, every, training.learning_rate, "step", "exp_avg", "exp_avg_sq")


def _muon(matrices: dict[str, nn.Parameter], training: TrainingConfig) -> Part:
    """Momentum, orthogonalised by Newton-Schulz (Jordan et al. 2024); torch's own."""
    options: dict[str, Any] = {
        "lr": training.muon_learning_rate,
        "weight_decay": training.weight_decay,
        "momentum": 0.95,
        "nesterov": True,
    }
    parameters, plan = list(matrices.values()), Plan.from_text(training.fusion_plan)
    fused = plan.fuses("momentum") or plan.fuses("move")
    if fused and not (whole := all(type(p.data) is Tensor for p in parameters)):
        note("fusion: momentum and move by torch, because the weights are sharded")
    muon = (
        PlannedMuon(parameters, plan, **options)
        if fused and whole
        else torch.optim.Muon(parameters, **options)
    )
    return _part(muon, matrices, training.muon_learning_rate, "momentum_buffer")


def _part(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], rate: float, *fields: str
) -> Part:
    """``optimizer`` with the state that its first step would make, beside the parameters."""
    for parameter in parameters.values():
        optimizer.state[parameter] = {
            field: torch.zeros((), dtype=parameter.dtype, device=parameter.device)
            if field == "step"
            else torch.zeros_like(parameter)
            for field in fields
        }
    return Part(optimizer, parameters, rate)
