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

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Without the lines of plain products: how many measure the device's limit is a matter of time. */
static void drop_products(char *table)
{
    char *to = table;
    for (char *line = table, *next; *line; line = next) {
        size_t n = strcspn(line, "\n");
        n += line[n] == '\n';
        next = line + n;
        if (strncmp(line, "linear_forward ", 15) == 0)
            continue;
        memmove(to, line, n);
        to += n;
    }
    *to = 0;
}

/* The tables of profiles, sorted; times are 0 here. */
static int64_t profiles(const char *name, char *table[64])
{
    int64_t count = 0;
    char path[1100];
    for (;; count++) {
        snprintf(path, sizeof path, count ? "%s.%d" : "%s", scratch(name), (int)count + 1);
        if (!tm_path_exists(path))
            break;
        assert_true(count < 64);
        table[count] = slurp(path, NULL);
        drop_products(table[count]);
    }
    qsort(table, (size_t)count, sizeof *table, by_text);
    return count;
}

/* Every device has a table of its own, side by side as one after another, and what is there stays. */
static void a_profile_each(void **state)
{
    (void)state;
    if (access(library, R_OK) != 0) {
        print_message("skip: no C++ compiler here, so no %s\n", library);
        skip();
    }
    char *table[2][64];
    int64_t count[2];
    for (int k = 0; k < 2; k++) {
        setenv("TEMPER_CUDA_PROFILE", scratch(k ? "profile-4" : "profile-1"), 1);
        free(sweep_of(k ? "profiled-4" : "profiled-1", k ? 4 : 1));
        unsetenv("TEMPER_CUDA_PROFILE");
        count[k] = profiles(k ? "profile-4" : "profile-1", table[k]);
    }
    assert_in_range(count[0], 8, 63); /* 2 ranks, 2 rates, with and without graphs */
    assert_int_equal(count[1], count[0]);
    for (int64_t i = 0; i < count[0]; i++) {
        assert_non_null(strstr(table[0][i], "us a call"));
        if (strcmp(table[0][i], table[1][i]) != 0)
            fail_msg("profile %d of %d side by side is not one of those one after another (seed %llu):\n%s\n%s", (int)i, (int)count[0], (unsigned long long)seed, table[1][i], table[0][i]);
        free(table[0][i]);
        free(table[1][i]);
    }
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
