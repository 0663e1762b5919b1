/* Importances: how much an old skill depends on every weight, as a file that can be made once and shared
 * (docs/formats/importances.md). One F32 tensor a parameter, named and shaped as the model's; no number is negative, and their mean
 * over all tensors is 1: so keep.ewc.lambda means the same whatever they were measured with. */
#ifndef TM_KEEP_IMPORTANCE_H
#define TM_KEEP_IMPORTANCE_H

#include "base/hash.h"
#include "io/safetensors.h"

/* How they were measured; the file's metadata. */
typedef struct tm_importance_facts {
    const char *kind;   /* fisher, path */
    const char *labels; /* sampled, empirical; of path empirical: it trains on the data's labels */
    const char *space;  /* trained: of what the recipe trains; delta: of the weights under LoRA; factors: of A and B */
    int64_t samples;    /* examples of this task */
    uint64_t seed;      /* that chose them */
    char training[96];  /* path: what the short run was; "" otherwise */
    tm_sha256 model, start, data; /* of the model, of the adapter in it ("": none), of the old data */
    /* Online: F = (gamma weight_old F_old + F_new) / weight, weight = gamma weight_old + 1. Alone: weight 1, one task. */
    double gamma, weight;
    int64_t tasks;
} tm_importance_facts;

/* Opens and checks everything: kind, types, shapes, that every number is finite and not negative, that their mean is 1. TM_INPUT
 * names the tensor. */
tm_status tm_importances_open(const char *path, tm_safetensors **out, tm_error *err) TM_MUST_CHECK;

/* The tensor of a parameter [rows, cols] (a vector has one row); TM_INPUT when it is not there or of another shape. */
tm_status tm_importances_find(const tm_safetensors *file, const char *path, const char *name, int64_t rows, int64_t cols, const tm_st_tensor **out, tm_error *err) TM_MUST_CHECK;

/* Weight and tasks of a file that new ones are added to. */
tm_status tm_importances_past(const tm_safetensors *file, const char *path, double *weight, int64_t *tasks, tm_error *err) TM_MUST_CHECK;

/* Whether the file says the same of itself as facts do. */
bool tm_importances_match(const tm_safetensors *file, const tm_importance_facts *facts);

/* Writes tensors (F32, their data or `give`) with the metadata. */
tm_status tm_importances_write(const char *path, const tm_st_tensor *tensors, int64_t count, const tm_importance_facts *facts, tm_error *err) TM_MUST_CHECK;

#endif
