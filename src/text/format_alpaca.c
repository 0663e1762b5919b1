/* Format alpaca: {"instruction", "input", "output", "history": [[question, answer], ...], "system"}, as
 * LLaMA-Factory reads it. With a chat template a row is a conversation: what is asked is the instruction and,
 * on a line of its own, the input. Without one it is the text that Stanford's Alpaca was trained on. */
#include "text/rows.h"

#include <stdlib.h>
#include <string.h>

static const char with_input[] = "Below is an instruction that describes a task, paired with an input that provides further "
                                 "context. Write a response that appropriately completes the request.",
                  without_input[] = "Below is an instruction that describes a task. Write a response that "
                                    "appropriately completes the request.";

typedef struct alpaca {
    const char *instruction, *input, *output, *system;
    size_t instruction_size, input_size, output_size, system_size;
    const json_t *history; /* NULL: none; checked */
} alpaca;

static tm_status check_history(const tm_row_rules *r, const json_t *history, tm_error *err)
{
    for (size_t i = 0; history && i < json_array_size(history); i++) {
        const json_t *turn = json_array_get(history, i);
        if (json_array_size(turn) != 2 || !json_is_string(json_array_get(turn, 0)) ||
            !json_is_string(json_array_get(turn, 1)))
            return tm_fail(err, TM_INPUT, "%s[%zu]: expected [question, answer], two texts", r->column[TM_COLUMN_HISTORY], i);
    }
    return TM_OK;
}

static tm_status as_conversation(const tm_row_rules *r, tm_tokens *scratch, const alpaca *a, const json_t *row,
                                 int64_t line, tm_row_sink *s, tm_error *err)
{
    json_t *messages = json_array();
    tm_status st;
    if (!messages)
        TM_GO(tm_fail(err, TM_NO_MEMORY, "out of memory"));
    if (a->system_size)
        TM_GO(tm_row_message(messages, "system", a->system, a->system_size, err));
    for (size_t i = 0; i < json_array_size(a->history); i++)
        for (size_t k = 0; k < 2; k++) {
            const json_t *text = json_array_get(json_array_get(a->history, i), k);
            TM_GO(tm_row_message(messages, k ? "assistant" : "user", json_string_value(text), json_string_length(text), err));
        }
    tm_buf_clear(&s->text);
    tm_buf_add(&s->text, a->instruction, a->instruction_size);
    if (a->input_size) {
        tm_buf_char(&s->text, '\n');
        tm_buf_add(&s->text, a->input, a->input_size);
    }
    TM_GO(tm_buf_check(&s->text, err));
    TM_GO(tm_row_message(messages, "user", s->text.data, s->text.size, err));
    TM_GO(tm_row_message(messages, "assistant", a->output, a->output_size, err));
    st = tm_row_conversation(r, scratch, row, messages, line, s, err);
out:
    json_decref(messages);
    return st;
}

static void put_question(tm_buf *out, const char *instruction, size_t size, const char *input, size_t input_size)
{
    tm_buf_text(out, "\n\n### Instruction:\n");
    tm_buf_add(out, instruction, size);
    if (input_size) {
        tm_buf_text(out, "\n\n### Input:\n");
        tm_buf_add(out, input, input_size);
    }
    tm_buf_text(out, "\n\n### Response:");
}

/* A question before every answer; the preamble before the first. All questions lie in s->text, so their
 * places are noted first and become pieces when the text no longer moves. */
static tm_status as_text(const tm_row_rules *r, tm_tokens *scratch, const alpaca *a, int64_t line, tm_row_sink *s,
                         tm_error *err)
{
    size_t turns = json_array_size(a->history) + 1, at = 0;
    tm_row_piece *pieces;
    TM_TRY(TM_NEW(&pieces, 2 * turns, err));
    tm_buf *text = &s->text;
    tm_buf_clear(text);
    if (a->system_size)
        tm_buf_add(text, a->system, a->system_size);
    else
        tm_buf_text(text, a->input_size ? with_input : without_input);
    for (size_t i = 0; i < turns; i++) {
        const json_t *turn = json_array_get(a->history, i), *question = json_array_get(turn, 0);
        const json_t *answer = json_array_get(turn, 1);
        if (turn)
            put_question(text, json_string_value(question), json_string_length(question), "", 0);
        else
            put_question(text, a->instruction, a->instruction_size, a->input, a->input_size);
        pieces[2 * i].size = text->size - at;
        at = text->size;
        pieces[2 * i + 1] = turn ? (tm_row_piece){json_string_value(answer), json_string_length(answer), true, true}
                                 : (tm_row_piece){a->output, a->output_size, true, true};
        pieces[2 * i + 1].target = i + 1 == turns || r->loss != TM_LOSS_COMPLETION;
    }
    tm_status st = tm_buf_check(text, err);
    at = 0;
    for (size_t i = 0; i < turns; i++) {
        pieces[2 * i].text = tm_buf_str(text) + at;
        at += pieces[2 * i].size;
    }
    if (st == TM_OK)
        st = tm_row_pieces(r, scratch, pieces, 2 * turns, line, s, err);
    free(pieces);
    return st;
}

tm_status tm_format_alpaca(const tm_row_rules *r, tm_tokens *scratch, const json_t *row, int64_t line, tm_row_sink *s,
                           tm_error *err)
{
    alpaca a;
    json_t *owned;
    TM_TRY(tm_row_text(r, row, TM_COLUMN_INSTRUCTION, TM_TEXT_FILLED, &a.instruction, &a.instruction_size, err));
    TM_TRY(tm_row_text(r, row, TM_COLUMN_INPUT, TM_TEXT_OPTIONAL, &a.input, &a.input_size, err));
    TM_TRY(tm_row_text(r, row, TM_COLUMN_OUTPUT, TM_TEXT_FILLED, &a.output, &a.output_size, err));
    TM_TRY(tm_row_text(r, row, TM_COLUMN_SYSTEM, TM_TEXT_OPTIONAL, &a.system, &a.system_size, err));
    if (!a.system_size) {
        a.system = r->system;
        a.system_size = strlen(r->system);
    }
    TM_TRY(tm_row_list(r, row, TM_COLUMN_HISTORY, &a.history, &owned, err));
    tm_status st = check_history(r, a.history, err);
    if (st == TM_OK)
        st = r->chat ? as_conversation(r, scratch, &a, row, line, s, err) : as_text(r, scratch, &a, line, s, err);
    json_decref(owned);
    return st;
}
