/* Bottlenecks: see bottleneck.h. Made of ops that know replicas: both products are `lowrank` with an
 * identity as one side, biases are rows of a table that is looked up by the row's replica, and the
 * activation is a gated unit whose other half is one. */
#include "model/bottleneck.h"

tm_status tm_bottleneck_context_take(tm_bottleneck_context *c, tm_memory *memory, int32_t replicas, int64_t rows, tm_error *err)
{
    if (!c->size)
        return TM_OK;
    c->z = tm_arena_tensor(&memory->arena[TM_MEM_SCRATCH], c->device->real, rows, c->size);
    c->xa = tm_arena_tensor(&memory->arena[TM_MEM_SCRATCH], c->device->real, rows, c->size);
    return tm_identity_take(&memory->arena[TM_MEM_WEIGHTS], c->device, replicas, c->size, &c->identity, err);
}

void tm_bottleneck_allocate(tm_bottleneck *b, tm_memory *memory, tm_dtype real, bool gradients)
{
    tm_param *params[] = {b->down, b->down_bias, b->up, b->up_bias};
    for (int i = 0; i < 4; i++) {
        tm_param *p = params[i];
        p->dtype = real;
        p->value = tm_arena_tensor(&memory->arena[TM_MEM_WEIGHTS], real, p->rows * p->replicas, p->cols);
        if (gradients && p->trained)
            p->grad = tm_arena_tensor(&memory->arena[TM_MEM_GRADIENTS], real, p->rows * p->replicas, p->cols);
    }
}

void tm_bottleneck_saved_take(const tm_bottleneck *b, tm_arena *arena, tm_dtype act, tm_dtype real, int64_t rows, tm_bottleneck_saved *saved)
{
    saved->h = tm_arena_tensor(arena, act, rows, b->down->cols);
    saved->wide = tm_arena_tensor(arena, real, rows, 2 * b->down->rows);
}

static tm_lowrank down_of(const tm_bottleneck_context *c, const tm_bottleneck *b) { return (tm_lowrank){.a = b->down->value, .b = c->identity, .scale = 1}; }
static tm_lowrank up_of(const tm_bottleneck_context *c, const tm_bottleneck *b) { return (tm_lowrank){.a = c->identity, .b = b->up->value, .scale = 1}; }

void tm_bottleneck_forward(const tm_bottleneck_context *c, const tm_bottleneck *b, const tm_batch *batch, tm_bottleneck_saved *saved, tm_tensor y)
{
    tm_device *d = c->device;
    const tm_rows *rows = &batch->rows;
    tm_lowrank down = down_of(c, b), up = up_of(c, b);
    tm_tensor pre = tm_tensor_cols(saved->wide, 0, c->size), one = tm_tensor_cols(saved->wide, c->size, c->size);
    tm_tensor h = tm_tensor_rows(saved->h, 0, rows->n), yy = tm_tensor_rows(y, 0, rows->n);
    TM_RUN(d, cast, yy, h);
    TM_RUN(d, embed_forward, rows, batch->replica_row, b->down_bias->value, 1, pre);
    TM_RUN(d, lowrank_forward, rows, &down, saved->h, c->xa, pre);
    TM_RUN(d, fill, tm_tensor_rows(one, 0, rows->n), 1);
    TM_RUN(d, glu_forward, rows, c->act, saved->wide, c->z);
    TM_RUN(d, embed_forward, rows, batch->replica_row, b->up_bias->value, 1, y);
    TM_RUN(d, axpy, 1, h, yy);
    TM_RUN(d, lowrank_forward, rows, &up, c->z, c->xa, y);
}

void tm_bottleneck_backward(const tm_bottleneck_context *c, const tm_bottleneck *b, const tm_batch *batch, tm_bottleneck_saved *saved, tm_tensor dy)
{
    tm_device *d = c->device;
    const tm_rows *rows = &batch->rows;
    tm_lowrank down = down_of(c, b), up = up_of(c, b);
    tm_tensor dpre = tm_tensor_cols(saved->wide, 0, c->size), none = tm_tensor_none();
    TM_RUN(d, glu_forward, rows, c->act, saved->wide, c->z);
    TM_RUN(d, embed_backward, rows, batch->replica_row, dy, 1, b->up_bias->grad);
    TM_RUN(d, lowrank_backward, rows, &up, dy, c->z, c->z, c->xa, none, b->up->grad, none);
    TM_RUN(d, glu_backward, rows, c->act, saved->wide, c->xa, saved->wide, tm_tensor_none());
    TM_RUN(d, embed_backward, rows, batch->replica_row, dpre, 1, b->down_bias->grad);
    TM_RUN(d, lowrank_backward, rows, &down, dpre, saved->h, c->z, c->xa, b->down->grad, none, dy);
}
