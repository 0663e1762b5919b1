/* The registry of parameters: every tensor of a run that has a name. A tuning method only selects
 * or adds parameters; loading, optimising, saving, hashing and averaging walk this list. */
#ifndef TM_MODEL_PARAMS_H
#define TM_MODEL_PARAMS_H

#include "model/memory.h"

typedef enum tm_param_kind { TM_PARAM_MATRIX, TM_PARAM_EMBEDDING, TM_PARAM_NORM, TM_PARAM_BIAS, TM_PARAM_LORA_A, TM_PARAM_LORA_B, TM_PARAM_MAGNITUDE } tm_param_kind;

typedef struct tm_param {
    char *name;          /* HF name with .weight or .bias; of adapters PEFT's, without base_model.model. */
    tm_param_kind kind;
    int32_t ndim;        /* 1 or 2, as stored in files */
    int64_t rows, cols;  /* of one replica; vectors have one row */
    int32_t layer;       /* block it belongs to; -1: none */
    float init_scale;    /* of a new matrix's standard deviation; 1 */
    int32_t replicas;    /* R for what an adapter adds, else 1 */
    tm_dtype dtype;      /* in memory */
    tm_dtype source;     /* in the model's file; TM_DTYPE_COUNT: not from a file */
    bool trained;
    bool added;          /* by the tuning method: not part of the base model */
    bool turned;         /* files have it as [cols, rows] */
    float lr_ratio;      /* LoRA+; 1 */
    tm_tensor value;     /* [R * rows, cols] */
    tm_tensor grad;      /* as value in device->real, when trained */
    tm_tensor grad2;     /* second gradient, summed apart and joined at the end of a step: a tied
                            embedding's as a table (grad is its as a head), so that the sum over
                            examples of each is one chain, however the step is cut */
    tm_tensor m, v;      /* optimiser state */
} tm_param;

typedef struct tm_params {
    tm_param **item; /* owned, stable addresses */
    int64_t count;
    size_t capacity;
} tm_params;

/* Declares a parameter; allocation comes later. The name is copied. */
tm_status tm_params_add(tm_params *params, const char *name, tm_param_kind kind, int64_t rows, int64_t cols, tm_param **out, tm_error *err) TM_MUST_CHECK;
tm_param *tm_params_find(const tm_params *params, const char *name);
void tm_params_deinit(tm_params *params);

/* Elements of one replica. */
static inline int64_t tm_param_count(const tm_param *p) { return p->rows * p->cols; }
/* Replica r's part of one of the param's tensors. */
static inline tm_tensor tm_param_part(const tm_param *p, tm_tensor t, int32_t replica)
{
    return tm_tensor_rows(t, replica * p->rows, p->rows);
}

#endif
