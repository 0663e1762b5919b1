/* Tokenizers: reads a tokenizer.json into its parts (tokenizer_parts.h) and runs text through them. */
#include "text/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

/* One row a kind of model. */
static const tm_model_kind *const kinds[] = {&tm_model_bpe, &tm_model_unigram};

struct tm_tokens {
    const tm_tokenizer *tok;
    tm_match_memory memory;
    tm_buf repaired, normal[2];
    tm_buf *pieces; /* [steps of the pre-tokeniser] */
    void *model;
};

void tm_ids_deinit(tm_ids *ids)
{
    free(ids->id);
    *ids = (tm_ids){0};
}

/* ---- parts ---- */

const char *tm_part_type(const json_t *json)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    return type ? type : "";
}

tm_status tm_part_text(tm_buf *out, const json_t *json, const char *key, const char *name, tm_error *err)
{
    const json_t *value = json_object_get(json, key);
    if (!json_is_string(value))
        return tm_fail(err, TM_INPUT, "%s: \"%s\" is missing or no string", name, key);
    tm_buf_add(out, json_string_value(value), json_string_length(value));
    return tm_buf_check(out, err);
}

static tm_status part_each(void *target, const json_t *json, const char *key, const char *name, tm_part_parse parse, int depth,
                           tm_error *err)
{
    if (!json || json_is_null(json))
        return TM_OK;
    if (!json_is_object(json))
        return tm_fail(err, TM_INPUT, "%s is no object", name);
    if (!*tm_part_type(json))
        return tm_fail(err, TM_INPUT, "%s: \"type\" is missing or no string", name);
    if (strcmp(tm_part_type(json), "Sequence"))
        return parse(target, json, name, err);
    const json_t *list = json_object_get(json, key);
    if (!json_is_array(list))
        return tm_fail(err, TM_INPUT, "%s: \"%s\" is missing or no list", name, key);
    if (depth == TM_TOKENIZER_NESTING)
        return tm_fail(err, TM_INPUT, "%s: more than %d Sequences in each other", name, TM_TOKENIZER_NESTING);
    for (size_t i = 0; i < json_array_size(list); i++) {
        char place[512];
        snprintf(place, sizeof place, "%.440s.%s[%zu]", name, key, i);
        const json_t *item = json_array_get(list, i);
        if (json_is_null(item))
            return tm_fail(err, TM_INPUT, "%s is null", place);
        TM_TRY(part_each(target, item, key, place, parse, depth + 1, err));
    }
    return TM_OK;
}

tm_status tm_part_each(void *target, const json_t *json, const char *key, const char *name, tm_part_parse parse, tm_error *err)
{
    return part_each(target, json, key, name, parse, 0, err);
}

/* ---- opening ---- */

static tm_status parse_model(tm_tokenizer *tok, const json_t *json, const char *name, tm_error *err)
{
    const char *type = tm_part_type(json);
    if (!json_is_object(json))
        return tm_fail(err, TM_INPUT, "%s is missing or no object", name);
    if (!*type) /* files of old do not say */
        type = json_object_get(json, "merges") ? "BPE" : json_is_array(json_object_get(json, "vocab")) ? "Unigram" : "";
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strcmp(type, kinds[i]->type))
            continue;
        tok->kind = kinds[i];
        return kinds[i]->parse(json, name, &tok->vocab, &tok->model, err);
    }
    return tm_fail(err, TM_UNSUPPORTED, "%s: a model of type \"%.60s\", expected BPE or Unigram", name, type);
}

static tm_status parse_parts(tm_tokenizer *tok, const json_t *root, const char *path, tm_match_memory *memory, tm_error *err)
{
    char name[512];
    const char *version;
    TM_TRY(tm_json_get_string(root, path, "version", "1.0", &version, err));
    if (strcmp(version, "1.0"))
        return tm_fail(err, TM_UNSUPPORTED, "%s: \"version\" is \"%.20s\", expected \"1.0\"", path, version);
#define NAME(part) (snprintf(name, sizeof name, "%.440s: " part, path), name)
    TM_TRY(parse_model(tok, json_object_get(root, "model"), NAME("model"), err));
    TM_TRY(tm_normalizer_parse(&tok->normalizer, json_object_get(root, "normalizer"), NAME("normalizer"), err));
    TM_TRY(tm_splitter_parse(&tok->splitter, json_object_get(root, "pre_tokenizer"), NAME("pre_tokenizer"), err));
    TM_TRY(tm_decoder_parse(&tok->decoder, json_object_get(root, "decoder"), NAME("decoder"), err));
    TM_TRY(tm_added_parse(&tok->added, json_object_get(root, "added_tokens"), path, &tok->vocab, &tok->normalizer, memory, err));
    TM_TRY(tm_post_parse(&tok->post, json_object_get(root, "post_processor"), NAME("post_processor"), &tok->vocab, err));
#undef NAME
    if (tm_splitter_ends_in_bytes(&tok->splitter) && tok->kind->takes_bytes(tok->model)) {
        tok->splitter.count--;
        return tok->kind->take_bytes(tok->model, &tok->vocab, err);
    }
    return TM_OK;
}

tm_status tm_tokenizer_build(const json_t *root, const tm_sha256 *hash, const char *name, tm_tokenizer **out, tm_error *err)
{
    tm_tokenizer *tok;
    tm_match_memory memory = {0};
    tm_status st;
    *out = NULL;
    TM_TRY(TM_NEW(&tok, 1, err));
    tok->bos = tok->eos = -1;
    tok->hash = *hash;
    if (!json_is_object(root))
        TM_GO(tm_fail(err, TM_INPUT, "%s: not a JSON object", name));
    TM_GO(tm_match_memory_init(&memory, err));
    TM_GO(parse_parts(tok, root, name, &memory, err));
    *out = tok;
    tok = NULL;
out:
    tm_match_memory_deinit(&memory);
    tm_tokenizer_close(tok);
    return st;
}

tm_status tm_tokenizer_parse(const char *text, size_t size, const char *name, tm_tokenizer **out, tm_error *err)
{
    json_t *root = NULL;
    tm_sha256 hash;
    *out = NULL;
    TM_TRY(tm_sha256_bytes(text, size, &hash, err));
    TM_TRY(tm_json_parse(text, size, name, &root, err));
    tm_status st = tm_tokenizer_build(root, &hash, name, out, err);
    json_decref(root);
    return st;
}

void tm_tokenizer_close(tm_tokenizer *tok)
{
    if (!tok)
        return;
    if (tok->model)
        tok->kind->destroy(tok->model);
    tm_vocab_deinit(&tok->vocab);
    tm_added_deinit(&tok->added);
    tm_normalizer_deinit(&tok->normalizer);
    tm_splitter_deinit(&tok->splitter);
    tm_post_deinit(&tok->post);
    tm_decoder_deinit(&tok->decoder);
    free(tok);
}

/* ---- scratch ---- */

tm_status tm_tokens_create(const tm_tokenizer *tok, tm_tokens **out, tm_error *err)
{
    tm_tokens *s;
    tm_status st;
    *out = NULL;
    TM_TRY(TM_NEW(&s, 1, err));
    s->tok = tok;
    TM_GO(TM_NEW(&s->pieces, tok->splitter.count, err));
    TM_GO(tm_match_memory_init(&s->memory, err));
    TM_GO(tok->kind->scratch_create(tok->model, &s->model, err));
    *out = s;
    s = NULL;
out:
    tm_tokens_destroy(s);
    return st;
}

void tm_tokens_destroy(tm_tokens *s)
{
    if (!s)
        return;
    for (size_t i = 0; s->pieces && i < s->tok->splitter.count; i++)
        tm_buf_deinit(&s->pieces[i]);
    free(s->pieces);
    tm_match_memory_deinit(&s->memory);
    tm_buf_deinit(&s->repaired);
    tm_buf_deinit(&s->normal[0]);
    tm_buf_deinit(&s->normal[1]);
    if (s->model)
        s->tok->kind->scratch_destroy(s->model);
    free(s);
}

/* ---- encoding ---- */

typedef struct encoding {
    const tm_tokenizer *tok;
    tm_tokens *scratch;
    tm_ids *ids;
} encoding;

static tm_status push_ids(tm_ids *ids, const int32_t *id, size_t count, tm_error *err)
{
    if (!count)
        return TM_OK;
    TM_TRY(tm_ids_room(ids, count, err));
    memcpy(ids->id + ids->count, id, count * sizeof *id);
    ids->count += count;
    return TM_OK;
}

static tm_status take_piece(void *context, const char *piece, size_t size, tm_error *err)
{
    const encoding *e = context;
    return e->tok->kind->encode(e->tok->model, &e->tok->vocab, e->scratch->model, piece, size, e->ids, err);
}

static tm_status take_normal(void *context, const char *text, size_t size, bool first, int32_t id, tm_error *err)
{
    encoding *e = context;
    if (id >= 0)
        return push_ids(e->ids, &id, 1, err);
    tm_splitting run = {&e->tok->splitter, &e->scratch->memory, e->scratch->pieces, take_piece, e, err};
    return tm_splitter_run(&run, 0, text, size, first);
}

static tm_status take_written(void *context, const char *text, size_t size, bool first, int32_t id, tm_error *err)
{
    encoding *e = context;
    if (id >= 0)
        return push_ids(e->ids, &id, 1, err);
    TM_TRY(tm_normalizer_run(&e->tok->normalizer, &e->scratch->memory, &e->scratch->normal[0], &e->scratch->normal[1], &text,
                             &size, &first, err));
    tm_stretches run = {&e->tok->added, &e->tok->added.normal, take_normal, e};
    return tm_added_split(&run, text, size, first, err);
}

tm_status tm_tokenizer_encode(const tm_tokenizer *tok, tm_tokens *scratch, const char *text, size_t size, bool add_special,
                              tm_ids *ids, tm_error *err)
{
    size_t before = ids->count;
    encoding e = {tok, scratch, ids};
    tm_stretches run = {&tok->added, &tok->added.written, take_written, &e};
    tm_status st;
    if (tm_utf8_prefix(text, size) != size) {
        tm_buf_clear(&scratch->repaired);
        tm_utf8_repair(text, size, &scratch->repaired);
        TM_TRY(tm_buf_check(&scratch->repaired, err));
        text = tm_buf_str(&scratch->repaired);
        size = scratch->repaired.size;
    }
    if (add_special)
        TM_GO(push_ids(ids, tok->post.before.id, tok->post.before.count, err));
    TM_GO(tm_added_split(&run, text, size, true, err));
    if (add_special)
        TM_GO(push_ids(ids, tok->post.after.id, tok->post.after.count, err));
out:
    if (st != TM_OK)
        ids->count = before;
    return st;
}

/* ---- decoding ---- */

/* clean_up_tokenization_spaces: English punctuation loses the space before it; in place. One pass after
 * another, as the peer has it: what one leaves the next may change. */
static void clean_up(tm_buf *text, size_t from)
{
    static const char *const pairs[][2] = {{" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"},
                                           {" 'm", "'m"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        size_t old = strlen(pairs[i][0]), new = strlen(pairs[i][1]), to = from;
        for (size_t at = from; at < text->size;) {
            if (text->size - at >= old && !memcmp(text->data + at, pairs[i][0], old)) {
                memcpy(text->data + to, pairs[i][1], new);
                at += old;
                to += new;
            } else
                text->data[to++] = text->data[at++];
        }
        text->size = to;
    }
    if (text->data)
        text->data[text->size] = 0;
}

tm_status tm_tokenizer_decode(const tm_tokenizer *tok, const int32_t *ids, size_t count, bool skip_special, tm_buf *text,
                              tm_error *err)
{
    size_t before = text->size;
    TM_TRY(tm_decoder_run(&tok->decoder, &tok->vocab, ids, count, skip_special, text, err));
    if (tok->clean_up)
        clean_up(text, before);
    return TM_OK;
}

static bool ends_unfinished(const tm_buf *text)
{
    return text->size >= 3 && !memcmp(text->data + text->size - 3, "\xef\xbf\xbd", 3);
}

/* Decodes what is pending and gives what goes beyond the part already printed. The tokens of the last
 * part stay as context: what a token looks like depends on its neighbours (the space of the first
 * one, runs of byte tokens), and they always end where a character does. Text that ends in U+FFFD may
 * be half a character and waits, but not for longer than one can take. */
enum { UNFINISHED_TOKENS = 16 };

static tm_status stream_text(tm_decode_stream *s, const tm_tokenizer *tok, bool flush, tm_buf *text, tm_error *err)
{
    tm_buf all = {0};
    tm_status st;
    TM_GO(tm_decoder_run(&tok->decoder, &tok->vocab, s->pending.id, s->pending.count, false, &all, err));
    if (!flush && ends_unfinished(&all) && s->pending.count - s->context < UNFINISHED_TOKENS)
        goto out;
    if (all.size > s->printed)
        tm_buf_add(text, all.data + s->printed, all.size - s->printed);
    TM_GO(tm_buf_check(text, err));
    size_t fresh = s->pending.count - s->context;
    memmove(s->pending.id, s->pending.id + s->context, fresh * sizeof *s->pending.id);
    s->pending.count = s->context = fresh;
    tm_buf_clear(&all);
    TM_GO(tm_decoder_run(&tok->decoder, &tok->vocab, s->pending.id, fresh, false, &all, err));
    s->printed = all.size;
out:
    tm_buf_deinit(&all);
    return st;
}

tm_status tm_decode_stream_push(tm_decode_stream *s, const tm_tokenizer *tok, int32_t id, tm_buf *text, tm_error *err)
{
    TM_TRY(tm_ids_room(&s->pending, 1, err));
    s->pending.id[s->pending.count++] = id;
    tm_status st = stream_text(s, tok, false, text, err);
    if (st != TM_OK)
        s->pending.count--;
    return st;
}

tm_status tm_decode_stream_flush(tm_decode_stream *s, const tm_tokenizer *tok, tm_buf *text, tm_error *err)
{
    tm_status st = s->pending.count > s->context ? stream_text(s, tok, true, text, err) : TM_OK;
    tm_decode_stream_deinit(s);
    return st;
}

void tm_decode_stream_deinit(tm_decode_stream *s)
{
    tm_ids_deinit(&s->pending);
    *s = (tm_decode_stream){0};
}

/* ---- looking up ---- */

int32_t tm_tokenizer_vocab_size(const tm_tokenizer *tok) { return tok->vocab.ids; }
int32_t tm_tokenizer_bos(const tm_tokenizer *tok) { return tok->bos; }
int32_t tm_tokenizer_eos(const tm_tokenizer *tok) { return tok->eos; }
int32_t tm_tokenizer_find(const tm_tokenizer *tok, const char *token) { return tm_vocab_find(&tok->vocab, token, strlen(token)); }

const char *tm_tokenizer_token(const tm_tokenizer *tok, int32_t id)
{
    bool there = id >= 0 && id < tok->vocab.ids && tok->vocab.flags[id];
    return there ? tok->vocab.text.data + tok->vocab.start[id] : NULL;
}

bool tm_tokenizer_is_special(const tm_tokenizer *tok, int32_t id)
{
    return id >= 0 && id < tok->vocab.ids && tok->vocab.flags[id] & TM_TOKEN_SPECIAL;
}

const tm_sha256 *tm_tokenizer_hash(const tm_tokenizer *tok) { return &tok->hash; }
