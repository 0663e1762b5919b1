/* Folders, evaluations and adapters of a sequence's stages: what sequence.c is made of. */
#ifndef TM_LAB_STAGE_H
#define TM_LAB_STAGE_H

#include "lab/sequence.h"

/* A model that was made: a folder of weights and an adapter on them. */
typedef struct tm_lab_state {
    char *model, *adapter; /* owned; adapter NULL: none */
    char *run;             /* folder of the training that made it, owned; NULL: the start model */
    char hash[65];         /* of what was trained, and of all before it; "" of the start model */
} tm_lab_state;

void tm_lab_state_deinit(tm_lab_state *state);

typedef struct tm_lab_runner {
    const tm_sequence_file *file;
    char *const *overrides;
    size_t override_count;
    const char *out;
    const tm_lab_calls *calls;
    size_t done, total; /* trainings */
    tm_error *err;
} tm_lab_runner;

/* "key=value" whose value may begin like a flow collection. */
tm_status tm_lab_set(tm_names *list, const char *key, const char *value, tm_error *err) TM_MUST_CHECK;

/* Values of the sets for a state, from `folder`/NAME.json where they were measured before, else measured and stored. */
tm_status tm_lab_evaluate(tm_lab_runner *r, const tm_lab_state *state, tm_lab_sets sets, const char *folder, double *values) TM_MUST_CHECK;

/* Trains recipe (owned by the call) into folder; next: what came of it, from `from`. */
tm_status tm_lab_train(tm_lab_runner *r, tm_recipe *recipe, const tm_lab_state *from, const char *folder, tm_lab_state *next) TM_MUST_CHECK;

/* The state's adapter merged into its model: state->model is then run/merged. */
tm_status tm_lab_merge(tm_lab_runner *r, tm_lab_state *state) TM_MUST_CHECK;

/* What `replay: previous` rehearses while a task is learned: rows of tasks [count] before it, and of what the arm
 * rehearses anyway; below OUT/previous. Adds keep.replay to settings; nothing when there is nothing to rehearse. */
tm_status tm_lab_rehearse(tm_lab_runner *r, const tm_lab_arm *arm, const int32_t *tasks, size_t count, tm_names *settings) TM_MUST_CHECK;

/* Scores of the tests when a router chooses among the modules [tasks of the file], and its confusions (tm_lab_calls.route); from
 * folder/routed.json where they were measured before. */
tm_status tm_lab_route(tm_lab_runner *r, const tm_lab_state *modules, const char *folder, double *scores, int64_t *confusion) TM_MUST_CHECK;

#endif
