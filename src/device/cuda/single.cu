/* Single tokens of texts under way, a row each (tm_rows.single): products and attention with activations of 16 bits.
 *
 * With few rows a product takes as long as it takes to read the weights. So a warp reads rows of the weight, sixteen
 * bytes a lane at a time and every one once, and meets up to ROWS rows of x with each; of attention a warp has a part of
 * a text's keys and a few heads that share them. No tensor cores, no atomics.
 *
 * Invariants:
 *  1. The order of a sum follows from the model's sizes and the position of the key: lane l sums columns 8 l .. 8 l + 7,
 *     then those 256 further on, and so forth; the lanes are joined in one tree. How many rows there are, how many
 *     columns of y a warp has and whose the other rows are is not in it. So a row has the same bits alone and among others.
 *  2. Whether an op is served here depends on `single`, types and sizes, never on the number of rows. */
#include "device/cuda/math.cuh"
#include "device/cuda/warp.cuh"

enum { ROWS = 16, EIGHT = 8, STEP = LANES * EIGHT };

/* --- Elements --- */

struct as_bf16 {
    uint16_t bits;
    __device__ float value() const { return tm_bf16_to_f32(bits); }
    __device__ static float round(float x) { return tm_bf16_to_f32(tm_f32_to_bf16(x)); }
};
struct as_f16 {
    uint16_t bits;
    __device__ float value() const { return from_f16(bits); }
    __device__ static float round(float x) { return from_f16(to_f16(x)); }
};
struct as_f32 {
    float x;
    __device__ float value() const { return x; }
};

template <class T> struct alignas(16) eight {
    T x[EIGHT];
};

template <class T> struct alignas(2 * sizeof(T)) two {
    T x[2];
};

template <class T> TM_LANE const eight<T> &eight_at(const void *data, int64_t i) { return *(const eight<T> *)((const T *)data + i); }

static bool in_eights(const tm_tensor &t) { return (uintptr_t)t.data % 16 == 0 && t.ld % EIGHT == 0 && t.cols % EIGHT == 0; }
static bool is_half(tm_dtype t) { return t == TM_BF16 || t == TM_F16; }

/* --- Products --- */

/* y[t, n] = sum over k of x[t, k] w[n, k], and what finish(t, n, sum) makes of it, for rows t from `first` on, fewer than
 * COUNT + 1. */
template <int COUNT, int COLUMNS, class X, class W, bool SAME, class F>
static void multiply(tm_device *d, const char *op, const tm_tensor &x, const tm_tensor &w, int64_t first, int64_t rows, F finish)
{
    int64_t n = w.rows, K = w.cols;
    const X *at_x = (const X *)x.data + first * x.ld;
    tm_cuda_warps(d, op, (n + COLUMNS - 1) / COLUMNS, [=] __device__(int64_t warp) {
        by_lane<float> sum[COLUMNS][COUNT];
        EACH_LANE(lane) {
            UNROLL for (int c = 0; c < COLUMNS; c++)
                UNROLL for (int t = 0; t < COUNT; t++)
                    sum[c][t][lane] = 0;
            UNROLL_TWICE for (int64_t k = lane * EIGHT; k < K; k += STEP) {
                float a[COLUMNS][EIGHT];
                UNROLL for (int c = 0; c < COLUMNS; c++) {
                    int64_t row = warp * COLUMNS + c < n ? warp * COLUMNS + c : n - 1;
                    eight<W> e = eight_at<W>(w.data, row * w.ld + k);
                    UNROLL for (int i = 0; i < EIGHT; i++)
                        a[c][i] = SAME ? e.x[i].value() : X::round(e.x[i].value());
                }
                UNROLL for (int t = 0; t < COUNT; t++) {
                    eight<X> e = eight_at<X>(at_x, (t < rows ? t : 0) * x.ld + k);
                    UNROLL for (int i = 0; i < EIGHT; i++)
                        UNROLL for (int c = 0; c < COLUMNS; c++)
                            sum[c][t][lane] = fmaf(e.x[i].value(), a[c][i], sum[c][t][lane]);
                }
            }
        }
        UNROLL for (int c = 0; c < COLUMNS; c++)
            UNROLL for (int t = 0; t < COUNT; t++) {
                sum_lanes(sum[c][t]);
                EACH_LANE(lane)
                if (lane == (c * COUNT + t) % LANES && t < rows && warp * COLUMNS + c < n)
                    finish(first + t, warp * COLUMNS + c, sum[c][t][lane]);
            }
    });
}

/* The same for all rows, ROWS at a time at most. */
template <class X, class W, bool SAME, class F> static void multiply_rows(tm_device *d, const char *op, const tm_tensor &x, const tm_tensor &w, int64_t rows, F finish)
{
    for (int64_t first = 0; first < rows; first += ROWS) {
        int64_t n = rows - first < ROWS ? rows - first : ROWS;
        if (n == 1)
            multiply<1, 2, X, W, SAME>(d, op, x, w, first, n, finish);
        else if (n == 2)
            multiply<2, 2, X, W, SAME>(d, op, x, w, first, n, finish);
        else if (n <= 4)
            multiply<4, 4, X, W, SAME>(d, op, x, w, first, n, finish);
        else if (n <= 8)
            multiply<8, 4, X, W, SAME>(d, op, x, w, first, n, finish);
        else
            multiply<ROWS, 4, X, W, SAME>(d, op, x, w, first, n, finish);
    }
}

/* With the types that x and w have. exact: the values of w as they are; otherwise rounded to x's type where it is wider. */
template <class F> static void multiply_typed(tm_device *d, const char *op, const tm_tensor &x, const tm_tensor &w, bool exact, int64_t rows, F finish)
{
    if (x.dtype == TM_BF16) {
        if (w.dtype == TM_BF16)
            multiply_rows<as_bf16, as_bf16, true>(d, op, x, w, rows, finish);
        else if (w.dtype == TM_F16)
            multiply_rows<as_bf16, as_f16, false>(d, op, x, w, rows, finish);
        else if (exact)
            multiply_rows<as_bf16, as_f32, true>(d, op, x, w, rows, finish);
        else
            multiply_rows<as_bf16, as_f32, false>(d, op, x, w, rows, finish);
    } else {
        if (w.dtype == TM_F16)
            multiply_rows<as_f16, as_f16, true>(d, op, x, w, rows, finish);
        else if (w.dtype == TM_BF16)
            multiply_rows<as_f16, as_bf16, false>(d, op, x, w, rows, finish);
        else if (exact)
            multiply_rows<as_f16, as_f32, true>(d, op, x, w, rows, finish);
        else
            multiply_rows<as_f16, as_f32, false>(d, op, x, w, rows, finish);
    }
}

static bool product_served(const tm_rows *rows, const tm_tensor &x, const tm_tensor &w, const tm_tensor &y)
{
    return rows->single && is_half(x.dtype) && (is_half(w.dtype) || w.dtype == TM_F32) && in_eights(x) && in_eights(w) && (is_half(y.dtype) || y.dtype == TM_F32);
}

bool tm_single_linear_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, tm_tensor y)
{
    if (!product_served(rows, x, w, y))
        return false;
    multiply_typed(d, "linear_forward", x, w, false, rows->n, [=] __device__(int64_t t, int64_t n, float sum) { put(y, t, n, bias.data ? sum + at(bias, 0, n) : sum); });
    return true;
}

/* Of a group's modules, what their columns get beside the product. */
enum { PARTS = 4 };
struct low_part {
    tm_tensor b, xa;
    int64_t first, end;
    float scale;
};
struct low_parts {
    low_part at[PARTS];
    int32_t count;
};

/* sum + scale xa B^T of the module that column n is of, a chain over the rank. */
TM_LANE float with_low(const low_parts &parts, int64_t t, int64_t n, float sum)
{
    for (int32_t i = 0; i < parts.count; i++) {
        const low_part &p = parts.at[i];
        if (n >= p.first && n < p.end)
            for (int64_t j = 0; j < p.b.cols; j++)
                sum = fmaf(at(p.xa, t, j) * p.scale, at(p.b, n - p.first, j), sum);
    }
    return sum;
}

/* The whole of an output in one sum; the factors are not rounded. */
bool tm_single_lora_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, int32_t parts, const tm_lora_part *part, tm_tensor y, tm_activation act, tm_tensor h)
{
    low_parts low = {};
    if (!product_served(rows, x, w, y) || parts > PARTS || rows->replicas != 1)
        return false;
    for (int32_t i = 0; i < parts; i++) {
        const tm_lowrank &lr = part[i].lr;
        if (lr.dropout > 0 || lr.a.dtype != TM_F32 || lr.b.dtype != TM_F32 || !in_eights(lr.a) || part[i].xa.dtype != TM_F32)
            return false;
        low.at[low.count++] = {lr.b, part[i].xa, part[i].first, part[i].first + lr.b.rows, lr.scale};
    }
    for (int32_t i = 0; i < parts; i++) {
        tm_tensor xa = part[i].xa;
        multiply_typed(d, "lora_forward", x, part[i].lr.a, true, rows->n, [=] __device__(int64_t t, int64_t n, float sum) { put(xa, t, n, sum); });
    }
    multiply_typed(d, "lora_forward", x, w, false, rows->n, [=] __device__(int64_t t, int64_t n, float sum) {
        float all = with_low(low, t, n, sum);
        put(y, t, n, bias.data ? all + at(bias, 0, n) : all);
    });
    if (h.data)
        TM_RUN(d, glu_forward, rows, act, y, h);
    return true;
}

/* --- Attention --- */

/* A warp waits for each load of a block of keys in turn, so its part is short: SPLIT keys, more where a slot of the cache would
 * have more than SPLITS parts to be joined. AHEAD: values that are on their way at a time. */
enum { SPLIT = 64, SPLITS = 64, AHEAD = 8, HEADS = 4, WIDEST = 256, PAIRS = WIDEST / (2 * LANES) };
#define NEVER (-1e30f) /* below every score, and finite */

/* One launch. Keys [split * keys, + keys) of a text are a warp's, with HEADS of the heads that share them; what it finds
 * stands in `found`: of every text, head and split the largest score, the sum of weights and the weighted values. */
struct tm_single_attention {
    tm_spans spans;
    tm_attention a;
    tm_tensor q, k, v, out, lse;
    int64_t first, D, G, groups; /* first: of the texts of this launch; groups of heads a kv head */
    int64_t keys, splits;
    float *found;
};

/* Positions of the first key that the query of text e sees, and of the query. */
struct tm_single_seen {
    int64_t first, last;
};

TM_LANE tm_single_seen seen_by(const tm_single_attention &w, int64_t e)
{
    int64_t last = w.spans.keys[e] - 1;
    return {w.a.window > 0 && last >= w.a.window ? last - w.a.window + 1 : 0, last};
}

TM_LANE float *found_at(const tm_single_attention &w, int64_t e, int64_t head, int64_t split)
{
    return w.found + (((e - w.first) * w.a.heads + head) * w.splits + split) * (w.D + 2);
}

/* Of a key with `heads` of COUNT heads, from q on; the others are as the first. */
template <int COUNT, class T> TM_LANE void scores_of(const tm_single_attention &w, const T *q, int64_t heads, const T *k, float *score)
{
    UNROLL for (int h = 0; h < COUNT; h++)
        score[h] = 0;
    UNROLL_TWICE for (int64_t c = 0; c < w.D; c += EIGHT) {
        eight<T> y = eight_at<T>(k, c);
        UNROLL for (int h = 0; h < COUNT; h++) {
            eight<T> x = eight_at<T>(q, (h < heads ? h : 0) * w.D + c);
            UNROLL for (int i = 0; i < EIGHT; i++)
                score[h] = fmaf(x.x[i].value(), y.x[i].value(), score[h]);
        }
    }
    UNROLL for (int h = 0; h < COUNT; h++) {
        float s = score[h] * w.a.scale;
        score[h] = w.a.softcap > 0 ? w.a.softcap * tanh_of(s / w.a.softcap) : s;
    }
}

/* A warp's part: blocks of 32 keys, a lane a key for the scores, then lanes along the columns for the values. */
template <int COUNT, class T> TM_LANE void attend(const tm_single_attention &w, int64_t e, int64_t kv, int64_t head, int64_t split)
{
    tm_single_seen seen = seen_by(w, e);
    int64_t from = split * w.keys, to = from + w.keys < seen.last + 1 ? from + w.keys : seen.last + 1, heads = (kv + 1) * w.G - head;
    if (to <= from || to <= seen.first)
        return;
    by_lane<float> acc[COUNT][2 * PAIRS], weight[COUNT];
    float max[COUNT], sum[COUNT];
    UNROLL for (int h = 0; h < COUNT; h++) {
        max[h] = NEVER;
        sum[h] = 0;
        EACH_LANE(lane)
        UNROLL for (int i = 0; i < 2 * PAIRS; i++)
            acc[h][i][lane] = 0;
    }
    const T *q = (const T *)w.q.data + e * w.q.ld, *k = (const T *)w.k.data + w.spans.key[e] * w.k.ld + kv * w.D, *v = (const T *)w.v.data + w.spans.key[e] * w.v.ld + kv * w.D;
    for (int64_t block = seen.first > from ? seen.first / LANES * LANES : from; block < to; block += LANES) {
        by_lane<float> score[COUNT];
        EACH_LANE(lane) {
            int64_t key = block + lane;
            float each[COUNT];
            bool there = key >= seen.first && key < to;
            if (there)
                scores_of<COUNT, T>(w, q + head * w.D, heads, k + key * w.k.ld, each);
            UNROLL for (int h = 0; h < COUNT; h++)
                score[h][lane] = there ? each[h] : NEVER;
        }
        UNROLL for (int h = 0; h < COUNT; h++) {
            by_lane<float> most = score[h], total;
            max_lanes(most);
            float before = max[h];
            max[h] = larger(before, common(most));
            float factor = exp_of(before - max[h]);
            EACH_LANE(lane) {
                int64_t key = block + lane;
                total[lane] = weight[h][lane] = key >= seen.first && key < to ? exp_of(score[h][lane] - max[h]) : 0;
                UNROLL for (int i = 0; i < 2 * PAIRS; i++)
                    acc[h][i][lane] = acc[h][i][lane] * factor;
            }
            sum_lanes(total);
            sum[h] = fmaf(sum[h], factor, common(total));
        }
        int64_t low = block < seen.first ? seen.first - block : 0, count = to - block < LANES ? to - block : LANES;
        for (int64_t j = low / AHEAD * AHEAD; j < count; j += AHEAD) { /* keys that are not seen weigh 0: the value of one that is stands for theirs */
            float at_key[COUNT][AHEAD];
            UNROLL for (int h = 0; h < COUNT; h++)
                UNROLL for (int u = 0; u < AHEAD; u++)
                    at_key[h][u] = of_lane(weight[h], (int)j + u);
            EACH_LANE(lane)
            UNROLL for (int i = 0; i < PAIRS; i++) {
                int64_t c = 2 * (lane + i * LANES);
                if (c < w.D) {
                    two<T> ahead[AHEAD];
                    UNROLL for (int u = 0; u < AHEAD; u++) {
                        int64_t at = j + u < low ? low : j + u < count ? j + u : count - 1;
                        ahead[u] = *(const two<T> *)(v + (block + at) * w.v.ld + c);
                    }
                    UNROLL for (int u = 0; u < AHEAD; u++) {
                        float x = ahead[u].x[0].value(), y = ahead[u].x[1].value();
                        UNROLL for (int h = 0; h < COUNT; h++) {
                            acc[h][2 * i][lane] = fmaf(x, at_key[h][u], acc[h][2 * i][lane]);
                            acc[h][2 * i + 1][lane] = fmaf(y, at_key[h][u], acc[h][2 * i + 1][lane]);
                        }
                    }
                }
            }
        }
    }
    UNROLL for (int h = 0; h < COUNT; h++)
        if (h < heads) {
            float *found = found_at(w, e, head + h, split);
            EACH_LANE(lane) {
                if (lane == 0) {
                    found[0] = max[h];
                    found[1] = sum[h];
                }
                UNROLL for (int i = 0; i < 2 * PAIRS; i++) {
                    int64_t c = 2 * (lane + i / 2 * LANES) + i % 2;
                    if (c < w.D)
                        found[2 + c] = acc[h][i][lane];
                }
            }
        }
}

/* Column c of a head's output, from what the splits found, in their order. */
TM_LANE void join_splits(const tm_single_attention &w, int64_t e, int64_t head, int64_t c)
{
    tm_single_seen seen = seen_by(w, e);
    float max = NEVER, sum = 0, value = 0;
    for (int64_t s = seen.first / w.keys; s <= seen.last / w.keys; s++)
        max = larger(found_at(w, e, head, s)[0], max);
    for (int64_t s = seen.first / w.keys; s <= seen.last / w.keys; s++) {
        const float *found = found_at(w, e, head, s);
        float factor = exp_of(found[0] - max);
        sum = fmaf(found[1], factor, sum);
        value = fmaf(found[2 + c], factor, value);
    }
    put(w.out, e, head * w.D + c, value / sum + 0.0f);
    if (c == 0 && w.lse.data)
        put(w.lse, e, head, max + log_of(sum));
}

template <int COUNT, class T> static void run_attention(tm_device *d, tm_single_attention w, int64_t texts)
{
    const char *op = "attention_forward";
    w.groups = (w.G + COUNT - 1) / COUNT;
    int64_t kv_heads = w.a.kv_heads, heads = w.a.heads, each = w.groups * w.splits;
    tm_cuda_warps(d, op, texts * kv_heads * each, [=] __device__(int64_t i) {
        int64_t kv = i / each % kv_heads, group = i / w.splits % w.groups;
        attend<COUNT, T>(w, w.first + i / (kv_heads * each), kv, kv * w.G + group * COUNT, i % w.splits);
    });
    tm_cuda_each(d, op, texts * heads * w.D, [=] __device__(int64_t i) { join_splits(w, w.first + i / (heads * w.D), i / w.D % heads, i % w.D); });
}

bool tm_single_attention_forward(tm_device *d, const tm_spans *spans, const tm_attention *a, tm_tensor q, tm_tensor k, tm_tensor v, tm_tensor out, tm_tensor lse)
{
    tm_cuda *c = tm_cuda_of(d);
    int64_t D = a->head_size, room = TM_CUDA_PARTIALS * (int64_t)sizeof *c->partials, each = ROWS * a->heads * (D + 2) * (int64_t)sizeof(float), keys = SPLIT;
    if (!spans->single || !is_half(q.dtype) || k.dtype != q.dtype || v.dtype != q.dtype || !in_eights(q) || !in_eights(k) || !in_eights(v) || D % EIGHT != 0 || D > WIDEST)
        return false;
    while ((spans->single + keys - 1) / keys * each > room || spans->single > keys * SPLITS) /* by the cache alone, however many texts there are */
        keys *= 2;
    tm_single_attention w = {*spans, *a, q, k, v, out, lse, 0, D, a->heads / a->kv_heads, 0, keys, (spans->single + keys - 1) / keys, (float *)c->partials};
    for (; w.first < spans->n; w.first += ROWS) {
        int64_t texts = spans->n - w.first < ROWS ? spans->n - w.first : ROWS;
        if (q.dtype == TM_BF16)
            w.G > 1 ? run_attention<HEADS, as_bf16>(d, w, texts) : run_attention<1, as_bf16>(d, w, texts);
        else
            w.G > 1 ? run_attention<HEADS, as_f16>(d, w, texts) : run_attention<1, as_f16>(d, w, texts);
    }
    return true;
}
