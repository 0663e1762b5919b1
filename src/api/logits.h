/* Measures on logits of one token over the vocabulary; for looking at models, never part of a result. */
#ifndef TM_API_LOGITS_H
#define TM_API_LOGITS_H

#include "api/inference.h"

double tm_log_sum_exp(const float *logits, int64_t vocab);
/* KL(softmax a || softmax b) in nats, at least 0. */
double tm_logits_kl(const float *a, const float *b, int64_t vocab);
/* The largest; the lowest index wins. */
int64_t tm_logits_top(const float *logits, int64_t vocab);

/* Tokens that a model is looked at with; any model sees the same ones (modulo its vocabulary). */
enum { TM_LOOK_TOKENS = 32 };
/* Logits [count, vocab] of the first `count` of them, of a model opened with `logits` and room for as many. */
tm_status tm_logits_look(tm_inference *inf, int64_t count, float *out, tm_error *err) TM_MUST_CHECK;

#endif
