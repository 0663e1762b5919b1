/* temper sequence and temper sweep: the laboratory with this library's training, evaluation and merging. */
#include "api/compare.h"
#include "api/job.h"
#include "api/laboratory.h"
#include "api/route.h"

#include "base/file.h"
#include "lab/analysis.h"
#include "lab/sweep.h"
#include "report/sequence.h"
#include "train/score.h"

#include <stdlib.h>
#include <string.h>

/* Warnings of the single runs stay in their folders: a sequence has many. */
static tm_status train(void *context, tm_recipe *recipe, tm_error *err)
{
    tm_laboratory *lab = context;
    tm_laboratory_watch watch;
    char *out = NULL;
    tm_laboratory_threads(lab, recipe);
    tm_laboratory_watch_begin(&watch, lab, true);
    tm_status st = tm_train_recipe(&lab->shop, recipe, &watch.callbacks, &out, err);
    tm_laboratory_watch_end(&watch);
    free(out);
    return st == TM_RETENTION ? TM_OK : st; /* what the gate left is the run's result */
}

/* How far the recipe's model moved from the start on an evaluation's rows, nats a target. */
static tm_status measure_kl(const tm_recipe *recipe, const tm_eval_entry *entry, const char *start, double *out, tm_error *err)
{
    static const char *const formats[] = {"auto", "text", "completion", "tokens", "messages", "sharegpt", "alpaca", "bridge", "choice"};
    const char *adapter = tm_tuning_from(recipe);
    char *paths[] = {(char *)(uintptr_t)start, (char *)(uintptr_t)(adapter ? adapter : recipe->model)}, seq[48], threads[48], format[48];
    char *overrides[] = {seq, threads, format};
    tm_token_scores scores[2] = {{0}};
    if (!adapter && strcmp(start, recipe->model) == 0) {
        *out = 0;
        return TM_OK;
    }
    snprintf(seq, sizeof seq, "train.seq=%lld", (long long)recipe->seq);
    snprintf(threads, sizeof threads, "threads=%lld", (long long)recipe->threads);
    snprintf(format, sizeof format, "data.0.format=%s", formats[entry->data.format]);
    tm_compare_request request = {.paths = paths, .path_count = 2, .model = recipe->model, .data = entry->data.path, .overrides = overrides, .override_count = 3};
    TM_TRY(tm_compare_tokens(&request, scores, err));
    *out = scores[1].kl;
    return TM_OK;
}

static tm_status evaluate(void *context, tm_recipe *recipe, const char *start, double *values, tm_error *err)
{
    tm_laboratory *lab = context;
    int metric[TM_LAB_MOST_TASKS];
    tm_laboratory_threads(lab, recipe);
    int64_t count = recipe->eval_count;
    tm_scores *scores = NULL;
    tm_status st = TM_OK;
    for (int64_t i = 0; i < count && st == TM_OK; i++) {
        metric[i] = recipe->eval[i].metric;
        if (metric[i] == TM_METRIC_KL) {
            recipe->eval[i].metric = TM_METRIC_LOSS; /* of which there is always one; its value is not used */
            st = measure_kl(recipe, &recipe->eval[i], start, &values[i], err);
        }
    }
    if (st == TM_OK)
        st = TM_NEW(&scores, count, err);
    if (st != TM_OK) {
        tm_recipe_destroy(recipe);
        return st;
    }
    st = tm_evaluate_recipe(&lab->shop, recipe, scores, NULL, err);
    for (int64_t i = 0; st == TM_OK && i < count; i++)
        values[i] = metric[i] == TM_METRIC_KL ? values[i] : tm_metric_value(metric[i], &scores[i]);
    free(scores);
    return st;
}

static tm_status merge(void *context, const char *model, const char *adapter, const char *out, tm_error *err)
{
    const tm_laboratory *lab = context;
    char *text = NULL;
    const tm_merge_source source = {.path = adapter, .scale = 1};
    tm_status st = tm_merge(&(tm_merge_request){.model = model, .out = out, .sources = &source, .source_count = 1, .threads = (int)lab->threads, .density = 1}, &text, err);
    free(text);
    return st;
}

/* --- Rows --- */

/* {"input_ids": [...], "labels": [...]}, without labels where every token but the first is a target. */
static void put_row(tm_buf *out, const tm_example *e)
{
    bool all = true;
    tm_buf_text(out, "{\"input_ids\": [");
    for (int32_t i = 0; i < e->n; i++) {
        tm_buf_printf(out, "%s%d", i ? "," : "", e->ids[i]);
        all &= !i || !e->weight || e->weight[i] > 0;
    }
    tm_buf_text(out, all ? "]" : "], \"labels\": [");
    for (int32_t i = 0; i < e->n && !all; i++)
        tm_buf_printf(out, "%s%d", i ? "," : "", e->weight[i] > 0 ? e->ids[i] : -100);
    tm_buf_text(out, all ? "}\n" : "]}\n");
}

static tm_status write_rows(const tm_dataset *data, const char *path, tm_error *err)
{
    tm_file_out file = {0};
    tm_buf text = {0};
    tm_status st;
    TM_GO(tm_file_out_open(path, &file, err));
    for (int64_t i = 0; i < tm_dataset_count(data); i++) {
        tm_buf_clear(&text);
        put_row(&text, tm_dataset_at(data, i));
        TM_GO(tm_buf_check(&text, err));
        TM_GO(tm_file_out_put(&file, text.data, text.size, err));
    }
    st = tm_file_out_commit(&file, err);
out:
    tm_file_out_discard(&file);
    tm_buf_deinit(&text);
    return st;
}

static tm_status rows(void *context, tm_recipe *recipe, const char *out, tm_error *err)
{
    tm_data_entry *entries = NULL;
    tm_tokenizer *tok = NULL;
    tm_dataset *data = NULL;
    tm_pool *pool = NULL;
    tm_model_config config = {0};
    int64_t count = recipe->data_count;
    tm_status st;
    tm_laboratory_threads(context, recipe);
    TM_GO(TM_NEW(&entries, count + 1, err));
    memcpy(entries, recipe->data, (size_t)count * sizeof *entries);
    if (recipe->replay.path)
        entries[count++] = recipe->replay;
    TM_GO(tm_model_config_read(recipe->model, &config, err));
    if (tm_tokenizer_is_in(recipe->model))
        TM_GO(tm_tokenizer_open(recipe->model, &tok, err));
    TM_GO(tm_pool_create((int)recipe->threads, &pool, err));
    tm_data_settings settings = tm_job_data_settings(recipe, tok, config.vocab, NULL);
    settings.seq = settings.seq < tm_model_config_longest(&config) ? settings.seq : tm_model_config_longest(&config);
    TM_GO(tm_dataset_load(entries, count, &settings, pool, &data, err));
    st = write_rows(data, out, err);
out:
    tm_dataset_destroy(data);
    tm_pool_destroy(pool);
    tm_tokenizer_close(tok);
    tm_model_config_deinit(&config);
    free(entries);
    tm_recipe_destroy(recipe);
    return st;
}

static tm_status importances(void *context, tm_recipe *recipe, const char *out, const char *add, tm_error *err)
{
    tm_laboratory *lab = context;
    tm_laboratory_watch watch;
    char *text = NULL;
    tm_laboratory_threads(lab, recipe);
    tm_laboratory_watch_begin(&watch, lab, false);
    tm_status st = tm_fisher_recipe(&lab->shop, recipe, out, add, &watch.callbacks, &text, err);
    tm_laboratory_watch_end(&watch);
    free(text);
    return st;
}

static tm_status write_text(const char *dir, const char *name, const tm_buf *text, tm_error *err)
{
    char *path = tm_path_join(dir, name, err);
    tm_status st = path ? tm_file_write(path, text->data, text->size, err) : TM_NO_MEMORY;
    free(path);
    return st;
}

/* results.json and summary.json, and what is said about them. */
static tm_status write_results(const tm_sequence_file *file, const tm_sequence_result *result, const char *out, bool json, char **text, tm_error *err)
{
    tm_buf results = {0}, summary = {0}, table = {0};
    tm_analysis analysis = {0};
    tm_status st;
    TM_GO(tm_analysis_of(file, result, &analysis, err));
    TM_GO(tm_sequence_results(file, result, &analysis, true, &summary, err));
    TM_GO(write_text(out, "summary.json", &summary, err));
    TM_GO(tm_sequence_results(file, result, &analysis, false, &results, err));
    TM_GO(write_text(out, "results.json", &results, err));
    TM_GO(tm_sequence_report_write(out, err));
    TM_GO(tm_sequence_table(file, result, &analysis, &table, err));
    tm_buf *given = json ? &results : &table;
    *text = given->data;
    *given = (tm_buf){0};
out:
    tm_analysis_deinit(&analysis);
    tm_buf_deinit(&results);
    tm_buf_deinit(&summary);
    tm_buf_deinit(&table);
    return st;
}

static tm_lab_calls calls_of(tm_laboratory *lab)
{
    return (tm_lab_calls){.context = lab, .spread = tm_laboratory_spread, .train = train, .evaluate = evaluate, .merge = merge, .rows = rows, .importances = importances,
                          .route = tm_route_modules, .note = tm_laboratory_note, .progress = tm_laboratory_progress, .stopped = tm_laboratory_stopped, .stop = tm_laboratory_stop};
}

tm_status tm_sequence(const tm_sequence_request *request, const tm_callbacks *callbacks, char **text, tm_error *err)
{
    tm_sequence_file file;
    tm_sequence_result result = {0};
    tm_laboratory lab;
    *text = NULL;
    TM_TRY(tm_sequence_file_open(request->path, request->overrides, request->override_count, &file, err));
    const char *out = request->out ? request->out : file.out ? file.out : "runs/sequence";
    tm_laboratory_open(&lab, callbacks, request->jobs, false);
    lab.shop.passing = file.runs == TM_RUNS_DROP;
    tm_lab_calls calls = calls_of(&lab);
    for (int64_t i = 0; i < file.warnings.count; i++)
        tm_laboratory_note(&lab, file.warnings.item[i]);
    tm_status st = tm_sequence_run(&file, request->overrides, request->override_count, out, &calls, &result, err);
    if (st == TM_OK)
        st = write_results(&file, &result, out, request->json, text, err);
    tm_laboratory_close(&lab);
    tm_sequence_result_deinit(&result, &file);
    tm_sequence_file_close(&file);
    return st;
}

tm_status tm_sweep_recipe(const tm_sweep_request *request, const tm_callbacks *callbacks, char **text, tm_error *err)
{
    tm_sweep sweep = {.recipe = request->source.path, .out = request->out ? request->out : "runs/sweep", .metric = request->metric};
    tm_laboratory lab;
    tm_buf json = {0}, table = {0};
    *text = NULL;
    tm_laboratory_open(&lab, callbacks, request->jobs, true);
    tm_lab_calls calls = calls_of(&lab);
    tm_status st = tm_sweep_arguments(&sweep, request->source.overrides, request->source.override_count, err);
    if (st == TM_OK)
        st = tm_sweep_run(&sweep, &calls, &json, &table, err);
    if (st == TM_OK) {
        tm_buf *given = request->json ? &json : &table;
        *text = given->data;
        *given = (tm_buf){0};
    }
    tm_buf_deinit(&json);
    tm_buf_deinit(&table);
    tm_laboratory_close(&lab);
    tm_sweep_deinit(&sweep);
    return st;
}
