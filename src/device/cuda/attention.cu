/* Causal attention inside spans, forward and backward: a thread a query and head, or a key and kv head.
 * docs/math/attention.md. Keys pass in blocks of BLOCK that start at multiples of BLOCK in the span, as
 * the CPU's do; keys that a query does not see add exact zeros there and are left out here. */
#include "device/cuda/math.cuh"

enum { BLOCK = 64, HEAD_MAX = 256 };

/* Everything about one launch, captured by value. */
struct tm_cuda_attention {
    tm_spans spans;
    tm_attention a;
    tm_tensor q, k, v, out, lse, dout, delta, dq, dk, dv;
    int64_t D, G;
};

/* Where a row of queries stands: its span, and the positions of the first key it sees and of itself. */
struct tm_cuda_place {
    int64_t key, first, position; /* key: row of the span's first key */
    bool used;
};

TM_LANE int64_t span_of(const tm_spans &s, int64_t row)
{
    int64_t low = 0, high = s.n;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (s.query[middle] <= row)
            low = middle;
        else
            high = middle;
    }
    return low;
}

TM_LANE tm_cuda_place place_of(const tm_cuda_attention &w, int64_t row)
{
    const tm_spans &s = w.spans;
    if (row >= s.query[s.n])
        return {0, 0, 0, false};
    int64_t e = span_of(s, row), position = s.keys[e] - (s.query[e + 1] - s.query[e]) + (row - s.query[e]);
    int64_t first = w.a.window > 0 && position >= w.a.window ? position - w.a.window + 1 : 0;
    return {s.key[e], first, position, true};
}

/* The scaled and capped score; *slope: the cap's derivative. */
TM_LANE float score(const tm_cuda_attention &w, int64_t row, int64_t h, int64_t key, float *slope)
{
    int64_t kv = h / w.G;
    float s = 0;
    for (int64_t c = 0; c < w.D; c++)
        s = fmaf(at(w.k, key, kv * w.D + c), at(w.q, row, h * w.D + c), s);
    s = s * w.a.scale;
    *slope = 1;
    if (w.a.softcap > 0) {
        float t = tanh_of(s / w.a.softcap);
        s = w.a.softcap * t;
        *slope = fmaf(-t, t, 1);
    }
    return s;
}

static bool supported(tm_device *d, const char *op, const tm_attention *a)
{
    if (a->head_size <= HEAD_MAX)
        return true;
    tm_cuda_note(tm_cuda_of(d), TM_UNSUPPORTED, op, "heads wider than 256 are not implemented on CUDA");
    return false;
}

TM_LANE void forward_row(const tm_cuda_attention &w, int64_t row, int64_t h)
{
    tm_cuda_place p = place_of(w, row);
    if (!p.used)
        return;
    int64_t kv = h / w.G;
    float max = -1e30f, sum = 0, acc[HEAD_MAX], e[BLOCK], slope;
    for (int64_t c = 0; c < w.D; c++)
        acc[c] = 0;
    for (int64_t block = p.first / BLOCK * BLOCK; block <= p.position; block += BLOCK) {
        int64_t from = block > p.first ? block : p.first, to = block + BLOCK < p.position + 1 ? block + BLOCK : p.position + 1;
        float before = max;
        for (int64_t j = from; j < to; j++) {
            e[j - block] = score(w, row, h, p.key + j, &slope);
            max = larger(e[j - block], max);
        }
        float factor = exp_of(before - max);
        sum = sum * factor;
        for (int64_t j = from; j < to; j++) {
            e[j - block] = exp_of(e[j - block] - max);
            sum = sum + e[j - block];
        }
        for (int64_t c = 0; c < w.D; c++) {
            float o = acc[c] * factor;
            for (int64_t j = from; j < to; j++)
                o = fmaf(at(w.v, p.key + j, kv * w.D + c), e[j - block], o);
            acc[c] = o;
        }
    }
    for (int64_t c = 0; c < w.D; c++)
        put(w.out, row, h * w.D + c, acc[c] / sum + 0.0f); /* one sign of zero */
    if (w.lse.data)
        put(w.lse, row, h, max + log_of(sum));
}

void tm_cuda_attention_forward(tm_device *d, const tm_spans *spans, const tm_attention *a, tm_tensor q, tm_tensor k, tm_tensor v, tm_tensor out, tm_tensor lse)
{
    if (!tm_cuda_floats(d, "attention_forward", {q, k, v, out, lse}) || !supported(d, "attention_forward", a))
        return;
    tm_tensor none = {};
    tm_cuda_attention w = {*spans, *a, q, k, v, out, lse, none, none, none, none, none, a->head_size, a->heads / a->kv_heads};
    int64_t heads = a->heads;
    tm_cuda_each(d, "attention_forward", q.rows * heads, [=] __device__(int64_t i) { forward_row(w, i / heads, i % heads); });
}

/* e = softmax weight of a key, ds = gradient of its score. */
struct tm_cuda_score_grad {
    float e, ds;
};

TM_LANE tm_cuda_score_grad score_gradient(const tm_cuda_attention &w, int64_t row, int64_t h, int64_t key)
{
    int64_t kv = h / w.G;
    float slope, s = score(w, row, h, key, &slope), dp = 0;
    for (int64_t c = 0; c < w.D; c++)
        dp = fmaf(at(w.v, key, kv * w.D + c), at(w.dout, row, h * w.D + c), dp);
    float e = exp_of(s - at(w.lse, row, h));
    float ds = (e * (dp - at(w.delta, row, h))) * w.a.scale;
    return {e, w.a.softcap > 0 ? ds * slope : ds};
}

TM_LANE void query_row(const tm_cuda_attention &w, int64_t row, int64_t h)
{
    tm_cuda_place p = place_of(w, row);
    if (!p.used)
        return;
    float acc[HEAD_MAX];
    for (int64_t c = 0; c < w.D; c++)
        acc[c] = 0;
    for (int64_t j = p.first; j <= p.position; j++) {
        float ds = score_gradient(w, row, h, p.key + j).ds;
        for (int64_t c = 0; c < w.D; c++)
            acc[c] = fmaf(at(w.k, p.key + j, h / w.G * w.D + c), ds, acc[c]);
    }
    for (int64_t c = 0; c < w.D; c++)
        put(w.dq, row, h * w.D + c, acc[c]);
}

/* Key `row` (keys = queries in training): a chain over the queries that see it and the heads of its group. */
TM_LANE void key_row(const tm_cuda_attention &w, int64_t row, int64_t kv)
{
    tm_cuda_place p = place_of(w, row);
    if (!p.used)
        return;
    int64_t e = span_of(w.spans, row), end = w.spans.query[e + 1], key = p.key + p.position;
    if (w.a.window > 0 && row + w.a.window < end)
        end = row + w.a.window;
    float dk[HEAD_MAX], dv[HEAD_MAX];
    for (int64_t c = 0; c < w.D; c++)
        dk[c] = dv[c] = 0;
    for (int64_t query = row; query < end; query++)
        for (int64_t h = kv * w.G; h < (kv + 1) * w.G; h++) {
            tm_cuda_score_grad g = score_gradient(w, query, h, key);
            for (int64_t c = 0; c < w.D; c++) {
                dv[c] = fmaf(g.e, at(w.dout, query, h * w.D + c), dv[c]);
                dk[c] = fmaf(g.ds, at(w.q, query, h * w.D + c), dk[c]);
            }
        }
    for (int64_t c = 0; c < w.D; c++) {
        put(w.dk, key, kv * w.D + c, dk[c]);
        put(w.dv, key, kv * w.D + c, dv[c]);
    }
}

void tm_cuda_attention_backward(tm_device *d, const tm_spans *spans, const tm_attention *a, tm_tensor dout, tm_tensor q, tm_tensor k, tm_tensor v, tm_tensor out, tm_tensor lse, tm_tensor delta, tm_tensor dq, tm_tensor dk, tm_tensor dv)
{
    const char *op = "attention_backward";
    if (!tm_cuda_floats(d, op, {dout, q, k, v, out, lse, delta, dq, dk, dv}) || !supported(d, op, a))
        return;
    tm_cuda_attention w = {*spans, *a, q, k, v, out, lse, dout, delta, dq, dk, dv, a->head_size, a->heads / a->kv_heads};
    int64_t heads = a->heads, kv_heads = a->kv_heads;
    tm_cuda_each(d, op, q.rows * heads, [=] __device__(int64_t i) {
        int64_t row = i / heads, h = i % heads;
        if (row < w.spans.query[w.spans.n])
            put(w.delta, row, h, lane_sum(w.D, [&](int64_t c, float s) { return fmaf(at(w.dout, row, h * w.D + c), at(w.out, row, h * w.D + c), s); }));
    });
    tm_cuda_each(d, op, q.rows * heads, [=] __device__(int64_t i) { query_row(w, i / heads, i % heads); });
    tm_cuda_each(d, op, q.rows * kv_heads, [=] __device__(int64_t i) { key_row(w, i / kv_heads, i % kv_heads); });
}
