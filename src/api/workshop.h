/* What jobs of one process that come one after another, and side by side, have in common: devices. A GPU's takes long to
 * make (a stream, pinned memory), and longer where others run on the GPU meanwhile.
 *
 * A device is lent to one job at a time; no result depends on which. Where a workshop is asked for, NULL stands for none:
 * the job's device is made for it and ends with it. */
#ifndef TM_API_WORKSHOP_H
#define TM_API_WORKSHOP_H

#include "device/device.h"

#include <pthread.h>

typedef struct tm_workshop {
    pthread_mutex_t mutex;
    struct tm_tool *tool; /* every device that was made here, lent or idle */
    size_t tools, capacity;
    bool passing;         /* run folders are removed when their chain is done: nothing is made for people to look at */
} tm_workshop;

void tm_workshop_open(tm_workshop *shop);
/* All devices have been given back. */
void tm_workshop_close(tm_workshop *shop);

/* As tm_device_open, from any thread; given back by tm_workshop_give_back, from any thread. */
tm_status tm_workshop_device(tm_workshop *shop, const char *name, int64_t threads, tm_device **out, char *no_gpu, tm_error *err) TM_MUST_CHECK;
/* device may be NULL. */
void tm_workshop_give_back(tm_workshop *shop, tm_device *device);

#endif
