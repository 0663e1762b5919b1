/* The course of the learning rate: see schedule.h. */
#include "train/schedule.h"

#include "base/exact.h"
#include "base/options.h"

static double at_least_1(int64_t n) { return n < 1 ? 1 : (double)n; }

static double half_cosine(double progress)
{
    double s, c;
    tm_sincos(M_PI * progress, &s, &c);
    double f = 0.5 * (1 + c);
    return f > 0 ? f : 0;
}

double tm_schedule_factor(int kind, int64_t step, int64_t warmup, int64_t total, int64_t decay)
{
    if (step < warmup)
        return (double)step / at_least_1(warmup);
    switch (kind) {
    case TM_SCHEDULE_LINEAR: {
        double f = (double)(total - step) / at_least_1(total - warmup);
        return f > 0 ? f : 0;
    }
    case TM_SCHEDULE_COSINE:
        return half_cosine((double)(step - warmup) / at_least_1(total - warmup));
    case TM_SCHEDULE_WSD:
        if (step < total - decay)
            return 1;
        return step >= total ? 0 : half_cosine((double)(step - (total - decay)) / at_least_1(decay));
    default:
        return 1;
    }
}
