/* Data sets: see dataset.h. Entries are found, read (or mapped from the token cache) and listed as examples;
 * ids and weights lie in one block an entry, shared by data sets that were split from one another. */
#include "text/dataset_parts.h"

#include "base/json.h"
#include "base/philox.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct source {
    tm_data_files files;
    tm_token_store tokens;
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
    float **masked;          /* [maskings] weights that tm_dataset_mask made */
    int64_t maskings;
    size_t masked_capacity;
};

static void store_release(store *s)
{
    if (!s || --s->owners > 0)
        return;
    for (int64_t i = 0; s->source && i < s->sources; i++) {
        tm_data_files_deinit(&s->source[i].files);
        tm_token_store_deinit(&s->source[i].tokens);
    }
    free(s->source);
    free(s);
}

void tm_dataset_destroy(tm_dataset *data)
{
    if (!data)
        return;
    store_release(data->store);
    for (int64_t i = 0; i < data->maskings; i++)
        free(data->masked[i]);
    free(data->masked);
    free(data->example);
    free(data->stats);
    free(data);
}

/* --- Loading --- */

static void put_map(tm_buf *out, const tm_string_map *map)
{
    for (int64_t i = 0; i < map->keys.count; i++) {
        tm_json_put_string(out, map->keys.item[i]);
        tm_json_put_string(out, map->values.item[i]);
    }
}

/* The files that a chat template may come from, by their hashes. */
static tm_status put_templates(tm_buf *out, const tm_data_entry *entry, const tm_data_settings *settings, tm_error *err)
{
    static const char *const names[] = {"tokenizer_config.json", "chat_template.jinja", "chat_template.json"};
    tm_sha256 hash;
    for (size_t i = 0; settings->model && i < sizeof names / sizeof *names; i++) {
        char *path = tm_path_join(settings->model, names[i], err);
        tm_status st = path ? TM_OK : TM_NO_MEMORY;
        if (path && tm_path_exists(path) && (st = tm_sha256_file(path, &hash, err)) == TM_OK)
            tm_buf_printf(out, "\n%s %s", names[i], hash.hex);
        free(path);
        TM_TRY(st);
    }
    if (!entry->template)
        return TM_OK;
    tm_buf_text(out, "\ntemplate ");
    tm_json_put_string(out, entry->template);
    if (tm_path_exists(entry->template) && !tm_path_is_dir(entry->template)) {
        TM_TRY(tm_sha256_file(entry->template, &hash, err));
        tm_buf_text(out, hash.hex);
    }
    return TM_OK;
}

/* The name of what tokens were made of. */
static tm_status cache_key(const tm_data_entry *entry, const tm_data_settings *settings, const tm_sha256 *data,
                           tm_sha256 *key, tm_error *err)
{
    tm_buf text = {0};
    tm_buf_printf(&text, "temper tokens 1\ndata %s\ntokenizer %s\nseq %lld format %d loss %d dedup %d\nsystem ", data->hex,
                  settings->tokenizer_hash, (long long)settings->seq, entry->format, entry->loss, (int)entry->dedup);
    tm_json_put_string(&text, entry->system ? entry->system : "");
    tm_buf_text(&text, "\ncolumns ");
    put_map(&text, &entry->columns);
    tm_buf_text(&text, "\nroles ");
    put_map(&text, &entry->roles);
    tm_status st = put_templates(&text, entry, settings, err);
    if (st == TM_OK)
        st = tm_buf_check(&text, err);
    if (st == TM_OK)
        st = tm_sha256_bytes(text.data, text.size, key, err);
    tm_buf_deinit(&text);
    return st;
}

/* Tokens that were in no cache. Where another process is writing the same file they stay in memory. */
static tm_status read_tokens(source *s, const tm_data_entry *entry, const tm_data_settings *settings, const char *cache,
                             const tm_sha256 *key, tm_pool *pool, tm_error *err)
{
    tm_token_writer writer;
    tm_dataset_stats stats;
    tm_status st = tm_token_writer_open(cache, key, &writer, err);
    if (st == TM_LOCKED)
        st = tm_token_writer_open(NULL, key, &writer, err);
    if (st != TM_OK)
        return st;
    st = tm_data_read(&s->files, entry, settings, pool, &writer, &stats, err);
    if (st == TM_OK)
        return tm_token_writer_finish(&writer, &stats, &s->tokens, err);
    tm_token_writer_drop(&writer);
    return st;
}

static tm_status load_tokens(source *s, const tm_data_entry *entry, const tm_data_settings *settings, tm_pool *pool,
                             tm_error *err)
{
    if (!settings->cache || !settings->tokenizer_hash || s->files.bytes < settings->cache_from)
        return read_tokens(s, entry, settings, NULL, &s->files.hash, pool, err);
    tm_sha256 key;
    char name[64];
    bool found;
    TM_TRY(cache_key(entry, settings, &s->files.hash, &key, err));
    snprintf(name, sizeof name, "%.32s.tokens", key.hex);
    char *path = tm_path_join(settings->cache, name, err);
    if (!path)
        return TM_NO_MEMORY;
    tm_status st;
    TM_GO(tm_dir_create(settings->cache, err));
    TM_GO(tm_token_store_open(path, &key, settings->vocab_size, &s->tokens, &found, err));
    if (!found)
        st = read_tokens(s, entry, settings, path, &key, pool, err);
out:
    free(path);
    return st;
}

static tm_status list_examples(tm_dataset *d, int64_t index, tm_error *err)
{
    const tm_token_store *t = &d->store->source[index].tokens;
    TM_TRY(TM_GROW(&d->example, &d->capacity, d->count + t->examples, err));
    for (int64_t i = 0; i < t->examples; i++) {
        const tm_stored *e = &t->example[i];
        d->example[d->count++] = (tm_example){.ids = (const int32_t *)(t->base + e->ids),
                                              .weight = e->weight ? (const float *)(t->base + e->weight) : NULL,
                                              .n = e->n,
                                              .targets = e->targets,
                                              .source = (int32_t)index,
                                              .file = e->file,
                                              .line = e->line};
    }
    d->stats[index] = t->stats;
    return TM_OK;
}

/* What is yet to be made: examples of one length, all of the same ids. */
static tm_status suppose(source *s, const tm_data_settings *settings, tm_error *err)
{
    int64_t count = settings->supposed, n = settings->supposed_tokens;
    tm_dataset_stats stats = {.rows = count, .examples = count, .tokens = count * n, .targets = count * (n - 1)};
    tm_token_writer w;
    int32_t *ids;
    TM_TRY(TM_NEW(&ids, n, err));
    tm_status st = tm_token_writer_open(NULL, &s->files.hash, &w, err);
    if (st == TM_OK)
        st = tm_token_writer_put(&w, ids, (size_t)n * sizeof *ids, err);
    for (int64_t i = 0; i < count && st == TM_OK; i++)
        st = tm_token_writer_add(&w, (tm_stored){.n = (int32_t)n, .targets = (int32_t)n - 1, .line = i + 1}, err);
    free(ids);
    if (st == TM_OK)
        return tm_token_writer_finish(&w, &stats, &s->tokens, err);
    tm_token_writer_drop(&w);
    return st;
}

static tm_status load_entry(tm_dataset *d, int64_t index, const tm_data_entry *entry, const tm_data_settings *settings,
                            tm_pool *pool, tm_error *err)
{
    const char *base = settings->base_dir;
    bool relative = entry->path && entry->path[0] != '/' && base && strcmp(base, ".") != 0;
    char *path = relative ? tm_path_join(base, entry->path, err) : tm_strdup(entry->path ? entry->path : "", err);
    if (!path)
        return TM_NO_MEMORY;
    source *s = &d->store->source[index];
    tm_status st = entry->path ? tm_data_files_find(path, &s->files, err) : suppose(s, settings, err);
    if (st == TM_OK && entry->path)
        st = load_tokens(s, entry, settings, pool, err);
    if (st == TM_OK)
        st = list_examples(d, index, err);
    if (st == TM_OK && s->tokens.own_examples) {
        free(s->tokens.own_examples);
        s->tokens.own_examples = NULL;
    }
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

tm_status tm_dataset_load(const tm_data_entry *entries, int64_t count, const tm_data_settings *settings, tm_pool *pool,
                          tm_dataset **out, tm_error *err)
{
    *out = NULL;
    if (count < 1)
        return tm_fail(err, TM_RECIPE, "data: there is no entry");
    if (settings->seq < 2 || settings->seq > INT32_MAX)
        return tm_fail(err, TM_RECIPE, "train.seq: %lld is not between 2 and %d", (long long)settings->seq, INT32_MAX);
    tm_dataset *d;
    TM_TRY(dataset_create(count, NULL, &d, err));
    for (int64_t i = 0; i < count; i++) {
        tm_status st = load_entry(d, i, &entries[i], settings, pool, err);
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
int64_t tm_dataset_first(const tm_dataset *data, int64_t source_index)
{
    int64_t first = 0;
    for (int64_t s = 0; s < source_index; s++)
        first += data->stats[s].examples;
    return first;
}
const tm_dataset_stats *tm_dataset_stats_of(const tm_dataset *data, int64_t source_index)
{
    return &data->stats[source_index];
}
const tm_sha256 *tm_dataset_hash(const tm_dataset *data, int64_t source_index)
{
    return &data->store->source[source_index].files.hash;
}
const char *tm_dataset_file(const tm_dataset *data, int64_t source_index, int32_t file)
{
    return data->store->source[source_index].files.path.item[file];
}
tm_cache_use tm_dataset_cache(const tm_dataset *data, int64_t source_index)
{
    return data->store->source[source_index].tokens.use;
}

/* --- Holding out --- */

typedef struct row { /* the examples [first, end) of one row */
    int64_t first, end;
    uint64_t hash;
} row;

static int by_hash(const void *a, const void *b)
{
    uint64_t x = ((const row *)a)->hash, y = ((const row *)b)->hash;
    return x < y ? -1 : x > y;
}

/* The rows of the examples [first, end), which are of one entry. */
static int64_t list_rows(const tm_dataset *d, uint64_t key, int64_t first, int64_t end, row *rows)
{
    int64_t n = 0;
    for (int64_t i = first; i < end; i++) {
        const tm_example *e = &d->example[i];
        if (n && e->line == e[-1].line && e->file == e[-1].file) {
            rows[n - 1].end++;
            continue;
        }
        rows[n++] = (row){i, i + 1, tm_tokens_hash(key, e->ids, e->weight, e->n)};
    }
    return n;
}

/* Marks in held[count] which examples of an entry are held out. */
static tm_status choose(const tm_dataset *d, const tm_data_entry *entry, uint64_t key, int64_t first, int64_t end,
                        bool *held, tm_error *err)
{
    row *rows;
    TM_TRY(TM_NEW(&rows, end - first, err));
    tm_status st = TM_OK;
    int64_t n = list_rows(d, key, first, end, rows);
    if (n < 2)
        TM_GO(tm_fail(err, TM_RECIPE, "%s: val_split needs two examples at least, found %lld", entry->path, (long long)n));
    int64_t take = llround(entry->val_split * (double)n);
    take = take < 1 ? 1 : take > n - 1 ? n - 1 : take;
    qsort(rows, (size_t)n, sizeof *rows, by_hash);
    int64_t more = take, less = take; /* equal rows stay together: on this side or on that */
    while (more < n && rows[more].hash == rows[take - 1].hash)
        more++;
    while (less > 0 && rows[less - 1].hash == rows[take - 1].hash)
        less--;
    take = more < n ? more : less;
    if (take == 0)
        TM_GO(tm_fail(err, TM_RECIPE, "%s: val_split: all %lld rows are the same", entry->path, (long long)n));
    for (int64_t i = 0; i < take; i++)
        for (int64_t k = rows[i].first; k < rows[i].end; k++)
            held[k] = true;
out:
    free(rows);
    return st;
}

static void count_example(tm_dataset_stats *stats, const tm_example *e)
{
    stats->examples++;
    stats->tokens += e->n;
    stats->targets += e->targets;
}

/* Moves what is held to `other`. */
static void divide(tm_dataset *d, tm_dataset *other, const bool *held)
{
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
    for (int64_t s = 0; s < d->store->sources; s++)
        if (entries[s].val_split > 0)
            TM_GO(choose(d, &entries[s], tm_philox_key(seed, TM_PURPOSE_SUBSET, (uint32_t)s, 0), tm_dataset_first(d, s),
                         tm_dataset_first(d, s + 1), held, err));
    TM_GO(TM_GROW(&other->example, &other->capacity, d->count, err));
    divide(d, other, held);
    *out = other;
    other = NULL;
out:
    tm_dataset_destroy(other);
    free(held);
    return st;
}

void tm_dataset_keep(tm_dataset *d, int64_t source_index, const bool *keep)
{
    int64_t first = tm_dataset_first(d, source_index), end = tm_dataset_first(d, source_index + 1), kept = first;
    tm_dataset_stats *stats = &d->stats[source_index];
    int64_t targets = stats->targets;
    stats->examples = stats->tokens = stats->targets = 0;
    for (int64_t i = first; i < end; i++) {
        if (!keep[i - first])
            continue;
        d->example[kept] = d->example[i];
        count_example(stats, &d->example[kept++]);
    }
    stats->text_bytes = targets ? (int64_t)((__int128)stats->text_bytes * stats->targets / targets) : 0;
    memmove(d->example + kept, d->example + end, (size_t)(d->count - end) * sizeof *d->example);
    d->count -= end - kept;
}

/* --- Masking --- */

static bool bit(const uint8_t *bits, int64_t i) { return bits[i / 8] >> (i % 8) & 1; }

static int64_t bits_set(const uint8_t *bits, int64_t first, int64_t n)
{
    int64_t set = 0;
    for (int64_t i = first; i < first + n; i++)
        set += bit(bits, i);
    return set;
}

/* Gives an example weights without the targets from `first` on that are taken away. */
static void mask_example(tm_example *e, const uint8_t *bits, int64_t first, float *weight)
{
    int32_t left = 0;
    weight[0] = 0;
    for (int32_t t = 1; t < e->n; t++) {
        weight[t] = e->weight ? e->weight[t] : 1;
        if (weight[t] > 0 && bit(bits, first++))
            weight[t] = 0;
        left += weight[t] > 0;
    }
    e->weight = weight;
    e->targets = left;
}

tm_status tm_dataset_mask(tm_dataset *d, int64_t sources, const uint8_t *bits, tm_error *err)
{
    int64_t end = tm_dataset_first(d, sources), tokens = 0, at = 0, used = 0;
    float *block;
    for (int64_t i = 0; i < end; at += d->example[i++].targets)
        tokens += bits_set(bits, at, d->example[i].targets) ? d->example[i].n : 0;
    TM_TRY(TM_GROW(&d->masked, &d->masked_capacity, d->maskings + 1, err));
    TM_TRY(TM_NEW(&block, tokens + 1, err));
    d->masked[d->maskings++] = block;
    at = 0;
    for (int64_t i = 0; i < end; i++) {
        tm_example *e = &d->example[i];
        int64_t targets = e->targets, lost = bits_set(bits, at, targets);
        if (lost) {
            mask_example(e, bits, at, block + used);
            used += e->n;
            d->stats[e->source].targets -= lost;
        }
        at += targets;
    }
    return TM_OK;
}
