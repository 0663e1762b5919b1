/* A scratch folder for a test program: made on first use, removed with everything in it at the end. */
#ifndef TM_TESTS_FOLDER_H
#define TM_TESTS_FOLDER_H

#include "base/file.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char scratch_dir[64];

static inline int scratch_begin(void **state)
{
    (void)state;
    strcpy(scratch_dir, "/tmp/temper-test-XXXXXX");
    return mkdtemp(scratch_dir) ? 0 : -1;
}

static inline int scratch_end(void **state)
{
    (void)state;
    tm_error err;
    return tm_dir_remove(scratch_dir, &err) == TM_OK ? 0 : -1;
}

/* scratch/name, in one of a few static buffers. */
static inline const char *scratch(const char *name)
{
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", scratch_dir, name);
    return path;
}

/* The whole file, zero-terminated; fails the test when it is not there. */
static inline char *slurp(const char *path, size_t *size)
{
    tm_buf buf = {0};
    tm_error err = {0};
    if (tm_file_read(path, SIZE_MAX / 4, &buf, &err) != TM_OK)
        fail_msg("%s", err.message);
    if (size)
        *size = buf.size;
    if (!buf.data)
        return calloc(1, 1);
    return buf.data;
}

/* Runs expr, which must succeed. */
#define OK(expr)                                        \
    do {                                                \
        tm_error ok_err_ = {0}, *err = &ok_err_;        \
        if ((expr) != TM_OK)                            \
            fail_msg("%s: %s", #expr, ok_err_.message); \
    } while (0)

/* Runs expr, which must fail with the status and a message that contains the text. */
#define FAILS(code, text, expr)                                                              \
    do {                                                                                     \
        tm_error ok_err_ = {0}, *err = &ok_err_;                                             \
        tm_status st_ = (expr);                                                              \
        if (st_ != (code) || err->status != (code) || !strstr(err->message, (text)))         \
            fail_msg("%s: status %d, \"%s\"; expected %d, \"%s\"", #expr, (int)st_, err->message, \
                     (int)(code), (text));                                                   \
    } while (0)

#endif
