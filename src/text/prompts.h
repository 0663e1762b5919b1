/* Prompts of a file: how texts begin that a model is to go on with. */
#ifndef TM_TEXT_PROMPTS_H
#define TM_TEXT_PROMPTS_H

#include "text/chat.h"

typedef struct tm_prompts {
    tm_ids *item; /* [count], none is empty */
    int64_t count;
    size_t capacity;
} tm_prompts;

/* Reads rows: {"messages": [...]}, up to where the assistant is to speak (an assistant's last turn is left out; needs chat,
 * which may be NULL); {"prompt": "..."}; {"text": "..."}. What else a row holds is not looked at. TM_INPUT names file and
 * line. */
tm_status tm_prompts_load(const char *path, const tm_tokenizer *tok, const tm_chat *chat, int64_t vocab_size, tm_prompts *out, tm_error *err) TM_MUST_CHECK;
void tm_prompts_deinit(tm_prompts *prompts);

#endif
