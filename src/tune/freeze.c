/* Freezing: the first blocks (and the embeddings) stay as they are, the rest is trained in full. */
#include "tune/tune.h"

static void train(tm_param *p) { p->trained = true; }

static tm_status freeze_select(tm_tuning *t, tm_error *err)
{
    const tm_recipe *r = t->recipe;
    tm_model *m = t->model;
    if (r->freeze_layers >= m->config.layers)
        return tm_fail(err, TM_RECIPE, "freeze.layers: %lld, but the model has %lld layers: nothing of them would be trained",
                       (long long)r->freeze_layers, (long long)m->config.layers);
    for (int64_t i = 0; i < m->params.count; i++)
        train(m->params.item[i]);
    m->embed->trained = !r->freeze_embeddings;
    if (m->positions)
        m->positions->trained = !r->freeze_embeddings;
    for (int64_t i = 0; i < m->params.count; i++) {
        tm_param *p = m->params.item[i];
        if (p->layer >= 0 && p->layer < r->freeze_layers)
            p->trained = false;
    }
    return TM_OK;
}

const tm_method tm_method_freeze = {.name = "freeze", .auto_lr = 1e-5, .select = freeze_select, .save = tm_save_model};
