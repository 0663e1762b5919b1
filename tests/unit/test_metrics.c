/* Formulas of texts. Expected values of ROUGE-L are those of the package rouge_score 0.1.2, of SARI those of the
 * published computation (Hugging Face's evaluate has it; the first is the example of its documentation), run apart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "train/metrics.h"

#include <math.h>
#include <string.h>

static void near(const char *what, double value, double expected)
{
    if (fabs(value - expected) > 1e-9)
        fail_msg("%s: %.12g, expected %.12g", what, value, expected);
}

static void rouge(void **state)
{
    (void)state;
    static const struct {
        const char *prediction, *reference;
        double expected;
    } cases[] = {{"The quick brown fox jumps", "the fast brown fox leaps over", 0.5454545454545454},
                 {"a b c d", "d c b a", 0.25},
                 {"Hello, World! It's 42.", "hello world it s 42", 1},
                 {"", "x", 0},
                 {"x", "", 0},
                 {"", "", 0},
                 {"one two three", "one two three", 1},
                 {"the the the cat", "the cat the dog", 0.5},
                 {"x1-y2 z", "X1 Y2_z", 1},
                 /* Other scripts count as words too; rouge_score would drop them. */
                 {"Кошка СПИТ на окне", "кошка на окне", 6.0 / 7},
                 {"\xff\xfe bad", "bad", 1}};
    tm_error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double value;
        assert_int_equal(tm_rouge_l(cases[i].prediction, cases[i].reference, &value, &err), TM_OK);
        near(cases[i].prediction, value, cases[i].expected);
    }
}

static void sari(void **state)
{
    (void)state;
    static const char *const species[] = {"About 95 species are currently known.", "About 95 species are now accepted.",
                                          "95 species are now accepted."};
    static const char *const mat[] = {"The big cat sat on the mat."}, *const letters[] = {"a b c d e"}, *const one[] = {"x"}, *const dogs[] = {"the dog and the cat", "the dog, the dog"},
                             *const rug[] = {"Большая кошка лежала на коврике.", "Кошка на коврике."};
    static const struct {
        const char *source, *prediction, *const *references;
        int64_t count;
        double expected;
    } cases[] = {{"About 95 species are currently accepted.", "About 95 you now get in.", species, 3, 26.9536019536019536},
                 {"About 95 species are currently accepted.", "About 95 species are now agreed.", species, 3, 61.7096560847},
                 {"About 95 species are currently accepted.", "About 95 species are currently agreed.", species, 3, 50.8868184955},
                 {"The cat perched imposingly upon the mat, it was huge.", "The big cat sat on the mat.", mat, 1, 100},
                 {"a b c d e", "a b c d e", letters, 1, 100},
                 {"x y", "", one, 1, 87.5},
                 {"the dog and the cat and the dog", "the dog and the dog", dogs, 2, 42.938430080130}, /* grams that come several times */
                 {"Кошка возлежала на половике, и была она огромна.", "Кошка лежала на коврике.", rug, 2, 91.8055555556}};
    tm_error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double value;
        assert_int_equal(tm_sari(cases[i].source, cases[i].prediction, cases[i].references, cases[i].count, &value, &err), TM_OK);
        if (fabs(value - cases[i].expected) > 1e-9)
            fail_msg("%s: %.12g, expected %.12g", cases[i].prediction, value, cases[i].expected);
    }
}

static void extracts(void **state)
{
    (void)state;
    static const char *const cases[][2] = {{"so 5\n#### 72", "72"},       {"#### 1,234.", "1234"},  {"####-5", "-5"},
                                           {"#### $18.50 in all", "18.50"}, {"####  3\n#### 4", "3"}, {"#### Paris \nx", "Paris"},
                                           {"#### -$7", "-7"},            {"####", ""},             {"### 5", NULL},
                                           {"#### .5", ".5"},             {"#### 1,000,000", "1000000"},
                                           {"#### 0.50 each", "0.50"},    {"#### 9 apples", "9"},   {"#### .0 left", ".0"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tm_buf out = {0};
        bool there = tm_extract_answer(cases[i][0], &out);
        assert_int_equal(there, cases[i][1] != NULL);
        if (there)
            assert_string_equal(tm_buf_str(&out), cases[i][1]);
        tm_buf_deinit(&out);
    }
}

static void matches(void **state)
{
    (void)state;
    tm_error err;
    double value;
    assert_true(tm_exact_match(" a b\n", "a b"));
    assert_true(tm_exact_match("", " \t"));
    assert_false(tm_exact_match("A", "a"));
    assert_false(tm_exact_match("a  b", "a b"));
    assert_int_equal(tm_token_f1("cat(happy), dog", "cat(sad)", &value, &err), TM_OK);
    near("f1", value, 2 * (3.0 / 6) * (3.0 / 4) / (3.0 / 6 + 3.0 / 4)); /* cat ( happy ) , dog and cat ( sad ) share three */
    assert_int_equal(tm_token_f1("a a b", "a b b", &value, &err), TM_OK);
    near("f1", value, 2.0 / 3);
    assert_int_equal(tm_token_f1("", "", &value, &err), TM_OK);
    near("f1", value, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(rouge), cmocka_unit_test(sari), cmocka_unit_test(extracts),
                                       cmocka_unit_test(matches)};
    return cmocka_run_group_tests_name("scores of texts", tests, NULL, NULL);
}
