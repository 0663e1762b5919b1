/* What jobs of one process share: a device goes from one to the next as if it were new, whatever its last job left. */
#include "api/job.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static tm_device *lend(tm_workshop *shop, const char *name, int64_t threads)
{
    tm_device *d = NULL;
    tm_error err = {0};
    char why[512] = "";
    if (tm_workshop_device(shop, name, threads, &d, why, &err) != TM_OK)
        fail_msg("%s", err.message);
    assert_string_equal(why, "");
    return d;
}

static void handed_on(void **state)
{
    (void)state;
    tm_workshop shop;
    tm_error err = {0};
    tm_device *d;
    tm_workshop_open(&shop);
    tm_device *a = lend(&shop, "cpu", 1), *b = lend(&shop, "cpu", 1);
    assert_ptr_not_equal(a, b); /* one job has it at a time */
    assert_int_equal(tm_workshop_device(&shop, "tpu", 1, &d, NULL, &err), TM_RECIPE);
    assert_null(d);
    void *memory;
    int64_t used = a->used_bytes;
    assert_int_equal(tm_device_alloc(a, 1000, &memory, &err), TM_OK);
    tm_device_release(a, memory, 1000);
    assert_int_equal(a->peak_bytes, used + 1000);
    tm_workshop_give_back(&shop, a);
    assert_ptr_not_equal(lend(&shop, "cpu", 2), a); /* another number of threads */
    d = lend(&shop, "cpu", 1);
    assert_ptr_equal(d, a);
    assert_int_equal(d->peak_bytes, used); /* what a run says of its memory is its own */
    tm_workshop_close(&shop);
    d = lend(NULL, "cpu", 1);
    tm_workshop_give_back(NULL, d);
}

static void *in_thread(void *context)
{
    tm_workshop *shop = context;
    return lend(shop, "cuda", 1);
}

/* On a GPU (here on the processor, tests/emulated). */
static void gpu_handed_on(void **state)
{
    (void)state;
    if (access(EMULATED, R_OK) != 0) {
        print_message("skip: no C++ compiler here, so no " EMULATED "\n");
        skip();
    }
    enum { BYTES = 4096 };
    setenv("TEMPER_CUDA_LIBRARY", EMULATED, 1);
    tm_workshop shop;
    tm_error err = {0};
    unsigned char got[BYTES], late[16] = {7}, zeros[16] = {0};
    void *block, *other, *again;
    pthread_t thread;
    tm_device *next;
    tm_workshop_open(&shop);
    tm_device *d = lend(&shop, "cuda", 1);
    assert_int_equal(tm_device_alloc(d, BYTES, &block, &err), TM_OK);
    assert_int_equal(tm_device_alloc(d, BYTES, &other, &err), TM_OK);
    d->calls->zero(d, block, BYTES);
    tm_device_fetch(d, late, block, sizeof late); /* never waited for: its job was over before */
    tm_device_release(d, block, BYTES);
    tm_device_release(d, other, BYTES);
    tm_workshop_give_back(&shop, d);
    assert_int_equal(pthread_create(&thread, NULL, in_thread, &shop), 0);
    assert_int_equal(pthread_join(thread, (void **)&next), 0);
    assert_ptr_equal(next, d);
    assert_int_equal(d->calls->sync(d, &err), TM_OK);
    assert_int_equal(late[0], 7);
    assert_int_equal(d->used_bytes, tm_cuda_own_bytes());
    /* Its block is there still, and looks like new; what is larger takes its place. */
    int64_t idle, lent, all;
    d->calls->memory(d, &idle, &all);
    assert_int_equal(tm_device_alloc(d, BYTES / 2, &again, &err), TM_OK);
    assert_ptr_equal(again, block);
    d->calls->memory(d, &lent, &all);
    assert_int_equal(idle - lent, BYTES);
    d->calls->download(d, got, again, BYTES / 2);
    for (int i = 0; i < BYTES / 2; i++)
        assert_int_equal(got[i], 0xff);
    tm_device_release(d, again, BYTES / 2);
    assert_int_equal(tm_device_alloc(d, 4 * BYTES, &again, &err), TM_OK);
    d->calls->zero(d, again, 4 * BYTES);
    d->calls->download(d, late, (char *)again + 4 * BYTES - sizeof late, sizeof late);
    assert_memory_equal(late, zeros, sizeof late);
    tm_device_release(d, again, 4 * BYTES);
    /* One that failed is not handed on: its failure would be the next job's. */
    double wide[4] = {0};
    TM_RUN(d, fill, tm_tensor_make(wide, TM_F64, 1, 4), 1);
    tm_workshop_give_back(&shop, d);
    d = lend(&shop, "cuda", 1);
    assert_int_equal(d->calls->sync(d, &err), TM_OK);
    assert_int_equal(shop.tools, 1);
    tm_workshop_close(&shop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(handed_on), cmocka_unit_test(gpu_handed_on)};
    return cmocka_run_group_tests_name("what jobs share", tests, NULL, NULL);
}
