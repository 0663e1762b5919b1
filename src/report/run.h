/* A run folder as read back: what the report draws. NaN stands for "not there". */
#ifndef TM_REPORT_RUN_H
#define TM_REPORT_RUN_H

#include "base/json.h"
#include "base/names.h"

/* X(name in the files, smaller is better) */
#define RUN_METRIC_TABLE(X) X(loss, true) X(ppl, true) X(accuracy, false) X(exact, false) X(kl, true) X(bits_per_byte, true) \
    X(acc, false) X(acc_norm, false) X(exact_match, false) X(extracted, false) X(rouge_l, false) X(sari, false) X(round_trip, false) X(token_f1, false)
typedef enum run_metric {
#define X(name, smaller) RUN_##name,
    RUN_METRIC_TABLE(X)
#undef X
    RUN_METRIC_COUNT
} run_metric;

bool run_metric_smaller_is_better(run_metric metric);

typedef struct run_row { /* a logged step */
    double step, loss, penalty, grad_norm, lr;
} run_row;

typedef struct run_eval_row { /* one evaluation */
    double step, value[RUN_METRIC_COUNT];
} run_eval_row;

typedef struct run_eval {
    char *name; /* owned */
    run_metric metric;
    bool probe;
    double max_drop, max;     /* budgets of a probe */
    double first, last, best; /* of metric */
    run_eval_row *rows;
    size_t count, capacity;
} run_eval;

typedef struct run_timing {
    double step, tokens_per_s, share, bytes;
} run_timing;

typedef struct run_data {
    json_t *json; /* run.json; an empty object when it is not there */
    run_row *rows;
    size_t row_count, row_capacity;
    run_eval *evals;
    size_t eval_count, eval_capacity;
    run_timing *timing;
    size_t timing_count, timing_capacity;
    tm_names notes; /* what was missing or damaged, for the page */
} run_data;

/* A zeroed run_data is a valid empty one for run_data_deinit. */
tm_status run_data_read(const char *run_dir, run_data *run, tm_error *err) TM_MUST_CHECK;
void run_data_deinit(run_data *run);

/* Values of run.json; fallbacks "" and NaN, whatever the type found. */
const char *run_text(const json_t *object, const char *key);
double run_number(const json_t *object, const char *key);

/* Relative change for the worse from first to last: 0.03 = 3 % worse. For kl the value itself. NaN when
 * unknown. */
double run_eval_worsening(const run_eval *eval, double value);
/* The budget that run_eval_worsening is held against: max for kl, else max_drop; NaN = none. */
double run_eval_budget(const run_eval *eval);

#endif
