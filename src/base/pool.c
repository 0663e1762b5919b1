/* The thread pool: see pool.h. Invariants:
 *
 *  1. `left` counts the tasks nobody has claimed; a claim is a decrement that found it positive. A
 *     claimed task keeps the run alive (`open` > 0 until it is done), so the job's fields are read
 *     only after a claim and written only while no run is alive. A worker that wakes late finds
 *     nothing to claim, or claims from the next run, and both are right.
 *  2. Whoever waits first spins for some microseconds, because steps are thousands of short runs,
 *     then sleeps. With more threads than processors nobody spins.
 *  3. Sleepers are seen: they announce themselves, then look again; wakers change, then look for
 *     sleepers; both in one total order (sequentially consistent), so one of the two sees the other. */
#include "base/pool.h"

#include "base/buf.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { SPINS = 4000 }; /* some 20-40 us of pauses: longer than the gap between two ops */

typedef struct worker {
    struct tm_pool *pool;
    pthread_t thread;
    int index;
} worker;

struct tm_pool {
    int threads, started, spins;
    worker *workers; /* threads - 1 of them are started */

    _Alignas(64) _Atomic int64_t left; /* tasks not claimed; may sink below zero */
    _Alignas(64) _Atomic int64_t open; /* tasks not done */
    _Alignas(64) atomic_int sleepers;  /* workers on `work`, or about to be */
    atomic_bool stop, caller_sleeps;

    void (*fn)(void *context, int64_t task, int thread);
    void *context;
    int64_t tasks;

    pthread_mutex_t mutex;
    pthread_cond_t work, done;
};

static inline void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void claim_tasks(tm_pool *p, int thread)
{
    while (atomic_load_explicit(&p->left, memory_order_relaxed) > 0) {
        int64_t left = atomic_fetch_sub(&p->left, 1);
        if (left <= 0)
            return;
        p->fn(p->context, p->tasks - left, thread);
        if (atomic_fetch_sub(&p->open, 1) == 1 && atomic_load(&p->caller_sleeps)) {
            pthread_mutex_lock(&p->mutex);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->mutex);
        }
    }
}

static bool has_work(tm_pool *p) { return atomic_load(&p->left) > 0 || atomic_load(&p->stop); }

static void *work(void *argument)
{
    worker *w = argument;
    tm_pool *p = w->pool;
    while (!atomic_load(&p->stop)) {
        claim_tasks(p, w->index);
        for (int i = 0; i < p->spins && !has_work(p); i++)
            pause_cpu();
        if (has_work(p))
            continue;
        pthread_mutex_lock(&p->mutex);
        atomic_fetch_add(&p->sleepers, 1);
        while (!has_work(p))
            pthread_cond_wait(&p->work, &p->mutex);
        atomic_fetch_sub(&p->sleepers, 1);
        pthread_mutex_unlock(&p->mutex);
    }
    return NULL;
}

static void wake_workers(tm_pool *p)
{
    if (atomic_load(&p->sleepers) == 0)
        return;
    pthread_mutex_lock(&p->mutex);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->mutex);
}

void tm_pool_run(tm_pool *p, void (*fn)(void *context, int64_t task, int thread), void *context, int64_t tasks)
{
    if (p->threads == 1 || tasks == 1) {
        for (int64_t i = 0; i < tasks; i++)
            fn(context, i, 0);
        return;
    }
    if (tasks <= 0)
        return;
    p->fn = fn;
    p->context = context;
    p->tasks = tasks;
    atomic_store(&p->open, tasks);
    atomic_store(&p->left, tasks);
    wake_workers(p);
    claim_tasks(p, 0);
    for (int i = 0; i < p->spins && atomic_load(&p->open); i++)
        pause_cpu();
    if (!atomic_load(&p->open))
        return;
    pthread_mutex_lock(&p->mutex);
    atomic_store(&p->caller_sleeps, true);
    while (atomic_load(&p->open))
        pthread_cond_wait(&p->done, &p->mutex);
    atomic_store(&p->caller_sleeps, false);
    pthread_mutex_unlock(&p->mutex);
}

int tm_pool_processors(void)
{
    cpu_set_t set; /* of 1024: a larger machine is asked for its number */
    long n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

tm_status tm_pool_create(int threads, tm_pool **out, tm_error *err)
{
    int processors = tm_pool_processors();
    if (threads <= 0)
        threads = processors;
    tm_pool *p = NULL;
    *out = NULL;
    TM_TRY(TM_NEW(&p, 1, err));
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->done, NULL);
    p->threads = threads;
    p->spins = threads <= processors ? SPINS : 0;
    tm_status st = TM_OK;
    TM_GO(TM_NEW(&p->workers, threads, err));
    for (; p->started < threads - 1; p->started++) {
        worker *w = &p->workers[p->started];
        *w = (worker){.pool = p, .index = p->started + 1};
        int failed = pthread_create(&w->thread, NULL, work, w);
        if (failed) {
            st = tm_fail(err, TM_FAILED, "thread %d of %d could not be started (error %d)", w->index + 1, threads, failed);
            goto out;
        }
    }
    *out = p;
    return TM_OK;
out:
    tm_pool_destroy(p);
    return st;
}

void tm_pool_destroy(tm_pool *p)
{
    if (!p)
        return;
    atomic_store(&p->stop, true);
    wake_workers(p);
    for (int i = 0; i < p->started; i++)
        pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->mutex);
    free(p->workers);
    free(p);
}

int tm_pool_threads(const tm_pool *p) { return p->threads; }
