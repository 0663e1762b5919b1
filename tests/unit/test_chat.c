/* Conversations: renderings against the files jinja2 made, what the assistant said in them, ids and targets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/json.h"
#include "folder.h"
#include "text/chat.h"

#define DATA "tests/data/chat/"

static json_t *parsed(const char *text)
{
    json_t *json = NULL;
    OK(tm_json_parse(text, strlen(text), "row", &json, err));
    return json;
}

static tm_chat *opened(const char *template, const tm_tokenizer *tok)
{
    tm_chat_settings settings = {.template = template, .tok = tok};
    tm_chat *chat = NULL;
    OK(tm_chat_open(&settings, &chat, err));
    return chat;
}

/* The text of a rendering with [[ ]] around the spans. */
static char *marked(const tm_chat_text *t)
{
    tm_buf out = {0};
    size_t at = 0;
    for (size_t i = 0; i < t->spans; i++) {
        assert_true(t->span[i].begin >= at && t->span[i].end > t->span[i].begin && t->span[i].end <= t->text.size);
        tm_buf_add(&out, t->text.data + at, t->span[i].begin - at);
        tm_buf_text(&out, "[[");
        tm_buf_add(&out, t->text.data + t->span[i].begin, t->span[i].end - t->span[i].begin);
        tm_buf_text(&out, "]]");
        at = t->span[i].end;
    }
    tm_buf_add(&out, tm_buf_str(&t->text) + at, t->text.size - at);
    return out.data ? out.data : calloc(1, 1);
}

static void is_marked(const char *template, const tm_tokenizer *tok, const char *row, const char *expected)
{
    tm_chat *chat = opened(template, tok);
    json_t *json = parsed(row);
    tm_chat_text text = {0};
    OK(tm_chat_render(chat, json, &text, err));
    char *found = marked(&text);
    if (strcmp(found, expected) != 0)
        fail_msg("%s\n gives    %s\n expected %s", template, found, expected);
    free(found);
    tm_chat_text_deinit(&text);
    json_decref(json);
    tm_chat_close(chat);
}

/* ---- renderings ---- */

static void expected_texts(void **state)
{
    (void)state;
    static const char *const contexts[] = {"simple", "system", "tool_use"};
    char **names;
    size_t count, seen = 0;
    OK(tm_dir_list(DATA "templates", &names, &count, err));
    for (size_t i = 0; i < count; i++)
        for (int c = 0; c < 3; c++) {
            char path[512], template[512], context[512], *text = NULL;
            snprintf(path, sizeof path, DATA "expected/%.*s-%s.txt", (int)(strlen(names[i]) - 6), names[i], contexts[c]);
            snprintf(template, sizeof template, DATA "templates/%s", names[i]);
            snprintf(context, sizeof context, DATA "contexts/%s.json", contexts[c]);
            if (!tm_path_exists(path))
                continue;
            tm_template_request request = {.source = template, .context = context};
            OK(tm_template(&request, &text, err));
            char *expected = slurp(path, NULL);
            if (strcmp(text, expected) != 0)
                fail_msg("%s\n gives    %s\n expected %s", path, text, expected);
            free(expected);
            free(text);
            seen++;
        }
    assert_int_equal(seen, 66);
    tm_names_free(names, count);
}

/* ---- spans ---- */

static const char TALK[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Hello!\"},"
                           "{\"role\": \"user\", \"content\": \"And?\"}, {\"role\": \"assistant\", \"content\": \"Bye.\"}], \"eos_token\": \"</s>\", \"bos_token\": \"<s>\"}";

/* Whatever the template: every answer is in a span of its own, nothing of a question is. */
static void all_templates(void **state)
{
    (void)state;
    static const char *const more[] = {"alpaca", "chatml", "gemma", "llama2", "llama3", "mistral", "phi3", "saiga", "vicuna", "zephyr",
                                       DATA "saiga/prompt_chatml.json", DATA "saiga/prompt_llama3.json",
                                       DATA "saiga/prompt_saiga_v2.json", DATA "saiga/prompt_vicuna.json"};
    char **names;
    size_t count, extra = sizeof more / sizeof more[0];
    json_t *row = parsed(TALK);
    OK(tm_dir_list(DATA "templates", &names, &count, err));
    for (size_t i = 0; i < count + extra; i++) {
        char path[512];
        snprintf(path, sizeof path, i < count ? DATA "templates/%s" : "%s", i < count ? names[i] : more[i - count]);
        if (strstr(path, "Pro") && strstr(path, "tool_use"))
            continue; /* refuses rows without tools */
        tm_chat *chat = opened(path, NULL);
        tm_chat_text text = {0};
        OK(tm_chat_render(chat, row, &text, err));
        char *found = marked(&text);
        if (text.spans != 2 || !strstr(found, "Hello!") || !strstr(found, "Bye."))
            fail_msg("%s: %s", path, found);
        for (size_t k = 0; k < 2; k++) {
            const char *begin = text.text.data + text.span[k].begin;
            size_t size = text.span[k].end - text.span[k].begin;
            if (!memmem(begin, size, k ? "Bye." : "Hello!", k ? 4 : 6) || memmem(begin, size, "Hi", 2) || memmem(begin, size, "And?", 4) ||
                memmem(begin, size, "user", 4) || size > 40)
                fail_msg("%s: %s", path, found);
        }
        free(found);
        tm_chat_text_deinit(&text);
        tm_chat_close(chat);
    }
    tm_names_free(names, count);
    json_decref(row);
}

static const char *written(const char *name, const char *text)
{
    OK(tm_file_write(scratch(name), text, strlen(text), err));
    return scratch(name);
}

static void rewriting_templates(void **state)
{
    (void)state;
    /* reasoning goes from all but the last turn; the prompt opens it */
    is_marked(written("a.jinja", "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
                                 "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}{% else %}{{ m.content }}{% endif %}</s>\n"
                                 "{% endfor %}{% if add_generation_prompt %}<assistant>\n<think>{% endif %}"), NULL,
              "{\"eos_token\": \"</s>\", \"messages\": [{\"role\": \"user\", \"content\": \"Q\"}, {\"role\": \"assistant\", \"content\": \"<think>x</think>A\"},"
              "{\"role\": \"user\", \"content\": \"R\"}, {\"role\": \"assistant\", \"content\": \"<think>y</think>B\"}]}",
              "<user>Q</s>\n<assistant>[[A</s>\n]]<user>R</s>\n<assistant>[[<think>y</think>B</s>\n]]");
    /* the system message stands before the last question: no prefix of the text is a rendering */
    is_marked(written("b.jinja", "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] "
                                 "{{ messages[0].content ~ ' ' if messages[-2:]|selectattr('content', 'eq', m.content)|list }}{{ m.content }} [/INST]"
                                 "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"), NULL,
              "{\"eos_token\": \"</s>\", \"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": \"Q\"}, {\"role\": \"assistant\", \"content\": \"A\"},"
              "{\"role\": \"user\", \"content\": \"R\"}, {\"role\": \"assistant\", \"content\": \"B\"}]}",
              "[INST] Q [/INST] [[A</s>]][INST] S R [/INST][[ B</s>]]");
    /* marks of its own; turns left out */
    is_marked(written("c.jinja", "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!{% endgeneration %}"
                                 "{% else %}{{ m.content }}{% endif %};{% endfor %}"), NULL,
              "{\"messages\": [{\"role\": \"user\", \"content\": \"Q\"}, {\"role\": \"assistant\", \"content\": \"A\", \"weight\": 0}, {\"role\": \"assistant\", \"content\": \"B\"}]}",
              "user:Q;assistant:A!;assistant:[[B!]];");
    is_marked("chatml", NULL, "{\"messages\": [{\"role\": \"user\", \"content\": \"Q\"}, {\"role\": \"assistant\", \"content\": \"A\", \"train\": false}]}",
              "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n");
    is_marked("chatml", NULL, "{\"messages\": [{\"role\": \"assistant\", \"content\": \"A\"}]}", "<|im_start|>assistant\n[[A<|im_end|>\n]]");
    is_marked("chatml", NULL, "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}, {\"type\": \"text\", \"text\": \"b\"}]}, {\"role\": \"assistant\", \"content\": null}]}",
              "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n[[<|im_end|>\n]]");
}

static void tools(void **state)
{
    (void)state;
    is_marked("gemma", NULL,
              "{\"bos_token\": \"<bos>\", \"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": \"Q\"},"
              "{\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"type\": \"function\", \"id\": \"1\", \"function\": {\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}}]},"
              "{\"role\": \"tool\", \"name\": \"f\", \"content\": \"2\"}, {\"role\": \"assistant\", \"content\": \"B\"}]}",
              "<bos><start_of_turn>user\nS\nQ<end_of_turn>\n<start_of_turn>model\n[[{\n  \"tool_calls\": [\n    {\n      \"name\": \"f\",\n      \"arguments\": {\n"
              "        \"a\": 1\n      },\n      \"id\": \"1\"\n    }\n  ]\n}<end_of_turn>\n]]<start_of_turn>user\n{\n  \"tool_response\": {\n    \"tool\": \"f\",\n"
              "    \"content\": \"2\"\n  }\n}<end_of_turn>\n<start_of_turn>model\n[[B<end_of_turn>\n]]");
    is_marked(DATA "templates/Qwen-Qwen2.5-7B-Instruct.jinja", NULL,
              "{\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": \"Q\"},"
              "{\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": \"{\\\"a\\\":1}\"}}]}]}",
              "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
              "[[<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call><|im_end|>\n]]");
}

/* ---- ids ---- */

/* The learned tokens' text, one after the other, with | between runs. */
static void learned(const char *template, const char *row, const char *expected, int64_t expected_targets)
{
    tm_tokenizer *tok;
    tm_tokens *scratch;
    tm_chat_text text = {0};
    tm_ids ids = {0};
    float *weight = NULL;
    size_t capacity = 0;
    int64_t targets;
    tm_buf out = {0};
    OK(tm_tokenizer_open("models/stories260K", &tok, err));
    OK(tm_tokens_create(tok, &scratch, err));
    tm_chat *chat = opened(template, tok);
    json_t *json = parsed(row);
    OK(tm_chat_render(chat, json, &text, err));
    OK(tm_chat_encode(chat, scratch, &text, &ids, &weight, &capacity, &targets, err));
    size_t bos = 0;
    for (size_t i = 0; i < ids.count; i++) {
        bos += ids.id[i] == tm_tokenizer_bos(tok);
        if (weight[i] > 0)
            tm_buf_text(&out, tm_tokenizer_token(tok, ids.id[i]));
        else if (out.size && out.data[out.size - 1] != '|')
            tm_buf_char(&out, '|');
    }
    if (strcmp(tm_buf_str(&out), expected) != 0 || (expected_targets >= 0 && targets != expected_targets))
        fail_msg("%s: learned %s (%lld), expected %s", template, tm_buf_str(&out), (long long)targets, expected);
    if (strcmp(template, "llama3") == 0)
        assert_int_equal(bos, 1); /* of the template, and no second */
    tm_buf_deinit(&out);
    free(weight);
    tm_ids_deinit(&ids);
    tm_chat_text_deinit(&text);
    json_decref(json);
    tm_chat_close(chat);
    tm_tokens_destroy(scratch);
    tm_tokenizer_close(tok);
}

static void ids(void **state)
{
    (void)state;
    static const char ROW[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Once upon a time\"}]}";
    static const char NONE[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}";
    learned("vicuna", ROW, "▁Once▁upon▁a▁time</s>", 5);
    learned("llama3", NONE, "", 0);
    /* no special token ends the turn: EOS does, behind the template's line end */
    learned(written("d.jinja", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"), ROW,
            "▁Once▁upon▁a▁time<0x0A></s>", 6);
}

static void refusals(void **state)
{
    (void)state;
    tm_chat *chat = NULL;
    tm_chat_text text = {0};
    tm_chat_settings settings = {.template = "chatmll"};
    FAILS(TM_RECIPE, "chatml", tm_chat_open(&settings, &chat, err));
    settings.template = NULL;
    settings.model = "models/stories260K";
    FAILS(TM_RECIPE, "no chat template", tm_chat_open(&settings, &chat, err));
    settings.template = written("e.jinja", "a\n{{ b");
    FAILS(TM_INPUT, "e.jinja:2: ", tm_chat_open(&settings, &chat, err));
    settings.template = written("e.json", "{\"chat_template\": 5}");
    FAILS(TM_INPUT, "e.json", tm_chat_open(&settings, &chat, err));
    chat = opened("chatml", NULL);
    static const char *const rows[][2] = {{"{}", "messages"}, {"{\"messages\": []}", "messages"}, {"{\"messages\": [5]}", "messages[0]"},
                                          {"{\"messages\": [{\"content\": \"x\"}]}", "messages[0]"},
                                          {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]}", "image"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        json_t *row = parsed(rows[i][0]);
        FAILS(TM_INPUT, rows[i][1], tm_chat_render(chat, row, &text, err));
        json_decref(row);
    }
    tm_chat_text_deinit(&text);
    tm_chat_close(chat);
}

static void folders(void **state)
{
    (void)state;
    json_t *row = parsed("{\"messages\": [{\"role\": \"user\", \"content\": \"Q\"}], \"tools\": [{\"name\": \"f\"}]}");
    tm_chat *chat = NULL;
    tm_chat_text text = {0};
    tm_chat_settings settings = {.model = scratch_dir};
    written("tokenizer_config.json", "{\"bos_token\": {\"content\": \"<s>\"}, \"chat_template\": [{\"name\": \"default\", \"template\": \"{{ bos_token }}D\"},"
                                     "{\"name\": \"tool_use\", \"template\": \"{{ bos_token }}T\"}, {\"name\": \"rag\", \"template\": \"R\"}]}");
    OK(tm_chat_open(&settings, &chat, err));
    OK(tm_chat_prompt(chat, row, &text, err));
    assert_string_equal(tm_buf_str(&text.text), "<s>T");
    json_object_del(row, "tools");
    OK(tm_chat_prompt(chat, row, &text, err));
    assert_string_equal(tm_buf_str(&text.text), "<s>D");
    tm_chat_close(chat);
    settings.template = "rag";
    OK(tm_chat_open(&settings, &chat, err));
    OK(tm_chat_prompt(chat, row, &text, err));
    assert_string_equal(tm_buf_str(&text.text), "R");
    tm_chat_close(chat);
    settings.template = NULL;
    written("chat_template.jinja", "J{{ add_generation_prompt }}");
    OK(tm_chat_open(&settings, &chat, err));
    OK(tm_chat_prompt(chat, row, &text, err));
    assert_string_equal(tm_buf_str(&text.text), "JTrue");
    tm_chat_close(chat);
    tm_chat_text_deinit(&text);
    json_decref(row);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(expected_texts), cmocka_unit_test(all_templates), cmocka_unit_test(rewriting_templates),
                                       cmocka_unit_test(tools), cmocka_unit_test(ids), cmocka_unit_test(refusals), cmocka_unit_test(folders)};
    return cmocka_run_group_tests(tests, scratch_begin, scratch_end);
}
