/* The base as a teacher: see teacher.h. */
#include "train/teacher.h"

#include "train/trainer.h"

#include <stdlib.h>

/* --- Building --- */

/* Room for a second set of logits, and for the base's head where it will change. */
static void take_logits(tm_trainer *t)
{
    tm_model *m = &t->model;
    tm_model_take_teacher(m);
    if (m->head.weight->trained && !t->teacher.head.data)
        t->teacher.head = tm_arena_tensor(&t->memory.arena[TM_MEM_KEEP], m->head.weight->value.dtype, m->head.out, m->head.in);
}

static int64_t set_targets(const tm_eval_set *set)
{
    int64_t targets = 0;
    for (int64_t i = 0; i < set->examples; i++)
        targets += tm_dataset_at(set->data, i)->targets;
    return targets;
}

void tm_teacher_take_probes(tm_trainer *t)
{
    tm_model *m = &t->model;
    for (int64_t i = 0; i < t->run->eval_count; i++) {
        tm_eval_set *set = &t->run->evals[i];
        if (set->entry->metric != TM_METRIC_KL)
            continue;
        set->teacher = tm_arena_tensor(&t->memory.arena[TM_MEM_KEEP], m->settings.act, set_targets(set), m->config.width);
        take_logits(t);
    }
}

/* Whether the base is what is left when all that was added is switched off. */
static bool base_stays(const tm_model *m)
{
    for (int64_t i = 0; i < m->params.count; i++)
        if (m->params.item[i]->trained && !m->params.item[i]->added)
            return false;
    return true;
}

static const tm_teaching *teaching_of(const tm_trainer *t, const tm_example *e)
{
    return &t->teacher.of[e && e->source >= t->run->rehearsal_from ? TM_FROM_REHEARSAL : TM_FROM_TASK];
}

static bool asks(const tm_teaching *of) { return of->kl > 0 || of->square > 0; }

/* Numbers the targets that ask, over all examples of the data; again when some of them were masked. */
static int64_t number_targets(tm_trainer *t)
{
    const tm_dataset *data = t->run->data;
    int64_t targets = 0;
    for (int64_t i = 0; data && i < tm_dataset_count(data); i++) {
        const tm_example *e = tm_dataset_at(data, i);
        bool asked = asks(teaching_of(t, e));
        t->teacher.first[i] = asked ? targets : -1;
        targets += asked ? e->targets : 0;
    }
    return targets;
}

static tm_status count_targets(tm_trainer *t, int64_t *targets, tm_error *err)
{
    TM_TRY(TM_NEW(&t->teacher.first, (t->run->data ? tm_dataset_count(t->run->data) : 0) + 1, err));
    *targets = number_targets(t);
    if (*targets > INT32_MAX)
        return tm_fail(err, TM_RECIPE, "%lld targets of the data ask the base for its hidden states; at most %d can be remembered: take less data, or method: lora, which asks it again each time",
                       (long long)*targets, INT32_MAX);
    return TM_OK;
}

tm_status tm_teacher_use(tm_trainer *t, const tm_teaching of[TM_ORIGINS], tm_error *err)
{
    tm_teacher *teacher = &t->teacher;
    int64_t rows = t->run->max_tokens;
    memcpy(teacher->of, of, sizeof teacher->of);
    if (!asks(&of[TM_FROM_TASK]) && !asks(&of[TM_FROM_REHEARSAL]))
        return TM_OK;
    teacher->used = true;
    if (!base_stays(&t->model))
        TM_TRY(count_targets(t, &rows, err));
    TM_TRY(TM_NEW(&teacher->items, t->run->max_examples, err));
    teacher->hidden = tm_arena_tensor(&t->memory.arena[TM_MEM_KEEP], t->model.settings.act, rows, t->model.config.width);
    take_logits(t);
    return TM_OK;
}

void tm_teacher_drop(tm_teacher *teacher)
{
    free(teacher->first);
    free(teacher->items);
    *teacher = TM_TEACHER_NONE;
}

/* --- Asking the base --- */

/* Hidden states of the base at every target of the items, one after another, into rows of `out` from its first on. step: NULL in
 * evaluation. Leaves the batch laid out for them. */
static void look(tm_trainer *t, const tm_batch_item *items, int64_t count, const tm_step_params *step, tm_tensor out)
{
    tm_linear_context *linear = &t->model.linear;
    const tm_step_params *kept = linear->step;
    int32_t prefix = t->batch.prefix;
    linear->base_only = true;
    linear->step = step;
    t->batch.prefix = 0; /* the base knows no trained prompt */
    tm_batch_fill(&t->batch, items, count);
    tm_model_forward(&t->model, &t->batch);
    tm_model_gather_hidden(&t->model, &t->batch, tm_tensor_rows(out, 0, t->batch.targets));
    linear->base_only = false;
    linear->step = kept;
    t->batch.prefix = prefix;
}

static tm_batch_item item_of(const tm_example *e) { return (tm_batch_item){.ids = e->ids, .weight = e->weight, .n = e->n, .scale = 1}; }

static void remember_set(tm_trainer *t, const tm_eval_set *set)
{
    int64_t done = 0;
    for (int64_t i = 0; i < set->examples; i++) {
        tm_batch_item item = item_of(tm_dataset_at(set->data, i));
        look(t, &item, 1, NULL, tm_tensor_rows(set->teacher, done, set->teacher.rows - done));
        done += t->batch.targets;
    }
}

static void remember_data(tm_trainer *t)
{
    const tm_teacher *teacher = &t->teacher;
    number_targets(t);
    for (int64_t i = 0; i < tm_dataset_count(t->run->data); i++) {
        tm_batch_item item = item_of(tm_dataset_at(t->run->data, i));
        if (teacher->first[i] >= 0)
            look(t, &item, 1, t->device_params, tm_tensor_rows(teacher->hidden, teacher->first[i], teacher->hidden.rows - teacher->first[i]));
    }
}

void tm_teacher_remember(tm_trainer *t)
{
    for (int64_t i = 0; i < t->run->eval_count; i++)
        if (t->run->evals[i].teacher.data)
            remember_set(t, &t->run->evals[i]);
    if (t->teacher.first)
        remember_data(t);
    if (t->teacher.head.data)
        TM_RUN(t->device, cast, t->model.head.weight->value, t->teacher.head);
}

/* --- In a step --- */

void tm_teacher_give(const tm_trainer *t, const tm_example *e, int64_t number, double share, tm_batch_item *item)
{
    const tm_teaching *of = teaching_of(t, e);
    item->scale = of->loss * share;
    item->kl = of->kl * share;
    item->square = of->square * share;
    if (t->teacher.first && asks(of) && e)
        item->teacher_row = t->teacher.first[number];
}

void tm_teacher_ask(tm_trainer *t, tm_batch_item *items, int64_t count)
{
    tm_teacher *teacher = &t->teacher;
    const tm_batch *b = &t->batch;
    int64_t n = 0;
    if (!teacher->used || teacher->first)
        return;
    for (int64_t i = 0; i < count; i++)
        if (tm_batch_item_asks(&items[i]))
            teacher->items[n++] = items[i];
    if (!n)
        return;
    look(t, teacher->items, n, t->model.linear.step, teacher->hidden);
    for (int64_t i = 0, k = 0, row = 0; i < count; i++)
        if (tm_batch_item_asks(&items[i])) {
            items[i].teacher_row = row;
            while (row < b->targets && b->target_item[row] == k)
                row++;
            k++;
        }
}
