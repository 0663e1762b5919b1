/* The laboratory's sequences with a training that is none: a run folder notes what was learned, an evaluation reads it.
 * So R, choices, pairs and what is not done twice are known exactly. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "folder.h"
#include "lab/analysis.h"
#include "lab/sweep.h"

#include <math.h>
#include <stdatomic.h>
#include <unistd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct counts { /* as many threads as there are jobs count */
    atomic_int trained, evaluated, merged, routed;
    int fail_at; /* the training that fails; 0: none */
    int jobs;    /* 0: one */
    atomic_int at_once, most;
    atomic_bool stop;
    size_t done, total;
} counts;

static tm_error error;
static char diverges; /* the data that a rate of 10 or more does not learn, but diverges, of 20 to 30 after the last step; 0: none */

static void must(tm_status st)
{
    if (st != TM_OK)
        fail_msg("%s", error.message);
}

static void near(double found, double expected)
{
    if (!(fabs(found - expected) < 1e-12))
        fail_msg("found %.15g, expected %.15g", found, expected);
}

static void store(const char *path, const char *text) { must(tm_file_write(path, text, strlen(text), &error)); }

static char *slurped(const char *path)
{
    tm_buf text = {0};
    must(tm_file_read(path, 1 << 20, &text, &error));
    return text.data;
}

/* What a model folder has learned: the names of data files, in order, and the rate it was done with. */
static void learned_by(const char *model, char *text, size_t size)
{
    char path[600];
    FILE *file;
    snprintf(path, sizeof path, "%s/config.json", model);
    *text = 0;
    if ((file = fopen(path, "r"))) {
        text[fread(text, 1, size - 1, file)] = 0;
        text[strcspn(text, "\n")] = 0;
        fclose(file);
    }
}

static tm_status spread(void *context, tm_recipe **recipe, size_t count, size_t pieces, tm_lab_spread *out, tm_error *err)
{
    counts *n = context;
    (void)err;
    assert_true(pieces > 0);
    for (size_t i = 0; i < count; i++)
        tm_recipe_destroy(recipe[i]);
    *out = (tm_lab_spread){.jobs = n->jobs ? n->jobs : 1, .device = "none"};
    return TM_OK;
}

static void progress(void *context, size_t done, size_t total)
{
    counts *n = context;
    assert_true(done <= total && done > n->done);
    n->done = done;
    n->total = total;
}

static bool stopped(void *context) { return atomic_load(&((counts *)context)->stop); }
static void stop(void *context) { atomic_store(&((counts *)context)->stop, true); }

static tm_status train_one(counts *n, tm_recipe *r, tm_error *err);

/* Notes how many are under way; the first of several jobs waits for the second, so that there are two at a time. */
static tm_status train(void *context, tm_recipe *r, tm_error *err)
{
    counts *n = context;
    int now = ++n->at_once, most = n->most;
    while (now > most && !atomic_compare_exchange_weak(&n->most, &most, now))
        ;
    for (int ms = 0; n->jobs > 1 && n->most < 2 && ms < 60000; ms++)
        usleep(1000); /* until another one came in */
    tm_status st = train_one(n, r, err);
    --n->at_once;
    return st;
}

static tm_status train_one(counts *n, tm_recipe *r, tm_error *err)
{
    char path[600], text[600], before[300], name[300];
    tm_sha256 hash;
    snprintf(path, sizeof path, "%s/run.json", r->out);
    if (tm_path_exists(path)) {
        char *was = slurped(path);
        bool diverged = strstr(was, "diverged") != NULL;
        free(was);
        tm_recipe_destroy(r);
        return diverged ? tm_fail(err, TM_DIVERGED, "it diverged before") : TM_OK;
    }
    if (++n->trained == n->fail_at) {
        tm_recipe_destroy(r);
        return tm_fail(err, TM_FAILED, "interrupted");
    }
    must(tm_dir_create(r->out, err));
    for (int64_t i = 0; i < r->data_count; i++)
        if (r->lr >= 10 && r->lr < 20 && strrchr(r->data[i].path, '/')[1] == diverges) {
            store(path, "{\"status\": \"diverged\", \"steps_done\": 4, \"evals\": [{\"name\": \"x\", \"metric\": \"accuracy\", \"probe\": false, \"first\": 0, \"last\": 1}]}");
            tm_recipe_destroy(r);
            return tm_fail(err, TM_DIVERGED, "step 5: training diverged");
        }
    learned_by(r->model, before, sizeof before);
    size_t at = (size_t)snprintf(text, sizeof text, "%s", before);
    for (int64_t i = 0; i < r->data_count; i++) {
        snprintf(name, sizeof name, "%s", strrchr(r->data[i].path, '/') + 1);
        at += (size_t)snprintf(text + at, sizeof text - at, "%c", name[0]);
    }
    snprintf(text + at, sizeof text - at, "\n%g %lld", r->lr, (long long)r->seed);
    snprintf(path, sizeof path, "%s/config.json", r->out);
    store(path, text);
    snprintf(path, sizeof path, "%s/config.json", r->model);
    must(tm_sha256_bytes(text, strlen(text), &hash, err));
    snprintf(path, sizeof path, "%s/adapter_config.json", r->out);
    if (r->method == TM_METHOD_LORA)
        store(path, "{\"peft_type\": \"LORA\"}");
    snprintf(text, sizeof text, "{\"status\": \"done\", \"steps_done\": 7, \"sha256\": {\"result\": \"%s\"}, \"evals\": [{\"name\": \"x\", \"metric\": \"accuracy\", \"probe\": false, \"first\": 0, \"last\": %g}]}", hash.hex,
             -fabs(r->lr - 0.01));
    snprintf(path, sizeof path, "%s/run.json", r->out);
    store(path, text);
    tm_recipe_destroy(r);
    return TM_OK;
}

/* 0.9 learned last, 0.5 before, 0.1 never; less 0.01 a unit of the rate's distance from 1. */
static tm_status evaluate(void *context, tm_recipe *r, const char *start, double *values, tm_error *err)
{
    counts *n = context;
    (void)start;
    (void)err;
    char learned[300], path[600];
    double rate = 1;
    const char *model = r->lora_init ? r->lora_init : r->model;
    n->evaluated++;
    assert_int_equal(r->data_count, 0);
    assert_true(r->method == (r->lora_init ? TM_METHOD_LORA : TM_METHOD_NONE));
    learned_by(model, learned, sizeof learned);
    snprintf(path, sizeof path, "%s/config.json", model);
    FILE *file = fopen(path, "r");
    if (file) {
        if (fscanf(file, "%*s %lf", &rate) != 1)
            fail_msg("%s: %s", path, learned);
        fclose(file);
    }
    for (int64_t i = 0; i < r->eval_count; i++) {
        char task = strrchr(r->eval[i].data.path, '/')[1];
        size_t length = strlen(learned);
        values[i] = (length && learned[length - 1] == task ? 0.9 : strchr(learned, task) ? 0.5 : 0.1) - 0.01 * fabs(rate - 1);
        if (rate >= 20 && rate < 30 && length && learned[length - 1] == diverges)
            values[i] = NAN;
    }
    tm_recipe_destroy(r);
    return TM_OK;
}

static tm_status merge(void *context, const char *model, const char *adapter, const char *out, tm_error *err)
{
    counts *n = context;
    char text[300], path[600];
    (void)model;
    n->merged++;
    must(tm_dir_create(out, err));
    learned_by(adapter, text, sizeof text);
    snprintf(path, sizeof path, "%s/config.json", out);
    store(path, text);
    return TM_OK;
}

static tm_status route(void *context, const tm_lab_routing *routing, double *scores, int64_t *confusion, tm_error *err)
{
    counts *n = context;
    n->routed++;
    for (size_t t = 0; t <= routing->tasks; t++) {
        tm_recipe *r;
        must(routing->recipe_of(routing->owner, t, &r, err));
        assert_int_equal(r->eval_count, routing->tasks);
        assert_int_equal(r->data_count, t == routing->tasks ? 4 : 0); /* the tasks' entries: 1, 2, 1 */
        assert_int_equal(r->lora_init != NULL, t < routing->tasks && t + 'a' != (size_t)diverges); /* the start model in place of that one's */
        tm_recipe_destroy(r);
    }
    assert_true(routing->entries[0] == 1 && routing->entries[1] == 2 && routing->entries[2] == 1);
    assert_int_equal(routing->sets, 5); /* b, bc, abc; a, ab */
    for (size_t k = 0; k < routing->sets; k++)
        for (size_t t = 0; t < routing->tasks; t++) {
            scores[k * routing->tasks + t] = (double)routing->known[k] + 0.2 + 0.1 * (double)t;
            int64_t *row = confusion + (k * routing->tasks + t) * routing->tasks;
            row[(t + 1) % routing->tasks] = 1 + (int64_t)t;
            row[t] = routing->known[k] == 7 ? 10 : 0;
        }
    return TM_OK;
}

static counts counted;
static const tm_lab_calls calls = {.context = &counted, .train = train, .evaluate = evaluate, .merge = merge, .route = route,
                                   .spread = spread, .progress = progress, .stopped = stopped, .stop = stop};

/* Three tasks a, b (of two files), c. */
static void write_file(const char *more)
{
    char text[4000], dir[300];
    static const char *const files[] = {"a.jsonl", "b.jsonl", "b2.jsonl", "c.jsonl"};
    snprintf(dir, sizeof dir, "%s", scratch("."));
    must(tm_dir_create(scratch("model"), &error));
    for (int i = 0; i < 4; i++)
        store(scratch(files[i]), files[i]);
    snprintf(text, sizeof text,
             "recipe: {model: %s/model, method: full, train: {lr: 1}}\ntasks:\n"
             "  - {name: a, train: %s/a.jsonl, test: {path: %s/a.jsonl, metric: accuracy}, valid: {path: %s/a.jsonl, metric: accuracy}}\n"
             "  - {name: b, train: [%s/b.jsonl, %s/b2.jsonl], test: {path: %s/b.jsonl, metric: accuracy}, valid: {path: %s/b.jsonl, metric: accuracy}}\n"
             "  - {name: c, train: %s/c.jsonl, test: {path: %s/c.jsonl, metric: accuracy}, valid: {path: %s/c.jsonl, metric: accuracy}}\n%s",
             dir, dir, dir, dir, dir, dir, dir, dir, dir, dir, dir, more);
    store(scratch("s.yaml"), text);
}

static int jobs; /* of the next runs */

static void run(tm_sequence_file *file, tm_sequence_result *result)
{
    counted = (counts){.jobs = jobs};
    must(tm_sequence_file_open(scratch("s.yaml"), NULL, 0, file, &error));
    must(tm_sequence_run(file, NULL, 0, scratch("out"), &calls, result, &error));
}

static void matrix(void **state)
{
    (void)state;
    tm_sequence_file f;
    tm_sequence_result result;
    write_file("orders: [[a, b, c], [c, a, b]]\nseeds: 2\narms:\n  - {name: naive}\n  - {name: joint, joint: true}\n  - {name: frozen, frozen: true}\n");
    run(&f, &result);
    assert_int_equal(counted.trained, 2 * 2 * 3 + 2);
    assert_int_equal(counted.evaluated, 1 + 2 * 2 * 3 + 2); /* the start once */
    assert_int_equal(result.arm[0].chains, 4);
    for (size_t i = 0; i < 4; i++) {
        const tm_lab_chain *c = &result.arm[0].chain[i];
        assert_int_equal(c->order, i / 2);
        assert_int_equal(c->seed, 1 + i % 2);
        for (size_t row = 0; row <= 3; row++)
            for (size_t j = 0; j < 3; j++)
                near(c->r[row * 3 + j], row == 0 || j >= row ? 0.1 : j + 1 == row ? 0.9 : 0.5);
        near(c->metrics.average, (0.5 + 0.5 + 0.9) / 3);
        near(c->metrics.learned, 0.9);
        near(c->metrics.bwt, -0.4);
        near(c->metrics.fwt, 0);
        near(c->metrics.forgetting, 0.4);
    }
    near(result.arm[1].chain[0].metrics.average, (0.5 + 0.5 + 0.9) / 3);
    assert_true(isnan(result.arm[1].chain[0].r[3]) && isnan(result.arm[1].chain[0].metrics.bwt));
    assert_int_equal(result.arm[2].chains, 1);
    near(result.arm[2].chain[0].metrics.average, 0.1);
    tm_analysis a;
    must(tm_analysis_of(&f, &result, &a, &error));
    near(a.arm[2].against[TM_SEQ_average].difference.mean, 0.1 - 1.9 / 3);
    near(a.arm[0].summary[TM_SEQ_average].sd, 0);
    assert_true(a.arm[0].front && !a.arm[1].front);
    assert_int_equal(a.arm[0].summary[TM_SEQ_average].n, 2);
    tm_analysis_deinit(&a);
    tm_sequence_result_deinit(&result, &f);
    tm_sequence_file_close(&f);
    run(&f, &result); /* nothing is done twice */
    assert_int_equal(counted.trained + counted.evaluated, 0);
    tm_sequence_result_deinit(&result, &f);
    tm_sequence_file_close(&f);
    store(scratch("c.jsonl"), "other"); /* a changed test is scored again, nothing else is */
    run(&f, &result);
    assert_int_equal(counted.trained, 0);
    assert_int_equal(counted.evaluated, 1 + 2 * 2 * 3 + 2);
    tm_sequence_result_deinit(&result, &f);
    tm_sequence_file_close(&f);
    must(tm_dir_remove(scratch("out"), &error));
}

/* Interrupted at any training, it goes on with the rest. */
static void resumes(void **state)
{
    (void)state;
    tm_sequence_file f;
    tm_sequence_result result;
    write_file("arms:\n  - {name: naive, set: {method: lora}}\n");
    for (int at = 1; at <= 3; at++) {
        counted = (counts){.fail_at = at};
        must(tm_sequence_file_open(scratch("s.yaml"), NULL, 0, &f, &error));
        assert_int_equal(tm_sequence_run(&f, NULL, 0, scratch("out"), &calls, &result, &error), TM_FAILED);
        assert_non_null(strstr(error.message, "interrupted"));
        tm_sequence_result_deinit(&result, &f);
        tm_sequence_file_close(&f);
        run(&f, &result);
        assert_int_equal(counted.trained, 3 - (at - 1));
        near(result.arm[0].chain[0].metrics.bwt, -0.4);
        assert_int_equal(counted.merged, at == 1 ? 2 : at == 2 ? 1 : 0); /* a merge before the training that failed is there */
        tm_sequence_result_deinit(&result, &f);
        tm_sequence_file_close(&f);
        must(tm_dir_remove(scratch("out"), &error));
    }
}

static void chooses_on_validation(void **state)
{
    (void)state;
    tm_sequence_file f;
    tm_sequence_result result;
    write_file("orders: 2\nselect_seeds: [7, 8]\narms:\n  - {name: naive, grid: {train.lr: [3, 1, 2]}}\n  - {name: other, grid: {train.lr: [5], train.batch: [1, 2, 4]}}\n");
    run(&f, &result);
    assert_int_equal(f.warnings.count, 0);
    assert_int_equal(counted.trained, 3 * (3 * 2 + 2) * 2); /* configurations by select seeds in one order; orders by seeds */
    assert_int_equal(result.arm[0].chosen, 1);
    assert_int_equal(result.arm[1].chosen, 0); /* the first of equals */
    near(result.arm[0].config[0].metrics.learned, 0.9 - 0.02);
    near(result.arm[0].config[1].metrics.learned, 0.9);
    near(result.arm[0].chain[0].metrics.learned, 0.9);
    assert_string_equal(result.arm[1].config[1].settings.item[1], "train.batch=2");
    tm_analysis a;
    must(tm_analysis_of(&f, &result, &a, &error));
    near(a.matched_learned, 0.9 - 0.04); /* what the second reaches */
    near(a.arm[0].matched, 0.4);
    tm_analysis_deinit(&a);
    tm_sequence_result_deinit(&result, &f);
    tm_sequence_file_close(&f);
    must(tm_dir_remove(scratch("out"), &error));
}

static void separate_modules(void **state)
{
    (void)state;
    tm_sequence_file f;
    tm_sequence_result result;
    write_file("orders: [[b, c, a], [a, b, c]]\narms:\n  - {name: naive, between: separate, set: {method: lora}}\n");
    run(&f, &result);
    assert_int_equal(counted.trained, 3);
    assert_int_equal(counted.merged, 0);
    assert_int_equal(counted.routed, 1); /* for both orders */
    const tm_lab_chain *c = &result.arm[0].chain[0];
    for (size_t row = 0; row <= 3; row++)
        for (size_t j = 0; j < 3; j++)
            near(c->r[row * 3 + j], j < row ? 0.9 : 0.1);
    near(c->metrics.forgetting, 0);
    static const double known[2][3] = {{2, 6, 7}, {1, 3, 7}}, by_task[2][3] = {{0.3, 0.4, 0.2}, {0.2, 0.3, 0.4}}; /* b, c, a; a, b, c */
    for (size_t o = 0; o < 2; o++)
        for (size_t k = 0; k < 3; k++)
            for (size_t j = 0; j < 3; j++)
                near(result.arm[0].chain[o].routed[k * 3 + j], known[o][k] + by_task[o][j]);
    assert_int_equal(c->confusion[0 * 3 + 0], 10);
    assert_int_equal(c->confusion[0 * 3 + 1], 2); /* b -> c */
    assert_int_equal(c->confusion[1 * 3 + 2], 3); /* c -> a */
    assert_int_equal(c->confusion[2 * 3 + 0], 1); /* a -> b */
    tm_sequence_result_deinit(&result, &f);
    tm_sequence_file_close(&f);
    must(tm_dir_remove(scratch("out"), &error));
}

static void sweeps(void **state)
{
    (void)state;
    tm_buf json = {0}, table = {0};
    char model[400], data[400], eval[400], out[300];
    snprintf(model, sizeof model, "model=%s", scratch("model"));
    snprintf(data, sizeof data, "data=%s", scratch("a.jsonl"));
    snprintf(eval, sizeof eval, "eval=[{name: x, path: %s, metric: accuracy}]", scratch("a.jsonl"));
    snprintf(out, sizeof out, "%s", scratch("swept"));
    char *arguments[] = {model, data, eval, "train.lr=1,0.01,0.1"};
    tm_sweep sweep = {.out = out};
    counted = (counts){0};
    must(tm_sweep_arguments(&sweep, arguments, 4, &error));
    assert_int_equal(sweep.fixed.count, 3);
    must(tm_sweep_run(&sweep, &calls, &json, &table, &error));
    assert_int_equal(counted.trained, 3);
    const char *first = strstr(tm_buf_str(&json), "lr-0.01\", \"settings\""), *second = strstr(tm_buf_str(&json), "lr-0.1\", \"settings\""), *third = strstr(tm_buf_str(&json), "lr-1\", \"settings\"");
    assert_true(first && first < second && second < third);
    tm_buf_deinit(&json);
    tm_buf_deinit(&table);
    tm_sweep_deinit(&sweep);
    /* What diverged comes last, though its last evaluation was the best of all; the others go on, at once and again. */
    char *rates[] = {model, data, eval, "train.lr=11,1,12,0.1"}, *all[] = {model, data, eval, "train.lr=11,12"};
    diverges = 'a';
    for (int again = 0; again < 2; again++) {
        sweep = (tm_sweep){.out = out};
        counted = (counts){.jobs = again ? 1 : 3};
        must(tm_sweep_arguments(&sweep, rates, 4, &error));
        must(tm_sweep_run(&sweep, &calls, &json, &table, &error));
        assert_int_equal(counted.trained, again ? 0 : 2); /* 1 and 0.1 are there */
        assert_int_equal(counted.done, 4);
        assert_non_null(strstr(tm_buf_str(&json), "lr-0.1\",\n \"runs\""));
        assert_non_null(strstr(tm_buf_str(&json), "\"status\": \"done\", \"first\": 0, \"last\": -0.99},\n"));
        assert_non_null(strstr(tm_buf_str(&json), "lr-12\", \"settings\": [\"train.lr=12\"], \"status\": \"diverged\", \"first\": 0, \"last\": null}]"));
        assert_non_null(strstr(tm_buf_str(&table), "  diverged\n12 "));
        tm_buf_deinit(&json);
        tm_buf_deinit(&table);
        tm_sweep_deinit(&sweep);
    }
    sweep = (tm_sweep){.out = out};
    counted = (counts){0};
    must(tm_sweep_arguments(&sweep, all, 4, &error));
    assert_int_equal(tm_sweep_run(&sweep, &calls, &json, &table, &error), TM_DIVERGED);
    assert_non_null(strstr(error.message, "swept: training diverged with all"));
    tm_buf_deinit(&json);
    tm_buf_deinit(&table);
    tm_sweep_deinit(&sweep);
    diverges = 0;
}

/* results.json and summary.json of a sequence, as one text. */
static char *results_of(const tm_sequence_file *f, const tm_sequence_result *result)
{
    tm_buf out = {0};
    tm_analysis a;
    must(tm_analysis_of(f, result, &a, &error));
    must(tm_sequence_results(f, result, &a, false, &out, &error));
    must(tm_sequence_results(f, result, &a, true, &out, &error));
    tm_analysis_deinit(&a);
    return out.data;
}

static const char all_kinds[] = "orders: 2\nseeds: 3\n%s\narms:\n  - {name: naive, grid: {train.lr: [3, 1, 2]}}\n  - {name: lora, set: {method: lora}, grid: {train.lr: [1, 2, 3]}}\n"
                                "  - {name: joint, joint: true, grid: {train.lr: [1, 2, 3]}}\n  - {name: frozen, frozen: true}\n";

static void write_kinds(const char *more)
{
    char text[1000];
    snprintf(text, sizeof text, all_kinds, more);
    write_file(text);
}

/* One at a time, many at a time, and with runs that go: the same bytes; what is done is not done again, whether its runs are there or not. */
static void side_by_side(void **state)
{
    (void)state;
    static const char *const kept[] = {"", "runs: last", "runs: drop"};
    tm_sequence_file f;
    tm_sequence_result result;
    char *first = NULL;
    for (int k = 0; k < 3; k++)
        for (jobs = 1; jobs <= 7; jobs += 3) {
            write_kinds(kept[k]);
            for (int again = 0; again < 2; again++) {
                run(&f, &result);
                char *text = results_of(&f, &result);
                if (!first)
                    first = text;
                else {
                    assert_string_equal(text, first);
                    free(text);
                }
                assert_int_equal(counted.trained, again ? 0 : 2 * 3 * (3 + 2 * 3) + 3 + 3);
                assert_int_equal(counted.done, 2 * 3 * (3 + 2 * 3) + 3 + 3);
                assert_int_equal(counted.total, counted.done);
                assert_true(counted.most <= jobs && (again || (counted.most > 1) == (jobs > 1)));
                tm_sequence_result_deinit(&result, &f);
                tm_sequence_file_close(&f);
            }
            assert_int_equal(tm_path_exists(scratch("out/naive/order-1/seed-1/1-a/run.json")), k == 0);
            assert_int_equal(tm_path_exists(scratch("out/naive/order-1/seed-1/3-c/run.json")), k < 2);
            assert_int_equal(tm_path_exists(scratch("out/lora/order-1/seed-1/2-b/merged")), k < 2);
            must(tm_dir_remove(scratch("out"), &error));
        }
    jobs = 0;
    free(first);
}

/* An error ends all, in order, and names its chain; what was done by then is not done again. */
static void one_fails(void **state)
{
    (void)state;
    tm_sequence_file f;
    tm_sequence_result result;
    const char *where;
    for (int at = 1; at <= 60; at += 7) {
        write_kinds("runs: drop");
        counted = (counts){.jobs = 4, .fail_at = at};
        must(tm_sequence_file_open(scratch("s.yaml"), NULL, 0, &f, &error));
        assert_int_equal(tm_sequence_run(&f, NULL, 0, scratch("out"), &calls, &result, &error), TM_FAILED);
        assert_true((where = strstr(error.message, "/out/")) && strstr(where, "seed-") && strstr(where, ": interrupted"));
        int trained = counted.trained - 1;
        tm_sequence_result_deinit(&result, &f);
        tm_sequence_file_close(&f);
        run(&f, &result);
        assert_int_equal(counted.trained + trained, 60);
        tm_sequence_result_deinit(&result, &f);
        tm_sequence_file_close(&f);
        must(tm_dir_remove(scratch("out"), &error));
    }
}

/* What is asked to end before it begins: nothing is trained. */
static void asked_to_end(void **state)
{
    (void)state;
    tm_sequence_file f;
    tm_sequence_result result;
    write_kinds("");
    counted = (counts){.stop = true};
    must(tm_sequence_file_open(scratch("s.yaml"), NULL, 0, &f, &error));
    assert_int_equal(tm_sequence_run(&f, NULL, 0, scratch("out"), &calls, &result, &error), TM_FAILED);
    assert_string_equal(error.message, "interrupted; the same command goes on");
    assert_int_equal(counted.trained, 0);
    tm_sequence_result_deinit(&result, &f);
    tm_sequence_file_close(&f);
    must(tm_dir_remove(scratch("out"), &error));
}

/* The file of a chain: of another test set or not whole it is none; where runs are gone, another one is no leave to begin anew; and nothing that a person put
 * beside runs is removed. */
static void chain_files(void **state)
{
    (void)state;
    tm_sequence_file f;
    tm_sequence_result result;
    write_file("runs: drop\narms:\n  - {name: naive}\n");
    must(tm_dir_create(scratch("out/naive/order-1/seed-1/2-b/merged"), &error));
    store(scratch("out/naive/order-1/seed-1/2-b/merged/thesis.txt"), "mine");
    store(scratch("out/naive/order-1/seed-1/2-b/learned"), "mine too");
    run(&f, &result);
    tm_sequence_result_deinit(&result, &f);
    tm_sequence_file_close(&f);
    assert_true(tm_path_exists(scratch("out/naive/order-1/seed-1/2-b/merged/thesis.txt")));
    assert_true(tm_path_exists(scratch("out/naive/order-1/seed-1/2-b/learned")));
    assert_false(tm_path_exists(scratch("out/naive/order-1/seed-1/2-b/run.json")));
    char *whole = slurped(scratch("out/naive/order-1/seed-1/chain.json")), broken[2000];
    snprintf(broken, sizeof broken, "%.*s\"chains\": []}", (int)(strstr(whole, "\"chains\"") - whole), whole); /* the key, and no chain */
    store(scratch("out/naive/order-1/seed-1/chain.json"), broken);
    run(&f, &result);
    assert_int_equal(counted.trained, 3);
    near(result.arm[0].chain[0].metrics.bwt, -0.4);
    tm_sequence_result_deinit(&result, &f);
    tm_sequence_file_close(&f);
    char *again = slurped(scratch("out/naive/order-1/seed-1/chain.json"));
    assert_string_equal(again, whole);
    free(again);
    free(whole);
    store(scratch("c.jsonl"), "changed");
    counted = (counts){0};
    must(tm_sequence_file_open(scratch("s.yaml"), NULL, 0, &f, &error));
    assert_int_equal(tm_sequence_run(&f, NULL, 0, scratch("out"), &calls, &result, &error), TM_LOCKED);
    assert_non_null(strstr(error.message, "chain.json: is of another sequence"));
    assert_int_equal(counted.trained, 0);
    tm_sequence_result_deinit(&result, &f);
    tm_sequence_file_close(&f);
    must(tm_dir_remove(scratch("out"), &error));
}

/* summary.json: by the file's tasks, means over orders. */
static void summary(void **state)
{
    (void)state;
    tm_sequence_file f;
    tm_sequence_result result;
    tm_analysis a;
    tm_buf out = {0};
    write_file("orders: [[a, b, c], [c, a, b]]\nseeds: 2\narms:\n  - {name: naive}\n  - {name: joint, joint: true}\n");
    run(&f, &result);
    must(tm_analysis_of(&f, &result, &a, &error));
    must(tm_sequence_results(&f, &result, &a, true, &out, &error));
    assert_null(strstr(out.data, "\"chains\""));
    assert_non_null(strstr(out.data, "{\"seed\": 2, \"learned\": [0.9, 0.9, 0.9], \"last\": [0.5, 0.7, 0.7], \"probes\": []}"));
    assert_non_null(strstr(out.data, "[[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.5, 0.9, 0.1], [0.5, 0.5, 0.9]],\n    [[0.1, 0.1, 0.1], [0.9"));
    assert_non_null(strstr(out.data, "{\"seed\": 1, \"last\": [0.5, 0.5, 0.9]"));
    assert_non_null(strstr(out.data, "[[0.1, 0.1, 0.1], [null, null, null], [null, null, null], [0.5, 0.5, 0.9]]"));
    tm_buf_deinit(&out);
    tm_analysis_deinit(&a);
    tm_sequence_result_deinit(&result, &f);
    tm_sequence_file_close(&f);
    must(tm_dir_remove(scratch("out"), &error));
}

/* --- A training that diverges --- */

static const char diverging[] = "orders: [[a, b, c], [b, c, a]]\nseeds: 2\nprobes:\n  - {name: old, path: %s/a.jsonl, metric: accuracy}\n%s\narms:\n  - {name: naive, set: {train: {lr: 11}}}\n"
                                "  - {name: lora, set: {method: lora, train: {lr: 11}}}\n  - {name: apart, between: separate, set: {method: lora, train: {lr: 11}}}\n"
                                "  - {name: joint, joint: true, set: {train: {lr: 11}}}\n  - {name: calm}\n";

static void write_diverging(const char *more)
{
    char text[2000], dir[300];
    snprintf(dir, sizeof dir, "%s", scratch("."));
    snprintf(text, sizeof text, diverging, dir, more);
    write_file(text);
}

/* Rows [4, 3] of a chain of order 1 or 2 whose training on b diverged: by an arm of one chain of models, of separate modules, of all at once. */
static double expected(int kind, size_t order, size_t row, size_t j)
{
    static const char *const names[2] = {"abc", "bca"};
    char task = names[order][j];
    if (kind == 0) /* of abc the first was learned, of bca none */
        return order == 0 && row >= 1 && task == 'a' ? 0.8 : row >= 1 && order == 0 ? 0.0 : 0.1;
    if (kind == 1)
        return row > j && task != 'b' ? 0.8 : 0.1;
    return row == 0 || row == 3 ? 0.1 : NAN;
}

/* A chain keeps the model it had, in every kind of arm; what others learned is not touched. */
static void check_diverged(const tm_sequence_file *f, const tm_sequence_result *result)
{
    static const int kinds[] = {0, 0, 1, 2};
    for (size_t a = 0; a < 4; a++) {
        assert_int_equal(tm_lab_diverged(&result->arm[a], 3), result->arm[a].chains);
        for (size_t i = 0; i < result->arm[a].chains; i++) {
            const tm_lab_chain *c = &result->arm[a].chain[i];
            for (size_t t = 0; t < 3; t++)
                assert_int_equal(c->diverged[t], t == 1 || kinds[a] == 2 ? 5 : -1);
            for (size_t row = 0; row <= 3; row++) {
                for (size_t j = 0; j < 3; j++) {
                    double value = expected(kinds[a], c->order, row, j);
                    if (isnan(value))
                        assert_true(isnan(c->r[row * 3 + j]));
                    else
                        near(c->r[row * 3 + j], value);
                }
                double probe = kinds[a] == 2 && row % 3 ? NAN : kinds[a] == 0 && c->order == 0 && row ? 0.8 : 0.1;
                if (isnan(probe))
                    assert_true(isnan(c->probe[row]));
                else
                    near(c->probe[row], probe);
            }
        }
    }
    assert_int_equal(tm_lab_diverged(&result->arm[4], 3), 0);
    near(result->arm[4].chain[0].metrics.learned, 0.9);
    (void)f;
}

/* So with any number of jobs and whatever stays of the runs; nothing is trained twice, and every training is counted. */
static void diverging_chains(void **state)
{
    (void)state;
    static const char *const kept[] = {"", "runs: last", "runs: drop"};
    tm_sequence_file f;
    tm_sequence_result result;
    char *first = NULL;
    const int learns = 2 * (2 + 1) * 2 + 3 * 2 + 2 + 2 * 2 * 3; /* naive and lora: a, then b fails; b fails */
    diverges = 'b';
    for (int k = 0; k < 3; k++)
        for (jobs = 1; jobs <= 4; jobs += 3) {
            write_diverging(kept[k]);
            for (int again = 0; again < 3; again++) {
                run(&f, &result);
                check_diverged(&f, &result);
                char *text = results_of(&f, &result);
                if (!first)
                    first = text;
                else {
                    assert_string_equal(text, first);
                    free(text);
                }
                assert_int_equal(counted.trained, again == 0 ? learns : 0);
                assert_int_equal(counted.done, 3 * 2 * 2 * 2 + 3 * 2 + 2 + 2 * 2 * 3);
                assert_int_equal(counted.total, counted.done);
                tm_sequence_result_deinit(&result, &f);
                tm_sequence_file_close(&f);
                if (again == 1 && k == 0) /* killed before it was noted: the runs say it */
                    must(tm_dir_remove(scratch("out/apart/seed-1/chain.json"), &error));
                if (again == 1 && k == 0)
                    must(tm_dir_remove(scratch("out/naive/order-2/seed-1/chain.json"), &error));
            }
            assert_int_equal(tm_path_exists(scratch("out/naive/order-1/seed-1/1-a/run.json")), k < 2); /* what the chain ends with */
            assert_int_equal(tm_path_exists(scratch("out/naive/order-1/seed-1/2-b/run.json")), k == 0);
            assert_false(tm_path_exists(scratch("out/naive/order-1/seed-1/3-c")));
            must(tm_dir_remove(scratch("out"), &error));
        }
    assert_non_null(strstr(first, "\"old_data\": false, \"diverged\": 4,"));
    assert_non_null(strstr(first, "{\"order\": 2, \"seed\": 1, \"diverged\": {\"b\": 5}, "));
    assert_non_null(strstr(first, "{\"order\": 1, \"seed\": 2, \"diverged\": {\"a\": 5, \"b\": 5, \"c\": 5}, "));
    jobs = 0;
    free(first);
    diverges = 'c'; /* what a chain ends with, and the base of its adapter */
    write_diverging("runs: last");
    run(&f, &result);
    tm_sequence_result_deinit(&result, &f);
    tm_sequence_file_close(&f);
    assert_true(tm_path_exists(scratch("out/lora/order-1/seed-1/1-a/merged")) && !tm_path_exists(scratch("out/lora/order-1/seed-1/1-a/run.json")));
    assert_true(tm_path_exists(scratch("out/lora/order-1/seed-1/2-b/run.json")) && !tm_path_exists(scratch("out/lora/order-1/seed-1/3-c")));
    must(tm_dir_remove(scratch("out"), &error));
    diverges = 0;
}

/* What its scores alone show to have diverged, at once and when they are read again. */
static void diverged_at_the_end(void **state)
{
    (void)state;
    tm_sequence_file f;
    tm_sequence_result result;
    char *first = NULL;
    diverges = 'b';
    write_file("arms:\n  - {name: naive, set: {train: {lr: 20}}}\n  - {name: apart, between: separate, set: {method: lora, train: {lr: 20}}}\n  - {name: joint, joint: true, set: {train: {lr: 20}}}\n"
               "orders: [[a, c, b], [b, a, c]]\n");
    for (int again = 0; again < 2; again++) {
        run(&f, &result);
        assert_int_equal(counted.trained, again ? 0 : 3 + 1 + 3 + 1);
        assert_true(counted.done == counted.total && counted.total == 2 * 3 + 3 + 1);
        for (size_t a = 0; a < 2; a++)
            for (size_t o = 0; o < 2; o++) {
                const tm_lab_chain *c = &result.arm[a].chain[o];
                assert_true(c->diverged[0] == -1 && c->diverged[1] == 8 && c->diverged[2] == -1);
                for (size_t j = 0; j < 3; j++)
                    near(c->r[3 * 3 + j], a == 1 ? (j == 2 - 2 * o ? 0.1 : 0.71) : o ? 0.1 : (const double[]){0.31, 0.71, 0.1 - 0.19}[j]);
            }
        assert_int_equal(result.arm[2].chain[0].diverged[0], -1); /* what is learned last is c: it is well */
        char *text = results_of(&f, &result);
        if (first)
            assert_string_equal(text, first);
        free(first);
        first = text;
        tm_sequence_result_deinit(&result, &f);
        tm_sequence_file_close(&f);
        if (!again) {
            must(tm_dir_remove(scratch("out/apart/seed-1/chain.json"), &error));
            must(tm_dir_remove(scratch("out/naive/order-1/seed-1/chain.json"), &error));
        }
    }
    free(first);
    must(tm_dir_remove(scratch("out"), &error));
    diverges = 0;
}

/* A configuration that diverges counts with the scores it has, and loses; where none does nothing is said. */
static void diverging_choice(void **state)
{
    (void)state;
    tm_sequence_file f;
    tm_sequence_result result;
    tm_analysis a;
    tm_buf table = {0};
    diverges = 'b';
    write_file("select_seeds: [7, 8]\narms:\n  - {name: naive, grid: {train.lr: [11, 3, 12]}}\n  - {name: bad, grid: {train.lr: [12, 11]}}\n"
               "  - {name: costly, grid: {train.lr: [11, 95, 96]}}\n");
    run(&f, &result);
    assert_int_equal(result.arm[0].chosen, 1);
    assert_int_equal(result.arm[0].config[0].diverged, 2);
    assert_int_equal(result.arm[0].config[1].diverged, 0);
    near(result.arm[0].chain[0].metrics.learned, 0.9 - 0.02);
    near(result.arm[0].config[0].metrics.average, (0.8 + 0.0 + 0.0) / 3);
    assert_int_equal(result.arm[1].chosen, 1); /* all diverge: the best of what they had */
    assert_true(result.arm[2].config[0].metrics.average > result.arm[2].config[1].metrics.average); /* who learned nothing lost nothing, */
    assert_int_equal(result.arm[2].chosen, 1);                                                       /* and is not taken for it */
    char *text = results_of(&f, &result);
    assert_non_null(strstr(text, "\"diverged\": 2, \"chosen\": false}"));
    assert_non_null(strstr(text, "\"old_data\": false,\n"));
    assert_non_null(strstr(text, "\"old_data\": false, \"diverged\": 1,\n"));
    free(text);
    must(tm_analysis_of(&f, &result, &a, &error));
    near(a.matched_learned, 0.9 - 0.94); /* what costly reaches with 95; bad has no configuration that counts */
    near(a.arm[0].matched, 0.4);
    near(a.arm[2].matched, 0.4);
    assert_true(isnan(a.arm[1].matched));
    must(tm_sequence_table(&f, &result, &a, &table, &error));
    assert_non_null(strstr(table.data, "bad: training diverged in 1 of 1 chains"));
    assert_null(strstr(table.data, "naive: training diverged"));
    tm_buf_deinit(&table);
    tm_analysis_deinit(&a);
    tm_sequence_result_deinit(&result, &f);
    tm_sequence_file_close(&f);
    must(tm_dir_remove(scratch("out"), &error));
    diverges = 0;
}

/* In memory where that is possible: what is synced takes time on a disk. */
static int begin(void **state)
{
    if (access("/dev/shm", W_OK) != 0)
        return scratch_begin(state);
    strcpy(scratch_dir, "/dev/shm/temper-test-XXXXXX");
    return mkdtemp(scratch_dir) ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(matrix), cmocka_unit_test(resumes), cmocka_unit_test(chooses_on_validation), cmocka_unit_test(separate_modules), cmocka_unit_test(sweeps), cmocka_unit_test(side_by_side), cmocka_unit_test(one_fails),
                                       cmocka_unit_test(asked_to_end), cmocka_unit_test(chain_files), cmocka_unit_test(summary), cmocka_unit_test(diverging_chains), cmocka_unit_test(diverged_at_the_end), cmocka_unit_test(diverging_choice)};
    return cmocka_run_group_tests_name("sequences and sweeps", tests, begin, scratch_end);
}
