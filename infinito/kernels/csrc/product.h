/* A matrix times a few columns: every weight is read from memory once, for all columns. The rows
 * of the matrix may also be keys, and the sum over a row their distance from a query. */

#define UNROLL _Pragma("GCC unroll 16")
#define ROW_TILE 4
#define COLUMN_TILE (LANES == 16 ? 4 : 2)
#define QUERY_TILE COLUMN_TILE
#define PREFETCH 8192                 /* bytes ahead: what follows the rows of a tile follows it
                                         in memory, which the processor does not guess */
#define ALIGNMENT 16                  /* floats: the widest vector */

typedef float unaligned_vf __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

INLINE int64_t round_up(int64_t x, int64_t multiple) {
    return (x + multiple - 1) / multiple * multiple;
}
INLINE int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
INLINE int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }

INLINE vf load_any(const float *p) { return *(const unaligned_vf *)p; }

/* How a tile finds its weights: as they are stored, and int8 with its scales or without. */
enum { SCALED_INT8 = STORED_INT8 + 1 };

INLINE int how_stored(Matrix matrix, int64_t width) {
    return matrix.stored == STORED_INT8 && matrix.group < width ? SCALED_INT8 : matrix.stored;
}

INLINE int64_t bytes_of(const int stored) {
    return stored == STORED_FLOAT32 ? 4 : stored == STORED_BFLOAT16 ? 2 : 1;
}

INLINE vf load_weights(const int stored, const void *p) {
    if (stored == STORED_FLOAT32) return load_any(p);
    if (stored == STORED_BFLOAT16) return vector_from_halves(p);
    return vector_from_bytes(p);
}

/* The first n < LANES weights, then zeros; reads nothing behind them. */
INLINE vf load_part(const int stored, const void *p, int64_t n) {
    float lanes[LANES] = {0};
    memcpy(lanes, p, n * bytes_of(stored));
    return load_weights(stored, lanes);
}

typedef float quad __attribute__((vector_size(16)));
typedef float unaligned_quad __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t quad_mask __attribute__((vector_size(16)));

INLINE quad sum_quads(vf x) {
    quad quads[LANES / 4], sum;
    memcpy(quads, &x, sizeof x);
    sum = quads[0];
    UNROLL for (int i = 1; i < LANES / 4; i++) sum += quads[i];
    return sum;
}

/* Sum of the lanes, by quads: shorter than adding them in turn, and rounded less. */
INLINE float sum_lanes(vf x) {
    quad sum = sum_quads(x);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* The same of ROW_TILE vectors, side by side and to the same bits. */
INLINE quad sum_lanes_of_tile(const vf *x, int64_t stride) {
    quad a = sum_quads(x[0]), b = sum_quads(x[stride]);
    quad c = sum_quads(x[2 * stride]), d = sum_quads(x[3 * stride]);
    quad ab = __builtin_shuffle(a, b, (quad_mask){0, 4, 1, 5}) +
              __builtin_shuffle(a, b, (quad_mask){2, 6, 3, 7});
    quad cd = __builtin_shuffle(c, d, (quad_mask){0, 4, 1, 5}) +
              __builtin_shuffle(c, d, (quad_mask){2, 6, 3, 7});
    return __builtin_shuffle(ab, cd, (quad_mask){0, 1, 4, 5}) +
           __builtin_shuffle(ab, cd, (quad_mask){2, 3, 6, 7});
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

/* The matrix from row r on. */
INLINE Matrix rows_from(const int stored, Matrix matrix, int64_t r, int64_t width) {
    matrix.data = (const char *)matrix.data + r * width * bytes_of(stored);
    if (stored >= STORED_INT8) matrix.scales += r * matrix.groups;
    if (matrix.bias) matrix.bias += r;
    return matrix;
}

/* The first n <= LANES weights of `rows` rows, then zeros. What lies `ahead` bytes from them, if
 * that is not 0, is asked for. */
INLINE void load_rows(const int stored, const int rows, const char *place, int64_t width, int64_t n,
                      const vf *scale, int64_t ahead, vf *row) {
    UNROLL for (int r = 0; r < rows; r++, place += width * bytes_of(stored)) {
        if (ahead) __builtin_prefetch(place + ahead);
        row[r] = n == LANES ? load_weights(stored, place) : load_part(stored, place, n);
        if (stored == SCALED_INT8) row[r] *= scale[r];
    }
}

/* The sums of four rows, to their place. Scaled and then added to, in two roundings everywhere:
 * the compiler may make one of them in one kind of tile and not in another. */
INLINE void put_quad(const int scaled, Matrix matrix, quad sum, quad factor, int add, float *place) {
    unaligned_quad *out = (unaligned_quad *)place;
    if (scaled) sum *= factor;
    __asm__("" : VECTOR_REGISTER(sum));
    if (matrix.bias) sum += *(const unaligned_quad *)matrix.bias;
    if (add) sum += *out;
    *out = sum;
}

/* The sums over the rows of a tile, to their place. */
INLINE void finish_tile(const int kind, const int stored, const int rows, const int columns,
                        Matrix matrix, vf (*total)[4], const vf *squares, Target target) {
    if (rows == ROW_TILE) {
        quad factor = {1, 1, 1, 1};
        if (kind == KIND_COSINE) {
            quad norm = sum_lanes_of_tile(squares, 1);
            UNROLL for (int r = 0; r < ROW_TILE; r++) factor[r] = inverse_norm(norm[r]);
        }
        if (stored == STORED_INT8) factor = *(const unaligned_quad *)matrix.scales;
        UNROLL for (int c = 0; c < columns; c++)
            put_quad(kind == KIND_COSINE || stored == STORED_INT8, matrix,
                     sum_lanes_of_tile(&total[0][c], 4), factor, target.add,
                     target.data + c * target.stride);
        return;
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++) {
            float *out = target.data + c * target.stride + r, sum = sum_lanes(total[r][c]);
            if (kind == KIND_COSINE) sum *= inverse_norm(sum_lanes(squares[r]));
            if (stored == STORED_INT8) sum *= matrix.scales[r];
            if (matrix.bias) sum += matrix.bias[r];
            *out = target.add ? *out + sum : sum;
        }
}

/* `rows` rows of a (., width) matrix against `columns` columns; column c is the row
 * x + c * stride, aligned and padded with zeros to whole vectors. */
INLINE void tile(const int kind, const int stored, const int rows, const int columns,
                 Matrix matrix, int64_t width, const float *x, int64_t stride, int64_t ahead,
                 Target target) {
    vf total[ROW_TILE][4], squares[ROW_TILE], row[ROW_TILE], scale[ROW_TILE];
    const char *data = matrix.data;
    UNROLL for (int r = 0; r < rows; r++) {
        squares[r] = vector_splat(0.0f);
        UNROLL for (int c = 0; c < columns; c++) total[r][c] = vector_splat(0.0f);
    }
    int64_t group = stored == SCALED_INT8 ? matrix.group : width, i = 0;
    for (int64_t g = 0; i < width; g++) {
        int64_t end = smaller(i + group, width);
        if (stored == SCALED_INT8)
            UNROLL for (int r = 0; r < rows; r++)
                scale[r] = vector_splat(matrix.scales[r * matrix.groups + g]);
        for (; i + LANES <= end; i += LANES) {
            load_rows(stored, rows, data + i * bytes_of(stored), width, LANES, scale, ahead, row);
            add_vectors(kind, rows, columns, row, x + i, stride, total, squares);
        }
        if (i < end) {
            load_rows(stored, rows, data + i * bytes_of(stored), width, end - i, scale, 0, row);
            add_vectors(kind, rows, columns, row, x + i, stride, total, squares);
            i = end;
        }
    }
    finish_tile(kind, stored, rows, columns, matrix, total, squares, target);
}

/* ROW_TILE rows times all columns. */
INLINE void product_rows(const int stored, Matrix matrix, int64_t width, const float *x,
                         int64_t stride, int64_t columns, Target target) {
    for (; columns >= COLUMN_TILE; columns -= COLUMN_TILE) {
        tile(KIND_DOT, stored, ROW_TILE, COLUMN_TILE, matrix, width, x, stride, 0, target);
        x += COLUMN_TILE * stride;
        target.data += COLUMN_TILE * target.stride;
    }
    switch (columns) {
    case 3: tile(KIND_DOT, stored, ROW_TILE, 3, matrix, width, x, stride, 0, target); break;
    case 2: tile(KIND_DOT, stored, ROW_TILE, 2, matrix, width, x, stride, 0, target); break;
    case 1: tile(KIND_DOT, stored, ROW_TILE, 1, matrix, width, x, stride, PREFETCH, target); break;
    }
}

INLINE void product_of(const int stored, Matrix matrix, int64_t first, int64_t rows, int64_t width,
                       const float *x, int64_t stride, int64_t columns, Target target) {
    matrix = rows_from(stored, matrix, first, width);
    for (; rows >= ROW_TILE; rows -= ROW_TILE, target.data += ROW_TILE) {
        product_rows(stored, matrix, width, x, stride, columns, target);
        matrix = rows_from(stored, matrix, ROW_TILE, width);
    }
    for (; rows > 0; rows--, target.data++) {
        Target one = target;
        for (int64_t c = 0; c < columns; c++, one.data += one.stride)
            tile(KIND_DOT, stored, 1, 1, matrix, width, x + c * stride, stride, 0, one);
        matrix = rows_from(stored, matrix, 1, width);
    }
}

#include "turned.h"
#include "codes.h"

static void product_by_rows(int coded, Matrix matrix, int64_t first, int64_t rows, int64_t width,
                            const float *x, int64_t stride, int64_t columns, Target target) {
    if (coded) {
        product_of_codes(matrix, first, rows, width, x, stride, columns, target);
        return;
    }
    switch (how_stored(matrix, width)) {
#define CASE(STORED) \
    case STORED: \
        product_of(STORED, matrix, first, rows, width, x, stride, columns, target); \
        break;
        CASE(STORED_FLOAT32) CASE(STORED_BFLOAT16) CASE(STORED_INT8) CASE(SCALED_INT8)
#undef CASE
    }
}

/* Of a multiple of ROW_TILE rows. */
static void product_by_columns(int coded, Turned *t, Matrix matrix, int64_t first, int64_t rows,
                               int64_t width, const float *x, int64_t stride, int64_t columns,
                               Target target) {
    int stored = how_stored(matrix, width);
    matrix = rows_from(stored, matrix, first, width);
    if (coded) {
        product_of_turned_codes(matrix, rows, width,
                                turn_codes(t, x, stride, columns, width), columns, target);
        return;
    }
    x = turn_columns(t, x, stride, columns, width);
    switch (stored) {
#define CASE(STORED) \
    case STORED: product_turned(STORED, matrix, rows, width, x, columns, target); break;
        CASE(STORED_FLOAT32) CASE(STORED_BFLOAT16) CASE(STORED_INT8) CASE(SCALED_INT8)
#undef CASE
    }
}

/* Rows `first` to `first + rows` of a matrix times all columns. */
__attribute__((noclone, noinline))
static void product(Turned *t, Matrix matrix, int64_t first, int64_t rows, int64_t width,
                    const float *x, int64_t stride, int64_t columns, Target target) {
    int coded = t->coded && matrix.stored == STORED_INT8 && matrix.group == GROUP;
    int64_t turned = turned_columns(columns, width), tiles = rows - rows % ROW_TILE;
    if (turned && tiles) {
        product_by_columns(coded, t, matrix, first, tiles, width, x, stride, turned, target);
        product_by_rows(coded, matrix, first + tiles, rows - tiles, width, x, stride, turned,
                        (Target){target.data + tiles, target.stride, target.add});
        target.data += turned * target.stride;
        columns -= turned;
        x += turned * stride;
    }
    if (columns) product_by_rows(coded, matrix, first, rows, width, x, stride, columns, target);
}

/* One row of a matrix as float32. */
static void read_row(Matrix matrix, int64_t r, int64_t width, float *out) {
    for (int64_t i = 0; i < width; i++) {
        int64_t place = r * width + i;
        if (matrix.stored == STORED_INT8)
            out[i] = (float)((const int8_t *)matrix.data)[place] *
                     matrix.scales[r * matrix.groups + i / matrix.group];
        else if (matrix.stored == STORED_BFLOAT16) {
            uint32_t bits = (uint32_t)((const uint16_t *)matrix.data)[place] << 16;
            memcpy(out + i, &bits, sizeof bits);
        } else out[i] = ((const float *)matrix.data)[place];
    }
}

/* Scores of keys (n, width) against queries, the columns: the product with them (of the unit
 * vector of the key for the cosine), or the sum that makes the distance. */
INLINE void score_keys(const int kind, const int columns, const float *keys, int64_t n,
                       int64_t width, const float *query, int64_t stride, int64_t ahead,
                       Target scores) {
    int64_t i = 0;
    for (; i + ROW_TILE <= n; i += ROW_TILE, scores.data += ROW_TILE)
        tile(kind, STORED_FLOAT32, ROW_TILE, columns, (Matrix){.data = keys + i * width}, width,
             query, stride, ahead, scores);
    for (; i < n; i++, scores.data++)
        tile(kind, STORED_FLOAT32, 1, columns, (Matrix){.data = keys + i * width}, width, query,
             stride, ahead, scores);
}

/* Of up to QUERY_TILE queries; `ahead` as in load_rows. */
static void score_any(int kind, const float *keys, int64_t n, int64_t width, const float *query,
                      int64_t stride, int64_t queries, int64_t ahead, Target scores) {
    int many = queries == QUERY_TILE;
    for (int64_t q = 0; q < (many ? 1 : queries); q++) {
        switch (kind * 2 + many) {
#define CASE(KIND) \
        case KIND * 2: \
            score_keys(KIND, 1, keys, n, width, query, stride, ahead, scores); break; \
        case KIND * 2 + 1: \
            score_keys(KIND, QUERY_TILE, keys, n, width, query, stride, 0, scores); break;
        CASE(KIND_DOT) CASE(KIND_L1) CASE(KIND_COSINE) CASE(KIND_L2) CASE(KIND_L2SQ)
#undef CASE
        }
        query += stride;
        scores.data += scores.stride;
    }
}
