/* From raw tile sums to distances, logits in base 2, masks and dropout. */

#define LOG2_E 1.4426950408889634f
#define MASKED -1e30f          /* finite: differences of two masked logits stay numbers */

/* What is constant for one (batch, query head). */
typedef struct {
    const Arguments *a;
    int64_t batch, head, key_head;
    float weight;              /* lambda c: logits are -weight distance */
    float slope;               /* of ALiBi, or 0 */
    uint64_t head_key;         /* of the dropout counter */
} Head;

/* The finaliser of splitmix64 (Steele, Lea and Flood 2014). dropout.py holds the definition. */
INLINE uint64_t mix64(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static Head make_head(const Arguments *a, int64_t b, int64_t h) {
    uint64_t counter = (uint64_t)(b * a->heads + h) + 1;
    Head head = {.a = a, .batch = b, .head = h, .key_head = h / (a->heads / a->key_heads)};
    head.weight = a->lambda[h] * a->scale;
    head.slope = a->slopes ? a->slopes[h] : 0.0f;
    head.head_key = mix64(a->seed + counter * 0x9e3779b97f4a7c15u);
    return head;
}

/* The last key, counted over all keys, that query i sees. */
INLINE int64_t last_visible(const Arguments *a, int64_t i) {
    return a->causal ? smaller(a->keys - 1, i + a->keys - a->queries) : a->keys - 1;
}

/* The distance of a raw sum, and for L2 its inverse. `row` and `keys` are sums over d. */
INLINE vf distance_of(const int kind, vf raw, float row, const float *keys, vf *inverse) {
    if (kind == KIND_L1) return (raw + raw - row) - vector_load(keys);
    if (kind == KIND_L2) {
        vf square = raw + L2_EPSILON;
        *inverse = vector_rsqrt(square);
        return square * *inverse;
    }
    if (kind == KIND_L2SQ) return raw;
    if (kind == KIND_COSINE) return 1.0f - raw;
    return -raw;
}

/* What is constant for one query row against one key block. Passed by value: vector stores may
 * alias anything, so what stands in memory would be read again after each of them. */
typedef struct {
    float factor;              /* logits in base 2 are factor distance - slope |position - n| */
    float slope, position;     /* position: of the query, counted from the first key of the block */
    int visible;               /* the last visible key of the block, negative if there is none */
    uint32_t threshold, low, high, first;  /* of dropout */
} Row;

INLINE Row make_row(const Head *head, int64_t query, int64_t first, int count) {
    const Arguments *a = head->a;
    Row row = {.factor = -head->weight * LOG2_E, .slope = head->slope * LOG2_E};
    row.position = (float)(query + a->keys - a->queries - first);
    row.visible = (int)smaller(last_visible(a, query) - first, count - 1);
    row.threshold = a->drop_threshold;
    row.first = (uint32_t)first;
    if (row.threshold) {
        uint64_t key = mix64(head->head_key + (uint64_t)query * 0xd1b54a32d192ed03u);
        row.low = (uint32_t)key;
        row.high = (uint32_t)(key >> 32);
    }
    return row;
}

/* Logits in base 2 of the keys n .. n + LANES of the block; MASKED where invisible. */
INLINE vf logits_of(Row row, vf distance, int n) {
    vf logits = distance * row.factor;
    if (row.slope != 0) {
        vf offset = row.position - __builtin_convertvector(vector_count(n), vf);
        logits -= vector_abs(offset) * row.slope;
    }
    if (n + LANES - 1 > row.visible)
        logits = vector_select(vector_count(n) <= row.visible, logits, vector_splat(MASKED));
    return logits;
}

/* -1 for the lanes of keys that survive dropout, else 0. */
INLINE vi dropout_keeps(Row row, int n) {
    vu x = ((vu)vector_count(n) + row.first) * 0x9e3779b9u + row.low;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x ^= row.high;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    x ^= x >> 16;
    return (vi)((x >> 8) >= row.threshold);
}
