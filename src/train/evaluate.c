/* Scores of a data set: the same forward as training, without dropout and without gradients. */
#include "train/score.h"

#include <math.h>
#include <stdlib.h>

typedef struct totals {
    double loss, kl;
    int64_t targets, hits, exact, examples;
} totals;

/* Adds a micro-batch's results; item i of the batch is the example of each[i]. */
static void add_results(totals *sum, tm_batch *b, int64_t examples, tm_example_score *each)
{
    tm_batch_read_results(b);
    int64_t misses = 0, next = 0;
    for (int64_t e = 0; e < examples; e++, misses = 0) {
        for (; next < b->targets && b->target_item[next] == e; next++) {
            sum->loss += b->host_loss[next];
            sum->kl += b->host_kl[next];
            sum->hits += b->host_hit[next];
            misses += !b->host_hit[next];
            each[e].loss += b->host_loss[next];
            each[e].hits += b->host_hit[next] != 0;
            each[e].targets++;
        }
        sum->exact += misses == 0;
    }
    sum->targets += b->targets;
    sum->examples += examples;
}

/* Examples from first on, before end: as many as a micro-batch takes, in *count. set NULL: no evaluation; targets: those of
 * its examples before the first. */
static tm_status fill_batch(tm_trainer *t, const tm_dataset *data, const tm_eval_set *set, int64_t first, int64_t end, int64_t targets, int32_t replica, int64_t *count, tm_error *err)
{
    int64_t n = 0, tokens = 0;
    while (first + n < end && n < t->batch.max_examples) {
        const tm_example *e = tm_dataset_at(data, first + n);
        if (tokens + e->n + t->batch.prefix > t->batch.max_tokens)
            break;
        TM_TRY(TM_GROW(&t->items, &t->items_capacity, n + 1, err));
        t->items[n] = (tm_batch_item){.ids = e->ids, .weight = e->weight, .n = e->n, .replica = replica, .index = 0, .scale = 1,
                                        .kl = set && set->teacher.data ? 1 : 0, .teacher_row = targets};
        if (set)
            tm_gates_give(t, set - t->run->evals, first + n, &t->items[n]);
        tokens += e->n + t->batch.prefix;
        targets += e->targets;
        n++;
    }
    if (!n)
        return tm_fail(err, TM_FAILED, "%s: example %lld does not fit a micro-batch", set ? set->entry->name : "data", (long long)first);
    tm_batch_fill(&t->batch, t->items, n);
    *count = n;
    return TM_OK;
}

static tm_status run_examples(tm_trainer *t, const tm_eval_set *set, int32_t replica, tm_example_score *each, totals *out, tm_error *err)
{
    totals sum = {0};
    for (int64_t i = 0, n; i < set->examples; i += n) {
        TM_TRY(fill_batch(t, set->data, set, i, set->examples, sum.targets, replica, &n, err));
        tm_model_forward(&t->model, &t->batch);
        tm_model_loss(&t->model, &t->batch, set->teacher, t->teacher.head, false);
        add_results(&sum, &t->batch, n, each + i);
    }
    *out = sum;
    return TM_OK;
}

tm_status tm_trainer_evaluate(tm_trainer *t, tm_eval_set *set, int32_t replica, tm_scores *out, tm_buf *items, tm_error *err)
{
    totals sum = {0};
    tm_example_score *each;
    TM_TRY(TM_NEW(&each, set->examples, err));
    tm_status st = run_examples(t, set, replica, each, &sum, err);
    if (st != TM_OK)
        goto out;
    double targets = sum.targets ? (double)sum.targets : 1;
    *out = (tm_scores){.loss = sum.loss / targets, .accuracy = (double)sum.hits / targets, .exact = sum.examples ? (double)sum.exact / (double)sum.examples : 0,
                       .kl = set->teacher.data ? sum.kl / targets : NAN, .bits_per_byte = NAN, .targets = sum.targets};
    int64_t bytes = 0;
    for (int64_t i = 0; i < tm_dataset_sources(set->data); i++)
        bytes += tm_dataset_stats_of(set->data, i)->text_bytes;
    if (bytes > 0 && set->examples == tm_dataset_count(set->data))
        out->bits_per_byte = sum.loss / M_LN2 / (double)bytes;
    TM_GO(tm_score_set(t, set, replica, each, out, items, err));
    st = t->device->calls->sync(t->device, err);
out:
    free(each);
    return st;
}

tm_status tm_trainer_base_losses(tm_trainer *t, const tm_dataset *data, int64_t first, int64_t end, float *out, tm_error *err)
{
    int32_t prefix = t->batch.prefix;
    tm_status st = TM_OK;
    t->model.linear.base_only = true;
    t->model.linear.step = NULL;
    t->batch.prefix = 0; /* the base knows no trained prompt */
    for (int64_t i = first, n; i < end && st == TM_OK; i += n) {
        st = fill_batch(t, data, NULL, i, end, 0, 0, &n, err);
        if (st != TM_OK)
            break;
        tm_model_forward(&t->model, &t->batch);
        tm_model_loss(&t->model, &t->batch, tm_tensor_none(), tm_tensor_none(), false);
        tm_batch_read_results(&t->batch);
        for (int64_t k = 0; k < t->batch.targets; k++)
            *out++ = (float)t->batch.host_loss[k];
    }
    t->model.linear.base_only = false;
    t->batch.prefix = prefix;
    return st == TM_OK ? t->device->calls->sync(t->device, err) : st;
}
