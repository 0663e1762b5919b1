/* config.json to numbers: see config.h. What it says about rotary positions is read in rope.c. */
#include "model/config.h"

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

/* The family's name of a key. */
static const char *key_or(const char *own, const char *common) { return own ? own : common; }

static tm_status read_bias(const reader *r, tm_bias_rule rule, const char *key, bool *out)
{
    bool flag = rule == TM_BIAS_UNLESS_KEY;
    if (rule == TM_BIAS_BY_KEY || rule == TM_BIAS_UNLESS_KEY)
        TM_TRY(tm_json_get_bool(r->json, r->path, key, flag, &flag, r->err));
    *out = rule == TM_BIAS_ALWAYS || (rule == TM_BIAS_BY_KEY && flag) || (rule == TM_BIAS_UNLESS_KEY && !flag);
    return TM_OK;
}

/* Whether layer i has a window, from layer_types where the config has them. */
static tm_status layer_slides(const reader *r, const json_t *types, int64_t i, bool otherwise, bool *out)
{
    *out = otherwise;
    if (!json_is_array(types))
        return TM_OK;
    const char *type = json_string_value(json_array_get(types, (size_t)i));
    if (!type || (strcmp(type, "full_attention") && strcmp(type, "sliding_attention")))
        return tm_fail(r->err, TM_UNSUPPORTED, "%s: layer_types[%lld] is '%s', expected full_attention or sliding_attention",
                       r->path, (long long)i, type ? type : "not a string");
    *out = strcmp(type, "sliding_attention") == 0;
    return TM_OK;
}

static tm_status read_windows(const reader *r, tm_model_config *c)
{
    const tm_family *family = c->family;
    TM_TRY(TM_NEW(&c->window, c->layers, r->err));
    TM_TRY(TM_NEW(&c->layer_rope, c->layers, r->err));
    if (family->window == TM_WINDOW_NEVER)
        return TM_OK;
    int64_t window = family->default_window, first = 0, pattern = family->default_pattern;
    bool use = true;
    const json_t *types = family->window == TM_WINDOW_ALL_LAYERS ? NULL : json_object_get(r->json, "layer_types");
    if (json_is_null(json_object_get(r->json, "sliding_window")))
        window = 0;
    else
        TM_TRY(tm_json_get_int(r->json, r->path, "sliding_window", window, &window, r->err));
    if (window < 0 || window > INT32_MAX)
        return tm_fail(r->err, TM_INPUT, "%s: sliding_window is %lld, expected a positive number or null", r->path, (long long)window);
    if (family->window == TM_WINDOW_LAYER_TYPES) {
        TM_TRY(tm_json_get_bool(r->json, r->path, "use_sliding_window", false, &use, r->err));
        TM_TRY(tm_json_get_int(r->json, r->path, "max_window_layers", 28, &first, r->err));
    }
    if (family->window == TM_WINDOW_PATTERN)
        TM_TRY(get_dim(r, "sliding_window_pattern", pattern, MAX_LAYERS, &pattern));
    if (json_is_array(types) && (int64_t)json_array_size(types) != c->layers)
        return tm_fail(r->err, TM_INPUT, "%s: layer_types has %zu entries, expected %lld, the number of layers", r->path,
                       json_array_size(types), (long long)c->layers);
    for (int64_t i = 0; i < c->layers && use; i++) {
        bool sliding;
        TM_TRY(layer_slides(r, types, i, family->window == TM_WINDOW_PATTERN ? (i + 1) % pattern != 0 : i >= first, &sliding));
        c->window[i] = sliding ? (int32_t)window : 0;
        c->layer_rope[i] = sliding && family->rope == TM_ROPE_TWO;
    }
    return TM_OK;
}

static tm_status read_activation(const reader *r, tm_model_config *c)
{
    static const struct {
        const char *name;
        tm_activation act;
    } known[] = {{"silu", TM_ACT_SILU}, {"swish", TM_ACT_SILU}, {"gelu", TM_ACT_GELU}, {"gelu_new", TM_ACT_GELU_TANH},
                 {"gelu_pytorch_tanh", TM_ACT_GELU_TANH}, {"gelu_fast", TM_ACT_GELU_TANH}};
    const char *key = key_or(c->family->keys.activation, "hidden_act"), *name;
    TM_TRY(tm_json_get_string(r->json, r->path, key, key_or(c->family->default_activation, "silu"), &name, r->err));
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) {
            c->activation = known[i].act;
            return TM_OK;
        }
    return tm_fail(r->err, TM_UNSUPPORTED, "%s: %s '%s' is not supported (silu, gelu, gelu_new, gelu_pytorch_tanh are)", r->path, key, name);
}

static tm_status read_sizes(const reader *r, tm_model_config *c)
{
    const tm_family *family = c->family;
    const tm_config_keys *k = &family->keys;
    const char *ffn = key_or(k->ffn, "intermediate_size");
    TM_TRY(get_dim(r, "vocab_size", 0, MAX_DIM, &c->vocab));
    TM_TRY(get_dim(r, key_or(k->width, "hidden_size"), 0, MAX_DIM, &c->width));
    TM_TRY(get_dim(r, key_or(k->layers, "num_hidden_layers"), 0, MAX_LAYERS, &c->layers));
    TM_TRY(get_dim(r, key_or(k->heads, "num_attention_heads"), 0, MAX_DIM, &c->heads));
    c->kv_heads = c->heads;
    if (!family->no_kv_heads)
        TM_TRY(get_dim(r, "num_key_value_heads", family->default_kv_heads ? family->default_kv_heads : c->heads, MAX_DIM, &c->kv_heads));
    c->head_size = family->default_head_size ? family->default_head_size : c->width / c->heads;
    TM_TRY(get_dim(r, key_or(k->head_size, "head_dim"), c->head_size, 1024, &c->head_size));
    TM_TRY(get_dim(r, ffn, family->default_ffn * c->width, MAX_DIM, &c->ffn));
    if (family->half_ffn)
        c->ffn /= 2;
    TM_TRY(get_dim(r, key_or(k->positions, "max_position_embeddings"), family->default_positions ? family->default_positions : 2048, MAX_DIM, &c->max_positions));
    if (c->heads % c->kv_heads)
        return tm_fail(r->err, TM_INPUT, "%s: num_key_value_heads %lld does not divide num_attention_heads %lld", r->path,
                       (long long)c->kv_heads, (long long)c->heads);
    if (c->heads * c->head_size > MAX_DIM || c->ffn < 1)
        return tm_fail(r->err, TM_INPUT, "%s: num_attention_heads x head_dim is %lld, expected at most %d; %s is too small, or", r->path,
                       (long long)(c->heads * c->head_size), MAX_DIM, ffn);
    return TM_OK;
}

/* A cap of the config: null is none. */
static tm_status read_cap(const reader *r, const char *key, double fallback, float *out)
{
    double value = fallback;
    if (json_is_null(json_object_get(r->json, key)))
        value = 0;
    else
        TM_TRY(tm_json_get_number(r->json, r->path, key, fallback, &value, r->err));
    if (!(value >= 0 && value < 1e30))
        return tm_fail(r->err, TM_INPUT, "%s: %s is %g, expected a positive number or null", r->path, key, value);
    *out = (float)value;
    return TM_OK;
}

/* The scale of scores: 1 / sqrt of the head size, unless the config has its own. */
static tm_status read_scores(const reader *r, tm_model_config *c)
{
    const tm_family *family = c->family;
    double base = (double)c->head_size;
    bool scaled = true;
    if (family->query_scalar)
        TM_TRY(tm_json_get_number(r->json, r->path, "query_pre_attn_scalar", 256, &base, r->err));
    if (!(base > 0))
        return tm_fail(r->err, TM_INPUT, "%s: query_pre_attn_scalar is %g, expected a positive number", r->path, base);
    if (family->positions) { /* GPT-2's */
        TM_TRY(tm_json_get_bool(r->json, r->path, "scale_attn_weights", true, &scaled, r->err));
        TM_TRY(tm_json_get_bool(r->json, r->path, "scale_attn_by_inverse_layer_idx", false, &c->scale_by_layer, r->err));
    }
    c->score_scale = scaled ? 1 / sqrt(base) : 1;
    TM_TRY(read_cap(r, "attn_logit_softcapping", family->default_cap, &c->score_cap));
    return read_cap(r, "final_logit_softcapping", family->default_head_cap, &c->head_cap);
}

/* Settings of published families that change what is computed and that temper does not do. */
static tm_status refuse_others(const reader *r)
{
    static const char *const flags[] = {"use_bidirectional_attention", "add_cross_attention"};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        bool on = json_is_true(json_object_get(r->json, flags[i]));
        if (on)
            return tm_fail(r->err, TM_UNSUPPORTED, "%s: %s is not supported", r->path, flags[i]);
    }
    if (json_is_object(json_object_get(r->json, "quantization_config")))
        return tm_fail(r->err, TM_UNSUPPORTED, "%s: quantization_config: quantised weights cannot be read yet, use the 16-bit model", r->path);
    return TM_OK;
}

static tm_status find_family(const reader *r, const tm_family **out)
{
    const char *type;
    size_t count;
    TM_TRY(tm_json_get_string(r->json, r->path, "model_type", NULL, &type, r->err));
    if (!type)
        return tm_fail(r->err, TM_INPUT, "%s: key model_type is missing", r->path);
    *out = tm_family_find(type);
    if (*out)
        return TM_OK;
    char names[256] = "";
    const tm_family *all = tm_families(&count);
    for (size_t i = 0; i < count; i++)
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "", all[i].model_type);
    return tm_fail(r->err, TM_UNSUPPORTED, "%s: model_type '%s' is not supported (%s are)", r->path, type, names);
}

static tm_status read_config(reader *r, tm_model_config *c)
{
    tm_error *err = r->err;
    double number;
    TM_TRY(find_family(r, &c->family));
    const tm_family *family = c->family;
    /* In the whole config, of a model with more than text, this may say otherwise. */
    TM_TRY(tm_json_get_bool(r->json, r->path, "tie_word_embeddings", family->default_tied, &c->tied, err));
    if (family->text_config) {
        r->json = json_object_get(r->json, family->text_config);
        if (!json_is_object(r->json))
            return tm_fail(err, TM_INPUT, "%s: %s: expected an object", r->path, family->text_config);
    }
    TM_TRY(refuse_others(r));
    TM_TRY(read_sizes(r, c));
    TM_TRY(tm_json_get_number(r->json, r->path, key_or(family->keys.norm_eps, "rms_norm_eps"), family->default_eps ? family->default_eps : 1e-6, &number, err));
    c->norm_eps = (float)number;
    TM_TRY(tm_json_get_number(r->json, r->path, "initializer_range", 0.02, &c->init_std, err));
    c->padding = -1;
    if (family->padding)
        TM_TRY(tm_json_get_int(r->json, r->path, "pad_token_id", -1, &c->padding, err));
    if (c->padding < -1 || c->padding >= c->vocab) /* -1 is what old Llama configs say for none */
        return tm_fail(err, TM_INPUT, "%s: pad_token_id is %lld, expected one of the %lld tokens", r->path, (long long)c->padding, (long long)c->vocab);
    c->embed_scale = family->scaled_embedding ? (float)sqrt((double)c->width) : 1;
    TM_TRY(read_activation(r, c));
    TM_TRY(read_scores(r, c));
    TM_TRY(read_bias(r, family->qkv_bias, family->attn_bias_key, &c->qkv_bias));
    TM_TRY(read_bias(r, family->o_bias, family->attn_bias_key, &c->o_bias));
    TM_TRY(read_bias(r, family->mlp_bias, family->mlp_bias_key, &c->mlp_bias));
    if (!family->positions)
        TM_TRY(tm_rope_read(&(tm_rope_source){.json = r->json, .path = r->path, .theta_key = family->keys.rope_theta, .size_key = family->keys.rope_size,
                                              .head_size = c->head_size, .max_positions = c->max_positions, .theta = family->default_theta ? family->default_theta : 10000},
                            family->rope, c->rope, &c->ropes, err));
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
    free(config->layer_rope);
    for (int i = 0; i < TM_ROPES; i++)
        tm_rope_deinit(&config->rope[i]);
    *config = (tm_model_config){0};
}

int64_t tm_model_config_longest(const tm_model_config *config)
{
    return config->family->positions ? config->max_positions : INT64_MAX;
}
