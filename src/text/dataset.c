/* Loading data sets: a file is mapped, cut into chunks at row borders, the chunks are read by the
 * threads of the pool, and what they give is joined in the order of the file; so nothing depends on
 * the number of threads, and the complaint about a bad file is always the one about its first bad row.
 *
 * Ids and weights of an entry are one array each, in a store that data sets split from one another
 * share; examples point into it. */
#include "text/rows.h"

#include "base/file.h"
#include "base/philox.h"
#include "base/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { CHUNK_BYTES = 256 << 10 };
#define DOCUMENT_MAX_BYTES ((size_t)1 << 30) /* of a .txt file, which the tokenizer takes as one text */

typedef struct source {
    int32_t *ids;
    float *weight; /* NULL: no example of it is masked */
    tm_sha256 hash;
} source;

typedef struct store {
    int64_t owners;
    source *source;
    int64_t sources;
} store;

struct tm_dataset {
    store *store;
    tm_example *example;
    int64_t count;
    size_t capacity;
    tm_dataset_stats *stats; /* [sources] */
};

static void store_release(store *s)
{
    if (!s || --s->owners > 0)
        return;
    for (int64_t i = 0; s->source && i < s->sources; i++) {
        free(s->source[i].ids);
        free(s->source[i].weight);
    }
    free(s->source);
    free(s);
}

void tm_dataset_destroy(tm_dataset *data)
{
    if (!data)
        return;
    store_release(data->store);
    free(data->example);
    free(data->stats);
    free(data);
}

/* --- Reading a file in chunks --- */

typedef struct chunk {
    tm_row_cursor from;
    const char *to; /* the chunk ends where a row starts at or behind this */
    tm_row_sink sink;
    int64_t bad_line;
    tm_error err;
    tm_status status;
} chunk;

typedef struct reading {
    const char *path;
    tm_row_rules rules;
    chunk *chunks;
    size_t count, capacity;
    tm_tokens **scratch; /* one a thread; NULL without a tokenizer */
    tm_dataset_stats stats;
} reading;

static tm_status locate(const char *path, int64_t line, tm_error *err)
{
    return tm_fail_prefix(err, "%s:%lld", path, (long long)line);
}

static void read_chunk(void *context, int64_t task, int thread)
{
    reading *r = context;
    chunk *c = &r->chunks[task];
    tm_row_cursor cursor = c->from;
    tm_tokens *scratch = r->scratch ? r->scratch[thread] : NULL;
    while (cursor.at < c->to) {
        tm_row row;
        c->status = tm_row_next(&cursor, &row, &c->err);
        if (c->status == TM_OK && row.text)
            c->status = tm_row_read(&r->rules, scratch, &row, &c->sink, &c->err);
        if (c->status != TM_OK) {
            c->bad_line = row.line;
            return;
        }
        if (!row.text)
            return;
    }
}

/* Chunk borders. The whole structure of the file is seen here, so a file that ends in the middle of a
 * row is refused before work is spent on it. */
static tm_status cut_chunks(reading *r, const tm_row_cursor *start, tm_error *err)
{
    tm_row_cursor cursor = *start;
    for (tm_row row;;) {
        tm_row_cursor before = cursor;
        tm_status st = tm_row_next(&cursor, &row, err);
        if (st != TM_OK)
            return locate(r->path, row.line, err);
        if (!row.text)
            return TM_OK;
        chunk *last = r->count ? &r->chunks[r->count - 1] : NULL;
        if (!last || before.at - last->from.at >= CHUNK_BYTES) {
            TM_TRY(TM_GROW(&r->chunks, &r->capacity, r->count + 1, err));
            last = &r->chunks[r->count++];
            *last = (chunk){.from = before};
        }
        last->to = cursor.at;
    }
}

static tm_status create_scratch(reading *r, int threads, tm_error *err)
{
    if (!r->rules.tok)
        return TM_OK;
    TM_TRY(TM_NEW(&r->scratch, threads, err));
    for (int i = 0; i < threads; i++)
        TM_TRY(tm_tokens_create(r->rules.tok, &r->scratch[i], err));
    return TM_OK;
}

static tm_status read_rows(reading *r, const tm_row_cursor *start, tm_pool *pool, tm_error *err)
{
    TM_TRY(cut_chunks(r, start, err));
    TM_TRY(create_scratch(r, tm_pool_threads(pool), err));
    tm_pool_run(pool, read_chunk, r, (int64_t)r->count);
    for (size_t i = 0; i < r->count; i++)
        if (r->chunks[i].status != TM_OK) {
            if (err)
                *err = r->chunks[i].err;
            return r->chunks[i].status == TM_INPUT ? locate(r->path, r->chunks[i].bad_line, err) : r->chunks[i].status;
        }
    return TM_OK;
}

/* A .txt file: one document, the only chunk. */
static tm_status read_document(reading *r, const char *text, size_t size, tm_error *err)
{
    if (size >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) {
        text += 3;
        size -= 3;
    }
    if (size > DOCUMENT_MAX_BYTES)
        return tm_fail(err, TM_INPUT,
                       "%s: a document of %zu bytes; at most %zu are taken: use .jsonl, a document a row", r->path,
                       size, DOCUMENT_MAX_BYTES);
    size_t valid = tm_utf8_prefix(text, size);
    if (valid < size) {
        int64_t line = 1;
        for (size_t i = 0; i < valid; i++)
            line += text[i] == '\n';
        return tm_fail(err, TM_INPUT, "%s:%lld: not valid UTF-8", r->path, (long long)line);
    }
    if (size == 0)
        return tm_fail(err, TM_INPUT, "%s: the file is empty", r->path);
    TM_TRY(TM_NEW(&r->chunks, 1, err));
    r->count = 1;
    TM_TRY(create_scratch(r, 1, err));
    tm_status st = tm_row_document(&r->rules, r->scratch[0], text, size, &r->chunks[0].sink, err);
    return st == TM_INPUT ? tm_fail_prefix(err, "%s", r->path) : st;
}

static void reading_deinit(reading *r, int threads)
{
    for (size_t i = 0; i < r->count; i++)
        tm_row_sink_deinit(&r->chunks[i].sink);
    for (int i = 0; r->scratch && i < threads; i++)
        tm_tokens_destroy(r->scratch[i]);
    free(r->scratch);
    free(r->chunks);
}

/* --- Joining the chunks --- */

static void stats_add(tm_dataset_stats *to, const tm_dataset_stats *s)
{
    to->rows += s->rows;
    to->examples += s->examples;
    to->tokens += s->tokens;
    to->targets += s->targets;
    to->cut += s->cut;
    to->dropped += s->dropped;
    to->text_bytes += s->text_bytes;
}

/* Moves the ids and weights of all chunks into the source, freeing chunk after chunk. */
static tm_status join(reading *r, source *to, size_t *ids, tm_error *err)
{
    size_t n = 0, at = 0;
    bool weighted = false;
    for (size_t i = 0; i < r->count; i++) {
        n += r->chunks[i].sink.ids.count;
        weighted |= r->chunks[i].sink.weights > 0;
    }
    TM_TRY(TM_NEW(&to->ids, n, err));
    if (weighted)
        TM_TRY(TM_NEW(&to->weight, n, err));
    for (size_t i = 0; i < r->count; i++) {
        tm_row_sink *s = &r->chunks[i].sink;
        if (s->ids.count)
            memcpy(to->ids + at, s->ids.id, s->ids.count * sizeof *to->ids);
        if (s->weights)
            memcpy(to->weight + at, s->weight, s->weights * sizeof *to->weight);
        at += s->ids.count;
        stats_add(&r->stats, &s->stats);
        tm_ids_deinit(&s->ids);
        free(s->weight);
        s->weight = NULL;
    }
    *ids = n;
    return TM_OK;
}

static tm_status push_example(tm_dataset *d, tm_example example, tm_error *err)
{
    TM_TRY(TM_GROW(&d->example, &d->capacity, d->count + 1, err));
    d->example[d->count++] = example;
    return TM_OK;
}

/* Blocks of exactly seq tokens out of the chain of documents; the last one is shorter, two at least. */
static tm_status cut_blocks(tm_dataset *d, reading *r, int64_t index, size_t ids, int64_t text_tokens, tm_error *err)
{
    const source *from = &d->store->source[index];
    const int32_t *id = from->ids;
    size_t seq = (size_t)r->rules.seq;
    int64_t lost = 0, block = 0;
    for (size_t at = 0; at < ids; at += seq) {
        size_t n = ids - at < seq ? ids - at : seq;
        lost += id[at] != r->rules.bos && id[at] != r->rules.eos; /* the first token of a block is no target */
        if (n < 2)
            break;
        TM_TRY(push_example(d, (tm_example){id + at, NULL, (int32_t)n, (int32_t)n - 1, (int32_t)index, ++block}, err));
        r->stats.tokens += (int64_t)n;
        r->stats.targets += (int64_t)n - 1;
    }
    r->stats.examples = block;
    int64_t bytes = r->stats.text_bytes;
    r->stats.text_bytes = text_tokens > 0 ? (int64_t)((__int128)bytes * (text_tokens - lost) / text_tokens) : 0;
    return TM_OK;
}

static tm_status make_examples(tm_dataset *d, reading *r, int64_t index, tm_error *err)
{
    source *to = &d->store->source[index];
    size_t *first, ids, at = 0;
    int64_t text_tokens = 0;
    TM_TRY(TM_NEW(&first, r->count, err));
    for (size_t i = 0; i < r->count; i++) {
        first[i] = at;
        at += r->chunks[i].sink.ids.count;
        text_tokens += r->chunks[i].sink.text_tokens;
    }
    tm_status st = join(r, to, &ids, err);
    if (st == TM_OK && r->rules.format == TM_FORMAT_TEXT)
        st = cut_blocks(d, r, index, ids, text_tokens, err);
    for (size_t i = 0; st == TM_OK && i < r->count; i++)
        for (size_t k = 0; st == TM_OK && k < r->chunks[i].sink.spans; k++) {
            const tm_span *s = &r->chunks[i].sink.span[k];
            size_t place = first[i] + s->first;
            st = push_example(d,
                              (tm_example){to->ids + place, s->masked ? to->weight + place : NULL, s->n, s->targets,
                                           (int32_t)index, s->line},
                              err);
        }
    free(first);
    if (st != TM_OK)
        return st;
    if (r->stats.examples == 0)
        return tm_fail(err, TM_INPUT, "%s: %lld rows, but nothing to learn from in %lld tokens", r->path,
                       (long long)r->stats.rows, (long long)ids);
    d->stats[index] = r->stats;
    return TM_OK;
}

/* --- Entries --- */

static bool has_suffix(const char *path, const char *suffix)
{
    size_t n = strlen(path), k = strlen(suffix);
    return n >= k && strcasecmp(path + n - k, suffix) == 0;
}

static tm_status refuse_other_files(const char *path, tm_error *err)
{
    static const char *const others[] = {".gz", ".zst", ".xz", ".bz2", ".zip", ".parquet", ".csv", ".tsv", ".arrow"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (has_suffix(path, others[i]))
            return tm_fail(err, TM_UNSUPPORTED, "%s: %s files are not supported yet; expected .jsonl, .json or .txt",
                           path, others[i]);
    if (tm_path_is_dir(path))
        return tm_fail(err, TM_UNSUPPORTED, "%s: a folder; expected a .jsonl, .json or .txt file", path);
    return TM_OK;
}

/* Plain text: a .txt file, or a file of an unknown kind that does not start like rows where the entry
 * says format: text. */
static bool is_plain_text(const char *path, const tm_data_entry *entry, const tm_map *map)
{
    if (has_suffix(path, ".txt"))
        return true;
    if (entry->format != TM_FORMAT_TEXT || has_suffix(path, ".jsonl") || has_suffix(path, ".json") ||
        has_suffix(path, ".ndjson"))
        return false;
    tm_row_cursor cursor;
    tm_row_cursor_init(&cursor, map->data, map->size);
    while (cursor.at < cursor.end && strchr(" \t\r\n", *cursor.at))
        cursor.at++;
    return cursor.at < cursor.end && !cursor.array && *cursor.at != '{';
}

static tm_status load_map(tm_dataset *d, int64_t index, const char *path, const tm_map *map, const tm_data_entry *entry,
                          const tm_tokenizer *tok, int64_t vocab_size, int64_t seq, tm_pool *pool, tm_error *err)
{
    reading r = {.path = path};
    tm_row_cursor start;
    tm_row first = {0};
    bool plain = is_plain_text(path, entry, map);
    tm_status st = TM_OK;
    tm_row_cursor_init(&start, map->data, map->size);
    if (!plain) {
        tm_row_cursor ahead = start;
        st = tm_row_next(&ahead, &first, err);
        if (st == TM_OK && !first.text)
            return tm_fail(err, TM_INPUT, "%s: there is no row in it", path);
    }
    if (st == TM_OK)
        st = tm_row_rules_init(&r.rules, entry, &first, plain, tok, vocab_size, seq, err);
    if (st != TM_OK)
        return st == TM_INPUT && first.line ? locate(path, first.line, err)
               : st == TM_NO_MEMORY         ? st
                                            : tm_fail_prefix(err, "%s", path);
    TM_GO(plain ? read_document(&r, map->data, map->size, err) : read_rows(&r, &start, pool, err));
    TM_GO(make_examples(d, &r, index, err));
    TM_GO(tm_sha256_bytes(map->data, map->size, &d->store->source[index].hash, err));
out:
    reading_deinit(&r, plain ? 1 : tm_pool_threads(pool));
    return st;
}

static tm_status load_entry(tm_dataset *d, int64_t index, const tm_data_entry *entry, const char *base_dir,
                            const tm_tokenizer *tok, int64_t vocab_size, int64_t seq, tm_pool *pool, tm_error *err)
{
    bool relative = entry->path[0] != '/' && base_dir && strcmp(base_dir, ".") != 0;
    char *path = relative ? tm_path_join(base_dir, entry->path, err) : tm_strdup(entry->path, err);
    if (!path)
        return TM_NO_MEMORY;
    tm_map map = {0};
    tm_status st;
    TM_GO(refuse_other_files(path, err));
    TM_GO(tm_map_open(path, &map, err));
    st = load_map(d, index, path, &map, entry, tok, vocab_size, seq, pool, err);
    tm_map_close(&map);
out:
    free(path);
    return st;
}

static tm_status dataset_create(int64_t sources, store *shared, tm_dataset **out, tm_error *err)
{
    tm_dataset *d;
    TM_TRY(TM_NEW(&d, 1, err));
    tm_status st;
    TM_GO(TM_NEW(&d->stats, sources, err));
    if (!shared) {
        TM_GO(TM_NEW(&shared, 1, err));
        d->store = shared;
        shared->owners = 1;
        shared->sources = sources;
        TM_GO(TM_NEW(&shared->source, sources, err));
    } else {
        d->store = shared;
        shared->owners++;
    }
    *out = d;
    return TM_OK;
out:
    tm_dataset_destroy(d);
    return st;
}

tm_status tm_dataset_load(const tm_data_entry *entries, int64_t count, const char *base_dir, const tm_tokenizer *tok,
                          int64_t vocab_size, int64_t seq, tm_pool *pool, tm_dataset **out, tm_error *err)
{
    *out = NULL;
    if (count < 1)
        return tm_fail(err, TM_RECIPE, "data: there is no entry");
    if (seq < 2 || seq > INT32_MAX)
        return tm_fail(err, TM_RECIPE, "train.seq: %lld is not between 2 and %d", (long long)seq, INT32_MAX);
    tm_dataset *d;
    TM_TRY(dataset_create(count, NULL, &d, err));
    for (int64_t i = 0; i < count; i++) {
        tm_status st = load_entry(d, i, &entries[i], base_dir, tok, vocab_size, seq, pool, err);
        if (st != TM_OK) {
            tm_dataset_destroy(d);
            return st;
        }
    }
    *out = d;
    return TM_OK;
}

int64_t tm_dataset_count(const tm_dataset *data) { return data->count; }
const tm_example *tm_dataset_at(const tm_dataset *data, int64_t i) { return &data->example[i]; }
int64_t tm_dataset_sources(const tm_dataset *data) { return data->store->sources; }
const tm_dataset_stats *tm_dataset_stats_of(const tm_dataset *data, int64_t source_index)
{
    return &data->stats[source_index];
}
const tm_sha256 *tm_dataset_hash(const tm_dataset *data, int64_t source_index)
{
    return &data->store->source[source_index].hash;
}

/* --- Holding out --- */

/* Marks in held[count] which examples are held out. */
static tm_status choose(const tm_dataset *d, const tm_data_entry *entries, uint64_t seed, bool *held, tm_error *err)
{
    int64_t first = 0;
    for (int64_t s = 0; s < d->store->sources; s++) {
        int64_t n = d->stats[s].examples, take;
        if (entries[s].val_split > 0) {
            if (n < 2)
                return tm_fail(err, TM_RECIPE, "%s: val_split needs two examples at least, found %lld", entries[s].path,
                               (long long)n);
            take = llround(entries[s].val_split * (double)n);
            take = take < 1 ? 1 : take > n - 1 ? n - 1 : take;
            int64_t *order;
            TM_TRY(TM_NEW(&order, n, err));
            tm_permutation(tm_philox_key(seed, TM_PURPOSE_SUBSET, (uint32_t)s, 0), n, order);
            for (int64_t i = 0; i < take; i++)
                held[first + order[i]] = true;
            free(order);
        }
        first += n;
    }
    return TM_OK;
}

static void count_example(tm_dataset_stats *stats, const tm_example *e)
{
    stats->examples++;
    stats->tokens += e->n;
    stats->targets += e->targets;
}

tm_status tm_dataset_split(tm_dataset *d, const tm_data_entry *entries, uint64_t seed, tm_dataset **out, tm_error *err)
{
    *out = NULL;
    bool any = false, *held = NULL;
    for (int64_t s = 0; s < d->store->sources; s++)
        any |= entries[s].val_split > 0;
    if (!any)
        return TM_OK;
    tm_dataset *other = NULL;
    tm_status st;
    TM_GO(dataset_create(d->store->sources, d->store, &other, err));
    TM_GO(TM_NEW(&held, d->count, err));
    TM_GO(choose(d, entries, seed, held, err));
    TM_GO(TM_GROW(&other->example, &other->capacity, d->count, err));
    int64_t kept = 0;
    for (int64_t s = 0; s < d->store->sources; s++)
        d->stats[s].examples = d->stats[s].tokens = d->stats[s].targets = 0;
    for (int64_t i = 0; i < d->count; i++) {
        const tm_example e = d->example[i];
        if (held[i])
            other->example[other->count++] = e;
        else
            d->example[kept++] = e;
        count_example(&(held[i] ? other : d)->stats[e.source], &e);
    }
    d->count = kept;
    for (int64_t s = 0; s < d->store->sources; s++) {
        tm_dataset_stats *mine = &d->stats[s], *theirs = &other->stats[s];
        int64_t all = mine->targets + theirs->targets;
        theirs->text_bytes = all ? (int64_t)((__int128)mine->text_bytes * theirs->targets / all) : 0;
        mine->text_bytes -= theirs->text_bytes;
    }
    *out = other;
    other = NULL;
out:
    tm_dataset_destroy(other);
    free(held);
    return st;
}
