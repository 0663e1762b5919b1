/* The page of a sequence: see sequence.h. What is not in results.json is left out; every text from it is escaped. */
#include "report/sequence.h"

#include "base/file.h"
#include "report/chart.h"
#include "report/page.h"
#include "report/run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LABELS = 190, ROW = 26, WIDTH = 980, MOST_NAMES = 64 };
static const double LETTER = 6.8; /* about as wide as one is */

typedef struct view {
    tm_buf *out;
    const json_t *json, *arms, *tasks;
} view;

static const char STYLE[] = "<style>.heat{display:flex;flex-wrap:wrap;gap:18px 28px}.heat figure{margin:0}.heat figcaption{font-weight:600;font-size:13px;margin-bottom:4px}"
                            ".heat table{width:auto;font-variant-numeric:tabular-nums}.heat td{padding:4px 9px;text-align:right;border:0;min-width:52px}"
                            ".heat th{width:auto;padding:4px 9px 4px 0;border:0;color:var(--soft);font-size:12.5px}.heat td i{display:block}"
                            "@media(prefers-color-scheme:dark){.heat{--c4:#2f7d6a}}" /* numbers stand on it */
                            ".scroll{overflow-x:auto}.arms td,.arms th{width:auto;white-space:nowrap;padding-right:10px;font-size:13px;font-variant-numeric:tabular-nums}"
                            ".whisker{stroke:var(--ink);stroke-width:1.5;stroke-opacity:.75}rect.mean{fill:var(--c1);fill-opacity:.75}rect.mean.old{fill:var(--c2)}rect.mean.end{fill:var(--c6)}"
                            ".whisker.pale{stroke-opacity:.28}.spot{fill:var(--c1)}.spot.old{fill:var(--c2)}.front{fill:none;stroke:var(--pale);stroke-dasharray:4 4}</style>\n";

static void put(view *v, const char *html) { tm_buf_text(v->out, html); }

/* Escaped; NULL is nothing. */
static void put_text(view *v, const char *text) { html_text(v->out, text ? text : ""); }

/* Numbers for people; a true minus. */
static void put_number(view *v, double value)
{
    char text[40];
    snprintf(text, sizeof text, "%.4g", fabs(value));
    if (isnan(value))
        put(v, "–");
    else
        tm_buf_printf(v->out, "%s%s", value < 0 ? "−" : "", text);
}

static double summary(const json_t *arm, const char *metric, const char *what) { return run_number(json_object_get(json_object_get(arm, "summary"), metric), what); }
static double against(const json_t *arm, const char *metric, const char *what) { return run_number(json_object_get(json_object_get(arm, "against_baseline"), metric), what); }
static bool is_kind(const json_t *arm, const char *kind) { return strcmp(run_text(arm, "kind"), kind) == 0; }
static bool is_true(const json_t *object, const char *key) { return json_is_true(json_object_get(object, key)); }

/* Whether a larger average is better: of the first task, as in the table. */
static bool rises(const view *v) { return strcmp(run_text(json_array_get(v->tasks, 0), "better"), "higher") == 0; }

static void open_card(view *v, const char *title, const char *text)
{
    tm_buf_printf(v->out, "<section class=\"card\"><h2>%s</h2><p class=\"soft small\">%s</p>\n", title, text);
}

/* --- Verdict and table --- */

static const json_t *best_arm(const view *v, const char *metric, double sign)
{
    const json_t *best = NULL;
    double most = -INFINITY;
    for (size_t i = 0; i < json_array_size(v->arms); i++) {
        const json_t *arm = json_array_get(v->arms, i);
        double value = sign * summary(arm, metric, "mean");
        if (is_kind(arm, "sequence") && value > most) {
            best = arm;
            most = value;
        }
    }
    return best;
}

static void put_finding(view *v, const char *before, const json_t *arm, const char *metric)
{
    put(v, before);
    put(v, "<b>");
    put_text(v, run_text(arm, "name"));
    put(v, "</b> (");
    put_number(v, summary(arm, metric, "mean"));
    put(v, ")");
}

static void put_head(view *v)
{
    size_t orders = json_array_size(json_object_get(v->json, "orders")), seeds = json_array_size(json_object_get(v->json, "seeds"));
    const json_t *learner = best_arm(v, "learned", rises(v) ? 1 : -1), *keeper = best_arm(v, "forgetting", -1);
    put(v, "<div class=\"brand\">temper · sequence</div><div class=\"head\"><h1>");
    for (size_t i = 0; i < json_array_size(v->tasks); i++) {
        put(v, i ? ", " : "");
        put_text(v, run_text(json_array_get(v->tasks, i), "name"));
    }
    tm_buf_printf(v->out, "</h1></div>\n<p class=\"soft\">%zu arms · %zu order%s · %zu seed%s · held against ", json_array_size(v->arms), orders, orders == 1 ? "" : "s", seeds, seeds == 1 ? "" : "s");
    put_text(v, run_text(v->json, "baseline"));
    put(v, "</p>\n");
    if (learner) {
        put(v, "<p class=\"verdict\">");
        put_finding(v, "Task by task, the most was learned by ", learner, "learned");
        if (keeper)
            put_finding(v, "; the least was forgotten by ", keeper, "forgetting");
        put(v, ".</p>\n");
    }
    const json_t *warnings = json_object_get(v->json, "warnings");
    if (!json_array_size(warnings))
        return;
    put(v, "<section class=\"card notes\"><b>Worth knowing</b><ul>");
    for (size_t i = 0; i < json_array_size(warnings); i++) {
        put(v, "<li>");
        put_text(v, json_string_value(json_array_get(warnings, i)));
        put(v, "</li>");
    }
    put(v, "</ul></section>\n");
}

static void put_cell(view *v, const json_t *arm, const char *metric)
{
    double mean = summary(arm, metric, "mean"), half = summary(arm, metric, "high") - mean;
    put(v, "<td>");
    put_number(v, mean);
    if (!isnan(half))
        tm_buf_printf(v->out, " <span class=\"soft\">± %.2g</span>", half);
    put(v, "</td>");
}

static void put_table(view *v)
{
    static const char *const metrics[] = {"average", "learned", "bwt", "fwt", "forgetting", "held"};
    bool probes = json_array_size(json_object_get(v->json, "probes")) > 0, diverged = false;
    open_card(v, "Arms", "Means with 95 % intervals over seeds (orders averaged first). Right: the average less the baseline's, pairs of the same seed, p by Student's t and Holm.");
    put(v, "<div class=\"scroll\"><table class=\"arms\"><tr><th>arm</th>");
    for (int m = 0; m < 5 + probes; m++)
        tm_buf_printf(v->out, "<th>%s</th>", metrics[m]);
    put(v, "<th>difference</th><th>p</th><th></th></tr>\n");
    for (size_t i = 0; i < json_array_size(v->arms); i++) {
        const json_t *arm = json_array_get(v->arms, i);
        double p = against(arm, "average", "p_holm");
        put(v, "<tr><td>");
        put_text(v, run_text(arm, "name"));
        put(v, "</td>");
        for (int m = 0; m < 5 + probes; m++)
            put_cell(v, arm, metrics[m]);
        put(v, "<td>");
        put_number(v, against(arm, "average", "difference"));
        put(v, "</td><td>");
        if (!isnan(p))
            tm_buf_printf(v->out, "%.2g", p);
        const char *kind = is_kind(arm, "joint") ? "all at once" : is_kind(arm, "frozen") ? "untrained" : is_true(arm, "old_data") ? "old data" : "";
        tm_buf_printf(v->out, "</td><td class=\"soft\">%s", kind);
        diverged |= run_number(arm, "diverged") > 0;
        if (run_number(arm, "diverged") > 0)
            tm_buf_printf(v->out, "%s%.0f of %zu chains diverged", *kind ? ", " : "", run_number(arm, "diverged"), json_array_size(json_object_get(arm, "chains")));
        put(v, "</td></tr>\n");
    }
    put(v, "</table></div>\n");
    bool mixed = false;
    for (size_t i = 1; i < json_array_size(v->tasks); i++)
        mixed |= strcmp(run_text(json_array_get(v->tasks, i), "better"), run_text(json_array_get(v->tasks, 0), "better")) != 0;
    if (mixed)
        put(v, "<p class=\"soft small\">No average and no “learned”: the metric of one task rises as it gets better and that of another falls.</p>\n");
    if (diverged)
        put(v, "<p class=\"soft small\">A chain whose training diverged keeps the model from before, learns nothing more, and counts as it is.</p>\n");
    put(v, "</section>\n");
}

/* --- Bars --- */

typedef struct axis {
    double low, high, from, to;
} axis;

static double at(const axis *a, double value) { return a->from + (a->high > a->low ? (value - a->low) / (a->high - a->low) : 0.5) * (a->to - a->from); }

static void stretch(axis *a, double value)
{
    if (isnan(value) || isinf(value))
        return;
    a->low = value < a->low ? value : a->low;
    a->high = value > a->high ? value : a->high;
}

/* Characters of UTF-8; NULL has none. */
static size_t text_length(const char *text)
{
    size_t n = 0;
    for (; text && *text; text++)
        n += ((unsigned char)*text & 0xC0) != 0x80;
    return n;
}

static const char *look(const json_t *arm) { return !is_kind(arm, "sequence") ? " end" : is_true(arm, "old_data") ? " old" : ""; }

static void put_bars(view *v, const char *metric, const char *title, const char *text)
{
    double labels = LABELS;
    for (size_t i = 0; i < json_array_size(v->arms); i++)
        labels = fmax(labels, 14 + LETTER * (double)text_length(run_text(json_array_get(v->arms, i), "name")));
    axis a = {0, 0, fmin(labels, WIDTH / 2), WIDTH - 90};
    size_t rows = 0;
    for (size_t i = 0; i < json_array_size(v->arms); i++) {
        const json_t *arm = json_array_get(v->arms, i);
        stretch(&a, summary(arm, metric, "mean"));
        stretch(&a, summary(arm, metric, "low"));
        stretch(&a, summary(arm, metric, "high"));
        rows += !isnan(summary(arm, metric, "mean"));
    }
    if (!rows)
        return;
    open_card(v, title, text);
    tm_buf_printf(v->out, "<div class=\"wide\"><svg viewBox=\"0 0 %d %zu\" width=\"100%%\" role=\"img\" aria-label=\"%s\"><line class=\"axis\" x1=\"%.1f\" x2=\"%.1f\" y1=\"0\" y2=\"%zu\"/>\n", WIDTH, rows * ROW, title,
                  at(&a, 0), at(&a, 0), rows * ROW);
    double y = 0;
    for (size_t i = 0; i < json_array_size(v->arms); i++) {
        const json_t *arm = json_array_get(v->arms, i);
        double mean = summary(arm, metric, "mean"), low = summary(arm, metric, "low"), high = summary(arm, metric, "high"), x = at(&a, mean), zero = at(&a, 0);
        if (isnan(mean))
            continue;
        tm_buf_printf(v->out, "<text class=\"end\" x=\"%.1f\" y=\"%.1f\">", a.from - 10, y + ROW * 0.66);
        put_text(v, run_text(arm, "name"));
        tm_buf_printf(v->out, "</text><rect class=\"mean%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" rx=\"2\"/>", look(arm), x < zero ? x : zero, y + 5, fabs(x - zero), ROW - 10);
        if (!isnan(low))
            tm_buf_printf(v->out, "<line class=\"whisker\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", at(&a, low), at(&a, high), y + ROW / 2.0, y + ROW / 2.0);
        tm_buf_printf(v->out, "<text class=\"end\" x=\"%d\" y=\"%.1f\">", WIDTH - 4, y + ROW * 0.66);
        put_number(v, mean);
        put(v, "</text>\n");
        y += ROW;
    }
    put(v, "</svg></div></section>\n");
}

/* --- The Pareto plot --- */

enum { MAX_TICKS = 12 }; /* what is drawn comes from a file: a gap may be lost against the values */

/* Lines across at round values of one axis, with their numbers: below, or to the left. */
static void put_ticks(view *v, const axis *a, const axis *across, bool upright)
{
    double gap = chart_gap(a->high > a->low ? a->high - a->low : 1, 5), edge = upright ? across->from : fmin(across->from, across->to);
    double first = ceil(a->low / gap - 1e-9);
    for (int i = 0; i < MAX_TICKS && (first + i) * gap <= a->high + gap * 1e-9; i++) {
        double value = first + i == 0 ? 0 : (first + i) * gap, place = at(a, value), along[2] = {across->from, across->to};
        tm_buf_printf(v->out, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/><text class=\"%s\" x=\"%.1f\" y=\"%.1f\">", upright ? place : along[0], upright ? place : along[1],
                      upright ? along[0] : place, upright ? along[1] : place, upright ? "mid" : "end", upright ? place : edge - 8, upright ? edge + 18 : place + 4);
        put_number(v, value);
        put(v, "</text>\n");
    }
}

typedef struct box {
    double left, right, top, bottom;
} box;

static bool meets(const box *a, const box *b) { return a->left < b->right && b->left < a->right && a->top < b->bottom && b->top < a->bottom; }

/* A name's place beside its spot where it covers no spot and no other name, if there is one; then it is one of the boxes too. */
static box place_name(box *taken, size_t *count, double px, double py, double width)
{
    static const double down[] = {-12, 12, -25, 25, -38, 38, -51, 51};
    box first = {0};
    for (size_t k = 0; k < 2 * sizeof down / sizeof *down; k++) {
        double left = k % 2 ? px - 9 - width : px + 9, middle = py + down[k / 2];
        box here = {left, left + width, middle - 6, middle + 6};
        bool room = left >= 0 && left + width <= WIDTH;
        for (size_t i = 0; i < *count && room; i++)
            room = !meets(&here, &taken[i]);
        if (!k)
            first = here;
        if (room) {
            taken[(*count)++] = here;
            return here;
        }
    }
    return first;
}

static void put_spot(view *v, const json_t *arm, const axis *x, const axis *y, box *taken, size_t *names)
{
    double px = at(x, summary(arm, "learned", "mean")), py = at(y, summary(arm, "forgetting", "mean"));
    const char *const metrics[] = {"learned", "forgetting"};
    for (int k = 0; k < 2; k++) {
        double low = summary(arm, metrics[k], "low"), high = summary(arm, metrics[k], "high");
        if (isnan(low))
            continue;
        low = at(k ? y : x, low);
        high = at(k ? y : x, high);
        tm_buf_printf(v->out, "<line class=\"whisker pale\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", k ? px : low, k ? px : high, k ? low : py, k ? high : py);
    }
    box name = place_name(taken, names, px, py, LETTER * (double)text_length(run_text(arm, "name")));
    tm_buf_printf(v->out, "<circle class=\"spot%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"%d\"/><text x=\"%.1f\" y=\"%.1f\">", look(arm), px, py, is_true(arm, "front") ? 6 : 4, name.left, name.bottom - 2);
    put_text(v, run_text(arm, "name"));
    put(v, "</text>\n");
}

static void put_pareto(view *v)
{
    axis x = {INFINITY, -INFINITY, 80, WIDTH - 130}, y = {INFINITY, -INFINITY, 360, 24};
    size_t count = 0;
    for (size_t i = 0; i < json_array_size(v->arms); i++) {
        const json_t *arm = json_array_get(v->arms, i);
        if (!is_kind(arm, "sequence") || isnan(summary(arm, "learned", "mean")) || isnan(summary(arm, "forgetting", "mean")))
            continue;
        static const char *const what[] = {"mean", "low", "high"};
        for (int k = 0; k < 3; k++) {
            stretch(&x, summary(arm, "learned", what[k]));
            stretch(&y, summary(arm, "forgetting", what[k]));
        }
        count++;
    }
    if (!count)
        return;
    double margin_x = (x.high - x.low) * 0.05, margin_y = (y.high - y.low) * 0.08;
    x = rises(v) ? (axis){x.low - margin_x, x.high + margin_x, x.from, x.to} : (axis){x.low - margin_x, x.high + margin_x, x.to, x.from};
    y = (axis){y.low - margin_y, y.high + margin_y, y.from, y.to};
    open_card(v, "New against old", "Right: learns more. Below: forgets less. Large dots: no other arm does both better. Orange: sees old data while it learns.");
    tm_buf_printf(v->out, "<div class=\"wide\"><svg viewBox=\"0 0 %d 410\" width=\"100%%\" role=\"img\" aria-label=\"learned against forgetting\">\n", WIDTH);
    put_ticks(v, &x, &y, true);
    put_ticks(v, &y, &x, false);
    box taken[2 * MOST_NAMES];
    size_t names = 0;
    for (int pass = 0; pass < 2; pass++) /* first where all spots are */
        for (size_t i = 0; i < json_array_size(v->arms) && i < MOST_NAMES; i++) {
            const json_t *arm = json_array_get(v->arms, i);
            double px = at(&x, summary(arm, "learned", "mean")), py = at(&y, summary(arm, "forgetting", "mean"));
            if (!is_kind(arm, "sequence") || isnan(px) || isnan(py))
                continue;
            if (pass)
                put_spot(v, arm, &x, &y, taken, &names);
            else
                taken[names++] = (box){px - 6, px + 6, py - 6, py + 6};
        }
    tm_buf_printf(v->out, "<text class=\"mid label\" x=\"%d\" y=\"404\">score of a task when it was just learned</text><text class=\"label\" x=\"80\" y=\"14\">forgetting</text></svg></div></section>\n", WIDTH / 2);
}

/* --- R --- */

static double cell_of(const json_t *chain, size_t i, size_t j)
{
    const json_t *value = json_array_get(json_array_get(json_object_get(chain, "R"), i), j);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

/* Mean over the seeds of order 1. */
static double mean_cell(const json_t *arm, size_t i, size_t j)
{
    const json_t *chains = json_object_get(arm, "chains");
    double sum = 0;
    size_t n = 0;
    for (size_t c = 0; c < json_array_size(chains); c++) {
        const json_t *chain = json_array_get(chains, c);
        if (run_number(chain, "order") == 1) {
            sum += cell_of(chain, i, j);
            n++;
        }
    }
    return n ? sum / (double)n : NAN;
}

static bool task_rises(const view *v, const char *name)
{
    for (size_t i = 0; i < json_array_size(v->tasks); i++)
        if (strcmp(run_text(json_array_get(v->tasks, i), "name"), name) == 0)
            return strcmp(run_text(json_array_get(v->tasks, i), "better"), "higher") == 0;
    return true;
}

/* An arm's table up to the tasks over its columns. */
static void open_table(view *v, const json_t *arm, const json_t *order, const char *corner)
{
    put(v, "<figure><figcaption>");
    put_text(v, run_text(arm, "name"));
    put(v, "</figcaption><table><tr><th>");
    put(v, corner);
    put(v, "</th>");
    for (size_t j = 0; j < json_array_size(order); j++) {
        put(v, "<th>");
        put_text(v, json_string_value(json_array_get(order, j)));
        put(v, "</th>");
    }
}

static void put_map(view *v, const json_t *arm, const json_t *order, const axis *scale)
{
    size_t T = json_array_size(order);
    open_table(v, arm, order, "");
    put(v, "</tr>\n");
    for (size_t i = 0; i <= T; i++) {
        put(v, i ? "<tr><th>after " : "<tr><th>start");
        put_text(v, i ? json_string_value(json_array_get(order, i - 1)) : "");
        put(v, "</th>");
        for (size_t j = 0; j < T; j++) {
            double value = mean_cell(arm, i, j), share = at(&scale[j], value);
            if (isnan(value))
                put(v, "<td class=\"soft\">");
            else
                tm_buf_printf(v->out, "<td style=\"background:color-mix(in srgb,var(--c4) %.0f%%,transparent)\">", 8 + 72 * share);
            put_number(v, value);
            put(v, "</td>");
        }
        put(v, "</tr>\n");
    }
    put(v, "</table></figure>\n");
}

static void put_maps(view *v)
{
    const json_t *order = json_array_get(json_object_get(v->json, "orders"), 0);
    size_t T = json_array_size(order);
    axis *scale = calloc(T + 1, sizeof *scale);
    if (!scale) {
        v->out->failed = true;
        return;
    }
    for (size_t j = 0; j < T; j++) {
        const char *name = json_string_value(json_array_get(order, j));
        bool up = task_rises(v, name ? name : "");
        scale[j] = (axis){INFINITY, -INFINITY, up ? 0 : 1, up ? 1 : 0};
        for (size_t a = 0; a < json_array_size(v->arms); a++)
            for (size_t i = 0; i <= T; i++)
                stretch(&scale[j], mean_cell(json_array_get(v->arms, a), i, j));
    }
    open_card(v, "Score of every task after every task", "Columns: the task that is scored, in the first order; rows: what was learned last. Means over seeds; the deeper the colour, the better within its column.");
    put(v, "<div class=\"heat scroll\">");
    for (size_t a = 0; a < json_array_size(v->arms); a++)
        put_map(v, json_array_get(v->arms, a), order, scale);
    put(v, "</div></section>\n");
    free(scale);
}

/* --- Separate modules --- */

/* An arm's chains summed over all of the first order: prompts of a task (rows) given to a module (columns). */
static void put_confusion(view *v, const json_t *arm, const json_t *order)
{
    const json_t *chains = json_object_get(arm, "chains");
    size_t T = json_array_size(order);
    open_table(v, arm, order, "prompts of \\ went to");
    put(v, "<th>score by id</th><th>by prompt</th></tr>\n");
    for (size_t i = 0; i < T; i++) {
        double by_id = 0, routed = 0, n = 0;
        put(v, "<tr><th>");
        put_text(v, json_string_value(json_array_get(order, i)));
        put(v, "</th>");
        for (size_t j = 0; j < T; j++) {
            double count = 0;
            for (size_t c = 0; c < json_array_size(chains); c++) {
                const json_t *chain = json_array_get(chains, c);
                const json_t *cell = json_array_get(json_array_get(json_object_get(chain, "confusion"), i), j), *rows = json_object_get(chain, "routed"), *score = json_array_get(json_array_get(rows, json_array_size(rows) - 1), i);
                if (run_number(chain, "order") != 1)
                    continue;
                count += json_number_value(cell);
                n += j == 0;
                by_id += j == 0 ? cell_of(chain, T, i) : 0;
                routed += j == 0 ? (json_is_number(score) ? json_number_value(score) : NAN) : 0;
            }
            put(v, i == j ? "<td><b>" : "<td>");
            put_number(v, count);
            put(v, i == j ? "</b></td>" : "</td>");
        }
        put(v, "<td>");
        put_number(v, n > 0 ? by_id / n : NAN);
        put(v, "</td><td>");
        put_number(v, n > 0 ? routed / n : NAN);
        put(v, "</td></tr>\n");
    }
    put(v, "</table></figure>\n");
}

static bool is_routed(const json_t *arm) { return json_object_get(json_array_get(json_object_get(arm, "chains"), 0), "confusion") != NULL; }

static void put_routing(view *v)
{
    bool any = false;
    for (size_t i = 0; i < json_array_size(v->arms); i++)
        any |= is_routed(json_array_get(v->arms, i));
    if (!any)
        return;
    open_card(v, "Separate modules", "Everywhere above the right module is known (by task id). Here a router chooses it by what the start model makes of the prompt: how many test prompts went where, and the scores both ways.");
    put(v, "<div class=\"heat scroll\">");
    for (size_t i = 0; i < json_array_size(v->arms); i++)
        if (is_routed(json_array_get(v->arms, i)))
            put_confusion(v, json_array_get(v->arms, i), json_array_get(json_object_get(v->json, "orders"), 0));
    put(v, "</div></section>\n");
}

/* --- What was chosen --- */

static void put_choices(view *v)
{
    bool any = false;
    for (size_t i = 0; i < json_array_size(v->arms); i++)
        any |= json_array_size(json_object_get(json_array_get(v->arms, i), "configurations")) > 0;
    if (!any)
        return;
    open_card(v, "Configurations", "Tried on validation sets with other seeds than the test's; the best average gain was chosen. Matched: the least forgetting among an arm's configurations that learn as much as every arm can, on the same sets.");
    put(v, "<div class=\"scroll\"><table class=\"arms\"><tr><th>arm</th><th>tried</th><th>chosen</th><th>matched forgetting</th></tr>\n");
    for (size_t i = 0; i < json_array_size(v->arms); i++) {
        const json_t *arm = json_array_get(v->arms, i), *configs = json_object_get(arm, "configurations");
        if (!json_array_size(configs))
            continue;
        put(v, "<tr><td>");
        put_text(v, run_text(arm, "name"));
        size_t diverged = 0;
        for (size_t c = 0; c < json_array_size(configs); c++)
            diverged += run_number(json_array_get(configs, c), "diverged") > 0;
        tm_buf_printf(v->out, "</td><td>%zu", json_array_size(configs));
        if (diverged)
            tm_buf_printf(v->out, " <span class=\"soft\">(%zu diverged)</span>", diverged);
        put(v, "</td><td class=\"mono\">");
        for (size_t c = 0; c < json_array_size(configs); c++) {
            const json_t *config = json_array_get(configs, c), *settings = json_object_get(config, "settings");
            for (size_t s = 0; is_true(config, "chosen") && s < json_array_size(settings); s++) {
                put(v, s ? ", " : "");
                put_text(v, json_string_value(json_array_get(settings, s)));
            }
        }
        put(v, "</td><td>");
        put_number(v, run_number(arm, "matched_forgetting"));
        put(v, "</td></tr>\n");
    }
    put(v, "</table></div></section>\n");
}

tm_status tm_sequence_report_write(const char *dir, tm_error *err)
{
    json_t *json = NULL;
    tm_buf html = {0};
    tm_status st = TM_OK;
    char *path = tm_path_join(dir, "results.json", err), *page = tm_path_join(dir, "report.html", err);
    if (!path || !page) {
        st = TM_NO_MEMORY;
        goto out;
    }
    TM_GO(tm_json_read(path, &json, err));
    view v = {&html, json, json_object_get(json, "arms"), json_object_get(json, "tasks")};
    page_open(&html, "temper sequence");
    put(&v, STYLE);
    put_head(&v);
    put_table(&v);
    put_pareto(&v);
    put(&v, "<div class=\"legend\"><span class=\"c1\"><i></i>without old data</span><span class=\"c2\"><i></i>sees old data</span><span class=\"c6\"><i></i>joint, frozen</span></div>\n");
    put_bars(&v, "average", "Average at the end", rises(&v) ? "Over all tasks; higher is better. Lines: 95 % intervals." : "Over all tasks; lower is better. Lines: 95 % intervals.");
    put_bars(&v, "forgetting", "Forgetting", "What a task lost from its best score; lower is better.");
    put_bars(&v, "bwt", "Backward transfer", "What later tasks did to a task since it was learned; higher is better.");
    put_maps(&v);
    put_routing(&v);
    put_choices(&v);
    page_close(&html, run_text(json, "temper"));
    TM_GO(tm_buf_check(&html, err));
    st = tm_file_write(page, html.data, html.size, err);
out:
    json_decref(json);
    tm_buf_deinit(&html);
    free(path);
    free(page);
    return st;
}
