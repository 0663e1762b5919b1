/* Advice as rules: from what was seen of a task and its base to settings, each with a reason and what it rests on. No files, no
 * device: what looks at those is advise.c.
 *
 * Invariants:
 *  1. Every setting is a key of recipes with a value that the parser takes.
 *  2. A figure stands in evidence.def alone. */
#ifndef TM_API_ADVISE_RULES_H
#define TM_API_ADVISE_RULES_H

#include <stdbool.h>
#include <stdint.h>

typedef enum tm_evidence {
#define EVIDENCE(name, text) TM_EVIDENCE_##name,
#include "api/evidence.def"
#undef EVIDENCE
    TM_EVIDENCE_COUNT
} tm_evidence;
const char *tm_evidence_text(tm_evidence evidence);

typedef struct tm_situation {
    int64_t examples, tokens, targets; /* of the task's data */
    bool documents;    /* every row is plain text: nobody asks and answers */
    double surprise;   /* mean loss of a target under the base, nats; NaN: not measured */
    double known;      /* the same of what it can already: the probes; NaN: there are none */
    double surprising; /* share of targets whose perplexity under the base exceeds TM_SURPRISING; NaN: not measured */
    bool old_data;     /* keep.replay.path or keep.ewc.path */
    bool probes;
    int64_t tasks;     /* that come one after another */
    bool lora_fits, full_fits;
    bool lora_ewc_fits, full_ewc_fits; /* with importances beside it, and their measurement before it */
} tm_situation;

#define TM_SURPRISING 2.5

/* How far the data are from the model. */
typedef enum tm_shift { TM_SHIFT_NEAR, TM_SHIFT_MILD, TM_SHIFT_STRONG } tm_shift;
tm_shift tm_shift_of(const tm_situation *s);

typedef struct tm_advised {
    const char *key;   /* of the recipe; NULL: a remark without a setting */
    char value[32];
    char reason[400];
    tm_evidence evidence;
} tm_advised;

enum { TM_ADVISED_MAX = 24 };
typedef struct tm_counsel {
    tm_advised item[TM_ADVISED_MAX]; /* settings of one group stand together */
    int count;
    bool retrieve; /* facts of few documents: look them up instead */
} tm_counsel;

void tm_counsel_give(const tm_situation *s, tm_counsel *out);

#endif
