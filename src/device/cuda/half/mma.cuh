/* Fragments of tensor-core products and tiles in shared memory, which the bf16 kernels are built of: sm_80 and later.
 *
 * A tile is a matrix of bf16 in shared memory, rows of D + TILE_PAD elements: the padding makes the rows of an
 * 8 x 8 block start in different banks for every D that is a multiple of 16. Fragments are those of mma.m16n8k16
 * (PTX manual, "Matrix fragments for mma.m16n8k16"): lane l holds of C the rows l / 4 and l / 4 + 8, the columns
 * 2 (l % 4) and the next. */
#ifndef TM_DEVICE_CUDA_HALF_MMA_CUH
#define TM_DEVICE_CUDA_HALF_MMA_CUH

#include "device/cuda/half/ptx.cuh"

enum { TILE_PAD = 8 };

/* A of 16 rows and 16 of k; tile is [rows][k]. */
template <int LD> TM_DEVICE void load_a(uint32_t (&r)[4], const bf16 *tile, int row, int k)
{
    int lane = threadIdx.x % 32;
    load_matrices(r, tile + (row + lane % 16) * LD + k + lane / 16 * 8);
}

/* B of 16 of k and 16 columns, {r0, r1} the first eight; tile is [columns][k]. */
template <int LD> TM_DEVICE void load_b(uint32_t (&r)[4], const bf16 *tile, int column, int k)
{
    int lane = threadIdx.x % 32;
    load_matrices(r, tile + (column + lane % 8 + lane / 16 * 8) * LD + k + lane / 8 % 2 * 8);
}

/* The same; tile is [k][columns]. */
template <int LD> TM_DEVICE void load_b_transposed(uint32_t (&r)[4], const bf16 *tile, int k, int column)
{
    int lane = threadIdx.x % 32;
    load_matrices_transposed(r, tile + (k + lane % 16) * LD + column + lane / 16 * 8);
}

template <class T = bf16> TM_DEVICE uint32_t pack(float low, float high)
{
    if constexpr (tm_is_bf16<T>) {
        __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
        return *reinterpret_cast<uint32_t *>(&v);
    } else {
        __half2 v = __floats2half2_rn(low, high);
        return *reinterpret_cast<uint32_t *>(&v);
    }
}

/* Columns 16 j .. 16 j + 15 of two accumulators as an A operand. */
template <class T = bf16> TM_DEVICE void pack_a(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4])
{
    a[0] = pack<T>(left[0], left[1]);
    a[1] = pack<T>(left[2], left[3]);
    a[2] = pack<T>(right[0], right[1]);
    a[3] = pack<T>(right[2], right[3]);
}

/* Sixteen bytes in the background; zeros when not valid. */
TM_DEVICE void copy_async(void *shared, const void *global, bool valid) { copy_async_bytes(shared, global, valid ? 16 : 0); }

#endif
