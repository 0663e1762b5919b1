/* Tests: what stands behind `is`. */
#include "text/jinja_parts.h"

typedef const jj_args *args_t;

#define KIND_TEST(name, expression)                                       \
    static jj_value *t_##name(jj_run *r, jj_value *v, args_t a)           \
    {                                                                     \
        (void)a;                                                          \
        return jj_bool(r, expression);                                    \
    }
KIND_TEST(defined, v->kind != JJ_UNDEFINED)
KIND_TEST(undefined, v->kind == JJ_UNDEFINED)
KIND_TEST(none, v->kind == JJ_NONE)
KIND_TEST(boolean, v->kind == JJ_BOOL)
KIND_TEST(true, v->kind == JJ_BOOL && v->as.i)
KIND_TEST(false, v->kind == JJ_BOOL && !v->as.i)
KIND_TEST(integer, v->kind == JJ_INT)
KIND_TEST(float, v->kind == JJ_FLOAT)
KIND_TEST(number, jj_is_number(v))
KIND_TEST(string, v->kind == JJ_STRING)
KIND_TEST(mapping, v->kind == JJ_DICT)
KIND_TEST(sequence, v->kind == JJ_STRING || v->kind == JJ_DICT || v->kind == JJ_LIST || v->kind == JJ_TUPLE || v->kind == JJ_RANGE || v->kind == JJ_UNDEFINED)
KIND_TEST(iterable, v->kind == JJ_UNDEFINED || v->kind == JJ_STRING || v->kind == JJ_DICT || jj_is_items(v) || v->kind == JJ_LOOP)
KIND_TEST(callable, v->kind == JJ_FUNCTION || v->kind == JJ_MACRO || v->kind == JJ_LOOP || v->kind == JJ_JOINER || v->kind == JJ_UNDEFINED)
KIND_TEST(escaped, v->kind == JJ_STRING && v->markup)
KIND_TEST(filter, v->kind == JJ_STRING && jj_find_function(jj_filters, v->as.s.text, v->as.s.size))
KIND_TEST(test, v->kind == JJ_STRING && jj_find_function(jj_tests, v->as.s.text, v->as.s.size))

static jj_value *t_sameas(jj_run *r, jj_value *v, args_t a)
{
    const jj_value *o = a->item[0];
    bool single = v->kind == o->kind && (v->kind == JJ_NONE || (v->kind == JJ_BOOL && v->as.i == o->as.i) ||
                                         (v->kind == JJ_INT && v->as.i == o->as.i && v->as.i >= -5 && v->as.i <= 256));
    return jj_bool(r, v == o || single);
}

static jj_value *t_in(jj_run *r, jj_value *v, args_t a)
{
    bool in;
    return jj_contains(r, v, a->item[0], &in) ? jj_bool(r, in) : NULL;
}

static jj_value *t_eq(jj_run *r, jj_value *v, args_t a)
{
    bool same = jj_equal(r, v, a->item[0]);
    return r->status == TM_OK ? jj_bool(r, same) : NULL;
}

static jj_value *t_ne(jj_run *r, jj_value *v, args_t a)
{
    bool same = jj_equal(r, v, a->item[0]);
    return r->status == TM_OK ? jj_bool(r, !same) : NULL;
}

static jj_value *order(jj_run *r, jj_value *a, jj_value *b, bool or_equal)
{
    bool less;
    return jj_less(r, a, b, or_equal, &less) ? jj_bool(r, less) : NULL;
}

static jj_value *t_lt(jj_run *r, jj_value *v, args_t a) { return order(r, v, a->item[0], false); }
static jj_value *t_le(jj_run *r, jj_value *v, args_t a) { return order(r, v, a->item[0], true); }
static jj_value *t_gt(jj_run *r, jj_value *v, args_t a) { return order(r, a->item[0], v, false); }
static jj_value *t_ge(jj_run *r, jj_value *v, args_t a) { return order(r, a->item[0], v, true); }

static jj_value *remainder_is(jj_run *r, jj_value *v, jj_value *by, int64_t rest)
{
    jj_value *mod = by ? jj_operate(r, JJ_MOD, v, by) : NULL, *expected = jj_int(r, rest);
    return mod && expected ? jj_bool(r, jj_equal(r, mod, expected)) : NULL;
}

static jj_value *t_odd(jj_run *r, jj_value *v, args_t a) { return (void)a, remainder_is(r, v, jj_int(r, 2), 1); }
static jj_value *t_even(jj_run *r, jj_value *v, args_t a) { return (void)a, remainder_is(r, v, jj_int(r, 2), 0); }
static jj_value *t_divisibleby(jj_run *r, jj_value *v, args_t a) { return remainder_is(r, v, a->item[0], 0); }

static jj_value *by_method(jj_run *r, jj_value *v, const char *name)
{
    bool forbidden;
    v = jj_to_string(r, v);
    return v ? jj_apply(r, jj_find_method(v, name, strlen(name), &forbidden), v, &(jj_args){0}) : NULL;
}

static jj_value *t_lower(jj_run *r, jj_value *v, args_t a) { return (void)a, by_method(r, v, "islower"); }
static jj_value *t_upper(jj_run *r, jj_value *v, args_t a) { return (void)a, by_method(r, v, "isupper"); }

const jj_function jj_tests[] = {
    {"defined", "", t_defined}, {"undefined", "", t_undefined}, {"none", "", t_none}, {"boolean", "", t_boolean},
    {"true", "", t_true}, {"false", "", t_false}, {"integer", "", t_integer}, {"float", "", t_float},
    {"number", "", t_number}, {"string", "", t_string}, {"mapping", "", t_mapping}, {"sequence", "", t_sequence},
    {"iterable", "", t_iterable}, {"callable", "", t_callable}, {"escaped", "", t_escaped}, {"filter", "", t_filter},
    {"test", "", t_test}, {"sameas", "other", t_sameas}, {"in", "seq", t_in}, {"odd", "", t_odd}, {"even", "", t_even},
    {"divisibleby", "num", t_divisibleby}, {"lower", "", t_lower}, {"upper", "", t_upper},
    {"==", "other", t_eq}, {"eq", "other", t_eq}, {"equalto", "other", t_eq}, {"!=", "other", t_ne}, {"ne", "other", t_ne},
    {"<", "other", t_lt}, {"lt", "other", t_lt}, {"lessthan", "other", t_lt}, {"<=", "other", t_le}, {"le", "other", t_le},
    {">", "other", t_gt}, {"gt", "other", t_gt}, {"greaterthan", "other", t_gt}, {">=", "other", t_ge}, {"ge", "other", t_ge},
    {NULL, NULL, NULL}};
