/* Phases before the training: see phases.h. Times are as the training's (docs/formats/calibration.md): work over rates.
 *
 * Texts of the base are written a token at a time, of as many texts at once as a run writes where memory allows it: that reads every weight once for
 * a few rows, and computes each row as a look of the base does. Their memory is weights and a cache: less than training takes.
 * Singular directions are computed by the processor, whatever the device, at a rate that is measured when it is asked for. */
#include "api/phases.h"

#include "base/clock.h"
#include "base/pool.h"
#include "keep/svd.h"
#include "model/generate.h"

#include <math.h>
#include <stdlib.h>

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
    double texts = r->generate_samples < TM_TEXTS_AT_ONCE ? (double)r->generate_samples : TM_TEXTS_AT_ONCE;
    double tokens = (double)r->generate_samples * (double)r->generate_max_tokens;
    tm_work a_turn = {.bytes = (double)job->plan.part[TM_MEM_WEIGHTS], .calls = 10.0 * (double)job->plan.layers};
    return (tm_phase){.name = "generate", .what = "texts of the base, each as long as it may get (keep.generate)", .tokens = tokens,
                      .seconds = job->target.timed ? tokens / texts * tm_seconds_of(&job->target.rates, &a_turn) + passes_of(job, tokens) : NAN};
}

/* Seconds that the processor takes for a unit of tm_svd_work, in one thread. */
static tm_status time_directions(double *seconds, tm_error *err)
{
    enum { N = 192, K = N / 2 };
    float *w = NULL;
    double *u = NULL, *v = NULL, *s = NULL, best = INFINITY;
    tm_status st = TM_OK;
    TM_GO(TM_NEW(&w, N * N, err));
    TM_GO(TM_NEW(&u, K * N, err));
    TM_GO(TM_NEW(&v, K * N, err));
    TM_GO(TM_NEW(&s, K, err));
    for (int64_t i = 0; i < N * N; i++) /* of full rank, with values that are nowhere equal */
        w[i] = (float)(i * i % 1009) / 1009 + (i % (N + 1) == 0);
    for (int i = 0; i < 3; i++) {
        double begin = tm_clock_seconds();
        TM_GO(tm_svd_top(w, N, N, K, u, s, v, err));
        best = fmin(best, tm_clock_seconds() - begin);
    }
    *seconds = best / tm_svd_work(N, N, K);
out:
    free(w);
    free(u);
    free(v);
    free(s);
    return st;
}

/* As many matrices at once as there are threads. */
static tm_status directions_phase(const tm_job *job, tm_phase *out, tm_error *err)
{
    tm_pool *pool;
    double seconds;
    TM_TRY(time_directions(&seconds, err));
    TM_TRY(tm_pool_create((int)job->recipe->threads, &pool, err));
    int threads = tm_pool_threads(pool);
    tm_pool_destroy(pool);
    *out = (tm_phase){.name = "directions", .what = "singular directions, by this processor (keep.osf)", .tokens = NAN,
                      .seconds = seconds * job->plan.directions.work / fmin(threads, (double)job->plan.directions.matrices)};
    return TM_OK;
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
    if (job->plan.directions.matrices)
        TM_TRY(directions_phase(job, &out[(*count)++], err));
    if (job->plan.remembered_tokens > 0)
        out[(*count)++] = (tm_phase){.name = "remember", .what = "the base is remembered at every target that asks it (keep.kl, keep.der)", .tokens = job->plan.remembered_tokens,
                                     .seconds = passes_of(job, job->plan.remembered_tokens)};
    return TM_OK;
}
