/* Data sets: rows of files become examples, which are all that training sees.
 *
 * An example is a sequence of token ids and, a token, the weight of its loss as a target. Token i is
 * predicted from tokens < i; weight[0] is therefore always 0. */
#ifndef TM_TEXT_DATASET_H
#define TM_TEXT_DATASET_H

#include "base/hash.h"
#include "base/options.h"
#include "base/pool.h"
#include "text/tokenizer.h"

typedef struct tm_example {
    const int32_t *ids;    /* [n] */
    const float *weight;   /* [n]; NULL: 1 for every token but the first */
    int32_t n;
    int32_t targets;       /* tokens with weight > 0 */
    int32_t source;        /* index of the data entry */
    int64_t line;          /* 1-based line of the row (or block number of a text) */
} tm_example;

typedef struct tm_dataset tm_dataset;

typedef struct tm_dataset_stats {
    int64_t rows, examples, tokens, targets;
    int64_t cut;        /* rows longer than seq that were shortened */
    int64_t dropped;    /* of these, rows that had no target left; they are no examples */
    int64_t text_bytes; /* UTF-8 bytes of the target tokens' text, for bits a byte */
} tm_dataset_stats;

/* Reads and tokenises the entries (paths relative to base_dir unless absolute); tok may be NULL when
 * every entry is of format tokens. vocab_size bounds the ids (an id outside is refused). Blocks and
 * cuts at seq tokens. A row without a target is TM_INPUT with file and line. */
tm_status tm_dataset_load(const tm_data_entry *entries, int64_t count, const char *base_dir, const tm_tokenizer *tok,
                          int64_t vocab_size, int64_t seq, tm_pool *pool, tm_dataset **out,
                          tm_error *err) TM_MUST_CHECK;
void tm_dataset_destroy(tm_dataset *data);
int64_t tm_dataset_count(const tm_dataset *data);
const tm_example *tm_dataset_at(const tm_dataset *data, int64_t i);
int64_t tm_dataset_sources(const tm_dataset *data);
const tm_dataset_stats *tm_dataset_stats_of(const tm_dataset *data, int64_t source);
const tm_sha256 *tm_dataset_hash(const tm_dataset *data, int64_t source); /* of the file(s) */

/* Holds out the share val_split of the examples of every entry that asks for it (at least one, never
 * all), chosen by seed (seeds.subset); both halves keep the order of the file. *held is NULL when no
 * entry asks. rows, cut and dropped stay with data; text_bytes is shared out by targets. */
tm_status tm_dataset_split(tm_dataset *data, const tm_data_entry *entries, uint64_t seed, tm_dataset **held,
                           tm_error *err) TM_MUST_CHECK;

/* A permutation of 0 .. n - 1 that depends on the key alone (docs/formats/data.md says how). */
void tm_permutation(uint64_t key, int64_t n, int64_t *out);

/* --- Order: which examples the steps of a run see --- */

typedef struct tm_order_settings {
    uint64_t seed;      /* seeds.order */
    bool shuffle;       /* a new permutation every epoch, by Philox */
    int64_t batch;      /* examples a step, or ... */
    int64_t batch_tokens; /* ... tokens a step (> 0), examples until the next would not fit; at least one */
    int64_t accumulate; /* multiplies either */
    int64_t steps;      /* > 0: so many steps; else by epochs */
    double epochs;      /* passes over the data */
} tm_order_settings;

typedef struct tm_order tm_order;

/* An epoch takes every example of every source once where all weights are equal. With other weights an
 * epoch has the tokens of the data and each next example's source is drawn (by Philox, purpose MIX) so
 * that the share of tokens follows weight times size; a source that is used up starts over with a new
 * permutation. Steps run across the ends of epochs; the last step of a run by epochs takes what is
 * left. entries NULL: all weights equal. */
tm_status tm_order_create(const tm_dataset *data, const tm_data_entry *entries, const tm_order_settings *settings,
                          tm_order **out, tm_error *err) TM_MUST_CHECK;
void tm_order_destroy(tm_order *order);
int64_t tm_order_steps(const tm_order *order);
/* Indices of the examples of a step (0-based), borrowed until destroy; any step, in any order of calls:
 * a resumed run asks for step k without having asked for the ones before. */
void tm_order_step(const tm_order *order, int64_t step, const int64_t **examples, int64_t *count);

#endif
