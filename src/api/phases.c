/* Phases before the training: see phases.h. Times are as the training's (docs/formats/calibration.md): work over rates.
 *
 * Texts of the base are written one token at a time, which reads every weight once for a few rows: bytes over the device's rate, as if one text were
 * written at a time, so a device that writes several together is faster. Their memory is weights and a cache: less than training takes. */
#include "api/phases.h"

#include <math.h>

static double passes_of(const tm_job *job, double tokens)
{
    return job->target.timed ? tokens / tm_looks_per_second(&job->plan, &job->target.rates) : NAN;
}

static double tokens_of(const tm_dataset *data, int64_t first, int64_t end)
{
    double tokens = 0;
    for (int64_t s = first; data && s < end; s++)
        tokens += (double)tm_dataset_stats_of(data, s)->tokens;
    return tokens;
}

/* keep.generate, at most: every text as long as it may get. */
static tm_phase generate_phase(const tm_job *job)
{
    const tm_recipe *r = job->recipe;
    double tokens = (double)r->generate_samples * (double)r->generate_max_tokens;
    tm_work a_token = {.bytes = (double)job->plan.part[TM_MEM_WEIGHTS], .calls = 10.0 * (double)job->plan.layers};
    return (tm_phase){.name = "generate", .what = "texts of the base, one at a time at most (keep.generate)", .tokens = tokens,
                      .seconds = job->target.timed ? tokens * tm_seconds_of(&job->target.rates, &a_token) : NAN};
}

tm_status tm_job_phases(tm_job *job, tm_measuring *measuring, tm_phase out[TM_PHASES], int *count, tm_status *misfit, tm_error *why, tm_error *err)
{
    const tm_recipe *r = job->recipe;
    bool chooses = job->rehearsal.replay && r->replay_buffer && (r->replay_select == TM_SELECT_DIVERSE || r->replay_select == TM_SELECT_LOSS);
    *count = 0;
    *misfit = TM_OK;
    if (job->rehearsal.generate)
        out[(*count)++] = generate_phase(job);
    if (chooses) {
        double tokens = (double)job->rehearsal.looked_at;
        out[(*count)++] = (tm_phase){.name = "choose", .what = "the base looks at old examples (keep.replay.select)", .tokens = tokens, .seconds = passes_of(job, tokens)};
    }
    if (measuring) {
        tm_memory_plan plan;
        int64_t tokens;
        *misfit = tm_measuring_plan(measuring, &plan, &tokens, why);
        if (*misfit != TM_OK && *misfit != TM_NO_FIT)
            return tm_fail(err, *misfit, "%s", why->message);
        out[(*count)++] = (tm_phase){.name = "importances", .what = "importances of old data (keep.ewc)", .peak = plan.peak, .tokens = (double)tokens,
                                     .seconds = job->target.timed ? (double)tokens / tm_tokens_per_second(&plan, &job->target.rates) : NAN};
    }
    if (r->stm_threshold > 0 || r->stm_fraction > 0) {
        double tokens = job->data ? tokens_of(job->data, 0, r->data_count) : NAN;
        out[(*count)++] = (tm_phase){.name = "mask", .what = "the base looks at every target (keep.stm)", .tokens = tokens, .seconds = passes_of(job, tokens)};
    }
    if (job->plan.remembered_tokens > 0)
        out[(*count)++] = (tm_phase){.name = "remember", .what = "the base is remembered at every target that asks it (keep.kl, keep.der)", .tokens = job->plan.remembered_tokens,
                                     .seconds = passes_of(job, job->plan.remembered_tokens)};
    return TM_OK;
}
