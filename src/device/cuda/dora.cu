/* DoRA: the rows of w + scale B A are brought to a learned length. docs/math/dora.md. */
#include "device/cuda/cuda.cuh"

/* A thread a row of one replica's w + scale B A. */
void tm_cuda_dora_norm(tm_device *d, int32_t replicas, const tm_lowrank *lr, tm_tensor w, tm_tensor norm)
{
    if (!tm_cuda_floats(d, "dora_norm", {lr->a, lr->b, w, norm}))
        return;
    tm_tensor a = lr->a, b = lr->b;
    int64_t r = a.rows / replicas;
    float scale = lr->scale;
    tm_cuda_each(d, "dora_norm", replicas * w.rows, [=] __device__(int64_t row) {
        int64_t first = row / w.rows * r, n = row % w.rows;
        float squares = lane_sum(w.cols, [&](int64_t c, float sum) {
            float delta = 0;
            for (int64_t k = 0; k < r; k++)
                delta = fmaf(at(b, row, k), at(a, first + k, c), delta);
            float v = fmaf(scale, delta, at(w, n, c));
            return fmaf(v, v, sum);
        });
        put(norm, 0, row, sqrtf(squares));
    });
}

void tm_cuda_dora_forward(tm_device *d, const tm_rows *rows, tm_tensor u, tm_tensor magnitude, tm_tensor norm, tm_tensor bias, tm_tensor y)
{
    if (!tm_cuda_floats(d, "dora_forward", {u, magnitude, norm, bias, y}))
        return;
    tm_rows r = *rows;
    tm_cuda_each(d, "dora_forward", r.n * u.cols, [=] __device__(int64_t i) {
        int64_t t = i / u.cols, c = i % u.cols, place = replica_of(r, t) * u.cols + c;
        float v = at(magnitude, 0, place) / at(norm, 0, place) * at(u, t, c);
        put(y, t, c, bias.data ? v + at(bias, 0, c) : v);
    });
}

void tm_cuda_dora_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor u, tm_tensor magnitude, tm_tensor norm, tm_tensor du, tm_tensor dmagnitude)
{
    if (!tm_cuda_floats(d, "dora_backward", {dy, u, magnitude, norm, du, dmagnitude}))
        return;
    tm_rows r = *rows;
    if (dmagnitude.data) /* first: du may overwrite dy */
        tm_cuda_each(d, "dora_backward", r.replicas * dy.cols, [=] __device__(int64_t place) {
            int64_t replica = place / dy.cols, c = place % dy.cols;
            float total = at(dmagnitude, 0, place);
            for (int64_t k = r.group_chunk[replica]; k < r.group_chunk[replica + 1]; k++) {
                float sum = 0;
                for (int64_t t = r.chunk[k]; t < r.chunk[k + 1]; t++)
                    sum = fmaf(at(dy, t, c), at(u, t, c), sum);
                total = total + sum / at(norm, 0, place);
            }
            put(dmagnitude, 0, place, total);
        });
    tm_cuda_each(d, "dora_backward", r.n * dy.cols, [=] __device__(int64_t i) {
        int64_t t = i / dy.cols, c = i % dy.cols, place = replica_of(r, t) * dy.cols + c;
        put(du, t, c, at(magnitude, 0, place) / at(norm, 0, place) * at(dy, t, c));
    });
}
