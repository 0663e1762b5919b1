/* Parquet files written by pyarrow, row by row against what pyarrow says is in them; and files damaged at every
 * place, which must be refused or read, never more. */
#include "io/parquet.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/json.h"
#include "base/philox.h"
#include "folder.h"

static const char *const columns[] = {"text", "input_ids", "messages", "history", "system", "output", "nowhere"};
static const char *const files[] = {"none-1", "none-2", "snappy-1", "snappy-2", "gzip-1", "gzip-2", "zstd-1", "zstd-2"};

static tm_status read_all(const char *path, size_t piece, tm_buf *out, tm_error *err)
{
    tm_parquet *f;
    TM_TRY(tm_parquet_open(path, columns, 7, &f, err));
    tm_status st = TM_OK;
    for (size_t got = piece; st == TM_OK && got == piece;) {
        char *to = tm_buf_reserve(out, piece);
        st = tm_parquet_read(f, to, piece, &got, err);
        out->size += got;
    }
    tm_parquet_close(f);
    return st;
}

static void rows_are_pyarrows(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        for (size_t piece = 7; piece < 100000; piece = piece * 31 + 1) {
            char path[100], wanted[100];
            snprintf(path, sizeof path, "tests/data/parquet/%s.parquet", files[i]);
            snprintf(wanted, sizeof wanted, "tests/data/parquet/%s.jsonl", files[i]);
            tm_buf rows = {0};
            OK(read_all(path, piece, &rows, err));
            size_t size;
            char *text = slurp(wanted, &size), *a = text, *b = rows.data;
            for (int line = 1; *a; line++) {
                char *end_a = strchr(a, '\n'), *end_b = strchr(b, '\n');
                json_t *x, *y;
                assert_non_null(end_b);
                OK(tm_json_parse_row(a, (size_t)(end_a - a), &x, err));
                OK(tm_json_parse_row(b, (size_t)(end_b - b), &y, err));
                if (!json_equal(x, y))
                    fail_msg("%s:%d: %.*s", path, line, (int)(end_b - b), b);
                json_decref(x);
                json_decref(y);
                a = end_a + 1;
                b = end_b + 1;
            }
            assert_ptr_equal(b, rows.data + rows.size);
            free(text);
            tm_buf_deinit(&rows);
        }
}

static void columns_by_name(void **state)
{
    (void)state;
    static const char *const none[] = {"question"}, *const one[] = {"system"};
    tm_parquet *f;
    FAILS(TM_INPUT, "none of its columns is known: text, input_ids, messages, history, system, output",
          tm_parquet_open("tests/data/parquet/none-1.parquet", none, 1, &f, err));
    assert_null(f);
    char row[64];
    size_t got;
    OK(tm_parquet_open("tests/data/parquet/none-1.parquet", one, 1, &f, err));
    OK(tm_parquet_read(f, row, 17, &got, err));
    assert_int_equal(got, 17);
    assert_memory_equal(row, "{\"system\": ", 11);
    tm_parquet_close(f);
    FAILS(TM_INPUT, "not a Parquet file", tm_parquet_open("tests/data/parquet/none-1.jsonl", one, 1, &f, err));
    FAILS(TM_INPUT, "cannot open", tm_parquet_open("tests/data/parquet/nowhere", one, 1, &f, err));
}

/* Every byte of the metadata and many of the pages, changed; every length, cut. */
static void damage_is_survived(void **state)
{
    (void)state;
    int refused = 0;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[100];
        size_t size;
        snprintf(path, sizeof path, "tests/data/parquet/%s.parquet", files[i]);
        char *whole = slurp(path, &size);
        for (uint32_t k = 0; k < 400; k++) {
            tm_philox r = tm_philox_at(77, k, (uint32_t)i, 0, 0);
            size_t at = r.word[0] % size, cut = k % 4 ? size : r.word[1] % size;
            char before = whole[at];
            whole[at] = (char)(whole[at] ^ (1 << (r.word[2] % 8)));
            unlink(scratch("damaged.parquet"));
            FILE *f = fopen(scratch("damaged.parquet"), "wb"); /* unsynced: there are thousands */
            assert_true(f && fwrite(whole, 1, cut, f) == cut && fclose(f) == 0);
            whole[at] = before;
            tm_buf out = {0};
            tm_error err = {0};
            tm_status st = read_all(scratch("damaged.parquet"), 4096, &out, &err);
            if (st != TM_OK) {
                refused++;
                assert_true(st == TM_INPUT || st == TM_UNSUPPORTED);
                assert_non_null(strstr(err.message, "damaged.parquet"));
            }
            tm_buf_deinit(&out);
        }
        free(whole);
    }
    assert_true(refused > 800);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(rows_are_pyarrows), cmocka_unit_test(columns_by_name),
                                       cmocka_unit_test(damage_is_survived)};
    return cmocka_run_group_tests_name("parquet", tests, scratch_begin, scratch_end);
}
