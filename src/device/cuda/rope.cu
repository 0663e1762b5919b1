/* Rotary positions, after an RMS norm of every head where the family has one: a thread a head of a row.
 * docs/math/rope.md. The first 2 * half columns of a head are rotated, the rest stays. An element is read before the place it is written to is. */
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

/* The CPU's sum over a head: pairs in lanes, then the columns of the rest in the same lanes. */
template <class F, class G> TM_LANE float head_sum(int64_t half, int64_t D, F pair, G rest)
{
    float lane[16];
    for (int l = 0; l < 16; l++) {
        lane[l] = 0;
        for (int64_t i = l; i < half; i += 16)
            lane[l] = pair(i, lane[l]);
        for (int64_t i = 2 * half + l; i < D; i += 16)
            lane[l] = rest(i, lane[l]);
    }
    return join_lanes(lane);
}

void tm_cuda_rope_forward(tm_device *d, const tm_rows *rows, tm_tensor x, int64_t heads, tm_tensor cos, tm_tensor sin, tm_tensor norm_weight, float offset, float eps, tm_tensor rstd, tm_tensor y)
{
    if (!tm_cuda_floats(d, "rope_forward", {x, cos, sin, norm_weight, rstd, y}))
        return;
    const int32_t *position = rows->position;
    int64_t D = x.cols / heads, half = cos.cols;
    tm_cuda_each(d, "rope_forward", rows->n * heads, [=] __device__(int64_t item) {
        int64_t t = item / heads, h = item % heads, p = position[t];
        float r = 1;
        if (norm_weight.data) {
            float squares = head_sum(half, D, [&](int64_t i, float a) {
                tm_cuda_pair n = pair_at(x, t, h * D + i, half);
                return fmaf(n.high, n.high, fmaf(n.low, n.low, a));
            }, [&](int64_t i, float a) { return fmaf(at(x, t, h * D + i), at(x, t, h * D + i), a); });
            r = 1 / sqrtf(squares / (float)D + eps);
            put(rstd, t, h, r);
        }
        for (int64_t i = 0; i < half; i++) {
            tm_cuda_pair n = pair_at(x, t, h * D + i, half);
            if (norm_weight.data)
                n = {(n.low * r) * (at(norm_weight, 0, i) + offset), (n.high * r) * (at(norm_weight, 0, i + half) + offset)};
            n = rotate(n, at(cos, p, i), at(sin, p, i));
            put(y, t, h * D + i, n.low);
            put(y, t, h * D + half + i, n.high);
        }
        for (int64_t i = 2 * half; i < D; i++)
            put(y, t, h * D + i, norm_weight.data ? (at(x, t, h * D + i) * r) * (at(norm_weight, 0, i) + offset) : at(x, t, h * D + i));
    });
}

void tm_cuda_rope_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, int64_t heads, tm_tensor cos, tm_tensor sin, tm_tensor norm_weight, float offset, tm_tensor rstd, tm_tensor x, tm_tensor dx, tm_tensor dnorm_weight)
{
    if (!tm_cuda_floats(d, "rope_backward", {dy, cos, sin, norm_weight, rstd, x, dx, dnorm_weight}))
        return;
    tm_rows all = *rows;
    int64_t D = dy.cols / heads, half = cos.cols;
    if (dnorm_weight.data) /* first: dx may overwrite dy */
        tm_cuda_each(d, "rope_backward", D, [=] __device__(int64_t c) {
            bool rest = c >= 2 * half;
            int64_t i = rest ? 0 : c % half;
            put(dnorm_weight, 0, c, chunk_sum(all.chunk, 0, all.chunks, at(dnorm_weight, 0, c), [&](int64_t t, float a) {
                for (int64_t h = 0; h < heads; h++) {
                    tm_cuda_pair g = rotate(pair_at(dy, t, h * D + i, half), at(cos, all.position[t], i), -at(sin, all.position[t], i));
                    a = fmaf(rest ? at(dy, t, h * D + c) : c < half ? g.low : g.high, at(x, t, h * D + c) * at(rstd, t, h), a);
                }
                return a;
            }));
        });
    tm_cuda_each(d, "rope_backward", all.n * heads, [=] __device__(int64_t item) {
        int64_t t = item / heads, h = item % heads, p = all.position[t];
        bool norm = norm_weight.data != nullptr;
        auto gradient = [&](int64_t i) { return rotate(pair_at(dy, t, h * D + i, half), at(cos, p, i), -at(sin, p, i)); };
        float r = 0, q = 0;
        if (norm) {
            float sum = head_sum(half, D, [&](int64_t i, float a) {
                tm_cuda_pair g = gradient(i), v = pair_at(x, t, h * D + i, half);
                a = fmaf(g.low * (at(norm_weight, 0, i) + offset), v.low, a);
                return fmaf(g.high * (at(norm_weight, 0, i + half) + offset), v.high, a);
            }, [&](int64_t i, float a) { return fmaf(at(dy, t, h * D + i) * (at(norm_weight, 0, i) + offset), at(x, t, h * D + i), a); });
            r = at(rstd, t, h);
            q = sum * r / (float)D * r;
        }
        for (int64_t i = 0; i < half; i++) {
            tm_cuda_pair g = gradient(i);
            if (norm) {
                tm_cuda_pair v = pair_at(x, t, h * D + i, half);
                g.low = r * fmaf(-q, v.low, g.low * (at(norm_weight, 0, i) + offset));
                g.high = r * fmaf(-q, v.high, g.high * (at(norm_weight, 0, i + half) + offset));
            }
            put(dx, t, h * D + i, g.low);
            put(dx, t, h * D + half + i, g.high);
        }
        for (int64_t i = 2 * half; i < D; i++) {
            float g = at(dy, t, h * D + i);
            put(dx, t, h * D + i, norm ? r * fmaf(-q, at(x, t, h * D + i), g * (at(norm_weight, 0, i) + offset)) : g);
        }
    });
}
