/* Generation: see generate.h. */
#include "model/generate.h"

#include "base/buf.h"

#include <stdlib.h>

/* at: which token of the prompt ids begins with; the prompt's length for all that is generated. */
static void feed(tm_model *m, tm_batch *b, const tm_batch_item *like, const int32_t *ids, int64_t n, int64_t past, int64_t at)
{
    const float *gates = like->gates_by_token ? like->gates + at * m->gates : like->gates;
    tm_batch_item item = {.ids = ids, .n = (int32_t)n, .past = (int32_t)past, .replica = like->replica, .gates = gates, .gates_by_token = like->gates_by_token};
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

tm_status tm_decode(tm_model *m, tm_batch *b, const tm_batch_item *prompt, int64_t max_tokens, tm_choose_fn choose,
                    void *context, tm_error *err)
{
    int64_t vocab = m->config.vocab, past = 0, prefix = b->prefix, last = prefix + prompt->n - 1;
    tm_status st = TM_OK;
    row r = {0};
    if (prompt->n < 1 || last >= m->settings.cache_tokens)
        return tm_fail(err, TM_FAILED, "a prompt of %lld tokens, expected 1 to %lld", (long long)prompt->n,
                       (long long)(m->settings.cache_tokens - prefix));
    TM_GO(tm_alloc(&r.raw, (size_t)vocab, (size_t)tm_dtype_bytes(m->logits.dtype, 1), err));
    TM_GO(TM_NEW(&r.value, vocab, err));
    b->cached = true;
    if (prefix && !prompt->past) /* the trained prompt alone: what follows is as without one, further on */
        feed(m, b, prompt, NULL, 0, 0, 0);
    past = prefix + prompt->past;
    for (int64_t n; past < last; past += n) {
        n = last - past < b->max_tokens ? last - past : b->max_tokens;
        feed(m, b, prompt, prompt->ids + past - prefix, n, past, past - prefix);
    }
    int32_t id = prompt->ids[prompt->n - 1];
    for (int64_t i = 0; i < max_tokens && past < m->settings.cache_tokens && id >= 0; i++) {
        feed(m, b, prompt, &id, 1, past, i ? prompt->n : prompt->n - 1);
        past++;
        read_row(m, b, &r);
        id = choose(context, r.value, past);
    }
    TM_GO(m->device->calls->sync(m->device, err));
out:
    b->cached = false;
    free(r.raw);
    free(r.value);
    return st;
}
