/* What config.json says, as numbers: one decoder with fields covers every family. */
#ifndef TM_MODEL_CONFIG_H
#define TM_MODEL_CONFIG_H

#include "base/status.h"
#include "model/rope.h"

/* The linear modules of a block, in the order their low-rank tensors are numbered. A family that stores several as
 * one module has it in the first slot and the others empty: q, k and v in TM_Q, gate and up in TM_GATE. Without a
 * gate TM_GATE is empty. */
typedef enum tm_slot { TM_Q, TM_K, TM_V, TM_O, TM_GATE, TM_UP, TM_DOWN, TM_SLOTS } tm_slot;

/* The norms of a block. The last two stand between a part of the block and the residual stream. */
typedef enum tm_norm_place { TM_NORM_ATTN, TM_NORM_FFN, TM_NORM_Q, TM_NORM_K, TM_NORM_POST_ATTN, TM_NORM_POST_FFN, TM_NORMS } tm_norm_place;

typedef enum tm_norm_kind {
    TM_NORM_RMS,
    TM_NORM_RMS_OFFSET, /* stored around 0: the factor is 1 + weight */
    TM_NORM_LAYER,      /* with mean and bias */
} tm_norm_kind;

/* Where a family says whether a linear has a bias. */
typedef enum tm_bias_rule { TM_BIAS_NEVER, TM_BIAS_ALWAYS, TM_BIAS_BY_KEY, TM_BIAS_UNLESS_KEY } tm_bias_rule;

/* Which layers see only a window of keys. */
typedef enum tm_window_rule {
    TM_WINDOW_NEVER,
    TM_WINDOW_ALL_LAYERS,  /* config key sliding_window (null: none) */
    TM_WINDOW_LAYER_TYPES, /* use_sliding_window, then layer_types or layers >= max_window_layers */
    TM_WINDOW_PATTERN,     /* layer_types, or all but every n-th layer */
} tm_window_rule;

/* How a new matrix is drawn. */
typedef enum tm_init_rule {
    TM_INIT_NORMAL,
    TM_INIT_GPT2, /* what is added to the residual stream: divided by sqrt(2 layers) */
} tm_init_rule;

/* Keys of config.json that differ between families; NULL: as in llama. */
typedef struct tm_config_keys {
    const char *width, *layers, *heads, *head_size, *ffn, *positions, *norm_eps, *activation, *rope_theta, *rope_size;
} tm_config_keys;

enum { TM_FAMILY_ALIASES = 1, TM_FAMILY_BESIDE = 4 };

/* A family of models: how its config and tensors differ from the common decoder. */
typedef struct tm_family {
    const char *model_type;   /* config.json */
    const char *architecture; /* what transformers calls the class */
    const char *embed, *positions, *layer, *final_norm, *head; /* tensor names without .weight; layer takes %d;
                                 positions NULL: rotary */
    const char *slot[TM_SLOTS]; /* module names inside a layer; NULL: empty */
    const char *norm[TM_NORMS]; /* NULL: the family has none */
    const char *prefix;       /* begin of the names above that files may lack ... */
    const char *also[TM_FAMILY_ALIASES]; /* ... or have as one of these */
    const char *beside[TM_FAMILY_BESIDE]; /* begins of names of tensors in the file that are not computed: vision */
    const char *text_config;  /* key of the config's part about text; NULL: all of it */
    tm_config_keys keys;
    tm_norm_kind norm_kind;
    tm_init_rule init;
    bool conv1d;              /* matrices of blocks are stored [in, out] (PEFT: fan_in_fan_out) */
    bool scaled_embedding;    /* embeddings are multiplied by sqrt(width) */
    bool query_scalar;        /* query_pre_attn_scalar instead of the head size in the scale of scores */
    bool no_kv_heads;         /* as many key heads as heads, whatever the config says */
    bool half_ffn;            /* intermediate_size counts gate and up together */
    bool padding;             /* the embedding has a padding_idx: a new one's row pad_token_id is 0, and no text trains it */
    tm_rope_layout rope;
    tm_bias_rule qkv_bias, o_bias, mlp_bias;
    const char *attn_bias_key, *mlp_bias_key; /* for rules by key; what bitfit may switch on */
    tm_window_rule window;
    int64_t default_pattern;   /* every how many layers one has no window */
    int64_t default_ffn;       /* in widths; 0: the key must be there */
    bool default_tied;
    double default_eps;        /* 0: 1e-6 */
    double default_theta;      /* 0: 10000 */
    double default_cap, default_head_cap; /* soft caps of scores and logits where the config has no key; 0: none */
    int64_t default_kv_heads;  /* 0: as many as heads */
    int64_t default_head_size; /* 0: width / heads */
    int64_t default_window;
    int64_t default_positions; /* 0: 2048 */
    const char *default_activation; /* NULL: silu */
} tm_family;

const tm_family *tm_family_find(const char *model_type); /* NULL: unknown */
const tm_family *tm_families(size_t *count);
/* What a file may call the tensor `name` instead; false: there is no such name number `which`. */
bool tm_family_alias(const tm_family *family, const char *name, int which, char *out, size_t size);
/* The other way round: the name of the tensor that a file calls `name`; false: that is its name. */
bool tm_family_own(const tm_family *family, const char *name, char *out, size_t size);
/* Whether a tensor of the file belongs to a part of the model that temper leaves alone. */
bool tm_family_beside(const tm_family *family, const char *name);

enum { TM_ROPES = 2 };

typedef struct tm_model_config {
    const tm_family *family;
    int64_t vocab, width, layers, heads, kv_heads, head_size, ffn, max_positions;
    float norm_eps;
    double init_std; /* initializer_range */
    int64_t padding; /* row of the embedding that no text trains and that starts at 0; -1: none */
    tm_activation activation;
    float embed_scale, score_cap, head_cap; /* caps: 0 = none */
    double score_scale;         /* of layer i: score_scale / (scale_by_layer ? i + 1 : 1) */
    bool scale_by_layer;
    int32_t ropes;              /* 0: learned positions */
    tm_rope_config rope[TM_ROPES];
    bool tied, qkv_bias, o_bias, mlp_bias;
    int32_t *window;            /* [layers], 0 = full attention; owned */
    int8_t *layer_rope;         /* [layers] index into rope; owned */
} tm_model_config;

/* Reads <dir>/config.json. Unknown families and settings that change the result and are not
 * computed are TM_UNSUPPORTED, nonsense is TM_INPUT; both name the key. */
tm_status tm_model_config_read(const char *dir, tm_model_config *out, tm_error *err) TM_MUST_CHECK;
void tm_model_config_deinit(tm_model_config *config);
/* Tokens an example may have: INT64_MAX but where positions are a table. */
int64_t tm_model_config_longest(const tm_model_config *config);

#endif
