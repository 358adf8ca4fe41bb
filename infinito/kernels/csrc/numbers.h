/* Vectors in and out of rows of float32 or bfloat16 that lie anywhere and have any length. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "fused.h"
#include "parallel.h"

typedef uint16_t vh __attribute__((vector_size(LANES * 2), may_alias, aligned(2)));
typedef float vf_anywhere __attribute__((vector_size(LANES * 4), may_alias, aligned(4)));

/* Round to nearest even, as torch does; NaN stays NaN. */
INLINE vh to_halves(vf x) {
    vu bits = (vu)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vu number = (vu)(x == x);
    return __builtin_convertvector((rounded & number) | (0x7fc0 & ~number), vh);
}

INLINE vf from_halves(vh x) { return (vf)(__builtin_convertvector(x, vu) << 16); }

/* Numbers i .. i + LANES of a row of `width`; zeros behind its end. */
INLINE vf load(const int dtype, const void *row, int64_t i, int64_t width) {
    int64_t left = width - i;
    if (dtype == DTYPE_FLOAT32) {
        const float *p = (const float *)row + i;
        if (left >= LANES) return *(const vf_anywhere *)p;
        vf_anywhere part = {0};
        memcpy(&part, p, left * sizeof(float));
        return part;
    }
    const uint16_t *p = (const uint16_t *)row + i;
    if (left >= LANES) return from_halves(*(const vh *)p);
    vh part = {0};
    memcpy(&part, p, left * sizeof(uint16_t));
    return from_halves(part);
}

INLINE void store(const int dtype, void *row, int64_t i, int64_t width, vf x) {
    int64_t left = width - i;
    if (dtype == DTYPE_FLOAT32) {
        float *p = (float *)row + i;
        if (left >= LANES) *(vf_anywhere *)p = x;
        else memcpy(p, &x, left * sizeof(float));
    } else {
        uint16_t *p = (uint16_t *)row + i;
        vh halves = to_halves(x);
        if (left >= LANES) *(vh *)p = halves;
        else memcpy(p, &halves, left * sizeof(uint16_t));
    }
}

/* Where number i of an array of numbers lies, or null. */
INLINE void *at(const int dtype, const void *numbers, int64_t i) {
    return numbers ? (char *)numbers + i * (dtype == DTYPE_FLOAT32 ? 4 : 2) : NULL;
}

INLINE int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }

INLINE int64_t blocks_of(int64_t rows) { return (rows + BLOCK_ROWS - 1) / BLOCK_ROWS; }
