/* Residual addition and layer norm: a thread a row. docs/math/layernorm.md. */
#include "device/cuda/cuda.cuh"

TM_LANE float normal_at(const tm_tensor &sum, const tm_tensor &mean, const tm_tensor &rstd, int64_t t, int64_t i)
{
    return (at(sum, t, i) - at(mean, 0, t)) * at(rstd, 0, t);
}

void tm_cuda_layernorm_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor delta, tm_tensor weight, tm_tensor bias, float eps, tm_tensor sum, tm_tensor mean, tm_tensor rstd, tm_tensor y)
{
    if (!tm_cuda_floats(d, "layernorm_forward", {x, delta, weight, bias, sum, mean, rstd, y}))
        return;
    int64_t C = x.cols;
    tm_cuda_each(d, "layernorm_forward", rows->n, [=] __device__(int64_t t) {
        float total = row_sum(C, [&](int64_t i, float a) {
            float s = at(x, t, i);
            if (delta.data)
                s = s + at(delta, t, i);
            if (delta.data || sum.data != x.data)
                s = stored(sum, t, i, s);
            return a + s;
        });
        float m = total / (float)C;
        float squares = row_sum(C, [&](int64_t i, float a) { return fmaf(at(sum, t, i) - m, at(sum, t, i) - m, a); });
        put(mean, 0, t, m);
        put(rstd, 0, t, 1 / sqrtf(squares / (float)C + eps));
        for (int64_t i = 0; i < C; i++) {
            float n = normal_at(sum, mean, rstd, t, i);
            put(y, t, i, bias.data ? fmaf(n, at(weight, 0, i), at(bias, 0, i)) : n * at(weight, 0, i));
        }
    });
}

void tm_cuda_layernorm_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor sum, tm_tensor weight, tm_tensor mean, tm_tensor rstd, tm_tensor dx, tm_tensor dweight, tm_tensor dbias)
{
    if (!tm_cuda_floats(d, "layernorm_backward", {dy, sum, weight, mean, rstd, dx, dweight, dbias}))
        return;
    tm_rows r = *rows;
    int64_t C = dy.cols;
    if (dweight.data || dbias.data)
        tm_cuda_each(d, "layernorm_backward", C, [=] __device__(int64_t i) {
            if (dweight.data)
                put(dweight, 0, i, chunk_sum(r.chunk, 0, r.chunks, at(dweight, 0, i), [&](int64_t t, float a) {
                    return fmaf(at(dy, t, i), normal_at(sum, mean, rstd, t, i), a);
                }));
            if (dbias.data)
                put(dbias, 0, i, chunk_sum(r.chunk, 0, r.chunks, at(dbias, 0, i), [&](int64_t t, float a) { return a + at(dy, t, i); }));
        });
    tm_cuda_each(d, "layernorm_backward", r.n, [=] __device__(int64_t t) {
        float total = row_sum(C, [&](int64_t i, float a) { return fmaf(at(dy, t, i), at(weight, 0, i), a); });
        float dot = row_sum(C, [&](int64_t i, float a) { return fmaf(at(dy, t, i) * at(weight, 0, i), normal_at(sum, mean, rstd, t, i), a); });
        float middle = total / (float)C, q = dot / (float)C;
        for (int64_t i = 0; i < C; i++) {
            float g = at(dy, t, i) * at(weight, 0, i) - middle;
            put(dx, t, i, fmaf(at(rstd, 0, t), fmaf(-q, normal_at(sum, mean, rstd, t, i), g), at(dx, t, i)));
        }
    });
}
