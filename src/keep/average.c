/* Averages of weights along a run: see average.h.
 *
 * 1. What is averaged is what a model computes with: weights, and of LoRA dW = s B A, never A and B apart. A sum of dW is
 *    the product of stacked matrices, so every averaged A and B has its place in a stack from the start; when the run ends
 *    B's columns get their weights and the stack becomes the adapter, of as many times the rank.
 * 2. Which weights are averaged, and where they lie in the stack, follows from the step's number alone: a checkpoint
 *    holds tensors only.
 * 3. Averages are in the device's real type and change by fused multiply-adds in a fixed order. */
#include "keep/average.h"

#include "keep/kept.h"

#include <math.h>
#include <stdlib.h>

/* EMA: what weighs less than this share of the newest is left out of a stack. SWA: the most a stack holds. */
#define LEAST_SHARE (1.0 / 256)
enum { MOST_SWA = 8 };

typedef struct stack { /* of one module's low-rank matrices */
    tm_lora *lora;
    tm_tensor a, b;          /* [R * slots * r, in], of embeddings [R * V, slots * r]; [R * out, slots * r] */
    tm_param plain_a, plain_b; /* as trained; of use when `stacked` */
} stack;

typedef struct average {
    int kind;
    int64_t every, first;    /* steps between two weights, and the first step that may be one of them */
    int64_t slots;           /* of every stack */
    stack *stack;
    tm_kept *kept;           /* what is averaged in place, or Lookahead's slow weights; then the stacks */
    tm_param **param;        /* [in_place] of kept */
    int64_t stacks, in_place;
    tm_wide wide;
    bool stacked;
    double *plain_config;    /* rank and alpha of the adapter as trained, then of its patterns */
} average;

/* --- Which weights --- */

/* How many weights were averaged by then. */
static int64_t updates_by(const average *s, int64_t step) { return step < s->first ? 0 : step / s->every - (s->first - 1) / s->every; }
/* The same with EMA's first, the start. */
static int64_t taken_by(const average *s, int64_t step) { return updates_by(s, step) + (s->kind == TM_AVERAGE_EMA); }

static bool takes_at(const average *s, int64_t step) { return step % s->every == 0 && step >= s->first; }

/* The weight in the average of number i, one of the newest `slots` of `taken`. */
static double weight_of(const average *s, const tm_recipe *recipe, int64_t i, int64_t taken)
{
    if (s->kind == TM_AVERAGE_SWA)
        return 1.0 / (double)taken;
    double decay = recipe->average_decay, all = 0, own = 0, power = 1;
    for (int64_t k = taken - 1; k >= 0 && taken - k <= s->slots; k--, power *= decay) {
        double weight = k == 0 ? power : (1 - decay) * power; /* the start has what all before it would have */
        all += weight;
        own = k == i ? weight : own;
    }
    return own / all;
}

static int64_t slots_of_ema(const tm_recipe *recipe, int64_t steps)
{
    int64_t most = 1;
    for (double power = recipe->average_decay; power >= LEAST_SHARE; power *= recipe->average_decay)
        most++;
    int64_t all = 1 + steps / recipe->average_every;
    return most < all || steps == 0 ? most : all; /* 0: a plan without data */
}

/* --- Taking --- */

/* The place of number i in a stack, for one replica. */
static void place_of(const average *s, const stack *k, const tm_trainer *t, int32_t replica, int64_t i, tm_tensor *a, tm_tensor *b)
{
    int64_t R = t->run->replicas, slot = i % s->slots, r = k->b.cols / s->slots;
    tm_tensor mine = tm_tensor_rows(k->a, replica * (k->a.rows / R), k->a.rows / R);
    *a = k->lora->a->turned ? tm_tensor_cols(mine, slot * r, r) : tm_tensor_rows(mine, slot * r, r);
    *b = tm_tensor_cols(tm_tensor_rows(k->b, replica * (k->b.rows / R), k->b.rows / R), slot * r, r);
}

static void put_on_stacks(const average *s, tm_trainer *t, int64_t i)
{
    for (int64_t k = 0; k < s->stacks; k++)
        for (int32_t r = 0; r < t->run->replicas; r++) {
            const tm_lora *lora = s->stack[k].lora;
            tm_tensor a, b;
            place_of(s, &s->stack[k], t, r, i, &a, &b);
            TM_RUN(t->device, cast, tm_param_part(lora->a, lora->a->value, r), a);
            TM_RUN(t->device, cast, tm_param_part(lora->b, lora->b->value, r), b);
        }
}

/* to = (1 - share) to + share * from; a share of 1 gives `from` to the bit. */
static void move_towards(tm_device *d, double share, tm_tensor from, tm_tensor to)
{
    TM_RUN(d, axpy, -share, to, to);
    TM_RUN(d, axpy, share, from, to);
}

static tm_status average_step(void *state, tm_trainer *t, tm_error *err)
{
    average *s = state;
    (void)err;
    if (!takes_at(s, t->step))
        return TM_OK;
    int64_t taken = taken_by(s, t->step);
    double share = s->kind == TM_AVERAGE_EMA ? 1 - t->recipe->average_decay : 1.0 / (double)taken;
    for (int64_t i = 0; i < s->in_place; i++)
        move_towards(t->device, share, s->param[i]->value, s->kept[i].value);
    put_on_stacks(s, t, taken - 1);
    return TM_OK;
}

static tm_status lookahead_update(void *state, tm_trainer *t, tm_error *err)
{
    average *s = state;
    (void)err;
    if ((t->step + 1) % s->every != 0)
        return TM_OK;
    for (int64_t i = 0; i < s->in_place; i++) {
        move_towards(t->device, t->recipe->average_alpha, s->param[i]->value, s->kept[i].value);
        TM_RUN(t->device, cast, s->kept[i].value, s->param[i]->value);
    }
    return TM_OK;
}

static tm_status average_begin(void *state, tm_trainer *t, tm_error *err)
{
    average *s = state;
    (void)err;
    for (int64_t i = 0; i < s->in_place; i++)
        TM_RUN(t->device, cast, s->param[i]->value, s->kept[i].value);
    for (int64_t k = 0; k < s->stacks; k++) { /* slots that nothing comes to add nothing */
        TM_RUN(t->device, fill, s->stack[k].a, 0);
        TM_RUN(t->device, fill, s->stack[k].b, 0);
    }
    if (s->kind == TM_AVERAGE_EMA)
        put_on_stacks(s, t, 0);
    return TM_OK;
}

/* --- The result --- */

static void weigh(const average *s, tm_trainer *t, int64_t taken)
{
    for (int64_t k = 0; k < s->stacks; k++)
        for (int32_t r = 0; r < t->run->replicas; r++)
            for (int64_t i = taken > s->slots ? taken - s->slots : 0; i < taken; i++) {
                tm_tensor a, b;
                place_of(s, &s->stack[k], t, r, i, &a, &b);
                TM_RUN(t->device, axpy, weight_of(s, t->recipe, i, taken) - 1, b, b);
            }
}

/* Rank and alpha of the config, so that alpha / r, or alpha / sqrt(r), stays. */
static tm_status scale_config(average *s, tm_adapter_config *config, tm_error *err)
{
    double factor = (double)s->slots, of_alpha = config->use_rslora ? sqrt(factor) : factor, *plain;
    TM_TRY(TM_NEW(&plain, 2 + config->rank_patterns + config->alpha_patterns, err));
    s->plain_config = plain;
    *plain++ = (double)config->r;
    *plain++ = config->alpha;
    config->r *= s->slots;
    config->alpha *= of_alpha;
    for (int64_t i = 0; i < config->rank_patterns; i++) {
        *plain++ = config->rank_pattern[i].value;
        config->rank_pattern[i].value *= factor;
    }
    for (int64_t i = 0; i < config->alpha_patterns; i++) {
        *plain++ = config->alpha_pattern[i].value;
        config->alpha_pattern[i].value *= of_alpha;
    }
    return TM_OK;
}

static void become(tm_param *p, const average *s, bool by_rows, tm_tensor value)
{
    p->value = value;
    *(by_rows ? &p->rows : &p->cols) *= s->slots;
}

static tm_status average_end(void *state, tm_trainer *t, tm_error *err)
{
    average *s = state;
    int64_t taken = taken_by(s, t->step);
    if (t->verdict == TM_ROLL_BACK)
        return TM_OK;
    if (!updates_by(s, t->step))
        return tm_trainer_warn(t, err, "keep.average: the run ended at step %lld, before any weights were averaged (from step %lld on, every %lld): the result is not an average",
                               (long long)t->step, (long long)s->first, (long long)s->every);
    for (int64_t i = 0; i < s->in_place; i++)
        TM_RUN(t->device, cast, s->kept[i].value, s->param[i]->value);
    t->result_changed = true;
    if (!s->stacks)
        return TM_OK;
    weigh(s, t, taken);
    TM_TRY(scale_config(s, &t->tuning.adapter, err));
    for (int64_t k = 0; k < s->stacks; k++) {
        stack *one = &s->stack[k];
        one->plain_a = *one->lora->a;
        one->plain_b = *one->lora->b;
        become(one->lora->a, s, !one->lora->a->turned, one->a);
        become(one->lora->b, s, false, one->b);
        one->lora->r *= (int32_t)s->slots;
    }
    tm_wide_use(&s->wide, &t->model);
    s->stacked = true;
    return TM_OK;
}

static tm_status average_undo(void *state, tm_trainer *t, tm_error *err)
{
    average *s = state;
    (void)err;
    if (!s->stacked)
        return TM_OK;
    for (int64_t k = 0; k < s->stacks; k++) {
        stack *one = &s->stack[k];
        *one->lora->a = one->plain_a;
        *one->lora->b = one->plain_b;
        one->lora->r /= (int32_t)s->slots;
    }
    tm_adapter_config *config = &t->tuning.adapter;
    const double *plain = s->plain_config;
    config->r = (int64_t)*plain++;
    config->alpha = *plain++;
    for (int64_t i = 0; i < config->rank_patterns; i++)
        config->rank_pattern[i].value = *plain++;
    for (int64_t i = 0; i < config->alpha_patterns; i++)
        config->alpha_pattern[i].value = *plain++;
    s->stacked = false;
    return TM_OK;
}

/* --- Building --- */

static tm_status average_save(void *state, tm_trainer *t, int32_t replica, const char *folder, tm_error *err)
{
    const average *s = state;
    return tm_kept_write(t, s->kept, s->in_place + 2 * s->stacks, replica, folder, "average.safetensors", err);
}

static tm_status average_load(void *state, tm_trainer *t, int32_t replica, const char *folder, tm_error *err)
{
    const average *s = state;
    return tm_kept_read(t, s->kept, s->in_place + 2 * s->stacks, replica, folder, "average.safetensors", err);
}

static void average_destroy(void *state)
{
    average *s = state;
    free(s->stack);
    free(s->kept);
    free(s->param);
    free(s->plain_config);
    free(s);
}

static tm_lora *lora_at(const tm_model *m, int64_t i)
{
    int64_t slots = m->config.layers * TM_SLOTS;
    return i < slots ? m->block[i / TM_SLOTS].slot[i % TM_SLOTS].lora : i == slots ? m->head.lora : m->embed_lora;
}

static tm_status check(const tm_trainer *t, tm_error *err)
{
    if (t->recipe->average_kind == TM_AVERAGE_LOOKAHEAD)
        return TM_OK;
    if (t->tuning.registers.count)
        return tm_fail(err, TM_UNSUPPORTED, "keep.average: the registers of a bank keep their rank and cannot be averaged; leave lora.registers out, or use kind: lookahead");
    for (int64_t i = 0; i <= t->model.config.layers * TM_SLOTS; i++)
        if (lora_at(&t->model, i) && lora_at(&t->model, i)->magnitude)
            return tm_fail(err, TM_UNSUPPORTED, "keep.average: what DoRA does to weights has no low-rank average; set lora.use_dora: false, or use kind: lookahead");
    return TM_OK;
}

/* Which steps are averaged, and the places that stacks have for them. */
static tm_status settle_steps(average *s, tm_trainer *t, bool stacks, tm_error *err)
{
    int64_t steps = t->run->steps;
    bool swa = s->kind == TM_AVERAGE_SWA;
    int64_t from = swa ? (int64_t)ceil(t->recipe->average_start * (double)steps) : 1;
    s->first = from > 1 ? from : 1;
    while (swa && stacks && updates_by(s, steps) > MOST_SWA)
        s->every++;
    s->slots = !swa ? slots_of_ema(t->recipe, steps) : steps > 0 ? updates_by(s, steps) : MOST_SWA;
    if (steps > 0 && !updates_by(s, steps))
        return tm_fail(err, TM_RECIPE, "keep.average: no step from %lld to %lld is a multiple of every: %lld; set a smaller every", (long long)s->first, (long long)steps, (long long)s->every);
    if (s->every == t->recipe->average_every)
        return TM_OK;
    return tm_trainer_warn(t, err, "keep.average.every: %lld would put more than %d adapters on one another; every %lld steps one is averaged", (long long)t->recipe->average_every,
                           MOST_SWA, (long long)s->every);
}

static bool is_stacked(const average *s, const tm_param *p)
{
    return s->kind != TM_AVERAGE_LOOKAHEAD && (p->kind == TM_PARAM_LORA_A || p->kind == TM_PARAM_LORA_B);
}

static tm_status take_memory(average *s, tm_trainer *t, tm_error *err)
{
    tm_arena *arena = &t->memory.arena[TM_MEM_KEEP];
    tm_dtype real = t->device->real;
    tm_model *m = &t->model;
    TM_TRY(TM_NEW(&s->kept, t->trained_count, err));
    TM_TRY(TM_NEW(&s->param, t->trained_count, err));
    TM_TRY(TM_NEW(&s->stack, t->trained_count, err));
    for (int64_t i = 0; i < m->params.count; i++) {
        tm_param *p = m->params.item[i];
        if (!p->trained || is_stacked(s, p))
            continue;
        s->param[s->in_place] = p;
        s->kept[s->in_place++] = (tm_kept){p->name, tm_arena_tensor(arena, real, p->rows * p->replicas, p->cols)};
    }
    tm_kept *kept = s->kept + s->in_place;
    for (int64_t i = 0; s->kind != TM_AVERAGE_LOOKAHEAD && i < m->config.layers * TM_SLOTS + 2; i++) {
        tm_lora *lora = lora_at(m, i);
        if (!lora)
            continue;
        const tm_param *a = lora->a, *b = lora->b;
        stack *one = &s->stack[s->stacks++];
        one->lora = lora;
        one->a = tm_arena_tensor(arena, real, a->rows * a->replicas * (a->turned ? 1 : s->slots), a->cols * (a->turned ? s->slots : 1));
        one->b = tm_arena_tensor(arena, real, b->rows * b->replicas, b->cols * s->slots);
        *kept++ = (tm_kept){a->name, one->a};
        *kept++ = (tm_kept){b->name, one->b};
    }
    return s->stacks ? tm_wide_take(m, s->slots, arena, &s->wide, err) : TM_OK;
}

static tm_status settle(average *s, tm_trainer *t, tm_error *err)
{
    bool stacks = false;
    for (int64_t i = 0; i < t->model.config.layers * TM_SLOTS + 2; i++)
        stacks |= lora_at(&t->model, i) != NULL;
    TM_TRY(check(t, err));
    if (s->kind != TM_AVERAGE_LOOKAHEAD)
        TM_TRY(settle_steps(s, t, stacks, err));
    return take_memory(s, t, err);
}

tm_status tm_average_add(tm_trainer *t, tm_error *err)
{
    average *s;
    int kind = t->recipe->average_kind;
    if (kind == TM_AVERAGE_NONE || !t->trained_count)
        return TM_OK;
    TM_TRY(TM_NEW(&s, 1, err));
    *s = (average){.kind = kind, .every = t->recipe->average_every};
    bool looks = kind == TM_AVERAGE_LOOKAHEAD;
    tm_hook hook = {.name = "average", .replicas = true, .state = s, .begin = average_begin, .update = looks ? lookahead_update : NULL, .step = looks ? NULL : average_step,
                    .end = looks ? NULL : average_end, .undo = looks ? NULL : average_undo, .save = average_save, .load = average_load, .destroy = average_destroy};
    tm_status st = settle(s, t, err);
    if (st == TM_OK)
        st = tm_trainer_add_hook(t, &hook, err);
    if (st != TM_OK)
        average_destroy(s);
    return st;
}
