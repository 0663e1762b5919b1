/* Folders, evaluations and adapters of a sequence's stages: what sequence.c is made of. */
#ifndef TM_LAB_STAGE_H
#define TM_LAB_STAGE_H

#include "lab/sequence.h"

#include "base/hash.h"

#include <pthread.h>

/* A model that was made: a folder of weights and an adapter on them. */
typedef struct tm_lab_state {
    char *model, *adapter; /* owned; adapter NULL: none */
    char *run;             /* folder of the training that made it, owned; NULL: the start model */
    char hash[65];         /* of what was trained, and of all before it; "" of the start model */
} tm_lab_state;

void tm_lab_state_deinit(tm_lab_state *state);

/* What the chains of a sequence share. */
typedef struct tm_lab_shared {
    double start[3][TM_LAB_MOST_TASKS]; /* scores of the start model on the sets of each kind */
    char model[65];                     /* hash of the start model */
    char device[320];                   /* tm_lab_spread */
    size_t total;                       /* trainings */
    pthread_mutex_t mutex;              /* of what follows, and of writing files that several chains need */
    tm_names path;                      /* whose contents were hashed: once, they are not to change meanwhile */
    tm_sha256 *hash;
    size_t hashes;                      /* room for them */
    size_t done;                        /* trainings */
} tm_lab_shared;

typedef struct tm_lab_runner {
    const tm_sequence_file *file;
    char *const *overrides;
    size_t override_count;
    const char *out;
    const tm_lab_calls *calls;
    tm_lab_shared *shared;
    size_t trained; /* trainings that were said to be done */
    tm_error *err; /* of this thread */
} tm_lab_runner;

/* So many more trainings are done. */
void tm_lab_advance(tm_lab_runner *r, size_t trainings);
/* Hash of data at a path (file, folder, pattern). */
tm_status tm_lab_hash(tm_lab_runner *r, const char *path, tm_sha256 *out) TM_MUST_CHECK;
/* What an evaluation of a recipe depends on beside the model, appended. */
tm_status tm_lab_put_sets(tm_lab_runner *r, const tm_recipe *recipe, tm_buf *out) TM_MUST_CHECK;

/* "key=value" whose value may begin like a flow collection. */
tm_status tm_lab_set(tm_names *list, const char *key, const char *value, tm_error *err) TM_MUST_CHECK;

/* Values of the sets for a state, from `folder`/NAME.json where they were measured before, else measured and stored. */
tm_status tm_lab_evaluate(tm_lab_runner *r, const tm_lab_state *state, tm_lab_sets sets, const char *folder, double *values) TM_MUST_CHECK;

/* Trains recipe (owned by the call) into folder; next: what came of it, from `from`. TM_DIVERGED: nothing came of it. */
tm_status tm_lab_train(tm_lab_runner *r, tm_recipe *recipe, const tm_lab_state *from, const char *folder, tm_lab_state *next) TM_MUST_CHECK;

/* The step at which the training in folder diverged; one after its last: its scores say so; 0: before its first. */
tm_status tm_lab_diverged_at(const tm_lab_runner *r, const char *folder, int64_t *step) TM_MUST_CHECK;

/* The state's adapter merged into its model: state->model is then run/merged. */
tm_status tm_lab_merge(tm_lab_runner *r, tm_lab_state *state) TM_MUST_CHECK;

/* What `replay: previous` rehearses while a task is learned: rows of tasks [count] before it, and of what the arm
 * rehearses anyway; below OUT/previous. Adds keep.replay to settings; nothing when there is nothing to rehearse. */
tm_status tm_lab_rehearse(tm_lab_runner *r, const tm_lab_arm *arm, const int32_t *tasks, size_t count, tm_names *settings) TM_MUST_CHECK;

/* Scores of the tests when a router chooses among the modules of known[sets] of all [tasks of the file], and its confusions (tm_lab_calls.route). */
tm_status tm_lab_route(tm_lab_runner *r, const tm_lab_state *modules, const uint64_t *known, size_t sets, double *scores, int64_t *confusion) TM_MUST_CHECK;

#endif
