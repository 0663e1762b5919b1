/* Files as rows: see rows.h. A file is read as a stream, unpacked where it is compressed, into a window that
 * holds some megabytes; rows are pointers into it. So memory depends on the longest row, never on the file.
 * A Parquet file arrives as JSON Lines that its reader writes. */
#include "text/rows.h"

#include "base/utf8.h"
#include "io/compress.h"
#include "io/parquet.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* What a window holds to begin with; it grows up to a row of the greatest size. */
enum { WINDOW_BYTES = 16 << 20, FIRST_BYTES = 64 << 10 };

struct tm_row_source {
    tm_stream *stream;   /* or */
    tm_parquet *parquet;
    bool document, file_ended, begun;
    tm_buf window;
    size_t from; /* of the window: where what has not been given as rows begins */
    tm_row_cursor cursor; /* its at and end are set anew with the window */
    tm_csv csv;
    tm_row *rows;
    size_t capacity;
    tm_status fault; /* of the file, behind the rows given last */
    tm_error fault_err;
    int64_t fault_line;
};

static bool has_suffix(const char *path, size_t n, const char *suffix)
{
    size_t k = strlen(suffix);
    return n >= k && strncasecmp(path + n - k, suffix, k) == 0;
}

/* Bytes of a name without what says that the file is compressed. */
static size_t plain_name(const char *path)
{
    static const char *const packed[] = {".gz", ".gzip", ".zst", ".zstd"};
    size_t n = strlen(path);
    for (size_t i = 0; i < sizeof packed / sizeof *packed; i++)
        if (has_suffix(path, n, packed[i]))
            return n - strlen(packed[i]);
    return n;
}

typedef enum guess { GUESS_NOTHING, GUESS_JSON, GUESS_CSV, GUESS_DOCUMENT, GUESS_PARQUET } guess;

static guess guess_kind(const char *path)
{
    static const struct {
        const char *suffix;
        guess kind;
    } known[] = {{".jsonl", GUESS_JSON}, {".json", GUESS_JSON},    {".ndjson", GUESS_JSON},     {".csv", GUESS_CSV},
                 {".tsv", GUESS_CSV},    {".txt", GUESS_DOCUMENT}, {".parquet", GUESS_PARQUET}};
    size_t n = plain_name(path);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (has_suffix(path, n, known[i].suffix))
            return known[i].kind;
    return GUESS_NOTHING;
}

bool tm_row_source_knows(const char *path) { return guess_kind(path) != GUESS_NOTHING; }

static tm_status refuse_other_files(const char *path, tm_error *err)
{
    static const char *const others[] = {".xz", ".bz2", ".zip", ".7z", ".tar", ".arrow", ".feather", ".xlsx"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (has_suffix(path, strlen(path), others[i]))
            return tm_fail(err, TM_UNSUPPORTED,
                           "%s: %s files are not read; expected .jsonl, .json, .csv, .txt (also .gz, .zst) or .parquet",
                           path, others[i]);
    return TM_OK;
}

/* ---- the window ---- */

static tm_status read_file(tm_row_source *s, void *to, size_t size, size_t *got, tm_error *err)
{
    return s->parquet ? tm_parquet_read(s->parquet, to, size, got, err) : tm_stream_read(s->stream, to, size, got, err);
}

/* Moves what is left to the front and fills the window up to `size` bytes. */
static tm_status fill(tm_row_source *s, size_t size, tm_error *err)
{
    tm_buf *w = &s->window;
    if (s->from) {
        memmove(w->data, w->data + s->from, w->size - s->from);
        w->size -= s->from;
        s->from = 0;
    }
    while (w->size < size && !s->file_ended) { /* doubling, so that a small file takes little */
        size_t more = w->size < FIRST_BYTES ? FIRST_BYTES : w->size, got;
        more = more < size - w->size ? more : size - w->size;
        char *to = tm_buf_reserve(w, more);
        TM_TRY(tm_buf_check(w, err));
        TM_TRY(read_file(s, to, more, &got, err));
        s->file_ended = got < more;
        w->size += got;
    }
    s->cursor.at = tm_buf_str(w);
    s->cursor.end = s->cursor.at + w->size;
    s->cursor.final = s->file_ended;
    return TM_OK;
}

static tm_status read_header(tm_row_source *s, tm_error *err)
{
    tm_row header;
    s->cursor.separator = ','; /* the separator only matters for quotes; the header's own decides */
    TM_TRY(tm_row_next(&s->cursor, &header, err));
    if (!header.text)
        return TM_OK;
    TM_TRY(tm_csv_header(header.text, header.size, &s->csv, err));
    s->cursor.separator = s->csv.separator;
    return TM_OK;
}

/* The beginning of the file: mark, bracket, header. */
static tm_status begin(tm_row_source *s, tm_error *err)
{
    TM_TRY(fill(s, WINDOW_BYTES, err));
    if (!tm_row_cursor_begin(&s->cursor))
        return tm_fail(err, TM_INPUT, "%d bytes of nothing but space at the beginning", WINDOW_BYTES);
    s->fault_line = 1;
    if (s->cursor.kind == TM_ROW_CSV)
        TM_TRY(read_header(s, err));
    s->fault_line = 0;
    s->from = (size_t)(s->cursor.at - tm_buf_str(&s->window));
    s->begun = true;
    return TM_OK;
}

/* All rows that the window holds whole. A fault behind them is kept for the next call. */
static tm_status take_rows(tm_row_source *s, size_t *count, tm_error *err)
{
    for (;;) {
        TM_TRY(TM_GROW(&s->rows, &s->capacity, *count + 1, err));
        tm_row *row = &s->rows[*count];
        s->fault = tm_row_next(&s->cursor, row, &s->fault_err);
        if (s->fault != TM_OK)
            s->fault_line = row->line;
        if (s->fault != TM_OK || !row->text)
            break;
        ++*count;
    }
    s->from = (size_t)(s->cursor.at - tm_buf_str(&s->window));
    return TM_OK;
}

tm_status tm_row_source_next(tm_row_source *s, const tm_row **rows, size_t *count, int64_t *bad_line, tm_error *err)
{
    *rows = NULL;
    *count = 0;
    *bad_line = 0;
    tm_status st = TM_OK;
    if (!s->begun)
        TM_GO(begin(s, err));
    for (size_t size = WINDOW_BYTES; *count == 0 && s->fault == TM_OK;) {
        TM_GO(fill(s, size, err));
        TM_GO(take_rows(s, count, err));
        size = s->from ? WINDOW_BYTES : 2 * size; /* more only for a row that is larger, not for blank lines */
        if (s->file_ended)
            break;
        if (*count == 0 && s->fault == TM_OK && s->window.size - s->from > TM_ROW_MAX_BYTES) {
            s->fault_line = s->cursor.line;
            TM_GO(tm_fail(err, TM_INPUT, "a row of more than the %d bytes that are taken", TM_ROW_MAX_BYTES));
        }
    }
    *rows = s->rows;
    if (*count == 0 && s->fault != TM_OK) {
        if (err)
            *err = s->fault_err;
        st = s->fault;
    }
out:
    if (st != TM_OK)
        *bad_line = s->fault_line;
    return st;
}

/* ---- documents ---- */

bool tm_row_source_is_document(const tm_row_source *s) { return s->document; }

tm_status tm_row_source_document(tm_row_source *s, size_t max_bytes, tm_buf *text, tm_error *err)
{
    enum { PIECE = 1 << 20 };
    for (bool ended = s->file_ended; !ended;) {
        size_t got;
        char *to = tm_buf_reserve(&s->window, PIECE);
        TM_TRY(tm_buf_check(&s->window, err));
        TM_TRY(read_file(s, to, PIECE, &got, err));
        s->window.size += got;
        ended = got < PIECE;
        if (s->window.size > max_bytes)
            return tm_fail(err, TM_INPUT, "a document of more than %zu bytes: use .jsonl, a document a row", max_bytes);
    }
    bool marked = s->window.size >= 3 && memcmp(s->window.data, "\xEF\xBB\xBF", 3) == 0;
    if (marked) {
        s->window.size -= 3;
        memmove(s->window.data, s->window.data + 3, s->window.size);
    }
    *text = s->window;
    s->window = (tm_buf){0};
    return TM_OK;
}

/* A file of an unknown kind that does not start like rows. */
static tm_status looks_like_text(tm_row_source *s, bool *text, tm_error *err)
{
    TM_TRY(fill(s, 4096, err));
    const char *at = s->cursor.at, *end = s->cursor.end;
    if (end - at >= 3 && memcmp(at, "\xEF\xBB\xBF", 3) == 0)
        at += 3;
    while (at < end && *at && strchr(" \t\r\n", *at))
        at++;
    *text = at < end && *at != '[' && *at != '{';
    return TM_OK;
}

/* ---- opening ---- */

tm_status tm_row_source_open(const char *path, int format, const char *const *columns, size_t column_count,
                             tm_row_source **out, tm_error *err)
{
    *out = NULL;
    tm_row_source *s = NULL;
    tm_status st;
    guess kind = guess_kind(path);
    TM_GO(refuse_other_files(path, err));
    TM_GO(TM_NEW(&s, 1, err));
    s->cursor = (tm_row_cursor){.line = 1, .kind = kind == GUESS_CSV ? TM_ROW_CSV : TM_ROW_LINES};
    if (kind == GUESS_PARQUET) {
        TM_GO(tm_parquet_open(path, columns, column_count, &s->parquet, err));
    } else {
        TM_GO(tm_stream_open(path, &s->stream, err));
        s->document = kind == GUESS_DOCUMENT;
        if (kind == GUESS_NOTHING && format == TM_FORMAT_TEXT)
            TM_GO(looks_like_text(s, &s->document, err));
    }
    *out = s;
    s = NULL;
out:
    tm_row_source_close(s);
    return st;
}

void tm_row_source_close(tm_row_source *s)
{
    if (!s)
        return;
    tm_stream_close(s->stream);
    tm_parquet_close(s->parquet);
    tm_buf_deinit(&s->window);
    tm_csv_deinit(&s->csv);
    free(s->rows);
    free(s);
}

/* ---- a row as JSON ---- */

bool tm_row_is_json(const tm_row_source *s) { return s->cursor.kind != TM_ROW_CSV; }

typedef struct record {
    const tm_csv *csv;
    json_t *object;
} record;

static tm_status put_field(void *context, int64_t column, const char *text, size_t size, tm_error *err)
{
    record *r = context;
    const char *name = r->csv->names.item[column];
    if (!tm_utf8_valid(text, size))
        return tm_fail(err, TM_INPUT, "%s: not valid UTF-8", name);
    json_t *value = json_stringn_nocheck(text, size);
    if (!value || json_object_set_new_nocheck(r->object, name, value) != 0)
        return tm_fail(err, TM_NO_MEMORY, "out of memory");
    return TM_OK;
}

tm_status tm_row_parse(const tm_row_source *s, const tm_row *row, json_t **out, tm_error *err)
{
    *out = NULL;
    if (tm_row_is_json(s)) {
        TM_TRY(tm_json_parse_row(row->text, row->size, out, err));
        if (json_is_object(*out))
            return TM_OK;
        json_decref(*out);
        *out = NULL;
        return tm_fail(err, TM_INPUT, "expected a row: a JSON object");
    }
    record r = {&s->csv, json_object()};
    tm_buf field = {0};
    tm_status st = r.object ? tm_csv_fields(&s->csv, row->text, row->size, &field, put_field, &r, err)
                            : tm_fail(err, TM_NO_MEMORY, "out of memory");
    tm_buf_deinit(&field);
    if (st == TM_OK)
        *out = r.object;
    else
        json_decref(r.object);
    return st;
}
