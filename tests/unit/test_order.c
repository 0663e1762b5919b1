/* The order of examples: permutations, epochs, steps, mixtures; and that batch and accumulation only
 * say where one list is cut. */
#include "base/philox.h"
#include "text/dataset.h"
#include "toy_tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <time.h>

#include "folder.h"

enum { SMALL = 37, LARGE = 400 };
static tm_pool *pool;
static tm_data_entry entries[2];
static tm_dataset *data; /* SMALL examples of 2 to 9 tokens, LARGE of 5 */
static uint64_t seed; /* fresh a run; printed at the start */

static int begin(void **state)
{
    tm_error e, *err = &e;
    tm_buf a = {0}, b = {0};
    seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int i = 0; i < SMALL; i++)
        tm_buf_printf(&a, "{\"input_ids\": [%d, 1%.*s]}\n", i % 100, 3 * (i % 8), ", 2, 2, 2, 2, 2, 2, 2");
    for (int i = 0; i < LARGE; i++)
        tm_buf_text(&b, "{\"input_ids\": [1, 2, 3, 4, 5]}\n");
    if (scratch_begin(state) || tm_pool_create(1, &pool, err) ||
        tm_file_write(scratch("a.jsonl"), a.data, a.size, err) ||
        tm_file_write(scratch("b.jsonl"), b.data, b.size, err))
        return -1;
    for (int i = 0; i < 2; i++)
        entries[i] = (tm_data_entry){
            .path = strdup(scratch(i ? "b.jsonl" : "a.jsonl")), .format = TM_FORMAT_TOKENS, .weight = 1};
    tm_buf_deinit(&a);
    tm_buf_deinit(&b);
    tm_status st = tm_dataset_load(entries, 2, &(tm_data_settings){.vocab_size = 128, .seq = 64}, pool, &data, err);
    if (st != TM_OK)
        print_error("%s\n", e.message);
    return st == TM_OK ? 0 : -1;
}

static int end(void **state)
{
    tm_dataset_destroy(data);
    tm_pool_destroy(pool);
    free(entries[0].path);
    free(entries[1].path);
    return scratch_end(state);
}

/* All steps one after another; lengths of the steps go to sizes when it is not NULL. */
static int64_t *flat(const tm_order *o, int64_t *count, int64_t *sizes)
{
    int64_t *all = NULL;
    *count = 0;
    for (int64_t s = 0; s < tm_order_steps(o); s++) {
        const int64_t *examples;
        int64_t n;
        tm_order_step(o, s, &examples, &n);
        assert_true(n > 0);
        all = realloc(all, (size_t)(*count + n) * sizeof *all);
        memcpy(all + *count, examples, (size_t)n * sizeof *all);
        *count += n;
        if (sizes)
            sizes[s] = n;
    }
    return all;
}

static int64_t *order(tm_order_settings s, int64_t *count, int64_t *steps)
{
    tm_order *o;
    s.accumulate = s.accumulate ? s.accumulate : 1;
    OK(tm_order_create(data, entries, &s, &o, err));
    int64_t *all = flat(o, count, NULL);
    if (steps)
        *steps = tm_order_steps(o);
    tm_order_destroy(o);
    return all;
}

static void assert_permutation(const int64_t *list, int64_t n)
{
    bool *seen = calloc((size_t)n, 1);
    for (int64_t i = 0; i < n; i++) {
        assert_true(list[i] >= 0 && list[i] < n && !seen[list[i]]);
        seen[list[i]] = true;
    }
    free(seen);
}

static void permutations(void **state)
{
    (void)state;
    int64_t list[1000], again[1000];
    for (int64_t n = 0; n < 1000; n = n < 10 ? n + 1 : n * 3) {
        tm_permutation(seed + 1, n, list);
        assert_permutation(list, n);
        tm_permutation(seed + 1, n, again);
        assert_memory_equal(list, again, (size_t)n * sizeof *list);
    }
    /* the published definition, written down once by hand: it must never change */
    const int64_t known[] = {5, 8, 6, 2, 4, 0, 1, 9, 3, 7};
    tm_permutation(tm_philox_key(7, TM_PURPOSE_ORDER, 0, 0), 10, list);
    for (int i = 0; i < 10; i++)
        assert_int_equal(list[i], known[i]);
    /* each place gets each value about equally often: 24 permutations of 4, chi-squared with 23 degrees */
    int64_t counts[256] = {0};
    double chi = 0;
    for (int k = 0; k < 24000; k++) {
        tm_permutation(tm_philox_key(seed, TM_PURPOSE_ORDER, (uint32_t)k, 0), 4, list);
        counts[list[0] * 64 + list[1] * 16 + list[2] * 4 + list[3]]++;
    }
    for (int i = 0; i < 256; i++)
        if (counts[i])
            chi += (double)((counts[i] - 1000) * (counts[i] - 1000)) / 1000;
    assert_true(chi < 70); /* p about 1e-6 */
}

static void an_epoch_is_every_example_once(void **state)
{
    (void)state;
    int64_t n, steps, total = SMALL + LARGE;
    int64_t *list = order((tm_order_settings){.seed = seed, .shuffle = true, .batch = 10, .epochs = 3}, &n, &steps);
    assert_int_equal(n, 3 * total);
    assert_int_equal(steps, (3 * total + 9) / 10);
    for (int e = 0; e < 3; e++)
        assert_permutation(list + e * total, total);
    assert_memory_not_equal(list, list + total, (size_t)total * sizeof *list);
    free(list);

    list = order((tm_order_settings){.seed = seed, .batch = 10, .epochs = 2}, &n, NULL);
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(list[i], i % total);
    free(list);

    list = order((tm_order_settings){.seed = seed, .batch = 10, .epochs = 0.5}, &n, &steps);
    assert_int_equal(n, (total + 1) / 2);
    assert_int_equal(steps, (n + 9) / 10);
    free(list);
    list = order((tm_order_settings){.seed = seed, .batch = 10, .epochs = 1e-9}, &n, &steps);
    assert_int_equal(n, 1);
    assert_int_equal(steps, 1);
    free(list);
}

static void steps_go_on_across_epochs(void **state)
{
    (void)state;
    int64_t n, m, steps;
    int64_t *list =
        order((tm_order_settings){.seed = seed, .shuffle = true, .batch = 16, .steps = 100, .epochs = 1}, &n, &steps);
    assert_int_equal(steps, 100);
    assert_int_equal(n, 1600);
    /* by epochs the same list begins, and seeds matter */
    int64_t *epochs = order((tm_order_settings){.seed = seed, .shuffle = true, .batch = 7, .epochs = 3}, &m, NULL);
    assert_memory_equal(list, epochs, (size_t)m * sizeof *list);
    free(epochs);
    epochs = order((tm_order_settings){.seed = seed + 1, .shuffle = true, .batch = 7, .epochs = 3}, &m, NULL);
    assert_memory_not_equal(list, epochs, (size_t)m * sizeof *list);
    free(epochs);
    free(list);
}

static void accumulation_only_cuts(void **state)
{
    (void)state;
    for (int tokens = 0; tokens < 2; tokens++) {
        tm_order_settings a = {.seed = seed,
                               .shuffle = true,
                               .batch = 6,
                               .accumulate = 1,
                               .epochs = 2,
                               .batch_tokens = tokens ? 60 : 0},
                          b = a;
        b.batch = 2;
        b.accumulate = 3;
        b.batch_tokens = tokens ? 20 : 0;
        tm_order *x, *y;
        OK(tm_order_create(data, entries, &a, &x, err));
        OK(tm_order_create(data, entries, &b, &y, err));
        assert_int_equal(tm_order_steps(x), tm_order_steps(y));
        for (int64_t s = tm_order_steps(x); s-- > 0;) { /* backwards: any step can be asked for */
            const int64_t *p, *q;
            int64_t n, m;
            tm_order_step(x, s, &p, &n);
            tm_order_step(y, s, &q, &m);
            assert_int_equal(n, m);
            assert_memory_equal(p, q, (size_t)n * sizeof *p);
        }
        tm_order_destroy(x);
        tm_order_destroy(y);
    }
}

static void steps_fill_with_tokens(void **state)
{
    (void)state;
    for (int64_t budget = 1; budget < 40; budget += 6) {
        tm_order *o;
        tm_order_settings s = {
            .seed = seed, .shuffle = true, .batch = 1, .batch_tokens = budget, .accumulate = 1, .epochs = 1};
        OK(tm_order_create(data, entries, &s, &o, err));
        int64_t previous = -1, count, steps = tm_order_steps(o);
        int64_t *all = flat(o, &count, NULL);
        assert_permutation(all, SMALL + LARGE);
        free(all);
        for (int64_t k = 0; k < steps; k++) {
            const int64_t *examples;
            int64_t n, tokens = 0;
            tm_order_step(o, k, &examples, &n);
            for (int64_t i = 0; i < n; i++)
                tokens += tm_dataset_at(data, examples[i])->n;
            assert_true(n == 1 || tokens <= budget);
            if (previous >= 0) /* the first of this step would not have fitted into the one before */
                assert_true(previous + tm_dataset_at(data, examples[0])->n > budget);
            previous = tokens;
        }
        tm_order_destroy(o);
    }
}

static void mixtures_follow_their_weights(void **state)
{
    (void)state;
    int64_t tokens[2] = {0}, n, sizes[2] = {SMALL, LARGE};
    for (int s = 0; s < 2; s++)
        tokens[s] = tm_dataset_stats_of(data, s)->tokens;
    for (int k = 0; k < 2; k++) {
        entries[0].weight = k ? 20 : 0.25;
        int64_t *list = order((tm_order_settings){.seed = seed, .shuffle = k, .batch = 8, .epochs = 10}, &n, NULL);
        double want =
            entries[0].weight * (double)tokens[0] / (entries[0].weight * (double)tokens[0] + (double)tokens[1]);
        double p = entries[0].weight * SMALL / (entries[0].weight * SMALL + LARGE);
        int64_t drawn[2] = {0}, got[2] = {0}, last[2] = {0};
        bool seen[LARGE] = {false};
        for (int64_t i = 0; i < n; i++) {
            const tm_example *e = tm_dataset_at(data, list[i]);
            int s = e->source;
            got[s] += e->n;
            if (s == 0 && drawn[0]++ % SMALL == 0) /* a source is gone through before it starts over */
                memset(seen, 0, sizeof seen);
            if (s == 0) {
                assert_false(seen[list[i]]);
                seen[list[i]] = true;
            }
            if (!k && s == 1)
                assert_int_equal(list[i] - SMALL, last[1]++ % sizes[1]);
        }
        double share = (double)got[0] / (double)(got[0] + got[1]), deviation = sqrt(p * (1 - p) / (double)n) * 9 / 4;
        assert_true(got[0] + got[1] >= 10 * (tokens[0] + tokens[1]) &&
                    got[0] + got[1] < 10 * (tokens[0] + tokens[1]) + 9);
        if (fabs(share - want) > 5 * deviation)
            fail_msg("seed %llu: share %g, expected %g", (unsigned long long)seed, share, want);
        int64_t m, *again = order((tm_order_settings){.seed = seed, .shuffle = k, .batch = 3, .epochs = 10}, &m, NULL);
        assert_int_equal(n, m);
        assert_memory_equal(list, again, (size_t)n * sizeof *list);
        free(again);
        free(list);
    }
    entries[0].weight = entries[1].weight = 7; /* equal weights are no mixture */
    int64_t *list = order((tm_order_settings){.seed = seed, .shuffle = true, .batch = 8, .epochs = 1}, &n, NULL);
    assert_permutation(list, SMALL + LARGE);
    free(list);
    entries[0].weight = entries[1].weight = 1;
}

/* train.mix: the weight itself is the share, of tokens or of examples, also where all weights are equal. */
static void shares_without_sizes(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        bool by_tokens = k < 2;
        entries[0].weight = k % 2 ? 3 : 1;
        int64_t n, examples[2] = {0}, tokens[2] = {0};
        int64_t *list = order((tm_order_settings){.seed = seed, .shuffle = true, .batch = 8, .epochs = 20,
                                                  .mix = by_tokens ? TM_MIX_TOKENS : TM_MIX_ROWS}, &n, NULL);
        for (int64_t i = 0; i < n; i++) {
            const tm_example *e = tm_dataset_at(data, list[i]);
            examples[e->source]++;
            tokens[e->source] += e->n;
        }
        double want = entries[0].weight / (entries[0].weight + 1), total = (double)(by_tokens ? tokens[0] + tokens[1] : n);
        double share = (double)(by_tokens ? tokens[0] : examples[0]) / total;
        if (n < 5000 || fabs(share - want) > 5 * 0.5 * 9 / 4 / sqrt((double)n))
            fail_msg("seed %llu: share %g, expected %g", (unsigned long long)seed, share, want);
        free(list);
    }
    entries[0].weight = 1;
}

static void impossible_runs_are_refused(void **state)
{
    (void)state;
    tm_order *o;
    tm_order_settings s = {.batch = INT64_MAX / 2, .accumulate = 3, .epochs = 1};
    FAILS(TM_RECIPE, "train.batch: 4611686018427387903 times train.accumulate 3 is no size of a step", tm_order_create(data, entries, &s, &o, err));
    s = (tm_order_settings){.batch = 1, .accumulate = 1, .epochs = 1e300};
    FAILS(TM_RECIPE, "train.epochs", tm_order_create(data, entries, &s, &o, err));
    s.epochs = 0;
    FAILS(TM_RECIPE, "train.epochs", tm_order_create(data, entries, &s, &o, err));
    assert_null(o);
    tm_order_destroy(NULL);
    tm_dataset_destroy(NULL);
    /* At once: a list of these would take all memory. */
    s = (tm_order_settings){.batch = 2, .accumulate = 1, .steps = 1000000000000};
    FAILS(TM_RECIPE, "train.steps: a run of 2e+12 examples", tm_order_create(data, entries, &s, &o, err));
    s = (tm_order_settings){.batch_tokens = 64, .accumulate = 1, .steps = 1000000000000};
    FAILS(TM_RECIPE, "train.steps", tm_order_create(data, entries, &s, &o, err));
    s = (tm_order_settings){.batch = 2, .accumulate = 1, .epochs = 1e15};
    FAILS(TM_RECIPE, "train.epochs: a run of", tm_order_create(data, entries, &s, &o, err));
    s.mix = TM_MIX_ROWS;
    FAILS(TM_RECIPE, "train.epochs: a run of", tm_order_create(data, entries, &s, &o, err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(permutations),
        cmocka_unit_test(an_epoch_is_every_example_once),
        cmocka_unit_test(steps_go_on_across_epochs),
        cmocka_unit_test(accumulation_only_cuts),
        cmocka_unit_test(steps_fill_with_tokens),
        cmocka_unit_test(mixtures_follow_their_weights),
        cmocka_unit_test(shares_without_sizes),
        cmocka_unit_test(impossible_runs_are_refused),
    };
    return cmocka_run_group_tests_name("order", tests, begin, end);
}
