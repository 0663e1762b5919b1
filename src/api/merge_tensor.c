/* One tensor of a merged model, row by row.
 *
 * An adapter i makes W_i of a weight W: W + s B A; with DoRA m / ||W + s B A|| (W + s B A); a saved module or bias
 * V itself. --how sum gives W + sum of c_i (W_i - W): a scale moves on the straight line between base (0) and
 * adapted model (1), for every kind of adapter. The other ways need all changes of the tensor at once, as floats
 * (an adapter's dW of the tensor that is being written, and no other). Sums are in double, rounded once to the type
 * the base stores. */
#include "api/merge.h"

#include "api/merge_how.h"
#include "base/hash.h"
#include "base/philox.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct row_work {
    const tm_merge_tensor *t;
    char *to;
    int64_t rows, cols;
    double *scratch; /* [threads * 3 * cols] */
    float *delta;    /* [count * rows * cols]; NULL with sum */
    int64_t filled;  /* the change whose delta is made */
} row_work;

static void base_row(const row_work *w, int64_t row, double *out)
{
    const tm_st_tensor *from = w->t->from;
    tm_dtype_convert(out, TM_F64, (const char *)from->data + tm_dtype_bytes(from->dtype, row * w->cols), from->dtype, w->cols);
}

/* W_i; not for a plain LoRA, whose change is known without it. */
static void adapted_row(const tm_merge_change *c, int64_t row, int64_t cols, const double *base, double *out)
{
    if (c->saved) {
        int64_t offset = tm_dtype_bytes(c->saved->dtype, row * cols);
        tm_dtype_convert(out, TM_F64, (const char *)c->saved->data + offset, c->saved->dtype, cols);
        if (c->module) /* PEFT's copy of an adapted embedding */
            tm_linear_delta_add_row(&c->module->delta, row, 1, out);
        return;
    }
    double square = 0;
    memcpy(out, base, (size_t)cols * sizeof *out);
    tm_linear_delta_add_row(&c->module->delta, row, 1, out);
    for (int64_t i = 0; i < cols; i++)
        square += out[i] * out[i];
    double factor = c->module->magnitude[row] / sqrt(square);
    for (int64_t i = 0; i < cols; i++)
        out[i] *= factor;
}

static bool is_plain(const tm_merge_change *c) { return !c->saved && !c->module->magnitude; }

static void sum_row(void *context, int64_t row, int thread)
{
    const row_work *w = context;
    const tm_merge_tensor *t = w->t;
    double *base = w->scratch + 3 * w->cols * thread, *sum = base + w->cols, *other = sum + w->cols;
    base_row(w, row, base);
    memcpy(sum, base, (size_t)w->cols * sizeof *sum);
    for (int64_t k = 0; k < t->count; k++) {
        const tm_merge_change *c = &t->list[k];
        if (is_plain(c)) {
            tm_linear_delta_add_row(&c->module->delta, row, c->scale, sum);
            continue;
        }
        adapted_row(c, row, w->cols, base, other);
        /* In this order a scale of 1 alone gives `other` itself. */
        for (int64_t i = 0; i < w->cols; i++)
            sum[i] = sum[i] - c->scale * base[i] + c->scale * other[i];
    }
    tm_dtype_convert(w->to + tm_dtype_bytes(t->from->dtype, row * w->cols), t->from->dtype, sum, TM_F64, w->cols);
}

static void delta_row(void *context, int64_t row, int thread)
{
    const row_work *w = context;
    const tm_merge_change *c = &w->t->list[w->filled];
    double *base = w->scratch + 3 * w->cols * thread, *other = base + w->cols;
    float *out = w->delta + (w->filled * w->rows + row) * w->cols;
    memset(other, 0, (size_t)w->cols * sizeof *other);
    memset(base, 0, (size_t)w->cols * sizeof *base);
    if (is_plain(c))
        tm_linear_delta_add_row(&c->module->delta, row, 1, other);
    else {
        base_row(w, row, base);
        adapted_row(c, row, w->cols, base, other);
    }
    for (int64_t i = 0; i < w->cols; i++)
        out[i] = (float)(other[i] - base[i]);
}

static void join_row(void *context, int64_t row, int thread)
{
    const row_work *w = context;
    const tm_merge_tensor *t = w->t;
    const tm_merge_request *r = t->merge->request;
    double *base = w->scratch + 3 * w->cols * thread, change[TM_MERGE_MOST], weight[TM_MERGE_MOST];
    base_row(w, row, base);
    for (int64_t k = 0; k < t->count; k++)
        weight[k] = t->list[k].scale;
    for (int64_t i = 0; i < w->cols; i++) {
        double sum = 0;
        for (int64_t k = 0; k < t->count; k++) {
            change[k] = w->delta[(k * w->rows + row) * w->cols + i];
            sum += weight[k] * change[k];
        }
        base[i] += r->how == TM_MERGE_DARE ? sum : tm_merge_disjoint(change, weight, t->count, r->sign_by_count);
    }
    tm_dtype_convert(w->to + tm_dtype_bytes(t->from->dtype, row * w->cols), t->from->dtype, base, TM_F64, w->cols);
}

/* Trims or drops one adapter's change as a whole. */
static tm_status prune(const row_work *w, int64_t k, const char *name, tm_error *err)
{
    const tm_merge_request *r = w->t->merge->request;
    float *delta = w->delta + k * w->rows * w->cols;
    if (r->how == TM_MERGE_TIES) {
        tm_merge_trim(delta, w->rows * w->cols, r->density);
        return TM_OK;
    }
    tm_sha256 hash;
    TM_TRY(tm_sha256_bytes(name, strlen(name), &hash, err));
    uint32_t place = (uint32_t)strtoul((char[9]){hash.hex[0], hash.hex[1], hash.hex[2], hash.hex[3], hash.hex[4],
                                                 hash.hex[5], hash.hex[6], hash.hex[7]}, NULL, 16);
    uint64_t key = tm_philox_key(r->seed, TM_PURPOSE_MERGE, (uint32_t)w->t->list[k].source, place);
    tm_merge_drop(delta, w->rows * w->cols, r->density, key);
    return TM_OK;
}

tm_status tm_merge_compute(const tm_st_tensor *tensor, void *to, tm_error *err)
{
    const tm_merge_tensor *t = tensor->source;
    tm_pool *pool = t->merge->pool;
    const tm_st_tensor *from = t->from;
    row_work w = {.t = t, .to = to, .cols = from->ndim > 1 ? from->shape[from->ndim - 1] : from->count};
    w.rows = w.cols ? from->count / w.cols : 0;
    tm_status st = TM_OK;
    TM_GO(TM_NEW(&w.scratch, 3 * w.cols * tm_pool_threads(pool), err));
    if (t->merge->request->how == TM_MERGE_SUM) {
        tm_pool_run(pool, sum_row, &w, w.rows);
        goto out;
    }
    TM_GO(TM_NEW(&w.delta, t->count * from->count, err));
    for (; w.filled < t->count; w.filled++) {
        tm_pool_run(pool, delta_row, &w, w.rows);
        TM_GO(prune(&w, w.filled, tensor->name, err));
    }
    tm_pool_run(pool, join_row, &w, w.rows);
out:
    free(w.scratch);
    free(w.delta);
    return st;
}
