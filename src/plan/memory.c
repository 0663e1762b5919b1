/* Memory before a run: see plan.h. Time is in time.c. */
#include "plan/plan.h"

#include "base/buf.h"
#include "base/clock.h"
#include "plan/cost.h"

static void count_parameters(const tm_trainer *t, tm_memory_plan *plan)
{
    for (int64_t i = 0; i < t->model.params.count; i++) {
        const tm_param *p = t->model.params.item[i];
        plan->trained += p->trained ? tm_param_count(p) : 0;
        plan->parameters += p->added ? 0 : tm_param_count(p);
    }
}

int64_t tm_device_available(tm_device *d)
{
    const int64_t headroom = 256 << 20;
    if (!d->calls->memory)
        return tm_memory_available();
    int64_t free_bytes, all;
    d->calls->memory(d, &free_bytes, &all);
    return free_bytes > headroom ? free_bytes - headroom : 0;
}

/* --- Memory --- */

/* The run on a counting device that adds up work too. */
static tm_status open_counting(const tm_run *run, tm_device_traits traits, tm_work *work, tm_device **device, tm_trainer **trainer, tm_error *err)
{
    *trainer = NULL;
    TM_TRY(tm_costing_device_create(traits, work, device, err));
    tm_status st = tm_trainer_create(run, *device, NULL, trainer, err);
    if (st != TM_OK)
        tm_device_destroy(*device);
    return st;
}

static void close_counting(tm_device *device, tm_trainer *trainer)
{
    tm_trainer_destroy(trainer);
    tm_device_destroy(device);
}

tm_status tm_plan_memory(const tm_run *run, tm_device_traits traits, int64_t own, tm_memory_plan *out, tm_error *err)
{
    tm_device *device;
    tm_trainer *trainer;
    tm_work work = {0};
    *out = (tm_memory_plan){0};
    TM_TRY(open_counting(run, traits, &work, &device, &trainer, err));
    out->peak = tm_memory_peaks(&trainer->memory, out->part) + own;
    out->part[TM_MEM_DEVICE] = own;
    count_parameters(trainer, out);
    out->layers = trainer->model.config.layers;
    out->max_tokens = run->max_tokens;
    out->host = trainer->model.stash_bytes;
    tm_status st = tm_plan_work(trainer, &work, out, err);
    close_counting(device, trainer);
    return st;
}

static int64_t bytes_of(tm_tensor t) { return t.data ? tm_dtype_bytes(t.dtype, t.rows * t.cols) : 0; }

tm_status tm_plan_layers(const tm_run *run, tm_device_traits traits, int64_t own, tm_layer_plan **out, int64_t *layers, tm_error *err)
{
    tm_device *device;
    tm_trainer *trainer;
    tm_work work = {0};
    TM_TRY(open_counting(run, traits, &work, &device, &trainer, err));
    const tm_model *m = &trainer->model;
    int64_t n = m->config.layers;
    tm_status st = TM_NEW(out, n + 1, err);
    if (st == TM_OK) {
        tm_layer_plan *rest = &(*out)[n];
        *layers = n;
        tm_memory_peaks(&trainer->memory, rest->part);
        rest->part[TM_MEM_DEVICE] = own;
        for (int64_t i = 0; i < m->params.count; i++) {
            const tm_param *p = m->params.item[i];
            if (p->layer < 0)
                continue;
            int64_t *part = (*out)[p->layer].part;
            part[TM_MEM_WEIGHTS] += bytes_of(p->value);
            part[TM_MEM_GRADIENTS] += bytes_of(p->grad);
            part[TM_MEM_OPTIMIZER] += bytes_of(p->m) + bytes_of(p->v);
        }
        for (int64_t i = 0; i < n; i++) {
            (*out)[i].part[TM_MEM_ACTIVATIONS] = m->saved[i].bytes;
            for (int k = 0; k < TM_MEM_KINDS; k++)
                rest->part[k] -= (*out)[i].part[k];
        }
    }
    close_counting(device, trainer);
    return st;
}
