/* The pull to the start: see anchor.h. */
#include "keep/anchor.h"

#include "keep/importance.h"

#include <stdlib.h>

typedef struct anchor_term {
    const tm_param *param;   /* a trained tensor ... */
    const tm_linear *module; /* ... or a module's dW; the other is NULL */
    tm_tensor start;         /* as param's value, all replicas; of dW: A, absent where dW starts as 0 */
    tm_tensor start_b;
    tm_tensor importance;    /* [rows, cols] of one replica, real: shared by all; absent: 1 */
} anchor_term;

typedef struct anchor {
    tm_anchor_settings is;
    anchor_term *term; /* owned */
    int64_t count;
} anchor;

static tm_tensor same_shape(tm_arena *arena, tm_tensor t) { return tm_arena_tensor(arena, t.dtype, t.rows, t.cols); }

static bool is_factor(const tm_param *p) { return p->kind == TM_PARAM_LORA_A || p->kind == TM_PARAM_LORA_B; }

static void add_param(anchor *a, tm_trainer *t, const tm_param *p)
{
    tm_arena *arena = &t->memory.arena[TM_MEM_KEEP];
    anchor_term *term = &a->term[a->count++];
    *term = (anchor_term){.param = p, .start = same_shape(arena, p->value)};
    if (a->is.importances)
        term->importance = tm_arena_tensor(arena, t->device->real, p->rows, p->cols);
}

/* B starts as 0, and with it dW, unless the adapter is continued. */
static void add_module(anchor *a, tm_trainer *t, const tm_linear *module)
{
    tm_arena *arena = &t->memory.arena[TM_MEM_KEEP];
    anchor_term *term = &a->term[a->count++];
    *term = (anchor_term){.module = module};
    if (t->tuning.from) {
        term->start = same_shape(arena, module->lora->a->value);
        term->start_b = same_shape(arena, module->lora->b->value);
    }
    if (a->is.importances)
        term->importance = tm_arena_tensor(arena, t->device->real, module->out, module->in);
}

static tm_status check_modules(tm_trainer *t, const char *key, tm_error *err)
{
    const char *what = t->model.embed_lora ? "on the embedding" : t->model.gates ? "with registers" : NULL;
    tm_linear *module;
    for (int64_t i = 0; (module = tm_model_linear(&t->model, i)); i++)
        if (module->lora && module->lora->magnitude)
            what = "with use_dora";
    return what ? tm_fail(err, TM_UNSUPPORTED, "%s is of dW = scale B A, and LoRA %s changes the model otherwise: leave that out, or leave out %s (keep.ewc can take keep.ewc.space: factors)", key, what, key) : TM_OK;
}

static tm_status list_terms(anchor *a, tm_trainer *t, tm_error *err)
{
    if (!a->is.apart)
        TM_TRY(check_modules(t, a->is.key, err));
    TM_TRY(TM_NEW(&a->term, t->trained_count, err));
    for (int64_t i = 0; i < t->trained_count; i++)
        if (a->is.apart || !is_factor(t->trained_param[i]))
            add_param(a, t, t->trained_param[i]);
    tm_linear *module;
    for (int64_t i = 0; !a->is.apart && (module = tm_model_linear(&t->model, i)); i++)
        if (module->lora)
            add_module(a, t, module);
    return TM_OK;
}

static void copy(tm_trainer *t, tm_tensor from, tm_tensor to)
{
    if (to.data)
        t->device->calls->copy(t->device, to.data, from.data, tm_dtype_bytes(to.dtype, to.rows * to.cols));
}

static tm_status read_importance(tm_trainer *t, const tm_safetensors *file, const char *path, const char *name, tm_tensor to, tm_error *err)
{
    const tm_st_tensor *stored;
    TM_TRY(tm_importances_find(file, path, name, to.rows, to.cols, &stored, err));
    if (to.dtype == TM_F32) {
        t->device->calls->upload(t->device, to.data, stored->data, stored->bytes);
        return TM_OK;
    }
    void *wide;
    TM_TRY(tm_alloc(&wide, (size_t)stored->count, 8, err));
    tm_dtype_convert(wide, to.dtype, stored->data, TM_F32, stored->count);
    t->device->calls->upload(t->device, to.data, wide, tm_dtype_bytes(to.dtype, stored->count));
    free(wide);
    return TM_OK;
}

static tm_status anchor_begin(void *state, tm_trainer *t, tm_error *err)
{
    const anchor *a = state;
    const char *path = t->run->importances;
    tm_safetensors *file = NULL;
    tm_status st = TM_OK;
    if (a->is.importances && !path)
        return tm_fail(err, TM_RECIPE, "%s: there are no importances: give %s.importances, or old data in %s.path", a->is.key, a->is.key, a->is.key);
    if (a->is.importances)
        TM_TRY(tm_importances_open(path, &file, err));
    for (int64_t i = 0; i < a->count && st == TM_OK; i++) {
        const anchor_term *term = &a->term[i];
        char name[300]; /* of a module's own weight, also where the base ties it to another */
        if (term->param) {
            snprintf(name, sizeof name, "%s", term->param->name);
            copy(t, term->param->value, term->start);
        } else {
            snprintf(name, sizeof name, "%s.weight", term->module->name);
            copy(t, term->module->lora->a->value, term->start);
            copy(t, term->module->lora->b->value, term->start_b);
        }
        if (file)
            st = read_importance(t, file, path, name, term->importance, err);
    }
    if (st == TM_OK && file)
        st = t->device->calls->sync(t->device, err); /* the file is read by then */
    tm_safetensors_close(file);
    return st;
}

static tm_lowrank factors(const tm_lora *lora, tm_tensor a, tm_tensor b, int32_t r)
{
    return (tm_lowrank){.a = tm_param_part(lora->a, a, r), .b = tm_param_part(lora->b, b, r), .scale = lora->scale, .module = lora->module};
}

static void pull_module(const anchor *a, tm_trainer *t, const anchor_term *term, int32_t r)
{
    const tm_lora *lora = term->module->lora;
    tm_lowrank now = factors(lora, lora->a->value, lora->b->value, r), start = {0};
    if (term->start.data)
        start = factors(lora, term->start, term->start_b, r);
    TM_RUN(t->device, delta_anchor, &now, term->start.data ? &start : NULL, term->importance, a->is.strength, tm_param_part(lora->a, lora->a->grad, r),
           tm_param_part(lora->b, lora->b->grad, r), t->penalty + r);
}

static tm_status anchor_penalty(void *state, tm_trainer *t, tm_error *err)
{
    const anchor *a = state;
    (void)err;
    for (int64_t i = 0; i < a->count; i++)
        for (int32_t r = 0; r < t->run->replicas; r++) {
            const anchor_term *term = &a->term[i];
            const tm_param *p = term->param;
            if (!p)
                pull_module(a, t, term, r);
            else
                TM_RUN(t->device, anchor, tm_param_part(p, p->value, r), tm_param_part(p, term->start, r), term->importance, a->is.strength,
                       tm_param_part(p, p->grad, r), t->penalty + r);
        }
    return TM_OK;
}

static void anchor_destroy(void *state)
{
    anchor *a = state;
    free(a->term);
    free(a);
}

tm_status tm_anchor_add(tm_trainer *t, const tm_anchor_settings *settings, tm_error *err)
{
    anchor *a;
    TM_TRY(TM_NEW(&a, 1, err));
    a->is = *settings;
    tm_hook hook = {.name = settings->name, .replicas = settings->replicas, .state = a, .begin = anchor_begin, .penalty = anchor_penalty, .destroy = anchor_destroy};
    tm_status st = list_terms(a, t, err);
    if (st == TM_OK)
        st = tm_trainer_add_hook(t, &hook, err);
    if (st != TM_OK)
        anchor_destroy(a);
    return st;
}
