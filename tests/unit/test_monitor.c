/* Probes of old skills: what they measure, against logits looked at from outside; when they act; and what
 * warn, stop and rollback leave behind. A base model is trained on one kind of rows until it knows
 * them; then noise destroys that. */
#include "../support/machine.h"

static uint64_t seed;

#define BASE_SEED 11 /* fixed: the damage must grow past the budgets that are derived from it */

static const char *const config = "{\"model_type\": \"qwen3\", \"tie_word_embeddings\": true, \"vocab_size\": 31, \"hidden_size\": 32, \"intermediate_size\": 48, "
                                  "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 8, \"max_position_embeddings\": 64}",
                  *const metrics[] = {"loss", "accuracy", "exact", "kl"};

enum { METRICS = 4, STEPS = 40, EVERY = 2, ROWS_MAX = STEPS / EVERY + 1 };

/* --- Recipes --- */

static void common(args *a, const char *model, const char *rows, const char *out)
{
    arg(a, "model=%s", scratch(model));
    arg(a, "out=%s", scratch(out));
    arg(a, "data.0.path=%s", scratch(rows));
    arg(a, "data.0.format=tokens");
    arg(a, "threads=1");
    arg(a, "train.batch=4");
    arg(a, "train.steps=%d", STEPS);
    arg(a, "train.warmup_steps=0");
    arg(a, "train.schedule=constant");
    arg(a, "train.eval_every=%d", EVERY);
    arg(a, "keep.monitor.every=%d", EVERY);
    arg(a, "train.checkpoint_every=%d", EVERY);
    arg(a, "train.keep_checkpoints=100");
}

/* Probes of every metric, the one of `watched` (or none: -1) with a budget. */
static void destroy_recipe(args *a, const char *out, const char *on_breach, int watched, double budget)
{
    common(a, "skilled", "noise.jsonl", out);
    arg(a, "lora.r=4");
    arg(a, "lora.dropout=0.1");
    arg(a, "train.lr=0.004");
    arg(a, "keep.monitor.on_breach=%s", on_breach);
    for (int i = 0; i < METRICS; i++) {
        arg(a, "keep.monitor.probes.%d.name=%s", i, metrics[i]);
        arg(a, "keep.monitor.probes.%d.metric=%s", i, metrics[i]);
        arg(a, "keep.monitor.probes.%d.path=%s", i, scratch("old.jsonl"));
        arg(a, "keep.monitor.probes.%d.format=tokens", i);
        if (i == watched)
            arg(a, "keep.monitor.probes.%d.%s=%.17g", i, i == 3 ? "max" : "max_drop", budget);
    }
}

/* --- Rows of metrics.jsonl --- */

typedef struct evaluation {
    int64_t step;
    double value[METRICS]; /* of each probe, by its metric */
} evaluation;

/* The evaluations of a run; the first row must be the one before any update. */
static int64_t read_evaluations(const char *dir, evaluation out[ROWS_MAX])
{
    char path[600], *at, *text;
    size_t size;
    int64_t count = 0, row = 0;
    snprintf(path, sizeof path, "%s/metrics.jsonl", dir);
    at = text = slurp(path, &size);
    for (char *end; (end = strchr(at, '\n')); at = end + 1, row++) {
        json_t *json;
        OK(tm_json_parse(at, (size_t)(end - at), path, &json, err));
        const json_t *eval = json_object_get(json, "eval");
        int64_t step = json_integer_value(json_object_get(json, "step"));
        assert_true((row == 0) == (eval && step == 0));
        if (eval) {
            assert_true(count < ROWS_MAX);
            out[count].step = step;
            for (int i = 0; i < METRICS; i++)
                out[count].value[i] = json_number_value(json_object_get(json_object_get(eval, metrics[i]), metrics[i]));
            count++;
        }
        json_decref(json);
    }
    free(text);
    return count;
}

/* By the documented meaning of budgets: relative to the start, but KL in nats. */
static double damage(const evaluation *e, int64_t i, int metric)
{
    double first = e[0].value[metric], now = e[i].value[metric];
    return metric == 3 ? now : metric == 0 ? (now - first) / first : (first - now) / first;
}

/* --- What probes measure --- */

/* The scores of old.jsonl from all logits of a machine; base: KL from the model without its adapter. */
static void scores_outside(machine *m, evaluation *out)
{
    int64_t vocab = m->model.config.vocab, targets = 0, hits = 0, exact = 0, rows = 0;
    double loss = 0, kl = 0;
    float *base = NULL;
    tm_model_begin_step(&m->model, NULL);
    tm_batch_fill(&m->batch, m->items, m->item_count);
    for (int pass = 0; pass < 2; pass++) {
        m->model.linear.base_only = pass == 0;
        tm_model_forward(&m->model, &m->batch);
        tm_model_logits(&m->model, &m->batch);
        if (pass == 0) {
            rows = m->batch.rows.n;
            base = malloc((size_t)(rows * vocab) * 4);
            memcpy(base, m->model.logits.data, (size_t)(rows * vocab) * 4);
        }
    }
    const float *logits = m->model.logits.data;
    int64_t row = 0;
    for (int64_t e = 0; e < m->item_count; row += m->items[e++].n) {
        bool whole = true;
        for (int32_t t = 1; t < m->items[e].n; t++) {
            if (m->items[e].weight && m->items[e].weight[t] == 0)
                continue;
            const float *x = logits + (row + t - 1) * vocab, *y = base + (row + t - 1) * vocab;
            double sum = 0, base_sum = 0, here = 0;
            int64_t best = 0;
            for (int64_t v = 0; v < vocab; v++) {
                sum += exp(x[v]);
                base_sum += exp(y[v]);
                best = x[v] > x[best] ? v : best;
            }
            for (int64_t v = 0; v < vocab; v++)
                here += exp(y[v]) / base_sum * ((y[v] - log(base_sum)) - (x[v] - log(sum)));
            kl += here;
            loss += log(sum) - x[m->items[e].ids[t]];
            hits += best == m->items[e].ids[t];
            whole &= best == m->items[e].ids[t];
            targets++;
        }
        exact += whole;
    }
    *out = (evaluation){.value = {loss / (double)targets, (double)hits / (double)targets, (double)exact / (double)m->item_count, kl / (double)targets}};
    free(base);
}

static evaluation reference[ROWS_MAX];
static int64_t reference_count;

static void probes_measure_what_they_say(void **state)
{
    (void)state;
    tm_job job;
    machine m;
    evaluation outside;
    args a = {0};
    char adapter[600];
    snprintf(adapter, sizeof adapter, "%s", scratch("reference"));
    for (int end = 0; end < 2; end++) {
        common(&a, "skilled", "old.jsonl", "unused");
        arg(&a, "train.shuffle=false");
        arg(&a, "train.batch=12");
        arg(&a, end ? "lora.init=%s" : "lora.r=4", adapter);
        open_job(&a, TM_JOB_PLAN, &job);
        machine_open(&m, &job, TM_ISA_AUTO, 0, (tm_model_settings){.logits = true});
        assert_int_equal(m.item_count, 12);
        scores_outside(&m, &outside);
        const evaluation *inside = &reference[end ? reference_count - 1 : 0];
        for (int i = 0; i < METRICS; i++)
            if (!(fabs(inside->value[i] - outside.value[i]) <= 2e-6 * (1 + fabs(outside.value[i]))))
                fail_msg("%s at the %s: %.9g, from logits %.9g", metrics[i], end ? "end" : "start", inside->value[i], outside.value[i]);
        machine_close(&m);
        tm_job_close(&job);
        args_free(&a);
    }
}

static void kl_starts_at_zero_and_is_never_negative(void **state)
{
    (void)state;
    static const char *const methods[][4] = {{"lora.r=3", "lora.dropout=0.2"}, {"lora.use_dora=true"}, {"method=full"}, {"method=bitfit"}, {"lora.modules_to_save=[lm_head]"},
                                             {"lora.target_modules=[lm_head, q_proj]"}, {"method=freeze", "freeze.layers=1"}, {"lora.r=2", "precision=bf16"}};
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        evaluation e[ROWS_MAX] = {0};
        args a = {0};
        common(&a, "skilled", "noise.jsonl", "kl");
        arg(&a, "train.steps=6");
        arg(&a, "train.checkpoint_every=0");
        arg(&a, "train.lr=1e-4");
        arg(&a, "train.seed=%llu", (unsigned long long)(seed >> 1));
        arg(&a, "keep.monitor.probes.0={name: kl, metric: kl, format: tokens, path: '%s'}", scratch("old.jsonl"));
        for (int k = 0; k < 4 && methods[i][k]; k++)
            arg(&a, "%s", methods[i][k]);
        train(&a);
        int64_t count = read_evaluations(scratch("kl"), e);
        assert_int_equal(count, 4);
        if (!(fabs(e[0].value[3]) <= 1e-6))
            fail_msg("%s: KL to the base is %.3g before any update", methods[i][0], e[0].value[3]);
        for (int64_t k = 0; k < count; k++)
            if (!(e[k].value[3] >= 0))
                fail_msg("%s: KL to the base is %.3g at step %lld; seed %llu", methods[i][0], e[k].value[3], (long long)e[k].step, (unsigned long long)seed);
        if (!(e[count - 1].value[3] > e[0].value[3]))
            fail_msg("%s: KL to the base does not grow", methods[i][0]);
        OK(tm_dir_remove(scratch("kl"), err));
        args_free(&a);
    }
}

/* --- What they do --- */

static void status_is(const char *dir, const char *expect)
{
    char *status = run_json_text(dir, "status", NULL);
    assert_string_equal(status, expect);
    free(status);
}

/* Where a metric's damage passes all before it, and a budget between. false: it never does. */
static bool choose_budget(int metric, int64_t from, int64_t *breach, double *budget)
{
    double most = 0;
    for (int64_t i = 1; i < reference_count; i++) {
        double d = damage(reference, i, metric);
        if (i >= from && d > most + 1e-4) {
            *breach = i;
            *budget = (d + most) / 2;
            return true;
        }
        most = d > most ? d : most;
    }
    return false;
}

static void stays_as_at(const char *dir, int64_t step)
{
    char checkpoint[600];
    snprintf(checkpoint, sizeof checkpoint, "%s/checkpoint-%lld", scratch("reference"), (long long)step);
    assert_true(files_agree(checkpoint, dir, adapter_file()));
}

static void stop_and_rollback(void **state)
{
    (void)state;
    for (int metric = 0; metric < METRICS; metric++) {
        int64_t breach = 0;
        double budget = 0;
        if (!choose_budget(metric, 3 + metric, &breach, &budget))
            fail_msg("%s is never damaged: the test shows nothing", metrics[metric]);
        evaluation e[ROWS_MAX];
        args a = {0};
        destroy_recipe(&a, "stop", "stop", metric, budget);
        train_to(&a, TM_RETENTION);
        assert_int_equal(read_evaluations(scratch("stop"), e), breach + 1);
        assert_int_equal(e[breach].step, breach * EVERY);
        stays_as_at(scratch("stop"), e[breach].step);
        status_is(scratch("stop"), "stopped");
        assert_true(run_json_warns(scratch("stop"), metrics[metric]));
        train_to(&a, TM_RETENTION); /* the same command again: the same answer, nothing done */
        stays_as_at(scratch("stop"), e[breach].step);
        args_free(&a);
        destroy_recipe(&a, "back", "rollback", metric, budget);
        train_to(&a, TM_RETENTION);
        assert_int_equal(read_evaluations(scratch("back"), e), breach + 2);
        evaluation kept = reference[breach - 1];
        kept.step = e[breach].step;
        assert_memory_equal(&e[breach + 1], &kept, sizeof kept); /* the last row is of what is saved */
        stays_as_at(scratch("back"), (breach - 1) * EVERY);
        status_is(scratch("back"), "rolled_back");
        assert_memory_equal(e, reference, (size_t)(breach + 1) * sizeof *e); /* measuring changes nothing */
        args_free(&a);
        OK(tm_dir_remove(scratch("stop"), err));
        OK(tm_dir_remove(scratch("back"), err));
    }
    assert_int_equal(tm_status_exit_code(TM_RETENTION), 5);
}

/* A breach at the first evaluation takes everything back: B is zero again. */
static void rollback_to_the_start(void **state)
{
    (void)state;
    args a = {0};
    char path[600];
    tm_safetensors *file;
    destroy_recipe(&a, "zero", "rollback", 3, 1e-9);
    train_to(&a, TM_RETENTION);
    snprintf(path, sizeof path, "%s/%s", scratch("zero"), adapter_file());
    OK(tm_safetensors_open(path, &file, err));
    int64_t looked = 0;
    for (int64_t i = 0; i < tm_safetensors_count(file); i++) {
        const tm_st_tensor *t = tm_safetensors_at(file, i);
        for (int64_t k = 0; strstr(t->name, "lora_B") && k < t->count; k++, looked++) {
            float value;
            memcpy(&value, (const char *)t->data + 4 * k, 4);
            assert_true(value == 0);
        }
    }
    assert_true(looked > 0);
    tm_safetensors_close(file);
    args_free(&a);
}

static void warn_goes_on(void **state)
{
    (void)state;
    evaluation e[ROWS_MAX];
    int64_t breach = 0;
    double budget = 0;
    args a = {0};
    assert_true(choose_budget(0, 1, &breach, &budget));
    destroy_recipe(&a, "warn", "warn", 0, budget);
    train(&a);
    assert_int_equal(read_evaluations(scratch("warn"), e), reference_count);
    assert_true(runs_agree(scratch("reference"), scratch("warn"), adapter_file()));
    assert_true(run_json_warns(scratch("warn"), "probe loss"));
    assert_false(run_json_warns(scratch("reference"), "probe loss")); /* no budget, no complaint */
    status_is(scratch("warn"), "done");
    args_free(&a);
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state))
        return -1;
    write_model(scratch("model"), config, TM_F32, BASE_SEED);
    write_rows(scratch("old.jsonl"), 12, 6, 14, 31, 0.7, BASE_SEED);
    tm_buf noise = {0};
    dice d = {.key = BASE_SEED + 1};
    for (int i = 0; i < 16; i++) {
        tm_buf_text(&noise, "{\"input_ids\": [");
        for (int t = 0; t < 12; t++)
            tm_buf_printf(&noise, "%s%lld", t ? "," : "", (long long)dice_in(&d, 0, 30));
        tm_buf_text(&noise, "]}\n");
    }
    OK(tm_file_write(scratch("noise.jsonl"), noise.data, noise.size, err));
    tm_buf_deinit(&noise);
    args a = {0};
    common(&a, "model", "old.jsonl", "skilled");
    arg(&a, "method=full");
    arg(&a, "train.lr=0.01");
    arg(&a, "train.steps=80");
    arg(&a, "train.batch=6");
    arg(&a, "train.checkpoint_every=0");
    train(&a);
    args_free(&a);
    destroy_recipe(&a, "reference", "warn", -1, 0);
    train(&a);
    args_free(&a);
    reference_count = read_evaluations(scratch("reference"), reference);
    for (int64_t i = 0; i < reference_count; i += 4)
        print_message("step %2lld: loss %.3f accuracy %.3f exact %.3f kl %.2g\n", (long long)reference[i].step, reference[i].value[0], reference[i].value[1],
                      reference[i].value[2], reference[i].value[3]);
    return reference_count == ROWS_MAX ? 0 : -1;
}

/* With evaluations far apart probes are taken before the first of them all the same. */
static void probes_are_early(void **state)
{
    (void)state;
    tm_recipe recipe = {.eval_every = 120, .monitor_every = TM_AUTO_INT, .probe_count = 1};
    tm_run run = {.steps = 1000};
    tm_trainer t = {.run = &run, .recipe = &recipe};
    static const int64_t due[] = {0, 10, 25, 50, 100, 120, 240, 1000}, not_due[] = {1, 20, 75, 150, 200, 999};
    for (size_t i = 0; i < sizeof due / sizeof *due; i++)
        assert_true(tm_eval_due(&t, due[i]));
    for (size_t i = 0; i < sizeof not_due / sizeof *not_due; i++)
        assert_false(tm_eval_due(&t, not_due[i]));
    recipe.probe_count = 0; /* nothing old is watched: as the recipe says */
    assert_false(tm_eval_due(&t, 10));
    recipe.probe_count = 1;
    recipe.monitor_every = 30;
    assert_true(tm_eval_due(&t, 30) && !tm_eval_due(&t, 10));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probes_are_early), cmocka_unit_test(probes_measure_what_they_say), cmocka_unit_test(kl_starts_at_zero_and_is_never_negative), cmocka_unit_test(stop_and_rollback),
        cmocka_unit_test(rollback_to_the_start), cmocka_unit_test(warn_goes_on),
    };
    return cmocka_run_group_tests_name("monitor", tests, begin, scratch_end);
}
