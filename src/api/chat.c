/* temper chat: a conversation kept between calls. Its text is rendered anew for every answer; what agrees
 * with what the model has read already is not read again (tm_generate_ids). */
#include "api/inference.h"

#include "io/hf.h"
#include "text/chat.h"
#include "text/unicode.h"

#include <stdlib.h>

enum { STOPS_MOST = 16, BATCH_TOKENS = 512 };

struct tm_chat_session {
    tm_chat_request request;
    tm_tokenizer *tok;
    tm_tokens *scratch;
    tm_chat *chat;
    tm_inference inf;
    json_t *messages;
    char *system; /* "" = none */
    int64_t context;
    int32_t stop[STOPS_MOST];
    size_t stops;
};

static tm_status no_memory(tm_error *err) { return tm_fail(err, TM_NO_MEMORY, "out of memory"); }

/* ---- where an answer ends ---- */

static void add_stop(tm_chat_session *s, int64_t id)
{
    bool known = id < 0 || id > INT32_MAX || s->stops == STOPS_MOST;
    for (size_t i = 0; i < s->stops; i++)
        known |= s->stop[i] == id;
    if (!known)
        s->stop[s->stops++] = (int32_t)id;
}

static tm_status find_stops(tm_chat_session *s, tm_error *err)
{
    json_t *json;
    TM_TRY(tm_hf_json(s->request.model, "generation_config.json", &json, err));
    const json_t *eos = json_object_get(json, "eos_token_id");
    if (json_is_integer(eos))
        add_stop(s, json_integer_value(eos));
    for (size_t i = 0; i < json_array_size(eos); i++)
        add_stop(s, json_is_integer(json_array_get(eos, i)) ? json_integer_value(json_array_get(eos, i)) : -1);
    json_decref(json);
    add_stop(s, tm_tokenizer_eos(s->tok));
    int32_t end;
    TM_TRY(tm_chat_end(s->chat, s->scratch, &end, err));
    add_stop(s, end);
    return TM_OK;
}

/* ---- opening ---- */

tm_status tm_chat_session_reset(tm_chat_session *s, const char *system, tm_error *err)
{
    if (system) {
        char *copy = tm_strdup(system, err);
        if (!copy)
            return TM_NO_MEMORY;
        free(s->system);
        s->system = copy;
    }
    json_decref(s->messages);
    s->messages = json_array();
    bool ok = s->messages;
    if (ok && *s->system) {
        json_t *message = json_pack("{s:s, s:s}", "role", "system", "content", s->system);
        ok = message && json_array_append_new(s->messages, message) == 0;
    }
    return ok ? TM_OK : no_memory(err);
}

static tm_status open_session(tm_chat_session *s, tm_error *err)
{
    const tm_chat_request *r = &s->request;
    tm_model_config config;
    TM_TRY(tm_tokenizer_open(r->model, &s->tok, err));
    TM_TRY(tm_tokens_create(s->tok, &s->scratch, err));
    tm_chat_settings settings = {.model = r->model, .template = r->chat_template, .tok = s->tok, .date = r->date};
    TM_TRY(tm_chat_open(&settings, &s->chat, err));
    TM_TRY(tm_chat_session_reset(s, r->system ? r->system : "", err));
    TM_TRY(find_stops(s, err));
    TM_TRY(tm_model_config_read(r->model, &config, err));
    s->context = tm_model_config_longest(&config);
    s->context = r->context < s->context ? r->context : s->context;
    tm_inference_settings inference = {.model = r->model, .adapter = r->adapter, .threads = r->threads,
                                       .max_tokens = s->context < BATCH_TOKENS ? s->context : BATCH_TOKENS, .cache_tokens = s->context};
    return tm_inference_open(&inference, &s->inf, err);
}

tm_status tm_chat_session_open(const tm_chat_request *request, tm_chat_session **out, tm_error *err)
{
    tm_chat_session *s;
    *out = NULL;
    TM_TRY(TM_NEW(&s, 1, err));
    s->request = *request;
    tm_status st = tm_utf8_valid(request->system ? request->system : "", strlen(request->system ? request->system : ""))
                       ? open_session(s, err) : tm_fail(err, TM_USAGE, "the system text is not UTF-8");
    if (st == TM_OK)
        *out = s;
    else
        tm_chat_session_close(s);
    return st;
}

void tm_chat_session_close(tm_chat_session *s)
{
    if (!s)
        return;
    if (s->inf.recipe)
        tm_inference_close(&s->inf);
    tm_chat_close(s->chat);
    tm_tokens_destroy(s->scratch);
    tm_tokenizer_close(s->tok);
    json_decref(s->messages);
    free(s->system);
    free(s);
}

/* ---- answering ---- */

typedef struct answering {
    tm_chat_session *session;
    tm_decode_stream stream;
    tm_buf piece, answer;
    void (*write)(void *context, const char *text, size_t size);
    void *context;
    tm_error *err;
    tm_status status;
} answering;

/* White space in front of an answer belongs to the template, not to what is said. */
static void give(answering *a)
{
    size_t skip = 0;
    while (!a->answer.size && skip < a->piece.size && strchr(" \t\r\n", a->piece.data[skip]))
        skip++;
    if (a->piece.size > skip) {
        tm_buf_add(&a->answer, a->piece.data + skip, a->piece.size - skip);
        if (a->write)
            a->write(a->context, a->piece.data + skip, a->piece.size - skip);
    }
    tm_buf_clear(&a->piece);
}

static bool on_token(void *context, int32_t id)
{
    answering *a = context;
    a->status = tm_decode_stream_push(&a->stream, a->session->tok, id, &a->piece, a->err);
    give(a);
    return a->status == TM_OK;
}

static tm_status prompt_ids(tm_chat_session *s, tm_ids *ids, tm_error *err)
{
    tm_chat_text text = {0};
    int64_t targets;
    json_t *row = json_pack("{s:O}", "messages", s->messages);
    tm_status st = row ? tm_chat_prompt(s->chat, row, &text, err) : no_memory(err);
    if (st == TM_OK)
        st = tm_chat_encode(s->chat, s->scratch, &text, ids, NULL, NULL, &targets, err);
    if (st == TM_OK)
        st = tm_inference_knows(&s->inf, s->request.model, "conversation", ids->id, ids->count, err);
    if (st == TM_OK && (int64_t)ids->count >= s->context)
        st = tm_fail(err, TM_FAILED, "the conversation has %zu tokens, the context has room for %lld: /reset starts a new one",
                     ids->count, (long long)s->context);
    if (st == TM_OK && !ids->count)
        st = tm_fail(err, TM_INPUT, "the chat template gives no text to answer");
    tm_chat_text_deinit(&text);
    json_decref(row);
    return st;
}

static tm_status put_message(tm_chat_session *s, const char *role, const char *text, size_t size, tm_error *err)
{
    json_t *message = json_pack("{s:s, s:o}", "role", role, "content", json_stringn_nocheck(text, size));
    return message && json_array_append_new(s->messages, message) == 0 ? TM_OK : no_memory(err);
}

static tm_status answer(tm_chat_session *s, answering *a, tm_error *err)
{
    tm_ids ids = {0};
    tm_status st;
    const tm_chat_request *r = &s->request;
    TM_GO(prompt_ids(s, &ids, err));
    /* So that the answer joins the prompt (spaces between words), decoding starts with the prompt. */
    for (size_t i = ids.count > 8 ? ids.count - 8 : 0; i < ids.count; i++)
        TM_GO(tm_decode_stream_push(&a->stream, s->tok, ids.id[i], &a->piece, err));
    tm_buf_clear(&a->piece);
    tm_sampling sampling = {r->temperature, r->top_k, r->top_p, r->seed};
    TM_GO(tm_generate_ids(&s->inf, ids.id, ids.count, r->max_tokens, s->stop, s->stops, &sampling, on_token, a, err));
    TM_GO(a->status);
    TM_GO(tm_decode_stream_flush(&a->stream, s->tok, &a->piece, err));
    give(a);
    TM_GO(tm_buf_check(&a->answer, err));
    st = put_message(s, "assistant", tm_buf_str(&a->answer), a->answer.size, err);
out:
    tm_ids_deinit(&ids);
    return st;
}

tm_status tm_chat_session_say(tm_chat_session *s, const char *text, void (*write)(void *context, const char *text, size_t size),
                              void *context, tm_error *err)
{
    answering a = {.session = s, .write = write, .context = context, .err = err};
    tm_buf said = {0};
    tm_utf8_repair(text, strlen(text), &said);
    tm_status st = tm_buf_check(&said, err);
    if (st == TM_OK)
        st = put_message(s, "user", tm_buf_str(&said), said.size, err);
    if (st == TM_OK) {
        st = answer(s, &a, err);
        if (st != TM_OK) /* as if it had not been said */
            json_array_remove(s->messages, json_array_size(s->messages) - 1);
    }
    tm_decode_stream_deinit(&a.stream);
    tm_buf_deinit(&a.piece);
    tm_buf_deinit(&a.answer);
    tm_buf_deinit(&said);
    return st;
}
