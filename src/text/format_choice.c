/* Format choice: {"prompt", "choices": [...], "answer"}: an example an option, its tokens the targets, without EOS:
 * a model is asked which it finds likeliest. Where neither the prompt ends in white space nor the option begins with
 * it, a space stands between, as in lm-evaluation-harness. docs/formats/eval.md is the contract. */
#include "text/rows.h"

#include "text/answers.h"

#include <ctype.h>

static tm_status read_option(const tm_row_rules *r, tm_tokens *scratch, const tm_row_piece *prompt, const json_t *option,
                             int64_t line, tm_row_sink *s, tm_error *err)
{
    tm_buf text = {0};
    const char *bytes = json_string_value(option);
    size_t size = json_string_length(option);
    if (!json_is_string(option) || !size)
        return tm_fail(err, TM_INPUT, "%s: expected texts, found %s", r->column[TM_COLUMN_CHOICES],
                       json_is_string(option) ? "an empty one" : tm_json_type_name(option));
    if (prompt->size && !isspace((unsigned char)prompt->text[prompt->size - 1]) && !isspace((unsigned char)*bytes))
        tm_buf_char(&text, ' ');
    tm_buf_add(&text, bytes, size);
    tm_status st = tm_buf_check(&text, err);
    tm_row_piece pieces[] = {*prompt, {text.data, text.size, true, false}};
    if (st == TM_OK)
        st = tm_row_pieces(r, scratch, pieces, 2, line, s, err);
    tm_buf_deinit(&text);
    return st;
}

tm_status tm_format_choice(const tm_row_rules *r, tm_tokens *scratch, const json_t *row, int64_t line, tm_row_sink *s,
                           tm_error *err)
{
    const char *prompt;
    size_t size;
    const json_t *choices;
    json_t *owned;
    tm_buf text = {0};
    tm_status st = TM_OK;
    TM_TRY(tm_row_text(r, row, TM_COLUMN_PROMPT, TM_TEXT_MAY_BE_EMPTY, &prompt, &size, err));
    TM_TRY(tm_row_list(r, row, TM_COLUMN_CHOICES, &choices, &owned, err));
    if (json_array_size(choices) < 2)
        TM_GO(tm_fail(err, TM_INPUT, "%s: expected a list of two texts or more", r->column[TM_COLUMN_CHOICES]));
    int32_t ignored;
    TM_GO(tm_answer_of(json_object_get(row, r->column[TM_COLUMN_ANSWER]), choices, &ignored, err));
    tm_buf_text(&text, r->system);
    tm_buf_add(&text, prompt, size);
    TM_GO(tm_buf_check(&text, err));
    tm_row_piece piece = {tm_buf_str(&text), text.size, false, false};
    for (size_t i = 0; i < json_array_size(choices); i++)
        TM_GO(read_option(r, scratch, &piece, json_array_get(choices, i), line, s, err));
out:
    tm_buf_deinit(&text);
    json_decref(owned);
    return st;
}
