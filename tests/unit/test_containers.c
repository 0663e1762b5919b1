/* The same rows in every container give the same examples; what is damaged is refused with its place. */
#include "base/json.h"
#include "base/philox.h"
#include "text/dataset.h"
#include "toy_tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <zlib.h>
#include <zstd.h>

#include "folder.h"

static tm_pool *pool;
static const tm_tokenizer tok = {.adds_bos = true, .has_eos = true};

static tm_status load_path(const char *path, int format, tm_dataset **out, tm_error *err)
{
    tm_data_entry e = {.path = (char *)path, .format = format, .weight = 1};
    tm_data_settings s = {.tok = &tok, .vocab_size = TOY_VOCAB, .seq = 4096};
    return tm_dataset_load(&e, 1, &s, pool, out, err);
}

static const char *put(const char *name, const void *data, size_t size)
{
    const char *path = scratch(name);
    unlink(path);
    FILE *f = fopen(path, "wb");
    assert_true(f && fwrite(data, 1, size, f) == size && fclose(f) == 0);
    return path;
}

static void gzip_of(const char *data, size_t size, tm_buf *out)
{
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (unsigned char *)(uintptr_t)data;
    z.avail_in = (unsigned)size;
    size_t room = deflateBound(&z, size) + 64;
    z.next_out = tm_buf_reserve(out, room);
    z.avail_out = (unsigned)room;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    out->size += room - z.avail_out;
    deflateEnd(&z);
}

static void zstd_of(const char *data, size_t size, tm_buf *out)
{
    size_t room = ZSTD_compressBound(size), n = ZSTD_compress(tm_buf_reserve(out, room), room, data, size, 3);
    assert_false(ZSTD_isError(n));
    out->size += n;
}

static void same(const tm_dataset *a, const tm_dataset *b)
{
    assert_int_equal(tm_dataset_count(a), tm_dataset_count(b));
    assert_memory_equal(tm_dataset_stats_of(a, 0), tm_dataset_stats_of(b, 0), sizeof(tm_dataset_stats));
    for (int64_t i = 0; i < tm_dataset_count(a); i++) {
        const tm_example *x = tm_dataset_at(a, i), *y = tm_dataset_at(b, i);
        assert_int_equal(x->n, y->n);
        assert_memory_equal(x->ids, y->ids, (size_t)x->n * 4);
        assert_int_equal(!x->weight, !y->weight);
        if (x->weight)
            assert_memory_equal(x->weight, y->weight, (size_t)x->n * 4);
    }
}

/* A random text without zeros and returns at its end; a third of its characters are special to CSV or JSON. */
static void random_text(uint32_t i, uint32_t which, tm_buf *out)
{
    static const char *const parts[] = {"a", "b", " ", "\"", ",", "\n", "\"\"", ";", "\t", "\r\n", "\xd0\xb4", "\\", "{", "]"};
    tm_philox r = tm_philox_at(5, i, which, 0, 0);
    tm_buf_clear(out);
    tm_buf_text(out, "x");
    for (uint32_t k = 0, n = r.word[0] % 12; k < n; k++) {
        tm_philox c = tm_philox_at(6, i, which, k, 0);
        tm_buf_text(out, parts[c.word[0] % 14]);
    }
    tm_buf_text(out, "y");
}

static void put_csv(tm_buf *out, const char *text, bool quote)
{
    if (!quote && !strpbrk(text, "\",;\t\r\n")) {
        tm_buf_text(out, text);
        return;
    }
    tm_buf_char(out, '"');
    for (; *text; text++) {
        if (*text == '"')
            tm_buf_char(out, '"');
        tm_buf_char(out, *text);
    }
    tm_buf_char(out, '"');
}

static void containers_agree(void **state)
{
    (void)state;
    enum { ROWS = 3000 };
    tm_buf jsonl = {0}, array = {0}, csv[3] = {{0}}, text = {0};
    static const char separators[] = ",;\t";
    static const char *const names[] = {"a.csv", "b.CSV", "c.tsv"};
    for (int c = 0; c < 3; c++)
        tm_buf_printf(&csv[c], "%sid%cprompt%c\"completion\"%s", c == 1 ? "\xef\xbb\xbf" : "", separators[c],
                      separators[c], c ? "\r\n" : "\n");
    tm_buf_text(&array, " [");
    for (uint32_t i = 0; i < ROWS; i++) {
        tm_buf_printf(&jsonl, "{\"id\": %u, \"prompt\": ", i);
        tm_buf_printf(&array, "%s\n{\"prompt\":\n", i ? "," : "");
        for (int c = 0; c < 3; c++)
            tm_buf_printf(&csv[c], "%u%c", i, separators[c]);
        for (uint32_t side = 0; side < 2; side++) {
            random_text(i, side, &text);
            tm_json_put_string(&jsonl, text.data);
            tm_json_put_string(&array, text.data);
            tm_buf_text(&jsonl, side ? "}\n" : ", \"completion\": ");
            tm_buf_text(&array, side ? "}" : " ,\"completion\" :");
            for (int c = 0; c < 3; c++) {
                put_csv(&csv[c], text.data, i % 5 == 0);
                tm_buf_printf(&csv[c], "%s", side ? i % 7 == 0 ? "\n\n" : c ? "\r\n" : "\n" : "");
                if (!side)
                    tm_buf_char(&csv[c], separators[c]);
            }
        }
    }
    tm_buf_text(&array, "\n]\n");
    tm_dataset *want, *got;
    OK(load_path(put("a.jsonl", jsonl.data, jsonl.size), TM_FORMAT_AUTO, &want, err));
    assert_int_equal(tm_dataset_count(want), ROWS);
    OK(load_path(put("a.json", array.data, array.size), TM_FORMAT_AUTO, &got, err));
    same(want, got);
    tm_dataset_destroy(got);
    for (int c = 0; c < 3; c++) {
        OK(load_path(put(names[c], csv[c].data, csv[c].size), TM_FORMAT_AUTO, &got, err));
        same(want, got);
        tm_dataset_destroy(got);
        tm_buf packed = {0};
        char name[32];
        size_t half = csv[c].size / 2; /* two members, two frames, cut anywhere */
        gzip_of(csv[c].data, half, &packed);
        gzip_of(csv[c].data + half, csv[c].size - half, &packed);
        snprintf(name, sizeof name, "%s.gz", names[c]);
        OK(load_path(put(name, packed.data, packed.size), TM_FORMAT_AUTO, &got, err));
        same(want, got);
        tm_dataset_destroy(got);
        tm_buf_clear(&packed);
        zstd_of(csv[c].data, half, &packed);
        zstd_of(csv[c].data + half, csv[c].size - half, &packed);
        snprintf(name, sizeof name, "%s.zst", names[c]);
        OK(load_path(put(name, packed.data, packed.size), TM_FORMAT_AUTO, &got, err));
        same(want, got);
        tm_dataset_destroy(got);
        tm_buf_deinit(&packed);
        tm_buf_deinit(&csv[c]);
    }
    tm_dataset_destroy(want);
    tm_buf_deinit(&jsonl);
    tm_buf_deinit(&array);
    tm_buf_deinit(&text);
}

/* More than a window, with a row that is larger than one in the middle. */
static void windows_end_anywhere(void **state)
{
    (void)state;
    tm_buf rows = {0}, array = {0}, packed = {0};
    enum { ROWS = 20000, LARGE = 11111, BYTES = 20 << 20 };
    tm_buf_text(&array, "[");
    for (int i = 0; i < ROWS; i++) {
        size_t from = rows.size;
        tm_buf_printf(&rows, "{\"prompt\": \"p%d\", \"completion\": \"%0*d", i, i % 1500 + 1, i);
        if (i == LARGE) {
            memset(tm_buf_reserve(&rows, BYTES), 'z', BYTES);
            rows.size += BYTES;
        }
        tm_buf_text(&rows, "\"}");
        tm_buf_text(&array, i ? ",\n" : "");
        tm_buf_add(&array, rows.data + from, rows.size - from);
        tm_buf_char(&rows, '\n');
    }
    tm_buf_text(&array, "]");
    tm_dataset *want, *got;
    OK(load_path(put("w.jsonl", rows.data, rows.size), TM_FORMAT_AUTO, &want, err));
    assert_int_equal(tm_dataset_count(want), ROWS);
    for (int64_t i = 0; i < ROWS; i++) {
        const tm_example *e = tm_dataset_at(want, i);
        assert_int_equal(e->line, i + 1);
        assert_int_equal(e->ids[1], 'p');
    }
    assert_int_equal(tm_dataset_stats_of(want, 0)->cut, 1);
    OK(load_path(put("w.json", array.data, array.size), TM_FORMAT_AUTO, &got, err));
    same(want, got);
    assert_int_equal(tm_dataset_at(got, ROWS - 1)->line, ROWS);
    tm_dataset_destroy(got);
    gzip_of(rows.data, rows.size, &packed);
    OK(load_path(put("w.jsonl.gz", packed.data, packed.size), TM_FORMAT_AUTO, &got, err));
    same(want, got);
    tm_dataset_destroy(got);
    tm_dataset_destroy(want);
    tm_buf_deinit(&packed);
    tm_buf_deinit(&array);
    tm_buf_deinit(&rows);
}

static void folders_and_patterns(void **state)
{
    (void)state;
    static const char *const in[][2] = {{"f/b.jsonl", "{\"text\": \"two\"}\n"},
                                        {"f/sub/c.csv", "text\nthree\n"},
                                        {"f/a.txt", "one"},
                                        {"f/.hidden.jsonl", "{"},
                                        {"f/notes.md", "not data"}};
    OK(tm_dir_create(scratch("f/sub"), err));
    for (int i = 0; i < 5; i++)
        put(in[i][0], in[i][1], strlen(in[i][1]));
    tm_dataset *d, *again;
    OK(load_path(scratch("f"), TM_FORMAT_TEXT, &d, err));
    assert_int_equal(tm_dataset_count(d), 1);
    const tm_example *e = tm_dataset_at(d, 0);
    static const int32_t want[] = {TOY_BOS, 'o', 'n', 'e', TOY_EOS, TOY_BOS, 't', 'w', 'o', TOY_EOS,
                                   TOY_BOS, 't', 'h', 'r', 'e', 'e', TOY_EOS};
    assert_int_equal(e->n, sizeof want / sizeof *want);
    assert_memory_equal(e->ids, want, sizeof want);
    OK(load_path(scratch("f/[ab].*"), TM_FORMAT_AUTO, &again, err));
    assert_int_equal(tm_dataset_stats_of(again, 0)->rows, 2);
    assert_string_not_equal(tm_dataset_hash(d, 0)->hex, tm_dataset_hash(again, 0)->hex);
    tm_dataset_destroy(again);
    /* the hash is of names and contents, not of where the folder stands */
    OK(tm_path_move(scratch("f"), scratch("g"), err));
    OK(load_path(scratch("g"), TM_FORMAT_TEXT, &again, err));
    assert_string_equal(tm_dataset_hash(d, 0)->hex, tm_dataset_hash(again, 0)->hex);
    tm_dataset_destroy(again);
    tm_dataset_destroy(d);
    FAILS(TM_INPUT, "no file matches", load_path(scratch("g/*.parquet"), TM_FORMAT_AUTO, &d, err));
    put("g/sub/d.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n", 36);
    FAILS(TM_INPUT, "expected one format an entry", load_path(scratch("g"), TM_FORMAT_AUTO, &d, err));
    OK(tm_dir_create(scratch("empty"), err));
    FAILS(TM_INPUT, "no data in this folder", load_path(scratch("empty"), TM_FORMAT_AUTO, &d, err));
}

static void damage_is_named(void **state)
{
    (void)state;
    tm_dataset *d;
    struct {
        const char *name, *text, *message;
    } cases[] = {
        {"a.csv", "text\n\"open\n\n", "a.csv:2: a quoted field is not closed"},
        {"a.csv", "text,b\none,2\n\nx\n", "a.csv:4: expected 2 fields as in the first line, found 1"},
        {"a.csv", "text\none\ntwo,\n", "a.csv:3: expected 1 fields as in the first line, found 2"},
        {"a.csv", "text\n\"a\"b\n", "a.csv:2: field 1: expected ',' or the end of the line behind the closing quote"},
        {"a.csv", "text,text\n", "a.csv:1: two columns are called 'text'"},
        {"a.csv", "text\n\xff\n", "a.csv:2: text: not valid UTF-8"},
        {"a.csv", "text\n", "there is no row in it"},
        {"a.csv", "question,b\n1,2\n", "a.csv:2: the first rows do not all have the columns of one format; found the keys: question, b"},
        {"a.csv", "input_ids\n\"[1, 2\"\n", "a.csv:2: input_ids: text that should hold a list: not valid JSON"},
        {"a.jsonl.gz", "\x1f\x8b\x08zzzzzzzzzzzz", "a.jsonl.gz: damaged gzip"},
        {"a.jsonl.zst", "\x28\xb5\x2f\xfdzzzzzzzzzzzzz", "a.jsonl.zst: damaged zstd"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        FAILS(TM_INPUT, cases[i].message,
              load_path(put(cases[i].name, cases[i].text, strlen(cases[i].text)), TM_FORMAT_AUTO, &d, err));
    OK(load_path(put("t.csv", "input_ids,labels\n\"[1, 2, 3]\",\"[-100, 2, 3]\"\n\"[1,2]\",\n", 53), TM_FORMAT_AUTO, &d, err));
    assert_int_equal(tm_dataset_count(d), 2);
    tm_dataset_destroy(d);

    tm_buf packed = {0};
    gzip_of("{\"text\": \"abcd\"}\n", 17, &packed);
    for (size_t cut = 3; cut < packed.size; cut++)
        FAILS(TM_INPUT, "g.jsonl.gz: ", load_path(put("g.jsonl.gz", packed.data, cut), TM_FORMAT_AUTO, &d, err));
    packed.data[packed.size - 6] ^= 1; /* its CRC */
    FAILS(TM_INPUT, "damaged gzip", load_path(put("g.jsonl.gz", packed.data, packed.size), TM_FORMAT_AUTO, &d, err));
    tm_buf_clear(&packed);
    zstd_of("{\"text\": \"abcd\"}\n", 17, &packed);
    for (size_t cut = 5; cut < packed.size; cut++)
        FAILS(TM_INPUT, "g.jsonl.zst: ", load_path(put("g.jsonl.zst", packed.data, cut), TM_FORMAT_AUTO, &d, err));
    tm_buf_deinit(&packed);
}

/* Bombs: a file of some hundred kilobytes that unpacks to hundreds of megabytes. */
static void bombs_are_refused(void **state)
{
    (void)state;
    tm_dataset *d;
    tm_buf packed = {0}, lines = {0};
    tm_buf_text(&lines, "{\"text\": \"a\"}");
    while (lines.size < 1 << 20)
        tm_buf_text(&lines, "\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n");
    for (int i = 0; i < 300; i++)
        gzip_of(lines.data, lines.size, &packed);
    FAILS(TM_INPUT, "unpacks to more than 200 times its size",
          load_path(put("bomb.jsonl.gz", packed.data, packed.size), TM_FORMAT_AUTO, &d, err));
    tm_buf_clear(&packed);
    for (int i = 0; i < 300; i++)
        zstd_of(lines.data, lines.size, &packed);
    FAILS(TM_INPUT, "unpacks to more than 200 times its size",
          load_path(put("bomb.jsonl.zst", packed.data, packed.size), TM_FORMAT_AUTO, &d, err));
    tm_buf_clear(&lines);
    tm_buf_text(&lines, "{\"text\": \"");
    memset(tm_buf_reserve(&lines, 70 << 20), 'a', 70 << 20);
    lines.size += 70 << 20;
    FAILS(TM_INPUT, "long.jsonl:1: a row of 73400330 bytes; at most 67108864 are taken",
          load_path(put("long.jsonl", lines.data, lines.size), TM_FORMAT_AUTO, &d, err));
    tm_buf_deinit(&lines);
    tm_buf_deinit(&packed);
}

static int begin(void **state)
{
    tm_error err;
    return tm_pool_create(2, &pool, &err) == TM_OK ? scratch_begin(state) : -1;
}

static int end(void **state)
{
    tm_pool_destroy(pool);
    return scratch_end(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(containers_agree), cmocka_unit_test(windows_end_anywhere),
                                       cmocka_unit_test(folders_and_patterns), cmocka_unit_test(damage_is_named),
                                       cmocka_unit_test(bombs_are_refused)};
    return cmocka_run_group_tests_name("containers", tests, begin, end);
}
