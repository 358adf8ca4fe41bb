/* The one structure that Python fills and the kernels read. Legend of shapes: B batch, H query
 * heads, J key/value heads (H is a multiple of J), T queries, S keys, D head width.
 * Python mirrors this layout in cpu.py; ATTENTION_VERSION guards against a stale library. */
#ifndef INFINITO_ATTENTION_H
#define INFINITO_ATTENTION_H

#include <stdint.h>

#define ATTENTION_VERSION 2

enum { KIND_DOT = 0, KIND_L1 = 1, KIND_L2 = 2, KIND_L2SQ = 3, KIND_COSINE = 4 };
#define L2_EPSILON 1e-12f      /* added to the square of L2 under the root */
#define SMALLEST_NORM 1e-6f    /* of the cosine: shorter vectors are divided by this instead */
enum { DTYPE_FLOAT32 = 0, DTYPE_BFLOAT16 = 1 };
enum { STATUS_OK = 0, STATUS_NO_MEMORY = 1 };

/* A (batch, head, position, D) view: strides count elements, the last one is 1. */
typedef struct {
    void *data;
    int64_t batch_stride, head_stride, row_stride;
} View;

typedef struct {
    View query, key, value, output;                          /* forward and backward */
    View grad_output, grad_query, grad_key, grad_value;      /* backward only */
    float *logsumexp;             /* (B, H, T), base 2: written forward, read backward */
    const float *lambda;          /* (H,) */
    double *grad_lambda;          /* (B, H): the caller sums over B */
    const float *slopes;          /* (H,) of ALiBi, or null */
    int64_t batch, heads, key_heads, queries, keys, width;
    uint64_t seed;                /* of the dropout counter */
    int32_t kind, dtype, causal, threads;
    uint32_t drop_threshold;      /* of 2^24; 0 means no dropout */
    float keep_scale;             /* 1 / (1 - p) */
    float scale;                  /* c of the definition: logits are -lambda * c * distance */
} Arguments;

/* What the benchmark measures: how many elements the inner loops handle in registers. */
typedef struct {
    int64_t rounds, elements;     /* elements: written */
    int32_t gradient;             /* of a score, rather than the score */
} Peak;

#endif
