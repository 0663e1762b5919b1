/* Format messages: {"messages": [{"role": "user", "content": "..."}, ...], "tools": [...]}, OpenAI's and
 * transformers' shape. Keys of a message that are not named here go to the template as they are. */
#include "text/rows.h"

#include <string.h>

static tm_status put_message(const tm_row_rules *r, json_t *message, const char *role, json_t *messages, tm_error *err)
{
    const char *role_key = r->column[TM_COLUMN_ROLE], *content_key = r->column[TM_COLUMN_CONTENT];
    json_t *content = json_object_get(message, content_key);
    bool empty = !content || json_is_null(content);
    if (empty && !json_object_get(message, "tool_calls"))
        return tm_fail(err, TM_INPUT, "%s: expected text, found %s", content_key, tm_json_type_name(content));
    if (!empty && !json_is_string(content) && !json_is_array(content))
        return tm_fail(err, TM_INPUT, "%s: expected text or a list of parts, found %s", content_key,
                       tm_json_type_name(content));
    json_t *copy = tm_json_copy(message, false); /* shallow */
    bool failed = !copy || json_object_set_new_nocheck(copy, "role", json_string_nocheck(role)) != 0 ||
                  (content && json_object_set_nocheck(copy, "content", content) != 0);
    if (copy && strcmp(role_key, "role") != 0)
        json_object_del(copy, role_key);
    if (copy && strcmp(content_key, "content") != 0)
        json_object_del(copy, content_key);
    if (failed || json_array_append(messages, copy) != 0) {
        json_decref(copy);
        return tm_fail(err, TM_NO_MEMORY, "out of memory");
    }
    json_decref(copy);
    return TM_OK;
}

tm_status tm_format_messages(const tm_row_rules *r, tm_tokens *scratch, const json_t *row, int64_t line, tm_row_sink *s,
                             tm_error *err)
{
    return tm_row_dialogue(r, scratch, row, line, TM_COLUMN_MESSAGES, TM_COLUMN_ROLE, put_message, s, err);
}
