/* Pre-tokenisers: text into pieces, which the model then takes one by one. A Sequence is a list of
 * steps, and each step works on a piece of the one before, so pieces stream depth first and nothing
 * but the piece at hand is held. */
#include "text/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

/* ---- the byte-level alphabet ---- */

/* Printable bytes of Latin-1 stand for themselves, the 68 others for U+0100 on. */
static bool byte_prints(uint32_t b) { return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad && b <= 0xff); }

uint32_t tm_byte_char(uint8_t byte)
{
    if (byte_prints(byte))
        return byte;
    return byte <= 0x20 ? 0x100u + byte : byte < 0xad ? 0x100u + 0x21 + (byte - 0x7fu) : 0x143;
}

void tm_byte_chars(const char *bytes, size_t size, tm_buf *out)
{
    for (size_t i = 0; i < size; i++) {
        char c[4];
        tm_buf_add(out, c, (size_t)tm_utf8_put(tm_byte_char((uint8_t)bytes[i]), c));
    }
}

int tm_char_byte(uint32_t code)
{
    if (code < 0x100)
        return byte_prints(code) ? (int)code : -1;
    if (code <= 0x120)
        return (int)(code - 0x100);
    return code <= 0x142 ? (int)(code - 0x121 + 0x7f) : code == 0x143 ? 0xad : -1;
}

/* ---- parsing ---- */

static tm_status new_step(tm_splitter *s, tm_split_kind kind, const char *name, tm_split **step, tm_error *err)
{
    if (s->count == TM_TOKENIZER_STEPS)
        return tm_fail(err, TM_INPUT, "%s: more than %d pre-tokenisers", name, TM_TOKENIZER_STEPS);
    TM_TRY(TM_GROW(&s->step, &s->capacity, s->count + 1, err));
    *step = &s->step[s->count++];
    **step = (tm_split){.kind = kind};
    return TM_OK;
}

static tm_status parse_behavior(const json_t *json, const char *name, const char *fallback, tm_behavior *out, tm_error *err)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *text;
    TM_TRY(tm_json_get_string(json, name, "behavior", fallback, &text, err));
    for (int i = 0; text && i < 5; i++) {
        if (!strcmp(text, names[i])) {
            *out = (tm_behavior)i;
            return TM_OK;
        }
    }
    return tm_fail(err, TM_INPUT, "%s: \"behavior\" is \"%.40s\", expected Isolated, Removed, MergedWithPrevious, "
                   "MergedWithNext or Contiguous", name, text ? text : "missing");
}

static tm_status parse_byte_level(tm_splitter *s, const json_t *json, const char *name, tm_error *err)
{
    tm_split *step;
    bool prefix, regex;
    TM_TRY(tm_json_get_bool(json, name, "add_prefix_space", true, &prefix, err));
    TM_TRY(tm_json_get_bool(json, name, "use_regex", true, &regex, err));
    if (prefix)
        TM_TRY(new_step(s, TM_SPLIT_PREFIX, name, &step, err));
    if (regex) {
        TM_TRY(new_step(s, TM_SPLIT_FIND, name, &step, err));
        TM_TRY(tm_finder_regex(&step->finder, tm_gpt2_pattern, strlen(tm_gpt2_pattern), true, name, err));
    }
    return new_step(s, TM_SPLIT_BYTES, name, &step, err);
}

static tm_status parse_metaspace(tm_splitter *s, const json_t *json, const char *name, tm_error *err)
{
    static const char *const schemes[] = {"always", "first", "never"};
    const char *mark, *scheme;
    bool prefix, split;
    tm_split *step;
    size_t len = 0;
    TM_TRY(tm_json_get_string(json, name, "replacement", NULL, &mark, err));
    TM_TRY(tm_json_get_bool(json, name, "add_prefix_space", true, &prefix, err));
    TM_TRY(tm_json_get_string(json, name, "prepend_scheme", prefix ? "always" : "never", &scheme, err));
    TM_TRY(tm_json_get_bool(json, name, "split", true, &split, err));
    if (!mark || !*mark || (tm_utf8_at(mark, &len), mark[len]))
        return tm_fail(err, TM_INPUT, "%s: \"replacement\" is not one character", name);
    TM_TRY(new_step(s, TM_SPLIT_METASPACE, name, &step, err));
    memcpy(step->mark, mark, len);
    int which = 0;
    while (which < 3 && strcmp(scheme, schemes[which]))
        which++;
    if (which == 3 || (!prefix && which != TM_PREPEND_NEVER))
        return tm_fail(err, TM_INPUT, "%s: \"prepend_scheme\" is \"%.40s\"%s", name, scheme,
                       which == 3 ? ", expected always, first or never" : " although add_prefix_space is false");
    step->prepend = (tm_prepend)which;
    if (!split)
        return TM_OK;
    TM_TRY(new_step(s, TM_SPLIT_FIND, name, &step, err));
    step->behavior = TM_MERGED_WITH_NEXT;
    return tm_finder_text(&step->finder, mark, len, name, err);
}

/* The pre-tokenisers that look for one character of a set. */
static tm_status parse_set(tm_splitter *s, const char *type, const json_t *json, const char *name, tm_error *err)
{
    tm_split *step;
    tm_runes set = {0}, less = {0};
    bool individual = true;
    TM_TRY(new_step(s, TM_SPLIT_FIND, name, &step, err));
    if (!strcmp(type, "Digits")) {
        TM_TRY(tm_json_get_bool(json, name, "individual_digits", false, &individual, err));
        step->behavior = individual ? TM_ISOLATED : TM_CONTIGUOUS;
        tm_runes_add_categories(&set, TM_CAT_N);
        tm_runes_add_table(&set, tm_unicode_digits_more, tm_unicode_digits_more_count);
    } else if (!strcmp(type, "Punctuation")) {
        TM_TRY(parse_behavior(json, name, "Isolated", &step->behavior, err));
        tm_runes_add_categories(&set, TM_CAT_P);
        tm_runes_add_table(&set, (uint32_t[]){'!', '/', ':', '@', '[', '`', '{', '~'}, 4);
        tm_runes_add_table(&set, tm_unicode_punctuation_more, tm_unicode_punctuation_more_count);
        tm_runes_add_table(&less, tm_unicode_punctuation_less, tm_unicode_punctuation_less_count);
        tm_runes_invert(&less);
        tm_runes_intersect(&set, &less);
        tm_runes_deinit(&less);
    } else { /* WhitespaceSplit */
        step->behavior = TM_REMOVED;
        tm_runes_add_space(&set);
    }
    tm_status st = tm_finder_set(&step->finder, &set, err);
    tm_runes_deinit(&set);
    return st;
}

/* "\w+|[^\w\s]+" of Rust's regex crate, whose \w is a little wider than Oniguruma's. */
static tm_status parse_whitespace(tm_splitter *s, const char *name, tm_error *err)
{
    static const char pattern[] = "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\u200c\\u200d\\u24b6-\\u24e9\\x{1f130}-\\x{1f149}"
                                  "\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}]+|[^\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\u200c"
                                  "\\u200d\\u24b6-\\u24e9\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}\\s]+";
    tm_split *step;
    TM_TRY(new_step(s, TM_SPLIT_FIND, name, &step, err));
    step->behavior = TM_REMOVED;
    step->invert = true;
    return tm_finder_regex(&step->finder, pattern, sizeof pattern - 1, false, name, err);
}

static tm_status parse_delimiter(tm_splitter *s, const json_t *json, const char *name, tm_error *err)
{
    tm_split *step;
    const char *text;
    size_t len = 0;
    TM_TRY(tm_json_get_string(json, name, "delimiter", "", &text, err));
    if (!*text || (tm_utf8_at(text, &len), text[len]))
        return tm_fail(err, TM_INPUT, "%s: \"delimiter\" is not one character", name);
    TM_TRY(new_step(s, TM_SPLIT_FIND, name, &step, err));
    step->behavior = TM_REMOVED;
    return tm_finder_text(&step->finder, text, len, name, err);
}

static tm_status parse_one(void *target, const json_t *json, const char *name, tm_error *err)
{
    tm_splitter *s = target;
    const char *type = tm_part_type(json);
    tm_split *step;
    if (!strcmp(type, "ByteLevel"))
        return parse_byte_level(s, json, name, err);
    if (!strcmp(type, "Metaspace"))
        return parse_metaspace(s, json, name, err);
    if (!strcmp(type, "Digits") || !strcmp(type, "Punctuation") || !strcmp(type, "WhitespaceSplit"))
        return parse_set(s, type, json, name, err);
    if (!strcmp(type, "Whitespace"))
        return parse_whitespace(s, name, err);
    if (!strcmp(type, "CharDelimiterSplit"))
        return parse_delimiter(s, json, name, err);
    if (!strcmp(type, "Split")) {
        TM_TRY(new_step(s, TM_SPLIT_FIND, name, &step, err));
        TM_TRY(tm_json_get_bool(json, name, "invert", false, &step->invert, err));
        TM_TRY(parse_behavior(json, name, NULL, &step->behavior, err));
        return tm_finder_parse(&step->finder, json_object_get(json, "pattern"), true, name, err);
    }
    return tm_fail(err, TM_UNSUPPORTED, "%s: a pre-tokeniser of type \"%.60s\", expected ByteLevel, Split, Metaspace, Digits, "
                   "Punctuation, Whitespace, WhitespaceSplit, CharDelimiterSplit or Sequence", name, type);
}

tm_status tm_splitter_parse(tm_splitter *s, const json_t *json, const char *name, tm_error *err)
{
    return tm_part_each(s, json, "pretokenizers", name, parse_one, err);
}

void tm_splitter_deinit(tm_splitter *s)
{
    for (size_t i = 0; i < s->count; i++)
        tm_finder_deinit(&s->step[i].finder);
    free(s->step);
    *s = (tm_splitter){0};
}

bool tm_splitter_ends_in_bytes(const tm_splitter *s)
{
    size_t bytes = 0;
    for (size_t i = 0; i < s->count; i++)
        bytes += s->step[i].kind == TM_SPLIT_BYTES;
    return bytes == 1 && s->step[s->count - 1].kind == TM_SPLIT_BYTES;
}

/* ---- running ---- */

static tm_status pass(const tm_splitting *run, size_t step, const char *text, size_t start, size_t end, bool first)
{
    return start == end ? TM_OK : tm_splitter_run(run, step + 1, text + start, end - start, first && start == 0);
}

/* The stretches between and of matches, as the behaviour joins them. One stretch waits (held) until
 * it is known whether the next one joins it. */
typedef struct joining {
    size_t start, end;
    bool held, match; /* match: of the stretch that came last */
} joining;

static tm_status stretch(const tm_splitting *run, size_t step, const char *text, bool first, joining *j, size_t start,
                         size_t end, bool match)
{
    const tm_split *s = &run->splitter->step[step];
    bool join = false;
    match ^= s->invert;
    switch (s->behavior) {
    case TM_ISOLATED: return pass(run, step, text, start, end, first);
    case TM_REMOVED: return match ? TM_OK : pass(run, step, text, start, end, first);
    case TM_CONTIGUOUS: join = j->held && match == j->match; break;
    case TM_MERGED_WITH_PREVIOUS: join = j->held && match && !j->match; break;
    case TM_MERGED_WITH_NEXT: join = j->held && !match && j->match; break;
    }
    if (!join && j->held)
        TM_TRY(pass(run, step, text, j->start, j->end, first));
    if (!join)
        j->start = start;
    j->end = end;
    j->held = true;
    j->match = match;
    return TM_OK;
}

static tm_status run_find(const tm_splitting *run, size_t step, const char *text, size_t size, bool first)
{
    tm_find find;
    joining j = {0};
    size_t done = 0, start = 0, end = 0;
    tm_find_start(&find, &run->splitter->step[step].finder, text, size);
    for (bool found;;) {
        TM_TRY(tm_find_next(&find, run->memory, &start, &end, &found, run->err));
        if (!found)
            break;
        if (start > done)
            TM_TRY(stretch(run, step, text, first, &j, done, start, false));
        TM_TRY(stretch(run, step, text, first, &j, start, end, true));
        done = end;
    }
    if (done < size)
        TM_TRY(stretch(run, step, text, first, &j, done, size, false));
    return j.held ? pass(run, step, text, j.start, j.end, first) : TM_OK;
}

static void to_metaspace(const tm_split *s, const char *text, size_t size, bool first, tm_buf *out)
{
    size_t len = strlen(s->mark);
    bool marked = text[0] == ' ' || (size >= len && !memcmp(text, s->mark, len));
    if (!marked && (s->prepend == TM_PREPEND_ALWAYS || (s->prepend == TM_PREPEND_FIRST && first)))
        tm_buf_add(out, s->mark, len);
    for (const char *end = text + size; text < end;) {
        const char *space = memchr(text, ' ', (size_t)(end - text));
        tm_buf_add(out, text, (size_t)((space ? space : end) - text));
        if (!space)
            break;
        tm_buf_add(out, s->mark, len);
        text = space + 1;
    }
}

tm_status tm_splitter_run(const tm_splitting *run, size_t step, const char *text, size_t size, bool first)
{
    if (!size)
        return TM_OK;
    if (step == run->splitter->count)
        return run->take(run->context, text, size, run->err);
    const tm_split *s = &run->splitter->step[step];
    tm_buf *out = &run->buffers[step];
    tm_buf_clear(out);
    switch (s->kind) {
    case TM_SPLIT_FIND: return run_find(run, step, text, size, first);
    case TM_SPLIT_PREFIX:
        if (text[0] == ' ')
            return tm_splitter_run(run, step + 1, text, size, first);
        tm_buf_char(out, ' ');
        tm_buf_add(out, text, size);
        break;
    case TM_SPLIT_METASPACE: to_metaspace(s, text, size, first, out); break;
    case TM_SPLIT_BYTES: tm_byte_chars(text, size, out); break;
    }
    TM_TRY(tm_buf_check(out, run->err));
    return tm_splitter_run(run, step + 1, out->data, out->size, first);
}
