"""Mixture of experts: each token passes a few of many feed-forward networks, which a router names.

    logits = W x                              (E,) float32, of each token by itself
    chosen = the k largest of them            token choice: no token after it has a say
    gate_i = softmax over the chosen          (Shazeer et al. 2017, eq. 3; Jiang et al. 2024)
    y      = sum over the chosen of gate_i expert_i(x), plus the shared experts

With one expert chosen that softmax is 1 whatever the router says, so its gate is its probability
among all (Fedus et al. 2021, eq. 2). Every chosen expert gets its tokens. A capacity, or experts
that choose their tokens, would let a later token take an earlier one's place: a leak.

N tokens, E experts, k of them chosen, C model width; P rows: k a token, sorted by expert, each
expert's padded to a multiple of ``_ROWS``. Padding keeps bits: products of few rows are summed in
an order of their own, and how many rows an expert gets depends on the whole text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinito.config.model_config import ModelConfig
from infinito.distributed.ranks import summed
from infinito.model.layers import FeedForward, Linear, Map
from infinito.model.roles import Role
from infinito.runtime.precision import compute_dtype

_ROWS = 32
#: Of the router's first weights: experts are nearly equally likely at first (Fedus et al., 2.4).
_ROUTER_DEVIATION = 0.02


@dataclass(frozen=True)
class Routing:
    """What a pass in training did, summed over its N tokens; the first two are differentiable.

    Attributes:
        balance: N E sum_i f_i P_i, where f is the share of the choices that fell on an expert in
            this pass and P its mean probability (Fedus et al. 2021, eq. 4): N where all is even.
        router_z: squared logarithm of each token's sum of exponentials (Zoph et al. 2022, eq. 5).
        load: (E,) choices of each expert, a token's k counting as 1.
        entropy: of the probabilities, nats.
    """

    balance: Tensor
    router_z: Tensor
    load: Tensor
    entropy: Tensor


def _routing(logits: Tensor, counts: Tensor) -> Routing:
    """From the logits (N, E) of all tokens, and how many choices fell on each expert (E,)."""
    log_probabilities = logits.log_softmax(-1)
    probabilities = log_probabilities.exp()
    load = counts / counts.sum() * len(logits)
    return Routing(
        balance=logits.shape[1] * (load * probabilities.mean(0)).sum(),
        router_z=logits.logsumexp(-1).square().sum(),
        load=load,
        entropy=-(probabilities * log_probabilities).detach().sum(),
    )


class _Places(NamedTuple):
    """Where tokens lie among the rows sorted by expert."""

    slots: Tensor  # (N, k): the row of each choice
    tokens: Tensor  # (P,): the token of each row; token 0 in padding, whose results nobody reads
    sizes: Tensor  # (E,): rows of each expert; what is behind them all is padding


def _places(chosen: Tensor, counts: Tensor) -> _Places:
    """Of the chosen experts (N, k); tokens of one expert stay in their order."""
    experts = chosen.flatten()
    padded = (counts + _ROWS - 1) // _ROWS * _ROWS
    shift = (padded - counts).cumsum(0) - (padded - counts)  # padding before an expert's rows
    order = experts.argsort(stable=True)
    number = torch.arange(len(experts), device=chosen.device)
    slots = torch.empty_like(order)
    slots[order] = number + shift[experts[order]]
    most = len(experts) + len(counts) * (_ROWS - 1)  # so that nobody waits to hear how many
    tokens = order.new_zeros(int(padded.sum()) if chosen.device.type == "cpu" else most)
    tokens[slots] = number // chosen.shape[1]
    return _Places(slots.view_as(chosen), tokens, padded)


class _Spread(torch.autograd.Function):
    """(N, C) -> (P, C): a copy of each token for each of its experts; sums in a fixed order."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, slots: Tensor, tokens: Tensor
    ) -> Tensor:
        ctx.save_for_backward(slots)
        return x.index_select(0, tokens)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors  # type: ignore[attr-defined]
        total = gradients[0].index_select(0, slots[:, 0])
        for column in slots.unbind(1)[1:]:
            total += gradients[0].index_select(0, column)
        return total, None, None


class _Gather(torch.autograd.Function):
    """Rows (P, C) and gates (N, k) -> (N, C) float32: each token's rows times gates, added up."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, rows: Tensor, gates: Tensor, slots: Tensor
    ) -> Tensor:
        ctx.save_for_backward(rows, gates, slots)
        total = rows.index_select(0, slots[:, 0]) * gates[:, :1]
        for column, gate in zip(slots.unbind(1)[1:], gates.split(1, 1)[1:], strict=True):
            total.addcmul_(rows.index_select(0, column).to(total.dtype), gate)
        return total

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        rows, gates, slots = ctx.saved_tensors  # type: ignore[attr-defined]
        of_rows, of_gates = torch.zeros_like(rows), torch.empty_like(gates)
        for j, column in enumerate(slots.unbind(1)):
            of_rows[column] = (gradients[0] * gates[:, j : j + 1]).to(rows.dtype)
            of_gates[:, j] = (gradients[0] * rows.index_select(0, column)).sum(-1)
        return of_rows, of_gates, None


class MixtureOfExperts(nn.Module):
    """Stands in a block where the feed-forward network stands; each expert is such a network."""

    def __init__(self, config: ModelConfig, hidden: int) -> None:
        super().__init__()
        moe, width = config.moe, config.d_model
        self.top_k = moe.top_k
        self.router = Linear(width, moe.n_experts, role=Role.ROUTER)
        self.router.deviation = _ROUTER_DEVIATION
        self.experts = nn.ModuleList(FeedForward(config, hidden) for _ in range(moe.n_experts))
        self.shared = FeedForward(config, moe.n_shared * hidden) if moe.n_shared else None
        self.aligned = width % 8 == hidden % 8 == 0
        self.collected: list[Routing] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        flat = x.flatten(0, 1)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(flat.float(), self.router.matrix().float())
        best, chosen = logits.topk(self.top_k, dim=-1)
        normaliser = logits.logsumexp(-1, keepdim=True) if self.top_k == 1 else None
        gates = best.softmax(-1) if normaliser is None else (best - normaliser).exp()
        experts = torch.arange(len(self.experts), device=x.device)
        counts = (chosen.flatten()[:, None] == experts).sum(0)
        if self.training:
            # The share of an expert is that of the whole batch; what is added up is each part's.
            self._collect(_routing(logits, summed([counts])[0]))
        places = _places(chosen, counts)
        rows = _Spread.apply(flat.to(compute_dtype(flat)), places.slots, places.tokens)  # type: ignore[no-untyped-call]
        rows = self._grouped(rows, places) if self._can_group(rows) else self._each(rows, places)
        mixed: Tensor = _Gather.apply(rows, gates, places.slots)  # type: ignore[no-untyped-call]
        mixed = mixed.view_as(x)
        return mixed if self.shared is None else mixed + self.shared(x)

    def _each(self, rows: Tensor, places: _Places) -> Tensor:
        """Rows (P, C) through their experts, one after the other."""
        sizes: list[int] = places.sizes.tolist()
        parts = zip(self.experts, rows.split([*sizes, len(rows) - sum(sizes)]), strict=False)
        # A GPU's products of many rows are summed as their number suggests: there, all are small.
        piece = max(sizes) if rows.device.type == "cpu" else _ROWS
        # In training an expert without a token has gradients all the same: zeros.
        used = ((expert, part) for expert, part in parts if len(part) or self.training)
        return torch.cat([expert(x) for expert, part in used for x in part.split(piece)])

    def _grouped(self, rows: Tensor, places: _Places) -> Tensor:
        """The same in one product of all experts for each map, and the host waits for nothing."""
        ends, first = places.sizes.cumsum(0).to(torch.int32), self.experts[0]
        assert isinstance(first, FeedForward)

        def of_all(name: str) -> Map:
            matrices = [getattr(expert, name).matrix().to(rows.dtype) for expert in self.experts]
            stacked = torch.stack(matrices).transpose(1, 2)
            return lambda x: F.grouped_mm(x, stacked, offs=ends)

        gate = of_all("gate") if first.gate is not None else None
        return first.through(rows, of_all("up"), gate, of_all("down"))

    def _can_group(self, rows: Tensor) -> bool:
        """Whether torch has grouped products for these: Hopper and newer, rows of 16 bytes."""
        if rows.device.type != "cuda" or rows.dtype != torch.bfloat16 or not self.aligned:
            return False
        known = hasattr(F, "grouped_mm") and torch.version.hip is None
        return known and torch.cuda.get_device_capability(rows.device) >= (9, 0)

    def _collect(self, routing: Routing) -> None:
        if self.collected is not None:
            self.collected.append(routing)


def mixtures(model: nn.Module) -> list[MixtureOfExperts]:
    """Those of a model, in the order of its layers."""
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]


@contextmanager
def collecting(model: nn.Module) -> Iterator[list[Routing]]:
    """In the body, each pass in training adds the routing of its layers to the list.

    A layer that is recomputed in the backward pass, behind the body, adds nothing twice.
    """
    routings: list[Routing] = []
    for mixture in mixtures(model):
        mixture.collected = routings
    try:
        yield routings
    finally:
        for mixture in mixtures(model):
            mixture.collected = None
