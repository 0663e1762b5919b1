/* Format text: {"text": "..."}, or a file of plain text: documents, which form one chain that is cut into
 * blocks of train.seq tokens when all of them are there (dataset_read.c). */
#include "text/rows.h"

tm_status tm_row_document(const tm_row_rules *r, tm_tokens *scratch, const char *text, size_t size, int64_t line,
                          tm_row_sink *s, tm_error *err)
{
    size_t first = s->ids.count;
    TM_TRY(tm_tokenizer_encode(r->tok, scratch, text, size, true, &s->ids, err));
    size_t n = s->ids.count - first;
    bool ended = n > 0 && s->ids.id[s->ids.count - 1] == r->eos;
    if (r->eos >= 0 && !ended)
        TM_TRY(tm_ids_push(&s->ids, r->eos, err));
    TM_TRY(tm_row_check_ids(r, &s->ids, first, err));
    n = s->ids.count - first;
    if (n > INT32_MAX)
        return tm_fail(err, TM_INPUT, "a document of %zu tokens; at most %d are taken", n, INT32_MAX);
    TM_TRY(TM_GROW(&s->span, &s->span_capacity, s->spans + 1, err));
    s->span[s->spans++] = (tm_span){first, SIZE_MAX, line, (int64_t)size, (int32_t)n, 0};
    s->stats.text_bytes += (int64_t)size;
    for (size_t i = first; i < s->ids.count; i++)
        s->text_tokens += s->ids.id[i] != r->bos && s->ids.id[i] != r->eos;
    return TM_OK;
}

tm_status tm_format_text(const tm_row_rules *r, tm_tokens *scratch, const json_t *row, int64_t line, tm_row_sink *s,
                         tm_error *err)
{
    const char *text;
    size_t size;
    TM_TRY(tm_row_text(r, row, TM_COLUMN_TEXT, TM_TEXT_FILLED, &text, &size, err));
    return tm_row_document(r, scratch, text, size, line, s, err);
}
