/* Time before a run: a micro-batch of it, run on a device that only adds up what each op would do (cost.h), over the rates
 * of a device that were measured (calibrate.h). */
#include "plan/plan.h"

#include "base/buf.h"
#include "plan/cost.h"
#include "train/micro.h"

#include <stdlib.h>

/* --- A micro-batch like those of the run --- */

/* Of some ten thousand examples at most: this is asked for every layout that is tried. */
static double mean_length(const tm_run *run)
{
    int64_t count = run->data ? tm_dataset_count(run->data) : 0, every = count / 10000 + 1, tokens = 0, seen = 0;
    for (int64_t i = 0; i < count; i += every, seen++)
        tokens += tm_dataset_at(run->data, i)->n;
    return seen ? (double)tokens / (double)seen : (double)run->recipe->seq;
}

static double tokens_of_step(const tm_run *run)
{
    const tm_recipe *r = run->recipe;
    return (double)r->accumulate * (r->batch_tokens ? (double)r->batch_tokens : (double)r->batch * mean_length(run));
}

typedef struct sample {
    tm_batch_item *items;
    int32_t *ids;
    int64_t *length;
    int64_t count, tokens;
} sample;

static void drop_sample(sample *s)
{
    free(s->items);
    free(s->ids);
    free(s->length);
}

/* Examples spread over the data, or of train.seq tokens, until the micro-batch is full or has as many as a step. */
static tm_status take_sample(const tm_trainer *t, sample *s, tm_error *err)
{
    const tm_run *run = t->run;
    int64_t have = run->data ? tm_dataset_count(run->data) : 0, rows = 0;
    double step = tokens_of_step(run);
    int32_t prefix = t->batch.prefix;
    TM_TRY(TM_NEW(&s->items, run->max_examples, err));
    TM_TRY(TM_NEW(&s->length, run->max_examples, err));
    TM_TRY(TM_NEW(&s->ids, run->max_tokens, err));
    for (int64_t i = 0; s->count < run->max_examples; i++) {
        int64_t number = have ? (int64_t)((uint64_t)i * 2654435761u % (uint64_t)have) : 0;
        const tm_example *e = have ? tm_dataset_at(run->data, number) : NULL;
        int64_t n = e ? e->n : run->recipe->seq;
        n = n + prefix > run->max_tokens ? run->max_tokens - prefix : n;
        if (rows + n + prefix > run->max_tokens || (s->count && ((double)(s->tokens + n) > step || !run->recipe->packing)))
            break;
        s->length[s->count] = n + prefix;
        s->items[s->count] = (tm_batch_item){.ids = e ? e->ids : s->ids, .weight = e ? e->weight : NULL, .n = (int32_t)n};
        tm_teacher_give(t, e, number, 1, &s->items[s->count++]);
        s->tokens += n;
        rows += n + prefix;
    }
    return TM_OK;
}

/* What a step moves beside its micro-batches: gradients cleared, measured and used with the optimiser's state, new values hashed. */
static double step_bytes(const tm_trainer *t)
{
    double bytes = 0;
    for (int64_t i = 0; i < t->trained_count; i++) {
        const tm_param *p = t->trained_param[i];
        double n = (double)tm_param_count(p) * p->replicas * (double)tm_dtype_bytes(t->device->real, 1);
        int state = (p->m.data != NULL) + (p->v.data != NULL);
        bytes += n * (1 + 1 + 3 + 2 * state + 1 + 2 * (t->model.settings.act == TM_F16)); /* and unscaled */
    }
    return bytes;
}

/* As tm_trainer_base_losses does it. */
static void look(tm_trainer *t, tm_batch_item *items, int64_t count)
{
    int32_t prefix = t->batch.prefix;
    for (int64_t i = 0; i < count; i++)
        items[i].kl = items[i].square = 0;
    t->model.linear.base_only = true;
    t->model.linear.step = NULL;
    t->batch.prefix = 0;
    tm_batch_fill(&t->batch, items, count);
    tm_model_forward(&t->model, &t->batch);
    tm_model_loss(&t->model, &t->batch, tm_tensor_none(), tm_tensor_none(), false);
    t->model.linear.base_only = false;
    t->batch.prefix = prefix;
}

static double remembered_tokens(const tm_trainer *t)
{
    double tokens = 0;
    for (int64_t i = 0; t->teacher.first && t->run->data && i < tm_dataset_count(t->run->data); i++)
        tokens += t->teacher.first[i] >= 0 ? (double)tm_dataset_at(t->run->data, i)->n : 0;
    return tokens;
}

tm_status tm_plan_work(tm_trainer *t, tm_work *work, tm_memory_plan *plan, tm_error *err)
{
    sample s = {0};
    bool train = !t->run->evaluate;
    tm_status st = take_sample(t, &s, err);
    if (st == TM_OK && s.count) {
        *work = (tm_work){0};
        tm_model_begin_step(&t->model, train ? t->device_params : NULL);
        if (train)
            st = tm_trainer_penalties(t, err);
        plan->step = *work;
        plan->step.bytes += train ? step_bytes(t) : 0;
        plan->step.calls += train ? 3 + (double)t->trained_count : 0; /* every gradient is cleared by itself */
        *work = (tm_work){0};
        tm_costing_device_lengths(t->device, s.length, s.count);
        if (train)
            tm_micro_queue(t, s.items, s.count);
        else {
            tm_batch_fill(&t->batch, s.items, s.count);
            tm_model_forward(&t->model, &t->batch);
            tm_model_loss(&t->model, &t->batch, tm_tensor_none(), tm_tensor_none(), false);
        }
        plan->micro = *work;
        *work = (tm_work){0};
        if (train)
            look(t, s.items, s.count);
        plan->look = *work;
        plan->remembered_tokens = remembered_tokens(t);
        plan->directions = tm_osf_size_of(t);
        tm_costing_device_lengths(t->device, NULL, 0);
        plan->micro_tokens = (double)s.tokens;
        plan->step_tokens = tokens_of_step(t->run);
    }
    drop_sample(&s);
    return st;
}

double tm_tokens_per_second(const tm_memory_plan *plan, const tm_calibration *rates)
{
    if (!(plan->micro_tokens > 0))
        return NAN;
    return 1 / (tm_seconds_of(rates, &plan->micro) / plan->micro_tokens + tm_seconds_of(rates, &plan->step) / plan->step_tokens);
}

double tm_looks_per_second(const tm_memory_plan *plan, const tm_calibration *rates) { return plan->micro_tokens > 0 ? plan->micro_tokens / tm_seconds_of(rates, &plan->look) : NAN; }
