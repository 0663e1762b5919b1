/* The parts of temper merge. */
#ifndef TM_API_MERGE_H
#define TM_API_MERGE_H

#include "api/adapter_file.h"
#include "base/pool.h"
#include "model/config.h"

struct tm_merge;

typedef struct tm_merge_change { /* by one source on one tensor */
    const tm_adapter_module *module; /* or ... */
    const tm_st_tensor *saved;
    double scale;
    size_t source;
} tm_merge_change;

/* A tensor of the result that adapters change: computed when it is written. */
typedef struct tm_merge_tensor {
    const struct tm_merge *merge;
    const tm_st_tensor *from;
    tm_merge_change *list; /* [count], owned; scales other than 0 */
    int64_t count;
} tm_merge_tensor;

typedef struct tm_merge {
    const tm_merge_request *request;
    tm_model_config config;
    bool known;              /* config is there: a family that temper computes */
    tm_safetensors *base;
    tm_adapter_file *adapter; /* [source_count] */
    tm_pool *pool;
    tm_st_tensor *tensor;    /* [tensors] of the result */
    tm_merge_tensor *change; /* [tensors] beside them; count 0: as in the base */
    int64_t tensors;
    bool untied;             /* the head got weights of its own */
    int64_t changed;         /* tensors */
    int64_t *placed;         /* [source_count] modules and saved tensors that found their weight */
    char *head, *embed;      /* names of tensors; NULL: not known */
    char *aside;
    tm_buf text;
} tm_merge_work;

/* merge.c: what adapters call a tensor of a model, which files may call otherwise. */
const char *tm_merge_own_name(const tm_merge_work *merge, const char *name, char *buffer, size_t size);
/* merge_model.c: a whole model as an adapter; the caller closes it whatever the status. */
tm_status tm_merge_open_model(const tm_merge_work *merge, const char *path, tm_adapter_file *out, tm_error *err) TM_MUST_CHECK;
/* merge_tensor.c: for tm_st_tensor.give of a changed tensor (source: its tm_merge_tensor). */
tm_status tm_merge_compute(const tm_st_tensor *tensor, void *to, tm_error *err) TM_MUST_CHECK;
/* merge_check.c: a line of text for every comparison of logits. */
tm_status tm_merge_check(tm_merge_work *merge, tm_error *err) TM_MUST_CHECK;

#endif
