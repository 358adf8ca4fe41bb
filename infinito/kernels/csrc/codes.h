/* int8 weights times activations of sixteen bits, by the processor's dot products of bytes
 * (AVX-512 VNNI): half the instructions of multiplying in float32, and nearly as exact.
 *
 * Behind each row of activations lie its codes, one for 64 numbers: x[i] is scale q[i] with q[i] =
 * 256 high[i] + low[i] a whole number of at most LARGEST_CODE, so x[i] is off by half a scale, or
 * 1.5e-5 of the largest of its 64. Products and their sums over a group are exact. The instruction
 * wants one factor without a sign: 128 is added to the weights, and what that adds to a sum stands
 * in `offset`. */

#define GROUP 64                      /* weights that share a scale; other groups go by float32 */

#if LANES == 16
#define LARGEST_CODE 32639            /* 256 * 127 + 127 */
#define BYTES __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))

typedef struct {
    int8_t high[GROUP], low[GROUP];
    int32_t offset[LANES];
    float scale, unused[LANES - 1];   /* the size of 64 floats, which keeps all aligned */
} Code;

static int can_code(void) { return __builtin_cpu_supports("avx512vnni"); }

/* Floats behind a row for its codes. */
static int64_t code_room(int64_t width) {
    return (width + GROUP - 1) / GROUP * (int64_t)(sizeof(Code) / sizeof(float));
}

INLINE Code *codes_of(const float *row, int64_t width) {
    return (Code *)(row + round_up(width, ALIGNMENT));
}

BYTES static void encode_group(const float *x, int64_t n, Code *code) {
    __m512 part[4];
    __m512i largest = _mm512_setzero_si512(), q[4];
    UNROLL for (int i = 0; i < 4; i++) {
        int64_t rest = n - i * LANES;
        __mmask16 mask = rest >= LANES ? 0xffff : rest > 0 ? (1u << rest) - 1 : 0;
        part[i] = _mm512_maskz_loadu_ps(mask, x + i * LANES);
        /* As whole numbers magnitudes have the same order, with infinity and NaN above all. */
        __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(part[i]),
                                             _mm512_set1_epi32(0x7fffffff));
        largest = _mm512_max_epi32(largest, magnitude);
    }
    int32_t bits = _mm512_reduce_max_epi32(largest);
    float magnitude;
    memcpy(&magnitude, &bits, sizeof bits);
    __m512 inverse = _mm512_set1_ps(LARGEST_CODE / magnitude);
    __m512i half = _mm512_set1_epi32(128), sums = _mm512_setzero_si512();
    UNROLL for (int i = 0; i < 4; i++) {
        q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(part[i], inverse));
        __m512i high = _mm512_srai_epi32(_mm512_add_epi32(q[i], half), 8);
        _mm_store_si128((__m128i *)code->high + i, _mm512_cvtepi32_epi8(high));
        _mm_store_si128((__m128i *)code->low + i, _mm512_cvtepi32_epi8(q[i]));
    }
    __m512i unit = _mm512_set1_epi8((char)128);
    __m512i high = _mm512_load_si512(code->high), low = _mm512_load_si512(code->low);
    sums = _mm512_slli_epi32(_mm512_dpbusd_epi32(sums, unit, high), 8);
    sums = _mm512_dpbusd_epi32(sums, unit, low);
    _mm512_store_si512(code->offset, _mm512_sub_epi32(_mm512_setzero_si512(), sums));
    code->scale = magnitude / LARGEST_CODE;
}

/* The codes of `rows` rows. */
static void encode_rows(float *x, int64_t stride, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i += GROUP)
            encode_group(x + r * stride + i, smaller(GROUP, width - i),
                         codes_of(x + r * stride, width) + i / GROUP);
}

BYTES INLINE void add_group(const int rows, const int columns, const __m512i *weights,
                            const float *scales, int64_t groups, const Code *code, int64_t stride,
                            vf (*total)[4]) {
    UNROLL for (int c = 0; c < columns; c++, code = (const Code *)((const float *)code + stride)) {
        __m512i high = _mm512_load_si512(code->high), low = _mm512_load_si512(code->low);
        __m512i offset = _mm512_load_si512(code->offset);
        UNROLL for (int r = 0; r < rows; r++) {
            __m512i upper = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights[r], high);
            __m512i lower = _mm512_dpbusd_epi32(offset, weights[r], low);
            vf sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(upper, 8), lower));
            total[r][c] += sum * (scales[r * groups] * code->scale);
        }
    }
}

/* As tile, of a matrix with groups of GROUP. */
BYTES INLINE void coded_tile(const int rows, const int columns, Matrix matrix, int64_t width,
                             const float *x, int64_t stride, Target target) {
    vf total[ROW_TILE][4], none[ROW_TILE];
    __m512i weights[ROW_TILE], sign = _mm512_set1_epi8((char)128);
    const char *data = matrix.data;
    const Code *code = codes_of(x, width);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++) total[r][c] = vector_splat(0.0f);
    int64_t g = 0;
    for (; (g + 1) * GROUP <= width; g++) {
        UNROLL for (int r = 0; r < rows; r++) {
            const char *place = data + r * width + g * GROUP;
            if (columns == 1) __builtin_prefetch(place + PREFETCH);
            weights[r] = _mm512_xor_si512(_mm512_loadu_si512(place), sign);
        }
        add_group(rows, columns, weights, matrix.scales + g, matrix.groups, code + g, stride,
                  total);
    }
    if (g < matrix.groups) {
        __mmask64 mask = (1ull << (width - g * GROUP)) - 1;
        UNROLL for (int r = 0; r < rows; r++) {
            weights[r] = _mm512_maskz_loadu_epi8(mask, data + r * width + g * GROUP);
            weights[r] = _mm512_xor_si512(weights[r], sign);
        }
        add_group(rows, columns, weights, matrix.scales + g, matrix.groups, code + g, stride,
                  total);
    }
    finish_tile(KIND_DOT, SCALED_INT8, rows, columns, matrix, total, none, target);
}

__attribute__((noinline)) BYTES
static void product_of_codes(Matrix matrix, int64_t first, int64_t rows, int64_t width,
                             const float *x, int64_t stride, int64_t columns, Target target) {
    matrix = rows_from(SCALED_INT8, matrix, first, width);
    for (; rows > 0; rows -= ROW_TILE, target.data += ROW_TILE) {
        int64_t c = 0, few = rows < ROW_TILE ? rows : 0;
        Target part = target;
        for (; !few && c + 4 <= columns; c += 4, part.data += 4 * part.stride)
            coded_tile(ROW_TILE, 4, matrix, width, x + c * stride, stride, part);
        for (; !few && c < columns; c++, part.data += part.stride)
            coded_tile(ROW_TILE, 1, matrix, width, x + c * stride, stride, part);
        for (; few > 0; few--, part.data++, matrix = rows_from(SCALED_INT8, matrix, 1, width))
            for (c = 0; c < columns; c++)
                coded_tile(1, 1, matrix, width, x + c * stride, stride,
                           (Target){part.data + c * part.stride, part.stride, part.add});
        matrix = rows_from(SCALED_INT8, matrix, ROW_TILE, width);
    }
}

/* Columns that are turned: of each group pairs of whole numbers, (GROUP / 2, LANES), and the
 * scales, (LANES,). */
#define GROUP_TURNED ((GROUP / 2 + 1) * LANES)

BYTES static void turn_group(const float *x, int64_t stride, int64_t rows, int64_t width, int64_t g,
                             float *out) {
    float pairs[LANES * GROUP / 2] __attribute__((aligned(64))), scale[LANES] = {0};
    for (int64_t c = 0; c < rows; c++) {
        const Code *code = codes_of(x + c * stride, width) + g;
        scale[c] = code->scale;
        UNROLL for (int i = 0; i < 2; i++) {
            __m512i high = _mm512_cvtepi8_epi16(_mm256_load_si256((const __m256i *)code->high + i));
            __m512i low = _mm512_cvtepi8_epi16(_mm256_load_si256((const __m256i *)code->low + i));
            _mm512_store_si512(pairs + c * GROUP / 2 + i * LANES,
                               _mm512_add_epi16(_mm512_slli_epi16(high, 8), low));
        }
    }
    turn_rows(pairs, GROUP / 2, rows, GROUP / 2, out);
    memcpy(out + GROUP / 2 * LANES, scale, sizeof scale);
}

/* As turn_columns, of their codes. */
static const float *turn_codes(Turned *t, const float *x, int64_t stride, int64_t columns,
                               int64_t width) {
    if (t->x == x && t->columns == columns && t->codes) return t->numbers;
    float *out = t->numbers;
    for (int64_t c = 0; c < columns; c += LANES)
        for (int64_t g = 0; g * GROUP < width; g++, out += GROUP_TURNED)
            turn_group(x + c * stride, stride, smaller(LANES, columns - c), width, g, out);
    t->x = x, t->columns = columns, t->codes = 1;
    return t->numbers;
}

/* As turned_tile; `step` counts weights, of which two lie side by side in sixteen bits each. A
 * chain has four neighbours of each group, as a lane of coded_tile has. */
BYTES INLINE void coded_turned_tile(const int16_t *weights, int64_t step, Matrix matrix,
                                    const float *x, vf *result) {
    const char *ahead = (const char *)matrix.data + ROW_TILE * step;
    vf sum[CHAINS][ROW_TILE], part[CHAINS][ROW_TILE], scale[ROW_TILE];
    UNROLL for (int j = 0; j < CHAINS; j++)
        UNROLL for (int r = 0; r < ROW_TILE; r++) sum[j][r] = vector_splat(0.0f);
    for (int first = 0; first < LANES; first += CHAINS) {
        UNROLL for (int j = 0; j < CHAINS; j++)
            UNROLL for (int r = 0; r < ROW_TILE; r++) part[j][r] = vector_splat(0.0f);
        const float *group = x;
        for (int64_t g = 0; g < matrix.groups; g++, group += GROUP_TURNED) {
            __builtin_prefetch(ahead + (g * LANES + first) * CHAINS);
            UNROLL for (int r = 0; r < ROW_TILE; r++)
                scale[r] = matrix.scales[r * matrix.groups + g] *
                           vector_load(group + GROUP / 2 * LANES);
            UNROLL for (int j = 0; j < CHAINS; j++) {
                const __m512i *pairs = (const __m512i *)group + 2 * (first + j);
                UNROLL for (int r = 0; r < ROW_TILE; r++) {
                    const int32_t *two = (const int32_t *)(weights + r * step + g * GROUP) +
                                         2 * (first + j);
                    __m512i whole = _mm512_dpwssd_epi32(_mm512_setzero_si512(), pairs[0],
                                                        _mm512_set1_epi32(two[0]));
                    whole = _mm512_dpwssd_epi32(whole, pairs[1], _mm512_set1_epi32(two[1]));
                    part[j][r] += _mm512_cvtepi32_ps(whole) * scale[r];
                }
            }
        }
        UNROLL for (int j = 0; j < CHAINS; j++)
            UNROLL for (int r = 0; r < ROW_TILE; r++) sum[j][r] += part[j][r];
    }
    UNROLL for (int r = 0; r < ROW_TILE; r++)
        result[r] = (sum[0][r] + sum[2][r]) + (sum[1][r] + sum[3][r]);
}

/* As product_turned. */
__attribute__((noinline)) BYTES
static void product_of_turned_codes(Matrix matrix, int64_t rows, int64_t width, const float *turned,
                                    int64_t columns, Target target) {
    int16_t wide[ROW_TILE * MOST_TURNED_WIDTH] __attribute__((aligned(64), may_alias));
    int64_t step = matrix.groups * GROUP;
    vf sum[ROW_TILE];
    for (; rows >= ROW_TILE; rows -= ROW_TILE, target.data += ROW_TILE) {
        const int8_t *place = matrix.data;
        for (int64_t r = 0; r < ROW_TILE; r++)
            for (int64_t i = 0; i < step; i += 32) {
                int64_t rest = width - i;
                __mmask32 mask = rest >= 32 ? ~0u : rest > 0 ? (1u << rest) - 1 : 0;
                __m256i some = _mm256_maskz_loadu_epi8(mask, place + r * width + i);
                _mm512_store_si512(wide + r * step + i, _mm512_cvtepi8_epi16(some));
            }
        for (int64_t c = 0; c < columns; c += LANES) {
            coded_turned_tile(wide, step, matrix, turned + c / LANES * matrix.groups * GROUP_TURNED,
                              sum);
            finish_turned(SCALED_INT8, matrix, sum, smaller(LANES, columns - c),
                          (Target){target.data + c * target.stride, target.stride, target.add});
        }
        matrix = rows_from(SCALED_INT8, matrix, ROW_TILE, width);
    }
}
#else
static int can_code(void) { return 0; }
static int64_t code_room(int64_t width) { return 0 * width; }
static void encode_rows(float *x, int64_t stride, int64_t rows, int64_t width) {
    (void)x, (void)stride, (void)rows, (void)width;
}
#define product_of_codes(...) ((void)0)
#define product_of_turned_codes(...) ((void)0)
#endif
