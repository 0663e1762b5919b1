/* What a run is planned for: the device at hand, or a GPU of the table that is not. */
#ifndef TM_PLAN_TARGET_H
#define TM_PLAN_TARGET_H

#include "plan/calibrate.h"
#include "plan/gpus.h"

typedef struct tm_target {
    char name[160];          /* "avx512, 2 threads", "NVIDIA H200", "RTX 4090" */
    bool here;               /* the device at hand */
    bool cuda;
    const tm_gpu *gpu;       /* its row of the table; NULL: none */
    tm_device_traits traits;
    int precision;           /* what `auto` means: TM_PRECISION_... */
    int64_t own;             /* bytes that the device takes for itself at creation */
    int64_t memory;          /* bytes that a run and the driver may take together; -1: unknown */
    int64_t reserve;         /* the driver's part of them: context, code, graphs */
    bool reserve_measured;   /* else an estimate */
    bool timed;              /* rates are there */
    tm_calibration rates;
    char from[160];          /* the device that rates are extrapolated from; "": they are its own */
} tm_target;

/* The device at hand, and what calibration files say of it. */
tm_status tm_target_device(tm_device *device, tm_target *out, tm_error *err) TM_MUST_CHECK;
/* A GPU of the table: rates measured on such a card, else on another one, scaled by the data sheets. */
tm_status tm_target_gpu(const tm_gpu *gpu, tm_target *out, tm_error *err) TM_MUST_CHECK;

/* Whether so many bytes of temper's own fit. */
static inline bool tm_target_fits(const tm_target *target, int64_t peak)
{
    return target->memory < 0 || peak + target->reserve <= target->memory;
}

#endif
