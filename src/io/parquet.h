/* Parquet files, read as JSON Lines: a row is an object of the columns asked for. docs/formats/parquet.md
 * says what is read. */
#ifndef TM_IO_PARQUET_H
#define TM_IO_PARQUET_H

#include "base/buf.h"

typedef struct tm_parquet tm_parquet;

/* columns: the top-level columns that are wanted, by name; those that the file does not have or that are
 * of a kind that is not read are left out of the rows. */
tm_status tm_parquet_open(const char *path, const char *const *columns, size_t column_count, tm_parquet **out,
                          tm_error *err) TM_MUST_CHECK;
void tm_parquet_close(tm_parquet *file);
/* Up to size bytes of JSON Lines; *got is less only at the end. */
tm_status tm_parquet_read(tm_parquet *file, void *to, size_t size, size_t *got, tm_error *err) TM_MUST_CHECK;

#endif
