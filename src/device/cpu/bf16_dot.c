/* The self-test of the bf16 dot product: documents disagree on the order of its two products and on what it
 * rounds, so it is used only where it gives the bits of pairs.h on cases that tell the readings apart. */
#include "device/cpu/gemm.h"

#ifdef TM_SIMD_AVX512

#include "device/cpu/pairs.h"

/* Pairs and a sum for lane i of case `round`: some anywhere, some around the sum's last bit, some around 2^-126. */
static void make_case(uint64_t *state, int round, uint32_t a[V16], uint32_t b[V16], uint32_t c[V16])
{
    for (int i = 0; i < V16; i++) {
        uint32_t word[3];
        for (int k = 0; k < 3; k++) {
            *state = *state * 6364136223846793005u + 1442695040888963407u;
            word[k] = (uint32_t)(*state >> 32);
        }
        uint32_t e = 100 + word[0] % 27, product = round % 3 == 1 ? 127 : 1 + word[1] % 4;
        a[i] = word[0], b[i] = word[1], c[i] = word[2];
        if (round % 3) { /* exponents of both products near that of the sum */
            a[i] = (a[i] & 0x807f807fu) | e << 7 | e << 23;
            b[i] = (b[i] & 0x807f807fu) | (127 + product - e + word[2] % 3) << 7 | (127 + product - e) << 23;
            c[i] = (c[i] & 0x807fffffu) | (product + word[0] % 2) << 23;
        }
        bool finite = (a[i] >> 23 & 255) < 255 && (a[i] >> 7 & 255) < 255 && (b[i] >> 23 & 255) < 255 &&
                      (b[i] >> 7 & 255) < 255 && (c[i] >> 23 & 255) < 255;
        if (!finite) /* what a NaN carries does not matter */
            a[i] = b[i] = c[i] = 0;
    }
}

static __attribute__((noinline)) __m512 two_steps(__m512i a, __m512i b, __m512 c)
{
    __m512i high = _mm512_set1_epi32((int)0xffff0000);
    __m512 a1 = _mm512_castsi512_ps(_mm512_and_si512(a, high)), a0 = _mm512_castsi512_ps(_mm512_slli_epi32(a, 16));
    __m512 b1 = _mm512_castsi512_ps(_mm512_and_si512(b, high)), b0 = _mm512_castsi512_ps(_mm512_slli_epi32(b, 16));
    return _mm512_fmadd_ps(a0, b0, _mm512_fmadd_ps(a1, b1, c));
}

bool tm_avx512_bf16_dot_holds(void)
{
    enum { ROUNDS = 300 };
    uint64_t state = 1;
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t a[V16], b[V16], c[V16], got[V16], want[V16];
        make_case(&state, round, a, b, c);
        __m512i av = _mm512_loadu_si512(a), bv = _mm512_loadu_si512(b);
        __m512 cv = _mm512_loadu_ps((const float *)c);
        _mm512_storeu_ps((float *)got, v16_dot(_mm512_castsi512_ps(av), _mm512_castsi512_ps(bv), cv));
        uint64_t old = flush_begin();
        _mm512_storeu_ps((float *)want, two_steps(av, bv, cv));
        flush_end(old);
        if (memcmp(got, want, sizeof got) != 0)
            return false;
    }
    return true;
}

#endif
