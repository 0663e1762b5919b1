/* The memory of a run by kind: one arena each, sized by building the run on the counting device. */
#ifndef TM_MODEL_MEMORY_H
#define TM_MODEL_MEMORY_H

#include "device/device.h"

/* X(name, label in plans and reports) */
#define TM_MEMORY_TABLE(X)                                                       \
    X(WEIGHTS, "weights")         /* of the model and of what is trained */       \
    X(GRADIENTS, "gradients")                                                     \
    X(OPTIMIZER, "optimizer")                                                     \
    X(ACTIVATIONS, "activations") /* kept from forward to backward */             \
    X(SCRATCH, "scratch")         /* reused by every layer and chunk */           \
    X(BATCH, "batch")             /* token ids, targets, positions */             \
    X(KEEP, "keep")               /* snapshots, teachers, importances */          \
    X(WORKSPACE, "workspace")     /* lent to the device: scratch of a single op */   \
    X(DEVICE, "device")           /* its own, taken at creation: no arena of a run */

typedef enum tm_memory_kind {
#define X(name, label) TM_MEM_##name,
    TM_MEMORY_TABLE(X)
#undef X
    TM_MEM_KINDS
} tm_memory_kind;

const char *tm_memory_label(tm_memory_kind kind);

/* One allocation: a GPU waits for all that runs on it whenever memory is given back. */
typedef struct tm_memory {
    tm_device *device;
    void *base;
    int64_t bytes;
    tm_arena arena[TM_MEM_KINDS];
} tm_memory;

/* limits: bytes a kind; ignored by the counting device. */
tm_status tm_memory_init(tm_memory *memory, tm_device *device, const int64_t limits[TM_MEM_KINDS], tm_error *err) TM_MUST_CHECK;
void tm_memory_deinit(tm_memory *memory);
/* What was taken at most, a kind and in sum. */
int64_t tm_memory_peaks(const tm_memory *memory, int64_t peaks[TM_MEM_KINDS]);

#endif
