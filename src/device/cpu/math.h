/* exp, log, tanh, erf and sigmoid over sixteen lanes. libm is not used for numbers that enter a
 * result, because its bits differ between machines; these are made of the operations of simd.h
 * alone, so every instruction set gives the same bits. tests/unit/test_math.c measures their errors
 * (about one unit in the last place); not-a-number goes in and comes out, overflow gives infinity,
 * underflow goes through the denormals to 0.
 *
 * The polynomials are minimax fits of relative error, made with the coefficients rounded to float
 * one after the other from the lowest power and the rest fitted again. The double build, which only
 * checks gradients, calls libm. */
#ifndef TM_DEVICE_CPU_MATH_H
#define TM_DEVICE_CPU_MATH_H

#include "device/cpu/simd.h"

#if defined(TM_SIMD_AVX512) || defined(TM_SIMD_AVX2)
#define MATH_FN V16_FN
#else
#define MATH_FN static __attribute__((noinline, unused)) /* lanes are an array: keep the code small */
#endif

#ifdef TM_SIMD_F64

#define V16_LIBM(name, expr)              \
    MATH_FN v16 v16_##name(v16 x)         \
    {                                     \
        for (int i = 0; i < V16; i++)     \
            x.v[i] = (expr);              \
        return x;                         \
    }
V16_LIBM(exp, exp(x.v[i]))
V16_LIBM(log, log(x.v[i]))
V16_LIBM(tanh, tanh(x.v[i]))
V16_LIBM(erf, erf(x.v[i]))
V16_LIBM(sigmoid, 1 / (1 + exp(-x.v[i])))
V16_LIBM(exp_rest, expm1(x.v[i]) - x.v[i])
#undef V16_LIBM

#else

/* c[0] + c[1] x + ... + c[n-1] x^(n-1) */
MATH_FN v16 v16_poly(v16 x, const float *c, int n)
{
    v16 y = v16_set1(c[n - 1]);
    for (int i = n - 2; i >= 0; i--)
        y = v16_fma(y, x, v16_set1(c[i]));
    return y;
}

/* (e^x - 1 - x) / x^2 for |x| <= ln 2 / 2. */
MATH_FN v16 v16_exp_tail(v16 x)
{
    static const float q[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558aep-5f, 0x1.123988p-7f, 0x1.6a4f88p-10f};
    return v16_poly(x, q, 5);
}
MATH_FN v16 v16_exp_rest(v16 x) { return v16_mul(v16_mul(x, x), v16_exp_tail(x)); }

/* y 2^n, rounded once, for y in [1/2, 2] and integral n in [-151, 129]: two factors reach up to infinity and
 * down to the denormals, and only the second product rounds. */
V16_FN v16 v16_scale(v16 y, v16 n)
{
#if defined(TM_SIMD_AVX512)
    return _mm512_scalef_ps(y, n);
#else
    v16 half = v16_round(v16_mul(n, v16_set1(0.5f)));
    return v16_mul(v16_mul(y, v16_pow2(half)), v16_pow2(v16_sub(n, half)));
#endif
}

/* x = n ln 2 + r with |r| <= ln 2 / 2; e^x = 2^n (1 + r + r^2 tail(r)). */
MATH_FN v16 v16_exp(v16 x)
{
    x = v16_max(v16_set1(-104.0f), x); /* this order keeps not-a-number */
    x = v16_min(v16_set1(89.0f), x);
    v16 n = v16_round(v16_mul(x, v16_set1(0x1.715476p+0f)));
    v16 r = v16_fma(n, v16_set1(-0x1.62e4p-1f), x); /* exact: n has 8 bits, the constant 15 */
    r = v16_fma(n, v16_set1(-0x1.7f7d1cp-20f), r);
    v16 y = v16_add(v16_fma(v16_mul(r, r), v16_exp_tail(r), r), v16_set1(1));
    return v16_scale(y, n);
}

/* x = 2^e m with m in [sqrt(1/2), sqrt(2)); log x = e ln 2 + f - f^2/2 + f^3 p(f), f = m - 1. */
MATH_FN v16 v16_log(v16 x)
{
    static const float p[] = {0x1.555554p-2f, -0x1.000228p-2f, 0x1.99a028p-3f, -0x1.54720cp-3f,
                              0x1.22d792p-3f, -0x1.0d854cp-3f, 0x1.056c2p-3f, -0x1.38dc36p-4f};
    v16 one = v16_set1(1), zero = v16_zero(), infinity = v16_set1(INFINITY);
    v16m denormal = v16_lt(x, v16_set1(0x1p-126f));
    v16 scaled = v16_select(denormal, v16_mul(x, v16_set1(0x1p23f)), x);
    v16 e = v16_exponent(scaled), m = v16_mantissa(scaled);
    e = v16_sub(e, v16_select(denormal, v16_set1(23), zero));
    v16m high = v16_lt(v16_set1(0x1.6a09e6p+0f), m);
    e = v16_add(e, v16_select(high, one, zero));
    v16 f = v16_sub(v16_mul(m, v16_select(high, v16_set1(0.5f), one)), one);
    v16 z = v16_mul(f, f);
    v16 y = v16_mul(v16_mul(f, z), v16_poly(f, p, 8));
    y = v16_fma(e, v16_set1(-0x1.05c61p-29f), y);
    y = v16_fma(z, v16_set1(-0.5f), y);
    y = v16_fma(e, v16_set1(0x1.62e43p-1f), v16_add(f, y));
    y = v16_select(v16_lt(x, infinity), y, x); /* infinity and not-a-number */
    y = v16_select(v16_lt(x, zero), v16_set1(NAN), y);
    return v16_select(v16_eq(x, zero), v16_neg(infinity), y);
}

/* Small |x|: x + x^3 p(x^2); otherwise 1 - 2 / (e^2|x| + 1). */
MATH_FN v16 v16_tanh(v16 x)
{
    static const float p[] = {-0x1.555532p-2f, 0x1.1106f6p-3f, -0x1.b835a4p-5f, 0x1.51f8cep-6f, -0x1.750ce4p-8f};
    v16 t = v16_abs(x), one = v16_set1(1), z = v16_mul(x, x);
    v16 small = v16_fma(v16_mul(t, z), v16_poly(z, p, 5), t);
    v16 big = v16_sub(one, v16_div(v16_set1(2), v16_add(v16_exp(v16_add(t, t)), one)));
    return v16_copysign(v16_select(v16_lt(t, v16_set1(0.625f)), small, big), x);
}

/* Small |x|: x + x p(x^2); otherwise 1 - exp(q(|x|)), q a fit of log erfc; 1 from |x| = 4 on. */
MATH_FN v16 v16_erf(v16 x)
{
    static const float p[] = {0x1.06eba8p-3f, -0x1.81273ep-2f, 0x1.ce2ce6p-4f, -0x1.b7f71ap-6f,
                              0x1.53f224p-8f, -0x1.a3515ep-11f, 0x1.4771fep-14f};
    static const float q[] = {-0x1.61a684p-12f, -0x1.208a04p+0f, -0x1.46b762p-1f, -0x1.a66b14p-4f,
                              0x1.65f7a2p-6f, -0x1.82b07ep-9f, 0x1.87648cp-13f};
    v16 t = v16_abs(x), z = v16_mul(x, x);
    v16 small = v16_fma(t, v16_poly(z, p, 7), t);
    v16 far = v16_min(v16_set1(4), t);
    v16 big = v16_sub(v16_set1(1), v16_exp(v16_poly(far, q, 7)));
    return v16_copysign(v16_select(v16_lt(t, v16_set1(1)), small, big), x);
}

MATH_FN v16 v16_sigmoid(v16 x)
{
    v16 one = v16_set1(1), e = v16_exp(v16_neg(v16_abs(x))); /* <= 1: the small side keeps its digits */
    return v16_div(v16_select(v16_lt(x, v16_zero()), e, one), v16_add(one, e));
}

#endif

/* log of one number: the same bits as a lane of v16_log. */
V16_FN real real_log(real x) { return v16_reduce_max(v16_log(v16_set1(x))); }

#endif
