/* Reading GGUF: see gguf.h. The format: "GGUF", version, number of tensors, number of key-value pairs; the
 * pairs; a record a tensor (name, dimensions, type, offset); padding; the tensors' data, each at a multiple
 * of the alignment.
 *
 * Invariants of a file that was handed out:
 * 1. Every value and every tensor's bytes lie inside the file; tensors do not overlap.
 * 2. Keys and tensor names are unique, UTF-8 without NUL, and sorted by bytes.
 * 3. A row of a tensor is a whole number of its type's blocks, and the type is one temper reads.
 * 4. A count is held against the bytes left before anything is allocated or computed from it. */
#include "io/gguf.h"

#include "base/file.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

struct tm_gguf {
    char *name;
    tm_map map;          /* data NULL: a view */
    tm_gguf_value *value;
    int64_t values;
    tm_gguf_tensor *tensor;
    int64_t tensors;
};

typedef struct reader {
    const char *name; /* for messages */
    const uint8_t *at, *end;
    tm_error *err;
} reader;

static const struct {
    const char *name;
    int bytes; /* 0: not of fixed size */
} value_types[TM_GGUF_TYPES] = {
    [TM_GGUF_U8] = {"u8", 1},       [TM_GGUF_I8] = {"i8", 1},       [TM_GGUF_U16] = {"u16", 2},
    [TM_GGUF_I16] = {"i16", 2},     [TM_GGUF_U32] = {"u32", 4},     [TM_GGUF_I32] = {"i32", 4},
    [TM_GGUF_F32] = {"f32", 4},     [TM_GGUF_BOOL] = {"bool", 1},   [TM_GGUF_STRING] = {"string", 0},
    [TM_GGUF_ARRAY] = {"array", 0}, [TM_GGUF_U64] = {"u64", 8},     [TM_GGUF_I64] = {"i64", 8},
    [TM_GGUF_F64] = {"f64", 8},
};

/* ---- primitives ---- */

static uint64_t little(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

static uint64_t left(const reader *r) { return (uint64_t)(r->end - r->at); }

static tm_status take(reader *r, int bytes, const char *what, uint64_t *out)
{
    if (left(r) < (uint64_t)bytes)
        return tm_fail(r->err, TM_INPUT, "%s: the file ends in %s (cut short?)", r->name, what);
    *out = little(r->at, bytes);
    r->at += bytes;
    return TM_OK;
}

static tm_status take_text(reader *r, const char *what, tm_gguf_text *out)
{
    uint64_t size = 0;
    TM_TRY(take(r, 8, what, &size));
    if (size > left(r))
        return tm_fail(r->err, TM_INPUT, "%s: %s is a string of %llu bytes, %llu are left in the file", r->name, what,
                       (unsigned long long)size, (unsigned long long)left(r));
    *out = (tm_gguf_text){(const char *)r->at, (size_t)size};
    r->at += size;
    return TM_OK;
}

/* A key or a tensor's name: short UTF-8 text, copied. */
static tm_status take_name(reader *r, const char *what, size_t limit, char **out)
{
    tm_gguf_text text;
    TM_TRY(take_text(r, what, &text));
    if (text.size == 0 || text.size > limit)
        return tm_fail(r->err, TM_INPUT, "%s: %s has %zu bytes, expected 1 to %zu", r->name, what, text.size, limit);
    if (!tm_utf8_valid(text.text, text.size) || memchr(text.text, 0, text.size))
        return tm_fail(r->err, TM_INPUT, "%s: %s is not UTF-8 text without NUL", r->name, what);
    TM_TRY(TM_NEW(out, text.size + 1, r->err));
    memcpy(*out, text.text, text.size);
    return TM_OK;
}

/* ---- metadata ---- */

/* Steps over the elements of a value, which then lies inside the file. */
static tm_status skip_elements(reader *r, const tm_gguf_value *v)
{
    char what[128];
    snprintf(what, sizeof what, "the value of \"%.80s\"", v->key);
    int bytes = value_types[v->type].bytes;
    if ((uint64_t)v->count > left(r) / (bytes ? (uint64_t)bytes : 8))
        return tm_fail(r->err, TM_INPUT, "%s: %s needs %llu x %s, %llu bytes are left in the file", r->name, what,
                       (unsigned long long)v->count, value_types[v->type].name, (unsigned long long)left(r));
    if (bytes) {
        r->at += v->count * bytes;
        return TM_OK;
    }
    for (int64_t i = 0; i < v->count; i++) {
        tm_gguf_text ignored;
        TM_TRY(take_text(r, what, &ignored));
    }
    return TM_OK;
}

/* Fills v; what it owns is freed with the file, also on failure. */
static tm_status take_value(reader *r, tm_gguf_value *v)
{
    uint64_t type = 0, count = 1;
    TM_TRY(take_name(r, "a key", TM_GGUF_MAX_KEY, &v->key));
    TM_TRY(take(r, 4, "a value's type", &type));
    v->is_array = type == TM_GGUF_ARRAY;
    if (v->is_array) {
        TM_TRY(take(r, 4, "an array's type", &type));
        TM_TRY(take(r, 8, "an array's length", &count));
        if (type == TM_GGUF_ARRAY)
            return tm_fail(r->err, TM_INPUT, "%s: key \"%.200s\": an array of arrays, which GGUF readers do not take",
                           r->name, v->key);
    }
    if (type >= TM_GGUF_TYPES)
        return tm_fail(r->err, TM_INPUT, "%s: key \"%.200s\": unknown value type %llu, expected 0 to %d", r->name,
                       v->key, (unsigned long long)type, TM_GGUF_TYPES - 1);
    if (count > left(r)) /* an element is at least a byte */
        return tm_fail(r->err, TM_INPUT, "%s: key \"%.200s\": an array of %llu elements, %llu bytes are left in the file",
                       r->name, v->key, (unsigned long long)count, (unsigned long long)left(r));
    v->type = (tm_gguf_type)type;
    v->count = (int64_t)count;
    v->data = r->at;
    TM_TRY(skip_elements(r, v));
    v->bytes = (size_t)(r->at - v->data);
    return TM_OK;
}

/* ---- tensors ---- */

static const char *known_elsewhere(uint64_t type)
{
    static const char *const names[] = {
        [9] = "Q8_1", [15] = "Q8_K", [16] = "IQ2_XXS", [17] = "IQ2_XS", [18] = "IQ3_XXS", [19] = "IQ1_S",
        [21] = "IQ3_S", [22] = "IQ2_S", [24] = "I8", [25] = "I16", [26] = "I32", [27] = "I64", [29] = "IQ1_M",
        [34] = "TQ1_0", [39] = "MXFP4",
    };
    return type < sizeof names / sizeof names[0] && names[type] ? names[type] : "unknown";
}

/* Dimensions to elements and bytes. */
static tm_status measure(const reader *r, tm_gguf_tensor *t)
{
    int64_t bytes;
    t->count = 1;
    for (int i = 0; i < t->ndim; i++)
        if (t->ne[i] <= 0 || __builtin_mul_overflow(t->count, t->ne[i], &t->count))
            return tm_fail(r->err, TM_INPUT, "%s: tensor \"%s\": dimension %d is %lld: expected positive ones whose product fits 63 bits",
                           r->name, t->name, i, (long long)t->ne[i]);
    if (t->ne[0] % t->type->block)
        return tm_fail(r->err, TM_INPUT, "%s: tensor \"%s\": a row of %lld elements is not a multiple of %s's blocks of %d",
                       r->name, t->name, (long long)t->ne[0], t->type->name, t->type->block);
    if (__builtin_mul_overflow(t->count / t->type->block, (int64_t)t->type->bytes, &bytes) || bytes > INT64_MAX / 2)
        return tm_fail(r->err, TM_INPUT, "%s: tensor \"%s\" is too large", r->name, t->name);
    t->bytes = bytes;
    return TM_OK;
}

/* Fills t; *offset from the begin of the data. */
static tm_status take_tensor(reader *r, tm_gguf_tensor *t, uint64_t *offset)
{
    uint64_t v = 0;
    TM_TRY(take_name(r, "a tensor's name", TM_GGUF_MAX_NAME, &t->name));
    TM_TRY(take(r, 4, "a tensor's record", &v));
    if (v < 1 || v > TM_GGUF_MAX_DIMS)
        return tm_fail(r->err, TM_INPUT, "%s: tensor \"%s\": %llu dimensions, expected 1 to %d", r->name, t->name,
                       (unsigned long long)v, TM_GGUF_MAX_DIMS);
    t->ndim = (int32_t)v;
    for (int i = 0; i < t->ndim; i++) {
        TM_TRY(take(r, 8, "a tensor's record", &v));
        t->ne[i] = v > INT64_MAX ? -1 : (int64_t)v;
    }
    TM_TRY(take(r, 4, "a tensor's record", &v));
    t->type = tm_ggml_type_of((uint32_t)v);
    if (!t->type)
        return tm_fail(r->err, TM_UNSUPPORTED, "%s: tensor \"%s\": type %llu (%s) is not supported", r->name, t->name,
                       (unsigned long long)v, known_elsewhere(v));
    TM_TRY(measure(r, t));
    return take(r, 8, "a tensor's record", offset);
}

static int by_place(const void *a, const void *b)
{
    const tm_gguf_tensor *x = a, *y = b;
    return (x->data > y->data) - (x->data < y->data);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const tm_gguf_tensor *)a)->name, ((const tm_gguf_tensor *)b)->name);
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const tm_gguf_value *)a)->key, ((const tm_gguf_value *)b)->key);
}

/* No name twice, no byte in two tensors; leaves them in order of name. */
static tm_status check_table(const reader *r, tm_gguf_tensor *t, int64_t count)
{
    if (count == 0)
        return TM_OK;
    qsort(t, (size_t)count, sizeof *t, by_name);
    for (int64_t i = 1; i < count; i++)
        if (strcmp(t[i - 1].name, t[i].name) == 0)
            return tm_fail(r->err, TM_INPUT, "%s: tensor \"%s\" is there twice", r->name, t[i].name);
    qsort(t, (size_t)count, sizeof *t, by_place);
    for (int64_t i = 1; i < count; i++)
        if (t[i].data < t[i - 1].data + t[i - 1].bytes)
            return tm_fail(r->err, TM_INPUT, "%s: tensors \"%s\" and \"%s\" overlap", r->name, t[i - 1].name, t[i].name);
    qsort(t, (size_t)count, sizeof *t, by_name);
    return TM_OK;
}

static tm_status take_tensors(reader *r, tm_gguf *g, const uint8_t *begin, int64_t count)
{
    int64_t alignment;
    uint64_t *offset = NULL;
    tm_status st;
    TM_GO(TM_NEW(&g->tensor, count, r->err));
    TM_GO(TM_NEW(&offset, count, r->err));
    for (int64_t i = 0; i < count; i++) {
        g->tensors++;
        TM_GO(take_tensor(r, &g->tensor[i], &offset[i]));
    }
    TM_GO(tm_gguf_get_int(g, "general.alignment", 32, &alignment, r->err));
    if (alignment <= 0 || alignment > TM_GGUF_MAX_ALIGNMENT || alignment & (alignment - 1))
        TM_GO(tm_fail(r->err, TM_INPUT, "%s: general.alignment is %lld, expected a power of two up to %d", r->name,
                      (long long)alignment, TM_GGUF_MAX_ALIGNMENT));
    uint64_t head = (uint64_t)(r->at - begin), skip = (uint64_t)-head & (uint64_t)(alignment - 1);
    const uint8_t *data = skip <= left(r) ? r->at + skip : r->end;
    uint64_t size = (uint64_t)(r->end - data);
    for (int64_t i = 0; i < count; i++) {
        tm_gguf_tensor *t = &g->tensor[i];
        if (offset[i] & (uint64_t)(alignment - 1))
            TM_GO(tm_fail(r->err, TM_INPUT, "%s: tensor \"%s\": offset %llu is not a multiple of the alignment %lld", r->name,
                          t->name, (unsigned long long)offset[i], (long long)alignment));
        if (offset[i] > size || (uint64_t)t->bytes > size - offset[i])
            TM_GO(tm_fail(r->err, TM_INPUT, "%s: tensor \"%s\": %lld bytes at offset %llu, the file has %llu bytes of data (cut short?)",
                          r->name, t->name, (long long)t->bytes, (unsigned long long)offset[i], (unsigned long long)size));
        t->data = data + offset[i];
    }
    st = check_table(r, g->tensor, count);
out:
    free(offset);
    return st;
}

/* ---- a file ---- */

static tm_status take_head(reader *r, int64_t *tensors, int64_t *values)
{
    enum { LEAST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8, LEAST_VALUE = 8 + 1 + 4 + 1 };
    uint64_t magic = 0, version = 0, t = 0, v = 0;
    TM_TRY(take(r, 4, "its header", &magic));
    if (magic != 0x46554747)
        return tm_fail(r->err, TM_INPUT, "%s: does not begin with \"GGUF\"", r->name);
    TM_TRY(take(r, 4, "its header", &version));
    if (version == 1)
        return tm_fail(r->err, TM_UNSUPPORTED, "%s: GGUF version 1, which has not been written since 2023: convert the model again (2 and 3 are read)", r->name);
    if (version && !(version & 0xffffff))
        return tm_fail(r->err, TM_UNSUPPORTED, "%s: a big-endian GGUF file; only little-endian ones are read", r->name);
    if (version != 2 && version != 3)
        return tm_fail(r->err, TM_UNSUPPORTED, "%s: GGUF version %llu, expected 2 or 3", r->name, (unsigned long long)version);
    TM_TRY(take(r, 8, "its header", &t));
    TM_TRY(take(r, 8, "its header", &v));
    if (t > left(r) / LEAST_TENSOR || v > left(r) / LEAST_VALUE)
        return tm_fail(r->err, TM_INPUT, "%s: %llu tensors and %llu keys do not fit the %llu bytes of the file", r->name,
                       (unsigned long long)t, (unsigned long long)v, (unsigned long long)left(r));
    *tensors = (int64_t)t;
    *values = (int64_t)v;
    return TM_OK;
}

static tm_status parse(tm_gguf *g, const uint8_t *data, size_t size, tm_error *err)
{
    reader r = {.name = g->name, .at = data, .end = data + size, .err = err};
    int64_t tensors = 0, values = 0;
    TM_TRY(take_head(&r, &tensors, &values));
    TM_TRY(TM_NEW(&g->value, values, err));
    for (int64_t i = 0; i < values; i++) {
        g->values++;
        TM_TRY(take_value(&r, &g->value[i]));
    }
    if (values)
        qsort(g->value, (size_t)values, sizeof *g->value, by_key);
    for (int64_t i = 1; i < values; i++)
        if (strcmp(g->value[i - 1].key, g->value[i].key) == 0)
            return tm_fail(err, TM_INPUT, "%s: key \"%.200s\" is there twice", g->name, g->value[i].key);
    return take_tensors(&r, g, data, tensors);
}

tm_status tm_gguf_view(const void *data, size_t size, const char *name, tm_gguf **out, tm_error *err)
{
    tm_gguf *g;
    *out = NULL;
    TM_TRY(TM_NEW(&g, 1, err));
    g->name = tm_strdup(name, err);
    tm_status st = g->name ? parse(g, data, size, err) : TM_NO_MEMORY;
    if (st != TM_OK) {
        tm_gguf_close(g);
        return st;
    }
    *out = g;
    return TM_OK;
}

tm_status tm_gguf_open(const char *path, tm_gguf **out, tm_error *err)
{
    tm_map map;
    *out = NULL;
    TM_TRY(tm_map_open(path, &map, err));
    tm_status st = tm_gguf_view(map.data, map.size, path, out, err);
    if (st == TM_OK)
        (*out)->map = map;
    else
        tm_map_close(&map);
    return st;
}

void tm_gguf_close(tm_gguf *g)
{
    if (!g)
        return;
    for (int64_t i = 0; i < g->values; i++)
        free(g->value[i].key);
    for (int64_t i = 0; i < g->tensors; i++)
        free(g->tensor[i].name);
    free(g->value);
    free(g->tensor);
    if (g->map.data)
        tm_map_close(&g->map);
    free(g->name);
    free(g);
}

bool tm_gguf_is(const char *path)
{
    char magic[4];
    size_t n = strlen(path);
    bool named = n > 5 && strcmp(path + n - 5, ".gguf") == 0;
    if (tm_path_is_dir(path))
        return false;
    FILE *f = fopen(path, "rb");
    if (!f)
        return named;
    bool is = fread(magic, 1, 4, f) == 4 && memcmp(magic, "GGUF", 4) == 0;
    fclose(f);
    return is || named;
}

/* ---- looking ---- */

const char *tm_gguf_name(const tm_gguf *g) { return g->name; }
int64_t tm_gguf_values(const tm_gguf *g) { return g->values; }
const tm_gguf_value *tm_gguf_value_at(const tm_gguf *g, int64_t i) { return &g->value[i]; }
int64_t tm_gguf_tensors(const tm_gguf *g) { return g->tensors; }
const tm_gguf_tensor *tm_gguf_tensor_at(const tm_gguf *g, int64_t i) { return &g->tensor[i]; }

const tm_gguf_value *tm_gguf_find(const tm_gguf *g, const char *key)
{
    tm_gguf_value wanted = {.key = (char *)(uintptr_t)key};
    return g->values ? bsearch(&wanted, g->value, (size_t)g->values, sizeof wanted, by_key) : NULL;
}

const tm_gguf_tensor *tm_gguf_tensor_find(const tm_gguf *g, const char *name)
{
    tm_gguf_tensor wanted = {.name = (char *)(uintptr_t)name};
    return g->tensors ? bsearch(&wanted, g->tensor, (size_t)g->tensors, sizeof wanted, by_name) : NULL;
}

static tm_status wrong(const tm_gguf *g, const tm_gguf_value *v, const char *expected, tm_error *err)
{
    return tm_fail(err, TM_INPUT, "%s: key \"%.200s\" is %s%s, expected %s", g->name, v->key, v->is_array ? "an array of " : "",
                   value_types[v->type].name, expected);
}

/* Element i as an integer; false: not of an integer type, or beyond 63 bits. */
static bool as_int(const tm_gguf_value *v, int64_t i, int64_t *out)
{
    int bytes = value_types[v->type].bytes;
    uint64_t bits = bytes ? little(v->data + i * bytes, bytes) : 0;
    switch (v->type) {
    case TM_GGUF_U8: case TM_GGUF_U16: case TM_GGUF_U32:
        *out = (int64_t)bits;
        return true;
    case TM_GGUF_I8: *out = (int8_t)bits; return true;
    case TM_GGUF_I16: *out = (int16_t)bits; return true;
    case TM_GGUF_I32: *out = (int32_t)bits; return true;
    case TM_GGUF_U64: case TM_GGUF_I64:
        *out = (int64_t)bits;
        return v->type == TM_GGUF_I64 || bits <= INT64_MAX;
    default: return false;
    }
}

static bool as_number(const tm_gguf_value *v, int64_t i, double *out)
{
    int64_t whole;
    if (v->type == TM_GGUF_F32) {
        uint32_t bits = (uint32_t)little(v->data + 4 * i, 4);
        float f;
        memcpy(&f, &bits, 4);
        *out = f;
        return true;
    }
    if (v->type == TM_GGUF_F64) {
        uint64_t bits = little(v->data + 8 * i, 8);
        memcpy(out, &bits, 8);
        return true;
    }
    if (!as_int(v, i, &whole))
        return false;
    *out = (double)whole;
    return true;
}

tm_status tm_gguf_get_int(const tm_gguf *g, const char *key, int64_t fallback, int64_t *out, tm_error *err)
{
    const tm_gguf_value *v = tm_gguf_find(g, key);
    *out = fallback;
    return !v || (!v->is_array && as_int(v, 0, out)) ? TM_OK : wrong(g, v, "an integer", err);
}

tm_status tm_gguf_get_number(const tm_gguf *g, const char *key, double fallback, double *out, tm_error *err)
{
    const tm_gguf_value *v = tm_gguf_find(g, key);
    *out = fallback;
    return !v || (!v->is_array && as_number(v, 0, out)) ? TM_OK : wrong(g, v, "a number", err);
}

tm_status tm_gguf_get_bool(const tm_gguf *g, const char *key, bool fallback, bool *out, tm_error *err)
{
    const tm_gguf_value *v = tm_gguf_find(g, key);
    *out = fallback;
    if (!v)
        return TM_OK;
    if (v->is_array || v->type != TM_GGUF_BOOL)
        return wrong(g, v, "a bool", err);
    *out = v->data[0] != 0;
    return TM_OK;
}

static tm_gguf_text text_at(const uint8_t *p) { return (tm_gguf_text){(const char *)p + 8, (size_t)little(p, 8)}; }

tm_status tm_gguf_get_text(const tm_gguf *g, const char *key, tm_gguf_text *out, tm_error *err)
{
    const tm_gguf_value *v = tm_gguf_find(g, key);
    *out = (tm_gguf_text){0};
    if (!v)
        return TM_OK;
    if (v->is_array || v->type != TM_GGUF_STRING)
        return wrong(g, v, "a string", err);
    *out = text_at(v->data);
    return TM_OK;
}

tm_status tm_gguf_get_texts(const tm_gguf *g, const char *key, tm_gguf_text **out, int64_t *count, tm_error *err)
{
    const tm_gguf_value *v = tm_gguf_find(g, key);
    *out = NULL;
    *count = 0;
    if (!v)
        return TM_OK;
    if (!v->is_array || v->type != TM_GGUF_STRING)
        return wrong(g, v, "an array of strings", err);
    TM_TRY(TM_NEW(out, v->count, err));
    const uint8_t *at = v->data;
    for (int64_t i = 0; i < v->count; i++) {
        (*out)[i] = text_at(at);
        at += 8 + (*out)[i].size;
    }
    *count = v->count;
    return TM_OK;
}

tm_status tm_gguf_get_floats(const tm_gguf *g, const char *key, float **out, int64_t *count, tm_error *err)
{
    const tm_gguf_value *v = tm_gguf_find(g, key);
    *out = NULL;
    *count = 0;
    if (!v)
        return TM_OK;
    if (!v->is_array || (v->type != TM_GGUF_F32 && v->type != TM_GGUF_F64))
        return wrong(g, v, "an array of floats", err);
    TM_TRY(TM_NEW(out, v->count, err));
    for (int64_t i = 0; i < v->count; i++) {
        double number = 0;
        (void)as_number(v, i, &number);
        (*out)[i] = (float)number;
    }
    *count = v->count;
    return TM_OK;
}

tm_status tm_gguf_get_ints(const tm_gguf *g, const char *key, int32_t **out, int64_t *count, tm_error *err)
{
    const tm_gguf_value *v = tm_gguf_find(g, key);
    int64_t number = 0;
    *out = NULL;
    *count = 0;
    if (!v)
        return TM_OK;
    if (!v->is_array || v->type == TM_GGUF_STRING)
        return wrong(g, v, "an array of integers", err);
    TM_TRY(TM_NEW(out, v->count, err));
    for (int64_t i = 0; i < v->count; i++) {
        if (!as_int(v, i, &number) || number < INT32_MIN || number > INT32_MAX) {
            free(*out);
            *out = NULL;
            return wrong(g, v, "an array of integers of 32 bits", err);
        }
        (*out)[i] = (int32_t)number;
    }
    *count = v->count;
    return TM_OK;
}
