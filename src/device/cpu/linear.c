/* y = x w^T + bias and its gradients: matrix products of gemm.h. docs/math/linear.md. */
#include "device/cpu/gemm.h"

#include "device/cpu/simd.h"

void TM_KERNEL(linear_forward)(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, tm_tensor y)
{
    tm_gemm g = {.m = rows->n, .n = w.rows, .k = w.cols, .a = tm_gemm_rows_of(x), .b = tm_gemm_rows_of(w),
                 .bf16 = x.dtype == TM_BF16, .c = y.data, .c_dtype = y.dtype, .ldc = y.ld, .bias = bias};
    TM_KERNEL(gemm)(tm_cpu_of(d), &g);
}

void TM_KERNEL(linear_backward_input)(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor w, bool accumulate,
                                      tm_tensor dx)
{
    tm_gemm g = {.m = rows->n, .n = w.cols, .k = w.rows, .a = tm_gemm_rows_of(dy), .b = tm_gemm_cols_of(w),
                 .bf16 = dy.dtype == TM_BF16, .c = dx.data, .c_dtype = dx.dtype, .ldc = dx.ld, .accumulate = accumulate};
    TM_KERNEL(gemm)(tm_cpu_of(d), &g);
}

typedef struct bias_sum {
    const tm_rows *rows;
    tm_tensor dy, dbias;
} bias_sum;

/* Sixteen columns: every chunk's sum from zero, the chunks' sums in order. */
static void sum_columns(void *context, int64_t task, int thread)
{
    (void)thread;
    const bias_sum *s = context;
    int64_t n = task * V16;
    int w = (int)(s->dy.cols - n < V16 ? s->dy.cols - n : V16);
    v16 total = v16_load_n(s->dbias.data, s->dbias.dtype, n, w);
    for (int64_t c = 0; c < s->rows->chunks; c++) {
        v16 sum = v16_zero();
        for (int64_t t = s->rows->chunk[c]; t < s->rows->chunk[c + 1]; t++)
            sum = v16_add(sum, v16_load_n(s->dy.data, s->dy.dtype, t * s->dy.ld + n, w));
        total = v16_add(total, sum);
    }
    v16_store_n(s->dbias.data, s->dbias.dtype, n, w, total);
}

void TM_KERNEL(linear_backward_weight)(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_tensor dw,
                                       tm_tensor dbias)
{
    tm_cpu *cpu = tm_cpu_of(d);
    if (dw.data) {
        tm_gemm g = {.m = dy.cols, .n = x.cols, .k = rows->n, .a = tm_gemm_cols_of(dy), .b = tm_gemm_cols_of(x),
                     .bf16 = dy.dtype == TM_BF16, .block = rows->chunk, .blocks = rows->chunks,
                     .c = dw.data, .c_dtype = dw.dtype, .ldc = dw.ld, .accumulate = true};
        TM_KERNEL(gemm)(cpu, &g);
    }
    if (dbias.data) {
        bias_sum s = {rows, dy, dbias};
        tm_pool_run(cpu->pool, sum_columns, &s, (dy.cols + V16 - 1) / V16);
    }
}
