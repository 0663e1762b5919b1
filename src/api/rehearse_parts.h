/* What is made before a run for its rehearsal, and the record of it. Private to rehearse*.c. */
#ifndef TM_API_REHEARSE_PARTS_H
#define TM_API_REHEARSE_PARTS_H

#include "api/job.h"
#include "base/json.h"

/* OUT/rehearsal.json: an object with a part for each thing made: what it was made of, and what came of it. */
typedef struct tm_rehearsal_record {
    const tm_recipe *recipe;
    tm_seeds seeds;
    const tm_callbacks *callbacks;
    const char *dir; /* OUT */
    json_t *json;
    bool begun;      /* the folder holds a run: nothing of it is replaced */
} tm_rehearsal_record;

/* *made: the record has this part, made of the same subject. TM_LOCKED when it is of another, and the run was begun. */
tm_status tm_rehearsal_find(const tm_rehearsal_record *record, const char *part, const json_t *subject, bool *made, tm_error *err) TM_MUST_CHECK;
/* Puts a part (taken over; NULL: memory ran out) into the record and writes it. */
tm_status tm_rehearsal_put(tm_rehearsal_record *record, const char *part, json_t *json, tm_error *err) TM_MUST_CHECK;
void tm_rehearsal_say(const tm_rehearsal_record *record, const char *fmt, ...) TM_PRINTF(2, 3);
/* TM_FAILED when the caller wants to end. */
tm_status tm_rehearsal_go_on(const tm_rehearsal_record *record, tm_error *err) TM_MUST_CHECK;

/* rehearse_generate.c: OUT/rehearsal.jsonl, the texts that the base writes. */
tm_status tm_rehearsal_generate(tm_rehearsal_record *record, tm_error *err) TM_MUST_CHECK;
/* rehearse_choose.c: which rows of keep.replay.path the buffer keeps, where the base has a say in it. */
tm_status tm_rehearsal_choose(tm_rehearsal_record *record, tm_error *err) TM_MUST_CHECK;

#endif
