/* Prompts of a file: see prompts.h. */
#include "text/prompts.h"

#include "text/dataset_parts.h"
#include "text/rows.h"

#include <stdlib.h>
#include <string.h>

typedef struct reader {
    const tm_tokenizer *tok;
    const tm_chat *chat;
    tm_tokens *scratch;
    int64_t vocab_size;
    tm_chat_text text;
} reader;

void tm_prompts_deinit(tm_prompts *prompts)
{
    for (int64_t i = 0; i < prompts->count; i++)
        tm_ids_deinit(&prompts->item[i]);
    free(prompts->item);
    *prompts = (tm_prompts){0};
}

static bool is_assistant(const json_t *message)
{
    const char *role = json_string_value(json_object_get(message, "role"));
    return role && strcmp(role, "assistant") == 0;
}

static tm_status read_messages(reader *r, json_t *row, json_t *messages, tm_ids *ids, tm_error *err)
{
    int64_t targets;
    if (!r->chat)
        return tm_fail(err, TM_INPUT, "messages: the model has no chat template; expected prompt or text");
    while (is_assistant(json_array_get(messages, json_array_size(messages) - 1)))
        json_array_remove(messages, json_array_size(messages) - 1);
    if (!json_array_size(messages))
        return tm_fail(err, TM_INPUT, "messages: nobody but the assistant speaks; expected a message to answer");
    TM_TRY(tm_chat_prompt(r->chat, row, &r->text, err));
    return tm_chat_encode(r->chat, r->scratch, &r->text, ids, NULL, NULL, &targets, err);
}

static tm_status read_row(reader *r, json_t *row, tm_ids *ids, tm_error *err)
{
    json_t *messages = json_object_get(row, "messages"), *prompt = json_object_get(row, "prompt");
    prompt = prompt ? prompt : json_object_get(row, "text");
    if (json_is_array(messages))
        TM_TRY(read_messages(r, row, messages, ids, err));
    else if (json_is_string(prompt))
        TM_TRY(tm_tokenizer_encode(r->tok, r->scratch, json_string_value(prompt), json_string_length(prompt), true, ids, err));
    else
        return tm_fail(err, TM_INPUT, "expected a list messages, or a text prompt or text");
    if (ids->count > 1 && ids->id[ids->count - 1] == tm_tokenizer_eos(r->tok) && !json_is_array(messages))
        ids->count--; /* it goes on */
    for (size_t i = 0; i < ids->count; i++)
        if (ids->id[i] < 0 || ids->id[i] >= r->vocab_size)
            return tm_fail(err, TM_INPUT, "token %d is outside the model's vocabulary of %lld: tokenizer and model do not belong together", ids->id[i], (long long)r->vocab_size);
    return ids->count ? TM_OK : tm_fail(err, TM_INPUT, "an empty prompt");
}

static tm_status read_rows(reader *r, tm_row_source *source, const char *path, tm_prompts *out, tm_error *err)
{
    const tm_row *rows;
    size_t count;
    int64_t line = 0;
    tm_status st = TM_OK;
    do {
        st = tm_row_source_next(source, &rows, &count, &line, err);
        for (size_t i = 0; i < count && st == TM_OK; i++) {
            json_t *row = NULL;
            line = rows[i].line;
            TM_GO(TM_GROW(&out->item, &out->capacity, out->count + 1, err));
            out->item[out->count++] = (tm_ids){0};
            st = tm_row_parse(source, &rows[i], &row, err);
            if (st == TM_OK)
                st = read_row(r, row, &out->item[out->count - 1], err);
            json_decref(row);
        }
    } while (st == TM_OK && count);
out:
    if (st != TM_INPUT)
        return st;
    return line ? tm_fail_prefix(err, st, "%s:%lld", path, (long long)line) : tm_fail_prefix(err, st, "%s", path);
}

static tm_status read_file(reader *r, const char *path, tm_prompts *out, tm_error *err)
{
    static const tm_data_entry plain = {.weight = 1};
    const char *column[TM_COLUMN_COUNT];
    tm_row_source *source;
    tm_row_columns(&plain, column);
    TM_TRY(tm_row_source_open(path, TM_FORMAT_AUTO, column, TM_COLUMN_NESTED, &source, err));
    tm_status st = tm_row_source_is_document(source) ? tm_fail(err, TM_INPUT, "%s: found plain text; expected rows of messages, prompt or text", path)
                                                     : read_rows(r, source, path, out, err);
    tm_row_source_close(source);
    return st;
}

tm_status tm_prompts_load(const char *path, const tm_tokenizer *tok, const tm_chat *chat, int64_t vocab_size, tm_prompts *out, tm_error *err)
{
    reader r = {.tok = tok, .chat = chat, .vocab_size = vocab_size};
    tm_data_files files = {0};
    tm_status st;
    *out = (tm_prompts){0};
    TM_GO(tm_tokens_create(tok, &r.scratch, err));
    TM_GO(tm_data_files_find(path, &files, err));
    for (int64_t i = 0; i < files.path.count; i++)
        TM_GO(read_file(&r, files.path.item[i], out, err));
    if (!out->count)
        st = tm_fail(err, TM_INPUT, "%s: there is no row", path);
out:
    tm_tokens_destroy(r.scratch);
    tm_chat_text_deinit(&r.text);
    tm_data_files_deinit(&files);
    if (st != TM_OK)
        tm_prompts_deinit(out);
    return st;
}
