/* Answers: see answers.h. */
#include "text/answers.h"

#include "base/utf8.h"
#include "text/dataset_parts.h"
#include "text/rows.h"

#include <stdlib.h>
#include <string.h>

tm_status tm_answer_of(const json_t *answer, const json_t *choices, int32_t *out, tm_error *err)
{
    int64_t count = (int64_t)json_array_size(choices), index = -1;
    const char *text = json_string_value(answer);
    if (json_is_integer(answer))
        index = json_integer_value(answer);
    for (int64_t i = 0; text && i < count && index < 0; i++) {
        const char *option = json_string_value(json_array_get(choices, (size_t)i));
        if (option && strcmp(option, text) == 0)
            index = i;
    }
    if (text && index < 0 && text[0] && !text[1])
        index = text[0] >= '0' && text[0] <= '9' ? text[0] - '0' : text[0] >= 'A' && text[0] <= 'Z' ? text[0] - 'A' : -1;
    if (index < 0 || index >= count)
        return tm_fail(err, TM_INPUT, "answer: expected an option's number (from 0), letter or text, found %.80s",
                       text ? text : json_is_integer(answer) ? "a number that no option has" : tm_json_type_name(answer));
    *out = (int32_t)index;
    return TM_OK;
}

static tm_status read_choice(const json_t *row, const char *const *column, tm_answer *a, tm_error *err)
{
    const json_t *choices = json_object_get(row, column[TM_COLUMN_CHOICES]);
    json_t *owned = NULL;
    if (json_is_string(choices)) { /* as CSV files have it */
        TM_TRY(tm_json_parse_row(json_string_value(choices), json_string_length(choices), &owned, err));
        choices = owned;
    }
    tm_status st = TM_OK;
    a->options = (int32_t)json_array_size(choices);
    TM_GO(tm_answer_of(json_object_get(row, column[TM_COLUMN_ANSWER]), choices, &a->correct, err));
    TM_GO(TM_NEW(&a->chars, a->options, err));
    for (int32_t i = 0; i < a->options; i++) {
        const char *text = json_string_value(json_array_get(choices, (size_t)i));
        for (size_t k = 0; text && text[k]; k++)
            a->chars[i] += ((unsigned char)text[k] & 0xc0) != 0x80; /* one byte of each character is no continuation */
    }
out:
    json_decref(owned);
    return st;
}

static void answer_deinit(tm_answer *a)
{
    free(a->chars);
    free(a->source);
    tm_names_deinit(&a->references);
}

static tm_status read_row(const json_t *row, const char *const *column, bool choice, tm_answer *a, tm_error *err)
{
    if (choice)
        return read_choice(row, column, a, err);
    const json_t *source = json_object_get(row, column[TM_COLUMN_SOURCE]),
                 *references = json_object_get(row, column[TM_COLUMN_REFERENCES]);
    if (json_is_string(source) && !(a->source = tm_strdup(json_string_value(source), err)))
        return TM_NO_MEMORY;
    for (size_t i = 0; i < json_array_size(references); i++) {
        const json_t *reference = json_array_get(references, i);
        if (!json_is_string(reference))
            return tm_fail(err, TM_INPUT, "%s: expected texts, found %s", column[TM_COLUMN_REFERENCES], tm_json_type_name(reference));
        TM_TRY(tm_names_add(&a->references, json_string_value(reference), err));
    }
    return TM_OK;
}

static tm_status read_rows(tm_answers *out, tm_row_source *source, const char *path, int32_t file, const char *const *column, bool choice, tm_error *err)
{
    const tm_row *rows;
    size_t count;
    int64_t bad_line;
    for (;;) {
        TM_TRY(tm_row_source_next(source, &rows, &count, &bad_line, err));
        if (!count)
            return TM_OK;
        for (size_t i = 0; i < count; i++) {
            json_t *row = NULL;
            tm_answer a = {.file = file, .line = rows[i].line, .correct = -1};
            tm_status st = tm_row_parse(source, &rows[i], &row, err);
            if (st == TM_OK)
                st = read_row(row, column, choice, &a, err);
            json_decref(row);
            if (st == TM_OK && (a.correct >= 0 || a.source || a.references.count)) {
                st = TM_GROW(&out->item, &out->capacity, out->count + 1, err);
                if (st == TM_OK) {
                    out->item[out->count++] = a;
                    continue;
                }
            }
            answer_deinit(&a);
            if (st != TM_OK)
                return st == TM_INPUT ? tm_fail_prefix(err, st, "%s:%lld", path, (long long)rows[i].line) : st;
        }
    }
}

tm_status tm_answers_load(const tm_data_entry *entry, tm_answers *out, tm_error *err)
{
    *out = (tm_answers){0};
    tm_data_files files;
    const char *column[TM_COLUMN_COUNT];
    tm_row_columns(entry, column);
    TM_TRY(tm_data_files_find(entry->path, &files, err));
    tm_status st = TM_OK;
    for (int64_t i = 0; i < files.path.count && st == TM_OK; i++) {
        tm_row_source *source = NULL;
        st = tm_row_source_open(files.path.item[i], entry->format, column, TM_COLUMN_NESTED, &source, err);
        if (st == TM_OK && !tm_row_source_is_document(source))
            st = read_rows(out, source, files.path.item[i], (int32_t)i, column, entry->format == TM_FORMAT_CHOICE, err);
        tm_row_source_close(source);
    }
    tm_data_files_deinit(&files);
    if (st != TM_OK)
        tm_answers_deinit(out);
    return st;
}

void tm_answers_deinit(tm_answers *answers)
{
    for (size_t i = 0; i < answers->count; i++)
        answer_deinit(&answers->item[i]);
    free(answers->item);
    *answers = (tm_answers){0};
}

const tm_answer *tm_answers_find(const tm_answers *answers, int32_t file, int64_t line)
{
    size_t low = 0, high = answers->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const tm_answer *a = &answers->item[middle];
        if (a->file == file && a->line == line)
            return a;
        if (a->file < file || (a->file == file && a->line < line))
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* --- The bridge --- */

struct tm_bridge {
    tm_row_rules rules;
    tm_chat *chat;
    tm_tokens *scratch;
    tm_row_sink sink;
};

tm_status tm_bridge_open(const tm_data_entry *entry, const tm_data_settings *settings, tm_bridge **out, tm_error *err)
{
    tm_bridge *b;
    tm_row_source *source = NULL;
    tm_data_files files = {0};
    const char *column[TM_COLUMN_COUNT];
    TM_TRY(TM_NEW(&b, 1, err));
    tm_status st;
    tm_row_columns(entry, column);
    TM_GO(tm_data_files_find(entry->path, &files, err));
    TM_GO(tm_row_source_open(files.path.item[0], entry->format, column, TM_COLUMN_NESTED, &source, err));
    TM_GO(tm_row_rules_init(&b->rules, entry, source, NULL, 0, settings, err));
    b->rules.seq = INT32_MAX; /* a prompt that is too long is the caller's to see */
    if (!entry->template || strcmp(entry->template, "none") != 0) {
        tm_chat_settings chat = {.model = settings->model, .template = entry->template, .tok = settings->tok};
        st = tm_chat_open(&chat, &b->chat, err);
        if (st != TM_OK && (st != TM_RECIPE || entry->template))
            goto out;
        b->rules.chat = b->chat;
    }
    st = tm_tokens_create(settings->tok, &b->scratch, err);
out:
    tm_row_source_close(source);
    tm_data_files_deinit(&files);
    if (st != TM_OK) {
        tm_bridge_close(b);
        b = NULL;
    }
    *out = b;
    return st;
}

void tm_bridge_close(tm_bridge *b)
{
    if (!b)
        return;
    tm_chat_close(b->chat);
    tm_tokens_destroy(b->scratch);
    tm_row_sink_deinit(&b->sink);
    free(b);
}

tm_status tm_bridge_ids(tm_bridge *b, tm_bridge_way way, const char *from, tm_ids *ids, tm_error *err)
{
    bool to_text = way == TM_BRIDGE_TO_TEXT;
    const char *scene = b->rules.column[TM_COLUMN_SCENE], *text = b->rules.column[TM_COLUMN_TEXT];
    json_t *row = json_pack("{s:s, s:s}", scene, to_text ? from : ".", text, to_text ? "." : from);
    if (!row)
        return tm_fail(err, TM_NO_MEMORY, "out of memory for a row");
    tm_row_sink_clear(&b->sink);
    tm_status st = tm_format_bridge(&b->rules, b->scratch, row, 0, &b->sink, err);
    json_decref(row);
    TM_TRY(st);
    const tm_span *span = &b->sink.span[way];
    const int32_t *all = b->sink.ids.id + span->first;
    const float *weight = span->weight == SIZE_MAX ? NULL : b->sink.weight + span->weight;
    ids->count = 0;
    for (int32_t i = 0; i < span->n && (i == 0 || (weight && weight[i] == 0)); i++)
        TM_TRY(tm_ids_push(ids, all[i], err));
    return TM_OK;
}
