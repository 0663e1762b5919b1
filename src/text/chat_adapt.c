/* Conversations a template cannot show as they are: system messages where it knows none, tool calls where
 * it drops them, arguments as text where it needs objects. What a template can take is found out once, by
 * rendering small conversations; what it cannot take is said in another way, so that nothing of a row is lost
 * in silence. docs/formats/chat.md lists the rules. */
#include "text/chat_parts.h"

#include "base/json.h"

#include <string.h>

/* ---- probing ---- */

#define USER "{\"role\": \"user\", \"content\": \"<User Needle>\"}"
#define PARTS "{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"<User Needle>\"}]}"
#define SYSTEM "{\"role\": \"system\", \"content\": \"<System Needle>\"}"
#define ASSISTANT(content, more) "{\"role\": \"assistant\", \"content\": " content more "}"
#define CALLS(arguments) ", \"tool_calls\": [{\"id\": \"call_1___\", \"type\": \"function\", \"function\": {\"name\": \"some_tool\", \"arguments\": " arguments "}}]"
#define TEXT_ARGUMENTS "\"{\\\"argument_needle\\\": \\\"x\\\"}\""
#define OBJECT_ARGUMENTS "{\"argument_needle\": \"x\"}"
#define RESPONSE "{\"role\": \"tool\", \"name\": \"some_tool\", \"content\": \"Some response!\", \"tool_call_id\": \"call_1___\"}"

typedef struct probe {
    const tm_jinja *template;
    const json_t *base;
    const char *date;
    tm_jinja_output out;
    tm_error *err;
} probe;

/* Renders messages; the text is empty when the template refuses them. */
static tm_status try(probe *p, const char *messages)
{
    json_t *frame;
    tm_error refused;
    tm_buf text = {0};
    tm_buf_printf(&text, "{\"messages\": [%s], \"add_generation_prompt\": false}", messages);
    tm_status st = tm_buf_check(&text, p->err);
    if (st == TM_OK)
        st = tm_json_parse(tm_buf_str(&text), text.size, "a probe of the chat template", &frame, p->err);
    tm_buf_deinit(&text);
    TM_TRY(st);
    const json_t *objects[] = {frame, p->base};
    tm_jinja_context context = {objects, 2, p->date};
    st = tm_jinja_render(p->template, &context, &p->out, &refused);
    json_decref(frame);
    if (st == TM_NO_MEMORY)
        return tm_fail(p->err, st, "%s", refused.message);
    if (st != TM_OK)
        tm_buf_clear(&p->out.text);
    return TM_OK;
}

static bool shows(const probe *p, const char *needle)
{
    return p->out.text.size && memmem(p->out.text.data, p->out.text.size, needle, strlen(needle));
}

static tm_status probe_tools(probe *p, tm_chat_shape *s)
{
    TM_TRY(try(p, s->null_content ? USER ", " ASSISTANT("null", CALLS(TEXT_ARGUMENTS)) : USER ", " ASSISTANT("\"\"", CALLS(TEXT_ARGUMENTS))));
    bool as_text = shows(p, "argument_needle") && !shows(p, "argument_needle\\\"");
    TM_TRY(try(p, s->null_content ? USER ", " ASSISTANT("null", CALLS(OBJECT_ARGUMENTS)) : USER ", " ASSISTANT("\"\"", CALLS(OBJECT_ARGUMENTS))));
    bool as_object = shows(p, "argument_needle"), as_python = shows(p, "'argument_needle'");
    s->tool_calls = as_text || as_object;
    s->object_arguments = as_object && !as_text;
    s->text_arguments = as_text && (!as_object || as_python);
    if (!s->tool_calls)
        return TM_OK;
    TM_TRY(try(p, s->object_arguments ? USER ", " ASSISTANT("\"\"", CALLS(OBJECT_ARGUMENTS)) ", " RESPONSE
                                      : USER ", " ASSISTANT("\"\"", CALLS(TEXT_ARGUMENTS)) ", " RESPONSE));
    s->tool_responses = shows(p, "Some response!");
    return TM_OK;
}

static tm_status run_probes(probe *p, tm_chat_shape *s)
{
    TM_TRY(try(p, USER));
    s->text_content = shows(p, "<User Needle>");
    TM_TRY(try(p, PARTS));
    s->part_content = shows(p, "<User Needle>") && !shows(p, "'type'") && !shows(p, "\"type\"");
    if (!s->text_content && !s->part_content) { /* it needs more than messages: nothing was learned about it */
        *s = (tm_chat_shape){.system = true, .tool_calls = true, .tool_responses = true, .null_content = true,
                             .text_content = true, .part_content = true};
        return TM_OK;
    }
    TM_TRY(try(p, SYSTEM ", " USER));
    s->system = shows(p, "<System Needle>");
    TM_TRY(try(p, USER ", " ASSISTANT("null", )));
    s->null_content = shows(p, "<User Needle>") && !shows(p, "None");
    return probe_tools(p, s);
}

tm_status tm_chat_probe(const tm_jinja *template, const json_t *base, const char *date, tm_chat_shape *out, tm_error *err)
{
    probe p = {.template = template, .base = base, .date = date, .err = err};
    *out = (tm_chat_shape){0};
    tm_status st = run_probes(&p, out);
    tm_jinja_output_deinit(&p.out);
    return st;
}

/* ---- adapting ---- */

static tm_status no_memory(tm_error *err) { return tm_fail(err, TM_NO_MEMORY, "out of memory"); }

static tm_status set(json_t *object, const char *key, json_t *value, tm_error *err)
{
    return value && json_object_set_new_nocheck(object, key, value) == 0 ? TM_OK : no_memory(err);
}

/* An object of a message as text, written by a small template: json.dumps with an indent of 2. */
static tm_status describe(const char *source, const char *name, const json_t *message, json_t **out, tm_error *err)
{
    tm_jinja *template;
    tm_jinja_output text = {0};
    TM_TRY(tm_jinja_parse(source, strlen(source), name, &template, err));
    tm_jinja_context context = {&message, 1, NULL};
    tm_status st = tm_jinja_render(template, &context, &text, err);
    *out = st == TM_OK ? json_stringn_nocheck(tm_buf_str(&text.text), text.text.size) : NULL;
    if (st == TM_OK && !*out)
        st = no_memory(err);
    tm_jinja_output_deinit(&text);
    tm_jinja_close(template);
    return st;
}

static const char CALLS_AS_TEXT[] =
    "{%- set ns = namespace(calls=[]) -%}"
    "{%- for t in tool_calls -%}"
    "{%- set f = t['function'] if t['function'] is defined else t -%}"
    "{%- set c = {'name': f['name'], 'arguments': f['arguments']} -%}"
    "{%- set ns.calls = ns.calls + [dict(c, id=t['id']) if t['id'] is defined else c] -%}"
    "{%- endfor -%}"
    "{{ (dict(tool_calls=ns.calls, content=content) if content else {'tool_calls': ns.calls}) | tojson(indent=2) }}";
static const char RESPONSE_AS_TEXT[] =
    "{%- set r = {'tool': name} if name is defined else {} -%}"
    "{%- set r = dict(r, content=content) -%}"
    "{%- set r = dict(r, tool_call_id=tool_call_id) if tool_call_id is defined else r -%}"
    "{{ {'tool_response': r} | tojson(indent=2) }}";

/* arguments of a call: JSON text to the object it says, or back; what is no JSON stays text. */
static tm_status turn_arguments(json_t *function, bool to_object, tm_error *err)
{
    json_t *arguments = json_object_get(function, "arguments"), *turned = NULL;
    tm_error ignored;
    if (!arguments || json_is_string(arguments) != to_object)
        return TM_OK;
    if (!to_object) {
        json_t *wrapped = json_pack("{s:O}", "arguments", arguments);
        if (!wrapped)
            return no_memory(err);
        tm_status st = describe("{{ arguments | tojson }}", "arguments", wrapped, &turned, err);
        json_decref(wrapped);
        return st == TM_OK ? set(function, "arguments", turned, err) : st;
    }
    tm_status st = tm_json_parse_row(json_string_value(arguments), json_string_length(arguments), &turned, &ignored);
    if (st == TM_NO_MEMORY)
        return no_memory(err);
    return st == TM_OK ? set(function, "arguments", turned, err) : TM_OK;
}

/* A copy of the message's calls with their arguments turned. */
static tm_status turn_calls(json_t *message, bool to_object, tm_error *err)
{
    json_t *calls = tm_json_copy(json_object_get(message, "tool_calls"), true);
    if (!calls)
        return no_memory(err);
    tm_status st = TM_OK;
    for (size_t i = 0; i < json_array_size(calls) && st == TM_OK; i++) {
        json_t *call = json_array_get(calls, i), *function = json_object_get(call, "function");
        st = turn_arguments(function ? function : call, to_object, err);
    }
    if (st != TM_OK) {
        json_decref(calls);
        return st;
    }
    return set(message, "tool_calls", calls, err);
}

/* Texts of a list of parts, one behind the other. */
static tm_status join_parts(json_t *message, tm_error *err)
{
    const json_t *parts = json_object_get(message, "content");
    tm_buf text = {0};
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i), *words = json_is_string(part) ? part : json_object_get(part, "text");
        if (!json_is_string(words)) {
            const char *type = json_string_value(json_object_get(part, "type"));
            tm_buf_deinit(&text);
            return tm_fail(err, TM_INPUT, "content[%zu]: expected a part with text, found %.60s", i, type ? type : "none");
        }
        tm_buf_add(&text, json_string_value(words), json_string_length(words));
    }
    tm_status st = tm_buf_check(&text, err);
    if (st == TM_OK)
        st = set(message, "content", json_stringn_nocheck(tm_buf_str(&text), text.size), err);
    tm_buf_deinit(&text);
    return st;
}

typedef struct adapting {
    const tm_chat_shape *shape;
    json_t *out;
    tm_buf system; /* what system messages said that no user's message has taken yet */
    tm_error *err;
} adapting;

/* Takes the message over. */
static tm_status give(adapting *a, json_t *message)
{
    const json_t *content = json_object_get(message, "content");
    tm_status st = TM_OK;
    if (!a->shape->text_content && a->shape->part_content && json_is_string(content)) {
        json_t *parts = json_pack("[{s:s, s:O}]", "type", "text", "text", content);
        st = set(message, "content", parts, a->err);
    } else if (!a->shape->part_content && json_is_array(content)) {
        st = join_parts(message, a->err);
    } else if (!a->shape->null_content && (!content || json_is_null(content))) {
        st = set(message, "content", json_string(""), a->err);
    }
    if (st == TM_OK && json_array_append(a->out, message) != 0)
        st = no_memory(a->err);
    return st;
}

static tm_status flush_system(adapting *a)
{
    if (!a->system.size)
        return TM_OK;
    json_t *message = json_pack("{s:s, s:o}", "role", "user", "content", json_stringn_nocheck(a->system.data, a->system.size));
    tm_status st = message ? give(a, message) : no_memory(a->err);
    json_decref(message);
    tm_buf_clear(&a->system);
    return st;
}

/* System text in front of the next user's message. *taken: the message is gone into it. */
static tm_status merge_system(adapting *a, json_t *message, const char *role, bool *taken)
{
    const json_t *content = json_object_get(message, "content");
    *taken = false;
    if (json_is_array(content)) {
        TM_TRY(join_parts(message, a->err));
        content = json_object_get(message, "content");
    }
    if (!json_is_string(content))
        return TM_OK;
    if (strcmp(role, "system") == 0) {
        if (a->system.size)
            tm_buf_char(&a->system, '\n');
        tm_buf_add(&a->system, json_string_value(content), json_string_length(content));
        *taken = true;
        return tm_buf_check(&a->system, a->err);
    }
    if (strcmp(role, "user") != 0)
        return flush_system(a);
    if (!a->system.size)
        return TM_OK;
    if (json_string_length(content))
        tm_buf_char(&a->system, '\n');
    tm_buf_add(&a->system, json_string_value(content), json_string_length(content));
    TM_TRY(tm_buf_check(&a->system, a->err));
    TM_TRY(set(message, "content", json_stringn_nocheck(a->system.data, a->system.size), a->err));
    tm_buf_clear(&a->system);
    return TM_OK;
}

static tm_status adapt_tools(adapting *a, json_t *message, const char *role)
{
    const tm_chat_shape *s = a->shape;
    const json_t *calls = json_object_get(message, "tool_calls");
    json_t *text;
    if (json_array_size(calls)) {
        if (!s->tool_calls || s->object_arguments || s->text_arguments)
            TM_TRY(turn_calls(message, !s->text_arguments, a->err));
        if (!s->tool_calls) {
            TM_TRY(describe(CALLS_AS_TEXT, "tool calls as text", message, &text, a->err));
            TM_TRY(set(message, "content", text, a->err));
            json_object_del(message, "tool_calls");
        }
    }
    if (!s->tool_responses && strcmp(role, "tool") == 0) {
        TM_TRY(describe(RESPONSE_AS_TEXT, "a tool's answer as text", message, &text, a->err));
        TM_TRY(set(message, "content", text, a->err));
        TM_TRY(set(message, "role", json_string("user"), a->err));
        json_object_del(message, "name");
    }
    return TM_OK;
}

static tm_status adapt_one(adapting *a, json_t *message)
{
    const char *role = json_string_value(json_object_get(message, "role"));
    bool taken = false;
    TM_TRY(adapt_tools(a, message, role));
    role = json_string_value(json_object_get(message, "role"));
    if (!a->shape->system)
        TM_TRY(merge_system(a, message, role, &taken));
    return taken ? TM_OK : give(a, message);
}

tm_status tm_chat_adapt(const tm_chat_shape *shape, const json_t *messages, json_t **out, tm_error *err)
{
    adapting a = {.shape = shape, .out = json_array(), .err = err};
    tm_status st = a.out ? TM_OK : no_memory(err);
    for (size_t i = 0; i < json_array_size(messages) && st == TM_OK; i++) {
        const json_t *from = json_array_get(messages, i);
        if (!json_is_object(from) || !json_is_string(json_object_get(from, "role"))) {
            st = tm_fail(err, TM_INPUT, "messages[%zu]: expected an object with a role", i);
            break;
        }
        json_t *message = tm_json_copy(from, false); /* its values stay shared, none is written to */
        st = message ? adapt_one(&a, message) : no_memory(err);
        json_decref(message);
        if (st != TM_OK)
            tm_fail_prefix(err, st, "messages[%zu]", i);
    }
    if (st == TM_OK)
        st = flush_system(&a);
    tm_buf_deinit(&a.system);
    if (st != TM_OK) {
        json_decref(a.out);
        a.out = NULL;
    }
    *out = a.out;
    return st;
}

tm_status tm_chat_alias_reasoning(json_t *messages, tm_error *err)
{
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i), *value = NULL;
        for (int k = 0; k < 3 && !value; k++) {
            value = json_object_get(message, names[k]);
            value = json_is_null(value) ? NULL : value;
        }
        if (value && json_object_set(message, "reasoning_content", value) != 0)
            return no_memory(err);
        if (value && !json_object_get(message, "thinking") && json_object_set(message, "thinking", value) != 0)
            return no_memory(err);
    }
    return TM_OK;
}
