/* Added tokens: tokens that stand outside the model and are recognised in text before it. Those with
 * normalized = false are looked for in the text as written, the others in the normalised text by
 * their own normalised form. The longest token at the leftmost place wins. */
#include "text/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

/* ---- the trie ---- */

static tm_status trie_put(tm_trie *trie, const char *text, size_t size, int32_t value, tm_error *err)
{
    int32_t at = -1;
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)text[i];
        int32_t next = i == 0 ? trie->root[byte] : trie->node[at].child;
        while (i > 0 && next >= 0 && trie->node[next].byte != byte)
            next = trie->node[next].sibling;
        if (next < 0) {
            TM_TRY(TM_GROW(&trie->node, &trie->capacity, trie->count + 1, err));
            next = (int32_t)trie->count++;
            trie->node[next] = (struct tm_trie_node){-1, i == 0 ? -1 : trie->node[at].child, -1, byte};
            *(i == 0 ? &trie->root[byte] : &trie->node[at].child) = next;
        }
        at = next;
    }
    if (at >= 0 && trie->node[at].value < 0)
        trie->node[at].value = value;
    return TM_OK;
}

/* The longest token that starts at text[at]; -1: none. */
static int32_t trie_longest(const tm_trie *trie, const char *text, size_t size, size_t at, size_t *end)
{
    int32_t found = -1, node = trie->root[(uint8_t)text[at]];
    while (node >= 0) {
        at++;
        if (trie->node[node].value >= 0) {
            found = trie->node[node].value;
            *end = at;
        }
        if (at == size)
            break;
        node = trie->node[node].child;
        while (node >= 0 && trie->node[node].byte != (uint8_t)text[at])
            node = trie->node[node].sibling;
    }
    return found;
}

/* ---- parsing ---- */

static tm_status parse_flags(tm_added_token *token, const json_t *json, const char *name, tm_error *err)
{
    TM_TRY(tm_json_get_bool(json, name, "single_word", false, &token->single_word, err));
    TM_TRY(tm_json_get_bool(json, name, "lstrip", false, &token->left, err));
    TM_TRY(tm_json_get_bool(json, name, "rstrip", false, &token->right, err));
    TM_TRY(tm_json_get_bool(json, name, "special", false, &token->special, err));
    return tm_json_get_bool(json, name, "normalized", !token->special, &token->normalized, err);
}

/* The id is the vocabulary's when the token is there, else the next free one: the peer's rule. A file
 * that says otherwise would give other ids there than here, so it is refused. */
static tm_status place_token(tm_vocab *vocab, const char *text, size_t size, int64_t id, int32_t next, const char *name,
                             tm_error *err)
{
    int32_t old = tm_vocab_find(vocab, text, size), expected = old >= 0 ? old : next;
    if (id < 0 || id >= TM_TOKEN_IDS)
        return tm_fail(err, TM_INPUT, "%s: \"id\" of \"%.60s\" is %lld, expected an integer from 0 to %d", name, text,
                       (long long)id, TM_TOKEN_IDS - 1);
    if (id != expected)
        return tm_fail(err, TM_INPUT, "%s: \"id\" of \"%.60s\" is %lld, expected %d (%s)", name, text, (long long)id, expected,
                       old >= 0 ? "its id in the vocabulary" : "the next free one");
    if (old < 0 && id < vocab->ids && vocab->flags[id])
        return tm_fail(err, TM_INPUT, "%s: \"id\" of \"%.60s\" is %lld, which \"%.60s\" has already", name, text, (long long)id,
                       vocab->text.data + vocab->start[id]);
    if (old < 0)
        TM_TRY(tm_vocab_add(vocab, text, size, (int32_t)id, 0, err));
    vocab->flags[id] |= TM_TOKEN_ADDED;
    return TM_OK;
}

static tm_added_token *added_with(const tm_added *added, int32_t id)
{
    for (size_t i = added->count; i > 0; i--)
        if (added->token[i - 1].id == id)
            return &added->token[i - 1];
    return NULL;
}

static tm_status parse_token(tm_added *added, const json_t *json, const char *name, tm_vocab *vocab, int32_t *next, tm_error *err)
{
    tm_added_token token = {0}, *old = NULL;
    int64_t id;
    const char *text;
    if (!json_is_object(json))
        return tm_fail(err, TM_INPUT, "%s is no object", name);
    TM_TRY(tm_json_get_string(json, name, "content", NULL, &text, err));
    TM_TRY(tm_json_get_int(json, name, "id", -1, &id, err));
    TM_TRY(parse_flags(&token, json, name, err));
    if (!text)
        return tm_fail(err, TM_INPUT, "%s: \"content\" is missing", name);
    if (!*text)
        return TM_OK; /* the peer passes over it */
    size_t size = json_string_length(json_object_get(json, "content"));
    TM_TRY(place_token(vocab, text, size, id, *next, name, err));
    *next += id == *next;
    token.id = (int32_t)id;
    if (token.special)
        vocab->flags[id] |= TM_TOKEN_SPECIAL;
    if (vocab->flags[id] & TM_TOKEN_ADDED)
        old = added_with(added, token.id);
    if (old) {
        *old = token;
        return TM_OK;
    }
    TM_TRY(TM_GROW(&added->token, &added->capacity, added->count + 1, err));
    added->token[added->count++] = token;
    return TM_OK;
}

static tm_status build_tries(tm_added *added, const tm_vocab *vocab, const tm_normalizer *n, tm_match_memory *memory, tm_error *err)
{
    tm_buf a = {0}, b = {0};
    tm_status st = TM_OK;
    for (size_t i = 0; st == TM_OK && i < added->count; i++) {
        const tm_added_token *token = &added->token[i];
        const char *text = vocab->text.data + vocab->start[token->id];
        size_t size = vocab->length[token->id];
        bool first = true;
        if (token->normalized)
            st = tm_normalizer_run(n, memory, &a, &b, &text, &size, &first, err);
        if (st == TM_OK)
            st = trie_put(token->normalized ? &added->normal : &added->written, text, size, (int32_t)i, err);
    }
    tm_buf_deinit(&a);
    tm_buf_deinit(&b);
    return st;
}

tm_status tm_added_parse(tm_added *added, const json_t *list, const char *name, tm_vocab *vocab, const tm_normalizer *n,
                         tm_match_memory *memory, tm_error *err)
{
    memset(added->written.root, 0xff, sizeof added->written.root);
    memset(added->normal.root, 0xff, sizeof added->normal.root);
    if (!list || json_is_null(list))
        return TM_OK;
    if (!json_is_array(list))
        return tm_fail(err, TM_INPUT, "%s: \"added_tokens\" is no list", name);
    int32_t next = vocab->model_size;
    for (size_t i = 0; i < json_array_size(list); i++) {
        char place[512];
        snprintf(place, sizeof place, "%.460s: added_tokens[%zu]", name, i);
        TM_TRY(parse_token(added, json_array_get(list, i), place, vocab, &next, err));
    }
    return build_tries(added, vocab, n, memory, err);
}

void tm_added_deinit(tm_added *added)
{
    free(added->token);
    free(added->written.node);
    free(added->normal.node);
    *added = (tm_added){0};
}

/* ---- splitting ---- */

static bool stands_alone(const char *text, size_t size, size_t start, size_t end)
{
    size_t len;
    return (start == 0 || !tm_unicode_is_word(tm_utf8_before(text, start, &len))) &&
           (end == size || !tm_unicode_is_word(tm_utf8_at(text + end, &len)));
}

tm_status tm_added_split(const tm_stretches *run, const char *text, size_t size, bool first, tm_error *err)
{
    const tm_trie *trie = run->trie;
    size_t done = 0, end = 0, len;
    for (size_t at = 0; trie->count && at < size;) {
        if (trie->root[(uint8_t)text[at]] < 0) {
            at++;
            continue;
        }
        int32_t index = trie_longest(trie, text, size, at, &end);
        if (index < 0) {
            at++;
            continue;
        }
        const tm_added_token *token = &run->added->token[index];
        size_t start = at, stop = end;
        at = end; /* matches do not overlap, those passed over included */
        if (token->single_word && !stands_alone(text, size, start, stop))
            continue;
        while (token->left && start > done && tm_unicode_is_space(tm_utf8_before(text, start, &len)))
            start -= len;
        while (token->right && stop < size && tm_unicode_is_space(tm_utf8_at(text + stop, &len)))
            stop += len;
        if (done < start)
            TM_TRY(run->take(run->context, text + done, start - done, first && done == 0, -1, err));
        if (start < done) /* a token before has taken its place as white space */
            start = token->left ? done : start;
        if (start < stop)
            TM_TRY(run->take(run->context, text, 0, false, token->id, err));
        done = stop;
    }
    if (done >= size)
        return TM_OK;
    return run->take(run->context, text + done, size - done, first && done == 0, -1, err);
}
