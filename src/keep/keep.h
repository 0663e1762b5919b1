/* Methods that keep skills: each is one file here, and one line of the table in keep.c. */
#ifndef TM_KEEP_KEEP_H
#define TM_KEEP_KEEP_H

#include "train/trainer.h"

/* Adds the hook of every method that the trainer's recipe asks for: tm_run.add_hooks of a run. */
tm_status tm_keep_add(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;

tm_status tm_ewc_add(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;
tm_status tm_l2sp_add(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;
tm_status tm_orthogonal_add(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;

#endif
