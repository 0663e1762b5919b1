/* Methods with a teacher: the term that they add to the loss against a computation from whole logits, its gradient against
 * differences through the trainer, and what must hold of it: nothing at the start, never negative, falling when it alone
 * is trained. Layouts, instruction sets and replicas are in test_trainer.c. */
#include "../support/machine.h"

static uint64_t seed;

#define SIZES "\"vocab_size\": 61, \"hidden_size\": 24, \"intermediate_size\": 37, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, " \
              "\"num_key_value_heads\": 2, \"head_dim\": 6, \"max_position_embeddings\": 512"

static const struct family {
    const char *name, *config;
} families[] = {
    {"tied", "{\"model_type\": \"qwen3\", \"tie_word_embeddings\": true, " SIZES "}"},
    {"untied", "{\"model_type\": \"llama\", \"attention_bias\": true, " SIZES "}"},
    {"capped", "{\"model_type\": \"gemma2\", \"sliding_window\": 5, \"query_pre_attn_scalar\": 9, \"attn_logit_softcapping\": 3.0, \"final_logit_softcapping\": 2.0, " SIZES "}"},
};

/* Where the base is switched on again for each micro-batch, and where it has to be remembered. */
static const struct method {
    const char *name, *arg[4];
    enum { NEVER, ADDED, ALWAYS } stays; /* ADDED: where the family has none of its own */
    double start; /* how far from the base it may be at once: DoRA's norm is rounded, bottlenecks are only near zero */
} methods[] = {
    {"lora", {"lora.r=3", "lora.dropout=0.3"}, ALWAYS, 0},
    {"dora", {"lora.r=3", "lora.use_dora=true"}, ALWAYS, 1e-12},
    {"head", {"lora.target_modules=[lm_head, q_proj, embed_tokens]", "lora.r=2"}, ALWAYS, 0},
    {"houlsby", {"method=adapter", "adapter.size=5"}, ALWAYS, 1e-2},
    {"prompt", {"method=prompt", "prompt.tokens=3"}, ALWAYS, INFINITY},
    {"registers", {"lora.registers=[a, b]", "lora.r=2", "data.0.registers={a: 1, b: -0.5}"}, ALWAYS, 0},
    {"saved head", {"lora.modules_to_save=[lm_head]", "lora.r=2"}, ADDED, 0},
    {"full", {"method=full"}, NEVER, 0},
    {"freeze", {"method=freeze", "freeze.layers=1", "freeze.embeddings=false"}, NEVER, 0},
    {"bitfit", {"method=bitfit"}, ADDED, 0},
};

enum { FAMILIES = sizeof families / sizeof *families, METHODS = sizeof methods / sizeof *methods };

static void recipe(args *a, const struct family *f, const struct method *m, const char *out)
{
    arg(a, "model=%s", scratch(f->name));
    arg(a, "out=%s", scratch(out));
    arg(a, "data.0.path=%s", scratch("rows.jsonl"));
    arg(a, "data.0.format=tokens");
    arg(a, "train.batch=20");
    arg(a, "train.steps=6");
    arg(a, "train.warmup_steps=0");
    arg(a, "train.optimizer=sgd");
    arg(a, "train.momentum=0");
    arg(a, "train.max_grad_norm=0");
    arg(a, "train.schedule=constant");
    arg(a, "train.seed=%llu", (unsigned long long)(seed >> 1));
    arg(a, "threads=1");
    for (int i = 0; i < 4 && m->arg[i]; i++)
        arg(a, "%s", m->arg[i]);
}

static void replay(args *a)
{
    arg(a, "keep.replay.path=%s", scratch("old.jsonl"));
    arg(a, "keep.replay.format=tokens");
    arg(a, "keep.replay.fraction=0.5");
}

/* What a method asks for: KL at all targets, at replay's, or DER++ beside KL. */
static const char *const kinds[][4] = {{"keep.kl.beta=0.7"}, {"keep.kl.beta=0.7", "keep.kl.on=[replay]"}, {"keep.kl.beta=0.7", "keep.der.alpha=0.3", "keep.der.beta=0.4"}, {"keep.der.alpha=0.3", "keep.der.beta=0"}};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* Of a bank no register is on for replay, where the base speaks alone. */
static int any_kind(const struct method *m, dice *d) { return strcmp(m->name, "registers") == 0 ? 0 : (int)dice_in(d, 0, KINDS - 1); }

static void ask(args *a, int kind)
{
    replay(a);
    for (int i = 0; i < 4 && kinds[kind][i]; i++)
        arg(a, "%s", kinds[kind][i]);
}

/* --- A trainer to look into --- */

typedef struct bench {
    tm_job job;
    tm_device *device;
    tm_trainer *trainer;
} bench;

static void bench_open(bench *b, const args *a, tm_isa isa)
{
    tm_memory_plan plan;
    *b = (bench){0};
    open_job(a, TM_JOB_TRAIN, &b->job);
    OK(tm_cpu_device_create(1, isa, &b->device, err));
    OK(tm_plan_memory(&b->job.run, b->device->traits, 0, &plan, err));
    OK(tm_trainer_create(&b->job.run, b->device, plan.part, &b->trainer, err));
    OK(tm_trainer_start(b->trainer, err));
}

static void bench_close(bench *b)
{
    char out[1024];
    snprintf(out, sizeof out, "%s", b->job.recipe->out);
    tm_trainer_destroy(b->trainer);
    tm_device_destroy(b->device);
    tm_job_close(&b->job);
    OK(tm_dir_remove(out, err));
}

/* The first step once more, with the weights as they are. */
static tm_step_result first_step(bench *b)
{
    b->trainer->step = 0;
    OK(tm_trainer_step(b->trainer, err));
    return b->trainer->result[0];
}

/* Moves everything that is trained. */
static void move_trained(tm_trainer *t, double far, dice *d)
{
    for (int64_t i = 0; i < t->trained_count; i++) {
        tm_tensor v = t->trained_param[i]->value;
        for (int64_t k = 0; k < v.rows * v.cols; k++)
            if (v.dtype == TM_F64)
                ((double *)v.data)[k] += far * dice_spread(d);
            else
                ((float *)v.data)[k] += (float)(far * dice_spread(d));
    }
}

/* --- What holds of any teacher's term --- */

/* Runs with the method at strength zero write the bytes of runs without it. */
static void off_is_plain(void **state)
{
    (void)state;
    static const char *const off[] = {"keep.kl.beta=0", "keep.kl.on=[replay]", "keep.der.alpha=0", "keep.der.beta=0.1"};
    const struct method *both[] = {&methods[0], &methods[7]};
    for (int i = 0; i < 2; i++) {
        args plain = {0};
        recipe(&plain, &families[0], both[i], "plain");
        replay(&plain);
        train(&plain);
        args_free(&plain);
        args a = {0};
        recipe(&a, &families[0], both[i], "off");
        replay(&a);
        for (size_t k = 0; k < sizeof off / sizeof *off; k++)
            arg(&a, "%s", off[k]);
        train(&a);
        args_free(&a);
        assert_true(runs_agree(scratch("plain"), scratch("off"), i ? model_file() : adapter_file()));
        OK(tm_dir_remove(scratch("plain"), err));
        OK(tm_dir_remove(scratch("off"), err));
    }
}

/* Exactly nothing at the start, positive away from it; trained alone it falls, and with it alone a step against its
 * gradient's sign would show. */
static void starts_at_zero_and_falls(void **state)
{
    (void)state;
    dice d = {.key = seed ^ 1};
    for (int f = 0; f < FAMILIES; f++)
        for (const struct method *m = methods; m < methods + METHODS; m++) {
            args a = {0};
            bench b;
            recipe(&a, &families[f], m, "falls");
            ask(&a, any_kind(m, &d));
            arg(&a, "train.lr=0");
            if (m == &methods[0])
                arg(&a, "lora.dropout=0");
            bench_open(&b, &a, TM_ISA_F64);
            tm_trainer *t = b.trainer;
            assert_int_equal(t->teacher.first == NULL, m->stays == ALWAYS || (m->stays == ADDED && f != 1)); /* the untied model has biases and a head of its own */
            tm_step_result start = first_step(&b);
            if (!(start.penalty >= 0 && start.penalty <= m->start))
                fail_msg("%s, %s: %g nats from the base at the start; seed %llu", families[f].name, m->name, start.penalty, (unsigned long long)seed);
            move_trained(t, 0.1, &d);
            t->teacher.of[0].loss = t->teacher.of[1].loss = 0;
            tm_recipe *r = b.job.recipe;
            tm_step_result now = first_step(&b);
            double moved = now.penalty, last = moved;
            assert_true(moved > 1e-6);
            for (int step = 0; step < 6; step++) { /* to first order 2 % less each time; where it is curved a step may rise */
                r->lr = 0.02 * now.penalty / (now.grad_norm * now.grad_norm);
                first_step(&b);
                r->lr = 0;
                now = first_step(&b);
                if (!(now.penalty >= 0 && now.penalty < 1.1 * last))
                    fail_msg("%s, %s: from %g to %g; seed %llu", families[f].name, m->name, last, now.penalty, (unsigned long long)seed);
                last = now.penalty;
            }
            if (!(last < 0.94 * moved))
                fail_msg("%s, %s: trained alone it went from %g to %g; seed %llu", families[f].name, m->name, moved, last, (unsigned long long)seed);
            print_message("  %-8s %-12s %.2e -> %.2e\n", families[f].name, m->name, moved, last);
            bench_close(&b);
            args_free(&a);
        }
}

/* --- Against whole logits --- */

/* Logits of every row of the machine's items, [rows, V]; free(). */
static float *all_logits(machine *m, bool base)
{
    int64_t count;
    m->model.linear.base_only = base;
    int32_t prefix = m->batch.prefix;
    m->batch.prefix = base ? 0 : prefix;
    tm_model_begin_step(&m->model, m->step);
    tm_batch_fill(&m->batch, m->items, m->item_count);
    tm_model_forward(&m->model, &m->batch);
    tm_model_logits(&m->model, &m->batch);
    m->model.linear.base_only = false;
    m->batch.prefix = prefix;
    count = m->batch.rows.n * m->model.config.vocab;
    float *copy = malloc((size_t)count * 4);
    memcpy(copy, m->model.logits.data, (size_t)count * 4);
    return copy;
}

static double log_sum(const float *z, int64_t n)
{
    double sum = 0;
    for (int64_t v = 0; v < n; v++)
        sum += exp((double)z[v]);
    return log(sum);
}

typedef double term(const float *base, const float *tuned, int64_t n, int32_t target);

/* The sum over targets of one origin of a term of both logits, over the number of all targets of the step. */
static double outside(const machine *m, const float *base, const float *tuned, bool rehearsal, term *of)
{
    int64_t vocab = m->model.config.vocab, row = 0, base_row = 0, targets = 0, count;
    int32_t prefix = m->batch.prefix;
    const int64_t *examples;
    double sum = 0;
    tm_order_step(m->job->order, 0, &examples, &count);
    for (int64_t e = 0; e < count; e++) {
        const tm_example *x = tm_dataset_at(m->job->data, examples[e]);
        for (int32_t t = 1; t < x->n; t++) {
            if (x->weight && x->weight[t] == 0)
                continue;
            targets++;
            if ((x->source == 1) == rehearsal)
                sum += of(base + (base_row + t - 1) * vocab, tuned + (row + prefix + t - 1) * vocab, vocab, x->ids[t]);
        }
        row += x->n + prefix;
        base_row += x->n;
    }
    return sum / (double)targets;
}

static double ce_of(const float *base, const float *tuned, int64_t n, int32_t target)
{
    (void)base;
    return log_sum(tuned, n) - (double)tuned[target];
}

static double square_of(const float *base, const float *tuned, int64_t n, int32_t target)
{
    double sum = 0;
    (void)target;
    for (int64_t v = 0; v < n; v++)
        sum += ((double)tuned[v] - (double)base[v]) * ((double)tuned[v] - (double)base[v]);
    return sum / (double)n;
}

static double kl_of(const float *base, const float *tuned, int64_t n, int32_t target)
{
    (void)target;
    double a = log_sum(base, n), b = log_sum(tuned, n), sum = 0;
    for (int64_t v = 0; v < n; v++)
        sum += exp(base[v] - a) * ((base[v] - a) - (tuned[v] - b));
    return sum;
}

static void copy_trained(const tm_trainer *t, machine *m)
{
    for (int64_t i = 0; i < t->trained_count; i++) {
        const tm_param *p = t->trained_param[i];
        tm_param *q = m->model.params.item[t->trained[i].index];
        assert_string_equal(p->name, q->name);
        memcpy(q->value.data, p->value.data, (size_t)tm_dtype_bytes(p->value.dtype, tm_param_count(p)));
    }
}

static void is_near(const char *what, double got, double want, const char *family, const char *method, int kind)
{
    if (!(fabs(got - want) <= 2e-5 * fabs(want) + 1e-8))
        fail_msg("%s, %s, %s: the %s is %.9g, from logits %.9g; seed %llu", family, method, kinds[kind][0], what, got, want, (unsigned long long)seed);
}

/* Loss and penalty of a step in single precision are what whole logits give, by origin. */
static void check_logits(const struct family *f, const struct method *m, int kind, dice *d)
{
    args a = {0};
    bench b;
    machine c;
    recipe(&a, f, m, "logits");
    arg(&a, "train.lr=0");
    ask(&a, kind);
    bench_open(&b, &a, TM_ISA_AUTO);
    machine_open(&c, &b.job, TM_ISA_AUTO, 0, (tm_model_settings){.logits = true});
    float *base = all_logits(&c, true);
    move_trained(b.trainer, 0.1, d);
    copy_trained(b.trainer, &c);
    tm_step_params step = {.clip = 1, .dropout_key = tm_philox_key(b.job.seeds.dropout, TM_PURPOSE_DROPOUT, 0, 0)};
    memcpy(c.step, &step, sizeof step);
    float *tuned = all_logits(&c, false);
    double task = outside(&c, base, tuned, false, kl_of), old = outside(&c, base, tuned, true, kl_of), square = outside(&c, base, tuned, true, square_of);
    double ce_task = outside(&c, base, tuned, false, ce_of), ce_old = outside(&c, base, tuned, true, ce_of);
    const double penalty[KINDS] = {0.7 * (task + old), 0.7 * old, 0.7 * task + 0.3 * square, 0.3 * square}, share[KINDS] = {1, 1, 0.4, 0};
    tm_step_result got = first_step(&b);
    assert_true(task > 0 && old > 0);
    is_near("penalty", got.penalty, penalty[kind], f->name, m->name, kind);
    is_near("loss", got.loss, ce_task + share[kind] * ce_old, f->name, m->name, kind);
    free(base);
    free(tuned);
    machine_close(&c);
    bench_close(&b);
    args_free(&a);
}

static void is_what_logits_give(void **state)
{
    (void)state;
    dice d = {.key = seed ^ 2};
    for (int f = 0; f < FAMILIES; f++)
        for (const struct method *m = methods; m < methods + METHODS; m++)
            if (strcmp(m->name, "registers") != 0) /* the machine has gates of its own */
                check_logits(&families[f], m, (int)dice_in(&d, 0, KINDS - 1), &d);
}

/* With lora.init the base is still the model of the files, also where the adapter brings tensors of the base's own. */
static void base_is_without_the_adapter(void **state)
{
    (void)state;
    static const struct method saved = {"saved", {"lora.modules_to_save=[lm_head, embed_tokens]", "lora.r=2"}, NEVER, 0};
    for (int f = 0; f < 2; f++) {
        args first = {0}, a = {0}, plain = {0};
        tm_job job;
        bench b;
        machine tuned, untouched;
        recipe(&first, &families[f], &saved, "first");
        arg(&first, "train.lr=0.5");
        train(&first);
        recipe(&plain, &families[f], &saved, "plain");
        recipe(&a, &families[f], &saved, "second");
        ask(&plain, 0);
        ask(&a, 0);
        arg(&a, "train.lr=0");
        arg(&a, "lora.init=%s", scratch("first"));
        bench_open(&b, &a, TM_ISA_AUTO);
        open_job(&plain, TM_JOB_PLAN, &job);
        machine_open(&tuned, &b.job, TM_ISA_AUTO, 0, (tm_model_settings){.logits = true});
        machine_open(&untouched, &job, TM_ISA_AUTO, 0, (tm_model_settings){.logits = true});
        tm_step_params step = {.clip = 1, .dropout_key = tm_philox_key(b.job.seeds.dropout, TM_PURPOSE_DROPOUT, 0, 0)};
        memcpy(tuned.step, &step, sizeof step);
        float *base = all_logits(&untouched, true), *now = all_logits(&tuned, false);
        double want = 0.7 * (outside(&tuned, base, now, false, kl_of) + outside(&tuned, base, now, true, kl_of));
        assert_true(want > 1e-4);
        is_near("penalty", first_step(&b).penalty, want, families[f].name, "lora.init", 0);
        free(base);
        free(now);
        machine_close(&tuned);
        machine_close(&untouched);
        tm_job_close(&job);
        bench_close(&b);
        OK(tm_dir_remove(scratch("first"), err));
        args_free(&first);
        args_free(&plain);
        args_free(&a);
    }
}

/* --- Against differences --- */

static double objective(bench *b)
{
    tm_step_result r = first_step(b);
    return r.loss + r.penalty;
}

static double slope(bench *b, double *value, const double *direction, int64_t n)
{
    static const double step[] = {-2, -1, 1, 2}, weight[] = {1, -8, 8, -1};
    const double h = 3e-4;
    double *kept = malloc((size_t)n * 8), sum = 0;
    memcpy(kept, value, (size_t)n * 8);
    for (int k = 0; k < 4; k++) {
        for (int64_t i = 0; i < n; i++)
            value[i] = kept[i] + h * step[k] * direction[i];
        sum += weight[k] * objective(b);
    }
    memcpy(value, kept, (size_t)n * 8);
    free(kept);
    return sum / (12 * h);
}

/* Every trained tensor's gradient of loss + penalty along a direction at random. */
static void check_gradients(const struct family *f, const struct method *m, dice *d)
{
    args a = {0};
    bench b;
    recipe(&a, f, m, "gradients");
    arg(&a, "train.lr=0");
    arg(&a, "lora.alpha=5");
    arg(&a, "train.micro_tokens=%d", (int)dice_in(d, 20, 80));
    arg(&a, "train.recompute=%s", dice_in(d, 0, 1) ? "full" : "none");
    ask(&a, any_kind(m, d));
    bench_open(&b, &a, TM_ISA_F64);
    move_trained(b.trainer, 0.1, d);
    objective(&b);
    if (!(b.trainer->result[0].penalty > 1e-6))
        fail_msg("%s, %s: penalty %g; seed %llu", f->name, m->name, b.trainer->result[0].penalty, (unsigned long long)seed);
    int64_t left = b.trainer->trained_count;
    double **grad = calloc((size_t)left, sizeof *grad), worst = 0;
    const char *where = "";
    for (int64_t i = 0; i < b.trainer->trained_count; i++) {
        const tm_param *p = b.trainer->trained_param[i];
        grad[i] = malloc((size_t)tm_param_count(p) * 8);
        memcpy(grad[i], p->grad.data, (size_t)tm_param_count(p) * 8);
    }
    for (int64_t i = 0, most = 6; i < b.trainer->trained_count; i++) {
        const tm_param *p = b.trainer->trained_param[i];
        int64_t n = tm_param_count(p);
        if (dice_in(d, 1, left--) > most)
            continue;
        most--;
        double *direction = malloc((size_t)n * 8), expect = 0, norm = 0;
        for (int64_t k = 0; k < n; k++) {
            direction[k] = (dice_spread(d) > 0 ? 1 : -1) / sqrt((double)n);
            expect += direction[k] * grad[i][k];
            norm += grad[i][k] * grad[i][k];
        }
        double error = fabs(slope(&b, p->value.data, direction, n) - expect) / fmax(fabs(expect), sqrt(norm / (double)n));
        if (!(error <= worst)) {
            worst = error;
            where = p->name;
        }
        free(direction);
    }
    if (!(worst <= 1e-6))
        fail_msg("%s, %s: the gradient of %s is off by %.3g; seed %llu", f->name, m->name, where, worst, (unsigned long long)seed);
    for (int64_t i = 0; i < b.trainer->trained_count; i++)
        free(grad[i]);
    free(grad);
    bench_close(&b);
    args_free(&a);
}

static void gradients_of_both(void **state)
{
    (void)state;
    dice d = {.key = seed ^ 3};
    for (int f = 0; f < FAMILIES; f++)
        for (const struct method *m = methods; m < methods + METHODS; m++)
            if (strcmp(m->name, "dora") != 0) /* whose norm is a constant of the step: test_model.c */
                check_gradients(&families[f], m, &d);
}

/* --- A run that is cut goes on as it was --- */

static int64_t steps_left;
static bool cut(void *context)
{
    (void)context;
    return steps_left-- == 0;
}

static void resumed_is_uninterrupted(void **state)
{
    (void)state;
    static const int places[] = {0, 7};
    for (int i = 0; i < 2; i++) {
        args a = {0}, whole = {0};
        recipe(&whole, &families[0], &methods[places[i]], "whole");
        recipe(&a, &families[0], &methods[places[i]], "cut");
        args *both[] = {&whole, &a};
        for (int k = 0; k < 2; k++) {
            arg(both[k], "train.checkpoint_every=2");
            arg(both[k], "train.lr=0.05");
            ask(both[k], 2);
        }
        train(&whole);
        for (int64_t steps = 3; steps < 6; steps += 2) {
            tm_job job;
            tm_trainer *t;
            open_job(&a, TM_JOB_TRAIN, &job);
            job.run.interrupted = cut;
            steps_left = steps > 3 ? 2 : steps;
            OK(tm_trainer_create(&job.run, job.device, job.plan.part, &t, err));
            OK(tm_trainer_start(t, err));
            FAILS(TM_FAILED, "interrupted", tm_trainer_run(t, err));
            tm_trainer_destroy(t);
            tm_job_close(&job);
        }
        train(&a);
        assert_true(runs_agree(scratch("whole"), scratch("cut"), i ? model_file() : adapter_file()));
        OK(tm_dir_remove(scratch("whole"), err));
        OK(tm_dir_remove(scratch("cut"), err));
        args_free(&a);
        args_free(&whole);
    }
}

/* --- Layouts leave no trace; more of them in test_trainer.c --- */

static void layouts_agree(void **state)
{
    (void)state;
    static const char *const layouts[][3] = {{"threads=3", "train.micro_tokens=60"}, {"train.packing=false"}, {"train.batch=5", "train.accumulate=4"}, {"train.micro_tokens=1", "train.recompute=full"}, {"isa"}};
    static const int which[] = {0, 4, 7};
    for (int i = 0; i < 3; i++)
        for (int kind = 1; kind < KINDS; kind++) {
            args plain = {0};
            recipe(&plain, &families[0], &methods[which[i]], "plain");
            arg(&plain, "train.lr=0.05");
            ask(&plain, kind);
            train(&plain);
            args_free(&plain);
            for (size_t k = 0; k < sizeof layouts / sizeof *layouts; k += SPARSE) {
                args a = {0};
                recipe(&a, &families[0], &methods[which[i]], "other");
                arg(&a, "train.lr=0.05");
                ask(&a, kind);
                if (strcmp(layouts[k][0], "isa") == 0)
                    setenv("TEMPER_ISA", "scalar", 1);
                for (int j = 0; j < 3 && layouts[k][j] && layouts[k][0][0] != 'i'; j++)
                    arg(&a, "%s", layouts[k][j]);
                train(&a);
                unsetenv("TEMPER_ISA");
                if (!runs_agree(scratch("plain"), scratch("other"), which[i] == 7 ? model_file() : adapter_file()))
                    fail_msg("%s, %s: other bytes with %s; seed %llu", methods[which[i]].name, kinds[kind][0], layouts[k][0], (unsigned long long)seed);
                OK(tm_dir_remove(scratch("other"), err));
                args_free(&a);
            }
            OK(tm_dir_remove(scratch("plain"), err));
        }
}

/* --- What is refused --- */

static void refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *arg[2];
    } cases[] = {
        {"keep.kl.on: nothing is named", {"keep.kl.beta=1", "keep.kl.on=[]"}},
        {"expected task, replay, or both", {"keep.kl.beta=1", "keep.kl.on=[task, base]"}},
        {"nothing is replayed", {"keep.kl.beta=1", "keep.kl.on=[replay]"}},
        {"keep.der.alpha: 0.5, but nothing is replayed", {"keep.der.alpha=0.5"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        args a = {0};
        recipe(&a, &families[0], &methods[0], "refused");
        for (int k = 0; k < 2 && cases[i].arg[k]; k++)
            arg(&a, "%s", cases[i].arg[k]);
        FAILS(TM_RECIPE, cases[i].text, try_train(&a, err));
        args_free(&a);
    }
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state))
        return -1;
    for (int i = 0; i < FAMILIES; i++)
        write_model(scratch(families[i].name), families[i].config, TM_F32, seed + 7 * (uint64_t)i);
    write_rows(scratch("rows.jsonl"), 3, 4, 12, 61, 0.5, seed + 100);
    write_rows(scratch("old.jsonl"), 3, 4, 12, 61, 0.5, seed + 101);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(off_is_plain), cmocka_unit_test(starts_at_zero_and_falls), cmocka_unit_test(is_what_logits_give), cmocka_unit_test(base_is_without_the_adapter),
        cmocka_unit_test(gradients_of_both), cmocka_unit_test(layouts_agree), cmocka_unit_test(resumed_is_uninterrupted), cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests_name("teacher", tests, begin, scratch_end);
}
