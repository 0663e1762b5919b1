/* Byte pair encoding. A piece starts as one symbol a character (a byte, in byte-level tokenizers) and
 * the adjacent pair with the best rank is merged, leftmost first, until no pair has one.
 *
 * Three things make it fast without changing a result:
 *  - pieces of up to TM_CACHE_KEY bytes are looked up in a cache of pieces seen before;
 *  - short pieces are merged by scanning, long ones with a heap over a linked list (n log n, so a
 *    megabyte of one letter is no attack);
 *  - where no pre-tokeniser cuts the text, it is cut here between characters x and y that no merge
 *    joins: a merge (a, b) can only cross the border if a ends in x and b begins with y, and all
 *    such (x, y) are known from the list of merges. */
#include "text/tokenizer_cache.h"

#include <stdlib.h>
#include <string.h>

enum { SCAN_SYMBOLS = 48 };
#define NO_RANK UINT32_MAX

typedef struct merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: empty */
    uint32_t rank;
    int32_t id;
} merge;

typedef struct bpe {
    merge *merges; /* [merge_slots], open addressing */
    size_t merge_slots;
    int32_t *page[(TM_UNICODE_MAX + 1) >> 8]; /* [256] id of each one-character token, -1: none; NULL: all none */
    int32_t byte_id[256];  /* id of <0xNN>, -1: none */
    bool fallback;         /* byte_fallback */
    bool all_bytes;        /* with it, and all 256 are there: nothing becomes unknown */
    int32_t unk;           /* -1: unknown characters vanish, */
    bool unk_missing;      /* or are an error */
    bool fuse_unk, ignore_merges;
    tm_buf prefix, suffix; /* continuing_subword_prefix, end_of_word_suffix */
    bool bytes;            /* pieces are raw bytes */
    int32_t byte_symbol[256]; /* bytes: id of the byte's character, -1: none */
    tm_vocab words;        /* bytes and ignore_merges: the tokens as raw bytes */
    bool cut;              /* borders that no merge crosses may be cut */
    uint64_t *joined;      /* [joined_slots] x << 32 | y of merges that join them; UINT64_MAX: empty */
    size_t joined_slots, joined_count;
    uint64_t ascii[128][2]; /* the same for ASCII: bit y of row x */
} bpe;

typedef struct symbol {
    int32_t id, prev, next; /* -1: none; id -1: merged away */
    uint32_t rank;          /* of the pair that starts here */
} symbol;

typedef struct scratch {
    tm_cache_entry *cache; /* [TM_CACHE_SLOTS] */
    symbol *symbol;
    size_t count, capacity;
    uint64_t *heap; /* rank << 32 | place */
    size_t heap_count, heap_capacity;
    tm_buf word;
} scratch;

/* ---- tables ---- */

static uint64_t pair_of(int32_t a, int32_t b) { return (uint64_t)(uint32_t)a << 32 | (uint32_t)b; }

static inline size_t slot_hash(uint64_t key)
{
    key *= 0x9e3779b97f4a7c15u;
    return (size_t)(key ^ key >> 29);
}

static inline const merge *find_merge(const bpe *m, int32_t a, int32_t b)
{
    uint64_t pair = pair_of(a, b);
    size_t i = slot_hash(pair) & (m->merge_slots - 1);
    while (m->merges[i].pair != pair) {
        if (m->merges[i].pair == UINT64_MAX)
            return NULL;
        i = (i + 1) & (m->merge_slots - 1);
    }
    return &m->merges[i];
}

static inline bool is_joined(const bpe *m, uint32_t x, uint32_t y)
{
    if ((x | y) < 128)
        return m->ascii[x][y >> 6] >> (y & 63) & 1;
    uint64_t key = (uint64_t)x << 32 | y;
    for (size_t i = slot_hash(key) & (m->joined_slots - 1); m->joined[i] != UINT64_MAX; i = (i + 1) & (m->joined_slots - 1))
        if (m->joined[i] == key)
            return true;
    return false;
}

static tm_status joined_grow(bpe *m, tm_error *err)
{
    size_t slots = m->joined_slots ? m->joined_slots * 2 : 1024;
    uint64_t *fresh, *old = m->joined;
    TM_TRY(TM_NEW(&fresh, slots, err));
    memset(fresh, 0xff, slots * sizeof *fresh);
    for (size_t i = 0; i < m->joined_slots; i++) {
        if (old[i] == UINT64_MAX)
            continue;
        size_t j = slot_hash(old[i]) & (slots - 1);
        while (fresh[j] != UINT64_MAX)
            j = (j + 1) & (slots - 1);
        fresh[j] = old[i];
    }
    free(old);
    m->joined = fresh;
    m->joined_slots = slots;
    return TM_OK;
}

static tm_status join(bpe *m, uint32_t x, uint32_t y, tm_error *err)
{
    if (4 * (m->joined_count + 1) > m->joined_slots)
        TM_TRY(joined_grow(m, err));
    if ((x | y) < 128)
        m->ascii[x][y >> 6] |= 1ull << (y & 63);
    else if (!is_joined(m, x, y)) {
        size_t i = slot_hash((uint64_t)x << 32 | y) & (m->joined_slots - 1);
        while (m->joined[i] != UINT64_MAX)
            i = (i + 1) & (m->joined_slots - 1);
        m->joined[i] = (uint64_t)x << 32 | y;
        m->joined_count++;
    }
    return TM_OK;
}

/* ---- parsing ---- */

static tm_status parse_vocab(tm_vocab *vocab, const json_t *json, const char *name, tm_error *err)
{
    const char *token;
    json_t *value;
    size_t size;
    if (!json_is_object(json) || !json_object_size(json))
        return tm_fail(err, TM_INPUT, "%s: \"vocab\" is missing, empty or no object", name);
    json_object_keylen_foreach((json_t *)json, token, size, value)
    {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= TM_TOKEN_IDS)
            return tm_fail(err, TM_INPUT, "%s: \"vocab\" gives \"%.60s\" the id %lld, expected an integer from 0 to %d", name,
                           token, (long long)id, TM_TOKEN_IDS - 1);
        if (id < vocab->ids && vocab->flags[id])
            return tm_fail(err, TM_INPUT, "%s: \"vocab\" gives the id %lld to both \"%.60s\" and \"%.60s\"", name, (long long)id,
                           vocab->text.data + vocab->start[id], token);
        TM_TRY(tm_vocab_add(vocab, token, size, (int32_t)id, TM_TOKEN_MODEL, err));
    }
    return TM_OK;
}

/* The two tokens of a merge, "a b" or ["a", "b"]. */
static bool merge_parts(const json_t *item, const char *part[2], size_t size[2])
{
    if (json_is_string(item)) {
        const char *text = json_string_value(item), *space = strchr(text, ' ');
        if (!space || strchr(space + 1, ' '))
            return false;
        part[0] = text;
        size[0] = (size_t)(space - text);
        part[1] = space + 1;
        size[1] = json_string_length(item) - size[0] - 1;
        return true;
    }
    for (size_t i = 0; i < 2; i++) {
        const json_t *token = json_array_get(item, i);
        if (!json_is_string(token))
            return false;
        part[i] = json_string_value(token);
        size[i] = json_string_length(token);
    }
    return json_array_size(item) == 2;
}

static void put_merge(bpe *m, int32_t a, int32_t b, uint32_t rank, int32_t id)
{
    uint64_t pair = pair_of(a, b);
    size_t i = slot_hash(pair) & (m->merge_slots - 1);
    while (m->merges[i].pair != UINT64_MAX && m->merges[i].pair != pair)
        i = (i + 1) & (m->merge_slots - 1);
    m->merges[i] = (merge){pair, rank, id}; /* of two equal merges the later one counts, as with the peer */
}

static tm_status parse_merge(bpe *m, const tm_vocab *vocab, const json_t *item, size_t rank, tm_buf *text, const char *name,
                             tm_error *err)
{
    const char *part[2];
    size_t size[2], cut = m->prefix.size;
    int32_t id[2];
    if (!merge_parts(item, part, size))
        return tm_fail(err, TM_INPUT, "%s: \"merges\"[%zu] is not two tokens, \"a b\" or [\"a\", \"b\"]", name, rank);
    for (int i = 0; i < 2; i++) {
        id[i] = tm_vocab_find_model(vocab, part[i], size[i]);
        if (id[i] < 0)
            return tm_fail(err, TM_INPUT, "%s: \"merges\"[%zu] names \"%.60s\", which is not in \"vocab\"", name, rank, part[i]);
    }
    if (!size[0] || size[1] <= cut)
        return tm_fail(err, TM_INPUT, "%s: \"merges\"[%zu] has a part without text", name, rank);
    tm_buf_clear(text);
    tm_buf_add(text, part[0], size[0]);
    tm_buf_add(text, part[1] + cut, size[1] - cut);
    TM_TRY(tm_buf_check(text, err));
    int32_t whole = tm_vocab_find_model(vocab, text->data, text->size);
    if (whole < 0)
        return tm_fail(err, TM_INPUT, "%s: \"merges\"[%zu] makes \"%.60s\", which is not in \"vocab\"", name, rank, text->data);
    put_merge(m, id[0], id[1], (uint32_t)rank, whole);
    return TM_OK;
}

static tm_status parse_merges(bpe *m, const tm_vocab *vocab, const json_t *json, const char *name, tm_error *err)
{
    size_t count = json_array_size(json), skipped = 0;
    if (!json_is_array(json))
        return tm_fail(err, TM_INPUT, "%s: \"merges\" is missing or no list", name);
    m->merge_slots = 16;
    while (m->merge_slots < 2 * count)
        m->merge_slots *= 2;
    TM_TRY(TM_NEW(&m->merges, m->merge_slots, err));
    for (size_t i = 0; i < m->merge_slots; i++)
        m->merges[i].pair = UINT64_MAX;
    tm_buf text = {0};
    tm_status st = TM_OK;
    for (size_t i = 0; st == TM_OK && i < count; i++) {
        const json_t *item = json_array_get(json, i);
        if (json_is_string(item) && !strncmp(json_string_value(item), "#version", 8))
            skipped++; /* a line of merges.txt that some converters keep */
        else
            st = parse_merge(m, vocab, item, i - skipped, &text, name, err);
    }
    tm_buf_deinit(&text);
    return st;
}

static tm_status parse_affix(tm_buf *out, const json_t *json, const char *key, const char *name, tm_error *err)
{
    const char *text;
    TM_TRY(tm_json_get_string(json, name, key, "", &text, err));
    tm_buf_text(out, text);
    return tm_buf_check(out, err);
}

static tm_status parse_settings(bpe *m, const tm_vocab *vocab, const json_t *json, const char *name, tm_error *err)
{
    double dropout;
    const char *unk;
    TM_TRY(tm_json_get_number(json, name, "dropout", 0, &dropout, err));
    if (dropout != 0)
        return tm_fail(err, TM_UNSUPPORTED, "%s: \"dropout\" is %g, which makes ids random; expected null or 0", name, dropout);
    TM_TRY(tm_json_get_bool(json, name, "fuse_unk", false, &m->fuse_unk, err));
    TM_TRY(tm_json_get_bool(json, name, "byte_fallback", false, &m->fallback, err));
    TM_TRY(tm_json_get_bool(json, name, "ignore_merges", false, &m->ignore_merges, err));
    TM_TRY(tm_json_get_string(json, name, "unk_token", NULL, &unk, err));
    TM_TRY(parse_affix(&m->prefix, json, "continuing_subword_prefix", name, err));
    TM_TRY(parse_affix(&m->suffix, json, "end_of_word_suffix", name, err));
    m->unk = unk ? tm_vocab_find_model(vocab, unk, strlen(unk)) : -1;
    m->unk_missing = unk && m->unk < 0; /* byte-level files may name one that never comes up */
    m->all_bytes = m->fallback;
    for (int b = 0; b < 256; b++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", b);
        m->byte_id[b] = tm_vocab_find_model(vocab, text, 6);
        m->all_bytes &= m->byte_id[b] >= 0;
    }
    return TM_OK;
}

static tm_status index_characters(bpe *m, const tm_vocab *vocab, tm_error *err)
{
    for (int32_t id = 0; id < vocab->ids; id++) {
        const char *text = vocab->flags[id] & TM_TOKEN_MODEL ? vocab->text.data + vocab->start[id] : NULL;
        size_t len;
        if (!text || !vocab->length[id])
            continue;
        uint32_t code = tm_utf8_at(text, &len);
        if (len != vocab->length[id])
            continue;
        int32_t **page = &m->page[code >> 8];
        if (!*page) {
            TM_TRY(TM_NEW(page, 256, err));
            memset(*page, 0xff, 256 * sizeof **page);
        }
        (*page)[code & 255] = id;
    }
    return TM_OK;
}

static bool is_byte_token(const bpe *m, const tm_vocab *vocab, int32_t id)
{
    if (!m->fallback || vocab->length[id] != 6)
        return false;
    for (int b = 0; b < 256; b++)
        if (m->byte_id[b] == id)
            return true;
    return false;
}

/* Which neighbours merges join. Cutting needs symbols that are characters, so it is off with affixes
 * and where merges name the unknown token or a byte token. */
static tm_status index_borders(bpe *m, const tm_vocab *vocab, tm_error *err)
{
    TM_TRY(joined_grow(m, err));
    m->cut = !m->prefix.size && !m->suffix.size;
    for (size_t i = 0; m->cut && i < m->merge_slots; i++) {
        if (m->merges[i].pair == UINT64_MAX)
            continue;
        int32_t a = (int32_t)(m->merges[i].pair >> 32), b = (int32_t)(uint32_t)m->merges[i].pair;
        size_t len;
        m->cut = a != m->unk && b != m->unk && !is_byte_token(m, vocab, a) && !is_byte_token(m, vocab, b);
        TM_TRY(join(m, tm_utf8_before(vocab->text.data + vocab->start[a], vocab->length[a], &len),
                    tm_utf8_at(vocab->text.data + vocab->start[b], &len), err));
    }
    return TM_OK;
}

static void bpe_destroy(void *model)
{
    bpe *m = model;
    if (!m)
        return;
    for (size_t i = 0; i < sizeof m->page / sizeof m->page[0]; i++)
        free(m->page[i]);
    tm_buf_deinit(&m->prefix);
    tm_buf_deinit(&m->suffix);
    tm_vocab_deinit(&m->words);
    free(m->merges);
    free(m->joined);
    free(m);
}

static tm_status bpe_parse(const json_t *json, const char *name, tm_vocab *vocab, void **model, tm_error *err)
{
    bpe *m;
    tm_status st;
    TM_TRY(TM_NEW(&m, 1, err));
    TM_GO(parse_vocab(vocab, json_object_get(json, "vocab"), name, err));
    TM_GO(parse_settings(m, vocab, json, name, err));
    TM_GO(parse_merges(m, vocab, json_object_get(json, "merges"), name, err));
    TM_GO(index_characters(m, vocab, err));
    TM_GO(index_borders(m, vocab, err));
    *model = m;
    m = NULL;
out:
    bpe_destroy(m);
    return st;
}

/* With ignore_merges a whole piece is looked up first: as bytes, when pieces are bytes. */
static tm_status index_words(bpe *m, const tm_vocab *vocab, tm_error *err)
{
    tm_buf word = {0};
    tm_status st = TM_OK;
    for (int32_t id = 0; st == TM_OK && id < vocab->ids; id++) {
        const char *text = vocab->flags[id] & TM_TOKEN_MODEL ? vocab->text.data + vocab->start[id] : NULL;
        int byte = -1;
        tm_buf_clear(&word);
        for (size_t i = 0, len; text && i < vocab->length[id]; i += len) {
            byte = tm_char_byte(tm_utf8_at(text + i, &len));
            if (byte < 0)
                break;
            tm_buf_char(&word, (char)byte);
        }
        if (byte < 0)
            continue; /* not of the byte alphabet: no piece can be it */
        st = tm_buf_check(&word, err);
        if (st == TM_OK)
            st = tm_vocab_add(&m->words, word.data, word.size, id, TM_TOKEN_MODEL, err);
    }
    tm_buf_deinit(&word);
    return st;
}

static int32_t char_symbol(const bpe *m, uint32_t code)
{
    const int32_t *page = m->page[code >> 8];
    return page ? page[code & 255] : -1;
}

static bool bpe_takes_bytes(const void *model)
{
    const bpe *m = model;
    return !m->prefix.size && !m->suffix.size;
}

static tm_status bpe_take_bytes(void *model, const tm_vocab *vocab, tm_error *err)
{
    bpe *m = model;
    m->bytes = true;
    m->cut = false;
    for (int b = 0; b < 256; b++)
        m->byte_symbol[b] = char_symbol(m, tm_byte_char((uint8_t)b));
    return m->ignore_merges ? index_words(m, vocab, err) : TM_OK;
}

/* ---- scratch ---- */

static void scratch_destroy(void *memory)
{
    scratch *s = memory;
    if (!s)
        return;
    free(s->cache);
    free(s->symbol);
    free(s->heap);
    tm_buf_deinit(&s->word);
    free(s);
}

static tm_status scratch_create(const void *model, void **out, tm_error *err)
{
    (void)model;
    scratch *s;
    TM_TRY(TM_NEW(&s, 1, err));
    tm_status st = TM_NEW(&s->cache, TM_CACHE_SLOTS, err);
    if (st != TM_OK) {
        free(s);
        return st;
    }
    *out = s;
    return TM_OK;
}

/* ---- first symbols ---- */

static tm_status add_symbol(scratch *s, int32_t id, tm_error *err)
{
    TM_TRY(TM_GROW(&s->symbol, &s->capacity, s->count + 1, err));
    s->symbol[s->count++].id = id;
    return TM_OK;
}

/* A character without a token: its bytes' tokens, if there are all, else the unknown token. *waiting
 * counts an unknown token that is held back until a known character follows (so runs can fuse); byte
 * tokens do not release it, which is how the peer orders them. */
static tm_status add_unknown(const bpe *m, scratch *s, const char *text, size_t size, bool *waiting, tm_error *err)
{
    bool bytes = m->fallback;
    for (size_t i = 0; bytes && i < size; i++)
        bytes = m->byte_id[(uint8_t)text[i]] >= 0;
    if (bytes) {
        for (size_t i = 0; i < size; i++)
            TM_TRY(add_symbol(s, m->byte_id[(uint8_t)text[i]], err));
        return TM_OK;
    }
    if (m->unk_missing)
        return tm_fail(err, TM_INPUT, "the text has a character the tokenizer does not know, and its \"unk_token\" is not "
                       "in \"vocab\"");
    if (m->unk < 0)
        return TM_OK;
    if (*waiting && !m->fuse_unk)
        TM_TRY(add_symbol(s, m->unk, err));
    *waiting = true;
    return TM_OK;
}

static tm_status release(const bpe *m, scratch *s, bool *waiting, tm_error *err)
{
    if (!*waiting)
        return TM_OK;
    *waiting = false;
    return add_symbol(s, m->unk, err);
}

static tm_status first_of_bytes(const bpe *m, scratch *s, const char *piece, size_t size, tm_error *err)
{
    bool waiting = false;
    TM_TRY(TM_GROW(&s->symbol, &s->capacity, size, err));
    for (size_t i = 0; i < size; i++) {
        int32_t id = m->byte_symbol[(uint8_t)piece[i]];
        char text[4];
        if (id < 0) {
            int len = tm_utf8_put(tm_byte_char((uint8_t)piece[i]), text);
            TM_TRY(add_unknown(m, s, text, (size_t)len, &waiting, err));
            continue;
        }
        TM_TRY(release(m, s, &waiting, err));
        TM_TRY(add_symbol(s, id, err));
    }
    return release(m, s, &waiting, err);
}

static tm_status first_of_chars(const bpe *m, const tm_vocab *vocab, scratch *s, const char *piece, size_t size, tm_error *err)
{
    bool waiting = false;
    for (size_t i = 0, len; i < size; i += len) {
        uint32_t code = tm_utf8_at(piece + i, &len);
        const char *text = piece + i;
        size_t text_size = len;
        int32_t id;
        if ((i > 0 && m->prefix.size) || (i + len == size && m->suffix.size)) {
            tm_buf_clear(&s->word);
            if (i > 0)
                tm_buf_add(&s->word, tm_buf_str(&m->prefix), m->prefix.size);
            tm_buf_add(&s->word, text, len);
            if (i + len == size)
                tm_buf_add(&s->word, tm_buf_str(&m->suffix), m->suffix.size);
            TM_TRY(tm_buf_check(&s->word, err));
            text = s->word.data;
            text_size = s->word.size;
            id = tm_vocab_find_model(vocab, text, text_size);
        } else
            id = char_symbol(m, code);
        if (id < 0) {
            TM_TRY(add_unknown(m, s, text, text_size, &waiting, err));
            continue;
        }
        TM_TRY(release(m, s, &waiting, err));
        TM_TRY(add_symbol(s, id, err));
    }
    return release(m, s, &waiting, err);
}

/* ---- merging ---- */

static uint32_t rank_of(const bpe *m, int32_t a, int32_t b)
{
    const merge *found = find_merge(m, a, b);
    return found ? found->rank : NO_RANK;
}

static void merge_short(const bpe *m, scratch *s)
{
    symbol *sym = s->symbol;
    size_t n = s->count;
    for (size_t i = 0; i + 1 < n; i++)
        sym[i].rank = rank_of(m, sym[i].id, sym[i + 1].id);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            best = sym[i].rank < sym[best].rank ? i : best;
        if (sym[best].rank == NO_RANK)
            break;
        sym[best].id = find_merge(m, sym[best].id, sym[best + 1].id)->id;
        n--;
        memmove(sym + best + 1, sym + best + 2, (n - best - 1) * sizeof *sym);
        if (best + 1 < n)
            sym[best].rank = rank_of(m, sym[best].id, sym[best + 1].id);
        if (best > 0)
            sym[best - 1].rank = rank_of(m, sym[best - 1].id, sym[best].id);
    }
    s->count = n;
}

static tm_status heap_push(scratch *s, uint32_t rank, size_t place, tm_error *err)
{
    if (rank == NO_RANK)
        return TM_OK;
    TM_TRY(TM_GROW(&s->heap, &s->heap_capacity, s->heap_count + 1, err));
    uint64_t key = (uint64_t)rank << 32 | place;
    size_t i = s->heap_count++;
    for (; i > 0 && s->heap[(i - 1) / 2] > key; i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = key;
    return TM_OK;
}

static uint64_t heap_pop(scratch *s)
{
    uint64_t top = s->heap[0], key = s->heap[--s->heap_count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < s->heap_count; i = child) {
        if (child + 1 < s->heap_count && s->heap[child + 1] < s->heap[child])
            child++;
        if (s->heap[child] >= key)
            break;
        s->heap[i] = s->heap[child];
    }
    s->heap[i] = key;
    return top;
}

/* A heap entry counts as long as its place still starts a pair of that rank. */
static tm_status merge_long(const bpe *m, scratch *s, tm_error *err)
{
    symbol *sym = s->symbol;
    size_t n = s->count;
    s->heap_count = 0;
    for (size_t i = 0; i < n; i++) {
        sym[i].prev = (int32_t)i - 1;
        sym[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
        sym[i].rank = i + 1 < n ? rank_of(m, sym[i].id, sym[i + 1].id) : NO_RANK;
        TM_TRY(heap_push(s, sym[i].rank, i, err));
    }
    while (s->heap_count) {
        uint64_t top = heap_pop(s);
        symbol *left = &sym[(uint32_t)top];
        if (left->id < 0 || left->rank != top >> 32)
            continue;
        symbol *right = &sym[left->next];
        left->id = find_merge(m, left->id, right->id)->id;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0)
            sym[left->next].prev = (int32_t)(left - sym);
        left->rank = left->next >= 0 ? rank_of(m, left->id, sym[left->next].id) : NO_RANK;
        TM_TRY(heap_push(s, left->rank, (size_t)(left - sym), err));
        if (left->prev >= 0) {
            symbol *before = &sym[left->prev];
            before->rank = rank_of(m, before->id, left->id);
            TM_TRY(heap_push(s, before->rank, (size_t)left->prev, err));
        }
    }
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (sym[i].id >= 0)
            sym[kept++].id = sym[i].id;
    s->count = kept;
    return TM_OK;
}

/* ---- encoding ---- */

static tm_status encode_word(const bpe *m, const tm_vocab *vocab, scratch *s, const char *piece, size_t size, tm_error *err)
{
    s->count = 0;
    if (size > INT32_MAX)
        return tm_fail(err, TM_INPUT, "a piece of text of %zu bytes that nothing splits, expected at most %d", size, INT32_MAX);
    if (m->ignore_merges) {
        int32_t id = tm_vocab_find_model(m->bytes ? &m->words : vocab, piece, size);
        if (id >= 0)
            return add_symbol(s, id, err);
    }
    TM_TRY(m->bytes ? first_of_bytes(m, s, piece, size, err) : first_of_chars(m, vocab, s, piece, size, err));
    if (s->count > SCAN_SYMBOLS)
        return merge_long(m, s, err);
    merge_short(m, s);
    return TM_OK;
}

static tm_status encode_cached(const bpe *m, const tm_vocab *vocab, scratch *s, const char *piece, size_t size, tm_ids *ids,
                               tm_error *err)
{
    tm_cache_entry *place;
    uint64_t hash = 0;
    bool found;
    TM_TRY(tm_cache_get(s->cache, piece, size, ids, &place, &hash, &found, err));
    if (found)
        return TM_OK;
    TM_TRY(encode_word(m, vocab, s, piece, size, err));
    TM_TRY(tm_ids_room(ids, s->count + 1, err)); /* so that ids->id is there even for no ids */
    for (size_t i = 0; i < s->count; i++)
        ids->id[ids->count + i] = s->symbol[i].id;
    tm_cache_put(place, hash, piece, size, ids->id + ids->count, s->count);
    ids->count += s->count;
    return TM_OK;
}

static tm_status bpe_encode(const void *model, const tm_vocab *vocab, void *memory, const char *piece, size_t size, tm_ids *ids,
                            tm_error *err)
{
    const bpe *m = model;
    scratch *s = memory;
    if (!m->cut || m->ignore_merges)
        return encode_cached(m, vocab, s, piece, size, ids, err);
    size_t start = 0, len;
    uint32_t x = 0;
    bool x_known = false; /* so no unknown token waits for its neighbours; and x does not vanish */
    for (size_t i = 0; i < size; i += len) {
        uint32_t y = tm_utf8_at(piece + i, &len);
        bool y_known = m->all_bytes || char_symbol(m, y) >= 0;
        if (x_known && y_known && !is_joined(m, x, y)) {
            TM_TRY(encode_cached(m, vocab, s, piece + start, i - start, ids, err));
            start = i;
        }
        x = y;
        x_known = y_known;
    }
    return encode_cached(m, vocab, s, piece + start, size - start, ids, err);
}

const tm_model_kind tm_model_bpe = {"BPE", bpe_parse, bpe_takes_bytes, bpe_take_bytes,
                                     scratch_create, scratch_destroy, bpe_encode, bpe_destroy};
