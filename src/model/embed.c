/* What stands at the bottom of the decoder: rows of the embedding table, and what a tuning method adds
 * to them.
 *
 * LoRA on the table (PEFT's Embedding layer): x = W[id] + s B A[:, id]. A is kept turned, [V, r] a
 * replica, so that a column of it is a row of a table, looked up as W is, by a row number that counts
 * the replica in (tm_batch.table_row). The product with B is `lowrank` with an identity as its A.
 *
 * A family with learned positions has a second table, added where the first norm adds (decoder.c).
 *
 * A trained prompt: its rows stand before every example (tm_batch.prefix) and are embeddings themselves. */
#include "model/model.h"

#include <assert.h>

#define RUN(op, ...) TM_RUN(m->device, op, __VA_ARGS__)

static void take_param(tm_model *m, tm_param *p)
{
    tm_dtype real = m->device->real;
    p->dtype = real;
    p->value = tm_arena_tensor(&m->memory->arena[TM_MEM_WEIGHTS], real, p->rows * p->replicas, p->cols);
    if (p->trained && m->settings.train)
        p->grad = tm_arena_tensor(&m->memory->arena[TM_MEM_GRADIENTS], real, p->rows * p->replicas, p->cols);
}

tm_status tm_embed_allocate(tm_model *m, tm_error *err)
{
    tm_lora *lora = m->embed_lora;
    if (m->prompt)
        take_param(m, m->prompt);
    if (!lora)
        return TM_OK;
    tm_arena *kept = &m->memory->arena[m->settings.train ? TM_MEM_ACTIVATIONS : TM_MEM_SCRATCH];
    int64_t T = m->settings.max_tokens;
    take_param(m, lora->a);
    take_param(m, lora->b);
    m->embed_column = tm_arena_tensor(&m->memory->arena[TM_MEM_SCRATCH], m->device->real, T, lora->r);
    m->embed_xa = tm_arena_tensor(kept, m->device->real, T, lora->r);
    return tm_identity_take(&m->memory->arena[TM_MEM_WEIGHTS], m->device, m->replicas, lora->r, &m->embed_identity, err);
}

static tm_lowrank product_with_b(const tm_model *m)
{
    return (tm_lowrank){.a = m->embed_identity, .b = m->embed_lora->b->value, .scale = m->embed_lora->scale * m->config.embed_scale};
}

void tm_embed_forward(tm_model *m, const tm_batch *b)
{
    assert(b->longest <= tm_model_config_longest(&m->config)); /* settled by the job, or refused */
    RUN(embed_forward, &b->rows, b->ids, m->embed->value, m->config.embed_scale, m->x0);
    if (m->embed_lora && !m->linear.base_only) {
        tm_lowrank lr = product_with_b(m);
        RUN(embed_forward, &b->rows, b->table_row, m->embed_lora->a->value, 1, m->embed_column);
        RUN(lowrank_forward, &b->rows, &lr, m->embed_column, m->embed_xa, m->x0);
    }
    if (b->prefix)
        RUN(embed_forward, &b->rows, b->prompt_row, m->prompt->value, 1, m->x0);
}

bool tm_embed_trained(const tm_model *m)
{
    return m->embed->trained || m->embed_lora || m->prompt || (m->positions && m->positions->trained);
}

/* PyTorch's padding_idx: no text trains that row of a table, whose gradient in grad is of this op alone. */
static void leave_padding(tm_model *m, tm_tensor grad)
{
    for (int64_t row = m->config.padding; row >= 0 && row < grad.rows; row += m->config.vocab)
        RUN(fill, tm_tensor_rows(grad, row, 1), 0);
}

void tm_embed_backward(tm_model *m, const tm_batch *b)
{
    if (m->embed->trained) {
        tm_tensor grad = m->embed->grad2.data ? m->embed->grad2 : m->embed->grad;
        RUN(embed_backward, &b->rows, b->ids, m->dx, m->config.embed_scale, grad);
        leave_padding(m, grad);
    }
    if (m->positions && m->positions->trained)
        RUN(embed_backward, &b->rows, b->rows.position, m->dx, 1, m->positions->grad);
    if (m->embed_lora) {
        tm_lowrank lr = product_with_b(m);
        tm_tensor dxa = tm_tensor_make(m->linear.dxa.data, m->linear.dxa.dtype, b->rows.n, m->embed_lora->r);
        RUN(lowrank_backward, &b->rows, &lr, m->dx, m->embed_column, m->embed_xa, dxa, tm_tensor_none(), m->embed_lora->b->grad, tm_tensor_none());
        RUN(embed_backward, &b->rows, b->table_row, dxa, 1, m->embed_lora->a->grad);
        leave_padding(m, m->embed_lora->a->grad);
    }
    if (b->prefix)
        RUN(embed_backward, &b->rows, b->prompt_row, m->dx, 1, m->prompt->grad);
}
