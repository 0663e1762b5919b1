/* Tokenizers out of arrays (GGUF): the tokenizer.json that says the same, and what it gives. */
#include "text/tokenizer_parts.h"

tm_status tm_tokenizer_parts_json(const tm_tokenizer_parts *parts, const char *name, tm_buf *json, tm_error *err)
{
    (void)json;
    return tm_fail(err, TM_UNSUPPORTED, "%s: a tokenizer of kind \"%.40s\" in arrays is not supported yet", name, parts->model);
}

tm_status tm_tokenizer_from_parts(const tm_tokenizer_parts *parts, const char *name, tm_tokenizer **out, tm_error *err)
{
    tm_buf json = {0};
    *out = NULL;
    tm_status st = tm_tokenizer_parts_json(parts, name, &json, err);
    if (st == TM_OK)
        st = tm_tokenizer_parse(tm_buf_str(&json), json.size, name, out, err);
    tm_buf_deinit(&json);
    return st;
}
