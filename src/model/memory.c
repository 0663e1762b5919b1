/* Memory by kind: see memory.h. */
#include "model/memory.h"

const char *tm_memory_label(tm_memory_kind kind)
{
    static const char *const labels[] = {
#define X(name, label) label,
        TM_MEMORY_TABLE(X)
#undef X
    };
    return labels[kind];
}

tm_status tm_memory_init(tm_memory *memory, tm_device *device, const int64_t limits[TM_MEM_KINDS], tm_error *err)
{
    int64_t limit[TM_MEM_KINDS] = {0}, at = 0;
    *memory = (tm_memory){.device = device};
    for (int i = 0; i < TM_MEM_KINDS && limits; i++)
        if (i != TM_MEM_DEVICE)
            memory->bytes += limit[i] = (limits[i] + TM_ALIGN - 1) / TM_ALIGN * TM_ALIGN;
    if (device->calls->alloc && memory->bytes)
        TM_TRY(tm_device_alloc(device, memory->bytes, &memory->base, err));
    for (int i = 0; i < TM_MEM_KINDS; at += limit[i++])
        memory->arena[i] = tm_arena_at(device, tm_memory_label((tm_memory_kind)i), memory->base ? (char *)memory->base + at : NULL, limit[i]);
    return TM_OK;
}

void tm_memory_deinit(tm_memory *memory)
{
    if (memory->device)
        tm_device_release(memory->device, memory->base, memory->bytes);
    *memory = (tm_memory){0};
}

int64_t tm_memory_peaks(const tm_memory *memory, int64_t peaks[TM_MEM_KINDS])
{
    int64_t sum = 0;
    for (int i = 0; i < TM_MEM_KINDS; i++) {
        peaks[i] = memory->arena[i].peak;
        sum += peaks[i];
    }
    return sum;
}
