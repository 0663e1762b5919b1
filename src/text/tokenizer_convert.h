/* Other kinds of tokenizer files, for tokenizer*.c only. Each is rewritten as the tokenizer.json that says the
 * same, so that there is one reader, one set of checks and one meaning. */
#ifndef TM_TEXT_TOKENIZER_CONVERT_H
#define TM_TEXT_TOKENIZER_CONVERT_H

#include "base/names.h"
#include "io/sentencepiece.h"
#include "text/tokenizer_parts.h"

/* What tokenizer_config.json says beside the files; -1: nothing. */
typedef struct tm_convert_options {
    int legacy;             /* LlamaTokenizer: 0: a mark for a space stands before the first text only */
    int add_prefix_space;
    int add_bos, add_eos;
    int extra_ids;          /* T5: <extra_id_N> behind the pieces */
} tm_convert_options;
#define TM_CONVERT_DEFAULTS {.legacy = -1, .add_prefix_space = -1, .add_bos = -1, .add_eos = -1, .extra_ids = -1}

/* An entry of "added_tokens"; starts the list when first. */
void tm_convert_added(tm_buf *json, bool first, const char *text, size_t size, int64_t id, bool special);
/* "post_processor" that puts the tokens of these ids around a text; id -1: nothing. */
void tm_convert_post(tm_buf *json, int64_t before, int64_t after);

/* --- SentencePiece (tokenizer_sentencepiece.c) --- */

tm_status tm_convert_spm(const tm_spm *spm, const tm_convert_options *options, const char *name, tm_buf *json,
                         tm_error *err) TM_MUST_CHECK;

/* --- Byte-level BPE (tokenizer_bytelevel.c) --- */

/* How a family cuts text before byte-level BPE. */
typedef struct tm_family {
    const char *names[14];      /* of a class, a pre type of GGUF or a file; NULL behind the last */
    const char *pattern[6];     /* each an Isolated Split of what the one before left; NULL behind the last */
    bool compose;               /* NFC first */
    bool whole;                 /* a piece that is a token is that token, whatever its merges say */
} tm_family;
const tm_family *tm_family_named(const char *name); /* NULL: unknown */
const char *tm_family_cutting(const char *const *patterns); /* the first name of the family with these patterns (NULL behind the last) */
/* "normalizer", "pre_tokenizer" and "decoder" of it, a comma behind each. */
void tm_convert_family(const tm_family *family, bool prefix_space, tm_buf *json);

/* A list of ranks (tiktoken): base64, a space and the rank a line. special: what follows the last rank; NULL behind the last. */
tm_status tm_convert_ranks(const char *text, size_t size, const tm_family *family, const tm_names *special, int64_t before,
                           const char *name, tm_buf *json, tm_error *err) TM_MUST_CHECK;
/* Mistral's tekken.json: special tokens, then ranks, and the pattern. */
tm_status tm_convert_tekken(const char *path, tm_buf *json, tm_error *err) TM_MUST_CHECK;
/* vocab.json and merges.txt. */
tm_status tm_convert_merges(const char *vocab_path, const char *merges_path, const tm_family *family, bool prefix_space,
                            tm_buf *json, tm_error *err) TM_MUST_CHECK;

#endif
