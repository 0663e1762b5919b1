/* O-LoRA (2310.14152): lambda sum |A_old A^T| keeps what the new A reads away from what the A of earlier tasks read. The earlier adapters
 * only lend their A here: what they learned is in the base (temper merge) or is loaded beside this one. */
#include "io/adapter.h"
#include "keep/keep.h"

#include <stdlib.h>

typedef struct pair { /* an adapted module, and the A of one earlier adapter on it */
    const tm_linear *module;
    const tm_st_tensor *stored; /* in a file of the list */
    tm_tensor old_a;            /* [q, in] real */
} pair;

typedef struct orthogonal {
    tm_safetensors **file; /* [files], open while it lives */
    int64_t files, pairs;
    pair *pair;
    size_t capacity;
} orthogonal;

static void orthogonal_destroy(void *state)
{
    orthogonal *o = state;
    for (int64_t i = 0; i < o->files; i++)
        tm_safetensors_close(o->file[i]);
    free(o->file);
    free(o->pair);
    free(o);
}

static tm_status add_pair(orthogonal *o, tm_trainer *t, const char *dir, const tm_linear *module, const tm_st_tensor *stored, tm_error *err)
{
    bool floats = stored->dtype == TM_F32 || stored->dtype == TM_F16 || stored->dtype == TM_BF16 || stored->dtype == TM_F64;
    if (!floats || stored->ndim != 2 || stored->shape[0] < 1 || stored->shape[1] != module->in)
        return tm_fail(err, TM_INPUT, "keep.orthogonal.previous: %s: %s is [%lld, %lld] of %s, the module takes %lld inputs: expected floats [rank, %lld]", dir, stored->name,
                       (long long)stored->shape[0], (long long)(stored->ndim > 1 ? stored->shape[1] : 0), tm_dtype_name(stored->dtype), (long long)module->in, (long long)module->in);
    TM_TRY(TM_GROW(&o->pair, &o->capacity, o->pairs + 1, err));
    o->pair[o->pairs++] = (pair){module, stored, tm_arena_tensor(&t->memory.arena[TM_MEM_KEEP], t->device->real, stored->shape[0], module->in)};
    return TM_OK;
}

/* The A of every module that both adapters have. */
static tm_status add_adapter(orthogonal *o, tm_trainer *t, const char *dir, tm_error *err)
{
    char text[4096];
    tm_adapter_config config;
    TM_TRY(tm_adapter_config_read(dir, &config, err)); /* that it is LoRA */
    tm_adapter_config_deinit(&config);
    if (snprintf(text, sizeof text, "%s/adapter_model.safetensors", dir) >= (int)sizeof text)
        return tm_fail(err, TM_RECIPE, "keep.orthogonal.previous: %.200s...: the path is too long", dir);
    TM_TRY(tm_safetensors_open(text, &o->file[o->files], err));
    const tm_safetensors *file = o->file[o->files++];
    int64_t before = o->pairs;
    tm_linear *module;
    for (int64_t i = 0; (module = tm_model_linear(&t->model, i)); i++) {
        if (!module->lora)
            continue;
        snprintf(text, sizeof text, TM_PEFT_PREFIX "%s.lora_A.weight", module->name);
        const tm_st_tensor *stored = tm_safetensors_find(file, text);
        if (stored)
            TM_TRY(add_pair(o, t, dir, module, stored, err));
    }
    return o->pairs > before ? TM_OK : tm_fail(err, TM_RECIPE, "keep.orthogonal.previous: %s has none of the modules that this recipe adapts: nothing would be kept apart", dir);
}

static tm_status orthogonal_begin(void *state, tm_trainer *t, tm_error *err)
{
    const orthogonal *o = state;
    for (int64_t i = 0; i < o->pairs; i++) {
        const pair *p = &o->pair[i];
        void *value;
        TM_TRY(tm_alloc(&value, (size_t)p->stored->count, 8, err));
        tm_dtype_convert(value, p->old_a.dtype, p->stored->data, p->stored->dtype, p->stored->count);
        t->device->calls->upload(t->device, p->old_a.data, value, tm_dtype_bytes(p->old_a.dtype, p->stored->count));
        tm_status st = t->device->calls->sync(t->device, err);
        free(value);
        TM_TRY(st);
    }
    return TM_OK;
}

static tm_status orthogonal_penalty(void *state, tm_trainer *t, tm_error *err)
{
    const orthogonal *o = state;
    (void)err;
    for (int64_t i = 0; i < o->pairs; i++)
        for (int32_t r = 0; r < t->run->replicas; r++) {
            const tm_param *a = o->pair[i].module->lora->a;
            TM_RUN(t->device, overlap, o->pair[i].old_a, tm_param_part(a, a->value, r), t->recipe->orthogonal_lambda, tm_param_part(a, a->grad, r), t->penalty + r);
        }
    return TM_OK;
}

tm_status tm_orthogonal_add(tm_trainer *t, tm_error *err)
{
    const tm_recipe *r = t->recipe;
    const tm_names *previous = &r->orthogonal_previous;
    if (!previous->count || r->orthogonal_lambda == 0)
        return TM_OK;
    if (r->method != TM_METHOD_LORA || t->model.gates)
        return tm_fail(err, TM_RECIPE, "keep.orthogonal.previous keeps the A of LoRA apart from earlier ones: it needs method: lora, without registers");
    orthogonal *o;
    tm_status st = TM_OK;
    TM_TRY(TM_NEW(&o, 1, err));
    TM_GO(TM_NEW(&o->file, previous->count, err));
    for (int64_t i = 0; i < previous->count; i++)
        TM_GO(add_adapter(o, t, previous->item[i], err));
    tm_hook hook = {.name = "orthogonal", .replicas = true, .state = o, .begin = orthogonal_begin, .penalty = orthogonal_penalty, .destroy = orthogonal_destroy};
    st = tm_trainer_add_hook(t, &hook, err);
out:
    if (st != TM_OK)
        orthogonal_destroy(o);
    return st;
}
