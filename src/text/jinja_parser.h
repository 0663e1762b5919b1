/* Between the two halves of the Jinja parser: expressions (jinja_expressions.c) and statements
 * (jinja_parser.c). What each node of the tree holds:
 *   LIST_OF, TUPLE_OF, CONCAT  list: the parts        DICT_OF  list: keys, more: values
 *   ATTR  a, name              INDEX  a, b            SLICE    list: from, to, step (NULL: absent)
 *   CALL, FILTER, TEST         a: what it is applied to, list: arguments, more: named ones (SET: name, a),
 *                              b: after *, c: after **
 *   IF_ELSE  a: condition, b, c (NULL: undefined)     COMPARE  a, list: EQ ... NOT_IN (a: the right side)
 *   FOR  a: target, b: items, c: condition, list: body, more: else, flag: recursive
 *   IF   a, list, more         SET  a: target, b      SET_BLOCK, FILTER_BLOCK  a: target, b: filters of BODY, list
 *   DEFINE, CALL_BLOCK  name, a: the call, more: parameters (NAME, a: default), list: body,
 *                              constant.as.i: which of caller, varargs, kwargs the body names */
#ifndef TM_TEXT_JINJA_PARSER_H
#define TM_TEXT_JINJA_PARSER_H

#include "text/jinja_parts.h"

typedef struct parser {
    tm_jinja *t;
    jj_lexer lexer;
    jj_token now, next;
    int depth, mentions;
    tm_error *err;
} parser;

/* How a tuple is parsed. */
enum { PLAIN = 0, NO_IF = 1, SIMPLE = 2, PARENTHESES = 4, TARGET = 8 };

bool jj_is(const parser *p, jj_token_kind kind);
bool jj_is_name(const parser *p, const char *name);
jj_value jj_string_value(const char *text, size_t size);
tm_status jj_add(parser *p, jj_nodes *nodes, jj_node *node);
tm_status jj_advance(parser *p);
tm_status jj_constant(parser *p, jj_value value, jj_node **out);
tm_status jj_deeper(parser *p);
tm_status jj_expect(parser *p, jj_token_kind kind);
tm_status jj_new_node(parser *p, jj_op op, int line, jj_node **out);
tm_status jj_parse_expression(parser *p, jj_node **out);
tm_status jj_parse_filters(parser *p, jj_node *object, bool inside, jj_node **out);
tm_status jj_parse_tuple(parser *p, int how, const char *stop, jj_node **out);
tm_status jj_parser_memory(parser *p);
tm_status jj_skip_if(parser *p, jj_token_kind kind, bool *was);
tm_status jj_skip_name(parser *p, const char *name, bool *was);
tm_status jj_unexpected(parser *p, const char *expected);

#endif
