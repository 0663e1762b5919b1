/* The feed-forward's activation: act(gate) * up, or act alone without a gate. docs/math/glu.md. Elementwise; gate
 * and up of an element are read before their gradients are written, so dgate_up may be gate_up. */
#include "device/cpu/math.h"
#include "device/cpu/row.h"

typedef struct work {
    int64_t n, F;
    bool gated;
    tm_activation act;
    tm_tensor gate_up, h, dgate_up, again; /* backward: h is dh, again is h */
} work;

/* act(g) and its derivative. */
typedef struct value {
    v16 act, slope;
} value;

V16_FN value activate(tm_activation act, v16 g)
{
    v16 one = v16_set1(1), half = v16_set1((real)0.5);
    if (act == TM_ACT_SILU) {
        v16 s = v16_sigmoid(g), a = v16_mul(g, s);
        return (value){a, v16_fma(a, v16_sub(one, s), s)};
    }
    if (act == TM_ACT_RELU) {
        v16 zero = v16_set1(0);
        v16m off = v16_le(g, zero);
        return (value){v16_select(off, zero, g), v16_select(off, zero, one)};
    }
    if (act == TM_ACT_NONE)
        return (value){g, one};
    if (act == TM_ACT_GELU) {
        v16 cdf = v16_mul(half, v16_add(one, v16_erf(v16_mul(g, v16_set1((real)0.70710678118654752440)))));
        v16 density = v16_exp(v16_mul(v16_mul(g, g), v16_neg(half)));
        density = v16_mul(density, v16_set1((real)0.39894228040143267794));
        return (value){v16_mul(g, cdf), v16_fma(g, density, cdf)};
    }
    v16 root = v16_set1((real)0.79788456080286535588), square = v16_mul(g, g);
    v16 inner = v16_fma(v16_mul(v16_set1((real)0.044715), square), g, g);
    v16 t = v16_tanh(v16_mul(root, inner)), cdf = v16_mul(half, v16_add(one, t));
    v16 slope = v16_mul(root, v16_fma(v16_set1((real)(3 * 0.044715)), square, one));
    v16 rest = v16_mul(v16_mul(v16_mul(half, g), v16_fnma(t, t, one)), slope);
    return (value){v16_mul(g, cdf), v16_add(cdf, rest)};
}

static void forward_rows(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t size = task_rows(w->F);
    for (int64_t t = task * size; t < task_end(task, size, w->n); t++)
        for (int64_t i = 0; i < w->F; i += V16) {
            int lanes = lanes_at(w->F, i);
            v16 a = activate(w->act, lanes_load(w->gate_up, t, i, lanes)).act;
            lanes_store(w->h, t, i, lanes, w->gated ? v16_mul(a, lanes_load(w->gate_up, t, w->F + i, lanes)) : a);
        }
}

void TM_KERNEL(glu_forward)(tm_device *d, const tm_rows *rows, tm_activation act, tm_tensor gate_up, tm_tensor h)
{
    work w = {.n = rows->n, .F = h.cols, .gated = gate_up.cols != h.cols, .act = act, .gate_up = gate_up, .h = h};
    tm_pool_run(tm_cpu_of(d)->pool, forward_rows, &w, task_count(w.n, task_rows(w.F)));
}

static void backward_rows(void *context, int64_t task, int thread)
{
    const work local = *(const work *)context, *w = &local;
    (void)thread;
    int64_t size = task_rows(w->F);
    for (int64_t t = task * size; t < task_end(task, size, w->n); t++)
        for (int64_t i = 0; i < w->F; i += V16) {
            int lanes = lanes_at(w->F, i);
            value a = activate(w->act, lanes_load(w->gate_up, t, i, lanes));
            v16 dh = lanes_load(w->h, t, i, lanes);
            if (!w->gated) {
                lanes_store(w->dgate_up, t, i, lanes, v16_mul(dh, a.slope));
                if (w->again.data)
                    lanes_store(w->again, t, i, lanes, a.act);
                continue;
            }
            v16 up = lanes_load(w->gate_up, t, w->F + i, lanes);
            lanes_store(w->dgate_up, t, i, lanes, v16_mul(v16_mul(dh, up), a.slope));
            lanes_store(w->dgate_up, t, w->F + i, lanes, v16_mul(dh, a.act));
            if (w->again.data)
                lanes_store(w->again, t, i, lanes, v16_mul(a.act, up));
        }
}

void TM_KERNEL(glu_backward)(tm_device *d, const tm_rows *rows, tm_activation act, tm_tensor gate_up, tm_tensor dh,
                             tm_tensor dgate_up, tm_tensor h)
{
    work w = {.n = rows->n, .F = dh.cols, .gated = gate_up.cols != dh.cols, .act = act, .gate_up = gate_up, .h = dh,
              .dgate_up = dgate_up, .again = h};
    tm_pool_run(tm_cpu_of(d)->pool, backward_rows, &w, task_count(w.n, task_rows(w.F)));
}
