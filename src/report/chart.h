/* Line charts as inline SVG. Colours are CSS classes of the page (so that light and dark share one
 * drawing); numbers for the hover script ride along as data attributes, and without the script every
 * dot still has a title. Coordinates are printed with one decimal: the same input, the same bytes. */
#ifndef TM_REPORT_CHART_H
#define TM_REPORT_CHART_H

#include "base/buf.h"

typedef struct chart_point {
    double x, y;       /* a NaN y breaks the line */
    const char *label; /* title of the dot; NULL: none */
    const char *mark;  /* CHART_PATH: written beside the dot, where there is room (the first and the last always); NULL: nothing */
} chart_point;

typedef enum chart_look {
    CHART_LINE,  /* a line */
    CHART_FAINT, /* a thin, pale line: raw values behind a smoothed line; not in the legend */
    CHART_DOTS,  /* a line with a dot a point */
    CHART_PATH,  /* dots joined in order, coloured from the first to the last */
} chart_look;

typedef struct chart_series {
    const char *name;
    const char *color; /* class: c1 ... c6 */
    chart_look look;
    const chart_point *points;
    size_t count;
} chart_series;

typedef enum chart_scale { CHART_AUTO, CHART_LINEAR } chart_scale; /* auto: logarithmic where values span far */

typedef struct chart {
    const char *id, *x_label, *y_label;
    double width, height;
    chart_scale scale;
    bool x_reversed, y_reversed, x_steps; /* x_steps: whole numbers */
    bool y_percent;                       /* y values are shares */
    const chart_series *series;
    size_t series_count;
    double limit;            /* a horizontal line; NaN: none */
    const char *limit_label;
    int limit_side;          /* +1: values above it are shaded, -1: below, 0: none */
} chart;

/* Appends the <svg>; a sentence when there is nothing to draw. */
void chart_draw(tm_buf *out, const chart *c);

/* The gap between ticks: 1, 2 or 5 times a power of ten, that cuts span (> 0) into about n parts. */
double chart_gap(double span, int n);

/* Text with & < > " ' escaped; control characters become spaces, invalid UTF-8 becomes U+FFFD. */
void html_text(tm_buf *out, const char *text);
/* A number for people: 4 significant digits, 1,234,567 with separators for whole numbers. */
void html_number(tm_buf *out, double value);

#endif
