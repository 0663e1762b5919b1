/* Averages of weights: against sums over the checkpoints of a plain run, made here; neutral settings against
 * plain runs, byte for byte; killed runs, threads, packs of replicas; rollback. And WiSE-FT. */
#include "../support/run.h"

#include "api/adapter_file.h"
#include "keep/keep.h"
#include "model/linear.h"

#include <sys/wait.h>

static uint64_t seed;

enum { STEPS = 14, VOCAB = 41 };

static const char *const config = "{\"model_type\": \"qwen2\", \"tie_word_embeddings\": false, \"vocab_size\": 41, \"hidden_size\": 24, \"intermediate_size\": 40, "
                                  "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"max_position_embeddings\": 64}";

/* --- Runs --- */

static void recipe(args *a, const char *out)
{
    arg(a, "model=%s", scratch("model"));
    arg(a, "out=%s", scratch(out));
    arg(a, "data.0.path=%s", scratch("rows.jsonl"));
    arg(a, "data.0.format=tokens");
    arg(a, "threads=1");
    arg(a, "train.batch=3");
    arg(a, "train.steps=%d", STEPS);
    arg(a, "train.warmup_steps=0");
    arg(a, "train.schedule=constant");
    arg(a, "train.seed=%llu", (unsigned long long)(seed >> 1));
    arg(a, "train.checkpoint_every=0");
    arg(a, "train.eval_every=5");
    arg(a, "eval.0={name: held, format: tokens, path: '%s'}", scratch("held.jsonl"));
}

static const char *const of_method[][6] = {
    {"method=full", "train.lr=0.01", "train.weight_decay=0.1"},
    {"method=lora", "lora.r=3", "lora.alpha=7", "train.lr=0.01", "lora.dropout=0.1"},
    {"method=lora", "lora.r=4", "lora.use_rslora=true", "lora.target_modules=[embed_tokens, q_proj, down_proj, lm_head]", "lora.rank_pattern={q_proj: 2}", "train.lr=0.01"},
    {"method=lora", "lora.r=2", "lora.bias=all", "lora.modules_to_save=[norm]", "train.lr=0.01", "lora.alpha_pattern={v_proj: 3}"},
    {"method=adapter", "adapter.size=4", "train.lr=0.01"},
    {"method=bitfit", "train.lr=0.01"},
};
enum { METHODS = sizeof of_method / sizeof *of_method };
static const char *const file_of[METHODS] = {"model.safetensors", "adapter_model.safetensors", "adapter_model.safetensors", "adapter_model.safetensors", "adapter.safetensors", "model.safetensors"};

static args run_with(int method, const char *out, const char *const *more)
{
    args a = {0};
    recipe(&a, out);
    for (int i = 0; i < 6 && of_method[method][i]; i++)
        arg(&a, "%s", of_method[method][i]);
    for (int i = 0; more && more[i]; i++)
        arg(&a, "%s", more[i]);
    return a;
}

static void train_with(int method, const char *out, const char *const *more)
{
    args a = run_with(method, out, more);
    OK(tm_dir_remove(scratch(out), err));
    train(&a);
    args_free(&a);
}

#define WITH(...) (const char *const[]){__VA_ARGS__, NULL}

/* --- Looking into files --- */

static tm_safetensors *open_file(const char *dir, const char *file)
{
    char path[1024];
    tm_safetensors *opened;
    snprintf(path, sizeof path, "%s/%s", dir, file);
    OK(tm_safetensors_open(path, &opened, err));
    return opened;
}

/* The weights of the plain run after a step; 0: the start. free() */
static double *values_at(int method, int64_t step, const char *name, int64_t *count)
{
    char dir[700];
    if (step == 0)
        snprintf(dir, sizeof dir, "%s", scratch("model"));
    else
        snprintf(dir, sizeof dir, "%s/checkpoint-%lld", scratch("every"), (long long)step);
    tm_safetensors *file = open_file(dir, step ? file_of[method] : "model.safetensors");
    const tm_st_tensor *t = tm_safetensors_find(file, name);
    double *value = NULL;
    if (t) {
        value = malloc((size_t)t->count * sizeof *value);
        tm_dtype_convert(value, TM_F64, t->data, t->dtype, t->count);
        *count = t->count;
    }
    tm_safetensors_close(file);
    return value;
}

/* dW of every module of an adapter, one after another. free() */
static double *deltas(const char *dir, int64_t *count)
{
    tm_adapter_file f;
    OK(tm_adapter_file_open(dir, &f, err));
    double *out = NULL;
    *count = 0;
    for (int64_t i = 0; i < f.modules; i++) {
        const tm_linear_delta *d = &f.module[i].delta;
        out = realloc(out, (size_t)(*count + d->out * d->in) * sizeof *out);
        memset(out + *count, 0, (size_t)(d->out * d->in) * sizeof *out);
        for (int64_t row = 0; row < d->out; row++, *count += d->in)
            tm_linear_delta_add_row(d, row, 1, out + *count);
    }
    tm_adapter_file_close(&f);
    return out;
}

static void must_be_near(const char *what, const double *got, const double *expect, int64_t count, double bound)
{
    double off = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        off += (got[i] - expect[i]) * (got[i] - expect[i]);
        size += expect[i] * expect[i];
    }
    if (!(sqrt(off) <= bound * sqrt(size)))
        fail_msg("%s is %.3g off; seed %llu", what, sqrt(off / size), (unsigned long long)seed);
}

/* The last two evaluations of a run: NaN where there is none. */
static void last_losses(const char *dir, double loss[2], int64_t step[2])
{
    char path[700];
    size_t size;
    snprintf(path, sizeof path, "%s/metrics.jsonl", dir);
    char *text = slurp(path, &size), *at = text;
    loss[0] = loss[1] = NAN;
    for (char *end; (end = strchr(at, '\n')); at = end + 1) {
        json_t *json;
        OK(tm_json_parse(at, (size_t)(end - at), path, &json, err));
        const json_t *eval = json_object_get(json_object_get(json, "eval"), "held");
        if (eval) {
            loss[0] = loss[1];
            step[0] = step[1];
            loss[1] = json_number_value(json_object_get(eval, "loss"));
            step[1] = json_integer_value(json_object_get(json, "step"));
        }
        json_decref(json);
    }
    free(text);
}

/* The loss of a saved result, by the command that reads results. */
static double loss_of(int method, const char *dir)
{
    char *text;
    bool adapter = strcmp(file_of[method], "model.safetensors") != 0;
    char *overrides[] = {(char[]){"eval.0.format=tokens"}, (char[]){"threads=1"}};
    tm_eval_request r = {.model = adapter ? strdup(scratch("model")) : strdup(dir), .adapter = adapter ? dir : NULL, .data = strdup(scratch("held.jsonl")), .json = true, .overrides = overrides, .override_count = 2};
    OK(tm_eval(&r, &text, err));
    json_t *json;
    OK(tm_json_parse(text, strlen(text), "eval", &json, err));
    double loss = json_number_value(json_object_get(json, "loss"));
    json_decref(json);
    free(text);
    free((void *)(uintptr_t)r.model);
    free((void *)(uintptr_t)r.data);
    return loss;
}

static void result_is_what_was_evaluated(int method, const char *out)
{
    double loss[2], saved = loss_of(method, scratch(out));
    int64_t step[2];
    last_losses(scratch(out), loss, step);
    assert_int_equal(step[0], STEPS);
    assert_int_equal(step[1], STEPS);
    if (!(fabs(loss[1] - saved) <= 1e-6 * saved) || loss[0] == loss[1])
        fail_msg("%s, %s: the last row says %.9g (before %.9g), the saved result has %.9g; seed %llu", of_method[method][0], out, loss[1], loss[0], saved, (unsigned long long)seed);
}

/* --- Neutral settings --- */

static void same_result(int method, const char *what, const char *const *more, bool rows)
{
    train_with(method, "other", more);
    bool same = files_agree(scratch("plain"), scratch("other"), file_of[method]) && files_agree(scratch("plain"), scratch("other"), "trail.bin");
    if (rows)
        same &= files_agree(scratch("plain"), scratch("other"), "metrics.jsonl");
    if (!same)
        fail_msg("%s: %s is not the plain run; seed %llu", of_method[method][0], what, (unsigned long long)seed);
}

static void neutral_settings_change_nothing(void **state)
{
    (void)state;
    for (int m = 0; m < METHODS; m++) {
        train_with(m, "plain", NULL);
        same_result(m, "lookahead with alpha 1", WITH("keep.average.kind=lookahead", "keep.average.every=3", "keep.average.alpha=1"), true);
        same_result(m, "ema with decay 0", WITH("keep.average.kind=ema", "keep.average.every=1", "keep.average.decay=0"), false);
        same_result(m, "swa of the last step", WITH("keep.average.kind=swa", "keep.average.every=14"), false);
        same_result(m, "wise with scale 1", WITH("keep.wise.scale=1"), true);
        same_result(m, "kind none", WITH("keep.average.kind=none", "keep.average.every=2"), true);
    }
}

/* --- Averages --- */

/* Steps of a setting, with the weights they should have; count. */
static int64_t expected(bool ema, int64_t every, double decay, int64_t first, int64_t step[], double weight[])
{
    int64_t n = 0;
    if (ema) {
        step[n] = 0;
        weight[n++] = 1;
    }
    for (int64_t s = 1; s <= STEPS; s++)
        if (s % every == 0 && s >= first) {
            for (int64_t i = 0; i < n; i++)
                weight[i] *= ema ? decay : (double)n / (double)(n + 1);
            step[n] = s;
            weight[n] = ema ? 1 - decay : 1.0 / (double)(n + 1);
            n++;
        }
    return n;
}

static void average_weights(int method, const char *what, const int64_t step[], const double weight[], int64_t n)
{
    tm_safetensors *file = open_file(scratch("averaged"), file_of[method]);
    for (int64_t i = 0; i < tm_safetensors_count(file); i++) {
        const tm_st_tensor *t = tm_safetensors_at(file, i);
        if (strstr(t->name, "lora_") || (method == 4 && step[0] == 0)) /* a new adapter's start is in no file */
            continue;
        double *sum = calloc((size_t)t->count, sizeof *sum), *got = malloc((size_t)t->count * sizeof *got);
        for (int64_t k = 0; k < n; k++) {
            int64_t count = 0;
            const char *name = t->name;
            if (step[k] == 0 && strncmp(name, "base_model.model.", 17) == 0)
                name += 17;
            char plain[600];
            snprintf(plain, sizeof plain, "%s", name);
            char *inner = strstr(plain, ".base_layer");
            if (step[k] == 0 && inner)
                memmove(inner, inner + 11, strlen(inner + 11) + 1);
            double *value = values_at(method, step[k], step[k] ? t->name : plain, &count);
            for (int64_t j = 0; j < t->count && value; j++)
                sum[j] += weight[k] * value[j];
            assert_true(value || (step[k] == 0 && strstr(t->name, "bias")));
            free(value);
        }
        tm_dtype_convert(got, TM_F64, t->data, t->dtype, t->count);
        char text[800];
        snprintf(text, sizeof text, "%s: %s", what, t->name);
        must_be_near(text, got, sum, t->count, 1e-6);
        free(sum);
        free(got);
    }
    tm_safetensors_close(file);
}

/* dW of the result is the average of dW; what an average of A and of B would do is something else. */
static void average_deltas(const char *what, const int64_t step[], const double weight[], int64_t n)
{
    int64_t count, same;
    double *got = deltas(scratch("averaged"), &count), *sum = calloc((size_t)count, sizeof *sum);
    for (int64_t k = 0; k < n; k++) {
        char dir[700];
        snprintf(dir, sizeof dir, "%s/checkpoint-%lld", scratch("every"), (long long)step[k]);
        if (step[k] == 0) /* B is zero */
            continue;
        double *one = deltas(dir, &same);
        assert_int_equal(same, count);
        for (int64_t i = 0; i < count; i++)
            sum[i] += weight[k] * one[i];
        free(one);
    }
    must_be_near(what, got, sum, count, 2e-6);
    free(got);
    free(sum);
}

static const struct setting {
    const char *name, *arg[5];
    bool ema;
    int64_t every, first;
    double decay;
} settings[] = {
    {"ema", {"keep.average.kind=ema", "keep.average.every=2", "keep.average.decay=0.7"}, true, 2, 0, 0.7},
    {"ema of every step", {"keep.average.kind=ema", "keep.average.every=1", "keep.average.decay=0.8"}, true, 1, 0, 0.8},
    {"swa", {"keep.average.kind=swa", "keep.average.every=3", "keep.average.start=0.3"}, false, 3, 5, 0},
    {"swa of all", {"keep.average.kind=swa", "keep.average.every=2", "keep.average.start=0"}, false, 2, 1, 0},
};

static void averages_are_sums_over_checkpoints(void **state)
{
    (void)state;
    for (int m = 0; m < METHODS; m++) {
        train_with(m, "every", WITH("train.checkpoint_every=1", "train.keep_checkpoints=100"));
        /* The last step has no checkpoint: the result is its. */
        char from[700], last[700];
        snprintf(last, sizeof last, "%s/checkpoint-%d", scratch("every"), STEPS);
        OK(tm_dir_create(last, err));
        static const char *const files[] = {"adapter_config.json"};
        for (size_t i = 0; i < 2; i++) {
            snprintf(from, sizeof from, "%s/%s", scratch("every"), i ? files[0] : file_of[m]);
            size_t size;
            if (!tm_path_exists(from))
                continue;
            char *bytes = slurp(from, &size), to[900];
            snprintf(to, sizeof to, "%s/%s", last, i ? files[0] : file_of[m]);
            OK(tm_file_write(to, bytes, size, err));
            free(bytes);
        }
        for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
            const struct setting *s = &settings[i];
            int64_t step[STEPS + 1];
            double weight[STEPS + 1];
            int64_t n = expected(s->ema, s->every, s->decay, s->first, step, weight);
            char what[200];
            snprintf(what, sizeof what, "%s %s, %s", of_method[m][0], of_method[m][1], s->name);
            train_with(m, "averaged", s->arg);
            assert_true(files_agree(scratch("every"), scratch("averaged"), "trail.bin"));
            average_weights(m, what, step, weight, n);
            if (strcmp(of_method[m][0], "method=lora") == 0)
                average_deltas(what, step, weight, n);
            result_is_what_was_evaluated(m, "averaged");
        }
    }
}

/* --- WiSE-FT --- */

static void wise_ends_are_exact(void **state)
{
    (void)state;
    for (int m = 0; m < METHODS; m++) {
        bool whole = strcmp(file_of[m], "model.safetensors") == 0;
        train_with(m, "averaged", WITH("keep.wise.scale=0"));
        tm_safetensors *file = open_file(scratch("averaged"), file_of[m]), *start = open_file(scratch("model"), "model.safetensors");
        for (int64_t i = 0; whole && i < tm_safetensors_count(start); i++) {
            const tm_st_tensor *b = tm_safetensors_at(start, i), *t = tm_safetensors_find(file, b->name);
            if (!t || t->bytes != b->bytes || memcmp(t->data, b->data, (size_t)t->bytes) != 0)
                fail_msg("%s: with scale 0 %s is not the base's; seed %llu", of_method[m][0], b->name, (unsigned long long)seed);
        }
        tm_safetensors_close(start);
        int64_t looked = 0;
        for (int64_t i = 0; i < tm_safetensors_count(file); i++) {
            const tm_st_tensor *t = tm_safetensors_at(file, i);
            for (int64_t k = 0; k < t->count && (strstr(t->name, "lora_B") || strstr(t->name, "lora_embedding_B") || strstr(t->name, "adapter_up")); k++, looked++)
                assert_true(((const float *)t->data)[k] == 0);
        }
        assert_true(looked > 0 || whole);
        tm_safetensors_close(file);
        double loss[2], first[2];
        int64_t step[2];
        last_losses(scratch("averaged"), loss, step);
        char *base = run_json_text(scratch("averaged"), "status", NULL); /* done */
        assert_string_equal(base, "done");
        free(base);
        first[0] = loss_of(0, scratch("model"));
        if (!(fabs(loss[1] - first[0]) <= 1e-6 * first[0]) || loss[0] == loss[1])
            fail_msg("%s: with scale 0 the loss is %.9g, the base's is %.9g (trained: %.9g); seed %llu", of_method[m][0], loss[1], first[0], loss[0], (unsigned long long)seed);
    }
}

/* base + scale (trained - base), of weights and of dW. */
static void wise_is_between(void **state)
{
    (void)state;
    for (int m = 0; m < METHODS; m++) {
        train_with(m, "plain", NULL);
        train_with(m, "averaged", WITH("keep.wise.scale=0.3"));
        assert_true(files_agree(scratch("plain"), scratch("averaged"), "trail.bin"));
        result_is_what_was_evaluated(m, "averaged");
        if (strcmp(of_method[m][0], "method=lora") == 0) {
            int64_t n, same;
            double *whole = deltas(scratch("plain"), &n), *part = deltas(scratch("averaged"), &same);
            assert_int_equal(n, same);
            for (int64_t i = 0; i < n; i++)
                whole[i] *= 0.3;
            must_be_near("0.3 dW", part, whole, n, 1e-6);
            free(whole);
            free(part);
        }
        tm_safetensors *part = open_file(scratch("averaged"), file_of[m]), *whole = open_file(scratch("plain"), file_of[m]), *base = open_file(scratch("model"), "model.safetensors");
        for (int64_t i = 0; i < tm_safetensors_count(part); i++) {
            const tm_st_tensor *p = tm_safetensors_at(part, i), *w = tm_safetensors_find(whole, p->name);
            char name[600];
            snprintf(name, sizeof name, "%s", strncmp(p->name, "base_model.model.", 17) == 0 ? p->name + 17 : p->name);
            char *inner = strstr(name, ".base_layer");
            if (inner)
                memmove(inner, inner + 11, strlen(inner + 11) + 1);
            const tm_st_tensor *b = tm_safetensors_find(base, name);
            if (strstr(name, "lora_") || strstr(name, "adapter"))
                continue;
            assert_true(b || strstr(name, "bias"));
            for (int64_t k = 0; k < p->count; k++) {
                double there = b ? ((const float *)b->data)[k] : 0, expect = there + 0.3 * (((const float *)w->data)[k] - there);
                if (!(fabs(((const float *)p->data)[k] - expect) <= 2e-7 * (1 + fabs(expect))))
                    fail_msg("%s of %s: %.9g, expected %.9g; seed %llu", name, of_method[m][0], ((const float *)p->data)[k], expect, (unsigned long long)seed);
            }
        }
        tm_safetensors_close(part);
        tm_safetensors_close(whole);
        tm_safetensors_close(base);
    }
}

/* An average that is scaled: B of the stack, not of what was trained last. */
static void wise_of_an_average(void **state)
{
    (void)state;
    int64_t n, same;
    train_with(1, "plain", settings[0].arg);
    train_with(1, "averaged", WITH("keep.average.kind=ema", "keep.average.every=2", "keep.average.decay=0.7", "keep.wise.scale=0.4"));
    double *whole = deltas(scratch("plain"), &n), *part = deltas(scratch("averaged"), &same);
    for (int64_t i = 0; i < n; i++)
        whole[i] *= 0.4;
    must_be_near("0.4 of an average", part, whole, n, 1e-6);
    free(whole);
    free(part);
    result_is_what_was_evaluated(1, "averaged");
}

/* --- Bounds, refusals, rollback --- */

static int64_t rank_of(const char *dir)
{
    tm_adapter_config c;
    OK(tm_adapter_config_read(dir, &c, err));
    int64_t r = c.r;
    tm_adapter_config_deinit(&c);
    return r;
}

static void stacks_are_bounded(void **state)
{
    (void)state;
    /* What weighs less than 1/256 of the newest is left out: 0.3^4 is more than that, 0.3^5 is not. */
    train_with(1, "averaged", WITH("keep.average.kind=ema", "keep.average.every=1", "keep.average.decay=0.3"));
    assert_int_equal(rank_of(scratch("averaged")), 3 * 5);
    assert_false(run_json_warns(scratch("averaged"), "keep.average"));
    train_with(1, "every", WITH("train.checkpoint_every=1", "train.keep_checkpoints=100"));
    int64_t step[] = {14, 13, 12, 11, 10}, count, same;
    double weight[5], all = 0, *got = deltas(scratch("averaged"), &count), *sum = calloc((size_t)count, 8);
    for (int i = 0; i < 5; i++)
        all += weight[i] = pow(0.3, i);
    for (int i = 0; i < 5; i++) {
        char dir[700];
        snprintf(dir, sizeof dir, step[i] == STEPS ? "%s" : "%s/checkpoint-%lld", scratch("every"), (long long)step[i]);
        double *one = deltas(dir, &same);
        for (int64_t k = 0; k < count; k++)
            sum[k] += weight[i] / all * one[k];
        free(one);
    }
    must_be_near("the newest five", got, sum, count, 2e-6);
    free(got);
    free(sum);
    /* SWA: no more than eight, further apart. Steps 1 to 14 would be 14, every second 7. */
    train_with(1, "averaged", WITH("keep.average.kind=swa", "keep.average.every=1", "keep.average.start=0"));
    assert_int_equal(rank_of(scratch("averaged")), 3 * 7);
    assert_true(run_json_warns(scratch("averaged"), "every 2 steps"));
    train_with(0, "averaged", WITH("keep.average.kind=swa", "keep.average.every=1", "keep.average.start=0"));
    assert_false(run_json_warns(scratch("averaged"), "keep.average"));
}

/* A run that ends before anything was averaged saves what it has, and says so. */
static void ended_too_early(void **state)
{
    (void)state;
#define EARLY "train.eval_every=1", "train.early_stop.metric=eval.held.loss", "train.early_stop.patience=1", "train.early_stop.min_delta=1000"
    for (int m = 0; m < 2; m++)
        for (int ema = 0; ema < 2; ema++) {
            train_with(m, "plain", WITH(EARLY));
            train_with(m, "averaged", WITH(EARLY, "keep.average.every=9", ema ? "keep.average.kind=ema" : "keep.average.kind=swa"));
            assert_true(run_json_warns(scratch("averaged"), "the result is not an average"));
            if (!runs_agree(scratch("plain"), scratch("averaged"), file_of[m]))
                fail_msg("%s: without an average the result is another; seed %llu", of_method[m][0], (unsigned long long)seed);
        }
}

static void refused(void **state)
{
    (void)state;
    static const struct {
        tm_status status;
        const char *text, *arg[5];
    } cases[] = {
        {TM_UNSUPPORTED, "DoRA", {"lora.use_dora=true", "keep.average.kind=ema"}},
        {TM_UNSUPPORTED, "registers", {"lora.registers=[a, b]", "keep.average.kind=swa", "data.0.registers={a: 1}"}},
        {TM_RECIPE, "no step from", {"keep.average.kind=swa", "keep.average.every=15"}},
        {TM_RECIPE, "no step from", {"keep.average.kind=ema", "keep.average.every=15"}},
        {TM_RECIPE, "no step from", {"method=full", "keep.average.kind=swa", "keep.average.start=0.8", "keep.average.every=11"}},
        {TM_UNSUPPORTED, "use_dora", {"lora.use_dora=true", "keep.wise.scale=0.5"}},
        {TM_UNSUPPORTED, "prompt", {"method=prompt", "keep.wise.scale=0.5"}},
        {TM_RECIPE, "init: random", {"method=full", "init=random", "keep.wise.scale=0.5"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        args a = {0};
        recipe(&a, "refused");
        for (int k = 0; k < 5 && cases[i].arg[k]; k++)
            arg(&a, "%s", cases[i].arg[k]);
        tm_error problem = {0};
        tm_status st = try_train(&a, &problem);
        if (st != cases[i].status || !strstr(problem.message, cases[i].text) || !strstr(problem.message, "keep."))
            fail_msg("%s: status %d, %s", cases[i].arg[0], (int)st, problem.message);
        args_free(&a);
    }
}

/* Says after the last step's weights were changed that the probe has become much worse. Added before the monitor. */
static tm_status make_worse(void *state, tm_trainer *t, int32_t replica, tm_verdict *verdict, tm_error *err)
{
    (void)state;
    (void)verdict;
    (void)err;
    for (int64_t i = 0; i < t->run->eval_count && t->result_changed; i++)
        if (t->run->evals[i].probe)
            t->run->evals[i].last[replica].loss = 1e6;
    return TM_OK;
}

static tm_status add_worse(tm_trainer *t, tm_error *err)
{
    tm_hook hook = {.name = "worse", .evaluate = make_worse};
    TM_TRY(tm_trainer_add_hook(t, &hook, err));
    return tm_keep_add(t, err);
}

/* What is saved is judged as every evaluation is: beyond its budget the weights of the last step, which passed, are the
 * result, with their own rank. */
static void a_bad_average_is_rolled_back(void **state)
{
    (void)state;
    static const char *const average[3][4] = {{"keep.average.kind=ema", "keep.average.every=1"}, {"keep.wise.scale=0.05"}, {"keep.average.kind=swa", "keep.average.every=3", "keep.wise.scale=0.5"}};
    for (int m = 0; m < 4; m++)
        for (int k = 0; k < 3; k++) {
            train_with(m, "plain", NULL);
            OK(tm_dir_remove(scratch("back"), err));
            args a = run_with(m, "back", average[k]);
            arg(&a, "keep.monitor.on_breach=rollback");
            arg(&a, "keep.monitor.probes.0={name: probe, format: tokens, path: '%s', max_drop: 1000}", scratch("held.jsonl"));
            tm_job job;
            tm_trainer *t;
            open_job(&a, TM_JOB_TRAIN, &job);
            job.run.add_hooks = add_worse;
            OK(tm_trainer_create(&job.run, job.device, job.plan.part, &t, err));
            OK(tm_trainer_start(t, err));
            OK(tm_trainer_run(t, err));
            assert_int_equal(t->verdict, TM_ROLL_BACK);
            OK(tm_trainer_save(t, err));
            tm_trainer_destroy(t);
            tm_job_close(&job);
            args_free(&a);
            if (!files_agree(scratch("plain"), scratch("back"), file_of[m]) || (m && !files_agree(scratch("plain"), scratch("back"), "adapter_config.json")))
                fail_msg("%s, %s: what was rolled back is not the last step; seed %llu", of_method[m][0], average[k][0], (unsigned long long)seed);
        }
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state))
        return -1;
    write_model(scratch("model"), config, TM_F32, seed);
    write_rows(scratch("rows.jsonl"), 20, 4, 20, VOCAB, 0.3, seed + 1);
    write_rows(scratch("held.jsonl"), 6, 4, 20, VOCAB, 0, seed + 2);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(neutral_settings_change_nothing),
        cmocka_unit_test(averages_are_sums_over_checkpoints),
        cmocka_unit_test(wise_ends_are_exact),
        cmocka_unit_test(wise_is_between),
        cmocka_unit_test(wise_of_an_average),
        cmocka_unit_test(stacks_are_bounded),
        cmocka_unit_test(ended_too_early),
        cmocka_unit_test(refused),
        cmocka_unit_test(a_bad_average_is_rolled_back),
    };
    return cmocka_run_group_tests_name("average", tests, begin, scratch_end);
}
