/* TensorBoard event files, written by hand: see events.h.
 *
 * A file is a sequence of TFRecords: length (u64), masked CRC32C of the length, data, masked CRC32C of
 * the data, all little endian. The data is a protobuf Event {1: wall_time double, 2: step int64,
 * 3: file_version string, 5: Summary {1: Value {1: tag string, 2: simple_value float}}}. */
#include "report/events.h"

#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct tm_events {
    int fd;
    char *path;
    uint32_t crc[256];
    tm_buf summary, event, record; /* scratch */
};

/* Castagnoli's polynomial, reflected. */
static void crc_table(uint32_t *table)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0x82f63b78u : 0);
        table[i] = value;
    }
}

static uint32_t masked_crc(const uint32_t *table, const void *data, size_t size)
{
    uint32_t crc = 0xffffffffu;
    for (const unsigned char *p = data, *end = p + size; p < end; p++)
        crc = crc >> 8 ^ table[(crc ^ *p) & 0xff];
    crc = ~crc;
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static void put_fixed(tm_buf *out, uint64_t bits, int bytes)
{
    for (int i = 0; i < bytes; i++)
        tm_buf_char(out, (char)(bits >> (8 * i)));
}

static void put_varint(tm_buf *out, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        tm_buf_char(out, (char)(value | 0x80));
    tm_buf_char(out, (char)value);
}

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 }; /* wire types */

static void put_key(tm_buf *out, int field, int type) { put_varint(out, (uint64_t)(field << 3 | type)); }

static void put_bytes(tm_buf *out, int field, const void *data, size_t size)
{
    put_key(out, field, BYTES);
    put_varint(out, size);
    tm_buf_add(out, data, size);
}

static void put_double(tm_buf *out, int field, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(out, field, FIXED64);
    put_fixed(out, bits, 8);
}

static void put_float(tm_buf *out, int field, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(out, field, FIXED32);
    put_fixed(out, bits, 4);
}

/* Appends events->event as a record to events->record. */
static void frame(tm_events *events)
{
    tm_buf *record = &events->record;
    size_t start = record->size;
    put_fixed(record, events->event.size, 8);
    if (record->failed)
        return;
    put_fixed(record, masked_crc(events->crc, record->data + start, 8), 4);
    tm_buf_add(record, events->event.data, events->event.size);
    put_fixed(record, masked_crc(events->crc, events->event.data, events->event.size), 4);
}

/* Writes out what was framed. */
static tm_status flush(tm_events *events, tm_error *err)
{
    TM_TRY(tm_buf_check(&events->summary, err));
    TM_TRY(tm_buf_check(&events->event, err));
    TM_TRY(tm_buf_check(&events->record, err));
    size_t done = 0;
    while (done < events->record.size) {
        ssize_t n = write(events->fd, events->record.data + done, events->record.size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return tm_fail_errno(err, TM_IO, "%s: cannot write", events->path);
        done += (size_t)n;
    }
    tm_buf_clear(&events->record);
    return TM_OK;
}

static void add_scalar(tm_events *events, int64_t step, const char *tag, double value)
{
    tm_buf *summary = &events->summary, *event = &events->event;
    tm_buf_clear(summary);
    put_bytes(summary, 1, tag, strlen(tag));
    put_float(summary, 2, (float)value);
    tm_buf_clear(event);
    put_double(event, 1, (double)step); /* wall time: events.h */
    put_key(event, 2, VARINT);
    put_varint(event, (uint64_t)step);
    put_key(event, 5, BYTES); /* Summary, which holds one Value */
    size_t size = summary->size, prefix = 1;
    for (size_t rest = size; rest >= 0x80; rest >>= 7)
        prefix++;
    put_varint(event, 1 + prefix + size);
    put_bytes(event, 1, summary->data, size);
    if (!summary->failed && !event->failed)
        frame(events);
}

tm_status tm_events_create(const char *path, tm_events **out, tm_error *err)
{
    tm_events *events;
    tm_status st = TM_OK;
    TM_TRY(TM_NEW(&events, 1, err));
    events->fd = -1;
    crc_table(events->crc);
    events->path = tm_strdup(path, err);
    if (!events->path) {
        st = TM_NO_MEMORY;
        goto out;
    }
    events->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (events->fd < 0) {
        st = tm_fail_errno(err, TM_IO, "%s: cannot create", path);
        goto out;
    }
    put_double(&events->event, 1, 0);
    put_bytes(&events->event, 3, "brain.Event:2", 13);
    if (!events->event.failed)
        frame(events);
    TM_GO(flush(events, err));
    *out = events;
    return TM_OK;
out:
    tm_events_close(events);
    return st;
}

void tm_events_close(tm_events *events)
{
    if (!events)
        return;
    if (events->fd >= 0)
        close(events->fd);
    tm_buf_deinit(&events->summary);
    tm_buf_deinit(&events->event);
    tm_buf_deinit(&events->record);
    free(events->path);
    free(events);
}

/* The numbers of an object, tagged "prefix/key". */
static void add_numbers(tm_events *events, int64_t step, const char *prefix, const json_t *object, tm_buf *tag)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        if (!json_is_number(value) || !strcmp(key, "step"))
            continue;
        tm_buf_clear(tag);
        tm_buf_printf(tag, "%s/%s", prefix, key);
        add_scalar(events, step, tm_buf_str(tag), json_number_value(value));
    }
}

tm_status tm_events_row(tm_events *events, const char *row, size_t size, tm_error *err)
{
    json_t *json = NULL;
    tm_buf tag = {0};
    tm_status st;
    TM_GO(tm_json_parse(row, size, "metrics.jsonl", &json, err));
    int64_t step = json_integer_value(json_object_get(json, "step"));
    const json_t *evals = json_object_get(json, "eval");
    const char *name;
    json_t *values;
    if (!evals)
        add_numbers(events, step, "train", json, &tag);
    json_object_foreach((json_t *)evals, name, values)
        add_numbers(events, step, name, values, &tag);
    TM_GO(tm_buf_check(&tag, err));
    st = flush(events, err);
out:
    tm_buf_deinit(&tag);
    if (json)
        json_decref(json);
    return st;
}

tm_status tm_events_open_run(const char *run_dir, tm_events **out, tm_error *err)
{
    enum { MAX_METRICS_BYTES = 1 << 30 };
    char *metrics = tm_path_join(run_dir, "metrics.jsonl", err), *path = tm_path_join(run_dir, TM_EVENTS_FILE, err);
    tm_events *events = NULL;
    tm_buf rows = {0};
    tm_status st = TM_NO_MEMORY;
    if (!metrics || !path)
        goto out;
    TM_GO(tm_events_create(path, &events, err));
    if (tm_path_exists(metrics))
        TM_GO(tm_file_read(metrics, MAX_METRICS_BYTES, &rows, err));
    const char *at = tm_buf_str(&rows), *end = at + rows.size, *newline;
    for (; at < end && (newline = memchr(at, '\n', (size_t)(end - at))); at = newline + 1)
        TM_GO(tm_events_row(events, at, (size_t)(newline - at), err));
    *out = events;
    events = NULL;
out:
    tm_events_close(events);
    tm_buf_deinit(&rows);
    free(metrics);
    free(path);
    return st;
}
