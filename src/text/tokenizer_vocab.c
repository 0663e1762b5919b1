/* The vocabulary: token text to id by an open-addressing table, id to text by arrays. Texts lie in
 * one buffer and end in a zero, so they can be lent out as C strings. */
#include "text/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

/* Multiply and fold, eight bytes at a time; only the layout of tables depends on it. */
uint64_t tm_hash_bytes(const char *bytes, size_t size)
{
    uint64_t h = 0x9e3779b97f4a7c15u ^ size, word;
    for (; size >= 8; bytes += 8, size -= 8) {
        memcpy(&word, bytes, 8);
        unsigned __int128 wide = (unsigned __int128)(h ^ word) * 0xd6e8feb86659fd93u;
        h = (uint64_t)wide ^ (uint64_t)(wide >> 64);
    }
    word = 0;
    memcpy(&word, bytes, size);
    unsigned __int128 wide = (unsigned __int128)(h ^ word) * 0xa0761d6478bd642fu;
    return (uint64_t)wide ^ (uint64_t)(wide >> 64);
}

void tm_vocab_deinit(tm_vocab *vocab)
{
    tm_buf_deinit(&vocab->text);
    free(vocab->start);
    free(vocab->length);
    free(vocab->flags);
    free(vocab->slot);
    *vocab = (tm_vocab){0};
}

static size_t slot_of(const tm_vocab *vocab, const char *text, size_t size)
{
    size_t i = tm_hash_bytes(text, size) & (vocab->slots - 1);
    for (; vocab->slot[i] >= 0; i = (i + 1) & (vocab->slots - 1)) {
        int32_t id = vocab->slot[i];
        if (vocab->length[id] == size && !memcmp(vocab->text.data + vocab->start[id], text, size))
            break;
    }
    return i;
}

int32_t tm_vocab_find(const tm_vocab *vocab, const char *text, size_t size)
{
    return vocab->slots ? vocab->slot[slot_of(vocab, text, size)] : -1;
}

int32_t tm_vocab_find_model(const tm_vocab *vocab, const char *text, size_t size)
{
    int32_t id = tm_vocab_find(vocab, text, size);
    return id >= 0 && vocab->flags[id] & TM_TOKEN_MODEL ? id : -1;
}

static tm_status vocab_rehash(tm_vocab *vocab, tm_error *err)
{
    size_t slots = vocab->slots ? vocab->slots * 2 : 1024;
    int32_t *fresh;
    TM_TRY(TM_NEW(&fresh, slots, err));
    memset(fresh, 0xff, slots * sizeof *fresh);
    free(vocab->slot);
    vocab->slot = fresh;
    vocab->slots = slots;
    for (int32_t id = 0; id < vocab->ids; id++)
        if (vocab->start[id] != UINT32_MAX)
            vocab->slot[slot_of(vocab, vocab->text.data + vocab->start[id], vocab->length[id])] = id;
    return TM_OK;
}

static tm_status vocab_reach(tm_vocab *vocab, int32_t id, tm_error *err)
{
    if (id < vocab->ids)
        return TM_OK;
    size_t need = (size_t)id + 1, a = vocab->capacity, b = a, c = a;
    TM_TRY(TM_GROW(&vocab->start, &a, need, err));
    TM_TRY(TM_GROW(&vocab->length, &b, need, err));
    TM_TRY(TM_GROW(&vocab->flags, &c, need, err));
    vocab->capacity = a;
    for (; vocab->ids <= id; vocab->ids++) {
        vocab->start[vocab->ids] = UINT32_MAX;
        vocab->length[vocab->ids] = 0;
        vocab->flags[vocab->ids] = 0;
    }
    return TM_OK;
}

tm_status tm_vocab_add(tm_vocab *vocab, const char *text, size_t size, int32_t id, uint8_t flags, tm_error *err)
{
    if (2 * (vocab->used + 1) > vocab->slots)
        TM_TRY(vocab_rehash(vocab, err));
    TM_TRY(vocab_reach(vocab, id, err));
    size_t start = vocab->text.size;
    tm_buf_add(&vocab->text, text, size);
    tm_buf_char(&vocab->text, 0);
    TM_TRY(tm_buf_check(&vocab->text, err));
    if (vocab->text.size > UINT32_MAX)
        return tm_fail(err, TM_INPUT, "the tokens take more than 4 GiB");
    size_t slot = slot_of(vocab, text, size);
    vocab->start[id] = (uint32_t)start;
    vocab->length[id] = (uint32_t)size;
    vocab->flags[id] = flags;
    vocab->slot[slot] = id;
    vocab->used++;
    vocab->model_size += flags & TM_TOKEN_MODEL ? 1 : 0;
    return TM_OK;
}
