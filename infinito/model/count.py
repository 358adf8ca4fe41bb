"""Parameters and FLOPs of a model, from its config alone: its shapes are made, without memory.

A matrix product of (m, k) and (k, n) is 2 m k n FLOPs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from infinito.config.model_config import ModelConfig
from infinito.model.attention import attentions
from infinito.model.experts import mixtures
from infinito.model.roles import Role, declared_parameters
from infinito.model.transformer import Transformer


@dataclass(frozen=True)
class ParameterCount:
    """Trainable numbers by part; the output head is 0 where it is the embedding.

    ``inactive`` are those of ``feed_forward`` whose experts a token does not pass.
    """

    embedding: int
    positions: int
    attention: int
    feed_forward: int
    norms: int
    lambdas: int
    head: int
    inactive: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        inner = self.attention + self.feed_forward + self.norms + self.lambdas
        return self.embedding + self.positions + inner + self.head

    @property
    def active(self) -> int:
        """Those that one token passes."""
        return self.total - self.inactive


def count_parameters(config: ModelConfig, vocab_size: int, max_positions: int) -> ParameterCount:
    """Count the parameters of ``Transformer(config, vocab_size, max_positions)``."""
    model = _without_memory(config, vocab_size, max_positions)
    whole, attention = _numbers(model), _numbers(*attentions(model))
    projections = attention[Role.MATRIX] + attention[Role.BIAS]
    return ParameterCount(
        embedding=_numbers(model.embedding).total(),
        positions=_numbers(model.positions).total(),
        attention=projections,
        feed_forward=whole[Role.MATRIX] + whole[Role.BIAS] + whole[Role.ROUTER] - projections,
        norms=whole[Role.GAIN],
        lambdas=whole[Role.LAMBDA],
        head=_numbers(model.head).total(),
        inactive=_inactive(model),
    )


def _inactive(model: nn.Module) -> int:
    """Numbers of the experts that a token does not pass."""
    found = ((_numbers(m.experts).total(), m.top_k, len(m.experts)) for m in mixtures(model))
    return sum(numbers * (experts - passed) // experts for numbers, passed, experts in found)


def _without_memory(config: ModelConfig, vocab_size: int, max_positions: int) -> Transformer:
    with torch.device("meta"):
        return Transformer(config, vocab_size, max_positions)


def _numbers(*modules: nn.Module | None) -> Counter[Role]:
    """How many numbers the modules have of each role."""
    found: Counter[Role] = Counter()
    for module in filter(None, modules):
        for _, parameter, role in declared_parameters(module):
            found[role] += parameter.numel()
    return found


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of matrix products in one forward pass, by part; the rest of the work is not counted.

    Of experts, those that a token passes are counted.

    Attention is counted in full, as torch's counter does, although half of it is masked.
    """

    projections: int
    attention: int
    feed_forward: int
    head: int

    @property
    def forward(self) -> int:
        """One forward pass."""
        return self.projections + self.attention + self.feed_forward + self.head

    @property
    def training(self) -> int:
        """Forward and backward, nothing recomputed: a product has two gradients of its cost."""
        return 3 * self.forward


def count_flops(config: ModelConfig, vocab_size: int, batch: int, sequence: int) -> FlopCount:
    """Count the FLOPs of a forward pass over (batch, sequence) tokens, loss included."""
    model, tokens = _without_memory(config, vocab_size, sequence), batch * sequence
    projections, whole = _numbers(*attentions(model))[Role.MATRIX], _numbers(model)
    active = whole[Role.MATRIX] + whole[Role.ROUTER] - projections - _inactive(model)
    return FlopCount(
        projections=2 * tokens * projections,
        attention=4 * tokens * sequence * config.n_heads * config.d_head * config.n_layers,
        feed_forward=2 * tokens * active,
        head=2 * tokens * vocab_size * config.d_model,
    )
