/* Buffers of old examples that the base has a say in: those far apart in what it makes of them (mean hidden states), or
 * those of highest loss. One forward pass over keep.replay.path; the numbers of the chosen examples stay in the record. */
#include "api/rehearse_parts.h"

#include "api/inference.h"
#include "keep/replay.h"

#include <stdlib.h>

typedef struct chooser {
    tm_rehearsal_record *record;
    tm_tokenizer *tok;
    char *cache;
    tm_dataset *data;
    tm_inference inf;
    float *state;  /* [n, width] mean of the last hidden states, or */
    double *loss;  /* [n] mean of its targets */
    bool *keep;
} chooser;

static tm_status open_data(chooser *c, int64_t *longest, tm_error *err)
{
    const tm_recipe *r = c->record->recipe;
    tm_pool *pool;
    int64_t vocab, seq;
    TM_TRY(tm_job_longest(r, &vocab, &seq, err));
    if (r->replay.format != TM_FORMAT_TOKENS && tm_tokenizer_is_in(r->model))
        TM_TRY(tm_tokenizer_open(r->model, &c->tok, err));
    TM_TRY(tm_job_cache(r, &c->cache, err));
    TM_TRY(tm_pool_create((int)r->threads, &pool, err));
    tm_data_settings settings = tm_job_data_settings(r, c->tok, vocab, c->cache);
    settings.seq = seq;
    tm_status st = tm_dataset_load(&r->replay, 1, &settings, pool, &c->data, err);
    tm_pool_destroy(pool);
    *longest = 2;
    for (int64_t i = 0; st == TM_OK && i < tm_dataset_count(c->data); i++)
        *longest = tm_dataset_at(c->data, i)->n > *longest ? tm_dataset_at(c->data, i)->n : *longest;
    return st;
}

static void close_chooser(chooser *c)
{
    if (c->inf.recipe)
        tm_inference_close(&c->inf);
    tm_dataset_destroy(c->data);
    tm_tokenizer_close(c->tok);
    free(c->cache);
    free(c->state);
    free(c->loss);
    free(c->keep);
}

/* Mean over an example's tokens; the first token's state says nothing of the text. */
static void mean_of(const float *rows, int64_t n, int64_t width, float *out)
{
    for (int64_t c = 0; c < width; c++) {
        double sum = 0;
        for (int64_t t = n > 1; t < n; t++)
            sum += rows[t * width + c];
        out[c] = (float)(sum / (double)(n > 1 ? n - 1 : 1));
    }
}

/* What the base makes of one example. */
static tm_status look(chooser *c, int64_t i, void *raw, float *rows, tm_error *err)
{
    tm_model *m = &c->inf.model;
    tm_batch *b = &c->inf.batch;
    const tm_example *e = tm_dataset_at(c->data, i);
    int64_t width = m->config.width;
    tm_batch_item item = {.ids = e->ids, .weight = e->weight, .n = e->n, .scale = 1};
    tm_batch_fill(b, &item, 1);
    tm_model_forward(m, b);
    if (c->state) {
        m->device->calls->download(m->device, raw, m->hidden.data, tm_dtype_bytes(m->hidden.dtype, e->n * width));
        tm_dtype_convert(rows, TM_F32, raw, m->hidden.dtype, e->n * width);
        mean_of(rows, e->n, width, c->state + i * width);
    } else {
        tm_model_loss(m, b, tm_tensor_none(), tm_tensor_none(), false);
        tm_batch_read_results(b);
        for (int64_t k = 0; k < b->targets; k++)
            c->loss[i] += b->host_loss[k] / (double)b->targets;
    }
    return m->device->calls->sync(m->device, err);
}

static tm_status look_at_all(chooser *c, int64_t longest, tm_error *err)
{
    const tm_recipe *r = c->record->recipe;
    int64_t n = tm_dataset_count(c->data), width = c->inf.model.config.width;
    void *raw = NULL;
    float *rows = NULL;
    tm_status st;
    if (r->replay_select == TM_SELECT_DIVERSE)
        TM_GO(TM_NEW(&c->state, n * width, err));
    else
        TM_GO(TM_NEW(&c->loss, n, err));
    TM_GO(tm_alloc(&raw, (size_t)(longest * width), 8, err));
    TM_GO(TM_NEW(&rows, longest * width, err));
    for (int64_t i = 0; i < n; i++) {
        TM_GO(tm_rehearsal_go_on(c->record, err));
        TM_GO(look(c, i, raw, rows, err));
    }
    TM_GO(TM_NEW(&c->keep, n, err));
    st = c->state ? tm_replay_diverse(c->state, width, n, r->replay_buffer, c->keep, err) : tm_replay_hardest(c->loss, n, r->replay_buffer, c->keep, err);
out:
    free(raw);
    free(rows);
    return st;
}

static tm_status put_chosen(chooser *c, json_t *subject, tm_error *err)
{
    json_t *part = tm_json_copy(subject, false), *chosen = json_array();
    int64_t n = tm_dataset_count(c->data);
    int failed = !part || !chosen;
    for (int64_t i = 0; i < n && !failed; i++)
        if (c->keep[i])
            failed = json_array_append_new(chosen, json_integer(i));
    failed = failed || json_object_set_new(part, "examples", json_integer(n)) != 0;
    if (!failed) {
        failed = json_object_set_new(part, "chosen", chosen) != 0;
        chosen = NULL;
    }
    if (failed) {
        json_decref(part);
        part = NULL;
    }
    json_decref(chosen);
    return tm_rehearsal_put(c->record, "replay", part, err);
}

static tm_status choose(chooser *c, json_t *subject, tm_error *err)
{
    const tm_recipe *r = c->record->recipe;
    int64_t longest;
    if (r->init == TM_INIT_RANDOM)
        return tm_fail(err, TM_RECIPE, "keep.replay.select: %s asks the base, but the model starts at random (init: random); expected random or reservoir", r->replay_select == TM_SELECT_LOSS ? "loss" : "diverse");
    TM_TRY(open_data(c, &longest, err));
    tm_inference_settings s = {.model = r->model, .device = r->device, .threads = (int)r->threads, .max_tokens = longest};
    TM_TRY(tm_inference_open(&s, &c->inf, err));
    tm_rehearsal_say(c->record, "keep.replay: the base looks at %lld old examples, %lld are kept", (long long)tm_dataset_count(c->data), (long long)r->replay_buffer);
    TM_TRY(look_at_all(c, longest, err));
    return put_chosen(c, subject, err);
}

tm_status tm_rehearsal_choose(tm_rehearsal_record *record, tm_error *err)
{
    const tm_recipe *r = record->recipe;
    chooser c = {.record = record};
    tm_sha256 hash;
    bool made = false;
    TM_TRY(tm_data_path_hash(r->replay.path, &hash, err));
    tm_buf rows = {0};
    tm_status st = tm_data_entry_to_json(&r->replay, &rows, err);
    json_t *subject = st != TM_OK ? NULL : json_pack("{s:s, s:s, s:s, s:I, s:s, s:I}", "model", r->model, "rows", tm_buf_str(&rows), "sha256", hash.hex, "seq", (json_int_t)r->seq,
                                                     "select", r->replay_select == TM_SELECT_LOSS ? "loss" : "diverse", "buffer", (json_int_t)r->replay_buffer);
    tm_buf_deinit(&rows);
    st = subject ? tm_rehearsal_find(record, "replay", subject, &made, err) : tm_fail(err, TM_NO_MEMORY, "out of memory");
    if (st == TM_OK && !made)
        st = choose(&c, subject, err);
    close_chooser(&c);
    json_decref(subject);
    return st;
}
