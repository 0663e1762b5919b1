/* The matrix product on Hopper (sm_90a), for operands that the tensor copy engine takes: k, n, leading dimensions
 * multiples of 8, addresses of 16 bytes. See tiles.cuh.
 *
 * Ours and not a library's, because its bits must not depend on how many rows there are, on where a row stands or on
 * which algorithm a heuristic picks. Blocks of k are 64; a 16-bit output is rounded before the old value is added, in
 * the memory's own adder (cp.reduce): a sum of two terms, in one order.
 *
 * GLU: the columns of out are gate and up, and h = silu(gate) up is stored beside them. A tile is then 128 columns of gate
 * and the same 128 of up: the factors' halves count as matrices of their own.
 *
 * A block is persistent: one warp fetches tiles through the tensor copy engine into a ring, two warpgroups multiply, 64
 * rows each, and store in the background. */
#ifndef TM_DEVICE_CUDA_HALF_GEMM90_CUH
#define TM_DEVICE_CUDA_HALF_GEMM90_CUH

#include "device/cuda/half/activate.cuh"
#include "device/cuda/half/tiles.cuh"
#include "device/cuda/half/wgmma.cuh"

enum { GEMM90_ROWS = 128, GEMM90_DEPTH = 64, GEMM90_BOX = 64 * 128, GEMM90_GROUP = 16 };

struct gemm90_args {
    CUtensorMap a, low_a; /* boxes of 128 rows, 64 of k; turned: 64 of k, 64 rows */
    CUtensorMap b, low_b; /* a matrix a replica (GLU: two); boxes of BN rows (GLU: half), 64 of k; turned: 64 of k, 64 columns */
    CUtensorMap out, h;   /* boxes of 64 rows of 128 bytes; GLU: out is two matrices */
    tiles_args w;
    int splits; /* of k, added to the output one after the other; 1: one sum */
    int *done;  /* with splits > 1: [tiles, 2], zeros: how many splits of a half tile have been added */
};

/* For tiles of BN columns: stages of the ring; boxes that a warpgroup stores at a time, and has. */
template <int BN> struct gemm90_sizes {
    enum { STAGES = BN == 128 ? 5 : 4, CHUNK = BN % 128 ? 1 : 2, BOXES = BN % 128 ? 3 : 2, A_BYTES = GEMM90_ROWS * GEMM90_DEPTH * 2, B_BYTES = BN * GEMM90_DEPTH * 2,
           STAGE = A_BYTES + B_BYTES, OUT = STAGES * STAGE, SHARED = OUT + 2 * BOXES * GEMM90_BOX };
};

/* A place in the ring and the parity of its barriers. */
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

template <int BN, bool GLU> using gemm90_walk = tile_walk<GEMM90_ROWS, GLU ? BN / 2 : BN, GEMM90_GROUP>;

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

/* A warpgroup's 64 rows of a tile to global memory, CHUNK boxes at a time through its own ring; at.row: of its
 * first row. */
template <class T, int BN> struct gemm90_epilogue {
    enum { NT = BN / 8, CHUNK = gemm90_sizes<BN>::CHUNK, BOXES = gemm90_sizes<BN>::BOXES };
    char *own;
    int group;
    bool leader;
    int *done, told; /* |0: to be set to `told` as soon as what was stored last is there */

    __device__ __forceinline__ void tell()
    {
        if (!done)
            return;
        store_wait();
        fence_engine();
        store_release(done, told);
        done = nullptr;
    }

    /* Until the splits before number `split` have been added. */
    __device__ __forceinline__ void await(const int *before, int split)
    {
        while (load_acquire(before) < split)
            ;
        fence_engine();
    }

    __device__ __forceinline__ char *box(int chunk, int i) { return own + (chunk * CHUNK + i) % BOXES * GEMM90_BOX; }

    /* What stands in the boxes of a chunk to columns from `column` on of a matrix of V. */
    template <class V> __device__ __forceinline__ void send(const tile_place &at, int m, const CUtensorMap *map, V *out, int64_t ld, int columns, int chunk, int column, int matrix, bool add)
    {
        fence_shared();
        group_barrier(group, 128);
        constexpr int WIDTH = 128 / sizeof(V);
        if (at.end - at.row >= 64 || at.end == m) {
            if (leader) {
#pragma unroll
                for (int i = 0; i < CHUNK; i++)
                    store_box(map, box(chunk, i), column + i * WIDTH, at.row, matrix, add);
                store_commit();
            }
            return;
        }
        for (int i = 0; i < CHUNK; i++, column += WIDTH)
            gemm90_copy_rows(box(chunk, i), out + at.row * ld + (int64_t)matrix * columns + column, ld, at.end - at.row, columns - column, add);
    }

    /* The next chunk's boxes are free again. */
    __device__ __forceinline__ void wait()
    {
        if (leader)
            store_wait_read<BOXES / CHUNK - 1>();
        group_barrier(group, 128);
    }

    /* A chunk of 16-bit outputs; value(j, k): two neighbours, packed, columns 8 j on, k 0 or 1 for the row or that 8 below. */
    template <class F> __device__ __forceinline__ void put(int chunk, F value)
    {
        int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
        wait();
#pragma unroll
        for (int i = 0; i < CHUNK * 8; i += 2) { /* stmatrix: a lane gives the address of one row of eight */
            int unit = i % 8 + lane / 16;
            store_matrices(box(chunk, i / 8) + row * 128 + (unit ^ row % 8) * 16, value(i, 0), value(i, 1), value(i + 1, 0), value(i + 1, 1));
        }
    }

    __device__ __forceinline__ void add_bias(const tiles_args &w, const tile_place &at, float (&c)[NT][4], bool glu)
    {
#pragma unroll
        for (int j = 0; j < NT; j++) {
            int column = at.column + j * 8 + threadIdx.x % 4 * 2 + (glu && j >= NT / 2 ? w.n / 2 - NT * 4 : 0);
            float x = bias_at(w, column), y = bias_at(w, column + 1);
            c[j][0] += x, c[j][1] += y, c[j][2] += x, c[j][3] += y;
        }
    }

    __device__ __forceinline__ void run(const gemm90_args &g, const tile_place &at, float (&c)[NT][4])
    {
        const tiles_args &w = g.w;
        if (w.bias)
            add_bias(w, at, c, false);
        if (!w.wide) {
#pragma unroll
            for (int chunk = 0; chunk < NT / 8 / CHUNK; chunk++) {
                put(chunk, [&](int i, int k) { return pack<T>(c[chunk * CHUNK * 8 + i][k * 2], c[chunk * CHUNK * 8 + i][k * 2 + 1]); });
                send(at, w.m, &g.out, (T *)w.out, w.ld, w.n, chunk, at.column + chunk * CHUNK * 64, 0, w.add);
            }
            return;
        }
        int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
        for (int chunk = 0; chunk < NT / 4 / CHUNK; chunk++) {
            wait();
#pragma unroll
            for (int i = 0; i < CHUNK * 4; i++) {
                int j = chunk * CHUNK * 4 + i;
                char *to = box(chunk, i / 4) + row * 128 + (((j % 4) * 2 + lane % 4 / 2) ^ row % 8) * 16 + lane % 2 * 8;
                *(float2 *)to = make_float2(c[j][0], c[j][1]);
                *(float2 *)(to + 8 * 128) = make_float2(c[j][2], c[j][3]);
            }
            send(at, w.m, &g.out, (float *)w.out, w.ld, w.n, chunk, at.column + chunk * CHUNK * 32, 0, w.add);
        }
    }

    /* GLU: gate, up, then h of what they were rounded to. */
    __device__ __forceinline__ void run_glu(const gemm90_args &g, const tile_place &at, float (&c)[NT][4])
    {
        const tiles_args &w = g.w;
        if (w.bias)
            add_bias(w, at, c, true);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            put(half, [&](int i, int k) { return pack<T>(c[half * 16 + i][k * 2], c[half * 16 + i][k * 2 + 1]); });
            send(at, w.m, &g.out, (T *)w.out, w.ld, w.n / 2, half, at.column, half, false);
        }
        put(0, [&](int i, int k) {
            float h[2];
#pragma unroll
            for (int e = 0; e < 2; e++)
                h[e] = activate<TM_ACT_SILU>(float_of(half_of<T>(c[i][k * 2 + e]))).x * float_of(half_of<T>(c[16 + i][k * 2 + e]));
            return pack<T>(h[0], h[1]);
        });
        send(at, w.m, &g.h, (T *)w.h, w.h_ld, w.n / 2, 0, at.column, 0, false);
    }
};

/* The fetching warp's one thread: all blocks of all of this block's tiles. */
template <int BN, bool A_TURNED, bool B_TURNED, bool GLU> TM_DEVICE void gemm90_fetch(const gemm90_args &g, char *ring, uint64_t *full, uint64_t *empty, gemm90_walk<BN, GLU> walk, int units, int blocks, int all)
{
    typedef gemm90_sizes<BN> size;
    gemm90_turn<size::STAGES> turn = {0, 0};
    for (int i = blockIdx.x; i < units; i += gridDim.x, walk.advance(gridDim.x)) {
        tile_place at = walk.place(g.w);
        int end = tile_share(all, walk.split + 1, g.splits);
        for (int block = tile_share(all, walk.split, g.splits); block < end; block++, turn.next()) {
            char *a = ring + turn.stage * size::STAGE, *b = a + size::A_BYTES;
            uint64_t *bar = &full[turn.stage];
            bool low = block >= blocks;
            const CUtensorMap *from = low ? &g.low_a : &g.a;
            int k = (low ? block - blocks : block) * GEMM90_DEPTH, matrix = low ? at.replica : 0;
            barrier_wait(&empty[turn.stage], turn.phase ^ 1);
            barrier_expect(bar, size::STAGE);
            if (A_TURNED) {
                fetch_box(a, from, at.row, k, bar);
                fetch_box(a + GEMM90_BOX, from, at.row + 64, k, bar);
            } else
                fetch_box(a, from, k, at.row, bar);
            from = low ? &g.low_b : &g.b;
            if (B_TURNED)
                for (int j = 0; j < BN / 64; j++)
                    fetch_box(b + j * GEMM90_BOX, from, at.column + j * 64, k, matrix, bar);
            else if (GLU) {
                fetch_box(b, from, k, at.column, matrix * 2, bar);
                fetch_box(b + size::B_BYTES / 2, from, k, at.column, matrix * 2 + 1, bar);
            } else
                fetch_box(b, from, k, at.column, matrix, bar);
        }
    }
}

/* A warpgroup's work, group 1 or 2. */
template <class T, int BN, bool A_TURNED, bool B_TURNED, bool GLU> TM_DEVICE void gemm90_multiply(const gemm90_args &g, char *ring, uint64_t *full, uint64_t *empty, gemm90_walk<BN, GLU> walk, int units, int blocks, int all)
{
    typedef gemm90_sizes<BN> size;
    int group = threadIdx.x / 128;
    bool leader = threadIdx.x % 128 == 0;
    gemm90_turn<size::STAGES> turn = {0, 0};
    gemm90_epilogue<T, BN> epilogue = {ring + size::OUT + (group - 1) * size::BOXES * GEMM90_BOX, group, leader, nullptr, 0};
    float c[BN / 8][4];
    for (int i = blockIdx.x; i < units; i += gridDim.x, walk.advance(gridDim.x)) {
        tile_place at = walk.place(g.w);
        int *done = g.done + (walk.tile * 2 + group - 1);
        int split = walk.split, begin = tile_share(all, split, g.splits), end = tile_share(all, split + 1, g.splits), before = 0;
        at.row += (group - 1) * 64;
        for (int block = begin; block < end; block++, turn.next()) {
            const char *a = ring + turn.stage * size::STAGE, *b = a + size::A_BYTES;
            barrier_wait(&full[turn.stage], turn.phase);
            auto step = [&](int k) {
                uint64_t da = A_TURNED ? describe_transposed<GEMM90_DEPTH>(a, k, (group - 1) * 64) : describe<GEMM90_ROWS>(a, (group - 1) * 64, k);
                uint64_t db = B_TURNED ? describe_transposed<GEMM90_DEPTH>(b, k, 0) : describe<BN>(b, 0, k);
                product<B_TURNED, A_TURNED, T>(c, da, db, block > begin || k > 0);
            };
            products_begin();
            if (A_TURNED || block < blocks) {
#pragma unroll
                for (int k = 0; k < GEMM90_DEPTH; k += 16)
                    step(k);
            } else
#pragma unroll 1
                for (int k = 0, depth = min(g.w.low - (block - blocks) * GEMM90_DEPTH, (int)GEMM90_DEPTH); k < depth; k += 16)
                    step(k);
            products_commit();
            products_wait<1>();
            if (leader && block > begin)
                barrier_arrive(&empty[before]);
            if (leader && block == begin + 8) /* by now what was stored is there */
                epilogue.tell();
            before = turn.stage;
        }
        products_wait<0>();
        if (leader)
            barrier_arrive(&empty[before]);
        products_keep(c);
        if (leader) {
            epilogue.tell();
            if (split > 0)
                epilogue.await(done, split);
        }
        if constexpr (GLU)
            epilogue.run_glu(g, at, c);
        else
            epilogue.run(g, at, c);
        if (split + 1 < g.splits) {
            epilogue.done = done;
            epilogue.told = split + 1;
        }
    }
    if (leader) {
        epilogue.tell();
        store_wait();
    }
}

#endif

template <class T, int BN, bool A_TURNED, bool B_TURNED, bool GLU> __global__ void __launch_bounds__(384, 1) gemm90(const __grid_constant__ gemm90_args g)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    constexpr int STAGES = gemm90_sizes<BN>::STAGES, WIDTH = GLU ? BN / 2 : BN;
    TM_SHARED(char, ring, 1024);
    __shared__ uint64_t full[STAGES], empty[STAGES];
    int tiles_m = tile_rows<GEMM90_ROWS>(g.w), tiles_n = ((GLU ? g.w.n / 2 : g.w.n) + WIDTH - 1) / WIDTH, units = tiles_m * tiles_n * g.splits;
    int blocks = (g.w.k + GEMM90_DEPTH - 1) / GEMM90_DEPTH, all = blocks + (g.w.low + GEMM90_DEPTH - 1) / GEMM90_DEPTH;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 2);
        }
        fence_barriers();
        fence_shared();
    }
    __syncthreads();
    gemm90_walk<BN, GLU> walk = {(int)blockIdx.x, 0, tiles_m, tiles_n, 0, (int)blockIdx.x};
    walk.settle();
    if (threadIdx.x >= 128) {
        registers_more<232>();
        gemm90_multiply<T, BN, A_TURNED, B_TURNED, GLU>(g, ring, full, empty, walk, units, blocks, all);
    } else {
        registers_less<40>();
        if (threadIdx.x == 0)
            gemm90_fetch<BN, A_TURNED, B_TURNED, GLU>(g, ring, full, empty, walk, units, blocks, all);
    }
#else
    __trap(); /* built for sm_90 without its own instructions (sm_90a) */
#endif
}

#endif
