/* The attention of flash.cuh with the warpgroup products of Hopper (sm_90a), for heads of 64 and 128. The same
 * blocks in the same order; the bits are those of this file, not of flash.cuh. A warpgroup has 64 rows. */
#ifndef TM_DEVICE_CUDA_FLASH90_CUH
#define TM_DEVICE_CUDA_FLASH90_CUH

#include "device/cuda/flash.cuh"
#include "device/cuda/wgmma.cuh"

/* c = rows [row, row + 64) of a [ROWS_A][D] times the transpose of b [8 N][D]: queued, not waited for. */
template <int D, int ROWS_A, int N> TM_DEVICE void queue_scores(float (&c)[N][4], const bf16 *a, int row, const bf16 *b)
{
#pragma unroll
    for (int k = 0; k < D; k += 16)
        product<0>(c, describe<ROWS_A>(a, row, k), describe<8 * N>(b, 0, k), k > 0);
    products_commit();
}

/* c[64 x D] += p[64 x 8 N] b [8 N][D]: p as packed pairs. */
template <int N, int DT> TM_DEVICE void queue_sum(float (&c)[DT][4], const uint32_t (&p)[N / 2][4], const bf16 *b)
{
#pragma unroll
    for (int k = 0; k < N / 2; k++)
        product<1>(c, p[k], describe_transposed<8 * N>(b, k * 16, 0));
    products_commit();
}

template <int N> TM_DEVICE void pack_all(uint32_t (&p)[N / 2][4], const float (&s)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n += 2)
        pack_a(p[n / 2], s[n], s[n + 1]);
}

/* --- Forward --- */

template <int D, int BM, int BN>
__global__ void __launch_bounds__(BM * 2, 1) flash90_forward(const __grid_constant__ flash_args w)
{
    constexpr int NT = BN / 8, DT = D / 8, THREADS = BM * 2;
    extern __shared__ __align__(1024) bf16 shared[];
    bf16 *tile_q = shared, *tile_k = tile_q + BM * D, *tile_v = tile_k + 2 * BN * D;
    const int32_t *bound = w.spans.query;
    flash_tile tile = flash_find<BM>((int)w.spans.n, blockIdx.y, [&](int s) { return bound[s + 1] - bound[s]; });
    if (tile.span < 0)
        return;
    int head = blockIdx.x, kv = head / (w.heads / w.kv_heads), lane = threadIdx.x % 32, group = threadIdx.x / 128;
    int queries = bound[tile.span + 1] - bound[tile.span], keys = w.spans.keys[tile.span];
    int64_t row0 = bound[tile.span] + tile.first, key0 = w.spans.key[tile.span];
    int past = keys - queries, rows = min(BM, queries - tile.first);
    int position0 = past + tile.first, last = position0 + rows - 1;
    int block = w.window && position0 >= w.window ? (position0 - w.window + 1) / BN : 0, end = last / BN + 1;
    const bf16 *k = w.k + key0 * w.ld_k + kv * D, *v = w.v + key0 * w.ld_v + kv * D;
    int own = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4; /* row of the tile; and own + 8 */

    auto fetch = [&](bf16 *to, const bf16 *from, int64_t ld, int b) {
        if (b < end)
            copy_swizzled<BN, D, THREADS>(to + b % 2 * BN * D, from + (int64_t)b * BN * ld, ld, keys - b * BN);
    };
    copy_swizzled<BM, D, THREADS>(tile_q, w.q + row0 * w.ld_q + head * D, w.ld_q, rows);
    fetch(tile_k, k, w.ld_k, block);
    copy_commit();
    fetch(tile_k, k, w.ld_k, block + 1);
    fetch(tile_v, v, w.ld_v, block);
    copy_commit();

    float scale2 = w.softcap > 0 ? w.softcap * LOG2E : w.scale * LOG2E, inner = w.softcap > 0 ? w.scale / w.softcap : 0;
    float out[DT][4], s[NT][4], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, shrink[2];
    uint32_t p[NT / 2][4];
    for (int n = 0; n < DT; n++)
        for (int i = 0; i < 4; i++)
            out[n][i] = 0;
    auto softmax = [&](int b) {
        if (w.softcap > 0)
            for (int n = 0; n < NT; n++)
                for (int i = 0; i < 4; i++)
                    s[n][i] = tanh_fast(s[n][i] * inner);
        if (b * BN + BN - 1 > position0 + group * 64 || (w.window && b * BN <= last - w.window))
            for (int n = 0; n < NT; n++)
                for (int i = 0; i < 4; i++)
                    if (!flash_sees(w, position0 + own + i / 2 * 8, b * BN + n * 8 + lane % 4 * 2 + i % 2))
                        s[n][i] = -INFINITY;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = most[half], part = 0;
            for (int n = 0; n < NT; n++)
                top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
            top = row_max4(top);
            float base = top == -INFINITY ? 0 : top * scale2;
            shrink[half] = exp2_fast(most[half] * scale2 - base);
            for (int n = 0; n < NT; n++)
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    s[n][i] = exp2_fast(fmaf(s[n][i], scale2, -base));
                    part += s[n][i];
                }
            sum[half] = fmaf(sum[half], shrink[half], part);
            most[half] = top;
        }
    };

    copy_wait<1>();
    fence_shared();
    __syncthreads();
    products_begin();
    queue_scores<D, BM>(s, tile_q, group * 64, tile_k + block % 2 * BN * D);
    products_wait<0>();
    products_keep(s);
    softmax(block);
    pack_all(p, s);
    for (; block + 1 < end; block++) {
        copy_wait<0>();
        fence_shared();
        __syncthreads();
        fetch(tile_k, k, w.ld_k, block + 2);
        fetch(tile_v, v, w.ld_v, block + 1);
        copy_commit();
        products_begin();
        queue_scores<D, BM>(s, tile_q, group * 64, tile_k + (block + 1) % 2 * BN * D);
        queue_sum<NT>(out, p, tile_v + block % 2 * BN * D);
        products_wait<1>();
        products_keep(s);
        softmax(block + 1);
        products_wait<0>();
        products_keep(out);
        for (int n = 0; n < DT; n++)
            for (int i = 0; i < 4; i++)
                out[n][i] *= shrink[i / 2];
        pack_all(p, s);
    }
    copy_wait<0>();
    fence_shared();
    __syncthreads();
    products_begin();
    queue_sum<NT>(out, p, tile_v + block % 2 * BN * D);
    products_wait<0>();
    products_keep(out);
    for (int half = 0; half < 2; half++) {
        float total = row_sum4(sum[half]), inverse = 1 / total;
        int row = own + half * 8;
        if (row >= rows)
            continue;
        bf16 *to = w.out + (row0 + row) * w.ld_out + head * D + lane % 4 * 2;
        for (int n = 0; n < DT; n++)
            *(uint32_t *)(to + n * 8) = pack(out[n][2 * half] * inverse, out[n][2 * half + 1] * inverse);
        if (lane % 4 == 0)
            w.lse[(row0 + row) * w.ld_lse + head] = (most[half] * scale2 + log2f(total)) * LN2;
    }
}

/* --- Backward --- */

template <int D, int BM, int BN>
__global__ void __launch_bounds__(BN * 2, 1) flash90_backward_kv(const __grid_constant__ flash_args w)
{
    constexpr int NT = BM / 8, DT = D / 8, THREADS = BN * 2;
    extern __shared__ __align__(1024) bf16 shared[];
    bf16 *tile_k = shared, *tile_v = tile_k + BN * D, *tile_q = tile_v + BN * D, *tile_do = tile_q + 2 * BM * D;
    float *row_lse = (float *)(tile_do + 2 * BM * D), *row_delta = row_lse + 2 * BM;
    flash_tile tile = flash_find<BN>((int)w.spans.n, blockIdx.y, [&](int s) { return w.spans.keys[s]; });
    if (tile.span < 0)
        return;
    int heads = w.heads / w.kv_heads, kv = blockIdx.x, lane = threadIdx.x % 32, group = threadIdx.x / 128;
    int queries = w.spans.query[tile.span + 1] - w.spans.query[tile.span], keys = w.spans.keys[tile.span];
    int64_t row0 = w.spans.query[tile.span], key0 = w.spans.key[tile.span] + tile.first;
    int past = keys - queries, count = min(BN, keys - tile.first);
    int from = max(0, tile.first - past) / BM, until = w.window ? min(queries, tile.first + count - 1 + w.window - past) : queries;
    int tiles = max(0, (until + BM - 1) / BM - from), steps = tiles * heads;
    int own = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;

    copy_swizzled<BN, D, THREADS>(tile_k, w.k + key0 * w.ld_k + kv * D, w.ld_k, count);
    copy_swizzled<BN, D, THREADS>(tile_v, w.v + key0 * w.ld_v + kv * D, w.ld_v, count);
    auto fetch = [&](int step, int stage) {
        int head = kv * heads + step / tiles, first = (from + step % tiles) * BM;
        int64_t row = row0 + first;
        copy_swizzled<BM, D, THREADS>(tile_q + stage * BM * D, w.q + row * w.ld_q + head * D, w.ld_q, queries - first);
        copy_swizzled<BM, D, THREADS>(tile_do + stage * BM * D, w.dout + row * w.ld_dout + head * D, w.ld_dout, queries - first);
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
    float dk[DT][4], dv[DT][4], s[NT][4], dp[NT][4];
    uint32_t p[NT / 2][4], ds[NT / 2][4];
    for (int n = 0; n < DT; n++)
        for (int i = 0; i < 4; i++)
            dk[n][i] = dv[n][i] = 0;

    for (int step = 0, stage = 0; step < steps; step++, stage ^= 1) {
        copy_wait<0>();
        fence_shared();
        __syncthreads();
        const bf16 *qt = tile_q + stage * BM * D, *dot = tile_do + stage * BM * D;
        const float *lse2 = row_lse + stage * BM, *delta = row_delta + stage * BM;
        products_begin();
        queue_scores<D, BN>(s, tile_k, group * 64, qt);
        queue_scores<D, BN>(dp, tile_v, group * 64, dot);
        if (step + 1 < steps)
            fetch(step + 1, stage ^ 1);
        int position0 = past + (from + step % tiles) * BM;
        bool masked = tile.first + count - 1 > position0 || (w.window && tile.first <= position0 + BM - 1 - w.window);
        products_wait<1>();
        products_keep(s);
        if (w.softcap > 0) /* s: tanh, for its slope */
            for (int n = 0; n < NT; n++)
                for (int i = 0; i < 4; i++)
                    s[n][i] = tanh_fast(s[n][i] * score.inner);
        float slope[NT][4];
#pragma unroll
        for (int n = 0; n < NT; n++) {
            int column = n * 8 + lane % 4 * 2;
            float2 l = *(const float2 *)(lse2 + column);
            for (int i = 0; i < 4; i++) {
                bool seen = !masked || flash_sees(w, position0 + column + i % 2, tile.first + own + i / 2 * 8);
                slope[n][i] = w.softcap > 0 ? fmaf(-s[n][i], s[n][i], 1.0f) : 1;
                s[n][i] = seen ? exp2_fast(fmaf(s[n][i], score.scale2, -(i % 2 ? l.y : l.x))) : 0;
            }
        }
        pack_all(p, s);
        products_begin();
        queue_sum<NT>(dv, p, dot);
        products_wait<1>();
        products_keep(dp);
#pragma unroll
        for (int n = 0; n < NT; n++) {
            float2 e = *(const float2 *)(delta + n * 8 + lane % 4 * 2);
            for (int i = 0; i < 4; i++)
                dp[n][i] = s[n][i] * (dp[n][i] - (i % 2 ? e.y : e.x)) * slope[n][i];
        }
        pack_all(ds, dp);
        products_begin();
        queue_sum<NT>(dk, ds, qt);
        products_wait<0>();
        products_keep(dv);
        products_keep(dk);
    }
    for (int half = 0; half < 2; half++) {
        int row = own + half * 8;
        if (row >= count)
            continue;
        bf16 *to_k = w.dk + (key0 + row) * w.ld_dk + kv * D + lane % 4 * 2, *to_v = w.dv + (key0 + row) * w.ld_dv + kv * D + lane % 4 * 2;
        for (int n = 0; n < DT; n++) {
            *(uint32_t *)(to_k + n * 8) = pack(dk[n][2 * half] * w.scale, dk[n][2 * half + 1] * w.scale);
            *(uint32_t *)(to_v + n * 8) = pack(dv[n][2 * half], dv[n][2 * half + 1]);
        }
    }
}

template <int D, int BM, int BN>
__global__ void __launch_bounds__(BM * 2, 1) flash90_backward_q(const __grid_constant__ flash_args w)
{
    constexpr int NT = BN / 8, DT = D / 8, THREADS = BM * 2;
    extern __shared__ __align__(1024) bf16 shared[];
    bf16 *tile_q = shared, *tile_do = tile_q + BM * D, *tile_k = tile_do + BM * D, *tile_v = tile_k + 2 * BN * D;
    const int32_t *bound = w.spans.query;
    flash_tile tile = flash_find<BM>((int)w.spans.n, blockIdx.y, [&](int s) { return bound[s + 1] - bound[s]; });
    if (tile.span < 0)
        return;
    int head = blockIdx.x, kv = head / (w.heads / w.kv_heads), lane = threadIdx.x % 32, group = threadIdx.x / 128;
    int queries = bound[tile.span + 1] - bound[tile.span], keys = w.spans.keys[tile.span];
    int64_t row0 = bound[tile.span] + tile.first, key0 = w.spans.key[tile.span];
    int past = keys - queries, rows = min(BM, queries - tile.first);
    int position0 = past + tile.first, last = position0 + rows - 1;
    int block = w.window && position0 >= w.window ? (position0 - w.window + 1) / BN : 0, end = last / BN + 1;
    const bf16 *k = w.k + key0 * w.ld_k + kv * D, *v = w.v + key0 * w.ld_v + kv * D;
    int own = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;

    copy_swizzled<BM, D, THREADS>(tile_q, w.q + row0 * w.ld_q + head * D, w.ld_q, rows);
    copy_swizzled<BM, D, THREADS>(tile_do, w.dout + row0 * w.ld_dout + head * D, w.ld_dout, rows);
    auto fetch = [&](int b, int stage) {
        copy_swizzled<BN, D, THREADS>(tile_k + stage * BN * D, k + (int64_t)b * BN * w.ld_k, w.ld_k, keys - b * BN);
        copy_swizzled<BN, D, THREADS>(tile_v + stage * BN * D, v + (int64_t)b * BN * w.ld_v, w.ld_v, keys - b * BN);
        copy_commit();
    };
    fetch(block, 0);
    flash_score score = flash_score_of(w);
    float dq[DT][4], s[NT][4], dp[NT][4], lse2[2], delta[2];
    uint32_t ds[NT / 2][4];
    for (int half = 0; half < 2; half++) {
        int row = own + half * 8;
        lse2[half] = row < rows ? w.lse[(row0 + row) * w.ld_lse + head] * LOG2E : INFINITY;
        delta[half] = row < rows ? w.delta[(row0 + row) * w.ld_delta + head] : 0;
    }
    for (int n = 0; n < DT; n++)
        for (int i = 0; i < 4; i++)
            dq[n][i] = 0;

    for (int stage = 0; block < end; block++, stage ^= 1) {
        copy_wait<0>();
        fence_shared();
        __syncthreads();
        const bf16 *kt = tile_k + stage * BN * D, *vt = tile_v + stage * BN * D;
        products_begin();
        queue_scores<D, BM>(s, tile_q, group * 64, kt);
        queue_scores<D, BM>(dp, tile_do, group * 64, vt);
        if (block + 1 < end)
            fetch(block + 1, stage ^ 1);
        bool masked = block * BN + BN - 1 > position0 + group * 64 || (w.window && block * BN <= last - w.window);
        products_wait<0>();
        products_keep(s);
        products_keep(dp);
#pragma unroll
        for (int n = 0; n < NT; n++)
            for (int i = 0; i < 4; i++) {
                bool seen = !masked || flash_sees(w, position0 + own + i / 2 * 8, block * BN + n * 8 + lane % 4 * 2 + i % 2);
                flash_gradient(score, s[n][i], dp[n][i], lse2[i / 2], delta[i / 2], seen);
            }
        pack_all(ds, dp);
        products_begin();
        queue_sum<NT>(dq, ds, kt);
        products_wait<0>();
        products_keep(dq);
    }
    for (int half = 0; half < 2; half++) {
        int row = own + half * 8;
        if (row >= rows)
            continue;
        bf16 *to = w.dq + (row0 + row) * w.ld_dq + head * D + lane % 4 * 2;
        for (int n = 0; n < DT; n++)
            *(uint32_t *)(to + n * 8) = pack(dq[n][2 * half] * w.scale, dq[n][2 * half + 1] * w.scale);
    }
}

#endif
