/* A sweep: one recipe with every combination of some keys' values, each an ordinary run, the best by an evaluation. */
#ifndef TM_LAB_SWEEP_H
#define TM_LAB_SWEEP_H

#include "lab/sequence.h"

typedef struct tm_sweep {
    const char *recipe;     /* path; NULL: arguments alone */
    tm_names fixed;         /* "key=value" of every run */
    tm_lab_grid grid;
    const char *out;
    const char *metric;     /* name of the evaluation that decides; NULL: the first that is no probe */
} tm_sweep;

/* Arguments: "key=a,b" is a key of the grid, any other "key=value" is fixed. Commas within brackets or quotes belong to a value. */
tm_status tm_sweep_arguments(tm_sweep *sweep, char *const *arguments, size_t count, tm_error *err) TM_MUST_CHECK;
void tm_sweep_deinit(tm_sweep *sweep);

/* Trains what is not there yet. json: also written to OUT/sweep.json; table: for people. */
tm_status tm_sweep_run(const tm_sweep *sweep, const tm_lab_calls *calls, tm_buf *json, tm_buf *table, tm_error *err) TM_MUST_CHECK;

#endif
