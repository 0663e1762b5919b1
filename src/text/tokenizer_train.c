/* Learning byte-level BPE: again and again the pair of neighbours that comes most often becomes a token, of equals
 * the pair with the smaller ids. As Hugging Face's trainer does it, with its ids: special tokens, the 256 bytes in
 * the order of their characters, then the merges; also where it is odd: a pair that comes into being in two steps
 * stands in the queue twice.
 *
 * Counts of pairs are kept up to date; the queue's are looked at when a pair comes to its head and, when they are
 * stale, it goes back with the new one. A pair knows the words it came into being in, so a step touches these only. */
#include "text/tokenizer_train.h"

#include <stdlib.h>
#include <string.h>

typedef struct places { /* words, each once, in rising order */
    int32_t *word;
    size_t count, capacity;
} places;

typedef struct pair_slot {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: empty */
    int64_t count;
    places fresh;  /* not yet in the queue */
} pair_slot;

typedef struct candidate {
    int64_t count;
    uint64_t pair;
    places where; /* owned */
} candidate;

typedef struct learning {
    const tm_word_counts *counts;
    int32_t *symbol; /* of all words */
    size_t *start;   /* [words + 1] in symbol */
    uint32_t *length; /* [words] symbols left */
    pair_slot *slot;
    size_t slots, used;
    candidate *queue;
    size_t queued, capacity;
    uint64_t *touched; /* pairs with fresh places */
    size_t touches, touch_capacity;
    tm_vocab vocab;    /* tokens, as byte-level characters */
    uint64_t *merge;   /* pairs, in order */
    size_t merges, merge_capacity;
} learning;

/* ---- pairs ---- */

static uint64_t pair_of(int32_t a, int32_t b) { return (uint64_t)(uint32_t)a << 32 | (uint32_t)b; }

static size_t slot_of(const learning *l, uint64_t pair)
{
    uint64_t h = pair * 0x9e3779b97f4a7c15u;
    size_t i = (size_t)(h ^ h >> 29) & (l->slots - 1);
    while (l->slot[i].pair != UINT64_MAX && l->slot[i].pair != pair)
        i = (i + 1) & (l->slots - 1);
    return i;
}

static tm_status slots_grow(learning *l, tm_error *err)
{
    pair_slot *old = l->slot, *fresh;
    size_t count = l->slots;
    TM_TRY(TM_NEW(&fresh, count ? 2 * count : 1 << 16, err));
    l->slot = fresh;
    l->slots = count ? 2 * count : 1 << 16;
    for (size_t i = 0; i < l->slots; i++)
        l->slot[i].pair = UINT64_MAX;
    for (size_t i = 0; i < count; i++)
        if (old[i].pair != UINT64_MAX)
            l->slot[slot_of(l, old[i].pair)] = old[i];
    free(old);
    return TM_OK;
}

/* Changes the count of a pair; word >= 0: it has come into being there. */
static tm_status count_pair(learning *l, uint64_t pair, int64_t change, int32_t word, tm_error *err)
{
    if (2 * (l->used + 1) > l->slots)
        TM_TRY(slots_grow(l, err));
    pair_slot *s = &l->slot[slot_of(l, pair)];
    if (s->pair == UINT64_MAX) {
        s->pair = pair;
        l->used++;
    }
    s->count += change;
    if (word < 0 || (s->fresh.count && s->fresh.word[s->fresh.count - 1] == word))
        return TM_OK;
    if (!s->fresh.count) {
        TM_TRY(TM_GROW(&l->touched, &l->touch_capacity, l->touches + 1, err));
        l->touched[l->touches++] = pair;
    }
    TM_TRY(TM_GROW(&s->fresh.word, &s->fresh.capacity, s->fresh.count + 1, err));
    s->fresh.word[s->fresh.count++] = word;
    return TM_OK;
}

/* ---- the queue ---- */

static bool goes_first(const candidate *a, const candidate *b)
{
    return a->count != b->count ? a->count > b->count : a->pair < b->pair;
}

static tm_status queue_push(learning *l, candidate c, tm_error *err)
{
    TM_TRY(TM_GROW(&l->queue, &l->capacity, l->queued + 1, err));
    size_t i = l->queued++;
    for (; i > 0 && goes_first(&c, &l->queue[(i - 1) / 2]); i = (i - 1) / 2)
        l->queue[i] = l->queue[(i - 1) / 2];
    l->queue[i] = c;
    return TM_OK;
}

static candidate queue_pop(learning *l)
{
    candidate top = l->queue[0], last = l->queue[--l->queued];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < l->queued; i = child) {
        if (child + 1 < l->queued && goes_first(&l->queue[child + 1], &l->queue[child]))
            child++;
        if (!goes_first(&l->queue[child], &last))
            break;
        l->queue[i] = l->queue[child];
    }
    l->queue[i] = last;
    return top;
}

/* Pairs that came into being go into the queue with their places. */
static tm_status queue_touched(learning *l, tm_error *err)
{
    for (size_t i = 0; i < l->touches; i++) {
        pair_slot *s = &l->slot[slot_of(l, l->touched[i])];
        candidate c = {s->count, s->pair, s->fresh};
        s->fresh = (places){0};
        if (c.count > 0 && queue_push(l, c, err) == TM_OK)
            continue;
        free(c.where.word);
        if (c.count > 0)
            return TM_NO_MEMORY;
    }
    l->touches = 0;
    return TM_OK;
}

/* ---- words ---- */

static tm_status words_begin(learning *l, const int32_t byte_id[256], tm_error *err)
{
    const tm_vocab *words = &l->counts->words;
    size_t total = 0;
    for (int32_t w = 0; w < words->ids; w++)
        total += words->length[w];
    TM_TRY(TM_NEW(&l->symbol, total, err));
    TM_TRY(TM_NEW(&l->start, (size_t)words->ids + 1, err));
    TM_TRY(TM_NEW(&l->length, words->ids, err));
    TM_TRY(slots_grow(l, err));
    total = 0;
    for (int32_t w = 0; w < words->ids; w++) {
        const uint8_t *text = (const uint8_t *)words->text.data + words->start[w];
        l->start[w] = total;
        l->length[w] = words->length[w];
        for (uint32_t i = 0; i < words->length[w]; i++) {
            l->symbol[total + i] = byte_id[text[i]];
            if (i > 0)
                TM_TRY(count_pair(l, pair_of(l->symbol[total + i - 1], l->symbol[total + i]), l->counts->count[w], w, err));
        }
        total += words->length[w];
    }
    return queue_touched(l, err);
}

/* Merges a pair in a word. Counts of its own occurrences are left alone: nothing asks for them any more. */
static tm_status merge_word(learning *l, int32_t w, int32_t a, int32_t b, int32_t whole, tm_error *err)
{
    int32_t *s = l->symbol + l->start[w];
    uint32_t n = l->length[w], to = 0;
    int64_t times = l->counts->count[w];
    for (uint32_t i = 0; i < n; i++) {
        if (s[i] != a || i + 1 >= n || s[i + 1] != b) {
            s[to++] = s[i];
            continue;
        }
        if (to > 0) {
            TM_TRY(count_pair(l, pair_of(s[to - 1], a), -times, -1, err));
            TM_TRY(count_pair(l, pair_of(s[to - 1], whole), times, w, err));
        }
        s[to++] = whole;
        i++;
        if (i + 1 < n) {
            TM_TRY(count_pair(l, pair_of(b, s[i + 1]), -times, -1, err));
            TM_TRY(count_pair(l, pair_of(whole, s[i + 1]), times, w, err));
        }
    }
    l->length[w] = to;
    return TM_OK;
}

/* ---- learning ---- */

static tm_status new_token(learning *l, const char *text, size_t size, int32_t *id, tm_error *err)
{
    *id = tm_vocab_find(&l->vocab, text, size);
    if (*id >= 0)
        return TM_OK;
    *id = l->vocab.ids;
    return tm_vocab_add(&l->vocab, text, size, *id, TM_TOKEN_MODEL, err);
}

static tm_status first_tokens(learning *l, const tm_names *special, int32_t byte_id[256], tm_error *err)
{
    for (int64_t i = 0; i < special->count; i++) {
        int32_t id;
        if (!*special->item[i] || tm_vocab_find(&l->vocab, special->item[i], strlen(special->item[i])) >= 0)
            return tm_fail(err, TM_USAGE, "the special token \"%.60s\" is empty or there twice", special->item[i]);
        TM_TRY(new_token(l, special->item[i], strlen(special->item[i]), &id, err));
    }
    for (uint32_t code = 0; code < 0x144; code++) {
        int byte = tm_char_byte(code);
        char text[4];
        if (byte >= 0)
            TM_TRY(new_token(l, text, (size_t)tm_utf8_put(code, text), &byte_id[byte], err));
    }
    return TM_OK;
}

static tm_status merge_pair(learning *l, const candidate *c, tm_buf *text, tm_error *err)
{
    int32_t a = (int32_t)(c->pair >> 32), b = (int32_t)(uint32_t)c->pair, whole;
    tm_buf_clear(text);
    tm_buf_add(text, l->vocab.text.data + l->vocab.start[a], l->vocab.length[a]);
    tm_buf_add(text, l->vocab.text.data + l->vocab.start[b], l->vocab.length[b]);
    TM_TRY(tm_buf_check(text, err));
    TM_TRY(new_token(l, text->data, text->size, &whole, err));
    TM_TRY(TM_GROW(&l->merge, &l->merge_capacity, l->merges + 1, err));
    l->merge[l->merges++] = c->pair;
    for (size_t i = 0; i < c->where.count; i++)
        TM_TRY(merge_word(l, c->where.word[i], a, b, whole, err));
    return queue_touched(l, err);
}

static tm_status learn(learning *l, const tm_tokenizer_recipe *recipe, tm_error *err)
{
    tm_buf text = {0};
    tm_status st = TM_OK;
    while (st == TM_OK && l->vocab.ids < recipe->vocab && l->queued) {
        candidate top = queue_pop(l);
        int64_t now = l->slot[slot_of(l, top.pair)].count;
        if (top.count != now) {
            top.count = now;
            st = queue_push(l, top, err);
            if (st != TM_OK)
                free(top.where.word);
            continue;
        }
        bool enough = now >= 1 && now >= recipe->least;
        if (enough)
            st = merge_pair(l, &top, &text, err);
        free(top.where.word);
        if (!enough)
            break;
    }
    tm_buf_deinit(&text);
    return st;
}

static void put_token(const tm_vocab *vocab, int32_t id, tm_buf *json)
{
    tm_json_put_bytes(json, vocab->text.data + vocab->start[id], vocab->length[id]);
}

static tm_status put_json(const learning *l, const tm_tokenizer_recipe *recipe, tm_buf *json, tm_error *err)
{
    tm_buf_text(json, "{\"version\": \"1.0\",\n\"truncation\": null,\n\"padding\": null,\n\"added_tokens\": [\n");
    for (int64_t i = 0; i < recipe->special.count; i++)
        tm_convert_added(json, i == 0, recipe->special.item[i], strlen(recipe->special.item[i]), i, true);
    tm_buf_text(json, "],\n");
    tm_convert_family(recipe->family, false, json);
    tm_buf_text(json, "\"post_processor\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": false, "
                      "\"use_regex\": true},\n"
                      "\"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, \"continuing_subword_prefix\": null, "
                      "\"end_of_word_suffix\": null, \"fuse_unk\": false, \"byte_fallback\": false, \"ignore_merges\": false,\n\"vocab\": {");
    for (int32_t id = 0; id < l->vocab.ids; id++) {
        tm_buf_text(json, id ? ",\n" : "\n");
        put_token(&l->vocab, id, json);
        tm_buf_printf(json, ": %d", id);
    }
    tm_buf_text(json, "},\n\"merges\": [");
    for (size_t i = 0; i < l->merges; i++) {
        tm_buf_text(json, i ? ",\n[" : "\n[");
        put_token(&l->vocab, (int32_t)(l->merge[i] >> 32), json);
        tm_buf_text(json, ", ");
        put_token(&l->vocab, (int32_t)(uint32_t)l->merge[i], json);
        tm_buf_char(json, ']');
    }
    tm_buf_text(json, "]}}\n");
    return tm_buf_check(json, err);
}

tm_status tm_tokenizer_learn(const tm_tokenizer_recipe *recipe, const tm_word_counts *counts, tm_buf *json, tm_error *err)
{
    learning l = {.counts = counts};
    int32_t byte_id[256];
    tm_status st;
    TM_GO(first_tokens(&l, &recipe->special, byte_id, err));
    if (l.vocab.ids > recipe->vocab)
        TM_GO(tm_fail(err, TM_USAGE, "a vocabulary of %lld cannot hold 256 bytes and %lld special tokens", (long long)recipe->vocab,
                      (long long)recipe->special.count));
    if (counts) {
        TM_GO(words_begin(&l, byte_id, err));
        TM_GO(learn(&l, recipe, err));
    }
    TM_GO(put_json(&l, recipe, json, err));
out:
    for (size_t i = 0; i < l.queued; i++)
        free(l.queue[i].where.word);
    for (size_t i = 0; i < l.slots; i++)
        free(l.slot[i].fresh.word);
    free(l.queue);
    free(l.slot);
    free(l.symbol);
    free(l.start);
    free(l.length);
    free(l.touched);
    free(l.merge);
    tm_vocab_deinit(&l.vocab);
    return st;
}
