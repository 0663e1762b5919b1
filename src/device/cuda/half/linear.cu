/* y = x w^T + bias and its gradients with activations of 16 bits. docs/math/linear.md.
 *
 * A weight of another type than the activations is rounded to theirs in the workspace first. The bias's gradient is
 * summed chunk by chunk, as everywhere; the weight's is one sum over the rows in order. */
#include "device/cuda/half/half.h"
#include "device/cuda/half/tiles.cuh"

/* --- Weights --- */

TM_LANE float float_at(const tm_tensor &x, int64_t i)
{
    return x.dtype == TM_BF16 ? float_of(((const bf16 *)x.data)[i]) : x.dtype == TM_F16 ? float_of(((const f16 *)x.data)[i]) : ((const float *)x.data)[i];
}

/* w as a matrix of `type`: w itself, or a copy in the workspace. data NULL: not enough was lent. */
static tm_tensor weight_in(tm_device *d, const char *op, tm_tensor w, tm_dtype type)
{
    if (w.dtype == type)
        return w;
    int64_t used = 0, ld = (w.cols + 7) / 8 * 8;
    tm_tensor y = {tm_half_scratch(tm_cuda_of(d), &used, w.rows * ld * 2), type, w.rows, w.cols, ld};
    if (!y.data)
        return y;
    tm_cuda_each(d, op, w.rows * (ld / 2), [=] __device__(int64_t i) {
        int64_t row = i / (y.ld / 2), column = i % (y.ld / 2) * 2, from = row * w.ld + column;
        float a = column < w.cols ? float_at(w, from) : 0, b = column + 1 < w.cols ? float_at(w, from + 1) : 0;
        ((uint32_t *)y.data)[i] = y.dtype == TM_BF16 ? pack<bf16>(a, b) : pack<f16>(a, b);
    });
    return y;
}

/* Linear's storage types. */
static bool is_weight(const tm_tensor &t) { return !t.data || tm_is_half(t.dtype) || t.dtype == TM_F32; }

bool tm_half_linear_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, tm_tensor y)
{
    if (!tm_is_half(x.dtype) || !is_weight(w) || !is_weight(bias) || (y.dtype != x.dtype && y.dtype != TM_F32))
        return false;
    tm_half_product p = {};
    p.m = rows->n, p.n = w.rows, p.k = w.cols;
    p.a = x, p.out = y, p.bias = bias;
    p.b = weight_in(d, "linear_forward", w, x.dtype);
    return p.b.data && tm_half_multiply(d, "linear_forward", &p);
}

bool tm_half_linear_backward_input(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor w, bool accumulate, tm_tensor dx)
{
    if (!tm_is_half(dy.dtype) || !is_weight(w) || (dx.dtype != dy.dtype && dx.dtype != TM_F32))
        return false;
    tm_half_product p = {};
    p.m = rows->n, p.n = w.cols, p.k = w.rows;
    p.a = dy, p.out = dx, p.add = accumulate, p.b_turned = true;
    p.b = weight_in(d, "linear_backward_input", w, dy.dtype);
    return p.b.data && tm_half_multiply(d, "linear_backward_input", &p);
}

/* --- The bias's gradient --- */

/* Sums over rows of column n of one chunk, a chain from zero. */
TM_LANE float column_sum(const tm_tensor &x, const int32_t *chunk, int64_t i, int64_t n)
{
    float sum = 0;
    for (int64_t t = chunk[i]; t < chunk[i + 1]; t++)
        sum += float_at(x, t * x.ld + n);
    return sum;
}

/* dbias += the sums of chunks, each joined in order. Without room for them a thread does a column's whole chain. */
static void sum_chunks(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor dbias)
{
    int64_t used = 0, lent = tm_cuda_of(d)->workspace_bytes / (dy.cols * 4 + 256), band = lent < rows->chunks ? lent : rows->chunks;
    const int32_t *chunk = rows->chunk;
    float *out = (float *)dbias.data;
    int64_t columns = dy.cols, chunks = rows->chunks;
    if (band < 1) {
        tm_cuda_each(d, "linear_backward_weight", columns, [=] __device__(int64_t n) {
            float sum = out[n];
            for (int64_t i = 0; i < chunks; i++)
                sum += column_sum(dy, chunk, i, n);
            out[n] = sum;
        });
        return;
    }
    float *sums = (float *)tm_half_scratch(tm_cuda_of(d), &used, band * columns * 4);
    for (int64_t from = 0; from < chunks; from += band) {
        int64_t count = band < chunks - from ? band : chunks - from;
        tm_cuda_each(d, "linear_backward_weight", count * columns, [=] __device__(int64_t i) { sums[i] = column_sum(dy, chunk, from + i / columns, i % columns); });
        tm_cuda_each(d, "linear_backward_weight", columns, [=] __device__(int64_t n) {
            float sum = out[n];
            for (int64_t i = 0; i < count; i++)
                sum += sums[i * columns + n];
            out[n] = sum;
        });
    }
}

bool tm_half_linear_backward_weight(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_tensor dw, tm_tensor dbias)
{
    if (!tm_is_half(dy.dtype) || (dw.data && (x.dtype != dy.dtype || dw.dtype != TM_F32)) || (dbias.data && dbias.dtype != TM_F32))
        return false;
    if (rows->n == 0)
        return true;
    if (dw.data) {
        tm_half_product p = {};
        p.m = dy.cols, p.n = x.cols, p.k = rows->n;
        p.a = dy, p.b = x, p.out = dw;
        p.a_turned = p.b_turned = p.add = true;
        if (!tm_half_multiply(d, "linear_backward_weight", &p))
            return false;
    }
    if (dbias.data && rows->chunks)
        sum_chunks(d, rows, dy, dbias);
    return true;
}
