/* The matrix product on Hopper (sm_90a): bf16 factors, f32 sums, ours and not a library's, because its bits must
 * not depend on how many rows there are, on where a row stands or on which algorithm a heuristic picks.
 *
 * c[M, N] = a[M, K] b^T, b [N, K] (K-major, a forward product) or b [K, N] (MN-major, an input gradient).
 * Bits: an output is one accumulator over blocks of 64 of k in ascending order, then, when there is a low-rank
 * part, over the blocks of its own k; tiles have 128 rows by BN columns everywhere.
 *
 * A block is persistent: one warp fetches tiles through the tensor copy engine into a ring of STAGES, two
 * warpgroups multiply, 64 rows each. */
#ifndef TM_DEVICE_CUDA_GEMM90_CUH
#define TM_DEVICE_CUDA_GEMM90_CUH

#include "device/cuda/wgmma.cuh"

#include <cuda.h>

enum { GEMM90_OUT_BYTES = 64 * 128 * 2 }; /* shared memory of a warpgroup for what it stores */

struct gemm90_args {
    CUtensorMap a, b;       /* boxes of 64 columns: 128 rows of a; BN rows of b, or 64 when MN-major */
    CUtensorMap low_a, low_b; /* the low-rank part: [M, low_k] and as b */
    CUtensorMap c;          /* boxes of 64 columns, 64 rows */
    int m, n, k, low_k;     /* low_k 0: none */
    bool add;               /* c +=, rounded once more */
};

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

/* A box of shared memory to global memory, in the background; rows and columns beyond the matrix are left out. */
TM_DEVICE void store_box(const CUtensorMap *map, const void *from, int column, int row, bool add)
{
    if (add)
        asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(shared_address(from)), "r"(column), "r"(row) : "memory");
    else
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(shared_address(from)), "r"(column), "r"(row) : "memory");
}
TM_DEVICE void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/* Until what was stored has been read out of shared memory. */
TM_DEVICE void store_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

TM_DEVICE void store_matrices(void *to, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(to)), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

#define WG_D128 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
                "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
                "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
                "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}"

template <int TRANSPOSED> TM_DEVICE void product(float (&c)[32][4], uint64_t a, uint64_t b, int add)
{
    asm volatile("{.reg .pred p; setp.ne.b32 p, %130, 0; wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " WG_D128 ", %128, %129, p, 1, 1, 0, %131;}"
                 : WG_F32(c, 0), WG_F32(c, 8), WG_F32(c, 16), WG_F32(c, 24) : "l"(a), "l"(b), "r"(add), "n"(TRANSPOSED));
}

/* Tile number i: columns of tiles GROUP high, so that tiles in flight share rows of a and columns of b in the cache. */
struct gemm90_place {
    int row, column;
};
template <int BN> TM_DEVICE gemm90_place gemm90_find(int i, int tiles_m, int tiles_n)
{
    constexpr int GROUP = 16;
    int band = i / (GROUP * tiles_n), first = band * GROUP, height = min(GROUP, tiles_m - first), rest = i - band * GROUP * tiles_n;
    return {(first + rest % height) * 128, rest / height * BN};
}

template <int BN, bool MN_MAJOR, int STAGES>
__global__ void __launch_bounds__(384, 1) gemm90(const __grid_constant__ gemm90_args w)
{
    constexpr int BM = 128, BK = 64, NT = BN / 8, A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2;
    extern __shared__ __align__(1024) bf16 shared[];
    char *ring = (char *)shared;
    __shared__ uint64_t full[STAGES], empty[STAGES];
    int tiles_m = (w.m + BM - 1) / BM, tiles_n = (w.n + BN - 1) / BN, tiles = tiles_m * tiles_n;
    int blocks = (w.k + BK - 1) / BK, all = blocks + (w.low_k + BK - 1) / BK;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 2);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        fence_shared();
    }
    __syncthreads();
    int group = threadIdx.x / 128, stage = 0, phase = 0;
    auto next = [&] {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    };
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x != 0)
            return;
        for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
            gemm90_place at = gemm90_find<BN>(i, tiles_m, tiles_n);
            for (int block = 0; block < all; block++, next()) {
                char *to = ring + stage * (A_BYTES + B_BYTES);
                bool low = block >= blocks;
                const CUtensorMap *a = low ? &w.low_a : &w.a, *b = low ? &w.low_b : &w.b;
                int k = (low ? block - blocks : block) * BK;
                barrier_wait(&empty[stage], phase ^ 1);
                barrier_expect(&full[stage], A_BYTES + B_BYTES);
                fetch_box(to, a, k, at.row, &full[stage]);
                if (MN_MAJOR)
                    for (int j = 0; j < BN / 64; j++)
                        fetch_box(to + A_BYTES + j * 64 * BK * 2, b, at.column + j * 64, k, &full[stage]);
                else
                    fetch_box(to + A_BYTES, b, k, at.column, &full[stage]);
            }
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    char *own = ring + STAGES * (A_BYTES + B_BYTES) + (group - 1) * GEMM90_OUT_BYTES; /* two boxes of c */
    bool leader = threadIdx.x % 128 == 0;
    float c[NT][4];
    for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
        gemm90_place at = gemm90_find<BN>(i, tiles_m, tiles_n);
        int before = 0;
        for (int block = 0; block < all; block++, next()) {
            const bf16 *a = (const bf16 *)(ring + stage * (A_BYTES + B_BYTES)), *b = a + A_BYTES / 2;
            barrier_wait(&full[stage], phase);
            products_begin();
#pragma unroll
            for (int k = 0; k < BK; k += 16) {
                uint64_t da = describe<BM>(a, (group - 1) * 64, k);
                if (MN_MAJOR)
                    product<1>(c, da, describe_transposed<BK>(b, k, 0), block > 0 || k > 0);
                else
                    product<0>(c, da, describe<BN>(b, 0, k), block > 0 || k > 0);
            }
            products_commit();
            products_wait<1>();
            if (leader && block > 0)
                barrier_arrive(&empty[before]);
            before = stage;
        }
        products_wait<0>();
        if (leader)
            barrier_arrive(&empty[before]);
        products_keep(c);
        /* 128 columns at a time through shared memory; a lane gives stmatrix the address of one row of eight */
        int row = warp * 16 + lane % 16;
#pragma unroll
        for (int n = 0; n < NT; n += 16) {
            if (leader)
                store_wait_read();
            asm volatile("bar.sync %0, 128;" ::"r"(group) : "memory");
#pragma unroll
            for (int j = n; j < n + 16; j += 2) {
                int unit = j % 8 + lane / 16;
                store_matrices(own + (j - n) / 8 * 8192 + row * 128 + (unit ^ row % 8) * 16, pack(c[j][0], c[j][1]), pack(c[j][2], c[j][3]),
                               pack(c[j + 1][0], c[j + 1][1]), pack(c[j + 1][2], c[j + 1][3]));
            }
            fence_shared();
            asm volatile("bar.sync %0, 128;" ::"r"(group) : "memory");
            if (leader) {
                store_box(&w.c, own, at.column + n * 8, at.row + (group - 1) * 64, w.add);
                store_box(&w.c, own + 8192, at.column + n * 8 + 64, at.row + (group - 1) * 64, w.add);
                store_commit();
            }
        }
    }
    if (leader)
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

#endif
