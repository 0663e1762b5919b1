/* The parts of a tokenizer, for tokenizer*.c only. Text runs through them in this order:
 *   added tokens written as they are  ->  normaliser  ->  added tokens in normalised text
 *   ->  pre-tokeniser (pieces)  ->  model (ids)  ->  post-processor (ids around the text).
 * Each part is parsed once, is immutable afterwards, and works in the caller's tm_tokens. */
#ifndef TM_TEXT_TOKENIZER_PARTS_H
#define TM_TEXT_TOKENIZER_PARTS_H

#include "base/json.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

enum {
    TM_TOKEN_IDS = 4 << 20,      /* ids a tokenizer may have; real ones end near 300,000 */
    TM_TOKENIZER_STEPS = 64,     /* steps of a normaliser, pre-tokeniser or decoder, nested ones counted */
    TM_TOKENIZER_NESTING = 16,   /* Sequence in Sequence */
    TM_PATTERN_BYTES = 1 << 16,  /* of a regular expression */
    TM_NORMAL_GROWTH = 64,       /* times as long, and a megabyte, normalised text may be; real ones stay under 18 */
};
static inline bool tm_normal_fits(size_t before, size_t now) { return now >> 20 <= 1 + before / ((1 << 20) / TM_NORMAL_GROWTH); }
tm_status tm_normal_too_long(size_t before, tm_error *err) TM_MUST_CHECK; /* the failure when it does not */

/* --- Vocabulary: token text <-> id (tokenizer_vocab.c) --- */

enum { TM_TOKEN_MODEL = 1, TM_TOKEN_ADDED = 2, TM_TOKEN_SPECIAL = 4 };

typedef struct tm_vocab {
    tm_buf text;        /* all tokens, each with a terminating zero */
    uint32_t *start;    /* [ids] into text; UINT32_MAX: no such token */
    uint32_t *length;   /* [ids] bytes */
    uint8_t *flags;     /* [ids] TM_TOKEN_* */
    int32_t ids;        /* highest id + 1 */
    int32_t model_size; /* tokens of the model */
    int32_t *slot;      /* [slots] id or -1; open addressing */
    size_t slots;
    size_t used, capacity; /* of slot; of start, length and flags */
} tm_vocab;

void tm_vocab_deinit(tm_vocab *vocab);
/* Text and id must both be new. */
tm_status tm_vocab_add(tm_vocab *vocab, const char *text, size_t size, int32_t id, uint8_t flags, tm_error *err) TM_MUST_CHECK;
int32_t tm_vocab_find(const tm_vocab *vocab, const char *text, size_t size); /* -1: none */
int32_t tm_vocab_find_model(const tm_vocab *vocab, const char *text, size_t size);
uint64_t tm_hash_bytes(const char *bytes, size_t size);

/* --- Finders: where a pattern matches (tokenizer_find.c) --- */

typedef struct tm_scanner tm_scanner;
typedef enum tm_find_kind { TM_FIND_TEXT, TM_FIND_REGEX, TM_FIND_SCAN, TM_FIND_SET } tm_find_kind;

typedef struct tm_finder {
    tm_find_kind kind;
    tm_buf text;         /* TEXT */
    void *code;          /* REGEX: pcre2_code */
    tm_scanner *scanner; /* SCAN */
    tm_runes set;        /* SET: one character of it */
    bool bits[128];      /* SET: the same for ASCII */
} tm_finder;

/* A search through one text. */
typedef struct tm_find {
    const tm_finder *finder;
    const char *text;
    size_t size, at;
    size_t last_end; /* an empty match is not taken where the last match ended */
    bool any, done;
} tm_find;

/* What a thread needs to match: PCRE2's working memory. */
typedef struct tm_match_memory {
    void *data, *context, *stack;
} tm_match_memory;
tm_status tm_match_memory_init(tm_match_memory *memory, tm_error *err) TM_MUST_CHECK;
void tm_match_memory_deinit(tm_match_memory *memory);

tm_status tm_finder_text(tm_finder *finder, const char *text, size_t size, const char *name, tm_error *err) TM_MUST_CHECK;
/* scan: patterns in wide use are matched by code of our own, which gives what PCRE2 would. */
tm_status tm_finder_regex(tm_finder *finder, const char *pattern, size_t size, bool scan, const char *name, tm_error *err) TM_MUST_CHECK;
/* Takes the set over. */
tm_status tm_finder_set(tm_finder *finder, tm_runes *set, tm_error *err) TM_MUST_CHECK;
void tm_finder_deinit(tm_finder *finder);
void tm_find_start(tm_find *find, const tm_finder *finder, const char *text, size_t size);
/* The next match in *start, *end; *found false: no more. */
tm_status tm_find_next(tm_find *find, tm_match_memory *memory, size_t *start, size_t *end, bool *found, tm_error *err) TM_MUST_CHECK;
/* {"String": ...} or {"Regex": ...}. */
tm_status tm_finder_parse(tm_finder *finder, const json_t *pattern, bool scan, const char *name, tm_error *err) TM_MUST_CHECK;

extern const char tm_gpt2_pattern[];

/* Scanners of well-known patterns (tokenizer_scan.c). *out NULL: no scanner for this pattern. */
tm_status tm_scanner_create(const char *pattern, size_t size, tm_scanner **out, tm_error *err) TM_MUST_CHECK;
void tm_scanner_destroy(tm_scanner *scanner);
size_t tm_scanner_next(const tm_scanner *scanner, const char *text, size_t size, size_t at); /* end of the match at `at` */

/* --- Byte-level alphabet: every byte as a printable character (tokenizer_split.c) --- */

uint32_t tm_byte_char(uint8_t byte);
void tm_byte_chars(const char *bytes, size_t size, tm_buf *out);
int tm_char_byte(uint32_t code); /* -1: not of the alphabet */

/* --- Precompiled character maps (tokenizer_charsmap.c) --- */

typedef struct tm_charsmap {
    uint32_t *unit; /* [units] of the double array */
    size_t units;   /* 0: maps nothing */
    tm_buf texts;
    bool longest;   /* SentencePiece's own search */
} tm_charsmap;
tm_status tm_charsmap_parse_json(tm_charsmap *map, const json_t *json, const char *name, tm_error *err) TM_MUST_CHECK;
void tm_charsmap_deinit(tm_charsmap *map);
/* What vanishes at the start moves no offset with the peer, so "first" stays as it was. */
tm_status tm_charsmap_run(const tm_charsmap *map, const char *text, size_t size, tm_buf *out, bool *changed, tm_error *err) TM_MUST_CHECK;

/* --- Normaliser (tokenizer_normalize.c) --- */

typedef enum tm_norm_kind {
    TM_NORM_FORM, TM_NORM_LOWER, TM_NORM_PREPEND, TM_NORM_REPLACE, TM_NORM_STRIP, TM_NORM_CHARSMAP, TM_NORM_ACCENTS, TM_NORM_NMT,
    TM_NORM_BYTES
} tm_norm_kind;

typedef struct tm_norm {
    tm_norm_kind kind;
    tm_form form;
    bool left, right;
    tm_buf content;
    tm_finder finder;
    tm_charsmap map;
} tm_norm;

typedef struct tm_normalizer {
    tm_norm *step;
    size_t count, capacity;
} tm_normalizer;

tm_status tm_normalizer_parse(tm_normalizer *n, const json_t *json, const char *name, tm_error *err) TM_MUST_CHECK;
void tm_normalizer_deinit(tm_normalizer *n);
/* *text, *size become the normalised text: the input itself when nothing changed, else a or b. *first
 * stays true when its first character came out of the input's first. */
tm_status tm_normalizer_run(const tm_normalizer *n, tm_match_memory *memory, tm_buf *a, tm_buf *b, const char **text, size_t *size,
                            bool *first, tm_error *err) TM_MUST_CHECK;

/* --- Pre-tokeniser (tokenizer_split.c) --- */

typedef enum tm_split_kind { TM_SPLIT_FIND, TM_SPLIT_PREFIX, TM_SPLIT_METASPACE, TM_SPLIT_BYTES } tm_split_kind;
typedef enum tm_behavior {
    TM_ISOLATED, TM_REMOVED, TM_MERGED_WITH_PREVIOUS, TM_MERGED_WITH_NEXT, TM_CONTIGUOUS
} tm_behavior;
typedef enum tm_prepend { TM_PREPEND_ALWAYS, TM_PREPEND_FIRST, TM_PREPEND_NEVER } tm_prepend;

typedef struct tm_split {
    tm_split_kind kind;
    tm_finder finder;     /* FIND */
    tm_behavior behavior; /* FIND */
    bool invert;          /* FIND */
    tm_prepend prepend;   /* METASPACE */
    char mark[5];         /* METASPACE: the character that stands for a space */
} tm_split;

typedef struct tm_splitter {
    tm_split *step;
    size_t count, capacity;
} tm_splitter;

tm_status tm_splitter_parse(tm_splitter *s, const json_t *json, const char *name, tm_error *err) TM_MUST_CHECK;
void tm_splitter_deinit(tm_splitter *s);
/* The last step, and no other, is BYTES: a model that reads bytes can do without it. */
bool tm_splitter_ends_in_bytes(const tm_splitter *s);

/* Calls take for every piece in order. first: text starts at the very start of the input. buffers:
 * one for each step. */
typedef struct tm_splitting {
    const tm_splitter *splitter;
    tm_match_memory *memory;
    tm_buf *buffers;
    tm_status (*take)(void *context, const char *piece, size_t size, tm_error *err);
    void *context;
    tm_error *err;
} tm_splitting;
tm_status tm_splitter_run(const tm_splitting *run, size_t step, const char *text, size_t size, bool first) TM_MUST_CHECK;

/* --- Models: one row of tokenizer.c's table and one file each --- */

typedef struct tm_model_kind {
    const char *type;
    tm_status (*parse)(const json_t *json, const char *name, tm_vocab *vocab, void **model, tm_error *err);
    bool (*takes_bytes)(const void *model); /* can read pieces as raw bytes instead of byte-level characters */
    tm_status (*take_bytes)(void *model, const tm_vocab *vocab, tm_error *err); /* and from now on does */
    tm_status (*scratch_create)(const void *model, void **scratch, tm_error *err);
    void (*scratch_destroy)(void *scratch);
    tm_status (*encode)(const void *model, const tm_vocab *vocab, void *scratch, const char *piece, size_t size,
                        tm_ids *ids, tm_error *err);
    void (*destroy)(void *model);
} tm_model_kind;

extern const tm_model_kind tm_model_bpe;     /* tokenizer_bpe.c */
extern const tm_model_kind tm_model_unigram; /* tokenizer_unigram.c */

static inline tm_status tm_ids_room(tm_ids *ids, size_t more, tm_error *err)
{
    return TM_GROW(&ids->id, &ids->capacity, ids->count + more, err);
}

/* --- Added tokens (tokenizer_added.c) --- */

typedef struct tm_added_token {
    int32_t id;
    bool single_word, left, right, normalized, special;
} tm_added_token;

typedef struct tm_trie {
    struct tm_trie_node {
        int32_t child, sibling, value; /* -1: none; value: index of the added token */
        uint8_t byte;
    } *node;
    size_t count, capacity;
    int32_t root[256];
} tm_trie;

typedef struct tm_added {
    tm_added_token *token;
    size_t count, capacity;
    tm_trie written, normal; /* searched in the text as written; in normalised text */
} tm_added;

tm_status tm_added_parse(tm_added *added, const json_t *list, const char *name, tm_vocab *vocab, const tm_normalizer *n,
                         tm_match_memory *memory, tm_error *err) TM_MUST_CHECK;
void tm_added_deinit(tm_added *added);
/* Calls take for every stretch of text: id >= 0: it is that token; -1: plain text. */
typedef struct tm_stretches {
    const tm_added *added;
    const tm_trie *trie;
    tm_status (*take)(void *context, const char *text, size_t size, bool first, int32_t id, tm_error *err);
    void *context;
} tm_stretches;
tm_status tm_added_split(const tm_stretches *run, const char *text, size_t size, bool first, tm_error *err) TM_MUST_CHECK;

/* --- Post-processor and decoder (tokenizer_decode.c) --- */

typedef struct tm_post {
    tm_ids before, after;
} tm_post;
tm_status tm_post_parse(tm_post *post, const json_t *json, const char *name, const tm_vocab *vocab, tm_error *err) TM_MUST_CHECK;
void tm_post_deinit(tm_post *post);

typedef enum tm_decode_kind {
    TM_DECODE_BYTES, TM_DECODE_BYTE_FALLBACK, TM_DECODE_FUSE, TM_DECODE_STRIP, TM_DECODE_REPLACE, TM_DECODE_METASPACE,
    TM_DECODE_SUFFIX
} tm_decode_kind;

typedef struct tm_decode {
    tm_decode_kind kind;
    tm_finder finder;    /* REPLACE */
    tm_buf content;      /* REPLACE: the new text; SUFFIX: the end-of-word mark; STRIP, METASPACE: the character */
    int64_t start, stop; /* STRIP: characters at most */
    bool prefix;         /* METASPACE: the first mark is no space */
} tm_decode;

typedef struct tm_decoder {
    tm_decode *step;
    size_t count, capacity;
    bool given; /* without a decoder tokens are joined by spaces */
} tm_decoder;
tm_status tm_decoder_parse(tm_decoder *d, const json_t *json, const char *name, tm_error *err) TM_MUST_CHECK;
void tm_decoder_deinit(tm_decoder *d);
tm_status tm_decoder_run(const tm_decoder *d, const tm_vocab *vocab, const int32_t *ids, size_t count, bool skip_special,
                         tm_buf *text, tm_error *err) TM_MUST_CHECK;

struct tm_tokenizer {
    tm_vocab vocab;
    tm_added added;
    tm_normalizer normalizer;
    tm_splitter splitter;
    const tm_model_kind *kind;
    void *model;
    tm_post post;
    tm_decoder decoder;
    int32_t bos, eos;
    bool clean_up; /* decoded text: no space before English punctuation */
    tm_sha256 hash;
};

/* From the tree of a tokenizer.json. */
tm_status tm_tokenizer_build(const json_t *root, const tm_sha256 *hash, const char *name, tm_tokenizer **out, tm_error *err) TM_MUST_CHECK;

/* "type" of a part; "" when the part is not an object or has none. */
const char *tm_part_type(const json_t *json);
/* Appends a text that a part must have; TM_INPUT where it has none. */
tm_status tm_part_text(tm_buf *out, const json_t *json, const char *key, const char *name, tm_error *err) TM_MUST_CHECK;
/* Runs parse for a part, or for each element of its Sequence (key: the name of its list). */
typedef tm_status (*tm_part_parse)(void *target, const json_t *json, const char *name, tm_error *err);
tm_status tm_part_each(void *target, const json_t *json, const char *key, const char *name, tm_part_parse parse,
                       tm_error *err) TM_MUST_CHECK;

#endif
