/* Tokenizers: text to ids and back, equal to Hugging Face `tokenizers` for what is supported.
 * docs/formats/tokenizer.md says which kinds are. A tokenizer is immutable after opening and may be
 * used by many threads, each with its own tm_tokens scratch. */
#ifndef TM_TEXT_TOKENIZER_H
#define TM_TEXT_TOKENIZER_H

#include "base/buf.h"
#include "base/hash.h"

typedef struct tm_tokenizer tm_tokenizer;

typedef struct tm_ids {
    int32_t *id; /* owned */
    size_t count, capacity;
} tm_ids;
void tm_ids_deinit(tm_ids *ids);

/* A model folder: the first of tokenizer.json, tokenizer.model, spiece.model, sentencepiece.bpe.model,
 * tekken.json, *.tiktoken, vocab.json with merges.txt, and what tokenizer_config.json, special_tokens_map.json, added_tokens.json,
 * generation_config.json and config.json say. Or such a file itself, without them. */
tm_status tm_tokenizer_open(const char *path, tm_tokenizer **out, tm_error *err) TM_MUST_CHECK;
bool tm_tokenizer_is_in(const char *model); /* the folder has one of these files; or it is a GGUF file */
/* From the text of a tokenizer.json; name stands for it in messages. BOS and EOS stay unknown. */
tm_status tm_tokenizer_parse(const char *text, size_t size, const char *name, tm_tokenizer **out, tm_error *err) TM_MUST_CHECK;
void tm_tokenizer_close(tm_tokenizer *tok);

/* A tokenizer that lies in arrays, as in a GGUF file: tokenizer.ggml.* of the format's specification. */
typedef struct tm_token_text {
    const char *text; /* not zero-terminated */
    size_t size;
} tm_token_text;
enum { /* of SentencePiece and of GGUF alike */
    TM_PIECE_NORMAL = 1, TM_PIECE_UNKNOWN, TM_PIECE_CONTROL, TM_PIECE_USER_DEFINED, TM_PIECE_UNUSED, TM_PIECE_BYTE
};
typedef struct tm_tokenizer_parts { /* everything is borrowed for the call */
    const char *model;      /* "llama": SentencePiece BPE by scores; "gpt2": byte-level BPE by merges; "t5": Unigram */
    const char *pre;        /* how "gpt2" splits text: gpt-2, qwen2, llama-bpe, ...; NULL: gpt-2 */
    const tm_token_text *token;  /* [count] id = index */
    size_t count;
    const float *score;     /* [count]; llama, t5 */
    const int32_t *type;    /* [count] TM_PIECE_*; NULL: all normal */
    const tm_token_text *merge;  /* [merge_count] "a b"; gpt2 */
    size_t merge_count;
    const void *charsmap;   /* precompiled_charsmap (t5); NULL: none */
    size_t charsmap_size;
    int32_t bos, eos, unk;  /* -1: none */
    int add_bos, add_eos;   /* 0, 1; -1: not said, the model's custom holds (llama: BOS, t5: EOS) */
    int add_space_prefix;   /* 0, 1; -1: not said (llama, t5: 1) */
    int remove_extra_whitespaces; /* 0, 1; -1: not said (t5: 1) */
} tm_tokenizer_parts;
#define TM_TOKENIZER_PARTS_NONE {.bos = -1, .eos = -1, .unk = -1, .add_bos = -1, .add_eos = -1, .add_space_prefix = -1, \
                                 .remove_extra_whitespaces = -1}
/* name (a path) goes into messages. The hash is that of the tokenizer.json that says the same. */
tm_status tm_tokenizer_from_parts(const tm_tokenizer_parts *parts, const char *name, tm_tokenizer **out, tm_error *err) TM_MUST_CHECK;
/* That tokenizer.json, appended to json: what a model folder made out of the file should hold. */
tm_status tm_tokenizer_parts_json(const tm_tokenizer_parts *parts, const char *name, tm_buf *json, tm_error *err) TM_MUST_CHECK;

/* Per-thread working memory and caches; never shared between threads. */
typedef struct tm_tokens tm_tokens;
tm_status tm_tokens_create(const tm_tokenizer *tok, tm_tokens **out, tm_error *err) TM_MUST_CHECK;
void tm_tokens_destroy(tm_tokens *scratch);

/* Appends the ids of text (UTF-8; invalid bytes become U+FFFD as Python's "replace"). add_special:
 * what the post-processor adds (BOS, EOS). Special tokens written in the text are recognised. */
tm_status tm_tokenizer_encode(const tm_tokenizer *tok, tm_tokens *scratch, const char *text, size_t size,
                              bool add_special, tm_ids *ids, tm_error *err) TM_MUST_CHECK;

/* Appends the text of ids. skip_special leaves out special tokens. An id outside the vocabulary is
 * an error. Incomplete UTF-8 becomes U+FFFD. */
tm_status tm_tokenizer_decode(const tm_tokenizer *tok, const int32_t *ids, size_t count, bool skip_special,
                              tm_buf *text, tm_error *err) TM_MUST_CHECK;

/* Streaming decode: feeds one id, appends to text whatever has become complete characters (never a
 * part of one); flush at the end appends the rest. */
typedef struct tm_decode_stream {
    tm_ids pending;
    size_t context; /* of pending: ids whose text has been given, kept for what follows them */
    size_t printed; /* bytes of pending's text already given */
} tm_decode_stream; /* zeroed: a fresh one */
tm_status tm_decode_stream_push(tm_decode_stream *s, const tm_tokenizer *tok, int32_t id, tm_buf *text, tm_error *err) TM_MUST_CHECK;
tm_status tm_decode_stream_flush(tm_decode_stream *s, const tm_tokenizer *tok, tm_buf *text, tm_error *err) TM_MUST_CHECK;
void tm_decode_stream_deinit(tm_decode_stream *s);

int32_t tm_tokenizer_vocab_size(const tm_tokenizer *tok); /* highest id + 1 */
int32_t tm_tokenizer_bos(const tm_tokenizer *tok);        /* -1: none */
int32_t tm_tokenizer_eos(const tm_tokenizer *tok);        /* -1: none */
int32_t tm_tokenizer_find(const tm_tokenizer *tok, const char *token); /* -1: none */
const char *tm_tokenizer_token(const tm_tokenizer *tok, int32_t id);   /* NULL: none; as in the file */
bool tm_tokenizer_is_special(const tm_tokenizer *tok, int32_t id);
const tm_sha256 *tm_tokenizer_hash(const tm_tokenizer *tok); /* of tokenizer.json */

#endif
