/* tm_hf_sample: the same model has one sample wherever it lies, another model another one. */
#include "../support/run.h"

#include "io/hf.h"
#include "temper.h"

enum { TENSORS = 4 };
static const int64_t sizes[TENSORS][2] = {{3, 5}, {1, 1024}, {1, 1025}, {300, 500}}; /* 4 bytes each: the limit of whole tensors, and beyond */
static const char *const names[TENSORS] = {"a", "b", "c", "d"};

typedef struct made {
    float *value[TENSORS];
    tm_st_tensor tensor[TENSORS];
} made;

static void make(made *m, dice *d)
{
    for (int i = 0; i < TENSORS; i++) {
        int64_t n = sizes[i][0] * sizes[i][1];
        m->value[i] = malloc((size_t)n * 4);
        for (int64_t k = 0; k < n; k++)
            m->value[i][k] = (float)dice_spread(d);
        m->tensor[i] = (tm_st_tensor){.name = names[i], .dtype = TM_F32, .ndim = 2, .shape = {sizes[i][0], sizes[i][1]}, .data = m->value[i]};
    }
}

static void drop(made *m)
{
    for (int i = 0; i < TENSORS; i++)
        free(m->value[i]);
}

static tm_sha256 sample(const char *model)
{
    tm_sha256 hash;
    tm_safetensors *weights;
    OK(tm_hf_open_weights(model, &weights, err));
    OK(tm_hf_sample(model, weights, &hash, err));
    tm_safetensors_close(weights);
    return hash;
}

static tm_sha256 written(const made *m, const char *name, int64_t shard_bytes, const char *config)
{
    char folder[512];
    snprintf(folder, sizeof folder, "%s", scratch(name));
    OK(tm_dir_create(folder, err));
    char *path = tm_path_join(folder, "config.json", NULL);
    OK(tm_file_write(path, config, strlen(config), err));
    free(path);
    OK(tm_hf_write_model(folder, m->tensor, TENSORS, shard_bytes, err));
    return sample(folder);
}

static void differs(const made *m, const char *config, const tm_sha256 *from, const char *what, uint64_t seed)
{
    tm_sha256 now = written(m, "other", INT64_MAX, config);
    if (strcmp(now.hex, from->hex) == 0)
        fail_msg("seed %llu: the sample does not see %s", (unsigned long long)seed, what);
}

static void folders(void **state)
{
    (void)state;
    uint64_t seed = fresh_seed();
    dice d = {.key = seed};
    made m;
    make(&m, &d);
    tm_sha256 first = written(&m, "model", INT64_MAX, "{}");
    assert_string_equal(written(&m, "again", INT64_MAX, "{}").hex, first.hex);
    assert_string_equal(written(&m, "shards", 4096, "{}").hex, first.hex); /* how it is cut into files is no matter */
    differs(&m, "{ }", &first, "config.json", seed);
    for (int i = 0; i < TENSORS; i++) {
        int64_t n = sizes[i][0] * sizes[i][1], ends[] = {0, n - 1, dice_in(&d, 0, n - 1)};
        for (int k = 0; k < (i < 2 ? 3 : 2); k++) { /* of small tensors any value, of large ones the ends */
            float was = m.value[i][ends[k]];
            m.value[i][ends[k]] = was + 1;
            differs(&m, "{}", &first, names[i], seed);
            m.value[i][ends[k]] = was;
        }
    }
    /* A part of a large tensor: any that is a seventh of it holds a block. */
    int64_t n = sizes[3][0] * sizes[3][1], part = n / 7 + 256, at = dice_in(&d, 0, n - part);
    for (int64_t k = at; k < at + part; k++)
        m.value[3][k] += 1;
    differs(&m, "{}", &first, "a seventh of a tensor", seed);
    for (int64_t k = at; k < at + part; k++)
        m.value[3][k] -= 1;
    m.tensor[3].shape[0] = sizes[3][1];
    m.tensor[3].shape[1] = sizes[3][0];
    differs(&m, "{}", &first, "a shape", seed);
    m.tensor[3].shape[0] = sizes[3][0];
    m.tensor[3].shape[1] = sizes[3][1];
    m.tensor[0].name = "a2";
    differs(&m, "{}", &first, "a name", seed);
    drop(&m);
}

/* Values that are unpacked when they are asked for are not unpacked for a sample. */
static void gguf(void **state)
{
    (void)state;
    char *text, path[512];
    snprintf(path, sizeof path, "%s", scratch("model.gguf"));
    OK(tm_export(&(tm_export_request){.model = "models/stories260K", .gguf = path, .type = "q8_0", .threads = 1}, &text, err));
    free(text);
    tm_sha256 first = sample(path);
    assert_string_equal(sample(path).hex, first.hex);
    size_t size;
    char *data = slurp(path, &size);
    data[size - 1] ^= 1; /* of the last tensor; no bytes follow it but padding, which is nothing of the model */
    for (size_t i = 2; i < 400; i++)
        data[size - i] ^= 1;
    OK(tm_file_write(path, data, size, err));
    free(data);
    assert_string_not_equal(sample(path).hex, first.hex);
}

/* Weights that are made at random have no file: the config is what there is. */
static void no_weights(void **state)
{
    (void)state;
    tm_sha256 a, b;
    OK(tm_hf_sample("models/stories260K", NULL, &a, err));
    OK(tm_hf_sample("tests/data/golden/llama-lora/model", NULL, &b, err));
    assert_string_not_equal(a.hex, b.hex);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(folders), cmocka_unit_test(gguf), cmocka_unit_test(no_weights)};
    return cmocka_run_group_tests(tests, memory_begin, scratch_end);
}
