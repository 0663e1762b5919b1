/* The feed-forward's activation: act(gate) * up, or act alone without a gate, elementwise. docs/math/glu.md. */
#include "device/cuda/math.cuh"

/* act(g) and its derivative. */
struct tm_cuda_act {
    float act, slope;
};

TM_LANE tm_cuda_act activate(tm_activation act, float g)
{
    if (act == TM_ACT_SILU) {
        float s = sigmoid_of(g), a = g * s;
        return {a, fmaf(a, 1 - s, s)};
    }
    if (act == TM_ACT_RELU)
        return {g <= 0 ? 0 : g, g <= 0 ? 0.0f : 1.0f};
    if (act == TM_ACT_NONE)
        return {g, 1};
    if (act == TM_ACT_GELU) {
        float cdf = 0.5f * (1 + erf_of(g * 0.70710678118654752440f));
        float density = exp_of((g * g) * -0.5f) * 0.39894228040143267794f;
        return {g * cdf, fmaf(g, density, cdf)};
    }
    float root = 0.79788456080286535588f, square = g * g;
    float inner = fmaf(0.044715f * square, g, g);
    float t = tanh_of(root * inner), cdf = 0.5f * (1 + t);
    float slope = root * fmaf((float)(3 * 0.044715), square, 1);
    float rest = ((0.5f * g) * fmaf(-t, t, 1)) * slope;
    return {g * cdf, cdf + rest};
}

void tm_cuda_glu_forward(tm_device *d, const tm_rows *rows, tm_activation act, tm_tensor gate_up, tm_tensor h)
{
    if (!tm_cuda_floats(d, "glu_forward", {gate_up, h}))
        return;
    int64_t F = h.cols;
    bool gated = gate_up.cols != F;
    tm_cuda_each(d, "glu_forward", rows->n * F, [=] __device__(int64_t item) {
        int64_t t = item / F, i = item % F;
        float a = activate(act, at(gate_up, t, i)).act;
        put(h, t, i, gated ? a * at(gate_up, t, F + i) : a);
    });
}

void tm_cuda_glu_backward(tm_device *d, const tm_rows *rows, tm_activation act, tm_tensor gate_up, tm_tensor dh, tm_tensor dgate_up, tm_tensor h)
{
    if (!tm_cuda_floats(d, "glu_backward", {gate_up, dh, dgate_up, h}))
        return;
    int64_t F = dh.cols;
    bool gated = gate_up.cols != F;
    tm_cuda_each(d, "glu_backward", rows->n * F, [=] __device__(int64_t item) {
        int64_t t = item / F, i = item % F;
        tm_cuda_act a = activate(act, at(gate_up, t, i));
        float g = at(dh, t, i);
        if (!gated) {
            put(dgate_up, t, i, g * a.slope);
            if (h.data)
                put(h, t, i, a.act);
            return;
        }
        float up = at(gate_up, t, F + i);
        put(dgate_up, t, i, (g * up) * a.slope);
        put(dgate_up, t, F + i, g * a.act);
        if (h.data)
            put(h, t, i, a.act * up);
    });
}
