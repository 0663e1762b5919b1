/* Allocations and file calls that fail on command: the program is linked with -Wl,--wrap for each (see the
 * Makefile), so every call from temper's own objects and from the test comes here. Calls made inside
 * shared libraries do not; jansson's allocations are brought here by fault_begin.
 *
 * fault_sweep runs an operation again and again: with the first allocation failing, the second, ... until
 * it gets through without one failing; then the same with file calls; each once with a single failure and
 * once with every call from that one on failing, as on a full disk. */
#ifndef TM_TESTS_FAULT_H
#define TM_TESTS_FAULT_H

#include "base/status.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef enum fault_kind { FAULT_NONE, FAULT_ALLOC, FAULT_CALL, FAULT_NUISANCE } fault_kind;

static struct {
    fault_kind kind; /* NUISANCE: reads and writes are interrupted or short; nothing fails */
    bool lasting;    /* all from the Nth on, not the Nth alone */
    bool no_threads; /* none can be started: what runs beside runs in order, so that failures are counted in order */
    long at, seen, hits;
} fault;

/* Whether this allocation or call is one to fail. */
static inline bool fault_now(fault_kind kind)
{
    if (fault.kind != kind || ++fault.seen < fault.at || (fault.seen > fault.at && !fault.lasting))
        return false;
    fault.hits++;
    return true;
}

/* For NUISANCE: true where this call is to be interrupted; *size is made short otherwise. */
static inline bool fault_nuisance(size_t *size)
{
    if (fault.kind != FAULT_NUISANCE)
        return false;
    if (++fault.seen % 3 == 1)
        return true;
    if (*size > 1000)
        *size = 1000;
    else if (*size > 1)
        *size /= 2;
    return false;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
ssize_t __real_read(int fd, void *buf, size_t size);
ssize_t __real_write(int fd, const void *buf, size_t size);
int __real_fsync(int fd);
int __real_rename(const char *from, const char *to);
void *__real_mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset);
size_t __real_fwrite(const void *data, size_t size, size_t count, FILE *file);
int __real_fflush(FILE *file);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
ssize_t __wrap_read(int fd, void *buf, size_t size);
ssize_t __wrap_write(int fd, const void *buf, size_t size);
int __wrap_fsync(int fd);
int __wrap_rename(const char *from, const char *to);
void *__wrap_mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset);
size_t __wrap_fwrite(const void *data, size_t size, size_t count, FILE *file);
int __wrap_fflush(FILE *file);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg);

static inline void *fault_no_memory(void)
{
    errno = ENOMEM;
    return NULL;
}

void *__wrap_malloc(size_t size) { return fault_now(FAULT_ALLOC) ? fault_no_memory() : __real_malloc(size); }

void *__wrap_calloc(size_t count, size_t size)
{
    return fault_now(FAULT_ALLOC) ? fault_no_memory() : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fault_now(FAULT_ALLOC) ? fault_no_memory() : __real_realloc(old, size);
}

ssize_t __wrap_read(int fd, void *buf, size_t size)
{
    if (fault_nuisance(&size)) {
        errno = EINTR;
        return -1;
    }
    if (fault_now(FAULT_CALL)) {
        errno = EIO;
        return -1;
    }
    return __real_read(fd, buf, size);
}

/* A write that fails because the disk is full has often written a part. */
ssize_t __wrap_write(int fd, const void *buf, size_t size)
{
    if (fault_nuisance(&size)) {
        errno = EINTR;
        return -1;
    }
    if (fault_now(FAULT_CALL)) {
        ssize_t part = __real_write(fd, buf, size / 2);
        (void)part;
        errno = ENOSPC;
        return -1;
    }
    return __real_write(fd, buf, size);
}

int __wrap_fsync(int fd)
{
    size_t none = 0;
    bool interrupted = fault_nuisance(&none);
    if (interrupted || fault_now(FAULT_CALL)) {
        errno = interrupted ? EINTR : EIO;
        return -1;
    }
    return __real_fsync(fd);
}

int __wrap_rename(const char *from, const char *to)
{
    if (fault_now(FAULT_CALL)) {
        errno = ENOSPC;
        return -1;
    }
    return __real_rename(from, to);
}

void *__wrap_mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
    if (fault_now(FAULT_CALL)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return __real_mmap(at, size, prot, flags, fd, offset);
}

size_t __wrap_fwrite(const void *data, size_t size, size_t count, FILE *file)
{
    if (fault_now(FAULT_CALL)) {
        errno = ENOSPC;
        return __real_fwrite(data, size, count / 2, file);
    }
    return __real_fwrite(data, size, count, file);
}

int __wrap_fflush(FILE *file)
{
    if (fault_now(FAULT_CALL)) {
        errno = ENOSPC;
        return EOF;
    }
    return __real_fflush(file);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg)
{
    return fault.no_threads ? EAGAIN : __real_pthread_create(thread, attr, start, arg);
}

static inline void *fault_json_malloc(size_t size) { return malloc(size); }
static inline void fault_json_free(void *block) { free(block); }

/* To be called before anything else uses jansson. */
static inline void fault_begin(void) { json_set_alloc_funcs(fault_json_malloc, fault_json_free); }

/* For operations that would use threads: "all processors" are one, so no pool has any, and none can be started. */
static inline void fault_alone(void)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    fault.no_threads = true;
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
}

/* An operation under test, and what must hold after it failed. */
typedef tm_status (*fault_fn)(tm_error *err);
typedef void (*fault_check)(void);

/* Runs the operation with the Nth allocation or call failing; the error must fit. */
static inline tm_status fault_run(const char *name, fault_kind kind, bool lasting, long n, fault_fn operation,
                                  fault_check check)
{
    tm_error err = {0};
    fault.lasting = lasting;
    fault.at = n;
    fault.seen = fault.hits = 0;
    fault.kind = kind;
    tm_status st = operation(&err);
    fault.kind = FAULT_NONE;
    bool right_kind = st == TM_OK || st == TM_IO || (st == TM_NO_MEMORY && kind == FAULT_ALLOC);
    if (!right_kind || (st != TM_OK && (err.status != st || !err.message[0])))
        fail_msg("%s: failure %ld of kind %d: status %d, \"%s\"", name, n, (int)kind, (int)st, err.message);
    if (check)
        check();
    return st;
}

static inline void fault_sweep_kind(const char *name, fault_kind kind, bool lasting, fault_fn operation,
                                    fault_check check)
{
    enum { ENDLESS = 100000 };
    long failed = 0;
    for (long n = 1;; n++) {
        tm_status st = fault_run(name, kind, lasting, n, operation, check);
        failed += st != TM_OK;
        if (n > ENDLESS)
            fail_msg("%s: failures of kind %d never end", name, (int)kind);
        if (st == TM_OK && !fault.hits)
            break;
    }
    if (!failed)
        fail_msg("%s: no failure of kind %d was ever seen", name, (int)kind);
}

/* As fault_sweep for work of thousands of allocations: of N one in `step` or so, another choice each time,
 * about `points` a kind of failure; all of them with FAULT_ALL set. The seed is in the message. */
static inline void fault_sample_kind(const char *name, fault_kind kind, bool lasting, long points, uint64_t *random,
                                     fault_fn operation, fault_check check)
{
    fault_run(name, kind, lasting, LONG_MAX, operation, check);
    long total = fault.seen, failed = 0, step = getenv("FAULT_ALL") || total < points ? 1 : total / points;
    for (long n = 1; n <= total;) {
        failed += fault_run(name, kind, lasting, n, operation, check) != TM_OK;
        *random = *random * UINT64_C(6364136223846793005) + 1442695040888963407u;
        n += step == 1 ? 1 : 1 + (long)((*random >> 33) % (uint64_t)(2 * step - 1));
    }
    if (!failed)
        fail_msg("%s: none of %ld failures of kind %d was ever seen", name, total, (int)kind);
}

#define FAULT_CALLS 1    /* the operation makes file calls */
#define FAULT_ALLOCS 2   /* it allocates */

/* Calls interrupted or short; nothing fails. */
static inline void fault_interrupt(const char *name, fault_fn operation, fault_check check)
{
    tm_error err = {0};
    fault.kind = FAULT_NUISANCE;
    fault.seen = 0;
    tm_status st = operation(&err);
    fault.kind = FAULT_NONE;
    if (st != TM_OK)
        fail_msg("%s: interrupted calls: \"%s\"", name, err.message);
    if (check)
        check();
}

static inline void fault_sweep(const char *name, int what, fault_fn operation, fault_check check)
{
    for (int lasting = 0; lasting < 2; lasting++) {
        if (what & FAULT_ALLOCS)
            fault_sweep_kind(name, FAULT_ALLOC, lasting, operation, check);
        if (what & FAULT_CALLS)
            fault_sweep_kind(name, FAULT_CALL, lasting, operation, check);
    }
    fault_interrupt(name, operation, check);
}

static inline void fault_sample(const char *name, long points, uint64_t seed, fault_fn operation, fault_check check)
{
    for (int lasting = 0; lasting < 2; lasting++) {
        fault_sample_kind(name, FAULT_ALLOC, lasting, points, &seed, operation, check);
        fault_sample_kind(name, FAULT_CALL, lasting, points, &seed, operation, check);
    }
    fault_interrupt(name, operation, check);
}

#endif
