/* Generation: see generate.h. */
#include "model/generate.h"

#include "base/buf.h"

#include <stdlib.h>

/* length: of the text as a whole, for angles that depend on it. */
static void feed(tm_model *m, tm_batch *b, const tm_batch_item *like, const int32_t *ids, int64_t n, int64_t past, int64_t length)
{
    int64_t first = past < b->prefix ? 0 : past - b->prefix < like->n ? past - b->prefix : like->n; /* row of its gates */
    tm_batch_item item = {.ids = ids, .n = (int32_t)n, .past = (int32_t)past, .length = (int32_t)length, .replica = like->replica, .gates_by_token = like->gates_by_token,
                          .gates = like->gates_by_token ? like->gates + first * b->gates : like->gates};
    tm_batch_fill(b, &item, 1);
    tm_model_forward(m, b);
}

int32_t tm_most_likely(const float *logits, int64_t vocab)
{
    int64_t best = 0;
    for (int64_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

/* Room for one row of logits, as the device keeps them and as floats. */
typedef struct row {
    void *raw;
    float *value;
} row;

static void read_row(tm_model *m, tm_batch *b, row *r)
{
    int64_t vocab = m->config.vocab;
    tm_dtype dtype = m->logits.dtype;
    tm_model_logits(m, b);
    m->device->calls->download(m->device, r->raw, m->logits.data, tm_dtype_bytes(dtype, vocab));
    tm_dtype_convert(r->value, TM_F32, r->raw, dtype, vocab);
}

/* Keys and values of rows [past, end) of a text; ids: of all its tokens. */
static void fill_cache(tm_model *m, tm_batch *b, const tm_batch_item *like, const int32_t *ids, int64_t past, int64_t end, int64_t length)
{
    if (b->prefix && past < b->prefix) { /* the trained prompt alone: what follows is as without one, further on */
        feed(m, b, like, NULL, 0, 0, length);
        past = b->prefix;
    }
    for (int64_t n; past < end; past += n) {
        int64_t left = b->prefix + like->n - past; /* behind the prompt all tokens have its last row of gates */
        n = end - past < b->max_tokens ? end - past : b->max_tokens;
        if (like->gates_by_token && n > left)
            n = left > 0 ? left : 1;
        feed(m, b, like, ids + past - b->prefix, n, past, length);
    }
}

/* As in transformers the first Qwen keeps the angles of its prompt, dynamic ones follow the length, and with short and
 * long factors the whole text is computed anew where it outgrows the short ones. */
tm_status tm_decode(tm_model *m, tm_batch *b, const tm_batch_item *prompt, int64_t max_tokens, tm_choose_fn choose,
                    void *context, tm_error *err)
{
    const tm_rope_config *rope = m->config.ropes ? &m->config.rope[0] : NULL;
    int64_t vocab = m->config.vocab, prefix = b->prefix, last = prefix + prompt->n - 1, past = prompt->past ? prefix + prompt->past : 0;
    int64_t limit = rope && rope->kind == TM_ROPE_LONG ? rope->limit : INT64_MAX, whole = last + 1;
    tm_status st = TM_OK;
    row r = {0};
    int32_t *ids = NULL;
    if (prompt->n < 1 || last >= m->settings.cache_tokens)
        return tm_fail(err, TM_FAILED, "a prompt of %lld tokens, expected 1 to %lld", (long long)prompt->n,
                       (long long)(m->settings.cache_tokens - prefix));
    TM_GO(tm_alloc(&r.raw, (size_t)vocab, (size_t)tm_dtype_bytes(m->logits.dtype, 1), err));
    TM_GO(TM_NEW(&r.value, vocab, err));
    TM_GO(TM_NEW(&ids, m->settings.cache_tokens + 1, err));
    memcpy(ids, prompt->ids, (size_t)prompt->n * sizeof *ids);
    b->cached = true;
    if (whole > limit && past <= limit)
        past = 0;
    fill_cache(m, b, prompt, ids, past, last, whole);
    past = last;
    int32_t id = ids[prompt->n - 1];
    for (int64_t i = 0; i < max_tokens && past < m->settings.cache_tokens && id >= 0; i++) {
        ids[past - prefix] = id;
        if (past == limit && whole <= limit)
            fill_cache(m, b, prompt, ids, 0, past, past + 1);
        feed(m, b, prompt, &id, 1, past, rope && rope->kind == TM_ROPE_QWEN ? whole : 0);
        past++;
        read_row(m, b, &r);
        id = choose(context, r.value, past);
    }
    TM_GO(m->device->calls->sync(m->device, err));
out:
    b->cached = false;
    free(r.raw);
    free(r.value);
    free(ids);
    return st;
}
