/* Values of a rendering: making, looking into, comparing. See jinja_parts.h for who owns what. */
#include "text/jinja_parts.h"

#include <stdlib.h>

/* ---- memory ---- */

struct jj_block {
    jj_block *next;
    _Alignas(16) char data[];
};

enum { BLOCK_BYTES = 16 << 10, BLOCK_MOST = 1 << 20 };

void *jj_pool_take(jj_pool *pool, size_t size)
{
    if (size > pool->limit)
        return NULL;
    size = (size + 15) & ~(size_t)15;
    if (size > pool->left) {
        size_t block = pool->total < BLOCK_BYTES ? BLOCK_BYTES : pool->total < BLOCK_MOST ? pool->total : BLOCK_MOST;
        block = size > block ? size : block;
        if (pool->total + block > pool->limit)
            block = size;
        if (pool->total + block > pool->limit)
            return NULL;
        jj_block *fresh = malloc(sizeof *fresh + block);
        if (!fresh)
            return NULL;
        fresh->next = pool->blocks;
        pool->blocks = fresh;
        pool->at = fresh->data;
        pool->left = block;
        pool->total += block;
    }
    void *taken = pool->at;
    pool->at += size;
    pool->left -= size;
    return memset(taken, 0, size);
}

void jj_pool_deinit(jj_pool *pool)
{
    for (jj_block *block = pool->blocks, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    pool->blocks = NULL;
}

void *jj_take(jj_run *r, size_t count, size_t size)
{
    size_t bytes;
    bool fits = !__builtin_mul_overflow(count, size, &bytes) && bytes <= TM_JINJA_MAX_MEMORY;
    void *taken = fits ? jj_pool_take(&r->pool, bytes ? bytes : 1) : NULL;
    if (taken || r->status != TM_OK)
        return taken;
    if (!fits || r->pool.total + bytes > r->pool.limit) {
        jj_fail(r, "the template needs more than %d MiB of memory", TM_JINJA_MAX_MEMORY >> 20);
        return NULL;
    }
    r->status = tm_fail(r->err, TM_NO_MEMORY, "%s: out of memory", r->t->name);
    return NULL;
}

bool jj_work(jj_run *r, uint64_t steps)
{
    r->steps += steps;
    if (r->steps <= TM_JINJA_MAX_STEPS)
        return true;
    jj_fail(r, "the template takes more than %d steps", TM_JINJA_MAX_STEPS);
    return false;
}

/* ---- making ---- */

static jj_value *make(jj_run *r, jj_kind kind)
{
    jj_value *v = jj_take(r, 1, sizeof *v);
    if (v)
        v->kind = (uint8_t)kind;
    return v;
}

jj_value *jj_bool(jj_run *r, bool yes) { return yes ? &r->yes : &r->no; }

jj_value *jj_int(jj_run *r, int64_t i)
{
    jj_value *v = make(r, JJ_INT);
    if (v)
        v->as.i = i;
    return v;
}

jj_value *jj_float(jj_run *r, double f)
{
    jj_value *v = make(r, JJ_FLOAT);
    if (v)
        v->as.f = f;
    return v;
}

jj_value *jj_string(jj_run *r, const char *text, size_t size)
{
    jj_value *v = make(r, JJ_STRING);
    if (v) {
        v->as.s.text = text;
        v->as.s.size = size;
        v->as.s.chars = JJ_UNKNOWN;
    }
    return v;
}

jj_value *jj_string_copy(jj_run *r, const char *text, size_t size)
{
    char *copy = jj_work_bytes(r, size) ? jj_take(r, size + 1, 1) : NULL;
    if (!copy)
        return NULL;
    memcpy(copy, text, size);
    return jj_string(r, copy, size);
}

jj_value *jj_string_buf(jj_run *r, tm_buf *buf)
{
    jj_value *v = jj_buf_ok(r, buf) ? jj_string_copy(r, tm_buf_str(buf), buf->size) : NULL;
    tm_buf_deinit(buf);
    return v;
}

jj_value *jj_text(jj_run *r, const char *text) { return jj_string(r, text, strlen(text)); }

jj_value *jj_list(jj_run *r, jj_kind kind, size_t capacity)
{
    jj_value *v = make(r, kind);
    if (!v || !capacity)
        return v;
    v->as.l.item = jj_take(r, capacity, sizeof *v->as.l.item);
    v->as.l.capacity = capacity;
    return v->as.l.item ? v : NULL;
}

bool jj_push(jj_run *r, jj_value *list, jj_value *item)
{
    if (!item)
        return false;
    if (list->as.l.count == list->as.l.capacity) {
        size_t capacity = list->as.l.capacity ? 2 * list->as.l.capacity : 8;
        jj_value **grown = jj_take(r, capacity, sizeof *grown);
        if (!grown)
            return false;
        if (list->as.l.count)
            memcpy(grown, list->as.l.item, list->as.l.count * sizeof *grown);
        list->as.l.item = grown;
        list->as.l.capacity = capacity;
    }
    list->as.l.item[list->as.l.count++] = item;
    return true;
}

jj_value *jj_missing(jj_run *r, const jj_value *object, const char *name, size_t size)
{
    jj_value *v = make(r, JJ_UNDEFINED);
    if (v) {
        v->as.u.object = object;
        v->as.u.name = name;
        v->as.u.size = size;
    }
    return v;
}

jj_value *jj_hint(jj_run *r, const char *hint)
{
    jj_value *v = make(r, JJ_UNDEFINED);
    if (v)
        v->as.u.hint = hint;
    return v;
}

static jj_value *object_from_json(jj_run *r, const json_t *json, int depth)
{
    jj_value *v = jj_dict(r, json_object_size(json));
    const char *key;
    json_t *item;
    if (!v)
        return NULL;
    json_object_foreach((json_t *)json, key, item) { /* the macro wants it writable, and does not write */
        jj_value *name = jj_string_copy(r, key, strlen(key)), *value = name ? jj_from_json(r, item, depth + 1) : NULL;
        if (!value || !jj_put(r, v, name, value))
            return NULL;
    }
    return v;
}

/* Text is borrowed: the context outlives the rendering. */
jj_value *jj_from_json(jj_run *r, const json_t *json, int depth)
{
    if (depth > TM_JINJA_MAX_DEPTH)
        return jj_fail(r, "a value nests more than %d deep", TM_JINJA_MAX_DEPTH);
    switch (json_typeof(json)) {
    case JSON_NULL: return &r->none;
    case JSON_TRUE: return &r->yes;
    case JSON_FALSE: return &r->no;
    case JSON_INTEGER: return jj_int(r, json_integer_value(json));
    case JSON_REAL: return jj_float(r, json_real_value(json));
    case JSON_STRING: return jj_string(r, json_string_value(json), json_string_length(json));
    case JSON_OBJECT: return object_from_json(r, json, depth);
    case JSON_ARRAY: break;
    }
    size_t count = json_array_size(json);
    jj_value *v = jj_list(r, JJ_LIST, count);
    for (size_t i = 0; v && i < count; i++)
        if (!jj_push(r, v, jj_from_json(r, json_array_get(json, i), depth + 1)))
            return NULL;
    return v;
}

/* ---- dictionaries: pairs in the order they came, found by their hash ---- */

jj_value *jj_dict(jj_run *r, size_t capacity)
{
    jj_value *v = make(r, JJ_DICT);
    if (!v || !capacity)
        return v;
    v->as.d.pair = jj_take(r, capacity, sizeof *v->as.d.pair);
    v->as.d.capacity = capacity;
    return v->as.d.pair ? v : NULL;
}

static uint64_t hash_text(const char *text, size_t size)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; i++)
        h = (h ^ (uint8_t)text[i]) * 0x100000001b3u;
    return h;
}

static bool deeper(jj_run *r)
{
    if (++r->depth <= TM_JINJA_MAX_DEPTH)
        return jj_work(r, 1);
    jj_fail(r, "values nest more than %d deep", TM_JINJA_MAX_DEPTH);
    return false;
}

/* Equal values have equal hashes: 1, 1.0 and true are one key. False: unhashable, or too much of it. */
static bool hash(jj_run *r, const jj_value *v, uint64_t *out)
{
    *out = v->kind;
    switch ((jj_kind)v->kind) {
    case JJ_STRING: *out = hash_text(v->as.s.text, v->as.s.size); return true;
    case JJ_BOOL:
    case JJ_INT:
    case JJ_FLOAT: {
        double f = jj_number(v) + 0.0; /* -0 is 0 */
        memcpy(out, &f, sizeof f);
        return true;
    }
    case JJ_TUPLE:
        if (!deeper(r))
            return false;
        for (size_t i = 0; i < v->as.l.count; i++) {
            uint64_t h;
            if (!hash(r, v->as.l.item[i], &h))
                return false;
            *out = *out * 31 + h;
        }
        r->depth--;
        return true;
    case JJ_LIST:
    case JJ_DICT:
    case JJ_VIEW: return false;
    default: return true;
    }
}

static bool find(jj_run *r, const jj_value *dict, const jj_value *key, uint64_t h, jj_pair **found)
{
    *found = NULL;
    for (size_t i = 0; i < dict->as.d.count && !*found; i++)
        if (dict->as.d.pair[i].hash == h && jj_equal(r, dict->as.d.pair[i].key, key))
            *found = &dict->as.d.pair[i];
    return jj_work(r, 1 + dict->as.d.count / 8) && r->status == TM_OK;
}

static bool hash_key(jj_run *r, const jj_value *key, uint64_t *h)
{
    if (hash(r, key, h))
        return true;
    jj_fail(r, "unhashable type: '%s'", jj_type(key));
    return false;
}

bool jj_hashable(jj_run *r, const jj_value *key)
{
    uint64_t h;
    return hash_key(r, key, &h);
}

bool jj_put(jj_run *r, jj_value *dict, jj_value *key, jj_value *value)
{
    uint64_t h;
    jj_pair *pair;
    if (!hash_key(r, key, &h) || !find(r, dict, key, h, &pair))
        return false;
    if (pair) {
        pair->value = value;
        return true;
    }
    if (dict->as.d.count == dict->as.d.capacity) {
        size_t capacity = dict->as.d.capacity ? 2 * dict->as.d.capacity : 8;
        jj_pair *grown = jj_take(r, capacity, sizeof *grown);
        if (!grown)
            return false;
        if (dict->as.d.count)
            memcpy(grown, dict->as.d.pair, dict->as.d.count * sizeof *grown);
        dict->as.d.pair = grown;
        dict->as.d.capacity = capacity;
    }
    dict->as.d.pair[dict->as.d.count++] = (jj_pair){key, value, h};
    return true;
}

bool jj_get(jj_run *r, const jj_value *dict, const jj_value *key, jj_value **found)
{
    uint64_t h;
    jj_pair *pair;
    if (!hash_key(r, key, &h) || !find(r, dict, key, h, &pair))
        return false;
    *found = pair ? pair->value : NULL;
    return true;
}

jj_pair *jj_find_text(const jj_value *dict, const char *key, size_t size)
{
    uint64_t h = hash_text(key, size);
    for (size_t i = 0; i < dict->as.d.count; i++) {
        const jj_value *k = dict->as.d.pair[i].key;
        if (dict->as.d.pair[i].hash == h && k->kind == JJ_STRING && k->as.s.size == size &&
            memcmp(k->as.s.text, key, size) == 0)
            return &dict->as.d.pair[i];
    }
    return NULL;
}

jj_value *jj_get_text(const jj_value *dict, const char *key, size_t size)
{
    jj_pair *pair = jj_find_text(dict, key, size);
    return pair ? pair->value : NULL;
}

/* ---- strings ---- */

int64_t jj_chars(const jj_value *v)
{
    if (v->as.s.chars != JJ_UNKNOWN)
        return v->as.s.chars;
    int64_t count = 0;
    for (size_t i = 0; i < v->as.s.size; i++)
        count += ((uint8_t)v->as.s.text[i] & 0xc0) != 0x80;
    return ((jj_value *)v)->as.s.chars = count; /* never a constant's: those are counted when they are made */
}

size_t jj_char_at(const jj_value *v, int64_t index)
{
    if (jj_chars(v) == (int64_t)v->as.s.size)
        return (size_t)index;
    size_t at = 0;
    for (; index > 0 && at < v->as.s.size; index--)
        for (at++; at < v->as.s.size && ((uint8_t)v->as.s.text[at] & 0xc0) == 0x80;)
            at++;
    return at;
}

bool jj_same_text(const jj_value *v, const char *text)
{
    return v && v->kind == JJ_STRING && v->as.s.size == strlen(text) && memcmp(v->as.s.text, text, v->as.s.size) == 0;
}

/* ---- kinds ---- */

bool jj_is_number(const jj_value *v) { return v->kind == JJ_BOOL || v->kind == JJ_INT || v->kind == JJ_FLOAT; }
double jj_number(const jj_value *v) { return v->kind == JJ_FLOAT ? v->as.f : (double)v->as.i; }
bool jj_is_items(const jj_value *v) { return v->kind >= JJ_LIST && v->kind <= JJ_ITER; }

const char *jj_type(const jj_value *v)
{
    static const char *const names[] = {
        [JJ_UNDEFINED] = "Undefined", [JJ_NONE] = "NoneType", [JJ_BOOL] = "bool", [JJ_INT] = "int", [JJ_FLOAT] = "float",
        [JJ_STRING] = "str", [JJ_LIST] = "list", [JJ_TUPLE] = "tuple", [JJ_RANGE] = "range", [JJ_ITER] = "generator",
        [JJ_DICT] = "dict", [JJ_NAMESPACE] = "Namespace", [JJ_FUNCTION] = "function", [JJ_MACRO] = "Macro",
        [JJ_LOOP] = "LoopContext", [JJ_CYCLER] = "Cycler", [JJ_JOINER] = "Joiner"};
    if (v->kind == JJ_VIEW)
        return v->view == 'k' ? "dict_keys" : v->view == 'v' ? "dict_values" : "dict_items";
    return v->markup ? "Markup" : names[v->kind];
}

bool jj_truth(const jj_value *v)
{
    switch ((jj_kind)v->kind) {
    case JJ_UNDEFINED:
    case JJ_NONE: return false;
    case JJ_BOOL:
    case JJ_INT: return v->as.i != 0;
    case JJ_FLOAT: return v->as.f != 0;
    case JJ_STRING: return v->as.s.size > 0;
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_RANGE:
    case JJ_VIEW: return v->as.l.count > 0;
    case JJ_DICT: return v->as.d.count > 0;
    default: return true;
    }
}

/* Under a value's own error text: 'x' is undefined, 'dict object' has no attribute 'x'. */
jj_value *jj_undefined_error(jj_run *r, const jj_value *v)
{
    const jj_value *object = v->as.u.object;
    int size = (int)(v->as.u.size < 200 ? v->as.u.size : 200);
    if (v->as.u.hint)
        return jj_fail(r, "%s", v->as.u.hint);
    if (!object)
        return jj_fail(r, "'%.*s' is undefined", size, v->as.u.name ? v->as.u.name : "");
    const char *type = object->kind == JJ_NONE ? "None" : object->kind == JJ_UNDEFINED ? "Undefined" : jj_type(object);
    const char *suffix = object->kind == JJ_NONE ? "" : " object";
    if (v->as.u.name)
        return jj_fail(r, "'%s%s' has no attribute '%.*s'", type, suffix, size, v->as.u.name);
    tm_buf text = {0};
    jj_value *none = NULL;
    if (jj_repr(r, v->as.u.element, &text))
        none = jj_fail(r, "%s%s has no element %.200s", type, suffix, tm_buf_str(&text));
    tm_buf_deinit(&text);
    return none;
}

/* ---- comparing ---- */

static int compare_numbers(const jj_value *a, const jj_value *b)
{
    if (a->kind != JJ_FLOAT && b->kind != JJ_FLOAT)
        return a->as.i < b->as.i ? -1 : a->as.i > b->as.i;
    long double x = a->kind == JJ_FLOAT ? (long double)a->as.f : (long double)a->as.i;
    long double y = b->kind == JJ_FLOAT ? (long double)b->as.f : (long double)b->as.i;
    return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2; /* 2: not a number */
}

static int compare_text(const jj_value *a, const jj_value *b)
{
    size_t n = a->as.s.size < b->as.s.size ? a->as.s.size : b->as.s.size;
    int order = n ? memcmp(a->as.s.text, b->as.s.text, n) : 0;
    return order ? order : a->as.s.size < b->as.s.size ? -1 : a->as.s.size > b->as.s.size;
}

static bool equal_dicts(jj_run *r, const jj_value *a, const jj_value *b)
{
    if (a->as.d.count != b->as.d.count)
        return false;
    for (size_t i = 0; i < a->as.d.count; i++) {
        jj_pair *pair;
        if (!find(r, b, a->as.d.pair[i].key, a->as.d.pair[i].hash, &pair) || !pair ||
            !jj_equal(r, a->as.d.pair[i].value, pair->value))
            return false;
    }
    return true;
}

bool jj_equal(jj_run *r, const jj_value *a, const jj_value *b)
{
    if (jj_is_number(a) && jj_is_number(b))
        return compare_numbers(a, b) == 0;
    if (a->kind != b->kind)
        return false;
    switch ((jj_kind)a->kind) {
    case JJ_UNDEFINED:
    case JJ_NONE: return true;
    case JJ_STRING:
        return a->as.s.size == b->as.s.size && jj_work_bytes(r, a->as.s.size) && compare_text(a, b) == 0;
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_RANGE:
    case JJ_VIEW: {
        bool same = a->as.l.count == b->as.l.count && (a->kind != JJ_VIEW || (a->view == b->view && (a == b || a->view != 'v')));
        if (!same || !deeper(r))
            return false;
        for (size_t i = 0; same && i < a->as.l.count; i++)
            same = a->as.l.item[i] == b->as.l.item[i] || jj_equal(r, a->as.l.item[i], b->as.l.item[i]);
        r->depth--;
        return same;
    }
    case JJ_DICT: {
        bool same = a == b || (deeper(r) && equal_dicts(r, a, b));
        r->depth -= a != b;
        return same;
    }
    default: return a == b;
    }
}

bool jj_less(jj_run *r, const jj_value *a, const jj_value *b, bool or_equal, bool *out)
{
    int order = 0;
    if (a->kind == JJ_UNDEFINED || b->kind == JJ_UNDEFINED) {
        jj_undefined_error(r, a->kind == JJ_UNDEFINED ? a : b);
        return false;
    }
    if (jj_is_number(a) && jj_is_number(b)) {
        order = compare_numbers(a, b);
        *out = order == -1 || (or_equal && order == 0);
        return true;
    }
    if (a->kind == JJ_STRING && b->kind == JJ_STRING) {
        order = compare_text(a, b);
        *out = order < 0 || (or_equal && order == 0);
        return jj_work_bytes(r, a->as.s.size < b->as.s.size ? a->as.s.size : b->as.s.size);
    }
    if (a->kind != b->kind || (a->kind != JJ_LIST && a->kind != JJ_TUPLE)) {
        jj_fail(r, "'%s' not supported between instances of '%s' and '%s'", or_equal ? "<=" : "<", jj_type(a), jj_type(b));
        return false;
    }
    size_t i = 0, n = a->as.l.count < b->as.l.count ? a->as.l.count : b->as.l.count;
    if (!deeper(r))
        return false;
    while (i < n && (a->as.l.item[i] == b->as.l.item[i] || jj_equal(r, a->as.l.item[i], b->as.l.item[i])))
        i++;
    bool ok = r->status == TM_OK;
    if (ok && i < n)
        ok = jj_less(r, a->as.l.item[i], b->as.l.item[i], or_equal, out);
    else
        *out = a->as.l.count < b->as.l.count || (or_equal && a->as.l.count == b->as.l.count);
    r->depth--;
    return ok;
}

/* ---- going through ---- */

bool jj_length(jj_run *r, jj_value *v, int64_t *out)
{
    switch ((jj_kind)v->kind) {
    case JJ_UNDEFINED: *out = 0; return true;
    case JJ_STRING: *out = jj_chars(v); return jj_work_bytes(r, v->as.s.size);
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_RANGE:
    case JJ_VIEW: *out = (int64_t)v->as.l.count; return true;
    case JJ_DICT: *out = (int64_t)v->as.d.count; return true;
    default: jj_fail(r, "object of type '%s' has no len()", jj_type(v)); return false;
    }
}

/* A list of the characters of a string, the keys of a dictionary. */
static jj_value *spread(jj_run *r, jj_value *v)
{
    jj_value *list = jj_list(r, JJ_LIST, v->kind == JJ_DICT ? v->as.d.count : (size_t)jj_chars(v));
    if (list && v->kind == JJ_DICT)
        for (size_t i = 0; i < v->as.d.count; i++)
            jj_push(r, list, v->as.d.pair[i].key);
    for (size_t at = 0, n; list && v->kind == JJ_STRING && at < v->as.s.size; at += n) {
        tm_utf8_at(v->as.s.text + at, &n);
        if (!jj_push(r, list, jj_string(r, v->as.s.text + at, n)))
            return NULL;
    }
    return list;
}

bool jj_items(jj_run *r, jj_value *v, jj_value ***item, size_t *count)
{
    *count = 0;
    *item = NULL;
    if (v->kind == JJ_UNDEFINED)
        return true;
    if (v->kind == JJ_STRING || v->kind == JJ_DICT)
        v = spread(r, v);
    else if (!jj_is_items(v))
        v = jj_fail(r, "'%s' object is not iterable", jj_type(v));
    if (!v)
        return false;
    *item = v->as.l.item ? v->as.l.item + v->as.l.at : NULL;
    *count = v->as.l.count - v->as.l.at;
    if (v->kind == JJ_ITER)
        v->as.l.at = v->as.l.count;
    return jj_work(r, 1 + *count / 8);
}

bool jj_arg_int(jj_run *r, const jj_value *v, int64_t fallback, int64_t *out)
{
    *out = fallback;
    if (!v)
        return true;
    if (v->kind != JJ_INT && v->kind != JJ_BOOL) {
        if (v->kind == JJ_UNDEFINED)
            jj_undefined_error(r, v);
        else
            jj_fail(r, "'%s' object cannot be interpreted as an integer", jj_type(v));
        return false;
    }
    *out = v->as.i;
    return true;
}
