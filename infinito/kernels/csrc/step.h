/* One decode step, of one token or a chunk of them, as numbered tasks in the order of the model.
 * Included once per instruction set, after its vector header, with DECODE naming the function to
 * define.
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
#define OWN_FLOATS 32                 /* room for Own */

#include "product.h"
#include "parts.h"

enum { HEADS, ATTENTION, OUTPUT, ROUTE, EXPERTS_UP, EXPERTS_DOWN, UP, DOWN };

typedef struct {
    int kind, branch;
    int64_t tasks;
    int next;                         /* the branch whose norm follows, or -1: none does */
} Phase;

typedef struct {
    atomic_llong finished;            /* tasks, over all phases */
    atomic_llong open;                /* the last phase that may begin */
} Progress;

/* What experts.h works with, of one branch at a time. */
typedef struct {
    float *gathered, *hidden;         /* (places, width_stride), (places, hidden_stride) */
    float *gates;                     /* (R, top_k) */
    int32_t *chosen, *place;          /* (R, top_k) */
    int32_t *expert, *start;          /* (groups,), (groups + 1,): whose, and its first place */
    int64_t groups;                   /* at most; those behind the last are empty */
} Routing;

/* What a thread has for itself, at the head of its scratch memory. */
typedef struct {
    Turned turned;
    float *scratch;                   /* of one task */
} Own;

typedef struct {
    const Decode *a;
    Progress *progress;
    int coded;                        /* rows that are multiplied have codes behind them */
    int64_t turned_room;              /* floats of a thread for turned columns */
    int64_t rows;                     /* R: row b T + t is token t of sequence b */
    int64_t width_stride, mixed_stride, head_stride, hidden_stride, score_stride;
    float *x, *normed;                /* (R, width_stride): the residual stream, and its norm */
    float *queries;                   /* (R, H, head_stride) */
    float *mixed, *hidden;            /* (R, mixed_stride), (N, R, hidden_stride) */
    Routing routing;
    int64_t width_block, logits_block;                   /* rows of a task */
    int64_t layer_tasks, total_tasks;
    int phases;
    Phase phase[3 + 5 * MOST_BRANCHES];
} Step;

/* Rows of a task: enough tasks for every thread to end at nearly the same time, each long enough
 * for its bookkeeping not to matter. */
static int64_t block_rows(int64_t rows, int64_t threads) {
    int64_t wanted = round_up(rows / (threads * TASKS_A_THREAD) + 1, FEWEST_ROWS);
    return smaller(wanted, MOST_ROWS);
}

static int64_t blocks(int64_t rows, int64_t block) { return (rows + block - 1) / block; }

/* x to normed. */
static void normalise_stream(const Step *s, const Norm *norm) {
    for (int64_t r = 0; r < s->rows; r++)
        normalise(norm, s->x + r * s->width_stride, s->a->width, s->normed + r * s->width_stride);
    if (s->coded) encode_rows(s->normed, s->width_stride, s->rows, s->a->width);
}

static void embed(const Step *s) {
    const Decode *a = s->a;
    for (int64_t r = 0; r < s->rows; r++) {
        float *x = s->x + r * s->width_stride;
        int64_t position = (a->length + r % a->chunk) * a->width;
        read_row(a->embedding, a->tokens[r], a->width, x);
        if (a->positions)
            for (int64_t i = 0; i < a->width; i++) x[i] += a->positions[position + i];
        normalise(&a->embedding_norm, x, a->width, x);
    }
    normalise_stream(s, &a->layers[0].attention_norm);
}

/* One head's rows of the query, key or value matrix; keys and values go to their place in the
 * cache. Rows that lie there at one distance are done at once: those of a sequence, or, where each
 * sequence has one, all. */
static void heads_task(const Step *s, int64_t layer, int64_t task, Own *own) {
    const Decode *a = s->a;
    const Layer *l = &a->layers[layer];
    int64_t d = a->head_width, kind = task < a->heads ? 0 : 1 + (task - a->heads) / a->key_heads;
    int64_t head = kind ? (task - a->heads) % a->key_heads : task;
    Matrix matrix = kind == 0 ? l->query : kind == 1 ? l->key : l->value;
    const Norm *norm = kind == 0 ? &l->query_norm : &l->key_norm;
    int64_t together = a->chunk == 1 ? a->batch : a->chunk, sequence = a->key_heads * a->capacity * d;
    for (int64_t first = 0; first < s->rows; first += together) {
        Target target = {s->queries + (first * a->heads + head) * s->head_stride,
                         a->heads * s->head_stride, 0};
        if (kind) {
            target.data = (kind == 1 ? a->keys : a->values) + layer * a->batch * sequence +
                          first / a->chunk * sequence + (head * a->capacity + a->length) * d;
            target.stride = a->chunk == 1 ? sequence : d;
        }
        product(&own->turned, matrix, head * d, d, a->width, s->normed + first * s->width_stride,
                s->width_stride, together, target);
        for (int64_t r = 0; r < together && kind < 2; r++) {
            float *row = target.data + r * target.stride;
            int64_t turn = (a->length + (first + r) % a->chunk) * d;
            if (norm->gain) normalise_head(norm, row, d);
            if (a->cosines) rotate_head(row, a->cosines + turn, a->sines + turn, d);
        }
    }
}

/* One query head of QUERY_TILE neighbours in one sequence. `scores` is (QUERY_TILE, score_stride). */
static void attention_task(const Step *s, int64_t layer, int64_t task, float *scores) {
    const Decode *a = s->a;
    int64_t tiles = blocks(a->chunk, QUERY_TILE), d = a->head_width;
    int64_t h = task / tiles % a->heads, b = task / tiles / a->heads;
    int64_t t = task % tiles * QUERY_TILE, row = b * a->chunk + t;
    int64_t count = smaller(QUERY_TILE, a->chunk - t), n = a->length + t + count;
    int64_t key_head = h / (a->heads / a->key_heads);
    int64_t offset = ((layer * a->batch + b) * a->key_heads + key_head) * a->capacity * d;
    const float *lambda = a->layers[layer].log_lambda;
    const float *query = s->queries + (row * a->heads + h) * s->head_stride;
    Target target = {scores, s->score_stride, 0};
    float total[QUERY_TILE];
    score_any(a->kind, a->keys + offset, n, d, query, a->heads * s->head_stride, count,
              (const char *)a->values - (const char *)a->keys, target);
    for (int64_t q = 0; q < count; q++, query += a->heads * s->head_stride) {
        float scale = a->scale * (lambda ? expf(lambda[h % a->lambdas]) : 1.0f);
        if (a->kind == KIND_COSINE) scale *= inverse_norm(squared_norm(query, d));
        total[q] = exponentials(a->kind, scores + q * s->score_stride, n - count + q + 1, n, scale,
                                a->slopes ? a->slopes[h] : 0.0f);
    }
    mix(target, total, count, n, a->values + offset, d, a->keys - a->values + a->capacity * d,
        (Target){s->mixed + row * s->mixed_stride + h * d, s->mixed_stride, 0});
}

/* A block of rows of a (width, .) matrix, added to the residual stream. */
static void residual_task(const Step *s, Matrix matrix, int64_t inner, const float *input,
                          int64_t stride, int64_t task, Own *own) {
    int64_t first = task * s->width_block, rows = smaller(s->width_block, s->a->width - first);
    product(&own->turned, matrix, first, rows, inner, input, stride, s->rows,
            (Target){s->x + first, s->width_stride, 1});
}

/* A block of hidden units of a network, activated, of `columns` rows. */
static void up_task(const Step *s, const Network *network, const float *input, int64_t columns,
                    float *hidden, int64_t task, Own *own) {
    float *gates = own->scratch;
    const Decode *a = s->a;
    int64_t block = block_rows(network->hidden, a->threads), first = task * block;
    int64_t rows = smaller(block, network->hidden - first);
    hidden += first;
    product(&own->turned, network->up, first, rows, a->width, input, s->width_stride, columns,
            (Target){hidden, s->hidden_stride, 0});
    if (network->gate.data) {
        memset(gates, 0, columns * block * sizeof(float));
        product(&own->turned, network->gate, first, rows, a->width, input, s->width_stride, columns,
                (Target){gates, block, 0});
    }
    for (int64_t c = 0; c < columns; c++)
        for (int64_t i = 0; i < rows; i += LANES) {
            float *place = hidden + c * s->hidden_stride + i;
            vf up = vector_load(place);
            vf gate = network->gate.data ? vector_load(gates + c * block + i) : up;
            vector_store(place, activate(a->activation, up, gate));
        }
}

#include "experts.h"

static void logits_task(const Step *s, int64_t task, Own *own) {
    const Decode *a = s->a;
    int64_t first = task * s->logits_block, rows = smaller(s->logits_block, a->vocabulary - first);
    product(&own->turned, a->head, first, rows, a->width, s->normed + (a->chunk - 1) * s->width_stride,
            a->chunk * s->width_stride, a->batch, (Target){a->logits + first, a->vocabulary, 0});
}

static void run_phase(const Step *s, int64_t layer, const Phase *phase, int64_t task,
                      Own *own) {
    const Decode *a = s->a;
    const Layer *l = &a->layers[layer];
    const Branch *branch = &l->branches[phase->branch];
    float *hidden = s->hidden + phase->branch * s->rows * s->hidden_stride;
    switch (phase->kind) {
    case HEADS: heads_task(s, layer, task, own); break;
    case ATTENTION: attention_task(s, layer, task, own->scratch); break;
    case OUTPUT:
        residual_task(s, l->output, a->heads * a->head_width, s->mixed, s->mixed_stride, task,
                      own);
        break;
    case ROUTE: route_task(s, branch, own); break;
    case EXPERTS_UP: experts_up_task(s, branch, task, own); break;
    case EXPERTS_DOWN: experts_down_task(s, branch, task, own); break;
    case UP: up_task(s, &branch->network, s->normed, s->rows, hidden, task, own); break;
    case DOWN:
        residual_task(s, branch->network.down, branch->network.hidden, hidden, s->hidden_stride,
                      task, own);
    }
}

/* What the last thread of a phase does before the next may begin. */
static void close_phase(const Step *s, int64_t layer, const Phase *phase) {
    const Decode *a = s->a;
    const Branch *branch = &a->layers[layer].branches[phase->branch];
    const Norm *outside = layer + 1 < a->n_layers ? &a->layers[layer + 1].attention_norm
                                                  : &a->final_norm;
    if (phase->next >= 0)
        normalise_stream(s, phase->next < a->branches ? &a->layers[layer].branches[phase->next].norm
                                                      : outside);
    if (!s->coded) return;
    if (phase->kind == ATTENTION)
        encode_rows(s->mixed, s->mixed_stride, s->rows, a->heads * a->head_width);
    if (phase->kind == EXPERTS_UP)
        encode_rows(s->routing.hidden, s->hidden_stride, s->rows * branch->top_k,
                    branch->experts[0].hidden);
    if (phase->kind == UP)
        encode_rows(s->hidden + phase->branch * s->rows * s->hidden_stride, s->hidden_stride,
                    s->rows, branch->network.hidden);
}

static void wait_for(Progress *progress, int64_t phase) {
    for (int turn = 0; atomic_load(&progress->open) < phase; turn++) wait_a_moment(turn);
}

/* A thread's own memory, at work on a phase; of the first such, 1, it is all zeros before. */
static Own *own_memory(const Step *s, float *memory, int64_t phase) {
    Own *own = (Own *)memory;
    own->turned.coded = s->coded;
    own->turned.numbers = memory + OWN_FLOATS;
    own->scratch = own->turned.numbers + s->turned_room;
    if (own->turned.phase != phase) own->turned.x = NULL;
    own->turned.phase = phase;
    return own;
}

static void step_task(const void *context, int64_t number, float *memory) {
    const Step *s = context;
    int64_t layer = number / s->layer_tasks, task = number % s->layer_tasks, end = number - task;
    if (layer >= s->a->n_layers) {
        int64_t last = s->a->n_layers * s->phases;
        wait_for(s->progress, last);
        logits_task(s, number - s->a->n_layers * s->layer_tasks, own_memory(s, memory, last + 1));
        return;
    }
    int phase = 0;
    for (; task >= s->phase[phase].tasks; phase++) {
        task -= s->phase[phase].tasks;
        end += s->phase[phase].tasks;
    }
    end += s->phase[phase].tasks;
    int64_t open = layer * s->phases + phase;
    wait_for(s->progress, open);
    run_phase(s, layer, &s->phase[phase], task, own_memory(s, memory, open + 1));
    if (atomic_fetch_add(&s->progress->finished, 1) + 1 == end) {
        close_phase(s, layer, &s->phase[phase]);
        atomic_store(&s->progress->open, open + 1);
    }
}

static void add_phase(Step *s, int kind, int branch, int64_t tasks) {
    s->phase[s->phases++] = (Phase){kind, branch, tasks, -1};
    s->layer_tasks += tasks;
}

/* The phases of a layer; all layers have the same. */
static void add_phases(Step *s, const Decode *a) {
    int64_t width_blocks = blocks(a->width, s->width_block);
    add_phase(s, HEADS, 0, a->heads + 2 * a->key_heads);
    add_phase(s, ATTENTION, 0, a->batch * a->heads * blocks(a->chunk, QUERY_TILE));
    add_phase(s, OUTPUT, 0, width_blocks);
    s->phase[s->phases - 1].next = 0;
    for (int n = 0; n < a->branches; n++) {
        const Branch *branch = &a->layers[0].branches[n];
        if (branch->top_k) {
            int64_t hidden = branch->experts[0].hidden;
            add_phase(s, ROUTE, n, 1);
            add_phase(s, EXPERTS_UP, n,
                      s->routing.groups * blocks(hidden, block_rows(hidden, a->threads)));
            add_phase(s, EXPERTS_DOWN, n, width_blocks);
        }
        if (branch->network.hidden) {
            int64_t hidden = branch->network.hidden;
            add_phase(s, UP, n, blocks(hidden, block_rows(hidden, a->threads)));
            add_phase(s, DOWN, n, width_blocks);
        }
        s->phase[s->phases - 1].next = n + 1;
    }
}

/* Floats from one row to the next. */
static int64_t row_stride(const Step *s, int64_t width) {
    return round_up(width, ALIGNMENT) + (s->coded ? code_room(width) : 0);
}

/* The sizes; returns the most floats that a task needs for itself. */
static int64_t plan(Step *s, const Decode *a, int64_t *places) {
    int64_t hidden = 0;
    s->rows = a->batch * a->chunk;
    s->score_stride = round_up(a->length + a->chunk, ALIGNMENT);
    int64_t scratch = smaller(a->chunk, QUERY_TILE) * s->score_stride;
    for (int n = 0; n < a->branches; n++) {
        const Branch *branch = &a->layers[0].branches[n];
        int64_t expert = branch->top_k ? branch->experts[0].hidden : 0, k = branch->top_k;
        hidden = larger(hidden, larger(expert, branch->network.hidden));
        *places = larger(*places, s->rows * k);
        s->routing.groups = larger(s->routing.groups, smaller(branch->n_experts, s->rows * k));
        scratch = larger(scratch, s->rows * branch->n_experts);
    }
    s->coded = a->grouped && can_code();
    int64_t widest = larger(larger(a->width, a->heads * a->head_width), hidden);
    s->turned_room = round_up(s->rows, LANES) * round_up(smaller(widest, MOST_TURNED_WIDTH), 64);
    s->width_stride = row_stride(s, a->width);
    s->mixed_stride = row_stride(s, a->heads * a->head_width);
    s->head_stride = round_up(a->head_width, ALIGNMENT);
    s->hidden_stride = row_stride(s, hidden);
    s->width_block = block_rows(a->width, a->threads);
    s->logits_block = block_rows(a->vocabulary, a->threads);
    add_phases(s, a);
    s->total_tasks = a->n_layers * s->layer_tasks;
    if (a->logits) s->total_tasks += blocks(a->vocabulary, s->logits_block);
    return OWN_FLOATS + s->turned_room + larger(scratch, larger(s->rows, *places) * MOST_ROWS);
}

/* `count` numbers of four bytes, aligned, from memory that begins at *next. */
static void *take(float **next, int64_t count) {
    float *taken = *next;
    *next += round_up(count, ALIGNMENT);
    return taken;
}

/* Where everything lies behind `memory`; returns the end. */
static float *lay_out(Step *s, const Decode *a, int64_t places, float *memory) {
    Routing *r = &s->routing;
    s->x = take(&memory, s->rows * s->width_stride);
    s->normed = take(&memory, s->rows * s->width_stride);
    s->queries = take(&memory, s->rows * a->heads * s->head_stride);
    s->mixed = take(&memory, s->rows * s->mixed_stride);
    s->hidden = take(&memory, a->branches * s->rows * s->hidden_stride);
    r->gathered = take(&memory, places * s->width_stride);
    r->hidden = take(&memory, places * s->hidden_stride);
    r->gates = take(&memory, places);
    r->chosen = take(&memory, places);
    r->place = take(&memory, places);
    r->expert = take(&memory, r->groups);
    r->start = take(&memory, r->groups + 1);
    return memory;
}

int DECODE(void *arguments) {
    const Decode *a = arguments;
    Progress progress = {0, 0};
    Step s = {.a = a, .progress = &progress};
    int64_t places = 0, scratch = plan(&s, a, &places);
    size_t bytes = (lay_out(&s, a, places, NULL) - (float *)NULL) * sizeof(float);
    void *memory = NULL;
    if (posix_memalign(&memory, ALIGNMENT * sizeof(float), bytes)) return STATUS_NO_MEMORY;
    memset(memory, 0, bytes);         /* the padding of every row must be zero */
    lay_out(&s, a, places, memory);
    embed(&s);
    int status = run_team(step_task, &s, s.total_tasks, a->threads, scratch);
    free(memory);
    return status;
}
