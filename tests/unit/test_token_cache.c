/* The token cache: what comes out of it is what was read; it is used when data, tokenizer and settings are the
 * same and never when anything differs or the file is damaged. */
#include "base/philox.h"
#include "text/dataset.h"
#include "toy_tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "folder.h"

static tm_pool *pool;
static const tm_tokenizer tok = {.adds_bos = true, .has_eos = true};
static char data[256], folder[256];

static tm_dataset *load(tm_data_entry e, int64_t seq, const char *hash, const char *cache, tm_cache_use use)
{
    tm_data_settings s = {.tok = &tok, .vocab_size = TOY_VOCAB, .seq = seq, .tokenizer_hash = hash, .cache = cache};
    tm_dataset *d;
    e.path = data;
    e.weight = 1;
    OK(tm_dataset_load(&e, 1, &s, pool, &d, err));
    if (tm_dataset_cache(d, 0) != use)
        fail_msg("the cache was %d, expected %d", tm_dataset_cache(d, 0), use);
    return d;
}

static void same(tm_dataset *a, tm_dataset *b)
{
    assert_int_equal(tm_dataset_count(a), tm_dataset_count(b));
    assert_memory_equal(tm_dataset_stats_of(a, 0), tm_dataset_stats_of(b, 0), sizeof(tm_dataset_stats));
    for (int64_t i = 0; i < tm_dataset_count(a); i++) {
        const tm_example *x = tm_dataset_at(a, i), *y = tm_dataset_at(b, i);
        assert_true(x->n == y->n && x->targets == y->targets && x->line == y->line && x->file == y->file);
        assert_memory_equal(x->ids, y->ids, (size_t)x->n * 4);
        assert_int_equal(!x->weight, !y->weight);
        if (x->weight)
            assert_memory_equal(x->weight, y->weight, (size_t)x->n * 4);
    }
    tm_dataset_destroy(a);
    tm_dataset_destroy(b);
}

static void put_rows(const char *completion)
{
    tm_buf rows = {0};
    for (uint32_t i = 0; i < 2000; i++) {
        tm_philox r = tm_philox_at(1, i, 0, 0, 0);
        tm_buf_printf(&rows, "{\"prompt\": \"%.*s\", \"completion\": \"%s%u\", \"text\": \"t%u\"}\n", (int)(r.word[0] % 9),
                      "abcdefghi", completion, i, i);
    }
    OK(tm_file_write(data, rows.data, rows.size, err));
    tm_buf_deinit(&rows);
}

static size_t cached(void)
{
    char **names;
    size_t count, tokens = 0;
    OK(tm_dir_list(folder, &names, &count, err));
    for (size_t i = 0; i < count; i++)
        tokens += strlen(names[i]) == 32 + 7;
    assert_int_equal(tokens, count); /* and nothing is left aside */
    tm_names_free(names, count);
    return count;
}

static void used_when_all_is_the_same(void **state)
{
    (void)state;
    put_rows("x");
    tm_data_entry rows = {.format = TM_FORMAT_AUTO}, text = {.format = TM_FORMAT_TEXT};
    same(load(rows, 16, "h", NULL, TM_CACHE_NONE), load(rows, 16, "h", folder, TM_CACHE_WRITTEN));
    same(load(rows, 16, "h", NULL, TM_CACHE_NONE), load(rows, 16, "h", folder, TM_CACHE_USED));
    same(load(text, 16, "h", NULL, TM_CACHE_NONE), load(text, 16, "h", folder, TM_CACHE_WRITTEN));
    same(load(text, 16, "h", NULL, TM_CACHE_NONE), load(text, 16, "h", folder, TM_CACHE_USED));
    assert_int_equal(cached(), 2);
    /* everything that enters the tokens enters the name */
    tm_data_entry all = rows, system = rows, dedup = rows, columns = rows;
    all.loss = TM_LOSS_ALL;
    system.system = (char *)"s";
    dedup.dedup = true;
    columns.columns = (tm_string_map){{(char *[]){(char *)"completion"}, 1, 1}, {(char *[]){(char *)"text"}, 1, 1}};
    tm_data_entry others[] = {all, system, dedup, columns};
    for (size_t i = 0; i < 4; i++) {
        tm_dataset_destroy(load(others[i], 16, "h", folder, TM_CACHE_WRITTEN));
        tm_dataset_destroy(load(others[i], 16, "h", folder, TM_CACHE_USED));
    }
    tm_dataset_destroy(load(rows, 17, "h", folder, TM_CACHE_WRITTEN));
    tm_dataset_destroy(load(rows, 16, "g", folder, TM_CACHE_WRITTEN));
    tm_dataset_destroy(load(rows, 16, NULL, folder, TM_CACHE_NONE));
    put_rows("y");
    same(load(rows, 16, "h", NULL, TM_CACHE_NONE), load(rows, 16, "h", folder, TM_CACHE_WRITTEN));
    assert_int_equal(cached(), 9);
    /* ids that a smaller model does not have are said with their line */
    tm_data_settings s = {.tok = &tok, .vocab_size = 100, .seq = 16, .tokenizer_hash = "h", .cache = folder};
    tm_data_entry e = {.path = data, .weight = 1};
    tm_dataset *d;
    FAILS(TM_INPUT, "rows.jsonl:1: token", tm_dataset_load(&e, 1, &s, pool, &d, err));
    OK(tm_dir_remove(folder, err));
}

static void damaged_is_written_anew(void **state)
{
    (void)state;
    put_rows("x");
    tm_data_entry rows = {.format = TM_FORMAT_AUTO};
    tm_dataset_destroy(load(rows, 16, "h", folder, TM_CACHE_WRITTEN));
    char **names, path[600];
    size_t count, size;
    OK(tm_dir_list(folder, &names, &count, err));
    assert_int_equal(count, 1);
    snprintf(path, sizeof path, "%s/%s", folder, names[0]);
    tm_names_free(names, count);
    char *whole = slurp(path, &size);
    for (uint32_t i = 0; i < 24; i++) {
        tm_philox r = tm_philox_at(9, i, 0, 0, 0);
        size_t at = i < 8 ? size - 1 - r.word[0] % 240 : r.word[0] % size, cut = i % 4 == 3 ? r.word[1] % size : size;
        whole[at] = (char)(whole[at] ^ 4);
        OK(tm_file_write(path, whole, cut, err));
        whole[at] = (char)(whole[at] ^ 4);
        same(load(rows, 16, "h", NULL, TM_CACHE_NONE), load(rows, 16, "h", folder, TM_CACHE_WRITTEN));
    }
    OK(tm_file_write(path, whole, size, err));
    same(load(rows, 16, "h", NULL, TM_CACHE_NONE), load(rows, 16, "h", folder, TM_CACHE_USED));
    free(whole);
    /* a row that is refused leaves nothing behind */
    OK(tm_dir_remove(folder, err));
    static const char bad[] = "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\n";
    OK(tm_file_write(data, bad, sizeof bad - 1, err));
    tm_data_settings s = {.tok = &tok, .vocab_size = TOY_VOCAB, .seq = 16, .tokenizer_hash = "h", .cache = folder};
    tm_data_entry e = {.path = data, .weight = 1};
    tm_dataset *d;
    FAILS(TM_INPUT, "rows.jsonl:2", tm_dataset_load(&e, 1, &s, pool, &d, err));
    assert_int_equal(cached(), 0);
}

static void a_small_entry_needs_none(void **state)
{
    (void)state;
    put_rows("x");
    tm_data_settings s = {.tok = &tok, .vocab_size = TOY_VOCAB, .seq = 16, .tokenizer_hash = "h", .cache = folder, .cache_from = 1 << 20};
    tm_data_entry e = {.path = data, .weight = 1};
    tm_dataset *d;
    OK(tm_dataset_load(&e, 1, &s, pool, &d, err));
    assert_int_equal(tm_dataset_cache(d, 0), TM_CACHE_NONE);
    tm_dataset_destroy(d);
}

static int begin(void **state)
{
    tm_error err;
    if (tm_pool_create(2, &pool, &err) != TM_OK || scratch_begin(state) != 0)
        return -1;
    snprintf(data, sizeof data, "%s/rows.jsonl", scratch_dir);
    snprintf(folder, sizeof folder, "%s/cache/deep", scratch_dir);
    return 0;
}

static int end(void **state)
{
    tm_pool_destroy(pool);
    return scratch_end(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(used_when_all_is_the_same), cmocka_unit_test(damaged_is_written_anew),
                                       cmocka_unit_test(a_small_entry_needs_none)};
    return cmocka_run_group_tests_name("token cache", tests, begin, end);
}
