/* Training a tokenizer: the merges of Hugging Face's trainer, the same file for any number of threads, and a
 * slow learner that counts everything anew at every step. */
#include "tokenizer_cases.h"

#include "base/philox.h"
#include "text/tokenizer_train.h"

#include <time.h>

static char *train(const char *data, const char *pattern, int64_t vocab, int64_t least, int threads, char *const *special,
                   size_t special_count)
{
    char out[] = "/tmp/temper-train-XXXXXX";
    int fd = mkstemp(out);
    assert_true(fd >= 0);
    close(fd);
    tm_tokenizer_train_request request = {data, out, vocab, least, special, special_count, pattern, threads};
    tm_buf text = {0};
    char *summary;
    ok(tm_tokenizer_train(&request, &summary, &err));
    assert_non_null(strstr(summary, out));
    free(summary);
    ok(tm_file_read(out, 64 << 20, &text, &err));
    unlink(out);
    return text.data;
}

static json_t *parse(const char *text)
{
    json_t *root = json_loads(text, 0, NULL);
    assert_non_null(root);
    return root;
}

static char *const two[] = {"<a>", "<b>"};

static void equals_peer(void **state)
{
    (void)state;
    json_t *expected = load(DATA "train.json"), *item;
    const char *pattern;
    json_object_foreach(expected, pattern, item)
    {
        char *text = train(DATA "train.txt", pattern, 900, json_integer_value(json_object_get(item, "min_frequency")), 2, two, 2);
        json_t *root = parse(text), *merges = json_object_get(json_object_get(root, "model"), "merges"), *merge;
        json_t *vocab = json_object_get(json_object_get(root, "model"), "vocab"), *want = json_object_get(item, "merges");
        size_t i;
        json_array_foreach(want, i, merge)
        {
            const json_t *pair = json_array_get(merges, i);
            char ours[200], whole[200];
            const char *a = json_string_value(json_array_get(pair, 0)), *b = json_string_value(json_array_get(pair, 1));
            assert_true(a && b);
            snprintf(ours, sizeof ours, "%s %s", a, b);
            snprintf(whole, sizeof whole, "%s%s", a, b);
            if (strcmp(ours, json_string_value(merge)))
                fail_msg("%s: merge %zu is \"%s\", the peer's \"%s\"", pattern, i, ours, json_string_value(merge));
            assert_true(json_is_integer(json_object_get(vocab, whole)));
        }
        assert_int_equal(json_array_size(merges), json_array_size(want));
        assert_int_equal(json_object_size(vocab), 258 + json_array_size(want));
        assert_int_equal(json_integer_value(json_object_get(vocab, "<b>")), 1);
        assert_int_equal(json_integer_value(json_object_get(vocab, "!")), 2);
        json_decref(root);
        free(text);
    }
    json_decref(expected);
}

/* What was trained reads back: text in, ids, the same text out. */
static void round_trip(void **state)
{
    (void)state;
    char *json = train(DATA "train.txt", "qwen2", 700, 0, 1, two, 2);
    tm_tokenizer *tok;
    tm_tokens *scratch;
    tm_buf text = {0}, back = {0};
    tm_ids ids = {0};
    ok(tm_tokenizer_parse(json, strlen(json), "trained", &tok, &err));
    ok(tm_tokens_create(tok, &scratch, &err));
    ok(tm_file_read(DATA "train.txt", 1 << 20, &text, &err));
    tm_buf_text(&text, "<b> 漢字 \xf0\x9f\x91\x8d");
    ok(tm_tokenizer_encode(tok, scratch, text.data, text.size, true, &ids, &err));
    ok(tm_tokenizer_decode(tok, ids.id, ids.count, false, &back, &err));
    assert_string_equal(text.data, back.data);
    assert_true(ids.count < text.size / 2);
    assert_int_equal(tm_tokenizer_vocab_size(tok), 700);
    tm_tokens_destroy(scratch);
    tm_tokenizer_close(tok);
    tm_buf_deinit(&text);
    tm_buf_deinit(&back);
    tm_ids_deinit(&ids);
    free(json);
}

static void put_text(const char *path, const tm_buf *text) { ok(tm_file_write(path, tm_buf_str(text), text->size, &err)); }

/* Parts of a megabyte change nothing: a text of several, by one thread and by more; and what is broken is U+FFFD. */
static void threads_change_nothing(void **state)
{
    (void)state;
    char path[] = "/tmp/temper-train-XXXXXX.txt";
    tm_buf text = {0}, one = {0};
    close(mkstemps(path, 4));
    ok(tm_file_read(DATA "train.txt", 1 << 20, &one, &err));
    while (text.size < (5 << 19)) {
        tm_buf_add(&text, one.data, one.size);
        tm_buf_text(&text, "\n   \n\xff 12345\n\n\n");
    }
    put_text(path, &text);
    char *expected = train(path, "llama3", 600, 2, 1, NULL, 0);
    for (int threads = 2; threads < 6; threads += 3) {
        char *other = train(path, "llama3", 600, 2, threads, NULL, 0);
        assert_string_equal(expected, other);
        free(other);
    }
    free(expected);
    tm_buf_deinit(&text);
    tm_buf_deinit(&one);
    unlink(path);
}

static tm_status count_piece(void *context, const char *piece, size_t size, tm_error *e)
{
    return tm_word_counts_add(context, piece, size, 1, e);
}

/* The parts that threads take are cut where the pattern cuts: the same pieces as of the text in one. */
static void parts_cut_nothing(void **state)
{
    (void)state;
    static const char *const words[] = {"a", "Zz", " ", "  ", "\n", "\n", "\n\n\n", "\t", "\r\n", "12", "!", ".\n", "e\u0301", "漢", "\u00a0", "'s"};
    static const char *const patterns[] = {"gpt-2", "qwen2", "llama3"};
    char path[] = "/tmp/temper-train-XXXXXX.txt";
    uint64_t seed = (uint64_t)time(NULL);
    uint32_t at = 0;
    tm_buf text = {0};
    tm_pool *pool;
    close(mkstemps(path, 4));
    while (text.size < (5 << 19)) {
        tm_philox p = tm_philox_at(seed, at++, 0, 0, 0);
        for (int i = 0; i < 4; i++)
            tm_buf_text(&text, words[p.word[i] % 16]);
    }
    put_text(path, &text);
    ok(tm_pool_create(2, &pool, &err));
    for (int i = 0; i < 3; i++) {
        tm_tokenizer_recipe recipe = {.family = tm_family_named(patterns[i]), .vocab = 256};
        tm_word_counts parts = {0}, whole = {0};
        tm_buf json = {0}, a = {0}, b = {0}, buffers[4] = {0};
        tm_match_memory memory;
        tm_tokenizer *tok;
        const char *normal = text.data;
        size_t size = text.size;
        bool first = true;
        ok(tm_tokenizer_learn(&recipe, NULL, &json, &err));
        ok(tm_tokenizer_parse(json.data, json.size, "cutter", &tok, &err));
        ok(tm_match_memory_init(&memory, &err));
        ok(tm_words_of_file(tok, path, pool, &parts, &err));
        ok(tm_normalizer_run(&tok->normalizer, &memory, &a, &b, &normal, &size, &first, &err));
        tm_splitting run = {&tok->splitter, &memory, buffers, count_piece, &whole, &err};
        ok(tm_splitter_run(&run, 0, normal, size, true));
        if (parts.words.ids != whole.words.ids)
            fail_msg("seed %llu, %s: %d pieces, expected %d", (unsigned long long)seed, patterns[i], parts.words.ids, whole.words.ids);
        for (int32_t w = 0; w < whole.words.ids; w++) {
            int32_t other = tm_vocab_find(&parts.words, whole.words.text.data + whole.words.start[w], whole.words.length[w]);
            if (other < 0 || parts.count[other] != whole.count[w])
                fail_msg("seed %llu, %s: \"%s\" differs", (unsigned long long)seed, patterns[i], whole.words.text.data + whole.words.start[w]);
        }
        tm_word_counts_deinit(&parts);
        tm_word_counts_deinit(&whole);
        tm_match_memory_deinit(&memory);
        tm_tokenizer_close(tok);
        tm_buf_deinit(&json);
        tm_buf_deinit(&a);
        tm_buf_deinit(&b);
        for (int k = 0; k < 4; k++)
            tm_buf_deinit(&buffers[k]);
    }
    tm_pool_destroy(pool);
    tm_buf_deinit(&text);
    unlink(path);
}

/* The strings of rows are texts; other strings are not. */
static void rows(void **state)
{
    (void)state;
    char path[] = "/tmp/temper-train-XXXXXX.jsonl";
    tm_buf text = {0};
    close(mkstemps(path, 6));
    for (int i = 0; i < 9; i++)
        tm_buf_text(&text, "{\"text\": \"qvxq\", \"role\": \"zzzz\"}\n{\"messages\": [{\"role\": \"jjjj\", \"content\": \"wkwk\"}]}\n\"mhmh\"\n\n");
    put_text(path, &text);
    char *json = train(path, "gpt2", 270, 2, 1, NULL, 0);
    assert_non_null(strstr(json, "\"qvxq\""));
    assert_non_null(strstr(json, "\"wkwk\""));
    assert_non_null(strstr(json, "\"mhmh\""));
    assert_null(strstr(json, "\"zz\""));
    assert_null(strstr(json, "\"jj\""));
    free(json);
    tm_buf_text(&text, "{\"text\": 3\n");
    put_text(path, &text);
    tm_tokenizer_train_request request = {path, "/tmp/temper-never-written", 300, 0, NULL, 0, "gpt2", 2};
    char *summary;
    assert_int_equal(tm_tokenizer_train(&request, &summary, &err), TM_INPUT);
    assert_non_null(strstr(err.message, path));
    assert_null(summary);
    assert_false(tm_path_exists(request.out));
    tm_buf_deinit(&text);
    unlink(path);
}

/* ---- the slow learner: symbols as strings, all pairs counted anew, the best taken ---- */

typedef struct slow {
    char token[600][64];
    int tokens, merges, pair[400][2];
    int word[64][48], length[64], times[64], words;
} slow;

static bool slow_step(slow *s)
{
    static int count[600][600];
    int best[2] = {-1, -1};
    memset(count, 0, sizeof count);
    for (int w = 0; w < s->words; w++)
        for (int i = 0; i + 1 < s->length[w]; i++)
            count[s->word[w][i]][s->word[w][i + 1]] += s->times[w];
    for (int a = 0; a < s->tokens; a++)
        for (int b = 0; b < s->tokens; b++)
            if (count[a][b] > (best[0] < 0 ? 0 : count[best[0]][best[1]])) {
                best[0] = a;
                best[1] = b;
            }
    if (best[0] < 0)
        return false;
    char whole[64];
    snprintf(whole, sizeof whole, "%.31s%.31s", s->token[best[0]], s->token[best[1]]);
    for (int t = 0; t < s->tokens; t++)
        if (!strcmp(s->token[t], whole))
            return false; /* the same text by another way: there the peer's queue has rules of its own */
    strcpy(s->token[s->tokens], whole);
    memcpy(s->pair[s->merges++], best, sizeof best);
    for (int w = 0; w < s->words; w++) {
        int to = 0;
        for (int i = 0; i < s->length[w]; i++) {
            bool here = s->word[w][i] == best[0] && i + 1 < s->length[w] && s->word[w][i + 1] == best[1];
            s->word[w][to++] = here ? s->tokens : s->word[w][i];
            i += here;
        }
        s->length[w] = to;
    }
    s->tokens++;
    return true;
}

static void equals_slow(void **state)
{
    (void)state;
    uint64_t seed = (uint64_t)time(NULL);
    uint32_t at = 0;
    slow *s = malloc(sizeof *s);
    for (int round = 0; round < 20; round++) {
        tm_word_counts counts = {0};
        tm_buf json = {0};
        memset(s, 0, sizeof *s);
        for (uint32_t code = 0; code < 0x144; code++)
            if (tm_char_byte(code) >= 0)
                tm_utf8_put(code, s->token[s->tokens++]);
        int first = s->tokens, letters = 3 + round % 8;
        for (int w = 0; w < 40; w++) {
            char text[41] = "";
            tm_philox p = tm_philox_at(seed, at++, 0, 0, 0);
            int length = 1 + (int)(p.word[0] % 12);
            for (int i = 0; i < length; i++)
                text[i] = (char)('a' + tm_philox_at(seed, at++, 0, 0, 0).word[0] % (uint32_t)letters);
            if (tm_vocab_find(&counts.words, text, strlen(text)) >= 0)
                continue;
            int n = s->words++;
            s->times[n] = 1 + (int)(p.word[1] % 5);
            s->length[n] = length;
            for (int i = 0; i < length; i++)
                for (int t = 0; t < first; t++)
                    if (s->token[t][0] == text[i] && !s->token[t][1])
                        s->word[n][i] = t;
            ok(tm_word_counts_add(&counts, text, strlen(text), s->times[n], &err));
        }
        while (s->merges < 60 && slow_step(s))
            ;
        tm_tokenizer_recipe recipe = {.family = tm_family_named("gpt-2"), .vocab = first + s->merges};
        ok(tm_tokenizer_learn(&recipe, &counts, &json, &err));
        json_t *root = parse(json.data), *merges = json_object_get(json_object_get(root, "model"), "merges");
        for (int i = 0; i < s->merges; i++)
            for (int k = 0; k < 2; k++)
                if (strcmp(json_string_value(json_array_get(json_array_get(merges, (size_t)i), (size_t)k)), s->token[s->pair[i][k]]))
                    fail_msg("seed %llu, round %d: merge %d differs", (unsigned long long)seed, round, i);
        assert_int_equal(json_array_size(merges), s->merges);
        json_decref(root);
        tm_buf_deinit(&json);
        tm_word_counts_deinit(&counts);
    }
    free(s);
}

static void refused(void **state)
{
    (void)state;
    static char *const twice[] = {"<a>", "<a>"}, *const none[] = {""};
    const struct { tm_tokenizer_train_request r; tm_status status; const char *message; } cases[] = {
        {{DATA "train.txt", "/tmp/temper-never-written", 300, 0, NULL, 0, "odd", 1}, TM_USAGE, "gpt2, qwen2 or llama3"},
        {{DATA "train.txt", "/tmp/temper-never-written", 257, 0, two, 2, "gpt2", 1}, TM_USAGE, "257"},
        {{DATA "train.txt", "/tmp/temper-never-written", 1 << 23, 0, two, 2, "gpt2", 1}, TM_USAGE, "8388608"},
        {{DATA "train.txt", "/tmp/temper-never-written", 300, 0, twice, 2, "gpt2", 1}, TM_USAGE, "twice"},
        {{DATA "train.txt", "/tmp/temper-never-written", 300, 0, none, 1, "gpt2", 1}, TM_USAGE, "empty"},
        {{DATA "nowhere.txt", "/tmp/temper-never-written", 300, 0, NULL, 0, "gpt2", 1}, TM_INPUT, "nowhere.txt"},
        {{"/dev/null", "/tmp/temper-never-written", 300, 0, NULL, 0, "gpt2", 1}, TM_INPUT, "/dev/null"},
        {{DATA "train.txt", "/nowhere/at/all", 300, 0, NULL, 0, "gpt2", 1}, TM_IO, "/nowhere"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *summary;
        tm_status st = tm_tokenizer_train(&cases[i].r, &summary, &err);
        if (st == TM_OK || !strstr(err.message, cases[i].message))
            fail_msg("case %zu: %d \"%s\", expected %d \"%s\"", i, st, st ? err.message : "", cases[i].status, cases[i].message);
        assert_int_equal(st, cases[i].status);
        assert_null(summary);
        assert_false(tm_path_exists("/tmp/temper-never-written"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_peer), cmocka_unit_test(round_trip), cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(parts_cut_nothing),
        cmocka_unit_test(rows), cmocka_unit_test(equals_slow), cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests_name("tokenizer_train", tests, NULL, NULL);
}
