/* Squared ReLU (So et al. 2021) and SwiGLU (Shazeer 2020), forward and backward. */

#define ACTIVATION_BLOCK 8192     /* numbers a task */

INLINE vf sigmoid(vf x) {
    const vf most = vector_splat(-126.0f);
    vf negated = vector_max(most, vector_max(most, -1.44269504088896341f * x) * -1.0f);
    return 1.0f / (1.0f + vector_exp2(-negated));
}

INLINE void activate(const int dtype, const Activation *a, int64_t first, int64_t count) {
    const void *up = at(dtype, a->up, first), *gate = at(dtype, a->gate, first);
    void *output = at(dtype, a->output, first);
    for (int64_t i = 0; i < count; i += LANES) {
        vf x = load(dtype, up, i, count);
        if (gate) {
            vf g = load(dtype, gate, i, count);
            x *= g * sigmoid(g);
        } else {
            x *= vector_max(vector_splat(0.0f), x);
        }
        store(dtype, output, i, count, x);
    }
}

INLINE void activation_gradient(const int dtype, const Activation *a, int64_t first,
                                int64_t count) {
    const void *up = at(dtype, a->up, first), *gate = at(dtype, a->gate, first);
    const void *grad_output = at(dtype, a->grad_output, first);
    void *grad_up = at(dtype, a->grad_up, first), *grad_gate = at(dtype, a->grad_gate, first);
    for (int64_t i = 0; i < count; i += LANES) {
        vf x = load(dtype, up, i, count), dy = load(dtype, grad_output, i, count);
        if (!gate) {
            store(dtype, grad_up, i, count, dy * 2.0f * vector_max(vector_splat(0.0f), x));
            continue;
        }
        vf g = load(dtype, gate, i, count), s = sigmoid(g);
        store(dtype, grad_up, i, count, dy * g * s);
        store(dtype, grad_gate, i, count, dy * x * s * (1.0f + g * (1.0f - s)));
    }
}

static void activation_block(const void *context, int64_t block, float *scratch) {
    const Activation *a = context;
    (void)scratch;
    int64_t first = block * ACTIVATION_BLOCK, count = least(ACTIVATION_BLOCK, a->count - first);
    if (a->dtype == DTYPE_FLOAT32) activate(DTYPE_FLOAT32, a, first, count);
    else activate(DTYPE_BFLOAT16, a, first, count);
}

static void activation_gradient_block(const void *context, int64_t block, float *scratch) {
    const Activation *a = context;
    (void)scratch;
    int64_t first = block * ACTIVATION_BLOCK, count = least(ACTIVATION_BLOCK, a->count - first);
    if (a->dtype == DTYPE_FLOAT32) activation_gradient(DTYPE_FLOAT32, a, first, count);
    else activation_gradient(DTYPE_BFLOAT16, a, first, count);
}

int FUSED(activation)(void *arguments) {
    const Activation *a = arguments;
    int64_t blocks = (a->count + ACTIVATION_BLOCK - 1) / ACTIVATION_BLOCK;
    return run_tasks(activation_block, a, blocks, a->threads, 0);
}

int FUSED(activation_backward)(void *arguments) {
    const Activation *a = arguments;
    int64_t blocks = (a->count + ACTIVATION_BLOCK - 1) / ACTIVATION_BLOCK;
    return run_tasks(activation_gradient_block, a, blocks, a->threads, 0);
}
