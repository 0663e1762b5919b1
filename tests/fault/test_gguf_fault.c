/* GGUF files read and written while memory runs out and the disk fails: an error, never a crash, a leak (the
 * sanitizer looks) or a file under its name that is not whole. Of the thousands of allocations of an export some
 * are chosen: TEST_SEED repeats a choice. */
#include "../support/run.h"

#include "fault.h"
#include "io/gguf_model.h"
#include "io/hf.h"
#include "text/tokenizer.h"

enum { POINTS = 40 };

static const char *const stories = "models/stories260K";
static uint64_t seed;
static char *reference; /* the file without failures */
static size_t reference_size;
static tm_status last;

static tm_status read_file(tm_error *err)
{
    tm_gguf *g;
    tm_gguf_text *texts = NULL;
    float *floats = NULL;
    int32_t *ints = NULL;
    int64_t count;
    tm_buf config = {0};
    bool there;
    tm_status st;
    TM_TRY(tm_gguf_open(scratch("reference.gguf"), &g, err));
    TM_GO(tm_gguf_get_texts(g, "tokenizer.ggml.tokens", &texts, &count, err));
    TM_GO(tm_gguf_get_floats(g, "tokenizer.ggml.scores", &floats, &count, err));
    TM_GO(tm_gguf_get_ints(g, "tokenizer.ggml.token_type", &ints, &count, err));
    TM_GO(tm_gguf_hf_file(g, "config.json", &config, &there, err));
    TM_GO(tm_gguf_hf_file(g, "tokenizer_config.json", &config, &there, err));
out:
    free(texts);
    free(floats);
    free(ints);
    tm_buf_deinit(&config);
    tm_gguf_close(g);
    return st;
}

static tm_status read_weights(tm_error *err)
{
    tm_safetensors *weights;
    TM_TRY(tm_hf_open_weights(scratch("reference.gguf"), &weights, err));
    tm_status st = tm_safetensors_unpack(weights, err);
    tm_safetensors_close(weights);
    return st;
}

static tm_status read_tokenizer(tm_error *err)
{
    tm_tokenizer *tok;
    TM_TRY(tm_tokenizer_open(scratch("reference.gguf"), &tok, err));
    tm_tokenizer_close(tok);
    return TM_OK;
}

static tm_status write_file(tm_error *err)
{
    char *text;
    last = tm_export(&(tm_export_request){.model = stories, .gguf = scratch("new.gguf"), .type = "q8_0", .threads = 1}, &text, err);
    if (last == TM_OK)
        free(text);
    return last;
}

/* Whole under its name, or not there; and there when that was said. */
static void check_file(void)
{
    if (tm_path_exists(scratch("new.gguf"))) {
        size_t size;
        char *bytes = slurp(scratch("new.gguf"), &size);
        assert_int_equal(size, reference_size);
        assert_memory_equal(bytes, reference, size);
        free(bytes);
        assert_int_equal(unlink(scratch("new.gguf")), 0);
    } else
        assert_int_not_equal(last, TM_OK);
}

static tm_status write_adapter(tm_error *err)
{
    char *text;
    last = tm_export(&(tm_export_request){.model = "tests/data/golden/llama-lora/model", .adapter = "tests/data/golden/llama-lora/adapter_final",
                                          .gguf = scratch("adapter.gguf"), .adapter_only = true}, &text, err);
    if (last == TM_OK)
        free(text);
    return last;
}

static void check_adapter(void)
{
    tm_gguf *g;
    if (!tm_path_exists(scratch("adapter.gguf"))) {
        assert_int_not_equal(last, TM_OK);
        return;
    }
    OK(tm_gguf_open(scratch("adapter.gguf"), &g, err));
    assert_true(tm_gguf_tensors(g) > 0);
    tm_gguf_close(g);
    assert_int_equal(unlink(scratch("adapter.gguf")), 0);
}

static void reading(void **state)
{
    (void)state;
    fault_sweep("values", FAULT_ALLOCS | FAULT_CALLS, read_file, NULL);
    fault_sweep("weights", FAULT_ALLOCS | FAULT_CALLS, read_weights, NULL);
    fault_sample("tokenizer", POINTS, seed, read_tokenizer, NULL);
}

static void writing(void **state)
{
    (void)state;
    fault_sample("export", POINTS, seed, write_file, check_file);
    fault_sample("export --adapter-only", POINTS, seed, write_adapter, check_adapter);
}

static int begin(void **state)
{
    fault_begin();
    fault.no_threads = true;
    seed = fresh_seed();
    if (memory_begin(state) != 0)
        return -1;
    OK(write_file(err));
    OK(tm_path_move(scratch("new.gguf"), scratch("reference.gguf"), err));
    reference = slurp(scratch("reference.gguf"), &reference_size);
    return 0;
}

static int end(void **state)
{
    free(reference);
    return scratch_end(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(reading), cmocka_unit_test(writing)};
    return cmocka_run_group_tests(tests, begin, end);
}
