/* Data sets: what rows become, what is refused and where, and that threads leave no trace. */
#include "base/philox.h"
#include "text/dataset.h"
#include "toy_tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#include "folder.h"

static tm_pool *pool;
static const tm_tokenizer llama_like = {.adds_bos = true, .has_eos = true},
                          t5_like = {.adds_eos = true, .has_eos = true}, bare = {0};

static tm_data_entry entry(const char *path, int format)
{
    return (tm_data_entry){.path = (char *)path, .format = format, .weight = 1};
}

static tm_status load_with(const tm_data_entry *e, const tm_tokenizer *tok, int64_t vocab, int64_t seq,
                           tm_dataset **out, tm_error *err)
{
    tm_data_settings s = {.tok = tok, .vocab_size = vocab, .seq = seq};
    return tm_dataset_load(e, 1, &s, pool, out, err);
}

/* Writes a file and loads it. */
static tm_status load(const char *name, const char *text, int format, const tm_tokenizer *tok, int64_t seq,
                      tm_dataset **out, tm_error *err)
{
    const char *path = scratch(name);
    TM_TRY(tm_file_write(path, text, strlen(text), err));
    tm_data_entry e = entry(path, format);
    return load_with(&e, tok, TOY_VOCAB, seq, out, err);
}

/* ids as text: bytes as characters, BOS as <, EOS as >; then | and a 1 a target. */
static const char *shown(const tm_example *e)
{
    static char text[4096];
    char *at = text;
    for (int32_t i = 0; i < e->n; i++)
        *at++ = e->ids[i] == TOY_BOS ? '<' : e->ids[i] == TOY_EOS ? '>' : (char)e->ids[i];
    *at++ = '|';
    int32_t targets = 0;
    for (int32_t i = 0; i < e->n; i++) {
        bool target = e->weight ? e->weight[i] > 0 : i > 0;
        *at++ = target ? '1' : '.';
        targets += target;
    }
    *at = 0;
    assert_int_equal(targets, e->targets);
    return text;
}

/* Examples in the order given, NULL at the end. */
static void expect(tm_dataset *d, const char *const *examples)
{
    int64_t i = 0;
    for (; examples[i]; i++) {
        assert_true(i < tm_dataset_count(d));
        assert_string_equal(shown(tm_dataset_at(d, i)), examples[i]);
    }
    assert_int_equal(tm_dataset_count(d), i);
}
#define EXPECT(d, ...) expect(d, (const char *const[]){__VA_ARGS__, NULL})

static void tokens_rows(void **state)
{
    (void)state;
    tm_dataset *d;
    OK(load("a.jsonl",
            "{\"input_ids\": [97, 98, 99]}\n\n"
            "{\"labels\": [-100, -100, 99, 100], \"input_ids\": [97, 98, 99, 100], \"more\": {\"x\": [1]}}\r\n"
            "  {\"input_ids\": [97, 98], \"labels\": null}\n"
            "{\"input_ids\": [97, 98], \"labels\": [97, 98]}",
            TM_FORMAT_AUTO, NULL, 16, &d, err));
    EXPECT(d, "abc|.11", "abcd|..11", "ab|.1", "ab|.1");
    assert_null(tm_dataset_at(d, 0)->weight);
    assert_non_null(tm_dataset_at(d, 1)->weight);
    assert_null(tm_dataset_at(d, 3)->weight);
    assert_int_equal(tm_dataset_at(d, 1)->line, 3);
    assert_int_equal(tm_dataset_at(d, 3)->line, 5);
    const tm_dataset_stats *s = tm_dataset_stats_of(d, 0);
    assert_int_equal(s->rows, 4);
    assert_int_equal(s->tokens, 11);
    assert_int_equal(s->targets, 6);
    assert_int_equal(s->cut, 0);
    assert_int_equal(s->text_bytes, 0);
    assert_int_equal(strlen(tm_dataset_hash(d, 0)->hex), 64);
    tm_dataset_destroy(d);

    OK(load("a.json",
            "\n [\n{\"input_ids\": [97, 98, 99], \"labels\": [-100, -100, 99]} ,\n\n {\"input_ids\":\n[100,101]}\n]\n",
            TM_FORMAT_TOKENS, &bare, 16, &d, err));
    EXPECT(d, "abc|..1", "de|.1");
    assert_int_equal(tm_dataset_at(d, 1)->line, 5);
    assert_int_equal(tm_dataset_stats_of(d, 0)->text_bytes, 2);
    tm_dataset_destroy(d);
}

static void long_rows_are_cut(void **state)
{
    (void)state;
    tm_dataset *d;
    OK(load("a.jsonl",
            "{\"input_ids\": [97, 98, 99, 100]}\n"
            "{\"input_ids\": [97, 98, 99, 100], \"labels\": [-100, -100, 99, 100]}\n"
            "{\"input_ids\": [97, 98, 99, 100], \"labels\": [-100, -100, -100, 100]}\n"
            "{\"input_ids\": [97, 98, 99], \"labels\": [-100, 98, -100]}\n",
            TM_FORMAT_TOKENS, NULL, 3, &d, err));
    EXPECT(d, "abc|.11", "abc|..1", "abc|.1.");
    const tm_dataset_stats *s = tm_dataset_stats_of(d, 0);
    assert_int_equal(s->rows, 4);
    assert_int_equal(s->examples, 3);
    assert_int_equal(s->cut, 3);
    assert_int_equal(s->dropped, 1);
    assert_int_equal(s->targets, 4);
    assert_int_equal(s->tokens, 9);
    tm_dataset_destroy(d);
    FAILS(
        TM_INPUT, "nothing to learn from: each of its 1 rows is longer than 2 tokens (train.seq)",
        load("b.jsonl", "{\"input_ids\": [1, 2, 3], \"labels\": [-100, -100, 3]}", TM_FORMAT_TOKENS, NULL, 2, &d, err));
}

static void completion_rows(void **state)
{
    (void)state;
    tm_dataset *d;
    const char *rows =
        "{\"prompt\": \"ask\", \"completion\": \"yes\"}\n{\"completion\": \"n\\u00f6\", \"prompt\": \"\"}\n";
    OK(load("a.jsonl", rows, TM_FORMAT_AUTO, &llama_like, 16, &d, err));
    EXPECT(d, "<askyes>|....1111", "<n\xc3\xb6>|.1111");
    assert_int_equal(tm_dataset_stats_of(d, 0)->text_bytes, 3 + 3);
    assert_int_equal(tm_dataset_stats_of(d, 0)->targets, 8);
    tm_dataset_destroy(d);

    tm_data_entry e = entry(scratch("a.jsonl"), TM_FORMAT_COMPLETION);
    e.path = (char *)scratch("a.jsonl");
    e.loss = TM_LOSS_ALL;
    e.system = (char *)"S:";
    OK(load_with(&e, &llama_like, TOY_VOCAB, 16, &d, err));
    EXPECT(d, "<S:askyes>|.111111111", "<S:n\xc3\xb6>|.111111");
    assert_int_equal(tm_dataset_stats_of(d, 0)->text_bytes, 8 + 5);
    tm_dataset_destroy(d);

    /* no BOS: the first token of an empty prompt's completion is nobody's target */
    OK(load("a.jsonl", rows, TM_FORMAT_AUTO, &bare, 16, &d, err));
    EXPECT(d, "askyes|...111", "n\xc3\xb6|.11");
    tm_dataset_destroy(d);
    /* an EOS that the tokenizer adds by itself stays at the end, not behind the prompt */
    OK(load("a.jsonl", rows, TM_FORMAT_AUTO, &t5_like, 16, &d, err));
    EXPECT(d, "askyes>|...1111", "n\xc3\xb6>|.111");
    tm_dataset_destroy(d);
    /* cut inside the completion, and before it */
    OK(load("a.jsonl", rows, TM_FORMAT_AUTO, &llama_like, 6, &d, err));
    EXPECT(d, "<askye|....11", "<n\xc3\xb6>|.1111");
    assert_int_equal(tm_dataset_stats_of(d, 0)->text_bytes, 2 + 3);
    tm_dataset_destroy(d);
    OK(load("a.jsonl", rows, TM_FORMAT_AUTO, &llama_like, 4, &d, err));
    EXPECT(d, "<n\xc3\xb6|.111");
    assert_int_equal(tm_dataset_stats_of(d, 0)->dropped, 1);
    tm_dataset_destroy(d);

    e = entry(NULL, TM_FORMAT_AUTO);
    e.columns = (tm_string_map){{(char *[]){(char *)"completion", (char *)"prompt"}, 2, 2},
                                {(char *[]){(char *)"a", (char *)"q"}, 2, 2}};
    OK(tm_file_write(scratch("c.jsonl"), "{\"q\": \"x\", \"a\": \"y\", \"prompt\": 5}", 33, err));
    e.path = (char *)scratch("c.jsonl");
    OK(load_with(&e, &llama_like, TOY_VOCAB, 16, &d, err));
    EXPECT(d, "<xy>|..11");
    tm_dataset_destroy(d);
}

static void text_is_cut_into_blocks(void **state)
{
    (void)state;
    tm_dataset *d;
    const char *rows = "{\"text\": \"abcd\"}\n{\"text\": \"efg\", \"id\": 5}\n{\"text\": \"h\"}\n";
    OK(load("a.jsonl", rows, TM_FORMAT_AUTO, &llama_like, 5, &d, err));
    EXPECT(d, "<abcd|.1111", "><efg|.1111", "><h>|.111");
    const tm_dataset_stats *s = tm_dataset_stats_of(d, 0);
    assert_int_equal(s->rows, 3);
    assert_int_equal(s->examples, 3);
    assert_int_equal(s->tokens, 14);
    assert_int_equal(s->targets, 11);
    assert_int_equal(s->text_bytes, 8);
    assert_int_equal(tm_dataset_at(d, 2)->line, 3);
    tm_dataset_destroy(d);

    OK(load("a.jsonl", rows, TM_FORMAT_TEXT, &bare, 4, &d, err));
    EXPECT(d, "abcd|.111", "efgh|.111");
    assert_int_equal(tm_dataset_stats_of(d, 0)->text_bytes, 6);
    tm_dataset_destroy(d);
    OK(load("a.jsonl", rows, TM_FORMAT_TEXT, &bare, 7, &d, err)); /* a last block of one token is nothing */
    EXPECT(d, "abcdefg|.111111");
    tm_dataset_destroy(d);
    OK(load("a.txt", "\xEF\xBB\xBF{one\n\ndocument}\n", TM_FORMAT_AUTO, &llama_like, 64, &d, err));
    EXPECT(d, "<{one\n\ndocument}\n>|.11111111111111111");
    assert_int_equal(tm_dataset_stats_of(d, 0)->text_bytes, 16);
    tm_dataset_destroy(d);
    OK(load("corpus.md", "plain", TM_FORMAT_TEXT, &t5_like, 64, &d, err));
    EXPECT(d, "plain>|.11111");
    tm_dataset_destroy(d);
}

static void refuse(const char *name, const char *text, int format, const tm_tokenizer *tok, tm_status status,
                   const char *message)
{
    tm_dataset *d = (tm_dataset *)&d;
    FAILS(status, message, load(name, text, format, tok, 16, &d, err));
    assert_null(d);
}

static void refusals_say_where(void **state)
{
    (void)state;
    struct {
        const char *text, *message;
        int format;
    } cases[] = {
        {"{\"input_ids\": [1, 2]}\n\n{\"input_ids\": [1, 2}\n", "a.jsonl:3: not valid JSON: ", TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, 2]} {}\n", "a.jsonl:1: not valid JSON: ", TM_FORMAT_TOKENS},
        {"5\n", "a.jsonl:1: expected a row: a JSON object", TM_FORMAT_TOKENS},
        {"\n\"x\"\n", "a.jsonl:2: expected a row", TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, 300]}\n", "a.jsonl:1: input_ids[1]: 300 is outside the vocabulary of 258",
         TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, -1]}\n", "input_ids[1]: -1 is outside", TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, 1.0]}\n", "input_ids[1]: expected token ids, found a number", TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, \"2\"]}\n", "input_ids[1]: expected token ids, found text", TM_FORMAT_TOKENS},
        {"{\"input_ids\": \"1 2\"}\n", "input_ids: expected a list of token ids, found text", TM_FORMAT_TOKENS},
        {"{\"ids\": [1, 2]}\n", "input_ids: expected a list of token ids, found nothing", TM_FORMAT_TOKENS},
        {"{\"input_ids\": []}\n", "a.jsonl:1: the row has no target", TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1]}\n", "the row has no target", TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, 2], \"labels\": [1, -100]}\n", "the row has no target", TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, 2], \"labels\": [1]}\n", "labels: 1 labels beside 2 token ids", TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, 2], \"labels\": [1, 3]}\n", "labels[1]: expected -100 or the token there, 2, found 3",
         TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, 2], \"labels\": [1, null]}\n", "labels[1]: expected token ids or -100, found null",
         TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, 2], \"input_ids\": [1, 2]}\n", "not valid JSON: ", TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, 02]}\n", "a.jsonl:1: not valid JSON: ", TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, 2e0]}\n", "input_ids[1]: expected token ids, found a number", TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, - 2]}\n", "a.jsonl:1: not valid JSON: ", TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, 2,]}\n", "a.jsonl:1: not valid JSON: ", TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, 2],}\n", "a.jsonl:1: not valid JSON: ", TM_FORMAT_TOKENS},
        {"{\"labels\": [1, 2]}\n", "input_ids: expected a list of token ids, found nothing", TM_FORMAT_TOKENS},
        {"{\"input_ids\": [1, 9999999999]}\n", "input_ids[1]: expected token ids, found a number beyond 32 bits",
         TM_FORMAT_TOKENS},
        {"{\"input_ids\": [99999999999999999999, 2]}\n", "not valid JSON: ", TM_FORMAT_TOKENS},
        {"[\n{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 2]}]", "a.jsonl:3: expected a comma or ] after a row",
         TM_FORMAT_TOKENS},
        {"[\n{\"input_ids\": [1, 2]},\n]", "a.jsonl:3: expected a row", TM_FORMAT_TOKENS},
        {"[{\"input_ids\": [1, 2]}", "the array is not closed", TM_FORMAT_TOKENS},
        {"[{\"input_ids\": [1, 2", "the object is not closed", TM_FORMAT_TOKENS},
        {"[{\"input_ids\": [1, 2]}]\n5", "a.jsonl:2: expected nothing after the array", TM_FORMAT_TOKENS},
        {"[1]", "expected a row", TM_FORMAT_TOKENS},
        {"[]", "there is no row in it", TM_FORMAT_TOKENS},
        {"\n \n", "there is no row in it", TM_FORMAT_AUTO},
        {"", "there is no row in it", TM_FORMAT_AUTO},
        {"{\"question\": \"a\", \"answer\": \"b\"}\n",
         "a.jsonl:1: the first rows do not all have the columns of one format; found the keys: question, "
         "answer; expected tokens (input_ids), messages (messages), ",
         TM_FORMAT_AUTO},
        {"{\"text\": \"\"}\n", "a.jsonl:1: text is empty", TM_FORMAT_AUTO},
        {"{\"text\": \"a\"}\n{\"text\": 5}\n", "a.jsonl:2: text: expected text, found a number", TM_FORMAT_AUTO},
        {"{\"text\": \"\xff\"}\n", "a.jsonl:1: not valid JSON: ", TM_FORMAT_AUTO},
        {"{\"text\": \"\\ud800\"}\n", "a.jsonl:1: not valid JSON: ", TM_FORMAT_AUTO},
        {"{\"prompt\": \"a\", \"completion\": \"\"}\n", "completion is empty", TM_FORMAT_AUTO},
        {"{\"prompt\": null, \"completion\": \"a\"}\n", "prompt: expected text, found null", TM_FORMAT_COMPLETION},
        {"{\"prompt\": [], \"completion\": \"a\"}\n", "prompt: expected text, found a list", TM_FORMAT_COMPLETION},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse("a.jsonl", cases[i].text, cases[i].format, &bare, TM_INPUT, cases[i].message);
    refuse("a.jsonl", "{\"text\": \"a\"}\n", TM_FORMAT_AUTO, NULL, TM_INPUT, "rows of text need a tokenizer");
    refuse("a.jsonl", "{\"text\": \"a\"}\n", TM_FORMAT_AUTO, &bare, TM_INPUT,
           "1 rows, but nothing to learn from in 1 tokens");
    refuse("a.txt", "a\nb\xff\n", TM_FORMAT_AUTO, &bare, TM_INPUT, "a.txt:2: not valid UTF-8");
    refuse("a.txt", "", TM_FORMAT_AUTO, &bare, TM_INPUT, "the file is empty");
    refuse("a.txt", "a", TM_FORMAT_TOKENS, &bare, TM_RECIPE, "a plain text file has format text");
    refuse("a.jsonl.xz", "a", TM_FORMAT_TOKENS, &bare, TM_UNSUPPORTED, ".xz files are not read; expected .jsonl");
    refuse("a.csv", "a", TM_FORMAT_TOKENS, &bare, TM_INPUT, "there is no row in it");

    tm_dataset *d;
    tm_data_entry e = entry(scratch("nowhere.jsonl"), TM_FORMAT_TEXT);
    FAILS(TM_INPUT, "nowhere.jsonl", load_with(&e, &bare, TOY_VOCAB, 16, &d, err));
    OK(tm_file_write(scratch("t.jsonl"), "{\"text\": \"abc\"}", 15, err));
    e = entry(scratch("t.jsonl"), TM_FORMAT_TEXT);
    e.loss = TM_LOSS_COMPLETION;
    FAILS(TM_RECIPE, "loss: completion and assistant are for rows", load_with(&e, &bare, TOY_VOCAB, 16, &d, err));
    e.loss = TM_LOSS_AUTO;
    e.system = (char *)"x";
    FAILS(TM_RECIPE, "system is for rows", load_with(&e, &bare, TOY_VOCAB, 16, &d, err));
    e.system = NULL;
    FAILS(TM_INPUT, "t.jsonl:1: token 99 of the tokenizer is outside the model's vocabulary of 99",
          load_with(&e, &bare, 99, 16, &d, err));
    FAILS(TM_RECIPE, "train.seq: 1", load_with(&e, &bare, 99, 1, &d, err));
    tm_data_settings s = {.tok = &bare, .vocab_size = 99, .seq = 16};
    FAILS(TM_RECIPE, "there is no entry", tm_dataset_load(&e, 0, &s, pool, &d, err));
}

/* Many chunks, many threads: the same examples, and the first bad row is the one named. */
static void threads_leave_no_trace(void **state)
{
    (void)state;
    tm_buf text = {0};
    for (int i = 0; i < 60000; i++) {
        tm_philox r = tm_philox_at(11, (uint32_t)i, 0, 0, 0);
        tm_buf_printf(&text, "{\"prompt\": \"%.*s\", \"completion\": \"%d\"}\n", (int)(r.word[0] % 20),
                      "abcdefghijklmnopqrstuvwxyz", i);
    }
    assert_true(text.size > 4 * (256 << 10));
    tm_pool *one;
    tm_dataset *a, *b;
    OK(tm_pool_create(1, &one, err));
    OK(tm_file_write(scratch("big.jsonl"), text.data, text.size, err));
    tm_data_entry e = entry(scratch("big.jsonl"), TM_FORMAT_AUTO);
    tm_data_settings s = {.tok = &llama_like, .vocab_size = TOY_VOCAB, .seq = 16};
    OK(tm_dataset_load(&e, 1, &s, pool, &a, err));
    OK(tm_dataset_load(&e, 1, &s, one, &b, err));
    assert_int_equal(tm_dataset_count(a), tm_dataset_count(b));
    assert_memory_equal(tm_dataset_stats_of(a, 0), tm_dataset_stats_of(b, 0), sizeof(tm_dataset_stats));
    assert_int_equal(tm_dataset_stats_of(a, 0)->rows, 60000);
    for (int64_t i = 0; i < tm_dataset_count(a); i++) {
        const tm_example *x = tm_dataset_at(a, i), *y = tm_dataset_at(b, i);
        assert_int_equal(x->n, y->n);
        assert_int_equal(x->line, y->line);
        assert_int_equal(x->targets, y->targets);
        assert_memory_equal(x->ids, y->ids, (size_t)x->n * 4);
        assert_int_equal(!x->weight, !y->weight);
        if (x->weight)
            assert_memory_equal(x->weight, y->weight, (size_t)x->n * 4);
    }
    tm_dataset_destroy(b);
    tm_dataset_destroy(a);
    for (int bad = 59000; bad > 1000; bad -= 29000) { /* a second bad row before the first */
        char *row = text.data;
        for (int i = 0; i < bad; i++)
            row = strchr(row, '\n') + 1;
        row[0] = 'x';
        char message[64];
        snprintf(message, sizeof message, "big.jsonl:%d: not valid JSON", bad + 1);
        OK(tm_file_write(scratch("big.jsonl"), text.data, text.size, err));
        e = entry(scratch("big.jsonl"), TM_FORMAT_AUTO);
        FAILS(TM_INPUT, message, tm_dataset_load(&e, 1, &s, pool, &a, err));
    }
    tm_pool_destroy(one);
    tm_buf_deinit(&text);
}

static void share_is_held_out(void **state)
{
    (void)state;
    tm_buf text = {0};
    for (int i = 0; i < 200; i++)
        tm_buf_printf(&text, "{\"input_ids\": [%d, 1, %d]}\n", i, i % 7);
    OK(tm_file_write(scratch("s.jsonl"), text.data, text.size, err));
    tm_buf_deinit(&text);
    tm_data_entry e[2] = {entry(scratch("s.jsonl"), TM_FORMAT_TOKENS), entry(scratch("s.jsonl"), TM_FORMAT_TOKENS)};
    tm_dataset *d, *held;
    tm_data_settings s = {.vocab_size = TOY_VOCAB, .seq = 16};
    OK(tm_dataset_load(e, 2, &s, pool, &d, err));
    OK(tm_dataset_split(d, e, 1, &held, err));
    assert_null(held);
    e[1].val_split = 0.1;
    OK(tm_dataset_split(d, e, 1, &held, err));
    assert_int_equal(tm_dataset_count(d), 380);
    assert_int_equal(tm_dataset_count(held), 20);
    assert_int_equal(tm_dataset_stats_of(d, 0)->examples, 200);
    assert_int_equal(tm_dataset_stats_of(d, 1)->examples, 180);
    assert_int_equal(tm_dataset_stats_of(held, 1)->targets, 40);
    bool seen[200] = {false};
    for (int64_t i = 200; i < 380; i++)
        seen[tm_dataset_at(d, i)->ids[0]] = true;
    int32_t before = -1;
    for (int64_t i = 0; i < 20; i++) {
        int32_t id = tm_dataset_at(held, i)->ids[0];
        assert_false(seen[id]);
        assert_true(id > before);
        assert_int_equal(tm_dataset_at(held, i)->source, 1);
        before = id;
    }
    tm_dataset_destroy(d); /* what was split off lives on */
    assert_int_equal(tm_dataset_at(held, 19)->ids[1], 1);
    tm_dataset_destroy(held);
}

static int begin(void **state)
{
    tm_error err;
    return tm_pool_create(3, &pool, &err) == TM_OK ? scratch_begin(state) : -1;
}

static int end(void **state)
{
    tm_pool_destroy(pool);
    return scratch_end(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_rows),        cmocka_unit_test(long_rows_are_cut),
        cmocka_unit_test(completion_rows),    cmocka_unit_test(text_is_cut_into_blocks),
        cmocka_unit_test(refusals_say_where), cmocka_unit_test(threads_leave_no_trace),
        cmocka_unit_test(share_is_held_out),
    };
    return cmocka_run_group_tests_name("dataset", tests, begin, end);
}
