/* The feed-forward's activations with the fast exp: one function for the op of its own and for products that activate
 * what they made, so that both give the same bits. docs/math/glu.md. */
#ifndef TM_DEVICE_CUDA_HALF_ACTIVATE_CUH
#define TM_DEVICE_CUDA_HALF_ACTIVATE_CUH

#include "device/cuda/half/fast.cuh"
#include "device/cuda/math.cuh"

/* act(g) and its derivative. */
template <int ACT> TM_LANE float2 activate(float g)
{
    if (ACT == TM_ACT_SILU) {
        float s = sigmoid_fast(g), a = g * s;
        return make_float2(a, fmaf(a, 1 - s, s));
    }
    if (ACT == TM_ACT_RELU)
        return make_float2(g <= 0 ? 0 : g, g <= 0 ? 0.0f : 1.0f);
    if (ACT == TM_ACT_NONE)
        return make_float2(g, 1);
    if (ACT == TM_ACT_GELU) {
        float cdf = 0.5f * (1 + erf_of(g * 0.70710678118654752440f));
        float density = exp_fast((g * g) * -0.5f) * 0.39894228040143267794f;
        return make_float2(g * cdf, fmaf(g, density, cdf));
    }
    float root = 0.79788456080286535588f, square = g * g; /* (1 + tanh z) / 2 is sigmoid(2 z) */
    float cdf = sigmoid_fast((2 * root) * fmaf(0.044715f * square, g, g));
    float slope = (2 * root) * fmaf((float)(3 * 0.044715), square, 1);
    return make_float2(g * cdf, fmaf((g * cdf) * (1 - cdf), slope, cdf));
}

#endif
