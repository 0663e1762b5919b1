/* Where rows begin and end: see rows.h. Only structure is looked at here; what is inside a row is judged by
 * the parser when the row is read. A piece of a file may end anywhere: a row that it does not hold whole is
 * left for the next piece. */
#include "text/rows.h"

#include <string.h>

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

static void skip_space(tm_row_cursor *c)
{
    for (; c->at < c->end && is_space(*c->at); c->at++)
        c->line += *c->at == '\n';
}

bool tm_row_cursor_begin(tm_row_cursor *cursor)
{
    if (!cursor->final && cursor->end - cursor->at < 3)
        return false;
    if (cursor->end - cursor->at >= 3 && memcmp(cursor->at, "\xEF\xBB\xBF", 3) == 0)
        cursor->at += 3;
    if (cursor->kind == TM_ROW_CSV)
        return true;
    tm_row_cursor ahead = *cursor;
    skip_space(&ahead);
    if (ahead.at == ahead.end && !ahead.final)
        return false;
    if (ahead.at < ahead.end && *ahead.at == '[') {
        ahead.at++;
        ahead.kind = TM_ROW_ARRAY;
        *cursor = ahead;
    }
    return true;
}

static void next_line(tm_row_cursor *c, tm_row *row)
{
    *row = (tm_row){NULL, 0, c->line};
    while (c->at < c->end) {
        const char *start = c->at, *newline = memchr(start, '\n', (size_t)(c->end - start));
        if (!newline && !c->final)
            break;
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
    row->line = c->line;
}

static tm_status next_record(tm_row_cursor *c, tm_row *row, tm_error *err)
{
    while (c->at < c->end) {
        const char *start = c->at;
        *row = (tm_row){NULL, 0, c->line};
        const char *next = tm_csv_next(c->separator, start, c->end, c->final, &c->line);
        if (!next && c->final)
            return tm_fail(err, TM_INPUT, "a quoted field is not closed");
        if (!next)
            return TM_OK;
        c->at = next;
        const char *stop = next;
        while (stop > start && (stop[-1] == '\n' || stop[-1] == '\r'))
            stop--;
        if (stop > start) {
            row->text = start;
            row->size = (size_t)(stop - start);
            return TM_OK;
        }
    }
    *row = (tm_row){NULL, 0, c->line};
    return TM_OK;
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

/* Behind the last row: only space may come. */
static tm_status end_array(tm_row_cursor *c, tm_row *row, tm_error *err)
{
    skip_space(c);
    *row = (tm_row){NULL, 0, c->line};
    return c->at == c->end ? TM_OK : tm_fail(err, TM_INPUT, "expected nothing after the array");
}

/* Once the closing bracket has been seen, separator holds it. */
static tm_status next_element(tm_row_cursor *c, tm_row *row, tm_error *err)
{
    if (c->separator == ']')
        return end_array(c, row, err);
    skip_space(c);
    tm_row_cursor before = *c;
    *row = (tm_row){NULL, 0, c->line};
    if (c->at < c->end && *c->at == ']') {
        c->at++;
        c->separator = ']';
        return end_array(c, row, err);
    }
    if (c->started && c->at < c->end) {
        if (*c->at != ',')
            return tm_fail(err, TM_INPUT, "expected a comma or ] after a row");
        c->at++;
        skip_space(c);
        row->line = c->line;
    }
    const char *start = c->at;
    if (start < c->end && *start != '{')
        return tm_fail(err, TM_INPUT, "expected a row: a JSON object");
    if (start == c->end || !skip_object(c)) {
        bool open = start < c->end;
        *c = before;
        return c->final ? tm_fail(err, TM_INPUT, open ? "the object is not closed" : "the array is not closed") : TM_OK;
    }
    c->started = true;
    row->text = start;
    row->size = (size_t)(c->at - start);
    return TM_OK;
}

tm_status tm_row_next(tm_row_cursor *cursor, tm_row *row, tm_error *err)
{
    tm_status st = TM_OK;
    if (cursor->kind == TM_ROW_ARRAY)
        st = next_element(cursor, row, err);
    else if (cursor->kind == TM_ROW_CSV)
        st = next_record(cursor, row, err);
    else
        next_line(cursor, row);
    if (st == TM_OK && row->size > TM_ROW_MAX_BYTES)
        st = tm_fail(err, TM_INPUT, "a row of %zu bytes; at most %d are taken", row->size, TM_ROW_MAX_BYTES);
    return st;
}
