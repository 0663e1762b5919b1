/* Reading an entry: rows come in batches of some megabytes, threads make token ids of parts of a batch, and
 * what they give is put behind one another in the order of the files. So nothing depends on the number of
 * threads, the complaint about bad data is always the one about its first bad row, and memory does not depend
 * on the size of the files. */
#include "text/dataset_parts.h"
#include "text/rows.h"

#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { TASK_BYTES = 64 << 10 };
#define DOCUMENT_MAX_BYTES ((size_t)1 << 30) /* of a plain text file, which the tokenizer takes as one text */

typedef struct task {
    size_t from, to; /* rows of the batch */
    tm_row_sink sink;
    int64_t bad_line;
    tm_status status;
    tm_error err;
} task;

typedef struct key128 {
    uint64_t a, b;
} key128;

typedef struct reader {
    const tm_data_entry *entry;
    const tm_data_settings *settings;
    tm_pool *pool;
    tm_token_writer *to;
    tm_dataset_stats *stats;
    tm_tokens **scratch; /* one a thread; NULL without a tokenizer */
    task *tasks;
    size_t count, capacity, used;  /* used: tasks whose sinks hold memory */
    const char *path;              /* of the file at hand, as the next ones */
    int32_t file;
    tm_row_source *source;
    const tm_row *rows;
    tm_row_rules rules;
    tm_chat *chat;                 /* NULL: none yet, or none is needed */
    int format;                    /* of the files so far; TM_FORMAT_AUTO: none yet */
    int64_t text_tokens;           /* of texts: tokens that stand for text; ids in the chain; and of the */
    int64_t chain, lost;           /* first ones of blocks, those that stand for text */
    key128 *seen;                  /* dedup: an open table of 2^seen_log places; zeros are free */
    int seen_log;
    size_t seen_count;
} reader;

static tm_status locate(const reader *r, int64_t line, tm_status st, tm_error *err)
{
    if (st == TM_INPUT && line)
        return tm_fail_prefix(err, st, "%s:%lld", r->path, (long long)line);
    return st == TM_NO_MEMORY ? st : tm_fail_prefix(err, st, "%s", r->path);
}

/* --- Duplicates --- */

uint64_t tm_tokens_hash(uint64_t seed, const int32_t *ids, const float *weight, int64_t n)
{
    uint64_t h = seed;
    for (int64_t i = 0; i < n; i++) {
        uint64_t target = weight ? weight[i] > 0 : i > 0;
        h = (h ^ ((uint64_t)(uint32_t)ids[i] << 1 | target)) * 0x9e3779b97f4a7c15u;
        h ^= h >> 32;
    }
    return h;
}

static tm_status grow_seen(reader *r, tm_error *err)
{
    int log = r->seen ? r->seen_log + 1 : 12;
    key128 *wider;
    TM_TRY(TM_NEW(&wider, (size_t)1 << log, err));
    size_t mask = ((size_t)1 << log) - 1;
    for (size_t i = 0; r->seen && i < (size_t)1 << r->seen_log; i++)
        if (r->seen[i].a | r->seen[i].b) {
            size_t at = r->seen[i].a & mask;
            while (wider[at].a | wider[at].b)
                at = (at + 1) & mask;
            wider[at] = r->seen[i];
        }
    free(r->seen);
    r->seen = wider;
    r->seen_log = log;
    return TM_OK;
}

static tm_status is_duplicate(reader *r, const tm_row_sink *s, const tm_span *e, bool *out, tm_error *err)
{
    const float *weight = e->weight == SIZE_MAX ? NULL : s->weight + e->weight;
    key128 key = {tm_tokens_hash(1, s->ids.id + e->first, weight, e->n),
                  tm_tokens_hash(2, s->ids.id + e->first, weight, e->n) | 1};
    if (!r->seen || r->seen_count * 3 >= ((size_t)2 << r->seen_log))
        TM_TRY(grow_seen(r, err));
    size_t mask = ((size_t)1 << r->seen_log) - 1, at = key.a & mask;
    for (; r->seen[at].a | r->seen[at].b; at = (at + 1) & mask)
        if (r->seen[at].a == key.a && r->seen[at].b == key.b) {
            *out = true;
            return TM_OK;
        }
    r->seen[at] = key;
    r->seen_count++;
    *out = false;
    return TM_OK;
}

/* Takes out of a sink what has been there before. */
static tm_status drop_duplicates(reader *r, tm_row_sink *s, tm_error *err)
{
    size_t ids = 0, weights = 0, spans = 0;
    for (size_t i = 0; i < s->spans; i++) {
        tm_span e = s->span[i];
        size_t n = (size_t)e.n;
        bool again;
        TM_TRY(is_duplicate(r, s, &e, &again, err));
        if (again) {
            s->stats.duplicates++;
            s->stats.text_bytes -= e.bytes;
            if (e.targets) {
                s->stats.examples--;
                s->stats.tokens -= e.n;
                s->stats.targets -= e.targets;
            } else
                for (size_t k = 0; k < n; k++)
                    s->text_tokens -= s->ids.id[e.first + k] != r->rules.bos && s->ids.id[e.first + k] != r->rules.eos;
            continue;
        }
        memmove(s->ids.id + ids, s->ids.id + e.first, n * sizeof *s->ids.id);
        e.first = ids;
        ids += n;
        if (e.weight != SIZE_MAX) {
            memmove(s->weight + weights, s->weight + e.weight, n * sizeof *s->weight);
            e.weight = weights;
            weights += n;
        }
        s->span[spans++] = e;
    }
    s->ids.count = ids;
    s->weights = weights;
    s->spans = spans;
    return TM_OK;
}

/* --- Joining --- */

static void stats_add(tm_dataset_stats *to, const tm_dataset_stats *s)
{
    to->rows += s->rows;
    to->examples += s->examples;
    to->tokens += s->tokens;
    to->targets += s->targets;
    to->cut += s->cut;
    to->dropped += s->dropped;
    to->duplicates += s->duplicates;
    to->text_bytes += s->text_bytes;
}

static void extend_chain(reader *r, const tm_row_sink *s)
{
    int64_t seq = r->settings->seq, n = (int64_t)s->ids.count;
    for (int64_t at = (r->chain + seq - 1) / seq * seq; at < r->chain + n; at += seq) {
        int32_t id = s->ids.id[at - r->chain];
        r->lost += id != r->rules.bos && id != r->rules.eos; /* the first token of a block is no target */
    }
    r->chain += n;
    r->text_tokens += s->text_tokens;
}

static tm_status append(reader *r, tm_row_sink *s, tm_error *err)
{
    if (r->entry->dedup)
        TM_TRY(drop_duplicates(r, s, err));
    stats_add(r->stats, &s->stats);
    for (size_t i = 0; i < s->ids.count; i++)
        if (s->ids.id[i] > r->to->max_id)
            r->to->max_id = s->ids.id[i];
    uint64_t ids = r->to->at, weights = ids + s->ids.count * sizeof *s->ids.id;
    TM_TRY(tm_token_writer_put(r->to, s->ids.id, s->ids.count * sizeof *s->ids.id, err));
    if (r->format == TM_FORMAT_TEXT) {
        extend_chain(r, s);
        return TM_OK;
    }
    TM_TRY(tm_token_writer_put(r->to, s->weight, s->weights * sizeof *s->weight, err));
    for (size_t i = 0; i < s->spans; i++) {
        const tm_span *e = &s->span[i];
        tm_stored stored = {.ids = ids + e->first * sizeof *s->ids.id,
                            .weight = e->weight == SIZE_MAX ? 0 : weights + e->weight * sizeof *s->weight,
                            .line = e->line,
                            .n = e->n,
                            .targets = e->targets,
                            .file = r->file};
        TM_TRY(tm_token_writer_add(r->to, stored, err));
    }
    return TM_OK;
}

/* Blocks of exactly seq tokens out of the chain of documents; the last one is shorter, two at least. */
static tm_status cut_blocks(reader *r, tm_error *err)
{
    int64_t seq = r->settings->seq, block = 0;
    for (int64_t at = 0; at < r->chain; at += seq) {
        int64_t n = r->chain - at < seq ? r->chain - at : seq;
        if (n < 2)
            break;
        tm_stored stored = {.ids = (uint64_t)at * sizeof(int32_t), .line = ++block, .n = (int32_t)n, .targets = (int32_t)n - 1};
        TM_TRY(tm_token_writer_add(r->to, stored, err));
        r->stats->tokens += n;
        r->stats->targets += n - 1;
    }
    r->stats->examples = block;
    int64_t bytes = r->stats->text_bytes;
    r->stats->text_bytes =
        r->text_tokens > 0 ? (int64_t)((__int128)bytes * (r->text_tokens - r->lost) / r->text_tokens) : 0;
    return TM_OK;
}

/* --- Reading --- */

static void run_task(void *context, int64_t number, int thread)
{
    reader *r = context;
    task *t = &r->tasks[number];
    tm_tokens *scratch = r->scratch ? r->scratch[thread] : NULL;
    tm_row_sink_clear(&t->sink);
    t->status = TM_OK;
    for (size_t i = t->from; i < t->to && t->status == TM_OK; i++) {
        t->status = tm_row_read(&r->rules, r->source, scratch, &r->rows[i], &t->sink, &t->err);
        t->bad_line = r->rows[i].line;
    }
}

/* Parts of a batch of about TASK_BYTES. */
static tm_status plan_tasks(reader *r, size_t rows, tm_error *err)
{
    r->count = 0;
    for (size_t from = 0, i = 0, bytes = 0; i < rows; i++) {
        bytes += r->rows[i].size;
        if (bytes < TASK_BYTES && i + 1 < rows)
            continue;
        TM_TRY(TM_GROW(&r->tasks, &r->capacity, r->count + 1, err));
        if (r->count == r->used)
            r->tasks[r->used++] = (task){0};
        r->tasks[r->count].from = from;
        r->tasks[r->count++].to = i + 1;
        from = i + 1;
        bytes = 0;
    }
    return TM_OK;
}

static tm_status read_batch(reader *r, size_t rows, tm_error *err)
{
    TM_TRY(plan_tasks(r, rows, err));
    tm_pool_run(r->pool, run_task, r, (int64_t)r->count);
    for (size_t i = 0; i < r->count; i++) {
        task *t = &r->tasks[i];
        if (t->status != TM_OK) {
            if (err)
                *err = t->err;
            return locate(r, t->bad_line, t->status, err);
        }
        TM_TRY(append(r, &t->sink, err));
    }
    return TM_OK;
}

/* The template that rows of this format go through: the entry's, or the model's. */
static tm_status open_chat(reader *r, tm_error *err)
{
    const tm_format *f = &tm_formats[r->rules.format];
    const char *name = r->entry->template;
    bool none = name && strcmp(name, "none") == 0, optional = f->chat == TM_CHAT_WHERE_THERE_IS;
    if (f->chat == TM_CHAT_NEVER && name && !none)
        return tm_fail(err, TM_RECIPE, "template is for dialogues, and these rows are of format %s", f->name);
    if (f->chat == TM_CHAT_NEVER || (optional && none))
        return TM_OK;
    tm_chat_settings settings = {.model = r->settings->model, .template = name, .tok = r->settings->tok};
    tm_status st = r->chat ? TM_OK : tm_chat_open(&settings, &r->chat, err);
    r->rules.chat = r->chat;
    return st == TM_RECIPE && optional && !name ? TM_OK : st;
}

/* Format and loss are settled by the first rows; scratch memory is made when the tokenizer is known to be
 * needed. */
static tm_status begin_file(reader *r, const tm_row *rows, size_t count, tm_error *err)
{
    tm_status st = tm_row_rules_init(&r->rules, r->entry, r->source, rows, count, r->settings, err);
    if (st == TM_OK)
        st = open_chat(r, err);
    if (st != TM_OK)
        return locate(r, count ? rows[0].line : 0, st, err);
    if (r->format != TM_FORMAT_AUTO && r->format != r->rules.format)
        return tm_fail(err, TM_INPUT, "%s: its rows are of format %s, those of the files before of format %s: expected one format an entry",
                       r->path, tm_formats[r->rules.format].name, tm_formats[r->format].name);
    r->format = r->rules.format;
    int threads = tm_pool_threads(r->pool);
    if (!r->rules.tok || r->scratch)
        return TM_OK;
    TM_TRY(TM_NEW(&r->scratch, threads, err));
    for (int i = 0; i < threads; i++)
        TM_TRY(tm_tokens_create(r->rules.tok, &r->scratch[i], err));
    return TM_OK;
}

static tm_status read_rows(reader *r, tm_error *err)
{
    for (bool first = true;; first = false) {
        size_t count;
        int64_t bad_line;
        tm_status st = tm_row_source_next(r->source, &r->rows, &count, &bad_line, err);
        if (st != TM_OK)
            return bad_line ? locate(r, bad_line, st, err) : st;
        if (count == 0)
            return first ? tm_fail(err, TM_INPUT, "%s: there is no row in it", r->path) : TM_OK;
        if (first)
            TM_TRY(begin_file(r, r->rows, count, err));
        TM_TRY(read_batch(r, count, err));
    }
}

static tm_status use_document(reader *r, const tm_buf *text, tm_error *err)
{
    size_t valid = tm_utf8_prefix(tm_buf_str(text), text->size);
    if (valid < text->size) {
        int64_t line = 1;
        for (size_t i = 0; i < valid; i++)
            line += text->data[i] == '\n';
        return tm_fail(err, TM_INPUT, "%s:%lld: not valid UTF-8", r->path, (long long)line);
    }
    if (text->size == 0)
        return tm_fail(err, TM_INPUT, "%s: the file is empty", r->path);
    r->rows = &(tm_row){tm_buf_str(text), text->size, 1};
    TM_TRY(plan_tasks(r, 1, err));
    tm_row_sink *sink = &r->tasks[0].sink;
    tm_row_sink_clear(sink);
    sink->stats.rows = 1;
    tm_status st = tm_row_document(&r->rules, r->scratch[0], tm_buf_str(text), text->size, 1, sink, err);
    return st == TM_OK ? append(r, sink, err) : locate(r, 0, st, err);
}

static tm_status read_document(reader *r, tm_error *err)
{
    tm_buf text = {0};
    TM_TRY(begin_file(r, NULL, 0, err));
    tm_status st = tm_row_source_document(r->source, DOCUMENT_MAX_BYTES, &text, err);
    if (st == TM_INPUT && !strstr(err ? err->message : "", r->path))
        st = tm_fail_prefix(err, st, "%s", r->path);
    if (st == TM_OK)
        st = use_document(r, &text, err);
    tm_buf_deinit(&text);
    return st;
}

static tm_status read_file(reader *r, const char *const *columns, tm_error *err)
{
    TM_TRY(tm_row_source_open(r->path, r->entry->format, columns, TM_COLUMN_NESTED, &r->source, err));
    tm_status st = tm_row_source_is_document(r->source) ? read_document(r, err) : read_rows(r, err);
    tm_row_source_close(r->source);
    r->source = NULL;
    return st;
}

static void reader_deinit(reader *r)
{
    for (size_t i = 0; i < r->used; i++)
        tm_row_sink_deinit(&r->tasks[i].sink);
    for (int i = 0; r->scratch && i < tm_pool_threads(r->pool); i++)
        tm_tokens_destroy(r->scratch[i]);
    tm_chat_close(r->chat);
    free(r->scratch);
    free(r->tasks);
    free(r->seen);
}

tm_status tm_data_read(const tm_data_files *files, const tm_data_entry *entry, const tm_data_settings *settings,
                       tm_pool *pool, tm_token_writer *to, tm_dataset_stats *stats, tm_error *err)
{
    reader r = {.entry = entry, .settings = settings, .pool = pool, .to = to, .stats = stats};
    const char *columns[TM_COLUMN_COUNT];
    tm_row_columns(entry, columns);
    *stats = (tm_dataset_stats){0};
    tm_status st = TM_OK;
    for (int64_t i = 0; i < files->path.count; i++) {
        r.path = files->path.item[i];
        r.file = (int32_t)i;
        TM_GO(read_file(&r, columns, err));
    }
    if (r.format == TM_FORMAT_TEXT)
        TM_GO(cut_blocks(&r, err));
    if (stats->examples == 0 && stats->dropped == stats->rows && stats->rows)
        st = tm_fail(err, TM_INPUT, "%s: nothing to learn from: each of its %lld rows is longer than %lld tokens (train.seq), and no target is among the first so many; "
                     "expected a larger train.seq", entry->path, (long long)stats->rows, (long long)settings->seq);
    else if (stats->examples == 0)
        st = tm_fail(err, TM_INPUT, "%s: %lld rows, but nothing to learn from in %lld tokens", entry->path,
                     (long long)stats->rows, (long long)(to->at / sizeof(int32_t)));
out:
    reader_deinit(&r);
    return st;
}
