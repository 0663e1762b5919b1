/* The GPUs that a run can be planned for without having them: gpus.def. */
#ifndef TM_PLAN_GPUS_H
#define TM_PLAN_GPUS_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct tm_gpu {
    const char *name, *names, *begins, *has; /* as in gpus.def */
    int64_t memory;                          /* bytes that the driver hands to programs */
    double bandwidth, flops; /* bytes and 16-bit operations a second of the data sheet: for scaling alone */
    bool bf16;               /* else f16 */
} tm_gpu;

/* From the smallest memory to the largest. */
const tm_gpu *tm_gpus(size_t *count);
/* By what a user calls it ("4090", "rtx 4090", "NVIDIA H100") or the driver ("NVIDIA A100-SXM4-40GB"): case, blanks and dashes
 * do not matter. NULL: none of the table. */
const tm_gpu *tm_gpu_find(const char *name);
/* The same; TM_USAGE with the names that there are. */
tm_status tm_gpu_named(const char *name, const tm_gpu **out, tm_error *err) TM_MUST_CHECK;

#endif
