/* Threads: a fixed set of workers that claim tasks from a counter. What a task computes never
 * depends on who runs it, so results do not depend on the number of threads. */
#ifndef TM_BASE_POOL_H
#define TM_BASE_POOL_H

#include "base/status.h"

typedef struct tm_pool tm_pool;

/* threads 0 = as many as the process may run on. The caller counts as one of them. */
tm_status tm_pool_create(int threads, tm_pool **out, tm_error *err) TM_MUST_CHECK;
void tm_pool_destroy(tm_pool *pool);
int tm_pool_threads(const tm_pool *pool);
/* What threads = 0 comes to: processors this process may run on. */
int tm_pool_processors(void);

/* Calls fn(context, task, thread) for task = 0 .. tasks - 1 and returns when all are done; thread is
 * in [0, threads) and never runs two tasks at once (so it can index scratch memory). One caller at
 * a time; not to be called from inside a task. */
void tm_pool_run(tm_pool *pool, void (*fn)(void *context, int64_t task, int thread), void *context, int64_t tasks);

#endif
