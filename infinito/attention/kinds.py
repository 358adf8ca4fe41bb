"""The kinds of attention score and their constants."""

from __future__ import annotations

import math
from typing import Literal, get_args

from infinito.errors import ConfigError

Kind = Literal["dot", "l1", "l2", "l2sq", "cosine"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: Added to the squared distance of ``l2`` under the root, so that its gradient exists at 0.
L2_EPSILON = 1e-12
#: ``cosine`` divides a vector shorter than this by this instead of by its norm.
SMALLEST_NORM = 1e-6


def default_scale(kind: Kind, width: int) -> float:
    """The constant c that gives logits of unit-normal q, k unit spread within a row.

    With q, k ~ N(0, 1) in D dimensions the standard deviation over the keys is 0.75 sqrt(D) for
    l1, sqrt(3)/2 for l2, about sqrt(6 D) for l2sq (of which the published choice takes
    1/(2 sqrt(D)): exactly scaled dot-product with a penalty on the key norm) and 1/sqrt(D) for
    cosine.

    Args:
        kind: one of ``KINDS``; ``dot`` has the usual 1/sqrt(D).
        width: D, the head width.
    """
    root = math.sqrt(width)
    match kind:
        case "l1":
            return 4 / (3 * root)
        case "l2":
            return 1.16
        case "l2sq":
            return 1 / (2 * root)
        case "cosine":
            return root
        case "dot":
            return 1 / root
    raise ConfigError(f"unknown attention kind {kind!r}", f"choose one of {', '.join(KINDS)}")
