/* Families of models by their names in GGUF: see gguf_model.h. A new family is a list of rows and a line of
 * the table at the end; what its metadata say is in gguf_model.c and api/export_meta.c. */
#include "io/gguf_model.h"

#include <stdio.h>
#include <string.h>

#define LAYER(gguf, hf, change) {"blk.%d." gguf, "model.layers.%d." hf, change}
#define ATTENTION(q, k)                                                                                 \
    LAYER("attn_q", "self_attn.q_proj", q), LAYER("attn_k", "self_attn.k_proj", k),                     \
    LAYER("attn_v", "self_attn.v_proj", TM_GGUF_SAME), LAYER("attn_output", "self_attn.o_proj", TM_GGUF_SAME)
#define GATED_MLP                                                                                       \
    LAYER("ffn_gate", "mlp.gate_proj", TM_GGUF_SAME), LAYER("ffn_up", "mlp.up_proj", TM_GGUF_SAME),     \
    LAYER("ffn_down", "mlp.down_proj", TM_GGUF_SAME)
#define OUTSIDE(norm)                                                                                   \
    {"token_embd", "model.embed_tokens", TM_GGUF_SAME}, {"output_norm", "model.norm", norm},            \
    {"output", "lm_head", TM_GGUF_SAME}

static const tm_gguf_row llama_rows[] = {
    OUTSIDE(TM_GGUF_SAME),
    LAYER("attn_norm", "input_layernorm", TM_GGUF_SAME),
    ATTENTION(TM_GGUF_PERMUTED_Q, TM_GGUF_PERMUTED_K),
    LAYER("ffn_norm", "post_attention_layernorm", TM_GGUF_SAME),
    GATED_MLP,
};

static const tm_gguf_row qwen_rows[] = {
    OUTSIDE(TM_GGUF_SAME),
    LAYER("attn_norm", "input_layernorm", TM_GGUF_SAME),
    ATTENTION(TM_GGUF_SAME, TM_GGUF_SAME),
    LAYER("attn_q_norm", "self_attn.q_norm", TM_GGUF_SAME),
    LAYER("attn_k_norm", "self_attn.k_norm", TM_GGUF_SAME),
    LAYER("ffn_norm", "post_attention_layernorm", TM_GGUF_SAME),
    GATED_MLP,
};

static const tm_gguf_row gemma_rows[] = {
    OUTSIDE(TM_GGUF_PLUS_ONE),
    LAYER("attn_norm", "input_layernorm", TM_GGUF_PLUS_ONE),
    ATTENTION(TM_GGUF_SAME, TM_GGUF_SAME),
    LAYER("attn_q_norm", "self_attn.q_norm", TM_GGUF_PLUS_ONE),
    LAYER("attn_k_norm", "self_attn.k_norm", TM_GGUF_PLUS_ONE),
    LAYER("post_attention_norm", "post_attention_layernorm", TM_GGUF_PLUS_ONE),
    LAYER("ffn_norm", "pre_feedforward_layernorm", TM_GGUF_PLUS_ONE),
    GATED_MLP,
    LAYER("post_ffw_norm", "post_feedforward_layernorm", TM_GGUF_PLUS_ONE),
};

static const tm_gguf_row phi3_rows[] = {
    OUTSIDE(TM_GGUF_SAME),
    LAYER("attn_norm", "input_layernorm", TM_GGUF_SAME),
    LAYER("attn_qkv", "self_attn.qkv_proj", TM_GGUF_SAME),
    LAYER("attn_output", "self_attn.o_proj", TM_GGUF_SAME),
    LAYER("ffn_norm", "post_attention_layernorm", TM_GGUF_SAME),
    LAYER("ffn_up", "mlp.gate_up_proj", TM_GGUF_SAME),
    LAYER("ffn_down", "mlp.down_proj", TM_GGUF_SAME),
};

#define GPT2_LAYER(gguf, hf, change) {"blk.%d." gguf, "transformer.h.%d." hf, change}
static const tm_gguf_row gpt2_rows[] = {
    {"token_embd", "transformer.wte", TM_GGUF_SAME},
    {"position_embd", "transformer.wpe", TM_GGUF_SAME},
    {"output_norm", "transformer.ln_f", TM_GGUF_SAME},
    {"output", "lm_head", TM_GGUF_SAME},
    GPT2_LAYER("attn_norm", "ln_1", TM_GGUF_SAME),
    GPT2_LAYER("attn_qkv", "attn.c_attn", TM_GGUF_TRANSPOSED),
    GPT2_LAYER("attn_output", "attn.c_proj", TM_GGUF_TRANSPOSED),
    GPT2_LAYER("ffn_norm", "ln_2", TM_GGUF_SAME),
    GPT2_LAYER("ffn_up", "mlp.c_fc", TM_GGUF_TRANSPOSED),
    GPT2_LAYER("ffn_down", "mlp.c_proj", TM_GGUF_TRANSPOSED),
};

#define ROWS(list) .row = list, .rows = (int32_t)(sizeof list / sizeof list[0])
#define SILU .activation_key = "hidden_act", .activation = "silu"
#define GELU .activation_key = "hidden_activation", .activation = "gelu_pytorch_tanh"

/* Of families that share an architecture, the first is what a file is read as. */
static const tm_gguf_family families[] = {
    {.model_type = "llama", .architecture = "llama", .class_name = "LlamaForCausalLM", SILU, ROWS(llama_rows)},
    {.model_type = "mistral", .architecture = "llama", .class_name = "MistralForCausalLM", SILU, ROWS(llama_rows)},
    {.model_type = "qwen2", .architecture = "qwen2", .class_name = "Qwen2ForCausalLM", SILU, ROWS(qwen_rows)},
    {.model_type = "qwen3", .architecture = "qwen3", .class_name = "Qwen3ForCausalLM", SILU, ROWS(qwen_rows)},
    {.model_type = "gemma2", .architecture = "gemma2", .class_name = "Gemma2ForCausalLM", GELU, ROWS(gemma_rows),
     .gemma = true, .window_pattern = 2},
    {.model_type = "gemma3_text", .architecture = "gemma3", .class_name = "Gemma3ForCausalLM", GELU, ROWS(gemma_rows),
     .gemma = true, .window_pattern = 6},
    {.model_type = "phi3", .architecture = "phi3", .class_name = "Phi3ForCausalLM", SILU, ROWS(phi3_rows)},
    {.model_type = "gpt2", .architecture = "gpt2", .class_name = "GPT2LMHeadModel",
     .activation_key = "activation_function", .activation = "gelu_new", ROWS(gpt2_rows)},
};

const tm_gguf_family *tm_gguf_family_of(const char *model_type)
{
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
        if (strcmp(families[i].model_type, model_type) == 0)
            return &families[i];
    return NULL;
}

const tm_gguf_family *tm_gguf_architecture(const char *name, size_t size)
{
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
        if (strlen(families[i].architecture) == size && memcmp(families[i].architecture, name, size) == 0)
            return &families[i];
    return NULL;
}

/* Whether name is the pattern, with a layer's number for %d, and then .weight or .bias. */
static bool match(const char *pattern, const char *name, tm_gguf_place *out)
{
    const char *number = strstr(pattern, "%d");
    size_t n = number ? (size_t)(number - pattern) : strlen(pattern);
    if (strncmp(pattern, name, n) != 0)
        return false;
    name += n;
    out->layer = -1;
    if (number) {
        size_t digits = strspn(name, "0123456789");
        if (digits == 0 || digits > 6 || (digits > 1 && name[0] == '0'))
            return false;
        out->layer = 0;
        for (size_t i = 0; i < digits; i++)
            out->layer = out->layer * 10 + (name[i] - '0');
        name += digits;
        n = strlen(number + 2);
        if (strncmp(number + 2, name, n) != 0)
            return false;
        name += n;
    }
    out->suffix = name;
    return strcmp(name, ".weight") == 0 || strcmp(name, ".bias") == 0;
}

static bool place(const tm_gguf_family *family, const char *name, bool hf, tm_gguf_place *out)
{
    for (int32_t i = 0; i < family->rows; i++)
        if (match(hf ? family->row[i].hf : family->row[i].gguf, name, out)) {
            out->row = &family->row[i];
            return true;
        }
    return false;
}

bool tm_gguf_place_hf(const tm_gguf_family *family, const char *name, tm_gguf_place *out)
{
    return place(family, name, true, out);
}

bool tm_gguf_place_gguf(const tm_gguf_family *family, const char *name, tm_gguf_place *out)
{
    return place(family, name, false, out);
}

bool tm_gguf_spell(const char *pattern, const tm_gguf_place *place_of, char *out, size_t size)
{
    const char *number = strstr(pattern, "%d");
    int n = number ? snprintf(out, size, "%.*s%lld%s%s", (int)(number - pattern), pattern, (long long)place_of->layer, number + 2,
                              place_of->suffix)
                   : snprintf(out, size, "%s%s", pattern, place_of->suffix);
    return n > 0 && (size_t)n < size;
}

int64_t tm_gguf_permuted_row(int64_t row, int64_t head_size)
{
    int64_t head = row / head_size, r = row % head_size;
    return head * head_size + r % 2 * (head_size / 2) + r / 2;
}
