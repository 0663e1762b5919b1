/* A sequence: tasks one after another, in several orders, with several seeds, by every arm; the scores after each.
 *
 * Invariants:
 *  1. Every training is an ordinary run in a folder of its own, every evaluation a file eval.json beside its result:
 *     what is there is not done again, so a sequence goes on wherever it was killed.
 *  2. The same sequence gives the same bytes of results.json: nothing of time or machine enters it.
 *  3. Test sets are looked at only with configurations that were chosen on validation sets.
 *  4. A training that diverges is an outcome: a chain keeps the model it had, learns nothing more, and counts as it is.
 *  5. Chains know nothing of each other: several run side by side, and results do not depend on how many. */
#ifndef TM_LAB_SEQUENCE_H
#define TM_LAB_SEQUENCE_H

#include "lab/metrics.h"
#include "lab/sequence_file.h"

/* Separate modules, to be chosen by the prompt. recipe_of makes the recipe that evaluates the tests by module i, or, with i = tasks, by
 * the start model, and then with the training data of all tasks, entries[t] entries of each. */
typedef struct tm_lab_routing {
    size_t tasks;
    const size_t *entries;
    const uint64_t *known; /* [sets]: the tasks that are learned, by bits; prompts of all tasks go to their modules */
    size_t sets;
    tm_status (*recipe_of)(const void *owner, size_t module, tm_recipe **out, tm_error *err);
    const void *owner;
} tm_lab_routing;

/* How work is spread. */
typedef struct tm_lab_spread {
    int jobs;          /* pieces of work at a time */
    char device[320];  /* that they run on, as far as results depend on it */
} tm_lab_spread;

/* What the laboratory asks of those above it, from several threads at a time. Recipes are the callee's from the call on. */
typedef struct tm_lab_calls {
    void *context;
    /* Decides how many of `pieces` pieces of work run at a time, recipe[count] being what they are like; said once, before all others. */
    tm_status (*spread)(void *context, tm_recipe **recipe, size_t count, size_t pieces, tm_lab_spread *out, tm_error *err);
    /* Trains into the recipe's out; a finished run there is left as it is. TM_DIVERGED: also when it did so before. */
    tm_status (*train)(void *context, tm_recipe *recipe, tm_error *err);
    /* The value of every evaluation's own metric; kl: KL(start || the recipe's model), start a model folder. */
    tm_status (*evaluate)(void *context, tm_recipe *recipe, const char *start, double *values, tm_error *err);
    /* model with adapter in its weights, to a new folder. */
    tm_status (*merge)(void *context, const char *model, const char *adapter, const char *out, tm_error *err);
    /* Every example of the recipe's data, and of keep.replay, as rows of format tokens: a file, whole or not at all. */
    tm_status (*rows)(void *context, tm_recipe *recipe, const char *out, tm_error *err);
    /* Importances of the recipe's data (keep.ewc), to a file; add: older ones that they are added to, NULL: none. */
    tm_status (*importances)(void *context, tm_recipe *recipe, const char *out, const char *add, tm_error *err);
    /* scores [sets, tasks] of the tests when a router chooses the module of every prompt (NaN: the metric is no mean over prompts), and how often
     * it chose which: confusion [sets, tasks of the prompts, modules], zeroed before. */
    tm_status (*route)(void *context, const tm_lab_routing *routing, double *scores, int64_t *confusion, tm_error *err);
    /* The last four may be NULL. */
    void (*note)(void *context, const char *text);
    void (*progress)(void *context, size_t done, size_t total); /* trainings */
    bool (*stopped)(void *context); /* whether all is to end */
    void (*stop)(void *context);    /* ends what is under way: something failed */
} tm_lab_calls;

/* One chain of trainings: an arm in one order with one seed. */
typedef struct tm_lab_chain {
    size_t order;
    uint64_t seed;
    double *r;                /* [tasks + 1, tasks], by the order's places; NaN: not measured */
    double *probe;            /* [tasks + 1, probes] */
    int64_t *diverged;        /* [tasks of the file]: the step at which a training on the task diverged, 0: before its first, one after its last: by its scores; -1: it did not */
    tm_sequence_metrics metrics;
    double *routed;           /* separate modules, chosen by a router: [tasks, tasks], as R from row 1 on; NULL: not asked */
    int64_t *confusion;       /* [tasks, tasks]: prompts of a task that were given to a module, at the end */
} tm_lab_chain;

typedef struct tm_lab_config { /* of a grid, on validation sets: means over its chains */
    tm_names settings;
    tm_sequence_metrics metrics;
    size_t diverged; /* of its chains */
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

/* Whether a training of the chain diverged; how many chains of an arm have one. */
bool tm_lab_chain_diverged(const tm_lab_chain *chain, size_t tasks);
size_t tm_lab_diverged(const tm_lab_arm_result *arm, size_t tasks);

/* Runs all of it below the folder out. */
tm_status tm_sequence_run(const tm_sequence_file *file, char *const *overrides, size_t override_count, const char *out, const tm_lab_calls *calls,
                          tm_sequence_result *result, tm_error *err) TM_MUST_CHECK;
void tm_sequence_result_deinit(tm_sequence_result *result, const tm_sequence_file *file);

#endif
