/* Dropout, residual sum and RMSNorm in one pass over a row, forward and backward. */

/* The finaliser of splitmix64 (Steele, Lea and Flood 2014). */
INLINE uint64_t mix64(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* The counter of one row. attention/dropout.py has the definition: this is its decision for
 * query `row` and key i of head 0 in sequence 0. */
INLINE uint64_t dropout_row(const Residual *a, int64_t row) {
    if (!a->seed) return 0;
    uint64_t head = mix64(*a->seed + 0x9e3779b97f4a7c15u);
    return mix64(head + (uint64_t)(a->first + row) * 0xd1b54a32d192ed03u);
}

/* Numbers i .. i + LANES of a row after dropout. */
INLINE vf dropped(const Residual *a, uint64_t key, const int8_t *mask, int64_t i, vf x) {
    if (mask) {
        int8_t part[LANES] = {0};
        memcpy(part, mask + i, least(LANES, a->width - i));
        return x * vector_from_bytes(part) * a->keep_scale;
    }
    if (!a->seed) return x;
    vu h = ((vu)vector_count(0) + (uint32_t)i) * 0x9e3779b9u + (uint32_t)key;
    h = (h ^ (h >> 16)) * 0x7feb352du;
    h ^= (uint32_t)(key >> 32);
    h = (h ^ (h >> 15)) * 0x846ca68bu;
    h ^= h >> 16;
    return (vf)((vi)(x * a->keep_scale) & (vi)((h >> 8) >= (uint32_t)a->threshold));
}

static void residual_row(const Residual *a, int64_t n) {
    const int64_t width = a->width, start = n * width;
    const float *x = a->x + (a->index ? a->index[n] : n) * width;
    const int8_t *mask = a->mask ? a->mask + start : NULL;
    const void *branch = at(a->branch_dtype, a->branch, start);
    void *normed = at(a->normed_dtype, a->normed, start);
    float *stream = at(DTYPE_FLOAT32, a->stream, start);
    uint64_t key = dropout_row(a, n);
    vf squares = vector_splat(0.0f);
    for (int64_t i = 0; i < width; i += LANES) {
        vf s = load(DTYPE_FLOAT32, x, i, width);
        if (branch) {
            s += dropped(a, key, mask, i, load(a->branch_dtype, branch, i, width));
            store(DTYPE_FLOAT32, stream, i, width, s);
        }
        squares += s * s;
    }
    if (!a->gain) return;
    float inverse = 1.0f / sqrtf(vector_sum(squares) / (float)width + a->epsilon);
    a->inverse[n] = inverse;
    for (int64_t i = 0; i < width; i += LANES) {
        vf s = load(DTYPE_FLOAT32, branch ? stream : x, i, width) * inverse;
        vf y = s * load(DTYPE_FLOAT32, a->gain, i, width);
        if (!branch) y = dropped(a, key, mask, i, y);
        store(a->normed_dtype, normed, i, width, y);
    }
}

/* The gradient that reaches numbers i .. i + LANES of the normed row before dropout. */
INLINE vf normed_gradient(const Residual *a, int64_t n, uint64_t key, const int8_t *mask,
                          int64_t i) {
    const void *row = at(a->normed_dtype, a->grad_normed, n * a->width);
    vf g = load(a->normed_dtype, row, i, a->width);
    return a->branch ? g : dropped(a, key, mask, i, g);
}

static void residual_gradient_row(const Residual *a, int64_t n, float *grad_gain) {
    const int64_t width = a->width, start = n * width;
    const float *s = a->branch ? a->stream + start : a->x + (a->index ? a->index[n] : n) * width;
    const int8_t *mask = a->mask ? a->mask + start : NULL;
    const uint64_t key = dropout_row(a, n);
    const float inverse = a->grad_normed ? a->inverse[n] : 0.0f;
    void *branch = at(a->branch_dtype, a->grad_branch, start);
    vf along = vector_splat(0.0f);
    if (a->grad_normed)
        for (int64_t i = 0; i < width; i += LANES) {
            vf g = normed_gradient(a, n, key, mask, i), x = load(DTYPE_FLOAT32, s, i, width);
            vf sum = load(DTYPE_FLOAT32, grad_gain, i, width);
            store(DTYPE_FLOAT32, grad_gain, i, width, sum + g * x * inverse);
            along += g * x * load(DTYPE_FLOAT32, a->gain, i, width);
        }
    const float mean = vector_sum(along) * inverse * inverse * inverse / (float)width;
    for (int64_t i = 0; i < width; i += LANES) {
        vf total = vector_splat(0.0f);
        if (a->grad_stream) total = load(DTYPE_FLOAT32, a->grad_stream + start, i, width);
        if (a->grad_normed) {
            vf g = normed_gradient(a, n, key, mask, i) * load(DTYPE_FLOAT32, a->gain, i, width);
            total += g * inverse - load(DTYPE_FLOAT32, s, i, width) * mean;
        }
        if (a->grad_x) store(DTYPE_FLOAT32, a->grad_x + start, i, width, total);
        if (branch)
            store(a->branch_dtype, branch, i, width, dropped(a, key, mask, i, total));
    }
}

static void residual_block(const void *context, int64_t block, float *scratch) {
    const Residual *a = context;
    (void)scratch;
    for (int64_t n = block * BLOCK_ROWS; n < least(a->rows, (block + 1) * BLOCK_ROWS); n++)
        residual_row(a, n);
}

static void residual_gradient_block(const void *context, int64_t block, float *scratch) {
    const Residual *a = context;
    (void)scratch;
    float *grad_gain = a->grad_gain ? a->grad_gain + block * a->width : NULL;
    if (grad_gain) memset(grad_gain, 0, a->width * sizeof(float));
    for (int64_t n = block * BLOCK_ROWS; n < least(a->rows, (block + 1) * BLOCK_ROWS); n++)
        residual_gradient_row(a, n, grad_gain);
}

int FUSED(residual)(void *arguments) {
    const Residual *a = arguments;
    return run_tasks(residual_block, a, blocks_of(a->rows), a->threads, 0);
}

int FUSED(residual_backward)(void *arguments) {
    const Residual *a = arguments;
    return run_tasks(residual_gradient_block, a, blocks_of(a->rows), a->threads, 0);
}
