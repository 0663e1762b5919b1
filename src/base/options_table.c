/* The rows of options.def: see options_table.h. */
#include "base/options_table.h"

#include <stddef.h>
#include <string.h>

#define ROW(field, key, type, fallback, allowed, aliases, help)                                                        \
    {key, TM_OPT_##type, offsetof(ROW_STRUCT, field), fallback, allowed, aliases, help},
#define ROW_LIST(field, key, aliases, help) {key, TM_OPT_LIST, offsetof(ROW_STRUCT, field), NULL, NULL, aliases, help},
#define ROW_FIXED(key, value, help) {key, TM_OPT_FIXED, 0, value, NULL, NULL, help},

#define ROW_STRUCT tm_recipe
static const tm_option recipe_rows[] = {
#define TM_RECIPE_OPTIONS ROW
#define TM_RECIPE_LISTS ROW_LIST
#include "base/options.def"
#undef TM_RECIPE_OPTIONS
#define TM_FIXED_RECIPE ROW_FIXED
#include "base/options.def"
#undef TM_FIXED_RECIPE
};
#undef ROW_STRUCT

#define ROW_STRUCT tm_data_entry
static const tm_option data_rows[] = {
#define TM_DATA_OPTIONS ROW
#include "base/options.def"
#undef TM_DATA_OPTIONS
};
#undef ROW_STRUCT

/* A probe is an evaluation and its budget, so evaluations are the first rows of probes. */
#define ROW_STRUCT tm_eval_entry
static const tm_option probe_rows[] = {
#define TM_EVAL_OPTIONS ROW
#include "base/options.def"
#undef TM_EVAL_OPTIONS
#define TM_PROBE_OPTIONS ROW
#include "base/options.def"
#undef TM_PROBE_OPTIONS
};
#undef ROW_STRUCT

#define ONE(field, key, type, fallback, allowed, aliases, help) +1
enum {
    EVAL_ROWS = 0
#define TM_EVAL_OPTIONS ONE
#include "base/options.def"
#undef TM_EVAL_OPTIONS
};

#define COUNT(rows) (sizeof(rows) / sizeof *(rows))
const tm_option_table tm_option_tables[TM_TABLE_COUNT] = {
    [TM_TABLE_RECIPE] = {"", recipe_rows, COUNT(recipe_rows), sizeof(tm_recipe)},
    [TM_TABLE_DATA] = {"data", data_rows, COUNT(data_rows), sizeof(tm_data_entry)},
    [TM_TABLE_EVAL] = {"eval", probe_rows, EVAL_ROWS, sizeof(tm_eval_entry)},
    [TM_TABLE_PROBE] = {"keep.monitor.probes", probe_rows, COUNT(probe_rows), sizeof(tm_eval_entry)},
};

const tm_option_table *tm_option_entries(const tm_option *list)
{
    size_t i = TM_TABLE_DATA;
    while (strcmp(tm_option_tables[i].name, list->key) != 0)
        i++;
    return &tm_option_tables[i];
}

void **tm_list_array(const tm_recipe *recipe, const tm_option *list)
{
    return (void **)((char *)recipe + list->offset);
}

/* The length stands behind the pointer. */
int64_t *tm_list_count(const tm_recipe *recipe, const tm_option *list)
{
    return (int64_t *)((char *)recipe + list->offset + sizeof(void *));
}
_Static_assert(offsetof(tm_recipe, data_count) == offsetof(tm_recipe, data) + sizeof(void *),
               "length behind the pointer");
_Static_assert(offsetof(tm_recipe, eval_count) == offsetof(tm_recipe, eval) + sizeof(void *),
               "length behind the pointer");
_Static_assert(offsetof(tm_recipe, probe_count) == offsetof(tm_recipe, probes) + sizeof(void *),
               "length behind the pointer");

bool tm_next_word(const char **at, const char *separators, const char **word, size_t *size)
{
    *at += strspn(*at, separators);
    *word = *at;
    *size = strcspn(*at, separators);
    *at += *size;
    return *size > 0;
}

bool tm_next_alias(const char **at, tm_alias *alias)
{
    size_t size;
    *alias = (tm_alias){0};
    if (!tm_next_word(at, " ", &alias->name, &size))
        return false;
    const char *bracket = memchr(alias->name, '(', size);
    alias->size = bracket ? (size_t)(bracket - alias->name) : size;
    alias->values = bracket ? bracket + 1 : NULL;
    return true;
}

size_t tm_key_group(const char *key)
{
    const char *dot = strrchr(key, '.');
    return dot ? (size_t)(dot - key) : 0;
}
