/* Writing a whole model as a folder that transformers loads. */
#include "tune/tune.h"

#include "base/file.h"
#include "base/json.h"
#include "io/hf.h"

#include <stdlib.h>

static tm_dtype file_dtype(const tm_param *p, int save_dtype)
{
    switch (save_dtype) {
    case TM_SAVE_F32: return TM_F32;
    case TM_SAVE_BF16: return TM_BF16;
    case TM_SAVE_F16: return TM_F16;
    default: return p->source < TM_DTYPE_COUNT ? p->source : TM_F32;
    }
}

/* config.json of the source with what the run changed: element type, biases that were added. */
static tm_status write_config(const tm_model *m, const char *source, int save_dtype, const char *dir, tm_error *err)
{
    static const char *const names[] = {NULL, "float32", "bfloat16", "float16"};
    tm_status st = TM_OK;
    json_t *json = NULL;
    char *to = tm_path_join(dir, "config.json", err);
    const tm_family *family = m->config.family;
    if (!to)
        TM_GO(TM_NO_MEMORY);
    TM_GO(tm_hf_json(source, "config.json", &json, err));
    if (!json)
        TM_GO(tm_fail(err, TM_INPUT, "%s: its config.json is gone", source));
    int failed = 0;
    if (save_dtype != TM_SAVE_SOURCE)
        failed |= json_object_set_new(json, json_object_get(json, "dtype") ? "dtype" : "torch_dtype", json_string(names[save_dtype]));
    json_t *part = family->text_config ? json_object_get(json, family->text_config) : json;
    if (family->qkv_bias == TM_BIAS_BY_KEY && m->config.qkv_bias)
        failed |= json_object_set_new(part, family->attn_bias_key, json_true());
    if (family->mlp_bias == TM_BIAS_BY_KEY && m->config.mlp_bias)
        failed |= json_object_set_new(part, family->mlp_bias_key, json_true());
    TM_GO(tm_json_write(to, failed ? NULL : json, JSON_INDENT(2) | JSON_PRESERVE_ORDER, err));
out:
    json_decref(json);
    free(to);
    return st;
}

typedef struct origin { /* of a tensor that is written */
    tm_model *model;
    const tm_param *param;
} origin;

static tm_status give_param(const tm_st_tensor *t, void *to, tm_error *err)
{
    const origin *o = t->source;
    return tm_param_export(o->model, o->param, to, t->dtype, err);
}

tm_status tm_model_save(tm_model *m, const char *source, int save_dtype, const char *dir, tm_error *err)
{
    tm_status st = TM_OK;
    tm_st_tensor *tensors = NULL;
    origin *origins = NULL;
    int64_t count = m->params.count;
    tm_safetensors *file = NULL;
    if (m->config.family->beside[0])
        TM_GO(tm_hf_open_weights(source, &file, err));
    TM_GO(TM_NEW(&tensors, count + (file ? tm_safetensors_count(file) : 0), err));
    TM_GO(TM_NEW(&origins, count, err));
    TM_GO(tm_dir_create(dir, err));
    for (int64_t i = 0; i < count; i++) {
        const tm_param *p = m->params.item[i];
        origins[i] = (origin){m, p};
        tensors[i] = (tm_st_tensor){.name = p->name, .dtype = file_dtype(p, save_dtype), .ndim = p->ndim, .give = give_param,
                                    .shape = {p->ndim == 1 || p->turned ? p->cols : p->rows, p->turned ? p->rows : p->cols}, .source = &origins[i]};
    }
    for (int64_t i = 0; file && i < tm_safetensors_count(file); i++) /* what temper leaves alone goes along: vision */
        if (tm_family_beside(m->config.family, tm_safetensors_at(file, i)->name))
            tensors[count++] = *tm_safetensors_at(file, i);
    TM_GO(tm_hf_copy_files(source, dir, err));
    TM_GO(write_config(m, source, save_dtype, dir, err));
    TM_GO(tm_hf_write_model(dir, tensors, count, TM_HF_SHARD_BYTES, err));
out:
    tm_safetensors_close(file);
    free(origins);
    free(tensors);
    return st;
}

tm_status tm_save_model(tm_tuning *t, int32_t replica, const char *dir, tm_error *err)
{
    (void)replica;
    return tm_model_save(t->model, t->recipe->model, t->recipe->save_dtype, dir, err);
}
