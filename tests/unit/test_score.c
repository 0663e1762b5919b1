/* Evaluation that scores answers, held against the same questions asked another way: likelihoods summed from logits,
 * texts of temper generate. And in training: a run that learns its answers by heart sees them scored. */
#include "../support/run.h"

#include "api/inference.h"
#include "api/logits.h"
#include "text/answers.h"

static const char *const stories = "models/stories260K";

static void write_text(const char *name, const char *text) { OK(tm_file_write(scratch(name), text, strlen(text), err)); }

/* Runs temper eval; the JSON of the scores and of the items (an array). */
static json_t *evaluate(const char *data, const char *metric, const char *override, json_t **items)
{
    char *text, *overrides[] = {(char *)"threads=1", (char *)override};
    json_t *scores;
    tm_eval_request request = {.model = stories, .data = scratch(data), .metric = metric, .items = scratch("items.jsonl"),
                               .overrides = overrides, .override_count = override ? 2 : 1, .json = true};
    OK(tm_eval(&request, &text, err));
    OK(tm_json_parse(text, strlen(text), "scores", &scores, err));
    free(text);
    *items = json_array();
    char *rows = slurp(scratch("items.jsonl"), NULL);
    for (char *line = strtok(rows, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *item;
        OK(tm_json_parse(line, strlen(line), "item", &item, err));
        json_array_append_new(*items, item);
    }
    free(rows);
    return scores;
}

static double number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value))
        fail_msg("%s is no number", key);
    return json_number_value(value);
}

/* log p(option | prompt) from the logits of the whole text. */
static double log_likelihood(tm_inference *inf, const tm_tokenizer *tok, const char *prompt, const char *option)
{
    tm_tokens *scratch_ids;
    tm_ids ids = {0};
    int64_t vocab = inf->model.config.vocab;
    OK(tm_tokens_create(tok, &scratch_ids, err));
    OK(tm_tokenizer_encode(tok, scratch_ids, prompt, strlen(prompt), true, &ids, err));
    size_t first = ids.count;
    OK(tm_tokenizer_encode(tok, scratch_ids, option, strlen(option), false, &ids, err));
    tm_batch_item item = {.ids = ids.id, .n = (int32_t)ids.count, .scale = 1};
    tm_batch_fill(&inf->batch, &item, 1);
    tm_model_forward(&inf->model, &inf->batch);
    tm_model_logits(&inf->model, &inf->batch);
    float *logits = malloc(ids.count * (size_t)vocab * sizeof *logits);
    inf->device->calls->download(inf->device, logits, inf->model.logits.data, (int64_t)ids.count * vocab * 4);
    double sum = 0;
    for (size_t i = first; i < ids.count; i++)
        sum += logits[(int64_t)(i - 1) * vocab + ids.id[i]] - tm_log_sum_exp(logits + (int64_t)(i - 1) * vocab, vocab);
    free(logits);
    tm_ids_deinit(&ids);
    tm_tokens_destroy(scratch_ids);
    return sum;
}

static void choices(void **state)
{
    (void)state;
    static const struct {
        const char *prompt, *option[4];
        int answer;
    } rows[] = {{"Once upon a", {"time", "sky was very very very long and blue", "zebra"}, 0},
                {"The little girl was", {"qqq", "happy", "happy and played with her mom all day long in the park"}, 1},
                {"Tom and Lily like to play in the ", {"park.", "x"}, 1}};
    const char *text = "{\"prompt\": \"Once upon a\", \"choices\": [\"time\", \"sky was very very very long and blue\", \"zebra\"], \"answer\": 0}\n"
                       "{\"prompt\": \"The little girl was\", \"choices\": [\"qqq\", \"happy\", \"happy and played with her mom all day long in the park\"], \"answer\": \"B\"}\n"
                       "{\"prompt\": \"Tom and Lily like to play in the \", \"choices\": [\"park.\", \"x\"], \"answer\": \"x\"}\n";
    write_text("choices.jsonl", text);
    json_t *items, *scores = evaluate("choices.jsonl", "choice", NULL, &items);
    tm_inference inf;
    tm_tokenizer *tok;
    OK(tm_inference_open(&(tm_inference_settings){.model = stories, .threads = 1, .max_tokens = 128, .logits = true}, &inf, err));
    OK(tm_tokenizer_open(stories, &tok, err));
    double right[2] = {0};
    assert_int_equal(json_array_size(items), 3);
    for (int i = 0; i < 3; i++) {
        const json_t *item = json_array_get(items, (size_t)i), *list = json_object_get(item, "log_likelihood");
        double best[2] = {-INFINITY, -INFINITY};
        int chosen[2] = {0};
        for (int k = 0; k < 4 && rows[i].option[k]; k++) {
            char option[200];
            bool spaced = rows[i].prompt[strlen(rows[i].prompt) - 1] == ' ';
            snprintf(option, sizeof option, "%s%s", spaced ? "" : " ", rows[i].option[k]);
            double value = log_likelihood(&inf, tok, rows[i].prompt, option), norm = value / (double)strlen(rows[i].option[k]);
            assert_true(fabs(json_number_value(json_array_get(list, (size_t)k)) - value) < 2e-5);
            for (int m = 0; m < 2; m++)
                if ((m ? norm : value) > best[m]) {
                    best[m] = m ? norm : value;
                    chosen[m] = k;
                }
        }
        assert_int_equal(number(item, "answer"), rows[i].answer);
        assert_int_equal(number(item, "chosen"), chosen[0]);
        assert_int_equal(number(item, "chosen_norm"), chosen[1]);
        right[0] += chosen[0] == rows[i].answer;
        right[1] += chosen[1] == rows[i].answer;
    }
    assert_true(fabs(number(scores, "acc") - right[0] / 3) < 1e-12);
    assert_true(fabs(number(scores, "acc_norm") - right[1] / 3) < 1e-12);
    json_decref(items);
    json_decref(scores);
    /* Of options that are as likely the first is chosen. */
    write_text("even.jsonl", "{\"prompt\": \"Once upon a\", \"choices\": [\"qqq\", \"time\", \"time\"], \"answer\": 1}\n{\"prompt\": \"Once upon a\", \"choices\": [\"time\", \"qqq\", \"time\"], \"answer\": 0}\n");
    scores = evaluate("even.jsonl", "choice", NULL, &items);
    for (int i = 0; i < 2; i++) {
        const json_t *item = json_array_get(items, (size_t)i);
        assert_int_equal(json_integer_value(json_object_get(item, "chosen")), 1 - i);
        assert_int_equal(json_integer_value(json_object_get(item, "chosen_norm")), 1 - i);
    }
    json_decref(scores);
    json_decref(items);
    scores = evaluate("choices.jsonl", "choice", "eval.0.limit=2", &items); /* of rows, not of options */
    assert_int_equal(json_array_size(items), 2);
    json_decref(items);
    json_decref(scores);
    tm_tokenizer_close(tok);
    tm_inference_close(&inf);
}

static void collect(void *context, const char *text, size_t size) { tm_buf_add(context, text, size); }

/* More texts than are written at a time, each held against the same one alone. */
static void generated(void **state)
{
    (void)state;
    enum { PROMPTS = 19 };
    static const char *const first[] = {"Once upon a time", "The dog"};
    char prompts[PROMPTS][64];
    tm_buf rows = {0};
    for (int i = 0; i < PROMPTS; i++)
        snprintf(prompts[i], sizeof prompts[i], i < 2 ? "%s" : "%s%.*s", first[i % 2], i, " and a cat and a bird");
    tm_buf_text(&rows, "{\"prompt\": \"Once upon a time\", \"completion\": \", there was a dog. #### 5\"}\n"
                       "{\"prompt\": \"The dog\", \"completion\": \" ran\", \"references\": [\"x\", \"y\"], \"source\": \"z\"}\n");
    for (int i = 2; i < PROMPTS; i++)
        tm_buf_printf(&rows, "{\"prompt\": \"%s\", \"completion\": \" ran %d\"}\n", prompts[i], i);
    write_text("texts.jsonl", rows.data);
    tm_buf_deinit(&rows);
    static const char *const metrics[] = {"exact_match", "extracted", "rouge_l", "sari"};
    for (int m = 0; m < 4; m++) {
        json_t *items, *scores = evaluate("texts.jsonl", metrics[m], "eval.0.max_tokens=12", &items);
        double sum = 0;
        for (int i = 0; i < PROMPTS; i++) {
            const json_t *item = json_array_get(items, (size_t)i);
            tm_buf text = {0};
            tm_generate_request request = {.model = stories, .prompt = prompts[i], .max_tokens = 12, .top_p = 1, .threads = 1,
                                           .write = collect, .context = &text};
            OK(tm_generate(&request, err));
            const char *said = json_string_value(json_object_get(item, "prediction"));
            assert_true(*said && strstr(tm_buf_str(&text), said));
            assert_true(strlen(said) + 2 >= text.size); /* all of it but the space around it */
            sum += number(item, metrics[m]);
            tm_buf_deinit(&text);
        }
        assert_true(fabs(number(scores, metrics[m]) - sum / PROMPTS) < 1e-9);
        json_decref(items);
        json_decref(scores);
    }
}

/* Trained until it knows its rows, a model answers them; the memory for generation is planned to the byte. */
static void in_training(void **state)
{
    (void)state;
    tm_buf rows = {0}, bridge = {0};
    for (int i = 0; i < 4; i++) {
        tm_buf_printf(&rows, "{\"prompt\": \"Q%d:\", \"completion\": \" so #### %d\"}\n", i, 11 * i);
        tm_buf_printf(&bridge, "{\"scene\": \"s%d\", \"text\": \"t%d t\"}\n", i, i);
    }
    write_text("learn.jsonl", rows.data);
    write_text("bridge.jsonl", bridge.data);
    tm_buf_deinit(&rows);
    tm_buf_deinit(&bridge);
    args a = {0};
    arg(&a, "model=%s", stories);
    arg(&a, "out=%s", scratch("run"));
    arg(&a, "method=full");
    arg(&a, "data=[{path: %s}, {path: %s}]", scratch("learn.jsonl"), scratch("bridge.jsonl"));
    arg(&a, "eval=[{path: %s, name: texts, metric: extracted, max_tokens: 12}, {path: %s, name: same, metric: exact_match, max_tokens: 12}, "
            "{path: %s, name: trip, metric: round_trip, max_tokens: 12}]", scratch("learn.jsonl"), scratch("learn.jsonl"), scratch("bridge.jsonl"));
    arg(&a, "threads=1");
    arg(&a, "train.batch=12");
    arg(&a, "train.steps=60");
    arg(&a, "train.lr=2e-3");
    arg(&a, "train.warmup_steps=5");
    arg(&a, "train.eval_every=30");
    arg(&a, "train.checkpoint_every=0");
    arg(&a, "train.early_stop.metric=eval.texts.extracted");
    arg(&a, "train.early_stop.patience=100");
    train(&a);
    json_t *run;
    OK(tm_json_read(scratch("run/run.json"), &run, err));
    static const char *const names[] = {"extracted", "exact_match", "round_trip"};
    for (size_t i = 0; i < 3; i++) {
        const json_t *eval = json_array_get(json_object_get(run, "evals"), i);
        assert_string_equal(json_string_value(json_object_get(eval, "metric")), names[i]);
        if (number(eval, "first") != 0 || number(eval, "last") != 1 || number(eval, "best") != 1)
            fail_msg("%s: %g at first, %g at last", names[i], number(eval, "first"), number(eval, "last"));
    }
    assert_true(number(run, "planned_bytes") == number(run, "peak_bytes"));
    json_decref(run);
    char *rows_written = slurp(scratch("run/metrics.jsonl"), NULL);
    assert_non_null(strstr(rows_written, "\"extracted\": 1, \"answered\": 1}"));
    assert_non_null(strstr(rows_written, "\"round_trip\": 1, \"token_f1\": 1, \"loss_to_text\": "));
    free(rows_written);
    args_free(&a);
}

static bool stop_at(void *context) { return --*(int *)context < 0; }

/* Ended in the middle of a text, a run goes on to the bytes of one that was left alone. */
static void interrupted(void **state)
{
    (void)state;
    args a = {0};
    tm_error problem;
    char *dir = NULL;
    write_text("few.jsonl", "{\"prompt\": \"Once upon a time\", \"completion\": \" there was\"}\n{\"prompt\": \"The dog\", \"completion\": \" ran\"}\n");
    arg(&a, "model=%s", stories);
    arg(&a, "out=%s", scratch("left-alone"));
    arg(&a, "data=%s", scratch("few.jsonl"));
    arg(&a, "eval=[{path: %s, name: few, metric: rouge_l, max_tokens: 9}]", scratch("few.jsonl"));
    arg(&a, "threads=1");
    arg(&a, "train.steps=3");
    arg(&a, "train.eval_every=1");
    arg(&a, "train.checkpoint_every=1");
    train(&a);
    arg(&a, "out=%s", scratch("stopped"));
    for (int times = 3; times < 24; times += 10) { /* 9 tokens an evaluation, unless a text ends */
        int left = times;
        tm_callbacks callbacks = {.interrupted = stop_at, .context = &left};
        assert_int_equal(tm_train(&(tm_recipe_source){.overrides = a.item, .override_count = a.count}, &callbacks, &dir, &problem), TM_FAILED);
        assert_non_null(strstr(problem.message, "interrupted"));
        free(dir);
        dir = NULL;
    }
    train(&a);
    assert_true(files_agree(scratch("left-alone"), scratch("stopped"), "adapter_model.safetensors"));
    args_free(&a);
}

static void refusals(void **state)
{
    (void)state;
    char *text, *overrides[] = {(char *)"threads=1", (char *)"train.seq=8"};
    tm_eval_request r = {.model = stories, .metric = "choice", .overrides = overrides, .override_count = 1};
    static const struct {
        const char *row, *message;
        tm_status status;
    } bad[] = {{"{\"prompt\": \"a\", \"choices\": [\"x\"], \"answer\": 0}", "two texts or more", TM_INPUT},
               {"{\"prompt\": \"a\", \"choices\": [\"x\", \"y\"], \"answer\": 2}", "answer: expected", TM_INPUT},
               {"{\"prompt\": \"a\", \"choices\": [\"x\", \"y\"], \"answer\": \"C\"}", "answer: expected", TM_INPUT},
               {"{\"prompt\": \"a\", \"choices\": [\"x\", 5], \"answer\": 0}", "choices: expected texts, found a number", TM_INPUT},
               {"{\"prompt\": \"a\", \"choices\": \"xy\", \"answer\": 0}", "choices", TM_INPUT},
               {"{\"prompt\": \"a\", \"choices\": [\"x\", \"y\"]}", "answer", TM_INPUT}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_text("bad.jsonl", bad[i].row);
        r.data = scratch("bad.jsonl");
        FAILS(bad[i].status, bad[i].message, tm_eval(&r, &text, err));
    }
    write_text("long.jsonl", "{\"prompt\": \"a b c d e f g h i j k l m n o p\", \"choices\": [\"x\", \"y\"], \"answer\": 0}\n{\"prompt\": \"a\", \"choices\": [\"x\", \"y\"], \"answer\": 0}");
    r.data = scratch("long.jsonl");
    OK(tm_eval(&r, &text, err));
    free(text);
    write_text("tokens.jsonl", "{\"input_ids\": [1, 2, 3]}\n");
    r.data = scratch("tokens.jsonl");
    r.metric = "rouge_l";
    overrides[0] = (char *)"eval.0.format=tokens";
    FAILS(TM_RECIPE, "needs rows of text", tm_eval(&r, &text, err));
    r.metric = "round_trip";
    overrides[0] = (char *)"eval.0.format=completion";
    FAILS(TM_RECIPE, "metric round_trip is for rows of format bridge", tm_eval(&r, &text, err));
    r.metric = "rouge";
    FAILS(TM_RECIPE, "did you mean rouge_l?", tm_eval(&r, &text, err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(choices), cmocka_unit_test(generated), cmocka_unit_test(in_training), cmocka_unit_test(interrupted),
                                       cmocka_unit_test(refusals)};
    return cmocka_run_group_tests_name("scored answers", tests, memory_begin, scratch_end);
}
