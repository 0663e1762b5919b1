/* Attention in bf16 on tensor cores: causal, inside spans, grouped heads, windows, soft caps; forward, and
 * backward in two kernels (dK and dV; dQ) without atomics, so that every sum has one order.
 *
 * Bits: a query meets the keys of its span in blocks of BN that start at multiples of BN in the span, in
 * ascending order; a key meets the query heads of its group in order and the queries in tiles of BM that start at
 * multiples of BM in the span. So a result depends on the span alone, never on its place among others.
 *
 * Sources: FlashAttention-2 (2307.08691) for the tiling and the online softmax; docs/math/attention.md. */
#ifndef TM_LAB_FLASH_CUH
#define TM_LAB_FLASH_CUH

#include "device/cuda/half/mma.cuh"
#include "device/tensor.h"

struct flash_args {
    const bf16 *q, *k, *v;           /* [T, H D], [keys, K D], [keys, K D] */
    bf16 *out;                       /* [T, H D] */
    float *lse;                      /* [T, H] natural logarithm of the sum of exp(score) */
    const bf16 *dout;                /* backward */
    const float *delta;              /* [T, H] row sums of dout * out */
    bf16 *dq, *dk, *dv;
    int64_t ld_q, ld_k, ld_v, ld_out, ld_dout, ld_dq, ld_dk, ld_dv, ld_lse, ld_delta;
    tm_spans spans;
    int heads, kv_heads;
    float scale, softcap;
    int window;
};

/* A tile of a span: which span, and which rows of it. */
struct flash_tile {
    int span, first; /* first row inside the span; span < 0: none */
};

/* Tile number `index` of all spans, counted from the end: late tiles of a span have the most keys. lengths: bounds
 * (query) or counts (keys) of the spans. Every warp finds it on its own. */
template <int SIZE, class Length> TM_DEVICE flash_tile flash_find(int n, int index, Length length)
{
    int lane = threadIdx.x % 32, before = 0;
    for (int base = n; base > 0; base -= 32) {
        int span = base - 1 - lane, tiles = span >= 0 ? (length(span) + SIZE - 1) / SIZE : 0, sum = tiles;
        for (int step = 1; step < 32; step *= 2) {
            int other = __shfl_up_sync(~0u, sum, step);
            sum += lane >= step ? other : 0;
        }
        unsigned found = __ballot_sync(~0u, before + sum > index);
        if (found) {
            int at = __ffs(found) - 1;
            int tiles_at = __shfl_sync(~0u, tiles, at), sum_at = before + __shfl_sync(~0u, sum, at);
            return {base - 1 - at, (tiles_at - 1 - (index - (sum_at - tiles_at))) * SIZE};
        }
        before += __shfl_sync(~0u, sum, 31);
    }
    return {-1, 0};
}

constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

TM_DEVICE float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

TM_DEVICE float tanh_fast(float x)
{
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
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

TM_DEVICE bool flash_sees(const flash_args &w, int position, int key)
{
    return key <= position && (w.window == 0 || key > position - w.window);
}

/* --- Forward --- */

template <int D, int BM, int BN, int WARPS>
__global__ void __launch_bounds__(WARPS * 32) flash_forward(const __grid_constant__ flash_args w)
{
    constexpr int MT = BM / WARPS / 16, NT = BN / 8, DT = D / 8, LD = D + TILE_PAD, THREADS = WARPS * 32;
    extern __shared__ __align__(1024) bf16 shared[];
    bf16 *tile_q = shared, *tile_k = tile_q + BM * LD, *tile_v = tile_k + 2 * BN * LD;
    const int32_t *bound = w.spans.query;
    flash_tile tile = flash_find<BM>((int)w.spans.n, blockIdx.y, [&](int s) { return bound[s + 1] - bound[s]; });
    if (tile.span < 0)
        return;
    int head = blockIdx.x, kv = head / (w.heads / w.kv_heads), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int queries = bound[tile.span + 1] - bound[tile.span], keys = w.spans.keys[tile.span];
    int64_t row0 = bound[tile.span] + tile.first, key0 = w.spans.key[tile.span];
    int past = keys - queries, rows = min(BM, queries - tile.first);
    int position0 = past + tile.first, last = position0 + rows - 1;
    int block = w.window && position0 >= w.window ? (position0 - w.window + 1) / BN : 0, end = last / BN + 1;
    const bf16 *k = w.k + key0 * w.ld_k + kv * D, *v = w.v + key0 * w.ld_v + kv * D;

    copy_tile<BM, D, THREADS>(tile_q, w.q + row0 * w.ld_q + head * D, w.ld_q, rows);
    auto fetch = [&](int b, int stage) {
        copy_tile<BN, D, THREADS>(tile_k + stage * BN * LD, k + (int64_t)b * BN * w.ld_k, w.ld_k, keys - b * BN);
        copy_tile<BN, D, THREADS>(tile_v + stage * BN * LD, v + (int64_t)b * BN * w.ld_v, w.ld_v, keys - b * BN);
        copy_commit();
    };
    fetch(block, 0);

    float out[MT][DT][4], most[MT][2], sum[MT][2];
    for (int m = 0; m < MT; m++)
        for (int i = 0; i < 2; i++) {
            most[m][i] = -INFINITY;
            sum[m][i] = 0;
        }
    for (int m = 0; m < MT; m++)
        for (int n = 0; n < DT; n++)
            for (int i = 0; i < 4; i++)
                out[m][n][i] = 0;
    float scale2 = w.softcap > 0 ? w.softcap * LOG2E : w.scale * LOG2E, inner = w.softcap > 0 ? w.scale / w.softcap : 0;

    for (int stage = 0; block < end; block++, stage ^= 1) {
        copy_wait<0>();
        __syncthreads();
        if (block + 1 < end)
            fetch(block + 1, stage ^ 1);
        const bf16 *kt = tile_k + stage * BN * LD, *vt = tile_v + stage * BN * LD;
        float s[MT][NT][4];
        for (int m = 0; m < MT; m++)
            for (int n = 0; n < NT; n++)
                for (int i = 0; i < 4; i++)
                    s[m][n][i] = 0;
#pragma unroll
        for (int c = 0; c < D; c += 16) {
            uint32_t a[MT][4], b[4];
            for (int m = 0; m < MT; m++)
                load_a<LD>(a[m], tile_q, (warp * MT + m) * 16, c);
#pragma unroll
            for (int n = 0; n < NT; n += 2) {
                load_b<LD>(b, kt, n * 8, c);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma(s[m][n], a[m], b[0], b[1]);
                    mma(s[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
        if (w.softcap > 0)
            for (int m = 0; m < MT; m++)
                for (int n = 0; n < NT; n++)
                    for (int i = 0; i < 4; i++)
                        s[m][n][i] = tanh_fast(s[m][n][i] * inner);
        bool masked = block * BN + BN - 1 > position0 || (w.window && block * BN <= last - w.window);
#pragma unroll
        for (int m = 0; m < MT; m++) {
            int position = position0 + (warp * MT + m) * 16 + lane / 4;
            if (masked)
                for (int n = 0; n < NT; n++)
                    for (int i = 0; i < 4; i++)
                        if (!flash_sees(w, position + i / 2 * 8, block * BN + n * 8 + lane % 4 * 2 + i % 2))
                            s[m][n][i] = -INFINITY;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float top = most[m][half];
                for (int n = 0; n < NT; n++)
                    top = fmaxf(top, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                top = row_max4(top);
                float base = top == -INFINITY ? 0 : top * scale2, shrink = exp2_fast(most[m][half] * scale2 - base);
                float part = 0;
                for (int n = 0; n < NT; n++)
                    for (int i = 2 * half; i < 2 * half + 2; i++) {
                        s[m][n][i] = exp2_fast(fmaf(s[m][n][i], scale2, -base));
                        part += s[m][n][i];
                    }
                sum[m][half] = fmaf(sum[m][half], shrink, part);
                most[m][half] = top;
                for (int n = 0; n < DT; n++) {
                    out[m][n][2 * half] *= shrink;
                    out[m][n][2 * half + 1] *= shrink;
                }
            }
        }
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            uint32_t a[MT][4], b[4];
            for (int m = 0; m < MT; m++)
                pack_a(a[m], s[m][n], s[m][n + 1]);
#pragma unroll
            for (int c = 0; c < DT; c += 2) {
                load_b_transposed<LD>(b, vt, n * 8, c * 8);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma(out[m][c], a[m], b[0], b[1]);
                    mma(out[m][c + 1], a[m], b[2], b[3]);
                }
            }
        }
    }
    for (int m = 0; m < MT; m++)
        for (int half = 0; half < 2; half++) {
            float total = row_sum4(sum[m][half]), inverse = 1 / total;
            int row = (warp * MT + m) * 16 + lane / 4 + half * 8;
            if (row >= rows)
                continue;
            bf16 *to = w.out + (row0 + row) * w.ld_out + head * D + lane % 4 * 2;
            for (int n = 0; n < DT; n++)
                *(uint32_t *)(to + n * 8) = pack(out[m][n][2 * half] * inverse, out[m][n][2 * half + 1] * inverse);
            if (lane % 4 == 0)
                w.lse[(row0 + row) * w.ld_lse + head] = (most[m][half] * scale2 + log2f(total)) * LN2;
        }
}

/* --- Backward --- */

/* delta = sum over a head of dout * out: a warp a row and head. */
template <int D> __global__ void flash_delta(const __grid_constant__ flash_args w, float *delta)
{
    int64_t item = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, rows = w.spans.query[w.spans.n];
    int lane = threadIdx.x % 32, head = (int)(item % w.heads);
    int64_t row = item / w.heads;
    if (row >= rows)
        return;
    const __nv_bfloat162 *a = (const __nv_bfloat162 *)(w.dout + row * w.ld_dout + head * D);
    const __nv_bfloat162 *b = (const __nv_bfloat162 *)(w.out + row * w.ld_out + head * D);
    float sum = 0;
    for (int i = lane; i < D / 2; i += 32) {
        float2 x = __bfloat1622float2(a[i]), y = __bfloat1622float2(b[i]);
        sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
    }
    for (int step = 16; step; step /= 2)
        sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0)
        delta[row * w.ld_delta + head] = sum;
}

/* What P and dS are made of: p = exp(score - lse), factor = d(score)/d(q k). */
struct flash_score {
    float scale2, inner, scale, softcap;
};
TM_DEVICE flash_score flash_score_of(const flash_args &w)
{
    bool cap = w.softcap > 0;
    return {cap ? w.softcap * LOG2E : w.scale * LOG2E, cap ? w.scale / w.softcap : 0, w.scale, w.softcap};
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

/* dK and dV of a tile of BN keys: over the query heads of the group, over tiles of BM queries. */
template <int D, int BM, int BN, int WARPS>
__global__ void __launch_bounds__(WARPS * 32) flash_backward_kv(const __grid_constant__ flash_args w)
{
    constexpr int MT = BN / WARPS / 16, NT = BM / 8, DT = D / 8, LD = D + TILE_PAD, THREADS = WARPS * 32;
    extern __shared__ __align__(1024) bf16 shared[];
    bf16 *tile_k = shared, *tile_v = tile_k + BN * LD, *tile_q = tile_v + BN * LD, *tile_do = tile_q + 2 * BM * LD;
    float *row_lse = (float *)(tile_do + 2 * BM * LD), *row_delta = row_lse + 2 * BM;
    flash_tile tile = flash_find<BN>((int)w.spans.n, blockIdx.y, [&](int s) { return w.spans.keys[s]; });
    if (tile.span < 0)
        return;
    int group = w.heads / w.kv_heads, kv = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int queries = w.spans.query[tile.span + 1] - w.spans.query[tile.span], keys = w.spans.keys[tile.span];
    int64_t row0 = w.spans.query[tile.span], key0 = w.spans.key[tile.span] + tile.first;
    int past = keys - queries, count = min(BN, keys - tile.first);
    /* queries that see a key of the tile */
    int from = max(0, tile.first - past) / BM, until = w.window ? min(queries, tile.first + count - 1 + w.window - past) : queries;
    int tiles = max(0, (until + BM - 1) / BM - from), steps = tiles * group;

    copy_tile<BN, D, THREADS>(tile_k, w.k + key0 * w.ld_k + kv * D, w.ld_k, count);
    copy_tile<BN, D, THREADS>(tile_v, w.v + key0 * w.ld_v + kv * D, w.ld_v, count);
    auto fetch = [&](int step, int stage) {
        int head = kv * group + step / tiles, first = (from + step % tiles) * BM;
        int64_t row = row0 + first;
        copy_tile<BM, D, THREADS>(tile_q + stage * BM * LD, w.q + row * w.ld_q + head * D, w.ld_q, queries - first);
        copy_tile<BM, D, THREADS>(tile_do + stage * BM * LD, w.dout + row * w.ld_dout + head * D, w.ld_dout, queries - first);
        copy_commit();
        for (int i = threadIdx.x; i < BM; i += THREADS) {
            bool in = first + i < queries;
            row_lse[stage * BM + i] = in ? w.lse[(row + i) * w.ld_lse + head] * LOG2E : INFINITY;
            row_delta[stage * BM + i] = in ? w.delta[(row + i) * w.ld_delta + head] : 0;
        }
    };
    if (steps)
        fetch(0, 0);
    flash_score score = flash_score_of(w);
    float dk[MT][DT][4], dv[MT][DT][4];
    for (int m = 0; m < MT; m++)
        for (int n = 0; n < DT; n++)
            for (int i = 0; i < 4; i++)
                dk[m][n][i] = dv[m][n][i] = 0;

    for (int step = 0, stage = 0; step < steps; step++, stage ^= 1) {
        copy_wait<0>();
        __syncthreads();
        if (step + 1 < steps)
            fetch(step + 1, stage ^ 1);
        const bf16 *qt = tile_q + stage * BM * LD, *dot = tile_do + stage * BM * LD;
        const float *lse2 = row_lse + stage * BM, *delta = row_delta + stage * BM;
        int position0 = past + (from + step % tiles) * BM;
        bool masked = tile.first + count - 1 > position0 || (w.window && tile.first <= position0 + BM - 1 - w.window);
        float s[MT][NT][4], dp[MT][NT][4];
        for (int m = 0; m < MT; m++)
            for (int n = 0; n < NT; n++)
                for (int i = 0; i < 4; i++)
                    s[m][n][i] = dp[m][n][i] = 0;
#pragma unroll
        for (int c = 0; c < D; c += 16) {
            uint32_t a[MT][4], b[4];
            for (int m = 0; m < MT; m++)
                load_a<LD>(a[m], tile_k, (warp * MT + m) * 16, c);
#pragma unroll
            for (int n = 0; n < NT; n += 2) {
                load_b<LD>(b, qt, n * 8, c);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma(s[m][n], a[m], b[0], b[1]);
                    mma(s[m][n + 1], a[m], b[2], b[3]);
                }
            }
            for (int m = 0; m < MT; m++)
                load_a<LD>(a[m], tile_v, (warp * MT + m) * 16, c);
#pragma unroll
            for (int n = 0; n < NT; n += 2) {
                load_b<LD>(b, dot, n * 8, c);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma(dp[m][n], a[m], b[0], b[1]);
                    mma(dp[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
#pragma unroll
        for (int n = 0; n < NT; n++) {
            int column = n * 8 + lane % 4 * 2;
            float2 l = *(const float2 *)(lse2 + column), e = *(const float2 *)(delta + column);
#pragma unroll
            for (int m = 0; m < MT; m++)
                for (int i = 0; i < 4; i++) {
                    int key = tile.first + (warp * MT + m) * 16 + lane / 4 + i / 2 * 8;
                    bool seen = !masked || flash_sees(w, position0 + column + i % 2, key);
                    flash_gradient(score, s[m][n][i], dp[m][n][i], i % 2 ? l.y : l.x, i % 2 ? e.y : e.x, seen);
                }
        }
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            uint32_t p[MT][4], ds[MT][4], b[4];
            for (int m = 0; m < MT; m++) {
                pack_a(p[m], s[m][n], s[m][n + 1]);
                pack_a(ds[m], dp[m][n], dp[m][n + 1]);
            }
#pragma unroll
            for (int c = 0; c < DT; c += 2) {
                load_b_transposed<LD>(b, dot, n * 8, c * 8);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma(dv[m][c], p[m], b[0], b[1]);
                    mma(dv[m][c + 1], p[m], b[2], b[3]);
                }
                load_b_transposed<LD>(b, qt, n * 8, c * 8);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma(dk[m][c], ds[m], b[0], b[1]);
                    mma(dk[m][c + 1], ds[m], b[2], b[3]);
                }
            }
        }
    }
    for (int m = 0; m < MT; m++)
        for (int half = 0; half < 2; half++) {
            int row = (warp * MT + m) * 16 + lane / 4 + half * 8;
            if (row >= count)
                continue;
            bf16 *to_k = w.dk + (key0 + row) * w.ld_dk + kv * D + lane % 4 * 2, *to_v = w.dv + (key0 + row) * w.ld_dv + kv * D + lane % 4 * 2;
            for (int n = 0; n < DT; n++) {
                *(uint32_t *)(to_k + n * 8) = pack(dk[m][n][2 * half] * w.scale, dk[m][n][2 * half + 1] * w.scale);
                *(uint32_t *)(to_v + n * 8) = pack(dv[m][n][2 * half], dv[m][n][2 * half + 1]);
            }
        }
}

/* dQ of a tile of BM queries, over the blocks of keys they see. */
template <int D, int BM, int BN, int WARPS>
__global__ void __launch_bounds__(WARPS * 32) flash_backward_q(const __grid_constant__ flash_args w)
{
    constexpr int MT = BM / WARPS / 16, NT = BN / 8, DT = D / 8, LD = D + TILE_PAD, THREADS = WARPS * 32;
    extern __shared__ __align__(1024) bf16 shared[];
    bf16 *tile_q = shared, *tile_do = tile_q + BM * LD, *tile_k = tile_do + BM * LD, *tile_v = tile_k + 2 * BN * LD;
    const int32_t *bound = w.spans.query;
    flash_tile tile = flash_find<BM>((int)w.spans.n, blockIdx.y, [&](int s) { return bound[s + 1] - bound[s]; });
    if (tile.span < 0)
        return;
    int head = blockIdx.x, kv = head / (w.heads / w.kv_heads), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int queries = bound[tile.span + 1] - bound[tile.span], keys = w.spans.keys[tile.span];
    int64_t row0 = bound[tile.span] + tile.first, key0 = w.spans.key[tile.span];
    int past = keys - queries, rows = min(BM, queries - tile.first);
    int position0 = past + tile.first, last = position0 + rows - 1;
    int block = w.window && position0 >= w.window ? (position0 - w.window + 1) / BN : 0, end = last / BN + 1;
    const bf16 *k = w.k + key0 * w.ld_k + kv * D, *v = w.v + key0 * w.ld_v + kv * D;

    copy_tile<BM, D, THREADS>(tile_q, w.q + row0 * w.ld_q + head * D, w.ld_q, rows);
    copy_tile<BM, D, THREADS>(tile_do, w.dout + row0 * w.ld_dout + head * D, w.ld_dout, rows);
    auto fetch = [&](int b, int stage) {
        copy_tile<BN, D, THREADS>(tile_k + stage * BN * LD, k + (int64_t)b * BN * w.ld_k, w.ld_k, keys - b * BN);
        copy_tile<BN, D, THREADS>(tile_v + stage * BN * LD, v + (int64_t)b * BN * w.ld_v, w.ld_v, keys - b * BN);
        copy_commit();
    };
    fetch(block, 0);
    flash_score score = flash_score_of(w);
    float dq[MT][DT][4], lse2[MT][2], delta[MT][2];
    for (int m = 0; m < MT; m++)
        for (int half = 0; half < 2; half++) {
            int row = (warp * MT + m) * 16 + lane / 4 + half * 8;
            lse2[m][half] = row < rows ? w.lse[(row0 + row) * w.ld_lse + head] * LOG2E : INFINITY;
            delta[m][half] = row < rows ? w.delta[(row0 + row) * w.ld_delta + head] : 0;
        }
    for (int m = 0; m < MT; m++)
        for (int n = 0; n < DT; n++)
            for (int i = 0; i < 4; i++)
                dq[m][n][i] = 0;

    for (int stage = 0; block < end; block++, stage ^= 1) {
        copy_wait<0>();
        __syncthreads();
        if (block + 1 < end)
            fetch(block + 1, stage ^ 1);
        const bf16 *kt = tile_k + stage * BN * LD, *vt = tile_v + stage * BN * LD;
        float s[MT][NT][4], dp[MT][NT][4];
        for (int m = 0; m < MT; m++)
            for (int n = 0; n < NT; n++)
                for (int i = 0; i < 4; i++)
                    s[m][n][i] = dp[m][n][i] = 0;
#pragma unroll
        for (int c = 0; c < D; c += 16) {
            uint32_t a[MT][4], b[4];
            for (int m = 0; m < MT; m++)
                load_a<LD>(a[m], tile_q, (warp * MT + m) * 16, c);
#pragma unroll
            for (int n = 0; n < NT; n += 2) {
                load_b<LD>(b, kt, n * 8, c);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma(s[m][n], a[m], b[0], b[1]);
                    mma(s[m][n + 1], a[m], b[2], b[3]);
                }
            }
            for (int m = 0; m < MT; m++)
                load_a<LD>(a[m], tile_do, (warp * MT + m) * 16, c);
#pragma unroll
            for (int n = 0; n < NT; n += 2) {
                load_b<LD>(b, vt, n * 8, c);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma(dp[m][n], a[m], b[0], b[1]);
                    mma(dp[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
        bool masked = block * BN + BN - 1 > position0 || (w.window && block * BN <= last - w.window);
#pragma unroll
        for (int m = 0; m < MT; m++)
            for (int n = 0; n < NT; n++)
                for (int i = 0; i < 4; i++) {
                    int position = position0 + (warp * MT + m) * 16 + lane / 4 + i / 2 * 8;
                    bool seen = !masked || flash_sees(w, position, block * BN + n * 8 + lane % 4 * 2 + i % 2);
                    flash_gradient(score, s[m][n][i], dp[m][n][i], lse2[m][i / 2], delta[m][i / 2], seen);
                }
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            uint32_t a[MT][4], b[4];
            for (int m = 0; m < MT; m++)
                pack_a(a[m], dp[m][n], dp[m][n + 1]);
#pragma unroll
            for (int c = 0; c < DT; c += 2) {
                load_b_transposed<LD>(b, kt, n * 8, c * 8);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma(dq[m][c], a[m], b[0], b[1]);
                    mma(dq[m][c + 1], a[m], b[2], b[3]);
                }
            }
        }
    }
    for (int m = 0; m < MT; m++)
        for (int half = 0; half < 2; half++) {
            int row = (warp * MT + m) * 16 + lane / 4 + half * 8;
            if (row >= rows)
                continue;
            bf16 *to = w.dq + (row0 + row) * w.ld_dq + head * D + lane % 4 * 2;
            for (int n = 0; n < DT; n++)
                *(uint32_t *)(to + n * 8) = pack(dq[m][n][2 * half] * w.scale, dq[m][n][2 * half + 1] * w.scale);
        }
}

#endif
