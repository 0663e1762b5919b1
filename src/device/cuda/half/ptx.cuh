/* Every PTX instruction that the fast kernels name, a function each; they hold no assembly of their own.
 * Compiled for the processor (tests/emulated) the same functions come from there.
 *
 * Fragments are those of mma.m16n8k16 (PTX manual, "Matrix fragments for mma.m16n8k16"). What needs sm_90a is below
 * the line that says so, and is instantiated by kernels of that architecture alone. */
#ifndef TM_DEVICE_CUDA_HALF_PTX_CUH
#define TM_DEVICE_CUDA_HALF_PTX_CUH

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

typedef __nv_bfloat16 bf16;
typedef __half f16;
template <class T> constexpr bool tm_is_bf16 = false;
template <> constexpr bool tm_is_bf16<bf16> = true;

#define TM_DEVICE static __device__ __forceinline__

#ifdef TM_CUDA_EMULATED
#include <instructions.h>
#else

/* The shared memory whose size the launch gives, as elements of T. */
#define TM_SHARED(T, name, alignment) extern __shared__ __align__(alignment) T name[]

TM_DEVICE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* 2^x and 1 / x. */
TM_DEVICE float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

TM_DEVICE float reciprocal_fast(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* c[16 x 8] += a[16 x 16] b[16 x 8], factors of T: bf16 or f16. */
#define MMA(T)                                                                                                              \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." T "." T ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
template <class T = bf16> TM_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    if constexpr (tm_is_bf16<T>)
        MMA("bf16");
    else
        MMA("f16");
}

TM_DEVICE void load_matrices(uint32_t (&r)[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)));
}

TM_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)));
}

/* Sixteen bytes to shared memory in the background, the first `bytes` of them from global memory, the rest zeros. */
TM_DEVICE void copy_async_bytes(void *shared, const void *global, int bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes));
}
TM_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;"); }
template <int PENDING> TM_DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING)); }

/* --- sm_90a --- */

/* Barrier `number` of a block, for so many threads: until all have come, or not waiting for the others. */
TM_DEVICE void group_barrier(int number, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory"); }
TM_DEVICE void group_arrive(int number, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory"); }

/* Registers of every thread of a warpgroup from here on. */
template <int COUNT> TM_DEVICE void registers_more() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> TM_DEVICE void registers_less() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }

/* A number that other blocks read: what was written before it is there for who sees it. */
TM_DEVICE void store_release(int *to, int value) { asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory"); }
TM_DEVICE int load_acquire(const int *from)
{
    int value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

/* Barriers that were initialised become visible to the copy engine. */
TM_DEVICE void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
/* Accesses of threads and of the copy engine, all memory, one before the other. */
TM_DEVICE void fence_engine() { asm volatile("fence.proxy.async;" ::: "memory"); }
/* What threads wrote to shared memory becomes visible to the products; a barrier must follow. */
TM_DEVICE void fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* The assembler moves waits for products before arithmetic that is meant to run meanwhile, but not across a branch:
 * this one is never taken. */
TM_DEVICE void schedule_wall(int not_negative)
{
    asm volatile("{.reg .pred p; setp.ge.s32 p, %0, 0; @p bra.uni on; again: nanosleep.u32 64; bra.uni again; on: }" ::"r"(not_negative) : "memory");
}

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
/* Until what was stored stands in global memory. */
TM_DEVICE void store_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

TM_DEVICE void store_matrices(void *to, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(to)), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

#endif
#endif
