/* The matrix product on Hopper (sm_90a): bf16 factors, f32 sums, ours and not a library's, because its bits must
 * not depend on how many rows there are, on where a row stands or on which algorithm a heuristic picks.
 *
 * c[M, N] = a[M, K] b^T, b [N, K] (K-major, a forward product) or b [K, N] (MN-major, an input gradient).
 * Bits: an output is one accumulator over blocks of 64 of k in ascending order, then, when there is a low-rank
 * part, over the blocks of its own k; tiles have 128 rows by BN columns everywhere.
 *
 * A block is persistent: one warp fetches tiles through the tensor copy engine into a ring of STAGES, two
 * warpgroups multiply, 64 rows each. */
#ifndef TM_DEVICE_CUDA_HALF_GEMM90_CUH
#define TM_DEVICE_CUDA_HALF_GEMM90_CUH

#include "device/cuda/half/wgmma.cuh"

enum { GEMM90_OUT_BYTES = 64 * 128 * 2 }; /* shared memory of a warpgroup for what it stores */

struct gemm90_args {
    CUtensorMap a, b;       /* boxes of 64 columns: 128 rows of a; BN rows of b, or 64 when MN-major */
    CUtensorMap low_a, low_b; /* the low-rank part: [M, low_k] and as b */
    CUtensorMap c;          /* boxes of 64 columns, 64 rows */
    int m, n, k, low_k;     /* low_k 0: none */
    bool add;               /* c +=, rounded once more */
};

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
