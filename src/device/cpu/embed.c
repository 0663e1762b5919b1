/* Rows of the embedding table, and their gradient. docs/math/embed.md.
 * Invariant: the gradient is cut by columns, so that every column's chain runs over ascending rows. */
#include "device/cpu/row.h"

typedef struct work {
    int64_t n;
    const int32_t *ids;
    tm_tensor from, to;
    real scale;
} work;

static void forward_rows(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    v16 scale = v16_set1(w->scale);
    int64_t size = task_rows(w->to.cols);
    for (int64_t t = task * size; t < task_end(task, size, w->n); t++)
        for (int64_t i = 0; w->ids[t] >= 0 && i < w->to.cols; i += V16) {
            int lanes = lanes_at(w->to.cols, i);
            lanes_store(w->to, t, i, lanes, v16_mul(scale, lanes_load(w->from, w->ids[t], i, lanes)));
        }
}

void TM_KERNEL(embed_forward)(tm_device *d, const tm_rows *rows, const int32_t *ids, tm_tensor table, float scale,
                              tm_tensor y)
{
    work w = {rows->n, ids, table, y, (real)scale};
    tm_pool_run(tm_cpu_of(d)->pool, forward_rows, &w, task_count(w.n, task_rows(y.cols)));
}

static void backward_strip(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    v16 scale = v16_set1(w->scale);
    int64_t end = task_end(task, STRIP, w->to.cols);
    for (int64_t t = 0; t < w->n; t++)
        for (int64_t i = task * STRIP; w->ids[t] >= 0 && i < end; i += V16) {
            int lanes = lanes_at(end, i);
            v16 add = v16_mul(scale, lanes_load(w->from, t, i, lanes));
            lanes_store(w->to, w->ids[t], i, lanes, v16_add(lanes_load(w->to, w->ids[t], i, lanes), add));
        }
}

void TM_KERNEL(embed_backward)(tm_device *d, const tm_rows *rows, const int32_t *ids, tm_tensor dy, float scale,
                               tm_tensor table_grad)
{
    work w = {rows->n, ids, dy, table_grad, (real)scale};
    tm_pool_run(tm_cpu_of(d)->pool, backward_strip, &w, task_count(dy.cols, STRIP));
}
