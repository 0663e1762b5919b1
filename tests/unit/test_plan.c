/* Memory: what is planned is what a run takes, to the byte, by kind and in sum; and what is said when
 * it does not fit. */
#include "../support/run.h"


static uint64_t seed;

#define SIZES "\"vocab_size\": 301, \"hidden_size\": 48, \"intermediate_size\": 100, \"num_hidden_layers\": 4, \"num_attention_heads\": 4, " \
              "\"num_key_value_heads\": 2, \"head_dim\": 10, \"max_position_embeddings\": 300"

static const struct kind {
    const char *name, *config;
    tm_dtype dtype;
} models[] = {
    {"tied", "{\"model_type\": \"qwen3\", \"tie_word_embeddings\": true, \"dtype\": \"bfloat16\", " SIZES "}", TM_BF16},
    {"untied", "{\"model_type\": \"llama\", \"attention_bias\": true, \"dtype\": \"float32\", " SIZES "}", TM_F32},
};

static const char *const recipes[][6] = {
    {"lora.r=3"},
    {"lora.r=3", "train.recompute=full"},
    {"lora.r=3", "train.recompute=partial", "train.recompute_layers=2"},
    {"lora.r=3", "precision=bf16", "threads=2"},
    {"lora.target_modules=[lm_head, v_proj]", "train.batch=40", "train.micro_tokens=2048"},
    {"lora.modules_to_save=[lm_head]", "lora.rank_pattern={q_proj: 9, up_proj: 1}"},
    {"lora.use_dora=true", "lora.dropout=0"},
    {"lora.use_dora=true", "lora.dropout=0.1", "train.recompute=full", "precision=bf16"},
    {"method=full"},
    {"method=full", "train.optimizer=sgd", "train.momentum=0", "train.recompute=full", "threads=3"},
    {"method=full", "train.optimizer=sgd", "train.packing=false"},
    {"method=freeze", "freeze.layers=2"},
    {"method=freeze", "freeze.layers=1", "freeze.embeddings=false", "precision=bf16"},
    {"method=bitfit"},
    {"lora.r=4", "keep.monitor.probes.0={name: base, metric: kl, path: KL, format: tokens}"},
    {"lora.r=4", "keep.kl.beta=0.1"},
    {"method=full", "keep.kl.beta=0.1", "train.recompute=full"},
    {"method=full", "keep.der.alpha=0.1", "keep.replay={path: KL, format: tokens, fraction: 0.3}"},
    {"lora.modules_to_save=[lm_head]", "keep.kl.beta=0.1", "keep.monitor.probes.0={name: base, metric: kl, path: KL, format: tokens}"},
    {"method=full", "keep.monitor.on_breach=rollback", "keep.monitor.probes.0={name: base, metric: kl, path: KL, format: tokens}"},
};

static void recipe(args *a, const char *model, const char *out)
{
    arg(a, "model=%s", scratch(model));
    arg(a, "out=%s", scratch(out));
    arg(a, "data.0.path=%s", scratch("rows.jsonl"));
    arg(a, "data.0.format=tokens");
    arg(a, "threads=1");
    arg(a, "train.batch=5");
    arg(a, "train.steps=2");
    arg(a, "train.recompute=none");
    arg(a, "train.checkpoint_every=1");
    arg(a, "train.seed=%llu", (unsigned long long)(seed >> 1));
}

/* Puts the path of the probe's rows where a recipe says KL. */
static void add(args *a, const char *text)
{
    const char *mark = strstr(text, "KL,");
    if (mark)
        arg(a, "%.*s%s%s", (int)(mark - text), text, scratch("rows.jsonl"), mark + 2);
    else
        arg(a, "%s", text);
}

static void planned_is_taken(void **state)
{
    const struct kind *model = *state;
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        args a = {0};
        tm_job job;
        recipe(&a, model->name, "run");
        for (int k = 0; k < 6 && recipes[i][k]; k++)
            add(&a, recipes[i][k]);
        open_job(&a, TM_JOB_PLAN, &job);
        tm_memory_plan plan = job.plan;
        tm_job_close(&job);
        train(&a);
        int64_t planned = run_json_integer(scratch("run"), "planned_bytes"), peak = run_json_integer(scratch("run"), "peak_bytes");
        if (peak != planned || peak != plan.peak || peak <= 0)
            fail_msg("%s, %s: %lld bytes taken, %lld planned (%lld without a run)", model->name, recipes[i][0], (long long)peak, (long long)planned, (long long)plan.peak);
        OK(tm_dir_remove(scratch("run"), err));
        args_free(&a);
    }
}

/* Every arena is used up to its last byte by building the run, and a step takes nothing beyond. */
static void arenas_are_used_up(void **state)
{
    const struct kind *model = *state;
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        args a = {0};
        tm_job job;
        tm_trainer *trainer;
        int64_t sum = 0;
        recipe(&a, model->name, "run");
        for (int k = 0; k < 6 && recipes[i][k]; k++)
            add(&a, recipes[i][k]);
        open_job(&a, TM_JOB_TRAIN, &job);
        OK(tm_trainer_create(&job.run, job.device, job.plan.part, &trainer, err));
        OK(tm_trainer_start(trainer, err));
        OK(tm_trainer_step(trainer, err));
        for (int k = 0; k < TM_MEM_KINDS; k++) {
            const tm_arena *arena = &trainer->memory.arena[k];
            int64_t planned = k == TM_MEM_DEVICE ? 0 : job.plan.part[k];
            if (arena->peak != planned || arena->peak > arena->limit)
                fail_msg("%s, %s: %s took %lld of %lld bytes", model->name, recipes[i][0], tm_memory_label((tm_memory_kind)k), (long long)arena->peak, (long long)planned);
            sum += job.plan.part[k];
        }
        assert_int_equal(sum, job.plan.peak);
        tm_trainer_destroy(trainer);
        assert_int_equal(job.device->used_bytes, job.plan.part[TM_MEM_DEVICE]);
        tm_job_close(&job);
        OK(tm_dir_remove(scratch("run"), err));
        args_free(&a);
    }
}

/* The plan needs neither weights nor data. */
static void config_is_enough(void **state)
{
    const struct kind *model = *state;
    char path[600];
    args a = {0}, b = {0};
    tm_job with, without;
    OK(tm_dir_create(scratch("bare"), err));
    snprintf(path, sizeof path, "%s/config.json", scratch("bare"));
    OK(tm_file_write(path, model->config, strlen(model->config), err));
    recipe(&a, model->name, "run");
    recipe(&b, "bare", "run");
    open_job(&a, TM_JOB_PLAN, &with);
    open_job(&b, TM_JOB_PLAN, &without);
    assert_int_equal(with.plan.peak, without.plan.peak);
    assert_memory_equal(with.plan.part, without.plan.part, sizeof with.plan.part);
    assert_false(tm_path_exists(scratch("run"))); /* a plan writes nothing */
    tm_job_close(&with);
    tm_job_close(&without);
    args_free(&a);
    args_free(&b);
    OK(tm_dir_remove(scratch("bare"), err));
}

/* Bytes a run takes beside what its device has already. */
static int64_t peak_of(const char *one, const char *two)
{
    args a = {0};
    tm_job job;
    recipe(&a, "untied", "run");
    arg(&a, "lora.r=1");
    arg(&a, "train.batch=1"); /* weights, gradients and optimiser dominate */
    arg(&a, "%s", one);
    arg(&a, "%s", two);
    open_job(&a, TM_JOB_PLAN, &job);
    int64_t peak = job.plan.peak - job.plan.part[TM_MEM_DEVICE];
    tm_job_close(&job);
    args_free(&a);
    return peak;
}

static tm_status train_within(int64_t bytes, const char *one, const char *two, tm_error *err)
{
    char limit[32];
    args a = {0};
    recipe(&a, "untied", "limited");
    arg(&a, "lora.r=1");
    arg(&a, "train.batch=1"); /* weights, gradients and optimiser dominate */
    arg(&a, "%s", one);
    arg(&a, "%s", two);
    snprintf(limit, sizeof limit, "%lld", (long long)bytes);
    setenv("TEMPER_MEMORY_LIMIT", limit, 1);
    tm_status st = try_train(&a, err);
    unsetenv("TEMPER_MEMORY_LIMIT");
    args_free(&a);
    return st;
}

static void what_does_not_fit(void **state)
{
    (void)state;
    int64_t plain = peak_of("method=full", "train.recompute=none"), recomputed = peak_of("method=full", "train.recompute=full");
    int64_t lora = peak_of("method=lora", "train.recompute=none");
    assert_true(recomputed < plain && lora < plain);
    assert_int_equal(tm_status_exit_code(TM_NO_FIT), 4);
    FAILS(TM_NO_FIT, "train.recompute: auto", train_within(plain - 1, "method=full", "train.recompute=none", err));
    FAILS(TM_NO_FIT, "method: lora", train_within(plain - 1, "method=full", "train.recompute=none", err));
    FAILS(TM_NO_FIT, "the largest part is", train_within(1000, "method=full", "train.recompute=none", err));
    assert_false(tm_path_exists(scratch("limited/metrics.jsonl"))); /* said before training */
    OK(train_within(plain, "method=full", "train.recompute=none", err));
    int64_t whole = run_json_integer(scratch("limited"), "peak_bytes");
    assert_true(whole > plain);
    OK(tm_path_move(scratch("limited"), scratch("roomy"), err));
    OK(train_within(plain - 1, "method=full", "train.recompute=auto", err)); /* chooses what fits, the same bytes come out */
    int64_t chosen = run_json_integer(scratch("limited"), "peak_bytes") - (whole - plain);
    assert_true(chosen >= recomputed && chosen < plain);
    assert_true(runs_agree(scratch("roomy"), scratch("limited"), model_file()));
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state))
        return -1;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        write_model(scratch(models[i].name), models[i].config, models[i].dtype, seed + i);
    write_rows(scratch("rows.jsonl"), 60, 2, 120, 301, 0.3, seed + 7);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"planned is taken, tied", planned_is_taken, NULL, NULL, (void *)(uintptr_t)&models[0]},
        {"planned is taken, untied", planned_is_taken, NULL, NULL, (void *)(uintptr_t)&models[1]},
        {"arenas are used up, tied", arenas_are_used_up, NULL, NULL, (void *)(uintptr_t)&models[0]},
        {"arenas are used up, untied", arenas_are_used_up, NULL, NULL, (void *)(uintptr_t)&models[1]},
        {"config is enough, tied", config_is_enough, NULL, NULL, (void *)(uintptr_t)&models[0]},
        {"config is enough, untied", config_is_enough, NULL, NULL, (void *)(uintptr_t)&models[1]},
        cmocka_unit_test(what_does_not_fit),
    };
    return cmocka_run_group_tests_name("plan", tests, begin, scratch_end);
}
