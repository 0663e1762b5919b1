/* Norms of rows of 16 bits: a block a row, which stays in its registers between its sums and its result.
 * docs/math/rmsnorm.md, layernorm.md. */
#include "device/cuda/half/vec.cuh"

struct tm_half_norm {
    int64_t n;
    tm_tensor x, delta, weight, bias, sum, mean, rstd, y; /* backward: y is dy */
    tm_tensor dx;
    float offset, eps;
};

/* LAYER: layer norm; N: vectors of eight a thread. */
template <class T, int THREADS, int N, bool LAYER> static __global__ void __launch_bounds__(THREADS) norm_forward(tm_half_norm w)
{
    int64_t t = blockIdx.x, vectors = w.x.cols / 8;
    uint4 s[N];
    float sum[1] = {0};
#pragma unroll
    for (int k = 0; k < N; k++) {
        int64_t i = threadIdx.x + k * THREADS;
        s[k] = i < vectors ? packed<T>(w.x, t * w.x.ld + 8 * i) : make_uint4(0, 0, 0, 0);
    }
    if (w.delta.data) {
        uint4 delta[N];
#pragma unroll
        for (int k = 0; k < N; k++) {
            int64_t i = threadIdx.x + k * THREADS;
            delta[k] = i < vectors ? packed<T>(w.delta, t * w.delta.ld + 8 * i) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int k = 0; k < N; k++) {
            eight a = widen<T>(s[k]), b = widen<T>(delta[k]);
            for (int e = 0; e < 8; e++)
                a.v[e] += b.v[e];
            s[k] = narrow<T>(a);
        }
    }
    if (w.delta.data || w.sum.data != w.x.data)
#pragma unroll
        for (int k = 0; k < N; k++) {
            int64_t i = threadIdx.x + k * THREADS;
            if (i < vectors)
                packed_at<T>(w.sum, t * w.sum.ld + 8 * i) = s[k];
        }
    float mean = 0;
    if (LAYER) {
#pragma unroll
        for (int k = 0; k < N; k++) {
            eight a = widen<T>(s[k]);
            for (int e = 0; e < 8; e++)
                sum[0] += a.v[e];
        }
        block_sum<THREADS, 1>(sum);
        mean = sum[0] / (float)w.x.cols;
        sum[0] = 0;
    }
#pragma unroll
    for (int k = 0; k < N; k++) {
        eight a = widen<T>(s[k]);
        if (!LAYER || threadIdx.x + k * THREADS < vectors)
            for (int e = 0; e < 8; e++)
                sum[0] = fmaf(a.v[e] - mean, a.v[e] - mean, sum[0]);
    }
    block_sum<THREADS, 1>(sum);
    float r = 1 / sqrtf(sum[0] / (float)w.x.cols + w.eps);
    if (threadIdx.x == 0) {
        put(w.rstd, 0, t, r);
        if (LAYER)
            put(w.mean, 0, t, mean);
    }
#pragma unroll
    for (int k = 0; k < N; k++) {
        int64_t i = threadIdx.x + k * THREADS;
        if (i >= vectors)
            continue;
        eight a = widen<T>(s[k]), factor = load_eight(w.weight, 8 * i), b = {};
        if (LAYER && w.bias.data)
            b = load_eight(w.bias, 8 * i);
        for (int e = 0; e < 8; e++)
            a.v[e] = LAYER ? fmaf((a.v[e] - mean) * r, factor.v[e], b.v[e]) : (a.v[e] * r) * (factor.v[e] + w.offset);
        packed_at<T>(w.y, t * w.y.ld + 8 * i) = narrow<T>(a);
    }
}

template <class T, int THREADS, int N, bool LAYER> static __global__ void __launch_bounds__(THREADS) norm_backward(tm_half_norm w)
{
    int64_t t = blockIdx.x, vectors = w.y.cols / 8;
    uint4 dy[N], s[N], dx[N];
    uint4 none = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int k = 0; k < N; k++) {
        int64_t i = threadIdx.x + k * THREADS;
        bool there = i < vectors;
        dy[k] = there ? packed<T>(w.y, t * w.y.ld + 8 * i) : none;
        s[k] = there ? packed<T>(w.sum, t * w.sum.ld + 8 * i) : none;
        dx[k] = there ? packed<T>(w.dx, t * w.dx.ld + 8 * i) : none;
    }
    float r = at(w.rstd, 0, t), mean = LAYER ? at(w.mean, 0, t) : 0, sum[LAYER ? 2 : 1] = {};
#pragma unroll
    for (int k = 0; k < N; k++) {
        int64_t i = threadIdx.x + k * THREADS;
        if (i >= vectors)
            continue;
        eight g = widen<T>(dy[k]), a = widen<T>(s[k]), factor = load_eight(w.weight, 8 * i);
        for (int e = 0; e < 8; e++) {
            float f = g.v[e] * (LAYER ? factor.v[e] : factor.v[e] + w.offset);
            sum[0] = fmaf(f, LAYER ? (a.v[e] - mean) * r : a.v[e], sum[0]);
            if (LAYER)
                sum[LAYER ? 1 : 0] += f;
        }
    }
    block_sum<THREADS, LAYER ? 2 : 1>(sum);
    float C = (float)w.y.cols, q = LAYER ? sum[0] / C : sum[0] * r / C * r, middle = LAYER ? sum[LAYER ? 1 : 0] / C : 0;
#pragma unroll
    for (int k = 0; k < N; k++) {
        int64_t i = threadIdx.x + k * THREADS;
        if (i >= vectors)
            continue;
        eight g = widen<T>(dy[k]), a = widen<T>(s[k]), out = widen<T>(dx[k]), factor = load_eight(w.weight, 8 * i);
        for (int e = 0; e < 8; e++) {
            float f = g.v[e] * (LAYER ? factor.v[e] : factor.v[e] + w.offset);
            out.v[e] = fmaf(r, fmaf(-q, LAYER ? (a.v[e] - mean) * r : a.v[e], LAYER ? f - middle : f), out.v[e]);
        }
        packed_at<T>(w.dx, t * w.dx.ld + 8 * i) = narrow<T>(out);
    }
}

template <class T, bool LAYER, bool FORWARD, int THREADS, int N> static void launch(tm_cuda *c, const char *op, const tm_half_norm &w)
{
    if (FORWARD)
        tm_cuda_launch(c, op, norm_forward<T, THREADS, N, LAYER>, (unsigned)w.n, THREADS, 0, w);
    else
        tm_cuda_launch(c, op, norm_backward<T, THREADS, N, LAYER>, (unsigned)w.n, THREADS, 0, w);
}

enum { WIDEST = 512 * 4 * 8 };

template <bool LAYER, bool FORWARD> static void run(tm_device *d, const char *op, const tm_half_norm &w)
{
    tm_cuda *c = tm_cuda_of(d);
    int64_t vectors = w.y.cols / 8;
    if (w.n <= 0)
        return;
    tm_half_typed(w.y.dtype, [&](auto element) {
        typedef decltype(element) T;
        if (vectors <= 128)
            launch<T, LAYER, FORWARD, 128, 1>(c, op, w);
        else if (vectors <= 256)
            launch<T, LAYER, FORWARD, 128, 2>(c, op, w);
        else if (vectors <= 512)
            launch<T, LAYER, FORWARD, 128, 4>(c, op, w);
        else
            launch<T, LAYER, FORWARD, 512, 4>(c, op, w);
    });
}

bool tm_half_rmsnorm_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor delta, tm_tensor weight, float offset, float eps, tm_tensor sum, tm_tensor rstd, tm_tensor y)
{
    if (!tm_half_alike({x, delta, sum, y}) || !tm_half_fits({x, delta, weight, sum, y}) || x.cols > WIDEST)
        return false;
    run<false, true>(d, "rmsnorm_forward", {rows->n, x, delta, weight, {}, sum, {}, rstd, y, {}, offset, eps});
    return true;
}

bool tm_half_layernorm_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor delta, tm_tensor weight, tm_tensor bias, float eps, tm_tensor sum, tm_tensor mean, tm_tensor rstd, tm_tensor y)
{
    if (!tm_half_alike({x, delta, sum, y}) || !tm_half_fits({x, delta, weight, bias, sum, y}) || x.cols > WIDEST)
        return false;
    run<true, true>(d, "layernorm_forward", {rows->n, x, delta, weight, bias, sum, mean, rstd, y, {}, 0, eps});
    return true;
}

/* What a row adds to the gradient of the weight (mean: of a layer norm, or NULL). */
template <class T> struct weight_term {
    tm_tensor dy, sum;
    const float *mean, *rstd;
    __device__ void operator()(int64_t t, int64_t c, int64_t, eight &total) const
    {
        eight g = widen<T>(packed<T>(dy, t * dy.ld + c)), s = widen<T>(packed<T>(sum, t * sum.ld + c));
        float r = rstd[t], middle = mean ? mean[t] : 0;
        for (int e = 0; e < 8; e++)
            total.v[e] = fmaf(g.v[e], (s.v[e] - middle) * r, total.v[e]);
    }
};

template <class T> struct bias_term {
    tm_tensor dy;
    __device__ void operator()(int64_t t, int64_t c, int64_t, eight &total) const
    {
        eight g = widen<T>(packed<T>(dy, t * dy.ld + c));
        for (int e = 0; e < 8; e++)
            total.v[e] += g.v[e];
    }
};

bool tm_half_rmsnorm_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor sum, tm_tensor weight, float offset, tm_tensor rstd, tm_tensor dx, tm_tensor dweight)
{
    if (!tm_half_alike({dy, sum, dx}) || !tm_half_fits({dy, sum, weight, dx}) || dy.cols > WIDEST || rstd.dtype != TM_F32)
        return false;
    if (dweight.data)
        tm_half_typed(dy.dtype, [&](auto element) {
            sum_rows(d, "rmsnorm_backward", rows, false, dy.cols, 1, dweight, weight_term<decltype(element)>{dy, sum, nullptr, (const float *)rstd.data});
        });
    run<false, false>(d, "rmsnorm_backward", {rows->n, {}, {}, weight, {}, sum, {}, rstd, dy, dx, offset, 0});
    return true;
}

bool tm_half_layernorm_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor sum, tm_tensor weight, tm_tensor mean, tm_tensor rstd, tm_tensor dx, tm_tensor dweight, tm_tensor dbias)
{
    if (!tm_half_alike({dy, sum, dx}) || !tm_half_fits({dy, sum, weight, dx}) || dy.cols > WIDEST || rstd.dtype != TM_F32)
        return false;
    tm_half_typed(dy.dtype, [&](auto element) {
        typedef decltype(element) T;
        if (dweight.data)
            sum_rows(d, "layernorm_backward", rows, false, dy.cols, 1, dweight, weight_term<T>{dy, sum, (const float *)mean.data, (const float *)rstd.data});
        if (dbias.data)
            sum_rows(d, "layernorm_backward", rows, false, dy.cols, 1, dbias, bias_term<T>{dy});
    });
    run<true, false>(d, "layernorm_backward", {rows->n, {}, {}, weight, {}, sum, mean, rstd, dy, dx, 0, 0});
    return true;
}
