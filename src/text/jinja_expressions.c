/* Tokens to the tree of an expression. The grammar is jinja2's: operators bind as in Python, filters and
 * tests bind tighter than any of them. */
#include "text/jinja_parser.h"

static tm_status parse_unary(parser *p, bool filters, jj_node **out);

tm_status jj_parser_memory(parser *p) { return tm_fail(p->err, TM_NO_MEMORY, "%s: out of memory", p->t->name); }

tm_status jj_new_node(parser *p, jj_op op, int line, jj_node **out)
{
    *out = jj_pool_take(&p->t->pool, sizeof **out);
    if (!*out)
        return jj_parser_memory(p);
    (*out)->op = (uint8_t)op;
    (*out)->line = line;
    return TM_OK;
}

tm_status jj_add(parser *p, jj_nodes *nodes, jj_node *node)
{
    if (nodes->count == nodes->capacity) {
        size_t capacity = nodes->capacity ? 2 * nodes->capacity : 4;
        jj_node **grown = jj_pool_take(&p->t->pool, capacity * sizeof *grown);
        if (!grown)
            return jj_parser_memory(p);
        if (nodes->count)
            memcpy(grown, nodes->item, nodes->count * sizeof *grown);
        nodes->item = grown;
        nodes->capacity = capacity;
    }
    nodes->item[nodes->count++] = node;
    return TM_OK;
}

/* ---- tokens ---- */

tm_status jj_advance(parser *p)
{
    p->now = p->next;
    if (p->next.kind != JJ_T_EOF)
        TM_TRY(jj_lexer_next(&p->lexer, &p->next));
    return TM_OK;
}

bool jj_is(const parser *p, jj_token_kind kind) { return p->now.kind == kind; }
static bool token_is(const jj_token *token, const char *name)
{
    return token->kind == JJ_T_NAME && token->size == strlen(name) && memcmp(token->text, name, token->size) == 0;
}
bool jj_is_name(const parser *p, const char *name) { return token_is(&p->now, name); }

static const char *const kind_names[] = {
    "the end of the template", "text", "a block", "the end of the block", "an expression block", "the end of the expression",
    "a name", "a string", "a number", "a number", "'+'", "'-'", "'*'", "'/'", "'//'", "'%'", "'**'", "'~'", "'=='", "'!='",
    "'<'", "'<='", "'>'", "'>='", "'='", "'.'", "':'", "'|'", "','", "';'", "'('", "')'", "'['", "']'", "'{'", "'}'"};

tm_status jj_unexpected(parser *p, const char *expected)
{
    if (jj_is(p, JJ_T_NAME))
        return jj_syntax(p->t, p->now.line, p->err, "found '%.60s', expected %s", p->now.text, expected);
    return jj_syntax(p->t, p->now.line, p->err, "found %s, expected %s", kind_names[p->now.kind], expected);
}

tm_status jj_expect(parser *p, jj_token_kind kind)
{
    return jj_is(p, kind) ? jj_advance(p) : jj_unexpected(p, kind_names[kind]);
}

/* Skips a token if it is there. */
tm_status jj_skip_if(parser *p, jj_token_kind kind, bool *was)
{
    *was = jj_is(p, kind);
    return *was ? jj_advance(p) : TM_OK;
}

tm_status jj_skip_name(parser *p, const char *name, bool *was)
{
    *was = jj_is_name(p, name);
    return *was ? jj_advance(p) : TM_OK;
}

tm_status jj_deeper(parser *p)
{
    if (++p->depth > TM_JINJA_MAX_NESTING)
        return jj_syntax(p->t, p->now.line, p->err, "nested more than %d deep", TM_JINJA_MAX_NESTING);
    return TM_OK;
}

/* ---- primaries ---- */

tm_status jj_constant(parser *p, jj_value value, jj_node **out)
{
    TM_TRY(jj_new_node(p, JJ_CONST, p->now.line, out));
    (*out)->constant = value;
    return TM_OK;
}

jj_value jj_string_value(const char *text, size_t size)
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
    TM_TRY(jj_advance(p));
    while (jj_is(p, JJ_T_STRING)) { /* strings side by side are one */
        char *joined = jj_pool_take(&p->t->pool, size + p->now.size + 1);
        if (!joined)
            return jj_parser_memory(p);
        memcpy(joined, text, size);
        memcpy(joined + size, p->now.text, p->now.size);
        size += p->now.size;
        text = joined;
        TM_TRY(jj_advance(p));
    }
    TM_TRY(jj_constant(p, jj_string_value(text, size), out));
    (*out)->line = line;
    return TM_OK;
}

/* Expressions with commas between them up to close; a comma may stand last. */
static tm_status parse_list_items(parser *p, jj_token_kind close, jj_nodes *items)
{
    while (!jj_is(p, close)) {
        jj_node *item;
        if (items->count) {
            TM_TRY(jj_expect(p, JJ_T_COMMA));
            if (jj_is(p, close))
                break;
        }
        TM_TRY(jj_parse_expression(p, &item));
        TM_TRY(jj_add(p, items, item));
    }
    return jj_advance(p);
}

static tm_status parse_dict(parser *p, jj_node **out)
{
    TM_TRY(jj_new_node(p, JJ_DICT_OF, p->now.line, out));
    TM_TRY(jj_advance(p));
    while (!jj_is(p, JJ_T_RBRACE)) {
        jj_node *item;
        if ((*out)->list.count) {
            TM_TRY(jj_expect(p, JJ_T_COMMA));
            if (jj_is(p, JJ_T_RBRACE))
                break;
        }
        TM_TRY(jj_parse_expression(p, &item));
        TM_TRY(jj_add(p, &(*out)->list, item));
        TM_TRY(jj_expect(p, JJ_T_COLON));
        TM_TRY(jj_parse_expression(p, &item));
        TM_TRY(jj_add(p, &(*out)->more, item));
    }
    return jj_advance(p);
}

static tm_status parse_primary(parser *p, bool target, jj_node **out);
static tm_status parse_or(parser *p, jj_node **out);

/* One expression, or several with commas: a tuple. stop: a name that ends it (NULL: none). */
tm_status jj_parse_tuple(parser *p, int how, const char *stop, jj_node **out)
{
    jj_nodes items = {0};
    bool comma = false;
    int line = p->now.line;
    for (;;) {
        jj_node *item;
        if (items.count)
            TM_TRY(jj_expect(p, JJ_T_COMMA));
        if (jj_is(p, JJ_T_VARIABLE_END) || jj_is(p, JJ_T_BLOCK_END) || jj_is(p, JJ_T_RPAREN) || (stop && jj_is_name(p, stop)))
            break;
        TM_TRY(how & SIMPLE ? parse_primary(p, how & TARGET, &item) : how & NO_IF ? parse_or(p, &item) : jj_parse_expression(p, &item));
        TM_TRY(jj_add(p, &items, item));
        if (!jj_is(p, JJ_T_COMMA))
            break;
        comma = true;
    }
    if (!comma && items.count) {
        *out = items.item[0];
        return TM_OK;
    }
    if (!comma && !(how & PARENTHESES))
        return jj_unexpected(p, "an expression");
    TM_TRY(jj_new_node(p, JJ_TUPLE_OF, line, out));
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
        if (jj_is_name(p, words[i].name)) {
            TM_TRY(jj_constant(p, words[i].value, out));
            return jj_advance(p);
        }
    for (int i = 0; i < 3; i++)
        if (jj_is_name(p, special[i]))
            p->mentions |= 1 << i;
    TM_TRY(jj_advance(p));
    if (!target || !jj_is(p, JJ_T_DOT)) {
        TM_TRY(jj_new_node(p, JJ_NAME, line, out));
        (*out)->name = name;
        return TM_OK;
    }
    TM_TRY(jj_advance(p)); /* namespace.attribute as a target: a: the namespace */
    if (!jj_is(p, JJ_T_NAME))
        return jj_unexpected(p, "a name");
    jj_node *space;
    TM_TRY(jj_new_node(p, JJ_NAME, line, &space));
    space->name = name;
    TM_TRY(jj_new_node(p, JJ_NSREF, line, out));
    (*out)->a = space;
    (*out)->name = p->now.text;
    return jj_advance(p);
}

static tm_status parse_primary(parser *p, bool target, jj_node **out)
{
    tm_status st = TM_OK;
    TM_TRY(jj_deeper(p));
    switch (p->now.kind) {
    case JJ_T_NAME:
        st = parse_name(p, target, out);
        break;
    case JJ_T_STRING:
        st = parse_strings(p, out);
        break;
    case JJ_T_INT:
        TM_TRY(jj_constant(p, (jj_value){.kind = JJ_INT, .as.i = p->now.i}, out));
        st = jj_advance(p);
        break;
    case JJ_T_FLOAT:
        TM_TRY(jj_constant(p, (jj_value){.kind = JJ_FLOAT, .as.f = p->now.f}, out));
        st = jj_advance(p);
        break;
    case JJ_T_LPAREN:
        TM_TRY(jj_advance(p));
        TM_TRY(jj_parse_tuple(p, PARENTHESES, NULL, out));
        st = jj_expect(p, JJ_T_RPAREN);
        break;
    case JJ_T_LBRACKET:
        TM_TRY(jj_new_node(p, JJ_LIST_OF, p->now.line, out));
        TM_TRY(jj_advance(p));
        st = parse_list_items(p, JJ_T_RBRACKET, &(*out)->list);
        break;
    case JJ_T_LBRACE:
        st = parse_dict(p, out);
        break;
    default:
        st = jj_unexpected(p, "an expression");
    }
    p->depth--;
    return st;
}

/* ---- what follows a primary ---- */

static tm_status parse_slice_part(parser *p, jj_nodes *parts)
{
    jj_node *part = NULL;
    if (!jj_is(p, JJ_T_COLON) && !jj_is(p, JJ_T_RBRACKET) && !jj_is(p, JJ_T_COMMA))
        TM_TRY(jj_parse_expression(p, &part));
    return jj_add(p, parts, part);
}

static tm_status parse_subscribed(parser *p, jj_node **out)
{
    jj_node *slice;
    int line = p->now.line;
    bool colon;
    TM_TRY(jj_new_node(p, JJ_SLICE, line, &slice));
    if (!jj_is(p, JJ_T_COLON)) {
        TM_TRY(jj_parse_expression(p, out));
        if (!jj_is(p, JJ_T_COLON))
            return TM_OK;
        TM_TRY(jj_add(p, &slice->list, *out));
    } else {
        TM_TRY(jj_add(p, &slice->list, NULL));
    }
    TM_TRY(jj_advance(p));
    TM_TRY(parse_slice_part(p, &slice->list));
    TM_TRY(jj_skip_if(p, JJ_T_COLON, &colon));
    TM_TRY(colon ? parse_slice_part(p, &slice->list) : jj_add(p, &slice->list, NULL));
    *out = slice;
    return TM_OK;
}

static tm_status parse_subscript(parser *p, jj_node *object, jj_node **out)
{
    int line = p->now.line;
    bool dot = jj_is(p, JJ_T_DOT);
    TM_TRY(jj_advance(p));
    if (dot && jj_is(p, JJ_T_NAME)) {
        TM_TRY(jj_new_node(p, JJ_ATTR, line, out));
        (*out)->a = object;
        (*out)->name = p->now.text;
        return jj_advance(p);
    }
    TM_TRY(jj_new_node(p, JJ_INDEX, line, out));
    (*out)->a = object;
    if (dot) {
        if (!jj_is(p, JJ_T_INT))
            return jj_unexpected(p, "a name or a number");
        TM_TRY(jj_constant(p, (jj_value){.kind = JJ_INT, .as.i = p->now.i}, &(*out)->b));
        return jj_advance(p);
    }
    jj_nodes items = {0};
    while (!jj_is(p, JJ_T_RBRACKET)) {
        jj_node *item;
        if (items.count)
            TM_TRY(jj_expect(p, JJ_T_COMMA));
        TM_TRY(parse_subscribed(p, &item));
        TM_TRY(jj_add(p, &items, item));
    }
    TM_TRY(jj_advance(p));
    if (items.count == 1) {
        (*out)->b = items.item[0];
        return TM_OK;
    }
    TM_TRY(jj_new_node(p, JJ_TUPLE_OF, line, &(*out)->b));
    (*out)->b->list = items;
    return TM_OK;
}

/* Arguments in parentheses, into list, more, b and c of call. */
static tm_status parse_arguments(parser *p, jj_node *call)
{
    bool first = true;
    TM_TRY(jj_advance(p));
    for (; !jj_is(p, JJ_T_RPAREN); first = false) {
        bool wrong = false;
        jj_node *value;
        if (!first) {
            TM_TRY(jj_expect(p, JJ_T_COMMA));
            if (jj_is(p, JJ_T_RPAREN))
                break;
        }
        if (jj_is(p, JJ_T_MUL)) {
            wrong = call->b || call->c;
            TM_TRY(jj_advance(p));
            TM_TRY(jj_parse_expression(p, &call->b));
        } else if (jj_is(p, JJ_T_POW)) {
            wrong = call->c;
            TM_TRY(jj_advance(p));
            TM_TRY(jj_parse_expression(p, &call->c));
        } else if (jj_is(p, JJ_T_NAME) && p->next.kind == JJ_T_ASSIGN) {
            jj_node *named;
            wrong = call->c;
            TM_TRY(jj_new_node(p, JJ_SET, p->now.line, &named));
            named->name = p->now.text;
            named->constant = jj_string_value(p->now.text, p->now.size);
            TM_TRY(jj_advance(p));
            TM_TRY(jj_advance(p));
            TM_TRY(jj_parse_expression(p, &named->a));
            TM_TRY(jj_add(p, &call->more, named));
        } else {
            wrong = call->b || call->c || call->more.count;
            TM_TRY(jj_parse_expression(p, &value));
            TM_TRY(jj_add(p, &call->list, value));
        }
        if (wrong)
            return jj_syntax(p->t, p->now.line, p->err, "arguments of a call in a wrong order, expected x, name=x, *x, **x");
    }
    return jj_advance(p);
}

static tm_status parse_call(parser *p, jj_node *callee, jj_node **out)
{
    TM_TRY(jj_new_node(p, JJ_CALL, p->now.line, out));
    (*out)->a = callee;
    return parse_arguments(p, *out);
}

/* A name with dots after | or is, its arguments, as a node that stands on `object`. */
static tm_status parse_applied(parser *p, jj_op op, const jj_function *table, jj_node *object, jj_node **out)
{
    TM_TRY(jj_new_node(p, op, p->now.line, out));
    (*out)->a = object;
    if (!jj_is(p, JJ_T_NAME))
        return jj_unexpected(p, op == JJ_FILTER ? "the name of a filter" : "the name of a test");
    (*out)->name = p->now.text;
    (*out)->row = jj_find_function(table, p->now.text, p->now.size);
    return jj_advance(p);
}

tm_status jj_parse_filters(parser *p, jj_node *object, bool inside, jj_node **out)
{
    for (*out = object; inside || jj_is(p, JJ_T_PIPE); object = *out, inside = false) {
        if (!inside)
            TM_TRY(jj_advance(p));
        TM_TRY(parse_applied(p, JJ_FILTER, jj_filters, object, out));
        if (jj_is(p, JJ_T_LPAREN))
            TM_TRY(parse_arguments(p, *out));
    }
    return TM_OK;
}

static tm_status parse_postfix(parser *p, jj_node *object, jj_node **out)
{
    *out = object;
    for (;;) {
        if (jj_is(p, JJ_T_DOT) || jj_is(p, JJ_T_LBRACKET))
            TM_TRY(parse_subscript(p, *out, out));
        else if (jj_is(p, JJ_T_LPAREN))
            TM_TRY(parse_call(p, *out, out));
        else
            return TM_OK;
    }
}

static tm_status parse_test(parser *p, jj_node *object, jj_node **out)
{
    bool negated;
    int line = p->now.line;
    TM_TRY(jj_advance(p));
    TM_TRY(jj_skip_name(p, "not", &negated));
    TM_TRY(parse_applied(p, JJ_TEST, jj_tests, object, out));
    bool begins = jj_is(p, JJ_T_NAME) || jj_is(p, JJ_T_STRING) || jj_is(p, JJ_T_INT) || jj_is(p, JJ_T_FLOAT) || jj_is(p, JJ_T_LBRACKET) ||
                  jj_is(p, JJ_T_LBRACE);
    if (jj_is(p, JJ_T_LPAREN)) {
        TM_TRY(parse_arguments(p, *out));
    } else if (begins && !jj_is_name(p, "else") && !jj_is_name(p, "or") && !jj_is_name(p, "and")) {
        jj_node *argument;
        if (jj_is_name(p, "is"))
            return jj_syntax(p->t, p->now.line, p->err, "tests with 'is' cannot follow each other");
        TM_TRY(parse_primary(p, false, &argument));
        TM_TRY(parse_postfix(p, argument, &argument));
        TM_TRY(jj_add(p, &(*out)->list, argument));
    }
    if (negated) {
        jj_node *test = *out;
        TM_TRY(jj_new_node(p, JJ_NOT, line, out));
        (*out)->a = test;
    }
    return TM_OK;
}

/* ---- operators, the loosest last ---- */

static tm_status parse_unary(parser *p, bool filters, jj_node **out)
{
    TM_TRY(jj_deeper(p));
    if (jj_is(p, JJ_T_SUB) || jj_is(p, JJ_T_ADD)) {
        jj_node *sign;
        TM_TRY(jj_new_node(p, jj_is(p, JJ_T_SUB) ? JJ_NEG : JJ_POS, p->now.line, &sign));
        TM_TRY(jj_advance(p));
        TM_TRY(parse_unary(p, false, &sign->a));
        *out = sign;
    } else {
        TM_TRY(parse_primary(p, false, out));
    }
    TM_TRY(parse_postfix(p, *out, out));
    while (filters) {
        if (jj_is(p, JJ_T_PIPE))
            TM_TRY(jj_parse_filters(p, *out, false, out));
        else if (jj_is_name(p, "is"))
            TM_TRY(parse_test(p, *out, out));
        else if (jj_is(p, JJ_T_LPAREN))
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
        if (!jj_is(p, l->row[i].token)) {
            i++;
            continue;
        }
        jj_node *node;
        TM_TRY(jj_new_node(p, l->row[i].op, p->now.line, &node));
        TM_TRY(jj_advance(p));
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
    if (!jj_is(p, JJ_T_TILDE))
        return TM_OK;
    jj_node *node, *part = *out;
    TM_TRY(jj_new_node(p, JJ_CONCAT, p->now.line, &node));
    TM_TRY(jj_add(p, &node->list, part));
    while (jj_is(p, JJ_T_TILDE)) {
        TM_TRY(jj_advance(p));
        TM_TRY(parse_product(p, &part));
        TM_TRY(jj_add(p, &node->list, part));
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
        bool not_in = jj_is_name(p, "not") && token_is(&p->next, "in");
        jj_op op;
        if (p->now.kind >= JJ_T_EQ && p->now.kind <= JJ_T_GE)
            op = ops[p->now.kind];
        else if (jj_is_name(p, "in"))
            op = JJ_IN;
        else if (not_in)
            op = JJ_NOT_IN;
        else
            return TM_OK;
        TM_TRY(jj_advance(p));
        if (not_in)
            TM_TRY(jj_advance(p));
        if (!compare) {
            TM_TRY(jj_new_node(p, JJ_COMPARE, line, &compare));
            compare->a = *out;
            *out = compare;
        }
        TM_TRY(jj_new_node(p, op, line, &part));
        TM_TRY(parse_sum(p, &part->a));
        TM_TRY(jj_add(p, &compare->list, part));
    }
}

static tm_status parse_not(parser *p, jj_node **out)
{
    if (!jj_is_name(p, "not"))
        return parse_compare(p, out);
    TM_TRY(jj_deeper(p));
    jj_node *node;
    TM_TRY(jj_new_node(p, JJ_NOT, p->now.line, &node));
    TM_TRY(jj_advance(p));
    TM_TRY(parse_not(p, &node->a));
    *out = node;
    p->depth--;
    return TM_OK;
}

/* Names between operands: "and", "or". */
static tm_status parse_words(parser *p, const char *word, jj_op op, tm_status (*operand)(parser *p, jj_node **out), jj_node **out)
{
    TM_TRY(operand(p, out));
    while (jj_is_name(p, word)) {
        jj_node *node;
        TM_TRY(jj_new_node(p, op, p->now.line, &node));
        TM_TRY(jj_advance(p));
        node->a = *out;
        TM_TRY(operand(p, &node->b));
        *out = node;
    }
    return TM_OK;
}

static tm_status parse_and(parser *p, jj_node **out) { return parse_words(p, "and", JJ_AND, parse_not, out); }
static tm_status parse_or(parser *p, jj_node **out) { return parse_words(p, "or", JJ_OR, parse_and, out); }

tm_status jj_parse_expression(parser *p, jj_node **out)
{
    TM_TRY(jj_deeper(p));
    TM_TRY(parse_or(p, out));
    while (jj_is_name(p, "if")) {
        jj_node *node;
        bool has_else;
        TM_TRY(jj_new_node(p, JJ_IF_ELSE, p->now.line, &node));
        TM_TRY(jj_advance(p));
        node->b = *out;
        TM_TRY(parse_or(p, &node->a));
        TM_TRY(jj_skip_name(p, "else", &has_else));
        if (has_else)
            TM_TRY(jj_parse_expression(p, &node->c));
        *out = node;
    }
    p->depth--;
    return TM_OK;
}
