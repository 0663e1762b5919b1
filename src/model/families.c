/* The families of models, a row each. A new family is a row here; when a row needs something the
 * decoder cannot do, the decoder gets a field (config.h) that every row then sets. */
#include "model/config.h"

#include <string.h>

#define LLAMA_NAMES                                                                                        \
    .embed = "model.embed_tokens", .layer = "model.layers.%d", .final_norm = "model.norm",                 \
    .head = "lm_head",                                                                                     \
    .slot = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",               \
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},                                             \
    .attn_norm = "input_layernorm", .ffn_norm = "post_attention_layernorm"

static const tm_family families[] = {
    {.model_type = "llama", .architecture = "LlamaForCausalLM", LLAMA_NAMES,
     .qkv_bias = TM_BIAS_BY_KEY, .o_bias = TM_BIAS_BY_KEY, .mlp_bias = TM_BIAS_BY_KEY,
     .attn_bias_key = "attention_bias", .mlp_bias_key = "mlp_bias", .window = TM_WINDOW_NEVER},
    {.model_type = "mistral", .architecture = "MistralForCausalLM", LLAMA_NAMES,
     .window = TM_WINDOW_ALL_LAYERS, .default_window = 4096, .default_kv_heads = 8},
    {.model_type = "qwen2", .architecture = "Qwen2ForCausalLM", LLAMA_NAMES,
     .qkv_bias = TM_BIAS_ALWAYS, .window = TM_WINDOW_LAYER_TYPES, .default_window = 4096, .default_kv_heads = 32},
    {.model_type = "qwen3", .architecture = "Qwen3ForCausalLM", LLAMA_NAMES,
     .q_norm = "self_attn.q_norm", .k_norm = "self_attn.k_norm",
     .qkv_bias = TM_BIAS_BY_KEY, .o_bias = TM_BIAS_BY_KEY, .attn_bias_key = "attention_bias",
     .window = TM_WINDOW_LAYER_TYPES, .default_window = 4096, .default_kv_heads = 32, .default_head_size = 128},
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
