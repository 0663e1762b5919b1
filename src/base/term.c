/* The progress line: see term.h. Rendering is a pure function of values, width and abilities; the
 * rest decides when to write. */
#include "base/term.h"

#include "base/clock.h"
#include "base/env.h"

#include <math.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <utf8proc.h>

/* --- What the terminal can do --- */

static bool locale_is_utf8(void)
{
    static const char *const NAMES[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (int i = 0; i < 3; i++) {
        const char *value = tm_env(NAMES[i]);
        if (value && *value) /* the first that is set decides */
            return strcasestr(value, "utf-8") || strcasestr(value, "utf8");
    }
    return false;
}

tm_term tm_term_of(int fd)
{
    const char *kind = tm_env("TERM"), *no_color = tm_env("NO_COLOR");
    bool live = isatty(fd) && kind && *kind && strcmp(kind, "dumb") != 0;
    return (tm_term){.fd = fd, .live = live, .color = live && !(no_color && *no_color), .unicode = locale_is_utf8()};
}

int tm_term_width(const tm_term *term)
{
    struct winsize size;
    return ioctl(term->fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

/* --- Rendering --- */

/* Colours of tempered steel from straw to blue, in the 256-colour palette. */
static const int STEEL[] = {221, 179, 173, 131, 96, 61, 67, 74};
enum { STEELS = sizeof STEEL / sizeof *STEEL, GREEN = 71, YELLOW = 178, RED = 167, GREY = 245 };

/* A piece of the line: its text, its columns, and how much it matters (0 most). */
typedef struct piece {
    char text[96];
    int color; /* -1: as is; -2: bold */
    int rank;
    bool shown;
} piece;

enum { MAX_PIECES = 16, BAR_LEAST = 10, BAR_MOST = 40 };

static int columns_of(const char *text)
{
    int columns = 0;
    for (size_t left = strlen(text); left > 0;) {
        utf8proc_int32_t point;
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)left, &point);
        columns += n > 0 ? utf8proc_charwidth(point) : 1;
        n = n > 0 ? n : 1;
        text += n;
        left -= (size_t)n;
    }
    return columns;
}

static void put_duration(char *out, size_t size, double seconds)
{
    int64_t s = (int64_t)fmin(seconds + 0.5, 1e9);
    if (s < 3600)
        snprintf(out, size, "%d:%02d left", (int)(s / 60), (int)(s % 60));
    else if (s < 360000)
        snprintf(out, size, "%dh%02dm left", (int)(s / 3600), (int)(s / 60 % 60));
    else
        snprintf(out, size, "%d days left", (int)(s / 86400));
}

static void put_rate(char *out, size_t size, double rate)
{
    if (rate >= 1e6)
        snprintf(out, size, "%.2fM tok/s", rate / 1e6);
    else if (rate >= 1e4)
        snprintf(out, size, "%.1fk tok/s", rate / 1e3);
    else
        snprintf(out, size, "%.0f tok/s", rate);
}

/* Cuts name at `columns`, never inside a character; control characters become spaces. */
static void put_name(char *out, size_t size, const char *name, int columns)
{
    size_t used = 0;
    while (*name && columns > 0) {
        utf8proc_int32_t point;
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)name, -1, &point);
        bool plain = n > 0 && point >= 0x20 && point != 0x7f && !(point >= 0x80 && point < 0xa0);
        size_t bytes = plain ? (size_t)n : 1;
        if (used + bytes + 1 > size)
            break;
        memcpy(out + used, plain ? name : " ", bytes);
        used += bytes;
        name += n > 0 ? n : 1;
        columns -= plain ? utf8proc_charwidth(point) : 1;
    }
    out[used] = 0;
}

static piece *add(piece *pieces, int *count, int rank, int color)
{
    piece *p = &pieces[(*count)++];
    *p = (piece){.color = color, .rank = rank, .shown = true};
    return p;
}

static void add_probe(piece *pieces, int *count, const tm_progress_probe *probe, bool unicode)
{
    char name[64];
    double used = probe->worse / probe->budget; /* NaN without a budget */
    if (isnan(probe->worse) || *count >= MAX_PIECES - 3)
        return;
    piece *p = add(pieces, count, 3, used > 1 ? RED : used > 0.5 ? YELLOW : GREEN);
    put_name(name, sizeof name, probe->name, 16);
    if (probe->nats)
        snprintf(p->text, sizeof p->text, "%s %.3f nats", name, probe->worse);
    else if (fabs(probe->worse) < 0.0005)
        snprintf(p->text, sizeof p->text, "%s %s0.0%%", name, unicode ? "±" : "");
    else if (unicode)
        snprintf(p->text, sizeof p->text, "%s %s%.1f%%", name, probe->worse > 0 ? "▼" : "▲", fabs(probe->worse) * 100);
    else
        snprintf(p->text, sizeof p->text, "%s %.1f%% %s", name, fabs(probe->worse) * 100, probe->worse > 0 ? "worse" : "better");
}

/* Everything there is to say, in the order of the line. */
static int gather(const tm_progress_values *v, bool plain, bool unicode, piece *pieces)
{
    int count = 0;
    piece *p = add(pieces, &count, 0, -2);
    if (v->steps > 0)
        snprintf(p->text, sizeof p->text, "%s%*d%%%s", plain ? "(" : "", plain ? 0 : 3, (int)(100 * v->step / v->steps), plain ? ")" : "");
    else
        put_name(p->text, sizeof p->text, v->phase ? v->phase : "working", 40);
    if (v->steps > 0) {
        p = add(pieces, &count, 1, GREY);
        snprintf(p->text, sizeof p->text, "%lld/%lld", (long long)v->step, (long long)v->steps);
    }
    if (!isnan(v->loss)) {
        p = add(pieces, &count, 1, -2);
        snprintf(p->text, sizeof p->text, "loss %.*f", fabs(v->loss) < 100 ? 3 : 0, v->loss);
    }
    for (int64_t i = 0; i < v->probe_count; i++)
        add_probe(pieces, &count, &v->probes[i], unicode);
    if (v->tokens_per_s > 0) {
        p = add(pieces, &count, 4, -1);
        put_rate(p->text, sizeof p->text, v->tokens_per_s);
    }
    if (v->per_minute > 0) {
        p = add(pieces, &count, 3, -1);
        snprintf(p->text, sizeof p->text, "%.*f/min", v->per_minute < 10 ? 1 : 0, v->per_minute);
    }
    if (v->share > 0) {
        p = add(pieces, &count, 5, GREY);
        snprintf(p->text, sizeof p->text, "%.0f%% of limit", v->share * 100);
    }
    if (v->seconds_left >= 0 && v->step < v->steps) {
        p = add(pieces, &count, 2, -1);
        put_duration(p->text, sizeof p->text, v->seconds_left);
    }
    return count;
}

static void put_color(tm_buf *out, int color)
{
    if (color == -2)
        tm_buf_text(out, "\x1b[1m");
    else if (color >= 0)
        tm_buf_printf(out, "\x1b[38;5;%dm", color);
}

/* Eighths of a block give the bar a resolution below one column. */
static void put_bar(tm_buf *out, double share, int width, bool color, bool unicode)
{
    static const char *const PART[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    int eighths = (int)(fmin(1, fmax(0, share)) * width * 8 + 0.5), full = eighths / 8, part = unicode ? eighths % 8 : 0;
    int last = -1;
    for (int i = 0; i < width; i++) {
        int hue = i < full || (i == full && part) ? STEEL[i * STEELS / width] : 238;
        if (color && hue != last)
            put_color(out, last = hue);
        if (i < full)
            tm_buf_text(out, unicode ? "█" : "#");
        else if (i == full && part)
            tm_buf_text(out, PART[part]);
        else
            tm_buf_text(out, unicode ? color ? "━" : "░" : ".");
    }
    if (color)
        tm_buf_text(out, "\x1b[0m");
}

/* Columns of what is shown, two spaces between pieces. */
static int width_of(const piece *pieces, int count)
{
    int width = 0;
    for (int i = 0; i < count; i++)
        if (pieces[i].shown)
            width += columns_of(pieces[i].text) + (width ? 2 : 0);
    return width;
}

/* Hides the least important until the line fits. */
static int make_fit(piece *pieces, int count, int room)
{
    int width;
    while ((width = width_of(pieces, count)) > room) {
        int worst = -1;
        for (int i = 0; i < count; i++)
            if (pieces[i].shown && (worst < 0 || pieces[i].rank >= pieces[worst].rank))
                worst = i;
        pieces[worst].shown = false;
    }
    return width;
}

void tm_progress_render(tm_buf *out, const tm_progress_values *v, int width, bool color, bool unicode)
{
    piece pieces[MAX_PIECES];
    bool plain = width <= 0;
    int count = gather(v, plain, unicode, pieces), bar = 0;
    if (plain) {
        if (v->phase && v->steps > 0)
            tm_buf_printf(out, "%s  ", v->phase);
    } else {
        bool has_bar = v->steps > 0 && width >= BAR_LEAST + 6;
        int used = make_fit(pieces, count, width - (has_bar ? BAR_LEAST + 1 : 0));
        bar = has_bar ? width - used - 1 : 0;
        bar = bar > BAR_MOST ? BAR_MOST : bar;
        if (bar)
            put_bar(out, (double)v->step / (double)v->steps, bar, color, unicode);
        if (bar && used)
            tm_buf_char(out, ' ');
    }
    bool first = true;
    for (int i = 0; i < count; i++) {
        if (!pieces[i].shown)
            continue;
        if (!first)
            tm_buf_text(out, "  ");
        first = false;
        if (color && pieces[i].color != -1)
            put_color(out, pieces[i].color);
        tm_buf_text(out, pieces[i].text);
        if (color && pieces[i].color != -1)
            tm_buf_text(out, "\x1b[0m");
    }
}

/* --- Writing --- */

static void write_line(tm_progress *p)
{
    size_t done = 0;
    while (!p->line.failed && done < p->line.size) {
        ssize_t n = write(p->term.fd, p->line.data + done, p->line.size - done);
        if (n <= 0)
            break;
        done += (size_t)n;
    }
    tm_buf_clear(&p->line);
}

static void render(tm_progress *p, const tm_progress_values *values)
{
    tm_buf_clear(&p->pending);
    if (p->term.live) {
        tm_buf_char(&p->pending, '\r');
        /* Three columns stay free: a full line wraps on some terminals, and Ctrl-C echoes ^C. */
        int width = tm_term_width(&p->term) - 3;
        tm_progress_render(&p->pending, values, width > 1 ? width : 1, p->term.color, p->term.unicode);
        tm_buf_text(&p->pending, "\x1b[K");
    } else {
        tm_progress_render(&p->pending, values, 0, false, p->term.unicode);
        tm_buf_char(&p->pending, '\n');
    }
}

static void draw(tm_progress *p)
{
    if (!p->pending.size)
        return;
    tm_buf_add(&p->line, p->pending.data, p->pending.size);
    tm_buf_clear(&p->pending);
    p->drawn = p->term.live;
    p->last = tm_clock_seconds();
    write_line(p);
}

void tm_progress_begin(tm_progress *p, tm_term term)
{
    *p = (tm_progress){.term = term, .last = -1e9};
}

/* A plain line of this step was written or is pending. */
static bool said(const tm_progress *p, const tm_progress_values *values)
{
    return !p->term.live && values->steps && values->step == p->step && p->last > 0;
}

void tm_progress_update(tm_progress *p, const tm_progress_values *values)
{
    double gap = p->term.live ? 1.0 / TM_FRAMES_A_SECOND : TM_PLAIN_SECONDS;
    if (said(p, values))
        return;
    p->step = values->step;
    render(p, values);
    if (tm_clock_seconds() - p->last >= gap)
        draw(p);
}

void tm_progress_say(tm_progress *p, const char *text)
{
    if (p->drawn)
        tm_buf_text(&p->line, "\r\x1b[K");
    tm_buf_printf(&p->line, "%s\n", text);
    p->drawn = false;
    p->last = p->term.live ? -1e9 : p->last; /* the line comes back at once */
    write_line(p);
}

void tm_progress_end(tm_progress *p, const tm_progress_values *values)
{
    if (values && !said(p, values))
        render(p, values);
    draw(p);
    if (p->drawn) {
        tm_buf_char(&p->line, '\n');
        write_line(p);
    }
    tm_buf_deinit(&p->line);
    tm_buf_deinit(&p->pending);
    p->drawn = false;
}
