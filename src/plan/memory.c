/* Memory before a run: see plan.h. */
#include "plan/plan.h"

static void count_parameters(const tm_trainer *t, tm_memory_plan *plan)
{
    for (int64_t i = 0; i < t->model.params.count; i++) {
        const tm_param *p = t->model.params.item[i];
        plan->trained += p->trained ? tm_param_count(p) : 0;
        plan->parameters += p->added ? 0 : tm_param_count(p);
    }
}

tm_status tm_plan_memory(const tm_run *run, tm_dtype real, int64_t workspace, tm_memory_plan *out, tm_error *err)
{
    *out = (tm_memory_plan){0};
    tm_device *counting;
    TM_TRY(tm_counting_device_create(real, &counting, err));
    tm_trainer *trainer = NULL;
    tm_status st = tm_trainer_create(run, counting, NULL, &trainer, err);
    if (st == TM_OK) {
        out->peak = tm_memory_peaks(&trainer->memory, out->part) + workspace;
        out->part[TM_MEM_WORKSPACE] += workspace;
        count_parameters(trainer, out);
    }
    tm_trainer_destroy(trainer);
    tm_device_destroy(counting);
    return st;
}

static double linear_flops(const tm_linear_group *group, bool input_gradient)
{
    double flops = 0;
    for (int32_t i = 0; i < group->count; i++) {
        const tm_linear *l = group->module[i];
        flops += 2.0 * (double)l->in * (double)l->out * (1 + input_gradient + l->weight->trained);
        if (l->lora)
            flops += 6.0 * l->lora->r * (double)(l->in + l->out);
    }
    return flops;
}

double tm_flops_per_token(const tm_model *m, int64_t length)
{
    const tm_model_config *c = &m->config;
    double flops = linear_flops(&m->head_group, m->first_trained < c->layers);
    for (int64_t i = 0; i < c->layers; i++) {
        const tm_block *b = &m->block[i];
        bool gradient = i >= m->first_trained;
        double keys = (double)(c->window[i] && c->window[i] < length ? c->window[i] : length) / 2;
        flops += linear_flops(&b->qkv, gradient) + linear_flops(&b->o, gradient) + linear_flops(&b->gate_up, gradient) + linear_flops(&b->down, gradient);
        flops += 4.0 * (double)(c->heads * c->head_size) * keys * (gradient ? 3.5 : 1);
    }
    return flops;
}
