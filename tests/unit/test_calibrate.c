/* The measured rate of a device: plausible, quick, and without a trace in its byte counts. */
#include "base/clock.h"
#include "plan/calibrate.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void measures_a_rate(void **state)
{
    (void)state;
    tm_device *d;
    tm_error err;
    assert_int_equal(tm_cpu_device_create(1, TM_ISA_AUTO, &d, &err), TM_OK);
    int64_t used = d->used_bytes, peak = d->peak_bytes;
    double start = tm_clock_seconds(), rate = tm_device_peak_flops(d), took = tm_clock_seconds() - start;
    assert_true(rate > 1e6 && rate < 1e16);
    assert_int_equal(d->used_bytes, used);
    assert_int_equal(d->peak_bytes, peak);
    assert_true(took < 5); /* 20 ms on a quiet machine */
    tm_device_destroy(d);
}

static tm_status no_memory(tm_device *d, int64_t bytes, void **out, tm_error *err)
{
    (void)d, (void)bytes, (void)out;
    return tm_fail(err, TM_NO_MEMORY, "none");
}

static void without_memory_the_rate_is_unknown(void **state)
{
    (void)state;
    tm_device_calls calls = {.alloc = no_memory};
    tm_device d = {.calls = &calls, .real = TM_F32};
    assert_true(isnan(tm_device_peak_flops(&d)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(measures_a_rate), cmocka_unit_test(without_memory_the_rate_is_unknown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
