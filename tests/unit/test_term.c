/* The progress line: never wider than the window, whole characters only, and no escape sequence where
 * none belongs. */
#include "base/term.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <utf8proc.h>

static const tm_progress_probe PROBES[] = {
    {"stories", 0.041, 0.1, false}, {"faits divers", -0.02, NAN, false}, {"старое", 0.2, 0.1, false}, {"kl", 0.03, 0.05, true}};

static tm_progress_values sample(void)
{
    return (tm_progress_values){.phase = "training", .step = 148, .steps = 400, .loss = 3.2141, .tokens_per_s = 34512, .share = 0.62,
                                .seconds_left = 41, .probes = PROBES, .probe_count = 1};
}

/* Columns of a line without its escape sequences; fails on anything that is not whole UTF-8. */
static int columns(const char *text, size_t size)
{
    int n = 0;
    for (size_t i = 0; i < size;) {
        if (text[i] == '\x1b') {
            while (i < size && !strchr("mK", text[i]))
                i++;
            i++;
            continue;
        }
        utf8proc_int32_t point;
        utf8proc_ssize_t bytes = utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(size - i), &point);
        assert_true(bytes > 0);
        assert_true(point >= 0x20 && point != 0x7f);
        n += utf8proc_charwidth(point);
        i += (size_t)bytes;
    }
    return n;
}

static void plain_line(void **state)
{
    (void)state;
    tm_buf line = {0};
    tm_progress_values v = sample();
    tm_progress_render(&line, &v, 0, false, false);
    assert_string_equal(tm_buf_str(&line), "training  (37%)  148/400  loss 3.214  stories 4.1% worse  34.5k tok/s  62% of limit  0:41 left");
    tm_buf_clear(&line);
    v = (tm_progress_values){.phase = "reading", .loss = NAN, .seconds_left = NAN};
    tm_progress_render(&line, &v, 0, false, true);
    assert_string_equal(tm_buf_str(&line), "reading");
    tm_buf_deinit(&line);
}

static void live_line(void **state)
{
    (void)state;
    tm_buf line = {0};
    tm_progress_values v = sample();
    tm_progress_render(&line, &v, 60, false, false);
    assert_string_equal(tm_buf_str(&line), "########...............  37%  148/400  loss 3.214  0:41 left");
    tm_buf_clear(&line);
    v.step = 400;
    tm_progress_render(&line, &v, 120, false, true);
    assert_non_null(strstr(tm_buf_str(&line), "██████████ 100%  400/400  loss 3.214  stories ▼4.1%  34.5k tok/s  62% of limit"));
    assert_null(strstr(tm_buf_str(&line), "░"));
    tm_buf_deinit(&line);
}

static void never_too_wide(void **state)
{
    (void)state;
    unsigned seed = (unsigned)time(NULL);
    srand(seed);
    tm_buf line = {0};
    for (int i = 0; i < 20000; i++) {
        tm_progress_values v = sample();
        v.steps = rand() % 3 ? rand() % 100000 : 0;
        v.step = v.steps ? rand() % (v.steps + 1) : 0;
        v.loss = rand() % 5 ? rand() / 1e6 : NAN;
        v.tokens_per_s = rand() % 5 ? pow(10, rand() % 9) : NAN;
        v.seconds_left = rand() % 5 ? pow(10, rand() % 12) : NAN;
        v.share = rand() % 2 ? NAN : 0.5;
        v.probe_count = rand() % 5;
        int width = 1 + rand() % 160;
        bool color = rand() % 2, unicode = rand() % 2;
        tm_buf_clear(&line);
        tm_progress_render(&line, &v, width, color, unicode);
        if (columns(tm_buf_str(&line), line.size) > width)
            fail_msg("seed %u, case %d: wider than %d: %s", seed, i, width, tm_buf_str(&line));
        assert_int_equal(strchr(tm_buf_str(&line), '\x1b') != NULL && !color, 0);
    }
    tm_buf_deinit(&line);
}

static void hostile_names(void **state)
{
    (void)state;
    tm_progress_probe probe = {"a\x1b[2J\n\xff\xd0", 0.01, NAN, false};
    tm_progress_values v = sample();
    v.probes = &probe;
    tm_buf line = {0};
    tm_progress_render(&line, &v, 120, false, true);
    columns(tm_buf_str(&line), line.size); /* asserts */
    assert_null(strchr(tm_buf_str(&line), '\x1b'));
    tm_buf_deinit(&line);
}

/* Everything that was written to fd and is waiting. */
static size_t drain(int fd, char *text, size_t size)
{
    ssize_t n = read(fd, text, size - 1);
    text[n > 0 ? n : 0] = 0;
    return n > 0 ? (size_t)n : 0;
}

static void piped(void **state)
{
    (void)state;
    int ends[2];
    char text[8192];
    assert_int_equal(pipe(ends), 0);
    tm_term term = tm_term_of(ends[1]);
    assert_false(term.live);
    assert_false(term.color);
    tm_progress p;
    tm_progress_begin(&p, term);
    tm_progress_values v = sample();
    for (v.step = 0; v.step < v.steps; v.step++)
        tm_progress_update(&p, &v);
    tm_progress_say(&p, "a warning");
    tm_progress_end(&p, &v);
    drain(ends[0], text, sizeof text);
    int lines = 0;
    for (const char *c = text; *c; c++)
        lines += *c == '\n';
    assert_int_equal(lines, 3); /* the first, the warning, the last: the loop took less than ten seconds */
    assert_null(strchr(text, '\x1b'));
    assert_null(strchr(text, '\r'));
    assert_non_null(strstr(text, "\na warning\ntraining  (100%)  400/400"));

    /* A short run: its last line is written at the end, and the first not twice. */
    tm_progress_begin(&p, term);
    v.step = 0;
    tm_progress_update(&p, &v);
    tm_progress_update(&p, &v);
    v.step = 1;
    tm_progress_update(&p, &v);
    tm_progress_end(&p, NULL);
    drain(ends[0], text, sizeof text);
    assert_non_null(strstr(text, "training  (0%)  0/400"));
    assert_non_null(strstr(text, "\ntraining  (0%)  1/400"));
    assert_null(strstr(strchr(strchr(text, '\n') + 1, '\n') + 1, "training"));
    close(ends[0]);
    close(ends[1]);
}

static void on_a_terminal(void **state)
{
    (void)state;
    char text[65536];
    int master = posix_openpt(O_RDWR | O_NOCTTY), slave = -1;
    if (master < 0 || grantpt(master) || unlockpt(master) || (slave = open(ptsname(master), O_RDWR | O_NOCTTY)) < 0) {
        if (master >= 0)
            close(master);
        print_message("skip: no pseudo terminal here\n");
        skip();
    }
    struct winsize size = {.ws_row = 5, .ws_col = 70};
    ioctl(slave, TIOCSWINSZ, &size);
    setenv("TERM", "xterm", 1);
    setenv("LC_ALL", "C.UTF-8", 1);
    unsetenv("NO_COLOR");
    tm_term term = tm_term_of(slave);
    assert_true(term.live && term.color && term.unicode);
    assert_int_equal(tm_term_width(&term), 70);
    setenv("NO_COLOR", "1", 1);
    setenv("LC_ALL", "C", 1);
    term = tm_term_of(slave);
    assert_true(term.live && !term.color && !term.unicode);
    setenv("TERM", "dumb", 1);
    assert_false(tm_term_of(slave).live);

    tm_progress p;
    tm_progress_begin(&p, term);
    tm_progress_values v = sample();
    tm_progress_update(&p, &v);
    size_t n = drain(master, text, sizeof text);
    assert_true(n > 4 && text[0] == '\r' && !strcmp(text + n - 3, "\x1b[K")); /* one write, no line end */
    assert_true(columns(text + 1, n - 1) < 70);
    p.last += 60;
    tm_progress_update(&p, &v); /* too soon, however slow the machine: nothing may be written */
    tm_progress_say(&p, "note");
    n = drain(master, text, sizeof text);
    assert_string_equal(text, "\r\x1b[Knote\r\n");
    tm_progress_end(&p, &v);
    n = drain(master, text, sizeof text);
    assert_true(n > 2 && text[0] == '\r' && !strcmp(text + n - 2, "\r\n"));
    close(slave);
    close(master);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_line),    cmocka_unit_test(live_line), cmocka_unit_test(never_too_wide),
        cmocka_unit_test(hostile_names), cmocka_unit_test(piped),     cmocka_unit_test(on_a_terminal),
    };
    return cmocka_run_group_tests_name("term", tests, NULL, NULL);
}
