/* A GGUF file as a model folder: see gguf_model.h. Metadata become HF's config.json, which is then read as
 * any other; so what a family's settings mean is known in one place (model/config.c). */
#include "io/gguf_model.h"

#include "base/json.h"
#include "base/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- metadata ---- */

/* What writing a JSON file needs. */
typedef struct source {
    const tm_gguf *g;
    const tm_gguf_family *family;
    tm_buf *out;
    tm_error *err;
} source;

tm_status tm_gguf_family_read(const tm_gguf *g, const tm_gguf_family **out, tm_error *err)
{
    tm_gguf_text name, type;
    int64_t parts;
    TM_TRY(tm_gguf_get_text(g, "general.type", &type, err));
    TM_TRY(tm_gguf_get_text(g, "general.architecture", &name, err));
    TM_TRY(tm_gguf_get_int(g, "split.count", 1, &parts, err));
    if (type.text && !(type.size == 5 && memcmp(type.text, "model", 5) == 0))
        return tm_fail(err, TM_UNSUPPORTED, "%s: general.type is '%.*s', expected a model", tm_gguf_name(g), (int)type.size, type.text);
    if (parts > 1)
        return tm_fail(err, TM_UNSUPPORTED, "%s: one of %lld parts of a model; join them first (llama-gguf-split --merge)",
                       tm_gguf_name(g), (long long)parts);
    if (!name.text)
        return tm_fail(err, TM_INPUT, "%s: key general.architecture is missing", tm_gguf_name(g));
    *out = tm_gguf_architecture(name.text, name.size);
    return *out ? TM_OK
                : tm_fail(err, TM_UNSUPPORTED, "%s: general.architecture '%.*s' is not supported (llama, qwen2, qwen3, gemma2, gemma3, phi3, gpt2 are)",
                          tm_gguf_name(g), name.size < 60 ? (int)name.size : 60, name.text);
}

/* "<architecture>.<key>" */
static const char *key_of(const source *s, const char *key, char full[128])
{
    snprintf(full, 128, "%s.%s", s->family->architecture, key);
    return full;
}

static tm_status get_int(const source *s, const char *key, int64_t fallback, int64_t *out)
{
    char full[128];
    return tm_gguf_get_int(s->g, key_of(s, key, full), fallback, out, s->err);
}

static tm_status need_int(const source *s, const char *key, int64_t *out)
{
    char full[128];
    TM_TRY(get_int(s, key, -1, out));
    return *out > 0 ? TM_OK : tm_fail(s->err, TM_INPUT, "%s: key %s is %s, expected a positive integer", tm_gguf_name(s->g),
                                      key_of(s, key, full), *out == -1 ? "missing" : "not positive");
}

static tm_status get_number(const source *s, const char *key, double fallback, double *out)
{
    char full[128];
    return tm_gguf_get_number(s->g, key_of(s, key, full), fallback, out, s->err);
}

static void put_key(const source *s, const char *key)
{
    tm_buf_printf(s->out, "%s  \"%s\": ", s->out->size > 2 ? ",\n" : "\n", key);
}

static void put_int(const source *s, const char *key, int64_t value)
{
    put_key(s, key);
    tm_buf_printf(s->out, "%lld", (long long)value);
}

static void put_word(const source *s, const char *key, const char *value)
{
    put_key(s, key);
    tm_json_put_string(s->out, value);
}

static void put_flag(const source *s, const char *key, bool value)
{
    put_key(s, key);
    tm_buf_text(s->out, value ? "true" : "false");
}

/* Files hold floats of 32 bits: the shortest decimal that is the same float says what was meant. */
static void put_float(const source *s, const char *key, double value)
{
    char text[40];
    put_key(s, key);
    if (!isfinite(value)) {
        tm_buf_text(s->out, "null");
        return;
    }
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtof(text, NULL) == (float)value)
            break;
    }
    tm_json_put_number(s->out, strtod(text, NULL));
}

static bool has_tensor(const source *s, const char *name) { return tm_gguf_tensor_find(s->g, name) != NULL; }

/* ---- rope ---- */

/* The scaling of the frequency with index i of half, as transformers' llama3 rule. */
static double llama3_factor(double theta, int64_t i, int64_t half, double factor, double original)
{
    double wavelength = 2 * M_PI * pow(theta, (double)i / (double)half);
    if (wavelength < original / 4)
        return 1;
    if (wavelength > original)
        return factor;
    double smooth = (original / wavelength - 1) / 3;
    return 1 / ((1 - smooth) / factor + smooth);
}

/* Files hold llama3's scaling as a factor a frequency; the rule's numbers are found by trying those in use:
 * low and high factors 1 and 4, the original length a power of two, the factor the largest there. */
static tm_status put_rope_factors(const source *s, const tm_gguf_tensor *t, double theta)
{
    float *factor = NULL;
    double largest = 0, found = 0;
    TM_TRY(TM_NEW(&factor, t->count, s->err));
    tm_ggml_unpack(t->type, t->data, factor, t->count);
    for (int64_t i = 0; i < t->count; i++)
        largest = factor[i] > largest ? factor[i] : largest;
    for (double original = 16; original <= 1 << 24 && found == 0; original *= 2) {
        bool same = true;
        for (int64_t i = 0; i < t->count && same; i++)
            same = fabs(llama3_factor(theta, i, t->count, largest, original) - factor[i]) <= 1e-4 * factor[i];
        found = same ? original : 0;
    }
    free(factor);
    if (found == 0)
        return tm_fail(s->err, TM_UNSUPPORTED, "%s: tensor rope_freqs.weight: its factors are not those of llama3's rope scaling", tm_gguf_name(s->g));
    put_key(s, "rope_scaling");
    tm_buf_printf(s->out, "{\"rope_type\": \"llama3\", \"factor\": %.9g, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": %.0f}",
                  largest, found);
    return TM_OK;
}

static bool is_text(const tm_gguf_text *t, const char *word) { return t->text && t->size == strlen(word) && memcmp(t->text, word, t->size) == 0; }

static tm_status put_rope(const source *s)
{
    char full[128];
    double theta, factor, old;
    tm_gguf_text kind, own;
    int64_t original;
    TM_TRY(get_number(s, "rope.freq_base", 10000, &theta));
    put_float(s, "rope_theta", theta);
    /* What temper exports says its scaling in HF's words too. */
    TM_TRY(tm_gguf_get_text(s->g, "temper.rope_scaling", &own, s->err));
    if (own.text) {
        json_t *json;
        TM_TRY(tm_json_parse(own.text, own.size, tm_gguf_name(s->g), &json, s->err));
        bool object = json_is_object(json);
        json_decref(json);
        if (!object)
            return tm_fail(s->err, TM_INPUT, "%s: key temper.rope_scaling: expected a JSON object", tm_gguf_name(s->g));
        put_key(s, "rope_scaling");
        tm_buf_add(s->out, own.text, own.size);
        return TM_OK;
    }
    const tm_gguf_tensor *factors = tm_gguf_tensor_find(s->g, "rope_freqs.weight");
    if (factors)
        return put_rope_factors(s, factors, theta);
    if (has_tensor(s, "rope_factors_long.weight") || has_tensor(s, "rope_factors_short.weight"))
        return tm_fail(s->err, TM_UNSUPPORTED, "%s: rope scaling 'longrope' is not supported", tm_gguf_name(s->g));
    TM_TRY(tm_gguf_get_text(s->g, key_of(s, "rope.scaling.type", full), &kind, s->err));
    TM_TRY(get_number(s, "rope.scale_linear", 1, &old));
    TM_TRY(get_number(s, "rope.scaling.factor", old, &factor));
    TM_TRY(get_int(s, "rope.scaling.original_context_length", 0, &original));
    if (factor == 1 || factor == 0 || is_text(&kind, "none"))
        return TM_OK;
    if (kind.text && !is_text(&kind, "linear") && !is_text(&kind, "yarn"))
        return tm_fail(s->err, TM_UNSUPPORTED, "%s: rope scaling '%.*s' is not supported (none, linear, yarn are)", tm_gguf_name(s->g),
                       kind.size < 40 ? (int)kind.size : 40, kind.text);
    bool yarn = is_text(&kind, "yarn");
    put_key(s, "rope_scaling");
    tm_buf_printf(s->out, "{\"rope_type\": \"%s\", \"factor\": %.9g", yarn ? "yarn" : "linear", factor);
    if (yarn && original > 0)
        tm_buf_printf(s->out, ", \"original_max_position_embeddings\": %lld", (long long)original);
    tm_buf_char(s->out, '}');
    return TM_OK;
}

/* ---- config.json ---- */

static void put_dtype(const source *s)
{
    const tm_gguf_tensor *t = tm_gguf_tensor_find(s->g, "token_embd.weight");
    put_word(s, "dtype", t->type->type == TM_GGML_F16 ? "float16" : t->type->type == TM_GGML_BF16 ? "bfloat16" : "float32");
}

static tm_status put_ids(const source *s)
{
    int64_t bos, eos;
    TM_TRY(tm_gguf_get_int(s->g, "tokenizer.ggml.bos_token_id", -1, &bos, s->err));
    TM_TRY(tm_gguf_get_int(s->g, "tokenizer.ggml.eos_token_id", -1, &eos, s->err));
    if (bos >= 0)
        put_int(s, "bos_token_id", bos);
    if (eos >= 0)
        put_int(s, "eos_token_id", eos);
    return TM_OK;
}

static tm_status put_gemma(const source *s, int64_t width, int64_t heads, int64_t layers, int64_t head_size)
{
    double cap;
    int64_t window;
    bool second = s->family->window_pattern == 2;
    /* The attention scale has no key: the runtimes know that the 27B models divide by width / heads. */
    put_int(s, "query_pre_attn_scalar", layers == (second ? 46 : 62) ? width / heads : head_size);
    TM_TRY(get_number(s, "attn_logit_softcapping", second ? 50 : 0, &cap));
    if (cap > 0)
        put_float(s, "attn_logit_softcapping", cap);
    else
        tm_buf_text(s->out, ",\n  \"attn_logit_softcapping\": null");
    TM_TRY(get_number(s, "final_logit_softcapping", second ? 30 : 0, &cap));
    if (cap > 0)
        put_float(s, "final_logit_softcapping", cap);
    else
        tm_buf_text(s->out, ",\n  \"final_logit_softcapping\": null");
    TM_TRY(get_int(s, "attention.sliding_window", second ? 4096 : 0, &window));
    if (window > 0)
        put_int(s, "sliding_window", window);
    if (!second)
        put_int(s, "rope_local_base_freq", 10000);
    put_key(s, "layer_types");
    for (int64_t i = 0; i < layers; i++) {
        bool full = window <= 0 || i % s->family->window_pattern == s->family->window_pattern - 1;
        tm_buf_printf(s->out, "%s\"%s\"", i ? ", " : "[", full ? "full_attention" : "sliding_attention");
    }
    tm_buf_char(s->out, ']');
    return TM_OK;
}

static tm_status put_gpt2(const source *s)
{
    int64_t n;
    double eps;
    TM_TRY(need_int(s, "embedding_length", &n));
    put_int(s, "n_embd", n);
    TM_TRY(need_int(s, "block_count", &n));
    put_int(s, "n_layer", n);
    TM_TRY(need_int(s, "attention.head_count", &n));
    put_int(s, "n_head", n);
    TM_TRY(need_int(s, "context_length", &n));
    put_int(s, "n_positions", n);
    put_int(s, "n_ctx", n);
    TM_TRY(need_int(s, "feed_forward_length", &n));
    put_int(s, "n_inner", n);
    TM_TRY(get_number(s, "attention.layer_norm_epsilon", 1e-5, &eps));
    put_float(s, "layer_norm_epsilon", eps);
    return TM_OK;
}

static tm_status put_sizes(const source *s)
{
    int64_t width, layers, heads, kv_heads, head_size, value_size, rotated, ffn, positions, window;
    double eps;
    TM_TRY(need_int(s, "embedding_length", &width));
    TM_TRY(need_int(s, "block_count", &layers));
    TM_TRY(need_int(s, "attention.head_count", &heads));
    TM_TRY(get_int(s, "attention.head_count_kv", heads, &kv_heads));
    TM_TRY(get_int(s, "attention.key_length", width / heads, &head_size));
    TM_TRY(get_int(s, "attention.value_length", head_size, &value_size));
    TM_TRY(get_int(s, "rope.dimension_count", head_size, &rotated));
    TM_TRY(need_int(s, "feed_forward_length", &ffn));
    TM_TRY(need_int(s, "context_length", &positions));
    TM_TRY(get_number(s, "attention.layer_norm_rms_epsilon", 1e-6, &eps));
    if (value_size != head_size)
        return tm_fail(s->err, TM_UNSUPPORTED, "%s: heads of %lld for keys and %lld for values are not supported", tm_gguf_name(s->g),
                       (long long)head_size, (long long)value_size);
    put_int(s, "hidden_size", width);
    put_int(s, "num_hidden_layers", layers);
    put_int(s, "num_attention_heads", heads);
    put_int(s, "num_key_value_heads", kv_heads);
    put_int(s, "head_dim", head_size);
    put_int(s, "intermediate_size", ffn);
    put_int(s, "max_position_embeddings", positions);
    put_float(s, "rms_norm_eps", eps);
    if (rotated != head_size && strcmp(s->family->model_type, "phi3") != 0)
        return tm_fail(s->err, TM_UNSUPPORTED, "%s: rotary positions on %lld of %lld dimensions are not supported in architecture %s",
                       tm_gguf_name(s->g), (long long)rotated, (long long)head_size, s->family->architecture);
    if (rotated != head_size)
        put_float(s, "partial_rotary_factor", (double)rotated / (double)(head_size > 0 ? head_size : 1));
    put_flag(s, "attention_bias", has_tensor(s, "blk.0.attn_q.bias"));
    put_flag(s, "mlp_bias", has_tensor(s, "blk.0.ffn_up.bias"));
    TM_TRY(put_rope(s));
    if (s->family->gemma)
        return put_gemma(s, width, heads, layers, head_size);
    TM_TRY(get_int(s, "attention.sliding_window", 0, &window));
    if (window > 0 && strcmp(s->family->model_type, "phi3") == 0)
        put_int(s, "sliding_window", window);
    else if (window > 0)
        return tm_fail(s->err, TM_UNSUPPORTED, "%s: a sliding window of %lld in architecture %s is not supported", tm_gguf_name(s->g),
                       (long long)window, s->family->architecture);
    return TM_OK;
}

static tm_status put_config(const source *s)
{
    const tm_gguf_tensor *embed = tm_gguf_tensor_find(s->g, "token_embd.weight");
    int64_t experts;
    if (!embed || embed->ndim != 2)
        return tm_fail(s->err, TM_INPUT, "%s: tensor token_embd.weight is %s", tm_gguf_name(s->g), embed ? "not a matrix" : "missing");
    TM_TRY(get_int(s, "expert_count", 0, &experts));
    if (experts > 0)
        return tm_fail(s->err, TM_UNSUPPORTED, "%s: mixtures of experts are not supported (%s.expert_count is %lld)", tm_gguf_name(s->g),
                       s->family->architecture, (long long)experts);
    tm_buf_text(s->out, "{");
    put_key(s, "architectures");
    tm_buf_printf(s->out, "[\"%s\"]", s->family->class_name);
    put_word(s, "model_type", s->family->model_type);
    put_dtype(s);
    put_int(s, "vocab_size", embed->ne[1]);
    put_word(s, s->family->activation_key, s->family->activation);
    put_flag(s, "tie_word_embeddings", !has_tensor(s, "output.weight"));
    TM_TRY(put_ids(s));
    TM_TRY(strcmp(s->family->model_type, "gpt2") == 0 ? put_gpt2(s) : put_sizes(s));
    tm_buf_text(s->out, "\n}\n");
    return TM_OK;
}

/* ---- the other files ---- */

/* Ids that end a text. */
static tm_status put_generation(const source *s)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    int64_t id, said[3], count = 0;
    tm_buf_text(s->out, "{");
    TM_TRY(tm_gguf_get_int(s->g, "tokenizer.ggml.bos_token_id", -1, &id, s->err));
    if (id >= 0)
        put_int(s, "bos_token_id", id);
    for (int k = 0; k < 3; k++) {
        TM_TRY(tm_gguf_get_int(s->g, ends[k], -1, &id, s->err));
        bool again = id < 0;
        for (int64_t i = 0; i < count; i++)
            again |= said[i] == id;
        if (!again)
            said[count++] = id;
    }
    if (count) {
        put_key(s, "eos_token_id");
        for (int64_t i = 0; i < count; i++)
            tm_buf_printf(s->out, "%s%lld", i ? ", " : "[", (long long)said[i]);
        tm_buf_char(s->out, ']');
    }
    tm_buf_text(s->out, "\n}\n");
    return TM_OK;
}

static tm_status put_text(const source *s, const char *key, const tm_gguf_text *text)
{
    if (!tm_utf8_valid(text->text, text->size))
        return tm_fail(s->err, TM_INPUT, "%s: the text of %s is not UTF-8", tm_gguf_name(s->g), key);
    put_key(s, key);
    tm_json_put_bytes(s->out, text->text, text->size);
    return TM_OK;
}

static tm_status put_tokenizer_config(const source *s)
{
    static const char *const ids[][2] = {{"bos_token", "tokenizer.ggml.bos_token_id"}, {"eos_token", "tokenizer.ggml.eos_token_id"},
                                         {"unk_token", "tokenizer.ggml.unknown_token_id"}, {"pad_token", "tokenizer.ggml.padding_token_id"}};
    static const char *const flags[][2] = {{"add_bos_token", "tokenizer.ggml.add_bos_token"}, {"add_eos_token", "tokenizer.ggml.add_eos_token"}};
    tm_gguf_text *token = NULL, template;
    int64_t count, id;
    bool flag;
    tm_status st;
    tm_buf_text(s->out, "{");
    TM_GO(tm_gguf_get_texts(s->g, "tokenizer.ggml.tokens", &token, &count, s->err));
    for (int k = 0; k < 4; k++) {
        TM_GO(tm_gguf_get_int(s->g, ids[k][1], -1, &id, s->err));
        if (id >= 0 && id < count)
            TM_GO(put_text(s, ids[k][0], &token[id]));
    }
    for (int k = 0; k < 2; k++)
        if (tm_gguf_find(s->g, flags[k][1])) {
            TM_GO(tm_gguf_get_bool(s->g, flags[k][1], false, &flag, s->err));
            put_flag(s, flags[k][0], flag);
        }
    put_flag(s, "clean_up_tokenization_spaces", false);
    TM_GO(tm_gguf_get_text(s->g, "tokenizer.chat_template", &template, s->err));
    if (template.text)
        TM_GO(put_text(s, "chat_template", &template));
    put_word(s, "tokenizer_class", "PreTrainedTokenizerFast");
    tm_buf_text(s->out, "\n}\n");
out:
    free(token);
    return st;
}

tm_status tm_gguf_hf_file(const tm_gguf *g, const char *name, tm_buf *out, bool *there, tm_error *err)
{
    static const struct {
        const char *name;
        tm_status (*put)(const source *s);
    } files[] = {{"config.json", put_config}, {"generation_config.json", put_generation}, {"tokenizer_config.json", put_tokenizer_config}};
    *there = false;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
        if (strcmp(files[i].name, name) == 0) {
            tm_buf text = {0};
            source s = {.g = g, .out = &text, .err = err};
            tm_status st = tm_gguf_family_read(g, &s.family, err);
            if (st == TM_OK)
                st = files[i].put(&s);
            if (st == TM_OK)
                st = tm_buf_check(&text, err);
            if (st == TM_OK)
                tm_buf_add(out, text.data, text.size);
            tm_buf_deinit(&text);
            *there = st == TM_OK;
            return st == TM_OK ? tm_buf_check(out, err) : st;
        }
    return TM_OK;
}

/* ---- weights ---- */

typedef struct piece {
    const tm_gguf_tensor *tensor;
    tm_gguf_change change;
    int64_t head_size;
} piece;

typedef struct weights {
    tm_gguf *g;
    piece *piece;
} weights;

static void release_weights(void *owner)
{
    weights *w = owner;
    tm_gguf_close(w->g);
    free(w->piece);
    free(w);
}

/* Rows [out][cols] of the GGUF layout to HF's; element: bytes. */
static void reorder(const piece *p, const uint8_t *from, uint8_t *to, int64_t element)
{
    int64_t cols = p->tensor->ndim > 1 ? p->tensor->ne[0] : 1, rows = p->tensor->count / cols;
    if (p->change == TM_GGUF_TRANSPOSED) {
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < cols; c++)
                memcpy(to + (c * rows + r) * element, from + (r * cols + c) * element, (size_t)element);
        return;
    }
    for (int64_t r = 0; r < rows; r++)
        memcpy(to + tm_gguf_permuted_row(r, p->head_size) * cols * element, from + r * cols * element, (size_t)(cols * element));
}

static bool moves(tm_gguf_change change) { return change == TM_GGUF_PERMUTED_Q || change == TM_GGUF_PERMUTED_K || change == TM_GGUF_TRANSPOSED; }

static tm_status give_plain(const tm_st_tensor *t, void *out, tm_error *err)
{
    (void)err;
    const piece *p = t->source;
    reorder(p, p->tensor->data, out, tm_dtype_bytes(t->dtype, 1));
    return TM_OK;
}

static tm_status give_floats(const tm_st_tensor *t, void *out, tm_error *err)
{
    (void)err;
    const piece *p = t->source;
    float *value = out;
    if (!moves(p->change)) {
        tm_ggml_unpack(p->tensor->type, p->tensor->data, value, t->count);
        for (int64_t i = 0; i < t->count && p->change == TM_GGUF_PLUS_ONE; i++)
            value[i] -= 1;
        return TM_OK;
    }
    /* Row by row through a block's worth of floats: no second copy of the tensor. */
    const tm_gguf_tensor *from = p->tensor;
    int64_t cols = from->ne[0], rows = from->count / cols, block = from->type->block;
    int64_t row_bytes = cols / block * from->type->bytes;
    float part[TM_GGML_MOST_IN_BLOCK];
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c += block) {
            tm_ggml_unpack(from->type, from->data + r * row_bytes + c / block * from->type->bytes, part, block);
            for (int64_t k = 0; k < block; k++)
                value[p->change == TM_GGUF_TRANSPOSED ? (c + k) * rows + r : tm_gguf_permuted_row(r, p->head_size) * cols + c + k] = part[k];
        }
    return TM_OK;
}

static tm_status make_piece(const source *s, const tm_gguf_tensor *t, const tm_gguf_place *place, piece *p, tm_st_tensor *out)
{
    *p = (piece){.tensor = t, .change = t->ndim == 1 && place->row->change == TM_GGUF_TRANSPOSED ? TM_GGUF_SAME : place->row->change};
    if (p->change == TM_GGUF_PERMUTED_Q || p->change == TM_GGUF_PERMUTED_K) {
        int64_t heads, kv_heads, rows = t->ndim > 1 ? t->count / t->ne[0] : t->count;
        TM_TRY(need_int(s, "attention.head_count", &heads));
        TM_TRY(get_int(s, "attention.head_count_kv", heads, &kv_heads));
        heads = p->change == TM_GGUF_PERMUTED_K ? kv_heads : heads;
        if (heads <= 0 || rows % heads || rows / heads % 2)
            return tm_fail(s->err, TM_INPUT, "%s: tensor \"%s\": %lld rows do not make %lld heads of even size", tm_gguf_name(s->g), t->name,
                           (long long)rows, (long long)heads);
        if (t->ndim == 1 && t->type->unpack)
            return tm_fail(s->err, TM_UNSUPPORTED, "%s: tensor \"%s\": a vector of type %s is not supported", tm_gguf_name(s->g), t->name,
                           t->type->name);
        p->head_size = rows / heads;
    }
    *out = (tm_st_tensor){.ndim = t->ndim, .count = t->count, .dtype = TM_F32, .source = p, .storage = t->type->name,
                          .packed = t->data, .packed_bytes = t->bytes};
    for (int i = 0; i < t->ndim; i++)
        out->shape[i] = t->ne[p->change == TM_GGUF_TRANSPOSED ? i : t->ndim - 1 - i];
    if (t->type->unpack || p->change == TM_GGUF_PLUS_ONE)
        out->give = give_floats;
    else {
        out->dtype = tm_ggml_dtype(t->type);
        out->give = moves(p->change) ? give_plain : NULL;
        out->data = moves(p->change) ? NULL : t->data;
    }
    if (t->count > INT64_MAX / 8)
        return tm_fail(s->err, TM_INPUT, "%s: tensor \"%s\" is too large", tm_gguf_name(s->g), t->name);
    out->bytes = tm_dtype_bytes(out->dtype, out->count);
    return TM_OK;
}

/* Tensors that say nothing config.json does not. */
static bool harmless(const char *name)
{
    size_t n = strlen(name), m = strlen("rope_freqs.weight");
    return n >= m && strcmp(name + n - m, "rope_freqs.weight") == 0; /* old files: one a layer */
}

static tm_status fill_table(const source *s, weights *w, tm_st_tensor *tensor, int64_t *count)
{
    char name[128];
    for (int64_t i = 0; i < tm_gguf_tensors(s->g); i++) {
        const tm_gguf_tensor *t = tm_gguf_tensor_at(s->g, i);
        tm_gguf_place place;
        if (harmless(t->name))
            continue;
        if (!tm_gguf_place_gguf(s->family, t->name, &place) || !tm_gguf_spell(place.row->hf, &place, name, sizeof name))
            return tm_fail(s->err, TM_UNSUPPORTED, "%s: tensor \"%s\" is not one of architecture %s", tm_gguf_name(s->g), t->name,
                           s->family->architecture);
        TM_TRY(make_piece(s, t, &place, &w->piece[*count], &tensor[*count]));
        tensor[*count].name = tm_strdup(name, s->err);
        if (!tensor[*count].name)
            return TM_NO_MEMORY;
        ++*count;
    }
    return TM_OK;
}

tm_status tm_gguf_weights(tm_gguf *g, tm_safetensors **out, tm_error *err)
{
    weights *w = NULL;
    tm_st_tensor *tensor = NULL;
    int64_t count = 0;
    source s = {.g = g, .err = err};
    *out = NULL;
    tm_status st = TM_NEW(&w, 1, err);
    if (st != TM_OK) {
        tm_gguf_close(g);
        return st;
    }
    w->g = g;
    TM_GO(tm_gguf_family_read(g, &s.family, err));
    TM_GO(TM_NEW(&w->piece, tm_gguf_tensors(w->g), err));
    TM_GO(TM_NEW(&tensor, tm_gguf_tensors(w->g), err));
    TM_GO(fill_table(&s, w, tensor, &count));
out:
    if (st == TM_OK)
        return tm_safetensors_of(tensor, count, tm_gguf_name(g), w, release_weights, out, err);
    for (int64_t i = 0; i < count; i++)
        free((char *)tensor[i].name);
    free(tensor);
    release_weights(w);
    return st;
}

tm_status tm_gguf_open_weights(const char *path, tm_safetensors **out, tm_error *err)
{
    tm_gguf *g;
    *out = NULL;
    TM_TRY(tm_gguf_open(path, &g, err));
    return tm_gguf_weights(g, out, err);
}
