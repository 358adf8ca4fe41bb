/* A matrix times a few columns: every weight is read from memory once, for all columns. The rows
 * of the matrix may also be keys, and the sum over a row their distance from a query. */

#define UNROLL _Pragma("GCC unroll 16")
#define ROW_TILE 4
#define COLUMN_TILE (LANES == 16 ? 4 : 2)
#define ALIGNMENT 16                  /* floats: the widest vector */

typedef float unaligned_vf __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

INLINE int64_t round_up(int64_t x, int64_t multiple) {
    return (x + multiple - 1) / multiple * multiple;
}
INLINE int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
INLINE int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }

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

/* One step of the sum over a row. */
INLINE vf accumulate(const int kind, vf sum, vf row, vf x) {
    vf difference = x - row;
    if (kind == KIND_L1) return sum + vector_abs(difference);
    if (kind == KIND_L2 || kind == KIND_L2SQ) return sum + difference * difference;
    return sum + row * x;
}

/* 1 / the length of a vector, from the sum of its squares. */
INLINE float inverse_norm(float squares) {
    float norm = sqrtf(squares);
    return 1.0f / (norm < SMALLEST_NORM ? SMALLEST_NORM : norm);
}

/* Where a product goes: element (column c, row r) to data[c * stride + r]. */
typedef struct {
    float *data;
    int64_t stride;
    int add;                          /* to what is there, rather than over it */
} Target;

INLINE void add_vectors(const int kind, const int rows, const int columns, const vf *row,
                        const float *x, int64_t stride, vf (*total)[4], vf *squares) {
    UNROLL for (int r = 0; r < rows; r++) {
        if (kind == KIND_COSINE) squares[r] += row[r] * row[r];
        UNROLL for (int c = 0; c < columns; c++)
            total[r][c] = accumulate(kind, total[r][c], row[r], vector_load(x + c * stride));
    }
}

/* `rows` rows of a (., width) matrix against `columns` columns; column c is the row
 * x + c * stride, aligned and padded with zeros to whole vectors. */
INLINE void tile(const int kind, const int rows, const int columns, Matrix matrix, int64_t width,
                 const float *x, int64_t stride, Target target) {
    vf total[ROW_TILE][4], squares[ROW_TILE];
    UNROLL for (int r = 0; r < rows; r++) {
        squares[r] = vector_splat(0.0f);
        UNROLL for (int c = 0; c < columns; c++) total[r][c] = vector_splat(0.0f);
    }
    vf row[ROW_TILE];
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        UNROLL for (int r = 0; r < rows; r++) row[r] = load_any(matrix.data + r * width + i);
        add_vectors(kind, rows, columns, row, x + i, stride, total, squares);
    }
    if (i < width) {
        UNROLL for (int r = 0; r < rows; r++)
            row[r] = load_part(matrix.data + r * width + i, width - i);
        add_vectors(kind, rows, columns, row, x + i, stride, total, squares);
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++) {
            float *out = target.data + c * target.stride + r, sum = sum_lanes(total[r][c]);
            if (kind == KIND_COSINE) sum *= inverse_norm(sum_lanes(squares[r]));
            if (matrix.bias) sum += matrix.bias[r];
            *out = target.add ? *out + sum : sum;
        }
}

/* The matrix from row r on. */
INLINE Matrix rows_from(Matrix matrix, int64_t r, int64_t width) {
    return (Matrix){matrix.data + r * width, matrix.bias ? matrix.bias + r : NULL};
}

INLINE void product_rows(const int rows, Matrix matrix, int64_t width, const float *x,
                         int64_t stride, int64_t columns, Target target) {
    for (; columns >= COLUMN_TILE; columns -= COLUMN_TILE) {
        tile(KIND_DOT, rows, COLUMN_TILE, matrix, width, x, stride, target);
        x += COLUMN_TILE * stride;
        target.data += COLUMN_TILE * target.stride;
    }
    switch (columns) {
    case 3: tile(KIND_DOT, rows, 3, matrix, width, x, stride, target); break;
    case 2: tile(KIND_DOT, rows, 2, matrix, width, x, stride, target); break;
    case 1: tile(KIND_DOT, rows, 1, matrix, width, x, stride, target); break;
    }
}

/* Rows `first` to `first + rows` of a matrix times all columns. */
static void product(Matrix matrix, int64_t first, int64_t rows, int64_t width, const float *x,
                    int64_t stride, int64_t columns, Target target) {
    matrix = rows_from(matrix, first, width);
    int64_t r = 0;
    for (; r + ROW_TILE <= rows; r += ROW_TILE, target.data += ROW_TILE)
        product_rows(ROW_TILE, rows_from(matrix, r, width), width, x, stride, columns, target);
    for (; r < rows; r++, target.data++)
        product_rows(1, rows_from(matrix, r, width), width, x, stride, columns, target);
}

/* scores[i] of keys[i] (n, width) against a query: the product with it (of the unit vector of the
 * key for the cosine), or the sum that makes the distance. */
INLINE void score_keys(const int kind, const float *keys, int64_t n, int64_t width,
                       const float *query, float *scores) {
    int64_t i = 0;
    for (; i + ROW_TILE <= n; i += ROW_TILE)
        tile(kind, ROW_TILE, 1, (Matrix){keys + i * width, NULL}, width, query, 0,
             (Target){scores + i, 0, 0});
    for (; i < n; i++)
        tile(kind, 1, 1, (Matrix){keys + i * width, NULL}, width, query, 0,
             (Target){scores + i, 0, 0});
}

static void score_any(int kind, const float *keys, int64_t n, int64_t width, const float *query,
                      float *scores) {
    switch (kind) {
    case KIND_DOT: score_keys(KIND_DOT, keys, n, width, query, scores); break;
    case KIND_L1: score_keys(KIND_L1, keys, n, width, query, scores); break;
    case KIND_COSINE: score_keys(KIND_COSINE, keys, n, width, query, scores); break;
    default: score_keys(KIND_L2SQ, keys, n, width, query, scores);
    }
}
