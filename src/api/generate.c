/* temper generate: text from a prompt. */
#include "api/inference.h"
#include "api/job.h"
#include "tune/registers.h"

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

/* --- Tags that switch registers: <|register NAME=NUMBER,...|>; an empty list switches all off --- */

static const char tag_begin[] = "<|register", tag_end[] = "|>";

typedef struct tag {
    size_t token;      /* the first that it holds for */
    const char *list;  /* in the prompt, up to tag_end */
    size_t size;
} tag;

typedef struct tags {
    tag *item;
    size_t count, capacity;
} tags;

/* Encodes the prompt's pieces between tags, and remembers where the tags stood. */
static tm_status encode_pieces(const tm_tokenizer *tok, tm_tokens *scratch, const char *prompt, tm_ids *ids, tags *found, tm_error *err)
{
    for (bool first = true; *prompt; first = false) {
        const char *at = strstr(prompt, tag_begin), *end = at ? strstr(at, tag_end) : NULL;
        size_t n = end ? (size_t)(at - prompt) : strlen(prompt);
        if (n || first)
            TM_TRY(tm_tokenizer_encode(tok, scratch, prompt, n, first, ids, err));
        if (!end)
            return TM_OK;
        TM_TRY(TM_GROW(&found->item, &found->capacity, found->count + 1, err));
        const char *list = at + sizeof tag_begin - 1;
        list += strspn(list, " ");
        found->item[found->count++] = (tag){ids->count, list, (size_t)(end - list)};
        prompt = end + sizeof tag_end - 1;
    }
    return TM_OK;
}

/* Gates of every token of the prompt, and of what is generated behind it. */
static tm_status gates_of_tags(tm_inference *inf, const tags *found, size_t count, tm_error *err)
{
    size_t K = (size_t)inf->tuning.registers.count, next = 0;
    if (!found->count)
        return TM_OK;
    if (!K)
        return tm_fail(err, TM_USAGE, "the prompt has a tag of registers, but the adapter is no bank of registers");
    TM_TRY(TM_NEW(&inf->prompt_gates, (int64_t)((count + 1) * K), err));
    for (size_t t = 0; t <= count; t++) {
        for (; next < found->count && found->item[next].token <= t; next++) {
            char list[256];
            if (found->item[next].size >= sizeof list)
                return tm_fail(err, TM_USAGE, "a tag of registers is longer than %zu bytes", sizeof list - 1);
            snprintf(list, sizeof list, "%.*s", (int)found->item[next].size, found->item[next].list);
            if (!*list)
                memset(inf->gates, 0, K * sizeof *inf->gates);
            TM_TRY(tm_registers_parse(&inf->tuning.registers, list, "tag in the prompt", inf->gates, err));
        }
        memcpy(inf->prompt_gates + t * K, inf->gates, K * sizeof *inf->gates);
    }
    return TM_OK;
}

static tm_status encode_prompt(const tm_tokenizer *tok, const char *prompt, tm_ids *ids, tags *found, tm_error *err)
{
    tm_tokens *scratch;
    TM_TRY(tm_tokens_create(tok, &scratch, err));
    tm_status st = encode_pieces(tok, scratch, prompt, ids, found, err);
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
    tags found = {0};
    tm_inference inf = {0};
    printing p = {.request = request, .err = err};
    int32_t stop[8];
    TM_GO(tm_tokenizer_open(request->model, &tok, err));
    TM_GO(encode_prompt(tok, request->prompt, &ids, &found, err));
    int64_t total = (int64_t)ids.count + request->max_tokens;
    tm_inference_settings settings = {.model = request->model, .adapter = request->adapter, .registers = request->registers, .threads = request->threads,
                                      .max_tokens = ids.count < 512 ? (int64_t)ids.count : 512, .cache_tokens = total};
    TM_GO(tm_inference_open(&settings, &inf, err));
    TM_GO(tm_inference_knows(&inf, request->model, "prompt", ids.id, ids.count, err));
    if (inf.router.gates)
        TM_GO(tm_inference_route(&inf, ids.id, (int64_t)ids.count, err));
    TM_GO(gates_of_tags(&inf, &found, ids.count, err));
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
    free(found.item);
    tm_ids_deinit(&ids);
    tm_tokenizer_close(tok);
    return st;
}
