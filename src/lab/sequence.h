/* A sequence: tasks one after another, in several orders, with several seeds, by every arm; the scores after each.
 *
 * Invariants:
 *  1. Every training is an ordinary run in a folder of its own, every evaluation a file eval.json beside its result:
 *     what is there is not done again, so a sequence goes on wherever it was killed.
 *  2. The same sequence gives the same bytes of results.json: nothing of time or machine enters it.
 *  3. Test sets are looked at only with configurations that were chosen on validation sets. */
#ifndef TM_LAB_SEQUENCE_H
#define TM_LAB_SEQUENCE_H

#include "lab/metrics.h"
#include "lab/sequence_file.h"

/* What the laboratory asks of those above it. Recipes are the callee's from the call on. */
typedef struct tm_lab_calls {
    void *context;
    /* Trains into the recipe's out; a finished run there is left as it is. */
    tm_status (*train)(void *context, tm_recipe *recipe, tm_error *err);
    /* The value of every evaluation's own metric. */
    tm_status (*evaluate)(void *context, tm_recipe *recipe, double *values, tm_error *err);
    /* model with adapter in its weights, to a new folder. */
    tm_status (*merge)(void *context, const char *model, const char *adapter, const char *out, tm_error *err);
    /* Every example of the recipe's data, and of keep.replay, as rows of format tokens: a file, whole or not at all. */
    tm_status (*rows)(void *context, tm_recipe *recipe, const char *out, tm_error *err);
    void (*note)(void *context, const char *text);
} tm_lab_calls;

/* One chain of trainings: an arm in one order with one seed. */
typedef struct tm_lab_chain {
    size_t order;
    uint64_t seed;
    double *r;                /* [tasks + 1, tasks], by the order's places; NaN: not measured */
    double *probe;            /* [tasks + 1, probes] */
    tm_sequence_metrics metrics;
} tm_lab_chain;

typedef struct tm_lab_config { /* of a grid, on validation sets: means over its chains */
    tm_names settings;
    tm_sequence_metrics metrics;
} tm_lab_config;

typedef struct tm_lab_arm_result {
    tm_lab_chain *chain; /* [chains]: seeds within orders; of a joint arm seeds alone, of a frozen one a single chain */
    size_t chains;
    tm_lab_config *config; /* [configs]; NULL: no grid */
    size_t configs, chosen;
} tm_lab_arm_result;

typedef struct tm_sequence_result {
    tm_lab_arm_result *arm; /* [file->arms] */
} tm_sequence_result;

/* Runs all of it below the folder out. */
tm_status tm_sequence_run(const tm_sequence_file *file, char *const *overrides, size_t override_count, const char *out, const tm_lab_calls *calls,
                          tm_sequence_result *result, tm_error *err) TM_MUST_CHECK;
void tm_sequence_result_deinit(tm_sequence_result *result, const tm_sequence_file *file);

#endif
