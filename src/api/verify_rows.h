/* Whether a device's matrix products keep a row's bits beside any others. */
#ifndef TM_API_VERIFY_ROWS_H
#define TM_API_VERIFY_ROWS_H

#include "device/device.h"

typedef struct tm_row_shape { /* of a weight */
    int64_t out, in;
    tm_dtype dtype;
} tm_row_shape;

/* *kept: of 2 * count products (forward and input gradient of each shape) those whose rows keep their bits. act: of what they meet. */
tm_status tm_verify_rows(tm_device *device, tm_dtype act, const tm_row_shape *shape, int count, int *kept, tm_error *err) TM_MUST_CHECK;

#endif
