/* Training and evaluation sets that share text: found by words whatever case, punctuation and borders; system
 * prompts say nothing; nothing is found where nothing is shared, against a slow count of our own. And dedup. */
#include "base/philox.h"
#include "text/dataset.h"
#include "toy_tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "folder.h"

static tm_pool *pool, *one;
static const tm_tokenizer tok = {.adds_bos = true, .has_eos = true};

static tm_dataset *load(const char *name, const tm_buf *rows, bool dedup)
{
    tm_data_entry e = {.path = (char *)scratch(name), .weight = 1, .dedup = dedup};
    tm_data_settings s = {.tok = &tok, .vocab_size = TOY_VOCAB, .seq = 4096};
    tm_dataset *d;
    OK(tm_file_write(e.path, rows->data, rows->size, err));
    OK(tm_dataset_load(&e, 1, &s, pool, &d, err));
    return d;
}

static tm_overlap overlap(const tm_dataset *train, const tm_dataset *held, const tm_tokenizer *t)
{
    int64_t n = tm_dataset_count(held);
    tm_overlap a, b;
    OK(tm_dataset_overlap(train, &held, &n, 1, t, pool, &a, err));
    OK(tm_dataset_overlap(train, &held, &n, 1, t, one, &b, err));
    assert_memory_equal(&a, &b, sizeof a);
    return a;
}

static void add(tm_buf *rows, const char *prompt, const char *completion)
{
    tm_buf_printf(rows, "{\"prompt\": \"%s\", \"completion\": \"%s\"}\n", prompt, completion);
}

static void shared_text_is_found(void **state)
{
    (void)state;
    tm_buf a = {0}, b = {0};
    add(&a, "Кто ты? ", "Я дом.");
    add(&a, "one two three four five six seven eight nine ten eleven twelve thirteen ", "fourteen");
    add(&a, "short", "words");
    for (int i = 0; i < 300; i++)
        add(&a, "filler", i % 2 ? "odd" : "even");
    add(&b, "КТО ТЫ -- ", "«я» ДОМ!");                                                               /* all words */
    add(&b, "x One two, three four five six seven eight nine ten eleven twelve ", "Thirteen, y");      /* 13 in a row */
    add(&b, "x One two, three four five six seven eight nine ten eleven ", "twelve other");            /* 12 */
    add(&b, "other", "words");
    tm_dataset *train = load("a.jsonl", &a, false), *held = load("b.jsonl", &b, false);
    tm_overlap o = overlap(train, held, &tok);
    assert_int_equal(o.examples, 2);
    assert_int_equal(o.whole, 1);
    assert_int_equal(o.held[0], 0);
    assert_int_equal(o.train[0], 0);
    assert_int_equal(o.held[1], 1);
    assert_int_equal(o.train[1], 1);
    o = overlap(train, train, &tok);
    assert_int_equal(o.whole, 3 + 2); /* of equal rows one stands for all */
    assert_int_equal(overlap(train, held, NULL).whole, 0);
    tm_dataset_destroy(train);
    tm_dataset_destroy(held);
    tm_buf_deinit(&a);
    tm_buf_deinit(&b);
}

static void system_prompts_say_nothing(void **state)
{
    (void)state;
    static const char system[] = "You are a very kind helper and you answer all that you are asked in one short sentence ";
    tm_buf a = {0}, b = {0}, text = {0};
    for (int i = 0; i < 40; i++) {
        tm_buf_clear(&text);
        tm_buf_printf(&text, "%s train question %d ", system, i);
        add(&a, text.data, "ending the same way for all rows of this file with many words in it and then some more");
        tm_buf_clear(&text);
        tm_buf_printf(&text, "%s held question %d ", system, i + 1000);
        add(&b, text.data, "ending the same way for all rows of this file with many words in it and then some more");
    }
    tm_dataset *train = load("a.jsonl", &a, false), *held = load("b.jsonl", &b, false);
    assert_int_equal(overlap(train, held, &tok).examples, 0);
    tm_dataset_destroy(train);
    tm_dataset_destroy(held);
    tm_buf_deinit(&a);
    tm_buf_deinit(&b);
    tm_buf_deinit(&text);
}

/* Random rows of few words, against every pair of runs compared. */
static void agrees_with_a_slow_count(void **state)
{
    (void)state;
    enum { ROWS = 60, WORDS = 20 };
    static uint32_t word[2][ROWS][WORDS];
    tm_buf rows[2] = {{0}};
    for (int s = 0; s < 2; s++)
        for (uint32_t i = 0; i < ROWS; i++) {
            tm_buf_text(&rows[s], "{\"prompt\": \"\", \"completion\": \"");
            for (uint32_t k = 0; k < WORDS; k++) {
                tm_philox r = tm_philox_at(3, i, k, (uint32_t)s, 0);
                bool copied = s && i % 3 == 0 && k > 0 && k <= 11 + i % 5; /* 11 to 15 words in a row */
                word[s][i][k] = copied ? word[0][(i * 7) % ROWS][k] : r.word[0] % 1000;
                tm_buf_printf(&rows[s], "%su%u", k ? " " : "", word[s][i][k]);
            }
            tm_buf_text(&rows[s], "\"}\n");
        }
    int64_t want = 0;
    for (int i = 0; i < ROWS; i++) {
        bool found = false;
        for (int t = 0; t < ROWS; t++)
            for (int a = 0; a + 13 <= WORDS; a++)
                for (int b = 0; b + 13 <= WORDS; b++)
                    found |= memcmp(&word[1][i][a], &word[0][t][b], 13 * sizeof(uint32_t)) == 0;
        want += found;
    }
    assert_true(want > 5 && want < 20);
    tm_dataset *train = load("a.jsonl", &rows[0], false), *held = load("b.jsonl", &rows[1], false);
    assert_int_equal(overlap(train, held, &tok).examples, want);
    tm_dataset_destroy(train);
    tm_dataset_destroy(held);
    tm_buf_deinit(&rows[0]);
    tm_buf_deinit(&rows[1]);
}

static void duplicates_are_left_out(void **state)
{
    (void)state;
    tm_buf rows = {0};
    for (int i = 0; i < 5000; i++) {
        char text[32];
        snprintf(text, sizeof text, "%d", i % 3000);
        add(&rows, i % 2 ? "odd" : "even", text);
    }
    tm_dataset *all = load("a.jsonl", &rows, false), *some = load("a.jsonl", &rows, true);
    tm_overlap o;
    OK(tm_dataset_duplicates(all, tm_dataset_sources(all), &o, err));
    assert_int_equal(o.examples, 2000);
    assert_int_equal(tm_dataset_at(all, o.held[0])->line - tm_dataset_at(all, o.train[0])->line, 3000);
    OK(tm_dataset_duplicates(some, tm_dataset_sources(some), &o, err));
    assert_int_equal(o.examples, 0);
    assert_int_equal(tm_dataset_count(some), 3000);
    const tm_dataset_stats *s = tm_dataset_stats_of(some, 0), *t = tm_dataset_stats_of(all, 0);
    assert_int_equal(s->duplicates, 2000);
    assert_int_equal(s->rows, 5000);
    int64_t tokens = 0, targets = 0, bytes = 0;
    for (int64_t i = 0; i < 3000; i++) {
        const tm_example *x = tm_dataset_at(all, i), *y = tm_dataset_at(some, i);
        assert_int_equal(x->n, y->n);
        assert_int_equal(x->line, y->line);
        assert_memory_equal(x->ids, y->ids, (size_t)x->n * 4);
        assert_memory_equal(x->weight, y->weight, (size_t)x->n * 4);
        tokens += y->n;
        targets += y->targets;
        bytes += y->targets - 1; /* all but EOS */
    }
    assert_int_equal(s->tokens, tokens);
    assert_int_equal(s->targets, targets);
    assert_int_equal(s->text_bytes, bytes);
    assert_true(t->text_bytes > bytes);
    tm_dataset_destroy(all);
    tm_dataset_destroy(some);
    /* documents */
    tm_buf_clear(&rows);
    tm_buf_text(&rows, "{\"text\": \"ab\"}\n{\"text\": \"c\"}\n{\"text\": \"ab\"}\n{\"text\": \"ab \"}\n");
    some = load("t.jsonl", &rows, true);
    assert_int_equal(tm_dataset_stats_of(some, 0)->duplicates, 1);
    assert_int_equal(tm_dataset_stats_of(some, 0)->tokens, 4 + 3 + 5);
    tm_dataset_destroy(some);
    tm_buf_deinit(&rows);
}

static int begin(void **state)
{
    tm_error err;
    return tm_pool_create(3, &pool, &err) == TM_OK && tm_pool_create(1, &one, &err) == TM_OK ? scratch_begin(state) : -1;
}

static int end(void **state)
{
    tm_pool_destroy(pool);
    tm_pool_destroy(one);
    return scratch_end(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(shared_text_is_found), cmocka_unit_test(system_prompts_say_nothing),
                                       cmocka_unit_test(agrees_with_a_slow_count), cmocka_unit_test(duplicates_are_left_out)};
    return cmocka_run_group_tests_name("overlap", tests, begin, end);
}
