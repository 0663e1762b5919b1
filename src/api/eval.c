/* temper eval: scores of a model on a data set, through the trainer's own evaluation. */
#include "api/inference.h"
#include "api/job.h"

#include "base/exact.h"
#include "base/file.h"
#include "base/json.h"
#include "io/adapter_kind.h"
#include "train/score.h"

#include <math.h>
#include <stdlib.h>

typedef struct score_line { /* of the table, and a member of the object */
    const char *key, *label, *unit;
    double value, factor; /* factor: of the table */
} score_line;

/* The lines of a metric, its own first; gives how many. */
static size_t lines_of(int metric, const tm_scores *s, score_line out[16])
{
    const tm_metric *m = &tm_metrics[metric];
    const score_line own[] = {{m->key[0], m->key[0], metric == TM_METRIC_SARI ? "" : " %", s->score[0], metric == TM_METRIC_SARI ? 1 : 100},
                        {m->key[1], m->key[1], " %", s->score[1], 100},
                        {"loss_to_text", "loss to text", " nats a token", s->way_loss[0], 1},
                        {"loss_to_scene", "loss to scene", " nats a token", s->way_loss[1], 1},
                        {"loss", "loss", " nats a token", s->loss, 1},
                        {"ppl", "perplexity", "", tm_exp(s->loss), 1},
                        {"bits_per_byte", "bits a byte", "", s->bits_per_byte, 1},
                        {"accuracy", "token accuracy", " %", s->accuracy, 100},
                        {"exact", "exact match", " %", s->exact, 100}};
    size_t count = 0;
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (own[i].key && (i > 3 || !isnan(own[i].value)))
            out[count++] = own[i];
    return count;
}

static void put_json(tm_buf *out, int metric, const tm_scores *s)
{
    score_line lines[16];
    size_t count = lines_of(metric, s, lines);
    tm_buf_char(out, '{');
    for (size_t i = 0; i < count; i++) {
        tm_buf_printf(out, "\"%s\": ", lines[i].key);
        tm_json_put_number(out, lines[i].value);
        tm_buf_text(out, ", ");
    }
    tm_buf_printf(out, "\"targets\": %lld}\n", (long long)s->targets);
}

static void put_table(tm_buf *out, int metric, const tm_scores *s)
{
    score_line lines[16];
    size_t count = lines_of(metric, s, lines);
    for (size_t i = 0; i < count; i++)
        if (!isnan(lines[i].value))
            tm_buf_printf(out, "%-15s %.*f%s\n", lines[i].label, lines[i].factor == 100 ? 2 : 4, lines[i].factor * lines[i].value, lines[i].unit);
    tm_buf_printf(out, "targets         %lld\n", (long long)s->targets);
}

/* scores, items (may be NULL) [eval_count]. */
static tm_status evaluate(tm_job *job, tm_scores *scores, tm_buf *items, tm_error *err)
{
    tm_trainer *trainer = NULL;
    TM_TRY(tm_job_fits(job, NULL, NULL, err));
    TM_TRY(tm_trainer_create(&job->run, job->device, job->plan.part, &trainer, err));
    tm_status st = tm_model_load(&trainer->model, job->file, job->recipe->model, err);
    if (st == TM_OK && trainer->tuning.method->start)
        st = trainer->tuning.method->start(&trainer->tuning, 0, 0, err);
    if (st == TM_OK) {
        tm_model_begin_step(&trainer->model, NULL);
        for (int64_t i = 0; i < job->eval_count && st == TM_OK; i++)
            st = tm_trainer_evaluate(trainer, &job->evals[i], 0, &scores[i], items ? &items[i] : NULL, err);
    }
    tm_trainer_destroy(trainer);
    return st;
}

tm_status tm_evaluate_recipe(tm_workshop *shop, tm_recipe *recipe, tm_scores *scores, tm_buf *items, tm_error *err)
{
    tm_job job;
    TM_TRY(tm_job_open_in(shop, recipe, TM_JOB_EVAL, &job, err));
    tm_status st = evaluate(&job, scores, items, err);
    tm_job_close(&job);
    return st;
}

/* The recipe of an evaluation: of one data set, nothing trained. */
static tm_status open_eval(const char *model, const char *adapter, const char *data, const char *metric, char *const *overrides, size_t override_count, tm_job *job, tm_error *err)
{
    tm_status st = TM_OK;
    tm_recipe *recipe = NULL;
    tm_names list = {0};
    tm_buf line = {0};
    tm_adapter_kind kind = TM_ADAPTER_LORA;
    char from[32];
    if (adapter)
        TM_TRY(tm_adapter_kind_of(adapter, &kind, err));
    snprintf(from, sizeof from, "%s.init", tm_adapter_kind_method(kind));
    struct {
        const char *key, *value;
    } keys[] = {{"model", model}, {"method", adapter ? tm_adapter_kind_method(kind) : "none"}, {"eval.0.path", data}, {"eval.0.name", "data"}, {from, adapter ? adapter : "null"}, {"eval.0.metric", metric ? metric : "loss"}};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        tm_buf_clear(&line);
        tm_buf_printf(&line, "%s=%s", keys[i].key, keys[i].value);
        TM_GO(tm_buf_check(&line, err));
        TM_GO(tm_names_add(&list, line.data, err));
    }
    for (size_t i = 0; i < override_count; i++)
        TM_GO(tm_names_add(&list, overrides[i], err));
    TM_GO(tm_recipe_load(NULL, list.item, (size_t)list.count, &recipe, err));
    st = tm_job_open(recipe, TM_JOB_EVAL, job, err);
out:
    tm_buf_deinit(&line);
    tm_names_deinit(&list);
    return st;
}

tm_status tm_eval(const tm_eval_request *r, char **text, tm_error *err)
{
    tm_job job;
    tm_buf out = {0}, items = {0};
    tm_scores *scores = NULL;
    *text = NULL;
    TM_TRY(open_eval(r->model, r->adapter, r->data, r->metric, r->overrides, r->override_count, &job, err));
    tm_status st;
    TM_GO(TM_NEW(&scores, job.eval_count, err));
    TM_GO(evaluate(&job, scores, r->items ? &items : NULL, err));
    if (r->items)
        TM_GO(tm_file_write(r->items, tm_buf_str(&items), items.size, err));
    (r->json ? put_json : put_table)(&out, job.evals[0].entry->metric, &scores[0]);
    TM_GO(tm_buf_check(&out, err));
    *text = out.data;
    out = (tm_buf){0};
out:
    free(scores);
    tm_job_close(&job);
    tm_buf_deinit(&out);
    tm_buf_deinit(&items);
    return st;
}

/* Logits of one example, in host memory that the caller frees. */
static tm_status example_logits(tm_inference *inf, const tm_example *e, float **out, tm_error *err)
{
    int64_t n = e->n * inf->model.config.vocab;
    TM_TRY(TM_NEW(out, n, err));
    tm_batch_item item = {.ids = e->ids, .n = e->n};
    tm_batch_fill(&inf->batch, &item, 1);
    tm_model_forward(&inf->model, &inf->batch);
    tm_model_logits(&inf->model, &inf->batch);
    tm_tensor rows = tm_tensor_rows(inf->model.logits, inf->batch.prefix, e->n);
    inf->device->calls->download(inf->device, *out, rows.data, n * 4);
    return inf->device->calls->sync(inf->device, err);
}

tm_status tm_eval_logits(const char *model, const char *adapter, const char *data, char *const *overrides, size_t override_count, int64_t examples, const char *file, tm_error *err)
{
    tm_job job;
    tm_status st = TM_OK;
    tm_inference inf = {0};
    tm_st_tensor *tensors = NULL;
    char(*names)[24] = NULL;
    int64_t count = 0;
    TM_TRY(open_eval(model, adapter, data, NULL, overrides, override_count, &job, err));
    const tm_eval_set *set = &job.evals[0];
    tm_inference_settings settings = {.model = model, .adapter = adapter, .threads = (int)job.recipe->threads, .max_tokens = job.recipe->seq, .logits = true};
    if (examples > set->examples)
        examples = set->examples;
    TM_GO(tm_inference_open(&settings, &inf, err));
    TM_GO(TM_NEW(&tensors, examples, err));
    TM_GO(tm_alloc((void **)&names, (size_t)examples, sizeof *names, err));
    for (; count < examples; count++) {
        const tm_example *e = tm_dataset_at(set->data, count);
        float *logits = NULL;
        st = example_logits(&inf, e, &logits, err);
        snprintf(names[count], sizeof names[count], "%lld", (long long)count);
        tensors[count] = (tm_st_tensor){.name = names[count], .dtype = TM_F32, .ndim = 2, .shape = {e->n, inf.model.config.vocab}, .data = logits};
        if (st != TM_OK) {
            free(logits);
            goto out;
        }
    }
    TM_GO(tm_safetensors_write(file, tensors, count, NULL, err));
out:
    for (int64_t i = 0; i < count; i++)
        free((void *)(uintptr_t)tensors[i].data);
    free(tensors);
    free(names);
    tm_inference_close(&inf);
    tm_job_close(&job);
    return st;
}
