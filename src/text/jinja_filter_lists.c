/* Filters on lists and dictionaries. What Python makes a generator of is JJ_ITER here: it can be gone through
 * once, has no length and no elements. */
#include "text/jinja_filters.h"

typedef const jj_args *args_t;

/* ---- "a.b.0" of an item ---- */

static jj_value *one_attribute(jj_run *r, jj_value *item, const char *name, size_t size)
{
    bool number = size > 0 && size < 18;
    int64_t n = 0;
    for (size_t i = 0; i < size; i++) {
        number = number && name[i] >= '0' && name[i] <= '9';
        n = number ? n * 10 + (name[i] - '0') : 0;
    }
    jj_value *key = number ? jj_int(r, n) : jj_string(r, name, size);
    return key ? jj_element(r, item, key) : NULL;
}

/* path: a string of names with dots, a number, or NULL and none: the item itself. */
static jj_value *get_path(jj_run *r, jj_value *item, jj_value *path)
{
    if (!path || path->kind == JJ_NONE)
        return item;
    if (path->kind != JJ_STRING)
        return jj_element(r, item, path);
    const char *at = path->as.s.text, *end = at + path->as.s.size;
    for (;;) {
        const char *dot = at < end ? memchr(at, '.', (size_t)(end - at)) : NULL;
        item = one_attribute(r, item, at, (size_t)((dot ? dot : end) - at));
        if (!item || !dot)
            return item;
        at = dot + 1;
    }
}

static jj_value *folded(jj_run *r, jj_value *v, bool case_sensitive)
{
    return v && !case_sensitive && v->kind == JJ_STRING ? jj_lower(r, v) : v;
}

static bool yes(const jj_value *v) { return v && jj_truth(v); }

/* ---- sorting: stable, by keys ---- */

typedef struct sorted {
    jj_value *key, *item;
} sorted;

static bool merge(jj_run *r, sorted *from, sorted *to, size_t begin, size_t middle, size_t end, bool reverse)
{
    for (size_t i = begin, j = middle, k = begin; k < end; k++) {
        bool second = i == middle, less = false;
        if (!second && j < end) {
            if (!jj_less(r, reverse ? from[i].key : from[j].key, reverse ? from[j].key : from[i].key, false, &less) || !jj_work(r, 1))
                return false;
            second = less;
        }
        to[k] = from[second ? j++ : i++];
    }
    return true;
}

static bool sort_items(jj_run *r, sorted *items, size_t count, bool reverse)
{
    sorted *other = jj_take(r, count + 1, sizeof *other), *from = items, *to = other;
    if (!other)
        return false;
    for (size_t width = 1; width < count; width *= 2) {
        for (size_t at = 0; at < count; at += 2 * width) {
            size_t middle = at + width < count ? at + width : count, end = at + 2 * width < count ? at + 2 * width : count;
            if (!merge(r, from, to, at, middle, end, reverse))
                return false;
        }
        sorted *swap = from;
        from = to;
        to = swap;
    }
    if (from != items)
        memcpy(items, from, count * sizeof *items);
    return true;
}

/* The list of items of v, each with its key: keys of a path with commas are tuples. */
static sorted *with_keys(jj_run *r, jj_value *v, jj_value *path, bool case_sensitive, bool many, jj_value *fallback, size_t *count)
{
    jj_value **item;
    if (!jj_items(r, v, &item, count))
        return NULL;
    sorted *list = jj_take(r, *count + 1, sizeof *list);
    for (size_t i = 0; list && i < *count; i++) {
        jj_value *key = jj_list(r, JJ_LIST, 1);
        const char *at = path && path->kind == JJ_STRING ? path->as.s.text : NULL, *end = at ? at + path->as.s.size : NULL;
        list[i].item = item[i];
        for (bool more = key; more;) {
            const char *comma = at && many && at < end ? memchr(at, ',', (size_t)(end - at)) : NULL;
            jj_value *one = comma ? jj_string(r, at, (size_t)(comma - at)) : at ? jj_string(r, at, (size_t)(end - at)) : path;
            if (at && !one)
                return NULL;
            jj_value *value = get_path(r, item[i], one);
            if (value && value->kind == JJ_UNDEFINED && fallback)
                value = fallback;
            if (!jj_push(r, key, folded(r, value, case_sensitive)))
                return NULL;
            more = comma;
            at = comma ? comma + 1 : at;
        }
        if (!key)
            return NULL;
        list[i].key = many ? key : key->as.l.item[0];
    }
    return list;
}

static jj_value *to_list(jj_run *r, const sorted *items, size_t count)
{
    jj_value *v = jj_list(r, JJ_LIST, count);
    for (size_t i = 0; v && i < count; i++)
        jj_push(r, v, items[i].item);
    return v;
}

jj_value *jj_filter_sort(jj_run *r, jj_value *v, args_t a)
{
    size_t count;
    sorted *items = with_keys(r, v, a->item[2], yes(a->item[1]), true, NULL, &count);
    return items && sort_items(r, items, count, yes(a->item[0])) ? to_list(r, items, count) : NULL;
}

jj_value *jj_filter_dictsort(jj_run *r, jj_value *v, args_t a)
{
    bool value = jj_same_text(a->item[1], "value");
    if (v->kind != JJ_DICT)
        return v->kind == JJ_UNDEFINED ? jj_undefined_error(r, v) : jj_fail(r, "dictsort expects a mapping, found %s", jj_type(v));
    if (a->item[1] && !value && !jj_same_text(a->item[1], "key"))
        return jj_fail(r, "You can only sort by either \"key\" or \"value\"");
    size_t count = v->as.d.count;
    sorted *items = jj_take(r, count + 1, sizeof *items);
    for (size_t i = 0; items && i < count; i++) {
        jj_pair *pair = &v->as.d.pair[i];
        items[i].item = jj_list(r, JJ_TUPLE, 2);
        items[i].key = folded(r, value ? pair->value : pair->key, yes(a->item[0]));
        if (!items[i].key || !items[i].item || !jj_push(r, items[i].item, pair->key) || !jj_push(r, items[i].item, pair->value))
            return NULL;
    }
    return items && sort_items(r, items, count, yes(a->item[2])) ? to_list(r, items, count) : NULL;
}

jj_value *jj_filter_groupby(jj_run *r, jj_value *v, args_t a)
{
    size_t count;
    jj_value *fallback = a->item[1] && a->item[1]->kind != JJ_NONE ? a->item[1] : NULL, *out = jj_list(r, JJ_LIST, 0), *group = NULL;
    sorted *items = out ? with_keys(r, v, a->item[0], yes(a->item[2]), false, fallback, &count) : NULL;
    if (!items || !sort_items(r, items, count, false))
        return NULL;
    for (size_t i = 0; i < count; i++) {
        if (!i || !jj_equal(r, items[i - 1].key, items[i].key)) {
            jj_value *key = get_path(r, items[i].item, a->item[0]);
            if (key && key->kind == JJ_UNDEFINED && fallback)
                key = fallback;
            group = jj_list(r, JJ_TUPLE, 2);
            if (!group || !jj_push(r, group, key) || !jj_push(r, group, jj_list(r, JJ_LIST, 0)) || !jj_push(r, out, group))
                return NULL;
            group->view = 'g';
        }
        if (r->status != TM_OK || !jj_push(r, group->as.l.item[1], items[i].item))
            return NULL;
    }
    return out;
}

static jj_value *extreme(jj_run *r, jj_value *v, args_t a, bool largest)
{
    size_t count, best = 0;
    sorted *items = with_keys(r, v, a->item[1], yes(a->item[0]), false, NULL, &count);
    if (!items)
        return NULL;
    if (!count)
        return jj_hint(r, "No aggregated item, sequence was empty.");
    for (size_t i = 1; i < count; i++) {
        bool less;
        if (!jj_less(r, largest ? items[best].key : items[i].key, largest ? items[i].key : items[best].key, false, &less))
            return NULL;
        best = less ? i : best;
    }
    return items[best].item;
}

jj_value *jj_filter_max(jj_run *r, jj_value *v, args_t a) { return extreme(r, v, a, true); }
jj_value *jj_filter_min(jj_run *r, jj_value *v, args_t a) { return extreme(r, v, a, false); }

jj_value *jj_filter_unique(jj_run *r, jj_value *v, args_t a)
{
    size_t count;
    jj_value *out = jj_list(r, JJ_ITER, 0), *seen = out ? jj_dict(r, 0) : NULL, *found;
    sorted *items = seen ? with_keys(r, v, a->item[1], yes(a->item[0]), false, NULL, &count) : NULL;
    for (size_t i = 0; items && i < count; i++) {
        if (!jj_get(r, seen, items[i].key, &found))
            return NULL;
        if (!found && (!jj_put(r, seen, items[i].key, &r->yes) || !jj_push(r, out, items[i].item)))
            return NULL;
    }
    return items ? out : NULL;
}

/* ---- ends, length, lists ---- */

jj_value *jj_filter_first(jj_run *r, jj_value *v, args_t a)
{
    (void)a;
    jj_value **item;
    size_t count, at = v->kind == JJ_ITER ? v->as.l.at : 0;
    if (!jj_items(r, v, &item, &count))
        return NULL;
    if (v->kind == JJ_ITER && count) /* takes one and leaves the rest */
        v->as.l.at = at + 1;
    return count ? item[0] : jj_hint(r, "No first item, sequence was empty.");
}

/* What Python can go through backwards. */
static bool reversible(const jj_value *v)
{
    return v->kind == JJ_STRING || v->kind == JJ_DICT || (jj_is_items(v) && v->kind != JJ_ITER);
}

jj_value *jj_filter_last(jj_run *r, jj_value *v, args_t a)
{
    (void)a;
    jj_value **item;
    size_t count;
    if (v->kind == JJ_UNDEFINED) /* reversed() finds a length of 0 and a __getitem__ */
        return jj_hint(r, "No last item, sequence was empty.");
    if (!reversible(v))
        return jj_fail(r, "'%s' object is not reversible", jj_type(v));
    if (!jj_items(r, v, &item, &count))
        return NULL;
    return count ? item[count - 1] : jj_hint(r, "No last item, sequence was empty.");
}

jj_value *jj_filter_length(jj_run *r, jj_value *v, args_t a)
{
    (void)a;
    int64_t length;
    return jj_length(r, v, &length) ? jj_int(r, length) : NULL;
}

static jj_value *copy_items(jj_run *r, jj_value *v, jj_kind kind, bool backwards)
{
    jj_value **item;
    size_t count;
    if (!jj_items(r, v, &item, &count))
        return NULL;
    jj_value *list = jj_list(r, kind, count);
    for (size_t i = 0; list && i < count; i++)
        jj_push(r, list, item[backwards ? count - 1 - i : i]);
    return list;
}

jj_value *jj_filter_list(jj_run *r, jj_value *v, args_t a) { return (void)a, copy_items(r, v, JJ_LIST, false); }

jj_value *jj_filter_reverse(jj_run *r, jj_value *v, args_t a)
{
    (void)a;
    jj_value *list = copy_items(r, v, reversible(v) ? JJ_ITER : JJ_LIST, true);
    if (!list || v->kind != JJ_STRING)
        return list;
    tm_buf out = {0};
    for (size_t i = 0; i < list->as.l.count; i++)
        tm_buf_add(&out, list->as.l.item[i]->as.s.text, list->as.l.item[i]->as.s.size);
    list = jj_string_buf(r, &out);
    if (list)
        list->markup = v->markup;
    return list;
}

jj_value *jj_filter_items(jj_run *r, jj_value *v, args_t a)
{
    (void)a;
    bool forbidden;
    if (v->kind == JJ_UNDEFINED)
        return jj_list(r, JJ_ITER, 0);
    if (v->kind != JJ_DICT)
        return jj_fail(r, "Can only get item pairs from a mapping.");
    v = jj_apply(r, jj_find_method(v, "items", 5, &forbidden), v, &(jj_args){0});
    if (v)
        v->kind = JJ_ITER;
    return v;
}

/* ---- parts ---- */

jj_value *jj_filter_batch(jj_run *r, jj_value *v, args_t a)
{
    int64_t width;
    jj_value **item, *out = jj_list(r, JJ_ITER, 0), *row = NULL;
    size_t count;
    if (!out || !jj_arg_int(r, a->item[0], 1, &width) || !jj_items(r, v, &item, &count))
        return NULL;
    for (size_t i = 0; i < count; i++) {
        if (!row || (int64_t)row->as.l.count == width) {
            if (!(row = jj_list(r, JJ_LIST, 0)) || (i || width != 0 ? !jj_push(r, out, row) : false))
                return NULL;
            if (i == 0 && width == 0 && !jj_push(r, out, jj_list(r, JJ_LIST, 0)))
                return NULL;
            if (i == 0 && width == 0 && !jj_push(r, out, row))
                return NULL;
        }
        if (!jj_push(r, row, item[i]))
            return NULL;
    }
    bool fill = row && a->item[1] && a->item[1]->kind != JJ_NONE;
    while (fill && (int64_t)row->as.l.count < width)
        if (!jj_push(r, row, a->item[1]) || !jj_work(r, 1))
            return NULL;
    return out;
}

jj_value *jj_filter_slice(jj_run *r, jj_value *v, args_t a)
{
    int64_t slices;
    jj_value **item, *out = jj_list(r, JJ_ITER, 0);
    size_t count, at = 0;
    if (!out || !jj_arg_int(r, a->item[0], 1, &slices) || !jj_items(r, v, &item, &count))
        return NULL;
    if (slices == 0)
        return jj_fail(r, "integer division or modulo by zero");
    for (int64_t i = 0; i < slices; i++) {
        bool extra = (size_t)i < count % (size_t)slices;
        size_t end = at + count / (size_t)slices + extra;
        jj_value *row = jj_work(r, 1) ? jj_list(r, JJ_LIST, end - at) : NULL;
        if (!row || !jj_push(r, out, row))
            return NULL;
        while (at < end)
            jj_push(r, row, item[at++]);
        if (!extra && a->item[1] && a->item[1]->kind != JJ_NONE && !jj_push(r, row, a->item[1]))
            return NULL;
    }
    return out;
}

jj_value *jj_filter_join(jj_run *r, jj_value *v, args_t a)
{
    tm_buf out = {0};
    jj_value **item, *by = a->item[0] ? jj_to_string(r, a->item[0]) : &r->empty;
    size_t count;
    if (!by || !jj_items(r, v, &item, &count))
        return NULL;
    for (size_t i = 0; i < count; i++) {
        jj_value *one = a->item[1] && a->item[1]->kind != JJ_NONE ? get_path(r, item[i], a->item[1]) : item[i];
        if (i)
            tm_buf_add(&out, by->as.s.text, by->as.s.size);
        if (!one || !jj_str(r, one, &out) || !jj_work_bytes(r, by->as.s.size)) {
            tm_buf_deinit(&out);
            return NULL;
        }
    }
    return jj_string_buf(r, &out);
}

jj_value *jj_filter_sum(jj_run *r, jj_value *v, args_t a)
{
    jj_value **item, *sum = a->item[1] ? a->item[1] : jj_int(r, 0);
    size_t count;
    if (!sum || !jj_items(r, v, &item, &count))
        return NULL;
    if (sum->kind == JJ_STRING)
        return jj_fail(r, "sum() can't sum strings [use ''.join(seq) instead]");
    for (size_t i = 0; sum && i < count; i++) {
        jj_value *one = get_path(r, item[i], a->item[0]);
        sum = one ? jj_operate(r, JJ_ADD, sum, one) : NULL;
    }
    return sum;
}

/* ---- map, select, reject ---- */

/* Arguments from the k-th on. */
static jj_args behind(args_t a, size_t k)
{
    return (jj_args){a->item ? a->item + k : NULL, a->count - k, a->key, a->value, a->named};
}

static const jj_function *named_function(jj_run *r, const jj_function *table, const jj_value *name, const char *what)
{
    const jj_function *row = name->kind == JJ_STRING ? jj_find_function(table, name->as.s.text, name->as.s.size) : NULL;
    if (!row)
        jj_fail(r, "No %s named %.*s.", what, name->kind == JJ_STRING ? (int)name->as.s.size : 0, name->kind == JJ_STRING ? name->as.s.text : "");
    return row;
}

static jj_value *map_attribute(jj_run *r, jj_value *v, args_t a)
{
    jj_value **item, *path = NULL, *fallback = NULL, *out = jj_list(r, JJ_ITER, 0);
    size_t count;
    for (size_t i = 0; i < a->named; i++) {
        if (jj_same_text(a->key[i], "attribute"))
            path = a->value[i];
        else if (jj_same_text(a->key[i], "default"))
            fallback = a->value[i]->kind != JJ_NONE ? a->value[i] : NULL;
        else
            return jj_fail(r, "map: an unexpected named argument");
    }
    if (!out || !jj_items(r, v, &item, &count))
        return NULL;
    for (size_t i = 0; i < count; i++) {
        jj_value *one = get_path(r, item[i], path);
        if (!jj_push(r, out, one && one->kind == JJ_UNDEFINED && fallback ? fallback : one))
            return NULL;
    }
    return out;
}

jj_value *jj_filter_map(jj_run *r, jj_value *v, args_t a)
{
    jj_value **item, *out;
    size_t count;
    bool attribute = false;
    for (size_t i = 0; i < a->named; i++)
        attribute |= jj_same_text(a->key[i], "attribute");
    if (!jj_truth(v))
        return jj_list(r, JJ_ITER, 0);
    if (!a->count && attribute)
        return map_attribute(r, v, a);
    if (!a->count)
        return jj_fail(r, "map requires a filter argument");
    const jj_function *row = named_function(r, jj_filters, a->item[0], "filter");
    jj_args rest = behind(a, 1);
    if (!row || !(out = jj_list(r, JJ_ITER, 0)) || !jj_items(r, v, &item, &count))
        return NULL;
    for (size_t i = 0; i < count; i++)
        if (!jj_push(r, out, jj_apply(r, row, item[i], &rest)))
            return NULL;
    return out;
}

static jj_value *choose(jj_run *r, jj_value *v, args_t a, bool attribute, bool keep)
{
    jj_value **item, *out = jj_list(r, JJ_ITER, 0);
    size_t count, skip = attribute;
    if (!out || !jj_truth(v))
        return out;
    if (attribute && !a->count)
        return jj_fail(r, "Missing parameter for attribute name");
    const jj_function *row = a->count > skip ? named_function(r, jj_tests, a->item[skip], "test") : NULL;
    jj_args rest = behind(a, a->count > skip ? skip + 1 : a->count);
    if (r->status != TM_OK || !jj_items(r, v, &item, &count))
        return NULL;
    for (size_t i = 0; i < count; i++) {
        jj_value *one = attribute ? get_path(r, item[i], a->item[0]) : item[i];
        if (one && row)
            one = jj_apply(r, row, one, &rest);
        if (!one || (jj_truth(one) == keep && !jj_push(r, out, item[i])))
            return NULL;
    }
    return out;
}

jj_value *jj_filter_select(jj_run *r, jj_value *v, args_t a) { return choose(r, v, a, false, true); }
jj_value *jj_filter_reject(jj_run *r, jj_value *v, args_t a) { return choose(r, v, a, false, false); }
jj_value *jj_filter_selectattr(jj_run *r, jj_value *v, args_t a) { return choose(r, v, a, true, true); }
jj_value *jj_filter_rejectattr(jj_run *r, jj_value *v, args_t a) { return choose(r, v, a, true, false); }
