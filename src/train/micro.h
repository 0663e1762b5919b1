/* Forward, loss and backward of a micro-batch: see micro.c. */
#ifndef TM_TRAIN_MICRO_H
#define TM_TRAIN_MICRO_H

#include "train/trainer.h"

/* Lays the items out and queues everything; gradients +=, losses stand in trainer->batch. */
tm_status tm_micro_run(tm_trainer *trainer, tm_batch_item *items, int64_t count, tm_error *err) TM_MUST_CHECK;
/* The same, always op by op. */
void tm_micro_queue(tm_trainer *trainer, tm_batch_item *items, int64_t count);
void tm_micro_drop(tm_trainer *trainer);

#endif
