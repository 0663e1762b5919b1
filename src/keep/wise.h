/* WiSE-FT (2109.01903): the result is base + scale (trained - base). docs/math/average.md. */
#ifndef TM_KEEP_WISE_H
#define TM_KEEP_WISE_H

#include "train/trainer.h"

/* keep.wise; nothing with scale 1. */
tm_status tm_wise_add(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;

#endif
