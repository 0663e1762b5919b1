/* Rows of the embedding table, and their gradient. docs/math/embed.md.
 *
 * Backward puts the rows in the order of (id, row) and adds the rows of an id in that order, as the plain kernel
 * does: the same bits. A row's place in the order is the number of rows before it, which every thread counts for itself:
 * n^2 comparisons of numbers in shared memory, less than a sort for the rows of a micro-batch, and without atomics. */
#include "device/cuda/half/vec.cuh"

enum { ROW_THREADS = 128, RANK_THREADS = 256, RANK_TILE = 2048, RANK_SHARES = 8, SEGMENT_THREADS = 64, AHEAD = 8 };

static __global__ void __launch_bounds__(ROW_THREADS) embed_rows(const int32_t *ids, tm_tensor table, float scale, tm_tensor y)
{
    int64_t t = blockIdx.x, id = ids[t];
    for (int64_t c = 8 * threadIdx.x; id >= 0 && c < y.cols; c += 8 * ROW_THREADS) {
        eight e = load_eight(table, id * table.ld + c);
        for (int i = 0; i < 8; i++)
            e.v[i] *= scale;
        store_eight(y, t * y.ld + c, e);
    }
}

bool tm_half_embed_forward(tm_device *d, const tm_rows *rows, const int32_t *ids, tm_tensor table, float scale, tm_tensor y)
{
    if (!tm_half_fits({table, y}))
        return false;
    if (rows->n > 0)
        tm_cuda_launch(tm_cuda_of(d), "embed_forward", embed_rows, (unsigned)rows->n, ROW_THREADS, 0, ids, table, scale, y);
    return true;
}

/* order[k] = the k-th row by (id, row). RANK_SHARES neighbouring threads share out the comparisons of a row. */
static __global__ void __launch_bounds__(RANK_THREADS) rank_rows(int n, const int32_t *ids, int32_t *order)
{
    __shared__ int32_t other[RANK_TILE];
    int t = (blockIdx.x * RANK_THREADS + threadIdx.x) / RANK_SHARES, share = threadIdx.x % RANK_SHARES, id = t < n ? ids[t] : 0, before = 0;
    for (int first = 0; first < n; first += RANK_TILE) {
        __syncthreads();
        for (int i = threadIdx.x; i < RANK_TILE; i += RANK_THREADS)
            other[i] = first + i < n ? ids[first + i] : INT32_MAX;
        __syncthreads();
        /* rows of this tile up to `equal` count with an equal id, later ones do not */
        int equal = t - first;
#pragma unroll 8
        for (int i = share; i < RANK_TILE; i += RANK_SHARES)
            before += other[i] < id || (other[i] == id && i < equal);
    }
    for (int step = RANK_SHARES / 2; step; step /= 2)
        before += __shfl_xor_sync(~0u, before, step);
    if (t < n && share == 0)
        order[before] = t;
}

/* Eight elements as they are loaded. */
template <class T> struct row_of {
    typedef uint4 eight;
    TM_LANE uint4 load(const tm_tensor &t, int64_t i) { return packed<T>(t, i); }
    TM_LANE ::eight wide(uint4 p) { return widen<T>(p); }
};
template <> struct row_of<float> {
    typedef ::eight eight;
    TM_LANE ::eight load(const tm_tensor &t, int64_t i) { return load_eight(t, i); }
    TM_LANE ::eight wide(const ::eight &e) { return e; }
};

/* Rows k .. of the order as far as they have the id. */
TM_LANE void segment_rows(int n, const int32_t *ids, const int32_t *order, int id, int k, int (&row)[AHEAD])
{
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        row[i] = k + i < n ? order[k + i] : -1;
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        row[i] = row[i] >= 0 && ids[row[i]] == id ? row[i] : -1;
}

/* Block (k, strip): when the k-th row of the order is the first with its id, the columns of the strip for all of them. */
template <class T> static __global__ void __launch_bounds__(SEGMENT_THREADS) add_segments(int n, const int32_t *ids, const int32_t *order, tm_tensor dy, float scale, tm_tensor grad)
{
    int k = blockIdx.x, id = ids[order[k]];
    int64_t c = 8 * (blockIdx.y * (int64_t)SEGMENT_THREADS + threadIdx.x);
    if (id < 0 || (k > 0 && ids[order[k - 1]] == id) || c >= dy.cols)
        return;
    eight sum = load_eight(grad, id * grad.ld + c);
    int row[AHEAD], next[AHEAD]; /* those behind the segment are -1 */
    segment_rows(n, ids, order, id, k, row);
    for (bool more = true; more; k += AHEAD) {
        typename row_of<T>::eight add[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (row[i] >= 0)
                add[i] = row_of<T>::load(dy, row[i] * dy.ld + c);
        more = row[AHEAD - 1] >= 0;
        if (more)
            segment_rows(n, ids, order, id, k + AHEAD, next);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (row[i] >= 0) {
                eight a = row_of<T>::wide(add[i]);
                for (int e = 0; e < 8; e++)
                    sum.v[e] += scale * a.v[e];
            }
            row[i] = next[i];
        }
    }
    store_eight(grad, id * grad.ld + c, sum);
}

bool tm_half_embed_backward(tm_device *d, const tm_rows *rows, const int32_t *ids, tm_tensor dy, float scale, tm_tensor table_grad)
{
    tm_cuda *c = tm_cuda_of(d);
    int64_t n = rows->n;
    if (table_grad.dtype != TM_F32 || !tm_half_fits({dy, table_grad})) /* a gradient of 16 bits is rounded after every row */
        return false;
    if (n > 2 * TM_CUDA_PARTIALS) {
        tm_cuda_note(c, TM_UNSUPPORTED, "embed_backward", "more than 8,388,608 rows at once");
        return true;
    }
    if (n > 0) {
        int32_t *order = (int32_t *)c->partials;
        tm_cuda_launch(c, "embed_backward", rank_rows, (unsigned)((n * RANK_SHARES + RANK_THREADS - 1) / RANK_THREADS), RANK_THREADS, 0, (int)n, ids, order);
        dim3 grid((unsigned)n, (unsigned)((dy.cols / 8 + SEGMENT_THREADS - 1) / SEGMENT_THREADS));
        auto *kernel = dy.dtype == TM_F32 ? add_segments<float> : dy.dtype == TM_BF16 ? add_segments<bf16> : add_segments<f16>;
        tm_cuda_launch(c, "embed_backward", kernel, grid, SEGMENT_THREADS, 0, (int)n, ids, order, dy, scale, table_grad);
    }
    return true;
}
