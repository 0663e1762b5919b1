/* Warpgroup products of Hopper (sm_90a): four warps multiply tiles of bf16 that lie in shared memory.
 *
 * A tile here is [rows][D] cut into blocks of 64 columns; a block is [rows][64], rows of 128 bytes whose sixteen-
 * byte units are permuted (unit u of row r stands at u ^ (r % 8): the 128-byte swizzle of the PTX manual, "Shared
 * memory matrix layout"). Blocks start at multiples of 1024 bytes. The same tile serves as an operand with k along
 * its columns (K-major) and with k along its rows (MN-major).
 * Accumulators are laid out as those of mma.m16n8k16 (mma.cuh), warp w of the group holding rows 16 w to 16 w + 15. */
#ifndef TM_DEVICE_CUDA_HALF_WGMMA_CUH
#define TM_DEVICE_CUDA_HALF_WGMMA_CUH

#include "device/cuda/half/mma.cuh"

enum { SWIZZLED_COLUMNS = 64, SWIZZLED_ROW_BYTES = 128, SWIZZLED_GROUP_BYTES = 1024 };

/* Bits 0-13 address, 16-29 leading offset, 32-45 stride offset (all in units of 16 bytes), 62-63: 128-byte swizzle. */
TM_DEVICE uint64_t matrix_descriptor(const void *shared, int leading_bytes, int stride_bytes)
{
    return (uint64_t)((shared_address(shared) & 0x3ffff) >> 4) | (uint64_t)(leading_bytes >> 4) << 16 | (uint64_t)(stride_bytes >> 4) << 32 | 1ull << 62;
}

/* Rows from `row` (a multiple of 8), columns k .. k + 15 as k. ROWS: of the tile. */
template <int ROWS> TM_DEVICE uint64_t describe(const void *tile, int row, int k)
{
    const char *p = (const char *)tile + k / SWIZZLED_COLUMNS * ROWS * SWIZZLED_ROW_BYTES + row * SWIZZLED_ROW_BYTES + k % SWIZZLED_COLUMNS * 2;
    return matrix_descriptor(p, 16, SWIZZLED_GROUP_BYTES);
}

/* Rows k .. k + 15 as k, columns from `column` (a multiple of 64). */
template <int ROWS> TM_DEVICE uint64_t describe_transposed(const void *tile, int k, int column)
{
    const char *p = (const char *)tile + column / SWIZZLED_COLUMNS * ROWS * SWIZZLED_ROW_BYTES + k * SWIZZLED_ROW_BYTES;
    return matrix_descriptor(p, ROWS * SWIZZLED_ROW_BYTES, SWIZZLED_GROUP_BYTES);
}

#endif
