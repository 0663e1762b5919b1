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
    for (int64_t i = 0; i < r->freeze_layers; i++) {
        tm_block *b = &m->block[i];
        tm_param *norms[] = {b->attn_norm, b->ffn_norm, b->q_norm, b->k_norm};
        for (int k = 0; k < 4; k++)
            if (norms[k])
                norms[k]->trained = false;
        for (int s = 0; s < TM_SLOTS; s++) {
            b->slot[s].weight->trained = false;
            if (b->slot[s].bias)
                b->slot[s].bias->trained = false;
        }
    }
    return TM_OK;
}

const tm_method tm_method_freeze = {.name = "freeze", .auto_lr = 1e-5, .select = freeze_select, .save = tm_save_model};
