/* The page of a run: verdict first, then the curves, then what was run and on what. See report.h. */
#include "report/report.h"

#include "base/file.h"
#include "report/chart.h"
#include "report/page.h"
#include "report/run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct page {
    tm_buf *out;
    const char *dir;
    const run_data *run;
    const run_eval *skill; /* the new skill: the first evaluation that is no probe; NULL: none */
} page;

static void put(page *p, const char *html) { tm_buf_text(p->out, html); }

/* --- Small parts --- */

static void put_percent(page *p, double share, bool sign)
{
    double percent = share * 100;
    int decimals = fabs(percent) >= 9.95 ? 0 : fabs(percent) >= 0.995 ? 1 : 2;
    if (fabs(percent) < 0.005)
        decimals = 0;
    tm_buf_printf(p->out, "%s%.*f %%", percent < 0 && fabs(percent) >= 0.005 ? "−" : sign ? "+" : "", decimals, fabs(percent));
}

/* A value of a metric as people read it: accuracies in percent. */
static void put_value(page *p, run_metric metric, double value)
{
    if (isnan(value))
        put(p, "–");
    else if (metric == RUN_accuracy || metric == RUN_exact)
        tm_buf_printf(p->out, "%.1f %%", value * 100);
    else if (metric == RUN_kl)
        tm_buf_printf(p->out, fabs(value) < 1e-9 ? "0" : "%.4f", value);
    else
        tm_buf_printf(p->out, fabs(value) < 1e4 ? "%.3f" : "%.3g", value);
}

static void put_bytes(page *p, double bytes)
{
    static const char *const UNITS[] = {"B", "KB", "MB", "GB", "TB"};
    int unit = 0;
    if (isnan(bytes)) {
        put(p, "–");
        return;
    }
    while (bytes >= 999.5 && unit < 4) {
        bytes /= 1000;
        unit++;
    }
    tm_buf_printf(p->out, "%.*f %s", unit && bytes < 99.95 ? 1 : 0, bytes, UNITS[unit]);
}

static void put_seconds(page *p, double seconds)
{
    if (isnan(seconds))
        put(p, "–");
    else if (seconds < 100)
        tm_buf_printf(p->out, "%.*f s", seconds < 10 ? 2 : 0, seconds);
    else if (seconds < 6000)
        tm_buf_printf(p->out, "%d min %02d s", (int)(seconds / 60), (int)fmod(seconds, 60));
    else
        tm_buf_printf(p->out, "%d h %02d min", (int)(seconds / 3600), (int)fmod(seconds / 60, 60));
}

static void put_card(page *p, const char *title, const char *text)
{
    tm_buf_printf(p->out, "<section class=\"card\"><h2>%s</h2><p class=\"soft small\">%s</p>\n", title, text);
}

static const char *metric_word(run_metric metric)
{
    static const char *const WORDS[RUN_METRIC_COUNT] = {"loss", "perplexity", "token accuracy", "exact match", "KL to the base", "bits a byte",
                                                         "choices right", "choices right, by length", "exact match of texts", "answers right",
                                                         "ROUGE-L", "SARI", "round trips", "token F1 of round trips"};
    return WORDS[metric];
}

/* With the unit. */
static const char *metric_words(run_metric metric)
{
    return metric == RUN_loss ? "loss, nats a token" : metric == RUN_kl ? "KL to the base, nats" : metric_word(metric);
}

/* --- Verdict --- */

static const char *status_words(const char *status, const char **look)
{
    static const struct {
        const char *status, *words, *look;
    } TABLE[] = {
        {"running", "running", "warn"},
        {"done", "done", "good"},
        {"stopped", "stopped", "warn"},
        {"rolled_back", "rolled back", "bad"},
        {"diverged", "diverged", "bad"},
        {"failed", "failed", "bad"},
    };
    for (size_t i = 0; i < sizeof TABLE / sizeof *TABLE; i++)
        if (!strcmp(status, TABLE[i].status)) {
            *look = TABLE[i].look;
            return TABLE[i].words;
        }
    *look = "";
    return "status unknown";
}

static void put_meta(page *p)
{
    const json_t *run = p->run->json, *recipe = json_object_get(run, "recipe"), *device = json_object_get(run, "device");
    double done = run_number(run, "steps_done"), steps = run_number(run, "steps");
    if (isnan(done) && p->run->row_count)
        done = p->run->rows[p->run->row_count - 1].step;
    put(p, "<p class=\"soft\">");
    const char *separator = "";
    if (*run_text(recipe, "method")) {
        html_text(p->out, run_text(recipe, "method"));
        separator = " · ";
    }
    if (*run_text(recipe, "model")) {
        put(p, *separator ? " on " : "");
        html_text(p->out, run_text(recipe, "model"));
        separator = " · ";
    }
    if (!isnan(done)) {
        put(p, separator);
        html_number(p->out, done);
        if (!isnan(steps) && steps != done) {
            put(p, " of ");
            html_number(p->out, steps);
        }
        put(p, " steps");
        separator = " · ";
    }
    if (!isnan(run_number(run, "tokens"))) {
        put(p, separator);
        html_number(p->out, run_number(run, "tokens"));
        put(p, " tokens");
        separator = " · ";
    }
    if (!isnan(run_number(run, "seconds"))) {
        put(p, separator);
        put_seconds(p, run_number(run, "seconds"));
        separator = " · ";
    }
    if (*run_text(device, "name")) {
        put(p, separator);
        html_text(p->out, run_text(device, "name"));
        if (*run_text(device, "detail")) {
            put(p, " (");
            html_text(p->out, run_text(device, "detail"));
            put(p, ")");
        }
    }
    put(p, "</p>\n");
}

static bool beyond(const run_eval *eval)
{
    return run_eval_worsening(eval, eval->last) > run_eval_budget(eval); /* false without a budget */
}

/* The run in one or two sentences. */
static void put_sentence(page *p)
{
    const run_data *run = p->run;
    size_t probes = 0, budgets = 0, breaches = 0;
    for (size_t i = 0; i < run->eval_count; i++)
        if (run->evals[i].probe) {
            probes++;
            budgets += !isnan(run_eval_budget(&run->evals[i]));
            breaches += beyond(&run->evals[i]);
        }
    put(p, "<p class=\"verdict\">");
    if (p->skill && !isnan(p->skill->first) && !isnan(p->skill->last)) {
        double worse = run_eval_worsening(p->skill, p->skill->last);
        put(p, worse < 0 ? "The new skill got better: " : worse > 0 ? "The new skill got worse: " : "The new skill did not change: ");
        put(p, metric_word(p->skill->metric));
        put(p, " <b>");
        put_value(p, p->skill->metric, p->skill->first);
        put(p, "</b> before, <b>");
        put_value(p, p->skill->metric, p->skill->last);
        put(p, "</b> after. ");
    } else if (!p->skill)
        put(p, "No evaluation of a new skill was asked for. ");
    if (!probes)
        put(p, "Old skills were not measured.");
    else if (breaches && probes == 1)
        put(p, "<b>The old skill lost more than its budget allows.</b>");
    else if (breaches)
        tm_buf_printf(p->out, "<b>%zu of %zu old skills lost more than their budgets allow.</b>", breaches, probes);
    else if (budgets == probes)
        tm_buf_printf(p->out, probes == 1   ? "The old skill stayed within its budget."
                              : probes == 2 ? "Both old skills stayed within their budgets."
                                            : "All %zu old skills stayed within their budgets.", probes);
    else
        tm_buf_printf(p->out, "%zu of %zu old skills have a budget; none was exceeded.", budgets, probes);
    if (!strcmp(run_text(run->json, "status"), "rolled_back"))
        put(p, " The run ended when a budget was exceeded: the weights kept, and these figures, are those of the last evaluation within all budgets.");
    put(p, "</p>\n");
}

/* One evaluation: before, after, change, and how much of the budget is used. */
static void put_eval_card(page *p, const run_eval *eval)
{
    double worse = run_eval_worsening(eval, eval->last), budget = run_eval_budget(eval);
    bool bad = beyond(eval);
    tm_buf_printf(p->out, "<section class=\"card\"><div class=\"what\"><span>%s · ", eval->probe ? "Old skill" : "New skill");
    html_text(p->out, eval->name);
    put(p, "</span>");
    if (eval->probe && !isnan(budget))
        tm_buf_printf(p->out, "<span class=\"pill %s\">%s</span>", bad ? "bad" : "good", bad ? "beyond its budget" : "kept");
    else if (!isnan(worse) && eval->metric != RUN_kl) {
        tm_buf_printf(p->out, "<span class=\"pill %s\">", worse < 0 ? "good" : worse > 0 ? "bad" : "");
        put_percent(p, eval->first > 0 ? (eval->last - eval->first) / eval->first : NAN, true);
        put(p, "</span>");
    }
    put(p, "</div><div class=\"figure\"><span class=\"was\">");
    put_value(p, eval->metric, eval->first);
    put(p, "</span><span class=\"to\">→</span>");
    put_value(p, eval->metric, eval->last);
    put(p, "</div>");
    if (eval->probe && !isnan(budget) && !isnan(worse)) {
        double used = budget > 0 ? worse / budget : worse > 0 ? 1 : 0;
        tm_buf_printf(p->out, "<div class=\"bar %s\"><i style=\"width:%.1f%%\"></i></div>", bad ? "bad" : "", 100 * fmin(1, fmax(0, used)));
    }
    put(p, "<p class=\"soft small\">");
    put(p, metric_words(eval->metric));
    if (eval->metric == RUN_loss && eval->first < 20 && eval->last < 20) {
        tm_buf_printf(p->out, " · perplexity %.4g → %.4g", exp(eval->first), exp(eval->last));
    }
    if (eval->probe && eval->metric != RUN_kl && !isnan(worse)) {
        put(p, "<br>");
        put_percent(p, fabs(worse), false);
        put(p, worse > 0 ? " worse" : " better");
    }
    if (eval->probe && !isnan(budget)) {
        put(p, eval->metric == RUN_kl ? "<br>budget " : " · budget ");
        if (eval->metric == RUN_kl)
            tm_buf_printf(p->out, "%.4g", budget);
        else
            put_percent(p, budget, false);
    }
    put(p, "</p></section>\n");
}

static void put_notes(page *p)
{
    const json_t *warnings = json_object_get(p->run->json, "warnings");
    if (!json_array_size(warnings) && !p->run->notes.count)
        return;
    put(p, "<section class=\"card notes\"><b>Worth knowing</b><ul>\n");
    size_t i;
    json_t *warning;
    json_array_foreach(warnings, i, warning)
        if (json_is_string(warning)) {
            put(p, "<li>");
            html_text(p->out, json_string_value(warning));
            put(p, "</li>\n");
        }
    for (int64_t k = 0; k < p->run->notes.count; k++) {
        put(p, "<li>");
        html_text(p->out, p->run->notes.item[k]);
        put(p, "</li>\n");
    }
    put(p, "</ul></section>\n");
}

static void put_verdict(page *p)
{
    const char *look, *words = status_words(run_text(p->run->json, "status"), &look);
    /* The folder's own name: a path of this machine has no place in a report. */
    size_t end = strlen(p->dir);
    while (end > 1 && p->dir[end - 1] == '/')
        end--;
    size_t start = end;
    while (start > 0 && p->dir[start - 1] != '/')
        start--;
    tm_buf name = {0};
    tm_buf_add(&name, p->dir + start, end - start);
    p->out->failed |= name.failed;
    put(p, "<div class=\"brand\">temper · run</div><div class=\"head\"><h1>");
    html_text(p->out, tm_buf_str(&name));
    tm_buf_printf(p->out, "</h1><span class=\"pill %s\">%s</span></div>\n", look, words);
    tm_buf_deinit(&name);
    put_meta(p);
    put_sentence(p);
    put(p, "<div class=\"cards\">\n");
    for (size_t i = 0; i < p->run->eval_count; i++)
        if (!p->run->evals[i].probe)
            put_eval_card(p, &p->run->evals[i]);
    for (size_t i = 0; i < p->run->eval_count; i++)
        if (p->run->evals[i].probe)
            put_eval_card(p, &p->run->evals[i]);
    put(p, "</div>\n");
    put_notes(p);
}

/* --- Curves --- */

/* Values of one column over steps; the caller frees. */
static chart_point *row_points(page *p, size_t column)
{
    const run_data *run = p->run;
    chart_point *points = malloc((run->row_count + 1) * sizeof *points);
    if (!points) {
        p->out->failed = true;
        return NULL;
    }
    for (size_t i = 0; i < run->row_count; i++)
        points[i] = (chart_point){run->rows[i].step, *(const double *)((const char *)&run->rows[i] + column), NULL, NULL};
    return points;
}
#define ROW_POINTS(p, field) row_points((p), offsetof(run_row, field))

/* The mean of about a fortieth of the run around every step; towards the ends the window shrinks on
 * both sides alike, so that the curve neither lags nor bends. */
static chart_point *smoothed(page *p, const chart_point *points, size_t count)
{
    enum { WIDEST = 250 };
    chart_point *smooth = malloc((count + 1) * sizeof *smooth);
    if (!smooth) {
        p->out->failed = true;
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        size_t half = count / 80 + 1, n = 0;
        half = half > WIDEST ? WIDEST : half;
        half = half > i ? i : half;
        half = half > count - 1 - i ? count - 1 - i : half;
        double sum = 0;
        for (size_t k = i - half; k <= i + half; k++)
            if (isfinite(points[k].y)) {
                sum += points[k].y;
                n++;
            }
        smooth[i] = (chart_point){points[i].x, n && isfinite(points[i].y) ? sum / (double)n : NAN, NULL, NULL};
    }
    return smooth;
}

static chart_point *eval_points(page *p, const run_eval *eval, run_metric metric)
{
    chart_point *points = malloc((eval->count + 1) * sizeof *points);
    if (!points) {
        p->out->failed = true;
        return NULL;
    }
    for (size_t i = 0; i < eval->count; i++)
        points[i] = (chart_point){eval->rows[i].step, eval->rows[i].value[metric], NULL, NULL};
    return points;
}

static void put_legend(page *p, const chart *c)
{
    put(p, "<div class=\"legend\">");
    for (size_t i = 0; i < c->series_count; i++)
        if (c->series[i].look != CHART_FAINT) {
            tm_buf_printf(p->out, "<span><i class=\"%s\"></i>", c->series[i].color);
            html_text(p->out, c->series[i].name);
            put(p, "</span>");
        }
    put(p, "</div>\n");
}

static void put_loss(page *p)
{
    enum { MOST = 8, SMOOTH_FROM = 60 };
    static const char *const COLORS[] = {"c2", "c3", "c4", "c5"};
    const run_data *run = p->run;
    chart_series series[MOST];
    chart_point *owned[MOST] = {0};
    char names[MOST][64];
    size_t n = 0;
    owned[n] = ROW_POINTS(p, loss);
    bool smooth = run->row_count >= SMOOTH_FROM;
    series[n] = (chart_series){smooth ? "" : "training", "c1", smooth ? CHART_FAINT : CHART_LINE, owned[n], owned[n] ? run->row_count : 0};
    n++;
    if (smooth && owned[0]) {
        owned[n] = smoothed(p, owned[0], run->row_count);
        series[n] = (chart_series){"training, smoothed", "c1", CHART_LINE, owned[n], owned[n] ? run->row_count : 0};
        n++;
    }
    for (size_t i = 0, color = 0; i < run->eval_count && n < MOST; i++) {
        const run_eval *eval = &run->evals[i];
        if (eval->probe)
            continue;
        owned[n] = eval_points(p, eval, RUN_loss);
        snprintf(names[n], sizeof names[n], "%s, held out", eval->name);
        series[n] = (chart_series){names[n], COLORS[color++ % 4], CHART_DOTS, owned[n], owned[n] ? eval->count : 0};
        n++;
    }
    chart c = {.id = "loss", .x_label = "step", .y_label = "loss, nats a token", .width = 1000, .height = 340, .x_steps = true,
               .series = series, .series_count = n, .limit = NAN};
    put_card(p, "Learning", "Loss of the training steps, and on text that was never trained on.");
    put_legend(p, &c);
    chart_draw(p->out, &c);
    put(p, "</section>\n");
    for (size_t i = 0; i < n; i++)
        free(owned[i]);
}

/* The value of eval's metric at a step; NaN when it was not measured then. */
static double eval_at(const run_eval *eval, double step)
{
    for (size_t i = 0; i < eval->count; i++)
        if (eval->rows[i].step == step)
            return eval->rows[i].value[eval->metric];
    return NAN;
}

/* The value at which a probe's budget ends; NaN = none. */
static double limit_of(const run_eval *probe)
{
    double budget = run_eval_budget(probe);
    if (probe->metric == RUN_kl)
        return budget;
    return run_metric_smaller_is_better(probe->metric) ? probe->first * (1 + budget) : probe->first * (1 - budget);
}

static void put_limit(const run_eval *probe, chart *c, char *label, size_t size)
{
    c->limit = limit_of(probe);
    c->limit_side = run_metric_smaller_is_better(probe->metric) ? 1 : -1;
    c->limit_label = label;
    if (probe->metric == RUN_kl)
        snprintf(label, size, "budget: %.4g nats", probe->max);
    else
        snprintf(label, size, "budget: %.3g %% worse", probe->max_drop * 100);
    c->y_percent = probe->metric == RUN_accuracy || probe->metric == RUN_exact;
}

static void put_probe_curve(page *p, const run_eval *probe)
{
    char label[64];
    chart_point *points = eval_points(p, probe, probe->metric);
    chart_series series = {probe->name, "c3", CHART_DOTS, points, points ? probe->count : 0};
    chart c = {.id = "probe", .x_label = "step", .y_label = metric_words(probe->metric), .width = 490, .height = 300, .scale = CHART_LINEAR,
               .x_steps = true, .series = &series, .series_count = 1};
    put_limit(probe, &c, label, sizeof label);
    put(p, "<section class=\"card\"><h2>Keeping: ");
    html_text(p->out, probe->name);
    put(p, "</h2><p class=\"soft small\">The old skill over the run.</p>\n");
    chart_draw(p->out, &c);
    put(p, "</section>\n");
    free(points);
}

/* The path of the run in the plane of new skill (better to the right) and old skill (better up). */
static void put_plane(page *p, const run_eval *probe)
{
    enum { LABEL = 160, MARK = 24 };
    const run_eval *skill = p->skill;
    char label[64], x_label[96];
    chart_point *points = malloc((skill->count + 1) * sizeof *points);
    char (*labels)[LABEL] = malloc((skill->count + 1) * sizeof *labels), (*marks)[MARK] = malloc((skill->count + 1) * sizeof *marks);
    size_t n = 0;
    if (!points || !labels || !marks)
        p->out->failed = true;
    for (size_t i = 0; points && labels && marks && i < skill->count; i++) {
        double x = skill->rows[i].value[skill->metric], y = eval_at(probe, skill->rows[i].step);
        if (!isfinite(x) || !isfinite(y))
            continue;
        snprintf(labels[n], LABEL, "step %.0f: %.48s %.4g, %.48s %.4g", skill->rows[i].step, skill->name, x, probe->name, y);
        if (skill->rows[i].step == 0)
            snprintf(marks[n], MARK, "start");
        else
            snprintf(marks[n], MARK, "step %.0f", skill->rows[i].step);
        points[n] = (chart_point){x, y, labels[n], marks[n]};
        n++;
    }
    chart_series series = {"path", "path", CHART_PATH, points, n};
    snprintf(x_label, sizeof x_label, "%.60s: better →", skill->name);
    chart c = {.id = "plane", .x_label = x_label, .y_label = "↑ kept", .width = 490, .height = 300, .scale = CHART_LINEAR,
               .x_reversed = run_metric_smaller_is_better(skill->metric), .y_reversed = run_metric_smaller_is_better(probe->metric),
               .series = &series, .series_count = 1};
    put_limit(probe, &c, label, sizeof label);
    put(p, "<section class=\"card\"><h2>New skill against ");
    html_text(p->out, probe->name);
    put(p, "</h2><p class=\"soft small\">From straw (start) to blue (end): right is learned, down is forgotten.</p>\n");
    chart_draw(p->out, &c);
    put(p, "</section>\n");
    free(points);
    free(labels);
    free(marks);
}

static void put_column(page *p, const char *id, const char *title, const char *text, const char *y_label, chart_point *points,
                       size_t count, double limit, const char *limit_label, const char *color)
{
    chart_series series = {title, color, CHART_LINE, points, points ? count : 0};
    chart c = {.id = id, .x_label = "step", .y_label = y_label, .width = 490, .height = 250, .x_steps = true, .series = &series,
               .series_count = 1, .limit = limit, .limit_label = limit_label};
    if (!strcmp(id, "rate") || !strcmp(id, "speed"))
        c.scale = CHART_LINEAR;
    put_card(p, title, text);
    chart_draw(p->out, &c);
    put(p, "</section>\n");
}

static void put_columns(page *p)
{
    const run_data *run = p->run;
    const json_t *train = json_object_get(json_object_get(run->json, "recipe"), "train");
    double clip = run_number(train, "max_grad_norm"), largest = 0, penalty = 0;
    for (size_t i = 0; i < run->row_count; i++) {
        largest = fmax(largest, run->rows[i].grad_norm);
        penalty = fmax(penalty, fabs(run->rows[i].penalty));
    }
    chart_point *rate = ROW_POINTS(p, lr), *norm = ROW_POINTS(p, grad_norm);
    put(p, "<div class=\"two\">\n");
    put_column(p, "rate", "Learning rate", "After warm-up and schedule.", "learning rate", rate, run->row_count, NAN, NULL, "c4");
    put_column(p, "norm", "Gradient norm", "Global L2 norm before clipping.", "gradient norm", norm, run->row_count,
               clip > 0 && largest > clip / 4 ? clip : NAN, "clipped above", "c2");
    put(p, "</div>\n");
    free(rate);
    free(norm);
    if (penalty > 0) {
        chart_point *points = ROW_POINTS(p, penalty);
        put_column(p, "penalty", "Penalty", "What keeps old skills adds to the objective, apart from the loss.", "penalty", points,
                   run->row_count, NAN, NULL, "c5");
        free(points);
    }
}

/* --- Time and memory --- */

static void put_fact(page *p, const char *name)
{
    tm_buf_printf(p->out, "<tr><th>%s</th><td>", name);
}

static void put_memory(page *p)
{
    const json_t *run = p->run->json;
    double planned = run_number(run, "planned_bytes"), peak = run_number(run, "peak_bytes");
    for (size_t i = 0; isnan(peak) && i < p->run->timing_count; i++)
        peak = fmax(peak, p->run->timing[i].bytes);
    double rate = 0, share = NAN, n = 0;
    for (size_t i = 0; i < p->run->timing_count; i++)
        if (isfinite(p->run->timing[i].tokens_per_s)) {
            rate += p->run->timing[i].tokens_per_s;
            n++;
            share = isfinite(p->run->timing[i].share) ? fmax(isnan(share) ? 0 : share, p->run->timing[i].share) : share;
        }
    put_card(p, "Memory and time", "What was planned before the first step, and what was used.");
    if (planned > 0 && peak > 0)
        tm_buf_printf(p->out, "<div class=\"bar %s\"><i style=\"width:%.1f%%\"></i></div>", peak > planned ? "bad" : "plain",
                      100 * fmin(1, peak / planned));
    put(p, "<table>");
    put_fact(p, "memory used at most");
    put_bytes(p, peak);
    put(p, "</td></tr>");
    put_fact(p, "memory planned");
    put_bytes(p, planned);
    put(p, "</td></tr>");
    const char *part;
    json_t *bytes;
    json_object_foreach(json_object_get(run, "planned_parts"), part, bytes)
        if (json_number_value(bytes) > 0) {
            put(p, "<tr class=\"part\"><th>");
            html_text(p->out, part);
            put(p, "</th><td>");
            put_bytes(p, json_number_value(bytes));
            put(p, "</td></tr>");
        }
    put_fact(p, "parameters trained");
    html_number(p->out, run_number(run, "trained_parameters"));
    put(p, "</td></tr>");
    put_fact(p, "tokens");
    html_number(p->out, run_number(run, "tokens"));
    put(p, "</td></tr>");
    put_fact(p, "time");
    put_seconds(p, run_number(run, "seconds"));
    put(p, "</td></tr>");
    put_fact(p, "mean rate");
    if (n > 0) {
        html_number(p->out, rate / n);
        put(p, " tokens/s");
    } else
        put(p, "–");
    put(p, "</td></tr>");
    if (share > 0) {
        put_fact(p, "best share of the machine's limit");
        tm_buf_printf(p->out, "%.0f %%</td></tr>", share * 100);
    }
    put(p, "</table></section>\n");
}

static void put_timing(page *p)
{
    const run_data *run = p->run;
    chart_point *points = malloc((run->timing_count + 1) * sizeof *points);
    if (!points) {
        p->out->failed = true;
        return;
    }
    for (size_t i = 0; i < run->timing_count; i++)
        points[i] = (chart_point){run->timing[i].step, run->timing[i].tokens_per_s, NULL, NULL};
    put(p, "<div class=\"two\">\n");
    put_memory(p);
    put_column(p, "speed", "Speed", "The one curve that differs from run to run.", "tokens a second", points, run->timing_count, NAN, NULL, "c6");
    put(p, "</div>\n");
    free(points);
}

/* --- Settings and hashes --- */

/* What the options table says about a recipe key; "" when it is not there. */
static const char *help_of(const char *key)
{
    static const struct {
        const char *key, *help;
    } TABLE[] = {
#define TM_RECIPE_OPTIONS(field, key, type, fallback, choices, aliases, help) {key, help},
#include "base/options.def"
#undef TM_RECIPE_OPTIONS
    };
    for (size_t i = 0; i < sizeof TABLE / sizeof *TABLE; i++)
        if (!strcmp(key, TABLE[i].key))
            return TABLE[i].help;
    return "";
}

static void put_setting(page *p, const char *key, const json_t *value, bool help)
{
    put(p, "<tr><th class=\"mono\">");
    html_text(p->out, key);
    put(p, "</th><td class=\"mono\">");
    if (json_is_string(value))
        html_text(p->out, json_string_value(value));
    else if (json_is_null(value))
        put(p, "–");
    else {
        char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
        if (text)
            html_text(p->out, text);
        else
            p->out->failed = true;
        free(text);
    }
    put(p, "</td>");
    if (help) {
        put(p, "<td class=\"help\">");
        html_text(p->out, help_of(key));
        put(p, "</td>");
    }
    put(p, "</tr>\n");
}

/* Rows of every leaf below value, keys joined with dots; lists of short values are leaves. */
static void put_settings(page *p, const char *prefix, const json_t *value, bool help, int depth)
{
    enum { DEEP = 16, LONG = 64 };
    bool object = json_is_object(value) && json_object_size(value);
    const json_t *item = json_array_get(value, 0); /* hashes get a row each */
    bool list = json_is_object(item) || json_string_length(item) >= LONG;
    if ((!object && !list) || depth > DEEP) {
        put_setting(p, prefix, value, help);
        return;
    }
    void *at = object ? json_object_iter((json_t *)value) : NULL;
    for (size_t i = 0; object ? at != NULL : i < json_array_size(value); i++) {
        tm_buf key = {0};
        if (object)
            tm_buf_printf(&key, "%s%s%s", prefix, *prefix ? "." : "", json_object_iter_key(at));
        else
            tm_buf_printf(&key, "%s.%zu", prefix, i);
        p->out->failed |= key.failed;
        put_settings(p, tm_buf_str(&key), object ? json_object_iter_value(at) : json_array_get(value, i), help, depth + 1);
        tm_buf_deinit(&key);
        if (object)
            at = json_object_iter_next((json_t *)value, at);
    }
}

static void put_table(page *p, const char *title, const char *text, const char *key, bool help, bool open)
{
    const json_t *value = json_object_get(p->run->json, key);
    if (!json_is_object(value) || !json_object_size(value))
        return;
    tm_buf_printf(p->out, "<details class=\"card\"%s><summary>%s</summary><p class=\"soft small\">%s</p><table>\n", open ? " open" : "", title, text);
    put_settings(p, "", value, help, 0);
    put(p, "</table></details>\n");
}

static void put_all(page *p)
{
    put_verdict(p);
    put_loss(p);
    for (size_t i = 0; i < p->run->eval_count; i++) {
        const run_eval *probe = &p->run->evals[i];
        if (!probe->probe)
            continue;
        put(p, "<div class=\"two\">\n");
        put_probe_curve(p, probe);
        if (p->skill)
            put_plane(p, probe);
        put(p, "</div>\n");
    }
    put_columns(p);
    put_timing(p);
    put_table(p, "Hashes", "SHA-256 of what went in and what came out: the same recipe on the same kind of device gives the same result.", "sha256", false, true);
    put_table(p, "Seeds", "Everything random follows from these.", "seeds", false, true);
    put_table(p, "Device", "", "device", false, false);
    put_table(p, "Settings", "The recipe with every automatic value resolved.", "recipe", true, true);
}

tm_status tm_report_html(const char *run_dir, tm_buf *out, tm_error *err)
{
    run_data run = {0};
    tm_status st;
    TM_GO(run_data_read(run_dir, &run, err));
    page p = {out, run_dir, &run, NULL};
    for (size_t i = run.eval_count; i-- > 0;)
        if (!run.evals[i].probe)
            p.skill = &run.evals[i];
    page_open(out, "temper: report of a run");
    put_all(&p);
    page_close(out, *run_text(run.json, "temper") ? run_text(run.json, "temper") : TM_VERSION);
    st = tm_buf_check(out, err);
out:
    run_data_deinit(&run);
    return st;
}

tm_status tm_report_write(const char *run_dir, tm_error *err)
{
    tm_buf html = {0};
    char *path = NULL;
    tm_status st;
    TM_GO(tm_report_html(run_dir, &html, err));
    path = tm_path_join(run_dir, "report.html", err);
    st = path ? tm_file_write(path, html.data, html.size, err) : TM_NO_MEMORY;
out:
    free(path);
    tm_buf_deinit(&html);
    return st;
}
