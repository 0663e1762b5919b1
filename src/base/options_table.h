/* options.def as rows that code can walk: private to options*.c. */
#ifndef TM_BASE_OPTIONS_TABLE_H
#define TM_BASE_OPTIONS_TABLE_H

#include "base/node.h"
#include "base/options.h"

typedef enum tm_option_type {
    TM_OPT_BOOL, TM_OPT_INT, TM_OPT_NUMBER, TM_OPT_AUTO_INT, TM_OPT_AUTO_NUMBER, TM_OPT_STRING, TM_OPT_PATH,
    TM_OPT_CHOICE, TM_OPT_STRINGS, TM_OPT_MAP, TM_OPT_LIST, TM_OPT_FIXED
} tm_option_type;

typedef struct tm_option {
    const char *key;
    tm_option_type type;
    size_t offset;        /* of the field; LIST: of the array's pointer */
    const char *fallback; /* FIXED: the value */
    const char *allowed, *aliases, *help;
} tm_option;

typedef struct tm_option_table {
    const char *name; /* of the list; "" for the recipe itself */
    const tm_option *row;
    size_t count;
    size_t size; /* of the struct that the offsets are in */
} tm_option_table;

enum { TM_TABLE_RECIPE, TM_TABLE_DATA, TM_TABLE_EVAL, TM_TABLE_PROBE, TM_TABLE_COUNT };
extern const tm_option_table tm_option_tables[TM_TABLE_COUNT];

/* The table of a LIST option's entries, where their array is, and where its length. */
const tm_option_table *tm_option_entries(const tm_option *list);
void **tm_list_array(const tm_recipe *recipe, const tm_option *list);
int64_t *tm_list_count(const tm_recipe *recipe, const tm_option *list);
/* Entry i of such an array. */
static inline void *tm_entry_at(const tm_option_table *table, void *array, int64_t i)
{
    return (char *)array + (size_t)i * table->size;
}

/* Sets a field (owned text is replaced); on failure the message says what was expected and found,
 * without place and key, and the field keeps its value. */
tm_status tm_option_set(const tm_option *option, void *base, const tm_node *node, tm_error *err) TM_MUST_CHECK;
tm_status tm_option_set_default(const tm_option *option, void *base, tm_error *err) TM_MUST_CHECK;
void tm_option_free(const tm_option *option, void *base);
/* What a value must be, in words: "a whole number of at least 1, or auto". */
void tm_option_expected(const tm_option *option, tm_buf *out);

/* The next word of "a|b|c" or "a b c": advances *at; false at the end. */
bool tm_next_word(const char **at, const char *separators, const char **word, size_t *size);

/* The next of an option's aliases: its name, and what its values mean ("x=y,z=", up to the bracket; NULL: the same). */
typedef struct tm_alias {
    const char *name, *values;
    size_t size;
} tm_alias;
bool tm_next_alias(const char **at, tm_alias *alias);

/* Bytes of the group a key is in: "train.seeds.init" -> 11; 0 = none. */
size_t tm_key_group(const char *key);

#endif
