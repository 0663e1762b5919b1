/* Where the tokens of an entry lie: one block of bytes, in memory or in a cache file that is mapped. The same
 * bytes in both: ids (and weights, where an example needs them) as they came, then the table of examples; a
 * cache file ends with a trailer. docs/formats/data.md has the layout.
 *
 * A cache file is used only when all of this holds, and is written anew otherwise: its size and its key (the
 * hash of data, tokenizer and settings) are as the trailer says, and so is the hash of its content. It is
 * written aside and renamed, so a torn one never has the name. */
#include "text/dataset_parts.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { VERSION = 1 };

typedef struct trailer {
    char magic[8];
    uint32_t version;
    int32_t max_id;
    uint64_t examples_at, examples, size; /* size: of the file */
    int64_t stats[8];
    char key[64], content[64]; /* SHA-256, hex: of what it was made of; of the whole file, this field as zeros */
} trailer;
static const char magic[8] = "tmtokens";

void tm_token_store_deinit(tm_token_store *s)
{
    tm_buf_deinit(&s->memory);
    if (s->map.data)
        tm_map_close(&s->map);
    free(s->own_examples);
    *s = (tm_token_store){0};
}

/* --- Writing --- */

tm_status tm_token_writer_open(const char *path, const tm_sha256 *key, tm_token_writer *w, tm_error *err)
{
    *w = (tm_token_writer){.file = {.fd = -1}, .max_id = -1};
    if (!path)
        return TM_OK;
    w->key = *key;
    TM_TRY(tm_file_out_open(path, &w->file, err));
    w->to_file = true;
    tm_status st = tm_sha256_begin(&w->hash, err);
    if (st != TM_OK)
        tm_token_writer_drop(w);
    return st;
}

void tm_token_writer_drop(tm_token_writer *w)
{
    if (w->to_file)
        tm_file_out_discard(&w->file);
    tm_sha256_drop(&w->hash);
    tm_buf_deinit(&w->memory);
    free(w->example);
    *w = (tm_token_writer){.file = {.fd = -1}};
}

tm_status tm_token_writer_put(tm_token_writer *w, const void *data, size_t size, tm_error *err)
{
    w->at += size;
    if (!w->to_file) {
        tm_buf_add(&w->memory, data, size);
        return tm_buf_check(&w->memory, err);
    }
    TM_TRY(tm_sha256_add(&w->hash, data, size, err));
    return tm_file_out_put(&w->file, data, size, err);
}

tm_status tm_token_writer_add(tm_token_writer *w, tm_stored example, tm_error *err)
{
    TM_TRY(TM_GROW(&w->example, &w->capacity, w->examples + 1, err));
    w->example[w->examples++] = example;
    return TM_OK;
}

static void stats_to(const tm_dataset_stats *s, int64_t to[8])
{
    const int64_t all[8] = {s->rows, s->examples, s->tokens, s->targets, s->cut, s->dropped, s->duplicates, s->text_bytes};
    memcpy(to, all, sizeof all);
}

static tm_dataset_stats stats_from(const int64_t s[8])
{
    return (tm_dataset_stats){.rows = s[0], .examples = s[1], .tokens = s[2], .targets = s[3], .cut = s[4],
                              .dropped = s[5], .duplicates = s[6], .text_bytes = s[7]};
}

static tm_status finish_memory(tm_token_writer *w, const tm_dataset_stats *stats, tm_token_store *out)
{
    *out = (tm_token_store){.memory = w->memory,
                            .base = tm_buf_str(&w->memory),
                            .example = w->example,
                            .own_examples = w->example,
                            .examples = (int64_t)w->examples,
                            .stats = *stats,
                            .use = TM_CACHE_NONE};
    w->memory = (tm_buf){0};
    w->example = NULL;
    return TM_OK;
}

static tm_status open_map(const char *path, tm_token_store *out, trailer *end, tm_error *err)
{
    *out = (tm_token_store){0};
    TM_TRY(tm_map_open(path, &out->map, err));
    if (out->map.size >= sizeof *end)
        memcpy(end, out->map.data + out->map.size - sizeof *end, sizeof *end);
    else
        memset(end, 0, sizeof *end);
    out->base = out->map.data;
    return TM_OK;
}

static void use_map(tm_token_store *out, const trailer *end, tm_cache_use use)
{
    out->example = (const tm_stored *)(out->base + end->examples_at);
    out->examples = (int64_t)end->examples;
    out->stats = stats_from(end->stats);
    out->use = use;
}

tm_status tm_token_writer_finish(tm_token_writer *w, const tm_dataset_stats *stats, tm_token_store *out, tm_error *err)
{
    static const char zeros[8];
    tm_status st = TM_OK;
    tm_sha256 content;
    char *path = NULL;
    trailer end = {.version = VERSION, .max_id = w->max_id, .examples = w->examples};
    if (!w->to_file) {
        st = finish_memory(w, stats, out);
        goto out;
    }
    if (w->at % 8)
        TM_GO(tm_token_writer_put(w, zeros, 8 - w->at % 8, err));
    end.examples_at = w->at;
    TM_GO(tm_token_writer_put(w, w->example, w->examples * sizeof *w->example, err));
    memcpy(end.magic, magic, 8);
    memcpy(end.key, w->key.hex, 64);
    end.size = w->at + sizeof end;
    stats_to(stats, end.stats);
    TM_GO(tm_sha256_add(&w->hash, &end, sizeof end, err));
    TM_GO(tm_sha256_end(&w->hash, &content, err));
    memcpy(end.content, content.hex, 64);
    path = tm_strdup(w->file.path, err);
    if (!path)
        TM_GO(TM_NO_MEMORY);
    TM_GO(tm_file_out_put(&w->file, &end, sizeof end, err));
    TM_GO(tm_file_out_commit(&w->file, err));
    TM_GO(open_map(path, out, &end, err));
    if (out->map.size != end.size || memcmp(end.key, w->key.hex, 64) != 0) { /* replaced by another hand */
        tm_token_store_deinit(out);
        TM_GO(tm_fail(err, TM_IO, "%s: changed while it was written", path));
    }
    use_map(out, &end, TM_CACHE_WRITTEN);
out:
    free(path);
    tm_token_writer_drop(w);
    return st;
}

/* --- Opening --- */

/* Whether the content has its hash; pages that have been looked at are given back. */
static tm_status check_content(const tm_token_store *s, const trailer *end, bool *same, tm_error *err)
{
    enum { PIECE = 8 << 20 };
    tm_sha256_stream hash;
    tm_sha256 content;
    TM_TRY(tm_sha256_begin(&hash, err));
    size_t size = s->map.size - sizeof *end;
    tm_status st = TM_OK;
    for (size_t at = 0; at < size && st == TM_OK; at += PIECE) {
        size_t n = size - at < PIECE ? size - at : PIECE;
        st = tm_sha256_add(&hash, s->base + at, n, err);
        madvise((void *)(s->base + at), n, MADV_DONTNEED);
    }
    trailer bare = *end;
    memset(bare.content, 0, sizeof bare.content);
    if (st == TM_OK)
        st = tm_sha256_add(&hash, &bare, sizeof bare, err);
    if (st != TM_OK) {
        tm_sha256_drop(&hash);
        return st;
    }
    TM_TRY(tm_sha256_end(&hash, &content, err));
    *same = memcmp(content.hex, end->content, 64) == 0;
    return TM_OK;
}

static bool examples_fit(const tm_token_store *s, const trailer *end)
{
    const tm_stored *e = (const tm_stored *)(s->base + end->examples_at);
    for (uint64_t i = 0; i < end->examples; i++) {
        if (e[i].n < 2 || e[i].ids % 4 || e[i].weight % 4)
            return false;
        uint64_t bytes = 4 * (uint64_t)e[i].n;
        if (bytes > end->examples_at || e[i].ids > end->examples_at - bytes || e[i].weight > end->examples_at - bytes)
            return false;
    }
    return true;
}

tm_status tm_token_store_open(const char *path, const tm_sha256 *key, int64_t vocab_size, tm_token_store *out,
                              bool *found, tm_error *err)
{
    *found = false;
    *out = (tm_token_store){0};
    trailer end;
    if (!tm_path_exists(path))
        return TM_OK;
    TM_TRY(open_map(path, out, &end, err));
    uint64_t size = out->map.size, room = size - sizeof end;
    bool ours = size >= sizeof end && memcmp(end.magic, magic, 8) == 0 && end.version == VERSION && end.size == size &&
                memcmp(end.key, key->hex, 64) == 0 && end.max_id < vocab_size && end.examples_at % 8 == 0 &&
                end.examples_at <= room && end.examples == (room - end.examples_at) / sizeof(tm_stored) &&
                end.examples > 0;
    tm_status st = TM_OK;
    if (ours)
        st = check_content(out, &end, &ours, err);
    if (st == TM_OK && ours && examples_fit(out, &end)) {
        use_map(out, &end, TM_CACHE_USED);
        *found = true;
    } else
        tm_token_store_deinit(out);
    return st;
}
