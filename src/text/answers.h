/* What rows say beside their tokens and evaluation needs: the right choice and how long the options are, the text a
 * simplification came from, further references. Kept apart from data sets, which hold tokens alone. */
#ifndef TM_TEXT_ANSWERS_H
#define TM_TEXT_ANSWERS_H

#include "base/json.h"
#include "base/names.h"
#include "text/dataset.h"

typedef struct tm_answer { /* of one row */
    int32_t file;
    int64_t line;          /* with file: as tm_example has them */
    int32_t correct;       /* format choice: index of the right option; else -1 */
    int32_t options;
    int32_t *chars;        /* [options] characters */
    char *source;          /* NULL: none */
    tm_names references;
} tm_answer;

typedef struct tm_answers {
    tm_answer *item; /* in the order of the files */
    size_t count, capacity;
} tm_answers;

/* Only rows that have something of it are kept. */
tm_status tm_answers_load(const tm_data_entry *entry, tm_answers *out, tm_error *err) TM_MUST_CHECK;
void tm_answers_deinit(tm_answers *answers);
const tm_answer *tm_answers_find(const tm_answers *answers, int32_t file, int64_t line); /* NULL: none */

/* The index that "answer" means: a number from 0, the option's text, or its letter (A, B, ...). */
tm_status tm_answer_of(const json_t *answer, const json_t *choices, int32_t *out, tm_error *err) TM_MUST_CHECK;

/* --- The bridge, asked with a text that no row has --- */

typedef struct tm_bridge tm_bridge;
tm_status tm_bridge_open(const tm_data_entry *entry, const tm_data_settings *settings, tm_bridge **out, tm_error *err) TM_MUST_CHECK;
void tm_bridge_close(tm_bridge *bridge);
/* The ids up to the answer, as rows of the bridge have them. */
tm_status tm_bridge_ids(tm_bridge *bridge, tm_bridge_way way, const char *from, tm_ids *ids, tm_error *err) TM_MUST_CHECK;

#endif
