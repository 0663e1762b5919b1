/* Measures on logits of one token over the vocabulary; for looking at models, never part of a result. */
#ifndef TM_API_LOGITS_H
#define TM_API_LOGITS_H

#include <stdint.h>

double tm_log_sum_exp(const float *logits, int64_t vocab);
/* KL(softmax a || softmax b) in nats, at least 0. */
double tm_logits_kl(const float *a, const float *b, int64_t vocab);
/* The largest; the lowest index wins. */
int64_t tm_logits_top(const float *logits, int64_t vocab);

#endif
