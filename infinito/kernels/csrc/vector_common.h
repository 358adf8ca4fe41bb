/* Helpers of all instruction sets, in GNU C vector operations. The including header defines
 * LANES, vf (LANES floats), vector_splat and vector_max. Comparisons of vectors give 0 or -1 in each lane. */
#ifndef INFINITO_VECTOR_COMMON_H
#define INFINITO_VECTOR_COMMON_H

#include <stdint.h>

typedef int32_t vi __attribute__((vector_size(LANES * 4), may_alias));
typedef uint32_t vu __attribute__((vector_size(LANES * 4), may_alias));

INLINE vf vector_load(const float *p) { return *(const vf *)p; }   /* aligned */
INLINE void vector_store(float *p, vf x) { *(vf *)p = x; }         /* aligned */
INLINE vf vector_select(vi mask, vf yes, vf no) {
    return (vf)(((vi)yes & mask) | ((vi)no & ~mask));
}
INLINE vf vector_abs(vf x) { return (vf)((vi)x & 0x7fffffff); }

/* 0, 1, 2, ... + first */
INLINE vi vector_count(int first) {
    vi lanes;
    for (int i = 0; i < LANES; i++) lanes[i] = first + i;
    return lanes;
}

INLINE float vector_sum(vf x) {
    float lanes[LANES] __attribute__((aligned(64))), total = 0;
    vector_store(lanes, x);
    for (int i = 0; i < LANES; i++) total += lanes[i];
    return total;
}

/* 2^f for f in [-1/2, 1/2]: minimax polynomial of degree 6, relative error 2e-9. */
INLINE vf vector_exp2_fraction(vf f) {
    vf p = vector_splat(0x1.41d334p-13f);
    p = p * f + vector_splat(0x1.5f456ap-10f);
    p = p * f + vector_splat(0x1.3b2dbcp-7f);
    p = p * f + vector_splat(0x1.c6aed4p-5f);
    p = p * f + vector_splat(0x1.ebfbdap-3f);
    p = p * f + vector_splat(0x1.62e430p-1f);
    return p * f + vector_splat(1.0f);
}

/* 2^x with plain arithmetic; zero below 2^-126, x must not exceed 127. NaN stays NaN. */
INLINE vf vector_exp2_portable(vf x) {
    const float magic = 0x1.8p23f;            /* adding it rounds to an integer */
    vi normal = ~(x < vector_splat(-126.0f)); /* true for NaN as well */
    vf clamped = vector_select(normal, x, vector_splat(-126.0f));
    vf shifted = clamped + magic;
    vi exponent = (vi)shifted - (vi)vector_splat(magic);
    vf power = vector_exp2_fraction(clamped - (shifted - magic));
    return (vf)((vi)((vf)((vi)power + (exponent << 23))) & normal);
}

/* -1, 0 or 1; exactly 0 at both zeros. NaN gives 0. */
INLINE vf vector_sign_portable(vf x) {
    vf one = vector_splat(1.0f), zero = vector_splat(0.0f);
    return (vf)(((vi)one & (x > zero)) | ((vi)(-one) & (x < zero)));
}

#endif
