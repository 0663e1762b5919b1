/* Residual addition and root-mean-square norm. docs/math/rmsnorm.md.
 * Invariant: with 16-bit storage the norm is taken of the sum as stored, which is what backward reads. */
#include "device/cpu/row.h"

typedef struct work {
    const tm_rows *rows;
    tm_tensor x, delta, weight, sum, rstd, y; /* forward; backward: y is dy */
    tm_tensor dx, dweight;
    real offset, eps;
} work;

/* What a normalised element is multiplied by. */
V16_FN v16 scale_at(const work *w, int64_t i, int lanes)
{
    return v16_add(lanes_load(w->weight, 0, i, lanes), v16_set1(w->offset));
}

/* s = x + delta, stored, and its squares added to `squares`. */
V16_FN v16 residual(const work *w, int64_t t, int64_t i, int lanes, v16 squares)
{
    v16 s = lanes_load(w->x, t, i, lanes);
    if (w->delta.data)
        s = v16_add(s, lanes_load(w->delta, t, i, lanes));
    if (w->delta.data || w->sum.data != w->x.data) {
        lanes_store(w->sum, t, i, lanes, s);
        if (w->sum.dtype != TM_REAL)
            s = lanes_load(w->sum, t, i, lanes);
    }
    return v16_fma(s, s, squares);
}

static void forward_rows(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t C = w->x.cols, size = task_rows(C);
    for (int64_t t = task * size; t < task_end(task, size, w->rows->n); t++) {
        real squares;
#define SQUARES(i, lanes, a) a = residual(w, t, i, lanes, a)
        ROW_SUM(C, SQUARES, squares);
#undef SQUARES
        real rstd = 1 / real_sqrt(squares / (real)C + w->eps);
        real_store(w->rstd.data, w->rstd.dtype, t, rstd);
        v16 r = v16_set1(rstd);
        for (int64_t i = 0; i < C; i += V16) {
            int lanes = lanes_at(C, i);
            v16 n = v16_mul(lanes_load(w->sum, t, i, lanes), r);
            lanes_store(w->y, t, i, lanes, v16_mul(n, scale_at(w, i, lanes)));
        }
    }
}

void TM_KERNEL(rmsnorm_forward)(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor delta, tm_tensor weight,
                                float offset, float eps, tm_tensor sum, tm_tensor rstd, tm_tensor y)
{
    work w = {.rows = rows, .x = x, .delta = delta, .weight = weight, .sum = sum, .rstd = rstd, .y = y,
              .offset = (real)offset, .eps = (real)eps};
    tm_pool_run(tm_cpu_of(d)->pool, forward_rows, &w, task_count(rows->n, task_rows(x.cols)));
}

static void backward_rows(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t C = w->y.cols, size = task_rows(C);
    for (int64_t t = task * size; t < task_end(task, size, w->rows->n); t++) {
        real dot;
#define DOT(i, lanes, a)                                                                                            \
    a = v16_fma(v16_mul(lanes_load(w->y, t, i, lanes), scale_at(w, i, lanes)),                                     \
                lanes_load(w->sum, t, i, lanes), a)
        ROW_SUM(C, DOT, dot);
#undef DOT
        real rstd = real_load(w->rstd.data, w->rstd.dtype, t);
        v16 r = v16_set1(rstd), q = v16_set1(dot * rstd / (real)C * rstd);
        for (int64_t i = 0; i < C; i += V16) {
            int lanes = lanes_at(C, i);
            v16 g = v16_mul(lanes_load(w->y, t, i, lanes), scale_at(w, i, lanes));
            g = v16_fnma(q, lanes_load(w->sum, t, i, lanes), g);
            lanes_store(w->dx, t, i, lanes, v16_fma(r, g, lanes_load(w->dx, t, i, lanes)));
        }
    }
}

/* dweight of STRIP columns: a chain over the rows of each chunk, chunk sums added in order. */
static void weight_strip(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t end = task_end(task, STRIP, w->y.cols);
    for (int64_t chunk = 0; chunk < w->rows->chunks; chunk++)
        for (int64_t i = task * STRIP; i < end; i += V16) {
            int lanes = lanes_at(end, i);
            v16 part = v16_zero();
            for (int64_t t = w->rows->chunk[chunk]; t < w->rows->chunk[chunk + 1]; t++) {
                v16 n = v16_mul(lanes_load(w->sum, t, i, lanes), v16_set1(real_load(w->rstd.data, w->rstd.dtype, t)));
                part = v16_fma(lanes_load(w->y, t, i, lanes), n, part);
            }
            lanes_store(w->dweight, 0, i, lanes, v16_add(lanes_load(w->dweight, 0, i, lanes), part));
        }
}

void TM_KERNEL(rmsnorm_backward)(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor sum, tm_tensor weight,
                                 float offset, tm_tensor rstd, tm_tensor dx, tm_tensor dweight)
{
    work w = {.rows = rows, .weight = weight, .sum = sum, .rstd = rstd, .y = dy, .dx = dx, .dweight = dweight,
              .offset = (real)offset};
    tm_pool *pool = tm_cpu_of(d)->pool;
    if (dweight.data)
        tm_pool_run(pool, weight_strip, &w, task_count(dy.cols, STRIP));
    tm_pool_run(pool, backward_rows, &w, task_count(rows->n, task_rows(dy.cols)));
}
