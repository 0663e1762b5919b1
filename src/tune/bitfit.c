/* BitFit (2106.10199): biases only. Where a model has none, zero biases are added to the linears that
 * its family can store; the config written says so. */
#include "tune/tune.h"

static tm_status add_bias(tm_tuning *t, tm_linear *module, tm_error *err)
{
    char name[300];
    snprintf(name, sizeof name, "%s.bias", module->name);
    TM_TRY(tm_params_add(&t->model->params, name, TM_PARAM_BIAS, 1, module->out, &module->bias, err));
    module->bias->added = true;
    return TM_OK;
}

static tm_status bitfit_select(tm_tuning *t, tm_error *err)
{
    tm_model *m = t->model;
    int64_t found = 0;
    for (int64_t i = 0; i < m->params.count; i++)
        if (m->params.item[i]->kind == TM_PARAM_BIAS) {
            m->params.item[i]->trained = true;
            found++;
        }
    if (found)
        return TM_OK;
    const tm_family *family = m->config.family;
    if (family->qkv_bias != TM_BIAS_BY_KEY)
        return tm_fail(err, TM_UNSUPPORTED, "method bitfit: models of type %s cannot hold biases in transformers; use lora", family->model_type);
    bool mlp = family->mlp_bias == TM_BIAS_BY_KEY;
    for (int64_t i = 0; i < m->config.layers; i++)
        for (int s = 0; s < TM_SLOTS; s++)
            if (m->block[i].slot[s].weight && (s <= TM_O || mlp)) {
                TM_TRY(add_bias(t, &m->block[i].slot[s], err));
                m->block[i].slot[s].bias->trained = true;
            }
    m->config.qkv_bias = m->config.o_bias = true;
    m->config.mlp_bias = mlp;
    return tm_names_add(&t->notes, "bitfit: the model has no biases; zero biases were added to its linear modules", err);
}

static tm_status bitfit_start(tm_tuning *t, int32_t replica, uint64_t seed, tm_error *err)
{
    (void)replica, (void)seed, (void)err;
    for (int64_t i = 0; i < t->model->params.count; i++)
        if (t->model->params.item[i]->added)
            TM_RUN(t->model->device, fill, t->model->params.item[i]->value, 0);
    return TM_OK;
}

const tm_method tm_method_bitfit = {.name = "bitfit", .auto_lr = 1e-3, .select = bitfit_select, .start = bitfit_start, .save = tm_save_model};
