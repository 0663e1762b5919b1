/* Several runs on one GPU at a time, each with a device of its own in a thread of its own (here on the processor,
 * tests/emulated): the bits of runs one after another. */
#include "../support/run.h"

static uint64_t seed;
static const char *library;

static char *sweep_of(const char *name, int jobs)
{
    args a = {0};
    tm_error err = {0};
    char *text = NULL, out[1100];
    snprintf(out, sizeof out, "%s", scratch(name));
    arg(&a, "model=%s", scratch("model"));
    arg(&a, "data=[{path: %s, format: tokens}]", scratch("rows.jsonl"));
    arg(&a, "eval=[{path: %s, format: tokens}]", scratch("rows.jsonl"));
    arg(&a, "device=cuda");
    arg(&a, "precision=bf16");
    arg(&a, "train.steps=3");
    arg(&a, "train.batch=4");
    arg(&a, "lora.r=2,4");
    arg(&a, "train.lr=1e-2,1e-3");
    arg(&a, "train.graphs=auto,none");
    tm_status st = tm_sweep_recipe(&(tm_sweep_request){.source = {NULL, a.item, (size_t)a.count}, .out = out, .json = true, .jobs = jobs}, NULL, &text, &err);
    if (st != TM_OK)
        fail_msg("%s (seed %llu)", err.message, (unsigned long long)seed);
    free(text);
    args_free(&a);
    return strdup(out);
}

static void side_by_side(void **state)
{
    (void)state;
    if (access(library, R_OK) != 0) {
        print_message("skip: no C++ compiler here, so no %s\n", library);
        skip();
    }
    static const char *const results[] = {"trail.bin", "adapter_model.safetensors", "metrics.jsonl"};
    char path[2][1400];
    char *one = sweep_of("one", 1), *four = sweep_of("four", 4);
    for (int r = 0; r < 2; r++)
        for (int lr = 0; lr < 2; lr++)
            for (int g = 0; g < 2; g++)
                for (size_t f = 0; f < sizeof results / sizeof *results; f++) {
                    size_t size[2];
                    char *data[2];
                    for (int k = 0; k < 2; k++) {
                        snprintf(path[k], sizeof path[k], "%s/r-%d,lr-%s,graphs-%s/%s", k ? four : one, r ? 4 : 2, lr ? "1e-3" : "1e-2", g ? "none" : "auto", results[f]);
                        data[k] = slurp(path[k], &size[k]);
                    }
                    if (size[0] != size[1] || memcmp(data[0], data[1], size[0]) != 0)
                        fail_msg("%s is not %s (seed %llu)", path[1], path[0], (unsigned long long)seed);
                    free(data[0]);
                    free(data[1]);
                }
    free(one);
    free(four);
}

typedef struct tally { /* of all tables: a line is an op and the bytes of its operands */
    struct {
        char op[32];
        long long bytes, calls;
    } line[1024];
    size_t lines;
    int tables;
} tally;

static void add_line(tally *t, const char *op, long long bytes, long long calls)
{
    size_t i = 0;
    while (i < t->lines && (strcmp(t->line[i].op, op) != 0 || t->line[i].bytes != bytes))
        i++;
    assert_true(i < 1024);
    if (i == t->lines) {
        snprintf(t->line[i].op, sizeof t->line[i].op, "%s", op);
        t->line[t->lines++].bytes = bytes;
    }
    t->line[i].calls += calls;
}

/* Of FILE, FILE.2, ...; without plain products: how many measure the device's limit is a matter of time. */
static void read_profiles(const char *name, tally *t)
{
    char path[1100];
    for (;; t->tables++) {
        snprintf(path, sizeof path, t->tables ? "%s.%d" : "%s", scratch(name), t->tables + 1);
        if (!tm_path_exists(path))
            break;
        char *text = slurp(path, NULL), op[32];
        assert_non_null(strstr(text, "us a call"));
        for (const char *line = strchr(text, '\n'); line && line[1]; line = strchr(line + 1, '\n')) {
            long long bytes, calls;
            assert_int_equal(sscanf(line + 1, "%31s %lld %lld", op, &bytes, &calls), 3);
            if (strcmp(op, "linear_forward") != 0)
                add_line(t, op, bytes, calls);
        }
        free(text);
    }
}

/* A table a device, whichever ends first: side by side they have the calls of one after another. */
static void a_profile_each(void **state)
{
    (void)state;
    if (access(library, R_OK) != 0) {
        print_message("skip: no C++ compiler here, so no %s\n", library);
        skip();
    }
    static tally one, four, two;
    tm_device *device[2];
    setenv("TEMPER_CUDA_PROFILE", scratch("profile-2"), 1);
    for (int k = 0; k < 2; k++)
        OK(tm_cuda_device_create(library, 0, &device[k], err));
    for (int k = 0; k < 2; k++)
        tm_device_destroy(device[k]);
    read_profiles("profile-2", &two);
    assert_int_equal(two.tables, 2);
    setenv("TEMPER_CUDA_PROFILE", scratch("profile-1"), 1);
    free(sweep_of("profiled-1", 1));
    setenv("TEMPER_CUDA_PROFILE", scratch("profile-4"), 1);
    free(sweep_of("profiled-4", 4));
    unsetenv("TEMPER_CUDA_PROFILE");
    read_profiles("profile-1", &one);
    read_profiles("profile-4", &four);
    print_message("%d tables one after another, %d side by side\n", one.tables, four.tables);
    assert_true(one.lines > 10 && one.lines == four.lines);
    for (size_t i = 0; i < one.lines; i++)
        add_line(&four, one.line[i].op, one.line[i].bytes, -one.line[i].calls);
    for (size_t i = 0; i < four.lines; i++)
        if (four.line[i].calls)
            fail_msg("%s of %lld bytes: %lld calls more side by side (seed %llu)", four.line[i].op, four.line[i].bytes, four.line[i].calls, (unsigned long long)seed);
}

static int begin(void **state)
{
    setenv("TEMPER_CUDA_LIBRARY", library, 1);
    if (memory_begin(state) != 0)
        return -1;
    write_model(scratch("model"),
                "{\"model_type\": \"llama\", \"vocab_size\": 37, \"hidden_size\": 32, \"intermediate_size\": 48, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
                " \"num_key_value_heads\": 2, \"max_position_embeddings\": 64, \"tie_word_embeddings\": true}",
                TM_F32, seed);
    write_rows(scratch("rows.jsonl"), 12, 4, 30, 37, 0, seed);
    return 0;
}

int main(void)
{
    seed = fresh_seed();
    library = getenv("TEMPER_CUDA_LIBRARY") ? strdup(getenv("TEMPER_CUDA_LIBRARY")) : EMULATED;
    const struct CMUnitTest tests[] = {cmocka_unit_test(side_by_side), cmocka_unit_test(a_profile_each)};
    return cmocka_run_group_tests_name("several runs on a GPU", tests, begin, scratch_end);
}
