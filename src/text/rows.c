/* What rows become: see rows.h. The table of formats, how one is chosen, and what they share. A row is judged
 * as written: a text that is no text, a label that is neither -100 nor its own token, a row without anything
 * to learn are errors, never guesses. */
#include "text/rows.h"

#include <stdlib.h>
#include <string.h>

#define BIT(column) (1u << TM_COLUMN_##column)

const tm_format tm_formats[] = {
    [TM_FORMAT_TEXT] = {"text", BIT(TEXT), .read = tm_format_text},
    [TM_FORMAT_COMPLETION] = {"completion", BIT(PROMPT) | BIT(COMPLETION), .takes_system = true, .is_prompted = true,
                              .read = tm_format_completion},
    [TM_FORMAT_TOKENS] = {"tokens", BIT(IDS), .read = tm_format_tokens},
    [TM_FORMAT_MESSAGES] = {"messages", BIT(MESSAGES), true, true, true, TM_CHAT_ALWAYS, tm_format_messages},
    [TM_FORMAT_SHAREGPT] = {"sharegpt", BIT(CONVERSATIONS), true, true, true, TM_CHAT_ALWAYS, tm_format_sharegpt},
    [TM_FORMAT_ALPACA] = {"alpaca", BIT(INSTRUCTION) | BIT(OUTPUT), true, false, true, TM_CHAT_WHERE_THERE_IS,
                          tm_format_alpaca},
    [TM_FORMAT_BRIDGE] = {"bridge", BIT(SCENE) | BIT(TEXT), true, false, true, TM_CHAT_WHERE_THERE_IS, tm_format_bridge},
    [TM_FORMAT_CHOICE] = {"choice", BIT(PROMPT) | BIT(CHOICES) | BIT(ANSWER), .takes_system = true, .is_prompted = true,
                          .read = tm_format_choice},
};

/* The order in which formats are tried where rows have the columns of several. */
static const int detection_order[] = {TM_FORMAT_TOKENS, TM_FORMAT_MESSAGES, TM_FORMAT_SHAREGPT, TM_FORMAT_CHOICE, TM_FORMAT_COMPLETION,
                                      TM_FORMAT_ALPACA, TM_FORMAT_BRIDGE,   TM_FORMAT_TEXT};
enum { FORMATS = sizeof detection_order / sizeof *detection_order, FIRST_ROWS = 10 };

static const char *const column_names[TM_COLUMN_COUNT] = {
    "text",  "prompt",      "completion", "input_ids", "labels",  "messages", "conversations", "system", "tools",
    "instruction", "input", "output",     "history",   "scene",   "choices",  "answer",        "source", "references",
    "role",     "content",       "from",   "value"};

void tm_row_columns(const tm_data_entry *entry, const char **names)
{
    for (int i = 0; i < TM_COLUMN_COUNT; i++) {
        names[i] = column_names[i];
        for (int64_t k = 0; k < entry->columns.keys.count; k++)
            if (strcmp(entry->columns.keys.item[k], column_names[i]) == 0)
                names[i] = entry->columns.values.item[k];
    }
}

void tm_row_sink_clear(tm_row_sink *sink)
{
    sink->ids.count = sink->weights = sink->spans = 0;
    sink->stats = (tm_dataset_stats){0};
    sink->text_tokens = 0;
}

void tm_row_sink_deinit(tm_row_sink *sink)
{
    tm_ids_deinit(&sink->ids);
    free(sink->weight);
    free(sink->span);
    tm_buf_deinit(&sink->mask);
    tm_buf_deinit(&sink->text);
    tm_ids_deinit(&sink->row_ids);
    tm_ids_deinit(&sink->row_labels);
    tm_chat_text_deinit(&sink->chat);
    free(sink->row_weight);
    *sink = (tm_row_sink){0};
}

/* --- Which format --- */

static bool has_columns(const tm_row_rules *r, const tm_format *f, const json_t *row)
{
    for (int i = 0; i < TM_COLUMN_NESTED; i++)
        if (f->needs >> i & 1 && (!json_object_get(row, r->column[i]) || json_is_null(json_object_get(row, r->column[i]))))
            return false;
    return true;
}

static void put_expected(const tm_row_rules *r, tm_buf *out)
{
    for (int i = 0; i < FORMATS; i++) {
        const tm_format *f = &tm_formats[detection_order[i]];
        tm_buf_printf(out, "%s%s (", i ? ", " : "", f->name);
        int n = 0;
        for (int c = 0; c < TM_COLUMN_NESTED; c++)
            if (f->needs >> c & 1)
                tm_buf_printf(out, "%s%.60s", n++ ? ", " : "", r->column[c]);
        tm_buf_char(out, ')');
    }
}

static void put_keys(const json_t *row, tm_buf *out)
{
    const char *key;
    json_t *value;
    size_t n = 0, limit = out->size + 200;
    json_object_foreach((json_t *)row, key, value) {
        if (out->size < limit)
            tm_buf_printf(out, "%s%.60s", n++ ? ", " : "", key);
    }
}

/* The first format whose columns all of the first rows have. */
static tm_status detect(tm_row_rules *r, const tm_row_source *source, const tm_row *rows, size_t count, tm_error *err)
{
    bool fits[FORMATS];
    json_t *first = NULL;
    tm_status st = TM_OK;
    memset(fits, true, sizeof fits);
    for (size_t k = 0; k < count && k < FIRST_ROWS; k++) {
        json_t *row;
        tm_error ignored;
        if (k == 0)
            TM_GO(tm_row_parse(source, &rows[k], &row, err));
        else if (tm_row_parse(source, &rows[k], &row, &ignored) != TM_OK)
            break; /* said when the row is read, with its line */
        for (int i = 0; i < FORMATS; i++)
            fits[i] &= has_columns(r, &tm_formats[detection_order[i]], row);
        if (k == 0)
            first = json_incref(row);
        json_decref(row);
    }
    for (int i = FORMATS - 1; i >= 0; i--)
        if (fits[i])
            r->format = detection_order[i];
    if (r->format == TM_FORMAT_AUTO) {
        tm_buf text = {0};
        tm_buf_text(&text, "the first rows do not all have the columns of one format; found the keys: ");
        put_keys(first, &text);
        tm_buf_text(&text, "; expected ");
        put_expected(r, &text);
        st = tm_fail(err, TM_INPUT, "%s; columns: {text: NAME} tells which key is which", tm_buf_str(&text));
        tm_buf_deinit(&text);
    }
out:
    json_decref(first);
    return st;
}

/* Does the tokenizer put EOS behind every text? Then it is taken off prompts. */
static tm_status look_at_tokenizer(tm_row_rules *r, tm_error *err)
{
    r->bos = tm_tokenizer_bos(r->tok);
    r->eos = tm_tokenizer_eos(r->tok);
    tm_tokens *scratch = NULL;
    tm_ids ids = {0};
    tm_status st;
    TM_GO(tm_tokens_create(r->tok, &scratch, err));
    TM_GO(tm_tokenizer_encode(r->tok, scratch, "", 0, true, &ids, err));
    r->adds_eos = ids.count > 0 && r->eos >= 0 && ids.id[ids.count - 1] == r->eos;
out:
    tm_ids_deinit(&ids);
    tm_tokens_destroy(scratch);
    return st;
}

tm_status tm_row_rules_init(tm_row_rules *r, const tm_data_entry *entry, const tm_row_source *source,
                            const tm_row *first, size_t count, const tm_data_settings *settings, tm_error *err)
{
    *r = (tm_row_rules){.tok = settings->tok,
                        .entry = entry,
                        .system = entry->system ? entry->system : "",
                        .vocab_size = settings->vocab_size,
                        .seq = settings->seq,
                        .bos = -1,
                        .eos = -1,
                        .format = entry->format,
                        .loss = entry->loss};
    tm_row_columns(entry, r->column);
    bool document = tm_row_source_is_document(source);
    if (document && r->format != TM_FORMAT_AUTO && r->format != TM_FORMAT_TEXT)
        return tm_fail(err, TM_RECIPE, "a plain text file has format text");
    if (document)
        r->format = TM_FORMAT_TEXT;
    else if (r->format == TM_FORMAT_AUTO)
        TM_TRY(detect(r, source, first, count, err));
    const tm_format *f = &tm_formats[r->format];
    if (r->loss > TM_LOSS_ALL && !f->is_prompted)
        return tm_fail(err, TM_RECIPE, "loss: completion and assistant are for rows with prompts, and these are of format %s", f->name);
    if (*r->system && !f->takes_system)
        return tm_fail(err, TM_RECIPE, "system is for rows with prompts, and these are of format %s", f->name);
    if (entry->roles.keys.count && !f->takes_roles)
        return tm_fail(err, TM_RECIPE, "roles are for messages and sharegpt, and these rows are of format %s", f->name);
    if (r->loss == TM_LOSS_AUTO && f->is_prompted)
        r->loss = TM_LOSS_ASSISTANT;
    if (!r->tok && r->format != TM_FORMAT_TOKENS)
        return tm_fail(err, TM_INPUT, "rows of text need a tokenizer, and the model has none");
    return r->tok ? look_at_tokenizer(r, err) : TM_OK;
}

/* --- Values of a row --- */

const char *tm_json_type_name(const json_t *value)
{
    switch (value ? json_typeof(value) : JSON_NULL) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "text";
    case JSON_INTEGER:
    case JSON_REAL: return "a number";
    case JSON_TRUE:
    case JSON_FALSE: return "true or false";
    case JSON_NULL: break;
    }
    return value ? "null" : "nothing";
}

tm_status tm_row_text(const tm_row_rules *r, const json_t *row, tm_column column, tm_text_need need,
                      const char **text, size_t *size, tm_error *err)
{
    const json_t *value = json_object_get(row, r->column[column]);
    *text = "";
    *size = 0;
    if (need == TM_TEXT_OPTIONAL && (!value || json_is_null(value)))
        return TM_OK;
    if (!json_is_string(value))
        return tm_fail(err, TM_INPUT, "%s: expected text, found %s", r->column[column], tm_json_type_name(value));
    *text = json_string_value(value);
    *size = json_string_length(value);
    if (!*size && need == TM_TEXT_FILLED)
        return tm_fail(err, TM_INPUT, "%s is empty", r->column[column]);
    return TM_OK;
}

tm_status tm_row_list(const tm_row_rules *r, const json_t *row, tm_column column, const json_t **out, json_t **owned,
                      tm_error *err)
{
    const char *name = r->column[column];
    const json_t *value = json_object_get(row, name);
    *out = NULL;
    *owned = NULL;
    if (!value || json_is_null(value) || (json_is_string(value) && json_string_length(value) == 0))
        return TM_OK;
    if (json_is_string(value)) {
        tm_status st = tm_json_parse_row(json_string_value(value), json_string_length(value), owned, err);
        if (st != TM_OK)
            return tm_fail_prefix(err, st, "%s: text that should hold a list", name);
        value = *owned;
    }
    if (json_is_array(value)) {
        *out = value;
        return TM_OK;
    }
    tm_status st = tm_fail(err, TM_INPUT, "%s: expected a list, found %s", name, tm_json_type_name(value));
    json_decref(*owned);
    *owned = NULL;
    return st;
}

/* --- Examples --- */

tm_status tm_row_check_ids(const tm_row_rules *r, const tm_ids *ids, size_t from, tm_error *err)
{
    for (size_t i = from; i < ids->count; i++)
        if (ids->id[i] < 0 || ids->id[i] >= r->vocab_size)
            return tm_fail(err, TM_INPUT, "token %d of the tokenizer is outside the model's vocabulary of %lld",
                           ids->id[i], (long long)r->vocab_size);
    return TM_OK;
}

tm_status tm_ids_push(tm_ids *ids, int32_t id, tm_error *err)
{
    TM_TRY(TM_GROW(&ids->id, &ids->capacity, ids->count + 1, err));
    ids->id[ids->count++] = id;
    return TM_OK;
}

/* Weights of a span out of its mask. */
static tm_status put_weights(tm_row_sink *s, const char *mask, size_t n, size_t *at, tm_error *err)
{
    TM_TRY(TM_GROW(&s->weight, &s->weight_capacity, s->weights + n, err));
    *at = s->weights;
    for (size_t i = 0; i < n; i++)
        s->weight[s->weights++] = i && mask[i] ? 1 : 0;
    return TM_OK;
}

tm_status tm_row_finish(const tm_row_rules *r, tm_row_sink *s, size_t first, int64_t line, tm_error *err)
{
    size_t n = s->ids.count - first, kept = (int64_t)n > r->seq ? (size_t)r->seq : n, weight = SIZE_MAX;
    const char *mask = tm_buf_str(&s->mask);
    int64_t all = 0, targets = 0;
    TM_TRY(tm_buf_check(&s->mask, err));
    for (size_t i = 1; i < n; i++) {
        all += mask[i] != 0;
        if (i + 1 == kept)
            targets = all;
    }
    if (!all)
        return tm_fail(err, TM_INPUT, "the row has no target: nothing to learn from");
    s->stats.cut += kept < n;
    if (!targets) {
        s->stats.dropped++;
        s->ids.count = first;
        return TM_OK;
    }
    s->ids.count = first + kept;
    if (targets != (int64_t)kept - 1)
        TM_TRY(put_weights(s, mask, kept, &weight, err));
    TM_TRY(TM_GROW(&s->span, &s->span_capacity, s->spans + 1, err));
    s->span[s->spans++] = (tm_span){first, weight, line, 0, (int32_t)kept, (int32_t)targets};
    s->stats.examples++;
    s->stats.tokens += (int64_t)kept;
    s->stats.targets += targets;
    return TM_OK;
}

void tm_row_add_bytes(tm_row_sink *s, int64_t bytes)
{
    s->span[s->spans - 1].bytes += bytes;
    s->stats.text_bytes += bytes;
}

/* Bytes that the targets of the last example decode to; ids the tokenizer does not know count nothing. */
tm_status tm_row_decoded_bytes(const tm_row_rules *r, tm_row_sink *s, tm_error *err)
{
    tm_span *span = &s->span[s->spans - 1];
    tm_ids *known = &s->row_ids;
    known->count = 0;
    for (int32_t i = 1; i < span->n; i++) {
        int32_t id = s->ids.id[span->first + (size_t)i];
        if (id < tm_tokenizer_vocab_size(r->tok) && s->mask.data[i])
            TM_TRY(tm_ids_push(known, id, err));
    }
    tm_buf_clear(&s->text);
    if (tm_tokenizer_decode(r->tok, known->id, known->count, true, &s->text, NULL) == TM_OK)
        tm_row_add_bytes(s, (int64_t)s->text.size);
    return TM_OK;
}

/* part / whole of bytes, rounded down. */
static int64_t share(size_t bytes, size_t part, size_t whole)
{
    return whole > 0 ? (int64_t)((__int128)bytes * part / whole) : 0;
}

static tm_status encode_piece(const tm_row_rules *r, tm_tokens *scratch, const tm_row_piece *p, bool first, size_t start,
                              tm_row_sink *s, size_t *text_from, size_t *text_to, tm_error *err)
{
    size_t from = s->ids.count - start;
    TM_TRY(tm_tokenizer_encode(r->tok, scratch, p->text, p->size, first, &s->ids, err));
    if (first && r->adds_eos && s->ids.count > start)
        s->ids.count--;
    *text_from = from + (first && s->ids.count > start && s->ids.id[start] == r->bos);
    *text_to = s->ids.count - start;
    bool ended = *text_to > from && s->ids.id[s->ids.count - 1] == r->eos;
    if (p->ends && r->eos >= 0 && !ended)
        TM_TRY(tm_ids_push(&s->ids, r->eos, err));
    bool target = p->target || r->loss == TM_LOSS_ALL;
    while (s->mask.size < s->ids.count - start && !s->mask.failed)
        tm_buf_char(&s->mask, target);
    return TM_OK;
}

tm_status tm_row_pieces(const tm_row_rules *r, tm_tokens *scratch, const tm_row_piece *pieces, size_t count, int64_t line,
                        tm_row_sink *s, tm_error *err)
{
    size_t start = s->ids.count, *text;
    int64_t before = s->stats.examples;
    TM_TRY(TM_NEW(&text, 2 * count, err));
    tm_status st;
    tm_buf_clear(&s->mask);
    for (size_t i = 0; i < count; i++)
        TM_GO(encode_piece(r, scratch, &pieces[i], i == 0, start, s, &text[2 * i], &text[2 * i + 1], err));
    TM_GO(tm_row_check_ids(r, &s->ids, start, err));
    TM_GO(tm_row_finish(r, s, start, line, err));
    if (s->stats.examples > before) { /* bytes of what the cut left of the targets' text */
        size_t end = (size_t)s->span[s->spans - 1].n;
        for (size_t i = 0; i < count; i++) {
            size_t from = text[2 * i] ? text[2 * i] : 1, to = text[2 * i + 1] < end ? text[2 * i + 1] : end;
            if ((pieces[i].target || r->loss == TM_LOSS_ALL) && to > from)
                tm_row_add_bytes(s, share(pieces[i].size, to - from, text[2 * i + 1] - text[2 * i]));
        }
    }
out:
    free(text);
    return st;
}

tm_status tm_row_read(const tm_row_rules *r, const tm_row_source *source, tm_tokens *scratch, const tm_row *row,
                      tm_row_sink *s, tm_error *err)
{
    bool has_labels;
    json_t *json = NULL;
    s->stats.rows++;
    if (r->format == TM_FORMAT_TOKENS && tm_row_is_json(source) &&
        tm_row_scan_ids(r, row, &s->row_ids, &s->row_labels, &has_labels)) {
        if (!has_labels)
            s->row_labels.count = SIZE_MAX;
    } else
        TM_TRY(tm_row_parse(source, row, &json, err));
    tm_status st = tm_formats[r->format].read(r, scratch, json, row->line, s, err);
    json_decref(json);
    return st;
}
