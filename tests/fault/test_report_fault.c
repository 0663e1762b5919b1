/* The report and the event file while memory runs out and the disk fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../unit/folder.h"
#include "fault.h"
#include "report/events.h"
#include "report/report.h"

static const char RUN[] = "{\"status\": \"done\", \"recipe\": {\"method\": \"lora\", \"lora\": {\"r\": 4}}, \"sha256\": {\"model\": \"00\"},"
                          "\"evals\": [{\"name\": \"new\", \"metric\": \"loss\", \"probe\": false},"
                          "{\"name\": \"old\", \"metric\": \"kl\", \"probe\": true, \"max\": 0.1}], \"warnings\": [\"w\"]}";
static const char ROWS[] = "{\"step\": 0, \"eval\": {\"new\": {\"loss\": 4}, \"old\": {\"kl\": 0}}}\n"
                           "{\"step\": 1, \"loss\": 4, \"penalty\": 1, \"grad_norm\": 1, \"lr\": 0.1, \"tokens\": 5}\n"
                           "not a row\n"
                           "{\"step\": 2, \"eval\": {\"new\": {\"loss\": 3}, \"old\": {\"kl\": 0.05}}}\n";
static const char TIMING[] = "{\"step\": 1, \"seconds\": 1, \"tokens_per_s\": 5, \"share\": 0.5, \"bytes\": 100}\n";

static void store(const char *name, const char *text, size_t size)
{
    FILE *file = fopen(scratch(name), "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, size, file), size);
    fclose(file);
}

static tm_status write_report(tm_error *err) { return tm_report_write(scratch("."), err); }

/* The old page or the new one, whole. */
static void check_report(void)
{
    size_t size;
    char *page = slurp(scratch("report.html"), &size);
    bool old = size == 3 && !memcmp(page, "old", 3);
    bool whole = size > 8 && !memcmp(page + size - 8, "</html>\n", 8);
    free(page);
    assert_true(old || whole);
    store("report.html", "old", 3);
}

static void report(void **state)
{
    (void)state;
    store("run.json", RUN, sizeof RUN - 1);
    store("metrics.jsonl", ROWS, sizeof ROWS - 1);
    store("timing.jsonl", TIMING, sizeof TIMING - 1);
    store("report.html", "old", 3);
    fault_sweep("report", FAULT_CALLS | FAULT_ALLOCS, write_report, check_report);
}

static tm_status write_events(tm_error *err)
{
    static const char ROW[] = "{\"step\": 3, \"loss\": 1}";
    tm_events *events;
    TM_TRY(tm_events_open_run(scratch("."), &events, err));
    tm_status st = tm_events_row(events, ROW, sizeof ROW - 1, err);
    tm_events_close(events);
    return st;
}

static void events(void **state)
{
    (void)state;
    store("metrics.jsonl", ROWS, 60); /* the first row, whole */
    fault_sweep("events", FAULT_CALLS | FAULT_ALLOCS, write_events, NULL);
}

int main(void)
{
    fault_begin();
    const struct CMUnitTest tests[] = {cmocka_unit_test(report), cmocka_unit_test(events)};
    return cmocka_run_group_tests_name("report under failure", tests, scratch_begin, scratch_end);
}
