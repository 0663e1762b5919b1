/* What every method that keeps skills promises, one table for all of them: at strength zero it is not there, to the bit;
 * switched on it changes the run; what was planned is what is taken; threads, packing and interruptions leave no trace;
 * all of them work together. What each of them computes is tested where it is its own: test_anchor, test_teacher, ... */
#include "../support/run.h"

static uint64_t seed;

#define SIZES "\"vocab_size\": 61, \"hidden_size\": 24, \"intermediate_size\": 40, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"max_position_embeddings\": 64}"
static const char *const model = "{\"model_type\": \"llama\", \"tie_word_embeddings\": true, " SIZES;

typedef struct method {
    const char *name, *on, *zero; /* zero NULL: it has no strength; @: arg_at */
    bool result;                  /* it changes what is saved, not the steps */
    const char *without;          /* what it must differ from; NULL: plain training */
    const char *only;             /* the tuning that it is for; NULL: any */
} method;

#define REPLAY "keep.replay={path: @old.jsonl, format: tokens, fraction: 0.4}"

static const method methods[] = {
    {"replay", REPLAY, "keep.replay={path: @old.jsonl, format: tokens, fraction: 0}", false, NULL, NULL},
    {"replay, a buffer", "keep.replay={path: @old.jsonl, format: tokens, fraction: 0.4, buffer: 5}", NULL, false, REPLAY, NULL},
    {"ewc", "keep.ewc={lambda: 30, path: @old.jsonl, samples: 6}", "keep.ewc={lambda: 0, path: @old.jsonl}", false, NULL, NULL},
    {"ewc on factors", "keep.ewc={lambda: 30, path: @old.jsonl, samples: 6, space: factors, fisher: empirical}", NULL, false, NULL, NULL},
    {"path importances", "keep.ewc={lambda: 30, path: @old.jsonl, samples: 6, importance: path}", NULL, false, NULL, NULL},
    {"l2sp", "keep.l2sp.lambda=3", "keep.l2sp.lambda=0", false, NULL, NULL},
    {"kl", "keep.kl={beta: 2}", "keep.kl={beta: 0}", false, NULL, NULL},
    {"der++", "keep={replay: {path: @old.jsonl, format: tokens, fraction: 0.4}, der: {alpha: 0.5, beta: 0.7}}", NULL, false, REPLAY, NULL},
    {"stm", "keep.stm.threshold=50", "keep.stm.threshold=1e30", false, NULL, NULL},
    {"stm by share", "keep.stm.fraction=0.4", "keep.stm.fraction=0", false, NULL, NULL},
    {"ema", "keep.average={kind: ema, every: 1, decay: 0.7}", "keep.average={kind: none}", true, NULL, NULL},
    {"swa", "keep.average={kind: swa, every: 1, start: 0.2}", NULL, true, NULL, NULL},
    {"lookahead", "keep.average={kind: lookahead, every: 2, alpha: 0.5}", "keep.average={kind: lookahead, every: 2, alpha: 1}", false, NULL, NULL},
    {"wise", "keep.wise.scale=0.5", "keep.wise.scale=1", true, NULL, NULL},
    {"osf", "keep.osf.share=0.5", "keep.osf.share=0", false, NULL, NULL},
    {"o-lora", "keep.orthogonal={previous: [@earlier], lambda: 20}", "keep.orthogonal={previous: [@earlier], lambda: 0}", false, NULL, "lora"},
};

static const struct tuning {
    const char *name, *arg, *result;
} tunings[] = {{"lora", "method=lora", "adapter_model.safetensors"}, {"full", "method=full", "model.safetensors"}};

static void recipe(args *a, const struct tuning *t, const char *out)
{
    arg(a, "model=%s", scratch("model"));
    arg(a, "out=%s", scratch(out));
    arg(a, "%s", t->arg);
    arg(a, "data.0.path=%s", scratch("rows.jsonl"));
    arg(a, "data.0.format=tokens");
    arg(a, "lora.r=4");
    arg(a, "lora.dropout=0.1");
    arg(a, "train.batch=4");
    arg(a, "train.steps=6");
    arg(a, "train.lr=0.01");
    arg(a, "train.warmup_steps=0");
    arg(a, "train.checkpoint_every=2");
    arg(a, "train.eval_every=3");
    arg(a, "train.seed=%llu", (unsigned long long)(seed >> 1));
    arg(a, "threads=1");
    arg(a, "eval.0.name=held");
    arg(a, "eval.0.path=%s", scratch("held.jsonl"));
    arg(a, "eval.0.format=tokens");
}

static void run(const struct tuning *t, const char *out, const char *setting, const char *layout)
{
    args a = {0};
    recipe(&a, t, out);
    if (setting)
        arg_at(&a, setting);
    if (layout)
        arg(&a, "%s", layout);
    train(&a);
    args_free(&a);
}

static bool agree(const struct tuning *t, const char *x, const char *y) { return runs_agree(scratch(x), scratch(y), t->result); }

static void drop(const char *name) { OK(tm_dir_remove(scratch(name), err)); }

/* A test that failed leaves its runs behind. */
static const struct tuning *begin(void **state)
{
    static const char *const names[] = {"plain", "on", "other", "zero"};
    for (size_t i = 0; i < 4; i++)
        drop(names[i]);
    return *state;
}

static bool is_for(const method *m, const struct tuning *t) { return !m->only || strcmp(m->only, t->name) == 0; }

static void nothing_at_strength_zero(void **state)
{
    const struct tuning *t = begin(state);
    run(t, "plain", NULL, NULL);
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        const method *m = &methods[i];
        if (!m->zero || !is_for(m, t))
            continue;
        run(t, "zero", m->zero, NULL);
        if (!agree(t, "plain", "zero"))
            fail_msg("%s, %s: other bytes than without it; seed %llu", t->name, m->zero, (unsigned long long)seed);
        drop("zero");
    }
    drop("plain");
}

static int64_t stop_after;
static bool interrupted(void *context)
{
    (void)context;
    return stop_after-- == 0;
}

static void interrupt(const args *a, int64_t steps)
{
    tm_error problem = {0};
    tm_recipe_source source = {.overrides = ((args *)(uintptr_t)a)->item, .override_count = a->count};
    tm_callbacks callbacks = {.interrupted = interrupted};
    char *out = NULL;
    stop_after = steps;
    assert_int_equal(tm_train(&source, &callbacks, &out, &problem), TM_FAILED);
    free(out);
}

/* Another layout, another thread count, an interruption behind a checkpoint: the same bytes; and memory as planned. */
static void one_method(const struct tuning *t, const char *name, const char *setting)
{
    static const char *const layouts[] = {"threads=2", "train.packing=false", "train.micro_tokens=1"};
    run(t, "on", setting, NULL);
    int64_t planned = run_json_integer(scratch("on"), "planned_bytes"), peak = run_json_integer(scratch("on"), "peak_bytes");
    if (planned != peak)
        fail_msg("%s, %s: %lld bytes planned, %lld taken", t->name, name, (long long)planned, (long long)peak);
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i += SPARSE) {
        run(t, "other", setting, layouts[i]);
        if (!agree(t, "on", "other"))
            fail_msg("%s, %s: other bytes with %s; seed %llu", t->name, name, layouts[i], (unsigned long long)seed);
        drop("other");
    }
    args a = {0};
    recipe(&a, t, "other");
    arg_at(&a, setting);
    interrupt(&a, 3);
    interrupt(&a, 2);
    train(&a);
    args_free(&a);
    if (!agree(t, "on", "other"))
        fail_msg("%s, %s: other bytes after an interruption; seed %llu", t->name, name, (unsigned long long)seed);
    drop("other");
}

static void each_alone(void **state)
{
    const struct tuning *t = begin(state);
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        const method *m = &methods[i];
        if (!is_for(m, t))
            continue;
        run(t, "plain", m->without, NULL);
        one_method(t, m->name, m->on);
        if (agree(t, "plain", "on"))
            fail_msg("%s, %s: no effect; seed %llu", t->name, m->on, (unsigned long long)seed);
        if (m->result && !files_agree(scratch("plain"), scratch("on"), "trail.bin"))
            fail_msg("%s, %s: changes steps; seed %llu", t->name, m->on, (unsigned long long)seed);
        drop("on");
        drop("plain");
    }
}

static void all_together(void **state)
{
    const struct tuning *t = begin(state);
    one_method(t, "all", "keep={replay: {path: @old.jsonl, format: tokens, fraction: 0.3}, kl: {beta: 0.5, on: [task]}, der: {alpha: 0.3}, stm: {fraction: 0.2}, "
                         "ewc: {lambda: 5, path: @old.jsonl, samples: 6}, l2sp: {lambda: 0.1}, osf: {share: 0.3}, average: {kind: swa, every: 1}, wise: {scale: 0.9}}");
    drop("on");
}

static int prepare(void **state)
{
    char path[1024];
    if (memory_begin(state) != 0)
        return -1;
    seed = fresh_seed();
    write_model(scratch("model"), model, TM_F32, seed);
    static const struct {
        const char *name;
        int64_t rows, low, high;
    } files[] = {{"rows.jsonl", 40, 5, 40}, {"held.jsonl", 8, 5, 30}, {"old.jsonl", 20, 5, 40}};
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s", scratch(files[i].name));
        write_rows(path, files[i].rows, files[i].low, files[i].high, 61, 0.3, seed + 1 + i);
    }
    run(&tunings[0], "earlier", "train.seed=3", NULL);
    return 0;
}

int main(void)
{
    struct CMUnitTest tests[6];
    size_t n = 0;
    static const struct {
        const char *name;
        CMUnitTestFunction function;
    } checks[] = {{"nothing at strength zero", nothing_at_strength_zero}, {"each alone", each_alone}, {"all together", all_together}};
    static char names[6][64];
    for (size_t i = 0; i < 2; i++)
        for (size_t k = 0; k < 3; k++, n++) {
            snprintf(names[n], sizeof names[n], "%s: %s", tunings[i].name, checks[k].name);
            tests[n] = (struct CMUnitTest){.name = names[n], .test_func = checks[k].function, .initial_state = (void *)(uintptr_t)&tunings[i]};
        }
    return cmocka_run_group_tests(tests, prepare, scratch_end);
}
