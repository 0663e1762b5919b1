/* temper template: the text a chat template gives for a context. */
#include "base/json.h"
#include "text/chat_parts.h"

#include <stdlib.h>

/* The context without what probes set themselves. */
static json_t *beside_messages(const json_t *context)
{
    json_t *base = tm_json_copy(context, false);
    json_object_del(base, "messages");
    json_object_del(base, "tools");
    json_object_del(base, "add_generation_prompt");
    return base;
}

static tm_status adapted(const tm_jinja *template, const json_t *context, const char *date, json_t **frame, tm_error *err)
{
    const json_t *messages = json_object_get(context, "messages");
    tm_chat_shape shape;
    json_t *list;
    *frame = json_object();
    if (!json_is_array(messages))
        return TM_OK;
    json_t *base = beside_messages(context);
    tm_status st = base && *frame ? tm_chat_probe(template, base, date, &shape, err) : tm_fail(err, TM_NO_MEMORY, "out of memory");
    json_decref(base);
    if (st == TM_OK)
        st = tm_chat_adapt(&shape, messages, &list, err);
    if (st == TM_OK && json_object_set_new(*frame, "messages", list) != 0)
        st = tm_fail(err, TM_NO_MEMORY, "out of memory");
    return st;
}

tm_status tm_template(const tm_template_request *request, char **text, tm_error *err)
{
    tm_chat_source source = {0};
    tm_jinja *template = NULL;
    tm_jinja_output out = {0};
    json_t *context = NULL, *frame = NULL;
    tm_status st;
    *text = NULL;
    TM_GO(tm_chat_source_read(NULL, request->source, &source, err));
    TM_GO(tm_json_read(request->context, &context, err));
    if (!json_is_object(context))
        TM_GO(tm_fail(err, TM_INPUT, "%s: expected a JSON object", request->context));
    const tm_buf *chosen = &source.text[source.text[1].size && json_array_size(json_object_get(context, "tools"))];
    TM_GO(tm_jinja_parse(tm_buf_str(chosen), chosen->size, tm_buf_str(&source.name), &template, err));
    if (!request->as_is)
        TM_GO(adapted(template, context, request->date, &frame, err));
    const json_t *objects[] = {frame, context};
    tm_jinja_context values = {objects, 2, request->date};
    TM_GO(tm_jinja_render(template, &values, &out, err));
    *text = tm_strdup(tm_buf_str(&out.text), err);
    st = *text ? TM_OK : TM_NO_MEMORY;
out:
    tm_jinja_output_deinit(&out);
    tm_jinja_close(template);
    json_decref(frame);
    json_decref(context);
    tm_chat_source_deinit(&source);
    return st;
}
