/* Tuning methods: what of a model is trained. A method is one file and one row of the table in
 * tune.c; it selects parameters or adds some, gives them their first values, and writes the result. */
#ifndef TM_TUNE_TUNE_H
#define TM_TUNE_TUNE_H

#include "base/options.h"
#include "io/adapter.h"
#include "model/model.h"

enum { TM_TUNED_KEY = 512 };
#define TM_PEFT_PREFIX "base_model.model."

/* The state of one method on one model. */
typedef struct tm_tuning {
    const struct tm_method *method;
    const tm_recipe *recipe;
    tm_model *model;
    bool adapter_result;       /* the result is an adapter, not a model */
    const char *from;          /* folder that the first values come from (lora.init, ...); NULL: none */
    tm_safetensors *start;     /* its tensors */
    tm_adapter_config adapter; /* lora */
    tm_names registers;        /* lora: names of a bank; empty: a plain adapter */
    char *adapter_name;        /* adapter: AdapterHub's name of it, part of its keys; owned */
    const int32_t *prompt_ids; /* prompt: tokens of the text it starts from; borrowed; set after select */
    int64_t prompt_id_count;
    tm_names notes;            /* for the report: biases that were added, ... */
} tm_tuning;

typedef struct tm_method {
    const char *name;
    double auto_lr;       /* train.lr: auto */
    bool adapter;         /* the result is an adapter, not a model */
    bool replicas;        /* works with R > 1 */
    const char *file;     /* of an adapter's tensors */
    /* After tm_model_create, before tm_model_allocate: marks and adds parameters. */
    tm_status (*select)(tm_tuning *t, tm_error *err);
    /* After loading: first values of what was added, for one replica. NULL: nothing was. */
    tm_status (*start)(tm_tuning *t, int32_t replica, uint64_t seed, tm_error *err);
    /* Writes what was trained into dir, as PEFT or transformers lay it out. */
    tm_status (*save)(tm_tuning *t, int32_t replica, const char *dir, tm_error *err);
    /* The key of a trained tensor in an adapter's file. */
    void (*key)(const tm_tuning *t, const tm_param *p, char key[TM_TUNED_KEY]);
} tm_method;

extern const tm_method tm_method_full, tm_method_freeze, tm_method_bitfit, tm_method_lora, tm_method_adapter, tm_method_prompt, tm_method_none;
/* No choice of a recipe: what a recipe of LoRA would change, as weights. The matrices under the adapted modules (and what else is
 * trained) are trained themselves, and begin with the adapter of lora.init merged into them: importances are looked at there. */
extern const tm_method tm_method_beneath;

/* By the recipe's method; TM_UNSUPPORTED for those that do not exist yet. */
tm_status tm_method_find(int method, const tm_method **out, tm_error *err) TM_MUST_CHECK;

/* The folder that a recipe's first values come from; NULL: none. */
const char *tm_tuning_from(const tm_recipe *recipe);

/* method NULL: the recipe's. */
tm_status tm_tuning_select(tm_tuning *t, const tm_recipe *recipe, const tm_method *method, tm_model *model, tm_error *err) TM_MUST_CHECK;
void tm_tuning_deinit(tm_tuning *t);

/* folder.c: the trained tensors of a replica to and from an adapter's file; every tensor must be there, and nothing else. */
tm_status tm_tuned_write(tm_tuning *t, int32_t replica, const char *dir, tm_error *err) TM_MUST_CHECK;
/* The same and its adapter_config.json: the base's name, then `fields`, lines of JSON without braces. */
tm_status tm_tuned_save(tm_tuning *t, int32_t replica, const char *dir, const char *fields, tm_error *err) TM_MUST_CHECK;
tm_status tm_tuned_open(tm_tuning *t, tm_error *err) TM_MUST_CHECK;
tm_status tm_tuned_read(tm_tuning *t, int32_t replica, tm_error *err) TM_MUST_CHECK;
tm_status tm_tuned_read_param(tm_tuning *t, tm_param *p, int32_t replica, tm_error *err) TM_MUST_CHECK; /* one of them */

/* prompt.c: what a prompt's folder says. */
typedef struct tm_prompt_config {
    int64_t tokens, width;
} tm_prompt_config;
tm_status tm_prompt_config_read(const char *dir, tm_prompt_config *out, tm_error *err) TM_MUST_CHECK;

/* n standard normals of a random stream, for first values; value has room for n + 1. */
void tm_fill_normal(float *value, int64_t n, uint64_t key);

/* Writes the whole model as a folder that transformers loads: tokenizer and config files of source,
 * weights in save_dtype. */
tm_status tm_model_save(tm_model *model, const char *source, int save_dtype, const char *dir, tm_error *err) TM_MUST_CHECK;
/* The save of methods whose result is a model. */
tm_status tm_save_model(tm_tuning *t, int32_t replica, const char *dir, tm_error *err) TM_MUST_CHECK;

#endif
