/* What rows become: see rows.h. A row is judged as written: a text that is no text, a label that is
 * neither -100 nor its own token, a row without anything to learn are errors, never guesses. */
#include "text/rows.h"

#include "base/json.h"

#include <stdlib.h>
#include <string.h>

static const char *const column_names[TM_COLUMN_COUNT] = {"text", "prompt", "completion", "input_ids", "labels"};

void tm_row_sink_deinit(tm_row_sink *sink)
{
    tm_ids_deinit(&sink->ids);
    free(sink->weight);
    free(sink->span);
    tm_buf_deinit(&sink->prompt);
    tm_ids_deinit(&sink->row_ids);
    tm_ids_deinit(&sink->row_labels);
    *sink = (tm_row_sink){0};
}

/* --- Rules --- */

static tm_status parse(const tm_row *row, json_t **out, tm_error *err)
{
    TM_TRY(tm_json_parse_row(row->text, row->size, out, err));
    if (json_is_object(*out))
        return TM_OK;
    json_decref(*out);
    *out = NULL;
    return tm_fail(err, TM_INPUT, "expected a row: a JSON object");
}

static int format_of(const tm_row_rules *r, const json_t *row)
{
    if (json_object_get(row, r->column[TM_COLUMN_IDS]))
        return TM_FORMAT_TOKENS;
    if (json_object_get(row, r->column[TM_COLUMN_PROMPT]) && json_object_get(row, r->column[TM_COLUMN_COMPLETION]))
        return TM_FORMAT_COMPLETION;
    return json_object_get(row, r->column[TM_COLUMN_TEXT]) ? TM_FORMAT_TEXT : TM_FORMAT_AUTO;
}

static tm_status detect(tm_row_rules *r, const tm_row *first, tm_error *err)
{
    json_t *row;
    TM_TRY(parse(first, &row, err));
    r->format = format_of(r, row);
    tm_status st = TM_OK;
    if (r->format == TM_FORMAT_AUTO) {
        tm_buf keys = {0};
        const char *key;
        json_t *value;
        json_object_foreach(row, key, value) {
            if (keys.size < 200)
                tm_buf_printf(&keys, "%s%.60s", keys.size ? ", " : "", key);
        }
        st = tm_fail(err, TM_INPUT,
                     "expected a row with text, or prompt and completion, or input_ids; found the keys: %s "
                     "(columns: {text: NAME} tells which key is which)",
                     tm_buf_str(&keys));
        tm_buf_deinit(&keys);
    }
    json_decref(row);
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

tm_status tm_row_rules_init(tm_row_rules *r, const tm_data_entry *entry, const tm_row *first, bool plain_text,
                            const tm_tokenizer *tok, int64_t vocab_size, int64_t seq, tm_error *err)
{
    *r = (tm_row_rules){.tok = tok,
                        .system = entry->system ? entry->system : "",
                        .vocab_size = vocab_size,
                        .seq = seq,
                        .bos = -1,
                        .eos = -1,
                        .format = entry->format,
                        .loss = entry->loss};
    for (int i = 0; i < TM_COLUMN_COUNT; i++) {
        r->column[i] = column_names[i];
        for (int64_t k = 0; k < entry->columns.keys.count; k++)
            if (strcmp(entry->columns.keys.item[k], column_names[i]) == 0)
                r->column[i] = entry->columns.values.item[k];
    }
    if (plain_text && r->format != TM_FORMAT_AUTO && r->format != TM_FORMAT_TEXT)
        return tm_fail(err, TM_RECIPE, "a plain text file has format text");
    if (plain_text)
        r->format = TM_FORMAT_TEXT;
    else if (r->format == TM_FORMAT_AUTO)
        TM_TRY(detect(r, first, err));
    if (r->loss == TM_LOSS_COMPLETION && r->format != TM_FORMAT_COMPLETION)
        return tm_fail(err, TM_RECIPE, "loss: completion is for rows of prompt and completion");
    if (*r->system && r->format != TM_FORMAT_COMPLETION)
        return tm_fail(err, TM_RECIPE, "system is for rows of prompt and completion");
    if (r->loss == TM_LOSS_AUTO && r->format == TM_FORMAT_COMPLETION)
        r->loss = TM_LOSS_COMPLETION;
    if (!tok && r->format != TM_FORMAT_TOKENS)
        return tm_fail(err, TM_INPUT, "rows of text need a tokenizer, and the model has none");
    return tok ? look_at_tokenizer(r, err) : TM_OK;
}

/* --- Examples --- */

static const char *type_name(const json_t *value)
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

static tm_status get_text(const tm_row_rules *r, const json_t *row, tm_column column, bool may_be_empty,
                          const char **text, size_t *size, tm_error *err)
{
    const json_t *value = json_object_get(row, r->column[column]);
    if (!json_is_string(value))
        return tm_fail(err, TM_INPUT, "%s: expected text, found %s", r->column[column], type_name(value));
    *text = json_string_value(value);
    *size = json_string_length(value);
    if (!*size && !may_be_empty)
        return tm_fail(err, TM_INPUT, "%s is empty", r->column[column]);
    return TM_OK;
}

static tm_status check_ids(const tm_row_rules *r, const tm_ids *ids, size_t from, tm_error *err)
{
    for (size_t i = from; i < ids->count; i++)
        if (ids->id[i] < 0 || ids->id[i] >= r->vocab_size)
            return tm_fail(err, TM_INPUT, "token %d of the tokenizer is outside the model's vocabulary of %lld",
                           ids->id[i], (long long)r->vocab_size);
    return TM_OK;
}

static tm_status push_id(tm_ids *ids, int32_t id, tm_error *err)
{
    TM_TRY(TM_GROW(&ids->id, &ids->capacity, ids->count + 1, err));
    ids->id[ids->count++] = id;
    return TM_OK;
}

/* Weights beside ids [first, count): 0 before `targets_from` (counted from first), 1 from there. */
static tm_status put_weights(tm_row_sink *s, size_t first, size_t targets_from, tm_error *err)
{
    TM_TRY(TM_GROW(&s->weight, &s->weight_capacity, s->ids.count, err));
    for (; s->weights < first; s->weights++)
        s->weight[s->weights] = 1; /* of examples that needed none; never read */
    for (; s->weights < s->ids.count; s->weights++)
        s->weight[s->weights] = s->weights - first >= targets_from ? 1 : 0;
    return TM_OK;
}

/* Takes the ids from `first` on as an example, cut at seq. `targets` of them are targets. */
static tm_status finish(const tm_row_rules *r, tm_row_sink *s, size_t first, bool masked, int64_t targets, int64_t line,
                        tm_error *err)
{
    size_t n = s->ids.count - first;
    s->stats.rows++;
    if (targets == 0)
        return tm_fail(err, TM_INPUT, "the row has no target: nothing to learn from");
    if ((int64_t)n > r->seq) {
        s->stats.cut++;
        for (size_t i = (size_t)r->seq; i < n; i++)
            targets -= !masked || s->weight[first + i] > 0;
        n = (size_t)r->seq;
        s->ids.count = first + n;
        if (s->weights > s->ids.count)
            s->weights = s->ids.count;
    }
    if (targets == 0) {
        s->stats.dropped++;
        s->ids.count = first;
        if (s->weights > first)
            s->weights = first;
        return TM_OK;
    }
    TM_TRY(TM_GROW(&s->span, &s->span_capacity, s->spans + 1, err));
    s->span[s->spans++] = (tm_span){first, line, (int32_t)n, (int32_t)targets, masked};
    s->stats.examples++;
    s->stats.tokens += (int64_t)n;
    s->stats.targets += targets;
    return TM_OK;
}

/* part / whole of bytes, rounded down. */
static int64_t share(int64_t bytes, int64_t part, int64_t whole)
{
    return whole > 0 ? (int64_t)((__int128)bytes * part / whole) : 0;
}

static tm_status read_completion(const tm_row_rules *r, tm_tokens *scratch, const json_t *row, int64_t line,
                                 tm_row_sink *s, tm_error *err)
{
    const char *prompt, *completion;
    size_t prompt_size, completion_size, first = s->ids.count, system_size = strlen(r->system);
    TM_TRY(get_text(r, row, TM_COLUMN_PROMPT, true, &prompt, &prompt_size, err));
    TM_TRY(get_text(r, row, TM_COLUMN_COMPLETION, false, &completion, &completion_size, err));
    if (system_size) {
        tm_buf_clear(&s->prompt);
        tm_buf_add(&s->prompt, r->system, system_size);
        tm_buf_add(&s->prompt, prompt, prompt_size);
        TM_TRY(tm_buf_check(&s->prompt, err));
        prompt = tm_buf_str(&s->prompt);
        prompt_size = s->prompt.size;
    }
    TM_TRY(tm_tokenizer_encode(r->tok, scratch, prompt, prompt_size, true, &s->ids, err));
    if (r->adds_eos && s->ids.count > first)
        s->ids.count--;
    size_t prompt_tokens = s->ids.count - first;
    TM_TRY(tm_tokenizer_encode(r->tok, scratch, completion, completion_size, false, &s->ids, err));
    size_t text_end = s->ids.count - first;
    if (r->eos >= 0 && (text_end == prompt_tokens || s->ids.id[s->ids.count - 1] != r->eos))
        TM_TRY(push_id(&s->ids, r->eos, err));
    TM_TRY(check_ids(r, &s->ids, first, err));
    size_t n = s->ids.count - first, from = r->loss == TM_LOSS_COMPLETION && prompt_tokens > 1 ? prompt_tokens : 1;
    bool masked = from > 1;
    if (masked)
        TM_TRY(put_weights(s, first, from, err));
    int64_t rows = s->stats.examples;
    TM_TRY(finish(r, s, first, masked, n > from ? (int64_t)(n - from) : 0, line, err));
    if (s->stats.examples > rows) { /* what the cut left of the text */
        size_t begin = r->loss == TM_LOSS_COMPLETION ? prompt_tokens : s->ids.id[first] == r->bos;
        size_t start = from > begin ? from : begin, end = (size_t)s->span[s->spans - 1].n;
        end = end < text_end ? end : text_end;
        int64_t kept = end > start ? (int64_t)(end - start) : 0, whole = (int64_t)text_end - (int64_t)begin;
        s->stats.text_bytes +=
            share((int64_t)completion_size + (r->loss == TM_LOSS_ALL ? (int64_t)prompt_size : 0), kept, whole);
    }
    return TM_OK;
}

/* A list of whole numbers of 32 bits. */
static tm_status get_list(const json_t *row, const char *name, const char *what, tm_ids *out, tm_error *err)
{
    const json_t *list = json_object_get(row, name);
    if (!json_is_array(list))
        return tm_fail(err, TM_INPUT, "%s: expected a list of %s, found %s", name, what, type_name(list));
    size_t n = json_array_size(list);
    TM_TRY(TM_GROW(&out->id, &out->capacity, n, err));
    for (out->count = 0; out->count < n; out->count++) {
        const json_t *value = json_array_get(list, out->count);
        json_int_t number = json_integer_value(value);
        if (!json_is_integer(value) || number != (int32_t)number)
            return tm_fail(err, TM_INPUT, "%s[%zu]: expected %s, found %s", name, out->count, what,
                           json_is_integer(value) ? "a number beyond 32 bits" : type_name(value));
        out->id[out->count] = (int32_t)number;
    }
    return TM_OK;
}

static tm_status get_lists(const tm_row_rules *r, const tm_row *row, tm_row_sink *s, bool *has_labels, tm_error *err)
{
    if (tm_row_scan_ids(r, row, &s->row_ids, &s->row_labels, has_labels))
        return TM_OK;
    json_t *json;
    TM_TRY(parse(row, &json, err));
    const json_t *labels = json_object_get(json, r->column[TM_COLUMN_LABELS]);
    *has_labels = labels && !json_is_null(labels);
    tm_status st = get_list(json, r->column[TM_COLUMN_IDS], "token ids", &s->row_ids, err);
    if (st == TM_OK && *has_labels)
        st = get_list(json, r->column[TM_COLUMN_LABELS], "token ids or -100", &s->row_labels, err);
    json_decref(json);
    return st;
}

/* Labels to weights; the number of targets and whether any but the first token is none. */
static tm_status use_labels(const tm_row_rules *r, tm_row_sink *s, size_t first, bool *masked, int64_t *targets,
                            tm_error *err)
{
    const char *name = r->column[TM_COLUMN_LABELS];
    const tm_ids *labels = &s->row_labels;
    size_t n = s->ids.count - first;
    if (labels->count != n)
        return tm_fail(err, TM_INPUT, "%s: %zu labels beside %zu token ids", name, labels->count, n);
    TM_TRY(put_weights(s, first, 1, err));
    *targets = 0;
    *masked = false;
    for (size_t i = 0; i < n; i++) {
        int32_t label = labels->id[i], id = s->ids.id[first + i];
        if (label != -100 && label != id)
            return tm_fail(err, TM_INPUT, "%s[%zu]: expected -100 or the token there, %d, found %d", name, i, id,
                           label);
        if (i == 0)
            continue; /* nothing predicts the first token */
        s->weight[first + i] = label == -100 ? 0 : 1;
        *masked |= label == -100;
        *targets += label != -100;
    }
    if (!*masked)
        s->weights = first;
    return TM_OK;
}

/* Bytes that the targets of the last example decode to; ids the tokenizer does not know count nothing. */
static tm_status decoded_bytes(const tm_row_rules *r, tm_row_sink *s, tm_error *err)
{
    const tm_span *span = &s->span[s->spans - 1];
    tm_ids known = {0};
    tm_status st = TM_OK;
    for (int32_t i = 1; i < span->n && st == TM_OK; i++) {
        size_t at = span->first + (size_t)i;
        if (s->ids.id[at] < tm_tokenizer_vocab_size(r->tok) && (!span->masked || s->weight[at] > 0))
            st = push_id(&known, s->ids.id[at], err);
    }
    tm_buf_clear(&s->prompt);
    if (st == TM_OK && tm_tokenizer_decode(r->tok, known.id, known.count, true, &s->prompt, NULL) == TM_OK)
        s->stats.text_bytes += (int64_t)s->prompt.size;
    tm_ids_deinit(&known);
    return st;
}

static tm_status read_tokens(const tm_row_rules *r, const tm_row *row, tm_row_sink *s, tm_error *err)
{
    size_t first = s->ids.count;
    bool masked = false, has_labels;
    TM_TRY(get_lists(r, row, s, &has_labels, err));
    size_t n = s->row_ids.count;
    int64_t targets = n ? (int64_t)n - 1 : 0, examples = s->stats.examples;
    TM_TRY(TM_GROW(&s->ids.id, &s->ids.capacity, first + n, err));
    for (size_t i = 0; i < n; i++) {
        int32_t id = s->row_ids.id[i];
        if (id < 0 || id >= r->vocab_size)
            return tm_fail(err, TM_INPUT, "%s[%zu]: %d is outside the vocabulary of %lld", r->column[TM_COLUMN_IDS], i,
                           id, (long long)r->vocab_size);
        s->ids.id[first + i] = id;
    }
    s->ids.count = first + n;
    if (has_labels && r->loss != TM_LOSS_ALL)
        TM_TRY(use_labels(r, s, first, &masked, &targets, err));
    TM_TRY(finish(r, s, first, masked, targets, row->line, err));
    return r->tok && s->stats.examples > examples ? decoded_bytes(r, s, err) : TM_OK;
}

tm_status tm_row_document(const tm_row_rules *r, tm_tokens *scratch, const char *text, size_t size, tm_row_sink *s,
                          tm_error *err)
{
    size_t first = s->ids.count;
    TM_TRY(tm_tokenizer_encode(r->tok, scratch, text, size, true, &s->ids, err));
    size_t n = s->ids.count - first;
    bool ended = n > 0 && s->ids.id[s->ids.count - 1] == r->eos;
    if (r->eos >= 0 && !ended)
        TM_TRY(push_id(&s->ids, r->eos, err));
    TM_TRY(check_ids(r, &s->ids, first, err));
    s->stats.rows++;
    s->stats.text_bytes += (int64_t)size;
    for (size_t i = first; i < s->ids.count; i++)
        s->text_tokens += s->ids.id[i] != r->bos && s->ids.id[i] != r->eos;
    return TM_OK;
}

tm_status tm_row_read(const tm_row_rules *r, tm_tokens *scratch, const tm_row *row, tm_row_sink *s, tm_error *err)
{
    if (r->format == TM_FORMAT_TOKENS)
        return read_tokens(r, row, s, err);
    json_t *json;
    TM_TRY(parse(row, &json, err));
    tm_status st;
    const char *text;
    size_t size;
    if (r->format == TM_FORMAT_COMPLETION) {
        st = read_completion(r, scratch, json, row->line, s, err);
    } else {
        st = get_text(r, json, TM_COLUMN_TEXT, false, &text, &size, err);
        if (st == TM_OK)
            st = tm_row_document(r, scratch, text, size, s, err);
    }
    json_decref(json);
    return st;
}
