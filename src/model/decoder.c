/* The decoder: forward and backward of a micro-batch through all blocks. Every family is this code
 * with other fields.
 *
 * The residual stream is carried as a sum and what is still to be added to it (delta), so that the
 * addition is fused into the norm that follows. */
#include "model/model.h"

#define RUN(op, ...) TM_RUN(m->device, op, __VA_ARGS__)

static tm_tensor value_of(const tm_param *p) { return p ? p->value : tm_tensor_none(); }
static tm_tensor grad_of(const tm_param *p) { return p && p->trained ? p->grad : tm_tensor_none(); }

typedef struct qkv_views {
    tm_tensor q, k, v;
} qkv_views;

static qkv_views split_qkv(const tm_model_config *c, tm_tensor qkv)
{
    int64_t q = c->heads * c->head_size, kv = c->kv_heads * c->head_size;
    return (qkv_views){tm_tensor_cols(qkv, 0, q), tm_tensor_cols(qkv, q, kv), tm_tensor_cols(qkv, q + kv, kv)};
}

static tm_attention attention_of(const tm_model *m, int64_t layer)
{
    const tm_model_config *c = &m->config;
    return (tm_attention){.heads = (int32_t)c->heads, .kv_heads = (int32_t)c->kv_heads, .head_size = (int32_t)c->head_size,
                          .scale = (float)(1.0 / __builtin_sqrt((double)c->head_size)), .window = c->window[layer]};
}

/* Attention of one layer: m->y (normed) in, m->delta out. */
static void attention_forward(tm_model *m, int64_t layer, const tm_batch *b)
{
    const tm_model_config *c = &m->config;
    tm_block *block = &m->block[layer];
    tm_block_saved *s = &m->saved[layer];
    tm_attention a = attention_of(m, layer);
    const tm_rows *rows = &b->rows;
    tm_linear_forward(&m->linear, &block->qkv, rows, m->y, &s->s_qkv, s->qkv);
    qkv_views now = split_qkv(c, s->qkv), raw = now;
    if (block->q_norm) { /* their backward needs the vectors before the norm */
        int64_t n = now.q.cols + now.k.cols;
        RUN(cast, tm_tensor_rows(tm_tensor_cols(s->qkv, 0, n), 0, rows->n), tm_tensor_rows(s->qk_raw, 0, rows->n));
        raw.q = tm_tensor_cols(s->qk_raw, 0, now.q.cols);
        raw.k = tm_tensor_cols(s->qk_raw, now.q.cols, now.k.cols);
    }
    RUN(rope_forward, rows, raw.q, c->heads, m->rope_cos, m->rope_sin, value_of(block->q_norm), c->norm_eps, s->rstd_q, now.q);
    RUN(rope_forward, rows, raw.k, c->kv_heads, m->rope_cos, m->rope_sin, value_of(block->k_norm), c->norm_eps, s->rstd_k, now.k);
    if (b->cached) {
        int64_t past = b->cached_past;
        RUN(cast, tm_tensor_rows(now.k, 0, rows->n), tm_tensor_rows(m->cache_k[layer], past, rows->n));
        RUN(cast, tm_tensor_rows(now.v, 0, rows->n), tm_tensor_rows(m->cache_v[layer], past, rows->n));
        now.k = m->cache_k[layer];
        now.v = m->cache_v[layer];
    }
    RUN(attention_forward, &b->spans, &a, now.q, now.k, now.v, s->attn, s->lse);
    tm_linear_forward(&m->linear, &block->o, rows, s->attn, &s->s_o, m->delta);
    if (block->attn_adapter && !m->linear.base_only)
        tm_bottleneck_forward(&m->bottleneck, block->attn_adapter, b, &s->s_attn_adapter, m->delta);
}

/* From the residual stream (x, and delta|0 still to be added) to the next (s->x_mid, m->delta).
 * Writes s->x_in = x + delta. */
static void block_forward(tm_model *m, int64_t layer, const tm_batch *b, tm_tensor x, tm_tensor delta)
{
    const tm_model_config *c = &m->config;
    tm_block *block = &m->block[layer];
    tm_block_saved *s = &m->saved[layer];
    const tm_rows *rows = &b->rows;
    RUN(rmsnorm_forward, rows, x, delta, block->attn_norm->value, c->norm_eps, s->x_in, s->rstd_in, m->y);
    attention_forward(m, layer, b);
    RUN(rmsnorm_forward, rows, s->x_in, m->delta, block->ffn_norm->value, c->norm_eps, s->x_mid, s->rstd_mid, m->y);
    tm_linear_forward(&m->linear, &block->gate_up, rows, m->y, &s->s_gate_up, s->gate_up);
    RUN(glu_forward, rows, c->activation, s->gate_up, m->h);
    tm_linear_forward(&m->linear, &block->down, rows, m->h, &s->s_down, m->delta);
    if (block->ffn_adapter && !m->linear.base_only)
        tm_bottleneck_forward(&m->bottleneck, block->ffn_adapter, b, &s->s_ffn_adapter, m->delta);
}

void tm_model_begin_step(tm_model *m, const tm_step_params *step)
{
    m->linear.step = step;
    for (int64_t i = 0; i < m->config.layers; i++) {
        tm_linear_group_prepare(&m->linear, &m->block[i].qkv);
        tm_linear_group_prepare(&m->linear, &m->block[i].o);
        tm_linear_group_prepare(&m->linear, &m->block[i].gate_up);
        tm_linear_group_prepare(&m->linear, &m->block[i].down);
    }
    tm_linear_group_prepare(&m->linear, &m->head_group);
}

void tm_model_forward(tm_model *m, const tm_batch *b)
{
    tm_embed_forward(m, b);
    tm_tensor x = m->x0, delta = tm_tensor_none();
    for (int64_t i = 0; i < m->config.layers; i++) {
        block_forward(m, i, b, x, delta);
        x = m->saved[i].x_mid;
        delta = m->delta;
    }
    RUN(rmsnorm_forward, &b->rows, x, delta, m->final_norm->value, m->config.norm_eps, m->x_final, m->rstd_final, m->hidden);
}

/* m->dx: gradient of the block's output on entry, of its input (s->x_in) on return. */
static void mlp_backward(tm_model *m, int64_t layer, const tm_batch *b)
{
    const tm_model_config *c = &m->config;
    tm_block *block = &m->block[layer];
    tm_block_saved *s = &m->saved[layer];
    const tm_rows *rows = &b->rows;
    if (tm_linear_group_trained(&block->down))
        RUN(glu_forward, rows, c->activation, s->gate_up, m->h);
    RUN(cast, tm_tensor_rows(m->dx, 0, rows->n), tm_tensor_rows(m->delta, 0, rows->n)); /* DoRA overwrites what it is given */
    if (block->ffn_adapter)
        tm_bottleneck_backward(&m->bottleneck, block->ffn_adapter, b, &s->s_ffn_adapter, m->delta);
    tm_linear_backward(&m->linear, &block->down, rows, m->delta, m->h, &s->s_down, false, m->dh);
    RUN(glu_backward, rows, c->activation, s->gate_up, m->dh, s->gate_up);
    if (tm_linear_group_trained(&block->gate_up))
        RUN(rmsnorm_forward, rows, s->x_mid, tm_tensor_none(), block->ffn_norm->value, c->norm_eps, s->x_mid, s->rstd_mid, m->y);
    tm_linear_backward(&m->linear, &block->gate_up, rows, s->gate_up, m->y, &s->s_gate_up, false, m->dy);
    RUN(rmsnorm_backward, rows, m->dy, s->x_mid, block->ffn_norm->value, s->rstd_mid, m->dx, grad_of(block->ffn_norm));
}

static void attention_backward(tm_model *m, int64_t layer, const tm_batch *b, bool need_dx)
{
    const tm_model_config *c = &m->config;
    tm_block *block = &m->block[layer];
    tm_block_saved *s = &m->saved[layer];
    const tm_rows *rows = &b->rows;
    tm_attention a = attention_of(m, layer);
    RUN(cast, tm_tensor_rows(m->dx, 0, rows->n), tm_tensor_rows(m->delta, 0, rows->n));
    if (block->attn_adapter)
        tm_bottleneck_backward(&m->bottleneck, block->attn_adapter, b, &s->s_attn_adapter, m->delta);
    tm_linear_backward(&m->linear, &block->o, rows, m->delta, s->attn, &s->s_o, false, m->dattn);
    qkv_views x = split_qkv(c, s->qkv), d = split_qkv(c, m->dqkv), raw = x;
    RUN(attention_backward, &b->spans, &a, m->dattn, x.q, x.k, x.v, s->attn, s->lse, m->attn_delta, d.q, d.k, d.v);
    if (block->q_norm) {
        raw.q = tm_tensor_cols(s->qk_raw, 0, x.q.cols);
        raw.k = tm_tensor_cols(s->qk_raw, x.q.cols, x.k.cols);
    }
    RUN(rope_backward, rows, d.q, c->heads, m->rope_cos, m->rope_sin, value_of(block->q_norm), s->rstd_q, raw.q, d.q, grad_of(block->q_norm));
    RUN(rope_backward, rows, d.k, c->kv_heads, m->rope_cos, m->rope_sin, value_of(block->k_norm), s->rstd_k, raw.k, d.k, grad_of(block->k_norm));
    if (tm_linear_group_trained(&block->qkv))
        RUN(rmsnorm_forward, rows, s->x_in, tm_tensor_none(), block->attn_norm->value, c->norm_eps, s->x_in, s->rstd_in, m->y);
    tm_linear_backward(&m->linear, &block->qkv, rows, m->dqkv, m->y, &s->s_qkv, false, need_dx ? m->dy : tm_tensor_none());
    if (need_dx)
        RUN(rmsnorm_backward, rows, m->dy, s->x_in, block->attn_norm->value, s->rstd_in, m->dx, grad_of(block->attn_norm));
}

void tm_model_backward(tm_model *m, const tm_batch *b)
{
    const tm_rows *rows = &b->rows;
    int64_t layers = m->config.layers;
    if (m->first_trained == layers && !m->final_norm->trained)
        return; /* only the head is trained */
    /* m->dy holds the gradient of hidden (tm_model_loss). */
    RUN(fill, tm_tensor_rows(m->dx, 0, rows->n), 0);
    RUN(rmsnorm_backward, rows, m->dy, m->x_final, m->final_norm->value, m->rstd_final, m->dx, grad_of(m->final_norm));
    for (int64_t i = layers - 1; i >= 0 && i >= m->first_trained; i--) {
        if (m->settings.recompute) /* x_in is kept: with nothing to add, block_forward leaves it as it is */
            block_forward(m, i, b, m->saved[i].x_in, tm_tensor_none());
        mlp_backward(m, i, b);
        /* Below the lowest trained tensor nobody wants a gradient, unless this layer's norm does. */
        attention_backward(m, i, b, i > m->first_trained || m->block[i].attn_norm->trained);
    }
    if (m->first_trained < 0)
        tm_embed_backward(m, b);
}

void tm_model_finish_gradients(tm_model *m)
{
    if (m->embed->trained && m->embed->grad2.data)
        RUN(axpy, 1, m->embed->grad2, m->embed->grad);
}
