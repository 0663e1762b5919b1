/* A growing byte buffer, always zero-terminated. Failure to grow is sticky: append freely, then
 * look at `failed` once (tm_buf_check). */
#ifndef TM_BASE_BUF_H
#define TM_BASE_BUF_H

#include "base/status.h"

typedef struct tm_buf {
    char *data;     /* owned; NULL while empty */
    size_t size;    /* bytes used, without the terminating zero */
    size_t capacity;
    bool failed;
} tm_buf;

/* A zeroed tm_buf is a valid empty one. */
void tm_buf_deinit(tm_buf *buf);
void tm_buf_clear(tm_buf *buf);
void tm_buf_add(tm_buf *buf, const void *bytes, size_t size);
void tm_buf_text(tm_buf *buf, const char *text);
void tm_buf_char(tm_buf *buf, char c);
void tm_buf_printf(tm_buf *buf, const char *fmt, ...) TM_PRINTF(2, 3);
/* Room for size more bytes; NULL when that failed. The caller advances buf->size itself. */
void *tm_buf_reserve(tm_buf *buf, size_t size);
/* The text, "" when empty. */
const char *tm_buf_str(const tm_buf *buf);
tm_status tm_buf_check(const tm_buf *buf, tm_error *err) TM_MUST_CHECK;

/* malloc that fills err; count * size is checked for overflow; zero bytes give a unique pointer. */
tm_status tm_alloc(void **out, size_t count, size_t size, tm_error *err) TM_MUST_CHECK;
/* Zeroed, typed: TM_NEW(&array, n, err). */
#define TM_NEW(out, count, err) tm_alloc((void **)(out), (size_t)(count), sizeof **(out), (err))
/* Grows *array (capacity *cap elements of `size` bytes) so that `need` fit. */
tm_status tm_grow(void **array, size_t *cap, size_t need, size_t size, tm_error *err) TM_MUST_CHECK;
#define TM_GROW(array, cap, need, err) tm_grow((void **)(array), (cap), (size_t)(need), sizeof **(array), (err))
char *tm_strdup(const char *text, tm_error *err);

#endif
