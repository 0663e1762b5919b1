/* The matrix product on Hopper (sm_90a), for operands that the tensor copy engine takes: k, n, leading dimensions
 * multiples of 8, addresses of 16 bytes. See tiles.cuh.
 *
 * Ours and not a library's, because its bits must not depend on how many rows there are, on where a row stands or on
 * which algorithm a heuristic picks. Blocks of k are 64; a 16-bit output is rounded before the old value is added, in
 * the memory's own adder (cp.reduce): a sum of two terms, in one order.
 *
 * A block is persistent: one warp fetches tiles through the tensor copy engine into a ring of STAGES, two warpgroups
 * multiply, 64 rows each, and store in the background. The blocks of a CLUSTER work on neighbouring row tiles of the
 * same columns; each fetches its share of b for all of them. */
#ifndef TM_DEVICE_CUDA_HALF_GEMM90_CUH
#define TM_DEVICE_CUDA_HALF_GEMM90_CUH

#include "device/cuda/half/tiles.cuh"
#include "device/cuda/half/wgmma.cuh"

enum { GEMM90_ROWS = 128, GEMM90_DEPTH = 64, GEMM90_BOX = 64 * 128, GEMM90_OUT_BYTES = 2 * GEMM90_BOX, /* what a warpgroup stores at a time */
       GEMM90_GROUP = 16 };

/* An attribute that compilers for other architectures refuse. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define GEMM90_CLUSTER_DIMS(N) __cluster_dims__(N, 1, 1)
#else
#define GEMM90_CLUSTER_DIMS(N)
#endif

struct gemm90_args {
    CUtensorMap a, low_a; /* boxes of 128 rows, 64 of k; turned: 64 of k, 64 rows */
    CUtensorMap b, low_b; /* a matrix a replica; boxes of BN / CLUSTER rows, 64 of k; turned: 64 of k, 64 columns */
    CUtensorMap out;      /* boxes of 64 rows of 128 bytes */
    tiles_args w;
};

template <int BN, int STAGES> constexpr int gemm90_shared() { return STAGES * (GEMM90_ROWS + BN) * GEMM90_DEPTH * 2 + 2 * GEMM90_OUT_BYTES; }

/* A ring's place and the parity of its barriers. */
template <int STAGES> struct gemm90_turn {
    int stage, phase;
    __device__ __forceinline__ void next()
    {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* The box at `to` row by row: rows before `rows`, columns before `columns`, 128 bytes of V. */
template <class V> TM_DEVICE void gemm90_copy_rows(const char *box, V *to, int64_t ld, int rows, int columns, bool add)
{
    constexpr int EACH = 16 / sizeof(V);
    for (int i = threadIdx.x % 128; i < 64 * 8; i += 128) {
        int row = i / 8, unit = i % 8;
        if (row >= rows)
            continue;
        const V *from = (const V *)(box + row * 128 + (unit ^ row % 8) * 16);
        for (int j = 0; j < EACH; j++)
            if (unit * EACH + j < columns) {
                V *at = to + row * ld + unit * EACH + j;
                if constexpr (sizeof(V) == 4)
                    *at = add ? *at + from[j] : from[j];
                else
                    *at = add ? half_of<V>(float_of(*at) + float_of(from[j])) : from[j];
            }
    }
}

/* A warpgroup's 64 rows of a tile to global memory. own: two boxes of its own; at.row: of its first row. */
template <class T, int NT> struct gemm90_epilogue {
    char *own;
    int group;
    bool leader;

    __device__ __forceinline__ void send(const gemm90_args &g, const tile_place &at, int column, int box_columns)
    {
        fence_shared();
        asm volatile("bar.sync %0, 128;" ::"r"(group) : "memory");
        if (at.end - at.row >= 64 || at.end == g.w.m) {
            if (leader) {
                store_box(&g.out, own, column, at.row, g.w.add);
                store_box(&g.out, own + GEMM90_BOX, column + box_columns, at.row, g.w.add);
                store_commit();
            }
            return;
        }
        for (int i = 0; i < 2; i++, column += box_columns) {
            if (g.w.wide)
                gemm90_copy_rows(own + i * GEMM90_BOX, (float *)g.w.out + at.row * g.w.ld + column, g.w.ld, at.end - at.row, g.w.n - column, g.w.add);
            else
                gemm90_copy_rows(own + i * GEMM90_BOX, (T *)g.w.out + at.row * g.w.ld + column, g.w.ld, at.end - at.row, g.w.n - column, g.w.add);
        }
    }

    /* Own is free again. */
    __device__ __forceinline__ void wait()
    {
        if (leader)
            store_wait_read();
        asm volatile("bar.sync %0, 128;" ::"r"(group) : "memory");
    }

    __device__ __forceinline__ void run(const gemm90_args &g, const tile_place &at, float (&c)[NT][4])
    {
        int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
        if (g.w.bias)
#pragma unroll
            for (int j = 0; j < NT; j++) {
                float x = bias_at(g.w, at.column + j * 8 + lane % 4 * 2), y = bias_at(g.w, at.column + j * 8 + lane % 4 * 2 + 1);
                c[j][0] += x, c[j][1] += y, c[j][2] += x, c[j][3] += y;
            }
        if (!g.w.wide) { /* stmatrix: a lane gives the address of one row of eight */
            int row = warp * 16 + lane % 16;
#pragma unroll
            for (int n = 0; n < NT; n += 16) {
                wait();
#pragma unroll
                for (int j = n; j < n + 16; j += 2) {
                    int unit = j % 8 + lane / 16;
                    store_matrices(own + (j - n) / 8 * GEMM90_BOX + row * 128 + (unit ^ row % 8) * 16, pack<T>(c[j][0], c[j][1]), pack<T>(c[j][2], c[j][3]),
                                   pack<T>(c[j + 1][0], c[j + 1][1]), pack<T>(c[j + 1][2], c[j + 1][3]));
                }
                send(g, at, at.column + n * 8, 64);
            }
            return;
        }
        int row = warp * 16 + lane / 4;
#pragma unroll
        for (int n = 0; n < NT; n += 8) {
            wait();
#pragma unroll
            for (int j = n; j < n + 8; j++) {
                char *to = own + (j - n) / 4 * GEMM90_BOX + row * 128 + (((j % 4) * 2 + lane % 4 / 2) ^ row % 8) * 16 + lane % 2 * 8;
                *(float2 *)to = make_float2(c[j][0], c[j][1]);
                *(float2 *)(to + 8 * 128) = make_float2(c[j][2], c[j][3]);
            }
            send(g, at, at.column + n * 8, 32);
        }
    }
};

#endif

template <class T, int BN, bool A_TURNED, bool B_TURNED, int STAGES, int CLUSTER>
__global__ void GEMM90_CLUSTER_DIMS(CLUSTER) __launch_bounds__(384, 1) gemm90(const __grid_constant__ gemm90_args g)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    constexpr int BM = GEMM90_ROWS, BK = GEMM90_DEPTH, NT = BN / 8, A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2, SHARE = BN / CLUSTER;
    extern __shared__ __align__(1024) char ring[];
    __shared__ uint64_t full[STAGES], empty[STAGES];
    const tiles_args &w = g.w;
    int tiles_m = tile_rows<BM * CLUSTER>(w), tiles_n = (w.n + BN - 1) / BN, tiles = tiles_m * tiles_n;
    int blocks = (w.k + BK - 1) / BK, all = blocks + (w.low + BK - 1) / BK;
    int rank = CLUSTER > 1 ? cluster_rank() : 0, first = blockIdx.x / CLUSTER, stride = gridDim.x / CLUSTER;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 2 * CLUSTER);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        fence_shared();
    }
    __syncthreads();
    if (CLUSTER > 1)
        cluster_sync();
    int group = threadIdx.x / 128;
    gemm90_turn<STAGES> turn = {0, 0};
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0)
            for (int i = first; i < tiles; i += stride) {
                tile_place at = tile_find<BM * CLUSTER, BN, GEMM90_GROUP>(w, i, tiles_m, tiles_n);
                at.row += rank * BM;
                for (int block = 0; block < all; block++, turn.next()) {
                    char *a = ring + turn.stage * (A_BYTES + B_BYTES), *b = a + A_BYTES + rank * SHARE * BK * 2;
                    uint64_t *bar = &full[turn.stage];
                    bool low = block >= blocks;
                    const CUtensorMap *from = low ? &g.low_a : &g.a;
                    int k = (low ? block - blocks : block) * BK, matrix = low ? at.replica : 0, column = at.column + rank * SHARE;
                    barrier_wait(&empty[turn.stage], turn.phase ^ 1);
                    barrier_expect(bar, A_BYTES + B_BYTES);
                    if (A_TURNED) {
                        fetch_box(a, from, at.row, k, bar);
                        fetch_box(a + GEMM90_BOX, from, at.row + 64, k, bar);
                    } else
                        fetch_box(a, from, k, at.row, bar);
                    from = low ? &g.low_b : &g.b;
                    for (int j = 0; j < (B_TURNED ? SHARE / 64 : 1); j++) {
                        int x = B_TURNED ? column + j * 64 : k, y = B_TURNED ? k : column;
                        if (CLUSTER > 1)
                            fetch_box_shared(b + j * GEMM90_BOX, from, x, y, matrix, bar, (1 << CLUSTER) - 1);
                        else
                            fetch_box(b + j * GEMM90_BOX, from, x, y, matrix, bar);
                    }
                }
            }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        bool leader = threadIdx.x % 128 == 0;
        gemm90_epilogue<T, NT> epilogue = {ring + STAGES * (A_BYTES + B_BYTES) + (group - 1) * GEMM90_OUT_BYTES, group, leader};
        float c[NT][4];
        auto release = [&](int stage) {
            if (CLUSTER == 1) {
                if (leader)
                    barrier_arrive(&empty[stage]);
            } else if (threadIdx.x % 128 < CLUSTER)
                barrier_arrive_at(&empty[stage], threadIdx.x % 128);
        };
        for (int i = first; i < tiles; i += stride) {
            tile_place at = tile_find<BM * CLUSTER, BN, GEMM90_GROUP>(w, i, tiles_m, tiles_n);
            at.row += rank * BM + (group - 1) * 64;
            int before = 0;
            for (int block = 0; block < all; block++, turn.next()) {
                const char *a = ring + turn.stage * (A_BYTES + B_BYTES), *b = a + A_BYTES;
                barrier_wait(&full[turn.stage], turn.phase);
                products_begin();
#pragma unroll
                for (int k = 0; k < BK; k += 16) {
                    uint64_t da = A_TURNED ? describe_transposed<BK>(a, k, (group - 1) * 64) : describe<BM>(a, (group - 1) * 64, k);
                    uint64_t db = B_TURNED ? describe_transposed<BK>(b, k, 0) : describe<BN>(b, 0, k);
                    product<B_TURNED, A_TURNED, T>(c, da, db, block > 0 || k > 0);
                }
                products_commit();
                products_wait<1>();
                if (block > 0)
                    release(before);
                before = turn.stage;
            }
            products_wait<0>();
            release(before);
            products_keep(c);
            epilogue.run(g, at, c);
        }
        if (leader)
            asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
    if (CLUSTER > 1)
        cluster_sync(); /* others still write into this block's memory and arrive at its barriers */
#else
    __trap(); /* built for sm_90 without its own instructions (sm_90a) */
#endif
}

#endif
