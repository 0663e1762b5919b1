/* The decoder: forward and backward of a micro-batch through all blocks. Every family is this code
 * with other fields.
 *
 * The residual stream is carried as a sum and what is still to be added to it (delta), so that the
 * addition is fused into the norm that follows. Where a family has a norm between attention or MLP and the stream,
 * delta is that norm's output. */
#include "model/model.h"

#include "base/exact.h"

#define RUN(op, ...) TM_RUN(m->device, op, __VA_ARGS__)

static tm_tensor value_of(const tm_param *p) { return p ? p->value : tm_tensor_none(); }
static tm_tensor grad_of(const tm_param *p) { return p && p->trained ? p->grad : tm_tensor_none(); }

/* --- Norms --- */

static float norm_offset(const tm_model *m) { return m->config.family->norm_kind == TM_NORM_RMS_OFFSET; }

/* sum = x + delta|0, y = norm(sum); kinds of norms as in ops.def. */
static void norm_forward(const tm_model *m, const tm_rows *rows, const tm_norm *norm, tm_tensor x, tm_tensor delta, tm_tensor sum, const tm_norm_saved *s, tm_tensor y)
{
    if (m->config.family->norm_kind == TM_NORM_LAYER)
        RUN(layernorm_forward, rows, x, delta, norm->weight->value, value_of(norm->bias), m->config.norm_eps, sum, s->mean, s->rstd, y);
    else
        RUN(rmsnorm_forward, rows, x, delta, norm->weight->value, norm_offset(m), m->config.norm_eps, sum, s->rstd, y);
}

/* dx += */
static void norm_backward(const tm_model *m, const tm_rows *rows, const tm_norm *norm, tm_tensor dy, tm_tensor sum, const tm_norm_saved *s, tm_tensor dx)
{
    if (m->config.family->norm_kind == TM_NORM_LAYER)
        RUN(layernorm_backward, rows, dy, sum, norm->weight->value, s->mean, s->rstd, dx, grad_of(norm->weight), grad_of(norm->bias));
    else
        RUN(rmsnorm_backward, rows, dy, sum, norm->weight->value, norm_offset(m), s->rstd, dx, grad_of(norm->weight));
}

/* What attention or MLP gave, into delta: through its norm where the family has one. */
static tm_tensor out_of(const tm_model *m, const tm_norm *post, tm_tensor kept) { return post->weight ? kept : m->delta; }

static void post_forward(const tm_model *m, const tm_rows *rows, const tm_norm *post, tm_tensor kept, const tm_norm_saved *s)
{
    if (post->weight)
        norm_forward(m, rows, post, kept, tm_tensor_none(), kept, s, m->delta);
}

/* The gradient of what attention or MLP gave, from that of the stream in m->dx: m->dx itself, or m->delta where it will be
 * overwritten (DoRA, an adapter) or goes through a norm. */
static tm_tensor post_backward(const tm_model *m, const tm_rows *rows, const tm_norm *post, tm_tensor kept, const tm_norm_saved *s, bool overwritten)
{
    tm_tensor to = tm_tensor_rows(m->delta, 0, rows->n);
    if (post->weight) {
        RUN(fill, to, 0);
        norm_backward(m, rows, post, m->dx, kept, s, m->delta);
    } else if (overwritten)
        RUN(cast, tm_tensor_rows(m->dx, 0, rows->n), to);
    else
        return m->dx;
    return m->delta;
}

/* --- Positions --- */

/* Which rows of which tables: by position, or by row in a batch with an example whose length decides. */
typedef struct angles {
    tm_rows rows;
    tm_tensor cos[2], sin[2]; /* for keys, for queries */
} angles;

static bool by_row(const tm_model *m, const tm_batch *b, int which) { return which == 0 && b->longest > m->config.rope[0].limit; }

static angles angles_of(const tm_model *m, const tm_batch *b, int64_t layer)
{
    int which = m->config.layer_rope[layer];
    angles a = {.rows = b->rows};
    bool own = by_row(m, b, which);
    if (own)
        a.rows.position = m->row_index;
    for (int k = 0; k < 2; k++) {
        a.cos[k] = own ? m->row_cos[k] : m->rope_cos[which];
        a.sin[k] = own ? m->row_sin[k] : m->rope_sin[which];
    }
    return a;
}

/* Uploads one column of angles of row t. */
static void put_angles(tm_model *m, tm_tensor table, int64_t t, const double *angle)
{
    tm_dtype real = m->device->real;
    tm_dtype_convert(m->rope_staging, real, angle, TM_F64, table.cols);
    m->device->calls->upload(m->device, tm_tensor_rows(table, t, 1).data, m->rope_staging, tm_dtype_bytes(real, table.cols));
}

/* Angles of every row of a batch in which some example is longer than the limit: each by the length of its own
 * example, so that they do not depend on the layout. In generation that is the length so far, as in transformers. */
static void fill_row_angles(tm_model *m, const tm_batch *b)
{
    const tm_rope_config *rope = &m->config.rope[0];
    bool training = m->linear.step != NULL;
    enum { MOST = 1024 };
    int64_t half = rope->size / 2, row = 0;
    float frequency[MOST / 2];
    double cosine[MOST / 2], sine[MOST / 2];
    for (int64_t e = 0; e < b->items; e++) {
        int64_t end = b->item_past[e] + b->item_n[e];
        tm_rope_frequencies(rope, b->item_length[e], training, frequency);
        for (int64_t p = b->item_past[e]; p < end; p++, row++) {
            tm_rope_angles(rope, frequency, p, cosine, sine);
            put_angles(m, m->row_cos[0], row, cosine);
            put_angles(m, m->row_sin[0], row, sine);
            double scale = rope->log_from && p >= rope->log_from && !training ? tm_log((double)(p + 1)) / tm_log((double)rope->log_from) : 1;
            for (int64_t i = 0; i < half; i++) {
                cosine[i] *= scale;
                sine[i] *= scale;
            }
            put_angles(m, m->row_cos[1], row, cosine);
            put_angles(m, m->row_sin[1], row, sine);
        }
    }
}

/* --- Attention --- */

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
                          .scale = (float)(c->score_scale / (c->scale_by_layer ? (double)(layer + 1) : 1)), .window = c->window[layer], .softcap = c->score_cap};
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
    if (block->norm[TM_NORM_Q].weight) { /* their backward needs the vectors before the norm */
        int64_t n = now.q.cols + now.k.cols;
        RUN(cast, tm_tensor_rows(tm_tensor_cols(s->qkv, 0, n), 0, rows->n), tm_tensor_rows(s->qk_raw, 0, rows->n));
        raw.q = tm_tensor_cols(s->qk_raw, 0, now.q.cols);
        raw.k = tm_tensor_cols(s->qk_raw, now.q.cols, now.k.cols);
    }
    if (c->ropes) {
        angles t = angles_of(m, b, layer);
        float offset = norm_offset(m);
        RUN(rope_forward, &t.rows, raw.q, c->heads, t.cos[1], t.sin[1], value_of(block->norm[TM_NORM_Q].weight), offset, c->norm_eps, s->rstd_q, now.q);
        RUN(rope_forward, &t.rows, raw.k, c->kv_heads, t.cos[0], t.sin[0], value_of(block->norm[TM_NORM_K].weight), offset, c->norm_eps, s->rstd_k, now.k);
    }
    if (b->cached) {
        RUN(scatter_rows, rows->n, b->cache_row, now.k, 0, m->cache_k[layer]);
        RUN(scatter_rows, rows->n, b->cache_row, now.v, 0, m->cache_v[layer]);
        now.k = m->cache_k[layer];
        now.v = m->cache_v[layer];
    }
    RUN(attention_forward, &b->spans, &a, now.q, now.k, now.v, s->attn, s->lse);
    const tm_norm *post = &block->norm[TM_NORM_POST_ATTN];
    tm_tensor out = out_of(m, post, s->attn_out);
    tm_linear_forward(&m->linear, &block->o, rows, s->attn, &s->s_o, out);
    if (block->attn_adapter && !m->linear.base_only)
        tm_bottleneck_forward(&m->bottleneck, block->attn_adapter, b, &s->s_attn_adapter, out);
    post_forward(m, rows, post, s->attn_out, &s->n_attn_out);
}

/* From the residual stream (x, and delta|0 still to be added) to the next (s->x_mid, m->delta).
 * Writes s->x_in = x + delta. */
static void block_forward(tm_model *m, int64_t layer, const tm_batch *b, tm_tensor x, tm_tensor delta)
{
    const tm_model_config *c = &m->config;
    tm_block *block = &m->block[layer];
    tm_block_saved *s = &m->saved[layer];
    const tm_rows *rows = &b->rows;
    const tm_norm *post = &block->norm[TM_NORM_POST_FFN];
    norm_forward(m, rows, &block->norm[TM_NORM_ATTN], x, delta, s->x_in, &s->n_in, m->y);
    attention_forward(m, layer, b);
    norm_forward(m, rows, &block->norm[TM_NORM_FFN], s->x_in, m->delta, s->x_mid, &s->n_mid, m->y);
    tm_linear_glu_forward(&m->linear, &block->gate_up, rows, m->y, &s->s_gate_up, s->gate_up, c->activation, m->h);
    tm_tensor out = out_of(m, post, s->ffn_out);
    tm_linear_forward(&m->linear, &block->down, rows, m->h, &s->s_down, out);
    if (block->ffn_adapter && !m->linear.base_only)
        tm_bottleneck_forward(&m->bottleneck, block->ffn_adapter, b, &s->s_ffn_adapter, out);
    post_forward(m, rows, post, s->ffn_out, &s->n_ffn_out);
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

/* Whether block i's residual stream is in host memory between forward and backward. The last two of the blocks that are
 * computed again keep theirs: backward begins with them. None follows generation. */
static bool stashed(const tm_model *m, const tm_batch *b, int64_t i)
{
    return m->settings.train && !m->linear.base_only && !b->cached && i >= m->stash_first && i < m->stash_end;
}

static int64_t stream_bytes(const tm_model *m, const tm_batch *b) { return tm_dtype_bytes(m->settings.act, b->rows.n * m->config.width); }

bool tm_model_uploads(const tm_model *m, const tm_batch *b) { return m->config.ropes && by_row(m, b, 0); }

void tm_model_forward(tm_model *m, const tm_batch *b)
{
    if (tm_model_uploads(m, b))
        fill_row_angles(m, b);
    if (b->gates)
        RUN(cast, tm_tensor_rows(b->gate, 0, b->rows.n), tm_tensor_rows(tm_tensor_cols(m->linear.gated, b->gate.cols, b->gate.cols), 0, b->rows.n));
    tm_embed_forward(m, b);
    tm_tensor x = m->x0, delta = tm_tensor_none();
    if (m->positions) {
        RUN(embed_forward, &b->rows, b->rows.position, m->positions->value, 1, m->delta);
        delta = m->delta;
    }
    for (int64_t i = 0; i < m->config.layers; i++) {
        if (stashed(m, b, i - 2)) /* whose place this block's stream takes */
            m->device->calls->stash_wait(m->device, i - 2);
        block_forward(m, i, b, x, delta);
        if (stashed(m, b, i))
            m->device->calls->stash(m->device, i, m->saved[i].x_in.data, stream_bytes(m, b));
        x = m->saved[i].x_mid;
        delta = m->delta;
    }
    norm_forward(m, &b->rows, &m->final_norm, x, delta, m->x_final, &m->n_final, m->hidden);
}

/* m->dx: gradient of the block's output on entry, of its input (s->x_in) on return. */
static void mlp_backward(tm_model *m, int64_t layer, const tm_batch *b)
{
    const tm_model_config *c = &m->config;
    tm_block *block = &m->block[layer];
    tm_block_saved *s = &m->saved[layer];
    const tm_rows *rows = &b->rows;
    /* What is trained on `down` needs h again: made along with the gradient of gate and up where its own can wait. */
    bool trained = tm_linear_group_trained(&block->down), wait = trained && tm_linear_separable(&m->linear, &block->down);
    if (trained && !wait)
        RUN(glu_forward, rows, c->activation, s->gate_up, m->h);
    tm_tensor out = post_backward(m, rows, &block->norm[TM_NORM_POST_FFN], s->ffn_out, &s->n_ffn_out, block->ffn_adapter || tm_linear_overwrites(&block->down));
    if (block->ffn_adapter)
        tm_bottleneck_backward(&m->bottleneck, block->ffn_adapter, b, &s->s_ffn_adapter, out);
    if (wait)
        tm_linear_backward_input(&m->linear, &block->down, rows, out, m->h, &s->s_down, false, m->dh);
    else
        tm_linear_backward(&m->linear, &block->down, rows, out, m->h, &s->s_down, false, m->dh);
    RUN(glu_backward, rows, c->activation, s->gate_up, m->dh, s->gate_up, wait ? m->h : tm_tensor_none());
    if (wait)
        tm_linear_backward_weights(&m->linear, &block->down, rows, out, m->h, &s->s_down);
    if (tm_linear_group_trained(&block->gate_up))
        norm_forward(m, rows, &block->norm[TM_NORM_FFN], s->x_mid, tm_tensor_none(), s->x_mid, &s->n_mid, m->y);
    tm_linear_backward(&m->linear, &block->gate_up, rows, s->gate_up, m->y, &s->s_gate_up, false, m->dy);
    norm_backward(m, rows, &block->norm[TM_NORM_FFN], m->dy, s->x_mid, &s->n_mid, m->dx);
}

static void attention_backward(tm_model *m, int64_t layer, const tm_batch *b, bool need_dx)
{
    const tm_model_config *c = &m->config;
    tm_block *block = &m->block[layer];
    tm_block_saved *s = &m->saved[layer];
    const tm_rows *rows = &b->rows;
    tm_attention a = attention_of(m, layer);
    tm_tensor out = post_backward(m, rows, &block->norm[TM_NORM_POST_ATTN], s->attn_out, &s->n_attn_out, block->attn_adapter || tm_linear_overwrites(&block->o));
    if (block->attn_adapter)
        tm_bottleneck_backward(&m->bottleneck, block->attn_adapter, b, &s->s_attn_adapter, out);
    tm_linear_backward(&m->linear, &block->o, rows, out, s->attn, &s->s_o, false, m->dattn);
    qkv_views x = split_qkv(c, s->qkv), d = split_qkv(c, m->dqkv), raw = x;
    RUN(attention_backward, &b->spans, &a, m->dattn, x.q, x.k, x.v, s->attn, s->lse, m->attn_delta, d.q, d.k, d.v);
    const tm_param *q_norm = block->norm[TM_NORM_Q].weight, *k_norm = block->norm[TM_NORM_K].weight;
    if (q_norm) {
        raw.q = tm_tensor_cols(s->qk_raw, 0, x.q.cols);
        raw.k = tm_tensor_cols(s->qk_raw, x.q.cols, x.k.cols);
    }
    if (c->ropes) {
        angles t = angles_of(m, b, layer);
        float offset = norm_offset(m);
        RUN(rope_backward, &t.rows, d.q, c->heads, t.cos[1], t.sin[1], value_of(q_norm), offset, s->rstd_q, raw.q, d.q, grad_of(q_norm));
        RUN(rope_backward, &t.rows, d.k, c->kv_heads, t.cos[0], t.sin[0], value_of(k_norm), offset, s->rstd_k, raw.k, d.k, grad_of(k_norm));
    }
    if (tm_linear_group_trained(&block->qkv))
        norm_forward(m, rows, &block->norm[TM_NORM_ATTN], s->x_in, tm_tensor_none(), s->x_in, &s->n_in, m->y);
    tm_linear_backward(&m->linear, &block->qkv, rows, m->dqkv, m->y, &s->s_qkv, false, need_dx ? m->dy : tm_tensor_none());
    if (need_dx)
        norm_backward(m, rows, &block->norm[TM_NORM_ATTN], m->dy, s->x_in, &s->n_in, m->dx);
}

void tm_model_backward(tm_model *m, const tm_batch *b)
{
    const tm_rows *rows = &b->rows;
    int64_t layers = m->config.layers;
    if (m->first_trained == layers && !tm_norm_trained(&m->final_norm))
        return; /* only the head is trained */
    /* m->dy holds the gradient of hidden (tm_model_loss). */
    RUN(fill, tm_tensor_rows(m->dx, 0, rows->n), 0);
    norm_backward(m, rows, &m->final_norm, m->dy, m->x_final, &m->n_final, m->dx);
    for (int64_t i = layers - 1; i >= 0 && i >= m->first_trained; i--) {
        if (stashed(m, b, i))
            m->device->calls->stash_wait(m->device, i);
        /* Blocks that share one set: the last of them finds what it left there. */
        if (i + 1 < m->settings.recompute_layers && i + 1 < layers) /* x_in is kept: with nothing to add, block_forward leaves it as it is */
            block_forward(m, i, b, m->saved[i].x_in, tm_tensor_none());
        mlp_backward(m, i, b);
        /* Below the lowest trained tensor nobody wants a gradient, unless this layer's norm does. */
        attention_backward(m, i, b, i > m->first_trained || tm_norm_trained(&m->block[i].norm[TM_NORM_ATTN]));
        if (stashed(m, b, i - 2)) /* comes back while the block between is at work */
            m->device->calls->unstash(m->device, i - 2, m->saved[i - 2].x_in.data, stream_bytes(m, b));
    }
    if (m->first_trained < 0)
        tm_embed_backward(m, b);
}

void tm_model_finish_gradients(tm_model *m)
{
    if (m->embed->trained && m->embed->grad2.data)
        RUN(axpy, 1, m->embed->grad2, m->embed->grad);
}
