/* Loading a recipe: a tree of values is walked against the table of options, then arguments, then what
 * only makes sense together is checked.
 *
 * Invariants: every field has its default before the first key is looked at, so a recipe can be freed
 * at any point; a line is positive when it is one of the file, -(i + 1) when it means override i of n,
 * -(n + line) when it is one of the layers' file, and 0 when none of these (negative lines become 0
 * before the recipe is handed out). */
#include "base/options_table.h"

#include "base/file.h"
#include "base/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { MAX_ENTRIES = 1000, MAX_KEY = 200 };

typedef struct loader {
    tm_recipe *recipe;
    const char *path;
    char *const *overrides;
    int override_count;
    int override;       /* the one being applied; -1: a file */
    const char *layers; /* the file that layers come from */
    bool in_layer;
    int *lines; /* where each row of the recipe's table was set */
    tm_error *err;
} loader;

static const tm_option_table *const recipe_table = &tm_option_tables[TM_TABLE_RECIPE];

/* "recipe.yaml:12: " or "argument train.lr=x: ". */
static void place(const loader *l, int line, char *text, size_t size)
{
    if (line < -l->override_count)
        snprintf(text, size, "%s:%d: ", l->layers, -line - l->override_count);
    else if (line < 0)
        snprintf(text, size, "argument %s: ", l->overrides[-line - 1]);
    else if (line > 0 && l->path)
        snprintf(text, size, "%s:%d: ", l->path, line);
    else
        snprintf(text, size, "%s%s", l->path ? l->path : "recipe", ": ");
}

static tm_status refuse(const loader *l, int line, const char *fmt, ...) TM_PRINTF(3, 4);
static tm_status refuse(const loader *l, int line, const char *fmt, ...)
{
    char where[512], what[512];
    place(l, line, where, sizeof where);
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return tm_fail(l->err, TM_RECIPE, "%s%s", where, what);
}

/* Puts place and key before a message of tm_option_set. */
static tm_status located(const loader *l, int line, const char *key, tm_status st)
{
    if (st != TM_RECIPE || !l->err)
        return st;
    char where[512];
    place(l, line, where, sizeof where);
    return tm_fail_prefix(l->err, st, "%s%s", where, key);
}

/* --- Finding options --- */

/* key is the alias itself or the alias in the group of the option it stands for. */
static bool is_alias(const tm_option *o, const char *key, tm_alias *alias)
{
    const char *at = o->aliases ? o->aliases : "";
    size_t group = tm_key_group(o->key), n = strlen(key);
    while (tm_next_alias(&at, alias)) {
        if (n == alias->size && memcmp(key, alias->name, n) == 0)
            return true;
        if (group && n == group + 1 + alias->size && memcmp(key, o->key, group + 1) == 0 &&
            memcmp(key + group + 1, alias->name, alias->size) == 0)
            return true;
    }
    return false;
}

/* alias->name NULL: the key is the option's own. */
static const tm_option *option_find(const tm_option_table *table, const char *key, tm_alias *alias)
{
    *alias = (tm_alias){0};
    for (size_t i = 0; i < table->count; i++)
        if (strcmp(table->row[i].key, key) == 0)
            return &table->row[i];
    for (size_t i = 0; i < table->count; i++)
        if (is_alias(&table->row[i], key, alias))
            return &table->row[i];
    return NULL;
}

/* The row of a key that is in the table. */
static int line_of(const loader *l, const char *key)
{
    tm_alias alias;
    return l->lines[option_find(recipe_table, key, &alias) - recipe_table->row];
}

/* What a value under an alias means: itself, or `other` (with text to hold its word) by the alias's list;
 * NULL: as if the key were not there. */
static const tm_node *translate(const tm_alias *alias, const tm_node *node, tm_node *other, char text[64])
{
    if (!alias->values || node->kind != TM_NODE_SCALAR)
        return node;
    size_t n = strlen(node->text);
    const char *at = alias->values, *end = at + strcspn(at, ")");
    while (at < end) {
        size_t theirs = strcspn(at, "="), ours = strcspn(at + theirs + 1, ",)");
        if (theirs == n && strncasecmp(at, node->text, n) == 0) {
            snprintf(text, 64, "%.*s", (int)ours, at + theirs + 1);
            *other = (tm_node){.kind = TM_NODE_SCALAR, .line = node->line, .plain = true, .text = text, .weight = 1};
            return ours ? other : NULL;
        }
        at += theirs + 1 + ours + 1;
    }
    return node;
}

static bool is_group(const char *key)
{
    size_t n = strlen(key);
    for (size_t i = 0; i < recipe_table->count; i++)
        if (strncmp(recipe_table->row[i].key, key, n) == 0 && recipe_table->row[i].key[n] == '.')
            return true;
    return false;
}

/* All that a key might have been meant to be: keys, their groups, aliases. */
static tm_status candidates(const tm_option_table *table, tm_names *names, tm_error *err)
{
    for (size_t i = 0; i < table->count; i++) {
        const tm_option *o = &table->row[i];
        TM_TRY(tm_names_add(names, o->key, err));
        char word_text[MAX_KEY];
        for (const char *dot = strchr(o->key, '.'); dot; dot = strchr(dot + 1, '.')) {
            snprintf(word_text, sizeof word_text, "%.*s", (int)(dot - o->key), o->key);
            if (!tm_names_contain(names, word_text))
                TM_TRY(tm_names_add(names, word_text, err));
        }
        const char *at = o->aliases ? o->aliases : "";
        for (tm_alias alias; tm_next_alias(&at, &alias);) {
            snprintf(word_text, sizeof word_text, "%.*s", (int)alias.size, alias.name);
            TM_TRY(tm_names_add(names, word_text, err));
        }
    }
    return TM_OK;
}

/* A key of the same last name in another group ("lr" for train.lr), else the nearest by letters. */
static const char *suggestion(const tm_names *names, const char *key)
{
    const char *last = strrchr(key, '.');
    last = last ? last + 1 : key;
    for (int64_t i = 0; i < names->count; i++) {
        const char *dot = strrchr(names->item[i], '.');
        if (strcmp(dot ? dot + 1 : names->item[i], last) == 0)
            return names->item[i];
    }
    return tm_nearest(key, (const char *const *)names->item, (size_t)names->count);
}

static tm_status unknown_key(const loader *l, const tm_option_table *table, int line, const char *key)
{
    tm_names names = {0};
    tm_status st = candidates(table, &names, l->err);
    const char *near = st == TM_OK ? suggestion(&names, key) : NULL;
    const char *list = table->name, *dot = *list ? "." : "";
    if (st == TM_OK)
        st = near ? refuse(l, line, "unknown key %s%s%s; did you mean %s?", list, dot, key, near)
                  : refuse(l, line, "unknown key %s%s%s; docs/recipe.md lists all keys", list, dot, key);
    tm_names_deinit(&names);
    return st;
}

/* "learning_rate -> train.lr", and with what a value was translated to "bf16: true -> precision: bf16". */
static tm_status note_alias(loader *l, const char *key, const tm_option *o, const char *list, const tm_node *theirs,
                            const tm_node *ours)
{
    char text[2 * MAX_KEY + 256];
    const char *dot = *list ? "." : "";
    if (theirs == ours)
        snprintf(text, sizeof text, "%s%s%s -> %s%s%s", list, dot, key, list, dot, o->key);
    else
        snprintf(text, sizeof text, "%s%s%s: %.60s -> %s%s%s%s%s", list, dot, key, theirs->text, list, dot, o->key,
                 ours ? ": " : " is not set", ours ? ours->text : "");
    return tm_names_contain(&l->recipe->aliases_used, text) ? TM_OK
                                                            : tm_names_add(&l->recipe->aliases_used, text, l->err);
}

/* --- Entries of lists --- */

static tm_status defaults(const tm_option_table *table, void *base, tm_error *err)
{
    for (size_t i = 0; i < table->count; i++)
        TM_TRY(tm_option_set_default(&table->row[i], base, err));
    return TM_OK;
}

static void release(const tm_option_table *table, void *base)
{
    for (size_t i = 0; i < table->count; i++)
        tm_option_free(&table->row[i], base);
}

static bool is_data(const tm_option_table *table) { return table == &tm_option_tables[TM_TABLE_DATA]; }

/* Evaluations hold a data entry of which their own table names a part only. */
static tm_status entry_init(const tm_option_table *table, void *entry, tm_error *err)
{
    memset(entry, 0, table->size);
    if (is_data(table))
        return defaults(table, entry, err);
    TM_TRY(defaults(&tm_option_tables[TM_TABLE_DATA], &((tm_eval_entry *)entry)->data, err));
    return defaults(&tm_option_tables[TM_TABLE_PROBE], entry, err);
}

static void entry_deinit(const tm_option_table *table, void *entry)
{
    if (!is_data(table)) {
        release(&tm_option_tables[TM_TABLE_PROBE], entry);
        entry = &((tm_eval_entry *)entry)->data;
    }
    release(&tm_option_tables[TM_TABLE_DATA], entry);
}

static void entry_set_line(const tm_option_table *table, void *entry, int line)
{
    *(int *)entry = line; /* the first member of both */
    if (!is_data(table))
        ((tm_eval_entry *)entry)->data.line = line;
}

static tm_status entry_set(loader *l, const tm_option_table *table, void *entry, int line, const char *key,
                           const tm_node *value, int *lines)
{
    tm_alias alias;
    tm_node other;
    char text[64];
    const tm_option *o = option_find(table, key, &alias);
    if (!o)
        return unknown_key(l, table, line, key);
    const tm_node *ours = translate(&alias, value, &other, text);
    if (alias.name)
        TM_TRY(note_alias(l, key, o, table->name, value, ours));
    if (!ours)
        return TM_OK;
    size_t i = (size_t)(o - table->row);
    char name[2 * MAX_KEY];
    snprintf(name, sizeof name, "%s.%s", table->name, key);
    if (lines && lines[i])
        return refuse(l, line, "%s.%s is set twice (first in line %d)", table->name, o->key, lines[i]);
    if (lines)
        lines[i] = line;
    if (strcmp(o->key, "path") == 0)
        entry_set_line(table, entry, line);
    return located(l, line, name, tm_option_set(o, entry, ours, l->err));
}

/* The line of what stands in the line `own` of its file, within something of `line`. */
static int inner_line(const loader *l, int line, int own)
{
    if (l->override >= 0 || own <= 0)
        return line;
    return l->in_layer ? -(l->override_count + own) : own;
}

/* An entry as a whole: a mapping, or the name of a file. */
static tm_status entry_fill(loader *l, const tm_option_table *table, void *entry, int line, const tm_node *node)
{
    entry_set_line(table, entry, line);
    if (node->kind == TM_NODE_SCALAR && tm_node_scalar(node) == TM_SCALAR_STRING)
        return entry_set(l, table, entry, line, "path", node, NULL);
    if (node->kind != TM_NODE_MAP) {
        char found[96];
        return refuse(l, line, "%s: expected a file name or a mapping with path, found %s", table->name,
                      tm_node_describe(node, found));
    }
    int lines[64] = {0};
    for (size_t i = 0; i < node->count; i++)
        TM_TRY(entry_set(l, table, entry, inner_line(l, line, node->item[i].line), node->item[i].key, node->item[i].value,
                         line < 0 ? NULL : lines));
    entry_set_line(table, entry, line);
    return TM_OK;
}

static tm_status entry_append(loader *l, const tm_option *list, int line, void **out)
{
    const tm_option_table *table = tm_option_entries(list);
    void **array = tm_list_array(l->recipe, list);
    int64_t *count = tm_list_count(l->recipe, list);
    if (*count >= MAX_ENTRIES)
        return refuse(l, line, "%s: more than %d entries", list->key, MAX_ENTRIES);
    void *grown = realloc(*array, (size_t)(*count + 1) * table->size);
    if (!grown)
        return tm_fail(l->err, TM_NO_MEMORY, "out of memory");
    *array = grown;
    *out = tm_entry_at(table, grown, *count);
    tm_status st = entry_init(table, *out, l->err);
    if (st != TM_OK) {
        entry_deinit(table, *out);
        return st;
    }
    ++*count;
    return TM_OK;
}

static void list_clear(tm_recipe *recipe, const tm_option *list)
{
    const tm_option_table *table = tm_option_entries(list);
    void **array = tm_list_array(recipe, list);
    int64_t *count = tm_list_count(recipe, list);
    for (int64_t i = 0; i < *count; i++)
        entry_deinit(table, tm_entry_at(table, *array, i));
    free(*array);
    *array = NULL;
    *count = 0;
}

/* The whole list: a list of entries, one entry, or nothing. */
static tm_status list_set(loader *l, const tm_option *list, int line, const tm_node *node)
{
    const tm_option_table *table = tm_option_entries(list);
    list_clear(l->recipe, list);
    void *entry;
    if (node->kind == TM_NODE_LIST) {
        for (size_t i = 0; i < node->count; i++) {
            const tm_node *value = node->item[i].value;
            TM_TRY(entry_append(l, list, line, &entry));
            TM_TRY(entry_fill(l, table, entry, inner_line(l, line, value->line), value));
        }
        return TM_OK;
    }
    if (node->kind == TM_NODE_SCALAR && tm_node_scalar(node) == TM_SCALAR_NULL)
        return TM_OK;
    TM_TRY(entry_append(l, list, line, &entry));
    return entry_fill(l, table, entry, line, node);
}

/* "0.path", "0", or "path" where the list has at most one entry. */
static tm_status list_set_part(loader *l, const tm_option *list, const char *rest, int line, const tm_node *node)
{
    const tm_option_table *table = tm_option_entries(list);
    int64_t count = *tm_list_count(l->recipe, list), index = 0;
    size_t digits = strspn(rest, "0123456789");
    bool numbered = digits > 0 && digits < 6 && (!rest[digits] || rest[digits] == '.');
    if (numbered)
        index = strtol(rest, NULL, 10);
    else if (count > 1)
        return refuse(l, line, "%s has %lld entries: write %s.0.%s", list->key, (long long)count, list->key, rest);
    if (index > count)
        return refuse(l, line, "%s.%lld: there are %lld entries, the next is %s.%lld", list->key, (long long)index,
                      (long long)count, list->key, (long long)count);
    void *entry;
    if (index == count)
        TM_TRY(entry_append(l, list, line, &entry));
    entry = tm_entry_at(table, *tm_list_array(l->recipe, list), index);
    if (numbered && !rest[digits]) {
        entry_deinit(table, entry);
        TM_TRY(entry_init(table, entry, l->err));
        return entry_fill(l, table, entry, line, node);
    }
    return entry_set(l, table, entry, line, numbered ? rest + digits + 1 : rest, node, NULL);
}

/* --- Keys of the recipe --- */

static tm_status mark_set(loader *l, const tm_option *o, int line)
{
    int *set = &l->lines[o - recipe_table->row];
    if (line > 0 && *set > 0)
        return refuse(l, line, "%s is set twice (first in line %d)", o->key, *set);
    *set = line;
    return TM_OK;
}

static tm_status set_betas(loader *l, int line, const tm_node *node)
{
    if (node->kind != TM_NODE_LIST || node->count != 2) {
        char found[96];
        return refuse(l, line, "train.betas: expected a list of two numbers, found %s", tm_node_describe(node, found));
    }
    static const char *const keys[] = {"train.beta1", "train.beta2"};
    for (int i = 0; i < 2; i++) {
        tm_alias alias;
        const tm_option *o = option_find(recipe_table, keys[i], &alias);
        TM_TRY(mark_set(l, o, line));
        TM_TRY(located(l, line, "train.betas", tm_option_set(o, l->recipe, node->item[i].value, l->err)));
    }
    return TM_OK;
}

static tm_status apply_map(loader *l, const char *group, const tm_node *map);

/* A group as a whole. Null in the file leaves the defaults; null as an argument goes back to them. */
static tm_status apply_group(loader *l, const char *key, int line, const tm_node *node)
{
    if (node->kind == TM_NODE_MAP)
        return apply_map(l, key, node);
    if (node->kind != TM_NODE_SCALAR || tm_node_scalar(node) != TM_SCALAR_NULL) {
        char found[96];
        return refuse(l, line, "%s: expected a mapping of keys, found %s", key, tm_node_describe(node, found));
    }
    size_t n = strlen(key);
    for (size_t i = 0; i < recipe_table->count && line < 0; i++) {
        const tm_option *o = &recipe_table->row[i];
        if (strncmp(o->key, key, n) != 0 || o->key[n] != '.')
            continue;
        if (o->type == TM_OPT_LIST)
            list_clear(l->recipe, o);
        TM_TRY(tm_option_set_default(o, l->recipe, l->err));
    }
    return TM_OK;
}

static tm_status apply(loader *l, const char *key, int line, const tm_node *node)
{
    tm_alias alias;
    tm_node other;
    char text[64];
    const tm_option *o = option_find(recipe_table, key, &alias);
    if (o) {
        const tm_node *ours = translate(&alias, node, &other, text);
        if (alias.name)
            TM_TRY(note_alias(l, key, o, "", node, ours));
        if (!ours)
            return TM_OK;
        TM_TRY(mark_set(l, o, line));
        if (o->type == TM_OPT_LIST)
            return list_set(l, o, line, node);
        return located(l, line, key, tm_option_set(o, l->recipe, ours, l->err));
    }
    if (strcmp(key, "train.betas") == 0)
        return set_betas(l, line, node);
    for (size_t i = 0; i < recipe_table->count; i++) {
        const tm_option *list = &recipe_table->row[i];
        size_t n = strlen(list->key);
        if (list->type == TM_OPT_LIST && strncmp(key, list->key, n) == 0 && key[n] == '.')
            return list_set_part(l, list, key + n + 1, line, node);
    }
    return is_group(key) ? apply_group(l, key, line, node) : unknown_key(l, recipe_table, line, key);
}

static tm_status apply_map(loader *l, const char *group, const tm_node *map)
{
    for (size_t i = 0; i < map->count; i++) {
        const tm_item *item = &map->item[i];
        int line = inner_line(l, -(l->override + 1), item->line);
        char key[MAX_KEY];
        int n = snprintf(key, sizeof key, "%s%s%s", group, *group ? "." : "", item->key);
        if (n < 0 || (size_t)n >= sizeof key)
            return refuse(l, line, "unknown key %.80s... (too long)", item->key);
        TM_TRY(apply(l, key, line, item->value));
    }
    return TM_OK;
}

static bool has_key(const tm_node *map, const char *key)
{
    for (size_t i = 0; i < map->count; i++)
        if (strcmp(map->item[i].key, key) == 0)
            return true;
    return false;
}

static tm_status apply_file(loader *l)
{
    tm_tree tree;
    TM_TRY(tm_tree_read(l->path, &tree, l->err));
    tm_status st = TM_OK;
    char found[96];
    if (tree.root && tree.root->kind == TM_NODE_MAP && has_key(tree.root, "tasks") && has_key(tree.root, "arms"))
        st = refuse(l, tree.root->line, "expected a recipe, found a sequence of tasks; it is for: temper sequence %s", l->path);
    else if (tree.root && tree.root->kind == TM_NODE_MAP)
        st = apply_map(l, "", tree.root);
    else if (tree.root)
        st = refuse(l, tree.root->line, "expected a mapping of keys, found %s", tm_node_describe(tree.root, found));
    tm_tree_deinit(&tree);
    return st;
}

/* key=value. The value is YAML where it starts like a flow collection or a quoted string; anything
 * else is one plain word, so that no path needs quoting twice. */
static tm_status apply_override(loader *l)
{
    const char *text = l->overrides[l->override], *equal = strchr(text, '=');
    int line = -(l->override + 1);
    char key[MAX_KEY];
    if (!equal || equal == text || (size_t)(equal - text) >= sizeof key)
        return refuse(l, line, "expected key=value");
    snprintf(key, sizeof key, "%.*s", (int)(equal - text), text);
    const char *value = equal + 1;
    if (!tm_utf8_valid(text, strlen(text)))
        return refuse(l, 0, "an argument is not valid UTF-8");
    if (!*value || !strchr("[{\"'", *value)) {
        tm_node node = {.kind = TM_NODE_SCALAR, .plain = true, .text = (char *)value, .weight = 1};
        return apply(l, key, line, &node);
    }
    tm_tree tree;
    TM_TRY(tm_tree_parse_yaml(value, strlen(value), key, &tree, l->err));
    tm_status st = apply(l, key, line, tree.root);
    tm_tree_deinit(&tree);
    return st;
}

/* --- What only makes sense together --- */

static tm_status check_path(const loader *l, int line, const char *key, const char *path)
{
    if (!path)
        return refuse(l, line, "%s is missing", key);
    bool pattern = strpbrk(path, "*?[") != NULL; /* of data: the loader says what matches */
    return pattern || tm_path_exists(path) ? TM_OK : refuse(l, line, "%s: no such file or folder: %s", key, path);
}

static tm_status check_set_path(const loader *l, const char *key, const char *path)
{
    return path ? check_path(l, line_of(l, key), key, path) : TM_OK;
}

/* The name of an evaluation goes into metrics and file names: eval.NAME.loss. */
static tm_status check_name(const loader *l, tm_eval_entry *entry, const char *list)
{
    if (!entry->name) {
        const char *path = entry->data.path; /* its last part: of a folder too, with a slash behind it or not */
        size_t end = strlen(path), begin;
        while (end > 1 && path[end - 1] == '/')
            end--;
        for (begin = end; begin > 0 && path[begin - 1] != '/';)
            begin--;
        for (size_t i = begin + 1; i < end; i++)
            if (path[i] == '.')
                end = i;
        entry->name = begin < end ? tm_strdup(path + begin, l->err) : tm_strdup("data", l->err);
        if (!entry->name)
            return TM_NO_MEMORY;
        if (begin < end)
            entry->name[end - begin] = 0;
        for (char *c = entry->name; *c; c++)
            if (strchr(". /\\\"'", *c) || (unsigned char)*c < 0x20)
                *c = '_';
    }
    for (const char *c = entry->name; *c; c++)
        if (strchr(". /\\\"'", *c) || (unsigned char)*c < 0x20)
            return refuse(l, entry->line, "%s: a name has no dots, slashes, quotes or spaces, found \"%.80s\"", list,
                          entry->name);
    return TM_OK;
}

static tm_status check_evals(const loader *l, tm_eval_entry *entries, int64_t count, const char *list)
{
    for (int64_t i = 0; i < count; i++) {
        char key[64];
        snprintf(key, sizeof key, "%s.%lld.path", list, (long long)i);
        TM_TRY(check_path(l, entries[i].line, key, entries[i].data.path));
        TM_TRY(check_name(l, &entries[i], list));
        for (int64_t j = 0; j < i; j++)
            if (strcmp(entries[i].name, entries[j].name) == 0)
                return refuse(l, entries[i].line, "%s: two entries are named %.80s; give each a name", list,
                              entries[i].name);
        int needs = entries[i].metric == TM_METRIC_CHOICE       ? TM_FORMAT_CHOICE
                    : entries[i].metric == TM_METRIC_ROUND_TRIP ? TM_FORMAT_BRIDGE
                                                                : TM_FORMAT_AUTO;
        if (needs != TM_FORMAT_AUTO && entries[i].data.format == TM_FORMAT_AUTO)
            entries[i].data.format = needs;
        if (needs != TM_FORMAT_AUTO && entries[i].data.format != needs)
            return refuse(l, entries[i].line, "%s.%lld: metric %s is for rows of format %s", list, (long long)i,
                          needs == TM_FORMAT_CHOICE ? "choice" : "round_trip",
                          needs == TM_FORMAT_CHOICE ? "choice" : "bridge");
        bool kl = entries[i].metric == TM_METRIC_KL;
        if (kl && !isnan(entries[i].max_drop))
            return refuse(l, entries[i].line, "%s.%lld.max_drop: metric kl has a budget in nats: max", list,
                          (long long)i);
        if (!kl && !isnan(entries[i].max))
            return refuse(l, entries[i].line, "%s.%lld.max: is for metric kl; this metric has max_drop", list,
                          (long long)i);
    }
    return TM_OK;
}

/* train.early_stop.metric: eval.NAME.WHAT of an evaluation that there is. */
static tm_status check_early_stop(const loader *l)
{
    const tm_recipe *r = l->recipe;
    if (!r->early_stop_metric)
        return TM_OK;
    int line = line_of(l, "train.early_stop.metric");
    const char *name = r->early_stop_metric + strlen("eval."), *dot = strchr(name, '.');
    size_t n = dot ? (size_t)(dot - name) : 0;
    if (!n || !dot[1])
        return refuse(l, line, "train.early_stop.metric: expected eval.NAME.loss, found %.80s", r->early_stop_metric);
    for (int64_t i = 0; i < r->eval_count; i++)
        if (strlen(r->eval[i].name) == n && memcmp(r->eval[i].name, name, n) == 0)
            return TM_OK;
    for (int64_t i = 0; i < r->data_count; i++)
        if (r->data[i].val_split > 0 && n == 3 && memcmp(name, "val", 3) == 0)
            return TM_OK;
    return refuse(l, line, "train.early_stop.metric: there is no evaluation named %.*s", (int)(n < 80 ? n : 80), name);
}

/* Expressions are PEFT's: Python's, which for names of modules PCRE2 reads the same way (io/adapter_match.c). */
static tm_status check_expression(const loader *l, const char *key, const char *text)
{
    int number;
    PCRE2_SIZE at;
    PCRE2_UCHAR what[160] = "";
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)text, strlen(text), PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C,
                                     &number, &at, NULL);
    pcre2_code_free(code);
    if (code)
        return TM_OK;
    if (number == PCRE2_ERROR_NOMEMORY)
        return tm_fail(l->err, TM_NO_MEMORY, "out of memory for a regular expression");
    pcre2_get_error_message(number, what, sizeof what);
    return refuse(l, line_of(l, key), "%s: \"%.100s\" is not a valid regular expression: %s at character %zu", key, text,
                  (char *)what, (size_t)at);
}

static tm_status check_expressions(const loader *l)
{
    const tm_recipe *r = l->recipe;
    if (r->lora_target_modules.count == 1)
        TM_TRY(check_expression(l, "lora.target_modules", r->lora_target_modules.item[0]));
    for (int64_t i = 0; i < r->lora_rank_pattern.keys.count; i++)
        TM_TRY(check_expression(l, "lora.rank_pattern", r->lora_rank_pattern.keys.item[i]));
    for (int64_t i = 0; i < r->lora_alpha_pattern.keys.count; i++)
        TM_TRY(check_expression(l, "lora.alpha_pattern", r->lora_alpha_pattern.keys.item[i]));
    return TM_OK;
}

static tm_status check(loader *l)
{
    tm_recipe *r = l->recipe;
    TM_TRY(check_set_path(l, "model", r->model));
    TM_TRY(check_set_path(l, "lora.init", r->lora_init));
    TM_TRY(check_set_path(l, "bitfit.init", r->bitfit_init));
    TM_TRY(check_set_path(l, "adapter.init", r->adapter_init));
    TM_TRY(check_set_path(l, "prompt.init", r->prompt_init));
    TM_TRY(check_set_path(l, "keep.replay.path", r->replay.path));
    TM_TRY(check_set_path(l, "keep.generate.prompts", r->generate_prompts));
    TM_TRY(check_set_path(l, "keep.ewc.importances", r->ewc_importances));
    TM_TRY(check_set_path(l, "keep.ewc.path", r->ewc.path));
    for (int64_t i = 0; i < r->data_count; i++) {
        char key[64];
        snprintf(key, sizeof key, "data.%lld.path", (long long)i);
        TM_TRY(check_path(l, r->data[i].line, key, r->data[i].path));
        if (r->data[i].line < 0)
            r->data[i].line = 0;
    }
    TM_TRY(check_evals(l, r->eval, r->eval_count, "eval"));
    TM_TRY(check_evals(l, r->probes, r->probe_count, "keep.monitor.probes"));
    TM_TRY(check_early_stop(l));
    /* In transformers a share counts where the number is 0. */
    if (r->warmup_steps == 0 && line_of(l, "train.warmup_ratio"))
        r->warmup_steps = TM_AUTO_INT;
    TM_TRY(check_expressions(l));
    for (int64_t i = 0; i < r->eval_count; i++)
        if (r->eval[i].line < 0)
            r->eval[i].line = r->eval[i].data.line = 0;
    for (int64_t i = 0; i < r->probe_count; i++)
        if (r->probes[i].line < 0)
            r->probes[i].line = r->probes[i].data.line = 0;
    return TM_OK;
}

tm_status tm_recipe_load(const char *path, char *const *overrides, size_t override_count, tm_recipe **out,
                         tm_error *err)
{
    return tm_recipe_load_layers(path, &(tm_recipe_layers){0}, overrides, override_count, out, err);
}

tm_status tm_recipe_load_layers(const char *path, const tm_recipe_layers *layers, char *const *overrides,
                                size_t override_count, tm_recipe **out, tm_error *err)
{
    *out = NULL;
    tm_recipe *recipe;
    if (override_count > 100000)
        return tm_fail(err, TM_RECIPE, "%zu arguments are too many", override_count);
    TM_TRY(TM_NEW(&recipe, 1, err));
    loader l = {.recipe = recipe, .path = path, .overrides = overrides, .override_count = (int)override_count,
                .override = -1, .layers = layers->file, .err = err};
    tm_status st;
    TM_GO(TM_NEW(&l.lines, recipe_table->count, err));
    TM_GO(defaults(recipe_table, recipe, err));
    recipe->replay.weight = recipe->ewc.weight = 1; /* as an entry of data without one */
    st = TM_NO_MEMORY;
    if (!(recipe->base_dir = tm_strdup(".", err)) || (path && !(recipe->path = tm_strdup(path, err))))
        goto out;
    st = TM_OK;
    if (path)
        TM_GO(apply_file(&l));
    l.in_layer = true;
    for (size_t i = 0; i < layers->count; i++)
        TM_GO(apply_map(&l, "", layers->map[i]));
    for (size_t i = 0; i < override_count; i++) {
        l.override = (int)i;
        TM_GO(apply_override(&l));
    }
    for (size_t i = 0; i < recipe_table->count; i++)
        if (l.lines[i])
            TM_GO(tm_names_add(&recipe->given, recipe_table->row[i].key, err));
    TM_GO(check(&l));
out:
    free(l.lines);
    if (st != TM_OK) {
        tm_recipe_destroy(recipe);
        return st;
    }
    *out = recipe;
    return TM_OK;
}

void tm_recipe_destroy(tm_recipe *recipe)
{
    if (!recipe)
        return;
    for (size_t i = 0; i < recipe_table->count; i++)
        if (recipe_table->row[i].type == TM_OPT_LIST)
            list_clear(recipe, &recipe_table->row[i]);
    release(recipe_table, recipe);
    tm_names_deinit(&recipe->aliases_used);
    tm_names_deinit(&recipe->given);
    free(recipe->path);
    free(recipe->base_dir);
    free(recipe);
}
