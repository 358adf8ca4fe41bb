/* Mixture of experts: each row passes the networks that a router names for it. Included by step.h.
 *
 * A place is a row in front of one of its experts. Places are ordered by expert, so that each
 * expert's weights are read once for all of its rows: they are one group. */

/* The k largest of n logits, the lower number first among equals, and their gates: the softmax
 * over the chosen; of a single one, over all. Takes the chosen out of the logits. */
static void choose_experts(float *logits, int64_t n, int64_t k, int32_t *chosen, float *gates) {
    float largest = -INFINITY, all = 0, total = 0;
    for (int64_t i = 0; i < n; i++) largest = logits[i] > largest ? logits[i] : largest;
    for (int64_t i = 0; i < n; i++) all += expf(logits[i] - largest);
    for (int64_t j = 0; j < k; j++) {
        int64_t best = 0;
        for (int64_t i = 1; i < n; i++) best = logits[i] > logits[best] ? i : best;
        chosen[j] = (int32_t)best;
        gates[j] = expf(logits[best] - largest);
        total += gates[j];
        logits[best] = -INFINITY;
    }
    if (k == 1 || all != all) total = all;     /* what is no number may not be passed over */
    for (int64_t j = 0; j < k; j++) gates[j] /= total;
}

/* The choices of all rows, and their places. The scratch has room for (R, E) logits. */
static void route_task(const Step *s, const Branch *branch, Own *own) {
    float *logits = own->scratch;
    const Decode *a = s->a;
    const Routing *r = &s->routing;
    int64_t n = branch->n_experts, k = branch->top_k, places = s->rows * k, group = 0;
    product(&own->turned, branch->router, 0, n, a->width, s->normed, s->width_stride, s->rows,
            (Target){logits, n, 0});
    for (int64_t b = 0; b < s->rows; b++)
        choose_experts(logits + b * n, n, k, r->chosen + b * k, r->gates + b * k);
    int32_t next = 0;
    for (int64_t expert = 0; expert < n; expert++) {
        r->start[group] = next;
        for (int64_t p = 0; p < places; p++)
            if (r->chosen[p] == expert) {
                memcpy(r->gathered + next * s->width_stride, s->normed + p / k * s->width_stride,
                       s->width_stride * sizeof(float));
                r->place[p] = next++;
            }
        if (next > r->start[group]) r->expert[group++] = (int32_t)expert;
    }
    for (; group <= r->groups; group++) r->start[group] = next;
}

/* A block of hidden units of one group. */
static void experts_up_task(const Step *s, const Branch *branch, int64_t task, Own *own) {
    const Routing *r = &s->routing;
    int64_t group = task % r->groups, first = r->start[group], rows = r->start[group + 1] - first;
    if (rows > 0)
        up_task(s, &branch->experts[r->expert[group]], r->gathered + first * s->width_stride, rows,
                r->hidden + first * s->hidden_stride, task / r->groups, own);
}

/* A block of the residual stream, to which each row's experts add in the order of its choices.
 * The scratch has room for (places, width_block) results. */
static void experts_down_task(const Step *s, const Branch *branch, int64_t task, Own *own) {
    float *results = own->scratch;
    const Decode *a = s->a;
    const Routing *r = &s->routing;
    int64_t first = task * s->width_block, rows = smaller(s->width_block, a->width - first);
    for (int64_t group = 0; group < r->groups && r->start[group + 1] > r->start[group]; group++) {
        const Network *expert = &branch->experts[r->expert[group]];
        product(&own->turned, expert->down, first, rows, expert->hidden,
                r->hidden + r->start[group] * s->hidden_stride, s->hidden_stride,
                r->start[group + 1] - r->start[group],
                (Target){results + r->start[group] * s->width_block, s->width_block, 0});
    }
    for (int64_t b = 0; b < s->rows; b++)
        for (int64_t i = 0; i < rows; i++) {
            float sum = 0;
            for (int64_t p = b * branch->top_k; p < (b + 1) * branch->top_k; p++)
                sum += r->gates[p] * results[r->place[p] * s->width_block + i];
            s->x[b * s->width_stride + first + i] += sum;
        }
}
