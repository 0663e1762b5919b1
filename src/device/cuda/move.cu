/* Rows in and out, and elementwise helpers. docs/math/dropout.md for dropout. */
#include "device/cuda/cuda.cuh"

/* y[to(i)] = x[from(i)] for i < n; index NULL: the same row. Row -1 of x is zeros; row -1 of y is nowhere. */
static void move_rows(tm_device *d, const char *op, int64_t n, const int32_t *from, const int32_t *to, tm_tensor x, tm_tensor y)
{
    if (!tm_cuda_floats(d, op, {x, y}))
        return;
    tm_cuda_each(d, op, n * y.cols, [=] __device__(int64_t item) {
        int64_t t = item / y.cols, c = item % y.cols, source = from ? from[t] : t, target = to ? to[t] : t;
        if (target >= 0)
            put(y, target, c, source >= 0 ? at(x, source, c) : 0);
    });
}

void tm_cuda_gather_rows(tm_device *d, int64_t n, const int32_t *index, tm_tensor x, tm_tensor y) { move_rows(d, "gather_rows", n, index, nullptr, x, y); }

void tm_cuda_scatter_rows(tm_device *d, int64_t n, const int32_t *index, tm_tensor x, int64_t rows_y, tm_tensor y)
{
    y.rows = rows_y;
    tm_cuda_fill(d, y, 0);
    move_rows(d, "scatter_rows", n, nullptr, index, x, y);
}

void tm_cuda_cast(tm_device *d, tm_tensor x, tm_tensor y) { move_rows(d, "cast", y.rows, nullptr, nullptr, x, y); }

void tm_cuda_axpy(tm_device *d, double a, tm_tensor x, tm_tensor y)
{
    if (!tm_cuda_floats(d, "axpy", {x, y}))
        return;
    float factor = (float)a;
    tm_cuda_each(d, "axpy", y.rows * y.cols, [=] __device__(int64_t item) {
        int64_t t = item / y.cols, c = item % y.cols;
        put(y, t, c, fmaf(factor, at(x, t, c), at(y, t, c)));
    });
}

void tm_cuda_fill(tm_device *d, tm_tensor y, double value)
{
    if (!tm_cuda_floats(d, "fill", {y}))
        return;
    float v = (float)value;
    tm_cuda_each(d, "fill", y.rows * y.cols, [=] __device__(int64_t item) { put(y, item / y.cols, item % y.cols, v); });
}

void tm_cuda_dropout(tm_device *d, const tm_rows *rows, const tm_step_params *step, uint32_t module, float p, bool accumulate, tm_tensor x, tm_tensor y)
{
    if (!tm_cuda_floats(d, "dropout", {x, y}))
        return;
    tm_rows r = *rows;
    tm_cuda_drop drop = tm_cuda_drop_of(module, p);
    tm_cuda_each(d, "dropout", r.n * y.cols, [=] __device__(int64_t item) {
        int64_t t = item / y.cols, c = item % y.cols;
        float kept = at(x, t, c) * dropout_factor(drop, step[replica_of(r, t)].dropout_key, r, t, c);
        put(y, t, c, accumulate ? at(y, t, c) + kept : kept);
    });
}
