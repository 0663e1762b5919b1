/* Single tokens of texts under way, a row each (tm_rows.single): products and attention with activations of 16 bits.
 *
 * With few rows a product takes as long as it takes to read the weights. So a warp reads rows of the weight, sixteen
 * bytes a lane at a time and every one once, and meets up to ROWS rows of x with each; from sm_80 on that is done on tensor
 * cores (half/single.cu). Of attention a warp has a part of a text's keys and a few heads that share them. No atomics.
 *
 * Invariants:
 *  1. The order of a sum follows from the model's sizes and the position of the key: lane l sums columns 8 l .. 8 l + 7,
 *     then those 256 further on, and so forth; the lanes are joined in one tree. How many rows there are, how many
 *     columns of y a warp has and whose the other rows are is not in it. So a row has the same bits alone and among others.
 *  2. Whether an op is served here depends on `single`, types and sizes, never on the number of rows. */
#include "device/cuda/single.cuh"
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

/* For rows t from `first` on, fewer than COUNT + 1. SAME: the values of w as they are, otherwise rounded to X. */
template <int COUNT, int COLUMNS, class X, class W, bool SAME>
static void multiply(tm_device *d, const char *op, const tm_single_product &p, int64_t first, int64_t rows)
{
    int64_t n = p.w.rows, K = p.w.cols;
    const X *at_x = (const X *)p.x.data + first * p.x.ld;
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
                    eight<W> e = eight_at<W>(p.w.data, row * p.w.ld + k);
                    UNROLL for (int i = 0; i < EIGHT; i++)
                        a[c][i] = SAME ? e.x[i].value() : X::round(e.x[i].value());
                }
                UNROLL for (int t = 0; t < COUNT; t++) {
                    eight<X> e = eight_at<X>(at_x, (t < rows ? t : 0) * p.x.ld + k);
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
                    finish(p, first + t, warp * COLUMNS + c, sum[c][t][lane]);
            }
    });
}

/* The same for all rows, ROWS at a time at most. */
template <class X, class W, bool SAME> static void multiply_rows(tm_device *d, const char *op, const tm_single_product &p, int64_t rows)
{
    for (int64_t first = 0; first < rows; first += ROWS) {
        int64_t n = rows - first < ROWS ? rows - first : ROWS;
        if (n == 1)
            multiply<1, 2, X, W, SAME>(d, op, p, first, n);
        else if (n == 2)
            multiply<2, 2, X, W, SAME>(d, op, p, first, n);
        else if (n <= 4)
            multiply<4, 4, X, W, SAME>(d, op, p, first, n);
        else if (n <= 8)
            multiply<8, 4, X, W, SAME>(d, op, p, first, n);
        else
            multiply<ROWS, 4, X, W, SAME>(d, op, p, first, n);
    }
}

/* With the types that x and w have. exact: the values of w as they are; otherwise rounded to x's type where it is wider. */
static void multiply_typed(tm_device *d, const char *op, const tm_single_product &p, bool exact, int64_t rows)
{
    if (p.x.dtype == TM_BF16) {
        if (p.w.dtype == TM_BF16)
            multiply_rows<as_bf16, as_bf16, true>(d, op, p, rows);
        else if (p.w.dtype == TM_F16)
            multiply_rows<as_bf16, as_f16, false>(d, op, p, rows);
        else if (exact)
            multiply_rows<as_bf16, as_f32, true>(d, op, p, rows);
        else
            multiply_rows<as_bf16, as_f32, false>(d, op, p, rows);
    } else {
        if (p.w.dtype == TM_F16)
            multiply_rows<as_f16, as_f16, true>(d, op, p, rows);
        else if (p.w.dtype == TM_BF16)
            multiply_rows<as_f16, as_bf16, false>(d, op, p, rows);
        else if (exact)
            multiply_rows<as_f16, as_f32, true>(d, op, p, rows);
        else
            multiply_rows<as_f16, as_f32, false>(d, op, p, rows);
    }
}

static bool product_served(const tm_rows *rows, const tm_tensor &x, const tm_tensor &w, const tm_tensor &y)
{
    return rows->single && is_half(x.dtype) && (is_half(w.dtype) || w.dtype == TM_F32) && in_eights(x) && in_eights(w) && (is_half(y.dtype) || y.dtype == TM_F32);
}

static void multiply_single(tm_device *d, const char *op, const tm_single_product &p, int64_t rows)
{
    if (!tm_half_single_product(d, op, &p, rows))
        multiply_typed(d, op, p, false, rows);
}

bool tm_single_linear_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, tm_tensor y)
{
    if (!product_served(rows, x, w, y))
        return false;
    multiply_single(d, "linear_forward", {x, w, bias, y}, rows->n);
    return true;
}

/* The whole of an output in one sum; the factors are not rounded. */
bool tm_single_lora_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, int32_t parts, const tm_lora_part *part, tm_tensor y, tm_activation act, tm_tensor h)
{
    tm_single_product p = {x, w, bias, y};
    if (!product_served(rows, x, w, y) || parts > TM_SINGLE_PARTS || rows->replicas != 1)
        return false;
    for (int32_t i = 0; i < parts; i++) {
        const tm_lowrank &lr = part[i].lr;
        if (lr.dropout > 0 || lr.a.dtype != TM_F32 || lr.b.dtype != TM_F32 || !in_eights(lr.a) || part[i].xa.dtype != TM_F32)
            return false;
        p.part[p.parts++] = {lr.b, part[i].xa, part[i].first, part[i].first + lr.b.rows, lr.scale};
    }
    for (int32_t i = 0; i < parts; i++)
        multiply_typed(d, "lora_forward", {x, part[i].lr.a, tm_tensor_none(), part[i].xa}, true, rows->n);
    multiply_single(d, "lora_forward", p, rows->n);
    if (h.data)
        TM_RUN(d, glu_forward, rows, act, y, h);
    return true;
}

/* --- Attention --- */

enum { SPLIT = 32, HEADS = 4, WIDEST = 256 };
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

/* Loads that wait for each other take as long as all of them one after the other: so what is read next is read before
 * anything is done with it, from a place that is there whether it is wanted or not. */
enum { AT_ONCE = 8 };

/* Scores of one key with COUNT heads, head + h of them where there are so many. */
template <int COUNT, class T> TM_LANE void score(const tm_single_attention &w, const T *q, int64_t heads, const T *k, float (&s)[COUNT])
{
    UNROLL for (int h = 0; h < COUNT; h++)
        s[h] = 0;
    for (int64_t from = 0; from < w.D; from += AT_ONCE * EIGHT) {
        eight<T> y[AT_ONCE];
        UNROLL for (int i = 0; i < AT_ONCE; i++)
            y[i] = eight_at<T>(k, from + i * EIGHT < w.D ? from + i * EIGHT : 0);
        UNROLL for (int i = 0; i < AT_ONCE; i++)
            if (from + i * EIGHT < w.D) /* without this branch keys would be read one by one after all */
                UNROLL for (int h = 0; h < COUNT; h++) {
                    eight<T> x = eight_at<T>(q + (h < heads ? h : 0) * w.D, from + i * EIGHT);
                    UNROLL for (int j = 0; j < EIGHT; j++)
                        s[h] = fmaf(x.x[j].value(), y[i].x[j].value(), s[h]);
                }
    }
    UNROLL for (int h = 0; h < COUNT; h++) {
        s[h] = s[h] * w.a.scale;
        s[h] = w.a.softcap > 0 ? w.a.softcap * tanh_of(s[h] / w.a.softcap) : s[h];
    }
}

/* acc[h] += weight[h] of lane j times row j, for j < count and up to the next multiple of AT_ONCE: weights there are zero.
 * row(j, c): columns c and c + 1; lanes have PAIRS such pairs of D columns. */
template <int COUNT, int PAIRS, class ROW> TM_LANE void add_rows(by_lane<float> (&acc)[COUNT][2 * PAIRS], by_lane<float> (&weight)[COUNT], int64_t D, int64_t count, ROW row)
{
    for (int64_t from = 0; from < count; from += AT_ONCE) {
        by_lane<float2> x[AT_ONCE][PAIRS];
        EACH_LANE(lane)
        UNROLL for (int j = 0; j < AT_ONCE; j++)
            UNROLL for (int i = 0; i < PAIRS; i++) {
                int64_t c = 2 * (lane + i * LANES);
                x[j][i][lane] = row(from + j, c < D ? c : 0);
            }
        UNROLL for (int j = 0; j < AT_ONCE; j++)
            UNROLL for (int h = 0; h < COUNT; h++) {
                float of_row = of_lane(weight[h], (int)from + j);
                EACH_LANE(lane)
                UNROLL for (int i = 0; i < PAIRS; i++) {
                    acc[h][2 * i][lane] = fmaf(x[j][i][lane].x, of_row, acc[h][2 * i][lane]);
                    acc[h][2 * i + 1][lane] = fmaf(x[j][i][lane].y, of_row, acc[h][2 * i + 1][lane]);
                }
            }
    }
}

/* A warp's part: blocks of 32 keys, a lane a key for the scores, then lanes along the columns for the values. */
template <int COUNT, int PAIRS, class T> TM_LANE void attend(const tm_single_attention &w, int64_t e, int64_t kv, int64_t head, int64_t split)
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
    const T *q = (const T *)w.q.data + e * w.q.ld + head * w.D, *k = (const T *)w.k.data + w.spans.key[e] * w.k.ld + kv * w.D, *v = (const T *)w.v.data + w.spans.key[e] * w.v.ld + kv * w.D;
    for (int64_t block = seen.first > from ? seen.first / LANES * LANES : from; block < to; block += LANES) {
        auto sees = [=](int64_t key) { return key >= seen.first && key < to; };
        EACH_LANE(lane) {
            int64_t key = block + lane;
            float s[COUNT];
            score<COUNT>(w, q, heads, k + (sees(key) ? key : to - 1) * w.k.ld, s);
            UNROLL for (int h = 0; h < COUNT; h++)
                weight[h][lane] = sees(key) ? s[h] : NEVER;
        }
        UNROLL for (int h = 0; h < COUNT; h++) {
            by_lane<float> most, total;
            EACH_LANE(lane)
            most[lane] = weight[h][lane];
            max_lanes(most);
            float before = max[h];
            max[h] = larger(before, common(most));
            float factor = exp_of(before - max[h]);
            EACH_LANE(lane) {
                total[lane] = weight[h][lane] = sees(block + lane) ? exp_of(weight[h][lane] - max[h]) : 0;
                UNROLL for (int i = 0; i < 2 * PAIRS; i++)
                    acc[h][i][lane] = acc[h][i][lane] * factor;
            }
            sum_lanes(total);
            sum[h] = fmaf(sum[h], factor, common(total));
        }
        add_rows<COUNT, PAIRS>(acc, weight, w.D, to - block < LANES ? to - block : LANES, [=](int64_t j, int64_t c) {
            two<T> x = *(const two<T> *)(v + (sees(block + j) ? block + j : to - 1) * w.v.ld + c);
            return make_float2(x.x[0].value(), x.x[1].value());
        });
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

/* A head's output from what the splits found, by a warp: blocks of 32 splits counted from the text's first. */
template <int PAIRS> TM_LANE void join_splits(const tm_single_attention &w, int64_t e, int64_t head)
{
    tm_single_seen seen = seen_by(w, e);
    int64_t first = seen.first / w.keys, last = seen.last / w.keys;
    by_lane<float> acc[1][2 * PAIRS], factor[1], most, total;
    EACH_LANE(lane) {
        most[lane] = NEVER;
        total[lane] = 0;
        UNROLL for (int i = 0; i < 2 * PAIRS; i++)
            acc[0][i][lane] = 0;
        for (int64_t s = first / LANES * LANES + lane; s <= last; s += LANES)
            most[lane] = larger(s >= first ? found_at(w, e, head, s)[0] : NEVER, most[lane]);
    }
    max_lanes(most);
    float max = common(most);
    for (int64_t block = first / LANES * LANES; block <= last; block += LANES) {
        auto place = [=](int64_t i) { return block + i >= first && block + i <= last ? block + i : last; };
        EACH_LANE(lane) {
            const float *found = found_at(w, e, head, place(lane));
            factor[0][lane] = place(lane) == block + lane ? exp_of(found[0] - max) : 0;
            total[lane] = fmaf(found[1], factor[0][lane], total[lane]);
        }
        add_rows<1, PAIRS>(acc, factor, w.D, last + 1 - block < LANES ? last + 1 - block : LANES, [=](int64_t j, int64_t c) { return *(const float2 *)(found_at(w, e, head, place(j)) + 2 + c); });
    }
    sum_lanes(total);
    float sum = common(total);
    EACH_LANE(lane) {
        UNROLL for (int i = 0; i < 2 * PAIRS; i++) {
            int64_t c = 2 * (lane + i / 2 * LANES) + i % 2;
            if (c < w.D)
                put(w.out, e, head * w.D + c, acc[0][i][lane] / sum + 0.0f);
        }
        if (lane == 0 && w.lse.data)
            put(w.lse, e, head, max + log_of(sum));
    }
}

template <int COUNT, int PAIRS, class T> static void run_attention(tm_device *d, tm_single_attention w, int64_t texts)
{
    const char *op = "attention_forward";
    w.groups = (w.G + COUNT - 1) / COUNT;
    int64_t kv_heads = w.a.kv_heads, heads = w.a.heads, each = w.groups * w.splits;
    tm_cuda_warps(d, op, texts * kv_heads * each, [=] __device__(int64_t i) {
        int64_t kv = i / each % kv_heads, group = i / w.splits % w.groups;
        attend<COUNT, PAIRS, T>(w, w.first + i / (kv_heads * each), kv, kv * w.G + group * COUNT, i % w.splits);
    });
    tm_cuda_warps(d, op, texts * heads, [=] __device__(int64_t i) { join_splits<PAIRS>(w, w.first + i / heads, i % heads); });
}

template <class T> static void run_attention(tm_device *d, const tm_single_attention &w, int64_t texts)
{
    if (w.D <= 2 * LANES)
        w.G > 1 ? run_attention<HEADS, 1, T>(d, w, texts) : run_attention<1, 1, T>(d, w, texts);
    else if (w.D <= 4 * LANES)
        w.G > 1 ? run_attention<HEADS, 2, T>(d, w, texts) : run_attention<1, 2, T>(d, w, texts);
    else
        w.G > 1 ? run_attention<HEADS, 4, T>(d, w, texts) : run_attention<1, 4, T>(d, w, texts);
}

/* Fewer texts a launch, not longer parts, where what the parts find has no room: a text's bits are not to depend on how long
 * its neighbours may become. Only where one text alone has no room parts become longer. */
bool tm_single_attention_forward(tm_device *d, const tm_spans *spans, const tm_attention *a, tm_tensor q, tm_tensor k, tm_tensor v, tm_tensor out, tm_tensor lse)
{
    tm_cuda *c = tm_cuda_of(d);
    int64_t D = a->head_size, room = TM_CUDA_PARTIALS * (int64_t)sizeof *c->partials, part = a->heads * (D + 2) * (int64_t)sizeof(float), keys = SPLIT;
    if (!spans->single || !is_half(q.dtype) || k.dtype != q.dtype || v.dtype != q.dtype || !in_eights(q) || !in_eights(k) || !in_eights(v) || D % EIGHT != 0 || D > WIDEST)
        return false;
    while ((spans->single + keys - 1) / keys * part > room)
        keys *= 2;
    int64_t splits = (spans->single + keys - 1) / keys, at_once = room / (splits * part);
    tm_single_attention w = {*spans, *a, q, k, v, out, lse, 0, D, a->heads / a->kv_heads, 0, keys, splits, (float *)c->partials};
    for (; w.first < spans->n; w.first += at_once) {
        int64_t texts = spans->n - w.first < at_once ? spans->n - w.first : at_once;
        q.dtype == TM_BF16 ? run_attention<as_bf16>(d, w, texts) : run_attention<as_f16>(d, w, texts);
    }
    return true;
}
