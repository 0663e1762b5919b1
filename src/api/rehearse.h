/* Rehearsal: old examples that are trained again beside the new ones. They are the last sources of a run's data:
 * real ones (keep.replay), then texts that the base wrote (keep.generate). docs/formats/rehearsal.md. */
#ifndef TM_API_REHEARSE_H
#define TM_API_REHEARSE_H

#include "train/trainer.h"

enum { TM_REHEARSALS = 2 }; /* at most */

typedef struct tm_rehearsal {
    bool replay, generate;
    int64_t count;                   /* sources */
    double fraction[TM_REHEARSALS];  /* of the run's tokens */
    char *texts;                     /* path of what the base wrote; NULL: it is not there yet, and taken to be as long as it may get */
    int64_t looked_at;               /* tokens of all old examples, where a buffer keeps some of them */
    char *record;                    /* path of rehearsal.json; NULL: a random buffer stands for one that the base chooses */
} tm_rehearsal;

/* What a recipe asks for; nothing where it does not train. A fraction of 0 is nothing. plan: nothing is made for it. */
tm_status tm_rehearsal_of(const tm_recipe *recipe, bool evaluate, bool plan, tm_rehearsal *out, tm_error *err) TM_MUST_CHECK;
void tm_rehearsal_deinit(tm_rehearsal *rehearsal);
/* Its entries [count]; text in them is borrowed from the recipe and from here. A path NULL: see tm_data_settings. */
void tm_rehearsal_entries(const tm_rehearsal *rehearsal, const tm_recipe *recipe, tm_data_entry *entries);
/* Leaves out what the buffer does not keep; sets looked_at. */
tm_status tm_rehearsal_select(tm_rehearsal *rehearsal, const tm_recipe *recipe, const tm_seeds *seeds, tm_dataset *data, tm_error *err) TM_MUST_CHECK;

/* Whether tm_rehearsal_prepare would begin: the base is asked for something, and its folder has nothing of it yet. */
bool tm_rehearsal_to_make(const tm_recipe *recipe);
/* Makes what a run's rehearsal needs before it, in its folder: texts of the base, and a buffer that the base chooses. What is
 * there already, made of the same, is left as it is. */
tm_status tm_rehearsal_prepare(const tm_recipe *recipe, const tm_callbacks *callbacks, tm_error *err) TM_MUST_CHECK;

#endif
