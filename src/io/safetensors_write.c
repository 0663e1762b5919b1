/* Writing safetensors: see safetensors.h. The same tensors give the same bytes, whatever order they come
 * in: sorted by name, one form of header, no alignment but that of the data's begin (8 bytes). */
#include "base/file.h"
#include "base/json.h"
#include "base/utf8.h"
#include "io/safetensors.h"

#include <stdlib.h>
#include <string.h>

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const tm_st_tensor *const *)a)->name, (*(const tm_st_tensor *const *)b)->name);
}

/* Bytes of a tensor from its dtype and shape. */
static tm_status bytes_of(const char *path, const tm_st_tensor *t, int64_t *bytes, tm_error *err)
{
    int64_t bits = tm_dtype_bits(t->dtype);
    bool ok = bits > 0 && t->ndim >= 0 && t->ndim <= TM_ST_MAX_DIMS;
    for (int i = 0; ok && i < t->ndim; i++)
        ok = t->shape[i] >= 0 && !__builtin_mul_overflow(bits, t->shape[i], &bits);
    if (!ok || bits % 8)
        return tm_fail(err, TM_FAILED, "%s: tensor \"%.200s\": its dtype and shape cannot be written", path, t->name);
    *bytes = bits / 8;
    return TM_OK;
}

static void put_metadata(tm_buf *header, const char *const *metadata)
{
    tm_buf_text(header, "\"__metadata__\":{");
    for (int i = 0; metadata[i]; i += 2) {
        if (i)
            tm_buf_char(header, ',');
        tm_json_put_string(header, metadata[i]);
        tm_buf_char(header, ':');
        tm_json_put_string(header, metadata[i + 1]);
    }
    tm_buf_char(header, '}');
}

static tm_status put_tensor(tm_buf *header, const char *path, const tm_st_tensor *t, const tm_st_tensor *before,
                            int64_t *at, tm_error *err)
{
    int64_t bytes;
    TM_TRY(bytes_of(path, t, &bytes, err));
    if (!tm_utf8_valid(t->name, strlen(t->name)) || strcmp(t->name, "__metadata__") == 0)
        return tm_fail(err, TM_FAILED, "%s: \"%.200s\" cannot be the name of a tensor", path, t->name);
    if (before && strcmp(before->name, t->name) == 0)
        return tm_fail(err, TM_FAILED, "%s: tensor \"%.200s\" is given twice", path, t->name);
    if (header->size > 1)
        tm_buf_char(header, ',');
    tm_json_put_string(header, t->name);
    tm_buf_printf(header, ":{\"dtype\":\"%s\",\"shape\":[", tm_dtype_name(t->dtype));
    for (int i = 0; i < t->ndim; i++)
        tm_buf_printf(header, "%s%lld", i ? "," : "", (long long)t->shape[i]);
    tm_buf_printf(header, "],\"data_offsets\":[%lld,%lld]}", (long long)*at, (long long)(*at + bytes));
    *at += bytes;
    return TM_OK;
}

/* The length and the JSON of the header, padded so that the data begins at a multiple of 8. */
static tm_status make_header(const char *path, const tm_st_tensor *const *sorted, int64_t count,
                             const char *const *metadata, tm_buf *header, tm_error *err)
{
    int64_t at = 0;
    tm_buf_char(header, '{');
    if (metadata)
        put_metadata(header, metadata);
    for (int64_t i = 0; i < count; i++)
        TM_TRY(put_tensor(header, path, sorted[i], i ? sorted[i - 1] : NULL, &at, err));
    tm_buf_char(header, '}');
    while (header->size % 8 && !header->failed)
        tm_buf_char(header, ' ');
    TM_TRY(tm_buf_check(header, err));
    if (header->size > TM_ST_MAX_HEADER)
        return tm_fail(err, TM_FAILED, "%s: the header would have %zu bytes, the format allows %d", path, header->size,
                       TM_ST_MAX_HEADER);
    return TM_OK;
}

/* Room for the largest tensor that is made when it is due. */
static tm_status make_room(const char *path, const tm_st_tensor *tensors, int64_t count, void **room, tm_error *err)
{
    int64_t most = 0, bytes;
    for (int64_t i = 0; i < count; i++) {
        if (tensors[i].data || !tensors[i].give)
            continue;
        TM_TRY(bytes_of(path, &tensors[i], &bytes, err));
        most = bytes > most ? bytes : most;
    }
    return most ? tm_alloc(room, (size_t)most, 1, err) : TM_OK;
}

static tm_status put_data(tm_file_out *file, const tm_st_tensor *t, void *room, tm_error *err)
{
    int64_t bytes;
    TM_TRY(bytes_of(file->path, t, &bytes, err));
    if (!t->data && t->give)
        TM_TRY(t->give(t, room, err));
    return tm_file_out_put(file, t->data ? t->data : room, (size_t)bytes, err);
}

tm_status tm_safetensors_write(const char *path, const tm_st_tensor *tensors, int64_t count,
                               const char *const *metadata, tm_error *err)
{
    tm_buf header = {0};
    tm_file_out file = {0};
    const tm_st_tensor **sorted = NULL;
    void *room = NULL;
    tm_status st;
    TM_GO(TM_NEW(&sorted, count, err));
    TM_GO(make_room(path, tensors, count, &room, err));
    for (int64_t i = 0; i < count; i++)
        sorted[i] = &tensors[i];
    if (count)
        qsort(sorted, (size_t)count, sizeof *sorted, by_name);
    TM_GO(make_header(path, sorted, count, metadata, &header, err));
    unsigned char length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)(header.size >> 8 * i);
    TM_GO(tm_file_out_open(path, &file, err));
    TM_GO(tm_file_out_put(&file, length, sizeof length, err));
    TM_GO(tm_file_out_put(&file, header.data, header.size, err));
    for (int64_t i = 0; i < count; i++)
        TM_GO(put_data(&file, sorted[i], room, err));
    st = tm_file_out_commit(&file, err);
out:
    tm_file_out_discard(&file);
    tm_buf_deinit(&header);
    free(sorted);
    free(room);
    return st;
}
