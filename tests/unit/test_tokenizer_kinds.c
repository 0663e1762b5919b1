/* Tokenizers of every kind of file: against ids of Hugging Face tokenizers and of SentencePiece, against each
 * other (the same vocabulary as tokenizer.json, as ranks, as vocab.json with merges.txt), against a folder's
 * settings and against damaged files. */
#include "tokenizer_cases.h"

#include "base/base64.h"
#include "base/philox.h"

#include <time.h>

static void new_dir(char dir[40])
{
    strcpy(dir, "/tmp/temper-tokenizer-XXXXXX");
    assert_non_null(mkdtemp(dir));
}

static void put_bytes(const char *dir, const char *name, const void *data, size_t size)
{
    char *path = tm_path_join(dir, name, &err);
    ok(tm_file_write(path, data, size, &err));
    free(path);
}

static void copy_to(const char *from, const char *dir, const char *name)
{
    tm_buf text = {0};
    ok(tm_file_read(from, 8 << 20, &text, &err));
    put_bytes(dir, name, tm_buf_str(&text), text.size);
    tm_buf_deinit(&text);
}

static void expect_ids(const tm_tokenizer *tok, const char *text, bool special, size_t count, const int32_t *id)
{
    tm_tokens *scratch;
    tm_ids ids = {0};
    ok(tm_tokens_create(tok, &scratch, &err));
    ok(tm_tokenizer_encode(tok, scratch, text, strlen(text), special, &ids, &err));
    if (ids.count != count || (count && memcmp(ids.id, id, count * sizeof *id)))
        fail_msg("\"%s\": %zu ids, the first %d; expected %zu, the first %d", text, ids.count, ids.count ? ids.id[0] : -1, count,
                 count ? id[0] : -1);
    tm_ids_deinit(&ids);
    tm_tokens_destroy(scratch);
}
#define IDS(...) sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t), (int32_t[]){__VA_ARGS__}

/* ---- the peers' ids ---- */

static void unigram(void **state)
{
    (void)state;
    tm_tokenizer *tok = open_tokenizer(DATA "unigram");
    json_t *cases = load(DATA "unigram/cases.json");
    check_cases(tok, cases, "unigram");
    json_decref(cases);
    tm_tokenizer_close(tok);
}

/* Look-alikes of the pipelines of published models. */
static void kinds(void **state)
{
    (void)state;
    check_patches("kinds.json", 20);
}

static void sentencepiece(void **state)
{
    (void)state;
    static const char *const names[] = {"bpe", "unigram"};
    for (int n = 0; n < 2; n++) {
        char path[200];
        tm_tokens *scratch;
        snprintf(path, sizeof path, DATA "spm/%s.model", names[n]);
        tm_tokenizer *tok = open_tokenizer(path);
        snprintf(path, sizeof path, DATA "spm/%s.cases.json", names[n]);
        json_t *cases = load(path), *c;
        size_t i;
        ok(tm_tokens_create(tok, &scratch, &err));
        json_array_foreach(cases, i, c)
        {
            const json_t *text = json_object_get(c, "text");
            check_ids(tok, scratch, json_string_value(text), json_string_length(text), false, json_object_get(c, "ids"), path);
        }
        assert_int_equal(tm_tokenizer_bos(tok), 1);
        assert_int_equal(tm_tokenizer_eos(tok), 2);
        json_decref(cases);
        tm_tokens_destroy(scratch);
        tm_tokenizer_close(tok);
    }
}

/* ---- one vocabulary in three kinds of files ---- */

/* The cases of the byte-level tokenizer whose text has no added token in it. */
static void same_as_bytelevel(const char *dir)
{
    tm_tokenizer *file = open_tokenizer(DATA "bytelevel"), *other = open_tokenizer(dir);
    tm_tokens *a, *b;
    json_t *cases = load(DATA "bytelevel/cases.json"), *c;
    size_t i, compared = 0;
    ok(tm_tokens_create(file, &a, &err));
    ok(tm_tokens_create(other, &b, &err));
    json_array_foreach(cases, i, c)
    {
        const char *text = json_string_value(json_object_get(c, "text"));
        size_t size = json_string_length(json_object_get(c, "text"));
        tm_ids x = {0}, y = {0};
        tm_buf decoded = {0}, again = {0};
        if (memchr(text, '<', size)) /* may be an added token */
            continue;
        ok(tm_tokenizer_encode(file, a, text, size, false, &x, &err));
        ok(tm_tokenizer_encode(other, b, text, size, false, &y, &err));
        if (x.count != y.count || (x.count && memcmp(x.id, y.id, x.count * sizeof *x.id)))
            fail_msg("%s: \"%s\"", dir, text);
        ok(tm_tokenizer_decode(file, x.id, x.count, false, &decoded, &err));
        ok(tm_tokenizer_decode(other, x.id, x.count, false, &again, &err));
        assert_string_equal(tm_buf_str(&decoded), tm_buf_str(&again));
        tm_buf_deinit(&decoded);
        tm_buf_deinit(&again);
        tm_ids_deinit(&x);
        tm_ids_deinit(&y);
        compared++;
    }
    assert_true(compared > 50);
    json_decref(cases);
    tm_tokens_destroy(a);
    tm_tokens_destroy(b);
    tm_tokenizer_close(file);
    tm_tokenizer_close(other);
}

/* The list of ranks of the byte-level tokenizer: its ids are ranks, for its merges stand in their order. */
static void put_ranks(const char *dir, const char *name)
{
    json_t *root = load(DATA "bytelevel/tokenizer.json"), *vocab = json_object_get(json_object_get(root, "model"), "vocab"), *id;
    const char *key;
    tm_buf all = {0};
    json_object_foreach(vocab, key, id)
    {
        tm_buf bytes = {0};
        for (size_t i = 0, len; key[i]; i += len)
            tm_buf_char(&bytes, (char)tm_char_byte(tm_utf8_at(key + i, &len)));
        tm_base64_encode(bytes.data, bytes.size, &all);
        tm_buf_printf(&all, " %d\n", (int)json_integer_value(id));
        tm_buf_deinit(&bytes);
    }
    put_bytes(dir, name, all.data, all.size);
    tm_buf_deinit(&all);
    json_decref(root);
}

static void ranks(void **state)
{
    (void)state;
    char dir[40], path[80];
    new_dir(dir);
    put_ranks(dir, "qwen.tiktoken");
    same_as_bytelevel(dir);
    tm_tokenizer *tok = open_tokenizer(dir);
    int32_t end = tm_tokenizer_eos(tok);
    assert_string_equal(tm_tokenizer_token(tok, end), "<|endoftext|>");
    assert_int_equal(tm_tokenizer_vocab_size(tok), end + 208);
    expect_ids(tok, "<|endoftext|><|im_start|><|im_end|><|extra_0|><|extra_204|>", true, IDS(end, end + 1, end + 2, end + 3, end + 207));
    tm_tokenizer_close(tok);
    put(dir, "qwen.tiktoken", NULL);
    put_ranks(dir, "tokenizer.model"); /* as Meta gives Llama 3 */
    snprintf(path, sizeof path, "%s/tokenizer.model", dir);
    tok = open_tokenizer(path);
    assert_int_equal(tm_tokenizer_bos(tok), end);
    assert_int_equal(tm_tokenizer_eos(tok), end + 1);
    assert_int_equal(tm_tokenizer_find(tok, "<|start_header_id|>"), end + 6);
    assert_int_equal(tm_tokenizer_find(tok, "<|eot_id|>"), end + 9);
    assert_int_equal(tm_tokenizer_find(tok, "<|reserved_special_token_5|>"), end + 10);
    assert_int_equal(tm_tokenizer_vocab_size(tok), end + 256);
    expect_ids(tok, "<|eot_id|>", true, IDS(end, end + 9));
    tm_tokenizer_close(tok);
    put(dir, "tokenizer.model", NULL);
    put_ranks(dir, "odd.tiktoken");
    assert_int_equal(tm_tokenizer_open(dir, &tok, &err), TM_UNSUPPORTED);
    assert_non_null(strstr(err.message, "how text is cut"));
    put(dir, "tokenizer_config.json", "{\"tokenizer_class\": \"QWenTokenizer\"}");
    same_as_bytelevel(dir);
    ok(tm_dir_remove(dir, &err));
}

/* The same ranks as Mistral writes them, behind special tokens; the last token is spare. */
static void tekken(void **state)
{
    (void)state;
    json_t *root = load(DATA "bytelevel/tokenizer.json"), *vocab = json_object_get(json_object_get(root, "model"), "vocab"), *id;
    size_t count = json_object_size(vocab);
    json_t *out = json_pack("{s:{s:s, s:i, s:i}, s:[{s:i, s:s}, {s:i, s:s}, {s:i, s:s}], s:[]}", "config", "pattern",
                            "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
                            "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+", "default_num_special_tokens", 5, "default_vocab_size", (int)count + 5,
                            "special_tokens", "rank", 0, "token_str", "<unk>", "rank", 1, "token_str", "<s>", "rank", 2, "token_str",
                            "</s>", "vocab");
    json_t *list = json_object_get(out, "vocab");
    for (size_t i = 0; i <= count; i++)
        json_array_append_new(list, json_pack("{s:s, s:s%}", "token_bytes", "enp6enp6eg==", "token_str", "\0", (size_t)1));
    const char *key;
    json_object_foreach(vocab, key, id)
    {
        tm_buf bytes = {0}, text = {0};
        for (size_t i = 0, len; key[i]; i += len)
            tm_buf_char(&bytes, (char)tm_char_byte(tm_utf8_at(key + i, &len)));
        tm_base64_encode(bytes.data, bytes.size, &text);
        json_object_set_new(json_array_get(list, (size_t)json_integer_value(id)), "token_bytes", json_string(text.data));
        tm_buf_deinit(&bytes);
        tm_buf_deinit(&text);
    }
    char dir[40], *json = json_dumps(out, 0);
    new_dir(dir);
    put(dir, "tekken.json", json);
    tm_tokenizer *tok = open_tokenizer(dir), *file = open_tokenizer(DATA "bytelevel");
    tm_tokens *a, *b;
    tm_ids x = {0}, y = {0};
    static const char text[] = "It's 123 naïve  words,\n\n漢字 and more </s>";
    assert_int_equal(tm_tokenizer_bos(tok), 1);
    assert_int_equal(tm_tokenizer_eos(tok), 2);
    assert_int_equal(tm_tokenizer_vocab_size(tok), count + 5);
    assert_string_equal(tm_tokenizer_token(tok, 4), "<SPECIAL_4>");
    ok(tm_tokens_create(tok, &a, &err));
    ok(tm_tokens_create(file, &b, &err));
    ok(tm_tokenizer_encode(tok, a, text, sizeof text - 1, true, &x, &err));
    ok(tm_tokenizer_encode(file, b, text, sizeof text - 5, false, &y, &err));
    assert_int_equal(x.count, y.count + 2);
    assert_int_equal(x.id[0], 1);
    assert_int_equal(x.id[x.count - 1], 2);
    for (size_t i = 0; i < y.count; i++)
        assert_int_equal(x.id[i + 1], y.id[i] + 5);
    tm_tokens_destroy(a);
    tm_tokens_destroy(b);
    tm_ids_deinit(&x);
    tm_ids_deinit(&y);
    tm_tokenizer_close(tok);
    tm_tokenizer_close(file);
    json_object_set_new(json_object_get(out, "config"), "default_num_special_tokens", json_integer(2));
    free(json);
    json = json_dumps(out, 0);
    put(dir, "tekken.json", json);
    assert_int_equal(tm_tokenizer_open(dir, &tok, &err), TM_INPUT);
    assert_non_null(strstr(err.message, "default_num_special_tokens"));
    put(dir, "tekken.json", "{\"config\": {}}");
    assert_int_equal(tm_tokenizer_open(dir, &tok, &err), TM_INPUT);
    assert_non_null(strstr(err.message, "\"pattern\""));
    put(dir, "tekken.json", "{\"config\": {\"pattern\": \"a\"}, \"vocab\": [{\"token_bytes\": \"?\"}]}");
    assert_int_equal(tm_tokenizer_open(dir, &tok, &err), TM_INPUT);
    assert_non_null(strstr(err.message, "\"vocab\"[0]"));
    ok(tm_dir_remove(dir, &err));
    free(json);
    json_decref(out);
    json_decref(root);
}

static void put_merges(const char *dir)
{
    json_t *root = load(DATA "bytelevel/tokenizer.json"), *model = json_object_get(root, "model"), *item;
    char *vocab = json_dumps(json_object_get(model, "vocab"), 0);
    tm_buf merges = {0};
    size_t i;
    tm_buf_text(&merges, "#version: 0.2\n");
    json_array_foreach(json_object_get(model, "merges"), i, item)
        if (json_is_string(item))
            tm_buf_printf(&merges, "%s\n", json_string_value(item));
        else
            tm_buf_printf(&merges, "%s %s\n", json_string_value(json_array_get(item, 0)), json_string_value(json_array_get(item, 1)));
    put(dir, "vocab.json", vocab);
    put(dir, "merges.txt", merges.data);
    tm_buf_deinit(&merges);
    free(vocab);
    json_decref(root);
}

static void vocab_and_merges(void **state)
{
    (void)state;
    char dir[40];
    tm_tokenizer *tok;
    new_dir(dir);
    put_merges(dir);
    put(dir, "tokenizer_config.json", "{\"tokenizer_class\": \"Qwen2TokenizerFast\"}");
    same_as_bytelevel(dir);
    tok = open_tokenizer(dir);
    int32_t size = tm_tokenizer_vocab_size(tok), a = tm_tokenizer_find(tok, "a"), b = tm_tokenizer_find(tok, "b"),
            space = tm_tokenizer_find(tok, "Ġ"), dot = tm_tokenizer_find(tok, ".");
    tm_tokenizer_close(tok);

    /* a folder's settings: tokens by number, by part, and what is left out */
    char text[600];
    snprintf(text, sizeof text, "{\"<three>\": %d, \"<far>\": %d, \".\": %d}", size + 2, size + 9, dot);
    put(dir, "added_tokens.json", text);
    snprintf(text, sizeof text, "{\"tokenizer_class\": \"GPT2Tokenizer\", \"bos_token\": \"<one>\", \"eos_token\": {\"content\": \"<two>\"}, "
             "\"pad_token\": \"<nowhere>\", \"add_bos_token\": true, \"add_prefix_space\": false, \"added_tokens_decoder\": {\"%d\": "
             "{\"content\": \"<two>\", \"rstrip\": true, \"special\": true}, \"%d\": {\"content\": \"<one>\", \"special\": true}}}",
             size + 1, size);
    put(dir, "tokenizer_config.json", text);
    put(dir, "special_tokens_map.json", "{\"additional_special_tokens\": [\"<three>\"]}");
    tok = open_tokenizer(dir);
    assert_int_equal(tm_tokenizer_bos(tok), size);
    assert_int_equal(tm_tokenizer_eos(tok), size + 1);
    assert_int_equal(tm_tokenizer_vocab_size(tok), size + 3);
    assert_true(tm_tokenizer_is_special(tok, size + 2));
    assert_false(tm_tokenizer_is_special(tok, dot));
    expect_ids(tok, "a<two>  b<three> b.", true, IDS(size, a, size + 1, b, size + 2, tm_tokenizer_find(tok, "Ġb"), dot));
    tm_sha256 before = *tm_tokenizer_hash(tok);
    tm_tokenizer_close(tok);

    /* a space before the text; the hash knows the settings */
    put(dir, "tokenizer_config.json", "{\"tokenizer_class\": \"GPT2Tokenizer\", \"add_prefix_space\": true}");
    tok = open_tokenizer(dir);
    expect_ids(tok, "b", true, IDS(tm_tokenizer_find(tok, "Ġb")));
    expect_ids(tok, " ", true, IDS(space));
    assert_string_not_equal(before.hex, tm_tokenizer_hash(tok)->hex);
    tm_tokenizer_close(tok);
    put(dir, "tokenizer_config.json", "{\"tokenizer_class\": \"OddTokenizer\"}");
    assert_int_equal(tm_tokenizer_open(dir, &tok, &err), TM_UNSUPPORTED);
    assert_non_null(strstr(err.message, "OddTokenizer"));
    put(dir, "tokenizer_config.json", NULL);
    put(dir, "merges.txt", "#version: 0.2\na b c\n");
    assert_int_equal(tm_tokenizer_open(dir, &tok, &err), TM_INPUT);
    assert_non_null(strstr(err.message, "\"merges\"[0]"));
    put(dir, "merges.txt", "\xff\n");
    assert_int_equal(tm_tokenizer_open(dir, &tok, &err), TM_INPUT);
    put(dir, "merges.txt", NULL);
    assert_int_equal(tm_tokenizer_open(dir, &tok, &err), TM_INPUT);
    assert_non_null(strstr(err.message, "no tokenizer"));
    ok(tm_dir_remove(dir, &err));
}

/* ---- folders ---- */

/* tokenizer.json goes before tokenizer.model, that before vocab.json; settings go over what a file says. */
static void order_and_settings(void **state)
{
    (void)state;
    char dir[40];
    tm_tokenizer *tok;
    new_dir(dir);
    assert_false(tm_tokenizer_is_in(dir));
    put_merges(dir);
    tok = open_tokenizer(dir);
    assert_true(tm_tokenizer_vocab_size(tok) > 3000);
    tm_tokenizer_close(tok);
    copy_to(DATA "spm/bpe.model", dir, "tokenizer.model");
    tok = open_tokenizer(dir);
    assert_int_equal(tm_tokenizer_vocab_size(tok), 500);
    int32_t mark = tm_tokenizer_find(tok, "\xe2\x96\x81"), x = tm_tokenizer_find(tok, "k"), inst = tm_tokenizer_find(tok, "[INST]");
    assert_true(mark >= 0 && x >= 0 && inst >= 0);
    expect_ids(tok, "[INST]k", true, IDS(1, inst, mark, x)); /* as Llama had it: a mark behind every added token */
    expect_ids(tok, "</s>", true, IDS(1, 2));
    tm_tokenizer_close(tok);
    put(dir, "tokenizer_config.json", "{\"legacy\": false, \"add_bos_token\": false, \"add_eos_token\": true}");
    tok = open_tokenizer(dir);
    expect_ids(tok, "[INST]k", true, IDS(inst, x, 2));
    expect_ids(tok, "k", true, IDS(mark, x, 2));
    tm_tokenizer_close(tok);
    put(dir, "tokenizer_config.json", "{\"added_tokens_decoder\": {\"2\": {\"content\": \"<end>\", \"special\": true}}}");
    tok = open_tokenizer(dir); /* a place of the model under another name */
    assert_string_equal(tm_tokenizer_token(tok, 2), "<end>");
    expect_ids(tok, "<end>", false, IDS(2));
    tm_tokenizer_close(tok);
    char path[80];
    copy_to(DATA "spm/bpe.model", dir, "tokenizer.model.v3"); /* a name that is no kind's */
    snprintf(path, sizeof path, "%s/tokenizer.model.v3", dir);
    tok = open_tokenizer(path);
    assert_int_equal(tm_tokenizer_vocab_size(tok), 500);
    tm_tokenizer_close(tok);
    put(dir, "tokenizer_config.json", "{\"tokenizer_class\": \"XLMRobertaTokenizer\"}");
    assert_int_equal(tm_tokenizer_open(dir, &tok, &err), TM_UNSUPPORTED);
    put(dir, "tokenizer_config.json", "[]");
    assert_int_equal(tm_tokenizer_open(dir, &tok, &err), TM_INPUT);
    put(dir, "tokenizer_config.json", NULL);
    copy_to(DATA "unigram/tokenizer.json", dir, "tokenizer.json");
    tok = open_tokenizer(dir);
    assert_int_equal(tm_tokenizer_vocab_size(tok), 401);
    tm_tokenizer_close(tok);
    assert_true(tm_tokenizer_is_in(dir));
    ok(tm_dir_remove(dir, &err));
}

/* T5's class: tokens behind the pieces, EOS behind the text. */
static void t5(void **state)
{
    (void)state;
    char dir[40];
    new_dir(dir);
    copy_to(DATA "spm/unigram.model", dir, "spiece.model");
    put(dir, "tokenizer_config.json", "{\"tokenizer_class\": \"T5Tokenizer\", \"extra_ids\": 3}");
    tm_tokenizer *tok = open_tokenizer(dir);
    assert_int_equal(tm_tokenizer_vocab_size(tok), 403);
    expect_ids(tok, "<extra_id_0><extra_id_2>", true, IDS(402, 400, 2));
    tm_tokenizer_close(tok);
    ok(tm_dir_remove(dir, &err));
}

static void clean_up(void **state)
{
    (void)state;
    char dir[40];
    new_dir(dir);
    static const char *const pieces[] = {"Hi", "▁", ".", "!", "▁n", "'t", "▁'", "s", "▁?"};
    tm_buf json = {0}, text = {0};
    tm_buf_text(&json, "{\"model\": {\"type\": \"Unigram\", \"unk_id\": 0, \"vocab\": [[\"<unk>\", 0]");
    for (int i = 0; i < 9; i++)
        tm_buf_printf(&json, ", [\"%s\", -1.5]", pieces[i]);
    tm_buf_text(&json, "]}, \"decoder\": {\"type\": \"Metaspace\", \"replacement\": \"▁\", \"add_prefix_space\": true}}");
    put(dir, "tokenizer.json", json.data);
    int32_t ids[] = {1, 2, 2, 3, 2, 4, 5, 6, 7, 2, 7, 8, 9, 3};
    for (int on = 0; on < 2; on++) {
        put(dir, "tokenizer_config.json", on ? "{\"clean_up_tokenization_spaces\": true}" : "{}");
        tm_tokenizer *tok = open_tokenizer(dir);
        tm_buf_clear(&text);
        tm_buf_text(&text, "kept . ");
        ok(tm_tokenizer_decode(tok, ids, 14, false, &text, &err));
        assert_string_equal(tm_buf_str(&text), on ? "kept . Hi .!n't''s?." : "kept . Hi  . ! n't '  's ?.");
        tm_tokenizer_close(tok);
    }
    tm_buf_deinit(&json);
    tm_buf_deinit(&text);
    ok(tm_dir_remove(dir, &err));
}

/* ---- damaged files ---- */

static void damaged(void **state)
{
    (void)state;
    static const struct { const char *name, *text; size_t size; tm_status status; const char *message; } cases[] = {
        {"x.model", "", 0, TM_INPUT, "no pieces"},
        {"x.model", "\x0a", 1, TM_INPUT, "damaged at byte 1"},
        {"x.model", "\x0a\x05\x0a\x01" "a", 5, TM_INPUT, "damaged"},
        {"x.model", "\x0a\x02\x0a\x00", 4, TM_INPUT, "piece 0 is of 0 bytes"},
        {"x.model", "\x0a\x03\x0a\x01\xff", 5, TM_INPUT, "UTF-8"},
        {"x.model", "\x0a\x05\x0a\x01" "a\x18\x09", 7, TM_INPUT, "type 9"},
        {"x.model", "\x0a\x08\x0a\x01" "a\x15\x00\x00\xc0\x7f", 10, TM_INPUT, "not finite"},
        {"x.model", "\x0a\x03\x0a\x01" "a\x0a\x03\x0a\x01" "a", 10, TM_INPUT, "two pieces"},
        {"x.model", "\x0a\x03\x0a\x01" "a\x12\x03\xc0\x02\x07", 10, TM_INPUT, "unk_id"},
        {"x.model", "\x0a\x03\x0a\x01" "a\x12\x02\x18\x03", 9, TM_UNSUPPORTED, "type 3"},
        {"x.model", "\x0a\x03\x0a\x01" "a\x12\x03\xc0\x01\x01", 10, TM_UNSUPPORTED, "suffix"},
        {"x.model", "\x0a\x03\x0a\x01" "a\x1a\x03\x12\x01" "x", 10, TM_INPUT, "charsmap"},
        {"x.model", "\x0b\x03", 2, TM_INPUT, "damaged"},
        {"x.model", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11, TM_INPUT, "damaged"},
        {"qwen.tiktoken", "", 0, TM_INPUT, "no pieces"},
        {"qwen.tiktoken", "YQ== 0\nYQ= 1\n", 13, TM_INPUT, ":2: "},
        {"qwen.tiktoken", "YQ== 0\nYg==\n", 12, TM_INPUT, ":2: "},
        {"qwen.tiktoken", "YQ== 0\nYg== x\n", 14, TM_INPUT, ":2: "},
        {"qwen.tiktoken", "YQ== 0\nYg== 0\n", 14, TM_INPUT, "twice"},
        {"qwen.tiktoken", "YQ== 0\nYQ== 1\n", 14, TM_INPUT, "twice"},
        {"qwen.tiktoken", "YQ== 99999999999999999999\n", 26, TM_INPUT, ":1: "},
        {"qwen.tiktoken", "YQ== 0\n 1\n", 10, TM_INPUT, "0 bytes"},
        {"u.json", "{\"model\": {\"type\": \"Unigram\"}}", 0, TM_INPUT, "\"vocab\""},
        {"u.json", "{\"model\": {\"vocab\": [[\"a\"]]}}", 0, TM_INPUT, "[text, score]"},
        {"u.json", "{\"model\": {\"vocab\": [[\"a\", 0]], \"unk_id\": 1}}", 0, TM_INPUT, "unk_id"},
        {"u.json", "{\"model\": {\"vocab\": [[\"a\", 0]]}, \"normalizer\": {\"type\": \"Precompiled\", \"precompiled_charsmap\": \"?\"}}", 0, TM_INPUT, "base64"},
    };
    char dir[40], path[80];
    new_dir(dir);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tm_tokenizer *tok;
        put_bytes(dir, cases[i].name, cases[i].text, cases[i].size ? cases[i].size : strlen(cases[i].text));
        snprintf(path, sizeof path, "%s/%s", dir, cases[i].name);
        tm_status st = tm_tokenizer_open(path, &tok, &err);
        if (st != cases[i].status || !strstr(err.message, cases[i].message) || !strstr(err.message, cases[i].name))
            fail_msg("case %zu gave %d \"%s\", expected %d \"...%s...\"", i, st, st ? err.message : "", cases[i].status, cases[i].message);
        assert_null(tok);
    }
    ok(tm_dir_remove(dir, &err));
}

/* A model cut off anywhere or with flipped bits is refused, or is still one and works. */
static void cut_and_flipped(void **state)
{
    (void)state;
    static const char *const names[] = {DATA "spm/bpe.model", DATA "spm/unigram.model"};
    uint64_t seed = (uint64_t)time(NULL);
    uint32_t at = 0;
    char dir[40], path[80];
    new_dir(dir);
    snprintf(path, sizeof path, "%s/x.model", dir);
    for (int round = 0; round < 200; round++) {
        tm_buf data = {0};
        tm_tokenizer *tok;
        tm_tokens *scratch;
        tm_ids ids = {0};
        ok(tm_file_read(names[round % 2], 1 << 20, &data, &err));
        tm_philox p = tm_philox_at(seed, at++, 0, 0, 0);
        if (p.word[2] % 4 == 0)
            data.size = p.word[0] % data.size;
        else
            for (uint32_t k = 0; k <= p.word[2] % 8; k++)
                data.data[(p.word[0] + k * p.word[3]) % data.size] ^= (char)(1 << (p.word[1] + k) % 8);
        put_bytes(dir, "x.model", data.data, data.size);
        tm_status st = tm_tokenizer_open(path, &tok, &err);
        if (st == TM_OK) {
            static const char text[] = "ｆｕｌｌ text, e\u0301 <s> Привет [INST] 漢";
            ok(tm_tokens_create(tok, &scratch, &err));
            st = tm_tokenizer_encode(tok, scratch, text, sizeof text - 1, true, &ids, &err);
            tm_tokens_destroy(scratch);
            tm_ids_deinit(&ids);
        }
        if (st != TM_OK && st != TM_INPUT && st != TM_UNSUPPORTED)
            fail_msg("seed %llu, round %d: %d %s", (unsigned long long)seed, round, st, err.message);
        tm_tokenizer_close(tok);
        tm_buf_deinit(&data);
    }
    ok(tm_dir_remove(dir, &err));
}

/* A megabyte that nothing splits takes time in proportion, and so does one of unknown characters. */
static void long_runs(void **state)
{
    (void)state;
    static const char *const units[] = {"a", "ab", "漢", "ｆ", "\xcc\x81", "-"};
#ifdef TM_SANITIZE
    size_t size = 1 << 17;
#else
    size_t size = 1 << 20;
#endif
    tm_tokenizer *tok = open_tokenizer(DATA "spm/unigram.model");
    tm_tokens *scratch;
    ok(tm_tokens_create(tok, &scratch, &err));
    for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
        tm_buf text = {0};
        tm_ids ids = {0};
        while (text.size < size)
            tm_buf_text(&text, units[u]);
        clock_t start = clock();
        ok(tm_tokenizer_encode(tok, scratch, text.data, text.size, false, &ids, &err));
        assert_true((double)(clock() - start) / CLOCKS_PER_SEC < 30);
        tm_buf_deinit(&text);
        tm_ids_deinit(&ids);
    }
    tm_tokens_destroy(scratch);
    tm_tokenizer_close(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unigram), cmocka_unit_test(kinds), cmocka_unit_test(sentencepiece), cmocka_unit_test(ranks),
        cmocka_unit_test(tekken),
        cmocka_unit_test(vocab_and_merges), cmocka_unit_test(order_and_settings), cmocka_unit_test(t5),
        cmocka_unit_test(clean_up), cmocka_unit_test(damaged), cmocka_unit_test(cut_and_flipped), cmocka_unit_test(long_runs),
    };
    return cmocka_run_group_tests_name("tokenizer_kinds", tests, NULL, NULL);
}
