/* Expressions. Attributes follow the sandbox: a method of the value first, then its element; an index looks
 * for the element first. What begins with '_' or would change a value is undefined. */
#include "text/jinja_parts.h"

#include <math.h>

jj_value *jj_fail(jj_run *r, const char *fmt, ...)
{
    if (r->status != TM_OK) /* the first failure is the one to tell */
        return NULL;
    char what[600];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    what[tm_utf8_prefix(what, strlen(what))] = 0;
    r->status = tm_fail(r->err, TM_INPUT, "%s:%d: %s", r->t->name, r->line, what);
    return NULL;
}

/* ---- attributes and elements ---- */

static jj_value *method(jj_run *r, jj_value *self, const jj_function *row)
{
    jj_value *v = jj_take(r, 1, sizeof *v);
    if (v)
        *v = (jj_value){.kind = JJ_FUNCTION, .as.c = {row, self}};
    return v;
}

static jj_value *loop_attribute(jj_run *r, jj_loop *loop, const char *name, size_t size)
{
    static const char *const names[] = {"index", "index0", "revindex", "revindex0", "length", "first", "last",
                                        "previtem", "nextitem", "depth", "depth0"};
    size_t which = 0, count = sizeof names / sizeof names[0];
    int64_t index = (int64_t)loop->index;
    bool there = true;
    while (which < count && (strlen(names[which]) != size || memcmp(names[which], name, size)))
        which++;
    size_t ahead = which >= 2 && which <= 4 ? SIZE_MAX - 1 : loop->index + 1;
    if ((ahead == SIZE_MAX - 1 || which == 6 || which == 8) && !jj_reach(r, loop, ahead, &there))
        return NULL;
    int64_t length = (int64_t)loop->kept->as.l.count;
    switch (which) {
    case 0: return jj_int(r, index + 1);
    case 1: return jj_int(r, index);
    case 2: return jj_int(r, length - index);
    case 3: return jj_int(r, length - index - 1);
    case 4: return jj_int(r, length);
    case 5: return jj_bool(r, index == 0);
    case 6: return jj_bool(r, !there);
    case 7: return index ? loop->kept->as.l.item[index - 1] : jj_hint(r, "there is no previous item");
    case 8: return there ? loop->kept->as.l.item[index + 1] : jj_hint(r, "there is no next item");
    case 9: return jj_int(r, loop->depth0 + 1);
    case 10: return jj_int(r, loop->depth0);
    default: return NULL; /* with r->status still fine: no such attribute */
    }
}

/* What Python's getattr finds; NULL with r->status fine: nothing. */
static jj_value *own_attribute(jj_run *r, jj_value *object, const char *name, size_t size)
{
    bool forbidden = false;
    if (object->kind == JJ_NAMESPACE)
        return jj_work(r, object->as.d.count / 8) ? jj_get_text(object, name, size) : NULL;
    if (object->kind == JJ_LOOP) {
        jj_value *v = loop_attribute(r, object->as.loop, name, size);
        if (v || r->status != TM_OK)
            return v;
    }
    if (object->kind == JJ_TUPLE && object->view == 'g') {
        if (size == 7 && memcmp(name, "grouper", 7) == 0)
            return object->as.l.item[0];
        if (size == 4 && memcmp(name, "list", 4) == 0)
            return object->as.l.item[1];
    }
    if (object->kind == JJ_CYCLER && size == 7 && memcmp(name, "current", 7) == 0)
        return object->as.l.item[object->as.l.at];
    if (object->kind == JJ_MACRO && size == 4 && memcmp(name, "name", 4) == 0)
        return jj_text(r, object->as.m.name);
    const jj_function *row = jj_find_method(object, name, size, &forbidden);
    if (row)
        return method(r, object, row);
    return forbidden || (size && name[0] == '_' && size > 1 && name[1] == '_')
               ? jj_hint(r, "access to an attribute that the sandbox keeps from templates") : NULL;
}

jj_value *jj_attribute(jj_run *r, jj_value *object, const char *name, size_t size)
{
    if (object->kind == JJ_UNDEFINED && strncmp(name, "__", 2) != 0)
        return jj_undefined_error(r, object);
    jj_value *v = own_attribute(r, object, name, size);
    if (!v && r->status == TM_OK && object->kind == JJ_DICT && jj_work(r, object->as.d.count / 8))
        v = jj_get_text(object, name, size);
    return v || r->status != TM_OK ? v : jj_missing(r, object, name, size);
}

static jj_value *missing_element(jj_run *r, const jj_value *object, const jj_value *key)
{
    if (key->kind == JJ_STRING)
        return jj_missing(r, object, key->as.s.text, key->as.s.size);
    jj_value *v = jj_missing(r, object, NULL, 0);
    if (v)
        v->as.u.element = key;
    return v;
}

static jj_value *item_at(jj_run *r, jj_value *object, int64_t index)
{
    bool text = object->kind == JJ_STRING;
    int64_t count = text ? jj_chars(object) : (int64_t)object->as.l.count;
    if (index < 0)
        index += count;
    if (index < 0 || index >= count)
        return NULL;
    if (!text)
        return object->as.l.item[index];
    size_t at = jj_char_at(object, index), n;
    if (!jj_work_bytes(r, at))
        return NULL;
    tm_utf8_at(object->as.s.text + at, &n);
    jj_value *v = jj_string(r, object->as.s.text + at, n);
    if (v)
        v->markup = object->markup;
    return v;
}

static bool indexed(const jj_value *v)
{
    return v->kind == JJ_STRING || v->kind == JJ_LIST || v->kind == JJ_TUPLE || v->kind == JJ_RANGE;
}

jj_value *jj_element(jj_run *r, jj_value *object, jj_value *key)
{
    jj_value *v = NULL;
    if (object->kind == JJ_UNDEFINED)
        return jj_undefined_error(r, object);
    if (object->kind == JJ_DICT) {
        if (key->kind == JJ_LIST || key->kind == JJ_DICT || key->kind == JJ_VIEW) /* unhashable: no such element */
            return missing_element(r, object, key);
        if (!jj_get(r, object, key, &v))
            return NULL;
    } else if (indexed(object) && (key->kind == JJ_INT || key->kind == JJ_BOOL)) {
        v = item_at(r, object, key->as.i);
    }
    if (!v && r->status == TM_OK && key->kind == JJ_STRING)
        v = own_attribute(r, object, key->as.s.text, key->as.s.size);
    return v || r->status != TM_OK ? v : missing_element(r, object, key);
}

/* ---- slices ---- */

static bool slice_part(jj_run *r, const jj_node *node, bool *given, int64_t *out)
{
    jj_value *v = node ? jj_eval(r, node) : NULL;
    *given = v && v->kind != JJ_NONE;
    if (node && !v)
        return false;
    if (*given && v->kind != JJ_INT && v->kind != JJ_BOOL)
        return jj_fail(r, "slice indices must be integers or None"), false;
    *out = *given ? v->as.i : 0;
    return true;
}

/* Start and stop as Python clips them to `count` items. */
static int64_t clip(int64_t at, bool given, int64_t count, bool backwards, bool is_stop)
{
    if (!given)
        return backwards == is_stop ? (is_stop ? -1 : 0) : (backwards ? count - 1 : count);
    if (at < 0)
        at = at < -count ? -1 : at + count;
    else if (at > count)
        at = count;
    if (at < 0)
        return backwards ? -1 : 0;
    return at >= count ? (backwards ? count - 1 : count) : at;
}

static jj_value *slice_text(jj_run *r, jj_value *s, int64_t start, int64_t stop, int64_t step)
{
    jj_value *v;
    if (step == 1) {
        size_t from = jj_char_at(s, start), to = stop > start ? jj_char_at(s, stop) : from;
        v = jj_work_bytes(r, to) ? jj_string(r, s->as.s.text + from, to - from) : NULL;
    } else {
        tm_buf text = {0};
        bool ok = true;
        bool ascii = jj_chars(s) == (int64_t)s->as.s.size;
        for (int64_t i = start; ok && (step > 0 ? i < stop : i > stop); i += step) {
            size_t at = jj_char_at(s, i), n;
            tm_utf8_at(s->as.s.text + at, &n);
            tm_buf_add(&text, s->as.s.text + at, n);
            ok = ascii || jj_work_bytes(r, at);
            if (step > 0 ? stop - i <= step : i - stop <= -step)
                break; /* the next would overflow or end it anyway */
        }
        v = ok ? jj_string_buf(r, &text) : NULL;
        tm_buf_deinit(&text);
    }
    if (v)
        v->markup = s->markup;
    return v;
}

static jj_value *slice(jj_run *r, jj_value *object, const jj_node *node)
{
    int64_t part[3];
    bool given[3];
    for (int i = 0; i < 3; i++)
        if (!slice_part(r, node->list.item[i], &given[i], &part[i]))
            return NULL;
    if (object->kind == JJ_UNDEFINED)
        return jj_undefined_error(r, object);
    if (!indexed(object))
        return jj_fail(r, object->kind == JJ_DICT ? "unhashable type: 'slice'" : "'%s' object is not subscriptable", jj_type(object));
    int64_t step = given[2] ? part[2] : 1, count = object->kind == JJ_STRING ? jj_chars(object) : (int64_t)object->as.l.count;
    if (step == 0)
        return jj_fail(r, "slice step cannot be zero");
    int64_t start = clip(part[0], given[0], count, step < 0, false), stop = clip(part[1], given[1], count, step < 0, true);
    if (object->kind == JJ_STRING)
        return slice_text(r, object, start, stop, step);
    jj_value *v = jj_list(r, object->kind == JJ_TUPLE ? JJ_TUPLE : JJ_LIST, 0);
    for (int64_t i = start; v && (step > 0 ? i < stop : i > stop); i += step) {
        if (!jj_push(r, v, object->as.l.item[i]) || !jj_work(r, 1))
            return NULL;
        if (step > 0 ? stop - i <= step : i - stop <= -step)
            break;
    }
    if (v && object->kind == JJ_RANGE) { /* a slice of a range is a range; its end only shows when printed */
        const int64_t *of = object->as.l.range;
        int64_t *range = jj_take(r, 3, sizeof *range);
        if (!range)
            return NULL;
        range[0] = of[0] + start * of[2];
        range[1] = of[0] + stop * of[2];
        range[2] = of[2] * step;
        v->kind = JJ_RANGE;
        v->as.l.range = range;
    }
    return v;
}

/* ---- arithmetic ---- */

static jj_value *wrong_operands(jj_run *r, const char *sign, const jj_value *a, const jj_value *b)
{
    if (a->kind == JJ_UNDEFINED || b->kind == JJ_UNDEFINED)
        return jj_undefined_error(r, a->kind == JJ_UNDEFINED ? a : b);
    return jj_fail(r, "unsupported operand type(s) for %s: '%s' and '%s'", sign, jj_type(a), jj_type(b));
}

static jj_value *too_big(jj_run *r) { return jj_fail(r, "an integer beyond 64 bits"); }

static int64_t floor_div(int64_t a, int64_t b)
{
    int64_t q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}

static jj_value *int_power(jj_run *r, int64_t base, int64_t exponent)
{
    int64_t result = 1;
    while (exponent > 0) {
        if (exponent & 1 && __builtin_mul_overflow(result, base, &result))
            return too_big(r);
        exponent >>= 1;
        if (exponent && __builtin_mul_overflow(base, base, &base))
            return too_big(r);
    }
    return jj_int(r, result);
}

static jj_value *int_operate(jj_run *r, jj_op op, int64_t a, int64_t b)
{
    int64_t n = 0;
    if ((op == JJ_DIV || op == JJ_FLOORDIV || op == JJ_MOD) && b == 0)
        return jj_fail(r, op == JJ_DIV ? "division by zero" : "integer division or modulo by zero");
    switch (op) {
    case JJ_ADD: return __builtin_add_overflow(a, b, &n) ? too_big(r) : jj_int(r, n);
    case JJ_SUB: return __builtin_sub_overflow(a, b, &n) ? too_big(r) : jj_int(r, n);
    case JJ_MUL: return __builtin_mul_overflow(a, b, &n) ? too_big(r) : jj_int(r, n);
    case JJ_DIV: return jj_float(r, (double)((long double)a / (long double)b));
    case JJ_FLOORDIV: return a == INT64_MIN && b == -1 ? too_big(r) : jj_int(r, floor_div(a, b));
    case JJ_MOD: return jj_int(r, b == -1 ? 0 : a - floor_div(a, b) * b);
    default: break;
    }
    if (b >= 0)
        return int_power(r, a, b);
    return a == 0 ? jj_fail(r, "0.0 cannot be raised to a negative power") : jj_float(r, pow((double)a, (double)b));
}

static jj_value *float_operate(jj_run *r, jj_op op, double a, double b)
{
    if ((op == JJ_DIV || op == JJ_FLOORDIV || op == JJ_MOD) && b == 0)
        return jj_fail(r, op == JJ_DIV ? "float division by zero" : op == JJ_MOD ? "float modulo" : "float floor division by zero");
    double mod = op == JJ_FLOORDIV || op == JJ_MOD ? fmod(a, b) : 0, rest = mod;
    switch (op) {
    case JJ_ADD: return jj_float(r, a + b);
    case JJ_SUB: return jj_float(r, a - b);
    case JJ_MUL: return jj_float(r, a * b);
    case JJ_DIV: return jj_float(r, a / b);
    case JJ_FLOORDIV: {
        double q = (a - mod) / b;
        if (mod != 0 && (b < 0) != (mod < 0))
            q -= 1;
        double whole = floor(q);
        return jj_float(r, q == 0 ? copysign(0, a / b) : q - whole > 0.5 ? whole + 1 : whole);
    }
    case JJ_MOD:
        if (rest != 0 && (b < 0) != (rest < 0))
            rest += b;
        return jj_float(r, rest == 0 ? copysign(0, b) : rest);
    default: break;
    }
    if (a == 0 && b < 0)
        return jj_fail(r, "0.0 cannot be raised to a negative power");
    if (a < 0 && b != floor(b) && !isinf(b))
        return jj_fail(r, "complex numbers are not supported");
    double p = pow(a, b);
    return isinf(p) && !isinf(a) && !isinf(b) ? jj_fail(r, "Numerical result out of range") : jj_float(r, p);
}

static jj_value *join_text(jj_run *r, jj_value *a, jj_value *b)
{
    bool markup = a->markup || b->markup;
    if (markup) {
        a = jj_escape(r, a);
        b = a ? jj_escape(r, b) : NULL;
        if (!b)
            return NULL;
    }
    size_t size = a->as.s.size + b->as.s.size;
    char *text = jj_work_bytes(r, size) ? jj_take(r, size + 1, 1) : NULL;
    if (!text)
        return NULL;
    memcpy(text, a->as.s.text, a->as.s.size);
    memcpy(text + a->as.s.size, b->as.s.text, b->as.s.size);
    jj_value *v = jj_string(r, text, size);
    if (v)
        v->markup = markup;
    return v;
}

static jj_value *join_lists(jj_run *r, const jj_value *a, const jj_value *b)
{
    size_t n = a->as.l.count + b->as.l.count;
    jj_value *v = jj_work(r, 1 + n / 8) ? jj_list(r, (jj_kind)a->kind, n) : NULL;
    for (size_t i = 0; v && i < n; i++)
        jj_push(r, v, i < a->as.l.count ? a->as.l.item[i] : b->as.l.item[i - a->as.l.count]);
    return v;
}

/* Text, list or tuple times a whole number. */
static jj_value *repeat(jj_run *r, jj_value *what, int64_t times)
{
    bool text = what->kind == JJ_STRING;
    int64_t size = text ? (int64_t)what->as.s.size : (int64_t)what->as.l.count, total;
    times = times < 0 ? 0 : times;
    if (__builtin_mul_overflow(size, times, &total) || total > TM_JINJA_MAX_OUTPUT)
        return jj_fail(r, "a repetition longer than %d", TM_JINJA_MAX_OUTPUT);
    if (!jj_work(r, 1 + (uint64_t)total / (text ? 64 : 8)))
        return NULL;
    if (!text) {
        jj_value *v = jj_list(r, (jj_kind)what->kind, (size_t)total);
        for (int64_t i = 0; v && i < total; i++)
            jj_push(r, v, what->as.l.item[i % size]);
        return v;
    }
    char *all = jj_take(r, (size_t)total + 1, 1);
    for (int64_t i = 0; all && size && i < times; i++)
        memcpy(all + i * size, what->as.s.text, (size_t)size);
    jj_value *v = all ? jj_string(r, all, (size_t)total) : NULL;
    if (v)
        v->markup = what->markup;
    return v;
}

static bool repeats(const jj_value *a, const jj_value *b)
{
    return (a->kind == JJ_STRING || a->kind == JJ_LIST || a->kind == JJ_TUPLE) && (b->kind == JJ_INT || b->kind == JJ_BOOL);
}

jj_value *jj_operate(jj_run *r, jj_op op, jj_value *a, jj_value *b)
{
    static const char *const signs[] = {"+", "-", "*", "/", "//", "%", "** or pow()"};
    if (jj_is_number(a) && jj_is_number(b)) {
        if (a->kind == JJ_FLOAT || b->kind == JJ_FLOAT)
            return float_operate(r, op, jj_number(a), jj_number(b));
        return int_operate(r, op, a->as.i, b->as.i);
    }
    if (op == JJ_ADD && a->kind == JJ_STRING && b->kind == JJ_STRING)
        return join_text(r, a, b);
    if (op == JJ_ADD && a->kind == b->kind && (a->kind == JJ_LIST || a->kind == JJ_TUPLE))
        return join_lists(r, a, b);
    if (op == JJ_MUL && repeats(a, b))
        return repeat(r, a, b->as.i);
    if (op == JJ_MUL && repeats(b, a))
        return repeat(r, b, a->as.i);
    if (op == JJ_MOD && a->kind == JJ_STRING)
        return jj_percent(r, a, b);
    return wrong_operands(r, signs[op - JJ_ADD], a, b);
}

/* ---- comparisons ---- */

bool jj_contains(jj_run *r, jj_value *item, jj_value *in, bool *out)
{
    *out = false;
    if (in->kind == JJ_STRING) {
        if (item->kind != JJ_STRING)
            return item->kind == JJ_UNDEFINED ? jj_undefined_error(r, item), false
                                              : (jj_fail(r, "'in <string>' requires string as left operand, not %s", jj_type(item)), false);
        *out = !item->as.s.size || (in->as.s.size && memmem(in->as.s.text, in->as.s.size, item->as.s.text, item->as.s.size));
        return jj_work_bytes(r, in->as.s.size);
    }
    if (in->kind == JJ_DICT) {
        jj_value *found;
        bool ok = jj_get(r, in, item, &found);
        *out = ok && found;
        return ok;
    }
    jj_value **list;
    size_t count;
    if ((in->kind == JJ_VIEW && in->view == 'k' && !jj_hashable(r, item)) || !jj_items(r, in, &list, &count))
        return false;
    for (size_t i = 0; i < count && !*out; i++)
        *out = list[i] == item || jj_equal(r, list[i], item);
    return r->status == TM_OK;
}

static bool compare(jj_run *r, jj_op op, jj_value *a, jj_value *b, bool *out)
{
    bool ok = true;
    switch (op) {
    case JJ_EQ:
    case JJ_NE: *out = jj_equal(r, a, b) == (op == JJ_EQ); return r->status == TM_OK;
    case JJ_LT:
    case JJ_LE: return jj_less(r, a, b, op == JJ_LE, out);
    case JJ_GT:
    case JJ_GE: return jj_less(r, b, a, op == JJ_GE, out);
    default:
        ok = jj_contains(r, a, b, out);
        *out = *out == (op == JJ_IN);
        return ok;
    }
}

static jj_value *eval_compare(jj_run *r, const jj_node *node)
{
    jj_value *left = jj_eval(r, node->a), *right;
    bool yes = true;
    for (size_t i = 0; left && yes && i < node->list.count; i++, left = right) {
        right = jj_eval(r, node->list.item[i]->a);
        if (!right || !compare(r, (jj_op)node->list.item[i]->op, left, right, &yes))
            return NULL;
    }
    return left ? jj_bool(r, yes) : NULL;
}

/* ---- calls ---- */

/* The arguments of a call, filter or test as written there; caller: one named so at the end, or NULL. */
static bool eval_arguments(jj_run *r, const jj_node *node, jj_value *caller, jj_args *out)
{
    jj_value *items = jj_list(r, JJ_LIST, node->list.count), *keys, *values;
    for (size_t i = 0; items && i < node->list.count; i++)
        if (!jj_push(r, items, jj_eval(r, node->list.item[i])))
            return false;
    jj_value *more = node->b ? jj_eval(r, node->b) : NULL, *named = NULL;
    if (!items || (node->b && !more))
        return false;
    if (more) {
        jj_value **item;
        size_t count;
        if (!jj_items(r, more, &item, &count))
            return false;
        for (size_t i = 0; i < count; i++)
            if (!jj_push(r, items, item[i]))
                return false;
    }
    keys = jj_list(r, JJ_LIST, 0);
    values = keys ? jj_list(r, JJ_LIST, 0) : NULL;
    for (size_t i = 0; values && i < node->more.count; i++)
        if (!jj_push(r, keys, (jj_value *)&node->more.item[i]->constant) || !jj_push(r, values, jj_eval(r, node->more.item[i]->a)))
            return false;
    if (!values || (node->c && !(named = jj_eval(r, node->c))))
        return false;
    if (named && named->kind != JJ_DICT)
        return jj_fail(r, "argument after ** must be a mapping, not %s", jj_type(named)), false;
    for (size_t i = 0; named && i < named->as.d.count; i++)
        if (!jj_push(r, keys, named->as.d.pair[i].key) || !jj_push(r, values, named->as.d.pair[i].value))
            return false;
    if (caller && (!jj_push(r, keys, jj_text(r, "caller")) || !jj_push(r, values, caller)))
        return false;
    *out = (jj_args){items->as.l.item, items->as.l.count, keys->as.l.item, values->as.l.item, keys->as.l.count};
    return true;
}

/* Which of params ("old new ?count") a name is; -1: none. *total and *required count them. */
static int parameter(const char *params, const jj_value *name, int *total, int *required)
{
    int found = -1;
    *total = *required = 0;
    for (const char *p = params; *p;) {
        size_t n = strcspn(p, " ");
        bool optional = *p == '?';
        if (!optional)
            ++*required;
        if (name && name->kind == JJ_STRING && name->as.s.size == n - optional && memcmp(p + optional, name->as.s.text, n - optional) == 0)
            found = *total;
        ++*total;
        p += n + (p[n] == ' ');
    }
    return found;
}

jj_value *jj_apply(jj_run *r, const jj_function *row, jj_value *self, const jj_args *args)
{
    int total, required;
    if (!jj_work(r, 1))
        return NULL;
    if (!row->params)
        return row->fn(r, self, args);
    parameter(row->params, NULL, &total, &required);
    if (args->count > (size_t)total)
        return jj_fail(r, "%s() takes at most %d arguments, found %zu", row->name, total, args->count);
    jj_value **bound = jj_take(r, (size_t)total + 1, sizeof *bound);
    if (!bound)
        return NULL;
    if (args->count)
        memcpy(bound, args->item, args->count * sizeof *bound);
    for (size_t i = 0; i < args->named; i++) {
        int at = parameter(row->params, args->key[i], &total, &required);
        if (at < 0 || bound[at])
            return jj_fail(r, "%s() got %s argument '%.*s'", row->name, at < 0 ? "an unexpected" : "twice the",
                           args->key[i]->kind == JJ_STRING ? (int)args->key[i]->as.s.size : 0, args->key[i]->as.s.text);
        bound[at] = args->value[i];
    }
    for (int i = 0; i < required; i++)
        if (!bound[i])
            return jj_fail(r, "%s() misses an argument: it takes %s", row->name, row->params);
    return row->fn(r, self, &(jj_args){.item = bound, .count = (size_t)total});
}

jj_value *jj_call(jj_run *r, jj_value *callee, const jj_args *args)
{
    switch ((jj_kind)callee->kind) {
    case JJ_FUNCTION: return jj_apply(r, callee->as.c.row, callee->as.c.self, args);
    case JJ_MACRO: return jj_call_macro(r, callee, args);
    case JJ_LOOP: return jj_recurse(r, callee, args);
    case JJ_JOINER: /* nothing the first time, then its separator */
        if (callee->as.l.at++ == 0)
            return &r->empty;
        return callee->as.l.item[0];
    case JJ_UNDEFINED: return jj_undefined_error(r, callee);
    default: return jj_fail(r, "'%s' object is not callable", jj_type(callee));
    }
}

jj_value *jj_eval_call(jj_run *r, const jj_node *node, jj_value *caller)
{
    jj_args args;
    jj_value *callee = jj_eval(r, node->a);
    if (!callee || !eval_arguments(r, node, caller, &args))
        return NULL;
    r->line = node->line;
    return jj_call(r, callee, &args);
}

static jj_value *eval_applied(jj_run *r, const jj_node *node)
{
    jj_args args;
    if (!node->row) {
        r->line = node->line;
        return jj_fail(r, "no %s named '%s'", node->op == JJ_FILTER ? "filter" : "test", node->name);
    }
    jj_value *self = jj_eval(r, node->a);
    if (!self || !eval_arguments(r, node, NULL, &args))
        return NULL;
    r->line = node->line;
    return jj_apply(r, node->row, self, &args);
}

/* ---- the rest ---- */

static jj_value *eval_list(jj_run *r, const jj_node *node, jj_kind kind)
{
    jj_value *v = jj_list(r, kind, node->list.count);
    for (size_t i = 0; v && i < node->list.count; i++)
        if (!jj_push(r, v, jj_eval(r, node->list.item[i])))
            return NULL;
    return v;
}

static jj_value *eval_dict(jj_run *r, const jj_node *node)
{
    jj_value *v = jj_dict(r, node->list.count), *key, *value;
    for (size_t i = 0; v && i < node->list.count; i++) {
        key = jj_eval(r, node->list.item[i]);
        value = key ? jj_eval(r, node->more.item[i]) : NULL;
        if (!value || !jj_put(r, v, key, value))
            return NULL;
    }
    return v;
}

static jj_value *eval_concat(jj_run *r, const jj_node *node)
{
    tm_buf text = {0};
    for (size_t i = 0; i < node->list.count; i++) {
        jj_value *v = jj_eval(r, node->list.item[i]);
        if (!v || !jj_str(r, v, &text)) {
            tm_buf_deinit(&text);
            return NULL;
        }
    }
    return jj_string_buf(r, &text);
}

static jj_value *eval_sign(jj_run *r, const jj_node *node)
{
    jj_value *v = jj_eval(r, node->a);
    if (!v)
        return NULL;
    if (v->kind == JJ_UNDEFINED)
        return jj_undefined_error(r, v);
    if (!jj_is_number(v))
        return jj_fail(r, "bad operand type for unary %s: '%s'", node->op == JJ_NEG ? "-" : "+", jj_type(v));
    if (v->kind == JJ_FLOAT)
        return jj_float(r, node->op == JJ_NEG ? -v->as.f : v->as.f);
    return int_operate(r, node->op == JJ_NEG ? JJ_SUB : JJ_ADD, 0, v->as.i);
}

static jj_value *eval_binary(jj_run *r, const jj_node *node)
{
    jj_value *a = jj_eval(r, node->a), *b = a ? jj_eval(r, node->b) : NULL;
    if (!b)
        return NULL;
    r->line = node->line;
    return jj_operate(r, (jj_op)node->op, a, b);
}

static jj_value *eval_index(jj_run *r, const jj_node *node)
{
    jj_value *object = jj_eval(r, node->a), *key;
    if (!object)
        return NULL;
    if (node->b->op == JJ_SLICE)
        return slice(r, object, node->b);
    key = jj_eval(r, node->b);
    return key ? jj_element(r, object, key) : NULL;
}

static jj_value *evaluate(jj_run *r, const jj_node *node)
{
    jj_value *v;
    switch ((jj_op)node->op) {
    case JJ_CONST: return (jj_value *)&node->constant;
    case JJ_NAME: return jj_lookup(r, node->name);
    case JJ_LIST_OF: return eval_list(r, node, JJ_LIST);
    case JJ_TUPLE_OF: return eval_list(r, node, JJ_TUPLE);
    case JJ_DICT_OF: return eval_dict(r, node);
    case JJ_ATTR: v = jj_eval(r, node->a); return v ? jj_attribute(r, v, node->name, strlen(node->name)) : NULL;
    case JJ_INDEX: return eval_index(r, node);
    case JJ_CALL: return jj_eval_call(r, node, NULL);
    case JJ_FILTER:
    case JJ_TEST: return eval_applied(r, node);
    case JJ_NOT: v = jj_eval(r, node->a); return v ? jj_bool(r, !jj_truth(v)) : NULL;
    case JJ_AND: v = jj_eval(r, node->a); return v && jj_truth(v) ? jj_eval(r, node->b) : v;
    case JJ_OR: v = jj_eval(r, node->a); return v && !jj_truth(v) ? jj_eval(r, node->b) : v;
    case JJ_IF_ELSE:
        v = jj_eval(r, node->a);
        if (!v)
            return NULL;
        if (!jj_truth(v) && !node->c)
            return jj_hint(r, "the inline if-expression evaluated to false and no else section was defined.");
        return jj_eval(r, jj_truth(v) ? node->b : node->c);
    case JJ_NEG:
    case JJ_POS: return eval_sign(r, node);
    case JJ_CONCAT: return eval_concat(r, node);
    case JJ_COMPARE: return eval_compare(r, node);
    case JJ_SLICE: return jj_fail(r, "a slice where an index was expected");
    default: return eval_binary(r, node);
    }
}

jj_value *jj_eval(jj_run *r, const jj_node *node)
{
    if (++r->depth > TM_JINJA_MAX_DEPTH)
        return jj_fail(r, "expressions and macros run more than %d deep", TM_JINJA_MAX_DEPTH);
    r->line = node->line;
    jj_value *v = jj_work(r, 1) ? evaluate(r, node) : NULL;
    r->depth--;
    return v;
}
