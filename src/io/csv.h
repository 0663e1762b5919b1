/* CSV (RFC 4180): where records end and what their fields are. */
#ifndef TM_IO_CSV_H
#define TM_IO_CSV_H

#include "base/names.h"

typedef struct tm_csv { /* of a file: its first record */
    char separator;     /* of , ; and tab the one that the first record has most of */
    tm_names names;     /* of the columns */
} tm_csv;

/* Past the record that begins at text, line end included; NULL when [text, end) does not hold all of it.
 * final: nothing comes behind end. Lines in it are added to *lines. A quoted field that the file does
 * not close gives NULL also when final. */
const char *tm_csv_next(char separator, const char *text, const char *end, bool final, int64_t *lines);

/* Reads the first record. */
tm_status tm_csv_header(const char *text, size_t size, tm_csv *out, tm_error *err) TM_MUST_CHECK;
void tm_csv_deinit(tm_csv *csv);

/* The fields of a record in order, each decoded into `field` and handed to put(context, column, ...).
 * Another number of fields than the header has, or text behind a closing quote, is TM_INPUT. */
typedef tm_status (*tm_csv_put)(void *context, int64_t column, const char *text, size_t size, tm_error *err);
tm_status tm_csv_fields(const tm_csv *csv, const char *text, size_t size, tm_buf *field, tm_csv_put put, void *context,
                        tm_error *err) TM_MUST_CHECK;

#endif
