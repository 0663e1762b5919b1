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

#include <cuda.h>

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

/* ROWS rows of D elements from global memory; rows from `valid` on are zeros. */
template <int ROWS, int D, int THREADS> TM_DEVICE void copy_swizzled(bf16 *tile, const bf16 *global, int64_t ld, int valid)
{
    constexpr int UNITS = D / 8;
    for (int i = threadIdx.x; i < ROWS * UNITS; i += THREADS) {
        int row = i / UNITS, unit = i % UNITS;
        bool in = row < valid;
        char *to = (char *)tile + unit / 8 * ROWS * SWIZZLED_ROW_BYTES + row * SWIZZLED_ROW_BYTES + ((unit % 8) ^ (row % 8)) * 16;
        copy_async(to, global + (in ? row : 0) * ld + unit * 8, in);
    }
}

/* What threads wrote to shared memory becomes visible to the products; a barrier must follow. */
TM_DEVICE void fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
TM_DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
TM_DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> TM_DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

/* The registers of an accumulator must not be moved while products are on their way. */
template <int N> TM_DEVICE void products_keep(float (&c)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n++)
        for (int i = 0; i < 4; i++)
            asm volatile("" : "+f"(c[n][i])::"memory");
}

#define WG_F4(c, n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define WG_F32(c, n) WG_F4(c, n), WG_F4(c, n + 1), WG_F4(c, n + 2), WG_F4(c, n + 3), WG_F4(c, n + 4), WG_F4(c, n + 5), WG_F4(c, n + 6), WG_F4(c, n + 7)
#define WG_D32 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define WG_D64 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"

#define WG_D96 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
               "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95}"
#define WG_D128 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
                "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
                "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
                "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}"

/* c[64 x 8 N] = or += a b, one step of 16 of k. B's k runs along its rows with TRANSPOSED, A's with A_TRANSPOSED. */
#define WG_SHARED(T, COLUMNS, D, FACTORS, P, TURNED, ...)                                                                          \
    asm volatile("{.reg .pred p; setp.ne.b32 p, " P ", 0; wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." T "." T " " D ", " \
                 FACTORS ", p, 1, 1, " TURNED ";}" : __VA_ARGS__ : "l"(a), "l"(b), "r"(add), "n"(A_TRANSPOSED), "n"(TRANSPOSED))
#define WG_PRODUCT(N, ...)                                                                                          \
    template <int TRANSPOSED, int A_TRANSPOSED = 0, class T = bf16>                                                 \
    TM_DEVICE void product(float (&c)[N][4], uint64_t a, uint64_t b, int add)                                       \
    {                                                                                                               \
        if constexpr (tm_is_bf16<T>)                                                                                \
            WG_SHARED("bf16", __VA_ARGS__);                                                                         \
        else                                                                                                        \
            WG_SHARED("f16", __VA_ARGS__);                                                                          \
    }
WG_PRODUCT(8, "64", WG_D32, "%32, %33", "%34", "%35, %36", WG_F32(c, 0))
WG_PRODUCT(16, "128", WG_D64, "%64, %65", "%66", "%67, %68", WG_F32(c, 0), WG_F32(c, 8))
WG_PRODUCT(24, "192", WG_D96, "%96, %97", "%98", "%99, %100", WG_F32(c, 0), WG_F32(c, 8), WG_F32(c, 16))
WG_PRODUCT(32, "256", WG_D128, "%128, %129", "%130", "%131, %132", WG_F32(c, 0), WG_F32(c, 8), WG_F32(c, 16), WG_F32(c, 24))

/* The same with A in registers. */
#define WG_REGISTERS(T, COLUMNS, D, FACTORS, ...)                                                                  \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." T "." T " " D ", " FACTORS ";"             \
                 : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TRANSPOSED))
#define WG_PRODUCT_REGISTERS(N, ...)                                                                                \
    template <int TRANSPOSED, class T = bf16> TM_DEVICE void product(float (&c)[N][4], const uint32_t (&a)[4], uint64_t b) \
    {                                                                                                               \
        if constexpr (tm_is_bf16<T>)                                                                                \
            WG_REGISTERS("bf16", __VA_ARGS__);                                                                      \
        else                                                                                                        \
            WG_REGISTERS("f16", __VA_ARGS__);                                                                       \
    }
WG_PRODUCT_REGISTERS(8, "64", WG_D32, "{%32,%33,%34,%35}, %36, 1, 1, 1, %37", WG_F32(c, 0))
WG_PRODUCT_REGISTERS(16, "128", WG_D64, "{%64,%65,%66,%67}, %68, 1, 1, 1, %69", WG_F32(c, 0), WG_F32(c, 8))

/* --- Tensor copies: boxes of a matrix in global memory, 64 columns wide, to and from swizzled tiles --- */

TM_DEVICE void barrier_init(uint64_t *bar, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count)); }
TM_DEVICE void barrier_expect(uint64_t *bar, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
}
TM_DEVICE void barrier_arrive(uint64_t *bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory"); }
TM_DEVICE void barrier_wait(uint64_t *bar, int parity)
{
    asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @p bra.uni done; bra.uni again; done: }" ::"r"(shared_address(bar)), "r"(parity) : "memory");
}
TM_DEVICE void fetch_box(void *to, const CUtensorMap *map, int column, int row, uint64_t *bar)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 ::"r"(shared_address(to)), "l"(map), "r"(column), "r"(row), "r"(shared_address(bar)) : "memory");
}

/* A box of a row of matrices. */
TM_DEVICE void fetch_box(void *to, const CUtensorMap *map, int column, int row, int matrix, uint64_t *bar)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];"
                 ::"r"(shared_address(to)), "l"(map), "r"(column), "r"(row), "r"(matrix), "r"(shared_address(bar)) : "memory");
}

/* A box of shared memory to global memory, in the background; rows and columns beyond the matrix are left out. add: to what
 * stands there, in the type of the map. */
TM_DEVICE void store_box(const CUtensorMap *map, const void *from, int column, int row, int matrix, bool add)
{
    if (add)
        asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(shared_address(from)), "r"(column), "r"(row), "r"(matrix) : "memory");
    else
        asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(shared_address(from)), "r"(column), "r"(row), "r"(matrix) : "memory");
}
TM_DEVICE void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/* Until what was stored has been read out of shared memory. */
template <int PENDING = 0> TM_DEVICE void store_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory"); }

TM_DEVICE void store_matrices(void *to, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(to)), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

#endif
