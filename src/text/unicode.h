/* Unicode as the tokenizers see it: one pinned version (16.0), whatever libraries are installed, so
 * that the same text gives the same ids everywhere. The tables are generated (tools/make_unicode).
 * Text is UTF-8 and, past tm_utf8_repair, valid. */
#ifndef TM_TEXT_UNICODE_H
#define TM_TEXT_UNICODE_H

#include "base/buf.h"
#include "base/utf8.h"

#define TM_UNICODE_MAX 0x10ffffu

/* In the order of tools/make_unicode. */
typedef enum tm_category {
    TM_CC, TM_CF, TM_CN, TM_CO, TM_CS, TM_LL, TM_LM, TM_LO, TM_LT, TM_LU, TM_MC, TM_ME, TM_MN, TM_ND, TM_NL, TM_NO,
    TM_PC, TM_PD, TM_PE, TM_PF, TM_PI, TM_PO, TM_PS, TM_SC, TM_SK, TM_SM, TM_SO, TM_ZL, TM_ZP, TM_ZS,
    TM_CATEGORIES
} tm_category;

/* Sets of categories. */
#define TM_CAT(c) (1u << (c))
#define TM_CAT_L (TM_CAT(TM_LL) | TM_CAT(TM_LM) | TM_CAT(TM_LO) | TM_CAT(TM_LT) | TM_CAT(TM_LU))
#define TM_CAT_M (TM_CAT(TM_MC) | TM_CAT(TM_ME) | TM_CAT(TM_MN))
#define TM_CAT_N (TM_CAT(TM_ND) | TM_CAT(TM_NL) | TM_CAT(TM_NO))
#define TM_CAT_P (TM_CAT(TM_PC) | TM_CAT(TM_PD) | TM_CAT(TM_PE) | TM_CAT(TM_PF) | TM_CAT(TM_PI) | TM_CAT(TM_PO) | TM_CAT(TM_PS))

/* --- UTF-8 --- */

/* Decodes the character at s (valid UTF-8), sets *len to its bytes. */
static inline uint32_t tm_utf8_at(const char *s, size_t *len)
{
    const uint8_t *p = (const uint8_t *)s;
    if (p[0] < 0x80) {
        *len = 1;
        return p[0];
    }
    if (p[0] < 0xe0) {
        *len = 2;
        return (uint32_t)(p[0] & 0x1f) << 6 | (p[1] & 0x3f);
    }
    if (p[0] < 0xf0) {
        *len = 3;
        return (uint32_t)(p[0] & 0xf) << 12 | (uint32_t)(p[1] & 0x3f) << 6 | (p[2] & 0x3f);
    }
    *len = 4;
    return (uint32_t)(p[0] & 7) << 18 | (uint32_t)(p[1] & 0x3f) << 12 | (uint32_t)(p[2] & 0x3f) << 6 | (p[3] & 0x3f);
}

/* The character that ends before `at` (> start). */
static inline uint32_t tm_utf8_before(const char *start, size_t at, size_t *len)
{
    size_t i = at - 1;
    while (i > 0 && ((uint8_t)start[i] & 0xc0) == 0x80)
        i--;
    return tm_utf8_at(start + i, len);
}

int tm_utf8_put(uint32_t code, char out[4]); /* bytes written */

/* Appends s with every maximal broken part as U+FFFD, as Python's "replace" does. */
void tm_utf8_repair(const char *s, size_t size, tm_buf *out);

/* --- Characters --- */

tm_category tm_unicode_category(uint32_t code);
bool tm_unicode_is_space(uint32_t code);  /* White_Space */
bool tm_unicode_is_word(uint32_t code);   /* \w of Rust's regex crate: Alphabetic, M, Nd, Pc, Join_Control */

/* --- Sets of code points: sorted, disjoint, not adjacent ranges. Failure to grow is sticky. --- */

typedef struct tm_runes {
    uint32_t (*range)[2]; /* owned; first and last */
    size_t count, capacity;
    bool failed;
} tm_runes;

void tm_runes_deinit(tm_runes *set);
void tm_runes_add(tm_runes *set, uint32_t first, uint32_t last);
void tm_runes_add_set(tm_runes *set, const tm_runes *other);
void tm_runes_add_table(tm_runes *set, const uint32_t *pairs, size_t count);
void tm_runes_add_categories(tm_runes *set, uint32_t categories);
void tm_runes_invert(tm_runes *set);
void tm_runes_intersect(tm_runes *set, const tm_runes *other);
bool tm_runes_has(const tm_runes *set, uint32_t code);

/* A table of ranges (pairs of first and last), sorted, as below. */
bool tm_ranges_have(const uint32_t *pairs, size_t count, uint32_t code);

/* Classes as the peer's regular expressions (Oniguruma) understand them. */
void tm_runes_add_space(tm_runes *set); /* \s */
void tm_runes_add_word(tm_runes *set);  /* \w */
/* \p{name}: categories by short or long name. False: unknown. */
bool tm_runes_add_property(tm_runes *set, const char *name, size_t size);

/* --- Normalisation and case, as the peer does them --- */

typedef enum tm_form { TM_NFC, TM_NFD, TM_NFKC, TM_NFKD } tm_form;

/* Appends s normalised. Characters younger than the peer's library (Unicode 9) stay as they are. */
tm_status tm_unicode_normalize(const char *s, size_t size, tm_form form, tm_buf *out, tm_error *err) TM_MUST_CHECK;
/* True when s is seen to be in that form at once; false: it may or may not be. */
bool tm_unicode_is_normal(const char *s, size_t size, tm_form form);
void tm_unicode_lower_case(const char *s, size_t size, tm_buf *out);

/* --- Patterns --- */

/* Rewrites a pattern of Oniguruma's Ruby syntax into PCRE2's, with every class of characters spelled
 * out from the pinned table. What it does not know is TM_UNSUPPORTED; name tells whose pattern it is. */
tm_status tm_pattern_translate(const char *pattern, size_t size, const char *name, tm_buf *out, tm_error *err) TM_MUST_CHECK;

/* --- Tables (unicode_table.c) --- */

extern const uint32_t tm_unicode_categories[];
extern const size_t tm_unicode_categories_count;
#define X(table)                        \
    extern const uint32_t table[];      \
    extern const size_t table##_count;
X(tm_unicode_nfc_active) X(tm_unicode_nfd_active) X(tm_unicode_nfkc_active) X(tm_unicode_nfkd_active)
X(tm_unicode_late) X(tm_unicode_digits_more) X(tm_unicode_punctuation_more) X(tm_unicode_punctuation_less)
X(tm_unicode_joins_left) X(tm_unicode_joins_right) X(tm_unicode_accents)
#undef X
extern const int32_t tm_unicode_lower[];
extern const size_t tm_unicode_lower_count;

#endif
