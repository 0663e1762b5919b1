/* The pull to the start that EWC and L2-SP share: strength/2 sum F (theta - theta*)^2 over everything that is trained, theta* being the
 * weights when the run begins; F = 1 where there are no importances. Of LoRA the distance is that of dW = scale B A, which no other
 * choice of A and B with the same product changes; or (apart) of A and B themselves. docs/math/ewc.md. */
#ifndef TM_KEEP_ANCHOR_H
#define TM_KEEP_ANCHOR_H

#include "train/trainer.h"

typedef struct tm_anchor_settings {
    const char *name;  /* of the hook */
    const char *key;   /* of the recipe, for messages */
    double strength;
    bool importances;  /* read from tm_run.importances when the run begins */
    bool apart;        /* of A and B themselves */
    bool replicas;     /* works with R > 1 */
} tm_anchor_settings;

/* Adds the hook and takes its memory from TM_MEM_KEEP. TM_UNSUPPORTED for what has no dW (DoRA, registers, LoRA on the embedding)
 * unless apart. */
tm_status tm_anchor_add(tm_trainer *t, const tm_anchor_settings *settings, tm_error *err) TM_MUST_CHECK;

#endif
