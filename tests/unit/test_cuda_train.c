/* Whole runs on the CUDA device, here on the processor (tests/emulated): the bits of the CPU device, with graphs and
 * without, in one micro-batch or several. On a GPU: make test-cuda, with TEMPER_CUDA_LIBRARY naming another library. */
#include "../support/run.h"

static uint64_t seed;
static const char *library;

/* On a GPU large enough for the tensor cores; on the processor as small as the plain kernels allow. */
static void put_model(const char *dir)
{
    char config[1024];
    bool large = getenv("TEMPER_CUDA_LIBRARY") != NULL && strcmp(getenv("TEMPER_CUDA_LIBRARY"), EMULATED) != 0;
    int width = large ? 256 : 32, heads = 4, ffn = large ? 512 : 48;
    snprintf(config, sizeof config,
             "{\"model_type\": \"qwen2\", \"architectures\": [\"Qwen2ForCausalLM\"], \"hidden_size\": %d, \"intermediate_size\": %d, \"num_hidden_layers\": 5,"
             " \"num_attention_heads\": %d, \"num_key_value_heads\": 2, \"vocab_size\": 96, \"max_position_embeddings\": 256, \"rms_norm_eps\": 1e-6,"
             " \"rope_theta\": 10000.0, \"hidden_act\": \"silu\", \"tie_word_embeddings\": true, \"bos_token_id\": 1, \"eos_token_id\": 2}",
             width, ffn, heads);
    write_model(dir, config, TM_F32, seed);
}

static void put_rows(const char *path, dice *d)
{
    FILE *f = fopen(path, "w");
    for (int i = 0; i < 24; i++) {
        int64_t n = dice_in(d, 2, 60);
        fprintf(f, "{\"input_ids\": [1");
        for (int64_t k = 1; k < n; k++)
            fprintf(f, ", %d", (int)dice_in(d, 3, 95));
        fprintf(f, "]}\n");
    }
    fclose(f);
}

static void recipe_of(args *out, const char *name, const char *device, const char *precision, const char *method, const char *extra)
{
    args a = {0};
    arg(&a, "model=%s", scratch("model"));
    arg(&a, "out=%s", scratch(name));
    arg(&a, "data.0.path=%s", scratch("rows.jsonl"));
    arg(&a, "data.0.format=tokens");
    arg(&a, "device=%s", device);
    arg(&a, "precision=%s", precision);
    arg(&a, "method=%s", method);
    arg(&a, "train.steps=3");
    arg(&a, "train.lr=1e-2");
    for (const char *end; *extra; extra = *end ? end + 1 : end) {
        end = strchr(extra, ' ') ? strchr(extra, ' ') : extra + strlen(extra);
        arg(&a, "%.*s", (int)(end - extra), extra);
    }
    *out = a;
}

/* What a run leaves: the trail of its weights. */
static char *run_of(const char *device, const char *precision, const char *method, const char *extra, size_t *size)
{
    args a;
    char name[64], path[1100];
    static int runs;
    snprintf(name, sizeof name, "run%d", runs++);
    recipe_of(&a, name, device, precision, method, extra);
    train(&a);
    args_free(&a);
    snprintf(path, sizeof path, "%s/trail.bin", scratch(name));
    return slurp(path, size);
}

static const char *const methods[] = {"lora", "bitfit", "prompt", "full"};
static const char *const layouts[] = {"train.batch=6 train.graphs=auto", "train.batch=6 train.graphs=none", "train.batch=6 train.micro_tokens=130", "train.batch=6 train.micro_tokens=64",
                                      "train.batch=3 train.accumulate=2", "train.batch=6 train.packing=false", "train.batch=6 train.recompute=full",
                                      "train.batch=6 train.recompute=full train.offload=activations"};

static void begin(void)
{
    if (access(library, R_OK) != 0)
        skip(); /* no C++ compiler here */
    setenv("TEMPER_CUDA_LIBRARY", library, 1);
    dice d = {tm_philox_key(seed, TM_PURPOSE_INIT, 0, 0), 0};
    put_model(scratch("model"));
    put_rows(scratch("rows.jsonl"), &d);
}

static void compare(const char *want, size_t want_size, const char *precision, const char *method, const char *layout)
{
    size_t size;
    char *got = run_of("cuda", precision, method, layout, &size);
    if (size != want_size || memcmp(got, want, size) != 0)
        fail_msg("%s in %s, %s: other weights (seed %llu)", method, precision, layout, (unsigned long long)seed);
    free(got);
}

/* f32: the bits of the CPU, whatever the layout. */
static void bits_of_the_cpu(void **state)
{
    (void)state;
    begin();
    for (size_t m = 0; m < 4; m++) {
        size_t size;
        char *want = run_of("cpu", "f32", methods[m], "train.batch=6", &size);
        for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
            compare(want, size, "f32", methods[m], layouts[i]);
        free(want);
    }
}

/* bf16: the same bits in every layout where the base is frozen; full fine-tuning has them for the same layout. */
static void bits_of_a_layout(void **state)
{
    (void)state;
    begin();
    for (size_t m = 0; m < 4; m++) {
        size_t size;
        char *want = run_of("cuda", "bf16", methods[m], layouts[0], &size);
        for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
            if (strcmp(methods[m], "full") != 0 || i < 2 || i > 5)
                compare(want, size, "bf16", methods[m], layouts[i]);
        free(want);
    }
}

/* Weights in bf16, rounded at random by key: the same bits again, recomputed or not. */
static void half_masters(void **state)
{
    (void)state;
    begin();
    size_t size;
    char *want = run_of("cuda", "bf16", "full", "train.batch=6 train.master=bf16", &size);
    compare(want, size, "bf16", "full", "train.batch=6 train.master=bf16");
    compare(want, size, "bf16", "full", "train.batch=6 train.master=bf16 train.recompute=full");
    free(want);
}

/* A run is not continued on another kind of device, nor full fine-tuning on a GPU in other micro-batches. */
static void runs_stay_where_they_are(void **state)
{
    (void)state;
    begin();
    static const char *const begun[][3] = {{"cpu", "lora", "train.batch=6 train.micro_tokens=64"}, {"cuda", "full", "train.batch=6 train.micro_tokens=64"}};
    static const char *const then[][2] = {{"cuda", "train.batch=6 train.micro_tokens=64"}, {"cuda", "train.batch=6 train.micro_tokens=130"}};
    static const char *const says[] = {"device is \"cuda\", the run there has \"cpu\"", "train.micro_tokens is 130"};
    for (int i = 0; i < 2; i++) {
        args a, b;
        tm_error problem;
        char name[32];
        snprintf(name, sizeof name, "stays%d", i);
        recipe_of(&a, name, begun[i][0], "f32", begun[i][1], begun[i][2]);
        recipe_of(&b, name, then[i][0], "f32", begun[i][1], then[i][1]);
        train(&a);
        assert_int_equal(try_train(&b, &problem), TM_LOCKED);
        if (!strstr(problem.message, says[i]))
            fail_msg("%s", problem.message);
        args_free(&a);
        args_free(&b);
    }
}

static void devices_are_named(void **state)
{
    (void)state;
    tm_device *d = NULL;
    tm_error err;
    char why[512] = "";
    assert_int_equal(tm_device_open("tpu", 1, &d, NULL, &err), TM_RECIPE);
    assert_non_null(strstr(err.message, "expected auto, cpu, cuda or cuda:N"));
    assert_int_equal(tm_device_open("cuda:x", 1, &d, NULL, &err), TM_RECIPE);
    setenv("TEMPER_CUDA_LIBRARY", "/nowhere/libtemper-cuda.so", 1);
    assert_int_equal(tm_device_open("cuda:0", 1, &d, NULL, &err), TM_UNSUPPORTED);
    assert_non_null(strstr(err.message, "libtemper-cuda.so"));
    setenv("TEMPER_DEVICE", "cpu", 1);
    assert_int_equal(tm_device_open("auto", 1, &d, why, &err), TM_OK);
    assert_string_equal(d->name, "cpu");
    assert_string_equal(why, "");
    tm_device_destroy(d);
    unsetenv("TEMPER_CUDA_LIBRARY");
    unsetenv("TEMPER_DEVICE");
}

int main(void)
{
    seed = fresh_seed();
    library = getenv("TEMPER_CUDA_LIBRARY") ? strdup(getenv("TEMPER_CUDA_LIBRARY")) : EMULATED;
    const struct CMUnitTest tests[] = {cmocka_unit_test(bits_of_the_cpu), cmocka_unit_test(bits_of_a_layout), cmocka_unit_test(half_masters), cmocka_unit_test(runs_stay_where_they_are), cmocka_unit_test(devices_are_named)};
    return cmocka_run_group_tests(tests, memory_begin, scratch_end);
}
