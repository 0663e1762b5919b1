/* Stands in for chat templates until they are there. */
#include "text/chat.h"

tm_status tm_chat_open(const tm_chat_settings *settings, tm_chat **out, tm_error *err)
{
    (void)settings;
    *out = NULL;
    return tm_fail(err, TM_RECIPE, "chat templates are not there yet");
}
void tm_chat_close(tm_chat *chat) { (void)chat; }
void tm_chat_text_deinit(tm_chat_text *text) { (void)text; }
tm_status tm_chat_render(const tm_chat *chat, const json_t *row, tm_chat_text *out, tm_error *err)
{
    (void)chat, (void)row, (void)out;
    return tm_fail(err, TM_UNSUPPORTED, "chat templates are not there yet");
}
tm_status tm_chat_encode(const tm_chat *chat, tm_tokens *scratch, const tm_chat_text *text, tm_ids *ids,
                         float **weight, size_t *weight_capacity, int64_t *targets, tm_error *err)
{
    (void)chat, (void)scratch, (void)text, (void)ids, (void)weight, (void)weight_capacity, (void)targets;
    return tm_fail(err, TM_UNSUPPORTED, "chat templates are not there yet");
}
