/* Tokenizers against ids made by Hugging Face tokenizers, against damaged files, and against
 * themselves: scanners = PCRE2, pieces = the whole, stream = decode. */
#include "tokenizer_cases.h"

#include "base/philox.h"

#include <time.h>

/* ---- helpers ---- */

static uint32_t draw(uint64_t seed, uint32_t *at, uint32_t below)
{
    tm_philox p = tm_philox_at(seed, (*at)++, 0, 0, 0);
    return (uint32_t)tm_philox_below(p.word[0], p.word[1], below);
}

/* Text with what tokenizers stumble over: scripts, marks, white space of all kinds, contractions. */
static void random_text(uint64_t seed, uint32_t *at, tm_buf *out)
{
    static const char *const words[] = {
        "the", " the", "'s", "'LL", "'re", " ", "  ", "\n", "\r\n", "\t", "123", "4", "don't", "naïve", "привет", " мир", "漢字",
        "한국어", "مرحبا", "नमस्ते", "ไทย", "👨‍👩‍👧", "é", "\u00a0", "\u2003", "\u3000", "\u2028", "\xc2\x85", "½²", "Ⅷ", "ſ", "'ſ",
        "ﬁ", "!?", ".", "...", "<s>", "<|im_start|>", "▁", "_", "K", "\u200b", "\u180e", "<0x0A>", "ї", "Ⅳ", "a̱"};
    uint32_t n = 1 + draw(seed, at, 20);
    tm_buf_clear(out);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t code = draw(seed, at, 0x1f000), kind = draw(seed, at, 4);
        char c[4];
        if (kind == 0 && !(code >= 0xd800 && code < 0xe000))
            tm_buf_add(out, c, (size_t)tm_utf8_put(code, c));
        else
            for (uint32_t k = 1 + (kind == 1 ? draw(seed, at, 5) : 0), w = draw(seed, at, sizeof words / sizeof words[0]); k > 0; k--)
                tm_buf_text(out, words[w]);
    }
}

/* ---- the peer's ids ---- */

static void committed_cases(void **state)
{
    (void)state;
    static const char *const names[] = {DATA "stories260K", DATA "bytelevel"};
    for (int i = 0; i < 2; i++) {
        char path[200];
        snprintf(path, sizeof path, "%s/cases.json", names[i]);
        tm_tokenizer *tok = open_tokenizer(names[i]);
        json_t *cases = load(path);
        check_cases(tok, cases, names[i]);
        json_decref(cases);
        tm_tokenizer_close(tok);
    }
}

static void combined_parts(void **state)
{
    (void)state;
    check_patches("parts.json", 101);
}

/* Merges may be "a b" or ["a", "b"]. */
static void merges_as_text(void **state)
{
    (void)state;
    json_t *root = load(DATA "bytelevel/tokenizer.json"), *merges = json_object_get(json_object_get(root, "model"), "merges");
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const json_t *pair = json_array_get(merges, i);
        char text[200];
        snprintf(text, sizeof text, "%s %s", json_string_value(json_array_get(pair, 0)), json_string_value(json_array_get(pair, 1)));
        json_array_set_new(merges, i, json_string(text));
    }
    char *text = json_dumps(root, JSON_COMPACT);
    json_t *cases = load(DATA "bytelevel/cases.json");
    tm_tokenizer *tok;
    ok(tm_tokenizer_parse(text, strlen(text), "text", &tok, &err));
    check_cases(tok, cases, "merges as text");
    tm_tokenizer_close(tok);
    json_decref(cases);
    json_decref(root);
    free(text);
}

/* Opens a tokenizer of the shared data, unpacking it when it is packed; NULL: not there. */
static tm_tokenizer *shared_tokenizer(const char *name)
{
    char path[200], command[400], unpacked[] = "/tmp/temper-tokenizer-XXXXXX";
    snprintf(path, sizeof path, SHARED "tokenizers/%s/tokenizer.json", name);
    if (tm_path_exists(path)) {
        *strrchr(path, '/') = 0; /* with the folder's settings */
        return open_tokenizer(path);
    }
    strcat(path, ".xz");
    if (!tm_path_exists(path))
        return NULL;
    int fd = mkstemp(unpacked);
    assert_true(fd >= 0);
    close(fd);
    snprintf(command, sizeof command, "xz -dc %s > %s 2>/dev/null", path, unpacked);
    tm_tokenizer *tok = system(command) == 0 ? open_tokenizer(unpacked) : NULL;
    unlink(unpacked);
    return tok;
}

#define SKIP_WITHOUT(thing, why)              \
    do {                                      \
        if (!(thing)) {                       \
            printf("skip: %s\n", why);        \
            skip();                           \
        }                                     \
    } while (0)

static void multilingual(const char *cases, const char *name)
{
    char path[200];
    snprintf(path, sizeof path, SHARED "tokenizer_cases/multilingual/%s.json", cases);
    tm_tokenizer *tok = shared_tokenizer(name);
    SKIP_WITHOUT(tok && tm_path_exists(path), "the tokenizers of the shared data (or xz) are not there");
    json_t *root = load(path), *inputs = load(SHARED "tokenizer_cases/multilingual/inputs.json");
    const json_t *entries = json_object_get(root, "entries");
    tm_tokens *scratch;
    ok(tm_tokens_create(tok, &scratch, &err));
    assert_int_equal(json_array_size(entries), json_array_size(inputs));
    for (size_t i = 0; i < json_array_size(entries); i++) {
        const json_t *e = json_array_get(entries, i), *text = json_object_get(json_array_get(inputs, i), "text");
        const char *id = json_string_value(json_object_get(e, "id"));
        assert_string_equal(id, json_string_value(json_object_get(json_array_get(inputs, i), "id")));
        const json_t *ids = json_object_get(e, "input_ids");
        check_ids(tok, scratch, json_string_value(text), json_string_length(text), true, ids, id);
        check_text(tok, ids, false, json_object_get(e, "decoded_with_special"), id);
        check_text(tok, ids, true, json_object_get(e, "decoded_skip_special"), id);
    }
    tm_tokens_destroy(scratch);
    tm_tokenizer_close(tok);
    json_decref(root);
    json_decref(inputs);
}

static void multilingual_qwen(void **state) { (void)state; multilingual("qwen2_5", "qwen3"); }
static void multilingual_gpt2(void **state) { (void)state; multilingual("gpt2", "gpt2"); }
static void multilingual_t5(void **state) { (void)state; multilingual("t5_small", "t5-small"); }
static void multilingual_llama(void **state) { (void)state; multilingual("tinyllama", "llama2"); }

/* llama.cpp's texts and ids: texts between marks, a line of ids each. */
static void llamacpp(const char *cases, const char *name)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    char path[200];
    snprintf(path, sizeof path, SHARED "tokenizer_cases/llamacpp/ggml-vocab-%s.gguf.out", cases);
    tm_tokenizer *tok = shared_tokenizer(name);
    SKIP_WITHOUT(tok && tm_path_exists(path), "the tokenizers of the shared data (or xz) are not there");
    tm_buf in = {0}, out = {0};
    tm_tokens *scratch;
    ok(tm_file_read(SHARED "tokenizer_cases/llamacpp/ggml-vocab-all.inp", 1 << 20, &in, &err));
    ok(tm_file_read(path, 1 << 20, &out, &err));
    ok(tm_tokens_create(tok, &scratch, &err));
    int count = 0;
    for (char *text = in.data, *line = out.data, *next; text; text = next, count++) {
        char *end = strstr(text, mark), *newline = strchr(line, '\n');
        next = end ? end + sizeof mark - 1 : NULL;
        size_t size = end ? (size_t)(end - text) : strlen(text);
        json_t *ids = json_array();
        for (char *p = line, *after; p < newline; p = after) {
            long id = strtol(p, &after, 10);
            if (after == p || after > newline)
                break;
            json_array_append_new(ids, json_integer(id));
        }
        text[size] = 0;
        check_ids(tok, scratch, text, size, false, ids, path);
        json_decref(ids);
        line = newline + 1;
    }
    assert_int_equal(count, 47);
    tm_tokens_destroy(scratch);
    tm_tokenizer_close(tok);
    tm_buf_deinit(&in);
    tm_buf_deinit(&out);
}

static void llamacpp_gpt2(void **state) { (void)state; llamacpp("gpt-2", "gpt2"); }
static void llamacpp_llama(void **state) { (void)state; llamacpp("llama-spm", "llama2"); }
static void llamacpp_qwen(void **state) { (void)state; llamacpp("qwen2", "qwen2"); }

/* ---- against itself ---- */

static void scanners_equal_pcre2(void **state)
{
    (void)state;
    static const char *const patterns[] = {
        tm_gpt2_pattern,
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"};
    uint64_t seed = (uint64_t)time(NULL);
    uint32_t at = 0;
    tm_match_memory memory;
    tm_buf text = {0};
    ok(tm_match_memory_init(&memory, &err));
    for (size_t p = 0; p < 3; p++) {
        tm_finder scan = {0}, regex = {0};
        ok(tm_finder_regex(&scan, patterns[p], strlen(patterns[p]), true, "scan", &err));
        ok(tm_finder_regex(&regex, patterns[p], strlen(patterns[p]), false, "regex", &err));
        assert_int_equal(scan.kind, TM_FIND_SCAN);
        assert_int_equal(regex.kind, TM_FIND_REGEX);
        for (int round = 0; round < 3000; round++) {
            random_text(seed, &at, &text);
            tm_find a, b;
            bool more_a, more_b;
            size_t start_a = 0, end_a = 0, start_b = 0, end_b = 0;
            tm_find_start(&a, &scan, text.data, text.size);
            tm_find_start(&b, &regex, text.data, text.size);
            do {
                ok(tm_find_next(&a, &memory, &start_a, &end_a, &more_a, &err));
                ok(tm_find_next(&b, &memory, &start_b, &end_b, &more_b, &err));
                if (more_a != more_b || (more_a && (start_a != start_b || end_a != end_b)))
                    fail_msg("seed %llu, pattern %zu: \"%s\": [%zu, %zu), PCRE2 [%zu, %zu)", (unsigned long long)seed, p,
                             text.data, start_a, end_a, start_b, end_b);
            } while (more_a);
        }
        tm_finder_deinit(&scan);
        tm_finder_deinit(&regex);
    }
    tm_buf_deinit(&text);
    tm_match_memory_deinit(&memory);
}

/* A long text without a pre-tokeniser is cut where no merge can cross. Characters glued by a heap
 * merge over the whole text must give the same: affixes switch cutting off, so an affix that no
 * character can meet is the reference. */
static void cutting_changes_nothing(void **state)
{
    (void)state;
    json_t *root = load(DATA "stories260K/tokenizer.json");
    tm_tokenizer *cut = open_tokenizer(DATA "stories260K"), *whole;
    json_object_set_new(json_object_get(root, "model"), "ignore_merges", json_true()); /* looks whole texts up; else the same */
    char *json = json_dumps(root, JSON_COMPACT);
    ok(tm_tokenizer_parse(json, strlen(json), "whole", &whole, &err));
    uint64_t seed = (uint64_t)time(NULL);
    uint32_t at = 0;
    tm_tokens *a, *b;
    tm_ids x = {0}, y = {0};
    tm_buf text = {0}, all = {0};
    ok(tm_tokens_create(cut, &a, &err));
    ok(tm_tokens_create(whole, &b, &err));
    for (int round = 0; round < 300; round++) {
        tm_buf_clear(&all);
        do {
            random_text(seed, &at, &text);
            tm_buf_add(&all, text.data, text.size);
            tm_buf_text(&all, " once upon a time there was");
        } while (all.size < 200);
        x.count = y.count = 0;
        ok(tm_tokenizer_encode(cut, a, all.data, all.size, true, &x, &err));
        ok(tm_tokenizer_encode(whole, b, all.data, all.size, true, &y, &err));
        if (x.count != y.count || memcmp(x.id, y.id, x.count * sizeof *x.id))
            fail_msg("seed %llu: \"%s\"", (unsigned long long)seed, all.data);
    }
    tm_tokens_destroy(a);
    tm_tokens_destroy(b);
    tm_tokenizer_close(cut);
    tm_tokenizer_close(whole);
    tm_ids_deinit(&x);
    tm_ids_deinit(&y);
    tm_buf_deinit(&text);
    tm_buf_deinit(&all);
    json_decref(root);
    free(json);
}

/* Streaming gives what decoding at once gives, and only whole characters on the way. */
static void stream_equals_decode(void **state)
{
    (void)state;
    static const char *const names[] = {DATA "stories260K", DATA "bytelevel", DATA "unigram", DATA "spm/bpe.model", DATA "spm/unigram.model"};
    uint64_t seed = (uint64_t)time(NULL);
    uint32_t at = 0;
    for (int n = 0; n < 5; n++) {
        tm_tokenizer *tok = open_tokenizer(names[n]);
        tm_tokens *scratch;
        tm_buf text = {0}, whole = {0}, parts = {0};
        tm_ids ids = {0};
        ok(tm_tokens_create(tok, &scratch, &err));
        for (int round = 0; round < 400; round++) {
            tm_decode_stream stream = {0};
            random_text(seed, &at, &text);
            ids.count = 0;
            tm_buf_clear(&whole);
            tm_buf_clear(&parts);
            ok(tm_tokenizer_encode(tok, scratch, text.data, text.size, true, &ids, &err));
            ok(tm_tokenizer_decode(tok, ids.id, ids.count, false, &whole, &err));
            for (size_t i = 0; i < ids.count; i++) {
                size_t before = parts.size;
                ok(tm_decode_stream_push(&stream, tok, ids.id[i], &parts, &err));
                assert_int_equal(tm_utf8_prefix(tm_buf_str(&parts) + before, parts.size - before), parts.size - before);
            }
            ok(tm_decode_stream_flush(&stream, tok, &parts, &err));
            if (whole.size != parts.size || memcmp(tm_buf_str(&whole), tm_buf_str(&parts), whole.size))
                fail_msg("seed %llu: \"%s\" streams as \"%s\"", (unsigned long long)seed, tm_buf_str(&whole), tm_buf_str(&parts));
            tm_decode_stream_deinit(&stream);
        }
        tm_tokens_destroy(scratch);
        tm_tokenizer_close(tok);
        tm_buf_deinit(&text);
        tm_buf_deinit(&whole);
        tm_buf_deinit(&parts);
        tm_ids_deinit(&ids);
    }
}

/* Half a character that never goes on: nothing is printed until the flush, then U+FFFD. */
static void stream_of_broken_bytes(void **state)
{
    (void)state;
    tm_tokenizer *tok = open_tokenizer(DATA "bytelevel");
    tm_decode_stream stream = {0};
    tm_buf text = {0};
    int32_t id = tm_tokenizer_find(tok, "ð"); /* the byte F0 */
    assert_true(id >= 0);
    ok(tm_decode_stream_push(&stream, tok, id, &text, &err));
    assert_int_equal(text.size, 0);
    ok(tm_decode_stream_flush(&stream, tok, &text, &err));
    assert_string_equal(tm_buf_str(&text), "\xef\xbf\xbd");
    for (int i = 0; i < 200; i++) /* does not wait for ever */
        ok(tm_decode_stream_push(&stream, tok, id, &text, &err));
    assert_true(text.size > 3 * 150);
    assert_int_equal(tm_decode_stream_push(&stream, tok, 1 << 30, &text, &err), TM_INPUT);
    tm_decode_stream_deinit(&stream);
    tm_buf_deinit(&text);
    tm_tokenizer_close(tok);
}

/* A megabyte that nothing splits takes time in proportion: a square would take hours. */
static void long_runs(void **state)
{
    (void)state;
    static const char *const units[] = {"a", " ", "\n", "ab", "漢", "\xcc\x81", "'", "<", "▁"};
    static const char *const names[] = {DATA "stories260K", DATA "bytelevel"};
#ifdef TM_SANITIZE
    size_t size = 1 << 17;
#else
    size_t size = 1 << 20;
#endif
    for (int n = 0; n < 2; n++) {
        tm_tokenizer *tok = open_tokenizer(names[n]);
        tm_tokens *scratch;
        ok(tm_tokens_create(tok, &scratch, &err));
        for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
            tm_buf text = {0}, back = {0};
            tm_ids ids = {0};
            while (text.size < size)
                tm_buf_text(&text, units[u]);
            clock_t start = clock();
            ok(tm_tokenizer_encode(tok, scratch, text.data, text.size, false, &ids, &err));
            assert_true((double)(clock() - start) / CLOCKS_PER_SEC < 30);
            ok(tm_tokenizer_decode(tok, ids.id, ids.count, false, &back, &err));
            if (strcmp(units[u], "▁")) { /* which the first tokenizer turns into a space */
                assert_int_equal(back.size, text.size);
                assert_memory_equal(back.data, text.data, text.size);
            }
            tm_buf_deinit(&text);
            tm_buf_deinit(&back);
            tm_ids_deinit(&ids);
        }
        tm_tokens_destroy(scratch);
        tm_tokenizer_close(tok);
    }
}

/* Broken UTF-8 counts as U+FFFD; text may hold zeros; nothing is nothing. */
static void odd_text(void **state)
{
    (void)state;
    tm_tokenizer *tok = open_tokenizer(DATA "bytelevel");
    tm_tokens *scratch;
    tm_ids a = {0}, b = {0};
    tm_buf text = {0};
    ok(tm_tokens_create(tok, &scratch, &err));
    ok(tm_tokenizer_encode(tok, scratch, "a\xff\xe2\x82z\xed\xa0\x80", 8, false, &a, &err));
    ok(tm_tokenizer_encode(tok, scratch, "a\ufffd\ufffdz\ufffd\ufffd\ufffd", 17, false, &b, &err));
    assert_int_equal(a.count, b.count);
    assert_memory_equal(a.id, b.id, a.count * sizeof *a.id);
    a.count = 0;
    ok(tm_tokenizer_encode(tok, scratch, "a\0b", 3, false, &a, &err));
    ok(tm_tokenizer_decode(tok, a.id, a.count, false, &text, &err));
    assert_int_equal(text.size, 3);
    assert_memory_equal(text.data, "a\0b", 3);
    a.count = 0;
    ok(tm_tokenizer_encode(tok, scratch, "", 0, true, &a, &err));
    assert_int_equal(a.count, 0);
    int32_t none = tm_tokenizer_vocab_size(tok);
    assert_int_equal(tm_tokenizer_decode(tok, &none, 1, false, &text, &err), TM_INPUT);
    none = -1;
    assert_int_equal(tm_tokenizer_decode(tok, &none, 1, false, &text, &err), TM_INPUT);
    tm_tokens_destroy(scratch);
    tm_tokenizer_close(tok);
    tm_ids_deinit(&a);
    tm_ids_deinit(&b);
    tm_buf_deinit(&text);
}

static void looking_up(void **state)
{
    (void)state;
    tm_tokenizer *tok = open_tokenizer(DATA "stories260K");
    assert_int_equal(tm_tokenizer_vocab_size(tok), 512);
    assert_int_equal(tm_tokenizer_bos(tok), 1);
    assert_int_equal(tm_tokenizer_eos(tok), 2);
    assert_int_equal(tm_tokenizer_find(tok, "<s>"), 1);
    assert_int_equal(tm_tokenizer_find(tok, "nothing like it"), -1);
    assert_string_equal(tm_tokenizer_token(tok, 2), "</s>");
    assert_null(tm_tokenizer_token(tok, 512));
    assert_null(tm_tokenizer_token(tok, -1));
    assert_true(tm_tokenizer_is_special(tok, 1));
    assert_false(tm_tokenizer_is_special(tok, 300));
    assert_false(tm_tokenizer_is_special(tok, 512));
    tm_sha256 hash;
    ok(tm_sha256_file(DATA "stories260K/tokenizer.json", &hash, &err));
    assert_string_equal(tm_tokenizer_hash(tok)->hex, hash.hex);
    tm_tokenizer_close(tok);
    tok = open_tokenizer(DATA "bytelevel/tokenizer.json"); /* a file alone */
    assert_int_equal(tm_tokenizer_bos(tok), -1);
    tm_tokenizer_close(tok);
    tm_tokenizer_close(NULL);
    tm_tokens_destroy(NULL);
}

/* ---- first and last token ---- */

static void first_and_last_token(void **state)
{
    (void)state;
    static const struct { const char *tokenizer, *generation, *config; int32_t bos, eos; const char *message; } cases[] = {
        {NULL, NULL, NULL, -1, -1, NULL},
        {"{\"bos_token\": \"b\", \"eos_token\": {\"content\": \"c\"}}", "{\"bos_token_id\": 0}", NULL, 1, 2, NULL},
        {"{\"bos_token\": null, \"eos_token\": \"missing\"}", "{\"bos_token_id\": 2, \"eos_token_id\": [1, 0]}", NULL, 2, 1, NULL},
        {NULL, "{\"eos_token_id\": 2}", "{\"bos_token_id\": 0, \"eos_token_id\": 1}", 0, 2, NULL},
        {NULL, NULL, "{\"bos_token_id\": 99, \"eos_token_id\": null}", -1, -1, NULL},
        {"{\"bos_token\": 3}", NULL, NULL, 0, 0, "tokenizer_config.json: \"bos_token\" is no string"},
        {NULL, "{\"eos_token_id\": \"x\"}", NULL, 0, 0, "generation_config.json: \"eos_token_id\" is no integer"},
        {"{", NULL, NULL, 0, 0, "tokenizer_config.json:1: not valid JSON"},
    };
    char dir[] = "/tmp/temper-tokenizer-XXXXXX";
    assert_non_null(mkdtemp(dir));
    put(dir, "tokenizer.json", "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2}, \"merges\": []}}");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tm_tokenizer *tok;
        put(dir, "tokenizer_config.json", cases[i].tokenizer);
        put(dir, "generation_config.json", cases[i].generation);
        put(dir, "config.json", cases[i].config);
        tm_status st = tm_tokenizer_open(dir, &tok, &err);
        if (cases[i].message) {
            assert_int_equal(st, TM_INPUT);
            assert_non_null(strstr(err.message, cases[i].message));
            continue;
        }
        ok(st);
        assert_int_equal(tm_tokenizer_bos(tok), cases[i].bos);
        assert_int_equal(tm_tokenizer_eos(tok), cases[i].eos);
        tm_tokenizer_close(tok);
    }
    tm_tokenizer *tok;
    put(dir, "tokenizer.json", NULL);
    put(dir, "tokenizer_config.json", NULL);
    assert_int_not_equal(tm_tokenizer_open(dir, &tok, &err), TM_OK);
    assert_non_null(strstr(err.message, "tokenizer.json"));
    assert_null(tok);
    ok(tm_dir_remove(dir, &err));
}

/* ---- damaged and foreign files ---- */

#define MODEL(rest) "{\"model\": {\"type\": \"BPE\", " rest "}}"
#define PARTS(rest) "{\"model\": {\"vocab\": {\"a\": 0, \"b\": 1}, \"merges\": []}, " rest "}"

static void damaged_files(void **state)
{
    (void)state;
    static const struct { const char *text; tm_status status; const char *message; } cases[] = {
        {"", TM_INPUT, "not valid JSON"},
        {"[]", TM_INPUT, "not a JSON object"},
        {"{}", TM_INPUT, "model is missing"},
        {"{\"version\": \"2.0\"}", TM_UNSUPPORTED, "\"version\""},
        {"{\"version\": 1}", TM_INPUT, "\"version\""},
        {"{\"model\": {\"type\": \"WordPiece\"}}", TM_UNSUPPORTED, "\"WordPiece\""},
        {"{\"model\": []}", TM_INPUT, "model"},
        {MODEL("\"merges\": []"), TM_INPUT, "\"vocab\""},
        {MODEL("\"vocab\": {}, \"merges\": []"), TM_INPUT, "\"vocab\""},
        {MODEL("\"vocab\": [\"a\"], \"merges\": []"), TM_INPUT, "\"vocab\""},
        {MODEL("\"vocab\": {\"a\": \"0\"}, \"merges\": []"), TM_INPUT, "\"vocab\""},
        {MODEL("\"vocab\": {\"a\": -1}, \"merges\": []"), TM_INPUT, "\"vocab\""},
        {MODEL("\"vocab\": {\"a\": 4194304}, \"merges\": []"), TM_INPUT, "4194304"},
        {MODEL("\"vocab\": {\"a\": 9999999999}, \"merges\": []"), TM_INPUT, "9999999999"},
        {MODEL("\"vocab\": {\"a\": 1.5}, \"merges\": []"), TM_INPUT, "\"vocab\""},
        {MODEL("\"vocab\": {\"a\": 3, \"b\": 3}, \"merges\": []"), TM_INPUT, "both \"a\" and \"b\""},
        {MODEL("\"vocab\": {\"a\": 3, \"a\": 4}, \"merges\": []"), TM_INPUT, "duplicate"},
        {MODEL("\"vocab\": {\"a\": 0}"), TM_INPUT, "\"merges\""},
        {MODEL("\"vocab\": {\"a\": 0}, \"merges\": [\"a\"]"), TM_INPUT, "\"merges\"[0]"},
        {MODEL("\"vocab\": {\"a\": 0}, \"merges\": [\"a b c\"]"), TM_INPUT, "\"merges\"[0]"},
        {MODEL("\"vocab\": {\"a\": 0}, \"merges\": [\"a a\"]"), TM_INPUT, "\"aa\""},
        {MODEL("\"vocab\": {\"a\": 0}, \"merges\": [\"a x\"]"), TM_INPUT, "\"x\""},
        {MODEL("\"vocab\": {\"a\": 0}, \"merges\": [[\"a\"]]"), TM_INPUT, "\"merges\"[0]"},
        {MODEL("\"vocab\": {\"a\": 0}, \"merges\": [[\"a\", 3]]"), TM_INPUT, "\"merges\"[0]"},
        {MODEL("\"vocab\": {\"a\": 0, \"\": 1}, \"merges\": [\"a \"]"), TM_INPUT, "without text"},
        {MODEL("\"vocab\": {\"a\": 0}, \"merges\": [], \"dropout\": 0.1"), TM_UNSUPPORTED, "\"dropout\""},
        {MODEL("\"vocab\": {\"a\": 0}, \"merges\": [], \"fuse_unk\": 1"), TM_INPUT, "\"fuse_unk\""},
        {MODEL("\"vocab\": {\"a\": 0}, \"merges\": [], \"unk_token\": 1"), TM_INPUT, "\"unk_token\""},
        {PARTS("\"normalizer\": {\"type\": \"BertNormalizer\"}"), TM_UNSUPPORTED, "normalizer: a normaliser of type \"BertNormalizer\""},
        {PARTS("\"normalizer\": {}"), TM_INPUT, "\"type\""},
        {PARTS("\"normalizer\": 3"), TM_INPUT, "normalizer is no object"},
        {PARTS("\"normalizer\": {\"type\": \"Sequence\"}"), TM_INPUT, "\"normalizers\""},
        {PARTS("\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [null]}"), TM_INPUT, "normalizers[0] is null"},
        {PARTS("\"normalizer\": {\"type\": \"Replace\", \"content\": \"\"}"), TM_INPUT, "\"pattern\""},
        {PARTS("\"normalizer\": {\"type\": \"Replace\", \"content\": \"\", \"pattern\": {\"String\": \"\"}}"), TM_UNSUPPORTED, "empty"},
        {PARTS("\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"String\": \"a\"}}"), TM_INPUT, "\"content\""},
        {PARTS("\"normalizer\": {\"type\": \"Prepend\"}"), TM_INPUT, "\"prepend\""},
        {PARTS("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(\"}, \"behavior\": \"Isolated\"}"), TM_INPUT, "( without )"},
        {PARTS("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\p{Greek}\"}, \"behavior\": \"Isolated\"}"), TM_UNSUPPORTED, "\\p{Greek}"},
        {PARTS("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"a\"}, \"behavior\": \"Odd\"}"), TM_INPUT, "\"behavior\""},
        {PARTS("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"a\"}}"), TM_INPUT, "\"behavior\""},
        {PARTS("\"pre_tokenizer\": {\"type\": \"UnicodeScripts\"}"), TM_UNSUPPORTED, "\"UnicodeScripts\""},
        {PARTS("\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"ab\"}"), TM_INPUT, "\"replacement\""},
        {PARTS("\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"_\", \"prepend_scheme\": \"x\"}"), TM_INPUT, "\"prepend_scheme\""},
        {PARTS("\"decoder\": {\"type\": \"CTC\"}"), TM_UNSUPPORTED, "\"CTC\""},
        {PARTS("\"decoder\": {\"type\": \"Strip\", \"content\": \"\"}"), TM_INPUT, "\"content\""},
        {PARTS("\"decoder\": {\"type\": \"Strip\", \"content\": \"a\", \"start\": -1}"), TM_INPUT, "\"start\""},
        {PARTS("\"post_processor\": {\"type\": \"TemplateProcessing\"}"), TM_INPUT, "\"single\""},
        {PARTS("\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": []}"), TM_UNSUPPORTED, "\"single\""},
        {PARTS("\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"x\"}}]}"), TM_INPUT, "\"special_tokens\""},
        {PARTS("\"post_processor\": {\"type\": \"BertProcessing\", \"cls\": [\"a\", 0], \"sep\": [\"b\", 7]}"), TM_INPUT, "id 7"},
        {PARTS("\"added_tokens\": {}"), TM_INPUT, "\"added_tokens\""},
        {PARTS("\"added_tokens\": [3]"), TM_INPUT, "added_tokens[0]"},
        {PARTS("\"added_tokens\": [{\"id\": 2}]"), TM_INPUT, "\"content\""},
        {PARTS("\"added_tokens\": [{\"id\": 7, \"content\": \"x\"}]"), TM_INPUT, "expected 2"},
        {PARTS("\"added_tokens\": [{\"id\": 1, \"content\": \"a\"}]"), TM_INPUT, "expected 0"},
        {PARTS("\"added_tokens\": [{\"id\": -3, \"content\": \"x\"}]"), TM_INPUT, "\"id\""},
        {PARTS("\"added_tokens\": [{\"id\": 99999999, \"content\": \"x\"}]"), TM_INPUT, "99999999"},
        {PARTS("\"added_tokens\": [{\"id\": 2, \"content\": \"x\", \"lstrip\": \"yes\"}]"), TM_INPUT, "\"lstrip\""},
        {"{\"model\": {\"vocab\": {\"a\": 0, \"b\": 5, \"c\": 3}, \"merges\": []}, \"added_tokens\": [{\"id\": 3, \"content\": \"x\"}]}",
         TM_INPUT, "which \"c\" has already"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tm_tokenizer *tok;
        tm_status st = tm_tokenizer_parse(cases[i].text, strlen(cases[i].text), "file.json", &tok, &err);
        if (st != cases[i].status || !strstr(err.message, cases[i].message) || !strstr(err.message, "file.json"))
            fail_msg("%s\ngave %d \"%s\",\nexpected %d \"...%s...\"", cases[i].text, st, st ? err.message : "", cases[i].status,
                     cases[i].message);
        assert_null(tok);
    }
}

static void nested_deeply(void **state)
{
    (void)state;
    for (int depth = 15; depth < 3000; depth *= 10) {
        tm_buf text = {0};
        tm_tokenizer *tok;
        tm_buf_text(&text, "{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": []}, \"normalizer\": ");
        for (int i = 0; i < depth; i++)
            tm_buf_text(&text, "{\"type\": \"Sequence\", \"normalizers\": [");
        for (int i = 0; i < depth; i++)
            tm_buf_text(&text, "]}");
        tm_buf_text(&text, "}");
        assert_int_equal(tm_tokenizer_parse(text.data, text.size, "deep", &tok, &err), depth == 15 ? TM_OK : TM_INPUT);
        tm_tokenizer_close(tok);
        tm_buf_deinit(&text);
    }
}

/* A file cut off anywhere is refused, and so is one with a flipped bit, unless it is still fine. */
static void cut_off_files(void **state)
{
    (void)state;
    tm_buf text = {0};
    ok(tm_file_read(DATA "stories260K/tokenizer.json", 1 << 20, &text, &err));
    uint64_t seed = (uint64_t)time(NULL);
    uint32_t at = 0;
    for (size_t size = 0; size < text.size - 2; size += 1 + draw(seed, &at, 100)) {
        tm_tokenizer *tok;
        assert_int_equal(tm_tokenizer_parse(text.data, size, "cut", &tok, &err), TM_INPUT);
        assert_null(tok);
    }
    for (int round = 0; round < 200; round++) {
        tm_tokenizer *tok;
        size_t place = draw(seed, &at, (uint32_t)text.size);
        char old = text.data[place];
        text.data[place] ^= (char)(1 << draw(seed, &at, 8));
        tm_status st = tm_tokenizer_parse(text.data, text.size, "flipped", &tok, &err);
        assert_true(st == TM_OK || st == TM_INPUT || st == TM_UNSUPPORTED);
        tm_tokenizer_close(tok);
        text.data[place] = old;
    }
    tm_buf_deinit(&text);
}

/* A pattern that would run for ever is stopped. */
static void runaway_pattern(void **state)
{
    (void)state;
    static const char json[] = PARTS("\"pre_tokenizer\": {\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": "
                                     "{\"Regex\": \"(a+)+[xy]\"}}");
    tm_tokenizer *tok;
    tm_tokens *scratch;
    tm_ids ids = {0};
    ok(tm_tokenizer_parse(json, strlen(json), "runaway", &tok, &err));
    ok(tm_tokens_create(tok, &scratch, &err));
    char text[64];
    memset(text, 'a', sizeof text);
    assert_int_equal(tm_tokenizer_encode(tok, scratch, text, sizeof text, false, &ids, &err), TM_FAILED);
    assert_non_null(strstr(err.message, "too much work"));
    assert_int_equal(ids.count, 0);
    tm_ids_deinit(&ids);
    tm_tokens_destroy(scratch);
    tm_tokenizer_close(tok);
}

/* A normaliser that blows text up is stopped, in one step and over many. */
static void swelling_normalizer(void **state)
{
    (void)state;
    static const char step[] = "{\"type\": \"Replace\", \"pattern\": {\"String\": \"a\"}, \"content\": \"aaaaaaaaaaaaaaaa\"}";
    tm_buf json = {0}, text = {0};
    tm_ids ids = {0};
    while (text.size < 20000)
        tm_buf_char(&text, 'a');
    for (int steps = 1; steps <= 64; steps *= 8) {
        tm_tokenizer *tok;
        tm_tokens *scratch;
        tm_buf_clear(&json);
        tm_buf_text(&json, "{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": []}, \"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [");
        for (int i = 0; i < steps; i++)
            tm_buf_printf(&json, "%s%s", i ? ", " : "", step);
        tm_buf_text(&json, "]}}");
        ok(tm_tokenizer_parse(json.data, json.size, "swelling", &tok, &err));
        ok(tm_tokens_create(tok, &scratch, &err));
        assert_int_equal(tm_tokenizer_encode(tok, scratch, text.data, text.size, false, &ids, &err), steps == 1 ? TM_OK : TM_INPUT);
        assert_true(steps == 1 || strstr(err.message, "64 times"));
        tm_tokens_destroy(scratch);
        tm_tokenizer_close(tok);
    }
    assert_int_equal(ids.count, 320000);
    tm_ids_deinit(&ids);
    tm_buf_deinit(&json);
    tm_buf_deinit(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(committed_cases), cmocka_unit_test(combined_parts), cmocka_unit_test(merges_as_text),
        cmocka_unit_test(multilingual_qwen), cmocka_unit_test(multilingual_gpt2), cmocka_unit_test(multilingual_llama),
        cmocka_unit_test(multilingual_t5),
        cmocka_unit_test(llamacpp_gpt2), cmocka_unit_test(llamacpp_llama), cmocka_unit_test(llamacpp_qwen),
        cmocka_unit_test(scanners_equal_pcre2), cmocka_unit_test(cutting_changes_nothing),
        cmocka_unit_test(stream_equals_decode), cmocka_unit_test(stream_of_broken_bytes), cmocka_unit_test(long_runs),
        cmocka_unit_test(odd_text), cmocka_unit_test(looking_up), cmocka_unit_test(first_and_last_token),
        cmocka_unit_test(damaged_files), cmocka_unit_test(nested_deeply), cmocka_unit_test(cut_off_files),
        cmocka_unit_test(runaway_pattern), cmocka_unit_test(swelling_normalizer),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
