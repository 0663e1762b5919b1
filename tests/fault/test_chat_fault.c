/* Templates and conversations while memory runs out: an error, never a crash, a leak or half a text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../unit/folder.h"
#include "base/json.h"
#include "fault.h"
#include "text/chat.h"
#include "text/jinja.h"

static const char TEMPLATE[] =
    "{% macro m(a, b='x') %}{{ a ~ b|upper }}{% endmacro %}{% set ns = namespace(n=0) %}"
    "{% for k, v in {'a': [1, 2.5], 'b': {'c': none}}|dictsort if v %}{% set ns.n = ns.n + loop.index %}{{ m(k) }}{{ v|tojson(indent=2) }}"
    "{% endfor %}{% set t %}{{ ns.n }}{% endset %}{{ t|trim|replace('3', 'drei') }}{{ '%5s|%r' % (t, [t]) }}{{ '{:>4}'.format(t) }}"
    "{% generation %}{{ s.split(',')|map('title')|join('-') }}{% endgeneration %}{{ l|sort(reverse=true)|batch(2)|list }}{{ s[::-1] }}";

static tm_status template(tm_error *err)
{
    json_t *context = json_pack("{s:s, s:[i,i,i]}", "s", "ab,cd", "l", 1, 3, 2);
    tm_jinja *t = NULL;
    tm_jinja_output out = {0};
    if (!context)
        return tm_fail(err, TM_NO_MEMORY, "out of memory");
    const json_t *objects[] = {context};
    tm_jinja_context values = {objects, 1, NULL};
    tm_status st = tm_jinja_parse(TEMPLATE, sizeof TEMPLATE - 1, "t", &t, err);
    if (st == TM_OK)
        st = tm_jinja_render(t, &values, &out, err);
    if (st == TM_OK)
        assert_true(out.text.size > 20 && out.spans == 1 && out.text.data[0] == 'a');
    tm_jinja_output_deinit(&out);
    tm_jinja_close(t);
    json_decref(context);
    return st;
}

static tm_tokenizer *tok;

static tm_status conversation(tm_error *err)
{
    static const char ROW[] = "{\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"Hi\"}]},"
                              "{\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}}]},"
                              "{\"role\": \"tool\", \"content\": \"1\"}, {\"role\": \"assistant\", \"content\": \"Bye\"}]}";
    tm_chat_settings settings = {.template = "gemma", .tok = tok};
    tm_chat *chat = NULL;
    tm_chat_text text = {0};
    tm_tokens *scratch = NULL;
    tm_ids ids = {0};
    float *weight = NULL;
    size_t capacity = 0;
    int64_t targets;
    json_t *row = NULL;
    tm_status st;
    TM_GO(tm_json_parse(ROW, sizeof ROW - 1, "row", &row, err));
    TM_GO(tm_chat_open(&settings, &chat, err));
    TM_GO(tm_chat_render(chat, row, &text, err));
    TM_GO(tm_tokens_create(tok, &scratch, err));
    TM_GO(tm_chat_encode(chat, scratch, &text, &ids, &weight, &capacity, &targets, err));
    assert_true(text.spans == 2 && targets > 3);
out:
    free(weight);
    tm_ids_deinit(&ids);
    tm_tokens_destroy(scratch);
    tm_chat_text_deinit(&text);
    tm_chat_close(chat);
    json_decref(row);
    return st;
}

static void templates(void **state)
{
    (void)state;
    fault_sweep("template", FAULT_ALLOCS, template, NULL);
}

static void conversations(void **state)
{
    (void)state;
    OK(tm_tokenizer_open("models/stories260K", &tok, err));
    fault_sweep("conversation", FAULT_ALLOCS, conversation, NULL);
    tm_tokenizer_close(tok);
}

int main(void)
{
    fault_begin();
    const struct CMUnitTest tests[] = {cmocka_unit_test(templates), cmocka_unit_test(conversations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
