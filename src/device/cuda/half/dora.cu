/* DoRA in 16 bits. docs/math/dora.md. */
#include "device/cuda/half/vec.cuh"

enum { THREADS = 256, NORM_ROWS = 8, SCALE_THREADS = 128, SCALE_ROWS = 4 };

/* Length of rows of one replica's w + scale B A: a block NORM_ROWS rows, a thread every THREADS-th eight columns of them. */
static __global__ void __launch_bounds__(THREADS) row_lengths(tm_tensor a, tm_tensor b, int r, float scale, tm_tensor w, tm_tensor norm)
{
    TM_SHARED(float, factor, 16); /* [r][NORM_ROWS] of b */
    int64_t replica = blockIdx.y, n0 = blockIdx.x * (int64_t)NORM_ROWS;
    float squares[NORM_ROWS] = {};
    for (int k = threadIdx.x; k < r * NORM_ROWS; k += THREADS) {
        int64_t n = n0 + k % NORM_ROWS;
        factor[k] = n < w.rows ? at(b, replica * w.rows + n, k / NORM_ROWS) : 0;
    }
    __syncthreads();
    for (int64_t c = 8 * threadIdx.x; c < w.cols; c += 8 * THREADS) {
        eight delta[NORM_ROWS] = {};
        for (int k = 0; k < r; k++) {
            eight row = load_eight(a, (replica * r + k) * a.ld + c);
#pragma unroll
            for (int i = 0; i < NORM_ROWS; i++)
                for (int e = 0; e < 8; e++)
                    delta[i].v[e] = fmaf(factor[k * NORM_ROWS + i], row.v[e], delta[i].v[e]);
        }
#pragma unroll
        for (int i = 0; i < NORM_ROWS; i++)
            if (n0 + i < w.rows) {
                eight v = load_eight(w, (n0 + i) * w.ld + c);
                for (int e = 0; e < 8; e++) {
                    float x = fmaf(scale, delta[i].v[e], v.v[e]);
                    squares[i] = fmaf(x, x, squares[i]);
                }
            }
    }
    block_sum<THREADS, NORM_ROWS>(squares);
    if (threadIdx.x == 0)
        for (int i = 0; i < NORM_ROWS; i++)
            if (n0 + i < w.rows)
                put(norm, 0, replica * w.rows + n0 + i, sqrtf(squares[i]));
}

bool tm_half_dora_norm(tm_device *d, int32_t replicas, const tm_lowrank *lr, tm_tensor w, tm_tensor norm)
{
    enum { WIDEST_RANK = 1024 };
    int64_t r = lr->a.rows / replicas;
    if (!tm_is_half(w.dtype) || !tm_half_fits({lr->a, w}) || r > WIDEST_RANK)
        return false;
    dim3 grid((unsigned)((w.rows + NORM_ROWS - 1) / NORM_ROWS), (unsigned)replicas);
    tm_cuda_launch(tm_cuda_of(d), "dora_norm", row_lengths, grid, THREADS, (size_t)r * NORM_ROWS * sizeof(float), lr->a, lr->b, (int)r, lr->scale, w, norm);
    return true;
}

/* y = magnitude / norm * u + bias|0, eight columns of SCALE_ROWS rows a thread. */
template <class T> static __global__ void __launch_bounds__(SCALE_THREADS) scale_columns(tm_rows rows, tm_tensor u, tm_tensor magnitude, tm_tensor norm, tm_tensor bias, tm_tensor y)
{
    int64_t c = 8 * (blockIdx.y * (int64_t)SCALE_THREADS + threadIdx.x), t = blockIdx.x * (int64_t)SCALE_ROWS;
    int32_t before = -1;
    eight factor, add = {};
    if (c >= u.cols)
        return;
    if (bias.data)
        add = load_eight(bias, c);
    uint4 in[SCALE_ROWS];
#pragma unroll
    for (int k = 0; k < SCALE_ROWS; k++)
        if (t + k < rows.n)
            in[k] = packed<T>(u, (t + k) * u.ld + c);
#pragma unroll
    for (int k = 0; k < SCALE_ROWS; k++, t++) {
        if (t >= rows.n)
            return;
        int32_t replica = replica_of(rows, t);
        if (replica != before)
            for (int e = 0; e < 8; e++)
                factor.v[e] = at(magnitude, 0, replica * u.cols + c + e) / at(norm, 0, replica * u.cols + c + e);
        before = replica;
        eight v = widen<T>(in[k]);
        for (int e = 0; e < 8; e++)
            v.v[e] = factor.v[e] * v.v[e] + add.v[e];
        packed_at<T>(y, t * y.ld + c) = narrow<T>(v);
    }
}

static void scale_rows(tm_device *d, const char *op, const tm_rows *rows, tm_tensor u, tm_tensor magnitude, tm_tensor norm, tm_tensor bias, tm_tensor y)
{
    dim3 grid((unsigned)((rows->n + SCALE_ROWS - 1) / SCALE_ROWS), (unsigned)((u.cols / 8 + SCALE_THREADS - 1) / SCALE_THREADS));
    if (rows->n > 0)
        tm_half_typed(u.dtype, [&](auto element) {
            typedef decltype(element) T;
            tm_cuda_launch(tm_cuda_of(d), op, scale_columns<T>, grid, SCALE_THREADS, 0, *rows, u, magnitude, norm, bias, y);
        });
}

bool tm_half_dora_forward(tm_device *d, const tm_rows *rows, tm_tensor u, tm_tensor magnitude, tm_tensor norm, tm_tensor bias, tm_tensor y)
{
    if (!tm_half_alike({u, y}) || !tm_half_fits({u, y, bias}))
        return false;
    scale_rows(d, "dora_forward", rows, u, magnitude, norm, bias, y);
    return true;
}

template <class T> struct magnitude_term {
    tm_tensor dy, u;
    __device__ void operator()(int64_t t, int64_t c, int64_t, eight &total) const
    {
        eight g = widen<T>(packed<T>(dy, t * dy.ld + c)), v = widen<T>(packed<T>(u, t * u.ld + c));
        for (int e = 0; e < 8; e++)
            total.v[e] = fmaf(g.v[e], v.v[e], total.v[e]);
    }
};

struct over_norm {
    tm_tensor norm;
    __device__ float operator()(int64_t place, float sum) const { return sum / at(norm, 0, place); }
};

bool tm_half_dora_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor u, tm_tensor magnitude, tm_tensor norm, tm_tensor du, tm_tensor dmagnitude)
{
    if (!tm_half_alike({dy, u, du}) || !tm_half_fits({dy, u, du}))
        return false;
    if (dmagnitude.data) /* first: du may overwrite dy */
        tm_half_typed(dy.dtype, [&](auto element) {
            sum_rows(d, "dora_backward", rows, true, dy.cols, 1, dmagnitude, magnitude_term<decltype(element)>{dy, u}, over_norm{norm});
        });
    scale_rows(d, "dora_backward", rows, dy, magnitude, norm, {}, du);
    return true;
}
