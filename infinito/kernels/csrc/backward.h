/* Backward pass in one sweep: weights are recomputed from logsumexp, nothing of size T S exists.
 * A task is one (batch, key/value head) and every `splits`-th key block of it; it walks over its
 * query heads, its key blocks and strips of query rows. With more than one split each writes its
 * own query gradient, and a second sweep adds them in a fixed order. */

#define STRIP_ROWS 32

typedef struct {
    const Arguments *a;
    int64_t splits, stride, padded_rows, slots;  /* slots: key blocks of one task */
    float *partial_queries;   /* (splits, B, H, T, stride), or null with one split */
    double *partial_lambda;   /* (splits, B, H) */
} Backward;

typedef struct {
    Head head;
    int64_t stride;
    float *queries, *grad_output, *grad_queries;     /* (padded rows, stride) */
    float *logsumexp, *delta, *query_sums;           /* (padded rows,) */
    float *grad_keys, *grad_values;                  /* (slots KEYS, stride) */
    float *keys, *values;                            /* (KEYS, stride) */
    float *packed_keys, *packed_values;              /* (width, KEYS) */
    float *weights, *gradients;                      /* (STRIP_ROWS, KEYS) */
    float *key_sums, *centre, *lambda_sum;           /* lambda_sum: (LANES,) */
    float largest_query, sign_scale;                 /* of L1; see scale_for_signs */
} Workspace;

static float *take(float **scratch, int64_t floats) {
    float *taken = *scratch;
    *scratch += round_up(floats, 16);
    return taken;
}

/* With null scratch only measures: returns the number of floats. */
static int64_t lay_out(const Backward *p, Workspace *w, float *scratch) {
    float *start = scratch;
    int64_t rows = p->padded_rows, block = KEYS * p->stride;
    w->stride = p->stride;
    w->queries = take(&scratch, rows * p->stride);
    w->grad_output = take(&scratch, rows * p->stride);
    w->grad_queries = take(&scratch, rows * p->stride);
    w->logsumexp = take(&scratch, rows);
    w->delta = take(&scratch, rows);
    w->query_sums = take(&scratch, rows);
    w->grad_keys = take(&scratch, p->slots * block);
    w->grad_values = take(&scratch, p->slots * block);
    w->keys = take(&scratch, block);
    w->values = take(&scratch, block);
    w->packed_keys = take(&scratch, block);
    w->packed_values = take(&scratch, block);
    w->weights = take(&scratch, STRIP_ROWS * KEYS);
    w->gradients = take(&scratch, STRIP_ROWS * KEYS);
    w->key_sums = take(&scratch, KEYS);
    w->centre = take(&scratch, p->stride);
    w->lambda_sum = take(&scratch, LANES);
    return scratch - start;
}

/* Rows past the last query get weight zero: their logsumexp is huge. */
static void load_head(Workspace *w, int64_t padded_rows) {
    const Arguments *a = w->head.a;
    int64_t b = w->head.batch, h = w->head.head, stride = w->stride;
    const float *logsumexp = a->logsumexp + (b * a->heads + h) * a->queries;
    for (int64_t i = 0; i < padded_rows; i++) {
        float *query = w->queries + i * stride, *grad_output = w->grad_output + i * stride;
        memset(w->grad_queries + i * stride, 0, stride * sizeof(float));
        w->logsumexp[i] = i < a->queries ? logsumexp[i] : -MASKED;
        w->delta[i] = w->query_sums[i] = 0;
        if (i >= a->queries) {
            memset(query, 0, stride * sizeof(float));
            memset(grad_output, 0, stride * sizeof(float));
            continue;
        }
        load_row(a, &a->output, b, h, i, query, stride);
        load_row(a, &a->grad_output, b, h, i, grad_output, stride);
        w->delta[i] = dot_row(query, grad_output, stride);
        w->query_sums[i] = load_scored_row(a, &a->query, b, h, i, w->centre, query, stride);
    }
    w->largest_query = largest_magnitude(w->queries, padded_rows * stride);
}

/* d(logit)/d(direction of difference_gradient), natural logarithm, times `grad`. */
INLINE vf direction_weight(const int kind, vf grad, float weight, vf inverse) {
    if (kind == KIND_L1) return grad * -weight;
    if (kind == KIND_L2) return grad * inverse * -weight;
    if (kind == KIND_L2SQ) return grad * (-2.0f * weight);
    return grad * weight;
}

/* One row of a tile: raw sums and d(output) . values become weights (after dropout) and the
 * weights of difference_gradient. */
INLINE void backward_row(const int kind, const Workspace *w, int64_t i, int64_t first, int count,
                         const float *sums, const float *products, float *weights,
                         float *gradients) {
    const Row row = make_row(&w->head, i, first, count);
    const float keep_scale = w->head.a->keep_scale, weight_of_head = w->head.weight;
    const float logsumexp = w->logsumexp[i], delta = w->delta[i], query_sum = w->query_sums[i];
    const float *key_sums = w->key_sums;
    /* A row of `grad` sums to zero, so a bound below its distances can be taken off them first:
     * the large mean of a distance then does not drown d(lambda) in rounding. */
    const float bound = row.factor < 0 && logsumexp < 0 ? logsumexp / row.factor : 0.0f;
    vf lambda_sum = vector_load(w->lambda_sum), inverse = vector_splat(0.0f);
    for (int n = 0; n < count; n += LANES) {
        vf distance = distance_of(kind, vector_load(sums + n), query_sum, key_sums + n, &inverse);
        vf weight = vector_exp2(logits_of(row, distance, n) - logsumexp);
        vf dropped = weight, product = vector_load(products + n);
        if (row.threshold) {
            vi keeps = dropout_keeps(row, n);
            dropped = (vf)((vi)(weight * keep_scale) & keeps);
            product = (vf)((vi)(product * keep_scale) & keeps);
        }
        vf grad = weight * (product - delta);
        lambda_sum += grad * (distance - bound);
        vector_store(weights + n, dropped);
        vector_store(gradients + n, direction_weight(kind, grad, weight_of_head, inverse));
    }
    vector_store(w->lambda_sum, lambda_sum);
}

/* Fills TILE_ROWS rows of weights and gradients for keys below `strip_count`. */
INLINE void backward_tile(const int kind, const Workspace *w, int64_t i, int64_t first,
                          int strip_count, float *weights, float *gradients) {
    const Arguments *a = w->head.a;
    float sums[TILE_ROWS * KEYS] __attribute__((aligned(64)));
    float products[TILE_ROWS * KEYS] __attribute__((aligned(64)));
    int64_t last = last_visible(a, smaller(i + TILE_ROWS, a->queries) - 1);
    int count = (int)larger(0, smaller(strip_count, last - first + 1));
    score_block(kind, w->queries + i * w->stride, w->stride, w->packed_keys, a->width, count, sums);
    score_block(KIND_DOT, w->grad_output + i * w->stride, w->stride, w->packed_values, a->width,
                count, products);
    for (int r = 0; r < TILE_ROWS; r++) {
        backward_row(kind, w, i + r, first, count, sums + r * KEYS, products + r * KEYS,
                     weights + r * KEYS, gradients + r * KEYS);
        for (int n = (int)round_up(count, LANES); n < strip_count; n += LANES) {
            vector_store(weights + r * KEYS + n, vector_splat(0.0f));
            vector_store(gradients + r * KEYS + n, vector_splat(0.0f));
        }
    }
}

/* out[n] += sum over the rows of the strip of weights[row][n] rows[row], n < count. */
INLINE void add_to_keys(const Workspace *w, const float *weights, const float *rows, int64_t i0,
                        int64_t strip, int64_t first, int count, float *out) {
    static const float ones[TILE_ROWS] = {1, 1, 1, 1};
    const Arguments *a = w->head.a;
    for (int n = 0; n < count; n += TILE_ROWS) {
        int64_t blind = a->causal ? first + n - (a->keys - a->queries) - i0 : 0;
        int64_t start = larger(0, blind);  /* rows before it do not see key n */
        product_rows(weights + start * KEYS + n, 1, KEYS, rows + (i0 + start) * w->stride,
                     w->stride, strip - start, ones, out + n * w->stride);
    }
}

INLINE void backward_strip(const int kind, const Workspace *w, int64_t i0, int64_t strip,
                           int64_t first, float *grad_keys, float *grad_values) {
    static const float ones[TILE_ROWS] = {1, 1, 1, 1};
    const Arguments *a = w->head.a;
    const int similarity = kind == KIND_DOT || kind == KIND_COSINE;
    const int group = similarity ? TILE_ROWS : GRADIENT_ROWS;
    int64_t last = last_visible(a, smaller(i0 + strip, a->queries) - 1), stride = w->stride;
    int count = (int)smaller(KEYS, last - first + 1);
    if (count <= 0) return;
    for (int64_t r = 0; r < strip; r += TILE_ROWS)
        backward_tile(kind, w, i0 + r, first, count, w->weights + r * KEYS, w->gradients + r * KEYS);
    add_to_keys(w, w->weights, w->grad_output, i0, strip, first, count, grad_values);
    if (similarity) add_to_keys(w, w->gradients, w->queries, i0, strip, first, count, grad_keys);
    for (int64_t r = 0; r < strip; r += group) {
        int64_t seen = last_visible(a, smaller(i0 + r + group, a->queries) - 1) - first + 1;
        int64_t keys = smaller(count, seen);
        float *grad_queries = w->grad_queries + (i0 + r) * stride;
        const float *gradients = w->gradients + r * KEYS;
        if (keys <= 0) continue;
        if (similarity)
            product_rows(gradients, KEYS, 1, w->keys, stride, keys, ones, grad_queries);
        else
            difference_gradient(kind, w->queries + (i0 + r) * stride, grad_queries, w->keys,
                                grad_keys, gradients, w->sign_scale, stride, keys);
    }
}

/* Scales the keys by a power of two that raises any difference, unless it is below 2^-126 of the
 * largest number (or of 1), to 1 or more, and overflows nothing: what vector_sign wants. */
static void scale_for_signs(Workspace *w) {
    int64_t floats = KEYS * w->stride;
    float largest = fmaxf(1.0f, fmaxf(w->largest_query, largest_magnitude(w->keys, floats)));
    w->sign_scale = ldexpf(1.0f, 126 - ilogbf(largest));
    for (int64_t d = 0; d < floats; d++) w->keys[d] *= w->sign_scale;
}

/* All strips of one query head against one key block; returns the block's part of d(lambda). */
INLINE double backward_block(const int kind, const Backward *p, Workspace *w, int64_t first,
                             float *grad_keys, float *grad_values) {
    const Arguments *a = p->a;
    double grad_lambda = 0;
    load_block(&w->head, first, w->centre, w->stride, w->keys, w->key_sums, w->values,
               w->packed_keys);
    pack_columns(w->values, w->stride, a->width, w->packed_values);
    if (kind == KIND_L1) scale_for_signs(w);
    int64_t blind = a->causal ? larger(0, first - (a->keys - a->queries)) : 0;
    for (int64_t i = blind / GRADIENT_ROWS * GRADIENT_ROWS; i < a->queries; i += STRIP_ROWS) {
        vector_store(w->lambda_sum, vector_splat(0.0f));
        backward_strip(kind, w, i, smaller(STRIP_ROWS, p->padded_rows - i), first, grad_keys,
                       grad_values);
        grad_lambda -= vector_sum(vector_load(w->lambda_sum));
    }
    return grad_lambda * a->scale;
}

static void finish_query(const Head *head, int64_t i, float *gradient, const float *unit,
                         float factor, int64_t stride) {
    const Arguments *a = head->a;
    if (a->kind == KIND_COSINE) project_row(gradient, unit, factor, stride);
    store_row(a, &a->grad_query, head->batch, head->head, i, gradient, 1.0f);
}

static void finish_head(const Backward *p, const Workspace *w, int64_t split) {
    const Arguments *a = p->a;
    int64_t bh = w->head.batch * a->heads + w->head.head, bhs = a->batch * a->heads;
    int64_t floats = a->queries * p->stride;
    if (p->splits > 1) {
        memcpy(p->partial_queries + (split * bhs + bh) * floats, w->grad_queries,
               floats * sizeof(float));
        return;
    }
    for (int64_t i = 0; i < a->queries; i++)
        finish_query(&w->head, i, w->grad_queries + i * p->stride, w->queries + i * p->stride,
                     w->query_sums[i], p->stride);
}

static void finish_keys(const Backward *p, const Workspace *w, int64_t split) {
    const Arguments *a = p->a;
    const int similarity = a->kind == KIND_DOT || a->kind == KIND_COSINE;
    int64_t b = w->head.batch, j = w->head.key_head, stride = p->stride;
    for (int64_t slot = 0; slot < p->slots; slot++) {
        int64_t first = (slot * p->splits + split) * KEYS;
        for (int64_t n = 0; n < KEYS && first + n < a->keys; n++) {
            float *gradient = w->grad_keys + (slot * KEYS + n) * stride;
            if (a->kind == KIND_COSINE) {
                float factor = load_scored_row(a, &a->key, b, j, first + n, NULL, w->keys, stride);
                project_row(gradient, w->keys, factor, stride);
            }
            store_row(a, &a->grad_key, b, j, first + n, gradient, similarity ? 1.0f : -1.0f);
            store_row(a, &a->grad_value, b, j, first + n,
                      w->grad_values + (slot * KEYS + n) * stride, 1.0f);
        }
    }
}

INLINE void backward_task(const int kind, const Backward *p, int64_t task, float *scratch) {
    const Arguments *a = p->a;
    int64_t split = task % p->splits, head = task / p->splits;
    int64_t b = head / a->key_heads, j = head % a->key_heads, group = a->heads / a->key_heads;
    Workspace w;
    lay_out(p, &w, scratch);
    memset(w.grad_keys, 0, p->slots * KEYS * p->stride * sizeof(float));
    memset(w.grad_values, 0, p->slots * KEYS * p->stride * sizeof(float));
    if (kind == KIND_L1) find_centre(a, b, j, w.centre, p->stride);
    for (int64_t h = j * group; h < (j + 1) * group; h++) {
        double grad_lambda = 0;
        w.head = make_head(a, b, h);
        load_head(&w, p->padded_rows);
        for (int64_t slot = 0; (slot * p->splits + split) * KEYS < a->keys; slot++) {
            int64_t offset = slot * KEYS * p->stride;
            grad_lambda += backward_block(kind, p, &w, (slot * p->splits + split) * KEYS,
                                          w.grad_keys + offset, w.grad_values + offset);
        }
        p->partial_lambda[(split * a->batch + b) * a->heads + h] = grad_lambda;
        finish_head(p, &w, split);
    }
    finish_keys(p, &w, split);
}

/* Second sweep, a task per (batch, query head): adds the splits' query gradients in order. */
static void sum_splits(const Backward *p, int64_t bh, float *scratch) {
    const Arguments *a = p->a;
    Head head = make_head(a, bh / a->heads, bh % a->heads);
    int64_t stride = p->stride, heads = a->batch * a->heads;
    float *unit = scratch, *gradient = scratch + stride, factor = 0;
    for (int64_t i = 0; i < a->queries; i++) {
        memset(gradient, 0, stride * sizeof(float));
        for (int64_t split = 0; split < p->splits; split++) {
            const float *part = p->partial_queries +
                                ((split * heads + bh) * a->queries + i) * stride;
            for (int64_t d = 0; d < stride; d++) gradient[d] += part[d];
        }
        if (a->kind == KIND_COSINE)
            factor = load_scored_row(a, &a->query, head.batch, head.head, i, NULL, unit, stride);
        finish_query(&head, i, gradient, unit, factor, stride);
    }
}
