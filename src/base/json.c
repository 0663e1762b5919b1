/* Reading values and writing text: see json.h. The parser is in json_parse.c. */
#include "base/json.h"

#include "base/file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* Always 0: the buffer remembers a failure, jansson forgets some. */
static int append(const char *bytes, size_t size, void *buf)
{
    tm_buf_add(buf, bytes, size);
    return 0;
}

tm_status tm_json_write(const char *path, const json_t *json, size_t flags, tm_error *err)
{
    tm_buf text = {0};
    if (!json || json_dump_callback(json, append, &text, flags) != 0 || text.failed) {
        tm_buf_deinit(&text);
        return tm_fail(err, TM_NO_MEMORY, "out of memory for %s", path);
    }
    tm_status st = tm_file_write(path, text.data, text.size, err);
    tm_buf_deinit(&text);
    return st;
}

tm_status tm_json_read(const char *path, json_t **out, tm_error *err)
{
    *out = NULL;
    tm_buf text = {0};
    tm_status st = tm_file_read(path, TM_JSON_MAX_BYTES, &text, err);
    if (st == TM_OK)
        st = tm_json_parse(tm_buf_str(&text), text.size, path, out, err);
    tm_buf_deinit(&text);
    return st;
}

tm_status tm_json_read_in(const char *dir, const char *name, json_t **out, tm_error *err)
{
    *out = NULL;
    char *path = tm_path_join(dir, name, err);
    tm_status st = path ? tm_json_read(path, out, err) : TM_NO_MEMORY;
    free(path);
    return st;
}

/* ---- reading values ---- */

static const char *kind_of(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number";
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    default: return "null";
    }
}

static tm_status fail_type(const json_t *value, const char *name, const char *key, const char *expected, tm_error *err)
{
    return tm_fail(err, TM_INPUT, "%s: \"%s\" is %s, expected %s", name, key, kind_of(value), expected);
}

/* NULL when missing or null. */
static const json_t *value_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return value && !json_is_null(value) ? value : NULL;
}

tm_status tm_json_get_int(const json_t *object, const char *name, const char *key, int64_t fallback, int64_t *out,
                          tm_error *err)
{
    const json_t *value = value_of(object, key);
    double real = value && json_is_real(value) ? json_real_value(value) : 0.5;
    if (!value)
        *out = fallback;
    else if (json_is_integer(value))
        *out = json_integer_value(value);
    else if (real == floor(real) && fabs(real) <= 9007199254740992.0) /* 4e3 is an integer too */
        *out = (int64_t)real;
    else
        return fail_type(value, name, key, "an integer", err);
    return TM_OK;
}

tm_status tm_json_get_number(const json_t *object, const char *name, const char *key, double fallback, double *out,
                             tm_error *err)
{
    const json_t *value = value_of(object, key);
    if (value && !json_is_number(value))
        return fail_type(value, name, key, "a number", err);
    *out = value ? json_number_value(value) : fallback;
    return TM_OK;
}

tm_status tm_json_get_bool(const json_t *object, const char *name, const char *key, bool fallback, bool *out,
                           tm_error *err)
{
    const json_t *value = value_of(object, key);
    if (value && !json_is_boolean(value))
        return fail_type(value, name, key, "true or false", err);
    *out = value ? json_is_true(value) : fallback;
    return TM_OK;
}

tm_status tm_json_get_string(const json_t *object, const char *name, const char *key, const char *fallback,
                             const char **out, tm_error *err)
{
    const json_t *value = value_of(object, key);
    if (value && !json_is_string(value))
        return fail_type(value, name, key, "a string", err);
    *out = value ? json_string_value(value) : fallback;
    return TM_OK;
}

/* ---- writing ---- */

void tm_json_put_string(tm_buf *buf, const char *text) { tm_json_put_bytes(buf, text, strlen(text)); }

void tm_json_put_bytes(tm_buf *buf, const char *text, size_t size)
{
    tm_buf_char(buf, '"');
    for (size_t left = size; left > 0;) {
        unsigned char c = (unsigned char)*text;
        static const char shorts[] = "btn?fr"; /* from 8 = \b on; 11 has no short form */
        utf8proc_int32_t point;
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)left, &point);
        if (n <= 0) { /* not UTF-8: the file must stay valid JSON all the same */
            tm_buf_text(buf, "\xef\xbf\xbd");
            n = 1;
        } else if (c == '"' || c == '\\') {
            tm_buf_char(buf, '\\');
            tm_buf_char(buf, (char)c);
        } else if (c >= 8 && c <= 13 && c != 11) {
            tm_buf_char(buf, '\\');
            tm_buf_char(buf, shorts[c - 8]);
        } else if (c < 32) {
            tm_buf_printf(buf, "\\u%04x", c);
        } else {
            tm_buf_add(buf, text, (size_t)n);
        }
        text += n;
        left -= (size_t)n;
    }
    tm_buf_char(buf, '"');
}

void tm_json_put_number(tm_buf *buf, double value)
{
    if (!isfinite(value)) {
        tm_buf_text(buf, "null");
        return;
    }
    if (value == floor(value) && fabs(value) < 1e15 && !(value == 0 && signbit(value))) {
        tm_buf_printf(buf, "%.0f", value);
        return;
    }
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    /* Whatever stands for the decimal point in the program's locale is the one foreign thing in there. */
    size_t whole = strspn(text, "+-0123456789e"), point = strcspn(text + whole, "0123456789");
    tm_buf_add(buf, text, whole);
    if (point)
        tm_buf_char(buf, '.');
    else if (value == 0)
        tm_buf_text(buf, ".0"); /* "-0" would read back as the integer 0 */
    tm_buf_text(buf, text + whole + point);
}

json_t *tm_json_copy(const json_t *value, bool deep)
{
    json_t *copy = deep ? json_deep_copy(value) : json_copy((json_t *)value);
    bool whole = deep ? json_equal(copy, value)
                      : json_object_size(copy) == json_object_size(value) && json_array_size(copy) == json_array_size(value);
    if (copy && whole)
        return copy;
    json_decref(copy);
    return NULL;
}
