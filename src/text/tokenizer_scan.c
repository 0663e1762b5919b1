/* Scanners: the split patterns of GPT-2 and of the cl100k family (Qwen, Llama 3), matched by hand,
 * several times as fast as by PCRE2. tests/unit/test_tokenizer.c holds them against PCRE2 on random
 * text. Both patterns match at every position, so pieces follow each other without gaps. */
#include "text/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

const char tm_gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

#define CL100K(digits)                                                                                      \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                                    \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* digits: how many a piece may have; 0: GPT-2's rules. */
static const struct {
    const char *pattern;
    int digits;
} known[] = {{tm_gpt2_pattern, 0}, {CL100K("\\p{N}"), 1}, {CL100K("\\p{N}{1,3}"), 3}};

enum { OTHER, LETTER, NUMBER, SPACE, NEWLINE };

struct tm_scanner {
    int digits;
    uint8_t class_of[TM_UNICODE_MAX + 1];
};

static void mark(tm_scanner *s, uint32_t first, uint32_t last, uint8_t class)
{
    memset(s->class_of + first, class, last - first + 1);
}

tm_status tm_scanner_create(const char *pattern, size_t size, tm_scanner **out, tm_error *err)
{
    size_t which = 0, n = sizeof known / sizeof known[0];
    *out = NULL;
    while (which < n && (strlen(known[which].pattern) != size || memcmp(known[which].pattern, pattern, size)))
        which++;
    if (which == n)
        return TM_OK;
    TM_TRY(TM_NEW(out, 1, err));
    (*out)->digits = known[which].digits;
    for (size_t i = 0; i < tm_unicode_categories_count; i++) {
        uint32_t category = TM_CAT(tm_unicode_categories[i] & 31);
        uint32_t next = i + 1 < tm_unicode_categories_count ? tm_unicode_categories[i + 1] >> 5 : TM_UNICODE_MAX + 1;
        if (category & (TM_CAT_L | TM_CAT_N))
            mark(*out, tm_unicode_categories[i] >> 5, next - 1, category & TM_CAT_L ? LETTER : NUMBER);
    }
    tm_runes space = {0};
    tm_runes_add_space(&space);
    for (size_t i = 0; i < space.count; i++)
        mark(*out, space.range[i][0], space.range[i][1], SPACE);
    tm_status st = space.failed ? tm_fail(err, TM_NO_MEMORY, "out of memory") : TM_OK;
    tm_runes_deinit(&space);
    if ((*out)->digits)
        (*out)->class_of['\n'] = (*out)->class_of['\r'] = NEWLINE;
    if (st != TM_OK) {
        free(*out);
        *out = NULL;
    }
    return st;
}

void tm_scanner_destroy(tm_scanner *scanner) { free(scanner); }

/* Class of the character at `at`, which ends at *next; -1 at the end of the text. */
static inline int class_at(const tm_scanner *s, const char *text, size_t size, size_t at, size_t *next)
{
    if (at >= size)
        return -1;
    uint8_t byte = (uint8_t)text[at];
    if (byte < 0x80) {
        *next = at + 1;
        return s->class_of[byte];
    }
    size_t len;
    uint32_t code = tm_utf8_at(text + at, &len);
    *next = at + len;
    return s->class_of[code];
}

static inline size_t run_of(const tm_scanner *s, const char *text, size_t size, size_t at, int class)
{
    size_t next = at;
    while (class_at(s, text, size, at, &next) == class)
        at = next;
    return at;
}

static bool is_newline(char c) { return c == '\n' || c == '\r'; }

/* Bytes of a contraction ('s, 'll, ...) at text[at], an apostrophe; 0: none. */
static size_t contraction(const char *text, size_t size, size_t at, bool any_case)
{
    size_t left = size - at;
    if (left < 2)
        return 0;
    char a = text[at + 1], b = left > 2 ? text[at + 2] : 0;
    if (any_case) {
        if (a == '\xc5' && b == '\xbf') /* long s folds to s */
            return 3;
        a = a >= 'A' && a <= 'Z' ? (char)(a | 32) : a;
        b = b >= 'A' && b <= 'Z' ? (char)(b | 32) : b;
    }
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return 2;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* White space from at on: all of it at the end of the text, else all but its last character, else
 * that one. cl100k: if there is a newline in it, up to the last one. */
static size_t white(const tm_scanner *s, const char *text, size_t size, size_t at)
{
    size_t end = at, last = at, newline = 0, next = at;
    for (int class; (class = class_at(s, text, size, end, &next)) == SPACE || class == NEWLINE; end = next) {
        last = end;
        if (class == NEWLINE)
            newline = next;
    }
    if (newline)
        return newline;
    return end == size || last == at ? end : last;
}

static size_t others(const tm_scanner *s, const char *text, size_t size, size_t at)
{
    at = run_of(s, text, size, at, OTHER);
    while (s->digits && at < size && is_newline(text[at]))
        at++;
    return at;
}

static size_t gpt2_next(const tm_scanner *s, const char *text, size_t size, size_t at)
{
    size_t next = at, after = at, n;
    int class = class_at(s, text, size, at, &next);
    if (text[at] == '\'' && (n = contraction(text, size, at, false)))
        return at + n;
    if (text[at] == ' ') {
        int ahead = class_at(s, text, size, next, &after);
        if (ahead == LETTER || ahead == NUMBER || ahead == OTHER)
            return run_of(s, text, size, after, ahead);
    }
    return class == SPACE ? white(s, text, size, at) : run_of(s, text, size, next, class);
}

static size_t cl100k_next(const tm_scanner *s, const char *text, size_t size, size_t at)
{
    size_t next = at, after = at, n;
    int class = class_at(s, text, size, at, &next);
    if (text[at] == '\'' && (n = contraction(text, size, at, true)))
        return at + n;
    if (class == LETTER)
        return run_of(s, text, size, next, LETTER);
    if (class == NUMBER) {
        for (int i = 1; i < s->digits && class_at(s, text, size, next, &after) == NUMBER; i++)
            next = after;
        return next;
    }
    int ahead = class == NEWLINE ? -1 : class_at(s, text, size, next, &after);
    if (ahead == LETTER)
        return run_of(s, text, size, after, LETTER);
    if (class == OTHER || (text[at] == ' ' && ahead == OTHER))
        return others(s, text, size, next);
    return white(s, text, size, at);
}

size_t tm_scanner_next(const tm_scanner *s, const char *text, size_t size, size_t at)
{
    return s->digits ? cl100k_next(s, text, size, at) : gpt2_next(s, text, size, at);
}
