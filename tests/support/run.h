/* What tests of whole runs share: tiny models and data sets made at random from a seed, recipes as
 * lists of arguments, training through the public function, and folders compared byte for byte.
 * Brings cmocka along. */
#ifndef TM_TESTS_RUN_H
#define TM_TESTS_RUN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../unit/folder.h"
#include "api/job.h"
#include "base/json.h"
#include "base/philox.h"
#include "io/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <time.h>

/* A scratch folder in memory where that is possible: runs sync what they write, which takes time on a
 * disk and changes nothing for a test. */
static inline int memory_begin(void **state)
{
    if (access("/dev/shm", W_OK) != 0)
        return scratch_begin(state);
    strcpy(scratch_dir, "/dev/shm/temper-test-XXXXXX");
    return mkdtemp(scratch_dir) ? 0 : -1;
}

/* Sanitizers look for other things than bits, and take their time: there every so many of cases that are alike will do. */
#ifdef TM_SANITIZE
enum { SPARSE = 3 };
#else
enum { SPARSE = 1 };
#endif

/* --- Random numbers --- */

typedef struct dice {
    uint64_t key;
    uint32_t drawn;
} dice;

static inline uint32_t dice_word(dice *d) { return tm_philox_at(d->key, d->drawn++, 0, 0, 77).word[0]; }
static inline int64_t dice_in(dice *d, int64_t low, int64_t high) { return low + (int64_t)tm_philox_below(dice_word(d), dice_word(d), (uint64_t)(high - low + 1)); }
static inline double dice_unit(dice *d) { return tm_philox_uniform(dice_word(d)); }
static inline double dice_spread(dice *d) { return 2 * dice_unit(d) - 1; }

/* Another one each time the program runs, unless TEST_SEED gives it; printed, so that what failed can be run again. */
static inline uint64_t fresh_seed(void)
{
    const char *given = getenv("TEST_SEED");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seed = given ? strtoull(given, NULL, 10) : (uint64_t)now.tv_sec * 1000003u + (uint64_t)now.tv_nsec;
    print_message("seed %llu\n", (unsigned long long)seed);
    return seed;
}

/* --- Recipes as arguments --- */

enum { MAX_ARGS = 96 };

typedef struct args {
    char *item[MAX_ARGS];
    size_t count;
} args;

static inline void arg(args *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static inline void arg(args *a, const char *fmt, ...)
{
    char text[2048];
    va_list list;
    va_start(list, fmt);
    vsnprintf(text, sizeof text, fmt, list);
    va_end(list);
    assert_true(a->count < MAX_ARGS);
    a->item[a->count++] = strdup(text);
}

/* A setting out of a table: @name in it becomes the path of that name in the scratch folder. */
static inline void arg_at(args *a, const char *text)
{
    tm_buf filled = {0};
    for (const char *mark; (mark = strchr(text, '@')); ) {
        char name[128];
        size_t n = strcspn(mark + 1, ",]} ");
        tm_buf_add(&filled, text, (size_t)(mark - text));
        snprintf(name, sizeof name, "%.*s", (int)n, mark + 1);
        tm_buf_text(&filled, scratch(name));
        text = mark + 1 + n;
    }
    tm_buf_text(&filled, text);
    arg(a, "%s", tm_buf_str(&filled));
    tm_buf_deinit(&filled);
}

static inline args args_copy(const args *from)
{
    args a = {0};
    for (size_t i = 0; i < from->count; i++)
        a.item[a.count++] = strdup(from->item[i]);
    return a;
}

static inline void args_free(args *a)
{
    for (size_t i = 0; i < a->count; i++)
        free(a->item[i]);
    *a = (args){0};
}

static inline tm_status try_train(const args *a, tm_error *err)
{
    char *out = NULL;
    tm_recipe_source source = {.overrides = a->item, .override_count = a->count};
    tm_status st = tm_train(&source, NULL, &out, err);
    free(out);
    return st;
}

/* Trains; the run must end with this status. */
static inline void train_to(const args *a, tm_status expect)
{
    tm_error problem = {0};
    tm_status st = try_train(a, &problem);
    if (st == expect)
        return;
    for (size_t i = 0; i < a->count; i++)
        print_message("  %s\n", a->item[i]);
    fail_msg("train: status %d, expected %d: %s", (int)st, (int)expect, problem.message);
}

static inline void train(const args *a) { train_to(a, TM_OK); }

/* The job of a recipe; out is an argument among the others. */
static inline void open_job(const args *a, tm_job_depth depth, tm_job *job)
{
    tm_recipe *recipe;
    OK(tm_recipe_load(NULL, a->item, a->count, &recipe, err));
    OK(tm_job_open(recipe, depth, job, err));
}

/* --- Models --- */

/* Writes dir: config.json as given, and weights at random: matrices normal with a deviation that keeps
 * activations near 1, norms around 1, biases around 0. */
static inline void write_model(const char *dir, const char *config, tm_dtype dtype, uint64_t seed)
{
    char path[1024];
    tm_device *counting;
    tm_memory memory;
    tm_model model;
    OK(tm_dir_create(dir, err));
    snprintf(path, sizeof path, "%s/config.json", dir);
    OK(tm_file_write(path, config, strlen(config), err));
    OK(tm_counting_device_create(tm_cpu_traits(), &counting, err));
    OK(tm_memory_init(&memory, counting, NULL, err));
    OK(tm_model_create(&model, dir, NULL, dtype, counting, &memory, 1, err));
    tm_st_tensor *tensors = calloc((size_t)model.params.count, sizeof *tensors);
    dice d = {.key = seed};
    for (int64_t i = 0; i < model.params.count; i++) {
        const tm_param *p = model.params.item[i];
        int64_t n = tm_param_count(p);
        float *value = malloc((size_t)n * 4);
        double center = p->kind == TM_PARAM_NORM, width = p->ndim == 2 ? 1.7 / sqrt((double)(p->kind == TM_PARAM_EMBEDDING ? 3 : p->cols)) : 0.2;
        for (int64_t k = 0; k < n; k++)
            value[k] = (float)(center + width * dice_spread(&d));
        void *stored = malloc((size_t)tm_dtype_bytes(dtype, n));
        tm_dtype_convert(stored, dtype, value, TM_F32, n);
        free(value);
        tensors[i] = (tm_st_tensor){.name = p->name, .dtype = dtype, .ndim = p->ndim, .shape = {p->ndim == 1 || p->turned ? p->cols : p->rows, p->turned ? p->rows : p->cols}, .data = stored};
    }
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    OK(tm_safetensors_write(path, tensors, model.params.count, NULL, err));
    for (int64_t i = 0; i < model.params.count; i++)
        free((void *)(uintptr_t)tensors[i].data);
    free(tensors);
    tm_model_destroy(&model);
    tm_memory_deinit(&memory);
    tm_device_destroy(counting);
}

/* Writes rows of ids as arithmetic walks, which a model can learn, low to high tokens long; about a
 * share `masked` of the rows has a part without loss. */
static inline void write_rows(const char *path, int64_t rows, int64_t low, int64_t high, int64_t vocab, double masked, uint64_t seed)
{
    tm_buf text = {0};
    dice d = {.key = seed};
    for (int64_t i = 0; i < rows; i++) {
        int64_t n = dice_in(&d, low, high), start = dice_in(&d, 0, vocab - 1), stride = dice_in(&d, 1, 4);
        int64_t hidden = dice_unit(&d) < masked ? dice_in(&d, 0, n - 2) : 0;
        tm_buf_text(&text, "{\"input_ids\": [");
        for (int64_t t = 0; t < n; t++)
            tm_buf_printf(&text, "%s%lld", t ? "," : "", (long long)((start + stride * t) % vocab));
        tm_buf_text(&text, "], \"labels\": [");
        for (int64_t t = 0; t < n; t++)
            tm_buf_printf(&text, "%s%lld", t ? "," : "", t < hidden ? -100LL : (long long)((start + stride * t) % vocab));
        tm_buf_text(&text, "]}\n");
    }
    OK(tm_file_write(path, text.data, text.size, err));
    tm_buf_deinit(&text);
}

/* --- Comparing --- */

static inline bool files_agree(const char *a, const char *b, const char *name)
{
    char path[1024];
    size_t n, m;
    snprintf(path, sizeof path, "%s/%s", a, name);
    char *x = slurp(path, &n);
    snprintf(path, sizeof path, "%s/%s", b, name);
    char *y = slurp(path, &m);
    size_t at = 0;
    while (at < n && at < m && x[at] == y[at])
        at++;
    bool same = n == m && at == n;
    if (!same)
        print_message("%s/%s and %s/%s differ at byte %zu of %zu and %zu\n", a, name, b, name, at, n, m);
    free(x);
    free(y);
    return same;
}

/* Rows, trail and result of two run folders. */
static inline bool runs_agree(const char *a, const char *b, const char *result)
{
    return (int)files_agree(a, b, "metrics.jsonl") & (int)files_agree(a, b, "trail.bin") & (int)files_agree(a, b, result);
}

static inline const char *adapter_file(void) { return "adapter_model.safetensors"; }
static inline const char *model_file(void) { return "model.safetensors"; }

/* --- What run.json says --- */

/* json_decref. */
static inline json_t *run_json(const char *dir)
{
    json_t *json;
    OK(tm_json_read_in(dir, "run.json", &json, err));
    return json;
}

/* The text at a path of keys; free(). */
static inline char *run_json_text(const char *dir, const char *key, const char *inner)
{
    json_t *json = run_json(dir);
    const json_t *value = json_object_get(json, key);
    const char *text = json_string_value(inner ? json_object_get(value, inner) : value);
    char *copy = strdup(text ? text : "");
    json_decref(json);
    return copy;
}

static inline int64_t run_json_integer(const char *dir, const char *key)
{
    json_t *json = run_json(dir);
    int64_t value = json_integer_value(json_object_get(json, key));
    json_decref(json);
    return value;
}

/* Whether a warning has the text. */
static inline bool run_json_warns(const char *dir, const char *text)
{
    json_t *json = run_json(dir);
    const json_t *list = json_object_get(json, "warnings");
    bool found = false;
    for (size_t i = 0; i < json_array_size(list); i++)
        found |= strstr(json_string_value(json_array_get(list, i)), text) != NULL;
    json_decref(json);
    return found;
}

#endif
