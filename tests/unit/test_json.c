/* JSON: what is read, what is refused, and that numbers survive the way out and back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/json.h"
#include "folder.h"

#include <locale.h>
#include <math.h>

static json_t *parse(const char *text)
{
    json_t *root = NULL;
    OK(tm_json_parse(text, strlen(text), "t.json", &root, err));
    return root;
}

static void refuses(const char *text, const char *why)
{
    json_t *root = NULL;
    FAILS(TM_INPUT, why, tm_json_parse(text, strlen(text), "t.json", &root, err));
    assert_null(root);
}

static void parsing(void **state)
{
    (void)state;
    json_decref(parse("{\"a\": [1, 2.5, null]}"));
    json_decref(parse("\xef\xbb\xbf{}"));
    json_t *s = parse("\"text\"");
    assert_string_equal(json_string_value(s), "text");
    json_decref(s);
    refuses("{\"a\":1,\n\"a\":2}", "t.json:2: not valid JSON: duplicate object key");
    refuses("", "t.json:1: not valid JSON");
    refuses("{", "t.json:1");
    refuses("{} x", "t.json:1");
    refuses("\"\xff\"", "t.json");
    refuses("\"\xed\xa0\x80\"", "t.json");    /* a surrogate */
    refuses("\"\\ud800\"", "t.json");
    refuses("\"\\u0000\"", "t.json");
    refuses("{\"\\u0000\": 1}", "t.json");
    refuses("[99999999999999999999]", "t.json:1: not valid JSON: too big an integer");
    refuses("[1e999]", "t.json");
    refuses("[NaN]", "t.json");
    char deep[100001];
    memset(deep, '[', 100000);
    deep[100000] = 0;
    refuses(deep, "t.json");
    json_t *root;
    FAILS(TM_INPUT, "cannot open", tm_json_read("/nonexistent.json", &root, err));
}

static void values(void **state)
{
    (void)state;
    json_t *o = parse("{\"i\": 7, \"r\": 2.5, \"w\": 3.0, \"s\": \"x\", \"t\": true, \"n\": null, \"huge\": 1e300}");
    int64_t i;
    double d;
    bool b;
    const char *s;
    OK(tm_json_get_int(o, "f", "i", 1, &i, err));
    assert_int_equal(i, 7);
    OK(tm_json_get_int(o, "f", "w", 1, &i, err));
    assert_int_equal(i, 3);
    OK(tm_json_get_int(o, "f", "n", 5, &i, err));
    assert_int_equal(i, 5);
    OK(tm_json_get_int(o, "f", "missing", -5, &i, err));
    assert_int_equal(i, -5);
    FAILS(TM_INPUT, "f: \"r\" is a number, expected an integer", tm_json_get_int(o, "f", "r", 1, &i, err));
    FAILS(TM_INPUT, "\"huge\"", tm_json_get_int(o, "f", "huge", 1, &i, err));
    FAILS(TM_INPUT, "\"t\" is true", tm_json_get_int(o, "f", "t", 1, &i, err));
    OK(tm_json_get_number(o, "f", "r", 1, &d, err));
    assert_true(d == 2.5);
    OK(tm_json_get_number(o, "f", "i", 1, &d, err));
    assert_true(d == 7);
    FAILS(TM_INPUT, "f: \"s\" is a string, expected a number", tm_json_get_number(o, "f", "s", 1, &d, err));
    OK(tm_json_get_bool(o, "f", "t", false, &b, err));
    assert_true(b);
    FAILS(TM_INPUT, "expected true or false", tm_json_get_bool(o, "f", "i", false, &b, err));
    OK(tm_json_get_string(o, "f", "s", NULL, &s, err));
    assert_string_equal(s, "x");
    OK(tm_json_get_string(o, "f", "n", "d", &s, err));
    assert_string_equal(s, "d");
    FAILS(TM_INPUT, "expected a string", tm_json_get_string(o, "f", "i", NULL, &s, err));
    json_decref(o);
}

static const char *put(tm_buf *buf, double value)
{
    tm_buf_clear(buf);
    tm_json_put_number(buf, value);
    return tm_buf_str(buf);
}

static void number_forms(void **state)
{
    (void)state;
    tm_buf b = {0};
    static const struct { double value; const char *text; } cases[] = {
        {0, "0"}, {-0.0, "-0.0"}, {1, "1"}, {-17, "-17"}, {0.1, "0.1"}, {2.5, "2.5"}, {1e-5, "1e-05"}, {0.0002, "0.0002"},
        {123456789012345.0, "123456789012345"}, {1e15, "1e+15"}, {1.0 / 3, "0.3333333333333333"},
        {5e-324, "4.94065645841247e-324"}, {1.7976931348623157e308, "1.7976931348623157e+308"}, {0.1 + 0.2, "0.30000000000000004"},
        {NAN, "null"}, {INFINITY, "null"}, {-INFINITY, "null"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_string_equal(put(&b, cases[i].value), cases[i].text);
    tm_buf_deinit(&b);
}

/* Random bit patterns read back to the same double, through jansson, whatever the locale. */
static void numbers_round_trip(void **state)
{
    (void)state;
    tm_buf b = {0};
    uint64_t seed = (uint64_t)getpid(), x = seed * 0x9e3779b97f4a7c15u + 1;
    const char *locales[] = {"C", "de_DE.UTF-8", "ru_RU.UTF-8"};
    for (int l = 0; l < 3; l++) {
        if (!setlocale(LC_NUMERIC, locales[l]))
            continue;
        for (int i = 0; i < 20000; i++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            double value, back;
            float single;
            uint32_t low = (uint32_t)x;
            memcpy(&value, &x, 8);
            memcpy(&single, &low, 4);
            if (i & 1)
                value = single;
            if (!isfinite(value))
                continue;
            json_t *root = parse(put(&b, value));
            back = json_number_value(root);
            if (memcmp(&back, &value, 8) != 0 || strchr(b.data, ','))
                fail_msg("seed %llu: %a became %s", (unsigned long long)seed, value, b.data);
            json_decref(root);
        }
    }
    setlocale(LC_NUMERIC, "C");
    tm_buf_deinit(&b);
}

static void strings(void **state)
{
    (void)state;
    tm_buf b = {0};
    tm_json_put_string(&b, "a\"\\/\b\t\n\f\r\x01\x0b\x1f\x7f \xd0\xb6\xf0\x9f\x98\x80");
    assert_string_equal(b.data, "\"a\\\"\\\\/\\b\\t\\n\\f\\r\\u0001\\u000b\\u001f\x7f \xd0\xb6\xf0\x9f\x98\x80\"");
    tm_buf_clear(&b);
    tm_json_put_string(&b, "x\xff\xd0y\xed\xa0\x80"); /* not UTF-8: replaced, still JSON */
    json_decref(parse(b.data));
    assert_string_equal(b.data, "\"x\xef\xbf\xbd\xef\xbf\xbdy\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    tm_buf_clear(&b);
    tm_json_put_string(&b, "");
    assert_string_equal(b.data, "\"\"");
    tm_buf_deinit(&b);
}

static void rows(void **state)
{
    (void)state;
    json_t *row;
    static const char good[] = "{\"a\":\"x\\u0000y\"}", bad[] = "{\"a\\u0000b\":1}";
    OK(tm_json_parse_row(good, sizeof good - 1, &row, err));
    assert_int_equal(json_string_length(json_object_get(row, "a")), 3);
    json_decref(row);
    FAILS(TM_INPUT, "not valid JSON: \\u0000 in a key (column 12)", tm_json_parse_row(bad, sizeof bad - 1, &row, err));
    assert_null(row);
}

/* Documents changed at random: accepted exactly when jansson's own parser does, and then equal. */
static void like_jansson(void **state)
{
    (void)state;
    static const char *const seeds[] = {
        "{\"a\":[1,-2.5e-3,true,false,null,\"x\\n\\u00e9\\ud83d\\ude00\xd0\xb6\"],\"b\":{\"c\":{}},\"d\":\"\"}",
        " [0, -0, 0.0, 1E5, 1e+2, 9223372036854775807, -9223372036854775808, 1.7976931348623157e308]\n",
        "{\"long key of more than sixteen bytes\": \"\xf0\x9f\x98\x80\\\\\\/\\\"\\b\\f\\r\\t\"}",
    };
    static const char marks[] = "0123456789+-.eE,:[]{}\"\\ \n\tutrnfalsd\x80\xff\xed\xa0";
    uint64_t seed = (uint64_t)getpid() * 0x9e3779b97f4a7c15u + 7, x = seed;
    int accepted = 0;
    for (int round = 0; round < 60000; round++) {
        char text[200];
        size_t size = strlen(seeds[round % 3]);
        memcpy(text, seeds[round % 3], size);
        for (int n = round % 4; n > 0 && size > 0; n--) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            size_t at = (size_t)(x >> 8) % size;
            if (x & 64)
                text[at] = marks[(x >> 32) % (sizeof marks - 1)];
            else if (x & 32)
                size = at + 1;
            else
                memmove(text + at, text + at + 1, --size - at);
        }
        char *exact = malloc(size); /* so that the sanitizer sees a read past the end */
        memcpy(exact, text, size);
        json_error_t e;
        json_t *ours, *theirs = json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
        tm_error err = {0};
        tm_status st = tm_json_parse(exact, size, "t", &ours, &err);
        if ((st == TM_OK) != (theirs != NULL) || (st == TM_OK && !json_equal(ours, theirs)))
            fail_msg("seed %llu round %d: %.*s: %s", (unsigned long long)seed, round, (int)size, text,
                     st == TM_OK ? "accepted or not the same" : err.message);
        accepted += st == TM_OK;
        json_decref(ours);
        json_decref(theirs);
        free(exact);
    }
    assert_true(accepted > 16000 && accepted < 50000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parsing), cmocka_unit_test(values), cmocka_unit_test(number_forms),
        cmocka_unit_test(numbers_round_trip), cmocka_unit_test(strings), cmocka_unit_test(rows), cmocka_unit_test(like_jansson),
    };
    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
