/* Inside chats: what a template can take, and the pieces that chat.c is made of. */
#ifndef TM_TEXT_CHAT_PARTS_H
#define TM_TEXT_CHAT_PARTS_H

#include "text/chat.h"
#include "text/jinja.h"

/* --- What a template can take, found by rendering small conversations (chat_adapt.c) --- */

typedef struct tm_chat_shape {
    bool system;           /* shows system messages */
    bool tool_calls;       /* shows an assistant's tool calls, ... */
    bool tool_responses;   /* ... and what the tools answered */
    bool object_arguments; /* arguments of calls must be objects, not JSON text */
    bool text_arguments;   /* the other way round */
    bool null_content;     /* a message without content is no error and not "None" */
    bool text_content;     /* content may be text */
    bool part_content;     /* content may be a list of {"type": "text", "text"} */
} tm_chat_shape;

/* base: variables beside the messages (special tokens), NULL: none. */
tm_status tm_chat_probe(const tm_jinja *template, const json_t *base, const char *date, tm_chat_shape *out,
                        tm_error *err) TM_MUST_CHECK;
/* A new list of messages that says the same in a way that the template shows; owned by the caller. */
tm_status tm_chat_adapt(const tm_chat_shape *shape, const json_t *messages, json_t **out, tm_error *err) TM_MUST_CHECK;
/* reasoning_content, thinking and reasoning of a message stand for each other. */
tm_status tm_chat_alias_reasoning(json_t *messages, tm_error *err) TM_MUST_CHECK;

/* --- Where templates come from (chat_templates.c) --- */

typedef struct tm_chat_source {
    tm_buf text[2]; /* of the template; of the one for rows with tools, "" when there is none */
    tm_buf name;    /* for messages */
} tm_chat_source;
void tm_chat_source_deinit(tm_chat_source *source);
tm_status tm_chat_source_read(const char *model, const char *template, tm_chat_source *out, tm_error *err) TM_MUST_CHECK;

/* --- What the assistant said, by rendering prefixes (chat_spans.c) --- */

typedef struct tm_chat_turns {
    const tm_jinja *template;
    const json_t *messages; /* adapted */
    const json_t *rest;     /* {"tools", ...}: variables other than messages and add_generation_prompt */
    const json_t *row, *tokens;
    const char *date;
    const tm_buf *specials; /* special tokens' texts, each followed by a zero byte; may be empty */
} tm_chat_turns;

/* The first `count` messages, with message `count - 1` replaced by `last` when that is given. */
tm_status tm_chat_turns_render(const tm_chat_turns *turns, size_t count, const json_t *last, bool generate,
                               tm_jinja_output *out, tm_error *err) TM_MUST_CHECK;
/* Spans of text->text, which is the rendering of all messages. */
tm_status tm_chat_turns_find(const tm_chat_turns *turns, tm_chat_text *text, tm_error *err) TM_MUST_CHECK;
tm_status tm_chat_span_add(tm_chat_text *text, size_t begin, size_t end, tm_error *err) TM_MUST_CHECK;
/* Is this message one to learn: the assistant's, and not marked "weight": 0 or "train": false? */
bool tm_chat_is_turn(const json_t *message);
bool tm_chat_is_trained(const json_t *message);

#endif
