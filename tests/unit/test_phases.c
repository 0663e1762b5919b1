/* What a run does before its training, in a plan: which phases there are, how many tokens each puts through the model, what memory the largest takes,
 * and that a plan refuses what the run itself would. */
#include "../support/run.h"
#include "api/phases.h"

enum { ROWS = 12, OLD = 9, LENGTH = 20, OLD_LENGTH = 30 };

static const char *const config =
    "{\"model_type\": \"llama\", \"vocab_size\": 61, \"hidden_size\": 64, \"intermediate_size\": 192, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
    "\"num_key_value_heads\": 2, \"max_position_embeddings\": 64, \"tie_word_embeddings\": true}";

static void put_rows(const char *path, int rows, int length)
{
    FILE *f = fopen(path, "w");
    for (int i = 0; i < rows; i++) {
        fprintf(f, "{\"input_ids\": [1");
        for (int k = 1; k < length; k++)
            fprintf(f, ", %d", 3 + (7 * i + k * k) % 58);
        fprintf(f, "]}\n");
    }
    fclose(f);
}

static void recipe(args *a, const char *const *more)
{
    arg(a, "model=%s", scratch("model"));
    arg(a, "out=%s", scratch("run"));
    arg(a, "data.0.path=%s", scratch("new.jsonl"));
    arg(a, "data.0.format=tokens");
    arg(a, "device=cpu");
    arg(a, "threads=1");
    arg(a, "train.steps=2");
    arg(a, "train.batch=1");
    for (; *more; more++) {
        const char *old = strstr(*more, "OLD");
        if (old)
            arg(a, "%.*s%s%s", (int)(old - *more), *more, scratch("old.jsonl"), old + 3);
        else
            arg(a, "%s", *more);
    }
}

/* One a second of everything: a phase lasts as long as it has work. */
static void know_rates(tm_target *target)
{
    double *rate = (double *)&target->rates.rate;
    target->timed = true;
    for (int i = 0; i < TM_WORK_TERMS; i++)
        rate[i] = 1e9;
}

static int phases_of(const char *const *more, tm_phase out[TM_PHASES], tm_memory_plan *plan)
{
    args a = {0};
    tm_job job;
    tm_measuring *measuring = NULL;
    tm_status misfit;
    tm_error why;
    int count;
    recipe(&a, more);
    open_job(&a, TM_JOB_PLAN, &job);
    know_rates(&job.target);
    if (tm_job_measures(job.recipe))
        OK(tm_measuring_open(&job, &measuring, err));
    OK(tm_job_phases(&job, measuring, out, &count, &misfit, &why, err));
    assert_int_equal(misfit, TM_OK);
    *plan = job.plan;
    tm_measuring_close(measuring);
    tm_job_close(&job);
    args_free(&a);
    return count;
}

static void which_and_how_much(void **state)
{
    (void)state;
    static const struct {
        const char *more[8];
        int count;
        const char *name; /* of the last one */
        double tokens;
    } cases[] = {
        {{"method=lora"}, 0, NULL, 0},
        {{"keep.ewc.lambda=1", "keep.ewc.importances=OLD"}, 0, NULL, 0},
        {{"keep.ewc.lambda=1", "keep.ewc.path=OLD", "keep.ewc.format=tokens", "keep.ewc.samples=4"}, 1, "importances", 4 * OLD_LENGTH},
        {{"keep.ewc.lambda=1", "keep.ewc.path=OLD", "keep.ewc.format=tokens", "keep.ewc.importance=path"}, 1, "importances", OLD * OLD_LENGTH},
        {{"keep.stm.fraction=0.2"}, 1, "mask", ROWS * LENGTH},
        {{"keep.stm.fraction=0.2", "keep.replay={path: OLD, format: tokens}"}, 1, "mask", ROWS * LENGTH},
        {{"keep.kl.beta=0.1"}, 0, NULL, 0}, /* LoRA asks the base again each time */
        {{"method=full", "keep.kl.beta=0.1"}, 1, "remember", ROWS * LENGTH},
        {{"method=full", "keep.kl={beta: 0.1, on: [replay]}", "keep.replay={path: OLD, format: tokens}"}, 1, "remember", OLD * OLD_LENGTH},
        {{"method=full", "keep.kl={beta: 0.1}", "keep.replay={path: OLD, format: tokens}"}, 1, "remember", ROWS * LENGTH + OLD * OLD_LENGTH},
        {{"keep.generate={samples: 7, max_tokens: 11}"}, 1, "generate", 77},
        {{"keep.replay={path: OLD, format: tokens, buffer: 2, select: random}"}, 0, NULL, 0},
        {{"keep.replay={path: OLD, format: tokens, buffer: 2, select: loss}"}, 1, "choose", OLD * OLD_LENGTH},
        {{"method=full", "keep.ewc={lambda: 1, path: OLD, format: tokens}", "keep.stm.threshold=3", "keep.kl.beta=1", "keep.generate={samples: 2, max_tokens: 9}"}, 4, "remember", ROWS * LENGTH + 18},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tm_phase phase[TM_PHASES];
        tm_memory_plan plan;
        int count = phases_of(cases[i].more, phase, &plan);
        if (count != cases[i].count)
            fail_msg("%s: %d phases, expected %d", cases[i].more[0], count, cases[i].count);
        for (int k = 0; k < count; k++)
            assert_true(phase[k].seconds > 0 && phase[k].tokens > 0 && (phase[k].peak > 0) == (strcmp(phase[k].name, "importances") == 0));
        if (count && (strcmp(phase[count - 1].name, cases[i].name) != 0 || phase[count - 1].tokens != cases[i].tokens))
            fail_msg("%s: %s of %g tokens, expected %s of %g", cases[i].more[0], phase[count - 1].name, phase[count - 1].tokens, cases[i].name, cases[i].tokens);
    }
}

/* Time goes with tokens; a pass of the base is a part of a training step's time, a gradient of one example about a step of one. */
static void how_long(void **state)
{
    (void)state;
    tm_phase few[TM_PHASES], many[TM_PHASES], mask[TM_PHASES];
    tm_memory_plan plan, masked;
    assert_int_equal(phases_of((const char *[]){"method=full", "keep.ewc={lambda: 1, path: OLD, format: tokens, samples: 3}", NULL}, few, &plan), 1);
    assert_int_equal(phases_of((const char *[]){"method=full", "keep.ewc={lambda: 1, path: OLD, format: tokens, samples: 6}", NULL}, many, &plan), 1);
    assert_true(fabs(many[0].seconds / few[0].seconds - 2) < 1e-9);
    assert_int_equal(phases_of((const char *[]){"method=full", "keep.stm.fraction=0.2", NULL}, mask, &masked), 1);
    tm_calibration rates = {0};
    tm_target target = {0};
    know_rates(&target);
    rates = target.rates;
    double training = mask[0].tokens / tm_tokens_per_second(&masked, &rates), forward = tm_seconds_of(&rates, &masked.look) / tm_seconds_of(&rates, &masked.micro);
    assert_true(forward > 0.2 && forward < 0.5); /* one of three products, and the head's loss */
    assert_true(mask[0].seconds < 0.5 * training);
    double step = few[0].seconds / few[0].tokens * tm_tokens_per_second(&plan, &rates); /* beside a step of the run, a token */
    assert_true(step > 0.4 && step < 1.1);
}

/* Texts are written 16 at a time: the weights are read once for a token of each, and every token is computed. */
static void texts_at_once(void **state)
{
    (void)state;
    static const int64_t samples[] = {1, 7, 16, 17, 64};
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        tm_phase phase[TM_PHASES];
        tm_memory_plan plan;
        tm_target target = {0};
        char generate[64];
        know_rates(&target);
        snprintf(generate, sizeof generate, "keep.generate={samples: %lld, max_tokens: 10}", (long long)samples[i]);
        assert_int_equal(phases_of((const char *[]){generate, NULL}, phase, &plan), 1);
        double tokens = 10.0 * (double)samples[i], turns = samples[i] < 16 ? 10 : tokens / 16;
        double want = turns * ((double)plan.part[TM_MEM_WEIGHTS] + 10.0 * (double)plan.layers) / 1e9 + tokens / tm_looks_per_second(&plan, &target.rates);
        if (!(fabs(phase[0].seconds / want - 1) < 1e-9))
            fail_msg("%lld texts: %g seconds, expected %g", (long long)samples[i], phase[0].seconds, want);
    }
}

/* The matrices inside the blocks that are trained or adapted, where the share leaves a direction. */
static void singular_directions(void **state)
{
    (void)state;
    static const struct {
        const char *more[4];
        int64_t sizes[7][3]; /* shorter side, longer side, directions; of a block */
        int64_t blocks;
    } cases[] = {
        {{"keep.osf.share=0.5", "lora.target_modules=all-linear"}, {{64, 64, 32}, {32, 64, 16}, {32, 64, 16}, {64, 64, 32}, {64, 192, 32}, {64, 192, 32}, {64, 192, 32}}, 2},
        {{"keep.osf.share=0.25", "lora.target_modules=[q_proj, down_proj]"}, {{64, 64, 16}, {64, 192, 16}}, 2},
        {{"keep.osf.share=0.01", "lora.target_modules=all-linear"}, {{64, 64, 1}, {64, 64, 1}, {64, 192, 1}, {64, 192, 1}, {64, 192, 1}}, 2}, /* 0.32 of 32 is none */
        {{"keep.osf.share=1", "method=freeze", "freeze.layers=1"}, {{64, 64, 64}, {32, 64, 32}, {32, 64, 32}, {64, 64, 64}, {64, 192, 64}, {64, 192, 64}, {64, 192, 64}}, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tm_phase phase[TM_PHASES];
        tm_memory_plan plan;
        double work = 0;
        int64_t matrices = 0;
        for (int k = 0; k < 7 && cases[i].sizes[k][0]; k++) {
            double n = (double)cases[i].sizes[k][0], m = (double)cases[i].sizes[k][1], top = (double)cases[i].sizes[k][2];
            work += (double)cases[i].blocks * (n * n * m + 2 * top * n * m + 3 * n * n * n);
            matrices += cases[i].blocks;
        }
        assert_int_equal(phases_of(cases[i].more, phase, &plan), 1);
        assert_string_equal(phase[0].name, "directions");
        assert_true(phase[0].seconds > 0 && isnan(phase[0].tokens) && !phase[0].peak);
        if (plan.directions.matrices != matrices || !(fabs(plan.directions.work / work - 1) < 1e-9))
            fail_msg("%s, %s: %lld matrices, %g of work; expected %lld, %g", cases[i].more[0], cases[i].more[1], (long long)plan.directions.matrices, plan.directions.work,
                     (long long)matrices, work);
    }
}

static json_t *plan_json(const char *const *more, tm_status expected, tm_error *why)
{
    args a = {0};
    char *text = NULL;
    json_t *json;
    recipe(&a, more);
    tm_plan_request request = {.source = {.overrides = a.item, .override_count = a.count}, .json = true};
    tm_status st = tm_plan(&request, &text, why);
    if (st != expected)
        fail_msg("status %d, expected %d: %s", (int)st, (int)expected, st == TM_OK ? "" : why->message);
    OK(tm_json_parse(text, strlen(text), "plan", &json, err));
    free(text);
    args_free(&a);
    return json;
}

/* The run's peak is that of its largest phase, and with less memory than that plan and run say so alike. */
static void largest_phase(void **state)
{
    (void)state;
    static const char *const more[] = {"train.seq=32", "train.micro_tokens=32", "lora.r=1", "lora.target_modules=[q_proj, up_proj, down_proj]", "keep.ewc={lambda: 1, path: OLD, format: tokens, samples: 3}", NULL};
    tm_error why;
    char limit[32];
    unsetenv("TEMPER_MEMORY_LIMIT");
    json_t *json = plan_json(more, TM_OK, &why);
    int64_t training = json_integer_value(json_object_get(json, "peak_bytes")), whole = json_integer_value(json_object_get(json, "run_peak_bytes"));
    const json_t *before = json_object_get(json, "before");
    assert_int_equal(json_array_size(before), 1);
    int64_t measuring = json_integer_value(json_object_get(json_array_get(before, 0), "peak_bytes"));
    print_message("training %lld bytes, measuring importances %lld\n", (long long)training, (long long)measuring);
    assert_true(measuring > training && whole == measuring);
    assert_string_equal(json_string_value(json_object_get(json_array_get(before, 0), "phase")), "importances");
    int64_t own = json_integer_value(json_object_get(json_object_get(json, "parts"), "device")); /* the device has it already */
    json_decref(json);
    for (int room = 0; room < 2; room++) {
        args a = {0};
        tm_error problem = {0};
        snprintf(limit, sizeof limit, "%lld", (long long)(room ? measuring : (measuring + training) / 2) - own);
        setenv("TEMPER_MEMORY_LIMIT", limit, 1);
        json = plan_json(more, room ? TM_OK : TM_NO_FIT, &why);
        assert_true(json_boolean_value(json_object_get(json, "fits")) == room);
        json_decref(json);
        if (!room)
            assert_non_null(strstr(why.message, "measuring importances needs"));
        recipe(&a, more);
        tm_status st = try_train(&a, &problem);
        unsetenv("TEMPER_MEMORY_LIMIT");
        if (st != (room ? TM_OK : TM_NO_FIT))
            fail_msg("room %d: train: %d, %s", room, (int)st, problem.message);
        args_free(&a);
        OK(tm_dir_remove(scratch("run"), err));
    }
}

static int begin(void **state)
{
    if (memory_begin(state))
        return -1;
    write_model(scratch("model"), config, TM_F32, 5);
    put_rows(scratch("new.jsonl"), ROWS, LENGTH);
    put_rows(scratch("old.jsonl"), OLD, OLD_LENGTH);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(which_and_how_much), cmocka_unit_test(how_long), cmocka_unit_test(texts_at_once), cmocka_unit_test(singular_directions), cmocka_unit_test(largest_phase)};
    return cmocka_run_group_tests_name("phases before the training", tests, begin, scratch_end);
}
