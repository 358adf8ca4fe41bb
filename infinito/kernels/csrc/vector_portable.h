/* Any processor: four lanes in GNU C vector operations (SSE2 on x86-64, NEON on AArch64). */
#include <math.h>

#define INLINE static inline __attribute__((always_inline))
#define VECTOR_REGISTER(x) "+m"(x)
#define LANES 4
#define TILE_VECTORS 2
#define GRADIENT_ROWS 4

typedef float vf __attribute__((vector_size(LANES * 4), may_alias));

INLINE vf vector_splat(float x) { return (vf){x, x, x, x}; }

#include "vector_common.h"

/* Gives b where either is NaN. */
INLINE vf vector_max(vf a, vf b) { return vector_select(a > b, a, b); }

INLINE float vector_reduce_max(vf x) {
    float largest = x[0];
    for (int i = 1; i < LANES; i++) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

/* LANES numbers of int8, anywhere. */
INLINE vf vector_from_bytes(const int8_t *p) {
    return (vf){(float)p[0], (float)p[1], (float)p[2], (float)p[3]};
}

/* LANES numbers of bfloat16, anywhere. */
INLINE vf vector_from_halves(const uint16_t *p) {
    return (vf)((vu){p[0], p[1], p[2], p[3]} << 16);
}

INLINE vf vector_exp2(vf x) { return vector_exp2_portable(x); }
INLINE vf vector_sign(vf x) { return vector_sign_portable(x); }
INLINE vf vector_rsqrt(vf x) {
    vf y;
    for (int i = 0; i < LANES; i++) y[i] = 1.0f / sqrtf(x[i]);
    return y;
}
