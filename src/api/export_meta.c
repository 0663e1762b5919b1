/* What a GGUF file says of a model's sizes: the keys <architecture>.* as llama.cpp's convert_hf_to_gguf
 * writes them. A setting that llama.cpp has no key for and would compute otherwise is refused, not dropped. */
#include "api/export.h"

#include <math.h>
#include <string.h>

typedef struct meta {
    tm_gguf_writer *w;
    const tm_gguf_family *family;
    const tm_model_config *c;
    const json_t *config;
    const char *model;
    tm_error *err;
} meta;

static const char *key_of(const meta *m, const char *key, char full[128])
{
    snprintf(full, 128, "%s.%s", m->family->architecture, key);
    return full;
}

static void put_size(const meta *m, const char *key, int64_t value)
{
    char full[128];
    tm_gguf_put_u32(m->w, key_of(m, key, full), (uint32_t)value);
}

static void put_float(const meta *m, const char *key, double value)
{
    char full[128];
    tm_gguf_put_f32(m->w, key_of(m, key, full), (float)value);
}

static double number(const json_t *object, const char *key, double fallback)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : fallback;
}

static tm_status refuse(const meta *m, const char *what)
{
    return tm_fail(m->err, TM_UNSUPPORTED, "%s: %s: llama.cpp's architecture %s cannot say that", m->model, what, m->family->architecture);
}

/* ---- rope ---- */

static void put_llama3(const meta *m)
{
    const tm_rope_config *r = &m->c->rope[0];
    tm_buf text = {0};
    /* llama.cpp takes the factors (rope_freqs.weight); these are the numbers they came from. */
    tm_buf_printf(&text, "{\"rope_type\": \"llama3\", \"factor\": ");
    tm_json_put_number(&text, r->factor);
    tm_buf_text(&text, ", \"low_freq_factor\": ");
    tm_json_put_number(&text, r->low_freq_factor);
    tm_buf_text(&text, ", \"high_freq_factor\": ");
    tm_json_put_number(&text, r->high_freq_factor);
    tm_buf_printf(&text, ", \"original_max_position_embeddings\": %lld}", (long long)r->original_positions);
    tm_gguf_put_word(m->w, "temper.rope_scaling", tm_buf_str(&text));
    m->w->meta.failed |= text.failed;
    tm_buf_deinit(&text);
}

static tm_status put_rope(const meta *m)
{
    const json_t *all = json_object_get(m->config, "rope_parameters");
    if (!json_is_object(all))
        all = json_object_get(m->config, "rope_scaling");
    const json_t *full = json_is_object(json_object_get(all, "full_attention")) ? json_object_get(all, "full_attention") : all;
    const json_t *local = json_object_get(all, "sliding_attention");
    const char *kind = json_string_value(json_object_get(full, "rope_type")), *older = json_string_value(json_object_get(full, "type"));
    char key[128];
    kind = kind ? kind : older ? older : "default";
    put_float(m, "rope.freq_base", number(full, "rope_theta", number(m->config, "rope_theta", m->c->rope[0].theta)));
    if (m->family->gemma && m->family->window_pattern != 2)
        put_float(m, "rope.freq_base_swa", number(local, "rope_theta", number(m->config, "rope_local_base_freq", 10000)));
    if (strcmp(kind, "default") == 0)
        return TM_OK;
    if (strcmp(kind, "llama3") == 0) {
        put_llama3(m);
        return TM_OK;
    }
    if (strcmp(kind, "linear") != 0 && strcmp(kind, "yarn") != 0)
        return refuse(m, "its rope scaling is none of default, linear, llama3, yarn");
    tm_gguf_put_word(m->w, key_of(m, "rope.scaling.type", key), kind);
    put_float(m, "rope.scaling.factor", number(full, "factor", 1));
    if (strcmp(kind, "yarn") == 0) {
        static const char *const keys[][2] = {{"attention_factor", "rope.scaling.yarn_attn_factor"}, {"beta_fast", "rope.scaling.yarn_beta_fast"},
                                              {"beta_slow", "rope.scaling.yarn_beta_slow"}};
        put_size(m, "rope.scaling.original_context_length",
                 (int64_t)number(full, "original_max_position_embeddings", (double)m->c->max_positions));
        for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
            if (json_is_number(json_object_get(full, keys[i][0])))
                put_float(m, keys[i][1], number(full, keys[i][0], 0));
    }
    return TM_OK;
}

/* ---- families ---- */

static tm_status put_gemma(const meta *m)
{
    const tm_model_config *c = m->c;
    int32_t pattern = m->family->window_pattern;
    double scalar = number(m->config, "query_pre_attn_scalar", (double)c->head_size);
    double assumed = c->layers == (pattern == 2 ? 46 : 62) ? (double)(c->width / c->heads) : (double)c->head_size;
    double cap = number(m->config, "attn_logit_softcapping", 0);
    if (scalar != assumed)
        return refuse(m, "query_pre_attn_scalar is not head_dim");
    if (cap > 0)
        put_float(m, "attn_logit_softcapping", cap);
    else if (pattern == 2)
        return refuse(m, "attn_logit_softcapping is not set");
    cap = number(m->config, "final_logit_softcapping", 0);
    if (cap > 0)
        put_float(m, "final_logit_softcapping", cap);
    int64_t window = 0;
    for (int64_t i = 0; i < c->layers; i++)
        window = c->window[i] > window ? c->window[i] : window;
    for (int64_t i = 0; i < c->layers; i++)
        if (c->window[i] != (i % pattern == pattern - 1 ? 0 : window))
            return refuse(m, "its sliding windows do not alternate as the family's");
    if (window)
        put_size(m, "attention.sliding_window", window);
    return TM_OK;
}

int64_t tm_export_positions(const tm_gguf_family *family, const tm_model_config *c)
{
    int64_t positions = c->max_positions;
    for (int64_t i = 0; i < c->layers && !family->gemma && strcmp(family->architecture, "phi3") != 0; i++)
        if (c->window[i] > 0 && c->window[i] < positions)
            positions = c->window[i];
    return positions;
}

tm_status tm_export_config(tm_gguf_writer *w, const tm_gguf_family *family, const tm_model_config *c, const json_t *config,
                           const char *model, tm_error *err)
{
    const meta m = {w, family, c, config, model, err};
    bool gpt2 = strcmp(family->model_type, "gpt2") == 0, phi3 = strcmp(family->model_type, "phi3") == 0;
    put_size(&m, "block_count", c->layers);
    put_size(&m, "context_length", tm_export_positions(family, c));
    put_size(&m, "embedding_length", c->width);
    put_size(&m, "feed_forward_length", c->ffn);
    put_size(&m, "attention.head_count", c->heads);
    put_size(&m, "vocab_size", c->vocab);
    if (gpt2) {
        put_float(&m, "attention.layer_norm_epsilon", number(config, "layer_norm_epsilon", 1e-5));
        return TM_OK;
    }
    put_size(&m, "attention.head_count_kv", c->kv_heads);
    put_float(&m, "attention.layer_norm_rms_epsilon", c->norm_eps);
    put_size(&m, "attention.key_length", c->head_size);
    put_size(&m, "attention.value_length", c->head_size);
    put_size(&m, "rope.dimension_count", phi3 ? (int64_t)(number(config, "partial_rotary_factor", 1) * (double)c->head_size) : c->head_size);
    TM_TRY(put_rope(&m));
    if (phi3) {
        put_size(&m, "rope.scaling.original_context_length",
                 (int64_t)number(config, "original_max_position_embeddings", (double)c->max_positions));
        put_size(&m, "attention.sliding_window", (int64_t)number(config, "sliding_window", 0));
    }
    return family->gemma ? put_gemma(&m) : TM_OK;
}
