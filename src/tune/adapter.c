/* Houlsby adapters (1902.00751): a bottleneck behind attention and behind the feed-forward part of every
 * block, nothing else trained. Folder, keys and first values are those of AdapterHub's library
 * (DoubleSeqBnConfig, its HoulsbyConfig): docs/formats/houlsby.md. */
#include "tune/tune.h"

#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"
#include "base/philox.h"

#include <math.h>
#include <stdlib.h>

enum { PARTS = 2 }; /* behind attention, behind feed-forward */

static const struct {
    const char *name;
    tm_activation act;
} activations[] = {{"swish", TM_ACT_SILU}, {"relu", TM_ACT_RELU}, {"gelu", TM_ACT_GELU}, {"silu", TM_ACT_SILU}};

/* --- The folder's config --- */

/* Settings of AdapterHub that change what is computed, and the one value of each that temper computes. */
static tm_status check_settings(const json_t *config, const char *path, tm_error *err)
{
    static const struct {
        const char *key;
        double expect; /* of booleans 0 and 1 */
    } fixed[] = {{"mh_adapter", 1}, {"output_adapter", 1}, {"original_ln_before", 0}, {"original_ln_after", 1}, {"residual_before_ln", 1},
                 {"adapter_residual_before_ln", 0}, {"ln_before", 0}, {"ln_after", 0}, {"is_parallel", 0}, {"use_gating", 0}, {"phm_layer", 0},
                 {"cross_adapter", 0}, {"scaling", 1}, {"dropout", 0}, {"stochastic_depth", 0}};
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        const json_t *v = json_object_get(config, fixed[i].key);
        double value = json_is_boolean(v) ? json_is_true(v) : json_is_number(v) ? json_number_value(v) : NAN;
        if (v && value != fixed[i].expect)
            return tm_fail(err, TM_UNSUPPORTED, "%s: config.%s is not %g: temper computes AdapterHub's double_seq_bn (Houlsby) adapters", path, fixed[i].key, fixed[i].expect);
    }
    if (json_array_size(json_object_get(config, "leave_out")) || json_is_string(json_object_get(config, "inv_adapter")))
        return tm_fail(err, TM_UNSUPPORTED, "%s: config.leave_out and config.inv_adapter are not supported", path);
    return TM_OK;
}

typedef struct houlsby {
    int64_t size;
    tm_activation act;
    char name[100];
} houlsby;

static tm_status parse_config(const json_t *json, const char *path, int64_t width, houlsby *out, tm_error *err)
{
    const json_t *config = json_object_get(json, "config");
    const char *text;
    double factor;
    int64_t hidden;
    TM_TRY(check_settings(config, path, err));
    TM_TRY(tm_json_get_number(config, path, "reduction_factor", 16, &factor, err));
    TM_TRY(tm_json_get_int(json, path, "hidden_size", width, &hidden, err));
    if (hidden != width)
        return tm_fail(err, TM_INPUT, "%s: hidden_size is %lld, the model's is %lld: another base model?", path, (long long)hidden, (long long)width);
    out->size = factor > 0 && factor <= (double)width ? (int64_t)floor((double)width / factor) : 0;
    if (out->size < 1 || out->size > 1 << 20)
        return tm_fail(err, TM_INPUT, "%s: config.reduction_factor is %g, expected more than 0 and at most the width %lld", path, factor, (long long)width);
    TM_TRY(tm_json_get_string(config, path, "non_linearity", "swish", &text, err));
    size_t i = 0;
    while (i < sizeof activations / sizeof activations[0] && strcmp(activations[i].name, text) != 0)
        i++;
    if (i == sizeof activations / sizeof activations[0])
        return tm_fail(err, TM_UNSUPPORTED, "%s: config.non_linearity '%.60s' is not supported (swish, relu, gelu are)", path, text);
    out->act = activations[i].act;
    TM_TRY(tm_json_get_string(json, path, "name", "temper", &text, err));
    if (snprintf(out->name, sizeof out->name, "%s", text) >= (int)sizeof out->name || !*text)
        return tm_fail(err, TM_INPUT, "%s: name is empty or longer than %zu bytes", path, sizeof out->name - 1);
    return TM_OK;
}

static tm_status read_config(const char *dir, int64_t width, houlsby *out, tm_error *err)
{
    json_t *json = NULL;
    char *path = tm_path_join(dir, "adapter_config.json", err);
    tm_status st = path ? tm_json_read(path, &json, err) : TM_NO_MEMORY;
    if (st == TM_OK)
        st = parse_config(json, path, width, out, err);
    json_decref(json);
    free(path);
    return st;
}

/* A reduction factor of which the library's floor(width / factor) makes this very size. */
static double factor_of(int64_t width, int64_t size)
{
    double factor = (double)width / (double)size;
    while (floor((double)width / factor) < (double)size)
        factor = nextafter(factor, 0);
    return factor;
}

static tm_status write_config(const tm_tuning *t, const char *path, tm_error *err)
{
    const tm_model *m = t->model;
    tm_buf text = {0};
    size_t act = 0;
    while (activations[act].act != m->bottleneck.act)
        act++;
    tm_buf_printf(&text, "{\n  \"config\": {\n    \"adapter_residual_before_ln\": false,\n    \"cross_adapter\": false,\n    \"dropout\": 0.0,\n"
                         "    \"init_weights\": \"bert\",\n    \"inv_adapter\": null,\n    \"inv_adapter_reduction_factor\": null,\n    \"is_parallel\": false,\n"
                         "    \"leave_out\": [],\n    \"ln_after\": false,\n    \"ln_before\": false,\n    \"mh_adapter\": true,\n    \"non_linearity\": \"%s\",\n"
                         "    \"original_ln_after\": true,\n    \"original_ln_before\": false,\n    \"output_adapter\": true,\n    \"phm_layer\": false,\n    \"reduction_factor\": ",
                  activations[act].name);
    tm_json_put_number(&text, factor_of(m->config.width, m->bottleneck.size));
    tm_buf_printf(&text, ",\n    \"residual_before_ln\": true,\n    \"scaling\": 1.0,\n    \"use_gating\": false\n  },\n  \"hidden_size\": %lld,\n  \"model_class\": \"%s\",\n  \"model_name\": ",
                  (long long)m->config.width, m->config.family->architecture);
    tm_json_put_string(&text, t->recipe->model ? t->recipe->model : "");
    tm_buf_printf(&text, ",\n  \"model_type\": \"%s\",\n  \"name\": ", m->config.family->model_type);
    tm_json_put_string(&text, t->adapter_name);
    tm_buf_text(&text, ",\n  \"version\": \"adapters.1.3.0\"\n}\n");
    tm_status st = tm_buf_check(&text, err);
    if (st == TM_OK)
        st = tm_file_write(path, tm_buf_str(&text), text.size, err);
    tm_buf_deinit(&text);
    return st;
}

/* --- The method --- */

static tm_status add(tm_tuning *t, int64_t layer, const char *part, const char *suffix, int64_t rows, int64_t cols, bool vector, tm_param **out, tm_error *err)
{
    char prefix[64], name[300];
    tm_model *m = t->model;
    snprintf(prefix, sizeof prefix, m->config.family->layer, (int)layer);
    snprintf(name, sizeof name, "%s.%s.adapters.%s.%s", prefix, part, t->adapter_name, suffix);
    TM_TRY(tm_params_add(&m->params, name, vector ? TM_PARAM_BIAS : TM_PARAM_MATRIX, rows, cols, out, err));
    (*out)->layer = (int32_t)layer;
    (*out)->ndim = vector ? 1 : 2;
    (*out)->added = (*out)->trained = true;
    (*out)->replicas = m->replicas;
    return TM_OK;
}

static tm_status add_bottleneck(tm_tuning *t, int64_t layer, const char *part, tm_bottleneck **out, tm_error *err)
{
    int64_t C = t->model->config.width, s = t->model->bottleneck.size;
    TM_TRY(TM_NEW(out, 1, err));
    TM_TRY(add(t, layer, part, "adapter_down.0.weight", s, C, false, &(*out)->down, err));
    TM_TRY(add(t, layer, part, "adapter_down.0.bias", 1, s, true, &(*out)->down_bias, err));
    TM_TRY(add(t, layer, part, "adapter_up.weight", C, s, false, &(*out)->up, err));
    return add(t, layer, part, "adapter_up.bias", 1, C, true, &(*out)->up_bias, err);
}

static tm_status adapter_select(tm_tuning *t, tm_error *err)
{
    tm_model *m = t->model;
    houlsby config = {.size = t->recipe->adapter_size, .act = activations[t->recipe->adapter_activation].act, .name = "temper"};
    if (t->from) {
        TM_TRY(read_config(t->from, m->config.width, &config, err));
        TM_TRY(tm_tuned_open(t, err));
    } else if (config.size > m->config.width)
        return tm_fail(err, TM_RECIPE, "adapter.size: %lld is wider than the model (%lld): expected a bottleneck", (long long)config.size, (long long)m->config.width);
    m->bottleneck.size = config.size;
    m->bottleneck.act = config.act;
    t->adapter_name = tm_strdup(config.name, err);
    if (!t->adapter_name)
        return TM_NO_MEMORY;
    for (int64_t i = 0; i < m->config.layers; i++) {
        TM_TRY(add_bottleneck(t, i, "attention_adapters", &m->block[i].attn_adapter, err));
        TM_TRY(add_bottleneck(t, i, "output_adapters", &m->block[i].ffn_adapter, err));
    }
    return TM_OK;
}

/* The library's first values ("bert"): matrices normal with deviation 0.02, biases zero. */
static tm_status start_matrix(tm_tuning *t, tm_param *p, int32_t replica, uint64_t key, tm_error *err)
{
    float *value;
    TM_TRY(TM_NEW(&value, tm_param_count(p) + 1, err));
    tm_fill_normal(value, tm_param_count(p), key);
    for (int64_t i = 0; i < tm_param_count(p); i++)
        value[i] *= 0.02f;
    tm_status st = tm_param_write(t->model, p, replica, value, TM_F32, err);
    free(value);
    return st;
}

static tm_status adapter_start(tm_tuning *t, int32_t replica, uint64_t seed, tm_error *err)
{
    tm_model *m = t->model;
    if (t->start)
        return tm_tuned_read(t, replica, err);
    for (int64_t i = 0; i < m->config.layers * PARTS; i++) {
        tm_bottleneck *b = i % PARTS ? m->block[i / PARTS].ffn_adapter : m->block[i / PARTS].attn_adapter;
        TM_TRY(start_matrix(t, b->down, replica, tm_philox_key(seed, TM_PURPOSE_INIT, (uint32_t)i, 2), err));
        TM_TRY(start_matrix(t, b->up, replica, tm_philox_key(seed, TM_PURPOSE_INIT, (uint32_t)i, 3), err));
        TM_RUN(m->device, fill, tm_param_part(b->down_bias, b->down_bias->value, replica), 0);
        TM_RUN(m->device, fill, tm_param_part(b->up_bias, b->up_bias->value, replica), 0);
    }
    return TM_OK;
}

static void adapter_key(const tm_tuning *t, const tm_param *p, char key[TM_TUNED_KEY])
{
    (void)t;
    snprintf(key, TM_TUNED_KEY, "%s", p->name);
}

static tm_status adapter_save(tm_tuning *t, int32_t replica, const char *dir, tm_error *err)
{
    char *path = tm_path_join(dir, "adapter_config.json", err);
    tm_status st = path ? tm_tuned_write(t, replica, dir, err) : TM_NO_MEMORY;
    if (st == TM_OK)
        st = write_config(t, path, err);
    free(path);
    return st;
}

const tm_method tm_method_adapter = {.name = "adapter", .auto_lr = 1e-3, .adapter = true, .replicas = true, .file = "adapter.safetensors",
                                     .select = adapter_select, .start = adapter_start, .save = adapter_save, .key = adapter_key};
