/* Growing buffers and checked allocation: see buf.h. */
#include "base/buf.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void tm_buf_deinit(tm_buf *buf)
{
    free(buf->data);
    *buf = (tm_buf){0};
}

void tm_buf_clear(tm_buf *buf)
{
    buf->size = 0;
    buf->failed = false;
    if (buf->data)
        buf->data[0] = 0;
}

void *tm_buf_reserve(tm_buf *buf, size_t size)
{
    if (buf->failed)
        return NULL;
    if (size >= SIZE_MAX / 2 - buf->size) {
        buf->failed = true;
        return NULL;
    }
    size_t need = buf->size + size + 1;
    if (need > buf->capacity) {
        size_t capacity = buf->capacity ? buf->capacity : 64;
        while (capacity < need)
            capacity *= 2;
        char *data = realloc(buf->data, capacity);
        if (!data) {
            buf->failed = true;
            return NULL;
        }
        buf->data = data;
        buf->capacity = capacity;
    }
    return buf->data + buf->size;
}

void tm_buf_add(tm_buf *buf, const void *bytes, size_t size)
{
    char *at = tm_buf_reserve(buf, size);
    if (!at)
        return;
    if (size)
        memcpy(at, bytes, size);
    buf->size += size;
    buf->data[buf->size] = 0;
}

void tm_buf_text(tm_buf *buf, const char *text) { tm_buf_add(buf, text, strlen(text)); }

void tm_buf_char(tm_buf *buf, char c) { tm_buf_add(buf, &c, 1); }

void tm_buf_printf(tm_buf *buf, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0)
        buf->failed = true;
    else if (tm_buf_reserve(buf, (size_t)n)) {
        vsnprintf(buf->data + buf->size, (size_t)n + 1, fmt, again);
        buf->size += (size_t)n;
    }
    va_end(again);
}

const char *tm_buf_str(const tm_buf *buf) { return buf->data ? buf->data : ""; }

tm_status tm_buf_check(const tm_buf *buf, tm_error *err)
{
    return buf->failed ? tm_fail(err, TM_NO_MEMORY, "out of memory") : TM_OK;
}

tm_status tm_alloc(void **out, size_t count, size_t size, tm_error *err)
{
    *out = calloc(count ? count : 1, size ? size : 1);
    if (!*out)
        return tm_fail(err, TM_NO_MEMORY, "out of memory (%zu elements of %zu bytes)", count, size);
    return TM_OK;
}

tm_status tm_grow(void **array, size_t *cap, size_t need, size_t size, tm_error *err)
{
    if (need <= *cap)
        return TM_OK;
    size_t next = *cap ? *cap : 16;
    while (next < need && next <= SIZE_MAX / 2 / size)
        next *= 2;
    void *grown = next < need ? NULL : realloc(*array, next * size);
    if (!grown)
        return tm_fail(err, TM_NO_MEMORY, "out of memory (%zu elements of %zu bytes)", need, size);
    *array = grown;
    *cap = next;
    return TM_OK;
}

char *tm_strdup(const char *text, tm_error *err)
{
    size_t size = strlen(text) + 1;
    char *copy = malloc(size);
    if (!copy) {
        (void)tm_fail(err, TM_NO_MEMORY, "out of memory (%zu bytes)", size);
        return NULL;
    }
    return memcpy(copy, text, size);
}
