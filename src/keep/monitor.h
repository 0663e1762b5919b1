/* The monitor: probes of old skills with budgets, and what happens when one is exceeded. */
#ifndef TM_KEEP_MONITOR_H
#define TM_KEEP_MONITOR_H

#include "train/trainer.h"

/* Adds the monitor to a trainer whose recipe has probes; nothing otherwise. */
tm_status tm_monitor_add(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;

/* How much worse a probe is than at the start: relative for loss, accuracy and exact match, nats for
 * kl; and its budget of that kind (NaN: none). */
double tm_probe_damage(const tm_eval_set *set, int32_t replica);
double tm_probe_budget(const tm_eval_set *set);

#endif
