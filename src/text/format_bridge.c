/* Format bridge: {"scene", "text"}: two examples a row, scene to text and text to scene, each under an
 * instruction of its own, so that one model goes both ways. With a chat template the instruction and what it
 * is about are what the user says; without one they stand before the answer as they are. */
#include "text/rows.h"

#include <string.h>

static const char *const instructions[2] = {
    [TM_BRIDGE_TO_TEXT] = "Tell this scene as a text.",
    [TM_BRIDGE_TO_SCENE] = "Write down the scene of this text.",
};

void tm_bridge_prompt(tm_bridge_way way, const char *from, size_t size, tm_buf *out)
{
    tm_buf_text(out, instructions[way]);
    tm_buf_text(out, "\n\n");
    tm_buf_add(out, from, size);
}

static tm_status one_way(const tm_row_rules *r, tm_tokens *scratch, const tm_buf *prompt, const char *answer, size_t size,
                         const json_t *row, int64_t line, tm_row_sink *s, tm_error *err)
{
    if (!r->chat) {
        tm_row_piece pieces[] = {{tm_buf_str(&s->text), s->text.size, false, false}, {answer, size, true, true}};
        return tm_row_pieces(r, scratch, pieces, 2, line, s, err);
    }
    json_t *messages = json_array();
    tm_status st;
    if (!messages)
        TM_GO(tm_fail(err, TM_NO_MEMORY, "out of memory"));
    if (*r->system)
        TM_GO(tm_row_message(messages, "system", r->system, strlen(r->system), err));
    TM_GO(tm_row_message(messages, "user", tm_buf_str(prompt), prompt->size, err));
    TM_GO(tm_row_message(messages, "assistant", answer, size, err));
    st = tm_row_conversation(r, scratch, row, messages, line, s, err);
out:
    json_decref(messages);
    return st;
}

tm_status tm_format_bridge(const tm_row_rules *r, tm_tokens *scratch, const json_t *row, int64_t line, tm_row_sink *s,
                           tm_error *err)
{
    const char *side[2];
    size_t size[2];
    TM_TRY(tm_row_text(r, row, TM_COLUMN_SCENE, TM_TEXT_FILLED, &side[0], &size[0], err));
    TM_TRY(tm_row_text(r, row, TM_COLUMN_TEXT, TM_TEXT_FILLED, &side[1], &size[1], err));
    for (int way = 0; way < 2; way++) {
        tm_buf_clear(&s->text);
        if (!r->chat && *r->system)
            tm_buf_text(&s->text, r->system);
        tm_bridge_prompt((tm_bridge_way)way, side[way], size[way], &s->text);
        if (!r->chat)
            tm_buf_text(&s->text, "\n\n");
        TM_TRY(tm_buf_check(&s->text, err));
        TM_TRY(one_way(r, scratch, &s->text, side[!way], size[!way], row, line, s, err));
    }
    return TM_OK;
}
