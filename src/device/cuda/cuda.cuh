/* The CUDA device: what its ops see of it.
 *
 * Invariants:
 *  1. Ops only queue work on the device's one stream; whatever fails is kept and reported by sync.
 *  2. No float atomics; every sum has one order, that of the CPU device: an op here gives the bits of the CPU's f32 op.
 *     These kernels are the plain ones: a thread an output. Faster ones may choose their own order, by the
 *     same rule: from the tensors and the layout of the examples alone.
 *  3. Layout arrays (tm_rows, tm_spans) are read by kernels, never by the host. */
#ifndef TM_DEVICE_CUDA_CUDA_CUH
#define TM_DEVICE_CUDA_CUDA_CUH

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

extern "C" {
#include "base/philox.h"
#include "device/cuda/plugin.h"
}

#define TM_LANE static __device__ inline

struct tm_cuda {
    tm_device base;
    cudaStream_t stream;
    tm_error failure;     /* the first since the last sync; status TM_OK: none */
    bool recording;       /* between graph_begin and graph_end */
    uint64_t *partials;   /* [TM_CUDA_PARTIALS], of the op that runs */
    void *workspace;      /* lent by the run: half/half.h */
    int64_t workspace_bytes;
    void *block;          /* the first that was handed out: kept when it is given back, for the next that fits */
    int64_t block_bytes;
    bool block_lent;
    struct tm_cuda_transfer *transfer;
    struct tm_cuda_stash *stash; /* NULL: nothing is offloaded */
    int index, architecture, processors; /* of the GPU: its number, 90 for sm_90, how many multiprocessors */
    struct tm_cuda_profile *profile; /* NULL: nobody asked */
    char detail[256];
};

static inline tm_cuda *tm_cuda_of(tm_device *d) { return (tm_cuda *)d; }

/* Keeps the first failure for sync. */
void tm_cuda_note(tm_cuda *c, tm_status status, const char *what, const char *why);
static inline void tm_cuda_check(tm_cuda *c, const char *what, cudaError_t error)
{
    if (error != cudaSuccess)
        tm_cuda_note(c, TM_FAILED, what, cudaGetErrorString(error));
}

/* Whether all tensors that are there are of a type that kernels here read and write; they compute in f32. */
static inline bool tm_cuda_floats(tm_device *d, const char *op, std::initializer_list<tm_tensor> tensors)
{
    for (const tm_tensor &t : tensors)
        if (t.data && t.dtype != TM_F32 && t.dtype != TM_BF16 && t.dtype != TM_F16) {
            tm_cuda_note(tm_cuda_of(d), TM_UNSUPPORTED, op, "on CUDA a tensor is f32, bf16 or f16");
            return false;
        }
    return true;
}

/* The device's calls with no graphs in them: profiles look at single ops. */
const tm_device_calls *tm_cuda_calls_without_graphs(void);

/* transfer.cu */
tm_status tm_cuda_transfer_create(tm_cuda *c, tm_error *err);
void tm_cuda_transfer_destroy(tm_cuda *c);
void tm_cuda_upload(tm_device *d, void *dst, const void *src, int64_t bytes);
void tm_cuda_download(tm_device *d, void *dst, const void *src, int64_t bytes);
void tm_cuda_fetch_later(tm_device *d, void *dst, const void *src, int64_t bytes);
tm_status tm_cuda_stash_reserve(tm_device *d, int64_t slots, int64_t bytes, tm_error *err);
void tm_cuda_stash_destroy(tm_cuda *c);
void tm_cuda_stash_away(tm_device *d, int64_t slot, const void *src, int64_t bytes);
void tm_cuda_stash_back(tm_device *d, int64_t slot, void *dst, int64_t bytes);
void tm_cuda_stash_wait(tm_device *d, int64_t slot);
/* After the stream has been waited for. */
void tm_cuda_fetches_arrived(tm_cuda *c);
/* Who asked for them is gone. */
void tm_cuda_fetches_forgotten(tm_cuda *c);

/* --- Launching --- */

/* Every launch of a kernel but tm_cuda_each's goes through here. */
#ifdef TM_CUDA_EMULATED
template <class... P, class... A> static inline void tm_cuda_launch(tm_cuda *c, const char *op, void (*kernel)(P...), dim3 grid, dim3 threads, size_t shared, const A &...args)
{
    tm_cuda_check(c, op, emulated_launch(c->stream, op, kernel, grid, threads, shared, args...));
}

/* On the processor, one after the other. */
template <class F> static inline void tm_cuda_each(tm_device *d, const char *, int64_t n, F f)
{
    emulated_queue(tm_cuda_of(d)->stream, [=] {
        for (int64_t i = n - 1; i >= 0; i--)
            f(i);
    });
}
#else
template <class... P, class... A> static inline void tm_cuda_launch(tm_cuda *c, const char *op, void (*kernel)(P...), dim3 grid, dim3 threads, size_t shared, const A &...args)
{
    kernel<<<grid, threads, shared, c->stream>>>(args...);
    tm_cuda_check(c, op, cudaGetLastError());
}

template <class F> __global__ void tm_cuda_kernel(int64_t n, F f)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        f(i);
}

/* f(i) for every i < n, in no order. */
template <class F> static inline void tm_cuda_each(tm_device *d, const char *op, int64_t n, F f)
{
    enum { THREADS = 128, BLOCKS = 1 << 20 };
    tm_cuda *c = tm_cuda_of(d);
    if (n <= 0)
        return;
    int64_t blocks = (n + THREADS - 1) / THREADS;
    tm_cuda_kernel<<<(unsigned)(blocks < BLOCKS ? blocks : BLOCKS), THREADS, 0, c->stream>>>(n, f);
    tm_cuda_check(c, op, cudaGetLastError());
}
#endif

/* --- Elements and sums --- */

TM_LANE bool is_finite(double x) { return fabs(x) < INFINITY; }

#ifdef TM_CUDA_EMULATED
TM_LANE float from_f16(uint16_t h) { return tm_f16_to_f32(h); }
TM_LANE uint16_t to_f16(float x) { return tm_f32_to_f16(x); }
#else
TM_LANE float from_f16(uint16_t h) { return __half2float(__ushort_as_half(h)); }
TM_LANE uint16_t to_f16(float x) { return __half_as_ushort(__float2half_rn(x)); }
#endif

/* Element i of t's memory, and the element at a row and column: f32, bf16 or f16; stored to nearest even. */
TM_LANE float element(const tm_tensor &t, int64_t i)
{
    if (t.dtype == TM_F32)
        return ((const float *)t.data)[i];
    uint16_t h = ((const uint16_t *)t.data)[i];
    return t.dtype == TM_BF16 ? tm_bf16_to_f32(h) : from_f16(h);
}

TM_LANE void put_element(const tm_tensor &t, int64_t i, float x)
{
    if (t.dtype == TM_F32)
        ((float *)t.data)[i] = x;
    else
        ((uint16_t *)t.data)[i] = t.dtype == TM_BF16 ? tm_f32_to_bf16(x) : to_f16(x);
}

TM_LANE float at(const tm_tensor &t, int64_t row, int64_t col) { return element(t, row * t.ld + col); }
TM_LANE void put(const tm_tensor &t, int64_t row, int64_t col, float x) { put_element(t, row * t.ld + col, x); }
TM_LANE float stored(const tm_tensor &t, int64_t row, int64_t col, float x) /* put, and what stands there then */
{
    put(t, row, col, x);
    return at(t, row, col);
}
/* Of a tensor that is f32 (the device's real): gradients, factors of adapters. */
TM_LANE float &real_at(const tm_tensor &t, int64_t row, int64_t col) { return ((float *)t.data)[row * t.ld + col]; }
TM_LANE float larger(float a, float b) { return a > b ? a : b; } /* b when either is not a number */

/* The CPU's joining of sixteen lanes. */
TM_LANE float join_lanes(float *lane)
{
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; i++)
            lane[i] += lane[i + step];
    return lane[0];
}

/* Sum over columns 0 .. n - 1 in the CPU's order (row.h there): next(i, sum) is the sum with column i. */
template <class F> TM_LANE float row_sum(int64_t n, F next)
{
    float lane[16];
    int64_t whole = n / 64 * 64;
    for (int l = 0; l < 16; l++) {
        float sum[4] = {0, 0, 0, 0};
        for (int64_t i = l; i < whole; i += 64)
            for (int k = 0; k < 4; k++)
                sum[k] = next(i + 16 * k, sum[k]);
        for (int64_t i = whole + l; i < n; i += 16)
            sum[0] = next(i, sum[0]);
        lane[l] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    return join_lanes(lane);
}

/* The same with one accumulator a lane. */
template <class F> TM_LANE float lane_sum(int64_t n, F next)
{
    float lane[16];
    for (int l = 0; l < 16; l++) {
        lane[l] = 0;
        for (int64_t i = l; i < n; i += 16)
            lane[l] = next(i, lane[l]);
    }
    return join_lanes(lane);
}

/* Sum over k < n of a(k) b(k): a chain in every block of 384, as the CPU's matrix product has it; the
 * blocks' sums are added in order, to *old first when there is one. */
template <class A, class B> TM_LANE float product_sum(int64_t n, const float *old, A a, B b)
{
    enum { BLOCK = 384 };
    float total = old ? *old : 0;
    bool add = old != nullptr;
    for (int64_t from = 0; from < n; from += BLOCK, add = true) {
        float sum = 0;
        for (int64_t k = from; k < n && k < from + BLOCK; k++)
            sum = fmaf(a(k), b(k), sum);
        total = add ? total + sum : sum;
    }
    return total;
}

/* old + sum over chunks [first, last), a chain over the rows t of each from zero: next(t, sum). */
template <class F> TM_LANE float chunk_sum(const int32_t *chunk, int64_t first, int64_t last, float old, F next)
{
    for (int64_t c = first; c < last; c++) {
        float sum = 0;
        for (int64_t t = chunk[c]; t < chunk[c + 1]; t++)
            sum = next(t, sum);
        old += sum;
    }
    return old;
}

/* --- Rows --- */

/* The replica that row t belongs to. */
TM_LANE int32_t replica_of(const tm_rows &rows, int64_t t)
{
    int32_t r = 0;
    while (r + 1 < rows.replicas && t >= rows.group[r + 1])
        r++;
    return r;
}

/* 0 or 1 / (1 - p) for a channel of row t: docs/math/dropout.md. */
struct tm_cuda_drop {
    uint32_t module, threshold;
    float scale;
};

static inline tm_cuda_drop tm_cuda_drop_of(uint32_t module, float p)
{
    return {module, (uint32_t)ceil((double)p * 0x1p24), 1.0f / (1.0f - p)};
}

TM_LANE float dropout_factor(const tm_cuda_drop &d, uint64_t key, const tm_rows &rows, int64_t t, int64_t channel)
{
    tm_philox random = tm_philox_at(key, (uint32_t)(channel / 4), (uint32_t)rows.position[t], rows.example[t], d.module);
    return random.word[channel % 4] >> 8 >= d.threshold ? d.scale : 0;
}

/* The table of ops (half/serve.cu), and the plain kernels, defined by the op files. */
extern const tm_ops tm_cuda_ops;
extern "C" {
#define TM_OP(name, params) void tm_cuda_##name params;
#include "device/ops.def"
#undef TM_OP
}

#endif
