/* Inside the Jinja engine: tokens, the tree, values and the state of a rendering. Names begin with jj_.
 *
 * Invariants: all memory of a tree comes from the template's pool, all memory of a rendering from the
 * rendering's, and is freed with it, so values carry no owner. A function that makes a value gives NULL on
 * failure, after jj_fail has written the message. Values of constants belong to the tree and are never
 * written to: threads share them. */
#ifndef TM_TEXT_JINJA_PARTS_H
#define TM_TEXT_JINJA_PARTS_H

#include "text/jinja.h"
#include "text/unicode.h"

#include <string.h>

/* --- Memory --- */

typedef struct jj_block jj_block;

typedef struct jj_pool {
    jj_block *blocks;
    char *at;
    size_t left, total, limit; /* total: bytes asked of the system */
} jj_pool;

void *jj_pool_take(jj_pool *pool, size_t size); /* zeroed, aligned; NULL: the limit, or no memory */
void jj_pool_deinit(jj_pool *pool);

/* --- Values --- */

typedef enum jj_kind {
    JJ_UNDEFINED, JJ_NONE, JJ_BOOL, JJ_INT, JJ_FLOAT, JJ_STRING,
    JJ_LIST, JJ_TUPLE, JJ_RANGE, /* items */
    JJ_VIEW,                     /* items: dict.keys(), values(), items() */
    JJ_ITER,                     /* items that can be gone through once, from `at` on */
    JJ_DICT, JJ_NAMESPACE, JJ_FUNCTION, JJ_MACRO, JJ_LOOP, JJ_CYCLER, JJ_JOINER
} jj_kind;

typedef struct jj_value jj_value;
typedef struct jj_node jj_node;
typedef struct jj_run jj_run;
typedef struct jj_scope jj_scope;
typedef struct jj_loop jj_loop;
typedef struct jj_function jj_function;

typedef struct jj_pair {
    jj_value *key, *value;
    uint64_t hash;
} jj_pair;

enum { JJ_UNKNOWN = -1 };

struct jj_value {
    uint8_t kind;
    bool markup;  /* string: markupsafe's, which escapes what it is joined with */
    uint8_t view; /* of VIEW: 'k', 'v' or 'i'; of TUPLE: 'g' for a group of groupby */
    union {
        int64_t i; /* bool too */
        double f;
        struct {
            const char *text; /* UTF-8, not terminated */
            size_t size;
            int64_t chars; /* code points; JJ_UNKNOWN: not counted yet (never in a constant) */
        } s;
        struct {
            jj_value **item;
            size_t count, capacity, at;
            const int64_t *range; /* of RANGE: start, stop, step */
        } l;
        struct {
            jj_pair *pair;
            size_t count, capacity;
        } d;
        struct { /* undefined */
            const char *name; /* NULL with object NULL: of nothing */
            size_t size;
            const jj_value *object; /* whose attribute or element is missing; NULL: a variable, or a hint */
            const jj_value *element; /* not a name: the index that is missing */
            const char *hint;       /* in place of all the above */
        } u;
        struct {
            const jj_function *row;
            jj_value *self;
        } c;
        struct {
            const jj_node *node;
            jj_scope *scope;
            const char *name;
        } m;
        jj_loop *loop;
    } as;
};

/* Positional and named arguments of a call. */
typedef struct jj_args {
    jj_value **item;
    size_t count;
    jj_value **key, **value; /* key: strings */
    size_t named;
} jj_args;

/* A filter, test, method or global. params: names in order, those from the first with '?' on optional;
 * fn then gets args->item[k] for each, NULL where absent. params NULL: fn gets the arguments as written. */
typedef jj_value *(*jj_fn)(jj_run *r, jj_value *self, const jj_args *args);
struct jj_function {
    const char *name, *params;
    jj_fn fn;
};

extern const jj_function jj_filters[], jj_tests[], jj_globals[];
const jj_function *jj_find_function(const jj_function *table, const char *name, size_t size);
/* Rows of str, dict, list, ... by name; NULL: no such attribute. *forbidden: it exists, the sandbox denies it. */
const jj_function *jj_text_method(const char *name, size_t size);
const jj_function *jj_find_method(const jj_value *self, const char *name, size_t size, bool *forbidden);

/* --- The tree --- */

typedef enum jj_op {
    /* expressions */
    JJ_CONST, JJ_NAME, JJ_LIST_OF, JJ_TUPLE_OF, JJ_DICT_OF, JJ_ATTR, JJ_INDEX, JJ_SLICE, JJ_CALL, JJ_FILTER, JJ_TEST,
    JJ_NOT, JJ_AND, JJ_OR, JJ_IF_ELSE, JJ_NEG, JJ_POS, JJ_CONCAT,
    JJ_ADD, JJ_SUB, JJ_MUL, JJ_DIV, JJ_FLOORDIV, JJ_MOD, JJ_POW,
    JJ_COMPARE, JJ_EQ, JJ_NE, JJ_LT, JJ_LE, JJ_GT, JJ_GE, JJ_IN, JJ_NOT_IN,
    JJ_NSREF,
    /* statements */
    JJ_TEXT, JJ_PRINT, JJ_FOR, JJ_IF, JJ_SET, JJ_SET_BLOCK, JJ_DEFINE, JJ_CALL_BLOCK, JJ_FILTER_BLOCK, JJ_WITH,
    JJ_SCOPE, JJ_GENERATION, JJ_BREAK, JJ_CONTINUE
} jj_op;

typedef struct jj_nodes {
    jj_node **item;
    size_t count, capacity;
} jj_nodes;

/* One shape for all. What a, b, c, list and more hold is said in jinja_parser.h. */
struct jj_node {
    uint8_t op;
    bool flag;
    int line;
    const char *name; /* interned: equal names are equal pointers */
    jj_node *a, *b, *c;
    jj_nodes list, more;
    const jj_function *row;
    jj_value constant;
};

struct tm_jinja {
    jj_pool pool;
    char *name;
    jj_nodes body;
    struct jj_names *names; /* all identifiers */
    const char *loop, *caller, *varargs, *kwargs; /* names that rendering itself stores */
};

/* The interned form of a name; NULL: no memory. */
const char *jj_intern(tm_jinja *t, const char *text, size_t size);

/* --- Reading --- */

typedef enum jj_token_kind {
    JJ_T_EOF, JJ_T_DATA, JJ_T_BLOCK_BEGIN, JJ_T_BLOCK_END, JJ_T_VARIABLE_BEGIN, JJ_T_VARIABLE_END,
    JJ_T_NAME, JJ_T_STRING, JJ_T_INT, JJ_T_FLOAT,
    JJ_T_ADD, JJ_T_SUB, JJ_T_MUL, JJ_T_DIV, JJ_T_FLOORDIV, JJ_T_MOD, JJ_T_POW, JJ_T_TILDE,
    JJ_T_EQ, JJ_T_NE, JJ_T_LT, JJ_T_LE, JJ_T_GT, JJ_T_GE, JJ_T_ASSIGN,
    JJ_T_DOT, JJ_T_COLON, JJ_T_PIPE, JJ_T_COMMA, JJ_T_SEMICOLON,
    JJ_T_LPAREN, JJ_T_RPAREN, JJ_T_LBRACKET, JJ_T_RBRACKET, JJ_T_LBRACE, JJ_T_RBRACE
} jj_token_kind;

typedef struct jj_token {
    jj_token_kind kind;
    int line;
    const char *text; /* data, name, string (unescaped) */
    size_t size;
    int64_t i;
    double f;
} jj_token;

typedef struct jj_lexer {
    tm_jinja *t;
    const char *source; /* newlines are \n alone */
    size_t size, pos;
    int line, state;
    char stack[TM_JINJA_MAX_NESTING]; /* open brackets */
    int open;
    tm_error *err;
} jj_lexer;

tm_status jj_lexer_init(jj_lexer *lexer, tm_jinja *t, const char *text, size_t size, tm_error *err) TM_MUST_CHECK;
tm_status jj_lexer_next(jj_lexer *lexer, jj_token *token) TM_MUST_CHECK;
/* Fails with the template's name and a line. */
tm_status jj_syntax(const tm_jinja *t, int line, tm_error *err, const char *fmt, ...) TM_PRINTF(4, 5);
tm_status jj_parse(tm_jinja *t, const char *text, size_t size, tm_error *err) TM_MUST_CHECK;

/* --- Rendering --- */

typedef struct jj_variable {
    const char *name; /* interned */
    jj_value *value;
} jj_variable;

struct jj_scope {
    jj_scope *parent;
    jj_variable *variable;
    size_t count, capacity;
    bool kept; /* a macro looks through to it: not to be used again */
};

/* Items are asked for one by one, since a condition may depend on what the body did before. */
struct jj_loop {
    const jj_node *node;
    jj_scope *scope;   /* outside the loop */
    jj_value **source; /* what it goes through */
    size_t source_count, source_at;
    jj_value *kept;    /* list of what the condition let through, as far as known */
    size_t index;      /* of the current one, in kept */
    int depth0;
    jj_value *changed; /* what changed() saw last */
};

/* What a list of statements ended with. */
typedef enum jj_end { JJ_DONE, JJ_BROKE, JJ_CONTINUED, JJ_FAILED } jj_end;

struct jj_run {
    const tm_jinja *t;
    const tm_jinja_context *context;
    tm_jinja_output *result;
    tm_buf *out; /* where text goes: result's, or that of a captured block */
    jj_pool pool;
    jj_scope *scope, *root;
    uint64_t steps, written;
    int depth, line;
    jj_value none, yes, no, empty;
    tm_status status;
    tm_error *err;
};

jj_value *jj_fail(jj_run *r, const char *fmt, ...) TM_PRINTF(2, 3);
bool jj_work(jj_run *r, uint64_t steps); /* counts; false: too many, failed */
static inline bool jj_work_bytes(jj_run *r, size_t bytes) { return jj_work(r, 1 + bytes / 64); }
void *jj_take(jj_run *r, size_t count, size_t size); /* zeroed; NULL: failed */

jj_value *jj_bool(jj_run *r, bool yes);
jj_value *jj_int(jj_run *r, int64_t i);
jj_value *jj_float(jj_run *r, double f);
jj_value *jj_string(jj_run *r, const char *text, size_t size); /* borrows text: it must live as long */
jj_value *jj_string_copy(jj_run *r, const char *text, size_t size);
jj_value *jj_string_buf(jj_run *r, tm_buf *buf);               /* copies, then frees buf's content */
jj_value *jj_text(jj_run *r, const char *text);                /* of a literal */
jj_value *jj_list(jj_run *r, jj_kind kind, size_t capacity);
bool jj_push(jj_run *r, jj_value *list, jj_value *item);       /* item may be NULL: a failure that went by */
jj_value *jj_dict(jj_run *r, size_t capacity);
bool jj_put(jj_run *r, jj_value *dict, jj_value *key, jj_value *value);
jj_value *jj_missing(jj_run *r, const jj_value *object, const char *name, size_t size);
jj_value *jj_hint(jj_run *r, const char *hint);
jj_value *jj_from_json(jj_run *r, const json_t *json, int depth);
bool jj_hashable(jj_run *r, const jj_value *key); /* false: failed */
/* *found: NULL when there is none. False: failed (an unhashable key). */
bool jj_get(jj_run *r, const jj_value *dict, const jj_value *key, jj_value **found);
jj_value *jj_get_text(const jj_value *dict, const char *key, size_t size);
jj_pair *jj_find_text(const jj_value *dict, const char *key, size_t size);

bool jj_truth(const jj_value *v);
bool jj_equal(jj_run *r, const jj_value *a, const jj_value *b); /* deep ones cost steps; r->status tells a failure */
bool jj_less(jj_run *r, const jj_value *a, const jj_value *b, bool or_equal, bool *out); /* false: failed */
bool jj_same_text(const jj_value *v, const char *text);
int64_t jj_chars(const jj_value *string);
size_t jj_char_at(const jj_value *string, int64_t index); /* byte of a code point */
bool jj_is_number(const jj_value *v); /* bool, int, float */
double jj_number(const jj_value *v);
bool jj_is_items(const jj_value *v);  /* list, tuple, range, view, iter */
const char *jj_type(const jj_value *v); /* as Python calls it */
jj_value *jj_undefined_error(jj_run *r, const jj_value *undefined);
/* What a for loop goes through, as a list of items (ITER: what is left of it, which is used up). */
bool jj_items(jj_run *r, jj_value *v, jj_value ***item, size_t *count);
bool jj_length(jj_run *r, jj_value *v, int64_t *out); /* len(); false: failed */
/* Whole-number arguments: absent gives fallback. False: failed. */
bool jj_arg_int(jj_run *r, const jj_value *v, int64_t fallback, int64_t *out);

/* Text of values (jinja_print.c). They append; false: failed. */
bool jj_str(jj_run *r, const jj_value *v, tm_buf *out);
bool jj_repr(jj_run *r, const jj_value *v, tm_buf *out);
jj_value *jj_to_string(jj_run *r, jj_value *v); /* a string stays what it is */
void jj_put_float(tm_buf *out, double f);
bool jj_buf_ok(jj_run *r, tm_buf *buf);         /* memory and its limit; frees it and fails otherwise */
jj_value *jj_filter_tojson(jj_run *r, jj_value *self, const jj_args *args);

/* Expressions (jinja_eval.c). */
jj_value *jj_eval(jj_run *r, const jj_node *node);
jj_value *jj_attribute(jj_run *r, jj_value *object, const char *name, size_t size);
jj_value *jj_element(jj_run *r, jj_value *object, jj_value *key);
jj_value *jj_call(jj_run *r, jj_value *callee, const jj_args *args);
jj_value *jj_eval_call(jj_run *r, const jj_node *node, jj_value *caller); /* caller: a named argument more, or NULL */
jj_value *jj_apply(jj_run *r, const jj_function *row, jj_value *self, const jj_args *args);
jj_value *jj_operate(jj_run *r, jj_op op, jj_value *a, jj_value *b);
bool jj_contains(jj_run *r, jj_value *item, jj_value *in, bool *out);

/* Statements (jinja_exec.c). */
jj_end jj_exec(jj_run *r, const jj_nodes *body);
jj_value *jj_call_macro(jj_run *r, jj_value *macro, const jj_args *args);
jj_value *jj_recurse(jj_run *r, jj_value *loop, const jj_args *args);
bool jj_reach(jj_run *r, jj_loop *loop, size_t index, bool *there); /* is there an item of this index? */
jj_value *jj_lookup(jj_run *r, const char *name);
bool jj_store(jj_run *r, const char *name, jj_value *value);
jj_scope *jj_enter(jj_run *r, jj_scope *parent); /* NULL: failed */

/* Formatting (jinja_format.c). */
jj_value *jj_percent(jj_run *r, jj_value *format, jj_value *args);
jj_value *jj_format(jj_run *r, jj_value *format, const jj_args *args);
jj_value *jj_strftime(jj_run *r, jj_value *self, const jj_args *args);

/* Unicode as Python sees it. */
bool jj_space(uint32_t code);
jj_value *jj_upper(jj_run *r, jj_value *s);
jj_value *jj_lower(jj_run *r, jj_value *s);
jj_value *jj_escape(jj_run *r, jj_value *v);
jj_value *jj_strip(jj_run *r, jj_value *s, jj_value *chars, int sides); /* 1 left, 2 right, 3 both */

#endif
