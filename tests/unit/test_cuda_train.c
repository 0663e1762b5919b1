/* Whole runs on the CUDA device, here on the processor (tests/emulated): the bits of the CPU device, with graphs and
 * without, in one micro-batch or several. On a GPU: make test-cuda, with TEMPER_CUDA_LIBRARY naming another library. */
#include "../support/run.h"
#include "io/hf.h"
#include "train/trail.h"

static uint64_t seed;
static const char *library;

/* On a GPU large enough for the tensor cores; on the processor as small as the plain kernels allow, or the emulated
 * tensor cores (`fast`). */
static void put_model(const char *dir, bool fast)
{
    char config[1024];
    bool large = strcmp(library, EMULATED) != 0;
    int width = fast ? 128 : large ? 256 : 32, heads = fast ? 2 : 4, ffn = fast ? 128 : large ? 512 : 48;
    snprintf(config, sizeof config,
             "{\"model_type\": \"qwen2\", \"architectures\": [\"Qwen2ForCausalLM\"], \"hidden_size\": %d, \"intermediate_size\": %d, \"num_hidden_layers\": %d,"
             " \"num_attention_heads\": %d, \"num_key_value_heads\": 2, \"vocab_size\": 96, \"max_position_embeddings\": 256, \"rms_norm_eps\": 1e-6,"
             " \"rope_theta\": 10000.0, \"hidden_act\": \"silu\", \"tie_word_embeddings\": true, \"bos_token_id\": 1, \"eos_token_id\": 2}",
             width, ffn, fast ? 2 : 5, heads);
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

static int runs;

/* The folder of the last run_of; overwritten by the next call. */
static const char *last_run(void)
{
    static char name[64];
    snprintf(name, sizeof name, "run%d", runs - 1);
    return name;
}

/* What a run leaves: the trail of its weights. */
static char *run_of(const char *device, const char *precision, const char *method, const char *extra, size_t *size)
{
    args a;
    char name[64], path[1100];
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
    put_model(scratch("model"), false);
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
    for (size_t m = 0; m < 4; m += SPARSE) {
        size_t size;
        char *want = run_of("cpu", "f32", methods[m], "train.batch=6", &size);
        for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i += SPARSE)
            compare(want, size, "f32", methods[m], layouts[i]);
        free(want);
    }
}

/* Methods that change what is trained, or what is saved: the bits of the CPU too. */
static void bits_of_what_is_kept(void **state)
{
    (void)state;
    static const char *const keeps[] = {"train.batch=6 keep.osf.share=0.4 keep.average.kind=ema keep.average.every=1 keep.average.decay=0.5 keep.wise.scale=0.5",
                                        "train.batch=6 keep.osf.share=0.7 keep.average.kind=lookahead keep.average.every=2"};
    begin();
    for (size_t m = 0; m < 4; m += 3)
        for (size_t i = 0; i < 2; i++) {
            size_t size;
            char first[64], *want = run_of("cpu", "f32", methods[m], keeps[i], &size);
            snprintf(first, sizeof first, "%s", last_run());
            compare(want, size, "f32", methods[m], keeps[i]);
            if (!files_agree(scratch(first), scratch(last_run()), m ? model_file() : adapter_file()))
                fail_msg("%s, %s: another result (seed %llu)", methods[m], keeps[i], (unsigned long long)seed);
            free(want);
            free(run_of("cuda", "bf16", methods[m], keeps[i], &size));
        }
}

/* bf16: the same bits in every layout where the base is frozen; full fine-tuning has them for the same layout. */
static void bits_of_a_layout(void **state)
{
    (void)state;
    begin();
    for (size_t m = 0; m < 4; m += SPARSE) {
        size_t size;
        char *want = run_of("cuda", "bf16", methods[m], layouts[0], &size);
        for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i += SPARSE)
            if (strcmp(methods[m], "full") != 0 || i < 2 || i > 5)
                compare(want, size, "bf16", methods[m], layouts[i]);
        free(want);
    }
}

/* --- f16 --- */

/* Step rows of a run's metrics.jsonl: row i of step step[i]. Returns how many. */
enum { MOST_ROWS = 64 };
typedef struct step_row {
    int64_t step;
    double loss; /* NaN: null */
    bool skipped;
} step_row;

static int64_t step_rows(const char *name, step_row row[MOST_ROWS])
{
    char path[1100], *line;
    size_t size;
    int64_t n = 0;
    snprintf(path, sizeof path, "%s/metrics.jsonl", scratch(name));
    char *text = slurp(path, &size);
    for (char *at = text; (line = strsep(&at, "\n"));) {
        const char *value = strstr(line, "\"loss\": ");
        if (!value || strstr(line, "\"eval\""))
            continue;
        assert_true(n < MOST_ROWS);
        row[n++] = (step_row){strtoll(strstr(line, "\"step\": ") + 8, NULL, 10), strncmp(value + 8, "null", 4) == 0 ? NAN : strtod(value + 8, NULL),
                              strstr(line, "\"skipped\": true") != NULL};
    }
    free(text);
    return n;
}

/* Under a loss scale: the layouts' bits, and losses as in f32. */
static void f16_as_bf16(void **state)
{
    (void)state;
    begin();
    for (size_t m = 0; m < 4; m += 3) {
        size_t size;
        step_row single[MOST_ROWS], half[MOST_ROWS];
        free(run_of("cuda", "f32", methods[m], "train.batch=6", &size));
        int64_t n = step_rows(last_run(), single);
        char *want = run_of("cuda", "f16", methods[m], layouts[0], &size);
        assert_int_equal(step_rows(last_run(), half), n);
        for (int64_t i = 0; i < n; i++)
            if (half[i].skipped || !(fabs(half[i].loss - single[i].loss) <= 1e-2 * single[i].loss))
                fail_msg("%s: the loss of step %lld is %.6f in f16%s, %.6f in f32 (seed %llu)", methods[m], (long long)i + 1, half[i].loss,
                         half[i].skipped ? " (skipped)" : "", single[i].loss, (unsigned long long)seed);
        for (size_t i = 1; i < sizeof layouts / sizeof *layouts; i += 2)
            if (strcmp(methods[m], "full") != 0 || i < 2 || i > 5)
                compare(want, size, "f16", methods[m], layouts[i]);
        free(want);
    }
}

typedef struct ending {
    int steps_left;
} ending;

static bool time_to_end(void *context) { return ((ending *)context)->steps_left-- == 0; }

static void train_some(const args *a, int steps)
{
    ending end = {steps};
    tm_callbacks callbacks = {.interrupted = time_to_end, .context = &end};
    tm_recipe_source source = {.overrides = a->item, .override_count = a->count};
    char *out = NULL;
    FAILS(TM_FAILED, "interrupted", tm_train(&source, &callbacks, &out, err));
    free(out);
}

/* A scale that overflows: steps are skipped, change no weight and are counted, until it fits. Killed and resumed: the same. */
static void f16_skips_and_recovers(void **state)
{
    (void)state;
    begin();
    static const char *const kinds[] = {"lora", "full"};
    static const char *const options = "train.batch=3 train.steps=18 train.loss_scale=67108864 train.log_every=7 train.checkpoint_every=3";
    for (int m = 0; m < 2; m++) {
        step_row row[MOST_ROWS];
        size_t size;
        char whole[64], path[1100];
        free(run_of("cuda", "f16", kinds[m], options, &size));
        snprintf(whole, sizeof whole, "%s", last_run());
        int64_t n = step_rows(whole, row), skipped = 0;
        tm_trail trail;
        snprintf(path, sizeof path, "%s/trail.bin", scratch(whole));
        OK(tm_trail_open(path, &trail, err));
        assert_int_equal(trail.steps, 18);
        size_t record = 8 * (1 + (size_t)trail.tensors.count);
        for (int64_t i = 0; i < n; i++) {
            skipped += row[i].skipped;
            assert_true(row[i].skipped || row[i].step % 7 == 0 || row[i].step == 18);
            if (row[i].step < 2)
                continue;
            const char *now = trail.record + (size_t)(row[i].step - 1) * record;
            bool moved = memcmp(now + 8, now - record + 8, record - 8) != 0;
            if (moved == row[i].skipped)
                fail_msg("%s: step %lld %s (seed %llu)", kinds[m], (long long)row[i].step, moved ? "was skipped and moved weights" : "moved nothing", (unsigned long long)seed);
        }
        tm_trail_close(&trail);
        if (skipped < 2 || skipped > 14)
            fail_msg("%s: %lld steps skipped (seed %llu)", kinds[m], (long long)skipped, (unsigned long long)seed);
        snprintf(path, sizeof path, "%s/run.json", scratch(whole));
        json_t *json;
        OK(tm_json_read(path, &json, err));
        assert_int_equal(json_integer_value(json_object_get(json, "skipped_steps")), skipped);
        json_decref(json);
        for (int at = 4; at < 18; at += 11) {
            args a;
            char name[64];
            snprintf(name, sizeof name, "killed%d-%d", m, at);
            recipe_of(&a, name, "cuda", "f16", kinds[m], options);
            train_some(&a, at);
            train(&a);
            args_free(&a);
            if (!runs_agree(scratch(whole), scratch(name), m ? model_file() : adapter_file()))
                fail_msg("%s, ended after step %d and resumed: other bytes (seed %llu)", kinds[m], at, (unsigned long long)seed);
        }
    }
}

/* One row again and again: once the scale fits, the run is that of a scale that fitted at once, as if the steps skipped at its
 * start had not been (AdamW's corrections count updates). Where gradients grow, both skip again later, at the same step. */
static void f16_skipped_steps_leave_no_trace(void **state)
{
    (void)state;
    begin();
    OK(tm_file_write(scratch("one.jsonl"), "{\"input_ids\": [1, 5, 17, 40, 3, 9]}\n", 36, err));
    step_row row[MOST_ROWS];
    int64_t first = 0, skipped[2] = {0}; /* steps skipped at the start of the first run; in all */
    tm_trail trail[2];
    for (int i = 0; i < 2; i++) {
        args a;
        char path[1100];
        const char *name = i ? "fits" : "overflows";
        recipe_of(&a, name, "cuda", "f16", "lora", "train.batch=1 train.schedule=constant train.warmup_steps=0 lora.dropout=0");
        arg(&a, "data.0.path=%s", scratch("one.jsonl"));
        arg(&a, "train.steps=%d", 30 - (int)first);
        arg(&a, "train.loss_scale=%.0f", ldexp(1, 30 - (int)first));
        train(&a);
        args_free(&a);
        int64_t n = step_rows(name, row);
        for (int64_t k = 0; k < n; k++) {
            skipped[i] += row[k].skipped;
            if (i == 0 && row[k].skipped && row[k].step == first + 1)
                first++;
        }
        snprintf(path, sizeof path, "%s/trail.bin", scratch(name));
        OK(tm_trail_open(path, &trail[i], err));
    }
    assert_in_range(first, 1, 24);
    assert_int_equal(skipped[1], skipped[0] - first);
    size_t tensors = (size_t)trail[0].tensors.count;
    assert_int_equal(trail[1].steps, 30 - first);
    for (int64_t k = 0; k < trail[1].steps; k++)
        if (memcmp(trail[0].record + (size_t)(k + first) * 8 * (1 + tensors) + 8, trail[1].record + (size_t)k * 8 * (1 + tensors) + 8, 8 * tensors) != 0)
            fail_msg("step %lld is another one after %lld skipped steps (seed %llu)", (long long)k + 1, (long long)first, (unsigned long long)seed);
    tm_trail_close(&trail[0]);
    tm_trail_close(&trail[1]);
}

/* The kernels of two architectures, emulated: losses as in f32, and the bits of one layout in another, in whatever order
 * threads run. */
static void on_tensor_cores(void **state)
{
    (void)state;
    begin();
    if (strcmp(library, EMULATED) != 0)
        return; /* on a GPU the other tests are of them */
    put_model(scratch("model"), true);
    dice d = {tm_philox_key(seed, TM_PURPOSE_INIT, 1, 0), 0};
    for (int i = 0; i < 4; i++) {
        static const char *const sm[] = {"80", "90"}, *const kinds[] = {"lora", "full"};
        const char *method = kinds[i % 2], *const options = "train.batch=6 train.steps=2";
        if (dice_in(&d, 1, SPARSE) != 1)
            continue;
        char number[32], layout[256];
        size_t size, other;
        step_row single[MOST_ROWS], half[MOST_ROWS];
        free(run_of("cpu", "f32", method, options, &size));
        int64_t n = step_rows(last_run(), single);
        setenv("TEMPER_CUDA_LIBRARY", strcmp(library, EMULATED) == 0 ? EMULATED_FAST : library, 1);
        setenv("TEMPER_EMULATED_SM", sm[i / 2], 1);
        snprintf(number, sizeof number, "%u", dice_word(&d));
        setenv("TEMPER_EMULATED_SEED", number, 1);
        char *want = run_of("cuda", "bf16", method, options, &size);
        assert_int_equal(step_rows(last_run(), half), n);
        for (int64_t k = 0; k < n; k++)
            if (!(fabs(half[k].loss - single[k].loss) <= 1e-2 * single[k].loss))
                fail_msg("%s, sm_%s: the loss of step %lld is %.6f, %.6f in f32 (seed %llu)", method, sm[i / 2], (long long)k + 1, half[k].loss, single[k].loss, (unsigned long long)seed);
        snprintf(layout, sizeof layout, "%s train.steps=2", layouts[strcmp(method, "full") != 0 ? dice_in(&d, 2, 7) : dice_in(&d, 0, 1) ? 6 : 1]);
        snprintf(number, sizeof number, "%u", dice_word(&d));
        setenv("TEMPER_EMULATED_SEED", number, 1);
        char *got = run_of("cuda", "bf16", method, layout, &other);
        if (other != size || memcmp(got, want, size) != 0)
            fail_msg("%s, sm_%s, %s: other weights (seed %llu)", method, sm[i / 2], layout, (unsigned long long)seed);
        free(got);
        free(want);
        setenv("TEMPER_CUDA_LIBRARY", library, 1);
        unsetenv("TEMPER_EMULATED_SM");
        unsetenv("TEMPER_EMULATED_SEED");
    }
}

/* Replicas of one process have a scale each: together they are what they are alone. */
static void f16_in_packs(void **state)
{
    (void)state;
    begin();
    enum { R = 3 };
    static tm_job job[R];
    static tm_order *order[R];
    static tm_run_folder *folder[R];
    static tm_seeds seeds[R];
    for (int r = 0; r < R; r++)
        for (int packed = 0; packed < 2; packed++) {
            args a;
            char name[32];
            snprintf(name, sizeof name, "%s-%d", packed ? "pack" : "alone", r);
            recipe_of(&a, name, "cuda", "f16", "lora", "train.batch=2 train.steps=16 train.loss_scale=67108864 lora.dropout=0.1");
            arg(&a, "train.seed=%d", 50 + r);
            if (packed) {
                open_job(&a, TM_JOB_TRAIN, &job[r]);
                order[r] = job[r].order;
                folder[r] = &job[r].folder;
                seeds[r] = job[r].seeds;
            } else
                train(&a);
            args_free(&a);
        }
    tm_run run = job[0].run;
    tm_memory_plan plan;
    tm_trainer *trainer;
    run.replicas = R;
    run.order = order;
    run.folder = folder;
    run.seeds = seeds;
    OK(tm_plan_memory(&run, job[0].device->traits, job[0].own, &plan, err));
    OK(tm_trainer_create(&run, job[0].device, plan.part, &trainer, err));
    OK(tm_trainer_start(trainer, err));
    OK(tm_trainer_run(trainer, err));
    OK(tm_trainer_save(trainer, err));
    for (int r = 0; r < R; r++) {
        assert_true(trainer->loss_scale[r].skipped > 0);
        char alone[32], pack[32];
        snprintf(alone, sizeof alone, "alone-%d", r);
        snprintf(pack, sizeof pack, "pack-%d", r);
        if (!runs_agree(scratch(alone), scratch(pack), adapter_file()))
            fail_msg("replica %d has other bytes than alone (seed %llu)", r, (unsigned long long)seed);
    }
    tm_trainer_destroy(trainer);
    for (int r = 0; r < R; r++)
        tm_job_close(&job[r]);
}

/* Weights whose products no f16 holds: every further step overflows, and the run says so. */
static void f16_that_never_fits(void **state)
{
    (void)state;
    begin();
    args a;
    tm_error problem;
    recipe_of(&a, "never", "cuda", "f16", "lora", "train.batch=1 train.steps=40 train.warmup_steps=0");
    arg(&a, "train.lr=1e8"); /* after the first step activations are beyond f16 */
    assert_int_equal(try_train(&a, &problem), TM_DIVERGED);
    if (!strstr(problem.message, "even with a loss scale of 1, after 17 skipped steps"))
        fail_msg("%s", problem.message);
    args_free(&a);
}

/* --- Importances in f16 --- */

/* The model, its last norm scaled down: all gradients inside the blocks shrink with it, alike. */
static void shrink(const char *dir, const char *small, float factor)
{
    tm_safetensors *file;
    char path[1100];
    OK(tm_dir_create(small, err));
    OK(tm_hf_copy_files(dir, small, err));
    OK(tm_safetensors_open_model(dir, &file, err));
    int64_t n = tm_safetensors_count(file);
    tm_st_tensor *tensors = calloc((size_t)n, sizeof *tensors);
    float *norm = NULL;
    for (int64_t i = 0; i < n; i++) {
        tensors[i] = *tm_safetensors_at(file, i);
        if (strcmp(tensors[i].name, "model.norm.weight") != 0)
            continue;
        norm = malloc((size_t)tensors[i].bytes);
        memcpy(norm, tensors[i].data, (size_t)tensors[i].bytes);
        for (int64_t k = 0; k < tensors[i].count; k++)
            norm[k] *= factor;
        tensors[i].data = norm;
    }
    assert_non_null(norm);
    snprintf(path, sizeof path, "%s/model.safetensors", small);
    OK(tm_safetensors_write(path, tensors, n, NULL, err));
    free(tensors);
    free(norm);
    tm_safetensors_close(file);
}

static tm_status importances(const char *model, const char *precision, const char *scale, const char *out, tm_error *why)
{
    args a = {0};
    char *text = NULL;
    arg(&a, "model=%s", scratch(model));
    arg(&a, "keep.ewc.path=%s", scratch("rows.jsonl"));
    arg(&a, "keep.ewc.format=tokens");
    arg(&a, "keep.ewc.fisher=empirical"); /* the same labels in both precisions */
    arg(&a, "keep.ewc.samples=12");
    arg(&a, "device=cuda");
    arg(&a, "precision=%s", precision);
    arg(&a, "train.loss_scale=%s", scale);
    tm_fisher_request request = {.source = {.overrides = a.item, .override_count = a.count}, .out = scratch(out)};
    tm_status st = tm_fisher(&request, NULL, &text, why);
    free(text);
    args_free(&a);
    return st;
}

/* |a - b| / |b| over all tensors, by root mean squares. */
static double apart(const char *a, const char *b)
{
    tm_safetensors *x, *y;
    double far = 0, all = 0;
    OK(tm_safetensors_open(scratch(a), &x, err));
    OK(tm_safetensors_open(scratch(b), &y, err));
    assert_int_equal(tm_safetensors_count(x), tm_safetensors_count(y));
    for (int64_t i = 0; i < tm_safetensors_count(x); i++) {
        const float *u = tm_safetensors_at(x, i)->data, *v = tm_safetensors_at(y, i)->data;
        for (int64_t k = 0; k < tm_safetensors_at(x, i)->count; k++) {
            far += ((double)u[k] - v[k]) * ((double)u[k] - v[k]);
            all += (double)v[k] * v[k];
        }
    }
    tm_safetensors_close(x);
    tm_safetensors_close(y);
    return sqrt(far / all);
}

/* Gradients of some 1e-8 vanish without a scale of the loss, and are as in f32 with it; a scale that is too large is halved until it
 * is not, and no example is left out. */
static void f16_importances(void **state)
{
    (void)state;
    begin();
    tm_error why;
    shrink(scratch("model"), scratch("faint"), 1e-8f);
    OK(importances("faint", "f32", "65536", "wide.st", err));
    OK(importances("faint", "f16", "65536", "scaled.st", err));
    assert_int_equal(importances("faint", "f16", "1e15", "halved.st", &why), TM_RECIPE); /* no power of two */
    OK(importances("faint", "f16", "1125899906842624", "halved.st", err)); /* 2^50 */
    double scaled = apart("scaled.st", "wide.st"), halved = apart("halved.st", "wide.st"), plain = 1;
    if (importances("faint", "f16", "1", "plain.st", &why) == TM_OK)
        plain = apart("plain.st", "wide.st");
    else
        assert_non_null(strstr(why.message, "every importance is 0"));
    print_message("importances in f16 against f32: %.4f with a loss scale, %.4f with one that was too large, %.3f without\n", scaled, halved, plain);
    if (scaled > 0.05 || halved > 0.05 || plain < 0.5)
        fail_msg("%.4f, %.4f, %.4f apart (seed %llu)", scaled, halved, plain, (unsigned long long)seed);
    /* An ordinary model needs no help, and gets what it had. */
    OK(importances("model", "f32", "65536", "wide.st", err));
    OK(importances("model", "f16", "65536", "scaled.st", err));
    double usual = apart("scaled.st", "wide.st");
    if (usual > 0.05)
        fail_msg("%.4f apart (seed %llu)", usual, (unsigned long long)seed);
}

/* On the processor it is refused; a GPU without bf16 takes it by itself. */
static void f16_where(void **state)
{
    (void)state;
    begin();
    args a;
    tm_error problem;
    tm_job job;
    recipe_of(&a, "nowhere", "cpu", "f16", "lora", "");
    assert_int_equal(try_train(&a, &problem), TM_RECIPE);
    assert_non_null(strstr(problem.message, "precision: f16 runs on a GPU alone (device is cpu)"));
    args_free(&a);
    recipe_of(&a, "nowhere", "cuda", "f16", "lora", "train.loss_scale=1000");
    assert_int_equal(try_train(&a, &problem), TM_RECIPE);
    assert_non_null(strstr(problem.message, "expected a power of two"));
    args_free(&a);
    static const char *const sm[] = {"75", "80"};
    static const int precision[] = {TM_PRECISION_F16, TM_PRECISION_BF16};
    for (int i = 0; i < 2; i++) {
        setenv("TEMPER_EMULATED_SM", sm[i], 1);
        recipe_of(&a, "somewhere", "cuda", "auto", "lora", "");
        open_job(&a, TM_JOB_PLAN, &job);
        if (strcmp(library, EMULATED) == 0)
            assert_int_equal(job.recipe->precision, precision[i]);
        tm_job_close(&job);
        args_free(&a);
    }
    unsetenv("TEMPER_EMULATED_SM");
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(bits_of_the_cpu), cmocka_unit_test(bits_of_what_is_kept), cmocka_unit_test(bits_of_a_layout), cmocka_unit_test(on_tensor_cores), cmocka_unit_test(half_masters), cmocka_unit_test(f16_as_bf16),
                                       cmocka_unit_test(f16_skips_and_recovers), cmocka_unit_test(f16_skipped_steps_leave_no_trace),
                                       cmocka_unit_test(f16_in_packs), cmocka_unit_test(f16_that_never_fits), cmocka_unit_test(f16_importances), cmocka_unit_test(f16_where), cmocka_unit_test(runs_stay_where_they_are), cmocka_unit_test(devices_are_named)};
    return cmocka_run_group_tests(tests, memory_begin, scratch_end);
}
