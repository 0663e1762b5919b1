/* Statistics: see statistics.h. */
#include "lab/statistics.h"

#include "base/buf.h"
#include "base/exact.h"
#include "base/philox.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DRAWS = 10000 };

/* --- Student's t --- */

/* Gamma((df + 1) / 2) / Gamma(df / 2), by Gamma(z + 1) = z Gamma(z) from df 1 or 2 on. */
static double gamma_ratio(int64_t df)
{
    double q = df % 2 ? 1 / sqrt(M_PI) : sqrt(M_PI) / 2;
    for (int64_t k = df % 2 ? 1 : 2; k < df; k += 2)
        q *= (double)(k + 1) / (double)k;
    return q;
}

/* The continued fraction of the incomplete beta function (DLMF 8.17.22), from the front by Lentz's method. */
static double beta_fraction(double a, double b, double x)
{
    const double tiny = 1e-300;
    double c = 1, d = 1 - (a + b) * x / (a + 1);
    d = 1 / (fabs(d) < tiny ? tiny : d);
    double h = d;
    for (int m = 1; m < 1000; m++) {
        double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
        double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
        for (int k = 0; k < 2; k++) {
            double e = k ? odd : even;
            d = 1 + e * d;
            c = 1 + e / c;
            d = 1 / (fabs(d) < tiny ? tiny : d);
            c = fabs(c) < tiny ? tiny : c;
            h *= c * d;
        }
        if (fabs(c * d - 1) < 1e-15)
            break;
    }
    return h;
}

/* I_x(df / 2, 1 / 2) at x = df / (df + t^2). */
double tm_student_p(double t, int64_t df)
{
    if (isnan(t) || df < 1)
        return NAN;
    double n = (double)df, x = n / (n + t * t), y = t * t / (n + t * t), a = n / 2, b = 0.5;
    if (isinf(t))
        return 0;
    if (y <= 0 || x <= 0)
        return y <= 0 ? 1 : 0;
    double log_x = a * tm_log(x);
    double front = log_x < -700 ? 0 : tm_exp(log_x) * sqrt(y) * gamma_ratio(df) / sqrt(M_PI); /* x^a y^b / B(a, b) */
    return x < (a + 1) / (a + b + 2) ? front * beta_fraction(a, b, x) / a : 1 - front * beta_fraction(b, a, y) / b;
}

double tm_student_quantile(double p, int64_t df)
{
    if (!(p > 0 && p < 1) || df < 1)
        return NAN;
    double low = 0, high = 1;
    while (tm_student_p(high, df) > p && high < 1e12)
        high *= 2;
    for (int i = 0; i < 200 && high - low > 1e-14 * high; i++) {
        double middle = low + (high - low) / 2;
        *(tm_student_p(middle, df) > p ? &low : &high) = middle;
    }
    return low + (high - low) / 2;
}

/* --- Means --- */

void tm_summary_of(const double *values, int64_t n, tm_summary *out)
{
    double sum = 0, squares = 0;
    *out = (tm_summary){.n = n, .mean = NAN, .sd = NAN, .low = NAN, .high = NAN};
    for (int64_t i = 0; i < n; i++)
        sum += values[i];
    if (n < 1 || isnan(sum))
        return;
    out->mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++)
        squares += (values[i] - out->mean) * (values[i] - out->mean);
    if (n < 2)
        return;
    out->sd = sqrt(squares / (double)(n - 1));
    double half = tm_student_quantile(0.05, n - 1) * out->sd / sqrt((double)n);
    out->low = out->mean - half;
    out->high = out->mean + half;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

tm_status tm_bootstrap(const double *values, int64_t n, int64_t draws, uint64_t key, double *low, double *high, tm_error *err)
{
    double *means;
    *low = *high = NAN;
    for (int64_t i = 0; i < n; i++)
        if (isnan(values[i]))
            return TM_OK;
    if (n < 2)
        return TM_OK;
    TM_TRY(TM_NEW(&means, draws, err));
    for (int64_t d = 0; d < draws; d++) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++) {
            tm_philox random = tm_philox_at(key, (uint32_t)d, (uint32_t)i, 0, 0);
            sum += values[tm_philox_below(random.word[0], random.word[1], (uint64_t)n)];
        }
        means[d] = sum / (double)n;
    }
    qsort(means, (size_t)draws, sizeof *means, compare);
    *low = means[(draws - 1) * 25 / 1000];
    *high = means[draws - 1 - (draws - 1) * 25 / 1000];
    free(means);
    return TM_OK;
}

tm_status tm_paired_of(const double *a, const double *b, int64_t n, uint64_t key, tm_paired *out, tm_error *err)
{
    double *d;
    TM_TRY(TM_NEW(&d, n, err));
    for (int64_t i = 0; i < n; i++)
        d[i] = a[i] - b[i];
    tm_summary_of(d, n, &out->difference);
    const tm_summary *s = &out->difference;
    out->p = isnan(s->sd) ? NAN : s->sd > 0 ? tm_student_p(s->mean / (s->sd / sqrt((double)n)), n - 1) : s->mean == 0 ? 1 : 0;
    tm_status st = tm_bootstrap(d, n, DRAWS, key, &out->boot_low, &out->boot_high, err);
    free(d);
    return st;
}

/* --- Families of tests --- */

tm_status tm_holm(const double *p, int64_t n, double *adjusted, tm_error *err)
{
    double *sorted;
    int64_t m = 0;
    TM_TRY(TM_NEW(&sorted, n, err));
    for (int64_t i = 0; i < n; i++)
        if (!isnan(p[i]))
            sorted[m++] = p[i];
    qsort(sorted, (size_t)m, sizeof *sorted, compare);
    for (int64_t i = 0; i < n; i++) {
        adjusted[i] = isnan(p[i]) ? NAN : 0;
        for (int64_t k = 0; k < m && !isnan(p[i]) && sorted[k] <= p[i]; k++) {
            double scaled = (double)(m - k) * sorted[k];
            adjusted[i] = scaled > adjusted[i] ? scaled : adjusted[i];
        }
        adjusted[i] = adjusted[i] > 1 ? 1 : adjusted[i];
    }
    free(sorted);
    return TM_OK;
}

/* --- Two aims at once --- */

void tm_pareto(const double *x, const double *y, int64_t n, bool *front)
{
    for (int64_t i = 0; i < n; i++) {
        front[i] = !isnan(x[i]) && !isnan(y[i]);
        for (int64_t k = 0; k < n && front[i]; k++)
            if (x[k] >= x[i] && y[k] <= y[i] && (x[k] > x[i] || y[k] < y[i]))
                front[i] = false;
    }
}

typedef struct point {
    double x, y;
} point;

static int by_x(const void *a, const void *b) { return compare(&((const point *)a)->x, &((const point *)b)->x); }

tm_status tm_matched(const double *x, const double *y, int64_t n, double target, double *out, tm_error *err)
{
    bool *front = NULL;
    point *points = NULL;
    int64_t count = 0;
    *out = NAN;
    tm_status st;
    TM_GO(TM_NEW(&front, n, err));
    TM_GO(TM_NEW(&points, n, err));
    tm_pareto(x, y, n, front);
    for (int64_t i = 0; i < n; i++)
        if (front[i])
            points[count++] = (point){x[i], y[i]};
    qsort(points, (size_t)count, sizeof *points, by_x);
    for (int64_t i = 0; i < count; i++) {
        if (points[i].x < target)
            continue;
        const point *p = &points[i], *before = i ? p - 1 : p;
        *out = p->x > before->x ? before->y + (p->y - before->y) * (target - before->x) / (p->x - before->x) : p->y;
        break;
    }
out:
    free(front);
    free(points);
    return st;
}
