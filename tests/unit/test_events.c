/* Event files are read back by an independent decoder: frames, checksums, protobuf fields. */
#include "base/file.h"
#include "report/events.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* CRC32C bit by bit, apart from the writer's table. */
static uint32_t crc32c(const unsigned char *p, size_t n)
{
    uint32_t crc = ~0u;
    while (n--) {
        crc ^= *p++;
        for (int i = 0; i < 8; i++)
            crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
    }
    return ~crc;
}

static uint32_t mask(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }

typedef struct event {
    double wall;
    int64_t step;
    char tag[64], version[32];
    float value;
} event;

static uint64_t varint(const unsigned char **p)
{
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        value |= (uint64_t)(**p & 0x7f) << shift;
        if (!(*(*p)++ & 0x80))
            return value;
    }
}

/* Fields of an Event, a Summary or a Value: the numbers never clash in what is written. */
static void decode(const unsigned char *p, const unsigned char *end, int depth, event *e)
{
    while (p < end) {
        uint64_t key = varint(&p), field = key >> 3;
        if (depth == 0 && key == (1 << 3 | 1)) {
            memcpy(&e->wall, p, 8);
            p += 8;
        } else if (depth == 0 && key == (2 << 3 | 0))
            e->step = (int64_t)varint(&p);
        else if (depth == 2 && key == (2 << 3 | 5)) {
            memcpy(&e->value, p, 4);
            p += 4;
        } else {
            assert_int_equal(key & 7, 2);
            uint64_t size = varint(&p);
            assert_true(size <= (uint64_t)(end - p));
            if (depth == 0 && field == 3)
                snprintf(e->version, sizeof e->version, "%.*s", (int)size, p);
            else if (depth == 2 && field == 1)
                snprintf(e->tag, sizeof e->tag, "%.*s", (int)size, p);
            else {
                assert_int_equal(field, depth == 0 ? 5 : 1);
                decode(p, p + size, depth + 1, e);
            }
            p += size;
        }
    }
    assert_ptr_equal(p, end);
}

static size_t read_events(const char *path, event *events, size_t most)
{
    tm_buf file = {0};
    assert_int_equal(tm_file_read(path, 1 << 24, &file, NULL), TM_OK);
    const unsigned char *p = (const unsigned char *)file.data, *end = p + file.size;
    size_t n = 0;
    while (p < end) {
        uint64_t size;
        uint32_t head, tail;
        assert_true(end - p >= 16);
        memcpy(&size, p, 8);
        memcpy(&head, p + 8, 4);
        assert_int_equal(head, mask(crc32c(p, 8)));
        assert_true(size + 16 <= (uint64_t)(end - p));
        memcpy(&tail, p + 12 + size, 4);
        assert_int_equal(tail, mask(crc32c(p + 12, size)));
        assert_true(n < most);
        events[n] = (event){.value = NAN};
        decode(p + 12, p + 12 + size, 0, &events[n++]);
        p += 16 + size;
    }
    tm_buf_deinit(&file);
    return n;
}

static char dir[] = "/tmp/temper-events-XXXXXX", path[128], metrics[128];

static int set_up(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return 1;
    snprintf(path, sizeof path, "%s/%s", dir, TM_EVENTS_FILE);
    snprintf(metrics, sizeof metrics, "%s/metrics.jsonl", dir);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return tm_dir_remove(dir, NULL) != TM_OK;
}

static void checksum_known_answer(void **state)
{
    (void)state;
    assert_int_equal(crc32c((const unsigned char *)"123456789", 9), 0xe3069283u); /* RFC 3720, appendix B.4 */
}

/* One number, tagged "name/v". */
static void add_number(tm_events *events, int64_t step, const char *name, float value)
{
    char row[600];
    int size = snprintf(row, sizeof row, "{\"step\": %lld, \"eval\": {\"%s\": {\"v\": %.9g}}}", (long long)step, name, (double)value);
    assert_true(size < (int)sizeof row);
    assert_int_equal(tm_events_row(events, row, (size_t)size, NULL), TM_OK);
}

static void numbers_come_back(void **state)
{
    (void)state;
    unsigned seed = (unsigned)time(NULL);
    srand(seed);
    enum { N = 500 };
    static event got[N + 1];
    static int64_t steps[N];
    static float values[N];
    tm_events *events;
    assert_int_equal(tm_events_create(path, &events, NULL), TM_OK);
    for (int i = 0; i < N; i++) {
        steps[i] = (int64_t)rand() << (rand() % 20);
        values[i] = (float)(rand() - RAND_MAX / 2) * 1e-6f;
        char name[64];
        snprintf(name, sizeof name, "%d/%.*s", i, rand() % 50, "a/very/long/tag/name/that/takes/the/summary/past/127");
        add_number(events, steps[i], name, values[i]);
    }
    tm_events_close(events);
    assert_int_equal(read_events(path, got, N + 1), N + 1);
    assert_string_equal(got[0].version, "brain.Event:2");
    for (int i = 0; i < N; i++)
        if (got[i + 1].step != steps[i] || got[i + 1].value != values[i] || got[i + 1].wall != (double)steps[i] || atoi(got[i + 1].tag) != i)
            fail_msg("seed %u: number %d differs", seed, i);
}

/* A long tag pushes every length past one byte. */
static void long_lengths(void **state)
{
    (void)state;
    char tag[400];
    memset(tag, 't', sizeof tag - 1);
    for (int n = 100; n < 400; n++) {
        tag[n - 1] = 't';
        tag[n] = 0;
        tm_events *events;
        event got[2];
        assert_int_equal(tm_events_create(path, &events, NULL), TM_OK);
        add_number(events, n, tag, 1);
        tm_events_close(events);
        assert_int_equal(read_events(path, got, 2), 2);
        assert_int_equal(got[1].step, n);
        tag[n] = 't';
    }
}

static const char *const ROWS[] = {
    "{\"step\": 0, \"eval\": {\"new\": {\"loss\": 5.5, \"kl\": null}, \"old\": {\"kl\": 0}}}\n",
    "{\"step\": 1, \"loss\": 5.25, \"penalty\": 0, \"grad_norm\": 1.5, \"lr\": 0.001, \"tokens\": 64}\n",
    "{\"step\": 2, \"loss\": null, \"penalty\": 0, \"grad_norm\": 1.5, \"lr\": 0.001, \"tokens\": 64}\n",
};

static void write_rows(int count, const char *rest)
{
    tm_buf text = {0};
    for (int i = 0; i < count; i++)
        tm_buf_text(&text, ROWS[i]);
    tm_buf_text(&text, rest);
    assert_int_equal(tm_file_write(metrics, tm_buf_str(&text), text.size, NULL), TM_OK);
    tm_buf_deinit(&text);
}

static void rows_become_tags(void **state)
{
    (void)state;
    static const struct {
        int64_t step;
        const char *tag;
        float value;
    } WANT[] = {{0, "new/loss", 5.5f},        {0, "old/kl", 0},           {1, "train/loss", 5.25f}, {1, "train/penalty", 0},
                {1, "train/grad_norm", 1.5f}, {1, "train/lr", 0.001f},    {1, "train/tokens", 64},  {2, "train/penalty", 0},
                {2, "train/grad_norm", 1.5f}, {2, "train/lr", 0.001f},    {2, "train/tokens", 64}};
    enum { N = sizeof WANT / sizeof *WANT };
    event got[N + 1];
    tm_events *events;
    write_rows(3, "{\"step\": 3, \"lo"); /* the last row is being written */
    assert_int_equal(tm_events_open_run(dir, &events, NULL), TM_OK);
    tm_events_close(events);
    assert_int_equal(read_events(path, got, N + 1), N + 1);
    for (int i = 0; i < N; i++) {
        assert_int_equal(got[i + 1].step, WANT[i].step);
        assert_string_equal(got[i + 1].tag, WANT[i].tag);
        assert_true(got[i + 1].value == WANT[i].value);
    }
}

static void resumed_equals_uninterrupted(void **state)
{
    (void)state;
    tm_buf whole = {0}, resumed = {0};
    for (int cut = 0; cut <= 3; cut++) {
        tm_events *events;
        write_rows(cut, "");
        assert_int_equal(tm_events_open_run(dir, &events, NULL), TM_OK);
        for (int i = cut; i < 3; i++)
            assert_int_equal(tm_events_row(events, ROWS[i], strlen(ROWS[i]), NULL), TM_OK);
        tm_events_close(events);
        tm_buf *into = cut ? &resumed : &whole;
        tm_buf_clear(into);
        assert_int_equal(tm_file_read(path, 1 << 20, into, NULL), TM_OK);
        if (cut) {
            assert_int_equal(whole.size, resumed.size);
            assert_memory_equal(whole.data, resumed.data, whole.size);
        }
    }
    tm_buf_deinit(&whole);
    tm_buf_deinit(&resumed);
}

static void failures(void **state)
{
    (void)state;
    tm_error err;
    tm_events *events;
    assert_int_equal(tm_events_create("/nowhere/at/all", &events, &err), TM_IO);
    assert_non_null(strstr(err.message, "/nowhere/at/all"));
    assert_int_equal(tm_events_create(path, &events, NULL), TM_OK);
    assert_int_equal(tm_events_row(events, "{\"step\"", 7, &err), TM_INPUT);
    tm_events_close(events);
    tm_events_close(NULL);
    if (access("/dev/full", W_OK) == 0)
        assert_int_equal(tm_events_create("/dev/full", &events, &err), TM_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checksum_known_answer), cmocka_unit_test(numbers_come_back),
        cmocka_unit_test(long_lengths),          cmocka_unit_test(rows_become_tags),
        cmocka_unit_test(resumed_equals_uninterrupted), cmocka_unit_test(failures),
    };
    return cmocka_run_group_tests_name("events", tests, set_up, tear_down);
}
