/* The measured rate of a device: plausible, quick, and without a trace in its byte counts. */
#include "base/clock.h"
#include "plan/calibrate.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#include "folder.h"

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

static void sides(void **state)
{
    (void)state;
    static const struct {
        int64_t side;
        int expected;
    } cases[] = {{1, 0}, {32, 0}, {63, 0}, {64, 1}, {127, 1}, {512, 4}, {1023, 4}, {1024, 5}, {100000, 5}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(tm_side_class(cases[i].side), cases[i].expected);
    tm_calibration c = {.flops = {1, 2, 4, 8, 16, 32}, .bytes = 10};
    tm_work work = {.flops = {1, 2, 4, 8, 16, 32}, .bytes = 5};
    assert_true(tm_seconds_per_token(&c, &work) == 6.5);
}

static void file_keeps_every_device(void **state)
{
    (void)state;
    tm_device a = {.name = "cpu", .detail = "scalar, 1 thread"}, b = {.name = "cpu", .detail = "scalar, 2 threads"};
    tm_calibration one = {.peak_flops = 4, .flops = {1, 2, 3, 4, 5, 6}, .bytes = 7}, two = one, read;
    bool found;
    const char *path = scratch("deep/calibration.json");
    two.peak_flops = 8;
    OK(tm_calibration_read(path, &a, &read, &found, err));
    assert_false(found);
    OK(tm_calibration_write(path, &a, &two, err));
    OK(tm_calibration_write(path, &b, &two, err));
    OK(tm_calibration_write(path, &a, &one, err)); /* again: replaced */
    OK(tm_calibration_read(path, &a, &read, &found, err));
    assert_true(found && memcmp(&read, &one, sizeof one) == 0);
    OK(tm_calibration_read(path, &b, &read, &found, err));
    assert_true(found && read.peak_flops == 8);
    b.detail = "none";
    OK(tm_calibration_read(path, &b, &read, &found, err));
    assert_false(found);
    static const char *const bad[] = {"{", "{\"temper_calibration\": 1, \"devices\": [{\"name\": \"cpu\", \"detail\": \"scalar, 1 thread\"}]}"};
    for (int i = 0; i < 2; i++) {
        OK(tm_file_write(path, bad[i], strlen(bad[i]), err));
        FAILS(TM_INPUT, "temper bench --calibrate", tm_calibration_read(path, &a, &read, &found, err));
    }
    const char *newer = "{\"temper_calibration\": 2, \"devices\": 5}";
    OK(tm_file_write(path, newer, strlen(newer), err));
    OK(tm_calibration_read(path, &a, &read, &found, err));
    assert_false(found);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(measures_a_rate), cmocka_unit_test(without_memory_the_rate_is_unknown),
                                       cmocka_unit_test(sides), cmocka_unit_test(file_keeps_every_device)};
    return cmocka_run_group_tests(tests, scratch_begin, scratch_end);
}
