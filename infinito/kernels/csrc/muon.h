/* What Muon (Jordan et al. 2024) does to each number, before and after its matrix products. */

#define MUON_BLOCK 8192     /* numbers a task */

/* buffer += (1 - momentum) (gradient - buffer), update = the same step once more (Nesterov). */
static void momentum_block(const void *context, int64_t block, float *scratch) {
    const Muon *a = context;
    (void)scratch;
    const int64_t first = block * MUON_BLOCK, count = least(MUON_BLOCK, a->count - first);
    float *buffer = a->buffer + first;
    for (int64_t i = 0; i < count; i += LANES) {
        vf g = load(DTYPE_FLOAT32, a->gradient + first, i, count);
        vf b = load(DTYPE_FLOAT32, buffer, i, count);
        b += (1.0f - a->momentum) * (g - b);
        store(DTYPE_FLOAT32, buffer, i, count, b);
        store(DTYPE_BFLOAT16, at(DTYPE_BFLOAT16, a->update, first), i, count,
              b + (1.0f - a->momentum) * (g - b));
    }
}

/* parameter = keep parameter - rate update */
static void move_block(const void *context, int64_t block, float *scratch) {
    const Muon *a = context;
    (void)scratch;
    const int64_t first = block * MUON_BLOCK, count = least(MUON_BLOCK, a->count - first);
    float *parameter = a->parameter + first;
    for (int64_t i = 0; i < count; i += LANES) {
        vf u = load(DTYPE_BFLOAT16, at(DTYPE_BFLOAT16, a->update, first), i, count);
        vf p = load(DTYPE_FLOAT32, parameter, i, count);
        store(DTYPE_FLOAT32, parameter, i, count, p * a->keep - u * a->rate);
    }
}

/* The first part where there is a gradient, else the second. */
int FUSED(muon)(void *arguments) {
    const Muon *a = arguments;
    int64_t blocks = (a->count + MUON_BLOCK - 1) / MUON_BLOCK;
    return run_tasks(a->gradient ? momentum_block : move_block, a, blocks, a->threads, 0);
}
