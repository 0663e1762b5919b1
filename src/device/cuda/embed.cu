/* Rows of the embedding table, and their gradient. docs/math/embed.md. */
#include "device/cuda/cuda.cuh"

void tm_cuda_embed_forward(tm_device *d, const tm_rows *rows, const int32_t *ids, tm_tensor table, float scale, tm_tensor y)
{
    if (!tm_cuda_floats(d, "embed_forward", {table, y}))
        return;
    tm_cuda_each(d, "embed_forward", rows->n * y.cols, [=] __device__(int64_t i) {
        int64_t t = i / y.cols, c = i % y.cols;
        if (ids[t] >= 0)
            put(y, t, c, scale * at(table, ids[t], c));
    });
}

/* A thread a column: rows in order. */
void tm_cuda_embed_backward(tm_device *d, const tm_rows *rows, const int32_t *ids, tm_tensor dy, float scale, tm_tensor table_grad)
{
    if (!tm_cuda_floats(d, "embed_backward", {dy, table_grad}))
        return;
    int64_t n = rows->n;
    tm_cuda_each(d, "embed_backward", dy.cols, [=] __device__(int64_t c) {
        for (int64_t t = 0; t < n; t++)
            if (ids[t] >= 0)
                put(table_grad, ids[t], c, at(table_grad, ids[t], c) + scale * at(dy, t, c));
    });
}
