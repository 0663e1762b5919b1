/* What a sequence's figures say: means and intervals an arm, differences from the baseline, the Pareto front.
 *
 * The unit is the seed: a chain's figures are averaged over the orders first, since chains of one seed are not
 * independent; pairs are of the same seed. A frozen arm has one value, which stands for every seed. */
#ifndef TM_LAB_ANALYSIS_H
#define TM_LAB_ANALYSIS_H

#include "lab/sequence.h"
#include "lab/statistics.h"

typedef struct tm_arm_analysis {
    tm_summary summary[TM_SEQUENCE_METRIC_COUNT];
    double orders_sd[TM_SEQUENCE_METRIC_COUNT]; /* SD over orders of means over seeds; NaN: one order */
    tm_paired against[TM_SEQUENCE_METRIC_COUNT]; /* this arm less the baseline */
    double holm[TM_SEQUENCE_METRIC_COUNT];       /* p over all arms held against the baseline */
    bool front, front_alike;                     /* on the Pareto front: of all; of the arms that need old data as this one does, or do not */
    double matched;                              /* forgetting at `matched_learned`, along its configurations on the validation sets */
} tm_arm_analysis;

typedef struct tm_analysis {
    tm_arm_analysis *arm;   /* [file->arms] */
    double matched_learned; /* the most that every arm with a grid learned; NaN: no grids */
} tm_analysis;

tm_status tm_analysis_of(const tm_sequence_file *file, const tm_sequence_result *result, tm_analysis *out, tm_error *err) TM_MUST_CHECK;
void tm_analysis_deinit(tm_analysis *analysis);

/* results.c: results.json, or summary.json, which has means in place of the chains; and a table for people. */
tm_status tm_sequence_results(const tm_sequence_file *file, const tm_sequence_result *result, const tm_analysis *analysis, bool summary, tm_buf *out, tm_error *err) TM_MUST_CHECK;
tm_status tm_sequence_table(const tm_sequence_file *file, const tm_sequence_result *result, const tm_analysis *analysis, tm_buf *out, tm_error *err) TM_MUST_CHECK;

#endif
