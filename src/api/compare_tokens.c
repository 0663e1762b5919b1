/* temper compare --data: what models predict for the same targets, one example at a time. */
#include "api/compare.h"

#include "api/inference.h"
#include "api/inspect.h"
#include "api/job.h"
#include "api/logits.h"
#include "base/options.h"
#include "io/adapter_kind.h"
#include "io/gguf.h"
#include "text/dataset.h"

#include <stdlib.h>
#include <string.h>

typedef struct seat { /* a path, opened */
    char *base;                      /* that the adapter names; NULL: none */
    const char *model, *adapter_dir; /* adapter_dir NULL: none */
    tm_inference inf;
    float *logits;                   /* [longest, vocab] */
} seat;

typedef struct table {
    const tm_compare_request *request;
    seat *seat;                      /* [path_count] */
    tm_recipe *recipe;
    tm_tokenizer *tok;
    tm_dataset *data;
    tm_pool *pool;
    int64_t longest, vocab;
} table;

static tm_status find_model(table *t, size_t i, tm_error *err)
{
    seat *s = &t->seat[i];
    const char *path = t->request->paths[i];
    if (!tm_dir_has(path, "adapter_config.json")) {
        s->model = path;
        return TM_OK;
    }
    s->adapter_dir = path;
    TM_TRY(tm_adapter_kind_base(path, &s->base, err));
    s->model = t->request->model ? t->request->model : s->base;
    if (!s->model || (!tm_gguf_is(s->model) && !tm_dir_has(s->model, "config.json")))
        return tm_fail(err, TM_USAGE, "%s: its base model %s is no model here: --model DIR says where it is",
                       path, s->model ? s->model : "(not named)");
    return TM_OK;
}

static tm_status load_data(table *t, tm_error *err)
{
    tm_names list = {0};
    tm_buf line = {0};
    tm_status st = TM_OK;
    tm_buf_text(&line, "data.0.path=");
    tm_json_put_string(&line, t->request->data);
    TM_GO(tm_buf_check(&line, err));
    TM_GO(tm_names_add(&list, line.data, err));
    for (size_t i = 0; i < t->request->override_count; i++)
        TM_GO(tm_names_add(&list, t->request->overrides[i], err));
    TM_GO(tm_recipe_load(NULL, list.item, (size_t)list.count, &t->recipe, err));
    TM_GO(tm_pool_create((int)t->recipe->threads, &t->pool, err));
    if (tm_tokenizer_is_in(t->seat[0].model))
        TM_GO(tm_tokenizer_open(t->seat[0].model, &t->tok, err));
    tm_model_config config;
    TM_GO(tm_model_config_read(t->seat[0].model, &config, err));
    t->vocab = config.vocab;
    int64_t longest = tm_model_config_longest(&config);
    tm_model_config_deinit(&config);
    tm_data_settings settings = tm_job_data_settings(t->recipe, t->tok, t->vocab, NULL);
    settings.model = t->seat[0].model;
    if (settings.seq > longest)
        settings.seq = longest;
    TM_GO(tm_dataset_load(t->recipe->data, t->recipe->data_count, &settings, t->pool, &t->data, err));
    for (int64_t i = 0; i < tm_dataset_count(t->data); i++)
        t->longest = tm_dataset_at(t->data, i)->n > t->longest ? tm_dataset_at(t->data, i)->n : t->longest;
out:
    tm_buf_deinit(&line);
    tm_names_deinit(&list);
    return st;
}

static tm_status open_seat(table *t, seat *s, tm_error *err)
{
    tm_inference_settings settings = {.model = s->model,
                                      .adapter = s->adapter_dir,
                                      .threads = (int)t->recipe->threads,
                                      .max_tokens = t->longest,
                                      .logits = true};
    TM_TRY(tm_inference_open(&settings, &s->inf, err));
    if (s->inf.model.config.vocab != t->vocab)
        return tm_fail(err, TM_INPUT,
                       "%s has a vocabulary of %lld, %s one of %lld: their predictions cannot be compared", s->model,
                       (long long)s->inf.model.config.vocab, t->seat[0].model, (long long)t->vocab);
    return TM_NEW(&s->logits, t->longest * t->vocab, err);
}

static tm_status predict(const table *t, seat *s, const tm_example *e, tm_error *err)
{
    tm_batch_item item = {.ids = e->ids, .weight = e->weight, .n = e->n, .scale = 1};
    tm_batch_fill(&s->inf.batch, &item, 1);
    tm_model_forward(&s->inf.model, &s->inf.batch);
    tm_model_logits(&s->inf.model, &s->inf.batch);
    tm_tensor rows = tm_tensor_rows(s->inf.model.logits, s->inf.batch.prefix, e->n);
    s->inf.device->calls->download(s->inf.device, s->logits, rows.data, e->n * t->vocab * 4);
    return s->inf.device->calls->sync(s->inf.device, err);
}

static void score(const table *t, const tm_example *e, tm_token_scores *scores)
{
    for (int32_t k = 1; k < e->n; k++) {
        if (e->weight && e->weight[k] <= 0)
            continue;
        const float *first = t->seat[0].logits + (k - 1) * t->vocab;
        int64_t top = tm_logits_top(first, t->vocab), target = e->ids[k];
        for (size_t i = 0; i < t->request->path_count; i++) {
            const float *x = t->seat[i].logits + (k - 1) * t->vocab;
            int64_t mine = i ? tm_logits_top(x, t->vocab) : top;
            scores[i].targets++;
            scores[i].agree += mine == top;
            scores[i].to_wrong += top == target && mine != target;
            scores[i].to_right += top != target && mine == target;
            scores[i].loss += tm_log_sum_exp(x, t->vocab) - x[target];
            scores[i].kl += i ? tm_logits_kl(first, x, t->vocab) : 0;
        }
    }
}

static void close_table(table *t)
{
    for (size_t i = 0; t->seat && i < t->request->path_count; i++) {
        tm_inference_close(&t->seat[i].inf);
        free(t->seat[i].base);
        free(t->seat[i].logits);
    }
    free(t->seat);
    tm_dataset_destroy(t->data);
    tm_tokenizer_close(t->tok);
    tm_pool_destroy(t->pool);
    tm_recipe_destroy(t->recipe);
}

tm_status tm_compare_tokens(const tm_compare_request *request, tm_token_scores *scores, tm_error *err)
{
    table t = {.request = request};
    tm_status st = TM_OK;
    TM_GO(TM_NEW(&t.seat, request->path_count, err));
    for (size_t i = 0; i < request->path_count; i++)
        TM_GO(find_model(&t, i, err));
    TM_GO(load_data(&t, err));
    for (size_t i = 0; i < request->path_count; i++)
        TM_GO(open_seat(&t, &t.seat[i], err));
    for (int64_t k = 0; k < tm_dataset_count(t.data); k++) {
        for (size_t i = 0; i < request->path_count; i++)
            TM_GO(predict(&t, &t.seat[i], tm_dataset_at(t.data, k), err));
        score(&t, tm_dataset_at(t.data, k), scores);
    }
    for (size_t i = 0; i < request->path_count; i++) {
        scores[i].loss /= scores[i].targets ? (double)scores[i].targets : 1;
        scores[i].kl /= scores[i].targets ? (double)scores[i].targets : 1;
    }
out:
    close_table(&t);
    return st;
}
