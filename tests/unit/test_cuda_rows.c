/* The check of rows: quiet on our devices, whatever the types; and a device whose products look at the number of rows is caught. */
#include "../support/run.h"
#include "api/verify_rows.h"

static uint64_t seed;
static const tm_device *real_device;
static tm_ops spoilt_ops;

static int kept_by(tm_device *d, tm_dtype act, const tm_row_shape *shape, int count)
{
    int kept = -1;
    int64_t used = d->used_bytes;
    OK(tm_verify_rows(d, act, shape, count, &kept, err));
    assert_int_equal(d->used_bytes, used); /* everything was given back */
    return kept;
}

static void devices_keep_rows(void **state)
{
    (void)state;
    dice rolls = {.key = seed};
    static const tm_dtype types[][2] = {{TM_F32, TM_F32}, {TM_BF16, TM_BF16}, {TM_BF16, TM_F32}, {TM_F16, TM_F16}, {TM_F16, TM_BF16}};
    const char *library = EMULATED;
    for (int gpu = 0; gpu < 2; gpu++) {
        tm_device *d;
        if (gpu && access(library, R_OK) != 0)
            break; /* no C++ compiler here */
        if (gpu)
            OK(tm_cuda_device_create(library, 0, &d, err));
        else
            OK(tm_cpu_device_create(2, TM_ISA_AUTO, &d, err));
        for (int i = 0; i < 5; i++) {
            tm_row_shape shape[2];
            if (!gpu && types[i][0] == TM_F16)
                continue; /* the CPU does not compute in it */
            for (int k = 0; k < 2; k++)
                shape[k] = (tm_row_shape){dice_in(&rolls, 1, 90), dice_in(&rolls, 1, 90), types[i][1]};
            int kept = kept_by(d, types[i][0], shape, 2);
            if (kept != 4)
                fail_msg("%s, types %d and %d: %d of 4 (seed %llu)", d->name, types[i][0], types[i][1], kept, (unsigned long long)seed);
        }
        tm_device_destroy(d);
    }
}

/* A product that is another one from 257 rows on. */
static void spoilt(tm_device *d, const tm_rows *rows, tm_tensor x, tm_tensor w, tm_tensor bias, tm_tensor y)
{
    real_device->ops->linear_forward(d, rows, x, w, bias, y);
    if (rows->n > 256)
        ((uint32_t *)y.data)[3] ^= 1;
}

static void a_bad_product_is_caught(void **state)
{
    (void)state;
    tm_device *d;
    tm_device copy;
    static const tm_row_shape shape = {24, 16, TM_F32};
    OK(tm_cpu_device_create(1, TM_ISA_AUTO, &d, err));
    copy = *d;
    real_device = &copy;
    spoilt_ops = *d->ops;
    spoilt_ops.linear_forward = spoilt;
    d->ops = &spoilt_ops;
    assert_int_equal(kept_by(d, TM_F32, &shape, 1), 1); /* the input gradient */
    d->ops = copy.ops;
    assert_int_equal(kept_by(d, TM_F32, &shape, 1), 2);
    tm_device_destroy(d);
}

int main(void)
{
    seed = fresh_seed();
    const struct CMUnitTest tests[] = {cmocka_unit_test(devices_keep_rows), cmocka_unit_test(a_bad_product_is_caught)};
    return cmocka_run_group_tests_name("verify_rows", tests, NULL, NULL);
}
