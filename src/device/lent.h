/* How much of a workspace ops want (tm_device_calls.lend), for those who lend it and for those who use it. */
#ifndef TM_DEVICE_LENT_H
#define TM_DEVICE_LENT_H

#include "device/tensor.h"

/* The fast kernels of low-rank deltas: sizes that their scratch follows from. */
enum {
    TM_LOW_STRIP = 128,         /* columns of a strip whose gradients are summed together */
    TM_LOW_SHARE = 256,         /* columns of dy that give one share of dxa */
    TM_LOW_SUMS = 32 << 20,     /* bytes for sums of chunks apart, at most */
    TM_LOW_FULL = 132,          /* strips that fill a GPU: no sums apart */
};

static inline int64_t tm_lent_aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }
static inline int64_t tm_lent_strips(int64_t columns, int64_t each) { return (columns + each - 1) / each; }

/* Bytes of the sums of chunks of `strips` strips with `rank` low columns; none where they are enough by themselves. */
static inline int64_t tm_lent_sums(int64_t strips, int64_t rank, int64_t full, int64_t T)
{
    int64_t bytes = (T / TM_CHUNK_TOKENS + 32) * strips * TM_LOW_STRIP * rank * (int64_t)sizeof(float);
    return strips >= full ? 0 : bytes < TM_LOW_SUMS ? bytes : TM_LOW_SUMS;
}

/* For the deltas of a group, `parts` of ranks r[] and out[] columns of y, activations of 16 bits: the factors, xa and dxa, ranks
 * side by side up to a multiple of 16; with train the shares of dxa and sums of chunks; a bit for every input of those
 * that drop some. */
static inline int64_t tm_lent_for_deltas(int32_t parts, const int64_t *r, const int64_t *out, int64_t in, int64_t columns, int64_t replicas, bool train, bool drops, int64_t T)
{
    int64_t rank = 0, widest = 0, strips = 0, shares = 0;
    for (int32_t i = 0; i < parts; i++) {
        int64_t width = (rank % 16 + r[i] + 15) / 16;
        rank += r[i];
        widest = width > widest ? width : widest;
        strips += tm_lent_strips(out[i], TM_LOW_STRIP);
        shares += tm_lent_strips(out[i], TM_LOW_SHARE);
    }
    if (!rank)
        return 0;
    rank = (rank + 15) / 16 * 16;
    int64_t bytes = tm_lent_aligned(2 * replicas * columns * rank) + tm_lent_aligned(2 * replicas * in * rank) + 2 * tm_lent_aligned(2 * T * rank);
    if (!train)
        return bytes;
    int64_t both = shares * T * 16 * widest * (int64_t)sizeof(float) + tm_lent_sums(strips * replicas, 16 * widest, TM_LOW_FULL, T);
    int64_t of_a = tm_lent_sums(tm_lent_strips(in, TM_LOW_STRIP) * replicas, rank, TM_LOW_FULL, T);
    return bytes + (drops ? tm_lent_aligned(parts * T * ((in + 127) / 128 * 16)) : 0) + tm_lent_aligned(both > of_a ? both : of_a);
}

#endif
