/* SentencePiece models (`tokenizer.model`, `spiece.model`): the pieces and the settings that decide how text
 * becomes ids. Format: protobuf, sentencepiece_model.proto. */
#ifndef TM_IO_SENTENCEPIECE_H
#define TM_IO_SENTENCEPIECE_H

#include "base/buf.h"

enum {
    TM_SPM_PIECES = 4 << 20,    /* a model may have; real ones end near 300,000 */
    TM_SPM_PIECE_BYTES = 1024,  /* of one; every way to cut it in two is looked at */
    TM_SPM_FILE_BYTES = 64 << 20,
};
typedef enum tm_spm_model { TM_SPM_UNIGRAM = 1, TM_SPM_BPE, TM_SPM_WORD, TM_SPM_CHAR } tm_spm_model;
enum { TM_SPM_NORMAL = 1, TM_SPM_UNKNOWN, TM_SPM_CONTROL, TM_SPM_USER_DEFINED, TM_SPM_UNUSED, TM_SPM_BYTE };

typedef struct tm_spm_piece {
    const char *text; /* borrowed, not zero-terminated; valid UTF-8, not empty */
    uint32_t size;
    int type;
    float score; /* finite */
} tm_spm_piece;

typedef struct tm_spm {
    tm_spm_piece *piece; /* owned [count]; id = index; no text twice */
    size_t count, capacity;
    int model;                  /* tm_spm_model, or what the file says */
    int32_t unk, bos, eos, pad; /* -1: none; else below count */
    bool byte_fallback, whitespace_suffix;
    bool dummy_prefix, remove_extra_spaces, escape_spaces;
    const char *charsmap; /* borrowed */
    size_t charsmap_size;
} tm_spm;

/* What a file says that says nothing. */
tm_spm tm_spm_defaults(void);
/* Texts are borrowed from data. name (a path) goes into messages. */
tm_status tm_spm_parse(const void *data, size_t size, const char *name, tm_spm *out, tm_error *err) TM_MUST_CHECK;
/* Checks and settles what stands in piece[] and the ids: for models that come from elsewhere. */
tm_status tm_spm_settle(tm_spm *spm, const char *name, tm_error *err) TM_MUST_CHECK;
void tm_spm_deinit(tm_spm *spm);

#endif
