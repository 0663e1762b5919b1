/* temper plan: memory and time before a run, on this machine or on a GPU that is not here. */
#include "api/phases.h"

#include "base/json.h"
#include "plan/gpus.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- A plan for one device --- */

typedef struct outlook {
    tm_target target;
    tm_memory_plan plan;
    tm_status fits;
    tm_error why;
    tm_advice advice[TM_ADVICE_MAX];
    int advices;
    int precision, recompute;
    int64_t recompute_layers;
    double tokens_per_s, tokens; /* NaN: unknown */
    tm_phase before[TM_PHASES]; /* the training */
    int phases;
    int64_t peak;        /* of the training and of what is before it */
} outlook;

static double before_seconds(const outlook *o)
{
    double sum = 0;
    for (int i = 0; i < o->phases; i++)
        sum += o->before[i].seconds;
    return sum;
}

static double run_tokens(const tm_job *job, const tm_plan_request *r)
{
    if (r->tokens)
        return (double)r->tokens;
    return job->run.steps > 0 ? (double)job->run.steps * job->plan.step_tokens : NAN;
}

/* Blocks whose activations are computed again. */
static int64_t again(const tm_job *job, const tm_memory_plan *plan)
{
    const tm_recipe *r = job->recipe;
    int64_t some = r->recompute_layers < plan->layers ? r->recompute_layers : plan->layers;
    return r->recompute == TM_RECOMPUTE_FULL ? plan->layers : r->recompute == TM_RECOMPUTE_PARTIAL ? some : 0;
}

static tm_status look(tm_job *job, tm_measuring *measuring, const tm_plan_request *r, const tm_target *target, outlook *o, tm_error *err)
{
    tm_error no_room;
    tm_status misfit;
    TM_TRY(tm_job_plan_for(job, target, err));
    *o = (outlook){.target = *target, .plan = job->plan, .precision = job->recipe->precision, .recompute = job->recipe->recompute, .recompute_layers = again(job, &job->plan)};
    o->tokens_per_s = target->timed ? tm_tokens_per_second(&job->plan, &target->rates) : NAN;
    o->tokens = run_tokens(job, r);
    TM_TRY(tm_job_phases(job, measuring, o->before, &o->phases, &misfit, &no_room, err));
    o->peak = o->plan.peak;
    for (int i = 0; i < o->phases; i++)
        o->peak = o->before[i].peak > o->peak ? o->before[i].peak : o->peak;
    o->fits = tm_job_fits(job, o->advice, &o->advices, &o->why);
    if (o->fits == TM_OK && misfit != TM_OK) {
        o->fits = misfit;
        o->why = no_room;
    }
    return o->fits == TM_OK || o->fits == TM_NO_FIT ? TM_OK : tm_fail(err, o->fits, "%s", o->why.message);
}

static double rate_of(const outlook *o, const tm_memory_plan *plan) { return o->target.timed ? tm_tokens_per_second(plan, &o->target.rates) : NAN; }
static double hours_at(const outlook *o, double tokens_per_s) { return o->tokens / tokens_per_s / 3600; }
static double hours_of(const outlook *o) { return hours_at(o, o->tokens_per_s); }

static const char *precision_name(int precision) { return precision == TM_PRECISION_BF16 ? "bf16" : precision == TM_PRECISION_F16 ? "f16" : "f32"; }

/* "activations of 3 of 28 blocks not kept" */
static void put_recompute(tm_buf *out, const outlook *o)
{
    if (o->recompute_layers)
        tm_buf_printf(out, "activations of %lld of %lld blocks not kept", (long long)o->recompute_layers, (long long)o->plan.layers);
    else
        tm_buf_text(out, "no recomputation");
}

/* --- JSON --- */

static void put_key(tm_buf *out, const char *key, double value)
{
    tm_buf_printf(out, ", \"%s\": ", key);
    tm_json_put_number(out, value);
}

static void put_parts(tm_buf *out, const int64_t part[TM_MEM_KINDS])
{
    tm_buf_text(out, "{");
    for (int i = 0; i < TM_MEM_KINDS; i++)
        tm_buf_printf(out, "%s\"%s\": %lld", i ? ", " : "", tm_memory_label((tm_memory_kind)i), (long long)part[i]);
    tm_buf_text(out, "}");
}

static void put_advice_json(tm_buf *out, const outlook *o)
{
    tm_buf_text(out, ", \"instead\": [");
    for (int i = 0; i < o->advices; i++) {
        const tm_advice *a = &o->advice[i];
        tm_buf_text(out, i ? ", {\"set\": {" : "{\"set\": {");
        for (int k = 0; k < a->count; k++) {
            tm_buf_printf(out, "%s\"%s\": ", k ? ", " : "", a->set[k].key);
            tm_json_put_string(out, a->set[k].value);
        }
        tm_buf_printf(out, "}, \"peak_bytes\": %lld", (long long)a->plan.peak);
        put_key(out, "tokens_per_s", rate_of(o, &a->plan));
        tm_buf_text(out, "}");
    }
    tm_buf_text(out, "]");
}

/* The fields of one device, without the braces. */
static void put_outlook_json(tm_buf *out, const outlook *o)
{
    const tm_memory_plan *plan = &o->plan;
    tm_buf_text(out, "\"device\": ");
    tm_json_put_string(out, o->target.name);
    tm_buf_printf(out, ", \"peak_bytes\": %lld, \"parts\": ", (long long)plan->peak);
    put_parts(out, plan->part);
    tm_buf_printf(out, ", \"reserve_bytes\": %lld, \"reserve\": \"%s\", \"available_bytes\": %lld, \"host_bytes\": %lld, \"fits\": %s", (long long)o->target.reserve,
                  !o->target.cuda ? "none" : o->target.reserve_measured ? "measured" : "estimated",
                  (long long)(o->target.memory < 0 ? -1 : o->target.memory - o->target.reserve), (long long)plan->host, o->fits == TM_OK ? "true" : "false");
    tm_buf_printf(out, ", \"precision\": \"%s\", \"recompute\": \"%s\", \"recompute_layers\": %lld, \"micro_tokens\": %lld", precision_name(o->precision),
                  o->recompute == TM_RECOMPUTE_FULL ? "full" : o->recompute == TM_RECOMPUTE_PARTIAL ? "partial" : "none", (long long)o->recompute_layers,
                  (long long)plan->max_tokens);
    put_key(out, "tokens_per_s", o->tokens_per_s);
    put_key(out, "tokens", o->tokens);
    put_key(out, "hours", hours_of(o));
    tm_buf_printf(out, ", \"run_peak_bytes\": %lld, \"before\": [", (long long)o->peak);
    for (int i = 0; i < o->phases; i++) {
        tm_buf_printf(out, "%s{\"phase\": \"%s\", \"peak_bytes\": %lld", i ? ", " : "", o->before[i].name, (long long)(o->before[i].peak ? o->before[i].peak : plan->peak));
        put_key(out, "tokens", o->before[i].tokens);
        put_key(out, "hours", o->before[i].seconds / 3600);
        tm_buf_text(out, "}");
    }
    tm_buf_text(out, "], \"extrapolated_from\": ");
    if (o->target.from[0])
        tm_json_put_string(out, o->target.from);
    else
        tm_buf_text(out, "null");
    put_advice_json(out, o);
}

static void put_json(tm_buf *out, const outlook *o, const tm_layer_plan *layer, int64_t layers, const outlook *gpu, size_t gpus)
{
    tm_buf_text(out, "{");
    put_outlook_json(out, o);
    tm_buf_printf(out, ", \"parameters\": %lld, \"trained_parameters\": %lld, \"layers\": [", (long long)o->plan.parameters, (long long)o->plan.trained);
    for (int64_t i = 0; i < layers; i++) {
        tm_buf_text(out, i ? ", " : "");
        put_parts(out, layer[i].part);
    }
    tm_buf_text(out, "], \"outside_layers\": ");
    put_parts(out, layer[layers].part);
    tm_buf_text(out, ", \"gpus\": [");
    for (size_t i = 0; i < gpus; i++) {
        tm_buf_text(out, i ? ", {" : "{");
        put_outlook_json(out, &gpu[i]);
        tm_buf_text(out, "}");
    }
    tm_buf_text(out, "]}\n");
}

/* --- Text --- */

static void put_hours(tm_buf *out, double hours)
{
    if (isnan(hours))
        tm_buf_text(out, "-");
    else if (hours < 1)
        tm_buf_printf(out, "%.1f min", 60 * hours);
    else if (hours < 48)
        tm_buf_printf(out, "%.1f h", hours);
    else
        tm_buf_printf(out, "%.1f days", hours / 24);
}

static void put_count(tm_buf *out, double n)
{
    if (n < 1e6)
        tm_buf_printf(out, "%.0f", n);
    else
        tm_buf_printf(out, n < 1e9 ? "%.3g million" : "%.3g billion", n < 1e9 ? n / 1e6 : n / 1e9);
}

/* What one block has of a kind: "512.0", or "0 to 512.0" where blocks differ. */
static void put_layer(tm_buf *out, const tm_layer_plan *layer, int64_t layers, int kind)
{
    int64_t low = layer[0].part[kind], high = low;
    for (int64_t i = 1; i < layers; i++) {
        low = layer[i].part[kind] < low ? layer[i].part[kind] : low;
        high = layer[i].part[kind] > high ? layer[i].part[kind] : high;
    }
    if (low == high)
        tm_buf_printf(out, "%14lld\n", (long long)low);
    else
        tm_buf_printf(out, "%14lld to %lld\n", (long long)low, (long long)high);
}

static void put_bytes(tm_buf *out, const char *name, int64_t bytes, int64_t whole)
{
    tm_buf_printf(out, "  %-12s %16lld %12.1f", name, (long long)bytes, (double)bytes / (1 << 20));
    tm_buf_printf(out, whole ? " %6.1f %%" : "         ", 100.0 * (double)bytes / (double)(whole ? whole : 1));
}

static void put_time(tm_buf *out, const outlook *o)
{
    if (!o->target.timed) {
        tm_buf_text(out, o->target.here ? "  time         not estimated: temper bench --calibrate measures this machine once\n"
                                        : "  time         not estimated: no GPU was calibrated (temper bench --calibrate, on one)\n");
        return;
    }
    tm_buf_printf(out, "  speed        %.0f tokens a second at most, on an idle machine", o->tokens_per_s);
    if (o->target.from[0])
        tm_buf_printf(out, " (extrapolated from %s by data sheets)", o->target.from);
    if (!isnan(o->tokens)) {
        tm_buf_text(out, "\n  time         ");
        put_hours(out, hours_of(o));
        tm_buf_text(out, " for ");
        put_count(out, o->tokens);
        tm_buf_text(out, " tokens");
    }
    tm_buf_text(out, "\n");
}

static void put_before(tm_buf *out, const outlook *o)
{
    if (!o->phases)
        return;
    tm_buf_text(out, "\nbefore the training\n");
    for (int i = 0; i < o->phases; i++) {
        const tm_phase *p = &o->before[i];
        tm_buf_printf(out, "  %-70s ", p->what);
        put_hours(out, p->seconds / 3600);
        if (!isnan(p->tokens)) {
            tm_buf_text(out, " for ");
            put_count(out, p->tokens);
            tm_buf_text(out, " tokens");
        }
        if (p->peak)
            tm_buf_printf(out, ", %lld bytes", (long long)p->peak);
        tm_buf_text(out, "\n");
    }
    if (o->peak > o->plan.peak)
        put_bytes(out, "largest", o->peak, 0), tm_buf_text(out, " (before the training)\n");
    if (o->target.timed && !isnan(o->tokens)) {
        tm_buf_text(out, "  time with it ");
        put_hours(out, hours_of(o) + before_seconds(o) / 3600);
        tm_buf_text(out, "\n");
    }
}

static void put_text(tm_buf *out, const tm_job *job, const outlook *o, const tm_layer_plan *layer, int64_t layers)
{
    const tm_memory_plan *plan = &o->plan;
    tm_buf_printf(out, "%s: %lld parameters, %lld trained (%.2f %%)\n%s: %s, micro-batches of %lld tokens, ", job->recipe->model,
                  (long long)plan->parameters, (long long)plan->trained, 100.0 * (double)plan->trained / (double)(plan->parameters ? plan->parameters : 1),
                  o->target.name, precision_name(o->precision), (long long)plan->max_tokens);
    put_recompute(out, o);
    tm_buf_text(out, "\n\n");
    if (!job->file && job->recipe->init == TM_INIT_WEIGHTS)
        tm_buf_printf(out, "The folder has no weights: they are taken to be %s, as its config.json says.\n\n", tm_dtype_name(job->run.dtype));
    tm_buf_printf(out, "  %-12s %16s %12s %8s %14s\n", "", "bytes", "MiB", "share", "bytes a layer");
    for (int i = 0; i < TM_MEM_KINDS; i++)
        if (plan->part[i]) {
            put_bytes(out, tm_memory_label((tm_memory_kind)i), plan->part[i], plan->peak);
            put_layer(out, layer, layers, i);
        }
    put_bytes(out, "peak", plan->peak, plan->peak);
    tm_buf_text(out, "\n");
    if (plan->host) {
        put_bytes(out, "host memory", plan->host, 0);
        tm_buf_text(out, " (train.offload)\n");
    }
    if (o->target.reserve) {
        put_bytes(out, "driver", o->target.reserve, 0);
        tm_buf_text(out, o->target.reserve_measured ? "\n" : " (estimated)\n");
    }
    if (o->target.memory >= 0) {
        put_bytes(out, "available", o->target.memory - o->target.reserve, 0);
        tm_buf_text(out, "\n");
    }
    put_time(out, o);
    put_before(out, o);
}

static void put_gpus(tm_buf *out, const outlook *gpu, size_t gpus)
{
    tm_buf_printf(out, "\n  %-14s %9s %9s %12s %9s %10s  %s\n", "GPU", "GiB", "peak GiB", "micro-batch", "tokens/s", "time", "");
    bool estimated = false, extrapolated = false;
    for (size_t i = 0; i < gpus; i++) {
        const outlook *o = &gpu[i];
        const tm_advice *a = o->fits == TM_OK || !o->advices ? NULL : &o->advice[0];
        const tm_memory_plan *plan = a ? &a->plan : &o->plan;
        double rate = o->fits == TM_OK || a ? rate_of(o, plan) : NAN;
        int64_t peak = o->fits == TM_OK && o->peak > plan->peak ? o->peak : plan->peak;
        tm_buf hours = {0}, tokens = {0};
        put_hours(&hours, hours_at(o, rate) + before_seconds(o) / 3600);
        tm_buf_printf(&tokens, isnan(rate) ? "-" : "%.0f", rate);
        tm_buf_printf(out, "  %-14s %9.1f %9.1f %12lld %9s %10s  ", o->target.name, (double)o->target.memory / (1 << 30), (double)(peak + o->target.reserve) / (1 << 30),
                      (long long)plan->max_tokens, tm_buf_str(&tokens), tm_buf_str(&hours));
        tm_buf_deinit(&hours);
        tm_buf_deinit(&tokens);
        if (o->fits == TM_OK) {
            tm_buf_text(out, "fits, ");
            put_recompute(out, o);
        } else if (a) {
            tm_buf_text(out, "would fit with ");
            tm_advice_put(a, out);
        } else
            tm_buf_text(out, "does not fit");
        tm_buf_text(out, "\n");
        estimated |= !o->target.reserve_measured;
        extrapolated |= o->target.from[0] != 0;
    }
    if (estimated)
        tm_buf_printf(out, "  Peaks have %.1f GB for the driver, estimated.\n", (double)gpu[0].target.reserve * 1e-9);
    if (extrapolated)
        tm_buf_printf(out, "  Speeds are extrapolated from %s by data sheets.\n", gpu[0].target.from[0] ? gpu[0].target.from : gpu[gpus - 1].target.from);
}

/* --- The command --- */

/* The device asked for: of this machine, or of the table. */
static tm_status choose_target(const tm_job *job, const tm_plan_request *r, tm_target *target, tm_error *err)
{
    const tm_gpu *gpu;
    *target = job->target;
    if (!r->gpu)
        return TM_OK;
    if (job->target.cuda && job->target.gpu && job->target.gpu == tm_gpu_find(r->gpu))
        return TM_OK;
    TM_TRY(tm_gpu_named(r->gpu, &gpu, err));
    return tm_target_gpu(gpu, target, err);
}

static tm_status plan_job(tm_job *job, const tm_plan_request *r, tm_buf *out, tm_status *fits, tm_error *err)
{
    size_t count = 0;
    const tm_gpu *table = tm_gpus(&count);
    outlook *all = NULL, *main, *gpu;
    tm_layer_plan *layer = NULL;
    tm_measuring *measuring = NULL;
    int64_t layers = 0;
    tm_target target;
    tm_error fit = {0};
    tm_status st;
    TM_GO(TM_NEW(&all, count + 1, err));
    main = all;
    gpu = all + 1;
    TM_GO(choose_target(job, r, &target, err));
    if (tm_job_measures(job->recipe))
        TM_GO(tm_measuring_open(job, &measuring, err));
    TM_GO(look(job, measuring, r, &target, main, err));
    *fits = main->fits;
    fit = main->why;
    TM_GO(tm_plan_layers(&job->run, target.traits, target.own, &layer, &layers, err));
    if (r->gpu)
        count = 0;
    if (!r->json)
        put_text(out, job, main, layer, layers);
    for (size_t i = 0; i < count; i++) {
        TM_GO(tm_target_gpu(&table[i], &target, err));
        TM_GO(look(job, measuring, r, &target, &gpu[i], err));
    }
    if (r->json)
        put_json(out, main, layer, layers, gpu, count);
    else if (count)
        put_gpus(out, gpu, count);
    st = tm_buf_check(out, err);
    if (st == TM_OK && *fits != TM_OK)
        *err = fit;
out:
    tm_measuring_close(measuring);
    free(all);
    free(layer);
    return st;
}

tm_status tm_plan(const tm_plan_request *request, char **text, tm_error *err)
{
    tm_recipe *recipe;
    tm_job job;
    tm_buf out = {0};
    tm_status fits = TM_OK;
    *text = NULL;
    TM_TRY(tm_recipe_load(request->source.path, request->source.overrides, request->source.override_count, &recipe, err));
    int offload = recipe->offload, precision = recipe->precision;
    if (request->gpu) { /* opening plans for this machine, which may have no GPU to run on, to offload from, or to compute in f16 */
        if (strncmp(recipe->device, "cuda", 4) == 0)
            strcpy(recipe->device, "auto");
        recipe->offload = TM_OFFLOAD_NONE;
        recipe->precision = TM_PRECISION_AUTO;
    }
    TM_TRY(tm_job_open(recipe, TM_JOB_PLAN, &job, err));
    job.asked.offload = offload;
    job.asked.precision = precision;
    tm_status st = plan_job(&job, request, &out, &fits, err);
    tm_job_close(&job);
    if (st != TM_OK) {
        tm_buf_deinit(&out);
        return st;
    }
    *text = out.data;
    return fits;
}
