/* Statements: scopes, loops, macros, captured blocks. A scope is made for every iteration, macro call and
 * inner block, and looks through to the one it was made in, as jinja2's frames do; if makes none. */
#include "text/jinja_parts.h"

#include <stdlib.h>

/* ---- variables ---- */

jj_scope *jj_enter(jj_run *r, jj_scope *parent)
{
    jj_scope *scope = jj_take(r, 1, sizeof *scope);
    if (scope)
        scope->parent = parent;
    return scope;
}

static jj_variable *find(const jj_scope *scope, const char *name)
{
    for (size_t i = 0; i < scope->count; i++)
        if (scope->variable[i].name == name)
            return &scope->variable[i];
    return NULL;
}

static bool store_in(jj_run *r, jj_scope *scope, const char *name, jj_value *value)
{
    jj_variable *v = find(scope, name);
    if (v) {
        v->value = value;
        return jj_work(r, scope->count / 16);
    }
    if (scope->count == scope->capacity) {
        size_t capacity = scope->capacity ? 2 * scope->capacity : 4;
        jj_variable *grown = jj_take(r, capacity, sizeof *grown);
        if (!grown)
            return false;
        if (scope->count)
            memcpy(grown, scope->variable, scope->count * sizeof *grown);
        scope->variable = grown;
        scope->capacity = capacity;
    }
    scope->variable[scope->count++] = (jj_variable){name, value};
    return true;
}

bool jj_store(jj_run *r, const char *name, jj_value *value) { return store_in(r, r->scope, name, value); }

/* A variable of the context, made a value once and kept in the outermost scope; else a global function. */
static jj_value *from_outside(jj_run *r, const char *name)
{
    jj_value *v = NULL;
    const json_t *json = NULL;
    for (size_t i = 0; i < r->context->object_count && !json; i++)
        json = json_object_get(r->context->objects[i], name);
    if (json) {
        v = jj_from_json(r, json, 0);
    } else {
        const jj_function *row = jj_find_function(jj_globals, name, strlen(name));
        if (!row)
            return jj_missing(r, NULL, name, strlen(name));
        v = jj_take(r, 1, sizeof *v);
        if (v) {
            v->kind = JJ_FUNCTION;
            v->as.c.row = row;
        }
    }
    return v && store_in(r, r->root, name, v) ? v : NULL;
}

jj_value *jj_lookup(jj_run *r, const char *name)
{
    for (const jj_scope *scope = r->scope; scope; scope = scope->parent) {
        jj_variable *v = find(scope, name);
        if (!jj_work(r, scope->count / 16))
            return NULL;
        if (v)
            return v->value;
    }
    return from_outside(r, name);
}

static bool assign(jj_run *r, const jj_node *target, jj_value *value)
{
    if (target->op == JJ_NAME)
        return jj_store(r, target->name, value);
    if (target->op == JJ_NSREF) {
        jj_value *space = jj_lookup(r, target->a->name), *key;
        if (space && space->kind != JJ_NAMESPACE)
            return jj_fail(r, "cannot assign attribute on non-namespace object"), false;
        if (space && target->name[0] == '_')
            return jj_fail(r, "a namespace takes no attribute that begins with '_'"), false;
        return space && (key = jj_text(r, target->name)) && jj_put(r, space, key, value);
    }
    jj_value **item;
    size_t count;
    if (!jj_items(r, value, &item, &count))
        return false;
    if (count != target->list.count)
        return jj_fail(r, count < target->list.count ? "not enough values to unpack (expected %zu, got %zu)"
                                                     : "too many values to unpack (expected %zu, got %zu)",
                       target->list.count, count), false;
    for (size_t i = 0; i < count; i++)
        if (!assign(r, target->list.item[i], item[i]))
            return false;
    return true;
}

/* ---- text ---- */

static bool write_text(jj_run *r, const char *text, size_t size)
{
    r->written += size;
    if (r->written > TM_JINJA_MAX_OUTPUT)
        return jj_fail(r, "the template writes more than %d MiB", TM_JINJA_MAX_OUTPUT >> 20), false;
    tm_buf_add(r->out, text, size);
    return jj_work_bytes(r, size) && jj_buf_ok(r, r->out);
}

static bool print(jj_run *r, const jj_node *expression)
{
    jj_value *v = jj_eval(r, expression);
    v = v ? jj_to_string(r, v) : NULL;
    return v && write_text(r, v->as.s.text, v->as.s.size);
}

/* Runs body in a scope of its own (variables of `scope`) and gives its text. */
static jj_value *capture(jj_run *r, const jj_nodes *body, jj_scope *scope)
{
    tm_buf text = {0}, *out = r->out;
    jj_scope *outer = r->scope;
    r->out = &text;
    r->scope = scope;
    jj_end end = jj_exec(r, body);
    r->out = out;
    r->scope = outer;
    if (end == JJ_DONE)
        return jj_string_buf(r, &text);
    tm_buf_deinit(&text);
    return end == JJ_FAILED ? NULL : jj_fail(r, "break or continue outside of a loop");
}

/* The text of a block through its filters. */
static jj_value *captured(jj_run *r, const jj_node *node)
{
    jj_scope *scope = jj_enter(r, r->scope), *outer = r->scope;
    jj_value *text = scope ? capture(r, &node->list, scope) : NULL;
    if (!text || node->b->op == JJ_NAME)
        return text;
    const jj_node *body = node->b;
    while (body->op == JJ_FILTER)
        body = body->a;
    r->scope = jj_enter(r, outer);
    jj_value *v = r->scope && jj_store(r, body->name, text) ? jj_eval(r, node->b) : NULL;
    r->scope = outer;
    return v;
}

static jj_end exec_in_scope(jj_run *r, const jj_nodes *body)
{
    jj_scope *outer = r->scope;
    r->scope = jj_enter(r, outer);
    jj_end end = r->scope ? jj_exec(r, body) : JJ_FAILED;
    r->scope = outer;
    return end;
}

/* A block that marks what the assistant said: where it stands in the text is known while text goes straight
 * into the result. */
static jj_end generation(jj_run *r, const jj_node *node)
{
    size_t begin = r->out->size;
    jj_end end = exec_in_scope(r, &node->list);
    tm_jinja_output *result = r->result;
    if (end == JJ_FAILED)
        return end;
    if (r->out != &result->text) {
        result->unplaced = true;
        return end;
    }
    tm_status st = TM_GROW(&result->span, &result->span_capacity, result->spans + 1, r->err);
    if (st != TM_OK) {
        r->status = st;
        return JJ_FAILED;
    }
    if (r->out->size > begin)
        result->span[result->spans++] = (tm_jinja_span){begin, r->out->size};
    return end;
}

/* ---- loops ---- */

/* Whether a loop's condition lets an item through. */
static bool passes(jj_run *r, const jj_loop *loop, jj_value *item, bool *out)
{
    jj_scope *scope = r->scope;
    *out = true;
    if (!loop->node->c)
        return true;
    r->scope = jj_enter(r, loop->scope);
    jj_value *v = r->scope && assign(r, loop->node->a, item) ? jj_eval(r, loop->node->c) : NULL;
    r->scope = scope;
    *out = v && jj_truth(v);
    return v;
}

bool jj_reach(jj_run *r, jj_loop *loop, size_t index, bool *there)
{
    while (loop->kept->as.l.count <= index && loop->source_at < loop->source_count) {
        jj_value *item = loop->source[loop->source_at++];
        bool keep;
        if (!passes(r, loop, item, &keep) || (keep && !jj_push(r, loop->kept, item)))
            return false;
    }
    *there = loop->kept->as.l.count > index;
    return true;
}

static jj_end iterate(jj_run *r, const jj_node *node, jj_value *items, int depth0)
{
    jj_scope *outer = r->scope;
    jj_loop *loop = jj_take(r, 1, sizeof *loop);
    jj_value *self = jj_take(r, 1, sizeof *self);
    if (!loop || !self || !jj_items(r, items, &loop->source, &loop->source_count))
        return JJ_FAILED;
    *self = (jj_value){.kind = JJ_LOOP, .as.loop = loop};
    loop->kept = jj_list(r, JJ_LIST, 0);
    loop->depth0 = depth0;
    loop->node = node;
    loop->scope = outer;
    if (!loop->kept)
        return JJ_FAILED;
    if (!node->c) { /* all of them, without a copy */
        loop->kept->as.l.item = loop->source;
        loop->kept->as.l.count = loop->kept->as.l.capacity = loop->source_at = loop->source_count;
    }
    jj_end end = JJ_DONE;
    jj_scope *inner = NULL;
    for (bool there; end != JJ_BROKE; loop->index++) {
        if (!jj_reach(r, loop, loop->index, &there))
            return JJ_FAILED;
        if (!there)
            break;
        if (!inner || inner->kept)
            inner = jj_enter(r, outer);
        else
            inner->count = 0;
        r->scope = inner;
        bool ok = inner && jj_store(r, r->t->loop, self) && assign(r, node->a, loop->kept->as.l.item[loop->index]);
        end = ok ? jj_exec(r, &node->list) : JJ_FAILED;
        r->scope = outer;
        if (end == JJ_FAILED)
            return end;
    }
    return loop->kept->as.l.count == 0 && node->more.count ? exec_in_scope(r, &node->more) : JJ_DONE;
}

static jj_end exec_for(jj_run *r, const jj_node *node)
{
    jj_value *items = jj_eval(r, node->b);
    return items ? iterate(r, node, items, 0) : JJ_FAILED;
}

/* loop(items) inside a recursive loop: the text of running it over them. */
jj_value *jj_recurse(jj_run *r, jj_value *self, const jj_args *args)
{
    jj_loop *loop = self->as.loop;
    if (!loop->node->flag)
        return jj_fail(r, "The loop must have the 'recursive' marker to be called recursively.");
    if (args->count != 1 || args->named)
        return jj_fail(r, "loop() takes one argument");
    tm_buf text = {0}, *out = r->out;
    jj_scope *outer = r->scope;
    r->out = &text;
    r->scope = loop->scope;
    jj_end end = iterate(r, loop->node, args->item[0], loop->depth0 + 1);
    r->out = out;
    r->scope = outer;
    if (end != JJ_FAILED)
        return jj_string_buf(r, &text);
    tm_buf_deinit(&text);
    return NULL;
}

/* ---- macros ---- */

enum { TAKES_CALLER = 1, TAKES_VARARGS = 2, TAKES_KWARGS = 4 };

static jj_value *make_macro(jj_run *r, const jj_node *node, const char *name)
{
    jj_value *macro = jj_take(r, 1, sizeof *macro);
    for (jj_scope *scope = r->scope; scope && !scope->kept; scope = scope->parent)
        scope->kept = true;
    if (macro) {
        macro->kind = JJ_MACRO;
        macro->as.m.node = node;
        macro->as.m.scope = r->scope;
        macro->as.m.name = name;
    }
    return macro;
}

/* The named argument `name`, marked as used; NULL: not given. */
static jj_value *take_named(const jj_args *args, const char *name, bool *used)
{
    for (size_t i = 0; i < args->named; i++)
        if (jj_same_text(args->key[i], name)) {
            used[i] = true;
            return args->value[i];
        }
    return NULL;
}

static bool bind_parameters(jj_run *r, const jj_node *node, const jj_args *args, bool *used)
{
    for (size_t i = 0; i < node->more.count; i++) {
        const jj_node *parameter = node->more.item[i];
        jj_value *v = i < args->count ? args->item[i] : take_named(args, parameter->name, used);
        if (!v && parameter->a)
            v = jj_eval(r, parameter->a);
        else if (!v)
            v = jj_missing(r, NULL, parameter->name, strlen(parameter->name));
        if (!v || !jj_store(r, parameter->name, v))
            return false;
    }
    return true;
}

static bool bind_rest(jj_run *r, jj_value *macro, const jj_args *args, bool *used)
{
    const jj_node *node = macro->as.m.node;
    int64_t takes = node->constant.as.i;
    bool named_caller = false;
    for (size_t i = 0; i < node->more.count; i++)
        named_caller |= strcmp(node->more.item[i]->name, "caller") == 0;
    if (takes & TAKES_CALLER && !named_caller) {
        jj_value *caller = take_named(args, "caller", used);
        caller = caller ? caller : jj_hint(r, "No caller defined");
        if (!caller || !jj_store(r, r->t->caller, caller))
            return false;
    }
    jj_value *rest = takes & TAKES_KWARGS ? jj_dict(r, 0) : NULL;
    for (size_t i = 0; i < args->named; i++) {
        if (used[i])
            continue;
        if (!(takes & TAKES_KWARGS)) {
            tm_buf key = {0};
            if (jj_repr(r, args->key[i], &key))
                jj_fail(r, "macro '%s' takes no keyword argument %.100s", macro->as.m.name, tm_buf_str(&key));
            tm_buf_deinit(&key);
            return false;
        }
        if (!rest || !jj_put(r, rest, args->key[i], args->value[i]))
            return false;
    }
    if (takes & TAKES_KWARGS && !(rest && jj_store(r, r->t->kwargs, rest)))
        return false;
    if (!(takes & TAKES_VARARGS) && args->count > node->more.count)
        return jj_fail(r, "macro '%s' takes not more than %zu argument(s)", macro->as.m.name, node->more.count), false;
    if (!(takes & TAKES_VARARGS))
        return true;
    jj_value *more = jj_list(r, JJ_TUPLE, 0);
    for (size_t i = node->more.count; more && i < args->count; i++)
        if (!jj_push(r, more, args->item[i]))
            return false;
    return more && jj_store(r, r->t->varargs, more);
}

jj_value *jj_call_macro(jj_run *r, jj_value *macro, const jj_args *args)
{
    jj_scope *outer = r->scope, *inner = jj_enter(r, macro->as.m.scope);
    bool *used = jj_take(r, args->named + 1, sizeof *used);
    if (!inner || !used)
        return NULL;
    r->scope = inner;
    bool ok = bind_parameters(r, macro->as.m.node, args, used) && bind_rest(r, macro, args, used);
    r->scope = outer;
    return ok ? capture(r, &macro->as.m.node->list, inner) : NULL;
}

/* {% call(x) name() %}: the call with the block as its named argument "caller". */
static bool call_block(jj_run *r, const jj_node *node)
{
    jj_value *caller = make_macro(r, node, "caller"), *v = caller ? jj_eval_call(r, node->a, caller) : NULL;
    v = v ? jj_to_string(r, v) : NULL;
    return v && write_text(r, v->as.s.text, v->as.s.size);
}

/* ---- statements ---- */

static jj_end exec_if(jj_run *r, const jj_node *node)
{
    jj_value *v = jj_eval(r, node->a);
    return v ? jj_exec(r, jj_truth(v) ? &node->list : &node->more) : JJ_FAILED;
}

static jj_end exec_with(jj_run *r, const jj_node *node)
{
    jj_scope *outer = r->scope, *inner = jj_enter(r, outer);
    for (size_t i = 0; inner && i < node->more.count; i++) {
        jj_value *v = jj_eval(r, node->more.item[i]->b); /* in the outer scope, all of them */
        r->scope = inner;
        bool ok = v && assign(r, node->more.item[i]->a, v);
        r->scope = outer;
        if (!ok)
            return JJ_FAILED;
    }
    r->scope = inner;
    jj_end end = inner ? jj_exec(r, &node->list) : JJ_FAILED;
    r->scope = outer;
    return end;
}

static jj_end exec_one(jj_run *r, const jj_node *node)
{
    jj_value *v;
    bool ok = true;
    switch ((jj_op)node->op) {
    case JJ_TEXT: ok = write_text(r, node->constant.as.s.text, node->constant.as.s.size); break;
    case JJ_PRINT:
        for (size_t i = 0; ok && i < node->list.count; i++)
            ok = print(r, node->list.item[i]);
        break;
    case JJ_FOR: return exec_for(r, node);
    case JJ_IF: return exec_if(r, node);
    case JJ_SET: ok = (v = jj_eval(r, node->b)) && assign(r, node->a, v); break;
    case JJ_SET_BLOCK: ok = (v = captured(r, node)) && assign(r, node->a, v); break;
    case JJ_FILTER_BLOCK:
        v = captured(r, node);
        v = v ? jj_to_string(r, v) : NULL;
        ok = v && write_text(r, v->as.s.text, v->as.s.size);
        break;
    case JJ_DEFINE: ok = (v = make_macro(r, node, node->name)) && jj_store(r, node->name, v); break;
    case JJ_CALL_BLOCK: ok = call_block(r, node); break;
    case JJ_WITH: return exec_with(r, node);
    case JJ_SCOPE: return exec_in_scope(r, &node->list);
    case JJ_GENERATION: return generation(r, node);
    case JJ_BREAK: return JJ_BROKE;
    case JJ_CONTINUE: return JJ_CONTINUED;
    default: return JJ_FAILED;
    }
    return ok ? JJ_DONE : JJ_FAILED;
}

jj_end jj_exec(jj_run *r, const jj_nodes *body)
{
    if (++r->depth > TM_JINJA_MAX_DEPTH)
        return jj_fail(r, "blocks and macros run more than %d deep", TM_JINJA_MAX_DEPTH), JJ_FAILED;
    jj_end end = JJ_DONE;
    for (size_t i = 0; i < body->count && end == JJ_DONE; i++) {
        r->line = body->item[i]->line;
        end = jj_work(r, 1) ? exec_one(r, body->item[i]) : JJ_FAILED;
    }
    r->depth--;
    return end;
}
