/* Sequences and sweeps while memory runs out and files cannot be read or written: an error that fits, nothing that looks
 * finished and is not; and what comes of a second try has the bytes of one without failures. */
#include "../support/run.h"

#include "fault.h"
#include "lab/sequence_file.h"
#include "report/sequence.h"

enum { POINTS = 24 };

static uint64_t seed;
static char *reference; /* results.json without failures */

static const char *const config =
    "{\"model_type\": \"llama\", \"vocab_size\": 37, \"hidden_size\": 16, \"intermediate_size\": 24, "
    "\"num_hidden_layers\": 1, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
    "\"max_position_embeddings\": 64, \"tie_word_embeddings\": true}";

static void must(tm_status st, const tm_error *err)
{
    if (st != TM_OK)
        fail_msg("%s", err->message);
}

static void store(const char *name, const char *text)
{
    FILE *file = fopen(scratch(name), "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void write_sequence(void)
{
    char text[4000], paths[6][256];
    static const char *const names[] = {"model", "a.jsonl", "b.jsonl", "a.jsonl", "b.jsonl", "a.jsonl"};
    for (int i = 0; i < 6; i++)
        snprintf(paths[i], sizeof paths[i], "%s", scratch(names[i]));
    snprintf(text, sizeof text,
             "recipe: {model: %s, threads: 1, cache: none, lora: {r: 2, dropout: 0}, train: {steps: 1, batch: 1, checkpoint_every: 0, eval_every: 100}}\n"
             "tasks:\n  - {name: a, train: {path: %s, format: tokens}, test: {path: %s, format: tokens}, valid: {path: %s, format: tokens}}\n"
             "  - {name: b, train: {path: %s, format: tokens}, test: {path: %s, format: tokens}, valid: {path: %s, format: tokens}}\n"
             "orders: [[b, a]]\nseeds: [3]\n"
             "arms:\n  - {name: naive, grid: {train.lr: [1e-3, 1e-2]}}\n  - {name: replay, replay: previous}\n  - {name: frozen, frozen: true}\n"
             "  - {name: large, set: {train: {lr: 1e30, optimizer: sgd, steps: 3, warmup_steps: 0}}}\n", /* diverges */
             paths[0], paths[1], paths[2], paths[1], paths[2], paths[1], paths[2]);
    store("s.yaml", text);
}

static tm_status read_sequence(tm_error *err)
{
    tm_sequence_file file;
    tm_status st = tm_sequence_file_open(scratch("s.yaml"), NULL, 0, &file, err);
    tm_sequence_file_close(&file);
    return st;
}

static void reading(void **state)
{
    (void)state;
    fault_sample("sequence file", 300, seed, read_sequence, NULL);
}

static tm_status run_sequence(tm_error *err)
{
    char *text = NULL, path[256], out[256];
    snprintf(path, sizeof path, "%s", scratch("s.yaml"));
    snprintf(out, sizeof out, "%s", scratch("out"));
    tm_status st = tm_sequence(&(tm_sequence_request){.path = path, .out = out}, NULL, &text, err);
    if (st != TM_OK && text)
        fail_msg("a text beside a failure");
    free(text);
    return st;
}

/* results.json is whole or not there; then everything but some runs is taken away, so that the next try has work. */
static void check_results(void)
{
    char path[300];
    size_t size;
    snprintf(path, sizeof path, "%s", scratch("out/results.json"));
    if (access(path, F_OK) == 0) {
        char *found = slurp(path, &size);
        if (strcmp(found, reference) != 0)
            fail_msg("results.json is not what it is without failures (seed %llu)", (unsigned long long)seed);
        free(found);
        unlink(path);
        tm_error err;
        assert_int_equal(tm_dir_remove(scratch("out"), &err), TM_OK);
    }
}

static void running(void **state)
{
    (void)state;
    tm_error err;
    size_t size;
    must(run_sequence(&err), &err);
    reference = slurp(scratch("out/results.json"), &size);
    assert_non_null(strstr(reference, "\"diverged\": {\"b\": "));
    assert_int_equal(tm_dir_remove(scratch("out"), &err), TM_OK);
    fault_sample("sequence", POINTS, seed + 1, run_sequence, check_results);
    must(run_sequence(&err), &err);
}

static tm_status write_page(tm_error *err) { return tm_sequence_report_write(scratch("out"), err); }

static void page(void **state)
{
    (void)state;
    fault_sweep("page of a sequence", FAULT_CALLS | FAULT_ALLOCS, write_page, NULL);
}

/* A results.json of something else gives a page or an error, never a crash. */
static void damaged_results(void **state)
{
    (void)state;
    tm_error err;
    static const char *const texts[] = {"{}", "{\"arms\": 3, \"tasks\": [1]}", "{\"arms\": [1, {}], \"tasks\": [{}], \"orders\": [[1, \"x\"]], \"warnings\": [2]}",
                                        ("{\"arms\": [{\"kind\": \"sequence\", \"summary\": {\"learned\": {\"mean\": 1e308}, \"forgetting\": {\"mean\": -1e308}}, \"chains\": [{\"order\": 1, \"R\": 5}]}], "
                                        "\"orders\": [[\"<b>\"]]}")};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        size_t size;
        store("out/results.json", texts[i]);
        must(write_page(&err), &err);
        char *text = slurp(scratch("out/report.html"), &size);
        assert_null(strstr(text, "<b>\""));
        assert_non_null(strstr(text, "</html>"));
        free(text);
    }
    store("out/results.json", "{");
    assert_int_equal(write_page(&err), TM_INPUT);
}

static tm_status run_sweep(tm_error *err)
{
    char *text = NULL, held[300], data[300], model[300], out[256];
    snprintf(model, sizeof model, "model=%s", scratch("model"));
    snprintf(data, sizeof data, "data=[{path: %s, format: tokens}]", scratch("a.jsonl"));
    snprintf(held, sizeof held, "eval=[{path: %s, format: tokens}]", scratch("b.jsonl"));
    snprintf(out, sizeof out, "%s", scratch("swept"));
    char *arguments[] = {model, data, held, "threads=1", "cache=none", "train.steps=1", "train.checkpoint_every=0", "lora.r=1,2"};
    tm_status st = tm_sweep_recipe(&(tm_sweep_request){.source = {NULL, arguments, 8}, .out = out}, NULL, &text, err);
    if (st != TM_OK && text)
        fail_msg("a text beside a failure");
    free(text);
    tm_error ignored;
    if (st == TM_OK)
        assert_int_equal(tm_dir_remove(out, &ignored), TM_OK);
    return st;
}

static void sweeping(void **state)
{
    (void)state;
    fault_sample("sweep", POINTS, seed + 2, run_sweep, NULL);
}

static int begin(void **state)
{
    fault_begin();
    fault_alone();
    seed = fresh_seed();
    if (memory_begin(state) != 0)
        return -1;
    write_model(scratch("model"), config, TM_F32, 7);
    write_rows(scratch("a.jsonl"), 3, 4, 8, 37, 0, 3);
    write_rows(scratch("b.jsonl"), 3, 4, 8, 37, 0.5, 4);
    write_sequence();
    return 0;
}

static int end(void **state)
{
    free(reference);
    return scratch_end(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(reading), cmocka_unit_test(running), cmocka_unit_test(page), cmocka_unit_test(damaged_results), cmocka_unit_test(sweeping)};
    return cmocka_run_group_tests_name("the laboratory while things fail", tests, begin, end);
}
