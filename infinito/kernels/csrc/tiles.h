/* The register tiles: all arithmetic that costs O(T S D) is in this file.
 *
 * A row tile is TILE_ROWS query rows against one block of KEYS keys. Loops over rows and vectors
 * have constant bounds, so that accumulators stay in registers. */

#define KEYS 64
#define TILE_ROWS 4
#define UNROLL _Pragma("GCC unroll 16")

/* One step of the sum over d. `one` is 1.0 hidden from the compiler: L1 then takes max on the
 * adder and fma on the multiplier pipes, twice the rate of max and add where both share one. */
INLINE vf accumulate(const int kind, vf sum, vf query, vf key, vf one) {
    if (kind == KIND_L1) return vector_max(query, key) * one + sum;
    if (kind == KIND_L2 || kind == KIND_L2SQ) {
        vf difference = query - key;
        return difference * difference + sum;
    }
    return query * key + sum;
}

INLINE vf hidden_one(void) {
    vf one = vector_splat(1.0f);
    __asm__("" : "+m"(one));
    return one;
}

/* sums[r][0 .. vectors) for TILE_ROWS rows of `queries` (row stride `stride`) and keys packed
 * as (D, KEYS). */
INLINE void score_tile(const int kind, const int vectors, const float *queries, int64_t stride,
                       const float *packed, int64_t width, float *sums) {
    vf total[TILE_ROWS][TILE_VECTORS];
    UNROLL for (int r = 0; r < TILE_ROWS; r++)
        UNROLL for (int v = 0; v < vectors; v++) total[r][v] = vector_splat(0.0f);
    const vf one = hidden_one();
    for (int64_t d = 0; d < width; d++) {
        vf key[TILE_VECTORS];
        UNROLL for (int v = 0; v < vectors; v++)
            key[v] = vector_load(packed + d * KEYS + v * LANES);
        UNROLL for (int r = 0; r < TILE_ROWS; r++) {
            vf query = vector_splat(queries[r * stride + d]);
            UNROLL for (int v = 0; v < vectors; v++)
                total[r][v] = accumulate(kind, total[r][v], query, key[v], one);
        }
    }
    UNROLL for (int r = 0; r < TILE_ROWS; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            vector_store(sums + r * KEYS + v * LANES, total[r][v]);
}

/* Sums of a row tile for the first `keys` keys, rounded up to whole vectors; sums is
 * (TILE_ROWS, KEYS). */
INLINE void score_block(const int kind, const float *queries, int64_t stride, const float *packed,
                        int64_t width, int keys, float *sums) {
    for (int first = 0; first < keys; first += TILE_VECTORS * LANES) {
        int vectors = (keys - first + LANES - 1) / LANES;
        const float *block = packed + first;
        float *out = sums + first;
        if (vectors >= TILE_VECTORS)
            score_tile(kind, TILE_VECTORS, queries, stride, block, width, out);
        else if (TILE_VECTORS > 3 && vectors == 3) score_tile(kind, 3, queries, stride, block, width, out);
        else if (vectors == 2) score_tile(kind, 2, queries, stride, block, width, out);
        else score_tile(kind, 1, queries, stride, block, width, out);
    }
}

/* out[r] = factor[r] out[r] + sum_n weights[r row_step + n step] values[n], on `vectors` vectors
 * of the rows out and values (row stride `stride`), r < TILE_ROWS, n < count. */
INLINE void product_tile(const int vectors, const float *weights, int64_t row_step, int64_t step,
                         const float *values, int64_t stride, int64_t count, const float *factor,
                         float *out) {
    vf total[TILE_ROWS][TILE_VECTORS];
    UNROLL for (int r = 0; r < TILE_ROWS; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            total[r][v] = vector_load(out + r * stride + v * LANES) * factor[r];
    for (int64_t n = 0; n < count; n++) {
        vf value[TILE_VECTORS];
        UNROLL for (int v = 0; v < vectors; v++)
            value[v] = vector_load(values + n * stride + v * LANES);
        UNROLL for (int r = 0; r < TILE_ROWS; r++) {
            vf weight = vector_splat(weights[r * row_step + n * step]);
            UNROLL for (int v = 0; v < vectors; v++) total[r][v] += weight * value[v];
        }
    }
    UNROLL for (int r = 0; r < TILE_ROWS; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            vector_store(out + r * stride + v * LANES, total[r][v]);
}

/* product_tile over the whole row width (`stride`, a multiple of LANES). */
INLINE void product_rows(const float *weights, int64_t row_step, int64_t step, const float *values,
                         int64_t stride, int64_t count, const float *factor, float *out) {
    for (int64_t d = 0; d < stride; d += TILE_VECTORS * LANES) {
        int vectors = (int)((stride - d) / LANES);
        const float *columns = values + d;
        float *target = out + d;
        if (vectors >= TILE_VECTORS)
            product_tile(TILE_VECTORS, weights, row_step, step, columns, stride, count, factor,
                         target);
        else if (TILE_VECTORS > 3 && vectors == 3)
            product_tile(3, weights, row_step, step, columns, stride, count, factor, target);
        else if (vectors == 2)
            product_tile(2, weights, row_step, step, columns, stride, count, factor, target);
        else product_tile(1, weights, row_step, step, columns, stride, count, factor, target);
    }
}

/* The gradient of a distance: with t = sign(q - k) for L1 and q - k otherwise,
 * grad_queries[r] += sum_n weights[r][n] t, grad_keys[n] += sum_r weights[r][n] t
 * for GRADIENT_ROWS rows and `count` keys; weights has rows of KEYS. The caller negates grad_keys
 * and has scaled the keys of L1 by sign_scale. Differences are taken directly: ties give exactly
 * 0. */
INLINE void difference_gradient(const int kind, const float *queries, float *grad_queries,
                                const float *keys, float *grad_keys, const float *weights,
                                float sign_scale, int64_t stride, int64_t count) {
    for (int64_t d = 0; d < stride; d += LANES) {
        vf query[GRADIENT_ROWS], total[GRADIENT_ROWS];
        UNROLL for (int r = 0; r < GRADIENT_ROWS; r++) {
            query[r] = vector_load(queries + r * stride + d);
            if (kind == KIND_L1) query[r] *= sign_scale;
            total[r] = vector_load(grad_queries + r * stride + d);
        }
        for (int64_t n = 0; n < count; n++) {
            vf key = vector_load(keys + n * stride + d);
            vf column = vector_load(grad_keys + n * stride + d);
            UNROLL for (int r = 0; r < GRADIENT_ROWS; r++) {
                vf direction = query[r] - key;
                if (kind == KIND_L1) direction = vector_sign(direction);
                vf weight = vector_splat(weights[r * KEYS + n]);
                total[r] += weight * direction;
                column += weight * direction;
            }
            vector_store(grad_keys + n * stride + d, column);
        }
        UNROLL for (int r = 0; r < GRADIENT_ROWS; r++)
            vector_store(grad_queries + r * stride + d, total[r]);
    }
}
