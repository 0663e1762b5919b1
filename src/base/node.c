/* Trees of YAML and JSON: see node.h. YAML comes as libyaml's events, so depth and size are checked
 * while they arrive; JSON comes from jansson, which knows no lines, so the text is walked beside the
 * tree it has already proved valid. Every node hangs in the tree's list from the moment it exists. */
#include "base/node.h"

#include "base/file.h"
#include "base/json.h"

#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

static tm_status node_create(tm_tree *tree, tm_node_kind kind, int line, tm_node **out, tm_error *err)
{
    TM_TRY(TM_NEW(out, 1, err));
    (*out)->kind = kind;
    (*out)->line = line;
    (*out)->weight = 1;
    (*out)->next = tree->all;
    tree->all = *out;
    return TM_OK;
}

static tm_status scalar_create(tm_tree *tree, const char *text, size_t size, bool plain, int line, const char *name,
                               tm_node **out, tm_error *err)
{
    if (memchr(text, 0, size))
        return tm_fail(err, TM_RECIPE, "%s:%d: a value contains a zero byte", name, line);
    TM_TRY(node_create(tree, TM_NODE_SCALAR, line, out, err));
    (*out)->plain = plain;
    TM_TRY(TM_NEW(&(*out)->text, size + 1, err));
    memcpy((*out)->text, text, size);
    return TM_OK;
}

/* Appends to a list or, with a key, to a mapping. Takes the key. */
static tm_status node_append(tm_node *node, char *key, int line, const tm_node *value, const char *name, tm_error *err)
{
    tm_status st = TM_GROW(&node->item, &node->capacity, node->count + 1, err);
    if (st != TM_OK) {
        free(key);
        return st;
    }
    node->item[node->count++] = (tm_item){key, line, value};
    node->weight += value->weight;
    if (node->weight > TM_TREE_MAX_NODES)
        return tm_fail(err, TM_RECIPE, "%s:%d: more than %d values", name, line, TM_TREE_MAX_NODES);
    return TM_OK;
}

void tm_tree_deinit(tm_tree *tree)
{
    for (tm_node *node = tree->all, *next; node; node = next) {
        next = node->next;
        for (size_t i = 0; i < node->count; i++)
            free(node->item[i].key);
        free(node->item);
        free(node->text);
        free(node);
    }
    *tree = (tm_tree){0};
}

static int by_key(const void *a, const void *b)
{
    const tm_item *const *x = a, *const *y = b;
    int order = strcmp((*x)->key, (*y)->key);
    return order ? order : (*x)->line - (*y)->line;
}

static tm_status refuse_duplicates(const tm_node *map, const char *name, tm_error *err)
{
    const tm_item **sorted;
    TM_TRY(TM_NEW(&sorted, map->count, err));
    for (size_t i = 0; i < map->count; i++)
        sorted[i] = &map->item[i];
    qsort(sorted, map->count, sizeof *sorted, by_key);
    tm_status st = TM_OK;
    for (size_t i = 1; i < map->count && st == TM_OK; i++)
        if (strcmp(sorted[i - 1]->key, sorted[i]->key) == 0)
            st = tm_fail(err, TM_RECIPE, "%s:%d: key %s is there twice (first in line %d)", name, sorted[i]->line,
                         sorted[i]->key, sorted[i - 1]->line);
    free(sorted);
    return st;
}

/* --- YAML --- */

typedef struct anchor {
    char *name;
    const tm_node *node;
} anchor;

typedef struct yaml_reader {
    yaml_parser_t parser;
    const char *name, *text;
    size_t size;
    tm_tree *tree;
    anchor *anchors;
    size_t anchor_count, anchor_capacity;
} yaml_reader;

static int mark_line(yaml_mark_t mark) { return mark.line < 1000000000 ? (int)mark.line + 1 : 1000000000; }

static tm_status yaml_next(yaml_reader *r, yaml_event_t *event, tm_error *err)
{
    if (yaml_parser_parse(&r->parser, event))
        return TM_OK;
    const yaml_parser_t *p = &r->parser;
    if (p->error == YAML_MEMORY_ERROR)
        return tm_fail(err, TM_NO_MEMORY, "out of memory");
    int line = mark_line(p->problem_mark);
    if (p->error == YAML_READER_ERROR) { /* has a byte offset only */
        line = 1;
        for (size_t i = 0; i < p->problem_offset && i < r->size; i++)
            line += r->text[i] == '\n';
    }
    return tm_fail(err, TM_RECIPE, "%s:%d: not valid YAML: %s%s%s", r->name, line,
                   p->problem ? p->problem : "unknown error", p->context ? ", " : "", p->context ? p->context : "");
}

/* An anchor names a node once the node is complete, so a value cannot contain itself. */
static tm_status anchor_add(yaml_reader *r, const yaml_char_t *name, const tm_node *node, tm_error *err)
{
    if (!name)
        return TM_OK;
    TM_TRY(TM_GROW(&r->anchors, &r->anchor_capacity, r->anchor_count + 1, err));
    char *copy = tm_strdup((const char *)name, err);
    if (!copy)
        return TM_NO_MEMORY;
    r->anchors[r->anchor_count++] = (anchor){copy, node};
    return TM_OK;
}

static tm_status anchor_find(yaml_reader *r, const yaml_event_t *event, const tm_node **out, tm_error *err)
{
    const char *name = (const char *)event->data.alias.anchor;
    for (size_t i = r->anchor_count; i-- > 0;)
        if (strcmp(r->anchors[i].name, name) == 0) {
            *out = r->anchors[i].node;
            return TM_OK;
        }
    return tm_fail(err, TM_RECIPE, "%s:%d: alias *%s stands for nothing before it", r->name,
                   mark_line(event->start_mark), name);
}

static tm_status check_tag(yaml_reader *r, const yaml_event_t *event, const yaml_char_t *tag, const char *allowed,
                           tm_error *err)
{
    if (!tag || strcmp((const char *)tag, allowed) == 0)
        return TM_OK;
    return tm_fail(err, TM_RECIPE, "%s:%d: tag %s is not supported", r->name, mark_line(event->start_mark),
                   (const char *)tag);
}

static tm_status yaml_value(yaml_reader *r, yaml_event_t *event, int depth, const tm_node **out, tm_error *err);

/* Items up to the event that ends the collection. */
static tm_status yaml_items(yaml_reader *r, tm_node *node, int depth, tm_error *err)
{
    bool map = node->kind == TM_NODE_MAP;
    for (;;) {
        yaml_event_t event;
        TM_TRY(yaml_next(r, &event, err));
        int line = mark_line(event.start_mark);
        char *key = NULL;
        tm_status st = TM_OK;
        bool end = event.type == (map ? YAML_MAPPING_END_EVENT : YAML_SEQUENCE_END_EVENT);
        if (!end && map) {
            if (event.type != YAML_SCALAR_EVENT)
                st = tm_fail(err, TM_RECIPE, "%s:%d: a key must be a word", r->name, line);
            else if (memchr(event.data.scalar.value, 0, event.data.scalar.length))
                st = tm_fail(err, TM_RECIPE, "%s:%d: a key contains a zero byte", r->name, line);
            else if (!(key = tm_strdup((const char *)event.data.scalar.value, err)))
                st = TM_NO_MEMORY;
            yaml_event_delete(&event);
            if (st == TM_OK && (st = yaml_next(r, &event, err)) != TM_OK)
                free(key);
            if (st != TM_OK)
                return st;
        }
        const tm_node *value = NULL;
        if (!end)
            st = yaml_value(r, &event, depth, &value, err);
        yaml_event_delete(&event);
        if (end)
            return map ? refuse_duplicates(node, r->name, err) : TM_OK;
        if (st != TM_OK) {
            free(key);
            return st;
        }
        TM_TRY(node_append(node, key, line, value, r->name, err));
    }
}

/* The value that starts with event; the caller deletes the event. */
static tm_status yaml_value(yaml_reader *r, yaml_event_t *event, int depth, const tm_node **out, tm_error *err)
{
    int line = mark_line(event->start_mark);
    if (depth > TM_TREE_MAX_DEPTH)
        return tm_fail(err, TM_RECIPE, "%s:%d: nested deeper than %d", r->name, line, TM_TREE_MAX_DEPTH);
    tm_node *node = NULL;
    const yaml_char_t *name = NULL;
    switch (event->type) {
    case YAML_ALIAS_EVENT: return anchor_find(r, event, out, err);
    case YAML_SCALAR_EVENT: {
        const yaml_char_t *tag = event->data.scalar.tag;
        TM_TRY(check_tag(r, event, tag, YAML_STR_TAG, err));
        bool plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && !tag;
        TM_TRY(scalar_create(r->tree, (const char *)event->data.scalar.value, event->data.scalar.length, plain, line,
                             r->name, &node, err));
        name = event->data.scalar.anchor;
        break;
    }
    case YAML_SEQUENCE_START_EVENT:
    case YAML_MAPPING_START_EVENT: {
        bool map = event->type == YAML_MAPPING_START_EVENT;
        const yaml_char_t *tag = map ? event->data.mapping_start.tag : event->data.sequence_start.tag;
        TM_TRY(check_tag(r, event, tag, map ? YAML_MAP_TAG : YAML_SEQ_TAG, err));
        TM_TRY(node_create(r->tree, map ? TM_NODE_MAP : TM_NODE_LIST, line, &node, err));
        TM_TRY(yaml_items(r, node, depth + 1, err));
        name = map ? event->data.mapping_start.anchor : event->data.sequence_start.anchor;
        break;
    }
    default: return tm_fail(err, TM_RECIPE, "%s:%d: a value is missing", r->name, line);
    }
    *out = node;
    return anchor_add(r, name, node, err);
}

static tm_status yaml_document(yaml_reader *r, tm_error *err)
{
    for (int documents = 0;;) {
        yaml_event_t event;
        TM_TRY(yaml_next(r, &event, err));
        int line = mark_line(event.start_mark);
        tm_status st = TM_OK;
        bool end = event.type == YAML_STREAM_END_EVENT;
        switch (event.type) {
        case YAML_STREAM_START_EVENT:
        case YAML_STREAM_END_EVENT:
        case YAML_DOCUMENT_END_EVENT: break;
        case YAML_DOCUMENT_START_EVENT:
            if (documents++)
                st = tm_fail(err, TM_RECIPE, "%s:%d: a second document; a recipe is one", r->name, line);
            break;
        default: st = yaml_value(r, &event, 1, &r->tree->root, err);
        }
        yaml_event_delete(&event);
        if (end || st != TM_OK)
            return st;
    }
}

tm_status tm_tree_parse_yaml(const char *text, size_t size, const char *name, tm_tree *out, tm_error *err)
{
    *out = (tm_tree){0};
    if (size > TM_TREE_MAX_BYTES)
        return tm_fail(err, TM_RECIPE, "%s: %zu bytes; a recipe has at most %d", name, size, TM_TREE_MAX_BYTES);
    yaml_reader r = {.name = name, .text = text, .size = size, .tree = out};
    if (!yaml_parser_initialize(&r.parser))
        return tm_fail(err, TM_NO_MEMORY, "out of memory");
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, size);
    tm_status st = yaml_document(&r, err);
    yaml_parser_delete(&r.parser);
    for (size_t i = 0; i < r.anchor_count; i++)
        free(r.anchors[i].name);
    free(r.anchors);
    if (st != TM_OK)
        tm_tree_deinit(out);
    return st;
}

/* --- JSON --- */

typedef struct json_walk {
    const char *at; /* in text that jansson has accepted */
    int line;
    const char *name;
    tm_tree *tree;
} json_walk;

static void skip_space(json_walk *w)
{
    for (; *w->at == ' ' || *w->at == '\t' || *w->at == '\r' || *w->at == '\n'; w->at++)
        w->line += *w->at == '\n';
}

static void skip_string(json_walk *w)
{
    for (w->at++; *w->at != '"'; w->at++)
        w->at += *w->at == '\\';
    w->at++;
}

static tm_status json_value(json_walk *w, const json_t *value, int depth, const tm_node **out, tm_error *err);

/* One item and the comma or bracket behind it. Takes the key. */
static tm_status json_item(json_walk *w, tm_node *node, char *key, int line, const json_t *value, int depth,
                           tm_error *err)
{
    const tm_node *child;
    tm_status st = json_value(w, value, depth, &child, err);
    if (st != TM_OK) {
        free(key);
        return st;
    }
    skip_space(w);
    w->at++;
    return node_append(node, key, line, child, w->name, err);
}

static tm_status json_items(json_walk *w, tm_node *node, const json_t *value, int depth, tm_error *err)
{
    w->at++;
    if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++)
            TM_TRY(json_item(w, node, NULL, 0, json_array_get(value, i), depth, err));
    } else {
        const char *key;
        json_t *child;
        json_object_foreach((json_t *)value, key, child) { /* in the order of the text */
            skip_space(w);
            int line = w->line;
            skip_string(w);
            skip_space(w);
            w->at++;
            char *copy = tm_strdup(key, err);
            if (!copy)
                return TM_NO_MEMORY;
            TM_TRY(json_item(w, node, copy, line, child, depth, err));
        }
    }
    if (node->count == 0) {
        skip_space(w);
        w->at++;
    }
    return TM_OK;
}

static tm_status json_value(json_walk *w, const json_t *value, int depth, const tm_node **out, tm_error *err)
{
    skip_space(w);
    if (depth > TM_TREE_MAX_DEPTH)
        return tm_fail(err, TM_RECIPE, "%s:%d: nested deeper than %d", w->name, w->line, TM_TREE_MAX_DEPTH);
    tm_node *node;
    if (json_is_array(value) || json_is_object(value)) {
        TM_TRY(node_create(w->tree, json_is_array(value) ? TM_NODE_LIST : TM_NODE_MAP, w->line, &node, err));
        *out = node;
        return json_items(w, node, value, depth + 1, err);
    }
    const char *start = w->at;
    if (json_is_string(value)) {
        TM_TRY(scalar_create(w->tree, json_string_value(value), json_string_length(value), false, w->line, w->name,
                             &node, err));
        skip_string(w);
    } else { /* a number, true, false, null: its text as written */
        w->at += strspn(w->at, "+-.0123456789abcdefghijklmnopqrstuvwxyzE");
        TM_TRY(scalar_create(w->tree, start, (size_t)(w->at - start), true, w->line, w->name, &node, err));
    }
    *out = node;
    return TM_OK;
}

tm_status tm_tree_parse_json(const char *text, size_t size, const char *name, tm_tree *out, tm_error *err)
{
    *out = (tm_tree){0};
    if (size > TM_TREE_MAX_BYTES)
        return tm_fail(err, TM_RECIPE, "%s: %zu bytes; a recipe has at most %d", name, size, TM_TREE_MAX_BYTES);
    json_t *json = NULL;
    tm_status st = tm_json_parse(text, size, name, &json, err);
    if (st == TM_INPUT && err)
        err->status = TM_RECIPE;
    if (st != TM_OK)
        return st == TM_INPUT ? TM_RECIPE : st;
    /* the walk may look one byte past the last bracket, which a buffer of unknown origin may not have */
    tm_buf copy = {0};
    tm_buf_add(&copy, text, size);
    st = tm_buf_check(&copy, err);
    json_walk w = {copy.data, 1, name, out};
    if (st == TM_OK)
        st = json_value(&w, json, 1, &out->root, err);
    tm_buf_deinit(&copy);
    json_decref(json);
    if (st != TM_OK)
        tm_tree_deinit(out);
    return st;
}

tm_status tm_tree_read(const char *path, tm_tree *out, tm_error *err)
{
    *out = (tm_tree){0};
    tm_buf text = {0};
    tm_status st = tm_file_read(path, TM_TREE_MAX_BYTES, &text, err);
    size_t n = strlen(path);
    if (st == TM_INPUT) { /* it is not there, or too large */
        st = TM_RECIPE;
        if (err)
            err->status = st;
    } else if (st != TM_OK) {
        tm_buf_deinit(&text);
        return st;
    } else if (n >= 5 && strcmp(path + n - 5, ".json") == 0) {
        st = tm_tree_parse_json(tm_buf_str(&text), text.size, path, out, err);
    } else {
        st = tm_tree_parse_yaml(tm_buf_str(&text), text.size, path, out, err);
    }
    tm_buf_deinit(&text);
    return st;
}

/* --- Scalars --- */

static bool is_one_of(const char *text, const char *const *words, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(text, words[i]) == 0)
            return true;
    return false;
}

static size_t digits(const char *text) { return strspn(text, "0123456789"); }

/* [-+]? (digits [. digits?] | . digits) ([eE] [-+]? digits)? */
static bool is_number(const char *text)
{
    text += *text == '-' || *text == '+';
    size_t whole = digits(text), part = 0;
    text += whole;
    if (*text == '.') {
        part = digits(++text);
        text += part;
    }
    if (!whole && !part)
        return false;
    if (*text == 'e' || *text == 'E') {
        text++;
        text += *text == '-' || *text == '+';
        if (!digits(text))
            return false;
        text += digits(text);
    }
    return !*text;
}

tm_scalar tm_node_scalar(const tm_node *node)
{
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL"};
    static const char *const bools[] = {"true", "True", "TRUE", "false", "False", "FALSE"};
    if (node->kind != TM_NODE_SCALAR || !node->plain)
        return TM_SCALAR_STRING;
    if (is_one_of(node->text, nulls, 5))
        return TM_SCALAR_NULL;
    if (is_one_of(node->text, bools, 6))
        return TM_SCALAR_BOOL;
    return is_number(node->text) ? TM_SCALAR_NUMBER : TM_SCALAR_STRING;
}

bool tm_node_number(const tm_node *node, double *out)
{
    if (node->kind != TM_NODE_SCALAR || tm_node_scalar(node) != TM_SCALAR_NUMBER)
        return false;
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (!c)
        return false;
    *out = strtod_l(node->text, NULL, c);
    freelocale(c);
    return isfinite(*out);
}

bool tm_node_int(const tm_node *node, int64_t *out)
{
    double number;
    if (!tm_node_number(node, &number))
        return false;
    const char *text = node->text + (*node->text == '-' || *node->text == '+');
    if (digits(text) == strlen(text)) { /* exactly, beyond 2^53 too */
        bool negative = *node->text == '-';
        int64_t value = 0;
        for (; *text; text++) {
            int digit = negative ? '0' - *text : *text - '0';
            if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, digit, &value))
                return false;
        }
        *out = value;
        return true;
    }
    if (fabs(number) > 0x1p53 || number != floor(number))
        return false;
    *out = (int64_t)number;
    return true;
}

bool tm_node_true(const tm_node *node)
{
    return tm_node_scalar(node) == TM_SCALAR_BOOL && (node->text[0] == 't' || node->text[0] == 'T');
}

const char *tm_node_describe(const tm_node *node, char text[96])
{
    if (node->kind != TM_NODE_SCALAR) {
        bool list = node->kind == TM_NODE_LIST;
        if (list && node->count)
            snprintf(text, 96, "a list of %zu", node->count);
        else
            snprintf(text, 96, "%s %s", node->count ? "a" : "an empty", list ? "list" : "mapping");
        return text;
    }
    tm_scalar kind = tm_node_scalar(node);
    if (kind == TM_SCALAR_NULL)
        return "nothing (null)";
    int n = (int)strnlen(node->text, 60);
    while (n > 0 && n == 60 && ((unsigned char)node->text[n] & 0xC0) == 0x80) /* not inside a character */
        n--;
    bool quote = kind == TM_SCALAR_STRING;
    snprintf(text, 96, "%s%s%.*s%s%s",
             kind == TM_SCALAR_NUMBER ? "the number "
             : quote                  ? "the string "
                                      : "",
             quote ? "\"" : "", n, node->text, node->text[n] ? "..." : "", quote ? "\"" : "");
    return text;
}
