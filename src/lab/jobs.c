/* Jobs: see jobs.h. */
#include "lab/jobs.h"

#include "base/pool.h"

#include <pthread.h>

typedef struct work {
    const tm_lab_calls *calls;
    tm_status (*run)(void *context, size_t item, tm_error *err);
    void *context;
    pthread_mutex_t mutex;
    tm_status status; /* of the first that failed */
    tm_error *err;
} work;

static void fail(work *w, tm_status status, const tm_error *error)
{
    pthread_mutex_lock(&w->mutex);
    if (w->status == TM_OK) {
        w->status = status;
        if (w->err)
            *w->err = *error;
    }
    pthread_mutex_unlock(&w->mutex);
    if (w->calls->stop)
        w->calls->stop(w->calls->context);
}

static bool failed(work *w)
{
    pthread_mutex_lock(&w->mutex);
    bool now = w->status != TM_OK;
    pthread_mutex_unlock(&w->mutex);
    return now;
}

static void one(void *context, int64_t item, int thread)
{
    (void)thread;
    work *w = context;
    tm_error error = {0};
    if (failed(w))
        return;
    tm_status st = w->calls->stopped && w->calls->stopped(w->calls->context) ? tm_fail(&error, TM_FAILED, "interrupted; the same command goes on")
                                                                            : w->run(w->context, (size_t)item, &error);
    if (st != TM_OK)
        fail(w, st, &error);
}

tm_status tm_lab_jobs_run(const tm_lab_calls *calls, int jobs, size_t count, tm_status (*run)(void *context, size_t item, tm_error *err), void *context,
                          tm_error *err)
{
    work w = {.calls = calls, .run = run, .context = context, .err = err};
    tm_pool *pool;
    if (!count)
        return TM_OK;
    TM_TRY(tm_pool_create((size_t)jobs < count ? jobs : (int)count, &pool, err));
    pthread_mutex_init(&w.mutex, NULL);
    tm_pool_run(pool, one, &w, (int64_t)count);
    pthread_mutex_destroy(&w.mutex);
    tm_pool_destroy(pool);
    return w.status;
}
