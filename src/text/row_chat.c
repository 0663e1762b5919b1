/* Rows that are conversations, by way of the chat template: see rows.h. A row of any such format first becomes
 * {"messages": [{"role", "content", ...}], "tools": [...], ...} with temper's names of roles. */
#include "text/rows.h"

#include <string.h>

/* What data sets call the roles. */
static const struct {
    const char *found, *role;
} known_roles[] = {{"human", "user"},         {"prompter", "user"},  {"gpt", "assistant"},       {"bot", "assistant"},
                   {"char", "assistant"},     {"model", "assistant"}, {"chatgpt", "assistant"},   {"ai", "assistant"},
                   {"observation", "tool"},   {"function", "tool"},   {"function_response", "tool"}};

const char *tm_row_role(const tm_row_rules *r, const char *found)
{
    const tm_string_map *mine = &r->entry->roles;
    for (int64_t i = 0; i < mine->keys.count; i++)
        if (strcmp(mine->values.item[i], found) == 0)
            return mine->keys.item[i];
    for (size_t i = 0; i < sizeof known_roles / sizeof *known_roles; i++)
        if (strcmp(known_roles[i].found, found) == 0)
            return known_roles[i].role;
    return found;
}

tm_status tm_row_message(json_t *messages, const char *role, const char *text, size_t size, tm_error *err)
{
    json_t *message = json_pack("{s:s, s:o}", "role", role, "content", json_stringn_nocheck(text, size));
    if (!message || json_array_append_new(messages, message) != 0)
        return tm_fail(err, TM_NO_MEMORY, "out of memory");
    return TM_OK;
}

/* Functions as LLaMA-Factory writes them stand alone; templates expect {"type": "function", "function": ..}. */
static json_t *wrapped_tools(const json_t *list)
{
    json_t *out = json_array(), *tool;
    size_t i;
    bool failed = !out;
    json_array_foreach((json_t *)list, i, tool) {
        bool bare = json_object_get(tool, "name") && !json_object_get(tool, "function");
        json_t *item = failed ? NULL : bare ? json_object() : json_incref(tool);
        failed |= !item || (bare && json_object_set_new(item, "type", json_string("function")) != 0) ||
                  (bare && json_object_set(item, "function", tool) != 0) || json_array_append(out, item) != 0;
        json_decref(item);
    }
    if (!failed)
        return out;
    json_decref(out);
    return NULL;
}

/* The row as a template reads it: its own keys, with these messages and its tools as a list. */
static tm_status conversation_of(const tm_row_rules *r, const json_t *row, json_t *messages, json_t **out, tm_error *err)
{
    const json_t *tools;
    json_t *owned = NULL, *list = NULL;
    tm_status st = tm_row_list(r, row, TM_COLUMN_TOOLS, &tools, &owned, err);
    *out = NULL;
    if (st == TM_OK) {
        *out = tm_json_copy(row, false); /* shallow: a template may ask for any key of the row */
        list = tools && json_array_size(tools) ? wrapped_tools(tools) : NULL;
        bool failed = !*out || (tools && json_array_size(tools) && !list) ||
                      json_object_set_nocheck(*out, "messages", messages) != 0 ||
                      (list && json_object_set_nocheck(*out, "tools", list) != 0);
        if (!list && *out)
            json_object_del(*out, "tools");
        if (failed) {
            json_decref(*out);
            *out = NULL;
            st = tm_fail(err, TM_NO_MEMORY, "out of memory");
        }
    }
    json_decref(list);
    json_decref(owned);
    return st;
}

static tm_status put_conversation(const tm_row_rules *r, tm_tokens *scratch, const json_t *conversation, int64_t line,
                                  tm_row_sink *s, tm_error *err)
{
    int64_t targets = 0, examples = s->stats.examples;
    size_t first = s->ids.count;
    TM_TRY(tm_chat_render(r->chat, conversation, &s->chat, err));
    if (r->loss == TM_LOSS_COMPLETION && s->chat.spans > 1) { /* the last answer alone */
        s->chat.span[0] = s->chat.span[s->chat.spans - 1];
        s->chat.spans = 1;
    }
    s->row_ids.count = 0;
    TM_TRY(tm_chat_encode(r->chat, scratch, &s->chat, &s->row_ids, &s->row_weight, &s->row_weight_capacity, &targets, err));
    TM_TRY(tm_row_check_ids(r, &s->row_ids, 0, err));
    size_t n = s->row_ids.count;
    TM_TRY(TM_GROW(&s->ids.id, &s->ids.capacity, first + n, err));
    tm_buf_clear(&s->mask);
    for (size_t i = 0; i < n; i++) {
        s->ids.id[first + i] = s->row_ids.id[i];
        tm_buf_char(&s->mask, r->loss == TM_LOSS_ALL || s->row_weight[i] > 0);
    }
    s->ids.count = first + n;
    TM_TRY(tm_row_finish(r, s, first, line, err));
    return s->stats.examples > examples ? tm_row_decoded_bytes(r, s, err) : TM_OK;
}

tm_status tm_row_conversation(const tm_row_rules *r, tm_tokens *scratch, const json_t *row, json_t *messages,
                              int64_t line, tm_row_sink *s, tm_error *err)
{
    json_t *conversation;
    tm_status st = conversation_of(r, row, messages, &conversation, err);
    if (st == TM_OK)
        st = put_conversation(r, scratch, conversation, line, s, err);
    json_decref(conversation);
    return st;
}

/* --- messages and sharegpt --- */

/* Each element's role and text by the names of its two keys. */
static tm_status role_of(const tm_row_rules *r, const json_t *message, tm_column key, const char *list, size_t place,
                         const char **role, tm_error *err)
{
    const json_t *value = json_object_get(message, r->column[key]);
    if (!json_is_object(message))
        return tm_fail(err, TM_INPUT, "%s[%zu]: expected an object, found %s", list, place, tm_json_type_name(message));
    if (!json_is_string(value))
        return tm_fail(err, TM_INPUT, "%s[%zu].%s: expected text, found %s", list, place, r->column[key],
                       tm_json_type_name(value));
    *role = tm_row_role(r, json_string_value(value));
    return TM_OK;
}

/* The system message of the row, or of the entry, in front where the conversation has none. */
static tm_status put_system(const tm_row_rules *r, const json_t *row, const char *first_role, json_t *messages,
                            tm_error *err)
{
    const char *text;
    size_t size;
    TM_TRY(tm_row_text(r, row, TM_COLUMN_SYSTEM, TM_TEXT_OPTIONAL, &text, &size, err));
    if (strcmp(first_role, "system") == 0)
        return TM_OK;
    if (!size) {
        text = r->system;
        size = strlen(text);
    }
    return size ? tm_row_message(messages, "system", text, size, err) : TM_OK;
}

tm_status tm_row_dialogue(const tm_row_rules *r, tm_tokens *scratch, const json_t *row, int64_t line, tm_column column,
                          tm_column role_key, tm_row_put_message put, tm_row_sink *s, tm_error *err)
{
    const json_t *list;
    const char *name = r->column[column], *role = "";
    json_t *owned = NULL, *messages = NULL;
    tm_status st;
    TM_GO(tm_row_list(r, row, column, &list, &owned, err));
    if (!list || json_array_size(list) == 0)
        TM_GO(tm_fail(err, TM_INPUT, "%s: expected a list of messages, found %s", name, list ? "an empty one" : "nothing"));
    messages = json_array();
    if (!messages)
        TM_GO(tm_fail(err, TM_NO_MEMORY, "out of memory"));
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *message = json_array_get(list, i);
        TM_GO(role_of(r, message, role_key, name, i, &role, err));
        if (i == 0)
            TM_GO(put_system(r, row, role, messages, err));
        st = put(r, message, role, messages, err);
        if (st != TM_OK) {
            st = st == TM_INPUT ? tm_fail_prefix(err, st, "%s[%zu]", name, i) : st;
            goto out;
        }
    }
    st = tm_row_conversation(r, scratch, row, messages, line, s, err);
out:
    json_decref(messages);
    json_decref(owned);
    return st;
}
