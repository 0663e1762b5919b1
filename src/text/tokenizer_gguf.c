/* Tokenizers inside GGUF files: see tokenizer_gguf.h. The keys tokenizer.ggml.* become tm_tokenizer_parts;
 * lengths are held against each other here, what the parts mean is the tokenizer's matter. */
#include "text/tokenizer_gguf.h"

#include "base/file.h"
#include "io/gguf.h"

#include <stdlib.h>
#include <string.h>

typedef struct arrays {
    tm_tokenizer_parts parts;
    tm_gguf_text *token, *merge;
    float *score;
    int32_t *type;
    char *model, *pre;
} arrays;

static void arrays_deinit(arrays *a)
{
    free(a->token);
    free(a->merge);
    free(a->score);
    free(a->type);
    free(a->model);
    free(a->pre);
}

static tm_status word(const tm_gguf *g, const char *key, char **out, const char **part, tm_error *err)
{
    tm_gguf_text text;
    TM_TRY(tm_gguf_get_text(g, key, &text, err));
    if (!text.text)
        return TM_OK;
    TM_TRY(TM_NEW(out, text.size + 1, err));
    memcpy(*out, text.text, text.size);
    *part = *out;
    return TM_OK;
}

static tm_status flag(const tm_gguf *g, const char *key, int *out, tm_error *err)
{
    bool value;
    TM_TRY(tm_gguf_get_bool(g, key, false, &value, err));
    if (tm_gguf_find(g, key))
        *out = value;
    return TM_OK;
}

static tm_status token_id(const tm_gguf *g, const char *key, int64_t count, int32_t *out, tm_error *err)
{
    int64_t id;
    TM_TRY(tm_gguf_get_int(g, key, -1, &id, err));
    if (id < -1 || id >= count) {
        if (id == UINT32_MAX) /* some writers' "none" */
            id = -1;
        else
            return tm_fail(err, TM_INPUT, "%s: key %s is %lld, the vocabulary has %lld tokens", tm_gguf_name(g), key, (long long)id,
                           (long long)count);
    }
    *out = (int32_t)id;
    return TM_OK;
}

static tm_status same_length(const tm_gguf *g, const char *key, int64_t count, int64_t tokens, tm_error *err)
{
    return !count || count == tokens ? TM_OK
                                     : tm_fail(err, TM_INPUT, "%s: key %s has %lld elements, tokenizer.ggml.tokens has %lld", tm_gguf_name(g),
                                               key, (long long)count, (long long)tokens);
}

/* The layouts are the same, so that arrays need no copy. */
_Static_assert(sizeof(tm_gguf_text) == sizeof(tm_token_text) && offsetof(tm_gguf_text, size) == offsetof(tm_token_text, size), "pieces");

static tm_status read_arrays(const tm_gguf *g, arrays *a, tm_error *err)
{
    static const char tokens[] = "tokenizer.ggml.tokens";
    tm_tokenizer_parts *p = &a->parts;
    const tm_gguf_value *map = tm_gguf_find(g, "tokenizer.ggml.precompiled_charsmap");
    int64_t count, n;
    *p = (tm_tokenizer_parts)TM_TOKENIZER_PARTS_NONE;
    TM_TRY(word(g, "tokenizer.ggml.model", &a->model, &p->model, err));
    TM_TRY(word(g, "tokenizer.ggml.pre", &a->pre, &p->pre, err));
    TM_TRY(tm_gguf_get_texts(g, tokens, &a->token, &count, err));
    if (!p->model || !count)
        return tm_fail(err, TM_INPUT, "%s: key %s is missing: the file holds no tokenizer", tm_gguf_name(g), p->model ? tokens : "tokenizer.ggml.model");
    p->token = (const tm_token_text *)a->token;
    p->count = (size_t)count;
    TM_TRY(tm_gguf_get_floats(g, "tokenizer.ggml.scores", &a->score, &n, err));
    TM_TRY(same_length(g, "tokenizer.ggml.scores", n, count, err));
    p->score = n ? a->score : NULL;
    TM_TRY(tm_gguf_get_ints(g, "tokenizer.ggml.token_type", &a->type, &n, err));
    TM_TRY(same_length(g, "tokenizer.ggml.token_type", n, count, err));
    p->type = n ? a->type : NULL;
    TM_TRY(tm_gguf_get_texts(g, "tokenizer.ggml.merges", &a->merge, &n, err));
    p->merge = (const tm_token_text *)a->merge;
    p->merge_count = (size_t)n;
    if (map && map->is_array && (map->type == TM_GGUF_U8 || map->type == TM_GGUF_I8)) {
        p->charsmap = map->data;
        p->charsmap_size = (size_t)map->count;
    }
    TM_TRY(token_id(g, "tokenizer.ggml.bos_token_id", count, &p->bos, err));
    TM_TRY(token_id(g, "tokenizer.ggml.eos_token_id", count, &p->eos, err));
    TM_TRY(token_id(g, "tokenizer.ggml.unknown_token_id", count, &p->unk, err));
    TM_TRY(flag(g, "tokenizer.ggml.add_bos_token", &p->add_bos, err));
    TM_TRY(flag(g, "tokenizer.ggml.add_eos_token", &p->add_eos, err));
    TM_TRY(flag(g, "tokenizer.ggml.add_space_prefix", &p->add_space_prefix, err));
    return flag(g, "tokenizer.ggml.remove_extra_whitespaces", &p->remove_extra_whitespaces, err);
}

tm_status tm_tokenizer_from_gguf(const tm_gguf *g, tm_tokenizer **out, tm_error *err)
{
    arrays a = {0};
    *out = NULL;
    tm_status st = read_arrays(g, &a, err);
    if (st == TM_OK)
        st = tm_tokenizer_from_parts(&a.parts, tm_gguf_name(g), out, err);
    arrays_deinit(&a);
    return st;
}

tm_status tm_tokenizer_open_gguf(const char *path, tm_tokenizer **out, tm_error *err)
{
    tm_gguf *g;
    *out = NULL;
    TM_TRY(tm_gguf_open(path, &g, err));
    tm_status st = tm_tokenizer_from_gguf(g, out, err);
    tm_gguf_close(g);
    return st;
}

tm_status tm_tokenizer_write(const char *model, const char *dir, tm_error *err)
{
    tm_gguf *g = NULL;
    arrays a = {0};
    tm_buf json = {0};
    char *path = NULL;
    tm_status st;
    if (!tm_gguf_is(model))
        return TM_OK;
    TM_GO(tm_gguf_open(model, &g, err));
    TM_GO(read_arrays(g, &a, err));
    TM_GO(tm_tokenizer_parts_json(&a.parts, model, &json, err));
    TM_GO(tm_buf_check(&json, err));
    path = tm_path_join(dir, "tokenizer.json", err);
    st = path ? tm_file_write(path, tm_buf_str(&json), json.size, err) : TM_NO_MEMORY;
out:
    free(path);
    tm_buf_deinit(&json);
    arrays_deinit(&a);
    tm_gguf_close(g);
    return st;
}
