"""What ``training.fusion`` means: the operations that can be fused, by what code, at which level.

A level allows each operation a few variants; which of them a run takes is its :class:`Plan`, made
once and kept, so that a resumed run computes by the same code. The weights know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from infinito.errors import ConfigError
from infinito.kernels import compiled, on_gpu, plain
from infinito.kernels.native import REMEDY, describe_library
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
    d_head: int = 64
    heads: int = 4
    key_heads: int = 4
    vocabulary: int = 8192
    dropout: float = 0.1


@dataclass(frozen=True)
class FusedOperation(Operation[StepShape]):
    """An operation whose variants take the same arguments and give the same results.

    Attributes:
        inputs: fresh arguments of ``run`` in a step of some shape; the tensors among them that
            require a gradient are those that training has one for.
    """

    inputs: Callable[[StepShape], tuple[Any, ...]]


def _stream(s: StepShape, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device=s.device).requires_grad_()


def _residual_inputs(s: StepShape) -> tuple[Any, ...]:
    sizes = (s.batch, s.length, s.width)
    return (
        _stream(s, *sizes),
        _stream(s, *sizes, dtype=s.dtype),
        s.dropout,
        _stream(s, s.width),
        1e-6,
    )


def _norm_inputs(s: StepShape) -> tuple[Any, ...]:
    return _stream(s, s.batch, s.length, s.width), 0.0, _stream(s, s.width), 1e-6


def _embedding_inputs(s: StepShape) -> tuple[Any, ...]:
    tokens = torch.randint(s.vocabulary, (s.batch, s.length), device=s.device)
    return _stream(s, s.vocabulary, s.width), tokens, s.dropout, _stream(s, s.width), 1e-6


def _hidden(s: StepShape) -> Tensor:
    return _stream(s, s.batch, s.length, s.hidden, dtype=s.dtype)


def _heads_inputs(s: StepShape) -> tuple[Any, ...]:
    joined = (s.heads + 2 * s.key_heads) * s.d_head
    tables = torch.randn(2, s.length, s.d_head, device=s.device).unbind()
    gains = _stream(s, s.d_head), _stream(s, s.d_head)
    product = _stream(s, s.batch, s.length, joined, dtype=s.dtype)
    return product, *gains, *tables, s.heads, s.key_heads, 1e-6


def _loss_inputs(s: StepShape) -> tuple[Any, ...]:
    rows = min(s.batch * s.length, max(64, (1 << 21) // s.vocabulary))
    logits = _stream(s, rows, s.vocabulary, dtype=s.dtype).detach()
    return logits, torch.randint(s.vocabulary, (rows,), device=s.device), 1.0


def _momentum_inputs(s: StepShape) -> tuple[Any, ...]:
    return *torch.randn(2, s.hidden, s.width, device=s.device).unbind(), 0.95


def _move_inputs(s: StepShape) -> tuple[Any, ...]:
    parameter, update = torch.randn(2, s.hidden, s.width, device=s.device).unbind()
    return parameter, update.bfloat16(), 1.0 - 1e-3, 1e-3


def _in_c(shape: StepShape) -> str | None:
    if compiled.serves(shape.device) != "c":
        return f"the tensors are on {shape.device}"
    if shape.dtype not in (torch.float32, torch.bfloat16):
        return f"it takes float32 and bfloat16, not {shape.dtype}"
    return compiled.missing


def _in_triton(shape: StepShape) -> str | None:
    if compiled.serves(shape.device) != "triton":
        return f"the tensors are on {shape.device}, not on cuda"
    return on_gpu.missing


def _narrow(objection: Callable[[StepShape], str | None]) -> Callable[[StepShape], str | None]:
    def of_heads(shape: StepShape) -> str | None:
        if shape.d_head > compiled.MOST_HEAD_WIDTH:
            return f"head width {shape.d_head} exceeds {compiled.MOST_HEAD_WIDTH}"
        return objection(shape)

    return of_heads


def _fused(
    run: Callable[..., Any], ending: str = "", what: str = "", heads: bool = False
) -> dict[str, Variant[StepShape]]:
    """The variants of one function that C and Triton both compute."""
    c, triton = (_narrow(x) if heads else x for x in (_in_c, _in_triton))
    return {
        "c" + ending: Variant(lambda: f"one pass, {describe_library()}{what}", c, run, REMEDY),
        "triton" + ending: Variant(lambda: f"one pass, {on_gpu.describe()}{what}", triton, run),
    }


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


def _dropping(
    of: Callable[[compiled.Draws], Callable[..., Any]],
) -> dict[str, Variant[StepShape]]:
    """With a dropout that counts, and with one that draws a mask as the twin does."""
    return {
        **_fused(of(compiled.counted), "_counter", ", dropout by a counter"),
        **_fused(of(compiled.masked), "", ", dropout by the usual mask"),
    }


OPERATIONS: dict[str, FusedOperation] = {
    operation.name: operation
    for operation in (
        _operation(
            "embedding", _embedding_inputs, plain.embedding, **_dropping(compiled.embedding)
        ),
        _operation("norm", _norm_inputs, plain.norm, **_dropping(compiled.norm)),
        _operation("residual", _residual_inputs, plain.residual, **_dropping(compiled.residual)),
        _operation(
            "heads", _heads_inputs, plain.heads, **_fused(compiled.heads, heads=True)
        ),
        _operation(
            "squared_relu", lambda s: (_hidden(s),), plain.squared_relu,
            **_fused(compiled.squared_relu),
        ),
        _operation(
            "swiglu", lambda s: (_hidden(s), _hidden(s)), plain.swiglu, **_fused(compiled.swiglu)
        ),
        _operation("momentum", _momentum_inputs, plain.momentum, **_fused(compiled.momentum)),
        _operation("move", _move_inputs, plain.move, **_fused(compiled.move)),
        _operation("loss", _loss_inputs, plain.softmax_slope, **_fused(compiled.softmax_slope)),
    )
}  # fmt: skip

#: The same draws and, within rounding, the same results as without fusion.
_CONSERVATIVE: dict[str, tuple[str, ...]] = dict.fromkeys(OPERATIONS, ("c", "triton"))
#: Everything there is; dropout draws other masks.
_MODERATE = {name: tuple(operation.variants)[:-1] for name, operation in OPERATIONS.items()}

#: {level: {operation: the variants it may take beside torch's, the first that can}}.
LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    "none": {},
    "conservative": _CONSERVATIVE,
    "moderate": _MODERATE,
    "aggressive": _MODERATE,
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

    def fuses(self, operation: str) -> bool:
        """Whether anything but the plain twin computes it."""
        return self.variants.get(operation, TORCH) != TORCH

    def run(self, operation: str, *arguments: Any) -> Any:
        """The result of an operation on ``arguments``, by the planned variant."""
        name = self.variants.get(operation, TORCH)
        return OPERATIONS[operation].variants[name].run(*arguments)


#: All by the plain twins.
PLAIN = Plan()


class Planned:
    """A module that computes by a plan; until it is given one, by the plain twins."""

    plan: Plan = PLAIN


def make_plan(
    level: str, shape: StepShape, wanted: Plan, told_of: Collection[str] = OPERATIONS
) -> tuple[Plan, list[str]]:
    """The plan of a level for a step, and why what comes first in its table was passed over.

    The reasons are those of ``told_of``, the operations that somebody uses. Variants of ``wanted``
    come before those of the table if it is a plan of the same level: that of a run that goes on,
    or of a measurement.
    """
    chosen, passed = {}, dict[str, tuple[dict[str, None], dict[str, None]]]()
    for name, allowed in LEVELS[level].items():
        first = wanted.variants.get(name) if wanted.level == level else None
        code = compiled.serves(shape.device)
        here = [v for v in allowed if code is None or v.startswith(code)]
        order = [*([first] if first else []), *here, TORCH]
        variants = OPERATIONS[name].variants
        objections = {
            v: variants[v].objection(shape) if v in variants else "unknown" for v in order
        }
        chosen[name] = next(v for v in order if objections[v] is None)
        for variant in order[: order.index(chosen[name])] if name in told_of else ():
            names, others = passed.setdefault(str(objections[variant]), ({}, {}))
            names[name] = others[variant] = None
    told = [f"{', '.join(n)} not by {' or '.join(v)}: {why}" for why, (n, v) in passed.items()]
    return Plan(level, chosen), told
