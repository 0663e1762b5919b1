/* Model folders: see hf.h. A reader prefers model.safetensors to an index, and an index names its
 * shards; so files that the new weights do not use are removed only when all of theirs are in place. */
#include "io/hf.h"

#include "base/file.h"
#include "io/gguf_model.h"

#include <stdlib.h>
#include <string.h>

static const char single_name[] = "model.safetensors", index_name[] = "model.safetensors.index.json";

tm_status tm_hf_read(const char *model, const char *name, tm_buf *out, bool *there, tm_error *err)
{
    enum { MAX_BYTES = 1 << 30 };
    *there = false;
    if (tm_gguf_is(model)) {
        tm_gguf *gguf;
        TM_TRY(tm_gguf_open(model, &gguf, err));
        tm_status st = tm_gguf_hf_file(gguf, name, out, there, err);
        tm_gguf_close(gguf);
        return st;
    }
    char *path = tm_path_join(model, name, err);
    if (!path)
        return TM_NO_MEMORY;
    *there = tm_path_exists(path);
    tm_status st = *there ? tm_file_read(path, MAX_BYTES, out, err) : TM_OK;
    free(path);
    return st;
}

tm_status tm_hf_json(const char *model, const char *name, json_t **out, tm_error *err)
{
    tm_buf text = {0};
    bool there;
    *out = NULL;
    char *path = tm_path_join(model, name, err);
    tm_status st = path ? tm_hf_read(model, name, &text, &there, err) : TM_NO_MEMORY;
    if (st == TM_OK && there)
        st = tm_json_parse(tm_buf_str(&text), text.size, path, out, err);
    tm_buf_deinit(&text);
    free(path);
    return st;
}

tm_status tm_hf_open_weights(const char *model, tm_safetensors **out, tm_error *err)
{
    return tm_gguf_is(model) ? tm_gguf_open_weights(model, out, err) : tm_safetensors_open_model(model, out, err);
}

tm_status tm_hf_hash(const char *model, tm_sha256 *out, tm_error *err)
{
    tm_names files = {0};
    if (tm_gguf_is(model))
        return tm_sha256_file(model, out, err);
    tm_status st = tm_hf_model_files(model, &files, err);
    if (st == TM_OK)
        st = tm_sha256_files(model, files.item, (size_t)files.count, out, err);
    tm_names_deinit(&files);
    return st;
}

/* The first and the last bytes of a tensor, and blocks in even distances between. */
static tm_status add_sample(tm_sha256_stream *s, const uint8_t *data, int64_t bytes, tm_error *err)
{
    enum { BLOCKS = 8, BLOCK = 512 };
    if (bytes <= BLOCKS * BLOCK)
        return tm_sha256_add(s, data, (size_t)bytes, err);
    for (int64_t i = 0; i < BLOCKS; i++) {
        int64_t room = bytes - BLOCK, at = i + 1 < BLOCKS ? room / (BLOCKS - 1) * i : room;
        TM_TRY(tm_sha256_add(s, data + at, BLOCK, err));
    }
    return TM_OK;
}

static tm_status add_tensor(tm_sha256_stream *s, const tm_st_tensor *t, tm_error *err)
{
    tm_buf text = {0};
    tm_buf_add(&text, t->name, strlen(t->name) + 1);
    tm_buf_text(&text, t->storage ? t->storage : tm_dtype_name(t->dtype));
    for (int i = 0; i < t->ndim; i++)
        tm_buf_printf(&text, " %lld", (long long)t->shape[i]);
    tm_buf_char(&text, '\n');
    tm_status st = tm_buf_check(&text, err);
    if (st == TM_OK)
        st = tm_sha256_add(s, text.data, text.size, err);
    tm_buf_deinit(&text);
    TM_TRY(st);
    return t->packed ? add_sample(s, t->packed, t->packed_bytes, err) : add_sample(s, t->data, t->bytes, err);
}

tm_status tm_hf_sample(const char *model, const tm_safetensors *weights, tm_sha256 *out, tm_error *err)
{
    tm_sha256_stream s = {0};
    tm_buf config = {0};
    bool there;
    tm_status st = tm_hf_read(model, "config.json", &config, &there, err);
    TM_GO(st);
    TM_GO(tm_sha256_begin(&s, err));
    TM_GO(tm_sha256_add(&s, tm_buf_str(&config), config.size, err));
    for (int64_t i = 0; weights && i < tm_safetensors_count(weights); i++)
        TM_GO(add_tensor(&s, tm_safetensors_at(weights, i), err));
    st = tm_sha256_end(&s, out, err);
out:
    tm_sha256_drop(&s);
    tm_buf_deinit(&config);
    return st;
}

static tm_status copy_file(const char *from, const char *to_dir, const char *name, tm_error *err)
{
    tm_buf text = {0};
    bool there;
    tm_status st = tm_hf_read(from, name, &text, &there, err);
    char *to = tm_path_join(to_dir, name, err);
    if (st == TM_OK && there)
        st = to ? tm_file_write(to, tm_buf_str(&text), text.size, err) : TM_NO_MEMORY;
    tm_buf_deinit(&text);
    free(to);
    return st;
}

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

/* The code of families that transformers runs from the folder (auto_map). */
static tm_status copy_code(const char *from_dir, const char *to_dir, tm_error *err)
{
    char **names;
    size_t count;
    TM_TRY(tm_dir_list(from_dir, &names, &count, err));
    tm_status st = TM_OK;
    for (size_t i = 0; i < count && st == TM_OK; i++)
        if (names[i][0] != '.' && ends_with(names[i], ".py"))
            st = copy_file(from_dir, to_dir, names[i], err);
    tm_names_free(names, count);
    return st;
}

tm_status tm_hf_copy_files(const char *from_dir, const char *to_dir, tm_error *err)
{
    static const char *const names[] = {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
        "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
        "chat_template.json", "spiece.model", "sentencepiece.bpe.model", "qwen.tiktoken", "tekken.json",
    };
    if (tm_path_same(from_dir, to_dir))
        return TM_OK;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        TM_TRY(copy_file(from_dir, to_dir, names[i], err));
    return tm_path_is_dir(from_dir) ? copy_code(from_dir, to_dir, err) : TM_OK;
}

tm_status tm_hf_model_files(const char *dir, tm_names *out, tm_error *err)
{
    char **names;
    size_t count;
    *out = (tm_names){0};
    TM_TRY(tm_dir_list(dir, &names, &count, err));
    tm_status st = TM_OK;
    for (int pass = 0; pass < 3; pass++)
        for (size_t i = 0; i < count && st == TM_OK; i++)
            if (pass == 0 ? strcmp(names[i], "config.json") == 0
                          : pass == 1 ? names[i][0] != '.' && ends_with(names[i], ".safetensors")
                                      : strcmp(names[i], index_name) == 0)
                st = tm_names_add(out, names[i], err);
    tm_names_free(names, count);
    if (st != TM_OK)
        tm_names_deinit(out);
    return st;
}

/* ---- writing a model ---- */

static int64_t bytes_of(const tm_st_tensor *t)
{
    int64_t count = 1;
    for (int i = 0; i < t->ndim; i++)
        count *= t->shape[i];
    return count * tm_dtype_bits(t->dtype) / 8;
}

/* Gives the tensors of the open shard, marked -1, the next number. */
static void close_shard(int64_t *shard, int64_t end, int64_t *shards)
{
    for (int64_t i = 0; i < end; i++)
        if (shard[i] < 0)
            shard[i] = *shards;
    ++*shards;
}

/* shard[i]: the number, from 0, of the shard of tensor i. Returns how many there are. As in transformers a
 * tensor above the limit is a shard at once, and the open shard gets its number when it is closed. */
static int64_t divide(const tm_st_tensor *tensors, int64_t count, int64_t limit, int64_t *shard)
{
    int64_t shards = 0, filled = 0;
    bool open = false;
    for (int64_t i = 0; i < count; i++) {
        int64_t bytes = bytes_of(&tensors[i]);
        if (bytes > limit) {
            shard[i] = shards++;
            continue;
        }
        if (open && filled + bytes > limit) {
            close_shard(shard, i, &shards);
            filled = 0;
        }
        shard[i] = -1;
        open = true;
        filled += bytes;
    }
    if (open)
        close_shard(shard, count, &shards);
    return shards;
}

static void shard_name(char *name, size_t size, int64_t shard, int64_t shards)
{
    if (shards <= 1)
        snprintf(name, size, "%s", single_name);
    else
        snprintf(name, size, "model-%05lld-of-%05lld.safetensors", (long long)shard + 1, (long long)shards);
}

static tm_status write_shard(const char *dir, const char *name, const tm_st_tensor *tensors, int64_t count,
                             tm_error *err)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    char *path = tm_path_join(dir, name, err);
    tm_status st = path ? tm_safetensors_write(path, tensors, count, metadata, err) : TM_NO_MEMORY;
    free(path);
    return st;
}

static tm_status write_shards(const char *dir, const tm_st_tensor *tensors, int64_t count, const int64_t *shard,
                              int64_t shards, tm_error *err)
{
    tm_st_tensor *part;
    tm_status st = TM_OK;
    TM_TRY(TM_NEW(&part, count, err));
    for (int64_t s = 0; s < (shards ? shards : 1) && st == TM_OK; s++) {
        char name[64];
        int64_t n = 0;
        for (int64_t i = 0; i < count; i++)
            if (shard[i] == s)
                part[n++] = tensors[i];
        shard_name(name, sizeof name, s, shards);
        st = write_shard(dir, name, part, n, err);
    }
    free(part);
    return st;
}

typedef struct place {
    const char *tensor;
    int64_t shard;
} place;

static int by_tensor(const void *a, const void *b)
{
    return strcmp(((const place *)a)->tensor, ((const place *)b)->tensor);
}

static tm_status write_index(const char *dir, const tm_st_tensor *tensors, int64_t count, const int64_t *shard,
                             int64_t shards, tm_error *err)
{
    tm_buf text = {0};
    place *places = NULL;
    int64_t total = 0;
    tm_status st;
    char *path = tm_path_join(dir, index_name, err);
    if (!path)
        return TM_NO_MEMORY;
    TM_GO(TM_NEW(&places, count, err));
    for (int64_t i = 0; i < count; i++) {
        places[i] = (place){tensors[i].name, shard[i]};
        total += bytes_of(&tensors[i]);
    }
    qsort(places, (size_t)count, sizeof *places, by_tensor);
    tm_buf_printf(&text, "{\n  \"metadata\": {\n    \"total_size\": %lld\n  },\n  \"weight_map\": {", (long long)total);
    for (int64_t i = 0; i < count; i++) {
        char name[64];
        shard_name(name, sizeof name, places[i].shard, shards);
        tm_buf_text(&text, i ? ",\n    " : "\n    ");
        tm_json_put_string(&text, places[i].tensor);
        tm_buf_printf(&text, ": \"%s\"", name);
    }
    tm_buf_text(&text, "\n  }\n}\n");
    TM_GO(tm_buf_check(&text, err));
    st = tm_file_write(path, text.data, text.size, err);
out:
    free(places);
    free(path);
    tm_buf_deinit(&text);
    return st;
}

/* Whether a file of a model folder holds weights that a folder of that many shards does not use. */
static bool is_stale(const char *name, int64_t shards)
{
    long long number, of;
    char again[64];
    if (strcmp(name, single_name) == 0)
        return shards > 1;
    if (strcmp(name, index_name) == 0)
        return shards <= 1;
    if (sscanf(name, "model-%lld-of-%lld.safetensors", &number, &of) != 2 || number < 1 || number > of)
        return false;
    snprintf(again, sizeof again, "model-%05lld-of-%05lld.safetensors", number, of);
    return strcmp(name, again) == 0 && (shards <= 1 || of != shards);
}

static tm_status remove_stale(const char *dir, int64_t shards, tm_error *err)
{
    char **names;
    size_t count;
    TM_TRY(tm_dir_list(dir, &names, &count, err));
    tm_status st = TM_OK;
    for (size_t i = 0; i < count && st == TM_OK; i++) {
        if (!is_stale(names[i], shards))
            continue;
        char *path = tm_path_join(dir, names[i], err);
        st = path ? tm_dir_remove(path, err) : TM_NO_MEMORY;
        free(path);
    }
    tm_names_free(names, count);
    return st;
}

tm_status tm_hf_write_model(const char *dir, const tm_st_tensor *tensors, int64_t count, int64_t shard_bytes,
                            tm_error *err)
{
    int64_t *shard;
    TM_TRY(TM_NEW(&shard, count, err));
    int64_t shards = divide(tensors, count, shard_bytes, shard);
    tm_status st = write_shards(dir, tensors, count, shard, shards, err);
    if (st == TM_OK && shards > 1)
        st = write_index(dir, tensors, count, shard, shards, err);
    if (st == TM_OK)
        st = remove_stale(dir, shards, err);
    free(shard);
    return st;
}
