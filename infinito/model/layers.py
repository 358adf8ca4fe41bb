"""The small parts of the model: dropout, linear maps and tables, normalisation, feed-forward.

Shape legend of this package: B batch, T query positions, S key positions, H query heads,
K key/value heads, D head width, C model width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinito.config.model_config import ModelConfig
from infinito.model.roles import DeclaresRoles, Role

Map = Callable[[Tensor], Tensor]

_LEVELS = 1 << 16


def keep_mask(shape: torch.Size, probability: float, device: torch.device) -> Tensor:
    """Random int8 mask (shape), 1 with ``1 - probability`` (to 1/65536), from torch's generator.

    On a CPU torch draws one Bernoulli number at a time, which costs ten times what the rest of a
    dropout does. Here each 64-bit draw decides four elements. int8 and not bool, and a comparison
    in place, because torch vectorises those and their casts on a CPU, and not those of bool.
    """
    count = shape.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    levels = words.random_(-(2**63), None).view(torch.int16)[:count]
    return levels.ge_(round(probability * _LEVELS) - _LEVELS // 2).to(torch.int8).view(shape)


class _MaskedScale(torch.autograd.Function):
    """x * mask * scale, keeping one byte an element for the backward pass."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, mask: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale  # type: ignore[attr-defined]
        return x.mul(mask).mul_(scale)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0].mul(mask).mul_(ctx.scale), None, None  # type: ignore[attr-defined]


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Inverted dropout: zero with ``probability``, scale the rest to keep the mean."""
    if not training or probability == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    kept = 1.0 - round(probability * _LEVELS) / _LEVELS
    mask = keep_mask(x.shape, probability, x.device)
    result: Tensor = _MaskedScale.apply(x, mask, 1.0 / kept)  # type: ignore[no-untyped-call]
    return result


class Dropout(nn.Dropout):
    """:func:`dropout` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return dropout(x, self.p, self.training)


class Linear(nn.Linear, DeclaresRoles):
    """x W^T + b: W from N(0, 1/fan_in), over sqrt(``depth``) where as many are added up; b 0.

    That scaling is GPT-2's (Radford et al. 2019): the variance of the residual stream then does
    not grow with the number of branches added to it.
    """

    def __init__(
        self, n_in: int, n_out: int, bias: bool = False, depth: int = 1, role: Role = Role.MATRIX
    ) -> None:
        super().__init__(n_in, n_out, bias)
        self.roles = {"weight": role, "bias": Role.BIAS}
        self.deviation = n_in**-0.5 / depth**0.5

    def matrix(self) -> Tensor:
        """The weights (n_out, n_in), for who multiplies by them in a way of his own."""
        return self.weight


class Embedding(nn.Embedding, DeclaresRoles):
    """A row a token or position, from N(0, 0.02^2).

    While training, whole rows are zeroed with probability ``row_dropout`` (Gal & Ghahramani 2016).
    """

    def __init__(self, rows: int, width: int, row_dropout: float = 0.0) -> None:
        super().__init__(rows, width)
        self.roles = {"weight": Role.TABLE}
        self.deviation = 0.02
        self.row_dropout = row_dropout

    def reset_parameters(self) -> None:
        """Torch's own draws, replaced by ``initialise``: a seed goes on meaning what it did."""
        if not self.weight.is_meta:  # normal_ there imports all of torch.compile: 2 s
            super().reset_parameters()

    def forward(self, rows: Tensor) -> Tensor:
        """Numbers of rows (...) int64 -> (..., width)."""
        table = self.matrix()
        if self.training and self.row_dropout:
            table = table * dropout(table.new_ones(len(table), 1), self.row_dropout, True)
        return F.embedding(rows, table)

    def matrix(self) -> Tensor:
        """The rows (rows, width), dropout aside."""
        return self.weight


class RMSNorm(nn.RMSNorm, DeclaresRoles):
    """Root-mean-square normalisation over the last axis with a gain (Zhang & Sennrich 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)
        self.roles = {"weight": Role.GAIN}

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width) in x's dtype."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class _SquaredReLU(torch.autograd.Function):
    """relu(x)^2, whose derivative 2 relu(x) needs no second look at x's sign (So et al. 2021)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0].mul(positive).mul_(2.0)


class FeedForward(nn.Module):
    """Position-wise network: C -> F -> C, or gated for SwiGLU (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, hidden: int, bias: bool = False) -> None:
        super().__init__()
        width, self.activation, self.hidden = config.d_model, config.activation, hidden
        self.up = Linear(width, hidden, bias=bias)
        self.gate = Linear(width, hidden, bias=bias) if self.activation == "swiglu" else None
        self.down = Linear(hidden, width, bias=bias, depth=2 * config.n_layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.through(x, self.up, self.gate, self.down)

    def through(self, x: Tensor, up: Map, gate: Map | None, down: Map) -> Tensor:
        """The network with other linear maps in the place of its own."""
        hidden = up(x)
        if gate is not None:
            hidden = F.silu(gate(x)) * hidden
        elif self.activation == "relu2":
            hidden = _SquaredReLU.apply(hidden)  # type: ignore[no-untyped-call]
        else:
            hidden = F.gelu(hidden, approximate="tanh")
        return down(hidden)


def initialise(model: nn.Module) -> None:
    """Draw the first weights of all linear maps and tables, in the order of the modules."""
    for module in model.modules():
        if isinstance(module, Linear | Embedding) and not module.weight.is_meta:
            nn.init.normal_(module.weight, std=module.deviation)
            if isinstance(module, Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
