/* The JSON parser (RFC 8259) behind tm_json_parse; the values are jansson's. Not jansson's own parser,
 * because that one (2.14) writes past its buffer when memory runs out inside a long string, and calls other
 * failed allocations syntax errors. Invariants: text is read inside [at, end) only; nothing is reported as a
 * fault of the text that is a lack of memory; numbers do not depend on the locale; what is accepted is valid
 * UTF-8 and holds no key twice. */
#include "base/json.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

typedef struct parser {
    const char *start, *at, *end;
    const char *name; /* "" for none */
    bool allow_nul;   /* in strings; in keys never */
    int depth;
    locale_t c_locale;
    tm_buf token;     /* a decoded string, or the text of a number */
    tm_error *err;
} parser;

static tm_status parse_value(parser *p, json_t **out);

static tm_status no_memory(parser *p)
{
    return tm_fail(p->err, TM_NO_MEMORY, "%s%sout of memory", p->name, *p->name ? ": " : "");
}

static tm_status TM_PRINTF(2, 3) bad(parser *p, const char *fmt, ...)
{
    char what[300];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    long line = 1, column = 1;
    for (const char *c = p->start; c < p->at; c++, column++)
        if (*c == '\n') {
            line++;
            column = 0;
        }
    if (*p->name)
        return tm_fail(p->err, TM_INPUT, "%s:%ld: not valid JSON: %s (column %ld)", p->name, line, what, column);
    return tm_fail(p->err, TM_INPUT, "not valid JSON: %s (column %ld)", what, column);
}

/* What stands at the place, for a message. */
static const char *found(const parser *p, char text[16])
{
    if (p->at == p->end)
        return "the end";
    unsigned char c = (unsigned char)*p->at;
    snprintf(text, 16, c > 32 && c < 127 ? "'%c'" : "byte 0x%02x", c);
    return text;
}

static tm_status expected(parser *p, const char *what)
{
    char text[16];
    return bad(p, "expected %s, found %s", what, found(p, text));
}

static void skip_space(parser *p)
{
    while (p->at < p->end && (*p->at == ' ' || *p->at == '\n' || *p->at == '\t' || *p->at == '\r'))
        p->at++;
}

/* Skips space; whether c is next, and then skips it. */
static bool take(parser *p, char c)
{
    skip_space(p);
    if (p->at == p->end || *p->at != c)
        return false;
    p->at++;
    return true;
}

/* ---- strings ---- */

/* Four hex digits; -1 when they are not there. */
static int32_t hex4(parser *p)
{
    int32_t value = 0;
    if (p->end - p->at < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        char c = p->at[i], low = (char)(c | 32);
        if (c >= '0' && c <= '9')
            value = value << 4 | (c - '0');
        else if (low >= 'a' && low <= 'f')
            value = value << 4 | (low - 'a' + 10);
        else
            return -1;
    }
    p->at += 4;
    return value;
}

/* After "\u": one code point, of one or two escapes. */
static tm_status parse_unicode(parser *p)
{
    utf8proc_uint8_t bytes[4];
    int32_t point = hex4(p);
    if (point >= 0xd800 && point < 0xdc00 && p->end - p->at >= 2 && p->at[0] == '\\' && p->at[1] == 'u') {
        p->at += 2;
        int32_t low = hex4(p);
        point = low >= 0xdc00 && low < 0xe000 ? 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00) : -1;
    }
    if (point < 0 || (point >= 0xd800 && point < 0xe000))
        return bad(p, "an escape is not four hex digits of a character");
    if (point == 0 && !p->allow_nul)
        return bad(p, "\\u0000 is not allowed here");
    tm_buf_add(&p->token, bytes, (size_t)utf8proc_encode_char(point, bytes));
    return TM_OK;
}

static tm_status parse_escape(parser *p)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (p->at == p->end)
        return expected(p, "an escape");
    const char *known = *p->at ? strchr(from, *p->at) : NULL;
    if (*p->at != 'u' && !known)
        return expected(p, "an escape");
    p->at++;
    if (!known)
        return parse_unicode(p);
    tm_buf_char(&p->token, to[known - from]);
    return TM_OK;
}

/* After the opening quote: the decoded text into token. */
static tm_status parse_text(parser *p)
{
    tm_buf_clear(&p->token);
    for (;;) {
        const char *plain = p->at;
        while (p->at < p->end && *p->at != '"' && *p->at != '\\' && (unsigned char)*p->at >= 32) {
            utf8proc_int32_t point;
            utf8proc_ssize_t n = 1;
            if (*p->at & 0x80)
                n = utf8proc_iterate((const utf8proc_uint8_t *)p->at, p->end - p->at, &point);
            if (n <= 0)
                return bad(p, "byte 0x%02x is not UTF-8", (unsigned char)*p->at);
            p->at += n;
        }
        tm_buf_add(&p->token, plain, (size_t)(p->at - plain));
        if (p->at == p->end || (*p->at != '"' && *p->at != '\\'))
            return expected(p, "the end of a string");
        if (*p->at++ == '"')
            return p->token.failed ? no_memory(p) : TM_OK;
        TM_TRY(parse_escape(p));
    }
}

static tm_status parse_string(parser *p, json_t **out)
{
    TM_TRY(parse_text(p));
    *out = json_stringn_nocheck(tm_buf_str(&p->token), p->token.size);
    return *out ? TM_OK : no_memory(p);
}

/* ---- numbers ---- */

static size_t digits(const char *at, const char *end)
{
    const char *begin = at;
    while (at < end && *at >= '0' && *at <= '9')
        at++;
    return (size_t)(at - begin);
}

/* Moves over a number by the grammar; real when it has a fraction or an exponent. */
static tm_status scan_number(parser *p, bool *real)
{
    *real = false;
    p->at += *p->at == '-';
    size_t n = digits(p->at, p->end);
    if (n == 0 || (n > 1 && *p->at == '0'))
        return bad(p, n ? "a number begins with 0" : "expected a digit");
    p->at += n;
    for (int part = 0; part < 2; part++) {
        bool here = p->at < p->end && (part ? (*p->at | 32) == 'e' : *p->at == '.');
        if (!here)
            continue;
        *real = true;
        p->at++;
        if (part && p->at < p->end && (*p->at == '+' || *p->at == '-'))
            p->at++;
        n = digits(p->at, p->end);
        if (n == 0)
            return expected(p, "a digit");
        p->at += n;
    }
    return TM_OK;
}

static tm_status parse_number(parser *p, json_t **out)
{
    const char *begin = p->at;
    bool real;
    TM_TRY(scan_number(p, &real));
    tm_buf_clear(&p->token);
    tm_buf_add(&p->token, begin, (size_t)(p->at - begin));
    if (p->token.failed)
        return no_memory(p);
    errno = 0;
    if (real) {
        double value = strtod_l(p->token.data, NULL, p->c_locale);
        if (!isfinite(value))
            return bad(p, "too large a number");
        *out = json_real(value);
    } else {
        long long value = strtoll(p->token.data, NULL, 10);
        if (errno == ERANGE)
            return bad(p, "too big an integer");
        *out = json_integer(value);
    }
    return *out ? TM_OK : no_memory(p);
}

/* ---- lists and objects ---- */

static tm_status parse_list(parser *p, json_t *list)
{
    if (take(p, ']'))
        return TM_OK;
    do {
        json_t *item = NULL;
        TM_TRY(parse_value(p, &item));
        if (json_array_append_new(list, item) != 0)
            return no_memory(p);
    } while (take(p, ','));
    return take(p, ']') ? TM_OK : expected(p, "',' or ']'");
}

/* The key into a block of its own: the value is parsed between reading and using it. */
static tm_status parse_member(parser *p, json_t *object)
{
    json_t *value = NULL;
    if (!take(p, '"'))
        return expected(p, "a key in quotes");
    TM_TRY(parse_text(p));
    if (memchr(tm_buf_str(&p->token), 0, p->token.size))
        return bad(p, "\\u0000 in a key");
    if (json_object_get(object, tm_buf_str(&p->token)))
        return bad(p, "duplicate object key \"%.200s\"", tm_buf_str(&p->token));
    char *key = tm_strdup(tm_buf_str(&p->token), p->err);
    if (!key)
        return TM_NO_MEMORY;
    tm_status st = take(p, ':') ? parse_value(p, &value) : expected(p, "':'");
    if (st == TM_OK && json_object_set_new_nocheck(object, key, value) != 0)
        st = no_memory(p);
    free(key);
    return st;
}

static tm_status parse_object(parser *p, json_t *object)
{
    if (take(p, '}'))
        return TM_OK;
    do
        TM_TRY(parse_member(p, object));
    while (take(p, ','));
    return take(p, '}') ? TM_OK : expected(p, "',' or '}'");
}

static tm_status parse_nested(parser *p, bool object, json_t **out)
{
    if (++p->depth > TM_JSON_MAX_DEPTH)
        return bad(p, "nested more than %d deep", TM_JSON_MAX_DEPTH);
    *out = object ? json_object() : json_array();
    if (!*out)
        return no_memory(p);
    tm_status st = object ? parse_object(p, *out) : parse_list(p, *out);
    p->depth--;
    if (st != TM_OK) {
        json_decref(*out);
        *out = NULL;
    }
    return st;
}

/* out is set on success alone. */
static tm_status parse_value(parser *p, json_t **out)
{
    static const char *const words[] = {"true", "false", "null"};
    skip_space(p);
    if (p->at == p->end)
        return expected(p, "a value");
    char c = *p->at;
    if (c == '-' || (c >= '0' && c <= '9'))
        return parse_number(p, out);
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(words[i]);
        if ((size_t)(p->end - p->at) >= n && memcmp(p->at, words[i], n) == 0) {
            p->at += n;
            *out = i == 0 ? json_true() : i == 1 ? json_false() : json_null();
            return TM_OK;
        }
    }
    if (c != '"' && c != '{' && c != '[')
        return expected(p, "a value");
    p->at++;
    return c == '"' ? parse_string(p, out) : parse_nested(p, c == '{', out);
}

static tm_status parse_all(parser *p, json_t **out)
{
    size_t size = (size_t)(p->end - p->start);
    *out = NULL;
    if (size > TM_JSON_MAX_BYTES)
        return tm_fail(p->err, TM_INPUT, "%s%s%zu bytes of JSON, expected at most %d", p->name, *p->name ? ": " : "",
                       size, TM_JSON_MAX_BYTES);
    if (size >= 3 && memcmp(p->at, "\xef\xbb\xbf", 3) == 0) /* the mark that some editors put first */
        p->at += 3;
    p->c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (!p->c_locale)
        return no_memory(p);
    tm_status st = parse_value(p, out);
    skip_space(p);
    if (st == TM_OK && p->at != p->end) {
        st = expected(p, "nothing more");
        json_decref(*out);
        *out = NULL;
    }
    freelocale(p->c_locale);
    tm_buf_deinit(&p->token);
    return st;
}

tm_status tm_json_parse(const char *text, size_t size, const char *name, json_t **out, tm_error *err)
{
    parser p = {.start = text, .at = text, .end = text + size, .name = name, .err = err};
    return parse_all(&p, out);
}

tm_status tm_json_parse_row(const char *text, size_t size, json_t **out, tm_error *err)
{
    parser p = {.start = text, .at = text, .end = text + size, .name = "", .allow_nul = true, .err = err};
    return parse_all(&p, out);
}
