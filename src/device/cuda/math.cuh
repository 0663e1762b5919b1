/* exp, log, tanh, erf and sigmoid of one float: the operations of src/device/cpu/math.h one by one, so the
 * same bits; that file says where the polynomials come from and how exact they are. */
#ifndef TM_DEVICE_CUDA_MATH_CUH
#define TM_DEVICE_CUDA_MATH_CUH

#include "device/cuda/cuda.cuh"

template <int N> TM_LANE float poly(float x, const float (&c)[N])
{
    float y = c[N - 1];
    for (int i = N - 2; i >= 0; i--)
        y = fmaf(y, x, c[i]);
    return y;
}

TM_LANE float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

TM_LANE uint32_t to_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

TM_LANE float round_even(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }
TM_LANE float power_of_two(float n) { return from_bits((uint32_t)((int32_t)n + 127) << 23); }

TM_LANE float exp_tail(float x)
{
    const float q[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558aep-5f, 0x1.123988p-7f, 0x1.6a4f88p-10f};
    return poly(x, q);
}
TM_LANE float exp_rest(float x) { return (x * x) * exp_tail(x); }

TM_LANE float exp_of(float x)
{
    x = larger(-104.0f, x);
    x = 89.0f < x ? 89.0f : x;
    float n = round_even(x * 0x1.715476p+0f);
    float r = fmaf(n, -0x1.7f7d1cp-20f, fmaf(n, -0x1.62e4p-1f, x));
    float y = fmaf(r * r, exp_tail(r), r) + 1;
    float half = round_even(n * 0.5f);
    return (y * power_of_two(half)) * power_of_two(n - half);
}

TM_LANE float log_of(float x)
{
    const float p[] = {0x1.555554p-2f, -0x1.000228p-2f, 0x1.99a028p-3f, -0x1.54720cp-3f,
                       0x1.22d792p-3f, -0x1.0d854cp-3f, 0x1.056c2p-3f, -0x1.38dc36p-4f};
    bool denormal = x < 0x1p-126f;
    uint32_t bits = to_bits(denormal ? x * 0x1p23f : x);
    float e = (float)((int32_t)(bits >> 23 & 0xff) - 127), m = from_bits((bits & 0x7fffff) | 127u << 23);
    e = e - (denormal ? 23 : 0);
    bool high = 0x1.6a09e6p+0f < m;
    e = e + (high ? 1 : 0);
    float f = m * (high ? 0.5f : 1) - 1, z = f * f, y = (f * z) * poly(f, p);
    y = fmaf(e, -0x1.05c61p-29f, y);
    y = fmaf(z, -0.5f, y);
    y = fmaf(e, 0x1.62e43p-1f, f + y);
    y = x < INFINITY ? y : x;
    y = x < 0 ? NAN : y;
    return x == 0 ? -INFINITY : y;
}

TM_LANE float tanh_of(float x)
{
    const float p[] = {-0x1.555532p-2f, 0x1.1106f6p-3f, -0x1.b835a4p-5f, 0x1.51f8cep-6f, -0x1.750ce4p-8f};
    float t = fabsf(x), z = x * x;
    return copysignf(t < 0.625f ? fmaf(t * z, poly(z, p), t) : 1 - 2 / (exp_of(t + t) + 1), x);
}

TM_LANE float erf_of(float x)
{
    const float p[] = {0x1.06eba8p-3f, -0x1.81273ep-2f, 0x1.ce2ce6p-4f, -0x1.b7f71ap-6f, 0x1.53f224p-8f, -0x1.a3515ep-11f, 0x1.4771fep-14f};
    const float q[] = {-0x1.61a684p-12f, -0x1.208a04p+0f, -0x1.46b762p-1f, -0x1.a66b14p-4f, 0x1.65f7a2p-6f, -0x1.82b07ep-9f, 0x1.87648cp-13f};
    float t = fabsf(x), z = x * x, far = 4 < t ? 4 : t;
    return copysignf(t < 1 ? fmaf(t, poly(z, p), t) : 1 - exp_of(poly(far, q)), x);
}

TM_LANE float sigmoid_of(float x)
{
    float e = exp_of(-fabsf(x));
    return (x < 0 ? e : 1) / (1 + e);
}

#endif
