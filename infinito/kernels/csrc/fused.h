/* The structures that Python fills for the fused operations: pointers first, then sizes, then
 * factors. Legend of shapes: N rows (tokens), C model width, T positions, H query heads, K
 * key/value heads, D head width, V vocabulary. "Numbers" are float32 or bfloat16, as a field says
 * (DTYPE_...); all arithmetic is float32. Rows are contiguous; what may be missing is null. Sums
 * over rows are made block by block, a block being BLOCK_ROWS rows whatever the threads are, and
 * the caller adds up the blocks. Python mirrors this layout in compiled.py; FUSED_VERSION guards
 * against a stale library. */
#ifndef INFINITO_FUSED_H
#define INFINITO_FUSED_H

#include <stdint.h>

#define FUSED_VERSION 1
#define BLOCK_ROWS 32

/* stream = x + dropout(branch), normed = norm(stream); without a branch stream = x, and dropout is
 * that of the normed. x is row index[n] of a table, if there is an index. What survives dropout
 * has a 1 in the mask, or else a counter that starts from the seed says so. */
typedef struct {
    const float *x;                       /* (N, C) */
    const int64_t *index;                 /* (N,) */
    const void *branch;                   /* (N, C) numbers; backward: not null if there was one */
    const float *gain;                    /* (C,); without it there is no norm */
    const int8_t *mask;                   /* (N, C) */
    const uint64_t *seed;                 /* (1,) */
    float *stream;                        /* (N, C): written forward where there is a branch */
    void *normed;                         /* (N, C) numbers: written forward */
    float *inverse;                       /* (N,) of the root of the mean square: the same */
    const float *grad_stream;             /* (N, C) */
    const void *grad_normed;              /* (N, C) numbers */
    float *grad_x;                        /* (N, C) */
    void *grad_branch;                    /* (N, C) numbers */
    float *grad_gain;                     /* (blocks, C) */
    int64_t rows, width, branch_dtype, normed_dtype;
    int64_t threshold, first;             /* of the counter: of 2^24; the number of row 0 */
    int64_t threads;
    float keep_scale, epsilon;
} Residual;

/* relu(up)^2, or silu(gate) up where there is a gate. */
typedef struct {
    const void *up, *gate;                /* (count,) numbers, as all of them */
    void *output;                         /* forward */
    const void *grad_output;              /* backward */
    void *grad_up, *grad_gate;
    int64_t count, dtype, threads;
} Activation;

/* Queries, keys and values of one product: norm and rotation of each head of the first two. */
typedef struct {
    const void *joined;                   /* (N, (H + 2 K) D) numbers */
    const float *query_gain, *key_gain;   /* (D,); without them there is no norm */
    const float *cosines, *sines;         /* (T, D), sines negated in the first half of a row;
                                             without them there is no rotation */
    void *query, *key, *value;            /* (N, heads, D) numbers; their gradients backward */
    void *grad_joined;                    /* backward */
    float *grad_gains;                    /* (blocks, 2, D), backward */
    int64_t tokens, length, heads, key_heads, width, dtype, threads;   /* N, T, H, K, D */
    float epsilon;
} Heads;

/* Logits become scale (softmax - onehot) in place; zeros in a row without a target. */
typedef struct {
    const int64_t *targets;               /* (N,), negative where there is none */
    void *logits;                         /* (N, V) numbers */
    float *nats;                          /* (N,) written */
    int64_t rows, vocabulary, dtype, threads;
    float scale;
} SoftmaxSlope;

/* The elementwise parts of Muon; the update is bfloat16, all else float32, (count,) each. */
typedef struct {
    const float *gradient;                /* in the first part only */
    float *buffer;
    void *update;                         /* written in the first part, read in the second */
    float *parameter;
    int64_t count, threads;
    float momentum, keep, rate;
} Muon;

#endif
