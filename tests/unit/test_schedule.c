/* The course of the rate against figures of transformers' get_*_schedule and against its formulas. */
#include "base/options.h"
#include "train/loss_scale.h"
#include "train/schedule.h"

#include "../support/run.h"

static void is(int kind, int64_t warmup, int64_t total, int64_t decay, const double *expect, int64_t n)
{
    for (int64_t step = 0; step < n; step++) {
        double got = tm_schedule_factor(kind, step, warmup, total, decay);
        if (fabs(got - expect[step]) > 1e-15)
            fail_msg("kind %d, step %lld of %lld: %.17g, expected %.17g", kind, (long long)step, (long long)total, got, expect[step]);
    }
}

static void figures_of_transformers(void **state)
{
    (void)state;
    is(TM_SCHEDULE_LINEAR, 3, 8, 0, (const double[]){0, 1.0 / 3, 2.0 / 3, 1, 0.8, 0.6, 0.4, 0.2, 0}, 9);
    is(TM_SCHEDULE_COSINE, 3, 8, 0, (const double[]){0, 1.0 / 3, 2.0 / 3, 1, 0.9045084971874737, 0.6545084971874737, 0.34549150281252633, 0.09549150281252633, 0}, 9);
    is(TM_SCHEDULE_COSINE, 0, 5, 0, (const double[]){1, 0.9045084971874737, 0.6545084971874737, 0.34549150281252633, 0.09549150281252633, 0}, 6);
    is(TM_SCHEDULE_CONSTANT, 3, 5, 0, (const double[]){0, 1.0 / 3, 2.0 / 3, 1, 1}, 5);
    is(TM_SCHEDULE_WSD, 2, 9, 4, (const double[]){0, 0.5, 1, 1, 1, 1, 0.8535533905932737, 0.5, 0.14644660940672627, 0, 0}, 11);
}

static double clamp(double x) { return x > 0 ? x : 0; }

static double formula(int kind, double step, double warmup, double total, double decay)
{
    if (step < warmup)
        return step / fmax(1, warmup);
    switch (kind) {
    case TM_SCHEDULE_LINEAR: return clamp((total - step) / fmax(1, total - warmup));
    case TM_SCHEDULE_COSINE: return clamp(0.5 * (1 + cos(M_PI * (step - warmup) / fmax(1, total - warmup))));
    case TM_SCHEDULE_WSD: return step < total - decay ? 1 : step < total ? clamp(0.5 * (1 + cos(M_PI * (step - total + decay) / fmax(1, decay)))) : 0;
    default: return 1;
    }
}

static void formulas(void **state)
{
    (void)state;
    dice d = {.key = fresh_seed()};
    for (int i = 0; i < 3000; i++) {
        int64_t total = dice_in(&d, 1, i % 2 ? 12 : 100000), warmup = dice_in(&d, 0, total), decay = dice_in(&d, 0, total), step = dice_in(&d, 0, total);
        int kind = (int)dice_in(&d, TM_SCHEDULE_CONSTANT, TM_SCHEDULE_WSD);
        double got = tm_schedule_factor(kind, step, warmup, total, decay), expect = formula(kind, (double)step, (double)warmup, (double)total, (double)decay);
        if (!(fabs(got - expect) <= 1e-14))
            fail_msg("kind %d, step %lld, warm-up %lld, total %lld, decay %lld: %.17g, expected %.17g; seed %llu", kind, (long long)step, (long long)warmup, (long long)total,
                     (long long)decay, got, expect, (unsigned long long)d.key);
    }
}

/* torch.amp.GradScaler's course: doubled after 2000 good steps in a row, halved at once, until it would be below 1. */
static void loss_scale(void **state)
{
    (void)state;
    tm_loss_scale s = {.scale = 65536};
    for (int i = 0; i < 1999; i++)
        assert_true(tm_loss_scale_move(&s, true) && s.scale == 65536);
    assert_true(tm_loss_scale_move(&s, false) && s.scale == 32768 && s.skipped == 1);
    for (int i = 0; i < 1999; i++)
        assert_true(tm_loss_scale_move(&s, true) && s.scale == 32768);
    assert_true(tm_loss_scale_move(&s, true) && s.scale == 65536 && s.good == 0);
    for (int i = 0; i < 16; i++)
        assert_true(tm_loss_scale_move(&s, false));
    assert_true(s.scale == 1 && s.skipped == 17);
    assert_false(tm_loss_scale_move(&s, false));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(figures_of_transformers), cmocka_unit_test(loss_scale), cmocka_unit_test(formulas)};
    return cmocka_run_group_tests_name("schedule", tests, NULL, NULL);
}
