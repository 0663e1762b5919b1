/* Measures on logits: see logits.h. */
#include "api/logits.h"

#include <math.h>

double tm_log_sum_exp(const float *x, int64_t vocab)
{
    double top = x[tm_logits_top(x, vocab)], sum = 0;
    for (int64_t i = 0; i < vocab; i++)
        sum += exp(x[i] - top);
    return top + log(sum);
}

double tm_logits_kl(const float *a, const float *b, int64_t vocab)
{
    double za = tm_log_sum_exp(a, vocab), zb = tm_log_sum_exp(b, vocab), kl = 0;
    for (int64_t i = 0; i < vocab; i++)
        kl += exp(a[i] - za) * ((a[i] - za) - (b[i] - zb));
    return fmax(kl, 0);
}

int64_t tm_logits_top(const float *x, int64_t vocab)
{
    int64_t top = 0;
    for (int64_t i = 1; i < vocab; i++)
        if (x[i] > x[top])
            top = i;
    return top;
}
