/* One chain of a sequence: see chain.h. Folders: OUT/ARM/order-1/seed-1/1-TASK (of a joint arm OUT/ARM/seed-1/joint, of
 * separate modules OUT/ARM/seed-1/TASK: the order is nothing to them), and while a configuration is chosen
 * OUT/ARM/select-1/... in place of OUT/ARM/... */
#include "lab/chain.h"

#include "base/file.h"
#include "base/json.h"
#include "train/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool tm_lab_is_separate(const tm_lab_arm *arm) { return arm->kind == TM_ARM_SEQUENCE && arm->between == TM_BETWEEN_SEPARATE; }

size_t tm_lab_chain_trainings(const tm_sequence_file *f, const tm_lab_arm *arm)
{
    return arm->kind == TM_ARM_SEQUENCE ? f->tasks : arm->kind == TM_ARM_JOINT;
}

static size_t tasks_of(const tm_lab_task_chain *c) { return c->r->file->tasks; }
static const int32_t *order_of(const tm_lab_task_chain *c) { return c->r->file->order + c->order * tasks_of(c); }
static tm_lab_sets sets_of(const tm_lab_task_chain *c) { return c->select ? TM_SETS_VALID : TM_SETS_TEST; }

tm_status tm_lab_chain_folder(const tm_lab_task_chain *c, bool ordered, const char *last, char **out)
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
static void put_row(const tm_lab_task_chain *c, size_t row, const double *values)
{
    size_t T = tasks_of(c);
    for (size_t j = 0; j < T; j++)
        c->out->r[row * T + j] = values[order_of(c)[j]];
}

/* TM_DIVERGED: a score is not finite, and that of the start model was. */
static tm_status score(const tm_lab_task_chain *c, const tm_lab_state *state, tm_lab_sets sets, const char *folder, size_t count, double *values)
{
    TM_TRY(tm_lab_evaluate(c->r, state, sets, folder, values));
    for (size_t i = 0; i < count; i++)
        if (!isfinite(values[i]) && isfinite(c->r->shared->start[sets][i]))
            return tm_fail(c->r->err, TM_DIVERGED, "a score of the result is %g: training diverged", values[i]);
    return TM_OK;
}

/* Row `row` of R and of the probes: scores of a state. */
static tm_status measure(const tm_lab_task_chain *c, const tm_lab_state *state, const char *folder, size_t row)
{
    double values[TM_LAB_MOST_TASKS];
    size_t probes = (size_t)c->r->file->probe_name.count;
    TM_TRY(score(c, state, sets_of(c), folder, tasks_of(c), values));
    put_row(c, row, values);
    return probes && !c->select ? score(c, state, TM_SETS_PROBES, folder, probes, c->out->probe + row * probes) : TM_OK;
}

/* The row of the model that there still is. */
static void keep_row(const tm_lab_task_chain *c, size_t from, size_t to)
{
    size_t T = tasks_of(c), probes = (size_t)c->r->file->probe_name.count;
    memcpy(c->out->r + to * T, c->out->r + from * T, T * sizeof *c->out->r);
    memcpy(c->out->probe + to * probes, c->out->probe + from * probes, probes * sizeof *c->out->probe);
}

/* --- A training that diverges --- */

bool tm_lab_chain_diverged(const tm_lab_chain *chain, size_t tasks)
{
    for (size_t i = 0; i < tasks; i++)
        if (chain->diverged[i] >= 0)
            return true;
    return false;
}

size_t tm_lab_diverged(const tm_lab_arm_result *arm, size_t tasks)
{
    size_t n = 0;
    for (size_t i = 0; i < arm->chains; i++)
        n += tm_lab_chain_diverged(&arm->chain[i], tasks);
    return n;
}

/* Notes it for tasks [count], those of the training into folder, which the error is about. */
static tm_status note_divergence(const tm_lab_task_chain *c, const int32_t *tasks, size_t count, const char *folder)
{
    tm_lab_runner *r = c->r;
    tm_buf text = {0};
    int64_t step;
    tm_buf_printf(&text, "%s: %s; the chain keeps the model it had", folder, r->err->message);
    tm_status st = tm_buf_check(&text, r->err);
    if (st == TM_OK)
        st = tm_lab_diverged_at(r, folder, &step);
    for (size_t i = 0; st == TM_OK && i < c->orders * count; i++)
        c->out[i / count * c->stride].diverged[tasks[i % count]] = step;
    if (st == TM_OK && r->calls->note && !c->select) /* rates are tried to find out where they are too large */
        r->calls->note(r->calls->context, text.data);
    tm_buf_deinit(&text);
    return st;
}

/* --- One training --- */

tm_status tm_lab_chain_settings(const tm_lab_task_chain *c, const char *model, const char *folder, tm_names *out)
{
    tm_lab_runner *r = c->r;
    char text[64];
    if (c->arm->grid.count)
        TM_TRY(tm_grid_settings(&c->arm->grid, c->config, out, r->err));
    snprintf(text, sizeof text, "train.seed=%llu", (unsigned long long)c->seed);
    TM_TRY(tm_names_add(out, text, r->err));
    if (folder)
        TM_TRY(tm_lab_set(out, "out", folder, r->err));
    return tm_lab_set(out, "model", model, r->err);
}

/* The key under which a method goes on from an adapter. */
static const char *init_key(int method)
{
    return method == TM_METHOD_LORA ? "lora.init" : method == TM_METHOD_BITFIT ? "bitfit.init" : method == TM_METHOD_ADAPTER ? "adapter.init" : "prompt.init";
}

tm_status tm_lab_chain_recipe(const tm_lab_task_chain *c, const int32_t *tasks, size_t count, tm_names *settings, tm_recipe **out)
{
    tm_lab_runner *r = c->r;
    char text[64];
    TM_TRY(tm_sequence_train_recipe(r->file, c->arm, tasks, count, r->overrides, r->override_count, settings, out, r->err));
    if (count < 2 || (*out)->steps <= 0)
        return TM_OK;
    snprintf(text, sizeof text, "train.steps=%lld", (long long)(*out)->steps * (long long)count); /* as many steps as one after another */
    tm_recipe_destroy(*out);
    *out = NULL;
    TM_TRY(tm_names_add(settings, text, r->err));
    return tm_sequence_train_recipe(r->file, c->arm, tasks, count, r->overrides, r->override_count, settings, out, r->err);
}

/* Trains on tasks [count] of the file, from a state, into folder. */
static tm_status train(const tm_lab_task_chain *c, const tm_lab_state *from, const int32_t *tasks, size_t count, const char *folder, tm_names *settings, tm_lab_state *next)
{
    tm_recipe *recipe;
    if (from->adapter)
        TM_TRY(tm_lab_set(settings, init_key(c->arm->method), from->adapter, c->r->err));
    TM_TRY(tm_lab_chain_recipe(c, tasks, count, settings, &recipe));
    return tm_lab_train(c->r, recipe, from, folder, next);
}

/* --- Chains --- */

tm_status tm_lab_stage_folder(const tm_lab_task_chain *c, size_t k, char **out)
{
    char name[96];
    const char *task = c->r->file->task[order_of(c)[k]].name;
    bool separate = tm_lab_is_separate(c->arm);
    if (separate)
        snprintf(name, sizeof name, "%s", task);
    else
        snprintf(name, sizeof name, "%zu-%s", k + 1, task);
    return tm_lab_chain_folder(c, !separate, name, out);
}

/* What `ewc: previous` pulls by: the importances of task k - 1 at the state it left, added to those before it. They lie in
 * that task's run folder; older ones of the arm's own keep.ewc.path were measured by the first run into its folder. */
static tm_status remember(const tm_lab_task_chain *c, size_t k, const tm_lab_state *state, tm_names *settings)
{
    static const char name[] = "importances-next.safetensors";
    static const char *const without[] = {"keep.ewc.path=null", "keep.ewc.importances=null", "keep.replay=null", "keep.generate=null"};
    tm_lab_runner *r = c->r;
    tm_names own = {0};
    tm_recipe *recipe = NULL;
    char *last = NULL, *before = NULL, *out = NULL, *add = NULL;
    tm_status st;
    TM_GO(tm_lab_stage_folder(c, k - 1, &last));
    if (k > 1)
        TM_GO(tm_lab_stage_folder(c, k - 2, &before));
    st = TM_NO_MEMORY;
    if (!(out = tm_path_join(last, name, r->err)) || !(add = tm_path_join(k > 1 ? before : last, k > 1 ? name : "importances.safetensors", r->err)))
        goto out;
    TM_GO(tm_lab_set(settings, "keep.ewc.importances", out, r->err));
    if (tm_path_exists(out))
        goto out;
    TM_GO(tm_lab_chain_settings(c, state->model, last, &own));
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
static tm_status look_back(const tm_lab_task_chain *c, size_t k, const tm_lab_state *state, tm_names *settings)
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
        st = tm_lab_stage_folder(c, i, &folder);
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
static tm_status run_stage(const tm_lab_task_chain *c, size_t k, tm_lab_state *state)
{
    tm_names settings = {0};
    tm_lab_state next = {0};
    char *folder = NULL;
    int32_t task = order_of(c)[k];
    tm_status st = tm_lab_stage_folder(c, k, &folder);
    if (st == TM_OK && k && c->arm->between == TM_BETWEEN_MERGE)
        st = tm_lab_merge(c->r, state);
    if (st == TM_OK)
        st = tm_lab_chain_settings(c, state->model, folder, &settings);
    if (st == TM_OK)
        st = look_back(c, k, state, &settings);
    if (st == TM_OK)
        st = train(c, state, &task, 1, folder, &settings, &next);
    if (st == TM_OK) {
        tm_lab_state_deinit(state);
        *state = next;
        st = measure(c, state, folder, k + 1);
    }
    if (st == TM_DIVERGED)
        st = note_divergence(c, &task, 1, folder);
    tm_names_deinit(&settings);
    free(folder);
    return st;
}

/* All tasks' data at once. */
static tm_status run_joint(const tm_lab_task_chain *c, tm_lab_state *state)
{
    tm_names settings = {0};
    tm_lab_state next = {0};
    char *folder = NULL;
    int32_t all[TM_LAB_MOST_TASKS];
    for (size_t i = 0; i < tasks_of(c); i++)
        all[i] = (int32_t)i;
    tm_status st = tm_lab_chain_folder(c, false, "joint", &folder);
    if (st == TM_OK)
        st = tm_lab_chain_settings(c, state->model, folder, &settings);
    if (st == TM_OK)
        st = train(c, state, all, tasks_of(c), folder, &settings, &next);
    if (st == TM_OK)
        st = measure(c, &next, folder, tasks_of(c));
    if (st == TM_DIVERGED) {
        st = note_divergence(c, all, tasks_of(c), folder);
        keep_row(c, 0, tasks_of(c));
    }
    tm_lab_state_deinit(&next);
    tm_names_deinit(&settings);
    free(folder);
    return st;
}

/* What the router is asked: every set of tasks that is known at some time in some order, and what came of each. */
typedef struct routed {
    uint64_t *known; /* [sets] */
    size_t sets;
    double *scores;     /* [sets, T], by the file's tasks, as is what follows */
    int64_t *confusion; /* [sets, T, T] */
} routed;

/* The tasks that are known after the k-th of an order, as bits. */
static uint64_t known_after(const int32_t *order, size_t k)
{
    uint64_t known = 0;
    for (size_t i = 0; i <= k; i++)
        known |= UINT64_C(1) << order[i];
    return known;
}

static size_t set_of(const routed *to, uint64_t known)
{
    size_t s = 0;
    while (s < to->sets && to->known[s] != known)
        s++;
    return s;
}

/* Scores without task ids. */
static tm_status route(const tm_lab_task_chain *c, const tm_lab_state *modules, routed *to)
{
    size_t T = tasks_of(c);
    TM_TRY(TM_NEW(&to->known, c->orders * T, c->r->err));
    for (size_t o = 0; o < c->orders; o++)
        for (size_t k = 0; k < T; k++) {
            uint64_t known = known_after(order_of(c) + o * T, k);
            if (set_of(to, known) == to->sets)
                to->known[to->sets++] = known;
        }
    TM_TRY(TM_NEW(&to->scores, to->sets * T, c->r->err));
    TM_TRY(TM_NEW(&to->confusion, to->sets * T * T, c->r->err));
    return tm_lab_route(c->r, modules, to->known, to->sets, to->scores, to->confusion);
}

static void routed_deinit(routed *to)
{
    free(to->known);
    free(to->scores);
    free(to->confusion);
}

/* The chain of one order, from scores [T, T] of every module (rows) on every test, and those of the router. */
static tm_status put_modules(const tm_lab_task_chain *c, const double *module, const routed *from)
{
    size_t T = tasks_of(c), probes = (size_t)c->r->file->probe_name.count;
    const int32_t *order = order_of(c);
    double *r = c->out->r;
    for (size_t k = 0; k < T; k++) {
        for (size_t j = 0; j < T; j++)
            r[(k + 1) * T + j] = j == k ? module[(size_t)order[k] * T + (size_t)order[k]] : r[k * T + j];
        memcpy(c->out->probe + (k + 1) * probes, c->out->probe, probes * sizeof *c->out->probe);
    }
    if (c->select)
        return TM_OK;
    TM_TRY(TM_NEW(&c->out->routed, T * T, c->r->err));
    TM_TRY(TM_NEW(&c->out->confusion, T * T, c->r->err));
    for (size_t k = 0; k < T; k++) {
        size_t s = set_of(from, known_after(order, k));
        for (size_t j = 0; j < T; j++) {
            c->out->routed[k * T + j] = from->scores[s * T + (size_t)order[j]];
            if (k + 1 == T)
                for (size_t i = 0; i < T; i++)
                    c->out->confusion[i * T + j] = from->confusion[(s * T + (size_t)order[i]) * T + (size_t)order[j]];
        }
    }
    return TM_OK;
}

static tm_lab_task_chain in_order(const tm_lab_task_chain *c, size_t i)
{
    tm_lab_task_chain one = *c;
    one.order += i;
    one.out += i * c->stride;
    return one;
}

/* A module a task, each from the start model; by task id: a task that was learned is answered by its own module. */
static tm_status run_separate(const tm_lab_task_chain *c, const tm_lab_state *start)
{
    size_t T = tasks_of(c);
    tm_lab_state modules[TM_LAB_MOST_TASKS] = {0}; /* by the file's tasks, as is all here */
    double *scores = NULL;
    routed by_prompt = {0};
    tm_status st;
    TM_GO(TM_NEW(&scores, T * T, c->r->err));
    for (size_t k = 0; k < T; k++) {
        tm_names settings = {0};
        char *folder = NULL;
        int32_t task = order_of(c)[k];
        st = tm_lab_stage_folder(c, k, &folder);
        if (st == TM_OK)
            st = tm_lab_chain_settings(c, start->model, folder, &settings);
        if (st == TM_OK)
            st = train(c, start, &task, 1, folder, &settings, &modules[task]);
        if (st == TM_OK)
            st = score(c, &modules[task], sets_of(c), folder, T, scores + (size_t)task * T);
        if (st == TM_DIVERGED) { /* the start model is its module */
            st = note_divergence(c, &task, 1, folder);
            memcpy(scores + (size_t)task * T, c->r->shared->start[sets_of(c)], T * sizeof *scores);
            tm_lab_state_deinit(&modules[task]);
            if (st == TM_OK && !(modules[task].model = tm_strdup(start->model, c->r->err)))
                st = TM_NO_MEMORY;
        }
        tm_names_deinit(&settings);
        free(folder);
        TM_GO(st);
    }
    if (!c->select)
        TM_GO(route(c, modules, &by_prompt));
    for (size_t i = 0; i < c->orders; i++) {
        tm_lab_task_chain one = in_order(c, i);
        TM_GO(put_modules(&one, scores, &by_prompt));
    }
out:
    for (size_t k = 0; k < T; k++)
        tm_lab_state_deinit(&modules[k]);
    free(scores);
    routed_deinit(&by_prompt);
    return st;
}

static void rises_of(const tm_lab_task_chain *c, bool *rises)
{
    for (size_t j = 0; j < tasks_of(c); j++) {
        const tm_lab_task *t = &c->r->file->task[order_of(c)[j]];
        rises[j] = tm_metrics[c->select ? t->valid_metric : t->metric].rises;
    }
}

static void measure_chain(const tm_lab_task_chain *c)
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

/* Chains without figures but those of the start model. */
static tm_status begin(const tm_lab_task_chain *c)
{
    size_t T = tasks_of(c), probes = (size_t)c->r->file->probe_name.count;
    *c->out = (tm_lab_chain){.order = c->order, .seed = c->seed};
    TM_TRY(TM_NEW(&c->out->r, (T + 1) * T, c->r->err));
    TM_TRY(TM_NEW(&c->out->probe, (T + 1) * probes, c->r->err));
    TM_TRY(TM_NEW(&c->out->diverged, T, c->r->err));
    for (size_t i = 0; i < T; i++)
        c->out->diverged[i] = -1;
    for (size_t i = 0; i < (T + 1) * (T + probes); i++)
        *(i < (T + 1) * T ? &c->out->r[i] : &c->out->probe[i - (T + 1) * T]) = NAN;
    put_row(c, 0, c->r->shared->start[sets_of(c)]);
    if (!c->select)
        memcpy(c->out->probe, c->r->shared->start[TM_SETS_PROBES], probes * sizeof *c->out->probe);
    return TM_OK;
}

static tm_status make(const tm_lab_task_chain *c)
{
    tm_lab_state state = {.model = tm_strdup(c->r->file->model, c->r->err)};
    tm_status st = state.model ? TM_OK : TM_NO_MEMORY;
    if (st == TM_OK && c->arm->kind == TM_ARM_JOINT)
        st = run_joint(c, &state);
    else if (st == TM_OK && tm_lab_is_separate(c->arm))
        st = run_separate(c, &state);
    else
        for (size_t k = 0; st == TM_OK && k < tasks_of(c); k++) {
            bool learns = c->arm->kind == TM_ARM_SEQUENCE && !tm_lab_chain_diverged(c->out, tasks_of(c));
            if (learns)
                st = run_stage(c, k, &state);
            if (!learns || tm_lab_chain_diverged(c->out, tasks_of(c)))
                keep_row(c, k, k + 1);
        }
    tm_lab_state_deinit(&state);
    return st;
}

static tm_status begin_all(const tm_lab_task_chain *c)
{
    tm_status st = TM_OK;
    for (size_t i = 0; i < c->orders && st == TM_OK; i++) {
        tm_lab_task_chain one = in_order(c, i);
        tm_lab_chain_deinit(one.out);
        st = begin(&one);
    }
    return st;
}

tm_status tm_lab_chain_run(const tm_lab_task_chain *c)
{
    bool trains = c->arm->kind != TM_ARM_FROZEN, there = false;
    tm_sha256 key;
    TM_TRY(begin_all(c));
    if (trains) {
        TM_TRY(tm_lab_chain_key(c, &key));
        TM_TRY(tm_lab_chain_read(c, &key, &there));
    }
    if (!there) {
        TM_TRY(begin_all(c)); /* a file that is not whole may have left something */
        TM_TRY(make(c));
        TM_TRY(trains ? tm_lab_chain_write(c, &key) : TM_OK);
    }
    tm_lab_advance(c->r, tm_lab_chain_trainings(c->r->file, c->arm) - c->r->trained); /* what was there, and what a chain that diverged leaves out */
    for (size_t i = 0; i < c->orders; i++) {
        tm_lab_task_chain one = in_order(c, i);
        measure_chain(&one);
    }
    return trains ? tm_lab_chain_release(c) : TM_OK;
}

void tm_lab_chain_deinit(tm_lab_chain *c)
{
    free(c->r);
    free(c->probe);
    free(c->diverged);
    free(c->routed);
    free(c->confusion);
}
