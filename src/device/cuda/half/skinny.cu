/* The kernels of low-rank deltas: see skinny.cuh. All are bound by memory: x and dy are read once by each. */
#include "device/cuda/half/skinny.cuh"

#include <type_traits>

/* f(H()) for the type. */
template <class F> static void with_type(tm_dtype type, F f)
{
    if (type == TM_F16)
        f(f16());
    else
        f(bf16());
}

/* f(std::integral_constant<int, width>()) for a window of `width` times 16 columns. */
template <class F> static void with_width(int width, F f)
{
    switch (width) {
    case 1: f(std::integral_constant<int, 1>()); break;
    case 2: f(std::integral_constant<int, 2>()); break;
    case 3: f(std::integral_constant<int, 3>()); break;
    default: f(std::integral_constant<int, 4>()); break;
    }
}

template <class... P> static void launch(tm_device *d, const char *op, void (*kernel)(P...), dim3 grid, int threads, int shared, const P &...p)
{
    tm_cuda *c = tm_cuda_of(d);
    tm_cuda_check(c, op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    kernel<<<grid, threads, shared, c->stream>>>(p...);
    tm_cuda_check(c, op, cudaGetLastError());
}

/* --- Factors --- */

template <class H> struct alignas(16) eight {
    H v[8];
};

/* A thread packs eight columns; there are less than 2^31 of these. */
template <class H> static __global__ void pack_kernel(const __grid_constant__ low_group g, eight<H> *a_side, eight<H> *b_side, uint32_t of_a, uint32_t of_b)
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
    }
}

void low_pack(tm_device *d, const char *op, const low_group &g, tm_dtype type, void *a_side, void *b_side)
{
    int64_t of_a = a_side ? g.rows.replicas * g.low * (g.in / 8) : 0, of_b = b_side ? g.rows.replicas * g.out * (g.low / 8) : 0;
    if (!(of_a + of_b))
        return;
    with_type(type, [&](auto h) {
        typedef eight<decltype(h)> E;
        launch(d, op, pack_kernel<decltype(h)>, dim3((unsigned)((of_a + of_b + 127) / 128)), 128, 0, g, (E *)a_side, (E *)b_side, (uint32_t)of_a, (uint32_t)of_b);
    });
}

template <class H, class W> static __global__ void narrow_kernel(const W *w, int64_t ld, int64_t rows, int64_t cols, H *out)
{
    int64_t i = (blockIdx.x * (int64_t)blockDim.x + threadIdx.x) * 8, row = i / cols, col = i % cols;
    if (row >= rows)
        return;
    eight<H> u;
    for (int e = 0; e < 8; e++)
        u.v[e] = narrow<H>(widen(w[row * ld + col + e]));
    *(eight<H> *)(out + i) = u;
}

void low_narrow(tm_device *d, const char *op, tm_tensor w, tm_dtype type, void *out)
{
    dim3 grid((unsigned)((w.rows * w.cols / 8 + 255) / 256));
    with_type(type, [&](auto h) {
        typedef decltype(h) H;
        if (w.dtype == TM_F32)
            launch(d, op, narrow_kernel<H, float>, grid, 256, 0, (const float *)w.data, w.ld, w.rows, w.cols, (H *)out);
        else
            with_type(w.dtype, [&](auto from) {
                typedef decltype(from) W;
                launch(d, op, narrow_kernel<H, W>, grid, 256, 0, (const W *)w.data, w.ld, w.rows, w.cols, (H *)out);
            });
    });
}

/* --- xa = x A^T and dxa = dy (scale B): sums along rows --- */

/* A block: MT * 16 rows, a window of NT * 16 low columns. A stage of the pipeline holds 128 columns of x, 16 a warp. */
template <int MT, int NT> struct rows_shape {
    enum {
        M = 16 * MT, N = 16 * NT, K = 128, THREADS = 256, WARPS = THREADS / 32, LD = K + 8, LD_TURNED = N + 8, LD_SUM = 24,
        X = M * LD, F = N * LD > K * LD_TURNED ? N * LD : K * LD_TURNED, STAGE = X + F, FIT = 98304 / (2 * STAGE), STAGES = FIT > 4 ? 4 : FIT,
        LOADS = STAGES * STAGE * 2, SUMS = WARPS * M * LD_SUM * 4, BYTES = LOADS > SUMS ? LOADS : SUMS
    };
};

template <class H> struct rows_input {
    const H *x, *factor; /* x: of the group's first column */
    int64_t ld;
    H *side, *side_xa;
};

template <class H, int MT, int NT, bool BACK, bool DROP>
static __global__ void __launch_bounds__(256) rows_kernel(const __grid_constant__ low_group g, const __grid_constant__ low_jobs jobs, rows_input<H> in)
{
    typedef rows_shape<MT, NT> S;
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ int position[S::M];
    __shared__ uint32_t example[S::M];
    H *stages = (H *)shared;
    const low_job job = jobs.job[blockIdx.y];
    low_tile tile;
    if (!tile_at(g.rows, blockIdx.x, S::M, &tile))
        return;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, unit = threadIdx.x % 16, row16 = threadIdx.x / 16, columns = (int)job.columns;
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
        for (int i = threadIdx.x; i < tile.count; i += S::THREADS) {
            position[i] = g.rows.position[tile.first + i];
            example[i] = g.rows.example[tile.first + i];
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

    float sum[MT][2 * NT][4] = {};
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
        if (DROP) { /* a warp's own columns: no other reads them */
            int quad = warp * 16 + lane % 4 * 4;
            for (int row = lane / 4; row < tile.count; row += 8)
                drop_four(xs + row * S::LD + quad, drop, key, position[row], example[row], (uint32_t)(job.first + step * S::K + quad));
            __syncwarp();
        }
        uint32_t a[MT][4];
        for (int m = 0; m < MT; m++)
            load_a<S::LD>(a[m], (const bf16 *)xs, m * 16, warp * 16);
        for (int n = 0; n < NT; n++) {
            uint32_t b[4];
            if (BACK)
                load_b_transposed<S::LD_TURNED>(b, (const bf16 *)fs, warp * 16, n * 16);
            else
                load_b<S::LD>(b, (const bf16 *)fs, n * 16, warp * 16);
            for (int m = 0; m < MT; m++) {
                mma<H>(sum[m][2 * n], a[m], b[0], b[1]);
                mma<H>(sum[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
    copy_wait<0>();
    __syncthreads();

    /* The warps' chains, joined in order, sixteen columns at a time. */
    float *sums = (float *)shared;
    for (int n = 0; n < NT; n++) {
        for (int m = 0; m < MT; m++)
            for (int i = 0; i < 8; i += 2) {
                float *to = sums + (warp * S::M + m * 16 + lane / 4 + i % 4 * 4) * S::LD_SUM + i / 4 * 8 + lane % 4 * 2;
                to[0] = sum[m][2 * n + i / 4][i % 4];
                to[1] = sum[m][2 * n + i / 4][i % 4 + 1];
            }
        __syncthreads();
        for (int i = threadIdx.x; i < S::M * 16; i += S::THREADS) {
            int row = i / 16, j = job.window + n * 16 + i % 16;
            if (row >= tile.count || j < job.from || j >= job.to)
                continue;
            const float *from = sums + row * S::LD_SUM + i % 16;
            float v = from[0];
            for (int w = 1; w < S::WARPS; w++)
                v += from[w * S::M * S::LD_SUM];
            int p = part_of(g, j);
            int64_t t = tile.first + row;
            if (p >= 0)
                real_at(BACK ? g.part[p].dxa : g.part[p].xa, t, j - g.part[p].at) = v;
            in.side[t * g.low + j] = narrow<H>(v);
            if (BACK)
                in.side_xa[t * g.low + j] = narrow<H>(p >= 0 ? real_at(g.part[p].xa, t, j - g.part[p].at) : 0);
        }
        __syncthreads();
    }
}

template <class H, int MT, bool BACK, bool DROP>
static void launch_rows(tm_device *d, const char *op, const low_group &g, const low_jobs &jobs, const rows_input<H> &in)
{
    with_width(jobs.width, [&](auto width) {
        constexpr int NT = decltype(width)::value;
        typedef rows_shape<MT, NT> S;
        dim3 grid((unsigned)((g.rows.n + S::M - 1) / S::M + g.rows.replicas - 1), (unsigned)jobs.n);
        launch(d, op, rows_kernel<H, MT, NT, BACK, DROP>, grid, S::THREADS, S::BYTES, g, jobs, in);
    });
}

/* The height of a block changes no bits: few rows are cut into lower ones. */
template <class H, bool BACK, bool DROP>
static void run_rows(tm_device *d, const char *op, const low_group &g, const low_jobs &jobs, const rows_input<H> &in)
{
    if ((g.rows.n + 63) / 64 * jobs.n <= tm_cuda_of(d)->processors / 2)
        launch_rows<H, 1, BACK, DROP>(d, op, g, jobs, in);
    else
        launch_rows<H, 4, BACK, DROP>(d, op, g, jobs, in);
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
        rows_input<H> in = {(const H *)x.data, (const H *)a_side, x.ld, (H *)side, nullptr};
        if (g.drops)
            run_rows<H, false, true>(d, op, g, jobs, in);
        else
            run_rows<H, false, false>(d, op, g, jobs, in);
    });
}

void low_backward(tm_device *d, const char *op, const low_group &g, tm_tensor dy, const void *b_side, void *side, void *side_xa)
{
    low_jobs jobs = {};
    for (int p = 0; p < g.parts; p++)
        add_jobs(&jobs, g.part[p].at, end_of(g, p), p, g.part[p].first, g.part[p].out);
    with_type(dy.dtype, [&](auto h) {
        typedef decltype(h) H;
        run_rows<H, true, false>(d, op, g, jobs, {(const H *)dy.data, (const H *)b_side, dy.ld, (H *)side, (H *)side_xa});
    });
}

/* --- da += dxa^T x and db += scale dy^T xa: sums over the rows of chunks --- */

/* A block: a strip of C columns, a window of at most NT * 16 low columns, all chunks of a replica. Its warps take the
 * chunks in turn, each through a pipeline of its own, and add their sums to the block's in the order of the chunks. Neither
 * the strip nor the number of warps changes a bit. */
template <int C, int NT> struct columns_shape {
    enum {
        N = 16 * NT, T = 16, UNITS = C / 8, LANE_ROWS = 32 / UNITS, LD = C + 8, LD_LOW = N + 8, X = T * LD, LOW = T * LD_LOW, BITS = T * 4 /* of the mask, 8 bytes a row */,
        STAGE = X + LOW + BITS, STAGES = C > 32 ? 4 : 6, TOTAL = C * N * 4 + 16, WARP = STAGES * STAGE * 2, FRAGMENTS = C / 16 * 2 * NT
    };
};

struct columns_job {
    low_job low;
    const void *x, *side;
    const uint8_t *bits; /* |0: the mask, when x is dropped: a bit a channel */
    int64_t ld;
    bool into_b, masked;
};
struct columns_jobs {
    int32_t n;
    columns_job job[2 * LOW_JOBS];
};

/* Where the sum of column c (of the long side) and low column j goes, or NULL. */
TM_LANE float *gradient_at(const low_group &g, const columns_job &job, int32_t replica, int64_t c, int j)
{
    if (j < job.low.from || j >= job.low.to || c >= job.low.columns)
        return nullptr;
    int p = part_of(g, j);
    if (p < 0)
        return nullptr;
    const low_part &part = g.part[p];
    const tm_tensor &to = job.into_b ? part.db : part.da;
    if (!to.data)
        return nullptr;
    return job.into_b ? &real_at(to, replica * part.out + c, j - part.at) : &real_at(to, replica * part.r + j - part.at, c);
}

/* BYTES bytes of a mask in the background. */
template <int BYTES> TM_LANE void copy_mask(void *shared, const void *global)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(BYTES));
}

/* drop_four for eight elements with the mask given. */
template <class H> TM_LANE void keep_eight(H *v, uint32_t mask, float scale)
{
    eight<H> u = *(const eight<H> *)v;
    for (int e = 0; e < 8; e++)
        u.v[e] = narrow<H>((mask >> e & 1 ? scale : 0) * widen(u.v[e]));
    *(eight<H> *)v = u;
}

/* The next sixteen rows of a warp's chunks. */
struct chunk_cursor {
    const int32_t *chunk;
    int index, last, step, row, end;
    __device__ void open()
    {
        for (; index < last; index += step) {
            row = chunk[index];
            end = chunk[index + 1];
            if (row < end)
                return;
        }
    }
    /* Whether another chunk was entered. */
    __device__ bool next()
    {
        row += 16;
        if (row < end)
            return false;
        index += step;
        open();
        return true;
    }
};

template <class H, int C, int NT>
static __global__ void __launch_bounds__(256) columns_kernel(const __grid_constant__ low_group g, const __grid_constant__ columns_jobs jobs)
{
    typedef columns_shape<C, NT> S;
    extern __shared__ __align__(16) unsigned char shared[];
    float4 *total = (float4 *)shared;
    volatile int *turn = (volatile int *)(shared + C * S::N * 4);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32, replica = blockIdx.y;
    H *stages = (H *)(shared + S::TOTAL + warp * S::WARP);
    int64_t strip = blockIdx.x;
    int which = 0;
    while (strip >= (jobs.job[which].low.columns + C - 1) / C)
        strip -= (jobs.job[which++].low.columns + C - 1) / C;
    const columns_job job = jobs.job[which];
    int64_t c0 = strip * C;
    int first = g.rows.group_chunk[replica], last = g.rows.group_chunk[replica + 1], width = (job.low.to - job.low.window + 15) / 16;
    if (first >= last)
        return;

    auto each = [&](auto f) { /* f(element of the total, address of the gradient) */
        for (int i = threadIdx.x; i < S::FRAGMENTS * 32; i += blockDim.x)
            for (int e = 0; e < 4; e++) {
                int m = i / 32 / (2 * NT), n = i / 32 % (2 * NT), l = i % 32;
                f((float *)&total[i] + e, gradient_at(g, job, replica, c0 + m * 16 + l / 4 + e / 2 * 8, job.low.window + n * 8 + l % 4 * 2 + e % 2));
            }
    };
    each([](float *sum, const float *old) { *sum = old ? *old : 0; });
    if (threadIdx.x == 0)
        *turn = first;
    __syncthreads();

    chunk_cursor ahead = {g.rows.chunk, first + warp, last, warps, 0, 0};
    ahead.open();
    int x_row = lane / S::UNITS, x_col = lane % S::UNITS * 8, low_row = lane / 2, low_col = lane % 2 * 8, loading = 0, slot = 0;
    bool inside = c0 + x_col < job.low.columns;
    const H *x = (const H *)job.x + job.low.first + (inside ? c0 + x_col : 0), *side = (const H *)job.side + job.low.window + low_col;
    const H *next_x = x, *next_side = side;
    const uint8_t *bits = job.masked && job.bits ? job.bits + c0 / 8 : nullptr;
    int64_t pitch = low_mask_pitch(g.in);
    auto enter = [&] { /* the cursor stands at a chunk's beginning */
        next_x = x + (ahead.row + x_row) * job.ld;
        next_side = side + (int64_t)(ahead.row + low_row) * g.low;
    };
    auto load = [&] {
        if (ahead.index < last) {
            H *to = stages + loading * S::STAGE + x_row * S::LD + x_col;
            int left = ahead.end - ahead.row;
            for (int i = 0; i < S::T / S::LANE_ROWS; i++) {
                bool valid = inside && x_row + i * S::LANE_ROWS < left;
                copy_async(to + i * S::LANE_ROWS * S::LD, valid ? next_x + i * S::LANE_ROWS * job.ld : x, valid);
            }
            to = stages + loading * S::STAGE + S::X + low_row * S::LD_LOW + low_col;
            for (int n = 0; n < NT; n++)
                if (n < width) {
                    bool valid = low_row < left;
                    copy_async(to + n * 16, valid ? next_side + n * 16 : side, valid);
                }
            if (bits && lane < S::T && lane < left)
                copy_mask<C / 8>(stages + loading * S::STAGE + S::X + S::LOW + lane * 4, bits + (ahead.row + lane) * pitch);
            loading = loading + 1 == S::STAGES ? 0 : loading + 1;
            next_x += S::T * job.ld;
            next_side += S::T * g.low;
            if (ahead.next())
                enter();
        }
        copy_commit();
    };
    enter();
    for (int s = 0; s < S::STAGES - 1; s++)
        load();

    float scale = job.into_b ? g.part[job.low.part].scale : 1;
    tm_cuda_drop drop = g.part[job.low.part].drop;
    uint64_t key = job.masked ? g.step[replica].dropout_key : 0;
    for (int c = first + warp; c < last; c += warps) {
        float sum[C / 16][2 * NT][4] = {};
        int row = g.rows.chunk[c], end = g.rows.chunk[c + 1];
        bool some = row < end;
        for (; row < end; row += S::T) {
            copy_wait<S::STAGES - 2>();
            __syncwarp();
            H *xs = stages + slot * S::STAGE, *ls = xs + S::X;
            slot = slot + 1 == S::STAGES ? 0 : slot + 1;
            load();
            if (bits) {
                const uint8_t *of = (const uint8_t *)(xs + S::X + S::LOW) + x_col / 8;
                for (int i = x_row; i < S::T; i += S::LANE_ROWS)
                    keep_eight(xs + i * S::LD + x_col, of[i * 8], drop.scale);
                __syncwarp();
            } else if (job.masked) {
                constexpr int QUADS = C / 4;
                int quad = lane % QUADS * 4;
                for (int i = lane / QUADS; i < S::T && row + i < end; i += 32 / QUADS)
                    drop_four(xs + i * S::LD + quad, drop, key, g.rows.position[row + i], g.rows.example[row + i], (uint32_t)(job.low.first + c0 + quad));
                __syncwarp();
            }
            uint32_t b[NT][4];
            for (int n = 0; n < NT; n++)
                if (n < width)
                    load_b_transposed<S::LD_LOW>(b[n], (const bf16 *)ls, 0, n * 16);
            for (int m = 0; m < C / 16; m++) {
                uint32_t a[4];
                load_a_transposed<S::LD>(a, xs, 0, m * 16);
                for (int n = 0; n < NT; n++)
                    if (n < width) {
                        mma<H>(sum[m][2 * n], a, b[n][0], b[n][1]);
                        mma<H>(sum[m][2 * n + 1], a, b[n][2], b[n][3]);
                    }
            }
        }
        while (*turn != c)
            ;
        __syncwarp();
        __threadfence_block();
        if (some)
            for (int m = 0; m < C / 16; m++)
                for (int n = 0; n < 2 * NT; n++)
                    if (n < 2 * width) {
                        float4 *to = &total[(m * 2 * NT + n) * 32 + lane], v = *to;
                        *to = {fmaf(scale, sum[m][n][0], v.x), fmaf(scale, sum[m][n][1], v.y), fmaf(scale, sum[m][n][2], v.z), fmaf(scale, sum[m][n][3], v.w)};
                    }
        __threadfence_block();
        __syncwarp();
        if (lane == 0)
            *turn = c + 1;
    }
    copy_wait<0>();
    __syncthreads();
    each([](const float *sum, float *to) {
        if (to)
            *to = *sum;
    });
}

static void add_columns(columns_jobs *all, const low_jobs &jobs, tm_tensor x, const void *side, bool into_b, bool masked, const uint8_t *bits, int64_t bits_each)
{
    for (int i = 0; i < jobs.n; i++)
        all->job[all->n++] = {jobs.job[i], x.data, side, bits ? bits + jobs.job[i].part * bits_each : nullptr, x.ld, into_b, masked};
}

static int64_t strips_of(const columns_jobs &jobs, int64_t wide)
{
    int64_t strips = 0;
    for (int i = 0; i < jobs.n; i++)
        strips += (jobs.job[i].low.columns + wide - 1) / wide;
    return strips;
}

template <class H, int C, int NT> static void launch_columns(tm_device *d, const char *op, const low_group &g, const columns_jobs &jobs)
{
    typedef columns_shape<C, NT> S;
    int most = 0;
    tm_cuda_check(tm_cuda_of(d), op, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    int warps = (most - S::TOTAL) / S::WARP;
    warps = warps > 8 ? 8 : warps;
    launch(d, op, columns_kernel<H, C, NT>, dim3((unsigned)strips_of(jobs, C), (unsigned)g.rows.replicas), 32 * warps, S::TOTAL + warps * S::WARP, g, jobs);
}

void low_gradients(tm_device *d, const char *op, const low_group &g, tm_tensor x, tm_tensor dy, const void *side, const void *side_xa, const void *bits)
{
    low_jobs of_a = {}, of_b = {};
    bool some = false;
    for (int p = 0; p < g.parts; p++) {
        int32_t from = g.part[p].at, to = from + g.part[p].r;
        some |= g.part[p].da.data != nullptr;
        if (g.drops && g.part[p].da.data)
            add_jobs(&of_a, from, to, p, 0, g.in);
        if (g.part[p].db.data)
            add_jobs(&of_b, from, to, p, g.part[p].first, g.part[p].out);
    }
    if (!g.drops && some)
        add_jobs(&of_a, 0, g.rank, 0, 0, g.in);
    columns_jobs jobs = {};
    add_columns(&jobs, of_a, x, side, false, g.drops, (const uint8_t *)bits, g.rows.n * low_mask_pitch(g.in));
    add_columns(&jobs, of_b, dy, side_xa, true, false, nullptr, 0);
    if (!jobs.n)
        return;
    int width = of_a.width > of_b.width ? of_a.width : of_b.width;
    with_type(of_a.n ? x.dtype : dy.dtype, [&](auto h) {
        typedef decltype(h) H;
        with_width(width, [&](auto nt) {
            constexpr int NT = decltype(nt)::value;
            if (strips_of(jobs, 64) * g.rows.replicas < tm_cuda_of(d)->processors * 3 / 4)
                launch_columns<H, 32, NT>(d, op, g, jobs);
            else
                launch_columns<H, 64, NT>(d, op, g, jobs);
        });
    });
}

/* --- y += side b_side^T and dx += mask (side a_side): where no product takes them along --- */

enum { ADD = 64, ADD_LD = ADD + 8, ADD_LD_SUM = ADD + 4, ADD_BYTES = 2 * ADD * ADD_LD * 2 + ADD * ADD_LD_SUM * 4 };

template <class H, class Y, bool TURNED, bool DROP>
static __global__ void __launch_bounds__(128) add_kernel(const __grid_constant__ low_group g, const __grid_constant__ low_jobs jobs, const H *side, const H *factor, Y *y, int64_t ld, int64_t columns, uint8_t *bits)
{
    extern __shared__ __align__(16) unsigned char shared[];
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
            int row = threadIdx.x / 8 + 16 * i, col = threadIdx.x % 8 * 8;
            float v[8];
            for (int e = 0; e < 8; e++)
                v[e] = sums[row * ADD_LD_SUM + col + e];
            if (DROP && row < tile.count) {
                uint32_t mask = mask_of_eight(g.part[job.part].drop, key, g.rows.position[tile.first + row], g.rows.example[tile.first + row], (uint32_t)(c0 + col));
                for (int e = 0; e < 8; e++)
                    v[e] *= mask >> e & 1 ? g.part[job.part].drop.scale : 0;
                if (bits)
                    bits[(job.part * g.rows.n + tile.first + row) * low_mask_pitch(columns) + c / 8] = (uint8_t)mask;
            }
            for (int e = 0; e < 8; e++)
                delta[i][e] += v[e];
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
