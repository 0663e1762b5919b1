/* Memory and time before a run: the same run built on the counting device, and a step of it. */
#ifndef TM_PLAN_PLAN_H
#define TM_PLAN_PLAN_H

#include "keep/osf.h"
#include "plan/calibrate.h"
#include "train/trainer.h"

typedef struct tm_memory_plan {
    int64_t part[TM_MEM_KINDS]; /* bytes a kind */
    int64_t peak;               /* sum: temper's own allocations on the device, to the byte */
    int64_t host;               /* beside it, of host memory: what train.offload puts there */
    int64_t trained;            /* trained parameters a replica */
    int64_t parameters;         /* of the base model */
    int64_t layers;             /* blocks */
    int64_t max_tokens;         /* of a micro-batch */
    tm_work micro, step;        /* what a micro-batch costs, and an optimiser step beside its micro-batches */
    tm_work look;               /* what the base takes to say its losses on that micro-batch, before the training */
    double micro_tokens, step_tokens; /* that they have: of the data, else of train.seq and train.batch */
    double remembered_tokens;   /* of the examples whose hidden states the base remembers before the training (train/teacher.h) */
    tm_osf_size directions;     /* that keep.osf computes before the training */
} tm_memory_plan;

/* traits: of the device it is planned for; own: bytes that it takes for itself at creation. The arenas' limits of a
 * real trainer are plan->part. */
tm_status tm_plan_memory(const tm_run *run, tm_device_traits traits, int64_t own, tm_memory_plan *out, tm_error *err) TM_MUST_CHECK;

/* Bytes that a run may still take on the device: of the machine's memory where it has none of its own. -1: unknown. */
int64_t tm_device_available(tm_device *device);

/* The same by block: bytes of the tensors of each, and at [layers] of what is outside the blocks: parts of tm_plan_memory less
 * the blocks'. To be freed. */
typedef struct tm_layer_plan {
    int64_t part[TM_MEM_KINDS];
} tm_layer_plan;
tm_status tm_plan_layers(const tm_run *run, tm_device_traits traits, int64_t own, tm_layer_plan **out, int64_t *layers, tm_error *err) TM_MUST_CHECK;

/* time.c: runs a micro-batch of a trainer that was built on a costing device; work is what the device adds to. */
tm_status tm_plan_work(tm_trainer *trainer, tm_work *work, tm_memory_plan *plan, tm_error *err) TM_MUST_CHECK;
/* Tokens of examples a second that training reaches by these rates, on a device that does nothing else. */
double tm_tokens_per_second(const tm_memory_plan *plan, const tm_calibration *rates);

/* The same of the base's losses. */
double tm_looks_per_second(const tm_memory_plan *plan, const tm_calibration *rates);

#endif
