/* Text from patterns: "%s" % x, "{}".format(x) and strftime. */
#include "text/jinja_parts.h"

#include <math.h>
#include <stdlib.h>

enum { WIDTH_MOST = 1 << 20 };

/* What both kinds of patterns ask of a value's text. */
typedef struct layout {
    char align;       /* '<', '>', '^', '=': fill behind the sign; 0: the type's own */
    char fill[5];     /* one character, UTF-8 */
    char sign;        /* '+', ' ' or 0 */
    bool alternate;
    char group;       /* ',', '_' or 0 */
    int64_t width, precision; /* JJ_UNKNOWN: none */
    char type;
} layout;

static bool put_padded(jj_run *r, tm_buf *out, const char *text, size_t size, size_t sign_size, const layout *l)
{
    jj_value v = {.kind = JJ_STRING, .as.s = {text, size, JJ_UNKNOWN}};
    int64_t pad = l->width - jj_chars(&v);
    if (l->width > WIDTH_MOST)
        return jj_fail(r, "a width of more than %d", WIDTH_MOST), false;
    pad = pad < 0 ? 0 : pad;
    int64_t before = l->align == '<' ? 0 : l->align == '^' ? pad / 2 : pad;
    if (l->align == '=')
        tm_buf_add(out, text, sign_size);
    for (int64_t i = 0; i < before; i++)
        tm_buf_text(out, l->fill);
    tm_buf_add(out, text + (l->align == '=' ? sign_size : 0), size - (l->align == '=' ? sign_size : 0));
    for (int64_t i = before; i < pad; i++)
        tm_buf_text(out, l->fill);
    return jj_work_bytes(r, size + (size_t)pad) && jj_buf_ok(r, out);
}

static bool put_text(jj_run *r, tm_buf *out, const jj_value *text, layout l)
{
    size_t size = text->as.s.size;
    if (l.precision != JJ_UNKNOWN && l.precision < jj_chars(text))
        size = jj_char_at(text, l.precision);
    l.align = l.align ? l.align : '<';
    return put_padded(r, out, text->as.s.text, size, 0, &l);
}

/* Digits of text[from, size) in groups of `every`, counted from the end at `stop`. */
static void group(tm_buf *text, size_t from, size_t stop, int every, char mark)
{
    tm_buf grouped = {0};
    for (size_t i = from; i < stop; i++) {
        if (i > from && (stop - i) % (size_t)every == 0)
            tm_buf_char(&grouped, mark);
        tm_buf_char(&grouped, text->data[i]);
    }
    tm_buf_add(&grouped, text->data + stop, text->size - stop);
    text->size = from;
    tm_buf_add(text, tm_buf_str(&grouped), grouped.size);
    text->failed |= grouped.failed;
    tm_buf_deinit(&grouped);
}

static bool put_number(jj_run *r, tm_buf *out, tm_buf *text, size_t sign_size, size_t whole_end, layout l)
{
    if (l.group && !text->failed)
        group(text, sign_size, whole_end, strchr("bxXo", l.type) && l.type ? 4 : 3, l.group);
    l.align = l.align ? l.align : '>';
    bool ok = jj_buf_ok(r, text) && put_padded(r, out, tm_buf_str(text), text->size, sign_size, &l);
    tm_buf_deinit(text);
    return ok;
}

static bool put_int(jj_run *r, tm_buf *out, int64_t value, layout l)
{
    tm_buf text = {0};
    uint64_t n = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    unsigned base = l.type == 'x' || l.type == 'X' ? 16 : l.type == 'o' ? 8 : l.type == 'b' ? 2 : 10;
    char digits[70];
    int at = sizeof digits;
    do
        digits[--at] = (l.type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef")[n % base];
    while (n /= base);
    if (value < 0 || l.sign)
        tm_buf_char(&text, value < 0 ? '-' : l.sign);
    if (l.alternate && base != 10)
        tm_buf_printf(&text, "0%c", l.type);
    size_t sign_size = text.size;
    for (int64_t i = (int64_t)sizeof digits - at; i < l.precision && i < WIDTH_MOST; i++)
        tm_buf_char(&text, '0');
    tm_buf_add(&text, digits + at, sizeof digits - (size_t)at);
    return put_number(r, out, &text, sign_size, text.size, l);
}

static bool put_float(jj_run *r, tm_buf *out, double f, layout l)
{
    tm_buf text = {0};
    char pattern[16];
    bool percent = l.type == '%', shortest = !l.type && l.precision == JJ_UNKNOWN;
    int precision = l.precision == JJ_UNKNOWN ? 6 : (int)(l.precision > 400 ? 400 : l.precision);
    if (l.precision > 400)
        return jj_fail(r, "a precision of more than 400"), false;
    if (signbit(f) && !isnan(f))
        tm_buf_char(&text, '-');
    else if (l.sign)
        tm_buf_char(&text, l.sign);
    size_t sign_size = text.size;
    f = fabs(f) * (percent ? 100 : 1);
    if (isnan(f) || isinf(f)) {
        bool upper = l.type == 'F' || l.type == 'E' || l.type == 'G';
        tm_buf_text(&text, isnan(f) ? (upper ? "NAN" : "nan") : upper ? "INF" : "inf");
    } else if (shortest) {
        jj_put_float(&text, f);
    } else {
        snprintf(pattern, sizeof pattern, "%%%s.*%c", l.alternate ? "#" : "", percent ? 'f' : l.type ? l.type : 'g');
        char number[800];
        snprintf(number, sizeof number, pattern, precision && l.type != 'n' ? precision : precision, f);
        for (char *c = number; *c; c++) /* whatever stands for the point in this locale */
            if (!strchr("0123456789eE+-", *c))
                *c = '.';
        tm_buf_text(&text, number);
        if (!l.type && !strpbrk(number, ".e")) /* no type: as str(), a float shows its point */
            tm_buf_text(&text, ".0");
    }
    if (percent)
        tm_buf_char(&text, '%');
    size_t whole = sign_size;
    while (whole < text.size && text.data && text.data[whole] >= '0' && text.data[whole] <= '9')
        whole++;
    return put_number(r, out, &text, sign_size, whole, l);
}

/* ---- "%" ---- */

typedef struct percent {
    jj_run *r;
    const char *at, *end;
    jj_value *values; /* a tuple, or one value */
    size_t next;
    bool keyed, markup;
} percent;

static jj_value *next_value(percent *p)
{
    bool tuple = p->values->kind == JJ_TUPLE;
    size_t count = tuple ? p->values->as.l.count : 1;
    if (p->next >= count)
        return jj_fail(p->r, "not enough arguments for format string");
    return tuple ? p->values->as.l.item[p->next++] : (p->next++, p->values);
}

static jj_value *keyed_value(percent *p)
{
    const char *name = ++p->at;
    int open = 1;
    for (; p->at < p->end; p->at++) {
        open += *p->at == '(' ? 1 : *p->at == ')' ? -1 : 0;
        if (!open)
            break;
    }
    if (p->at == p->end)
        return jj_fail(p->r, "incomplete format key");
    if (p->values->kind != JJ_DICT)
        return jj_fail(p->r, "format requires a mapping");
    jj_value *v = jj_get_text(p->values, name, (size_t)(p->at - name));
    p->at++;
    p->keyed = true;
    return v ? v : jj_fail(p->r, "the format names a key that is not there");
}

/* A number, or '*': the next value. */
static bool percent_number(percent *p, int64_t *out)
{
    if (p->at < p->end && *p->at == '*') {
        jj_value *v = next_value(p);
        p->at++;
        if (!v || !jj_arg_int(p->r, v, 0, out))
            return false;
        *out = *out < -2 * WIDTH_MOST ? -2 * WIDTH_MOST : *out; /* too much either way, and can be negated */
        return true;
    }
    for (*out = 0; p->at < p->end && *p->at >= '0' && *p->at <= '9'; p->at++)
        *out = *out > WIDTH_MOST ? *out : *out * 10 + (*p->at - '0');
    return true;
}

static bool percent_int(percent *p, jj_value *v, layout l, tm_buf *out)
{
    char type = l.type == 'i' || l.type == 'u' ? 'd' : l.type;
    if (!jj_is_number(v) || (v->kind == JJ_FLOAT && type != 'd')) {
        if (v->kind == JJ_UNDEFINED)
            return jj_undefined_error(p->r, v), false;
        return jj_fail(p->r, "%%%c format: %s is required, not %s", l.type, type == 'd' ? "a real number" : "an integer", jj_type(v)), false;
    }
    if (v->kind == JJ_FLOAT && !(fabs(v->as.f) < 9e18))
        return jj_fail(p->r, "cannot convert this float to an integer of 64 bits"), false;
    l.type = type;
    return put_int(p->r, out, v->kind == JJ_FLOAT ? (int64_t)v->as.f : v->as.i, l);
}

static bool percent_text(percent *p, jj_value *v, layout l, tm_buf *out)
{
    tm_buf text = {0};
    bool ok = l.type == 's' && p->markup ? (v = jj_escape(p->r, v)) && jj_str(p->r, v, &text)
                                         : l.type == 's' ? jj_str(p->r, v, &text) : jj_repr(p->r, v, &text);
    jj_value s = {.kind = JJ_STRING, .as.s = {tm_buf_str(&text), text.size, JJ_UNKNOWN}};
    ok = ok && jj_buf_ok(p->r, &text);
    l.align = l.align == '<' ? '<' : '>';
    strcpy(l.fill, " ");
    ok = ok && put_text(p->r, out, &s, l);
    tm_buf_deinit(&text);
    return ok;
}

static bool percent_char(percent *p, jj_value *v, layout l, tm_buf *out)
{
    char text[4];
    jj_value s = *v;
    if (v->kind == JJ_INT && v->as.i >= 0 && v->as.i <= (int64_t)TM_UNICODE_MAX && !(v->as.i >= 0xd800 && v->as.i < 0xe000))
        s = (jj_value){.kind = JJ_STRING, .as.s = {text, (size_t)tm_utf8_put((uint32_t)v->as.i, text), 1}};
    if (s.kind != JJ_STRING || jj_chars(&s) != 1)
        return jj_fail(p->r, "%%c requires int or char"), false;
    l.align = l.align == '<' ? '<' : '>';
    strcpy(l.fill, " ");
    l.precision = JJ_UNKNOWN;
    return put_text(p->r, out, &s, l);
}

static bool percent_one(percent *p, tm_buf *out)
{
    layout l = {.fill = " ", .precision = JJ_UNKNOWN};
    jj_value *v = NULL;
    bool zero = false, minus = false;
    if (p->at < p->end && *p->at == '(' && !(v = keyed_value(p)))
        return false;
    for (; p->at < p->end && memchr("-+ #0", *p->at, 5); p->at++) {
        minus |= *p->at == '-';
        zero |= *p->at == '0';
        l.alternate |= *p->at == '#';
        if (*p->at == '+' || (*p->at == ' ' && l.sign != '+'))
            l.sign = *p->at;
    }
    if (!percent_number(p, &l.width))
        return false;
    if (l.width < 0) {
        minus = true;
        l.width = -l.width;
    }
    if (p->at < p->end && *p->at == '.') {
        p->at++;
        if (!percent_number(p, &l.precision))
            return false;
        l.precision = l.precision < 0 ? 0 : l.precision;
    }
    while (p->at < p->end && memchr("hlL", *p->at, 3))
        p->at++;
    if (p->at == p->end)
        return jj_fail(p->r, "incomplete format"), false;
    l.type = *p->at++;
    if (l.type == '%')
        return tm_buf_char(out, '%'), true;
    if (!v && !(v = next_value(p)))
        return false;
    l.align = minus ? '<' : zero ? '=' : '>';
    l.fill[0] = zero && !minus ? '0' : ' ';
    if (l.type == 's' || l.type == 'r' || l.type == 'a')
        return percent_text(p, v, l, out);
    if (l.type == 'c')
        return percent_char(p, v, l, out);
    if (memchr("diuxXo", l.type, 6))
        return percent_int(p, v, l, out);
    if (!memchr("eEfFgG", l.type, 6))
        return jj_fail(p->r, "unsupported format character '%c'", l.type > 32 && l.type < 127 ? l.type : '?'), false;
    if (!jj_is_number(v))
        return v->kind == JJ_UNDEFINED ? (jj_undefined_error(p->r, v), false) : (jj_fail(p->r, "must be real number, not %s", jj_type(v)), false);
    return put_float(p->r, out, jj_number(v), l);
}

jj_value *jj_percent(jj_run *r, jj_value *format, jj_value *values)
{
    percent p = {.r = r, .at = format->as.s.text, .values = values, .markup = format->markup};
    tm_buf out = {0};
    bool ok = true;
    p.end = p.at + format->as.s.size;
    while (ok && p.at < p.end) {
        const char *sign = memchr(p.at, '%', (size_t)(p.end - p.at));
        tm_buf_add(&out, p.at, (size_t)((sign ? sign : p.end) - p.at));
        p.at = sign ? sign + 1 : p.end;
        ok = !sign || percent_one(&p, &out);
    }
    size_t count = values->kind == JJ_TUPLE ? values->as.l.count : 1;
    bool loose = values->kind == JJ_DICT || values->kind == JJ_LIST || values->kind == JJ_RANGE || values->kind == JJ_VIEW;
    if (ok && p.next < count && !p.keyed && !loose)
        ok = (jj_fail(r, "not all arguments converted during string formatting"), false);
    jj_value *v = ok ? jj_string_buf(r, &out) : NULL;
    tm_buf_deinit(&out);
    if (v)
        v->markup = format->markup;
    return v;
}

/* ---- str.format ---- */

typedef struct formatter {
    jj_run *r;
    const jj_args *args;
    int64_t next; /* of the numbers that are not written; -1: they are */
    int depth;
    bool markup;
} formatter;

static bool format_text(formatter *f, const char *at, const char *end, tm_buf *out);

static bool all_digits(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (text[i] < '0' || text[i] > '9')
            return false;
    return size > 0 && size < 10;
}

/* The value of a field's name: "", "0", "name", then .attribute and [element]. */
static jj_value *field(formatter *f, const char *at, const char *end)
{
    jj_run *r = f->r;
    const char *name = at;
    while (at < end && *at != '.' && *at != '[')
        at++;
    size_t size = (size_t)(at - name);
    jj_value *v = NULL;
    if (!size || all_digits(name, size)) {
        int64_t index = size ? strtoll(name, NULL, 10) : f->next;
        if (size ? f->next > 0 : f->next < 0)
            return jj_fail(r, "cannot switch between automatic and manual field numbering");
        f->next = size ? -1 : f->next + 1;
        if (index >= (int64_t)f->args->count)
            return jj_fail(r, "Replacement index %lld out of range for positional args tuple", (long long)index);
        v = f->args->item[index];
    } else {
        for (size_t i = 0; i < f->args->named && !v; i++)
            if (f->args->key[i]->kind == JJ_STRING && f->args->key[i]->as.s.size == size && memcmp(f->args->key[i]->as.s.text, name, size) == 0)
                v = f->args->value[i];
        if (!v)
            return jj_fail(r, "format() misses the argument '%.*s'", (int)(size < 60 ? size : 60), name);
    }
    while (v && at < end) {
        bool dot = *at++ == '.';
        const char *part = at;
        while (at < end && (dot ? *at != '.' && *at != '[' : *at != ']'))
            at++;
        size = (size_t)(at - part);
        if (!size || (!dot && at == end))
            return jj_fail(r, "an empty or open attribute in a format string");
        if (dot) {
            v = jj_attribute(r, v, part, size);
            continue;
        }
        at++;
        jj_value *key = all_digits(part, size) ? jj_int(r, strtoll(part, NULL, 10)) : jj_string_copy(r, part, size);
        v = key ? jj_element(r, v, key) : NULL;
    }
    return v;
}

static bool read_layout(formatter *f, const char *at, const char *end, layout *l)
{
    size_t n;
    *l = (layout){.fill = " ", .precision = JJ_UNKNOWN};
    if (at < end && (tm_utf8_at(at, &n), at + n < end) && memchr("<>^=", at[n], 4)) {
        memcpy(l->fill, at, n);
        l->fill[n] = 0;
        l->align = at[n];
        at += n + 1;
    } else if (at < end && memchr("<>^=", *at, 4)) {
        l->align = *at++;
    }
    if (at < end && memchr("+- ", *at, 3)) {
        l->sign = *at == '-' ? 0 : *at;
        at++;
    }
    if (at < end && *at == '#') {
        l->alternate = true;
        at++;
    }
    if (at < end && *at == '0') {
        if (!l->align) {
            l->align = '=';
            strcpy(l->fill, "0");
        }
        at++;
    }
    for (; at < end && *at >= '0' && *at <= '9'; at++)
        l->width = l->width > WIDTH_MOST ? l->width : l->width * 10 + (*at - '0');
    if (at < end && (*at == ',' || *at == '_'))
        l->group = *at++;
    if (at < end && *at == '.')
        for (at++, l->precision = 0; at < end && *at >= '0' && *at <= '9'; at++)
            l->precision = l->precision > WIDTH_MOST ? l->precision : l->precision * 10 + (*at - '0');
    if (at < end)
        l->type = *at++;
    return at == end || (jj_fail(f->r, "Invalid format specifier"), false);
}

static bool put_formatted(formatter *f, jj_value *v, const char *spec, size_t spec_size, tm_buf *out)
{
    jj_run *r = f->r;
    layout l;
    if (!read_layout(f, spec, spec + spec_size, &l))
        return false;
    bool whole = v->kind == JJ_INT || (v->kind == JJ_BOOL && spec_size);
    if ((v->kind == JJ_FLOAT || whole) && l.type && memchr("eEfFgG%", l.type, 7))
        return put_float(r, out, jj_number(v), l);
    if (v->kind == JJ_FLOAT && !l.type)
        return put_float(r, out, v->as.f, l);
    if (whole && l.type == 'c')
        return jj_fail(r, "format 'c' is not supported"), false;
    if (whole && (!l.type || memchr("dbxXon", l.type, 6)) && l.precision == JJ_UNKNOWN)
        return put_int(r, out, v->as.i, l);
    if (v->kind == JJ_STRING && (!l.type || l.type == 's') && !l.sign && !l.group && l.align != '=')
        return put_text(r, out, v, l);
    if (v->kind == JJ_STRING && l.align == '=' && l.fill[0] == '0' && !l.sign && !l.group && (!l.type || l.type == 's')) {
        l.align = '<'; /* "05" of a string fills behind it */
        return put_text(r, out, v, l);
    }
    if (spec_size)
        return jj_fail(r, "unsupported format string passed to %s.__format__", jj_type(v)), false;
    return jj_str(r, v, out);
}

/* One {field!conversion:spec}, without its braces. */
static bool format_field(formatter *f, const char *at, const char *end, tm_buf *out)
{
    const char *name_end = at;
    int brackets = 0;
    for (; name_end < end; name_end++) {
        brackets += *name_end == '[' ? 1 : *name_end == ']' && brackets ? -1 : 0;
        if (!brackets && (*name_end == '!' || *name_end == ':'))
            break;
    }
    jj_value *v = field(f, at, name_end);
    at = name_end;
    if (!v)
        return false;
    if (at < end && *at == '!') {
        char how = at + 1 < end ? at[1] : 0;
        tm_buf text = {0};
        if ((how != 'r' && how != 's') || (at + 2 < end && at[2] != ':'))
            return jj_fail(f->r, "a conversion in a format string that is neither !r nor !s"), false;
        if (!(how == 'r' ? jj_repr(f->r, v, &text) : jj_str(f->r, v, &text)) || !(v = jj_string_buf(f->r, &text))) {
            tm_buf_deinit(&text);
            return false;
        }
        at += 2;
    }
    tm_buf spec = {0}, piece = {0};
    bool ok = at == end || format_text(f, at + 1, end, &spec);
    if (ok && f->markup && !spec.size)
        v = jj_escape(f->r, v);
    ok = ok && v && put_formatted(f, v, tm_buf_str(&spec), spec.size, &piece);
    tm_buf_add(out, tm_buf_str(&piece), piece.size);
    tm_buf_deinit(&piece);
    tm_buf_deinit(&spec);
    return ok && jj_buf_ok(f->r, out);
}

static bool format_text(formatter *f, const char *at, const char *end, tm_buf *out)
{
    if (f->depth++ > 2)
        return jj_fail(f->r, "Max string recursion exceeded"), false;
    while (at < end) {
        if (*at != '{' && *at != '}') {
            tm_buf_char(out, *at++);
            continue;
        }
        if (at + 1 < end && at[1] == *at && f->depth == 1) {
            tm_buf_char(out, *at);
            at += 2;
            continue;
        }
        if (*at == '}')
            return jj_fail(f->r, "Single '}' encountered in format string"), false;
        const char *close = ++at;
        for (int open = 1; close < end; close++) {
            open += *close == '{' ? 1 : *close == '}' ? -1 : 0;
            if (!open)
                break;
        }
        if (close == end)
            return jj_fail(f->r, "expected '}' before end of string"), false;
        if (!format_field(f, at, close, out))
            return false;
        at = close + 1;
    }
    f->depth--;
    return jj_buf_ok(f->r, out);
}

jj_value *jj_format(jj_run *r, jj_value *format, const jj_args *args)
{
    formatter f = {.r = r, .args = args, .markup = format->markup};
    tm_buf out = {0};
    bool ok = format_text(&f, format->as.s.text, format->as.s.text + format->as.s.size, &out);
    jj_value *v = ok ? jj_string_buf(r, &out) : NULL;
    tm_buf_deinit(&out);
    if (v)
        v->markup = format->markup;
    return v;
}

/* ---- dates ---- */

static const char *const months[] = {"January", "February", "March", "April", "May", "June", "July", "August",
                                     "September", "October", "November", "December"};
static const char *const days[] = {"Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"};

/* The day is the caller's, the time is midnight: a rendering is the same every day. */
jj_value *jj_strftime(jj_run *r, jj_value *self, const jj_args *args)
{
    (void)self;
    int y = 2024, m = 7, d = 26;
    tm_buf out = {0};
    if (r->context->date && sscanf(r->context->date, "%4d-%2d-%2d", &y, &m, &d) != 3)
        return jj_fail(r, "the date '%.40s' is not YYYY-MM-DD", r->context->date);
    if (m < 1 || m > 12 || d < 1 || d > 31 || y < 1 || args->item[0]->kind != JJ_STRING)
        return jj_fail(r, "strftime_now: expected a format and a day that exists");
    static const int before[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    bool leap = (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
    int year_day = before[m - 1] + d + (leap && m > 2), years = y - 1;
    int week_day = (years + years / 4 - years / 100 + years / 400 + year_day) % 7; /* 0: Sunday */
    const char *s = args->item[0]->as.s.text, *end = s + args->item[0]->as.s.size;
    for (; s < end; s++) {
        if (*s != '%' || s + 1 == end) {
            tm_buf_char(&out, *s);
            continue;
        }
        bool bare = s[1] == '-' && s + 2 < end;
        s += bare ? 2 : 1;
        switch (*s) {
        case 'Y': tm_buf_printf(&out, "%d", y); break;
        case 'y': tm_buf_printf(&out, bare ? "%d" : "%02d", y % 100); break;
        case 'm': tm_buf_printf(&out, bare ? "%d" : "%02d", m); break;
        case 'd': tm_buf_printf(&out, bare ? "%d" : "%02d", d); break;
        case 'e': tm_buf_printf(&out, bare ? "%d" : "%2d", d); break;
        case 'j': tm_buf_printf(&out, bare ? "%d" : "%03d", year_day); break;
        case 'B': tm_buf_text(&out, months[m - 1]); break;
        case 'b':
        case 'h': tm_buf_printf(&out, "%.3s", months[m - 1]); break;
        case 'A': tm_buf_text(&out, days[week_day]); break;
        case 'a': tm_buf_printf(&out, "%.3s", days[week_day]); break;
        case 'u': tm_buf_printf(&out, "%d", week_day ? week_day : 7); break;
        case 'w': tm_buf_printf(&out, "%d", week_day); break;
        case 'H':
        case 'M':
        case 'S': tm_buf_text(&out, bare ? "0" : "00"); break;
        case 'I': tm_buf_text(&out, "12"); break;
        case 'p': tm_buf_text(&out, "AM"); break;
        case 'f': tm_buf_text(&out, "000000"); break;
        case 'F': tm_buf_printf(&out, "%d-%02d-%02d", y, m, d); break;
        case 'D':
        case 'x': tm_buf_printf(&out, "%02d/%02d/%02d", m, d, y % 100); break;
        case 'T':
        case 'X': tm_buf_text(&out, "00:00:00"); break;
        case 'R': tm_buf_text(&out, "00:00"); break;
        case 'c': tm_buf_printf(&out, "%.3s %.3s %2d 00:00:00 %d", days[week_day], months[m - 1], d, y); break;
        case 'n': tm_buf_char(&out, '\n'); break;
        case 't': tm_buf_char(&out, '\t'); break;
        case 'z':
        case 'Z': break;
        case '%': tm_buf_char(&out, '%'); break;
        default:
            tm_buf_deinit(&out);
            return jj_fail(r, "strftime_now: %%%c is not supported", *s > 32 && *s < 127 ? *s : '?');
        }
    }
    return jj_string_buf(r, &out);
}
