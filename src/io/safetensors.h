/* The safetensors format: reading by mapping, writing byte-exactly. Every rule of the specification
 * is checked before a tensor is handed out. docs/formats/safetensors.md has the limits. */
#ifndef TM_IO_SAFETENSORS_H
#define TM_IO_SAFETENSORS_H

#include "base/dtype.h"
#include "base/status.h"

enum { TM_ST_MAX_DIMS = 8, TM_ST_MAX_HEADER = 100 * 1000 * 1000 };

typedef struct tm_st_tensor {
    const char *name;
    tm_dtype dtype;
    int32_t ndim;
    int64_t shape[TM_ST_MAX_DIMS];
    int64_t count; /* elements */
    int64_t bytes;
    const void *data; /* mapped when reading (may be unaligned); the caller's when writing. NULL: `give` is asked for
                       * the bytes when they are due, so that what is made on the way (to disk, out of a file of
                       * another form) never stands in memory as a whole: tm_st_values */
    tm_status (*give)(const struct tm_st_tensor *tensor, void *to, tm_error *err);
    const void *source;  /* for give */
    const char *storage; /* what a file of another form calls its type; NULL: dtype */
    const void *packed;  /* its bytes in such a file; NULL: data */
    int64_t packed_bytes;
} tm_st_tensor;

/* The elements of a tensor: its data, or *buffer (free(); NULL when not needed), unpacked. */
tm_status tm_st_values(const tm_st_tensor *tensor, void **buffer, const void **out, tm_error *err) TM_MUST_CHECK;

typedef struct tm_safetensors tm_safetensors;

/* One file. A file cut short by another process while it is open here ends this one (SIGBUS): writers
 * must replace files by renaming, as tm_safetensors_write does. */
tm_status tm_safetensors_open(const char *path, tm_safetensors **out, tm_error *err) TM_MUST_CHECK;
/* The bytes of a file that the caller keeps in memory; name stands for the path in messages. */
tm_status tm_safetensors_view(const void *data, size_t size, const char *name, tm_safetensors **out,
                              tm_error *err) TM_MUST_CHECK;
/* The weights of a model folder as one table: model.safetensors, or the shards that
 * model.safetensors.index.json names (each tensor in the shard that the index says, none missing,
 * none twice). Of a model in one file (GGUF): tm_hf_open_weights. */
tm_status tm_safetensors_open_model(const char *dir, tm_safetensors **out, tm_error *err) TM_MUST_CHECK;
/* A table of tensors that lie elsewhere. It takes over names and array (both from malloc) and owner, which
 * release frees when the table is closed; all of them also on failure. name: for messages. */
tm_status tm_safetensors_of(tm_st_tensor *tensors, int64_t count, const char *name, void *owner,
                            void (*release)(void *owner), tm_safetensors **out, tm_error *err) TM_MUST_CHECK;
void tm_safetensors_close(tm_safetensors *st);

/* Unpacks what lies in another form, so that every tensor has data: for those who need all at once. */
tm_status tm_safetensors_unpack(tm_safetensors *st, tm_error *err) TM_MUST_CHECK;

/* Tensors in ascending order of name (bytes). */
int64_t tm_safetensors_count(const tm_safetensors *st);
const tm_st_tensor *tm_safetensors_at(const tm_safetensors *st, int64_t i);
const tm_st_tensor *tm_safetensors_find(const tm_safetensors *st, const char *name); /* NULL: none */
const char *tm_safetensors_metadata(const tm_safetensors *st, const char *key);      /* NULL: none */

/* Writes atomically (aside, synced, renamed), tensors sorted by name, header as the reference
 * implementation writes it (compact JSON, padded with spaces to 8 bytes). Of a tensor, name, dtype,
 * shape and data are read; count and bytes follow from them. metadata: key, value, ..., NULL; or NULL. */
tm_status tm_safetensors_write(const char *path, const tm_st_tensor *tensors, int64_t count,
                               const char *const *metadata, tm_error *err) TM_MUST_CHECK;

#endif
