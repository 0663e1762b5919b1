/* What a run does before its training, as far as it takes memory or time worth a plan: one entry of a table a phase. */
#ifndef TM_API_PHASES_H
#define TM_API_PHASES_H

#include "api/job.h"

enum { TM_PHASES = 6 };

typedef struct tm_phase {
    const char *name;  /* "importances" */
    const char *what;  /* "importances of old data (keep.ewc)" */
    int64_t peak;      /* bytes on the device; 0: it runs in the training's memory, or in less */
    double tokens;     /* that go through the model; NaN: unknown, or none does */
    double seconds;    /* on an idle device; NaN: rates are not known */
} tm_phase;

/* The phases of a job that is planned (job->plan, job->target), in their order. measuring: of it, where tm_job_measures. *misfit: TM_NO_FIT
 * with a message in `why` where one of them has no room though the training may. */
tm_status tm_job_phases(tm_job *job, tm_measuring *measuring, tm_phase out[TM_PHASES], int *count, tm_status *misfit, tm_error *why, tm_error *err) TM_MUST_CHECK;

#endif
