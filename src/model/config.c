/* config.json to numbers: see config.h. Accepts the layouts of transformers 4 (rope_theta,
 * rope_scaling) and 5 (rope_parameters). */
#include "model/config.h"

#include "base/exact.h"
#include "base/file.h"
#include "io/hf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Sizes beyond these are nonsense; they keep products of two dimensions far from overflow. */
enum { MAX_DIM = 1 << 24, MAX_LAYERS = 4096 };

typedef struct reader {
    const json_t *json;
    const char *path;
    tm_error *err;
} reader;

static tm_status get_dim(const reader *r, const char *key, int64_t fallback, int64_t limit, int64_t *out)
{
    TM_TRY(tm_json_get_int(r->json, r->path, key, fallback, out, r->err));
    if (*out <= 0 || *out > limit)
        return tm_fail(r->err, TM_INPUT, "%s: %s is %lld, expected 1 to %lld", r->path, key, (long long)*out, (long long)limit);
    return TM_OK;
}

static tm_status read_rope(const reader *r, tm_rope_config *rope)
{
    const json_t *scaling = json_object_get(r->json, "rope_parameters");
    if (!json_is_object(scaling))
        scaling = json_object_get(r->json, "rope_scaling");
    if (scaling && !json_is_object(scaling) && !json_is_null(scaling))
        return tm_fail(r->err, TM_INPUT, "%s: rope_scaling: expected an object or null", r->path);
    const char *kind = NULL;
    *rope = (tm_rope_config){.factor = 1};
    TM_TRY(tm_json_get_number(r->json, r->path, "rope_theta", 10000.0, &rope->theta, r->err));
    if (json_is_object(scaling)) {
        TM_TRY(tm_json_get_string(scaling, r->path, "type", "default", &kind, r->err));
        TM_TRY(tm_json_get_string(scaling, r->path, "rope_type", kind, &kind, r->err));
        TM_TRY(tm_json_get_number(scaling, r->path, "rope_theta", rope->theta, &rope->theta, r->err));
        TM_TRY(tm_json_get_number(scaling, r->path, "factor", 1, &rope->factor, r->err));
        TM_TRY(tm_json_get_number(scaling, r->path, "low_freq_factor", 1, &rope->low_freq_factor, r->err));
        TM_TRY(tm_json_get_number(scaling, r->path, "high_freq_factor", 4, &rope->high_freq_factor, r->err));
        TM_TRY(tm_json_get_int(scaling, r->path, "original_max_position_embeddings", 8192, &rope->original_positions, r->err));
        if (strcmp(kind, "default") == 0)
            rope->kind = TM_ROPE_DEFAULT;
        else if (strcmp(kind, "linear") == 0)
            rope->kind = TM_ROPE_LINEAR;
        else if (strcmp(kind, "llama3") == 0)
            rope->kind = TM_ROPE_LLAMA3;
        else
            return tm_fail(r->err, TM_UNSUPPORTED, "%s: rope scaling '%s' is not supported (default, linear, llama3 are)", r->path, kind);
        double partial;
        TM_TRY(tm_json_get_number(scaling, r->path, "partial_rotary_factor", 1, &partial, r->err));
        if (partial != 1)
            return tm_fail(r->err, TM_UNSUPPORTED, "%s: partial_rotary_factor %g is not supported (1 is)", r->path, partial);
    }
    if (!(rope->theta > 0) || !(rope->factor > 0) || (rope->kind == TM_ROPE_LLAMA3 &&
        (rope->original_positions <= 0 || !(rope->high_freq_factor > rope->low_freq_factor) || !(rope->low_freq_factor > 0))))
        return tm_fail(r->err, TM_INPUT, "%s: rope: theta and factor must be positive, high_freq_factor above low_freq_factor", r->path);
    return TM_OK;
}

static tm_status read_bias(const reader *r, tm_bias_rule rule, const char *key, bool *out)
{
    *out = rule == TM_BIAS_ALWAYS;
    return rule == TM_BIAS_BY_KEY ? tm_json_get_bool(r->json, r->path, key, false, out, r->err) : TM_OK;
}

static tm_status read_windows(const reader *r, tm_model_config *c)
{
    const tm_family *family = c->family;
    TM_TRY(TM_NEW(&c->window, c->layers, r->err));
    if (family->window == TM_WINDOW_NEVER)
        return TM_OK;
    int64_t window = family->default_window, first = 0;
    bool use = true;
    const json_t *value = json_object_get(r->json, "sliding_window"), *types = json_object_get(r->json, "layer_types");
    if (json_is_null(value))
        window = 0;
    else
        TM_TRY(tm_json_get_int(r->json, r->path, "sliding_window", window, &window, r->err));
    if (window < 0 || window > INT32_MAX)
        return tm_fail(r->err, TM_INPUT, "%s: sliding_window is %lld, expected a positive number or null", r->path, (long long)window);
    if (family->window == TM_WINDOW_LAYER_TYPES) {
        TM_TRY(tm_json_get_bool(r->json, r->path, "use_sliding_window", false, &use, r->err));
        TM_TRY(tm_json_get_int(r->json, r->path, "max_window_layers", 28, &first, r->err));
        if (json_is_array(types) && (int64_t)json_array_size(types) != c->layers)
            return tm_fail(r->err, TM_INPUT, "%s: layer_types has %zu entries, expected num_hidden_layers = %lld", r->path,
                           json_array_size(types), (long long)c->layers);
    }
    for (int64_t i = 0; i < c->layers && use; i++) {
        bool sliding = i >= first;
        if (family->window == TM_WINDOW_LAYER_TYPES && json_is_array(types)) {
            const char *type = json_string_value(json_array_get(types, (size_t)i));
            if (!type || (strcmp(type, "full_attention") && strcmp(type, "sliding_attention")))
                return tm_fail(r->err, TM_UNSUPPORTED, "%s: layer_types[%lld] is '%s', expected full_attention or sliding_attention",
                               r->path, (long long)i, type ? type : "not a string");
            sliding = strcmp(type, "sliding_attention") == 0;
        }
        c->window[i] = sliding ? (int32_t)window : 0;
    }
    return TM_OK;
}

static tm_status read_config(const reader *r, tm_model_config *c)
{
    tm_error *err = r->err;
    const char *text;
    TM_TRY(tm_json_get_string(r->json, r->path, "model_type", NULL, &text, err));
    if (!text)
        return tm_fail(err, TM_INPUT, "%s: key model_type is missing", r->path);
    c->family = tm_family_find(text);
    if (!c->family)
        return tm_fail(err, TM_UNSUPPORTED, "%s: model_type '%s' is not supported (llama, mistral, qwen2, qwen3 are)", r->path, text);
    TM_TRY(get_dim(r, "vocab_size", 0, MAX_DIM, &c->vocab));
    TM_TRY(get_dim(r, "hidden_size", 0, MAX_DIM, &c->width));
    TM_TRY(get_dim(r, "num_hidden_layers", 0, MAX_LAYERS, &c->layers));
    TM_TRY(get_dim(r, "num_attention_heads", 0, MAX_DIM, &c->heads));
    TM_TRY(get_dim(r, "num_key_value_heads", c->family->default_kv_heads ? c->family->default_kv_heads : c->heads, MAX_DIM, &c->kv_heads));
    int64_t head_size = c->family->default_head_size ? c->family->default_head_size : c->width / c->heads;
    TM_TRY(get_dim(r, "head_dim", head_size, 4096, &c->head_size));
    TM_TRY(get_dim(r, "intermediate_size", 0, MAX_DIM, &c->ffn));
    TM_TRY(get_dim(r, "max_position_embeddings", 2048, MAX_DIM, &c->max_positions));
    if (c->heads % c->kv_heads)
        return tm_fail(err, TM_INPUT, "%s: num_key_value_heads %lld does not divide num_attention_heads %lld", r->path,
                       (long long)c->kv_heads, (long long)c->heads);
    if (c->head_size % 2)
        return tm_fail(err, TM_INPUT, "%s: head_dim %lld is odd, rotary positions need pairs", r->path, (long long)c->head_size);
    if (c->heads * c->head_size > MAX_DIM)
        return tm_fail(err, TM_INPUT, "%s: num_attention_heads x head_dim is %lld, expected at most %d", r->path,
                       (long long)(c->heads * c->head_size), MAX_DIM);
    double number;
    TM_TRY(tm_json_get_number(r->json, r->path, "rms_norm_eps", 1e-6, &number, err));
    c->norm_eps = (float)number;
    TM_TRY(tm_json_get_number(r->json, r->path, "initializer_range", 0.02, &c->init_std, err));
    TM_TRY(tm_json_get_bool(r->json, r->path, "tie_word_embeddings", false, &c->tied, err));
    TM_TRY(tm_json_get_string(r->json, r->path, "hidden_act", "silu", &text, err));
    if (strcmp(text, "silu") != 0)
        return tm_fail(err, TM_UNSUPPORTED, "%s: hidden_act '%s' is not supported (silu is)", r->path, text);
    c->activation = TM_ACT_SILU;
    if (json_is_object(json_object_get(r->json, "quantization_config")))
        return tm_fail(err, TM_UNSUPPORTED, "%s: quantization_config: quantised weights cannot be read yet, use the 16-bit model", r->path);
    TM_TRY(read_rope(r, &c->rope));
    TM_TRY(read_bias(r, c->family->qkv_bias, c->family->attn_bias_key, &c->qkv_bias));
    TM_TRY(read_bias(r, c->family->o_bias, c->family->attn_bias_key, &c->o_bias));
    TM_TRY(read_bias(r, c->family->mlp_bias, c->family->mlp_bias_key, &c->mlp_bias));
    return read_windows(r, c);
}

tm_status tm_model_config_read(const char *dir, tm_model_config *out, tm_error *err)
{
    *out = (tm_model_config){0};
    tm_status st = TM_OK;
    json_t *json = NULL;
    char *path = tm_path_join(dir, "config.json", err);
    if (!path)
        return TM_NO_MEMORY;
    TM_GO(tm_hf_json(dir, "config.json", &json, err));
    if (!json)
        TM_GO(tm_fail(err, TM_INPUT, "%s: the file is not there", path));
    if (!json_is_object(json))
        TM_GO(tm_fail(err, TM_INPUT, "%s: expected a JSON object", path));
    TM_GO(read_config(&(reader){json, path, err}, out));
out:
    if (st != TM_OK)
        tm_model_config_deinit(out);
    json_decref(json);
    free(path);
    return st;
}

void tm_model_config_deinit(tm_model_config *config)
{
    free(config->window);
    *config = (tm_model_config){0};
}

void tm_rope_frequencies(const tm_model_config *config, float *inv_freq)
{
    const tm_rope_config *rope = &config->rope;
    for (int64_t i = 0; i < config->head_size / 2; i++) {
        float exponent = (float)(2 * i) / (float)config->head_size;
        float f = 1.0f / (float)tm_pow(rope->theta, exponent);
        if (rope->kind == TM_ROPE_LINEAR)
            f /= (float)rope->factor;
        if (rope->kind == TM_ROPE_LLAMA3) {
            double wavelength = 2 * M_PI / f, original = (double)rope->original_positions;
            double low = original / rope->low_freq_factor, high = original / rope->high_freq_factor;
            if (wavelength > low)
                f = (float)(f / rope->factor);
            else if (wavelength >= high) {
                double smooth = (original / wavelength - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
                f = (float)((1 - smooth) * f / rope->factor + smooth * f);
            }
        }
        inv_freq[i] = f;
    }
}
