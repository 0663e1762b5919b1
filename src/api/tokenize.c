/* temper tokenize: lines of JSON through a tokenizer, for scripts and for checking against others. A line
 * in is a line out, so line numbers agree; the first line that is refused ends the work. */
#include "base/json.h"
#include "text/tokenizer.h"

#include <errno.h>
#include <stdlib.h>

typedef struct work {
    const tm_tokenize_request *request;
    tm_tokenizer *tokenizer;
    tm_tokens *scratch;
    tm_ids ids;
    tm_buf text, line; /* decoded text, line to write */
} work;

static tm_status encode_line(work *w, const json_t *value, tm_error *err)
{
    if (!json_is_string(value))
        return tm_fail(err, TM_INPUT, "found %s, expected a string", json_is_array(value) ? "a list" : "another value");
    w->ids.count = 0;
    TM_TRY(tm_tokenizer_encode(w->tokenizer, w->scratch, json_string_value(value), json_string_length(value),
                               w->request->add_special, &w->ids, err));
    tm_buf_char(&w->line, '[');
    for (size_t i = 0; i < w->ids.count; i++)
        tm_buf_printf(&w->line, "%s%d", i ? ", " : "", w->ids.id[i]);
    tm_buf_text(&w->line, "]\n");
    return TM_OK;
}

static tm_status decode_line(work *w, const json_t *value, tm_error *err)
{
    if (!json_is_array(value))
        return tm_fail(err, TM_INPUT, "found %s, expected a list of ids",
                       json_is_string(value) ? "a string" : "another value");
    size_t count = json_array_size(value);
    TM_TRY(TM_GROW(&w->ids.id, &w->ids.capacity, count, err));
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(value, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
            return tm_fail(err, TM_INPUT, "element %zu of the list is no token id", i);
        w->ids.id[i] = (int32_t)json_integer_value(id);
    }
    tm_buf_clear(&w->text);
    TM_TRY(tm_tokenizer_decode(w->tokenizer, w->ids.id, count, w->request->skip_special, &w->text, err));
    tm_json_put_bytes(&w->line, tm_buf_str(&w->text), w->text.size);
    tm_buf_char(&w->line, '\n');
    return TM_OK;
}

static tm_status do_line(work *w, const char *text, size_t size, tm_error *err)
{
    json_t *value = NULL;
    tm_buf_clear(&w->line);
    TM_TRY(tm_json_parse_row(text, size, &value, err));
    tm_status st = w->request->decode ? decode_line(w, value, err) : encode_line(w, value, err);
    json_decref(value);
    if (st == TM_OK)
        st = tm_buf_check(&w->line, err);
    return st;
}

static tm_status do_lines(work *w, tm_error *err)
{
    const tm_tokenize_request *r = w->request;
    char *text = NULL;
    size_t capacity = 0;
    ssize_t size;
    int64_t number = 0;
    tm_status st = TM_OK;
    errno = 0;
    while (st == TM_OK && (size = getline(&text, &capacity, r->in)) >= 0) {
        number++;
        st = do_line(w, text, (size_t)size, err);
        if (st != TM_OK)
            tm_fail_prefix(err, st, "%s:%lld", r->name, (long long)number);
        else if (fwrite(w->line.data, 1, w->line.size, r->out) != w->line.size)
            st = tm_fail_errno(err, TM_IO, "writing the result");
    }
    if (st == TM_OK && !feof(r->in))
        st = tm_fail_errno(err, TM_IO, "%s: reading line %lld", r->name, (long long)number + 1);
    if (st == TM_OK && fflush(r->out) != 0)
        st = tm_fail_errno(err, TM_IO, "writing the result");
    free(text);
    return st;
}

tm_status tm_tokenize(const tm_tokenize_request *request, tm_error *err)
{
    work w = {.request = request};
    tm_status st = TM_OK;
    TM_GO(tm_tokenizer_open(request->tokenizer, &w.tokenizer, err));
    TM_GO(tm_tokens_create(w.tokenizer, &w.scratch, err));
    st = do_lines(&w, err);
out:
    tm_ids_deinit(&w.ids);
    tm_buf_deinit(&w.text);
    tm_buf_deinit(&w.line);
    tm_tokens_destroy(w.scratch);
    tm_tokenizer_close(w.tokenizer);
    return st;
}
