"""AdamW for all parameters, or Muon for the hidden matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infinito.config.schema import TrainingConfig
from infinito.errors import CheckpointError

State = dict[str, dict[str, Any]]


@dataclass
class Part:
    """One torch optimizer, the names of its parameters, its peak rate, its fields a parameter."""

    optimizer: torch.optim.Optimizer
    names: list[str]
    peak_learning_rate: float
    fields: frozenset[str]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters in the order of ``names``."""
        for group in self.optimizer.param_groups:
            yield from group["params"]


class Optimizers:
    """The optimizers of a run, stepped together; their state is stored by parameter name."""

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
        """{parameter name: {field: tensor or number}}, the live tensors."""
        return {
            name: dict(part.optimizer.state[parameter])
            for part in self.parts
            for name, parameter in zip(part.names, part.parameters(), strict=True)
            if part.optimizer.state[parameter]
        }

    def load_state(self, state: State) -> None:
        """Put a stored state back; every field must have its parameter's shape or be a scalar."""
        remaining = dict(state)
        for part in self.parts:
            for name, parameter in zip(part.names, part.parameters(), strict=True):
                fields = remaining.pop(name, None)
                part.optimizer.state.pop(parameter, None)
                if fields:
                    _require_fields(name, fields, part.fields)
                    part.optimizer.state[parameter] = _own_fields(name, fields, parameter)
        if remaining:
            raise CheckpointError(
                f"the optimizer state names unknown parameters: {sorted(remaining)[:3]}"
            )


def _require_fields(name: str, found: dict[str, Any], wanted: frozenset[str]) -> None:
    if found.keys() != wanted:
        raise CheckpointError(
            f"the optimizer state of {name} has the fields {sorted(found)}, not {sorted(wanted)}"
        )


def _own_fields(name: str, fields: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    for field, value in fields.items():
        shape = () if field == "step" else tuple(parameter.shape)
        if not isinstance(value, Tensor) or value.dtype != parameter.dtype or value.shape != shape:
            found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else "absent"
            raise CheckpointError(
                f"optimizer field {name}.{field} is {found}, not {parameter.dtype} {shape}"
            )
    return {
        field: value.clone().to(parameter.device if value.ndim else value.device)
        for field, value in fields.items()
    }


def _build(model: nn.Module, training: TrainingConfig) -> Iterator[Part]:
    """Norm gains never decay; embeddings and head take AdamW under either optimizer."""
    hidden = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and name.startswith("blocks.")
    }
    rest = {name: p for name, p in model.named_parameters() if name not in hidden}
    tables = {name: p for name, p in rest.items() if p.ndim >= 2}
    gains = {name: p for name, p in rest.items() if p.ndim < 2}
    if training.optimizer == "muon":
        yield _muon(hidden, training)
        hidden = {}
    decayed = {**hidden, **tables}
    groups: list[dict[str, Any]] = [
        {"params": list(decayed.values()), "weight_decay": training.weight_decay},
        {"params": list(gains.values()), "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=1e-8,
        fused=True,
    )
    fields = frozenset({"step", "exp_avg", "exp_avg_sq"})
    yield Part(adamw, [*decayed, *gains], training.learning_rate, fields)


def _muon(matrices: dict[str, nn.Parameter], training: TrainingConfig) -> Part:
    """Momentum, orthogonalised by Newton-Schulz (Jordan et al. 2024); torch's own."""
    muon = torch.optim.Muon(
        list(matrices.values()),
        lr=training.muon_learning_rate,
        weight_decay=training.weight_decay,
        momentum=0.95,
        nesterov=True,
    )
    fields = frozenset({"momentum_buffer"})
    return Part(muon, list(matrices), training.muon_learning_rate, fields)
