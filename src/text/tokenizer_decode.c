/* Decoders and post-processors: ids back to text, and the ids that go around a text.
 * A decoder is a list of steps from a list of token texts to another; the list lies in one buffer
 * with the end of each text beside it. */
#include "text/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

typedef struct texts {
    tm_buf text;
    size_t *end; /* [count] of each, in text */
    size_t count, capacity;
} texts;

static void texts_clear(texts *t)
{
    tm_buf_clear(&t->text);
    t->count = 0;
}

static void texts_deinit(texts *t)
{
    tm_buf_deinit(&t->text);
    free(t->end);
}

/* What was added to t->text since the last call is one text. */
static tm_status texts_close(texts *t, tm_error *err)
{
    TM_TRY(TM_GROW(&t->end, &t->capacity, t->count + 1, err));
    t->end[t->count++] = t->text.size;
    return tm_buf_check(&t->text, err);
}

static const char *texts_at(const texts *t, size_t i, size_t *size)
{
    size_t start = i ? t->end[i - 1] : 0;
    *size = t->end[i] - start;
    return tm_buf_str(&t->text) + start;
}

/* ---- decoder: parsing ---- */

static tm_status parse_char(tm_buf *out, const json_t *json, const char *key, const char *name, tm_error *err)
{
    size_t len = 0;
    TM_TRY(tm_part_text(out, json, key, name, err));
    if (!out->size || (tm_utf8_at(out->data, &len), len != out->size))
        return tm_fail(err, TM_INPUT, "%s: \"%s\" is not one character", name, key);
    return TM_OK;
}

static tm_status parse_step(tm_decode *step, const json_t *json, const char *name, tm_error *err)
{
    const char *scheme;
    bool prefix;
    switch (step->kind) {
    case TM_DECODE_BYTES: case TM_DECODE_BYTE_FALLBACK: case TM_DECODE_FUSE: return TM_OK;
    case TM_DECODE_STRIP:
        TM_TRY(tm_json_get_int(json, name, "start", 0, &step->start, err));
        TM_TRY(tm_json_get_int(json, name, "stop", 0, &step->stop, err));
        if (step->start < 0 || step->stop < 0)
            return tm_fail(err, TM_INPUT, "%s: \"start\" and \"stop\" are below 0", name);
        return parse_char(&step->content, json, "content", name, err);
    case TM_DECODE_REPLACE:
        TM_TRY(tm_part_text(&step->content, json, "content", name, err));
        return tm_finder_parse(&step->finder, json_object_get(json, "pattern"), false, name, err);
    case TM_DECODE_METASPACE:
        TM_TRY(tm_json_get_bool(json, name, "add_prefix_space", true, &prefix, err));
        TM_TRY(tm_json_get_string(json, name, "prepend_scheme", prefix ? "always" : "never", &scheme, err));
        step->prefix = strcmp(scheme, "never") != 0;
        return parse_char(&step->content, json, "replacement", name, err);
    case TM_DECODE_SUFFIX:
        TM_TRY(tm_part_text(&step->content, json, "suffix", name, err));
        return tm_finder_text(&step->finder, tm_buf_str(&step->content), step->content.size, name, err);
    }
    return TM_OK;
}

static tm_status parse_one(void *target, const json_t *json, const char *name, tm_error *err)
{
    static const char *const types[] = {"ByteLevel", "ByteFallback", "Fuse", "Strip", "Replace", "Metaspace", "BPEDecoder"};
    tm_decoder *d = target;
    const char *type = tm_part_type(json);
    for (int i = 0; i < 7; i++) {
        if (strcmp(type, types[i]))
            continue;
        if (d->count == TM_TOKENIZER_STEPS)
            return tm_fail(err, TM_INPUT, "%s: more than %d decoders", name, TM_TOKENIZER_STEPS);
        TM_TRY(TM_GROW(&d->step, &d->capacity, d->count + 1, err));
        d->step[d->count] = (tm_decode){.kind = (tm_decode_kind)i};
        return parse_step(&d->step[d->count++], json, name, err);
    }
    return tm_fail(err, TM_UNSUPPORTED, "%s: a decoder of type \"%.60s\", expected ByteLevel, ByteFallback, Fuse, Strip, "
                   "Replace, Metaspace, BPEDecoder or Sequence", name, type);
}

tm_status tm_decoder_parse(tm_decoder *d, const json_t *json, const char *name, tm_error *err)
{
    d->given = json && !json_is_null(json);
    return tm_part_each(d, json, "decoders", name, parse_one, err);
}

void tm_decoder_deinit(tm_decoder *d)
{
    for (size_t i = 0; i < d->count; i++) {
        tm_buf_deinit(&d->step[i].content);
        tm_finder_deinit(&d->step[i].finder);
    }
    free(d->step);
    *d = (tm_decoder){0};
}

/* ---- decoder: running ---- */

/* All tokens become one text: bytes where every character is of the byte alphabet, else as they are. */
static tm_status decode_bytes(const texts *in, texts *out, tm_error *err)
{
    tm_buf raw = {0};
    for (size_t i = 0; i < in->count; i++) {
        size_t size, len, start = raw.size;
        const char *text = texts_at(in, i, &size);
        for (size_t j = 0; j < size; j += len) {
            int byte = tm_char_byte(tm_utf8_at(text + j, &len));
            if (byte < 0) {
                raw.size = start;
                tm_buf_add(&raw, text, size);
                break;
            }
            tm_buf_char(&raw, (char)byte);
        }
    }
    tm_utf8_repair(tm_buf_str(&raw), raw.size, &out->text);
    tm_status st = tm_buf_check(&raw, err);
    tm_buf_deinit(&raw);
    TM_TRY(st);
    return texts_close(out, err);
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    char lower = (char)(c | 32);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

/* The byte of a token <0xNN>; -1: another token. */
static int byte_token(const char *text, size_t size)
{
    if (size != 6 || memcmp(text, "<0x", 3) || text[5] != '>' || hex_value(text[3]) < 0 || hex_value(text[4]) < 0)
        return -1;
    return hex_value(text[3]) * 16 + hex_value(text[4]);
}

/* A run of byte tokens becomes its text, or one U+FFFD for each when the run as a whole is no UTF-8. */
static tm_status decode_byte_run(const tm_buf *run, texts *out, tm_error *err)
{
    if (tm_utf8_prefix(tm_buf_str(run), run->size) == run->size) {
        tm_buf_add(&out->text, tm_buf_str(run), run->size);
        return run->size ? texts_close(out, err) : TM_OK;
    }
    for (size_t i = 0; i < run->size; i++) {
        tm_buf_text(&out->text, "\xef\xbf\xbd");
        TM_TRY(texts_close(out, err));
    }
    return TM_OK;
}

static tm_status decode_byte_fallback(const texts *in, texts *out, tm_error *err)
{
    tm_buf run = {0};
    tm_status st = TM_OK;
    for (size_t i = 0; st == TM_OK && i < in->count; i++) {
        size_t size;
        const char *text = texts_at(in, i, &size);
        int byte = byte_token(text, size);
        if (byte >= 0) {
            tm_buf_char(&run, (char)byte);
            continue;
        }
        st = tm_buf_check(&run, err);
        if (st == TM_OK)
            st = decode_byte_run(&run, out, err);
        tm_buf_clear(&run);
        tm_buf_add(&out->text, text, size);
        if (st == TM_OK)
            st = texts_close(out, err);
    }
    if (st == TM_OK)
        st = tm_buf_check(&run, err);
    if (st == TM_OK)
        st = decode_byte_run(&run, out, err);
    tm_buf_deinit(&run);
    return st;
}

static void strip(const tm_decode *step, const char *text, size_t size, tm_buf *out)
{
    size_t n = step->content.size;
    for (int64_t i = 0; i < step->start && size >= n && !memcmp(text, step->content.data, n); i++) {
        text += n;
        size -= n;
    }
    for (int64_t i = 0; i < step->stop && size >= n && !memcmp(text + size - n, step->content.data, n); i++)
        size -= n;
    tm_buf_add(out, text, size);
}

static tm_status replace(const tm_finder *finder, const char *text, size_t size, const char *content, size_t content_size,
                         tm_match_memory *memory, tm_buf *out, tm_error *err)
{
    tm_find find;
    size_t done = 0, start = 0, end = 0;
    tm_find_start(&find, finder, text, size);
    for (bool found;;) {
        TM_TRY(tm_find_next(&find, memory, &start, &end, &found, err));
        if (!found)
            break;
        tm_buf_add(out, text + done, start - done);
        tm_buf_add(out, content, content_size);
        done = end;
    }
    tm_buf_add(out, text + done, size - done);
    return TM_OK;
}

static void from_metaspace(const tm_decode *step, const char *text, size_t size, bool first, tm_buf *out)
{
    size_t n = step->content.size;
    for (size_t i = 0, len; i < size; i += len) {
        tm_utf8_at(text + i, &len);
        if (len != n || memcmp(text + i, step->content.data, n))
            tm_buf_add(out, text + i, len);
        else if (!first || !step->prefix)
            tm_buf_char(out, ' ');
    }
}

static tm_status run_step(const tm_decode *step, const texts *in, texts *out, tm_match_memory *memory, tm_error *err)
{
    if (step->kind == TM_DECODE_BYTES)
        return decode_bytes(in, out, err);
    if (step->kind == TM_DECODE_BYTE_FALLBACK)
        return decode_byte_fallback(in, out, err);
    if (step->kind == TM_DECODE_FUSE) {
        tm_buf_add(&out->text, tm_buf_str(&in->text), in->text.size);
        return texts_close(out, err);
    }
    for (size_t i = 0; i < in->count; i++) {
        size_t size;
        const char *text = texts_at(in, i, &size);
        if (step->kind == TM_DECODE_STRIP)
            strip(step, text, size, &out->text);
        else if (step->kind == TM_DECODE_METASPACE)
            from_metaspace(step, text, size, i == 0, &out->text);
        else if (step->kind == TM_DECODE_REPLACE)
            TM_TRY(replace(&step->finder, text, size, tm_buf_str(&step->content), step->content.size, memory, &out->text, err));
        else /* the end-of-word mark is a space, but not at the end of the text */
            TM_TRY(replace(&step->finder, text, size, " ", i + 1 < in->count, memory, &out->text, err));
        TM_TRY(texts_close(out, err));
    }
    return TM_OK;
}

static tm_status first_texts(const tm_decoder *d, const tm_vocab *vocab, const int32_t *ids, size_t count, bool skip_special,
                             texts *out, tm_error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= vocab->ids || !vocab->flags[ids[i]])
            return tm_fail(err, TM_INPUT, "the token id %d (number %zu) is not in the vocabulary, which has ids from 0 to %d",
                           ids[i], i, vocab->ids - 1);
        if (skip_special && vocab->flags[ids[i]] & TM_TOKEN_SPECIAL)
            continue;
        if (!d->given && out->count)
            tm_buf_char(&out->text, ' ');
        tm_buf_add(&out->text, vocab->text.data + vocab->start[ids[i]], vocab->length[ids[i]]);
        TM_TRY(texts_close(out, err));
    }
    return TM_OK;
}

tm_status tm_decoder_run(const tm_decoder *d, const tm_vocab *vocab, const int32_t *ids, size_t count, bool skip_special,
                         tm_buf *text, tm_error *err)
{
    texts list[2] = {0};
    tm_match_memory memory = {0};
    tm_status st;
    int at = 0;
    bool match = false;
    for (size_t i = 0; i < d->count; i++)
        match |= d->step[i].finder.code != NULL;
    if (match)
        TM_GO(tm_match_memory_init(&memory, err));
    TM_GO(first_texts(d, vocab, ids, count, skip_special, &list[0], err));
    for (size_t i = 0; i < d->count; i++, at = !at) {
        texts_clear(&list[!at]);
        TM_GO(run_step(&d->step[i], &list[at], &list[!at], &memory, err));
    }
    tm_buf_add(text, tm_buf_str(&list[at].text), list[at].text.size);
    st = tm_buf_check(text, err);
out:
    texts_deinit(&list[0]);
    texts_deinit(&list[1]);
    tm_match_memory_deinit(&memory);
    return st;
}

/* ---- post-processor ---- */

static tm_status add_id(tm_ids *ids, const json_t *value, const tm_vocab *vocab, const char *name, tm_error *err)
{
    json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
    if (id < 0 || id >= vocab->ids || !vocab->flags[id])
        return tm_fail(err, TM_INPUT, "%s: a special token has the id %lld, which is not in the vocabulary", name, (long long)id);
    TM_TRY(tm_ids_room(ids, 1, err));
    ids->id[ids->count++] = (int32_t)id;
    return TM_OK;
}

typedef struct post_target {
    tm_post *post;
    const tm_vocab *vocab;
} post_target;

static tm_status parse_template(const post_target *target, const json_t *json, const char *name, tm_ids side[2], tm_error *err)
{
    const json_t *single = json_object_get(json, "single"), *tokens = json_object_get(json, "special_tokens");
    int which = 0;
    if (!json_is_array(single))
        return tm_fail(err, TM_INPUT, "%s: \"single\" is missing or no list", name);
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i), *special = json_object_get(piece, "SpecialToken");
        const char *id = json_string_value(json_object_get(special ? special : json_object_get(piece, "Sequence"), "id"));
        if (!id)
            return tm_fail(err, TM_INPUT, "%s: \"single\"[%zu] is no SpecialToken or Sequence with an id", name, i);
        if (!special) {
            if (which++ || strcmp(id, "A"))
                return tm_fail(err, TM_UNSUPPORTED, "%s: \"single\" is more than one sequence A", name);
            continue;
        }
        const json_t *ids = json_object_get(json_object_get(tokens, id), "ids");
        if (!json_is_array(ids))
            return tm_fail(err, TM_INPUT, "%s: \"special_tokens\" has no ids for \"%.60s\"", name, id);
        for (size_t j = 0; j < json_array_size(ids); j++)
            TM_TRY(add_id(&side[which], json_array_get(ids, j), target->vocab, name, err));
    }
    return which ? TM_OK : tm_fail(err, TM_UNSUPPORTED, "%s: \"single\" leaves the text out", name);
}

static tm_status parse_post(void *context, const json_t *json, const char *name, tm_error *err)
{
    const post_target *target = context;
    const char *type = tm_part_type(json);
    tm_ids side[2] = {0};
    tm_status st = TM_OK;
    if (!strcmp(type, "ByteLevel"))
        return TM_OK; /* moves offsets only */
    if (!strcmp(type, "TemplateProcessing")) {
        st = parse_template(target, json, name, side, err);
    } else if (!strcmp(type, "RobertaProcessing") || !strcmp(type, "BertProcessing")) {
        st = add_id(&side[0], json_array_get(json_object_get(json, "cls"), 1), target->vocab, name, err);
        if (st == TM_OK)
            st = add_id(&side[1], json_array_get(json_object_get(json, "sep"), 1), target->vocab, name, err);
    } else {
        st = tm_fail(err, TM_UNSUPPORTED, "%s: a post-processor of type \"%.60s\", expected TemplateProcessing, ByteLevel, "
                     "RobertaProcessing, BertProcessing or Sequence", name, type);
    }
    if (st == TM_OK && (target->post->before.count || target->post->after.count))
        st = tm_fail(err, TM_UNSUPPORTED, "%s: a second post-processor that adds tokens", name);
    if (st == TM_OK) {
        target->post->before = side[0];
        target->post->after = side[1];
        return TM_OK;
    }
    tm_ids_deinit(&side[0]);
    tm_ids_deinit(&side[1]);
    return st;
}

tm_status tm_post_parse(tm_post *post, const json_t *json, const char *name, const tm_vocab *vocab, tm_error *err)
{
    post_target target = {post, vocab};
    return tm_part_each(&target, json, "processors", name, parse_post, err);
}

void tm_post_deinit(tm_post *post)
{
    tm_ids_deinit(&post->before);
    tm_ids_deinit(&post->after);
}
