/* Selective token masking: which targets go, against losses computed from logits; a mask that masks nothing leaves no
 * trace; one that masks all gives no gradient and no NaN; a run that goes on reads its mask. */
#include "../support/run.h"

#include "api/inference.h"
#include "api/logits.h"
#include "keep/stm.h"

#include <sys/stat.h>

static uint64_t seed;

static const char *const config = "{\"model_type\": \"qwen2\", \"tie_word_embeddings\": true, \"vocab_size\": 61, \"hidden_size\": 24, \"intermediate_size\": 40, "
                                  "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"max_position_embeddings\": 64}";

/* --- Choosing --- */

static void choice_is_as_said(void **state)
{
    (void)state;
    dice d = {.key = seed};
    for (int trial = 0; trial < 300; trial++) {
        enum { MOST = 90 };
        float loss[MOST];
        uint8_t bits[MOST / 8 + 1], by_share[MOST / 8 + 1];
        int64_t n = dice_in(&d, 1, MOST), masked, taken;
        double threshold = 1 + 5 * dice_unit(&d), fraction = dice_unit(&d);
        for (int64_t i = 0; i < n; i++)
            loss[i] = (float)(dice_in(&d, 0, 12) * 0.25); /* many are equal */
        OK(tm_stm_choose(loss, n, threshold, 0, bits, &masked, err));
        OK(tm_stm_choose(loss, n, 0, fraction, by_share, &taken, err));
        assert_int_equal(taken, (int64_t)floor(fraction * (double)n));
        for (int64_t i = 0; i < n; i++) {
            int64_t above = 0;
            for (int64_t k = 0; k < n; k++)
                above += loss[k] > loss[i] || (loss[k] == loss[i] && k < i);
            assert_int_equal(bits[i / 8] >> (i % 8) & 1, exp(loss[i]) > threshold);
            assert_int_equal(by_share[i / 8] >> (i % 8) & 1, above < taken);
            masked -= exp(loss[i]) > threshold;
        }
        assert_int_equal(masked, 0);
    }
    float even[] = {0, 0, 1e-3f}; /* a perplexity of exactly 1 does not exceed 1 */
    uint8_t above[1];
    int64_t some;
    OK(tm_stm_choose(even, 3, 1, 0, above, &some, err));
    assert_true(some == 1 && above[0] == 4);
    float huge[] = {800, 1, 0};
    uint8_t bits[1];
    int64_t masked;
    OK(tm_stm_choose(huge, 3, 1e300, 0, bits, &masked, err));
    assert_true(masked == 1 && bits[0] == 1);
}

/* --- Runs --- */

static void recipe(args *a, const char *out, const char *method)
{
    arg(a, "model=%s", scratch("model"));
    arg(a, "out=%s", scratch(out));
    arg(a, "method=%s", method);
    arg(a, "data.0.path=%s", scratch("task.jsonl"));
    arg(a, "data.0.format=tokens");
    arg(a, "train.batch=4");
    arg(a, "train.steps=12");
    arg(a, "train.lr=0.003");
    arg(a, "train.seed=%llu", (unsigned long long)(seed >> 1));
    arg(a, "train.checkpoint_every=5");
    arg(a, "threads=1");
}

static const char *in(const char *out, const char *name)
{
    static char path[4][1024];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", scratch(out), name);
    return p;
}

static json_t *json_of(const char *out, const char *name)
{
    json_t *json;
    OK(tm_json_read(in(out, name), &json, err));
    return json;
}

static void nothing_masked_is_plain(void **state)
{
    (void)state;
    static const char *const methods[] = {"full", "lora", "prompt", "adapter", "bitfit"},
                            *const results[] = {"model.safetensors", "adapter_model.safetensors", "adapter_model.safetensors", "adapter.safetensors", "biases.safetensors"};
    for (int k = 0; k < 5; k++) {
        args a = {0};
        char plain[32], masked[32];
        snprintf(plain, sizeof plain, "plain-%d", k);
        snprintf(masked, sizeof masked, "infinite-%d", k);
        recipe(&a, plain, methods[k]);
        arg(&a, "adapter.size=7");
        train(&a);
        arg(&a, "out=%s", scratch(masked));
        arg(&a, "keep.stm.threshold=1e300");
        train(&a);
        bool same = files_agree(scratch(plain), scratch(masked), "metrics.jsonl") && files_agree(scratch(plain), scratch(masked), "trail.bin");
        if (tm_path_exists(in(plain, results[k])))
            same &= files_agree(scratch(plain), scratch(masked), results[k]);
        if (!same)
            fail_msg("%s: a mask of nothing changes the run; seed %llu", methods[k], (unsigned long long)seed);
        assert_true(tm_path_exists(in(masked, "stm.bin")));
        args_free(&a);
    }
}

/* Losses of a data set's targets, from logits and in double. */
static double *reference_losses(const tm_dataset *data, int64_t *count)
{
    tm_inference inf;
    tm_inference_settings s = {.model = scratch("model"), .threads = 1, .max_tokens = 64, .logits = true};
    float *logits = malloc(64 * 61 * sizeof *logits);
    double *loss = NULL;
    size_t capacity = 0;
    *count = 0;
    OK(tm_inference_open(&s, &inf, err));
    for (int64_t i = 0; i < tm_dataset_count(data); i++) {
        const tm_example *e = tm_dataset_at(data, i);
        tm_batch_item item = {.ids = e->ids, .n = e->n, .scale = 1};
        tm_batch_fill(&inf.batch, &item, 1);
        tm_model_forward(&inf.model, &inf.batch);
        tm_model_logits(&inf.model, &inf.batch);
        inf.device->calls->download(inf.device, logits, inf.model.logits.data, (int64_t)e->n * 61 * 4);
        for (int32_t t = 1; t < e->n; t++)
            if (!e->weight || e->weight[t] > 0) {
                OK(TM_GROW(&loss, &capacity, *count + 1, err));
                loss[(*count)++] = tm_log_sum_exp(logits + (t - 1) * 61, 61) - logits[(t - 1) * 61 + e->ids[t]];
            }
    }
    tm_inference_close(&inf);
    free(logits);
    return loss;
}

/* The mask of a run, and the first line of its file; free(). */
static uint8_t *read_mask(const char *out, json_t **head)
{
    size_t size;
    char *file = slurp(in(out, "stm.bin"), &size), *end = memchr(file, '\n', size);
    assert_non_null(end);
    OK(tm_json_parse(file, (size_t)(end - file), "stm.bin", head, err));
    int64_t targets = json_integer_value(json_object_get(*head, "targets"));
    assert_int_equal(size - (size_t)(end + 1 - file), (targets + 7) / 8);
    memmove(file, end + 1, (size_t)(targets + 7) / 8);
    return (uint8_t *)file;
}

static void mask_is_that_of_the_losses(void **state)
{
    (void)state;
    tm_dataset *data;
    tm_pool *pool;
    int64_t n;
    tm_data_entry entry = {.path = (char *)(uintptr_t)scratch("task.jsonl"), .format = TM_FORMAT_TOKENS, .weight = 1};
    OK(tm_pool_create(1, &pool, err));
    OK(tm_dataset_load(&entry, 1, &(tm_data_settings){.vocab_size = 61, .seq = 64}, pool, &data, err));
    double *loss = reference_losses(data, &n);
    static const char *const layouts[][2] = {{"lora", "threads=1"}, {"full", "threads=3"}, {"prompt", "train.micro_tokens=64"}, {"lora", "train.packing=false"}};
    for (int k = 0; k < 4; k++) {
        args a = {0};
        json_t *head, *run;
        char out[32];
        snprintf(out, sizeof out, "mask-%d", k);
        recipe(&a, out, layouts[k][0]);
        arg(&a, "%s", layouts[k][1]);
        arg(&a, "keep.stm.threshold=400");
        train(&a);
        uint8_t *bits = read_mask(out, &head);
        int64_t masked = 0, wrong = 0;
        assert_int_equal(json_integer_value(json_object_get(head, "targets")), n);
        for (int64_t i = 0; i < n; i++) {
            bool set = bits[i / 8] >> (i % 8) & 1;
            masked += set;
            wrong += set != (exp(loss[i]) > 400) && fabs(exp(loss[i]) / 400 - 1) > 1e-3;
        }
        assert_int_equal(wrong, 0);
        assert_int_equal(json_integer_value(json_object_get(head, "masked")), masked);
        assert_true(masked > n / 20 && masked < n - n / 20);
        assert_true(k == 0 || files_agree(scratch("mask-0"), scratch(out), "stm.bin"));
        run = json_of(out, "run.json");
        bool said = false;
        for (size_t i = 0; i < json_array_size(json_object_get(run, "warnings")); i++)
            said |= strstr(json_string_value(json_array_get(json_object_get(run, "warnings"), i)), "blocks new facts") != NULL;
        assert_true(said);
        assert_int_equal(json_integer_value(json_object_get(json_array_get(json_object_get(run, "data"), 0), "targets")), n - masked);
        json_decref(run);
        json_decref(head);
        free(bits);
        args_free(&a);
    }
    free(loss);
    tm_dataset_destroy(data);
    tm_pool_destroy(pool);
}

/* Masked targets are as if their labels were -100. */
static void masked_is_as_if_it_had_no_label(void **state)
{
    (void)state;
    size_t at = 0, size;
    char *rows = slurp(scratch("task.jsonl"), &size), *line = rows;
    tm_buf text = {0};
    json_t *head;
    uint8_t *bits = read_mask("mask-0", &head);
    bool bare = false; /* a row without a target: no file may have one */
    for (char *end; (end = strchr(line, '\n')); line = end + 1) {
        json_t *row;
        int64_t left = 0;
        OK(tm_json_parse(line, (size_t)(end - line), "row", &row, err));
        json_t *labels = json_object_get(row, "labels");
        for (size_t t = 1; t < json_array_size(labels); t++) {
            bool target = json_integer_value(json_array_get(labels, t)) >= 0;
            if (target && bits[at / 8] >> (at % 8) & 1)
                json_array_set_new(labels, t, json_integer(-100));
            at += target;
            left += json_integer_value(json_array_get(labels, t)) >= 0;
        }
        bare |= !left;
        char *dumped = json_dumps(row, JSON_COMPACT);
        tm_buf_printf(&text, "%s\n", dumped);
        free(dumped);
        json_decref(row);
    }
    OK(tm_file_write(scratch("edited.jsonl"), text.data, text.size, err));
    args a = {0};
    recipe(&a, "edited", "lora");
    arg(&a, "data.0.path=%s", scratch("edited.jsonl"));
    if (bare)
        print_message("not compared: the mask of this seed (%lld of %lld) leaves a row without a target\n", (long long)json_integer_value(json_object_get(head, "masked")), (long long)json_integer_value(json_object_get(head, "targets")));
    else {
        train(&a);
        assert_true(runs_agree(scratch("mask-0"), scratch("edited"), adapter_file()));
    }
    args_free(&a);
    tm_buf_deinit(&text);
    json_decref(head);
    free(bits);
    free(rows);
}

static void all_masked_trains_nothing(void **state)
{
    (void)state;
    static const char *const methods[] = {"full", "lora"};
    for (int k = 0; k < 2; k++) {
        args a = {0};
        char out[32];
        snprintf(out, sizeof out, "all-%d", k);
        recipe(&a, out, methods[k]);
        arg(&a, "train.weight_decay=0");
        arg(&a, "keep.stm.threshold=0.5"); /* a perplexity is never below 1 */
        train(&a);
        char *metrics = slurp(in(out, "metrics.jsonl"), NULL);
        assert_null(strstr(metrics, "null"));
        assert_null(strstr(metrics, "nan"));
        int64_t rows = 0;
        for (const char *at = metrics; (at = strstr(at, "\"grad_norm\": 0")); at++)
            rows++;
        assert_int_equal(rows, 12);
        free(metrics);
        args_free(&a);
        if (k) /* B stays 0 */
            continue;
        tm_safetensors *x, *y;
        OK(tm_safetensors_open(in("model", "model.safetensors"), &x, err));
        OK(tm_safetensors_open(in(out, "model.safetensors"), &y, err));
        for (int64_t i = 0; i < tm_safetensors_count(x); i++) {
            const tm_st_tensor *base = tm_safetensors_at(x, i), *other = tm_safetensors_find(y, base->name);
            assert_true(other && memcmp(other->data, base->data, (size_t)other->bytes) == 0);
        }
        tm_safetensors_close(x);
        tm_safetensors_close(y);
    }
}

/* Rehearsal keeps its targets. */
static void rehearsal_is_not_masked(void **state)
{
    (void)state;
    args a = {0};
    recipe(&a, "with-old", "lora");
    arg(&a, "keep.replay.path=%s", scratch("old.jsonl"));
    arg(&a, "keep.replay.format=tokens");
    arg(&a, "keep.replay.fraction=0.5");
    arg(&a, "keep.stm.threshold=0.5");
    train(&a);
    json_t *run = json_of("with-old", "run.json"), *old = json_array_get(json_object_get(run, "rehearsal"), 0);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(json_object_get(run, "data"), 0), "targets")), 0);
    assert_true(json_integer_value(json_object_get(old, "targets")) > 0 && json_integer_value(json_object_get(run, "targets")) > 0);
    json_decref(run);
    free(read_mask("with-old", &run));
    assert_int_equal(json_integer_value(json_object_get(run, "examples")), 40);
    json_decref(run);
    args_free(&a);
}

static bool stop_now(void *context) { return ++*(int *)context > 8; }

static void interrupt(const args *a)
{
    int asked = 0;
    tm_error problem;
    char *dir = NULL;
    tm_callbacks callbacks = {.interrupted = stop_now, .context = &asked};
    assert_int_equal(tm_train(&(tm_recipe_source){.overrides = (char *const *)a->item, .override_count = a->count}, &callbacks, &dir, &problem), TM_FAILED);
    free(dir);
}

static ino_t file_number(const char *path)
{
    struct stat s;
    assert_int_equal(stat(path, &s), 0);
    return s.st_ino;
}

/* A run that goes on takes the mask that is there; a damaged one is made again. */
static void going_on_reads_the_mask(void **state)
{
    (void)state;
    for (int damage = 0; damage < 3; damage++) {
        args a = {0};
        recipe(&a, "again", "lora");
        arg(&a, "keep.stm.threshold=400");
        arg(&a, "threads=2");
        interrupt(&a);
        size_t size;
        char *bytes = slurp(in("again", "stm.bin"), &size);
        if (damage == 1)
            OK(tm_file_write(in("again", "stm.bin"), bytes, size - 1, err));
        if (damage == 2)
            OK(tm_file_write(in("again", "stm.bin"), "{\"temper_stm\": 1}\n", 18, err));
        free(bytes);
        ino_t before = file_number(in("again", "stm.bin"));
        train(&a);
        assert_int_equal(before == file_number(in("again", "stm.bin")), damage == 0);
        assert_true(runs_agree(scratch("mask-0"), scratch("again"), adapter_file()));
        assert_true(files_agree(scratch("mask-0"), scratch("again"), "stm.bin"));
        OK(tm_dir_remove(scratch("again"), err));
        args_free(&a);
    }
}

static void both_are_refused(void **state)
{
    (void)state;
    args a = {0};
    tm_error problem;
    recipe(&a, "both", "lora");
    arg(&a, "keep.stm.threshold=2");
    arg(&a, "keep.stm.fraction=0.2");
    assert_int_equal(try_train(&a, &problem), TM_RECIPE);
    assert_non_null(strstr(problem.message, "expected one of them"));
    args_free(&a);
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state) != 0)
        return -1;
    write_model(scratch("model"), config, TM_F32, seed);
    tm_buf rows = {0}; /* any token behind any other, so that every row has targets of either kind */
    dice d = {.key = seed + 1};
    for (int i = 0; i < 40; i++) {
        int64_t n = dice_in(&d, 25, 50), hidden = i % 3 ? 0 : dice_in(&d, 0, 5);
        tm_buf labels = {0};
        tm_buf_text(&rows, "{\"input_ids\": [");
        for (int64_t t = 0; t < n; t++) {
            int id = (int)dice_in(&d, 0, 60);
            tm_buf_printf(&rows, "%s%d", t ? ", " : "", id);
            tm_buf_printf(&labels, "%s%d", t ? ", " : "", t < hidden ? -100 : id);
        }
        tm_buf_printf(&rows, "], \"labels\": [%s]}\n", tm_buf_str(&labels));
        tm_buf_deinit(&labels);
    }
    OK(tm_file_write(scratch("task.jsonl"), rows.data, rows.size, err));
    tm_buf_deinit(&rows);
    write_rows(scratch("old.jsonl"), 20, 5, 30, 61, 0, seed + 2);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choice_is_as_said), cmocka_unit_test(nothing_masked_is_plain), cmocka_unit_test(mask_is_that_of_the_losses),
        cmocka_unit_test(masked_is_as_if_it_had_no_label), cmocka_unit_test(all_masked_trains_nothing), cmocka_unit_test(rehearsal_is_not_masked),
        cmocka_unit_test(going_on_reads_the_mask), cmocka_unit_test(both_are_refused),
    };
    return cmocka_run_group_tests(tests, begin, scratch_end);
}
