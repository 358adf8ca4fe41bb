"""The small parts of the model: dropout, linear maps and tables, normalisation, feed-forward.

Shape legend of this package: B batch, T query positions, S key positions, H query heads,
K key/value heads, D head width, C model width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from infinito.config.model_config import ModelConfig
from infinito.kernels.fusion import Plan, Planned
from infinito.kernels.plain import dropout, rms_norm
from infinito.model.roles import DeclaresRoles, Role

Map = Callable[[Tensor], Tensor]


class Dropout(nn.Dropout):
    """Inverted dropout as a layer."""

    @property
    def rate(self) -> float:
        """The probability of a zero now: none but in training."""
        return self.p if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return dropout(x, self.rate)


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
            table = table * dropout(table.new_ones(len(table), 1), self.row_dropout, of_batch=False)
        return F.embedding(rows, table)

    def matrix(self) -> Tensor:
        """The rows (rows, width), dropout aside."""
        return self.weight


class RMSNorm(nn.RMSNorm, DeclaresRoles):
    """Root-mean-square normalisation over the last axis with a gain (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, epsilon: float = 1e-6) -> None:
        super().__init__(width, eps=epsilon)
        self.epsilon = epsilon
        self.roles = {"weight": Role.GAIN}

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width) in x's dtype."""
        return rms_norm(x, self.weight, self.epsilon)


def normed(plan: Plan, norm: nn.Module, x: Tensor, rate: float = 0.0) -> Tensor:
    """dropout(norm(x)) by the plan where the norm is one that it knows, in its own dtype then."""
    if isinstance(norm, RMSNorm):
        result: Tensor = plan.run("norm", x, rate, norm.weight, norm.epsilon)
        return result
    return dropout(norm(x), rate)


class FeedForward(nn.Module, Planned):
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
            hidden = self.plan.run("swiglu", gate(x), hidden)
        elif self.activation == "relu2":
            hidden = self.plan.run("squared_relu", hidden)
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
