/* The measured rate of a device: plausible, quick, and without a trace in its byte counts. */
#include "base/clock.h"
#include "base/json.h"
#include "plan/calibrate.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#include "../support/work.h"
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

static void classes(void **state)
{
    (void)state;
    static const struct {
        int (*class_of)(int64_t);
        int64_t size;
        int expected;
    } cases[] = {{tm_rank_class, 16, 0}, {tm_rank_class, 17, 1}, {tm_rank_class, 65, 2}, {tm_head_class, 64, 0},
                 {tm_head_class, 80, 1}, {tm_head_class, 128, 1}, {tm_head_class, 256, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(cases[i].class_of(cases[i].size), cases[i].expected);
}

/* All of a product is counted, in the class of its size, or in parts in those around it. */
static void products_between_classes(void **state)
{
    (void)state;
    static const struct {
        int64_t rows, out, inner;
        int o, i;
        double share; /* of that class */
    } cases[] = {{256, 256, 64, 0, 0, 1}, {4, 4, 4, 0, 0, 1}, {512, 512, 64, 1, 0, 1}, {8192, 8192, 8192, 5, 7, 1}, {1 << 20, 1 << 10, 1 << 20, 5, 7, 1}, {4096, 4096, 128, 4, 1, 1},
                 {512, 256, 64, 0, 0, 0.5}, {512, 256, 64, 1, 0, 0.5}, {2048, 4096, 4096, 3, 6, 0.5}, {256, 256, 96, 0, 0, 1 - 0.584962500721156}, {512, 256, 96, 1, 1, 0.5 * 0.584962500721156}};
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
        tm_work work = {0};
        double flops = 2.0 * (double)cases[n].rows * (double)cases[n].out * (double)cases[n].inner;
        tm_work_add_product(&work, TM_PRODUCT_INPUT, cases[n].rows, cases[n].out, cases[n].inner);
        assert_true(fabs(work_flops(&work) / flops - 1) < 1e-12);
        assert_true(fabs(work.product[TM_PRODUCT_INPUT][cases[n].o][cases[n].i] / flops - cases[n].share) < 1e-12);
    }
}

/* Rates 1, 2, 3, ...: every one another. */
static tm_calibration numbered(void)
{
    tm_calibration c = {.peak_flops = 4, .reserve = 77};
    double rate[TM_WORK_TERMS];
    for (int i = 0; i < TM_WORK_TERMS; i++)
        rate[i] = i + 1;
    memcpy(&c.rate, rate, sizeof rate);
    return c;
}

static void work_over_rates(void **state)
{
    (void)state;
    tm_calibration c = numbered();
    tm_work work = {.bytes = 5};
    work.product[TM_PRODUCT_INPUT][1][2] = 10 * c.rate.product[TM_PRODUCT_INPUT][1][2];
    work.attention[1][2] = c.rate.attention[1][2] / 2;
    assert_true(fabs(tm_seconds_of(&c, &work) - (10.5 + 5 / c.rate.bytes)) < 1e-12);
    assert_true(tm_seconds_of(&c, &c.rate) == TM_WORK_TERMS);
    /* Another card: half the operations, a quarter of the bandwidth, the same host. */
    double bytes = c.rate.bytes, calls = c.rate.calls, product = c.rate.product[2][1][3], ops = c.rate.lowrank_ops[1];
    tm_calibration_scale(&c, 0.5, 0.25);
    assert_true(c.rate.bytes == bytes / 4 && c.rate.calls == calls && c.rate.lowrank_ops[1] == ops && c.rate.product[2][1][3] == product / 2 && c.peak_flops == 2);
}

static void measures_all_rates(void **state)
{
    (void)state;
    tm_device *d;
    tm_calibration c;
    OK(tm_cpu_device_create(2, TM_ISA_AUTO, &d, err));
    int64_t used = d->used_bytes, peak = d->peak_bytes;
    OK(tm_calibrate(d, &c, err));
    double rate[TM_WORK_TERMS];
    memcpy(rate, &c.rate, sizeof rate);
    for (int i = 0; i < TM_WORK_TERMS; i++)
        assert_true(rate[i] > 1 && rate[i] < 1e16); /* one is calls a second: some hundreds of a sanitized build on a busy machine */
    assert_true(c.reserve == -1 && d->used_bytes == used && d->peak_bytes == peak);
    tm_device_destroy(d);
}

static const tm_calibrated *read_one(tm_calibrations *all, const char *path, const tm_device *device)
{
    tm_calibrations_deinit(all);
    OK(tm_calibrations_read(all, path, err));
    return tm_calibrations_find(all, device->name, device->detail);
}

static void file_keeps_every_device(void **state)
{
    (void)state;
    tm_device a = {.name = "cpu", .detail = "scalar, 1 thread"}, b = {.name = "cuda", .detail = "scalar, 1 thread"};
    tm_calibration one = numbered(), two = one;
    tm_calibrations all = {0};
    const tm_calibrated *found;
    const char *path = scratch("deep/calibration.json");
    two.peak_flops = 8;
    assert_null(read_one(&all, path, &a));
    OK(tm_calibration_write(path, &a, &two, err));
    OK(tm_calibration_write(path, &b, &two, err));
    OK(tm_calibration_write(path, &a, &one, err)); /* again: replaced */
    found = read_one(&all, path, &a);
    assert_true(found && memcmp(&found->rates, &one, sizeof one) == 0 && all.count == 2);
    found = read_one(&all, path, &b);
    assert_true(found && found->rates.peak_flops == 8);
    b.detail = "none";
    assert_null(read_one(&all, path, &b));
    tm_calibrations_deinit(&all);
    static const char *const bad[] = {"{", "{\"temper_calibration\": 3, \"devices\": [{\"name\": \"cpu\", \"detail\": \"scalar, 1 thread\"}]}",
                                      "{\"temper_calibration\": 3, \"devices\": [7]}"};
    for (int i = 0; i < 3; i++) {
        OK(tm_file_write(path, bad[i], strlen(bad[i]), err));
        FAILS(TM_INPUT, "temper bench --calibrate", tm_calibrations_read(&all, path, err));
        tm_calibrations_deinit(&all);
    }
    /* A file from before deltas were measured without dropout: they count as those with it, and an op takes nothing beside them. */
    OK(tm_dir_remove(scratch("deep"), err));
    OK(tm_calibration_write(path, &a, &one, err));
    json_t *root;
    OK(tm_json_read(path, &root, err));
    json_t *entry = json_array_get(json_object_get(root, "devices"), 0);
    assert_int_equal(json_object_del(entry, "lowrank_plain_forward") | json_object_del(entry, "lowrank_plain_backward") | json_object_del(entry, "lowrank_ops"), 0);
    OK(tm_json_write(path, root, 0, err));
    found = read_one(&all, path, &a);
    assert_non_null(found);
    assert_memory_equal(found->rates.rate.lowrank[0], one.rate.lowrank[1], sizeof one.rate.lowrank[1]);
    assert_memory_equal(found->rates.rate.lowrank[1], one.rate.lowrank[1], sizeof one.rate.lowrank[1]);
    tm_work deltas = {.lowrank_ops = {1e6, 1e6}};
    assert_true(tm_seconds_of(&found->rates, &deltas) == 0);
    deltas.lowrank[0][1][2] = 3 * one.rate.lowrank[1][1][2];
    assert_true(tm_seconds_of(&found->rates, &deltas) == 3);
    json_object_set_new(entry, "lowrank_ops", json_pack("[f]", 1.0)); /* there, and not whole */
    OK(tm_json_write(path, root, 0, err));
    json_decref(root);
    FAILS(TM_INPUT, "lowrank_ops: 2 rates above 0", tm_calibrations_read(&all, path, err));
    tm_calibrations_deinit(&all);
    const char *other = "{\"temper_calibration\": 1, \"devices\": 5}";
    OK(tm_file_write(path, other, strlen(other), err));
    assert_null(read_one(&all, path, &a));
    tm_calibrations_deinit(&all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(measures_a_rate), cmocka_unit_test(without_memory_the_rate_is_unknown), cmocka_unit_test(classes), cmocka_unit_test(products_between_classes),
                                       cmocka_unit_test(work_over_rates), cmocka_unit_test(measures_all_rates), cmocka_unit_test(file_keeps_every_device)};
    return cmocka_run_group_tests(tests, scratch_begin, scratch_end);
}
