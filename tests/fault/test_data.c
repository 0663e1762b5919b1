/* Recipes, data sets and orders while memory runs out and files cannot be read: an error, never a crash or a
 * leak (the sanitizer looks), never a wrong verdict on the file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../unit/folder.h"
#include "../unit/toy_tokenizer.h"
#include "fault.h"
#include "text/dataset.h"

/* {"messages": [...], "tools": "[...]"}, one row. */
#define GZIPPED {31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 93, 140, 49, 14, 192, 32, 12, 3, 247, 190, 2, 121, 230, 5, 253, \
    10, 233, 0, 85, 218, 5, 136, 68, 232, 132, 248, 123, 195, 84, 169, 155, 125, 62, 121, 160, 176, 106, \
    188, 89, 177, 187, 48, 208, 36, 179, 37, 60, 202, 13, 222, 225, 148, 218, 185, 246, 133, 34, 166, \
    119, 159, 145, 164, 255, 132, 132, 121, 24, 233, 34, 121, 189, 33, 12, 66, 141, 133, 201, 10, 225, \
    34, 155, 49, 183, 23, 154, 5, 7, 101, 114, 0, 0, 0}
enum { COUNT = 8 };
static char cache[256], chatml[] = "chatml";
static tm_pool *pool; /* one thread: failures are counted in order */

static tm_status recipe(tm_error *err)
{
    tm_recipe *r = NULL;
    tm_buf out = {0};
    char *arguments[] = {(char *)"data.1={path: Makefile, columns: {text: t}}", (char *)"learning_rate=1e-3",
                         (char *)"eval=Makefile", (char *)"train.betas=[0.9, 0.95]"};
    tm_status st = tm_recipe_load(scratch("r.yaml"), arguments, 4, &r, err);
    if (st == TM_OK)
        st = tm_recipe_to_json(r, &out, err);
    if (st == TM_OK)
        st = tm_recipe_to_yaml(r, true, &out, err);
    tm_buf_deinit(&out);
    tm_recipe_destroy(r);
    return st;
}

static tm_status json_recipe(tm_error *err)
{
    tm_recipe *r = NULL;
    tm_status st = tm_recipe_load(scratch("r.json"), NULL, 0, &r, err);
    tm_recipe_destroy(r);
    return st;
}

static tm_status data(tm_error *err)
{
    static const tm_tokenizer tok = {.adds_bos = true, .has_eos = true};
    static const char *const names[COUNT] = {"tokens.jsonl", "completion.json", "text.jsonl", "a.txt", "alpaca.csv", "chat.jsonl.gz", "p.parquet", "f"};
    tm_data_entry entries[COUNT];
    tm_dataset *d = NULL, *held = NULL;
    tm_order *order = NULL;
    for (int i = 0; i < COUNT; i++)
        entries[i] = (tm_data_entry){.path = (char *)names[i], .weight = i + 1, .val_split = i == 0 ? 0.5 : 0, .dedup = i % 2,
                                     .template = i == 5 ? chatml : NULL};
    entries[6].format = TM_FORMAT_TEXT;
    tm_order_settings s = {.seed = 1, .shuffle = true, .batch = 2, .accumulate = 1, .epochs = 2};
    tm_data_settings settings = {.base_dir = scratch_dir, .tok = &tok, .vocab_size = TOY_VOCAB, .seq = 400, .tokenizer_hash = "toy",
                                 .cache = cache, .cache_from = 250}; /* one of them: every cache is synced */
    if (tm_dir_remove(cache, err) != TM_OK)
        return err->status;
    tm_status st = tm_dataset_load(entries, COUNT, &settings, pool, &d, err);
    if (st == TM_OK)
        st = tm_dataset_split(d, entries, 1, &held, err);
    if (st == TM_OK)
        st = tm_order_create(d, entries, &s, &order, err);
    tm_overlap found[2];
    int64_t examples = held ? tm_dataset_count(held) : 0;
    if (st == TM_OK)
        st = tm_dataset_overlap(d, (const tm_dataset *const *)&held, &examples, 1, &tok, pool, found, err);
    if (st == TM_OK)
        st = tm_dataset_duplicates(d, tm_dataset_sources(d), found, err);
    tm_order_destroy(order);
    tm_dataset_destroy(held);
    tm_dataset_destroy(d);
    return st;
}

static void recipes_survive(void **state)
{
    (void)state;
    const char *yaml = "model: &m .\ndata: [{path: Makefile, system: 'a b', columns: {text: t, prompt: p}}]\n"
                       "lora: {target_modules: [q, v], rank_pattern: {a: 1, b: 2}}\nlora.init: *m\n"
                       "keep: {monitor: {probes: [Makefile]}}\ntrain.early_stop.metric: eval.Makefile.loss\n";
    const char *json = "{\"data\": [\"Makefile\"], \"train\": {\"lr\": 1e-4}, \"lora\": {\"target_modules\": [\"q\"]}}";
    OK(tm_file_write(scratch("r.yaml"), yaml, strlen(yaml), err));
    OK(tm_file_write(scratch("r.json"), json, strlen(json), err));
    fault_sweep("recipe", FAULT_ALLOCS | FAULT_CALLS, recipe, NULL);
    fault_sweep("json recipe", FAULT_ALLOCS | FAULT_CALLS, json_recipe, NULL);
}

static void data_sets_survive(void **state)
{
    (void)state;
    static const unsigned char gzipped[] = GZIPPED;
    size_t size;
    char *parquet = slurp("tests/data/parquet/text.parquet", &size);
    snprintf(cache, sizeof cache, "%s/cache", scratch_dir);
    OK(tm_file_write(scratch("p.parquet"), parquet, size, err));
    free(parquet);
    OK(tm_file_write(scratch("chat.jsonl.gz"), gzipped, sizeof gzipped, err));
    OK(tm_dir_create(scratch("f"), err));
    OK(tm_file_write(scratch("f/b.jsonl"), "{\"scene\": \"a\", \"text\": \"b\"}\n", 27, err));
    const char *files[][2] = {
        {"tokens.jsonl", "{\"input_ids\": [1, 2, 3], \"labels\": [-100, -100, 3]}\n{\"input_ids\": [1, 2], \"x\": 1.5}\n"},
        {"completion.json", "[{\"prompt\": \"a\", \"completion\": \"\\u00e4b\"}, {\"prompt\": \"\", \"completion\": \"c\"}]"},
        {"text.jsonl", "{\"text\": \"some words\"}\n{\"text\": \"more\"}\n"},
        {"a.txt", "a document of a few words\n"},
        {"alpaca.csv", "instruction,output,history\n\"say \"\"hi\"\"\",hi,\"[[\"\"a\"\",\"\"b\"\"]]\"\nx,y,\n"}};
    for (int i = 0; i < 5; i++)
        OK(tm_file_write(scratch(files[i][0]), files[i][1], strlen(files[i][1]), err));
    fault_sweep("data", FAULT_ALLOCS | FAULT_CALLS, data, NULL);
}

static int begin(void **state)
{
    tm_error err;
    fault_begin();
    return tm_pool_create(1, &pool, &err) == TM_OK ? scratch_begin(state) : -1;
}

static int end(void **state)
{
    tm_pool_destroy(pool);
    return scratch_end(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(recipes_survive), cmocka_unit_test(data_sets_survive)};
    return cmocka_run_group_tests_name("recipes and data while things fail", tests, begin, end);
}
