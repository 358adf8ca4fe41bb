/* One decode step as numbered tasks, in the order of the model. Included once per instruction
 * set, after its vector header, with DECODE naming the function to define.
 *
 * A phase is a set of tasks that need only what earlier phases have written. Tasks are taken in
 * order; one whose phase may not begin yet waits for tasks that other threads are already at
 * work on. So no number of threads, not even one, can end up waiting for nobody. */

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "decode.h"
#include "team.h"

#define FEWEST_ROWS 16                /* of a task; a multiple of every LANES */
#define MOST_ROWS 128
#define TASKS_A_THREAD 4

#include "product.h"
#include "parts.h"

/* Then two phases for each feed-forward network: up, and down. */
enum { PHASE_HEADS, PHASE_ATTENTION, PHASE_OUTPUT, PHASE_NETWORKS };

typedef struct {
    atomic_llong finished;            /* tasks, over all phases */
    atomic_llong open;                /* the last phase that may begin */
} Progress;

typedef struct {
    const Decode *a;
    Progress *progress;
    int64_t width_stride, mixed_stride, head_stride, hidden_stride;
    float *x, *normed;                /* (B, width_stride): the residual stream, and its norm */
    float *queries;                   /* (B, H, head_stride) */
    float *mixed, *hidden;            /* (B, mixed_stride), (N, B, hidden_stride) */
    int64_t width_block, hidden_block[MOST_NETWORKS], logits_block;     /* rows of a task */
    int64_t tasks[PHASE_NETWORKS + 2 * MOST_NETWORKS], phases, layer_tasks, total_tasks;
} Step;

/* x to normed, for all of the batch. */
static void normalise_stream(const Step *s, const Norm *norm) {
    for (int64_t b = 0; b < s->a->batch; b++)
        normalise(norm, s->x + b * s->width_stride, s->a->width, s->normed + b * s->width_stride);
}

static void embed(const Step *s) {
    const Decode *a = s->a;
    for (int64_t b = 0; b < a->batch; b++) {
        float *x = s->x + b * s->width_stride;
        read_row(a->embedding, a->tokens[b], a->width, x);
        if (a->positions)
            for (int64_t i = 0; i < a->width; i++) x[i] += a->positions[a->length * a->width + i];
        normalise(&a->embedding_norm, x, a->width, x);
    }
    normalise_stream(s, &a->layers[0].attention_norm);
}

/* One head's rows of the query, key or value matrix, for all of the batch; keys and values go to
 * their place in the cache. */
static void heads_task(const Step *s, int64_t layer, int64_t task) {
    const Decode *a = s->a;
    const Layer *l = &a->layers[layer];
    int64_t d = a->head_width, rotated = task < a->heads + a->key_heads;
    Matrix matrix = l->query;
    const Norm *norm = rotated ? &l->query_norm : NULL;
    int64_t head = task;
    Target target = {s->queries + head * s->head_stride, a->heads * s->head_stride, 0};
    if (task >= a->heads) {
        head = (task - a->heads) % a->key_heads;
        matrix = rotated ? l->key : l->value;
        norm = rotated ? &l->key_norm : NULL;
        target.stride = a->key_heads * a->capacity * d;
        target.data = (rotated ? a->keys : a->values) + layer * a->batch * target.stride +
                      (head * a->capacity + a->length) * d;
    }
    product(matrix, head * d, d, a->width, s->normed, s->width_stride, a->batch, target);
    for (int64_t b = 0; b < a->batch; b++) {
        float *row = target.data + b * target.stride;
        if (norm && norm->gain) normalise_head(norm, row, d);
        if (rotated && a->cosines)
            rotate_head(row, a->cosines + a->length * d, a->sines + a->length * d, d);
    }
}

/* One query head of one sequence. */
static void attention_task(const Step *s, int64_t layer, int64_t task, float *scores) {
    const Decode *a = s->a;
    int64_t b = task / a->heads, h = task % a->heads, n = a->length + 1, d = a->head_width;
    int64_t key_head = h / (a->heads / a->key_heads);
    int64_t offset = ((layer * a->batch + b) * a->key_heads + key_head) * a->capacity * d;
    const float *query = s->queries + task * s->head_stride, *lambda = a->layers[layer].log_lambda;
    float scale = a->scale;
    if (lambda) scale *= expf(lambda[h % a->lambdas]);
    if (a->kind == KIND_COSINE) scale *= inverse_norm(squared_norm(query, d));
    score_any(a->kind, a->keys + offset, n, d, query, scores);
    float total = exponentials(a->kind, scores, n, scale, a->slopes ? a->slopes[h] : 0.0f);
    mix(scores, n, total, a->values + offset, d, s->mixed + b * s->mixed_stride + h * d);
}

/* A block of rows of a (width, .) matrix, added to the residual stream. */
static void residual_task(const Step *s, Matrix matrix, int64_t inner, const float *input,
                          int64_t stride, int64_t task) {
    int64_t first = task * s->width_block, rows = smaller(s->width_block, s->a->width - first);
    product(matrix, first, rows, inner, input, stride, s->a->batch,
            (Target){s->x + first, s->width_stride, 1});
}

/* The hidden units (B, hidden_stride) of network n. */
static float *hidden_of(const Step *s, int64_t n) {
    return s->hidden + n * s->a->batch * s->hidden_stride;
}

/* A block of hidden units, activated. `gates` has room for (B, hidden_block). */
static void up_task(const Step *s, const Layer *l, int64_t n, int64_t task, float *gates) {
    const Decode *a = s->a;
    const Network *network = &l->networks[n];
    int64_t block = s->hidden_block[n], first = task * block;
    int64_t rows = smaller(block, network->hidden - first);
    float *hidden = hidden_of(s, n) + first;
    product(network->up, first, rows, a->width, s->normed, s->width_stride, a->batch,
            (Target){hidden, s->hidden_stride, 0});
    if (network->gate.data) {
        memset(gates, 0, a->batch * block * sizeof(float));
        product(network->gate, first, rows, a->width, s->normed, s->width_stride, a->batch,
                (Target){gates, block, 0});
    }
    for (int64_t b = 0; b < a->batch; b++)
        for (int64_t i = 0; i < rows; i += LANES) {
            float *place = hidden + b * s->hidden_stride + i;
            vf up = vector_load(place);
            vf gate = network->gate.data ? vector_load(gates + b * block + i) : up;
            vector_store(place, activate(a->activation, up, gate));
        }
}

static void logits_task(const Step *s, int64_t task) {
    const Decode *a = s->a;
    int64_t first = task * s->logits_block, rows = smaller(s->logits_block, a->vocabulary - first);
    product(a->head, first, rows, a->width, s->normed, s->width_stride, a->batch,
            (Target){a->logits + first, a->vocabulary, 0});
}

static void run_phase(const Step *s, int64_t layer, int phase, int64_t task, float *scratch) {
    const Layer *l = &s->a->layers[layer];
    int64_t mixed_width = s->a->heads * s->a->head_width, n = (phase - PHASE_NETWORKS) / 2;
    if (phase == PHASE_HEADS) heads_task(s, layer, task);
    else if (phase == PHASE_ATTENTION) attention_task(s, layer, task, scratch);
    else if (phase == PHASE_OUTPUT)
        residual_task(s, l->output, mixed_width, s->mixed, s->mixed_stride, task);
    else if ((phase - PHASE_NETWORKS) % 2 == 0) up_task(s, l, n, task, scratch);
    else
        residual_task(s, l->networks[n].down, l->networks[n].hidden, hidden_of(s, n),
                      s->hidden_stride, task);
}

/* What the last thread of a phase does before the next may begin: where the phase has added to
 * the residual stream, the norm of what comes next. */
static void close_phase(const Step *s, int64_t layer, int phase) {
    const Decode *a = s->a;
    int64_t n = (phase - PHASE_OUTPUT) / 2;              /* of the network that follows */
    if (phase < PHASE_OUTPUT || (phase - PHASE_OUTPUT) % 2) return;
    const Norm *next = layer + 1 < a->n_layers ? &a->layers[layer + 1].attention_norm
                                               : &a->final_norm;
    normalise_stream(s, n < a->networks ? &a->layers[layer].networks[n].norm : next);
}

static void wait_for(Progress *progress, int64_t phase) {
    for (int turn = 0; atomic_load(&progress->open) < phase; turn++) wait_a_moment(turn);
}

static void step_task(const void *context, int64_t number, float *scratch) {
    const Step *s = context;
    int64_t layer = number / s->layer_tasks, task = number % s->layer_tasks, end = number - task;
    if (layer >= s->a->n_layers) {
        wait_for(s->progress, s->a->n_layers * s->phases);
        logits_task(s, number - s->a->n_layers * s->layer_tasks);
        return;
    }
    int phase = 0;
    for (; task >= s->tasks[phase]; phase++) {
        task -= s->tasks[phase];
        end += s->tasks[phase];
    }
    end += s->tasks[phase];
    wait_for(s->progress, layer * s->phases + phase);
    run_phase(s, layer, phase, task, scratch);
    if (atomic_fetch_add(&s->progress->finished, 1) + 1 == end) {
        close_phase(s, layer, phase);
        atomic_store(&s->progress->open, layer * s->phases + phase + 1);
    }
}

/* Rows of a task: enough tasks for every thread to end at nearly the same time, each long enough
 * for its bookkeeping not to matter. */
static int64_t block_rows(int64_t rows, int64_t threads) {
    int64_t wanted = round_up(rows / (threads * TASKS_A_THREAD) + 1, FEWEST_ROWS);
    return smaller(wanted, MOST_ROWS);
}

static int64_t blocks(int64_t rows, int64_t block) { return (rows + block - 1) / block; }

static Step plan(const Decode *a, Progress *progress) {
    Step s = {.a = a, .progress = progress};
    s.width_stride = round_up(a->width, ALIGNMENT);
    s.mixed_stride = round_up(a->heads * a->head_width, ALIGNMENT);
    s.head_stride = round_up(a->head_width, ALIGNMENT);
    s.width_block = block_rows(a->width, a->threads);
    s.logits_block = block_rows(a->vocabulary, a->threads);
    s.tasks[PHASE_HEADS] = a->heads + 2 * a->key_heads;
    s.tasks[PHASE_ATTENTION] = a->batch * a->heads;
    s.tasks[PHASE_OUTPUT] = blocks(a->width, s.width_block);
    for (int64_t n = 0; n < a->networks; n++) {
        int64_t hidden = a->layers[0].networks[n].hidden;
        s.hidden_block[n] = block_rows(hidden, a->threads);
        s.hidden_stride = larger(s.hidden_stride, round_up(hidden, ALIGNMENT));
        s.tasks[PHASE_NETWORKS + 2 * n] = blocks(hidden, s.hidden_block[n]);
        s.tasks[PHASE_NETWORKS + 2 * n + 1] = s.tasks[PHASE_OUTPUT];
    }
    s.phases = PHASE_NETWORKS + 2 * a->networks;
    for (int phase = 0; phase < s.phases; phase++) s.layer_tasks += s.tasks[phase];
    s.total_tasks = a->n_layers * s.layer_tasks + blocks(a->vocabulary, s.logits_block);
    return s;
}

int DECODE(void *arguments) {
    const Decode *a = arguments;
    Progress progress = {0, 0};
    Step s = plan(a, &progress);
    int64_t row = 2 * s.width_stride + a->heads * s.head_stride + s.mixed_stride +
                  a->networks * s.hidden_stride;
    size_t bytes = a->batch * row * sizeof(float);
    void *memory = NULL;
    if (posix_memalign(&memory, ALIGNMENT * sizeof(float), bytes)) return STATUS_NO_MEMORY;
    memset(memory, 0, bytes);         /* the padding of every row must be zero */
    s.x = memory;
    s.normed = s.x + a->batch * s.width_stride;
    s.queries = s.normed + a->batch * s.width_stride;
    s.mixed = s.queries + a->batch * a->heads * s.head_stride;
    s.hidden = s.mixed + a->batch * s.mixed_stride;
    embed(&s);
    int64_t scratch = round_up(a->length + 1, ALIGNMENT);          /* scores, or gates */
    for (int64_t n = 0; n < a->networks; n++) scratch = larger(scratch, a->batch * s.hidden_block[n]);
    int status = run_team(step_task, &s, s.total_tasks, a->threads, scratch);
    free(memory);
    return status;
}
