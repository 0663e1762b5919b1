/* The Jinja engine against what jinja2 (as transformers sets it up) rendered, its limits, its errors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/json.h"
#include "folder.h"
#include "text/jinja.h"

static tm_status render_json(const char *template, const json_t *context, tm_jinja_output *out, tm_error *err)
{
    tm_jinja *t;
    TM_TRY(tm_jinja_parse(template, strlen(template), "t", &t, err));
    tm_jinja_context values = {&context, 1, NULL};
    tm_status st = tm_jinja_render(t, &values, out, err);
    tm_jinja_close(t);
    return st;
}

static tm_status render(const char *template, const char *context, tm_jinja_output *out, tm_error *err)
{
    json_t *json = NULL;
    TM_TRY(tm_json_parse(context, strlen(context), "context", &json, err));
    tm_status st = render_json(template, json, out, err);
    json_decref(json);
    return st;
}

static void gives(const char *template, const char *expected)
{
    tm_jinja_output out = {0};
    OK(render(template, "{\"n\": 3, \"l\": [1, 2, 3], \"d\": {\"a\": 1}}", &out, err));
    if (strcmp(tm_buf_str(&out.text), expected) != 0)
        fail_msg("%s\n gives    %s\n expected %s", template, tm_buf_str(&out.text), expected);
    tm_jinja_output_deinit(&out);
}

static void refused(const char *template, const char *message)
{
    tm_jinja_output out = {0};
    FAILS(TM_INPUT, message, render(template, "{\"n\": 3}", &out, err));
    tm_jinja_output_deinit(&out);
}

/* ---- what jinja2 rendered ---- */

static void cases(void **state)
{
    (void)state;
    json_t *contexts;
    size_t size, count = 0;
    OK(tm_json_read("tests/data/chat/cases/contexts.json", &contexts, err));
    char *all = slurp("tests/data/chat/cases/cases.jsonl", &size);
    for (char *line = strtok(all, "\n"); line; line = strtok(NULL, "\n"), count++) {
        json_t *one;
        OK(tm_json_parse_row(line, strlen(line), &one, err));
        const char *template = json_string_value(json_object_get(one, "t"));
        const char *expected = json_string_value(json_object_get(one, "o")); /* absent: jinja2 refuses */
        const json_t *context = json_object_get(contexts, json_string_value(json_object_get(one, "c")));
        tm_jinja_output out = {0};
        tm_error err = {0};
        tm_status st = render_json(template, context, &out, &err);
        if (expected ? st != TM_OK || strcmp(expected, tm_buf_str(&out.text)) != 0 : st != TM_INPUT)
            fail_msg("case %zu: %s\n gives    %s%s\n expected %s", count + 1, template, tm_buf_str(&out.text), err.message,
                     expected ? expected : "an error");
        tm_jinja_output_deinit(&out);
        json_decref(one);
    }
    assert_true(count > 300);
    free(all);
    json_decref(contexts);
}

static void by_hand(void **state)
{
    (void)state;
    gives("", "");
    gives("a\n", "a");
    gives("a\r\nb\r", "a\nb");
    gives("{{ 1 }}\n{% if true %}\nx\n{% endif %}\ny", "1\nx\ny");
    gives("  {% set a = 1 %}  {{ a }}", "  1");
    gives("  {%+ set a = 1 %}{{ a }}", "  1");
    gives("{% for x in l if x > 1 %}{{ loop.index }}{{ x }}{{ ',' if not loop.last }}{% else %}none{% endfor %}", "12,23");
    gives("{% set ns = namespace(found=false) %}{% for x in l if not ns.found %}{{ x }}{% set ns.found = true %}{% endfor %}", "1");
    gives("{% for x in l %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13");
    gives("{% for x in l recursive %}{{ x }}{{ loop([9]) if x == 1 and loop.depth == 1 }}{% endfor %}", "1923");
    gives("{% macro m(a, b=2) %}{{ a }}{{ b }}{{ caller() if caller is defined }}{% endmacro %}{% call m(1) %}!{% endcall %}{{ m(3, b=4) }}", "12!34");
    gives("{{ strftime_now('%d %b %Y, %A') }}", "26 Jul 2024, Friday");
    gives("{{ 'ÀΣΣ'|lower }}{{ 'straße'|upper }}{{ 'ǆ'.title() }}", "àσςSTRASSEǅ");
    gives("{{ d.items() }} {{ d }} {{ (1,) }} {{ 1e20 }} {{ none }} {{ [true, 'a\"', \"it's\"] }}",
          "dict_items([('a', 1)]) {'a': 1} (1,) 1e+20 None [True, 'a\"', \"it's\"]");
    gives("{{ l[::-1] }}{{ 'Привет'[1:-1] }}{{ l[5] is defined }}", "[3, 2, 1]ривеFalse");
}

static void errors(void **state)
{
    (void)state;
    refused("a\n\n{{ x.y }}", "t:3: 'x' is undefined");
    refused("{% if n %}\n{{ n.a.b }}{% endif %}", "t:2: 'int object' has no attribute 'a'");
    refused("{{ raise_exception('no ' ~ n) }}", "t:1: the template refuses: no 3");
    refused("{% if n %}", "t:1: the template ends inside a block");
    refused("x\n{% endfor %}", "t:2: unknown block");
    refused("{{ 'a }}", "t:1: a string is not closed");
    refused("{# a", "t:1: a comment is not closed");
    refused("{{ (1] }}", "t:1: found ']'");
    refused("{{ 1 + 'a' }}", "unsupported operand");
    refused("{{ n|nothing }}", "no filter named 'nothing'");
    refused("{% include 'x' %}", "not for chat templates");
    refused("{{ [].append(1) }}", "sandbox");
    refused("{{ 9223372036854775807 + 1 }}", "64 bits");
    refused("{% break %}", "outside of a loop");
    refused("\xff", "not UTF-8");
}

/* ---- limits: what never ends, ends ---- */

static void limits(void **state)
{
    (void)state;
    refused("{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}", "steps");
    refused("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "MiB of memory");
    refused("{{ range(100001) }}", "Range too big");
    refused("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "deep");
    refused("{{ 'x' * 100000000 }}", "longer");
    refused("{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "MiB");
    refused("{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}", "");
    refused("{% set x = 'x' * 1000000 %}{% for i in range(99) %}{{ x }}{% endfor %}", "MiB");
    refused("{{ '%99999999d' % 1 }}", "width");
    refused("{{ 'a'.center(99999999) }}", "width");
    refused("{{ 10 ** 99 }}", "64 bits");
    refused("{% set ns = namespace(t=(1,)) %}{% for i in range(99) %}{% set ns.t = (ns.t, ns.t) %}{% endfor %}{{ {ns.t: 1} }}", "steps");
    refused("{% set ns = namespace(t=(1,)) %}{% for i in range(9999) %}{% set ns.t = (ns.t,) %}{% endfor %}{{ {ns.t: 1} }}", "deep");
    refused("{% set ns = namespace(t=(1,)) %}{% for i in range(9999) %}{% set ns.t = [ns.t] %}{% endfor %}{{ ns.t|tojson }}", "deep");
    refused("{% set s = 'a' * 999999 %}{% for i in range(9999) %}{% set x = s.rfind('b' ~ s[:99999]) %}{% endfor %}", "steps");
    refused("{{ '%*d' % (-9223372036854775807 - 1, 1) }}", "width");
    tm_buf deep = {0};
    for (int i = 0; i < 5000; i++)
        tm_buf_text(&deep, i ? "(" : "{{ ");
    refused(tm_buf_str(&deep), "deep");
    tm_buf_clear(&deep);
    for (int i = 0; i < 3000; i++)
        tm_buf_text(&deep, "{% if 1 %}");
    refused(tm_buf_str(&deep), "deep");
    tm_buf_clear(&deep);
    tm_buf_text(&deep, "{{ 1");
    for (int i = 0; i < 3000; i++)
        tm_buf_text(&deep, "+1");
    tm_buf_text(&deep, " }}");
    refused(tm_buf_str(&deep), "deep");
    tm_buf_clear(&deep);
    for (int i = 0; i < 70000; i++)
        tm_buf_text(&deep, "0123456789abcdef");
    refused(tm_buf_str(&deep), "template of");
    tm_buf_deinit(&deep);
}

static void generation(void **state)
{
    (void)state;
    tm_jinja_output out = {0};
    OK(render("a{% generation %}b{{ n }}{% endgeneration %}c{% generation %}{% endgeneration %}{% generation %}d{% endgeneration %}", "{\"n\": \"ß\"}", &out, err));
    assert_string_equal(tm_buf_str(&out.text), "abßcd");
    assert_int_equal(out.spans, 2);
    assert_true(out.span[0].begin == 1 && out.span[0].end == 4 && out.span[1].begin == 5 && out.span[1].end == 6 && !out.unplaced);
    OK(render("{% macro m() %}{% generation %}x{% endgeneration %}{% endmacro %}{{ m() }}", "{}", &out, err));
    assert_true(out.unplaced && out.spans == 0);
    tm_jinja_output_deinit(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(cases), cmocka_unit_test(by_hand), cmocka_unit_test(errors),
                                       cmocka_unit_test(limits), cmocka_unit_test(generation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
