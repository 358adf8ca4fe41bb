"""What the Triton kernels do with one tile: load, store, distances, logits, gradients.

A program owns ROWS rows of one side ("own") and meets COLUMNS rows of the other ("other"), of
width D (padded to PADDED, a power of two); its own rows are the first axis of every tile.

L1 in 16 bit uses |a-b| = 2 max(a,b) - a - b: the maximum is exact in 16 bit, and a product with
a matrix of ones adds it up over D on tensor cores in float32. The gradient is a product with the
matrix of signs. Both go row by row, so that each row lands in its own row of the accumulator.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
_L2_EPSILON = tl.constexpr(1e-12)
#: A squared distance below this part of both squared norms is their rounding: a tie.
_TIE = tl.constexpr(2.0**-19)

#: Makes +-1 or more of any bfloat16 difference above 2^-60; numbers below 2^67 do not overflow.
_LARGE = tl.constexpr(2.0**60)


@triton.jit
def load_tile(base, rows, count, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Rows (ROWS, PADDED) of a (count, WIDTH) matrix, zero beyond it."""
    columns = tl.arange(0, PADDED)
    inside = (rows < count)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(base + rows[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_tile(base, rows, count, tile, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Write ``tile`` (ROWS, PADDED) into a (count, WIDTH) matrix, in its type."""
    columns = tl.arange(0, PADDED)
    inside = (rows < count)[:, None] & (columns < WIDTH)[None, :]
    pointers = base + rows[:, None] * WIDTH + columns[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _load_row(base, row, count, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    columns = tl.arange(0, PADDED)
    limit = tl.minimum((count - row) * WIDTH, WIDTH)  # no column of a row past the last
    return tl.load(base + row * WIDTH + columns, mask=columns < limit, other=0.0)


@triton.jit
def _one_row(values, row, ROWS: tl.constexpr):
    """``values`` (ROWS, N) with every row but one zeroed."""
    return tl.where((tl.arange(0, ROWS) == row)[:, None], values, 0.0)


@triton.jit
def _absolute_sums(
    own, own_base, first, own_count, other,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """L1 distances (ROWS, COLUMNS) of own rows and other rows."""
    turned = tl.trans(other)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for row in tl.range(0, ROWS, loop_unroll_factor=UNROLL):
        mine = _load_row(own_base, first + row, own_count, WIDTH, PADDED)[:, None]
        if other.dtype == tl.float32:
            part = tl.sum(tl.abs(mine - turned), 0)[None, :]
        else:
            largest = tl.maximum(mine, turned).to(other.dtype)  # Triton 3.8 widens bfloat16
            part = tl.dot(tl.full((ROWS, PADDED), 1.0, other.dtype), largest)
        sums = tl.where((tl.arange(0, ROWS) == row)[:, None], part, sums)
    if other.dtype != tl.float32:
        own_sum, other_sum = tl.sum(own.to(tl.float32), 1), tl.sum(other.to(tl.float32), 1)
        sums = 2 * sums - own_sum[:, None] - other_sum[None, :]
    return sums


@triton.jit
def tile_distances(
    own, own_base, first, own_count, other,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """What lambda c multiplies in the negative logits, float32 (ROWS, COLUMNS)."""
    if KIND == "l1":
        distance = _absolute_sums(
            own, own_base, first, own_count, other, ROWS, COLUMNS, WIDTH, PADDED, UNROLL
        )
    else:
        distance = -tl.dot(own, tl.trans(other), input_precision="ieee")
        if KIND != "dot":
            wide, other_wide = own.to(tl.float32), other.to(tl.float32)
            norms = tl.sum(wide * wide, 1)[:, None] + tl.sum(other_wide * other_wide, 1)[None, :]
            distance = norms + 2 * distance
            distance = tl.where(distance < norms * _TIE, 0.0, distance)
            if KIND == "l2":
                distance = tl.sqrt(distance + _L2_EPSILON)
    return distance


@triton.jit
def tile_logits(
    distance, query, key, factor, slope, offset, keys, CAUSAL: tl.constexpr, ALIBI: tl.constexpr
):
    """Logits in base 2, -inf where a query may not look; ``query`` and ``key`` broadcast."""
    logits = -factor * LOG2_E * distance
    ahead = query + offset - key
    if ALIBI:
        logits -= slope * LOG2_E * tl.abs(ahead).to(tl.float32)
    visible = key < keys
    if CAUSAL:
        visible = visible & (ahead >= 0)
    return tl.where(visible, logits, float("-inf"))


@triton.jit
def _signs(mine, other):
    """sign(mine - other) of 16-bit tiles in their type, with packed arithmetic.

    A non-zero difference of 16-bit numbers is non-zero; a large factor makes it 1 or more.
    """
    if other.dtype == tl.bfloat16:
        sign = mine * _LARGE - other * _LARGE
    else:
        sign = (mine - other) * 4096.0 * 4096.0
    return tl.minimum(tl.maximum(sign, -1.0), 1.0).to(other.dtype)  # 3.8 widens here too


@triton.jit
def _signed_sums(
    total, weight, own_base, first, own_count, other,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """total (ROWS, PADDED) + sum over others of weight sign(own - other), sign(0) = 0."""
    narrow = weight.to(other.dtype)
    for row in tl.static_range(ROWS):
        mine = _load_row(own_base, first + row, own_count, WIDTH, PADDED)[None, :]
        if other.dtype == tl.float32:
            sign = (mine > other).to(tl.float32) - (mine < other).to(tl.float32)
            one = tl.sum(_one_row(weight, row, ROWS), 0)
            part = tl.sum(one[:, None] * sign, 0)[None, :]
        else:
            part = tl.dot(narrow, _signs(mine, other))
        total = tl.where((tl.arange(0, ROWS) == row)[:, None], total + part, total)
    return total


@triton.jit
def add_gradient(
    total, weight_sum, weight, distance, own_base, first, own_count, other,
    KIND: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Add to the sums that ``own_gradient`` needs; weight is d(logit) lambda c."""
    if KIND == "l1":
        total = _signed_sums(total, weight, own_base, first, own_count, other, ROWS, WIDTH, PADDED)
    else:
        if KIND == "l2":
            weight = tl.where(distance > 1.5e-6, weight / distance, 0.0)
        if KIND == "l2sq":
            weight = 2 * weight
        weight = weight.to(other.dtype)
        total = tl.dot(weight, other, total, input_precision="ieee")
        weight_sum += tl.sum(weight.to(tl.float32), 1)
    return total, weight_sum


@triton.jit
def own_gradient(total, weight_sum, own, KIND: tl.constexpr):
    """The gradient of own rows from the sums of ``add_gradient``."""
    if KIND == "l1":
        gradient = -total
    elif KIND == "dot":
        gradient = total
    else:
        gradient = total - weight_sum[:, None] * own.to(tl.float32)
    return gradient
