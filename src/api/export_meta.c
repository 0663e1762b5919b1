/* What a GGUF file says of a model's sizes: the keys <architecture>.* as llama.cpp's convert_hf_to_gguf
 * writes them. A setting that llama.cpp has no key for and would compute otherwise is refused, not dropped. */
#include "api/export.h"

#include <math.h>
#include <string.h>

typedef struct meta {
    tm_gguf_writer *w;
    const tm_gguf_family *family;
    const tm_model_config *c;
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

static tm_status refuse(const meta *m, const char *what)
{
    return tm_fail(m->err, TM_UNSUPPORTED, "%s: %s: llama.cpp's architecture %s cannot say that", m->model, what, m->family->architecture);
}

/* ---- rope ---- */

static void put_llama3(const meta *m, const tm_rope_config *r)
{
    tm_buf text = {0};
    /* llama.cpp takes the factors (rope_freqs.weight); these are the numbers they came from. */
    tm_buf_text(&text, "{\"rope_type\": \"llama3\", \"factor\": ");
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

static tm_status put_yarn(const meta *m, const tm_rope_config *r)
{
    char key[128];
    /* llama.cpp computes the factor on cosines itself and cuts the range to whole dimensions. */
    if (fabs(r->attention_factor - (0.1 * log(r->factor) + 1)) > 1e-6 || !r->truncate)
        return refuse(m, "its yarn scaling has an attention factor or a range of its own");
    tm_gguf_put_word(m->w, key_of(m, "rope.scaling.type", key), "yarn");
    put_float(m, "rope.scaling.factor", r->factor);
    put_size(m, "rope.scaling.original_context_length", r->original_positions);
    if (r->beta_fast != 32)
        put_float(m, "rope.scaling.yarn_beta_fast", r->beta_fast);
    if (r->beta_slow != 1)
        put_float(m, "rope.scaling.yarn_beta_slow", r->beta_slow);
    return TM_OK;
}

static tm_status put_rope(const meta *m)
{
    const tm_model_config *c = m->c;
    const tm_rope_config *r = &c->rope[0];
    char key[128];
    put_size(m, "rope.dimension_count", r->size);
    put_float(m, "rope.freq_base", r->theta);
    if (c->ropes == 2) {
        if (c->rope[1].kind != TM_ROPE_DEFAULT || c->rope[1].size != r->size)
            return refuse(m, "the rotary positions of its layers with a window are scaled");
        put_float(m, "rope.freq_base_swa", c->rope[1].theta);
    }
    switch (r->kind) {
    case TM_ROPE_DEFAULT: return TM_OK;
    case TM_ROPE_LLAMA3: put_llama3(m, r); return TM_OK;
    case TM_ROPE_YARN: return put_yarn(m, r);
    case TM_ROPE_LINEAR:
        tm_gguf_put_word(m->w, key_of(m, "rope.scaling.type", key), "linear");
        put_float(m, "rope.scaling.factor", r->factor);
        return TM_OK;
    default: return refuse(m, "its rope scaling is none of default, linear, llama3, yarn");
    }
}

/* ---- families ---- */

/* What scores are divided by the square root of, as llama.cpp has it of the family. */
static double score_divisor(const meta *m)
{
    const tm_model_config *c = m->c;
    bool large = m->family->gemma && c->layers == (m->family->window_pattern == 2 ? 46 : 62); /* the 27B models */
    return large ? (double)(c->width / c->heads) : (double)c->head_size;
}

static tm_status check_computed(const meta *m)
{
    const tm_model_config *c = m->c;
    bool silu = strcmp(m->family->activation, "silu") == 0;
    if (c->activation != (silu ? TM_ACT_SILU : TM_ACT_GELU_TANH))
        return refuse(m, "its activation function is not the family's");
    if (c->scale_by_layer || fabs(c->score_scale * sqrt(score_divisor(m)) - 1) > 1e-6)
        return refuse(m, "its attention scores are scaled by something else than the head size (query_pre_attn_scalar, scale_attn_weights)");
    if (!m->family->gemma && (c->score_cap > 0 || c->head_cap > 0))
        return refuse(m, "it has soft caps");
    return TM_OK;
}

static tm_status put_gemma(const meta *m)
{
    const tm_model_config *c = m->c;
    int32_t pattern = m->family->window_pattern;
    int64_t window = 0;
    if ((c->score_cap > 0) != (pattern == 2))
        return refuse(m, "attn_logit_softcapping");
    if (c->score_cap > 0)
        put_float(m, "attn_logit_softcapping", c->score_cap);
    if (c->head_cap > 0)
        put_float(m, "final_logit_softcapping", c->head_cap);
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

tm_status tm_export_config(tm_gguf_writer *w, const tm_gguf_family *family, const tm_model_config *c, const char *model, tm_error *err)
{
    const meta m = {w, family, c, model, err};
    bool gpt2 = strcmp(family->model_type, "gpt2") == 0, phi3 = strcmp(family->model_type, "phi3") == 0;
    TM_TRY(check_computed(&m));
    put_size(&m, "block_count", c->layers);
    put_size(&m, "context_length", tm_export_positions(family, c));
    put_size(&m, "embedding_length", c->width);
    put_size(&m, "feed_forward_length", c->ffn);
    put_size(&m, "attention.head_count", c->heads);
    put_size(&m, "vocab_size", c->vocab);
    if (gpt2) {
        put_float(&m, "attention.layer_norm_epsilon", c->norm_eps);
        return TM_OK;
    }
    put_size(&m, "attention.head_count_kv", c->kv_heads);
    put_float(&m, "attention.layer_norm_rms_epsilon", c->norm_eps);
    put_size(&m, "attention.key_length", c->head_size);
    put_size(&m, "attention.value_length", c->head_size);
    TM_TRY(put_rope(&m));
    if (phi3) { /* a window of 0 tells llama.cpp that there is none */
        put_size(&m, "rope.scaling.original_context_length", c->max_positions);
        put_size(&m, "attention.sliding_window", c->window[0]);
    }
    return family->gemma ? put_gemma(&m) : TM_OK;
}
