/* The structures that Python fills for a decode step. Legend of shapes: B batch, T tokens that are
 * read of each sequence, R = B T rows, L layers, N feed-forward branches a layer, C model width, H
 * query heads, K key/value heads (H is a multiple of K), D head width, F hidden width of a network,
 * E experts, V vocabulary. Numbers are float32, but for the matrices: those may be stored in less,
 * and are multiplied by in float32 all the same, or nearly (codes.h).
 * Python mirrors this layout in decode.py; DECODE_VERSION guards against a stale library. */
#ifndef INFINITO_DECODE_H
#define INFINITO_DECODE_H

#include <stdint.h>

#define DECODE_VERSION 7
#define MOST_BRANCHES 2

enum { ACTIVATION_RELU2 = 0, ACTIVATION_GELU = 1, ACTIVATION_SWIGLU = 2 };

enum { STORED_FLOAT32 = 0, STORED_BFLOAT16 = 1, STORED_INT8 = 2 };

/* A linear map, row by row, and what is added to each result. Element (r, i) of int8 stands for
 * data[r][i] * scales[r][i / group]; the last group of a row may be short. */
typedef struct {
    const void *data;                        /* (out, in), or null: there is no such map */
    const float *scales;                     /* (out, groups) of int8, else null */
    const float *bias;                       /* (out,), or null */
    int64_t group, groups;                   /* group: a multiple of 16, or `in` */
    int32_t stored;
} Matrix;

/* RMSNorm; LayerNorm where there is a bias; nothing where there is no gain. */
typedef struct {
    const float *gain, *bias;                /* (width,), or null */
    float epsilon;
} Norm;

typedef struct {
    Matrix up, gate, down;                   /* (F, C), (F, C) or none, (C, F) */
    int64_t hidden;                          /* F; 0: there is no such network */
} Network;

/* What adds to the residual stream behind the attention: for each row the top_k of the experts
 * that a router names, if there are any, and a network for all rows. */
typedef struct {
    Norm norm;
    Network network;
    Matrix router;                           /* (E, C) */
    const Network *experts;                  /* (E,), of one hidden width */
    int64_t n_experts, top_k;                /* 0: no experts */
} Branch;

typedef struct {
    Norm attention_norm, query_norm, key_norm;
    Matrix query, key, value, output;        /* (H D, C), (K D, C), (K D, C), (C, H D) */
    const float *log_lambda;                 /* (lambdas,), or null: lambda is 1 */
    Branch branches[MOST_BRANCHES];          /* the first N, one behind the other */
} Layer;

typedef struct {
    const Layer *layers;                     /* (L,) */
    Matrix embedding, head;                  /* (V, C), (V, C) */
    Norm embedding_norm, final_norm;
    const float *positions;                  /* (>= capacity, C) of a learned table, or null */
    const float *cosines, *sines;            /* (>= capacity, D) of RoPE, or null; in the first
                                                half of a row the sines are negated */
    const float *slopes;                     /* (H,) of ALiBi, or null */
    float *keys, *values;                    /* (L, B, K, capacity, D) */
    const int64_t *tokens;                   /* (B, T), below V */
    float *logits;                           /* (B, V) after the last token, written; or null */
    int64_t n_layers, branches, batch, chunk; /* chunk: T */
    int64_t width, heads, key_heads, head_width, vocabulary;
    int64_t lambdas;                         /* a layer: 1, or one a head */
    int64_t capacity, length;                /* positions in the cache: room for T more */
    float scale;                             /* of the scores, beside lambda */
    int32_t kind, activation, threads;
    int32_t grouped;                         /* whether a matrix is of int8 in groups */
} Decode;

#endif
