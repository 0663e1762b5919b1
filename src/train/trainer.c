/* The trainer's life and its loop: see trainer.h. */
#include "train/trainer.h"

#include "base/clock.h"
#include "base/exact.h"
#include "base/file.h"
#include "base/json.h"
#include "base/philox.h"
#include "text/tokenizer_gguf.h"
#include "train/micro.h"
#include "train/schedule.h"
#include "train/score.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>

tm_seeds tm_seeds_of(const tm_recipe *recipe)
{
    uint64_t seed = (uint64_t)recipe->seed;
    int64_t given[] = {recipe->seed_init, recipe->seed_order, recipe->seed_dropout, recipe->seed_subset};
    static const tm_purpose purpose[] = {TM_PURPOSE_INIT, TM_PURPOSE_ORDER, TM_PURPOSE_DROPOUT, TM_PURPOSE_SUBSET};
    uint64_t value[4];
    for (int i = 0; i < 4; i++)
        value[i] = given[i] != TM_AUTO_INT ? (uint64_t)given[i] : tm_philox_key(seed, purpose[i], 0, 0);
    return (tm_seeds){value[0], value[1], value[2], value[3]};
}

/* --- Building --- */

static tm_dtype act_dtype(const tm_recipe *recipe, tm_dtype real)
{
    static const tm_dtype half[] = {[TM_PRECISION_BF16] = TM_BF16, [TM_PRECISION_F16] = TM_F16};
    return (recipe->precision == TM_PRECISION_BF16 || recipe->precision == TM_PRECISION_F16) && real == TM_F32 ? half[recipe->precision] : real;
}

static int64_t recompute_layers(const tm_recipe *recipe)
{
    return recipe->recompute == TM_RECOMPUTE_FULL ? INT64_MAX : recipe->recompute == TM_RECOMPUTE_PARTIAL ? recipe->recompute_layers : 0;
}

static bool decays(const tm_recipe *recipe, const tm_param *p) { return recipe->decay == TM_DECAY_ALL || p->ndim == 2; }

/* The trained tensors of every replica, with the optimiser's state. */
static tm_status list_trained(tm_trainer *t, tm_error *err)
{
    const tm_recipe *recipe = t->recipe;
    tm_arena *arena = &t->memory.arena[TM_MEM_OPTIMIZER];
    tm_dtype real = t->device->real;
    int64_t count = 0;
    bool train = !t->run->evaluate, v = train && recipe->optimizer == TM_OPTIM_ADAMW, m = v || (train && recipe->momentum != 0);
    for (int64_t i = 0; i < t->model.params.count; i++) {
        tm_param *p = t->model.params.item[i];
        if (!p->trained)
            continue;
        count++;
        if (m)
            p->m = tm_arena_tensor(arena, real, p->rows * p->replicas, p->cols);
        if (v)
            p->v = tm_arena_tensor(arena, real, p->rows * p->replicas, p->cols);
    }
    TM_TRY(TM_NEW(&t->trained, count * t->run->replicas, err));
    TM_TRY(TM_NEW(&t->trained_param, count, err));
    TM_TRY(TM_NEW(&t->trail, count * t->run->replicas, err));
    t->trained_count = count;
    int64_t blocks = 0;
    for (int32_t r = 0; r < t->run->replicas; r++) {
        int64_t k = 0;
        for (int64_t i = 0; i < t->model.params.count; i++) {
            tm_param *p = t->model.params.item[i];
            if (!p->trained)
                continue;
            t->trained_param[k] = p;
            t->trained[r * count + k++] = (tm_trained){
                .value = tm_param_part(p, p->value, r), .grad = train ? tm_param_part(p, p->grad, r) : tm_tensor_none(),
                .m = m ? tm_param_part(p, p->m, r) : tm_tensor_none(), .v = v ? tm_param_part(p, p->v, r) : tm_tensor_none(),
                .weight_decay = decays(recipe, p) ? (float)recipe->weight_decay : 0, .lr_ratio = p->lr_ratio, .replica = r, .first_block = blocks, .index = (uint32_t)i};
            blocks += (tm_param_count(p) + TM_TRAINED_BLOCK - 1) / TM_TRAINED_BLOCK;
        }
    }
    int64_t bytes = (int64_t)sizeof *t->trained * count * t->run->replicas;
    t->device_trained = tm_arena_take(arena, bytes);
    t->device->calls->upload(t->device, t->device_trained, t->trained, bytes);
    t->device_trail = tm_arena_take(&t->memory.arena[TM_MEM_BATCH], 8 * count * t->run->replicas);
    return TM_OK;
}

/* The set and the metric that train.early_stop.metric names as eval.NAME.METRIC; false: none. A metric that is not known is -1. */
static bool early_stop_of(const tm_trainer *t, const tm_eval_set **set, int *metric)
{
    const char *text = t->recipe->early_stop_metric;
    for (int64_t i = 0; text && i < t->run->eval_count; i++) {
        *set = &t->run->evals[i];
        size_t n = strlen((*set)->entry->name);
        if (strncmp(text, "eval.", 5) != 0 || strncmp(text + 5, (*set)->entry->name, n) != 0 || text[5 + n] != '.')
            continue;
        *metric = tm_metric_named(text + 6 + n, strlen(text + 6 + n));
        return true;
    }
    return false;
}

/* What is not measured never gets better, and would end the run as soon as patience does. */
static tm_status check_early_stop(const tm_trainer *t, tm_error *err)
{
    const tm_eval_set *set;
    int metric;
    if (!early_stop_of(t, &set, &metric))
        return TM_OK;
    const tm_eval_entry *entry = set->entry;
    bool tokens = entry->metric != TM_METRIC_CHOICE, whole = entry->limit == 0;
    if (metric >= 0 && (metric == entry->metric || (tokens && metric <= TM_METRIC_EXACT) || (tokens && whole && metric == TM_METRIC_BITS)))
        return TM_OK;
    return tm_fail(err, TM_RECIPE, "train.early_stop.metric: %s is not measured; expected eval.%s.%s%s%s", t->recipe->early_stop_metric, entry->name, tm_metrics[entry->metric].name,
                   tokens ? ", or loss, accuracy, exact" : "", tokens && whole ? ", bits_per_byte" : "");
}

static tm_status build(tm_trainer *t, tm_error *err)
{
    const tm_run *run = t->run;
    TM_TRY(check_early_stop(t, err));
    TM_TRY(tm_model_create(&t->model, run->model_dir, run->file, run->dtype, t->device, &t->memory, run->replicas, err));
    TM_TRY(tm_tuning_select(&t->tuning, t->recipe, run->method, &t->model, err));
    t->tuning.prompt_ids = run->prompt_ids;
    t->tuning.prompt_id_count = run->prompt_id_count;
    if (run->replicas > 1 && !t->tuning.method->replicas)
        return tm_fail(err, TM_RECIPE, "method %s works for one replica at a time", t->tuning.method->name);
    if (run->replicas > 1 && t->recipe->early_stop_metric)
        return tm_fail(err, TM_RECIPE, "train.early_stop works for one replica at a time");
    tm_dtype act = act_dtype(t->recipe, t->device->real);
    bool half_master = t->recipe->master == TM_MASTER_BF16 && !run->evaluate;
    if (half_master && (act != TM_BF16 || t->recipe->optimizer != TM_OPTIM_ADAMW))
        return tm_fail(err, TM_RECIPE, "train.master: bf16 needs precision: bf16 and train.optimizer: adamw");
    tm_model_settings settings = {.act = act, .half_master = half_master, .max_tokens = run->max_tokens, .train = !run->evaluate,
                                  .recompute_layers = recompute_layers(t->recipe), .offload = t->recipe->offload == TM_OFFLOAD_ACTIVATIONS, .cache_tokens = run->cache_tokens, .cache_slots = run->cache_slots};
    TM_TRY(tm_model_allocate(&t->model, &settings, err));
    TM_TRY(tm_batch_create(&t->batch, &t->memory, t->device, run->max_tokens, run->max_examples, run->replicas, err));
    TM_TRY(tm_model_fit_batch(&t->model, &t->batch, err));
    TM_TRY(tm_gates_set(t, err));
    TM_TRY(list_trained(t, err));
    t->device_params = tm_arena_take(&t->memory.arena[TM_MEM_BATCH], (int64_t)sizeof(tm_step_params) * run->replicas);
    TM_TRY(TM_NEW(&t->params, run->replicas, err));
    TM_TRY(TM_NEW(&t->result, run->replicas, err));
    TM_TRY(TM_NEW(&t->loss_scale, run->replicas, err));
    for (int32_t r = 0; r < run->replicas && act == TM_F16; r++)
        t->loss_scale[r].scale = t->recipe->loss_scale;
    TM_TRY(TM_NEW(&t->host_penalty, run->replicas, err));
    t->penalty = tm_arena_take(&t->memory.arena[TM_MEM_BATCH], (int64_t)sizeof *t->penalty * run->replicas);
    tm_teacher_take_probes(t);
    return run->add_hooks ? run->add_hooks(t, err) : TM_OK;
}

tm_status tm_trainer_create(const tm_run *run, tm_device *device, const int64_t limits[TM_MEM_KINDS], tm_trainer **out, tm_error *err)
{
    tm_trainer *t;
    TM_TRY(TM_NEW(&t, 1, err));
    *t = (tm_trainer){.run = run, .recipe = run->recipe, .device = device, .teacher = TM_TEACHER_NONE, .best_step = -1, .best_checkpoint = -1,
                      .best_metric = INFINITY, .best_checkpoint_metric = INFINITY};
    tm_status st = tm_memory_init(&t->memory, device, limits, err);
    if (st == TM_OK)
        st = build(t, err);
    if (st == TM_OK)
        t->flops = tm_flops_of(&t->model);
    else {
        tm_trainer_destroy(t);
        t = NULL;
    }
    *out = t;
    return st;
}

void tm_trainer_destroy(tm_trainer *t)
{
    if (!t)
        return;
    for (int64_t i = 0; i < t->hook_count; i++)
        if (t->hooks[i].destroy)
            t->hooks[i].destroy(t->hooks[i].state);
    free(t->hooks);
    free(t->trained);
    free(t->trained_param);
    free(t->trail);
    free(t->target);
    free(t->losses);
    tm_gates_drop(t);
    free(t->host_penalty);
    free(t->params);
    free(t->result);
    free(t->loss_scale);
    free(t->items);
    tm_names_deinit(&t->warnings);
    tm_micro_drop(t);
    tm_teacher_drop(&t->teacher);
    tm_batch_destroy(&t->batch);
    tm_tuning_deinit(&t->tuning);
    tm_model_destroy(&t->model);
    tm_memory_deinit(&t->memory);
    free(t);
}

tm_status tm_trainer_add_hook(tm_trainer *t, const tm_hook *hook, tm_error *err)
{
    if (t->run->replicas > 1 && !hook->replicas)
        return tm_fail(err, TM_RECIPE, "keep.%s works for one replica at a time", hook->name);
    tm_hook *grown = realloc(t->hooks, (size_t)(t->hook_count + 1) * sizeof *grown);
    if (!grown)
        return tm_fail(err, TM_NO_MEMORY, "out of memory");
    t->hooks = grown;
    t->hooks[t->hook_count++] = *hook;
    return TM_OK;
}

tm_status tm_trainer_warn(tm_trainer *t, tm_error *err, const char *fmt, ...)
{
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return tm_names_contain(&t->warnings, text) ? TM_OK : tm_names_add(&t->warnings, text, err);
}

/* --- Starting --- */

tm_status tm_trainer_load(tm_trainer *t, tm_error *err)
{
    const tm_run *run = t->run;
    if (run->file)
        TM_TRY(tm_model_load(&t->model, run->file, run->model_dir, err));
    else
        TM_TRY(tm_model_init_random(&t->model, run->seeds[0].init, err));
    for (int64_t i = 0; i < t->trained_count; i++) {
        const tm_param *p = t->trained_param[i];
        if (p->m.data)
            TM_RUN(t->device, fill, p->m, 0);
        if (p->v.data)
            TM_RUN(t->device, fill, p->v, 0);
    }
    for (int64_t i = 0; i < t->hook_count; i++)
        if (t->hooks[i].base)
            TM_TRY(t->hooks[i].base(t->hooks[i].state, t, err));
    tm_teacher_remember(t);
    for (int32_t r = 0; r < run->replicas && t->tuning.method->start; r++)
        TM_TRY(t->tuning.method->start(&t->tuning, r, run->seeds[r].init, err));
    return TM_OK;
}

tm_status tm_trainer_start(tm_trainer *t, tm_error *err)
{
    const tm_run *run = t->run;
    TM_TRY(tm_trainer_load(t, err));
    for (int64_t i = 0; i < t->hook_count; i++)
        if (t->hooks[i].begin)
            TM_TRY(t->hooks[i].begin(t->hooks[i].state, t, err));
    bool resumed = false;
    TM_TRY(tm_trainer_resume(t, &resumed, err));
    if (resumed)
        return t->device->calls->sync(t->device, err);
    tm_buf header = {0};
    tm_status st = tm_trail_header(t, &header, err);
    for (int32_t r = 0; r < run->replicas && st == TM_OK; r++) {
        st = tm_run_folder_start(run->folder[r], &(tm_run_position){0}, err);
        if (st == TM_OK)
            st = tm_run_folder_trail(run->folder[r], header.data, header.size, err);
    }
    tm_buf_deinit(&header);
    return st == TM_OK ? t->device->calls->sync(t->device, err) : st;
}

/* --- A step --- */

/* Room for the losses of a step. */
static tm_status make_room(tm_trainer *t, int64_t targets, tm_error *err)
{
    t->target_count = 0;
    t->target_room = targets;
    TM_TRY(tm_grow(&t->losses, &t->loss_capacity, 2 * (size_t)targets, 8, err));
    return TM_GROW(&t->target, &t->target_capacity, targets, err);
}

/* The step's examples of every replica, in order, replicas ascending; and their targets. */
static tm_status gather_items(tm_trainer *t, int64_t *count, tm_error *err)
{
    int64_t all = 0;
    *count = 0;
    t->step_flops = 0;
    for (int32_t r = 0; r < t->run->replicas; r++) {
        const int64_t *examples;
        int64_t n, targets = 0, tokens = 0, first = *count;
        tm_order_step(t->run->order[r], t->step, &examples, &n);
        TM_TRY(TM_GROW(&t->items, &t->items_capacity, *count + n, err));
        for (int64_t i = 0; i < n; i++) {
            const tm_example *e = tm_dataset_at(t->run->data, examples[i]);
            t->items[(*count)++] = (tm_batch_item){.ids = e->ids, .weight = e->weight, .n = e->n, .replica = r, .index = (uint32_t)i, .grad_scale = t->loss_scale[r].scale};
            tm_gates_give(t, -1, examples[i], &t->items[*count - 1]);
            targets += e->targets;
            tokens += e->n;
            int64_t rows = tm_batch_item_rows(&t->batch, &t->items[*count - 1]);
            t->step_flops += (double)rows * t->flops.token + (double)e->targets * t->flops.target + tm_flops_attention(&t->model, rows);
        }
        for (int64_t i = 0; i < n; i++)
            tm_teacher_give(t, tm_dataset_at(t->run->data, examples[i]), examples[i], targets ? 1.0 / (double)targets : 0, &t->items[first + i]);
        t->result[r] = (tm_step_result){.tokens = tokens, .targets = targets};
        all += targets;
    }
    return make_room(t, all, err);
}

static double power(double base, int64_t n)
{
    double result = 1;
    for (; n; n >>= 1, base *= base)
        if (n & 1)
            result *= base;
    return result;
}

static void set_params(tm_trainer *t)
{
    const tm_recipe *recipe = t->recipe;
    double factor = tm_schedule_factor(recipe->schedule, t->step, recipe->warmup_steps, t->run->steps, recipe->decay_steps);
    for (int32_t r = 0; r < t->run->replicas; r++) {
        int64_t update = t->step + 1 - t->loss_scale[r].skipped;
        t->params[r] = (tm_step_params){
            .lr = recipe->lr * factor, .bias1 = 1 - power(recipe->beta1, update), .bias2 = 1 - power(recipe->beta2, update), .clip = 1,
            .unscale = t->loss_scale[r].scale > 0 ? 1 / t->loss_scale[r].scale : 1,
            .dropout_key = tm_philox_key(t->run->seeds[r].dropout, TM_PURPOSE_DROPOUT, (uint32_t)t->step, 0)};
        t->result[r].lr = t->params[r].lr;
    }
    t->device->calls->upload(t->device, t->device_params, t->params, (int64_t)sizeof *t->params * t->run->replicas);
}

void tm_trainer_zero_gradients(tm_trainer *t)
{
    const tm_arena *all = &t->memory.arena[TM_MEM_GRADIENTS]; /* and nothing else: one call, where a model has dozens of tensors */
    t->device->calls->zero(t->device, all->base, all->used);
}

/* How many of the items fit into one micro-batch. */
static int64_t micro_batch(const tm_trainer *t, const tm_batch_item *items, int64_t count)
{
    int64_t n = 0, tokens = 0;
    while (n < count && n < t->batch.max_examples && (n == 0 || t->recipe->packing)) {
        tokens += tm_batch_item_rows(&t->batch, &items[n]);
        if (tokens > t->batch.max_tokens)
            break;
        n++;
    }
    return n;
}

/* The micro-batch's losses, fetched by the next sync. Room for them was made when the step began. */
static void fetch_losses(tm_trainer *t, const tm_batch_item *items)
{
    tm_batch *b = &t->batch;
    tm_dtype real = t->device->real;
    char *losses = (char *)t->losses + tm_dtype_bytes(real, t->target_count);
    tm_device_fetch(t->device, losses, b->loss.data, tm_dtype_bytes(real, b->targets));
    if (b->any_teacher)
        tm_device_fetch(t->device, losses + tm_dtype_bytes(real, t->target_room), b->kl.data, tm_dtype_bytes(real, b->targets));
    for (int64_t i = 0; i < b->targets; i++) {
        const tm_batch_item *item = &items[b->target_item[i]];
        double weight = item->weight ? item->weight[b->target_token[i]] : 1;
        t->target[t->target_count++] = (tm_step_target){weight * item->scale, item->kl + item->square, item->replica};
    }
}

static double fetched_loss(const tm_trainer *t, int64_t i) { return t->device->real == TM_F64 ? ((double *)t->losses)[i] : ((float *)t->losses)[i]; }

static void add_losses(tm_trainer *t)
{
    for (int64_t i = 0; i < t->target_count; i++) {
        const tm_step_target *target = &t->target[i];
        tm_step_result *result = &t->result[target->replica];
        result->loss += target->weight * fetched_loss(t, i);
        if (target->taught > 0) /* else nothing was fetched */
            result->penalty += target->taught * fetched_loss(t, t->target_room + i);
    }
}

tm_status tm_trainer_penalties(tm_trainer *t, tm_error *err)
{
    t->device->calls->zero(t->device, t->penalty, (int64_t)sizeof *t->penalty * t->run->replicas);
    for (int64_t i = 0; i < t->hook_count; i++)
        if (t->hooks[i].penalty)
            TM_TRY(t->hooks[i].penalty(t->hooks[i].state, t, err));
    tm_device_fetch(t->device, t->host_penalty, t->penalty, (int64_t)sizeof *t->penalty * t->run->replicas);
    return TM_OK;
}

static tm_status optimise(tm_trainer *t, tm_error *err)
{
    const tm_recipe *recipe = t->recipe;
    tm_device *d = t->device;
    int64_t n = t->trained_count * t->run->replicas;
    TM_RUN(d, grad_norm, n, t->device_trained, t->run->replicas, recipe->max_grad_norm, t->device_params);
    if (recipe->optimizer == TM_OPTIM_ADAMW)
        TM_RUN(d, adamw, n, t->device_trained, recipe->beta1, recipe->beta2, recipe->eps, t->device_params);
    else
        TM_RUN(d, sgd, n, t->device_trained, recipe->momentum, t->step == 0, t->device_params);
    for (int64_t i = 0; i < t->hook_count; i++)
        if (t->hooks[i].update)
            TM_TRY(t->hooks[i].update(t->hooks[i].state, t, err));
    TM_RUN(d, trail, n, t->device_trained, t->device_trail);
    tm_device_fetch(d, t->trail, t->device_trail, 8 * n);
    tm_device_fetch(d, t->params, t->device_params, (int64_t)sizeof *t->params * t->run->replicas);
    return TM_OK;
}

/* A step that is not finite ends the run (TM_DIVERGED); in f16 it was skipped by the optimiser, and the loss's scale is halved. */
static tm_status judge_step(tm_trainer *t, int32_t r, tm_error *err)
{
    tm_step_result *s = &t->result[r];
    tm_loss_scale *scale = &t->loss_scale[r];
    if (scale->scale == 0 && (!isfinite(s->loss) || !isfinite(s->grad_norm)))
        return tm_fail(err, TM_DIVERGED, "step %lld: the loss is %g and the gradient norm %g: training diverged; try a lower train.lr, or warm-up",
                       (long long)t->step + 1, s->loss, s->grad_norm);
    if (scale->scale == 0)
        return TM_OK;
    s->skipped = !isfinite(s->grad_norm);
    if (!tm_loss_scale_move(scale, !s->skipped))
        return tm_fail(err, TM_DIVERGED, "step %lld: the loss is %g and the gradient norm %g even with a loss scale of 1, after %lld skipped steps: training diverged, or the "
                       "model's activations exceed the range of f16 (65504); try a lower train.lr, warm-up, or precision: bf16 or f32",
                       (long long)t->step + 1, s->loss, s->grad_norm, (long long)scale->skipped);
    /* What hooks see of it. */
    for (int64_t i = 0; s->skipped && i < t->trained_count; i++) {
        const tm_trained *trained = &t->trained[r * t->trained_count + i];
        t->device->calls->zero(t->device, trained->grad.data, tm_dtype_bytes(trained->grad.dtype, trained->grad.rows * trained->grad.cols));
    }
    return TM_OK;
}

tm_status tm_trainer_step(tm_trainer *t, tm_error *err)
{
    int64_t count;
    TM_TRY(gather_items(t, &count, err));
    set_params(t);
    tm_trainer_zero_gradients(t);
    tm_model_begin_step(&t->model, t->device_params);
    for (int64_t done = 0; done < count;) {
        int64_t n = micro_batch(t, t->items + done, count - done);
        assert(n > 0);
        TM_TRY(tm_micro_run(t, t->items + done, n, err));
        fetch_losses(t, t->items + done);
        done += n;
    }
    tm_model_finish_gradients(&t->model);
    if (t->model.settings.act == TM_F16)
        TM_RUN(t->device, unscale, t->trained_count * t->run->replicas, t->device_trained, t->device_params);
    TM_TRY(tm_trainer_penalties(t, err));
    TM_TRY(optimise(t, err));
    TM_TRY(t->device->calls->sync(t->device, err)); /* the step's one wait */
    add_losses(t);
    for (int32_t r = 0; r < t->run->replicas; r++) {
        t->result[r].grad_norm = t->params[r].grad_norm;
        t->result[r].penalty += t->host_penalty[r];
        TM_TRY(judge_step(t, r, err));
    }
    t->step++;
    t->tokens += t->result[0].tokens;
    t->targets += t->result[0].targets;
    for (int64_t i = 0; i < t->hook_count; i++)
        if (t->hooks[i].step)
            TM_TRY(t->hooks[i].step(t->hooks[i].state, t, err));
    return TM_OK;
}

/* --- Rows --- */

static void put_number(tm_buf *row, const char *key, double value)
{
    tm_buf_printf(row, ", \"%s\": ", key);
    tm_json_put_number(row, value);
}

double tm_trainer_share(const tm_trainer *t) { return t->peak_flops > 0 && t->step_seconds > 0 ? t->step_flops / t->step_seconds / t->peak_flops : NAN; }

/* A limit that a step exceeds was measured while the machine had other work: the most that was seen is the limit. */
static void time_step(tm_trainer *t, double seconds)
{
    t->step_seconds = seconds;
    t->seconds += seconds;
    if (t->peak_flops > 0 && seconds > 0)
        t->peak_flops = fmax(t->peak_flops, t->step_flops / seconds);
}

static tm_status write_step_rows(tm_trainer *t, tm_error *err)
{
    tm_status st = TM_OK;
    tm_buf row = {0};
    for (int32_t r = 0; r < t->run->replicas && st == TM_OK; r++) {
        const tm_step_result *s = &t->result[r];
        tm_run_folder *folder = t->run->folder[r];
        if (t->step % t->recipe->log_every == 0 || t->step == t->run->steps || s->skipped) {
            tm_buf_clear(&row);
            tm_buf_printf(&row, "{\"step\": %lld", (long long)t->step);
            put_number(&row, "loss", s->loss);
            put_number(&row, "penalty", s->penalty);
            put_number(&row, "grad_norm", s->grad_norm);
            put_number(&row, "lr", s->lr);
            tm_buf_printf(&row, ", \"tokens\": %lld%s}\n", (long long)s->tokens, s->skipped ? ", \"skipped\": true" : "");
            TM_GO(tm_run_folder_row(folder, folder->metrics, &row, err));
            tm_buf_clear(&row);
            tm_buf_printf(&row, "{\"step\": %lld, \"seconds\": %.6f, \"tokens_per_s\": %.1f, \"share\": %.4f, \"bytes\": %lld}\n", (long long)t->step,
                          t->step_seconds, (double)s->tokens / t->step_seconds,
                          t->peak_flops > 0 ? tm_trainer_share(t) : 0, (long long)t->device->peak_bytes);
            TM_GO(tm_run_folder_row(folder, folder->timing, &row, err));
        }
        uint64_t step = (uint64_t)t->step;
        TM_GO(tm_run_folder_trail(folder, &step, 8, err));
        TM_GO(tm_run_folder_trail(folder, t->trail + r * t->trained_count, (size_t)t->trained_count * 8, err));
    }
out:
    tm_buf_deinit(&row);
    return st;
}

static void put_scores(tm_buf *row, int metric, const tm_scores *s)
{
    tm_buf_text(row, "{\"loss\": ");
    tm_json_put_number(row, s->loss);
    put_number(row, "ppl", tm_exp(s->loss));
    put_number(row, "accuracy", s->accuracy);
    put_number(row, "exact", s->exact);
    if (!isnan(s->bits_per_byte))
        put_number(row, "bits_per_byte", s->bits_per_byte);
    if (!isnan(s->kl))
        put_number(row, "kl", s->kl);
    for (int i = 0; i < 2; i++)
        if (tm_metrics[metric].key[i])
            put_number(row, tm_metrics[metric].key[i], s->score[i]);
    for (int i = 0; i < 2 && metric == TM_METRIC_ROUND_TRIP; i++)
        put_number(row, i ? "loss_to_scene" : "loss_to_text", s->way_loss[i]);
    tm_buf_char(row, '}');
}

/* What is worse when it is larger: the value that early stopping and `best` compare. */
static double badness(const tm_eval_set *set, const tm_scores *s)
{
    double value = tm_metric_value(set->entry->metric, s);
    return tm_metrics[set->entry->metric].rises ? -value : value;
}

static tm_status evaluate_all(tm_trainer *t, int32_t r, tm_error *err)
{
    tm_status st = TM_OK;
    tm_buf row = {0};
    tm_buf_printf(&row, "{\"step\": %lld, \"eval\": {", (long long)t->step);
    for (int64_t i = 0; i < t->run->eval_count; i++) {
        tm_eval_set *set = &t->run->evals[i];
        TM_GO(tm_trainer_evaluate(t, set, r, &set->last[r], NULL, err));
        if (t->step == 0)
            set->first[r] = set->best[r] = set->last[r];
        if (badness(set, &set->last[r]) < badness(set, &set->best[r]))
            set->best[r] = set->last[r];
        tm_buf_text(&row, i ? ", " : "");
        tm_json_put_string(&row, set->entry->name);
        tm_buf_text(&row, ": ");
        put_scores(&row, set->entry->metric, &set->last[r]);
    }
    tm_buf_text(&row, "}}\n");
    TM_GO(tm_run_folder_row(t->run->folder[r], t->run->folder[r]->metrics, &row, err));
    for (int64_t i = 0; i < t->hook_count; i++)
        if (t->hooks[i].evaluate) {
            tm_verdict verdict = TM_GO_ON;
            TM_GO(t->hooks[i].evaluate(t->hooks[i].state, t, r, &verdict, err));
            t->verdict = verdict > t->verdict ? verdict : t->verdict;
        }
out:
    tm_buf_deinit(&row);
    return st;
}

/* Early stopping on eval.NAME.METRIC, replica 0. */
static void watch_early_stop(tm_trainer *t)
{
    const tm_eval_set *set;
    int metric;
    if (!early_stop_of(t, &set, &metric))
        return;
    double value = tm_metric_value(metric, &set->last[0]);
    value = tm_metrics[metric].rises ? -value : value;
    if (value < t->best_metric - t->recipe->early_stop_min_delta) {
        t->best_metric = value;
        t->best_step = t->step;
        t->bad_evals = 0;
    } else if (++t->bad_evals >= t->recipe->early_stop_patience)
        t->stopped_early = true;
}

bool tm_eval_due(const tm_trainer *t, int64_t step)
{
    if (step == 0 || step == t->run->steps)
        return true;
    int64_t every = t->recipe->eval_every, probes = t->recipe->monitor_every;
    bool early = step == 10 || step == 25 || step == 50 || step == 100 || step == 150;
    /* Most damage falls before evaluations that are far apart would see it. */
    if (t->recipe->probe_count && (probes == TM_AUTO_INT ? early && step < every : probes > 0 && step % probes == 0))
        return true;
    if (every != TM_AUTO_INT)
        return every > 0 && step % every == 0;
    /* About 20 a run; dense in the first 150 steps, where most damage falls. */
    every = t->run->steps / 20 > 1 ? t->run->steps / 20 : 1;
    return step % every == 0 || early;
}

static tm_status evaluate_now(tm_trainer *t, tm_error *err)
{
    if (!t->run->eval_count)
        return TM_OK;
    tm_model_begin_step(&t->model, NULL);
    for (int32_t r = 0; r < t->run->replicas; r++)
        TM_TRY(evaluate_all(t, r, err));
    watch_early_stop(t);
    double value = badness(&t->run->evals[0], &t->run->evals[0].last[0]);
    if (value < t->best_checkpoint_metric) {
        t->best_checkpoint_metric = value;
        t->best_checkpoint = t->step; /* a checkpoint of this very step, if one is written, is kept */
    }
    return TM_OK;
}

static bool goes_on(const tm_trainer *t) { return t->step < t->run->steps && t->verdict == TM_GO_ON && !t->stopped_early; }

/* What hooks make of the last step's weights, and what that is worth. */
static tm_status finish(tm_trainer *t, tm_error *err)
{
    for (int64_t i = 0; i < t->hook_count; i++)
        if (t->hooks[i].end)
            TM_TRY(t->hooks[i].end(t->hooks[i].state, t, err));
    if (t->result_changed) {
        TM_TRY(evaluate_now(t, err));
        for (int64_t i = 0; i < t->hook_count && t->verdict == TM_ROLL_BACK; i++)
            if (t->hooks[i].undo)
                TM_TRY(t->hooks[i].undo(t->hooks[i].state, t, err));
    }
    return t->verdict == TM_ROLL_BACK ? evaluate_now(t, err) : TM_OK; /* the last values are of what is saved */
}

tm_status tm_trainer_run(tm_trainer *t, tm_error *err)
{
    const tm_run *run = t->run;
    if (t->step == 0)
        TM_TRY(evaluate_now(t, err));
    if (run->progress)
        run->progress(run->context, t);
    while (goes_on(t)) {
        if (run->interrupted && run->interrupted(run->context))
            return tm_fail(err, TM_FAILED, "interrupted after step %lld; the same command goes on from the last checkpoint", (long long)t->step);
        double start = tm_clock_seconds();
        TM_TRY(tm_trainer_step(t, err));
        time_step(t, tm_clock_seconds() - start);
        TM_TRY(write_step_rows(t, err));
        if (tm_eval_due(t, t->step))
            TM_TRY(evaluate_now(t, err));
        if (run->progress)
            run->progress(run->context, t);
        /* Not of the last step: a run killed before its result is written decides again to end there. */
        int64_t every = t->recipe->checkpoint_every;
        if (every > 0 && t->step % every == 0 && goes_on(t))
            TM_TRY(tm_trainer_checkpoint(t, err));
    }
    return finish(t, err);
}

tm_status tm_trainer_save_to(tm_trainer *t, int32_t replica, const char *dir, tm_error *err)
{
    TM_TRY(t->tuning.method->save(&t->tuning, replica, dir, err));
    return tm_dir_has(dir, "config.json") ? tm_tokenizer_write(t->run->model_dir, dir, err) : TM_OK;
}

tm_status tm_trainer_save(tm_trainer *t, tm_error *err)
{
    for (int32_t r = 0; r < t->run->replicas; r++) {
        const char *dir = t->run->folder[r]->dir;
        TM_TRY(tm_trainer_save_to(t, r, dir, err));
        if (t->gates && t->recipe->lora_router)
            TM_TRY(tm_gates_route(t, dir, err));
    }
    return TM_OK;
}
