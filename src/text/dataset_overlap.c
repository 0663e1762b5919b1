/* What evaluation sets share with training data. The text of an example (what its ids decode to, without special
 * tokens) is taken as words: letters and digits, in lower case. An example of an evaluation set is in the training
 * data when all its words are those of a training example, or when OVERLAP_WORDS words in a row are found in one
 * (the measure of GPT-3's report, appendix C, and of lm-evaluation-harness). Two kinds of runs say nothing: words
 * that all examples of the set begin with (a system prompt), and runs that are in more than COMMON training
 * examples and in more than one of the set. Without a tokenizer ids stand for words.
 *
 * Only counts and least indices are kept while threads look, so the result does not depend on them. */
#include "text/dataset.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { OVERLAP_WORDS = 13, COMMON = 10, TASK_EXAMPLES = 256 };
enum { MAX_RUNS = 4 << 20 }; /* of evaluation sets: 160 MiB */
#define MAX_TOKENS ((int64_t)64 << 20) /* of the training data that are looked at */

typedef struct words { /* of an example; one a thread */
    tm_buf text;
    uint64_t *hash;
    size_t count, capacity;
} words;

typedef struct run { /* of words of an evaluation example; 0 is a free place */
    uint64_t hash;
    int64_t example; /* numbered through all sets */
    bool whole, shared; /* all its words; it is in several examples */
    _Atomic(uint32_t) seen;
    _Atomic(int64_t) first; /* training example, the least */
} run;

typedef struct search {
    const tm_tokenizer *tok;
    const tm_dataset *train;
    int64_t looked_at; /* training examples */
    run *table;
    size_t mask, count;
    words *words; /* one a thread */
    _Atomic(int) status;
} search;

static uint64_t mix(uint64_t h, uint64_t value)
{
    h = (h ^ value) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 32;
}

static tm_status push(words *w, uint64_t hash, tm_error *err)
{
    TM_TRY(TM_GROW(&w->hash, &w->capacity, w->count + 1, err));
    w->hash[w->count++] = hash;
    return TM_OK;
}

static bool is_word(utf8proc_int32_t c)
{
    utf8proc_category_t k = utf8proc_category(c);
    return (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_ME) || (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO);
}

static tm_status split(words *w, tm_error *err)
{
    const utf8proc_uint8_t *at = (const utf8proc_uint8_t *)tm_buf_str(&w->text);
    utf8proc_ssize_t left = (utf8proc_ssize_t)w->text.size, n;
    uint64_t hash = 0;
    bool inside = false;
    for (; left > 0; at += n, left -= n) {
        utf8proc_int32_t c;
        n = utf8proc_iterate(at, left, &c);
        if (n <= 0) {
            n = 1;
            c = ' ';
        }
        bool letter = c < 128 ? (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') : is_word(c);
        if (letter)
            hash = mix(inside ? hash : 1, (uint64_t)(c < 128 ? (c >= 'A' && c <= 'Z' ? c | 32 : c) : utf8proc_tolower(c)));
        else if (inside)
            TM_TRY(push(w, hash, err));
        inside = letter;
    }
    return inside ? push(w, hash, err) : TM_OK;
}

static tm_status read_words(const tm_tokenizer *tok, const tm_example *e, words *w, tm_error *err)
{
    w->count = 0;
    tm_buf_clear(&w->text);
    if (tok) {
        TM_TRY(tm_tokenizer_decode(tok, e->ids, (size_t)e->n, true, &w->text, err));
        return split(w, err);
    }
    for (int32_t i = 0; i < e->n; i++)
        TM_TRY(push(w, mix(1, (uint64_t)e->ids[i]), err));
    return TM_OK;
}

static uint64_t run_hash(const uint64_t *word, size_t n, uint64_t kind)
{
    uint64_t h = kind;
    for (size_t i = 0; i < n; i++)
        h = mix(h, word[i]);
    return h ? h : 1;
}

static run *place_of(search *s, uint64_t hash)
{
    size_t at = (size_t)hash & s->mask;
    while (s->table[at].hash && s->table[at].hash != hash)
        at = (at + 1) & s->mask;
    return &s->table[at];
}

static void add_run(search *s, uint64_t hash, int64_t example, bool whole)
{
    run *r = place_of(s, hash);
    if (r->hash) {
        r->shared |= r->example != example;
        return;
    }
    r->hash = hash;
    r->example = example;
    r->whole = whole;
    atomic_init(&r->first, INT64_MAX);
    s->count++;
}

/* How many words all examples of a set begin with. */
static tm_status common_words(search *s, const tm_dataset *set, int64_t examples, size_t *out, tm_error *err)
{
    words first = {0}, *w = &s->words[0];
    tm_status st;
    *out = 0;
    if (examples < 2)
        return TM_OK;
    TM_GO(read_words(s->tok, tm_dataset_at(set, 0), &first, err));
    size_t n = first.count;
    for (int64_t i = 1; i < examples && n; i++) {
        TM_GO(read_words(s->tok, tm_dataset_at(set, i), w, err));
        size_t k = 0;
        while (k < n && k < w->count && w->hash[k] == first.hash[k])
            k++;
        n = k;
    }
    *out = n;
out:
    tm_buf_deinit(&first.text);
    free(first.hash);
    return st;
}

static tm_status add_set(search *s, const tm_dataset *set, int64_t examples, int64_t number, tm_error *err)
{
    size_t skip;
    TM_TRY(common_words(s, set, examples, &skip, err));
    words *w = &s->words[0];
    for (int64_t i = 0; i < examples; i++) {
        TM_TRY(read_words(s->tok, tm_dataset_at(set, i), w, err));
        if (s->count + w->count + 1 > MAX_RUNS)
            return TM_OK;
        if (w->count)
            add_run(s, run_hash(w->hash, w->count, 1), number + i, true);
        for (size_t k = skip; k + OVERLAP_WORDS <= w->count; k++)
            add_run(s, run_hash(w->hash + k, OVERLAP_WORDS, 2), number + i, false);
    }
    return TM_OK;
}

/* --- Looking through the training data --- */

static void found(search *s, uint64_t hash, int64_t example)
{
    run *r = place_of(s, hash);
    if (!r->hash)
        return;
    atomic_fetch_add(&r->seen, 1);
    int64_t first = atomic_load(&r->first);
    while (example < first && !atomic_compare_exchange_weak(&r->first, &first, example))
        ;
}

static void look(void *context, int64_t task, int thread)
{
    search *s = context;
    words *w = &s->words[thread];
    int64_t end = (task + 1) * TASK_EXAMPLES < s->looked_at ? (task + 1) * TASK_EXAMPLES : s->looked_at;
    for (int64_t i = task * TASK_EXAMPLES; i < end; i++) {
        tm_status st = read_words(s->tok, tm_dataset_at(s->train, i), w, NULL);
        if (st != TM_OK) {
            atomic_store(&s->status, (int)st);
            return;
        }
        if (w->count)
            found(s, run_hash(w->hash, w->count, 1), i);
        for (size_t k = 0; k + OVERLAP_WORDS <= w->count; k++)
            found(s, run_hash(w->hash + k, OVERLAP_WORDS, 2), i);
    }
}

/* --- The result --- */

typedef struct verdict { /* of an evaluation example */
    int64_t train; /* -1: not found */
    bool whole;
} verdict;

static void judge(const search *s, verdict *all, int64_t examples)
{
    for (int64_t i = 0; i < examples; i++)
        all[i].train = -1;
    for (size_t i = 0; i <= s->mask; i++) {
        const run *r = &s->table[i];
        uint32_t seen = r->hash ? atomic_load(&r->seen) : 0;
        if (!seen || (!r->whole && r->shared && seen > COMMON))
            continue;
        verdict *v = &all[r->example];
        int64_t train = atomic_load(&r->first);
        if (v->train < 0 || (r->whole && !v->whole) || (r->whole == v->whole && train < v->train))
            *v = (verdict){train, r->whole};
    }
}

static void report(const verdict *all, int64_t examples, tm_overlap *out)
{
    for (int64_t i = 0; i < examples; i++) {
        if (all[i].train < 0)
            continue;
        out->whole += all[i].whole;
        if (out->examples++ < TM_OVERLAP_SHOWN) {
            out->held[out->examples - 1] = i;
            out->train[out->examples - 1] = all[i].train;
        }
    }
}

static size_t table_size(const tm_dataset *const *sets, const int64_t *examples, int64_t count)
{
    size_t tokens = 0, size = 1024;
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; k < examples[i] && tokens < MAX_RUNS; k++)
            tokens += (size_t)tm_dataset_at(sets[i], k)->n + 1;
    while (size < 2 * tokens && size < 2 * (size_t)MAX_RUNS)
        size *= 2;
    return size;
}

tm_status tm_dataset_overlap(const tm_dataset *train, const tm_dataset *const *sets, const int64_t *examples,
                             int64_t count, const tm_tokenizer *tok, tm_pool *pool, tm_overlap *out, tm_error *err)
{
    search s = {.tok = tok, .train = train};
    int threads = tm_pool_threads(pool);
    int64_t all = 0, tokens = 0;
    verdict *verdicts = NULL;
    tm_status st;
    memset(out, 0, (size_t)count * sizeof *out);
    s.mask = table_size(sets, examples, count) - 1;
    TM_GO(TM_NEW(&s.table, s.mask + 1, err));
    TM_GO(TM_NEW(&s.words, threads, err));
    for (int64_t i = 0; i < count; all += examples[i++])
        TM_GO(add_set(&s, sets[i], examples[i], all, err));
    while (s.looked_at < tm_dataset_count(train) && tokens < MAX_TOKENS)
        tokens += tm_dataset_at(train, s.looked_at++)->n;
    tm_pool_run(pool, look, &s, (s.looked_at + TASK_EXAMPLES - 1) / TASK_EXAMPLES);
    if (atomic_load(&s.status) != TM_OK)
        TM_GO(tm_fail(err, (tm_status)atomic_load(&s.status), "data: no memory to compare evaluation and training data"));
    TM_GO(TM_NEW(&verdicts, all, err));
    judge(&s, verdicts, all);
    for (int64_t i = 0, first = 0; i < count; first += examples[i++])
        report(verdicts + first, examples[i], &out[i]);
out:
    for (int i = 0; s.words && i < threads; i++) {
        tm_buf_deinit(&s.words[i].text);
        free(s.words[i].hash);
    }
    free(s.words);
    free(s.table);
    free(verdicts);
    return st;
}

typedef struct key {
    uint64_t hash;
    int64_t example;
} key;

static int by_hash(const void *a, const void *b)
{
    const key *x = a, *y = b;
    if (x->hash != y->hash)
        return x->hash < y->hash ? -1 : 1;
    return x->example < y->example ? -1 : x->example > y->example;
}

tm_status tm_dataset_duplicates(const tm_dataset *data, int64_t sources, tm_overlap *out, tm_error *err)
{
    int64_t n = tm_dataset_first(data, sources);
    key *keys;
    *out = (tm_overlap){0};
    TM_TRY(TM_NEW(&keys, n, err));
    for (int64_t i = 0; i < n; i++) {
        const tm_example *e = tm_dataset_at(data, i);
        keys[i] = (key){tm_tokens_hash((uint64_t)e->source, e->ids, e->weight, e->n), i};
    }
    qsort(keys, (size_t)n, sizeof *keys, by_hash);
    for (int64_t i = 1; i < n; i++)
        if (keys[i].hash == keys[i - 1].hash && out->examples++ < TM_OVERLAP_SHOWN) {
            out->held[out->examples - 1] = keys[i].example;
            out->train[out->examples - 1] = keys[i - 1].example;
        }
    free(keys);
    return TM_OK;
}
