/* The parts of temper compare. */
#ifndef TM_API_COMPARE_H
#define TM_API_COMPARE_H

#include "base/json.h"

/* How another model predicts the targets of a data set, against the first one. */
typedef struct tm_token_scores {
    double loss;                     /* nats a target */
    double kl;                       /* mean KL(first || this) */
    int64_t targets, agree;          /* targets; the same token on top */
    int64_t to_wrong, to_right;      /* flips: the first had the target on top and this has not, or the reverse */
} tm_token_scores;

/* scores[path_count]; those of the first hold its own loss. */
tm_status tm_compare_tokens(const tm_compare_request *request, tm_token_scores *scores, tm_error *err) TM_MUST_CHECK;

#endif
