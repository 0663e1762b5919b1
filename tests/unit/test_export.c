/* temper export: what is written reads back as the same model, for every family and type; adapters; what
 * cannot be said is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "api/adapter_file.h"
#include "folder.h"
#include "io/gguf_model.h"
#include "io/hf.h"
#include "model/config.h"
#include "temper.h"
#include "text/tokenizer.h"

#include <math.h>

static const char stories[] = "models/stories260K";

static void export_as(const char *model, const char *adapter, const char *type, const char *gguf, const char *said)
{
    char *text;
    OK(tm_export(&(tm_export_request){.model = model, .adapter = adapter, .gguf = gguf, .type = type, .threads = 1}, &text, err));
    if (!strstr(text, said))
        fail_msg("%s: expected '%s' in: %s", gguf, said, text);
    free(text);
    assert_true(tm_path_exists(gguf));
}

static void refuse_as(tm_status code, const char *why, const tm_export_request *request)
{
    char *text;
    FAILS(code, why, tm_export(request, &text, err));
    assert_null(text);
    if (request->gguf)
        assert_false(tm_path_exists(request->gguf));
}

/* Every tensor of the file has the model's bits. */
static void same_weights(const char *model, const char *gguf)
{
    tm_safetensors *a, *b;
    OK(tm_hf_open_weights(model, &a, err));
    OK(tm_hf_open_weights(gguf, &b, err));
    OK(tm_safetensors_unpack(a, err));
    OK(tm_safetensors_unpack(b, err));
    for (int64_t i = 0; i < tm_safetensors_count(a); i++) {
        const tm_st_tensor *x = tm_safetensors_at(a, i), *y = tm_safetensors_find(b, x->name);
        if (!y)
            fail_msg("%s: %s is not there", gguf, x->name);
        assert_int_equal(x->ndim, y->ndim);
        assert_memory_equal(x->shape, y->shape, (size_t)x->ndim * sizeof *x->shape);
        float *v = malloc((size_t)x->count * 4), *w = malloc((size_t)x->count * 4);
        tm_dtype_convert(v, TM_F32, x->data, x->dtype, x->count);
        tm_dtype_convert(w, TM_F32, y->data, y->dtype, y->count);
        if (memcmp(v, w, (size_t)x->count * 4) != 0)
            fail_msg("%s: %s differs", gguf, x->name);
        free(v);
        free(w);
    }
    assert_int_equal(tm_safetensors_count(a), tm_safetensors_count(b));
    tm_safetensors_close(a);
    tm_safetensors_close(b);
}

static void same_config(const char *model, const char *gguf)
{
    tm_model_config a, b;
    OK(tm_model_config_read(model, &a, err));
    OK(tm_model_config_read(gguf, &b, err));
    assert_int_equal(a.vocab, b.vocab);
    assert_int_equal(a.width, b.width);
    assert_int_equal(a.layers, b.layers);
    assert_int_equal(a.heads, b.heads);
    assert_int_equal(a.kv_heads, b.kv_heads);
    assert_int_equal(a.head_size, b.head_size);
    assert_int_equal(a.ffn, b.ffn);
    assert_true(a.norm_eps == b.norm_eps);
    assert_int_equal(a.activation, b.activation);
    assert_int_equal(a.tied, b.tied);
    assert_int_equal(a.ropes, b.ropes);
    assert_true(a.score_scale == b.score_scale && a.score_cap == b.score_cap && a.head_cap == b.head_cap);
    for (int32_t i = 0; i < a.ropes; i++) {
        float *f = calloc((size_t)a.head_size, 4), *g = calloc((size_t)a.head_size, 4);
        assert_int_equal(a.rope[i].kind, b.rope[i].kind);
        assert_int_equal(a.rope[i].size, b.rope[i].size);
        tm_rope_frequencies(&a.rope[i], 1, false, f);
        tm_rope_frequencies(&b.rope[i], 1, false, g);
        assert_memory_equal(f, g, (size_t)a.rope[i].size / 2 * 4);
        free(f);
        free(g);
    }
    for (int64_t i = 0; i < a.layers; i++)
        if (strstr(model, "mistral") == NULL)
            assert_int_equal(a.window[i], b.window[i]);
    tm_model_config_deinit(&a);
    tm_model_config_deinit(&b);
}

/* 32 bits lose nothing: the golden models of every family, with their ropes, biases, norms and heads. */
static void families(void **state)
{
    (void)state;
    static const char *const cases[] = {"llama-lora", "llama3rope-lora", "mistral-lora", "qwen2-lora", "qwen3-lora", "gpt2-lora"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char model[256], gguf[512];
        snprintf(model, sizeof model, "tests/data/golden/%s/model", cases[i]);
        snprintf(gguf, sizeof gguf, "%s/%s.gguf", scratch_dir, cases[i]);
        if (!tm_path_exists(model))
            continue;
        export_as(model, NULL, "f32", gguf, "KL 0 nats a token (largest 0), largest difference 0");
        same_weights(model, gguf);
        same_config(model, gguf);
    }
}

/* What llama.cpp says of its own: without temper's key the rule's numbers are found again. */
static void rope_factors(void **state)
{
    (void)state;
    size_t size;
    char *bytes = slurp(scratch("llama3rope-lora.gguf"), &size), *at = memmem(bytes, size, "temper.rope_scaling", 19);
    assert_non_null(at);
    at[0] = 'x';
    OK(tm_file_write(scratch("factors.gguf"), bytes, size, err));
    same_config("tests/data/golden/llama3rope-lora/model", scratch("factors.gguf"));
    at = memmem(bytes, size, "rope_freqs.weight", 17);
    tm_gguf *g;
    OK(tm_gguf_view(bytes, size, "f.gguf", &g, err));
    const tm_gguf_tensor *t = tm_gguf_tensor_find(g, "rope_freqs.weight");
    size_t offset = (size_t)(t->data - (const uint8_t *)bytes);
    tm_gguf_close(g);
    float wrong = 3.25f;
    memcpy(bytes + offset, &wrong, 4);
    OK(tm_file_write(scratch("factors.gguf"), bytes, size, err));
    tm_model_config c;
    FAILS(TM_UNSUPPORTED, "rope_freqs.weight", tm_model_config_read(scratch("factors.gguf"), &c, err));
    free(bytes);
}

static void types(void **state)
{
    (void)state;
    static const struct { const char *type, *storage; double rms; } kinds[] = {
        {"f16", "F16", 1e-3}, {"bf16", "BF16", 4e-3}, {"q8_0", "Q8_0", 8e-3}, {"q4_k_m", "Q5_0", 0.06},
    };
    tm_safetensors *a, *b;
    OK(tm_hf_open_weights(stories, &a, err));
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const char *gguf = scratch(kinds[i].type);
        export_as(stories, NULL, kinds[i].type, gguf, "read back");
        OK(tm_hf_open_weights(gguf, &b, err));
        /* A row of 64 is no multiple of 256: K types give way as in llama-quantize. */
        const tm_st_tensor *x = tm_safetensors_find(a, "model.layers.1.self_attn.q_proj.weight"), *y = tm_safetensors_find(b, x->name);
        assert_string_equal(y->storage ? y->storage : tm_dtype_name(y->dtype), kinds[i].storage);
        void *buffer;
        const void *values;
        OK(tm_st_values(y, &buffer, &values, err));
        float *v = malloc((size_t)x->count * 4);
        tm_dtype_convert(v, TM_F32, values, y->dtype, y->count);
        double error = 0, square = 0;
        for (int64_t k = 0; k < x->count; k++) {
            double w = ((const float *)x->data)[k];
            error += (v[k] - w) * (v[k] - w);
            square += w * w;
        }
        assert_true(sqrt(error / square) < kinds[i].rms && error > 0);
        free(v);
        free(buffer);
        tm_safetensors_close(b);
    }
    tm_safetensors_close(a);
}

static void deterministic(void **state)
{
    (void)state;
    size_t n, m;
    export_as(stories, NULL, "q8_0", scratch("one.gguf"), "read back");
    export_as(stories, NULL, "q8_0", scratch("two.gguf"), "read back");
    char *a = slurp(scratch("one.gguf"), &n), *b = slurp(scratch("two.gguf"), &m);
    assert_int_equal(n, m);
    assert_memory_equal(a, b, n);
    free(a);
    free(b);
    assert_false(tm_path_exists(scratch("one.gguf.unchecked")));
    /* A GGUF file is a model like any other: written again it is the same file. */
    export_as(scratch("one.gguf"), NULL, "q8_0", scratch("three.gguf"), "KL 0 nats");
    same_weights(scratch("one.gguf"), scratch("three.gguf"));
}

/* --- Tokenizers --- */

static void same_tokens(const char *model, const char *gguf)
{
    static const char *const texts[] = {"Once upon a time, there was a dog.", "", " ", "  two  spaces", "caf\u00e9 \u0436\u0443\u043a \u4f60\u597d \U0001f600",
                                        "don't 12345 I'LL\n\nnew lines\t", "<s>literal</s> <|im_start|>user"};
    tm_tokenizer *a, *b;
    OK(tm_tokenizer_open(model, &a, err));
    OK(tm_tokenizer_open(gguf, &b, err));
    assert_int_equal(tm_tokenizer_bos(a), tm_tokenizer_bos(b));
    assert_int_equal(tm_tokenizer_eos(a), tm_tokenizer_eos(b));
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        for (int around = 0; around < 2; around++) {
            tm_ids ids[2] = {{0}};
            for (int k = 0; k < 2; k++) {
                tm_tokens *scratch_memory;
                OK(tm_tokens_create(k ? b : a, &scratch_memory, err));
                OK(tm_tokenizer_encode(k ? b : a, scratch_memory, texts[i], strlen(texts[i]), around, &ids[k], err));
                tm_tokens_destroy(scratch_memory);
            }
            if (ids[0].count != ids[1].count || (ids[0].count && memcmp(ids[0].id, ids[1].id, ids[0].count * 4) != 0))
                fail_msg("%s: other tokens for '%s'", gguf, texts[i]);
            tm_ids_deinit(&ids[0]);
            tm_ids_deinit(&ids[1]);
        }
    tm_tokenizer_close(a);
    tm_tokenizer_close(b);
}

static void copy(const char *from, const char *to)
{
    size_t n;
    char *bytes = slurp(from, &n);
    OK(tm_file_write(to, bytes, n, err));
    free(bytes);
}

/* A model folder of qwen2's sizes with the byte-level tokenizer in it. */
static void make_qwen(const char *dir, int64_t vocab)
{
    static float zeros[4096 * 16];
    char config[1024], path[512];
    tm_st_tensor t[16];
    int64_t n = 0;
    for (size_t i = 0; i < sizeof zeros / sizeof *zeros; i++)
        zeros[i] = 0.001f * (float)(i % 37);
    OK(tm_dir_create(dir, err));
    snprintf(config, sizeof config,
             "{\"model_type\": \"qwen2\", \"vocab_size\": %lld, \"hidden_size\": 16, \"intermediate_size\": 32, \"num_hidden_layers\": 1,"
             "\"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-06,"
             "\"rope_theta\": 1000000.0, \"tie_word_embeddings\": true, \"hidden_act\": \"silu\"}", (long long)vocab);
    snprintf(path, sizeof path, "%s/config.json", dir);
    OK(tm_file_write(path, config, strlen(config), err));
    static const struct { const char *name; int64_t rows, cols; } parts[] = {
        {"input_layernorm.weight", 16, 0}, {"post_attention_layernorm.weight", 16, 0}, {"self_attn.q_proj.weight", 16, 16},
        {"self_attn.k_proj.weight", 8, 16}, {"self_attn.v_proj.weight", 8, 16}, {"self_attn.o_proj.weight", 16, 16},
        {"self_attn.q_proj.bias", 16, 0}, {"self_attn.k_proj.bias", 8, 0}, {"self_attn.v_proj.bias", 8, 0},
        {"mlp.gate_proj.weight", 32, 16}, {"mlp.up_proj.weight", 32, 16}, {"mlp.down_proj.weight", 16, 32},
    };
    static char names[16][80];
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++, n++) {
        snprintf(names[n], sizeof names[n], "model.layers.0.%s", parts[i].name);
        t[n] = (tm_st_tensor){.name = names[n], .dtype = TM_F32, .ndim = parts[i].cols ? 2 : 1, .shape = {parts[i].rows, parts[i].cols}, .data = zeros};
    }
    t[n++] = (tm_st_tensor){.name = "model.norm.weight", .dtype = TM_F32, .ndim = 1, .shape = {16}, .data = zeros};
    t[n++] = (tm_st_tensor){.name = "model.embed_tokens.weight", .dtype = TM_F32, .ndim = 2, .shape = {vocab, 16}, .data = zeros};
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    OK(tm_safetensors_write(path, t, n, NULL, err));
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    copy("tests/data/tokenizers/bytelevel/tokenizer.json", path);
    static const char settings[] = "{\"eos_token\": \"<|im_end|>\", \"pad_token\": {\"content\": \"<|endoftext|>\"}, \"chat_template\": \"{{ messages }} \u00e9\"}";
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    OK(tm_file_write(path, settings, sizeof settings - 1, err));
}

static void tokenizers(void **state)
{
    (void)state;
    tm_gguf *g;
    tm_gguf_text text;
    int64_t id, count;
    int32_t *type;
    tm_gguf_text *token;
    export_as(stories, NULL, "f32", scratch("s.gguf"), "KL 0 nats");
    same_tokens(stories, scratch("s.gguf"));
    make_qwen(scratch("qwen"), 3300);
    export_as(scratch("qwen"), NULL, "f16", scratch("q.gguf"), "read back");
    same_tokens(scratch("qwen"), scratch("q.gguf"));
    OK(tm_gguf_open(scratch("q.gguf"), &g, err));
    OK(tm_gguf_get_text(g, "tokenizer.ggml.pre", &text, err));
    assert_memory_equal(text.text, "qwen2", 5);
    OK(tm_gguf_get_text(g, "tokenizer.chat_template", &text, err));
    assert_int_equal(text.size, strlen("{{ messages }} \u00e9"));
    OK(tm_gguf_get_int(g, "tokenizer.ggml.eos_token_id", -1, &id, err));
    assert_int_equal(id, 3258);
    OK(tm_gguf_get_int(g, "tokenizer.ggml.padding_token_id", -1, &id, err));
    assert_int_equal(id, 3256);
    OK(tm_gguf_get_int(g, "tokenizer.ggml.bos_token_id", -1, &id, err));
    assert_int_equal(id, -1);
    OK(tm_gguf_get_ints(g, "tokenizer.ggml.token_type", &type, &count, err));
    OK(tm_gguf_get_texts(g, "tokenizer.ggml.tokens", &token, &count, err));
    assert_int_equal(count, 3300);
    assert_true(type[0] == 1 && type[3257] == 3 && type[3259] == 4 && type[3299] == 5); /* normal, control, user's, padding */
    assert_memory_equal(token[3299].text, "[PAD3299]", 9);
    free(type);
    free(token);
    tm_gguf_close(g);
    make_qwen(scratch("small"), 3000);
    refuse_as(TM_INPUT, "vocabulary has 3000 rows", &(tm_export_request){.model = scratch("small"), .gguf = scratch("small.gguf")});
    /* A way of splitting text that llama.cpp has no name for. */
    size_t n;
    char *json = slurp(scratch("qwen/tokenizer.json"), &n), *at = strstr(json, "\\\\p{N}|");
    assert_non_null(at);
    memcpy(at, "\\\\p{M}|", 7);
    OK(tm_file_write(scratch("qwen/tokenizer.json"), json, n, err));
    refuse_as(TM_UNSUPPORTED, "no name for its way of splitting", &(tm_export_request){.model = scratch("qwen"), .gguf = scratch("r.gguf")});
    free(json);
}

/* --- Refusals --- */

static void refusals(void **state)
{
    (void)state;
    char *text;
    const char *gguf = scratch("never.gguf");
    refuse_as(TM_USAGE, "found 'q9', expected f32", &(tm_export_request){.model = stories, .gguf = gguf, .type = "q9"});
    refuse_as(TM_USAGE, "--adapter DIR is missing", &(tm_export_request){.model = stories, .gguf = gguf, .adapter_only = true});
    refuse_as(TM_USAGE, "adapters are written as", &(tm_export_request){.model = stories, .gguf = gguf, .adapter = "x", .type = "q8_0", .adapter_only = true});
    refuse_as(TM_INPUT, "config.json", &(tm_export_request){.model = "tests/data", .gguf = gguf});
    FAILS(TM_USAGE, "is a folder", tm_export(&(tm_export_request){.model = stories, .gguf = scratch_dir}, &text, err));
    refuse_as(TM_UNSUPPORTED, "DoRA", &(tm_export_request){.model = "tests/data/golden/llama-dora/model", .gguf = gguf, .adapter_only = true,
                                                          .adapter = "tests/data/golden/llama-dora/adapter_final"});
    /* Weights that a type cannot hold. */
    size_t n;
    make_qwen(scratch("hot"), 3300);
    char *bytes = slurp(scratch("hot/model.safetensors"), &n);
    float hot[] = {1e6f, NAN};
    size_t at = 8 + (uint8_t)bytes[0] + 256u * (uint8_t)bytes[1]; /* the first element of the embedding */
    memcpy(bytes + at, &hot[0], 4);
    OK(tm_file_write(scratch("hot/model.safetensors"), bytes, n, err));
    export_as(scratch("hot"), NULL, "bf16", scratch("hot.gguf"), "read back");
    for (int k = 0; k < 2; k++) {
        memcpy(bytes + at, &hot[k], 4);
        OK(tm_file_write(scratch("hot/model.safetensors"), bytes, n, err));
        refuse_as(k ? TM_INPUT : TM_UNSUPPORTED, k ? "not finite" : "beyond 65504", &(tm_export_request){.model = scratch("hot"), .gguf = gguf, .type = "f16"});
        assert_false(tm_path_exists(scratch("never.gguf.unchecked")));
    }
    free(bytes);
}

/* --- Adapters --- */

static float *floats(const tm_gguf *g, const char *name, int64_t rows, int64_t cols)
{
    const tm_gguf_tensor *t = tm_gguf_tensor_find(g, name);
    assert_non_null(t);
    assert_true(t->ne[0] == cols && t->ne[1] == rows);
    float *x = malloc((size_t)t->count * 4);
    tm_ggml_unpack(t->type, t->data, x, t->count);
    return x;
}

/* alpha / r B A of the file, its rows put back into HF's order, is the adapter's dW. */
static void adapter_case(const char *name, bool permuted, int64_t head_size)
{
    char model[256], adapter[256], gguf[512];
    char *text;
    tm_adapter_file f;
    tm_gguf *g;
    double alpha;
    snprintf(model, sizeof model, "tests/data/golden/%s/model", name);
    snprintf(adapter, sizeof adapter, "tests/data/golden/%s/adapter_final", name);
    snprintf(gguf, sizeof gguf, "%s/%s-adapter.gguf", scratch_dir, name);
    OK(tm_export(&(tm_export_request){.model = model, .adapter = adapter, .gguf = gguf, .adapter_only = true}, &text, err));
    assert_non_null(strstr(text, "read back: dW differs by"));
    free(text);
    OK(tm_adapter_file_open(adapter, &f, err));
    OK(tm_gguf_open(gguf, &g, err));
    OK(tm_gguf_get_number(g, "adapter.lora.alpha", 0, &alpha, err));
    assert_int_equal(tm_gguf_tensors(g), 2 * f.modules);
    for (int64_t i = 0; i < f.modules; i++) {
        static const char *const kinds[][2] = {{"q_proj", "attn_q"}, {"k_proj", "attn_k"}, {"v_proj", "attn_v"}, {"o_proj", "attn_output"},
                                               {"gate_proj", "ffn_gate"}, {"up_proj", "ffn_up"}, {"down_proj", "ffn_down"}};
        const tm_adapter_module *m = &f.module[i];
        int layer = atoi(m->name + strlen("model.layers.")), k = 0;
        char full[128];
        while (!strstr(m->name, kinds[k][0]))
            k++;
        int64_t r = m->delta.r, in = m->delta.in, out = m->delta.out;
        snprintf(full, sizeof full, "blk.%d.%s.weight.lora_a", layer, kinds[k][1]);
        float *a = floats(g, full, r, in);
        snprintf(full, sizeof full, "blk.%d.%s.weight.lora_b", layer, kinds[k][1]);
        float *b = floats(g, full, out, r);
        for (int64_t row = 0; row < out; row++) {
            int64_t h = row / head_size, d = row % head_size;
            int64_t hf = permuted && k < 2 ? h * head_size + d % 2 * (head_size / 2) + d / 2 : row;
            for (int64_t c = 0; c < in; c++) {
                double wrote = 0, meant = 0;
                for (int64_t j = 0; j < r; j++) {
                    wrote += (double)b[row * r + j] * a[j * in + c] * alpha / (double)r;
                    meant += (double)m->b[hf * r + j] * m->a[j * in + c] * (double)m->delta.scale;
                }
                if (!(fabs(wrote - meant) <= 1e-5 * fabs(meant) + 1e-8))
                    fail_msg("%s: %s [%lld, %lld]: %g, expected %g", name, m->name, (long long)row, (long long)c, wrote, meant);
            }
        }
        free(a);
        free(b);
    }
    tm_gguf_close(g);
    tm_adapter_file_close(&f);
}

static void adapters(void **state)
{
    (void)state;
    adapter_case("llama-lora", true, 8);
    adapter_case("mistral-lora", true, 8);
    adapter_case("qwen2-rslora", false, 8);
    adapter_case("qwen3-lora", false, 12);
}

static void merged(void **state)
{
    (void)state;
    export_as("tests/data/golden/llama-lora/model", "tests/data/golden/llama-lora/adapter_final", "f32", scratch("merged.gguf"), "read back");
    assert_false(tm_path_exists(scratch("merged.gguf.merged")));
    tm_safetensors *a, *b;
    OK(tm_hf_open_weights("tests/data/golden/llama-lora/model", &a, err));
    OK(tm_hf_open_weights(scratch("merged.gguf"), &b, err));
    OK(tm_safetensors_unpack(b, err));
    const tm_st_tensor *x = tm_safetensors_find(a, "model.layers.0.self_attn.q_proj.weight"), *y = tm_safetensors_find(b, x->name);
    assert_memory_not_equal(x->data, y->data, (size_t)x->bytes);
    tm_safetensors_close(a);
    tm_safetensors_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(families),   cmocka_unit_test(rope_factors), cmocka_unit_test(types),    cmocka_unit_test(deterministic),
        cmocka_unit_test(tokenizers), cmocka_unit_test(refusals),     cmocka_unit_test(adapters), cmocka_unit_test(merged),
    };
    return cmocka_run_group_tests(tests, scratch_begin, scratch_end);
}
