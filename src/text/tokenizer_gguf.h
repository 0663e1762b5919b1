/* Tokenizers inside GGUF files, and the tokenizer files of a model that is written out of one. */
#ifndef TM_TEXT_TOKENIZER_GGUF_H
#define TM_TEXT_TOKENIZER_GGUF_H

#include "io/gguf_write.h"
#include "text/tokenizer.h"

#include <jansson.h>

/* The tokenizer in an open file. */
tm_status tm_tokenizer_from_gguf(const tm_gguf *gguf, tm_tokenizer **out, tm_error *err) TM_MUST_CHECK;
/* What tm_tokenizer_open does with a GGUF file. */
tm_status tm_tokenizer_open_gguf(const char *path, tm_tokenizer **out, tm_error *err) TM_MUST_CHECK;
/* Writes the tokenizer.json that a model folder made out of `model` needs; of a model that is a folder
 * already nothing is written (tm_hf_copy_files copies its files). */
tm_status tm_tokenizer_write(const char *model, const char *dir, tm_error *err) TM_MUST_CHECK;

/* tm_tokenizer_open of a folder, and the tree of the tokenizer.json that its files say or stand for: json_decref. */
tm_status tm_tokenizer_open_tree(const char *dir, tm_tokenizer **out, json_t **tree, tm_error *err) TM_MUST_CHECK;
/* Appends tokenizer.* of a model, for a vocabulary of so many rows; config: its config.json. *found false:
 * the model has no tokenizer, and the file says so. */
tm_status tm_tokenizer_put_gguf(tm_gguf_writer *w, const char *model, const json_t *config, int64_t rows, bool *found,
                                tm_error *err) TM_MUST_CHECK;

#endif
