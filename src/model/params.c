/* The registry of parameters: see params.h. */
#include "model/params.h"

#include "base/buf.h"

#include <stdlib.h>

tm_status tm_params_add(tm_params *params, const char *name, tm_param_kind kind, int64_t rows, int64_t cols, tm_param **out, tm_error *err)
{
    tm_param *p;
    TM_TRY(TM_GROW(&params->item, &params->capacity, params->count + 1, err));
    TM_TRY(TM_NEW(&p, 1, err));
    *p = (tm_param){.kind = kind, .ndim = rows == 1 ? 1 : 2, .rows = rows, .cols = cols, .replicas = 1,
                    .source = TM_DTYPE_COUNT, .lr_ratio = 1, .layer = -1, .init_scale = 1};
    p->name = tm_strdup(name, err);
    if (!p->name) {
        free(p);
        return TM_NO_MEMORY;
    }
    params->item[params->count++] = p;
    *out = p;
    return TM_OK;
}

tm_param *tm_params_find(const tm_params *params, const char *name)
{
    for (int64_t i = 0; i < params->count; i++)
        if (strcmp(params->item[i]->name, name) == 0)
            return params->item[i];
    return NULL;
}

void tm_params_deinit(tm_params *params)
{
    for (int64_t i = 0; i < params->count; i++) {
        free(params->item[i]->name);
        free(params->item[i]);
    }
    free(params->item);
    *params = (tm_params){0};
}
