/* Data sets with a real tokenizer and real files, against what Hugging Face's tokenizers gave for them: the
 * shipped model's folder, school mathematics as completions, Shakespeare as one document. */
#include "text/dataset.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <string.h>

#include "folder.h"

static tm_tokenizer *tok;
static tm_pool *pool;

static int begin(void **state)
{
    (void)state;
    tm_error err = {0};
    if (tm_tokenizer_open("models/stories260K", &tok, &err) == TM_OK && tm_pool_create(2, &pool, &err) == TM_OK)
        return 0;
    print_error("%s\n", err.message);
    return -1;
}

static int end(void **state)
{
    (void)state;
    tm_pool_destroy(pool);
    tm_tokenizer_close(tok);
    return 0;
}

/* SHA-256 of all ids as 32-bit little-endian words, and of all weights as bytes. */
static void hashes(const tm_dataset *d, tm_sha256 *ids, tm_sha256 *weights)
{
    tm_buf a = {0}, b = {0};
    for (int64_t i = 0; i < tm_dataset_count(d); i++) {
        const tm_example *e = tm_dataset_at(d, i);
        tm_buf_add(&a, e->ids, (size_t)e->n * 4);
        for (int32_t k = 0; k < e->n; k++)
            tm_buf_char(&b, e->weight ? e->weight[k] > 0 : k > 0);
    }
    OK(tm_sha256_bytes(a.data, a.size, ids, err));
    OK(tm_sha256_bytes(b.data, b.size, weights, err));
    tm_buf_deinit(&a);
    tm_buf_deinit(&b);
}

static void completions(void **state)
{
    (void)state;
    tm_data_entry e = {.path = (char *)"data/gsm8k.jsonl", .weight = 1};
    char *keys[] = {(char *)"completion", (char *)"prompt"}, *values[] = {(char *)"answer", (char *)"question"};
    e.columns = (tm_string_map){{keys, 2, 2}, {values, 2, 2}};
    tm_dataset *d;
    tm_sha256 ids, weights;
    OK(tm_dataset_load(&e, 1, &(tm_data_settings){.tok = tok, .vocab_size = 512, .seq = 256}, pool, &d, err));
    const tm_dataset_stats *s = tm_dataset_stats_of(d, 0);
    assert_int_equal(s->rows, 200);
    assert_int_equal(s->examples, 194);
    assert_int_equal(s->tokens, 47289);
    assert_int_equal(s->targets, 20455);
    assert_int_equal(s->cut, 153);
    assert_int_equal(s->dropped, 6);
    hashes(d, &ids, &weights);
    assert_string_equal(ids.hex, "e7f881db869dfdecb81bbb9725b7c489f058565842debd6b02d745c87ee2da20");
    assert_string_equal(weights.hex, "3c3f5dbe44388df83084351cf627a294d65ef0028728bf069d44aacac0143266");
    tm_dataset_destroy(d);
}

static void a_document(void **state)
{
    (void)state;
    tm_data_entry e = {.path = (char *)"data/demo/shakespeare-dev.txt", .weight = 1};
    tm_dataset *d;
    tm_sha256 ids, weights;
    OK(tm_dataset_load(&e, 1, &(tm_data_settings){.tok = tok, .vocab_size = 512, .seq = 256}, pool, &d, err));
    const tm_dataset_stats *s = tm_dataset_stats_of(d, 0);
    assert_int_equal(s->tokens, 12556);
    assert_int_equal(s->examples, 50);
    assert_int_equal(s->targets, 12556 - 50);
    hashes(d, &ids, &weights);
    assert_string_equal(ids.hex, "ff9fa340039750a057c0ca3477d3827d95fce0274cead080a262350b0c21320e");
    size_t size;
    free(slurp("data/demo/shakespeare-dev.txt", &size));
    assert_true(s->text_bytes < (int64_t)size && s->text_bytes > (int64_t)size * 99 / 100);
    tm_dataset_destroy(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(completions), cmocka_unit_test(a_document)};
    return cmocka_run_group_tests_name("rows", tests, begin, end);
}
