/* Life of a model: declaring parameters, allocating, loading, initialising. See model.h; the
 * computation is in decoder.c and head.c. */
#include "model/model.h"

#include "device/lent.h"

#include "base/buf.h"
#include "base/exact.h"
#include "base/philox.h"

#include <math.h>
#include <stdlib.h>

/* --- Declaring --- */

typedef struct declaring {
    tm_model *model;
    const tm_safetensors *file;
    tm_dtype dtype;
    int32_t layer; /* -1: outside the blocks */
    tm_error *err;
} declaring;

/* How a tensor of the file is kept in memory: matrices as they are stored when the device's kernels
 * read that type, everything else in the device's own. */
static tm_dtype stored_dtype(const declaring *d, const tm_param *p)
{
    tm_dtype real = d->model->device->real;
    if (real == TM_F64 || p->ndim == 1)
        return real;
    return p->source == TM_BF16 || p->source == TM_F16 ? p->source : real;
}

static tm_status declare(const declaring *d, const char *name, const char *suffix, tm_param_kind kind, int64_t rows, int64_t cols, tm_param **out)
{
    char full[256];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    TM_TRY(tm_params_add(&d->model->params, full, kind, rows, cols, out, d->err));
    if (kind == TM_PARAM_MATRIX || kind == TM_PARAM_EMBEDDING)
        (*out)->ndim = 2;
    (*out)->layer = d->layer;
    const tm_st_tensor *stored = d->file ? tm_model_stored(d->model, d->file, full) : NULL;
    (*out)->source = stored ? stored->dtype : d->dtype;
    (*out)->dtype = stored_dtype(d, *out);
    return TM_OK;
}

static tm_status declare_linear(const declaring *d, tm_linear *linear, const char *name, int64_t in, int64_t out, bool bias)
{
    linear->name = tm_strdup(name, d->err);
    if (!linear->name)
        return TM_NO_MEMORY;
    linear->in = in;
    linear->out = out;
    TM_TRY(declare(d, name, ".weight", TM_PARAM_MATRIX, out, in, &linear->weight));
    return bias ? declare(d, name, ".bias", TM_PARAM_BIAS, 1, out, &linear->bias) : TM_OK;
}

/* The modules of slots [first, last] that the family has; they are adjacent. */
static void group_of(tm_linear_group *group, tm_linear *slot, tm_slot first, tm_slot last)
{
    *group = (tm_linear_group){0};
    for (int s = first; s <= (int)last; s++)
        if (slot[s].weight) {
            group->module[group->count++] = &slot[s];
            group->in = slot[s].in;
            group->out += slot[s].out;
        }
}

static void make_groups(tm_block *b)
{
    group_of(&b->qkv, b->slot, TM_Q, TM_V);
    group_of(&b->o, b->slot, TM_O, TM_O);
    group_of(&b->gate_up, b->slot, TM_GATE, TM_UP);
    group_of(&b->down, b->slot, TM_DOWN, TM_DOWN);
}

static tm_status declare_norm(const declaring *d, const char *name, int64_t size, tm_norm *norm)
{
    TM_TRY(declare(d, name, ".weight", TM_PARAM_NORM, 1, size, &norm->weight));
    return d->model->config.family->norm_kind == TM_NORM_LAYER ? declare(d, name, ".bias", TM_PARAM_BIAS, 1, size, &norm->bias) : TM_OK;
}

static tm_status declare_block(const declaring *d, tm_block *block)
{
    const tm_model_config *c = &d->model->config;
    const tm_family *family = c->family;
    char prefix[64], name[128];
    snprintf(prefix, sizeof prefix, family->layer, (int)d->layer);
    int64_t q = c->heads * c->head_size, kv = c->kv_heads * c->head_size;
    bool fused_qkv = !family->slot[TM_K], fused_gate = family->slot[TM_GATE] && !family->slot[TM_UP];
    struct {
        int64_t in, out;
        bool bias;
    } shape[TM_SLOTS] = {
        [TM_Q] = {c->width, fused_qkv ? q + 2 * kv : q, c->qkv_bias}, [TM_K] = {c->width, kv, c->qkv_bias}, [TM_V] = {c->width, kv, c->qkv_bias},
        [TM_O] = {q, c->width, c->o_bias}, [TM_GATE] = {c->width, fused_gate ? 2 * c->ffn : c->ffn, c->mlp_bias},
        [TM_UP] = {c->width, c->ffn, c->mlp_bias}, [TM_DOWN] = {c->ffn, c->width, c->mlp_bias},
    };
    for (int s = 0; s < TM_SLOTS; s++) {
        if (!family->slot[s])
            continue;
        snprintf(name, sizeof name, "%s.%s", prefix, family->slot[s]);
        TM_TRY(declare_linear(d, &block->slot[s], name, shape[s].in, shape[s].out, shape[s].bias));
        block->slot[s].weight->turned = family->conv1d;
        if (family->init == TM_INIT_GPT2 && (s == TM_O || s == TM_DOWN))
            block->slot[s].weight->init_scale = (float)(1 / sqrt(2.0 * (double)c->layers));
    }
    for (int n = 0; n < TM_NORMS; n++)
        if (family->norm[n]) {
            snprintf(name, sizeof name, "%s.%s", prefix, family->norm[n]);
            TM_TRY(declare_norm(d, name, n == TM_NORM_Q || n == TM_NORM_K ? c->head_size : c->width, &block->norm[n]));
        }
    make_groups(block);
    return TM_OK;
}

static tm_status declare_all(declaring *d)
{
    tm_model *m = d->model;
    const tm_model_config *c = &m->config;
    TM_TRY(declare(d, c->family->embed, ".weight", TM_PARAM_EMBEDDING, c->vocab, c->width, &m->embed));
    if (c->family->positions)
        TM_TRY(declare(d, c->family->positions, ".weight", TM_PARAM_EMBEDDING, c->max_positions, c->width, &m->positions));
    TM_TRY(TM_NEW(&m->block, c->layers, d->err));
    for (d->layer = 0; d->layer < c->layers; d->layer++)
        TM_TRY(declare_block(d, &m->block[d->layer]));
    d->layer = -1;
    TM_TRY(declare_norm(d, c->family->final_norm, c->width, &m->final_norm));
    if (!c->tied)
        TM_TRY(declare_linear(d, &m->head, c->family->head, c->width, c->vocab, false));
    else {
        m->head = (tm_linear){.in = c->width, .out = c->vocab, .weight = m->embed};
        m->head.name = tm_strdup(c->family->head, d->err);
        if (!m->head.name)
            return TM_NO_MEMORY;
    }
    group_of(&m->head_group, &m->head, 0, 0);
    return TM_OK;
}

tm_status tm_model_create(tm_model *m, const char *dir, const tm_safetensors *file, tm_dtype dtype, tm_device *device, tm_memory *memory, int32_t replicas, tm_error *err)
{
    *m = (tm_model){.device = device, .memory = memory, .replicas = replicas};
    tm_status st = tm_model_config_read(dir, &m->config, err);
    if (st == TM_OK)
        st = declare_all(&(declaring){m, file, dtype, -1, err});
    if (st != TM_OK)
        tm_model_destroy(m);
    return st;
}

static void linear_deinit(tm_linear *linear)
{
    free(linear->name);
    free(linear->lora);
}

void tm_model_destroy(tm_model *m)
{
    for (int64_t i = 0; m->block && i < m->config.layers; i++) {
        for (int s = 0; s < TM_SLOTS; s++)
            linear_deinit(&m->block[i].slot[s]);
        free(m->block[i].attn_adapter);
        free(m->block[i].ffn_adapter);
    }
    linear_deinit(&m->head);
    free(m->embed_lora);
    free(m->block);
    free(m->saved);
    free(m->cache_k);
    free(m->cache_v);
    free(m->rope_staging);
    tm_params_deinit(&m->params);
    tm_model_config_deinit(&m->config);
    *m = (tm_model){0};
}

/* --- Allocating --- */

/* What a trained parameter is kept in. */
static tm_dtype trained_dtype(const tm_model *m, const tm_param *p)
{
    return m->settings.half_master && p->ndim == 2 && !p->added ? m->settings.act : m->device->real;
}

static void take_param(tm_model *m, tm_param *p)
{
    if (!p || p->value.data)
        return;
    if (p->trained)
        p->dtype = trained_dtype(m, p);
    p->value = tm_arena_tensor(&m->memory->arena[TM_MEM_WEIGHTS], p->dtype, p->rows * p->replicas, p->cols);
    if (p->trained && m->settings.train)
        p->grad = tm_arena_tensor(&m->memory->arena[TM_MEM_GRADIENTS], m->device->real, p->rows * p->replicas, p->cols);
}

static void take_group(tm_model *m, tm_linear_group *group)
{
    for (int32_t i = 0; i < group->count; i++)
        if (group->module[i]->weight->trained)
            group->module[i]->weight->dtype = trained_dtype(m, group->module[i]->weight);
    tm_linear_group_allocate(group, m->memory, m->device->real, m->settings.train);
}

static void take_norm(tm_model *m, tm_norm *norm)
{
    take_param(m, norm->weight);
    take_param(m, norm->bias);
}

static void take_weights(tm_model *m)
{
    take_param(m, m->embed);
    take_param(m, m->positions);
    for (int64_t i = 0; i < m->config.layers; i++) {
        tm_block *b = &m->block[i];
        take_group(m, &b->qkv);
        take_group(m, &b->o);
        take_group(m, &b->gate_up);
        take_group(m, &b->down);
        if (b->attn_adapter)
            tm_bottleneck_allocate(b->attn_adapter, m->memory, m->device->real, m->settings.train);
        if (b->ffn_adapter)
            tm_bottleneck_allocate(b->ffn_adapter, m->memory, m->device->real, m->settings.train);
        for (int n = 0; n < TM_NORMS; n++)
            take_norm(m, &b->norm[n]);
    }
    take_norm(m, &m->final_norm);
    if (m->head.weight != m->embed) {
        take_group(m, &m->head_group);
        return;
    }
    /* Tied: the head's matrix is the embedding's; what LoRA adds to the head is its own. */
    m->head_group.weight = m->embed->value;
    take_param(m, m->head.bias);
    if (m->head.lora) {
        take_param(m, m->head.lora->a);
        take_param(m, m->head.lora->b);
        take_param(m, m->head.lora->magnitude);
        if (m->head.lora->magnitude)
            m->head.lora->norm = tm_arena_tensor(&m->memory->arena[TM_MEM_WEIGHTS], m->device->real, 1, m->head.out * m->replicas);
    }
    if (m->embed->trained && m->settings.train)
        m->embed->grad2 = tm_arena_tensor(&m->memory->arena[TM_MEM_GRADIENTS], m->device->real, m->embed->rows, m->embed->cols);
}

static int64_t trained_layer(const tm_model *m)
{
    if (tm_embed_trained(m))
        return -1;
    for (int64_t i = 0; i < m->config.layers; i++) {
        const tm_block *b = &m->block[i];
        if (b->attn_adapter || b->ffn_adapter)
            return i;
        for (int n = 0; n < TM_NORMS; n++)
            if (tm_norm_trained(&b->norm[n]))
                return i;
        if (tm_linear_group_trained(&b->qkv) || tm_linear_group_trained(&b->o) || tm_linear_group_trained(&b->gate_up) || tm_linear_group_trained(&b->down))
            return i;
    }
    return m->config.layers;
}

static void take_norm_saved(tm_model *m, tm_arena *arena, tm_norm_saved *s)
{
    s->rstd = tm_arena_tensor(arena, m->device->real, 1, m->settings.max_tokens);
    if (m->config.family->norm_kind == TM_NORM_LAYER)
        s->mean = tm_arena_tensor(arena, m->device->real, 1, m->settings.max_tokens);
}

static void take_saved(tm_model *m, tm_block *b, tm_arena *arena, tm_block_saved *s)
{
    const tm_model_config *c = &m->config;
    tm_dtype act = m->settings.act, real = m->device->real;
    int64_t T = m->settings.max_tokens, q = c->heads * c->head_size, kv = c->kv_heads * c->head_size;
    s->x_mid = tm_arena_tensor(arena, act, T, c->width);
    take_norm_saved(m, arena, &s->n_in);
    take_norm_saved(m, arena, &s->n_mid);
    s->qkv = tm_arena_tensor(arena, act, T, q + 2 * kv);
    if (b->norm[TM_NORM_POST_ATTN].weight) {
        s->attn_out = tm_arena_tensor(arena, act, T, c->width);
        take_norm_saved(m, arena, &s->n_attn_out);
    }
    if (b->norm[TM_NORM_POST_FFN].weight) {
        s->ffn_out = tm_arena_tensor(arena, act, T, c->width);
        take_norm_saved(m, arena, &s->n_ffn_out);
    }
    if (b->norm[TM_NORM_Q].weight) {
        s->qk_raw = tm_arena_tensor(arena, act, T, q + kv);
        s->rstd_q = tm_arena_tensor(arena, real, T, c->heads);
        s->rstd_k = tm_arena_tensor(arena, real, T, c->kv_heads);
    }
    s->attn = tm_arena_tensor(arena, act, T, q);
    s->lse = tm_arena_tensor(arena, real, T, c->heads);
    s->gate_up = tm_arena_tensor(arena, act, T, b->gate_up.out);
    tm_linear_saved_allocate(&b->qkv, arena, act, real, T, &s->s_qkv);
    tm_linear_saved_allocate(&b->o, arena, act, real, T, &s->s_o);
    tm_linear_saved_allocate(&b->gate_up, arena, act, real, T, &s->s_gate_up);
    tm_linear_saved_allocate(&b->down, arena, act, real, T, &s->s_down);
    if (b->attn_adapter)
        tm_bottleneck_saved_take(b->attn_adapter, arena, act, real, T, &s->s_attn_adapter);
    if (b->ffn_adapter)
        tm_bottleneck_saved_take(b->ffn_adapter, arena, act, real, T, &s->s_ffn_adapter);
}

/* A block as wide as any in every slot: what it keeps serves all blocks when they share one set. */
static void widest_block(const tm_model *m, tm_block *widest)
{
    *widest = m->block[0];
    for (int64_t i = 1; i < m->config.layers; i++)
        for (int s = 0; s < TM_SLOTS; s++) {
            tm_lora *lora = m->block[i].slot[s].lora, *most = widest->slot[s].lora;
            if (lora && (!most || lora->r > most->r))
                widest->slot[s].lora = lora;
        }
    make_groups(widest);
}

static tm_status take_activations(tm_model *m, tm_error *err)
{
    const tm_model_config *c = &m->config;
    const tm_model_settings *s = &m->settings;
    tm_arena *kept = &m->memory->arena[s->train ? TM_MEM_ACTIVATIONS : TM_MEM_SCRATCH];
    TM_TRY(TM_NEW(&m->saved, c->layers, err));
    m->x0 = tm_arena_tensor(kept, s->act, s->max_tokens, c->width);
    /* Blocks before `reached` have no backward, those before `alone` share what it needs. */
    int64_t reached = !s->train ? c->layers : m->first_trained > 0 ? m->first_trained : 0, alone = reached > s->recompute_layers ? reached : s->recompute_layers;
    tm_block_saved shared = {0};
    tm_block widest;
    tm_tensor turn[2] = {m->x0, m->x0}; /* of the blocks whose stream is stashed, the two in use */
    int64_t stashed = s->offload ? s->recompute_layers < c->layers ? s->recompute_layers : c->layers : 0;
    m->stash_first = reached;
    m->stash_end = stashed - 2 > reached ? stashed - 2 : reached;
    if (m->stash_end > reached)
        turn[1] = tm_arena_tensor(kept, s->act, s->max_tokens, c->width);
    widest_block(m, &widest);
    if (alone > 0)
        take_saved(m, &widest, kept, &shared);
    for (int64_t i = 0; i < c->layers; i++) {
        int64_t before = kept->used;
        if (i < alone)
            m->saved[i] = shared;
        else
            take_saved(m, &m->block[i], kept, &m->saved[i]);
        if (m->stash_end > reached && i >= reached && i < stashed)
            m->saved[i].x_in = turn[(i - reached) % 2];
        else
            m->saved[i].x_in = i == 0 || i < reached ? m->x0 : tm_arena_tensor(kept, s->act, s->max_tokens, c->width);
        m->saved[i].bytes = kept->used - before;
    }
    m->x_final = tm_arena_tensor(kept, s->act, s->max_tokens, c->width);
    take_norm_saved(m, kept, &m->n_final);
    m->hidden = tm_arena_tensor(kept, s->act, s->max_tokens, c->width);
    m->stash_bytes = (m->stash_end - reached) * tm_dtype_bytes(s->act, s->max_tokens * c->width);
    if (m->stash_end == reached)
        return TM_OK;
    if (!m->device->traits.apart)
        return tm_fail(err, TM_RECIPE, "train.offload: activations is for GPUs: the CPU computes in the memory that it would offload to; expected none");
    return m->device->calls->stash_reserve(m->device, m->stash_end, tm_dtype_bytes(s->act, s->max_tokens * c->width), err);
}

/* Largest rank of any adapter, and the widest module that needs DoRA's scratch. */
static void adapter_needs(const tm_model *m, int64_t *rank, int64_t *in, int64_t *wide)
{
    *rank = m->embed_lora ? m->embed_lora->r : 0;
    *in = *wide = 0;
    for (int64_t i = 0; i <= m->config.layers; i++)
        for (int s = 0; s < (i < m->config.layers ? TM_SLOTS : 1); s++) {
            const tm_linear *module = i < m->config.layers ? &m->block[i].slot[s] : &m->head;
            if (!module->lora)
                continue;
            int64_t widest = module->in > module->out ? module->in : module->out;
            *rank = module->lora->r > *rank ? module->lora->r : *rank;
            if (module->lora->magnitude && module->lora->dropout > 0) {
                *in = module->in > *in ? module->in : *in;
                *wide = widest > *wide ? widest : *wide;
            }
        }
}

void tm_model_take_teacher(tm_model *m)
{
    tm_arena *arena = &m->memory->arena[TM_MEM_SCRATCH];
    int64_t rows = m->device->traits.head_rows;
    if (m->teacher_logits.data)
        return;
    m->teacher_x = tm_arena_tensor(arena, m->settings.act, rows, m->config.width);
    m->teacher_logits = tm_arena_tensor(arena, m->settings.act, rows, m->config.vocab);
}

static void take_scratch(tm_model *m)
{
    const tm_model_config *c = &m->config;
    const tm_model_settings *s = &m->settings;
    tm_arena *arena = &m->memory->arena[TM_MEM_SCRATCH];
    tm_dtype act = s->act, real = m->device->real;
    int64_t T = s->max_tokens, q = c->heads * c->head_size, kv = c->kv_heads * c->head_size, rank, in, wide;
    int64_t head_rows = m->device->traits.head_rows;
    m->y = tm_arena_tensor(arena, act, T, c->width);
    m->delta = tm_arena_tensor(arena, act, T, c->width);
    m->h = tm_arena_tensor(arena, act, T, c->ffn);
    adapter_needs(m, &rank, &in, &wide);
    m->linear.dropped = tm_arena_tensor(arena, act, T, in);
    m->linear.wide = tm_arena_tensor(arena, act, T, wide);
    m->head_x = tm_arena_tensor(arena, act, head_rows, c->width);
    m->logits = tm_arena_tensor(arena, act, s->logits ? T : head_rows, c->vocab);
    tm_linear_saved_allocate(&m->head_group, arena, act, real, s->logits ? T : head_rows, &m->s_head);
    if (s->teacher)
        tm_model_take_teacher(m);
    if (!s->train)
        return;
    m->linear.dxa = tm_arena_tensor(arena, real, TM_GROUP_MAX * T, rank);
    m->dh = tm_arena_tensor(arena, act, T, c->ffn);
    m->dx = tm_arena_tensor(arena, act, T, c->width);
    m->dy = tm_arena_tensor(arena, act, T, c->width);
    m->dattn = tm_arena_tensor(arena, act, T, q);
    m->dqkv = tm_arena_tensor(arena, act, T, q + 2 * kv);
    m->attn_delta = tm_arena_tensor(arena, real, T, c->heads);
    m->dtarget = tm_arena_tensor(arena, act, T, c->width);
}

/* Angles of positions 0, 1, ... of a short example: no example of a micro-batch, and none in the cache, has more. */
static tm_status fill_rope(tm_model *m, int32_t which, tm_error *err)
{
    const tm_rope_config *rope = &m->config.rope[which];
    int64_t half = rope->size / 2, rows = m->rope_cos[which].rows, size = tm_dtype_bytes(m->device->real, 1);
    tm_tensor table[2] = {m->rope_cos[which], m->rope_sin[which]};
    if (m->memory->arena[TM_MEM_WEIGHTS].counting) /* nobody looks at them */
        return TM_OK;
    float *frequency = NULL;
    double *angle = NULL;
    char *converted[2] = {NULL, NULL};
    tm_status st = TM_OK;
    TM_GO(TM_NEW(&frequency, half, err));
    TM_GO(TM_NEW(&angle, 2 * half, err));
    for (int k = 0; k < 2; k++)
        TM_GO(tm_alloc((void **)&converted[k], (size_t)(rows * half), (size_t)size, err));
    tm_rope_frequencies(rope, 0, false, frequency);
    for (int64_t p = 0; p < rows; p++) {
        tm_rope_angles(rope, frequency, p, angle, angle + half);
        for (int k = 0; k < 2; k++)
            tm_dtype_convert(converted[k] + p * half * size, m->device->real, angle + k * half, TM_F64, half);
    }
    for (int k = 0; k < 2; k++)
        m->device->calls->upload(m->device, table[k].data, converted[k], rows * half * size);
out:
    free(frequency);
    free(angle);
    free(converted[0]);
    free(converted[1]);
    return st;
}

/* Room for the angles of a batch with an example beyond the limit: decoder.c fills it. */
static tm_status take_row_angles(tm_model *m, tm_error *err)
{
    int64_t half = m->config.rope[0].size / 2, T = m->settings.max_tokens;
    tm_arena *arena = &m->memory->arena[TM_MEM_SCRATCH];
    for (int k = 0; k < 2; k++) {
        m->row_cos[k] = tm_arena_tensor(arena, m->device->real, T, half);
        m->row_sin[k] = tm_arena_tensor(arena, m->device->real, T, half);
    }
    void *index = tm_arena_take(arena, T * 4);
    m->row_index = index;
    TM_TRY(tm_alloc(&m->rope_staging, (size_t)(T > half ? T : half), 8, err));
    for (int64_t i = 0; i < T; i++)
        ((int32_t *)m->rope_staging)[i] = (int32_t)i;
    m->device->calls->upload(m->device, index, m->rope_staging, T * 4);
    return TM_OK;
}

static tm_status take_rope(tm_model *m, tm_error *err)
{
    int64_t positions = m->settings.max_tokens > m->settings.cache_tokens ? m->settings.max_tokens : m->settings.cache_tokens;
    for (int32_t i = 0; i < m->config.ropes; i++) {
        m->rope_cos[i] = tm_arena_tensor(&m->memory->arena[TM_MEM_WEIGHTS], m->device->real, positions, m->config.rope[i].size / 2);
        m->rope_sin[i] = tm_arena_tensor(&m->memory->arena[TM_MEM_WEIGHTS], m->device->real, positions, m->config.rope[i].size / 2);
        TM_TRY(fill_rope(m, i, err));
    }
    return m->config.ropes && m->config.rope[0].limit < positions ? take_row_angles(m, err) : TM_OK;
}

static tm_status take_cache(tm_model *m, tm_error *err)
{
    const tm_model_config *c = &m->config;
    int64_t rows = m->settings.cache_tokens * m->settings.cache_slots;
    TM_TRY(TM_NEW(&m->cache_k, c->layers, err));
    TM_TRY(TM_NEW(&m->cache_v, c->layers, err));
    for (int64_t i = 0; i < c->layers; i++) {
        m->cache_k[i] = tm_arena_tensor(&m->memory->arena[TM_MEM_ACTIVATIONS], m->settings.act, rows, c->kv_heads * c->head_size);
        m->cache_v[i] = tm_arena_tensor(&m->memory->arena[TM_MEM_ACTIVATIONS], m->settings.act, rows, c->kv_heads * c->head_size);
    }
    return TM_OK;
}

/* What a bank of registers needs: all its modules have one rank. */
static tm_status take_gates(tm_model *m, tm_error *err)
{
    int64_t T = m->settings.max_tokens, r = m->gates * m->gate_width;
    tm_arena *arena = &m->memory->arena[TM_MEM_SCRATCH];
    if (!m->gates)
        return TM_OK;
    m->linear.gated = tm_arena_tensor(arena, m->device->real, T, 2 * r);
    m->linear.gated_xa = tm_arena_tensor(arena, m->device->real, T, r);
    if (m->settings.train)
        m->linear.dgated = tm_arena_tensor(arena, m->device->real, T, 2 * r);
    return tm_identity_take(&m->memory->arena[TM_MEM_WEIGHTS], m->device, m->replicas, r, &m->linear.identity, err);
}

static int64_t aligned(int64_t bytes) { return (bytes + TM_ALIGN - 1) / TM_ALIGN * TM_ALIGN; }

/* What a device may need at once for a group of T rows: what its deltas want, and its weight in the activations' type
 * where it is not stored so. */
static int64_t group_workspace(const tm_model *m, const tm_linear_group *group, int64_t T, int64_t factor)
{
    int64_t r[TM_GROUP_MAX], out[TM_GROUP_MAX], bytes = 0;
    int32_t parts = 0;
    bool drops = false;
    for (int32_t i = 0; i < group->count; i++) {
        const tm_lora *lora = group->module[i]->lora;
        if (!lora)
            continue;
        r[parts] = lora->r * factor;
        out[parts++] = group->module[i]->out;
        drops |= lora->dropout > 0;
    }
    if (group->weight.dtype != m->settings.act)
        bytes = aligned(tm_dtype_bytes(m->settings.act, group->in * group->out));
    return bytes + tm_lent_for_deltas(parts, r, out, group->in, group->out, m->replicas, m->settings.train, drops, T);
}

int64_t tm_model_workspace(const tm_model *m, int64_t factor)
{
    if (!m->device->traits.borrows || m->settings.act == m->device->real)
        return 0;
    int64_t T = m->settings.max_tokens, width = m->config.width, inside = m->embed_lora ? m->embed_lora->r * factor : 0;
    int64_t bytes = group_workspace(m, &m->head_group, T, factor);
    /* On the embeddings and in bottlenecks one factor is an identity. */
    for (int k = 0; k < 2; k++, inside = m->bottleneck.size) {
        int64_t need = tm_lent_for_deltas(inside > 0, &inside, &width, width, width, m->replicas, m->settings.train, false, T);
        bytes = need > bytes ? need : bytes;
    }
    for (int64_t i = 0; i < m->config.layers; i++) {
        const tm_linear_group *group[] = {&m->block[i].qkv, &m->block[i].o, &m->block[i].gate_up, &m->block[i].down};
        for (int k = 0; k < 4; k++) {
            int64_t need = group_workspace(m, group[k], T, factor);
            bytes = need > bytes ? need : bytes;
        }
    }
    return bytes;
}

static void lend_workspace(tm_model *m)
{
    int64_t bytes = tm_model_workspace(m, 1);
    if (bytes)
        m->device->calls->lend(m->device, tm_arena_take(&m->memory->arena[TM_MEM_WORKSPACE], bytes), bytes);
}

tm_status tm_model_allocate(tm_model *m, const tm_model_settings *settings, tm_error *err)
{
    m->settings = *settings;
    if (m->settings.cache_tokens && !m->settings.cache_slots)
        m->settings.cache_slots = 1;
    m->linear.device = m->device;
    m->linear.replicas = m->replicas;
    m->first_trained = trained_layer(m);
    take_weights(m);
    m->bottleneck.device = m->device;
    TM_TRY(take_gates(m, err));
    TM_TRY(tm_embed_allocate(m, err));
    TM_TRY(tm_bottleneck_context_take(&m->bottleneck, m->memory, m->replicas, settings->max_tokens, err));
    TM_TRY(take_activations(m, err));
    take_scratch(m);
    lend_workspace(m);
    TM_TRY(take_rope(m, err));
    return settings->cache_tokens ? take_cache(m, err) : TM_OK;
}

tm_linear *tm_model_linear(tm_model *m, int64_t i)
{
    if (i < m->config.layers * TM_SLOTS)
        return &m->block[i / TM_SLOTS].slot[i % TM_SLOTS];
    return i == m->config.layers * TM_SLOTS ? &m->head : NULL;
}

tm_status tm_model_fit_batch(const tm_model *m, tm_batch *b, tm_error *err)
{
    b->gates = m->gates;
    b->gate_width = m->gate_width;
    if (m->gates) {
        int64_t width = m->gates * m->gate_width;
        b->gate = tm_arena_tensor(&m->memory->arena[TM_MEM_BATCH], m->device->real, b->max_tokens, width);
        TM_TRY(tm_alloc(&b->host_gate, (size_t)(b->max_tokens * width), 8, err));
    }
    b->replicas_wanted = m->bottleneck.size > 0;
    b->table_rows = m->embed_lora ? m->config.vocab : 0;
    b->prefix = m->prompt ? (int32_t)m->prompt->rows : 0;
    b->cache_tokens = m->settings.cache_tokens;
    return TM_OK;
}

/* --- Values --- */

tm_status tm_param_write(tm_model *m, tm_param *p, int32_t replica, const void *data, tm_dtype dtype, tm_error *err)
{
    tm_tensor part = tm_param_part(p, p->value, replica);
    int64_t n = tm_param_count(p);
    if (dtype == part.dtype) {
        m->device->calls->upload(m->device, part.data, data, tm_dtype_bytes(dtype, n));
        return TM_OK;
    }
    void *converted;
    TM_TRY(tm_alloc(&converted, (size_t)n, (size_t)tm_dtype_bytes(part.dtype, 1), err));
    tm_dtype_convert(converted, part.dtype, data, dtype, n);
    m->device->calls->upload(m->device, part.data, converted, tm_dtype_bytes(part.dtype, n));
    free(converted);
    return TM_OK;
}

tm_status tm_param_read(tm_model *m, const tm_param *p, tm_tensor t, int32_t replica, void *data, tm_dtype dtype, tm_error *err)
{
    tm_tensor part = tm_param_part(p, t, replica);
    int64_t n = tm_param_count(p);
    if (dtype == part.dtype) {
        m->device->calls->download(m->device, data, part.data, tm_dtype_bytes(dtype, n));
        return TM_OK;
    }
    void *raw;
    TM_TRY(tm_alloc(&raw, (size_t)n, (size_t)tm_dtype_bytes(part.dtype, 1), err));
    m->device->calls->download(m->device, raw, part.data, tm_dtype_bytes(part.dtype, n));
    tm_dtype_convert(data, dtype, raw, part.dtype, n);
    free(raw);
    return TM_OK;
}

const tm_st_tensor *tm_model_stored(const tm_model *m, const tm_safetensors *file, const char *name)
{
    char other[256];
    const tm_st_tensor *stored = tm_safetensors_find(file, name);
    for (int i = 0; !stored && tm_family_alias(m->config.family, name, i, other, sizeof other); i++)
        stored = tm_safetensors_find(file, other);
    return stored;
}

/* Rows and columns as the file has them. */
static int64_t file_rows(const tm_param *p) { return p->turned ? p->cols : p->rows; }
static int64_t file_cols(const tm_param *p) { return p->turned ? p->rows : p->cols; }

static tm_status check_stored(const tm_param *p, const tm_st_tensor *stored, const char *path, tm_error *err)
{
    if (!stored)
        return tm_fail(err, TM_INPUT, "%s: tensor %s is missing", path, p->name);
    bool float_type = stored->dtype == TM_F32 || stored->dtype == TM_F16 || stored->dtype == TM_BF16 || stored->dtype == TM_F64;
    if (!float_type)
        return tm_fail(err, TM_UNSUPPORTED, "%s: tensor %s is of type %s, expected F32, BF16, F16 or F64", path, p->name, tm_dtype_name(stored->dtype));
    bool fits = p->ndim == 1 ? stored->ndim == 1 && stored->shape[0] == p->cols
                             : stored->ndim == 2 && stored->shape[0] == file_rows(p) && stored->shape[1] == file_cols(p);
    if (!fits)
        return tm_fail(err, TM_INPUT, "%s: tensor %s has %d dimensions [%lld, %lld], config.json says [%lld, %lld]", path, p->name, stored->ndim,
                       (long long)(stored->ndim > 0 ? stored->shape[0] : 0), (long long)(stored->ndim > 1 ? stored->shape[1] : 0),
                       (long long)(p->ndim == 1 ? p->cols : file_rows(p)), (long long)(p->ndim == 1 ? 0 : file_cols(p)));
    return TM_OK;
}

/* Tensors that files carry beside the parameters and that say nothing new: rope's frequencies, causal masks, and the
 * head of a tied model. */
static bool harmless(const tm_model *m, const char *name)
{
    static const char *const buffers[] = {".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"};
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        if (n > strlen(buffers[i]) && strcmp(name + n - strlen(buffers[i]), buffers[i]) == 0)
            return true;
    return m->config.tied && strncmp(name, m->head.name, strlen(m->head.name)) == 0;
}

/* Whether the tensor is one that some parameter was read from. */
static bool used(const tm_model *m, const tm_safetensors *file, const tm_st_tensor *t)
{
    char own[512];
    const char *name = tm_family_own(m->config.family, t->name, own, sizeof own) ? own : t->name;
    return tm_params_find(&m->params, name) && tm_model_stored(m, file, name) == t;
}

/* [rows, cols] to [cols, rows], elements of `size` bytes. */
static void turn(void *to, const void *from, int64_t rows, int64_t cols, int64_t size)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            memcpy((char *)to + (j * rows + i) * size, (const char *)from + (i * cols + j) * size, (size_t)size);
}

tm_status tm_param_load(tm_model *m, tm_param *p, const tm_st_tensor *stored, const char *path, tm_error *err)
{
    tm_status st = TM_OK;
    void *buffer = NULL, *other = NULL;
    const void *values;
    TM_TRY(check_stored(p, stored, path, err));
    int64_t size = tm_dtype_bytes(stored->dtype, 1);
    TM_TRY(tm_st_values(stored, &buffer, &values, err));
    if (p->turned) {
        TM_GO(tm_alloc(&other, (size_t)stored->count, (size_t)size, err));
        turn(other, values, p->cols, p->rows, size);
        values = other;
    }
    st = tm_param_write(m, p, 0, values, stored->dtype, err);
out:
    free(other);
    free(buffer);
    return st;
}

tm_status tm_param_export(tm_model *m, const tm_param *p, void *data, tm_dtype dtype, tm_error *err)
{
    void *other;
    int64_t size = tm_dtype_bytes(dtype, 1);
    if (!p->turned)
        return tm_param_read(m, p, p->value, 0, data, dtype, err);
    TM_TRY(tm_alloc(&other, (size_t)tm_param_count(p), (size_t)size, err));
    tm_status st = tm_param_read(m, p, p->value, 0, other, dtype, err);
    if (st == TM_OK)
        turn(data, other, p->rows, p->cols, size);
    free(other);
    return st;
}

/* A tied head that is trained apart starts as a copy. */
static void part_head(tm_model *m)
{
    if (m->head.weight->added)
        TM_RUN(m->device, cast, m->embed->value, m->head.weight->value);
}

tm_status tm_model_load(tm_model *m, const tm_safetensors *file, const char *path, tm_error *err)
{
    for (int64_t i = 0; i < m->params.count; i++) {
        tm_param *p = m->params.item[i];
        if (p->added)
            continue;
        const tm_st_tensor *stored = tm_model_stored(m, file, p->name);
        TM_TRY(tm_param_load(m, p, stored, path, err));
    }
    for (int64_t i = 0; i < tm_safetensors_count(file); i++) {
        const tm_st_tensor *t = tm_safetensors_at(file, i);
        if (!used(m, file, t) && !harmless(m, t->name) && !tm_family_beside(m->config.family, t->name))
            return tm_fail(err, TM_INPUT, "%s: tensor %s is not part of a %s model with this config.json", path, t->name, m->config.family->model_type);
    }
    part_head(m);
    return TM_OK;
}

tm_status tm_model_init_random(tm_model *m, uint64_t seed, tm_error *err)
{
    for (int64_t i = 0; i < m->params.count; i++) {
        tm_param *p = m->params.item[i];
        if (p->added)
            continue;
        int64_t n = tm_param_count(p);
        float *value;
        TM_TRY(TM_NEW(&value, n + 1, err));
        uint64_t key = tm_philox_key(seed, TM_PURPOSE_INIT, (uint32_t)i, 1);
        bool normal = p->kind == TM_PARAM_MATRIX || p->kind == TM_PARAM_EMBEDDING;
        bool ones = p->kind == TM_PARAM_NORM && m->config.family->norm_kind != TM_NORM_RMS_OFFSET;
        double std = m->config.init_std * p->init_scale;
        for (int64_t j = 0; j < n; j += 2) {
            double z[2] = {ones, ones};
            if (normal) {
                tm_normals(tm_philox_at(key, (uint32_t)(j / 2), (uint32_t)(j >> 33), 0, 0).word, z);
                z[0] *= std;
                z[1] *= std;
            }
            value[j] = (float)z[0];
            value[j + 1] = (float)z[1];
        }
        if (p == m->embed && m->config.padding >= 0)
            memset(value + m->config.padding * p->cols, 0, (size_t)p->cols * sizeof *value);
        tm_status st = tm_param_write(m, p, 0, value, TM_F32, err);
        free(value);
        TM_TRY(st);
    }
    part_head(m);
    return TM_OK;
}
