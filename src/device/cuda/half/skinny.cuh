/* Products with a low rank on one side, on tensor cores: what lora.cu and lowrank.cu are built of.
 *
 * The deltas of a group lie side by side: "low" columns, part i's at columns [at, at + r), zeros up to a multiple of
 * 16. Its factors become two matrices of the activations' type a replica, both used in both directions:
 *   a_side [low, K]: the A of the parts, one below the other;
 *   b_side [N, low]: scale B of the parts, each at its rows (its columns of y) and its low columns, zeros elsewhere.
 *
 * Order of sums, from the sizes of the model and the chunks alone: rows_kernel over columns k in blocks of 16, block i
 * in chain i mod 4, the chains joined in order; strips_kernel a chain from zero through each chunk, sixteen rows
 * from the chunk's first row on at a time, the chunks' sums added to what was there in order; add_kernel over the low
 * columns in blocks of 16, part by part. once_kernel gives the sums of strips_kernel, and dxa in shares of 256 columns of dy:
 * in each a chain through either half, blocks of 16 columns in order, the halves, then the shares added in order. Tiles never hold rows of two replicas, and rows beyond the last are
 * read as zeros: nothing of them reaches a sum. */
#ifndef TM_DEVICE_CUDA_HALF_SKINNY_CUH
#define TM_DEVICE_CUDA_HALF_SKINNY_CUH

#include "device/cuda/half/half.h"
#include "device/cuda/half/mma.cuh"
extern "C" {
#include "device/lent.h"
}

#include <type_traits>

enum { LOW_PARTS = 3, LOW_RANKS = 256, LOW_JOBS = 8 };

/* --- Numbers and fragments --- */

template <class H> TM_LANE H narrow(float v);
template <> __device__ inline float narrow<float>(float v) { return v; }
template <> __device__ inline bf16 narrow<bf16>(float v) { return __float2bfloat16_rn(v); }
template <> __device__ inline f16 narrow<f16>(float v) { return __float2half_rn(v); }
TM_LANE float widen(float v) { return v; }
TM_LANE float widen(bf16 v) { return __bfloat162float(v); }
TM_LANE float widen(f16 v) { return __half2float(v); }

/* What a thread moves at once. */
template <class H> struct alignas(16) eight {
    H v[8];
};

/* As load_a, of either type, from a tile [k][m]. */
template <int LD, class H> TM_LANE void load_a_transposed(uint32_t (&r)[4], const H *tile, int k, int m)
{
    int lane = threadIdx.x % 32;
    load_matrices_transposed(r, tile + (k + lane % 8 + lane / 16 * 8) * LD + m + lane / 8 % 2 * 8);
}

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

/* Bytes of a row of masks, a bit a column. */
static inline TM_ON_DEVICE int64_t low_mask_pitch(int64_t columns) { return (columns + 127) / 128 * 16; }

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

/* v *= mask for the four channels from `channel` on of a row. */
template <class H> TM_LANE void drop_four(H *v, const tm_cuda_drop &d, uint64_t key, int32_t position, uint32_t example, uint32_t channel)
{
    tm_philox random = tm_philox_at(key, channel / 4, (uint32_t)position, example, d.module);
    struct alignas(4 * sizeof(H)) {
        H v[4];
    } u = *(decltype(u) *)v;
    for (int i = 0; i < 4; i++)
        u.v[i] = narrow<H>((random.word[i] >> 8 >= d.threshold ? d.scale : 0) * widen(u.v[i]));
    *(decltype(u) *)v = u;
}

/* Bit e: whether channel `channel` + e, a multiple of 8 on, is kept. */
TM_LANE uint32_t mask_of_eight(const tm_cuda_drop &d, uint64_t key, int32_t position, uint32_t example, uint32_t channel)
{
    uint32_t mask = 0;
    for (int half = 0; half < 2; half++) {
        tm_philox random = tm_philox_at(key, channel / 4 + half, (uint32_t)position, example, d.module);
        for (int i = 0; i < 4; i++)
            mask |= (random.word[i] >> 8 >= d.threshold ? 1u : 0u) << (4 * half + i);
    }
    return mask;
}

/* What a block computes: low columns [from, to), which lie in a window of at most 64 of them that begins at a multiple
 * of 16. The sums run over (rows_kernel), or the outputs are (strips_kernel), columns [first, first + columns) of the
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

/* --- Launching --- */

/* f(H()) for the type. */
template <class F> static void with_type(tm_dtype type, F f)
{
    if (type == TM_F16)
        f(f16());
    else
        f(bf16());
}

/* f(std::integral_constant<int, width>()) for a window of `width` times 16 columns. */
template <class F> static void with_width(int width, F f)
{
    switch (width) {
    case 1: f(std::integral_constant<int, 1>()); break;
    case 2: f(std::integral_constant<int, 2>()); break;
    case 3: f(std::integral_constant<int, 3>()); break;
    default: f(std::integral_constant<int, 4>()); break;
    }
}

template <class... P> static void launch(tm_device *d, const char *op, void (*kernel)(P...), dim3 grid, int threads, int shared, const P &...p)
{
    tm_cuda *c = tm_cuda_of(d);
    if (tm_cuda_prepare(c, op, kernel, threads, shared))
        tm_cuda_launch(c, op, kernel, grid, threads, (size_t)shared, p...);
}

/* --- What is launched: skinny.cu, skinny_sums.cu. Everything of the activations' type is of `type`, and lies in scratch but for x. --- */

/* a_side, b_side |0; side_xa [T, low] |0: the parts' xa side by side. */
void low_pack(tm_device *d, const char *op, const low_group &g, tm_dtype type, void *a_side, void *b_side, void *side_xa);
/* xa of every part, and side [T, low]: the same side by side. */
void low_forward(tm_device *d, const char *op, const low_group &g, tm_tensor x, const void *a_side, void *side);
/* dxa of every part, side: the same side by side. */
void low_backward(tm_device *d, const char *op, const low_group &g, tm_tensor dy, const void *b_side, void *side);
/* low_backward and db at once: dy is read once. room, of `bytes`, as below. false, and nothing done: ranks are too
 * large, a part has no db, or there is not enough room. */
bool low_backward_once(tm_device *d, const char *op, const low_group &g, tm_tensor dy, const void *b_side, void *side, const void *side_xa, void *room, int64_t bytes);
/* da and db |0 of every part, from side and side_xa. bits |0: the masks that low_add_backward left. room: for
 * sums of chunks; little of it costs time where the group is narrow, and never changes a bit. */
void low_gradients(tm_device *d, const char *op, const low_group &g, tm_tensor x, tm_tensor dy, const void *side, const void *side_xa, const void *bits, void *room, int64_t bytes);
/* y += side b_side^T ; dx += masks of (side a_side), parts apart where they are dropped apart. bits |0: gets the masks
 * then, [parts * T rows] of low_mask_pitch bytes. */
void low_add_forward(tm_device *d, const char *op, const low_group &g, const void *side, const void *b_side, tm_tensor y);
void low_add_backward(tm_device *d, const char *op, const low_group &g, const void *side, const void *a_side, tm_tensor dx, void *bits);

#endif
