/* The GGUF format, versions 2 and 3: metadata and tensors as they lie in the file, mapped. What they mean
 * for a model is said in gguf_model.h. docs/formats/gguf.md has the rules and limits. */
#ifndef TM_IO_GGUF_H
#define TM_IO_GGUF_H

#include "base/status.h"
#include "io/ggml_quant.h"

/* Limits beyond the format's own; the file's size bounds every count. */
enum { TM_GGUF_MAX_DIMS = 4, TM_GGUF_MAX_KEY = 65535, TM_GGUF_MAX_NAME = 63, TM_GGUF_MAX_ALIGNMENT = 1 << 20 };

typedef enum tm_gguf_type { /* numbers of the format */
    TM_GGUF_U8, TM_GGUF_I8, TM_GGUF_U16, TM_GGUF_I16, TM_GGUF_U32, TM_GGUF_I32, TM_GGUF_F32, TM_GGUF_BOOL,
    TM_GGUF_STRING, TM_GGUF_ARRAY, TM_GGUF_U64, TM_GGUF_I64, TM_GGUF_F64, TM_GGUF_TYPES
} tm_gguf_type;

typedef struct tm_gguf_value {
    char *key;
    tm_gguf_type type;     /* of the value; of an array's elements when is_array */
    bool is_array;
    int64_t count;         /* elements of an array; 1 */
    const uint8_t *data;   /* in the file, little-endian, unaligned; strings: u64 size, bytes, ... */
    size_t bytes;          /* of data */
} tm_gguf_value;

typedef struct tm_gguf_tensor {
    char *name;
    const tm_ggml_type *type;
    int32_t ndim;
    int64_t ne[TM_GGUF_MAX_DIMS]; /* ne[0] is the row: the order is the reverse of a shape */
    int64_t count, bytes;
    const uint8_t *data;
} tm_gguf_tensor;

typedef struct tm_gguf_text { /* a string as it lies in the file, not zero-terminated */
    const char *text;
    size_t size;
} tm_gguf_text;

typedef struct tm_gguf tm_gguf;

/* Whether path names a GGUF file: by its first four bytes, or, when it cannot be read, by its name. */
bool tm_gguf_is(const char *path);

tm_status tm_gguf_open(const char *path, tm_gguf **out, tm_error *err) TM_MUST_CHECK;
/* The bytes of a file that the caller keeps in memory; name stands for the path in messages. */
tm_status tm_gguf_view(const void *data, size_t size, const char *name, tm_gguf **out, tm_error *err) TM_MUST_CHECK;
void tm_gguf_close(tm_gguf *gguf);

const char *tm_gguf_name(const tm_gguf *gguf); /* for messages */
int64_t tm_gguf_values(const tm_gguf *gguf);   /* in ascending order of key */
const tm_gguf_value *tm_gguf_value_at(const tm_gguf *gguf, int64_t i);
const tm_gguf_value *tm_gguf_find(const tm_gguf *gguf, const char *key); /* NULL: none */
int64_t tm_gguf_tensors(const tm_gguf *gguf);  /* in ascending order of name */
const tm_gguf_tensor *tm_gguf_tensor_at(const tm_gguf *gguf, int64_t i);
const tm_gguf_tensor *tm_gguf_tensor_find(const tm_gguf *gguf, const char *name); /* NULL: none */

/* Values by key. A missing key gives the fallback; a wrong type is an error that names file and key. An
 * integer may be of any integer type, a number of any numeric one. */
tm_status tm_gguf_get_int(const tm_gguf *gguf, const char *key, int64_t fallback, int64_t *out, tm_error *err) TM_MUST_CHECK;
tm_status tm_gguf_get_number(const tm_gguf *gguf, const char *key, double fallback, double *out, tm_error *err) TM_MUST_CHECK;
tm_status tm_gguf_get_bool(const tm_gguf *gguf, const char *key, bool fallback, bool *out, tm_error *err) TM_MUST_CHECK;
/* text NULL when missing. */
tm_status tm_gguf_get_text(const tm_gguf *gguf, const char *key, tm_gguf_text *out, tm_error *err) TM_MUST_CHECK;
/* The strings, floats or integers of an array; *out NULL when missing, else free(). */
tm_status tm_gguf_get_texts(const tm_gguf *gguf, const char *key, tm_gguf_text **out, int64_t *count, tm_error *err) TM_MUST_CHECK;
tm_status tm_gguf_get_floats(const tm_gguf *gguf, const char *key, float **out, int64_t *count, tm_error *err) TM_MUST_CHECK;
tm_status tm_gguf_get_ints(const tm_gguf *gguf, const char *key, int32_t **out, int64_t *count, tm_error *err) TM_MUST_CHECK;

#endif
