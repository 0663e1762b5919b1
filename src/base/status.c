/* Errors: see status.h. */
#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

int tm_status_exit_code(tm_status status)
{
    switch (status) {
#define X(name, code, text) case TM_##name: return code;
        TM_STATUS_TABLE(X)
#undef X
    }
    return 1;
}

const char *tm_status_text(tm_status status)
{
    switch (status) {
#define X(name, code, text) case TM_##name: return text;
        TM_STATUS_TABLE(X)
#undef X
    }
    return "unknown status";
}

tm_status tm_fail(tm_error *err, tm_status status, const char *fmt, ...)
{
    if (err) {
        va_list args;
        va_start(args, fmt);
        err->status = status;
        vsnprintf(err->message, sizeof err->message, fmt, args);
        va_end(args);
    }
    return status;
}

tm_status tm_fail_errno(tm_error *err, tm_status status, const char *fmt, ...)
{
    int saved = errno;
    if (err) {
        va_list args;
        va_start(args, fmt);
        err->status = status;
        int n = vsnprintf(err->message, sizeof err->message, fmt, args);
        va_end(args);
        if (n > 0 && (size_t)n < sizeof err->message)
            snprintf(err->message + n, sizeof err->message - (size_t)n, ": %s", strerror(saved));
    }
    return status;
}

tm_status tm_fail_prefix(tm_error *err, tm_status status, const char *fmt, ...)
{
    if (!err)
        return status;
    char old[sizeof err->message];
    memcpy(old, err->message, sizeof old);
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(err->message, sizeof err->message, fmt, args);
    va_end(args);
    size_t used = n > 0 ? strlen(err->message) : 0, room = sizeof err->message - 1 - used, size = strlen(old);
    if (room > 2) {
        size = size < room - 2 ? size : room - 2;
        memcpy(err->message + used, ": ", 2);
        memcpy(err->message + used + 2, old, size);
        err->message[used + 2 + size] = 0;
    }
    return status;
}
