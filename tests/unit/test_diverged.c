/* A training whose numbers end is said to have diverged, and is not begun again. Rates of 1e30: the products of such weights are beyond f32,
 * whatever the gradients were. */
#include "../support/run.h"

#include <sys/stat.h>

static uint64_t seed;

static const char config[] = "{\"model_type\": \"llama\", \"vocab_size\": 31, \"hidden_size\": 16, \"intermediate_size\": 24, \"num_hidden_layers\": 2, \"num_attention_heads\": 2, "
                             "\"num_key_value_heads\": 1, \"head_dim\": 8, \"max_position_embeddings\": 64, \"tie_word_embeddings\": true}";

static args recipe(const char *out, const char *method, const char *more)
{
    args a = {0};
    arg(&a, "model=%s", scratch("model"));
    arg(&a, "method=%s", method);
    arg(&a, "out=%s", scratch(out));
    arg(&a, "data.0.path=%s", scratch("rows.jsonl"));
    arg(&a, "data.0.format=tokens");
    arg(&a, "threads=1");
    arg(&a, "train.steps=6");
    arg(&a, "train.batch=4");
    arg(&a, "train.lr=1e30");
    arg(&a, "train.warmup_steps=0");
    arg(&a, "train.schedule=constant");
    arg(&a, "train.seed=%llu", (unsigned long long)(seed >> 1));
    if (more)
        arg(&a, "%s", more);
    return a;
}

static bool counted(void *context)
{
    ++*(int *)context;
    return false;
}

/* In every optimiser, of adapters and of whole models, and with checkpoints on the way. */
static void is_an_outcome(void **state)
{
    (void)state;
    static const char *const ways[][2] = {{"lora", "train.optimizer=sgd"}, {"lora", NULL}, {"full", "train.optimizer=sgd"}, {"full", "train.checkpoint_every=1"}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        args a = recipe("run", ways[i][0], ways[i][1]);
        tm_error problem;
        struct stat before, after;
        int steps = 0;
        assert_int_equal(try_train(&a, &problem), TM_DIVERGED);
        assert_non_null(strstr(problem.message, "training diverged; try a lower train.lr"));
        int64_t done = run_json_integer(scratch("run"), "steps_done");
        char said[64], *status = run_json_text(scratch("run"), "status", NULL);
        assert_string_equal(status, "diverged");
        free(status);
        assert_true(done >= 1 && done < 6); /* the first step's loss is the model's own */
        snprintf(said, sizeof said, "step %lld: ", (long long)done + 1);
        assert_true(strncmp(problem.message, said, strlen(said)) == 0);
        size_t size;
        char *text = slurp(scratch("run/run.json"), &size), *page = slurp(scratch("run/report.html"), &size);
        assert_non_null(strstr(text, problem.message));
        assert_non_null(strstr(page, "training diverged"));
        free(text);
        free(page);
        /* The same command again: the same answer, and no step. */
        char *out = NULL;
        tm_recipe_source source = {.overrides = a.item, .override_count = a.count};
        tm_callbacks callbacks = {.interrupted = counted, .context = &steps};
        assert_int_equal(stat(scratch("run/run.json"), &before), 0);
        FAILS(TM_DIVERGED, "this run diverged before", tm_train(&source, &callbacks, &out, err));
        free(out);
        assert_int_equal(stat(scratch("run/run.json"), &after), 0);
        assert_true(steps == 0 && before.st_mtim.tv_nsec == after.st_mtim.tv_nsec && before.st_ino == after.st_ino);
        bool equal;
        FAILS(TM_INPUT, "this run diverged", tm_verify(scratch("run"), NULL, &equal, &text, err));
        args_free(&a);
        OK(tm_dir_remove(scratch("run"), err));
    }
    assert_int_equal(tm_status_exit_code(TM_DIVERGED), 1);
}

/* Of what such a step left nothing can be measured. */
static void has_no_importances(void **state)
{
    (void)state;
    args a = recipe("broken", "full", "train.optimizer=sgd"), b = recipe("unused", "full", NULL);
    arg(&a, "train.steps=1");
    train(&a);
    arg(&b, "model=%s", scratch("broken"));
    tm_fisher_request request = {.source = {.overrides = b.item, .override_count = b.count}, .out = scratch("none.st")};
    char *text = NULL;
    FAILS(TM_DIVERGED, "", tm_fisher(&request, NULL, &text, err));
    assert_false(tm_path_exists(scratch("none.st")));
    args_free(&a);
    args_free(&b);
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state) != 0)
        return -1;
    write_model(scratch("model"), config, TM_F32, seed);
    write_rows(scratch("rows.jsonl"), 24, 4, 20, 31, 0.2, seed + 1);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(is_an_outcome), cmocka_unit_test(has_no_importances)};
    return cmocka_run_group_tests_name("trainings that diverge", tests, begin, scratch_end);
}
