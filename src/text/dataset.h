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
    int32_t file;          /* of the entry: tm_dataset_file */
    int64_t line;          /* 1-based line of the row (a row of Parquet; a block's number of a text) */
} tm_example;

typedef struct tm_dataset tm_dataset;

typedef struct tm_dataset_stats {
    int64_t rows, examples, tokens, targets;
    int64_t cut;        /* examples longer than seq that were shortened */
    int64_t dropped;    /* of these, those that had no target left; they are no examples */
    int64_t duplicates; /* examples left out by `dedup` */
    int64_t text_bytes; /* UTF-8 bytes of the target tokens' text, for bits a byte */
} tm_dataset_stats;

typedef struct tm_data_settings {
    const char *base_dir;       /* relative paths begin here; NULL: the current folder */
    const tm_tokenizer *tok;    /* NULL: every entry is of format tokens */
    const char *model;          /* folder whose chat template is used; NULL: none */
    int64_t vocab_size;         /* an id outside is refused */
    int64_t seq;                /* texts are cut into blocks, other rows cut off at so many tokens */
    const char *tokenizer_hash; /* names tok in the token cache; NULL: no cache */
    const char *cache;          /* folder of the token cache; NULL: tokens stay in memory */
    int64_t supposed, supposed_tokens; /* an entry without a path (one that is yet to be made): so many examples of so many tokens */
    int64_t cache_from;         /* bytes of an entry's files from which on the cache is used */
} tm_data_settings;

/* Reads and tokenises the entries. A row without a target, a damaged row, a file that is none: TM_INPUT
 * with file and line. */
tm_status tm_dataset_load(const tm_data_entry *entries, int64_t count, const tm_data_settings *settings, tm_pool *pool,
                          tm_dataset **out, tm_error *err) TM_MUST_CHECK;
void tm_dataset_destroy(tm_dataset *data);
int64_t tm_dataset_count(const tm_dataset *data);
const tm_example *tm_dataset_at(const tm_dataset *data, int64_t i);
int64_t tm_dataset_sources(const tm_dataset *data);
/* Index of a source's first example: the examples of a source stand together, sources in order. Of `sources`: the count. */
int64_t tm_dataset_first(const tm_dataset *data, int64_t source);
const tm_dataset_stats *tm_dataset_stats_of(const tm_dataset *data, int64_t source);
const tm_sha256 *tm_dataset_hash(const tm_dataset *data, int64_t source); /* of the file(s) */
const char *tm_dataset_file(const tm_dataset *data, int64_t source, int32_t file); /* its path */
tm_status tm_data_path_hash(const char *path, tm_sha256 *out, tm_error *err) TM_MUST_CHECK; /* the same of an entry's path */
typedef enum tm_cache_use { TM_CACHE_NONE, TM_CACHE_WRITTEN, TM_CACHE_USED } tm_cache_use;
tm_cache_use tm_dataset_cache(const tm_dataset *data, int64_t source);

/* Holds out the share val_split of the rows of every entry that asks for it (at least one, never all):
 * those with the lowest hash of seed (seeds.subset) and content, so equal rows stay together. Both halves
 * keep the order of the file. *held is NULL when no entry asks. rows, cut, dropped and duplicates stay with
 * data; text_bytes is shared out by targets. */
tm_status tm_dataset_split(tm_dataset *data, const tm_data_entry *entries, uint64_t seed, tm_dataset **held,
                           tm_error *err) TM_MUST_CHECK;

/* Leaves out the examples of a source whose keep[] (of its first example on) is false. Both the source's rows and what
 * became of them (cut, dropped, duplicates) are counted as before. */
void tm_dataset_keep(tm_dataset *data, int64_t source, const bool *keep);

/* Takes targets away: bit k (of bits[k / 8], the lowest first) is of the k-th target of the examples [0, first example
 * of source `sources`). Examples that lose some get weights that the data set owns; one may be left without a target.
 * All or nothing. */
tm_status tm_dataset_mask(tm_dataset *data, int64_t sources, const uint8_t *bits, tm_error *err) TM_MUST_CHECK;

/* A permutation of 0 .. n - 1 that depends on the key alone (docs/formats/data.md says how). */
void tm_permutation(uint64_t key, int64_t n, int64_t *out);

/* Calls `take` for every example of a source, in order, with the value of a field of its row (NULL: the row has no
 * such field). The files are read once more. A text has no fields: TM_RECIPE. */
struct json_t;
typedef tm_status tm_field_take(void *context, int64_t example, const struct json_t *value, tm_error *err);
tm_status tm_dataset_field(const tm_dataset *data, int64_t source, const tm_data_entry *entry, const char *field,
                           tm_field_take *take, void *context, tm_error *err) TM_MUST_CHECK;

/* --- What data sets share --- */

enum { TM_OVERLAP_SHOWN = 3 };
typedef struct tm_overlap {
    int64_t examples, whole;        /* that were found elsewhere; of these, all their words */
    int64_t held[TM_OVERLAP_SHOWN]; /* the first of them, and the training examples where they were found */
    int64_t train[TM_OVERLAP_SHOWN];
} tm_overlap;
/* Which of the first examples[i] examples of sets[i] are in the training data (out[count]): all words, or 13
 * words in a row. Looks at 64 Mi tokens of training data at most. tok NULL: ids stand for words. */
tm_status tm_dataset_overlap(const tm_dataset *train, const tm_dataset *const *sets, const int64_t *examples,
                             int64_t count, const tm_tokenizer *tok, tm_pool *pool, tm_overlap *out,
                             tm_error *err) TM_MUST_CHECK;
/* Examples of the first `sources` entries that are the same tokens and targets as an earlier one of the same entry: what
 * dedup leaves out. */
tm_status tm_dataset_duplicates(const tm_dataset *data, int64_t sources, tm_overlap *out, tm_error *err) TM_MUST_CHECK;
/* A hash of ids and of which are targets, 64 bits; docs/formats/data.md gives the formula. */
uint64_t tm_tokens_hash(uint64_t seed, const int32_t *ids, const float *weight, int64_t n);

/* --- The bridge: what is asked of a model that goes from scenes to texts and back --- */

typedef enum tm_bridge_way { TM_BRIDGE_TO_TEXT, TM_BRIDGE_TO_SCENE } tm_bridge_way;
/* Appends what the user says: the instruction, an empty line, and the scene (or text) itself. Without a chat
 * template another empty line follows, and then the answer. */
void tm_bridge_prompt(tm_bridge_way way, const char *from, size_t size, tm_buf *out);

/* --- Order: which examples the steps of a run see --- */

typedef struct tm_order_settings {
    uint64_t seed;      /* seeds.order */
    int mix;            /* TM_MIX_...: what weights mean */
    bool shuffle;       /* a new permutation every epoch, by Philox */
    int64_t batch;      /* examples a step, or ... */
    int64_t batch_tokens; /* ... tokens a step (> 0), examples until the next would not fit; at least one */
    int64_t accumulate; /* multiplies either */
    int64_t steps;      /* > 0: so many steps; else by epochs */
    double epochs;      /* passes over the data */
    const double *rehearsal; /* [rehearsals]: what share of the run's tokens each of the last sources has; sum < 1 */
    int64_t rehearsals;
} tm_order_settings;

typedef struct tm_order tm_order;

/* An epoch takes every example of every source once where all weights are equal. With other weights an
 * epoch has the tokens of the data and each next example's source is drawn (by Philox, purpose MIX) so
 * that the share of tokens follows weight times size; a source that is used up starts over with a new
 * permutation. Steps run across the ends of epochs; the last step of a run by epochs takes what is
 * left. entries NULL: all weights equal.
 *
 * Rehearsal: epochs, weights and mixtures are of the sources before. At every place of the list Philox (purpose REHEARSAL)
 * says whether an example of a rehearsal source stands there instead of the next one of the others, whose sequence stays
 * as it is; the chances follow from the mean lengths, so that shares of tokens are met in expectation. Each such source is
 * taken permutation after permutation. */
tm_status tm_order_create(const tm_dataset *data, const tm_data_entry *entries, const tm_order_settings *settings,
                          tm_order **out, tm_error *err) TM_MUST_CHECK;
void tm_order_destroy(tm_order *order);
int64_t tm_order_steps(const tm_order *order);
/* Indices of the examples of a step (0-based), borrowed until destroy; any step, in any order of calls:
 * a resumed run asks for step k without having asked for the ones before. */
void tm_order_step(const tm_order *order, int64_t step, const int64_t **examples, int64_t *count);

#endif
