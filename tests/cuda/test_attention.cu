/* The 16-bit attention on the GPU: against sums in double, and bit against bit: an example alone, among others, in a
 * batch of fixed size, with not-a-numbers in all rows that are nobody's and in all rows of its neighbours.
 *
 *   test_attention [seed] [rounds]
 *
 * Prints rates at last. Exit 0: all hold. */
#include "device/cuda/half/half.h"
#include "device/cuda/half/ptx.cuh"
#include "sizes.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <random>
#include <vector>

extern "C" __attribute__((visibility("default"))) const tm_cuda_plugin tm_cuda_plugin_table;

static int failures;
static tm_device *device;

#define CHECK(call)                                                                                        \
    do {                                                                                                   \
        cudaError_t e_ = (call);                                                                           \
        if (e_ != cudaSuccess) {                                                                           \
            printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e_));                             \
            exit(1);                                                                                       \
        }                                                                                                  \
    } while (0)

struct shape {
    int D, heads, kv_heads;
    std::vector<int> lengths, past;
    int window;
    float softcap;
    bool f16;
    bool far = false; /* all scores far below zero, where exp is nothing: a softmax does not mind */
};

/* The numbers of an example, rows one after another, and what they give. */
struct example {
    std::vector<uint16_t> q, k, v, dout;
};
struct outcome {
    std::vector<uint16_t> out, dq, dk, dv;
    std::vector<float> lse;
    bool operator==(const outcome &o) const { return out == o.out && dq == o.dq && dk == o.dk && dv == o.dv && (lse.empty() || !memcmp(lse.data(), o.lse.data(), lse.size() * 4)); }
};

static uint16_t bits_of(float x, bool f16)
{
    __half h = __float2half(x);
    __nv_bfloat16 b = __float2bfloat16(x);
    uint16_t r;
    memcpy(&r, f16 ? (void *)&h : (void *)&b, 2);
    return r;
}
__host__ __device__ static float value_of(uint16_t x, bool f16)
{
    return f16 ? __half2float(__ushort_as_half(x)) : tm_bf16_to_f32(x);
}

template <class T> static T *to_device(const std::vector<T> &v)
{
    T *p;
    CHECK(cudaMalloc(&p, std::max<size_t>(v.size(), 1) * sizeof(T)));
    CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}
template <class T> static std::vector<T> to_host(const T *p, int64_t n)
{
    std::vector<T> v(n);
    CHECK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
}

/* --- Reference --- */

struct reference_args {
    const uint16_t *q, *k, *v, *dout;
    const double *out, *lse;
    double *to_out, *to_lse, *dq, *dk, *dv;
    int D, heads, kv_heads, length, past, window;
    float scale, softcap;
    bool f16;
};

__device__ static double score_of(const reference_args &w, int row, int head, int key, double *slope)
{
    int kv = head / (w.heads / w.kv_heads);
    double s = 0;
    for (int c = 0; c < w.D; c++)
        s += (double)value_of(w.q[(int64_t)row * w.heads * w.D + head * w.D + c], w.f16) * value_of(w.k[(int64_t)key * w.kv_heads * w.D + kv * w.D + c], w.f16);
    s *= w.scale;
    *slope = 1;
    if (w.softcap > 0) {
        double t = tanh(s / w.softcap);
        *slope = 1 - t * t;
        s = w.softcap * t;
    }
    return s;
}

/* A block a query and head of one example: row, head. */
__global__ void reference_forward(reference_args w)
{
    int row = blockIdx.x, head = blockIdx.y, kv = head / (w.heads / w.kv_heads), position = w.past + row;
    int first = w.window && position >= w.window ? position - w.window + 1 : 0;
    TM_SHARED(double, e, 16);
    __shared__ double sum;
    double slope;
    for (int j = first + threadIdx.x; j <= position; j += blockDim.x)
        e[j] = exp(score_of(w, row, head, j, &slope));
    __syncthreads();
    if (threadIdx.x == 0) {
        sum = 0;
        for (int j = first; j <= position; j++)
            sum += e[j];
        w.to_lse[(int64_t)row * w.heads + head] = log(sum);
    }
    __syncthreads();
    for (int c = threadIdx.x; c < w.D; c += blockDim.x) {
        double o = 0;
        for (int j = first; j <= position; j++)
            o += e[j] / sum * value_of(w.v[(int64_t)j * w.kv_heads * w.D + kv * w.D + c], w.f16);
        w.to_out[((int64_t)row * w.heads + head) * w.D + c] = o;
    }
}

__global__ void reference_backward(reference_args w)
{
    int row = blockIdx.x, head = blockIdx.y, kv = head / (w.heads / w.kv_heads), position = w.past + row;
    int first = w.window && position >= w.window ? position - w.window + 1 : 0;
    int64_t at = (int64_t)row * w.heads + head;
    double delta = 0;
    for (int c = 0; c < w.D; c++)
        delta += w.out[at * w.D + c] * value_of(w.dout[at * w.D + c], w.f16);
    for (int j = first + threadIdx.x; j <= position; j += blockDim.x) {
        double slope, p = exp(score_of(w, row, head, j, &slope) - w.lse[at]), dp = 0;
        int64_t key = ((int64_t)j * w.kv_heads + kv) * w.D;
        for (int c = 0; c < w.D; c++)
            dp += (double)value_of(w.dout[at * w.D + c], w.f16) * value_of(w.v[key + c], w.f16);
        double ds = p * (dp - delta) * slope * w.scale;
        for (int c = 0; c < w.D; c++) {
            atomicAdd(&w.dv[key + c], p * value_of(w.dout[at * w.D + c], w.f16));
            atomicAdd(&w.dk[key + c], ds * value_of(w.q[at * w.D + c], w.f16));
            atomicAdd(&w.dq[at * w.D + c], ds * value_of(w.k[key + c], w.f16));
        }
    }
}

/* Sums of squares of differences and of what was expected. */
struct distance {
    double difference = 0, size = 0, count = 0;
    void add(const std::vector<uint16_t> &got, const double *want, bool f16)
    {
        for (size_t i = 0; i < got.size(); i++) {
            double d = value_of(got[i], f16) - want[i];
            difference += d * d;
            size += want[i] * want[i];
            count++;
        }
    }
    double relative(bool slight) const { return sqrt(difference / (slight ? fmax(size, 0.25 * count) : size)); }
};

/* --- The ops on a layout --- */

static void sync()
{
    tm_error err;
    if (device->calls->sync(device, &err) != TM_OK) {
        printf("FAILED: %s\n", err.message);
        exit(1);
    }
}

/* Members in this order. fixed: with more room, empty spans behind. kept: the one example that is not poisoned, -1: all. */
static std::vector<outcome> run(const shape &s, const std::vector<example> &x, const std::vector<int> &members, bool fixed, int kept, bool training)
{
    const uint16_t nan = 0xffff, infinity = s.f16 ? 0x7c00 : 0x7f80;
    int D = s.D, qw = s.heads * D, kw = s.kv_heads * D, gap = training ? 0 : 3;
    std::vector<int32_t> query(1, 0), key, keys;
    int32_t rows = 0, key_rows = gap;
    for (int e : members) {
        key.push_back(training ? rows : key_rows);
        keys.push_back(s.past[e] + s.lengths[e]);
        rows += s.lengths[e];
        key_rows += keys.back() + gap;
        query.push_back(rows);
    }
    int32_t used = rows;
    if (fixed) {
        rows += 200;
        key_rows += 100;
        for (int i = 0; i < 45; i++) {
            query.push_back(used);
            key.push_back(0);
            keys.push_back(0);
        }
    }
    int64_t T = rows, keys_in_all = training ? rows : key_rows, width = training ? qw + 2 * kw : qw, kv_width = training ? width : kw;
    std::vector<uint16_t> q(T * width, nan), k, v, dout(T * qw, nan);
    if (!training) {
        k.assign(keys_in_all * kw, nan);
        v = k;
    }
    for (size_t m = 0; m < members.size(); m++) {
        int e = members[m];
        bool poison = kept >= 0 && e != kept;
        auto put = [&](uint16_t *to, int64_t ld, const std::vector<uint16_t> &from, int64_t columns) {
            for (size_t i = 0; i < from.size(); i++)
                to[i / columns * ld + i % columns] = poison ? (i % 3 ? nan : infinity) : from[i];
        };
        put(&q[query[m] * width], width, x[e].q, qw);
        put(&dout[(int64_t)query[m] * qw], qw, x[e].dout, qw);
        put(training ? &q[key[m] * width + qw] : &k[(int64_t)key[m] * kw], kv_width, x[e].k, kw);
        put(training ? &q[key[m] * width + qw + kw] : &v[(int64_t)key[m] * kw], kv_width, x[e].v, kw);
    }
    uint16_t *d_q = to_device(q), *d_dout = to_device(dout), *d_k = training ? d_q + qw : to_device(k), *d_v = training ? d_q + qw + kw : to_device(v);
    std::vector<uint16_t> blank(T * qw, nan), blank_dqkv(T * (qw + 2 * kw), nan);
    uint16_t *d_out = to_device(blank), *d_dqkv = to_device(blank_dqkv);
    std::vector<float> blank_lse(T * s.heads, NAN);
    float *d_lse = to_device(blank_lse), *d_delta = to_device(blank_lse);
    int32_t *d_query = to_device(query), *d_key = to_device(key), *d_keys = to_device(keys);
    tm_spans spans = {(int64_t)key.size(), d_query, d_key, d_keys};
    tm_attention a = {s.heads, s.kv_heads, D, 1 / sqrtf((float)D), s.window, s.softcap};
    tm_dtype type = s.f16 ? TM_F16 : TM_BF16;
    auto view = [&](void *p, int64_t n, int64_t cols, int64_t ld) {
        tm_tensor t = tm_tensor_make(p, type, n, cols);
        t.ld = ld;
        return t;
    };
    tm_tensor tq = view(d_q, T, qw, width), tk = view(d_k, keys_in_all, kw, kv_width), tv = view(d_v, keys_in_all, kw, kv_width), to = view(d_out, T, qw, qw);
    tm_tensor lse = tm_tensor_make(d_lse, TM_F32, T, s.heads), delta = tm_tensor_make(d_delta, TM_F32, T, s.heads);
    CHECK(cudaDeviceSynchronize()); /* the device's stream does not wait for the copies */
    bool served = tm_half_attention_forward(device, &spans, &a, tq, tk, tv, to, training ? lse : tm_tensor_none());
    if (training)
        served = served && tm_half_attention_backward(device, &spans, &a, view(d_dout, T, qw, qw), tq, tk, tv, to, lse, delta, view(d_dqkv, T, qw, qw + 2 * kw),
                                                      view(d_dqkv + qw, T, kw, qw + 2 * kw), view(d_dqkv + qw + kw, T, kw, qw + 2 * kw));
    sync();
    if (!served) {
        printf("FAILED: not served: head size %d\n", D);
        failures++;
    }
    std::vector<uint16_t> out = to_host(d_out, T * qw), dqkv = to_host(d_dqkv, T * (qw + 2 * kw));
    std::vector<float> l = to_host(d_lse, T * s.heads);
    std::vector<outcome> result(x.size());
    for (size_t m = 0; m < members.size(); m++) {
        outcome &o = result[members[m]];
        for (int64_t r = query[m]; r < query[m + 1]; r++) {
            o.out.insert(o.out.end(), &out[r * qw], &out[r * qw] + qw);
            if (!training)
                continue;
            const uint16_t *d = &dqkv[r * (qw + 2 * kw)];
            o.lse.insert(o.lse.end(), &l[r * s.heads], &l[r * s.heads] + s.heads);
            o.dq.insert(o.dq.end(), d, d + qw);
            o.dk.insert(o.dk.end(), d + qw, d + qw + kw);
            o.dv.insert(o.dv.end(), d + qw + kw, d + qw + 2 * kw);
        }
    }
    for (int64_t i = used * (int64_t)qw; i < T * qw; i++)
        if (out[i] != nan) {
            printf("FAILED: rows beyond the last are written\n");
            failures++;
            break;
        }
    for (void *p : std::initializer_list<void *>{d_q, d_dout, d_out, d_dqkv, d_lse, d_delta, d_query, d_key, d_keys})
        CHECK(cudaFree(p));
    if (!training) {
        CHECK(cudaFree(d_k));
        CHECK(cudaFree(d_v));
    }
    return result;
}

/* --- Cases --- */

static void say(const shape &s, bool training)
{
    printf("  head %d %s, %d heads, %d kv, window %d, cap %g%s, %s, lengths", s.D, s.f16 ? "f16" : "bf16", s.heads, s.kv_heads, s.window, s.softcap, s.far ? ", far" : "", training ? "training" : "cache");
    for (size_t i = 0; i < s.lengths.size(); i++)
        printf(" %d+%d", s.past[i], s.lengths[i]);
    printf("\n");
}

static void compare(const shape &s, const std::vector<example> &x, const std::vector<outcome> &got, bool training)
{
    distance out, dq, dk, dv;
    double worst_lse = 0;
    for (size_t e = 0; e < x.size(); e++) {
        int length = s.lengths[e], keys = length + s.past[e];
        int64_t nq = (int64_t)length * s.heads * s.D, nk = (int64_t)keys * s.kv_heads * s.D, nl = (int64_t)length * s.heads;
        double *r = to_device(std::vector<double>(2 * nq + 2 * nk + nl, 0.0));
        uint16_t *q = to_device(x[e].q), *k = to_device(x[e].k), *v = to_device(x[e].v), *dout = to_device(x[e].dout);
        reference_args w = {q, k, v, dout, r, r + nq, r, r + nq, r + nq + nl, r + 2 * nq + nl, r + 2 * nq + nl + nk, s.D, s.heads, s.kv_heads, length, s.past[e], s.window, 1 / sqrtf((float)s.D), s.softcap, s.f16};
        tm_cuda_launch(tm_cuda_of(device), "reference", reference_forward, dim3(length, s.heads), 128, keys * sizeof(double), w);
        if (training)
            tm_cuda_launch(tm_cuda_of(device), "reference", reference_backward, dim3(length, s.heads), 128, 0, w);
        CHECK(cudaDeviceSynchronize());
        std::vector<double> h = to_host(r, 2 * nq + 2 * nk + nl);
        out.add(got[e].out, h.data(), s.f16);
        if (training) {
            for (int64_t i = 0; i < nl; i++) {
                double d = fabs(got[e].lse[i] - h[nq + i]);
                worst_lse = !(d <= worst_lse) ? d : worst_lse;
            }
            dq.add(got[e].dq, h.data() + nq + nl, s.f16);
            dk.add(got[e].dk, h.data() + 2 * nq + nl, s.f16);
            dv.add(got[e].dv, h.data() + 2 * nq + nl + nk, s.f16);
        }
        for (void *p : std::initializer_list<void *>{r, q, k, v, dout})
            CHECK(cudaFree(p));
    }
    double unit = s.f16 ? 0.125 : 1; /* f16 has three bits more */
    /* where few keys are seen the gradients of scores cancel, what the rounding of out adds to them does not */
    bool slight = s.window == 1 || *std::max_element(s.lengths.begin(), s.lengths.end()) < 16;
    double o = out.relative(false), q = dq.relative(slight), k = dk.relative(slight), v = dv.relative(false);
    /* far: 40 times a sum of dS that cancels to nothing but roundings is the gradient of the column that makes it so */
    double most = s.far ? 40 * 8e-3 : 8e-3;
    bool good = o < 4e-3 * unit && (!training || (worst_lse < 1e-3 && q < most * unit && k < most * unit && v < 6e-3 * unit));
    if (!good) {
        failures++;
        printf("FAILED: out %.2e lse %.1e dq %.2e dk %.2e dv %.2e\n", o, worst_lse, q, k, v);
        say(s, training);
    }
}

static void expect_equal(const shape &s, const outcome &a, const outcome &b, const char *what, int e, bool training)
{
    if (a == b)
        return;
    failures++;
    printf("FAILED: %s: example %d differs:%s%s%s%s%s\n", what, e, a.out == b.out ? "" : " out", memcmp(a.lse.data(), b.lse.data(), a.lse.size() * 4) ? " lse" : "", a.dq == b.dq ? "" : " dq", a.dk == b.dk ? "" : " dk",
           a.dv == b.dv ? "" : " dv");
    say(s, training);
}

static void try_shape(const shape &s, std::mt19937 &random)
{
    std::normal_distribution<float> normal;
    bool training = *std::max_element(s.past.begin(), s.past.end()) == 0;
    std::vector<example> x(s.lengths.size());
    std::vector<int> all, reversed;
    for (size_t e = 0; e < x.size(); e++) {
        auto fill = [&](std::vector<uint16_t> &v, int64_t n) {
            v.resize(n);
            for (uint16_t &b : v)
                b = bits_of(normal(random), s.f16);
        };
        int64_t length = s.lengths[e], keys = length + s.past[e];
        fill(x[e].q, length * s.heads * s.D);
        fill(x[e].dout, length * s.heads * s.D);
        fill(x[e].k, keys * s.kv_heads * s.D);
        fill(x[e].v, keys * s.kv_heads * s.D);
        for (size_t i = 0; s.far && i < x[e].q.size(); i += (size_t)s.D)
            x[e].q[i] = bits_of(-40, s.f16);
        for (size_t i = 0; s.far && i < x[e].k.size(); i += (size_t)s.D)
            x[e].k[i] = bits_of(40, s.f16);
        all.push_back((int)e);
    }
    reversed.assign(all.rbegin(), all.rend());
    std::vector<outcome> first = run(s, x, all, false, -1, training), again = run(s, x, all, false, -1, training), other = run(s, x, reversed, true, -1, training);
    compare(s, x, first, training);
    for (int e : all) {
        expect_equal(s, first[e], again[e], "twice", e, training);
        expect_equal(s, first[e], other[e], "elsewhere in a fixed batch", e, training);
    }
    std::vector<int> some = {0, (int)x.size() / 2, (int)x.size() - 1};
    for (int e : some) {
        if (!chosen(3, random()))
            continue;
        expect_equal(s, first[e], run(s, x, {e}, false, -1, training)[e], "alone", e, training);
        expect_equal(s, first[e], run(s, x, all, true, e, training)[e], "among neighbours that are no numbers", e, training);
        expect_equal(s, first[e], run(s, x, reversed, false, e, training)[e], "behind neighbours that are no numbers", e, training);
    }
}

static shape random_shape(int D, bool f16, std::mt19937 &random)
{
    auto pick = [&](std::initializer_list<int> of) { return of.begin()[random() % of.size()]; };
    shape s = {D, 0, 0, {}, {}, 0, 0, f16};
    s.kv_heads = pick({1, 2, 3});
    s.heads = s.kv_heads * (ON_GPU ? pick({1, 2, 3, 4, 7, 8}) : pick({1, 2}));
    s.window = pick({0, 0, 1, 17, 64, 100, 128, 200});
    s.softcap = (float)pick({0, 0, 2, 20, 50});
    s.far = s.softcap == 0 && pick({0, 1});
    bool cache = pick({0, 0, 1});
    int n = ON_GPU ? pick({1, 2, 3, 5}) : pick({1, 2});
    for (int i = 0; i < n; i++) {
        s.lengths.push_back(random() % 2 ? pick({1, 2, 15, 16, 63, 64, 65, 127, 128, 129, 191, 192, 193, 256, 257}) : 1 + (int)(random() % sized(330, 200)));
        s.past.push_back(cache ? pick({1, 5, 63, 64, 100, 128, 200}) : 0);
    }
    return s;
}

/* --- Rates --- */

/* Milliseconds of a run, the median of seven. */
template <class F> static float time_of(F f)
{
    cudaStream_t stream = tm_cuda_of(device)->stream;
    cudaEvent_t from, to;
    CHECK(cudaEventCreate(&from));
    CHECK(cudaEventCreate(&to));
    std::vector<float> ms;
    for (int i = 0; i < 9; i++) {
        float t;
        CHECK(cudaEventRecord(from, stream));
        f();
        CHECK(cudaEventRecord(to, stream));
        CHECK(cudaEventSynchronize(to));
        CHECK(cudaEventElapsedTime(&t, from, to));
        if (i >= 2)
            ms.push_back(t);
    }
    std::sort(ms.begin(), ms.end());
    return ms[ms.size() / 2];
}

__global__ static void fill_random(__nv_bfloat16 *x, int64_t n, uint32_t seed)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
        uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        x[i] = __float2bfloat16((float)(int32_t)(z >> 32) * 0x1p-31f * 1.7f);
    }
}

static void rate(int D, int heads, int kv_heads, int examples, int length)
{
    int64_t T = (int64_t)examples * length, qw = heads * D, kw = kv_heads * D, width = qw + 2 * kw;
    std::vector<int32_t> query, keys(examples, length);
    for (int e = 0; e <= examples; e++)
        query.push_back(e * length);
    int32_t *d_query = to_device(query), *d_keys = to_device(keys);
    __nv_bfloat16 *qkv, *dqkv, *out, *dout;
    float *lse, *delta;
    CHECK(cudaMalloc(&qkv, T * width * 2));
    CHECK(cudaMalloc(&dqkv, T * width * 2));
    CHECK(cudaMalloc(&out, T * qw * 2));
    CHECK(cudaMalloc(&dout, T * qw * 2));
    CHECK(cudaMalloc(&lse, T * heads * 4));
    CHECK(cudaMalloc(&delta, T * heads * 4));
    tm_cuda_launch(tm_cuda_of(device), "fill", fill_random, 1024, 256, 0, qkv, T * width, 1);
    tm_cuda_launch(tm_cuda_of(device), "fill", fill_random, 1024, 256, 0, dout, T * qw, 2);
    CHECK(cudaDeviceSynchronize());
    tm_spans spans = {examples, d_query, d_query, d_keys};
    tm_attention a = {heads, kv_heads, D, 1 / sqrtf((float)D), 0, 0};
    tm_tensor all = tm_tensor_make(qkv, TM_BF16, T, width), dall = tm_tensor_make(dqkv, TM_BF16, T, width), o = tm_tensor_make(out, TM_BF16, T, qw), d = tm_tensor_make(dout, TM_BF16, T, qw);
    tm_tensor q = tm_tensor_cols(all, 0, qw), k = tm_tensor_cols(all, qw, kw), v = tm_tensor_cols(all, qw + kw, kw), l = tm_tensor_make(lse, TM_F32, T, heads), e = tm_tensor_make(delta, TM_F32, T, heads);
    float forward = time_of([&] { tm_half_attention_forward(device, &spans, &a, q, k, v, o, l); });
    float backward = time_of([&] { tm_half_attention_backward(device, &spans, &a, d, q, k, v, o, l, e, tm_tensor_cols(dall, 0, qw), tm_tensor_cols(dall, qw, kw), tm_tensor_cols(dall, qw + kw, kw)); });
    double products = 2.0 * examples * heads * D * ((double)length * (length + 1) / 2) * 1e-9;
    printf("rate: head %3d, %d heads, %d kv, %4d x %4d: forward %.3f ms, %.0f TFLOP/s; backward %.3f ms, %.0f (of five products)\n", D, heads, kv_heads, examples, length, forward, 2 * products / forward, backward,
           5 * products / backward);
    for (void *p : std::initializer_list<void *>{qkv, dqkv, out, dout, lse, delta, d_query, d_keys})
        CHECK(cudaFree(p));
}

int main(int argc, char **argv)
{
    uint32_t seed = argc > 1 ? (uint32_t)atol(argv[1]) : (uint32_t)fresh_seed();
    int rounds = argc > 2 ? atoi(argv[2]) : (int)sized(3, 1), cases = 0;
    tm_error err;
    if (tm_cuda_plugin_table.create(0, &device, &err) != TM_OK) {
        printf("FAILED: %s\n", err.message);
        return 1;
    }
    std::mt19937 random(seed);
    for (int round = 0; round < rounds; round++)
        for (int D : {64, 128, 80, 96, 256, 8, 32, 40, 112, 192})
            for (bool f16 : {false, true}) {
                if (!chosen(4, random()))
                    continue;
                try_shape(random_shape(D, f16, random), random);
                cases++;
            }
    for (int D : {64, 128, 96}) { /* many spans, and long ones */
        shape many = {D, 2, 1, std::vector<int>((size_t)sized(300, 40), 0), std::vector<int>((size_t)sized(300, 40), 0), 0, 0, false}, lengthy = {D, 2, 1, {(int)sized(1500, 300), (int)sized(700, 200)}, {0, 0}, 0, 0, false};
        if (!chosen(3, random()))
            continue;
        for (int &n : many.lengths)
            n = 1 + (int)(random() % 20);
        try_shape(many, random);
        try_shape(lengthy, random);
        cases += 2;
    }
    if (!all_of_it())
        return printf("%d cases, %d failures, TEST_SEED=%u\n", cases, failures, seed), failures != 0;
    rate(64, 14, 2, 8, 2048);
    rate(64, 14, 2, 64, 256);
    rate(64, 14, 2, 4, 256);
    rate(64, 14, 2, 512, 32);
    rate(64, 14, 2, 4096, 4);
    rate(128, 28, 4, 4, 2048);
    rate(128, 28, 4, 1, 8192);
    rate(128, 28, 4, 64, 256);
    rate(96, 32, 32, 4, 2048);
    rate(256, 8, 4, 4, 2048);
    printf("%d cases, %d failures, seed %u\n", cases, failures, seed);
    return failures != 0;
}
