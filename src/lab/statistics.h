/* Statistics of repeated runs. Everything is made of + - * / and sqrt (base/exact.h), and the bootstrap draws by
 * Philox: the same values give the same bytes. NaN: not defined (too few values, or one of them is NaN). */
#ifndef TM_LAB_STATISTICS_H
#define TM_LAB_STATISTICS_H

#include "base/status.h"

typedef struct tm_summary {
    int64_t n;
    double mean, sd;  /* sd with n - 1 */
    double low, high; /* 95 % of the mean, by Student's t */
} tm_summary;
void tm_summary_of(const double *values, int64_t n, tm_summary *out);

/* Differences a - b of pairs. */
typedef struct tm_paired {
    tm_summary difference;
    double boot_low, boot_high; /* 95 % of the mean difference, percentiles of a bootstrap over pairs */
    double p;                   /* two-sided, Student's t */
} tm_paired;
tm_status tm_paired_of(const double *a, const double *b, int64_t n, uint64_t key, tm_paired *out, tm_error *err) TM_MUST_CHECK;

/* P(|T| > |t|) and the t with P(|T| > t) = p, with df degrees of freedom (at least 1). */
double tm_student_p(double t, int64_t df);
double tm_student_quantile(double p, int64_t df);

/* Percentile bootstrap of the mean, `draws` resamples of n values by the key. */
tm_status tm_bootstrap(const double *values, int64_t n, int64_t draws, uint64_t key, double *low, double *high, tm_error *err) TM_MUST_CHECK;

/* Holm's step-down adjustment of p values; those that are NaN stay out of the family. */
tm_status tm_holm(const double *p, int64_t n, double *adjusted, tm_error *err) TM_MUST_CHECK;

/* Points (x: more is better, y: less is better) that no other point beats in one and equals in the other. NaN: never. */
void tm_pareto(const double *x, const double *y, int64_t n, bool *front);

/* The least y at x of at least `target`: along the straight lines that join the front's points; NaN where no point reaches it. */
tm_status tm_matched(const double *x, const double *y, int64_t n, double target, double *out, tm_error *err) TM_MUST_CHECK;

#endif
