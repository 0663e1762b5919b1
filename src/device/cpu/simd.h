/* Sixteen lanes of `real`: what CPU kernels are written over. One source gives the same bits on
 * every instruction set because only these operations are used:
 *
 *  1. add, sub, mul, div, sqrt and fma round once, to nearest even, on every instruction set; no
 *     approximate reciprocals; denormals are kept. (Without FMA hardware fmaf gives the same bits.)
 *  2. reductions add lanes in one fixed tree: i with i + 8, then i + 4, i + 2, i + 1.
 *  3. max(a, b) is a > b ? a : b, so it gives b when a lane is not a number.
 *  4. bf16 is stored with round to nearest even.
 *
 * `real` is float; in the build that checks gradients (TM_SIMD_F64) it is double and storage may be
 * F64 too. In that build fma may round twice: nothing is compared to it bit by bit. */
#ifndef TM_DEVICE_CPU_SIMD_H
#define TM_DEVICE_CPU_SIMD_H

#include "base/dtype.h"

#include <math.h>

#if defined(TM_SIMD_AVX512) || defined(TM_SIMD_AVX2)
#include <immintrin.h>
#endif

#ifdef TM_SIMD_F64
typedef double real;
typedef int64_t real_bits;
#define TM_REAL TM_F64
enum { REAL_MANTISSA = 52, REAL_BIAS = 1023 };
#define REAL_ROUND 0x1.8p52
#else
typedef float real;
typedef int32_t real_bits;
#define TM_REAL TM_F32
enum { REAL_MANTISSA = 23, REAL_BIAS = 127 };
#define REAL_ROUND 0x1.8p23f
#endif

enum { V16 = 16 };
#ifdef TM_SANITIZE /* checks multiply code; inlined as well it would take minutes to compile */
#define V16_FN static inline __attribute__((unused))
#else
#define V16_FN static inline __attribute__((always_inline, unused))
#endif

/* --- One element --- */

#ifdef TM_SIMD_F64
V16_FN real real_fma(real a, real b, real c) { return a * b + c; }
V16_FN real real_sqrt(real a) { return sqrt(a); }
#else
V16_FN real real_fma(real a, real b, real c) { return __builtin_fmaf(a, b, c); }
V16_FN real real_sqrt(real a) { return sqrtf(a); }
#endif
V16_FN real real_max(real a, real b) { return a > b ? a : b; }

/* Element i of an array of the given storage dtype. */
V16_FN real real_load(const void *p, tm_dtype t, int64_t i)
{
    switch (t) {
    case TM_BF16: return (real)tm_bf16_to_f32(((const uint16_t *)p)[i]);
    case TM_F16: return (real)tm_f16_to_f32(((const uint16_t *)p)[i]);
#ifdef TM_SIMD_F64
    case TM_F64: return ((const double *)p)[i];
#endif
    default: return (real)((const float *)p)[i];
    }
}

V16_FN void real_store(void *p, tm_dtype t, int64_t i, real x)
{
    switch (t) {
    case TM_BF16: ((uint16_t *)p)[i] = tm_f32_to_bf16((float)x); break;
    case TM_F16: ((uint16_t *)p)[i] = tm_f32_to_f16((float)x); break;
#ifdef TM_SIMD_F64
    case TM_F64: ((double *)p)[i] = x; break;
#endif
    default: ((float *)p)[i] = (float)x; break;
    }
}

/* ================= AVX-512: one register ================= */
#if defined(TM_SIMD_AVX512)

typedef __m512 v16;
typedef __mmask16 v16m;

V16_FN v16 v16_set1(real x) { return _mm512_set1_ps(x); }
V16_FN v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
V16_FN v16 v16_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
V16_FN v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
V16_FN v16 v16_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
V16_FN v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
V16_FN v16 v16_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
V16_FN v16 v16_sqrt(v16 a) { return _mm512_sqrt_ps(a); }
V16_FN v16 v16_abs(v16 a) { return _mm512_abs_ps(a); }
V16_FN v16 v16_neg(v16 a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
V16_FN v16 v16_copysign(v16 a, v16 sign)
{
    return _mm512_or_ps(_mm512_abs_ps(a), _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
}
V16_FN v16m v16_lt(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
V16_FN v16m v16_le(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
V16_FN v16m v16_eq(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
V16_FN v16m v16_first(int n) { return (v16m)((1u << n) - 1); }
V16_FN v16 v16_select(v16m m, v16 a, v16 b) { return _mm512_mask_blend_ps(m, b, a); }

V16_FN v16 v16_pow2(v16 n)
{
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(REAL_BIAS)), REAL_MANTISSA));
}
V16_FN v16 v16_exponent(v16 a)
{
    __m512i e = _mm512_srli_epi32(_mm512_castps_si512(_mm512_abs_ps(a)), REAL_MANTISSA);
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(e, _mm512_set1_epi32(REAL_BIAS)));
}
V16_FN v16 v16_mantissa(v16 a)
{
    __m512i f = _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffff));
    return _mm512_castsi512_ps(_mm512_or_si512(f, _mm512_set1_epi32(0x3f800000)));
}

V16_FN v16 v16_get(const real *p) { return _mm512_loadu_ps(p); }
V16_FN v16 v16_get_n(const real *p, int n) { return _mm512_maskz_loadu_ps(v16_first(n), p); }
V16_FN void v16_put(real *p, v16 a) { _mm512_storeu_ps(p, a); }
V16_FN void v16_put_n(real *p, int n, v16 a) { _mm512_mask_storeu_ps(p, v16_first(n), a); }

V16_FN v16 v16_from_bf16(__m256i h)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
V16_FN __m256i v16_to_bf16(v16 a)
{
    __m512i bits = _mm512_castps_si512(a), high = _mm512_srli_epi32(bits, 16);
    __m512i even = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, even), 16);
    __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), rounded, quiet));
}
V16_FN v16 v16_get_bf16(const uint16_t *p) { return v16_from_bf16(_mm256_loadu_si256((const __m256i *)p)); }
V16_FN v16 v16_get_bf16_n(const uint16_t *p, int n) { return v16_from_bf16(_mm256_maskz_loadu_epi16(v16_first(n), p)); }
V16_FN v16 v16_get_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
V16_FN v16 v16_get_f16_n(const uint16_t *p, int n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v16_first(n), p));
}
V16_FN void v16_put_bf16(uint16_t *p, v16 a) { _mm256_storeu_si256((__m256i *)p, v16_to_bf16(a)); }
V16_FN void v16_put_bf16_n(uint16_t *p, int n, v16 a) { _mm256_mask_storeu_epi16(p, v16_first(n), v16_to_bf16(a)); }

/* Lanes 0..7 of the result are op(a[i], a[i + 8]), and so on down to lane 0. */
#define V16_REDUCE(op8, op4, op1, a)                                                         \
    __m256 h = op8(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));                 \
    __m128 q = op4(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));                  \
    q = op4(q, _mm_movehl_ps(q, q));                                                         \
    return _mm_cvtss_f32(op1(q, _mm_movehdup_ps(q)))
V16_FN real v16_reduce_add(v16 a) { V16_REDUCE(_mm256_add_ps, _mm_add_ps, _mm_add_ss, a); }
V16_FN real v16_reduce_max(v16 a) { V16_REDUCE(_mm256_max_ps, _mm_max_ps, _mm_max_ss, a); }
#undef V16_REDUCE

/* ================= AVX2: two registers ================= */
#elif defined(TM_SIMD_AVX2)

typedef struct v16 {
    __m256 lo, hi;
} v16;
typedef v16 v16m; /* all bits of a lane set or clear */

#define V16_TWO(f, a, b) ((v16){f((a).lo, (b).lo), f((a).hi, (b).hi)})

V16_FN v16 v16_set1(real x) { return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
V16_FN v16 v16_add(v16 a, v16 b) { return V16_TWO(_mm256_add_ps, a, b); }
V16_FN v16 v16_sub(v16 a, v16 b) { return V16_TWO(_mm256_sub_ps, a, b); }
V16_FN v16 v16_mul(v16 a, v16 b) { return V16_TWO(_mm256_mul_ps, a, b); }
V16_FN v16 v16_div(v16 a, v16 b) { return V16_TWO(_mm256_div_ps, a, b); }
V16_FN v16 v16_fma(v16 a, v16 b, v16 c)
{
    return (v16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
V16_FN v16 v16_max(v16 a, v16 b) { return V16_TWO(_mm256_max_ps, a, b); }
V16_FN v16 v16_sqrt(v16 a) { return (v16){_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
V16_FN v16 v16_abs(v16 a) { v16 s = v16_set1(-0.0f); return V16_TWO(_mm256_andnot_ps, s, a); }
V16_FN v16 v16_neg(v16 a) { v16 s = v16_set1(-0.0f); return V16_TWO(_mm256_xor_ps, s, a); }
V16_FN v16 v16_copysign(v16 a, v16 sign)
{
    v16 s = v16_set1(-0.0f), m = v16_abs(a), n = V16_TWO(_mm256_and_ps, s, sign);
    return V16_TWO(_mm256_or_ps, m, n);
}
V16_FN v16m v16_lt(v16 a, v16 b)
{
    return (v16m){_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
V16_FN v16m v16_le(v16 a, v16 b)
{
    return (v16m){_mm256_cmp_ps(a.lo, b.lo, _CMP_LE_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LE_OQ)};
}
V16_FN v16m v16_eq(v16 a, v16 b)
{
    return (v16m){_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ)};
}
V16_FN __m256i v16_first8(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
V16_FN v16m v16_first(int n)
{
    return (v16m){_mm256_castsi256_ps(v16_first8(n)), _mm256_castsi256_ps(v16_first8(n - 8))};
}
V16_FN v16 v16_select(v16m m, v16 a, v16 b)
{
    return (v16){_mm256_blendv_ps(b.lo, a.lo, m.lo), _mm256_blendv_ps(b.hi, a.hi, m.hi)};
}

V16_FN __m256 v16_pow2_8(__m256 n)
{
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(REAL_BIAS)), REAL_MANTISSA));
}
V16_FN v16 v16_pow2(v16 n) { return (v16){v16_pow2_8(n.lo), v16_pow2_8(n.hi)}; }
V16_FN __m256 v16_exponent_8(__m256 a)
{
    __m256i e = _mm256_srli_epi32(_mm256_castps_si256(a), REAL_MANTISSA);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(e, _mm256_set1_epi32(REAL_BIAS)));
}
V16_FN v16 v16_exponent(v16 a) { v16 m = v16_abs(a); return (v16){v16_exponent_8(m.lo), v16_exponent_8(m.hi)}; }
V16_FN __m256 v16_mantissa_8(__m256 a)
{
    __m256i f = _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fffff));
    return _mm256_castsi256_ps(_mm256_or_si256(f, _mm256_set1_epi32(0x3f800000)));
}
V16_FN v16 v16_mantissa(v16 a) { return (v16){v16_mantissa_8(a.lo), v16_mantissa_8(a.hi)}; }

V16_FN v16 v16_get(const real *p) { return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
V16_FN v16 v16_get_n(const real *p, int n)
{
    return (v16){_mm256_maskload_ps(p, v16_first8(n)), _mm256_maskload_ps(p + 8, v16_first8(n - 8))};
}
V16_FN void v16_put(real *p, v16 a) { _mm256_storeu_ps(p, a.lo); _mm256_storeu_ps(p + 8, a.hi); }
V16_FN void v16_put_n(real *p, int n, v16 a)
{
    _mm256_maskstore_ps(p, v16_first8(n), a.lo);
    _mm256_maskstore_ps(p + 8, v16_first8(n - 8), a.hi);
}

V16_FN __m256 v16_from_bf16_8(__m128i h)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
/* The high halves of eight lanes, each in 32 bits. */
V16_FN __m256i v16_to_bf16_8(__m256 a)
{
    __m256i bits = _mm256_castps_si256(a), high = _mm256_srli_epi32(bits, 16);
    __m256i even = _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, even), 16);
    __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}
V16_FN v16 v16_get_bf16(const uint16_t *p)
{
    return (v16){v16_from_bf16_8(_mm_loadu_si128((const __m128i *)p)),
                 v16_from_bf16_8(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
V16_FN v16 v16_get_f16(const uint16_t *p)
{
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                 _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
V16_FN void v16_put_bf16(uint16_t *p, v16 a)
{
    __m256i both = _mm256_packus_epi32(v16_to_bf16_8(a.lo), v16_to_bf16_8(a.hi));
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(both, 0xd8));
}
#define V16_COPY_HALVES

V16_FN real v16_reduce_add(v16 a)
{
    __m256 h = _mm256_add_ps(a.lo, a.hi);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
V16_FN real v16_reduce_max(v16 a)
{
    __m256 h = _mm256_max_ps(a.lo, a.hi);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
#undef V16_TWO

/* ================= scalar, and double: an array ================= */
#else

typedef struct v16 {
    real v[V16];
} v16;
typedef uint32_t v16m; /* bit i is lane i */

#define V16_EACH(expr)                    \
    do {                                  \
        v16 r;                            \
        for (int i = 0; i < V16; i++)     \
            r.v[i] = (expr);              \
        return r;                         \
    } while (0)
#define V16_TEST(expr)                    \
    do {                                  \
        v16m m = 0;                       \
        for (int i = 0; i < V16; i++)     \
            m |= (v16m)(expr) << i;       \
        return m;                         \
    } while (0)

V16_FN v16 v16_set1(real x) { V16_EACH(x); }
V16_FN v16 v16_add(v16 a, v16 b) { V16_EACH(a.v[i] + b.v[i]); }
V16_FN v16 v16_sub(v16 a, v16 b) { V16_EACH(a.v[i] - b.v[i]); }
V16_FN v16 v16_mul(v16 a, v16 b) { V16_EACH(a.v[i] * b.v[i]); }
V16_FN v16 v16_div(v16 a, v16 b) { V16_EACH(a.v[i] / b.v[i]); }
V16_FN v16 v16_fma(v16 a, v16 b, v16 c) { V16_EACH(real_fma(a.v[i], b.v[i], c.v[i])); }
V16_FN v16 v16_max(v16 a, v16 b) { V16_EACH(real_max(a.v[i], b.v[i])); }
V16_FN v16 v16_sqrt(v16 a) { V16_EACH(real_sqrt(a.v[i])); }
V16_FN v16 v16_abs(v16 a) { V16_EACH((real)__builtin_fabs(a.v[i])); }
V16_FN v16 v16_neg(v16 a) { V16_EACH(-a.v[i]); }
V16_FN v16 v16_copysign(v16 a, v16 sign) { V16_EACH((real)__builtin_copysign(a.v[i], sign.v[i])); }
V16_FN v16m v16_lt(v16 a, v16 b) { V16_TEST(a.v[i] < b.v[i]); }
V16_FN v16m v16_le(v16 a, v16 b) { V16_TEST(a.v[i] <= b.v[i]); }
V16_FN v16m v16_eq(v16 a, v16 b) { V16_TEST(a.v[i] == b.v[i]); }
V16_FN v16m v16_first(int n) { return (1u << n) - 1; }
V16_FN v16 v16_select(v16m m, v16 a, v16 b) { V16_EACH(m >> i & 1 ? a.v[i] : b.v[i]); }

V16_FN real real_from_bits(real_bits bits)
{
    real x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
V16_FN real_bits real_to_bits(real x)
{
    real_bits bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
V16_FN v16 v16_pow2(v16 n) /* shifted without a sign: n may be not-a-number */
{
    V16_EACH(real_from_bits((real_bits)((uint64_t)((real_bits)n.v[i] + REAL_BIAS) << REAL_MANTISSA)));
}
V16_FN v16 v16_exponent(v16 a)
{
    V16_EACH((real)((real_to_bits((real)__builtin_fabs(a.v[i])) >> REAL_MANTISSA) - REAL_BIAS));
}
V16_FN v16 v16_mantissa(v16 a)
{
    V16_EACH(real_from_bits((real_to_bits(a.v[i]) & (((real_bits)1 << REAL_MANTISSA) - 1)) |
                            (real_bits)REAL_BIAS << REAL_MANTISSA));
}

V16_FN v16 v16_get(const real *p) { V16_EACH(p[i]); }
V16_FN v16 v16_get_n(const real *p, int n) { V16_EACH(i < n ? p[i] : 0); }
V16_FN void v16_put(real *p, v16 a) { memcpy(p, a.v, sizeof a.v); }
V16_FN void v16_put_n(real *p, int n, v16 a)
{
    for (int i = 0; i < n; i++)
        p[i] = a.v[i];
}
V16_FN v16 v16_get_bf16(const uint16_t *p) { V16_EACH((real)tm_bf16_to_f32(p[i])); }
V16_FN v16 v16_get_f16(const uint16_t *p) { V16_EACH((real)tm_f16_to_f32(p[i])); }
V16_FN void v16_put_bf16(uint16_t *p, v16 a)
{
    for (int i = 0; i < V16; i++)
        p[i] = tm_f32_to_bf16((float)a.v[i]);
}
#define V16_COPY_HALVES

V16_FN real v16_reduce_add(v16 a)
{
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; i++)
            a.v[i] += a.v[i + step];
    return a.v[0];
}
V16_FN real v16_reduce_max(v16 a)
{
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; i++)
            a.v[i] = real_max(a.v[i], a.v[i + step]);
    return a.v[0];
}
#undef V16_EACH
#undef V16_TEST
#endif

/* ================= Common to all ================= */

#ifdef V16_COPY_HALVES /* no masked moves of 16-bit elements: through a copy */
V16_FN v16 v16_get_bf16_n(const uint16_t *p, int n)
{
    uint16_t copy[V16] = {0};
    memcpy(copy, p, (size_t)n * 2);
    return v16_get_bf16(copy);
}
V16_FN v16 v16_get_f16_n(const uint16_t *p, int n)
{
    uint16_t copy[V16] = {0};
    memcpy(copy, p, (size_t)n * 2);
    return v16_get_f16(copy);
}
V16_FN void v16_put_bf16_n(uint16_t *p, int n, v16 a)
{
    uint16_t copy[V16];
    v16_put_bf16(copy, a);
    memcpy(p, copy, (size_t)n * 2);
}
#undef V16_COPY_HALVES
#endif

V16_FN v16 v16_zero(void) { return v16_set1(0); }
/* a - b * c, rounded once. */
V16_FN v16 v16_fnma(v16 b, v16 c, v16 a) { return v16_fma(v16_neg(b), c, a); }
V16_FN v16 v16_min(v16 a, v16 b) { return v16_select(v16_lt(a, b), a, b); }
/* To the nearest integer, ties to even; for |a| < 2^22. Never gives -0. */
V16_FN v16 v16_round(v16 a) { v16 big = v16_set1(REAL_ROUND); return v16_sub(v16_add(a, big), big); }
/* v16_pow2(n): 2^n for integral n of the normal range. v16_exponent(a): floor(log2 |a|) and
 * v16_mantissa(a): a / 2^exponent in [1, 2), both for positive normal a. */

/* Sixteen elements at index i of an array of storage dtype t, as real; the second form only the
 * first n <= 16 (the others read as 0 and are never touched). */
V16_FN v16 v16_load(const void *p, tm_dtype t, int64_t i)
{
    if (t == TM_REAL)
        return v16_get((const real *)p + i);
    if (t == TM_BF16)
        return v16_get_bf16((const uint16_t *)p + i);
    if (t == TM_F16)
        return v16_get_f16((const uint16_t *)p + i);
    real lanes[V16];
    for (int lane = 0; lane < V16; lane++) /* f32 storage under double */
        lanes[lane] = (real)((const float *)p)[i + lane];
    return v16_get(lanes);
}
V16_FN v16 v16_load_n(const void *p, tm_dtype t, int64_t i, int n)
{
    if (t == TM_REAL)
        return v16_get_n((const real *)p + i, n);
    if (t == TM_BF16)
        return v16_get_bf16_n((const uint16_t *)p + i, n);
    if (t == TM_F16)
        return v16_get_f16_n((const uint16_t *)p + i, n);
    real lanes[V16] = {0};
    for (int lane = 0; lane < n; lane++)
        lanes[lane] = (real)((const float *)p)[i + lane];
    return v16_get(lanes);
}
V16_FN void v16_store_n(void *p, tm_dtype t, int64_t i, int n, v16 a)
{
    if (t == TM_REAL) {
        v16_put_n((real *)p + i, n, a);
    } else if (t == TM_BF16) {
        v16_put_bf16_n((uint16_t *)p + i, n, a);
    } else { /* rare: f16 weights, f32 under double */
        real lanes[V16];
        v16_put(lanes, a);
        for (int lane = 0; lane < n; lane++)
            real_store(p, t, i + lane, lanes[lane]);
    }
}
V16_FN void v16_store(void *p, tm_dtype t, int64_t i, v16 a)
{
    if (t == TM_REAL)
        v16_put((real *)p + i, a);
    else if (t == TM_BF16)
        v16_put_bf16((uint16_t *)p + i, a);
    else
        v16_store_n(p, t, i, V16, a);
}

#endif
