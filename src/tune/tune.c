/* The table of tuning methods: see tune.h. */
#include "tune/tune.h"

#include <stdlib.h>

static tm_status select_nothing(tm_tuning *t, tm_error *err)
{
    (void)t, (void)err;
    return TM_OK;
}

const tm_method tm_method_none = {.name = "none", .auto_lr = 0, .select = select_nothing, .save = tm_save_model};

tm_status tm_method_find(int method, const tm_method **out, tm_error *err)
{
    switch (method) {
    case TM_METHOD_FULL: *out = &tm_method_full; return TM_OK;
    case TM_METHOD_FREEZE: *out = &tm_method_freeze; return TM_OK;
    case TM_METHOD_BITFIT: *out = &tm_method_bitfit; return TM_OK;
    case TM_METHOD_LORA: *out = &tm_method_lora; return TM_OK;
    case TM_METHOD_PROMPT: *out = &tm_method_prompt; return TM_OK;
    case TM_METHOD_NONE: *out = &tm_method_none; return TM_OK;
    case TM_METHOD_ADAPTER: *out = &tm_method_adapter; return TM_OK;
    default: return tm_fail(err, TM_RECIPE, "method: %d is not known", method);
    }
}

const char *tm_tuning_from(const tm_recipe *recipe)
{
    const char *const from[] = {[TM_METHOD_BITFIT] = recipe->bitfit_init, [TM_METHOD_LORA] = recipe->lora_init,
                                [TM_METHOD_ADAPTER] = recipe->adapter_init, [TM_METHOD_PROMPT] = recipe->prompt_init, [TM_METHOD_NONE] = NULL};
    return from[recipe->method];
}

tm_status tm_tuning_select(tm_tuning *t, const tm_recipe *recipe, const tm_method *method, tm_model *model, tm_error *err)
{
    *t = (tm_tuning){.recipe = recipe, .model = model, .method = method};
    if (!method)
        TM_TRY(tm_method_find(recipe->method, &t->method, err));
    t->from = tm_tuning_from(recipe);
    t->adapter_result = t->method->adapter;
    return t->method->select(t, err);
}

void tm_tuning_deinit(tm_tuning *t)
{
    tm_adapter_config_deinit(&t->adapter);
    tm_safetensors_close(t->start);
    tm_names_deinit(&t->notes);
    free(t->adapter_name);
    tm_names_deinit(&t->registers);
    *t = (tm_tuning){0};
}
