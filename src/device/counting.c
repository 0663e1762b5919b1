/* The counting device: the calls of a real device with nothing behind them. Building a run on it
 * gives the run's memory to the byte, because arenas count what they hand out. */
#include "device/device.h"

#include "base/buf.h"

#include <stdlib.h>

#pragma GCC diagnostic ignored "-Wunused-parameter"

#define TM_OP(name, params) static void count_##name params {}
#include "device/ops.def"
#undef TM_OP

static const tm_ops counting_ops = {
#define TM_OP(name, params) .name = count_##name,
#include "device/ops.def"
#undef TM_OP
};

static void count_upload(tm_device *d, void *dst, const void *src, int64_t bytes) {}
static void count_download(tm_device *d, void *dst, const void *src, int64_t bytes) { memset(dst, 0, (size_t)bytes); }
static void count_copy(tm_device *d, void *dst, const void *src, int64_t bytes) {}
static void count_zero(tm_device *d, void *dst, int64_t bytes) {}
static tm_status count_sync(tm_device *d, tm_error *err) { return TM_OK; }
static void count_lend(tm_device *d, void *address, int64_t bytes) {}
static tm_status count_stash_reserve(tm_device *d, int64_t slots, int64_t bytes, tm_error *err) { return TM_OK; }
static void count_stash(tm_device *d, int64_t slot, const void *src, int64_t bytes) {}
static void count_unstash(tm_device *d, int64_t slot, void *dst, int64_t bytes) {}
static void count_stash_wait(tm_device *d, int64_t slot) {}
static void count_destroy(tm_device *d) { free(d); }

/* No alloc: arenas see that and count (tm_arena_at). */
static const tm_device_calls counting_calls = {
    .upload = count_upload, .download = count_download, .copy = count_copy, .zero = count_zero,
    .sync = count_sync, .destroy = count_destroy, .lend = count_lend,
    .stash_reserve = count_stash_reserve, .stash = count_stash, .unstash = count_unstash, .stash_wait = count_stash_wait,
};

tm_status tm_counting_device_create(tm_device_traits traits, tm_device **out, tm_error *err)
{
    TM_TRY(TM_NEW(out, 1, err));
    **out = (tm_device){.ops = &counting_ops, .calls = &counting_calls, .name = "counting", .detail = "", .real = traits.real, .traits = traits};
    return TM_OK;
}
