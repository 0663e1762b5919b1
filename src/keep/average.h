/* Averages of weights along a run: EMA and SWA (1803.05407), whose average is the result, and Lookahead (1907.08610), an
 * optimiser around the optimiser. docs/math/average.md. */
#ifndef TM_KEEP_AVERAGE_H
#define TM_KEEP_AVERAGE_H

#include "train/trainer.h"

/* keep.average; nothing with kind: none. */
tm_status tm_average_add(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;

#endif
