/* What a sequence of tasks says about learning and forgetting: R[i][j] is the score on the j-th task of the order
 * after the i-th was learned; row 0 is the start model. Formulas: docs/formats/sequence.md.
 *
 * Scores may be better when larger (accuracies) or when smaller (losses): gains are counted as "better by", so that BWT
 * and FWT are positive when it got better, forgetting is positive when it got worse, whatever the metric. */
#ifndef TM_LAB_METRICS_H
#define TM_LAB_METRICS_H

#include "base/status.h"

/* X(member, words, better when larger: 1, when smaller: -1, as the tasks' metric: 0) */
#define TM_SEQUENCE_METRICS(X)                                              \
    X(average, "average over tasks at the end", 0)                          \
    X(learned, "average of each task when it was just learned", 0)          \
    X(bwt, "backward transfer", 1)                                          \
    X(fwt, "forward transfer", 1)                                           \
    X(forgetting, "forgetting", -1)                                         \
    X(held, "change of abilities outside the tasks", 1)

typedef struct tm_sequence_metrics { /* NaN: not defined for this matrix */
#define X(name, words, better) double name;
    TM_SEQUENCE_METRICS(X)
#undef X
} tm_sequence_metrics;

enum {
#define X(name, words, better) TM_SEQ_##name,
    TM_SEQUENCE_METRICS(X)
#undef X
    TM_SEQUENCE_METRIC_COUNT
};
extern const char *const tm_sequence_metric_names[TM_SEQUENCE_METRIC_COUNT];

/* r [tasks + 1, tasks], rows that were not measured NaN; rises [tasks]: better when larger. held is left NaN.
 * average, learned: NaN where some tasks rise and others fall. */
void tm_sequence_metrics_of(const double *r, size_t tasks, const bool *rises, tm_sequence_metrics *out);
/* Mean change for the better of scores [count] from first to last. */
double tm_sequence_held(const double *first, const double *last, const bool *rises, size_t count);

#endif
