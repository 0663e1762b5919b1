/* Methods with a teacher: the loss has a term that holds the model at what the base says. */
#ifndef TM_KEEP_TEACHER_H
#define TM_KEEP_TEACHER_H

#include "train/trainer.h"

/* keep.kl and keep.der: tells the trainer's teacher what to ask; nothing where the recipe asks for none. */
tm_status tm_teacher_add(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;

#endif
