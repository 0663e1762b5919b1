/* Reading safetensors: see safetensors.h. The format: 8 bytes of header length (little-endian), a JSON
 * object of {name: {dtype, shape, data_offsets}} and optionally __metadata__, then the data.
 *
 * Invariants of a table that was handed out:
 * 1. Every tensor's bytes lie inside its map, their number is the one its dtype and shape give, and no
 *    byte of a file's data belongs to two tensors or to none.
 * 2. Names are unique, valid UTF-8, without NUL, and sorted by bytes; those of a sharded model are in
 *    the shard that the index says.
 * 3. A size is checked before anything is computed from it, so that a hostile header cannot overflow. */
#include "io/safetensors.h"

#include "base/file.h"
#include "base/json.h"
#include "base/names.h"

#include <stdlib.h>
#include <string.h>

struct tm_safetensors {
    tm_map *map; /* one a file */
    int64_t maps;
    tm_st_tensor *tensor; /* names owned */
    int64_t count;
    size_t capacity;
    tm_names keys, values; /* metadata; of shards: the first that has a key */
    void *owner;           /* of tensors that lie elsewhere */
    void (*release)(void *owner);
    void **unpacked;       /* [unpackeds] owned */
    int64_t unpackeds;
};

/* What parsing one file needs to know of it. */
typedef struct source {
    const char *name;    /* for messages */
    const char *data;    /* after the header */
    uint64_t size;       /* of data */
} source;

/* ---- one tensor ---- */

static tm_status fail_tensor(const source *src, const char *tensor, tm_error *err, const char *what)
{
    return tm_fail(err, TM_INPUT, "%s: tensor \"%.200s\": %s", src->name, tensor, what);
}

/* dtype and shape to elements and bytes; false on overflow or a fraction of a byte. */
static bool measure(tm_st_tensor *t)
{
    int64_t bits;
    t->count = 1;
    for (int i = 0; i < t->ndim; i++)
        if (__builtin_mul_overflow(t->count, t->shape[i], &t->count))
            return false;
    if (__builtin_mul_overflow(t->count, (int64_t)tm_dtype_bits(t->dtype), &bits) || bits % 8)
        return false;
    t->bytes = bits / 8;
    return true;
}

static tm_status parse_shape(const source *src, const char *name, const json_t *shape, tm_st_tensor *t, tm_error *err)
{
    if (!json_is_array(shape))
        return fail_tensor(src, name, err, shape ? "shape is not a list" : "shape is missing");
    if (json_array_size(shape) > TM_ST_MAX_DIMS)
        return tm_fail(err, TM_UNSUPPORTED, "%s: tensor \"%.200s\": %zu dimensions, at most %d are supported",
                       src->name, name, json_array_size(shape), TM_ST_MAX_DIMS);
    t->ndim = (int32_t)json_array_size(shape);
    for (int i = 0; i < t->ndim; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return fail_tensor(src, name, err, "a dimension of its shape is not a non-negative integer");
        t->shape[i] = json_integer_value(dim);
    }
    return TM_OK;
}

static tm_status parse_offsets(const source *src, const char *name, const json_t *offsets, tm_st_tensor *t,
                               tm_error *err)
{
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return fail_tensor(src, name, err,
                           offsets ? "data_offsets is not a list of two integers" : "data_offsets is missing");
    int64_t begin = json_integer_value(first), end = json_integer_value(last);
    if (begin < 0 || begin > end)
        return tm_fail(err, TM_INPUT, "%s: tensor \"%.200s\": data_offsets [%lld, %lld], expected 0 <= begin <= end",
                       src->name, name, (long long)begin, (long long)end);
    if ((uint64_t)end > src->size)
        return tm_fail(err, TM_INPUT,
                       "%s: tensor \"%.200s\": ends at byte %lld of the data, the file has %llu (cut short?)",
                       src->name, name, (long long)end, (unsigned long long)src->size);
    if (end - begin != t->bytes)
        return tm_fail(err, TM_INPUT, "%s: tensor \"%.200s\": shape and dtype need %lld bytes, data_offsets give %lld",
                       src->name, name, (long long)t->bytes, (long long)(end - begin));
    t->data = src->data + begin;
    return TM_OK;
}

/* Fills t but for its name. */
static tm_status parse_tensor(const source *src, const char *name, const json_t *info, tm_st_tensor *t, tm_error *err)
{
    *t = (tm_st_tensor){0};
    if (!json_is_object(info))
        return fail_tensor(src, name, err, "is not an object");
    const char *dtype = json_string_value(json_object_get(info, "dtype"));
    if (!dtype)
        return fail_tensor(src, name, err, "dtype is missing or not a string");
    t->dtype = tm_dtype_from_name(dtype);
    if (t->dtype == TM_DTYPE_COUNT)
        return tm_fail(err, TM_INPUT, "%s: tensor \"%.200s\": unknown dtype \"%.40s\"", src->name, name, dtype);
    TM_TRY(parse_shape(src, name, json_object_get(info, "shape"), t, err));
    if (!measure(t))
        return fail_tensor(src, name, err, "its shape is too large, or not a whole number of bytes");
    return parse_offsets(src, name, json_object_get(info, "data_offsets"), t, err);
}

/* ---- one file ---- */

static tm_status parse_metadata(tm_safetensors *st, const source *src, const json_t *map, tm_error *err)
{
    const char *key;
    const json_t *value;
    int64_t before = st->keys.count; /* within a file keys are unique already */
    if (!json_is_object(map))
        return tm_fail(err, TM_INPUT, "%s: __metadata__ is not an object", src->name);
    json_object_foreach((json_t *)map, key, value) {
        if (!json_is_string(value))
            return tm_fail(err, TM_INPUT, "%s: __metadata__ \"%.200s\" is not a string", src->name, key);
        if (tm_names_contain(&(tm_names){.item = st->keys.item, .count = before}, key))
            continue;
        TM_TRY(tm_names_add(&st->keys, key, err));
        TM_TRY(tm_names_add(&st->values, json_string_value(value), err));
    }
    return TM_OK;
}

static int by_place(const void *a, const void *b)
{
    const tm_st_tensor *x = a, *y = b;
    const char *p = x->data, *q = y->data;
    return p != q ? (p > q) - (p < q) : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const tm_st_tensor *)a)->name, ((const tm_st_tensor *)b)->name);
}

/* The tensors of one file (reordered) cover its data exactly. */
static tm_status check_cover(const source *src, tm_st_tensor *t, int64_t count, tm_error *err)
{
    if (count)
        qsort(t, (size_t)count, sizeof *t, by_place);
    int64_t at = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t begin = (const char *)t[i].data - src->data;
        if (begin != at)
            return tm_fail(err, TM_INPUT, "%s: tensor \"%.200s\": begins at byte %lld of the data, %s byte %lld",
                           src->name, t[i].name, (long long)begin,
                           begin < at ? "overlapping the tensor that ends at" : "leaving a hole after", (long long)at);
        at += t[i].bytes;
    }
    if ((uint64_t)at != src->size)
        return tm_fail(err, TM_INPUT, "%s: %llu bytes of data, its tensors cover %lld", src->name,
                       (unsigned long long)src->size, (long long)at);
    return TM_OK;
}

/* Finds header and data; the length is checked before it is used. */
static tm_status split(const char *bytes, size_t size, const char *name, source *src, size_t *header, tm_error *err)
{
    uint64_t length = 0;
    if (size < 8)
        return tm_fail(err, TM_INPUT, "%s: %zu bytes, a safetensors file has at least 8", name, size);
    for (int i = 7; i >= 0; i--)
        length = length << 8 | (unsigned char)bytes[i];
    if (length > TM_ST_MAX_HEADER)
        return tm_fail(err, TM_INPUT, "%s: header of %llu bytes, expected at most %d", name, (unsigned long long)length,
                       TM_ST_MAX_HEADER);
    if (length > size - 8)
        return tm_fail(err, TM_INPUT, "%s: header of %llu bytes, the file has %zu after its length (cut short?)", name,
                       (unsigned long long)length, size - 8);
    if (length == 0 || bytes[8] != '{')
        return tm_fail(err, TM_INPUT, "%s: the header does not begin with '{'", name);
    *header = (size_t)length;
    *src = (source){.name = name, .data = bytes + 8 + length, .size = size - 8 - length};
    return TM_OK;
}

/* Adds the tensors of one file to the table, unsorted. */
static tm_status parse_file(tm_safetensors *st, const char *bytes, size_t size, const char *name, tm_error *err)
{
    source src = {0};
    size_t header = 0;
    json_t *root = NULL;
    const char *key;
    const json_t *value;
    int64_t first = st->count;
    TM_TRY(split(bytes, size, name, &src, &header, err));
    tm_status status = tm_json_parse(bytes + 8, header, name, &root, err);
    if (status != TM_OK)
        return status;
    json_object_foreach(root, key, value) {
        tm_st_tensor t;
        if (strcmp(key, "__metadata__") == 0)
            status = parse_metadata(st, &src, value, err);
        else if ((status = parse_tensor(&src, key, value, &t, err)) == TM_OK &&
                 (status = TM_GROW(&st->tensor, &st->capacity, st->count + 1, err)) == TM_OK) {
            t.name = tm_strdup(key, err);
            if (t.name)
                st->tensor[st->count++] = t;
            else
                status = TM_NO_MEMORY;
        }
        if (status != TM_OK)
            break;
    }
    json_decref(root);
    if (status != TM_OK)
        return status;
    return check_cover(&src, st->tensor ? st->tensor + first : NULL, st->count - first, err);
}

/* Sorts the finished table. The same name in two files is found here. */
static tm_status finish(tm_safetensors *st, const char *name, tm_error *err)
{
    if (st->count)
        qsort(st->tensor, (size_t)st->count, sizeof *st->tensor, by_name);
    for (int64_t i = 1; i < st->count; i++)
        if (strcmp(st->tensor[i - 1].name, st->tensor[i].name) == 0)
            return tm_fail(err, TM_INPUT, "%s: tensor \"%.200s\" is in two shards", name, st->tensor[i].name);
    return TM_OK;
}

static tm_status add_file(tm_safetensors *st, const char *path, tm_error *err)
{
    TM_TRY(tm_map_open(path, &st->map[st->maps], err));
    st->maps++;
    return parse_file(st, st->map[st->maps - 1].data, st->map[st->maps - 1].size, path, err);
}

/* Hands st out when status is TM_OK, else closes it. */
static tm_status hand_out(tm_safetensors *st, tm_status status, tm_safetensors **out)
{
    if (status != TM_OK) {
        tm_safetensors_close(st);
        st = NULL;
    }
    *out = st;
    return status;
}

static tm_status create(int64_t maps, tm_safetensors **out, tm_error *err)
{
    TM_TRY(TM_NEW(out, 1, err));
    return hand_out(*out, TM_NEW(&(*out)->map, maps, err), out);
}

tm_status tm_safetensors_view(const void *data, size_t size, const char *name, tm_safetensors **out, tm_error *err)
{
    TM_TRY(create(0, out, err));
    tm_status st = parse_file(*out, data, size, name, err);
    return hand_out(*out, st == TM_OK ? finish(*out, name, err) : st, out);
}

tm_status tm_safetensors_open(const char *path, tm_safetensors **out, tm_error *err)
{
    TM_TRY(create(1, out, err));
    tm_status st = add_file(*out, path, err);
    return hand_out(*out, st == TM_OK ? finish(*out, path, err) : st, out);
}

tm_status tm_safetensors_of(tm_st_tensor *tensors, int64_t count, const char *name, void *owner,
                            void (*release)(void *owner), tm_safetensors **out, tm_error *err)
{
    tm_status st = create(0, out, err);
    if (st != TM_OK) {
        for (int64_t i = 0; i < count; i++)
            free((char *)tensors[i].name);
        free(tensors);
        release(owner);
        return st;
    }
    (*out)->tensor = tensors;
    (*out)->count = count;
    (*out)->owner = owner;
    (*out)->release = release;
    return hand_out(*out, finish(*out, name, err), out);
}

tm_status tm_st_values(const tm_st_tensor *t, void **buffer, const void **out, tm_error *err)
{
    *buffer = NULL;
    *out = t->data;
    if (t->data)
        return TM_OK;
    TM_TRY(tm_alloc(buffer, (size_t)t->bytes, 1, err));
    tm_status st = t->give(t, *buffer, err);
    if (st != TM_OK) {
        free(*buffer);
        *buffer = NULL;
    }
    *out = *buffer;
    return st;
}

tm_status tm_safetensors_unpack(tm_safetensors *st, tm_error *err)
{
    if (!st->unpacked)
        TM_TRY(TM_NEW(&st->unpacked, st->count, err));
    for (int64_t i = 0; i < st->count; i++)
        if (!st->tensor[i].data)
            TM_TRY(tm_st_values(&st->tensor[i], &st->unpacked[st->unpackeds++], &st->tensor[i].data, err));
    return TM_OK;
}

/* ---- a model folder ---- */

/* A shard's name may lead into a folder below, never out of the model's. */
static bool stays_inside(const char *name)
{
    if (!*name || *name == '/')
        return false;
    for (const char *part = name; part; part = strchr(part, '/')) {
        part += *part == '/';
        size_t n = strcspn(part, "/");
        if (n == 0 || (n == 2 && memcmp(part, "..", 2) == 0))
            return false;
    }
    return true;
}

static int compare_strings(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* The distinct files of a weight map, sorted. */
static tm_status shards_of(const json_t *weights, const char *index, tm_names *shards, tm_error *err)
{
    const char *tensor;
    const json_t *file;
    const char **all = NULL;
    size_t count = 0;
    tm_status st;
    if (!json_is_object(weights))
        return tm_fail(err, TM_INPUT, "%s: weight_map is missing or not an object", index);
    TM_TRY(TM_NEW(&all, json_object_size(weights), err));
    json_object_foreach((json_t *)weights, tensor, file) {
        const char *name = json_string_value(file);
        if (!name || !stays_inside(name))
            TM_GO(tm_fail(err, TM_INPUT, "%s: tensor \"%.200s\": shard \"%.200s\" is not a file name in this folder",
                          index, tensor, name ? name : "(not a string)"));
        all[count++] = name;
    }
    if (count)
        qsort(all, count, sizeof *all, compare_strings);
    st = TM_OK;
    for (size_t i = 0; i < count && st == TM_OK; i++)
        if (i == 0 || strcmp(all[i - 1], all[i]) != 0)
            st = tm_names_add(shards, all[i], err);
out:
    free(all);
    return st;
}

/* Opens one shard; each of its tensors must be where the index has it. */
static tm_status add_shard(tm_safetensors *st, const char *dir, const char *shard, const json_t *weights,
                           const char *index, tm_error *err)
{
    int64_t first = st->count;
    char *path = tm_path_join(dir, shard, err);
    if (!path)
        return TM_NO_MEMORY;
    tm_status status = add_file(st, path, err);
    for (int64_t i = first; i < st->count && status == TM_OK; i++) {
        const char *name = st->tensor[i].name, *said = json_string_value(json_object_get(weights, name));
        if (!said)
            status = tm_fail(err, TM_INPUT, "%s: tensor \"%.200s\" is not in the index %s", path, name, index);
        else if (strcmp(said, shard) != 0)
            status = tm_fail(err, TM_INPUT, "%s: tensor \"%.200s\" is here, the index %s has it in %.200s", path, name,
                             index, said);
    }
    free(path);
    return status;
}

static tm_status check_index(const tm_safetensors *st, const char *dir, const json_t *weights, tm_error *err)
{
    const char *name;
    const json_t *file;
    json_object_foreach((json_t *)weights, name, file)
        if (!tm_safetensors_find(st, name))
            return tm_fail(err, TM_INPUT, "%s/%s: tensor \"%.200s\" is missing, the index has it there", dir,
                           json_string_value(file), name);
    return TM_OK;
}

static tm_status open_sharded(const char *dir, const char *index, tm_safetensors **out, tm_error *err)
{
    json_t *root = NULL;
    tm_names shards = {0};
    tm_safetensors *table = NULL;
    tm_status st;
    TM_GO(tm_json_read(index, &root, err));
    const json_t *weights = json_object_get(root, "weight_map");
    TM_GO(shards_of(weights, index, &shards, err));
    TM_GO(create(shards.count, &table, err));
    for (int64_t i = 0; i < shards.count; i++)
        TM_GO(add_shard(table, dir, shards.item[i], weights, index, err));
    TM_GO(finish(table, dir, err));
    TM_GO(check_index(table, dir, weights, err));
out:
    tm_names_deinit(&shards);
    json_decref(root);
    return hand_out(table, st, out);
}

tm_status tm_safetensors_open_model(const char *dir, tm_safetensors **out, tm_error *err)
{
    *out = NULL;
    tm_status st = TM_NO_MEMORY;
    char *single = tm_path_join(dir, "model.safetensors", err);
    char *index = tm_path_join(dir, "model.safetensors.index.json", err);
    char *torch = tm_path_join(dir, "pytorch_model.bin", err);
    if (!single || !index || !torch)
        goto out;
    if (tm_path_exists(single))
        st = tm_safetensors_open(single, out, err);
    else if (tm_path_exists(index))
        st = open_sharded(dir, index, out, err);
    else if (tm_path_exists(torch))
        st = tm_fail(err, TM_UNSUPPORTED, "%s: weights in Python's pickle format, expected safetensors", torch);
    else
        st = tm_fail(err, TM_INPUT, "%s: neither model.safetensors nor model.safetensors.index.json is there", dir);
out:
    free(single);
    free(index);
    free(torch);
    return st;
}

void tm_safetensors_close(tm_safetensors *st)
{
    if (!st)
        return;
    for (int64_t i = 0; i < st->count; i++)
        free((char *)st->tensor[i].name);
    for (int64_t i = 0; i < st->maps; i++)
        tm_map_close(&st->map[i]);
    for (int64_t i = 0; i < st->unpackeds; i++)
        free(st->unpacked[i]);
    free(st->unpacked);
    free(st->tensor);
    if (st->release)
        st->release(st->owner);
    free(st->map);
    tm_names_deinit(&st->keys);
    tm_names_deinit(&st->values);
    free(st);
}

/* ---- looking ---- */

int64_t tm_safetensors_count(const tm_safetensors *st) { return st->count; }

const tm_st_tensor *tm_safetensors_at(const tm_safetensors *st, int64_t i) { return &st->tensor[i]; }

const tm_st_tensor *tm_safetensors_find(const tm_safetensors *st, const char *name)
{
    tm_st_tensor key = {.name = name};
    return st->count ? bsearch(&key, st->tensor, (size_t)st->count, sizeof key, by_name) : NULL;
}

const char *tm_safetensors_metadata(const tm_safetensors *st, const char *key)
{
    for (int64_t i = 0; i < st->keys.count; i++)
        if (strcmp(st->keys.item[i], key) == 0)
            return st->values.item[i];
    return NULL;
}
