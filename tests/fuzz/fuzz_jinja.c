/* Any text as a template: an error with its name, or valid UTF-8 within the limits. With the first byte odd,
 * the rest is the inside of one expression. */
#include "base/json.h"
#include "base/utf8.h"
#include "text/jinja.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char CONTEXT[] =
    "{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"\\u00fc <b>\"},"
    "{\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"id\": \"c\", \"function\": {\"name\": \"f\", \"arguments\": {\"a\": 1.5}}}]}],"
    "\"tools\": [{\"function\": {\"name\": \"f\"}}], \"n\": 7, \"s\": \"abc\", \"l\": [3, 1, 2], \"bos_token\": \"<s>\"}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static json_t *context;
    tm_error err = {0};
    if (!context && tm_json_parse(CONTEXT, sizeof CONTEXT - 1, "context", &context, &err) != TM_OK)
        abort();
    if (size < 1)
        return 0;
    tm_buf text = {0};
    tm_buf_text(&text, data[0] & 1 ? "{{ " : "");
    tm_buf_add(&text, data + 1, size - 1);
    tm_buf_text(&text, data[0] & 1 ? " }}" : "");
    tm_jinja *t;
    tm_jinja_output out = {0};
    tm_status st = tm_jinja_parse(tm_buf_str(&text), text.size, "fuzz", &t, &err);
    if (st == TM_OK) {
        const json_t *objects[] = {context};
        tm_jinja_context values = {objects, 1, NULL};
        st = tm_jinja_render(t, &values, &out, &err);
        tm_jinja_close(t);
    }
    if (st != TM_OK && strncmp(err.message, "fuzz", 4) != 0)
        abort();
    if (st == TM_OK && (!tm_utf8_valid(tm_buf_str(&out.text), out.text.size) || out.text.size > TM_JINJA_MAX_OUTPUT))
        abort();
    for (size_t i = 0; i < out.spans; i++)
        if (st == TM_OK && (out.span[i].begin >= out.span[i].end || out.span[i].end > out.text.size))
            abort();
    tm_jinja_output_deinit(&out);
    tm_buf_deinit(&text);
    return 0;
}
