/* The portable elementary functions against libm. */
#include "base/exact.h"
#include "base/philox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <time.h>

/* Error in units in the last place of the true value, at least those of 2^-60. */
static double ulps(double got, double want)
{
    double unit = fmax(nextafter(fabs(want), INFINITY) - fabs(want), 0x1p-112);
    return fabs(got - want) / unit;
}

static uint64_t seed;

static double random_in(uint32_t i, double lo, double hi)
{
    tm_philox p = tm_philox_at(seed, i, 0, 0, 0);
    return lo + (hi - lo) * ((double)((uint64_t)p.word[0] << 21 | p.word[1] >> 11) * 0x1p-53);
}

static void close_to_libm(void **state)
{
    (void)state;
    double worst_exp = 0, worst_log = 0, worst_sin = 0;
    for (uint32_t i = 0; i < 200000; i++) {
        double x = random_in(i, -600, 600), y = exp(random_in(i, -300, 300)), z = random_in(i, -1e6, 1e6), s, c;
        worst_exp = fmax(worst_exp, ulps(tm_exp(x), exp(x)));
        worst_log = fmax(worst_log, ulps(tm_log(y), log(y)));
        tm_sincos(z, &s, &c);
        worst_sin = fmax(worst_sin, fmax(fabs(s - sin(z)), fabs(c - cos(z))));
    }
    print_message("seed %llu: exp %.2f ulp, log %.2f ulp, sin and cos %.1e\n", (unsigned long long)seed, worst_exp, worst_log, worst_sin);
    assert_true(worst_exp < 4 && worst_log < 4 && worst_sin < 4e-16);
    assert_true(tm_exp(0) == 1 && tm_log(1) == 0 && tm_exp(-1000) == 0 && isinf(tm_exp(1000)));
    assert_true(fabs(tm_pow(10000, 0.25) - 10) < 1e-14);
}

/* Many at once are each as it is alone. */
static void many_at_once(void **state)
{
    (void)state;
    enum { MOST = 70 };
    for (uint32_t round = 0; round < 200; round++) {
        double x[MOST], y[MOST];
        int64_t n = (int64_t)random_in(round, 0, MOST + 1);
        n = n > MOST ? MOST : n;
        for (uint32_t i = 0; i < n; i++)
            x[i] = y[i] = round % 2 ? random_in(MOST * round + i, -30, 0) : random_in(MOST * round + i, -800, 800);
        tm_exp_all(y, n);
        for (int64_t i = 0; i < n; i++)
            assert_true(y[i] == tm_exp(x[i]));
    }
}

static void normals_are_normal(void **state)
{
    (void)state;
    enum { N = 100000 };
    double sum = 0, square = 0, fourth = 0;
    for (uint32_t i = 0; i < N; i++) {
        tm_philox p = tm_philox_at(seed, i, 1, 0, 0);
        double z[2];
        tm_normals(p.word, z);
        for (int k = 0; k < 2; k++) {
            sum += z[k];
            square += z[k] * z[k];
            fourth += z[k] * z[k] * z[k] * z[k];
        }
    }
    /* Five standard errors each. */
    assert_true(fabs(sum / (2 * N)) < 5 / sqrt(2 * N));
    assert_true(fabs(square / (2 * N) - 1) < 5 * sqrt(2.0 / (2 * N)));
    assert_true(fabs(fourth / (2 * N) - 3) < 5 * sqrt(96.0 / (2 * N)));
}

int main(void)
{
    seed = (uint64_t)time(NULL);
    const struct CMUnitTest tests[] = {cmocka_unit_test(close_to_libm), cmocka_unit_test(many_at_once), cmocka_unit_test(normals_are_normal)};
    return cmocka_run_group_tests_name("exact", tests, NULL, NULL);
}
