/* What the matrix products of all architectures share: their arguments and the order of tiles.
 *
 * An output is one accumulator over blocks of k in ascending order, then over blocks of the low-rank part's own k;
 * then the bias is added, then the old value. Tiles have fixed heights and begin at the first row of a replica's
 * rows: so no tile meets the factors of two replicas, and a row's bits depend on nothing but the row. */
#ifndef TM_DEVICE_CUDA_HALF_TILES_CUH
#define TM_DEVICE_CUDA_HALF_TILES_CUH

#include "device/cuda/half/mma.cuh"

struct tiles_args {
    int64_t a_ld, b_ld, low_a_ld, low_b_ld, ld; /* elements */
    const void *a, *b, *low_a, *low_b, *bias;
    void *out;
    const int32_t *group;
    int m, n, k, low, replicas; /* low 0: none; replicas 1: group is not read */
    int bias_type;              /* 0 f32, 1 bf16, 2 f16 */
    bool add, wide;             /* wide: out is f32 */
    void *h;                    /* with gate and up side by side in out, |0: what they activate, [m, n / 2] */
    int64_t h_ld;
};

/* A tile's first row and column, its replica and the row at which that ends. */
struct tile_place {
    int row, column, replica, end;
};

/* Row tiles of HEIGHT rows in all. */
template <int HEIGHT> TM_DEVICE int tile_rows(const tiles_args &w)
{
    if (w.replicas <= 1)
        return (w.m + HEIGHT - 1) / HEIGHT;
    int count = 0;
    for (int r = 0; r < w.replicas; r++)
        count += (w.group[r + 1] - w.group[r] + HEIGHT - 1) / HEIGHT;
    return count;
}

/* A walk over tiles. They go in bands GROUP high, along a band column by column, so that those in flight share rows of a
 * and columns of b in the cache. After the last comes the first again, of the next split. */
template <int HEIGHT, int WIDTH, int GROUP> struct tile_walk {
    int tile, split;      /* the tile's number */
    int tiles_m, tiles_n;
    int first, rest;      /* of its band: the first row tile; the tile's number in it */

    __device__ __forceinline__ int height() const { return min(GROUP, tiles_m - first); }
    __device__ __forceinline__ void settle()
    {
        while (tile >= tiles_m * tiles_n) {
            tile -= tiles_m * tiles_n;
            split++;
            first = 0;
            rest = tile;
        }
        for (; rest >= height() * tiles_n; first += GROUP)
            rest -= height() * tiles_n;
    }
    __device__ __forceinline__ void advance(int by)
    {
        tile += by;
        rest += by;
        settle();
    }
    __device__ __forceinline__ tile_place place(const tiles_args &w) const
    {
        int high = height(), column = high == GROUP ? rest / GROUP : rest / high, row = first + rest - column * high;
        if (w.replicas <= 1)
            return {row * HEIGHT, column * WIDTH, 0, w.m};
        int r = 0;
        for (; r + 1 < w.replicas; r++) {
            int count = (w.group[r + 1] - w.group[r] + HEIGHT - 1) / HEIGHT;
            if (row < count)
                break;
            row -= count;
        }
        return {w.group[r] + row * HEIGHT, column * WIDTH, r, w.group[r + 1]};
    }
};

/* The first of `all` blocks that belongs to a split. */
TM_DEVICE int tile_share(int all, int split, int splits) { return splits == 1 ? all * split : all * split / splits; }

TM_DEVICE float bias_at(const tiles_args &w, int column)
{
    if (column >= w.n)
        return 0;
    if (w.bias_type == 1)
        return __bfloat162float(((const bf16 *)w.bias)[column]);
    if (w.bias_type == 2)
        return __half2float(((const f16 *)w.bias)[column]);
    return ((const float *)w.bias)[column];
}

template <class T> TM_DEVICE T half_of(float x)
{
    if constexpr (tm_is_bf16<T>)
        return __float2bfloat16_rn(x);
    else
        return __float2half_rn(x);
}
TM_DEVICE float float_of(bf16 x) { return __bfloat162float(x); }
TM_DEVICE float float_of(f16 x) { return __half2float(x); }

#endif
