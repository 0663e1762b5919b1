/* Errors: how a failure is made and passed on. A function that can fail returns tm_status, which
 * the caller must look at; the message is written once, where the failure is understood best. */
#ifndef TM_BASE_STATUS_H
#define TM_BASE_STATUS_H

#include "temper.h"

#define TM_MUST_CHECK __attribute__((warn_unused_result))
#define TM_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* Writes the message into err (which may be NULL) and returns status. */
tm_status tm_fail(tm_error *err, tm_status status, const char *fmt, ...) TM_PRINTF(3, 4);

/* As tm_fail, with ": <strerror(errno)>" appended; errno is read on entry. */
tm_status tm_fail_errno(tm_error *err, tm_status status, const char *fmt, ...) TM_PRINTF(3, 4);

/* Puts "context: " before the message that err already holds, of a failure with that status, and returns the status. */
tm_status tm_fail_prefix(tm_error *err, tm_status status, const char *fmt, ...) TM_PRINTF(3, 4);

/* Forwards a failure: for functions with nothing to clean up. */
#define TM_TRY(expr)                        \
    do {                                    \
        tm_status try_status_ = (expr);     \
        if (try_status_ != TM_OK)           \
            return try_status_;             \
    } while (0)

/* Forwards a failure through the function's one `out:` label; needs a local `tm_status st`. */
#define TM_GO(expr)                         \
    do {                                    \
        st = (expr);                        \
        if (st != TM_OK)                    \
            goto out;                       \
    } while (0)

#endif
