/* Format sharegpt: {"conversations": [{"from": "human", "value": "..."}, ...], "system": "...", "tools": ..}, as
 * LLaMA-Factory reads it: a turn from function_call holds JSON, {"name", "arguments"} or a list of these. */
#include "text/rows.h"

#include <string.h>

/* {"name", "arguments"} as a tool call of the messages shape. */
static tm_status put_call(const json_t *call, json_t *calls, tm_error *err)
{
    json_t *name = json_object_get(call, "name"), *arguments = json_object_get(call, "arguments");
    if (!json_is_string(name) || !arguments)
        return tm_fail(err, TM_INPUT, "a function call: expected an object with name and arguments");
    json_t *item = json_pack("{s:s, s:{s:O, s:O}}", "type", "function", "function", "name", name, "arguments", arguments);
    if (!item || json_array_append_new(calls, item) != 0)
        return tm_fail(err, TM_NO_MEMORY, "out of memory");
    return TM_OK;
}

static tm_status put_calls(const char *text, size_t size, json_t *messages, tm_error *err)
{
    json_t *value = NULL, *calls = json_array(), *message = NULL;
    tm_status st;
    if (!calls)
        TM_GO(tm_fail(err, TM_NO_MEMORY, "out of memory"));
    if ((st = tm_json_parse_row(text, size, &value, err)) != TM_OK) {
        st = st == TM_INPUT ? tm_fail_prefix(err, st, "a function call") : st;
        goto out;
    }
    if (json_is_array(value))
        for (size_t i = 0; i < json_array_size(value); i++)
            TM_GO(put_call(json_array_get(value, i), calls, err));
    else
        TM_GO(put_call(value, calls, err));
    message = json_pack("{s:s, s:s, s:O}", "role", "assistant", "content", "", "tool_calls", calls);
    if (!message || json_array_append(messages, message) != 0)
        st = tm_fail(err, TM_NO_MEMORY, "out of memory");
out:
    json_decref(message);
    json_decref(calls);
    json_decref(value);
    return st;
}

static tm_status put_turn(const tm_row_rules *r, json_t *turn, const char *role, json_t *messages, tm_error *err)
{
    const char *key = r->column[TM_COLUMN_VALUE];
    const json_t *value = json_object_get(turn, key);
    if (!json_is_string(value))
        return tm_fail(err, TM_INPUT, "%s: expected text, found %s", key, tm_json_type_name(value));
    const char *text = json_string_value(value);
    size_t size = json_string_length(value);
    if (strcmp(role, "function_call") == 0)
        return put_calls(text, size, messages, err);
    return tm_row_message(messages, role, text, size, err);
}

tm_status tm_format_sharegpt(const tm_row_rules *r, tm_tokens *scratch, const json_t *row, int64_t line, tm_row_sink *s,
                             tm_error *err)
{
    return tm_row_dialogue(r, scratch, row, line, TM_COLUMN_CONVERSATIONS, TM_COLUMN_FROM, put_turn, s, err);
}
