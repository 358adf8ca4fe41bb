/* The small parts of a block, on rows in memory: normalisation, rotation, attention, activation. */

#define LOG2_E 1.4426950408889634f

/* The legacy norm, in any precision that is enough. */
static void normalise_layer(const Norm *norm, const float *row, int64_t width, float *out) {
    double mean = 0, squares = 0;
    for (int64_t i = 0; i < width; i++) mean += row[i] / (double)width;
    for (int64_t i = 0; i < width; i++) squares += (row[i] - mean) * (row[i] - mean);
    double factor = 1.0 / sqrt(squares / (double)width + norm->epsilon);
    for (int64_t i = 0; i < width; i++)
        out[i] = (float)((row[i] - mean) * factor) * norm->gain[i] + norm->bias[i];
}

/* out = row / rms(row) * gain. `row` is aligned and padded with zeros to whole vectors. */
static void normalise(const Norm *norm, const float *row, int64_t width, float *out) {
    if (norm->bias) {
        normalise_layer(norm, row, width, out);
        return;
    }
    if (!norm->gain) {
        memmove(out, row, width * sizeof(float));
        return;
    }
    vf squares = vector_splat(0.0f);
    for (int64_t i = 0; i < width; i += LANES) {
        vf x = vector_load(row + i);
        squares += x * x;
    }
    float factor = 1.0f / sqrtf(sum_lanes(squares) / (float)width + norm->epsilon);
    for (int64_t i = 0; i < width; i++) out[i] = row[i] * factor * norm->gain[i];
}

/* A head is short, and lies where it happens to lie. */
static float squared_norm(const float *head, int64_t width) {
    float squares = 0;
    for (int64_t i = 0; i < width; i++) squares += head[i] * head[i];
    return squares;
}

/* RMSNorm of one head in place. */
static void normalise_head(const Norm *norm, float *head, int64_t width) {
    float factor = 1.0f / sqrtf(squared_norm(head, width) / (float)width + norm->epsilon);
    for (int64_t i = 0; i < width; i++) head[i] *= factor * norm->gain[i];
}

/* Turns each pair (head[i], head[i + D/2]) by its angle, in place. */
static void rotate_head(float *head, const float *cosines, const float *sines, int64_t width) {
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        float low = head[i], high = head[i + half];
        head[i] = low * cosines[i] + high * sines[i];
        head[i + half] = high * cosines[i + half] + low * sines[i + half];
    }
}

/* What score_keys made (n,) to unnormalised softmax weights in place, zeros behind them, up to
 * `room` at least; returns their sum. `slope` is a penalty a position of distance from the last
 * score. */
static float exponentials(int kind, float *scores, int64_t n, int64_t room, float scale,
                          float slope) {
    float largest = -INFINITY;
    if (kind == KIND_L2)
        for (int64_t i = 0; i < n; i++) scores[i] = sqrtf(scores[i] + L2_EPSILON);
    if (kind != KIND_DOT && kind != KIND_COSINE) scale = -scale;
    for (int64_t i = 0; i < n; i++) {
        scores[i] = (scores[i] * scale - slope * (float)(n - 1 - i)) * LOG2_E;
        largest = scores[i] > largest ? scores[i] : largest;
    }
    int64_t end = round_up(room, LANES);
    for (int64_t i = n; i < end; i++) scores[i] = -INFINITY;
    vf total = vector_splat(0.0f);
    for (int64_t i = 0; i < end; i += LANES) {
        vf weight = vector_exp2(vector_load(scores + i) - vector_splat(largest));
        vector_store(scores + i, weight);
        total += weight;
    }
    return sum_lanes(total);
}

/* out[q, d] = sum over n of weights[q, n] values[n, d] / total[q]: `vectors` vectors of `queries`
 * rows from column d on. What lies `ahead` floats from the values is asked for: it is next. */
INLINE void mix_columns(const int vectors, const int queries, Target weights, const float *total,
                        int64_t n, const float *values, int64_t width, int64_t ahead, int64_t d,
                        Target out) {
    vf sums[QUERY_TILE][4], row[4];
    UNROLL for (int q = 0; q < queries; q++)
        UNROLL for (int j = 0; j < vectors; j++) sums[q][j] = vector_splat(0.0f);
    for (int64_t i = 0; i < n; i++) {
        UNROLL for (int j = 0; j < vectors; j++) {
            row[j] = load_any(values + i * width + d + j * LANES);
            if (queries == 1) __builtin_prefetch(values + i * width + d + j * LANES + ahead);
        }
        UNROLL for (int q = 0; q < queries; q++)
            UNROLL for (int j = 0; j < vectors; j++)
                sums[q][j] += weights.data[q * weights.stride + i] * row[j];
    }
    UNROLL for (int q = 0; q < queries; q++)
        UNROLL for (int j = 0; j < vectors; j++) {
            sums[q][j] /= total[q];
            memcpy(out.data + q * out.stride + d + j * LANES, &sums[q][j], sizeof(vf));
        }
}

INLINE void mix_queries(const int queries, Target weights, const float *total, int64_t n,
                        const float *values, int64_t width, int64_t ahead, Target out) {
    int64_t d = 0;
    for (; d + 4 * LANES <= width; d += 4 * LANES)
        mix_columns(4, queries, weights, total, n, values, width, ahead, d, out);
    for (; d + LANES <= width; d += LANES)
        mix_columns(1, queries, weights, total, n, values, width, ahead, d, out);
    for (; d < width; d++)
        for (int q = 0; q < queries; q++) {
            float sum = 0;
            for (int64_t i = 0; i < n; i++)
                sum += weights.data[q * weights.stride + i] * values[i * width + d];
            out.data[q * out.stride + d] = sum / total[q];
        }
}

static void mix(Target weights, const float *total, int64_t queries, int64_t n,
                const float *values, int64_t width, int64_t ahead, Target out) {
    if (queries == QUERY_TILE) {
        mix_queries(QUERY_TILE, weights, total, n, values, width, ahead, out);
        return;
    }
    for (int64_t q = 0; q < queries; q++, weights.data += weights.stride, out.data += out.stride)
        mix_queries(1, weights, total + q, n, values, width, ahead, out);
}

/* 1 / (1 + e^-x). Selecting keeps a NaN, which a maximum would lose. */
INLINE vf sigmoid(vf x) {
    vf exponent = x * -LOG2_E;
    exponent = vector_select(exponent > 126.0f, vector_splat(126.0f), exponent);
    return 1.0f / (1.0f + vector_exp2(exponent));
}

/* up (and, for SwiGLU, gate) to hidden, in place of up. */
INLINE vf activate(int activation, vf up, vf gate) {
    if (activation == ACTIVATION_SWIGLU) return gate * sigmoid(gate) * up;
    if (activation == ACTIVATION_RELU2) {
        vf positive = vector_select(up < 0.0f, vector_splat(0.0f), up);
        return positive * positive;
    }
    /* 0.5 (1 + tanh(u)) = sigmoid(2 u), with u = sqrt(2 / pi) (x + 0.044715 x^3). */
    return up * sigmoid(1.5957691216057308f * (up + 0.044715f * up * up * up));
}
