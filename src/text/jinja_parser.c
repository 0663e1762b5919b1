/* Statements: the blocks of a template and what is in them. Expressions are in jinja_expressions.c. */
#include "text/jinja_parser.h"

/* What the text captured by a block is called in its filters. */
static const char BODY[] = "(body)";

static tm_status parse_body(parser *p, const char *const *ends, jj_nodes *body, const char **end);

static tm_status check_target(parser *p, const jj_node *target)
{
    if (target->op == JJ_NAME || target->op == JJ_NSREF)
        return TM_OK;
    if (target->op != JJ_TUPLE_OF)
        return jj_syntax(p->t, target->line, p->err, "found an expression where a name to assign to was expected");
    for (size_t i = 0; i < target->list.count; i++)
        TM_TRY(check_target(p, target->list.item[i]));
    return TM_OK;
}

static tm_status parse_target(parser *p, const char *stop, bool namespaces, jj_node **out)
{
    TM_TRY(jj_parse_tuple(p, SIMPLE | (namespaces ? TARGET : 0), stop, out));
    return check_target(p, *out);
}

/* The body of a block that one end closes. */
static tm_status parse_closed(parser *p, const char *close, jj_nodes *body)
{
    const char *const ends[] = {close, NULL};
    const char *end;
    TM_TRY(parse_body(p, ends, body, &end));
    return TM_OK;
}

static tm_status parse_for(parser *p, jj_node *node)
{
    static const char *const ends[] = {"endfor", "else", NULL};
    bool was;
    const char *end;
    node->op = JJ_FOR;
    TM_TRY(parse_target(p, "in", false, &node->a));
    TM_TRY(jj_skip_name(p, "in", &was));
    if (!was)
        return jj_unexpected(p, "'in'");
    TM_TRY(jj_parse_tuple(p, NO_IF, "recursive", &node->b));
    TM_TRY(jj_skip_name(p, "if", &was));
    if (was)
        TM_TRY(jj_parse_expression(p, &node->c));
    TM_TRY(jj_skip_name(p, "recursive", &node->flag));
    TM_TRY(parse_body(p, ends, &node->list, &end));
    return strcmp(end, "else") == 0 ? parse_closed(p, "endfor", &node->more) : TM_OK;
}

static tm_status parse_if(parser *p, jj_node *node)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    const char *end;
    for (;;) {
        node->op = JJ_IF;
        TM_TRY(jj_parse_tuple(p, NO_IF, NULL, &node->a));
        TM_TRY(parse_body(p, ends, &node->list, &end));
        if (strcmp(end, "elif") != 0)
            break;
        jj_node *inner;
        TM_TRY(jj_new_node(p, JJ_IF, p->now.line, &inner));
        TM_TRY(jj_add(p, &node->more, inner));
        node = inner;
    }
    return strcmp(end, "else") == 0 ? parse_closed(p, "endif", &node->more) : TM_OK;
}

static tm_status body_filters(parser *p, bool inside, jj_node **out)
{
    jj_node *body;
    TM_TRY(jj_new_node(p, JJ_NAME, p->now.line, &body));
    body->name = jj_intern(p->t, BODY, sizeof BODY - 1);
    if (!body->name)
        return jj_parser_memory(p);
    return jj_parse_filters(p, body, inside, out);
}

static tm_status parse_set(parser *p, jj_node *node)
{
    bool assign;
    node->op = JJ_SET;
    TM_TRY(parse_target(p, NULL, true, &node->a));
    TM_TRY(jj_skip_if(p, JJ_T_ASSIGN, &assign));
    if (assign)
        return jj_parse_tuple(p, PLAIN, NULL, &node->b);
    node->op = JJ_SET_BLOCK;
    TM_TRY(body_filters(p, false, &node->b));
    return parse_closed(p, "endset", &node->list);
}

static tm_status parse_parameters(parser *p, jj_nodes *parameters)
{
    bool defaults = false;
    TM_TRY(jj_expect(p, JJ_T_LPAREN));
    while (!jj_is(p, JJ_T_RPAREN)) {
        jj_node *parameter;
        bool assign;
        if (parameters->count)
            TM_TRY(jj_expect(p, JJ_T_COMMA));
        if (!jj_is(p, JJ_T_NAME))
            return jj_unexpected(p, "the name of a parameter");
        TM_TRY(jj_new_node(p, JJ_NAME, p->now.line, &parameter));
        parameter->name = p->now.text;
        TM_TRY(jj_advance(p));
        TM_TRY(jj_skip_if(p, JJ_T_ASSIGN, &assign));
        if (assign)
            TM_TRY(jj_parse_expression(p, &parameter->a));
        else if (defaults)
            return jj_syntax(p->t, parameter->line, p->err, "parameter '%s' without a default behind one with", parameter->name);
        defaults |= assign;
        TM_TRY(jj_add(p, parameters, parameter));
    }
    return jj_advance(p);
}

/* A macro's body; which of caller, varargs and kwargs it names decides what the macro takes. */
static tm_status parse_macro_body(parser *p, const char *close, jj_node *node)
{
    int outside = p->mentions;
    p->mentions = 0;
    TM_TRY(parse_closed(p, close, &node->list));
    node->constant.as.i = p->mentions;
    p->mentions |= outside;
    return TM_OK;
}

static tm_status parse_macro(parser *p, jj_node *node)
{
    node->op = JJ_DEFINE;
    if (!jj_is(p, JJ_T_NAME))
        return jj_unexpected(p, "the name of the macro");
    node->name = p->now.text;
    TM_TRY(jj_advance(p));
    TM_TRY(parse_parameters(p, &node->more));
    return parse_macro_body(p, "endmacro", node);
}

static tm_status parse_call_block(parser *p, jj_node *node)
{
    node->op = JJ_CALL_BLOCK;
    if (jj_is(p, JJ_T_LPAREN))
        TM_TRY(parse_parameters(p, &node->more));
    TM_TRY(jj_parse_expression(p, &node->a));
    if (node->a->op != JJ_CALL)
        return jj_syntax(p->t, node->line, p->err, "a call block needs a call, {%% call name() %%}");
    return parse_macro_body(p, "endcall", node);
}

static tm_status parse_filter_block(parser *p, jj_node *node)
{
    node->op = JJ_FILTER_BLOCK;
    TM_TRY(body_filters(p, true, &node->b));
    return parse_closed(p, "endfilter", &node->list);
}

static tm_status parse_with(parser *p, jj_node *node)
{
    node->op = JJ_WITH;
    while (!jj_is(p, JJ_T_BLOCK_END)) {
        jj_node *set;
        if (node->more.count)
            TM_TRY(jj_expect(p, JJ_T_COMMA));
        TM_TRY(jj_new_node(p, JJ_SET, p->now.line, &set));
        TM_TRY(parse_target(p, NULL, false, &set->a));
        TM_TRY(jj_expect(p, JJ_T_ASSIGN));
        TM_TRY(jj_parse_expression(p, &set->b));
        TM_TRY(jj_add(p, &node->more, set));
    }
    return parse_closed(p, "endwith", &node->list);
}

static tm_status parse_print(parser *p, jj_node *node)
{
    node->op = JJ_PRINT;
    while (!jj_is(p, JJ_T_BLOCK_END)) {
        jj_node *item;
        if (node->list.count)
            TM_TRY(jj_expect(p, JJ_T_COMMA));
        TM_TRY(jj_parse_expression(p, &item));
        TM_TRY(jj_add(p, &node->list, item));
    }
    return TM_OK;
}

static tm_status parse_generation(parser *p, jj_node *node)
{
    node->op = JJ_GENERATION;
    return parse_closed(p, "endgeneration", &node->list);
}

static tm_status parse_block(parser *p, jj_node *node)
{
    bool was;
    node->op = JJ_SCOPE;
    if (!jj_is(p, JJ_T_NAME))
        return jj_unexpected(p, "the name of the block");
    const char *name = p->now.text;
    TM_TRY(jj_advance(p));
    TM_TRY(jj_skip_name(p, "scoped", &was));
    TM_TRY(parse_closed(p, "endblock", &node->list));
    return jj_skip_name(p, name, &was);
}

static tm_status parse_break(parser *p, jj_node *node)
{
    (void)p;
    node->op = JJ_BREAK;
    return TM_OK;
}

static tm_status parse_continue(parser *p, jj_node *node)
{
    (void)p;
    node->op = JJ_CONTINUE;
    return TM_OK;
}

static tm_status parse_statement(parser *p, jj_nodes *body)
{
    static const struct {
        const char *name;
        tm_status (*parse)(parser *p, jj_node *node);
    } rows[] = {{"if", parse_if}, {"for", parse_for}, {"set", parse_set}, {"macro", parse_macro},
                {"call", parse_call_block}, {"filter", parse_filter_block}, {"with", parse_with},
                {"print", parse_print}, {"generation", parse_generation}, {"block", parse_block},
                {"break", parse_break}, {"continue", parse_continue}};
    static const char *const refused[] = {"include", "import", "from", "extends", "autoescape", "do", "trans"};
    if (!jj_is(p, JJ_T_NAME))
        return jj_unexpected(p, "the name of a block");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (!jj_is_name(p, rows[i].name))
            continue;
        jj_node *node;
        TM_TRY(jj_new_node(p, JJ_TEXT, p->now.line, &node));
        TM_TRY(jj_deeper(p));
        TM_TRY(jj_advance(p));
        TM_TRY(rows[i].parse(p, node));
        TM_TRY(jj_expect(p, JJ_T_BLOCK_END));
        p->depth--;
        return jj_add(p, body, node);
    }
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (jj_is_name(p, refused[i]))
            return jj_syntax(p->t, p->now.line, p->err, "{%% %s %%} is not for chat templates", refused[i]);
    return jj_syntax(p->t, p->now.line, p->err, "unknown block {%% %.60s %%}", p->now.text);
}

/* Statements up to one of the ends (NULL: the end of the template), which is skipped and given back; what
 * stands behind it in its tag is the caller's. */
static tm_status parse_body(parser *p, const char *const *ends, jj_nodes *body, const char **end)
{
    if (ends) {
        bool colon;
        TM_TRY(jj_skip_if(p, JJ_T_COLON, &colon));
        TM_TRY(jj_expect(p, JJ_T_BLOCK_END));
    }
    for (;;) {
        jj_node *node;
        if (jj_is(p, JJ_T_EOF)) {
            if (!ends)
                return TM_OK;
            return jj_syntax(p->t, p->now.line, p->err, "the template ends inside a block, expected {%% %s %%}", ends[0]);
        }
        if (jj_is(p, JJ_T_DATA)) {
            TM_TRY(jj_constant(p, jj_string_value(p->now.text, p->now.size), &node));
            node->op = JJ_TEXT;
            TM_TRY(jj_add(p, body, node));
            TM_TRY(jj_advance(p));
        } else if (jj_is(p, JJ_T_VARIABLE_BEGIN)) {
            jj_node *value;
            TM_TRY(jj_new_node(p, JJ_PRINT, p->now.line, &node));
            TM_TRY(jj_advance(p));
            TM_TRY(jj_parse_tuple(p, PLAIN, NULL, &value));
            TM_TRY(jj_add(p, &node->list, value));
            TM_TRY(jj_add(p, body, node));
            TM_TRY(jj_expect(p, JJ_T_VARIABLE_END));
        } else {
            TM_TRY(jj_expect(p, JJ_T_BLOCK_BEGIN));
            for (int i = 0; ends && ends[i]; i++)
                if (jj_is_name(p, ends[i])) {
                    *end = ends[i];
                    return jj_advance(p);
                }
            TM_TRY(parse_statement(p, body));
        }
    }
}

tm_status jj_parse(tm_jinja *t, const char *text, size_t size, tm_error *err)
{
    parser p = {.t = t, .err = err};
    TM_TRY(jj_lexer_init(&p.lexer, t, text, size, err));
    TM_TRY(jj_lexer_next(&p.lexer, &p.next));
    TM_TRY(jj_advance(&p));
    return parse_body(&p, NULL, &t->body, NULL);
}
