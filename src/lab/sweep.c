/* Sweeps: see sweep.h. A run's folder is named by its settings, so that a sweep with more values finds the runs of the
 * one before. */
#include "lab/sweep.h"

#include "base/file.h"
#include "base/json.h"
#include "lab/jobs.h"
#include "lab/stage.h"
#include "train/score.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- Arguments --- */

/* Bytes up to the next comma that is not within brackets or quotes. */
static size_t value_size(const char *text)
{
    size_t n = 0;
    int depth = 0;
    char quote = 0;
    for (; text[n] && (text[n] != ',' || depth || quote); n++) {
        char c = text[n];
        if (quote)
            quote = c == quote ? 0 : quote;
        else if ((c == '"' || c == '\'') && (!n || depth)) /* in a plain word it is an apostrophe */
            quote = c;
        else if (c == '[' || c == '{')
            depth++;
        else if ((c == ']' || c == '}') && depth)
            depth--;
    }
    return n;
}

static tm_status add_values(tm_sweep *s, const char *argument, const char *equal, tm_error *err)
{
    char key[200], value[256];
    snprintf(key, sizeof key, "%.*s", (int)(equal - argument < 199 ? equal - argument : 199), argument);
    for (const char *at = equal + 1;; at++) {
        size_t n = value_size(at);
        if (!n || n >= sizeof value)
            return tm_fail(err, TM_USAGE, "%s: expected values of 1 to 255 characters between the commas", argument);
        memcpy(value, at, n);
        value[n] = 0;
        TM_TRY(tm_grid_add(&s->grid, key, value, err));
        at += n;
        if (!*at)
            return TM_OK;
    }
}

tm_status tm_sweep_arguments(tm_sweep *s, char *const *arguments, size_t count, tm_error *err)
{
    for (size_t i = 0; i < count; i++) {
        const char *equal = strchr(arguments[i], '=');
        if (strncmp(arguments[i], "out=", 4) == 0) { /* of the sweep: a run's own lies in it */
            s->out = equal + 1;
            continue;
        }
        bool many = equal && equal[1] && equal[1 + value_size(equal + 1)];
        TM_TRY(many ? add_values(s, arguments[i], equal, err) : tm_names_add(&s->fixed, arguments[i], err));
    }
    if (!s->grid.count)
        return tm_fail(err, TM_USAGE, "nothing to sweep: give some key several values, as train.lr=1e-3,3e-3 (lists: lora.target_modules=[q_proj],[q_proj,v_proj])");
    if (tm_grid_count(&s->grid) > TM_LAB_MOST_CONFIGS)
        return tm_fail(err, TM_USAGE, "more than %d combinations", TM_LAB_MOST_CONFIGS);
    return TM_OK;
}

void tm_sweep_deinit(tm_sweep *s)
{
    tm_names_deinit(&s->fixed);
    tm_grid_deinit(&s->grid);
}

/* --- Runs --- */

typedef struct sweep_run {
    tm_names settings;
    char *folder;
    char status[32];
    double first, last;
} sweep_run;

typedef struct sweeper {
    const tm_sweep *s;
    sweep_run *run;
    size_t count;
    const tm_lab_calls *calls;
    pthread_mutex_t mutex; /* of what follows */
    size_t done;
    char *eval; /* the evaluation that decided */
    int metric;
    tm_error *err;
} sweeper;

/* "lr-1e-3,lambda-3": the last words of the keys and the values; what is no good in a name becomes _. */
static tm_status name_run(const sweeper *w, sweep_run *run, size_t index)
{
    tm_buf name = {0};
    tm_buf_printf(&name, "%s/", w->s->out);
    size_t begin = name.size;
    for (int64_t i = 0; i < run->settings.count; i++) {
        const char *text = run->settings.item[i], *equal = strchr(text, '='), *dot = memrchr(text, '.', (size_t)(equal - text));
        tm_buf_printf(&name, "%s%.*s-%s", i ? "," : "", (int)(equal - (dot ? dot + 1 : text)), dot ? dot + 1 : text, equal + 1);
    }
    TM_TRY(tm_buf_check(&name, w->err));
    for (char *c = name.data + begin; *c; c++)
        if (!isalnum((unsigned char)*c) && !strchr(".,+-_", *c))
            *c = '_';
    if (name.size - begin > 200) {
        name.size = begin + 200;
        name.data[name.size] = 0;
    }
    for (size_t i = 0; i < index; i++)
        if (strcmp(w->run[i].folder, name.data) == 0) { /* _ stands for several characters, or it was cut */
            tm_buf_printf(&name, "~%zu", index + 1);
            break;
        }
    TM_TRY(tm_buf_check(&name, w->err));
    run->folder = name.data;
    return TM_OK;
}

static tm_status load_recipe(const sweeper *w, const sweep_run *run, tm_recipe **out, tm_error *err)
{
    tm_names all = {0};
    tm_status st = TM_OK;
    for (int64_t i = 0; i < w->s->fixed.count; i++)
        TM_GO(tm_names_add(&all, w->s->fixed.item[i], err));
    for (int64_t i = 0; i < run->settings.count; i++)
        TM_GO(tm_names_add(&all, run->settings.item[i], err));
    TM_GO(tm_lab_set(&all, "out", run->folder, err));
    st = tm_recipe_load(w->s->recipe, all.item, (size_t)all.count, out, err);
out:
    tm_names_deinit(&all);
    return st;
}

/* Whether the recipe has the evaluation to choose by. */
static tm_status check_evaluation(const sweeper *w, const tm_recipe *recipe)
{
    const char *name = w->s->metric;
    bool val = false, found = false;
    for (int64_t i = 0; i < recipe->data_count; i++)
        val |= recipe->data[i].val_split > 0;
    if (!name)
        return recipe->eval_count || val ? TM_OK : tm_fail(w->err, TM_RECIPE, "the recipe has no evaluation to choose by: add eval, or val_split to data");
    tm_buf all = {0};
    for (int64_t i = 0; i < recipe->eval_count + recipe->probe_count + val; i++) {
        int64_t probe = i - recipe->eval_count;
        const char *here = probe < 0 ? recipe->eval[i].name : probe < recipe->probe_count ? recipe->probes[probe].name : "val";
        found |= strcmp(here, name) == 0;
        tm_buf_printf(&all, "%s%s", i ? ", " : "", here);
    }
    tm_status st = found ? TM_OK : tm_fail(w->err, TM_USAGE, "--metric: there is no evaluation %s; expected one of: %s", name, all.size ? tm_buf_str(&all) : "(the recipe has none)");
    tm_buf_deinit(&all);
    return st;
}

/* Every recipe is loaded before the first run. */
static tm_status prepare(sweeper *w)
{
    size_t count = tm_grid_count(&w->s->grid);
    TM_TRY(TM_NEW(&w->run, count, w->err));
    for (; w->count < count;) {
        sweep_run *run = &w->run[w->count++];
        tm_recipe *recipe = NULL;
        TM_TRY(tm_grid_settings(&w->s->grid, w->count - 1, &run->settings, w->err));
        TM_TRY(name_run(w, run, w->count - 1));
        TM_TRY(load_recipe(w, run, &recipe, w->err));
        tm_status st = check_evaluation(w, recipe);
        tm_recipe_destroy(recipe);
        TM_TRY(st);
    }
    return TM_OK;
}

/* How many at a time: by the first of them, up to so many as are looked at. */
static tm_status spread(const sweeper *w, tm_lab_spread *out)
{
    enum { LOOKED_AT = 16 };
    tm_recipe *recipe[LOOKED_AT];
    size_t count = 0;
    *out = (tm_lab_spread){.jobs = 1};
    if (!w->calls->spread)
        return TM_OK;
    for (; count < w->count && count < LOOKED_AT; count++) {
        tm_status st = load_recipe(w, &w->run[count], &recipe[count], w->err);
        if (st == TM_OK)
            continue;
        while (count)
            tm_recipe_destroy(recipe[--count]);
        return st;
    }
    return w->calls->spread(w->calls->context, recipe, count, w->count, out, w->err);
}

static bool is(const sweep_run *run, const char *status) { return strcmp(run->status, status) == 0; }

/* What run.json says of the evaluation that decides. Of a run that diverged the last value is none; one whose last value is none though there was a first
 * has diverged too, in its last step. */
static tm_status read_run(sweeper *w, sweep_run *run, bool diverged, tm_error *err)
{
    json_t *json = NULL;
    char *path = tm_path_join(run->folder, "run.json", err);
    if (path && diverged && !tm_path_exists(path)) { /* before its first step: in what is measured for it */
        *run = (sweep_run){.settings = run->settings, .folder = run->folder, .status = "diverged", .first = NAN, .last = NAN};
        free(path);
        return TM_OK;
    }
    tm_status st = path ? tm_json_read(path, &json, err) : TM_NO_MEMORY;
    const json_t *evals = json_object_get(json, "evals"), *found = NULL;
    const char *status = json_string_value(json_object_get(json, "status"));
    for (size_t i = 0; st == TM_OK && !found && i < json_array_size(evals); i++) {
        const json_t *e = json_array_get(evals, i);
        const char *name = json_string_value(json_object_get(e, "name"));
        if (name && (w->s->metric ? strcmp(name, w->s->metric) == 0 : !json_is_true(json_object_get(e, "probe"))))
            found = e;
    }
    if (st == TM_OK && !found)
        st = tm_fail(err, TM_USAGE, "%s: there is no evaluation %s in this run", path, w->s->metric ? w->s->metric : "");
    if (st == TM_OK) {
        const char *metric = json_string_value(json_object_get(found, "metric"));
        w->metric = metric ? tm_metric_named(metric, strlen(metric)) : -1;
        if (w->metric < 0)
            st = tm_fail(err, TM_INPUT, "%s: evals: unknown metric", path);
    }
    if (st == TM_OK && !w->eval && !(w->eval = tm_strdup(json_string_value(json_object_get(found, "name")), err)))
        st = TM_NO_MEMORY;
    if (st == TM_OK) {
        const json_t *first = json_object_get(found, "first"), *last = json_object_get(found, "last");
        run->first = json_is_number(first) ? json_number_value(first) : NAN;
        run->last = json_is_number(last) ? json_number_value(last) : NAN;
        snprintf(run->status, sizeof run->status, "%s", isnan(run->last) && !isnan(run->first) ? "diverged" : status ? status : "");
        run->last = is(run, "diverged") ? NAN : run->last;
    }
    json_decref(json);
    free(path);
    return st;
}

static tm_status train_run(void *context, size_t i, tm_error *err)
{
    sweeper *w = context;
    tm_recipe *recipe;
    TM_TRY(load_recipe(w, &w->run[i], &recipe, err));
    tm_status st = w->calls->train(w->calls->context, recipe, err);
    if (st != TM_OK && st != TM_DIVERGED) /* that is what came of these settings */
        return err->status == st ? tm_fail_prefix(err, st, "%s", w->run[i].folder) : st;
    pthread_mutex_lock(&w->mutex);
    st = read_run(w, &w->run[i], st == TM_DIVERGED, err);
    w->done++;
    if (st == TM_OK && w->calls->progress)
        w->calls->progress(w->calls->context, w->done, w->count);
    pthread_mutex_unlock(&w->mutex);
    return st;
}

/* --- Results --- */

static int better_first(const void *a, const void *b, void *context)
{
    const sweeper *w = context;
    const sweep_run *x = *(const sweep_run *const *)a, *y = *(const sweep_run *const *)b;
    double sign = tm_metrics[w->metric].rises ? -1 : 1, u = sign * x->last, v = sign * y->last;
    if (isnan(u) || isnan(v))
        return isnan(u) != isnan(v) ? (isnan(u) ? 1 : -1) : (x > y) - (x < y);
    return u != v ? (u > v) - (u < v) : (x > y) - (x < y);
}

static void put_json(const sweeper *w, const sweep_run *const *order, tm_buf *out)
{
    tm_buf_text(out, "{\n \"eval\": ");
    tm_json_put_string(out, w->eval);
    tm_buf_printf(out, ",\n \"metric\": \"%s\",\n \"better\": \"%s\",\n \"best\": ", tm_metrics[w->metric].name, tm_metrics[w->metric].rises ? "higher" : "lower");
    tm_json_put_string(out, order[0]->folder);
    tm_buf_text(out, ",\n \"runs\": [");
    for (size_t i = 0; i < w->count; i++) {
        tm_buf_printf(out, "%s\n  {\"folder\": ", i ? "," : "");
        tm_json_put_string(out, order[i]->folder);
        tm_buf_text(out, ", \"settings\": [");
        for (int64_t k = 0; k < order[i]->settings.count; k++) {
            tm_buf_text(out, k ? ", " : "");
            tm_json_put_string(out, order[i]->settings.item[k]);
        }
        tm_buf_printf(out, "], \"status\": \"%s\", \"first\": ", order[i]->status);
        tm_json_put_number(out, order[i]->first);
        tm_buf_text(out, ", \"last\": ");
        tm_json_put_number(out, order[i]->last);
        tm_buf_char(out, '}');
    }
    tm_buf_text(out, "]\n}\n");
}

static void put_table(const sweeper *w, const sweep_run *const *order, tm_buf *out)
{
    const tm_lab_grid *g = &w->s->grid;
    int width[64];
    for (size_t k = 0; k < g->count && k < 64; k++) {
        width[k] = (int)strlen(g->keys[k].key);
        for (int64_t i = 0; i < g->keys[k].values.count; i++)
            width[k] = (int)strlen(g->keys[k].values.item[i]) > width[k] ? (int)strlen(g->keys[k].values.item[i]) : width[k];
        tm_buf_printf(out, "%-*s  ", width[k], g->keys[k].key);
    }
    tm_buf_printf(out, "%s %s  %10s\n", w->eval, tm_metrics[w->metric].name, "at start");
    int value = (int)(strlen(w->eval) + 1 + strlen(tm_metrics[w->metric].name));
    for (size_t i = 0; i < w->count; i++) {
        for (size_t k = 0; k < g->count && k < 64; k++)
            tm_buf_printf(out, "%-*s  ", width[k], strchr(order[i]->settings.item[k], '=') + 1);
        if (is(order[i], "diverged"))
            tm_buf_printf(out, "%*s", value, "-");
        else
            tm_buf_printf(out, "%*.5g", value, order[i]->last);
        tm_buf_printf(out, "  %10.5g  %s%s%s\n", order[i]->first, is(order[i], "done") ? "" : order[i]->status, i || is(order[i], "done") ? "" : ", ", i ? "" : "best");
    }
    tm_buf_printf(out, "%s\n", order[0]->folder);
}

tm_status tm_sweep_run(const tm_sweep *s, const tm_lab_calls *calls, tm_buf *json, tm_buf *table, tm_error *err)
{
    tm_error own;
    err = err ? err : &own;
    sweeper w = {.s = s, .calls = calls, .err = err};
    const sweep_run **order = NULL;
    tm_lab_spread how;
    char *path = NULL;
    tm_status st;
    pthread_mutex_init(&w.mutex, NULL);
    TM_GO(prepare(&w));
    TM_GO(tm_dir_create(s->out, err));
    TM_GO(spread(&w, &how));
    TM_GO(tm_lab_jobs_run(calls, how.jobs, w.count, train_run, &w, err));
    TM_GO(TM_NEW(&order, w.count, err));
    for (size_t i = 0; i < w.count; i++)
        order[i] = &w.run[i];
    qsort_r(order, w.count, sizeof *order, better_first, &w);
    if (is(order[0], "diverged"))
        TM_GO(tm_fail(err, TM_DIVERGED, "%s: training diverged with all of these settings; try a lower train.lr, or warm-up", s->out));
    put_json(&w, order, json);
    put_table(&w, order, table);
    TM_GO(tm_buf_check(json, err));
    TM_GO(tm_buf_check(table, err));
    st = TM_NO_MEMORY;
    if (!(path = tm_path_join(s->out, "sweep.json", err)))
        goto out;
    st = tm_file_write(path, json->data, json->size, err);
out:
    pthread_mutex_destroy(&w.mutex);
    for (size_t i = 0; i < w.count; i++) {
        tm_names_deinit(&w.run[i].settings);
        free(w.run[i].folder);
    }
    free(w.run);
    free(w.eval);
    free(order);
    free(path);
    return st;
}
