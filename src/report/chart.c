/* Line charts as inline SVG: see chart.h. */
#include "report/chart.h"

#include "base/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LEFT = 58, RIGHT = 16, TOP = 28, BOTTOM = 38, MAX_TICKS = 16, MAX_POINTS = 600 };
static const double HUGE_SIZE = 1e30;

/* A scale from values to pixels. */
typedef struct axis {
    double low, high;     /* of the values, padded */
    double start, length; /* pixels; length < 0 runs backwards */
    bool log;
    int ticks;
    double tick[MAX_TICKS];
    double gap; /* between ticks: decides the decimals */
} axis;

static double axis_at(const axis *a, double value)
{
    double share = a->log ? log(value / a->low) / log(a->high / a->low) : (value - a->low) / (a->high - a->low);
    return a->start + share * a->length;
}

double chart_gap(double span, int n)
{
    double raw = span / n, power = pow(10, floor(log10(raw)));
    double lead = raw / power;
    return power * (lead < 1.5 ? 1 : lead < 3.5 ? 2 : lead < 7.5 ? 5 : 10);
}

static void axis_ticks(axis *a, int wanted, bool whole)
{
    a->ticks = 0;
    if (a->log && a->high / a->low > 20) {
        static const double LEADS[] = {1, 2, 5};
        bool dense = a->high / a->low < 2000;
        double stride = pow(10, ceil(log10(a->high / a->low) / 8));
        for (double power = pow(10, floor(log10(a->low))); power <= a->high; power *= stride)
            for (int i = 0; i < (dense ? 3 : 1); i++) {
                double value = power * LEADS[i];
                if (value >= a->low * 0.999 && value <= a->high * 1.001 && a->ticks < MAX_TICKS)
                    a->tick[a->ticks++] = value;
            }
        a->gap = 0;
        return;
    }
    a->gap = chart_gap(a->high - a->low, wanted);
    if (whole && a->gap < 1)
        a->gap = 1;
    double first = ceil(a->low / a->gap - 1e-9);
    for (int i = 0; i < MAX_TICKS && (first + i) * a->gap <= a->high + a->gap * 1e-9; i++)
        a->tick[a->ticks++] = (first + i) * a->gap;
}

/* Range of values, padded so that lines do not lie on the frame. */
static void axis_fit(axis *a, double low, double high, bool may_log)
{
    a->log = may_log && low > 1 / HUGE_SIZE && high / low > 3;
    if (a->log) {
        double pad = pow(high / low, 0.05);
        a->low = low / pad;
        a->high = high * pad;
    } else {
        double pad = high > low ? (high - low) * 0.06 : fabs(high) > 0 ? fabs(high) * 0.1 : 1;
        /* Quantities that are never negative get no negative ground. */
        a->low = low >= 0 && low - pad < 0 ? 0 : low - pad;
        a->high = high + pad;
    }
}

static void put_tick(tm_buf *out, const axis *a, double value, bool percent)
{
    double gap = a->gap * (percent ? 100 : 1);
    if (percent)
        value *= 100;
    if (fabs(value) < gap * 1e-6)
        value = 0;
    double size = fabs(value), most = fmax(fabs(a->low), fabs(a->high)) * (percent ? 100 : 1);
    if (size > 0 && (most < 1e-2 || size < 1e-4 || size >= 1e6)) { /* one notation an axis */
        int power = (int)floor(log10(size) + 1e-9);
        tm_buf_printf(out, "%.3ge%d", value / pow(10, power), power);
    } else if (gap > 0 && value != 0)
        tm_buf_printf(out, "%.*f", gap >= 1 ? 0 : (int)ceil(-log10(gap) - 1e-9), value);
    else
        tm_buf_printf(out, "%g", value);
    if (percent)
        tm_buf_char(out, '%');
}

void html_text(tm_buf *out, const char *text)
{
    for (size_t left = strlen(text); left > 0;) {
        size_t whole = tm_utf8_prefix(text, left);
        for (size_t i = 0; i < whole; i++)
            switch (text[i]) {
            case '&': tm_buf_text(out, "&amp;"); break;
            case '<': tm_buf_text(out, "&lt;"); break;
            case '>': tm_buf_text(out, "&gt;"); break;
            case '"': tm_buf_text(out, "&quot;"); break;
            case '\'': tm_buf_text(out, "&#39;"); break;
            default: tm_buf_char(out, (unsigned char)text[i] < 0x20 || text[i] == 0x7f ? ' ' : text[i]);
            }
        text += whole;
        left -= whole;
        if (left > 0) {
            tm_buf_text(out, "\xef\xbf\xbd");
            text++;
            left--;
        }
    }
}

void html_number(tm_buf *out, double value)
{
    if (isnan(value)) {
        tm_buf_text(out, "–");
        return;
    }
    double size = fabs(value);
    if (size >= 1000 && size < 1e15) {
        char digits[32];
        int n = snprintf(digits, sizeof digits, "%.0f", size);
        if (value < 0)
            tm_buf_text(out, "−");
        for (int i = 0; i < n; i++) {
            if (i && (n - i) % 3 == 0)
                tm_buf_text(out, "&#8239;");
            tm_buf_char(out, digits[i]);
        }
    } else
        tm_buf_printf(out, "%s%.4g", value < 0 ? "−" : "", size);
}

/* --- Drawing --- */

typedef struct canvas {
    tm_buf *out;
    const chart *c;
    axis x, y;
} canvas;

/* False for NaN too. Beyond HUGE_SIZE the arithmetic of scales would overflow. */
static bool drawable(const chart_point *p) { return fabs(p->x) < HUGE_SIZE && fabs(p->y) < HUGE_SIZE; }

static bool fit(canvas *v)
{
    const chart *c = v->c;
    double x0 = INFINITY, x1 = -INFINITY, y0 = INFINITY, y1 = -INFINITY;
    for (size_t s = 0; s < c->series_count; s++)
        for (size_t i = 0; i < c->series[s].count; i++) {
            const chart_point *p = &c->series[s].points[i];
            if (!drawable(p))
                continue;
            x0 = fmin(x0, p->x);
            x1 = fmax(x1, p->x);
            y0 = fmin(y0, p->y);
            y1 = fmax(y1, p->y);
        }
    if (x0 > x1)
        return false;
    if (fabs(c->limit) < HUGE_SIZE) {
        y0 = fmin(y0, c->limit);
        y1 = fmax(y1, c->limit);
    }
    axis_fit(&v->x, x0, x1, false);
    axis_fit(&v->y, y0, y1, c->scale == CHART_AUTO);
    if (c->x_steps) {
        v->x.low = x0;
        v->x.high = x1 > x0 ? x1 : x0 + 1;
    }
    double w = c->width - LEFT - RIGHT, h = c->height - TOP - BOTTOM;
    v->x.start = c->x_reversed ? LEFT + w : LEFT;
    v->x.length = c->x_reversed ? -w : w;
    v->y.start = c->y_reversed ? TOP : TOP + h;
    v->y.length = c->y_reversed ? h : -h;
    axis_ticks(&v->x, c->width > 600 ? 10 : 6, c->x_steps);
    axis_ticks(&v->y, 5, false);
    return true;
}

static void draw_frame(canvas *v)
{
    const chart *c = v->c;
    tm_buf *out = v->out;
    double right = c->width - RIGHT, bottom = c->height - BOTTOM;
    for (int i = 0; i < v->y.ticks; i++) {
        double y = axis_at(&v->y, v->y.tick[i]);
        tm_buf_printf(out, "<line class=\"grid\" x1=\"%d\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT, right, y, y);
        tm_buf_printf(out, "<text class=\"tick end\" x=\"%d\" y=\"%.1f\">", LEFT - 8, y + 4);
        put_tick(out, &v->y, v->y.tick[i], c->y_percent);
        tm_buf_text(out, "</text>");
    }
    for (int i = 0; i < v->x.ticks; i++) {
        double x = axis_at(&v->x, v->x.tick[i]);
        tm_buf_printf(out, "<line class=\"tickmark\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", x, x, bottom, bottom + 4);
        tm_buf_printf(out, "<text class=\"tick mid\" x=\"%.1f\" y=\"%.1f\">", x, bottom + 17);
        put_tick(out, &v->x, v->x.tick[i], false);
        tm_buf_text(out, "</text>");
    }
    tm_buf_printf(out, "<line class=\"axis\" x1=\"%d\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT, right, bottom, bottom);
    tm_buf_printf(out, "<text class=\"label end\" x=\"%.1f\" y=\"%.1f\">", right, c->height - 5);
    html_text(out, c->x_label);
    tm_buf_printf(out, "</text><text class=\"label\" x=\"%d\" y=\"%d\">", 2, TOP - 15);
    html_text(out, c->y_label);
    tm_buf_printf(out, "%s</text>\n", v->y.log ? " (log scale)" : "");
}

static void draw_limit(canvas *v)
{
    const chart *c = v->c;
    if (!(fabs(c->limit) < HUGE_SIZE))
        return;
    double y = axis_at(&v->y, c->limit), right = c->width - RIGHT, bottom = c->height - BOTTOM;
    bool above = c->limit_side != 0 && (c->limit_side > 0) == (v->y.length < 0); /* on the page */
    if (c->limit_side)
        tm_buf_printf(v->out, "<rect class=\"beyond\" x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>", LEFT,
                      above ? (double)TOP : y, right - LEFT, fmax(0, above ? y - TOP : bottom - y));
    tm_buf_printf(v->out, "<line class=\"limit\" x1=\"%d\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT, right, y, y);
    /* The label stands on the allowed side, where there is room for it. */
    bool below = above ? y + 18 < bottom : y - TOP < 14;
    tm_buf_printf(v->out, "<text class=\"limit-label end\" x=\"%.1f\" y=\"%.1f\">", right - 6, below ? y + 14 : y - 6);
    html_text(v->out, c->limit_label);
    tm_buf_text(v->out, "</text>\n");
}

static void put_xy(canvas *v, const chart_point *p)
{
    tm_buf_printf(v->out, "%.1f,%.1f ", axis_at(&v->x, p->x), axis_at(&v->y, p->y));
}

/* Points worth drawing: at most about MAX_POINTS, keeping the lowest and the highest of every bucket,
 * so that no spike is lost. Calls back in order. */
static size_t thin(const chart_series *s, size_t *keep)
{
    size_t bucket = s->count > MAX_POINTS ? (2 * s->count + MAX_POINTS - 1) / MAX_POINTS : 1, n = 0;
    for (size_t start = 0; start < s->count; start += bucket) {
        size_t end = start + bucket < s->count ? start + bucket : s->count, low = start, high = start;
        for (size_t i = start; i < end; i++) {
            if (!(s->points[i].y >= s->points[low].y))
                low = i;
            if (!(s->points[i].y <= s->points[high].y))
                high = i;
        }
        keep[n++] = low < high ? low : high;
        if (low != high)
            keep[n++] = low < high ? high : low;
    }
    return n;
}

static void draw_line(canvas *v, const chart_series *s, const size_t *keep, size_t n)
{
    tm_buf *out = v->out;
    bool open = false;
    for (size_t i = 0; i < n; i++) {
        const chart_point *p = &s->points[keep[i]];
        if (!drawable(p)) {
            if (open)
                tm_buf_text(out, "\"/>");
            open = false;
            continue;
        }
        if (!open)
            tm_buf_printf(out, "<polyline class=\"%s %s\" points=\"", s->look == CHART_FAINT ? "faint" : "line", s->color);
        open = true;
        put_xy(v, p);
    }
    if (open)
        tm_buf_text(out, "\"/>");
}

static void draw_dots(canvas *v, const chart_series *s, const size_t *keep, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const chart_point *p = &s->points[keep[i]];
        if (!drawable(p))
            continue;
        bool first = i == 0, last = i + 1 == n, path = s->look == CHART_PATH;
        tm_buf_printf(v->out, "<circle class=\"dot %s\" cx=\"%.1f\" cy=\"%.1f\" r=\"%s\"", s->color, axis_at(&v->x, p->x),
                      axis_at(&v->y, p->y), path && (first || last) ? "6" : path ? "4" : "3");
        if (path) { /* from straw over purple to blue, as steel is tempered */
            double at = n > 1 ? 200.0 * (double)i / (double)(n - 1) : 200;
            tm_buf_printf(v->out, " style=\"fill:color-mix(in oklab,var(--t%d) %.0f%%,var(--t%d))\"", at < 100 ? 1 : 2,
                          at < 100 ? at : at - 100, at < 100 ? 0 : 1);
        }
        if (p->label) {
            tm_buf_text(v->out, "><title>");
            html_text(v->out, p->label);
            tm_buf_text(v->out, "</title></circle>");
        } else
            tm_buf_text(v->out, "/>");
    }
}

enum { MARK_WIDTH = 58, MARK_HEIGHT = 13, MOST_MARKS = 12 };

/* Beside the dots of a path, on whichever side of the frame's middle there is more room: first, last, then those between that
 * overlap none before. */
static void draw_marks(canvas *v, const chart_series *s, const size_t *keep, size_t n)
{
    double at[MOST_MARKS][2];
    int marks = 0;
    for (size_t k = 0; k < n && marks < MOST_MARKS; k++) {
        size_t i = k == 0 ? 0 : k == 1 ? n - 1 : k - 1;
        const chart_point *p = &s->points[keep[i]];
        if (!drawable(p) || !p->mark)
            continue;
        double x = axis_at(&v->x, p->x), y = axis_at(&v->y, p->y);
        bool left = x > v->c->width / 2, room = true;
        x += left ? -10 : 10;
        y += y < TOP + MARK_HEIGHT ? MARK_HEIGHT : -6;
        double from = left ? x - MARK_WIDTH : x;
        for (int m = 0; m < marks; m++)
            room &= fabs(from - at[m][0]) > MARK_WIDTH || fabs(y - at[m][1]) > MARK_HEIGHT;
        if (!room && k > 0)
            continue;
        at[marks][0] = from;
        at[marks++][1] = y;
        tm_buf_printf(v->out, "<text class=\"tick%s\" x=\"%.1f\" y=\"%.1f\">", left ? " end" : "", x, y);
        html_text(v->out, p->mark);
        tm_buf_text(v->out, "</text>");
    }
}

/* What the hover script needs: pixels and values of every drawn point. */
static void put_data(canvas *v, const chart_series *s, const size_t *keep, size_t n)
{
    tm_buf_printf(v->out, "<g class=\"series\" data-color=\"%s\" data-name=\"", s->color);
    html_text(v->out, s->name);
    tm_buf_text(v->out, "\" data-p=\"");
    for (size_t i = 0; i < n; i++) {
        const chart_point *p = &s->points[keep[i]];
        if (drawable(p))
            tm_buf_printf(v->out, "%.1f,%.1f,%.6g,%.5g;", axis_at(&v->x, p->x), axis_at(&v->y, p->y), p->x, p->y);
    }
    tm_buf_text(v->out, "\">");
}

void chart_draw(tm_buf *out, const chart *c)
{
    canvas v = {.out = out, .c = c};
    size_t most = 0;
    for (size_t s = 0; s < c->series_count; s++)
        most = c->series[s].count > most ? c->series[s].count : most;
    size_t *keep = malloc((most + 2) * sizeof *keep);
    if (!keep) {
        out->failed = true;
        return;
    }
    if (!fit(&v)) {
        tm_buf_text(out, "<p class=\"nothing\">Nothing was logged yet.</p>\n");
        free(keep);
        return;
    }
    bool wide = c->width > 600; /* on a narrow page it is moved sideways: shrunk to it nothing could be read */
    tm_buf_text(out, wide ? "<div class=\"wide\">" : "");
    tm_buf_printf(out, "<svg class=\"chart\" id=\"%s\" viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"", c->id, c->width, c->height);
    html_text(out, c->y_label);
    tm_buf_printf(out, "\" data-kind=\"%s\" data-box=\"%d,%d,%.0f,%.0f\" data-percent=\"%d\">\n", c->x_steps ? "steps" : "plane",
                  LEFT, TOP, c->width - RIGHT, c->height - BOTTOM, c->y_percent);
    draw_frame(&v);
    draw_limit(&v);
    for (size_t s = 0; s < c->series_count; s++) {
        const chart_series *series = &c->series[s];
        size_t n = thin(series, keep);
        put_data(&v, series, keep, n);
        draw_line(&v, series, keep, n);
        if (series->look == CHART_DOTS || series->look == CHART_PATH)
            draw_dots(&v, series, keep, n);
        if (series->look == CHART_PATH)
            draw_marks(&v, series, keep, n);
        tm_buf_text(out, "</g>\n");
    }
    tm_buf_text(out, wide ? "</svg></div>\n" : "</svg>\n");
    free(keep);
}
