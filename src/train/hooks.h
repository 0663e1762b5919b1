/* Hooks: where methods that keep skills, and monitors, join the loop. A method is one file in
 * src/keep/ that fills one tm_hook; every function may be NULL. It is added while the trainer is built (tm_run.add_hooks),
 * also on the counting device, and takes the device memory that it needs from the arena TM_MEM_KEEP then. */
#ifndef TM_TRAIN_HOOKS_H
#define TM_TRAIN_HOOKS_H

#include "base/buf.h"

struct tm_trainer;

typedef enum tm_verdict { TM_GO_ON, TM_STOP, TM_ROLL_BACK } tm_verdict;

typedef struct tm_hook {
    const char *name;
    bool replicas; /* works with R > 1 */
    void *state;   /* owned; given to every function */
    /* The base's weights are loaded and nothing else: the moment to ask the base, and to settle which targets there are. */
    tm_status (*base)(void *state, struct tm_trainer *t, tm_error *err);
    /* Before the first step, what is trained has its first values; on a resumed run load follows. */
    tm_status (*begin)(void *state, struct tm_trainer *t, tm_error *err);
    /* After accumulation, before norm and clip: queues what adds to gradients, and adds the penalty of replica r to the
     * double at t->penalty + r, on the device. */
    tm_status (*penalty)(void *state, struct tm_trainer *t, tm_error *err);
    /* Behind the optimiser's update of step t->step + 1, before its trail: queues what a method does to trained values. */
    tm_status (*update)(void *state, struct tm_trainer *t, tm_error *err);
    /* After the optimiser's step. */
    tm_status (*step)(void *state, struct tm_trainer *t, tm_error *err);
    /* After an evaluation of all sets (t->evals). */
    tm_status (*evaluate)(void *state, struct tm_trainer *t, int32_t replica, tm_verdict *verdict, tm_error *err);
    /* After the last step. What changes the result here sets t->result_changed (and leaves it alone with t->verdict
     * TM_ROLL_BACK): then the result is evaluated once more. */
    tm_status (*end)(void *state, struct tm_trainer *t, tm_error *err);
    /* The monitor rolled that result back (the bytes of t->trained are restored): undoes what end did beside them. */
    tm_status (*undo)(void *state, struct tm_trainer *t, tm_error *err);
    /* State of a replica that a checkpoint must hold, in files of its folder. */
    tm_status (*save)(void *state, struct tm_trainer *t, int32_t replica, const char *folder, tm_error *err);
    tm_status (*load)(void *state, struct tm_trainer *t, int32_t replica, const char *folder, tm_error *err);
    void (*destroy)(void *state);
} tm_hook;

#endif
