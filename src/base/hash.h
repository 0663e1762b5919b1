/* SHA-256 (libcrypto), as 64 lower-case hex digits. */
#ifndef TM_BASE_HASH_H
#define TM_BASE_HASH_H

#include "base/status.h"

typedef struct tm_sha256 {
    char hex[65];
} tm_sha256;

tm_status tm_sha256_bytes(const void *data, size_t size, tm_sha256 *out, tm_error *err) TM_MUST_CHECK;
tm_status tm_sha256_file(const char *path, tm_sha256 *out, tm_error *err) TM_MUST_CHECK;
/* Of what comes in pieces: begin, add any number of times, then end (which frees) or drop; a zeroed one
 * may be dropped. */
typedef struct tm_sha256_stream {
    void *context;
} tm_sha256_stream;
tm_status tm_sha256_begin(tm_sha256_stream *s, tm_error *err) TM_MUST_CHECK;
tm_status tm_sha256_add(tm_sha256_stream *s, const void *data, size_t size, tm_error *err) TM_MUST_CHECK;
tm_status tm_sha256_end(tm_sha256_stream *s, tm_sha256 *out, tm_error *err) TM_MUST_CHECK;
void tm_sha256_drop(tm_sha256_stream *s);
/* Of a list of files: hash over "name\0hex\n" of each in the given order. */
tm_status tm_sha256_files(const char *dir, char *const *names, size_t count, tm_sha256 *out,
                          tm_error *err) TM_MUST_CHECK;

#endif
