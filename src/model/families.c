/* The families of models, a row each. A new family is a row here; when a row needs something the
 * decoder cannot do, the decoder gets a field (config.h) that every row then sets. docs/models.md says which
 * published models a row covers. */
#include "model/config.h"

#include <stdio.h>
#include <string.h>

#define LLAMA_ATTENTION "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"
#define LLAMA_MLP "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
/* Names below a prefix, which checkpoints of the model without its head lack. */
#define LLAMA_TREE(root)                                                                                   \
    .embed = root "embed_tokens", .layer = root "layers.%d", .final_norm = root "norm", .head = "lm_head", \
    .prefix = root, .padding = true
#define LLAMA_NAMES LLAMA_TREE("model."), .also = {""}, .slot = {LLAMA_ATTENTION, LLAMA_MLP}
#define LLAMA_NORMS [TM_NORM_ATTN] = "input_layernorm", [TM_NORM_FFN] = "post_attention_layernorm"
#define GPT2_NAMES                                                                                         \
    .embed = "transformer.wte", .layer = "transformer.h.%d", .final_norm = "transformer.ln_f",             \
    .head = "lm_head", .prefix = "transformer.", .also = {""},                                             \
    .norm = {[TM_NORM_ATTN] = "ln_1", [TM_NORM_FFN] = "ln_2"}, .init = TM_INIT_GPT2, .no_kv_heads = true

#define GEMMA                                                                                              \
    .slot = {LLAMA_ATTENTION, LLAMA_MLP}, .norm_kind = TM_NORM_RMS_OFFSET, .scaled_embedding = true,       \
    .qkv_bias = TM_BIAS_BY_KEY, .o_bias = TM_BIAS_BY_KEY, .attn_bias_key = "attention_bias",               \
    .default_tied = true, .default_head_size = 256, .default_activation = "gelu_pytorch_tanh"
#define GEMMA_NORMS                                                                                        \
    [TM_NORM_ATTN] = "input_layernorm", [TM_NORM_POST_ATTN] = "post_attention_layernorm",                  \
    [TM_NORM_FFN] = "pre_feedforward_layernorm", [TM_NORM_POST_FFN] = "post_feedforward_layernorm"
#define GEMMA3                                                                                             \
    GEMMA, .norm = {GEMMA_NORMS, [TM_NORM_Q] = "self_attn.q_norm", [TM_NORM_K] = "self_attn.k_norm"},      \
    .keys = {.activation = "hidden_activation"}, .query_scalar = true, .window = TM_WINDOW_PATTERN,        \
    .default_pattern = 6, .default_window = 4096, .default_kv_heads = 4, .rope = TM_ROPE_TWO,              \
    .default_theta = 1e6, .default_positions = 131072

static const tm_family families[] = {
    {.model_type = "llama", .architecture = "LlamaForCausalLM", LLAMA_NAMES, .norm = {LLAMA_NORMS},
     .qkv_bias = TM_BIAS_BY_KEY, .o_bias = TM_BIAS_BY_KEY, .mlp_bias = TM_BIAS_BY_KEY,
     .attn_bias_key = "attention_bias", .mlp_bias_key = "mlp_bias", .window = TM_WINDOW_NEVER},
    {.model_type = "mistral", .architecture = "MistralForCausalLM", LLAMA_NAMES, .norm = {LLAMA_NORMS},
     .window = TM_WINDOW_ALL_LAYERS, .default_window = 4096, .default_kv_heads = 8},
    {.model_type = "qwen2", .architecture = "Qwen2ForCausalLM", LLAMA_NAMES, .norm = {LLAMA_NORMS},
     .qkv_bias = TM_BIAS_ALWAYS, .window = TM_WINDOW_LAYER_TYPES, .default_window = 4096, .default_kv_heads = 32},
    {.model_type = "qwen3", .architecture = "Qwen3ForCausalLM", LLAMA_NAMES,
     .norm = {LLAMA_NORMS, [TM_NORM_Q] = "self_attn.q_norm", [TM_NORM_K] = "self_attn.k_norm"},
     .qkv_bias = TM_BIAS_BY_KEY, .o_bias = TM_BIAS_BY_KEY, .attn_bias_key = "attention_bias",
     .window = TM_WINDOW_LAYER_TYPES, .default_window = 4096, .default_kv_heads = 32, .default_head_size = 128},
    {.model_type = "phi3", .architecture = "Phi3ForCausalLM", LLAMA_TREE("model."), .also = {""}, .norm = {LLAMA_NORMS},
     .slot = {[TM_Q] = "self_attn.qkv_proj", [TM_O] = "self_attn.o_proj", [TM_GATE] = "mlp.gate_up_proj", [TM_DOWN] = "mlp.down_proj"},
     .rope = TM_ROPE_PHI, .window = TM_WINDOW_ALL_LAYERS, .default_eps = 1e-5, .default_positions = 4096},
    {.model_type = "gemma", .architecture = "GemmaForCausalLM", LLAMA_TREE("model."), .also = {""}, GEMMA, .norm = {LLAMA_NORMS},
     .keys = {.activation = "hidden_activation"}, .default_kv_heads = 16, .default_positions = 8192},
    {.model_type = "gemma2", .architecture = "Gemma2ForCausalLM", LLAMA_TREE("model."), .also = {""}, GEMMA, .norm = {GEMMA_NORMS},
     .keys = {.activation = "hidden_activation"}, .query_scalar = true, .default_cap = 50, .default_head_cap = 30,
     .window = TM_WINDOW_PATTERN, .default_pattern = 2, .default_window = 4096, .default_kv_heads = 4, .default_positions = 8192},
    {.model_type = "gemma3_text", .architecture = "Gemma3ForCausalLM", LLAMA_TREE("model."), .also = {""}, GEMMA3},
    {.model_type = "gemma3", .architecture = "Gemma3ForConditionalGeneration", LLAMA_TREE("model.language_model."), GEMMA3,
     .also = {"language_model.model."}, .text_config = "text_config",
     .beside = {"model.vision_tower.", "model.multi_modal_projector.", "vision_tower.", "multi_modal_projector."}},
    {.model_type = "gpt2", .architecture = "GPT2LMHeadModel", GPT2_NAMES, .positions = "transformer.wpe",
     .slot = {[TM_Q] = "attn.c_attn", [TM_O] = "attn.c_proj", [TM_UP] = "mlp.c_fc", [TM_DOWN] = "mlp.c_proj"},
     .norm_kind = TM_NORM_LAYER, .conv1d = true, .qkv_bias = TM_BIAS_ALWAYS, .o_bias = TM_BIAS_ALWAYS, .mlp_bias = TM_BIAS_ALWAYS,
     .keys = {.width = "n_embd", .layers = "n_layer", .heads = "n_head", .ffn = "n_inner", .positions = "n_positions",
              .norm_eps = "layer_norm_epsilon", .activation = "activation_function"},
     .default_tied = true, .default_eps = 1e-5, .default_ffn = 4, .default_positions = 1024, .default_activation = "gelu_new"},
    {.model_type = "qwen", .architecture = "QWenLMHeadModel", GPT2_NAMES,
     .slot = {[TM_Q] = "attn.c_attn", [TM_O] = "attn.c_proj", [TM_GATE] = "mlp.w2", [TM_UP] = "mlp.w1", [TM_DOWN] = "mlp.c_proj"},
     .qkv_bias = TM_BIAS_ALWAYS, .o_bias = TM_BIAS_UNLESS_KEY, .mlp_bias = TM_BIAS_UNLESS_KEY,
     .attn_bias_key = "no_bias", .mlp_bias_key = "no_bias", .half_ffn = true, .rope = TM_ROPE_FLAGS,
     .keys = {.head_size = "kv_channels", .norm_eps = "layer_norm_epsilon", .rope_theta = "rotary_emb_base", .rope_size = "rotary_pct"},
     .default_head_size = 128, .default_positions = 8192},
};

const tm_family *tm_families(size_t *count)
{
    *count = sizeof families / sizeof families[0];
    return families;
}

const tm_family *tm_family_find(const char *model_type)
{
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
        if (strcmp(families[i].model_type, model_type) == 0)
            return &families[i];
    return NULL;
}

bool tm_family_alias(const tm_family *family, const char *name, int which, char *out, size_t size)
{
    const char *own = family->prefix, *other = which < TM_FAMILY_ALIASES ? family->also[which] : NULL;
    if (!own || !other || strncmp(name, own, strlen(own)) != 0)
        return false;
    return snprintf(out, size, "%s%s", other, name + strlen(own)) < (int)size;
}

bool tm_family_own(const tm_family *family, const char *name, char *out, size_t size)
{
    const char *own = family->prefix;
    if (strncmp(name, own, strlen(own)) == 0 || strncmp(name, family->head, strlen(family->head)) == 0 || tm_family_beside(family, name))
        return false;
    for (int i = 0; i < TM_FAMILY_ALIASES && family->also[i]; i++)
        if (strncmp(name, family->also[i], strlen(family->also[i])) == 0)
            return snprintf(out, size, "%s%s", own, name + strlen(family->also[i])) < (int)size;
    return false;
}

bool tm_family_beside(const tm_family *family, const char *name)
{
    for (int i = 0; i < TM_FAMILY_BESIDE && family->beside[i]; i++)
        if (strncmp(name, family->beside[i], strlen(family->beside[i])) == 0)
            return true;
    return false;
}
