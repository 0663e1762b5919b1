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
#include <stdio.h>
#include <string.h>

typedef struct counts {
    int trained, evaluated, merged, routed;
    int fail_at; /* the training that fails; 0: none */
} counts;

static tm_error error;

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

/* What a model folder has learned: the names of data files, in order, and the rate it was done with. */
static void learned_by(const char *model, char *text, size_t size)
{
    char path[600];
    FILE *file;
    snprintf(path, sizeof path, "%s/learned", model);
    *text = 0;
    if ((file = fopen(path, "r"))) {
        text[fread(text, 1, size - 1, file)] = 0;
        text[strcspn(text, "\n")] = 0;
        fclose(file);
    }
}

static tm_status train(void *context, tm_recipe *r, tm_error *err)
{
    counts *n = context;
    char path[600], text[600], before[300], name[300];
    tm_sha256 hash;
    snprintf(path, sizeof path, "%s/run.json", r->out);
    if (tm_path_exists(path)) {
        tm_recipe_destroy(r);
        return TM_OK;
    }
    if (++n->trained == n->fail_at) {
        tm_recipe_destroy(r);
        return tm_fail(err, TM_FAILED, "interrupted");
    }
    must(tm_dir_create(r->out, err));
    learned_by(r->model, before, sizeof before);
    size_t at = (size_t)snprintf(text, sizeof text, "%s", before);
    for (int64_t i = 0; i < r->data_count; i++) {
        snprintf(name, sizeof name, "%s", strrchr(r->data[i].path, '/') + 1);
        at += (size_t)snprintf(text + at, sizeof text - at, "%c", name[0]);
    }
    snprintf(text + at, sizeof text - at, "\n%g %lld", r->lr, (long long)r->seed);
    snprintf(path, sizeof path, "%s/learned", r->out);
    store(path, text);
    snprintf(path, sizeof path, "%s/learned", r->model);
    must(tm_sha256_bytes(text, strlen(text), &hash, err));
    snprintf(path, sizeof path, "%s/adapter_config.json", r->out);
    if (r->method == TM_METHOD_LORA)
        store(path, "{\"peft_type\": \"LORA\"}");
    snprintf(text, sizeof text, "{\"status\": \"done\", \"sha256\": {\"result\": \"%s\"}, \"evals\": [{\"name\": \"x\", \"metric\": \"accuracy\", \"probe\": false, \"first\": 0, \"last\": %g}]}", hash.hex,
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
    snprintf(path, sizeof path, "%s/learned", model);
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
    snprintf(path, sizeof path, "%s/learned", out);
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
        assert_int_equal(r->lora_init != NULL, t < routing->tasks);
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
static const tm_lab_calls calls = {.context = &counted, .train = train, .evaluate = evaluate, .merge = merge, .route = route};

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

static void run(tm_sequence_file *file, tm_sequence_result *result)
{
    counted = (counts){0};
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
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(matrix), cmocka_unit_test(resumes), cmocka_unit_test(chooses_on_validation), cmocka_unit_test(separate_modules), cmocka_unit_test(sweeps)};
    return cmocka_run_group_tests_name("sequences and sweeps", tests, scratch_begin, scratch_end);
}
