/* WiSE-FT: see keep.h, docs/math/average.md.
 *
 * What an adapter adds is scaled by its last matrix (B of LoRA, the way up of a bottleneck); the base's own weights are
 * read from the model's files again, so that no second copy stands in memory. Scale 0 gives the base to the bit. It comes
 * behind the averages: what is scaled is what would be saved. */
#include "keep/keep.h"

#include "base/buf.h"

#include <stdlib.h>

/* How a trained tensor comes nearer to the base. */
typedef enum way { LEAVE, SCALE, MIX } way;

static bool is_way_up(const tm_model *m, const tm_param *p)
{
    for (int64_t i = 0; i < m->config.layers; i++) {
        const tm_bottleneck *both[] = {m->block[i].attn_adapter, m->block[i].ffn_adapter};
        for (int k = 0; k < 2; k++)
            if (both[k] && (both[k]->up == p || both[k]->up_bias == p))
                return true;
    }
    return false;
}

static way way_of(const tm_trainer *t, const tm_param *p)
{
    const tm_model *m = &t->model;
    if (!p->added || p == m->head.weight) /* a head that was untied from the embedding is read like others */
        return MIX;
    if (p->kind == TM_PARAM_LORA_B || is_way_up(m, p))
        return SCALE;
    return t->recipe->method == TM_METHOD_BITFIT ? SCALE : LEAVE; /* biases that the family does not have are 0 in the base */
}

/* value = base + scale (value - base), a tensor at a time on the host, rounded once. */
static tm_status mix(tm_trainer *t, tm_param *p, tm_error *err)
{
    tm_status st = TM_OK;
    tm_model *m = &t->model;
    int64_t n = tm_param_count(p);
    float *value = NULL, *base = NULL;
    double scale = t->recipe->wise_scale;
    const tm_st_tensor *stored = tm_model_stored(m, t->run->file, p->name);
    if (!stored && p == m->head.weight)
        stored = tm_model_stored(m, t->run->file, m->embed->name);
    TM_GO(TM_NEW(&value, n, err));
    TM_GO(TM_NEW(&base, n, err));
    TM_GO(tm_param_read(m, p, p->value, 0, value, TM_F32, err));
    TM_GO(tm_param_load(m, p, stored, t->run->model_dir, err));
    if (scale == 0)
        goto out;
    TM_GO(tm_param_read(m, p, p->value, 0, base, TM_F32, err));
    for (int64_t i = 0; i < n; i++)
        value[i] = (float)(base[i] + scale * ((double)value[i] - base[i]));
    st = tm_param_write(m, p, 0, value, TM_F32, err);
out:
    free(value);
    free(base);
    return st;
}

static tm_status wise_end(void *state, tm_trainer *t, tm_error *err)
{
    (void)state;
    if (t->verdict == TM_ROLL_BACK)
        return TM_OK;
    for (int64_t i = 0; i < t->model.params.count; i++) {
        tm_param *p = t->model.params.item[i];
        way w = p->trained ? way_of(t, p) : LEAVE;
        if (w == SCALE)
            TM_RUN(t->device, axpy, t->recipe->wise_scale - 1, p->value, p->value);
        if (w == MIX)
            TM_TRY(mix(t, p, err));
    }
    t->result_changed = true;
    return TM_OK;
}

tm_status tm_wise_add(tm_trainer *t, tm_error *err)
{
    const tm_recipe *recipe = t->recipe;
    if (recipe->wise_scale == 1 || !t->trained_count)
        return TM_OK;
    for (int64_t i = 0; i < t->model.params.count; i++)
        if (t->model.params.item[i]->kind == TM_PARAM_MAGNITUDE)
            return tm_fail(err, TM_UNSUPPORTED, "keep.wise.scale: an adapter with use_dora has no scale of its own; train with scale 1 and use `temper merge --adapter DIR:%g`", recipe->wise_scale);
    if (recipe->method == TM_METHOD_PROMPT)
        return tm_fail(err, TM_UNSUPPORTED, "keep.wise.scale: a trained prompt is no change of weights; expected 1");
    bool mixes = false;
    for (int64_t i = 0; i < t->model.params.count; i++)
        mixes |= t->model.params.item[i]->trained && way_of(t, t->model.params.item[i]) == MIX;
    if (mixes && recipe->init == TM_INIT_RANDOM)
        return tm_fail(err, TM_RECIPE, "keep.wise.scale: with init: random there is no base to come back to; expected 1");
    tm_hook hook = {.name = "wise", .replicas = true, .end = wise_end};
    return tm_trainer_add_hook(t, &hook, err);
}
