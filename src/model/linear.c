/* Linear modules: see linear.h.
 *
 * LoRA (2106.09685): y = W x + b + s B A dropout(x).
 * DoRA (2402.09353), as PEFT computes it: with u = W x' + s B A x', x' = dropout(x), g = m / ||W + s B A||
 * (a constant in backward): y = W x + b + (g - 1) W x' + g s B A x' = g u + b + W (x - x'). */
#include "model/linear.h"

#include "base/buf.h"

#include <stdlib.h>

tm_status tm_identity_take(tm_arena *arena, tm_device *device, int32_t replicas, int64_t n, tm_tensor *out, tm_error *err)
{
    *out = tm_arena_tensor(arena, device->real, n * replicas, n);
    void *row;
    TM_TRY(tm_alloc(&row, (size_t)n, 8, err));
    for (int64_t i = 0; i < n * replicas; i++) {
        for (int64_t k = 0; k < n; k++)
            device->real == TM_F64 ? (((double *)row)[k] = k == i % n) : (((float *)row)[k] = k == i % n);
        device->calls->upload(device, tm_tensor_rows(*out, i, 1).data, row, tm_dtype_bytes(device->real, n));
    }
    free(row);
    return TM_OK;
}

/* Gradients of an added or trained parameter, laid out as its value. */
static void take_gradient(tm_param *p, tm_memory *memory, tm_dtype real, bool gradients)
{
    if (gradients && p && p->trained && !p->grad.data)
        p->grad = tm_arena_tensor(&memory->arena[TM_MEM_GRADIENTS], real, p->rows * p->replicas, p->cols);
}

void tm_linear_group_allocate(tm_linear_group *group, tm_memory *memory, tm_dtype real, bool gradients)
{
    tm_dtype dtype = group->module[0]->weight->dtype;
    bool biases = true;
    for (int32_t i = 0; i < group->count; i++) {
        tm_linear *module = group->module[i];
        if (module->weight->dtype != dtype)
            dtype = real; /* one trained, or stored otherwise: the group is one matrix */
        biases &= module->bias != NULL;
    }
    group->weight = tm_arena_tensor(&memory->arena[TM_MEM_WEIGHTS], dtype, group->out, group->in);
    group->bias = biases ? tm_arena_tensor(&memory->arena[TM_MEM_WEIGHTS], real, 1, group->out) : tm_tensor_none();
    int64_t at = 0;
    for (int32_t i = 0; i < group->count; at += group->module[i++]->out) {
        tm_linear *module = group->module[i];
        module->weight->dtype = dtype;
        module->weight->value = tm_tensor_rows(group->weight, at, module->out);
        take_gradient(module->weight, memory, real, gradients);
        if (module->bias) {
            module->bias->dtype = real;
            module->bias->value = tm_tensor_cols(group->bias, at, module->out);
            take_gradient(module->bias, memory, real, gradients);
        }
        tm_lora *lora = module->lora;
        tm_param *added[] = {lora ? lora->a : NULL, lora ? lora->b : NULL, lora ? lora->magnitude : NULL};
        for (int k = 0; k < 3; k++)
            if (added[k]) {
                tm_param *p = added[k];
                p->dtype = real;
                p->value = tm_arena_tensor(&memory->arena[TM_MEM_WEIGHTS], real, p->rows * p->replicas, p->cols);
                take_gradient(p, memory, real, gradients);
            }
        if (lora && lora->magnitude)
            lora->norm = tm_arena_tensor(&memory->arena[TM_MEM_WEIGHTS], real, 1, module->out * lora->magnitude->replicas);
    }
}

void tm_linear_saved_allocate(const tm_linear_group *group, tm_arena *arena, tm_dtype act, tm_dtype real, int64_t rows, tm_linear_saved *saved)
{
    for (int32_t i = 0; i < group->count; i++) {
        const tm_lora *lora = group->module[i]->lora;
        saved->xa[i] = lora ? tm_arena_tensor(arena, real, rows, lora->r) : tm_tensor_none();
        saved->u[i] = lora && lora->magnitude ? tm_arena_tensor(arena, act, rows, group->module[i]->out) : tm_tensor_none();
    }
}

bool tm_linear_group_trained(const tm_linear_group *group)
{
    for (int32_t i = 0; i < group->count; i++) {
        const tm_linear *module = group->module[i];
        if (module->weight->trained || (module->bias && module->bias->trained) || module->lora)
            return true;
    }
    return false;
}

static tm_lowrank lowrank_of(const tm_linear_context *c, const tm_lora *lora)
{
    return (tm_lowrank){lora->a->value, lora->b->value, lora->scale, c->step ? lora->dropout : 0, lora->module, c->step};
}

static tm_tensor flat(tm_tensor t) { return tm_tensor_make(t.data, t.dtype, 1, t.rows * t.cols); }

void tm_linear_group_prepare(const tm_linear_context *c, tm_linear_group *group)
{
    for (int32_t i = 0; i < group->count; i++) {
        const tm_linear *module = group->module[i];
        if (module->lora && module->lora->magnitude) {
            tm_lowrank lr = lowrank_of(c, module->lora);
            TM_RUN(c->device, dora_norm, c->replicas, &lr, module->weight->value, module->lora->norm);
        }
    }
}

static bool is_dora(const tm_linear *module) { return module->lora && module->lora->magnitude; }

/* Whether all that LoRA adds to the group are plain low-rank deltas, which one op computes with the group's product. */
static bool plain_lora(const tm_linear_group *group)
{
    for (int32_t i = 0; i < group->count; i++)
        if (group->module[i]->lora && (is_dora(group->module[i]) || group->module[i]->lora->gates))
            return false;
    return true;
}

static tm_tensor dxa_of(const tm_linear_context *c, int32_t module, int64_t rows, int64_t r)
{
    int64_t each = c->dxa.rows / TM_GROUP_MAX;
    return tm_tensor_make(tm_tensor_rows(c->dxa, module * each, each).data, c->dxa.dtype, rows, r);
}

/* The deltas of a group, in the order of its modules. */
static int32_t lora_parts(const tm_linear_context *c, const tm_linear_group *group, const tm_rows *rows, const tm_linear_saved *saved, bool gradients, tm_lora_part part[TM_GROUP_MAX])
{
    tm_tensor none = tm_tensor_none();
    int32_t n = 0;
    int64_t first = 0;
    for (int32_t i = 0; i < group->count; first += group->module[i++]->out) {
        const tm_lora *lora = group->module[i]->lora;
        if (lora)
            part[n++] = (tm_lora_part){lowrank_of(c, lora), first, saved->xa[i], c->dxa.data ? dxa_of(c, i, rows->n, lora->r) : c->dxa, gradients ? lora->a->grad : none, gradients ? lora->b->grad : none};
    }
    return n;
}

/* The two matrices of a bank, as products of one: `lowrank` with an identity for the other. */
static tm_lowrank bank_a(const tm_linear_context *c, const tm_lora *lora)
{
    return (tm_lowrank){lora->a->value, c->identity, 1, c->step ? lora->dropout : 0, lora->module, c->step};
}
static tm_lowrank bank_b(const tm_linear_context *c, const tm_lora *lora) { return (tm_lowrank){.a = c->identity, .b = lora->b->value, .scale = lora->scale}; }

/* y += s B (g (.) u), u = A dropout(x). Keeps g (.) u in xa. */
static void bank_forward(const tm_linear_context *c, const tm_lora *lora, const tm_rows *rows, tm_tensor x, tm_tensor xa, tm_tensor y)
{
    tm_device *d = c->device;
    tm_lowrank a = bank_a(c, lora), b = bank_b(c, lora);
    tm_tensor u = tm_tensor_cols(c->gated, 0, lora->r);
    TM_RUN(d, fill, tm_tensor_rows(u, 0, rows->n), 0);
    TM_RUN(d, lowrank_forward, rows, &a, x, c->gated_xa, u);
    TM_RUN(d, glu_forward, rows, TM_ACT_NONE, c->gated, xa);
    TM_RUN(d, lowrank_forward, rows, &b, xa, c->gated_xa, y);
}

static void bank_backward(const tm_linear_context *c, const tm_lora *lora, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_tensor xa, tm_tensor dx)
{
    tm_device *d = c->device;
    tm_lowrank a = bank_a(c, lora), b = bank_b(c, lora);
    tm_tensor du = tm_tensor_cols(c->dgated, 0, lora->r), none = tm_tensor_none();
    TM_RUN(d, lowrank_backward, rows, &b, dy, xa, xa, c->gated_xa, none, lora->b->grad, none);
    TM_RUN(d, glu_backward, rows, TM_ACT_NONE, c->gated, c->gated_xa, c->dgated, tm_tensor_none()); /* the left half is du; the right is nobody's: gates are given */
    TM_RUN(d, lowrank_backward, rows, &a, du, x, xa, c->gated_xa, lora->a->grad, none, dx);
}

/* y holds W x (no bias) on entry. */
static void dora_forward(const tm_linear_context *c, const tm_linear *module, const tm_rows *rows, tm_tensor x, tm_tensor xa, tm_tensor u, tm_tensor y)
{
    tm_device *d = c->device;
    tm_lora *lora = module->lora;
    tm_tensor bias = module->bias ? module->bias->value : tm_tensor_none();
    tm_lowrank lr = lowrank_of(c, lora);
    tm_tensor uu = tm_tensor_rows(u, 0, rows->n), yy = tm_tensor_rows(y, 0, rows->n), xx = tm_tensor_rows(x, 0, rows->n);
    if (lr.dropout == 0) {
        TM_RUN(d, lowrank_forward, rows, &lr, x, xa, y);
        TM_RUN(d, cast, yy, uu);
        TM_RUN(d, dora_forward, rows, u, flat(lora->magnitude->value), lora->norm, bias, y);
        return;
    }
    tm_tensor dropped = tm_tensor_make(c->dropped.data, c->dropped.dtype, rows->n, module->in);
    tm_tensor wide = tm_tensor_make(c->wide.data, c->wide.dtype, rows->n, module->out);
    TM_RUN(d, dropout, rows, c->step, lora->module, lr.dropout, false, x, dropped);
    lr.dropout = 0;
    TM_RUN(d, linear_forward, rows, dropped, module->weight->value, tm_tensor_none(), u);
    TM_RUN(d, lowrank_forward, rows, &lr, dropped, xa, u);
    TM_RUN(d, dora_forward, rows, u, flat(lora->magnitude->value), lora->norm, bias, y);
    TM_RUN(d, axpy, -1, xx, dropped); /* x' - x */
    TM_RUN(d, linear_forward, rows, dropped, module->weight->value, tm_tensor_none(), wide);
    TM_RUN(d, axpy, -1, wide, yy);
}

bool tm_linear_overwrites(const tm_linear_group *group)
{
    bool dora = false;
    for (int32_t i = 0; i < group->count; i++)
        dora |= is_dora(group->module[i]);
    return dora;
}

void tm_linear_glu_forward(const tm_linear_context *c, const tm_linear_group *group, const tm_rows *rows, tm_tensor x, tm_linear_saved *saved, tm_tensor y, tm_activation act, tm_tensor h)
{
    tm_device *d = c->device;
    if (!c->base_only && plain_lora(group)) {
        tm_lora_part part[TM_GROUP_MAX];
        TM_RUN(d, lora_forward, rows, x, group->weight, group->bias, lora_parts(c, group, rows, saved, true, part), part, y, act, h);
        return;
    }
    tm_linear_forward(c, group, rows, x, saved, y);
    TM_RUN(d, glu_forward, rows, act, y, h);
}

void tm_linear_forward(const tm_linear_context *c, const tm_linear_group *group, const tm_rows *rows, tm_tensor x, tm_linear_saved *saved, tm_tensor y)
{
    tm_device *d = c->device;
    tm_lora_part part[TM_GROUP_MAX];
    if (!c->base_only && plain_lora(group)) {
        TM_RUN(d, lora_forward, rows, x, group->weight, group->bias, lora_parts(c, group, rows, saved, true, part), part, y, TM_ACT_NONE, tm_tensor_none());
        return;
    }
    bool dora = false;
    for (int32_t i = 0; i < group->count && !c->base_only; i++)
        dora |= is_dora(group->module[i]);
    bool own = !(c->base_only && group->module[0]->bias && group->module[0]->bias->added);
    /* With DoRA in the group biases are added behind the scaling, module by module. */
    TM_RUN(d, linear_forward, rows, x, group->weight, dora || !own ? tm_tensor_none() : group->bias, y);
    if (c->base_only)
        return;
    int64_t at = 0;
    for (int32_t i = 0; i < group->count; at += group->module[i++]->out) {
        const tm_linear *module = group->module[i];
        tm_tensor columns = tm_tensor_cols(y, at, module->out);
        if (is_dora(module)) {
            dora_forward(c, module, rows, x, saved->xa[i], saved->u[i], columns);
            continue;
        }
        if (dora && module->bias)
            TM_RUN(d, linear_forward, rows, x, module->weight->value, module->bias->value, columns);
        if (module->lora && module->lora->gates)
            bank_forward(c, module->lora, rows, x, saved->xa[i], columns);
        else if (module->lora) {
            tm_lowrank lr = lowrank_of(c, module->lora);
            TM_RUN(d, lowrank_forward, rows, &lr, x, saved->xa[i], columns);
        }
    }
}

/* Gradients of a module's low-rank part; dy is that of u (DoRA) or y. dx += its share. */
static void lowrank_backward(const tm_linear_context *c, const tm_linear *module, const tm_rows *rows, const tm_lowrank *lr, tm_tensor dy, tm_tensor x, tm_tensor xa, tm_tensor dx)
{
    const tm_lora *lora = module->lora;
    tm_tensor dxa = dxa_of(c, 0, rows->n, lora->r);
    TM_RUN(c->device, lowrank_backward, rows, lr, dy, x, xa, dxa, lora->a->grad, lora->b->grad, dx);
}

/* DoRA with dropout: du goes through x', W (x - x') through the plain weight. dy is that of y and is
 * overwritten with du. dx +=. */
static void dora_dropout_backward(const tm_linear_context *c, const tm_linear *module, const tm_rows *rows, tm_lowrank lr, tm_tensor dy, tm_tensor x, tm_tensor xa, tm_tensor u, tm_tensor dx)
{
    tm_device *d = c->device;
    tm_lora *lora = module->lora;
    tm_tensor dropped = tm_tensor_make(c->dropped.data, c->dropped.dtype, rows->n, module->in);
    tm_tensor direct = tm_tensor_make(c->wide.data, c->wide.dtype, rows->n, module->in);
    float p = lr.dropout;
    lr.dropout = 0;
    TM_RUN(d, linear_backward_input, rows, dy, module->weight->value, false, direct); /* W^T dy */
    if (dx.data)
        TM_RUN(d, axpy, 1, direct, tm_tensor_rows(dx, 0, rows->n));
    TM_RUN(d, dora_backward, rows, dy, u, flat(lora->magnitude->value), lora->norm, dy, flat(lora->magnitude->grad));
    TM_RUN(d, dropout, rows, c->step, lora->module, p, false, x, dropped);
    lowrank_backward(c, module, rows, &lr, dy, dropped, xa, tm_tensor_none());
    if (!dx.data)
        return;
    /* d(loss)/dx' = W^T du + s A^T B^T du - W^T dy, then through the mask. */
    TM_RUN(d, linear_backward_input, rows, dy, module->weight->value, false, dropped);
    TM_RUN(d, axpy, -1, direct, dropped);
    tm_tensor dxa = dxa_of(c, 0, rows->n, lora->r);
    TM_RUN(d, lowrank_backward, rows, &lr, dy, x, xa, dxa, tm_tensor_none(), tm_tensor_none(), dropped);
    TM_RUN(d, dropout, rows, c->step, lora->module, p, true, dropped, dx);
}

/* Gradients of the group's weights and biases (not DoRA's). */
static void weight_gradients(const tm_linear_context *c, const tm_linear_group *group, const tm_rows *rows, tm_tensor dy, tm_tensor x)
{
    int64_t at = 0;
    for (int32_t i = 0; i < group->count; at += group->module[i++]->out) {
        const tm_linear *module = group->module[i];
        tm_tensor dw = module->weight->trained ? module->weight->grad : tm_tensor_none();
        tm_tensor db = module->bias && module->bias->trained ? module->bias->grad : tm_tensor_none();
        if (db.data || (dw.data && !is_dora(module)))
            TM_RUN(c->device, linear_backward_weight, rows, tm_tensor_cols(dy, at, module->out), x, dw, db);
    }
}

bool tm_linear_separable(const tm_linear_context *c, const tm_linear_group *group)
{
    for (int32_t i = 0; i < group->count; i++)
        if (group->module[i]->lora && c->step && group->module[i]->lora->dropout > 0)
            return false;
    return plain_lora(group);
}

void tm_linear_backward_input(const tm_linear_context *c, const tm_linear_group *group, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_linear_saved *saved, bool accumulate, tm_tensor dx)
{
    tm_lora_part part[TM_GROUP_MAX];
    TM_RUN(c->device, lora_backward, rows, dy, x, group->weight, accumulate, lora_parts(c, group, rows, saved, false, part), part, dx);
}

void tm_linear_backward_weights(const tm_linear_context *c, const tm_linear_group *group, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_linear_saved *saved)
{
    tm_lora_part part[TM_GROUP_MAX];
    int32_t parts = lora_parts(c, group, rows, saved, true, part);
    weight_gradients(c, group, rows, dy, x);
    if (parts)
        TM_RUN(c->device, lora_backward, rows, dy, x, group->weight, false, parts, part, tm_tensor_none());
}

void tm_linear_backward(const tm_linear_context *c, const tm_linear_group *group, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_linear_saved *saved, bool accumulate, tm_tensor dx)
{
    tm_device *d = c->device;
    weight_gradients(c, group, rows, dy, x);
    if (plain_lora(group)) {
        tm_lora_part part[TM_GROUP_MAX];
        TM_RUN(d, lora_backward, rows, dy, x, group->weight, accumulate, lora_parts(c, group, rows, saved, true, part), part, dx);
        return;
    }
    bool split = false; /* DoRA with dropout: the module's own W^T dy is done below */
    int64_t at = 0;
    for (int32_t i = 0; i < group->count; at += group->module[i++]->out) {
        const tm_linear *module = group->module[i];
        tm_tensor part = tm_tensor_cols(dy, at, module->out);
        if (is_dora(module) && c->step && module->lora->dropout > 0)
            split = true;
        else if (is_dora(module))
            TM_RUN(d, dora_backward, rows, part, saved->u[i], flat(module->lora->magnitude->value), module->lora->norm, part, flat(module->lora->magnitude->grad));
    }
    if (dx.data && !split)
        TM_RUN(d, linear_backward_input, rows, dy, group->weight, accumulate, dx);
    else if (dx.data && !accumulate)
        TM_RUN(d, fill, tm_tensor_rows(dx, 0, rows->n), 0);
    at = 0;
    for (int32_t i = 0; i < group->count; at += group->module[i++]->out) {
        const tm_linear *module = group->module[i];
        tm_tensor part = tm_tensor_cols(dy, at, module->out);
        if (!module->lora) {
            if (split && dx.data)
                TM_RUN(d, linear_backward_input, rows, part, module->weight->value, true, dx);
            continue;
        }
        tm_lowrank lr = lowrank_of(c, module->lora);
        if (module->lora->magnitude && lr.dropout > 0) {
            dora_dropout_backward(c, module, rows, lr, part, x, saved->xa[i], saved->u[i], dx);
            continue;
        }
        if (split && dx.data)
            TM_RUN(d, linear_backward_input, rows, part, module->weight->value, true, dx);
        if (module->lora->gates)
            bank_backward(c, module->lora, rows, part, x, saved->xa[i], dx);
        else
            lowrank_backward(c, module, rows, &lr, part, x, saved->xa[i], dx);
    }
}

/* --- dW = s B A --- */

void tm_linear_delta_add_row(const tm_linear_delta *d, int64_t row, double factor, double *sum)
{
    for (int64_t k = 0; k < d->r; k++) {
        double b = factor * d->scale * d->b[row * d->r + k];
        const float *a = d->a + k * d->in;
        for (int64_t i = 0; i < d->in; i++)
            sum[i] += b * a[i];
    }
}

/* <Bx Ax, By Ay> = sum over ranks i, j of (Bx^T By)[i, j] (Ax Ay^T)[i, j]. */
double tm_linear_delta_dot(const tm_linear_delta *x, const tm_linear_delta *y)
{
    double sum = 0;
    for (int64_t i = 0; i < x->r; i++)
        for (int64_t j = 0; j < y->r; j++) {
            double a = 0, b = 0;
            for (int64_t k = 0; k < x->in; k++)
                a += (double)x->a[i * x->in + k] * y->a[j * y->in + k];
            for (int64_t k = 0; k < x->out; k++)
                b += (double)x->b[k * x->r + i] * y->b[k * y->r + j];
            sum += a * b;
        }
    return x->scale * y->scale * sum;
}
