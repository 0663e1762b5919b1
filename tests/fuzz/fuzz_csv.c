/* Any text as CSV: records cover the text and end the same wherever it is cut; fields are as many as columns. */
#include "io/csv.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct counted {
    int64_t columns, next;
    size_t bytes;
} counted;

static tm_status count(void *context, int64_t column, const char *text, size_t size, tm_error *err)
{
    counted *c = context;
    (void)err;
    if (column != c->next++ || column >= c->columns || text[size] != 0)
        abort();
    c->bytes += size;
    return TM_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data, *end = text + size;
    int64_t lines = 0, again = 0;
    tm_buf field = {0};
    tm_csv csv;
    tm_error err;
    const char *first = tm_csv_next(',', text, end, true, &lines);
    if (first && tm_csv_header(text, (size_t)(first - text), &csv, &err) == TM_OK) {
        for (const char *at = first, *next; at < end; at = next) {
            next = tm_csv_next(csv.separator, at, end, true, &lines);
            if (!next)
                break;
            if (next <= at)
                abort();
            /* not final: the same end, or not known yet */
            const char *part = tm_csv_next(csv.separator, at, next, false, &again);
            if (part && part != next)
                abort();
            counted c = {.columns = csv.names.count};
            tm_status st = tm_csv_fields(&csv, at, (size_t)(next - at), &field, count, &c, &err);
            if (st == TM_OK ? c.next != c.columns : st != TM_INPUT)
                abort();
            if (c.bytes > (size_t)(next - at))
                abort();
        }
        tm_csv_deinit(&csv);
    }
    tm_buf_deinit(&field);
    return 0;
}
