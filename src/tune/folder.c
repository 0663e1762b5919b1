/* The tensors of an adapter folder: writing what was trained, reading it back as first values. Which key
 * a tensor has is the method's to say; that every tensor of the file is understood is held here. */
#include "tune/tune.h"

#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"

#include <stdlib.h>

static tm_status file_path(const char *dir, const char *file, char path[4096], tm_error *err)
{
    bool fits = snprintf(path, 4096, "%s/%s", dir, file) < 4096;
    return fits ? TM_OK : tm_fail(err, TM_RECIPE, "%.200s...: the path is too long", dir);
}

/* out[cols, rows] = in[rows, cols]. */
static void turn(const float *in, int64_t rows, int64_t cols, float *out)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < cols; k++)
            out[k * rows + i] = in[i * cols + k];
}

/* --- Writing --- */

static tm_status read_param(tm_model *m, const tm_param *p, int32_t replica, float *value, tm_error *err)
{
    if (!p->turned)
        return tm_param_read(m, p, p->value, replica, value, TM_F32, err);
    float *straight;
    TM_TRY(TM_NEW(&straight, tm_param_count(p), err));
    tm_status st = tm_param_read(m, p, p->value, replica, straight, TM_F32, err);
    turn(straight, p->rows, p->cols, value);
    free(straight);
    return st;
}

tm_status tm_tuned_write(tm_tuning *t, int32_t replica, const char *dir, tm_error *err)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    tm_model *m = t->model;
    tm_status st = TM_OK;
    tm_st_tensor *tensors = NULL;
    char(*keys)[TM_TUNED_KEY] = NULL, path[4096];
    int64_t count = 0;
    TM_TRY(file_path(dir, t->method->file, path, err));
    TM_GO(TM_NEW(&tensors, m->params.count, err));
    TM_GO(tm_alloc((void **)&keys, (size_t)m->params.count, sizeof *keys, err));
    for (int64_t i = 0; i < m->params.count; i++) {
        const tm_param *p = m->params.item[i];
        float *value;
        if (!p->trained)
            continue;
        TM_GO(TM_NEW(&value, tm_param_count(p), err));
        t->method->key(t, p, keys[count]);
        tm_st_tensor *out = &tensors[count++];
        *out = (tm_st_tensor){.name = keys[count - 1], .dtype = TM_F32, .ndim = p->ndim, .count = tm_param_count(p), .bytes = tm_param_count(p) * 4, .data = value};
        out->shape[0] = p->ndim == 1 || p->turned ? p->cols : p->rows;
        out->shape[1] = p->turned ? p->rows : p->cols;
        TM_GO(read_param(m, p, replica, value, err));
    }
    TM_GO(tm_safetensors_write(path, tensors, count, metadata, err));
out:
    for (int64_t i = 0; i < count; i++)
        free((void *)(uintptr_t)tensors[i].data);
    free(tensors);
    free(keys);
    return st;
}

/* --- Reading --- */

tm_status tm_tuned_save(tm_tuning *t, int32_t replica, const char *dir, const char *fields, tm_error *err)
{
    tm_buf text = {0};
    tm_status st = TM_OK;
    char *path = tm_path_join(dir, "adapter_config.json", err);
    if (!path)
        return TM_NO_MEMORY;
    TM_GO(tm_tuned_write(t, replica, dir, err));
    tm_buf_text(&text, "{\n  \"base_model_name_or_path\": ");
    tm_json_put_string(&text, t->recipe->model ? t->recipe->model : "");
    tm_buf_printf(&text, ",\n%s}\n", fields);
    TM_GO(tm_buf_check(&text, err));
    TM_GO(tm_file_write(path, tm_buf_str(&text), text.size, err));
out:
    tm_buf_deinit(&text);
    free(path);
    return st;
}

tm_status tm_tuned_open(tm_tuning *t, tm_error *err)
{
    char path[4096];
    TM_TRY(file_path(t->from, t->method->file, path, err));
    return tm_safetensors_open(path, &t->start, err);
}

static tm_status write_param(tm_tuning *t, tm_param *p, int32_t replica, const char *key, const tm_st_tensor *stored, tm_error *err)
{
    int64_t rows = p->turned ? p->cols : p->rows, cols = p->turned ? p->rows : p->cols;
    bool fits = stored->count == tm_param_count(p) && (p->ndim == 1 || (stored->ndim == 2 && stored->shape[0] == rows));
    bool float_type = stored->dtype == TM_F32 || stored->dtype == TM_F16 || stored->dtype == TM_BF16 || stored->dtype == TM_F64;
    if (!fits || !float_type)
        return tm_fail(err, TM_INPUT, "%s/%s: tensor %s has shape [%lld, %lld] of %s, expected [%lld, %lld] of a float type", t->from, t->method->file, key,
                       (long long)(stored->ndim ? stored->shape[0] : 0), (long long)(stored->ndim > 1 ? stored->shape[1] : 0), tm_dtype_name(stored->dtype),
                       (long long)rows, (long long)cols);
    if (!p->turned)
        return tm_param_write(t->model, p, replica, stored->data, stored->dtype, err);
    tm_status st = TM_OK;
    float *value = NULL, *turned = NULL;
    TM_GO(TM_NEW(&value, stored->count, err));
    TM_GO(TM_NEW(&turned, stored->count, err));
    tm_dtype_convert(value, TM_F32, stored->data, stored->dtype, stored->count);
    turn(value, rows, cols, turned);
    st = tm_param_write(t->model, p, replica, turned, TM_F32, err);
out:
    free(value);
    free(turned);
    return st;
}

/* PEFT stores the base's own matrix beside LoRA on an embedding or a head ("base_layer.weight"): it is
 * loaded as PEFT loads it. A tied head's is the embedding's. */
static tm_status take_base_layer(tm_tuning *t, const tm_st_tensor *stored, bool *taken, tm_error *err)
{
    static const char suffix[] = ".base_layer.weight", prefix[] = TM_PEFT_PREFIX;
    char name[TM_TUNED_KEY];
    size_t n = strlen(stored->name), k = sizeof suffix - 1, skip = sizeof prefix - 1;
    *taken = n > k + skip && n < sizeof name && strcmp(stored->name + n - k, suffix) == 0 && strncmp(stored->name, prefix, skip) == 0;
    if (!*taken)
        return TM_OK;
    snprintf(name, sizeof name, "%.*s.weight", (int)(n - k - skip), stored->name + skip);
    tm_model *m = t->model;
    tm_param *p = tm_params_find(&m->params, name);
    if (!p && m->head.weight == m->embed && strncmp(name, m->head.name, strlen(m->head.name)) == 0)
        return TM_OK;
    *taken = p && !p->added && !p->trained;
    return *taken ? write_param(t, p, 0, stored->name, stored, err) : TM_OK;
}

static bool belongs(const tm_tuning *t, const char *name)
{
    char key[TM_TUNED_KEY];
    for (int64_t k = 0; k < t->model->params.count; k++) {
        if (!t->model->params.item[k]->trained)
            continue;
        t->method->key(t, t->model->params.item[k], key);
        if (strcmp(key, name) == 0)
            return true;
    }
    return false;
}

tm_status tm_tuned_read_param(tm_tuning *t, tm_param *p, int32_t replica, tm_error *err)
{
    char key[TM_TUNED_KEY];
    t->method->key(t, p, key);
    const tm_st_tensor *stored = tm_safetensors_find(t->start, key);
    if (!stored)
        return tm_fail(err, TM_INPUT, "%s/%s: tensor %s is missing", t->from, t->method->file, key);
    return write_param(t, p, replica, key, stored, err);
}

tm_status tm_tuned_read(tm_tuning *t, int32_t replica, tm_error *err)
{
    int64_t used = 0, stored_count = tm_safetensors_count(t->start);
    for (int64_t i = 0; i < t->model->params.count; i++) {
        tm_param *p = t->model->params.item[i];
        if (!p->trained)
            continue;
        TM_TRY(tm_tuned_read_param(t, p, replica, err));
        used++;
    }
    for (int64_t i = 0; i < stored_count && used != stored_count; i++) {
        const tm_st_tensor *stored = tm_safetensors_at(t->start, i);
        bool known;
        TM_TRY(take_base_layer(t, stored, &known, err));
        if (!known && !belongs(t, stored->name))
            return tm_fail(err, TM_INPUT, "%s/%s: tensor %s does not belong to this adapter on this model", t->from, t->method->file, stored->name);
    }
    return TM_OK;
}
