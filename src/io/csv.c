/* CSV: see csv.h. A quote opens a quoted field only where a field begins; inside, two quotes are one and
 * line ends are text. Record ends are \n, \r\n or the end of the file. */
#include "io/csv.h"

#include <string.h>

const char *tm_csv_next(char separator, const char *text, const char *end, bool final, int64_t *lines)
{
    bool quoted = false, field_start = true;
    int64_t seen = 0;
    for (const char *at = text; at < end; at++) {
        if (quoted) {
            quoted = *at != '"'; /* of two quotes the second opens again: see below */
            seen += *at == '\n';
            field_start = false;
            if (!quoted && at + 1 < end && at[1] == '"') {
                at++;
                quoted = true;
            } else if (!quoted && at + 1 == end && !final) {
                return NULL; /* the next byte says whether this quote closes */
            }
        } else if (*at == '\n') {
            *lines += seen + 1;
            return at + 1;
        } else {
            quoted = field_start && *at == '"';
            field_start = *at == separator;
        }
    }
    if (!final || quoted)
        return NULL;
    *lines += seen + 1;
    return end;
}

void tm_csv_deinit(tm_csv *csv)
{
    tm_names_deinit(&csv->names);
    *csv = (tm_csv){0};
}

/* A record without its line end. */
static size_t trimmed(const char *text, size_t size)
{
    if (size && text[size - 1] == '\n')
        size--;
    if (size && text[size - 1] == '\r')
        size--;
    return size;
}

static tm_status each_field(char separator, const char *text, size_t size, tm_buf *field, tm_csv_put put,
                            void *context, int64_t *count, tm_error *err)
{
    const char *at = text, *end = text + trimmed(text, size);
    for (*count = 0;; ++*count) {
        tm_buf_clear(field);
        if (at < end && *at == '"') {
            for (at++;; at++) {
                const char *quote = memchr(at, '"', (size_t)(end - at));
                if (!quote)
                    return tm_fail(err, TM_INPUT, "field %lld: the quote is not closed", (long long)*count + 1);
                tm_buf_add(field, at, (size_t)(quote - at));
                at = quote + 1;
                if (at == end || *at != '"')
                    break;
                tm_buf_char(field, '"');
            }
            if (at < end && *at != separator)
                return tm_fail(err, TM_INPUT, "field %lld: expected '%c' or the end of the line behind the closing quote",
                               (long long)*count + 1, separator);
        } else {
            const char *stop = memchr(at, separator, (size_t)(end - at));
            stop = stop ? stop : end;
            tm_buf_add(field, at, (size_t)(stop - at));
            at = stop;
        }
        TM_TRY(tm_buf_check(field, err));
        TM_TRY(put(context, *count, tm_buf_str(field), field->size, err));
        if (at == end)
            break;
        at++;
    }
    ++*count;
    return TM_OK;
}

static tm_status put_name(void *context, int64_t column, const char *text, size_t size, tm_error *err)
{
    tm_names *names = context;
    if (memchr(text, 0, size))
        return tm_fail(err, TM_INPUT, "column %lld: a zero byte in its name", (long long)column + 1);
    if (tm_names_contain(names, text))
        return tm_fail(err, TM_INPUT, "two columns are called '%.100s'", text);
    return tm_names_add(names, text, err);
}

static char most_frequent(const char *text, size_t size)
{
    static const char separators[] = ",;\t";
    size_t count[3] = {0}, best = 0;
    bool quoted = false;
    for (size_t i = 0; i < size; i++) {
        quoted ^= text[i] == '"';
        const char *s = quoted || !text[i] ? NULL : strchr(separators, text[i]);
        if (s)
            count[s - separators]++;
    }
    for (size_t i = 1; i < 3; i++)
        if (count[i] > count[best])
            best = i;
    return separators[best];
}

tm_status tm_csv_header(const char *text, size_t size, tm_csv *out, tm_error *err)
{
    enum { MAX_COLUMNS = 4096 };
    *out = (tm_csv){.separator = most_frequent(text, size)};
    tm_buf field = {0};
    int64_t count;
    tm_status st = each_field(out->separator, text, size, &field, put_name, &out->names, &count, err);
    if (st == TM_OK && count > MAX_COLUMNS)
        st = tm_fail(err, TM_INPUT, "%lld columns; at most %d are taken", (long long)count, MAX_COLUMNS);
    tm_buf_deinit(&field);
    if (st != TM_OK)
        tm_csv_deinit(out);
    return st;
}

typedef struct bounded { /* hands on no more fields than there are columns */
    tm_csv_put put;
    void *context;
    int64_t columns;
} bounded;

static tm_status put_bounded(void *context, int64_t column, const char *text, size_t size, tm_error *err)
{
    bounded *b = context;
    return column < b->columns ? b->put(b->context, column, text, size, err) : TM_OK;
}

tm_status tm_csv_fields(const tm_csv *csv, const char *text, size_t size, tm_buf *field, tm_csv_put put, void *context,
                        tm_error *err)
{
    bounded b = {put, context, csv->names.count};
    int64_t count;
    TM_TRY(each_field(csv->separator, text, size, field, put_bounded, &b, &count, err));
    return count == csv->names.count ? TM_OK
                                     : tm_fail(err, TM_INPUT, "expected %lld fields as in the first line, found %lld",
                                               (long long)csv->names.count, (long long)count);
}
