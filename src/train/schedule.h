/* The course of the learning rate: factors on train.lr, as transformers' get_*_schedule_with_warmup. */
#ifndef TM_TRAIN_SCHEDULE_H
#define TM_TRAIN_SCHEDULE_H

#include <stdint.h>

/* kind: TM_SCHEDULE_*. step counts from 0: with warm-up the first step has factor 0. */
double tm_schedule_factor(int kind, int64_t step, int64_t warmup, int64_t total, int64_t decay);

#endif
