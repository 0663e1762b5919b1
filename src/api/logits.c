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

tm_status tm_logits_look(tm_inference *inf, int64_t count, float *out, tm_error *err)
{
    int32_t ids[TM_LOOK_TOKENS];
    int64_t vocab = inf->model.config.vocab;
    for (int i = 0; i < TM_LOOK_TOKENS; i++)
        ids[i] = (int32_t)((uint64_t)(i + 1) * 2654435761u % (uint64_t)vocab);
    tm_batch_item item = {.ids = ids, .n = (int32_t)count, .scale = 1};
    tm_batch_fill(&inf->batch, &item, 1);
    tm_model_forward(&inf->model, &inf->batch);
    tm_model_logits(&inf->model, &inf->batch);
    inf->device->calls->download(inf->device, out, inf->model.logits.data, count * vocab * 4);
    return inf->device->calls->sync(inf->device, err);
}
