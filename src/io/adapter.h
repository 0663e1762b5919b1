/* PEFT's LoRA adapter folder: adapter_config.json, adapter_model.safetensors. */
#ifndef TM_IO_ADAPTER_H
#define TM_IO_ADAPTER_H

#include "base/names.h"
#include "io/safetensors.h"

typedef struct tm_pattern { /* one entry of rank_pattern or alpha_pattern */
    char *key;
    double value;
} tm_pattern;

typedef struct tm_adapter_config {
    char *base_model; /* base_model_name_or_path; may be NULL */
    char *task_type;  /* "CAUSAL_LM" */
    int64_t r;
    double alpha, dropout;
    tm_names target_modules; /* a list of names ... */
    char *target_regex;      /* ... or one regular expression (a string in the file), else NULL */
    char *bias;              /* "none", "all", "lora_only" */
    tm_names modules_to_save;
    tm_names exclude_modules; /* as target_modules: a list ... */
    char *exclude_regex;      /* ... or one regular expression, else NULL */
    tm_pattern *rank_pattern, *alpha_pattern;
    int64_t rank_patterns, alpha_patterns;
    int64_t *layers_to_transform;
    int64_t layers_to_transform_count;
    tm_names layers_pattern; /* names of the lists of layers; empty: any */
    bool use_rslora, use_dora, fan_in_fan_out, inference_mode;
} tm_adapter_config;

/* Reads and checks the config. What temper does not compute (a peft_type that is not LORA, lora_bias,
 * layer_replication, trainable_token_indices, use_qalora, ... when set to something that changes the
 * result) is TM_UNSUPPORTED and named. */
tm_status tm_adapter_config_read(const char *dir, tm_adapter_config *out, tm_error *err) TM_MUST_CHECK;
/* The same from text; name stands for the path in messages. */
tm_status tm_adapter_config_parse(const char *text, size_t size, const char *name, tm_adapter_config *out,
                                  tm_error *err) TM_MUST_CHECK;
/* Writes what contract.md lists: the fixed keys, and others only where they are not the default. */
tm_status tm_adapter_config_write(const char *dir, const tm_adapter_config *config, tm_error *err) TM_MUST_CHECK;
void tm_adapter_config_deinit(tm_adapter_config *config);

/* Whether the module (its name in the base model: "model.layers.0.self_attn.q_proj") gets LoRA, by
 * PEFT's rules: modules_to_save and exclude_modules first, then target_modules and layers_to_transform.
 * The string "all-linear" is the caller's to resolve. A regular expression that is not valid (or too
 * hard for this name) is TM_INPUT, with the place in it. */
tm_status tm_adapter_targets(const tm_adapter_config *config, const char *module_name, bool *out,
                             tm_error *err) TM_MUST_CHECK;
/* The value of the first pattern, in their order, that the end of the module's name matches. */
tm_status tm_adapter_pattern(const tm_pattern *patterns, int64_t n, const char *module_name, double fallback,
                             double *out, tm_error *err) TM_MUST_CHECK;

#endif
