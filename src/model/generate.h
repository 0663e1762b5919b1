/* Texts behind prompts, a token at a time, through the key/value cache: several at once, each in a slot of the cache. A
 * text that ends makes room for the next.
 *
 * Prompts are read together, in chunks that fill a batch; then all texts under way get one token each. Which texts are
 * beside a text never changes it: its logits have the same bits alone, first, last and between others. */
#ifndef TM_MODEL_GENERATE_H
#define TM_MODEL_GENERATE_H

#include "model/model.h"

enum { TM_TEXTS_AT_ONCE = 16 }; /* slots where nothing else is asked and memory allows */

/* A text to be written. Of prompt ids, n, past, replica and gates are read: at least one id, and fewer than a slot of the
 * cache has room for; gates_by_token: a row for every token of the prompt, and one more for what follows. ids are copied;
 * gates are borrowed until it has ended. past: the first so many ids, never all, are in slot 0 from a call before; only
 * of the first text of a call. */
typedef struct tm_text {
    tm_batch_item prompt;
    int64_t max_tokens; /* chosen at most; it ends when its slot is full, too */
    int64_t number;     /* the caller's name for it */
} tm_text;

/* Who gives texts and is told of them. */
typedef struct tm_texts {
    /* The next text; *there false: none now. Asked again whenever a slot is free, and after every `ended`. All texts of
     * a call are of one replica. */
    tm_status (*next)(void *context, tm_text *out, bool *there, tm_error *err);
    /* The token of a position (rows of a trained prompt included) of a text, from logits [vocab]. NULL: always the likeliest,
     * which the device finds (op most_likely): no logits come to the host then. */
    int32_t (*choose)(void *context, int64_t number, const float *logits, int64_t position);
    /* What was chosen; *more is true. False: the text ends here. */
    tm_status (*token)(void *context, int64_t number, int32_t id, bool *more, tm_error *err);
    /* The text has its last token. NULL: nobody wants to know. */
    tm_status (*ended)(void *context, int64_t number, tm_error *err);
    /* Before every token of the texts under way: whether to go on. NULL: always. */
    tm_status (*go_on)(void *context, tm_error *err);
    void *context;
} tm_texts;

/* Needs model->settings.cache_tokens > 0. As many texts at once as the cache has slots and the batch room for. Ends when
 * none is under way and there is no next. The batch may be the trainer's: its `cached` is reset. A prompt that does not
 * fit: TM_FAILED. */
tm_status tm_decode(tm_model *model, tm_batch *batch, const tm_texts *texts, tm_error *err) TM_MUST_CHECK;

/* The most likely token, by the rule of op most_likely: the lowest id wins, what is not a number does not. */
int32_t tm_most_likely(const float *logits, int64_t vocab);

#endif
