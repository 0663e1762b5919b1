/* Device tensors that a method keeps beside the trained ones, as a file of a checkpoint. */
#ifndef TM_KEEP_KEPT_H
#define TM_KEEP_KEPT_H

#include "train/trainer.h"

typedef struct tm_kept {
    const char *name; /* borrowed: of the parameter that it belongs to */
    tm_tensor value;  /* [R * rows, cols], contiguous */
} tm_kept;

/* Writes or reads the part of one replica of every tensor: folder/file. Reading, all must be there in the same shape and
 * type (TM_INPUT otherwise). */
tm_status tm_kept_write(tm_trainer *trainer, const tm_kept *kept, int64_t count, int32_t replica, const char *folder, const char *file, tm_error *err) TM_MUST_CHECK;
tm_status tm_kept_read(tm_trainer *trainer, const tm_kept *kept, int64_t count, int32_t replica, const char *folder, const char *file, tm_error *err) TM_MUST_CHECK;

#endif
