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
    *memory = (tm_memory){0};
    for (int i = 0; i < TM_MEM_KINDS; i++) {
        tm_status st = tm_arena_init(&memory->arena[i], device, tm_memory_label((tm_memory_kind)i), limits && i != TM_MEM_DEVICE ? limits[i] : 0, err);
        if (st != TM_OK) {
            tm_memory_deinit(memory);
            return st;
        }
    }
    return TM_OK;
}

void tm_memory_deinit(tm_memory *memory)
{
    for (int i = 0; i < TM_MEM_KINDS; i++)
        tm_arena_deinit(&memory->arena[i]);
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
