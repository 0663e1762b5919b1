/* temper sequence: the laboratory's sequence with this library's training, evaluation and merging. */
#include "api/job.h"

#include "base/file.h"
#include "lab/analysis.h"
#include "train/score.h"

#include <stdlib.h>

/* Warnings of the single runs stay in their folders: a sequence has many. */
static tm_status train(void *context, tm_recipe *recipe, tm_error *err)
{
    tm_callbacks quiet = *(const tm_callbacks *)context;
    char *out = NULL;
    quiet.note = NULL;
    tm_status st = tm_train_recipe(recipe, &quiet, &out, err);
    free(out);
    return st == TM_RETENTION ? TM_OK : st; /* what the gate left is the run's result */
}

static tm_status evaluate(void *context, tm_recipe *recipe, double *values, tm_error *err)
{
    (void)context;
    int metric[TM_LAB_MOST_TASKS];
    int64_t count = recipe->eval_count;
    tm_scores *scores;
    for (int64_t i = 0; i < count; i++)
        metric[i] = recipe->eval[i].metric;
    tm_status st = TM_NEW(&scores, count, err);
    if (st != TM_OK) {
        tm_recipe_destroy(recipe);
        return st;
    }
    st = tm_evaluate_recipe(recipe, scores, err);
    for (int64_t i = 0; st == TM_OK && i < count; i++)
        values[i] = tm_metric_value(metric[i], &scores[i]);
    free(scores);
    return st;
}

static tm_status merge(void *context, const char *model, const char *adapter, const char *out, tm_error *err)
{
    (void)context;
    char *text = NULL;
    const tm_merge_source source = {adapter, 1};
    tm_status st = tm_merge(&(tm_merge_request){.model = model, .out = out, .sources = &source, .source_count = 1, .density = 1}, &text, err);
    free(text);
    return st;
}

static void note(void *context, const char *text)
{
    const tm_callbacks *callbacks = context;
    if (callbacks->note)
        callbacks->note(callbacks->context, text);
}

/* results.json, and what is said about it. */
static tm_status write_results(const tm_sequence_file *file, const tm_sequence_result *result, const char *out, bool json, char **text, tm_error *err)
{
    tm_buf results = {0}, table = {0};
    tm_analysis analysis = {0};
    tm_status st = TM_OK;
    char *path = tm_path_join(out, "results.json", err);
    if (!path)
        return TM_NO_MEMORY;
    TM_GO(tm_analysis_of(file, result, &analysis, err));
    TM_GO(tm_sequence_results(file, result, &analysis, &results, err));
    TM_GO(tm_file_write(path, results.data, results.size, err));
    TM_GO(tm_sequence_table(file, &analysis, &table, err));
    tm_buf *given = json ? &results : &table;
    *text = given->data;
    *given = (tm_buf){0};
out:
    tm_analysis_deinit(&analysis);
    tm_buf_deinit(&results);
    tm_buf_deinit(&table);
    free(path);
    return st;
}

tm_status tm_sequence(const tm_sequence_request *request, const tm_callbacks *callbacks, char **text, tm_error *err)
{
    static const tm_callbacks silent = {0};
    tm_sequence_file file;
    tm_sequence_result result = {0};
    tm_lab_calls calls = {(void *)(uintptr_t)(callbacks ? callbacks : &silent), train, evaluate, merge, note};
    *text = NULL;
    TM_TRY(tm_sequence_file_open(request->path, request->overrides, request->override_count, &file, err));
    const char *out = request->out ? request->out : file.out ? file.out : "runs/sequence";
    for (int64_t i = 0; i < file.warnings.count; i++)
        note(calls.context, file.warnings.item[i]);
    tm_status st = tm_sequence_run(&file, request->overrides, request->override_count, out, &calls, &result, err);
    if (st == TM_OK)
        st = write_results(&file, &result, out, request->json, text, err);
    tm_sequence_result_deinit(&result, &file);
    tm_sequence_file_close(&file);
    return st;
}
