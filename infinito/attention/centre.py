"""A common offset of queries and keys, so that it can be taken off before sums of them are formed.

|q-k| as 2 max(q, k) - q - k, and |q-k|^2 as |q|^2 + |k|^2 - 2 q.k, lose a small distance between
large numbers in rounding; distances do not change when both sides move. Where to move them may
depend on the first query and key only: every causal row sees these two, while a mean over all
keys would let later tokens change the rounding of earlier rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: An offset is taken off where the first query and key differ by less than 1/8 of it. Below that
#: ratio the rounding it costs is harmless, and tiny entries of other rows keep all their bits.
LARGEST_DIFFERENCE = 1 / 8


def common_offset(query: Tensor, key: Tensor) -> Tensor:
    """(B, J, 1, D) from query (B, H, T, D) and key (B, J, S, D), in their dtype; a constant.

    Zero in each dimension where the first query (of the first head that shares the key head) and
    the first key are not close to each other. ``find_centre`` in csrc/rows.h is the same rule.
    """
    groups = query.shape[1] // key.shape[1]
    first_query, first_key = query[:, ::groups, :1].detach(), key[:, :, :1].detach()
    middle, difference = (first_query + first_key) / 2, first_query - first_key
    offset = middle.abs() * LARGEST_DIFFERENCE > difference.abs()  # false for infinity and NaN
    return torch.where(offset, middle, torch.zeros_like(middle))
