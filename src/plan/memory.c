/* Memory before a run: see plan.h. */
#include "plan/plan.h"

#include "base/clock.h"

static void count_parameters(const tm_trainer *t, tm_memory_plan *plan)
{
    for (int64_t i = 0; i < t->model.params.count; i++) {
        const tm_param *p = t->model.params.item[i];
        plan->trained += p->trained ? tm_param_count(p) : 0;
        plan->parameters += p->added ? 0 : tm_param_count(p);
    }
}

int64_t tm_device_available(tm_device *d) { return d->calls->available ? d->calls->available(d) : tm_memory_available(); }

/* --- Work a token --- */

static void add_product(tm_work *work, int64_t a, int64_t b, double flops)
{
    work->flops[tm_side_class(a < b ? a : b)] += flops;
}

static void add_linear(tm_work *work, const tm_linear_group *group, bool input_gradient)
{
    for (int32_t i = 0; i < group->count; i++) {
        const tm_linear *l = group->module[i];
        add_product(work, l->in, l->out, 2.0 * (double)l->in * (double)l->out * (1 + input_gradient + l->weight->trained));
        if (l->lora)
            add_product(work, l->lora->r, l->in, 6.0 * l->lora->r * (double)(l->in + l->out));
    }
}

void tm_work_of(const tm_model *m, int64_t length, tm_work *work)
{
    const tm_model_config *c = &m->config;
    *work = (tm_work){0};
    add_linear(work, &m->head_group, m->first_trained < c->layers);
    for (int64_t i = 0; i < c->layers; i++) {
        const tm_block *b = &m->block[i];
        bool gradient = i >= m->first_trained;
        double keys = (double)(c->window[i] && c->window[i] < length ? c->window[i] : length) / 2;
        add_linear(work, &b->qkv, gradient);
        add_linear(work, &b->o, gradient);
        add_linear(work, &b->gate_up, gradient);
        add_linear(work, &b->down, gradient);
        add_product(work, c->head_size, length, 4.0 * (double)(c->heads * c->head_size) * keys * (gradient ? 3.5 : 1));
        /* What is no product, forward and backward: norms, rope, activation and sums read and write some ten
         * vectors of the width and three of the feed-forward, twice over. */
        work->bytes += (gradient ? 2 : 1) * 2.0 * 4 * (10.0 * (double)c->width + 3.0 * (double)c->ffn);
    }
    work->bytes += 2.0 * 4 * 4 * (double)c->vocab; /* logits of a target: written, read by the softmax, twice */
}

double tm_flops_per_token(const tm_model *m, int64_t length)
{
    tm_work work;
    double flops = 0;
    tm_work_of(m, length, &work);
    for (int i = 0; i < TM_SIDES; i++)
        flops += work.flops[i];
    return flops;
}

/* --- Memory --- */

tm_status tm_plan_memory(const tm_run *run, tm_device_traits traits, int64_t own, tm_memory_plan *out, tm_error *err)
{
    *out = (tm_memory_plan){0};
    tm_device *counting;
    TM_TRY(tm_counting_device_create(traits, &counting, err));
    tm_trainer *trainer = NULL;
    tm_status st = tm_trainer_create(run, counting, NULL, &trainer, err);
    if (st == TM_OK) {
        int64_t length = run->max_tokens < run->recipe->seq ? run->max_tokens : run->recipe->seq;
        tm_work_of(&trainer->model, length, &out->work);
        out->peak = tm_memory_peaks(&trainer->memory, out->part) + own;
        out->part[TM_MEM_DEVICE] = own;
        count_parameters(trainer, out);
    }
    tm_trainer_destroy(trainer);
    tm_device_destroy(counting);
    return st;
}
