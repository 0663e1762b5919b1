/* Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a
 * counter-based generator. The same (key, counter) gives the same four words on every device, so
 * a random number belongs to a place in the computation, never to an order of evaluation. */
#ifndef TM_BASE_PHILOX_H
#define TM_BASE_PHILOX_H

#include "base/on_device.h"

#include <stdint.h>

typedef struct tm_philox {
    uint32_t word[4];
} tm_philox;

TM_ON_DEVICE static inline tm_philox tm_philox_at(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (tm_philox){{c0, c1, c2, c3}};
}

/* What a stream of random numbers is used for: two purposes never share numbers. */
typedef enum tm_purpose {
    TM_PURPOSE_INIT = 1,
    TM_PURPOSE_WORLD = 32,   /* the data of the forgetting benchmark */
    TM_PURPOSE_ORDER = 2,
    TM_PURPOSE_DROPOUT = 3,
    TM_PURPOSE_SUBSET = 4,
    TM_PURPOSE_SAMPLE = 5,   /* text generation */
    TM_PURPOSE_MERGE = 9,    /* what DARE drops */
    TM_PURPOSE_MIX = 6,      /* which source the next example comes from */
    TM_PURPOSE_REHEARSAL = 20, /* when an old example comes, and which are kept */
} tm_purpose;

/* A 64-bit key derived from a seed, a purpose and two indices (a step, a module, an epoch, ...). */
static inline uint64_t tm_philox_key(uint64_t seed, tm_purpose purpose, uint32_t a, uint32_t b)
{
    tm_philox p = tm_philox_at(seed, (uint32_t)purpose, a, b, 0x7e3a9e12u);
    return (uint64_t)p.word[1] << 32 | p.word[0];
}

/* Uniform in [0, 1) with 24 bits: exact in float. */
static inline float tm_philox_uniform(uint32_t word) { return (float)(word >> 8) * 0x1p-24f; }

/* Uniform integer in [0, n), n > 0, from 64 random bits (bias below n / 2^64). */
static inline uint64_t tm_philox_below(uint32_t hi, uint32_t lo, uint64_t n)
{
    unsigned __int128 wide = (unsigned __int128)((uint64_t)hi << 32 | lo) * n;
    return (uint64_t)(wide >> 64);
}

#endif
