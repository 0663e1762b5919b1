/* Memory before a run: the same run built on the counting device. */
#ifndef TM_PLAN_PLAN_H
#define TM_PLAN_PLAN_H

#include "plan/calibrate.h"
#include "train/trainer.h"

typedef struct tm_memory_plan {
    int64_t part[TM_MEM_KINDS]; /* bytes a kind */
    int64_t peak;               /* sum: temper's own allocations on the device, to the byte */
    int64_t host;               /* beside it: data set and tokenizer in host memory, estimated */
    int64_t trained;            /* trained parameters a replica */
    int64_t parameters;         /* of the base model */
    tm_work work;               /* a token of a step */
} tm_memory_plan;

/* traits: of the device it is planned for; own: bytes that it takes for itself at creation. The arenas' limits of a
 * real trainer are plan->part. */
tm_status tm_plan_memory(const tm_run *run, tm_device_traits traits, int64_t own, tm_memory_plan *out, tm_error *err) TM_MUST_CHECK;

/* Bytes that a run may still take on the device: of the machine's memory where it has none of its own. -1: unknown. */
int64_t tm_device_available(tm_device *device);

/* Floating-point operations a token of a training step: 2 a weight forward, 2 for the input gradient
 * where something below is trained, 2 for the gradient of a trained weight; attention over `length`
 * tokens. */
double tm_flops_per_token(const tm_model *model, int64_t length);
/* The same by size of product, and bytes beside them. */
void tm_work_of(const tm_model *model, int64_t length, tm_work *work);

#endif
