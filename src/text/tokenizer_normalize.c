/* Normalisers: what happens to text before anything looks for words in it. A step that would change
 * nothing is passed over without copying, which is what most text meets. */
#include "text/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

/* ---- parsing ---- */

static tm_status new_step(tm_normalizer *n, tm_norm_kind kind, const char *name, tm_norm **step, tm_error *err)
{
    if (n->count == TM_TOKENIZER_STEPS)
        return tm_fail(err, TM_INPUT, "%s: more than %d normalisers", name, TM_TOKENIZER_STEPS);
    TM_TRY(TM_GROW(&n->step, &n->capacity, n->count + 1, err));
    *step = &n->step[n->count++];
    **step = (tm_norm){.kind = kind};
    return TM_OK;
}

static tm_status parse_one(void *target, const json_t *json, const char *name, tm_error *err)
{
    static const char *const forms[] = {"NFC", "NFD", "NFKC", "NFKD"};
    tm_normalizer *n = target;
    tm_norm *step;
    const char *type = tm_part_type(json);
    for (int i = 0; i < 4; i++) {
        if (!strcmp(type, forms[i])) {
            TM_TRY(new_step(n, TM_NORM_FORM, name, &step, err));
            step->form = (tm_form)i;
            return TM_OK;
        }
    }
    static const struct { const char *type; tm_norm_kind kind; } plain[] = {
        {"Lowercase", TM_NORM_LOWER}, {"StripAccents", TM_NORM_ACCENTS}, {"Nmt", TM_NORM_NMT}, {"ByteLevel", TM_NORM_BYTES}};
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++)
        if (!strcmp(type, plain[i].type))
            return new_step(n, plain[i].kind, name, &step, err);
    if (!strcmp(type, "Precompiled")) {
        TM_TRY(new_step(n, TM_NORM_CHARSMAP, name, &step, err));
        return tm_charsmap_parse_json(&step->map, json, name, err);
    }
    if (!strcmp(type, "Prepend")) {
        TM_TRY(new_step(n, TM_NORM_PREPEND, name, &step, err));
        return tm_part_text(&step->content, json, "prepend", name, err);
    }
    if (!strcmp(type, "Replace")) {
        TM_TRY(new_step(n, TM_NORM_REPLACE, name, &step, err));
        TM_TRY(tm_part_text(&step->content, json, "content", name, err));
        return tm_finder_parse(&step->finder, json_object_get(json, "pattern"), false, name, err);
    }
    if (!strcmp(type, "Strip")) {
        TM_TRY(new_step(n, TM_NORM_STRIP, name, &step, err));
        TM_TRY(tm_json_get_bool(json, name, "strip_left", false, &step->left, err));
        return tm_json_get_bool(json, name, "strip_right", false, &step->right, err);
    }
    return tm_fail(err, TM_UNSUPPORTED, "%s: a normaliser of type \"%.60s\", expected NFC, NFD, NFKC, NFKD, Lowercase, "
                   "Prepend, Replace, Strip, Precompiled, StripAccents, Nmt, ByteLevel or Sequence", name, type);
}

tm_status tm_normalizer_parse(tm_normalizer *n, const json_t *json, const char *name, tm_error *err)
{
    return tm_part_each(n, json, "normalizers", name, parse_one, err);
}

void tm_normalizer_deinit(tm_normalizer *n)
{
    for (size_t i = 0; i < n->count; i++) {
        tm_buf_deinit(&n->step[i].content);
        tm_finder_deinit(&n->step[i].finder);
        tm_charsmap_deinit(&n->step[i].map);
    }
    free(n->step);
    *n = (tm_normalizer){0};
}

/* ---- running ---- */

tm_status tm_normal_too_long(size_t before, tm_error *err)
{
    return tm_fail(err, TM_INPUT, "the tokenizer's normaliser makes a text of %zu bytes more than %d times as long", before, TM_NORMAL_GROWTH);
}

static tm_status replace(const tm_norm *step, tm_match_memory *memory, const char *text, size_t size, tm_buf *out,
                         bool *changed, bool *first, tm_error *err)
{
    tm_find find;
    size_t done = 0, start = 0, end = 0, len;
    bool found = false;
    *changed = false;
    tm_find_start(&find, &step->finder, text, size);
    for (;;) {
        TM_TRY(tm_find_next(&find, memory, &start, &end, &found, err));
        if (!found)
            break;
        *changed = true;
        if (start == 0 && end > 0 && (!step->content.size || (tm_utf8_at(text, &len), len < end)))
            *first = false;
        tm_buf_add(out, text + done, start - done);
        tm_buf_add(out, tm_buf_str(&step->content), step->content.size);
        if (!tm_normal_fits(size, out->size))
            return tm_normal_too_long(size, err);
        done = end;
    }
    if (*changed)
        tm_buf_add(out, text + done, size - done);
    return tm_buf_check(out, err);
}

static void strip(const tm_norm *step, const char **text, size_t *size)
{
    size_t len;
    while (step->left && *size && tm_unicode_is_space(tm_utf8_at(*text, &len))) {
        *text += len;
        *size -= len;
    }
    while (step->right && *size && tm_unicode_is_space(tm_utf8_before(*text, *size, &len)))
        *size -= len;
}

static void strip_accents(const char *text, size_t size, tm_buf *out, bool *changed, bool *first)
{
    for (size_t i = 0, len; i < size; i += len) {
        uint32_t code = tm_utf8_at(text + i, &len);
        *first &= i == 0 || out->size > 0;
        if (code >= 0x300 && tm_ranges_have(tm_unicode_accents, tm_unicode_accents_count, code))
            *changed = true;
        else
            tm_buf_add(out, text + i, len);
    }
}

/* Control characters vanish, white space and what stands for it becomes a space. */
static void nmt(const char *text, size_t size, tm_buf *out, bool *changed, bool *first)
{
    static const uint32_t gone[] = {0x1, 0x8, 0xb, 0xb, 0xe, 0x1f, 0x7f, 0x7f, 0x8f, 0x8f, 0x9f, 0x9f};
    static const uint32_t spaces[] = {0x9, 0xa, 0xc, 0xd, 0x1680, 0x1680, 0x200b, 0x200f, 0x2028, 0x2029, 0x2581, 0x2581,
                                      0xfeff, 0xfeff, 0xfffd, 0xfffd};
    for (size_t i = 0, len; i < size; i += len) {
        uint32_t code = tm_utf8_at(text + i, &len);
        *first &= i == 0 || out->size > 0;
        bool space = tm_ranges_have(spaces, sizeof spaces / sizeof spaces[0] / 2, code);
        if (space || tm_ranges_have(gone, sizeof gone / sizeof gone[0] / 2, code)) {
            *changed = true;
            tm_buf_add(out, " ", space);
        } else
            tm_buf_add(out, text + i, len);
    }
}

static tm_status run_step(const tm_norm *step, tm_match_memory *memory, const char **text, size_t *size, tm_buf *out,
                          bool *changed, bool *first, tm_error *err)
{
    const char *start = *text;
    *changed = false;
    switch (step->kind) {
    case TM_NORM_FORM:
        if (tm_unicode_is_normal(*text, *size, step->form))
            return TM_OK;
        *changed = true;
        return tm_unicode_normalize(*text, *size, step->form, out, err);
    case TM_NORM_LOWER:
        *changed = true;
        tm_unicode_lower_case(*text, *size, out);
        return tm_buf_check(out, err);
    case TM_NORM_PREPEND:
        *changed = *size > 0;
        if (*changed) {
            tm_buf_add(out, tm_buf_str(&step->content), step->content.size);
            tm_buf_add(out, *text, *size);
        }
        return tm_buf_check(out, err);
    case TM_NORM_REPLACE: return replace(step, memory, *text, *size, out, changed, first, err);
    case TM_NORM_STRIP:
        strip(step, text, size);
        *first &= *text == start;
        return TM_OK;
    case TM_NORM_CHARSMAP: return step->map.units ? tm_charsmap_run(&step->map, *text, *size, out, changed, err) : TM_OK;
    case TM_NORM_ACCENTS: strip_accents(*text, *size, out, changed, first); return tm_buf_check(out, err);
    case TM_NORM_NMT: nmt(*text, *size, out, changed, first); return tm_buf_check(out, err);
    case TM_NORM_BYTES:
        *changed = true;
        tm_byte_chars(*text, *size, out);
        return tm_buf_check(out, err);
    }
    return TM_OK;
}

tm_status tm_normalizer_run(const tm_normalizer *n, tm_match_memory *memory, tm_buf *a, tm_buf *b, const char **text, size_t *size,
                            bool *first, tm_error *err)
{
    size_t before = *size;
    for (size_t i = 0; i < n->count; i++) {
        bool changed;
        tm_buf_clear(a);
        TM_TRY(run_step(&n->step[i], memory, text, size, a, &changed, first, err));
        if (!changed)
            continue;
        *text = tm_buf_str(a);
        *size = a->size;
        if (!tm_normal_fits(before, *size))
            return tm_normal_too_long(before, err);
        tm_buf *other = a;
        a = b;
        b = other;
    }
    return TM_OK;
}
