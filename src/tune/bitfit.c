/* BitFit (2106.10199): biases only. Where a model has none, zero biases are added to its linears. A family
 * that can store them gets them in the model that is written, whose config says so; of the others the
 * result is an adapter of temper's own: docs/formats/biases.md. */
#include "tune/tune.h"

#include "base/file.h"
#include "base/json.h"
#include "io/adapter_kind.h"

#include <stdlib.h>

static tm_status add_bias(tm_tuning *t, tm_linear *module, tm_error *err)
{
    char name[300];
    snprintf(name, sizeof name, "%s.bias", module->name);
    TM_TRY(tm_params_add(&t->model->params, name, TM_PARAM_BIAS, 1, module->out, &module->bias, err));
    module->bias->layer = module->weight->layer;
    module->bias->added = module->bias->trained = true;
    return TM_OK;
}

/* The linear modules of the blocks that the family can store biases of (all of them for an adapter). */
static tm_status add_biases(tm_tuning *t, bool mlp, tm_error *err)
{
    for (int64_t i = 0; i < t->model->config.layers; i++)
        for (int s = 0; s < TM_SLOTS; s++)
            if (t->model->block[i].slot[s].weight && (s <= TM_O || mlp))
                TM_TRY(add_bias(t, &t->model->block[i].slot[s], err));
    return TM_OK;
}

static tm_status select_adapter(tm_tuning *t, tm_error *err)
{
    t->adapter_result = true;
    TM_TRY(add_biases(t, true, err));
    if (t->from)
        return tm_tuned_open(t, err);
    return tm_names_add(&t->notes, "bitfit: transformers' models of this family hold no biases; zero biases were added, and are saved as an adapter that temper loads", err);
}

static tm_status bitfit_select(tm_tuning *t, tm_error *err)
{
    tm_model *m = t->model;
    const tm_family *family = m->config.family;
    int64_t found = 0;
    for (int64_t i = 0; i < m->params.count; i++)
        if (m->params.item[i]->kind == TM_PARAM_BIAS) {
            m->params.item[i]->trained = true;
            found++;
        }
    if (found || family->qkv_bias == TM_BIAS_BY_KEY) {
        if (t->from)
            return tm_fail(err, TM_RECIPE, "%s: an adapter of biases is for families that hold none; models of type %s do: train the model that was written", t->from, family->model_type);
        if (found)
            return TM_OK;
    } else
        return select_adapter(t, err);
    bool mlp = family->mlp_bias == TM_BIAS_BY_KEY;
    TM_TRY(add_biases(t, mlp, err));
    m->config.qkv_bias = m->config.o_bias = true;
    m->config.mlp_bias = mlp;
    return tm_names_add(&t->notes, "bitfit: the model has no biases; zero biases were added to its linear modules", err);
}

static tm_status bitfit_start(tm_tuning *t, int32_t replica, uint64_t seed, tm_error *err)
{
    (void)seed;
    for (int64_t i = 0; i < t->model->params.count; i++)
        if (t->model->params.item[i]->added)
            TM_RUN(t->model->device, fill, t->model->params.item[i]->value, 0);
    return t->start ? tm_tuned_read(t, replica, err) : TM_OK;
}

static void bitfit_key(const tm_tuning *t, const tm_param *p, char key[TM_TUNED_KEY])
{
    (void)t;
    snprintf(key, TM_TUNED_KEY, "%s", p->name);
}

static tm_status bitfit_save(tm_tuning *t, int32_t replica, const char *dir, tm_error *err)
{
    if (!t->adapter_result)
        return tm_save_model(t, replica, dir, err);
    return tm_tuned_save(t, replica, dir, "  \"peft_type\": \"" TM_BITFIT_TYPE "\",\n  \"task_type\": \"CAUSAL_LM\"\n", err);
}

const tm_method tm_method_bitfit = {.name = "bitfit", .auto_lr = 1e-3, .file = "adapter_model.safetensors", .select = bitfit_select,
                                    .start = bitfit_start, .save = bitfit_save, .key = bitfit_key};
