/* Time. It may be shown and written to timing.jsonl; it never enters a result. */
#ifndef TM_BASE_CLOCK_H
#define TM_BASE_CLOCK_H

#include <stdint.h>

double tm_clock_seconds(void);       /* monotonic */
/* Bytes this process may still take (system and cgroup, or TEMPER_MEMORY_LIMIT: tests and shared
 * machines); -1: unknown. */
int64_t tm_memory_available(void);

#endif
