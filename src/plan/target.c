/* Targets: see target.h. */
#include "plan/target.h"

#include "base/options.h"
#include "plan/plan.h"

#include <stdio.h>
#include <string.h>

/* What the driver keeps beside a program's memory where nobody measured it: a context with the code of some hundred
 * kernels and a graph. */
static const int64_t guessed_reserve = 600000000;

static void set_reserve(tm_target *t)
{
    t->reserve_measured = t->timed && t->rates.reserve >= 0;
    t->reserve = !t->cuda ? 0 : t->reserve_measured ? t->rates.reserve : guessed_reserve;
}

static int precision_of(tm_dtype act) { return act == TM_BF16 ? TM_PRECISION_BF16 : act == TM_F16 ? TM_PRECISION_F16 : TM_PRECISION_F32; }

static bool is_cuda(const tm_device *d) { return strcmp(d->name, "cuda") == 0; }

tm_status tm_target_device(tm_device *d, tm_target *out, tm_error *err)
{
    tm_calibrations all;
    *out = (tm_target){.here = true, .cuda = is_cuda(d), .traits = d->traits, .own = d->used_bytes,
                       .precision = precision_of(d->traits.act)};
    snprintf(out->name, sizeof out->name, "%s", d->detail);
    out->gpu = out->cuda ? tm_gpu_find(d->detail) : NULL;
    TM_TRY(tm_calibrations_load(&all, err));
    const tm_calibrated *own = tm_calibrations_find(&all, d->name, d->detail);
    out->timed = own != NULL;
    if (own)
        out->rates = own->rates;
    set_reserve(out);
    tm_calibrations_deinit(&all);
    /* The driver has taken its part of what is free; for the rest of it the device keeps room back. */
    int64_t available = tm_device_available(d);
    out->memory = available < 0 ? -1 : available + out->own + out->reserve;
    return TM_OK;
}

tm_status tm_target_gpu(const tm_gpu *gpu, tm_target *out, tm_error *err)
{
    tm_calibrations all;
    *out = (tm_target){.cuda = true, .gpu = gpu, .traits = tm_cuda_traits(), .own = tm_cuda_own_bytes(), .memory = gpu->memory,
                       .precision = gpu->bf16 ? TM_PRECISION_BF16 : TM_PRECISION_F16};
    out->traits.act = gpu->bf16 ? TM_BF16 : TM_F16;
    snprintf(out->name, sizeof out->name, "%s", gpu->name);
    TM_TRY(tm_calibrations_load(&all, err));
    const tm_calibrated *from = NULL;
    const tm_gpu *source = NULL;
    for (size_t i = 0; i < all.count && source != gpu; i++) {
        const tm_gpu *its = strcmp(all.item[i].name, "cuda") == 0 ? tm_gpu_find(all.item[i].detail) : NULL;
        if (its && (!from || its == gpu)) {
            from = &all.item[i];
            source = its;
        }
    }
    out->timed = from != NULL;
    if (from) {
        out->rates = from->rates;
        if (source != gpu) {
            snprintf(out->from, sizeof out->from, "%s", from->detail);
            tm_calibration_scale(&out->rates, gpu->flops / source->flops, gpu->bandwidth / source->bandwidth);
        }
    }
    set_reserve(out);
    out->reserve_measured &= source == gpu;
    tm_calibrations_deinit(&all);
    return TM_OK;
}
