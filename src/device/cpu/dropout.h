/* Which channels of a row dropout keeps. The decision belongs to (step key, channel, position,
 * example, module), so it is the same wherever the row stands and however often it is asked. */
#ifndef TM_DEVICE_CPU_DROPOUT_H
#define TM_DEVICE_CPU_DROPOUT_H

#include "base/philox.h"
#include "device/cpu/simd.h"

typedef struct tm_dropout_row {
    uint64_t key; /* step[replica].dropout_key */
    uint32_t position, example, module;
    uint32_t threshold; /* kept iff the word's upper 24 bits reach it */
    real scale;         /* 1 / (1 - p), computed in float */
} tm_dropout_row;

/* What does not depend on the row. tm_philox_uniform(word) >= p exactly when word >> 8 >= p * 2^24. */
static inline tm_dropout_row tm_dropout_begin(uint32_t module, float p)
{
    return (tm_dropout_row){.module = module, .threshold = (uint32_t)ceil((double)p * 0x1p24),
                            .scale = (real)(1.0f / (1.0f - p))};
}

/* factor[i], i < n: 0 or 1 / (1 - p) for channel first + i; first is a multiple of 4. */
static inline void tm_dropout_factors(const tm_dropout_row *row, int64_t first, int64_t n, real *factor)
{
    enum { W = 16 }; /* generators side by side, so that the rounds become vector code */
    for (int64_t done = 0; done < n; done += 4 * W) {
        uint32_t c0[W], c1[W], c2[W], c3[W];
        uint32_t k0 = (uint32_t)row->key, k1 = (uint32_t)(row->key >> 32);
        for (int i = 0; i < W; i++) {
            c0[i] = (uint32_t)((first + done) / 4) + (uint32_t)i;
            c1[i] = row->position;
            c2[i] = row->example;
            c3[i] = row->module;
        }
        for (int round = 0; round < 10; round++) { /* tm_philox_at, for W counters */
            for (int i = 0; i < W; i++) {
                uint64_t p0 = (uint64_t)0xD2511F53u * c0[i], p1 = (uint64_t)0xCD9E8D57u * c2[i];
                c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0;
                c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
                c1[i] = (uint32_t)p1;
                c3[i] = (uint32_t)p0;
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        real f[4 * W];
        for (int i = 0; i < W; i++) {
            f[4 * i] = c0[i] >> 8 >= row->threshold ? row->scale : 0;
            f[4 * i + 1] = c1[i] >> 8 >= row->threshold ? row->scale : 0;
            f[4 * i + 2] = c2[i] >> 8 >= row->threshold ? row->scale : 0;
            f[4 * i + 3] = c3[i] >> 8 >= row->threshold ? row->scale : 0;
        }
        int64_t count = n - done < 4 * W ? n - done : 4 * W;
        memcpy(factor + done, f, (size_t)count * sizeof(real));
    }
}

#endif
