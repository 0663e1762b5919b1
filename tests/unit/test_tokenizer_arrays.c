/* Tokenizers in arrays, as GGUF files hold them: against llama.cpp's ids of the files where they are found, and
 * against the tokenizer.json that the same vocabulary came from. */
#include "text/tokenizer_parts.h"

#include "base/file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CASES "../shared/data/tokenizer_cases/llamacpp/"

static tm_error err;

static void ok(tm_status st)
{
    if (st != TM_OK)
        fail_msg("%s", err.message);
}

/* ---- llama.cpp's own vocabularies ---- */

static void llamacpp(const char *name)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    char path[200];
    snprintf(path, sizeof path, CASES "ggml-vocab-%s.gguf", name);
    if (!tm_path_exists(path)) {
        printf("skip: the vocabularies of the shared data are not there\n");
        skip();
    }
    tm_buf in = {0}, out = {0};
    tm_tokenizer *tok;
    tm_tokens *scratch;
    ok(tm_tokenizer_open(path, &tok, &err));
    ok(tm_tokens_create(tok, &scratch, &err));
    strcat(path, ".out");
    ok(tm_file_read(path, 1 << 20, &out, &err));
    ok(tm_file_read(CASES "ggml-vocab-all.inp", 1 << 20, &in, &err));
    int count = 0;
    for (char *text = in.data, *line = out.data, *next; text; text = next, count++) {
        char *end = strstr(text, mark), *newline = strchrnul(line, '\n'), *p = line;
        next = end ? end + sizeof mark - 1 : NULL;
        tm_ids ids = {0};
        ok(tm_tokenizer_encode(tok, scratch, text, end ? (size_t)(end - text) : strlen(text), false, &ids, &err));
        for (size_t i = 0; i < ids.count; i++) {
            char *after;
            long id = strtol(p, &after, 10);
            if (after == p || after > newline || id != ids.id[i])
                fail_msg("%s, text %d: id %zu is %d, expected %ld", path, count, i, ids.id[i], id);
            p = after;
        }
        assert_int_equal(strspn(p, " "), newline - p);
        tm_ids_deinit(&ids);
        line = *newline ? newline + 1 : newline;
    }
    assert_int_equal(count, 47);
    tm_tokens_destroy(scratch);
    tm_tokenizer_close(tok);
    tm_buf_deinit(&in);
    tm_buf_deinit(&out);
}

static void llamacpp_gpt2(void **state) { (void)state; llamacpp("gpt-2"); }
static void llamacpp_llama(void **state) { (void)state; llamacpp("llama-spm"); }

/* ---- committed vocabularies, taken apart ---- */

typedef struct parts {
    tm_tokenizer_parts p;
    json_t *root;
    tm_token_text *token, *merge;
    float *score;
    int32_t *type;
    char *joined; /* merges as "a b" */
} parts;

static json_t *load(const char *path)
{
    json_t *json = json_load_file(path, JSON_ALLOW_NUL, NULL);
    assert_non_null(json);
    return json;
}

/* The arrays that a converter would write for the tokenizer.json. */
static parts take_apart(const char *path, const char *model, const char *pre)
{
    parts a = {.p = TM_TOKENIZER_PARTS_NONE, .root = load(path)};
    json_t *m = json_object_get(a.root, "model"), *vocab = json_object_get(m, "vocab"), *merges = json_object_get(m, "merges"), *value;
    const char *key;
    size_t count = json_object_size(vocab), bytes = 0, i;
    json_array_foreach(json_object_get(a.root, "added_tokens"), i, value)
        count += (size_t)json_integer_value(json_object_get(value, "id")) >= count;
    a.token = calloc(count, sizeof *a.token);
    a.score = calloc(count, sizeof *a.score);
    a.type = calloc(count, sizeof *a.type);
    a.merge = calloc(json_array_size(merges) + 1, sizeof *a.merge);
    a.joined = calloc(json_array_size(merges) + 1, 64);
    json_object_foreach(vocab, key, value)
    {
        size_t id = (size_t)json_integer_value(value);
        a.token[id] = (tm_token_text){key, strlen(key)};
        a.type[id] = strlen(key) == 6 && !strncmp(key, "<0x", 3) ? TM_PIECE_BYTE : TM_PIECE_NORMAL;
        a.score[id] = -1e6f;
    }
    for (i = 0; i < json_array_size(merges); i++) {
        const json_t *item = json_array_get(merges, i);
        char *at = a.joined + bytes, whole[1024];
        if (json_is_string(item))
            strcpy(at, json_string_value(item));
        else
            sprintf(at, "%s %s", json_string_value(json_array_get(item, 0)), json_string_value(json_array_get(item, 1)));
        a.merge[i] = (tm_token_text){at, strlen(at)};
        bytes += strlen(at) + 1;
        char *space = strchr(at, ' ');
        sprintf(whole, "%.*s%s", (int)(space - at), at, space + 1);
        float *score = &a.score[json_integer_value(json_object_get(vocab, whole))];
        if (*score < -9e5f)
            *score = -(float)i;
    }
    json_array_foreach(json_object_get(a.root, "added_tokens"), i, value)
    {
        size_t id = (size_t)json_integer_value(json_object_get(value, "id"));
        const char *text = json_string_value(json_object_get(value, "content"));
        a.token[id] = (tm_token_text){text, strlen(text)};
        a.type[id] = !strcmp(text, "<unk>") ? TM_PIECE_UNKNOWN
                     : json_is_true(json_object_get(value, "special")) ? TM_PIECE_CONTROL : TM_PIECE_USER_DEFINED;
    }
    a.p.model = model;
    a.p.pre = pre;
    a.p.token = a.token;
    a.p.count = count;
    a.p.score = a.score;
    a.p.type = a.type;
    a.p.merge = a.merge;
    a.p.merge_count = json_array_size(merges);
    return a;
}

static void parts_free(parts *a)
{
    json_decref(a->root);
    free(a->token);
    free(a->merge);
    free(a->score);
    free(a->type);
    free(a->joined);
}

static void equal_to_file(const char *dir, const char *model, const char *pre)
{
    char path[200];
    tm_tokenizer *file, *arrays;
    tm_tokens *a, *b;
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    parts p = take_apart(path, model, pre);
    p.p.bos = 1;
    p.p.eos = 2;
    p.p.add_bos = 0;
    ok(tm_tokenizer_open(dir, &file, &err));
    ok(tm_tokenizer_from_parts(&p.p, "arrays", &arrays, &err));
    assert_int_equal(tm_tokenizer_bos(arrays), 1);
    assert_int_equal(tm_tokenizer_eos(arrays), 2);
    ok(tm_tokens_create(file, &a, &err));
    ok(tm_tokens_create(arrays, &b, &err));
    snprintf(path, sizeof path, "%s/cases.json", dir);
    json_t *cases = load(path), *c;
    size_t i;
    json_array_foreach(cases, i, c)
    {
        const json_t *text = json_object_get(c, "text");
        tm_ids x = {0}, y = {0};
        ok(tm_tokenizer_encode(file, a, json_string_value(text), json_string_length(text), false, &x, &err));
        ok(tm_tokenizer_encode(arrays, b, json_string_value(text), json_string_length(text), false, &y, &err));
        if (x.count != y.count || (x.count && memcmp(x.id, y.id, x.count * sizeof *x.id)))
            fail_msg("%s: \"%s\"", dir, json_string_value(text));
        tm_ids_deinit(&x);
        tm_ids_deinit(&y);
    }
    json_decref(cases);
    tm_tokens_destroy(a);
    tm_tokens_destroy(b);
    tm_tokenizer_close(file);
    tm_tokenizer_close(arrays);
    parts_free(&p);
}

static void scores_equal_merges(void **state) { (void)state; equal_to_file("tests/data/tokenizers/stories260K", "llama", NULL); }
static void bytelevel_equal(void **state) { (void)state; equal_to_file("tests/data/tokenizers/bytelevel", "gpt2", "qwen2"); }

/* What goes around a text, and the space before it. */
static void flags(void **state)
{
    (void)state;
    for (int bits = 0; bits < 8; bits++) {
        parts p = take_apart("tests/data/tokenizers/stories260K/tokenizer.json", "llama", NULL);
        tm_tokenizer *tok;
        tm_tokens *scratch;
        tm_ids ids = {0};
        p.p.bos = 1;
        p.p.eos = 2;
        p.p.add_bos = bits & 1 ? 0 : -1; /* -1: as the kind has it, BOS */
        p.p.add_eos = bits & 2 ? 1 : -1;
        p.p.add_space_prefix = bits & 4 ? 0 : -1;
        ok(tm_tokenizer_from_parts(&p.p, "arrays", &tok, &err));
        ok(tm_tokens_create(tok, &scratch, &err));
        ok(tm_tokenizer_encode(tok, scratch, "a", 1, true, &ids, &err));
        int32_t letter = tm_tokenizer_find(tok, bits & 4 ? "a" : "\xe2\x96\x81" "a"), expected[3];
        size_t n = 0;
        if (!(bits & 1))
            expected[n++] = 1;
        expected[n++] = letter;
        if (bits & 2)
            expected[n++] = 2;
        assert_int_equal(ids.count, n);
        assert_memory_equal(ids.id, expected, n * sizeof *expected);
        tm_ids_deinit(&ids);
        tm_tokens_destroy(scratch);
        tm_tokenizer_close(tok);
        parts_free(&p);
    }
}

static void damaged(void **state)
{
    (void)state;
    static const tm_token_text good[] = {{"a", 1}, {"b", 1}}, twice[] = {{"a", 1}, {"a", 1}}, broken[] = {{"a", 1}, {"\xff", 1}},
                               empty[] = {{"a", 1}, {"", 0}}, merge[] = {{"a c", 3}};
    static const float score[] = {0, -1}, nan_score[] = {0, NAN};
    static const int32_t odd[] = {1, 9};
    const struct { tm_tokenizer_parts p; const char *message; } cases[] = {
        {{.model = NULL, .token = good, .count = 2}, "tokenizer.ggml.model"},
        {{.model = "bert", .token = good, .count = 2}, "\"bert\""},
        {{.model = "llama"}, "0 tokens"},
        {{.model = "llama", .token = good, .count = 2}, "without scores"},
        {{.model = "llama", .token = good, .count = 2, .score = nan_score}, "not finite"},
        {{.model = "llama", .token = twice, .count = 2, .score = score}, "two pieces"},
        {{.model = "llama", .token = broken, .count = 2, .score = score}, "UTF-8"},
        {{.model = "t5", .token = empty, .count = 2, .score = score}, "0 bytes"},
        {{.model = "t5", .token = good, .count = 2, .score = score, .type = odd}, "type 9"},
        {{.model = "t5", .token = good, .count = 2, .score = score, .unk = 7}, "unk_id"},
        {{.model = "t5", .token = good, .count = 2, .score = score, .charsmap = "abc", .charsmap_size = 3}, "charsmap"},
        {{.model = "gpt2", .token = good, .count = 2, .pre = "odd"}, "\"odd\""},
        {{.model = "gpt2", .token = twice, .count = 2}, "duplicate"},
        {{.model = "gpt2", .token = broken, .count = 2}, "UTF-8"},
        {{.model = "gpt2", .token = empty, .count = 2}, "empty"},
        {{.model = "gpt2", .token = good, .count = 2, .merge = merge, .merge_count = 1}, "\"c\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tm_tokenizer *tok;
        tm_status st = tm_tokenizer_from_parts(&cases[i].p, "file.gguf", &tok, &err);
        if ((st != TM_INPUT && st != TM_UNSUPPORTED) || !strstr(err.message, cases[i].message) || !strstr(err.message, "file.gguf"))
            fail_msg("case %zu: %d \"%s\", expected \"%s\"", i, st, st ? err.message : "", cases[i].message);
        assert_null(tok);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llamacpp_gpt2), cmocka_unit_test(llamacpp_llama), cmocka_unit_test(scores_equal_merges),
        cmocka_unit_test(bytelevel_equal), cmocka_unit_test(flags), cmocka_unit_test(damaged),
    };
    return cmocka_run_group_tests_name("tokenizer_arrays", tests, NULL, NULL);
}
