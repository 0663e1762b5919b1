/* DoRA: the rows of w + scale B A are brought to a learned length. The norm is a constant in
 * backward. docs/math/dora.md. */
#include "device/cpu/cpu.h"
#include "device/cpu/simd.h"

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

enum { NORM_ROWS = 4 };

typedef struct norm_job {
    tm_tensor w, norm;
    const tm_lowrank *lr;
    int64_t r;
} norm_job;

/* NORM_ROWS rows of one replica: lane sums over ascending columns, then the tree. */
static void norm_rows(void *context, int64_t task, int thread)
{
    (void)thread;
    const norm_job *j = context;
    const tm_lowrank *lr = j->lr;
    int64_t tasks = (j->w.rows + NORM_ROWS - 1) / NORM_ROWS, replica = task / tasks, n0 = task % tasks * NORM_ROWS;
    int rows = (int)min64(NORM_ROWS, j->w.rows - n0);
    int64_t b0 = replica * j->w.rows + n0; /* row of b, place in norm */
    v16 sum[NORM_ROWS];
    for (int i = 0; i < NORM_ROWS; i++)
        sum[i] = v16_zero();
    for (int64_t c = 0; c < j->w.cols; c += V16) {
        int width = (int)min64(V16, j->w.cols - c);
        v16 delta[NORM_ROWS];
        for (int i = 0; i < NORM_ROWS; i++)
            delta[i] = v16_zero();
        for (int64_t k = 0; k < j->r; k++) {
            v16 a = v16_load_n(lr->a.data, lr->a.dtype, (replica * j->r + k) * lr->a.ld + c, width);
            for (int i = 0; i < rows; i++)
                delta[i] = v16_fma(v16_set1(real_load(lr->b.data, lr->b.dtype, (b0 + i) * lr->b.ld + k)), a, delta[i]);
        }
        for (int i = 0; i < rows; i++) {
            v16 w = v16_load_n(j->w.data, j->w.dtype, (n0 + i) * j->w.ld + c, width);
            w = v16_fma(v16_set1(lr->scale), delta[i], w);
            sum[i] = v16_fma(w, w, sum[i]);
        }
    }
    for (int i = 0; i < rows; i++)
        real_store(j->norm.data, j->norm.dtype, b0 + i, real_sqrt(v16_reduce_add(sum[i])));
}

void TM_KERNEL(dora_norm)(tm_device *d, int32_t replicas, const tm_lowrank *lr, tm_tensor w, tm_tensor norm)
{
    norm_job j = {w, norm, lr, lr->a.rows / replicas};
    tm_pool_run(tm_cpu_of(d)->pool, norm_rows, &j, replicas * ((w.rows + NORM_ROWS - 1) / NORM_ROWS));
}

typedef struct scale_job {
    const tm_rows *rows;
    tm_tensor dy, u, magnitude, norm, bias, out, dmagnitude;
    int64_t blocks; /* of columns */
} scale_job;

static v16 factor_at(const scale_job *j, int64_t at, int width)
{
    return v16_div(v16_load_n(j->magnitude.data, j->magnitude.dtype, at, width),
                   v16_select(v16_first(width), v16_load_n(j->norm.data, j->norm.dtype, at, width), v16_set1(1)));
}

/* Sixteen columns of one replica's rows. */
static void forward_columns(void *context, int64_t task, int thread)
{
    (void)thread;
    const scale_job *j = context;
    int64_t replica = task / j->blocks, n = task % j->blocks * V16;
    int width = (int)min64(V16, j->u.cols - n);
    v16 factor = factor_at(j, replica * j->u.cols + n, width);
    v16 bias = j->bias.data ? v16_load_n(j->bias.data, j->bias.dtype, n, width) : v16_zero();
    for (int64_t t = j->rows->group[replica]; t < j->rows->group[replica + 1]; t++) {
        v16 y = v16_mul(factor, v16_load_n(j->u.data, j->u.dtype, t * j->u.ld + n, width));
        if (j->bias.data)
            y = v16_add(y, bias);
        v16_store_n(j->out.data, j->out.dtype, t * j->out.ld + n, width, y);
    }
}

void TM_KERNEL(dora_forward)(tm_device *d, const tm_rows *rows, tm_tensor u, tm_tensor magnitude, tm_tensor norm,
                             tm_tensor bias, tm_tensor y)
{
    scale_job j = {.rows = rows, .u = u, .magnitude = magnitude, .norm = norm, .bias = bias, .out = y,
                   .blocks = (u.cols + V16 - 1) / V16};
    tm_pool_run(tm_cpu_of(d)->pool, forward_columns, &j, rows->replicas * j.blocks);
}

/* dmagnitude: every chunk's sum of dy * u from zero, over the norm, the chunks in order. */
static void backward_columns(void *context, int64_t task, int thread)
{
    (void)thread;
    const scale_job *j = context;
    const tm_rows *rows = j->rows;
    int64_t replica = task / j->blocks, n = task % j->blocks * V16, at = replica * j->u.cols + n;
    int width = (int)min64(V16, j->u.cols - n);
    v16 factor = factor_at(j, at, width), total = v16_zero();
    v16 norm = v16_select(v16_first(width), v16_load_n(j->norm.data, j->norm.dtype, at, width), v16_set1(1));
    if (j->dmagnitude.data)
        total = v16_load_n(j->dmagnitude.data, j->dmagnitude.dtype, at, width);
    for (int64_t c = rows->group_chunk[replica]; c < rows->group_chunk[replica + 1]; c++) {
        v16 sum = v16_zero();
        for (int64_t t = rows->chunk[c]; t < rows->chunk[c + 1]; t++) {
            v16 dy = v16_load_n(j->dy.data, j->dy.dtype, t * j->dy.ld + n, width);
            if (j->dmagnitude.data)
                sum = v16_fma(dy, v16_load_n(j->u.data, j->u.dtype, t * j->u.ld + n, width), sum);
            v16_store_n(j->out.data, j->out.dtype, t * j->out.ld + n, width, v16_mul(factor, dy));
        }
        total = v16_add(total, v16_div(sum, norm));
    }
    if (j->dmagnitude.data)
        v16_store_n(j->dmagnitude.data, j->dmagnitude.dtype, at, width, total);
}

void TM_KERNEL(dora_backward)(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor u, tm_tensor magnitude,
                              tm_tensor norm, tm_tensor du, tm_tensor dmagnitude)
{
    scale_job j = {.rows = rows, .dy = dy, .u = u, .magnitude = magnitude, .norm = norm, .out = du,
                   .dmagnitude = dmagnitude, .blocks = (u.cols + V16 - 1) / V16};
    tm_pool_run(tm_cpu_of(d)->pool, backward_columns, &j, rows->replicas * j.blocks);
}
