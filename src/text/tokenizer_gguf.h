/* Tokenizers inside GGUF files, and the tokenizer files of a model that is written out of one. */
#ifndef TM_TEXT_TOKENIZER_GGUF_H
#define TM_TEXT_TOKENIZER_GGUF_H

#include "text/tokenizer.h"

/* What tm_tokenizer_open does with a GGUF file. */
tm_status tm_tokenizer_open_gguf(const char *path, tm_tokenizer **out, tm_error *err) TM_MUST_CHECK;
/* Writes the tokenizer.json that a model folder made out of `model` needs; of a model that is a folder
 * already nothing is written (tm_hf_copy_files copies its files). */
tm_status tm_tokenizer_write(const char *model, const char *dir, tm_error *err) TM_MUST_CHECK;

#endif
