/* y = x w^T + bias and its gradients: a thread an output. docs/math/linear.md. With bf16 activations the other
 * factor is rounded to bf16, as the CPU does; its order of pairs and its flush of small numbers are not followed. */
#include "device/cuda/cuda.cuh"

/* The factor beside an activation of type t. */
TM_LANE float beside(tm_dtype t, float x) { return t == TM_BF16 ? tm_bf16_to_f32(tm_f32_to_bf16(x)) : x; }

void tm_cuda_linear_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, tm_tensor y)
{
    if (!tm_cuda_floats(d, "linear_forward", {x, w, bias, y}))
        return;
    tm_cuda_each(d, "linear_forward", rows->n * w.rows, [=] __device__(int64_t i) {
        int64_t t = i / w.rows, n = i % w.rows;
        float sum = product_sum(w.cols, nullptr, [&](int64_t k) { return at(x, t, k); }, [&](int64_t k) { return beside(x.dtype, at(w, n, k)); });
        put(y, t, n, bias.data ? sum + at(bias, 0, n) : sum);
    });
}

void tm_cuda_linear_backward_input(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor w, bool accumulate, tm_tensor dx)
{
    if (!tm_cuda_floats(d, "linear_backward_input", {dy, w, dx}))
        return;
    tm_cuda_each(d, "linear_backward_input", rows->n * w.cols, [=] __device__(int64_t i) {
        int64_t t = i / w.cols, k = i % w.cols;
        float old = accumulate ? at(dx, t, k) : 0;
        put(dx, t, k, product_sum(w.rows, accumulate ? &old : nullptr, [&](int64_t n) { return at(dy, t, n); }, [&](int64_t n) { return beside(dy.dtype, at(w, n, k)); }));
    });
}

void tm_cuda_linear_backward_weight(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_tensor dw, tm_tensor dbias)
{
    if (!tm_cuda_floats(d, "linear_backward_weight", {dy, x, dw, dbias}))
        return;
    tm_rows r = *rows;
    if (dw.data)
        tm_cuda_each(d, "linear_backward_weight", dy.cols * x.cols, [=] __device__(int64_t i) {
            int64_t n = i / x.cols, k = i % x.cols;
            put(dw, n, k, chunk_sum(r.chunk, 0, r.chunks, at(dw, n, k), [&](int64_t t, float a) { return fmaf(at(dy, t, n), beside(dy.dtype, at(x, t, k)), a); }));
        });
    if (dbias.data)
        tm_cuda_each(d, "linear_backward_weight", dy.cols, [=] __device__(int64_t n) {
            put(dbias, 0, n, chunk_sum(r.chunk, 0, r.chunks, at(dbias, 0, n), [&](int64_t t, float a) { return a + at(dy, t, n); }));
        });
}
