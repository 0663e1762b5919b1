/* Patterns: from Oniguruma (Ruby syntax), which the peer uses, to PCRE2. Classes of characters are
 * evaluated here, by our own table, and spelled out as ranges, so no library's Unicode version and no
 * difference in what \h, \s or [a&&b] mean reaches a result. Syntax that cannot be carried over
 * exactly is refused, never approximated. */
#include "text/unicode.h"

#include <string.h>

enum { MAX_GROUPS = 64, MAX_CLASS_DEPTH = 16, MAX_REPEAT = 1000 };
#define NO_ATOM SIZE_MAX         /* nothing stands there that could be repeated */
#define AT_START (SIZE_MAX - 1)  /* nor has anything been read: the place for (?i) */

typedef struct translation {
    const char *p, *end;
    const char *name;
    tm_buf *out;
    size_t atom;               /* where the last atom starts in out, or one of the above */
    size_t group[MAX_GROUPS];  /* where open groups start in out */
    int depth;
    tm_error *err;
} translation;

static tm_status refuse(const translation *t, const char *what)
{
    return tm_fail(t->err, TM_UNSUPPORTED, "%s: the pattern has %s, which temper does not support", t->name, what);
}

static tm_status broken(const translation *t, const char *what)
{
    return tm_fail(t->err, TM_INPUT, "%s: the pattern is damaged: %s", t->name, what);
}

/* ---- output ---- */

static void put_code(tm_buf *out, uint32_t code)
{
    if ((code >= '0' && code <= '9') || (code >= 'A' && code <= 'Z') || (code >= 'a' && code <= 'z'))
        tm_buf_char(out, (char)code);
    else
        tm_buf_printf(out, "\\x{%x}", code);
}

static void put_range(tm_buf *out, uint32_t first, uint32_t last)
{
    put_code(out, first);
    if (last > first) {
        tm_buf_char(out, '-');
        put_code(out, last);
    }
}

/* Surrogates cannot stand in UTF-8 and PCRE2 refuses them as ends of a range. */
static void put_set(tm_buf *out, const tm_runes *set, bool negated)
{
    size_t before = out->size;
    tm_buf_text(out, negated ? "[^" : "[");
    bool any = false;
    for (size_t i = 0; i < set->count; i++) {
        uint32_t first = set->range[i][0], last = set->range[i][1];
        if (first >= 0xd800 && last <= 0xdfff)
            continue;
        any = true;
        if (first < 0xd800 && last >= 0xd800 && last <= 0xdfff)
            last = 0xd7ff;
        if (first >= 0xd800 && first <= 0xdfff)
            first = 0xe000;
        put_range(out, first, last);
    }
    tm_buf_char(out, ']');
    if (!any && !out->failed) {
        out->size = before;
        tm_buf_text(out, negated ? "[\\x{0}-\\x{10ffff}]" : "(?!)");
    }
}

static tm_status put_set_done(translation *t, tm_runes *set, bool negated)
{
    t->atom = t->out->size;
    put_set(t->out, set, negated);
    tm_status st = set->failed ? tm_fail(t->err, TM_NO_MEMORY, "out of memory") : TM_OK;
    tm_runes_deinit(set);
    return st;
}

/* ---- escapes ---- */

static bool hex_digits(translation *t, int min, int max, uint32_t *code)
{
    int n = 0;
    for (*code = 0; n < max && t->p < t->end; n++, t->p++) {
        char c = *t->p, lower = (char)(c | 32);
        if (c >= '0' && c <= '9')
            *code = *code * 16 + (uint32_t)(c - '0');
        else if (lower >= 'a' && lower <= 'f')
            *code = *code * 16 + (uint32_t)(lower - 'a' + 10);
        else
            break;
    }
    return n >= min && *code <= TM_UNICODE_MAX && !(*code >= 0xd800 && *code <= 0xdfff);
}

/* After "\p" or "\P": {name} or {^name}. */
static tm_status property(translation *t, bool negated, tm_runes *set)
{
    const char *close = t->p < t->end && *t->p == '{' ? memchr(t->p, '}', (size_t)(t->end - t->p)) : NULL;
    if (!close)
        return broken(t, "\\p without {name}");
    const char *name = t->p + 1;
    if (name < close && *name == '^') {
        negated = !negated;
        name++;
    }
    tm_runes one = {0};
    if (!tm_runes_add_property(&one, name, (size_t)(close - name))) {
        tm_runes_deinit(&one);
        return tm_fail(t->err, TM_UNSUPPORTED, "%s: the pattern has \\p{%.*s}, which temper does not know", t->name,
                       (int)(close - name < 40 ? close - name : 40), name);
    }
    if (negated)
        tm_runes_invert(&one);
    tm_runes_add_set(set, &one);
    tm_runes_deinit(&one);
    t->p = close + 1;
    return TM_OK;
}

/* An escape that stands for a set of characters; *is_set false: not one of those (p stays). */
static tm_status set_escape(translation *t, char c, tm_runes *set, bool *is_set)
{
    tm_runes one = {0};
    *is_set = true;
    switch (c | 32) {
    case 'd': tm_runes_add_categories(&one, TM_CAT(TM_ND)); break;
    case 's': tm_runes_add_space(&one); break;
    case 'w': tm_runes_add_word(&one); break;
    case 'h': tm_runes_add_table(&one, (uint32_t[]){'0', '9', 'A', 'F', 'a', 'f'}, 3); break;
    case 'p': return property(t, c == 'P', set);
    default: *is_set = false; return TM_OK;
    }
    if (c < 'a')
        tm_runes_invert(&one);
    tm_runes_add_set(set, &one);
    tm_runes_deinit(&one);
    return TM_OK;
}

/* An escape that stands for one character; p stands after the letter c. */
static tm_status code_escape(translation *t, char c, uint32_t *code)
{
    static const char letters[] = "nrtfvae0", codes[] = "\n\r\t\f\v\a\x1b";
    const char *at = strchr(letters, c);
    if (c && at && !(c == '0' && t->p < t->end && *t->p >= '0' && *t->p <= '7')) {
        *code = (uint32_t)codes[at - letters];
        return TM_OK;
    }
    if (c == 'x' && t->p < t->end && *t->p == '{') {
        t->p++;
        if (!hex_digits(t, 1, 8, code) || t->p == t->end || *t->p++ != '}')
            return broken(t, "\\x{...}");
        return TM_OK;
    }
    if (c == 'x' || c == 'u')
        return hex_digits(t, c == 'x' ? 1 : 4, c == 'x' ? 2 : 4, code) ? TM_OK : broken(t, "\\x or \\u");
    if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z')) {
        char what[] = {'\\', c, 0};
        return refuse(t, what);
    }
    size_t len;
    *code = tm_utf8_at(t->p - 1, &len);
    t->p += len - 1;
    return TM_OK;
}

/* ---- classes ---- */

static tm_status class_body(translation *t, int depth, tm_runes *set, bool *negated);

/* [:name:] after the opening bracket. */
static tm_status posix_class(translation *t, tm_runes *set)
{
    static const struct { const char *name; char escape; } known[] = {{"digit:]", 'd'}, {"space:]", 's'},
                                                                      {"word:]", 'w'}, {"xdigit:]", 'h'}};
    const char *at = t->p + 1;
    bool negated = at < t->end && *at == '^', is_set;
    at += negated;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        size_t n = strlen(known[i].name);
        if ((size_t)(t->end - at) >= n && !memcmp(at, known[i].name, n)) {
            t->p = at + n;
            return set_escape(t, (char)(negated ? known[i].escape - 32 : known[i].escape), set, &is_set);
        }
    }
    return refuse(t, "a [:class:] other than digit, space, word, xdigit");
}

/* One member of a class: a set (*is_set) or one character. */
static tm_status class_item(translation *t, int depth, tm_runes *set, uint32_t *code, bool *is_set)
{
    char c = *t->p;
    *is_set = false;
    if (c == '\\') {
        if (t->end - t->p < 2)
            return broken(t, "it ends in \\");
        t->p += 2;
        c = t->p[-1];
        TM_TRY(set_escape(t, c, set, is_set));
        if (*is_set)
            return TM_OK;
        if (c == 'b') {
            *code = '\b';
            return TM_OK;
        }
        return code_escape(t, c, code);
    }
    if (c == '[') {
        t->p++;
        *is_set = true;
        if (t->p < t->end && *t->p == ':')
            return posix_class(t, set);
        tm_runes inner = {0};
        bool negated;
        tm_status st = class_body(t, depth + 1, &inner, &negated);
        if (negated)
            tm_runes_invert(&inner);
        tm_runes_add_set(set, &inner);
        tm_runes_deinit(&inner);
        return st;
    }
    size_t len;
    *code = tm_utf8_at(t->p, &len);
    t->p += len;
    return TM_OK;
}

/* The union of items up to "&&" or "]". */
static tm_status class_union(translation *t, int depth, bool first, tm_runes *set)
{
    while (t->p < t->end && (*t->p != ']' || first)) {
        if (t->end - t->p >= 2 && t->p[0] == '&' && t->p[1] == '&')
            return TM_OK;
        uint32_t low = 0, high = 0;
        bool is_set;
        first = false;
        TM_TRY(class_item(t, depth, set, &low, &is_set));
        if (is_set)
            continue;
        high = low;
        if (t->end - t->p >= 2 && t->p[0] == '-' && t->p[1] != ']') {
            t->p++;
            TM_TRY(class_item(t, depth, set, &high, &is_set));
            if (is_set)
                return refuse(t, "a range that ends in a class");
            if (high < low)
                return broken(t, "a range that runs backwards");
        }
        tm_runes_add(set, low, high);
    }
    return TM_OK;
}

/* After "[": up to and with "]". */
static tm_status class_body(translation *t, int depth, tm_runes *set, bool *negated)
{
    *negated = t->p < t->end && *t->p == '^';
    t->p += *negated;
    if (depth > MAX_CLASS_DEPTH)
        return refuse(t, "classes nested too deeply");
    TM_TRY(class_union(t, depth, true, set));
    while (t->end - t->p >= 2 && t->p[0] == '&') {
        tm_runes right = {0};
        t->p += 2;
        tm_status st = class_union(t, depth, false, &right);
        tm_runes_intersect(set, &right);
        tm_runes_deinit(&right);
        TM_TRY(st);
    }
    if (t->p == t->end)
        return broken(t, "a [ without ]");
    t->p++;
    return TM_OK;
}

/* ---- the rest of the grammar ---- */

static tm_status word_border(translation *t, bool negated)
{
    tm_runes word = {0};
    tm_runes_add_word(&word);
    t->atom = t->out->size;
    const char *parts[] = {"(?:(?<=", ")(?!", ")|(?<!", ")(?=", "))"};
    if (negated) {
        parts[1] = ")(?=";
        parts[3] = ")(?!";
    }
    for (int i = 0; i < 5; i++) {
        tm_buf_text(t->out, parts[i]);
        if (i < 4)
            put_set(t->out, &word, false);
    }
    tm_runes_deinit(&word);
    return TM_OK;
}

static tm_status escape(translation *t)
{
    if (t->end - t->p < 2)
        return broken(t, "it ends in \\");
    t->p += 2;
    char c = t->p[-1];
    tm_runes set = {0};
    bool is_set;
    tm_status st = set_escape(t, c, &set, &is_set);
    if (st == TM_OK && is_set)
        return put_set_done(t, &set, false);
    tm_runes_deinit(&set);
    TM_TRY(st);
    t->atom = t->out->size;
    switch (c) {
    case 'b': case 'B': return word_border(t, c == 'B');
    case 'A': case 'z': case 'Z': tm_buf_add(t->out, t->p - 2, 2); return TM_OK;
    case 'R': tm_buf_text(t->out, "(?>\\x{d}\\x{a}|[\\x{a}-\\x{d}\\x{85}\\x{2028}\\x{2029}])"); return TM_OK;
    default: break;
    }
    uint32_t code;
    TM_TRY(code_escape(t, c, &code));
    put_code(t->out, code);
    return TM_OK;
}

/* "(?imx-imx" with Ruby's m (dot matches newlines), which is PCRE2's s. */
static tm_status group_options(translation *t)
{
    for (; t->p < t->end && *t->p != ')' && *t->p != ':'; t->p++) {
        switch (*t->p) {
        case 'i': case '-': tm_buf_char(t->out, *t->p); break;
        case 'm': tm_buf_char(t->out, 's'); break;
        default: return refuse(t, "a group (?...) of an unknown kind");
        }
    }
    if (t->p == t->end)
        return broken(t, "a ( without )");
    if (*t->p == ')' && t->atom != AT_START)
        return refuse(t, "options that change in its middle");
    tm_buf_char(t->out, *t->p++);
    return TM_OK;
}

static tm_status open_group(translation *t)
{
    static const char *const kinds[] = {"(?=", "(?!", "(?<=", "(?<!", "(?>", "(?:"};
    if (t->depth == MAX_GROUPS)
        return refuse(t, "groups nested too deeply");
    t->group[t->depth] = t->out->size;
    size_t left = (size_t)(t->end - t->p);
    if (left < 2 || t->p[1] != '?') {
        t->p++;
        tm_buf_text(t->out, "(?:"); /* nothing refers to a capture */
        t->depth++;
        return TM_OK;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        size_t n = strlen(kinds[i]);
        if (left >= n && !memcmp(t->p, kinds[i], n)) {
            t->p += n;
            tm_buf_text(t->out, kinds[i]);
            t->depth++;
            return TM_OK;
        }
    }
    t->p += 2;
    tm_buf_text(t->out, "(?");
    TM_TRY(group_options(t));
    if (t->p[-1] == ':')
        t->depth++;
    return TM_OK;
}

/* "{n}", "{n,}", "{,m}", "{n,m}" at p; *len 0 when it is no repeat but a plain brace. */
static tm_status interval(translation *t, size_t *len, int *low, int *high)
{
    const char *p = t->p + 1;
    int bound[2] = {-1, -1}, which = 0;
    *len = 0;
    for (; p < t->end && *p != '}'; p++) {
        if (*p == ',' && which == 0)
            which = 1;
        else if (*p >= '0' && *p <= '9') {
            bound[which] = (bound[which] < 0 ? 0 : bound[which]) * 10 + (*p - '0');
            if (bound[which] > MAX_REPEAT)
                return refuse(t, "a repeat count over 1000");
        } else
            return TM_OK;
    }
    if (p == t->end || (bound[0] < 0 && bound[1] < 0))
        return TM_OK;
    *len = (size_t)(p + 1 - t->p);
    *low = bound[0] < 0 ? 0 : bound[0];
    *high = which ? bound[1] : bound[0];
    if (*high >= 0 && *high < *low)
        return refuse(t, "a repeat that runs backwards");
    return TM_OK;
}

/* A further repeat on what is already repeated needs a group of its own. */
static void wrap_atom(translation *t)
{
    tm_buf_text(t->out, "(?:");
    if (t->out->failed)
        return;
    memmove(t->out->data + t->atom + 3, t->out->data + t->atom, t->out->size - 3 - t->atom);
    memcpy(t->out->data + t->atom, "(?:", 3);
    tm_buf_char(t->out, ')');
}

static bool is_repeat(char c) { return c == '*' || c == '+' || c == '?'; }

static tm_status repeats(translation *t)
{
    for (bool again = false; t->p < t->end; again = true) {
        size_t len = 0;
        int low = 0, high = 0;
        if (*t->p == '{')
            TM_TRY(interval(t, &len, &low, &high));
        if (!is_repeat(*t->p) && !len)
            return TM_OK;
        if (t->atom == NO_ATOM)
            return broken(t, "a repeat without anything to repeat");
        if (again)
            wrap_atom(t);
        if (len) {
            tm_buf_printf(t->out, high < 0 ? "{%d,}" : high == low ? "{%d}" : "{%d,%d}", low, high);
            t->p += len;
            /* in Ruby, + after an interval repeats again, and so does ? after {n} */
            if (t->p < t->end && *t->p == '?' && high != low) {
                tm_buf_char(t->out, '?');
                t->p++;
            }
            continue;
        }
        tm_buf_char(t->out, *t->p++);
        if (t->p < t->end && (*t->p == '?' || *t->p == '+'))
            tm_buf_char(t->out, *t->p++);
    }
    return TM_OK;
}

static tm_status one_atom(translation *t)
{
    char c = *t->p;
    t->atom = t->out->size;
    if (c == '\\')
        return escape(t);
    if (c == '[') {
        tm_runes set = {0};
        bool negated = false;
        t->p++;
        tm_status st = class_body(t, 0, &set, &negated);
        if (st == TM_OK)
            return put_set_done(t, &set, negated);
        tm_runes_deinit(&set);
        return st;
    }
    if (c == '.' || c == '^' || c == '$') {
        t->p++;
        tm_buf_char(t->out, c);
        return TM_OK;
    }
    size_t len;
    put_code(t->out, tm_utf8_at(t->p, &len));
    t->p += len;
    return TM_OK;
}

tm_status tm_pattern_translate(const char *pattern, size_t size, const char *name, tm_buf *out, tm_error *err)
{
    translation t = {.p = pattern, .end = pattern + size, .name = name, .out = out, .atom = NO_ATOM, .err = err};
    if (tm_utf8_prefix(pattern, size) != size)
        return broken(&t, "it is not UTF-8");
    while (t.p < t.end) {
        char c = *t.p;
        if (c == '(') {
            t.atom = t.p == pattern ? AT_START : NO_ATOM;
            TM_TRY(open_group(&t));
            t.atom = NO_ATOM;
        } else if (c == ')') {
            if (!t.depth)
                return broken(&t, "a ) without (");
            tm_buf_char(out, c);
            t.p++;
            t.atom = t.group[--t.depth];
            TM_TRY(repeats(&t));
        } else if (c == '|') {
            tm_buf_char(out, c);
            t.p++;
            t.atom = NO_ATOM;
        } else {
            TM_TRY(is_repeat(c) ? TM_OK : one_atom(&t));
            TM_TRY(repeats(&t));
        }
    }
    if (t.depth)
        return broken(&t, "a ( without )");
    return tm_buf_check(out, err);
}
