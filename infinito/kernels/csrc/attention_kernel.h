/* The body of one kernel library: included once per instruction set, after its vector header,
 * with FORWARD, BACKWARD and PEAK naming the functions to define. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "parallel.h"
#include "tiles.h"
#include "rows.h"
#include "logits.h"
#include "forward.h"
#include "backward.h"
#include "peak.h"

/* One copy of the code for each kind, so that the choice is not made in the inner loops. */
#define FOR_EACH_KIND(CASE) \
    CASE(KIND_DOT) CASE(KIND_L1) CASE(KIND_L2) CASE(KIND_L2SQ) CASE(KIND_COSINE)

static void forward_any(const void *context, int64_t task, float *scratch) {
    const Arguments *a = context;
    switch (a->kind) {
#define CASE(KIND) case KIND: forward_task(KIND, a, task, scratch); break;
        FOR_EACH_KIND(CASE)
#undef CASE
    }
}

static void backward_any(const void *context, int64_t task, float *scratch) {
    const Backward *p = context;
    switch (p->a->kind) {
#define CASE(KIND) case KIND: backward_task(KIND, p, task, scratch); break;
        FOR_EACH_KIND(CASE)
#undef CASE
    }
}

static void sum_splits_any(const void *context, int64_t task, float *scratch) {
    sum_splits(context, task, scratch);
}

int FORWARD(void *arguments) {
    const Arguments *a = arguments;
    int64_t rows = chunk_rows(a), chunks = (a->queries + rows - 1) / rows;
    return run_tasks(forward_any, a, a->batch * a->heads * chunks, a->threads, forward_scratch(a));
}

/* The smallest number of key splits that occupies every thread evenly, or nearly. */
static int64_t choose_splits(const Arguments *a) {
    int64_t tasks = a->batch * a->key_heads, blocks = (a->keys + KEYS - 1) / KEYS, splits = 1;
    while (splits < blocks && tasks * splits % a->threads && tasks * splits < 4 * a->threads)
        splits++;
    return splits;
}

int BACKWARD(void *arguments) {
    const Arguments *a = arguments;
    Backward p = {.a = a, .splits = choose_splits(a)};
    int64_t heads = a->batch * a->heads, blocks = (a->keys + KEYS - 1) / KEYS;
    p.stride = round_up(a->width, ROW_ALIGNMENT);
    p.padded_rows = round_up(a->queries, GRADIENT_ROWS);
    p.slots = (blocks + p.splits - 1) / p.splits;
    p.partial_lambda = malloc(p.splits * heads * sizeof(double));
    if (p.splits > 1)
        p.partial_queries = malloc(p.splits * heads * a->queries * p.stride * sizeof(float));
    int status = STATUS_NO_MEMORY;
    if (p.partial_lambda && (p.splits == 1 || p.partial_queries)) {
        Workspace unused;
        status = run_tasks(backward_any, &p, a->batch * a->key_heads * p.splits, a->threads,
                           lay_out(&p, &unused, NULL));
    }
    if (status == STATUS_OK && p.splits > 1)
        status = run_tasks(sum_splits_any, &p, heads, a->threads, 2 * p.stride);
    for (int64_t bh = 0; status == STATUS_OK && bh < heads; bh++) {
        a->grad_lambda[bh] = 0;
        for (int64_t s = 0; s < p.splits; s++)
            a->grad_lambda[bh] += p.partial_lambda[s * heads + bh];
    }
    free(p.partial_lambda);
    free(p.partial_queries);
    return status;
}

int PEAK(void *arguments) {
    Peak *p = arguments;
    p->elements = p->gradient ? peak_gradient(p->rounds) : peak_score(p->rounds);
    return STATUS_OK;
}
