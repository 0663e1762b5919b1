/* Unicode: see unicode.h. Sets are kept sorted and merged after every operation, so that membership
 * is one binary search and two equal sets look the same. */
#include "text/unicode.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* ---- UTF-8 ---- */

int tm_utf8_put(uint32_t code, char out[4])
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xc0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xe0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3f));
        out[2] = (char)(0x80 | (code & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3f));
    out[2] = (char)(0x80 | (code >> 6 & 0x3f));
    out[3] = (char)(0x80 | (code & 0x3f));
    return 4;
}

/* Bytes a character needs by its first byte, and the bounds of its second (RFC 3629, table 3-7 of the
 * Unicode standard); 0: no character starts so. */
static int lead_byte(uint8_t lead, uint8_t *low, uint8_t *high)
{
    *low = 0x80;
    *high = 0xbf;
    if (lead < 0x80)
        return 1;
    if (lead >= 0xc2 && lead <= 0xdf)
        return 2;
    if (lead >= 0xe0 && lead <= 0xef) {
        if (lead == 0xe0)
            *low = 0xa0;
        if (lead == 0xed)
            *high = 0x9f;
        return 3;
    }
    if (lead >= 0xf0 && lead <= 0xf4) {
        if (lead == 0xf0)
            *low = 0x90;
        if (lead == 0xf4)
            *high = 0x8f;
        return 4;
    }
    return 0;
}

/* Length of the longest part of a character at s; *whole: all of it is there. At least 1. */
static size_t subpart(const uint8_t *s, size_t size, bool *whole)
{
    uint8_t low, high;
    size_t need = (size_t)lead_byte(s[0], &low, &high), have = 1;
    *whole = false;
    while (have < need && have < size && s[have] >= (have == 1 ? low : 0x80) && s[have] <= (have == 1 ? high : 0xbf))
        have++;
    *whole = need && have == need;
    return have;
}

void tm_utf8_repair(const char *s, size_t size, tm_buf *out)
{
    while (size) {
        size_t good = tm_utf8_prefix(s, size);
        tm_buf_add(out, s, good);
        s += good;
        size -= good;
        if (!size)
            break;
        bool whole;
        size_t bad = subpart((const uint8_t *)s, size, &whole);
        tm_buf_add(out, "\xef\xbf\xbd", 3);
        s += bad;
        size -= bad;
    }
}

/* ---- characters ---- */

tm_category tm_unicode_category(uint32_t code)
{
    size_t low = 0, high = tm_unicode_categories_count;
    while (high - low > 1) {
        size_t mid = (low + high) / 2;
        if (tm_unicode_categories[mid] >> 5 <= code)
            low = mid;
        else
            high = mid;
    }
    return (tm_category)(tm_unicode_categories[low] & 31);
}

bool tm_ranges_have(const uint32_t *pairs, size_t count, uint32_t code)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (code < pairs[2 * mid])
            high = mid;
        else if (code > pairs[2 * mid + 1])
            low = mid + 1;
        else
            return true;
    }
    return false;
}

/* White_Space; it has not changed since Unicode 6.3. */
static const uint32_t spaces[] = {0x9, 0xd, 0x20, 0x20, 0x85, 0x85, 0xa0, 0xa0, 0x1680, 0x1680, 0x2000, 0x200a,
                                  0x2028, 0x2029, 0x202f, 0x202f, 0x205f, 0x205f, 0x3000, 0x3000};
/* Symbols that count as letters (Other_Alphabetic outside L, M and N): circled and squared letters. */
static const uint32_t letter_symbols[] = {0x24b6, 0x24e9, 0x1f130, 0x1f149, 0x1f150, 0x1f169, 0x1f170, 0x1f189};
/* Oniguruma keeps these Latin-1 numbers as word characters. */
static const uint32_t latin_numbers[] = {0xb2, 0xb3, 0xb9, 0xb9, 0xbc, 0xbe};
#define TABLE(t) (t), sizeof(t) / sizeof(t)[0] / 2
#define WORD_CATEGORIES (TM_CAT_L | TM_CAT_M | TM_CAT(TM_ND) | TM_CAT(TM_NL) | TM_CAT(TM_PC))

bool tm_unicode_is_space(uint32_t code)
{
    return code < 0x80 ? code == ' ' || (code >= 9 && code <= 13) : tm_ranges_have(TABLE(spaces), code);
}

bool tm_unicode_is_word(uint32_t code)
{
    return (TM_CAT(tm_unicode_category(code)) & WORD_CATEGORIES) || code == 0x200c || code == 0x200d ||
           tm_ranges_have(TABLE(letter_symbols), code);
}

/* ---- sets ---- */

void tm_runes_deinit(tm_runes *set)
{
    free(set->range);
    *set = (tm_runes){0};
}

static bool runes_room(tm_runes *set, size_t need)
{
    if (!set->failed && TM_GROW(&set->range, &set->capacity, need, NULL) != TM_OK)
        set->failed = true;
    return !set->failed;
}

static int by_first(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;
    return (x[0] > y[0]) - (x[0] < y[0]);
}

static void runes_settle(tm_runes *set)
{
    if (set->failed || !set->count)
        return;
    qsort(set->range, set->count, sizeof *set->range, by_first);
    size_t n = 1;
    for (size_t i = 1; i < set->count; i++) {
        uint32_t *last = set->range[n - 1];
        if (set->range[i][0] <= last[1] + 1)
            last[1] = set->range[i][1] > last[1] ? set->range[i][1] : last[1];
        else
            memcpy(set->range[n++], set->range[i], sizeof *set->range);
    }
    set->count = n;
}

void tm_runes_add_table(tm_runes *set, const uint32_t *pairs, size_t count)
{
    if (!count || !runes_room(set, set->count + count))
        return;
    memcpy(set->range + set->count, pairs, count * sizeof *set->range);
    set->count += count;
    runes_settle(set);
}

void tm_runes_add(tm_runes *set, uint32_t first, uint32_t last)
{
    tm_runes_add_table(set, (uint32_t[]){first, last}, 1);
}

void tm_runes_add_set(tm_runes *set, const tm_runes *other)
{
    set->failed |= other->failed;
    if (other->count)
        tm_runes_add_table(set, other->range[0], other->count);
}

void tm_runes_add_categories(tm_runes *set, uint32_t categories)
{
    for (size_t i = 0; i < tm_unicode_categories_count; i++) {
        if (!(categories >> (tm_unicode_categories[i] & 31) & 1))
            continue;
        uint32_t next = i + 1 < tm_unicode_categories_count ? tm_unicode_categories[i + 1] >> 5 : TM_UNICODE_MAX + 1;
        if (!runes_room(set, set->count + 1))
            return;
        set->range[set->count][0] = tm_unicode_categories[i] >> 5;
        set->range[set->count++][1] = next - 1;
    }
    runes_settle(set);
}

void tm_runes_invert(tm_runes *set)
{
    if (!runes_room(set, set->count + 1))
        return;
    size_t n = 0;
    uint32_t from = 0;
    for (size_t i = 0; i < set->count; i++) {
        uint32_t first = set->range[i][0], last = set->range[i][1];
        if (first > from) {
            set->range[n][0] = from;
            set->range[n++][1] = first - 1;
        }
        from = last + 1;
    }
    if (from <= TM_UNICODE_MAX) {
        set->range[n][0] = from;
        set->range[n++][1] = TM_UNICODE_MAX;
    }
    set->count = n;
}

void tm_runes_intersect(tm_runes *set, const tm_runes *other)
{
    tm_runes rest = {0};
    tm_runes_add_set(&rest, other);
    tm_runes_invert(&rest);
    tm_runes_invert(set);
    tm_runes_add_set(set, &rest);
    tm_runes_invert(set);
    tm_runes_deinit(&rest);
}

bool tm_runes_has(const tm_runes *set, uint32_t code)
{
    return set->count && tm_ranges_have(set->range[0], set->count, code);
}

void tm_runes_add_space(tm_runes *set) { tm_runes_add_table(set, TABLE(spaces)); }

void tm_runes_add_word(tm_runes *set)
{
    tm_runes_add_categories(set, WORD_CATEGORIES);
    tm_runes_add_table(set, TABLE(letter_symbols));
    tm_runes_add_table(set, TABLE(latin_numbers));
}

static const struct {
    const char *name, *long_name;
    uint32_t categories;
} properties[] = {
    {"C", "Other", TM_CAT(TM_CC) | TM_CAT(TM_CF) | TM_CAT(TM_CN) | TM_CAT(TM_CO) | TM_CAT(TM_CS)},
    {"Cc", "Control", TM_CAT(TM_CC)}, {"Cf", "Format", TM_CAT(TM_CF)}, {"Cn", "Unassigned", TM_CAT(TM_CN)},
    {"Co", "Private_Use", TM_CAT(TM_CO)}, {"Cs", "Surrogate", TM_CAT(TM_CS)},
    {"L", "Letter", TM_CAT_L}, {"Ll", "Lowercase_Letter", TM_CAT(TM_LL)}, {"Lm", "Modifier_Letter", TM_CAT(TM_LM)},
    {"Lo", "Other_Letter", TM_CAT(TM_LO)}, {"Lt", "Titlecase_Letter", TM_CAT(TM_LT)},
    {"Lu", "Uppercase_Letter", TM_CAT(TM_LU)}, {"LC", "Cased_Letter", TM_CAT(TM_LU) | TM_CAT(TM_LL) | TM_CAT(TM_LT)},
    {"M", "Mark", TM_CAT_M}, {"Mc", "Spacing_Mark", TM_CAT(TM_MC)}, {"Me", "Enclosing_Mark", TM_CAT(TM_ME)},
    {"Mn", "Nonspacing_Mark", TM_CAT(TM_MN)},
    {"N", "Number", TM_CAT_N}, {"Nd", "Decimal_Number", TM_CAT(TM_ND)}, {"Nl", "Letter_Number", TM_CAT(TM_NL)},
    {"No", "Other_Number", TM_CAT(TM_NO)},
    {"P", "Punctuation", TM_CAT_P}, {"Pc", "Connector_Punctuation", TM_CAT(TM_PC)},
    {"Pd", "Dash_Punctuation", TM_CAT(TM_PD)}, {"Pe", "Close_Punctuation", TM_CAT(TM_PE)},
    {"Pf", "Final_Punctuation", TM_CAT(TM_PF)}, {"Pi", "Initial_Punctuation", TM_CAT(TM_PI)},
    {"Po", "Other_Punctuation", TM_CAT(TM_PO)}, {"Ps", "Open_Punctuation", TM_CAT(TM_PS)},
    {"S", "Symbol", TM_CAT(TM_SC) | TM_CAT(TM_SK) | TM_CAT(TM_SM) | TM_CAT(TM_SO)},
    {"Sc", "Currency_Symbol", TM_CAT(TM_SC)}, {"Sk", "Modifier_Symbol", TM_CAT(TM_SK)},
    {"Sm", "Math_Symbol", TM_CAT(TM_SM)}, {"So", "Other_Symbol", TM_CAT(TM_SO)},
    {"Z", "Separator", TM_CAT(TM_ZL) | TM_CAT(TM_ZP) | TM_CAT(TM_ZS)}, {"Zl", "Line_Separator", TM_CAT(TM_ZL)},
    {"Zp", "Paragraph_Separator", TM_CAT(TM_ZP)}, {"Zs", "Space_Separator", TM_CAT(TM_ZS)},
    {"Any", "Any", ~0u},
};

/* The few scripts that tokenizers in use name; from Scripts.txt of Unicode 16. */
static const uint32_t han[] = {0x2e80, 0x2e99, 0x2e9b, 0x2ef3, 0x2f00, 0x2fd5, 0x3005, 0x3005, 0x3007, 0x3007,
    0x3021, 0x3029, 0x3038, 0x303b, 0x3400, 0x4dbf, 0x4e00, 0x9fff, 0xf900, 0xfa6d, 0xfa70, 0xfad9, 0x16fe2, 0x16fe3,
    0x16ff0, 0x16ff1, 0x20000, 0x2a6df, 0x2a700, 0x2b739, 0x2b740, 0x2b81d, 0x2b820, 0x2cea1, 0x2ceb0, 0x2ebe0,
    0x2ebf0, 0x2ee5d, 0x2f800, 0x2fa1d, 0x30000, 0x3134a, 0x31350, 0x323af};

/* Names compare without case, spaces, - and _. */
static bool same_name(const char *a, size_t size, const char *b)
{
    size_t i = 0;
    for (;; i++, b++) {
        while (i < size && (a[i] == '_' || a[i] == '-' || a[i] == ' '))
            i++;
        while (*b == '_')
            b++;
        if (i == size || !*b)
            return i == size && !*b;
        if ((a[i] | 32) != (*b | 32))
            return false;
    }
}

bool tm_runes_add_property(tm_runes *set, const char *name, size_t size)
{
    if (same_name(name, size, "Han")) {
        tm_runes_add_table(set, TABLE(han));
        return true;
    }
    for (size_t i = 0; i < sizeof properties / sizeof properties[0]; i++) {
        if (same_name(name, size, properties[i].name) || same_name(name, size, properties[i].long_name)) {
            tm_runes_add_categories(set, properties[i].categories);
            return true;
        }
    }
    return false;
}

/* ---- normalisation ---- */

static const struct {
    const uint32_t *active;
    const size_t *count;
    int options;
} forms[] = {
    [TM_NFC] = {tm_unicode_nfc_active, &tm_unicode_nfc_active_count, UTF8PROC_STABLE | UTF8PROC_COMPOSE},
    [TM_NFD] = {tm_unicode_nfd_active, &tm_unicode_nfd_active_count, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
    [TM_NFKC] = {tm_unicode_nfkc_active, &tm_unicode_nfkc_active_count,
                 UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
    [TM_NFKD] = {tm_unicode_nfkd_active, &tm_unicode_nfkd_active_count,
                 UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT},
};

/* The next active character at or after i; size when there is none. */
static size_t next_active(const char *s, size_t size, size_t i, tm_form form)
{
    while (i < size) {
        uint64_t eight;
        if (i + 8 <= size && (memcpy(&eight, s + i, 8), !(eight & 0x8080808080808080u))) {
            i += 8; /* nothing in ASCII is active */
            continue;
        }
        size_t len;
        uint32_t code = tm_utf8_at(s + i, &len);
        if (code >= 0x80 && tm_ranges_have(forms[form].active, *forms[form].count, code))
            return i;
        i += len;
    }
    return size;
}

bool tm_unicode_is_normal(const char *s, size_t size, tm_form form)
{
    return next_active(s, size, 0, form) == size;
}

/* A stretch of active characters and the inactive one before it (which the first may join) are
 * handed to the library; whatever stands between such stretches is copied. An inactive character
 * never changes and nothing moves across it, so the cut is exact. Characters younger than the peer's
 * library count as inactive and are never handed over, which also makes the result independent of
 * the version of the library installed (2.2, Unicode 12, or newer). */
tm_status tm_unicode_normalize(const char *s, size_t size, tm_form form, tm_buf *out, tm_error *err)
{
    size_t done = 0;
    while (done < size) {
        size_t at = next_active(s, size, done, form), end = at, start = at;
        while (end < size) {
            size_t len;
            uint32_t code = tm_utf8_at(s + end, &len);
            if (code < 0x80 || !tm_ranges_have(forms[form].active, *forms[form].count, code))
                break;
            end += len;
        }
        if (start > done && start < end) {
            size_t len;
            uint32_t before = tm_utf8_before(s, start, &len);
            if (!tm_ranges_have(tm_unicode_late, tm_unicode_late_count, before))
                start -= len;
        }
        tm_buf_add(out, s + done, start - done);
        if (end > start) {
            utf8proc_uint8_t *text = NULL;
            utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)s + start, (utf8proc_ssize_t)(end - start),
                                              &text, (utf8proc_option_t)forms[form].options);
            if (n < 0)
                return tm_fail(err, n == UTF8PROC_ERROR_NOMEM ? TM_NO_MEMORY : TM_FAILED, "normalising text: %s",
                               utf8proc_errmsg(n));
            tm_buf_add(out, text, (size_t)n);
            free(text);
        }
        done = end;
    }
    return tm_buf_check(out, err);
}

static uint32_t lower_of(uint32_t code)
{
    size_t low = 0, high = tm_unicode_lower_count;
    while (low < high) {
        size_t mid = (low + high) / 2;
        const int32_t *run = tm_unicode_lower + 4 * mid;
        if ((int32_t)code < run[0])
            high = mid;
        else if ((int32_t)code > run[1])
            low = mid + 1;
        else
            return ((int32_t)code - run[0]) % run[2] ? code : (uint32_t)((int32_t)code + run[3]);
    }
    return code;
}

void tm_unicode_lower_case(const char *s, size_t size, tm_buf *out)
{
    for (size_t i = 0, len; i < size; i += len) {
        uint32_t code = tm_utf8_at(s + i, &len);
        if (code == 0x130) { /* the one that becomes two: i and a dot above */
            tm_buf_add(out, "i\xcc\x87", 3);
            continue;
        }
        char text[4];
        tm_buf_add(out, text, (size_t)tm_utf8_put(lower_of(code), text));
    }
}
