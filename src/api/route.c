/* Choosing a module by the prompt. The chooser is the router of tune/router.h: ridge regression from what the start model
 * makes of a prompt (the mean of its last hidden states) to the task, learned on rows of every task's training data; the
 * task with the largest value is chosen. Every prompt of the tests is given to the module chosen for it. What the start model
 * makes of the rows, and what every module answers, is computed once, whatever the number of sets of modules to choose from. */
#include "api/route.h"

#include "api/job.h"
#include "api/laboratory.h"
#include "base/json.h"
#include "train/score.h"
#include "tune/router.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LEARNED = 256 }; /* rows of a task that the router learns from, evenly over its data */

typedef struct chooser {
    tm_job job;
    tm_trainer *trainer;
    tm_router *router;   /* [sets] */
    size_t sets;
    float *rows;  /* scratch */
    void *raw;
    int64_t width;
    int32_t **choice; /* [evaluations] of every example and set: [examples, sets], tasks of the file */
} chooser;

static void chooser_close(chooser *c)
{
    for (int64_t i = 0; c->choice && i < c->job.eval_count; i++)
        free(c->choice[i]);
    free(c->choice);
    free(c->rows);
    free(c->raw);
    for (size_t k = 0; c->router && k < c->sets; k++)
        tm_router_deinit(&c->router[k]);
    free(c->router);
    tm_trainer_destroy(c->trainer);
    tm_job_close(&c->job);
}

static tm_status chooser_open(chooser *c, tm_error *err)
{
    tm_job *job = &c->job;
    TM_TRY(tm_job_fits(job, NULL, NULL, err));
    TM_TRY(tm_trainer_create(&job->run, job->device, job->plan.part, &c->trainer, err));
    TM_TRY(tm_model_load(&c->trainer->model, job->file, job->recipe->model, err));
    tm_model_begin_step(&c->trainer->model, NULL);
    c->width = c->trainer->model.config.width;
    TM_TRY(TM_NEW(&c->rows, c->trainer->batch.max_tokens * c->width, err));
    return tm_alloc(&c->raw, (size_t)(c->trainer->batch.max_tokens * c->width), 8, err);
}

/* The router of the tasks in `known`, from rows [n] of all tasks; h, gates: room for as many. */
static tm_status fit(const chooser *c, uint64_t known, size_t tasks, const float *rows, const size_t *row_task, int64_t n, float *h, float *gates, tm_router *out, tm_error *err)
{
    int64_t column[TM_LAB_MOST_TASKS], columns = 0, used = 0;
    for (size_t t = 0; t < tasks; t++)
        column[t] = known >> t & 1 ? columns++ : -1;
    memset(gates, 0, (size_t)(n * columns) * sizeof *gates);
    for (int64_t i = 0; i < n; i++) {
        if (column[row_task[i]] < 0)
            continue;
        memcpy(h + used * c->width, rows + i * c->width, (size_t)c->width * sizeof *h);
        gates[used++ * columns + column[row_task[i]]] = 1;
    }
    return tm_router_fit(h, gates, used, c->width, columns, 1e-2, out, err);
}

/* The routers, from rows of every task. */
static tm_status learn(chooser *c, const tm_lab_routing *r, tm_error *err)
{
    const tm_dataset *data = c->job.data;
    int64_t all = tm_dataset_count(data), n = 0, *have = NULL, *seen = NULL;
    float *h = NULL, *some = NULL, *gates = NULL;
    size_t *task = NULL, *row_task = NULL, tasks = r->tasks;
    tm_status st;
    TM_GO(TM_NEW(&have, tasks, err));
    TM_GO(TM_NEW(&seen, tasks, err));
    TM_GO(TM_NEW(&task, tm_dataset_sources(data), err));
    TM_GO(TM_NEW(&row_task, tasks * LEARNED, err));
    TM_GO(TM_NEW(&h, (int64_t)tasks * LEARNED * c->width, err));
    TM_GO(TM_NEW(&some, (int64_t)tasks * LEARNED * c->width, err));
    TM_GO(TM_NEW(&gates, tasks * LEARNED * tasks, err));
    for (size_t t = 0, e = 0; t < tasks; t++)
        for (size_t k = 0; k < r->entries[t]; k++)
            task[e++] = t;
    for (int64_t i = 0; i < all; i++)
        have[task[tm_dataset_at(data, i)->source]]++;
    for (int64_t i = 0; i < all; i++) {
        size_t t = task[tm_dataset_at(data, i)->source];
        int64_t at = seen[t]++, most = have[t] < LEARNED ? have[t] : LEARNED;
        if (at * most / have[t] == (at + 1) * most / have[t])
            continue; /* `most` of them, evenly */
        TM_GO(tm_prompt_state(c->trainer, tm_dataset_at(data, i), c->raw, c->rows, h + n * c->width, err));
        row_task[n++] = t;
    }
    TM_GO(TM_NEW(&c->router, r->sets, err));
    for (; c->sets < r->sets; c->sets++)
        TM_GO(fit(c, r->known[c->sets], tasks, h, row_task, n, some, gates, &c->router[c->sets], err));
out:
    free(have);
    free(seen);
    free(task);
    free(row_task);
    free(h);
    free(some);
    free(gates);
    return st;
}

/* The task of the largest gate. */
static int32_t largest(const tm_router *router, uint64_t known, const float *h)
{
    float gates[TM_LAB_MOST_TASKS];
    int32_t task = -1, best = -1;
    int64_t of_best = 0;
    tm_router_gates(router, h, gates);
    for (int64_t g = 0; g < router->gates; g++) {
        do
            task++;
        while (!(known >> task & 1));
        if (best < 0 || gates[g] > gates[of_best]) {
            best = task;
            of_best = g;
        }
    }
    return best;
}

/* The task of every example of every evaluation, by every set. */
static tm_status choose(chooser *c, const tm_lab_routing *r, tm_error *err)
{
    float *h;
    tm_status st = TM_OK;
    TM_TRY(TM_NEW(&c->choice, c->job.eval_count, err));
    TM_TRY(TM_NEW(&h, c->width, err));
    for (int64_t s = 0; s < c->job.eval_count; s++) {
        const tm_eval_set *set = &c->job.evals[s];
        TM_GO(TM_NEW(&c->choice[s], (size_t)set->examples * c->sets, err));
        for (int64_t i = 0; i < set->examples; i++) {
            TM_GO(tm_prompt_state(c->trainer, tm_dataset_at(set->data, i), c->raw, c->rows, h, err));
            for (size_t k = 0; k < c->sets; k++)
                c->choice[s][(size_t)i * c->sets + k] = largest(&c->router[k], r->known[k], h);
        }
    }
out:
    free(h);
    return st;
}

/* --- Scores of what was chosen --- */

typedef struct tally {
    double sum, weight;
} tally;

/* Adds an item's share of a metric. False: the metric is not a mean over items. */
static bool add_item(int metric, const json_t *item, tally *to)
{
    double targets = json_number_value(json_object_get(item, "targets"));
    const char *key = tm_metrics[metric].key[0];
    switch (metric) {
    case TM_METRIC_LOSS:
        to->sum += targets * json_number_value(json_object_get(item, "loss"));
        to->weight += targets;
        return true;
    case TM_METRIC_ACCURACY:
        to->sum += json_number_value(json_object_get(item, "hits"));
        to->weight += targets;
        return true;
    case TM_METRIC_EXACT:
        to->sum += json_is_true(json_object_get(item, "exact"));
        to->weight += 1;
        return true;
    default:
        if (!tm_metrics[metric].generates || !key || !json_is_number(json_object_get(item, key)))
            return false;
        to->sum += json_number_value(json_object_get(item, key));
        to->weight += 1;
        return true;
    }
}

/* The items of one evaluation by one module: to each set (tallies[set * stride]) those that it gave to the module. */
static tm_status add_items(const chooser *c, int64_t set, int32_t module, const tm_buf *items, tally *to, size_t stride, tm_error *err)
{
    const tm_eval_set *s = &c->job.evals[set];
    const char *at = tm_buf_str(items);
    int64_t lines = 0;
    for (const char *p = at; (p = strchr(p, '\n')); p++)
        lines++;
    bool mean = lines == s->examples; /* else an item is of several examples: choices, round trips */
    for (int64_t i = 0; i < s->examples && mean; i++) {
        const char *end = strchr(at, '\n');
        const int32_t *choice = &c->choice[set][(size_t)i * c->sets];
        json_t *item;
        TM_TRY(tm_json_parse_row(at, (size_t)(end - at), &item, err));
        for (size_t k = 0; k < c->sets && mean; k++)
            if (choice[k] == module)
                mean = add_item(s->entry->metric, item, &to[k * stride]);
        json_decref(item);
        at = end + 1;
    }
    for (size_t k = 0; k < c->sets && !mean; k++)
        to[k * stride].sum = NAN;
    return TM_OK;
}

/* tallies [sets, tasks] */
static tm_status score_module(tm_laboratory *lab, const chooser *c, const tm_lab_routing *r, size_t module, tally *tallies, tm_error *err)
{
    tm_recipe *recipe;
    tm_buf items[TM_LAB_MOST_TASKS] = {0};
    tm_scores *scores = NULL;
    tm_status st = TM_NEW(&scores, r->tasks, err);
    if (st == TM_OK)
        st = r->recipe_of(r->owner, module, &recipe, err);
    if (st == TM_OK)
        tm_laboratory_threads(lab, recipe);
    if (st == TM_OK)
        st = tm_evaluate_recipe(&lab->shop, recipe, scores, items, err);
    for (size_t s = 0; s < r->tasks; s++) {
        if (st == TM_OK)
            st = add_items(c, (int64_t)s, (int32_t)module, &items[s], &tallies[s], r->tasks, err);
        tm_buf_deinit(&items[s]);
    }
    free(scores);
    return st;
}

tm_status tm_route_modules(void *context, const tm_lab_routing *r, double *scores, int64_t *confusion, tm_error *err)
{
    tm_laboratory *lab = context;
    chooser c = {0};
    tally *tallies = NULL;
    tm_recipe *recipe;
    tm_status st;
    TM_TRY(r->recipe_of(r->owner, r->tasks, &recipe, err));
    tm_laboratory_threads(lab, recipe);
    TM_TRY(tm_job_open_in(&lab->shop, recipe, TM_JOB_EVAL, &c.job, err));
    TM_GO(TM_NEW(&tallies, r->sets * r->tasks, err));
    TM_GO(chooser_open(&c, err));
    TM_GO(learn(&c, r, err));
    TM_GO(choose(&c, r, err));
    for (size_t k = 0; k < r->sets; k++)
        for (size_t s = 0; s < r->tasks; s++)
            for (int64_t i = 0; i < c.job.evals[s].examples; i++)
                confusion[(k * r->tasks + s) * r->tasks + (size_t)c.choice[s][(size_t)i * c.sets + k]]++;
    for (size_t m = 0; m < r->tasks; m++)
        TM_GO(score_module(lab, &c, r, m, tallies, err));
    for (size_t i = 0; i < r->sets * r->tasks; i++)
        scores[i] = tallies[i].weight > 0 ? tallies[i].sum / tallies[i].weight : NAN;
out:
    free(tallies);
    chooser_close(&c);
    return st;
}
