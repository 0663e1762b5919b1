/* Forwards with adapters of a higher rank than the run trains: an average of low-rank matrices is their stack
 * (src/keep/average.c), and is evaluated as it is saved.
 *
 * Modules keep A x for their backward. None follows here, so all share the same rows; the modules of a group, which are one
 * op, do not. */
#include "model/model.h"

static int64_t highest_rank(const tm_model *m)
{
    int64_t most = m->embed_lora ? m->embed_lora->r : 0;
    for (int64_t i = 0; i <= m->config.layers * TM_SLOTS; i++) {
        const tm_lora *lora = i < m->config.layers * TM_SLOTS ? m->block[i / TM_SLOTS].slot[i % TM_SLOTS].lora : m->head.lora;
        most = lora && lora->r > most ? lora->r : most;
    }
    return most;
}

tm_status tm_wide_take(const tm_model *m, int64_t factor, tm_arena *arena, tm_wide *out, tm_error *err)
{
    int64_t rows = m->settings.max_tokens > m->head_x.rows ? m->settings.max_tokens : m->head_x.rows, rank = factor * highest_rank(m);
    *out = (tm_wide){.workspace_bytes = tm_model_workspace(m, factor)};
    for (int k = 0; k < TM_GROUP_MAX; k++)
        out->xa[k] = tm_arena_tensor(arena, m->device->real, rows, rank);
    if (out->workspace_bytes)
        out->workspace = tm_arena_take(arena, out->workspace_bytes);
    if (!m->embed_lora)
        return TM_OK;
    out->column = tm_arena_tensor(arena, m->device->real, rows, factor * m->embed_lora->r);
    return tm_identity_take(arena, m->device, m->replicas, factor * m->embed_lora->r, &out->identity, err);
}

static void give(const tm_wide *wide, const tm_linear_group *group, tm_linear_saved *saved)
{
    for (int32_t i = 0; i < group->count; i++)
        if (group->module[i]->lora) {
            tm_tensor xa = wide->xa[i];
            saved->xa[i] = tm_tensor_make(xa.data, xa.dtype, xa.rows, group->module[i]->lora->r);
        }
}

void tm_wide_use(const tm_wide *wide, tm_model *m)
{
    for (int64_t i = 0; i < m->config.layers; i++) {
        tm_block *b = &m->block[i];
        tm_block_saved *s = &m->saved[i];
        give(wide, &b->qkv, &s->s_qkv);
        give(wide, &b->o, &s->s_o);
        give(wide, &b->gate_up, &s->s_gate_up);
        give(wide, &b->down, &s->s_down);
    }
    give(wide, &m->head_group, &m->s_head);
    if (wide->workspace)
        m->device->calls->lend(m->device, wide->workspace, wide->workspace_bytes);
    if (!m->embed_lora)
        return;
    m->embed_xa = tm_tensor_make(wide->xa[0].data, wide->xa[0].dtype, wide->xa[0].rows, m->embed_lora->r);
    m->embed_column = wide->column;
    m->embed_identity = wide->identity;
}
