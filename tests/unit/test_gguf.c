/* GGUF: what is accepted, what is refused and why, cut short anywhere, and ggml's blocks to the bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/json.h"
#include "folder.h"
#include "io/gguf_model.h"
#include "io/gguf_write.h"

#include <math.h>
#include <time.h>

/* --- Damaged files --- */

/* Each as the manifest says: exit code 3, the message naming the file and the reason. */
static void manifest(void **state)
{
    (void)state;
    static const struct { const char *file, *why; } reasons[] = {
        {"alignment_not_pow2", "general.alignment is 24"}, {"array_len_huge", "an array of 2305843009213693952 elements"},
        {"duplicate_key", "is there twice"}, {"nested_array", "an array of arrays"},
        {"string_len_huge", "is a string of 18446744073709551615 bytes"}, {"tensor_data_truncated", "16384 bytes at offset 0"},
        {"tensor_duplicate_name", "tensor \"t\" is there twice"}, {"tensor_offset_misaligned", "offset 4 is not a multiple"},
        {"tensor_row_not_block_multiple", "a row of 4 elements"}, {"truncated_header", "cut short?"},
        {"value_type_unknown", "unknown value type 13"}, {"version_999", "version 999"},
    };
    json_t *list, *entry;
    size_t i, seen = 0;
    OK(tm_json_read("tests/data/malformed/gguf/manifest.json", &list, err));
    json_array_foreach(list, i, entry) {
        char path[256];
        tm_gguf *g;
        tm_error err = {0};
        const char *file = json_string_value(json_object_get(entry, "file"));
        assert_string_equal(json_string_value(json_object_get(entry, "expect")), "reject");
        snprintf(path, sizeof path, "tests/data/malformed/gguf/%s", file);
        tm_status st = tm_gguf_open(path, &g, &err);
        assert_int_equal(tm_status_exit_code(st), 3);
        assert_null(g);
        assert_non_null(strstr(err.message, path));
        for (size_t r = 0; r < sizeof reasons / sizeof *reasons; r++)
            if (strncmp(file, reasons[r].file, strlen(reasons[r].file)) == 0 && ++seen && !strstr(err.message, reasons[r].why))
                fail_msg("%s: expected '%s'", err.message, reasons[r].why);
    }
    assert_int_equal(seen, sizeof reasons / sizeof *reasons);
    json_decref(list);
}

/* --- Files made here --- */

static void put(tm_buf *out, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        tm_buf_char(out, (char)(value >> 8 * i));
}

static void put_text(tm_buf *out, const char *text)
{
    put(out, strlen(text), 8);
    tm_buf_text(out, text);
}

static void put_head(tm_buf *out, uint32_t version, uint64_t tensors, uint64_t values)
{
    tm_buf_text(out, "GGUF");
    put(out, version, 4);
    put(out, tensors, 8);
    put(out, values, 8);
}

static void put_tensor(tm_buf *out, const char *name, uint32_t type, uint64_t offset, int dims, ...)
{
    va_list list;
    put_text(out, name);
    put(out, (uint64_t)dims, 4);
    va_start(list, dims);
    for (int i = 0; i < dims; i++)
        put(out, (uint64_t)va_arg(list, int64_t), 8);
    va_end(list);
    put(out, type, 4);
    put(out, offset, 8);
}

static void pad(tm_buf *out, size_t data)
{
    while (out->size % 32)
        tm_buf_char(out, 0);
    for (size_t i = 0; i < data; i++)
        tm_buf_char(out, (char)i);
}

static void refuse(tm_buf *file, tm_status code, const char *why)
{
    tm_gguf *g;
    FAILS(code, "f.gguf", tm_gguf_view(file->data, file->size, "f.gguf", &g, err));
    FAILS(code, why, tm_gguf_view(file->data, file->size, "f.gguf", &g, err));
    assert_null(g);
    tm_buf_deinit(file);
    *file = (tm_buf){0};
}

static void heads(void **state)
{
    (void)state;
    tm_buf f = {0};
    tm_buf_text(&f, "GGML");
    put(&f, 3, 4);
    refuse(&f, TM_INPUT, "does not begin with");
    put_head(&f, 1, 0, 0);
    refuse(&f, TM_UNSUPPORTED, "version 1");
    put_head(&f, 0x03000000, 0, 0);
    refuse(&f, TM_UNSUPPORTED, "big-endian");
    put_head(&f, 0, 0, 0);
    refuse(&f, TM_UNSUPPORTED, "version 0");
    put_head(&f, 3, 1, 0);
    refuse(&f, TM_INPUT, "do not fit");
    put_head(&f, 3, 0, UINT64_MAX);
    refuse(&f, TM_INPUT, "do not fit");
    put_head(&f, 3, UINT64_MAX, 0);
    refuse(&f, TM_INPUT, "do not fit");
    for (uint32_t version = 2; version <= 3; version++) {
        tm_gguf *g;
        put_head(&f, version, 0, 0);
        OK(tm_gguf_view(f.data, f.size, "f.gguf", &g, err));
        assert_int_equal(tm_gguf_tensors(g) + tm_gguf_values(g), 0);
        tm_gguf_close(g);
        tm_buf_deinit(&f);
        f = (tm_buf){0};
    }
}

static void tensor_records(void **state)
{
    (void)state;
    tm_buf f = {0};
    struct { uint32_t type; uint64_t offset; int dims; int64_t a, b, c, d; tm_status code; const char *why; } cases[] = {
        {0, 0, 5, 1, 1, 1, 1, TM_INPUT, "5 dimensions"}, {0, 0, 0, 1, 1, 1, 1, TM_INPUT, "0 dimensions"},
        {0, 0, 2, -1, 4, 1, 1, TM_INPUT, "dimension 0 is -1"}, {0, 0, 2, 4, 0, 1, 1, TM_INPUT, "dimension 1 is 0"},
        {0, 0, 4, INT64_MAX / 2, 3, 3, 3, TM_INPUT, "dimension 1"}, {0, 0, 2, 1L << 31, 1L << 31, 1, 1, TM_INPUT, "is too large"},
        {0, 0, 1, 65, 1, 1, 1, TM_INPUT, "260 bytes at offset 0"}, {0, 32, 1, 57, 1, 1, 1, TM_INPUT, "228 bytes at offset 32"},
        {0, UINT64_MAX - 31, 1, 8, 1, 1, 1, TM_INPUT, "at offset 18446744073709551584"}, {16, 0, 1, 256, 1, 1, 1, TM_UNSUPPORTED, "IQ2_XXS"},
        {4, 0, 1, 32, 1, 1, 1, TM_UNSUPPORTED, "type 4 (unknown)"}, {UINT32_MAX, 0, 1, 32, 1, 1, 1, TM_UNSUPPORTED, "unknown"},
        {14, 0, 1, 128, 1, 1, 1, TM_INPUT, "a row of 128 elements is not a multiple of Q6_K's blocks of 256"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_head(&f, 3, 1, 0);
        put_tensor(&f, "t", cases[i].type, cases[i].offset, cases[i].dims, cases[i].a, cases[i].b, cases[i].c, cases[i].d);
        pad(&f, 256);
        refuse(&f, cases[i].code, cases[i].why);
    }
    put_head(&f, 3, 2, 0);
    put_tensor(&f, "a", 0, 0, 1, (int64_t)9);
    put_tensor(&f, "b", 0, 32, 1, (int64_t)9);
    pad(&f, 256);
    refuse(&f, TM_INPUT, "\"a\" and \"b\" overlap");
    put_head(&f, 3, 1, 0);
    put_tensor(&f, "a\xff", 0, 0, 1, (int64_t)9);
    pad(&f, 256);
    refuse(&f, TM_INPUT, "not UTF-8");
    put_head(&f, 3, 1, 0);
    put_tensor(&f, "0123456789012345678901234567890123456789012345678901234567890123", 0, 0, 1, (int64_t)9);
    pad(&f, 256);
    refuse(&f, TM_INPUT, "has 64 bytes, expected 1 to 63");
}

/* A file with every type of value and three tensors. */
static void whole_file(tm_buf *f)
{
    static const int bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    put_head(f, 3, 3, 24);
    for (uint32_t type = 0; type < 13; type++)
        for (int array = 0; array < 2; array++) {
            char key[32];
            if (type == TM_GGUF_ARRAY)
                continue;
            snprintf(key, sizeof key, "%s.%u", array ? "array" : "one", type);
            put_text(f, key);
            if (array) {
                put(f, TM_GGUF_ARRAY, 4);
                put(f, type, 4);
                put(f, 2, 8);
            } else
                put(f, type, 4);
            for (int i = 0; i <= array; i++) {
                float single = -1.5f + (float)i;
                double twice = -1.5 + i;
                uint64_t bits = type == TM_GGUF_BOOL ? (uint64_t)!i : (uint64_t)-3 + (uint64_t)i;
                if (type == TM_GGUF_F32)
                    memcpy(&bits, &single, 4);
                if (type == TM_GGUF_F64)
                    memcpy(&bits, &twice, 8);
                if (type == TM_GGUF_STRING)
                    put_text(f, i ? "" : "two words");
                else
                    put(f, bits, bytes[type]);
            }
        }
    put_tensor(f, "packed", TM_GGML_Q8_0, 64, 2, (int64_t)32, (int64_t)2);
    put_tensor(f, "plain", TM_GGML_F32, 0, 3, (int64_t)2, (int64_t)3, (int64_t)2);
    put_tensor(f, "half", TM_GGML_F16, 160, 1, (int64_t)5);
    pad(f, 170);
}

static void values(void **state)
{
    (void)state;
    tm_buf f = {0};
    tm_gguf *g;
    whole_file(&f);
    OK(tm_gguf_view(f.data, f.size, "f.gguf", &g, err));
    int64_t whole;
    double real;
    bool flag;
    tm_gguf_text text, *texts;
    float *floats;
    int32_t *ints;
    OK(tm_gguf_get_int(g, "one.1", 0, &whole, err));
    assert_int_equal(whole, -3);
    OK(tm_gguf_get_int(g, "one.0", 0, &whole, err));
    assert_int_equal(whole, 253);
    OK(tm_gguf_get_int(g, "one.11", 0, &whole, err));
    assert_int_equal(whole, -3);
    OK(tm_gguf_get_int(g, "none", 7, &whole, err));
    assert_int_equal(whole, 7);
    FAILS(TM_INPUT, "\"one.10\" is u64, expected an integer", tm_gguf_get_int(g, "one.10", 0, &whole, err));
    FAILS(TM_INPUT, "\"array.4\" is an array of u32", tm_gguf_get_int(g, "array.4", 0, &whole, err));
    OK(tm_gguf_get_number(g, "one.6", 0, &real, err));
    assert_true(real == -1.5);
    OK(tm_gguf_get_number(g, "one.12", 0, &real, err));
    assert_true(real == -1.5);
    OK(tm_gguf_get_number(g, "one.3", 0, &real, err));
    assert_true(real == -3);
    FAILS(TM_INPUT, "expected a number", tm_gguf_get_number(g, "one.8", 0, &real, err));
    OK(tm_gguf_get_bool(g, "one.7", false, &flag, err));
    assert_true(flag);
    FAILS(TM_INPUT, "expected a bool", tm_gguf_get_bool(g, "one.0", false, &flag, err));
    OK(tm_gguf_get_text(g, "one.8", &text, err));
    assert_int_equal(text.size, 9);
    assert_memory_equal(text.text, "two words", 9);
    FAILS(TM_INPUT, "expected a string", tm_gguf_get_text(g, "array.8", &text, err));
    OK(tm_gguf_get_texts(g, "array.8", &texts, &whole, err));
    assert_int_equal(whole, 2);
    assert_int_equal(texts[0].size, 9);
    assert_int_equal(texts[1].size, 0);
    free(texts);
    OK(tm_gguf_get_floats(g, "array.6", &floats, &whole, err));
    assert_true(whole == 2 && floats[0] == -1.5f && floats[1] == -0.5f);
    free(floats);
    OK(tm_gguf_get_ints(g, "array.5", &ints, &whole, err));
    assert_true(whole == 2 && ints[0] == -3 && ints[1] == -2);
    free(ints);
    FAILS(TM_INPUT, "integers of 32 bits", tm_gguf_get_ints(g, "array.10", &ints, &whole, err));
    FAILS(TM_INPUT, "an array of strings", tm_gguf_get_texts(g, "array.5", &texts, &whole, err));
    FAILS(TM_INPUT, "an array of floats", tm_gguf_get_floats(g, "array.5", &floats, &whole, err));
    const tm_gguf_tensor *t = tm_gguf_tensor_find(g, "plain");
    assert_int_equal(t->count, 12);
    assert_int_equal(t->bytes, 48);
    assert_true(t->ne[0] == 2 && t->ne[1] == 3 && t->ne[2] == 2);
    assert_null(tm_gguf_tensor_find(g, "plai"));
    assert_int_equal(tm_gguf_tensor_find(g, "packed")->data - t->data, 64);
    tm_gguf_close(g);
    tm_buf_deinit(&f);
}

/* Cut after any number of bytes, and with any byte changed: an error or a table that can be read whole. */
static void cut_and_changed(void **state)
{
    (void)state;
    tm_buf f = {0};
    tm_gguf *g;
    volatile unsigned sum = 0;
    whole_file(&f);
    for (size_t n = 0; n < f.size; n++) {
        tm_error err = {0};
        uint8_t *copy = malloc(n ? n : 1);
        memcpy(copy, f.data, n);
        assert_int_not_equal(tm_gguf_view(copy, n, "f.gguf", &g, &err), TM_OK);
        assert_non_null(strstr(err.message, "f.gguf"));
        free(copy);
    }
    uint32_t seed = (uint32_t)time(NULL);
    srand(seed);
    for (int k = 0; k < 20000; k++) {
        tm_error err = {0};
        size_t at = (size_t)rand() % f.size;
        char was = f.data[at];
        f.data[at] = (char)rand();
        if (tm_gguf_view(f.data, f.size, "f.gguf", &g, &err) == TM_OK) {
            for (int64_t i = 0; i < tm_gguf_tensors(g); i++)
                for (int64_t b = 0; b < tm_gguf_tensor_at(g, i)->bytes; b++)
                    sum += tm_gguf_tensor_at(g, i)->data[b];
            tm_gguf_close(g);
        } else if (!strstr(err.message, "f.gguf"))
            fail_msg("seed %u: %s", seed, err.message);
        f.data[at] = was;
    }
    tm_buf_deinit(&f);
}

/* --- Writing --- */

static tm_status count_up(void *context, int64_t tensor, int64_t row, int64_t rows, void *out, tm_error *err)
{
    const tm_gguf_writer *w = context;
    const tm_gguf_tensor *t = &w->tensor[tensor];
    (void)err;
    for (int64_t i = 0; i < rows * t->ne[0]; i++)
        ((float *)out)[i] = (float)(row * t->ne[0] + i);
    return TM_OK;
}

static void written(void **state)
{
    (void)state;
    tm_gguf_writer w = {0};
    tm_gguf *g;
    int64_t whole;
    OK(tm_gguf_add_tensor(&w, "large", TM_GGML_F32, 2, (int64_t[]){1000, 5003}, err));
    OK(tm_gguf_add_tensor(&w, "a", TM_GGML_F32, 1, (int64_t[]){3}, err));
    FAILS(TM_FAILED, "cannot be written", tm_gguf_add_tensor(&w, "q", TM_GGML_Q8_0, 1, (int64_t[]){33}, err));
    FAILS(TM_FAILED, "cannot be written",
          tm_gguf_add_tensor(&w, "0123456789012345678901234567890123456789012345678901234567890123", TM_GGML_F32, 1, (int64_t[]){3}, err));
    tm_gguf_put_u32(&w, "u", 7);
    tm_gguf_put_word(&w, "general.architecture", "llama");
    OK(tm_gguf_write(&w, scratch("w.gguf"), count_up, &w, err));
    OK(tm_gguf_open(scratch("w.gguf"), &g, err));
    OK(tm_gguf_get_int(g, "u", 0, &whole, err));
    assert_int_equal(whole, 7);
    const tm_gguf_tensor *t = tm_gguf_tensor_find(g, "large");
    for (int64_t i = 0; i < t->count; i++) {
        float x;
        memcpy(&x, t->data + 4 * i, 4);
        assert_true(x == (float)i);
    }
    tm_gguf_close(g);
    tm_gguf_writer_deinit(&w);
}

/* --- Blocks --- */

static const struct { const char *name; uint32_t type; } kinds[] = {
    {"q4_0", 2}, {"q4_1", 3}, {"q5_0", 6}, {"q5_1", 7}, {"q8_0", 8}, {"q2_K", 10}, {"q3_K", 11}, {"q4_K", 12},
    {"q5_K", 13}, {"q6_K", 14}, {"iq4_nl", 20}, {"iq4_xs", 23}, {"tq2_0", 35},
};

static char *quant(const char *name, const char *end, size_t *size)
{
    char path[128];
    snprintf(path, sizeof path, "tests/data/quant/ggml/%s%s", name, end);
    return slurp(path, size);
}

/* The reference's bytes unpack to the reference's floats, and its floats pack to its bytes. */
static void reference_blocks(void **state)
{
    (void)state;
    enum { N = 1024 };
    size_t n;
    char *input = quant("input", ".f32", &n);
    assert_int_equal(n, 4 * N);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        const tm_ggml_type *type = tm_ggml_type_of(kinds[k].type);
        char *packed = quant(kinds[k].name, ".bin", &n), *expected = quant(kinds[k].name, ".deq.f32", NULL);
        float out[N];
        uint8_t again[4 * N];
        assert_int_equal(n, N / type->block * type->bytes);
        tm_ggml_unpack(type, packed, out, N);
        for (int i = 0; i < N; i++)
            if (memcmp(&out[i], expected + 4 * i, 4) != 0)
                fail_msg("%s: element %d", kinds[k].name, i);
        if (type->pack) {
            tm_ggml_pack(type, (const float *)input, again, N);
            assert_memory_equal(again, packed, n);
        }
        free(packed);
        free(expected);
    }
    free(input);
}

/* Of fresh inputs: the error is within what the bits allow, zeros stay zeros, and one block is as good alone. */
static void fresh_blocks(void **state)
{
    (void)state;
    static const struct { uint32_t type; double rms; } bounds[] = { /* of a normal distribution, relative */
        {2, 0.11}, {6, 0.055}, {7, 0.05}, {8, 0.0065}, {12, 0.08}, {13, 0.04}, {14, 0.022},
    };
    enum { N = 256 * 64 };
    static float x[N], y[N], z[256];
    static uint8_t packed[4 * N], alone[1024];
    uint32_t seed = (uint32_t)time(NULL);
    srand(seed);
    for (int i = 0; i < N; i++) {
        x[i] = 0;
        for (int k = 0; k < 12; k++)
            x[i] += (float)rand() / (float)RAND_MAX - 0.5f;
    }
    for (size_t k = 0; k < sizeof bounds / sizeof *bounds; k++) {
        const tm_ggml_type *type = tm_ggml_type_of(bounds[k].type);
        double error = 0, square = 0;
        tm_ggml_pack(type, x, packed, N);
        tm_ggml_unpack(type, packed, y, N);
        for (int i = 0; i < N; i++) {
            error += (double)(y[i] - x[i]) * (y[i] - x[i]);
            square += (double)x[i] * x[i];
        }
        if (!(sqrt(error / square) < bounds[k].rms))
            fail_msg("%s: relative error %g, seed %u", type->name, sqrt(error / square), seed);
        tm_ggml_pack(type, x + 256 * 7, alone, 256);
        assert_memory_equal(alone, packed + 256 * 7 / type->block * type->bytes, (size_t)(256 / type->block * type->bytes));
        memset(z, 0, sizeof z);
        tm_ggml_pack(type, z, alone, 256);
        tm_ggml_unpack(type, alone, y, 256);
        for (int i = 0; i < 256; i++)
            assert_true(y[i] == 0);
        for (int i = 0; i < 256; i++)
            z[i] = 1e-38f * (float)(i % 5 - 2);
        tm_ggml_pack(type, z, alone, 256); /* far below a 16-bit scale: no division by it */
        tm_ggml_unpack(type, alone, y, 256);
        for (int i = 0; i < 256; i++)
            assert_true(fabsf(y[i]) < 1e-6f);
    }
}

/* --- Names --- */

static void names(void **state)
{
    (void)state;
    static const char *const families[] = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2"};
    for (size_t f = 0; f < sizeof families / sizeof *families; f++) {
        const tm_gguf_family *family = tm_gguf_family_of(families[f]);
        assert_non_null(family);
        assert_non_null(tm_gguf_architecture(family->architecture, strlen(family->architecture)));
        for (int32_t r = 0; r < family->rows; r++) {
            tm_gguf_place place = {.row = &family->row[r], .layer = 107, .suffix = ".weight"}, back;
            char hf[128], gguf[128], again[128];
            assert_true(tm_gguf_spell(place.row->hf, &place, hf, sizeof hf));
            assert_true(tm_gguf_place_hf(family, hf, &back));
            assert_ptr_equal(back.row, place.row);
            assert_true(tm_gguf_spell(back.row->gguf, &back, gguf, sizeof gguf));
            assert_true(tm_gguf_place_gguf(family, gguf, &back));
            assert_true(tm_gguf_spell(back.row->hf, &back, again, sizeof again));
            assert_string_equal(hf, again);
        }
    }
    tm_gguf_place place;
    const tm_gguf_family *llama = tm_gguf_family_of("llama");
    static const char *const wrong[] = {"blk.01.attn_q.weight", "blk..attn_q.weight", "blk.1.attn_q", "blk.1.attn_qq.weight", "blk.1.attn_q.weight.lora_a",
                                        "token_embd", "blk.99999999.attn_q.weight", "blk.1", ""};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_false(tm_gguf_place_gguf(llama, wrong[i], &place));
    assert_null(tm_gguf_family_of("mamba"));
    assert_null(tm_gguf_architecture("llam", 4));
}

/* Row (h, i, p) of GGUF is row (h, p, i) of HF. */
static void permutation(void **state)
{
    (void)state;
    for (int64_t size = 2; size <= 24; size += 2)
        for (int64_t h = 0; h < 3; h++)
            for (int64_t i = 0; i < size / 2; i++)
                for (int64_t p = 0; p < 2; p++)
                    assert_int_equal(tm_gguf_permuted_row(h * size + 2 * i + p, size), h * size + p * size / 2 + i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(manifest),         cmocka_unit_test(heads),        cmocka_unit_test(tensor_records),
        cmocka_unit_test(values),           cmocka_unit_test(cut_and_changed), cmocka_unit_test(written),
        cmocka_unit_test(reference_blocks), cmocka_unit_test(fresh_blocks), cmocka_unit_test(names),
        cmocka_unit_test(permutation),
    };
    return cmocka_run_group_tests(tests, scratch_begin, scratch_end);
}
