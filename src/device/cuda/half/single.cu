/* Products of single tokens on tensor cores: reading the weights is what takes the time, for 32 texts as for one.
 *
 * A block has 16 rows of the weight (the 16 rows of mma.m16n8k16) and all tokens, its warps share k by chunks of 32 and are
 * joined in their order. Lanes read sixteen bytes of a row, the weight's as the token's, and hand them to two products:
 * which k an element stands for is the same in both factors, and a sum does not ask for more.
 *
 * A column of an mma does not depend on the others, and how k is shared follows from the weight's size: a row has the same
 * bits alone and among others. */
#include "device/cuda/half/mma.cuh"
#include "device/cuda/half/vec.cuh"
#include "device/cuda/single.cuh"

enum { TILE = 16, CHUNK = 32, TOKENS = 8, MOST_BLOCKS = 4, FEW_ROWS = 4096, WARPS = 8 };

template <class T, bool SAME> TM_LANE uint4 eight_of(const tm_tensor &w, int64_t i)
{
    if constexpr (SAME)
        return packed<T>(w, i);
    else
        return narrow<T>(load_eight(w, i));
}

template <class T, bool SAME, int BLOCKS> static __global__ void __launch_bounds__(2 * WARPS * 32, 1) single_product(tm_single_product p, int64_t first, int rows)
{
    constexpr int COLUMNS = BLOCKS * TOKENS;
    TM_SHARED(float, part, 16); /* [warps][TILE][COLUMNS] */
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, row = lane / 4, unit = lane % 4 * 8;
    int64_t row0 = blockIdx.x * (int64_t)TILE, last = p.w.rows - 1, K = p.w.cols;
    int64_t upper = (row0 + row < last ? row0 + row : last) * p.w.ld, lower = (row0 + row + 8 < last ? row0 + row + 8 : last) * p.w.ld;
    const uint4 none = make_uint4(0, 0, 0, 0);
    float c[BLOCKS][4] = {};
    constexpr int AT_ONCE = BLOCKS == 1 ? 8 : 4; /* chunks that are on their way */
    int64_t step = warps * CHUNK;
    for (int64_t from = warp * CHUNK; from < K; from += AT_ONCE * step) {
        uint4 a[AT_ONCE], b[AT_ONCE], x[AT_ONCE][BLOCKS];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) { /* all are read, and zero where they are nobody's: a branch would part the loads */
            int64_t k = from + i * step + unit, at = k < K ? k : 0;
            uint4 left = eight_of<T, SAME>(p.w, upper + at), right = eight_of<T, SAME>(p.w, lower + at);
            a[i] = k < K ? left : none;
            b[i] = k < K ? right : none;
#pragma unroll
            for (int n = 0; n < BLOCKS; n++) {
                int t = n * TOKENS + row;
                uint4 token = packed<T>(p.x, (first + (t < rows ? t : 0)) * p.x.ld + at);
                x[i][n] = k < K && t < rows ? token : none;
            }
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            uint32_t left[4] = {a[i].x, b[i].x, a[i].y, b[i].y}, right[4] = {a[i].z, b[i].z, a[i].w, b[i].w};
#pragma unroll
            for (int n = 0; n < BLOCKS; n++) {
                mma<T>(c[n], left, x[i][n].x, x[i][n].y);
                mma<T>(c[n], right, x[i][n].z, x[i][n].w);
            }
        }
    }
#pragma unroll
    for (int n = 0; n < BLOCKS; n++)
        for (int j = 0; j < 4; j++)
            part[(warp * TILE + row + j / 2 * 8) * COLUMNS + n * TOKENS + lane % 4 * 2 + j % 2] = c[n][j];
    __syncthreads();
    for (int i = threadIdx.x; i < TILE * rows; i += blockDim.x) {
        int r = i % TILE, t = i / TILE;
        float sum = 0;
        for (int w = 0; w < warps; w++)
            sum += part[(w * TILE + r) * COLUMNS + t];
        if (row0 + r <= last)
            finish(p, first + t, row0 + r, sum);
    }
}

template <class T, bool SAME, int BLOCKS> static void launch(tm_device *d, const char *op, const tm_single_product &p, int64_t first, int rows)
{
    int warps = p.w.rows < FEW_ROWS ? 2 * WARPS : WARPS; /* few blocks: more warps each */
    tm_cuda_launch(tm_cuda_of(d), op, single_product<T, SAME, BLOCKS>, dim3((unsigned)((p.w.rows + TILE - 1) / TILE)), dim3(warps * 32), sizeof(float) * warps * TILE * BLOCKS * TOKENS, p, first, rows);
}

template <class T, bool SAME> static void multiply(tm_device *d, const char *op, const tm_single_product &p, int64_t rows)
{
    for (int64_t first = 0; first < rows; first += MOST_BLOCKS * TOKENS) {
        int n = rows - first < MOST_BLOCKS * TOKENS ? (int)(rows - first) : MOST_BLOCKS * TOKENS;
        if (n <= TOKENS)
            launch<T, SAME, 1>(d, op, p, first, n);
        else if (n <= 2 * TOKENS)
            launch<T, SAME, 2>(d, op, p, first, n);
        else
            launch<T, SAME, MOST_BLOCKS>(d, op, p, first, n);
    }
}

bool tm_half_single_product(tm_device *d, const char *op, const tm_single_product *p, int64_t rows)
{
    if (tm_cuda_of(d)->architecture < 80)
        return false;
    bool same = p->w.dtype == p->x.dtype;
    if (p->x.dtype == TM_BF16)
        same ? multiply<bf16, true>(d, op, *p, rows) : multiply<bf16, false>(d, op, *p, rows);
    else
        same ? multiply<f16, true>(d, op, *p, rows) : multiply<f16, false>(d, op, *p, rows);
    return true;
}
