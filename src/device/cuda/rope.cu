/* Rotary positions, after an RMS norm of every head where the family has one: a thread a head of a row.
 * docs/math/rope.md. An element is read before the place it is written to is. */
#include "device/cuda/cuda.cuh"

struct tm_cuda_pair {
    float low, high;
};

TM_LANE tm_cuda_pair pair_at(const tm_tensor &t, int64_t row, int64_t column, int64_t half)
{
    return {at(t, row, column), at(t, row, column + half)};
}

TM_LANE tm_cuda_pair rotate(tm_cuda_pair n, float c, float s)
{
    return {fmaf(-n.high, s, n.low * c), fmaf(n.low, s, n.high * c)};
}

void tm_cuda_rope_forward(tm_device *d, const tm_rows *rows, tm_tensor x, int64_t heads, tm_tensor cos, tm_tensor sin, tm_tensor norm_weight, float eps, tm_tensor rstd, tm_tensor y)
{
    if (!tm_cuda_f32(d, "rope_forward", {x, cos, sin, norm_weight, rstd, y}))
        return;
    const int32_t *position = rows->position;
    int64_t D = x.cols / heads, half = D / 2;
    tm_cuda_each(d, "rope_forward", rows->n * heads, [=] __device__(int64_t item) {
        int64_t t = item / heads, h = item % heads, p = position[t];
        float r = 1;
        if (norm_weight.data) {
            float squares = lane_sum(half, [&](int64_t i, float a) {
                tm_cuda_pair n = pair_at(x, t, h * D + i, half);
                return fmaf(n.high, n.high, fmaf(n.low, n.low, a));
            });
            r = 1 / sqrtf(squares / (float)D + eps);
            at(rstd, t, h) = r;
        }
        for (int64_t i = 0; i < half; i++) {
            tm_cuda_pair n = pair_at(x, t, h * D + i, half);
            if (norm_weight.data)
                n = {(n.low * r) * at(norm_weight, 0, i), (n.high * r) * at(norm_weight, 0, i + half)};
            n = rotate(n, at(cos, p, i), at(sin, p, i));
            at(y, t, h * D + i) = n.low;
            at(y, t, h * D + half + i) = n.high;
        }
    });
}

void tm_cuda_rope_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, int64_t heads, tm_tensor cos, tm_tensor sin, tm_tensor norm_weight, tm_tensor rstd, tm_tensor x, tm_tensor dx, tm_tensor dnorm_weight)
{
    if (!tm_cuda_f32(d, "rope_backward", {dy, cos, sin, norm_weight, rstd, x, dx, dnorm_weight}))
        return;
    tm_rows all = *rows;
    int64_t D = dy.cols / heads, half = D / 2;
    if (dnorm_weight.data) /* first: dx may overwrite dy */
        tm_cuda_each(d, "rope_backward", D, [=] __device__(int64_t c) {
            int64_t i = c % half;
            at(dnorm_weight, 0, c) = chunk_sum(all.chunk, 0, all.chunks, at(dnorm_weight, 0, c), [&](int64_t t, float a) {
                for (int64_t h = 0; h < heads; h++) {
                    tm_cuda_pair g = rotate(pair_at(dy, t, h * D + i, half), at(cos, all.position[t], i), -at(sin, all.position[t], i));
                    a = fmaf(c < half ? g.low : g.high, at(x, t, h * D + c) * at(rstd, t, h), a);
                }
                return a;
            });
        });
    tm_cuda_each(d, "rope_backward", all.n * heads, [=] __device__(int64_t item) {
        int64_t t = item / heads, h = item % heads, p = all.position[t];
        bool norm = norm_weight.data != nullptr;
        auto gradient = [&](int64_t i) { return rotate(pair_at(dy, t, h * D + i, half), at(cos, p, i), -at(sin, p, i)); };
        float r = 0, q = 0;
        if (norm) {
            float sum = lane_sum(half, [&](int64_t i, float a) {
                tm_cuda_pair g = gradient(i), v = pair_at(x, t, h * D + i, half);
                a = fmaf(g.low * at(norm_weight, 0, i), v.low, a);
                return fmaf(g.high * at(norm_weight, 0, i + half), v.high, a);
            });
            r = at(rstd, t, h);
            q = sum * r / (float)D * r;
        }
        for (int64_t i = 0; i < half; i++) {
            tm_cuda_pair g = gradient(i);
            if (norm) {
                tm_cuda_pair v = pair_at(x, t, h * D + i, half);
                g.low = r * fmaf(-q, v.low, g.low * at(norm_weight, 0, i));
                g.high = r * fmaf(-q, v.high, g.high * at(norm_weight, 0, i + half));
            }
            at(dx, t, h * D + i) = g.low;
            at(dx, t, h * D + half + i) = g.high;
        }
    });
}
