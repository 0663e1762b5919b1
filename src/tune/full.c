/* Full fine-tuning: everything is trained. */
#include "tune/tune.h"

static tm_status full_select(tm_tuning *t, tm_error *err)
{
    (void)err;
    for (int64_t i = 0; i < t->model->params.count; i++)
        t->model->params.item[i]->trained = true;
    return TM_OK;
}

const tm_method tm_method_full = {.name = "full", .auto_lr = 1e-5, .select = full_select, .save = tm_save_model};
