/* The thread pool: every task runs once, on a thread index of its own, whatever the counts. */
#include "base/pool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TASKS = 2000, MAX_THREADS = 16 };

typedef struct count {
    int runs[MAX_TASKS];          /* plain: two runs of one task at once would be a race */
    atomic_int busy[MAX_THREADS]; /* a thread index runs one task at a time */
    atomic_int bad;
    int threads;
} count;

static void count_task(void *context, int64_t task, int thread)
{
    count *c = context;
    if (thread < 0 || thread >= c->threads || atomic_exchange(&c->busy[thread], 1))
        atomic_fetch_add(&c->bad, 1);
    c->runs[task]++;
    atomic_store(&c->busy[thread], 0);
}

static void every_task_once(void **state)
{
    (void)state;
    static const int threads[] = {1, 2, 3, 8, 16};
    static const int64_t tasks[] = {0, 1, 2, 3, 7, 64, 1000, MAX_TASKS};
    for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
        tm_pool *pool;
        tm_error err;
        assert_int_equal(tm_pool_create(threads[t], &pool, &err), TM_OK);
        assert_int_equal(tm_pool_threads(pool), threads[t]);
        for (size_t k = 0; k < sizeof tasks / sizeof *tasks; k++) {
            static count c;
            memset(&c, 0, sizeof c);
            c.threads = threads[t];
            for (int repeat = 0; repeat < 20; repeat++)
                tm_pool_run(pool, count_task, &c, tasks[k]);
            assert_int_equal(atomic_load(&c.bad), 0);
            for (int64_t i = 0; i < MAX_TASKS; i++)
                assert_int_equal(c.runs[i], i < tasks[k] ? 20 : 0);
        }
        tm_pool_destroy(pool);
    }
}

/* Short runs with pauses between them: workers go to sleep and must be woken. */
static void sleepers_are_woken(void **state)
{
    (void)state;
    tm_pool *pool;
    tm_error err;
    assert_int_equal(tm_pool_create(4, &pool, &err), TM_OK);
    static count c;
    memset(&c, 0, sizeof c);
    c.threads = 4;
    for (int i = 0; i < 200; i++) {
        tm_pool_run(pool, count_task, &c, 5);
        if (i % 4 == 0)
            usleep(500);
    }
    for (int i = 0; i < 5; i++)
        assert_int_equal(c.runs[i], 200);
    tm_pool_destroy(pool);
}

static void slow_task(void *context, int64_t task, int thread)
{
    (void)thread;
    usleep(task == 0 ? 3000 : 100);
    ((int *)context)[task] = 1;
}

/* The caller waits for the slowest task, asleep. */
static void caller_waits(void **state)
{
    (void)state;
    tm_pool *pool;
    tm_error err;
    assert_int_equal(tm_pool_create(2, &pool, &err), TM_OK);
    for (int repeat = 0; repeat < 20; repeat++) {
        int done[4] = {0};
        tm_pool_run(pool, slow_task, done, 4);
        for (int i = 0; i < 4; i++)
            assert_int_equal(done[i], 1);
    }
    tm_pool_destroy(pool);
}

static void all_processors(void **state)
{
    (void)state;
    tm_pool *pool;
    tm_error err;
    assert_int_equal(tm_pool_create(0, &pool, &err), TM_OK);
    assert_true(tm_pool_threads(pool) >= 1);
    tm_pool_destroy(pool);
    tm_pool_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_once), cmocka_unit_test(sleepers_are_woken),
        cmocka_unit_test(caller_waits), cmocka_unit_test(all_processors),
    };
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
