/* Rows of data files: where they come from, and what each becomes as token ids. Private to src/text;
 * docs/formats/data.md is the contract with users. */
#ifndef TM_TEXT_ROWS_H
#define TM_TEXT_ROWS_H

#include "base/json.h"
#include "io/csv.h"
#include "text/chat.h"
#include "text/dataset.h"

enum { TM_ROW_MAX_BYTES = 64 << 20 };

/* One row's text: a line of a .jsonl file, an element of a .json array, a record of a .csv file. */
typedef struct tm_row {
    const char *text; /* borrowed */
    size_t size;
    int64_t line; /* 1-based, where it starts; in a Parquet file the number of the row */
} tm_row;

/* --- Row borders (row_cursor.c) --- */

typedef enum tm_row_kind { TM_ROW_LINES, TM_ROW_ARRAY, TM_ROW_CSV } tm_row_kind;

/* Walks the rows of a piece of a file. */
typedef struct tm_row_cursor {
    const char *at, *end;
    int64_t line;
    tm_row_kind kind;
    bool final;     /* nothing comes behind end */
    bool started;   /* array: a row has been given */
    char separator; /* CSV */
} tm_row_cursor;

/* At the beginning of a file: past a byte order mark and, where an array opens, past its bracket.
 * False: there are not enough bytes to tell (never when final). */
bool tm_row_cursor_begin(tm_row_cursor *cursor);
/* The next row; row->text NULL when there is none in the piece, and then cursor->at stands where the
 * next piece must begin. On failure row->line says where. Blank lines are no rows. */
tm_status tm_row_next(tm_row_cursor *cursor, tm_row *row, tm_error *err) TM_MUST_CHECK;

/* --- Files as rows (row_source.c) --- */

typedef struct tm_row_source tm_row_source;

/* What a file is, by its name; the format of the entry decides where that says nothing. */
bool tm_row_source_knows(const char *path); /* whether the name says that it is data */
tm_status tm_row_source_open(const char *path, int format, const char *const *columns, size_t column_count,
                             tm_row_source **out, tm_error *err) TM_MUST_CHECK;
void tm_row_source_close(tm_row_source *source);
/* Whether the file is one document of plain text, and then that text. */
bool tm_row_source_is_document(const tm_row_source *source);
tm_status tm_row_source_document(tm_row_source *source, size_t max_bytes, tm_buf *text, tm_error *err) TM_MUST_CHECK;
/* The next rows, some megabytes of them, borrowed until the next call; count 0 at the end. A fault
 * of the file is reported behind the rows before it; *bad_line says where (0: nowhere). */
tm_status tm_row_source_next(tm_row_source *source, const tm_row **rows, size_t *count, int64_t *bad_line,
                             tm_error *err) TM_MUST_CHECK;
/* A row as a JSON object; the names of the columns of a CSV file are its keys, the values text. May be
 * called by many threads. */
tm_status tm_row_parse(const tm_row_source *source, const tm_row *row, json_t **out, tm_error *err) TM_MUST_CHECK;
bool tm_row_is_json(const tm_row_source *source);

/* --- What rows become (rows.c, format_*.c) --- */

typedef enum tm_column {
    TM_COLUMN_TEXT, TM_COLUMN_PROMPT, TM_COLUMN_COMPLETION, TM_COLUMN_IDS, TM_COLUMN_LABELS, TM_COLUMN_MESSAGES,
    TM_COLUMN_CONVERSATIONS, TM_COLUMN_SYSTEM, TM_COLUMN_TOOLS, TM_COLUMN_INSTRUCTION, TM_COLUMN_INPUT,
    TM_COLUMN_OUTPUT, TM_COLUMN_HISTORY, TM_COLUMN_SCENE, TM_COLUMN_CHOICES, TM_COLUMN_ANSWER, TM_COLUMN_SOURCE,
    TM_COLUMN_REFERENCES, TM_COLUMN_ROLE, TM_COLUMN_CONTENT, TM_COLUMN_FROM,
    TM_COLUMN_VALUE, TM_COLUMN_COUNT
} tm_column;
enum { TM_COLUMN_NESTED = TM_COLUMN_ROLE }; /* from here on: keys inside a conversation, not of a row */

typedef struct tm_row_rules tm_row_rules;

typedef struct tm_span { /* of one example in tm_row_sink */
    size_t first;  /* in ids */
    size_t weight; /* in weight; SIZE_MAX: 1 for every token but the first */
    int64_t line, bytes; /* bytes: of the targets' text */
    int32_t n, targets;
} tm_span;

/* What rows become, appended in order. Rows of format text give spans without targets: documents, from
 * which blocks are cut when all are there. */
typedef struct tm_row_sink {
    tm_ids ids;
    float *weight; /* of the spans that have one, one behind the other */
    size_t weights, weight_capacity;
    tm_span *span;
    size_t spans, span_capacity;
    tm_dataset_stats stats;
    int64_t text_tokens; /* format text: tokens that stand for stats.text_bytes */
    tm_buf mask;         /* working memory, as the next: a byte a token of the row at hand */
    tm_buf text;
    tm_ids row_ids, row_labels;
    tm_chat_text chat;
    float *row_weight;
    size_t row_weight_capacity;
} tm_row_sink;
void tm_row_sink_clear(tm_row_sink *sink); /* keeps the memory */
void tm_row_sink_deinit(tm_row_sink *sink);

typedef struct tm_format {
    const char *name; /* as in the recipe */
    uint32_t needs;   /* columns that every row of it has, as bits */
    bool takes_system, takes_roles, is_prompted; /* is_prompted: loss completion makes sense */
    enum { TM_CHAT_NEVER, TM_CHAT_WHERE_THERE_IS, TM_CHAT_ALWAYS } chat; /* goes through the chat template */
    /* Reads one row; NULL json: the row is of format tokens and its text has not been parsed. */
    tm_status (*read)(const tm_row_rules *rules, tm_tokens *scratch, const json_t *row, int64_t line,
                      tm_row_sink *sink, tm_error *err);
} tm_format;
extern const tm_format tm_formats[]; /* by TM_FORMAT_...; the first, auto, is empty */

/* What all rows of a file share. Immutable while rows are read, so threads share it. */
struct tm_row_rules {
    const tm_tokenizer *tok;             /* NULL: format tokens only */
    const tm_chat *chat;                 /* NULL: no template */
    const tm_data_entry *entry;
    const char *column[TM_COLUMN_COUNT]; /* name in the file; borrowed */
    const char *system;                  /* "" = none */
    int64_t vocab_size, seq;
    int32_t bos, eos;                    /* -1: none */
    int format, loss;                    /* settled: not auto */
    bool adds_eos;                       /* the tokenizer ends every text with EOS by itself */
};

/* The names of the columns that rows may have, as the entry calls them: names[TM_COLUMN_COUNT]. */
void tm_row_columns(const tm_data_entry *entry, const char **names);
/* Settles format and loss by the entry and, where it says auto, the first rows. document: the file is
 * plain text. Complaints about the entry are TM_RECIPE, about the rows TM_INPUT; neither names the place. */
tm_status tm_row_rules_init(tm_row_rules *rules, const tm_data_entry *entry, const tm_row_source *source,
                            const tm_row *first, size_t count, const tm_data_settings *settings,
                            tm_error *err) TM_MUST_CHECK;
/* Reads a row. Messages do not name the place. */
tm_status tm_row_read(const tm_row_rules *rules, const tm_row_source *source, tm_tokens *scratch, const tm_row *row,
                      tm_row_sink *sink, tm_error *err) TM_MUST_CHECK;
/* Reads a row that is {"input_ids": [..], "labels": [..]} and nothing else, quickly. False: leave it to
 * the JSON parser. */
bool tm_row_scan_ids(const tm_row_rules *rules, const tm_row *row, tm_ids *ids, tm_ids *labels, bool *has_labels);

/* --- For formats --- */

const char *tm_json_type_name(const json_t *value); /* "a list", "text", "nothing" for NULL */
/* A column's text; TM_INPUT names the column when it is not text, or empty where it may not be.
 * optional: nothing and null give "". */
typedef enum tm_text_need { TM_TEXT_OPTIONAL, TM_TEXT_MAY_BE_EMPTY, TM_TEXT_FILLED } tm_text_need;
tm_status tm_row_text(const tm_row_rules *rules, const json_t *row, tm_column column, tm_text_need need,
                      const char **text, size_t *size, tm_error *err) TM_MUST_CHECK;
/* A column that holds a list (or, for tools, an object); text in it is parsed as JSON, as CSV files and
 * LLaMA-Factory have it. *owned is to be freed by json_decref; *out is borrowed, NULL for nothing and null. */
tm_status tm_row_list(const tm_row_rules *rules, const json_t *row, tm_column column, const json_t **out,
                      json_t **owned, tm_error *err) TM_MUST_CHECK;

/* An example of texts that are encoded apart, so that no token reaches across: special tokens before the
 * first, EOS behind each that `ends`. Targets are the pieces that say so, all with loss all. */
typedef struct tm_row_piece {
    const char *text;
    size_t size;
    bool target, ends;
} tm_row_piece;
tm_status tm_row_pieces(const tm_row_rules *rules, tm_tokens *scratch, const tm_row_piece *pieces, size_t count,
                        int64_t line, tm_row_sink *sink, tm_error *err) TM_MUST_CHECK;
/* Takes the ids from `first` on as an example, cut at seq; sink->mask holds a byte for each: is it a
 * target? (the first never is). A row without a target is TM_INPUT. */
tm_status tm_row_finish(const tm_row_rules *rules, tm_row_sink *sink, size_t first, int64_t line,
                        tm_error *err) TM_MUST_CHECK;
void tm_row_add_bytes(tm_row_sink *sink, int64_t bytes); /* of the text of the last example's targets */
tm_status tm_row_check_ids(const tm_row_rules *rules, const tm_ids *ids, size_t from, tm_error *err) TM_MUST_CHECK;
tm_status tm_ids_push(tm_ids *ids, int32_t id, tm_error *err) TM_MUST_CHECK;
/* Appends a document: its ids, then EOS where the tokenizer has one. */
tm_status tm_row_document(const tm_row_rules *rules, tm_tokens *scratch, const char *text, size_t size, int64_t line,
                          tm_row_sink *sink, tm_error *err) TM_MUST_CHECK;

/* --- For formats that are conversations (row_chat.c) --- */

/* temper's name of a role, by the entry's roles and by what data sets call them; others stay as they are. */
const char *tm_row_role(const tm_row_rules *rules, const char *found);
tm_status tm_row_message(json_t *messages, const char *role, const char *text, size_t size, tm_error *err) TM_MUST_CHECK;
/* An example of a conversation: these messages, with the row's other keys and its tools for the template. */
tm_status tm_row_conversation(const tm_row_rules *rules, tm_tokens *scratch, const json_t *row, json_t *messages,
                              int64_t line, tm_row_sink *sink, tm_error *err) TM_MUST_CHECK;
/* A row that is a list of turns: put makes a message of each. */
typedef tm_status (*tm_row_put_message)(const tm_row_rules *rules, json_t *turn, const char *role, json_t *messages,
                                        tm_error *err);
tm_status tm_row_dialogue(const tm_row_rules *rules, tm_tokens *scratch, const json_t *row, int64_t line, tm_column list,
                          tm_column role, tm_row_put_message put, tm_row_sink *sink, tm_error *err) TM_MUST_CHECK;
/* Counts the bytes that the targets of the last example decode to. */
tm_status tm_row_decoded_bytes(const tm_row_rules *rules, tm_row_sink *sink, tm_error *err) TM_MUST_CHECK;

/* The readers of the table. */
tm_status tm_format_text(const tm_row_rules *, tm_tokens *, const json_t *, int64_t, tm_row_sink *, tm_error *);
tm_status tm_format_completion(const tm_row_rules *, tm_tokens *, const json_t *, int64_t, tm_row_sink *, tm_error *);
tm_status tm_format_tokens(const tm_row_rules *, tm_tokens *, const json_t *, int64_t, tm_row_sink *, tm_error *);
tm_status tm_format_messages(const tm_row_rules *, tm_tokens *, const json_t *, int64_t, tm_row_sink *, tm_error *);
tm_status tm_format_sharegpt(const tm_row_rules *, tm_tokens *, const json_t *, int64_t, tm_row_sink *, tm_error *);
tm_status tm_format_alpaca(const tm_row_rules *, tm_tokens *, const json_t *, int64_t, tm_row_sink *, tm_error *);
tm_status tm_format_bridge(const tm_row_rules *, tm_tokens *, const json_t *, int64_t, tm_row_sink *, tm_error *);
tm_status tm_format_choice(const tm_row_rules *, tm_tokens *, const json_t *, int64_t, tm_row_sink *, tm_error *);

#endif
