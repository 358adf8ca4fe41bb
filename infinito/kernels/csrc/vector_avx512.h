/* AVX-512 (F, DQ): 16 lanes, 32 registers. */
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define VECTOR_REGISTER(x) "+v"(x)
#define LANES 16
#define TILE_VECTORS 4    /* vectors a row of the register tile: 4 x 4 accumulators */
#define GRADIENT_ROWS 8   /* query rows held in registers by the difference gradient */

typedef __m512 vf;

/* Gives b where either is NaN. */
INLINE vf vector_max(vf a, vf b) { return _mm512_max_ps(a, b); }

INLINE vf vector_splat(float x) { return _mm512_set1_ps(x); }

#include "vector_common.h"

INLINE float vector_reduce_max(vf x) { return _mm512_reduce_max_ps(x); }

/* LANES numbers of int8, anywhere. */
INLINE vf vector_from_bytes(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

/* LANES numbers of bfloat16, anywhere. */
INLINE vf vector_from_halves(const uint16_t *p) {
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

INLINE vf vector_exp2(vf x) {
    x = vector_max(vector_splat(-160.0f), x);
    vf whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_scalef_ps(vector_exp2_fraction(x - whole), whole);
}

/* The sign of a difference of rows scaled by sign_scale: the smaller magnitude of x and 1 with the
 * sign of x, in one instruction that competes with neither add nor fma. */
INLINE vf vector_sign(vf x) { return _mm512_range_ps(x, vector_splat(1.0f), 2); }

/* The 14-bit estimate with one Newton step: about 2e-8 relative. x > 0, normal. */
INLINE vf vector_rsqrt(vf x) {
    vf y = _mm512_rsqrt14_ps(x);
    return y * (1.5f - 0.5f * x * y * y);
}
