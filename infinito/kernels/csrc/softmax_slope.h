/* The loss of rows of logits, and their gradient in their place. */

#define SLOPE_ROWS 4      /* a task */

INLINE void softmax_slope_row(const int dtype, const SoftmaxSlope *a, int64_t n, float *powers) {
    const int64_t width = a->vocabulary, target = a->targets[n];
    void *row = at(dtype, a->logits, n * width);
    vf largest = vector_splat(-INFINITY), total = vector_splat(0.0f);
    const float log2_e = 1.44269504088896341f;
    for (int64_t i = 0; i < width; i += LANES) {
        vf x = load(dtype, row, i, width);
        if (width - i < LANES) x = vector_select(vector_count(0) < (int)(width - i), x, largest);
        largest = vector_max(x, largest);
    }
    const float most = vector_reduce_max(largest);
    for (int64_t i = 0; i < width; i += LANES) {
        vf power = vector_exp2((load(dtype, row, i, width) - most) * log2_e);
        if (width - i < LANES)
            power = vector_select(vector_count(0) < (int)(width - i), power, vector_splat(0.0f));
        vector_store(powers + i, power);
        total += power;
    }
    const float sum = vector_sum(total), factor = target < 0 ? 0.0f : a->scale / sum;
    a->nats[n] = 0.0f;
    if (target >= 0) {
        float chosen[LANES] __attribute__((aligned(64)));
        vector_store(chosen, load(dtype, at(dtype, row, target), 0, 1));
        a->nats[n] = logf(sum) + most - chosen[0];
    }
    for (int64_t i = 0; i < width; i += LANES)
        store(dtype, row, i, width, vector_load(powers + i) * factor);
    if (target >= 0)
        store(dtype, at(dtype, row, target), 0, 1,
              vector_splat(powers[target] * factor - a->scale));
}

static void softmax_slope_task(const void *context, int64_t task, float *scratch) {
    const SoftmaxSlope *a = context;
    for (int64_t n = task * SLOPE_ROWS; n < least(a->rows, (task + 1) * SLOPE_ROWS); n++)
        if (a->dtype == DTYPE_FLOAT32) softmax_slope_row(DTYPE_FLOAT32, a, n, scratch);
        else softmax_slope_row(DTYPE_BFLOAT16, a, n, scratch);
}

int FUSED(softmax_slope)(void *arguments) {
    const SoftmaxSlope *a = arguments;
    int64_t tasks = (a->rows + SLOPE_ROWS - 1) / SLOPE_ROWS;
    return run_tasks(softmax_slope_task, a, tasks, a->threads, a->vocabulary + LANES);
}
