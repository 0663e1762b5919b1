/* Writing GGUF, version 3: metadata in the order given, tensors in the order given, alignment 32. The same
 * calls give the same bytes. */
#ifndef TM_IO_GGUF_WRITE_H
#define TM_IO_GGUF_WRITE_H

#include "base/buf.h"
#include "io/gguf.h"

typedef struct tm_gguf_writer { /* zeroed: an empty one */
    tm_buf meta;      /* failure is sticky: looked at in tm_gguf_write */
    int64_t values;
    tm_gguf_tensor *tensor; /* names owned; data unused */
    int64_t tensors;
    size_t capacity;
} tm_gguf_writer;
void tm_gguf_writer_deinit(tm_gguf_writer *w);

void tm_gguf_put_u32(tm_gguf_writer *w, const char *key, uint32_t value);
void tm_gguf_put_f32(tm_gguf_writer *w, const char *key, float value);
void tm_gguf_put_bool(tm_gguf_writer *w, const char *key, bool value);
void tm_gguf_put_text(tm_gguf_writer *w, const char *key, const char *text, size_t size);
void tm_gguf_put_word(tm_gguf_writer *w, const char *key, const char *text);
/* An array of `count` elements of which `bytes` bytes are given as they lie in a file. */
void tm_gguf_put_array(tm_gguf_writer *w, const char *key, tm_gguf_type type, int64_t count, const void *data, size_t bytes);
/* Any value as another file has it. */
void tm_gguf_put_value(tm_gguf_writer *w, const tm_gguf_value *value);
/* An element of an array of strings, appended to what put_array is then given. */
void tm_gguf_text_element(tm_buf *out, const char *text, size_t size);

/* ne as in tm_gguf_tensor; a row must be a multiple of the type's block. */
tm_status tm_gguf_add_tensor(tm_gguf_writer *w, const char *name, tm_ggml type, int32_t ndim, const int64_t *ne,
                             tm_error *err) TM_MUST_CHECK;

/* Fills rows [row, row + rows) of a tensor, as they lie in the file. */
typedef tm_status (*tm_gguf_fill)(void *context, int64_t tensor, int64_t row, int64_t rows, void *out, tm_error *err);
/* Atomically: aside, synced, renamed. */
tm_status tm_gguf_write(const tm_gguf_writer *w, const char *path, tm_gguf_fill fill, void *context, tm_error *err) TM_MUST_CHECK;

#endif
