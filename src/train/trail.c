/* trail.bin: a line of JSON that names the tensors, padded with spaces to a multiple of 8 bytes, then
 * a record a step: the step and a 64-bit hash a tensor, little-endian. docs/formats/trail.md. */
#include "train/trail.h"

#include "base/json.h"
#include "train/trainer.h"

tm_status tm_trail_header(const tm_trainer *t, tm_buf *out, tm_error *err)
{
    tm_buf_text(out, "{\"temper_trail\": 1, \"tensors\": [");
    for (int64_t i = 0; i < t->trained_count; i++) {
        tm_buf_text(out, i ? ", " : "");
        tm_json_put_string(out, t->trained_param[i]->name);
    }
    tm_buf_text(out, "]}");
    while (out->size % 8 != 7 && !out->failed)
        tm_buf_char(out, ' ');
    tm_buf_char(out, '\n');
    return tm_buf_check(out, err);
}

/* --- Reading --- */

static tm_status read_header(const json_t *header, const char *path, tm_names *tensors, tm_error *err)
{
    const json_t *list = json_object_get(header, "tensors");
    if (json_integer_value(json_object_get(header, "temper_trail")) != 1 || !json_is_array(list))
        return tm_fail(err, TM_INPUT, "%s: the first line is not that of a trail", path);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (!name)
            return tm_fail(err, TM_INPUT, "%s: name %zu of a tensor is no string", path, i);
        TM_TRY(tm_names_add(tensors, name, err));
    }
    return TM_OK;
}

tm_status tm_trail_open(const char *path, tm_trail *out, tm_error *err)
{
    *out = (tm_trail){0};
    tm_status st = TM_OK;
    json_t *header = NULL;
    TM_GO(tm_map_open(path, &out->map, err));
    const char *end = memchr(out->map.data, '\n', out->map.size);
    size_t head = end ? (size_t)(end - out->map.data) + 1 : 0;
    if (!head || head % 8)
        TM_GO(tm_fail(err, TM_INPUT, "%s: no first line of a multiple of 8 bytes", path));
    TM_GO(tm_json_parse(out->map.data, head, path, &header, err));
    TM_GO(read_header(header, path, &out->tensors, err));
    size_t record = 8 * (1 + (size_t)out->tensors.count);
    out->record = out->map.data + head;
    out->steps = (int64_t)((out->map.size - head) / record);
    out->rest = (out->map.size - head) % record;
out:
    json_decref(header);
    if (st != TM_OK)
        tm_trail_close(out);
    return st;
}

void tm_trail_close(tm_trail *trail)
{
    tm_map_close(&trail->map);
    tm_names_deinit(&trail->tensors);
    *trail = (tm_trail){0};
}

static uint64_t number_at(const tm_trail *t, int64_t record, int64_t i)
{
    const unsigned char *at = (const unsigned char *)t->record + 8 * (record * (1 + t->tensors.count) + i);
    uint64_t value = 0;
    for (int k = 7; k >= 0; k--)
        value = value << 8 | at[k];
    return value;
}

tm_trail_difference tm_trail_compare(const tm_trail *a, const tm_trail *b)
{
    int64_t names = a->tensors.count < b->tensors.count ? a->tensors.count : b->tensors.count;
    int64_t steps = a->steps < b->steps ? a->steps : b->steps, i = 0;
    while (i < names && strcmp(a->tensors.item[i], b->tensors.item[i]) == 0)
        i++;
    if (i < names || a->tensors.count != b->tensors.count)
        return (tm_trail_difference){.verdict = TM_TRAIL_TENSORS, .tensor = i < a->tensors.count ? a->tensors.item[i] : NULL};
    for (int64_t record = 0; record < steps; record++) {
        tm_trail_difference found = {.record = record, .step = number_at(a, record, 0)};
        found.verdict = found.step == number_at(b, record, 0) ? TM_TRAIL_VALUE : TM_TRAIL_STEP;
        for (i = 0; i < names && found.verdict == TM_TRAIL_VALUE; i++)
            if (number_at(a, record, 1 + i) != number_at(b, record, 1 + i)) {
                found.tensor = a->tensors.item[i];
                return found;
            }
        if (found.verdict == TM_TRAIL_STEP)
            return found;
    }
    bool same = a->steps == b->steps && a->rest == b->rest;
    return (tm_trail_difference){.verdict = same ? TM_TRAIL_EQUAL : TM_TRAIL_LENGTH, .record = steps};
}
