"""A common offset of queries and keys, so that it can be taken off before sums of them are formed.

|q-k| as 2 max(q, k) - q - k, and |q-k|^2 as |q|^2 + |k|^2 - 2 q.k, lose a small distance between
large numbers in rounding; distances do not change when both sides move. Where to move them may
depend only on what every causal row sees, while a mean over all keys would let later tokens
change the rounding of earlier rows. It is the second token, because models often give the first
one a key far from all others; a row that does not see the second key has the single weight 1,
which no rounding changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: An offset is taken off where the query and the key differ by less than 1/8 of it. Below that
#: ratio the rounding it costs is harmless, and tiny entries of other rows keep all their bits.
LARGEST_DIFFERENCE = 1 / 8


def common_offset(query: Tensor, key: Tensor) -> Tensor:
    """(B, J, 1, D) from query (B, H, T, D) and key (B, J, S, D), in their dtype; a constant.

    Zero in each dimension where the query of the second token (or the first query, if it is
    later; of the first head that shares the key head) and the second key are not close to each
    other. ``find_centre`` in csrc/rows.h is the same rule.
    """
    groups, keys = query.shape[1] // key.shape[1], key.shape[2]
    second = min(1, keys - 1)
    row = max(0, second - (keys - query.shape[2]))
    query, key = query[:, ::groups, row, None].detach(), key[:, :, second, None].detach()
    middle, difference = (query + key) / 2, query - key
    offset = middle.abs() * LARGEST_DIFFERENCE > difference.abs()  # false for infinity and NaN
    return torch.where(offset, middle, torch.zeros_like(middle))
