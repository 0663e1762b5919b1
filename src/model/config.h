/* What config.json says, as numbers: one decoder with fields covers every family. */
#ifndef TM_MODEL_CONFIG_H
#define TM_MODEL_CONFIG_H

#include "base/status.h"
#include "device/device.h"

/* The linear modules of a block, in the order their low-rank tensors are numbered. */
typedef enum tm_slot { TM_Q, TM_K, TM_V, TM_O, TM_GATE, TM_UP, TM_DOWN, TM_SLOTS } tm_slot;

typedef enum tm_rope_kind { TM_ROPE_DEFAULT, TM_ROPE_LINEAR, TM_ROPE_LLAMA3 } tm_rope_kind;

typedef struct tm_rope_config {
    tm_rope_kind kind;
    double theta, factor, low_freq_factor, high_freq_factor;
    int64_t original_positions;
} tm_rope_config;

/* Where a family says whether a linear has a bias. */
typedef enum tm_bias_rule { TM_BIAS_NEVER, TM_BIAS_ALWAYS, TM_BIAS_BY_KEY } tm_bias_rule;

/* Which layers see only a window of keys. */
typedef enum tm_window_rule {
    TM_WINDOW_NEVER,
    TM_WINDOW_ALL_LAYERS, /* config key sliding_window (null: none) */
    TM_WINDOW_LAYER_TYPES, /* use_sliding_window, then layer_types or layers >= max_window_layers */
} tm_window_rule;

/* A family of models: how its config and tensors differ from the common decoder. */
typedef struct tm_family {
    const char *model_type;   /* config.json */
    const char *architecture; /* what transformers calls the class */
    const char *embed, *layer, *final_norm, *head; /* tensor names without .weight; layer takes %d */
    const char *slot[TM_SLOTS]; /* module names inside a layer */
    const char *attn_norm, *ffn_norm, *q_norm, *k_norm; /* q_norm NULL: the family has none */
    tm_bias_rule qkv_bias, o_bias, mlp_bias;
    const char *attn_bias_key, *mlp_bias_key; /* for TM_BIAS_BY_KEY; what bitfit may switch on */
    tm_window_rule window;
    int64_t default_kv_heads;  /* 0: as many as heads */
    int64_t default_head_size; /* 0: width / heads */
    int64_t default_window;
} tm_family;

const tm_family *tm_family_find(const char *model_type); /* NULL: unknown */
const tm_family *tm_families(size_t *count);

typedef struct tm_model_config {
    const tm_family *family;
    int64_t vocab, width, layers, heads, kv_heads, head_size, ffn, max_positions;
    float norm_eps;
    double init_std; /* initializer_range */
    tm_activation activation;
    tm_rope_config rope;
    bool tied, qkv_bias, o_bias, mlp_bias;
    int32_t *window; /* [layers], 0 = full attention; owned */
} tm_model_config;

/* Reads <dir>/config.json. Unknown families and settings that change the result and are not
 * computed are TM_UNSUPPORTED, nonsense is TM_INPUT; both name the key. */
tm_status tm_model_config_read(const char *dir, tm_model_config *out, tm_error *err) TM_MUST_CHECK;
void tm_model_config_deinit(tm_model_config *config);

/* Rows of a rope table: cos and sin of position p, [head_size / 2] each, in double (uploaded in
 * device->real). As transformers' ROPE_INIT_FUNCTIONS; frequencies are computed in f32 there, and so
 * here, because position * frequency amplifies the difference. */
void tm_rope_frequencies(const tm_model_config *config, float *inv_freq);

#endif
