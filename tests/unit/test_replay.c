/* Replay: shares of tokens, what an order without it looks like, buffers, leaks, and that whole runs with old examples in
 * them keep every promise of runs without. */
#include "../support/run.h"

#include "api/inference.h"
#include "api/logits.h"
#include "keep/replay.h"

static uint64_t seed;

enum { TASK = 300, OLD = 120, OTHER = 40 };

static const char *const config = "{\"model_type\": \"qwen2\", \"tie_word_embeddings\": true, \"vocab_size\": 61, \"hidden_size\": 24, \"intermediate_size\": 40, "
                                  "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"max_position_embeddings\": 64}";

/* --- Orders --- */

static tm_data_entry entries[4];

static tm_dataset *load(int64_t count)
{
    static const char *const names[] = {"task.jsonl", "more.jsonl", "old.jsonl", "other.jsonl"};
    tm_dataset *data;
    tm_pool *pool;
    for (int i = 0; i < 4; i++)
        entries[i] = (tm_data_entry){.path = (char *)(uintptr_t)scratch(names[i]), .format = TM_FORMAT_TOKENS, .weight = i == 1 ? 3 : 1};
    OK(tm_pool_create(1, &pool, err));
    OK(tm_dataset_load(entries, count, &(tm_data_settings){.vocab_size = 61, .seq = 64}, pool, &data, err));
    tm_pool_destroy(pool);
    return data;
}

static int64_t *list_of(const tm_dataset *data, tm_order_settings s, int64_t *count)
{
    tm_order *o;
    int64_t *all = NULL;
    OK(tm_order_create(data, entries, &s, &o, err));
    *count = 0;
    for (int64_t k = 0; k < tm_order_steps(o); k++) {
        const int64_t *examples;
        int64_t n;
        tm_order_step(o, k, &examples, &n);
        all = realloc(all, (size_t)(*count + n) * sizeof *all);
        memcpy(all + *count, examples, (size_t)n * sizeof *all);
        *count += n;
    }
    tm_order_destroy(o);
    return all;
}

/* Without the old examples the list is that of a run that has none; they come permutation after permutation. */
static void the_task_stays_as_it_is(void **state)
{
    (void)state;
    static const double fractions[] = {0.5, 0.1};
    for (int mix = 0; mix < 3; mix++) {
        tm_dataset *with = load(4), *without = load(2);
        for (int k = 0; k < 4; k++) {
            tm_order_settings s = {.seed = seed + (uint64_t)k, .mix = mix, .shuffle = k != 3, .batch = 7, .accumulate = 1, .epochs = 2.5};
            int64_t n, m, at = 0, seen[2] = {0}, *plain = list_of(without, s, &m);
            s.rehearsal = fractions;
            s.rehearsals = 2;
            int64_t *list = list_of(with, s, &n), of[2] = {OLD, OTHER};
            int *times = calloc(OLD + OTHER, sizeof *times);
            for (int64_t i = 0; i < n; i++) {
                if (list[i] < tm_dataset_first(with, 2)) {
                    assert_true(at < m && list[i] == plain[at]);
                    at++;
                    continue;
                }
                int64_t which = list[i] >= tm_dataset_first(with, 3), local = list[i] - tm_dataset_first(with, 2);
                assert_int_equal(times[local]++, seen[which]++ / of[which]); /* once in every pass */
            }
            assert_int_equal(at, m);
            assert_true(seen[0] > OLD && seen[1] > OTHER / 2);
            free(times);
            free(list);
            free(plain);
        }
        tm_dataset_destroy(with);
        tm_dataset_destroy(without);
    }
}

/* The share of tokens: of one run within six deviations of a binomial draw, the mean over runs within four of its own. */
static void shares_are_met(void **state)
{
    (void)state;
    enum { SEEDS = 200 };
    tm_dataset *data = load(4);
    static const double wanted[][2] = {{0.05, 0.05}, {0.5, 0}, {0.03, 0.2}};
    for (int k = 0; k < 6; k++) {
        const double *f = wanted[k % 3];
        double share[SEEDS][2] = {{0}}, sum[2] = {0}, variance[2] = {0};
        for (int s = 0; s < SEEDS; s++) {
            tm_order_settings settings = {.seed = seed + 1000u * (unsigned)s, .mix = k / 3 ? TM_MIX_ROWS : TM_MIX_SIZE, .shuffle = true, .batch = 5, .accumulate = 2, .steps = 150,
                                          .rehearsal = f, .rehearsals = 2};
            int64_t n, *list = list_of(data, settings, &n);
            double tokens[2] = {0}, all = 0, square[2] = {0};
            for (int64_t i = 0; i < n; i++) {
                const tm_example *e = tm_dataset_at(data, list[i]);
                all += e->n;
                for (int j = 0; j < 2; j++) {
                    double off = e->n * ((e->source == 2 + j) - f[j]);
                    tokens[j] += e->source == 2 + j ? e->n : 0;
                    square[j] += off * off;
                }
            }
            for (int j = 0; j < 2; j++) {
                share[s][j] = tokens[j] / all;
                sum[j] += share[s][j] / SEEDS;
                variance[j] += square[j] / (all * all) / SEEDS;
            }
            free(list);
        }
        for (int j = 0; j < 2; j++) {
            double sd = sqrt(variance[j]);
            for (int s = 0; s < SEEDS; s++)
                if (fabs(share[s][j] - f[j]) > 6 * sd + 1e-12)
                    fail_msg("a share of %g, wanted %g with a deviation of %g; seed %llu", share[s][j], f[j], sd, (unsigned long long)seed);
            if (fabs(sum[j] - f[j]) > 4 * sd / sqrt(SEEDS) + 0.005 * f[j])
                fail_msg("shares of %g in the mean, wanted %g with a deviation of %g; seed %llu", sum[j], f[j], sd / sqrt(SEEDS), (unsigned long long)seed);
        }
    }
    tm_dataset_destroy(data);
}

static void too_much_is_refused(void **state)
{
    (void)state;
    tm_dataset *data = load(4);
    tm_order *o;
    static const double all[] = {0.6, 0.4}, some[] = {0.5, 0.4};
    tm_order_settings s = {.batch = 5, .accumulate = 1, .steps = 3, .rehearsal = all, .rehearsals = 2};
    FAILS(TM_RECIPE, "rehearsal: 1 of the tokens", tm_order_create(data, entries, &s, &o, err));
    s.rehearsal = some;
    bool none[OTHER] = {false};
    tm_dataset_keep(data, 3, none);
    assert_int_equal(tm_dataset_first(data, 4) - tm_dataset_first(data, 3), 0);
    FAILS(TM_RECIPE, "no example to rehearse", tm_order_create(data, entries, &s, &o, err));
    tm_dataset_destroy(data);
}

/* --- Buffers --- */

/* Every example is kept about as often as another: binomial, five deviations over n * 2 places. */
static void buffers_are_fair(void **state)
{
    (void)state;
    enum { N = 60, BUFFER = 13, TIMES = 4000 };
    int64_t often[2][N] = {{0}};
    for (int t = 0; t < TIMES; t++)
        for (int how = 0; how < 2; how++) {
            bool keep[N];
            uint64_t key = tm_philox_key(seed, TM_PURPOSE_SAMPLE, (uint32_t)t, (uint32_t)how);
            int64_t kept = 0;
            if (how)
                OK(tm_replay_reservoir(key, N, BUFFER, keep, err));
            else
                OK(tm_replay_random(key, N, BUFFER, keep, err));
            for (int i = 0; i < N; i++) {
                kept += keep[i];
                often[how][i] += keep[i];
            }
            assert_int_equal(kept, BUFFER);
        }
    double p = (double)BUFFER / N, sd = sqrt(TIMES * p * (1 - p));
    for (int how = 0; how < 2; how++)
        for (int i = 0; i < N; i++)
            if (fabs((double)often[how][i] - TIMES * p) > 5 * sd)
                fail_msg("%s keeps example %d %lld times of %d, expected %.0f; seed %llu", how ? "reservoir" : "random", i, (long long)often[how][i], TIMES, TIMES * p, (unsigned long long)seed);
    bool keep[N];
    OK(tm_replay_reservoir(seed, N, N + 5, keep, err));
    for (int i = 0; i < N; i++)
        assert_true(keep[i]);
}

/* Every example has the same chance, also the one that just does not fit: of two, either is kept. */
static void reservoirs_are_fair(void **state)
{
    (void)state;
    enum { KEYS = 1000 };
    int second = 0;
    for (uint64_t key = 0; key < KEYS; key++) { /* the same keys every time: no draw of the test's own */
        bool keep[2];
        OK(tm_replay_reservoir(key, 2, 1, keep, err));
        assert_true(keep[0] != keep[1]);
        second += keep[1];
    }
    assert_in_range(second, 420, 580);
}

/* A reservoir of a longer file keeps what that of the shorter one had, but for what newer examples drove out. */
static void reservoirs_remember(void **state)
{
    (void)state;
    enum { N = 200, BUFFER = 20 };
    bool before[N] = {false}, now[N];
    int64_t changed = 0;
    OK(tm_replay_reservoir(seed, BUFFER, BUFFER, before, err));
    for (int64_t n = BUFFER + 1; n <= N; n++) {
        int64_t lost = 0;
        OK(tm_replay_reservoir(seed, n, BUFFER, now, err));
        for (int64_t i = 0; i < n - 1; i++) {
            assert_true(before[i] || !now[i]); /* nothing comes back */
            lost += before[i] && !now[i];
        }
        assert_int_equal(lost, now[n - 1]);
        changed += lost;
        memcpy(before, now, sizeof now);
    }
    assert_true(changed > 20 && changed < 80); /* 20 (H(200) - H(20)) = 46 in the mean */
}

/* k-center greedy again, with every distance computed anew each time. */
static void diverse_is_farthest_first(void **state)
{
    (void)state;
    dice d = {.key = seed};
    for (int trial = 0; trial < 60; trial++) {
        enum { MOST = 40, WIDTH = 5 };
        float x[MOST * WIDTH];
        double mean[WIDTH] = {0};
        bool keep[MOST], expect[MOST] = {false};
        int64_t n = dice_in(&d, 2, MOST), buffer = dice_in(&d, 1, n - 1);
        for (int64_t i = 0; i < n * WIDTH; i++)
            x[i] = (float)(trial % 2 ? dice_in(&d, 0, 2) : dice_spread(&d)); /* many are equally far */
        for (int64_t i = 0; i < n * WIDTH; i++)
            mean[i % WIDTH] += x[i] / (double)n;
        for (int64_t taken = 0; taken < buffer; taken++) {
            int64_t best = -1;
            double best_distance = 0;
            for (int64_t i = 0; i < n; i++) {
                double nearest = INFINITY;
                for (int64_t k = taken ? 0 : -1; k < (taken ? n : 0); k++) {
                    double sum = 0;
                    for (int64_t c = 0; c < WIDTH; c++) {
                        double apart = x[i * WIDTH + c] - (k < 0 ? mean[c] : x[k * WIDTH + c]);
                        sum += apart * apart;
                    }
                    if (k < 0 || expect[k])
                        nearest = fmin(nearest, sum);
                }
                bool better = best < 0 || (taken ? nearest > best_distance : nearest < best_distance);
                if (!expect[i] && better) {
                    best = i;
                    best_distance = nearest;
                }
            }
            expect[best] = true;
        }
        OK(tm_replay_diverse(x, WIDTH, n, buffer, keep, err));
        if (memcmp(keep, expect, (size_t)n) != 0)
            fail_msg("trial %d: other examples than farthest first; seed %llu", trial, (unsigned long long)seed);
    }
}

static void hardest_have_the_highest_loss(void **state)
{
    (void)state;
    dice d = {.key = seed};
    for (int trial = 0; trial < 100; trial++) {
        double loss[50];
        bool keep[50];
        int64_t n = dice_in(&d, 1, 50), buffer = dice_in(&d, 1, 50);
        for (int64_t i = 0; i < n; i++)
            loss[i] = (double)dice_in(&d, 0, 9);
        OK(tm_replay_hardest(loss, n, buffer, keep, err));
        for (int64_t i = 0; i < n; i++) {
            int64_t before = 0;
            for (int64_t k = 0; k < n; k++)
                before += loss[k] > loss[i] || (loss[k] == loss[i] && k < i);
            assert_int_equal(keep[i], before < buffer);
        }
    }
}

/* --- Whole runs --- */

static void recipe(args *a, const char *out, const char *method)
{
    arg(a, "model=%s", scratch("model"));
    arg(a, "out=%s", scratch(out));
    arg(a, "method=%s", method);
    arg(a, "data.0.path=%s", scratch("task.jsonl"));
    arg(a, "data.0.format=tokens");
    arg(a, "eval.0.name=held");
    arg(a, "eval.0.path=%s", scratch("held.jsonl"));
    arg(a, "eval.0.format=tokens");
    arg(a, "train.batch=4");
    arg(a, "train.steps=12");
    arg(a, "train.lr=0.003");
    arg(a, "train.seed=%llu", (unsigned long long)(seed >> 1));
    arg(a, "train.checkpoint_every=5");
    arg(a, "threads=1");
}

static void rehearse(args *a, const char *fraction)
{
    arg(a, "keep.replay.path=%s", scratch("old.jsonl"));
    arg(a, "keep.replay.format=tokens");
    arg(a, "keep.replay.fraction=%s", fraction);
}

static void nothing_is_plain(void **state)
{
    (void)state;
    args a = {0}, b = {0}, c = {0};
    recipe(&a, "plain", "lora");
    recipe(&b, "none", "lora");
    rehearse(&b, "0");
    recipe(&c, "some", "lora");
    rehearse(&c, "0.4");
    train(&a);
    train(&b);
    train(&c);
    assert_true(runs_agree(scratch("plain"), scratch("none"), adapter_file()));
    print_message("the next runs must differ:\n");
    assert_false(runs_agree(scratch("plain"), scratch("some"), adapter_file()));
    json_t *json = run_json(scratch("some")), *old = json_array_get(json_object_get(json, "rehearsal"), 0);
    assert_int_equal(json_integer_value(json_object_get(old, "examples")), OLD);
    assert_true(json_integer_value(json_object_get(old, "drawn")) > 0);
    assert_true(json_number_value(json_object_get(old, "share")) > 0);
    assert_int_equal(strlen(json_string_value(json_object_get(json_object_get(json, "sha256"), "replay"))), 64);
    assert_int_equal(json_array_size(json_object_get(json, "data")), 1);
    json_decref(json);
    args_free(&a);
    args_free(&b);
    args_free(&c);
}

static bool stop_now(void *context) { return ++*(int *)context > 8; }

/* Other layouts, and a run that was ended and goes on, give the same bytes; temper verify says the same. */
static void leaves_no_trace_of_layout(void **state)
{
    (void)state;
    static const char *const methods[] = {"full", "lora"}, *const results[] = {"model.safetensors", "adapter_model.safetensors"};
    for (int k = 0; k < 2; k++) {
        args a = {0}, b = {0};
        tm_error problem = {0};
        char out[32], *dir = NULL;
        snprintf(out, sizeof out, "one-%d", k);
        recipe(&a, out, methods[k]);
        rehearse(&a, "0.3");
        arg(&a, "keep.replay.buffer=50");
        arg(&a, "keep.replay.select=%s", k ? "reservoir" : "random");
        b = args_copy(&a);
        train(&a);
        arg(&b, "out=%s", scratch("two"));
        arg(&b, "threads=3");
        arg(&b, "train.packing=false");
        arg(&b, "train.micro_tokens=70");
        int asked = 0;
        tm_callbacks callbacks = {.interrupted = stop_now, .context = &asked};
        tm_recipe_source source = {.overrides = b.item, .override_count = b.count};
        assert_int_equal(tm_train(&source, &callbacks, &dir, &problem), TM_FAILED);
        free(dir);
        train(&b);
        assert_true(runs_agree(scratch(out), scratch("two"), results[k]));
        json_t *json = run_json(scratch("two"));
        assert_int_equal(json_integer_value(json_object_get(json_array_get(json_object_get(json, "rehearsal"), 0), "examples")), 50);
        json_decref(json);
        bool equal = false;
        char *text = NULL;
        OK(tm_verify(scratch("two"), NULL, &equal, &text, err));
        if (!equal)
            fail_msg("%s", text);
        free(text);
        OK(tm_dir_remove(scratch("two"), err));
        args_free(&a);
        args_free(&b);
    }
}

/* What the base makes of every old example: mean loss of its targets from logits, mean hidden state [OLD, 24]. */
static void look(double *loss, float *hidden)
{
    tm_inference inf;
    tm_inference_settings s = {.model = scratch("model"), .threads = 1, .max_tokens = 64, .logits = true};
    tm_dataset *data = load(4);
    float *logits = malloc(64 * 61 * sizeof *logits), *rows = malloc(64 * 24 * sizeof *rows);
    OK(tm_inference_open(&s, &inf, err));
    for (int64_t i = 0; i < OLD; i++) {
        const tm_example *e = tm_dataset_at(data, tm_dataset_first(data, 2) + i);
        tm_batch_item item = {.ids = e->ids, .n = e->n, .scale = 1};
        tm_batch_fill(&inf.batch, &item, 1);
        tm_model_forward(&inf.model, &inf.batch);
        inf.device->calls->download(inf.device, rows, inf.model.hidden.data, (int64_t)e->n * 24 * 4);
        tm_model_logits(&inf.model, &inf.batch);
        inf.device->calls->download(inf.device, logits, inf.model.logits.data, (int64_t)e->n * 61 * 4);
        loss[i] = 0;
        for (int32_t t = 1; t < e->n; t++)
            loss[i] += (tm_log_sum_exp(logits + (t - 1) * 61, 61) - logits[(t - 1) * 61 + e->ids[t]]) / (e->n - 1);
        for (int c = 0; c < 24; c++) {
            double sum = 0;
            for (int32_t t = 1; t < e->n; t++)
                sum += rows[t * 24 + c];
            hidden[i * 24 + c] = (float)(sum / (e->n - 1));
        }
    }
    tm_inference_close(&inf);
    tm_dataset_destroy(data);
    free(logits);
    free(rows);
}

/* The base chooses what it says it does; the record is read by a run that goes on; a damaged one is said. */
static void the_base_chooses(void **state)
{
    (void)state;
    enum { BUFFER = 30 };
    static const char *const how[] = {"loss", "diverse"};
    double *loss = malloc(OLD * sizeof *loss);
    float *hidden = malloc(OLD * 24 * sizeof *hidden);
    look(loss, hidden);
    for (int k = 0; k < 2; k++) {
        args a = {0};
        bool keep[OLD] = {false}, expect[OLD];
        char out[32], path[600];
        tm_error problem;
        snprintf(out, sizeof out, "chosen-%d", k);
        snprintf(path, sizeof path, "%s/rehearsal.json", scratch(out));
        recipe(&a, out, "lora");
        rehearse(&a, "0.3");
        arg(&a, "keep.replay.buffer=%d", BUFFER);
        arg(&a, "keep.replay.select=%s", how[k]);
        arg(&a, "threads=%d", 1 + 2 * k);
        train(&a);
        json_t *json;
        OK(tm_json_read(path, &json, err));
        const json_t *part = json_object_get(json, "replay"), *chosen = json_object_get(part, "chosen");
        assert_int_equal(json_array_size(chosen), BUFFER);
        assert_int_equal(json_integer_value(json_object_get(part, "examples")), OLD);
        for (size_t i = 0; i < BUFFER; i++)
            keep[json_integer_value(json_array_get(chosen, i))] = true;
        double least = INFINITY, most = -INFINITY;
        for (int i = 0; i < OLD; i++) {
            least = keep[i] ? fmin(least, loss[i]) : least;
            most = keep[i] ? most : fmax(most, loss[i]);
        }
        OK(tm_replay_diverse(hidden, 24, OLD, BUFFER, expect, err));
        assert_true(k ? memcmp(keep, expect, sizeof keep) == 0 : least > most - 1e-4);
        json_decref(json);
        json = run_json(scratch(out));
        assert_int_equal(json_integer_value(json_object_get(json_array_get(json_object_get(json, "rehearsal"), 0), "examples")), BUFFER);
        json_decref(json);
        static const char other[] = "{\"replay\": {\"examples\": 3, \"chosen\": [1]}}";
        OK(tm_file_write(path, other, sizeof other - 1, err));
        assert_int_equal(try_train(&a, &problem), TM_LOCKED); /* of another subject, and a run is there */
        args_free(&a);
    }
    free(loss);
    free(hidden);
}

/* An evaluation set that is among the old examples is said like one among the data; repeats among them are not. */
static void leaks_are_said(void **state)
{
    (void)state;
    args a = {0};
    tm_job job;
    recipe(&a, "leak", "lora");
    rehearse(&a, "0.3");
    arg(&a, "keep.replay.path=%s", scratch("twice.jsonl"));
    arg(&a, "eval.0.path=%s", scratch("leaky.jsonl"));
    open_job(&a, TM_JOB_TRAIN, &job);
    const char *last = job.warnings.item[job.warnings.count - 1];
    assert_true(job.warnings.count <= 2 && strstr(last, "evaluation 'held': 3 of 3 examples are in the training data") && strstr(last, "twice.jsonl:"));
    if (job.warnings.count == 2) /* short rows of the task may be the same */
        assert_true(strstr(job.warnings.item[0], "of 300 examples repeat") && !strstr(job.warnings.item[0], "twice.jsonl"));
    assert_int_equal(job.run.rehearsal_from, 1);
    tm_job_close(&job);
    args_free(&a);
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state) != 0)
        return -1;
    write_model(scratch("model"), config, TM_F32, seed);
    write_rows(scratch("task.jsonl"), TASK, 3, 12, 61, 0.3, seed + 1);
    write_rows(scratch("more.jsonl"), TASK / 3, 5, 30, 61, 0.3, seed + 2);
    write_rows(scratch("old.jsonl"), OLD, 10, 60, 61, 0, seed + 3);
    write_rows(scratch("other.jsonl"), OTHER, 3, 9, 61, 0, seed + 4);
    write_rows(scratch("held.jsonl"), 4, 20, 40, 61, 0, seed + 5);
    write_rows(scratch("leaky.jsonl"), 3, 30, 40, 61, 0, seed + 6);
    size_t n;
    char *rows = slurp(scratch("leaky.jsonl"), &n), *twice = malloc(2 * n);
    memcpy(twice, rows, n);
    memcpy(twice + n, rows, n);
    OK(tm_file_write(scratch("twice.jsonl"), twice, 2 * n, err));
    free(rows);
    free(twice);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_task_stays_as_it_is), cmocka_unit_test(shares_are_met), cmocka_unit_test(too_much_is_refused), cmocka_unit_test(buffers_are_fair),
        cmocka_unit_test(reservoirs_are_fair), cmocka_unit_test(reservoirs_remember), cmocka_unit_test(diverse_is_farthest_first), cmocka_unit_test(hardest_have_the_highest_loss),
        cmocka_unit_test(nothing_is_plain), cmocka_unit_test(leaves_no_trace_of_layout), cmocka_unit_test(leaks_are_said),
        cmocka_unit_test(the_base_chooses),
    };
    return cmocka_run_group_tests(tests, begin, scratch_end);
}
