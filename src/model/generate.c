/* Generation: see generate.h. */
#include "model/generate.h"

#include "base/buf.h"
#include "device/replay.h"

#include <assert.h>
#include <stdlib.h>

int32_t tm_most_likely(const float *logits, int64_t vocab)
{
    int64_t best = 0;
    for (int64_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

/* A text under way. Rows: of a trained prompt, then of its tokens. */
typedef struct slot {
    tm_text text;
    bool busy;
    int32_t *ids;    /* [cache_tokens + 1] of prompt and text */
    int64_t rows;    /* known; the last of them is what the next token follows */
    int64_t past;    /* in the cache */
    int64_t whole;   /* rows that the angles are of, where they depend on the length */
    int64_t left;    /* tokens that may still be chosen */
} slot;

typedef struct decoding {
    tm_model *m;
    tm_batch *b;
    const tm_texts *texts;
    slot *slot;
    tm_batch_item *item; /* [slots] of the batch at hand */
    slot **of;           /* [slots] whose they are */
    int64_t slots, items;
    tm_replay *replay;   /* [slots] by how many texts get a token: one less */
    int32_t *likeliest;  /* [slots] */
    void *raw;           /* [slots, vocab] logits as the device keeps them, where somebody wants to see them */
    float *logits;       /* [vocab] */
} decoding;

/* --- The texts --- */

/* Rows from which on the angles are those of long texts: such a text is computed anew where it gets there. */
static int64_t long_from(const decoding *d)
{
    const tm_rope_config *rope = d->m->config.ropes ? &d->m->config.rope[0] : NULL;
    return rope && rope->kind == TM_ROPE_LONG ? rope->limit : INT64_MAX;
}

static bool keeps_angles(const decoding *d) { return d->m->config.ropes && d->m->config.rope[0].kind == TM_ROPE_QWEN; }

static tm_status begin_text(decoding *d, slot *s, tm_error *err)
{
    const tm_batch_item *prompt = &s->text.prompt;
    int64_t prefix = d->b->prefix, most = d->m->settings.cache_tokens - prefix;
    if (prompt->n < 1 || prompt->n > most)
        return tm_fail(err, TM_FAILED, "a prompt of %lld tokens, expected 1 to %lld", (long long)prompt->n, (long long)most);
    assert(!prompt->past || s == d->slot);
    memcpy(s->ids, prompt->ids, (size_t)prompt->n * sizeof *s->ids);
    s->rows = s->whole = prefix + prompt->n;
    s->past = prompt->past ? prefix + prompt->past : 0;
    if (s->whole > long_from(d) && s->past <= long_from(d))
        s->past = 0;
    s->left = s->text.max_tokens;
    s->busy = true;
    return TM_OK;
}

/* Texts for the free slots; *busy: how many are under way. */
static tm_status take_texts(decoding *d, int64_t *busy, tm_error *err)
{
    *busy = 0;
    bool more = true;
    for (slot *s = d->slot; s < d->slot + d->slots; *busy += s++->busy)
        while (!s->busy && more) {
            TM_TRY(d->texts->next(d->texts->context, &s->text, &more, err));
            if (!more)
                break;
            TM_TRY(begin_text(d, s, err));
            if (s->left > 0)
                break;
            s->busy = false; /* nothing is asked of it */
            if (d->texts->ended)
                TM_TRY(d->texts->ended(d->texts->context, s->text.number, err));
        }
    return TM_OK;
}

/* --- Batches --- */

/* n more tokens of a text into the batch. length: rows that its angles are of; 0: those so far. */
static void add(decoding *d, slot *s, int64_t n, int64_t length)
{
    const tm_batch_item *prompt = &s->text.prompt;
    int64_t first = s->past > d->b->prefix ? s->past - d->b->prefix : 0, gates = first < prompt->n ? first : prompt->n; /* its row of them */
    d->of[d->items] = s;
    d->item[d->items++] = (tm_batch_item){.ids = s->ids + first, .n = (int32_t)n, .past = (int32_t)s->past, .length = (int32_t)length, .slot = (int32_t)(s - d->slot),
                                          .replica = prompt->replica, .gates_by_token = prompt->gates_by_token,
                                          .gates = prompt->gates_by_token ? prompt->gates + gates * d->b->gates : prompt->gates};
}

/* Lays out what was added. */
static void fill(decoding *d, bool single)
{
    d->b->single = single;
    tm_batch_fill(d->b, d->item, d->items);
    for (int64_t i = 0; i < d->items; i++)
        d->of[i]->past += tm_batch_item_rows(d->b, &d->item[i]);
}

/* The next tokens of a text that the cache lacks, as many as `room` rows take; 0 rows: it lacks none, or has no room. */
static int64_t add_prompt(decoding *d, slot *s, int64_t room)
{
    int64_t prefix = s->past ? 0 : d->b->prefix, n = s->rows - 1 - s->past - prefix;
    n = n < room - prefix ? n : room - prefix;
    if (n < 0 || n + prefix == 0)
        return 0;
    const tm_batch_item *prompt = &s->text.prompt;
    int64_t left = prompt->n - (s->past + prefix - d->b->prefix); /* behind the prompt all tokens have its last row of gates */
    if (prompt->gates_by_token && n > left)
        n = left > 0 ? left : 1;
    add(d, s, n, s->whole);
    return n + prefix;
}

/* Keys and values of all that texts know but its last token, which the next follows. */
static void read_prompts(decoding *d)
{
    do {
        int64_t rows = 0;
        d->items = 0;
        for (slot *s = d->slot; s < d->slot + d->slots; s++)
            if (s->busy)
                rows += add_prompt(d, s, d->b->max_tokens - rows);
        if (d->items) {
            fill(d, false);
            tm_model_forward(d->m, d->b);
        }
    } while (d->items);
}

/* --- Tokens --- */

/* A text has its next token. */
static tm_status put_token(decoding *d, slot *s, int32_t id, tm_error *err)
{
    bool more = true;
    TM_TRY(d->texts->token(d->texts->context, s->text.number, id, &more, err));
    s->left--;
    if (more && s->left > 0 && s->past < d->m->settings.cache_tokens) {
        s->ids[s->rows++ - d->b->prefix] = id;
        if (s->past == long_from(d) && s->whole <= long_from(d)) {
            s->past = 0;
            s->whole = s->rows;
        }
        return TM_OK;
    }
    s->busy = false;
    return d->texts->ended ? d->texts->ended(d->texts->context, s->text.number, err) : TM_OK;
}

static void queue_tokens(void *context)
{
    decoding *d = context;
    tm_model_forward(d->m, d->b);
    tm_model_logits(d->m, d->b);
    if (!d->texts->choose)
        tm_model_likeliest(d->m, d->b);
}

/* What the tokens are chosen by, on the host. */
static tm_status fetch_choice(decoding *d, tm_error *err)
{
    tm_device *device = d->m->device;
    tm_tensor logits = d->m->logits;
    int64_t bytes = tm_dtype_bytes(logits.dtype, logits.cols);
    for (int64_t i = 0; d->texts->choose && i < d->items; i++)
        tm_device_fetch(device, (char *)d->raw + i * bytes, tm_tensor_rows(logits, i, 1).data, bytes);
    if (!d->texts->choose)
        tm_device_fetch(device, d->likeliest, d->b->hit, d->items * (int64_t)sizeof *d->likeliest);
    return device->calls->sync(device, err);
}

static int32_t choice(decoding *d, int64_t i)
{
    if (!d->texts->choose)
        return d->likeliest[i];
    tm_tensor logits = d->m->logits;
    void *raw = (char *)d->raw + i * tm_dtype_bytes(logits.dtype, logits.cols);
    if (logits.dtype != TM_F32)
        tm_dtype_convert(d->logits, TM_F32, raw, logits.dtype, logits.cols);
    return d->texts->choose(d->texts->context, d->of[i]->text.number, logits.dtype == TM_F32 ? raw : d->logits, d->of[i]->past);
}

/* One token of every text under way. As in transformers the first Qwen keeps the angles of its prompt, dynamic ones
 * follow the length, and with short and long factors the whole text is computed anew where it outgrows the short ones. */
static tm_status write_tokens(decoding *d, tm_error *err)
{
    tm_model *m = d->m;
    d->items = 0;
    for (slot *s = d->slot; s < d->slot + d->slots; s++)
        if (s->busy)
            add(d, s, 1, keeps_angles(d) ? s->whole : 0);
    fill(d, true);
    if (tm_model_uploads(m, d->b))
        queue_tokens(d);
    else
        TM_TRY(tm_replay_run(m->device, &d->replay[d->items - 1], queue_tokens, d, err));
    TM_TRY(fetch_choice(d, err));
    for (int64_t i = 0; i < d->items; i++)
        TM_TRY(put_token(d, d->of[i], choice(d, i), err));
    return TM_OK;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

tm_status tm_decode(tm_model *m, tm_batch *b, const tm_texts *texts, tm_error *err)
{
    decoding d = {.m = m, .b = b, .texts = texts, .slots = least(least(m->settings.cache_slots, m->logits.rows), least(b->max_examples, b->max_tokens))};
    tm_status st = TM_OK;
    int64_t busy;
    assert(b->max_tokens >= b->prefix);
    TM_GO(TM_NEW(&d.slot, d.slots, err));
    TM_GO(TM_NEW(&d.item, d.slots, err));
    TM_GO(TM_NEW(&d.of, d.slots, err));
    for (int64_t i = 0; i < d.slots; i++)
        TM_GO(TM_NEW(&d.slot[i].ids, m->settings.cache_tokens + 1, err));
    TM_GO(TM_NEW(&d.replay, d.slots, err));
    if (texts->choose) {
        TM_GO(tm_alloc(&d.raw, (size_t)d.slots, (size_t)tm_dtype_bytes(m->logits.dtype, m->config.vocab), err));
        TM_GO(TM_NEW(&d.logits, m->config.vocab, err));
    } else
        TM_GO(TM_NEW(&d.likeliest, d.slots, err));
    b->cached = true;
    for (;;) {
        TM_GO(take_texts(&d, &busy, err));
        if (!busy)
            break;
        if (texts->go_on)
            TM_GO(texts->go_on(texts->context, err));
        read_prompts(&d);
        TM_GO(write_tokens(&d, err));
    }
out:
    for (int64_t i = 0; d.replay && i < d.slots; i++)
        tm_replay_drop(m->device, &d.replay[i]);
    b->cached = b->single = false;
    for (int64_t i = 0; d.slot && i < d.slots; i++)
        free(d.slot[i].ids);
    free(d.slot);
    free(d.item);
    free(d.of);
    free(d.replay);
    free(d.likeliest);
    free(d.raw);
    free(d.logits);
    return st;
}
