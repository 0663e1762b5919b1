/* The matrix product by mma.sync: every architecture from sm_80 on, every size and alignment. See tiles.cuh.
 *
 * A block of four warps makes 128 x 128 outputs, a warp 64 x 64, in steps of 32 of k that come through a ring of
 * STAGES. A factor's tile lies in shared memory as in global memory, [rows][32 of k] or, turned, [32 of k][rows]; the
 * sixteen-byte units of its rows are permuted so that ldmatrix finds eight of them in different banks. */
#ifndef TM_DEVICE_CUDA_HALF_GEMM80_CUH
#define TM_DEVICE_CUDA_HALF_GEMM80_CUH

#include "device/cuda/half/tiles.cuh"

enum { GEMM80_SIDE = 128, GEMM80_DEPTH = 32, GEMM80_STAGES = 3, GEMM80_TILE = GEMM80_SIDE * GEMM80_DEPTH, GEMM80_THREADS = 128,
       GEMM80_SHARED = GEMM80_STAGES * 2 * GEMM80_TILE * 2, GEMM80_GROUP = 8 };

/* Where unit `unit` of row `row` stands, in elements. */
template <bool TURNED> TM_DEVICE int gemm80_unit(int row, int unit)
{
    return TURNED ? row * GEMM80_SIDE + (unit ^ row % 8) * 8 : row * GEMM80_DEPTH + (unit ^ row / 2 % 4) * 8;
}

/* Elements [row, rows) x [column, columns) of x, as far as the tile goes; zeros beyond. */
template <class T, bool TURNED, bool ALIGNED> TM_DEVICE void gemm80_fetch(T *tile, const T *x, int64_t ld, int row, int rows, int column, int columns)
{
    constexpr int UNITS = (TURNED ? GEMM80_SIDE : GEMM80_DEPTH) / 8;
#pragma unroll
    for (int i = threadIdx.x; i < GEMM80_TILE / 8; i += GEMM80_THREADS) {
        int r = i / UNITS, unit = i % UNITS, here = row + r < rows ? min(max(columns - column - unit * 8, 0), 8) : 0;
        const T *from = here ? x + (row + r) * ld + column + unit * 8 : x;
        T *to = tile + gemm80_unit<TURNED>(r, unit);
        if (ALIGNED)
            copy_async_bytes(to, from, here * 2);
        else
            for (int j = 0; j < 8; j++)
                to[j] = j < here ? from[j] : half_of<T>(0);
    }
}

template <class T, bool A_TURNED, bool B_TURNED, bool ALIGNED> struct gemm80_loop {
    T *ring;
    float c[4][8][4]; /* 16 rows, 8 columns each */

    __device__ __forceinline__ void fetch(const tiles_args &w, const tile_place &at, int step, int main_steps)
    {
        T *a = ring + step % GEMM80_STAGES * 2 * GEMM80_TILE, *b = a + GEMM80_TILE;
        bool low = step >= main_steps;
        int k = (low ? step - main_steps : step) * GEMM80_DEPTH, depth = low ? w.low : w.k;
        const T *from = (const T *)(low ? w.low_a : w.a);
        int64_t ld = low ? w.low_a_ld : w.a_ld;
        if (A_TURNED)
            gemm80_fetch<T, true, ALIGNED>(a, from, ld, k, depth, at.row, w.m);
        else
            gemm80_fetch<T, false, ALIGNED>(a, from, ld, at.row, w.m, k, depth);
        from = (const T *)(low ? w.low_b : w.b);
        ld = low ? w.low_b_ld : w.b_ld;
        if (low)
            from += (int64_t)at.replica * (B_TURNED ? w.low : w.n) * ld;
        if (B_TURNED)
            gemm80_fetch<T, true, ALIGNED>(b, from, ld, k, depth, at.column, w.n);
        else
            gemm80_fetch<T, false, ALIGNED>(b, from, ld, at.column, w.n, k, depth);
    }

    __device__ __forceinline__ void multiply(int step)
    {
        const T *a = ring + step % GEMM80_STAGES * 2 * GEMM80_TILE, *b = a + GEMM80_TILE;
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = warp % 2 * 64, column = warp / 2 * 64;
#pragma unroll
        for (int k = 0; k < GEMM80_DEPTH; k += 16) {
            uint32_t fa[4][4], fb[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (A_TURNED)
                    load_matrices_transposed(fa[i], a + gemm80_unit<true>(k + lane % 8 + lane / 16 * 8, (row + i * 16) / 8 + lane / 8 % 2));
                else
                    load_matrices(fa[i], a + gemm80_unit<false>(row + i * 16 + lane % 16, k / 8 + lane / 16));
                if (B_TURNED)
                    load_matrices_transposed(fb[i], b + gemm80_unit<true>(k + lane % 16, (column + i * 16) / 8 + lane / 16));
                else
                    load_matrices(fb[i], b + gemm80_unit<false>(column + i * 16 + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    mma<T>(c[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
        }
    }

    __device__ __forceinline__ void run(const tiles_args &w, const tile_place &at)
    {
        int main_steps = (w.k + GEMM80_DEPTH - 1) / GEMM80_DEPTH, steps = main_steps + (w.low + GEMM80_DEPTH - 1) / GEMM80_DEPTH;
        for (int i = 0; i < GEMM80_STAGES - 1; i++) {
            if (i < steps)
                fetch(w, at, i, main_steps);
            copy_commit();
        }
        for (int i = 0; i < steps; i++) {
            copy_wait<GEMM80_STAGES - 2>();
            __syncthreads(); /* all see step i; all are done with the stage that is fetched into now */
            if (i + GEMM80_STAGES - 1 < steps)
                fetch(w, at, i + GEMM80_STAGES - 1, main_steps);
            copy_commit();
            multiply(i);
        }
    }
};

/* Two neighbours of a row. `pairs`: rows begin at addresses that a pair of them divides. */
template <class V, class P, class R, class F> TM_DEVICE void gemm80_store(V *to, bool both, bool pairs, bool add, float x, float y, R round, F wide)
{
    if (add) {
        x += wide(to[0]);
        y += both ? wide(to[1]) : 0;
    }
    alignas(8) V v[2] = {round(x), round(y)};
    if (both && pairs)
        *(P *)to = *(P *)v;
    else {
        to[0] = v[0];
        if (both)
            to[1] = v[1];
    }
}

template <class T, bool A_TURNED, bool B_TURNED, bool ALIGNED> __global__ void __launch_bounds__(GEMM80_THREADS) gemm80(const __grid_constant__ tiles_args w)
{
    TM_SHARED(char, gemm80_shared, 16);
    int tiles_m = tile_rows<GEMM80_SIDE>(w), tiles_n = (w.n + GEMM80_SIDE - 1) / GEMM80_SIDE;
    if ((int)blockIdx.x >= tiles_m * tiles_n)
        return;
    tile_walk<GEMM80_SIDE, GEMM80_SIDE, GEMM80_GROUP> walk = {(int)blockIdx.x, 0, tiles_m, tiles_n, 0, (int)blockIdx.x};
    walk.settle();
    tile_place at = walk.place(w);
    gemm80_loop<T, A_TURNED, B_TURNED, ALIGNED> loop = {(T *)gemm80_shared};
    loop.run(w, at);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    bool pairs = w.ld % 2 == 0 && (uintptr_t)w.out % 8 == 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            int column = at.column + warp / 2 * 64 + j * 8 + lane % 4 * 2;
            if (column >= w.n)
                continue;
            float x = w.bias ? bias_at(w, column) : 0, y = w.bias ? bias_at(w, column + 1) : 0;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int row = at.row + warp % 2 * 64 + i * 16 + h * 8 + lane / 4;
                if (row >= at.end)
                    continue;
                float left = loop.c[i][j][h * 2] + x, right = loop.c[i][j][h * 2 + 1] + y;
                int64_t to = row * w.ld + column;
                if (w.wide)
                    gemm80_store<float, float2>((float *)w.out + to, column + 1 < w.n, pairs, w.add, left, right, [](float v) { return v; }, [](float v) { return v; });
                else
                    gemm80_store<T, uint32_t>((T *)w.out + to, column + 1 < w.n, pairs, w.add, left, right, [](float v) { return half_of<T>(v); }, [](T v) { return float_of(v); });
            }
        }
}

#endif
