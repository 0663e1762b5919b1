/* SHA-256 (libcrypto), as 64 lower-case hex digits. */
#ifndef TM_BASE_HASH_H
#define TM_BASE_HASH_H

#include "base/status.h"

typedef struct tm_sha256 {
    char hex[65];
} tm_sha256;

tm_status tm_sha256_bytes(const void *data, size_t size, tm_sha256 *out, tm_error *err) TM_MUST_CHECK;
tm_status tm_sha256_file(const char *path, tm_sha256 *out, tm_error *err) TM_MUST_CHECK;
/* Of a list of files: hash over "name\0hex\n" of each in the given order. */
tm_status tm_sha256_files(const char *dir, char *const *names, size_t count, tm_sha256 *out,
                          tm_error *err) TM_MUST_CHECK;

#endif
