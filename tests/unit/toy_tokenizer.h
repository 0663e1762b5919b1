/* A tokenizer whose ids can be written down by hand: a byte is a token; then BOS and EOS. It stands in
 * for src/text/tokenizer.c in programs that test what is made of ids, not how ids are made. */
#ifndef TM_TESTS_TOY_TOKENIZER_H
#define TM_TESTS_TOY_TOKENIZER_H

#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

enum { TOY_BOS = 256, TOY_EOS = 257, TOY_VOCAB = 258 };

struct tm_tokenizer {
    bool adds_bos, adds_eos, has_eos;
};
struct tm_tokens {
    int unused;
};

void tm_ids_deinit(tm_ids *ids)
{
    free(ids->id);
    *ids = (tm_ids){0};
}

tm_status tm_tokens_create(const tm_tokenizer *tok, tm_tokens **out, tm_error *err)
{
    (void)tok;
    return TM_NEW(out, 1, err);
}
void tm_tokens_destroy(tm_tokens *scratch) { free(scratch); }

static tm_status toy_push(tm_ids *ids, int32_t id, tm_error *err)
{
    TM_TRY(TM_GROW(&ids->id, &ids->capacity, ids->count + 1, err));
    ids->id[ids->count++] = id;
    return TM_OK;
}

tm_status tm_tokenizer_encode(const tm_tokenizer *tok, tm_tokens *scratch, const char *text, size_t size,
                              bool add_special, tm_ids *ids, tm_error *err)
{
    (void)scratch;
    if (add_special && tok->adds_bos)
        TM_TRY(toy_push(ids, TOY_BOS, err));
    for (size_t i = 0; i < size; i++)
        TM_TRY(toy_push(ids, (unsigned char)text[i], err));
    return add_special && tok->adds_eos ? toy_push(ids, TOY_EOS, err) : TM_OK;
}

tm_status tm_tokenizer_decode(const tm_tokenizer *tok, const int32_t *ids, size_t count, bool skip_special,
                              tm_buf *text, tm_error *err)
{
    (void)tok, (void)skip_special;
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 256)
            tm_buf_char(text, (char)ids[i]);
    return tm_buf_check(text, err);
}

int32_t tm_tokenizer_vocab_size(const tm_tokenizer *tok)
{
    (void)tok;
    return TOY_VOCAB;
}
const char *tm_tokenizer_token(const tm_tokenizer *tok, int32_t id)
{
    (void)tok;
    return id == TOY_BOS ? "<bos>" : id == TOY_EOS ? "<eos>" : NULL;
}
bool tm_tokenizer_is_special(const tm_tokenizer *tok, int32_t id)
{
    (void)tok;
    return id >= TOY_BOS;
}
int32_t tm_tokenizer_bos(const tm_tokenizer *tok)
{
    (void)tok;
    return TOY_BOS;
}
int32_t tm_tokenizer_eos(const tm_tokenizer *tok) { return tok->has_eos ? TOY_EOS : -1; }

#endif
