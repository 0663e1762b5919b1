/* The attention of flash.cuh for Hopper (sm_90a) and heads of 64 and 128: the same blocks in the same order; the
 * bits are those of this file, not of flash.cuh.
 *
 * A block is persistent: it takes items (a head and a tile of a span) in turn. One warp fetches tiles through the
 * tensor copy engine, two warpgroups of 64 rows each multiply. Fetches are rings of full and empty barriers; a
 * `ring` counts its uses, so that a stage and its parity follow from the count.
 * Rows beyond a span's end are fetched all the same: they must be finite, what they give is masked. */
#ifndef TM_LAB_FLASH90_CUH
#define TM_LAB_FLASH90_CUH

#include "flash.cuh"
#include "device/cuda/half/wgmma.cuh"

/* Boxes of 64 columns: of tiles of 128 rows (q_, do_), of blocks (the others). */
struct flash90_args {
    flash_args w;
    CUtensorMap q, k, v, dout;
};

template <int STAGES> struct flash_ring {
    int count = 0;
    __device__ __forceinline__ int stage() const { return count % STAGES; }
    __device__ __forceinline__ int parity() const { return count / STAGES % 2; }
};

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

template <int D> TM_DEVICE void fetch_tile(bf16 *to, int rows, const CUtensorMap *map, int column, int row, uint64_t *bar)
{
#pragma unroll
    for (int j = 0; j < D / 64; j++)
        fetch_box(to + j * rows * 64, map, column + j * 64, row, bar);
}

/* What an item is about. */
struct flash_item {
    flash_tile tile;
    int head, kv, queries, keys, past, row0, key0; /* row0: of the span's first query */
};

TM_DEVICE void flash90_start(uint64_t *bar, int full_and_empty, int consumers)
{
    if (threadIdx.x == 0) {
        for (int i = 0; i < full_and_empty; i++) {
            barrier_init(&bar[2 * i], 1);
            barrier_init(&bar[2 * i + 1], consumers);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        fence_shared();
    }
    __syncthreads();
}

TM_DEVICE flash_item flash_item_of(const flash_args &w, flash_tile tile, int head, int kv)
{
    flash_item x = {tile, head, kv, 0, 0, 0, 0, 0};
    if (tile.span >= 0) {
        x.row0 = w.spans.query[tile.span];
        x.queries = w.spans.query[tile.span + 1] - x.row0;
        x.keys = w.spans.keys[tile.span];
        x.key0 = w.spans.key[tile.span];
        x.past = x.keys - x.queries;
    }
    return x;
}

/* Item i of the heads' tiles of 128 queries. */
TM_DEVICE flash_item flash_query_item(const flash_args &w, int i)
{
    int head = i % w.heads;
    flash_tile tile = flash_find<128>((int)w.spans.n, i / w.heads, [&](int s) { return w.spans.query[s + 1] - w.spans.query[s]; });
    return flash_item_of(w, tile, head, head / (w.heads / w.kv_heads));
}

/* The item of this block in a round: to and fro, as items are sorted by their work, so that shares are even. */
TM_DEVICE int flash_turn(int round) { return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x); }

/* Blocks of BN keys that a tile of queries sees: [first, end). */
template <int BN> TM_DEVICE int flash_first_block(const flash_args &w, const flash_item &x)
{
    int position = x.past + x.tile.first;
    return w.window && position >= w.window ? (position - w.window + 1) / BN : 0;
}
template <int BN> TM_DEVICE int flash_end_block(const flash_item &x) { return (x.past + min(x.tile.first + 128, x.queries) - 1) / BN + 1; }

/* --- Forward --- */

template <int D, int BN, int STAGES>
__global__ void __launch_bounds__(384, 1) flash90_forward(const __grid_constant__ flash90_args all)
{
    constexpr int BM = 128, NT = BN / 8, DT = D / 8, QSTAGES = 2;
    const flash_args &w = all.w;
    extern __shared__ __align__(1024) bf16 shared[];
    bf16 *tile_q = shared, *tile_k = tile_q + QSTAGES * BM * D, *tile_v = tile_k + STAGES * BN * D;
    __shared__ uint64_t bar[2 * (QSTAGES + 2 * STAGES)]; /* full and empty, of q, k, v */
    uint64_t *bar_q = bar, *bar_k = bar + 2 * QSTAGES, *bar_v = bar_k + 2 * STAGES;
    flash90_start(bar, QSTAGES + 2 * STAGES, 2);
    int lane = threadIdx.x % 32, group = threadIdx.x / 128 - 1;
    flash_ring<QSTAGES> rq;
    flash_ring<STAGES> rk, rv;
    if (group < 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x >= 32)
            return;
        for (int round = 0;; round++) {
            int i = flash_turn(round);
            flash_item x = flash_query_item(w, i);
            if (x.tile.span < 0)
                return;
            if (lane == 0) {
                barrier_wait(&bar_q[2 * rq.stage() + 1], rq.parity() ^ 1);
                barrier_expect(&bar_q[2 * rq.stage()], BM * D * 2);
                fetch_tile<D>(tile_q + rq.stage() * BM * D, BM, &all.q, x.head * D, x.row0 + x.tile.first, &bar_q[2 * rq.stage()]);
                rq.count++;
                for (int b = flash_first_block<BN>(w, x), end = flash_end_block<BN>(x); b < end; b++, rk.count++, rv.count++) {
                    barrier_wait(&bar_k[2 * rk.stage() + 1], rk.parity() ^ 1);
                    barrier_expect(&bar_k[2 * rk.stage()], BN * D * 2);
                    fetch_tile<D>(tile_k + rk.stage() * BN * D, BN, &all.k, x.kv * D, x.key0 + b * BN, &bar_k[2 * rk.stage()]);
                    barrier_wait(&bar_v[2 * rv.stage() + 1], rv.parity() ^ 1);
                    barrier_expect(&bar_v[2 * rv.stage()], BN * D * 2);
                    fetch_tile<D>(tile_v + rv.stage() * BN * D, BN, &all.v, x.kv * D, x.key0 + b * BN, &bar_v[2 * rv.stage()]);
                }
            }
            __syncwarp();
        }
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    bool leader = threadIdx.x % 128 == 0;
    int own = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4; /* row of the tile; and own + 8 */
    float scale2 = w.softcap > 0 ? w.softcap * LOG2E : w.scale * LOG2E, inner = w.softcap > 0 ? w.scale / w.softcap : 0;
    float out[DT][4], s[NT][4], most[2], sum[2], shrink[2];
    uint32_t p[NT / 2][4];
    for (int round = 0;; round++) {
        int i = flash_turn(round);
        flash_item x = flash_query_item(w, i);
        if (x.tile.span < 0)
            return;
        int rows = min(BM, x.queries - x.tile.first), position0 = x.past + x.tile.first, last = position0 + rows - 1;
        int block = flash_first_block<BN>(w, x), end = flash_end_block<BN>(x);
        auto softmax = [&](int b) {
            if (w.softcap > 0)
                for (int n = 0; n < NT; n++)
                    for (int j = 0; j < 4; j++)
                        s[n][j] = tanh_fast(s[n][j] * inner);
            if (b * BN + BN - 1 > position0 + group * 64 || (w.window && b * BN <= last - w.window))
                for (int n = 0; n < NT; n++)
                    for (int j = 0; j < 4; j++)
                        if (!flash_sees(w, position0 + own + j / 2 * 8, b * BN + n * 8 + lane % 4 * 2 + j % 2))
                            s[n][j] = -INFINITY;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float top = most[half], part = 0;
                for (int n = 0; n < NT; n++)
                    top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
                top = row_max4(top);
                float base = top == -INFINITY ? 0 : top * scale2;
                shrink[half] = exp2_fast(most[half] * scale2 - base);
                for (int n = 0; n < NT; n++)
                    for (int j = 2 * half; j < 2 * half + 2; j++) {
                        s[n][j] = exp2_fast(fmaf(s[n][j], scale2, -base));
                        part += s[n][j];
                    }
                sum[half] = fmaf(sum[half], shrink[half], part);
                most[half] = top;
            }
        };
        const bf16 *qt = tile_q + rq.stage() * BM * D;
        uint64_t *q_empty = &bar_q[2 * rq.stage() + 1];
        barrier_wait(&bar_q[2 * rq.stage()], rq.parity());
        rq.count++;
        for (int n = 0; n < DT; n++)
            for (int j = 0; j < 4; j++)
                out[n][j] = 0;
        most[0] = most[1] = -INFINITY;
        sum[0] = sum[1] = 0;
        barrier_wait(&bar_k[2 * rk.stage()], rk.parity());
        products_begin();
        queue_scores<D, BM>(s, qt, group * 64, tile_k + rk.stage() * BN * D);
        products_wait<0>();
        products_keep(s);
        if (leader)
            barrier_arrive(&bar_k[2 * rk.stage() + 1]);
        rk.count++;
        softmax(block);
        pack_all(p, s);
        for (; block + 1 < end; block++, rk.count++, rv.count++) {
            barrier_wait(&bar_k[2 * rk.stage()], rk.parity());
            products_begin();
            queue_scores<D, BM>(s, qt, group * 64, tile_k + rk.stage() * BN * D);
            barrier_wait(&bar_v[2 * rv.stage()], rv.parity());
            products_begin();
            queue_sum<NT>(out, p, tile_v + rv.stage() * BN * D);
            products_wait<1>();
            products_keep(s);
            if (leader)
                barrier_arrive(&bar_k[2 * rk.stage() + 1]);
            softmax(block + 1);
            products_wait<0>();
            products_keep(out);
            if (leader)
                barrier_arrive(&bar_v[2 * rv.stage() + 1]);
            for (int n = 0; n < DT; n++)
                for (int j = 0; j < 4; j++)
                    out[n][j] *= shrink[j / 2];
            pack_all(p, s);
        }
        if (leader)
            barrier_arrive(q_empty);
        barrier_wait(&bar_v[2 * rv.stage()], rv.parity());
        products_begin();
        queue_sum<NT>(out, p, tile_v + rv.stage() * BN * D);
        products_wait<0>();
        products_keep(out);
        if (leader)
            barrier_arrive(&bar_v[2 * rv.stage() + 1]);
        rv.count++;
        for (int half = 0; half < 2; half++) {
            float total = row_sum4(sum[half]), inverse = 1 / total;
            int row = own + half * 8;
            if (row >= rows)
                continue;
            int64_t at = x.row0 + x.tile.first + row;
            bf16 *to = w.out + at * w.ld_out + x.head * D + lane % 4 * 2;
            for (int n = 0; n < DT; n++)
                *(uint32_t *)(to + n * 8) = pack(out[n][2 * half] * inverse, out[n][2 * half + 1] * inverse);
            if (lane % 4 == 0)
                w.lse[at * w.ld_lse + x.head] = (most[half] * scale2 + log2f(total)) * LN2;
        }
    }
}

/* --- Backward --- */

/* dK and dV of tiles of 128 keys: over the query heads of the group, over tiles of BM queries. */
template <int D, int BM, int STAGES>
__global__ void __launch_bounds__(384, 1) flash90_backward_kv(const __grid_constant__ flash90_args all)
{
    constexpr int BN = 128, NT = BM / 8, DT = D / 8;
    const flash_args &w = all.w;
    extern __shared__ __align__(1024) bf16 shared[];
    bf16 *tile_k = shared, *tile_v = tile_k + BN * D, *tile_q = tile_v + BN * D, *tile_do = tile_q + STAGES * BM * D;
    float *row_lse = (float *)(tile_do + STAGES * BM * D), *row_delta = row_lse + STAGES * BM;
    __shared__ uint64_t bar[2 * (1 + STAGES)], ready[STAGES]; /* full and empty, of k with v, of q with dout; lse and delta */
    uint64_t *bar_kv = bar, *bar_q = bar + 2;
    if (threadIdx.x < STAGES)
        barrier_init(&ready[threadIdx.x], 32);
    flash90_start(bar, 1 + STAGES, 2);
    int heads = w.heads / w.kv_heads, lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = threadIdx.x / 128 - 1;
    auto item = [&](int i) {
        flash_tile tile = flash_find<BN>((int)w.spans.n, i / w.kv_heads, [&](int s) { return w.spans.keys[s]; });
        return flash_item_of(w, tile, i % w.kv_heads * heads, i % w.kv_heads);
    };
    /* tiles of queries that see a key of the item: [from, from + tiles) */
    auto first_tile = [&](const flash_item &x) { return max(0, x.tile.first - x.past) / BM; };
    auto tile_count = [&](const flash_item &x) {
        int until = w.window ? min(x.queries, min(x.tile.first + BN, x.keys) - 1 + w.window - x.past) : x.queries;
        return max(0, (until + BM - 1) / BM - first_tile(x));
    };
    flash_ring<1> rkv;
    flash_ring<STAGES> rq;
    if (group < 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (warp > 1)
            return;
        for (int round = 0;; round++) {
            int i = flash_turn(round);
            flash_item x = item(i);
            if (x.tile.span < 0)
                return;
            int tiles = tile_count(x), steps = tiles * heads, from = first_tile(x);
            if (warp == 0 && lane == 0) {
                barrier_wait(&bar_kv[1], rkv.parity() ^ 1);
                barrier_expect(&bar_kv[0], 2 * BN * D * 2);
                fetch_tile<D>(tile_k, BN, &all.k, x.kv * D, x.key0 + x.tile.first, &bar_kv[0]);
                fetch_tile<D>(tile_v, BN, &all.v, x.kv * D, x.key0 + x.tile.first, &bar_kv[0]);
            }
            rkv.count++;
            for (int step = 0; step < steps; step++, rq.count++) {
                int head = x.head + step / tiles, first = (from + step % tiles) * BM, st = rq.stage();
                if (lane == 0)
                    barrier_wait(&bar_q[2 * st + 1], rq.parity() ^ 1);
                __syncwarp();
                if (warp == 0) {
                    if (lane == 0) {
                        barrier_expect(&bar_q[2 * st], 2 * BM * D * 2);
                        fetch_tile<D>(tile_q + st * BM * D, BM, &all.q, head * D, x.row0 + first, &bar_q[2 * st]);
                        fetch_tile<D>(tile_do + st * BM * D, BM, &all.dout, head * D, x.row0 + first, &bar_q[2 * st]);
                    }
                } else {
                    for (int j = lane; j < BM; j += 32) {
                        bool in = first + j < x.queries;
                        int64_t row = x.row0 + first + j;
                        row_lse[st * BM + j] = in ? w.lse[row * w.ld_lse + head] * LOG2E : INFINITY;
                        row_delta[st * BM + j] = in ? w.delta[row * w.ld_delta + head] : 0;
                    }
                    barrier_arrive(&ready[st]);
                }
            }
        }
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    bool leader = threadIdx.x % 128 == 0;
    int own = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
    flash_score score = flash_score_of(w);
    float dk[DT][4], dv[DT][4], s[NT][4], dp[NT][4];
    uint32_t p[NT / 2][4];
    for (int round = 0;; round++) {
        int i = flash_turn(round);
        flash_item x = item(i);
        if (x.tile.span < 0)
            return;
        int tiles = tile_count(x), steps = tiles * heads, from = first_tile(x), count = min(BN, x.keys - x.tile.first);
        for (int n = 0; n < DT; n++)
            for (int j = 0; j < 4; j++)
                dk[n][j] = dv[n][j] = 0;
        barrier_wait(&bar_kv[0], rkv.parity());
        rkv.count++;
        for (int step = 0; step < steps; step++, rq.count++) {
            int st = rq.stage();
            const bf16 *qt = tile_q + st * BM * D, *dot = tile_do + st * BM * D;
            const float *lse2 = row_lse + st * BM, *delta = row_delta + st * BM;
            barrier_wait(&bar_q[2 * st], rq.parity());
            products_begin();
            queue_scores<D, BN>(s, tile_k, group * 64, qt);
            queue_scores<D, BN>(dp, tile_v, group * 64, dot);
            int position0 = x.past + (from + step % tiles) * BM;
            bool masked = x.tile.first + group * 64 + 63 > position0 || (w.window && x.tile.first <= position0 + BM - 1 - w.window);
            barrier_wait(&ready[st], rq.parity());
            products_wait<1>();
            products_keep(s);
            if (score.softcap > 0)
                for (int n = 0; n < NT; n++)
                    for (int j = 0; j < 4; j++)
                        s[n][j] = tanh_fast(s[n][j] * score.inner);
#pragma unroll
            for (int n = 0; n < NT; n++) {
                int column = n * 8 + lane % 4 * 2;
                float2 l = *(const float2 *)(lse2 + column);
                float e[4];
                for (int j = 0; j < 4; j++) {
                    bool seen = !masked || flash_sees(w, position0 + column + j % 2, x.tile.first + own + j / 2 * 8);
                    e[j] = seen ? exp2_fast(fmaf(s[n][j], score.scale2, -(j % 2 ? l.y : l.x))) : 0;
                    s[n][j] = score.softcap > 0 ? e[j] * fmaf(-s[n][j], s[n][j], 1.0f) : e[j]; /* the factor of dS */
                }
                p[n / 2][n % 2 * 2] = pack(e[0], e[1]);
                p[n / 2][n % 2 * 2 + 1] = pack(e[2], e[3]);
            }
            products_begin();
            queue_sum<NT>(dv, p, dot);
            products_wait<1>();
            products_keep(dp);
            uint32_t ds[NT / 2][4];
#pragma unroll
            for (int n = 0; n < NT; n++) {
                float2 e = *(const float2 *)(delta + n * 8 + lane % 4 * 2);
                for (int j = 0; j < 4; j++)
                    dp[n][j] = s[n][j] * (dp[n][j] - (j % 2 ? e.y : e.x));
            }
            pack_all(ds, dp);
            products_begin();
            queue_sum<NT>(dk, ds, qt);
            products_wait<0>();
            products_keep(dv);
            products_keep(dk);
            if (leader)
                barrier_arrive(&bar_q[2 * st + 1]);
        }
        if (leader)
            barrier_arrive(&bar_kv[1]);
        for (int half = 0; half < 2; half++) {
            int row = own + half * 8;
            if (row >= count)
                continue;
            int64_t at = x.key0 + x.tile.first + row;
            bf16 *to_k = w.dk + at * w.ld_dk + x.kv * D + lane % 4 * 2, *to_v = w.dv + at * w.ld_dv + x.kv * D + lane % 4 * 2;
            for (int n = 0; n < DT; n++) {
                *(uint32_t *)(to_k + n * 8) = pack(dk[n][2 * half] * w.scale, dk[n][2 * half + 1] * w.scale);
                *(uint32_t *)(to_v + n * 8) = pack(dv[n][2 * half], dv[n][2 * half + 1]);
            }
        }
    }
}

/* dQ of tiles of 128 queries, over the blocks of BN keys they see. */
template <int D, int BN, int STAGES, int QSTAGES>
__global__ void __launch_bounds__(384, 1) flash90_backward_q(const __grid_constant__ flash90_args all)
{
    constexpr int BM = 128, NT = BN / 8, DT = D / 8;
    const flash_args &w = all.w;
    extern __shared__ __align__(1024) bf16 shared[];
    bf16 *tile_q = shared, *tile_do = tile_q + QSTAGES * BM * D, *tile_k = tile_do + QSTAGES * BM * D, *tile_v = tile_k + STAGES * BN * D;
    __shared__ uint64_t bar[2 * (QSTAGES + STAGES)]; /* full and empty, of q with dout, of k with v */
    uint64_t *bar_q = bar, *bar_k = bar + 2 * QSTAGES;
    flash90_start(bar, QSTAGES + STAGES, 2);
    int lane = threadIdx.x % 32, group = threadIdx.x / 128 - 1;
    flash_ring<QSTAGES> rq;
    flash_ring<STAGES> rk;
    if (group < 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x >= 32)
            return;
        for (int round = 0;; round++) {
            int i = flash_turn(round);
            flash_item x = flash_query_item(w, i);
            if (x.tile.span < 0)
                return;
            if (lane == 0) {
                int st = rq.stage();
                barrier_wait(&bar_q[2 * st + 1], rq.parity() ^ 1);
                barrier_expect(&bar_q[2 * st], 2 * BM * D * 2);
                fetch_tile<D>(tile_q + st * BM * D, BM, &all.q, x.head * D, x.row0 + x.tile.first, &bar_q[2 * st]);
                fetch_tile<D>(tile_do + st * BM * D, BM, &all.dout, x.head * D, x.row0 + x.tile.first, &bar_q[2 * st]);
                rq.count++;
                for (int b = flash_first_block<BN>(w, x), end = flash_end_block<BN>(x); b < end; b++, rk.count++) {
                    st = rk.stage();
                    barrier_wait(&bar_k[2 * st + 1], rk.parity() ^ 1);
                    barrier_expect(&bar_k[2 * st], 2 * BN * D * 2);
                    fetch_tile<D>(tile_k + st * BN * D, BN, &all.k, x.kv * D, x.key0 + b * BN, &bar_k[2 * st]);
                    fetch_tile<D>(tile_v + st * BN * D, BN, &all.v, x.kv * D, x.key0 + b * BN, &bar_k[2 * st]);
                }
            }
            __syncwarp();
        }
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    bool leader = threadIdx.x % 128 == 0;
    int own = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
    flash_score score = flash_score_of(w);
    float dq[DT][4], s[NT][4], dp[NT][4], lse2[2], delta[2];
    uint32_t ds[NT / 2][4];
    for (int round = 0;; round++) {
        int i = flash_turn(round);
        flash_item x = flash_query_item(w, i);
        if (x.tile.span < 0)
            return;
        int rows = min(BM, x.queries - x.tile.first), position0 = x.past + x.tile.first, last = position0 + rows - 1;
        int64_t row0 = x.row0 + x.tile.first;
        for (int half = 0; half < 2; half++) {
            int row = own + half * 8;
            lse2[half] = row < rows ? w.lse[(row0 + row) * w.ld_lse + x.head] * LOG2E : INFINITY;
            delta[half] = row < rows ? w.delta[(row0 + row) * w.ld_delta + x.head] : 0;
        }
        for (int n = 0; n < DT; n++)
            for (int j = 0; j < 4; j++)
                dq[n][j] = 0;
        const bf16 *qt = tile_q + rq.stage() * BM * D, *dot = tile_do + rq.stage() * BM * D;
        uint64_t *q_empty = &bar_q[2 * rq.stage() + 1];
        barrier_wait(&bar_q[2 * rq.stage()], rq.parity());
        rq.count++;
        for (int block = flash_first_block<BN>(w, x), end = flash_end_block<BN>(x); block < end; block++, rk.count++) {
            int st = rk.stage();
            const bf16 *kt = tile_k + st * BN * D, *vt = tile_v + st * BN * D;
            barrier_wait(&bar_k[2 * st], rk.parity());
            products_begin();
            queue_scores<D, BM>(s, qt, group * 64, kt);
            queue_scores<D, BM>(dp, dot, group * 64, vt);
            bool masked = block * BN + BN - 1 > position0 + group * 64 || (w.window && block * BN <= last - w.window);
            products_wait<0>();
            products_keep(s);
            products_keep(dp);
#pragma unroll
            for (int n = 0; n < NT; n++)
                for (int j = 0; j < 4; j++) {
                    bool seen = !masked || flash_sees(w, position0 + own + j / 2 * 8, block * BN + n * 8 + lane % 4 * 2 + j % 2);
                    flash_gradient(score, s[n][j], dp[n][j], lse2[j / 2], delta[j / 2], seen);
                }
            pack_all(ds, dp);
            products_begin();
            queue_sum<NT>(dq, ds, kt);
            products_wait<0>();
            products_keep(dq);
            if (leader)
                barrier_arrive(&bar_k[2 * st + 1]);
        }
        if (leader)
            barrier_arrive(q_empty);
        for (int half = 0; half < 2; half++) {
            int row = own + half * 8;
            if (row >= rows)
                continue;
            bf16 *to = w.dq + (row0 + row) * w.ld_dq + x.head * D + lane % 4 * 2;
            for (int n = 0; n < DT; n++)
                *(uint32_t *)(to + n * 8) = pack(dq[n][2 * half] * w.scale, dq[n][2 * half + 1] * w.scale);
        }
    }
}

#endif
