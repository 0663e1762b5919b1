/* Scores of texts: formulas alone, without a model. docs/formats/eval.md says what each is and where it comes from. */
#ifndef TM_TRAIN_METRICS_H
#define TM_TRAIN_METRICS_H

#include "base/buf.h"

/* Equal but for white space at both ends. */
bool tm_exact_match(const char *prediction, const char *reference);

/* Appends what stands behind the first "####": the number (commas, a dollar sign and a last full stop left out) or,
 * where none begins, the rest of the line. False: there is no "####". */
bool tm_extract_answer(const char *text, tm_buf *out);

/* The F-measure of the longest common subsequence of words, 0 to 1, as rouge_score computes it without stemming:
 * words are runs of letters and digits in small letters. */
tm_status tm_rouge_l(const char *prediction, const char *reference, double *out, tm_error *err) TM_MUST_CHECK;

/* F1 of two texts as bags of words and marks, 0 to 1. */
tm_status tm_token_f1(const char *prediction, const char *reference, double *out, tm_error *err) TM_MUST_CHECK;

/* SARI (Xu et al. 2016), 0 to 100, on small letters, words and marks apart. */
tm_status tm_sari(const char *source, const char *prediction, const char *const *references, int64_t count, double *out,
                  tm_error *err) TM_MUST_CHECK;

#endif
