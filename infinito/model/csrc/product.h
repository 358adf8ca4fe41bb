/* A matrix times a few columns: every weight is read from memory once, for all columns. */

#define UNROLL _Pragma("GCC unroll 16")
#define ROW_TILE 4
#define COLUMN_TILE (LANES == 16 ? 4 : 2)
#define ALIGNMENT 16                  /* floats: the widest vector */

typedef float unaligned_vf __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

INLINE int64_t round_up(int64_t x, int64_t multiple) {
    return (x + multiple - 1) / multiple * multiple;
}
INLINE int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }

INLINE vf load_any(const float *p) { return *(const unaligned_vf *)p; }

/* The first n < LANES numbers, then zeros; reads nothing behind them. */
INLINE vf load_part(const float *p, int64_t n) {
    float lanes[LANES] __attribute__((aligned(64))) = {0};
    memcpy(lanes, p, n * sizeof(float));
    return vector_load(lanes);
}

/* Sum of the lanes, by quads: shorter than adding them in turn, and rounded less. */
INLINE float sum_lanes(vf x) {
    typedef float quad __attribute__((vector_size(16)));
    quad quads[LANES / 4], sum;
    memcpy(quads, &x, sizeof x);
    sum = quads[0];
    UNROLL for (int i = 1; i < LANES / 4; i++) sum += quads[i];
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* Where a product goes: element (column c, row r) to data[c * stride + r]. */
typedef struct {
    float *data;
    int64_t stride;
    int add;                          /* to what is there, rather than over it */
} Target;

/* `rows` rows of a (., width) matrix times `columns` columns; column c is the row x + c * stride,
 * aligned and padded with zeros to whole vectors. */
INLINE void product_tile(const int rows, const int columns, const float *matrix, int64_t width,
                         const float *x, int64_t stride, Target target) {
    vf total[ROW_TILE][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++) total[r][c] = vector_splat(0.0f);
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES)
        UNROLL for (int r = 0; r < rows; r++) {
            vf weight = load_any(matrix + r * width + i);
            UNROLL for (int c = 0; c < columns; c++)
                total[r][c] += weight * vector_load(x + c * stride + i);
        }
    if (i < width)
        UNROLL for (int r = 0; r < rows; r++) {
            vf weight = load_part(matrix + r * width + i, width - i);
            UNROLL for (int c = 0; c < columns; c++)
                total[r][c] += weight * vector_load(x + c * stride + i);
        }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++) {
            float *out = target.data + c * target.stride + r, sum = sum_lanes(total[r][c]);
            *out = target.add ? *out + sum : sum;
        }
}

INLINE void product_rows(const int rows, const float *matrix, int64_t width, const float *x,
                         int64_t stride, int64_t columns, Target target) {
    for (; columns >= COLUMN_TILE; columns -= COLUMN_TILE) {
        product_tile(rows, COLUMN_TILE, matrix, width, x, stride, target);
        x += COLUMN_TILE * stride;
        target.data += COLUMN_TILE * target.stride;
    }
    switch (columns) {
    case 3: product_tile(rows, 3, matrix, width, x, stride, target); break;
    case 2: product_tile(rows, 2, matrix, width, x, stride, target); break;
    case 1: product_tile(rows, 1, matrix, width, x, stride, target); break;
    }
}

/* All `rows` rows of a matrix times all columns. */
static void product(const float *matrix, int64_t rows, int64_t width, const float *x,
                    int64_t stride, int64_t columns, Target target) {
    int64_t r = 0;
    for (; r + ROW_TILE <= rows; r += ROW_TILE, target.data += ROW_TILE)
        product_rows(ROW_TILE, matrix + r * width, width, x, stride, columns, target);
    for (; r < rows; r++, target.data++)
        product_rows(1, matrix + r * width, width, x, stride, columns, target);
}
