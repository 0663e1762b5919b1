/* Tokens behind a prompt, one at a time, through the key/value cache. */
#ifndef TM_MODEL_GENERATE_H
#define TM_MODEL_GENERATE_H

#include "model/model.h"

/* Chooses the token of a position from logits [vocab]; below 0 ends the text. */
typedef int32_t (*tm_choose_fn)(void *context, const float *logits, int64_t position);

/* Needs model->settings.cache_tokens > 0; ends when the cache is full, too. Of prompt ids, n, past, replica and gates
 * are read: at least one id, and fewer than the cache has room for (TM_FAILED); the first `past` of them, never all, are
 * in the cache from a call before; gates_by_token: a row for every token of the prompt, and one more for what follows.
 * The batch may be the trainer's: its `cached` is reset. */
tm_status tm_decode(tm_model *model, tm_batch *batch, const tm_batch_item *prompt, int64_t max_tokens, tm_choose_fn choose,
                    void *context, tm_error *err) TM_MUST_CHECK;

/* The most likely token; the lowest id wins. */
int32_t tm_most_likely(const float *logits, int64_t vocab);

#endif
