/* Running a sequence: see sequence.h. First all chains that configurations are chosen by, then all others; within each of
 * the two, side by side. */
#include "lab/chain.h"
#include "lab/jobs.h"

#include "base/file.h"
#include "io/hf.h"
#include "train/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- What there is to do --- */

static size_t orders_of(const tm_sequence_file *f, const tm_lab_arm *arm) { return arm->kind == TM_ARM_SEQUENCE ? f->orders : 1; }
static size_t seeds_of(const tm_sequence_file *f, const tm_lab_arm *arm) { return arm->kind == TM_ARM_FROZEN ? 1 : f->seeds; }
static size_t tried_of(const tm_sequence_file *f, const tm_lab_arm *arm) { return arm->grid.count ? tm_grid_count(&arm->grid) * f->select_seeds : 0; }

/* Pieces of work of an arm. */
static size_t pieces_of(const tm_sequence_file *f, const tm_lab_arm *arm, bool select)
{
    return select ? tried_of(f, arm) : seeds_of(f, arm) * (tm_lab_is_separate(arm) ? 1 : orders_of(f, arm));
}

static size_t all_pieces(const tm_sequence_file *f, bool select)
{
    size_t n = 0;
    for (size_t i = 0; i < f->arms; i++)
        n += pieces_of(f, &f->arm[i], select);
    return n;
}

/* One part of the work: choosing, or testing. */
typedef struct part {
    const tm_lab_runner *r;
    tm_sequence_result *result;
    tm_lab_chain **tried; /* [arms][configurations by select seeds]; NULL: testing */
} part;

/* The item-th piece; where its chains go. */
static tm_lab_task_chain piece_at(const part *p, size_t item)
{
    const tm_sequence_file *f = p->r->file;
    bool select = p->tried != NULL;
    size_t a = 0;
    for (; item >= pieces_of(f, &f->arm[a], select); a++)
        item -= pieces_of(f, &f->arm[a], select);
    const tm_lab_arm *arm = &f->arm[a];
    size_t seeds = seeds_of(f, arm);
    if (select)
        return (tm_lab_task_chain){.arm = arm, .config = item / f->select_seeds, .select = true, .orders = 1, .seed = f->select_seed[item % f->select_seeds], .out = p->tried[a] + item};
    return (tm_lab_task_chain){.arm = arm, .config = p->result->arm[a].chosen, .order = item / seeds, .orders = tm_lab_is_separate(arm) ? f->orders : 1, .seed = f->seed[item % seeds],
                               .out = p->result->arm[a].chain + item, .stride = seeds};
}

static tm_status run_piece(void *context, size_t item, tm_error *err)
{
    const part *p = context;
    tm_lab_runner mine = *p->r;
    tm_lab_task_chain c = piece_at(p, item);
    mine.err = err;
    c.r = &mine;
    tm_status st = tm_lab_chain_run(&c);
    if (st == TM_OK || err->status != st)
        return st;
    tm_error first = *err, ignored;
    char *folder = NULL;
    mine.err = &ignored;
    if (tm_lab_chain_folder(&c, c.arm->kind == TM_ARM_SEQUENCE && !tm_lab_is_separate(c.arm), NULL, &folder) == TM_OK)
        tm_fail_prefix(&first, st, "%s", folder);
    free(folder);
    *err = first;
    return st;
}

/* --- Choosing --- */

/* Whether a configuration did better on validation sets: by the average at the end; where tasks rise and fall, by BWT
 * and what was learned alike: the mean gain over the start. */
static double merit(const tm_sequence_file *f, const tm_lab_chain *c)
{
    double sum = 0;
    for (size_t j = 0; j < f->tasks; j++) {
        double gain = c->r[f->tasks * f->tasks + j] - c->r[j];
        sum += tm_metrics[f->task[f->order[c->order * f->tasks + j]].valid_metric].rises ? gain : -gain;
    }
    return sum / (double)f->tasks;
}

/* The best configuration, the first of equals; its chains are there. One with fewer chains that diverged comes first: a chain that learned nothing has
 * lost nothing either, and merit alone would take it where learning costs more than it brings. Then by merit. */
static tm_status choose(const tm_lab_runner *r, const tm_lab_arm *arm, const tm_lab_chain *tried, tm_lab_arm_result *out)
{
    const tm_sequence_file *f = r->file;
    double best = -INFINITY;
    size_t fewest = SIZE_MAX;
    if (!arm->grid.count)
        return TM_OK;
    TM_TRY(TM_NEW(&out->config, tm_grid_count(&arm->grid), r->err));
    for (; out->configs < tm_grid_count(&arm->grid);) {
        tm_lab_config *config = &out->config[out->configs++];
        double *sums = (double *)&config->metrics, sum = 0;
        TM_TRY(tm_grid_settings(&arm->grid, out->configs - 1, &config->settings, r->err));
        for (size_t s = 0; s < f->select_seeds; s++) {
            const tm_lab_chain *done = &tried[(out->configs - 1) * f->select_seeds + s];
            for (int m = 0; m < TM_SEQUENCE_METRIC_COUNT; m++)
                sums[m] += ((const double *)&done->metrics)[m] / (double)f->select_seeds;
            sum += merit(f, done);
            config->diverged += tm_lab_chain_diverged(done, f->tasks);
        }
        if (config->diverged < fewest || (config->diverged == fewest && sum > best)) {
            best = isnan(sum) ? -INFINITY : sum;
            fewest = config->diverged;
            out->chosen = out->configs - 1;
        }
    }
    return TM_OK;
}

/* Every configuration on the validation sets in the first order. */
static tm_status run_choices(const tm_lab_runner *r, int jobs, tm_sequence_result *result)
{
    const tm_sequence_file *f = r->file;
    part p = {r, result, NULL};
    tm_status st;
    TM_GO(TM_NEW(&p.tried, f->arms, r->err));
    for (size_t i = 0; i < f->arms; i++)
        TM_GO(TM_NEW(&p.tried[i], tried_of(f, &f->arm[i]), r->err));
    TM_GO(tm_lab_jobs_run(r->calls, jobs, all_pieces(f, true), run_piece, &p, r->err));
    for (size_t i = 0; i < f->arms; i++)
        TM_GO(choose(r, &f->arm[i], p.tried[i], &result->arm[i]));
out:
    for (size_t i = 0; p.tried && i < f->arms; i++) {
        for (size_t k = 0; p.tried[i] && k < tried_of(f, &f->arm[i]); k++)
            tm_lab_chain_deinit(&p.tried[i][k]);
        free(p.tried[i]);
    }
    free(p.tried);
    return st;
}

/* --- The whole --- */

static tm_status run_tests(const tm_lab_runner *r, int jobs, tm_sequence_result *result)
{
    const tm_sequence_file *f = r->file;
    part p = {r, result, NULL};
    for (size_t i = 0; i < f->arms; i++) {
        result->arm[i].chains = orders_of(f, &f->arm[i]) * seeds_of(f, &f->arm[i]);
        TM_TRY(TM_NEW(&result->arm[i].chain, result->arm[i].chains, r->err));
    }
    return tm_lab_jobs_run(r->calls, jobs, all_pieces(f, false), run_piece, &p, r->err);
}

/* What each arm's first training is like decides how many fit beside each other. */
static tm_status spread(tm_lab_runner *r, tm_lab_spread *out)
{
    const tm_sequence_file *f = r->file;
    tm_recipe *recipe[TM_LAB_MOST_ARMS];
    size_t count = 0, pieces = all_pieces(f, true) > all_pieces(f, false) ? all_pieces(f, true) : all_pieces(f, false);
    tm_status st = TM_OK;
    *out = (tm_lab_spread){.jobs = 1};
    if (!r->calls->spread)
        return TM_OK;
    for (size_t i = 0; i < f->arms && st == TM_OK; i++) {
        tm_lab_task_chain c = {.r = r, .arm = &f->arm[i], .orders = 1, .seed = f->seed[0]};
        tm_names settings = {0};
        if (c.arm->kind == TM_ARM_FROZEN)
            continue;
        st = tm_lab_chain_settings(&c, f->model, NULL, &settings);
        if (st == TM_OK && c.arm->ewc && !c.arm->old_importances)
            st = tm_names_add(&settings, "keep.ewc.lambda=0", r->err); /* as the first task is trained */
        if (st == TM_OK)
            st = tm_lab_chain_recipe(&c, f->order, 1, &settings, &recipe[count]);
        count += st == TM_OK;
        tm_names_deinit(&settings);
    }
    if (st == TM_OK)
        return r->calls->spread(r->calls->context, recipe, count, pieces, out, r->err);
    while (count)
        tm_recipe_destroy(recipe[--count]);
    return st;
}

/* Scores of the start model, which all chains begin with. */
static tm_status score_start(tm_lab_runner *r)
{
    const tm_sequence_file *f = r->file;
    tm_lab_state start = {.model = f->model};
    tm_sha256 model;
    char *folder = tm_path_join(r->out, "start", r->err);
    tm_status st = folder ? tm_hf_hash(f->model, &model, r->err) : TM_NO_MEMORY;
    if (st == TM_OK)
        memcpy(r->shared->model, model.hex, sizeof model.hex);
    for (int sets = 0; sets < 3 && st == TM_OK; sets++)
        if (sets == TM_SETS_PROBES ? f->probes != NULL : sets == TM_SETS_TEST || all_pieces(f, true) > 0)
            st = tm_lab_evaluate(r, &start, (tm_lab_sets)sets, folder, r->shared->start[sets]);
    free(folder);
    return st;
}

tm_status tm_sequence_run(const tm_sequence_file *f, char *const *overrides, size_t override_count, const char *out, const tm_lab_calls *calls,
                          tm_sequence_result *result, tm_error *err)
{
    tm_error own;
    tm_lab_shared shared = {0};
    tm_lab_spread how;
    tm_dir_lock lock = {.fd = -1};
    tm_lab_runner r = {.file = f, .overrides = overrides, .override_count = override_count, .out = out, .calls = calls, .shared = &shared, .err = err ? err : &own};
    tm_status st;
    *result = (tm_sequence_result){0};
    pthread_mutex_init(&shared.mutex, NULL);
    TM_GO(TM_NEW(&result->arm, f->arms, r.err));
    TM_GO(tm_dir_create(out, r.err));
    TM_GO(tm_dir_lock_take(out, &lock, r.err));
    for (size_t i = 0; i < f->arms; i++)
        shared.total += tm_lab_chain_trainings(f, &f->arm[i]) * (pieces_of(f, &f->arm[i], true) + pieces_of(f, &f->arm[i], false));
    TM_GO(spread(&r, &how));
    memcpy(shared.device, how.device, sizeof shared.device);
    TM_GO(score_start(&r));
    TM_GO(run_choices(&r, how.jobs, result));
    st = run_tests(&r, how.jobs, result);
out:
    if (lock.fd >= 0)
        tm_dir_lock_drop(&lock);
    tm_names_deinit(&shared.path);
    free(shared.hash);
    pthread_mutex_destroy(&shared.mutex);
    return st;
}

void tm_sequence_result_deinit(tm_sequence_result *result, const tm_sequence_file *f)
{
    for (size_t i = 0; result->arm && i < f->arms; i++) {
        tm_lab_arm_result *a = &result->arm[i];
        for (size_t k = 0; a->chain && k < a->chains; k++)
            tm_lab_chain_deinit(&a->chain[k]);
        for (size_t k = 0; k < a->configs; k++)
            tm_names_deinit(&a->config[k].settings);
        free(a->chain);
        free(a->config);
    }
    free(result->arm);
    *result = (tm_sequence_result){0};
}
