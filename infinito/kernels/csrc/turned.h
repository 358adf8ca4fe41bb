/* A matrix times many columns, which lie in the lanes of a vector: a weight meets all of them at
 * once, and no sum has to be gathered from lanes. Every sum is taken in the order of `tile`, chain
 * by chain: chain j has the elements j, j + LANES, ... So a row of activations gives the same bits
 * in any company. Included by product.h. */

#define FEWEST_TURNED 9               /* columns, for a vector of them to be worth while */
#define MOST_TURNED_WIDTH 2048        /* of rows that are made float32 in one go */
#define CHAINS 4                      /* at a time: they make a quad of sum_quads */

/* What a thread remembers of the columns that it has turned last. */
typedef struct {
    int64_t phase;                    /* in which; the numbers of x are others in the next */
    int coded;                        /* rows that are multiplied have codes behind them */
    const float *x;                   /* or null: none yet */
    int64_t columns, codes;           /* codes: whether it was them that were turned */
    float *numbers;                   /* (blocks, width, LANES); room for all rows of the step */
} Turned;

/* How many of some columns are turned: whole vectors, and a part of one if it is no small part.
 * None where a multiplication takes no broadcast weight from memory: that was not faster. */
INLINE int64_t turned_columns(int64_t columns, int64_t width) {
    int64_t rest = columns % LANES;
    if (LANES < 16 || width > MOST_TURNED_WIDTH) return 0;
    return rest >= FEWEST_TURNED ? columns : columns - rest;
}

/* Four rows of four, columns to lanes. */
INLINE void turn_quads(quad *q) {
    quad low01 = __builtin_shuffle(q[0], q[1], (quad_mask){0, 4, 1, 5});
    quad low23 = __builtin_shuffle(q[2], q[3], (quad_mask){0, 4, 1, 5});
    quad high01 = __builtin_shuffle(q[0], q[1], (quad_mask){2, 6, 3, 7});
    quad high23 = __builtin_shuffle(q[2], q[3], (quad_mask){2, 6, 3, 7});
    q[0] = __builtin_shuffle(low01, low23, (quad_mask){0, 1, 4, 5});
    q[1] = __builtin_shuffle(low01, low23, (quad_mask){2, 3, 6, 7});
    q[2] = __builtin_shuffle(high01, high23, (quad_mask){0, 1, 4, 5});
    q[3] = __builtin_shuffle(high01, high23, (quad_mask){2, 3, 6, 7});
}

/* Up to LANES rows of numbers of four bytes, to (width, LANES); zeros for rows that are not there.
 * The width is rounded up to a multiple of four. */
static void turn_rows(const float *x, int64_t stride, int64_t rows, int64_t width, float *out) {
    for (int64_t i = 0; i < width; i += 4)
        for (int64_t c = 0; c < LANES; c += 4) {
            quad q[4];
            UNROLL for (int k = 0; k < 4; k++) {
                q[k] = (quad){0};
                if (c + k < rows) q[k] = *(const unaligned_quad *)(x + (c + k) * stride + i);
            }
            turn_quads(q);
            UNROLL for (int k = 0; k < 4; k++) *(quad *)(out + (i + k) * LANES + c) = q[k];
        }
}

/* A tile's sums, (ROW_TILE, columns), to their place. */
INLINE void finish_turned(const int stored, Matrix matrix, const vf *sum, int64_t columns,
                          Target target) {
    quad factor = {1, 1, 1, 1};
    if (stored == STORED_INT8) factor = *(const unaligned_quad *)matrix.scales;
    for (int64_t c = 0; c < columns; c += 4) {
        quad q[4];
        UNROLL for (int r = 0; r < 4; r++) q[r] = ((const quad *)&sum[r])[c / 4];
        turn_quads(q);
        UNROLL for (int k = 0; k < 4; k++) {
            if (c + k >= columns) return;
            put_quad(stored == STORED_INT8, matrix, q[k], factor, target.add,
                     target.data + (c + k) * target.stride);
        }
    }
}

/* Sums of ROW_TILE rows of float32 weights, `step` apart, times LANES columns. What follows the
 * tile as it is stored, from `ahead` on, is asked for meanwhile, `bytes` of it with each turn. */
INLINE void turned_tile(const float *weights, int64_t step, int64_t width, const float *x,
                        const char *ahead, int64_t bytes, vf *result) {
    vf sum[CHAINS][ROW_TILE], part[CHAINS][ROW_TILE];
    UNROLL for (int j = 0; j < CHAINS; j++)
        UNROLL for (int r = 0; r < ROW_TILE; r++) sum[j][r] = vector_splat(0.0f);
    for (int first = 0; first < LANES; first += CHAINS) {
        UNROLL for (int j = 0; j < CHAINS; j++)
            UNROLL for (int r = 0; r < ROW_TILE; r++) part[j][r] = vector_splat(0.0f);
        int64_t i = first;
        for (; i + CHAINS <= width; i += LANES, ahead += bytes) {
            __builtin_prefetch(ahead);
            UNROLL for (int j = 0; j < CHAINS; j++) {
                vf column = vector_load(x + (i + j) * LANES);
                UNROLL for (int r = 0; r < ROW_TILE; r++)
                    part[j][r] += weights[r * step + i + j] * column;
            }
        }
        UNROLL for (int j = 0; j < CHAINS - 1; j++)
            if (i + j < width)
                UNROLL for (int r = 0; r < ROW_TILE; r++)
                    part[j][r] += weights[r * step + i + j] * vector_load(x + (i + j) * LANES);
        UNROLL for (int j = 0; j < CHAINS; j++)
            UNROLL for (int r = 0; r < ROW_TILE; r++) sum[j][r] += part[j][r];
    }
    UNROLL for (int r = 0; r < ROW_TILE; r++)
        result[r] = (sum[0][r] + sum[2][r]) + (sum[1][r] + sum[3][r]);
}

/* ROW_TILE rows as float32, `step` apart. */
INLINE void widen(const int stored, Matrix matrix, int64_t width, int64_t step, float *wide) {
    const char *place = matrix.data;
    for (int r = 0; r < ROW_TILE; r++, place += width * bytes_of(stored))
        for (int64_t i = 0; i < width; i += LANES) {
            const char *from = place + i * bytes_of(stored);
            vf row = width - i < LANES ? load_part(stored, from, width - i)
                                       : load_weights(stored, from);
            if (stored == SCALED_INT8) row *= matrix.scales[r * matrix.groups + i / matrix.group];
            vector_store(wide + r * step + i, row);
        }
}

/* Whole tiles of rows times columns that are turned. */
INLINE void product_turned(const int stored, Matrix matrix, int64_t rows, int64_t width,
                           const float *turned, int64_t columns, Target target) {
    float wide[ROW_TILE * MOST_TURNED_WIDTH] __attribute__((aligned(LANES * 4)));
    int64_t step = stored == STORED_FLOAT32 ? width : round_up(width, LANES);
    vf sum[ROW_TILE];
    for (; rows >= ROW_TILE; rows -= ROW_TILE, target.data += ROW_TILE) {
        const float *weights = stored == STORED_FLOAT32 ? matrix.data : wide;
        if (stored != STORED_FLOAT32) widen(stored, matrix, width, step, wide);
        for (int64_t c = 0; c < columns; c += LANES) {
            turned_tile(weights, step, width, turned + c * round_up(width, 4),
                        (const char *)matrix.data + ROW_TILE * width * bytes_of(stored),
                        LANES * bytes_of(stored), sum);
            finish_turned(stored, matrix, sum, smaller(LANES, columns - c),
                          (Target){target.data + c * target.stride, target.stride, target.add});
        }
        matrix = rows_from(stored, matrix, ROW_TILE, width);
    }
}

/* The columns of `x`, turned; those that this phase has turned already, as they are. */
static const float *turn_columns(Turned *t, const float *x, int64_t stride, int64_t columns,
                                 int64_t width) {
    if (t->x == x && t->columns == columns && !t->codes) return t->numbers;
    for (int64_t c = 0; c < columns; c += LANES)
        turn_rows(x + c * stride, stride, smaller(LANES, columns - c), width,
                  t->numbers + c * round_up(width, 4));
    t->x = x, t->columns = columns, t->codes = 0;
    return t->numbers;
}
