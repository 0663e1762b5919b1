/* What a run computes depends on its recipe alone: not on threads, instruction set, packing, the size of
 * micro-batches, recomputation, accumulation, or on the replicas beside it. Whole runs, compared byte
 * for byte. The model is wider than a K block of the GEMM and rows are longer than a chunk of tokens,
 * so that every border where sums could be regrouped is crossed. */
#include "../support/run.h"


static uint64_t seed;

#define SIZES "\"vocab_size\": 53, \"hidden_size\": 390, \"intermediate_size\": 39, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, " \
              "\"num_key_value_heads\": 2, \"head_dim\": 10, \"max_position_embeddings\": 512"

static const char *const tied = "{\"model_type\": \"qwen3\", \"tie_word_embeddings\": true, " SIZES "}",
                  *const untied = "{\"model_type\": \"llama\", \"mlp_bias\": true, \"attention_bias\": true, " SIZES "}";

/* A recipe and the file its result is in. */
typedef struct scenario {
    const char *name, *model, *result, *arg[8];
} scenario;

static const scenario scenarios[] = {
    {"lora with dropout", "tied", "adapter_model.safetensors", {"lora.r=5", "lora.dropout=0.2", "lora.target_modules=[q_proj, v_proj, up_proj, down_proj, lm_head]"}},
    {"dora with dropout", "untied", "adapter_model.safetensors", {"lora.r=3", "lora.dropout=0.1", "lora.use_dora=true", "lora.bias=all"}},
    {"lora in bf16", "tied", "adapter_model.safetensors", {"precision=bf16", "lora.r=4", "lora.dropout=0.1", "lora.use_rslora=true"}},
    {"lora on the embedding", "tied", "adapter_model.safetensors", {"lora.r=5", "lora.target_modules=[embed_tokens, q_proj]"}},
    {"prompt", "tied", "adapter_model.safetensors", {"method=prompt", "prompt.tokens=258"}},
    {"houlsby", "tied", "adapter.safetensors", {"method=adapter", "adapter.size=7", "adapter.activation=gelu"}},
    {"registers", "tied", "b/adapter_model.safetensors", {"lora.registers=[a, b]", "lora.r=3", "lora.dropout=0.2", "data.0.registers={a: 1, b: -0.5}", "eval.0.registers={b: 2}"}},
    {"full, tied", "tied", "model.safetensors", {"method=full"}},
    {"full, untied", "untied", "model.safetensors", {"method=full", "train.optimizer=sgd"}},
    {"lora, averaged", "tied", "adapter_model.safetensors", {"lora.r=5", "lora.dropout=0.2", "lora.target_modules=[embed_tokens, q_proj, down_proj, lm_head]", "keep.average.kind=ema", "keep.average.every=1", "keep.average.decay=0.5", "keep.wise.scale=0.5", "keep.osf.share=0.2"}},
    {"full, averaged", "untied", "model.safetensors", {"method=full", "keep.average.kind=swa", "keep.average.every=1", "keep.average.start=0", "keep.osf.share=0.3"}},
    {"full, lookahead", "tied", "model.safetensors", {"method=full", "keep.average.kind=lookahead", "keep.average.every=2", "keep.wise.scale=0.9"}},
    {"full in bf16", "untied", "model.safetensors", {"method=full", "precision=bf16"}},
    {"lora held at the base", "tied", "adapter_model.safetensors", {"lora.r=5", "lora.dropout=0.2", "keep.kl.beta=0.5"}},
    {"full, held at the base", "tied", "model.safetensors", {"method=full", "keep.kl.beta=2"}},
};

/* What must leave no trace. */
static const char *const layouts[][5] = {
    {"threads=2"},
    {"threads=3", "train.micro_tokens=420"},
    {"threads=8"},
    {"train.packing=false"},
    {"train.recompute=full", "train.packing=false", "threads=2"},
    {"train.micro_tokens=1", "train.recompute=full"}, /* becomes the longest row */
    {"train.micro_tokens=700", "train.recompute=partial", "train.recompute_layers=2"},
    {"train.batch=2", "train.accumulate=2"},
    {"train.batch=1", "train.accumulate=4", "train.packing=false", "threads=3"},
};

static void recipe(args *a, const scenario *s, const char *out)
{
    arg(a, "model=%s", scratch(s->model));
    arg(a, "out=%s", scratch(out));
    arg(a, "data.0.path=%s", scratch("rows.jsonl"));
    arg(a, "data.0.format=tokens");
    arg(a, "train.batch=4");
    arg(a, "train.steps=3");
    arg(a, "train.lr=0.003");
    arg(a, "train.warmup_steps=0");
    arg(a, "train.seed=%llu", (unsigned long long)(seed >> 1));
    arg(a, "train.checkpoint_every=0");
    arg(a, "train.eval_every=2");
    arg(a, "train.recompute=none");
    arg(a, "train.weight_decay=0.1");
    arg(a, "threads=1");
    arg(a, "eval.0.name=held");
    arg(a, "eval.0.path=%s", scratch("held.jsonl"));
    arg(a, "eval.0.format=tokens");
    arg(a, "keep.monitor.probes.0.name=base");
    arg(a, "keep.monitor.probes.0.metric=kl");
    arg(a, "keep.monitor.probes.0.path=%s", scratch("held.jsonl"));
    arg(a, "keep.monitor.probes.0.format=tokens");
    for (int i = 0; i < 8 && s->arg[i]; i++)
        arg(a, "%s", s->arg[i]);
}

static void same_as_plain(const scenario *s, const char *what, const char *const *changes)
{
    args a = {0};
    recipe(&a, s, "other");
    for (int i = 0; i < 5 && changes[i]; i++)
        arg(&a, "%s", changes[i]);
    train(&a);
    if (!runs_agree(scratch("plain"), scratch("other"), s->result))
        fail_msg("%s: other bytes with %s %s; seed %llu", s->name, what, changes[0] ? changes[0] : "", (unsigned long long)seed);
    OK(tm_dir_remove(scratch("other"), err));
    args_free(&a);
}

static bool isa_there(tm_isa isa)
{
    tm_device *d = NULL;
    tm_error err;
    bool there = tm_cpu_device_create(1, isa, &d, &err) == TM_OK;
    tm_device_destroy(d);
    return there;
}

static const scenario *plain(void **state)
{
    const scenario *s = *state;
    args a = {0};
    tm_error err;
    assert_int_equal(tm_dir_remove(scratch("plain"), &err), TM_OK);
    recipe(&a, s, "plain");
    train(&a);
    args_free(&a);
    return s;
}

static void layout_leaves_no_trace(void **state)
{
    const scenario *s = plain(state);
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i += SPARSE)
        same_as_plain(s, "", layouts[i]);
}

static void instruction_set_leaves_no_trace(void **state)
{
    static const struct {
        const char *name;
        tm_isa isa;
        const char *layout[2];
    } sets[] = {{"scalar", TM_ISA_SCALAR, {"threads=2"}}, {"avx2", TM_ISA_AVX2, {"threads=1"}}, {"avx512", TM_ISA_AVX512, {"threads=2"}}};
    const scenario *s = plain(state);
    int missing = 0;
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        if (!isa_there(sets[i].isa)) {
            print_message("skip: this processor has no %s\n", sets[i].name);
            missing++;
            continue;
        }
        setenv("TEMPER_ISA", sets[i].name, 1);
        same_as_plain(s, sets[i].name, sets[i].layout);
        unsetenv("TEMPER_ISA");
    }
    if (missing)
        skip();
}

/* The bits must not be the same because nothing is random. */
static void seeds_matter(void **state)
{
    (void)state;
    const scenario *s = &scenarios[0];
    static const char *const seeds[] = {"train.seeds.init=7", "train.seeds.order=7", "train.seeds.dropout=7"};
    args a = {0};
    recipe(&a, s, "first");
    train(&a);
    args_free(&a);
    for (size_t i = 0; i < 3; i++) {
        recipe(&a, s, "second");
        arg(&a, "%s", seeds[i]);
        train(&a);
        assert_false(files_agree(scratch("first"), scratch("second"), s->result));
        OK(tm_dir_remove(scratch("second"), err));
        args_free(&a);
    }
}

/* --- Replicas --- */

enum { REPLICAS = 3 };

typedef struct pack {
    tm_job job[REPLICAS];
    tm_seeds seeds[REPLICAS];
    tm_order *order[REPLICAS];
    tm_run_folder *folder[REPLICAS];
    tm_scores scores[2][3][REPLICAS];
    tm_eval_set set[2];
    tm_run run;
    int64_t steps_left; /* until it is interrupted; -1: never */
} pack;

static bool pack_interrupted(void *context)
{
    pack *p = context;
    return p->steps_left >= 0 && p->steps_left-- == 0;
}

static void replica_recipe(args *a, const scenario *s, int replica, const char *out)
{
    recipe(a, s, out);
    arg(a, "train.checkpoint_every=1");
    arg(a, "train.seeds.init=%d", 100 + replica);
    arg(a, "train.seeds.order=%d", 200 + replica);
    arg(a, "train.seeds.dropout=%d", 300 + replica);
}

/* Place k is replica place[k], in folder pack-<replica>. */
static void pack_open(pack *p, const scenario *s, const int *place, int count, int64_t steps)
{
    *p = (pack){.steps_left = steps};
    for (int k = 0; k < count; k++) {
        args a = {0};
        char name[32];
        snprintf(name, sizeof name, "pack-%d", place[k]);
        replica_recipe(&a, s, place[k], name);
        open_job(&a, TM_JOB_TRAIN, &p->job[k]);
        p->seeds[k] = p->job[k].seeds;
        p->order[k] = p->job[k].order;
        p->folder[k] = &p->job[k].folder;
        args_free(&a);
    }
    p->run = p->job[0].run;
    p->run.replicas = count;
    p->run.seeds = p->seeds;
    p->run.order = p->order;
    p->run.folder = p->folder;
    for (int i = 0; i < 2; i++) {
        p->set[i] = p->job[0].evals[i];
        p->set[i].first = p->scores[i][0];
        p->set[i].last = p->scores[i][1];
        p->set[i].best = p->scores[i][2];
    }
    p->run.evals = p->set;
    p->run.interrupted = pack_interrupted;
    p->run.context = p;
}

static void pack_close(pack *p)
{
    for (int k = 0; k < p->run.replicas; k++)
        tm_job_close(&p->job[k]);
}

/* Trains the replicas together; interrupts them after so many steps. */
static void train_pack(const scenario *s, const int *place, int count, int64_t steps)
{
    static pack p;
    tm_memory_plan plan;
    tm_device *device;
    tm_trainer *trainer;
    pack_open(&p, s, place, count, steps);
    OK(tm_plan_memory(&p.run, tm_cpu_traits(), 0, &plan, err));
    OK(tm_cpu_device_create(2, TM_ISA_AUTO, &device, err));
    OK(tm_trainer_create(&p.run, device, plan.part, &trainer, err));
    OK(tm_trainer_start(trainer, err));
    if (steps >= 0)
        FAILS(TM_FAILED, "interrupted", tm_trainer_run(trainer, err));
    else {
        OK(tm_trainer_run(trainer, err));
        OK(tm_trainer_save(trainer, err));
    }
    tm_trainer_destroy(trainer);
    tm_device_destroy(device);
    pack_close(&p);
}

/* What would make a replica's end depend on its neighbours, or share a tensor between them. */
static void packs_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        scenario kind;
    } cases[] = {
        {"method full works for one replica", {"full", "tied", NULL, {"method=full"}}},
        {"one replica at a time", {"saved", "untied", NULL, {"lora.modules_to_save=[lm_head]"}}},
        {"one replica at a time", {"biases", "untied", NULL, {"lora.bias=all"}}},
        {"train.early_stop works for one replica", {"early", "tied", NULL, {"train.early_stop.metric=eval.held.loss"}}},
        {"on_breach", {"stop", "tied", NULL, {"keep.monitor.on_breach=stop"}}},
        {"on_breach", {"rollback", "tied", NULL, {"keep.monitor.on_breach=rollback"}}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static pack p;
        tm_device *counting;
        tm_trainer *trainer;
        pack_open(&p, &cases[i].kind, (const int[]){0, 1}, 2, -1);
        OK(tm_counting_device_create(tm_cpu_traits(), &counting, err));
        tm_error problem = {0};
        tm_status st = tm_trainer_create(&p.run, counting, NULL, &trainer, &problem);
        if (st != TM_RECIPE || !strstr(problem.message, cases[i].text))
            fail_msg("%s: status %d, \"%s\"", cases[i].kind.name, (int)st, problem.message);
        tm_trainer_destroy(trainer);
        tm_device_destroy(counting);
        pack_close(&p);
    }
}

/* Three in a pack are three alone, wherever each stands and whoever is beside it, interrupted or not. */
static void replicas_are_runs(void **state)
{
    static const scenario kinds[] = {
        {"lora with dropout", "tied", "adapter_model.safetensors", {"lora.r=5", "lora.dropout=0.2", "lora.target_modules=[q_proj, v_proj, up_proj, down_proj, lm_head]"}},
        {"dora", "untied", "adapter_model.safetensors", {"lora.r=3", "lora.use_dora=true", "lora.dropout=0"}},
        {"dora with dropout", "untied", "adapter_model.safetensors", {"lora.r=3", "lora.use_dora=true", "lora.dropout=0.1", "train.packing=false"}},
        {"lora on the embedding", "tied", "adapter_model.safetensors", {"lora.r=3", "lora.target_modules=[embed_tokens, up_proj]"}},
        {"prompt", "untied", "adapter_model.safetensors", {"method=prompt", "prompt.tokens=5"}},
        {"houlsby", "untied", "adapter.safetensors", {"method=adapter", "adapter.size=5", "adapter.activation=relu"}},
        {"averaged", "tied", "adapter_model.safetensors", {"lora.r=3", "lora.target_modules=[embed_tokens, up_proj, q_proj]", "keep.average.kind=swa", "keep.average.every=1", "keep.average.start=0.4", "keep.wise.scale=0.7", "keep.osf.share=0.3"}},
        {"houlsby, averaged", "untied", "adapter.safetensors", {"method=adapter", "adapter.size=5", "keep.average.kind=ema", "keep.average.every=2", "keep.wise.scale=0.7"}},
        {"lora, lookahead", "untied", "adapter_model.safetensors", {"lora.r=3", "keep.average.kind=lookahead", "keep.average.every=2"}},
        {"registers", "untied", "b/adapter_model.safetensors", {"lora.registers=[a, b]", "lora.r=2", "data.0.registers={a: -1, b: 0.5}"}},
        {"held at the base", "untied", "adapter_model.safetensors", {"lora.r=3", "lora.dropout=0.2", "keep.kl.beta=0.5"}},
    };
    static const struct {
        int place[REPLICAS], count;
        bool resumed;
    } packs[] = {{{0, 1, 2}, 3, false}, {{2, 0, 1}, 3, true}, {{1, 0}, 2, false}};
    (void)state;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char alone[32], packed[32];
        for (int r = 0; r < REPLICAS; r++) {
            args a = {0};
            snprintf(alone, sizeof alone, "alone-%d", r);
            replica_recipe(&a, &kinds[i], r, alone);
            train(&a);
            args_free(&a);
        }
        for (size_t k = 0; k < sizeof packs / sizeof *packs; k++) {
            if (packs[k].resumed)
                train_pack(&kinds[i], packs[k].place, packs[k].count, 2);
            train_pack(&kinds[i], packs[k].place, packs[k].count, -1);
            for (int j = 0; j < packs[k].count; j++) {
                int r = packs[k].place[j];
                snprintf(alone, sizeof alone, "alone-%d", r);
                snprintf(packed, sizeof packed, "pack-%d", r);
                if (!runs_agree(scratch(alone), scratch(packed), kinds[i].result))
                    fail_msg("%s: replica %d at place %d of %d has other bytes than alone; seed %llu", kinds[i].name, r, j, packs[k].count, (unsigned long long)seed);
                OK(tm_dir_remove(scratch(packed), err));
            }
        }
        for (int r = 0; r < REPLICAS; r++) {
            snprintf(alone, sizeof alone, "alone-%d", r);
            OK(tm_dir_remove(scratch(alone), err));
        }
    }
}

/* The last step of which every replica has a checkpoint stays until all have a newer one; what could not be filled leaves nothing. */
static void packs_keep_a_common_step(void **state)
{
    static const scenario kind = {"lora", "tied", "adapter_model.safetensors", {"lora.r=3", "train.keep_checkpoints=1"}};
    static pack p;
    (void)state;
    for (int fails = 0; fails < 2; fails++) {
        tm_memory_plan plan;
        tm_device *device;
        tm_trainer *trainer;
        pack_open(&p, &kind, (const int[]){0, 1}, 2, 1);
        OK(tm_plan_memory(&p.run, tm_cpu_traits(), 0, &plan, err));
        OK(tm_cpu_device_create(1, TM_ISA_AUTO, &device, err));
        OK(tm_trainer_create(&p.run, device, plan.part, &trainer, err));
        OK(tm_trainer_start(trainer, err));
        assert_int_equal(trainer->step, fails);
        FAILS(TM_FAILED, "interrupted", tm_trainer_run(trainer, err));
        char *dir = p.folder[1]->dir;
        tm_run_folder nowhere = *p.folder[1];
        nowhere.dir = "/proc/nowhere";
        if (fails) {
            p.folder[1] = &nowhere; /* the second has no room for step 3 */
            trainer->step++;
            trainer->best_checkpoint = -1;
            tm_error problem = {0};
            assert_int_equal(tm_trainer_checkpoint(trainer, &problem), TM_IO);
            assert_true(tm_dir_has(scratch("pack-0"), "checkpoint-2"));
            assert_true(tm_dir_has(scratch("pack-0"), "checkpoint-3"));
            assert_true(tm_dir_has(dir, "checkpoint-2"));
            p.folder[1] = &p.job[1].folder;
        }
        tm_trainer_destroy(trainer);
        tm_device_destroy(device);
        pack_close(&p);
    }
    OK(tm_dir_remove(scratch("pack-0"), err));
    OK(tm_dir_remove(scratch("pack-1"), err));
}

static void share_is_one_at_most(void *context, const tm_trainer *t)
{
    double share = tm_trainer_share(t);
    if (t->step == 0 ? !isnan(share) : !(share > 0 && share <= 1))
        fail_msg("step %lld is %g of the limit", (long long)t->step, share);
    ++*(int *)context;
}

/* Where steps are faster than what was measured as the limit, they are the limit. */
static void shares_are_of_the_most_that_was_seen(void **state)
{
    static const scenario kind = {"lora", "tied", "adapter_model.safetensors", {"lora.r=3"}};
    (void)state;
    args a = {0};
    tm_job job;
    tm_trainer *trainer;
    int calls = 0;
    recipe(&a, &kind, "shares");
    open_job(&a, TM_JOB_TRAIN, &job);
    job.run.progress = share_is_one_at_most;
    job.run.context = &calls;
    OK(tm_trainer_create(&job.run, job.device, job.plan.part, &trainer, err));
    trainer->peak_flops = 1; /* a second: any step does more */
    OK(tm_trainer_start(trainer, err));
    OK(tm_trainer_run(trainer, err));
    assert_int_equal(calls, 4);
    size_t rows = 0;
    char *text = slurp(scratch("shares/timing.jsonl"), NULL);
    for (const char *at = text; (at = strstr(at, "\"share\": ")) != NULL; rows++) {
        at += strlen("\"share\": ");
        assert_true(strtod(at, NULL) >= 0 && strtod(at, NULL) <= 1 && (rows || strtod(at, NULL) == 1));
    }
    assert_int_equal(rows, 3);
    free(text);
    tm_trainer_destroy(trainer);
    tm_job_close(&job);
    args_free(&a);
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state))
        return -1;
    write_model(scratch("tied"), tied, TM_BF16, seed);
    write_model(scratch("untied"), untied, TM_F32, seed + 1);
    write_rows(scratch("rows.jsonl"), 9, 3, 150, 53, 0.5, seed + 2);
    write_rows(scratch("long.jsonl"), 3, 257, 330, 53, 0.3, seed + 3);
    write_rows(scratch("held.jsonl"), 5, 3, 60, 53, 0, seed + 4);
    size_t n, m;
    char *a = slurp(scratch("rows.jsonl"), &n), *b = slurp(scratch("long.jsonl"), &m), *both = malloc(n + m);
    memcpy(both, a, n);
    memcpy(both + n, b, m);
    OK(tm_file_write(scratch("rows.jsonl"), both, n + m, err));
    free(a);
    free(b);
    free(both);
    return 0;
}

int main(void)
{
    enum { KINDS = sizeof scenarios / sizeof *scenarios };
    static char names[2 * KINDS][64];
    struct CMUnitTest tests[2 * KINDS + 5] = {cmocka_unit_test(seeds_matter), cmocka_unit_test(packs_are_refused), cmocka_unit_test(replicas_are_runs), cmocka_unit_test(packs_keep_a_common_step), cmocka_unit_test(shares_are_of_the_most_that_was_seen)};
    int count = 5;
    for (int i = 0; i < 2 * KINDS; i++) {
#ifdef TM_SANITIZE /* looks for other things than bits: one scenario for the slow instruction sets is enough */
        if (i % 2 && i > 1)
            continue;
#endif
        snprintf(names[i], sizeof names[i], "%s: %s", i % 2 ? "instruction sets" : "layouts", scenarios[i / 2].name);
        tests[count++] = (struct CMUnitTest){.name = names[i], .test_func = i % 2 ? instruction_set_leaves_no_trace : layout_leaves_no_trace, .initial_state = (void *)(uintptr_t)&scenarios[i / 2]};
    }
    return _cmocka_run_group_tests("trainer", tests, (size_t)count, begin, scratch_end);
}
