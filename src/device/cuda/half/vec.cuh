/* What the kernels on rows and elements share: eight elements at a time, sums of a block, sums over the rows of chunks.
 *
 * Eight elements of 16 bits are one access of 16 bytes: base addresses are multiples of 16 bytes and columns and leading
 * dimensions multiples of 8, or an op is not served (tm_half_fits). Arithmetic is f32. */
#ifndef TM_DEVICE_CUDA_HALF_VEC_CUH
#define TM_DEVICE_CUDA_HALF_VEC_CUH

#include "device/cuda/half/half.h"
#include "device/cuda/half/ptx.cuh"

struct eight {
    float v[8];
};

/* --- Two elements in 32 bits, eight in 128 --- */

template <class T> TM_LANE float2 widen(uint32_t two);
template <> __device__ inline float2 widen<bf16>(uint32_t two) { return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u)); }
template <> __device__ inline float2 widen<f16>(uint32_t two) { return __half22float2(*(const __half2 *)&two); }

template <class T> TM_LANE uint32_t narrow(float a, float b);
template <> __device__ inline uint32_t narrow<bf16>(float a, float b)
{
    __nv_bfloat162 two = __floats2bfloat162_rn(a, b);
    return *(const uint32_t *)&two;
}
template <> __device__ inline uint32_t narrow<f16>(float a, float b)
{
    __half2 two = __floats2half2_rn(a, b);
    return *(const uint32_t *)&two;
}

template <class T> TM_LANE eight widen(uint4 p)
{
    float2 a = widen<T>(p.x), b = widen<T>(p.y), c = widen<T>(p.z), d = widen<T>(p.w);
    return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}

template <class T> TM_LANE uint4 narrow(const eight &e)
{
    return make_uint4(narrow<T>(e.v[0], e.v[1]), narrow<T>(e.v[2], e.v[3]), narrow<T>(e.v[4], e.v[5]), narrow<T>(e.v[6], e.v[7]));
}

/* Elements i .. i + 7, i a multiple of 8. */
template <class T> TM_LANE uint4 packed(const tm_tensor &t, int64_t i) { return *(const uint4 *)((const T *)t.data + i); }
template <class T> TM_LANE uint4 &packed_at(const tm_tensor &t, int64_t i) { return *(uint4 *)((T *)t.data + i); }

/* The same of any float type: what is known at run time alone. */
TM_LANE eight load_eight(const tm_tensor &t, int64_t i)
{
    if (t.dtype == TM_BF16)
        return widen<bf16>(packed<bf16>(t, i));
    if (t.dtype == TM_F16)
        return widen<f16>(packed<f16>(t, i));
    const float4 *p = (const float4 *)((const float *)t.data + i);
    float4 a = p[0], b = p[1];
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

TM_LANE void store_eight(const tm_tensor &t, int64_t i, const eight &e)
{
    if (t.dtype == TM_BF16)
        packed_at<bf16>(t, i) = narrow<bf16>(e);
    else if (t.dtype == TM_F16)
        packed_at<f16>(t, i) = narrow<f16>(e);
    else {
        float4 *p = (float4 *)((float *)t.data + i);
        p[0] = make_float4(e.v[0], e.v[1], e.v[2], e.v[3]);
        p[1] = make_float4(e.v[4], e.v[5], e.v[6], e.v[7]);
    }
}

/* --- On the host: what is served --- */

/* Whether every tensor that is there can be read eight by eight. */
static inline bool tm_half_fits(std::initializer_list<tm_tensor> tensors)
{
    for (const tm_tensor &t : tensors)
        if (t.data && ((t.dtype != TM_F32 && !tm_is_half(t.dtype)) || t.cols % 8 || (t.rows > 1 && t.ld % 8) || (uintptr_t)t.data % 16))
            return false;
    return true;
}

/* Whether all that are there are of one 16-bit type. */
static inline bool tm_half_alike(std::initializer_list<tm_tensor> tensors)
{
    tm_dtype type = TM_DTYPE_COUNT;
    for (const tm_tensor &t : tensors) {
        if (!t.data)
            continue;
        if (!tm_is_half(t.dtype) || (type != TM_DTYPE_COUNT && type != t.dtype))
            return false;
        type = t.dtype;
    }
    return type != TM_DTYPE_COUNT;
}

/* f(element of the type). */
template <class F> static inline void tm_half_typed(tm_dtype type, F f)
{
    if (type == TM_BF16)
        f(bf16());
    else
        f(f16());
}

/* --- Sums --- */

TM_LANE float warp_sum(float x)
{
    for (int step = 16; step; step /= 2)
        x += __shfl_xor_sync(~0u, x, step);
    return x;
}

TM_LANE float warp_max(float x)
{
    for (int step = 16; step; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    return x;
}

/* The sums of K numbers over the threads of a block, in every thread: a tree in each warp, then the warps in order. */
template <int THREADS, int K> TM_LANE void block_sum(float (&x)[K])
{
    enum { WARPS = THREADS / 32 };
    __shared__ float of_warp[K][WARPS];
    for (int k = 0; k < K; k++)
        x[k] = warp_sum(x[k]);
    if (WARPS == 1)
        return;
    __syncthreads(); /* whoever still reads what the call before left */
    if (threadIdx.x % 32 == 0)
        for (int k = 0; k < K; k++)
            of_warp[k][threadIdx.x / 32] = x[k];
    __syncthreads();
    for (int k = 0; k < K; k++) {
        x[k] = of_warp[k][0];
        for (int w = 1; w < WARPS; w++)
            x[k] += of_warp[k][w];
    }
}

/* --- Sums over rows ---
 *
 * out[0, c] += the sum over all chunks, in order, of term(t, c) over the rows t of a chunk. A chunk is cut into strips of
 * STRIP rows: a chain from zero in each, joined in order, so a chunk's sum depends on its rows alone. With folds (heads)
 * the chunk's sum goes over them as well: term(t, c, fold), a chain over the strips of every fold, folds in order. */

enum { STRIP = 32, STRIP_THREADS = 64, JOIN_CHUNKS = 32, JOIN_COLUMNS = 32 };

/* The columns of a pass: [first, first + columns) of every fold. */
struct tm_half_pass {
    int64_t first, columns, folds;
    float *partial; /* [slots, folds * columns] */
};

/* Where strip s of chunk c leaves its sums: no two share a slot, and there are fewer than slots_of. */
TM_LANE int64_t slot_of(const tm_rows &rows, int64_t c, int64_t s) { return rows.chunk[c] / STRIP + c + s; }
static inline int64_t slots_of(const tm_rows *rows) { return rows->n / STRIP + rows->chunks + 1; }

/* term(t, column, fold, sum): eight sums, each with one term more. */
template <class F> static __global__ void __launch_bounds__(STRIP_THREADS) strip_sums(tm_rows rows, tm_half_pass p, F term)
{
    int64_t c = blockIdx.x, s = blockIdx.z, place = 8 * (blockIdx.y * (int64_t)STRIP_THREADS + threadIdx.x);
    int64_t from = rows.chunk[c] + s * STRIP, end = rows.chunk[c + 1];
    if (from >= end || place >= p.columns * p.folds)
        return;
    if (end > from + STRIP)
        end = from + STRIP;
    int64_t fold = p.folds == 1 ? 0 : place / p.columns, column = p.first + place - fold * p.columns;
    eight sum = {{0, 0, 0, 0, 0, 0, 0, 0}};
#pragma unroll 4
    for (int64_t t = from; t < end; t++)
        term(t, column, fold, sum);
    float4 *out = (float4 *)(p.partial + slot_of(rows, c, s) * p.columns * p.folds + place);
    out[0] = make_float4(sum.v[0], sum.v[1], sum.v[2], sum.v[3]);
    out[1] = make_float4(sum.v[4], sum.v[5], sum.v[6], sum.v[7]);
}

/* finish(place in out, chunk's sum) before it is added. Blocks of JOIN_COLUMNS columns (of a replica: blockIdx.y). */
template <class F> static __global__ void __launch_bounds__(JOIN_CHUNKS *JOIN_COLUMNS) join_strips(tm_rows rows, bool by_replica, tm_half_pass p, tm_tensor out, int64_t out_step, F finish)
{
    __shared__ float of_chunk[JOIN_CHUNKS][JOIN_COLUMNS];
    int64_t x = threadIdx.x % JOIN_COLUMNS, y = threadIdx.x / JOIN_COLUMNS, column = blockIdx.x * (int64_t)JOIN_COLUMNS + x;
    int64_t begin = by_replica ? rows.group_chunk[blockIdx.y] : 0, end = by_replica ? rows.group_chunk[blockIdx.y + 1] : rows.chunks;
    int64_t place = blockIdx.y * out_step + p.first + column;
    bool there = column < p.columns;
    float total = y == 0 && there ? element(out, place) : 0;
    for (int64_t c = begin; c < end; c += JOIN_CHUNKS) {
        float sum = 0;
        if (c + y < end && there) {
            int64_t strips = (rows.chunk[c + y + 1] - rows.chunk[c + y] + STRIP - 1) / STRIP, slot = slot_of(rows, c + y, 0);
            for (int64_t fold = 0; fold < p.folds; fold++)
#pragma unroll 8
                for (int64_t s = 0; s < strips; s++)
                    sum += p.partial[((slot + s) * p.folds + fold) * p.columns + column];
        }
        of_chunk[y][x] = sum;
        __syncthreads();
        for (int64_t k = 0; y == 0 && k < JOIN_CHUNKS && c + k < end && there; k++)
            total += finish(place, of_chunk[k][x]);
        __syncthreads();
    }
    if (y == 0 && there)
        put_element(out, place, total);
}

struct as_it_is {
    __device__ float operator()(int64_t, float sum) const { return sum; }
};

/* Both, as many columns at a time as the device has room for. out [1, columns], or [1, replicas * columns]. */
template <class F, class G = as_it_is> static inline void sum_rows(tm_device *d, const char *op, const tm_rows *rows, bool by_replica, int64_t columns, int64_t folds, tm_tensor out, F term, G finish = G())
{
    tm_cuda *c = tm_cuda_of(d);
    int64_t room = (int64_t)TM_CUDA_PARTIALS * 2 / slots_of(rows) / folds / 8 * 8;
    if (rows->chunks <= 0)
        return;
    if (room < 8) {
        tm_cuda_note(c, TM_UNSUPPORTED, op, "too many rows at once");
        return;
    }
    for (tm_half_pass p = {0, 0, folds, (float *)c->partials}; p.first < columns; p.first += room) {
        p.columns = columns - p.first < room ? columns - p.first : room;
        dim3 grid((unsigned)rows->chunks, (unsigned)((p.columns * folds / 8 + STRIP_THREADS - 1) / STRIP_THREADS), TM_CHUNK_TOKENS / STRIP);
        tm_cuda_launch(c, op, strip_sums<F>, grid, STRIP_THREADS, 0, *rows, p, term);
        dim3 join((unsigned)((p.columns + JOIN_COLUMNS - 1) / JOIN_COLUMNS), by_replica ? (unsigned)rows->replicas : 1);
        tm_cuda_launch(c, op, join_strips<G>, join, JOIN_CHUNKS * JOIN_COLUMNS, 0, *rows, by_replica, p, out, columns, finish);
    }
}

#endif
