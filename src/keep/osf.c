/* OSF: see keep.h, docs/math/osf.md.
 *
 * W0 = U S V^T of every matrix inside the blocks that is trained, or that LoRA adapts; of the first k directions U [k, out]
 * and V [k, in] (rows) are kept. Invariant after every step: U dW = 0 and dW V^T = 0.
 *
 * 1. Gradients are projected before norm and clipping, after all penalties (this hook is the last that has one).
 * 2. What the optimiser's scaling of single elements and its decay moved back in is taken out behind its update: of a weight
 *    by what U W0 and W0 V^T were (so the start is a fixed point to the bit), of LoRA's factors directly: A V^T = 0, U B = 0.
 * 3. Directions depend on the base alone: a resumed run computes them again, with the same bits. */
#include "keep/osf.h"

#include "base/buf.h"
#include "base/pool.h"
#include "keep/keep.h"
#include "keep/svd.h"

#include <math.h>
#include <stdlib.h>

typedef struct subspace { /* of one matrix W [out, in] */
    tm_param *weight;
    tm_lora *lora;           /* NULL: the weight itself is trained */
    int64_t k;
    tm_tensor u, v;          /* [k, out], [k, in] */
    tm_tensor left, right;   /* of a trained weight: U W0 [k, in], W0 V^T [out, k] */
    const int32_t *chunk;    /* device: rows of u in chunks, for sums over them */
} subspace;

typedef struct osf {
    subspace *item;
    int64_t count;
    tm_tensor scratch;       /* [1, the largest product with u or v] */
} osf;

/* --- Projections, by products that linear layers have --- */

static int64_t chunks_of(int64_t rows) { return (rows + TM_CHUNK_TOKENS - 1) / TM_CHUNK_TOKENS; }

static tm_tensor scratch_of(const osf *o, int64_t rows, int64_t cols) { return tm_tensor_make(o->scratch.data, o->scratch.dtype, rows, cols); }

/* p = U x: [k, x.cols]. */
static void times_left(tm_device *d, const subspace *s, tm_tensor x, tm_tensor p)
{
    tm_rows rows = {.n = s->k, .replicas = 1};
    TM_RUN(d, linear_backward_input, &rows, s->u, x, false, p);
}

/* p = x V^T: [x.rows, k]. */
static void times_right(tm_device *d, const subspace *s, tm_tensor x, tm_tensor p)
{
    tm_rows rows = {.n = x.rows, .replicas = 1};
    TM_RUN(d, linear_forward, &rows, x, s->v, tm_tensor_none(), p);
}

static void negate(tm_device *d, tm_tensor x) { TM_RUN(d, axpy, -2, x, x); }

/* x -= U^T (U x - target): x [out, n]; target |0 */
static void project_left(const osf *o, tm_device *d, const subspace *s, tm_tensor x, tm_tensor target)
{
    tm_rows rows = {.n = s->k, .replicas = 1, .chunks = chunks_of(s->k), .chunk = s->chunk};
    tm_tensor p = scratch_of(o, s->k, x.cols);
    times_left(d, s, x, p);
    if (target.data)
        TM_RUN(d, axpy, -1, target, p);
    negate(d, p);
    TM_RUN(d, linear_backward_weight, &rows, s->u, p, x, tm_tensor_none());
}

/* x -= (x V^T - target) V: x [n, in]; target |0 */
static void project_right(const osf *o, tm_device *d, const subspace *s, tm_tensor x, tm_tensor target)
{
    tm_rows rows = {.n = x.rows, .replicas = 1};
    tm_tensor p = scratch_of(o, x.rows, s->k);
    times_right(d, s, x, p);
    if (target.data)
        TM_RUN(d, axpy, -1, target, p);
    negate(d, p);
    TM_RUN(d, linear_backward_input, &rows, p, s->v, true, x);
}

/* A and B of every replica, or their gradients. */
static void project_factors(const osf *o, tm_trainer *t, const subspace *s, tm_tensor a, tm_tensor b)
{
    project_right(o, t->device, s, a, tm_tensor_none());
    for (int32_t r = 0; r < t->run->replicas; r++)
        project_left(o, t->device, s, tm_param_part(s->lora->b, b, r), tm_tensor_none());
}

static tm_status osf_penalty(void *state, tm_trainer *t, tm_error *err)
{
    const osf *o = state;
    tm_tensor none = tm_tensor_none();
    (void)err;
    for (int64_t i = 0; i < o->count; i++) {
        const subspace *s = &o->item[i];
        if (s->lora) {
            project_factors(o, t, s, s->lora->a->grad, s->lora->b->grad);
            continue;
        }
        project_left(o, t->device, s, s->weight->grad, none);
        project_right(o, t->device, s, s->weight->grad, none);
    }
    return TM_OK;
}

static tm_status osf_update(void *state, tm_trainer *t, tm_error *err)
{
    const osf *o = state;
    (void)err;
    for (int64_t i = 0; i < o->count; i++) {
        const subspace *s = &o->item[i];
        if (s->lora) {
            project_factors(o, t, s, s->lora->a->value, s->lora->b->value);
            continue;
        }
        project_left(o, t->device, s, s->weight->value, s->left);
        project_right(o, t->device, s, s->weight->value, s->right);
    }
    return TM_OK;
}

/* --- Directions --- */

typedef struct task { /* one matrix */
    const subspace *of;
    float *w, *u, *v;
    tm_status status;
    tm_error error;
} task;

static tm_status directions(task *k, tm_error *err)
{
    int64_t out = k->of->weight->rows, in = k->of->weight->cols, n = k->of->k;
    double *u = NULL, *v = NULL, *s = NULL;
    tm_status st = TM_OK;
    TM_GO(TM_NEW(&u, n * out, err));
    TM_GO(TM_NEW(&v, n * in, err));
    TM_GO(TM_NEW(&s, n, err));
    st = tm_svd_top(k->w, out, in, n, u, s, v, err);
    if (st != TM_OK)
        goto out;
    for (int64_t i = 0; i < n * out; i++)
        k->u[i] = (float)u[i];
    for (int64_t i = 0; i < n * in; i++)
        k->v[i] = (float)v[i];
out:
    free(u);
    free(v);
    free(s);
    return st;
}

static void run_task(void *context, int64_t i, int thread)
{
    task *k = (task *)context + i;
    (void)thread;
    k->status = directions(k, &k->error);
}

static tm_status task_open(tm_trainer *t, task *k, const subspace *s, tm_error *err)
{
    *k = (task){.of = s};
    TM_TRY(TM_NEW(&k->w, tm_param_count(s->weight), err));
    TM_TRY(TM_NEW(&k->u, s->k * s->weight->rows, err));
    TM_TRY(TM_NEW(&k->v, s->k * s->weight->cols, err));
    return tm_param_read(&t->model, s->weight, s->weight->value, 0, k->w, TM_F32, err);
}

static tm_status task_finish(tm_trainer *t, const task *k, tm_error *err)
{
    const subspace *s = k->of;
    tm_device *d = t->device;
    if (k->status != TM_OK)
        return tm_fail(err, k->status, "keep.osf: singular directions of %s: %.300s", s->weight->name, k->error.message);
    d->calls->upload(d, s->u.data, k->u, 4 * s->u.rows * s->u.cols);
    d->calls->upload(d, s->v.data, k->v, 4 * s->v.rows * s->v.cols);
    if (s->lora)
        return TM_OK;
    times_left(d, s, s->weight->value, s->left);
    times_right(d, s, s->weight->value, s->right);
    return TM_OK;
}

/* As many matrices at once as there are threads. */
static tm_status find_directions(osf *o, tm_trainer *t, tm_pool *pool, tm_error *err)
{
    tm_status st = TM_OK;
    task *tasks;
    int64_t most = tm_pool_threads(pool);
    TM_TRY(TM_NEW(&tasks, most, err));
    for (int64_t done = 0, n; done < o->count && st == TM_OK; done += n) {
        n = o->count - done < most ? o->count - done : most;
        for (int64_t i = 0; i < n && st == TM_OK; i++)
            st = task_open(t, &tasks[i], &o->item[done + i], err);
        if (st == TM_OK)
            tm_pool_run(pool, run_task, tasks, n);
        for (int64_t i = 0; i < n; i++) {
            st = st == TM_OK ? task_finish(t, &tasks[i], err) : st;
            free(tasks[i].w);
            free(tasks[i].u);
            free(tasks[i].v);
            tasks[i] = (task){0};
        }
    }
    free(tasks);
    return st;
}

static tm_status osf_begin(void *state, tm_trainer *t, tm_error *err)
{
    osf *o = state;
    tm_pool *pool;
    for (int64_t i = 0; i < o->count; i++) {
        int32_t chunk[1 + (1 << 12)];
        const subspace *s = &o->item[i];
        int64_t chunks = chunks_of(s->k);
        for (int64_t c = 0; c <= chunks; c++)
            chunk[c] = (int32_t)(c < chunks ? c * TM_CHUNK_TOKENS : s->k);
        t->device->calls->upload(t->device, (void *)(uintptr_t)s->chunk, chunk, 4 * (chunks + 1));
    }
    TM_TRY(tm_pool_create((int)t->recipe->threads, &pool, err));
    tm_status st = find_directions(o, t, pool, err);
    tm_pool_destroy(pool);
    for (int64_t i = 0; i < o->count && st == TM_OK; i++)
        if (o->item[i].lora)
            project_factors(o, t, &o->item[i], o->item[i].lora->a->value, o->item[i].lora->b->value);
    return st;
}

static void osf_destroy(void *state)
{
    osf *o = state;
    free(o->item);
    free(o);
}

/* --- Building --- */

/* How many directions of a matrix stay. */
static int64_t directions_of(const tm_trainer *t, const tm_param *weight)
{
    int64_t least = weight->rows < weight->cols ? weight->rows : weight->cols;
    return (int64_t)floor(t->recipe->osf_share * (double)least + 0.5);
}

static bool is_subject(const tm_linear *module) { return module->weight && (module->lora || module->weight->trained); }

static void take(osf *o, tm_trainer *t, tm_param *weight, tm_lora *lora)
{
    tm_arena *arena = &t->memory.arena[TM_MEM_KEEP];
    tm_dtype real = t->device->real;
    int64_t most = weight->rows < weight->cols ? weight->cols : weight->rows, k = directions_of(t, weight), beside = lora ? lora->a->rows * t->run->replicas : most;
    if (!k)
        return;
    subspace *s = &o->item[o->count++];
    *s = (subspace){.weight = weight, .lora = lora, .k = k, .u = tm_arena_tensor(arena, real, k, weight->rows), .v = tm_arena_tensor(arena, real, k, weight->cols)};
    s->chunk = tm_arena_take(arena, 4 * (chunks_of(k) + 1));
    o->scratch.cols = k * beside > o->scratch.cols ? k * beside : o->scratch.cols;
    if (lora)
        return;
    s->left = tm_arena_tensor(arena, real, k, weight->cols);
    s->right = tm_arena_tensor(arena, real, weight->rows, k);
}

static tm_status check(const tm_trainer *t, tm_error *err)
{
    int method = t->recipe->method;
    if (method != TM_METHOD_FULL && method != TM_METHOD_FREEZE && method != TM_METHOD_LORA)
        return tm_fail(err, TM_RECIPE, "keep.osf: method %s changes no matrix of the base; expected method full, freeze or lora", t->tuning.method->name);
    if (t->model.settings.half_master)
        return tm_fail(err, TM_RECIPE, "keep.osf: weights of 16 bits cannot stay orthogonal to anything; set train.master: f32");
    for (int64_t i = 0; i < t->model.params.count; i++)
        if (t->model.params.item[i]->kind == TM_PARAM_MAGNITUDE)
            return tm_fail(err, TM_UNSUPPORTED, "keep.osf: DoRA's magnitudes scale the directions that are to stay; set lora.use_dora: false");
    return TM_OK;
}

static tm_status take_all(osf *o, tm_trainer *t, tm_error *err)
{
    tm_model *m = &t->model;
    TM_TRY(check(t, err));
    TM_TRY(TM_NEW(&o->item, m->config.layers * TM_SLOTS, err));
    for (int64_t i = 0; i < m->config.layers * TM_SLOTS; i++) {
        tm_linear *module = tm_model_linear(m, i);
        if (is_subject(module))
            take(o, t, module->weight, module->lora);
    }
    if (!o->count)
        return tm_fail(err, TM_RECIPE, "keep.osf.share: %g leaves nothing as it is: no trained matrix inside the blocks has so many directions", t->recipe->osf_share);
    o->scratch = tm_arena_tensor(&t->memory.arena[TM_MEM_KEEP], t->device->real, 1, o->scratch.cols);
    return TM_OK;
}

tm_status tm_osf_add(tm_trainer *t, tm_error *err)
{
    osf *o;
    if (t->recipe->osf_share == 0 || !t->trained_count)
        return TM_OK;
    TM_TRY(TM_NEW(&o, 1, err));
    tm_hook hook = {.name = "osf", .replicas = true, .state = o, .begin = osf_begin, .penalty = osf_penalty, .update = osf_update, .destroy = osf_destroy};
    tm_status st = take_all(o, t, err);
    if (st == TM_OK)
        st = tm_trainer_add_hook(t, &hook, err);
    if (st != TM_OK)
        osf_destroy(o);
    return st;
}

tm_osf_size tm_osf_size_of(const tm_trainer *t)
{
    tm_osf_size size = {0};
    for (int64_t i = 0; t->recipe->osf_share > 0 && t->trained_count && i < t->model.config.layers * TM_SLOTS; i++) {
        const tm_linear *module = tm_model_linear((tm_model *)&t->model, i);
        int64_t k = is_subject(module) ? directions_of(t, module->weight) : 0;
        size.matrices += k > 0;
        size.work += k > 0 ? tm_svd_work(module->weight->rows, module->weight->cols, k) : 0;
    }
    return size;
}
