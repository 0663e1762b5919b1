/* Where rows begin and end: see rows.h. Only structure is looked at here; what is inside a row is
 * judged by the JSON parser when the row is read. */
#include "text/rows.h"

#include <string.h>

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

static void skip_space(tm_row_cursor *c)
{
    for (; c->at < c->end && is_space(*c->at); c->at++)
        c->line += *c->at == '\n';
}

void tm_row_cursor_init(tm_row_cursor *cursor, const char *text, size_t size)
{
    *cursor = (tm_row_cursor){text, text + size, 1, false, false};
    if (size >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0)
        cursor->at += 3;
    tm_row_cursor ahead = *cursor;
    skip_space(&ahead);
    if (ahead.at < ahead.end && *ahead.at == '[') {
        ahead.at++;
        ahead.array = true;
        *cursor = ahead;
    }
}

static void next_line(tm_row_cursor *c, tm_row *row)
{
    while (c->at < c->end) {
        const char *start = c->at, *newline = memchr(start, '\n', (size_t)(c->end - start));
        const char *stop = newline ? newline : c->end;
        int64_t line = c->line++;
        c->at = newline ? newline + 1 : c->end;
        while (start < stop && is_space(*start))
            start++;
        while (stop > start && is_space(stop[-1]))
            stop--;
        if (start < stop) {
            *row = (tm_row){start, (size_t)(stop - start), line};
            return;
        }
    }
    *row = (tm_row){NULL, 0, c->line};
}

/* Past the string that opens at c->at; false when it does not close. */
static bool skip_string(tm_row_cursor *c)
{
    for (c->at++; c->at < c->end; c->at++) {
        if (*c->at == '"') {
            c->at++;
            return true;
        }
        if (*c->at == '\\' && c->at + 1 < c->end)
            c->at++;
        c->line += *c->at == '\n';
    }
    return false;
}

/* Past the object that opens at c->at; false when it does not close. */
static bool skip_object(tm_row_cursor *c)
{
    int64_t depth = 0;
    while (c->at < c->end) {
        char b = *c->at;
        if (b == '"') {
            if (!skip_string(c))
                return false;
            continue;
        }
        c->line += b == '\n';
        c->at++;
        if (b == '{' || b == '[')
            depth++;
        else if ((b == '}' || b == ']') && --depth == 0)
            return true;
    }
    return false;
}

static tm_status next_element(tm_row_cursor *c, tm_row *row, tm_error *err)
{
    skip_space(c);
    *row = (tm_row){NULL, 0, c->line};
    if (c->at < c->end && *c->at == ']') {
        c->at++;
        skip_space(c);
        row->line = c->line;
        return c->at == c->end ? TM_OK : tm_fail(err, TM_INPUT, "expected nothing after the array");
    }
    if (c->started) {
        if (c->at >= c->end || *c->at != ',')
            return tm_fail(err, TM_INPUT,
                           c->at < c->end ? "expected a comma or ] after a row" : "the array is not closed");
        c->at++;
        skip_space(c);
        row->line = c->line;
    }
    if (c->at >= c->end)
        return tm_fail(err, TM_INPUT, "the array is not closed");
    if (*c->at != '{')
        return tm_fail(err, TM_INPUT, "expected a row: a JSON object");
    const char *start = c->at;
    if (!skip_object(c))
        return tm_fail(err, TM_INPUT, "the object is not closed");
    c->started = true;
    row->text = start;
    row->size = (size_t)(c->at - start);
    return TM_OK;
}

tm_status tm_row_next(tm_row_cursor *cursor, tm_row *row, tm_error *err)
{
    if (cursor->array)
        TM_TRY(next_element(cursor, row, err));
    else
        next_line(cursor, row);
    if (row->size > TM_ROW_MAX_BYTES)
        return tm_fail(err, TM_INPUT, "a row of %zu bytes; at most %d are taken", row->size, TM_ROW_MAX_BYTES);
    return TM_OK;
}
