"""The plain twin of ``infinito.analyze.patterns``: whole matrices, one position at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from infinito.analyze.patterns import FEWEST_KEYS, STATISTICS
from infinito.attention.call import Call
from infinito.attention.reference import full_weights


def pattern_sums(call: Call) -> Tensor:
    """The same sums (P, H) float64 as ``patterns.pattern_sums``."""
    weights = full_weights(call).double()
    batch, heads, queries, _ = weights.shape
    sums = torch.zeros(len(STATISTICS), heads, dtype=torch.float64)
    for window in range(batch):
        for head in range(heads):
            for query in range(FEWEST_KEYS - 1, queries):
                row: list[float] = weights[window, head, query, : query + 1].tolist()
                sums[:, head] += torch.tensor(_statistics(row), dtype=torch.float64)
    return sums


def _statistics(row: list[float]) -> list[float]:
    """Each statistic of one query's weights on the keys that it can see, itself last."""
    entropy = -sum(weight * math.log(weight) for weight in row if weight > 0)
    query = len(row) - 1
    distance = sum(weight * (query - key) for key, weight in enumerate(row))
    return [entropy, entropy / math.log(len(row)), max(row), distance, row[0], row[-1]]
