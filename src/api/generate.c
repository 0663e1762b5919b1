/* temper generate: text from a prompt. */
#include "api/inference.h"
#include "api/job.h"

#include <stdlib.h>

typedef struct printing {
    const tm_generate_request *request;
    const tm_tokenizer *tok;
    tm_decode_stream stream;
    tm_buf text;
    tm_error *err;
    tm_status status;
} printing;

static void give(printing *p)
{
    if (p->status == TM_OK && p->text.size && p->request->write)
        p->request->write(p->request->context, p->text.data, p->text.size);
    tm_buf_clear(&p->text);
}

static bool on_token(void *context, int32_t id)
{
    printing *p = context;
    p->status = tm_decode_stream_push(&p->stream, p->tok, id, &p->text, p->err);
    give(p);
    return p->status == TM_OK;
}

static tm_status encode_prompt(const tm_tokenizer *tok, const char *prompt, tm_ids *ids, tm_error *err)
{
    tm_tokens *scratch;
    TM_TRY(tm_tokens_create(tok, &scratch, err));
    tm_status st = TM_OK;
    if (*prompt)
        st = tm_tokenizer_encode(tok, scratch, prompt, strlen(prompt), true, ids, err);
    tm_tokens_destroy(scratch);
    if (st == TM_OK && !ids->count) { /* an empty prompt starts from BOS */
        int32_t start = tm_tokenizer_bos(tok) >= 0 ? tm_tokenizer_bos(tok) : tm_tokenizer_eos(tok);
        if (start < 0)
            return tm_fail(err, TM_USAGE, "an empty prompt starts from the BOS token, and this tokenizer has none; give a prompt");
        TM_TRY(TM_GROW(&ids->id, &ids->capacity, 1, err));
        ids->id[ids->count++] = start;
    }
    return st;
}

tm_status tm_generate(const tm_generate_request *request, tm_error *err)
{
    tm_status st = TM_OK;
    tm_tokenizer *tok = NULL;
    tm_ids ids = {0};
    tm_inference inf = {0};
    printing p = {.request = request, .err = err};
    int32_t stop[8];
    TM_GO(tm_tokenizer_open(request->model, &tok, err));
    TM_GO(encode_prompt(tok, request->prompt, &ids, err));
    int64_t total = (int64_t)ids.count + request->max_tokens;
    tm_inference_settings settings = {.model = request->model, .adapter = request->adapter, .registers = request->registers, .threads = request->threads,
                                      .max_tokens = ids.count < 512 ? (int64_t)ids.count : 512, .cache_tokens = total};
    TM_GO(tm_inference_open(&settings, &inf, err));
    for (size_t i = 0; i < ids.count; i++)
        if (ids.id[i] >= inf.model.config.vocab)
            TM_GO(tm_fail(err, TM_INPUT, "%s: token %d of the prompt is outside the model's vocabulary of %lld: tokenizer and model do not belong together", request->model,
                          ids.id[i], (long long)inf.model.config.vocab));
    p.tok = tok;
    tm_sampling sampling = {request->temperature, request->top_k, request->top_p, request->seed};
    /* So that the text joins the prompt (spaces between words), decoding starts with the prompt's last token. */
    for (size_t i = 0; i < ids.count && *request->prompt; i++)
        TM_GO(tm_decode_stream_push(&p.stream, tok, ids.id[i], &p.text, err));
    tm_buf_clear(&p.text);
    TM_GO(tm_generate_ids(&inf, ids.id, ids.count, request->max_tokens, stop, tm_stop_ids(request->model, tok, stop), &sampling, on_token, &p, err));
    TM_GO(p.status);
    TM_GO(tm_decode_stream_flush(&p.stream, tok, &p.text, err));
    give(&p);
out:
    tm_inference_close(&inf);
    tm_decode_stream_deinit(&p.stream);
    tm_buf_deinit(&p.text);
    tm_ids_deinit(&ids);
    tm_tokenizer_close(tok);
    return st;
}
