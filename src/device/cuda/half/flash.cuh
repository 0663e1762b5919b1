/* Attention in 16 bits on tensor cores: causal, inside spans, grouped heads, windows, soft caps; forward, and
 * backward in two kernels (dK and dV; dQ) without atomics, so that every sum has one order.
 *
 * Bits: a query meets the keys of its span in blocks of BN that start at multiples of BN in the span, in
 * ascending order; a key meets the query heads of its group in order and the queries in tiles of BM that start at
 * multiples of BM in the span. So a result depends on the span alone, never on its place among others.
 * Rows that belong to no query or key of the span never reach a product with what does: they are zeros in tiles.
 *
 * A block of threads is persistent: it takes items (a head and a tile of a span) in turn, from a list that a kernel
 * of its own makes of the layout, which only the device knows: longest first.
 *
 * Sources: FlashAttention-2 (2307.08691) for the tiling and the online softmax; docs/math/attention.md. */
#ifndef TM_DEVICE_CUDA_HALF_FLASH_CUH
#define TM_DEVICE_CUDA_HALF_FLASH_CUH

#include "device/cuda/half/mma.cuh"
#include "device/tensor.h"

#include <climits>
#include <cmath>

/* Addresses of 16-bit elements, bf16 or f16. */
struct flash_args {
    const bf16 *q, *k, *v;           /* [T, H D], [keys, K D], [keys, K D] */
    bf16 *out;                       /* [T, H D] */
    float *lse;                      /* |0 [T, H] natural logarithm of the sum of exp(score) */
    const bf16 *dout;                /* backward */
    const float *delta;              /* [T, H] row sums of dout * out */
    bf16 *dq, *dk, *dv;
    int64_t ld_q, ld_k, ld_v, ld_out, ld_dout, ld_dq, ld_dk, ld_dv, ld_lse, ld_delta;
    const struct flash_list *list;
    tm_spans spans;                  /* for the row sums */
    int heads, kv_heads, size;       /* size: columns of a head, a multiple of 8 up to the D of a kernel */
    float scale, softcap;
    int window;
};

/* --- Items --- */

/* A tile of a span and a head of it. In backward head is the first of the kv head's group. */
struct flash_item {
    int first;                           /* row inside the span; < 0: there are no more items */
    int head, kv, queries, keys, past;   /* past: keys before the first query */
    int row0, key0;                      /* rows of the span's first query and key */
};

/* The tiles of all spans, those with most work first. level: how many tiles of the span are before one (its queries
 * see so many blocks of keys), or behind it (so many see its keys). */
struct alignas(16) flash_tile {
    int level, queries, keys, row0, key0, unused[3];
};
struct alignas(16) flash_list {
    int count, unused[7];
    flash_tile tile[];
};

enum { FLASH_LIST_THREADS = 1024 };

/* Sum of x over this thread and those after it. sums: shared memory for 32. */
TM_DEVICE int sum_from_here(int x, int *sums)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_down_sync(~0u, x, step);
        x += lane + step < 32 ? other : 0;
    }
    if (lane == 0)
        sums[warp] = x;
    __syncthreads();
    for (int i = warp + 1; i < FLASH_LIST_THREADS / 32; i++)
        x += sums[i];
    __syncthreads();
    return x;
}

/* One block. Sorted by counting: a thread a level, the last stands for all above too. In which order the tiles of
 * a level come is up to chance; no result depends on it. */
template <int SIZE> __global__ void __launch_bounds__(FLASH_LIST_THREADS) flash_list_make(tm_spans spans, flash_list *list)
{
    constexpr int LEVELS = FLASH_LIST_THREADS;
    __shared__ int spans_of[LEVELS], next[LEVELS], sums[32], above;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = (int)spans.n;
    spans_of[threadIdx.x] = 0;
    if (threadIdx.x == 0)
        above = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += LEVELS) {
        int tiles = (spans.query[i + 1] - spans.query[i] + SIZE - 1) / SIZE;
        if (tiles)
            atomicAdd(&spans_of[min(tiles, LEVELS) - 1], 1);
        if (tiles > LEVELS)
            atomicAdd(&above, tiles - LEVELS);
    }
    __syncthreads();
    int count = sum_from_here(spans_of[threadIdx.x], sums) + (threadIdx.x == LEVELS - 1 ? above : 0), all = sum_from_here(count, sums);
    next[threadIdx.x] = all - count;
    if (threadIdx.x == 0)
        list->count = all;
    __syncthreads();
    for (int base = warp * 32; base < n; base += LEVELS) {
        int span = base + lane, row0 = span < n ? spans.query[span] : 0, queries = span < n ? spans.query[span + 1] - row0 : 0;
        int keys = span < n ? spans.keys[span] : 0, key0 = span < n ? spans.key[span] : 0;
        for (int i = 0; i < 32; i++) {
            flash_tile tile = {0, __shfl_sync(~0u, queries, i), __shfl_sync(~0u, keys, i), __shfl_sync(~0u, row0, i), __shfl_sync(~0u, key0, i)};
            for (tile.level = lane; tile.level < (tile.queries + SIZE - 1) / SIZE; tile.level += 32)
                list->tile[atomicAdd(&next[min(tile.level, LEVELS - 1)], 1)] = tile;
        }
    }
}

TM_DEVICE flash_item flash_item_of(const flash_list *list, int tile, int head, int kv)
{
    if (tile >= list->count)
        return {-1};
    flash_tile t = list->tile[tile];
    return {t.level, head, kv, t.queries, t.keys, t.keys - t.queries, t.row0, t.key0};
}

/* Item i of the tiles of SIZE queries of all heads. */
template <int SIZE> TM_DEVICE flash_item flash_query_item(const flash_args &w, int i)
{
    int head = i % w.heads;
    flash_item x = flash_item_of(w.list, i / w.heads, head, head / (w.heads / w.kv_heads));
    x.first *= x.first < 0 ? 1 : SIZE;
    return x;
}

/* Item i of the tiles of SIZE keys of all kv heads: training, keys are queries. */
template <int SIZE> TM_DEVICE flash_item flash_key_item(const flash_args &w, int i)
{
    int kv = i % w.kv_heads;
    flash_item x = flash_item_of(w.list, i / w.kv_heads, kv * (w.heads / w.kv_heads), kv);
    if (x.first >= 0)
        x.first = ((x.queries + SIZE - 1) / SIZE - 1 - x.first) * SIZE;
    return x;
}

/* The item of this block of threads in a round: to and fro, as items are sorted by their work, so that shares are even. */
TM_DEVICE int flash_turn(int round) { return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x); }

/* --- What a tile sees --- */

/* The columns that a row of a tile of scores has: a query's keys, or a key's queries. */
struct flash_band {
    int from, to;
    __device__ __forceinline__ bool has(int column) const { return column >= from && column < to; }
};

/* Keys are columns, the first is key `first`. */
TM_DEVICE flash_band flash_keys_of(const flash_args &w, int position, int first)
{
    int to = position + 1 - first;
    return {w.window ? to - w.window : INT_MIN, to};
}

/* Queries are columns, the first stands at position `first`. */
TM_DEVICE flash_band flash_queries_of(const flash_args &w, int key, int first)
{
    int from = key - first;
    return {from, w.window ? from + w.window : INT_MAX};
}

/* From first to end - 1: blocks of keys that a tile of queries sees, or tiles of queries that see a tile of keys. */
struct flash_range {
    int first, end;
};

template <int BM, int BN> TM_DEVICE flash_range flash_blocks(const flash_args &w, const flash_item &x)
{
    int position = x.past + x.first, last = x.past + min(x.first + BM, x.queries) - 1;
    return {w.window && position >= w.window ? (position - w.window + 1) / BN : 0, last / BN + 1};
}

template <int BM, int BN> TM_DEVICE flash_range flash_seers(const flash_args &w, const flash_item &x)
{
    int last = min(x.first + BN, x.keys) - 1, until = w.window ? min(x.queries, last + w.window - x.past) : x.queries;
    int first = max(0, x.first - x.past) / BM;
    return {first, max(first, (until + BM - 1) / BM)};
}

/* --- Numbers --- */

constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

/* 1 - 2 / (e^2x + 1): 2e-7 from tanh, where tanh.approx is 5e-4 from it, too much for scores of 50. */
TM_DEVICE float tanh_fast(float x)
{
    return fmaf(-2, reciprocal_fast(exp2_fast(x * (2 * LOG2E)) + 1), 1);
}

/* Largest or sum over the four lanes that share a row. */
TM_DEVICE float row_max4(float x)
{
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
TM_DEVICE float row_sum4(float x)
{
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

/* What P and dS are made of: p = exp(score - lse), factor = d(score)/d(q k). */
struct flash_score {
    float scale2, inner, softcap;
};
TM_DEVICE flash_score flash_score_of(const flash_args &w)
{
    bool cap = w.softcap > 0;
    return {cap ? w.softcap * LOG2E : w.scale * LOG2E, cap ? w.scale / w.softcap : 0, w.softcap};
}

/* s: q k on entry, p on return; dp: dout v on entry, d(loss)/d(q k) / scale on return. */
TM_DEVICE void flash_gradient(const flash_score &f, float &s, float &dp, float lse2, float delta, bool seen)
{
    float slope = 1;
    if (f.softcap > 0) {
        s = tanh_fast(s * f.inner);
        slope = fmaf(-s, s, 1.0f);
    }
    s = seen ? exp2_fast(fmaf(s, f.scale2, -lse2)) : 0;
    dp = s * (dp - delta) * slope;
}

/* --- Tiles --- */

/* ROWS rows of `size` elements to a tile of D columns; what is beyond rows and columns is zeros. */
template <int ROWS, int D, int THREADS> TM_DEVICE void flash_copy(bf16 *tile, const bf16 *global, int64_t ld, int rows, int size)
{
    constexpr int UNITS = D / 8;
    for (int i = threadIdx.x; i < ROWS * UNITS; i += THREADS) {
        int row = i / UNITS, unit = i % UNITS;
        bool in = row < rows && unit * 8 < size;
        copy_async(tile + row * (D + TILE_PAD) + unit * 8, in ? global + row * ld + unit * 8 : global, in);
    }
}

template <int M, int N> TM_DEVICE void clear(float (&c)[M][N][4])
{
#pragma unroll
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++)
            for (int i = 0; i < 4; i++)
                c[m][n][i] = 0;
}

/* c[16 MT x 8 NT] = rows of a [][D], from `row` on, times the transpose of b [8 NT][D]. */
template <class T, int D, int MT, int NT> TM_DEVICE void tile_product(float (&c)[MT][NT][4], const bf16 *a, int row, const bf16 *b)
{
    constexpr int LD = D + TILE_PAD;
    clear(c);
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t left[MT][4], right[4];
        for (int m = 0; m < MT; m++)
            load_a<LD>(left[m], a, row + m * 16, k);
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            load_b<LD>(right, b, n * 8, k);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma<T>(c[m][n], left[m], right[0], right[1]);
                mma<T>(c[m][n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

/* c[16 MT x D] += p[16 MT x 8 NT] b [8 NT][D]. */
template <class T, int MT, int NT, int DT> TM_DEVICE void tile_sum(float (&c)[MT][DT][4], const float (&p)[MT][NT][4], const bf16 *b)
{
    constexpr int LD = DT * 8 + TILE_PAD;
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
        uint32_t left[MT][4], right[4];
        for (int m = 0; m < MT; m++)
            pack_a<T>(left[m], p[m][n], p[m][n + 1]);
#pragma unroll
        for (int d = 0; d < DT; d += 2) {
            load_b_transposed<LD>(right, b, n * 8, d * 8);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma<T>(c[m][d], left[m], right[0], right[1]);
                mma<T>(c[m][d + 1], left[m], right[2], right[3]);
            }
        }
    }
}

/* A row of a result, lanes 4 i to 4 i + 3 of a warp: elements 2 half and 2 half + 1 of every group of four. */
template <class T, int DT> TM_DEVICE void flash_store(bf16 *row, const float (&c)[DT][4], int half, float factor, int size)
{
    bf16 *to = row + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < DT; n++)
        if (n * 8 < size)
            *(uint32_t *)(to + n * 8) = pack<T>(c[n][2 * half] * factor, c[n][2 * half + 1] * factor);
}

/* --- Forward --- */

/* Powers of two that a weight may exceed 1 by: a larger score is taken over as the row's reference only beyond. */
constexpr float SOFTMAX_SLACK = 8;

/* What a thread holds of the softmax of a row: the largest score (before scale2) and the sum of its columns. */
struct flash_softmax {
    float most, sum;
};

/* Of a row of which nothing was seen. Set by hand: of a matrix of structs with values of their own nvcc 13.0 sets the first
 * row alone (docs/decisions.md). */
TM_DEVICE flash_softmax flash_softmax_of_none() { return {-INFINITY, 0}; }

/* Elements 2 half and 2 half + 1 of every group of four of s become exp(score - largest); returns the factor on what was summed before. */
template <int NT> TM_DEVICE float flash_softmax_step(flash_softmax &row, float (&s)[NT][4], int half, float scale2)
{
    float top = row.most, part = 0;
#pragma unroll
    for (int n = 0; n < NT; n++)
        top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    top = row_max4(top);
    top = (top - row.most) * scale2 <= SOFTMAX_SLACK ? row.most : top; /* what was summed need not shrink */
    float base = top == -INFINITY ? 0 : top * scale2, shrink = exp2_fast(fmaf(row.most, scale2, -base));
#pragma unroll
    for (int n = 0; n < NT; n++)
        for (int i = 2 * half; i < 2 * half + 2; i++) {
            s[n][i] = exp2_fast(fmaf(s[n][i], scale2, -base));
            part += s[n][i];
        }
    row.sum = fmaf(row.sum, shrink, part);
    row.most = top;
    return shrink;
}

template <class T, int D, int BM, int BN, int WARPS>
__global__ void __launch_bounds__(WARPS * 32) flash_forward(const __grid_constant__ flash_args w)
{
    constexpr int MT = BM / WARPS / 16, NT = BN / 8, DT = D / 8, LD = D + TILE_PAD, THREADS = WARPS * 32;
    TM_SHARED(bf16, shared, 1024);
    bf16 *tile_q = shared, *tile_k = tile_q + BM * LD, *tile_v = tile_k + 2 * BN * LD;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    flash_score score = flash_score_of(w);
    for (int round = 0;; round++) {
        flash_item x = flash_query_item<BM>(w, flash_turn(round));
        if (x.first < 0)
            return;
        int64_t row0 = x.row0 + x.first;
        int rows = min(BM, x.queries - x.first), position0 = x.past + x.first, last = position0 + rows - 1;
        flash_range blocks = flash_blocks<BM, BN>(w, x);
        const bf16 *k = w.k + x.key0 * w.ld_k + x.kv * w.size, *v = w.v + x.key0 * w.ld_v + x.kv * w.size;
        auto fetch = [&](int b, int stage) {
            flash_copy<BN, D, THREADS>(tile_k + stage * BN * LD, k + (int64_t)b * BN * w.ld_k, w.ld_k, x.keys - b * BN, w.size);
            flash_copy<BN, D, THREADS>(tile_v + stage * BN * LD, v + (int64_t)b * BN * w.ld_v, w.ld_v, x.keys - b * BN, w.size);
            copy_commit();
        };
        __syncthreads();
        flash_copy<BM, D, THREADS>(tile_q, w.q + row0 * w.ld_q + x.head * w.size, w.ld_q, rows, w.size);
        fetch(blocks.first, 0);
        float out[MT][DT][4];
        flash_softmax soft[MT][2];
        for (int m = 0; m < MT; m++)
            soft[m][0] = soft[m][1] = flash_softmax_of_none();
        clear(out);
        for (int block = blocks.first, stage = 0; block < blocks.end; block++, stage ^= 1) {
            copy_wait<0>();
            __syncthreads();
            if (block + 1 < blocks.end)
                fetch(block + 1, stage ^ 1);
            float s[MT][NT][4];
            tile_product<T, D>(s, tile_q, warp * MT * 16, tile_k + stage * BN * LD);
            bool masked = block * BN + BN - 1 > position0 || (w.window && block * BN <= last - w.window);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                if (w.softcap > 0)
                    for (int n = 0; n < NT; n++)
                        for (int i = 0; i < 4; i++)
                            s[m][n][i] = tanh_fast(s[m][n][i] * score.inner);
                if (masked)
                    for (int half = 0; half < 2; half++) {
                        flash_band band = flash_keys_of(w, position0 + (warp * MT + m) * 16 + lane / 4 + half * 8, block * BN + lane % 4 * 2);
                        for (int n = 0; n < NT; n++)
                            for (int i = 0; i < 2; i++)
                                s[m][n][2 * half + i] = band.has(n * 8 + i) ? s[m][n][2 * half + i] : -INFINITY;
                    }
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float shrink = flash_softmax_step(soft[m][half], s[m], half, score.scale2);
                    for (int n = 0; n < DT; n++) {
                        out[m][n][2 * half] *= shrink;
                        out[m][n][2 * half + 1] *= shrink;
                    }
                }
            }
            tile_sum<T>(out, s, tile_v + stage * BN * LD);
        }
#pragma unroll
        for (int m = 0; m < MT; m++)
            for (int half = 0; half < 2; half++) {
                float total = row_sum4(soft[m][half].sum);
                int row = (warp * MT + m) * 16 + lane / 4 + half * 8;
                if (row >= rows)
                    continue;
                flash_store<T>(w.out + (row0 + row) * w.ld_out + x.head * w.size, out[m], half, 1 / total, w.size);
                if (w.lse && lane % 4 == 0)
                    w.lse[(row0 + row) * w.ld_lse + x.head] = (soft[m][half].most * score.scale2 + log2f(total)) * LN2;
            }
    }
}

/* --- Backward --- */

/* delta = sum over a head of dout * out: a warp a row, LANES lanes a head, eight columns each. */
template <class T, int LANES> __global__ void __launch_bounds__(256) flash_delta(const __grid_constant__ flash_args w, float *delta)
{
    constexpr int HEADS = 32 / LANES, AHEAD = 4;
    int rows = w.spans.query[w.spans.n], lane = threadIdx.x % 32, unit = lane % LANES * 8;
    for (int row = blockIdx.x * 8 + threadIdx.x / 32; row < rows; row += gridDim.x * 8) {
        const bf16 *dout = w.dout + row * w.ld_dout + unit, *out = w.out + row * w.ld_out + unit;
        for (int base = lane / LANES; base - lane / LANES < w.heads; base += HEADS * AHEAD) {
            int4 a[AHEAD], b[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                int head = base + i * HEADS;
                bool in = head < w.heads && unit < w.size;
                a[i] = in ? *(const int4 *)(dout + head * w.size) : make_int4(0, 0, 0, 0);
                b[i] = in ? *(const int4 *)(out + head * w.size) : make_int4(0, 0, 0, 0);
            }
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const T *p = (const T *)&a[i], *o = (const T *)&b[i];
                float sum = 0;
                for (int j = 0; j < 8; j++)
                    sum = fmaf((float)p[j], (float)o[j], sum);
                for (int d = LANES / 2; d; d /= 2)
                    sum += __shfl_xor_sync(~0u, sum, d);
                if (unit == 0 && base + i * HEADS < w.heads)
                    delta[row * w.ld_delta + base + i * HEADS] = sum;
            }
        }
    }
}

/* dK and dV of tiles of BN keys: over the query heads of the group, over tiles of BM queries. With PARTS 1 and 2
 * dK alone and dV alone, where there are not registers enough for both. */
template <class T, int D, int BM, int BN, int WARPS, int PARTS>
__global__ void __launch_bounds__(WARPS * 32) flash_backward_kv(const __grid_constant__ flash_args w)
{
    constexpr int MT = BN / WARPS / 16, NT = BM / 8, DT = D / 8, LD = D + TILE_PAD, THREADS = WARPS * 32;
    TM_SHARED(bf16, shared, 1024);
    bf16 *tile_k = shared, *tile_v = tile_k + BN * LD, *tile_q = tile_v + BN * LD, *tile_do = tile_q + 2 * BM * LD;
    float *row_lse = (float *)(tile_do + 2 * BM * LD), *row_delta = row_lse + 2 * BM;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    flash_score score = flash_score_of(w);
    for (int round = 0;; round++) {
        flash_item x = flash_key_item<BN>(w, flash_turn(round));
        if (x.first < 0)
            return;
        int64_t key0 = x.key0 + x.first;
        int count = min(BN, x.keys - x.first);
        flash_range seers = flash_seers<BM, BN>(w, x);
        int tiles = seers.end - seers.first, steps = tiles * (w.heads / w.kv_heads);
        auto fetch = [&](int step, int stage) {
            int head = x.head + step / tiles, first = (seers.first + step % tiles) * BM;
            int64_t row = x.row0 + first;
            flash_copy<BM, D, THREADS>(tile_q + stage * BM * LD, w.q + row * w.ld_q + head * w.size, w.ld_q, x.queries - first, w.size);
            flash_copy<BM, D, THREADS>(tile_do + stage * BM * LD, w.dout + row * w.ld_dout + head * w.size, w.ld_dout, x.queries - first, w.size);
            copy_commit();
            for (int i = threadIdx.x; i < BM; i += THREADS) {
                bool in = first + i < x.queries;
                row_lse[stage * BM + i] = in ? w.lse[(row + i) * w.ld_lse + head] * LOG2E : INFINITY;
                row_delta[stage * BM + i] = in ? w.delta[(row + i) * w.ld_delta + head] : 0;
            }
        };
        __syncthreads();
        flash_copy<BN, D, THREADS>(tile_k, w.k + key0 * w.ld_k + x.kv * w.size, w.ld_k, count, w.size);
        flash_copy<BN, D, THREADS>(tile_v, w.v + key0 * w.ld_v + x.kv * w.size, w.ld_v, count, w.size);
        fetch(0, 0);
        float dk[MT][DT][4], dv[MT][DT][4];
        clear(dk);
        clear(dv);
        for (int step = 0, stage = 0; step < steps; step++, stage ^= 1) {
            copy_wait<0>();
            __syncthreads();
            if (step + 1 < steps)
                fetch(step + 1, stage ^ 1);
            const bf16 *qt = tile_q + stage * BM * LD, *dot = tile_do + stage * BM * LD;
            const float *lse2 = row_lse + stage * BM, *delta = row_delta + stage * BM;
            int position0 = x.past + (seers.first + step % tiles) * BM;
            bool masked = x.first + count - 1 > position0 || (w.window && x.first <= position0 + BM - 1 - w.window);
            float s[MT][NT][4], dp[MT][NT][4];
            tile_product<T, D>(s, tile_k, warp * MT * 16, qt);
            if (PARTS & 1)
                tile_product<T, D>(dp, tile_v, warp * MT * 16, dot);
            else
                clear(dp);
#pragma unroll
            for (int n = 0; n < NT; n++) {
                int column = n * 8 + lane % 4 * 2;
                float2 l = *(const float2 *)(lse2 + column), e = *(const float2 *)(delta + column);
#pragma unroll
                for (int m = 0; m < MT; m++)
                    for (int i = 0; i < 4; i++) {
                        int key = x.first + (warp * MT + m) * 16 + lane / 4 + i / 2 * 8;
                        bool seen = !masked || flash_queries_of(w, key, position0 + lane % 4 * 2).has(n * 8 + i % 2);
                        flash_gradient(score, s[m][n][i], dp[m][n][i], i % 2 ? l.y : l.x, i % 2 ? e.y : e.x, seen);
                    }
            }
            if (PARTS & 2)
                tile_sum<T>(dv, s, dot);
            if (PARTS & 1)
                tile_sum<T>(dk, dp, qt);
        }
#pragma unroll
        for (int m = 0; m < MT; m++)
            for (int half = 0; half < 2; half++) {
                int row = (warp * MT + m) * 16 + lane / 4 + half * 8;
                if (row >= count)
                    continue;
                if (PARTS & 1)
                    flash_store<T>(w.dk + (key0 + row) * w.ld_dk + x.kv * w.size, dk[m], half, w.scale, w.size);
                if (PARTS & 2)
                    flash_store<T>(w.dv + (key0 + row) * w.ld_dv + x.kv * w.size, dv[m], half, 1, w.size);
            }
    }
}

/* dQ of tiles of BM queries, over the blocks of keys they see. */
template <class T, int D, int BM, int BN, int WARPS>
__global__ void __launch_bounds__(WARPS * 32) flash_backward_q(const __grid_constant__ flash_args w)
{
    constexpr int MT = BM / WARPS / 16, NT = BN / 8, DT = D / 8, LD = D + TILE_PAD, THREADS = WARPS * 32;
    TM_SHARED(bf16, shared, 1024);
    bf16 *tile_q = shared, *tile_do = tile_q + BM * LD, *tile_k = tile_do + BM * LD, *tile_v = tile_k + 2 * BN * LD;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    flash_score score = flash_score_of(w);
    for (int round = 0;; round++) {
        flash_item x = flash_query_item<BM>(w, flash_turn(round));
        if (x.first < 0)
            return;
        int64_t row0 = x.row0 + x.first;
        int rows = min(BM, x.queries - x.first), position0 = x.past + x.first, last = position0 + rows - 1;
        flash_range blocks = flash_blocks<BM, BN>(w, x);
        const bf16 *k = w.k + x.key0 * w.ld_k + x.kv * w.size, *v = w.v + x.key0 * w.ld_v + x.kv * w.size;
        auto fetch = [&](int b, int stage) {
            flash_copy<BN, D, THREADS>(tile_k + stage * BN * LD, k + (int64_t)b * BN * w.ld_k, w.ld_k, x.keys - b * BN, w.size);
            flash_copy<BN, D, THREADS>(tile_v + stage * BN * LD, v + (int64_t)b * BN * w.ld_v, w.ld_v, x.keys - b * BN, w.size);
            copy_commit();
        };
        __syncthreads();
        flash_copy<BM, D, THREADS>(tile_q, w.q + row0 * w.ld_q + x.head * w.size, w.ld_q, rows, w.size);
        flash_copy<BM, D, THREADS>(tile_do, w.dout + row0 * w.ld_dout + x.head * w.size, w.ld_dout, rows, w.size);
        fetch(blocks.first, 0);
        float dq[MT][DT][4], lse2[MT][2], delta[MT][2];
#pragma unroll
        for (int m = 0; m < MT; m++)
            for (int half = 0; half < 2; half++) {
                int row = (warp * MT + m) * 16 + lane / 4 + half * 8;
                lse2[m][half] = row < rows ? w.lse[(row0 + row) * w.ld_lse + x.head] * LOG2E : INFINITY;
                delta[m][half] = row < rows ? w.delta[(row0 + row) * w.ld_delta + x.head] : 0;
            }
        clear(dq);
        for (int block = blocks.first, stage = 0; block < blocks.end; block++, stage ^= 1) {
            copy_wait<0>();
            __syncthreads();
            if (block + 1 < blocks.end)
                fetch(block + 1, stage ^ 1);
            const bf16 *kt = tile_k + stage * BN * LD, *vt = tile_v + stage * BN * LD;
            float s[MT][NT][4], dp[MT][NT][4];
            tile_product<T, D>(s, tile_q, warp * MT * 16, kt);
            tile_product<T, D>(dp, tile_do, warp * MT * 16, vt);
            bool masked = block * BN + BN - 1 > position0 || (w.window && block * BN <= last - w.window);
#pragma unroll
            for (int m = 0; m < MT; m++)
                for (int n = 0; n < NT; n++)
                    for (int i = 0; i < 4; i++) {
                        int position = position0 + (warp * MT + m) * 16 + lane / 4 + i / 2 * 8;
                        bool seen = !masked || flash_keys_of(w, position, block * BN + lane % 4 * 2).has(n * 8 + i % 2);
                        flash_gradient(score, s[m][n][i], dp[m][n][i], lse2[m][i / 2], delta[m][i / 2], seen);
                    }
            tile_sum<T>(dq, dp, kt);
        }
#pragma unroll
        for (int m = 0; m < MT; m++)
            for (int half = 0; half < 2; half++) {
                int row = (warp * MT + m) * 16 + lane / 4 + half * 8;
                if (row < rows)
                    flash_store<T>(w.dq + (row0 + row) * w.ld_dq + x.head * w.size, dq[m], half, w.scale, w.size);
            }
    }
}

#endif
