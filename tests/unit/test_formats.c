/* Every format of rows with prompts: what is read, what is a target, what is refused and how it is said. */
#include "text/dataset.h"
#include "toy_tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "folder.h"

static tm_pool *pool;
static char chat_file[256];
static const tm_tokenizer tok = {.adds_bos = true, .has_eos = true};
static const char template[] = "{% if tools %}T{{ tools | length }}{{ tools[0].function.name }};{% endif %}"
                               "{% for m in messages %}{{ m.role[0] }}:{% if m.tool_calls %}call "
                               "{{ m.tool_calls[0].function.name }}({{ m.tool_calls[0].function.arguments | tojson }}){% else %}{{ m.content }}{% endif %}{{ '\\n' }}{% endfor %}"
                               "{% if add_generation_prompt %}a:{% endif %}";

static tm_status load(tm_data_entry e, const char *rows, tm_dataset **out, tm_error *err)
{
    e.path = (char *)scratch("rows.jsonl");
    e.weight = 1;
    unlink(e.path);
    FILE *f = fopen(e.path, "w");
    assert_true(f && fputs(rows, f) >= 0 && fclose(f) == 0);
    tm_data_settings s = {.tok = &tok, .vocab_size = TOY_VOCAB, .seq = 1024};
    return tm_dataset_load(&e, 1, &s, pool, out, err);
}

/* ids as text: BOS as <, EOS as >; targets in brackets, but for the first token. */
static void expect(tm_data_entry e, const char *rows, const char *const *examples)
{
    tm_dataset *d;
    OK(load(e, rows, &d, err));
    int64_t i = 0;
    for (; examples[i]; i++) {
        assert_true(i < tm_dataset_count(d));
        const tm_example *x = tm_dataset_at(d, i);
        tm_buf text = {0};
        bool open = false;
        for (int32_t k = 0; k < x->n; k++) {
            bool target = x->weight ? x->weight[k] > 0 : k > 0;
            if (target != open)
                tm_buf_char(&text, target ? '[' : ']');
            open = target;
            tm_buf_char(&text, x->ids[k] == TOY_BOS ? '<' : x->ids[k] == TOY_EOS ? '>' : (char)x->ids[k]);
        }
        tm_buf_text(&text, open ? "]" : "");
        assert_string_equal(tm_buf_str(&text), examples[i]);
        tm_buf_deinit(&text);
    }
    assert_int_equal(tm_dataset_count(d), i);
    tm_dataset_destroy(d);
}
#define EXPECT(e, rows, ...) expect(e, rows, (const char *const[]){__VA_ARGS__, NULL})

static tm_data_entry chat(int format)
{
    return (tm_data_entry){.format = format, .template = chat_file};
}

static void messages(void **state)
{
    (void)state;
    tm_data_entry e = chat(TM_FORMAT_AUTO);
    const char *row = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"yo\"},"
                      " {\"role\": \"human\", \"content\": \"so\"}, {\"role\": \"bot\", \"content\": \"\xd0\xb4\"}], \"x\": null}\n";
    EXPECT(e, row, "u:hi\na:[yo\n]u:so\na:[\xd0\xb4\n>]");
    e.loss = TM_LOSS_COMPLETION;
    EXPECT(e, row, "u:hi\na:yo\nu:so\na:[\xd0\xb4\n>]");
    e.loss = TM_LOSS_ALL;
    EXPECT(e, row, "u[:hi\na:yo\nu:so\na:\xd0\xb4\n>]");
    e.loss = TM_LOSS_AUTO;
    e.system = (char *)"S";
    EXPECT(e, row, "s:S\nu:hi\na:[yo\n]u:so\na:[\xd0\xb4\n>]");
    EXPECT(e, "{\"system\": \"R\", \"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}",
           "s:R\nu:q\na:[a\n>]");
    EXPECT(e, "{\"messages\": [{\"role\": \"system\", \"content\": \"own\"}, {\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}",
           "s:own\nu:q\na:[a\n>]");
    e.system = NULL;
    /* tools: OpenAI's, bare, and as text; calls of the assistant are learned */
    static const char tools[][120] = {"[{\"type\": \"function\", \"function\": {\"name\": \"f\"}}]", "[{\"name\": \"f\"}]",
                                      "\"[{\\\"name\\\": \\\"f\\\"}]\""};
    for (int i = 0; i < 3; i++) {
        char text[800];
        snprintf(text, sizeof text,
                 "{\"tools\": %s, \"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"tool_calls\": [{\"type\": "
                 "\"function\", \"function\": {\"name\": \"f\", \"arguments\": {}}}]}, {\"role\": \"observation\", \"content\": \"5\"}, "
                 "{\"role\": \"assistant\", \"content\": \"five\"}]}", tools[i]);
        EXPECT(e, text, "T1f;u:q\na:[call f({})\n]t:5\na:[five\n>]");
    }
    /* other names */
    e.columns = (tm_string_map){{(char *[]){(char *)"messages", (char *)"role", (char *)"content"}, 3, 3},
                                {(char *[]){(char *)"dialog", (char *)"who", (char *)"says"}, 3, 3}};
    e.roles = (tm_string_map){{(char *[]){(char *)"assistant", (char *)"user"}, 2, 2}, {(char *[]){(char *)"teacher", (char *)"pupil"}, 2, 2}};
    EXPECT(e, "{\"dialog\": [{\"who\": \"pupil\", \"says\": \"1\"}, {\"who\": \"teacher\", \"says\": \"2\"}]}", "u:1\na:[2\n>]");
}

static void sharegpt(void **state)
{
    (void)state;
    tm_data_entry e = chat(TM_FORMAT_AUTO);
    EXPECT(e, "{\"conversations\": [{\"from\": \"human\", \"value\": \"q\"}, {\"from\": \"gpt\", \"value\": \"a\"}], \"system\": \"S\"}",
           "s:S\nu:q\na:[a\n>]");
    EXPECT(e, "{\"conversations\": [{\"from\": \"human\", \"value\": \"q\"}, {\"from\": \"function_call\", \"value\": \"{\\\"name\\\": \\\"g\\\", "
              "\\\"arguments\\\": {\\\"x\\\": 1}}\"}, {\"from\": \"observation\", \"value\": \"1\"}, {\"from\": \"gpt\", \"value\": \"a\"}], "
              "\"tools\": \"[{\\\"name\\\": \\\"g\\\"}]\"}",
           "T1g;u:q\na:[call g({\"x\": 1})\n]t:1\na:[a\n>]");
}

static void alpaca(void **state)
{
    (void)state;
    const char *row = "{\"instruction\": \"I\", \"input\": \"x\", \"output\": \"o\", \"history\": [[\"q\", \"a\"]]}\n"
                      "{\"instruction\": \"I\", \"input\": \"\", \"output\": \"o\", \"system\": \"S\"}\n";
    EXPECT(chat(TM_FORMAT_AUTO), row, "u:q\na:[a\n]u:I\nx\na:[o\n>]", "s:S\nu:I\na:[o\n>]");
    tm_data_entry plain = {.format = TM_FORMAT_AUTO};
    const char *one = "<Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
                      "appropriately completes the request.\n\n### Instruction:\nq\n\n### Response:[a>]\n\n### Instruction:\nI\n\n### Input:\nx\n\n"
                      "### Response:[o>]",
               *two = "<S\n\n### Instruction:\nI\n\n### Response:[o>]";
    EXPECT(plain, row, one, two);
    plain.template = (char *)"none";
    EXPECT(plain, row, one, two);
    plain.system = (char *)"E";
    plain.loss = TM_LOSS_COMPLETION;
    EXPECT(plain, row, "<E\n\n### Instruction:\nq\n\n### Response:a>\n\n### Instruction:\nI\n\n### Input:\nx\n\n### Response:[o>]", two);
}

static void bridge(void **state)
{
    (void)state;
    tm_data_entry e = {.format = TM_FORMAT_AUTO};
    const char *row = "{\"scene\": \"dog; runs\", \"text\": \"A dog runs.\"}\n";
    EXPECT(e, row, "<Tell this scene as a text.\n\ndog; runs\n\n[A dog runs.>]",
           "<Write down the scene of this text.\n\nA dog runs.\n\n[dog; runs>]");
    EXPECT(chat(TM_FORMAT_BRIDGE), row, "u:Tell this scene as a text.\n\ndog; runs\na:[A dog runs.\n>]",
           "u:Write down the scene of this text.\n\nA dog runs.\na:[dog; runs\n>]");
    tm_dataset *d, *held;
    OK(load(e, "{\"scene\": \"a\", \"text\": \"b\"}\n{\"scene\": \"c\", \"text\": \"d\"}\n{\"scene\": \"e\", \"text\": \"f\"}\n", &d, err));
    assert_int_equal(tm_dataset_stats_of(d, 0)->rows, 3);
    assert_int_equal(tm_dataset_count(d), 6);
    e.val_split = 0.3;
    e.path = (char *)"x";
    OK(tm_dataset_split(d, &e, 5, &held, err)); /* both ways of a row stay together */
    assert_int_equal(tm_dataset_count(held), 2);
    assert_int_equal(tm_dataset_at(held, 0)->line, tm_dataset_at(held, 1)->line);
    tm_dataset_destroy(held);
    tm_dataset_destroy(d);
}

static void refusals(void **state)
{
    (void)state;
    struct {
        int format;
        const char *row, *message;
    } cases[] = {
        {TM_FORMAT_MESSAGES, "{\"messages\": []}", "rows.jsonl:1: messages: expected a list of messages, found an empty one"},
        {TM_FORMAT_MESSAGES, "{\"x\": 1}", "messages: expected a list of messages, found nothing"},
        {TM_FORMAT_MESSAGES, "{\"messages\": 5}", "messages: expected a list, found a number"},
        {TM_FORMAT_MESSAGES, "{\"messages\": [5]}", "messages[0]: expected an object, found a number"},
        {TM_FORMAT_MESSAGES, "{\"messages\": [{\"content\": \"a\"}]}", "messages[0].role: expected text, found nothing"},
        {TM_FORMAT_MESSAGES, "{\"messages\": [{\"role\": \"user\"}]}", "messages[0]: content: expected text, found nothing"},
        {TM_FORMAT_MESSAGES, "{\"messages\": [{\"role\": \"user\", \"content\": 5}]}", "messages[0]: content: expected text or a list of parts, found a number"},
        {TM_FORMAT_MESSAGES, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", "rows.jsonl:1: "},
        {TM_FORMAT_MESSAGES, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"tools\": 5}", "tools: expected a list, found a number"},
        {TM_FORMAT_MESSAGES, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"system\": 5}", "system: expected text, found a number"},
        {TM_FORMAT_SHAREGPT, "{\"conversations\": [{\"from\": \"human\", \"value\": null}]}", "conversations[0]: value: expected text, found null"},
        {TM_FORMAT_SHAREGPT, "{\"conversations\": [{\"from\": \"function_call\", \"value\": \"{\"}]}", "conversations[0]: a function call: not valid JSON"},
        {TM_FORMAT_SHAREGPT, "{\"conversations\": [{\"from\": \"function_call\", \"value\": \"{}\"}]}", "a function call: expected an object with name and arguments"},
        {TM_FORMAT_ALPACA, "{\"instruction\": \"\", \"output\": \"a\"}", "rows.jsonl:1: instruction is empty"},
        {TM_FORMAT_ALPACA, "{\"instruction\": \"a\", \"output\": \"\"}", "output is empty"},
        {TM_FORMAT_ALPACA, "{\"instruction\": \"a\", \"output\": \"b\", \"history\": [[\"a\"]]}", "history[0]: expected [question, answer], two texts"},
        {TM_FORMAT_ALPACA, "{\"instruction\": \"a\", \"output\": \"b\", \"input\": 5}", "input: expected text, found a number"},
        {TM_FORMAT_BRIDGE, "{\"scene\": \"\", \"text\": \"b\"}", "scene is empty"},
        {TM_FORMAT_AUTO, "{\"instruction\": \"a\"}", "found the keys: instruction; expected tokens (input_ids), messages (messages), sharegpt (conversations)"},
        {TM_FORMAT_AUTO, "{\"messages\": null}", "found the keys: messages; expected"},
    };
    tm_dataset *d;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        FAILS(TM_INPUT, cases[i].message, load(chat(cases[i].format), cases[i].row, &d, err));
    tm_data_entry e = {.format = TM_FORMAT_AUTO};
    FAILS(TM_RECIPE, "template", load(e, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", &d, err));
    e.template = (char *)"chatml";
    FAILS(TM_RECIPE, "template is for dialogues", load(e, "{\"text\": \"a\"}", &d, err));
    e = (tm_data_entry){.roles = {{(char *[]){(char *)"user"}, 1, 1}, {(char *[]){(char *)"x"}, 1, 1}}};
    FAILS(TM_RECIPE, "roles are for messages and sharegpt", load(e, "{\"text\": \"a\"}", &d, err));
    /* rows of several shapes */
    e = (tm_data_entry){.format = TM_FORMAT_AUTO};
    FAILS(TM_INPUT, "the first rows do not all have the columns of one format",
          load(e, "{\"text\": \"a\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}\n", &d, err));
}

static int begin(void **state)
{
    tm_error err;
    if (tm_pool_create(2, &pool, &err) != TM_OK || scratch_begin(state) != 0)
        return -1;
    snprintf(chat_file, sizeof chat_file, "%s/chat.jinja", scratch_dir);
    return tm_file_write(chat_file, template, sizeof template - 1, &err) == TM_OK ? 0 : -1;
}

static int end(void **state)
{
    tm_pool_destroy(pool);
    return scratch_end(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(messages), cmocka_unit_test(sharegpt), cmocka_unit_test(alpaca),
                                       cmocka_unit_test(bridge), cmocka_unit_test(refusals)};
    return cmocka_run_group_tests_name("formats", tests, begin, end);
}
