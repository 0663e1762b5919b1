/* Generative replay with the shipped model: the same texts every time, filters, provenance, what is used again and what is
 * refused, chat templates and given prompts; and whole runs with old rows, texts of the base and a mask together. */
#include "../support/run.h"

#include "io/hf.h"

#include <sys/stat.h>

#define MODEL "models/stories260K"

static uint64_t seed;

static const char *in(const char *out, const char *name)
{
    static char path[8][1024];
    static int next;
    char *p = path[next++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", scratch(out), name);
    return p;
}

static void recipe(args *a, const char *out)
{
    arg(a, "model=%s", MODEL);
    arg(a, "out=%s", scratch(out));
    arg(a, "data.0.path=%s", scratch("task.jsonl"));
    arg(a, "train.seq=48");
    arg(a, "train.steps=6");
    arg(a, "train.batch=4");
    arg(a, "train.checkpoint_every=2");
    arg(a, "train.seed=%llu", (unsigned long long)(seed >> 1));
    arg(a, "lora.r=2");
    arg(a, "threads=1");
    arg(a, "keep.generate.samples=12");
    arg(a, "keep.generate.max_tokens=24");
    arg(a, "keep.generate.fraction=0.4");
}

static json_t *json_of(const char *out, const char *name)
{
    json_t *json;
    OK(tm_json_read(in(out, name), &json, err));
    return json;
}

static int64_t number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    assert_true(json_is_integer(value));
    return json_integer_value(value);
}

/* The record's part, as a reference of its own. */
static json_t *record_of(const char *out)
{
    json_t *json = json_of(out, "rehearsal.json"), *part = json_incref(json_object_get(json, "generate"));
    json_decref(json);
    return part;
}

/* Calls fn for every row of a run's texts; how many there are. */
static int64_t each_row(const char *out, void (*fn)(const json_t *ids, const json_t *labels, void *context), void *context)
{
    char *text = slurp(in(out, "rehearsal.jsonl"), NULL), *line = text;
    int64_t rows = 0;
    for (char *end; (end = strchr(line, '\n')); line = end + 1, rows++) {
        json_t *row;
        OK(tm_json_parse(line, (size_t)(end - line), "row", &row, err));
        fn(json_object_get(row, "input_ids"), json_object_get(row, "labels"), context);
        json_decref(row);
    }
    free(text);
    return rows;
}

typedef struct seen {
    tm_tokenizer *tok;
    int64_t longest;
    const char *prompt; /* what every prompt must contain; NULL: BOS alone */
} seen;

static void check_row(const json_t *ids, const json_t *labels, void *context)
{
    seen *s = context;
    tm_ids prompt = {0};
    size_t n = json_array_size(ids), learned = 0;
    assert_true(n >= 2 && (int64_t)n <= s->longest && json_array_size(labels) == n);
    while (learned < n && json_integer_value(json_array_get(labels, learned)) == -100)
        learned++;
    assert_true(learned >= 1 && learned < n);
    for (size_t i = learned; i < n; i++)
        assert_int_equal(json_integer_value(json_array_get(labels, i)), json_integer_value(json_array_get(ids, i)));
    OK(TM_GROW(&prompt.id, &prompt.capacity, learned, err));
    for (size_t i = 0; i < learned; i++)
        prompt.id[prompt.count++] = (int32_t)json_integer_value(json_array_get(ids, i));
    if (s->prompt) {
        tm_buf text = {0};
        OK(tm_tokenizer_decode(s->tok, prompt.id, prompt.count, false, &text, err));
        if (!strstr(tm_buf_str(&text), s->prompt))
            fail_msg("prompt \"%s\", expected \"%s\" in it", tm_buf_str(&text), s->prompt);
        tm_buf_deinit(&text);
    } else
        assert_true(learned == 1 && prompt.id[0] == tm_tokenizer_bos(s->tok));
    tm_ids_deinit(&prompt);
}

static void check_texts(const char *out, const char *prompt, int64_t longest)
{
    seen s = {.longest = longest, .prompt = prompt};
    tm_sha256 hash;
    OK(tm_tokenizer_open(MODEL, &s.tok, err));
    json_t *record = record_of(out);
    int64_t rows = each_row(out, check_row, &s);
    assert_int_equal(number(record, "kept"), rows);
    assert_int_equal(rows + number(record, "repeats") + number(record, "empty") + number(record, "too_long"), number(record, "samples"));
    OK(tm_sha256_file(in(out, "rehearsal.jsonl"), &hash, err));
    assert_string_equal(json_string_value(json_object_get(record, "sha256")), hash.hex);
    json_decref(record);
    tm_tokenizer_close(s.tok);
}

/* --- The texts --- */

static void texts_are_the_same_every_time(void **state)
{
    (void)state;
    args a = {0};
    tm_sha256 model;
    recipe(&a, "one");
    train(&a);
    arg(&a, "out=%s", scratch("two"));
    arg(&a, "threads=3");
    train(&a);
    assert_true(files_agree(scratch("one"), scratch("two"), "rehearsal.jsonl"));
    assert_true(files_agree(scratch("one"), scratch("two"), "rehearsal.json"));
    assert_true(runs_agree(scratch("one"), scratch("two"), adapter_file()));
    arg(&a, "out=%s", scratch("three"));
    arg(&a, "train.seeds.subset=77");
    train(&a);
    print_message("the next files must differ:\n");
    assert_false(files_agree(scratch("one"), scratch("three"), "rehearsal.jsonl"));
    check_texts("one", NULL, 24);
    check_texts("three", NULL, 24);
    json_t *record = record_of("one");
    OK(tm_hf_hash(MODEL, &model, err));
    assert_string_equal(json_string_value(json_object_get(record, "model_sha256")), model.hex);
    assert_string_equal(json_string_value(json_object_get(record, "model")), MODEL);
    assert_string_equal(json_string_value(json_object_get(record, "begin")), "bos");
    assert_true(json_is_null(json_object_get(record, "adapter")) && json_is_null(json_object_get(record, "prompts")));
    assert_true(json_number_value(json_object_get(record, "temperature")) == 1);
    assert_int_equal(number(record, "kept") + number(record, "repeats") + number(record, "empty") + number(record, "too_long"), 12);
    assert_true(number(record, "kept") > 3); /* one in a hundred is of no use */
    json_decref(record);
    bool equal = false;
    char *text = NULL;
    OK(tm_verify(scratch("one"), NULL, &equal, &text, err));
    assert_true(equal);
    free(text);
    args_free(&a);
}

/* At temperature 0 the model says the same again and again. */
static void repeats_are_left_out(void **state)
{
    (void)state;
    args a = {0};
    recipe(&a, "greedy");
    arg(&a, "keep.generate.temperature=0");
    train(&a);
    json_t *record = record_of("greedy");
    assert_true(number(record, "kept") == 1 && number(record, "repeats") == 11);
    json_decref(record);
    check_texts("greedy", NULL, 24);
    args_free(&a);
}

static void given_prompts_are_gone_on_with(void **state)
{
    (void)state;
    static const char rows[] = "{\"prompt\": \"Once there was a king\"}\n{\"text\": \"Once there was a king and a cat\", \"other\": 1}\n";
    args a = {0};
    tm_error problem;
    OK(tm_file_write(scratch("prompts.jsonl"), rows, sizeof rows - 1, err));
    recipe(&a, "prompts");
    arg(&a, "keep.generate.prompts=%s", scratch("prompts.jsonl"));
    train(&a);
    check_texts("prompts", "Once there was a king", 24);
    json_t *record = record_of("prompts");
    assert_string_equal(json_string_value(json_object_get(record, "begin")), "prompts");
    assert_int_equal(strlen(json_string_value(json_object_get(record, "prompts_sha256"))), 64);
    json_decref(record);
    static const struct {
        const char *rows, *say;
        tm_status status;
    } bad[] = {
        {"{\"prompt\": \"a\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n", ":2: messages: the model has no chat template", TM_INPUT},
        {"{\"promt\": \"a\"}\n", ":1: expected a list messages, or a text prompt or text", TM_INPUT},
        {"{\"prompt\": 5}\n", ":1: expected a list messages", TM_INPUT},
        {"\n", "no row", TM_INPUT},
        {"{\"prompt\": \"a b c d e f g h i j k l m n o p q r s t u v w x y z 1 2 3 4 5 6 7 8 9\"}\n", "none of 12 texts is of use (0 empty, 12 too long)", TM_FAILED},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        OK(tm_file_write(scratch("bad.jsonl"), bad[i].rows, strlen(bad[i].rows), err));
        arg(&a, "out=%s", scratch("bad"));
        arg(&a, "keep.generate.prompts=%s", scratch("bad.jsonl"));
        assert_int_equal(try_train(&a, &problem), bad[i].status);
        if (!strstr(problem.message, bad[i].say))
            fail_msg("said \"%s\", expected \"%s\"", problem.message, bad[i].say);
        assert_false(tm_path_exists(in("bad", "rehearsal.jsonl")));
    }
    args_free(&a);
}

/* A copy of the shipped model with a chat template. */
static void with_template(const char *dir, const char *template)
{
    tm_error problem = {0};
    assert_int_equal(tm_dir_create(scratch(dir), &problem), TM_OK);
    static const char *const files[] = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char from[256];
        size_t n;
        snprintf(from, sizeof from, MODEL "/%s", files[i]);
        char *bytes = slurp(from, &n);
        OK(tm_file_write(in(dir, files[i]), bytes, n, err));
        free(bytes);
    }
    OK(tm_file_write(in(dir, "chat_template.jinja"), template, strlen(template), err));
}

/* The model says a sentence, which the template closes with a full stop, and then its answer. */
static void users_turn_is_written_first(void **state)
{
    (void)state;
    static const char template[] = "{% for m in messages %}{% if m.role == 'user' %}One day {{ m.content }}.\n Then{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}";
    args a = {0};
    tm_error problem;
    with_template("chatty", template);
    recipe(&a, "chat");
    arg(&a, "model=%s", scratch("chatty"));
    arg(&a, "train.seq=96");
    arg(&a, "keep.generate.max_tokens=96");
    train(&a);
    check_texts("chat", "One day ", 96);
    check_texts("chat", ".\n Then", 96);
    json_t *record = record_of("chat");
    assert_string_equal(json_string_value(json_object_get(record, "begin")), "chat");
    assert_true(number(record, "kept") > 0);
    json_decref(record);
    static const char rows[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"a boy\"}, {\"role\": \"assistant\", \"content\": \"left out\"}]}\n";
    OK(tm_file_write(scratch("turns.jsonl"), rows, sizeof rows - 1, err));
    arg(&a, "out=%s", scratch("chat-given"));
    arg(&a, "keep.generate.prompts=%s", scratch("turns.jsonl"));
    train(&a);
    check_texts("chat-given", "One day a boy.\n Then", 96);
    with_template("mute", "{% for m in messages %}nothing{% endfor %}");
    recipe(&a, "mute-run");
    arg(&a, "model=%s", scratch("mute"));
    arg(&a, "keep.generate.prompts=");
    assert_int_equal(try_train(&a, &problem), TM_RECIPE);
    assert_non_null(strstr(problem.message, "does not show where a user's turn begins"));
    args_free(&a);
}

/* --- What is there already --- */

static ino_t file_number(const char *path)
{
    struct stat s;
    assert_int_equal(stat(path, &s), 0);
    return s.st_ino;
}

/* Times that are left once a file is there (NULL: at once). */
typedef struct stopping {
    const char *file;
    int times;
} stopping;

static bool stop_at(void *context)
{
    stopping *s = context;
    if (s->file && !tm_path_exists(s->file))
        return false;
    return --s->times < 0;
}

static void interrupt_after(const args *a, const char *file, int times)
{
    tm_error problem;
    char *dir = NULL;
    tm_callbacks callbacks = {.interrupted = stop_at, .context = &(stopping){file, times}};
    assert_int_equal(tm_train(&(tm_recipe_source){.overrides = (char *const *)a->item, .override_count = a->count}, &callbacks, &dir, &problem), TM_FAILED);
    free(dir);
}

/* Ended while texts are written, and again between steps; with old rows and a mask beside. */
static void going_on_ends_the_same(void **state)
{
    (void)state;
    args a = {0};
    recipe(&a, "whole");
    arg(&a, "keep.replay.path=%s", scratch("old.jsonl"));
    arg(&a, "keep.replay.fraction=0.2");
    arg(&a, "keep.replay.buffer=6");
    arg(&a, "keep.replay.select=loss");
    arg(&a, "keep.stm.fraction=0.3");
    train(&a);
    arg(&a, "out=%s", scratch("broken"));
    interrupt_after(&a, NULL, 5);
    assert_false(tm_path_exists(in("broken", "rehearsal.jsonl")));
    interrupt_after(&a, in("broken", "rehearsal.jsonl"), 3); /* among the old examples */
    assert_true(tm_path_exists(in("broken", "rehearsal.jsonl")));
    ino_t texts = file_number(in("broken", "rehearsal.jsonl"));
    interrupt_after(&a, NULL, 8 + 4);
    arg(&a, "threads=2");
    train(&a);
    assert_int_equal(texts, file_number(in("broken", "rehearsal.jsonl")));
    assert_true(files_agree(scratch("whole"), scratch("broken"), "rehearsal.json"));
    assert_true(files_agree(scratch("whole"), scratch("broken"), "stm.bin"));
    assert_true(runs_agree(scratch("whole"), scratch("broken"), adapter_file()));
    json_t *run = json_of("whole", "run.json"), *list = json_object_get(run, "rehearsal");
    assert_int_equal(json_array_size(list), 2);
    assert_int_equal(number(json_array_get(list, 0), "examples"), 6);
    for (size_t i = 0; i < 2; i++)
        assert_true(number(json_array_get(list, i), "drawn") > 0);
    json_decref(run);
    args_free(&a);
}

static void other_texts_are_not_taken_for_these(void **state)
{
    (void)state;
    args a = {0}, b = {0}, c = {0};
    tm_error problem;
    recipe(&a, "again");
    b = args_copy(&a);
    tm_recipe *r;
    static const tm_callbacks silent = {0};
    OK(tm_recipe_load(NULL, a.item, a.count, &r, err));
    OK(tm_rehearsal_prepare(r, &silent, err)); /* the texts are there, the run is not */
    tm_recipe_destroy(r);
    ino_t before = file_number(in("again", "rehearsal.jsonl"));
    arg(&b, "keep.generate.temperature=0.5");
    train(&b);
    assert_int_not_equal(before, file_number(in("again", "rehearsal.jsonl")));
    assert_int_equal(try_train(&a, &problem), TM_LOCKED);
    assert_non_null(strstr(problem.message, "holds another run: temperature"));
    train(&b); /* finished: nothing to do */
    size_t n;
    char *bytes = slurp(in("again", "rehearsal.jsonl"), &n);
    OK(tm_file_write(in("again", "rehearsal.jsonl"), bytes, n / 2, err));
    free(bytes);
    assert_int_equal(try_train(&b, &problem), TM_INPUT);
    assert_non_null(strstr(problem.message, "changed since it was written"));
    recipe(&c, "damaged");
    OK(tm_dir_create(scratch("damaged"), err));
    OK(tm_file_write(in("damaged", "rehearsal.json"), "[1]", 3, err));
    assert_int_equal(try_train(&c, &problem), TM_INPUT);
    assert_non_null(strstr(problem.message, "expected an object"));
    args_free(&a);
    args_free(&b);
    args_free(&c);
}

static void what_cannot_be_is_said(void **state)
{
    (void)state;
    args a = {0};
    tm_error problem;
    recipe(&a, "no");
    arg(&a, "init=random");
    assert_int_equal(try_train(&a, &problem), TM_RECIPE);
    assert_non_null(strstr(problem.message, "nothing to rehearse"));
    arg(&a, "keep.generate.samples=0");
    arg(&a, "keep.replay.path=%s", scratch("old.jsonl"));
    arg(&a, "keep.replay.buffer=3");
    arg(&a, "keep.replay.select=diverse");
    assert_int_equal(try_train(&a, &problem), TM_RECIPE);
    assert_non_null(strstr(problem.message, "expected random or reservoir"));
    args_free(&a);
}

/* A plan makes nothing, and takes texts to be as long as they may get. A share of 0 is nothing. */
static void plans_suppose(void **state)
{
    (void)state;
    args a = {0}, b = {0};
    tm_job job;
    recipe(&a, "planned");
    open_job(&a, TM_JOB_PLAN, &job);
    assert_int_equal(tm_dataset_sources(job.data), 2);
    assert_int_equal(job.run.rehearsal_from, 1);
    assert_int_equal(tm_dataset_stats_of(job.data, 1)->examples, 12);
    for (int64_t i = tm_dataset_first(job.data, 1); i < tm_dataset_count(job.data); i++)
        assert_true(tm_dataset_at(job.data, i)->n == 24 && tm_dataset_at(job.data, i)->targets == 23);
    tm_job_close(&job);
    assert_false(tm_path_exists(in("planned", "rehearsal.jsonl")));
    arg(&a, "keep.generate.fraction=0");
    train(&a);
    assert_false(tm_path_exists(in("planned", "rehearsal.jsonl")));
    recipe(&b, "plain");
    arg(&b, "keep.generate.samples=0");
    train(&b);
    assert_true(runs_agree(scratch("planned"), scratch("plain"), adapter_file()));
    args_free(&a);
    args_free(&b);
}

static int begin(void **state)
{
    tm_buf task = {0}, old = {0};
    static const char *const who[] = {"king", "queen", "cat", "dog", "fox", "owl", "boy", "girl"};
    seed = fresh_seed();
    if (memory_begin(state) != 0)
        return -1;
    for (int i = 0; i < 16; i++) {
        tm_buf_printf(&task, "{\"prompt\": \"Who is number %d?\", \"completion\": \" It is the %s of the hill.\"}\n", i, who[i % 8]);
        tm_buf_printf(&old, "{\"prompt\": \"Once upon a time the %s\", \"completion\": \" went %d times to the big park.\"}\n", who[i % 8], i);
    }
    tm_error err;
    if (tm_file_write(scratch("task.jsonl"), task.data, task.size, &err) || tm_file_write(scratch("old.jsonl"), old.data, old.size, &err))
        return -1;
    tm_buf_deinit(&task);
    tm_buf_deinit(&old);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_are_the_same_every_time), cmocka_unit_test(repeats_are_left_out), cmocka_unit_test(given_prompts_are_gone_on_with),
        cmocka_unit_test(users_turn_is_written_first), cmocka_unit_test(going_on_ends_the_same), cmocka_unit_test(other_texts_are_not_taken_for_these),
        cmocka_unit_test(what_cannot_be_is_said), cmocka_unit_test(plans_suppose),
    };
    return cmocka_run_group_tests(tests, begin, scratch_end);
}
