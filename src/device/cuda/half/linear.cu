/* y = x w^T + bias and its gradients with activations of 16 bits. docs/math/linear.md.
 *
 * A weight of another type than the activations is rounded to theirs in the workspace first. The bias's gradient is
 * summed chunk by chunk, as everywhere; the weight's is one sum over the rows in order. */
#include "device/cuda/half/half.h"
#include "device/cuda/half/tiles.cuh"

/* --- Weights --- */

TM_LANE float float_at(float x) { return x; }
TM_LANE float float_at(bf16 x) { return float_of(x); }
TM_LANE float float_at(f16 x) { return float_of(x); }

/* y = w, rounded to T; the columns up to y.ld are zeros. */
template <class T, class W> static void round_to(tm_device *d, const char *op, const tm_tensor &w, const tm_tensor &y)
{
    struct alignas(16) eight {
        W x[8];
    };
    int64_t units = y.ld / 8, ld = w.ld, columns = w.cols;
    bool aligned = (uintptr_t)w.data % 16 == 0 && ld * sizeof(W) % 16 == 0;
    const W *from = (const W *)w.data;
    uint4 *to = (uint4 *)y.data;
    tm_cuda_each(d, op, w.rows * units, [=] __device__(int64_t i) {
        int64_t row = i / units, column = (i - row * units) * 8;
        const W *at = from + row * ld + column;
        float x[8];
        if (aligned && column + 8 <= columns) {
            eight e = *(const eight *)at;
            for (int j = 0; j < 8; j++)
                x[j] = float_at(e.x[j]);
        } else
            for (int j = 0; j < 8; j++)
                x[j] = column + j < columns ? float_at(at[j]) : 0;
        to[i] = make_uint4(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7]));
    });
}

void tm_half_round(tm_device *d, const char *op, tm_tensor w, tm_tensor y)
{
    if (y.dtype == TM_BF16)
        w.dtype == TM_F32 ? round_to<bf16, float>(d, op, w, y) : round_to<bf16, f16>(d, op, w, y);
    else
        w.dtype == TM_F32 ? round_to<f16, float>(d, op, w, y) : round_to<f16, bf16>(d, op, w, y);
}

/* w as a matrix of `type`: w itself, or a copy in the workspace. data NULL: not enough was lent. */
static tm_tensor weight_in(tm_device *d, const char *op, tm_tensor w, tm_dtype type)
{
    if (w.dtype == type)
        return w;
    int64_t used = 0, ld = (w.cols + 7) / 8 * 8;
    tm_tensor y = {tm_half_scratch(tm_cuda_of(d), &used, w.rows * ld * 2), type, w.rows, w.cols, ld};
    if (y.data)
        tm_half_round(d, op, w, y);
    return y;
}

/* Linear's storage types. */
static bool is_weight(const tm_tensor &t) { return !t.data || tm_is_half(t.dtype) || t.dtype == TM_F32; }

bool tm_half_linear(tm_device *d, const char *op, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, tm_tensor y, tm_activation act, tm_tensor h)
{
    if (!tm_is_half(x.dtype) || !is_weight(w) || !is_weight(bias) || (y.dtype != x.dtype && y.dtype != TM_F32))
        return false;
    if (rows->n == 0)
        return true;
    tm_half_product p = {};
    p.m = rows->n, p.n = w.rows, p.k = w.cols;
    p.a = x, p.out = y, p.bias = bias, p.h = h, p.activation = act;
    p.b = weight_in(d, op, w, x.dtype);
    return p.b.data && tm_half_multiply(d, op, &p);
}

bool tm_half_linear_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, tm_tensor y)
{
    return tm_half_linear(d, "linear_forward", rows, x, w, bias, y, TM_ACT_NONE, tm_tensor_none());
}

bool tm_half_linear_backward_input(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor w, bool accumulate, tm_tensor dx)
{
    if (!tm_is_half(dy.dtype) || !is_weight(w) || (dx.dtype != dy.dtype && dx.dtype != TM_F32))
        return false;
    if (rows->n == 0)
        return true;
    tm_half_product p = {};
    p.m = rows->n, p.n = w.cols, p.k = w.rows;
    p.a = dy, p.out = dx, p.add = accumulate, p.b_turned = true;
    p.b = weight_in(d, "linear_backward_input", w, dy.dtype);
    return p.b.data && tm_half_multiply(d, "linear_backward_input", &p);
}

/* --- The bias's gradient --- */

/* The sum of column n over the rows of chunk i, a chain from zero. */
template <class T> TM_LANE float column_sum(const tm_tensor &x, const int32_t *chunk, int64_t i, int64_t n)
{
    float sum = 0;
    int64_t last = chunk[i + 1];
    const T *at = (const T *)x.data + n;
#pragma unroll 8
    for (int64_t t = chunk[i]; t < last; t++)
        sum += float_of(at[t * x.ld]);
    return sum;
}

/* dbias += the sums of chunks, one after the other. Where they have no room, a thread does a column's whole chain. */
template <class T> static void sum_chunks(tm_device *d, const char *op, const tm_rows *rows, tm_tensor dy, tm_tensor dbias)
{
    int64_t used = 0, room = tm_cuda_of(d)->workspace_bytes / (dy.cols * 4 + 256), band = room < rows->chunks ? room : rows->chunks;
    int64_t columns = dy.cols, chunks = rows->chunks;
    const int32_t *chunk = rows->chunk;
    float *out = (float *)dbias.data, *sums = band ? (float *)tm_half_scratch(tm_cuda_of(d), &used, band * columns * 4) : nullptr;
    if (!sums) {
        tm_cuda_each(d, op, columns, [=] __device__(int64_t n) {
            for (int64_t i = 0; i < chunks; i++)
                out[n] += column_sum<T>(dy, chunk, i, n);
        });
        return;
    }
    for (int64_t from = 0; from < chunks; from += band) {
        int64_t count = band < chunks - from ? band : chunks - from;
        tm_cuda_each(d, op, count * columns, [=] __device__(int64_t i) { sums[i] = column_sum<T>(dy, chunk, from + i / columns, i % columns); });
        tm_cuda_each(d, op, columns, [=] __device__(int64_t n) {
            float sum = out[n];
#pragma unroll 8
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
        return true; /* nothing is added */
    if (dw.data) {
        tm_half_product p = {};
        p.m = dy.cols, p.n = x.cols, p.k = rows->n;
        p.a = dy, p.b = x, p.out = dw;
        p.a_turned = p.b_turned = p.add = true;
        if (!tm_half_multiply(d, "linear_backward_weight", &p))
            return false;
    }
    if (dbias.data && dy.dtype == TM_BF16)
        sum_chunks<bf16>(d, "linear_backward_weight", rows, dy, dbias);
    else if (dbias.data)
        sum_chunks<f16>(d, "linear_backward_weight", rows, dy, dbias);
    return true;
}
