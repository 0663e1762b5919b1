/* Format completion: {"prompt": "...", "completion": "..."}; the two as they stand, without a template. */
#include "text/rows.h"

#include <string.h>

tm_status tm_format_completion(const tm_row_rules *r, tm_tokens *scratch, const json_t *row, int64_t line,
                               tm_row_sink *s, tm_error *err)
{
    const char *prompt, *completion;
    size_t prompt_size, completion_size;
    TM_TRY(tm_row_text(r, row, TM_COLUMN_PROMPT, TM_TEXT_MAY_BE_EMPTY, &prompt, &prompt_size, err));
    TM_TRY(tm_row_text(r, row, TM_COLUMN_COMPLETION, TM_TEXT_FILLED, &completion, &completion_size, err));
    if (*r->system) {
        tm_buf_clear(&s->text);
        tm_buf_text(&s->text, r->system);
        tm_buf_add(&s->text, prompt, prompt_size);
        TM_TRY(tm_buf_check(&s->text, err));
        prompt = tm_buf_str(&s->text);
        prompt_size = s->text.size;
    }
    tm_row_piece pieces[] = {{prompt, prompt_size, false, false}, {completion, completion_size, true, true}};
    return tm_row_pieces(r, scratch, pieces, 2, line, s, err);
}
