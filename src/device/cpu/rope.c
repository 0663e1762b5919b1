/* Rotary positions, after an RMS norm of every head where the family has one. docs/math/rope.md.
 * Of a head's D columns the first 2 * half are rotated, in pairs (i, i + half); the rest, where there is one, stays.
 * Invariant: an element is read before the place it is written to is, so y may be x and dx may be dy. */
#include "device/cpu/row.h"

typedef struct work {
    const tm_rows *rows;
    int64_t heads, D, half;
    tm_tensor in, cos, sin, weight, rstd, out; /* backward: in is dy, out is dx */
    tm_tensor x, dweight;
    real offset, eps;
} work;

/* The two halves of a head at columns i .. i + lanes - 1 of each. */
typedef struct pair {
    v16 low, high;
} pair;

V16_FN pair pair_load(tm_tensor t, int64_t row, int64_t column, int64_t half, int lanes)
{
    return (pair){lanes_load(t, row, column, lanes), lanes_load(t, row, column + half, lanes)};
}

/* The norm's factors of columns i and i + half; of a column of the rest. */
V16_FN pair weight_pair(const work *w, int64_t i, int lanes)
{
    pair p = pair_load(w->weight, 0, i, w->half, lanes);
    v16 offset = v16_set1(w->offset);
    return (pair){v16_add(p.low, offset), v16_add(p.high, offset)};
}

V16_FN v16 weight_rest(const work *w, int64_t i, int lanes)
{
    return v16_add(lanes_load(w->weight, 0, i, lanes), v16_set1(w->offset));
}

V16_FN pair rotate(pair n, v16 c, v16 s)
{
    return (pair){v16_fnma(n.high, s, v16_mul(n.low, c)), v16_fma(n.low, s, v16_mul(n.high, c))};
}

/* dn of the pair: the transpose of the rotation on dy. */
V16_FN pair gradient(const work *w, int64_t t, int64_t head, int64_t i, int lanes)
{
    int64_t position = w->rows->position[t];
    v16 s = v16_neg(lanes_load(w->sin, position, i, lanes));
    return rotate(pair_load(w->in, t, head * w->D + i, w->half, lanes), lanes_load(w->cos, position, i, lanes), s);
}

static void forward_head(const work *w, int64_t t, int64_t h)
{
    int64_t D = w->D, half = w->half, position = w->rows->position[t];
    real rstd = 1;
    if (w->weight.data) {
        v16 squares = v16_zero();
        for (int64_t i = 0; i < half; i += V16) {
            pair n = pair_load(w->in, t, h * D + i, half, lanes_at(half, i));
            squares = v16_fma(n.high, n.high, v16_fma(n.low, n.low, squares));
        }
        for (int64_t i = 2 * half; i < D; i += V16) {
            v16 n = lanes_load(w->in, t, h * D + i, lanes_at(D, i));
            squares = v16_fma(n, n, squares);
        }
        rstd = 1 / real_sqrt(v16_reduce_add(squares) / (real)D + w->eps);
        real_store(w->rstd.data, w->rstd.dtype, t * w->rstd.ld + h, rstd);
    }
    v16 r = v16_set1(rstd);
    for (int64_t i = 0; i < half; i += V16) {
        int lanes = lanes_at(half, i);
        pair n = pair_load(w->in, t, h * D + i, half, lanes);
        if (w->weight.data) {
            pair weight = weight_pair(w, i, lanes);
            n = (pair){v16_mul(v16_mul(n.low, r), weight.low), v16_mul(v16_mul(n.high, r), weight.high)};
        }
        pair y = rotate(n, lanes_load(w->cos, position, i, lanes), lanes_load(w->sin, position, i, lanes));
        lanes_store(w->out, t, h * D + i, lanes, y.low);
        lanes_store(w->out, t, h * D + half + i, lanes, y.high);
    }
    for (int64_t i = 2 * half; i < D; i += V16) {
        int lanes = lanes_at(D, i);
        v16 n = lanes_load(w->in, t, h * D + i, lanes);
        lanes_store(w->out, t, h * D + i, lanes, w->weight.data ? v16_mul(v16_mul(n, r), weight_rest(w, i, lanes)) : n);
    }
}

static void forward_rows(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t size = task_rows(w->heads * w->D);
    for (int64_t t = task * size; t < task_end(task, size, w->rows->n); t++)
        for (int64_t h = 0; h < w->heads; h++)
            forward_head(w, t, h);
}

void TM_KERNEL(rope_forward)(tm_device *d, const tm_rows *rows, tm_tensor x, int64_t heads, tm_tensor cos, tm_tensor sin,
                             tm_tensor norm_weight, float offset, float eps, tm_tensor rstd, tm_tensor y)
{
    work w = {.rows = rows, .heads = heads, .D = x.cols / heads, .half = cos.cols, .in = x, .cos = cos, .sin = sin,
              .weight = norm_weight, .rstd = rstd, .out = y, .offset = (real)offset, .eps = (real)eps};
    tm_pool_run(tm_cpu_of(d)->pool, forward_rows, &w, task_count(rows->n, task_rows(x.cols)));
}

static void backward_head(const work *w, int64_t t, int64_t h)
{
    int64_t D = w->D, half = w->half;
    bool norm = w->weight.data != NULL;
    v16 r = v16_zero(), q = r;
    if (norm) {
        v16 sum = v16_zero();
        for (int64_t i = 0; i < half; i += V16) {
            int lanes = lanes_at(half, i);
            pair g = gradient(w, t, h, i, lanes), weight = weight_pair(w, i, lanes);
            pair x = pair_load(w->x, t, h * D + i, half, lanes);
            sum = v16_fma(v16_mul(g.low, weight.low), x.low, sum);
            sum = v16_fma(v16_mul(g.high, weight.high), x.high, sum);
        }
        for (int64_t i = 2 * half; i < D; i += V16) {
            int lanes = lanes_at(D, i);
            v16 g = v16_mul(lanes_load(w->in, t, h * D + i, lanes), weight_rest(w, i, lanes));
            sum = v16_fma(g, lanes_load(w->x, t, h * D + i, lanes), sum);
        }
        real rstd = real_load(w->rstd.data, w->rstd.dtype, t * w->rstd.ld + h);
        r = v16_set1(rstd);
        q = v16_set1(v16_reduce_add(sum) * rstd / (real)D * rstd);
    }
    for (int64_t i = 0; i < half; i += V16) {
        int lanes = lanes_at(half, i);
        pair g = gradient(w, t, h, i, lanes);
        if (norm) {
            pair weight = weight_pair(w, i, lanes), x = pair_load(w->x, t, h * D + i, half, lanes);
            g.low = v16_mul(r, v16_fnma(q, x.low, v16_mul(g.low, weight.low)));
            g.high = v16_mul(r, v16_fnma(q, x.high, v16_mul(g.high, weight.high)));
        }
        lanes_store(w->out, t, h * D + i, lanes, g.low);
        lanes_store(w->out, t, h * D + half + i, lanes, g.high);
    }
    for (int64_t i = 2 * half; i < D; i += V16) {
        int lanes = lanes_at(D, i);
        v16 g = lanes_load(w->in, t, h * D + i, lanes);
        if (norm) {
            g = v16_mul(g, weight_rest(w, i, lanes));
            g = v16_mul(r, v16_fnma(q, lanes_load(w->x, t, h * D + i, lanes), g));
        }
        lanes_store(w->out, t, h * D + i, lanes, g);
    }
}

static void backward_rows(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t size = task_rows(w->heads * w->D);
    for (int64_t t = task * size; t < task_end(task, size, w->rows->n); t++)
        for (int64_t h = 0; h < w->heads; h++)
            backward_head(w, t, h);
}

/* dweight of 16 columns of each half: a chain over the rows and heads of each chunk. */
static void weight_strip(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t half = w->half, i = task * V16;
    int lanes = lanes_at(half, i);
    for (int64_t chunk = 0; chunk < w->rows->chunks; chunk++) {
        pair part = {v16_zero(), v16_zero()};
        for (int64_t t = w->rows->chunk[chunk]; t < w->rows->chunk[chunk + 1]; t++)
            for (int64_t h = 0; h < w->heads; h++) {
                v16 r = v16_set1(real_load(w->rstd.data, w->rstd.dtype, t * w->rstd.ld + h));
                pair g = gradient(w, t, h, i, lanes), x = pair_load(w->x, t, h * w->D + i, half, lanes);
                part.low = v16_fma(g.low, v16_mul(x.low, r), part.low);
                part.high = v16_fma(g.high, v16_mul(x.high, r), part.high);
            }
        pair sum = pair_load(w->dweight, 0, i, half, lanes);
        lanes_store(w->dweight, 0, i, lanes, v16_add(sum.low, part.low));
        lanes_store(w->dweight, 0, half + i, lanes, v16_add(sum.high, part.high));
    }
}

/* The same of 16 columns of the rest. */
static void rest_strip(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t i = 2 * w->half + task * V16;
    int lanes = lanes_at(w->D, i);
    for (int64_t chunk = 0; chunk < w->rows->chunks; chunk++) {
        v16 part = v16_zero();
        for (int64_t t = w->rows->chunk[chunk]; t < w->rows->chunk[chunk + 1]; t++)
            for (int64_t h = 0; h < w->heads; h++) {
                v16 r = v16_set1(real_load(w->rstd.data, w->rstd.dtype, t * w->rstd.ld + h));
                part = v16_fma(lanes_load(w->in, t, h * w->D + i, lanes), v16_mul(lanes_load(w->x, t, h * w->D + i, lanes), r), part);
            }
        lanes_store(w->dweight, 0, i, lanes, v16_add(lanes_load(w->dweight, 0, i, lanes), part));
    }
}

void TM_KERNEL(rope_backward)(tm_device *d, const tm_rows *rows, tm_tensor dy, int64_t heads, tm_tensor cos,
                              tm_tensor sin, tm_tensor norm_weight, float offset, tm_tensor rstd, tm_tensor x,
                              tm_tensor dx, tm_tensor dnorm_weight)
{
    work w = {.rows = rows, .heads = heads, .D = dy.cols / heads, .half = cos.cols, .in = dy, .cos = cos, .sin = sin,
              .weight = norm_weight, .rstd = rstd, .x = x, .out = dx, .dweight = dnorm_weight, .offset = (real)offset};
    tm_pool *pool = tm_cpu_of(d)->pool;
    if (dnorm_weight.data) { /* first: dx may overwrite dy */
        tm_pool_run(pool, weight_strip, &w, task_count(w.half, V16));
        tm_pool_run(pool, rest_strip, &w, task_count(w.D - 2 * w.half, V16));
    }
    tm_pool_run(pool, backward_rows, &w, task_count(rows->n, task_rows(dy.cols)));
}
