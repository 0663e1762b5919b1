/* Registers: a bank of LoRA adapters in one pair of matrices a module, a gate each (docs/formats/registers.md).
 * A is the registers' A one below the other, B their B side by side; a folder holds each as a PEFT adapter. */
#include "tune/registers.h"

#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"

#include <math.h>
#include <stdlib.h>

enum { MOST = 256 }; /* registers of a bank */

bool tm_registers_there(const char *dir)
{
    tm_error ignored;
    char *path = tm_path_join(dir, "registers.json", &ignored);
    bool there = path && tm_path_exists(path);
    free(path);
    return there;
}

static tm_status part_path(const char *dir, const char *name, const char *file, char path[4096], tm_error *err)
{
    bool fits = snprintf(path, 4096, "%s/%s%s%s", dir, name, *file ? "/" : "", file) < 4096;
    return fits ? TM_OK : tm_fail(err, TM_RECIPE, "%.200s...: the path is too long", dir);
}

/* A register is a folder and a word on the command line. */
static tm_status check_name(const tm_names *before, const char *name, const char *where, tm_error *err)
{
    size_t n = strlen(name);
    if (!n || n > 60 || strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != n)
        return tm_fail(err, TM_RECIPE, "%s: register '%.80s': expected 1 to 60 letters, digits, _ or -", where, name);
    if (tm_names_contain(before, name))
        return tm_fail(err, TM_RECIPE, "%s: register '%s' is named twice", where, name);
    if (before->count == MOST)
        return tm_fail(err, TM_RECIPE, "%s: more than %d registers", where, MOST);
    return TM_OK;
}

tm_status tm_registers_name(tm_tuning *t, const tm_names *names, const char *where, tm_error *err)
{
    for (int64_t i = 0; i < names->count; i++) {
        TM_TRY(check_name(&t->registers, names->item[i], where, err));
        TM_TRY(tm_names_add(&t->registers, names->item[i], err));
    }
    return TM_OK;
}

static bool same_names(const tm_names *a, const tm_names *b)
{
    bool same = a->count == b->count;
    for (int64_t i = 0; same && i < a->count; i++)
        same = tm_names_contain(b, a->item[i]);
    return same;
}

/* All registers are of one shape: what the first says holds for all. */
static tm_status check_alike(const tm_tuning *t, const char *name, const tm_adapter_config *c, tm_error *err)
{
    const tm_adapter_config *first = &t->adapter;
    if (c->use_dora || c->modules_to_save.count || c->rank_patterns || c->alpha_patterns || c->target_regex || strcmp(c->bias, "none") != 0)
        return tm_fail(err, TM_UNSUPPORTED, "%s/%s: a register is a plain LoRA adapter: no DoRA, biases, patterns, regular expression or modules_to_save", t->from, name);
    if (c->r != first->r || c->alpha != first->alpha || c->use_rslora != first->use_rslora || !same_names(&c->target_modules, &first->target_modules))
        return tm_fail(err, TM_INPUT, "%s/%s: its rank, scale or target_modules are not those of the bank's first register", t->from, name);
    return TM_OK;
}

tm_status tm_registers_open(tm_tuning *t, tm_error *err)
{
    json_t *json = NULL;
    char path[4096];
    tm_status st = TM_OK;
    tm_names names = {0};
    TM_TRY(part_path(t->from, "registers.json", "", path, err));
    TM_GO(tm_json_read(path, &json, err));
    const json_t *list = json_object_get(json, "registers");
    for (size_t i = 0; i < json_array_size(list); i++)
        TM_GO(tm_names_add(&names, json_string_value(json_array_get(list, i)) ? json_string_value(json_array_get(list, i)) : "", err));
    if (!names.count)
        TM_GO(tm_fail(err, TM_INPUT, "%s: \"registers\" is no list of names", path));
    TM_GO(tm_registers_name(t, &names, path, err));
    for (int64_t i = 0; i < names.count; i++) {
        tm_adapter_config c;
        TM_GO(part_path(t->from, names.item[i], "", path, err));
        TM_GO(tm_adapter_config_read(path, i ? &c : &t->adapter, err));
        st = check_alike(t, names.item[i], i ? &c : &t->adapter, err);
        if (i)
            tm_adapter_config_deinit(&c);
        TM_GO(st);
    }
out:
    json_decref(json);
    tm_names_deinit(&names);
    return st;
}

/* --- Values: the part of a bank's matrix that is register k's --- */

/* B is [out, K r]: columns; A is [K r, in]: rows. part: [rows, cols] of the register. */
typedef struct slice {
    int64_t rows, cols, first_row, first_col;
} slice;

static slice slice_of(const tm_tuning *t, const tm_param *p, int64_t k)
{
    int64_t r = t->adapter.r;
    return p->kind == TM_PARAM_LORA_A ? (slice){r, p->cols, k * r, 0} : (slice){p->rows, r, 0, k * r};
}

static void copy_slice(const slice *s, int64_t cols, float *whole, float *part, bool take)
{
    for (int64_t i = 0; i < s->rows; i++) {
        float *at = whole + (s->first_row + i) * cols + s->first_col, *own = part + i * s->cols;
        memcpy(take ? own : at, take ? at : own, (size_t)s->cols * sizeof *own);
    }
}

static tm_status write_register(tm_tuning *t, int32_t replica, int64_t k, const char *dir, tm_error *err)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    tm_model *m = t->model;
    tm_status st = TM_OK;
    tm_st_tensor *tensors = NULL;
    char(*keys)[TM_TUNED_KEY] = NULL, path[4096];
    int64_t count = 0;
    TM_TRY(part_path(dir, t->registers.item[k], "", path, err));
    TM_TRY(tm_dir_create(path, err));
    TM_GO(TM_NEW(&tensors, m->params.count, err));
    TM_GO(tm_alloc((void **)&keys, (size_t)m->params.count, sizeof *keys, err));
    for (int64_t i = 0; i < m->params.count; i++) {
        const tm_param *p = m->params.item[i];
        float *whole, *part;
        if (!p->trained)
            continue;
        slice s = slice_of(t, p, k);
        TM_GO(TM_NEW(&part, s.rows * s.cols, err));
        t->method->key(t, p, keys[count]);
        tensors[count] = (tm_st_tensor){.name = keys[count], .dtype = TM_F32, .ndim = 2, .shape = {s.rows, s.cols}, .count = s.rows * s.cols,
                                          .bytes = s.rows * s.cols * 4, .data = part};
        count++;
        TM_GO(TM_NEW(&whole, tm_param_count(p), err));
        st = tm_param_read(m, p, p->value, replica, whole, TM_F32, err);
        copy_slice(&s, p->cols, whole, part, true);
        free(whole);
        TM_GO(st);
    }
    TM_GO(tm_adapter_config_write(path, &t->adapter, err));
    TM_GO(part_path(dir, t->registers.item[k], "adapter_model.safetensors", path, err));
    TM_GO(tm_safetensors_write(path, tensors, count, metadata, err));
out:
    for (int64_t i = 0; i < count; i++)
        free((void *)(uintptr_t)tensors[i].data);
    free(tensors);
    free(keys);
    return st;
}

tm_status tm_registers_write(tm_tuning *t, int32_t replica, const char *dir, tm_error *err)
{
    tm_buf text = {0};
    tm_status st = TM_OK;
    char path[4096];
    TM_TRY(part_path(dir, "registers.json", "", path, err));
    for (int64_t k = 0; k < t->registers.count; k++)
        TM_TRY(write_register(t, replica, k, dir, err));
    tm_buf_text(&text, "{\n  \"format\": 1,\n  \"registers\": [");
    for (int64_t k = 0; k < t->registers.count; k++) {
        tm_buf_text(&text, k ? ", " : "");
        tm_json_put_string(&text, t->registers.item[k]);
    }
    tm_buf_text(&text, "]\n}\n");
    st = tm_buf_check(&text, err);
    if (st == TM_OK)
        st = tm_file_write(path, tm_buf_str(&text), text.size, err);
    tm_buf_deinit(&text);
    return st;
}

static tm_status read_register(tm_tuning *t, int32_t replica, int64_t k, tm_error *err)
{
    tm_model *m = t->model;
    tm_safetensors *file;
    tm_status st = TM_OK;
    int64_t used = 0;
    char path[4096];
    TM_TRY(part_path(t->from, t->registers.item[k], "adapter_model.safetensors", path, err));
    TM_TRY(tm_safetensors_open(path, &file, err));
    for (int64_t i = 0; i < m->params.count; i++) {
        tm_param *p = m->params.item[i];
        char key[TM_TUNED_KEY];
        float *whole = NULL, *part = NULL;
        if (!p->trained)
            continue;
        slice s = slice_of(t, p, k);
        t->method->key(t, p, key);
        const tm_st_tensor *stored = tm_safetensors_find(file, key);
        bool fits = stored && stored->ndim == 2 && stored->shape[0] == s.rows && stored->shape[1] == s.cols &&
                    (stored->dtype == TM_F32 || stored->dtype == TM_F16 || stored->dtype == TM_BF16 || stored->dtype == TM_F64);
        if (!fits)
            TM_GO(tm_fail(err, TM_INPUT, "%s: tensor %s is missing, or not [%lld, %lld] of a float type", path, key, (long long)s.rows, (long long)s.cols));
        st = TM_NEW(&whole, tm_param_count(p), err);
        if (st == TM_OK)
            st = TM_NEW(&part, stored->count, err);
        if (st == TM_OK)
            st = tm_param_read(m, p, p->value, replica, whole, TM_F32, err);
        if (st == TM_OK) {
            tm_dtype_convert(part, TM_F32, stored->data, stored->dtype, stored->count);
            copy_slice(&s, p->cols, whole, part, false);
            st = tm_param_write(m, p, replica, whole, TM_F32, err);
        }
        free(whole);
        free(part);
        TM_GO(st);
        used++;
    }
    if (used != tm_safetensors_count(file))
        st = tm_fail(err, TM_INPUT, "%s: %lld tensors, of which %lld belong to this adapter on this model", path, (long long)tm_safetensors_count(file), (long long)used);
out:
    tm_safetensors_close(file);
    return st;
}

tm_status tm_registers_read(tm_tuning *t, int32_t replica, tm_error *err)
{
    for (int64_t k = 0; k < t->registers.count; k++)
        TM_TRY(read_register(t, replica, k, err));
    return TM_OK;
}

/* --- Gates --- */

static tm_status set_gate(const tm_names *registers, const char *name, size_t size, const char *number, const char *where, float *out, tm_error *err)
{
    char *end;
    for (int64_t k = 0; k < registers->count; k++) {
        if (strlen(registers->item[k]) != size || strncmp(registers->item[k], name, size) != 0)
            continue;
        double value = strtod(number, &end);
        if (end == number || (*end && *end != ',') || !isfinite(value))
            return tm_fail(err, TM_RECIPE, "%s: gate of %s: found '%.40s', expected a number", where, registers->item[k], number);
        out[k] = (float)value;
        return TM_OK;
    }
    return tm_fail(err, TM_RECIPE, "%s: there is no register '%.*s'; the bank has %s%s", where, (int)(size < 80 ? size : 80), name, registers->count ? registers->item[0] : "none",
                   registers->count > 1 ? ", ..." : "");
}

tm_status tm_registers_gates(const tm_names *registers, const tm_string_map *map, const char *where, float *out, tm_error *err)
{
    for (int64_t i = 0; i < map->keys.count; i++)
        TM_TRY(set_gate(registers, map->keys.item[i], strlen(map->keys.item[i]), map->values.item[i], where, out, err));
    return TM_OK;
}

tm_status tm_registers_parse(const tm_names *registers, const char *text, const char *where, float *out, tm_error *err)
{
    while (*text) {
        size_t name = strcspn(text, "=,");
        if (text[name] != '=')
            return tm_fail(err, TM_USAGE, "%s: found '%.80s', expected NAME=NUMBER,NAME=NUMBER", where, text);
        TM_TRY(set_gate(registers, text, name, text + name + 1, where, out, err));
        text += strcspn(text, ",");
        text += *text == ',';
    }
    return TM_OK;
}
