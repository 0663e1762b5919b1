/* Counting pieces of text for the training of a tokenizer, by many threads. The text is cut into parts at places
 * where every pattern cuts: behind a line feed between printable ASCII characters (a longer run of white space
 * would be cut otherwise at the end of a text). So what is counted does not depend on the parts, and sums do not
 * depend on who adds first. */
#include "text/tokenizer_train.h"

#include "base/file.h"

#include <stdlib.h>
#include <string.h>

enum { PART_BYTES = 1 << 20 };

typedef struct worker {
    tm_match_memory memory;
    tm_buf repaired, normal[2];
    tm_buf *pieces; /* [steps] */
    tm_word_counts counts;
    tm_status status;
    tm_error err;
} worker;

typedef struct counting {
    const tm_tokenizer *tok;
    const char *path, *text;
    size_t *end; /* [parts] of each, in text */
    size_t parts, capacity;
    bool rows; /* parts are lines of JSON */
    worker *workers;
    int threads;
} counting;

void tm_word_counts_deinit(tm_word_counts *counts)
{
    tm_vocab_deinit(&counts->words);
    free(counts->count);
    *counts = (tm_word_counts){0};
}

tm_status tm_word_counts_add(tm_word_counts *counts, const char *text, size_t size, int64_t times, tm_error *err)
{
    int32_t id = tm_vocab_find(&counts->words, text, size);
    if (id < 0) {
        id = counts->words.ids;
        if (id == INT32_MAX)
            return tm_fail(err, TM_INPUT, "the text has more than %d different pieces", INT32_MAX);
        TM_TRY(tm_vocab_add(&counts->words, text, size, id, TM_TOKEN_MODEL, err));
        TM_TRY(TM_GROW(&counts->count, &counts->capacity, (size_t)id + 1, err));
        counts->count[id] = 0;
    }
    counts->count[id] += times;
    return TM_OK;
}

/* ---- one text ---- */

static tm_status take_piece(void *context, const char *piece, size_t size, tm_error *err)
{
    return tm_word_counts_add(context, piece, size, 1, err);
}

static tm_status count_text(const tm_tokenizer *tok, worker *w, const char *text, size_t size)
{
    bool first = true;
    if (tm_utf8_prefix(text, size) != size) {
        tm_buf_clear(&w->repaired);
        tm_utf8_repair(text, size, &w->repaired);
        TM_TRY(tm_buf_check(&w->repaired, &w->err));
        text = tm_buf_str(&w->repaired);
        size = w->repaired.size;
    }
    TM_TRY(tm_normalizer_run(&tok->normalizer, &w->memory, &w->normal[0], &w->normal[1], &text, &size, &first, &w->err));
    tm_splitting run = {&tok->splitter, &w->memory, w->pieces, take_piece, &w->counts, &w->err};
    return tm_splitter_run(&run, 0, text, size, true);
}

/* The strings of a row that are text: not names of roles, keys and the like. */
static tm_status count_value(const tm_tokenizer *tok, worker *w, const char *key, const json_t *value)
{
    static const char *const texts[] = {"text", "content", "value", "prompt", "completion", "instruction", "input", "output",
                                        "question", "answer", "response", "system", "scene"};
    const char *name;
    json_t *item;
    size_t i;
    bool wanted = !key;
    for (i = 0; !wanted && i < sizeof texts / sizeof texts[0]; i++)
        wanted = !strcmp(key, texts[i]);
    if (json_is_string(value))
        return wanted ? count_text(tok, w, json_string_value(value), json_string_length(value)) : TM_OK;
    json_array_foreach(value, i, item)
        TM_TRY(count_value(tok, w, key, item));
    json_object_foreach((json_t *)value, name, item)
        TM_TRY(count_value(tok, w, name, item));
    return TM_OK;
}

static tm_status count_rows(const tm_tokenizer *tok, worker *w, const char *text, size_t size)
{
    for (const char *line = text, *end = text + size, *next; line < end; line = next + 1) {
        next = memchr(line, '\n', (size_t)(end - line));
        if (!next)
            next = end;
        json_t *row;
        if (next == line || (next == line + 1 && *line == '\r'))
            continue;
        TM_TRY(tm_json_parse_row(line, (size_t)(next - line), &row, &w->err));
        tm_status st = count_value(tok, w, NULL, row);
        json_decref(row);
        TM_TRY(st);
    }
    return TM_OK;
}

/* ---- parts ---- */

static bool prints(char c) { return c > ' ' && c < 0x7f; }

/* at > 1 */
static bool cuts_here(const char *text, size_t at, bool rows)
{
    return text[at - 1] == '\n' && (rows || (prints(text[at - 2]) && prints(text[at])));
}

static tm_status cut_parts(counting *c, size_t size, tm_error *err)
{
    for (size_t start = 0; start < size;) {
        size_t end = size - start > PART_BYTES ? start + PART_BYTES : size;
        while (end < size && !cuts_here(c->text, end, c->rows))
            end++;
        TM_TRY(TM_GROW(&c->end, &c->capacity, c->parts + 1, err));
        c->end[c->parts++] = end;
        start = end;
    }
    return TM_OK;
}

static void count_part(void *context, int64_t task, int thread)
{
    counting *c = context;
    worker *w = &c->workers[thread];
    size_t start = task ? c->end[task - 1] : 0, size = c->end[task] - start;
    if (w->status != TM_OK)
        return;
    w->status = c->rows ? count_rows(c->tok, w, c->text + start, size) : count_text(c->tok, w, c->text + start, size);
    if (w->status != TM_OK)
        tm_fail_prefix(&w->err, w->status, "%s: between bytes %zu and %zu", c->path, start, start + size);
}

static tm_status workers_init(counting *c, tm_error *err)
{
    TM_TRY(TM_NEW(&c->workers, c->threads, err));
    for (int i = 0; i < c->threads; i++) {
        TM_TRY(tm_match_memory_init(&c->workers[i].memory, err));
        TM_TRY(TM_NEW(&c->workers[i].pieces, c->tok->splitter.count, err));
    }
    return TM_OK;
}

static void workers_deinit(counting *c)
{
    for (int i = 0; c->workers && i < c->threads; i++) {
        worker *w = &c->workers[i];
        tm_match_memory_deinit(&w->memory);
        tm_buf_deinit(&w->repaired);
        tm_buf_deinit(&w->normal[0]);
        tm_buf_deinit(&w->normal[1]);
        for (size_t s = 0; w->pieces && s < c->tok->splitter.count; s++)
            tm_buf_deinit(&w->pieces[s]);
        free(w->pieces);
        tm_word_counts_deinit(&w->counts);
    }
    free(c->workers);
}

static tm_status gather(const counting *c, tm_word_counts *out, tm_error *err)
{
    for (int i = 0; i < c->threads; i++) {
        const worker *w = &c->workers[i];
        if (w->status != TM_OK) {
            *err = w->err;
            return w->status;
        }
        for (int32_t id = 0; id < w->counts.words.ids; id++)
            TM_TRY(tm_word_counts_add(out, w->counts.words.text.data + w->counts.words.start[id], w->counts.words.length[id],
                                      w->counts.count[id], err));
    }
    return TM_OK;
}

tm_status tm_words_of_file(const tm_tokenizer *tok, const char *path, tm_pool *pool, tm_word_counts *out, tm_error *err)
{
    tm_map map = {0};
    size_t n = strlen(path);
    counting c = {.tok = tok, .path = path, .threads = tm_pool_threads(pool)};
    tm_status st;
    c.rows = (n > 6 && !strcmp(path + n - 6, ".jsonl")) || (n > 7 && !strcmp(path + n - 7, ".ndjson"));
    TM_GO(tm_map_open(path, &map, err));
    c.text = map.data;
    TM_GO(cut_parts(&c, map.size, err));
    TM_GO(workers_init(&c, err));
    tm_pool_run(pool, count_part, &c, (int64_t)c.parts);
    TM_GO(gather(&c, out, err));
out:
    workers_deinit(&c);
    free(c.end);
    tm_map_close(&map);
    return st;
}
