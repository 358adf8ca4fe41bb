/* Forward pass. A task is a chunk of query rows of one head; it walks over the key blocks, and
 * for each block over its row tiles: scores, online softmax, product with the values. */

#define CHUNK_ROWS 1024
#define GROUP_ROWS 16

typedef struct {
    Head head;
    int64_t first_row, rows, stride;
    float *queries, *outputs;       /* (rows, stride) */
    float *largest, *query_sums;    /* (rows,) running maximum; see load_scored_row */
    float *totals;                  /* (rows, LANES) partial sums of the weights */
    float *keys, *values;           /* (KEYS, stride) */
    float *packed;                  /* (width, KEYS) */
    float *key_sums, *centre;
} Chunk;

static int64_t chunk_rows(const Arguments *a) {
    int64_t rows = CHUNK_ROWS, heads = a->batch * a->heads;
    while (rows > 32 && heads * ((a->queries + rows - 1) / rows) < 4 * a->threads) rows /= 2;
    return smaller(rows, round_up(a->queries, TILE_ROWS));
}

static int64_t forward_scratch(const Arguments *a) {
    int64_t stride = round_up(a->width, ROW_ALIGNMENT), rows = chunk_rows(a);
    return rows * (2 * stride + LANES) + 2 * round_up(rows, 16) + 3 * KEYS * stride + KEYS +
           stride;
}

static Chunk make_chunk(const Arguments *a, int64_t task, float *scratch) {
    int64_t heads = a->batch * a->heads, most = chunk_rows(a);
    int64_t chunks = (a->queries + most - 1) / most;
    int64_t index = chunks - 1 - task / heads, bh = task % heads;  /* longest first */
    Chunk c = {.head = make_head(a, bh / a->heads, bh % a->heads), .first_row = index * most};
    c.stride = round_up(a->width, ROW_ALIGNMENT);
    c.rows = smaller(most, a->queries - c.first_row);
    c.queries = scratch;
    c.outputs = c.queries + most * c.stride;
    c.totals = c.outputs + most * c.stride;
    c.largest = c.totals + most * LANES;
    c.query_sums = c.largest + round_up(most, 16);
    c.keys = c.query_sums + round_up(most, 16);
    c.values = c.keys + KEYS * c.stride;
    c.packed = c.values + KEYS * c.stride;
    c.key_sums = c.packed + KEYS * c.stride;
    c.centre = c.key_sums + KEYS;
    return c;
}

static void load_chunk(const Chunk *c) {
    const Arguments *a = c->head.a;
    int64_t tiled = round_up(c->rows, TILE_ROWS);
    if (a->kind == KIND_L1)
        find_centre(a, c->head.batch, c->head.key_head, c->centre, c->stride);
    memset(c->outputs, 0, tiled * c->stride * sizeof(float));
    memset(c->totals, 0, tiled * LANES * sizeof(float));
    for (int64_t r = 0; r < tiled; r++) {
        c->largest[r] = MASKED;
        int64_t row = c->first_row + smaller(r, c->rows - 1);  /* the last row pads the tile */
        c->query_sums[r] = load_scored_row(a, &a->query, c->head.batch, c->head.head, row,
                                           c->centre, c->queries + r * c->stride, c->stride);
    }
}

/* Keys are scored rows, values plain ones; rows past the last key are zero. */
static void load_block(const Head *head, int64_t first, const float *centre, int64_t stride,
                       float *keys, float *key_sums, float *values, float *packed) {
    const Arguments *a = head->a;
    int64_t count = smaller(KEYS, a->keys - first), b = head->batch, j = head->key_head;
    for (int64_t n = 0; n < count; n++) {
        key_sums[n] = load_scored_row(a, &a->key, b, j, first + n, centre, keys + n * stride,
                                      stride);
        load_row(a, &a->value, b, j, first + n, values + n * stride, stride);
    }
    for (int64_t n = count; n < KEYS; n++) {
        key_sums[n] = 0;
        memset(keys + n * stride, 0, stride * sizeof(float));
        memset(values + n * stride, 0, stride * sizeof(float));
    }
    pack_columns(keys, stride, a->width, packed);
}

/* Turns raw sums into logits, in place, and returns the new maximum of the row. */
INLINE float finish_logits(const int kind, Row row, const float *key_sums, float query_sum,
                           float maximum, const int count, float *sums) {
    vf largest = vector_splat(maximum), unused;
    UNROLL for (int n = 0; n < count; n += LANES) {
        vf distance = distance_of(kind, vector_load(sums + n), query_sum, key_sums + n, &unused);
        vf logits = logits_of(row, distance, n);
        vector_store(sums + n, logits);
        largest = vector_max(largest, logits);
    }
    return vector_reduce_max(largest);
}

/* Turns logits into unnormalised weights, in place, after dropout; sums them before it. */
INLINE vf finish_weights(Row row, float maximum, vf total, const int count, float *logits) {
    vf largest = vector_splat(maximum);
    UNROLL for (int n = 0; n < count; n += LANES) {
        vf weights = vector_exp2(vector_load(logits + n) - largest);
        total += weights;
        if (row.threshold) weights = (vf)((vi)weights & dropout_keeps(row, n));
        vector_store(logits + n, weights);
    }
    return total;
}

/* GROUP_ROWS rows against one key block, phase by phase: the chains of maximum and exponential of
 * one row are long, and only other rows can fill the processor meanwhile. */
INLINE void forward_group(const int kind, const Chunk *c, int64_t r0, int64_t first) {
    const Arguments *a = c->head.a;
    float rows[GROUP_ROWS * KEYS] __attribute__((aligned(64)));
    float factors[GROUP_ROWS] __attribute__((aligned(64))) = {0};
    int counts[GROUP_ROWS], end = (int)smaller(GROUP_ROWS, round_up(c->rows - r0, TILE_ROWS));
    for (int r = 0; r < end; r += TILE_ROWS) {
        int64_t last = last_visible(a, c->first_row + smaller(r0 + r + TILE_ROWS, c->rows) - 1);
        counts[r] = counts[r + 1] = counts[r + 2] = counts[r + 3] =
            (int)smaller(KEYS, last - first + 1);
        score_block(kind, c->queries + (r0 + r) * c->stride, c->stride, c->packed, a->width,
                    counts[r], rows + r * KEYS);
    }
    for (int r = 0; r < end; r++) {
        Row row = make_row(&c->head, c->first_row + r0 + r, first, counts[r]);
        float *maximum = c->largest + r0 + r, before = *maximum, sum = c->query_sums[r0 + r];
        float *sums = rows + r * KEYS;
        if (counts[r] == KEYS)
            *maximum = finish_logits(kind, row, c->key_sums, sum, before, KEYS, sums);
        else *maximum = finish_logits(kind, row, c->key_sums, sum, before, counts[r], sums);
        factors[r] = before - *maximum;
    }
    for (int r = 0; r < GROUP_ROWS; r += LANES)
        vector_store(factors + r, vector_exp2(vector_load(factors + r)));
    for (int r = 0; r < end; r++) {
        Row row = make_row(&c->head, c->first_row + r0 + r, first, counts[r]);
        float *totals = c->totals + (r0 + r) * LANES, maximum = c->largest[r0 + r];
        vf total = vector_load(totals) * factors[r];
        if (counts[r] == KEYS) total = finish_weights(row, maximum, total, KEYS, rows + r * KEYS);
        else total = finish_weights(row, maximum, total, counts[r], rows + r * KEYS);
        vector_store(totals, total);
    }
    for (int r = 0; r < end; r += TILE_ROWS)
        product_rows(rows + r * KEYS, KEYS, 1, c->values, c->stride, counts[r], factors + r,
                     c->outputs + (r0 + r) * c->stride);
}

static void store_chunk(const Chunk *c) {
    const Arguments *a = c->head.a;
    int64_t bh = c->head.batch * a->heads + c->head.head;
    float keep_scale = a->drop_threshold ? a->keep_scale : 1.0f;
    for (int64_t r = 0; r < c->rows; r++) {
        float total = vector_sum(vector_load(c->totals + r * LANES));
        store_row(a, &a->output, c->head.batch, c->head.head, c->first_row + r,
                  c->outputs + r * c->stride, keep_scale / total);
        a->logsumexp[bh * a->queries + c->first_row + r] = c->largest[r] + log2f(total);
    }
}

INLINE void forward_task(const int kind, const Arguments *a, int64_t task, float *scratch) {
    Chunk c = make_chunk(a, task, scratch);
    load_chunk(&c);
    int64_t end = last_visible(a, c.first_row + c.rows - 1) + 1;
    for (int64_t first = 0; first < end; first += KEYS) {
        load_block(&c.head, first, c.centre, c.stride, c.keys, c.key_sums, c.values, c.packed);
        int64_t hidden = a->causal ? first - (a->keys - a->queries) - c.first_row : 0;
        int64_t start = larger(0, hidden) / TILE_ROWS * TILE_ROWS;
        for (int64_t r = start; r < c.rows; r += GROUP_ROWS) forward_group(kind, &c, r, first);
    }
    store_chunk(&c);
}
