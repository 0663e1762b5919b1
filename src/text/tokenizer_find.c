/* Finders: literal text, regular expressions, scanners and sets of characters behind one search.
 * A regular expression runs in PCRE2's JIT with a stack and limits of its own: a pattern that would
 * need more is an error, not a hang. */
#include "text/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum { JIT_STACK_START = 32 << 10, JIT_STACK_MOST = 32 << 20, MATCH_LIMIT = 100000000, HEAP_LIMIT_KIB = 256 << 10 };

/* ---- working memory ---- */

tm_status tm_match_memory_init(tm_match_memory *memory, tm_error *err)
{
    *memory = (tm_match_memory){pcre2_match_data_create(1, NULL), pcre2_match_context_create(NULL),
                                pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MOST, NULL)};
    if (!memory->data || !memory->context || !memory->stack) {
        tm_match_memory_deinit(memory);
        return tm_fail(err, TM_NO_MEMORY, "out of memory (for matching)");
    }
    pcre2_set_match_limit(memory->context, MATCH_LIMIT);
    pcre2_set_heap_limit(memory->context, HEAP_LIMIT_KIB);
    pcre2_jit_stack_assign(memory->context, NULL, memory->stack);
    return TM_OK;
}

void tm_match_memory_deinit(tm_match_memory *memory)
{
    pcre2_match_data_free(memory->data);
    pcre2_match_context_free(memory->context);
    pcre2_jit_stack_free(memory->stack);
    *memory = (tm_match_memory){0};
}

/* ---- making ---- */

tm_status tm_finder_text(tm_finder *finder, const char *text, size_t size, const char *name, tm_error *err)
{
    if (!size)
        return tm_fail(err, TM_UNSUPPORTED, "%s: an empty text to look for", name);
    finder->kind = TM_FIND_TEXT;
    tm_buf_add(&finder->text, text, size);
    return tm_buf_check(&finder->text, err);
}

static tm_status compile(tm_finder *finder, const tm_buf *pattern, const char *name, tm_error *err)
{
    int code;
    size_t at;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context)
        return tm_fail(err, TM_NO_MEMORY, "out of memory (for a pattern)");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    finder->code = pcre2_compile((PCRE2_SPTR)tm_buf_str(pattern), pattern->size,
                                 PCRE2_UTF | PCRE2_MULTILINE | PCRE2_NO_UTF_CHECK, &code, &at, context);
    pcre2_compile_context_free(context);
    if (!finder->code) {
        PCRE2_UCHAR text[160];
        pcre2_get_error_message(code, text, sizeof text);
        return tm_fail(err, code == PCRE2_ERROR_HEAP_FAILED ? TM_NO_MEMORY : TM_INPUT, "%s: the pattern is damaged: %s",
                       name, (const char *)text);
    }
    code = pcre2_jit_compile(finder->code, PCRE2_JIT_COMPLETE); /* without a JIT the interpreter matches */
    return code == PCRE2_ERROR_NOMEMORY ? tm_fail(err, TM_NO_MEMORY, "out of memory (for a pattern)") : TM_OK;
}

tm_status tm_finder_regex(tm_finder *finder, const char *pattern, size_t size, bool scan, const char *name, tm_error *err)
{
    if (size > TM_PATTERN_BYTES)
        return tm_fail(err, TM_INPUT, "%s: a pattern of %zu bytes, expected at most %d", name, size, TM_PATTERN_BYTES);
    if (scan) {
        finder->kind = TM_FIND_SCAN;
        TM_TRY(tm_scanner_create(pattern, size, &finder->scanner, err));
        if (finder->scanner)
            return TM_OK;
    }
    finder->kind = TM_FIND_REGEX;
    tm_buf translated = {0};
    tm_status st = tm_pattern_translate(pattern, size, name, &translated, err);
    if (st == TM_OK)
        st = compile(finder, &translated, name, err);
    tm_buf_deinit(&translated);
    return st;
}

tm_status tm_finder_set(tm_finder *finder, tm_runes *set, tm_error *err)
{
    finder->kind = TM_FIND_SET;
    finder->set = *set;
    *set = (tm_runes){0};
    for (uint32_t c = 0; c < 128; c++)
        finder->bits[c] = tm_runes_has(&finder->set, c);
    return finder->set.failed ? tm_fail(err, TM_NO_MEMORY, "out of memory") : TM_OK;
}

void tm_finder_deinit(tm_finder *finder)
{
    tm_buf_deinit(&finder->text);
    pcre2_code_free(finder->code);
    tm_scanner_destroy(finder->scanner);
    tm_runes_deinit(&finder->set);
    *finder = (tm_finder){0};
}

tm_status tm_finder_parse(tm_finder *finder, const json_t *pattern, bool scan, const char *name, tm_error *err)
{
    const json_t *text = json_object_get(pattern, "String"), *regex = json_object_get(pattern, "Regex");
    const json_t *value = text ? text : regex;
    if (json_object_size(pattern) != 1 || !json_is_string(value))
        return tm_fail(err, TM_INPUT, "%s: \"pattern\" is not {\"String\": text} or {\"Regex\": text}", name);
    if (text)
        return tm_finder_text(finder, json_string_value(value), json_string_length(value), name, err);
    return tm_finder_regex(finder, json_string_value(value), json_string_length(value), scan, name, err);
}

/* ---- searching ---- */

void tm_find_start(tm_find *find, const tm_finder *finder, const char *text, size_t size)
{
    *find = (tm_find){.finder = finder, .text = text, .size = size, .done = size == 0};
}

/* As Oniguruma's iterator: an empty match right behind the last match is passed over. */
static tm_status next_regex(tm_find *f, tm_match_memory *memory, size_t *start, size_t *end, bool *found, tm_error *err)
{
    while (f->at <= f->size) {
        int n = pcre2_match(f->finder->code, (PCRE2_SPTR)f->text, f->size, f->at, PCRE2_NO_UTF_CHECK, memory->data,
                            memory->context);
        if (n == PCRE2_ERROR_NOMATCH)
            break;
        if (n < 0)
            return tm_fail(err, n == PCRE2_ERROR_NOMEMORY ? TM_NO_MEMORY : TM_FAILED,
                           "the tokenizer's pattern needs too much work at byte %zu of a text of %zu (PCRE2 error %d)",
                           f->at, f->size, n);
        const size_t *at = pcre2_get_ovector_pointer(memory->data);
        if (at[0] == at[1] && f->any && at[1] == f->last_end) {
            size_t len = 1;
            if (f->at < f->size)
                tm_utf8_at(f->text + f->at, &len);
            f->at += len;
            continue;
        }
        *start = at[0];
        *end = f->at = f->last_end = at[1];
        *found = f->any = true;
        return TM_OK;
    }
    f->done = true;
    return TM_OK;
}

static bool next_in_set(const tm_find *f, size_t *start, size_t *end)
{
    for (size_t i = f->at, len; i < f->size; i += len) {
        uint8_t byte = (uint8_t)f->text[i];
        uint32_t code = tm_utf8_at(f->text + i, &len);
        if (byte < 0x80 ? f->finder->bits[byte] : tm_runes_has(&f->finder->set, code)) {
            *start = i;
            *end = i + len;
            return true;
        }
    }
    return false;
}

tm_status tm_find_next(tm_find *f, tm_match_memory *memory, size_t *start, size_t *end, bool *found, tm_error *err)
{
    *found = false;
    if (f->done)
        return TM_OK;
    const char *at;
    switch (f->finder->kind) {
    case TM_FIND_REGEX: return next_regex(f, memory, start, end, found, err);
    case TM_FIND_SCAN:
        *found = f->at < f->size;
        *start = f->at;
        *end = *found ? tm_scanner_next(f->finder->scanner, f->text, f->size, f->at) : f->at;
        break;
    case TM_FIND_TEXT:
        at = memmem(f->text + f->at, f->size - f->at, f->finder->text.data, f->finder->text.size);
        *found = at != NULL;
        if (at) {
            *start = (size_t)(at - f->text);
            *end = *start + f->finder->text.size;
        }
        break;
    case TM_FIND_SET: *found = next_in_set(f, start, end); break;
    }
    if (*found)
        f->at = *end;
    else
        f->done = true;
    return TM_OK;
}
