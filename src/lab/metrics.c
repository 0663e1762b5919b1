/* Metrics of a sequence: see metrics.h. */
#include "lab/metrics.h"

#include <math.h>

const char *const tm_sequence_metric_names[TM_SEQUENCE_METRIC_COUNT] = {
#define X(name, words, better) #name,
    TM_SEQUENCE_METRICS(X)
#undef X
};

/* How much better b is than a. */
static double gain(double a, double b, bool rises) { return rises ? b - a : a - b; }

/* What one task lost by the end: against its best score after any of tasks 1 .. T-1 (Chaudhry et al., 1801.10112). */
static double lost(const double *r, size_t T, size_t j, bool rises)
{
    double most = -INFINITY;
    for (size_t i = 1; i < T; i++) {
        double g = gain(r[T * T + j], r[i * T + j], rises);
        if (isnan(g))
            return NAN;
        most = g > most ? g : most;
    }
    return most;
}

void tm_sequence_metrics_of(const double *r, size_t T, const bool *rises, tm_sequence_metrics *out)
{
    tm_sequence_metrics m = {.held = NAN};
    bool mixed = false;
    for (size_t j = 0; j < T; j++) {
        mixed |= rises[j] != rises[0];
        m.average += r[T * T + j] / (double)T;
        m.learned += r[(j + 1) * T + j] / (double)T;
        if (j + 1 < T) {
            m.bwt += gain(r[(j + 1) * T + j], r[T * T + j], rises[j]) / (double)(T - 1);
            m.forgetting += lost(r, T, j, rises[j]) / (double)(T - 1);
        }
        if (j > 0)
            m.fwt += gain(r[j], r[j * T + j], rises[j]) / (double)(T - 1);
    }
    if (mixed)
        m.average = m.learned = NAN;
    if (T < 2)
        m.bwt = m.fwt = m.forgetting = NAN;
    *out = m;
}

double tm_sequence_held(const double *first, const double *last, const bool *rises, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += gain(first[i], last[i], rises[i]);
    return count ? sum / (double)count : NAN;
}
