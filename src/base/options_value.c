/* One value of a recipe: from the text of a node into a field, with its type and range checked. */
#include "base/options_table.h"

#include "base/json.h"

#include <stdlib.h>
#include <string.h>

/* An interval as the table writes it: "[0,1)", "(0,)", "int [1,9]", "[0,) %". */
typedef struct interval {
    double low, high; /* high INFINITY: none */
    bool low_open, high_open, whole, percent;
} interval;

/* The table's numbers are plain decimal digits, so no locale is asked. */
static double table_number(const char **at)
{
    double value = 0;
    bool negative = **at == '-';
    *at += negative;
    for (; **at >= '0' && **at <= '9'; (*at)++)
        value = value * 10 + (**at - '0');
    return negative ? -value : value;
}

static interval interval_parse(const char *text)
{
    interval in = {.high = (double)INFINITY};
    in.whole = strncmp(text, "int ", 4) == 0;
    text += in.whole ? 4 : 0;
    in.low_open = *text++ == '(';
    in.low = table_number(&text);
    text++; /* the comma */
    if (*text >= '0' && *text <= '9')
        in.high = table_number(&text);
    in.high_open = *text == ')';
    in.percent = strchr(text, '%') != NULL;
    return in;
}

static bool inside(const char *allowed, double value)
{
    if (!allowed)
        return true;
    interval in = interval_parse(allowed);
    return (in.low_open ? value > in.low : value >= in.low) && (in.high_open ? value < in.high : value <= in.high);
}

static void interval_text(const char *allowed, tm_buf *out)
{
    if (!allowed)
        return;
    interval in = interval_parse(allowed);
    if (isinf(in.high))
        tm_buf_printf(out, in.low_open ? " above %.0f" : " of at least %.0f", in.low);
    else if (!in.low_open && !in.high_open)
        tm_buf_printf(out, " from %.0f to %.0f", in.low, in.high);
    else
        tm_buf_printf(out, " in %c%.0f, %.0f%c", in.low_open ? '(' : '[', in.low, in.high, in.high_open ? ')' : ']');
    if (in.percent)
        tm_buf_text(out, " or a percentage");
}

/* "a|b=x|c:#" as "a, b, c:N"; the first name of each only. */
static void choices_text(const char *allowed, tm_buf *out)
{
    const char *at = allowed, *word;
    size_t size;
    for (bool first = true; tm_next_word(&at, "|", &word, &size); first = false) {
        const char *equal = memchr(word, '=', size);
        tm_buf_text(out, first ? "" : ", ");
        size_t n = equal ? (size_t)(equal - word) : size;
        bool number = word[n - 1] == '#', any = word[n - 1] == '*';
        tm_buf_add(out, word, n - (number || any));
        tm_buf_text(out, number ? "N" : any ? "..." : "");
    }
}

void tm_option_expected(const tm_option *o, tm_buf *out)
{
    switch (o->type) {
    case TM_OPT_BOOL: tm_buf_text(out, "true or false"); break;
    case TM_OPT_INT:
    case TM_OPT_AUTO_INT:
        tm_buf_text(out, "a whole number");
        interval_text(o->allowed, out);
        tm_buf_text(out, o->type == TM_OPT_AUTO_INT ? ", or auto" : "");
        break;
    case TM_OPT_NUMBER:
    case TM_OPT_AUTO_NUMBER:
        tm_buf_text(out, "a number");
        interval_text(o->allowed, out);
        tm_buf_text(out, o->type == TM_OPT_AUTO_NUMBER ? ", or auto" : "");
        break;
    case TM_OPT_STRING:
    case TM_OPT_CHOICE:
        if (!o->allowed)
            tm_buf_text(out, "text");
        else
            tm_buf_text(out, "one of "), choices_text(o->allowed, out);
        break;
    case TM_OPT_PATH: tm_buf_text(out, "a path"); break;
    case TM_OPT_STRINGS: tm_buf_text(out, "a name or a list of names"); break;
    case TM_OPT_MAP:
        if (o->allowed && strchr(o->allowed, '|')) {
            tm_buf_text(out, "a mapping to names with keys out of ");
            choices_text(o->allowed, out);
        } else {
            tm_buf_text(out, "a mapping of names to numbers");
            interval_text(o->allowed, out);
        }
        break;
    case TM_OPT_LIST: tm_buf_text(out, "a file name, an entry or a list of entries"); break;
    case TM_OPT_FIXED: tm_buf_printf(out, "%s (all that is supported so far)", o->fallback); break;
    }
}

/* Message: "expected ..., found ...". */
static tm_status mismatch(const tm_option *o, const tm_node *node, tm_error *err)
{
    char found[96];
    tm_buf expected = {0};
    tm_option_expected(o, &expected);
    tm_status st = tm_buf_check(&expected, err);
    if (st == TM_OK)
        st = tm_fail(err, TM_RECIPE, "expected %s, found %s", tm_buf_str(&expected), tm_node_describe(node, found));
    tm_buf_deinit(&expected);
    return st;
}

static bool is_word(const tm_node *node, const char *word)
{
    return node->kind == TM_NODE_SCALAR && strcmp(node->text, word) == 0;
}

static tm_status set_int(const tm_option *o, int64_t *field, const tm_node *node, tm_error *err)
{
    int64_t value;
    if (o->type == TM_OPT_AUTO_INT && is_word(node, "auto"))
        value = TM_AUTO_INT;
    else if (!tm_node_int(node, &value) || !inside(o->allowed, (double)value))
        return mismatch(o, node, err);
    *field = value;
    return TM_OK;
}

/* "2%" as 0.02 where the table allows it. */
static bool percentage(const tm_option *o, const tm_node *node, double *out)
{
    size_t n = node->kind == TM_NODE_SCALAR ? strlen(node->text) : 0;
    if (n < 2 || n > 32 || node->text[n - 1] != '%' || !interval_parse(o->allowed ? o->allowed : "[0,)").percent)
        return false;
    char digits[33];
    memcpy(digits, node->text, n - 1);
    digits[n - 1] = 0;
    tm_node number = {.kind = TM_NODE_SCALAR, .plain = true, .text = digits};
    if (!tm_node_number(&number, out))
        return false;
    *out /= 100;
    return true;
}

static tm_status set_number(const tm_option *o, double *field, const tm_node *node, tm_error *err)
{
    double value;
    if (o->type == TM_OPT_AUTO_NUMBER && is_word(node, "auto"))
        value = TM_AUTO_NUMBER;
    else if ((!tm_node_number(node, &value) && !percentage(o, node, &value)) || !inside(o->allowed, value))
        return mismatch(o, node, err);
    *field = value == 0 ? 0 : value; /* -0 is 0 */
    return TM_OK;
}

static tm_status set_bool(const tm_option *o, bool *field, const tm_node *node, tm_error *err)
{
    if (tm_node_scalar(node) != TM_SCALAR_BOOL)
        return mismatch(o, node, err);
    *field = tm_node_true(node);
    return TM_OK;
}

/* Text matches one of "cpu|cuda:#|eval.*". */
static bool matches(const char *allowed, const char *text)
{
    const char *at = allowed, *word;
    size_t size;
    while (tm_next_word(&at, "|", &word, &size)) {
        char last = word[size - 1];
        if (last != '#' && last != '*') {
            if (strlen(text) == size && memcmp(text, word, size) == 0)
                return true;
        } else if (strncmp(text, word, size - 1) == 0) {
            const char *rest = text + size - 1;
            if (*rest && (last == '*' || (strlen(rest) <= 4 && strspn(rest, "0123456789") == strlen(rest))))
                return true;
        }
    }
    return false;
}

static bool is_text(const tm_node *node)
{
    tm_scalar kind = tm_node_scalar(node);
    return node->kind == TM_NODE_SCALAR && (kind == TM_SCALAR_STRING || kind == TM_SCALAR_NUMBER);
}

/* Null is none where the default is none. */
static tm_status set_string(const tm_option *o, char **field, const tm_node *node, tm_error *err)
{
    char *copy = NULL;
    bool none = tm_node_scalar(node) == TM_SCALAR_NULL || is_word(node, "");
    if (none ? *o->fallback != 0 : !is_text(node) || (o->allowed && !matches(o->allowed, node->text)))
        return mismatch(o, node, err);
    if (!none && !(copy = tm_strdup(node->text, err)))
        return TM_NO_MEMORY;
    free(*field);
    *field = copy;
    return TM_OK;
}

/* Index of the choice that text names or is a synonym of; -1: none. */
static int choice_find(const char *allowed, const char *text)
{
    const char *at = allowed, *word;
    size_t size, n = strlen(text);
    for (int i = 0; tm_next_word(&at, "|", &word, &size); i++) {
        const char *end = word + size, *name = word;
        while (name < end) {
            const char *stop = memchr(name, '=', (size_t)(end - name));
            stop = stop ? stop : end;
            if ((size_t)(stop - name) == n && memcmp(name, text, n) == 0)
                return i;
            name = stop + 1;
        }
    }
    return -1;
}

static tm_status set_choice(const tm_option *o, int *field, const tm_node *node, tm_error *err)
{
    int choice = node->kind == TM_NODE_SCALAR ? choice_find(o->allowed, node->text) : -1;
    if (choice >= 0) {
        *field = choice;
        return TM_OK;
    }
    tm_names names = {0};
    const char *at = o->allowed, *word, *near = NULL;
    size_t size;
    tm_status st = mismatch(o, node, err);
    while (node->kind == TM_NODE_SCALAR && tm_next_word(&at, "|", &word, &size)) {
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "=|"), word);
        if (tm_names_add(&names, name, NULL) != TM_OK)
            break;
    }
    if (names.count && *node->text)
        near = tm_nearest(node->text, (const char *const *)names.item, (size_t)names.count);
    if (near && err) {
        size_t used = strlen(err->message);
        snprintf(err->message + used, sizeof err->message - used, "; did you mean %s?", near);
    }
    tm_names_deinit(&names);
    return st;
}

static tm_status set_strings(const tm_option *o, tm_names *field, const tm_node *node, tm_error *err)
{
    tm_names names = {0};
    tm_status st = TM_OK;
    bool empty = tm_node_scalar(node) == TM_SCALAR_NULL || (node->plain && is_word(node, "[]"));
    if (node->kind == TM_NODE_LIST) {
        for (size_t i = 0; i < node->count && st == TM_OK; i++) {
            const tm_node *value = node->item[i].value;
            st = is_text(value) && *value->text ? tm_names_add(&names, value->text, err) : mismatch(o, value, err);
        }
    } else if (!empty) {
        st = is_text(node) && *node->text ? tm_names_add(&names, node->text, err) : mismatch(o, node, err);
    }
    if (st != TM_OK) {
        tm_names_deinit(&names);
        return st;
    }
    tm_names_deinit(field);
    *field = names;
    return TM_OK;
}

static int by_key(const void *a, const void *b)
{
    return strcmp((*(const tm_item *const *)a)->key, (*(const tm_item *const *)b)->key);
}

/* A MAP to names out of a list of keys, else one of patterns to numbers (any where nothing is said). */
static bool is_names(const tm_option *o) { return o->allowed && strchr(o->allowed, '|') != NULL; }

static tm_status map_check(const tm_option *o, const tm_item *item, tm_error *err)
{
    double number;
    int64_t whole;
    bool ok = is_names(o) ? is_text(item->value) && *item->value->text && matches(o->allowed, item->key)
                          : tm_node_number(item->value, &number) && inside(o->allowed, number) &&
                                (!o->allowed || !interval_parse(o->allowed).whole || tm_node_int(item->value, &whole));
    if (ok)
        return TM_OK;
    return tm_fail_prefix(err, mismatch(o, item->value, err), "%s", item->key);
}

/* Numbers in one form, so that 8 and 8.0 are the same recipe. */
static tm_status map_value(const tm_option *o, const tm_node *value, tm_names *values, tm_error *err)
{
    double number;
    if (is_names(o) || !tm_node_number(value, &number))
        return tm_names_add(values, value->text, err);
    tm_buf text = {0};
    tm_json_put_number(&text, number);
    tm_status st = tm_buf_check(&text, err);
    if (st == TM_OK)
        st = tm_names_add(values, text.data, err);
    tm_buf_deinit(&text);
    return st;
}

/* Names go into the order of their keys, so that a recipe written in another order is the same; patterns
 * keep theirs, because the first that matches counts. */
static tm_status set_map(const tm_option *o, tm_string_map *field, const tm_node *node, tm_error *err)
{
    tm_string_map map = {0};
    const tm_item **sorted = NULL;
    tm_status st = TM_OK;
    bool empty = tm_node_scalar(node) == TM_SCALAR_NULL || (node->plain && is_word(node, "{}"));
    if (!empty && node->kind != TM_NODE_MAP)
        return mismatch(o, node, err);
    TM_TRY(TM_NEW(&sorted, node->count, err));
    for (size_t i = 0; i < node->count; i++)
        sorted[i] = &node->item[i];
    if (is_names(o))
        qsort(sorted, node->count, sizeof *sorted, by_key);
    for (size_t i = 0; i < node->count; i++) {
        TM_GO(map_check(o, sorted[i], err));
        TM_GO(tm_names_add(&map.keys, sorted[i]->key, err));
        TM_GO(map_value(o, sorted[i]->value, &map.values, err));
    }
    tm_names_deinit(&field->keys);
    tm_names_deinit(&field->values);
    *field = map;
out:
    free(sorted);
    if (st != TM_OK) {
        tm_names_deinit(&map.keys);
        tm_names_deinit(&map.values);
    }
    return st;
}

tm_status tm_option_set(const tm_option *o, void *base, const tm_node *node, tm_error *err)
{
    void *field = (char *)base + o->offset;
    switch (o->type) {
    case TM_OPT_BOOL: return set_bool(o, field, node, err);
    case TM_OPT_INT:
    case TM_OPT_AUTO_INT: return set_int(o, field, node, err);
    case TM_OPT_NUMBER:
    case TM_OPT_AUTO_NUMBER: return set_number(o, field, node, err);
    case TM_OPT_STRING:
    case TM_OPT_PATH: return set_string(o, field, node, err);
    case TM_OPT_CHOICE: return set_choice(o, field, node, err);
    case TM_OPT_STRINGS: return set_strings(o, field, node, err);
    case TM_OPT_MAP: return set_map(o, field, node, err);
    case TM_OPT_FIXED:
        if (is_word(node, o->fallback) || tm_node_scalar(node) == TM_SCALAR_NULL)
            return TM_OK;
        return mismatch(o, node, err);
    case TM_OPT_LIST: break; /* by the loader */
    }
    return TM_OK;
}

tm_status tm_option_set_default(const tm_option *o, void *base, tm_error *err)
{
    tm_node node = {.kind = TM_NODE_SCALAR, .plain = true, .text = (char *)o->fallback, .weight = 1};
    if (o->type == TM_OPT_STRINGS && *o->fallback == '[') {
        tm_tree tree;
        TM_TRY(tm_tree_parse_yaml(o->fallback, strlen(o->fallback), o->key, &tree, err));
        tm_status st = tm_option_set(o, base, tree.root, err);
        tm_tree_deinit(&tree);
        return st;
    }
    return o->type == TM_OPT_LIST || o->type == TM_OPT_FIXED ? TM_OK : tm_option_set(o, base, &node, err);
}

void tm_option_free(const tm_option *o, void *base)
{
    void *field = (char *)base + o->offset;
    if (o->type == TM_OPT_STRING || o->type == TM_OPT_PATH) {
        free(*(char **)field);
        *(char **)field = NULL;
    } else if (o->type == TM_OPT_STRINGS) {
        tm_names_deinit(field);
    } else if (o->type == TM_OPT_MAP) {
        tm_string_map *map = field;
        tm_names_deinit(&map->keys);
        tm_names_deinit(&map->values);
    }
}
