/* temper: fine-tuning of language models, reproducible to the bit.
 *
 * This is the only public header. Everything else under src/ may change. Conventions:
 *  - fallible functions return tm_status and describe the failure in a caller-owned tm_error;
 *  - the library never prints, never exits, never reads the environment on its own;
 *  - `create/destroy`, `open/close` own; `view` borrows; every destroy accepts NULL.
 */
#ifndef TEMPER_H
#define TEMPER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TM_VERSION "0.1.0"

/* X(name, exit code of the program, what it means). Exit codes are a contract with scripts. */
#define TM_STATUS_TABLE(X)                                                             \
    X(OK, 0, "done")                                                                   \
    X(FAILED, 1, "failed while running")                                               \
    X(IO, 1, "reading or writing a file failed")                                       \
    X(NO_MEMORY, 1, "the system gave no memory")                                       \
    X(USAGE, 2, "wrong usage")                                                         \
    X(RECIPE, 2, "wrong recipe")                                                       \
    X(LOCKED, 2, "another process uses this folder, or its recipe differs")            \
    X(INPUT, 3, "an input file is damaged")                                            \
    X(UNSUPPORTED, 3, "an input file asks for something temper does not support")      \
    X(NO_FIT, 4, "it does not fit in memory")                                          \
    X(RETENTION, 5, "the retention gate stopped or rolled back")

typedef enum tm_status {
#define X(name, code, text) TM_##name,
    TM_STATUS_TABLE(X)
#undef X
} tm_status;

/* Filled on failure: names the file (and line, key or tensor), what was found, what was expected. */
typedef struct tm_error {
    tm_status status;
    char message[1024];
} tm_error;

int tm_status_exit_code(tm_status status);
const char *tm_status_text(tm_status status);

#ifdef __cplusplus
}
#endif
#endif
