/* Prompt tuning (2104.08691): rows before every example that are trained like embeddings, nothing else is.
 * The folder is PEFT's (PROMPT_TUNING); first values as PEFT's: normal, or the embeddings of a text. */
#include "tune/tune.h"

#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"
#include "base/philox.h"

#include <stdlib.h>

/* More is nonsense: rows before every example. */
enum { MOST_TOKENS = 1 << 16 };

tm_status tm_prompt_config_read(const char *dir, tm_prompt_config *out, tm_error *err)
{
    json_t *json = NULL;
    int64_t submodules = 1;
    char *path = tm_path_join(dir, "adapter_config.json", err);
    tm_status st = path ? tm_json_read(path, &json, err) : TM_NO_MEMORY;
    TM_GO(st);
    TM_GO(tm_json_get_int(json, path, "num_virtual_tokens", 0, &out->tokens, err));
    TM_GO(tm_json_get_int(json, path, "token_dim", 0, &out->width, err));
    if (!json_is_null(json_object_get(json, "num_transformer_submodules")))
        TM_GO(tm_json_get_int(json, path, "num_transformer_submodules", 1, &submodules, err));
    if (out->tokens < 1 || out->tokens > MOST_TOKENS)
        TM_GO(tm_fail(err, TM_INPUT, "%s: num_virtual_tokens is %lld, expected 1 to %d", path, (long long)out->tokens, MOST_TOKENS));
    if (submodules != 1)
        TM_GO(tm_fail(err, TM_UNSUPPORTED, "%s: num_transformer_submodules is %lld, temper knows 1 (decoders)", path, (long long)submodules));
out:
    json_decref(json);
    free(path);
    return st;
}

static tm_status prompt_select(tm_tuning *t, tm_error *err)
{
    tm_model *m = t->model;
    tm_prompt_config config = {.tokens = t->recipe->prompt_tokens, .width = m->config.width};
    if (t->from) {
        TM_TRY(tm_prompt_config_read(t->from, &config, err));
        TM_TRY(tm_tuned_open(t, err));
    }
    if (config.width != m->config.width)
        return tm_fail(err, TM_INPUT, "%s: the prompt is %lld wide (token_dim), the model %lld: another base model?", t->from, (long long)config.width, (long long)m->config.width);
    TM_TRY(tm_params_add(&m->params, "prompt_embeddings", TM_PARAM_EMBEDDING, config.tokens, config.width, &m->prompt, err));
    m->prompt->ndim = 2;
    m->prompt->added = m->prompt->trained = true;
    m->prompt->replicas = m->replicas;
    return TM_OK;
}

/* Rows of the embedding table for the ids of the text, over and over until all rows have one. */
static void start_from_text(tm_tuning *t, tm_tensor rows)
{
    for (int64_t i = 0; i < rows.rows; i++) {
        tm_tensor row = tm_tensor_rows(rows, i, 1);
        TM_RUN(t->model->device, cast, tm_tensor_rows(t->model->embed->value, t->prompt_ids[i % t->prompt_id_count], 1), row);
        TM_RUN(t->model->device, axpy, t->model->config.embed_scale - 1, row, row);
    }
}

static tm_status prompt_start(tm_tuning *t, int32_t replica, uint64_t seed, tm_error *err)
{
    tm_param *p = t->model->prompt;
    if (t->start)
        return tm_tuned_read(t, replica, err);
    if (t->prompt_id_count) {
        start_from_text(t, tm_param_part(p, p->value, replica));
        return TM_OK;
    }
    float *value;
    TM_TRY(TM_NEW(&value, tm_param_count(p) + 1, err));
    tm_fill_normal(value, tm_param_count(p), tm_philox_key(seed, TM_PURPOSE_INIT, 0, 0));
    tm_status st = tm_param_write(t->model, p, replica, value, TM_F32, err);
    free(value);
    return st;
}

static void prompt_key(const tm_tuning *t, const tm_param *p, char key[TM_TUNED_KEY])
{
    (void)t;
    snprintf(key, TM_TUNED_KEY, "%s", p->name);
}

static tm_status prompt_save(tm_tuning *t, int32_t replica, const char *dir, tm_error *err)
{
    const tm_model *m = t->model;
    char fields[512];
    snprintf(fields, sizeof fields,
             "  \"inference_mode\": true,\n  \"num_attention_heads\": %lld,\n  \"num_layers\": %lld,\n  \"num_transformer_submodules\": 1,\n"
             "  \"num_virtual_tokens\": %lld,\n  \"peft_type\": \"PROMPT_TUNING\",\n  \"prompt_tuning_init\": \"RANDOM\",\n"
             "  \"task_type\": \"CAUSAL_LM\",\n  \"token_dim\": %lld\n",
             (long long)m->config.heads, (long long)m->config.layers, (long long)m->prompt->rows, (long long)m->config.width);
    return tm_tuned_save(t, replica, dir, fields, err);
}

const tm_method tm_method_prompt = {.name = "prompt", .auto_lr = 3e-2, .adapter = true, .replicas = true, .file = "adapter_model.safetensors",
                                    .select = prompt_select, .start = prompt_start, .save = prompt_save, .key = prompt_key};
