/* Conversations: from rows of messages to text, to the bytes of it that the assistant said, to token ids
 * and which of them are learned. docs/formats/chat.md is the contract with users.
 *
 * A chat is immutable after opening and may be used by many threads; what a row becomes lives in the
 * caller's tm_chat_text, which is reused from row to row. */
#ifndef TM_TEXT_CHAT_H
#define TM_TEXT_CHAT_H

#include "text/tokenizer.h"

#include <jansson.h>

typedef struct tm_chat tm_chat;

typedef struct tm_chat_settings {
    const char *model;       /* folder whose template is used; NULL: none */
    const char *template;    /* in its place: the name of a template of the folder or of ours (chatml, llama3,
                                ...), or a file (.jinja, a tokenizer_config.json, Saiga's JSON); NULL: none */
    const tm_tokenizer *tok; /* borrowed until close; NULL: rendering alone, no ids */
    const char *date;        /* what strftime_now says, YYYY-MM-DD; NULL: 2024-07-26 */
} tm_chat_settings;

/* TM_RECIPE when there is no template (the message says which names exist), TM_INPUT when it is damaged. */
tm_status tm_chat_open(const tm_chat_settings *settings, tm_chat **out, tm_error *err) TM_MUST_CHECK;
void tm_chat_close(tm_chat *chat);

/* Names of our templates, "chatml, llama3, ...", for messages. */
const char *tm_chat_names(void);

typedef struct tm_chat_span {
    size_t begin, end; /* bytes of text; end is behind the last */
} tm_chat_span;

/* A conversation as the model reads it. Zeroed: a fresh one. */
typedef struct tm_chat_text {
    tm_buf text;
    tm_chat_span *span; /* what the assistant said and the end of its turns: ascending, apart, not empty */
    size_t spans, span_capacity;
} tm_chat_text;
void tm_chat_text_deinit(tm_chat_text *text);

/* Renders a row: {"messages": [{"role", "content" (text, or a list of parts), "tool_calls",
 * "reasoning_content", ...}, ...], "tools": [...], and whatever else the template asks for}. Roles are
 * system, user, assistant, tool: others are the template's business. Failures name neither file nor line
 * of the row, only the message's place in it. */
tm_status tm_chat_render(const tm_chat *chat, const json_t *row, tm_chat_text *out, tm_error *err) TM_MUST_CHECK;

/* The same without spans, up to where the assistant is to speak (add_generation_prompt). */
tm_status tm_chat_prompt(const tm_chat *chat, const json_t *row, tm_chat_text *out, tm_error *err) TM_MUST_CHECK;

/* Appends the ids of a rendered text, tokenised once and whole: nothing is put around it (a template writes
 * its own BOS), except EOS behind an assistant's last turn that ends without a special token. weight
 * (may be NULL) grows beside ids and gets 1 for what is learned, 0 for the rest; *targets counts the ones,
 * without the first token. A token is learned when it holds a byte of a span. */
tm_status tm_chat_encode(const tm_chat *chat, tm_tokens *scratch, const tm_chat_text *text, tm_ids *ids,
                         float **weight, size_t *weight_capacity, int64_t *targets, tm_error *err) TM_MUST_CHECK;

/* The special token that the template puts behind an answer; -1: none, or the template refuses a question and an answer. */
tm_status tm_chat_end(const tm_chat *chat, tm_tokens *scratch, int32_t *out, tm_error *err) TM_MUST_CHECK;

#endif
