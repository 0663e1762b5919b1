/* Methods of strings, as Python's str has them, and what filters share with them. */
#include "text/jinja_parts.h"

#include <stdlib.h>
#include <utf8proc.h>

typedef const jj_args *args_t;

static jj_value *like(jj_value *v, const jj_value *of) /* Markup stays Markup */
{
    if (v && v->kind == JJ_STRING)
        v->markup = of->markup;
    return v;
}

static jj_value *part(jj_run *r, jj_value *of, size_t begin, size_t end)
{
    return like(jj_string(r, of->as.s.text + begin, end - begin), of);
}

static bool is_text(jj_run *r, const jj_value *v, const char *what)
{
    if (v->kind == JJ_STRING)
        return true;
    if (v->kind == JJ_UNDEFINED)
        return jj_undefined_error(r, v), false;
    return jj_fail(r, "%s expects a string, found %s", what, jj_type(v)), false;
}

/* ---- case ---- */

enum { UPPER, LOWER, TITLE };

/* Characters that become several; the common ones of Unicode's SpecialCasing. */
static const struct {
    uint32_t code;
    const char *upper, *title;
} special[] = {{0xdf, "SS", "Ss"}, {0x149, "\u02bcN", "\u02bcN"}, {0x1f0, "J\u030c", "J\u030c"}, {0x587, "\u0535\u0552", "\u0535\u0582"},
               {0xfb00, "FF", "Ff"}, {0xfb01, "FI", "Fi"}, {0xfb02, "FL", "Fl"}, {0xfb03, "FFI", "Ffi"}, {0xfb04, "FFL", "Ffl"},
               {0xfb05, "ST", "St"}, {0xfb06, "ST", "St"}};

static bool cased(uint32_t code)
{
    tm_category c = tm_unicode_category(code);
    return c == TM_LL || c == TM_LU || c == TM_LT;
}

/* A sigma that ends a word is written otherwise. */
static bool final_sigma(const jj_value *v, size_t at)
{
    size_t n, next = at + 2;
    bool before = at > 0 && cased(tm_utf8_before(v->as.s.text, at, &n));
    return before && (next >= v->as.s.size || !cased(tm_utf8_at(v->as.s.text + next, &n)));
}

static void put_case(tm_buf *out, const jj_value *v, size_t at, uint32_t code, int to)
{
    char text[4];
    for (size_t i = 0; to != LOWER && code >= 0xdf && i < sizeof special / sizeof special[0]; i++)
        if (special[i].code == code) {
            tm_buf_text(out, to == UPPER ? special[i].upper : special[i].title);
            return;
        }
    if (to == LOWER && code == 0x130) {
        tm_buf_text(out, "i\u0307");
        return;
    }
    if (to == LOWER && code == 0x3a3 && final_sigma(v, at))
        code = 0x3c2;
    else
        code = (uint32_t)(to == UPPER ? utf8proc_toupper((utf8proc_int32_t)code) : to == LOWER ? utf8proc_tolower((utf8proc_int32_t)code) : utf8proc_totitle((utf8proc_int32_t)code));
    tm_buf_add(out, text, (size_t)tm_utf8_put(code, text));
}

/* How each character is written: all of them, or by what stands before it. */
static jj_value *change_case(jj_run *r, jj_value *s, int (*how)(uint32_t code, bool first, bool after_cased))
{
    tm_buf out = {0};
    bool after = false;
    for (size_t at = 0, n; at < s->as.s.size; at += n) {
        uint32_t code = tm_utf8_at(s->as.s.text + at, &n);
        int to = how(code, at == 0, after);
        if (to < 0)
            tm_buf_add(&out, s->as.s.text + at, n);
        else
            put_case(&out, s, at, code, to);
        after = cased(code);
    }
    return like(jj_string_buf(r, &out), s);
}

static int all_upper(uint32_t code, bool first, bool after) { return (void)code, (void)first, (void)after, UPPER; }
static int all_lower(uint32_t code, bool first, bool after) { return (void)code, (void)first, (void)after, LOWER; }
static int capital(uint32_t code, bool first, bool after) { return (void)code, (void)after, first ? TITLE : LOWER; }
static int title(uint32_t code, bool first, bool after) { return (void)code, (void)first, after ? LOWER : TITLE; }
static int swapped(uint32_t code, bool first, bool after)
{
    (void)first, (void)after;
    tm_category c = tm_unicode_category(code);
    return c == TM_LU ? LOWER : c == TM_LL ? UPPER : -1;
}

jj_value *jj_upper(jj_run *r, jj_value *s) { return change_case(r, s, all_upper); }
jj_value *jj_lower(jj_run *r, jj_value *s) { return change_case(r, s, all_lower); }

static jj_value *str_upper(jj_run *r, jj_value *s, args_t a) { return (void)a, jj_upper(r, s); }
static jj_value *str_lower(jj_run *r, jj_value *s, args_t a) { return (void)a, jj_lower(r, s); }
static jj_value *str_replace(jj_run *r, jj_value *s, args_t a);

/* Full case folding: what becomes several letters in upper case, then lower case; no final sigma. */
static jj_value *str_casefold(jj_run *r, jj_value *s, args_t a)
{
    (void)a;
    tm_buf out = {0};
    for (size_t at = 0, n; at < s->as.s.size; at += n) {
        uint32_t code = tm_utf8_at(s->as.s.text + at, &n);
        const char *several = NULL;
        for (size_t i = 0; i < sizeof special / sizeof special[0]; i++)
            several = special[i].code == code ? special[i].upper : several;
        if (several)
            tm_buf_text(&out, several);
        else
            tm_buf_add(&out, code == 0x3c2 ? "\u03c3" : s->as.s.text + at, n);
    }
    jj_value *v = jj_string_buf(r, &out), *folded = v ? jj_lower(r, v) : NULL;
    if (!folded || !memmem(folded->as.s.text, folded->as.s.size, "\u03c2", 2))
        return like(folded, s);
    jj_value *item[] = {jj_text(r, "\u03c2"), jj_text(r, "\u03c3"), NULL}; /* folding knows no ends of words */
    folded = item[0] && item[1] ? str_replace(r, folded, &(jj_args){.item = item, .count = 3}) : NULL;
    return like(folded, s);
}

static jj_value *str_capitalize(jj_run *r, jj_value *s, args_t a) { return (void)a, change_case(r, s, capital); }
static jj_value *str_title(jj_run *r, jj_value *s, args_t a) { return (void)a, change_case(r, s, title); }
static jj_value *str_swapcase(jj_run *r, jj_value *s, args_t a) { return (void)a, change_case(r, s, swapped); }

/* ---- what a string is ---- */

enum { ALPHA, DIGIT, ALNUM, SPACE, ASCII, NUMERIC, DECIMAL, PRINTABLE };

static bool character_is(uint32_t code, int what)
{
    tm_category c = tm_unicode_category(code);
    bool letter = TM_CAT(c) & TM_CAT_L, number = TM_CAT(c) & TM_CAT_N;
    bool superscript = code == 0xb2 || code == 0xb3 || code == 0xb9 || code == 0x2070 || (code >= 0x2074 && code <= 0x2079) ||
                       (code >= 0x2080 && code <= 0x2089);
    switch (what) {
    case ALPHA: return letter;
    case DECIMAL: return c == TM_ND;
    case DIGIT: return c == TM_ND || superscript;
    case NUMERIC: return number;
    case ALNUM: return letter || number;
    case SPACE: return jj_space(code);
    case ASCII: return code < 128;
    default: return code == ' ' || (c != TM_CC && c != TM_CF && c != TM_CN && c != TM_CO && c != TM_CS && c != TM_ZL && c != TM_ZP && c != TM_ZS);
    }
}

static jj_value *all_are(jj_run *r, jj_value *s, int what, bool empty)
{
    bool yes = s->as.s.size > 0 || empty;
    for (size_t at = 0, n; yes && at < s->as.s.size; at += n)
        yes = character_is(tm_utf8_at(s->as.s.text + at, &n), what);
    return jj_work_bytes(r, s->as.s.size) ? jj_bool(r, yes) : NULL;
}

static jj_value *str_isalpha(jj_run *r, jj_value *s, args_t a) { return (void)a, all_are(r, s, ALPHA, false); }
static jj_value *str_isdigit(jj_run *r, jj_value *s, args_t a) { return (void)a, all_are(r, s, DIGIT, false); }
static jj_value *str_isdecimal(jj_run *r, jj_value *s, args_t a) { return (void)a, all_are(r, s, DECIMAL, false); }
static jj_value *str_isnumeric(jj_run *r, jj_value *s, args_t a) { return (void)a, all_are(r, s, NUMERIC, false); }
static jj_value *str_isalnum(jj_run *r, jj_value *s, args_t a) { return (void)a, all_are(r, s, ALNUM, false); }
static jj_value *str_isspace(jj_run *r, jj_value *s, args_t a) { return (void)a, all_are(r, s, SPACE, false); }
static jj_value *str_isascii(jj_run *r, jj_value *s, args_t a) { return (void)a, all_are(r, s, ASCII, true); }
static jj_value *str_isprintable(jj_run *r, jj_value *s, args_t a) { return (void)a, all_are(r, s, PRINTABLE, true); }

static jj_value *is_cased(jj_run *r, jj_value *s, tm_category yes, tm_category no)
{
    bool some = false, other = false;
    for (size_t at = 0, n; at < s->as.s.size; at += n) {
        tm_category c = tm_unicode_category(tm_utf8_at(s->as.s.text + at, &n));
        some |= c == yes;
        other |= c == no || c == TM_LT;
    }
    return jj_work_bytes(r, s->as.s.size) ? jj_bool(r, some && !other) : NULL;
}

static jj_value *str_islower(jj_run *r, jj_value *s, args_t a) { return (void)a, is_cased(r, s, TM_LL, TM_LU); }
static jj_value *str_isupper(jj_run *r, jj_value *s, args_t a) { return (void)a, is_cased(r, s, TM_LU, TM_LL); }

static jj_value *str_istitle(jj_run *r, jj_value *s, args_t a)
{
    (void)a;
    bool after = false, some = false;
    for (size_t at = 0, n; at < s->as.s.size; at += n) {
        tm_category c = tm_unicode_category(tm_utf8_at(s->as.s.text + at, &n));
        bool upper = c == TM_LU || c == TM_LT, lower = c == TM_LL;
        if ((upper && after) || (lower && !after))
            return &r->no;
        after = upper || lower;
        some |= after;
    }
    return jj_work_bytes(r, s->as.s.size) ? jj_bool(r, some) : NULL;
}

static jj_value *str_isidentifier(jj_run *r, jj_value *s, args_t a)
{
    (void)a;
    bool yes = s->as.s.size > 0;
    for (size_t at = 0, n; yes && at < s->as.s.size; at += n) {
        uint32_t code = tm_utf8_at(s->as.s.text + at, &n);
        tm_category c = tm_unicode_category(code);
        yes = code == '_' || (TM_CAT(c) & TM_CAT_L) || (at && (c == TM_ND || c == TM_MN || c == TM_MC || c == TM_PC));
    }
    return jj_bool(r, yes);
}

/* ---- ends ---- */

static bool stripped(const jj_value *chars, const char *at, size_t n, uint32_t code)
{
    return chars ? memmem(chars->as.s.text, chars->as.s.size, at, n) != NULL : jj_space(code);
}

jj_value *jj_strip(jj_run *r, jj_value *s, jj_value *chars, int sides)
{
    const char *text = s->as.s.text;
    size_t begin = 0, end = s->as.s.size, n;
    if (chars && chars->kind == JJ_NONE)
        chars = NULL;
    if ((chars && !is_text(r, chars, "strip")) || !jj_work(r, (1 + end / 64) * (1 + (chars ? chars->as.s.size / 64 : 0))))
        return NULL;
    while (sides & 1 && begin < end) {
        uint32_t code = tm_utf8_at(text + begin, &n);
        if (!stripped(chars, text + begin, n, code))
            break;
        begin += n;
    }
    while (sides & 2 && end > begin) {
        uint32_t code = tm_utf8_before(text, end, &n);
        if (!stripped(chars, text + end - n, n, code))
            break;
        end -= n;
    }
    return part(r, s, begin, end);
}

static jj_value *str_strip(jj_run *r, jj_value *s, args_t a) { return jj_strip(r, s, a->item[0], 3); }
static jj_value *str_lstrip(jj_run *r, jj_value *s, args_t a) { return jj_strip(r, s, a->item[0], 1); }
static jj_value *str_rstrip(jj_run *r, jj_value *s, args_t a) { return jj_strip(r, s, a->item[0], 2); }

static bool begins(const jj_value *s, const jj_value *with)
{
    return s->as.s.size >= with->as.s.size && memcmp(s->as.s.text, with->as.s.text, with->as.s.size) == 0;
}

static bool ends(const jj_value *s, const jj_value *with)
{
    size_t n = with->as.s.size;
    return s->as.s.size >= n && memcmp(s->as.s.text + s->as.s.size - n, with->as.s.text, n) == 0;
}

/* s[start:end] of the arguments from the k-th on. False: failed. */
static bool window(jj_run *r, const jj_value *s, args_t a, int k, jj_value *out, bool *empty)
{
    int64_t count = jj_chars(s), from, to;
    jj_value *start = a->item[k] && a->item[k]->kind != JJ_NONE ? a->item[k] : NULL;
    jj_value *stop = a->item[k + 1] && a->item[k + 1]->kind != JJ_NONE ? a->item[k + 1] : NULL;
    if (!jj_arg_int(r, start, 0, &from) || !jj_arg_int(r, stop, count, &to) || !jj_work_bytes(r, s->as.s.size))
        return false;
    from = from < 0 ? (from < -count ? 0 : from + count) : from;
    to = to < 0 ? (to < -count ? 0 : to + count) : to > count ? count : to;
    *empty = from > to;
    size_t begin = from > count ? s->as.s.size : jj_char_at(s, from), end = jj_char_at(s, to);
    *out = *s;
    out->as.s.text += begin;
    out->as.s.size = end > begin ? end - begin : 0;
    out->as.s.chars = JJ_UNKNOWN;
    return true;
}

static jj_value *has_end(jj_run *r, jj_value *s, args_t a, bool (*test)(const jj_value *, const jj_value *), const char *name)
{
    jj_value in, *with = a->item[0], **list = &with;
    size_t count = 1;
    bool empty, yes = false;
    if (!window(r, s, a, 1, &in, &empty))
        return NULL;
    if (with->kind == JJ_TUPLE) {
        list = with->as.l.item;
        count = with->as.l.count;
    }
    for (size_t i = 0; i < count; i++) {
        if (!is_text(r, list[i], name))
            return NULL;
        yes |= !empty && test(&in, list[i]);
    }
    return jj_bool(r, yes);
}

static jj_value *str_startswith(jj_run *r, jj_value *s, args_t a) { return has_end(r, s, a, begins, "startswith"); }
static jj_value *str_endswith(jj_run *r, jj_value *s, args_t a) { return has_end(r, s, a, ends, "endswith"); }

static jj_value *str_removeprefix(jj_run *r, jj_value *s, args_t a)
{
    if (!is_text(r, a->item[0], "removeprefix"))
        return NULL;
    return part(r, s, begins(s, a->item[0]) ? a->item[0]->as.s.size : 0, s->as.s.size);
}

static jj_value *str_removesuffix(jj_run *r, jj_value *s, args_t a)
{
    if (!is_text(r, a->item[0], "removesuffix"))
        return NULL;
    bool has = a->item[0]->as.s.size && ends(s, a->item[0]);
    return part(r, s, 0, s->as.s.size - (has ? a->item[0]->as.s.size : 0));
}

/* ---- finding ---- */

static const char *find_in(const jj_value *in, const jj_value *what, size_t from)
{
    if (!what->as.s.size)
        return in->as.s.text + from;
    return from < in->as.s.size ? memmem(in->as.s.text + from, in->as.s.size - from, what->as.s.text, what->as.s.size) : NULL;
}

static const char *find_last(const jj_value *in, const jj_value *what, size_t end)
{
    size_t n = what->as.s.size;
    for (size_t at = end >= n ? end - n + 1 : 0; at-- > 0;)
        if (memcmp(in->as.s.text + at, what->as.s.text, n) == 0 && (at == in->as.s.size || ((uint8_t)in->as.s.text[at] & 0xc0) != 0x80))
            return in->as.s.text + at;
    return NULL;
}

/* Searching costs a step per 64 bytes, times what may be compared at each place (find_last compares all). */
static bool search_work(jj_run *r, const jj_value *in, const jj_value *what)
{
    return jj_work(r, (1 + in->as.s.size / 64) * (1 + what->as.s.size / 64));
}

static jj_value *find_index(jj_run *r, jj_value *s, args_t a, bool last, bool must)
{
    jj_value in;
    bool empty;
    if (!is_text(r, a->item[0], "find") || !window(r, s, a, 1, &in, &empty) || !search_work(r, s, a->item[0]))
        return NULL;
    const char *at = empty ? NULL : last ? find_last(&in, a->item[0], in.as.s.size) : find_in(&in, a->item[0], 0);
    if (!at)
        return must ? jj_fail(r, "substring not found") : jj_int(r, -1);
    jj_value before = {.kind = JJ_STRING, .as.s = {s->as.s.text, (size_t)(at - s->as.s.text), JJ_UNKNOWN}};
    return jj_int(r, jj_chars(&before));
}

static jj_value *str_find(jj_run *r, jj_value *s, args_t a) { return find_index(r, s, a, false, false); }
static jj_value *str_rfind(jj_run *r, jj_value *s, args_t a) { return find_index(r, s, a, true, false); }
static jj_value *str_index(jj_run *r, jj_value *s, args_t a) { return find_index(r, s, a, false, true); }
static jj_value *str_rindex(jj_run *r, jj_value *s, args_t a) { return find_index(r, s, a, true, true); }

static jj_value *str_count(jj_run *r, jj_value *s, args_t a)
{
    jj_value in;
    bool empty;
    int64_t count = 0;
    if (!is_text(r, a->item[0], "count") || !window(r, s, a, 1, &in, &empty) || !search_work(r, s, a->item[0]))
        return NULL;
    if (!a->item[0]->as.s.size)
        return jj_int(r, empty ? 0 : jj_chars(&in) + 1);
    for (size_t from = 0; !empty; count++) {
        const char *at = find_in(&in, a->item[0], from);
        if (!at)
            break;
        from = (size_t)(at - in.as.s.text) + a->item[0]->as.s.size;
    }
    return jj_int(r, count);
}

static jj_value *str_replace(jj_run *r, jj_value *s, args_t a)
{
    jj_value *from = a->item[0], *to = a->item[1];
    int64_t most;
    tm_buf out = {0};
    if (!is_text(r, from, "replace") || !is_text(r, to, "replace") || !jj_arg_int(r, a->item[2], -1, &most) || !search_work(r, s, from))
        return NULL;
    if (s->markup && (!(from = jj_escape(r, from)) || !(to = jj_escape(r, to))))
        return NULL;
    size_t done = 0, look = 0, size = s->as.s.size;
    for (int64_t n = 0; most < 0 || n < most; n++) {
        const char *at = find_in(s, from, look);
        if (!at || (!from->as.s.size && look > size))
            break;
        size_t place = (size_t)(at - s->as.s.text);
        tm_buf_add(&out, s->as.s.text + done, place - done);
        tm_buf_add(&out, to->as.s.text, to->as.s.size);
        done = look = place + from->as.s.size;
        if (!from->as.s.size) { /* between characters */
            if (place == size)
                break;
            size_t c;
            tm_utf8_at(at, &c);
            tm_buf_add(&out, at, c);
            done = look = place + c;
        }
        if (!jj_work_bytes(r, to->as.s.size) || !jj_buf_ok(r, &out)) {
            tm_buf_deinit(&out);
            return NULL;
        }
    }
    tm_buf_add(&out, s->as.s.text + done, size - done);
    return like(jj_string_buf(r, &out), s);
}

/* ---- splitting and joining ---- */

/* By white space, runs of it counting once. */
static jj_value *split_spaces(jj_run *r, jj_value *s, int64_t most, bool from_right)
{
    const char *text = s->as.s.text;
    size_t begin = 0, end = s->as.s.size, n;
    jj_value *list = jj_list(r, JJ_LIST, 0);
    while (list) {
        while (begin < end && jj_space(tm_utf8_at(text + begin, &n)))
            begin += n;
        while (end > begin && from_right && jj_space(tm_utf8_before(text, end, &n)))
            end -= n;
        if (begin == end)
            break;
        size_t word_begin = begin, word_end = end;
        bool last = most >= 0 && (int64_t)list->as.l.count >= most;
        if (last && !from_right) /* the rest, with white space inside it, but not behind it */
            while (word_end > begin && jj_space(tm_utf8_before(text, word_end, &n)))
                word_end -= n;
        else if (last)
            while (word_begin < end && jj_space(tm_utf8_at(text + word_begin, &n)))
                word_begin += n;
        else if (!from_right)
            for (word_end = begin; word_end < end && !jj_space(tm_utf8_at(text + word_end, &n));)
                word_end += n;
        else
            for (word_begin = end; word_begin > begin && !jj_space(tm_utf8_before(text, word_begin, &n));)
                word_begin -= n;
        if (!jj_push(r, list, part(r, s, word_begin, word_end)) || !jj_work_bytes(r, word_end - word_begin))
            return NULL;
        if (last)
            break;
        if (from_right)
            end = word_begin;
        else
            begin = word_end;
    }
    return list;
}

static void reverse_items(jj_value *list)
{
    for (size_t i = 0, n = list->as.l.count; i < n / 2; i++) {
        jj_value *swap = list->as.l.item[i];
        list->as.l.item[i] = list->as.l.item[n - 1 - i];
        list->as.l.item[n - 1 - i] = swap;
    }
}

static jj_value *split(jj_run *r, jj_value *s, args_t a, bool from_right)
{
    jj_value *by = a->item[0] && a->item[0]->kind != JJ_NONE ? a->item[0] : NULL, *list;
    int64_t most;
    if (!jj_arg_int(r, a->item[1], -1, &most) || !jj_work_bytes(r, s->as.s.size))
        return NULL;
    if (!by) {
        list = split_spaces(r, s, most, from_right);
    } else {
        if (!is_text(r, by, "split") || !search_work(r, s, by))
            return NULL;
        if (!by->as.s.size)
            return jj_fail(r, "empty separator");
        list = jj_list(r, JJ_LIST, 0);
        size_t begin = 0, end = s->as.s.size;
        while (list && (most < 0 || (int64_t)list->as.l.count < most)) {
            const char *at = from_right ? find_last(s, by, end) : find_in(s, by, begin);
            if (!at)
                break;
            size_t place = (size_t)(at - s->as.s.text);
            if (!jj_push(r, list, from_right ? part(r, s, place + by->as.s.size, end) : part(r, s, begin, place)) || !jj_work(r, 1))
                return NULL;
            if (from_right)
                end = place;
            else
                begin = place + by->as.s.size;
        }
        if (!list || !jj_push(r, list, part(r, s, begin, end)))
            return NULL;
    }
    if (list && from_right)
        reverse_items(list);
    return list;
}

static jj_value *str_split(jj_run *r, jj_value *s, args_t a) { return split(r, s, a, false); }
static jj_value *str_rsplit(jj_run *r, jj_value *s, args_t a) { return split(r, s, a, true); }

static bool line_break(uint32_t c)
{
    return (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

static jj_value *str_splitlines(jj_run *r, jj_value *s, args_t a)
{
    bool keep = a->item[0] && jj_truth(a->item[0]);
    jj_value *list = jj_work_bytes(r, s->as.s.size) ? jj_list(r, JJ_LIST, 0) : NULL;
    for (size_t begin = 0, at = 0, n; list && at < s->as.s.size;) {
        uint32_t code = tm_utf8_at(s->as.s.text + at, &n);
        bool breaks = line_break(code);
        size_t end = at;
        at += n;
        if (code == '\r' && at < s->as.s.size && s->as.s.text[at] == '\n')
            at++;
        if (!breaks && at < s->as.s.size)
            continue;
        if (!jj_push(r, list, part(r, s, begin, breaks && !keep ? end : at)))
            return NULL;
        begin = at;
    }
    return list;
}

static jj_value *str_partition_at(jj_run *r, jj_value *s, args_t a, bool last)
{
    jj_value *by = a->item[0], *v = jj_list(r, JJ_TUPLE, 3);
    if (!v || !is_text(r, by, "partition") || !search_work(r, s, by))
        return NULL;
    if (!by->as.s.size)
        return jj_fail(r, "empty separator");
    const char *at = last ? find_last(s, by, s->as.s.size) : find_in(s, by, 0);
    size_t size = s->as.s.size, place = at ? (size_t)(at - s->as.s.text) : last ? 0 : size, step = at ? by->as.s.size : 0;
    bool ok = jj_push(r, v, part(r, s, 0, place)) && jj_push(r, v, part(r, s, place, place + step)) && jj_push(r, v, part(r, s, place + step, size));
    return ok ? v : NULL;
}

static jj_value *str_partition(jj_run *r, jj_value *s, args_t a) { return str_partition_at(r, s, a, false); }
static jj_value *str_rpartition(jj_run *r, jj_value *s, args_t a) { return str_partition_at(r, s, a, true); }

static jj_value *str_join(jj_run *r, jj_value *s, args_t a)
{
    jj_value **item;
    size_t count;
    tm_buf out = {0};
    if (a->item[0]->kind == JJ_UNDEFINED)
        return like(jj_text(r, ""), s);
    if (!jj_items(r, a->item[0], &item, &count))
        return NULL;
    for (size_t i = 0; i < count; i++) {
        jj_value *v = s->markup ? jj_escape(r, item[i]) : item[i];
        if (v && v->kind != JJ_STRING)
            v = jj_fail(r, "sequence item %zu: expected str instance, %s found", i, jj_type(v));
        if (v && i)
            tm_buf_add(&out, s->as.s.text, s->as.s.size);
        if (!v || !jj_str(r, v, &out) || !jj_work_bytes(r, s->as.s.size)) {
            tm_buf_deinit(&out);
            return NULL;
        }
    }
    return like(jj_string_buf(r, &out), s);
}

/* ---- filling ---- */

static jj_value *fill(jj_run *r, jj_value *s, jj_value *width_value, jj_value *with, int how)
{
    int64_t width;
    if (!jj_arg_int(r, width_value, 0, &width) || (with && !is_text(r, with, "a fill character")))
        return NULL;
    if (with && jj_chars(with) != 1)
        return jj_fail(r, "The fill character must be exactly one character long");
    int64_t count = jj_chars(s), pad = width > count ? width - count : 0;
    if (pad > TM_JINJA_MAX_OUTPUT / 4)
        return jj_fail(r, "a width of more than %d", TM_JINJA_MAX_OUTPUT / 4);
    int64_t left = how == 'l' ? 0 : how == 'r' ? pad : pad / 2 + (pad & width & 1);
    tm_buf out = {0};
    for (int64_t i = 0; i < pad + 1; i++) {
        if (i == left)
            tm_buf_add(&out, s->as.s.text, s->as.s.size);
        if (i < pad)
            tm_buf_add(&out, with ? with->as.s.text : " ", with ? with->as.s.size : 1);
    }
    return like(jj_string_buf(r, &out), s);
}

static jj_value *str_center(jj_run *r, jj_value *s, args_t a) { return fill(r, s, a->item[0], a->item[1], 'c'); }
static jj_value *str_ljust(jj_run *r, jj_value *s, args_t a) { return fill(r, s, a->item[0], a->item[1], 'l'); }
static jj_value *str_rjust(jj_run *r, jj_value *s, args_t a) { return fill(r, s, a->item[0], a->item[1], 'r'); }

static jj_value *str_zfill(jj_run *r, jj_value *s, args_t a)
{
    jj_value *zero = jj_text(r, "0");
    bool sign = s->as.s.size && (s->as.s.text[0] == '-' || s->as.s.text[0] == '+');
    int64_t width;
    if (!zero || !jj_arg_int(r, a->item[0], 0, &width))
        return NULL;
    jj_value *rest = part(r, s, sign, s->as.s.size), *n = jj_int(r, width - sign);
    rest = rest && n ? fill(r, rest, n, zero, 'r') : NULL;
    jj_value *head = part(r, s, 0, sign);
    return rest && head ? jj_operate(r, JJ_ADD, head, rest) : NULL;
}

static jj_value *str_expandtabs(jj_run *r, jj_value *s, args_t a)
{
    int64_t size, column = 0;
    tm_buf out = {0};
    if (!jj_arg_int(r, a->item[0], 8, &size))
        return NULL;
    if (size > 1 << 16)
        return jj_fail(r, "a tab of more than %d columns", 1 << 16);
    for (size_t at = 0, n; at < s->as.s.size && out.size <= TM_JINJA_MAX_OUTPUT; at += n) {
        uint32_t code = tm_utf8_at(s->as.s.text + at, &n);
        if (code == '\t') {
            for (int64_t k = size > 0 ? size - column % size : 0; k > 0; k--, column++)
                tm_buf_char(&out, ' ');
            continue;
        }
        tm_buf_add(&out, s->as.s.text + at, n);
        column = code == '\n' || code == '\r' ? 0 : column + 1;
    }
    return like(jj_string_buf(r, &out), s);
}

static jj_value *str_format(jj_run *r, jj_value *s, args_t a) { return jj_format(r, s, a); }

static jj_value *str_format_map(jj_run *r, jj_value *s, args_t a)
{
    jj_value *map = a->item[0];
    if (map->kind != JJ_DICT)
        return jj_fail(r, "format_map expects a mapping, found %s", jj_type(map));
    size_t n = map->as.d.count;
    jj_args named = {.key = jj_take(r, n + 1, sizeof(jj_value *)), .value = jj_take(r, n + 1, sizeof(jj_value *)), .named = n};
    for (size_t i = 0; named.key && named.value && i < n; i++) {
        named.key[i] = map->as.d.pair[i].key;
        named.value[i] = map->as.d.pair[i].value;
    }
    return named.key && named.value ? jj_format(r, s, &named) : NULL;
}

/* ---- HTML ---- */

jj_value *jj_escape(jj_run *r, jj_value *v)
{
    tm_buf out = {0};
    v = jj_to_string(r, v);
    if (!v || v->markup)
        return v;
    for (size_t i = 0; i < v->as.s.size; i++) {
        char c = v->as.s.text[i];
        const char *entity = c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '"' ? "&#34;" : c == '\'' ? "&#39;" : NULL;
        if (entity)
            tm_buf_text(&out, entity);
        else
            tm_buf_char(&out, c);
    }
    v = jj_string_buf(r, &out);
    if (v)
        v->markup = true;
    return v;
}

static const jj_function methods[] = {
    {"capitalize", "", str_capitalize}, {"casefold", "", str_casefold}, {"center", "width ?fillchar", str_center},
    {"count", "sub ?start ?end", str_count}, {"endswith", "suffix ?start ?end", str_endswith},
    {"expandtabs", "?tabsize", str_expandtabs}, {"find", "sub ?start ?end", str_find}, {"format", NULL, str_format},
    {"format_map", "mapping", str_format_map}, {"index", "sub ?start ?end", str_index}, {"isalnum", "", str_isalnum},
    {"isalpha", "", str_isalpha}, {"isascii", "", str_isascii}, {"isdecimal", "", str_isdecimal},
    {"isdigit", "", str_isdigit}, {"isidentifier", "", str_isidentifier}, {"islower", "", str_islower},
    {"isnumeric", "", str_isnumeric}, {"isprintable", "", str_isprintable}, {"isspace", "", str_isspace},
    {"istitle", "", str_istitle}, {"isupper", "", str_isupper}, {"join", "iterable", str_join},
    {"ljust", "width ?fillchar", str_ljust}, {"lower", "", str_lower}, {"lstrip", "?chars", str_lstrip},
    {"partition", "sep", str_partition}, {"removeprefix", "prefix", str_removeprefix},
    {"removesuffix", "suffix", str_removesuffix}, {"replace", "old new ?count", str_replace},
    {"rfind", "sub ?start ?end", str_rfind}, {"rindex", "sub ?start ?end", str_rindex},
    {"rjust", "width ?fillchar", str_rjust}, {"rpartition", "sep", str_rpartition},
    {"rsplit", "?sep ?maxsplit", str_rsplit}, {"rstrip", "?chars", str_rstrip}, {"split", "?sep ?maxsplit", str_split},
    {"splitlines", "?keepends", str_splitlines}, {"startswith", "prefix ?start ?end", str_startswith},
    {"strip", "?chars", str_strip}, {"swapcase", "", str_swapcase}, {"title", "", str_title}, {"upper", "", str_upper},
    {"zfill", "width", str_zfill}, {NULL, NULL, NULL}};

const jj_function *jj_text_method(const char *name, size_t size) { return jj_find_function(methods, name, size); }
