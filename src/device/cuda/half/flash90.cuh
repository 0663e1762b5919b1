/* The attention of flash.cuh for Hopper (sm_90a) and heads of 64 and 128: the same blocks in the same order; the
 * bits are those of this file, not of flash.cuh.
 *
 * One warpgroup fetches tiles through the tensor copy engine, GROUPS others of 64 rows each multiply. Fetches are
 * rings of full and empty barriers; a `ring` counts its uses, so that a stage and its parity follow from the count.
 * The fetching warp finds an item and hands it on beside the item's first tile.
 * Rows beyond a span's end are fetched all the same, whatever stands there. Where they would meet the zeros of a
 * product (0 x infinity) they are made zeros in shared memory; elsewhere what they give is masked or not stored. */
#ifndef TM_DEVICE_CUDA_HALF_FLASH90_CUH
#define TM_DEVICE_CUDA_HALF_FLASH90_CUH

#include "device/cuda/half/flash.cuh"
#include "device/cuda/half/wgmma.cuh"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FLASH90_ELSEWHERE 1 /* compiled for another GPU: the kernels are empty, and never launched */
#else
#define FLASH90_ELSEWHERE 0
#endif

/* Boxes of 64 columns: of tiles (q and dout in forward and dQ, k and v in dK and dV) or of what passes them by. */
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
template <class T, int D, int ROWS_A, int N> TM_DEVICE void queue_scores(float (&c)[N][4], const bf16 *a, int row, const bf16 *b)
{
#pragma unroll
    for (int k = 0; k < D; k += 16)
        product<0, 0, T>(c, describe<ROWS_A>(a, row, k), describe<8 * N>(b, 0, k), k > 0);
    products_commit();
}

/* c[64 x D] += p[64 x 8 N] b [8 N][D]: p as packed pairs. */
template <class T, int N, int DT> TM_DEVICE void queue_sum(float (&c)[DT][4], const uint32_t (&p)[N / 2][4], const bf16 *b)
{
#pragma unroll
    for (int k = 0; k < N / 2; k++)
        product<1, T>(c, p[k], describe_transposed<8 * N>(b, k * 16, 0));
    products_commit();
}

template <class T, int N> TM_DEVICE void pack_all(uint32_t (&p)[N / 2][4], const float (&s)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n += 2)
        pack_a<T>(p[n / 2], s[n], s[n + 1]);
}

template <int N> TM_DEVICE void clear(float (&c)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n++)
        for (int j = 0; j < 4; j++)
            c[n][j] = 0;
}

/* Scores of a row that its band has not become minus infinity. */
template <int N> TM_DEVICE void mask(float (&s)[N][4], int half, flash_band band)
{
#pragma unroll
    for (int n = 0; n < N; n++)
        for (int j = 0; j < 2; j++)
            s[n][2 * half + j] = band.has(n * 8 + j) ? s[n][2 * half + j] : -INFINITY;
}

template <int D> TM_DEVICE void fetch_tile(bf16 *to, int rows, const CUtensorMap *map, int column, int row, uint64_t *bar)
{
#pragma unroll
    for (int j = 0; j < D / 64; j++)
        fetch_box(to + j * rows * 64, map, column + j * 64, row, bar);
}

/* Numbered barriers: of a warpgroup alone 1 .. GROUPS; of two that take turns those after.
 *
 * Rows of a tile from `from` on become zeros, before a warpgroup multiplies with it. Every group does so: they
 * write the same. */
template <int ROWS, int D> TM_DEVICE void zero_rows(bf16 *tile, int from)
{
    for (int i = from * 8 + threadIdx.x % 128; i < ROWS * 8; i += 128)
        for (int j = 0; j < D / 64; j++)
            ((int4 *)tile)[j * ROWS * 8 + i] = make_int4(0, 0, 0, 0);
    fence_shared();
    group_barrier(1 + threadIdx.x / 128, 128);
}

/* c times factor[row / 8 % 2], the 16 rows of a warp, to rows [row, row + 16) of a matrix of D columns at `to`, those
 * before `rows`; by way of the same rows of a tile, which nobody else uses any more. */
template <class T, int ROWS, int DT> TM_DEVICE void store_rows(bf16 *tile, int row, const float (&c)[DT][4], const float (&factor)[2], bf16 *to, int64_t ld, int rows)
{
    int lane = threadIdx.x % 32;
    auto unit = [&](int r, int u) { return (char *)tile + u / 8 * ROWS * SWIZZLED_ROW_BYTES + r * SWIZZLED_ROW_BYTES + (u % 8 ^ r % 8) * 16; };
#pragma unroll
    for (int n = 0; n < DT; n += 2)
        store_matrices(unit(row + lane % 16, n + lane / 16), pack<T>(c[n][0] * factor[0], c[n][1] * factor[0]), pack<T>(c[n][2] * factor[1], c[n][3] * factor[1]),
                       pack<T>(c[n + 1][0] * factor[0], c[n + 1][1] * factor[0]), pack<T>(c[n + 1][2] * factor[1], c[n + 1][3] * factor[1]));
    fence_shared(); /* before the copies to global memory, which it would wait for */
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * DT; i += 32) {
        int r = row + i / DT, u = i % DT;
        if (r < rows)
            *(int4 *)(to + r * ld + u * 8) = *(const int4 *)unit(r, u);
    }
}

/* Pairs of full and empty barriers: one arrives at a full one (with bytes), every thread that multiplies at an empty one,
 * for what it has read itself. (A lane for its warp, after __syncwarp, does as well, and dK and dV of heads of 64 take 3 to 4 %
 * less; racecheck does not follow that.) */
TM_DEVICE void flash90_start(uint64_t *bar, int pairs, int groups)
{
    if (threadIdx.x == 0) {
        for (int i = 0; i < pairs; i++) {
            barrier_init(&bar[2 * i], 1);
            barrier_init(&bar[2 * i + 1], 128 * groups);
        }
        fence_barriers();
        fence_shared();
    }
    __syncthreads();
}

/* Registers of the threads that fetch and of those that multiply: 64 Ki in all. MOST: as many as can be for these. */
template <int GROUPS, bool MOST = false> TM_DEVICE void registers_to_fetch()
{
    if (MOST)
        registers_less<24>();
    else if (GROUPS == 2)
        registers_less<40>();
    else
        registers_less<32>();
}
template <int GROUPS, bool MOST = false> TM_DEVICE void registers_to_multiply()
{
    if (MOST)
        registers_more<240>();
    else if (GROUPS == 2)
        registers_more<232>();
    else
        registers_more<160>();
}

/* --- Forward --- */

/* Groups queue their products in turn, so that the softmax of one runs beside the products of another. */
template <class T, int D, int GROUPS, int BN, int STAGES, bool CAP>
__global__ void __launch_bounds__(128 * GROUPS + 128, 1) flash90_forward(const __grid_constant__ flash90_args all)
{
#if !FLASH90_ELSEWHERE
    constexpr int BM = 64 * GROUPS, NT = BN / 8, DT = D / 8, QSTAGES = 2;
    const flash_args &w = all.w;
    TM_SHARED(bf16, shared, 1024);
    bf16 *tile_q = shared, *tile_k = tile_q + QSTAGES * BM * D, *tile_v = tile_k + STAGES * BN * D;
    __shared__ uint64_t bar[2 * (QSTAGES + 2 * STAGES)]; /* of q with its item, of k, of v */
    __shared__ flash_item items[QSTAGES];
    uint64_t *bar_q = bar, *bar_k = bar + 2 * QSTAGES, *bar_v = bar_k + 2 * STAGES;
    flash90_start(bar, QSTAGES + 2 * STAGES, GROUPS);
    int lane = threadIdx.x % 32, group = threadIdx.x / 128;
    flash_ring<QSTAGES> rq;
    flash_ring<STAGES> rk, rv;
    if (group == GROUPS) {
        registers_to_fetch<GROUPS>();
        if (threadIdx.x % 128 >= 32)
            return;
        for (int round = 0;; round++) {
            flash_item x = flash_query_item<BM>(w, flash_turn(round));
            if (lane == 0) {
                barrier_wait(&bar_q[2 * rq.stage() + 1], rq.parity() ^ 1);
                items[rq.stage()] = x;
                if (x.first < 0) {
                    barrier_arrive(&bar_q[2 * rq.stage()]);
                    return;
                }
                barrier_expect(&bar_q[2 * rq.stage()], BM * D * 2);
                fetch_tile<D>(tile_q + rq.stage() * BM * D, BM, &all.q, x.head * D, x.row0 + x.first, &bar_q[2 * rq.stage()]);
                rq.count++;
                flash_range blocks = flash_blocks<BM, BN>(w, x);
                for (int b = blocks.first; b < blocks.end; b++, rk.count++, rv.count++) {
                    barrier_wait(&bar_k[2 * rk.stage() + 1], rk.parity() ^ 1);
                    barrier_expect(&bar_k[2 * rk.stage()], BN * D * 2);
                    fetch_tile<D>(tile_k + rk.stage() * BN * D, BN, &all.k, x.kv * D, x.key0 + b * BN, &bar_k[2 * rk.stage()]);
                    barrier_wait(&bar_v[2 * rv.stage() + 1], rv.parity() ^ 1);
                    barrier_expect(&bar_v[2 * rv.stage()], BN * D * 2);
                    fetch_tile<D>(tile_v + rv.stage() * BN * D, BN, &all.v, x.kv * D, x.key0 + b * BN, &bar_v[2 * rv.stage()]);
                }
            }
            if (x.first < 0)
                return;
            __syncwarp();
        }
    }
    registers_to_multiply<GROUPS>();
    int own = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4; /* row of the tile; and own + 8 */
    flash_score score = flash_score_of(w);
    float out[DT][4], s[NT][4], shrink[2];
    uint32_t p[NT / 2][4];
    flash_softmax soft[2] = {flash_softmax_of_none(), flash_softmax_of_none()};
    auto softmax = [&](const flash_item &x, int b) {
        int position0 = x.past + x.first, last = x.past + min(x.first + BM, x.queries) - 1;
        if (CAP)
            for (int n = 0; n < NT; n++)
                for (int j = 0; j < 4; j++)
                    s[n][j] = tanh_fast(s[n][j] * score.inner);
        if (b * BN + BN - 1 > position0 + group * 64 || (w.window && b * BN <= last - w.window))
            for (int half = 0; half < 2; half++)
                mask(s, half, flash_keys_of(w, position0 + own + half * 8, b * BN + lane % 4 * 2));
#pragma unroll
        for (int half = 0; half < 2; half++)
            shrink[half] = flash_softmax_step(soft[half], s, half, score.scale2);
    };
    barrier_wait(&bar_q[2 * rq.stage()], rq.parity());
    flash_item x = items[rq.stage()];
    if (x.first < 0)
        return;
    flash_range blocks = flash_blocks<BM, BN>(w, x);
    if (group == GROUPS - 1)
        group_arrive(1 + GROUPS, 256);
    clear(out);
    barrier_wait(&bar_k[2 * rk.stage()], rk.parity());
    products_begin();
    queue_scores<T, D, BM>(s, tile_q + rq.stage() * BM * D, group * 64, tile_k + rk.stage() * BN * D);
    products_wait<0>();
    products_keep(s);
    barrier_arrive(&bar_k[2 * rk.stage() + 1]);
    rk.count++;
    softmax(x, blocks.first);
    pack_all<T>(p, s);
    /* p: of block b of x. The scores that come next, of the next item after the last block, are queued before its sum. */
    for (int b = blocks.first;; rk.count++, rv.count++) {
        bool last = b + 1 == blocks.end;
        int next = b + 1;
        flash_item y = x;
        flash_ring<QSTAGES> rnext = rq;
        if (last) {
            rnext.count++;
            barrier_wait(&bar_q[2 * rnext.stage()], rnext.parity());
            y = items[rnext.stage()];
            blocks = flash_blocks<BM, BN>(w, y);
            next = blocks.first;
        }
        bool more = y.first >= 0; /* otherwise scores of what the tiles held before, for nobody */
        if (more)
            barrier_wait(&bar_k[2 * rk.stage()], rk.parity());
        group_barrier(1 + GROUPS + group, 256);
        products_begin();
        queue_scores<T, D, BM>(s, tile_q + rnext.stage() * BM * D, group * 64, tile_k + rk.stage() * BN * D);
        bf16 *vt = tile_v + rv.stage() * BN * D;
        barrier_wait(&bar_v[2 * rv.stage()], rv.parity());
        if (b * BN + BN > x.keys)
            zero_rows<BN, D>(vt, x.keys - b * BN);
        products_begin();
        queue_sum<T, NT>(out, p, vt);
        group_arrive(1 + GROUPS + (group + 1) % GROUPS, 256);
        products_wait<1>();
        products_keep(s);
        if (more)
            barrier_arrive(&bar_k[2 * rk.stage() + 1]);
        flash_softmax done[2] = {soft[0], soft[1]};
        if (last)
            soft[0] = soft[1] = flash_softmax_of_none();
        if (group * 64 < y.queries - y.first) /* otherwise the rows of the group are nobody's */
            softmax(y, next);
        products_keep(s);
        schedule_wall(w.window);
        products_wait<0>();
        products_keep(out);
        barrier_arrive(&bar_v[2 * rv.stage() + 1]);
        if (last) {
            int64_t row0 = x.row0 + x.first;
            int rows = min(BM, x.queries - x.first);
            float inverse[2];
            for (int half = 0; half < 2; half++) {
                float total = row_sum4(done[half].sum);
                int row = own + half * 8;
                inverse[half] = 1 / total;
                if (w.lse && lane % 4 == 0 && row < rows)
                    w.lse[(row0 + row) * w.ld_lse + x.head] = (done[half].most * score.scale2 + log2f(total)) * LN2;
            }
            store_rows<T, BM>(tile_q + rq.stage() * BM * D, own - lane / 4, out, inverse, w.out + row0 * w.ld_out + x.head * D, w.ld_out, rows);
            group_barrier(1 + group, 128);
            barrier_arrive(&bar_q[2 * rq.stage() + 1]);
            if (!more)
                return;
            clear(out);
            x = y;
            rq = rnext;
        } else if (__any_sync(~0u, shrink[0] != 1 || shrink[1] != 1))
            for (int n = 0; n < DT; n++)
                for (int j = 0; j < 4; j++)
                    out[n][j] *= shrink[j / 2];
        pack_all<T>(p, s);
        b = next;
    }
#endif
}

/* --- Backward --- */

/* What a thread holds of q k becomes exp(score - lse), zero where the bands of its two rows have it not, and keep(n, four of them) sees it;
 * s on return: that times d(score)/d(q k) / scale. lse2(n, j): lse in powers of two. */
template <bool CAP, int NT, class Band, class Lse, class Keep>
TM_DEVICE void flash90_weights(const flash_score &f, float (&s)[NT][4], bool masked, Band band, Lse lse2, Keep keep)
{
    if (CAP)
        for (int n = 0; n < NT; n++)
            for (int j = 0; j < 4; j++)
                s[n][j] = tanh_fast(s[n][j] * f.inner);
    if (masked)
        for (int half = 0; half < 2; half++)
            mask(s, half, band(half));
#pragma unroll
    for (int n = 0; n < NT; n++) {
        float e[4];
        for (int j = 0; j < 4; j++) {
            e[j] = exp2_fast(fmaf(s[n][j], f.scale2, -lse2(n, j)));
            s[n][j] = !CAP ? e[j] : e[j] == 0 ? 0 : e[j] * fmaf(-s[n][j], s[n][j], 1.0f);
        }
        keep(n, e);
    }
}

/* dK and dV of tiles of 128 keys: over the query heads of the group, over tiles of BM queries. */
template <class T, int D, int BM, int STAGES, bool CAP>
__global__ void __launch_bounds__(384, 1) flash90_backward_kv(const __grid_constant__ flash90_args all)
{
#if !FLASH90_ELSEWHERE
    constexpr int BN = 128, NT = BM / 8, DT = D / 8;
    const flash_args &w = all.w;
    TM_SHARED(bf16, shared, 1024);
    bf16 *tile_k = shared, *tile_v = tile_k + BN * D, *tile_q = tile_v + BN * D, *tile_do = tile_q + STAGES * BM * D;
    float *row_lse = (float *)(tile_do + STAGES * BM * D), *row_delta = row_lse + STAGES * BM;
    __shared__ uint64_t bar[2 * (1 + STAGES)], ready[STAGES]; /* of k and v with their item, of q with dout; lse and delta */
    __shared__ flash_item item;
    uint64_t *bar_kv = bar, *bar_q = bar + 2;
    if (threadIdx.x < STAGES)
        barrier_init(&ready[threadIdx.x], 32);
    flash90_start(bar, 1 + STAGES, 2);
    int heads = w.heads / w.kv_heads, lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = threadIdx.x / 128 - 1;
    flash_ring<1> rkv;
    flash_ring<STAGES> rq;
    if (group < 0) {
        registers_to_fetch<2, D == 128>();
        if (warp > 1)
            return;
        for (int round = 0;; round++) {
            flash_item x = flash_key_item<BN>(w, flash_turn(round));
            if (warp == 0 && lane == 0) {
                barrier_wait(&bar_kv[1], rkv.parity() ^ 1);
                item = x;
                if (x.first < 0)
                    barrier_arrive(&bar_kv[0]);
                else {
                    barrier_expect(&bar_kv[0], 2 * BN * D * 2);
                    fetch_tile<D>(tile_k, BN, &all.k, x.kv * D, x.key0 + x.first, &bar_kv[0]);
                    fetch_tile<D>(tile_v, BN, &all.v, x.kv * D, x.key0 + x.first, &bar_kv[0]);
                }
            }
            if (x.first < 0)
                return;
            rkv.count++;
            flash_range seers = flash_seers<BM, BN>(w, x);
            for (int head = x.head; head < x.head + heads; head++)
                for (int tile = seers.first; tile < seers.end; tile++, rq.count++) {
                    int first = tile * BM, st = rq.stage();
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
    registers_to_multiply<2, D == 128>();
    int own = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
    flash_score score = flash_score_of(w);
    float dk[DT][4], dv[DT][4], s[NT][4], dp[NT][4];
    uint32_t p[NT / 2][4], ds[NT / 2][4];
    for (;; rkv.count++) {
        barrier_wait(&bar_kv[0], rkv.parity());
        flash_item x = item;
        if (x.first < 0)
            return;
        flash_range seers = flash_seers<BM, BN>(w, x);
        clear(dk);
        clear(dv);
        int tile = seers.first, st = 0;
        auto queue_first = [&] { /* s of the ring's tile */
            st = rq.stage();
            barrier_wait(&bar_q[2 * st], rq.parity());
            if (tile * BM + BM > x.queries) {
                zero_rows<BM, D>(tile_q + st * BM * D, x.queries - tile * BM);
                zero_rows<BM, D>(tile_do + st * BM * D, x.queries - tile * BM);
            }
            products_begin();
            queue_scores<T, D, BN>(s, tile_k, group * 64, tile_q + st * BM * D);
        };
        auto weights = [&] {
            int position0 = x.past + tile * BM;
            bool masked = x.first + group * 64 + 63 > position0 || (w.window && x.first <= position0 + BM - 1 - w.window);
            const float *lse2 = row_lse + st * BM + lane % 4 * 2;
            barrier_wait(&ready[st], rq.parity());
            products_keep(s);
            flash90_weights<CAP>(
                score, s, masked, [&](int half) { return flash_queries_of(w, x.first + own + half * 8, position0 + lane % 4 * 2); },
                [&](int n, int j) { return lse2[n * 8 + j % 2]; },
                [&](int n, const float (&e)[4]) {
                    p[n / 2][n % 2 * 2] = pack<T>(e[0], e[1]);
                    p[n / 2][n % 2 * 2 + 1] = pack<T>(e[2], e[3]);
                });
            rq.count++;
            tile = tile + 1 < seers.end ? tile + 1 : seers.first;
        };
        auto gradients = [&] { /* dv, and ds of the tile whose weights there are */
            const float *delta = row_delta + st * BM + lane % 4 * 2;
            products_begin();
            queue_scores<T, D, BN>(dp, tile_v, group * 64, tile_do + st * BM * D);
            queue_sum<T, NT>(dv, p, tile_do + st * BM * D);
            products_wait<1>();
            products_keep(dp);
            for (int n = 0; n < NT; n++)
                for (int j = 0; j < 4; j++)
                    dp[n][j] = s[n][j] * (dp[n][j] - delta[n * 8 + j % 2]);
            pack_all<T>(ds, dp);
        };
        queue_first();
        products_wait<0>();
        weights();
        for (int steps = (seers.end - seers.first) * heads; steps > 1; steps--) {
            gradients();
            int before = st;
            queue_first();
            products_begin();
            queue_sum<T, NT>(dk, ds, tile_q + before * BM * D);
            products_wait<1>();
            products_keep(dv);
            weights();
            products_keep(s);
        schedule_wall(w.window);
            products_wait<0>();
            products_keep(dk);
            barrier_arrive(&bar_q[2 * before + 1]);
        }
        gradients();
        products_begin();
        queue_sum<T, NT>(dk, ds, tile_q + st * BM * D);
        products_wait<0>();
        products_keep(dv);
        products_keep(dk);
        barrier_arrive(&bar_q[2 * st + 1]);
        int64_t key0 = x.key0 + x.first;
        float once[2] = {1, 1}, scale[2] = {w.scale, w.scale};
        store_rows<T, BN>(tile_k, own - lane / 4, dk, scale, w.dk + key0 * w.ld_dk + x.kv * D, w.ld_dk, x.keys - x.first);
        store_rows<T, BN>(tile_v, own - lane / 4, dv, once, w.dv + key0 * w.ld_dv + x.kv * D, w.ld_dv, x.keys - x.first);
        group_barrier(1 + threadIdx.x / 128, 128);
        barrier_arrive(&bar_kv[1]);
    }
#endif
}

/* dQ of tiles of 128 queries, over the blocks of BN keys they see. */
template <class T, int D, int BN, int STAGES, bool CAP>
__global__ void __launch_bounds__(384, 1) flash90_backward_q(const __grid_constant__ flash90_args all)
{
#if !FLASH90_ELSEWHERE
    constexpr int BM = 128, NT = BN / 8, DT = D / 8, QSTAGES = 2;
    const flash_args &w = all.w;
    TM_SHARED(bf16, shared, 1024);
    bf16 *tile_q = shared, *tile_do = tile_q + QSTAGES * BM * D, *tile_k = tile_do + QSTAGES * BM * D, *tile_v = tile_k + STAGES * BN * D;
    __shared__ uint64_t bar[2 * (QSTAGES + STAGES)]; /* of q and dout with their item, of k with v */
    __shared__ flash_item items[QSTAGES];
    uint64_t *bar_q = bar, *bar_k = bar + 2 * QSTAGES;
    flash90_start(bar, QSTAGES + STAGES, 2);
    int lane = threadIdx.x % 32, group = threadIdx.x / 128 - 1;
    flash_ring<QSTAGES> rq;
    flash_ring<STAGES> rk;
    if (group < 0) {
        registers_to_fetch<2>();
        if (threadIdx.x >= 32)
            return;
        for (int round = 0;; round++) {
            flash_item x = flash_query_item<BM>(w, flash_turn(round));
            if (lane == 0) {
                int st = rq.stage();
                barrier_wait(&bar_q[2 * st + 1], rq.parity() ^ 1);
                items[st] = x;
                if (x.first < 0) {
                    barrier_arrive(&bar_q[2 * st]);
                    return;
                }
                barrier_expect(&bar_q[2 * st], 2 * BM * D * 2);
                fetch_tile<D>(tile_q + st * BM * D, BM, &all.q, x.head * D, x.row0 + x.first, &bar_q[2 * st]);
                fetch_tile<D>(tile_do + st * BM * D, BM, &all.dout, x.head * D, x.row0 + x.first, &bar_q[2 * st]);
                rq.count++;
                flash_range blocks = flash_blocks<BM, BN>(w, x);
                for (int b = blocks.first; b < blocks.end; b++, rk.count++) {
                    st = rk.stage();
                    barrier_wait(&bar_k[2 * st + 1], rk.parity() ^ 1);
                    barrier_expect(&bar_k[2 * st], 2 * BN * D * 2);
                    fetch_tile<D>(tile_k + st * BN * D, BN, &all.k, x.kv * D, x.key0 + b * BN, &bar_k[2 * st]);
                    fetch_tile<D>(tile_v + st * BN * D, BN, &all.v, x.kv * D, x.key0 + b * BN, &bar_k[2 * st]);
                }
            }
            if (x.first < 0)
                return;
            __syncwarp();
        }
    }
    registers_to_multiply<2>();
    int own = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
    flash_score score = flash_score_of(w);
    float dq[DT][4], s[NT][4], dp[NT][4], lse2[2], delta[2];
    uint32_t ds[NT / 2][4];
    auto fetch_rows = [&](const flash_item &x) {
        for (int half = 0; half < 2; half++) {
            int row = x.first + own + half * 8;
            bool in = x.first >= 0 && row < x.queries;
            lse2[half] = in ? w.lse[(int64_t)(x.row0 + row) * w.ld_lse + x.head] * LOG2E : INFINITY;
            delta[half] = in ? w.delta[(int64_t)(x.row0 + row) * w.ld_delta + x.head] : 0;
        }
    };
    auto queue_both = [&](int q) { /* s and dp of the ring's block; q: the stage of its queries */
        products_begin();
        queue_scores<T, D, BM>(s, tile_q + q * BM * D, group * 64, tile_k + rk.stage() * BN * D);
        queue_scores<T, D, BM>(dp, tile_do + q * BM * D, group * 64, tile_v + rk.stage() * BN * D);
    };
    auto wait_block = [&](const flash_item &x, int b) {
        barrier_wait(&bar_k[2 * rk.stage()], rk.parity());
        if (b * BN + BN > x.keys) {
            zero_rows<BN, D>(tile_k + rk.stage() * BN * D, x.keys - b * BN);
            zero_rows<BN, D>(tile_v + rk.stage() * BN * D, x.keys - b * BN);
        }
    };
    auto weights = [&](const flash_item &x, int b) {
        int position0 = x.past + x.first, last = x.past + min(x.first + BM, x.queries) - 1;
        bool masked = b * BN + BN - 1 > position0 + group * 64 || (w.window && b * BN <= last - w.window);
        products_keep(s);
        flash90_weights<CAP>(
            score, s, masked, [&](int half) { return flash_keys_of(w, position0 + own + half * 8, b * BN + lane % 4 * 2); },
            [&](int, int j) { return lse2[j / 2]; }, [](int, const float (&)[4]) {});
    };
    auto gradients = [&] {
        products_keep(dp);
        for (int n = 0; n < NT; n++)
            for (int j = 0; j < 4; j++)
                dp[n][j] = s[n][j] * (dp[n][j] - delta[j / 2]);
    };
    barrier_wait(&bar_q[2 * rq.stage()], rq.parity());
    flash_item x = items[rq.stage()];
    if (x.first < 0)
        return;
    flash_range blocks = flash_blocks<BM, BN>(w, x);
    fetch_rows(x);
    clear(dq);
    wait_block(x, blocks.first);
    queue_both(rq.stage());
    products_wait<1>();
    weights(x, blocks.first);
    products_wait<0>();
    gradients();
    pack_all<T>(ds, dp);
    /* ds: of block b of x. What comes next, of the next item after the last block, is queued before its sum. */
    for (int b = blocks.first;;) {
        bool last = b + 1 == blocks.end;
        int next = b + 1, st = rk.stage();
        flash_item y = x;
        flash_ring<QSTAGES> rnext = rq;
        if (last) {
            rnext.count++;
            barrier_wait(&bar_q[2 * rnext.stage()], rnext.parity());
            y = items[rnext.stage()];
            blocks = flash_blocks<BM, BN>(w, y);
            next = blocks.first;
        }
        bool more = y.first >= 0; /* otherwise products of what the tiles held before, for nobody */
        rk.count++;
        if (more)
            wait_block(y, next);
        queue_both(rnext.stage());
        products_begin();
        queue_sum<T, NT>(dq, ds, tile_k + st * BN * D);
        if (last)
            fetch_rows(y);
        bool busy = group * 64 < y.queries - y.first; /* otherwise the rows of the group are nobody's */
        products_wait<2>();
        if (busy)
            weights(y, next);
        products_keep(s);
        schedule_wall(next);
        products_wait<1>();
        if (busy)
            gradients();
        products_keep(dp);
        schedule_wall(rk.count);
        products_wait<0>();
        products_keep(dq);
        barrier_arrive(&bar_k[2 * st + 1]);
        if (last) {
            int64_t row0 = x.row0 + x.first;
            float scale[2] = {w.scale, w.scale};
            store_rows<T, BM>(tile_q + rq.stage() * BM * D, own - lane / 4, dq, scale, w.dq + row0 * w.ld_dq + x.head * D, w.ld_dq, x.queries - x.first);
            group_barrier(1 + threadIdx.x / 128, 128);
            barrier_arrive(&bar_q[2 * rq.stage() + 1]);
            if (!more)
                return;
            clear(dq);
            x = y;
            rq = rnext;
        }
        pack_all<T>(ds, dp);
        b = next;
    }
#endif
}

#endif
