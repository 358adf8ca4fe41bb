/* The one structure that Python fills for a decode step. Legend of shapes: B batch, L layers,
 * C model width, H query heads, K key/value heads (H is a multiple of K), D head width,
 * F feed-forward width, V vocabulary. Matrices are (out, in), row by row, float32.
 * Python mirrors this layout in decode.py; DECODE_VERSION guards against a stale library. */
#ifndef INFINITO_DECODE_H
#define INFINITO_DECODE_H

#include <stdint.h>

#define DECODE_VERSION 1

enum { ACTIVATION_RELU2 = 0, ACTIVATION_GELU = 1, ACTIVATION_SWIGLU = 2 };

typedef struct {
    const float *attention_norm;             /* (C,) */
    const float *query, *key, *value;        /* (H D, C), (K D, C), (K D, C) */
    const float *query_norm, *key_norm;      /* (D,), or null */
    const float *output;                     /* (C, H D) */
    const float *feed_forward_norm;          /* (C,) */
    const float *up, *gate, *down;           /* (F, C), (F, C) or null, (C, F) */
} Layer;

typedef struct {
    const Layer *layers;                     /* (L,) */
    const float *embedding, *embedding_norm; /* (V, C), (C,) */
    const float *positions;                  /* (>= capacity, C) of a learned table, or null */
    const float *cosines, *sines;            /* (>= capacity, D) of RoPE, or null; in the first
                                                half of a row the sines are negated */
    const float *slopes;                     /* (H,) of ALiBi, or null */
    const float *final_norm, *head;          /* (C,), (V, C) */
    float *keys, *values;                    /* (L, B, K, capacity, D) */
    const int64_t *tokens;                   /* (B,), below V */
    float *logits;                           /* (B, V), written */
    int64_t n_layers, batch, width, heads, key_heads, head_width, hidden, vocabulary;
    int64_t capacity, length;                /* length: positions in the cache, < capacity */
    int32_t activation, threads, isa;
} Decode;

#endif
