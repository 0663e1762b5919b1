/* A PEFT LoRA adapter as numbers, without a model: what merge, compare and inspect read. Every key of
 * the file is understood or refused by name; shapes and ranks are held against the config. */
#ifndef TM_API_ADAPTER_FILE_H
#define TM_API_ADAPTER_FILE_H

#include "io/adapter.h"
#include "model/linear.h"

typedef struct tm_adapter_module {
    char *name;            /* in the base model: "model.layers.0.self_attn.q_proj" */
    tm_linear_delta delta; /* of the weight as it is stored: [in, out] with fan_in_fan_out */
    float *a, *b;          /* owned; borrowed by delta */
    float *magnitude;      /* DoRA: [out]; NULL */
} tm_adapter_module;

typedef struct tm_adapter_saved { /* a whole tensor: a bias, or of modules_to_save */
    char *name;                   /* in the base model, with .weight or .bias */
    const tm_st_tensor *tensor;
} tm_adapter_saved;

typedef struct tm_adapter_file {
    tm_adapter_config config;
    tm_safetensors *file;
    tm_adapter_module *module; /* in order of name */
    int64_t modules;
    size_t module_capacity;
    tm_adapter_saved *saved;
    int64_t saveds;
    size_t saved_capacity;
    bool tied;             /* a whole model (merge_model.c) whose head is its embedding */
} tm_adapter_file;

tm_status tm_adapter_file_open(const char *dir, tm_adapter_file *out, tm_error *err) TM_MUST_CHECK;
void tm_adapter_file_close(tm_adapter_file *adapter);
tm_adapter_module *tm_adapter_file_find(const tm_adapter_file *adapter, const char *module); /* NULL: none */

#endif
