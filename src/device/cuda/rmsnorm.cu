/* Residual addition and root-mean-square norm: a thread a row. docs/math/rmsnorm.md. */
#include "device/cuda/cuda.cuh"

void tm_cuda_rmsnorm_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor delta, tm_tensor weight, float offset, float eps, tm_tensor sum, tm_tensor rstd, tm_tensor y)
{
    if (!tm_cuda_floats(d, "rmsnorm_forward", {x, delta, weight, sum, rstd, y}))
        return;
    int64_t C = x.cols;
    tm_cuda_each(d, "rmsnorm_forward", rows->n, [=] __device__(int64_t t) {
        float squares = row_sum(C, [&](int64_t i, float a) {
            float s = at(x, t, i);
            if (delta.data)
                s = s + at(delta, t, i);
            if (delta.data || sum.data != x.data)
                s = stored(sum, t, i, s);
            return fmaf(s, s, a);
        });
        float r = 1 / sqrtf(squares / (float)C + eps);
        put(rstd, 0, t, r);
        for (int64_t i = 0; i < C; i++)
            put(y, t, i, (at(sum, t, i) * r) * (at(weight, 0, i) + offset));
    });
}

void tm_cuda_rmsnorm_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor sum, tm_tensor weight, float offset, tm_tensor rstd, tm_tensor dx, tm_tensor dweight)
{
    if (!tm_cuda_floats(d, "rmsnorm_backward", {dy, sum, weight, rstd, dx, dweight}))
        return;
    tm_rows r = *rows;
    int64_t C = dy.cols;
    if (dweight.data)
        tm_cuda_each(d, "rmsnorm_backward", C, [=] __device__(int64_t i) {
            put(dweight, 0, i, chunk_sum(r.chunk, 0, r.chunks, at(dweight, 0, i), [&](int64_t t, float a) {
                return fmaf(at(dy, t, i), at(sum, t, i) * at(rstd, 0, t), a);
            }));
        });
    tm_cuda_each(d, "rmsnorm_backward", r.n, [=] __device__(int64_t t) {
        float dot = row_sum(C, [&](int64_t i, float a) { return fmaf(at(dy, t, i) * (at(weight, 0, i) + offset), at(sum, t, i), a); });
        float scale = at(rstd, 0, t), q = dot * scale / (float)C * scale;
        for (int64_t i = 0; i < C; i++)
            put(dx, t, i, fmaf(scale, fmaf(-q, at(sum, t, i), at(dy, t, i) * (at(weight, 0, i) + offset)), at(dx, t, i)));
    });
}
