/* Work that is queued again and again with other numbers at the same addresses: on a device with graphs op by op the first
 * time, recorded the second, replayed from then on. The first time is not recorded, because what a device prepares once is
 * no part of a graph, and work that comes once should not pay for one.
 *
 * Who queues sees to it that nothing in it depends on the host but what is uploaded before: addresses, counts and sizes are
 * those of the first time. */
#ifndef TM_DEVICE_REPLAY_H
#define TM_DEVICE_REPLAY_H

#include "device/device.h"

/* Zeroed: nothing was queued yet. */
typedef struct tm_replay {
    tm_graph *graph; /* NULL: not recorded */
    int64_t times;   /* queued op by op */
} tm_replay;

/* Queues it, by queue(context) or by the graph of it. Bits are the same. An error: nothing was recorded. */
tm_status tm_replay_run(tm_device *d, tm_replay *r, void (*queue)(void *context), void *context, tm_error *err) TM_MUST_CHECK;
void tm_replay_drop(tm_device *d, tm_replay *r);

#endif
