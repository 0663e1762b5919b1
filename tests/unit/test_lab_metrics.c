/* Metrics of sequences and statistics of repeated runs: against closed forms, published tables and matrices by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/exact.h"
#include "base/philox.h"
#include "lab/metrics.h"
#include "lab/statistics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static void near(double found, double expected, double tolerance)
{
    if (!(fabs(found - expected) <= tolerance))
        fail_msg("found %.12g, expected %.12g within %g", found, expected, tolerance);
}

/* --- The matrix --- */

static void three_tasks_by_hand(void **state)
{
    (void)state;
    /* Accuracies; row 0 is the start. */
    const double r[4 * 3] = {0.1, 0.2, 0.3, /**/ 0.9, 0.3, 0.2, /**/ 0.7, 0.8, 0.4, /**/ 0.5, 0.85, 0.7};
    const bool rises[] = {true, true, true};
    tm_sequence_metrics m;
    tm_sequence_metrics_of(r, 3, rises, &m);
    near(m.average, (0.5 + 0.85 + 0.7) / 3, 1e-15);
    near(m.learned, (0.9 + 0.8 + 0.7) / 3, 1e-15);
    near(m.bwt, ((0.5 - 0.9) + (0.85 - 0.8)) / 2, 1e-15);
    near(m.fwt, ((0.3 - 0.2) + (0.4 - 0.3)) / 2, 1e-15);
    near(m.forgetting, ((0.9 - 0.5) + (0.8 - 0.85)) / 2, 1e-15);
}

static void losses_are_accuracies_turned_over(void **state)
{
    (void)state;
    uint64_t seed = 71;
    double r[6 * 5], turned[6 * 5];
    bool up[5] = {true, true, true, true, true}, down[5] = {0};
    for (uint32_t i = 0; i < 30; i++) {
        r[i] = tm_philox_uniform(tm_philox_at(seed, i, 0, 0, 0).word[0]);
        turned[i] = -r[i];
    }
    tm_sequence_metrics a, b;
    tm_sequence_metrics_of(r, 5, up, &a);
    tm_sequence_metrics_of(turned, 5, down, &b);
    near(a.average, -b.average, 1e-15);
    near(a.learned, -b.learned, 1e-15);
    near(a.bwt, b.bwt, 1e-15);
    near(a.fwt, b.fwt, 1e-15);
    near(a.forgetting, b.forgetting, 1e-15);
    up[2] = false;
    tm_sequence_metrics_of(r, 5, up, &a);
    assert_true(isnan(a.average) && isnan(a.learned) && !isnan(a.bwt));
}

/* Forgetting counts the best score ever, BWT the one when it was learned. */
static void forgetting_is_from_the_best(void **state)
{
    (void)state;
    const double r[4 * 3] = {0, 0, 0, /**/ 0.5, 0, 0, /**/ 0.8, 0.6, 0, /**/ 0.4, 0.6, 0.9};
    const bool rises[] = {true, true, true};
    tm_sequence_metrics m;
    tm_sequence_metrics_of(r, 3, rises, &m);
    near(m.bwt, (0.4 - 0.5) / 2, 1e-15);
    near(m.forgetting, (0.8 - 0.4) / 2, 1e-15);
}

static void what_was_not_measured_is_not_made_up(void **state)
{
    (void)state;
    const double joint[3 * 2] = {1, 2, NAN, NAN, 3, 5};
    const bool rises[] = {true, true};
    tm_sequence_metrics m;
    tm_sequence_metrics_of(joint, 2, rises, &m);
    near(m.average, 4, 0);
    assert_true(isnan(m.learned) && isnan(m.bwt) && isnan(m.fwt) && isnan(m.forgetting));
    const double one[] = {1, 2};
    tm_sequence_metrics_of(one, 1, rises, &m);
    near(m.average, 2, 0);
    assert_true(isnan(m.bwt) && isnan(m.fwt) && isnan(m.forgetting));
    const double first[] = {1, 0.5}, last[] = {0.5, 0.25};
    const bool mixed[] = {true, false};
    near(tm_sequence_held(first, last, mixed, 2), (-0.5 + 0.25) / 2, 1e-15);
    assert_true(isnan(tm_sequence_held(first, last, mixed, 0)));
}

/* --- Student --- */

static void student_closed_forms(void **state)
{
    (void)state;
    for (double t = 0.01; t < 300; t *= 1.37) {
        near(tm_student_p(t, 1), 1 - 2 / M_PI * atan(t), 1e-13);
        near(tm_student_p(t, 2), 1 - t / sqrt(2 + t * t), 1e-13);
        double a = atan(t / sqrt(3));
        near(tm_student_p(t, 3), 1 - 2 / M_PI * (a + sin(a) * cos(a)), 1e-13);
        a = atan(t / 2);
        near(tm_student_p(t, 4), 1 - sin(a) * (1 + cos(a) * cos(a) / 2), 1e-13);
        near(tm_student_p(-t, 7), tm_student_p(t, 7), 0);
    }
    near(tm_student_p(1.959963984540054, 10000000), 0.05, 1e-7); /* the normal distribution */
    near(tm_student_p(0, 5), 1, 0);
    near(tm_student_p(INFINITY, 5), 0, 0);
}

static void student_table(void **state)
{
    (void)state;
    static const struct {
        int64_t df;
        double t;
    } table[] = {{1, 12.7062}, {2, 4.30265}, {3, 3.18245}, {4, 2.77645}, {9, 2.26216}, {19, 2.09302}, {29, 2.04523}, {59, 2.00100}, {100, 1.98397}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        near(tm_student_quantile(0.05, table[i].df), table[i].t, 5.1e-5);
        near(tm_student_p(tm_student_quantile(0.05, table[i].df), table[i].df), 0.05, 1e-12);
    }
    assert_true(isnan(tm_student_quantile(0.05, 0)));
}

/* --- Means and intervals --- */

static void summary_by_hand(void **state)
{
    (void)state;
    const double v[] = {1, 2, 3, 4};
    tm_summary s;
    tm_summary_of(v, 4, &s);
    near(s.mean, 2.5, 1e-15);
    near(s.sd, sqrt(5.0 / 3), 1e-15);
    near(s.high - s.mean, 3.182446 * sqrt(5.0 / 3) / 2, 1e-5);
    near(s.mean - s.low, s.high - s.mean, 1e-14);
    tm_summary_of(v, 1, &s);
    assert_true(s.mean == 1 && isnan(s.sd) && isnan(s.low));
    tm_summary_of(v, 0, &s);
    assert_true(isnan(s.mean));
}

/* 95 % intervals hold the truth in 95 % of samples: of normals (exactly), by t; the percentile bootstrap somewhat less. */
static void coverage(void **state)
{
    (void)state;
    enum { TRIALS = 2000, N = 12 };
    uint64_t seed = 20260101;
    int by_t = 0, by_boot = 0, rejected = 0;
    for (uint32_t trial = 0; trial < TRIALS; trial++) {
        double a[N], b[N], low, high;
        tm_error err;
        tm_paired p;
        for (uint32_t i = 0; i < N; i += 2) {
            double z[4];
            tm_normals(tm_philox_at(seed, trial, i, 0, 0).word, z);
            tm_normals(tm_philox_at(seed, trial, i, 1, 0).word, z + 2);
            for (uint32_t k = 0; k < 2; k++) {
                b[i + k] = 5 + z[k];                 /* what both share drops out */
                a[i + k] = b[i + k] + 0.7 + z[2 + k];
            }
        }
        double d[N];
        for (int i = 0; i < N; i++)
            d[i] = a[i] - b[i];
        tm_summary s;
        tm_summary_of(d, N, &s);
        by_t += s.low <= 0.7 && s.high >= 0.7;
        assert_int_equal(tm_bootstrap(d, N, 400, trial, &low, &high, &err), TM_OK);
        by_boot += low <= 0.7 && high >= 0.7;
        if (trial < 200) {
            for (int i = 0; i < N; i++)
                a[i] -= 0.7; /* no difference: 5 % are called one */
            assert_int_equal(tm_paired_of(a, b, N, trial, &p, &err), TM_OK);
            rejected += p.p < 0.05;
            near(p.difference.mean, s.mean - 0.7, 1e-12);
        }
    }
    /* 3.3 standard errors: SE = sqrt(.95 .05 / 2000) = 0.0049 */
    near((double)by_t / TRIALS, 0.95, 0.016);
    near((double)by_boot / TRIALS, 0.92, 0.03);
    near(rejected / 200.0, 0.05, 0.052);
}

/* The interval of many values is the normal one; of equal ones it is a point. */
static void bootstrap_of_many(void **state)
{
    (void)state;
    enum { N = 400 };
    double v[N], low, high;
    tm_error err;
    tm_summary s;
    for (uint32_t i = 0; i < N; i += 2)
        tm_normals(tm_philox_at(20260102, i, 0, 0, 0).word, v + i);
    tm_summary_of(v, N, &s);
    assert_int_equal(tm_bootstrap(v, N, 2000, 3, &low, &high, &err), TM_OK);
    /* A bound is 1.96 deviations away; its own standard error is sqrt(.025 .975 / 2000) / 0.0584 = 0.06 of one. */
    near((s.mean - low) / (s.sd / sqrt(N)), 1.96, 0.24);
    near((high - s.mean) / (s.sd / sqrt(N)), 1.96, 0.24);
    for (int i = 0; i < N; i++)
        v[i] = 7;
    assert_int_equal(tm_bootstrap(v, N, 50, 3, &low, &high, &err), TM_OK);
    assert_true(low == 7 && high == 7);
}

static void pairs(void **state)
{
    (void)state;
    tm_error err;
    tm_paired p;
    const double a[] = {3, 5, 4, 7}, b[] = {1, 2, 3, 3}; /* 2 3 1 4: mean 2.5, sd sqrt(5/3), t = 3.873 */
    assert_int_equal(tm_paired_of(a, b, 4, 1, &p, &err), TM_OK);
    near(p.difference.mean, 2.5, 1e-15);
    near(p.p, tm_student_p(2.5 / (sqrt(5.0 / 3) / 2), 3), 1e-15);
    near(p.p, 0.030466, 1e-6);
    assert_true(p.boot_low >= 1 && p.boot_low < 2.5 && p.boot_high <= 4 && p.boot_high > 2.5);
    double low = p.boot_low;
    assert_int_equal(tm_paired_of(a, b, 4, 1, &p, &err), TM_OK);
    assert_true(p.boot_low == low);
    assert_int_equal(tm_paired_of(a, a, 4, 1, &p, &err), TM_OK);
    near(p.p, 1, 0);
    const double same[] = {2, 3, 4, 4};
    assert_int_equal(tm_paired_of(same, b, 4, 1, &p, &err), TM_OK);
    near(p.p, 0, 0); /* 1 1 1 1: always the same */
    assert_int_equal(tm_paired_of(a, b, 1, 1, &p, &err), TM_OK);
    assert_true(isnan(p.p) && isnan(p.boot_low));
}

static void holm_worked_example(void **state)
{
    (void)state;
    tm_error err;
    /* 0.01, 0.02, 0.03, 0.04 of four: 0.04, 0.06, 0.06, 0.06 (each at least the one before). */
    const double p[] = {0.04, 0.01, NAN, 0.03, 0.02};
    double adjusted[5];
    assert_int_equal(tm_holm(p, 5, adjusted, &err), TM_OK);
    near(adjusted[1], 0.04, 1e-15);
    near(adjusted[4], 0.06, 1e-15);
    near(adjusted[3], 0.06, 1e-15);
    near(adjusted[0], 0.06, 1e-15);
    assert_true(isnan(adjusted[2]));
    const double large[] = {0.6, 0.4};
    assert_int_equal(tm_holm(large, 2, adjusted, &err), TM_OK);
    near(adjusted[1], 0.8, 1e-15);
    near(adjusted[0], 0.8, 1e-15);
    const double equal[] = {0.02, 0.02, 0.5};
    assert_int_equal(tm_holm(equal, 3, adjusted, &err), TM_OK);
    near(adjusted[0], 0.06, 1e-15);
    near(adjusted[1], 0.06, 1e-15);
}

/* Against the definition: every pair looked at. */
static void fronts(void **state)
{
    (void)state;
    const double x[] = {1, 2, 3, 2, 0, NAN, 3}, y[] = {0, 1, 3, 2, 1, 0, 3};
    const bool expected[] = {true, true, true, false, false, false, true};
    bool front[7];
    tm_pareto(x, y, 7, front);
    for (int i = 0; i < 7; i++)
        assert_int_equal(front[i], expected[i]);
    tm_error err;
    double at;
    assert_int_equal(tm_matched(x, y, 7, 2.5, &at, &err), TM_OK);
    near(at, 2, 1e-15);
    assert_int_equal(tm_matched(x, y, 7, 2, &at, &err), TM_OK);
    near(at, 1, 1e-15);
    assert_int_equal(tm_matched(x, y, 7, 0.3, &at, &err), TM_OK);
    near(at, 0, 1e-15); /* the least, and it reaches more than was asked */
    assert_int_equal(tm_matched(x, y, 7, 3.1, &at, &err), TM_OK);
    assert_true(isnan(at));
    assert_int_equal(tm_matched(x, y, 0, 1, &at, &err), TM_OK);
    assert_true(isnan(at));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(three_tasks_by_hand), cmocka_unit_test(losses_are_accuracies_turned_over), cmocka_unit_test(forgetting_is_from_the_best),
        cmocka_unit_test(what_was_not_measured_is_not_made_up), cmocka_unit_test(student_closed_forms), cmocka_unit_test(student_table),
        cmocka_unit_test(summary_by_hand), cmocka_unit_test(coverage), cmocka_unit_test(bootstrap_of_many), cmocka_unit_test(pairs), cmocka_unit_test(holm_worked_example), cmocka_unit_test(fronts)};
    return cmocka_run_group_tests_name("metrics and statistics of the laboratory", tests, NULL, NULL);
}
