/* Tokens to a tree. The grammar is jinja2's; what each node holds is said where it is made:
 *   LIST_OF, TUPLE_OF, CONCAT  list: the parts        DICT_OF  list: keys, more: values
 *   ATTR  a, name              INDEX  a, b            SLICE    list: from, to, step (NULL: absent)
 *   CALL, FILTER, TEST         a: what it is applied to, list: arguments, more: named ones (SET: name, a),
 *                              b: after *, c: after **
 *   IF_ELSE  a: condition, b, c (NULL: undefined)     COMPARE  a, list: EQ ... NOT_IN (a: the right side)
 *   FOR  a: target, b: items, c: condition, list: body, more: else, flag: recursive
 *   IF   a, list, more         SET  a: target, b      SET_BLOCK, FILTER_BLOCK  a: target, b: filters of BODY, list
 *   DEFINE, CALL_BLOCK  name, a: the call, more: parameters (NAME, a: default), list: body,
 *                              constant.as.i: which of caller, varargs, kwargs the body names */
#include "text/jinja_parts.h"

typedef struct parser {
    tm_jinja *t;
    jj_lexer lexer;
    jj_token now, next;
    int depth, mentions;
    tm_error *err;
} parser;

/* What the text captured by a block is called in its filters. */
static const char BODY[] = "(body)";

static tm_status parse_expression(parser *p, jj_node **out);
static tm_status parse_unary(parser *p, bool filters, jj_node **out);
static tm_status parse_body(parser *p, const char *const *ends, jj_nodes *body, const char **end);

static tm_status no_memory(parser *p) { return tm_fail(p->err, TM_NO_MEMORY, "%s: out of memory", p->t->name); }

static tm_status new_node(parser *p, jj_op op, int line, jj_node **out)
{
    *out = jj_pool_take(&p->t->pool, sizeof **out);
    if (!*out)
        return no_memory(p);
    (*out)->op = (uint8_t)op;
    (*out)->line = line;
    return TM_OK;
}

static tm_status add(parser *p, jj_nodes *nodes, jj_node *node)
{
    if (nodes->count == nodes->capacity) {
        size_t capacity = nodes->capacity ? 2 * nodes->capacity : 4;
        jj_node **grown = jj_pool_take(&p->t->pool, capacity * sizeof *grown);
        if (!grown)
            return no_memory(p);
        if (nodes->count)
            memcpy(grown, nodes->item, nodes->count * sizeof *grown);
        nodes->item = grown;
        nodes->capacity = capacity;
    }
    nodes->item[nodes->count++] = node;
    return TM_OK;
}

/* ---- tokens ---- */

static tm_status advance(parser *p)
{
    p->now = p->next;
    if (p->next.kind != JJ_T_EOF)
        TM_TRY(jj_lexer_next(&p->lexer, &p->next));
    return TM_OK;
}

static bool is(const parser *p, jj_token_kind kind) { return p->now.kind == kind; }
static bool token_is(const jj_token *token, const char *name)
{
    return token->kind == JJ_T_NAME && token->size == strlen(name) && memcmp(token->text, name, token->size) == 0;
}
static bool is_name(const parser *p, const char *name) { return token_is(&p->now, name); }

static const char *const kind_names[] = {
    "the end of the template", "text", "a block", "the end of the block", "an expression block", "the end of the expression",
    "a name", "a string", "a number", "a number", "'+'", "'-'", "'*'", "'/'", "'//'", "'%'", "'**'", "'~'", "'=='", "'!='",
    "'<'", "'<='", "'>'", "'>='", "'='", "'.'", "':'", "'|'", "','", "';'", "'('", "')'", "'['", "']'", "'{'", "'}'"};

static tm_status unexpected(parser *p, const char *expected)
{
    if (is(p, JJ_T_NAME))
        return jj_syntax(p->t, p->now.line, p->err, "found '%.60s', expected %s", p->now.text, expected);
    return jj_syntax(p->t, p->now.line, p->err, "found %s, expected %s", kind_names[p->now.kind], expected);
}

static tm_status expect(parser *p, jj_token_kind kind)
{
    return is(p, kind) ? advance(p) : unexpected(p, kind_names[kind]);
}

/* Skips a token if it is there. */
static tm_status skip_if(parser *p, jj_token_kind kind, bool *was)
{
    *was = is(p, kind);
    return *was ? advance(p) : TM_OK;
}

static tm_status skip_name(parser *p, const char *name, bool *was)
{
    *was = is_name(p, name);
    return *was ? advance(p) : TM_OK;
}

static tm_status deeper(parser *p)
{
    if (++p->depth > TM_JINJA_MAX_NESTING)
        return jj_syntax(p->t, p->now.line, p->err, "nested more than %d deep", TM_JINJA_MAX_NESTING);
    return TM_OK;
}

/* ---- primaries ---- */

static tm_status constant(parser *p, jj_value value, jj_node **out)
{
    TM_TRY(new_node(p, JJ_CONST, p->now.line, out));
    (*out)->constant = value;
    return TM_OK;
}

static jj_value string_value(const char *text, size_t size)
{
    jj_value v = {.kind = JJ_STRING, .as.s = {text, size, JJ_UNKNOWN}};
    v.as.s.chars = jj_chars(&v);
    return v;
}

static tm_status parse_strings(parser *p, jj_node **out)
{
    const char *text = p->now.text;
    size_t size = p->now.size;
    int line = p->now.line;
    TM_TRY(advance(p));
    while (is(p, JJ_T_STRING)) { /* strings side by side are one */
        char *joined = jj_pool_take(&p->t->pool, size + p->now.size + 1);
        if (!joined)
            return no_memory(p);
        memcpy(joined, text, size);
        memcpy(joined + size, p->now.text, p->now.size);
        size += p->now.size;
        text = joined;
        TM_TRY(advance(p));
    }
    TM_TRY(constant(p, string_value(text, size), out));
    (*out)->line = line;
    return TM_OK;
}

/* Expressions with commas between them up to close; a comma may stand last. */
static tm_status parse_list_items(parser *p, jj_token_kind close, jj_nodes *items)
{
    while (!is(p, close)) {
        jj_node *item;
        if (items->count) {
            TM_TRY(expect(p, JJ_T_COMMA));
            if (is(p, close))
                break;
        }
        TM_TRY(parse_expression(p, &item));
        TM_TRY(add(p, items, item));
    }
    return advance(p);
}

static tm_status parse_dict(parser *p, jj_node **out)
{
    TM_TRY(new_node(p, JJ_DICT_OF, p->now.line, out));
    TM_TRY(advance(p));
    while (!is(p, JJ_T_RBRACE)) {
        jj_node *item;
        if ((*out)->list.count) {
            TM_TRY(expect(p, JJ_T_COMMA));
            if (is(p, JJ_T_RBRACE))
                break;
        }
        TM_TRY(parse_expression(p, &item));
        TM_TRY(add(p, &(*out)->list, item));
        TM_TRY(expect(p, JJ_T_COLON));
        TM_TRY(parse_expression(p, &item));
        TM_TRY(add(p, &(*out)->more, item));
    }
    return advance(p);
}

enum { PLAIN = 0, NO_IF = 1, SIMPLE = 2, PARENTHESES = 4, TARGET = 8 };

static tm_status parse_primary(parser *p, bool target, jj_node **out);
static tm_status parse_or(parser *p, jj_node **out);

/* One expression, or several with commas: a tuple. stop: a name that ends it (NULL: none). */
static tm_status parse_tuple(parser *p, int how, const char *stop, jj_node **out)
{
    jj_nodes items = {0};
    bool comma = false;
    int line = p->now.line;
    for (;;) {
        jj_node *item;
        if (items.count)
            TM_TRY(expect(p, JJ_T_COMMA));
        if (is(p, JJ_T_VARIABLE_END) || is(p, JJ_T_BLOCK_END) || is(p, JJ_T_RPAREN) || (stop && is_name(p, stop)))
            break;
        TM_TRY(how & SIMPLE ? parse_primary(p, how & TARGET, &item) : how & NO_IF ? parse_or(p, &item) : parse_expression(p, &item));
        TM_TRY(add(p, &items, item));
        if (!is(p, JJ_T_COMMA))
            break;
        comma = true;
    }
    if (!comma && items.count) {
        *out = items.item[0];
        return TM_OK;
    }
    if (!comma && !(how & PARENTHESES))
        return unexpected(p, "an expression");
    TM_TRY(new_node(p, JJ_TUPLE_OF, line, out));
    (*out)->list = items;
    return TM_OK;
}

static tm_status parse_name(parser *p, bool target, jj_node **out)
{
    static const struct {
        const char *name;
        jj_value value;
    } words[] = {{"true", {.kind = JJ_BOOL, .as.i = 1}}, {"True", {.kind = JJ_BOOL, .as.i = 1}},
                 {"false", {.kind = JJ_BOOL}}, {"False", {.kind = JJ_BOOL}}, {"none", {.kind = JJ_NONE}},
                 {"None", {.kind = JJ_NONE}}};
    static const char *const special[] = {"caller", "varargs", "kwargs"};
    const char *name = p->now.text;
    int line = p->now.line;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (is_name(p, words[i].name)) {
            TM_TRY(constant(p, words[i].value, out));
            return advance(p);
        }
    for (int i = 0; i < 3; i++)
        if (is_name(p, special[i]))
            p->mentions |= 1 << i;
    TM_TRY(advance(p));
    if (!target || !is(p, JJ_T_DOT)) {
        TM_TRY(new_node(p, JJ_NAME, line, out));
        (*out)->name = name;
        return TM_OK;
    }
    TM_TRY(advance(p)); /* namespace.attribute as a target: a: the namespace */
    if (!is(p, JJ_T_NAME))
        return unexpected(p, "a name");
    jj_node *space;
    TM_TRY(new_node(p, JJ_NAME, line, &space));
    space->name = name;
    TM_TRY(new_node(p, JJ_NSREF, line, out));
    (*out)->a = space;
    (*out)->name = p->now.text;
    return advance(p);
}

static tm_status parse_primary(parser *p, bool target, jj_node **out)
{
    tm_status st = TM_OK;
    TM_TRY(deeper(p));
    switch (p->now.kind) {
    case JJ_T_NAME:
        st = parse_name(p, target, out);
        break;
    case JJ_T_STRING:
        st = parse_strings(p, out);
        break;
    case JJ_T_INT:
        TM_TRY(constant(p, (jj_value){.kind = JJ_INT, .as.i = p->now.i}, out));
        st = advance(p);
        break;
    case JJ_T_FLOAT:
        TM_TRY(constant(p, (jj_value){.kind = JJ_FLOAT, .as.f = p->now.f}, out));
        st = advance(p);
        break;
    case JJ_T_LPAREN:
        TM_TRY(advance(p));
        TM_TRY(parse_tuple(p, PARENTHESES, NULL, out));
        st = expect(p, JJ_T_RPAREN);
        break;
    case JJ_T_LBRACKET:
        TM_TRY(new_node(p, JJ_LIST_OF, p->now.line, out));
        TM_TRY(advance(p));
        st = parse_list_items(p, JJ_T_RBRACKET, &(*out)->list);
        break;
    case JJ_T_LBRACE:
        st = parse_dict(p, out);
        break;
    default:
        st = unexpected(p, "an expression");
    }
    p->depth--;
    return st;
}

/* ---- what follows a primary ---- */

static tm_status parse_slice_part(parser *p, jj_nodes *parts)
{
    jj_node *part = NULL;
    if (!is(p, JJ_T_COLON) && !is(p, JJ_T_RBRACKET) && !is(p, JJ_T_COMMA))
        TM_TRY(parse_expression(p, &part));
    return add(p, parts, part);
}

static tm_status parse_subscribed(parser *p, jj_node **out)
{
    jj_node *slice;
    int line = p->now.line;
    bool colon;
    TM_TRY(new_node(p, JJ_SLICE, line, &slice));
    if (!is(p, JJ_T_COLON)) {
        TM_TRY(parse_expression(p, out));
        if (!is(p, JJ_T_COLON))
            return TM_OK;
        TM_TRY(add(p, &slice->list, *out));
    } else {
        TM_TRY(add(p, &slice->list, NULL));
    }
    TM_TRY(advance(p));
    TM_TRY(parse_slice_part(p, &slice->list));
    TM_TRY(skip_if(p, JJ_T_COLON, &colon));
    TM_TRY(colon ? parse_slice_part(p, &slice->list) : add(p, &slice->list, NULL));
    *out = slice;
    return TM_OK;
}

static tm_status parse_subscript(parser *p, jj_node *object, jj_node **out)
{
    int line = p->now.line;
    bool dot = is(p, JJ_T_DOT);
    TM_TRY(advance(p));
    if (dot && is(p, JJ_T_NAME)) {
        TM_TRY(new_node(p, JJ_ATTR, line, out));
        (*out)->a = object;
        (*out)->name = p->now.text;
        return advance(p);
    }
    TM_TRY(new_node(p, JJ_INDEX, line, out));
    (*out)->a = object;
    if (dot) {
        if (!is(p, JJ_T_INT))
            return unexpected(p, "a name or a number");
        TM_TRY(constant(p, (jj_value){.kind = JJ_INT, .as.i = p->now.i}, &(*out)->b));
        return advance(p);
    }
    jj_nodes items = {0};
    while (!is(p, JJ_T_RBRACKET)) {
        jj_node *item;
        if (items.count)
            TM_TRY(expect(p, JJ_T_COMMA));
        TM_TRY(parse_subscribed(p, &item));
        TM_TRY(add(p, &items, item));
    }
    TM_TRY(advance(p));
    if (items.count == 1) {
        (*out)->b = items.item[0];
        return TM_OK;
    }
    TM_TRY(new_node(p, JJ_TUPLE_OF, line, &(*out)->b));
    (*out)->b->list = items;
    return TM_OK;
}

/* Arguments in parentheses, into list, more, b and c of call. */
static tm_status parse_arguments(parser *p, jj_node *call)
{
    bool first = true;
    TM_TRY(advance(p));
    for (; !is(p, JJ_T_RPAREN); first = false) {
        bool wrong = false;
        jj_node *value;
        if (!first) {
            TM_TRY(expect(p, JJ_T_COMMA));
            if (is(p, JJ_T_RPAREN))
                break;
        }
        if (is(p, JJ_T_MUL)) {
            wrong = call->b || call->c;
            TM_TRY(advance(p));
            TM_TRY(parse_expression(p, &call->b));
        } else if (is(p, JJ_T_POW)) {
            wrong = call->c;
            TM_TRY(advance(p));
            TM_TRY(parse_expression(p, &call->c));
        } else if (is(p, JJ_T_NAME) && p->next.kind == JJ_T_ASSIGN) {
            jj_node *named;
            wrong = call->c;
            TM_TRY(new_node(p, JJ_SET, p->now.line, &named));
            named->name = p->now.text;
            named->constant = string_value(p->now.text, p->now.size);
            TM_TRY(advance(p));
            TM_TRY(advance(p));
            TM_TRY(parse_expression(p, &named->a));
            TM_TRY(add(p, &call->more, named));
        } else {
            wrong = call->b || call->c || call->more.count;
            TM_TRY(parse_expression(p, &value));
            TM_TRY(add(p, &call->list, value));
        }
        if (wrong)
            return jj_syntax(p->t, p->now.line, p->err, "arguments of a call in a wrong order, expected x, name=x, *x, **x");
    }
    return advance(p);
}

static tm_status parse_call(parser *p, jj_node *callee, jj_node **out)
{
    TM_TRY(new_node(p, JJ_CALL, p->now.line, out));
    (*out)->a = callee;
    return parse_arguments(p, *out);
}

/* A name with dots after | or is, its arguments, as a node that stands on `object`. */
static tm_status parse_applied(parser *p, jj_op op, const jj_function *table, jj_node *object, jj_node **out)
{
    TM_TRY(new_node(p, op, p->now.line, out));
    (*out)->a = object;
    if (!is(p, JJ_T_NAME))
        return unexpected(p, op == JJ_FILTER ? "the name of a filter" : "the name of a test");
    (*out)->name = p->now.text;
    (*out)->row = jj_find_function(table, p->now.text, p->now.size);
    return advance(p);
}

static tm_status parse_filters(parser *p, jj_node *object, bool inside, jj_node **out)
{
    for (*out = object; inside || is(p, JJ_T_PIPE); object = *out, inside = false) {
        if (!inside)
            TM_TRY(advance(p));
        TM_TRY(parse_applied(p, JJ_FILTER, jj_filters, object, out));
        if (is(p, JJ_T_LPAREN))
            TM_TRY(parse_arguments(p, *out));
    }
    return TM_OK;
}

static tm_status parse_postfix(parser *p, jj_node *object, jj_node **out)
{
    *out = object;
    for (;;) {
        if (is(p, JJ_T_DOT) || is(p, JJ_T_LBRACKET))
            TM_TRY(parse_subscript(p, *out, out));
        else if (is(p, JJ_T_LPAREN))
            TM_TRY(parse_call(p, *out, out));
        else
            return TM_OK;
    }
}

static tm_status parse_test(parser *p, jj_node *object, jj_node **out)
{
    bool negated;
    int line = p->now.line;
    TM_TRY(advance(p));
    TM_TRY(skip_name(p, "not", &negated));
    TM_TRY(parse_applied(p, JJ_TEST, jj_tests, object, out));
    bool begins = is(p, JJ_T_NAME) || is(p, JJ_T_STRING) || is(p, JJ_T_INT) || is(p, JJ_T_FLOAT) || is(p, JJ_T_LBRACKET) ||
                  is(p, JJ_T_LBRACE);
    if (is(p, JJ_T_LPAREN)) {
        TM_TRY(parse_arguments(p, *out));
    } else if (begins && !is_name(p, "else") && !is_name(p, "or") && !is_name(p, "and")) {
        jj_node *argument;
        if (is_name(p, "is"))
            return jj_syntax(p->t, p->now.line, p->err, "tests with 'is' cannot follow each other");
        TM_TRY(parse_primary(p, false, &argument));
        TM_TRY(parse_postfix(p, argument, &argument));
        TM_TRY(add(p, &(*out)->list, argument));
    }
    if (negated) {
        jj_node *test = *out;
        TM_TRY(new_node(p, JJ_NOT, line, out));
        (*out)->a = test;
    }
    return TM_OK;
}

/* ---- operators, the loosest last ---- */

static tm_status parse_unary(parser *p, bool filters, jj_node **out)
{
    TM_TRY(deeper(p));
    if (is(p, JJ_T_SUB) || is(p, JJ_T_ADD)) {
        jj_node *sign;
        TM_TRY(new_node(p, is(p, JJ_T_SUB) ? JJ_NEG : JJ_POS, p->now.line, &sign));
        TM_TRY(advance(p));
        TM_TRY(parse_unary(p, false, &sign->a));
        *out = sign;
    } else {
        TM_TRY(parse_primary(p, false, out));
    }
    TM_TRY(parse_postfix(p, *out, out));
    while (filters) {
        if (is(p, JJ_T_PIPE))
            TM_TRY(parse_filters(p, *out, false, out));
        else if (is_name(p, "is"))
            TM_TRY(parse_test(p, *out, out));
        else if (is(p, JJ_T_LPAREN))
            TM_TRY(parse_call(p, *out, out));
        else
            break;
    }
    p->depth--;
    return TM_OK;
}

/* left OP right, from the left on, for the operators of one level. */
typedef struct level {
    tm_status (*operand)(parser *p, jj_node **out);
    struct {
        jj_token_kind token;
        jj_op op;
    } row[5];
} level;

static tm_status parse_level(parser *p, const level *l, jj_node **out)
{
    TM_TRY(l->operand(p, out));
    for (int i = 0; i < 5 && l->row[i].op;) {
        if (!is(p, l->row[i].token)) {
            i++;
            continue;
        }
        jj_node *node;
        TM_TRY(new_node(p, l->row[i].op, p->now.line, &node));
        TM_TRY(advance(p));
        node->a = *out;
        TM_TRY(l->operand(p, &node->b));
        *out = node;
        i = 0;
    }
    return TM_OK;
}

static tm_status parse_operand(parser *p, jj_node **out) { return parse_unary(p, true, out); }

static tm_status parse_pow(parser *p, jj_node **out)
{
    static const level l = {parse_operand, {{JJ_T_POW, JJ_POW}}};
    return parse_level(p, &l, out);
}

static tm_status parse_product(parser *p, jj_node **out)
{
    static const level l = {parse_pow, {{JJ_T_MUL, JJ_MUL}, {JJ_T_DIV, JJ_DIV}, {JJ_T_FLOORDIV, JJ_FLOORDIV}, {JJ_T_MOD, JJ_MOD}}};
    return parse_level(p, &l, out);
}

static tm_status parse_concat(parser *p, jj_node **out)
{
    TM_TRY(parse_product(p, out));
    if (!is(p, JJ_T_TILDE))
        return TM_OK;
    jj_node *node, *part = *out;
    TM_TRY(new_node(p, JJ_CONCAT, p->now.line, &node));
    TM_TRY(add(p, &node->list, part));
    while (is(p, JJ_T_TILDE)) {
        TM_TRY(advance(p));
        TM_TRY(parse_product(p, &part));
        TM_TRY(add(p, &node->list, part));
    }
    *out = node;
    return TM_OK;
}

static tm_status parse_sum(parser *p, jj_node **out)
{
    static const level l = {parse_concat, {{JJ_T_ADD, JJ_ADD}, {JJ_T_SUB, JJ_SUB}}};
    return parse_level(p, &l, out);
}

static tm_status parse_compare(parser *p, jj_node **out)
{
    static const jj_op ops[] = {[JJ_T_EQ] = JJ_EQ, [JJ_T_NE] = JJ_NE, [JJ_T_LT] = JJ_LT,
                                [JJ_T_LE] = JJ_LE, [JJ_T_GT] = JJ_GT, [JJ_T_GE] = JJ_GE};
    jj_node *compare = NULL, *part;
    TM_TRY(parse_sum(p, out));
    for (;;) {
        int line = p->now.line;
        bool not_in = is_name(p, "not") && token_is(&p->next, "in");
        jj_op op;
        if (p->now.kind >= JJ_T_EQ && p->now.kind <= JJ_T_GE)
            op = ops[p->now.kind];
        else if (is_name(p, "in"))
            op = JJ_IN;
        else if (not_in)
            op = JJ_NOT_IN;
        else
            return TM_OK;
        TM_TRY(advance(p));
        if (not_in)
            TM_TRY(advance(p));
        if (!compare) {
            TM_TRY(new_node(p, JJ_COMPARE, line, &compare));
            compare->a = *out;
            *out = compare;
        }
        TM_TRY(new_node(p, op, line, &part));
        TM_TRY(parse_sum(p, &part->a));
        TM_TRY(add(p, &compare->list, part));
    }
}

static tm_status parse_not(parser *p, jj_node **out)
{
    if (!is_name(p, "not"))
        return parse_compare(p, out);
    TM_TRY(deeper(p));
    jj_node *node;
    TM_TRY(new_node(p, JJ_NOT, p->now.line, &node));
    TM_TRY(advance(p));
    TM_TRY(parse_not(p, &node->a));
    *out = node;
    p->depth--;
    return TM_OK;
}

/* Names between operands: "and", "or". */
static tm_status parse_words(parser *p, const char *word, jj_op op, tm_status (*operand)(parser *p, jj_node **out), jj_node **out)
{
    TM_TRY(operand(p, out));
    while (is_name(p, word)) {
        jj_node *node;
        TM_TRY(new_node(p, op, p->now.line, &node));
        TM_TRY(advance(p));
        node->a = *out;
        TM_TRY(operand(p, &node->b));
        *out = node;
    }
    return TM_OK;
}

static tm_status parse_and(parser *p, jj_node **out) { return parse_words(p, "and", JJ_AND, parse_not, out); }
static tm_status parse_or(parser *p, jj_node **out) { return parse_words(p, "or", JJ_OR, parse_and, out); }

static tm_status parse_expression(parser *p, jj_node **out)
{
    TM_TRY(deeper(p));
    TM_TRY(parse_or(p, out));
    while (is_name(p, "if")) {
        jj_node *node;
        bool has_else;
        TM_TRY(new_node(p, JJ_IF_ELSE, p->now.line, &node));
        TM_TRY(advance(p));
        node->b = *out;
        TM_TRY(parse_or(p, &node->a));
        TM_TRY(skip_name(p, "else", &has_else));
        if (has_else)
            TM_TRY(parse_expression(p, &node->c));
        *out = node;
    }
    p->depth--;
    return TM_OK;
}

/* ---- statements ---- */

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
    TM_TRY(parse_tuple(p, SIMPLE | (namespaces ? TARGET : 0), stop, out));
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
    TM_TRY(skip_name(p, "in", &was));
    if (!was)
        return unexpected(p, "'in'");
    TM_TRY(parse_tuple(p, NO_IF, "recursive", &node->b));
    TM_TRY(skip_name(p, "if", &was));
    if (was)
        TM_TRY(parse_expression(p, &node->c));
    TM_TRY(skip_name(p, "recursive", &node->flag));
    TM_TRY(parse_body(p, ends, &node->list, &end));
    return strcmp(end, "else") == 0 ? parse_closed(p, "endfor", &node->more) : TM_OK;
}

static tm_status parse_if(parser *p, jj_node *node)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    const char *end;
    for (;;) {
        node->op = JJ_IF;
        TM_TRY(parse_tuple(p, NO_IF, NULL, &node->a));
        TM_TRY(parse_body(p, ends, &node->list, &end));
        if (strcmp(end, "elif") != 0)
            break;
        jj_node *inner;
        TM_TRY(new_node(p, JJ_IF, p->now.line, &inner));
        TM_TRY(add(p, &node->more, inner));
        node = inner;
    }
    return strcmp(end, "else") == 0 ? parse_closed(p, "endif", &node->more) : TM_OK;
}

static tm_status body_filters(parser *p, bool inside, jj_node **out)
{
    jj_node *body;
    TM_TRY(new_node(p, JJ_NAME, p->now.line, &body));
    body->name = jj_intern(p->t, BODY, sizeof BODY - 1);
    if (!body->name)
        return no_memory(p);
    return parse_filters(p, body, inside, out);
}

static tm_status parse_set(parser *p, jj_node *node)
{
    bool assign;
    node->op = JJ_SET;
    TM_TRY(parse_target(p, NULL, true, &node->a));
    TM_TRY(skip_if(p, JJ_T_ASSIGN, &assign));
    if (assign)
        return parse_tuple(p, PLAIN, NULL, &node->b);
    node->op = JJ_SET_BLOCK;
    TM_TRY(body_filters(p, false, &node->b));
    return parse_closed(p, "endset", &node->list);
}

static tm_status parse_parameters(parser *p, jj_nodes *parameters)
{
    bool defaults = false;
    TM_TRY(expect(p, JJ_T_LPAREN));
    while (!is(p, JJ_T_RPAREN)) {
        jj_node *parameter;
        bool assign;
        if (parameters->count)
            TM_TRY(expect(p, JJ_T_COMMA));
        if (!is(p, JJ_T_NAME))
            return unexpected(p, "the name of a parameter");
        TM_TRY(new_node(p, JJ_NAME, p->now.line, &parameter));
        parameter->name = p->now.text;
        TM_TRY(advance(p));
        TM_TRY(skip_if(p, JJ_T_ASSIGN, &assign));
        if (assign)
            TM_TRY(parse_expression(p, &parameter->a));
        else if (defaults)
            return jj_syntax(p->t, parameter->line, p->err, "parameter '%s' without a default behind one with", parameter->name);
        defaults |= assign;
        TM_TRY(add(p, parameters, parameter));
    }
    return advance(p);
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
    if (!is(p, JJ_T_NAME))
        return unexpected(p, "the name of the macro");
    node->name = p->now.text;
    TM_TRY(advance(p));
    TM_TRY(parse_parameters(p, &node->more));
    return parse_macro_body(p, "endmacro", node);
}

static tm_status parse_call_block(parser *p, jj_node *node)
{
    node->op = JJ_CALL_BLOCK;
    if (is(p, JJ_T_LPAREN))
        TM_TRY(parse_parameters(p, &node->more));
    TM_TRY(parse_expression(p, &node->a));
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
    while (!is(p, JJ_T_BLOCK_END)) {
        jj_node *set;
        if (node->more.count)
            TM_TRY(expect(p, JJ_T_COMMA));
        TM_TRY(new_node(p, JJ_SET, p->now.line, &set));
        TM_TRY(parse_target(p, NULL, false, &set->a));
        TM_TRY(expect(p, JJ_T_ASSIGN));
        TM_TRY(parse_expression(p, &set->b));
        TM_TRY(add(p, &node->more, set));
    }
    return parse_closed(p, "endwith", &node->list);
}

static tm_status parse_print(parser *p, jj_node *node)
{
    node->op = JJ_PRINT;
    while (!is(p, JJ_T_BLOCK_END)) {
        jj_node *item;
        if (node->list.count)
            TM_TRY(expect(p, JJ_T_COMMA));
        TM_TRY(parse_expression(p, &item));
        TM_TRY(add(p, &node->list, item));
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
    if (!is(p, JJ_T_NAME))
        return unexpected(p, "the name of the block");
    const char *name = p->now.text;
    TM_TRY(advance(p));
    TM_TRY(skip_name(p, "scoped", &was));
    TM_TRY(parse_closed(p, "endblock", &node->list));
    return skip_name(p, name, &was);
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
    if (!is(p, JJ_T_NAME))
        return unexpected(p, "the name of a block");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (!is_name(p, rows[i].name))
            continue;
        jj_node *node;
        TM_TRY(new_node(p, JJ_TEXT, p->now.line, &node));
        TM_TRY(deeper(p));
        TM_TRY(advance(p));
        TM_TRY(rows[i].parse(p, node));
        TM_TRY(expect(p, JJ_T_BLOCK_END));
        p->depth--;
        return add(p, body, node);
    }
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (is_name(p, refused[i]))
            return jj_syntax(p->t, p->now.line, p->err, "{%% %s %%} is not for chat templates", refused[i]);
    return jj_syntax(p->t, p->now.line, p->err, "unknown block {%% %.60s %%}", p->now.text);
}

/* Statements up to one of the ends (NULL: the end of the template), which is skipped and given back; what
 * stands behind it in its tag is the caller's. */
static tm_status parse_body(parser *p, const char *const *ends, jj_nodes *body, const char **end)
{
    if (ends) {
        bool colon;
        TM_TRY(skip_if(p, JJ_T_COLON, &colon));
        TM_TRY(expect(p, JJ_T_BLOCK_END));
    }
    for (;;) {
        jj_node *node;
        if (is(p, JJ_T_EOF)) {
            if (!ends)
                return TM_OK;
            return jj_syntax(p->t, p->now.line, p->err, "the template ends inside a block, expected {%% %s %%}", ends[0]);
        }
        if (is(p, JJ_T_DATA)) {
            TM_TRY(constant(p, string_value(p->now.text, p->now.size), &node));
            node->op = JJ_TEXT;
            TM_TRY(add(p, body, node));
            TM_TRY(advance(p));
        } else if (is(p, JJ_T_VARIABLE_BEGIN)) {
            jj_node *value;
            TM_TRY(new_node(p, JJ_PRINT, p->now.line, &node));
            TM_TRY(advance(p));
            TM_TRY(parse_tuple(p, PLAIN, NULL, &value));
            TM_TRY(add(p, &node->list, value));
            TM_TRY(add(p, body, node));
            TM_TRY(expect(p, JJ_T_VARIABLE_END));
        } else {
            TM_TRY(expect(p, JJ_T_BLOCK_BEGIN));
            for (int i = 0; ends && ends[i]; i++)
                if (is_name(p, ends[i])) {
                    *end = ends[i];
                    return advance(p);
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
    TM_TRY(advance(&p));
    return parse_body(&p, NULL, &t->body, NULL);
}
