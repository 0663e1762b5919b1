/* The kernels of low-rank deltas: see skinny.cuh. All are bound by memory: x and dy are read once by each. */
#include "device/cuda/half/skinny.cuh"

/* --- Factors --- */

/* A thread packs eight columns; there are less than 2^31 of these. */
template <class H> static __global__ void pack_kernel(const __grid_constant__ low_group g, eight<H> *a_side, eight<H> *b_side, eight<H> *side_xa, uint32_t of_a, uint32_t of_b, uint32_t of_xa)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, low = (uint32_t)g.low;
    eight<H> u;
    for (int e = 0; e < 8; e++)
        u.v[e] = narrow<H>(0);
    if (i < of_a) {
        uint32_t units = (uint32_t)g.in / 8, row = i / units, k = i % units * 8, replica = row / low, j = row % low;
        int p = part_of(g, (int)j);
        const float *from = p < 0 ? nullptr : &real_at(g.part[p].a, replica * g.part[p].r + j - g.part[p].at, k);
        for (int e = 0; from && e < 8; e++)
            u.v[e] = narrow<H>(from[e]);
        a_side[i] = u;
    } else if (i -= of_a; i < of_b) {
        uint32_t units = low / 8, row = i / units, j0 = i % units * 8, replica = row / (uint32_t)g.out, n = row % (uint32_t)g.out;
        for (int p = 0; p < g.parts; p++) {
            const low_part &part = g.part[p];
            if (n < part.first || n >= part.first + part.out)
                continue;
            const float *from = &real_at(part.b, replica * part.out + n - part.first, 0);
            for (int e = 0; e < 8; e++) {
                int j = (int)j0 + e - part.at;
                if (j >= 0 && j < part.r)
                    u.v[e] = narrow<H>(part.scale * from[j]);
            }
        }
        b_side[i] = u;
    } else if (i -= of_b; i < of_xa) {
        uint32_t units = low / 8, t = i / units, j0 = i % units * 8;
        for (int e = 0; e < 8; e++)
            if (int p = part_of(g, (int)j0 + e); p >= 0)
                u.v[e] = narrow<H>(real_at(g.part[p].xa, t, j0 + e - g.part[p].at));
        side_xa[i] = u;
    }
}

void low_pack(tm_device *d, const char *op, const low_group &g, tm_dtype type, void *a_side, void *b_side, void *side_xa)
{
    int64_t of_a = a_side ? g.rows.replicas * g.low * (g.in / 8) : 0, of_b = b_side ? g.rows.replicas * g.out * (g.low / 8) : 0;
    int64_t of_xa = side_xa ? g.rows.n * (g.low / 8) : 0, all = of_a + of_b + of_xa;
    if (!all)
        return;
    with_type(type, [&](auto h) {
        typedef eight<decltype(h)> E;
        launch(d, op, pack_kernel<decltype(h)>, dim3((unsigned)((all + 127) / 128)), 128, 0, g, (E *)a_side, (E *)b_side, (E *)side_xa, (uint32_t)of_a, (uint32_t)of_b, (uint32_t)of_xa);
    });
}

/* --- xa = x A^T and dxa = dy (scale B): sums along rows --- */

/* A block: MT * 16 rows, a window of NT * 16 low columns, BUDGET bytes of shared memory. A stage of the pipeline holds 128
 * columns of x; a warp has half of the rows and the blocks of 16 columns that are warp % 4 modulo 4. */
template <int MT, int NT, int BUDGET> struct rows_shape {
    enum {
        M = 16 * MT, N = 16 * NT, K = 128, CHAINS = 4, THREADS = 256, LD = K + 8, LD_TURNED = N + 8, LD_SUM = N + 8,
        X = M * LD, F = N * LD > K * LD_TURNED ? N * LD : K * LD_TURNED, STAGE = X + F, FIT = BUDGET / (2 * STAGE), STAGES = FIT > 6 ? 6 : FIT,
        LOADS = STAGES * STAGE * 2, SUMS = CHAINS * M * LD_SUM * 4, BYTES = LOADS > SUMS ? LOADS : SUMS
    };
};
enum { ROWS_BUDGET = 96 << 10, ROWS_MUCH = 192 << 10 };

template <class H> struct rows_input {
    const H *x, *factor; /* x: of the group's first column */
    int64_t ld;
    H *side;
};

template <class H, int MT, int NT, int BUDGET, bool BACK, bool DROP>
static __global__ void __launch_bounds__(256) rows_kernel(const __grid_constant__ low_group g, const __grid_constant__ low_jobs jobs, rows_input<H> in)
{
    typedef rows_shape<MT, NT, BUDGET> S;
    constexpr int HT = MT / 2; /* a warp's rows, in 16 */
    TM_SHARED(unsigned char, shared, 16);
    __shared__ int position[S::M];
    __shared__ uint32_t example[S::M];
    H *stages = (H *)shared;
    const low_job job = jobs.job[blockIdx.y];
    low_tile tile;
    if (!tile_at(g.rows, blockIdx.x, S::M, &tile))
        return;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, chain = warp % S::CHAINS, top = warp / S::CHAINS * HT * 16, unit = threadIdx.x % 16, row16 = threadIdx.x / 16, columns = (int)job.columns;
    const H *x = in.x + tile.first * in.ld + job.first, *next_x = x + row16 * in.ld + unit * 8;
    const H *factor = in.factor + tile.replica * g.low * (BACK ? g.out : g.in), *next_factor;
    int offset[NT];
    bool there[NT];
    for (int i = 0; i < NT; i++)
        if (BACK) { /* b_side [N, low] */
            int at = threadIdx.x + i * S::THREADS, col = at % (2 * NT) * 8;
            offset[i] = at / (2 * NT) * g.low + col;
            there[i] = job.window + col < g.low;
        } else { /* a_side [low, K] */
            offset[i] = (row16 + 16 * i) * (int)g.in + unit * 8;
            there[i] = job.window + row16 + 16 * i < g.low;
        }
    next_factor = factor + (BACK ? job.first * g.low + job.window : job.window * g.in + job.first);
    tm_cuda_drop drop = g.part[job.part].drop;
    uint64_t key = 0;
    if (DROP) {
        key = g.step[tile.replica].dropout_key;
        for (int i = threadIdx.x; i < S::M; i += S::THREADS) {
            int64_t t = tile.first + (i < tile.count ? i : 0);
            position[i] = g.rows.position[t];
            example[i] = g.rows.example[t];
        }
    }

    auto load = [&](int step, int slot) {
        H *to = stages + slot * S::STAGE;
        int left = columns - step * S::K;
        bool inside = unit * 8 < left;
        for (int i = 0; i < MT; i++) {
            bool valid = inside && row16 + 16 * i < tile.count;
            copy_async(to + (row16 + 16 * i) * S::LD + unit * 8, valid ? next_x + i * 16 * in.ld : x, valid);
        }
        next_x += S::K;
        to += S::X;
        for (int i = 0; i < NT; i++)
            if (BACK) {
                int at = threadIdx.x + i * S::THREADS;
                bool valid = there[i] && at / (2 * NT) < left;
                copy_async(to + at / (2 * NT) * S::LD_TURNED + at % (2 * NT) * 8, valid ? next_factor + offset[i] : factor, valid);
            } else {
                bool valid = there[i] && inside;
                copy_async(to + (row16 + 16 * i) * S::LD + unit * 8, valid ? next_factor + offset[i] : factor, valid);
            }
        next_factor += BACK ? S::K * g.low : S::K;
    };

    float sum[HT][2 * NT][4] = {};
    int steps = (columns + S::K - 1) / S::K, loading = S::STAGES - 1, slot = 0;
    for (int s = 0; s < S::STAGES - 1; s++) {
        if (s < steps)
            load(s, s);
        copy_commit();
    }
    for (int step = 0; step < steps; step++) {
        copy_wait<S::STAGES - 2>();
        __syncthreads();
        if (step + S::STAGES - 1 < steps)
            load(step + S::STAGES - 1, loading);
        copy_commit();
        H *xs = stages + slot * S::STAGE, *fs = xs + S::X;
        loading = slot;
        slot = slot + 1 == S::STAGES ? 0 : slot + 1;
        for (int k = chain * 16; k < S::K; k += 16 * S::CHAINS) {
            if (DROP) { /* no other warp reads these */
                int quad = k + lane % 4 * 4;
#pragma unroll 4
                for (int row = top + lane / 4; row < top + HT * 16; row += 8)
                    drop_four(xs + row * S::LD + quad, drop, key, position[row], example[row], (uint32_t)(job.first + step * S::K + quad));
                __syncwarp();
            }
            uint32_t a[HT][4];
            for (int m = 0; m < HT; m++)
                load_a<S::LD>(a[m], (const bf16 *)xs, top + m * 16, k);
            for (int n = 0; n < NT; n++) {
                uint32_t b[4];
                if (BACK)
                    load_b_transposed<S::LD_TURNED>(b, (const bf16 *)fs, k, n * 16);
                else
                    load_b<S::LD>(b, (const bf16 *)fs, n * 16, k);
                for (int m = 0; m < HT; m++) {
                    mma<H>(sum[m][2 * n], a[m], b[0], b[1]);
                    mma<H>(sum[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }
    copy_wait<0>();
    __syncthreads();

    /* The chains, joined in order. */
    float *sums = (float *)shared;
    for (int m = 0; m < HT; m++)
        for (int n = 0; n < 2 * NT; n++)
            for (int i = 0; i < 4; i += 2) {
                float *to = sums + (chain * S::M + top + m * 16 + lane / 4 + i * 4) * S::LD_SUM + n * 8 + lane % 4 * 2;
                to[0] = sum[m][n][i];
                to[1] = sum[m][n][i + 1];
            }
    __syncthreads();
    for (int i = threadIdx.x; i < S::M * S::N; i += S::THREADS) {
        int row = i / S::N, col = i % S::N, j = job.window + col;
        if (row >= tile.count || j < job.from || j >= job.to)
            continue;
        const float *from = sums + row * S::LD_SUM + col;
        float v = from[0];
        for (int k = 1; k < S::CHAINS; k++)
            v += from[k * S::M * S::LD_SUM];
        int p = part_of(g, j);
        int64_t t = tile.first + row;
        if (p >= 0)
            real_at(BACK ? g.part[p].dxa : g.part[p].xa, t, j - g.part[p].at) = v;
        in.side[t * g.low + j] = narrow<H>(v);
    }
}

template <class H, int MT, int BUDGET, bool BACK, bool DROP>
static void launch_rows(tm_device *d, const char *op, const low_group &g, const low_jobs &jobs, const rows_input<H> &in)
{
    with_width(jobs.width, [&](auto width) {
        constexpr int NT = decltype(width)::value;
        typedef rows_shape<MT, NT, BUDGET> S;
        dim3 grid((unsigned)((g.rows.n + S::M - 1) / S::M + g.rows.replicas - 1), (unsigned)jobs.n);
        launch(d, op, rows_kernel<H, MT, NT, BUDGET, BACK, DROP>, grid, S::THREADS, S::BYTES, g, jobs, in);
    });
}

/* Neither the height of a block nor its shared memory changes a bit: few rows are cut into lower ones, and where a
 * processor has one block that takes all it can. */
template <class H, bool BACK, bool DROP>
static void run_rows(tm_device *d, const char *op, const low_group &g, const low_jobs &jobs, const rows_input<H> &in)
{
    int64_t blocks = ((g.rows.n + 63) / 64 + g.rows.replicas - 1) * jobs.n;
    int processors = tm_cuda_of(d)->processors, most = tm_cuda_of(d)->shared_most;
    if (2 * blocks <= processors)
        launch_rows<H, 2, ROWS_BUDGET, BACK, DROP>(d, op, g, jobs, in);
    else if (blocks <= processors && most >= ROWS_MUCH + 1024)
        launch_rows<H, 4, ROWS_MUCH, BACK, DROP>(d, op, g, jobs, in);
    else
        launch_rows<H, 4, ROWS_BUDGET, BACK, DROP>(d, op, g, jobs, in);
}

/* The low columns of part p, with the padding when it is the last. */
static int32_t end_of(const low_group &g, int p) { return p + 1 < g.parts ? g.part[p].at + g.part[p].r : g.low; }

void low_forward(tm_device *d, const char *op, const low_group &g, tm_tensor x, const void *a_side, void *side)
{
    low_jobs jobs = {};
    if (!g.drops)
        add_jobs(&jobs, 0, g.low, 0, 0, g.in);
    for (int p = 0; g.drops && p < g.parts; p++)
        add_jobs(&jobs, g.part[p].at, end_of(g, p), p, 0, g.in);
    with_type(x.dtype, [&](auto h) {
        typedef decltype(h) H;
        rows_input<H> in = {(const H *)x.data, (const H *)a_side, x.ld, (H *)side};
        if (g.drops)
            run_rows<H, false, true>(d, op, g, jobs, in);
        else
            run_rows<H, false, false>(d, op, g, jobs, in);
    });
}

void low_backward(tm_device *d, const char *op, const low_group &g, tm_tensor dy, const void *b_side, void *side)
{
    low_jobs jobs = {};
    for (int p = 0; p < g.parts; p++)
        add_jobs(&jobs, g.part[p].at, end_of(g, p), p, g.part[p].first, g.part[p].out);
    with_type(dy.dtype, [&](auto h) {
        typedef decltype(h) H;
        run_rows<H, true, false>(d, op, g, jobs, {(const H *)dy.data, (const H *)b_side, dy.ld, (H *)side});
    });
}

/* --- y += side b_side^T and dx += mask (side a_side): where no product takes them along --- */

enum { ADD = 64, ADD_LD = ADD + 8, ADD_LD_SUM = ADD + 4, ADD_BYTES = 2 * ADD * ADD_LD * 2 + ADD * ADD_LD_SUM * 4 };

template <class H, class Y, bool TURNED, bool DROP>
static __global__ void __launch_bounds__(128, 3) add_kernel(const __grid_constant__ low_group g, const __grid_constant__ low_jobs jobs, const H *side, const H *factor, Y *y, int64_t ld, int64_t columns, uint8_t *bits)
{
    TM_SHARED(unsigned char, shared, 16);
    H *ls = (H *)shared, *fs = ls + ADD * ADD_LD;
    float *sums = (float *)(fs + ADD * ADD_LD);
    low_tile tile;
    if (!tile_at(g.rows, blockIdx.y, ADD, &tile))
        return;
    int64_t c0 = blockIdx.x * (int64_t)ADD;
    side += tile.first * g.low;
    factor += tile.replica * g.low * columns;
    uint64_t key = DROP ? g.step[tile.replica].dropout_key : 0;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row8 = threadIdx.x / 8;
    int64_t c = c0 + threadIdx.x % 8 * 8;
    eight<Y> old[4];
    for (int i = 0; i < 4; i++)
        if (row8 + 16 * i < tile.count && c < columns)
            old[i] = *(const eight<Y> *)(y + (tile.first + row8 + 16 * i) * ld + c);
    float delta[4][8] = {};
    int32_t position[4];
    uint32_t example[4];
    for (int i = 0; DROP && i < 4; i++) {
        int64_t t = tile.first + (row8 + 16 * i < tile.count ? row8 + 16 * i : 0);
        position[i] = g.rows.position[t];
        example[i] = g.rows.example[t];
    }
    for (int w = 0; w < jobs.n; w++) {
        const low_job &job = jobs.job[w];
        for (int i = threadIdx.x; i < ADD * 8; i += 128) {
            int row = i / 8, u = i % 8 * 8;
            bool low = job.window + u < g.low, valid = row < tile.count && low;
            copy_async(ls + row * ADD_LD + u, valid ? side + row * g.low + job.window + u : side, valid);
            if (TURNED) { /* a_side [low, columns] */
                valid = job.window + row < g.low && c0 + u < columns;
                copy_async(fs + row * ADD_LD + u, valid ? factor + (job.window + row) * columns + c0 + u : factor, valid);
            } else {
                valid = c0 + row < columns && low;
                copy_async(fs + row * ADD_LD + u, valid ? factor + (c0 + row) * g.low + job.window + u : factor, valid);
            }
        }
        copy_commit();
        uint32_t masks = 0; /* eight bits for each of the four rows */
        if (DROP) {
            tm_cuda_drop drop = g.part[job.part].drop;
#pragma unroll 2
            for (int i = 0; i < 4; i++)
                masks |= mask_of_eight(drop, key, position[i], example[i], (uint32_t)c) << 8 * i;
            for (int i = 0; i < 4 && bits && c < columns; i++)
                if (row8 + 16 * i < tile.count)
                    bits[(job.part * g.rows.n + tile.first + row8 + 16 * i) * low_mask_pitch(columns) + c / 8] = (uint8_t)(masks >> 8 * i);
        }
        copy_wait<0>();
        __syncthreads();
        for (int i = threadIdx.x; DROP && i < ADD * ADD; i += 128) /* other parts' columns of the window */
            if (job.window + i % ADD < job.from || job.window + i % ADD >= job.to)
                ls[i / ADD * ADD_LD + i % ADD] = narrow<H>(0);
        if (DROP)
            __syncthreads();
        float sum[8][4] = {};
        for (int k = 0; job.window + k < job.to; k += 16) {
            uint32_t a[4], b[4];
            load_a<ADD_LD>(a, (const bf16 *)ls, warp * 16, k);
            for (int n = 0; n < 4; n++) {
                if (TURNED)
                    load_b_transposed<ADD_LD>(b, (const bf16 *)fs, k, n * 16);
                else
                    load_b<ADD_LD>(b, (const bf16 *)fs, n * 16, k);
                mma<H>(sum[2 * n], a, b[0], b[1]);
                mma<H>(sum[2 * n + 1], a, b[2], b[3]);
            }
        }
        for (int n = 0; n < 8; n++)
            for (int i = 0; i < 4; i++)
                sums[(warp * 16 + lane / 4 + i / 2 * 8) * ADD_LD_SUM + n * 8 + lane % 4 * 2 + i % 2] = sum[n][i];
        __syncthreads();
        for (int i = 0; i < 4; i++) {
            const float *v = sums + (row8 + 16 * i) * ADD_LD_SUM + threadIdx.x % 8 * 8;
            for (int e = 0; e < 8; e++)
                delta[i][e] += DROP ? (masks >> (8 * i + e) & 1 ? g.part[job.part].drop.scale : 0) * v[e] : v[e];
        }
    }
    for (int i = 0; i < 4; i++) {
        if (row8 + 16 * i >= tile.count || c >= columns)
            continue;
        for (int e = 0; e < 8; e++)
            old[i].v[e] = narrow<Y>(widen(old[i].v[e]) + delta[i][e]);
        *(eight<Y> *)(y + (tile.first + row8 + 16 * i) * ld + c) = old[i];
    }
}

template <class H, bool TURNED, bool DROP>
static void run_add(tm_device *d, const char *op, const low_group &g, const low_jobs &jobs, const void *side, const void *factor, tm_tensor y, void *bits)
{
    int64_t tiles = (g.rows.n + ADD - 1) / ADD + g.rows.replicas - 1;
    dim3 grid((unsigned)((y.cols + ADD - 1) / ADD), (unsigned)tiles);
    launch(d, op, add_kernel<H, H, TURNED, DROP>, grid, 128, ADD_BYTES, g, jobs, (const H *)side, (const H *)factor, (H *)y.data, y.ld, y.cols, (uint8_t *)bits);
}

void low_add_forward(tm_device *d, const char *op, const low_group &g, const void *side, const void *b_side, tm_tensor y)
{
    low_jobs jobs = {};
    y.cols = g.out;
    add_jobs(&jobs, 0, g.low, 0, 0, g.out);
    with_type(y.dtype, [&](auto h) { run_add<decltype(h), false, false>(d, op, g, jobs, side, b_side, y, nullptr); });
}

void low_add_backward(tm_device *d, const char *op, const low_group &g, const void *side, const void *a_side, tm_tensor dx, void *bits)
{
    low_jobs jobs = {};
    dx.cols = g.in;
    if (!g.drops)
        add_jobs(&jobs, 0, g.low, 0, 0, g.in);
    for (int p = 0; g.drops && p < g.parts; p++)
        add_jobs(&jobs, g.part[p].at, g.part[p].at + g.part[p].r, p, 0, g.in);
    with_type(dx.dtype, [&](auto h) {
        if (g.drops)
            run_add<decltype(h), true, true>(d, op, g, jobs, side, a_side, dx, bits);
        else
            run_add<decltype(h), true, false>(d, op, g, jobs, side, a_side, dx, bits);
    });
}
