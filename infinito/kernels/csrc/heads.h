/* RMSNorm of query and key heads and RoPE (Su et al. 2021), from the rows of one product. */

#define MOST_HEAD_WIDTH 256

/* A head with its first half once more behind it: the halves of a head turn against each other. */
typedef struct {
    float numbers[MOST_HEAD_WIDTH * 3 / 2 + 2 * LANES];
} Doubled;

INLINE void put(Doubled *d, int64_t i, int64_t width, vf x) {
    store(DTYPE_FLOAT32, d->numbers, i, width, x);
}

/* Once all is put; zeros behind, which a last vector may reach into. */
INLINE void double_up(Doubled *d, int64_t width) {
    memcpy(d->numbers + width, d->numbers, width / 2 * sizeof(float));
    memset(d->numbers + width + width / 2, 0, LANES * sizeof(float));
}

/* The vector at i; `offset` half a head: from the other half. */
INLINE vf get(const Doubled *d, int64_t i, int64_t offset) {
    return *(const vf_anywhere *)(d->numbers + i + offset);
}

INLINE float inverse_root(const int dtype, const void *x, int64_t width, float epsilon) {
    vf squares = vector_splat(0.0f);
    for (int64_t i = 0; i < width; i += LANES) {
        vf v = load(dtype, x, i, width);
        squares += v * v;
    }
    return 1.0f / sqrtf(vector_sum(squares) / (float)width + epsilon);
}

INLINE void turn_head(const int dtype, const Heads *a, const void *x, const float *gain,
                      int64_t position, void *out) {
    const int64_t width = a->width;
    const float *cosines = a->cosines + position * width, *sines = a->sines + position * width;
    const float inverse = gain ? inverse_root(dtype, x, width, a->epsilon) : 1.0f;
    Doubled row;
    for (int64_t i = 0; i < width; i += LANES) {
        vf v = load(dtype, x, i, width);
        if (gain) v = v * inverse * load(DTYPE_FLOAT32, gain, i, width);
        put(&row, i, width, v);
    }
    double_up(&row, width);
    for (int64_t i = 0; i < width; i += LANES) {
        vf v = get(&row, i, 0);
        if (a->cosines)
            v = v * load(DTYPE_FLOAT32, cosines, i, width) +
                get(&row, i, width / 2) * load(DTYPE_FLOAT32, sines, i, width);
        store(dtype, out, i, width, v);
    }
}

INLINE void turn_back(const int dtype, const Heads *a, const void *x, const float *gain,
                      int64_t position, const void *grad, void *grad_x, float *grad_gain) {
    const int64_t width = a->width;
    const float *cosines = a->cosines + position * width, *sines = a->sines + position * width;
    Doubled turned, normed;
    for (int64_t i = 0; a->cosines && i < width; i += LANES)
        put(&turned, i, width, load(dtype, grad, i, width) * load(DTYPE_FLOAT32, sines, i, width));
    double_up(&turned, width);
    const float inverse = gain ? inverse_root(dtype, x, width, a->epsilon) : 1.0f;
    vf along = vector_splat(0.0f);
    for (int64_t i = 0; i < width; i += LANES) {
        vf g = load(dtype, grad, i, width);
        if (a->cosines)
            g = g * load(DTYPE_FLOAT32, cosines, i, width) + get(&turned, i, width / 2);
        if (gain) {
            vf v = load(dtype, x, i, width), sum = load(DTYPE_FLOAT32, grad_gain, i, width);
            store(DTYPE_FLOAT32, grad_gain, i, width, sum + g * v * inverse);
            g *= load(DTYPE_FLOAT32, gain, i, width);
            along += g * v;
        }
        put(&normed, i, width, g);
    }
    const float mean = vector_sum(along) * inverse * inverse * inverse / (float)width;
    for (int64_t i = 0; i < width; i += LANES) {
        vf g = get(&normed, i, 0);
        if (gain) g = g * inverse - load(dtype, x, i, width) * mean;
        store(dtype, grad_x, i, width, g);
    }
}

/* One token: its queries and keys are turned, its values copied; backward the other way. */
INLINE void heads_of_token(const int dtype, const Heads *a, int64_t token, float *grad_gains) {
    const int64_t width = a->width, all = a->heads + 2 * a->key_heads;
    const int64_t position = token % a->length;
    for (int64_t h = 0; h < all; h++) {
        int64_t kind = h < a->heads ? 0 : h < a->heads + a->key_heads ? 1 : 2;
        int64_t of_kind = kind ? a->key_heads : a->heads;
        int64_t number = h - (kind > 0) * a->heads - (kind > 1) * a->key_heads;
        const float *gain = kind == 0 ? a->query_gain : a->key_gain;
        int64_t here = (token * all + h) * width;
        void *const parts[] = {a->query, a->key, a->value};
        void *there = at(dtype, parts[kind], (token * of_kind + number) * width);
        const void *joined = at(dtype, a->joined, here);
        void *grad = at(dtype, a->grad_joined, here);
        size_t bytes = (char *)at(dtype, a->joined, width) - (char *)a->joined;
        if (kind == 2) memcpy(grad ? grad : there, grad ? there : joined, bytes);
        else if (grad)
            turn_back(dtype, a, joined, gain, position, there, grad, grad_gains + kind * width);
        else turn_head(dtype, a, joined, gain, position, there);
    }
}

static void heads_block(const void *context, int64_t block, float *scratch) {
    const Heads *a = context;
    (void)scratch;
    float *grad_gains = a->grad_gains ? a->grad_gains + block * 2 * a->width : NULL;
    if (grad_gains) memset(grad_gains, 0, 2 * a->width * sizeof(float));
    for (int64_t n = block * BLOCK_ROWS; n < least(a->tokens, (block + 1) * BLOCK_ROWS); n++)
        if (a->dtype == DTYPE_FLOAT32) heads_of_token(DTYPE_FLOAT32, a, n, grad_gains);
        else heads_of_token(DTYPE_BFLOAT16, a, n, grad_gains);
}

/* Forward, and backward where there is a grad_joined. */
int FUSED(heads)(void *arguments) {
    const Heads *a = arguments;
    return run_tasks(heads_block, a, blocks_of(a->tokens), a->threads, 0);
}
