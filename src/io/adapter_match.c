/* Which modules an adapter's config means: see adapter.h. The rules, and the expressions around the
 * user's, are those of PEFT's check_target_module_exists and get_pattern_key; Python's re is close
 * enough to PCRE2 for names of modules. Names and patterns are compiled anew for every question: a model
 * asks some hundred times, once. */
#include "io/adapter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

/* Against patterns that would take for ever or all memory. */
enum { MATCH_LIMIT = 1000000, HEAP_LIMIT_KIB = 64 << 10 };

typedef struct match {
    bool found;
    char index[24]; /* what the group idx caught; "" when there is none, or it is longer than a number */
} match;

static tm_status compile(const char *pattern, const char *shown, size_t before, uint32_t options, pcre2_code **code,
                         tm_error *err)
{
    int number;
    PCRE2_SIZE place;
    *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                          options | PCRE2_ANCHORED | PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C,
                          &number, &place, NULL);
    if (*code)
        return TM_OK;
    if (number == PCRE2_ERROR_NOMEMORY)
        return tm_fail(err, TM_NO_MEMORY, "out of memory for a regular expression");
    PCRE2_UCHAR text[200] = "";
    pcre2_get_error_message(number, text, sizeof text);
    return tm_fail(err, TM_INPUT, "\"%.200s\" is not a valid regular expression: %s at character %zu", shown,
                   (char *)text, place > before ? (size_t)place - before : 0);
}

static void read_index(const pcre2_code *code, pcre2_match_data *data, match *out)
{
    PCRE2_SIZE size = sizeof out->index;
    int group = pcre2_substring_number_from_name(code, (PCRE2_SPTR)"idx");
    if (group < 0 || pcre2_substring_copy_bynumber(data, (uint32_t)group, (PCRE2_UCHAR *)out->index, &size) != 0)
        out->index[0] = 0;
}

/* Matches subject from its begin; the pattern is `head` + shown + `tail`, of which shown is the user's. */
static tm_status match_at_begin(const char *head, const char *shown, const char *tail, uint32_t options,
                                const char *subject, match *out, tm_error *err)
{
    pcre2_code *code = NULL;
    pcre2_match_data *data = NULL;
    pcre2_match_context *limits = NULL;
    tm_buf pattern = {0};
    tm_status st;
    *out = (match){0};
    tm_buf_text(&pattern, head);
    tm_buf_text(&pattern, shown);
    tm_buf_text(&pattern, tail);
    TM_GO(tm_buf_check(&pattern, err));
    TM_GO(compile(tm_buf_str(&pattern), shown, strlen(head), options, &code, err));
    data = pcre2_match_data_create_from_pattern(code, NULL);
    limits = pcre2_match_context_create(NULL);
    if (!data || !limits)
        TM_GO(tm_fail(err, TM_NO_MEMORY, "out of memory for a regular expression"));
    pcre2_set_match_limit(limits, MATCH_LIMIT);
    pcre2_set_heap_limit(limits, HEAP_LIMIT_KIB);
    int rc = pcre2_match(code, (PCRE2_SPTR)subject, strlen(subject), 0, 0, data, limits);
    if (rc == PCRE2_ERROR_NOMEMORY)
        TM_GO(tm_fail(err, TM_NO_MEMORY, "out of memory for a regular expression"));
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
        TM_GO(tm_fail(err, TM_INPUT,
                      "regular expression \"%.200s\" cannot be matched with \"%.200s\" (PCRE2 error %d)", shown,
                      subject, rc));
    out->found = rc >= 0;
    if (out->found)
        read_index(code, data, out);
out:
    pcre2_match_context_free(limits);
    pcre2_match_data_free(data);
    pcre2_code_free(code);
    tm_buf_deinit(&pattern);
    return st;
}

static tm_status fullmatch(const char *pattern, const char *name, bool *out, tm_error *err)
{
    match m;
    TM_TRY(match_at_begin("", pattern, "", PCRE2_ENDANCHORED, name, &m, err));
    *out = m.found;
    return TM_OK;
}

/* name is the entry, or ends with "." and the entry. */
static bool ends_with(const char *name, const char *entry)
{
    size_t n = strlen(name), m = strlen(entry);
    return n >= m && strcmp(name + n - m, entry) == 0 && (n == m || name[n - m - 1] == '.');
}

static bool listed(const tm_names *names, const char *name)
{
    for (int64_t i = 0; i < names->count; i++)
        if (ends_with(name, names->item[i]))
            return true;
    return false;
}

/* LoRA never sits inside a module that is trained as a whole. */
static tm_status is_excluded(const tm_adapter_config *c, const char *name, bool *out, tm_error *err)
{
    *out = listed(&c->exclude_modules, name);
    if (c->exclude_regex)
        TM_TRY(fullmatch(c->exclude_regex, name, out, err));
    for (int64_t i = 0; i < c->modules_to_save.count && !*out; i++) {
        match m;
        TM_TRY(match_at_begin("(^|.*\\.)", c->modules_to_save.item[i], "($|\\..*)", 0, name, &m, err));
        *out = m.found;
    }
    return TM_OK;
}

/* Whether the number of the module's layer (the first number in its name, after a name, or after one of
 * layers_pattern) is in layers_to_transform. */
static tm_status layer_chosen(const tm_adapter_config *c, const char *name, bool *out, tm_error *err)
{
    match m = {0};
    *out = false;
    if (!c->layers_pattern.count)
        TM_TRY(match_at_begin(".*?\\.[^.]*", "", "\\.(?P<idx>\\d+)\\.", 0, name, &m, err));
    for (int64_t i = 0; i < c->layers_pattern.count && !m.found; i++)
        TM_TRY(match_at_begin("(?:^|.*?\\.)", c->layers_pattern.item[i], "\\.(?P<idx>\\d+)\\.", 0, name, &m, err));
    if (!m.found || !m.index[0])
        return TM_OK;
    int64_t layer = strtoll(m.index, NULL, 10);
    for (int64_t i = 0; i < c->layers_to_transform_count; i++)
        *out |= c->layers_to_transform[i] == layer;
    return TM_OK;
}

tm_status tm_adapter_targets(const tm_adapter_config *config, const char *module_name, bool *out, tm_error *err)
{
    bool excluded;
    *out = false;
    TM_TRY(is_excluded(config, module_name, &excluded, err));
    if (excluded)
        return TM_OK;
    if (config->target_regex)
        return fullmatch(config->target_regex, module_name, out, err);
    *out = listed(&config->target_modules, module_name);
    /* PEFT looks at the layers only where the entry is an ending, not the whole name. */
    if (*out && config->layers_to_transform_count && !tm_names_contain(&config->target_modules, module_name))
        return layer_chosen(config, module_name, out, err);
    return TM_OK;
}

tm_status tm_adapter_pattern(const tm_pattern *patterns, int64_t n, const char *module_name, double fallback,
                             double *out, tm_error *err)
{
    *out = fallback;
    for (int64_t i = 0; i < n; i++) {
        match m;
        TM_TRY(match_at_begin("(.*\\.)?(", patterns[i].key, ")$", 0, module_name, &m, err));
        if (m.found) {
            *out = patterns[i].value;
            return TM_OK;
        }
    }
    return TM_OK;
}
