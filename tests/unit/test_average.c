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
    };
    return cmocka_run_group_tests_name("average", tests, begin, scratch_end);
}
