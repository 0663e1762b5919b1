/* A group's product with the low-rank deltas of its modules (lora), and the delta alone (lowrank), for activations of
 * 16 bits. docs/math/lowrank.md; the factors are rounded to the activations' type, sums are in f32.
 *
 * lora keeps an output in one sum: y = x W^T + xa (scale B)^T, dx = dy W + dxa A. Where dropout is on, dx is rounded
 * once before the masked deltas are added. */
#include "device/cuda/half/skinny.cuh"

/* What the kernels write to or read beside x, in scratch. */
struct low_scratch {
    void *side, *side_xa, *a, *b, *weight;
    void *bits; /* NULL: nothing is dropped */
    void *room; /* what is left */
    int64_t room_bytes;
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
    bool masks = backward && g.drops;
    s->bits = masks ? tm_half_scratch(c, &used, g.parts * rows * low_mask_pitch(g.in)) : nullptr;
    s->room = (char *)c->workspace + used;
    s->room_bytes = c->workspace_bytes - used;
    return s->side && s->a && s->b && s->side_xa && (s->weight || !w.data) && (s->bits || !masks);
}

/* Absent, or of the activations' type and laid out for sixteen bytes at a time. */
static bool usable(tm_tensor t, tm_dtype type) { return !t.data || (t.dtype == type && (uintptr_t)t.data % 16 == 0 && t.ld % 8 == 0 && t.cols % 8 == 0); }

/* What tm_half_round reads. */
static bool is_weight(tm_tensor t) { return t.dtype == TM_F32 || tm_is_half(t.dtype); }

/* What the parts are; out: columns of y, of activations of `type`. false: not served. */
static bool described(tm_device *d, const tm_rows *rows, tm_dtype type, int64_t out, int32_t parts, const tm_lora_part *part, low_group *g)
{
    if (tm_cuda_of(d)->architecture < 80 || !tm_is_half(type) || parts > LOW_PARTS)
        return false;
    *g = {};
    g->rows = *rows;
    g->in = part[0].lr.a.cols;
    g->out = out;
    g->parts = parts;
    for (int p = 0; p < parts; p++) {
        const tm_lowrank &lr = part[p].lr;
        int64_t r = lr.a.rows / rows->replicas, of_part = lr.b.rows / rows->replicas;
        if (lr.a.dtype != TM_F32 || lr.b.dtype != TM_F32 || part[p].first % 8 || (parts > 1 && of_part % 8) || r > LOW_RANKS)
            return false;
        g->part[p] = {lr.a, lr.b, part[p].xa, part[p].dxa, part[p].da, part[p].db, part[p].first, of_part, (int32_t)r, g->rank, lr.scale, tm_cuda_drop_of(lr.module, lr.dropout)};
        g->rank += (int32_t)r;
        g->drops |= lr.dropout > 0;
        g->step = lr.step;
    }
    g->low = (g->rank + 15) / 16 * 16;
    return g->rank <= LOW_RANKS && rows->replicas * (g->in + g->out) * g->low < INT32_MAX;
}

static tm_tensor in_type(tm_device *d, const char *op, tm_tensor w, tm_dtype type, void *address)
{
    if (w.dtype == type)
        return w;
    tm_tensor y = tm_tensor_make(address, type, w.rows, w.cols);
    tm_half_round(d, op, w, y);
    return y;
}

bool tm_half_lora_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, int32_t parts, const tm_lora_part *part, tm_tensor y, tm_activation act, tm_tensor h)
{
    const char *op = "lora_forward";
    low_group g;
    low_scratch s;
    if (!parts)
        return tm_half_linear(d, op, rows, x, w, bias, y, act, h);
    if (!described(d, rows, x.dtype, y.cols, parts, part, &g) || !usable(x, x.dtype) || !usable(y, x.dtype) || !is_weight(w))
        return false;
    if (!rows->n)
        return true;
    if (!take(d, g, x.dtype, false, w, &s))
        return false;
    low_pack(d, op, g, x.dtype, s.a, s.b, nullptr);
    low_forward(d, op, g, x, s.a, s.side);
    tm_half_product p = {};
    p.m = rows->n, p.n = g.out, p.k = g.in;
    p.a = x, p.b = in_type(d, op, w, x.dtype, s.weight), p.out = y, p.bias = bias;
    p.low_a = tm_tensor_make(s.side, x.dtype, rows->n, g.low);
    p.low_b = tm_tensor_make(s.b, x.dtype, rows->replicas * g.out, g.low);
    p.replicas = rows->replicas;
    p.group = rows->group;
    p.h = h;
    p.activation = act;
    return tm_half_multiply(d, op, &p);
}

/* dxa, and db where dy need not be read again for it: it is absent in g then. */
static void backward(tm_device *d, const char *op, low_group *g, tm_tensor dy, const low_scratch &s)
{
    if (!low_backward_once(d, op, *g, dy, s.b, s.side, s.side_xa, s.room, s.room_bytes)) {
        low_backward(d, op, *g, dy, s.b, s.side);
        return;
    }
    for (int p = 0; p < g->parts; p++)
        g->part[p].db = tm_tensor_none();
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
    if (!described(d, rows, x.dtype, dy.cols, parts, part, &g) || !usable(x, x.dtype) || !usable(dy, x.dtype) || !usable(dx, x.dtype) || !is_weight(w))
        return false;
    if (!rows->n)
        return true;
    if (!take(d, g, x.dtype, true, dx.data ? w : tm_tensor_none(), &s))
        return false;
    low_pack(d, op, g, x.dtype, dx.data ? s.a : nullptr, s.b, s.side_xa);
    backward(d, op, &g, dy, s);
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
        if (!tm_half_multiply(d, op, &p)) {
            tm_cuda_note(tm_cuda_of(d), TM_FAILED, op, "no product for what low-rank deltas are served for");
            return true;
        }
        if (g.drops)
            low_add_backward(d, op, g, s.side, s.a, dx, s.bits);
    }
    low_gradients(d, op, g, x, dy, s.side, s.side_xa, dx.data ? s.bits : nullptr, s.room, s.room_bytes);
    return true;
}

/* --- The delta alone ---
 *
 * One side may be f32, as wide as the rank at most times a few (adapters keep what is inside of them so): its product with
 * the small factor is the plain kernels'. */

/* xa (or dxa) = x a^T with f32 on both sides, kept in f32 and in `type` at `side`; a(replica, j, k). */
template <class A> static void real_rows(tm_device *d, const char *op, const low_group &g, tm_tensor x, tm_tensor xa, tm_dtype type, void *side, A a)
{
    tm_cuda_each(d, op, g.rows.n * g.low, [=] __device__(int64_t i) {
        int64_t t = i / g.low, j = i % g.low;
        int32_t replica = replica_of(g.rows, t);
        float v = j < g.rank ? product_sum(x.cols, nullptr, [&](int64_t k) { return at(x, t, k); }, [&](int64_t k) { return a(replica, j, k); }) : 0;
        if (j < g.rank)
            put(xa, t, j, v);
        if (type == TM_BF16)
            ((bf16 *)side)[i] = narrow<bf16>(v);
        else
            ((f16 *)side)[i] = narrow<f16>(v);
    });
}

bool tm_half_lowrank_forward(tm_device *d, const tm_rows *rows, const tm_lowrank *lr, tm_tensor x, tm_tensor xa, tm_tensor y)
{
    const char *op = "lowrank_forward";
    tm_lora_part part = {*lr, 0, xa};
    tm_dtype type = tm_is_half(x.dtype) ? x.dtype : y.dtype;
    bool from_real = x.dtype == TM_F32, to_real = y.dtype == TM_F32;
    low_group g;
    low_scratch s;
    if (!described(d, rows, type, lr->b.rows / rows->replicas, 1, &part, &g) || !(from_real ? !g.drops : usable(x, type)) || !(to_real || usable(y, type)))
        return false;
    if (!rows->n)
        return true;
    if (!take(d, g, type, false, tm_tensor_none(), &s))
        return false;
    low_pack(d, op, g, type, from_real ? nullptr : s.a, to_real ? nullptr : s.b, nullptr);
    if (from_real)
        real_rows(d, op, g, x, xa, type, s.side, [=] __device__(int32_t replica, int64_t j, int64_t k) { return at(g.part[0].a, replica * g.rank + j, k); });
    else
        low_forward(d, op, g, x, s.a, s.side);
    if (!to_real)
        low_add_forward(d, op, g, s.side, s.b, y);
    else
        tm_cuda_each(d, op, rows->n * g.out, [=] __device__(int64_t i) {
            int64_t t = i / g.out, n = i % g.out, row = replica_of(g.rows, t) * g.out + n;
            float *out = &real_at(y, t, n);
            *out = product_sum(g.rank, out, [&](int64_t j) { return at(xa, t, j) * g.part[0].scale; }, [&](int64_t j) { return at(g.part[0].b, row, j); });
        });
    return true;
}

bool tm_half_lowrank_backward(tm_device *d, const tm_rows *rows, const tm_lowrank *lr, tm_tensor dy, tm_tensor x, tm_tensor xa, tm_tensor dxa, tm_tensor da, tm_tensor db, tm_tensor dx)
{
    const char *op = "lowrank_backward";
    tm_lora_part part = {*lr, 0, xa, dxa, da, db};
    tm_dtype type = tm_is_half(dy.dtype) ? dy.dtype : dx.data ? dx.dtype : x.dtype;
    bool from_real = dy.dtype == TM_F32;
    low_group g;
    low_scratch s;
    if (!da.data) /* then x is not looked at */
        x = tm_tensor_none();
    if (!described(d, rows, type, lr->b.rows / rows->replicas, 1, &part, &g) || !(from_real ? !db.data : usable(dy, type)) || !usable(x, type) || !usable(dx, type))
        return false;
    if (!rows->n)
        return true;
    if (!take(d, g, type, true, tm_tensor_none(), &s))
        return false;
    low_pack(d, op, g, type, dx.data ? s.a : nullptr, from_real ? nullptr : s.b, db.data ? s.side_xa : nullptr);
    if (from_real)
        real_rows(d, op, g, dy, dxa, type, s.side, [=] __device__(int32_t replica, int64_t j, int64_t n) { return at(g.part[0].b, replica * g.out + n, j) * g.part[0].scale; });
    else
        backward(d, op, &g, dy, s);
    if (dx.data)
        low_add_backward(d, op, g, s.side, s.a, dx, s.bits);
    low_gradients(d, op, g, x, dy, s.side, s.side_xa, dx.data ? s.bits : nullptr, s.room, s.room_bytes);
    return true;
}
