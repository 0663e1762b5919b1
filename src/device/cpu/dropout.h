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

/* Eight counters, c / 4 = block .. block + 7, give 32 channels. */
enum { DROPOUT_UNIT = 32 };

#ifdef TM_SIMD_AVX512
/* tm_philox_at with a counter in every 64-bit lane; the upper halves hold what multiplication ignores. */
V16_FN void dropout_unit(const tm_dropout_row *row, uint32_t block, v16 factor[2])
{
    __m512i c0 = _mm512_add_epi64(_mm512_set1_epi64(block), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    __m512i c1 = _mm512_set1_epi64(row->position), c2 = _mm512_set1_epi64(row->example);
    __m512i c3 = _mm512_set1_epi64(row->module), m0 = _mm512_set1_epi64(0xD2511F53u), m1 = _mm512_set1_epi64(0xCD9E8D57u);
    uint32_t k0 = (uint32_t)row->key, k1 = (uint32_t)(row->key >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        __m512i p0 = _mm512_mul_epu32(c0, m0), p1 = _mm512_mul_epu32(c2, m1);
        c0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1, _mm512_set1_epi64(k0), 0x96);
        c2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c3, _mm512_set1_epi64(k1), 0x96);
        c1 = p1;
        c3 = p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    __m512i first = _mm512_mask_shuffle_epi32(c0, 0xaaaa, c1, 0xa0), second = _mm512_mask_shuffle_epi32(c2, 0xaaaa, c3, 0xa0);
    __m512i low = _mm512_permutex2var_epi64(first, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), second);
    __m512i high = _mm512_permutex2var_epi64(first, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), second);
    __m512i threshold = _mm512_set1_epi32((int)row->threshold);
    __m512 scale = _mm512_set1_ps(row->scale);
    factor[0] = _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(_mm512_srli_epi32(low, 8), threshold), scale);
    factor[1] = _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(_mm512_srli_epi32(high, 8), threshold), scale);
}
#else
V16_FN void dropout_unit(const tm_dropout_row *row, uint32_t block, v16 factor[2])
{
    enum { W = DROPOUT_UNIT / 4 };
    uint32_t c0[W], c1[W], c2[W], c3[W]; /* side by side, so that the rounds become vector code */
    uint32_t k0 = (uint32_t)row->key, k1 = (uint32_t)(row->key >> 32);
    for (int i = 0; i < W; i++) {
        c0[i] = block + (uint32_t)i;
        c1[i] = row->position;
        c2[i] = row->example;
        c3[i] = row->module;
    }
    for (int round = 0; round < 10; round++) {
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
    real f[DROPOUT_UNIT];
    for (int i = 0; i < W; i++) {
        f[4 * i] = c0[i] >> 8 >= row->threshold ? row->scale : 0;
        f[4 * i + 1] = c1[i] >> 8 >= row->threshold ? row->scale : 0;
        f[4 * i + 2] = c2[i] >> 8 >= row->threshold ? row->scale : 0;
        f[4 * i + 3] = c3[i] >> 8 >= row->threshold ? row->scale : 0;
    }
    factor[0] = v16_get(f);
    factor[1] = v16_get(f + V16);
}
#endif

/* factor[i], i < n: 0 or 1 / (1 - p) for channel first + i; first is a multiple of 4. */
static inline void tm_dropout_factors(const tm_dropout_row *row, int64_t first, int64_t n, real *factor)
{
    for (int64_t i = 0; i < n; i += DROPOUT_UNIT) {
        v16 f[2];
        dropout_unit(row, (uint32_t)((first + i) / 4), f);
        int64_t left = n - i;
        v16_put_n(factor + i, left < V16 ? (int)left : V16, f[0]);
        if (left > V16)
            v16_put_n(factor + i + V16, left < DROPOUT_UNIT ? (int)(left - V16) : V16, f[1]);
    }
}

#endif
