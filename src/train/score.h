/* Scores beyond the loss: which there are, and how a set gets them. */
#ifndef TM_TRAIN_SCORE_H
#define TM_TRAIN_SCORE_H

#include "train/trainer.h"

typedef struct tm_metric {
    const char *name;
    const char *key[2]; /* of tm_scores.score in rows; NULL: none */
    bool rises;         /* better when larger */
    bool generates;     /* from generated text */
} tm_metric;
extern const tm_metric tm_metrics[TM_METRIC_COUNT]; /* by TM_METRIC_... */

/* The value of a metric among scores. */
double tm_metric_value(int metric, const tm_scores *scores);
int tm_metric_named(const char *name, size_t size); /* -1: none */

/* Examples of a data set that stand for at most `rows` rows (0: all): several may be of one row. */
int64_t tm_eval_examples(const tm_dataset *data, int metric, int64_t rows);
/* Tokens of cache that generating for a set needs. */
int64_t tm_eval_cache_tokens(const tm_eval_set *set);

/* What the model said of one example with its own targets before it. */
typedef struct tm_example_score {
    double loss; /* sum over its targets, nats */
    int32_t targets, hits;
} tm_example_score;

/* Adds what the set's metric asks for beside the loss; items (may be NULL) gets a JSON line an item. */
tm_status tm_score_set(tm_trainer *t, const tm_eval_set *set, int32_t replica, const tm_example_score *each, tm_scores *out,
                       tm_buf *items, tm_error *err) TM_MUST_CHECK;

#endif
