/* A group's product with the low-rank deltas of its modules (lora), and the delta alone (lowrank), for activations of
 * 16 bits. docs/math/lowrank.md; the factors are rounded to the activations' type, sums are in f32.
 *
 * lora keeps an output in one sum: y = x W^T + xa (scale B)^T, dx = dy W + dxa A. Where dropout is on, dx is rounded
 * once before the masked deltas are added. */
#include "device/cuda/half/skinny.cuh"

static bool usable(tm_tensor t) { return !t.data || ((uintptr_t)t.data % 16 == 0 && t.ld % 8 == 0 && t.cols % 8 == 0); }

/* What the kernels write to or read beside x, in scratch. */
struct low_scratch {
    void *side, *side_xa, *a, *b, *weight;
};

static bool take(tm_device *d, const low_group &g, tm_dtype type, bool backward, tm_tensor w, low_scratch *s)
{
    tm_cuda *c = tm_cuda_of(d);
    int64_t used = 0, rows = g.rows.n, replicas = g.rows.replicas;
    s->side = tm_half_scratch(c, &used, 2 * rows * g.low);
    s->a = tm_half_scratch(c, &used, 2 * replicas * g.low * g.in);
    s->b = tm_half_scratch(c, &used, 2 * replicas * g.low * g.out);
    s->side_xa = backward ? tm_half_scratch(c, &used, 2 * rows * g.low) : s->side;
    s->weight = w.data && w.dtype != type ? tm_half_scratch(c, &used, 2 * g.in * g.out) : w.data;
    return s->side && s->a && s->b && s->side_xa && (s->weight || !w.data);
}

static bool described(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor y, int32_t parts, const tm_lora_part *part, low_group *g)
{
    if (tm_cuda_of(d)->architecture < 80 || !tm_is_half(x.dtype) || y.dtype != x.dtype || parts > LOW_PARTS || !usable(x) || !usable(y))
        return false;
    *g = {};
    g->rows = *rows;
    g->in = x.cols;
    g->out = y.cols;
    g->parts = parts;
    for (int p = 0; p < parts; p++) {
        const tm_lowrank &lr = part[p].lr;
        int64_t r = lr.a.rows / rows->replicas, out = lr.b.rows / rows->replicas;
        if (lr.a.dtype != TM_F32 || lr.b.dtype != TM_F32 || part[p].first % 8 || out % 8 || r > LOW_RANKS)
            return false;
        g->part[p] = {lr.a, lr.b, part[p].xa, part[p].dxa, part[p].da, part[p].db, part[p].first, out, (int32_t)r, g->rank, lr.scale, tm_cuda_drop_of(lr.module, lr.dropout)};
        g->rank += (int32_t)r;
        g->drops |= lr.dropout > 0;
        g->step = lr.step;
    }
    g->low = (g->rank + 15) / 16 * 16;
    return g->rank <= LOW_RANKS;
}

static tm_tensor in_type(tm_device *d, const char *op, tm_tensor w, tm_dtype type, void *address)
{
    if (w.dtype == type)
        return w;
    low_narrow(d, op, w, type, address);
    return tm_tensor_make(address, type, w.rows, w.cols);
}

bool tm_half_lora_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, int32_t parts, const tm_lora_part *part, tm_tensor y)
{
    const char *op = "lora_forward";
    low_group g;
    low_scratch s;
    if (!parts) {
        TM_RUN(d, linear_forward, rows, x, w, bias, y);
        return true;
    }
    if (!described(d, rows, x, y, parts, part, &g))
        return false;
    if (!rows->n)
        return true;
    if (!take(d, g, x.dtype, false, w, &s))
        return false;
    low_pack(d, op, g, x.dtype, s.a, s.b);
    low_forward(d, op, g, x, s.a, s.side);
    tm_half_product p = {};
    p.m = rows->n, p.n = g.out, p.k = g.in;
    p.a = x, p.b = in_type(d, op, w, x.dtype, s.weight), p.out = y, p.bias = bias;
    p.low_a = tm_tensor_make(s.side, x.dtype, rows->n, g.low);
    p.low_b = tm_tensor_make(s.b, x.dtype, rows->replicas * g.out, g.low);
    p.replicas = rows->replicas;
    p.group = rows->group;
    return tm_half_multiply(d, op, &p);
}

bool tm_half_lora_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_tensor w, bool accumulate, int32_t parts, const tm_lora_part *part, tm_tensor dx)
{
    const char *op = "lora_backward";
    low_group g;
    low_scratch s;
    if (!parts) {
        if (dx.data)
            TM_RUN(d, linear_backward_input, rows, dy, w, accumulate, dx);
        return true;
    }
    if (!described(d, rows, x, dy, parts, part, &g) || !usable(dx) || (dx.data && dx.dtype != x.dtype))
        return false;
    if (!rows->n)
        return true;
    if (!take(d, g, x.dtype, true, dx.data ? w : tm_tensor_none(), &s))
        return false;
    low_pack(d, op, g, x.dtype, dx.data ? s.a : nullptr, s.b);
    low_backward(d, op, g, dy, s.b, s.side, s.side_xa);
    if (dx.data) {
        tm_half_product p = {};
        p.m = rows->n, p.n = g.in, p.k = g.out;
        p.a = dy, p.b = in_type(d, op, w, x.dtype, s.weight), p.out = dx;
        p.b_turned = true;
        p.add = accumulate;
        p.replicas = rows->replicas;
        p.group = rows->group;
        if (!g.drops) {
            p.low_a = tm_tensor_make(s.side, x.dtype, rows->n, g.low);
            p.low_b = tm_tensor_make(s.a, x.dtype, rows->replicas * g.low, g.in);
        }
        if (!tm_half_multiply(d, op, &p))
            return false;
        if (g.drops)
            low_add_backward(d, op, g, s.side, s.a, dx);
    }
    low_gradients(d, op, g, x, dy, s.side, s.side_xa);
    return true;
}

/* --- The delta alone --- */

bool tm_half_lowrank_forward(tm_device *d, const tm_rows *rows, const tm_lowrank *lr, tm_tensor x, tm_tensor xa, tm_tensor y)
{
    const char *op = "lowrank_forward";
    tm_lora_part part = {*lr, 0, xa};
    low_group g;
    low_scratch s;
    if (!described(d, rows, x, y, 1, &part, &g))
        return false;
    if (!rows->n)
        return true;
    if (!take(d, g, x.dtype, false, tm_tensor_none(), &s))
        return false;
    low_pack(d, op, g, x.dtype, s.a, s.b);
    low_forward(d, op, g, x, s.a, s.side);
    low_add_forward(d, op, g, s.side, s.b, y);
    return true;
}

bool tm_half_lowrank_backward(tm_device *d, const tm_rows *rows, const tm_lowrank *lr, tm_tensor dy, tm_tensor x, tm_tensor xa, tm_tensor dxa, tm_tensor da, tm_tensor db, tm_tensor dx)
{
    const char *op = "lowrank_backward";
    tm_lora_part part = {*lr, 0, xa, dxa, da, db};
    low_group g;
    low_scratch s;
    if (!da.data) /* then x is not looked at */
        x = tm_tensor_make(nullptr, dy.dtype, rows->n, lr->a.cols);
    if (!described(d, rows, x, dy, 1, &part, &g) || !usable(dx) || (dx.data && (dx.dtype != dy.dtype || g.in % 8)))
        return false;
    if (!rows->n)
        return true;
    if (!take(d, g, dy.dtype, true, tm_tensor_none(), &s))
        return false;
    low_pack(d, op, g, dy.dtype, dx.data ? s.a : nullptr, s.b);
    low_backward(d, op, g, dy, s.b, s.side, s.side_xa);
    if (dx.data)
        low_add_backward(d, op, g, s.side, s.a, dx);
    low_gradients(d, op, g, x, dy, s.side, s.side_xa);
    return true;
}

/* Until there is a product for 16 bits: nothing is served. */
__attribute__((weak)) bool tm_half_multiply(tm_device *, const char *, const tm_half_product *) { return false; }
