/* A counting device that also adds up what its ops would compute and move: running a step on it gives the step's work, op by op
 * as the real run queues them, recomputation and what else there is included. */
#ifndef TM_PLAN_COST_H
#define TM_PLAN_COST_H

#include "plan/calibrate.h"

/* work: added to by every op; it must outlive the device. */
tm_status tm_costing_device_create(tm_device_traits traits, tm_work *work, tm_device **out, tm_error *err) TM_MUST_CHECK;
/* The examples of the micro-batch that is run next, in tokens: a counting device has no layout to look at. Borrowed. */
void tm_costing_device_lengths(tm_device *device, const int64_t *length, int64_t count);

#endif
