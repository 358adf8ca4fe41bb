/* Rows in and out: any layout, float32 or bfloat16, to aligned float rows padded with zeros to
 * `stride` (D rounded up to whole vectors of the widest instruction set), and back. */

#define ROW_ALIGNMENT 16
#define MAX_WIDTH 256
#define LARGEST_DIFFERENCE 0.125f  /* of centre.py */

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t shuffle_order __attribute__((vector_size(16)));
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (shuffle_order){i, j, k, l})
#endif

INLINE int64_t round_up(int64_t x, int64_t multiple) {
    return (x + multiple - 1) / multiple * multiple;
}
INLINE int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
INLINE int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }

INLINE int64_t row_offset(const View *view, int64_t b, int64_t h, int64_t position) {
    return b * view->batch_stride + h * view->head_stride + position * view->row_stride;
}

static void load_row(const Arguments *a, const View *view, int64_t b, int64_t h, int64_t position,
                     float *out, int64_t stride) {
    int64_t offset = row_offset(view, b, h, position), width = a->width;
    if (a->dtype == DTYPE_FLOAT32) {
        memcpy(out, (const float *)view->data + offset, width * sizeof(float));
    } else {
        const uint16_t *row = (const uint16_t *)view->data + offset;
        uint32_t *bits = (uint32_t *)out;
        for (int64_t d = 0; d < width; d++) bits[d] = (uint32_t)row[d] << 16;
    }
    for (int64_t d = width; d < stride; d++) out[d] = 0;
}

/* Round to nearest even, as torch does. */
INLINE uint16_t to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static void store_row(const Arguments *a, const View *view, int64_t b, int64_t h, int64_t position,
                      const float *row, float factor) {
    int64_t offset = row_offset(view, b, h, position), width = a->width;
    if (a->dtype == DTYPE_FLOAT32) {
        float *out = (float *)view->data + offset;
        for (int64_t d = 0; d < width; d++) out[d] = row[d] * factor;
    } else {
        uint16_t *out = (uint16_t *)view->data + offset;
        for (int64_t d = 0; d < width; d++) out[d] = to_bfloat16(row[d] * factor);
    }
}

static float largest_magnitude(const float *x, int64_t count) {
    vf largest = vector_splat(0.0f);
    for (int64_t i = 0; i < count; i += LANES)
        largest = vector_max(vector_abs(vector_load(x + i)), largest);
    return vector_reduce_max(largest);
}

static float dot_row(const float *x, const float *y, int64_t width) {
    vf total = vector_splat(0.0f);
    for (int64_t d = 0; d < width; d += LANES) total += vector_load(x + d) * vector_load(y + d);
    return vector_sum(total);
}

/* Divides a row by its norm; returns the factor, negative where the norm was too small to be
 * part of the derivative. */
static float normalise_row(float *row, int64_t stride) {
    float norm = sqrtf(dot_row(row, row, stride));
    float factor = 1.0f / (norm > SMALLEST_NORM ? norm : SMALLEST_NORM);
    for (int64_t d = 0; d < stride; d++) row[d] *= factor;
    return norm > SMALLEST_NORM ? factor : -factor;
}

/* Gradient of normalise_row, in place: (g - unit (unit . g)) factor. */
static void project_row(float *gradient, const float *unit, float factor, int64_t stride) {
    float along = factor > 0 ? dot_row(gradient, unit, stride) : 0.0f;
    for (int64_t d = 0; d < stride; d++)
        gradient[d] = (gradient[d] - along * unit[d]) * fabsf(factor);
}

/* L1 = 2 sum max(q, k) - sum q - sum k cancels badly when queries and keys share a large offset;
 * L1 is translation invariant, so this offset is subtracted from both. centre.py has the rule. */
static void find_centre(const Arguments *a, int64_t b, int64_t j, float *centre, int64_t stride) {
    float query[MAX_WIDTH];
    int64_t second = smaller(1, a->keys - 1), row = larger(0, second - (a->keys - a->queries));
    load_row(a, &a->query, b, j * (a->heads / a->key_heads), row, query, stride);
    load_row(a, &a->key, b, j, second, centre, stride);
    for (int64_t d = 0; d < stride; d++) {
        float middle = 0.5f * (query[d] + centre[d]), difference = query[d] - centre[d];
        centre[d] = fabsf(middle) * LARGEST_DIFFERENCE > fabsf(difference) ? middle : 0.0f;
    }
}

/* A query or key row as the score tile wants it: centred for L1, of unit length for cosine.
 * Returns the sum of an L1 row, the factor of normalise_row for cosine, else 0. */
static float load_scored_row(const Arguments *a, const View *view, int64_t b, int64_t h,
                             int64_t position, const float *centre, float *out, int64_t stride) {
    load_row(a, view, b, h, position, out, stride);
    if (a->kind == KIND_COSINE) return normalise_row(out, stride);
    if (a->kind != KIND_L1) return 0.0f;
    vf total = vector_splat(0.0f);
    for (int64_t d = 0; d < stride; d += LANES) {
        vf x = vector_load(out + d) - vector_load(centre + d);
        vector_store(out + d, x);
        total += x;
    }
    return vector_sum(total);
}

/* (KEYS, stride) rows to (width, KEYS) columns, in blocks of 4 x 4. */
static void pack_columns(const float *rows, int64_t stride, int64_t width, float *columns) {
    typedef float quad __attribute__((vector_size(16), may_alias));
    for (int64_t n = 0; n < KEYS; n += 4) {
        for (int64_t d = 0; d < width; d += 4) {
            const float *block = rows + n * stride + d;
            float *out = columns + d * KEYS + n;
            quad row0 = *(const quad *)block, row1 = *(const quad *)(block + stride);
            quad row2 = *(const quad *)(block + 2 * stride);
            quad row3 = *(const quad *)(block + 3 * stride);
            quad low01 = SHUFFLE(row0, row1, 0, 4, 1, 5), low23 = SHUFFLE(row2, row3, 0, 4, 1, 5);
            quad high01 = SHUFFLE(row0, row1, 2, 6, 3, 7), high23 = SHUFFLE(row2, row3, 2, 6, 3, 7);
            *(quad *)out = SHUFFLE(low01, low23, 0, 1, 4, 5);
            *(quad *)(out + KEYS) = SHUFFLE(low01, low23, 2, 3, 6, 7);
            *(quad *)(out + 2 * KEYS) = SHUFFLE(high01, high23, 0, 1, 4, 5);
            *(quad *)(out + 3 * KEYS) = SHUFFLE(high01, high23, 2, 3, 6, 7);
        }
    }
}
