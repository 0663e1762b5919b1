/* What all devices share: byte counters and arenas. See device.h. */
#include "device/device.h"

#include <assert.h>
#include <inttypes.h>

/* A CPU's share of logits should stay in its caches; a GPU's must give its matrix product enough rows: 2048 rows of
 * 150,000 tokens are 600 MB. */
tm_device_traits tm_cpu_traits(void) { return (tm_device_traits){.real = TM_F32, .act = TM_F32, .head_rows = TM_CHUNK_TOKENS}; }
tm_device_traits tm_cuda_traits(void) { return (tm_device_traits){.real = TM_F32, .head_rows = 2048, .borrows = true, .apart = true, .act = TM_BF16}; }
int64_t tm_cuda_own_bytes(void) { return TM_CUDA_PARTIALS * (int64_t)sizeof(uint64_t); }

tm_status tm_device_alloc(tm_device *d, int64_t bytes, void **out, tm_error *err)
{
    TM_TRY(d->calls->alloc(d, bytes, out, err));
    d->used_bytes += bytes;
    if (d->used_bytes > d->peak_bytes)
        d->peak_bytes = d->used_bytes;
    return TM_OK;
}

void tm_device_release(tm_device *d, void *address, int64_t bytes)
{
    if (!address)
        return;
    d->used_bytes -= bytes;
    d->calls->release(d, address);
}

void tm_device_fetch(tm_device *d, void *dst, const void *src, int64_t bytes)
{
    (d->calls->fetch ? d->calls->fetch : d->calls->download)(d, dst, src, bytes);
}

void tm_device_destroy(tm_device *d)
{
    if (d)
        d->calls->destroy(d);
}

tm_status tm_device_adopt(tm_device *d, tm_error *err)
{
    d->peak_bytes = d->used_bytes;
    return d->calls->adopt ? d->calls->adopt(d, err) : TM_OK;
}

tm_arena tm_arena_at(tm_device *d, const char *name, void *base, int64_t bytes)
{
    bool counting = d->calls->alloc == NULL; /* then an address that is never looked through, far from NULL */
    return (tm_arena){.device = d, .name = name, .base = counting ? (char *)(uintptr_t)TM_ALIGN : base, .limit = bytes, .counting = counting};
}

void *tm_arena_take(tm_arena *arena, int64_t bytes)
{
    int64_t start = arena->used;
    int64_t end = start + (bytes + TM_ALIGN - 1) / TM_ALIGN * TM_ALIGN;
    if (!arena->counting && end > arena->limit) {
        assert(!"arena overrun: the plan and the run disagree");
        return NULL;
    }
    arena->used = end;
    if (end > arena->peak)
        arena->peak = end;
    return arena->base + start;
}

tm_tensor tm_arena_tensor(tm_arena *arena, tm_dtype dtype, int64_t rows, int64_t cols)
{
    return tm_tensor_make(tm_arena_take(arena, tm_dtype_bytes(dtype, rows * cols)), dtype, rows, cols);
}
