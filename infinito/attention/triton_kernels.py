"""Attention kernels in Triton: one forward, one backward for queries, one for keys and values.

Every program owns ROWS rows of one side and walks over blocks of COLUMNS rows of the other; its
own rows are the first axis of every tile. All tensors are contiguous. Legend: B batch, H query
heads, J key/value heads, T queries, S keys, D head width (padded to PADDED, a power of two).

L1 in 16 bit uses |a-b| = 2 max(a,b) - a - b: the maximum is exact in 16 bit, and a product with
a matrix of ones adds it up over D on tensor cores in float32. The gradient is a product with the
matrix of signs. Both go row by row, so that each row lands in its own row of the accumulator.
Nothing is added atomically: results are the same bits in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
_L2_EPSILON = tl.constexpr(1e-12)
#: A squared distance below this part of both squared norms is their rounding: a tie.
_TIE = tl.constexpr(2.0**-19)

#: Makes +-1 or more of any bfloat16 difference above 2^-60; numbers below 2^67 do not overflow.
_LARGE = tl.constexpr(2.0**60)


@triton.jit
def _mix64(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def dropout_rows(seed_pointer, head_counter, query):
    """The 64-bit states of rows, of the shape of ``query``; see ``dropout.py``."""
    seed = tl.load(seed_pointer).to(tl.uint64, bitcast=True)
    head = _mix64(seed + head_counter.to(tl.uint64) * 0x9E3779B97F4A7C15)
    return _mix64(head + query.to(tl.uint64) * 0xD1B54A32D192ED03)


@triton.jit
def dropout_keeps(row, key, threshold):
    """Which weights survive, broadcast over ``row`` and ``key``."""
    x = key.to(tl.uint32) * 0x9E3779B9 + row.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = x ^ (row >> 32).to(tl.uint32)
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = x ^ (x >> 16)
    return (x >> 8) >= threshold.to(tl.uint32)


@triton.jit
def _load_tile(base, rows, count, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    columns = tl.arange(0, PADDED)
    inside = (rows < count)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(base + rows[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store_tile(base, rows, count, tile, WIDTH: tl.constexpr, PADDED: tl.constexpr):
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
            part = tl.dot(tl.full((ROWS, PADDED), 1.0, other.dtype), tl.maximum(mine, turned))
        sums = tl.where((tl.arange(0, ROWS) == row)[:, None], part, sums)
    if other.dtype != tl.float32:
        own_sum, other_sum = tl.sum(own.to(tl.float32), 1), tl.sum(other.to(tl.float32), 1)
        sums = 2 * sums - own_sum[:, None] - other_sum[None, :]
    return sums


@triton.jit
def _distances(
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
            distance = tl.where(distance < _TIE * norms, 0.0, distance)
            if KIND == "l2":
                distance = tl.sqrt(distance + _L2_EPSILON)
    return distance


@triton.jit
def _logits(
    distance, query, key, factor, slope, offset, keys, CAUSAL: tl.constexpr, ALIBI: tl.constexpr
):
    """Logits in base 2, -inf where a query may not look; ``query`` and ``key`` broadcast."""
    logits = -factor * _LOG2_E * distance
    ahead = query + offset - key
    if ALIBI:
        logits -= slope * _LOG2_E * tl.abs(ahead).to(tl.float32)
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
    return tl.minimum(tl.maximum(sign, -1.0), 1.0)


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
def _add_gradient(
    total, weight_sum, weight, distance, own_base, first, own_count, other,
    KIND: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Add to the sums that ``_gradient`` needs; weight is d(logit) lambda c."""
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
def _gradient(total, weight_sum, own, KIND: tl.constexpr):
    """The gradient of own rows from the sums of ``_add_gradient``."""
    if KIND == "l1":
        gradient = -total
    elif KIND == "dot":
        gradient = total
    else:
        gradient = total - weight_sum[:, None] * own.to(tl.float32)
    return gradient


@triton.jit
def forward_kernel(
    query_base, key_base, value_base, output_base, logsumexp_base, lam_base, slopes_base, seed_base,
    heads, group, queries, keys, scale, threshold, keep_scale,
    KIND: tl.constexpr, CAUSAL: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """Output (B, H, T, D) and logsumexp (B, H, T) in base 2; grid (B H, row blocks)."""
    flat_head = tl.program_id(0)
    head, offset = flat_head % heads, keys - queries
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * ROWS  # long rows start first
    rows = first + tl.arange(0, ROWS)
    query_base += flat_head.to(tl.int64) * queries * WIDTH
    key_head = (flat_head // group).to(tl.int64)
    key_base += key_head * keys * WIDTH
    value_base += key_head * keys * WIDTH
    query = _load_tile(query_base, rows, queries, WIDTH, PADDED)
    factor = tl.load(lam_base + head) * scale
    slope = tl.load(slopes_base + head) if ALIBI else 0.0
    if DROPOUT:
        states = dropout_rows(seed_base, flat_head + 1, rows)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    output = tl.zeros((ROWS, PADDED), tl.float32)
    stop = tl.minimum(keys, offset + first + ROWS) if CAUSAL else keys
    for start in range(0, stop, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        key = _load_tile(key_base, columns, keys, WIDTH, PADDED)
        distance = _distances(
            query, query_base, first, queries, key, KIND, ROWS, COLUMNS, WIDTH, PADDED, UNROLL
        )
        logits = _logits(
            distance, rows[:, None], columns[None, :], factor, slope, offset, keys, CAUSAL, ALIBI
        )
        new_largest = tl.maximum(largest, tl.max(logits, 1))
        weight = tl.exp2(logits - new_largest[:, None])
        shrink = tl.exp2(largest - new_largest)
        total = total * shrink + tl.sum(weight, 1)
        if DROPOUT:
            weight = tl.where(
                dropout_keeps(states[:, None], columns[None, :], threshold),
                weight * keep_scale,
                0.0,
            )
        value = _load_tile(value_base, columns, keys, WIDTH, PADDED)
        output = output * shrink[:, None]
        output = tl.dot(weight.to(value.dtype), value, output, input_precision="ieee")
        largest = new_largest
    output_base += flat_head.to(tl.int64) * queries * WIDTH
    _store_tile(output_base, rows, queries, output / total[:, None], WIDTH, PADDED)
    logsumexp = largest + tl.log2(total)
    tl.store(logsumexp_base + flat_head * queries + rows, logsumexp, mask=rows < queries)


@triton.jit
def query_gradient_kernel(
    query_base, key_base, value_base, output_base, grad_output_base, logsumexp_base, delta_base,
    grad_query_base, grad_lam_base, lam_base, slopes_base, seed_base,
    heads, group, queries, keys, scale, threshold, keep_scale,
    KIND: tl.constexpr, CAUSAL: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """Gradient of queries, delta = sum d(output) output (B, H, T), parts of d(lambda).

    Grid (B H, row blocks); grad_lam has that shape.
    """
    flat_head = tl.program_id(0)
    head, offset = flat_head % heads, keys - queries
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    first = block * ROWS
    rows = first + tl.arange(0, ROWS)
    place = flat_head.to(tl.int64) * queries
    query_base += place * WIDTH
    key_head = (flat_head // group).to(tl.int64)
    key_base += key_head * keys * WIDTH
    value_base += key_head * keys * WIDTH
    query = _load_tile(query_base, rows, queries, WIDTH, PADDED)
    grad_output = _load_tile(grad_output_base + place * WIDTH, rows, queries, WIDTH, PADDED)
    output = _load_tile(output_base + place * WIDTH, rows, queries, WIDTH, PADDED)
    delta = tl.sum(grad_output.to(tl.float32) * output.to(tl.float32), 1)
    tl.store(delta_base + place + rows, delta, mask=rows < queries)
    logsumexp = tl.load(logsumexp_base + place + rows, mask=rows < queries, other=float("inf"))
    factor = tl.load(lam_base + head) * scale
    slope = tl.load(slopes_base + head) if ALIBI else 0.0
    # d(lambda) of a row is the covariance, over its weights, of d(weight) and distance: taken as
    # that, it does not suffer from the rounding of `output` in delta. A bound taken off the
    # distances first keeps their large mean from drowning it.
    slant = tl.where(factor > 0, factor * _LOG2_E, float("inf"))
    bound = tl.maximum(-logsumexp, 0.0) / slant
    if DROPOUT:
        states = dropout_rows(seed_base, flat_head + 1, rows)
    joint = tl.zeros((ROWS,), tl.float32)
    mean_product = tl.zeros((ROWS,), tl.float32)
    mean_excess = tl.zeros((ROWS,), tl.float32)
    weight_sum = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, PADDED), tl.float32)
    stop = tl.minimum(keys, offset + first + ROWS) if CAUSAL else keys
    for start in range(0, stop, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        key = _load_tile(key_base, columns, keys, WIDTH, PADDED)
        distance = _distances(
            query, query_base, first, queries, key, KIND, ROWS, COLUMNS, WIDTH, PADDED, UNROLL
        )
        logits = _logits(
            distance, rows[:, None], columns[None, :], factor, slope, offset, keys, CAUSAL, ALIBI
        )
        weight = tl.exp2(logits - logsumexp[:, None])
        value = _load_tile(value_base, columns, keys, WIDTH, PADDED)
        product = tl.dot(grad_output, tl.trans(value), input_precision="ieee")
        if DROPOUT:
            keeps = dropout_keeps(states[:, None], columns[None, :], threshold)
            product = tl.where(keeps, product * keep_scale, 0.0)
        grad = weight * (product - delta[:, None])
        excess = weight * (distance - bound[:, None])
        joint += tl.sum(excess * product, 1)
        mean_product += tl.sum(weight * product, 1)
        mean_excess += tl.sum(excess, 1)
        total, weight_sum = _add_gradient(
            total, weight_sum, grad * factor, distance, query_base, first, queries, key,
            KIND, ROWS, WIDTH, PADDED,
        )  # fmt: skip
    gradient = _gradient(total, weight_sum, query, KIND)
    _store_tile(grad_query_base + place * WIDTH, rows, queries, gradient, WIDTH, PADDED)
    lam_place = flat_head * tl.num_programs(1) + block
    tl.store(grad_lam_base + lam_place, -scale * tl.sum(joint - mean_product * mean_excess, 0))


@triton.jit
def key_gradient_kernel(
    query_base, key_base, value_base, grad_output_base, logsumexp_base, delta_base,
    grad_key_base, grad_value_base, lam_base, slopes_base, seed_base,
    heads, group, queries, keys, scale, threshold, keep_scale,
    KIND: tl.constexpr, CAUSAL: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, summed over the query heads of a group.

    Grid (B J, row blocks): the rows of a program are keys, its columns queries.
    """
    flat_key_head = tl.program_id(0)
    offset = keys - queries
    first = tl.program_id(1) * ROWS
    rows = first + tl.arange(0, ROWS)
    place = flat_key_head.to(tl.int64) * keys * WIDTH
    key_base += place
    key = _load_tile(key_base, rows, keys, WIDTH, PADDED)
    value = _load_tile(value_base + place, rows, keys, WIDTH, PADDED)
    weight_sum = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, PADDED), tl.float32)
    grad_value = tl.zeros((ROWS, PADDED), tl.float32)
    begin = tl.maximum(first - offset, 0) // COLUMNS * COLUMNS if CAUSAL else 0
    for member in range(group):
        flat_head = flat_key_head * group + member
        head = flat_head % heads
        query_place = flat_head.to(tl.int64) * queries
        factor = tl.load(lam_base + head) * scale
        slope = tl.load(slopes_base + head) if ALIBI else 0.0
        for start in range(begin, queries, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            inside = columns < queries
            query = _load_tile(query_base + query_place * WIDTH, columns, queries, WIDTH, PADDED)
            logsumexp = tl.load(
                logsumexp_base + query_place + columns, mask=inside, other=float("inf")
            )
            delta = tl.load(delta_base + query_place + columns, mask=inside, other=0.0)
            distance = _distances(
                key, key_base, first, keys, query, KIND, ROWS, COLUMNS, WIDTH, PADDED, UNROLL
            )
            logits = _logits(
                distance, columns[None, :], rows[:, None], factor, slope, offset, keys,
                CAUSAL, ALIBI,
            )  # fmt: skip
            weight = tl.exp2(logits - logsumexp[None, :])
            grad_output = _load_tile(
                grad_output_base + query_place * WIDTH, columns, queries, WIDTH, PADDED
            )
            product = tl.dot(value, tl.trans(grad_output), input_precision="ieee")
            dropped = weight
            if DROPOUT:
                states = dropout_rows(seed_base, flat_head + 1, columns)
                keeps = dropout_keeps(states[None, :], rows[:, None], threshold)
                product = tl.where(keeps, product * keep_scale, 0.0)
                dropped = tl.where(keeps, weight * keep_scale, 0.0)
            grad_value = tl.dot(
                dropped.to(value.dtype), grad_output, grad_value, input_precision="ieee"
            )
            grad = weight * (product - delta[None, :]) * factor
            total, weight_sum = _add_gradient(
                total, weight_sum, grad, distance, key_base, first, keys, query,
                KIND, ROWS, WIDTH, PADDED,
            )  # fmt: skip
    _store_tile(
        grad_key_base + place, rows, keys, _gradient(total, weight_sum, key, KIND), WIDTH, PADDED
    )
    _store_tile(grad_value_base + place, rows, keys, grad_value, WIDTH, PADDED)
