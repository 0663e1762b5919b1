/* Cross-entropy of one target a row, and KL or mean square to a teacher. docs/math/xent.md.
 * Invariants: rows are independent; a row whose weights are 0 gets a gradient of exactly 0. */
#include "device/cpu/math.h"
#include "device/cpu/row.h"

typedef struct work {
    int64_t n;
    real softcap; /* 0: none */
    tm_tensor logits, weight, teacher, teacher_weight, square_weight, loss, kl;
    const int32_t *target;
    int32_t *hit;
    bool grad;
} work;

/* softmax of a row is exp(z - max) * inverse; log-sum-exp is max + log_sum. */
typedef struct norm {
    real max, log_sum, inverse;
    real top; /* the largest logit without cap, which orders as those with it do */
} norm;

V16_FN v16 capped(real cap, v16 z) { return v16_mul(v16_set1(cap), v16_tanh(v16_div(z, v16_set1(cap)))); }

/* Logits as the loss sees them. */
LANES_FN v16 logits_at(const work *w, tm_tensor t, int64_t row, int64_t i, int lanes)
{
    v16 z = lanes_load(t, row, i, lanes);
    return w->softcap > 0 ? capped(w->softcap, z) : z;
}

static real capped_one(const work *w, real z)
{
    return w->softcap > 0 ? v16_reduce_max(capped(w->softcap, v16_set1(z))) : z;
}

static norm row_norm(const work *w, tm_tensor t, int64_t row)
{
    norm r;
    v16 max = v16_set1(-INFINITY);
    for (int64_t i = 0; i < t.cols; i += V16) {
        int lanes = lanes_at(t.cols, i);
        v16 z = lanes_load(t, row, i, lanes);
        max = v16_max(lanes == V16 ? z : v16_select(v16_first(lanes), z, max), max);
    }
    r.top = v16_reduce_max(max);
    r.max = capped_one(w, r.top);
    real sum;
    v16 shift = v16_set1(r.max);
#define EXP(i, lanes, a)                                                            \
    do {                                                                            \
        v16 e_ = v16_exp(v16_sub(logits_at(w, t, row, i, lanes), shift));           \
        a = v16_add(a, (lanes) == V16 ? e_ : v16_select(v16_first(lanes), e_, v16_zero())); \
    } while (0)
    ROW_SUM(t.cols, EXP, sum);
#undef EXP
    r.log_sum = real_log(sum);
    r.inverse = 1 / sum;
    return r;
}

/* Whether `target` is the first index of the row's maximum. */
static bool is_hit(tm_tensor t, int64_t row, int32_t target, real max)
{
    if (real_load(t.data, t.dtype, row * t.ld + target) != max)
        return false;
    for (int64_t v = 0; v < target; v++)
        if (real_load(t.data, t.dtype, row * t.ld + v) == max)
            return false;
    return true;
}

/* p' (log p' - log p) - p' + p, which is >= 0: see docs/math/xent.md. */
V16_FN v16 kl_terms(const norm *model, const norm *teacher, v16 z, v16 w)
{
    v16 x = v16_sub(z, v16_set1(model->max)), y = v16_sub(w, v16_set1(teacher->max));
    v16 p = v16_mul(v16_exp(x), v16_set1(model->inverse)), q = v16_mul(v16_exp(y), v16_set1(teacher->inverse));
    v16 log_p = v16_sub(x, v16_set1(model->log_sum)), log_q = v16_sub(y, v16_set1(teacher->log_sum));
    v16 d = v16_sub(log_p, log_q);
    v16 near = v16_mul(q, v16_exp_rest(d)), far = v16_sub(v16_sub(p, q), v16_mul(q, d));
    v16 term = v16_select(v16_lt(v16_abs(d), v16_set1((real)0.34)), near, far);
    return v16_select(v16_eq(q, v16_zero()), p, term);
}

static real row_kl(const work *w, int64_t row, const norm *model, const norm *teacher)
{
    real sum;
#define KL(i, lanes, a)                                                                                             \
    do {                                                                                                            \
        v16 k_ = kl_terms(model, teacher, logits_at(w, w->logits, row, i, lanes), logits_at(w, w->teacher, row, i, lanes)); \
        a = v16_add(a, (lanes) == V16 ? k_ : v16_select(v16_first(lanes), k_, v16_zero()));                         \
    } while (0)
    ROW_SUM(w->logits.cols, KL, sum);
#undef KL
    return sum;
}

static real row_square(const work *w, int64_t row)
{
    real sum;
#define SQUARE(i, lanes, a)                                                                                         \
    do {                                                                                                            \
        v16 d_ = v16_sub(logits_at(w, w->logits, row, i, lanes), logits_at(w, w->teacher, row, i, lanes));          \
        a = v16_fma(d_, (lanes) == V16 ? d_ : v16_select(v16_first(lanes), d_, v16_zero()), a);                     \
    } while (0)
    ROW_SUM(w->logits.cols, SQUARE, sum);
#undef SQUARE
    return sum / (real)w->logits.cols;
}

/* Weights of a row: of its cross-entropy, of KL, of the mean square; one of the last two is 0. */
typedef struct weights {
    real loss, kl, square;
} weights;

/* dz = loss (p - [v = target]) + kl (p - p') + 2 / V square (z - z'), written over the logits. */
static void row_grad(const work *w, int64_t row, const norm *model, const norm *teacher, weights by)
{
    tm_tensor z = w->logits;
    if (by.loss == 0 && by.kl == 0 && by.square == 0) {
        for (int64_t i = 0; i < z.cols; i += V16)
            lanes_store(z, row, i, lanes_at(z.cols, i), v16_zero());
        return;
    }
    int32_t target = w->target[row];
    v16 aa = v16_set1(by.loss), bb = v16_set1(by.kl), cc = v16_set1(by.square * (2 / (real)z.cols)), one = v16_set1(1);
    for (int64_t i = 0; i < z.cols; i += V16) {
        int lanes = lanes_at(z.cols, i);
        v16 zz = logits_at(w, z, row, i, lanes), p = v16_sub(zz, v16_set1(model->max));
        p = v16_mul(v16_exp(p), v16_set1(model->inverse));
        v16 q = p, rest = p;
        if (target >= i && target < i + V16) { /* p - 1 first: it is exact where p is near 1 */
            int at = (int)(target - i);
            v16m upto = v16_first(at + 1), below = v16_first(at);
            rest = v16_select(below, p, v16_select(upto, v16_sub(p, one), p));
        }
        v16 g = v16_mul(aa, rest);
        if (by.kl != 0) {
            q = v16_sub(logits_at(w, w->teacher, row, i, lanes), v16_set1(teacher->max));
            q = v16_mul(v16_exp(q), v16_set1(teacher->inverse));
            g = v16_fma(bb, v16_sub(p, q), g);
        }
        if (by.square != 0)
            g = v16_fma(cc, v16_sub(zz, logits_at(w, w->teacher, row, i, lanes)), g);
        if (w->softcap > 0) {
            v16 th = v16_div(zz, v16_set1(w->softcap)); /* the cap's derivative is 1 - tanh^2 */
            g = v16_mul(g, v16_fnma(th, th, one));
        }
        lanes_store(z, row, i, lanes, g);
    }
}

static real weight_at(tm_tensor weight, int64_t row) { return weight.data ? real_load(weight.data, weight.dtype, row) : 0; }

static void one_row(void *context, int64_t row, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    tm_tensor z = w->logits;
    int32_t target = w->target[row];
    norm model = row_norm(w, z, row), teacher = {0};
    real top = capped_one(w, real_load(z.data, z.dtype, row * z.ld + target));
    real_store(w->loss.data, w->loss.dtype, row, model.log_sum + (model.max - top));
    w->hit[row] = is_hit(z, row, target, model.top);
    weights by = {.loss = weight_at(w->weight, row), .square = weight_at(w->square_weight, row)};
    if (w->teacher.data && by.square != 0)
        real_store(w->kl.data, w->kl.dtype, row, row_square(w, row));
    else if (w->teacher.data) {
        by.kl = weight_at(w->teacher_weight, row);
        teacher = row_norm(w, w->teacher, row);
        real_store(w->kl.data, w->kl.dtype, row, row_kl(w, row, &model, &teacher));
    }
    if (w->grad)
        row_grad(w, row, &model, &teacher, by);
}

void TM_KERNEL(xent)(tm_device *d, int64_t n, tm_tensor logits, float softcap, const int32_t *target, tm_tensor weight,
                     tm_tensor teacher, tm_tensor teacher_weight, tm_tensor square_weight, bool grad, tm_tensor loss, tm_tensor kl, int32_t *hit)
{
    work w = {.n = n, .softcap = (real)softcap, .logits = logits, .weight = weight, .teacher = teacher, .teacher_weight = teacher_weight,
              .square_weight = teacher.data ? square_weight : tm_tensor_none(),
              .loss = loss, .kl = kl, .target = target, .hit = hit, .grad = grad};
    tm_pool_run(tm_cpu_of(d)->pool, one_row, &w, n);
}

static void cap_rows(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t V = w->logits.cols, size = task_rows(V);
    for (int64_t t = task * size; t < task_end(task, size, w->n); t++)
        for (int64_t i = 0; i < V; i += V16) {
            int lanes = lanes_at(V, i);
            lanes_store(w->logits, t, i, lanes, logits_at(w, w->logits, t, i, lanes));
        }
}

void TM_KERNEL(softcap)(tm_device *d, int64_t n, float cap, tm_tensor x)
{
    work w = {.n = n, .softcap = (real)cap, .logits = x};
    tm_pool_run(tm_cpu_of(d)->pool, cap_rows, &w, task_count(n, task_rows(x.cols)));
}

/* --- most_likely --- */

typedef struct likely_job {
    tm_tensor logits;
    int32_t *id;
} likely_job;

static void likely_row(void *context, int64_t row, int thread)
{
    const likely_job local = *(const likely_job *)context, *j = &local;
    (void)thread;
    real most = 0;
    int64_t best = 0;
    for (int64_t i = 0; i < j->logits.cols; i += V16) {
        real z[V16];
        int lanes = lanes_at(j->logits.cols, i);
        v16_put(z, lanes_load(j->logits, row, i, lanes));
        for (int k = 0; k < lanes; k++)
            if (i + k == 0 || z[k] > most) {
                most = z[k];
                best = i + k;
            }
    }
    j->id[row] = (int32_t)best;
}

void TM_KERNEL(most_likely)(tm_device *d, int64_t n, tm_tensor logits, int32_t *id)
{
    likely_job j = {logits, id};
    tm_pool_run(tm_cpu_of(d)->pool, likely_row, &j, n);
}
