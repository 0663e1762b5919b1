/* Many texts at a time: each has the tokens and the logits, to the bit, that it has alone, whatever is beside it, in which
 * slot of the cache it lies and in what pieces its prompt is read. Random models of families that differ in what
 * attention sees, random prompts, lengths and ends. */
#include "../support/texts.h"

#include "base/exact.h"

static void alone_and_among_others(void **state)
{
    (void)state;
    for (int f = 0; f < FAMILIES; f++)
        for (int k = 0; k < 4; k += SPARSE) {
            const char *method = k & 1 ? "prompt" : "none";
            tm_dtype act = k & 2 ? TM_BF16 : TM_F32;
            machine m;
            telling alone, among;
            dice d = {.key = seed + (uint64_t)(4 * f + k)};
            invent(&alone, &d);
            among = alone;
            machine_open(&m, scratch(families[f][0]), method, act, (layout){PREFIX + PROMPT, 1, 1, NULL});
            OK(tell(&m, &alone, err));
            machine_close(&m);
            shuffle(&among, &d);
            machine_open(&m, scratch(families[f][0]), method, act, (layout){dice_in(&d, PREFIX, 2 * PROMPT), dice_in(&d, 2, TEXTS), (int)dice_in(&d, 1, 2), NULL});
            OK(tell(&m, &among, err));
            same_stories(&alone, &among, families[f][0]);
            machine_close(&m);
        }
}

static void the_first_of_the_likeliest(void **state)
{
    (void)state;
    assert_int_equal(tm_most_likely((const float[]){-2, 3, 3, 1, 3}, 5), 1);
    assert_int_equal(tm_most_likely((const float[]){0, 0, 0}, 3), 0);
    assert_int_equal(tm_most_likely((const float[]){1, 2, 4}, 3), 2);
    assert_int_equal(tm_most_likely((const float[]){1, NAN, 4, NAN}, 4), 2);
    assert_int_equal(tm_most_likely((const float[]){NAN, 2, 4}, 3), 0);
    assert_int_equal(tm_most_likely((const float[]){-INFINITY, NAN, -INFINITY}, 3), 0);
}

/* --- Drawing --- */

enum { MANY = 200 };
typedef struct weighed {
    double weight;
    int32_t id;
} weighed;

static int by_weight(const void *a, const void *b)
{
    const weighed *x = a, *y = b;
    return x->weight != y->weight ? (x->weight < y->weight ? 1 : -1) : x->id - y->id;
}

/* The rule in the shortest words: all in order, then those that top_k and top_p leave. */
static int32_t drawn(const float *logits, int64_t n, const tm_sampling *s, int64_t position)
{
    weighed c[MANY];
    double all = 0, kept = 0;
    float most = logits[tm_most_likely(logits, n)];
    for (int64_t i = 0; i < n; i++) {
        c[i] = (weighed){tm_exp(((double)logits[i] - most) / s->temperature), (int32_t)i};
        all += c[i].weight;
    }
    int64_t few = s->top_k > 0 && s->top_k < n ? s->top_k : n;
    if (few < n || s->top_p < 1)
        qsort(c, (size_t)n, sizeof *c, by_weight);
    for (int64_t i = 0; few < n && i < few; i++)
        kept += c[i].weight;
    all = few < n ? kept : all;
    if (s->top_p < 1) {
        double enough = s->top_p * all;
        int64_t k = 0;
        for (all = 0; k < few && (k == 0 || all < enough); k++)
            all += c[k].weight;
        few = k;
    }
    tm_philox random = tm_philox_at(tm_philox_key(s->seed, TM_PURPOSE_SAMPLE, 0, 0), (uint32_t)position, 0, 0, 0);
    double at = all * ((double)((uint64_t)random.word[0] << 21 | random.word[1] >> 11) * 0x1p-53);
    for (int64_t i = 0; i < few; i++)
        if ((at -= c[i].weight) < 0)
            return c[i].id;
    return c[few - 1].id;
}

static void draws(void **state)
{
    (void)state;
    dice d = {.key = seed + 77};
    void *room = malloc(tm_sample_scratch_bytes(MANY));
    for (int round = 0; round < 3000; round++) {
        float z[MANY];
        int64_t n = dice_in(&d, 1, round % 3 ? 12 : MANY), steps = dice_in(&d, 1, 20);
        for (int64_t i = 0; i < n; i++) /* ties, too */
            z[i] = (float)dice_in(&d, -steps, steps) * 0.25f;
        tm_sampling s = {.temperature = 0.1 + 2 * dice_unit(&d), .top_k = round % 2 ? dice_in(&d, 0, n + 1) : 0, .top_p = round % 4 > 1 ? dice_unit(&d) : 1, .seed = dice_word(&d)};
        int32_t got = tm_sample(z, n, &s, round, room), want = drawn(z, n, &s, round);
        if (got != want)
            fail_msg("%d of %lld, expected %d: temperature %g, top_k %lld, top_p %g (round %d, seed %llu)", got, (long long)n, want, s.temperature, (long long)s.top_k, s.top_p, round, (unsigned long long)seed);
    }
    free(room);
}

/* Ids that the device finds are those that the logits give, which the host sees. */
static void the_device_finds_the_likeliest(void **state)
{
    (void)state;
    for (int f = 0; f < FAMILIES; f++)
        for (int k = 0; k < 4; k += SPARSE) {
            machine m;
            telling seen, found;
            dice d = {.key = seed + 500 + (uint64_t)(4 * f + k)};
            invent(&seen, &d);
            seen.temperature = 0;
            found = seen;
            found.likeliest = true;
            machine_open(&m, scratch(families[f][0]), "none", k & 2 ? TM_BF16 : TM_F32, (layout){PREFIX + PROMPT, dice_in(&d, 1, TEXTS), 1, NULL});
            OK(tell(&m, &seen, err));
            OK(tell(&m, &found, err));
            for (int i = 0; i < TEXTS; i++)
                found.story[i].hash = seen.story[i].hash;
            same_stories(&seen, &found, families[f][0]);
            machine_close(&m);
        }
}

/* --- What depends on the length --- */

typedef struct growing { /* one text, with the logits that every token of it was chosen by */
    int32_t ids[PROMPT + NEW];
    int64_t n, prompt, next;
    bool once; /* no more than one token */
    float logits[NEW][VOCAB];
} growing;

static tm_status next_growing(void *context, tm_text *out, bool *there, tm_error *problem)
{
    growing *g = context;
    (void)problem;
    *there = g->next++ == 0;
    *out = (tm_text){.prompt = {.ids = g->ids, .n = (int32_t)g->n}, .max_tokens = NEW};
    return TM_OK;
}

static int32_t choose_growing(void *context, int64_t number, const float *logits, int64_t position)
{
    growing *g = context;
    (void)number;
    (void)position;
    memcpy(g->logits[g->n - g->prompt], logits, sizeof g->logits[0]);
    return tm_most_likely(logits, VOCAB);
}

static tm_status put_growing(void *context, int64_t number, int32_t id, bool *more, tm_error *problem)
{
    growing *g = context;
    (void)number;
    (void)problem;
    g->ids[g->n++] = id;
    *more = !g->once;
    return TM_OK;
}

/* With short and long factors every token of a text follows logits that a model would give which is shown the text so far
 * for the first time: also the first one beyond the short factors, and those after it. */
static void long_factors_from_the_limit_on(void **state)
{
    (void)state;
    enum { LIMIT = 14, PROMPT_LENGTHS = 4 };
    static const int64_t prompts[PROMPT_LENGTHS] = {1, LIMIT - 2, LIMIT - 1, PROMPT};
    static growing all, once;
    dice d = {.key = seed + 99};
    machine m;
    machine_open(&m, scratch("phi3-long"), "none", TM_F32, (layout){PREFIX + PROMPT + NEW, 1, 1, NULL});
    for (int k = 0; k < PROMPT_LENGTHS; k++) {
        all = (growing){.n = prompts[k], .prompt = prompts[k]};
        for (int64_t i = 0; i < all.n; i++)
            all.ids[i] = (int32_t)dice_in(&d, 0, VOCAB - 1);
        OK(tm_decode(&m.model, &m.batch, &(tm_texts){.next = next_growing, .choose = choose_growing, .token = put_growing, .context = &all}, err));
        assert_true(all.n == prompts[k] + NEW || all.n > 20);
        for (int64_t n = prompts[k]; n < all.n; n++) {
            once = (growing){.n = n, .prompt = n, .once = true};
            memcpy(once.ids, all.ids, sizeof all.ids);
            OK(tm_decode(&m.model, &m.batch, &(tm_texts){.next = next_growing, .choose = choose_growing, .token = put_growing, .context = &once}, err));
            if (memcmp(once.logits[0], all.logits[n - prompts[k]], sizeof once.logits[0]) != 0)
                fail_msg("a prompt of %lld: other logits behind %lld tokens than shown at once; seed %llu", (long long)prompts[k], (long long)n, (unsigned long long)seed);
        }
    }
    machine_close(&m);
}

/* The first Qwen's queries: from position seq_length on their angles are scaled by log(position + 1) to the base seq_length. */
static void queries_grow_from_the_trained_length_on(void **state)
{
    (void)state;
    enum { TRAINED = 6, N = 10 };
    static growing once;
    machine m;
    machine_open(&m, scratch("qwen-short"), "none", TM_F32, (layout){PREFIX + PROMPT, 1, 1, NULL});
    once = (growing){.n = N, .prompt = N, .once = true};
    OK(tm_decode(&m.model, &m.batch, &(tm_texts){.next = next_growing, .choose = choose_growing, .token = put_growing, .context = &once}, err));
    for (int64_t p = 1; p < N - 1; p++) { /* the last token's row has taken that of position 0 since */
        double want = p < TRAINED ? 1 : log((double)(p + 1)) / log(TRAINED);
        const float *key = tm_tensor_rows(m.model.row_cos[0], p, 1).data, *query = tm_tensor_rows(m.model.row_cos[1], p, 1).data;
        const float *key_sin = tm_tensor_rows(m.model.row_sin[0], p, 1).data, *query_sin = tm_tensor_rows(m.model.row_sin[1], p, 1).data;
        for (int64_t i = 0; i < m.model.row_cos[0].cols; i++)
            if (fabs(query[i] - want * key[i]) > 1e-6 || fabs(query_sin[i] - want * key_sin[i]) > 1e-6 || fabs(hypot(key[i], key_sin[i]) - 1) > 1e-6)
                fail_msg("position %lld: %g, %g of keys, %g, %g of queries; expected %g times", (long long)p, key[i], key_sin[i], query[i], query_sin[i], want);
    }
    machine_close(&m);
}

/* --- What goes wrong --- */

static void refusals(void **state)
{
    (void)state;
    machine m;
    telling alone, again;
    tm_error problem = {0};
    dice d = {.key = seed};
    do
        invent(&alone, &d);
    while (alone.count < 3);
    machine_open(&m, scratch("llama"), "none", TM_F32, (layout){9, 4, 1, NULL});
    again = alone;
    again.refuse_at = 2;
    assert_int_equal(tell(&m, &again, &problem), TM_FAILED);
    assert_string_equal(problem.message, "no more");
    assert_false(m.batch.cached || m.batch.single);
    /* What was left in the cache is nobody's. */
    again = alone;
    OK(tell(&m, &again, err));
    OK(tell(&m, &alone, err));
    same_stories(&alone, &again, "after a failure");
    machine_close(&m);
}

static tm_status next_long(void *context, tm_text *out, bool *there, tm_error *problem)
{
    static const int32_t many[PREFIX + PROMPT + NEW];
    (void)problem;
    *there = true;
    *out = (tm_text){.prompt = {.ids = many, .n = *(int32_t *)context}, .max_tokens = 1};
    return TM_OK;
}

static void prompts_that_do_not_fit(void **state)
{
    (void)state;
    machine m;
    tm_error problem = {0};
    machine_open(&m, scratch("llama"), "none", TM_F32, (layout){9, 4, 1, NULL});
    for (int32_t n = 0; n <= PREFIX + PROMPT + NEW - 3; n += PREFIX + PROMPT + NEW - 3) {
        assert_int_equal(tm_decode(&m.model, &m.batch, &(tm_texts){.next = next_long, .choose = choose, .token = put_token, .context = &n}, &problem), TM_FAILED);
        assert_non_null(strstr(problem.message, "expected 1 to 24"));
    }
    machine_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(alone_and_among_others), cmocka_unit_test(the_first_of_the_likeliest), cmocka_unit_test(draws), cmocka_unit_test(the_device_finds_the_likeliest), cmocka_unit_test(long_factors_from_the_limit_on),
                                       cmocka_unit_test(queries_grow_from_the_trained_length_on), cmocka_unit_test(refusals), cmocka_unit_test(prompts_that_do_not_fit)};
    return cmocka_run_group_tests_name("generate", tests, texts_begin, scratch_end);
}
