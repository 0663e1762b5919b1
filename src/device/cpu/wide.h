/* Sixteen sums in double of products of two lanes, beside the lanes of simd.h. The product of two floats is exact in double, so with
 * a fused multiply-add or without it is the same bits; the sums are joined by simd.h's tree. */
#ifndef TM_DEVICE_CPU_WIDE_H
#define TM_DEVICE_CPU_WIDE_H

#include "device/cpu/simd.h"

#if defined(TM_SIMD_AVX512)

typedef struct v16d {
    __m512d lo, hi;
} v16d;
V16_FN v16d v16d_zero(void) { return (v16d){_mm512_setzero_pd(), _mm512_setzero_pd()}; }
V16_FN v16d v16d_add_product(v16d s, v16 a, v16 b)
{
    __m512d a_lo = _mm512_cvtps_pd(_mm512_castps512_ps256(a)), a_hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
    __m512d b_lo = _mm512_cvtps_pd(_mm512_castps512_ps256(b)), b_hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(b, 1));
    return (v16d){_mm512_fmadd_pd(a_lo, b_lo, s.lo), _mm512_fmadd_pd(a_hi, b_hi, s.hi)};
}
V16_FN double v16d_reduce(v16d s)
{
    __m512d h = _mm512_add_pd(s.lo, s.hi);
    __m256d q = _mm256_add_pd(_mm512_castpd512_pd256(h), _mm512_extractf64x4_pd(h, 1));
    __m128d p = _mm_add_pd(_mm256_castpd256_pd128(q), _mm256_extractf128_pd(q, 1));
    return _mm_cvtsd_f64(_mm_add_sd(p, _mm_unpackhi_pd(p, p)));
}

#elif defined(TM_SIMD_AVX2)

typedef struct v16d {
    __m256d q[4];
} v16d;
V16_FN v16d v16d_zero(void)
{
    __m256d zero = _mm256_setzero_pd();
    return (v16d){{zero, zero, zero, zero}};
}
V16_FN __m256d v16d_quarter(__m128 a, __m128 b, __m256d s) { return _mm256_fmadd_pd(_mm256_cvtps_pd(a), _mm256_cvtps_pd(b), s); }
V16_FN v16d v16d_add_product(v16d s, v16 a, v16 b)
{
    return (v16d){{v16d_quarter(_mm256_castps256_ps128(a.lo), _mm256_castps256_ps128(b.lo), s.q[0]),
                   v16d_quarter(_mm256_extractf128_ps(a.lo, 1), _mm256_extractf128_ps(b.lo, 1), s.q[1]),
                   v16d_quarter(_mm256_castps256_ps128(a.hi), _mm256_castps256_ps128(b.hi), s.q[2]),
                   v16d_quarter(_mm256_extractf128_ps(a.hi, 1), _mm256_extractf128_ps(b.hi, 1), s.q[3])}};
}
V16_FN double v16d_reduce(v16d s)
{
    __m256d q = _mm256_add_pd(_mm256_add_pd(s.q[0], s.q[2]), _mm256_add_pd(s.q[1], s.q[3]));
    __m128d p = _mm_add_pd(_mm256_castpd256_pd128(q), _mm256_extractf128_pd(q, 1));
    return _mm_cvtsd_f64(_mm_add_sd(p, _mm_unpackhi_pd(p, p)));
}

#else

typedef struct v16d {
    double v[V16];
} v16d;
V16_FN v16d v16d_zero(void) { return (v16d){{0}}; }
V16_FN v16d v16d_add_product(v16d s, v16 a, v16 b)
{
    for (int i = 0; i < V16; i++)
        s.v[i] += (double)a.v[i] * (double)b.v[i];
    return s;
}
V16_FN double v16d_reduce(v16d s)
{
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; i++)
            s.v[i] += s.v[i + step];
    return s.v[0];
}

#endif
#endif
