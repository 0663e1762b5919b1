/* Selective token masking: which targets (the hook: keep.h). */
#ifndef TM_KEEP_STM_H
#define TM_KEEP_STM_H

#include "train/trainer.h"

/* Sets bit k of bits[(n + 7) / 8] where target k is masked: threshold > 0: where exp(loss) exceeds it; else the
 * floor(fraction n) targets of highest loss, of equal ones the first. *masked: how many. */
tm_status tm_stm_choose(const float *loss, int64_t n, double threshold, double fraction, uint8_t *bits, int64_t *masked, tm_error *err) TM_MUST_CHECK;

#endif
