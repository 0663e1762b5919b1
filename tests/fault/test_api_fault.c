/* Every command of the library while memory runs out and files cannot be read or written: an error that fits,
 * never a crash or a leak (the sanitizer looks), never a result that looks finished and is not, never a finished
 * checkpoint lost; and what succeeds all the same has the bytes of a run without failures.
 *
 * A command makes thousands of allocations, so failures are sampled: TEST_SEED repeats a choice, FAULT_ALL=1
 * takes every one. */
#include "../support/run.h"

#include "fault.h"
#include "io/checkpoint.h"

enum { STEPS = 4, POINTS = 40 / SPARSE };

static uint64_t seed;
static tm_status last; /* of the operation that is being checked */

static const char *const config =
    "{\"model_type\": \"llama\", \"vocab_size\": 37, \"hidden_size\": 16, \"intermediate_size\": 24, "
    "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
    "\"max_position_embeddings\": 64, \"tie_word_embeddings\": true}";

static const char *const stories = "models/stories260K";

/* --- Training --- */

static char *expected, *got; /* text of a command without failures, and with */
static args training; /* out=run */
static const char *const *beside; /* more of every recipe; NULL: nothing */

static args recipe(const char *out, const char *method)
{
    args a = {0};
    arg(&a, "model=%s", scratch("model"));
    arg(&a, "out=%s", scratch(out));
    arg(&a, "method=%s", method);
    arg(&a, "data.0.path=%s", scratch("rows.jsonl"));
    arg(&a, "data.0.format=tokens");
    arg(&a, "eval.0.path=%s", scratch("held.jsonl"));
    arg(&a, "eval.0.name=held");
    arg(&a, "eval.0.format=tokens");
    arg(&a, "threads=1");
    arg(&a, "train.batch=2");
    arg(&a, "train.steps=%d", STEPS);
    arg(&a, "train.checkpoint_every=1");
    arg(&a, "train.eval_every=2");
    arg(&a, "lora.r=2");
    for (int i = 0; beside && beside[i]; i++)
        arg(&a, "%s", beside[i]);
    return a;
}

static void remove_folder(const char *name) { OK(tm_dir_remove(scratch(name), err)); }

/* The run without failures; then `training` is the same into another folder. */
static void make_reference(const char *method)
{
    remove_folder("run");
    remove_folder("reference");
    args a = recipe("reference", method);
    train(&a);
    args_free(&a);
    training = recipe("run", method);
}

static tm_status run_training(tm_error *err) { return last = try_train(&training, err); }

static int64_t newest_checkpoint(const char *run)
{
    int64_t step;
    char *folder;
    OK(tm_checkpoint_latest(scratch(run), -1, &step, &folder, NULL, err));
    free(folder);
    return step;
}

static void must_be_reference(const char *name, const char *result)
{
    if (!runs_agree(scratch(name), scratch("reference"), result))
        fail_msg("%s is not what it is without failures (seed %llu)", name, (unsigned long long)seed);
}

static bool looks_finished(const char *run)
{
    char path[600];
    snprintf(path, sizeof path, "%s/run.json", scratch(run));
    if (!tm_path_exists(path))
        return false;
    char *status = run_json_text(scratch(run), "status", NULL);
    bool done = strcmp(status, "done") == 0;
    free(status);
    return done;
}

static const char *result_file = "adapter_model.safetensors";

/* A run that says that it is finished is; one that is not goes on by the same command, to the same bytes. */
static void check_training(void)
{
    if (last == TM_OK)
        assert_true(looks_finished("run"));
    if (looks_finished("run"))
        must_be_reference("run", result_file);
    train(&training);
    must_be_reference("run", result_file);
    assert_true(tm_path_exists(scratch("run/report.html")));
    remove_folder("run");
}

static void training_survives(void **state)
{
    (void)state;
    make_reference("lora");
    fault_sample("train", POINTS, seed, run_training, check_training);
    args_free(&training);
}

static void full_training_survives(void **state)
{
    (void)state;
    make_reference("full");
    result_file = "model.safetensors";
    fault_sample("train, full", POINTS, seed, run_training, check_training);
    args_free(&training);
}

static bool stop_second_time(void *context) { return (*(int *)context)++ > 0; }

static void interrupt_after_first_step(void)
{
    tm_error err = {0};
    char *out = NULL;
    int asked = 0;
    tm_callbacks callbacks = {.interrupted = stop_second_time, .context = &asked};
    tm_recipe_source source = {.overrides = training.item, .override_count = training.count};
    assert_int_not_equal(tm_train(&source, &callbacks, &out, &err), TM_OK);
    free(out);
}

static void check_resumed(void)
{
    if (!looks_finished("run"))
        assert_true(newest_checkpoint("run") >= 1);
    check_training();
    interrupt_after_first_step();
    assert_true(newest_checkpoint("run") >= 1);
}

static void averaged_training_survives(void **state)
{
    (void)state;
    static const char *const keeps[] = {"keep.average.kind=ema", "keep.average.every=1", "keep.osf.share=0.4", "keep.wise.scale=0.5", NULL};
    beside = keeps;
    for (int full = 0; full < 2; full++) {
        result_file = full ? "model.safetensors" : "adapter_model.safetensors";
        make_reference(full ? "full" : "lora");
        fault_sample(full ? "train, full, averaged" : "train, averaged", POINTS, seed, run_training, check_training);
        interrupt_after_first_step();
        fault_sample(full ? "resume, full, averaged" : "resume, averaged", POINTS, seed, run_training, check_resumed);
        args_free(&training);
    }
    beside = NULL;
    remove_folder("run");
}

/* EWC measures before it trains; LoRA also has earlier adapters to stay away from. */
static void pulled_training_survives(void **state)
{
    (void)state;
    char old[600], previous[600];
    snprintf(old, sizeof old, "keep.ewc.path=%s", scratch("held.jsonl"));
    snprintf(previous, sizeof previous, "keep.orthogonal.previous=[%s]", scratch("other"));
    for (int full = 0; full < 2; full++) {
        const char *keeps[] = {"keep.ewc.lambda=2", old, "keep.l2sp.lambda=0.1", full ? "keep.ewc.importance=path" : previous, NULL};
        beside = keeps;
        result_file = full ? "model.safetensors" : "adapter_model.safetensors";
        make_reference(full ? "full" : "lora");
        fault_sample(full ? "train, full, pulled" : "train, pulled", POINTS, seed, run_training, check_training);
        args_free(&training);
        beside = NULL;
    }
    remove_folder("run");
}

static tm_status run_fisher(tm_error *err)
{
    args a = recipe("unused", "lora");
    tm_fisher_request request = {.source = {.overrides = a.item, .override_count = a.count}, .out = scratch("new.importances"), .add = scratch("old.importances")};
    last = tm_fisher(&request, NULL, &got, err);
    args_free(&a);
    return last;
}

/* Either the whole file, or none; no text without it. */
static void check_fisher(void)
{
    if (last == TM_OK || tm_path_exists(scratch("new.importances")))
        assert_true(files_agree(scratch_dir, scratch("reference-importances"), "new.importances"));
    assert_true(last == TM_OK || !got);
    free(got);
    got = NULL;
    unlink(scratch("new.importances"));
}

static void measuring_survives(void **state)
{
    (void)state;
    args a = recipe("unused", "lora");
    tm_fisher_request request = {.source = {.overrides = a.item, .override_count = a.count}, .out = scratch("old.importances")};
    OK(tm_fisher(&request, NULL, &got, err));
    free(got);
    OK(run_fisher(err));
    free(got);
    OK(tm_dir_create(scratch("reference-importances"), err));
    OK(tm_path_move(scratch("new.importances"), scratch("reference-importances/new.importances"), err));
    fault_sample("fisher", POINTS, seed, run_fisher, check_fisher);
    args_free(&a);
}

/* What is made before a run: texts of the base, a buffer that it chooses, a mask. */
static void rehearsed_training_survives(void **state)
{
    (void)state;
    static char old[600];
    static const char *const rehearsal[] = {"model=models/stories260K", "keep.generate.samples=3", "keep.generate.max_tokens=6", "keep.generate.fraction=0.2", old, "keep.replay.format=tokens",
                                            "keep.replay.fraction=0.3", "keep.replay.buffer=3", "keep.replay.select=diverse", "keep.stm.threshold=20", NULL};
    snprintf(old, sizeof old, "keep.replay.path=%s", scratch("held.jsonl"));
    beside = rehearsal;
    result_file = "adapter_model.safetensors";
    make_reference("lora");
    fault_sample("train with rehearsal", POINTS, seed, run_training, check_training);
    args_free(&training);
    beside = NULL;
}

static void resuming_survives(void **state)
{
    (void)state;
    result_file = "adapter_model.safetensors";
    make_reference("lora");
    interrupt_after_first_step();
    fault_sample("resume", POINTS, seed, run_training, check_resumed);
    args_free(&training);
    remove_folder("run");
    /* "reference" stays for the tests below. */
}

/* --- What reads --- */

static const char *scored, *scored_metric;

/* A command that gives a text: on success the whole, and otherwise none. */
static void check_text(void)
{
    if (last != TM_OK)
        assert_null(got);
    else if (!expected)
        expected = strdup(got);
    else
        assert_string_equal(expected, got);
    free(got);
    got = NULL;
}

static void text_survives(const char *name, fault_fn operation)
{
    expected = NULL;
    fault_sample(name, POINTS, seed, operation, check_text);
    free(expected);
    expected = NULL;
}

static tm_status run_plan(tm_error *err)
{
    tm_plan_request request = {.source = {.overrides = training.item, .override_count = training.count}, .json = true};
    return last = tm_plan(&request, &got, err);
}

/* What is available changes from call to call. */
static void check_plan(void)
{
    if (last != TM_OK)
        assert_null(got);
    free(got);
    got = NULL;
}

static void planning_survives(void **state)
{
    (void)state;
    training = recipe("run", "lora");
    fault_sample("plan", POINTS, seed, run_plan, check_plan);
    args_free(&training);
}

static tm_status run_advise(tm_error *err)
{
    tm_advise_request request = {.source = {.overrides = training.item, .override_count = training.count}, .json = true};
    return last = tm_advise_recipe(&request, &got, err);
}

static void advising_survives(void **state)
{
    (void)state;
    training = recipe("run", "lora");
    fault_sample("advise", POINTS, seed, run_advise, check_plan);
    args_free(&training);
}

static tm_status run_eval(tm_error *err)
{
    char *arguments[] = {"threads=1", "train.seq=64"};
    tm_eval_request request = {.model = stories, .data = scratch("text.jsonl"), .overrides = arguments, .override_count = 2, .json = true};
    return last = tm_eval(&request, &got, err);
}

static tm_status run_eval_adapter(tm_error *err)
{
    char *arguments[] = {"threads=1", "eval.0.format=tokens"};
    tm_eval_request request = {.model = scratch("model"), .adapter = scratch("reference"), .data = scratch("held.jsonl"),
                               .overrides = arguments, .override_count = 2, .json = true};
    return last = tm_eval(&request, &got, err);
}

/* Choices and generated text; the items too are whole or not there. */
static tm_status run_scores(tm_error *err)
{
    char *arguments[] = {"threads=1", "train.seq=64", "eval.0.max_tokens=3"};
    tm_eval_request request = {.model = stories, .data = scratch(scored), .metric = scored_metric, .items = scratch("items.jsonl"),
                               .overrides = arguments, .override_count = 3, .json = true};
    return last = tm_eval(&request, &got, err);
}

static void check_scores(void)
{
    if (last == TM_OK)
        assert_true(tm_path_exists(scratch("items.jsonl")));
    unlink(scratch("items.jsonl"));
    check_text();
}

static void scores_survive(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {"choice.jsonl", "choice", "{\"prompt\": \"A\", \"choices\": [\"b\", \"c\"], \"answer\": 1}\n"},
        {"sari.jsonl", "sari", "{\"prompt\": \"A\", \"completion\": \"b\", \"references\": [\"x\", \"y\"], \"source\": \"z\"}\n"},
        {"bridge.jsonl", "round_trip", "{\"scene\": \"A\", \"text\": \"b\"}\n"}};
    for (int i = 0; i < 3; i++) {
        scored = cases[i][0];
        scored_metric = cases[i][1];
        OK(tm_file_write(scratch(scored), cases[i][2], strlen(cases[i][2]), err));
        fault_sample(scored_metric, POINTS, seed, run_scores, check_scores);
        free(expected);
        expected = NULL;
    }
}

static void evaluation_survives(void **state)
{
    (void)state;
    text_survives("eval", run_eval);
    text_survives("eval with an adapter", run_eval_adapter);
}

static void collect(void *context, const char *text, size_t size) { tm_buf_add(context, text, size); }

static tm_status run_generate(tm_error *err)
{
    static char room[4096]; /* the text is a test's own, so its memory does not run out */
    tm_buf text = {.data = room, .capacity = sizeof room};
    tm_generate_request request = {.model = stories, .prompt = "Once upon a time", .max_tokens = 4, .temperature = 1,
                                   .top_k = 5, .top_p = 0.9, .threads = 1, .write = collect, .context = &text};
    last = tm_generate(&request, err);
    got = last == TM_OK ? __real_malloc(text.size + 1) : NULL;
    if (got)
        memcpy(got, text.size ? room : "", text.size + 1);
    return last;
}

static void generation_survives(void **state)
{
    (void)state;
    text_survives("generate", run_generate);
}

static tm_status run_compare(tm_error *err)
{
    char *paths[] = {(char *)scratch("reference"), (char *)scratch("other")};
    char *arguments[] = {"threads=1", "data.0.format=tokens"};
    tm_compare_request request = {.paths = paths, .path_count = 2, .data = scratch("held.jsonl"), .json = true,
                                  .overrides = arguments, .override_count = 2};
    return last = tm_compare(&request, &got, err);
}

static void comparing_survives(void **state)
{
    (void)state;
    text_survives("compare", run_compare);
}

static const char *inspected;

static tm_status run_inspect(tm_error *err)
{
    char *arguments[] = {"threads=1", "train.seq=64"};
    bool data = strstr(inspected, ".jsonl") != NULL;
    tm_inspect_request request = {.path = inspected, .model = data ? stories : NULL, .batch = data ? 2 : 0,
                                  .overrides = arguments, .override_count = data ? 2 : 0};
    return last = tm_inspect(&request, &got, err);
}

static void inspecting_survives(void **state)
{
    (void)state;
    static const char *const names[] = {"model", "reference", "text.jsonl"};
    char path[600];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s", scratch(names[i]));
        inspected = path;
        text_survives(names[i], run_inspect);
    }
}

static bool verified_equal;

static tm_status run_verify(tm_error *err)
{
    return last = tm_verify(scratch("reference"), NULL, &verified_equal, &got, err);
}

/* Nothing is left beside the run, and a failure is no verdict. */
static void check_verify(void)
{
    char **names;
    size_t count;
    OK(tm_dir_list(scratch("."), &names, &count, err));
    for (size_t i = 0; i < count; i++)
        if (strstr(names[i], ".verify-")) {
            remove_folder(names[i]);
            assert_int_not_equal(last, TM_OK);
        }
    tm_names_free(names, count);
    if (last == TM_OK && !verified_equal)
        fail_msg("verify took a failure for a difference: %s", got);
    free(got);
    got = NULL;
}

static void verifying_survives(void **state)
{
    (void)state;
    fault_sample("verify", POINTS, seed, run_verify, check_verify);
}

static tm_status run_tokenize(tm_error *err)
{
    static char in[] = "\"Once upon a time\"\n\"b\"\n", out[256];
    FILE *from = fmemopen(in, sizeof in - 1, "r"), *to = fmemopen(out, sizeof out, "w");
    assert_true(from && to);
    tm_tokenize_request request = {.tokenizer = stories, .in = from, .name = "in", .out = to, .add_special = true};
    last = tm_tokenize(&request, err);
    fclose(from);
    fclose(to);
    got = last == TM_OK ? __real_malloc(sizeof out) : NULL;
    if (got)
        memcpy(got, out, sizeof out);
    return last;
}

static void tokenizing_survives(void **state)
{
    (void)state;
    text_survives("tokenize", run_tokenize);
}

static tm_status run_init(tm_error *err) { return last = tm_init(stories, scratch("text.jsonl"), &got, err); }

static void init_survives(void **state)
{
    (void)state;
    text_survives("init", run_init);
}

/* --- Merging --- */

static tm_merge_how merge_how;

static tm_status run_merge(tm_error *err)
{
    tm_merge_source sources[] = {{.path = scratch("reference"), .scale = 0.5}, {.path = scratch("other"), .scale = 1}, {.path = scratch("model"), .scale = 0.5, .model = true}};
    tm_merge_request request = {.model = scratch("model"), .out = scratch("merged"), .sources = sources,
                                .source_count = 3, .threads = 1, .how = merge_how, .density = 0.5};
    return last = tm_merge(&request, &got, err);
}

static void check_merge(void)
{
    if (last == TM_OK || tm_path_exists(scratch("merged"))) {
        assert_true(files_agree(scratch("merged"), scratch("merged-reference"), "model.safetensors"));
        assert_true(files_agree(scratch("merged"), scratch("merged-reference"), "config.json"));
    }
    check_text();
    remove_folder("merged");
}

static void merging_survives(void **state)
{
    (void)state;
    static const tm_merge_how hows[] = {TM_MERGE_SUM, TM_MERGE_TIES, TM_MERGE_DARE};
    for (int i = 0; i < 3; i++) {
        merge_how = hows[i];
        OK(run_merge(err));
        OK(tm_path_move(scratch("merged"), scratch("merged-reference"), err));
        expected = got;
        fault_sample("merge", POINTS, seed, run_merge, check_merge);
        free(expected);
        expected = NULL;
        remove_folder("merged-reference");
    }
}

static int begin(void **state)
{
    fault_begin();
    fault_alone();
    seed = fresh_seed();
    if (memory_begin(state) != 0)
        return -1;
    const char *text = "{\"text\": \"Once upon a time there was a cat.\"}\n{\"text\": \"The end.\"}\n";
    write_model(scratch("model"), config, TM_BF16, 7);
    write_rows(scratch("rows.jsonl"), 12, 4, 12, 37, 0.5, 3);
    write_rows(scratch("held.jsonl"), 3, 4, 12, 37, 0.5, 4);
    OK(tm_file_write(scratch("text.jsonl"), text, strlen(text), err));
    args other = recipe("other", "lora");
    arg(&other, "train.lr=0.01");
    train(&other);
    args_free(&other);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(training_survives),   cmocka_unit_test(full_training_survives),
        cmocka_unit_test(averaged_training_survives), cmocka_unit_test(pulled_training_survives), cmocka_unit_test(measuring_survives),
        cmocka_unit_test(rehearsed_training_survives),
        cmocka_unit_test(resuming_survives),   cmocka_unit_test(planning_survives), cmocka_unit_test(advising_survives),
        cmocka_unit_test(evaluation_survives), cmocka_unit_test(scores_survive), cmocka_unit_test(generation_survives),
        cmocka_unit_test(comparing_survives),  cmocka_unit_test(inspecting_survives),
        cmocka_unit_test(merging_survives),    cmocka_unit_test(verifying_survives),
        cmocka_unit_test(tokenizing_survives), cmocka_unit_test(init_survives)};
    if (argc > 1) /* one of them */
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("commands while things fail", tests, begin, scratch_end);
}
