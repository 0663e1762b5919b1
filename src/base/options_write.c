/* A recipe written out: JSON for run.json, YAML for people, and the document of all keys. All three walk
 * the table in its order, so equal recipes give equal bytes. */
#include "base/json.h"
#include "base/options_table.h"

#include <stdlib.h>
#include <string.h>

typedef struct writer {
    tm_buf *out;
    bool yaml, comments;
    int depth; /* of the mapping being written */
    bool first; /* nothing has been written into it yet */
    bool after_dash; /* YAML: the next key stands behind "- " */
} writer;

enum { COMMENT_COLUMN = 36 };

/* Text that YAML reads back as the same string without quotes. */
static bool is_bare(const char *text)
{
    static const char *const taken[] = {"null", "Null", "NULL", "true", "True", "TRUE", "false", "False", "FALSE"};
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
        if (strcmp(text, taken[i]) == 0)
            return false;
    bool letter = (*text >= 'a' && *text <= 'z') || (*text >= 'A' && *text <= 'Z') || *text == '_' || *text == '/';
    return letter && strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-") == strlen(text);
}

/* A JSON string in which YAML finds nothing it refuses either. */
static void put_string_safe(tm_buf *out, const char *text)
{
    tm_buf json = {0};
    tm_json_put_string(&json, text);
    const unsigned char *s = (const unsigned char *)tm_buf_str(&json);
    for (size_t i = 0; i < json.size; i++) {
        if (s[i] == 0x7F)
            tm_buf_text(out, "\\u007f");
        else if (s[i] == 0xC2 && s[i + 1] >= 0x80 && s[i + 1] <= 0x9F) /* C1 controls */
            tm_buf_printf(out, "\\u%04x", s[++i]);
        else if ((s[i] == 0xE2 && s[i + 1] == 0x80 && (s[i + 2] == 0xA8 || s[i + 2] == 0xA9)) || /* line separators */
                 (s[i] == 0xEF && ((s[i + 1] == 0xBB && s[i + 2] == 0xBF) || (s[i + 1] == 0xBF && s[i + 2] >= 0xBE)))) {
            tm_buf_printf(out, "\\u%04x",
                          (unsigned)(s[i] & 0x0F) << 12 | (unsigned)(s[i + 1] & 0x3F) << 6 |
                              (unsigned)(s[i + 2] & 0x3F));
            i += 2;
        } else {
            tm_buf_char(out, (char)s[i]);
        }
    }
    out->failed |= json.failed;
    tm_buf_deinit(&json);
}

static void put_text(writer *w, const char *text)
{
    if (w->yaml && is_bare(text))
        tm_buf_text(w->out, text);
    else
        put_string_safe(w->out, text);
}

static void put_choice(tm_buf *out, const char *allowed, int choice)
{
    const char *at = allowed, *word = allowed;
    size_t size = 0;
    for (int i = 0; i <= choice; i++)
        tm_next_word(&at, "|", &word, &size);
    tm_buf_add(out, word, strcspn(word, "=|"));
}

static void put_word(writer *w, const char *word)
{
    if (!w->yaml)
        tm_buf_char(w->out, '"');
    tm_buf_text(w->out, word);
    if (!w->yaml)
        tm_buf_char(w->out, '"');
}

static void put_map(writer *w, const tm_option *o, const tm_string_map *map)
{
    bool names = strchr(o->allowed, '|') != NULL;
    tm_buf_char(w->out, '{');
    for (int64_t i = 0; i < map->keys.count; i++) {
        tm_buf_text(w->out, i ? ", " : "");
        put_string_safe(w->out, map->keys.item[i]);
        tm_buf_text(w->out, ": ");
        if (names)
            put_string_safe(w->out, map->values.item[i]);
        else
            tm_buf_text(w->out, map->values.item[i]);
    }
    tm_buf_char(w->out, '}');
}

static void put_value(writer *w, const tm_option *o, const void *base)
{
    const void *field = (const char *)base + o->offset;
    switch (o->type) {
    case TM_OPT_BOOL: tm_buf_text(w->out, *(const bool *)field ? "true" : "false"); break;
    case TM_OPT_AUTO_INT:
    case TM_OPT_INT:
        if (o->type == TM_OPT_AUTO_INT && *(const int64_t *)field == TM_AUTO_INT)
            put_word(w, "auto");
        else
            tm_buf_printf(w->out, "%lld", (long long)*(const int64_t *)field);
        break;
    case TM_OPT_AUTO_NUMBER:
    case TM_OPT_NUMBER:
        if (isnan(*(const double *)field))
            put_word(w, "auto");
        else
            tm_json_put_number(w->out, *(const double *)field);
        break;
    case TM_OPT_STRING:
    case TM_OPT_PATH:
        if (*(char *const *)field)
            put_text(w, *(char *const *)field);
        else
            tm_buf_text(w->out, "null");
        break;
    case TM_OPT_CHOICE:
        if (!w->yaml)
            tm_buf_char(w->out, '"');
        put_choice(w->out, o->allowed, *(const int *)field);
        if (!w->yaml)
            tm_buf_char(w->out, '"');
        break;
    case TM_OPT_STRINGS: {
        const tm_names *names = field;
        tm_buf_char(w->out, '[');
        for (int64_t i = 0; i < names->count; i++) {
            tm_buf_text(w->out, i ? ", " : "");
            put_text(w, names->item[i]);
        }
        tm_buf_char(w->out, ']');
        break;
    }
    case TM_OPT_MAP: put_map(w, o, field); break;
    case TM_OPT_LIST:
    case TM_OPT_FIXED: break;
    }
}

static void put_indent(writer *w, int depth)
{
    for (int i = 0; i < 2 * depth; i++)
        tm_buf_char(w->out, ' ');
}

/* The start of a member: separator, indentation, name. */
static void put_key(writer *w, const char *name, size_t size)
{
    if (!w->yaml)
        tm_buf_text(w->out, w->first ? "\n" : ",\n");
    if (w->after_dash)
        w->after_dash = false;
    else
        put_indent(w, w->depth);
    w->first = false;
    tm_buf_printf(w->out, w->yaml ? "%.*s:" : "\"%.*s\":", (int)size, name);
}

static void put_comment(writer *w, const tm_option *o, size_t line_start)
{
    if (!w->comments)
        return;
    do
        tm_buf_char(w->out, ' ');
    while (!w->out->failed && w->out->size - line_start < COMMENT_COLUMN);
    tm_buf_text(w->out, "# ");
    if (o->type == TM_OPT_CHOICE) {
        const char *at = o->allowed, *word;
        size_t size;
        for (int i = 0; tm_next_word(&at, "|", &word, &size); i++) {
            tm_buf_text(w->out, i ? " | " : "");
            tm_buf_add(w->out, word, strcspn(word, "=|"));
        }
        tm_buf_text(w->out, ": ");
    }
    tm_buf_text(w->out, o->help);
}

static void open_group(writer *w, const char *name, size_t size)
{
    put_key(w, name, size);
    tm_buf_text(w->out, w->yaml ? "\n" : " {");
    w->depth++;
    w->first = true;
}

static void close_group(writer *w)
{
    w->depth--;
    if (!w->yaml) {
        tm_buf_char(w->out, '\n');
        put_indent(w, w->depth);
        tm_buf_char(w->out, '}');
    }
    w->first = false;
}

static void put_rows(writer *w, const tm_option_table *table, const void *base);

static void put_list(writer *w, const tm_option *list, const tm_recipe *recipe)
{
    const tm_option_table *table = tm_option_entries(list);
    int64_t count = *tm_list_count(recipe, list);
    tm_buf_text(w->out, count ? w->yaml ? "\n" : " [" : " []");
    if (w->yaml && !count)
        tm_buf_char(w->out, '\n');
    for (int64_t i = 0; i < count; i++) {
        if (!w->yaml)
            tm_buf_text(w->out, i ? ",\n" : "\n");
        put_indent(w, w->depth + 1);
        tm_buf_text(w->out, w->yaml ? "- " : "{");
        w->depth += 2;
        w->first = true;
        w->after_dash = w->yaml;
        put_rows(w, table, tm_entry_at(table, *tm_list_array(recipe, list), i));
        w->depth -= 2;
        if (!w->yaml) {
            tm_buf_char(w->out, '\n');
            put_indent(w, w->depth + 1);
            tm_buf_char(w->out, '}');
        }
    }
    if (count && !w->yaml) {
        tm_buf_char(w->out, '\n');
        put_indent(w, w->depth);
        tm_buf_char(w->out, ']');
    }
    w->first = false;
}

/* Bytes of the longest group that both keys are in, dot included: 6 for train.lr and train.seq. */
static size_t shared_group(const char *a, const char *b)
{
    size_t shared = 0;
    for (size_t i = 0; a[i] && a[i] == b[i]; i++)
        if (a[i] == '.')
            shared = i + 1;
    return shared;
}

static void put_rows(writer *w, const tm_option_table *table, const void *base)
{
    const char *previous = "";
    int groups = 0;
    for (size_t i = 0; i < table->count; i++) {
        const tm_option *o = &table->row[i];
        if (o->type == TM_OPT_FIXED)
            continue;
        size_t shared = shared_group(previous, o->key);
        for (const char *dot = strchr(previous + shared, '.'); dot; dot = strchr(dot + 1, '.'), groups--)
            close_group(w);
        const char *name = o->key + shared;
        for (const char *dot; (dot = strchr(name, '.')) != NULL; name = dot + 1, groups++)
            open_group(w, name, (size_t)(dot - name));
        size_t line_start = w->out->size - (w->after_dash ? 2 * (size_t)w->depth : 0);
        put_key(w, name, strlen(name));
        if (o->type == TM_OPT_LIST) {
            put_list(w, o, base);
        } else {
            tm_buf_char(w->out, ' ');
            put_value(w, o, base);
            put_comment(w, o, line_start);
            tm_buf_text(w->out, w->yaml ? "\n" : "");
        }
        previous = o->key;
    }
    while (groups-- > 0)
        close_group(w);
}

tm_status tm_recipe_to_json(const tm_recipe *recipe, tm_buf *out, tm_error *err)
{
    writer w = {.out = out, .depth = 1, .first = true};
    tm_buf_char(out, '{');
    put_rows(&w, &tm_option_tables[TM_TABLE_RECIPE], recipe);
    tm_buf_text(out, "\n}");
    return tm_buf_check(out, err);
}

tm_status tm_recipe_to_yaml(const tm_recipe *recipe, bool comments, tm_buf *out, tm_error *err)
{
    writer w = {.out = out, .yaml = true, .comments = comments};
    put_rows(&w, &tm_option_tables[TM_TABLE_RECIPE], recipe);
    return tm_buf_check(out, err);
}

tm_status tm_data_entry_to_json(const tm_data_entry *entry, tm_buf *out, tm_error *err)
{
    writer w = {.out = out, .depth = 1, .first = true};
    tm_buf_char(out, '{');
    put_rows(&w, &tm_option_tables[TM_TABLE_DATA], entry);
    tm_buf_text(out, "\n}");
    return tm_buf_check(out, err);
}

/* A line a key whose value is not the default's; prefix: what stands before the keys. */
static tm_status put_changes(tm_buf *out, const tm_option_table *table, const void *base, const char *prefix, tm_error *err)
{
    void *blank = NULL;
    tm_buf text = {0}, fallback = {0};
    char inner[64];
    tm_status st;
    TM_GO(tm_alloc(&blank, 1, table->size, err));
    for (size_t i = 0; i < table->count; i++) {
        const tm_option *o = &table->row[i];
        if (o->type == TM_OPT_FIXED)
            continue;
        for (int64_t k = 0; o->type == TM_OPT_LIST && k < *tm_list_count(base, o); k++) {
            const tm_option_table *entries = tm_option_entries(o);
            snprintf(inner, sizeof inner, "%s.%lld.", o->key, (long long)k);
            TM_GO(put_changes(out, entries, tm_entry_at(entries, *tm_list_array(base, o), k), inner, err));
        }
        if (o->type == TM_OPT_LIST)
            continue;
        tm_buf_clear(&text);
        tm_buf_clear(&fallback);
        TM_GO(tm_option_set_default(o, blank, err));
        put_value(&(writer){.out = &text}, o, base);
        put_value(&(writer){.out = &fallback}, o, blank);
        TM_GO(tm_buf_check(&text, err));
        TM_GO(tm_buf_check(&fallback, err));
        if (strcmp(text.data, fallback.data) != 0)
            tm_buf_printf(out, "%s%s: %s\n", prefix, o->key, text.data);
    }
    st = tm_buf_check(out, err);
out:
    for (size_t i = 0; blank && i < table->count; i++)
        tm_option_free(&table->row[i], blank);
    free(blank);
    tm_buf_deinit(&text);
    tm_buf_deinit(&fallback);
    return st;
}

tm_status tm_recipe_changes(const tm_recipe *recipe, tm_buf *out, tm_error *err)
{
    return put_changes(out, &tm_option_tables[TM_TABLE_RECIPE], recipe, "", err);
}

/* --- docs/recipe.md --- */

/* A cell of a Markdown table: bars would end it. */
static void put_cell(tm_buf *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '|')
            tm_buf_char(out, '\\');
        tm_buf_char(out, *text);
    }
}

static void document_row(tm_buf *out, const tm_option *o)
{
    tm_buf expected = {0};
    tm_option_expected(o, &expected);
    tm_buf_printf(out, "| `%s` | ", o->key);
    if (!o->fallback || !*o->fallback)
        tm_buf_text(out, "none");
    else
        tm_buf_printf(out, "`%s`", o->fallback);
    tm_buf_text(out, " | ");
    put_cell(out, tm_buf_str(&expected));
    tm_buf_text(out, " | ");
    put_cell(out, o->help);
    tm_buf_text(out, " | ");
    const char *at = o->aliases ? o->aliases : "";
    tm_alias alias;
    for (int i = 0; tm_next_alias(&at, &alias); i++)
        tm_buf_printf(out, "%s`%.*s`", i ? ", " : "", (int)alias.size, alias.name);
    tm_buf_text(out, " |\n");
    tm_buf_deinit(&expected);
}

static void document_table(tm_buf *out, const tm_option_table *table)
{
    tm_buf_text(out, "| key | default | value | what it does | also known as |\n|---|---|---|---|---|\n");
    for (size_t i = 0; i < table->count; i++)
        document_row(out, &table->row[i]);
}

void tm_recipe_document(tm_buf *out)
{
    tm_buf_text(out,
                "# Recipe keys\n\n"
                "Made from `src/base/options.def` by `make docs`: change the table, not this file. How a recipe is\n"
                "written and how arguments override it: [formats/recipe.md](formats/recipe.md).\n\n");
    document_table(out, &tm_option_tables[TM_TABLE_RECIPE]);
    tm_buf_text(out, "\n`train.betas: [a, b]` sets `train.beta1` and `train.beta2`.\n\n## An entry of `data`\n\n");
    document_table(out, &tm_option_tables[TM_TABLE_DATA]);
    tm_buf_text(out,
                "\n## An entry of `eval`\n\n"
                "Without a name it is called as its file. `val` is the share that `data.val_split` holds out.\n\n");
    document_table(out, &tm_option_tables[TM_TABLE_EVAL]);
    tm_buf_text(out, "\n## An entry of `keep.monitor.probes`\n\nThe keys of an evaluation, and its budget:\n\n");
    tm_option_table budget = tm_option_tables[TM_TABLE_PROBE];
    size_t evals = tm_option_tables[TM_TABLE_EVAL].count;
    budget.row += evals;
    budget.count -= evals;
    document_table(out, &budget);
}
