/* How changes of a tensor join, against plain references that sort and count; and a whole merge of random adapters
 * against the same references on W + s B A. */
#include "../support/run.h"

#include "api/merge_how.h"

static uint64_t seed;
static dice d;

static float *random_floats(int64_t n, double zeros)
{
    float *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = dice_unit(&d) < zeros ? 0 : (float)(dice_spread(&d) * (dice_unit(&d) < 0.1 ? 1e-20 : 1));
    return x;
}

/* --- References --- */

static const float *ordered;

static int by_magnitude(const void *a, const void *b)
{
    int64_t i = *(const int64_t *)a, k = *(const int64_t *)b;
    double x = fabs(ordered[i]), y = fabs(ordered[k]);
    return x != y ? (x < y ? 1 : -1) : i < k ? -1 : i > k;
}

static void trim_by_sorting(float *x, int64_t n, double density)
{
    int64_t *place = malloc((size_t)n * sizeof *place), keep = (int64_t)(density * (double)n);
    for (int64_t i = 0; i < n; i++)
        place[i] = i;
    ordered = x;
    qsort(place, (size_t)n, sizeof *place, by_magnitude);
    for (int64_t i = keep; i < n; i++)
        x[place[i]] = 0;
    free(place);
}

/* Two lists by sign, the longer or heavier one wins. */
static double elect(const double *change, const double *weight, int64_t count, bool by_count)
{
    double heavy[2] = {0}, sum[2] = {0};
    int64_t number[2] = {0};
    for (int64_t i = 0; i < count; i++) {
        int side = change[i] < 0;
        if (change[i] == 0)
            continue;
        number[side]++;
        heavy[side] += fabs(change[i]);
        sum[side] += weight[i] * change[i];
    }
    int winner = by_count ? number[1] > number[0] : heavy[1] > heavy[0];
    return number[winner] ? sum[winner] / (double)number[winner] : 0;
}

/* --- Arrays --- */

static void trims(void **state)
{
    (void)state;
    for (int round = 0; round < 200; round++) {
        int64_t n = dice_in(&d, 1, 300);
        double density = round < 5 ? round / 4.0 : dice_unit(&d);
        float *x = random_floats(n, 0.3), *y = malloc((size_t)n * sizeof *y);
        for (int64_t i = 0; i < n && round % 3 == 0; i++) /* many equal ones */
            x[i] = (float)(int)(4 * x[i]) / 4;
        memcpy(y, x, (size_t)n * sizeof *y);
        tm_merge_trim(x, n, density);
        trim_by_sorting(y, n, density);
        for (int64_t i = 0; i < n; i++)
            if (x[i] != y[i])
                fail_msg("seed %llu: element %lld of %lld, density %g: %g, expected %g", (unsigned long long)seed,
                         (long long)i, (long long)n, density, x[i], y[i]);
        free(x);
        free(y);
    }
}

static void drops(void **state)
{
    (void)state;
    enum { N = 100000 };
    float *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    static const double densities[] = {0, 0.1, 0.5, 0.9, 1};
    for (int k = 0; k < 5; k++) {
        double density = densities[k], kept = 0;
        for (int64_t i = 0; i < N; i++)
            x[i] = y[i] = (float)(i + 1);
        tm_merge_drop(x, N, density, seed);
        for (int64_t i = 0; i < N; i++) {
            assert_true(x[i] == 0 || x[i] == (float)(y[i] * (density < 1 ? 1 / density : 1)));
            kept += x[i] != 0;
        }
        /* Within six deviations of a binomial. */
        assert_true(fabs(kept - N * density) <= 6 * sqrt(N * density * (1 - density)) + 1e-9);
        tm_merge_drop(y, N - 7, density, seed); /* an element's fate is its own, not the length's */
        assert_memory_equal(x, y, (N - 7) * sizeof *x);
    }
    for (int64_t i = 0; i < N; i++)
        x[i] = y[i] = 1;
    tm_merge_drop(x, N, 0.5, seed);
    tm_merge_drop(y, N, 0.5, seed + 1);
    double both = 0;
    for (int64_t i = 0; i < N; i++)
        both += x[i] != 0 && y[i] != 0;
    assert_true(fabs(both - N / 4.0) < 6 * sqrt(N * 0.25 * 0.75)); /* another key is independent */
    free(x);
    free(y);
}

static void elects(void **state)
{
    (void)state;
    for (int round = 0; round < 2000; round++) {
        double change[8], weight[8];
        int64_t count = dice_in(&d, 1, 8);
        for (int64_t i = 0; i < count; i++) {
            change[i] = dice_unit(&d) < 0.4 ? 0 : dice_spread(&d);
            weight[i] = 3 * dice_spread(&d);
        }
        bool by_count = round % 2;
        double a = tm_merge_disjoint(change, weight, count, by_count), b = elect(change, weight, count, by_count);
        if (fabs(a - b) > 1e-12)
            fail_msg("seed %llu: %g, expected %g", (unsigned long long)seed, a, b);
    }
    double tie[] = {1, -1}, one[] = {1, 1};
    assert_true(tm_merge_disjoint(tie, one, 2, false) == 1); /* zero counts as positive, as PEFT has it */
    assert_true(tm_merge_disjoint(tie, one, 2, true) == 1);
}

/* --- Whole merges --- */

enum { WIDTH = 16, INNER = 24 };

static const char *const config =
    "{\"model_type\": \"llama\", \"vocab_size\": 37, \"hidden_size\": 16, \"intermediate_size\": 24, "
    "\"num_hidden_layers\": 1, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
    "\"max_position_embeddings\": 64, \"tie_word_embeddings\": true}";

/* An adapter of random matrices on up_proj and (r = 3) q_proj. */
static void make_adapter(const char *name, int64_t r, bool q)
{
    char json[400];
    static const char *const names[] = {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
                                        "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight",
                                        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
                                        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"};
    int64_t shape[4][2] = {{r, WIDTH}, {INNER, r}, {r, WIDTH}, {WIDTH, r}};
    tm_st_tensor tensors[4];
    char path[600];
    OK(tm_dir_create(scratch(name), err));
    snprintf(json, sizeof json, "{\"peft_type\": \"LORA\", \"r\": %d, \"lora_alpha\": 3, \"target_modules\": [\"up_proj\"%s]}",
             (int)r, q ? ", \"q_proj\"" : "");
    snprintf(path, sizeof path, "%s/adapter_config.json", scratch(name));
    OK(tm_file_write(path, json, strlen(json), err));
    for (int i = 0; i < (q ? 4 : 2); i++)
        tensors[i] = (tm_st_tensor){.name = names[i], .dtype = TM_F32, .ndim = 2, .shape = {shape[i][0], shape[i][1]},
                                    .data = random_floats(shape[i][0] * shape[i][1], 0)};
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", scratch(name));
    OK(tm_safetensors_write(path, tensors, q ? 4 : 2, NULL, err));
    for (int i = 0; i < (q ? 4 : 2); i++)
        free((void *)(uintptr_t)tensors[i].data);
}

/* dW of a module of an adapter [out, in] by the definition; false: the adapter has none. */
static bool delta_of(const char *adapter, const char *module, int64_t out, double *dw)
{
    char path[600], name[200];
    tm_safetensors *file;
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", scratch(adapter));
    OK(tm_safetensors_open(path, &file, err));
    snprintf(name, sizeof name, "base_model.model.model.layers.0.%s.lora_A.weight", module);
    const tm_st_tensor *a = tm_safetensors_find(file, name);
    snprintf(name, sizeof name, "base_model.model.model.layers.0.%s.lora_B.weight", module);
    const tm_st_tensor *b = tm_safetensors_find(file, name);
    for (int64_t o = 0; a && o < out; o++)
        for (int64_t i = 0; i < WIDTH; i++) {
            double sum = 0;
            for (int64_t k = 0; k < a->shape[0]; k++)
                sum += (double)((const float *)b->data)[o * a->shape[0] + k] * ((const float *)a->data)[k * WIDTH + i];
            dw[o * WIDTH + i] = sum * 3 / (double)a->shape[0];
        }
    tm_safetensors_close(file);
    return a != NULL;
}

static float *weight_of(const char *model, const char *module, int64_t count)
{
    char name[200];
    tm_safetensors *file;
    OK(tm_safetensors_open_model(scratch(model), &file, err));
    snprintf(name, sizeof name, "model.layers.0.%s.weight", module);
    const tm_st_tensor *t = tm_safetensors_find(file, name);
    assert_int_equal(t->count, count);
    float *copy = malloc((size_t)count * sizeof *copy);
    memcpy(copy, t->data, (size_t)count * sizeof *copy);
    tm_safetensors_close(file);
    return copy;
}

static const char *const adapters[] = {"one", "two", "three"};
static const double scales[] = {0.75, -0.5, 1.5};

static void merge(tm_merge_how how, double density, bool by_count, const char *out, int threads, uint64_t random)
{
    tm_merge_source sources[3];
    char *text;
    for (int i = 0; i < 3; i++)
        sources[i] = (tm_merge_source){.path = scratch(adapters[i]), .scale = scales[i]};
    tm_merge_request request = {.model = scratch("model"), .out = scratch(out), .sources = sources, .source_count = 3,
                                .threads = threads, .how = how, .density = density, .sign_by_count = by_count, .seed = random};
    OK(tm_merge(&request, &text, err));
    if (how == TM_MERGE_SUM) {
        const char *found = strstr(text, "adapters on, added, 32 tokens: largest difference ");
        assert_non_null(found);
        assert_true(strtod(found + strlen("adapters on, added, 32 tokens: largest difference "), NULL) < 1e-4);
    } else
        assert_non_null(strstr(text, "logits against the base, 32 tokens"));
    free(text);
}

static void must_be(const char *merged, const char *module, int64_t out, tm_merge_how how, double density, bool by_count)
{
    int64_t n = out * WIDTH;
    double *dw = calloc((size_t)(3 * n), sizeof *dw), change[3], weight[3];
    float *pruned = malloc((size_t)n * sizeof *pruned), *base = weight_of("model", module, n), *found = weight_of(merged, module, n);
    int64_t count = 0;
    for (int i = 0; i < 3; i++) {
        if (!delta_of(adapters[i], module, out, dw + count * n))
            continue;
        weight[count] = scales[i];
        for (int64_t k = 0; k < n; k++)
            pruned[k] = (float)dw[count * n + k];
        if (how == TM_MERGE_TIES)
            trim_by_sorting(pruned, n, density);
        for (int64_t k = 0; k < n && how != TM_MERGE_SUM; k++)
            dw[count * n + k] = pruned[k];
        count++;
    }
    for (int64_t k = 0; k < n; k++) {
        double sum = 0;
        for (int64_t i = 0; i < count; i++) {
            change[i] = dw[i * n + k];
            sum += weight[i] * change[i];
        }
        double expected = base[k] + (how == TM_MERGE_SUM ? sum : elect(change, weight, count, by_count));
        if (fabs(found[k] - expected) > 1e-6 * (1 + fabs(expected)))
            fail_msg("seed %llu: how %d, %s, element %lld: %.9g, expected %.9g", (unsigned long long)seed, (int)how, module,
                     (long long)k, found[k], expected);
    }
    free(dw);
    free(pruned);
    free(base);
    free(found);
}

static void merges_models(void **state)
{
    (void)state;
    static const struct {
        tm_merge_how how;
        double density;
        bool by_count;
    } cases[] = {{TM_MERGE_SUM, 0.5, false}, {TM_MERGE_TIES, 0.3, false}, {TM_MERGE_TIES, 0.6, true}, {TM_MERGE_TIES, 1, false}};
    write_model(scratch("model"), config, TM_F32, seed);
    make_adapter("one", 2, true);
    make_adapter("two", 4, false);
    make_adapter("three", 3, true);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        merge(cases[i].how, cases[i].density, cases[i].by_count, "merged", 2, 0);
        must_be("merged", "mlp.up_proj", INNER, cases[i].how, cases[i].density, cases[i].by_count);
        must_be("merged", "self_attn.q_proj", WIDTH, cases[i].how, cases[i].density, cases[i].by_count);
        must_be("merged", "self_attn.k_proj", 8, cases[i].how, cases[i].density, cases[i].by_count); /* untouched */
        OK(tm_dir_remove(scratch("merged"), err));
    }
}

/* DARE: the same seed gives the same bytes with any number of threads, another seed others; nothing dropped is the
 * sum; the mean over seeds is the sum's. */
static void dares(void **state)
{
    (void)state;
    merge(TM_MERGE_DARE, 0.5, false, "a", 1, 5);
    merge(TM_MERGE_DARE, 0.5, false, "b", 2, 5);
    assert_true(files_agree(scratch("a"), scratch("b"), "model.safetensors"));
    OK(tm_dir_remove(scratch("b"), err));
    merge(TM_MERGE_DARE, 1, false, "b", 2, 6);
    must_be("b", "mlp.up_proj", INNER, TM_MERGE_SUM, 1, false);
    OK(tm_dir_remove(scratch("b"), err));
    merge(TM_MERGE_DARE_TIES, 1, true, "b", 2, 6);
    must_be("b", "mlp.up_proj", INNER, TM_MERGE_TIES, 1, true);
    OK(tm_dir_remove(scratch("b"), err));
    merge(TM_MERGE_SUM, 1, false, "whole", 1, 0);
    enum { SEEDS = 60, N = INNER * WIDTH };
    float *whole = weight_of("whole", "mlp.up_proj", N), *base = weight_of("model", "mlp.up_proj", N);
    double mean[N] = {0}, far = 0, size = 0;
    for (int s = 0; s < SEEDS; s++) {
        merge(TM_MERGE_DARE, 0.5, false, "b", 1, (uint64_t)s);
        float *found = weight_of("b", "mlp.up_proj", N);
        for (int i = 0; i < N; i++)
            mean[i] += (double)found[i] / SEEDS;
        free(found);
        OK(tm_dir_remove(scratch("b"), err));
    }
    for (int i = 0; i < N; i++) {
        far += (mean[i] - whole[i]) * (mean[i] - whole[i]);
        size += (double)(whole[i] - base[i]) * (whole[i] - base[i]);
    }
    assert_true(sqrt(far / size) < 0.6); /* one seed alone is 1 or more away */
    free(whole);
    free(base);
}

/* --- Whole models --- */

static const char *const untied_config =
    "{\"model_type\": \"llama\", \"vocab_size\": 37, \"hidden_size\": 16, \"intermediate_size\": 24, "
    "\"num_hidden_layers\": 1, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
    "\"max_position_embeddings\": 64, \"tie_word_embeddings\": false}";

static tm_status try_tuned(const char *base, const char *tuned, double scale, tm_merge_how how, const char *out, char **text, tm_error *why)
{
    tm_merge_source source = {.path = scratch(tuned), .scale = scale, .model = true};
    tm_merge_request request = {.model = scratch(base), .out = scratch(out), .sources = &source, .source_count = 1, .threads = 2, .how = how, .density = 0.4};
    return tm_merge(&request, text, why);
}

static const tm_st_tensor *tensor_or_embedding(const tm_safetensors *file, const char *name)
{
    const tm_st_tensor *t = tm_safetensors_find(file, name);
    return t ? t : tm_safetensors_find(file, "model.embed_tokens.weight");
}

/* Every tensor of `out` is (1 - scale) base + scale tuned, with TIES of what one change alone leaves of itself. */
static void must_lie_between(const char *base, const char *tuned, double scale, tm_merge_how how, const char *out, int64_t tensors)
{
    tm_safetensors *file[3];
    const char *names[] = {base, tuned, out};
    for (int i = 0; i < 3; i++)
        OK(tm_safetensors_open_model(scratch(names[i]), &file[i], err));
    assert_int_equal(tm_safetensors_count(file[2]), tensors);
    for (int64_t k = 0; k < tensors; k++) {
        const tm_st_tensor *found = tm_safetensors_at(file[2], k);
        const float *w = tensor_or_embedding(file[0], found->name)->data, *v = tensor_or_embedding(file[1], found->name)->data, *is = found->data;
        float *change = malloc((size_t)found->count * sizeof *change);
        for (int64_t i = 0; i < found->count; i++)
            change[i] = (float)((double)v[i] - w[i]);
        if (how == TM_MERGE_TIES)
            trim_by_sorting(change, found->count, 0.4);
        for (int64_t i = 0; i < found->count; i++) {
            double expected = how == TM_MERGE_TIES ? w[i] + scale * change[i] : (1 - scale) * w[i] + scale * v[i];
            double slack = how == TM_MERGE_SUM && (scale == 0 || scale == 1) ? 0 : 2e-7; /* the ends are the models themselves */
            if (fabs(is[i] - expected) > slack * (fabs(w[i]) + fabs(v[i])))
                fail_msg("seed %llu: %s[%lld], scale %g: %.9g, expected %.9g", (unsigned long long)seed, found->name, (long long)i, scale, is[i], expected);
        }
        free(change);
    }
    for (int i = 0; i < 3; i++)
        tm_safetensors_close(file[i]);
}

/* A tied model stays tied between tied models; between others the head gets weights of its own. */
static void meets_models(void **state)
{
    (void)state;
    static const struct {
        const char *base, *tuned;
        int64_t tensors;
    } pairs[] = {{"tied", "tied2", 11}, {"tied", "free", 12}, {"free", "tied", 12}, {"free", "free2", 12}};
    static const double scale[] = {0.3, 0.5, 0, 1, -0.5};
    char *text;
    write_model(scratch("tied"), config, TM_F32, seed + 1);
    write_model(scratch("tied2"), config, TM_F32, seed + 2);
    write_model(scratch("free"), untied_config, TM_F32, seed + 3);
    write_model(scratch("free2"), untied_config, TM_F32, seed + 4);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 6; k++) {
            tm_merge_how how = k < 5 ? TM_MERGE_SUM : TM_MERGE_TIES;
            double at = k < 5 ? scale[k] : 0.7;
            OK(try_tuned(pairs[i].base, pairs[i].tuned, at, how, "between", &text, err));
            if (k == 3) { /* held against the tuned model itself, which it is */
                char line[700];
                snprintf(line, sizeof line, "logits against %s alone, 32 tokens: largest difference 0,", scratch(pairs[i].tuned));
                assert_non_null(strstr(text, line));
            }
            free(text);
            must_lie_between(pairs[i].base, pairs[i].tuned, at, how, "between", at == 0 && i == 1 ? 11 : pairs[i].tensors);
            OK(tm_dir_remove(scratch("between"), err));
        }
}

static void refuses_models(void **state)
{
    (void)state;
    static const char *const wider =
        "{\"model_type\": \"llama\", \"vocab_size\": 37, \"hidden_size\": 16, \"intermediate_size\": 32, \"num_hidden_layers\": 1, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"max_position_embeddings\": 64, \"tie_word_embeddings\": true}";
    static const char *const deeper =
        "{\"model_type\": \"llama\", \"vocab_size\": 37, \"hidden_size\": 16, \"intermediate_size\": 24, \"num_hidden_layers\": 2, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"max_position_embeddings\": 64, \"tie_word_embeddings\": true}";
    tm_error why;
    char *text;
    write_model(scratch("wider"), wider, TM_F32, seed);
    write_model(scratch("deeper"), deeper, TM_F32, seed);
    assert_int_equal(try_tuned("tied", "wider", 0.5, TM_MERGE_SUM, "x", &text, &why), TM_INPUT);
    assert_non_null(strstr(why.message, "another base model"));
    assert_int_equal(try_tuned("tied", "deeper", 0.5, TM_MERGE_SUM, "x", &text, &why), TM_INPUT);
    assert_non_null(strstr(why.message, "model.layers.1."));
    assert_int_equal(try_tuned("deeper", "tied", 0.5, TM_MERGE_SUM, "x", &text, &why), TM_INPUT);
    assert_non_null(strstr(why.message, "is missing: expected a model that was trained from it"));
    assert_int_equal(try_tuned("tied", "none-there", 0.5, TM_MERGE_SUM, "x", &text, &why), TM_INPUT);
    assert_false(tm_path_exists(scratch("x")));
}

static int begin(void **state)
{
    seed = fresh_seed();
    d = (dice){.key = seed};
    return memory_begin(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(trims), cmocka_unit_test(drops), cmocka_unit_test(elects),
                                       cmocka_unit_test(merges_models), cmocka_unit_test(dares),
                                       cmocka_unit_test(meets_models), cmocka_unit_test(refuses_models)};
    return cmocka_run_group_tests_name("merging adapters", tests, begin, scratch_end);
}
