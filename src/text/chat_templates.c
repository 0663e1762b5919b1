/* Where a chat template comes from: a model's folder, a file, or a name of ours; Saiga's JSON prompts become
 * Jinja here. */
#include "text/chat_parts.h"

#include "base/file.h"
#include "base/json.h"
#include "io/hf.h"

#include <stdlib.h>
#include <string.h>

/* ---- templates of ours, for models that come without one ---- */

static const struct {
    const char *name, *text;
} ours[] = {
    {"alpaca", "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}"
               "{% elif m.role == 'user' %}{{ '### Instruction:\\n' + m.content + '\\n\\n' }}"
               "{% else %}{{ '### Response:\\n' + m.content + eos_token + '\\n\\n' }}{% endif %}{% endfor %}"
               "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"},
    {"chatml", "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"},
    {"gemma", "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
              "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + "
              "m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"},
    {"llama2", "{% set system = messages[0].content if messages[0].role == 'system' %}"
               "{% for m in (messages[1:] if system is defined else messages) %}{% if m.role == 'user' %}"
               "{{ bos_token + '[INST] ' + ('<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if loop.first and system is defined else '') "
               "+ m.content.strip() + ' [/INST]' }}{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"},
    {"llama3", "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + "
               "m.content | trim + '<|eot_id|>' }}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"},
    {"mistral", "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
                "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
                "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"},
    {"phi3", "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
             "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"},
    {"saiga", "{% for m in messages %}{{ '<s>' + ('bot' if m.role == 'assistant' else m.role) + '\\n' + m.content + '</s>\\n' }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<s>bot' }}{% endif %}"},
    {"vicuna", "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content + ' ' }}"
               "{% elif m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}"
               "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"},
    {"zephyr", "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"}};

const char *tm_chat_names(void) { return "alpaca, chatml, gemma, llama2, llama3, mistral, phi3, saiga, vicuna, zephyr"; }

void tm_chat_source_deinit(tm_chat_source *source)
{
    tm_buf_deinit(&source->text[0]);
    tm_buf_deinit(&source->text[1]);
    tm_buf_deinit(&source->name);
}

static tm_status take(tm_buf *to, const char *text, size_t size, tm_error *err)
{
    tm_buf_clear(to);
    tm_buf_add(to, text, size);
    return tm_buf_check(to, err);
}

/* ---- Saiga's JSON: "..._message_template" with {role} and {content}, "suffix", names of roles ---- */

static void put_literal(tm_buf *out, const char *text, size_t size)
{
    tm_buf_char(out, '\'');
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (c == '\'' || c == '\\')
            tm_buf_char(out, '\\');
        if (c == '\n' || c == '\r')
            tm_buf_text(out, c == '\n' ? "\\n" : "\\r");
        else
            tm_buf_char(out, c);
    }
    tm_buf_char(out, '\'');
}

/* A message's template as an expression; content: the expression of its content. */
static void put_message(tm_buf *out, const char *template, const char *role, const char *content)
{
    const char *from = template, *at;
    for (at = template; *at;) {
        bool twice = (*at == '{' || *at == '}') && at[1] == *at;
        bool is_role = strncmp(at, "{role}", 6) == 0, is_content = strncmp(at, "{content}", 9) == 0;
        if (!twice && !is_role && !is_content) {
            at++;
            continue;
        }
        put_literal(out, from, (size_t)(at - from) + twice);
        tm_buf_text(out, " ~ ");
        if (is_role)
            put_literal(out, role, strlen(role));
        else if (is_content)
            tm_buf_text(out, content);
        if (!twice)
            tm_buf_text(out, " ~ ");
        at += twice ? 2 : is_role ? 6 : 9;
        from = at;
    }
    put_literal(out, from, (size_t)(at - from));
}

static tm_status from_saiga(const json_t *json, const char *path, tm_buf *out, tm_error *err)
{
    enum { SYSTEM, USER, BOT, KINDS };
    static const char *const kinds[] = {"system", "user", "bot"}, *const roles[] = {"system", "user", "assistant"};
    const char *template[KINDS], *role[KINDS], *suffix, *prompt;
    for (int i = 0; i < KINDS; i++) {
        char key[40];
        snprintf(key, sizeof key, "%s_message_template", kinds[i]);
        TM_TRY(tm_json_get_string(json, path, key, "", &template[i], err));
        snprintf(key, sizeof key, "%s_role", kinds[i]);
        TM_TRY(tm_json_get_string(json, path, key, kinds[i], &role[i], err));
    }
    TM_TRY(tm_json_get_string(json, path, "suffix", "", &suffix, err));
    TM_TRY(tm_json_get_string(json, path, "system_prompt", NULL, &prompt, err));
    if (prompt) { /* stands in where a conversation has no system message */
        tm_buf quoted = {0};
        put_literal(&quoted, prompt, strlen(prompt));
        tm_buf_text(out, "{% if not messages or messages[0]['role'] != 'system' %}{{ ");
        put_message(out, template[SYSTEM], role[SYSTEM], tm_buf_str(&quoted));
        tm_buf_text(out, " }}{% endif %}");
        out->failed |= quoted.failed;
        tm_buf_deinit(&quoted);
    }
    tm_buf_text(out, "{% for m in messages %}");
    for (int i = 0; i < KINDS; i++) {
        tm_buf_printf(out, "{%% %sif m['role'] == '%s' %%}{{ ", i ? "el" : "", roles[i]);
        put_message(out, template[i], role[i], "m['content']");
        tm_buf_text(out, " }}");
    }
    tm_buf_text(out, "{% else %}{{ raise_exception('no role ' ~ m['role']) }}{% endif %}{% endfor %}"
                     "{% if add_generation_prompt %}{{ ");
    put_literal(out, suffix, strlen(suffix));
    tm_buf_text(out, " }}{% endif %}");
    return tm_buf_check(out, err);
}

/* ---- JSON files: "chat_template" is text, or a list of {"name", "template"} ---- */

/* name: of the one wanted, NULL: "default", with "tool_use" beside it. *found tells. */
static tm_status from_json(const json_t *json, const char *path, const char *name, tm_chat_source *out, bool *found, tm_error *err)
{
    const json_t *value = json_object_get(json, "chat_template");
    *found = false;
    if (json_is_string(value) && !name) {
        *found = true;
        return take(&out->text[0], json_string_value(value), json_string_length(value), err);
    }
    if (value && !json_is_null(value) && !json_is_string(value) && !json_is_array(value))
        return tm_fail(err, TM_INPUT, "%s: \"chat_template\" is neither text nor a list of templates", path);
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *one = json_array_get(value, i), *text = json_object_get(one, "template");
        const char *called = json_string_value(json_object_get(one, "name"));
        if (!called || !json_is_string(text))
            return tm_fail(err, TM_INPUT, "%s: \"chat_template\"[%zu] has no \"name\" and \"template\"", path, i);
        int which = strcmp(called, name ? name : "default") == 0 ? 0 : !name && strcmp(called, "tool_use") == 0 ? 1 : -1;
        if (which < 0)
            continue;
        *found |= which == 0;
        TM_TRY(take(&out->text[which], json_string_value(text), json_string_length(text), err));
    }
    return TM_OK;
}

static tm_status from_any_json(const json_t *json, const char *path, const char *name, tm_chat_source *out, bool *found, tm_error *err)
{
    if (name || !json_object_get(json, "user_message_template"))
        return from_json(json, path, name, out, found, err);
    *found = true;
    tm_buf_clear(&out->text[0]);
    return from_saiga(json, path, &out->text[0], err);
}

/* ---- models ---- */

static tm_status from_model(const char *model, const char *name, tm_chat_source *out, bool *found, tm_error *err)
{
    static const char *const files[] = {"tokenizer_config.json", "chat_template.json"};
    *found = false;
    tm_buf_clear(&out->text[0]);
    if (!name)
        TM_TRY(tm_hf_read(model, "chat_template.jinja", &out->text[0], found, err));
    tm_buf_printf(&out->name, "%s/%s", model, "chat_template.jinja");
    for (int i = 0; i < 2 && !*found; i++) {
        json_t *json;
        TM_TRY(tm_hf_json(model, files[i], &json, err));
        tm_buf_clear(&out->name);
        tm_buf_printf(&out->name, "%s/%s", model, files[i]);
        tm_status st = json ? from_any_json(json, tm_buf_str(&out->name), name, out, found, err) : TM_OK;
        json_decref(json);
        TM_TRY(st);
    }
    return TM_OK;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

static tm_status from_file(const char *path, tm_chat_source *out, tm_error *err)
{
    bool found = true;
    json_t *json;
    if (!ends_with(path, ".json"))
        return tm_file_read(path, TM_JINJA_MAX_BYTES, &out->text[0], err);
    TM_TRY(tm_json_read(path, &json, err));
    tm_status st = from_any_json(json, path, NULL, out, &found, err);
    json_decref(json);
    TM_TRY(st);
    return found ? TM_OK : tm_fail(err, TM_INPUT, "%s: expected \"chat_template\" or \"user_message_template\" in it", path);
}

tm_status tm_chat_source_read(const char *model, const char *template, tm_chat_source *out, tm_error *err)
{
    bool named = template && *template, found = false;
    if (model)
        TM_TRY(from_model(model, named ? template : NULL, out, &found, err));
    if (!named)
        return found ? tm_buf_check(&out->name, err)
                     : tm_fail(err, TM_RECIPE, "%s: the model has no chat template; template: NAME or FILE gives one (ours: %s)",
                               model ? model : "no model", tm_chat_names());
    if (!found) {
        tm_buf_clear(&out->name);
        tm_buf_text(&out->name, template);
        for (size_t i = 0; i < sizeof ours / sizeof ours[0] && !found; i++)
            if (strcmp(ours[i].name, template) == 0) {
                found = true;
                TM_TRY(take(&out->text[0], ours[i].text, strlen(ours[i].text), err));
            }
    }
    if (!found && !tm_path_exists(template))
        return tm_fail(err, TM_RECIPE, "template: '%s' is neither a file nor a template of the model nor one of ours (%s)", template,
                       tm_chat_names());
    if (!found)
        TM_TRY(from_file(template, out, err));
    return tm_buf_check(&out->name, err);
}
