/* The quick way into rows of token ids: numbers straight from the text, without a JSON tree. It takes
 * only rows that are objects of the two lists and nothing else, written without escapes; whatever else
 * it meets, right or wrong, it leaves to the JSON parser, so there is one judge of what JSON is. */
#include "text/rows.h"

#include <string.h>

typedef struct scan {
    const char *at, *end;
} scan;

static bool next_is(scan *s, char c)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\r' || *s->at == '\n'))
        s->at++;
    if (s->at >= s->end || *s->at != c)
        return false;
    s->at++;
    return true;
}

/* -?(0|[1-9][0-9]{0,8}): what fits 32 bits without a look. */
static bool number(scan *s, int32_t *out)
{
    bool minus = next_is(s, '-'); /* skips the space before the number, too */
    const char *start = s->at;
    int32_t value = 0;
    while (s->at < s->end && *s->at >= '0' && *s->at <= '9' && s->at - start < 9)
        value = value * 10 + (*s->at++ - '0');
    if (s->at == start || (*start == '0' && s->at - start > 1))
        return false;
    *out = minus ? -value : value;
    return true; /* a digit more, a point or an exponent is not what comes next */
}

static bool list(scan *s, tm_ids *out)
{
    out->count = 0;
    if (!next_is(s, '['))
        return false;
    if (next_is(s, ']'))
        return true;
    do {
        if (TM_GROW(&out->id, &out->capacity, out->count + 1, NULL) != TM_OK || !number(s, &out->id[out->count++]))
            return false;
    } while (next_is(s, ','));
    return next_is(s, ']');
}

static bool key(scan *s, const char *name)
{
    size_t n = strlen(name);
    if ((size_t)(s->end - s->at) <= n || memcmp(s->at, name, n) != 0 || s->at[n] != '"')
        return false;
    s->at += n + 1;
    return true;
}

bool tm_row_scan_ids(const tm_row_rules *rules, const tm_row *row, tm_ids *ids, tm_ids *labels, bool *has_labels)
{
    scan s = {row->text, row->text + row->size};
    bool has_ids = false;
    *has_labels = false;
    if (!next_is(&s, '{'))
        return false;
    do {
        if (!next_is(&s, '"'))
            return false;
        bool is_ids = key(&s, rules->column[TM_COLUMN_IDS]);
        bool *seen = is_ids ? &has_ids : has_labels;
        if (*seen || (!is_ids && !key(&s, rules->column[TM_COLUMN_LABELS])) || !next_is(&s, ':') ||
            !list(&s, is_ids ? ids : labels))
            return false;
        *seen = true;
    } while (next_is(&s, ','));
    return next_is(&s, '}') && s.at == s.end && has_ids;
}
