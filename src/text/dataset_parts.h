/* The parts of a data set: which files an entry has (dataset_files.c), how they are read (dataset_read.c),
 * where tokens lie (dataset_store.c). Private to src/text. */
#ifndef TM_TEXT_DATASET_PARTS_H
#define TM_TEXT_DATASET_PARTS_H

#include "base/file.h"
#include "text/dataset.h"

/* --- Files of an entry --- */

typedef struct tm_data_files {
    tm_names path;  /* in the order in which they are read: by the bytes of their names */
    int64_t bytes;  /* sizes on disk */
    tm_sha256 hash; /* of the file, or of names and hashes of all */
} tm_data_files;
tm_status tm_data_files_find(const char *path, tm_data_files *out, tm_error *err) TM_MUST_CHECK;
void tm_data_files_deinit(tm_data_files *files);

/* --- Where the tokens of an entry lie: one block, in memory or mapped from a cache file --- */

typedef struct tm_stored { /* an example; places are bytes from the beginning of the block */
    uint64_t ids, weight;  /* weight 0: 1 for every token but the first */
    int64_t line;
    int32_t n, targets, file, unused;
} tm_stored;

typedef struct tm_token_store {
    tm_buf memory; /* or */
    tm_map map;
    const char *base;
    const tm_stored *example;
    tm_stored *own_examples; /* memory only */
    int64_t examples;
    tm_dataset_stats stats;
    tm_cache_use use;
} tm_token_store;
void tm_token_store_deinit(tm_token_store *store);

typedef struct tm_token_writer {
    bool to_file;
    tm_buf memory;
    tm_file_out file;
    tm_sha256_stream hash;
    tm_sha256 key;
    uint64_t at;
    tm_stored *example;
    size_t examples, capacity;
    int32_t max_id;
} tm_token_writer;
/* path NULL: memory. key names what the tokens were made of. */
tm_status tm_token_writer_open(const char *path, const tm_sha256 *key, tm_token_writer *out, tm_error *err) TM_MUST_CHECK;
tm_status tm_token_writer_put(tm_token_writer *w, const void *data, size_t size, tm_error *err) TM_MUST_CHECK;
tm_status tm_token_writer_add(tm_token_writer *w, tm_stored example, tm_error *err) TM_MUST_CHECK;
/* Closes the writer in any case. */
tm_status tm_token_writer_finish(tm_token_writer *w, const tm_dataset_stats *stats, tm_token_store *out,
                                 tm_error *err) TM_MUST_CHECK;
void tm_token_writer_drop(tm_token_writer *w);
/* Maps a cache file. *found false: there is none, or it is damaged, or made of something else, or holds
 * ids outside the vocabulary; it is then written anew. */
tm_status tm_token_store_open(const char *path, const tm_sha256 *key, int64_t vocab_size, tm_token_store *out,
                              bool *found, tm_error *err) TM_MUST_CHECK;

/* --- Reading --- */

tm_status tm_data_read(const tm_data_files *files, const tm_data_entry *entry, const tm_data_settings *settings,
                       tm_pool *pool, tm_token_writer *to, tm_dataset_stats *stats, tm_error *err) TM_MUST_CHECK;

#endif
