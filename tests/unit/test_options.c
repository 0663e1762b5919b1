/* Recipes: what is accepted, what is refused and how the refusal reads, and that writing is canonical. */
#include "base/file.h"
#include "base/json.h"
#include "base/node.h"
#include "base/options.h"
#include "lab/sequence_file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[64], root[4096];

static int setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/temper-options-XXXXXX");
    if (!getcwd(root, sizeof root) || !mkdtemp(dir) || chdir(dir) != 0)
        return -1;
    tm_error err;
    return tm_file_write("a.jsonl", "x\n", 2, &err) || tm_file_write("b.jsonl", "x\n", 2, &err) ||
           tm_dir_create("model", &err);
}

static int teardown(void **state)
{
    (void)state;
    tm_error err;
    return chdir("/") || tm_dir_remove(dir, &err);
}

static tm_status load(const char *name, const char *text, tm_recipe **out, tm_error *err)
{
    *err = (tm_error){0};
    if (!text)
        return tm_recipe_load(NULL, NULL, 0, out, err);
    assert_int_equal(tm_file_write(name, text, strlen(text), err), TM_OK);
    return tm_recipe_load(name, NULL, 0, out, err);
}

/* The recipe as JSON, or "error: message". The caller frees. */
static char *json_of(const char *name, const char *text)
{
    tm_recipe *recipe;
    tm_error err;
    tm_buf out = {0};
    tm_status st = load(name, text, &recipe, &err);
    if (st == TM_OK) {
        assert_int_equal(tm_recipe_to_json(recipe, &out, &err), TM_OK);
    } else {
        assert_int_equal(st, TM_RECIPE);
        assert_int_equal(err.status, TM_RECIPE);
        tm_buf_printf(&out, "error: %s", err.message);
    }
    tm_recipe_destroy(st == TM_OK ? recipe : NULL);
    return out.data;
}

static void refused(const char *text, const char *message)
{
    tm_recipe *recipe;
    tm_error err;
    assert_int_equal(load("r.yaml", text, &recipe, &err), TM_RECIPE);
    assert_null(recipe);
    if (!strstr(err.message, message))
        fail_msg("%s\n  said: %s\n  expected: %s", text, err.message, message);
}

static void same(const char *a_name, const char *a, const char *b_name, const char *b)
{
    char *x = json_of(a_name, a), *y = json_of(b_name, b);
    assert_true(strncmp(x, "error", 5) != 0);
    assert_string_equal(x, y);
    free(x);
    free(y);
}

static void defaults_are_the_tables(void **state)
{
    (void)state;
    tm_recipe *r;
    tm_error err;
    assert_int_equal(load(NULL, NULL, &r, &err), TM_OK);
    assert_null(r->model);
    assert_null(r->path);
    assert_int_equal(r->method, TM_METHOD_LORA);
    assert_int_equal(r->lora_r, 16);
    assert_true(r->lora_dropout == 0.05);
    assert_true(isnan(r->lr));
    assert_int_equal(r->micro_tokens, TM_AUTO_INT);
    assert_int_equal(r->lora_target_modules.count, 1);
    assert_string_equal(r->lora_target_modules.item[0], "all-linear");
    assert_int_equal(r->lora_modules_to_save.count, 0);
    assert_int_equal(r->kl_on.count, 2);
    assert_string_equal(r->kl_on.item[1], "replay");
    assert_string_equal(r->device, "auto");
    assert_true(r->eps == 1e-8);
    assert_int_equal(r->schedule, TM_SCHEDULE_COSINE);
    assert_int_equal(r->data_count + r->eval_count + r->probe_count, 0);
    tm_recipe_destroy(r);
}

static const char full[] =
    "model: model                 # a comment\n"
    "init: random\n"
    "quantize: none\n"
    "lora: {r: 8, alpha: 16, dropout: 0, target_modules: [q_proj, v_proj], bias: all, rank_pattern: {up: 4, down: 8}, "
    "init: null}\n"
    "adapter: {size: 64}\n"
    "freeze: {layers: 8, embeddings: false}\n"
    "data:\n"
    "  - {path: a.jsonl, format: tokens, weight: 2.5, template: null, roles: null, columns: {labels: y}, val_split: "
    "0.1}\n"
    "  - b.jsonl\n"
    "eval: {name: new, path: b.jsonl, metric: accuracy, limit: 10}\n"
    "keep:\n"
    "  monitor:\n"
    "    every: 100\n"
    "    probes: [{name: old, path: b.jsonl, max_drop: 2%}, {name: kl, path: a.jsonl, metric: kl, max: 0.05}]\n"
    "    on_breach: rollback\n"
    "train: {steps: 1e3, epochs: 0.5, betas: [0.8, 0.95], eps: 1e-6, seeds: {init: 7}, shards: 1, master: f32,\n"
    "        early_stop: {metric: eval.new.loss, patience: 2}, lr: 1.5e-4, packing: false, micro_tokens: 512}\n"
    "out: runs/name\n";

static void reads_every_kind(void **state)
{
    (void)state;
    tm_recipe *r;
    tm_error err;
    if (load("r.yaml", full, &r, &err) != TM_OK)
        fail_msg("%s", err.message);
    assert_string_equal(r->model, "model");
    assert_int_equal(r->init, TM_INIT_RANDOM);
    assert_int_equal(r->lora_r, 8);
    assert_int_equal(r->lora_bias, TM_BIAS_ALL);
    assert_int_equal(r->lora_target_modules.count, 2);
    assert_string_equal(r->lora_target_modules.item[1], "v_proj");
    assert_int_equal(r->lora_rank_pattern.keys.count, 2);
    assert_string_equal(r->lora_rank_pattern.keys.item[0], "up"); /* the first that matches counts: order is kept */
    assert_string_equal(r->lora_rank_pattern.values.item[1], "8");
    assert_null(r->lora_init);
    assert_false(r->freeze_embeddings);
    assert_int_equal(r->data_count, 2);
    assert_int_equal(r->data[0].format, TM_FORMAT_TOKENS);
    assert_true(r->data[0].weight == 2.5 && r->data[0].val_split == 0.1);
    assert_string_equal(r->data[0].columns.values.item[0], "y");
    assert_int_equal(r->data[0].line, 8);
    assert_string_equal(r->data[1].path, "b.jsonl");
    assert_true(r->data[1].weight == 1);
    assert_int_equal(r->eval_count, 1);
    assert_string_equal(r->eval[0].name, "new");
    assert_string_equal(r->eval[0].data.path, "b.jsonl");
    assert_int_equal(r->eval[0].metric, TM_METRIC_ACCURACY);
    assert_true(isnan(r->eval[0].max_drop) && r->eval[0].data.weight == 1);
    assert_int_equal(r->probe_count, 2);
    assert_true(r->probes[0].max_drop == 0.02 && isnan(r->probes[0].max));
    assert_true(r->probes[1].max == 0.05 && r->probes[1].metric == TM_METRIC_KL);
    assert_int_equal(r->monitor_every, 100);
    assert_int_equal(r->on_breach, TM_BREACH_ROLLBACK);
    assert_int_equal(r->steps, 1000);
    assert_true(r->beta1 == 0.8 && r->beta2 == 0.95 && r->lr == 1.5e-4 && r->epochs == 0.5);
    assert_int_equal(r->seed_init, 7);
    assert_int_equal(r->seed_order, TM_AUTO_INT);
    assert_string_equal(r->early_stop_metric, "eval.new.loss");
    assert_int_equal(r->early_stop_patience, 2);
    assert_int_equal(r->micro_tokens, 512);
    assert_string_equal(r->out, "runs/name");
    tm_recipe_destroy(r);
}

static void one_recipe_one_json(void **state)
{
    (void)state;
    same("a.yaml", "train: {lr: 1e-4, batch: 4}\nlora: {r: 8}\n", "b.yaml",
         "lora.r: 8.0\ntrain.batch: 4e0\ntrain.lr: .0001\n");
    same("a.yaml", "train: {lr: 1e-4, batch: 4, seq: 64, accumulate: 2, recompute: full}\nlora: {r: 8, alpha: 4}\n",
         "b.yaml",
         "learning_rate: 0.0001\nper_device_train_batch_size: 4\ntrain: {cutoff_len: 64, gradient_accumulation_steps: "
         "2}\n"
         "gradient_checkpointing: true\nlora_rank: 8\nlora: {lora_alpha: 4}\n");
    same("a.yaml", "train: {lr: 1e-4}\ndata: a.jsonl\nlora: {target_modules: [q]}\n", "b.json",
         "{\"data\": [{\"path\": \"a.jsonl\"}],\r\n \"train\": {\"lr\": 1E-4}, \"lora\": {\"target_modules\": \"q\"}}");
    same("a.yaml", "lora: {rank_pattern: {b: 2, a: 1}}\n", "b.yaml", "lora: {rank_pattern: {b: 2.0, a: 1e0}}\n");
    same("a.yaml", "data: {path: a.jsonl, columns: {prompt: q, completion: a}}\n", "b.yaml",
         "data: {columns: {completion: a, prompt: q}, path: a.jsonl}\n");
    same("a.yaml", "{}", "b.yaml", "# nothing\n");
    same("a.yaml", "train: null\nlora:\neval: null\n", "b.yaml", "");
    same("a.yaml", "data: [{path: a.jsonl, columns: &c {text: t}}, {path: b.jsonl, columns: *c}]\n", "b.yaml",
         "data:\n- path: a.jsonl\n  columns: {text: t}\n- {columns: {text: \"t\"}, path: 'b.jsonl'}\n");
}

/* JSON and YAML as written read back as the same recipe. */
static void written_reads_back(void **state)
{
    (void)state;
    const char *recipes[] = {full, "",
                             "data: [{path: a.jsonl, system: \"a\\n\\\"b\\\": #\\u0007\\x7f\\u0085\\u2028 \\U0001F600 "
                             "\\\\ null\"}, {path: a.jsonl, system: 'null'}]\n",
                             "lora: {target_modules: ['1', 'true', '.*\\.(q|v)_proj', 'a, b', '#x', 'привет', '~'], "
                             "alpha_pattern: {'^a: b': 0.1}}\n",
                             "train: {lr: 1e-300, eps: 3.3333333333333335e-7, seed: 9223372036854775807}\n"};
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        tm_recipe *r;
        tm_error err;
        tm_buf json = {0}, yaml = {0}, plain = {0};
        if (load("r.yaml", recipes[i], &r, &err) != TM_OK)
            fail_msg("%s", err.message);
        assert_int_equal(tm_recipe_to_json(r, &json, &err), TM_OK);
        assert_int_equal(tm_recipe_to_yaml(r, true, &yaml, &err), TM_OK);
        assert_int_equal(tm_recipe_to_yaml(r, false, &plain, &err), TM_OK);
        char *from_json = json_of("again.json", json.data), *from_yaml = json_of("again.yaml", yaml.data),
             *from_plain = json_of("plain.yaml", plain.data);
        assert_string_equal(from_json, json.data);
        assert_string_equal(from_yaml, json.data);
        assert_string_equal(from_plain, json.data);
        free(from_json);
        free(from_yaml);
        free(from_plain);
        tm_buf_deinit(&json);
        tm_buf_deinit(&yaml);
        tm_buf_deinit(&plain);
        tm_recipe_destroy(r);
    }
}

static void refusals_say_where_and_what(void **state)
{
    (void)state;
    refused("model: model\nlora:\n  target_modules: q_(proj\n", "r.yaml:3: lora.target_modules: \"q_(proj\" is not a valid");
    refused("model: model\ntrain:\n  lrr: 1\n", "r.yaml:3: unknown key train.lrr; did you mean train.lr?");
    refused("trian: {lr: 1}\n", "r.yaml:1: unknown key trian; did you mean train?");
    refused("lr: 1\n", "unknown key lr; did you mean train.lr?");
    refused("learning_rat: 1\n", "did you mean learning_rate?");
    refused("completely_other_thing_altogether: 1\n", "docs/recipe.md lists all keys");
    refused("train: {batch: sixteen}\n",
            "r.yaml:1: train.batch: expected a whole number from 1 to 1000000000, found the string \"sixteen\"");
    refused("train: {batch: \"16\"}\n", "found the string \"16\"");
    refused("train: {batch: 0}\n", "found the number 0");
    refused("train: {batch: 1.5}\n", "found the number 1.5");
    refused("train: {batch: 1e30}\n", "found the number 1e30");
    refused("train: {batch: [1, 2, 3]}\n", "found a list of 3");
    refused("train: {batch: []}\n", "found an empty list");
    refused("train: {batch: {}}\n", "found an empty mapping");
    refused("train: {seed: 9223372036854775808}\n", "found the number 9223372036854775808");
    refused("train: {lr: 1e999}\n", "found the number 1e999");
    refused("train: {lr: -1}\n", "a number of at least 0, or auto");
    refused("train: {lr: 1_000}\n", "found the string \"1_000\"");
    refused("train: {packing: yes}\n", "train.packing: expected true or false, found the string \"yes\"");
    refused("train: {packing: 1}\n", "expected true or false, found the number 1");
    refused("train: {schedule: cosin}\n",
            "one of constant, linear, cosine, wsd, found the string \"cosin\"; did you mean cosine?");
    refused("train: {betas: [0.9]}\n", "train.betas: expected a list of two numbers");
    refused("train: {betas: [0.9, 1]}\n", "train.betas: expected a number in [0, 1), found the number 1");
    refused("train: {betas: [0.9, 0.9]}\ntrain.beta1: 0\n", "r.yaml:2: train.beta1 is set twice (first in line 1)");
    refused("train: 5\n", "train: expected a mapping of keys, found the number 5");
    refused("lora: {dropout: 1}\n", "a number in [0, 1)");
    refused("lora: {dropout: 5%}\n", "found the string \"5%\"");
    refused("lora: {rank_pattern: {a: 1.5}}\n",
            "lora.rank_pattern: a: expected a mapping of names to numbers from 1 to 65536, found the number 1.5");
    refused("device: gpu\n", "device: expected one of auto, cpu, cuda, cuda:N, found the string \"gpu\"");
    refused("device: null\n", "found nothing (null)");
    refused("quantize: nf4\n", "quantize: expected none (all that is supported so far), found the string \"nf4\"");
    refused("quantize: {type: nf4, double: true}\n", "quantize: expected none");
    refused("learning_rate: 1\ntrain.lr: 2\n", "r.yaml:2: train.lr is set twice (first in line 1)");
    refused("model: a\nmodel: b\n", "r.yaml:2: key model is there twice (first in line 1)");
    refused("model: nowhere\n", "r.yaml:1: model: no such file or folder: nowhere");
    refused("\ndata: [a.jsonl,\n nowhere.jsonl]\n", "r.yaml:3: data.1.path: no such file or folder: nowhere.jsonl");
    refused("data: [{format: text}]\n", "r.yaml:1: data.0.path is missing");
    refused("data: [{path: a.jsonl, pth: 1}]\n", "unknown key data.pth; did you mean path?");
    refused("data: [{path: a.jsonl, file: a.jsonl}]\n", "data.path is set twice");
    refused("data: 5\n", "data: expected a file name or a mapping with path, found the number 5");
    refused("data: [{path: a.jsonl, columns: {txt: a}}]\n",
            "txt: expected a mapping to names with keys out of text, prompt");
    refused("eval: [a.jsonl, a.jsonl]\n", "two entries are named a");
    refused("eval: [{path: a.jsonl, name: a b}]\n", "a name has no dots");
    refused("eval: [{path: a.jsonl, max_drop: 1%}]\n", "unknown key eval.max_drop");
    refused("keep: {monitor: {probes: [{path: a.jsonl, metric: kl, max_drop: 1%}]}}\n",
            "metric kl has a budget in nats: max");
    refused("keep: {monitor: {probes: [{path: a.jsonl, max: 1}]}}\n", "max: is for metric kl");
    refused("eval: a.jsonl\ntrain: {early_stop: {metric: eval.b.loss}}\n",
            "r.yaml:2: train.early_stop.metric: there is no evaluation named b");
    refused("train: {early_stop: {metric: loss}}\n", "expected one of eval...., found");
    refused("[1, 2]\n", "expected a mapping of keys, found a list");
    refused("\nrecipe: {}\ntasks: []\narms: []\n", "r.yaml:2: expected a recipe, found a sequence of tasks; it is for: temper sequence ");
    refused("a: [1\nb: 2\n", "not valid YAML");
    refused("model: *x\n", "r.yaml:1: alias *x stands for nothing before it");
    refused("model: &x [*x]\n", "alias *x");
    refused("{}\n---\n{}\n", "r.yaml:2: a second document");
    refused("model: !!int 5\n", "tag tag:yaml.org,2002:int is not supported");
    refused("? [a]\n: 1\n", "a key must be a word");
    refused("model: \"a\\0b\"\n", "a value contains a zero byte");
    refused("model: \xff\n", "not valid YAML");
    refused("<<: {model: a}\n", "unknown key <<");
}

static void json_has_lines(void **state)
{
    (void)state;
    char *a = json_of("r.json", "{\n \"train\": {\"seq\": 8,\n\n \"lrr\": [\"x\\\"}\\\\\", {}, []]}}");
    assert_string_equal(a, "error: r.json:4: unknown key train.lrr; did you mean train.lr?");
    free(a);
    a = json_of("r.json", "{\n\"eval\": [\n{\"name\": \"\\u0041\\\"\", \"path\": \"a.jsonl\", \"limit\": 1, "
                          "\"metric\": \"loss\"},\n {\"path\": \"no\"}]}");
    assert_non_null(strstr(a, "a name has no dots"));
    free(a);
    a = json_of("r.json", "{\n\"data\": [\n\"a.jsonl\" , {} ,\n {\"path\": \"no\"}\n]}");
    assert_non_null(strstr(a, "r.json:3: data.1.path is missing"));
    free(a);
    a = json_of("r.json", "{\n\"data\": [\n\"a.jsonl\",\n {\"path\": \"no\"}\n]}");
    assert_non_null(strstr(a, "r.json:4: data.1.path: no such file or folder: no"));
    free(a);
    a = json_of("r.json", "{\"train\": {\"seq\": 8},}");
    assert_non_null(strstr(a, "r.json"));
    free(a);
    a = json_of("r.json", "{\"model\": 1, \"model\": 2}");
    assert_non_null(strstr(a, "r.json"));
    free(a);
}

static tm_status with(const char *file, tm_recipe **r, tm_error *err, size_t n, char *const *args)
{
    return tm_recipe_load(file, args, n, r, err);
}
#define WITH(file, ...) with(file, &r, &err, sizeof((char *[]){__VA_ARGS__}) / sizeof(char *), (char *[]){__VA_ARGS__})

static void arguments_override(void **state)
{
    (void)state;
    tm_recipe *r;
    tm_error err = {0};
    assert_int_equal(tm_file_write("r.yaml", full, strlen(full), &err), TM_OK);
    if (WITH("r.yaml", "train.lr=1e-3", "learning_rate=2e-3", "data.0.path=b.jsonl", "data.2.path=a.jsonl",
             "data.2.system=Be: kind # or not", "lora.target_modules=[o_proj]", "keep.monitor.probes.0.metric=accuracy",
             "eval.1={path: a.jsonl, name: 'x'}", "train.early_stop=null", "train.seeds=", "train.packing=true",
             "out=\"\"", "keep.monitor.probes.1.max_drop=auto") != TM_OK)
        fail_msg("%s", err.message);
    assert_true(r->lr == 2e-3 && r->packing);
    assert_int_equal(r->data_count, 3);
    assert_string_equal(r->data[0].path, "b.jsonl");
    assert_int_equal(r->data[0].format, TM_FORMAT_TOKENS);
    assert_string_equal(r->data[2].system, "Be: kind # or not");
    assert_string_equal(r->lora_target_modules.item[0], "o_proj");
    assert_int_equal(r->probes[0].metric, TM_METRIC_ACCURACY);
    assert_string_equal(r->eval[1].name, "x");
    assert_int_equal(r->eval[1].line, 0);
    assert_null(r->early_stop_metric);
    assert_int_equal(r->seed_init, TM_AUTO_INT);
    assert_null(r->out);
    assert_int_equal(r->aliases_used.count, 1);
    assert_string_equal(r->aliases_used.item[0], "learning_rate -> train.lr");
    tm_recipe_destroy(r);

    assert_int_equal(
        WITH(NULL, "model=model", "data=a.jsonl", "data.format=text", "eval=b.jsonl", "eval.metric=accuracy"), TM_OK);
    assert_int_equal(r->data[0].format, TM_FORMAT_TEXT);
    assert_string_equal(r->eval[0].name, "b");
    assert_int_equal(r->eval[0].metric, TM_METRIC_ACCURACY);
    tm_recipe_destroy(r);

    /* Values of other tools. */
    assert_int_equal(WITH(NULL, "max_steps=-1", "bf16=true", "fp16=false", "lora_target=all", "warmup_ratio=0.1",
                          "warmup_steps=0"), TM_OK);
    assert_int_equal(r->steps, 0);
    assert_int_equal(r->precision, TM_PRECISION_BF16);
    assert_string_equal(r->lora_target_modules.item[0], "all-linear");
    assert_int_equal(r->warmup_steps, TM_AUTO_INT);
    assert_true(r->warmup_ratio == 0.1);
    static const char *const used[] = {"max_steps: -1 -> train.steps is not set", "bf16: true -> precision: bf16",
                                       "fp16: false -> precision is not set",
                                       "lora_target: all -> lora.target_modules: all-linear",
                                       "warmup_ratio -> train.warmup_ratio", "warmup_steps -> train.warmup_steps"};
    assert_int_equal(r->aliases_used.count, 6);
    for (int i = 0; i < 6; i++)
        assert_string_equal(r->aliases_used.item[i], used[i]);
    tm_recipe_destroy(r);
    assert_int_equal(WITH(NULL, "fp16=True", "lora_target=q_proj", "max_steps=7"), TM_OK);
    assert_int_equal(r->precision, TM_PRECISION_F16);
    assert_string_equal(r->lora_target_modules.item[0], "q_proj");
    assert_int_equal(r->steps, 7);
    tm_recipe_destroy(r);
    assert_int_equal(WITH(NULL, "max_steps=-2"), TM_RECIPE);
    assert_int_equal(WITH(NULL, "train.steps=-1"), TM_RECIPE);
    assert_int_equal(WITH(NULL, "bf16=maybe"), TM_RECIPE);
    assert_int_equal(WITH(NULL, "lora_target=q_(proj"), TM_RECIPE);
    assert_non_null(strstr(err.message, "lora.target_modules: \"q_(proj\" is not a valid regular expression"));
    assert_int_equal(WITH(NULL, "lora.rank_pattern={'a[': 4}"), TM_RECIPE);

    assert_int_equal(WITH(NULL, "train.lrr=1"), TM_RECIPE);
    assert_string_equal(err.message, "argument train.lrr=1: unknown key train.lrr; did you mean train.lr?");
    assert_int_equal(WITH(NULL, "train.seq"), TM_RECIPE);
    assert_string_equal(err.message, "argument train.seq: expected key=value");
    assert_int_equal(WITH(NULL, "data=nowhere"), TM_RECIPE);
    assert_string_equal(err.message, "argument data=nowhere: data.0.path: no such file or folder: nowhere");
    assert_int_equal(WITH("r.yaml", "data.path=a.jsonl"), TM_RECIPE);
    assert_non_null(strstr(err.message, "data has 2 entries: write data.0.path"));
    assert_int_equal(WITH(NULL, "data.1.path=a.jsonl"), TM_RECIPE);
    assert_non_null(strstr(err.message, "data.1: there are 0 entries, the next is data.0"));
    assert_int_equal(WITH(NULL, "lora.target_modules=[a"), TM_RECIPE);
    assert_int_equal(WITH(NULL, "model=\xc0"), TM_RECIPE);
    assert_int_equal(WITH(NULL, "=1"), TM_RECIPE);
    assert_int_equal(WITH("nowhere.yaml", "train.lr=1"), TM_RECIPE);
    assert_non_null(strstr(err.message, "nowhere.yaml"));
}

/* Aliases inside aliases double with every line: small files that would stand for more than memory. */
static void bombs_are_refused(void **state)
{
    (void)state;
    tm_buf text = {0};
    tm_buf_text(&text, "a0: &a0 [x, x]\n");
    for (int i = 1; i < 40; i++)
        tm_buf_printf(&text, "a%d: &a%d [*a%d, *a%d]\n", i, i, i - 1, i - 1);
    refused(text.data, "more than 1000000 values");
    tm_buf_clear(&text);
    for (int i = 0; i < 5000; i++)
        tm_buf_char(&text, '[');
    refused(text.data, "nested deeper than 64");
    tm_buf_clear(&text);
    tm_buf_text(&text, "[");
    for (int i = 0; i < 65; i++)
        tm_buf_text(&text, "[");
    for (int i = 0; i < 66; i++)
        tm_buf_text(&text, "]");
    char *message = json_of("r.json", text.data);
    assert_non_null(strstr(message, "nested deeper than 64"));
    free(message);
    tm_buf_clear(&text);
    tm_buf_text(&text, "data: [");
    for (int i = 0; i < 1001; i++)
        tm_buf_text(&text, "a.jsonl,");
    tm_buf_text(&text, "]");
    refused(text.data, "data: more than 1000 entries");
    tm_buf_deinit(&text);
}

/* Mappings of another file between the recipe's own and the arguments: the last word wins, and each is named by its
 * file and line. */
static void layers(void **state)
{
    (void)state;
    static const char over[] = "train:\n  lr: 0.5\n  batch: 3\n", below[] = "\n\ntrain: {lr: 0.25}\n", bad[] = "\ndata:\n  - a.jsonl\n  - {path: b.jsonl, fromat: text}\n";
    tm_tree tree[3];
    tm_error err;
    tm_recipe *r;
    const tm_node *map[3];
    char *arguments[] = {"train.batch=7"};
    assert_int_equal(tm_tree_parse_yaml(over, strlen(over), "s.yaml", &tree[0], &err), TM_OK);
    assert_int_equal(tm_tree_parse_yaml(below, strlen(below), "s.yaml", &tree[1], &err), TM_OK);
    assert_int_equal(tm_tree_parse_yaml(bad, strlen(bad), "s.yaml", &tree[2], &err), TM_OK);
    for (int i = 0; i < 3; i++)
        map[i] = tree[i].root;
    assert_int_equal(tm_file_write("base.yaml", "train: {lr: 1, seq: 33}\n", 24, &err), TM_OK);
    assert_int_equal(tm_recipe_load_layers("base.yaml", &(tm_recipe_layers){"s.yaml", map, 2}, arguments, 1, &r, &err), TM_OK);
    assert_true(r->lr == 0.25 && r->batch == 7 && r->seq == 33);
    tm_recipe_destroy(r);
    assert_int_equal(tm_recipe_load_layers("base.yaml", &(tm_recipe_layers){"s.yaml", map, 3}, arguments, 1, &r, &err), TM_RECIPE);
    assert_string_equal(err.message, "s.yaml:4: unknown key data.fromat; did you mean format?");
    char *wrong[] = {"train.lr=x"};
    assert_int_equal(tm_recipe_load_layers("base.yaml", &(tm_recipe_layers){"s.yaml", map, 2}, wrong, 1, &r, &err), TM_RECIPE);
    assert_non_null(strstr(err.message, "argument train.lr=x: train.lr: expected"));
    for (int i = 0; i < 3; i++)
        tm_tree_deinit(&tree[i]);
}

static bool is_sequence(const char *path)
{
    tm_tree tree;
    tm_error err;
    bool tasks = false;
    assert_int_equal(tm_tree_read(path, &tree, &err), TM_OK);
    for (size_t i = 0; tree.root && i < tree.root->count; i++)
        tasks |= strcmp(tree.root->item[i].key, "tasks") == 0;
    tm_tree_deinit(&tree);
    return tasks;
}

/* The recipes that the project ships load, and its sequences. */
static void shipped_recipes_load(void **state)
{
    (void)state;
    char **names;
    size_t count, loaded = 0;
    tm_error err;
    assert_int_equal(chdir(root), 0);
    assert_int_equal(tm_dir_list("recipes", &names, &count, &err), TM_OK);
    for (size_t i = 0; i < count; i++) {
        tm_recipe *r;
        char path[300];
        snprintf(path, sizeof path, "recipes/%.200s", names[i]);
        if (!strstr(path, ".yaml"))
            continue;
        if (is_sequence(path)) {
            tm_sequence_file file;
            if (tm_sequence_file_open(path, NULL, 0, &file, &err) != TM_OK)
                fail_msg("%s", err.message);
            tm_sequence_file_close(&file);
            continue;
        }
        if (tm_recipe_load(path, NULL, 0, &r, &err) != TM_OK)
            fail_msg("%s", err.message);
        assert_non_null(r->model);
        assert_non_null(r->out);
        assert_true(r->data_count > 0);
        tm_recipe_destroy(r);
        loaded++;
    }
    assert_true(loaded >= 4);
    tm_names_free(names, count);
    assert_int_equal(chdir(dir), 0);
}

/* docs/recipe.md is what the table says; `make docs` writes it. */
static void document_is_current(void **state)
{
    (void)state;
    tm_buf made = {0}, there = {0};
    tm_error err;
    char *path = tm_path_join(root, "docs/recipe.md", &err);
    tm_recipe_document(&made);
    assert_int_equal(tm_file_read(path, 1 << 20, &there, &err), TM_OK);
    assert_string_equal(there.data, made.data);
    free(path);
    tm_buf_deinit(&made);
    tm_buf_deinit(&there);
}

/* What is said beyond the defaults, and nothing else; the same however it was said. */
static void changes(void **state)
{
    (void)state;
    tm_error err;
    tm_recipe *r;
    tm_buf out = {0};
    char *some[] = {"train.lr=1e-3", "data=[{path: a.jsonl, format: text}, {path: a.jsonl, format: tokens, columns: {prompt: x}}]", "lora.r=16", "train.seed=7", "lora.target_modules=[q_proj, v_proj]"};
    if (tm_recipe_load(NULL, some, 5, &r, &err) != TM_OK)
        fail_msg("%s", err.message);
    assert_int_equal(tm_recipe_changes(r, &out, &err), TM_OK);
    assert_string_equal(tm_buf_str(&out), "lora.target_modules: [\"q_proj\", \"v_proj\"]\ndata.0.path: \"a.jsonl\"\ndata.0.format: \"text\"\ndata.1.path: \"a.jsonl\"\ndata.1.format: \"tokens\"\n"
                                          "data.1.columns: {\"prompt\": \"x\"}\ntrain.seed: 7\ntrain.lr: 0.001\n");
    tm_recipe_destroy(r);
    tm_buf_deinit(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_the_tables),     cmocka_unit_test(reads_every_kind),
        cmocka_unit_test(one_recipe_one_json),         cmocka_unit_test(written_reads_back),
        cmocka_unit_test(refusals_say_where_and_what), cmocka_unit_test(json_has_lines),
        cmocka_unit_test(arguments_override),          cmocka_unit_test(bombs_are_refused),
        cmocka_unit_test(document_is_current),         cmocka_unit_test(layers), cmocka_unit_test(changes), cmocka_unit_test(shipped_recipes_load),
    };
    return cmocka_run_group_tests_name("options", tests, setup, teardown);
}
