/* The pinned Unicode table, sets of characters, normalisation, and patterns rewritten for PCRE2. */
#include "text/tokenizer_parts.h"

#include "base/philox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static tm_error err;

static void ok(tm_status st)
{
    if (st != TM_OK)
        fail_msg("%s", err.message);
}

/* Code points that are where two versions of Unicode, or two libraries, disagree. */
static void categories(void **state)
{
    (void)state;
    static const struct { uint32_t code; tm_category category; } cases[] = {
        {0, TM_CC}, {'a', TM_LL}, {'A', TM_LU}, {'0', TM_ND}, {' ', TM_ZS}, {'_', TM_PC}, {'$', TM_SC}, {0xad, TM_CF},
        {0x1c5, TM_LT}, {0x2b0, TM_LM}, {0x300, TM_MN}, {0x488, TM_ME}, {0x903, TM_MC}, {0x180e, TM_CF}, {0x2028, TM_ZL},
        {0x2029, TM_ZP}, {0x2160, TM_NL}, {0xb2, TM_NO}, {0x4e00, TM_LO}, {0xd800, TM_CS}, {0xe000, TM_CO}, {0xffff, TM_CN},
        {0x1c89, TM_LU} /* Unicode 16 */, {0x10d50, TM_LU} /* 16 */, {0x1e4d0, TM_LO} /* 15 */, {0x2ebf0, TM_LO} /* 15.1 */,
        {0x16ea0, TM_CN} /* 17 */, {0x10ffff, TM_CN}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (tm_unicode_category(cases[i].code) != cases[i].category)
            fail_msg("U+%04X has category %d, expected %d", cases[i].code, tm_unicode_category(cases[i].code), cases[i].category);
    int count[TM_CATEGORIES] = {0};
    for (uint32_t c = 0; c <= TM_UNICODE_MAX; c++)
        count[tm_unicode_category(c)]++;
    assert_int_equal(count[TM_LU], 1858); /* DerivedGeneralCategory-16.0.0.txt */
    assert_int_equal(count[TM_LL], 2258);
    assert_int_equal(count[TM_ND], 760);
    assert_int_equal(count[TM_CS], 2048);
    assert_int_equal(count[TM_CO], 137468);
}

static void spaces_and_words(void **state)
{
    (void)state;
    int spaces = 0;
    for (uint32_t c = 0; c <= TM_UNICODE_MAX; c++)
        spaces += tm_unicode_is_space(c);
    assert_int_equal(spaces, 25);
    assert_false(tm_unicode_is_space(0x180e)); /* was one until Unicode 6.3 */
    assert_false(tm_unicode_is_space(0x200b));
    assert_true(tm_unicode_is_space(0x85));
    assert_true(tm_unicode_is_word('_') && tm_unicode_is_word(0x301) && tm_unicode_is_word(0x200d) && tm_unicode_is_word(0x24b6));
    assert_false(tm_unicode_is_word('-') || tm_unicode_is_word(0xb2) || tm_unicode_is_word(0x20ac));
}

static void repairs_utf8(void **state)
{
    (void)state;
    static const struct { const char *in, *out; } cases[] = { /* as bytes.decode("utf-8", "replace") of Python */
        {"abc", "abc"}, {"\xff", "\ufffd"}, {"a\xc3", "a\ufffd"}, {"\xe2\x82z", "\ufffdz"}, {"\xf0\x9f\x98", "\ufffd"},
        {"\xc0\xaf", "\ufffd\ufffd"}, {"\xed\xa0\x80", "\ufffd\ufffd\ufffd"}, {"\xf4\x90\x80\x80", "\ufffd\ufffd\ufffd\ufffd"},
        {"\xf0\x80\x80\x41", "\ufffd\ufffd\ufffd" "A"}, {"\xe2\x82\xac\x80", "€\ufffd"}, {"12345678\xe2", "12345678\ufffd"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tm_buf out = {0};
        tm_utf8_repair(cases[i].in, strlen(cases[i].in), &out);
        assert_string_equal(tm_buf_str(&out), cases[i].out);
        tm_buf_deinit(&out);
    }
    for (uint32_t c = 1; c <= TM_UNICODE_MAX; c += 1 + c / 100) {
        char text[5] = {0};
        size_t len, back;
        if (c >= 0xd800 && c < 0xe000)
            continue;
        int n = tm_utf8_put(c, text);
        assert_int_equal(tm_utf8_at(text, &len), c);
        assert_int_equal(tm_utf8_before(text, (size_t)n, &back), c);
        assert_int_equal(tm_utf8_prefix(text, (size_t)n), n);
        assert_true(len == (size_t)n && back == len);
    }
}

/* Set operations against one bit a code point. */
static void sets_are_sets(void **state)
{
    (void)state;
    enum { N = 300 };
    uint64_t seed = (uint64_t)time(NULL);
    uint32_t at = 0;
    for (int round = 0; round < 300; round++) {
        tm_runes a = {0}, b = {0};
        bool in_a[N] = {0}, in_b[N] = {0};
        for (int i = 0; i < 10; i++) {
            tm_philox p = tm_philox_at(seed, at++, 0, 0, 0);
            uint32_t first = p.word[0] % N, last = first + p.word[1] % 20;
            last = last < N ? last : N - 1;
            tm_runes_add(p.word[2] & 1 ? &a : &b, first, last);
            for (uint32_t c = first; c <= last; c++)
                (p.word[2] & 1 ? in_a : in_b)[c] = true;
        }
        int kind = round % 3;
        if (kind == 0)
            tm_runes_add_set(&a, &b);
        else if (kind == 1)
            tm_runes_intersect(&a, &b);
        else
            tm_runes_invert(&a);
        for (uint32_t c = 0; c < N; c++) {
            bool expected = kind == 0 ? in_a[c] || in_b[c] : kind == 1 ? in_a[c] && in_b[c] : !in_a[c];
            if (tm_runes_has(&a, c) != expected)
                fail_msg("seed %llu, round %d, code %u", (unsigned long long)seed, round, c);
        }
        assert_int_equal(tm_runes_has(&a, TM_UNICODE_MAX), kind == 2);
        tm_runes_deinit(&a);
        tm_runes_deinit(&b);
    }
}

static void check_form(const char *in, tm_form form, const char *expected)
{
    tm_buf out = {0};
    ok(tm_unicode_normalize(in, strlen(in), form, &out, &err));
    if (strcmp(tm_buf_str(&out), expected))
        fail_msg("form %d of \"%s\": \"%s\", expected \"%s\"", form, in, tm_buf_str(&out), expected);
    if (tm_unicode_is_normal(in, strlen(in), form))
        assert_string_equal(in, expected);
    tm_buf_deinit(&out);
}

static void normal_forms(void **state)
{
    (void)state;
    check_form("", TM_NFC, "");
    check_form("plain", TM_NFC, "plain");
    check_form("e\u0301", TM_NFC, "é");
    check_form("xe\u0301y", TM_NFC, "xéy");
    check_form("a\u0323\u0307", TM_NFC, "ạ̇");
    check_form("a\u0307\u0323", TM_NFC, "ạ̇");
    check_form("\u1100\u1161\u11a8", TM_NFC, "각");
    check_form("가\u11a8", TM_NFC, "각");
    check_form("\u212b", TM_NFC, "Å");
    check_form("\u0344", TM_NFC, "\u0308\u0301");
    check_form("é각", TM_NFD, "e\u0301\u1100\u1161\u11a8");
    check_form("ﬁ①ｱ", TM_NFC, "ﬁ①ｱ");
    check_form("ﬁ①ｱ\u00a0", TM_NFKC, "fi1ア ");
    check_form("ﬃé", TM_NFKD, "ffie\u0301");
    /* younger than the peer's library (Unicode 9): left alone, and nothing joins across them */
    check_form("\u32ff", TM_NFKC, "\u32ff");
    check_form("\U000105d2\u0307", TM_NFC, "\U000105d2\u0307");
    check_form("a\u0898\u0323\u0301", TM_NFC, "a\u0898\u0323\u0301");
}

/* NFC(NFD(x)) = NFC(x) and a form of a form is itself, for random text. */
static void forms_are_stable(void **state)
{
    (void)state;
    uint64_t seed = (uint64_t)time(NULL);
    for (uint32_t round = 0; round < 3000; round++) {
        tm_buf text = {0}, a = {0}, b = {0};
        for (uint32_t i = 0; i < 12; i++) {
            tm_philox p = tm_philox_at(seed, round, i, 0, 0);
            uint32_t code = p.word[0] % 5 == 0 ? 0x300 + p.word[1] % 0x70 : p.word[0] % 5 == 1 ? 0x1100 + p.word[1] % 0x100
                            : p.word[1] % 0x3000;
            char c[4];
            tm_buf_add(&text, c, (size_t)tm_utf8_put(code, c));
        }
        tm_form form = (tm_form)(round % 4);
        ok(tm_unicode_normalize(text.data, text.size, form, &a, &err));
        ok(tm_unicode_normalize(tm_buf_str(&a), a.size, form, &b, &err));
        if (a.size != b.size || memcmp(a.data, b.data, a.size))
            fail_msg("seed %llu, round %u", (unsigned long long)seed, round);
        tm_buf_clear(&a);
        tm_buf_clear(&b);
        ok(tm_unicode_normalize(text.data, text.size, TM_NFC, &a, &err));
        ok(tm_unicode_normalize(text.data, text.size, TM_NFD, &b, &err));
        tm_buf_clear(&text);
        ok(tm_unicode_normalize(b.data, b.size, TM_NFC, &text, &err));
        if (a.size != text.size || memcmp(a.data, text.data, a.size))
            fail_msg("seed %llu, round %u: NFC of NFD", (unsigned long long)seed, round);
        tm_buf_deinit(&text);
        tm_buf_deinit(&a);
        tm_buf_deinit(&b);
    }
}

static void lower_case(void **state)
{
    (void)state;
    static const char in[] = "AbÉЖΣİẞǅȀāǍ\u2160ꟋϹ\U00010400\u1c89\u24b6", out[] = "abéжσi\u0307ßǆȁāǎ\u2170\u0264ϲ\U00010428\u1c8a\u24d0";
    tm_buf text = {0};
    tm_unicode_lower_case(in, strlen(in), &text);
    assert_string_equal(tm_buf_str(&text), out);
    tm_buf_deinit(&text);
}

/* All matches of a pattern, in brackets. */
static char *matches(const char *pattern, const char *text)
{
    tm_finder finder = {0};
    tm_match_memory memory;
    tm_buf out = {0};
    tm_find find;
    size_t done = 0, start = 0, end = 0;
    ok(tm_match_memory_init(&memory, &err));
    ok(tm_finder_regex(&finder, pattern, strlen(pattern), false, "pattern", &err));
    tm_find_start(&find, &finder, text, strlen(text));
    for (bool found;;) {
        ok(tm_find_next(&find, &memory, &start, &end, &found, &err));
        if (!found)
            break;
        tm_buf_add(&out, text + done, start - done);
        tm_buf_printf(&out, "[%.*s]", (int)(end - start), text + start);
        done = end;
    }
    tm_buf_text(&out, text + done);
    tm_finder_deinit(&finder);
    tm_match_memory_deinit(&memory);
    return out.data;
}

/* Expected by Oniguruma (through the peer's Replace normaliser). */
static void patterns(void **state)
{
    (void)state;
    static const struct { const char *pattern, *text, *expected; } cases[] = {
        {"\\p{L}+", "ab1éж漢 \U00010d50", "[ab]1[éж漢] [\U00010d50]"},
        {"\\P{L}", "a1", "a[1]"},
        {"\\p{^Lu}", "aB", "[a]B"},
        {"\\p{Decimal_Number}", "a1", "a[1]"},
        {"\\s", "a\u3000\u180e\u200b", "a[\u3000]\u180e\u200b"},
        {"\\h+", "xAf0 g", "x[Af0] g"},
        {"\\v", "\v\n", "[\v]\n"},
        {"\\w+", "a_1²\u24b6-", "[a_1²\u24b6]-"},
        {"[^\\s\\w]", "a !", "a [!]"},
        {"[a-c&&[^b]]", "abc", "[a]b[c]"},
        {"[a[x-z]]", "axyb", "[a][x][y]b"},
        {"[]a]", "]a", "[]][a]"},
        {"[a\\]\\-]", "a]-b", "[a][]][-]b"},
        {"[[:digit:][:^space:]]", "1 a", "[1] [a]"},
        {"[\\u0430-\\x{44f}]+", "даa", "[да]a"},
        {"a{,2}b", "aaab", "a[aab]"},
        {"(?:ab){2}", "ababab", "[abab]ab"},
        {"\\d{1,3}+", "1234567", "[1234567]"},
        {"a{2}?", "aaaa", "[aa][aa]"},
        {"a++b", "aab", "[aab]"},
        {"a+?b?", "aab", "[a][ab]"},
        {"{", "a{b", "a[{]b"},
        {"a.c", "abc a\nc", "[abc] a\nc"},
        {"(?m:a.c)", "a\nc", "[a\nc]"},
        {"^.", "ab\ncd", "[a]b\n[c]d"},
        {"\\A.", "ab\ncd", "[a]b\ncd"},
        {"(?i:'s|K)", "'ſ'S\u212a", "['ſ]['S][\u212a]"},
        {"(?i)ab", "aB", "[aB]"},
        {"(?<=a)b(?!c)", "abcab", "abca[b]"},
        {"\\bx", "x ax éx", "[x] ax éx"},
        {"(?>a|ab)c", "abc", "abc"},
        {"x*", "axx", "[]a[xx]"},
        {"\\R", "a\r\nb\nc", "a[\r\n]b[\n]c"},
        {"\\p{Han}", "漢か", "[漢]か"},
        {"[^\\r\\n\\p{L}\\p{N}]?\\p{L}+", "a b\n", "[a][ b]\n"},
        {"", "ab", "[]a[]b[]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *found = matches(cases[i].pattern, cases[i].text);
        if (strcmp(found, cases[i].expected))
            fail_msg("/%s/ in \"%s\": \"%s\", expected \"%s\"", cases[i].pattern, cases[i].text, found, cases[i].expected);
        free(found);
    }
}

static void refused_patterns(void **state)
{
    (void)state;
    static const struct { const char *pattern; tm_status status; } cases[] = {
        {"(", TM_INPUT}, {")", TM_INPUT}, {"[a", TM_INPUT}, {"a\\", TM_INPUT}, {"*", TM_INPUT}, {"a|+", TM_INPUT},
        {"[z-a]", TM_INPUT}, {"\\x{110000}", TM_INPUT}, {"\\x{d800}", TM_INPUT}, {"\\p", TM_INPUT}, {"\\p{L", TM_INPUT},
        {"(?i", TM_INPUT}, {"[a&&", TM_INPUT}, {"\\u12", TM_INPUT}, {"(?<=a+)b", TM_INPUT}, {"\xff", TM_INPUT},
        {"\\p{Greek}", TM_UNSUPPORTED}, {"\\1", TM_UNSUPPORTED}, {"\\k<a>", TM_UNSUPPORTED}, {"\\X", TM_UNSUPPORTED},
        {"\\G", TM_UNSUPPORTED}, {"\\K", TM_UNSUPPORTED}, {"(?x: a)", TM_UNSUPPORTED}, {"(?~a)", TM_UNSUPPORTED}, {"(?<n>a)", TM_UNSUPPORTED},
        {"(?#c)", TM_UNSUPPORTED}, {"(?(1)a)", TM_UNSUPPORTED}, {"a(?i)b", TM_UNSUPPORTED}, {"a{1,2000}", TM_UNSUPPORTED},
        {"a{3,1}", TM_UNSUPPORTED}, {"[[:graph:]]", TM_UNSUPPORTED}, {"[a-\\d]", TM_UNSUPPORTED},
        {"[[[[[[[[[[[[[[[[[[[a]]]]]]]]]]]]]]]]]]]", TM_UNSUPPORTED}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tm_finder finder = {0};
        tm_status st = tm_finder_regex(&finder, cases[i].pattern, strlen(cases[i].pattern), false, "here", &err);
        if (st != cases[i].status || !strstr(err.message, "here"))
            fail_msg("/%s/ gave %d \"%s\", expected %d", cases[i].pattern, st, err.message, cases[i].status);
        tm_finder_deinit(&finder);
    }
}

/* A class of the table means in PCRE2 what it says here, for every code point. */
static void classes_of_all_characters(void **state)
{
    (void)state;
    static const struct { const char *pattern; uint32_t categories; } cases[] = {
        {"\\p{L}", TM_CAT_L}, {"[\\p{N}]", TM_CAT_N}, {"[^\\P{M}]", TM_CAT_M}, {"\\p{Punctuation}", TM_CAT_P},
        {"\\d", TM_CAT(TM_ND)}, {"\\p{Cn}", TM_CAT(TM_CN)}};
    tm_buf text = {0};
    tm_match_memory memory;
    ok(tm_match_memory_init(&memory, &err));
    for (uint32_t c = 0; c <= TM_UNICODE_MAX; c++) {
        char s[4];
        if (c < 0xd800 || c > 0xdfff)
            tm_buf_add(&text, s, (size_t)tm_utf8_put(c, s));
    }
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tm_finder finder = {0};
        tm_find find;
        size_t start = 0, end = 0, len;
        ok(tm_finder_regex(&finder, cases[i].pattern, strlen(cases[i].pattern), false, "class", &err));
        tm_find_start(&find, &finder, text.data, text.size);
        bool found;
        ok(tm_find_next(&find, &memory, &start, &end, &found, &err));
        for (size_t at = 0; at < text.size; at += len) {
            uint32_t code = tm_utf8_at(text.data + at, &len);
            bool expected = TM_CAT(tm_unicode_category(code)) & cases[i].categories;
            if (expected != (found && start == at))
                fail_msg("/%s/ and U+%04X", cases[i].pattern, code);
            if (found && start == at)
                ok(tm_find_next(&find, &memory, &start, &end, &found, &err));
        }
        assert_false(found);
        tm_finder_deinit(&finder);
    }
    tm_match_memory_deinit(&memory);
    tm_buf_deinit(&text);
}

static void byte_alphabet(void **state)
{
    (void)state;
    for (int b = 0; b < 256; b++)
        assert_int_equal(tm_char_byte(tm_byte_char((uint8_t)b)), b);
    int known = 0;
    for (uint32_t c = 0; c < 0x1000; c++)
        known += tm_char_byte(c) >= 0;
    assert_int_equal(known, 256);
    assert_int_equal(tm_byte_char(' '), 0x120);
    assert_int_equal(tm_byte_char('\n'), 0x10a);
    assert_int_equal(tm_byte_char(0xad), 0x143);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(categories), cmocka_unit_test(spaces_and_words), cmocka_unit_test(repairs_utf8),
        cmocka_unit_test(sets_are_sets), cmocka_unit_test(normal_forms), cmocka_unit_test(forms_are_stable),
        cmocka_unit_test(lower_case), cmocka_unit_test(patterns), cmocka_unit_test(refused_patterns),
        cmocka_unit_test(classes_of_all_characters), cmocka_unit_test(byte_alphabet),
    };
    return cmocka_run_group_tests_name("unicode", tests, NULL, NULL);
}
