/* Methods of values that are no strings, and the functions every template has. The sandbox lets nothing
 * through that would change a list or a dictionary. */
#include "text/jinja_parts.h"

#include <math.h>

typedef const jj_args *args_t;

const jj_function *jj_find_function(const jj_function *table, const char *name, size_t size)
{
    for (; table->name; table++)
        if (strlen(table->name) == size && memcmp(table->name, name, size) == 0)
            return table;
    return NULL;
}

/* ---- dictionaries ---- */

static jj_value *pair_tuple(jj_run *r, const jj_pair *pair)
{
    jj_value *v = jj_list(r, JJ_TUPLE, 2);
    return v && jj_push(r, v, pair->key) && jj_push(r, v, pair->value) ? v : NULL;
}

static jj_value *view(jj_run *r, const jj_value *dict, char what)
{
    jj_value *v = jj_list(r, JJ_VIEW, dict->as.d.count);
    for (size_t i = 0; v && i < dict->as.d.count; i++) {
        jj_pair *pair = &dict->as.d.pair[i];
        if (!jj_push(r, v, what == 'k' ? pair->key : what == 'v' ? pair->value : pair_tuple(r, pair)))
            return NULL;
    }
    if (v)
        v->view = (uint8_t)what;
    return v;
}

static jj_value *dict_items(jj_run *r, jj_value *d, args_t a) { return (void)a, view(r, d, 'i'); }
static jj_value *dict_keys(jj_run *r, jj_value *d, args_t a) { return (void)a, view(r, d, 'k'); }
static jj_value *dict_values(jj_run *r, jj_value *d, args_t a) { return (void)a, view(r, d, 'v'); }

static jj_value *dict_get(jj_run *r, jj_value *d, args_t a)
{
    jj_value *found;
    if (!jj_get(r, d, a->item[0], &found))
        return NULL;
    return found ? found : a->item[1] ? a->item[1] : &r->none;
}

static jj_value *dict_copy(jj_run *r, jj_value *d, args_t a)
{
    (void)a;
    jj_value *v = jj_dict(r, d->as.d.count);
    for (size_t i = 0; v && i < d->as.d.count; i++)
        if (!jj_put(r, v, d->as.d.pair[i].key, d->as.d.pair[i].value))
            return NULL;
    return v;
}

static const jj_function dict_methods[] = {{"items", "", dict_items}, {"keys", "", dict_keys}, {"values", "", dict_values},
                                           {"get", "key ?default", dict_get}, {"copy", "", dict_copy}, {NULL, NULL, NULL}};

/* ---- lists, tuples, ranges ---- */

static jj_value *list_count(jj_run *r, jj_value *l, args_t a)
{
    int64_t count = 0;
    for (size_t i = 0; i < l->as.l.count; i++)
        count += l->as.l.item[i] == a->item[0] || jj_equal(r, l->as.l.item[i], a->item[0]);
    return jj_work(r, 1 + l->as.l.count / 8) && r->status == TM_OK ? jj_int(r, count) : NULL;
}

static jj_value *list_index(jj_run *r, jj_value *l, args_t a)
{
    int64_t from, to, count = (int64_t)l->as.l.count;
    if (!jj_arg_int(r, a->item[1], 0, &from) || !jj_arg_int(r, a->item[2], count, &to) || !jj_work(r, 1 + l->as.l.count / 8))
        return NULL;
    from = from < 0 ? (from < -count ? 0 : from + count) : from;
    to = to < 0 ? (to < -count ? 0 : to + count) : to > count ? count : to;
    for (int64_t i = from; i < to; i++)
        if (l->as.l.item[i] == a->item[0] || jj_equal(r, l->as.l.item[i], a->item[0]))
            return jj_int(r, i);
    return jj_fail(r, "the value is not in the %s", jj_type(l));
}

static jj_value *list_copy(jj_run *r, jj_value *l, args_t a)
{
    (void)a;
    jj_value *v = jj_list(r, JJ_LIST, l->as.l.count);
    for (size_t i = 0; v && i < l->as.l.count; i++)
        jj_push(r, v, l->as.l.item[i]);
    return v;
}

static const jj_function list_methods[] = {{"count", "value", list_count}, {"index", "value ?start ?stop", list_index},
                                           {"copy", "", list_copy}, {NULL, NULL, NULL}};
static const jj_function tuple_methods[] = {{"count", "value", list_count}, {"index", "value ?start ?stop", list_index}, {NULL, NULL, NULL}};

/* ---- numbers ---- */

static jj_value *float_is_integer(jj_run *r, jj_value *f, args_t a)
{
    (void)a;
    return jj_bool(r, f->kind != JJ_FLOAT || (isfinite(f->as.f) && f->as.f == floor(f->as.f)));
}

static jj_value *int_bit_length(jj_run *r, jj_value *v, args_t a)
{
    (void)a;
    uint64_t n = v->as.i < 0 ? 0 - (uint64_t)v->as.i : (uint64_t)v->as.i;
    int64_t bits = 0;
    for (; n; n >>= 1)
        bits++;
    return jj_int(r, bits);
}

static const jj_function float_methods[] = {{"is_integer", "", float_is_integer}, {NULL, NULL, NULL}};
static const jj_function int_methods[] = {{"bit_length", "", int_bit_length}, {NULL, NULL, NULL}};

/* ---- loops, cyclers ---- */

static jj_value *loop_cycle(jj_run *r, jj_value *self, args_t a)
{
    if (!a->count)
        return jj_fail(r, "no items for cycling given");
    return a->item[self->as.loop->index % a->count];
}

static jj_value *loop_changed(jj_run *r, jj_value *self, args_t a)
{
    jj_loop *loop = self->as.loop;
    jj_value *now = jj_list(r, JJ_TUPLE, a->count);
    for (size_t i = 0; now && i < a->count; i++)
        jj_push(r, now, a->item[i]);
    if (!now)
        return NULL;
    bool same = loop->changed && jj_equal(r, loop->changed, now);
    loop->changed = now;
    return r->status == TM_OK ? jj_bool(r, !same) : NULL;
}

static const jj_function loop_methods[] = {{"cycle", NULL, loop_cycle}, {"changed", NULL, loop_changed}, {NULL, NULL, NULL}};

static jj_value *cycler_next(jj_run *r, jj_value *self, args_t a)
{
    (void)r, (void)a;
    jj_value *v = self->as.l.item[self->as.l.at];
    self->as.l.at = (self->as.l.at + 1) % self->as.l.count;
    return v;
}

static jj_value *cycler_reset(jj_run *r, jj_value *self, args_t a)
{
    (void)a;
    self->as.l.at = 0;
    return &r->none;
}

static const jj_function cycler_methods[] = {{"next", "", cycler_next}, {"reset", "", cycler_reset}, {NULL, NULL, NULL}};

const jj_function *jj_find_method(const jj_value *self, const char *name, size_t size, bool *forbidden)
{
    static const char *const changing_list[] = {"append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove", NULL};
    static const char *const changing_dict[] = {"clear", "pop", "popitem", "setdefault", "update", NULL};
    const char *const *changing = self->kind == JJ_LIST ? changing_list : self->kind == JJ_DICT ? changing_dict : NULL;
    *forbidden = false;
    for (; changing && *changing; changing++)
        *forbidden |= strlen(*changing) == size && memcmp(*changing, name, size) == 0;
    switch ((jj_kind)self->kind) {
    case JJ_STRING: return jj_text_method(name, size);
    case JJ_DICT: return jj_find_function(dict_methods, name, size);
    case JJ_LIST: return jj_find_function(list_methods, name, size);
    case JJ_TUPLE:
    case JJ_RANGE: return jj_find_function(tuple_methods, name, size);
    case JJ_BOOL:
    case JJ_INT: return jj_find_function(int_methods, name, size);
    case JJ_FLOAT: return jj_find_function(float_methods, name, size);
    case JJ_LOOP: return jj_find_function(loop_methods, name, size);
    case JJ_CYCLER: return jj_find_function(cycler_methods, name, size);
    default: return NULL;
    }
}

/* ---- global functions ---- */

static jj_value *global_range(jj_run *r, jj_value *self, args_t a)
{
    (void)self;
    int64_t *n = jj_take(r, 3, sizeof *n), count = 0;
    if (!n || !jj_arg_int(r, a->item[1] ? a->item[0] : NULL, 0, &n[0]) || !jj_arg_int(r, a->item[1] ? a->item[1] : a->item[0], 0, &n[1]) ||
        !jj_arg_int(r, a->item[2], 1, &n[2]))
        return NULL;
    if (n[2] == 0)
        return jj_fail(r, "range() arg 3 must not be zero");
    if (n[2] > 0 ? n[1] > n[0] : n[1] < n[0]) {
        uint64_t span = n[2] > 0 ? (uint64_t)n[1] - (uint64_t)n[0] : (uint64_t)n[0] - (uint64_t)n[1];
        uint64_t step = n[2] > 0 ? (uint64_t)n[2] : 0 - (uint64_t)n[2], many = (span - 1) / step + 1;
        if (many > TM_JINJA_MAX_RANGE)
            return jj_fail(r, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).", TM_JINJA_MAX_RANGE);
        count = (int64_t)many;
    }
    jj_value *v = jj_work(r, 1 + (uint64_t)count / 8) ? jj_list(r, JJ_RANGE, (size_t)count) : NULL;
    for (int64_t i = 0; v && i < count; i++)
        if (!jj_push(r, v, jj_int(r, n[0] + i * n[2])))
            return NULL;
    if (v)
        v->as.l.range = n;
    return v;
}

static bool put_named(jj_run *r, jj_value *dict, args_t a, bool guarded)
{
    for (size_t i = 0; i < a->named; i++) {
        if (guarded && a->key[i]->kind == JJ_STRING && a->key[i]->as.s.size && a->key[i]->as.s.text[0] == '_')
            return jj_fail(r, "a namespace takes no attribute that begins with '_'"), false;
        if (!jj_put(r, dict, a->key[i], a->value[i]))
            return false;
    }
    return true;
}

static jj_value *make_dict(jj_run *r, args_t a, bool guarded)
{
    jj_value *v = jj_dict(r, a->named), **item;
    size_t count = 0;
    if (a->count > 1)
        return jj_fail(r, "dict expected at most 1 argument, got %zu", a->count);
    jj_value *from = a->count ? a->item[0] : NULL;
    if (v && from && from->kind == JJ_DICT) {
        for (size_t i = 0; i < from->as.d.count; i++)
            if (!jj_put(r, v, from->as.d.pair[i].key, from->as.d.pair[i].value))
                return NULL;
    } else if (v && from) {
        if (!jj_items(r, from, &item, &count))
            return NULL;
        for (size_t i = 0; i < count; i++) {
            jj_value **two;
            size_t n;
            if (!jj_items(r, item[i], &two, &n))
                return NULL;
            if (n != 2)
                return jj_fail(r, "dictionary update sequence element #%zu has length %zu; 2 is required", i, n);
            if (!jj_put(r, v, two[0], two[1]))
                return NULL;
        }
    }
    return v && put_named(r, v, a, guarded) ? v : NULL;
}

static jj_value *global_dict(jj_run *r, jj_value *self, args_t a) { return (void)self, make_dict(r, a, false); }

static jj_value *global_namespace(jj_run *r, jj_value *self, args_t a)
{
    (void)self;
    jj_value *v = make_dict(r, a, true);
    if (v)
        v->kind = JJ_NAMESPACE;
    return v;
}

static jj_value *global_raise(jj_run *r, jj_value *self, args_t a)
{
    (void)self;
    tm_buf text = {0};
    if (jj_str(r, a->item[0], &text))
        jj_fail(r, "the template refuses: %s", tm_buf_str(&text));
    tm_buf_deinit(&text);
    return NULL;
}

static jj_value *global_cycler(jj_run *r, jj_value *self, args_t a)
{
    (void)self;
    if (!a->count)
        return jj_fail(r, "at least one item has to be provided");
    jj_value *v = jj_list(r, JJ_CYCLER, a->count);
    for (size_t i = 0; v && i < a->count; i++)
        jj_push(r, v, a->item[i]);
    return v;
}

static jj_value *global_joiner(jj_run *r, jj_value *self, args_t a)
{
    (void)self;
    jj_value *v = jj_list(r, JJ_JOINER, 1), *by = a->item[0] ? a->item[0] : jj_text(r, ", ");
    return v && jj_push(r, v, by) ? v : NULL;
}

const jj_function jj_globals[] = {
    {"range", "start ?stop ?step", global_range}, {"dict", NULL, global_dict}, {"namespace", NULL, global_namespace},
    {"raise_exception", "message", global_raise}, {"strftime_now", "format", jj_strftime},
    {"cycler", NULL, global_cycler}, {"joiner", "?sep", global_joiner}, {NULL, NULL, NULL}};
