"""The fused operations in Triton: what ``csrc`` does on a processor, for a graphics card.

Arguments are the fields of ``csrc/fused.h``, with its legend; what may be missing is None, and the
code for it is then not compiled. Numbers are float32, bfloat16 or float16, all arithmetic is
float32. Nothing is added atomically: results are the same bits in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _mix64(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def dropout_rows(seed_pointer, head_counter, query):
    """The 64-bit states of rows, of the shape of ``query``; see ``attention/dropout.py``."""
    seed = tl.load(seed_pointer).to(tl.uint64, bitcast=True)
    head = _mix64(seed + tl.cast(head_counter, tl.uint64) * 0x9E3779B97F4A7C15)
    return _mix64(head + query.to(tl.uint64) * 0xD1B54A32D192ED03)


@triton.jit
def dropout_keeps(row, key, threshold):
    """Which weights survive, broadcast over ``row`` and ``key``."""
    x = key.to(tl.uint32) * 0x9E3779B9 + row.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = x ^ (row >> 32).to(tl.uint32)
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = x ^ (x >> 16)
    return (x >> 8) >= tl.cast(threshold, tl.uint32)


@triton.jit
def _get(base, place, inside):
    return tl.load(base + place, mask=inside, other=0).to(tl.float32)


@triton.jit
def _put(base, place, inside, x):
    tl.store(base + place, x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _dropped(x, mask, seed, row, column, place, inside, threshold, keep_scale):
    if mask is not None:
        x *= _get(mask, place, inside) * keep_scale
    if seed is not None:
        states = dropout_rows(seed, 1, row)[:, None]
        x = tl.where(dropout_keeps(states, column[None, :], threshold), x * keep_scale, 0.0)
    return x


@triton.jit
def _source(place, index, row, rows, column, WIDTH: tl.constexpr):
    """Where the rows of x lie: as the rest, or in a table."""
    if index is not None:
        source = tl.load(index + row, mask=row < rows, other=0)
        place = source[:, None] * WIDTH + column[None, :]
    return place


@triton.jit
def residual_kernel(
    x, index, branch, gain, mask, seed, stream, normed, inverse,
    rows, threshold, first, keep_scale, epsilon,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """stream = x + dropout(branch), normed = norm(stream); grid (row tiles,)."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    place = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    total = _get(x, _source(place, index, row, rows, column, WIDTH), inside)
    if branch is not None:
        added = _get(branch, place, inside)
        total += _dropped(
            added, mask, seed, first + row, column, place, inside, threshold, keep_scale
        )
        _put(stream, place, inside, total)
    if gain is not None:
        scale = tl.rsqrt(tl.sum(total * total, 1) / WIDTH + epsilon)
        tl.store(inverse + row, scale, mask=row < rows)
        y = total * scale[:, None] * _get(gain, column, column < WIDTH)[None, :]
        if branch is None:
            y = _dropped(y, mask, seed, first + row, column, place, inside, threshold, keep_scale)
        _put(normed, place, inside, y)


@triton.jit
def residual_backward_kernel(
    x, index, branch, gain, mask, seed, stream, inverse, grad_stream, grad_normed, grad_x,
    grad_branch, grad_gain, rows, threshold, first, keep_scale,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of x, the branch and, for each BLOCK rows, the gain; grid (row blocks,)."""
    column = tl.arange(0, PADDED)
    of_gain = tl.zeros((PADDED,), tl.float32)
    for start in range(0, BLOCK, ROWS):
        row = tl.program_id(0) * BLOCK + start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
        place = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        total = tl.zeros((ROWS, PADDED), tl.float32)
        if grad_stream is not None:
            total += _get(grad_stream, place, inside)
        if grad_normed is not None:
            if stream is not None:
                s = _get(stream, place, inside)
            else:
                s = _get(x, _source(place, index, row, rows, column, WIDTH), inside)
            scale = _get(inverse, row, row < rows)[:, None]
            g = _get(grad_normed, place, inside)
            if branch is None:
                g = _dropped(
                    g, mask, seed, first + row, column, place, inside, threshold, keep_scale
                )
            of_gain += tl.sum(g * s * scale, 0)
            g *= _get(gain, column, column < WIDTH)[None, :]
            along = tl.sum(g * s, 1)[:, None]
            total += g * scale - s * (along * scale * scale * scale / WIDTH)
        if grad_x is not None:
            _put(grad_x, place, inside, total)
        if grad_branch is not None:
            total = _dropped(
                total, mask, seed, first + row, column, place, inside, threshold, keep_scale
            )
            _put(grad_branch, place, inside, total)
    if grad_gain is not None:
        _put(grad_gain, tl.program_id(0) * WIDTH + column, column < WIDTH, of_gain)


@triton.jit
def activation_kernel(
    up, gate, output, grad_output, grad_up, grad_gate, count, BLOCK: tl.constexpr
):
    """relu(up)^2, or silu(gate) up; backward where there is no output. Grid (blocks,)."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    x = _get(up, place, inside)
    if gate is not None:
        g = _get(gate, place, inside)
        sigmoid = 1.0 / (1.0 + tl.exp(-g))
        factor, slope = g * sigmoid, sigmoid * (1.0 + g * (1.0 - sigmoid))
    else:
        factor = tl.where(x < 0, 0.0, x)  # what is no number stays so
    if output is not None:
        _put(output, place, inside, x * factor)
    else:
        dy = _get(grad_output, place, inside)
        if gate is not None:
            _put(grad_up, place, inside, dy * factor)
            _put(grad_gate, place, inside, dy * x * slope)
        else:
            _put(grad_up, place, inside, dy * factor * 2.0)


@triton.jit
def muon_kernel(
    gradient, buffer, update, parameter, count, momentum, keep, rate, BLOCK: tl.constexpr
):
    """Muon before its matrix products where there is a gradient, and else behind them."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    if gradient is not None:
        g, b = _get(gradient, place, inside), _get(buffer, place, inside)
        b += (g - b) * (1.0 - momentum)
        _put(buffer, place, inside, b)
        _put(update, place, inside, g + (b - g) * momentum)
    else:
        moved = keep * _get(parameter, place, inside) - rate * _get(update, place, inside)
        _put(parameter, place, inside, moved)


@triton.jit
def softmax_slope_kernel(targets, logits, nats, vocabulary, scale, BLOCK: tl.constexpr):
    """Logits become scale (softmax - onehot) in place; grid (rows,)."""
    row = tl.program_id(0)
    target = tl.load(targets + row)
    logits += row.to(tl.int64) * vocabulary
    counted = target >= 0
    # Read before the sums, behind which other threads write.
    chosen = tl.load(logits + target, mask=counted, other=0).to(tl.float32)
    largest, total = float("-inf"), 0.0
    for start in range(0, vocabulary, BLOCK):
        place = start + tl.arange(0, BLOCK)
        x = tl.load(logits + place, mask=place < vocabulary, other=float("-inf")).to(tl.float32)
        new_largest = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(x - new_largest), 0)
        largest = new_largest
    tl.store(nats + row, tl.where(counted, tl.log(total) + largest - chosen, 0.0))
    factor = tl.where(counted, scale, 0.0)
    for start in range(0, vocabulary, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < vocabulary
        slope = tl.exp(_get(logits, place, inside) - largest) * (factor / total)
        _put(logits, place, inside, tl.where(place == target, slope - factor, slope))


@triton.jit
def _turn_heads(
    joined, gain, cosines, sines, part, grad_joined, grad_gain, tokens, length, epsilon,
    BEFORE: tl.constexpr, COUNT: tl.constexpr, ALL: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """COUNT heads of BLOCK tokens, behind BEFORE others of ALL in a joined row."""
    column = tl.arange(0, PADDED)
    other = (column + WIDTH // 2) % WIDTH  # of the other half, against which one turns
    of_gain = tl.zeros((PADDED,), tl.float32)
    if gain is not None:
        gains = _get(gain, column, column < WIDTH)[None, :]
    for start in range(0, BLOCK * COUNT, ROWS):
        number = start + tl.arange(0, ROWS)
        token, head = tl.program_id(0) * BLOCK + number // COUNT, number % COUNT
        inside = (number < BLOCK * COUNT) & (token < tokens)
        inside = inside[:, None] & (column < WIDTH)[None, :]
        here = (token.to(tl.int64) * ALL + BEFORE + head)[:, None] * WIDTH
        there = (token.to(tl.int64) * COUNT + head)[:, None] * WIDTH
        angle = (token % length)[:, None] * WIDTH
        x = _get(joined, here + column[None, :], inside)
        if gain is not None:
            scale = tl.rsqrt(tl.sum(x * x, 1) / WIDTH + epsilon)[:, None]
        if grad_joined is None:
            y = x
            if gain is not None:
                y = x * scale * gains
            if cosines is not None:
                z = _get(joined, here + other[None, :], inside)
                if gain is not None:
                    z *= scale * _get(gain, other, column < WIDTH)[None, :]
                y *= _get(cosines, angle + column[None, :], inside)
                y += z * _get(sines, angle + column[None, :], inside)
            _put(part, there + column[None, :], inside, y)
        else:
            g = _get(part, there + column[None, :], inside)
            if cosines is not None:
                turned = _get(part, there + other[None, :], inside)
                g *= _get(cosines, angle + column[None, :], inside)
                g += turned * _get(sines, angle + other[None, :], inside)
            if gain is not None:
                of_gain += tl.sum(g * x * scale, 0)
                g *= gains
                along = tl.sum(g * x, 1)[:, None]
                g = g * scale - x * (along * scale * scale * scale / WIDTH)
            _put(grad_joined, here + column[None, :], inside, g)
    if grad_joined is not None and gain is not None:
        _put(grad_gain, tl.program_id(0) * 2 * WIDTH + column, column < WIDTH, of_gain)


@triton.jit
def heads_kernel(
    joined, query_gain, key_gain, cosines, sines, query, key, value, grad_joined, grad_gains,
    tokens, length, epsilon, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Queries, keys and values of a product, or back where there is a grad_joined.

    Grid (token blocks, 3): a program has the heads of one kind.
    """
    if tl.program_id(1) == 0:
        _turn_heads(
            joined, query_gain, cosines, sines, query, grad_joined, grad_gains, tokens, length,
            epsilon, 0, HEADS, HEADS + 2 * KEY_HEADS, WIDTH, PADDED, ROWS, BLOCK,
        )  # fmt: skip
    elif tl.program_id(1) == 1:
        if grad_gains is not None:
            grad_gains += WIDTH
        _turn_heads(
            joined, key_gain, cosines, sines, key, grad_joined, grad_gains, tokens, length,
            epsilon, HEADS, KEY_HEADS, HEADS + 2 * KEY_HEADS, WIDTH, PADDED, ROWS, BLOCK,
        )  # fmt: skip
    else:
        _turn_heads(
            joined, None, None, None, value, grad_joined, None, tokens, length, epsilon,
            HEADS + KEY_HEADS, KEY_HEADS, HEADS + 2 * KEY_HEADS, WIDTH, PADDED, ROWS, BLOCK,
        )  # fmt: skip
