/* Format tokens: {"input_ids": [...], "labels": [...]}: what somebody else has tokenised. */
#include "text/rows.h"

/* A list of whole numbers of 32 bits. */
static tm_status get_list(const tm_row_rules *r, const json_t *row, tm_column column, const char *what, tm_ids *out,
                          tm_error *err)
{
    const char *name = r->column[column];
    const json_t *list, *value = json_object_get(row, name);
    json_t *owned = NULL;
    tm_status st = TM_OK;
    if (json_is_string(value) && json_string_length(value) && json_string_value(value)[0] == '[')
        TM_TRY(tm_row_list(r, row, column, &list, &owned, err)); /* of a CSV file */
    else
        list = value;
    if (!json_is_array(list))
        TM_GO(tm_fail(err, TM_INPUT, "%s: expected a list of %s, found %s", name, what, tm_json_type_name(list)));
    size_t n = json_array_size(list);
    TM_GO(TM_GROW(&out->id, &out->capacity, n, err));
    for (out->count = 0; out->count < n; out->count++) {
        value = json_array_get(list, out->count);
        json_int_t number = json_integer_value(value);
        if (!json_is_integer(value) || number != (int32_t)number)
            TM_GO(tm_fail(err, TM_INPUT, "%s[%zu]: expected %s, found %s", name, out->count, what,
                          json_is_integer(value) ? "a number beyond 32 bits" : tm_json_type_name(value)));
        out->id[out->count] = (int32_t)number;
    }
out:
    json_decref(owned);
    return st;
}

static tm_status get_lists(const tm_row_rules *r, const json_t *row, tm_row_sink *s, tm_error *err)
{
    const json_t *labels = json_object_get(row, r->column[TM_COLUMN_LABELS]);
    bool has_labels = labels && !json_is_null(labels) && !(json_is_string(labels) && !json_string_length(labels));
    TM_TRY(get_list(r, row, TM_COLUMN_IDS, "token ids", &s->row_ids, err));
    if (has_labels)
        return get_list(r, row, TM_COLUMN_LABELS, "token ids or -100", &s->row_labels, err);
    s->row_labels.count = SIZE_MAX;
    return TM_OK;
}

static tm_status use_labels(const tm_row_rules *r, tm_row_sink *s, tm_error *err)
{
    const char *name = r->column[TM_COLUMN_LABELS];
    size_t n = s->row_ids.count;
    if (s->row_labels.count != n)
        return tm_fail(err, TM_INPUT, "%s: %zu labels beside %zu token ids", name, s->row_labels.count, n);
    for (size_t i = 0; i < n; i++) {
        int32_t label = s->row_labels.id[i], id = s->row_ids.id[i];
        if (label != -100 && label != id)
            return tm_fail(err, TM_INPUT, "%s[%zu]: expected -100 or the token there, %d, found %d", name, i, id,
                           label);
        s->mask.data[i] = label != -100;
    }
    return TM_OK;
}

/* row NULL: sink->row_ids and row_labels hold the lists (labels' count SIZE_MAX: none). */
tm_status tm_format_tokens(const tm_row_rules *r, tm_tokens *scratch, const json_t *row, int64_t line, tm_row_sink *s,
                           tm_error *err)
{
    (void)scratch;
    if (row)
        TM_TRY(get_lists(r, row, s, err));
    size_t first = s->ids.count, n = s->row_ids.count;
    int64_t examples = s->stats.examples;
    TM_TRY(TM_GROW(&s->ids.id, &s->ids.capacity, first + n, err));
    tm_buf_clear(&s->mask);
    for (size_t i = 0; i < n; i++) {
        int32_t id = s->row_ids.id[i];
        if (id < 0 || id >= r->vocab_size)
            return tm_fail(err, TM_INPUT, "%s[%zu]: %d is outside the vocabulary of %lld", r->column[TM_COLUMN_IDS], i,
                           id, (long long)r->vocab_size);
        s->ids.id[first + i] = id;
        tm_buf_char(&s->mask, 1);
    }
    s->ids.count = first + n;
    TM_TRY(tm_buf_check(&s->mask, err));
    if (s->row_labels.count != SIZE_MAX && r->loss != TM_LOSS_ALL)
        TM_TRY(use_labels(r, s, err));
    TM_TRY(tm_row_finish(r, s, first, line, err));
    return r->tok && s->stats.examples > examples ? tm_row_decoded_bytes(r, s, err) : TM_OK;
}
