/* Measuring importances: see measure.h.
 *
 * A squared gradient of a batch's mean is no Fisher information (it is wrong by about 1 / batch), so every example is a micro-batch of
 * its own; what comes out does therefore not depend on how a run is cut either. */
#include "keep/measure.h"

#include "base/philox.h"

#include <math.h>
#include <stdlib.h>

typedef struct measure {
    tm_tensor *sum;            /* [trained_count] */
    tm_tensor *before, *start; /* path: values before this step, and before the first */
    double *scale;             /* [trained_count] of a tensor's elements in the file */
} measure;

static const char hook_name[] = "ewc: measuring importances";

static measure *state_of(const tm_trainer *t)
{
    for (int64_t i = 0; i < t->hook_count; i++)
        if (t->hooks[i].name == hook_name)
            return t->hooks[i].state;
    return NULL;
}

static bool by_path(const tm_trainer *t) { return t->recipe->ewc_importance == TM_IMPORTANCE_PATH; }

static void measure_destroy(void *state)
{
    measure *m = state;
    free(m->sum);
    free(m->before);
    free(m->start);
    free(m->scale);
    free(m);
}

/* --- The path integral (SI, 1703.04200): omega += -gradient * step, after every step --- */

static void keep_values(tm_trainer *t, const tm_tensor *to)
{
    for (int64_t i = 0; i < t->trained_count; i++)
        t->device->calls->copy(t->device, to[i].data, t->trained_param[i]->value.data, tm_dtype_bytes(to[i].dtype, to[i].rows * to[i].cols));
}

static tm_status path_step(void *state, tm_trainer *t, tm_error *err)
{
    measure *m = state;
    (void)err;
    for (int64_t i = 0; i < t->trained_count; i++)
        TM_RUN(t->device, path_add, t->trained_param[i]->grad, m->before[i], t->trained_param[i]->value, m->sum[i]);
    keep_values(t, m->before);
    return TM_OK;
}

tm_status tm_measure_add(tm_trainer *t, tm_error *err)
{
    measure *m;
    tm_arena *arena = &t->memory.arena[TM_MEM_KEEP];
    tm_status st = TM_OK;
    TM_TRY(TM_NEW(&m, 1, err));
    TM_GO(TM_NEW(&m->sum, t->trained_count, err));
    TM_GO(TM_NEW(&m->before, t->trained_count, err));
    TM_GO(TM_NEW(&m->start, t->trained_count, err));
    TM_GO(TM_NEW(&m->scale, t->trained_count, err));
    for (int64_t i = 0; i < t->trained_count; i++) {
        const tm_param *p = t->trained_param[i];
        m->sum[i] = tm_arena_tensor(arena, t->device->real, p->rows, p->cols);
        if (!by_path(t))
            continue;
        m->before[i] = tm_arena_tensor(arena, p->value.dtype, p->rows, p->cols);
        m->start[i] = tm_arena_tensor(arena, p->value.dtype, p->rows, p->cols);
    }
    tm_hook hook = {.name = hook_name, .state = m, .step = by_path(t) ? path_step : NULL, .destroy = measure_destroy};
    st = tm_trainer_add_hook(t, &hook, err);
out:
    if (st != TM_OK)
        measure_destroy(m);
    return st;
}

tm_tensor tm_measure_sum(const tm_trainer *t, int64_t i) { return state_of(t)->sum[i]; }

/* --- Running --- */

/* Queues the gradient of one example. */
static void queue_gradient(tm_trainer *t, int64_t example)
{
    const tm_example *e = tm_dataset_at(t->run->data, example);
    tm_batch_item item = {.ids = e->ids, .weight = e->weight, .n = e->n, .scale = 1, .grad_scale = t->loss_scale[0].scale};
    tm_trainer_zero_gradients(t);
    t->batch.draws = t->recipe->ewc_fisher == TM_FISHER_SAMPLED;
    t->batch.draw_key = tm_philox_key(t->run->seeds[0].subset, TM_PURPOSE_SAMPLE, (uint32_t)example, 1);
    tm_batch_fill(&t->batch, &item, 1);
    tm_model_forward(&t->model, &t->batch);
    tm_model_loss(&t->model, &t->batch, tm_tensor_none(), tm_tensor_none(), true);
    tm_model_backward(&t->model, &t->batch);
    tm_model_finish_gradients(&t->model);
    t->batch.draws = false;
}

/* In f16 a single gradient may be too small without the loss's scale and too large with it: then the scale is halved and the example
 * looked at again, so that none is left out. */
static tm_status unscale(tm_trainer *t, bool *finite, tm_error *err)
{
    tm_loss_scale *scale = &t->loss_scale[0];
    t->params[0] = (tm_step_params){.unscale = 1 / scale->scale, .clip = 1};
    t->device->calls->upload(t->device, t->device_params, t->params, sizeof *t->params);
    TM_RUN(t->device, unscale, t->trained_count, t->device_trained, t->device_params);
    TM_RUN(t->device, grad_norm, t->trained_count, t->device_trained, 1, 0, t->device_params);
    tm_device_fetch(t->device, t->params, t->device_params, sizeof *t->params);
    TM_TRY(t->device->calls->sync(t->device, err));
    *finite = isfinite(t->params[0].grad_norm);
    if (tm_loss_scale_move(scale, *finite))
        return TM_OK;
    return tm_fail(err, TM_DIVERGED, "gradients of the old data are not finite even with a loss scale of 1: the model's activations exceed the range of f16 (65504); "
                                   "measure importances with precision: bf16 or f32");
}

static tm_status fisher_step(tm_trainer *t, tm_error *err)
{
    const measure *m = state_of(t);
    const int64_t *examples;
    int64_t n;
    tm_order_step(t->run->order[0], t->step, &examples, &n);
    for (bool finite = false; !finite;) {
        queue_gradient(t, examples[0]);
        finite = true;
        if (t->loss_scale[0].scale > 0)
            TM_TRY(unscale(t, &finite, err));
    }
    for (int64_t i = 0; i < t->trained_count; i++)
        TM_RUN(t->device, square_add, 1, t->trained_param[i]->grad, m->sum[i]);
    TM_TRY(t->device->calls->sync(t->device, err));
    t->step++;
    return TM_OK;
}

tm_status tm_measure_run(tm_trainer *t, tm_error *err)
{
    const tm_run *run = t->run;
    const measure *m = state_of(t);
    TM_TRY(tm_trainer_load(t, err));
    for (int64_t i = 0; i < t->trained_count; i++)
        TM_RUN(t->device, fill, m->sum[i], 0);
    if (by_path(t)) {
        keep_values(t, m->before);
        keep_values(t, m->start);
    }
    tm_model_begin_step(&t->model, NULL); /* fisher: no dropout */
    while (t->step < run->steps) {
        if (run->interrupted && run->interrupted(run->context))
            return tm_fail(err, TM_FAILED, "interrupted while importances were measured; they are measured anew next time");
        TM_TRY(by_path(t) ? tm_trainer_step(t, err) : fisher_step(t, err));
        if (run->progress)
            run->progress(run->context, t);
    }
    return t->device->calls->sync(t->device, err);
}

/* --- From sums to importances --- */

static tm_status fetch(tm_trainer *t, const tm_param *p, tm_tensor tensor, float **out, tm_error *err)
{
    TM_TRY(TM_NEW(out, tm_param_count(p), err));
    return tm_param_read(&t->model, p, tensor, 0, *out, TM_F32, err);
}

/* sum over all elements of (value - start)^2, and their number. */
static tm_status measure_way(tm_trainer *t, double *squares, double *count, tm_error *err)
{
    const measure *m = state_of(t);
    *squares = *count = 0;
    for (int64_t i = 0; i < t->trained_count; i++) {
        const tm_param *p = t->trained_param[i];
        float *value = NULL, *start = NULL;
        tm_status st = fetch(t, p, p->value, &value, err);
        if (st == TM_OK)
            st = fetch(t, p, m->start[i], &start, err);
        for (int64_t k = 0; st == TM_OK && k < tm_param_count(p); k++)
            *squares += ((double)value[k] - start[k]) * ((double)value[k] - start[k]);
        *count += (double)tm_param_count(p);
        free(value);
        free(start);
        TM_TRY(st);
    }
    return TM_OK;
}

/* Replaces omega of a tensor by max(0, omega / (way^2 + xi)); *squares: the sum of their squares. */
static tm_status divide_by_way(tm_trainer *t, int64_t i, double xi, double *squares, tm_error *err)
{
    const measure *m = state_of(t);
    const tm_param *p = t->trained_param[i];
    float *value = NULL, *start = NULL, *omega = NULL;
    void *stored = NULL;
    tm_status st;
    TM_GO(fetch(t, p, p->value, &value, err));
    TM_GO(fetch(t, p, m->start[i], &start, err));
    TM_GO(fetch(t, p, m->sum[i], &omega, err));
    TM_GO(tm_alloc(&stored, (size_t)tm_param_count(p), 8, err));
    *squares = 0;
    for (int64_t k = 0; k < tm_param_count(p); k++) {
        double way = (double)value[k] - start[k], f = omega[k] / (way * way + xi);
        omega[k] = f > 0 ? (float)f : 0;
        *squares += (double)omega[k] * omega[k];
    }
    tm_dtype_convert(stored, m->sum[i].dtype, omega, TM_F32, tm_param_count(p));
    t->device->calls->upload(t->device, m->sum[i].data, stored, tm_dtype_bytes(m->sum[i].dtype, tm_param_count(p)));
out:
    free(value);
    free(start);
    free(omega);
    free(stored);
    return st;
}

/* Layer coefficients: every block (and all that belongs to none, together) is weighted by the root mean square of its importances over
 * the mean of that over blocks. */
static tm_status finish_path(tm_trainer *t, tm_error *err)
{
    measure *m = state_of(t);
    int64_t groups = t->model.config.layers + 1, used = 0;
    double way, count, *squares = NULL, *elements = NULL, mean = 0;
    tm_status st = TM_OK;
    TM_TRY(measure_way(t, &way, &count, err));
    if (!(way > 0))
        return tm_fail(err, TM_DIVERGED, "keep.ewc.importance: path: the weights did not move in the short run; train.lr or keep.ewc.samples are too small");
    TM_GO(TM_NEW(&squares, groups, err));
    TM_GO(TM_NEW(&elements, groups, err));
    for (int64_t i = 0; i < t->trained_count; i++) {
        double here;
        int64_t group = t->trained_param[i]->layer + 1;
        TM_GO(divide_by_way(t, i, way / count, &here, err));
        squares[group] += here;
        elements[group] += (double)tm_param_count(t->trained_param[i]);
    }
    for (int64_t g = 0; g < groups; g++)
        if (elements[g] > 0) {
            squares[g] = sqrt(squares[g] / elements[g]);
            mean += squares[g];
            used++;
        }
    mean /= (double)used;
    for (int64_t i = 0; i < t->trained_count; i++)
        m->scale[i] = mean > 0 ? squares[t->trained_param[i]->layer + 1] / mean : 0;
out:
    free(squares);
    free(elements);
    return st;
}

/* The mean over all elements, scales included. */
static tm_status mean_of(tm_trainer *t, double *mean, tm_error *err)
{
    const measure *m = state_of(t);
    double sum = 0, count = 0;
    for (int64_t i = 0; i < t->trained_count; i++) {
        const tm_param *p = t->trained_param[i];
        float *value = NULL;
        double here = 0;
        tm_status st = fetch(t, p, m->sum[i], &value, err);
        for (int64_t k = 0; st == TM_OK && k < tm_param_count(p); k++)
            here += value[k];
        free(value);
        TM_TRY(st);
        if (!isfinite(here))
            return tm_fail(err, TM_DIVERGED, "importances of %s are not finite (%g): the model's gradients overflow on this data", p->name, here);
        sum += m->scale[i] * here;
        count += (double)tm_param_count(p);
    }
    *mean = sum / count;
    return sum > 0 ? TM_OK : tm_fail(err, TM_DIVERGED, "every importance is 0: nothing that is trained has a gradient on this data");
}

typedef struct origin { /* of a tensor that is written */
    tm_trainer *trainer;
    int64_t index;
    double scale, old_scale;
    const tm_st_tensor *old; /* |NULL */
} origin;

static tm_status give(const tm_st_tensor *tensor, void *to, tm_error *err)
{
    const origin *o = tensor->source;
    const tm_param *p = o->trainer->trained_param[o->index];
    float *value = to;
    TM_TRY(tm_param_read(&o->trainer->model, p, tm_measure_sum(o->trainer, o->index), 0, value, TM_F32, err));
    for (int64_t k = 0; k < tm_param_count(p); k++) {
        float old = 0;
        if (o->old)
            memcpy(&old, (const char *)o->old->data + 4 * k, 4);
        value[k] = (float)(o->scale * value[k] + o->old_scale * old);
    }
    return TM_OK;
}

/* Opens the file that these are added to: the same parameters, no more and no fewer. */
static tm_status open_old(tm_trainer *t, const char *path, tm_importance_facts *facts, tm_safetensors **out, double *past, tm_error *err)
{
    TM_TRY(tm_importances_open(path, out, err));
    TM_TRY(tm_importances_past(*out, path, past, &facts->tasks, err));
    *past *= facts->gamma;
    facts->tasks++;
    facts->weight = *past + 1;
    if (tm_safetensors_count(*out) != t->trained_count)
        return tm_fail(err, TM_INPUT, "%s: %lld tensors, this recipe has %lld: importances add up only where they are of the same parameters", path,
                       (long long)tm_safetensors_count(*out), (long long)t->trained_count);
    return TM_OK;
}

tm_status tm_measure_check(tm_trainer *t, const char *old, tm_error *err)
{
    tm_importance_facts facts = {0};
    tm_safetensors *file = NULL;
    double past;
    const tm_st_tensor *found;
    tm_status st = open_old(t, old, &facts, &file, &past, err);
    for (int64_t i = 0; i < t->trained_count && st == TM_OK; i++) {
        const tm_param *p = t->trained_param[i];
        st = tm_importances_find(file, old, p->name, p->rows, p->cols, &found, err);
    }
    tm_safetensors_close(file);
    return st;
}

tm_status tm_measure_write(tm_trainer *t, const char *path, tm_importance_facts *facts, const char *old, double *mean, tm_error *err)
{
    measure *m = state_of(t);
    tm_status st = TM_OK;
    tm_st_tensor *tensors = NULL;
    origin *origins = NULL;
    tm_safetensors *file = NULL;
    double past = 0;
    facts->weight = facts->tasks = 1;
    for (int64_t i = 0; i < t->trained_count; i++)
        m->scale[i] = 1;
    if (by_path(t))
        TM_GO(finish_path(t, err));
    TM_GO(mean_of(t, mean, err));
    if (old)
        TM_GO(open_old(t, old, facts, &file, &past, err));
    TM_GO(TM_NEW(&tensors, t->trained_count, err));
    TM_GO(TM_NEW(&origins, t->trained_count, err));
    for (int64_t i = 0; i < t->trained_count; i++) {
        const tm_param *p = t->trained_param[i];
        origins[i] = (origin){t, i, m->scale[i] / *mean / facts->weight, past / facts->weight, NULL};
        if (file)
            TM_GO(tm_importances_find(file, old, p->name, p->rows, p->cols, &origins[i].old, err));
        tensors[i] = (tm_st_tensor){.name = p->name, .dtype = TM_F32, .ndim = p->ndim, .shape = {p->ndim == 1 ? p->cols : p->rows, p->cols}, .give = give, .source = &origins[i]};
    }
    TM_GO(tm_importances_write(path, tensors, t->trained_count, facts, err));
out:
    tm_safetensors_close(file);
    free(tensors);
    free(origins);
    return st;
}
