/* The machine's own floor, for the benchmark: the inner loops with everything in registers. Each
 * returns the number of elements (one query, one key, one d) that it handled. */

#define PEAK_CHAINS (TILE_ROWS * TILE_VECTORS < 12 ? TILE_ROWS * TILE_VECTORS : 12)

/* Makes the compiler believe that x has changed, and that it is needed. */
#define TOUCH(x) __asm__ volatile("" : VECTOR_REGISTER(x))

/* max and fma: a score of L1. */
static int64_t peak_score(int64_t rounds) {
    vf total[PEAK_CHAINS], query = vector_splat(0.5f), key = vector_splat(0.25f);
    const vf one = hidden_one();
    UNROLL for (int c = 0; c < PEAK_CHAINS; c++) total[c] = vector_splat(0.0f);
    for (int64_t n = 0; n < rounds; n++)
        UNROLL for (int c = 0; c < PEAK_CHAINS; c++) {
            TOUCH(query);
            total[c] = accumulate(KIND_L1, total[c], query, key, one);
        }
    UNROLL for (int c = 0; c < PEAK_CHAINS; c++) TOUCH(total[c]);
    return rounds * PEAK_CHAINS * LANES;
}

/* Difference, sign and two fma: the gradients of an L1 score. */
static int64_t peak_gradient(int64_t rounds) {
    vf total[GRADIENT_ROWS], query = vector_splat(0.5f), key = vector_splat(0.25f);
    vf weight = hidden_one();
    UNROLL for (int r = 0; r < GRADIENT_ROWS; r++) total[r] = vector_splat(0.0f);
    for (int64_t n = 0; n < rounds; n++) {
        vf column = vector_splat(0.0f);
        UNROLL for (int r = 0; r < GRADIENT_ROWS; r++) {
            TOUCH(query);
            vf direction = vector_sign(query - key);
            total[r] += weight * direction;
            column += weight * direction;
        }
        TOUCH(column);
    }
    UNROLL for (int r = 0; r < GRADIENT_ROWS; r++) TOUCH(total[r]);
    return rounds * GRADIENT_ROWS * LANES;
}
