/* Unigram: of all ways to cut a piece into tokens the one with the greatest sum of scores (Viterbi), as
 * Hugging Face tokenizers finds it: in doubles, the first of equals, and a character that no token covers
 * alone may be unknown at a score of 10 below the least. Unknown characters next to each other are one.
 *
 * Places that no token spans (every candidate that started before them has ended) split the search
 * exactly: the best path goes through them. So the memory is that of the longest stretch without such a
 * place. Sums are carried on across them, since the peer's rounding does. */
#include "text/tokenizer_cache.h"

#include <stdlib.h>

#define UNKNOWN_PENALTY 10.0

typedef struct edge {
    uint64_t key; /* (node << 8 | byte) + 1; 0: empty */
    int32_t node;
} edge;

typedef struct unigram {
    double *score; /* [ids] */
    edge *edge;    /* [slots], open addressing; node 0 is the root */
    size_t slots, edges;
    int32_t *token; /* [nodes] id that ends at the node; -1: none */
    size_t nodes, capacity;
    int32_t first[256];   /* edges of the root */
    int32_t byte_id[256]; /* of <0xNN>; -1: none */
    double unknown_score;
    int32_t unk; /* -1: none */
    bool fallback;
} unigram;

typedef struct step { /* the best way to get to a place */
    double score;
    int32_t id;
    uint32_t bytes; /* of that token; 0: nothing gets there */
} step;

typedef struct scratch {
    tm_cache_entry *cache;
    step *step;
    size_t capacity;
    tm_ids path; /* ids of a stretch and, beside them, where each starts */
    size_t *start;
    size_t starts;
} scratch;

/* ---- the trie ---- */

static size_t slot_of(const unigram *m, uint64_t key)
{
    uint64_t h = key * 0x9e3779b97f4a7c15u;
    size_t i = (size_t)(h ^ h >> 29) & (m->slots - 1);
    while (m->edge[i].key && m->edge[i].key != key)
        i = (i + 1) & (m->slots - 1);
    return i;
}

static uint64_t edge_key(int32_t node, uint8_t byte) { return ((uint64_t)(uint32_t)node << 8 | byte) + 1; }

static inline int32_t follow(const unigram *m, int32_t node, uint8_t byte)
{
    if (node == 0)
        return m->first[byte];
    const edge *e = &m->edge[slot_of(m, edge_key(node, byte))];
    return e->key ? e->node : -1;
}

static tm_status edges_grow(unigram *m, tm_error *err)
{
    edge *old = m->edge, *fresh;
    size_t count = m->slots;
    TM_TRY(TM_NEW(&fresh, count ? 2 * count : 1024, err));
    m->edge = fresh;
    m->slots = count ? 2 * count : 1024;
    for (size_t i = 0; i < count; i++)
        if (old[i].key)
            m->edge[slot_of(m, old[i].key)] = old[i];
    free(old);
    return TM_OK;
}

static tm_status new_node(unigram *m, int32_t *node, tm_error *err)
{
    if (m->nodes >= INT32_MAX)
        return tm_fail(err, TM_INPUT, "the tokens take more than 2 GiB");
    TM_TRY(TM_GROW(&m->token, &m->capacity, m->nodes + 1, err));
    m->token[m->nodes] = -1;
    *node = (int32_t)m->nodes++;
    return TM_OK;
}

static tm_status trie_put(unigram *m, const char *text, size_t size, int32_t id, tm_error *err)
{
    int32_t node = 0;
    for (size_t i = 0; i < size; i++) {
        int32_t next = follow(m, node, (uint8_t)text[i]);
        if (next < 0) {
            TM_TRY(new_node(m, &next, err));
            if (node == 0)
                m->first[(uint8_t)text[i]] = next;
            else {
                if (2 * (m->edges + 1) > m->slots)
                    TM_TRY(edges_grow(m, err));
                uint64_t key = edge_key(node, (uint8_t)text[i]);
                m->edge[slot_of(m, key)] = (edge){key, next};
                m->edges++;
            }
        }
        node = next;
    }
    if (node)
        m->token[node] = id; /* of equal tokens the last counts, as with the peer */
    return TM_OK;
}

/* ---- parsing ---- */

/* A score as the peer reads it: its JSON reader divides the digits, as one integer rounded to a double, by
 * a power of ten, which is not always the double nearest to the number. Ties of long sums hang on it. The
 * text is the shortest that means the double, which is what writers of these files write. */
static tm_status peer_score(const json_t *number, tm_buf *text, double *out, tm_error *err)
{
    double value = json_number_value(number);
    uint64_t digits = 0;
    int after = 0, exponent = 0;
    bool point = false;
    *out = value;
    if (json_is_integer(number))
        return TM_OK;
    tm_buf_clear(text);
    tm_json_put_number(text, value);
    TM_TRY(tm_buf_check(text, err));
    for (const char *c = text->data; *c; c++) {
        if (*c == 'e' || *c == 'E') {
            exponent = atoi(c + 1);
            break;
        }
        point |= *c == '.';
        if (*c < '0' || *c > '9')
            continue;
        digits = 10 * digits + (uint64_t)(*c - '0');
        after += point;
    }
    exponent -= after;
    if (exponent > 22 || exponent < -300) /* far from any score */
        return TM_OK;
    char power_text[16];
    snprintf(power_text, sizeof power_text, "1e%d", abs(exponent));
    double power = strtod(power_text, NULL);
    double size = exponent < 0 ? (double)digits / power : (double)digits * power;
    *out = value < 0 ? -size : size;
    return TM_OK;
}

static void unigram_destroy(void *model)
{
    unigram *m = model;
    if (!m)
        return;
    free(m->score);
    free(m->edge);
    free(m->token);
    free(m);
}

static tm_status parse_vocab(unigram *m, tm_vocab *vocab, const json_t *list, const char *name, tm_error *err)
{
    size_t count = json_array_size(list);
    double least = 0;
    tm_buf number = {0};
    tm_status st = TM_OK;
    int32_t root;
    if (!count || count > TM_TOKEN_IDS)
        return tm_fail(err, TM_INPUT, "%s: \"vocab\" is missing, empty, no list or longer than %d", name, TM_TOKEN_IDS);
    TM_TRY(TM_NEW(&m->score, count, err));
    memset(m->first, 0xff, sizeof m->first);
    TM_TRY(edges_grow(m, err));
    TM_TRY(new_node(m, &root, err));
    for (size_t i = 0; st == TM_OK && i < count; i++) {
        const json_t *item = json_array_get(list, i), *text = json_array_get(item, 0), *score = json_array_get(item, 1);
        if (json_array_size(item) == 2 && json_is_string(text) && json_is_number(score))
            st = peer_score(score, &number, &m->score[i], err);
        else
            st = tm_fail(err, TM_INPUT, "%s: \"vocab\"[%zu] is not [text, score]", name, i);
        least = i && least < m->score[i] ? least : m->score[i];
        if (st == TM_OK)
            st = tm_vocab_add(vocab, json_string_value(text), json_string_length(text), (int32_t)i, TM_TOKEN_MODEL, err);
        if (st == TM_OK)
            st = trie_put(m, json_string_value(text), json_string_length(text), (int32_t)i, err);
    }
    tm_buf_deinit(&number);
    m->unknown_score = least - UNKNOWN_PENALTY;
    return st;
}

static tm_status unigram_parse(const json_t *json, const char *name, tm_vocab *vocab, void **model, tm_error *err)
{
    unigram *m;
    int64_t unk;
    tm_status st;
    TM_TRY(TM_NEW(&m, 1, err));
    TM_GO(parse_vocab(m, vocab, json_object_get(json, "vocab"), name, err));
    TM_GO(tm_json_get_bool(json, name, "byte_fallback", false, &m->fallback, err));
    TM_GO(tm_json_get_int(json, name, "unk_id", -1, &unk, err));
    if (unk < -1 || unk >= vocab->ids)
        TM_GO(tm_fail(err, TM_INPUT, "%s: \"unk_id\" is %lld, which is not in \"vocab\"", name, (long long)unk));
    m->unk = (int32_t)unk;
    for (int b = 0; b < 256; b++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", b);
        m->byte_id[b] = tm_vocab_find_model(vocab, text, 6);
    }
    *model = m;
    m = NULL;
out:
    unigram_destroy(m);
    return st;
}

static bool unigram_takes_bytes(const void *model)
{
    (void)model;
    return false;
}

/* ---- scratch ---- */

static void scratch_destroy(void *memory)
{
    scratch *s = memory;
    if (!s)
        return;
    free(s->cache);
    free(s->step);
    tm_ids_deinit(&s->path);
    free(s->start);
    free(s);
}

static tm_status scratch_create(const void *model, void **out, tm_error *err)
{
    (void)model;
    scratch *s;
    TM_TRY(TM_NEW(&s, 1, err));
    tm_status st = TM_NEW(&s->cache, TM_CACHE_SLOTS, err);
    if (st == TM_OK)
        *out = s;
    else
        free(s);
    return st;
}

/* ---- encoding ---- */

/* What is unknown waits in [start, end) for what follows it. */
typedef struct waiting {
    size_t start, end;
} waiting;

static tm_status push(tm_ids *ids, int32_t id, tm_error *err)
{
    TM_TRY(tm_ids_room(ids, 1, err));
    ids->id[ids->count++] = id;
    return TM_OK;
}

/* The unknown stretch as a token, if it happens to be one, its bytes' tokens or the unknown token. */
static tm_status release(const unigram *m, const tm_vocab *vocab, const char *piece, waiting *w, tm_ids *ids, tm_error *err)
{
    size_t start = w->start, size = w->end - w->start;
    *w = (waiting){0};
    if (!size)
        return TM_OK;
    int32_t id = tm_vocab_find_model(vocab, piece + start, size);
    bool bytes = m->fallback && id < 0;
    for (size_t i = 0; bytes && i < size; i++)
        bytes = m->byte_id[(uint8_t)piece[start + i]] >= 0;
    for (size_t i = 0; bytes && i < size; i++)
        TM_TRY(push(ids, m->byte_id[(uint8_t)piece[start + i]], err));
    return bytes ? TM_OK : push(ids, id >= 0 ? id : m->unk, err);
}

/* The ids of the best path from place 0 to place `size` of the stretch that starts at piece[from]. */
static tm_status give_path(const unigram *m, const tm_vocab *vocab, scratch *s, const char *piece, size_t from, size_t size,
                           waiting *w, tm_ids *ids, tm_error *err)
{
    s->path.count = 0;
    for (size_t at = size; at > 0; at -= s->step[at].bytes) {
        TM_TRY(push(&s->path, s->step[at].id, err));
        TM_TRY(TM_GROW(&s->start, &s->starts, s->path.count, err));
        s->start[s->path.count - 1] = at;
    }
    for (size_t i = s->path.count; i-- > 0;) {
        size_t end = from + s->start[i], start = i + 1 < s->path.count ? from + s->start[i + 1] : from;
        if (s->path.id[i] == m->unk) {
            w->start = w->end > w->start ? w->start : start;
            w->end = end;
            continue;
        }
        TM_TRY(release(m, vocab, piece, w, ids, err));
        TM_TRY(push(ids, s->path.id[i], err));
    }
    return TM_OK;
}

/* Room for the places up to `reach`, none of them got to yet. */
static tm_status reach_to(scratch *s, size_t *reach, size_t to, tm_error *err)
{
    if (to <= *reach)
        return TM_OK;
    TM_TRY(TM_GROW(&s->step, &s->capacity, to + 1, err));
    memset(s->step + *reach + 1, 0, (to - *reach) * sizeof *s->step);
    *reach = to;
    return TM_OK;
}

static void offer(step *to, double score, int32_t id, size_t bytes)
{
    if (!to->bytes || score > to->score)
        *to = (step){score, id, (uint32_t)bytes};
}

static tm_status encode_piece(const unigram *m, const tm_vocab *vocab, scratch *s, const char *piece, size_t size, tm_ids *ids,
                              tm_error *err)
{
    waiting w = {0};
    size_t from = 0, reach = 0, length;
    if (size >= UINT32_MAX)
        return tm_fail(err, TM_INPUT, "a piece of text of %zu bytes that nothing splits, expected less than 4 GiB", size);
    TM_TRY(TM_GROW(&s->step, &s->capacity, 1, err));
    s->step[0] = (step){0};
    for (size_t at = 0; at < size; at += length) {
        if (at > from && reach == at - from) { /* nothing spans this place */
            double sum = s->step[reach].score;
            TM_TRY(give_path(m, vocab, s, piece, from, reach, &w, ids, err));
            from = at;
            reach = 0;
            s->step[0] = (step){.score = sum};
        }
        double sum = s->step[at - from].score;
        bool alone = false;
        int32_t node = 0;
        tm_utf8_at(piece + at, &length);
        for (size_t i = at; i < size && (node = follow(m, node, (uint8_t)piece[i])) >= 0; i++) {
            int32_t id = m->token[node];
            if (id < 0)
                continue;
            size_t bytes = i + 1 - at;
            TM_TRY(reach_to(s, &reach, at - from + bytes, err));
            offer(&s->step[at - from + bytes], m->score[id] + sum, id, bytes);
            alone |= bytes == length;
        }
        if (alone)
            continue;
        if (m->unk < 0)
            return tm_fail(err, TM_INPUT, "the text has a character the tokenizer does not know, and it has no \"unk_id\"");
        TM_TRY(reach_to(s, &reach, at - from + length, err));
        offer(&s->step[at - from + length], m->unknown_score + sum, m->unk, length);
    }
    TM_TRY(give_path(m, vocab, s, piece, from, size - from, &w, ids, err));
    return release(m, vocab, piece, &w, ids, err);
}

static tm_status unigram_encode(const void *model, const tm_vocab *vocab, void *memory, const char *piece, size_t size,
                                tm_ids *ids, tm_error *err)
{
    scratch *s = memory;
    tm_cache_entry *place;
    uint64_t hash = 0;
    bool found;
    size_t before = ids->count;
    TM_TRY(tm_cache_get(s->cache, piece, size, ids, &place, &hash, &found, err));
    if (found)
        return TM_OK;
    TM_TRY(encode_piece(model, vocab, s, piece, size, ids, err));
    tm_cache_put(place, hash, piece, size, ids->id + before, ids->count - before);
    return TM_OK;
}

const tm_model_kind tm_model_unigram = {"Unigram", unigram_parse, unigram_takes_bytes, NULL,
                                         scratch_create, scratch_destroy, unigram_encode, unigram_destroy};
