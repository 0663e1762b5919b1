/* Running a sequence: see sequence.h. Folders: OUT/start, OUT/ARM/order-1/seed-1/1-TASK (of a joint arm
 * OUT/ARM/seed-1/joint, of separate modules OUT/ARM/seed-1/TASK: the order is nothing to them), and while a
 * configuration is chosen OUT/ARM/select-1/... in place of OUT/ARM/... */
#include "lab/stage.h"

#include "base/file.h"
#include "base/json.h"
#include "train/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One chain to be run. */
typedef struct chain {
    tm_lab_runner *r;
    const tm_lab_arm *arm;
    size_t config;       /* of the arm's grid */
    bool select;         /* on validation sets, to choose */
    size_t order;
    uint64_t seed;
    tm_lab_chain *out;
} chain;

static size_t tasks_of(const chain *c) { return c->r->file->tasks; }
static const int32_t *order_of(const chain *c) { return c->r->file->order + c->order * tasks_of(c); }
static tm_lab_sets sets_of(const chain *c) { return c->select ? TM_SETS_VALID : TM_SETS_TEST; }

/* OUT/ARM[/select-N][/order-N]/seed-N[/last]. */
static tm_status folder_of(const chain *c, bool ordered, const char *last, char **out)
{
    tm_buf path = {0};
    tm_buf_printf(&path, "%s/%s/", c->r->out, c->arm->name);
    if (c->select)
        tm_buf_printf(&path, "select-%zu/", c->config + 1);
    if (ordered)
        tm_buf_printf(&path, "order-%zu/", c->order + 1);
    tm_buf_printf(&path, "seed-%llu%s%s", (unsigned long long)c->seed, last ? "/" : "", last ? last : "");
    TM_TRY(tm_buf_check(&path, c->r->err));
    *out = path.data;
    return TM_OK;
}

/* Values by task of the file go to the places of the order. */
static void put_row(const chain *c, size_t row, const double *values)
{
    size_t T = tasks_of(c);
    for (size_t j = 0; j < T; j++)
        c->out->r[row * T + j] = values[order_of(c)[j]];
}

/* Row `row` of R and of the probes: scores of a state. */
static tm_status measure(const chain *c, const tm_lab_state *state, const char *folder, size_t row)
{
    double values[TM_LAB_MOST_TASKS];
    size_t probes = (size_t)c->r->file->probe_name.count;
    TM_TRY(tm_lab_evaluate(c->r, state, sets_of(c), folder, values));
    put_row(c, row, values);
    return probes && !c->select ? tm_lab_evaluate(c->r, state, TM_SETS_PROBES, folder, c->out->probe + row * probes) : TM_OK;
}

static tm_status measure_start(const chain *c, tm_lab_state *start, size_t row)
{
    tm_buf folder = {0};
    tm_buf_printf(&folder, "%s/start", c->r->out);
    tm_status st = tm_buf_check(&folder, c->r->err);
    if (st == TM_OK && !(start->model = tm_strdup(c->r->file->model, c->r->err)))
        st = TM_NO_MEMORY;
    if (st == TM_OK)
        st = measure(c, start, folder.data, row);
    tm_buf_deinit(&folder);
    return st;
}

/* --- One training --- */

/* What every training of a chain is told: the configuration, then seed, folder, cache and model. */
static tm_status settings_of(const chain *c, const tm_lab_state *from, const char *folder, tm_names *out)
{
    tm_lab_runner *r = c->r;
    char text[64];
    if (c->arm->grid.count)
        TM_TRY(tm_grid_settings(&c->arm->grid, c->config, out, r->err));
    snprintf(text, sizeof text, "train.seed=%llu", (unsigned long long)c->seed);
    TM_TRY(tm_names_add(out, text, r->err));
    TM_TRY(tm_lab_set(out, "out", folder, r->err));
    return tm_lab_set(out, "model", from->model, r->err);
}

/* The key under which a method goes on from an adapter. */
static const char *init_key(int method)
{
    return method == TM_METHOD_LORA ? "lora.init" : method == TM_METHOD_BITFIT ? "bitfit.init" : method == TM_METHOD_ADAPTER ? "adapter.init" : "prompt.init";
}

/* Trains on tasks [count] of the file, from a state, into folder. */
static tm_status train(const chain *c, const tm_lab_state *from, const int32_t *tasks, size_t count, const char *folder, tm_names *settings, tm_lab_state *next)
{
    tm_lab_runner *r = c->r;
    tm_recipe *recipe;
    char text[64];
    if (from->adapter)
        TM_TRY(tm_lab_set(settings, init_key(c->arm->method), from->adapter, r->err));
    TM_TRY(tm_sequence_train_recipe(r->file, c->arm, tasks, count, r->overrides, r->override_count, settings, &recipe, r->err));
    if (count > 1 && recipe->steps > 0) { /* all tasks at once: as many steps as one after another */
        snprintf(text, sizeof text, "train.steps=%lld", (long long)recipe->steps * (long long)count);
        tm_recipe_destroy(recipe);
        TM_TRY(tm_names_add(settings, text, r->err));
        TM_TRY(tm_sequence_train_recipe(r->file, c->arm, tasks, count, r->overrides, r->override_count, settings, &recipe, r->err));
    }
    return tm_lab_train(r, recipe, from, folder, next);
}

/* --- Chains --- */

static tm_status stage_folder(const chain *c, size_t k, char **out)
{
    char name[96];
    const char *task = c->r->file->task[order_of(c)[k]].name;
    bool separate = c->arm->between == TM_BETWEEN_SEPARATE;
    if (separate)
        snprintf(name, sizeof name, "%s", task);
    else
        snprintf(name, sizeof name, "%zu-%s", k + 1, task);
    return folder_of(c, !separate, name, out);
}

/* What `ewc: previous` pulls by: the importances of task k - 1 at the state it left, added to those before it. They lie in
 * that task's run folder; older ones of the arm's own keep.ewc.path were measured by the first run into its folder. */
static tm_status remember(const chain *c, size_t k, const tm_lab_state *state, tm_names *settings)
{
    static const char name[] = "importances-next.safetensors";
    static const char *const without[] = {"keep.ewc.path=null", "keep.ewc.importances=null", "keep.replay=null", "keep.generate=null"};
    tm_lab_runner *r = c->r;
    tm_names own = {0};
    tm_recipe *recipe = NULL;
    char *last = NULL, *before = NULL, *out = NULL, *add = NULL;
    tm_status st;
    TM_GO(stage_folder(c, k - 1, &last));
    if (k > 1)
        TM_GO(stage_folder(c, k - 2, &before));
    st = TM_NO_MEMORY;
    if (!(out = tm_path_join(last, name, r->err)) || !(add = tm_path_join(k > 1 ? before : last, k > 1 ? name : "importances.safetensors", r->err)))
        goto out;
    TM_GO(tm_lab_set(settings, "keep.ewc.importances", out, r->err));
    if (tm_path_exists(out))
        goto out;
    TM_GO(settings_of(c, state, last, &own));
    if (state->adapter)
        TM_GO(tm_lab_set(&own, init_key(c->arm->method), state->adapter, r->err));
    for (size_t i = 0; i < sizeof without / sizeof *without; i++)
        TM_GO(tm_names_add(&own, without[i], r->err));
    TM_GO(tm_sequence_train_recipe(r->file, c->arm, order_of(c) + k - 1, 1, r->overrides, r->override_count, &own, &recipe, r->err));
    const char *older = tm_path_exists(add) ? add : k == 1 ? c->arm->importances : NULL;
    st = r->calls->importances(r->calls->context, recipe, out, older, r->err);
out:
    tm_names_deinit(&own);
    free(last);
    free(before);
    free(out);
    free(add);
    return st;
}

/* What the arm is told of the tasks before the k-th. */
static tm_status look_back(const chain *c, size_t k, const tm_lab_state *state, tm_names *settings)
{
    tm_buf list = {0};
    tm_status st = TM_OK;
    if (c->arm->replay)
        TM_TRY(tm_lab_rehearse(c->r, c->arm, order_of(c), k, settings));
    if (c->arm->ewc)
        TM_TRY(k ? remember(c, k, state, settings) : c->arm->old_importances ? TM_OK : tm_names_add(settings, "keep.ewc.lambda=0", c->r->err));
    if (!c->arm->orthogonal || !k)
        return TM_OK;
    tm_buf_text(&list, "keep.orthogonal.previous=[");
    for (size_t i = 0; i < k && st == TM_OK; i++) {
        char *folder = NULL;
        st = stage_folder(c, i, &folder);
        tm_buf_text(&list, i ? ", " : "");
        tm_json_put_string(&list, folder ? folder : "");
        free(folder);
    }
    tm_buf_char(&list, ']');
    if (st == TM_OK)
        st = tm_buf_check(&list, c->r->err);
    if (st == TM_OK)
        st = tm_names_add(settings, list.data, c->r->err);
    tm_buf_deinit(&list);
    return st;
}

/* The k-th task of the order, from a state that it replaces. */
static tm_status run_stage(const chain *c, size_t k, tm_lab_state *state)
{
    tm_names settings = {0};
    tm_lab_state next = {0};
    char *folder = NULL;
    int32_t task = order_of(c)[k];
    tm_status st = stage_folder(c, k, &folder);
    if (st == TM_OK && k && c->arm->between == TM_BETWEEN_MERGE)
        st = tm_lab_merge(c->r, state);
    if (st == TM_OK)
        st = settings_of(c, state, folder, &settings);
    if (st == TM_OK)
        st = look_back(c, k, state, &settings);
    if (st == TM_OK)
        st = train(c, state, &task, 1, folder, &settings, &next);
    if (st == TM_OK) {
        tm_lab_state_deinit(state);
        *state = next;
        st = measure(c, state, folder, k + 1);
    }
    tm_names_deinit(&settings);
    free(folder);
    return st;
}

/* All tasks' data at once. */
static tm_status run_joint(const chain *c, tm_lab_state *state)
{
    tm_names settings = {0};
    tm_lab_state next = {0};
    char *folder = NULL;
    int32_t all[TM_LAB_MOST_TASKS];
    for (size_t i = 0; i < tasks_of(c); i++)
        all[i] = (int32_t)i;
    tm_status st = folder_of(c, false, "joint", &folder);
    if (st == TM_OK)
        st = settings_of(c, state, folder, &settings);
    if (st == TM_OK)
        st = train(c, state, all, tasks_of(c), folder, &settings, &next);
    if (st == TM_OK)
        st = measure(c, &next, folder, tasks_of(c));
    tm_lab_state_deinit(&next);
    tm_names_deinit(&settings);
    free(folder);
    return st;
}

/* The module of the k-th task; its scores go into the rows from then on. */
static tm_status run_module(const chain *c, size_t k, const tm_lab_state *start, tm_lab_state *module)
{
    size_t T = tasks_of(c), probes = (size_t)c->r->file->probe_name.count;
    tm_names settings = {0};
    char *folder = NULL;
    int32_t task = order_of(c)[k];
    double values[TM_LAB_MOST_TASKS], *r = c->out->r;
    tm_status st = stage_folder(c, k, &folder);
    if (st == TM_OK)
        st = settings_of(c, start, folder, &settings);
    if (st == TM_OK)
        st = train(c, start, &task, 1, folder, &settings, module);
    if (st == TM_OK)
        st = tm_lab_evaluate(c->r, module, sets_of(c), folder, values);
    for (size_t j = 0; st == TM_OK && j < T; j++)
        r[(k + 1) * T + j] = j == k ? values[task] : r[k * T + j];
    memcpy(c->out->probe + (k + 1) * probes, c->out->probe, probes * sizeof *c->out->probe);
    tm_names_deinit(&settings);
    free(folder);
    return st;
}

/* The same at the end without task ids, by the order's places. */
static tm_status route(const chain *c, const tm_lab_state *modules)
{
    size_t T = tasks_of(c);
    const int32_t *order = order_of(c);
    double scores[TM_LAB_MOST_TASKS];
    int64_t *confusion = NULL;
    char *folder = NULL;
    tm_status st;
    TM_GO(TM_NEW(&confusion, T * T, c->r->err));
    TM_GO(TM_NEW(&c->out->routed, T, c->r->err));
    TM_GO(TM_NEW(&c->out->confusion, T * T, c->r->err));
    TM_GO(folder_of(c, false, NULL, &folder));
    TM_GO(tm_lab_route(c->r, modules, folder, scores, confusion));
    for (size_t i = 0; i < T; i++) {
        c->out->routed[i] = scores[order[i]];
        for (size_t j = 0; j < T; j++)
            c->out->confusion[i * T + j] = confusion[(size_t)order[i] * T + (size_t)order[j]];
    }
out:
    free(confusion);
    free(folder);
    return st;
}

/* A module a task, each from the start model; by task id: a task that was learned is answered by its own module. */
static tm_status run_separate(const chain *c, const tm_lab_state *start)
{
    tm_lab_state modules[TM_LAB_MOST_TASKS] = {0}; /* by the file's tasks */
    tm_status st = TM_OK;
    for (size_t k = 0; k < tasks_of(c) && st == TM_OK; k++)
        st = run_module(c, k, start, &modules[order_of(c)[k]]);
    if (st == TM_OK && !c->select)
        st = route(c, modules);
    for (size_t k = 0; k < tasks_of(c); k++)
        tm_lab_state_deinit(&modules[k]);
    return st;
}

static void rises_of(const chain *c, bool *rises)
{
    for (size_t j = 0; j < tasks_of(c); j++) {
        const tm_lab_task *t = &c->r->file->task[order_of(c)[j]];
        rises[j] = tm_metrics[c->select ? t->valid_metric : t->metric].rises;
    }
}

static void measure_chain(const chain *c)
{
    const tm_sequence_file *f = c->r->file;
    bool rises[TM_LAB_MOST_TASKS];
    double first[TM_LAB_MOST_TASKS], last[TM_LAB_MOST_TASKS];
    size_t n = 0, probes = (size_t)f->probe_name.count;
    rises_of(c, rises);
    tm_sequence_metrics_of(c->out->r, f->tasks, rises, &c->out->metrics);
    for (size_t i = 0; i < probes && !c->select; i++) {
        if (f->probe_metric[i] == TM_METRIC_KL)
            continue;
        first[n] = c->out->probe[i];
        last[n] = c->out->probe[f->tasks * probes + i];
        rises[n++] = tm_metrics[f->probe_metric[i]].rises;
    }
    c->out->metrics.held = tm_sequence_held(first, last, rises, n);
}

static tm_status run_chain(const chain *c)
{
    size_t T = tasks_of(c), probes = (size_t)c->r->file->probe_name.count;
    tm_lab_state state = {0};
    *c->out = (tm_lab_chain){.order = c->order, .seed = c->seed};
    tm_status st = TM_NEW(&c->out->r, (T + 1) * T, c->r->err);
    if (st == TM_OK)
        st = TM_NEW(&c->out->probe, (T + 1) * probes, c->r->err);
    for (size_t i = 0; st == TM_OK && i < (T + 1) * (T + probes); i++)
        *(i < (T + 1) * T ? &c->out->r[i] : &c->out->probe[i - (T + 1) * T]) = NAN;
    if (st == TM_OK)
        st = measure_start(c, &state, 0);
    if (st == TM_OK && c->arm->kind == TM_ARM_JOINT)
        st = run_joint(c, &state);
    bool separate = c->arm->kind == TM_ARM_SEQUENCE && c->arm->between == TM_BETWEEN_SEPARATE;
    if (st == TM_OK && separate)
        st = run_separate(c, &state);
    for (size_t k = 0; st == TM_OK && k < T && c->arm->kind != TM_ARM_JOINT && !separate; k++) {
        if (c->arm->kind == TM_ARM_SEQUENCE)
            st = run_stage(c, k, &state);
        else {
            memcpy(c->out->r + (k + 1) * T, c->out->r, T * sizeof *c->out->r);
            memcpy(c->out->probe + (k + 1) * probes, c->out->probe, probes * sizeof *c->out->probe);
        }
    }
    tm_lab_state_deinit(&state);
    if (st == TM_OK)
        measure_chain(c);
    return st;
}

/* --- Arms --- */

static size_t orders_of(const tm_sequence_file *f, const tm_lab_arm *arm, bool select) { return arm->kind == TM_ARM_SEQUENCE && !select ? f->orders : 1; }
static size_t seeds_of(const tm_sequence_file *f, const tm_lab_arm *arm) { return arm->kind == TM_ARM_FROZEN ? 1 : f->seeds; }

static size_t trainings_of(const tm_sequence_file *f, const tm_lab_arm *arm)
{
    size_t a_chain = arm->kind == TM_ARM_SEQUENCE ? f->tasks : arm->kind == TM_ARM_JOINT, tried = arm->grid.count ? tm_grid_count(&arm->grid) * f->select_seeds : 0;
    return a_chain * (tried + orders_of(f, arm, false) * seeds_of(f, arm));
}

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

static void chain_deinit(tm_lab_chain *c)
{
    free(c->r);
    free(c->probe);
    free(c->routed);
    free(c->confusion);
}

/* Every configuration on the validation sets in the first order; the best by merit is chosen, the first of equals. */
static tm_status choose(tm_lab_runner *r, const tm_lab_arm *arm, tm_lab_arm_result *out)
{
    const tm_sequence_file *f = r->file;
    double best = -INFINITY;
    if (!arm->grid.count)
        return TM_OK;
    TM_TRY(TM_NEW(&out->config, tm_grid_count(&arm->grid), r->err));
    for (; out->configs < tm_grid_count(&arm->grid);) {
        tm_lab_config *config = &out->config[out->configs++];
        double *sums = (double *)&config->metrics, sum = 0;
        TM_TRY(tm_grid_settings(&arm->grid, out->configs - 1, &config->settings, r->err));
        for (size_t s = 0; s < f->select_seeds; s++) {
            tm_lab_chain done;
            chain c = {.r = r, .arm = arm, .config = out->configs - 1, .select = true, .seed = f->select_seed[s], .out = &done};
            tm_status st = run_chain(&c);
            for (int m = 0; st == TM_OK && m < TM_SEQUENCE_METRIC_COUNT; m++)
                sums[m] += ((double *)&done.metrics)[m] / (double)f->select_seeds;
            sum += st == TM_OK ? merit(f, &done) : 0;
            chain_deinit(&done);
            if (st != TM_OK)
                return st;
        }
        if (sum > best) {
            best = sum;
            out->chosen = out->configs - 1;
        }
    }
    return TM_OK;
}

static tm_status run_arm(tm_lab_runner *r, const tm_lab_arm *arm, tm_lab_arm_result *out)
{
    const tm_sequence_file *f = r->file;
    size_t orders = orders_of(f, arm, false), seeds = seeds_of(f, arm);
    TM_TRY(choose(r, arm, out));
    TM_TRY(TM_NEW(&out->chain, orders * seeds, r->err));
    for (size_t o = 0; o < orders; o++)
        for (size_t s = 0; s < seeds; s++) {
            chain c = {.r = r, .arm = arm, .config = out->chosen, .order = o, .seed = f->seed[s], .out = &out->chain[out->chains++]};
            TM_TRY(run_chain(&c));
        }
    return TM_OK;
}

tm_status tm_sequence_run(const tm_sequence_file *f, char *const *overrides, size_t override_count, const char *out, const tm_lab_calls *calls,
                          tm_sequence_result *result, tm_error *err)
{
    tm_error own;
    tm_lab_runner r = {.file = f, .overrides = overrides, .override_count = override_count, .out = out, .calls = calls, .err = err ? err : &own};
    *result = (tm_sequence_result){0};
    TM_TRY(TM_NEW(&result->arm, f->arms, r.err));
    TM_TRY(tm_dir_create(out, r.err));
    for (size_t i = 0; i < f->arms; i++)
        r.total += trainings_of(f, &f->arm[i]);
    for (size_t i = 0; i < f->arms; i++)
        TM_TRY(run_arm(&r, &f->arm[i], &result->arm[i]));
    return TM_OK;
}

void tm_sequence_result_deinit(tm_sequence_result *result, const tm_sequence_file *f)
{
    for (size_t i = 0; result->arm && i < f->arms; i++) {
        tm_lab_arm_result *a = &result->arm[i];
        for (size_t k = 0; k < a->chains; k++)
            chain_deinit(&a->chain[k]);
        for (size_t k = 0; k < a->configs; k++)
            tm_names_deinit(&a->config[k].settings);
        free(a->chain);
        free(a->config);
    }
    free(result->arm);
    *result = (tm_sequence_result){0};
}
