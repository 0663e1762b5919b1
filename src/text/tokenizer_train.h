/* Making a tokenizer: byte-level BPE learned from text, as Hugging Face's BpeTrainer learns it. */
#ifndef TM_TEXT_TOKENIZER_TRAIN_H
#define TM_TEXT_TOKENIZER_TRAIN_H

#include "base/pool.h"
#include "text/tokenizer_convert.h"

/* Pieces of text and how often each came, whatever the order and the number of threads. */
typedef struct tm_word_counts {
    tm_vocab words; /* id = index; bytes as they are */
    int64_t *count; /* [words.ids] */
    size_t capacity;
} tm_word_counts;
void tm_word_counts_deinit(tm_word_counts *counts);
tm_status tm_word_counts_add(tm_word_counts *counts, const char *text, size_t size, int64_t times,
                             tm_error *err) TM_MUST_CHECK;

/* The pieces into which tok cuts the file: a text, or the strings of a .jsonl (see docs/formats/tokenizer.md). */
tm_status tm_words_of_file(const tm_tokenizer *tok, const char *path, tm_pool *pool, tm_word_counts *out,
                           tm_error *err) TM_MUST_CHECK;

typedef struct tm_tokenizer_recipe {
    const tm_family *family;
    tm_names special; /* ids from 0 on */
    int64_t vocab;    /* tokens in all, at most */
    int64_t least;    /* how often a pair must come to be merged */
} tm_tokenizer_recipe;
/* The tokenizer.json with the merges learned from the words; without words, the one that cuts texts for counting. */
tm_status tm_tokenizer_learn(const tm_tokenizer_recipe *recipe, const tm_word_counts *counts, tm_buf *json,
                             tm_error *err) TM_MUST_CHECK;

#endif
