/* The report: says what the files say, survives files that are half there, and lets nothing through
 * unescaped. */
#include "base/file.h"
#include "report/report.h"
#include "report/sequence.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static char dir[] = "/tmp/temper-report-XXXXXX";
static unsigned seed;

static int set_up(void **state)
{
    (void)state;
    seed = (unsigned)time(NULL);
    srand(seed);
    return !mkdtemp(dir);
}

static int tear_down(void **state)
{
    (void)state;
    return tm_dir_remove(dir, NULL) != TM_OK;
}

static void store(const char *name, const char *text, size_t size)
{
    char *path = tm_path_join(dir, name, NULL);
    assert_int_equal(tm_file_write(path, text, size, NULL), TM_OK);
    free(path);
}

static void erase(void)
{
    assert_int_equal(tm_dir_remove(dir, NULL), TM_OK);
    assert_int_equal(mkdir(dir, 0777), 0);
}

/* run.json of a run whose probe "old" ends at `last` (starts at 1, budget 10 %). */
static void put_run(const char *status, const char *evil, double last)
{
    tm_buf text = {0};
    tm_buf_printf(&text,
                  "{\"temper\": \"9.8.7\", \"status\": \"%s\", \"recipe\": {\"model\": \"m/%s\", \"method\": \"lora\", \"lora\": {\"r\": 4},"
                  "\"data\": [{\"path\": \"a.txt\"}, {\"path\": \"b.txt\"}], \"train\": {\"max_grad_norm\": 1.0}},"
                  "\"device\": {\"name\": \"cpu\", \"detail\": \"scalar\"}, \"seeds\": {\"init\": 17}, \"sha256\": {\"model\": \"00ff\"},"
                  "\"steps\": 300, \"steps_done\": 300, \"tokens\": 1234567, \"seconds\": 135.5, \"planned_bytes\": 2000000,"
                  "\"peak_bytes\": 2000000, \"trained_parameters\": 5120, \"warnings\": [\"beware of %s\"],"
                  "\"evals\": [{\"name\": \"new%s\", \"metric\": \"loss\", \"probe\": false, \"max_drop\": null, \"max\": null, \"first\": 4.0, \"last\": 3.0},"
                  "{\"name\": \"old\", \"metric\": \"loss\", \"probe\": true, \"max_drop\": 0.1, \"max\": null, \"first\": 1.0, \"last\": %g, \"best\": 1}]}",
                  status, evil, evil, evil, last);
    store("run.json", tm_buf_str(&text), text.size);
    tm_buf_deinit(&text);
}

static void put_rows(int steps, const char *evil)
{
    tm_buf rows = {0}, timing = {0};
    for (int step = 0; step <= steps; step++) {
        if (step % 20 == 0)
            tm_buf_printf(&rows, "{\"step\": %d, \"eval\": {\"new%s\": {\"loss\": %g}, \"old\": {\"loss\": %g}}}\n", step, evil,
                          4.0 - step * 0.01, 1 + 0.0001 * step);
        if (!step)
            continue;
        tm_buf_printf(&rows, "{\"step\": %d, \"loss\": ", step);
        if (step % 50 == 7)
            tm_buf_text(&rows, "null");
        else
            tm_buf_printf(&rows, "%g", 4.0 - step * 0.005 + (rand() % 100) * 0.001);
        tm_buf_printf(&rows, ", \"penalty\": 0, \"grad_norm\": %g, \"lr\": %g, \"tokens\": 64}\n", 0.5 + (rand() % 100) * 0.01, 1e-4 * step);
        tm_buf_printf(&timing, "{\"step\": %d, \"seconds\": %g, \"tokens_per_s\": %d, \"share\": 0.5, \"bytes\": 2000000}\n", step, step * 0.2,
                      900 + rand() % 200);
    }
    store("metrics.jsonl", tm_buf_str(&rows), rows.size);
    store("timing.jsonl", tm_buf_str(&timing), timing.size);
    tm_buf_deinit(&rows);
    tm_buf_deinit(&timing);
}

/* Every element is closed in order; attributes are quoted; fails with the place. */
static void assert_well_formed(const char *html)
{
    static const char *const VOID[] = {"meta", "br", "!doctype"};
    char open[64][16];
    int depth = 0;
    const char *p = html;
    while ((p = strchr(p, '<'))) {
        bool close = *++p == '/';
        p += close;
        char name[16] = "";
        size_t n = strcspn(p, " >/\t\n");
        assert_true(n > 0 && n < sizeof name);
        memcpy(name, p, n);
        name[n] = 0;
        for (p += n; *p != '>'; p++) {
            assert_true(*p && *p != '<');
            if (*p == '"') {
                p = strchr(p + 1, '"');
                assert_non_null(p);
            }
        }
        bool alone = p[-1] == '/';
        for (size_t i = 0; i < sizeof VOID / sizeof *VOID; i++)
            alone |= !strcmp(name, VOID[i]);
        if (close) {
            assert_true(depth > 0);
            assert_string_equal(open[--depth], name);
        } else if (!alone) {
            assert_true(depth < 64);
            strcpy(open[depth++], name);
            if (!strcmp(name, "script") || !strcmp(name, "style")) { /* text up to the closing tag */
                p = strstr(p, !strcmp(name, "script") ? "</script>" : "</style>");
                assert_non_null(p);
                continue;
            }
        }
        p++;
    }
    assert_int_equal(depth, 0);
}

/* The page of dir, checked; the caller deinits. */
static tm_buf page(void)
{
    tm_buf html = {0};
    tm_error err = {0};
    tm_status st = tm_report_html(dir, &html, &err);
    if (st != TM_OK)
        fail_msg("seed %u: %s", seed, err.message);
    assert_well_formed(html.data);
    assert_null(strstr(html.data, "://")); /* nothing of the network ... */
    assert_null(strstr(html.data, "nan"));
    assert_null(strstr(html.data, ">inf"));
    return html;
}

static void assert_says(const tm_buf *html, const char *text)
{
    if (!strstr(html->data, text))
        fail_msg("seed %u: the page does not say '%s'", seed, text);
}

static void says_what_happened(void **state)
{
    (void)state;
    erase();
    put_run("done", "", 1.08);
    put_rows(300, "");
    tm_buf html = page();
    assert_says(&html, "<b>4.000</b> before, <b>3.000</b> after");
    assert_says(&html, "The old skill stayed within its budget.");
    assert_says(&html, "8.0 % worse");
    assert_says(&html, "−25 %");
    assert_says(&html, "budget: 10 % worse");
    assert_says(&html, "temper 9.8.7");
    assert_says(&html, "2 min 15 s");
    assert_says(&html, "1&#8239;234&#8239;567");
    assert_says(&html, "<th class=\"mono\">data.1.path</th><td class=\"mono\">b.txt</td>");
    assert_says(&html, "<th class=\"mono\">lora.r</th><td class=\"mono\">4</td><td class=\"help\">Rank of the low-rank matrices</td>");
    assert_says(&html, "00ff");
    assert_says(&html, ">start</text>"); /* the path is marked: its start, its end, steps between */
    assert_says(&html, ">step 300</text>");
    assert_says(&html, ">step 160</text>");
    for (const char *const *id = (const char *const[]){"loss", "probe", "plane", "rate", "norm", "speed", NULL}; *id; id++) {
        char text[64];
        snprintf(text, sizeof text, "<svg class=\"chart\" id=\"%s\"", *id);
        assert_says(&html, text);
    }
    tm_buf again = page();
    assert_string_equal(html.data, again.data);
    tm_buf_deinit(&again);
    tm_buf_deinit(&html);
    assert_int_equal(tm_report_write(dir, NULL), TM_OK);
    char *path = tm_path_join(dir, "report.html", NULL);
    assert_true(tm_path_exists(path));
    free(path);
}

static void says_a_breach(void **state)
{
    (void)state;
    erase();
    put_run("rolled_back", "", 1.2);
    put_rows(100, "");
    tm_buf html = page();
    assert_says(&html, "The old skill lost more than its budget allows.");
    assert_says(&html, "beyond its budget");
    assert_says(&html, "rolled back");
    assert_says(&html, "last evaluation within all budgets");
    tm_buf_deinit(&html);
}

static void escapes(void **state)
{
    (void)state;
    erase();
    /* JSON escapes: a script, quotes, a control character, Cyrillic */
    put_run("done\\\" onload=\\\"x", "</title><script>alert(1)</script>\\\"'&\\u0001имя", 1.0);
    put_rows(60, "</title><script>alert(1)</script>\\\"'&\\u0001имя");
    tm_buf html = page();
    assert_null(strstr(html.data, "<script>alert"));
    assert_null(strstr(html.data, "onload=\"x"));
    assert_says(&html, "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp; имя");
    tm_buf_deinit(&html);
}

static void runs_in_progress(void **state)
{
    (void)state;
    erase();
    put_rows(30, "");
    tm_buf html = page(); /* no run.json */
    assert_says(&html, "run.json is not there");
    assert_says(&html, "status unknown");
    tm_buf_deinit(&html);
    put_run("running", "", 1);
    store("metrics.jsonl", "", 0);
    store("timing.jsonl", "", 0);
    html = page(); /* nothing logged yet */
    assert_says(&html, "Nothing was logged yet.");
    tm_buf_deinit(&html);
    store("run.json", "{\"evals\": 5, \"recipe\": [], \"warnings\": {}, \"sha256\": 1, \"steps\": \"x\", \"device\": null}", 82);
    html = page(); /* wrong types everywhere */
    tm_buf_deinit(&html);
    erase();
    store("run.json", "{}", 2);
    html = page();
    assert_says(&html, "No evaluation of a new skill");
    tm_buf_deinit(&html);
}

static void damaged_rows(void **state)
{
    (void)state;
    erase();
    put_run("done", "", 1);
    static const char ROWS[] = "{\"step\": 1, \"loss\": 4}\nrubbish\n\n[1]\n{\"loss\": 3}\n{\"step\": 2, \"loss\": 1e308, \"grad_norm\": -1e308}\n"
                               "{\"step\": -5, \"eval\": {\"old\": 7}}\n{\"step\": 4, \"eval\": []}\n{\"step\": 3, \"lo";
    store("metrics.jsonl", ROWS, sizeof ROWS - 1);
    tm_buf html = page();
    assert_says(&html, "metrics.jsonl: 4 rows could not be read and are left out");
    tm_buf_deinit(&html);
}

/* Every file cut or flipped at random: a page or a clean refusal, never a crash. */
static void random_damage(void **state)
{
    (void)state;
    static const char *const FILES[] = {"run.json", "metrics.jsonl", "timing.jsonl"};
    for (int round = 0; round < 60; round++) {
        erase();
        put_run("done", "", 1);
        put_rows(rand() % 40, "");
        for (int f = 0; f < 3; f++) {
            char *path = tm_path_join(dir, FILES[f], NULL);
            tm_buf bytes = {0};
            assert_int_equal(tm_file_read(path, 1 << 20, &bytes, NULL), TM_OK);
            if (rand() % 2 && bytes.size)
                bytes.size = (size_t)rand() % bytes.size;
            for (int i = rand() % 4; i > 0 && bytes.size; i--)
                bytes.data[(size_t)rand() % bytes.size] = (char)rand();
            store(FILES[f], tm_buf_str(&bytes), bytes.size);
            tm_buf_deinit(&bytes);
            free(path);
        }
        tm_buf html = {0};
        assert_int_equal(tm_report_html(dir, &html, NULL), TM_OK);
        assert_well_formed(html.data);
        tm_buf_deinit(&html);
    }
}

/* A long run stays a small page, and no spike is lost. */
static void long_run(void **state)
{
    (void)state;
    erase();
    tm_buf rows = {0};
    for (int step = 1; step <= 50000; step++)
        tm_buf_printf(&rows, "{\"step\": %d, \"loss\": %g, \"penalty\": 0, \"grad_norm\": 1, \"lr\": 1e-3, \"tokens\": 1}\n", step,
                      step == 33333 ? 77.125 : 2.0 + (rand() % 1000) * 1e-3);
    store("metrics.jsonl", tm_buf_str(&rows), rows.size);
    tm_buf_deinit(&rows);
    tm_buf html = page();
    assert_says(&html, ",33333,77.125;");
    assert_true(html.size < 300000);
    tm_buf_deinit(&html);
}

/* Arms that are alike: their names stand beside one another in the plot, not on each other. */
static void names_of_arms_stand_apart(void **state)
{
    (void)state;
    enum { ARMS = 7 };
    struct {
        double x, y, width;
    } name[ARMS];
    tm_buf json = {0}, html = {0};
    erase();
    tm_buf_text(&json, "{\"tasks\": [{\"name\": \"a\", \"better\": \"higher\"}, {\"name\": \"b\", \"better\": \"lower\"}], \"arms\": [");
    for (int i = 0; i < ARMS; i++)
        tm_buf_printf(&json, "%s{\"name\": \"arm-%d\", \"kind\": \"sequence\", \"summary\": {\"learned\": {\"mean\": %g}, \"forgetting\": {\"mean\": %g}}}", i ? ", " : "", i, i == 6 ? 0.5 : 0.9 + i * 1e-4,
                      i == 6 ? 0.5 : 0.1 + (rand() % 100) * 1e-5);
    tm_buf_text(&json, "]}");
    store("results.json", tm_buf_str(&json), json.size);
    assert_int_equal(tm_sequence_report_write(dir, NULL), TM_OK);
    char *path = tm_path_join(dir, "report.html", NULL);
    assert_int_equal(tm_file_read(path, 1 << 20, &html, NULL), TM_OK);
    assert_well_formed(tm_buf_str(&html));
    assert_says(&html, "the metric of one task rises");
    int found = 0;
    for (const char *at = tm_buf_str(&html); found < ARMS && (at = strstr(at, "<circle class=\"spot")); found++) {
        at = strstr(at, "<text ");
        assert_int_equal(sscanf(at, "<text x=\"%lf\" y=\"%lf\"", &name[found].x, &name[found].y), 2);
        name[found].width = 5 * 6; /* arm-N */
        for (int i = 0; i < found; i++)
            if (fabs(name[i].x - name[found].x) < name[i].width && fabs(name[i].y - name[found].y) < 10)
                fail_msg("arms %d and %d: names at %g, %g and %g, %g; seed %u", i, found, name[i].x, name[i].y, name[found].x, name[found].y, seed);
    }
    assert_int_equal(found, ARMS);
    free(path);
    tm_buf_deinit(&json);
    tm_buf_deinit(&html);
}

static void not_a_run(void **state)
{
    (void)state;
    tm_error err;
    erase();
    tm_buf html = {0};
    assert_int_equal(tm_report_html(dir, &html, &err), TM_INPUT);
    assert_non_null(strstr(err.message, "neither run.json nor metrics.jsonl"));
    assert_int_equal(tm_report_write("/nowhere/at/all", &err), TM_INPUT);
    tm_buf_deinit(&html);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_what_happened), cmocka_unit_test(says_a_breach), cmocka_unit_test(escapes),
        cmocka_unit_test(runs_in_progress),   cmocka_unit_test(damaged_rows),  cmocka_unit_test(random_damage),
        cmocka_unit_test(long_run),           cmocka_unit_test(not_a_run),
        cmocka_unit_test(names_of_arms_stand_apart),
    };
    return cmocka_run_group_tests_name("report", tests, set_up, tear_down);
}
