/* Conversations: see chat.h. */
#include "text/chat_parts.h"

#include "io/hf.h"

#include <stdlib.h>
#include <string.h>

struct tm_chat {
    tm_jinja *template[2]; /* for all rows; for rows with tools, NULL: the same */
    tm_chat_shape shape[2];
    json_t *tokens;        /* {"bos_token": "<s>", ...} */
    tm_buf specials;       /* texts of special tokens, each followed by a zero byte */
    char *date;
    const tm_tokenizer *tok;
};

/* ---- opening ---- */

static tm_status no_memory(tm_error *err) { return tm_fail(err, TM_NO_MEMORY, "out of memory"); }

/* "bos_token" and its like of tokenizer_config.json and special_tokens_map.json: text, or {"content"}. */
static tm_status take_tokens(tm_chat *c, const json_t *config, tm_error *err)
{
    static const char *const keys[] = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        json_t *value = json_object_get(config, keys[i]);
        if (json_is_object(value))
            value = json_object_get(value, "content");
        if (json_is_string(value) && !json_object_get(c->tokens, keys[i]) && json_object_set(c->tokens, keys[i], value) != 0)
            return no_memory(err);
    }
    return TM_OK;
}

static tm_status token_by_id(tm_chat *c, const char *key, int32_t id, tm_error *err)
{
    const char *text = id >= 0 ? tm_tokenizer_token(c->tok, id) : NULL;
    if (!text || json_object_get(c->tokens, key))
        return TM_OK;
    json_t *value = json_string(text);
    return value && json_object_set_new(c->tokens, key, value) == 0 ? TM_OK : no_memory(err);
}

static tm_status read_tokens(tm_chat *c, const char *model, tm_error *err)
{
    static const char *const files[] = {"tokenizer_config.json", "special_tokens_map.json"};
    c->tokens = json_object();
    if (!c->tokens)
        return no_memory(err);
    for (int i = 0; model && i < 2; i++) {
        json_t *config;
        TM_TRY(tm_hf_json(model, files[i], &config, err));
        tm_status st = config ? take_tokens(c, config, err) : TM_OK;
        json_decref(config);
        TM_TRY(st);
    }
    if (!c->tok)
        return TM_OK;
    TM_TRY(token_by_id(c, "bos_token", tm_tokenizer_bos(c->tok), err));
    return token_by_id(c, "eos_token", tm_tokenizer_eos(c->tok), err);
}

static tm_status read_specials(tm_chat *c, tm_error *err)
{
    const char *key;
    json_t *value;
    for (int32_t id = 0; c->tok && id < tm_tokenizer_vocab_size(c->tok); id++) {
        const char *text = tm_tokenizer_is_special(c->tok, id) ? tm_tokenizer_token(c->tok, id) : NULL;
        if (text && *text)
            tm_buf_add(&c->specials, text, strlen(text) + 1);
    }
    json_object_foreach(c->tokens, key, value) {
        if (json_string_length(value))
            tm_buf_add(&c->specials, json_string_value(value), strlen(json_string_value(value)) + 1);
    }
    return tm_buf_check(&c->specials, err);
}

static tm_status parse_templates(tm_chat *c, const char *model, const char *template, tm_error *err)
{
    tm_chat_source source = {0};
    tm_status st = tm_chat_source_read(model, template, &source, err);
    for (int i = 0; i < 2 && st == TM_OK; i++) {
        if (i && !source.text[i].size)
            break;
        st = tm_jinja_parse(tm_buf_str(&source.text[i]), source.text[i].size, tm_buf_str(&source.name), &c->template[i], err);
        if (st == TM_OK)
            st = tm_chat_probe(c->template[i], c->tokens, c->date, &c->shape[i], err);
    }
    tm_chat_source_deinit(&source);
    return st;
}

tm_status tm_chat_open(const tm_chat_settings *settings, tm_chat **out, tm_error *err)
{
    tm_chat *c;
    *out = NULL;
    TM_TRY(TM_NEW(&c, 1, err));
    c->tok = settings->tok;
    tm_status st = TM_OK;
    if (settings->date && !(c->date = tm_strdup(settings->date, err)))
        st = TM_NO_MEMORY;
    if (st == TM_OK)
        st = read_tokens(c, settings->model, err);
    if (st == TM_OK)
        st = read_specials(c, err);
    if (st == TM_OK)
        st = parse_templates(c, settings->model, settings->template, err);
    if (st == TM_OK)
        *out = c;
    else
        tm_chat_close(c);
    return st;
}

void tm_chat_close(tm_chat *c)
{
    if (!c)
        return;
    tm_jinja_close(c->template[0]);
    tm_jinja_close(c->template[1]);
    json_decref(c->tokens);
    tm_buf_deinit(&c->specials);
    free(c->date);
    free(c);
}

void tm_chat_text_deinit(tm_chat_text *text)
{
    tm_buf_deinit(&text->text);
    free(text->span);
    *text = (tm_chat_text){0};
}

/* ---- rendering ---- */

/* A row's messages as its template wants them, and what stands beside them. */
typedef struct prepared {
    json_t *messages, *rest;
    tm_chat_turns turns;
} prepared;

static void prepared_deinit(prepared *p)
{
    json_decref(p->messages);
    json_decref(p->rest);
}

static tm_status prepare(const tm_chat *c, const json_t *row, prepared *p, tm_error *err)
{
    const json_t *messages = json_object_get(row, "messages");
    json_t *tools = json_object_get(row, "tools"), *documents = json_object_get(row, "documents");
    *p = (prepared){0};
    if (!json_is_array(messages) || !json_array_size(messages))
        return tm_fail(err, TM_INPUT, "messages: expected a list of messages, found %s", messages ? "none in it" : "nothing");
    int which = c->template[1] && json_array_size(tools) ? 1 : 0;
    TM_TRY(tm_chat_adapt(&c->shape[which], messages, &p->messages, err));
    tm_status st = tm_chat_alias_reasoning(p->messages, err);
    p->rest = json_object(); /* tools and documents are there always, as transformers has it */
    bool ok = p->rest && json_object_set_new(p->rest, "tools", tools ? json_incref(tools) : json_null()) == 0 &&
              json_object_set_new(p->rest, "documents", documents ? json_incref(documents) : json_null()) == 0;
    if (st == TM_OK && !ok)
        st = no_memory(err);
    if (st != TM_OK) {
        prepared_deinit(p);
        return st;
    }
    p->turns = (tm_chat_turns){c->template[which], p->messages, p->rest, row, c->tokens, c->date, &c->specials};
    return TM_OK;
}

static tm_status whole(const prepared *p, bool generate, tm_jinja_output *out, tm_chat_text *text, tm_error *err)
{
    tm_buf_clear(&text->text);
    text->spans = 0;
    TM_TRY(tm_chat_turns_render(&p->turns, json_array_size(p->messages), NULL, generate, out, err));
    tm_buf_add(&text->text, tm_buf_str(&out->text), out->text.size);
    return tm_buf_check(&text->text, err);
}

/* The template's own marks: a span a turn where they agree in number, so that a turn can be left out. */
static tm_status take_marks(const prepared *p, const tm_jinja_output *out, tm_chat_text *text, tm_error *err)
{
    size_t turns = 0, turn = 0, n = json_array_size(p->messages);
    for (size_t i = 0; i < n; i++)
        turns += tm_chat_is_turn(json_array_get(p->messages, i));
    for (size_t i = 0; i < out->spans; i++) {
        while (turn < n && !tm_chat_is_turn(json_array_get(p->messages, turn)))
            turn++;
        bool trained = turns != out->spans || tm_chat_is_trained(json_array_get(p->messages, turn));
        bool apart = !text->spans || out->span[i].begin >= text->span[text->spans - 1].end;
        if (trained && apart)
            TM_TRY(tm_chat_span_add(text, out->span[i].begin, out->span[i].end, err));
        turn++;
    }
    return TM_OK;
}

tm_status tm_chat_render(const tm_chat *chat, const json_t *row, tm_chat_text *text, tm_error *err)
{
    prepared p;
    tm_jinja_output out = {0};
    TM_TRY(prepare(chat, row, &p, err));
    tm_status st = whole(&p, false, &out, text, err);
    if (st == TM_OK)
        st = out.spans && !out.unplaced ? take_marks(&p, &out, text, err) : tm_chat_turns_find(&p.turns, text, err);
    tm_jinja_output_deinit(&out);
    prepared_deinit(&p);
    return st;
}

tm_status tm_chat_prompt(const tm_chat *chat, const json_t *row, tm_chat_text *text, tm_error *err)
{
    prepared p;
    tm_jinja_output out = {0};
    TM_TRY(prepare(chat, row, &p, err));
    tm_status st = whole(&p, true, &out, text, err);
    tm_jinja_output_deinit(&out);
    prepared_deinit(&p);
    return st;
}

/* ---- ids ---- */

typedef struct mapping {
    const tm_chat *chat;
    tm_tokens *scratch;
    const tm_buf *text;
    const int32_t *ids; /* of the whole text */
    size_t count;
    tm_ids part;        /* working memory */
    size_t at_byte, at_id; /* the last bound that fell between two tokens */
    tm_error *err;
} mapping;

/* Bytes that the first n ids decode to. */
static tm_status decoded(mapping *m, size_t n, size_t *size)
{
    tm_buf text = {0};
    tm_status st = tm_tokenizer_decode(m->chat->tok, m->ids, n, false, &text, m->err);
    *size = text.size;
    tm_buf_deinit(&text);
    return st;
}

/* The number of tokens that end at or before byte `bound`, and whether one ends there exactly. What lies
 * between two bounds is tokenised alone: the same ids again mean that no token reaches over the bound. */
static tm_status locate(mapping *m, size_t bound, size_t *id, bool *exact)
{
    size_t from_byte[2] = {m->at_byte, 0}, from_id[2] = {m->at_id, 0};
    for (int i = 0; i < 2; i++) { /* from the last bound, then from the beginning */
        m->part.count = 0;
        TM_TRY(tm_tokenizer_encode(m->chat->tok, m->scratch, tm_buf_str(m->text) + from_byte[i], bound - from_byte[i], false, &m->part, m->err));
        size_t n = m->part.count;
        *exact = from_id[i] + n <= m->count && (!n || memcmp(m->part.id, m->ids + from_id[i], n * sizeof *m->ids) == 0);
        *id = from_id[i] + n;
        if (*exact) {
            m->at_byte = bound;
            m->at_id = *id;
            return TM_OK;
        }
    }
    size_t low = m->at_id, high = m->count, size; /* a token holds the bound: which one, by decoding */
    while (low < high) {
        size_t middle = low + (high - low + 1) / 2;
        TM_TRY(decoded(m, middle, &size));
        if (size <= bound)
            low = middle;
        else
            high = middle - 1;
    }
    TM_TRY(decoded(m, low, &size));
    *id = low;
    *exact = size == bound;
    return TM_OK;
}

static tm_status push_eos(const tm_chat *c, tm_ids *ids, tm_error *err)
{
    TM_TRY(TM_GROW(&ids->id, &ids->capacity, ids->count + 1, err));
    ids->id[ids->count++] = tm_tokenizer_eos(c->tok);
    return TM_OK;
}

/* Does the text end with an assistant's turn that no special token closes? */
static bool open_end(const tm_chat *c, const tm_chat_text *text)
{
    const tm_buf *t = &text->text;
    size_t end = t->size;
    if (!text->spans)
        return false;
    while (end && strchr(" \t\r\n", t->data[end - 1]))
        end--;
    if (text->span[text->spans - 1].end < end)
        return false;
    for (size_t at = 0; at < c->specials.size; at += strlen(c->specials.data + at) + 1) {
        size_t n = strlen(c->specials.data + at);
        if (n <= end && memcmp(t->data + end - n, c->specials.data + at, n) == 0)
            return false;
    }
    return true;
}

tm_status tm_chat_encode(const tm_chat *c, tm_tokens *scratch, const tm_chat_text *text, tm_ids *ids, float **weight,
                         size_t *weight_capacity, int64_t *targets, tm_error *err)
{
    size_t first = ids->count;
    *targets = 0;
    if (!c->tok)
        return tm_fail(err, TM_INPUT, "conversations need a tokenizer, and there is none");
    TM_TRY(tm_tokenizer_encode(c->tok, scratch, tm_buf_str(&text->text), text->text.size, false, ids, err));
    size_t count = ids->count - first;
    bool eos = tm_tokenizer_eos(c->tok) >= 0 && open_end(c, text);
    if (eos)
        TM_TRY(push_eos(c, ids, err));
    float *w = NULL;
    if (weight) {
        TM_TRY(TM_GROW(weight, weight_capacity, ids->count + 1, err));
        w = *weight + first;
        memset(w, 0, (ids->count - first) * sizeof *w);
    }
    mapping m = {.chat = c, .scratch = scratch, .text = &text->text, .ids = ids->id + first, .count = count, .err = err};
    tm_status st = TM_OK;
    size_t done = 1; /* nothing predicts the first token */
    for (size_t i = 0; i < text->spans && st == TM_OK; i++) {
        size_t begin = 0, end = 0;
        bool exact = true;
        st = locate(&m, text->span[i].begin, &begin, &exact);
        if (st == TM_OK)
            st = locate(&m, text->span[i].end, &end, &exact);
        end += st == TM_OK && !exact; /* a token that holds a byte of the span belongs to it */
        for (size_t k = begin > done ? begin : done; k < end && k < count; k++, done = k) {
            ++*targets;
            if (w)
                w[k] = 1;
        }
    }
    if (st == TM_OK && eos && count) {
        ++*targets;
        if (w)
            w[count] = 1;
    }
    tm_ids_deinit(&m.part);
    return st;
}

tm_status tm_chat_end(const tm_chat *chat, tm_tokens *scratch, int32_t *out, tm_error *err)
{
    json_t *row = json_pack("{s:[{s:s, s:s}, {s:s, s:s}]}", "messages", "role", "user", "content", "a", "role", "assistant", "content", "b");
    tm_chat_text text = {0};
    tm_ids ids = {0};
    float *weight = NULL;
    size_t capacity = 0;
    int64_t targets;
    tm_error ignored;
    *out = -1;
    tm_status st = row ? tm_chat_render(chat, row, &text, &ignored) : TM_NO_MEMORY;
    if (st == TM_OK)
        st = tm_chat_encode(chat, scratch, &text, &ids, &weight, &capacity, &targets, &ignored);
    for (size_t i = 0; st == TM_OK && i < ids.count && *out < 0; i++)
        if (weight[i] > 0 && tm_tokenizer_is_special(chat->tok, ids.id[i]))
            *out = ids.id[i];
    free(weight);
    tm_ids_deinit(&ids);
    tm_chat_text_deinit(&text);
    json_decref(row);
    return st == TM_NO_MEMORY ? tm_fail(err, TM_NO_MEMORY, "out of memory") : TM_OK;
}
