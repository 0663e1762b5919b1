/* The data of `temper bench forgetting`: a small world that a small model can know by heart, and what it is then
 * taught. Everything follows from the seed and two public-domain texts; no row of a test or validation file is in
 * a training file.
 *
 *   old/{people,prose}-{train,valid,test}.jsonl   what the model is pretrained on, and tests of it
 *   old/replay.jsonl                              the part of old training data that replay, importances and joint training see
 *   TASK/{train,valid,test}.jsonl                 people, russian, arithmetic, conflict, style
 *   TASK/select.jsonl                             valid.jsonl and as much of the old: what configurations are chosen on
 *
 * Rows are completions. A fact is one sentence of about a dozen tokens; a person has TM_ATTRIBUTES of them, each told
 * by TM_TRAINED of TM_TEMPLATES templates. Another one asks for it in validation and another in the test: recall is
 * measured in words that were never seen with that person, though with others. */
#ifndef TM_LAB_FORGETTING_H
#define TM_LAB_FORGETTING_H

#include "base/buf.h"

enum { TM_ATTRIBUTES = 5, TM_TEMPLATES = 6, TM_TRAINED = 4 };

/* Which file of a data set a row goes to. */
typedef enum tm_part { TM_PART_TRAIN, TM_PART_VALID, TM_PART_TEST, TM_PARTS } tm_part;

typedef struct tm_world {
    uint64_t seed;
    int64_t people, new_people; /* the first half of people is changed by the task `conflict` */
    const char *english;        /* texts, plain or gzip */
    const char *russian_train, *russian_test;
} tm_world;

/* Writes all files below dir. */
tm_status tm_world_write(const tm_world *world, const char *dir, tm_error *err) TM_MUST_CHECK;

/* What is run on it. */
enum { TM_FORGETTING_TASKS = 5 };
typedef struct tm_forgetting_form {
    const char *data, *model;
    bool quick;              /* few arms, fewer rows */
    bool grid;               /* configurations are chosen on select.jsonl */
    int tasks;               /* the first so many */
    int seeds, orders;
    int steps, batch_tokens; /* of a task */
} tm_forgetting_form;

/* The form that recipes/forgetting.yaml is, and the short one. */
tm_forgetting_form tm_forgetting_form_of(bool quick, const char *data, const char *model);
/* The sequence as YAML, appended to out. data and model must be fit for a quoted YAML scalar: no quote, no backslash. */
tm_status tm_forgetting_recipe(const tm_forgetting_form *form, tm_buf *out, tm_error *err) TM_MUST_CHECK;

/* --- Its parts, each appending rows to out[part] --- */

/* Facts of people first .. first + count (of a list without end that the seed fixes: no name comes twice in
 * TM_NAMES_MOST). */
enum { TM_NAMES_MOST = 2400 };
typedef enum tm_facts {
    TM_FACTS_ALL,     /* of everybody */
    TM_FACTS_KEPT,    /* those that `conflict` leaves as they are */
    TM_FACTS_CHANGED, /* those that it changes, as they are afterwards */
} tm_facts;
void tm_world_people(const tm_world *world, int64_t first, int64_t count, tm_facts which, tm_buf out[TM_PARTS]);

/* Sums, differences and products of small numbers, each in one part only. */
void tm_world_arithmetic(uint64_t seed, tm_buf out[TM_PARTS]);

/* The text between two shares of its length, from line to line, in rows of at most `bytes`. */
void tm_world_prose(const char *text, size_t size, double from, double to, size_t bytes, tm_buf *out);

/* A row: what stands before, and what is to be learned. */
void tm_world_row(tm_buf *out, const char *prompt, const char *completion, size_t completion_size);

/* A number below n that belongs to a seed and a place. */
int64_t tm_world_draw(uint64_t seed, uint32_t a, uint32_t b, uint32_t c, int64_t n);

#endif
