/* JSON in and out: jansson's values behind temper's errors. */
#ifndef TM_BASE_JSON_H
#define TM_BASE_JSON_H

#include "base/buf.h"

#include <jansson.h>

/* Limits against hostile files: bytes of a JSON text, and how deep lists and objects may nest. */
enum { TM_JSON_MAX_BYTES = 512 << 20, TM_JSON_MAX_DEPTH = 500 };

/* Parses text: any JSON value, with nothing but white space around it. Duplicate keys, what is not UTF-8,
 * \u0000, integers beyond 64 bits and numbers beyond double are refused. name (a path) and the line go
 * into the message. */
tm_status tm_json_parse(const char *text, size_t size, const char *name, json_t **out, tm_error *err) TM_MUST_CHECK;
/* The same for a row of data: strings (not keys) may hold \u0000, and the message names neither file nor
 * line, only the column; the caller knows them. */
tm_status tm_json_parse_row(const char *text, size_t size, json_t **out, tm_error *err) TM_MUST_CHECK;
tm_status tm_json_read(const char *path, json_t **out, tm_error *err) TM_MUST_CHECK;
/* The file of that name in a folder. */
tm_status tm_json_read_in(const char *dir, const char *name, json_t **out, tm_error *err) TM_MUST_CHECK;
/* A file of one value, written atomically; flags are jansson's (JSON_INDENT, JSON_SORT_KEYS, ...). json NULL:
 * memory ran out while it was made. Never json_dumps for this: it can lose a part when memory runs out. */
tm_status tm_json_write(const char *path, const json_t *json, size_t flags, tm_error *err) TM_MUST_CHECK;

/* Values of an object by key. A missing or null key gives the default; a wrong type is an error that
 * names file and key. Strings are borrowed from the object. */
tm_status tm_json_get_int(const json_t *object, const char *name, const char *key, int64_t fallback, int64_t *out,
                          tm_error *err) TM_MUST_CHECK;
tm_status tm_json_get_number(const json_t *object, const char *name, const char *key, double fallback, double *out,
                             tm_error *err) TM_MUST_CHECK;
tm_status tm_json_get_bool(const json_t *object, const char *name, const char *key, bool fallback, bool *out,
                           tm_error *err) TM_MUST_CHECK;
tm_status tm_json_get_string(const json_t *object, const char *name, const char *key, const char *fallback,
                             const char **out, tm_error *err) TM_MUST_CHECK;

/* A copy of an object or list; its values are shared, or with deep copied too. NULL when memory runs out: jansson's
 * own copies then lack what did not fit. */
json_t *tm_json_copy(const json_t *value, bool deep);

/* Writing without building a tree: numbers in the shortest form that reads back to the same double
 * (so files are the same bytes everywhere); text is escaped, non-ASCII stays UTF-8. */
void tm_json_put_string(tm_buf *buf, const char *text);
void tm_json_put_bytes(tm_buf *buf, const char *text, size_t size); /* may hold zero bytes: \u0000 */
void tm_json_put_number(tm_buf *buf, double value); /* NaN and infinities become null */

#endif
