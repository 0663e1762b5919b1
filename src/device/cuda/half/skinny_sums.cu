/* Gradients of low-rank factors: da += dxa^T x and db += scale dy^T xa, sums over the rows of chunks. See skinny.cuh.
 *
 * A block takes a strip of 128 columns of x (or dy) and adds up its chunks one after the other. Where there are too few
 * strips for that, each chunk of a strip has a block of its own, its sum goes to memory, and a second kernel adds
 * the sums in order: the same additions. */
#include "device/cuda/half/skinny.cuh"

/* A window of at most NT * 16 low columns. A stage of the pipeline holds 32 rows of one chunk; a warp has 16 columns. */
template <int NT> struct strip_shape {
    enum {
        C = 128, T = 32, N = 16 * NT, THREADS = 256, LD = C + 8, LD_LOW = N + 8, X = T * LD, LOW = T * LD_LOW, BITS = T * C / 16,
        STAGE = X + LOW + BITS, STAGES = 4, BYTES = STAGES * STAGE * 2
    };
};
enum { STRIP = TM_LOW_STRIP };

struct strip_job {
    low_job low;
    const void *x, *side;
    const uint8_t *bits; /* |0: the mask, when x is dropped: a bit a channel */
    int64_t ld;
    bool into_b, masked;
    int32_t strips, width; /* width: of the window, in 16 columns */
    int64_t base;          /* where its sums begin among those of a chunk, in float4 */
};
struct strip_jobs {
    int32_t n, strips;
    int64_t sums; /* float4 of a chunk */
    strip_job job[2 * LOW_JOBS];
};

TM_LANE strip_job strip_at(const strip_jobs &jobs, int *strip)
{
    int i = 0;
    for (; *strip >= jobs.job[i].strips; i++)
        *strip -= jobs.job[i].strips;
    return jobs.job[i];
}

/* Where the sum of column c (of the long side) and low column j goes, or NULL. */
TM_LANE float *gradient_at(const low_group &g, const strip_job &job, int32_t replica, int64_t c, int j)
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

/* f(element of an accumulator, its gradient): fragment n of sixteen columns, tile `tile` of the job's. */
template <class F> TM_LANE void each_gradient(const low_group &g, const strip_job &job, int32_t replica, int tile, int n, F f)
{
    int lane = threadIdx.x % 32;
    for (int e = 0; e < 4; e++)
        f(e, gradient_at(g, job, replica, tile * (int64_t)16 + lane / 4 + e / 2 * 8, job.low.window + n * 8 + lane % 4 * 2 + e % 2));
}

/* Where a lane keeps the sum of a chunk, among those of the chunk. */
TM_LANE int64_t sum_at(const strip_job &job, int tile, int n) { return job.base + ((int64_t)tile * 2 * job.width + n) * 32 + threadIdx.x % 32; }

TM_LANE void add_sum(float (&total)[4], const float (&sum)[4], float scale)
{
    for (int e = 0; e < 4; e++)
        total[e] = fmaf(scale, sum[e], total[e]);
}

/* drop_four for eight elements with the mask given. */
template <class H> TM_LANE void keep_eight(H *v, uint32_t mask, float scale)
{
    eight<H> u = *(const eight<H> *)v;
    for (int e = 0; e < 8; e++)
        u.v[e] = narrow<H>((mask >> e & 1 ? scale : 0) * widen(u.v[e]));
    *(eight<H> *)v = u;
}

/* Rows [row, end) of chunk `index` are ahead; a chunk begins where the one before it ends. */
struct chunk_cursor {
    const int32_t *chunk;
    int index, last, row, end, after;
    __device__ chunk_cursor(const int32_t *bounds, int first, int end_chunk) : chunk(bounds), index(first), last(end_chunk), row(bounds[first]), end(bounds[first + 1])
    {
        look();
        skip();
    }
    __device__ void look() { after = index + 2 <= last ? chunk[index + 2] : 0; }
    __device__ void skip()
    {
        while (index < last && row >= end) {
            index++;
            row = end;
            end = after;
            look();
        }
    }
    __device__ void next(int rows)
    {
        row += rows;
        skip();
    }
};

template <class H, int NT, bool APART>
static __global__ void __launch_bounds__(256) strips_kernel(const __grid_constant__ low_group g, const __grid_constant__ strip_jobs jobs, float4 *sums, int first_chunk)
{
    typedef strip_shape<NT> S;
    TM_SHARED(unsigned char, shared, 16);
    __shared__ int2 held[S::STAGES]; /* the first row, and 2 * rows + whether the chunk ends; 0: no more */
    H *stages = (H *)shared;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, strip = blockIdx.x, replica = APART ? 0 : blockIdx.y;
    const strip_job job = strip_at(jobs, &strip);
    int first = APART ? first_chunk + blockIdx.y : g.rows.group_chunk[replica], last = APART ? first + 1 : g.rows.group_chunk[replica + 1];
    if (first >= last || g.rows.chunk[first] >= g.rows.chunk[last])
        return;
    if (APART && job.masked && !job.bits)
        replica = replica_of(g.rows, g.rows.chunk[first]);

    chunk_cursor ahead(g.rows.chunk, first, last);
    int64_t c0 = strip * (int64_t)STRIP;
    int unit = threadIdx.x % 16, row16 = threadIdx.x / 16, low_row = threadIdx.x / (2 * NT), low_unit = threadIdx.x % (2 * NT);
    bool inside = c0 + unit * 8 < job.low.columns, low_inside = low_row < S::T && low_unit < 2 * job.width;
    const H *x = (const H *)job.x + job.low.first + (inside ? c0 + unit * 8 : 0), *side = (const H *)job.side + job.low.window + low_unit * 8;
    const uint8_t *bits = job.masked && job.bits ? job.bits + c0 / 8 : nullptr;
    int64_t pitch = low_mask_pitch(g.in);
    auto load = [&](int slot) {
        int left = ahead.index < last ? min(ahead.end - ahead.row, (int)S::T) : 0, row = ahead.row, chunk = ahead.index;
        if (left) {
            H *to = stages + slot * S::STAGE;
            const H *from = x + (row + row16) * job.ld;
            for (int i = 0; i < S::T; i += 16) {
                bool valid = inside && row16 + i < left;
                copy_async(to + (row16 + i) * S::LD + unit * 8, valid ? from + i * job.ld : x, valid);
            }
            if (low_inside) {
                bool valid = low_row < left;
                copy_async(to + S::X + low_row * S::LD_LOW + low_unit * 8, valid ? side + (int64_t)(row + low_row) * g.low : side, valid);
            }
            if (bits && threadIdx.x < S::T) {
                bool valid = (int)threadIdx.x < left;
                copy_async(to + S::X + S::LOW + threadIdx.x * 8, valid ? bits + (row + threadIdx.x) * pitch : bits, valid);
            }
            ahead.next(left);
        }
        if (threadIdx.x == 0)
            held[slot] = {row, 2 * left + (ahead.index != chunk)};
        copy_commit();
    };
    for (int s = 0; s < S::STAGES - 1; s++)
        load(s);

    float scale = job.into_b ? g.part[job.low.part].scale : 1;
    tm_cuda_drop drop = g.part[job.low.part].drop;
    uint64_t key = job.masked && !bits ? g.step[replica].dropout_key : 0;
    float sum[2 * NT][4] = {}, total[2 * NT][4] = {};
    if (!APART)
        for (int n = 0; n < 2 * NT; n++)
            each_gradient(g, job, replica, strip * 8 + warp, n, [&](int e, const float *old) { total[n][e] = old ? *old : 0; });
    for (int slot = 0, loading = S::STAGES - 1;; loading = slot, slot = slot + 1 == S::STAGES ? 0 : slot + 1) {
        copy_wait<S::STAGES - 2>();
        __syncthreads();
        int row = held[slot].x, left = held[slot].y / 2;
        bool ends = held[slot].y % 2;
        if (!left)
            break;
        load(loading);
        H *xs = stages + slot * S::STAGE, *ls = xs + S::X;
        if (job.masked) { /* a warp's own columns: no other reads them */
            if (bits) {
                uint32_t mask = *(const uint16_t *)(ls + S::LOW + lane * 8 + warp);
                keep_eight(xs + lane * S::LD + warp * 16, mask & 0xff, drop.scale);
                keep_eight(xs + lane * S::LD + warp * 16 + 8, mask >> 8, drop.scale);
            } else
                for (int i = lane / 4; i < left; i += 8)
                    drop_four(xs + i * S::LD + warp * 16 + lane % 4 * 4, drop, key, g.rows.position[row + i], g.rows.example[row + i], (uint32_t)(job.low.first + c0 + warp * 16 + lane % 4 * 4));
            __syncwarp();
        }
        for (int k = 0; k < S::T; k += 16)
            if (k < left) {
                uint32_t a[4], b[4];
                load_a_transposed<S::LD>(a, xs, k, warp * 16);
                for (int n = 0; n < NT; n++)
                    if (n < job.width) {
                        load_b_transposed<S::LD_LOW>(b, (const bf16 *)ls, k, n * 16);
                        mma<H>(sum[2 * n], a, b[0], b[1]);
                        mma<H>(sum[2 * n + 1], a, b[2], b[3]);
                    }
            }
        if (!ends)
            continue;
        for (int n = 0; n < 2 * NT; n++) {
            if (!APART)
                add_sum(total[n], sum[n], scale);
            else if (n < 2 * job.width)
                sums[blockIdx.y * jobs.sums + sum_at(job, strip * 8 + warp, n)] = {sum[n][0], sum[n][1], sum[n][2], sum[n][3]};
            for (int e = 0; e < 4; e++)
                sum[n][e] = 0;
        }
    }
    copy_wait<0>();
    if (!APART)
        for (int n = 0; n < 2 * NT; n++)
            each_gradient(g, job, replica, strip * 8 + warp, n, [&](int e, float *to) {
                if (to)
                    *to = total[n][e];
            });
}

/* Adds the sums of chunks [first_chunk, first_chunk + count), which strips_kernel left. */
static __global__ void __launch_bounds__(256) join_kernel(const __grid_constant__ low_group g, const __grid_constant__ strip_jobs jobs, const float4 *sums, int first_chunk, int count)
{
    int warp = threadIdx.x / 32, strip = blockIdx.x, n = blockIdx.y, replica = blockIdx.z;
    const strip_job job = strip_at(jobs, &strip);
    int first = max(g.rows.group_chunk[replica], first_chunk), last = min(g.rows.group_chunk[replica + 1], first_chunk + count);
    if (n >= 2 * job.width || first >= last)
        return;
    float scale = job.into_b ? g.part[job.low.part].scale : 1, total[4];
    each_gradient(g, job, replica, strip * 8 + warp, n, [&](int e, const float *old) { total[e] = old ? *old : 0; });
    sums += sum_at(job, strip * 8 + warp, n);
#pragma unroll 8
    for (int c = first; c < last; c++) {
        bool some = g.rows.chunk[c] < g.rows.chunk[c + 1];
        float4 v = some ? sums[(c - first_chunk) * jobs.sums] : float4{0, 0, 0, 0};
        float sum[4] = {v.x, v.y, v.z, v.w};
        if (some)
            add_sum(total, sum, scale);
    }
    each_gradient(g, job, replica, strip * 8 + warp, n, [&](int e, float *to) {
        if (to)
            *to = total[e];
    });
}

static void add_strips(strip_jobs *all, const low_jobs &jobs, tm_tensor x, const void *side, bool into_b, bool masked, const uint8_t *bits, int64_t bits_each)
{
    for (int i = 0; i < jobs.n; i++) {
        const low_job &low = jobs.job[i];
        int32_t strips = (int32_t)((low.columns + STRIP - 1) / STRIP), width = (low.to - low.window + 15) / 16;
        all->job[all->n++] = {low, x.data, side, bits ? bits + low.part * bits_each : nullptr, x.ld, into_b, masked, strips, width, all->sums};
        all->strips += strips;
        all->sums += strips * 8 * 2 * width * 32;
    }
}

template <class H, int NT> static void run_strips(tm_device *d, const char *op, const low_group &g, const strip_jobs &jobs, void *room, int64_t bytes)
{
    typedef strip_shape<NT> S;
    int64_t chunks = g.rows.chunks, at_once = bytes / (jobs.sums * 16), replicas = g.rows.replicas;
    if (chunks < 2 * replicas || at_once < 4 || jobs.strips * replicas >= tm_cuda_of(d)->processors) {
        launch(d, op, strips_kernel<H, NT, false>, dim3((unsigned)jobs.strips, (unsigned)replicas), S::THREADS, S::BYTES, g, jobs, (float4 *)nullptr, 0);
        return;
    }
    for (int64_t from = 0; from < chunks; from += at_once) {
        int count = (int)(chunks - from < at_once ? chunks - from : at_once);
        launch(d, op, strips_kernel<H, NT, true>, dim3((unsigned)jobs.strips, (unsigned)count), S::THREADS, S::BYTES, g, jobs, (float4 *)room, (int)from);
        launch(d, op, join_kernel, dim3((unsigned)jobs.strips, 2 * NT, (unsigned)replicas), S::THREADS, 0, g, jobs, (const float4 *)room, (int)from, count);
    }
}

void low_gradients(tm_device *d, const char *op, const low_group &g, tm_tensor x, tm_tensor dy, const void *side, const void *side_xa, const void *bits, void *room, int64_t bytes)
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
    strip_jobs jobs = {};
    add_strips(&jobs, of_a, x, side, false, g.drops, (const uint8_t *)bits, g.rows.n * low_mask_pitch(g.in));
    add_strips(&jobs, of_b, dy, side_xa, true, false, nullptr, 0);
    if (!jobs.n)
        return;
    with_type(of_a.n ? x.dtype : dy.dtype, [&](auto h) {
        typedef decltype(h) H;
        with_width(of_a.width > of_b.width ? of_a.width : of_b.width, [&](auto nt) { run_strips<H, decltype(nt)::value>(d, op, g, jobs, room, bytes); });
    });
}

/* --- dxa and db in one reading of dy --- */

/* A block takes 256 columns of dy, through all chunks of a replica or one. A stage holds 64 rows. For db a warp has 32 of the
 * columns; for dxa 16 of the rows and half of the columns, whose rows of b_side stay in its registers. */
template <int NT, int DEPTH> struct once_shape {
    enum {
        C = TM_LOW_SHARE, T = 64, N = 16 * NT, THREADS = 256, LD = C + 8, LD_LOW = NT == 1 ? N : N + 8 /* two blocks fit then */, LD_HALF = N + 4,
        X = T * LD, LOW = T * LD_LOW, STAGE = X + LOW, STAGES = DEPTH, BYTES = STAGES * STAGE * 2 + T * LD_HALF * 4
    };
};

TM_LANE strip_job share_at(const strip_jobs &jobs, int *share)
{
    int i = 0;
    for (; *share >= (jobs.job[i].strips + 1) / 2; i++)
        *share -= (jobs.job[i].strips + 1) / 2;
    return jobs.job[i];
}

/* shares: [block of columns][T][16 NT]. */
template <class H, int NT, int DEPTH, bool APART>
static __global__ void __launch_bounds__(256, 2 / NT) once_kernel(const __grid_constant__ low_group g, const __grid_constant__ strip_jobs jobs, const H *b_side, float *shares, float4 *sums, int first_chunk)
{
    typedef once_shape<NT, DEPTH> S;
    TM_SHARED(unsigned char, shared, 16);
    __shared__ int2 held[S::STAGES];
    H *stages = (H *)shared, *factor = stages + (S::STAGES - 1) * S::STAGE; /* until that stage is loaded */
    float *halves = (float *)(stages + S::STAGES * S::STAGE);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = warp / 4, top = warp % 4 * 16, share = blockIdx.x, replica = APART ? 0 : blockIdx.y;
    const strip_job job = share_at(jobs, &share);
    int first = APART ? first_chunk + blockIdx.y : g.rows.group_chunk[replica], last = APART ? first + 1 : g.rows.group_chunk[replica + 1];
    if (first >= last || g.rows.chunk[first] >= g.rows.chunk[last])
        return;
    if (APART)
        replica = replica_of(g.rows, g.rows.chunk[first]);
    int64_t c0 = share * (int64_t)S::C;
    b_side += (replica * g.out + job.low.first + c0) * g.low + job.low.window;
    for (int i = threadIdx.x; i < S::C * 2 * NT; i += S::THREADS) {
        int n = i / (2 * NT), u = i % (2 * NT) * 8;
        bool valid = c0 + n < job.low.columns && u < 16 * job.width;
        copy_async(factor + n * S::LD_LOW + u, valid ? b_side + (int64_t)n * g.low + u : b_side, valid);
    }
    copy_commit();

    chunk_cursor ahead(g.rows.chunk, first, last);
    int row8 = threadIdx.x / 32, low_row = threadIdx.x / (2 * NT), low_unit = threadIdx.x % (2 * NT);
    bool inside = c0 + lane * 8 < job.low.columns, low_inside = low_row < S::T && low_unit < 2 * job.width;
    const H *x = (const H *)job.x + job.low.first + (inside ? c0 + lane * 8 : 0), *side = (const H *)job.side + job.low.window + low_unit * 8;
    auto load = [&](int slot) {
        int left = ahead.index < last ? min(ahead.end - ahead.row, (int)S::T) : 0, row = ahead.row, chunk = ahead.index;
        if (left) {
            H *to = stages + slot * S::STAGE;
            const H *from = x + (row + row8) * job.ld;
            for (int i = 0; i < S::T; i += 8) {
                bool valid = inside && row8 + i < left;
                copy_async(to + (row8 + i) * S::LD + lane * 8, valid ? from + i * job.ld : x, valid);
            }
            if (low_inside) {
                bool valid = low_row < left;
                copy_async(to + S::X + low_row * S::LD_LOW + low_unit * 8, valid ? side + (int64_t)(row + low_row) * g.low : side, valid);
            }
            ahead.next(left);
        }
        if (threadIdx.x == 0)
            held[slot] = {row, 2 * left + (ahead.index != chunk)};
        copy_commit();
    };
    for (int s = 0; s < S::STAGES - 1; s++)
        load(s);
    copy_wait<S::STAGES - 1>();
    __syncthreads();
    uint32_t of_half[S::C / 32][NT][4];
    for (int k = 0; k < S::C / 32; k++)
        for (int n = 0; n < NT; n++)
            load_b_transposed<S::LD_LOW>(of_half[k][n], (const bf16 *)factor, half * S::C / 2 + k * 16, n * 16);

    float scale = g.part[job.low.part].scale, sum[2][2 * NT][4] = {}, total[2][2 * NT][4] = {};
    int tile = share * 16 + warp * 2;
    if (!APART)
        for (int m = 0; m < 2; m++)
            for (int n = 0; n < 2 * NT; n++)
                each_gradient(g, job, replica, tile + m, n, [&](int e, const float *old) { total[m][n][e] = old ? *old : 0; });
    for (int slot = 0, loading = S::STAGES - 1;; loading = slot, slot = slot + 1 == S::STAGES ? 0 : slot + 1) {
        copy_wait<S::STAGES - 2>();
        __syncthreads();
        int row = held[slot].x, left = held[slot].y / 2;
        bool ends = held[slot].y % 2;
        if (!left)
            break;
        load(loading);
        H *xs = stages + slot * S::STAGE, *ls = xs + S::X;
        uint32_t a[4];
        for (int k = 0; k < S::T; k += 16)
            if (k < left) {
                uint32_t b[NT][4];
                for (int n = 0; n < NT; n++)
                    if (n < job.width)
                        load_b_transposed<S::LD_LOW>(b[n], (const bf16 *)ls, k, n * 16);
                for (int m = 0; m < 2; m++) {
                    load_a_transposed<S::LD>(a, xs, k, warp * 32 + m * 16);
                    for (int n = 0; n < NT; n++)
                        if (n < job.width) {
                            mma<H>(sum[m][2 * n], a, b[n][0], b[n][1]);
                            mma<H>(sum[m][2 * n + 1], a, b[n][2], b[n][3]);
                        }
                }
            }
        float of_rows[2 * NT][4] = {};
        if (top < left)
            for (int k = 0; k < S::C / 32; k++) {
                load_a<S::LD>(a, (const bf16 *)xs, top, half * S::C / 2 + k * 16);
                for (int n = 0; n < NT; n++) {
                    mma<H>(of_rows[2 * n], a, of_half[k][n][0], of_half[k][n][1]);
                    mma<H>(of_rows[2 * n + 1], a, of_half[k][n][2], of_half[k][n][3]);
                }
            }
        float2 *mine = (float2 *)(halves + (top + lane / 4) * S::LD_HALF + lane % 4 * 2);
        if (half)
            for (int n = 0; n < 2 * NT; n++)
                for (int i = 0; i < 2; i++)
                    mine[(i * 8 * S::LD_HALF + n * 8) / 2] = {of_rows[n][2 * i], of_rows[n][2 * i + 1]};
        __syncthreads();
        if (!half) {
            float *to = shares + ((int64_t)blockIdx.x * g.rows.n + row + top + lane / 4) * S::N + lane % 4 * 2;
            for (int n = 0; n < 2 * NT; n++)
                for (int i = 0; i < 2; i++)
                    if (top + lane / 4 + 8 * i < left) {
                        float2 other = mine[(i * 8 * S::LD_HALF + n * 8) / 2];
                        *(float2 *)(to + i * 8 * S::N + n * 8) = {of_rows[n][2 * i] + other.x, of_rows[n][2 * i + 1] + other.y};
                    }
        }
        if (!ends)
            continue;
        for (int m = 0; m < 2; m++)
            for (int n = 0; n < 2 * NT; n++) {
                if (!APART)
                    add_sum(total[m][n], sum[m][n], scale);
                else if (n < 2 * job.width && tile + m < job.strips * 8)
                    sums[blockIdx.y * jobs.sums + sum_at(job, tile + m, n)] = {sum[m][n][0], sum[m][n][1], sum[m][n][2], sum[m][n][3]};
                for (int e = 0; e < 4; e++)
                    sum[m][n][e] = 0;
            }
    }
    copy_wait<0>();
    if (!APART)
        for (int m = 0; m < 2; m++)
            for (int n = 0; n < 2 * NT; n++)
                each_gradient(g, job, replica, tile + m, n, [&](int e, float *to) {
                    if (to)
                        *to = total[m][n][e];
                });
}

/* dxa, and side: the shares added in order. width: low columns of a share. */
template <class H> static __global__ void __launch_bounds__(256) shares_kernel(const __grid_constant__ low_group g, const __grid_constant__ strip_jobs jobs, const float *shares, int width, H *side)
{
    int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x, t = i / g.low;
    int j = (int)(i % g.low), p = part_of(g, j), first = 0;
    if (t >= g.rows.group[g.rows.replicas])
        return;
    float v = 0;
    if (p >= 0) {
        for (int q = 0; q < p; q++)
            first += (jobs.job[q].strips + 1) / 2;
        const float *from = shares + (first * g.rows.n + t) * width + j - jobs.job[p].low.window;
        int count = (jobs.job[p].strips + 1) / 2;
#pragma unroll 8
        for (int s = 0; s < count; s++)
            v += from[s * g.rows.n * width];
        real_at(g.part[p].dxa, t, j - g.part[p].at) = v;
    }
    side[i] = narrow<H>(v);
}

template <class H, int NT, int DEPTH>
static void run_once(tm_device *d, const char *op, const low_group &g, const strip_jobs &jobs, int64_t blocks, const void *b_side, void *side, void *room, int64_t shares, int64_t bytes)
{
    typedef once_shape<NT, DEPTH> S;
    float4 *sums = (float4 *)((char *)room + shares);
    int64_t chunks = g.rows.chunks, at_once = (bytes - shares) / (jobs.sums * 16), replicas = g.rows.replicas;
    if (chunks < 2 * replicas || at_once < 4 || 2 * blocks * replicas >= tm_cuda_of(d)->processors)
        launch(d, op, once_kernel<H, NT, DEPTH, false>, dim3((unsigned)blocks, (unsigned)replicas), S::THREADS, S::BYTES, g, jobs, (const H *)b_side, (float *)room, sums, 0);
    else
        for (int64_t from = 0; from < chunks; from += at_once) {
            int count = (int)(chunks - from < at_once ? chunks - from : at_once);
            launch(d, op, once_kernel<H, NT, DEPTH, true>, dim3((unsigned)blocks, (unsigned)count), S::THREADS, S::BYTES, g, jobs, (const H *)b_side, (float *)room, sums, (int)from);
            launch(d, op, join_kernel, dim3((unsigned)jobs.strips, 2 * NT, (unsigned)replicas), 256, 0, g, jobs, (const float4 *)sums, (int)from, count);
        }
    launch(d, op, shares_kernel<H>, dim3((unsigned)((g.rows.n * g.low + 255) / 256)), 256, 0, g, jobs, (const float *)room, (int)S::N, (H *)side);
}

bool low_backward_once(tm_device *d, const char *op, const low_group &g, tm_tensor dy, const void *b_side, void *side, const void *side_xa, void *room, int64_t bytes)
{
    low_jobs low = {};
    strip_jobs jobs = {};
    int64_t blocks = 0;
    for (int p = 0; p < g.parts; p++) {
        if (!g.part[p].db.data || g.part[p].at % 16 + g.part[p].r > 32)
            return false;
        add_jobs(&low, g.part[p].at, g.part[p].at + g.part[p].r, p, g.part[p].first, g.part[p].out);
        blocks += tm_lent_strips(g.part[p].out, TM_LOW_SHARE);
    }
    int64_t shares = tm_lent_aligned(blocks * g.rows.n * 16 * low.width * (int64_t)sizeof(float));
    if (bytes < shares)
        return false;
    add_strips(&jobs, low, dy, side_xa, true, false, nullptr, 0);
    int most = tm_cuda_of(d)->shared_most;
    with_type(dy.dtype, [&](auto h) {
        typedef decltype(h) H;
        if (low.width == 2)
            run_once<H, 2, 2>(d, op, g, jobs, blocks, b_side, side, room, shares, bytes);
        else if (most < (int)once_shape<1, 3>::BYTES + 1024)
            run_once<H, 1, 2>(d, op, g, jobs, blocks, b_side, side, room, shares, bytes);
        else
            run_once<H, 1, 3>(d, op, g, jobs, blocks, b_side, side, room, shares, bytes);
    });
    return true;
}
