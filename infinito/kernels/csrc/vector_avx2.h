/* AVX2 with FMA: 8 lanes, 16 registers. */
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define VECTOR_REGISTER(x) "+x"(x)
#define LANES 8
#define TILE_VECTORS 2
#define GRADIENT_ROWS 4

typedef __m256 vf;

/* Gives b where either is NaN. */
INLINE vf vector_max(vf a, vf b) { return _mm256_max_ps(a, b); }

INLINE vf vector_splat(float x) { return _mm256_set1_ps(x); }

#include "vector_common.h"

INLINE float vector_reduce_max(vf x) {
    float lanes[LANES];
    _mm256_storeu_ps(lanes, x);
    float largest = lanes[0];
    for (int i = 1; i < LANES; i++) largest = lanes[i] > largest ? lanes[i] : largest;
    return largest;
}

/* LANES numbers of int8, anywhere. */
INLINE vf vector_from_bytes(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

/* LANES numbers of bfloat16, anywhere. */
INLINE vf vector_from_halves(const uint16_t *p) {
    __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}

INLINE vf vector_exp2(vf x) { return vector_exp2_portable(x); }
INLINE vf vector_sign(vf x) { return vector_sign_portable(x); }
INLINE vf vector_rsqrt(vf x) { return vector_splat(1.0f) / _mm256_sqrt_ps(x); }
