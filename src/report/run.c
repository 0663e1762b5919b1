/* Reads a run folder that may be half there: see run.h and report.h. A missing file, a torn last row
 * and a damaged row become notes on the page; only memory and a folder that is no run stop it. */
#include "report/run.h"

#include "base/file.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RUN_BYTES = 1 << 30 }; /* a row file beyond this is no run of ours */

static const struct {
    const char *name;
    bool smaller;
} METRICS[RUN_METRIC_COUNT] = {
#define X(metric, smaller) {#metric, smaller},
    RUN_METRIC_TABLE(X)
#undef X
};

bool run_metric_smaller_is_better(run_metric metric) { return METRICS[metric].smaller; }

const char *run_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

double run_number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

double run_eval_budget(const run_eval *eval) { return eval->metric == RUN_kl ? eval->max : eval->max_drop; }

double run_eval_worsening(const run_eval *eval, double value)
{
    if (eval->metric == RUN_kl)
        return value;
    double change = METRICS[eval->metric].smaller ? value - eval->first : eval->first - value;
    return eval->first > 0 ? change / eval->first : NAN;
}

static tm_status note(run_data *run, tm_error *err, const char *fmt, ...) TM_PRINTF(3, 4);
static tm_status note(run_data *run, tm_error *err, const char *fmt, ...)
{
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return tm_names_add(&run->notes, text, err);
}

static tm_status eval_named(run_data *run, const char *name, run_eval **out, tm_error *err)
{
    for (size_t i = 0; i < run->eval_count; i++)
        if (!strcmp(run->evals[i].name, name)) {
            *out = &run->evals[i];
            return TM_OK;
        }
    TM_TRY(TM_GROW(&run->evals, &run->eval_capacity, run->eval_count + 1, err));
    char *copy = tm_strdup(name, err);
    if (!copy)
        return TM_NO_MEMORY;
    run->evals[run->eval_count] =
        (run_eval){.name = copy, .max_drop = NAN, .max = NAN, .first = NAN, .last = NAN, .best = NAN};
    *out = &run->evals[run->eval_count++];
    return TM_OK;
}

static run_metric metric_named(const char *name)
{
    for (int i = 0; i < RUN_METRIC_COUNT; i++)
        if (!strcmp(METRICS[i].name, strcmp(name, "choice") ? name : "acc"))
            return (run_metric)i;
    return RUN_loss;
}

/* The evaluations that run.json declares, in its order: they head the page even before their first
 * row. */
static tm_status read_evals(run_data *run, tm_error *err)
{
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(run->json, "evals"), i, entry) {
        run_eval *eval;
        if (!*run_text(entry, "name"))
            continue;
        TM_TRY(eval_named(run, run_text(entry, "name"), &eval, err));
        eval->metric = metric_named(run_text(entry, "metric"));
        eval->probe = json_is_true(json_object_get(entry, "probe"));
        eval->max_drop = run_number(entry, "max_drop");
        eval->max = run_number(entry, "max");
        eval->first = run_number(entry, "first");
        eval->last = run_number(entry, "last");
        eval->best = run_number(entry, "best");
    }
    return TM_OK;
}

static tm_status read_metrics_row(run_data *run, const json_t *json, tm_error *err)
{
    const json_t *evals = json_object_get(json, "eval");
    double step = run_number(json, "step");
    const char *name;
    json_t *values;
    json_object_foreach((json_t *)evals, name, values) {
        run_eval *eval;
        TM_TRY(eval_named(run, name, &eval, err));
        TM_TRY(TM_GROW(&eval->rows, &eval->capacity, eval->count + 1, err));
        run_eval_row *row = &eval->rows[eval->count++];
        row->step = step;
        for (int m = 0; m < RUN_METRIC_COUNT; m++)
            row->value[m] = run_number(values, METRICS[m].name);
    }
    if (!evals) {
        TM_TRY(TM_GROW(&run->rows, &run->row_capacity, run->row_count + 1, err));
        run->rows[run->row_count++] =
            (run_row){step, run_number(json, "loss"), run_number(json, "penalty"), run_number(json, "grad_norm"),
                      run_number(json, "lr")};
    }
    return TM_OK;
}

static tm_status read_timing_row(run_data *run, const json_t *json, tm_error *err)
{
    TM_TRY(TM_GROW(&run->timing, &run->timing_capacity, run->timing_count + 1, err));
    run->timing[run->timing_count++] =
        (run_timing){run_number(json, "step"), run_number(json, "tokens_per_s"), run_number(json, "share"), run_number(json, "bytes")};
    return TM_OK;
}

/* Every row of a .jsonl to `take`. A last line without its newline is a row being written: left out
 * silently. */
static tm_status read_rows(const char *path, const char *file, run_data *run,
                           tm_status (*take)(run_data *, const json_t *, tm_error *), tm_error *err)
{
    tm_buf text = {0};
    size_t damaged = 0;
    tm_status st = TM_OK;
    TM_GO(tm_file_read(path, MAX_RUN_BYTES, &text, err));
    const char *at = tm_buf_str(&text), *end = at + text.size, *newline;
    for (; at < end && (newline = memchr(at, '\n', (size_t)(end - at))); at = newline + 1) {
        json_t *json = NULL;
        st = tm_json_parse(at, (size_t)(newline - at), file, &json, err);
        if (st == TM_NO_MEMORY)
            goto out;
        if (st != TM_OK || !json_is_number(json_object_get(json, "step")))
            damaged++;
        else
            st = take(run, json, err);
        if (json)
            json_decref(json);
        if (st == TM_NO_MEMORY)
            goto out;
        st = TM_OK;
    }
    if (damaged)
        st = note(run, err, "%s: %zu %s could not be read and are left out", file, damaged, damaged == 1 ? "row" : "rows");
out:
    tm_buf_deinit(&text);
    return st;
}

/* First and last of what run.json does not say (a run in progress). */
static void fill_evals(run_data *run)
{
    for (size_t i = 0; i < run->eval_count; i++) {
        run_eval *eval = &run->evals[i];
        bool know_first = !isnan(eval->first), know_last = !isnan(eval->last);
        for (size_t k = 0; k < eval->count; k++) {
            double value = eval->rows[k].value[eval->metric];
            if (isnan(value))
                continue;
            if (!know_first && isnan(eval->first))
                eval->first = value;
            if (!know_last)
                eval->last = value;
            if (isnan(eval->best) || (METRICS[eval->metric].smaller ? value < eval->best : value > eval->best))
                eval->best = value;
        }
    }
}

static tm_status read_run_json(const char *path, run_data *run, tm_error *err)
{
    json_t *json = NULL;
    tm_status st = tm_json_read(path, &json, err);
    if (st == TM_NO_MEMORY)
        return st;
    if (st == TM_OK && json_is_object(json)) {
        json_decref(run->json);
        run->json = json;
        return TM_OK;
    }
    if (json)
        json_decref(json);
    return note(run, err, "run.json could not be read: settings and hashes are missing here");
}

tm_status run_data_read(const char *run_dir, run_data *run, tm_error *err)
{
    static const char *const FILES[] = {"run.json", "metrics.jsonl", "timing.jsonl"};
    enum { RUN, METRICS_ROWS, TIMING, FILE_COUNT };
    char *path[FILE_COUNT] = {0};
    tm_status st = TM_OK;
    *run = (run_data){.json = json_object()};
    if (!run->json)
        return tm_fail(err, TM_NO_MEMORY, "out of memory");
    for (int i = 0; i < FILE_COUNT; i++)
        if (!(path[i] = tm_path_join(run_dir, FILES[i], err))) {
            st = TM_NO_MEMORY;
            goto out;
        }
    bool there[FILE_COUNT];
    for (int i = 0; i < FILE_COUNT; i++)
        there[i] = tm_path_exists(path[i]);
    if (!there[RUN] && !there[METRICS_ROWS]) {
        st = tm_fail(err, TM_INPUT, "%s: not a run folder: found neither run.json nor metrics.jsonl", run_dir);
        goto out;
    }
    if (there[RUN])
        TM_GO(read_run_json(path[RUN], run, err));
    else
        TM_GO(note(run, err, "run.json is not there: settings and hashes are missing here"));
    TM_GO(read_evals(run, err));
    if (there[METRICS_ROWS])
        TM_GO(read_rows(path[METRICS_ROWS], FILES[METRICS_ROWS], run, read_metrics_row, err));
    if (there[TIMING])
        TM_GO(read_rows(path[TIMING], FILES[TIMING], run, read_timing_row, err));
    fill_evals(run);
out:
    for (int i = 0; i < FILE_COUNT; i++)
        free(path[i]);
    return st;
}

void run_data_deinit(run_data *run)
{
    if (run->json)
        json_decref(run->json);
    for (size_t i = 0; i < run->eval_count; i++) {
        free(run->evals[i].name);
        free(run->evals[i].rows);
    }
    free(run->evals);
    free(run->rows);
    free(run->timing);
    tm_names_deinit(&run->notes);
    *run = (run_data){0};
}
