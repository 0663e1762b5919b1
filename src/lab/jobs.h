/* Pieces of work side by side, in threads of one process.
 *
 * What a piece computes depends on neither their number nor their order. The first that fails, or the caller's wish to
 * end, stops all: those under way end at their next step, no other begins. */
#ifndef TM_LAB_JOBS_H
#define TM_LAB_JOBS_H

#include "lab/sequence.h"

/* run(context, item, err) for item = 0 .. count - 1, `jobs` at a time; the error is that of the first that failed. */
tm_status tm_lab_jobs_run(const tm_lab_calls *calls, int jobs, size_t count, tm_status (*run)(void *context, size_t item, tm_error *err), void *context,
                          tm_error *err) TM_MUST_CHECK;

#endif
