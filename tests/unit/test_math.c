/* exp, log, tanh, erf and sigmoid of the CPU kernels against libm in double, over every exponent; the
 * largest error of each is printed. Special values too. Bit equality between instruction sets is
 * tested through the ops that use them (test_ops.c). */
#define TM_SIMD_SCALAR
#include "device/cpu/math.h"

#include <float.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

static float one(v16 (*f)(v16), float x)
{
    float out[V16];
    v16_put(out, f(v16_set1(x)));
    return out[7];
}

/* Distance in units in the last place of the right answer (of the smallest denormal below normals). */
static double ulps(float got, double want)
{
    if (isnan(want))
        return isnan(got) ? 0 : INFINITY;
    if ((double)got == want || (float)want == got)
        return (float)want == got && isfinite(got) ? fabs((double)got - want) / ldexp(1, ilogb(fmax(fabs(want), FLT_MIN)) - 23) : 0;
    if (isinf(got) || isnan(got) || fabs(want) > FLT_MAX)
        return fabs(want) > (double)FLT_MAX && got == copysignf(FLT_MAX, (float)want) ? 1 : INFINITY;
    return fabs((double)got - want) / ldexp(1, ilogb(fmax(fabs(want), FLT_MIN)) - 23);
}

static v16 f_exp(v16 x) { return v16_exp(x); }
static v16 f_log(v16 x) { return v16_log(x); }
static v16 f_tanh(v16 x) { return v16_tanh(x); }
static v16 f_erf(v16 x) { return v16_erf(x); }
static v16 f_sigmoid(v16 x) { return v16_sigmoid(x); }
static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* Every exponent with a sample of mantissas, both signs; then dense over [-20, 20]. */
static void measure(const char *name, v16 (*f)(v16), double (*right)(double), double bound)
{
    double worst = 0, where = 0;
    uint32_t state = 12345;
    for (uint64_t step = 0; step < 255 * 2 * 600 + 400000; step++) {
        float x;
        if (step < 255 * 2 * 600) {
            state = state * 1664525u + 1013904223u;
            uint32_t bits = (uint32_t)(step / 1200) << 23 | (state >> 9) | (uint32_t)(step & 1) << 31;
            memcpy(&x, &bits, 4);
        } else {
            x = (float)((double)(step - 255 * 2 * 600) / 10000 - 20);
        }
        double u = ulps(one(f, x), right((double)x));
        if (!(u <= worst)) {
            worst = u;
            where = (double)x;
        }
    }
    printf("%-8s largest error %.3f ulp at %a\n", name, worst, where);
    if (!(worst <= bound))
        fail_msg("%s: %g ulp at %a: %a instead of %a", name, worst, where, (double)one(f, (float)where), right(where));
}

static void errors_are_small(void **state)
{
    (void)state;
    measure("exp", f_exp, exp, 1.0);
    measure("log", f_log, log, 1.0);
    measure("tanh", f_tanh, tanh, 2.0);
    measure("erf", f_erf, erf, 1.5);
    measure("sigmoid", f_sigmoid, sigmoid, 2.5);
}

static void special_values(void **state)
{
    (void)state;
    assert_true(one(f_exp, 0) == 1 && one(f_exp, -0.0f) == 1);
    assert_true(one(f_exp, INFINITY) == INFINITY && one(f_exp, 88.8f) == INFINITY && one(f_exp, 3e38f) == INFINITY);
    assert_true(one(f_exp, -INFINITY) == 0 && one(f_exp, -1e30f) == 0 && !signbit(one(f_exp, -200)));
    assert_true(one(f_exp, -103.0f) > 0); /* denormal */
    assert_true(one(f_log, 1) == 0 && one(f_log, 0) == -INFINITY && one(f_log, -0.0f) == -INFINITY);
    assert_true(one(f_log, INFINITY) == INFINITY && isnan(one(f_log, -1)) && isnan(one(f_log, -INFINITY)));
    assert_true(one(f_tanh, INFINITY) == 1 && one(f_tanh, -INFINITY) == -1 && one(f_tanh, 20) == 1);
    assert_true(signbit(one(f_tanh, -0.0f)) && one(f_tanh, 1e-40f) == 1e-40f);
    assert_true(one(f_erf, INFINITY) == 1 && one(f_erf, -5) == -1 && signbit(one(f_erf, -0.0f)));
    assert_true(one(f_sigmoid, INFINITY) == 1 && one(f_sigmoid, -INFINITY) == 0 && one(f_sigmoid, 0) == 0.5f);
    assert_true(isnan(one(f_exp, NAN)) && isnan(one(f_log, NAN)) && isnan(one(f_tanh, NAN)));
    assert_true(isnan(one(f_erf, NAN)) && isnan(one(f_sigmoid, NAN)));
    assert_true(real_log(2) == one(f_log, 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(errors_are_small), cmocka_unit_test(special_values)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
