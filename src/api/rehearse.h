/* Rehearsal: old examples that are trained again beside the new ones. They are the last sources of a run's data:
 * real ones (keep.replay), then texts that the base wrote (keep.generate). */
#ifndef TM_API_REHEARSE_H
#define TM_API_REHEARSE_H

#include "train/trainer.h"

enum { TM_REHEARSALS = 2 }; /* at most */

typedef struct tm_rehearsal {
    bool replay;
    int64_t count;                   /* sources */
    double fraction[TM_REHEARSALS];  /* of the run's tokens */
} tm_rehearsal;

/* What a recipe asks for; nothing where it does not train. A fraction of 0 is nothing. */
void tm_rehearsal_of(const tm_recipe *recipe, bool evaluate, tm_rehearsal *out);
/* Its entries [count]; text in them is borrowed from the recipe. */
void tm_rehearsal_entries(const tm_rehearsal *rehearsal, const tm_recipe *recipe, tm_data_entry *entries);
/* Leaves out what the buffer does not keep. */
tm_status tm_rehearsal_select(const tm_rehearsal *rehearsal, const tm_recipe *recipe, const tm_seeds *seeds, tm_dataset *data, tm_error *err) TM_MUST_CHECK;

#endif
