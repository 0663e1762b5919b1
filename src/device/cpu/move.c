/* Rows in and out, and elementwise helpers: no sums, so no order. docs/math/dropout.md for dropout. */
#include "device/cpu/dropout.h"
#include "device/cpu/row.h"

typedef struct work {
    int64_t n;
    const int32_t *index;
    tm_tensor x, y;
    real a;
    const tm_rows *rows;
    const tm_step_params *step;
    tm_dropout_row dropout;
    bool accumulate;
} work;

static void run_rows(tm_device *d, void (*fn)(void *, int64_t, int), work *w)
{
    tm_pool_run(tm_cpu_of(d)->pool, fn, w, task_count(w->n, task_rows(w->y.cols)));
}

/* Row -1 of x is zeros; row -1 of y is nowhere. */
V16_FN void copy_row(tm_tensor x, int64_t from, tm_tensor y, int64_t to)
{
    for (int64_t i = 0; i < y.cols && to >= 0; i += V16) {
        int lanes = lanes_at(y.cols, i);
        lanes_store(y, to, i, lanes, from >= 0 ? lanes_load(x, from, i, lanes) : v16_zero());
    }
}

static void gather(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t size = task_rows(w->y.cols);
    for (int64_t t = task * size; t < task_end(task, size, w->n); t++)
        copy_row(w->x, w->index ? w->index[t] : t, w->y, t);
}

static void scatter(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t size = task_rows(w->y.cols);
    for (int64_t t = task * size; t < task_end(task, size, w->n); t++)
        copy_row(w->x, t, w->y, w->index[t]);
}

static void set_rows(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t size = task_rows(w->y.cols);
    for (int64_t t = task * size; t < task_end(task, size, w->n); t++)
        for (int64_t i = 0; i < w->y.cols; i += V16)
            lanes_store(w->y, t, i, lanes_at(w->y.cols, i), v16_set1(w->a));
}

static void axpy_rows(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t size = task_rows(w->y.cols);
    for (int64_t t = task * size; t < task_end(task, size, w->n); t++)
        for (int64_t i = 0; i < w->y.cols; i += V16) {
            int lanes = lanes_at(w->y.cols, i);
            v16 y = lanes_load(w->y, t, i, lanes);
            lanes_store(w->y, t, i, lanes, v16_fma(v16_set1(w->a), lanes_load(w->x, t, i, lanes), y));
        }
}

void TM_KERNEL(gather_rows)(tm_device *d, int64_t n, const int32_t *index, tm_tensor x, tm_tensor y)
{
    run_rows(d, gather, &(work){.n = n, .index = index, .x = x, .y = y});
}

void TM_KERNEL(scatter_rows)(tm_device *d, int64_t n, const int32_t *index, tm_tensor x, int64_t rows_y, tm_tensor y)
{
    run_rows(d, set_rows, &(work){.n = rows_y, .y = y, .a = 0});
    run_rows(d, scatter, &(work){.n = n, .index = index, .x = x, .y = y});
}

void TM_KERNEL(cast)(tm_device *d, tm_tensor x, tm_tensor y) { run_rows(d, gather, &(work){.n = y.rows, .x = x, .y = y}); }

void TM_KERNEL(axpy)(tm_device *d, double a, tm_tensor x, tm_tensor y)
{
    run_rows(d, axpy_rows, &(work){.n = y.rows, .x = x, .y = y, .a = (real)a});
}

void TM_KERNEL(fill)(tm_device *d, tm_tensor y, double value)
{
    run_rows(d, set_rows, &(work){.n = y.rows, .y = y, .a = (real)value});
}

static void dropout_rows(void *context, int64_t task, int thread)
{
    enum { STEP = 1024 };
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    real factor[STEP];
    tm_dropout_row row = w->dropout;
    int64_t size = task_rows(w->y.cols), C = w->y.cols, replica = 0;
    for (int64_t t = task * size; t < task_end(task, size, w->n); t++) {
        while (replica + 1 < w->rows->replicas && t >= w->rows->group[replica + 1]) /* rows beyond all are padding */
            replica++;
        row.key = w->step[replica].dropout_key;
        row.position = (uint32_t)w->rows->position[t];
        row.example = w->rows->example[t];
        for (int64_t first = 0; first < C; first += STEP) {
            int64_t count = C - first < STEP ? C - first : STEP;
            tm_dropout_factors(&row, first, count, factor);
            for (int64_t i = 0; i < count; i += V16) {
                int lanes = lanes_at(count, i);
                v16 f = lanes == V16 ? v16_get(factor + i) : v16_get_n(factor + i, lanes);
                v16 kept = v16_mul(lanes_load(w->x, t, first + i, lanes), f);
                if (w->accumulate)
                    kept = v16_add(lanes_load(w->y, t, first + i, lanes), kept);
                lanes_store(w->y, t, first + i, lanes, kept);
            }
        }
    }
}

void TM_KERNEL(dropout)(tm_device *d, const tm_rows *rows, const tm_step_params *step, uint32_t module, float p,
                        bool accumulate, tm_tensor x, tm_tensor y)
{
    run_rows(d, dropout_rows, &(work){.n = rows->n, .x = x, .y = y, .rows = rows, .step = step, .accumulate = accumulate,
                                      .dropout = tm_dropout_begin(module, p)});
}
