/* PEFT's adapter_config.json: see adapter.h. What a config asks for and temper does not compute must be
 * refused, or the adapter would load and mean something else. So every key is one of three: read here;
 * known not to change the result of a trained adapter; or it must be off (null, false, 0, "", [], {}).
 * Keys that a later PEFT adds fall into the third kind by themselves. */
#include "io/adapter.h"

#include "base/file.h"
#include "base/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const keys_read[] = {
    "alpha_pattern", "base_model_name_or_path", "bias", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save",
    "peft_type", "r", "rank_pattern", "target_modules", "task_type", "use_dora", "use_rslora", NULL,
};

/* Where it was trained, how it began, and settings that act only beside a key of the third kind. */
static const char *const keys_harmless[] = {
    "auto_mapping", "eva_config", "loftq_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "unsloth_fixed", NULL,
};

static bool is_one_of(const char *key, const char *const *list)
{
    for (; *list; list++)
        if (strcmp(*list, key) == 0)
            return true;
    return false;
}

static bool is_off(const json_t *v)
{
    return json_is_null(v) || json_is_false(v) || (json_is_number(v) && json_number_value(v) == 0) ||
           (json_is_string(v) && !json_string_length(v)) || (json_is_array(v) && !json_array_size(v)) ||
           (json_is_object(v) && !json_object_size(v));
}

static tm_status check_keys(const json_t *root, const char *name, tm_error *err)
{
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)root, key, value)
        if (!is_one_of(key, keys_read) && !is_one_of(key, keys_harmless) && !is_off(value))
            return tm_fail(err, TM_UNSUPPORTED, "%s: \"%.100s\" is set and temper does not support it", name, key);
    return TM_OK;
}

/* These ways to begin only choose the first A and B; the others (PiSSA, OLoRA, LoftQ, ...) change the
 * base weights too, so that the adapter alone means nothing. */
static tm_status check_init(const json_t *init, const char *name, tm_error *err)
{
    static const char *const plain[] = {"gaussian", "eva", "orthogonal", NULL};
    if (!init || json_is_null(init) || json_is_boolean(init) ||
        (json_is_string(init) && is_one_of(json_string_value(init), plain)))
        return TM_OK;
    return tm_fail(err, TM_UNSUPPORTED,
                   "%s: \"init_lora_weights\" is \"%.100s\", which changes the base weights; convert the adapter to "
                   "plain LoRA",
                   name, json_is_string(init) ? json_string_value(init) : "not a known value");
}

/* ---- values ---- */

static tm_status copy_string(const json_t *root, const char *name, const char *key, char **out, tm_error *err)
{
    const char *text;
    TM_TRY(tm_json_get_string(root, name, key, NULL, &text, err));
    if (!text)
        return TM_OK;
    *out = tm_strdup(text, err);
    return *out ? TM_OK : TM_NO_MEMORY;
}

static tm_status read_names(const json_t *value, const char *name, const char *key, tm_names *out, tm_error *err)
{
    for (size_t i = 0; i < json_array_size(value); i++) {
        const char *item = json_string_value(json_array_get(value, i));
        if (!item || !*item)
            return tm_fail(err, TM_INPUT, "%s: \"%s\" entry %zu is not a name", name, key, i);
        TM_TRY(tm_names_add(out, item, err));
    }
    return TM_OK;
}

/* A list of names, or (where text is not NULL) one string; null is neither. */
static tm_status read_list(const json_t *root, const char *name, const char *key, tm_names *out, char **text,
                           tm_error *err)
{
    const json_t *value = json_object_get(root, key);
    if (!value || json_is_null(value))
        return TM_OK;
    if (text && json_is_string(value))
        return json_string_length(value) ? copy_string(root, name, key, text, err) : TM_OK;
    if (!json_is_array(value))
        return tm_fail(err, TM_INPUT, "%s: \"%s\" is not a list of names%s", name, key, text ? " or a string" : "");
    return read_names(value, name, key, out, err);
}

static tm_status read_layers(const json_t *root, const char *name, tm_adapter_config *c, tm_error *err)
{
    const json_t *value = json_object_get(root, "layers_to_transform");
    bool single = json_is_integer(value);
    if (!value || json_is_null(value))
        return TM_OK;
    if (!single && !json_is_array(value))
        return tm_fail(err, TM_INPUT, "%s: \"layers_to_transform\" is neither an integer nor a list of integers", name);
    int64_t count = single ? 1 : (int64_t)json_array_size(value);
    TM_TRY(TM_NEW(&c->layers_to_transform, count, err));
    for (int64_t i = 0; i < count; i++) {
        const json_t *layer = single ? value : json_array_get(value, (size_t)i);
        if (!json_is_integer(layer) || json_integer_value(layer) < 0)
            return tm_fail(err, TM_INPUT, "%s: \"layers_to_transform\" entry %lld is not a layer's number", name,
                           (long long)i);
        c->layers_to_transform[c->layers_to_transform_count++] = json_integer_value(layer);
    }
    return TM_OK;
}

static tm_status read_patterns(const json_t *root, const char *name, const char *key, bool whole, tm_pattern **out,
                               int64_t *count, tm_error *err)
{
    const json_t *map = json_object_get(root, key), *value;
    const char *pattern;
    if (!map || json_is_null(map))
        return TM_OK;
    if (!json_is_object(map))
        return tm_fail(err, TM_INPUT, "%s: \"%s\" is not an object of numbers", name, key);
    TM_TRY(TM_NEW(out, json_object_size(map), err));
    json_object_foreach((json_t *)map, pattern, value) {
        double number = json_is_number(value) ? json_number_value(value) : 0;
        if (!(number > 0) || (whole && (number != floor(number) || number > INT32_MAX)))
            return tm_fail(err, TM_INPUT, "%s: \"%s\" of \"%.200s\" is not a positive %s", name, key, pattern,
                           whole ? "integer" : "number");
        (*out)[*count].key = tm_strdup(pattern, err);
        if (!(*out)[*count].key)
            return TM_NO_MEMORY;
        (*out)[(*count)++].value = number;
    }
    return TM_OK;
}

static tm_status read_scalars(const json_t *root, const char *name, tm_adapter_config *c, tm_error *err)
{
    TM_TRY(copy_string(root, name, "base_model_name_or_path", &c->base_model, err));
    TM_TRY(copy_string(root, name, "task_type", &c->task_type, err));
    TM_TRY(copy_string(root, name, "bias", &c->bias, err));
    TM_TRY(tm_json_get_int(root, name, "r", 8, &c->r, err));
    TM_TRY(tm_json_get_number(root, name, "lora_alpha", 8, &c->alpha, err));
    TM_TRY(tm_json_get_number(root, name, "lora_dropout", 0, &c->dropout, err));
    TM_TRY(tm_json_get_bool(root, name, "use_rslora", false, &c->use_rslora, err));
    TM_TRY(tm_json_get_bool(root, name, "use_dora", false, &c->use_dora, err));
    TM_TRY(tm_json_get_bool(root, name, "fan_in_fan_out", false, &c->fan_in_fan_out, err));
    return tm_json_get_bool(root, name, "inference_mode", false, &c->inference_mode, err);
}

/* Ranges, and what PEFT itself refuses. */
static tm_status check_values(const char *name, const tm_adapter_config *c, tm_error *err)
{
    static const char *const biases[] = {"none", "all", "lora_only", NULL};
    if (c->task_type && strcmp(c->task_type, "CAUSAL_LM") != 0)
        return tm_fail(err, TM_UNSUPPORTED, "%s: \"task_type\" is \"%.100s\", temper knows CAUSAL_LM", name,
                       c->task_type);
    if (c->r < 1 || c->r > INT32_MAX)
        return tm_fail(err, TM_INPUT, "%s: \"r\" is %lld, expected at least 1", name, (long long)c->r);
    if (!isfinite(c->alpha))
        return tm_fail(err, TM_INPUT, "%s: \"lora_alpha\" is not finite", name);
    if (!(c->dropout >= 0 && c->dropout < 1))
        return tm_fail(err, TM_INPUT, "%s: \"lora_dropout\" is %g, expected 0 <= p < 1", name, c->dropout);
    if (!is_one_of(c->bias, biases))
        return tm_fail(err, TM_INPUT, "%s: \"bias\" is \"%.100s\", expected none, all or lora_only", name, c->bias);
    if (!c->target_regex && !c->target_modules.count)
        return tm_fail(err, TM_INPUT, "%s: \"target_modules\" is missing or empty", name);
    if (c->target_regex && (c->layers_to_transform || c->layers_pattern.count))
        return tm_fail(err, TM_INPUT, "%s: \"layers_to_transform\" needs \"target_modules\" to be a list", name);
    if (c->layers_pattern.count && !c->layers_to_transform)
        return tm_fail(err, TM_INPUT, "%s: \"layers_pattern\" is set without \"layers_to_transform\"", name);
    return TM_OK;
}

static tm_status parse(const json_t *root, const char *name, tm_adapter_config *c, tm_error *err)
{
    const char *type;
    if (!json_is_object(root))
        return tm_fail(err, TM_INPUT, "%s: is not a JSON object", name);
    TM_TRY(tm_json_get_string(root, name, "peft_type", NULL, &type, err));
    if (!type || strcmp(type, "LORA") != 0)
        return tm_fail(err, type ? TM_UNSUPPORTED : TM_INPUT, "%s: \"peft_type\" is %.100s, expected LORA", name,
                       type ? type : "missing");
    TM_TRY(check_keys(root, name, err));
    TM_TRY(check_init(json_object_get(root, "init_lora_weights"), name, err));
    TM_TRY(read_scalars(root, name, c, err));
    TM_TRY(read_list(root, name, "target_modules", &c->target_modules, &c->target_regex, err));
    TM_TRY(read_list(root, name, "exclude_modules", &c->exclude_modules, &c->exclude_regex, err));
    TM_TRY(read_list(root, name, "modules_to_save", &c->modules_to_save, NULL, err));
    const json_t *layers = json_object_get(root, "layers_pattern");
    if (!json_is_string(layers))
        TM_TRY(read_list(root, name, "layers_pattern", &c->layers_pattern, NULL, err));
    else if (json_string_length(layers))
        TM_TRY(tm_names_add(&c->layers_pattern, json_string_value(layers), err));
    TM_TRY(read_layers(root, name, c, err));
    TM_TRY(read_patterns(root, name, "rank_pattern", true, &c->rank_pattern, &c->rank_patterns, err));
    TM_TRY(read_patterns(root, name, "alpha_pattern", false, &c->alpha_pattern, &c->alpha_patterns, err));
    if (!c->bias && !(c->bias = tm_strdup("none", err)))
        return TM_NO_MEMORY;
    return check_values(name, c, err);
}

tm_status tm_adapter_config_parse(const char *text, size_t size, const char *name, tm_adapter_config *out,
                                  tm_error *err)
{
    json_t *root;
    *out = (tm_adapter_config){0};
    TM_TRY(tm_json_parse(text, size, name, &root, err));
    tm_status st = parse(root, name, out, err);
    json_decref(root);
    if (st != TM_OK)
        tm_adapter_config_deinit(out);
    return st;
}

tm_status tm_adapter_config_read(const char *dir, tm_adapter_config *out, tm_error *err)
{
    enum { MAX_BYTES = 16 << 20 };
    tm_buf text = {0};
    *out = (tm_adapter_config){0};
    char *path = tm_path_join(dir, "adapter_config.json", err);
    if (!path)
        return TM_NO_MEMORY;
    tm_status st = tm_file_read(path, MAX_BYTES, &text, err);
    if (st == TM_OK)
        st = tm_adapter_config_parse(tm_buf_str(&text), text.size, path, out, err);
    tm_buf_deinit(&text);
    free(path);
    return st;
}

static void patterns_free(tm_pattern *patterns, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        free(patterns[i].key);
    free(patterns);
}

void tm_adapter_config_deinit(tm_adapter_config *c)
{
    free(c->base_model);
    free(c->task_type);
    free(c->target_regex);
    free(c->exclude_regex);
    free(c->bias);
    free(c->layers_to_transform);
    tm_names_deinit(&c->target_modules);
    tm_names_deinit(&c->exclude_modules);
    tm_names_deinit(&c->modules_to_save);
    tm_names_deinit(&c->layers_pattern);
    patterns_free(c->rank_pattern, c->rank_patterns);
    patterns_free(c->alpha_pattern, c->alpha_patterns);
    *c = (tm_adapter_config){0};
}

/* ---- writing ---- */

static void put_key(tm_buf *b, const char *key) { tm_buf_printf(b, "%s  \"%s\": ", b->size > 2 ? ",\n" : "", key); }

static void put_text(tm_buf *b, const char *key, const char *text)
{
    put_key(b, key);
    if (text)
        tm_json_put_string(b, text);
    else
        tm_buf_text(b, "null");
}

static void put_bool(tm_buf *b, const char *key, bool value)
{
    put_key(b, key);
    tm_buf_text(b, value ? "true" : "false");
}

static void put_number(tm_buf *b, const char *key, double value)
{
    put_key(b, key);
    tm_json_put_number(b, value);
}

static int compare_strings(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* A set in PEFT: sorted here, so that the same config is the same bytes. */
static tm_status put_names(tm_buf *b, const char *key, const tm_names *names, tm_error *err)
{
    const char **sorted;
    if (!names->count)
        return TM_OK;
    TM_TRY(TM_NEW(&sorted, names->count, err));
    memcpy(sorted, names->item, (size_t)names->count * sizeof *sorted);
    qsort(sorted, (size_t)names->count, sizeof *sorted, compare_strings);
    put_key(b, key);
    for (int64_t i = 0; i < names->count; i++) {
        tm_buf_text(b, i ? ",\n    " : "[\n    ");
        tm_json_put_string(b, sorted[i]);
    }
    tm_buf_text(b, "\n  ]");
    free(sorted);
    return TM_OK;
}

static tm_status put_list(tm_buf *b, const char *key, const tm_names *names, const char *text, tm_error *err)
{
    if (!text)
        return put_names(b, key, names, err);
    put_text(b, key, text);
    return TM_OK;
}

/* In their order: it decides which pattern wins. */
static void put_patterns(tm_buf *b, const char *key, const tm_pattern *patterns, int64_t count)
{
    if (!count)
        return;
    put_key(b, key);
    for (int64_t i = 0; i < count; i++) {
        tm_buf_text(b, i ? ",\n    " : "{\n    ");
        tm_json_put_string(b, patterns[i].key);
        tm_buf_text(b, ": ");
        tm_json_put_number(b, patterns[i].value);
    }
    tm_buf_text(b, "\n  }");
}

static void put_layers(tm_buf *b, const tm_adapter_config *c)
{
    if (!c->layers_to_transform_count)
        return;
    put_key(b, "layers_to_transform");
    for (int64_t i = 0; i < c->layers_to_transform_count; i++)
        tm_buf_printf(b, "%s%lld", i ? ",\n    " : "[\n    ", (long long)c->layers_to_transform[i]);
    tm_buf_text(b, "\n  ]");
}

/* Keys in the order of their names. */
static tm_status put_config(tm_buf *b, const tm_adapter_config *c, tm_error *err)
{
    tm_buf_text(b, "{\n");
    put_patterns(b, "alpha_pattern", c->alpha_pattern, c->alpha_patterns);
    put_text(b, "base_model_name_or_path", c->base_model);
    put_text(b, "bias", c->bias ? c->bias : "none");
    TM_TRY(put_list(b, "exclude_modules", &c->exclude_modules, c->exclude_regex, err));
    put_bool(b, "fan_in_fan_out", c->fan_in_fan_out);
    put_bool(b, "inference_mode", c->inference_mode);
    TM_TRY(put_names(b, "layers_pattern", &c->layers_pattern, err));
    put_layers(b, c);
    put_number(b, "lora_alpha", c->alpha);
    put_number(b, "lora_dropout", c->dropout);
    TM_TRY(put_names(b, "modules_to_save", &c->modules_to_save, err));
    put_text(b, "peft_type", "LORA");
    put_number(b, "r", (double)c->r);
    put_patterns(b, "rank_pattern", c->rank_pattern, c->rank_patterns);
    TM_TRY(put_list(b, "target_modules", &c->target_modules, c->target_regex, err));
    put_text(b, "task_type", c->task_type ? c->task_type : "CAUSAL_LM");
    put_bool(b, "use_dora", c->use_dora);
    put_bool(b, "use_rslora", c->use_rslora);
    tm_buf_text(b, "\n}\n");
    return tm_buf_check(b, err);
}

tm_status tm_adapter_config_write(const char *dir, const tm_adapter_config *config, tm_error *err)
{
    tm_buf text = {0};
    char *path = tm_path_join(dir, "adapter_config.json", err);
    if (!path)
        return TM_NO_MEMORY;
    tm_status st = put_config(&text, config, err);
    if (st == TM_OK)
        st = tm_file_write(path, tm_buf_str(&text), text.size, err);
    tm_buf_deinit(&text);
    free(path);
    return st;
}
