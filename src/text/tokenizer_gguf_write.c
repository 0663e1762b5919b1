/* A tokenizer as GGUF holds it: tokens by id with kinds, merges or scores, special ids, chat template. Out of
 * the tokenizer.json that a model's files say or stand for; out of another GGUF file its keys are copied.
 *
 * llama.cpp has no patterns in files: it knows ways of splitting text by name (tokenizer.ggml.pre). A
 * pattern that has no name is refused, since text would be split otherwise there. */
#include "text/tokenizer_gguf.h"

#include "io/hf.h"
#include "text/tokenizer_convert.h"

#include <stdlib.h>
#include <string.h>

typedef struct vocab {
    const char **text; /* [count]; NULL: no such token */
    int32_t *type;     /* TM_PIECE_* */
    float *score;
    int64_t count;
} vocab;

typedef struct work {
    tm_gguf_writer *w;
    const char *model;
    const json_t *json, *config; /* tokenizer.json, config.json */
    json_t *settings;            /* tokenizer_config.json or NULL */
    tm_tokenizer *tok;
    vocab v;
    tm_error *err;
} work;

static const char *type_of(const json_t *part)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    return type ? type : "";
}

static tm_status refuse(const work *k, const char *what)
{
    return tm_fail(k->err, TM_UNSUPPORTED, "%s: its tokenizer cannot be written as GGUF: %s", k->model, what);
}

/* ---- tokens ---- */

static tm_status place(work *k, const char *text, const json_t *id, int32_t type)
{
    json_int_t at = json_is_integer(id) ? json_integer_value(id) : -1;
    if (at < 0 || at >= k->v.count)
        return tm_fail(k->err, TM_INPUT, "%s: token \"%.80s\" has id %lld, the model's vocabulary has %lld rows", k->model, text,
                       (long long)at, (long long)k->v.count);
    k->v.text[at] = text;
    k->v.type[at] = type;
    return TM_OK;
}

static bool byte_token(const char *text)
{
    return strlen(text) == 6 && strncmp(text, "<0x", 3) == 0 && text[5] == '>';
}

static tm_status read_tokens(work *k, bool byte_level)
{
    const json_t *model = json_object_get(k->json, "model"), *map = json_object_get(model, "vocab"), *id, *token;
    const char *text, *unknown = json_string_value(json_object_get(model, "unk_token"));
    size_t i;
    json_object_foreach((json_t *)map, text, id)
        TM_TRY(place(k, text, id, !byte_level && byte_token(text) ? TM_PIECE_BYTE : TM_PIECE_NORMAL));
    json_array_foreach(json_object_get(k->json, "added_tokens"), i, token) {
        text = json_string_value(json_object_get(token, "content"));
        if (!text)
            return tm_fail(k->err, TM_INPUT, "%s: an added token without content", k->model);
        size_t n = strlen(text);
        /* As llama.cpp's converter: what looks like a control token is one. */
        bool control = json_is_true(json_object_get(token, "special")) || (n > 4 && strncmp(text, "<|", 2) == 0 && strcmp(text + n - 2, "|>") == 0);
        TM_TRY(place(k, text, json_object_get(token, "id"), control ? TM_PIECE_CONTROL : TM_PIECE_USER_DEFINED));
    }
    if (unknown && !byte_level)
        TM_TRY(place(k, unknown, json_object_get(map, unknown), TM_PIECE_UNKNOWN));
    return TM_OK;
}

static void put_tokens(work *k)
{
    tm_buf text = {0}, type = {0};
    for (int64_t i = 0; i < k->v.count; i++) {
        char pad[32];
        snprintf(pad, sizeof pad, "[PAD%lld]", (long long)i);
        const char *token = k->v.text[i] ? k->v.text[i] : pad;
        int32_t kind = k->v.text[i] ? k->v.type[i] : TM_PIECE_UNUSED;
        tm_gguf_text_element(&text, token, strlen(token));
        uint8_t bytes[4] = {(uint8_t)kind, 0, 0, 0};
        tm_buf_add(&type, bytes, 4);
    }
    tm_gguf_put_array(k->w, "tokenizer.ggml.tokens", TM_GGUF_STRING, k->v.count, tm_buf_str(&text), text.size);
    if (k->v.score)
        tm_gguf_put_array(k->w, "tokenizer.ggml.scores", TM_GGUF_F32, k->v.count, k->v.score, (size_t)k->v.count * 4);
    tm_gguf_put_array(k->w, "tokenizer.ggml.token_type", TM_GGUF_I32, k->v.count, tm_buf_str(&type), type.size);
    k->w->meta.failed |= text.failed || type.failed;
    tm_buf_deinit(&text);
    tm_buf_deinit(&type);
}

/* ---- merges ---- */

/* The two sides of a merge: "a b" or ["a", "b"]. */
static bool sides(const json_t *merge, const char **a, size_t *a_size, const char **b)
{
    const char *text = json_string_value(merge);
    if (text) {
        const char *space = *text ? strchr(text + 1, ' ') : NULL;
        *a = text;
        *a_size = space ? (size_t)(space - text) : 0;
        *b = space ? space + 1 : NULL;
        return space != NULL;
    }
    *a = json_string_value(json_array_get(merge, 0));
    *b = json_string_value(json_array_get(merge, 1));
    *a_size = *a ? strlen(*a) : 0;
    return *a && *b && json_array_size(merge) == 2;
}

static tm_status put_merges(work *k)
{
    const json_t *merges = json_object_get(json_object_get(k->json, "model"), "merges"), *merge;
    tm_buf out = {0}, line = {0};
    size_t i, a_size;
    const char *a, *b;
    tm_status st = TM_OK;
    json_array_foreach(merges, i, merge) {
        if (!sides(merge, &a, &a_size, &b))
            TM_GO(tm_fail(k->err, TM_INPUT, "%s: tokenizer.json: merge %zu is not two tokens", k->model, i));
        if (memchr(a, ' ', a_size) || strchr(b, ' '))
            TM_GO(refuse(k, "a merge has a space in a token"));
        tm_buf_clear(&line);
        tm_buf_add(&line, a, a_size);
        tm_buf_printf(&line, " %s", b);
        tm_gguf_text_element(&out, tm_buf_str(&line), line.size);
    }
    TM_GO(tm_buf_check(&out, k->err));
    tm_gguf_put_array(k->w, "tokenizer.ggml.merges", TM_GGUF_STRING, (int64_t)json_array_size(merges), tm_buf_str(&out), out.size);
out:
    tm_buf_deinit(&out);
    tm_buf_deinit(&line);
    return st;
}

/* SentencePiece joins what gives the token of the highest score: -rank of the merge that makes it. Tokens
 * that no merge makes come after all that are made. */
static tm_status read_scores(work *k)
{
    const json_t *model = json_object_get(k->json, "model"), *map = json_object_get(model, "vocab"), *merges = json_object_get(model, "merges"), *merge;
    float last = -(float)json_array_size(merges);
    tm_buf joined = {0};
    size_t i, a_size;
    const char *a, *b;
    tm_status st = TM_OK;
    TM_TRY(TM_NEW(&k->v.score, k->v.count, k->err));
    for (int64_t t = 0; t < k->v.count; t++)
        k->v.score[t] = k->v.type[t] == TM_PIECE_NORMAL ? last - (float)t : 1;
    json_array_foreach(merges, i, merge) {
        if (!sides(merge, &a, &a_size, &b))
            TM_GO(tm_fail(k->err, TM_INPUT, "%s: tokenizer.json: merge %zu is not two tokens", k->model, i));
        tm_buf_clear(&joined);
        tm_buf_add(&joined, a, a_size);
        tm_buf_text(&joined, b);
        TM_GO(tm_buf_check(&joined, k->err));
        const json_t *id = json_object_get(map, joined.data);
        if (!id)
            TM_GO(tm_fail(k->err, TM_INPUT, "%s: tokenizer.json: merge %zu makes \"%.80s\", which is no token", k->model, i, joined.data));
        float *score = &k->v.score[json_integer_value(id)];
        if (*score <= last)
            *score = -(float)i;
    }
    for (int64_t t = 0; t < k->v.count; t++)
        if (k->v.score[t] > 0)
            k->v.score[t] = k->v.type[t] == TM_PIECE_CONTROL || k->v.type[t] == TM_PIECE_USER_DEFINED ? -1000 : 0;
out:
    tm_buf_deinit(&joined);
    return st;
}

/* ---- how text is split ---- */

static const json_t *step(const json_t *part, size_t i)
{
    if (strcmp(type_of(part), "Sequence") == 0)
        return json_array_get(json_object_get(part, "pretokenizers"), i);
    return i == 0 ? part : NULL;
}

/* The pattern by which a step cuts; NULL: it does not. *ok false: it does something else. */
static const char *cut_by(const json_t *part, bool *ok)
{
    const json_t *regex = json_object_get(json_object_get(part, "pattern"), "Regex"), *mark = json_object_get(part, "replacement");
    const char *type = type_of(part), *behavior = json_string_value(json_object_get(part, "behavior"));
    *ok = true;
    if (strcmp(type, "ByteLevel") == 0)
        return json_is_false(json_object_get(part, "use_regex")) ? NULL : tm_gpt2_pattern;
    if (strcmp(type, "Digits") == 0 && json_is_true(json_object_get(part, "individual_digits")))
        return "\\p{N}";
    if (strcmp(type, "Split") == 0 && regex && behavior && strcmp(behavior, "Isolated") == 0 && !json_is_true(json_object_get(part, "invert")))
        return json_string_value(regex);
    /* A space put before the text: what put_special finds out. */
    *ok = strcmp(type, "Metaspace") == 0 && json_is_string(mark) && strcmp(json_string_value(mark), " ") == 0;
    return NULL;
}

/* The name of a byte-level pre-tokeniser; NULL: it has none. whole: a piece that is a token is that token,
 * which llama.cpp knows of a name as well; lists of ranks give the same either way. */
static const char *pre_name(const json_t *part, bool whole)
{
    const char *cuts[8], *name = NULL;
    size_t count = 0;
    for (size_t i = 0; step(part, i); i++) {
        bool ok;
        const char *cut = cut_by(step(part, i), &ok);
        if (!ok || count == 7)
            return NULL;
        if (cut)
            cuts[count++] = cut;
    }
    cuts[count] = NULL;
    name = tm_family_cutting(cuts);
    if (!name)
        return NULL;
    if (strcmp(name, "llama-bpe") == 0)
        return whole ? name : "dbrx";
    if (strcmp(name, "tekken") == 0)
        return whole ? name : NULL;
    return !whole || strcmp(name, "qwen2") == 0 || strcmp(name, "gpt-4o") == 0 ? name : NULL;
}

static bool is_byte_level(const json_t *pre)
{
    for (size_t i = 0; step(pre, i); i++)
        if (strcmp(type_of(step(pre, i)), "ByteLevel") == 0)
            return true;
    return false;
}

/* ---- special ids ---- */

static int32_t special(const work *k, const char *name, const char *config_key)
{
    const json_t *value = json_object_get(k->settings, name);
    const char *text = json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
    int32_t id = text ? tm_tokenizer_find(k->tok, text) : -1;
    const json_t *number = json_object_get(k->config, config_key);
    if (json_is_array(number))
        number = json_array_get(number, 0);
    if (id < 0 && json_is_integer(number) && json_integer_value(number) >= 0 && json_integer_value(number) < k->v.count)
        id = (int32_t)json_integer_value(number);
    return id;
}

static tm_status encode(const work *k, const char *text, bool around, tm_ids *ids)
{
    tm_tokens *scratch;
    TM_TRY(tm_tokens_create(k->tok, &scratch, k->err));
    tm_status st = tm_tokenizer_encode(k->tok, scratch, text, strlen(text), around, ids, k->err);
    tm_tokens_destroy(scratch);
    return st;
}

/* What is put around a text is asked of the tokenizer itself. */
static tm_status put_special(work *k, bool byte_level)
{
    tm_ids bare = {0}, around = {0};
    int32_t bos = special(k, "bos_token", "bos_token_id"), eos = special(k, "eos_token", "eos_token_id"),
            unk = special(k, "unk_token", "unk_token_id"), pad = special(k, "pad_token", "pad_token_id");
    tm_status st;
    TM_GO(encode(k, "a", false, &bare));
    TM_GO(encode(k, "a", true, &around));
    bool before = around.count && (!bare.count || around.id[0] != bare.id[0]),
         after = around.count && (!bare.count || around.id[around.count - 1] != bare.id[bare.count - 1]);
    if ((before && around.id[0] != bos) || (after && around.id[around.count - 1] != eos) || around.count != bare.count + before + after)
        TM_GO(refuse(k, "it puts other tokens around a text than BOS and EOS"));
    if (bos >= 0)
        tm_gguf_put_u32(k->w, "tokenizer.ggml.bos_token_id", (uint32_t)bos);
    if (eos >= 0)
        tm_gguf_put_u32(k->w, "tokenizer.ggml.eos_token_id", (uint32_t)eos);
    if (unk >= 0)
        tm_gguf_put_u32(k->w, "tokenizer.ggml.unknown_token_id", (uint32_t)unk);
    if (pad >= 0)
        tm_gguf_put_u32(k->w, "tokenizer.ggml.padding_token_id", (uint32_t)pad);
    tm_gguf_put_bool(k->w, "tokenizer.ggml.add_bos_token", before);
    tm_gguf_put_bool(k->w, "tokenizer.ggml.add_eos_token", after);
    const char *first = bare.count ? tm_tokenizer_token(k->tok, bare.id[0]) : "";
    if (!byte_level)
        tm_gguf_put_bool(k->w, "tokenizer.ggml.add_space_prefix", first && strncmp(first, "\u2581", 3) == 0);
    else if (first && strncmp(first, "\u0120", 2) == 0)
        tm_gguf_put_bool(k->w, "tokenizer.ggml.add_space_prefix", true);
out:
    tm_ids_deinit(&bare);
    tm_ids_deinit(&around);
    return st;
}

/* ---- chat template ---- */

static tm_status put_template(work *k)
{
    tm_buf text = {0};
    bool there;
    json_t *file = NULL;
    const json_t *value, *entry;
    size_t i;
    tm_status st;
    TM_GO(tm_hf_read(k->model, "chat_template.jinja", &text, &there, k->err));
    if (there) {
        tm_gguf_put_text(k->w, "tokenizer.chat_template", tm_buf_str(&text), text.size);
        goto out;
    }
    value = json_object_get(k->settings, "chat_template");
    if (!value) {
        TM_GO(tm_hf_json(k->model, "chat_template.json", &file, k->err));
        value = json_object_get(file, "chat_template");
    }
    if (json_is_string(value))
        tm_gguf_put_word(k->w, "tokenizer.chat_template", json_string_value(value));
    json_array_foreach(value, i, entry) {
        const char *name = json_string_value(json_object_get(entry, "name")), *body = json_string_value(json_object_get(entry, "template"));
        if (name && body && strcmp(name, "default") == 0)
            tm_gguf_put_word(k->w, "tokenizer.chat_template", body);
    }
out:
    tm_buf_deinit(&text);
    json_decref(file);
    return st;
}

/* ---- the whole ---- */

static tm_status put_all(work *k)
{
    const json_t *model = json_object_get(k->json, "model"), *pre = json_object_get(k->json, "pre_tokenizer");
    bool byte_level = is_byte_level(pre), whole = json_is_true(json_object_get(model, "ignore_merges"));
    if (strcmp(type_of(model), "BPE") != 0 && *type_of(model))
        return refuse(k, "its model is not BPE");
    if (!byte_level && !json_is_true(json_object_get(model, "byte_fallback")))
        return refuse(k, "it is neither byte-level nor falls back to bytes");
    const char *name = byte_level ? pre_name(pre, whole) : "default";
    if (!name)
        return refuse(k, "llama.cpp has no name for its way of splitting text (pre_tokenizer)");
    TM_TRY(TM_NEW(&k->v.text, k->v.count, k->err));
    TM_TRY(TM_NEW(&k->v.type, k->v.count, k->err));
    TM_TRY(read_tokens(k, byte_level));
    tm_gguf_put_word(k->w, "tokenizer.ggml.model", byte_level ? "gpt2" : "llama");
    tm_gguf_put_word(k->w, "tokenizer.ggml.pre", name);
    if (!byte_level)
        TM_TRY(read_scores(k));
    put_tokens(k);
    if (byte_level)
        TM_TRY(put_merges(k));
    TM_TRY(put_special(k, byte_level));
    return put_template(k);
}

/* Another GGUF file's tokenizer, as it is. */
static tm_status copy_keys(tm_gguf_writer *w, const char *model, bool *found, tm_error *err)
{
    tm_gguf *g;
    TM_TRY(tm_gguf_open(model, &g, err));
    for (int64_t i = 0; i < tm_gguf_values(g); i++) {
        const tm_gguf_value *v = tm_gguf_value_at(g, i);
        if (strncmp(v->key, "tokenizer.", 10) == 0) {
            tm_gguf_put_value(w, v);
            *found = true;
        }
    }
    tm_gguf_close(g);
    return TM_OK;
}

tm_status tm_tokenizer_put_gguf(tm_gguf_writer *w, const char *model, const json_t *config, int64_t rows, bool *found, tm_error *err)
{
    work k = {.w = w, .model = model, .config = config, .v = {.count = rows}, .err = err};
    json_t *json = NULL;
    tm_status st;
    *found = false;
    if (tm_gguf_is(model))
        return copy_keys(w, model, found, err);
    if (!tm_tokenizer_is_in(model)) {
        tm_gguf_put_word(w, "tokenizer.ggml.model", "none");
        return TM_OK;
    }
    TM_GO(tm_tokenizer_open_tree(model, &k.tok, &json, err));
    k.json = json;
    TM_GO(tm_hf_json(model, "tokenizer_config.json", &k.settings, err));
    TM_GO(put_all(&k));
    *found = true;
out:
    tm_tokenizer_close(k.tok);
    json_decref(json);
    json_decref(k.settings);
    free(k.v.text);
    free(k.v.type);
    free(k.v.score);
    return st;
}
