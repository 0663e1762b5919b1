/* Work of ops: see cost.h. Operations are those of the mathematics (2 a multiply-add); bytes are those of the tensors, once a pass
 * over them. A product's rate has the op's turn on the device in it; of others that is a call. */
#include "plan/cost.h"

#include <stdlib.h>

#pragma GCC diagnostic ignored "-Wunused-parameter"

typedef struct costing {
    tm_device base; /* first: a counting device's calls see it as theirs */
    tm_work *work;
    const int64_t *length;
    int64_t count;
} costing;

static costing *of(tm_device *d) { return (costing *)d; }

/* --- What is added --- */

static void add_bytes(tm_device *d, double bytes)
{
    of(d)->work->bytes += bytes;
    of(d)->work->calls++;
}

/* n rows of t, so many times; an absent tensor has none. */
static double rows_of(tm_tensor t, int64_t n, double times) { return t.data ? times * (double)tm_dtype_bytes(t.dtype, n * t.cols) : 0; }

/* w: the weight, or its gradient; act: the type of what it meets. */
static void add_product(tm_device *d, tm_product kind, int64_t rows, tm_tensor w, tm_dtype act)
{
    tm_work *work = of(d)->work;
    if (kind == TM_PRODUCT_FORWARD)
        tm_work_add_product(work, kind, rows, w.rows, w.cols);
    else if (kind == TM_PRODUCT_INPUT)
        tm_work_add_product(work, kind, rows, w.cols, w.rows);
    else
        tm_work_add_product(work, kind, w.rows, w.cols, rows);
    /* A trained weight is kept in f32; a device that borrows scratch makes a 16-bit copy of it there. */
    if (d->traits.borrows && w.dtype != act && kind != TM_PRODUCT_WEIGHT)
        work->bytes += (double)tm_dtype_bytes(w.dtype, w.rows * w.cols) + (double)tm_dtype_bytes(act, w.rows * w.cols);
}

/* so many products of `in` columns with the factors, and of `out` columns. */
static void add_lowrank(tm_device *d, bool drops, bool backward, int64_t rows, int64_t r, int64_t in, int in_products, int64_t out, int out_products)
{
    of(d)->work->lowrank[drops][backward][tm_rank_class(r)] += 2.0 * (double)rows * (double)r * ((double)in * in_products + (double)out * out_products);
}

static void add_attention(tm_device *d, bool backward, const tm_attention *a)
{
    costing *c = of(d);
    double pairs = 0;
    for (int64_t i = 0; i < c->count; i++) {
        double n = (double)c->length[i], w = a->window && a->window < n ? a->window : n;
        pairs += w * (w + 1) / 2 + (n - w) * w;
    }
    c->work->attention[backward][tm_head_class(a->head_size)] += (backward ? 10 : 4) * pairs * a->heads * a->head_size;
    c->work->calls += backward ? 2 : 1;
}

/* --- Ops, in the order of ops.def --- */

static void cost_embed_forward(tm_device *d, const tm_rows *rows, const int32_t *ids, tm_tensor table, float scale, tm_tensor y)
{
    add_bytes(d, rows_of(table, rows->n, 1) + rows_of(y, rows->n, 1));
}
static void cost_embed_backward(tm_device *d, const tm_rows *rows, const int32_t *ids, tm_tensor dy, float scale, tm_tensor table_grad)
{
    add_bytes(d, rows_of(dy, rows->n, 1) + rows_of(table_grad, rows->n, 2));
}

static void cost_rmsnorm_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor delta, tm_tensor weight, float offset, float eps, tm_tensor sum, tm_tensor rstd, tm_tensor y)
{
    bool written = delta.data || sum.data != x.data;
    add_bytes(d, rows_of(x, rows->n, 1) + rows_of(delta, rows->n, 1) + rows_of(sum, rows->n, written) + rows_of(y, rows->n, 1));
}
static void cost_rmsnorm_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor sum, tm_tensor weight, float offset, tm_tensor rstd, tm_tensor dx, tm_tensor dweight)
{
    add_bytes(d, rows_of(dy, rows->n, 1 + (dweight.data != NULL)) + rows_of(sum, rows->n, 1 + (dweight.data != NULL)) + rows_of(dx, rows->n, 2));
}
static void cost_layernorm_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor delta, tm_tensor weight, tm_tensor bias, float eps, tm_tensor sum, tm_tensor mean, tm_tensor rstd, tm_tensor y)
{
    cost_rmsnorm_forward(d, rows, x, delta, weight, 0, eps, sum, rstd, y);
}
static void cost_layernorm_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor sum, tm_tensor weight, tm_tensor mean, tm_tensor rstd, tm_tensor dx, tm_tensor dweight, tm_tensor dbias)
{
    cost_rmsnorm_backward(d, rows, dy, sum, weight, 0, rstd, dx, dweight.data ? dweight : dbias);
}

static void cost_linear_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, tm_tensor y)
{
    add_product(d, TM_PRODUCT_FORWARD, rows->n, w, x.dtype);
}
static void cost_linear_backward_input(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor w, bool accumulate, tm_tensor dx)
{
    add_product(d, TM_PRODUCT_INPUT, rows->n, w, dy.dtype);
}
static void cost_linear_backward_weight(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_tensor dw, tm_tensor dbias)
{
    if (dw.data)
        add_product(d, TM_PRODUCT_WEIGHT, rows->n, dw, x.dtype);
    if (dbias.data)
        add_bytes(d, rows_of(dy, rows->n, 1));
}

static int64_t rank_of(const tm_rows *rows, const tm_lowrank *lr) { return lr->a.rows / rows->replicas; }

static void add_forward(tm_device *d, const tm_rows *rows, const tm_lowrank *lr)
{
    add_lowrank(d, lr->dropout > 0, false, rows->n, rank_of(rows, lr), lr->a.cols, 1, lr->b.rows / rows->replicas, 1);
}
/* dxa = dy B whatever is wanted of it; then what is there of db, da and dx. */
static void add_backward(tm_device *d, const tm_rows *rows, const tm_lowrank *lr, tm_tensor da, tm_tensor db, tm_tensor dx)
{
    add_lowrank(d, lr->dropout > 0, true, rows->n, rank_of(rows, lr), lr->a.cols, (da.data != NULL) + (dx.data != NULL), lr->b.rows / rows->replicas, 1 + (db.data != NULL));
}
static void cost_lowrank_forward(tm_device *d, const tm_rows *rows, const tm_lowrank *lr, tm_tensor x, tm_tensor xa, tm_tensor y)
{
    of(d)->work->lowrank_ops[0]++;
    add_forward(d, rows, lr);
}
static void cost_lowrank_backward(tm_device *d, const tm_rows *rows, const tm_lowrank *lr, tm_tensor dy, tm_tensor x, tm_tensor xa, tm_tensor dxa, tm_tensor da, tm_tensor db, tm_tensor dx)
{
    of(d)->work->lowrank_ops[1]++;
    add_backward(d, rows, lr, da, db, dx);
}

static void cost_dora_norm(tm_device *d, int32_t replicas, const tm_lowrank *lr, tm_tensor w, tm_tensor norm)
{
    add_lowrank(d, false, false, w.rows, lr->a.rows, w.cols, replicas, 0, 0);
    add_bytes(d, rows_of(w, w.rows, replicas));
}
static void cost_dora_forward(tm_device *d, const tm_rows *rows, tm_tensor u, tm_tensor magnitude, tm_tensor norm, tm_tensor bias, tm_tensor y)
{
    add_bytes(d, rows_of(u, rows->n, 1) + rows_of(y, rows->n, 1));
}
static void cost_dora_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor u, tm_tensor magnitude, tm_tensor norm, tm_tensor du, tm_tensor dmagnitude)
{
    add_bytes(d, rows_of(dy, rows->n, 1) + rows_of(u, rows->n, 1) + rows_of(du, rows->n, 1));
}

static void cost_rope_forward(tm_device *d, const tm_rows *rows, tm_tensor x, int64_t heads, tm_tensor cos, tm_tensor sin, tm_tensor norm_weight, float offset, float eps, tm_tensor rstd, tm_tensor y)
{
    add_bytes(d, rows_of(x, rows->n, 1) + rows_of(y, rows->n, 1));
}
static void cost_rope_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, int64_t heads, tm_tensor cos, tm_tensor sin, tm_tensor norm_weight, float offset, tm_tensor rstd, tm_tensor x, tm_tensor dx, tm_tensor dnorm_weight)
{
    add_bytes(d, rows_of(dy, rows->n, 1) + rows_of(dx, rows->n, 1) + (norm_weight.data ? rows_of(x, rows->n, 1) : 0));
}

static void cost_attention_forward(tm_device *d, const tm_spans *spans, const tm_attention *a, tm_tensor q, tm_tensor k, tm_tensor v, tm_tensor out, tm_tensor lse)
{
    add_attention(d, false, a);
}
static void cost_attention_backward(tm_device *d, const tm_spans *spans, const tm_attention *a, tm_tensor dout, tm_tensor q, tm_tensor k, tm_tensor v, tm_tensor out, tm_tensor lse, tm_tensor delta, tm_tensor dq, tm_tensor dk, tm_tensor dv)
{
    add_attention(d, true, a);
}

static void cost_glu_forward(tm_device *d, const tm_rows *rows, tm_activation act, tm_tensor gate_up, tm_tensor h)
{
    add_bytes(d, rows_of(gate_up, rows->n, 1) + rows_of(h, rows->n, 1));
}
static void cost_lora_forward(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, int32_t parts, const tm_lora_part *part, tm_tensor y, tm_activation act, tm_tensor h)
{
    cost_linear_forward(d, rows, x, w, bias, y);
    of(d)->work->lowrank_ops[0] += parts > 0;
    for (int32_t i = 0; i < parts; i++)
        add_forward(d, rows, &part[i].lr);
    if (h.data && d->traits.borrows) /* in the product's own pass */
        add_bytes(d, rows_of(h, rows->n, 1));
    else if (h.data)
        cost_glu_forward(d, rows, act, y, h);
}
static void cost_lora_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, tm_tensor x, tm_tensor w, bool accumulate, int32_t parts, const tm_lora_part *part, tm_tensor dx)
{
    if (dx.data)
        cost_linear_backward_input(d, rows, dy, w, accumulate, dx);
    of(d)->work->lowrank_ops[1] += parts > 0;
    for (int32_t i = 0; i < parts; i++)
        add_backward(d, rows, &part[i].lr, part[i].da, part[i].db, dx);
}
static void cost_glu_backward(tm_device *d, const tm_rows *rows, tm_activation act, tm_tensor gate_up, tm_tensor dh, tm_tensor dgate_up, tm_tensor h)
{
    add_bytes(d, rows_of(gate_up, rows->n, 1) + rows_of(dh, rows->n, 1) + rows_of(dgate_up, rows->n, 1) + rows_of(h, rows->n, 1));
}

/* The logits are read for the largest, for the sum and for the gradient, and written. */
static void cost_xent(tm_device *d, int64_t n, tm_tensor logits, float softcap, const int32_t *target, tm_tensor weight, tm_tensor teacher, tm_tensor teacher_weight, tm_tensor square_weight, bool grad, tm_tensor loss, tm_tensor kl, int32_t *hit)
{
    add_bytes(d, rows_of(logits, n, grad ? 3 : 1) + rows_of(teacher, n, 2));
}
static void cost_softcap(tm_device *d, int64_t n, float cap, tm_tensor x) { add_bytes(d, rows_of(x, n, 2)); }

static void cost_gather_rows(tm_device *d, int64_t n, const int32_t *index, tm_tensor x, tm_tensor y) { add_bytes(d, rows_of(x, n, 1) + rows_of(y, n, 1)); }
static void cost_scatter_rows(tm_device *d, int64_t n, const int32_t *index, tm_tensor x, int64_t rows_y, tm_tensor y)
{
    add_bytes(d, rows_of(x, n, 1) + rows_of(y, n, 1) + rows_of(y, rows_y, 1));
}
static void cost_cast(tm_device *d, tm_tensor x, tm_tensor y) { add_bytes(d, rows_of(x, x.rows, 1) + rows_of(y, x.rows, 1)); }
static void cost_axpy(tm_device *d, double a, tm_tensor x, tm_tensor y) { add_bytes(d, rows_of(x, x.rows, 1) + rows_of(y, x.rows, 2)); }
static void cost_fill(tm_device *d, tm_tensor y, double value) { add_bytes(d, rows_of(y, y.rows, 1)); }
static void cost_dropout(tm_device *d, const tm_rows *rows, const tm_step_params *step, uint32_t module, float p, bool accumulate, tm_tensor x, tm_tensor y)
{
    add_bytes(d, rows_of(x, rows->n, 1) + rows_of(y, rows->n, accumulate ? 2 : 1));
}

/* The list of trained tensors is on the device: tm_plan_memory adds what these move. */
static void cost_unscale(tm_device *d, int64_t n, const tm_trained *t, const tm_step_params *step) { add_bytes(d, 0); }
static void cost_grad_norm(tm_device *d, int64_t n, const tm_trained *t, int32_t replicas, double max_norm, tm_step_params *step) { add_bytes(d, 0); }
static void cost_adamw(tm_device *d, int64_t n, const tm_trained *t, double beta1, double beta2, double eps, const tm_step_params *step) { add_bytes(d, 0); }
static void cost_sgd(tm_device *d, int64_t n, const tm_trained *t, double momentum, bool first, const tm_step_params *step) { add_bytes(d, 0); }
static void cost_trail(tm_device *d, int64_t n, const tm_trained *t, uint64_t *out) { add_bytes(d, 0); }

static void cost_anchor(tm_device *d, tm_tensor value, tm_tensor anchor, tm_tensor importance, double strength, tm_tensor grad, double *penalty)
{
    if (strength != 0)
        add_bytes(d, rows_of(value, value.rows, 1) + rows_of(anchor, value.rows, 1) + rows_of(importance, value.rows, 1) + rows_of(grad, value.rows, 2));
}
/* Three products of [out, in] with the rank inside or out, a fourth for the start. */
static void cost_delta_anchor(tm_device *d, const tm_lowrank *lr, const tm_lowrank *start, tm_tensor importance, double strength, tm_tensor da, tm_tensor db, double *penalty)
{
    if (strength == 0)
        return;
    add_lowrank(d, false, true, lr->b.rows, lr->a.rows, lr->a.cols, 3, 0, 0);
    if (start)
        add_lowrank(d, false, true, lr->b.rows, start->a.rows, lr->a.cols, 1, 0, 0);
    add_bytes(d, rows_of(importance, lr->b.rows, 1) + rows_of(da, da.rows, 2) + rows_of(db, db.rows, 2));
}
static void cost_overlap(tm_device *d, tm_tensor old_a, tm_tensor a, double strength, tm_tensor da, double *penalty)
{
    if (strength == 0)
        return;
    add_lowrank(d, false, true, old_a.rows, a.rows, a.cols, 2, 0, 0);
    add_bytes(d, rows_of(old_a, old_a.rows, 2) + rows_of(a, a.rows, 1) + rows_of(da, da.rows, 2));
}
static void cost_square_add(tm_device *d, double scale, tm_tensor x, tm_tensor y) { add_bytes(d, rows_of(x, x.rows, 1) + rows_of(y, x.rows, 2)); }
static void cost_path_add(tm_device *d, tm_tensor grad, tm_tensor before, tm_tensor value, tm_tensor y)
{
    add_bytes(d, rows_of(grad, y.rows, 1) + rows_of(before, y.rows, 1) + rows_of(value, y.rows, 1) + rows_of(y, y.rows, 2));
}
static void cost_most_likely(tm_device *d, int64_t n, tm_tensor logits, int32_t *id) { add_bytes(d, rows_of(logits, n, 1)); }
static void cost_sample_targets(tm_device *d, int64_t n, tm_tensor logits, float softcap, uint64_t key, const uint32_t *place, int32_t *target)
{
    add_bytes(d, rows_of(logits, n, 2));
}

static const tm_ops costing_ops = {
#define TM_OP(name, params) .name = cost_##name,
#include "device/ops.def"
#undef TM_OP
};

tm_status tm_costing_device_create(tm_device_traits traits, tm_work *work, tm_device **out, tm_error *err)
{
    tm_device *counting;
    TM_TRY(tm_counting_device_create(traits, &counting, err));
    costing *c = malloc(sizeof *c);
    if (c) {
        *c = (costing){.base = *counting, .work = work};
        c->base.ops = &costing_ops;
    }
    tm_device_destroy(counting);
    *out = c ? &c->base : NULL;
    return c ? TM_OK : tm_fail(err, TM_NO_MEMORY, "out of memory");
}

void tm_costing_device_lengths(tm_device *d, const int64_t *length, int64_t count)
{
    of(d)->length = length;
    of(d)->count = count;
}
