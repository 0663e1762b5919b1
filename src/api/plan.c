/* temper plan: memory before a run. */
#include "api/job.h"

#include "base/clock.h"
#include "base/json.h"

#include <math.h>
#include <stdlib.h>

/* Tokens a second by the machine's calibration; NaN without one. */
static tm_status find_rate(tm_job *job, double *tokens_per_s, tm_error *err)
{
    char *path = NULL;
    tm_calibration calibration;
    bool found;
    tm_status st;
    *tokens_per_s = NAN;
    TM_GO(tm_calibration_path(&path, err));
    TM_GO(tm_calibration_read(path, job->device, &calibration, &found, err));
    if (found)
        *tokens_per_s = 1 / tm_seconds_per_token(&calibration, &job->plan.work);
out:
    free(path);
    return st;
}

static void put_json(tm_buf *out, const tm_job *job, bool fits, int64_t available, double tokens_per_s)
{
    const tm_memory_plan *plan = &job->plan;
    tm_buf_printf(out, "{\"peak_bytes\": %lld, \"parts\": {", (long long)plan->peak);
    for (int i = 0; i < TM_MEM_KINDS; i++)
        tm_buf_printf(out, "%s\"%s\": %lld", i ? ", " : "", tm_memory_label((tm_memory_kind)i), (long long)plan->part[i]);
    tm_buf_text(out, "}, \"reserve_bytes\": 0, \"tokens_per_s\": ");
    tm_json_put_number(out, tokens_per_s);
    tm_buf_printf(out, ", \"parameters\": %lld, \"trained_parameters\": %lld, \"micro_tokens\": %lld, \"available_bytes\": %lld, \"fits\": %s",
                  (long long)plan->parameters, (long long)plan->trained, (long long)job->run.max_tokens, (long long)available, fits ? "true" : "false");
}

static void put_bytes(tm_buf *out, const char *name, int64_t bytes, int64_t whole)
{
    tm_buf_printf(out, "  %-12s %14lld bytes  %8.1f MiB  %5.1f %%\n", name, (long long)bytes, (double)bytes / (1 << 20), whole ? 100.0 * (double)bytes / (double)whole : 0);
}

static void put_table(tm_buf *out, const tm_job *job, int64_t available, double tokens_per_s)
{
    const tm_memory_plan *plan = &job->plan;
    tm_buf_printf(out, "%s: %lld parameters, %lld trained (%.2f %%), micro-batches of %lld tokens\n\n", job->recipe->model, (long long)plan->parameters, (long long)plan->trained,
                  100.0 * (double)plan->trained / (double)(plan->parameters ? plan->parameters : 1), (long long)job->run.max_tokens);
    for (int i = 0; i < TM_MEM_KINDS; i++)
        if (plan->part[i])
            put_bytes(out, tm_memory_label((tm_memory_kind)i), plan->part[i], plan->peak);
    put_bytes(out, "peak", plan->peak, plan->peak);
    if (available >= 0)
        put_bytes(out, "available", available, 0);
    if (isnan(tokens_per_s))
        tm_buf_text(out, "  time         not estimated: temper bench --calibrate measures this machine once\n");
    else
        tm_buf_printf(out, "  speed        %.0f tokens a second at most, on an idle machine\n", tokens_per_s);
}

tm_status tm_plan(const tm_recipe_source *source, bool json, char **text, tm_error *err)
{
    tm_recipe *recipe;
    tm_job job;
    tm_buf out = {0};
    tm_error fit = {0};
    *text = NULL;
    TM_TRY(tm_recipe_load(source->path, source->overrides, source->override_count, &recipe, err));
    TM_TRY(tm_job_open(recipe, TM_JOB_PLAN, &job, err));
    double rate;
    tm_status rated = find_rate(&job, &rate, err);
    if (rated != TM_OK) {
        tm_job_close(&job);
        return rated;
    }
    int64_t available = tm_device_available(job.device);
    tm_status fits = tm_job_fits(&job, &fit);
    if (json) {
        put_json(&out, &job, fits == TM_OK, available, rate);
        tm_buf_text(&out, ", \"instead\": [");
        if (fits != TM_OK)
            tm_json_put_string(&out, fit.message);
        tm_buf_text(&out, "]}\n");
    } else
        put_table(&out, &job, available, rate);
    tm_job_close(&job);
    tm_status st = tm_buf_check(&out, err);
    if (st != TM_OK) {
        tm_buf_deinit(&out);
        return st;
    }
    *text = out.data;
    if (fits != TM_OK)
        *err = fit;
    return fits;
}
