"""Statistics of one layer's attention, a block of query rows at a time.

Legend: B windows, H query heads, J key/value heads, T positions, D head width, R rows of a block,
E keys that the last of them can see, P the statistics of ``STATISTICS``.

With A_ij the weight of query i on key j <= i: entropy is -sum_j A_ij ln A_ij (nats), and it is at
most ln(i + 1), which ``normalised_entropy`` divides it by; ``mean_distance`` is
sum_j A_ij (i - j) in tokens. Position 0 sees only itself, so that all are given; it is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infinito.attention.call import Call
from infinito.attention.chunked import weight_blocks

STATISTICS = (
    "entropy",
    "normalised_entropy",
    "max_weight",
    "mean_distance",
    "first_token_mass",
    "self_mass",
)
#: Positions with fewer visible keys than this have no pattern.
FEWEST_KEYS = 2


def pattern_sums(call: Call, rows_per_block: int | None = None) -> Tensor:
    """Sums (P, H) float64, on the CPU, of each statistic over the B (T - 1) positions after 0.

    Args:
        call: a causal attention call with as many keys as queries; its values are not read.
        rows_per_block: query rows held at once; None for a fixed budget of weights. Memory is
            O(B H rows S), whatever the kind.
    """
    sums = torch.zeros(len(STATISTICS), call.query.shape[1], dtype=torch.float64)
    for rows, weights in weight_blocks(call, rows_per_block):
        first = max(rows.start, FEWEST_KEYS - 1)
        found = _statistics(weights[:, :, first - rows.start :], first)
        sums += found.cpu().double().sum((1, 3))
    return sums


def _statistics(weights: Tensor, first: int) -> Tensor:
    """(P, B, H, R) of weights (B, H, R, E) of the queries at positions ``first``, first + 1, ..."""
    count, keys = weights.shape[-2:]
    position = torch.arange(first, first + count, device=weights.device)
    behind = position[:, None] - torch.arange(keys, device=weights.device)
    entropy = torch.special.entr(weights).sum(-1)
    return torch.stack(
        [
            entropy,
            entropy / (position + 1).log(),
            weights.amax(-1),
            (weights * behind).sum(-1),
            weights[..., 0],
            weights.diagonal(first, -2, -1),
        ]
    )


def uniform_patterns(length: int) -> dict[str, float]:
    """The statistics of heads that weigh all visible keys alike, over windows of ``length``."""
    position = torch.arange(FEWEST_KEYS - 1, length, dtype=torch.float64)
    share = float((1 / (position + 1)).mean())
    values = [
        float((position + 1).log().mean()), 1.0, share, float((position / 2).mean()), share, share,
    ]  # fmt: skip
    return dict(zip(STATISTICS, values, strict=True))
