/* Writing GGUF: see gguf_write.h. Tensors are asked for some rows at a time, so that a model larger than
 * memory can be written. */
#include "io/gguf_write.h"

#include "base/file.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 32, PART_BYTES = 16 << 20 };

void tm_gguf_writer_deinit(tm_gguf_writer *w)
{
    tm_buf_deinit(&w->meta);
    for (int64_t i = 0; i < w->tensors; i++)
        free(w->tensor[i].name);
    free(w->tensor);
    *w = (tm_gguf_writer){0};
}

/* ---- metadata ---- */

static void put(tm_buf *out, uint64_t value, int bytes)
{
    uint8_t b[8];
    for (int i = 0; i < bytes; i++)
        b[i] = (uint8_t)(value >> 8 * i);
    tm_buf_add(out, b, (size_t)bytes);
}

void tm_gguf_text_element(tm_buf *out, const char *text, size_t size)
{
    put(out, size, 8);
    tm_buf_add(out, text, size);
}

static void put_key(tm_gguf_writer *w, const char *key, tm_gguf_type type)
{
    tm_gguf_text_element(&w->meta, key, strlen(key));
    put(&w->meta, type, 4);
    w->values++;
}

void tm_gguf_put_u32(tm_gguf_writer *w, const char *key, uint32_t value)
{
    put_key(w, key, TM_GGUF_U32);
    put(&w->meta, value, 4);
}

void tm_gguf_put_f32(tm_gguf_writer *w, const char *key, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    put_key(w, key, TM_GGUF_F32);
    put(&w->meta, bits, 4);
}

void tm_gguf_put_bool(tm_gguf_writer *w, const char *key, bool value)
{
    put_key(w, key, TM_GGUF_BOOL);
    put(&w->meta, value, 1);
}

void tm_gguf_put_text(tm_gguf_writer *w, const char *key, const char *text, size_t size)
{
    put_key(w, key, TM_GGUF_STRING);
    tm_gguf_text_element(&w->meta, text, size);
}

void tm_gguf_put_word(tm_gguf_writer *w, const char *key, const char *text) { tm_gguf_put_text(w, key, text, strlen(text)); }

void tm_gguf_put_array(tm_gguf_writer *w, const char *key, tm_gguf_type type, int64_t count, const void *data, size_t bytes)
{
    put_key(w, key, TM_GGUF_ARRAY);
    put(&w->meta, type, 4);
    put(&w->meta, (uint64_t)count, 8);
    tm_buf_add(&w->meta, data, bytes);
}

void tm_gguf_put_value(tm_gguf_writer *w, const tm_gguf_value *value)
{
    if (value->is_array) {
        tm_gguf_put_array(w, value->key, value->type, value->count, value->data, value->bytes);
        return;
    }
    put_key(w, value->key, value->type);
    tm_buf_add(&w->meta, value->data, value->bytes);
}

/* ---- tensors ---- */

tm_status tm_gguf_add_tensor(tm_gguf_writer *w, const char *name, tm_ggml type, int32_t ndim, const int64_t *ne, tm_error *err)
{
    tm_gguf_tensor t = {.type = tm_ggml_type_of(type), .ndim = ndim, .count = 1};
    if (strlen(name) > TM_GGUF_MAX_NAME || ndim < 1 || ndim > TM_GGUF_MAX_DIMS || !t.type || ne[0] % t.type->block)
        return tm_fail(err, TM_FAILED, "tensor %s cannot be written as GGUF", name);
    for (int i = 0; i < ndim; i++) {
        t.ne[i] = ne[i];
        t.count *= ne[i];
    }
    t.bytes = t.count / t.type->block * t.type->bytes;
    TM_TRY(TM_GROW(&w->tensor, &w->capacity, w->tensors + 1, err));
    t.name = tm_strdup(name, err);
    if (!t.name)
        return TM_NO_MEMORY;
    w->tensor[w->tensors++] = t;
    return TM_OK;
}

static int64_t aligned(int64_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

static void pad(tm_buf *out)
{
    while (out->size % ALIGNMENT && !out->failed)
        tm_buf_char(out, 0);
}

static tm_status make_head(const tm_gguf_writer *w, tm_buf *head, tm_error *err)
{
    int64_t offset = 0;
    TM_TRY(tm_buf_check(&w->meta, err));
    tm_buf_text(head, "GGUF");
    put(head, 3, 4);
    put(head, (uint64_t)w->tensors, 8);
    put(head, (uint64_t)w->values, 8);
    tm_buf_add(head, tm_buf_str(&w->meta), w->meta.size);
    for (int64_t i = 0; i < w->tensors; i++) {
        const tm_gguf_tensor *t = &w->tensor[i];
        tm_gguf_text_element(head, t->name, strlen(t->name));
        put(head, (uint64_t)t->ndim, 4);
        for (int k = 0; k < t->ndim; k++)
            put(head, (uint64_t)t->ne[k], 8);
        put(head, t->type->type, 4);
        put(head, (uint64_t)offset, 8);
        offset += aligned(t->bytes);
    }
    pad(head);
    return tm_buf_check(head, err);
}

static tm_status write_tensor(const tm_gguf_writer *w, int64_t i, tm_file_out *file, tm_buf *part, tm_gguf_fill fill, void *context,
                              tm_error *err)
{
    const tm_gguf_tensor *t = &w->tensor[i];
    int64_t row_bytes = t->ne[0] / t->type->block * t->type->bytes, rows = t->count / t->ne[0];
    int64_t most = row_bytes < PART_BYTES ? PART_BYTES / row_bytes : 1;
    for (int64_t row = 0; row < rows; row += most) {
        int64_t n = rows - row < most ? rows - row : most;
        tm_buf_clear(part);
        void *out = tm_buf_reserve(part, (size_t)(n * row_bytes));
        TM_TRY(tm_buf_check(part, err));
        TM_TRY(fill(context, i, row, n, out, err));
        TM_TRY(tm_file_out_put(file, out, (size_t)(n * row_bytes), err));
    }
    static const char zeros[ALIGNMENT];
    return tm_file_out_put(file, zeros, (size_t)(aligned(t->bytes) - t->bytes), err);
}

tm_status tm_gguf_write(const tm_gguf_writer *w, const char *path, tm_gguf_fill fill, void *context, tm_error *err)
{
    tm_buf head = {0}, part = {0};
    tm_file_out file = {0};
    tm_status st;
    TM_GO(make_head(w, &head, err));
    TM_GO(tm_file_out_open(path, &file, err));
    TM_GO(tm_file_out_put(&file, head.data, head.size, err));
    for (int64_t i = 0; i < w->tensors; i++)
        TM_GO(write_tensor(w, i, &file, &part, fill, context, err));
    st = tm_file_out_commit(&file, err);
out:
    tm_file_out_discard(&file);
    tm_buf_deinit(&head);
    tm_buf_deinit(&part);
    return st;
}
