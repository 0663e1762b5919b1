/* Values as text: Python's str() and repr(), and json.dumps behind the tojson filter. */
#include "text/jinja_parts.h"

#include <math.h>
#include <stdlib.h>

bool jj_buf_ok(jj_run *r, tm_buf *buf)
{
    if (buf->failed && r->status == TM_OK)
        r->status = tm_fail(r->err, TM_NO_MEMORY, "%s: out of memory", r->t->name);
    else if (buf->size > TM_JINJA_MAX_OUTPUT)
        jj_fail(r, "a text of more than %d MiB", TM_JINJA_MAX_OUTPUT >> 20);
    return r->status == TM_OK;
}

/* ---- numbers ---- */

/* The shortest digits that read back as f, and their exponent: 0.d1d2... * 10^point. */
static int shortest(double f, char digits[20], int *point)
{
    char text[40];
    for (int precision = 0; precision < 17; precision++) {
        snprintf(text, sizeof text, "%.*e", precision, f);
        if (precision == 16 || strtod(text, NULL) == f)
            break;
    }
    int n = 0;
    char *c = text;
    for (; *c && *c != 'e'; c++)
        if (*c >= '0' && *c <= '9') /* whatever stands for the point */
            digits[n++] = *c;
    *point = atoi(c + 1) + 1;
    return n;
}

void jj_put_float(tm_buf *out, double f)
{
    char digits[20];
    int point;
    if (isnan(f) || isinf(f)) {
        tm_buf_text(out, isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
        return;
    }
    if (signbit(f))
        tm_buf_char(out, '-');
    if (f == 0) {
        tm_buf_text(out, "0.0");
        return;
    }
    int n = shortest(fabs(f), digits, &point);
    if (point > 16 || point < -3) {
        tm_buf_char(out, digits[0]);
        if (n > 1) {
            tm_buf_char(out, '.');
            tm_buf_add(out, digits + 1, (size_t)n - 1);
        }
        tm_buf_printf(out, "e%c%02d", point < 1 ? '-' : '+', abs(point - 1));
        return;
    }
    if (point <= 0)
        tm_buf_text(out, "0.");
    for (int i = point; i < 0; i++)
        tm_buf_char(out, '0');
    for (int i = 0; i < n || i < point; i++) {
        if (i == point && i > 0)
            tm_buf_char(out, '.');
        tm_buf_char(out, i < n ? digits[i] : '0');
    }
    if (n <= point)
        tm_buf_text(out, ".0");
}

/* ---- str and repr ---- */

static bool printable(uint32_t code)
{
    tm_category c = tm_unicode_category(code);
    return code == ' ' || !(TM_CAT(c) & (TM_CAT(TM_CC) | TM_CAT(TM_CF) | TM_CAT(TM_CS) | TM_CAT(TM_CO) | TM_CAT(TM_CN) |
                                         TM_CAT(TM_ZL) | TM_CAT(TM_ZP) | TM_CAT(TM_ZS)));
}

static void put_quoted(const jj_value *v, tm_buf *out)
{
    const char *s = v->as.s.text;
    size_t size = v->as.s.size;
    char quote = size && memchr(s, '\'', size) && !memchr(s, '"', size) ? '"' : '\'';
    tm_buf_char(out, quote);
    for (size_t i = 0, n; i < size; i += n) {
        uint32_t code = tm_utf8_at(s + i, &n);
        if (code == (uint32_t)quote || code == '\\') {
            tm_buf_char(out, '\\');
            tm_buf_char(out, (char)code);
        } else if (code == '\n' || code == '\r' || code == '\t') {
            tm_buf_text(out, code == '\n' ? "\\n" : code == '\r' ? "\\r" : "\\t");
        } else if ((code >= 32 && code < 127) || (code >= 127 && printable(code))) {
            tm_buf_add(out, s + i, n);
        } else {
            tm_buf_printf(out, code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x", code);
        }
    }
    tm_buf_char(out, quote);
}

static bool put_items(jj_run *r, const jj_value *v, tm_buf *out)
{
    for (size_t i = 0; i < v->as.l.count; i++) {
        if (i)
            tm_buf_text(out, ", ");
        if (!jj_repr(r, v->as.l.item[i], out))
            return false;
    }
    return true;
}

static bool put_pairs(jj_run *r, const jj_value *v, tm_buf *out)
{
    for (size_t i = 0; i < v->as.d.count; i++) {
        if (i)
            tm_buf_text(out, ", ");
        if (!jj_repr(r, v->as.d.pair[i].key, out))
            return false;
        tm_buf_text(out, ": ");
        if (!jj_repr(r, v->as.d.pair[i].value, out))
            return false;
    }
    return true;
}

static void put_range(const jj_value *v, tm_buf *out)
{
    const int64_t *n = v->as.l.range;
    tm_buf_printf(out, n[2] == 1 ? "range(%lld, %lld)" : "range(%lld, %lld, %lld)", (long long)n[0], (long long)n[1], (long long)n[2]);
}

static bool put_nested(jj_run *r, const jj_value *v, tm_buf *out)
{
    bool ok = true;
    switch ((jj_kind)v->kind) {
    case JJ_LIST:
        tm_buf_char(out, '[');
        ok = put_items(r, v, out);
        tm_buf_char(out, ']');
        return ok;
    case JJ_TUPLE:
        tm_buf_char(out, '(');
        ok = put_items(r, v, out);
        tm_buf_text(out, v->as.l.count == 1 ? ",)" : ")");
        return ok;
    case JJ_VIEW:
        tm_buf_printf(out, "%s([", jj_type(v));
        ok = put_items(r, v, out);
        tm_buf_text(out, "])");
        return ok;
    case JJ_NAMESPACE:
        tm_buf_text(out, "<Namespace {");
        ok = put_pairs(r, v, out);
        tm_buf_text(out, "}>");
        return ok;
    default:
        tm_buf_char(out, '{');
        ok = put_pairs(r, v, out);
        tm_buf_char(out, '}');
        return ok;
    }
}

bool jj_repr(jj_run *r, const jj_value *v, tm_buf *out)
{
    size_t before = out->size;
    bool ok = true;
    if (++r->depth > TM_JINJA_MAX_DEPTH) {
        jj_fail(r, "values nest more than %d deep", TM_JINJA_MAX_DEPTH);
        return false;
    }
    switch ((jj_kind)v->kind) {
    case JJ_UNDEFINED: tm_buf_text(out, "Undefined"); break;
    case JJ_NONE: tm_buf_text(out, "None"); break;
    case JJ_BOOL: tm_buf_text(out, v->as.i ? "True" : "False"); break;
    case JJ_INT: tm_buf_printf(out, "%lld", (long long)v->as.i); break;
    case JJ_FLOAT: jj_put_float(out, v->as.f); break;
    case JJ_STRING:
        if (v->markup)
            tm_buf_text(out, "Markup(");
        put_quoted(v, out);
        if (v->markup)
            tm_buf_char(out, ')');
        break;
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_VIEW:
    case JJ_DICT:
    case JJ_NAMESPACE: ok = put_nested(r, v, out); break;
    case JJ_RANGE: put_range(v, out); break;
    case JJ_MACRO: tm_buf_printf(out, "<Macro '%s'>", v->as.m.name); break;
    default: tm_buf_printf(out, "<%s object>", jj_type(v)); /* Python prints an address: nobody relies on it */
    }
    r->depth--;
    return ok && jj_work_bytes(r, out->size - before) && jj_buf_ok(r, out);
}

bool jj_str(jj_run *r, const jj_value *v, tm_buf *out)
{
    if (v->kind == JJ_UNDEFINED)
        return true;
    if (v->kind != JJ_STRING)
        return jj_repr(r, v, out);
    tm_buf_add(out, v->as.s.text, v->as.s.size);
    return jj_work_bytes(r, v->as.s.size) && jj_buf_ok(r, out);
}

jj_value *jj_to_string(jj_run *r, jj_value *v)
{
    if (v->kind == JJ_STRING)
        return v;
    tm_buf text = {0};
    if (jj_str(r, v, &text))
        return jj_string_buf(r, &text);
    tm_buf_deinit(&text);
    return NULL;
}

/* ---- tojson ---- */

typedef struct json_out {
    jj_run *r;
    tm_buf text;
    const jj_value *indent, *item, *key; /* indent: NULL none; item, key: separators */
    bool ascii, sorted;
    int level;
} json_out;

static bool put_json(json_out *j, const jj_value *v);

static void put_unit(tm_buf *out, uint32_t unit) { tm_buf_printf(out, "\\u%04x", unit); }

static bool put_json_string(json_out *j, const jj_value *v)
{
    static const char shorts[] = "btn?fr"; /* from 8 on */
    const char *s = v->as.s.text;
    tm_buf_char(&j->text, '"');
    for (size_t i = 0, n; i < v->as.s.size; i += n) {
        uint32_t code = tm_utf8_at(s + i, &n);
        if (code == '"' || code == '\\') {
            tm_buf_char(&j->text, '\\');
            tm_buf_char(&j->text, (char)code);
        } else if (code >= 8 && code <= 13 && code != 11) {
            tm_buf_char(&j->text, '\\');
            tm_buf_char(&j->text, shorts[code - 8]);
        } else if (code < 32 || (j->ascii && code > 126 && code < 0x10000 && code != 127)) {
            put_unit(&j->text, code);
        } else if (j->ascii && code >= 0x10000) {
            put_unit(&j->text, 0xd800 + ((code - 0x10000) >> 10));
            put_unit(&j->text, 0xdc00 + ((code - 0x10000) & 0x3ff));
        } else {
            tm_buf_add(&j->text, s + i, n);
        }
    }
    tm_buf_char(&j->text, '"');
    return jj_work_bytes(j->r, v->as.s.size) && jj_buf_ok(j->r, &j->text);
}

static void new_line(json_out *j)
{
    if (!j->indent)
        return;
    tm_buf_char(&j->text, '\n');
    for (int i = 0; i < j->level && j->text.size <= TM_JINJA_MAX_OUTPUT; i++)
        tm_buf_add(&j->text, j->indent->as.s.text, j->indent->as.s.size);
}

static bool put_json_float(json_out *j, double f)
{
    if (isnan(f) || isinf(f))
        tm_buf_text(&j->text, isnan(f) ? "NaN" : f < 0 ? "-Infinity" : "Infinity");
    else
        jj_put_float(&j->text, f);
    return true;
}

static bool put_json_key(json_out *j, const jj_value *key)
{
    if (key->kind == JJ_STRING)
        return put_json_string(j, key);
    if (key->kind != JJ_NONE && !jj_is_number(key)) {
        jj_fail(j->r, "tojson: keys must be str, int, float, bool or None, not %s", jj_type(key));
        return false;
    }
    tm_buf_char(&j->text, '"');
    bool ok = put_json(j, key);
    tm_buf_char(&j->text, '"');
    return ok;
}

/* The pairs in the order they are written: sorted by key when asked (sorting is stable insertion). */
static bool order_pairs(json_out *j, const jj_value *v, const jj_pair ***out)
{
    const jj_pair **order = jj_take(j->r, v->as.d.count + 1, sizeof *order);
    *out = order;
    if (!order)
        return false;
    for (size_t i = 0; i < v->as.d.count; i++) {
        size_t at = i;
        for (bool less; j->sorted && at > 0; at--) {
            if (!jj_less(j->r, v->as.d.pair[i].key, order[at - 1]->key, false, &less) || !jj_work(j->r, 1))
                return false;
            if (!less)
                break;
            order[at] = order[at - 1];
        }
        order[at] = &v->as.d.pair[i];
    }
    return true;
}

static bool put_json_items(json_out *j, const jj_value *v, size_t count, const jj_pair **pairs)
{
    j->level++;
    for (size_t i = 0; i < count; i++) {
        if (i)
            tm_buf_add(&j->text, j->item->as.s.text, j->item->as.s.size);
        new_line(j);
        if (pairs && !put_json_key(j, pairs[i]->key))
            return false;
        if (pairs)
            tm_buf_add(&j->text, j->key->as.s.text, j->key->as.s.size);
        if (!put_json(j, pairs ? pairs[i]->value : v->as.l.item[i]))
            return false;
    }
    j->level--;
    if (count)
        new_line(j);
    return true;
}

static bool put_json_nested(json_out *j, const jj_value *v)
{
    const jj_pair **pairs = NULL;
    if (v->kind == JJ_DICT && !order_pairs(j, v, &pairs))
        return false;
    tm_buf_char(&j->text, pairs ? '{' : '[');
    bool ok = put_json_items(j, v, pairs ? v->as.d.count : v->as.l.count, pairs);
    tm_buf_char(&j->text, pairs ? '}' : ']');
    return ok;
}

static bool put_json(json_out *j, const jj_value *v)
{
    bool ok = true;
    if (++j->r->depth > TM_JINJA_MAX_DEPTH) {
        jj_fail(j->r, "values nest more than %d deep", TM_JINJA_MAX_DEPTH);
        return false;
    }
    switch ((jj_kind)v->kind) {
    case JJ_NONE: tm_buf_text(&j->text, "null"); break;
    case JJ_BOOL: tm_buf_text(&j->text, v->as.i ? "true" : "false"); break;
    case JJ_INT: tm_buf_printf(&j->text, "%lld", (long long)v->as.i); break;
    case JJ_FLOAT: ok = put_json_float(j, v->as.f); break;
    case JJ_STRING: ok = put_json_string(j, v); break;
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_DICT: ok = put_json_nested(j, v); break;
    default: jj_fail(j->r, "Object of type %s is not JSON serializable", jj_type(v)); ok = false;
    }
    j->r->depth--;
    return ok && jj_work(j->r, 1) && jj_buf_ok(j->r, &j->text);
}

/* indent: a number of spaces, or the text itself. */
static bool json_indent(json_out *j, jj_value *indent)
{
    int64_t width;
    if (!indent || indent->kind == JJ_NONE)
        return true;
    j->indent = indent;
    if (indent->kind == JJ_STRING)
        return true;
    if (!jj_arg_int(j->r, indent, 0, &width))
        return false;
    width = width < 0 ? 0 : width;
    if (width > 1 << 16) {
        jj_fail(j->r, "tojson: an indent of more than %d", 1 << 16);
        return false;
    }
    char *spaces = jj_take(j->r, (size_t)width + 1, 1);
    if (spaces)
        memset(spaces, ' ', (size_t)width);
    j->indent = spaces ? jj_string(j->r, spaces, (size_t)width) : NULL;
    return j->indent;
}

/* ensure_ascii, indent, separators, sort_keys: in this order, as transformers has it. */
jj_value *jj_filter_tojson(jj_run *r, jj_value *self, const jj_args *args)
{
    jj_value **a = args->item, *separators = a[2] && a[2]->kind != JJ_NONE ? a[2] : NULL;
    json_out j = {.r = r, .ascii = a[0] && jj_truth(a[0]), .sorted = a[3] && jj_truth(a[3])};
    if (!json_indent(&j, a[1]))
        return NULL;
    j.item = jj_text(r, j.indent ? "," : ", ");
    j.key = jj_text(r, ": ");
    if (separators) {
        jj_value **item;
        size_t count;
        if (!jj_items(r, separators, &item, &count))
            return NULL;
        if (count != 2 || item[0]->kind != JJ_STRING || item[1]->kind != JJ_STRING)
            return jj_fail(r, "tojson: separators are two strings");
        j.item = item[0];
        j.key = item[1];
    }
    if (j.item && j.key && put_json(&j, self))
        return jj_string_buf(r, &j.text);
    tm_buf_deinit(&j.text);
    return NULL;
}
