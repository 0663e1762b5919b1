/* Residual addition and layer norm (1607.06450). docs/math/layernorm.md.
 * Invariant: with 16-bit storage the norm is taken of the sum as stored, which is what backward reads. */
#include "device/cpu/row.h"

typedef struct work {
    const tm_rows *rows;
    tm_tensor x, delta, weight, bias, sum, mean, rstd, y; /* forward; backward: y is dy */
    tm_tensor dx, dweight, dbias;
    real eps;
} work;

/* s = x + delta, stored, and added to `total`. */
V16_FN v16 residual(const work *w, int64_t t, int64_t i, int lanes, v16 total)
{
    v16 s = lanes_load(w->x, t, i, lanes);
    if (w->delta.data)
        s = v16_add(s, lanes_load(w->delta, t, i, lanes));
    if (w->delta.data || w->sum.data != w->x.data) {
        lanes_store(w->sum, t, i, lanes, s);
        if (w->sum.dtype != TM_REAL)
            s = lanes_load(w->sum, t, i, lanes);
    }
    return v16_add(total, s);
}

/* What is beyond the last column counts for nothing: sums run over whole vectors. */
V16_FN v16 masked(v16 a, int lanes) { return lanes == V16 ? a : v16_select(v16_first(lanes), a, v16_zero()); }

static void forward_rows(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t C = w->x.cols, size = task_rows(C);
    for (int64_t t = task * size; t < task_end(task, size, w->rows->n); t++) {
        real total, squares;
#define TOTAL(i, lanes, a) a = residual(w, t, i, lanes, a)
        ROW_SUM(C, TOTAL, total);
#undef TOTAL
        real mean = total / (real)C;
        v16 m = v16_set1(mean);
#define SQUARES(i, lanes, a)                                                              \
    do {                                                                                  \
        v16 d_ = masked(v16_sub(lanes_load(w->sum, t, i, lanes), m), lanes);              \
        a = v16_fma(d_, d_, a);                                                           \
    } while (0)
        ROW_SUM(C, SQUARES, squares);
#undef SQUARES
        real rstd = 1 / real_sqrt(squares / (real)C + w->eps);
        real_store(w->mean.data, w->mean.dtype, t, mean);
        real_store(w->rstd.data, w->rstd.dtype, t, rstd);
        v16 r = v16_set1(rstd);
        for (int64_t i = 0; i < C; i += V16) {
            int lanes = lanes_at(C, i);
            v16 n = v16_mul(v16_sub(lanes_load(w->sum, t, i, lanes), m), r), weight = lanes_load(w->weight, 0, i, lanes);
            lanes_store(w->y, t, i, lanes,
                        w->bias.data ? v16_fma(n, weight, lanes_load(w->bias, 0, i, lanes)) : v16_mul(n, weight));
        }
    }
}

void TM_KERNEL(layernorm_forward)(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor delta, tm_tensor weight,
                                  tm_tensor bias, float eps, tm_tensor sum, tm_tensor mean, tm_tensor rstd, tm_tensor y)
{
    work w = {.rows = rows, .x = x, .delta = delta, .weight = weight, .bias = bias, .sum = sum, .mean = mean,
              .rstd = rstd, .y = y, .eps = (real)eps};
    tm_pool_run(tm_cpu_of(d)->pool, forward_rows, &w, task_count(rows->n, task_rows(x.cols)));
}

/* The normalised elements of row t at column i. */
V16_FN v16 normal_at(const work *w, int64_t t, int64_t i, int lanes)
{
    v16 m = v16_set1(real_load(w->mean.data, w->mean.dtype, t)), r = v16_set1(real_load(w->rstd.data, w->rstd.dtype, t));
    return v16_mul(v16_sub(lanes_load(w->sum, t, i, lanes), m), r);
}

static void backward_rows(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t C = w->y.cols, size = task_rows(C);
    for (int64_t t = task * size; t < task_end(task, size, w->rows->n); t++) {
        real total, dot;
        v16 r = v16_set1(real_load(w->rstd.data, w->rstd.dtype, t));
        /* dy beyond the last column is loaded as 0, so what stands beside it does not matter. */
#define TOTAL(i, lanes, a) a = v16_fma(lanes_load(w->y, t, i, lanes), lanes_load(w->weight, 0, i, lanes), a)
        ROW_SUM(C, TOTAL, total);
#undef TOTAL
#define DOT(i, lanes, a)                                                                                       \
    a = v16_fma(v16_mul(lanes_load(w->y, t, i, lanes), lanes_load(w->weight, 0, i, lanes)),                   \
                normal_at(w, t, i, lanes), a)
        ROW_SUM(C, DOT, dot);
#undef DOT
        v16 mean = v16_set1(total / (real)C), q = v16_set1(dot / (real)C);
        for (int64_t i = 0; i < C; i += V16) {
            int lanes = lanes_at(C, i);
            v16 g = v16_mul(lanes_load(w->y, t, i, lanes), lanes_load(w->weight, 0, i, lanes));
            g = v16_fnma(q, normal_at(w, t, i, lanes), v16_sub(g, mean));
            lanes_store(w->dx, t, i, lanes, v16_fma(r, g, lanes_load(w->dx, t, i, lanes)));
        }
    }
}

/* dweight and dbias of STRIP columns: a chain over the rows of each chunk, chunk sums added in order. */
static void weight_strip(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t end = task_end(task, STRIP, w->y.cols);
    for (int64_t chunk = 0; chunk < w->rows->chunks; chunk++)
        for (int64_t i = task * STRIP; i < end; i += V16) {
            int lanes = lanes_at(end, i);
            v16 weight = v16_zero(), bias = v16_zero();
            for (int64_t t = w->rows->chunk[chunk]; t < w->rows->chunk[chunk + 1]; t++) {
                v16 dy = lanes_load(w->y, t, i, lanes);
                weight = v16_fma(dy, normal_at(w, t, i, lanes), weight);
                bias = v16_add(bias, dy);
            }
            if (w->dweight.data)
                lanes_store(w->dweight, 0, i, lanes, v16_add(lanes_load(w->dweight, 0, i, lanes), weight));
            if (w->dbias.data)
                lanes_store(w->dbias, 0, i, lanes, v16_add(lanes_load(w->dbias, 0, i, lanes), bias));
        }
}

void TM_KERNEL(layernorm_backward)(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor sum, tm_tensor weight,
                                   tm_tensor mean, tm_tensor rstd, tm_tensor dx, tm_tensor dweight, tm_tensor dbias)
{
    work w = {.rows = rows, .weight = weight, .sum = sum, .mean = mean, .rstd = rstd, .y = dy, .dx = dx,
              .dweight = dweight, .dbias = dbias};
    tm_pool *pool = tm_cpu_of(d)->pool;
    if (dweight.data || dbias.data)
        tm_pool_run(pool, weight_strip, &w, task_count(dy.cols, STRIP));
    tm_pool_run(pool, backward_rows, &w, task_count(rows->n, task_rows(dy.cols)));
}
