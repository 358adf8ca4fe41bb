"""Attention kernels in Triton: one forward, one backward for queries, one for keys and values.

Every program owns ROWS rows of one side and walks over blocks of COLUMNS rows of the other (see
``triton_tiles``). All tensors are contiguous. Legend: B batch, H query heads, J key/value heads,
T queries, S keys, D head width (padded to PADDED, a power of two). Nothing is added atomically:
results are the same bits in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from infinito.attention.triton_tiles import (
    LOG2_E,
    add_gradient,
    load_tile,
    own_gradient,
    store_tile,
    tile_distances,
    tile_logits,
)
from infinito.kernels.triton_passes import dropout_keeps, dropout_rows


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
    query = load_tile(query_base, rows, queries, WIDTH, PADDED)
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
        key = load_tile(key_base, columns, keys, WIDTH, PADDED)
        distance = tile_distances(
            query, query_base, first, queries, key, KIND, ROWS, COLUMNS, WIDTH, PADDED, UNROLL
        )
        logits = tile_logits(
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
        value = load_tile(value_base, columns, keys, WIDTH, PADDED)
        output = output * shrink[:, None]
        output = tl.dot(weight.to(value.dtype), value, output, input_precision="ieee")
        largest = new_largest
    output_base += flat_head.to(tl.int64) * queries * WIDTH
    store_tile(output_base, rows, queries, output / total[:, None], WIDTH, PADDED)
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
    query = load_tile(query_base, rows, queries, WIDTH, PADDED)
    grad_output = load_tile(grad_output_base + place * WIDTH, rows, queries, WIDTH, PADDED)
    output = load_tile(output_base + place * WIDTH, rows, queries, WIDTH, PADDED)
    delta = tl.sum(grad_output.to(tl.float32) * output.to(tl.float32), 1)
    tl.store(delta_base + place + rows, delta, mask=rows < queries)
    logsumexp = tl.load(logsumexp_base + place + rows, mask=rows < queries, other=float("inf"))
    factor = tl.load(lam_base + head) * scale
    slope = tl.load(slopes_base + head) if ALIBI else 0.0
    # d(lambda) of a row is the covariance, over its weights, of d(weight) and distance: taken as
    # that, it does not suffer from the rounding of `output` in delta. A bound taken off the
    # distances first keeps their large mean from drowning it.
    slant = tl.where(factor > 0, factor * LOG2_E, float("inf"))
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
        key = load_tile(key_base, columns, keys, WIDTH, PADDED)
        distance = tile_distances(
            query, query_base, first, queries, key, KIND, ROWS, COLUMNS, WIDTH, PADDED, UNROLL
        )
        logits = tile_logits(
            distance, rows[:, None], columns[None, :], factor, slope, offset, keys, CAUSAL, ALIBI
        )
        weight = tl.exp2(logits - logsumexp[:, None])
        value = load_tile(value_base, columns, keys, WIDTH, PADDED)
        product = tl.dot(grad_output, tl.trans(value), input_precision="ieee")
        if DROPOUT:
            keeps = dropout_keeps(states[:, None], columns[None, :], threshold)
            product = tl.where(keeps, product * keep_scale, 0.0)
        grad = weight * (product - delta[:, None])
        excess = weight * (distance - bound[:, None])
        joint += tl.sum(excess * product, 1)
        mean_product += tl.sum(weight * product, 1)
        mean_excess += tl.sum(excess, 1)
        total, weight_sum = add_gradient(
            total, weight_sum, grad * factor, distance, query_base, first, queries, key,
            KIND, ROWS, WIDTH, PADDED,
        )  # fmt: skip
    gradient = own_gradient(total, weight_sum, query, KIND)
    store_tile(grad_query_base + place * WIDTH, rows, queries, gradient, WIDTH, PADDED)
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
    key = load_tile(key_base, rows, keys, WIDTH, PADDED)
    value = load_tile(value_base + place, rows, keys, WIDTH, PADDED)
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
            query = load_tile(query_base + query_place * WIDTH, columns, queries, WIDTH, PADDED)
            logsumexp = tl.load(
                logsumexp_base + query_place + columns, mask=inside, other=float("inf")
            )
            delta = tl.load(delta_base + query_place + columns, mask=inside, other=0.0)
            distance = tile_distances(
                key, key_base, first, keys, query, KIND, ROWS, COLUMNS, WIDTH, PADDED, UNROLL
            )
            logits = tile_logits(
                distance, columns[None, :], rows[:, None], factor, slope, offset, keys,
                CAUSAL, ALIBI,
            )  # fmt: skip
            weight = tl.exp2(logits - logsumexp[None, :])
            grad_output = load_tile(
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
            total, weight_sum = add_gradient(
                total, weight_sum, grad, distance, key_base, first, keys, query,
                KIND, ROWS, WIDTH, PADDED,
            )  # fmt: skip
    store_tile(
        grad_key_base + place, rows, keys, own_gradient(total, weight_sum, key, KIND), WIDTH, PADDED
    )
    store_tile(grad_value_base + place, rows, keys, grad_value, WIDTH, PADDED)
