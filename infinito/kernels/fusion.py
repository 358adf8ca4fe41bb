"""What ``training.fusion`` means: the operations that can be fused, by what code, at which level.

A level allows each operation a few variants; which of them a run takes is its :class:`Plan`, made
once and kept, so that a resumed run computes by the same code. The weights know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from infinito.errors import ConfigError
from infinito.kernels import plain
from infinito.kernels.table import Operation, Variant, no_objection

TORCH = "torch"


@dataclass(frozen=True)
class StepShape:
    """A training step, as far as the choice of a variant and the size of its tensors go."""

    device: str = "cpu"  # torch device type
    dtype: torch.dtype = torch.float32  # of the matrix products
    batch: int = 16
    length: int = 256
    width: int = 256
    hidden: int = 1024  # of the feed-forward network
    dropout: float = 0.1


@dataclass(frozen=True)
class FusedOperation(Operation[StepShape]):
    """An operation whose variants take the same arguments and give the same results.

    Attributes:
        inputs: fresh arguments of ``run`` in a step of some shape; the tensors among them that
            require a gradient are those that training has one for.
    """

    inputs: Callable[[StepShape], tuple[Any, ...]]


def _tensor(shape: StepShape, dtype: torch.dtype, *sizes: int) -> Tensor:
    return torch.randn(*sizes, dtype=dtype, device=shape.device).requires_grad_()


def _residual_inputs(shape: StepShape) -> tuple[Any, ...]:
    sizes = (shape.batch, shape.length, shape.width)
    stream, branch = (_tensor(shape, dtype, *sizes) for dtype in (torch.float32, shape.dtype))
    return stream, branch, shape.dropout, _tensor(shape, torch.float32, shape.width), 1e-6


def _hidden_inputs(shape: StepShape) -> tuple[Any, ...]:
    return (_tensor(shape, shape.dtype, shape.batch, shape.length, shape.hidden),)


def _operation(
    name: str,
    inputs: Callable[[StepShape], tuple[Any, ...]],
    twin: Callable[..., Any],
    **variants: Variant[StepShape],
) -> FusedOperation:
    """``twin`` comes last; it is what training without fusion does."""
    last: Variant[StepShape] = Variant(
        lambda: "torch operations, one after the other", no_objection, twin
    )
    return FusedOperation(name, {**variants, TORCH: last}, StepShape, inputs)


OPERATIONS: dict[str, FusedOperation] = {
    operation.name: operation
    for operation in (
        _operation("residual", _residual_inputs, plain.residual),
        _operation("squared_relu", _hidden_inputs, plain.squared_relu),
    )
}

#: {level: {operation: the variants it may take beside torch's, the first that can}}.
LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    "none": {},
    "conservative": {},
    "moderate": {},
    "aggressive": {},
}
#: Levels at which torch.compile runs on top of the plan.
COMPILED = ("aggressive",)


@dataclass(frozen=True)
class Plan:
    """By which variant each operation runs; one that is not named runs its plain twin.

    As a text, and so in a config, it is ``LEVEL OPERATION=VARIANT ...``.
    """

    level: str = "none"
    variants: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_text(cls, text: str | None) -> Plan:
        """The plan of a text; of no text, that of ``none``.

        Raises:
            ConfigError: it is no such text.
        """
        level, *pairs = (text or "none").split()
        variants = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if level not in LEVELS or len(variants) < len(pairs):
            raise ConfigError(
                f"training.fusion_plan: {text!r} is no plan",
                "leave it out: the level decides then",
            )
        return cls(level, variants)

    def __str__(self) -> str:
        return " ".join([self.level, *(f"{o}={v}" for o, v in self.variants.items())])

    def run(self, operation: str, *arguments: Any) -> Any:
        """The result of an operation on ``arguments``, by the planned variant."""
        name = self.variants.get(operation, TORCH)
        return OPERATIONS[operation].variants[name].run(*arguments)


class Planned:
    """A module that computes by a plan; until it is given one, by the plain twins."""

    plan: Plan = Plan()


def make_plan(level: str, shape: StepShape, wanted: Plan) -> tuple[Plan, list[str]]:
    """The plan of a level for a step, and why what comes first in its table was passed over.

    Variants of ``wanted`` come before those of the table if it is a plan of the same level: that
    of a run that goes on, or of a measurement.
    """
    chosen, told = {}, []
    for name, allowed in LEVELS[level].items():
        first = wanted.variants.get(name) if wanted.level == level else None
        order = [*([first] if first else []), *allowed, TORCH]
        variants = OPERATIONS[name].variants
        objections = {
            v: variants[v].objection(shape) if v in variants else "unknown" for v in order
        }
        chosen[name] = next(v for v in order if objections[v] is None)
        passed = order[: order.index(chosen[name])]
        told += [f"{name} not by {v}: {objections[v]}" for v in passed]
    return Plan(level, chosen), told
