/* safetensors and model folders: what is accepted, what is refused and why, and bytes as written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/json.h"
#include "folder.h"
#include "io/hf.h"
#include "io/safetensors.h"

#include <time.h>

static const char data_dir[] = "tests/data/";

/* A file of this header and so many zero bytes of data; free(). */
static char *make_file(const char *header, size_t data, size_t *size)
{
    size_t n = strlen(header);
    char *bytes = calloc(1, 8 + n + data + 1);
    for (int i = 0; i < 8; i++)
        bytes[i] = (char)(n >> 8 * i);
    memcpy(bytes + 8, header, n);
    *size = 8 + n + data;
    return bytes;
}

static void accepts(const char *header, size_t data)
{
    size_t size;
    char *bytes = make_file(header, data, &size);
    tm_safetensors *st;
    OK(tm_safetensors_view(bytes, size, "f.safetensors", &st, err));
    tm_safetensors_close(st);
    free(bytes);
}

static void refuses_as(tm_status code, const char *header, size_t data, const char *why)
{
    size_t size;
    char *bytes = make_file(header, data, &size);
    tm_safetensors *st = (tm_safetensors *)bytes;
    FAILS(code, "f.safetensors", tm_safetensors_view(bytes, size, "f.safetensors", &st, err));
    FAILS(code, why, tm_safetensors_view(bytes, size, "f.safetensors", &st, err));
    assert_null(st);
    free(bytes);
}

static void refuses(const char *header, size_t data, const char *why) { refuses_as(TM_INPUT, header, data, why); }

/* The project's damaged files: each as its manifest says, the message naming the file, the reason and,
 * where there is one, the tensor. */
static void manifest(void **state)
{
    (void)state;
    static const struct { const char *file, *why; } reasons[] = {
        {"duplicate_key", "duplicate object key"}, {"header_len_over_100MB", "header of 100000001 bytes"},
        {"header_len_u64_max", "header of 18446744073709551615 bytes"}, {"invalid_utf8", "is not UTF-8"},
        {"missing_shape", "shape is missing"}, {"offset_gap", "leaving a hole"}, {"offset_overlap", "overlapping"},
        {"shape_negative", "not a non-negative integer"}, {"shape_size_mismatch", "need 12 bytes, data_offsets give 8"},
        {"truncated_data", "(cut short?)"}, {"unknown_dtype", "unknown dtype"},
    };
    json_t *list, *entry;
    size_t i, seen = 0;
    OK(tm_json_read("tests/data/malformed/safetensors/manifest.json", &list, err));
    json_array_foreach(list, i, entry) {
        char path[256];
        tm_safetensors *st;
        const char *file = json_string_value(json_object_get(entry, "file"));
        snprintf(path, sizeof path, "tests/data/malformed/safetensors/%s", file);
        if (strcmp(json_string_value(json_object_get(entry, "expect")), "accept") == 0) {
            OK(tm_safetensors_open(path, &st, err));
            tm_safetensors_close(st);
            continue;
        }
        FAILS(TM_INPUT, path, tm_safetensors_open(path, &st, err));
        for (size_t r = 0; r < sizeof reasons / sizeof *reasons; r++)
            if (strncmp(file, reasons[r].file, strlen(reasons[r].file)) == 0 && ++seen)
                FAILS(TM_INPUT, reasons[r].why, tm_safetensors_open(path, &st, err));
    }
    assert_int_equal(seen, sizeof reasons / sizeof *reasons);
    assert_true(json_array_size(list) >= 13);
    json_decref(list);
}

/* Rewriting a file of the reference implementation gives its bytes. */
static void rewrite(const char *name, const char *const *metadata)
{
    char path[256];
    size_t size, again;
    tm_safetensors *st;
    snprintf(path, sizeof path, "%s%s", data_dir, name);
    char *bytes = slurp(path, &size);
    OK(tm_safetensors_open(path, &st, err));
    OK(tm_safetensors_write(scratch("again"), tm_safetensors_count(st) ? tm_safetensors_at(st, 0) : NULL,
                            tm_safetensors_count(st), metadata, err));
    tm_safetensors_close(st);
    char *written = slurp(scratch("again"), &again);
    assert_int_equal(size, again);
    assert_memory_equal(bytes, written, size);
    free(bytes);
    free(written);
}

static void same_bytes(void **state)
{
    (void)state;
    static const char *const pt[] = {"format", "pt", NULL};
    rewrite("golden/llama-dora/adapter_init/adapter_model.safetensors", pt);
    rewrite("safetensors_small/tl_deep_struct.safetensors", NULL);
    rewrite("safetensors_small/tl_empty_model.safetensors", NULL);
    rewrite("safetensors_small/tensor-4d-float32.safetensors", NULL);
}

static void values_are_read(void **state)
{
    (void)state;
    tm_safetensors *st;
    OK(tm_safetensors_open("tests/data/golden/llama-dora/adapter_init/adapter_model.safetensors", &st, err));
    const tm_st_tensor *t = tm_safetensors_find(st, "base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight");
    assert_non_null(t);
    assert_int_equal(t->dtype, TM_F32);
    assert_int_equal(t->ndim, 2);
    assert_int_equal(t->shape[0], 4);
    assert_int_equal(t->shape[1], 32);
    assert_int_equal(t->count, 128);
    assert_int_equal(t->bytes, 512);
    assert_string_equal(tm_safetensors_metadata(st, "format"), "pt");
    assert_null(tm_safetensors_metadata(st, "other"));
    assert_null(tm_safetensors_find(st, "absent"));
    for (int64_t i = 1; i < tm_safetensors_count(st); i++)
        assert_true(strcmp(tm_safetensors_at(st, i - 1)->name, tm_safetensors_at(st, i)->name) < 0);
    tm_safetensors_close(st);
    tm_safetensors_close(NULL);
}

#define T(dtype, shape, a, b) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #a "," #b "]}"

static void rules(void **state)
{
    (void)state;
    accepts("{}", 0);
    accepts("{\"a\":" T("F32", "[]", 0, 4) "}  \n ", 4);
    accepts("{\"a\":" T("F32", "[0]", 0, 0) ",\"b\":" T("F32", "[1]", 0, 4) ",\"c\":" T("U8", "[3,0]", 4, 4) "}", 4);
    accepts("{\"b\":" T("F32", "[1]", 4, 8) ",\"\":" T("F32", "[1]", 0, 4) "}", 8);
    accepts("{\"a\":" T("F4", "[2]", 0, 1) "}", 1);
    accepts("{\"a\":" T("F6_E2M3", "[2,2]", 0, 3) "}", 3);
    accepts("{\"__metadata__\":{\"k\":\"v\",\"\":\"\"}}", 0);
    accepts("{\"a\":" T("F32", "[1,1,1,1,1,1,1,1]", 0, 4) "}", 4);
    static const char *const dtypes[] = {"F64", "I64", "U64", "C64", "F32", "I32", "U32", "F16", "BF16", "I16", "U16",
                                         "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        char header[128];
        int bytes = i < 4 ? 8 : i < 7 ? 4 : i < 11 ? 2 : 1;
        snprintf(header, sizeof header, "{\"a\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%d]}}", dtypes[i],
                 3 * bytes);
        accepts(header, 3 * (size_t)bytes);
    }
    refuses(" {}", 0, "does not begin with '{'");
    refuses("[]", 0, "does not begin with '{'");
    refuses("", 0, "does not begin with '{'");
    refuses("{} {}", 0, "not valid JSON");
    refuses("{}", 1, "1 bytes of data, its tensors cover 0");
    refuses("{\"a\":" T("F32", "[1]", 0, 4) "}", 5, "5 bytes of data, its tensors cover 4");
    refuses("{\"a\":" T("F32", "[1]", 4, 8) "}", 8, "tensor \"a\": begins at byte 4");
    refuses("{\"a\":" T("F32", "[1]", 4, 0) "}", 8, "tensor \"a\": data_offsets [4, 0]");
    refuses("{\"a\":" T("F32", "[1]", -4, 0) "}", 8, "tensor \"a\": data_offsets [-4, 0]");
    refuses("{\"a\":" T("F32", "[1]", 0, 4) ",\"b\":" T("F32", "[1]", 2, 6) "}", 6,
            "tensor \"b\": begins at byte 2 of the data, overlapping");
    refuses("{\"a\":" T("F32", "[1]", 0, 4) ",\"b\":" T("F32", "[1]", 0, 4) "}", 4, "overlapping");
    refuses("{\"a\":" T("F4", "[3]", 0, 2) "}", 2, "tensor \"a\": its shape is too large, or not a whole number");
    refuses("{\"a\":" T("F32", "[4294967296,4294967296]", 0, 0) "}", 0, "too large");
    refuses("{\"a\":" T("F32", "[4611686018427387904]", 0, 0) "}", 0, "too large");
    refuses("{\"a\":" T("F32", "[9223372036854775808]", 0, 0) "}", 0, "too big an integer");
    refuses("{\"a\":" T("F32", "[1.0]", 0, 4) "}", 4, "tensor \"a\": a dimension");
    refuses("{\"a\":" T("F32", "[true]", 0, 4) "}", 4, "tensor \"a\": a dimension");
    refuses("{\"a\":" T("F32", "4", 0, 4) "}", 4, "shape is not a list");
    refuses("{\"a\":" T("f32", "[1]", 0, 4) "}", 4, "unknown dtype \"f32\"");
    refuses("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype is missing");
    refuses("{\"a\":{\"dtype\":5,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype is missing or not a string");
    refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets is missing");
    refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4, "list of two integers");
    refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4.0]}}", 4, "list of two integers");
    refuses("{\"a\":7}", 0, "tensor \"a\": is not an object");
    refuses("{\"__metadata__\":[]}", 0, "__metadata__ is not an object");
    refuses("{\"__metadata__\":{\"k\":1}}", 0, "__metadata__ \"k\" is not a string");
    refuses("{\"__metadata__\":{\"k\":\"\",\"k\":\"\"}}", 0, "duplicate");
    refuses("{\"a\":" T("F32", "[1]", 0, 4) ",\"\\u0061\":" T("F32", "[1]", 0, 4) "}", 4, "duplicate");
    refuses("{\"a\\u0000b\":" T("F32", "[1]", 0, 4) "}", 4, "not valid JSON");
    refuses("{\"\\ud800\":" T("F32", "[1]", 0, 4) "}", 4, "not valid JSON");
    refuses_as(TM_UNSUPPORTED, "{\"a\":" T("F32", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}", 4, "9 dimensions, at most 8");
}

static uint64_t random_state;

static uint64_t random_u64(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* Opens bytes in a block of exactly their size, so that a read past them is seen by the sanitizer. */
static bool opens(const char *bytes, size_t size)
{
    char *copy = malloc(size ? size : 1);
    tm_safetensors *st;
    tm_error err = {0};
    if (size)
        memcpy(copy, bytes, size);
    bool ok = tm_safetensors_view(copy, size, "x", &st, &err) == TM_OK;
    volatile unsigned sum = 0;
    for (int64_t i = 0; ok && i < tm_safetensors_count(st); i++)
        for (int64_t b = 0; b < tm_safetensors_at(st, i)->bytes; b++)
            sum += ((const unsigned char *)tm_safetensors_at(st, i)->data)[b];
    (void)sum;
    if (ok)
        tm_safetensors_close(st);
    else
        assert_true(err.status != TM_OK && err.message[0]);
    free(copy);
    return ok;
}

/* Cut at every byte: refused every time. Every bit of every header byte flipped: never a crash, and
 * what is accepted is whole. Random bytes in the header: the same (of these nothing is asserted but
 * that they return). */
static void torn_and_flipped(void **state)
{
    (void)state;
    static const char *const files[] = {"malformed/safetensors/ok_baseline.safetensors",
                                        "safetensors_small/tl_deep_struct.safetensors",
                                        "malformed/safetensors/ok_scalar_and_zero_dim.safetensors"};
    random_state = (uint64_t)time(NULL) * 2654435761u + 1;
    for (int f = 0; f < 3; f++) {
        char path[256];
        size_t size;
        snprintf(path, sizeof path, "%s%s", data_dir, files[f]);
        char *bytes = slurp(path, &size);
        size_t header = 8 + (size_t)(unsigned char)bytes[0];
        assert_true(opens(bytes, size));
        for (size_t cut = 0; cut < size; cut++)
            assert_false(opens(bytes, cut));
        for (size_t at = 0; at < header; at++)
            for (int bit = 0; bit < 8; bit++) {
                bytes[at] ^= (char)(1 << bit);
                opens(bytes, size);
                bytes[at] ^= (char)(1 << bit);
            }
        for (int round = 0; round < 2000; round++) {
            char *copy = malloc(size);
            memcpy(copy, bytes, size);
            for (int n = 1 + (int)(random_u64() % 4); n > 0; n--)
                copy[random_u64() % header] = (char)random_u64();
            opens(copy, size);
            free(copy);
        }
        free(bytes);
    }
}

/* What the fuzzer found worth keeping. */
static void kept_inputs(void **state)
{
    (void)state;
    static const char dir[] = "tests/fuzz/corpus/safetensors";
    char **names;
    size_t count, accepted = 0;
    OK(tm_dir_list(dir, &names, &count, err));
    for (size_t i = 0; i < count; i++) {
        size_t size;
        char *path = tm_path_join(dir, names[i], NULL), *bytes = slurp(path, &size);
        accepted += opens(bytes, size);
        free(bytes);
        free(path);
    }
    tm_names_free(names, count);
    assert_true(accepted > 5 && accepted < count);
}

/* Random tables: written in any order, the bytes are the same, and they read back. */
static void random_round_trips(void **state)
{
    (void)state;
    random_state = (uint64_t)time(NULL) * 1099511628211u + 3;
    unsigned long long seed = random_state;
    static const char *const metadata[] = {"format", "pt", "\xd0\xb6\"", "\n", NULL};
    char data[4096];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (char)random_u64();
    for (int round = 0; round < 60; round++) {
        enum { MOST = 12 };
        int n = (int)(random_u64() % MOST);
        char names[MOST][40];
        tm_st_tensor t[MOST] = {0};
        size_t sizes[2];
        char *bytes[2];
        for (int i = 0; i < n; i++) {
            static const char *const marks[] = {"", ".weight", "\"\\", "\x01\n", "\xf0\x9f\x98\x80"};
            snprintf(names[i], sizeof names[i], "%d%s%d", (int)(random_u64() % 3), marks[random_u64() % 5], i);
            t[i].name = names[i];
            do {
                t[i].dtype = (tm_dtype)(random_u64() % TM_DTYPE_COUNT);
                t[i].ndim = (int32_t)(random_u64() % 4);
                t[i].count = 1;
                memset(t[i].shape, 0, sizeof t[i].shape);
                for (int d = 0; d < t[i].ndim; d++)
                    t[i].count *= t[i].shape[d] = (int64_t)(random_u64() % 5);
            } while (t[i].count * tm_dtype_bits(t[i].dtype) % 8);
            t[i].bytes = t[i].count * tm_dtype_bits(t[i].dtype) / 8;
            t[i].data = data + random_u64() % 2000;
        }
        for (int k = 0; k < 2; k++) {
            OK(tm_safetensors_write(scratch("random"), t, n, round & 1 ? metadata : NULL, err));
            bytes[k] = slurp(scratch("random"), &sizes[k]);
            for (int i = 0; i + 1 < n; i++) { /* another order */
                tm_st_tensor swap = t[i];
                int j = (int)(random_u64() % (uint64_t)n);
                t[i] = t[j];
                t[j] = swap;
            }
        }
        tm_safetensors *st;
        OK(tm_safetensors_open(scratch("random"), &st, err));
        bool same = sizes[0] == sizes[1] && memcmp(bytes[0], bytes[1], sizes[0]) == 0 && tm_safetensors_count(st) == n;
        for (int i = 0; same && i < n; i++) {
            const tm_st_tensor *r = tm_safetensors_find(st, t[i].name);
            same = r && r->dtype == t[i].dtype && r->ndim == t[i].ndim && r->bytes == t[i].bytes && r->count == t[i].count &&
                   memcmp(r->shape, t[i].shape, sizeof r->shape) == 0 && memcmp(r->data, t[i].data,
                                                                                (size_t)r->bytes) == 0;
        }
        same = same && (!(round & 1) || strcmp(tm_safetensors_metadata(st, "\xd0\xb6\""), "\n") == 0);
        tm_safetensors_close(st);
        free(bytes[0]);
        free(bytes[1]);
        if (!same)
            fail_msg("seed %llu, round %d", seed, round);
    }
}

static void writer_refuses(void **state)
{
    (void)state;
    float x = 1;
    tm_st_tensor t[2] = {{.name = "a", .dtype = TM_F32, .data = &x}, {.name = "a", .dtype = TM_F32, .data = &x}};
    FAILS(TM_FAILED, "\"a\" is given twice", tm_safetensors_write(scratch("w"), t, 2, NULL, err));
    t[0].name = "__metadata__";
    FAILS(TM_FAILED, "cannot be the name", tm_safetensors_write(scratch("w"), t, 2, NULL, err));
    t[0].name = "\xff";
    FAILS(TM_FAILED, "cannot be the name", tm_safetensors_write(scratch("w"), t, 2, NULL, err));
    t[0] = (tm_st_tensor){.name = "b", .dtype = TM_F4, .ndim = 1, .shape = {3}, .data = &x};
    FAILS(TM_FAILED, "\"b\": its dtype and shape", tm_safetensors_write(scratch("w"), t, 2, NULL, err));
    assert_false(tm_path_exists(scratch("w")));
    assert_false(tm_path_exists(scratch(".w.partial")));
}

/* ---- model folders ---- */

static void put_text(const char *name, const char *text) { OK(tm_file_write(scratch(name), text, strlen(text), err)); }

static void model_folders(void **state)
{
    (void)state;
    float x[6] = {1, 2, 3, 4, 5, 6};
    tm_st_tensor a = {.name = "a", .dtype = TM_F32, .ndim = 1, .shape = {2}, .data = x};
    tm_st_tensor b = {.name = "b", .dtype = TM_F32, .ndim = 1, .shape = {4}, .data = x + 2};
    tm_st_tensor both[2] = {b, a};
    tm_safetensors *st;
    OK(tm_dir_create(scratch("m/sub"), err));
    FAILS(TM_INPUT, "neither model.safetensors nor", tm_safetensors_open_model(scratch("m"), &st, err));
    put_text("m/pytorch_model.bin", "");
    FAILS(TM_UNSUPPORTED, "pickle", tm_safetensors_open_model(scratch("m"), &st, err));
    OK(tm_safetensors_write(scratch("m/1.safetensors"), &a, 1, NULL, err));
    OK(tm_safetensors_write(scratch("m/2.safetensors"), &b, 1, NULL, err));
    OK(tm_safetensors_write(scratch("m/sub/2.safetensors"), &b, 1, NULL, err));
    static const char index[] = "m/model.safetensors.index.json";
    put_text(index, "{\"metadata\":{},\"weight_map\":{\"b\":\"2.safetensors\",\"a\":\"1.safetensors\"}}");
    OK(tm_safetensors_open_model(scratch("m"), &st, err));
    assert_int_equal(tm_safetensors_count(st), 2);
    assert_memory_equal(tm_safetensors_find(st, "b")->data, x + 2, 16);
    tm_safetensors_close(st);
    put_text(index, "{\"weight_map\":{\"b\":\"sub/2.safetensors\",\"a\":\"1.safetensors\"}}");
    OK(tm_safetensors_open_model(scratch("m"), &st, err));
    tm_safetensors_close(st);

    static const struct { const char *index, *why; } bad[] = {
        {"{\"weight_map\":{\"b\":\"3.safetensors\",\"a\":\"1.safetensors\"}}", "3.safetensors: cannot open"},
        {"{\"weight_map\":{\"b\":\"2.safetensors\",\"c\":\"2.safetensors\"}}", "2.safetensors: tensor \"c\" is missing"},
        {"{\"weight_map\":{\"c\":\"2.safetensors\"}}", "tensor \"b\" is not in the index"},
        {"{\"weight_map\":{\"b\":\"1.safetensors\",\"a\":\"2.safetensors\"}}", "tensor \"a\" is here, the index"},
        {"{\"weight_map\":{\"b\":\"../m/2.safetensors\"}}", "tensor \"b\": shard \"../m/2.safetensors\" is not a file name"},
        {"{\"weight_map\":{\"b\":\"sub/../../m/2.safetensors\"}}", "is not a file name"},
        {"{\"weight_map\":{\"b\":\"/etc/passwd\"}}", "is not a file name"},
        {"{\"weight_map\":{\"b\":\"\"}}", "is not a file name"},
        {"{\"weight_map\":{\"b\":5}}", "(not a string)"},
        {"{\"weight_map\":[]}", "weight_map is missing"},
        {"[]", "weight_map is missing"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"a\":\"1.safetensors\"}}", "duplicate"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_text(index, bad[i].index);
        FAILS(TM_INPUT, bad[i].why, tm_safetensors_open_model(scratch("m"), &st, err));
        assert_null(st);
    }
    /* the same tensor in two shards */
    OK(tm_safetensors_write(scratch("m/1.safetensors"), both, 2, NULL, err));
    put_text(index, "{\"weight_map\":{\"b\":\"2.safetensors\",\"a\":\"1.safetensors\"}}");
    FAILS(TM_INPUT, "1.safetensors: tensor \"b\" is here", tm_safetensors_open_model(scratch("m"), &st, err));
    /* a single file goes first */
    OK(tm_safetensors_write(scratch("m/model.safetensors"), both, 2, NULL, err));
    OK(tm_safetensors_open_model(scratch("m"), &st, err));
    tm_safetensors_close(st);
}

static void check_listing(const char *dir, const char *expected)
{
    char **names, all[512] = "";
    size_t count;
    OK(tm_dir_list(scratch(dir), &names, &count, err));
    for (size_t i = 0; i < count; i++) {
        strcat(all, names[i]);
        strcat(all, " ");
    }
    tm_names_free(names, count);
    assert_string_equal(all, expected);
}

/* Sharded above the limit, as transformers divides; one form replaces the other. */
static void writes_models(void **state)
{
    (void)state;
    char x[64] = {0};
    tm_st_tensor t[5];
    static const int64_t sizes[] = {4, 4, 20, 3, 8}; /* limit 10: {e d}, {c} of its own, {b}, {a} */
    static const char *const names[] = {"e", "d", "c", "b", "a"};
    for (int i = 0; i < 5; i++)
        t[i] = (tm_st_tensor){.name = names[i], .dtype = TM_U8, .ndim = 1, .shape = {sizes[i]}, .data = x};
    tm_safetensors *st;
    OK(tm_dir_create(scratch("w1"), err));
    OK(tm_hf_write_model(scratch("w1"), t, 5, 10, err));
    check_listing("w1",
                  "model-00001-of-00004.safetensors model-00002-of-00004.safetensors model-00003-of-00004.safetensors "
                        "model-00004-of-00004.safetensors model.safetensors.index.json ");
    char *index = slurp(scratch("w1/model.safetensors.index.json"), NULL);
    assert_string_equal(index, "{\n  \"metadata\": {\n    \"total_size\": 39\n  },\n  \"weight_map\": {\n"
                               "    \"a\": \"model-00004-of-00004.safetensors\",\n    \"b\": \"model-00003-of-00004.safetensors\",\n"
                               "    \"c\": \"model-00001-of-00004.safetensors\",\n    \"d\": \"model-00002-of-00004.safetensors\",\n"
                               "    \"e\": \"model-00002-of-00004.safetensors\"\n  }\n}\n");
    free(index);
    OK(tm_safetensors_open_model(scratch("w1"), &st, err));
    assert_int_equal(tm_safetensors_count(st), 5);
    assert_string_equal(tm_safetensors_metadata(st, "format"), "pt");
    tm_safetensors_close(st);
    OK(tm_hf_write_model(scratch("w1"), t, 2, 10, err));
    check_listing("w1", "model.safetensors ");
    OK(tm_hf_write_model(scratch("w1"), t, 4, 10, err));
    check_listing("w1",
                  "model-00001-of-00003.safetensors model-00002-of-00003.safetensors model-00003-of-00003.safetensors "
                        "model.safetensors.index.json ");
    OK(tm_hf_write_model(scratch("w1"), t, 5, TM_HF_SHARD_BYTES, err));
    check_listing("w1", "model.safetensors ");
    put_text("w1/config.json", "{}");
    put_text("w1/tokenizer.json", "{\"t\":1}");
    put_text("w1/other.txt", "");
    OK(tm_dir_create(scratch("w2"), err));
    OK(tm_hf_copy_files(scratch("w1"), scratch("w2"), err));
    OK(tm_hf_copy_files(scratch("w1"), scratch("w1"), err));
    check_listing("w2", "config.json tokenizer.json ");
    tm_names files;
    put_text("w1/extra.safetensors", "");
    OK(tm_hf_model_files(scratch("w1"), &files, err));
    assert_int_equal(files.count, 3);
    assert_string_equal(files.item[0], "config.json");
    assert_string_equal(files.item[1], "extra.safetensors");
    assert_string_equal(files.item[2], "model.safetensors");
    tm_names_deinit(&files);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(manifest), cmocka_unit_test(same_bytes), cmocka_unit_test(values_are_read), cmocka_unit_test(rules),
        cmocka_unit_test(torn_and_flipped), cmocka_unit_test(kept_inputs),
        cmocka_unit_test(random_round_trips), cmocka_unit_test(writer_refuses),
        cmocka_unit_test(model_folders), cmocka_unit_test(writes_models),
    };
    return cmocka_run_group_tests_name("safetensors", tests, scratch_begin, scratch_end);
}
