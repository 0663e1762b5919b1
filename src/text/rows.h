/* Rows of data files: where they begin and end, and what each becomes as token ids. Private to
 * src/text; docs/formats/data.md is the contract with users. */
#ifndef TM_TEXT_ROWS_H
#define TM_TEXT_ROWS_H

#include "text/dataset.h"

enum { TM_ROW_MAX_BYTES = 64 << 20 };

/* One row's text: a line of a .jsonl file, an element of a .json array, or a whole .txt file. */
typedef struct tm_row {
    const char *text; /* borrowed from the file */
    size_t size;
    int64_t line; /* 1-based, where it starts */
} tm_row;

/* Walks the rows of a text. A copy of a cursor goes on from where it stands, so a file can be cut
 * into pieces that are read by different threads. */
typedef struct tm_row_cursor {
    const char *at, *end;
    int64_t line;
    bool array;   /* one JSON array, else a row a line */
    bool started; /* array: a row has been given */
} tm_row_cursor;

void tm_row_cursor_init(tm_row_cursor *cursor, const char *text, size_t size);
/* The next row; row->text NULL at the end. On failure row->line says where. Blank lines are no rows. */
tm_status tm_row_next(tm_row_cursor *cursor, tm_row *row, tm_error *err) TM_MUST_CHECK;

typedef enum tm_column {
    TM_COLUMN_TEXT, TM_COLUMN_PROMPT, TM_COLUMN_COMPLETION, TM_COLUMN_IDS, TM_COLUMN_LABELS, TM_COLUMN_COUNT
} tm_column;

/* What all rows of an entry share. Immutable while rows are read, so threads share it. */
typedef struct tm_row_rules {
    const tm_tokenizer *tok;           /* NULL: format tokens only */
    const char *column[TM_COLUMN_COUNT]; /* name in the file; borrowed */
    const char *system;                /* "" = none */
    int64_t vocab_size, seq;
    int32_t bos, eos;                  /* -1: none */
    int format, loss;                  /* settled: not auto */
    bool adds_eos;                     /* the tokenizer ends every text with EOS by itself */
} tm_row_rules;

typedef struct tm_span { /* of one example in tm_row_sink.ids */
    size_t first;
    int64_t line;
    int32_t n, targets;
    bool masked; /* weights differ from "all but the first" */
} tm_span;

/* What rows become, appended in order. Rows of format text give ids only, without spans: blocks are
 * cut when the whole file is there. */
typedef struct tm_row_sink {
    tm_ids ids;
    float *weight; /* beside ids from the first masked example on; before it all are 1 */
    size_t weights, weight_capacity;
    tm_span *span;
    size_t spans, span_capacity;
    tm_dataset_stats stats;
    int64_t text_tokens; /* format text: tokens that stand for stats.text_bytes */
    tm_buf prompt;       /* working memory, as the next two */
    tm_ids row_ids, row_labels;
} tm_row_sink;
void tm_row_sink_deinit(tm_row_sink *sink);

/* Settles format and loss by the entry and, where it says auto, the first row (text NULL: no row).
 * Complaints about the entry are TM_RECIPE, about the row TM_INPUT; neither names the place. */
tm_status tm_row_rules_init(tm_row_rules *rules, const tm_data_entry *entry, const tm_row *first, bool plain_text,
                            const tm_tokenizer *tok, int64_t vocab_size, int64_t seq, tm_error *err) TM_MUST_CHECK;
/* Reads a JSON row. Messages do not name the place. */
tm_status tm_row_read(const tm_row_rules *rules, tm_tokens *scratch, const tm_row *row, tm_row_sink *sink,
                      tm_error *err) TM_MUST_CHECK;
/* Reads a row that is {"input_ids": [..], "labels": [..]} and nothing else, quickly. False: leave it to
 * the JSON parser. */
bool tm_row_scan_ids(const tm_row_rules *rules, const tm_row *row, tm_ids *ids, tm_ids *labels, bool *has_labels);
/* Appends a document: its ids, then EOS where the tokenizer has one. */
tm_status tm_row_document(const tm_row_rules *rules, tm_tokens *scratch, const char *text, size_t size,
                          tm_row_sink *sink, tm_error *err) TM_MUST_CHECK;

#endif
