/* Products with a low rank on one side, on tensor cores: what lora.cu and lowrank.cu are built of.
 *
 * The deltas of a group lie side by side: "low" columns, part i's at columns [at, at + r), zeros up to a multiple of
 * 16. Its factors become two matrices of the activations' type a replica, both used in both directions:
 *   a_side [low, K]: the A of the parts, one below the other;
 *   b_side [N, low]: scale B of the parts, each at its rows (its columns of y) and its low columns, zeros elsewhere.
 *
 * Order of sums, from the sizes of the model and the chunks alone: rows_kernel over columns k in blocks of 16, block i
 * in chain i mod 4, the four chains joined in order; columns_kernel a chain from zero through each chunk, sixteen rows
 * from the chunk's first row on at a time, the chunks' sums added to what was there in order; add_kernel over the low
 * columns in blocks of 16, part by part. Tiles never hold rows of two replicas, and rows beyond the last are
 * read as zeros: nothing of them reaches a sum. */
#ifndef TM_DEVICE_CUDA_HALF_SKINNY_CUH
#define TM_DEVICE_CUDA_HALF_SKINNY_CUH

#include "device/cuda/half/half.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>

enum { LOW_PARTS = 3, LOW_RANKS = 256, LOW_JOBS = 8 };

/* --- Instructions: of sm_80 and later, fragments as the PTX manual has them for mma.m16n8k16 --- */

template <class H> TM_LANE H narrow(float v);
template <> __device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }
template <> __device__ inline float narrow<float>(float v) { return v; }
template <> __device__ inline __half narrow<__half>(float v) { return __float2half_rn(v); }
TM_LANE float widen(float v) { return v; }
TM_LANE float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
TM_LANE float widen(__half v) { return __half2float(v); }

/* c[16 x 8] += a[16 x 16] b[16 x 8] */
template <class H> TM_LANE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    if constexpr (std::is_same<H, __half>::value)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

TM_LANE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* Four 8 x 8 blocks; lane l gives the address of row l % 8 of block l / 8. */
TM_LANE void load_blocks(uint32_t (&r)[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}
TM_LANE void load_blocks_turned(uint32_t (&r)[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}

/* A fragment of 16 x 16 from a tile [m][k], or [k][m]; a pair of B fragments of 16 x 8 from [n][k], or [k][n]: the
 * first eight columns in {r0, r1}. */
template <int LD, class H> TM_LANE void load_a(uint32_t (&r)[4], const H *tile, int m, int k)
{
    int l = threadIdx.x % 32;
    load_blocks(r, tile + (m + l % 16) * LD + k + l / 16 * 8);
}
template <int LD, class H> TM_LANE void load_a_turned(uint32_t (&r)[4], const H *tile, int k, int m)
{
    int l = threadIdx.x % 32;
    load_blocks_turned(r, tile + (k + l % 8 + l / 16 * 8) * LD + m + l / 8 % 2 * 8);
}
template <int LD, class H> TM_LANE void load_b(uint32_t (&r)[4], const H *tile, int n, int k)
{
    int l = threadIdx.x % 32;
    load_blocks(r, tile + (n + l % 8 + l / 16 * 8) * LD + k + l / 8 % 2 * 8);
}
template <int LD, class H> TM_LANE void load_b_turned(uint32_t (&r)[4], const H *tile, int k, int n)
{
    int l = threadIdx.x % 32;
    load_blocks_turned(r, tile + (k + l % 16) * LD + n + l / 16 * 8);
}

/* Sixteen bytes to shared memory in the background; zeros when not valid (the address is one that can be read). */
TM_LANE void copy_async(void *shared, const void *global, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
TM_LANE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> TM_LANE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

/* --- The deltas of a group --- */

struct low_part {
    tm_tensor a, b, xa, dxa, da, db; /* as in tm_lora_part, f32 */
    int64_t first, out;              /* columns of y */
    int32_t r, at;                   /* low columns */
    float scale;
    tm_cuda_drop drop;
};

struct low_group {
    tm_rows rows;
    const tm_step_params *step;
    int64_t in, out; /* columns of x and y */
    int32_t parts, rank, low; /* sum of ranks; rounded up */
    bool drops;
    low_part part[LOW_PARTS];
};

/* The part that low column j belongs to, or -1. */
TM_LANE int part_of(const low_group &g, int j)
{
    for (int p = 0; p < g.parts; p++)
        if (j >= g.part[p].at && j < g.part[p].at + g.part[p].r)
            return p;
    return -1;
}

/* Rows of tile `tile`, when every replica's rows are cut into tiles of `height`. false: there is no such tile. */
struct low_tile {
    int32_t replica;
    int64_t first;
    int count;
};
TM_LANE bool tile_at(const tm_rows &rows, int64_t tile, int height, low_tile *out)
{
    for (int32_t r = 0; r < rows.replicas; r++) {
        int64_t from = rows.group[r], count = rows.group[r + 1] - from, tiles = (count + height - 1) / height;
        if (tile < tiles) {
            int64_t left = count - tile * height;
            *out = {r, from + tile * height, (int)(left < height ? left : height)};
            return true;
        }
        tile -= tiles;
    }
    return false;
}

/* v *= mask for the four channels from `channel` on of row t. */
template <class H> TM_LANE void drop_four(H *v, const tm_cuda_drop &d, uint64_t key, const tm_rows &rows, int64_t t, int64_t channel)
{
    tm_philox random = tm_philox_at(key, (uint32_t)(channel / 4), (uint32_t)rows.position[t], rows.example[t], d.module);
    for (int i = 0; i < 4; i++)
        v[i] = narrow<H>((random.word[i] >> 8 >= d.threshold ? d.scale : 0) * widen(v[i]));
}

/* What a block computes: low columns [from, to), which lie in a window of at most 64 of them that begins at a multiple
 * of 16. The sums run over (rows_kernel), or the outputs are (columns_kernel), columns [first, first + columns) of the
 * long side. */
struct low_job {
    int32_t window, from, to;
    int32_t part; /* whose mask */
    int64_t first, columns;
};
struct low_jobs {
    int32_t n, width; /* the widest window, in 16 columns */
    low_job job[LOW_JOBS];
};

/* Jobs for low columns [from, to). */
static inline void add_jobs(low_jobs *jobs, int32_t from, int32_t to, int32_t part, int64_t first, int64_t columns)
{
    while (from < to) {
        int32_t window = from / 16 * 16, end = to < window + 64 ? to : window + 64, width = (end - window + 15) / 16;
        jobs->job[jobs->n++] = {window, from, end, part, first, columns};
        jobs->width = width > jobs->width ? width : jobs->width;
        from = end;
    }
}

/* --- What is launched: skinny.cu. Everything of the activations' type is of `type`, and lies in scratch but for x. --- */

/* a_side, b_side |0. */
void low_pack(tm_device *d, const char *op, const low_group &g, tm_dtype type, void *a_side, void *b_side);
/* xa of every part, and side [T, low]: the same side by side. */
void low_forward(tm_device *d, const char *op, const low_group &g, tm_tensor x, const void *a_side, void *side);
/* dxa of every part, side: the same side by side; side_xa: the parts' xa side by side. */
void low_backward(tm_device *d, const char *op, const low_group &g, tm_tensor dy, const void *b_side, void *side, void *side_xa);
/* da and db of every part, from what low_backward left. */
void low_gradients(tm_device *d, const char *op, const low_group &g, tm_tensor x, tm_tensor dy, const void *side, const void *side_xa);
/* y += side b_side^T ; dx += masks of (side a_side), parts apart where they are dropped apart. */
void low_add_forward(tm_device *d, const char *op, const low_group &g, const void *side, const void *b_side, tm_tensor y);
void low_add_backward(tm_device *d, const char *op, const low_group &g, const void *side, const void *a_side, tm_tensor dx);
/* w in the activations' type, row by row. */
void low_narrow(tm_device *d, const char *op, tm_tensor w, tm_dtype type, void *out);

#endif
