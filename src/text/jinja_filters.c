/* Filters on text and numbers, and the table of all filters. Those on lists are in jinja_filter_lists.c. */
#include "text/jinja_filters.h"

#include <math.h>
#include <stdlib.h>

typedef const jj_args *args_t;

/* A value as text for a filter: a string as it is. */
static jj_value *soft(jj_run *r, jj_value *v) { return jj_to_string(r, v); }

/* The string method `name` on the text of v. */
static jj_value *by_method(jj_run *r, jj_value *v, const char *name, args_t a)
{
    bool forbidden;
    v = soft(r, v);
    return v ? jj_apply(r, jj_find_method(v, name, strlen(name), &forbidden), v, a) : NULL;
}

static const jj_args nothing = {0};

static jj_value *f_upper(jj_run *r, jj_value *v, args_t a) { return (void)a, by_method(r, v, "upper", &nothing); }
static jj_value *f_lower(jj_run *r, jj_value *v, args_t a) { return (void)a, by_method(r, v, "lower", &nothing); }
static jj_value *f_capitalize(jj_run *r, jj_value *v, args_t a) { return (void)a, by_method(r, v, "capitalize", &nothing); }
static jj_value *f_string(jj_run *r, jj_value *v, args_t a) { return (void)a, soft(r, v); }
static jj_value *f_escape(jj_run *r, jj_value *v, args_t a) { return (void)a, jj_escape(r, v); }

static jj_value *plain(jj_run *r, jj_value *v, bool markup)
{
    v = soft(r, v);
    if (!v || v->markup == markup)
        return v;
    v = jj_string(r, v->as.s.text, v->as.s.size);
    if (v)
        v->markup = markup;
    return v;
}

static jj_value *f_safe(jj_run *r, jj_value *v, args_t a) { return (void)a, plain(r, v, true); }

static jj_value *f_forceescape(jj_run *r, jj_value *v, args_t a)
{
    (void)a;
    v = plain(r, v, false);
    return v ? jj_escape(r, v) : NULL;
}

static jj_value *f_trim(jj_run *r, jj_value *v, args_t a)
{
    v = soft(r, v);
    return v ? jj_strip(r, v, a->item[0], 3) : NULL;
}

static jj_value *f_title(jj_run *r, jj_value *v, args_t a)
{
    (void)a;
    v = soft(r, v);
    tm_buf out = {0};
    for (size_t at = 0, end, n; v && at < v->as.s.size; at = end) {
        const char *s = v->as.s.text;
        size_t first;
        uint32_t code = tm_utf8_at(s + at, &first);
        bool mark = jj_space(code) || (code < 128 && strchr("-({[<", (int)code) && code);
        for (end = at; end < v->as.s.size; end += n) {
            uint32_t c = tm_utf8_at(s + end, &n);
            if ((jj_space(c) || (c < 128 && c && strchr("-({[<", (int)c))) != mark)
                break;
        }
        jj_value head = {.kind = JJ_STRING, .as.s = {s + at, mark ? end - at : first, JJ_UNKNOWN}}, *piece = &head;
        piece = mark ? piece : jj_upper(r, piece);
        tm_buf_add(&out, piece ? piece->as.s.text : "", piece ? piece->as.s.size : 0);
        jj_value tail = {.kind = JJ_STRING, .as.s = {s + at + head.as.s.size, end - at - head.as.s.size, JJ_UNKNOWN}};
        piece = piece ? jj_lower(r, &tail) : NULL;
        if (!piece) {
            tm_buf_deinit(&out);
            return NULL;
        }
        tm_buf_add(&out, piece->as.s.text, piece->as.s.size);
    }
    return v ? jj_string_buf(r, &out) : NULL;
}

static jj_value *f_replace(jj_run *r, jj_value *v, args_t a)
{
    jj_value *item[3] = {plain(r, a->item[0], false), plain(r, a->item[1], false), a->item[2] && a->item[2]->kind != JJ_NONE ? a->item[2] : NULL};
    v = plain(r, v, false);
    return v && item[0] && item[1] ? by_method(r, v, "replace", &(jj_args){.item = item, .count = item[2] ? 3 : 2}) : NULL;
}

static jj_value *f_center(jj_run *r, jj_value *v, args_t a)
{
    jj_value *width = a->item[0] ? a->item[0] : jj_int(r, 80);
    return width ? by_method(r, v, "center", &(jj_args){.item = &width, .count = 1}) : NULL;
}

static jj_value *f_format(jj_run *r, jj_value *v, args_t a)
{
    if (a->count && a->named)
        return jj_fail(r, "can't handle positional and keyword arguments at the same time");
    jj_value *values = a->named ? jj_dict(r, a->named) : jj_list(r, JJ_TUPLE, a->count);
    for (size_t i = 0; values && i < a->named; i++)
        if (!jj_put(r, values, a->key[i], a->value[i]))
            return NULL;
    for (size_t i = 0; values && i < a->count; i++)
        jj_push(r, values, a->item[i]);
    v = soft(r, v);
    return v && values ? jj_percent(r, v, values) : NULL;
}

static jj_value *f_indent(jj_run *r, jj_value *v, args_t a)
{
    jj_value *by = a->item[0];
    int64_t width = 4;
    bool first = a->item[1] && jj_truth(a->item[1]), blank = a->item[2] && jj_truth(a->item[2]);
    if (v->kind != JJ_STRING)
        return v->kind == JJ_UNDEFINED ? jj_undefined_error(r, v) : jj_fail(r, "indent expects a string, found %s", jj_type(v));
    if (!by || by->kind != JJ_STRING) {
        if (!jj_arg_int(r, by, 4, &width))
            return NULL;
        jj_value *space = jj_text(r, " "), *count = jj_int(r, width);
        by = space && count ? jj_operate(r, JJ_MUL, space, count) : NULL;
    }
    jj_value *newline = jj_text(r, "\n"), *with = by && newline ? jj_operate(r, JJ_ADD, plain(r, v, false), newline) : NULL;
    jj_value *lines = with ? by_method(r, with, "splitlines", &nothing) : NULL;
    tm_buf out = {0};
    for (size_t i = 0; lines && i < lines->as.l.count; i++) {
        const jj_value *line = lines->as.l.item[i];
        if (i)
            tm_buf_char(&out, '\n');
        if (i ? blank || line->as.s.size : first)
            tm_buf_add(&out, by->as.s.text, by->as.s.size);
        tm_buf_add(&out, line->as.s.text, line->as.s.size);
        if (!jj_work_bytes(r, by->as.s.size) || !jj_buf_ok(r, &out))
            lines = NULL;
    }
    jj_value *text = lines ? jj_string_buf(r, &out) : NULL;
    tm_buf_deinit(&out);
    if (text)
        text->markup = v->markup;
    return text;
}

static jj_value *f_truncate(jj_run *r, jj_value *v, args_t a)
{
    int64_t length, leeway, size;
    bool kill = a->item[1] && jj_truth(a->item[1]);
    jj_value *end = a->item[2] ? a->item[2] : jj_text(r, "...");
    jj_value *slack = a->item[3] && a->item[3]->kind != JJ_NONE ? a->item[3] : NULL;
    if (!end || !jj_arg_int(r, a->item[0], 255, &length) || !jj_arg_int(r, slack, 5, &leeway))
        return NULL;
    if (end->kind != JJ_STRING)
        return jj_fail(r, "truncate expects a string as end, found %s", jj_type(end));
    if (length < jj_chars(end) || leeway < 0)
        return jj_fail(r, "expected length >= %lld, got %lld", (long long)jj_chars(end), (long long)length);
    if (!jj_length(r, v, &size))
        return NULL;
    if (size <= length + leeway)
        return v;
    if (v->kind != JJ_STRING)
        return jj_fail(r, "truncate expects a string, found %s", jj_type(v));
    size_t cut = jj_char_at(v, length - jj_chars(end));
    if (!kill)
        for (size_t at = cut; at > 0; at--)
            if (v->as.s.text[at - 1] == ' ') {
                cut = at - 1;
                break;
            }
    jj_value *head = jj_string(r, v->as.s.text, cut);
    if (head)
        head->markup = v->markup;
    return head ? jj_operate(r, JJ_ADD, head, end) : NULL;
}

static jj_value *f_wordcount(jj_run *r, jj_value *v, args_t a)
{
    (void)a;
    int64_t words = 0;
    bool inside = false;
    v = soft(r, v);
    for (size_t at = 0, n; v && at < v->as.s.size; at += n) {
        uint32_t code = tm_utf8_at(v->as.s.text + at, &n);
        tm_category c = tm_unicode_category(code);
        bool word = code == '_' || TM_CAT(c) & (TM_CAT_L | TM_CAT_N);
        words += word && !inside;
        inside = word;
    }
    return v && jj_work_bytes(r, v->as.s.size) ? jj_int(r, words) : NULL;
}

static jj_value *f_striptags(jj_run *r, jj_value *v, args_t a)
{
    (void)a;
    static const struct {
        const char *name, *text;
    } entities[] = {{"&amp;", "&"}, {"&lt;", "<"}, {"&gt;", ">"}, {"&#34;", "\""}, {"&quot;", "\""}, {"&#39;", "'"}, {"&nbsp;", "\u00a0"}};
    tm_buf bare = {0}, out = {0};
    v = soft(r, v);
    if (!v)
        return NULL;
    const char *s = v->as.s.text, *end = s + v->as.s.size;
    while (s < end) { /* comments first, then tags */
        const char *stop = end - s >= 4 && memcmp(s, "<!--", 4) == 0 ? memmem(s, (size_t)(end - s), "-->", 3) : NULL;
        if (stop) {
            s = stop + 3;
            continue;
        }
        stop = *s == '<' ? memchr(s, '>', (size_t)(end - s)) : NULL;
        if (stop)
            s = stop + 1;
        else
            tm_buf_char(&bare, *s++);
    }
    bool space = false;
    for (size_t at = 0, n; at < bare.size && bare.data; at += n) {
        if (jj_space(tm_utf8_at(bare.data + at, &n))) {
            space = out.size > 0;
            continue;
        }
        if (space)
            tm_buf_char(&out, ' ');
        space = false;
        size_t known = sizeof entities / sizeof entities[0];
        for (size_t i = 0; i < known; i++) {
            size_t size = strlen(entities[i].name);
            if (bare.size - at >= size && memcmp(bare.data + at, entities[i].name, size) == 0) {
                tm_buf_text(&out, entities[i].text);
                n = size;
                known = 0;
            }
        }
        if (known)
            tm_buf_add(&out, bare.data + at, n);
    }
    out.failed |= bare.failed;
    tm_buf_deinit(&bare);
    return jj_string_buf(r, &out);
}

/* ---- numbers ---- */

static jj_value *f_abs(jj_run *r, jj_value *v, args_t a)
{
    (void)a;
    if (v->kind == JJ_FLOAT)
        return jj_float(r, fabs(v->as.f));
    if (!jj_is_number(v))
        return v->kind == JJ_UNDEFINED ? jj_undefined_error(r, v) : jj_fail(r, "bad operand type for abs(): '%s'", jj_type(v));
    return v->as.i == INT64_MIN ? jj_fail(r, "an integer beyond 64 bits") : jj_int(r, v->as.i < 0 ? -v->as.i : v->as.i);
}

/* Text as Python's int() and float() read it: white space around, underscores between digits. */
static bool read_number(jj_run *r, const jj_value *s, int base, bool real, int64_t *whole, double *value, bool *big)
{
    char text[400], *end;
    size_t n = 0, begin = 0, stop = s->as.s.size, k;
    *big = false;
    (void)r;
    while (begin < stop && jj_space(tm_utf8_at(s->as.s.text + begin, &k)))
        begin += k;
    while (stop > begin && jj_space(tm_utf8_before(s->as.s.text, stop, &k)))
        stop -= k;
    for (size_t i = begin; i < stop && n < sizeof text - 1; i++) {
        char c = s->as.s.text[i];
        if (c == '_' && i > begin && i + 1 < stop && s->as.s.text[i - 1] != '_' && strchr("0123456789abcdefABCDEFxXoO", s->as.s.text[i - 1]) &&
            strchr("0123456789abcdefABCDEF", s->as.s.text[i + 1]))
            continue;
        text[n++] = c;
    }
    text[n] = 0;
    if (!n || n == sizeof text - 1 || strlen(text) != n)
        return false;
    if (real) {
        static const char *const words[] = {"inf", "infinity", "nan"};
        bool word = false;
        const char *body = text + (*text == '-' || *text == '+');
        for (int i = 0; i < 3; i++)
            word |= strcasecmp(body, words[i]) == 0;
        if (!word && strspn(body, "0123456789.eE+-") != strlen(body))
            return false;
        *value = strtod(text, &end);
        return *end == 0 && end > text;
    }
    char *digits = text + (*text == '-' || *text == '+');
    if (base == 0)
        base = digits[0] != '0' ? 10 : (digits[1] | 32) == 'x' ? 16 : (digits[1] | 32) == 'o' ? 8 : (digits[1] | 32) == 'b' ? 2 : 10;
    char mark = base == 16 ? 'x' : base == 8 ? 'o' : base == 2 ? 'b' : 0;
    if (mark && digits[0] == '0' && (digits[1] | 32) == mark && digits[2])
        memmove(digits, digits + 2, strlen(digits + 2) + 1);
    if (!((*digits >= '0' && *digits <= '9') || ((*digits | 32) >= 'a' && (*digits | 32) <= 'z')))
        return false;
    if (base == 16 && digits[0] == '0' && (digits[1] | 32) == 'x')
        return false;
    errno = 0;
    *whole = strtoll(text, &end, base);
    *big = errno == ERANGE;
    return *end == 0;
}

static jj_value *float_to_int(jj_run *r, double f, jj_value *fallback)
{
    if (isnan(f) || isinf(f))
        return fallback;
    return fabs(f) < 9.2e18 ? jj_int(r, (int64_t)f) : jj_fail(r, "an integer beyond 64 bits");
}

static jj_value *f_int(jj_run *r, jj_value *v, args_t a)
{
    int64_t base, whole = 0;
    double value;
    bool big;
    jj_value *fallback = a->item[0] ? a->item[0] : jj_int(r, 0);
    if (!fallback || !jj_arg_int(r, a->item[1], 10, &base))
        return NULL;
    if (v->kind == JJ_UNDEFINED)
        return jj_undefined_error(r, v);
    if (v->kind == JJ_FLOAT)
        return float_to_int(r, v->as.f, fallback);
    if (v->kind == JJ_INT || v->kind == JJ_BOOL)
        return jj_int(r, v->as.i);
    if (v->kind != JJ_STRING)
        return fallback;
    if ((base == 0 || (base >= 2 && base <= 36)) && read_number(r, v, (int)base, false, &whole, &value, &big))
        return big ? jj_fail(r, "an integer beyond 64 bits") : jj_int(r, whole);
    return read_number(r, v, 10, true, &whole, &value, &big) ? float_to_int(r, value, fallback) : fallback;
}

static jj_value *f_float(jj_run *r, jj_value *v, args_t a)
{
    int64_t whole;
    double value = 0;
    bool big;
    if (v->kind == JJ_UNDEFINED)
        return jj_undefined_error(r, v);
    if (jj_is_number(v))
        return jj_float(r, jj_number(v));
    if (v->kind == JJ_STRING && read_number(r, v, 10, true, &whole, &value, &big))
        return jj_float(r, value);
    return a->item[0] ? a->item[0] : jj_float(r, 0);
}

/* A float to `places` decimals, halves to even, by its exact decimal digits. */
static double round_to(double f, int64_t places)
{
    char text[800];
    if (isnan(f) || isinf(f) || places > 322)
        return f;
    if (places >= 0) {
        snprintf(text, sizeof text, "%.*f", (int)places, f);
        return strtod(text, NULL);
    }
    if (places < -308)
        return copysign(0, f);
    double scale = pow(10, (double)-places);
    return rint(f / scale) * scale;
}

static jj_value *round_int(jj_run *r, int64_t n, int64_t places)
{
    int64_t scale = 1;
    if (places >= 0)
        return jj_int(r, n);
    if (places < -18)
        return jj_int(r, 0);
    for (; places < 0; places++)
        scale *= 10;
    int64_t rest = ((n % scale) + scale) % scale, low = n - rest, half = scale / 2;
    bool up = rest > half || (rest == half && (low / scale) % 2 != 0);
    return up && __builtin_add_overflow(low, scale, &low) ? jj_fail(r, "an integer beyond 64 bits") : jj_int(r, low);
}

static jj_value *f_round(jj_run *r, jj_value *v, args_t a)
{
    int64_t places;
    bool up = jj_same_text(a->item[1], "ceil"), down = jj_same_text(a->item[1], "floor");
    if (!jj_arg_int(r, a->item[0], 0, &places))
        return NULL;
    if (a->item[1] && !up && !down && !jj_same_text(a->item[1], "common"))
        return jj_fail(r, "method must be common, ceil or floor");
    if (!jj_is_number(v))
        return v->kind == JJ_UNDEFINED ? jj_undefined_error(r, v) : jj_fail(r, "type %s doesn't define __round__ method", jj_type(v));
    if (!up && !down)
        return v->kind == JJ_FLOAT ? jj_float(r, round_to(v->as.f, places)) : round_int(r, v->as.i, places);
    double scale = pow(10, (double)places), f = jj_number(v) * scale;
    return jj_float(r, ((up ? ceil(f) : floor(f)) + 0.0) / scale); /* Python's are whole numbers: no -0 */
}

/* ---- others ---- */

static jj_value *f_default(jj_run *r, jj_value *v, args_t a)
{
    bool empty = a->item[1] && jj_truth(a->item[1]) && !jj_truth(v);
    return v->kind != JJ_UNDEFINED && !empty ? v : a->item[0] ? a->item[0] : &r->empty;
}

static jj_value *f_attr(jj_run *r, jj_value *v, args_t a)
{
    bool forbidden;
    jj_value *name = a->item[0];
    if (name->kind != JJ_STRING)
        return jj_fail(r, "attribute name must be string, not '%s'", jj_type(name));
    if (v->kind == JJ_UNDEFINED)
        return jj_undefined_error(r, v);
    bool own = v->kind != JJ_DICT || jj_find_method(v, name->as.s.text, name->as.s.size, &forbidden) || forbidden;
    return own ? jj_attribute(r, v, name->as.s.text, name->as.s.size)
               : jj_missing(r, v, name->as.s.text, name->as.s.size);
}

static void quote(tm_buf *out, const jj_value *v, bool form)
{
    for (size_t i = 0; i < v->as.s.size; i++) {
        unsigned char c = (unsigned char)v->as.s.text[i];
        bool same = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || strchr("_.-~", c) || (!form && c == '/');
        if (same && c)
            tm_buf_char(out, (char)c);
        else if (form && c == ' ')
            tm_buf_char(out, '+');
        else
            tm_buf_printf(out, "%%%02X", c);
    }
}

static jj_value *f_urlencode(jj_run *r, jj_value *v, args_t a)
{
    (void)a;
    tm_buf out = {0};
    jj_value **item, *text;
    size_t count;
    if (v->kind == JJ_STRING || !(jj_is_items(v) || v->kind == JJ_DICT)) {
        if (!(text = soft(r, v)))
            return NULL;
        quote(&out, text, false);
        return jj_string_buf(r, &out);
    }
    bool dict = v->kind == JJ_DICT;
    count = dict ? v->as.d.count : 0;
    if (!dict && !jj_items(r, v, &item, &count))
        return NULL;
    for (size_t i = 0; i < count; i++) {
        jj_value **two, *pair[2];
        size_t n = 2;
        if (dict) {
            pair[0] = v->as.d.pair[i].key;
            pair[1] = v->as.d.pair[i].value;
            two = pair;
        } else if (!jj_items(r, item[i], &two, &n) || n != 2) {
            tm_buf_deinit(&out);
            return jj_fail(r, "urlencode expects pairs");
        }
        for (int k = 0; k < 2; k++) {
            if (!(text = soft(r, two[k]))) {
                tm_buf_deinit(&out);
                return NULL;
            }
            tm_buf_text(&out, k ? "=" : i ? "&" : "");
            quote(&out, text, true);
        }
    }
    return jj_string_buf(r, &out);
}

static jj_value *f_filesizeformat(jj_run *r, jj_value *v, args_t a)
{
    static const char *const names[2][8] = {{"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"},
                                            {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"}};
    bool binary = a->item[0] && jj_truth(a->item[0]);
    double base = binary ? 1024 : 1000, unit = base;
    tm_buf out = {0};
    jj_value *number = f_float(r, v, &(jj_args){.item = &(jj_value *){&r->none}});
    if (!number || number->kind != JJ_FLOAT)
        return jj_fail(r, "filesizeformat expects a number, found %s", jj_type(v));
    double f = number->as.f;
    if (f == 1)
        return jj_text(r, "1 Byte");
    if (f < base)
        tm_buf_printf(&out, "%lld Bytes", (long long)f);
    for (int i = 0; f >= base && i < 8; i++) {
        unit *= base;
        if (f < unit || i == 7) {
            tm_buf_printf(&out, "%.1f %s", base * f / unit, names[binary][i]);
            break;
        }
    }
    return jj_string_buf(r, &out);
}

const jj_function jj_filters[] = {
    {"abs", "", f_abs}, {"attr", "name", f_attr}, {"batch", "linecount ?fill_with", jj_filter_batch},
    {"capitalize", "", f_capitalize}, {"center", "?width", f_center}, {"count", "", jj_filter_length},
    {"d", "?default_value ?boolean", f_default}, {"default", "?default_value ?boolean", f_default},
    {"dictsort", "?case_sensitive ?by ?reverse", jj_filter_dictsort}, {"e", "", f_escape}, {"escape", "", f_escape},
    {"filesizeformat", "?binary", f_filesizeformat}, {"first", "", jj_filter_first}, {"float", "?default", f_float},
    {"forceescape", "", f_forceescape}, {"format", NULL, f_format},
    {"groupby", "attribute ?default ?case_sensitive", jj_filter_groupby}, {"indent", "?width ?first ?blank", f_indent},
    {"int", "?default ?base", f_int}, {"items", "", jj_filter_items}, {"join", "?d ?attribute", jj_filter_join},
    {"last", "", jj_filter_last}, {"length", "", jj_filter_length}, {"list", "", jj_filter_list}, {"lower", "", f_lower},
    {"map", NULL, jj_filter_map}, {"max", "?case_sensitive ?attribute", jj_filter_max},
    {"min", "?case_sensitive ?attribute", jj_filter_min}, {"reject", NULL, jj_filter_reject},
    {"rejectattr", NULL, jj_filter_rejectattr}, {"replace", "old new ?count", f_replace}, {"reverse", "", jj_filter_reverse},
    {"round", "?precision ?method", f_round}, {"safe", "", f_safe}, {"select", NULL, jj_filter_select},
    {"selectattr", NULL, jj_filter_selectattr}, {"slice", "slices ?fill_with", jj_filter_slice},
    {"sort", "?reverse ?case_sensitive ?attribute", jj_filter_sort}, {"string", "", f_string},
    {"striptags", "", f_striptags}, {"sum", "?attribute ?start", jj_filter_sum}, {"title", "", f_title},
    {"tojson", "?ensure_ascii ?indent ?separators ?sort_keys", jj_filter_tojson}, {"trim", "?chars", f_trim},
    {"truncate", "?length ?killwords ?end ?leeway", f_truncate}, {"unique", "?case_sensitive ?attribute", jj_filter_unique},
    {"upper", "", f_upper}, {"urlencode", "", f_urlencode}, {"wordcount", "", f_wordcount}, {NULL, NULL, NULL}};
