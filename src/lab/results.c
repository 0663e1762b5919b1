/* results.json and summary.json of a sequence (docs/formats/sequence.md), and its table for people. */
#include "lab/analysis.h"
#include "lab/chain.h"

#include "base/json.h"
#include "train/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void put_names(tm_buf *out, char *const *names, size_t count)
{
    tm_buf_char(out, '[');
    for (size_t i = 0; i < count; i++) {
        tm_buf_text(out, i ? ", " : "");
        tm_json_put_string(out, names[i]);
    }
    tm_buf_char(out, ']');
}

static void put_tasks(tm_buf *out, const tm_sequence_file *f)
{
    tm_buf_text(out, " \"tasks\": [");
    for (size_t i = 0; i < f->tasks; i++) {
        const tm_metric *m = &tm_metrics[f->task[i].metric];
        tm_buf_printf(out, "%s\n  {\"name\": \"%s\", \"metric\": \"%s\", \"better\": \"%s\"}", i ? "," : "", f->task[i].name, m->name, m->rises ? "higher" : "lower");
    }
    tm_buf_text(out, "],\n \"probes\": [");
    for (int64_t i = 0; i < f->probe_name.count; i++) {
        const tm_metric *m = &tm_metrics[f->probe_metric[i]];
        tm_buf_printf(out, "%s\n  {\"name\": ", i ? "," : "");
        tm_json_put_string(out, f->probe_name.item[i]);
        tm_buf_printf(out, ", \"metric\": \"%s\", \"better\": \"%s\"}", m->name, m->rises ? "higher" : "lower");
    }
    tm_buf_text(out, "],\n \"orders\": [");
    for (size_t o = 0; o < f->orders; o++) {
        tm_buf_text(out, o ? ",\n  [" : "\n  [");
        for (size_t k = 0; k < f->tasks; k++)
            tm_buf_printf(out, "%s\"%s\"", k ? ", " : "", f->task[f->order[o * f->tasks + k]].name);
        tm_buf_char(out, ']');
    }
    tm_buf_text(out, "],\n");
}

static void put_seeds(tm_buf *out, const char *name, const uint64_t *seed, size_t count)
{
    tm_buf_printf(out, " \"%s\": [", name);
    for (size_t i = 0; i < count; i++)
        tm_buf_printf(out, "%s%llu", i ? ", " : "", (unsigned long long)seed[i]);
    tm_buf_text(out, "],\n");
}

static void put_matrix(tm_buf *out, const char *name, const double *r, size_t rows, size_t columns)
{
    tm_buf_printf(out, ", \"%s\": [", name);
    for (size_t i = 0; i < rows; i++) {
        tm_buf_text(out, i ? ", [" : "[");
        for (size_t j = 0; j < columns; j++) {
            tm_buf_text(out, j ? ", " : "");
            tm_json_put_number(out, r[i * columns + j]);
        }
        tm_buf_char(out, ']');
    }
    tm_buf_char(out, ']');
}

static void put_routing(tm_buf *out, const tm_lab_chain *c, size_t tasks)
{
    double right = 0, all = 0;
    put_matrix(out, "routed", c->routed, tasks, tasks);
    tm_buf_text(out, ", \"confusion\": [");
    for (size_t i = 0; i < tasks * tasks; i++) {
        tm_buf_printf(out, "%s%lld%s", i % tasks ? ", " : i ? ", [" : "[", (long long)c->confusion[i], i % tasks + 1 == tasks ? "]" : "");
        all += (double)c->confusion[i];
        right += i % (tasks + 1) == 0 ? (double)c->confusion[i] : 0;
    }
    tm_buf_text(out, "], \"routing_errors\": ");
    tm_json_put_number(out, all > 0 ? 1 - right / all : NAN);
}

static void put_metrics(tm_buf *out, const tm_sequence_metrics *metrics)
{
    const double *value = (const double *)metrics;
    for (int m = 0; m < TM_SEQUENCE_METRIC_COUNT; m++) {
        tm_buf_printf(out, ", \"%s\": ", tm_sequence_metric_names[m]);
        tm_json_put_number(out, value[m]);
    }
}

static void put_fields(tm_buf *out, const char *const *names, const double *values, int count)
{
    for (int i = 0; i < count; i++) {
        tm_buf_printf(out, "%s\"%s\": ", i ? ", " : "", names[i]);
        tm_json_put_number(out, values[i]);
    }
}

static void put_analysis(tm_buf *out, const tm_arm_analysis *a, bool baseline)
{
    static const char *const summary[] = {"mean", "sd", "low", "high", "orders_sd"};
    static const char *const against[] = {"difference", "low", "high", "boot_low", "boot_high", "p", "p_holm"};
    tm_buf_text(out, "   \"summary\": {");
    for (int m = 0; m < TM_SEQUENCE_METRIC_COUNT; m++) {
        const tm_summary *s = &a->summary[m];
        tm_buf_printf(out, "%s\n    \"%s\": {\"n\": %lld, ", m ? "," : "", tm_sequence_metric_names[m], (long long)s->n);
        put_fields(out, summary, (const double[]){s->mean, s->sd, s->low, s->high, a->orders_sd[m]}, 5);
        tm_buf_char(out, '}');
    }
    tm_buf_text(out, "},\n   \"against_baseline\": {");
    for (int m = 0; m < TM_SEQUENCE_METRIC_COUNT && !baseline; m++) {
        const tm_paired *p = &a->against[m];
        tm_buf_printf(out, "%s\n    \"%s\": {", m ? "," : "", tm_sequence_metric_names[m]);
        put_fields(out, against, (const double[]){p->difference.mean, p->difference.low, p->difference.high, p->boot_low, p->boot_high, p->p, a->holm[m]}, 7);
        tm_buf_char(out, '}');
    }
    tm_buf_printf(out, "},\n   \"front\": %s, \"front_alike\": %s, \"matched_forgetting\": ", a->front ? "true" : "false", a->front_alike ? "true" : "false");
    tm_json_put_number(out, a->matched);
    tm_buf_text(out, ",\n");
}

/* Chains that diverged; nothing where none did. */
static void put_count(tm_buf *out, size_t diverged)
{
    if (diverged)
        tm_buf_printf(out, ", \"diverged\": %zu", diverged);
}

static void put_arm(tm_buf *out, const tm_sequence_file *f, const tm_lab_arm *arm, const tm_lab_arm_result *a, const tm_arm_analysis *analysis)
{
    static const char *const kinds[] = {"sequence", "joint", "frozen"}, *const betweens[] = {"merge", "continue", "separate"};
    tm_buf_printf(out, "{\"name\": \"%s\", \"kind\": \"%s\", ", arm->name, kinds[arm->kind]);
    if (arm->kind == TM_ARM_SEQUENCE)
        tm_buf_printf(out, "\"between\": \"%s\", ", betweens[arm->between]);
    tm_buf_printf(out, "\"old_data\": %s", arm->old_data ? "true" : "false");
    put_count(out, tm_lab_diverged(a, f->tasks));
    tm_buf_text(out, ",\n");
    put_analysis(out, analysis, arm == &f->arm[f->baseline]);
    tm_buf_text(out, "   \"configurations\": [");
    for (size_t i = 0; i < a->configs; i++) {
        tm_buf_text(out, i ? ",\n    {\"settings\": " : "\n    {\"settings\": ");
        put_names(out, a->config[i].settings.item, (size_t)a->config[i].settings.count);
        put_metrics(out, &a->config[i].metrics);
        put_count(out, a->config[i].diverged);
        tm_buf_printf(out, ", \"chosen\": %s}", i == a->chosen ? "true" : "false");
    }
    tm_buf_text(out, "],\n");
}

static void put_chains(tm_buf *out, const tm_sequence_file *f, const tm_lab_arm_result *a)
{
    tm_buf_text(out, "   \"chains\": [");
    for (size_t i = 0; i < a->chains; i++) {
        const tm_lab_chain *c = &a->chain[i];
        tm_buf_printf(out, "%s\n    {\"order\": %zu, \"seed\": %llu", i ? "," : "", c->order + 1, (unsigned long long)c->seed);
        tm_lab_put_diverged(out, f, c);
        put_metrics(out, &c->metrics);
        put_matrix(out, "R", c->r, f->tasks + 1, f->tasks);
        if (f->probe_name.count)
            put_matrix(out, "P", c->probe, f->tasks + 1, (size_t)f->probe_name.count);
        if (c->routed)
            put_routing(out, c, f->tasks);
        tm_buf_char(out, '}');
    }
    tm_buf_text(out, "]");
}

/* --- In short --- */

/* Five digits: a mean of scores has no more. */
static void put_short(tm_buf *out, double value)
{
    char text[40];
    snprintf(text, sizeof text, "%.5g", value);
    tm_json_put_number(out, isfinite(value) ? strtod(text, NULL) : NAN);
}

static void put_row(tm_buf *out, const char *name, const double *values, size_t count)
{
    tm_buf_printf(out, "%s[", name);
    for (size_t i = 0; i < count; i++) {
        tm_buf_text(out, i ? ", " : "");
        put_short(out, values[i]);
    }
    tm_buf_char(out, ']');
}

/* Which numbers of a chain: rows [rows, columns]. */
typedef const double *rows_of(const tm_lab_chain *chain);
static const double *r_of(const tm_lab_chain *c) { return c->r; }
static const double *p_of(const tm_lab_chain *c) { return c->probe; }
static const double *routed_of(const tm_lab_chain *c) { return c->routed; }

/* Means over the seeds of every order. */
static void put_means(tm_buf *out, const char *name, const tm_lab_arm_result *a, size_t seeds, rows_of *of, size_t rows, size_t columns)
{
    tm_buf_printf(out, ",\n   \"%s\": [", name);
    for (size_t first = 0; first < a->chains; first += seeds) {
        tm_buf_text(out, first ? ",\n    [" : "\n    [");
        for (size_t i = 0; i < rows; i++) {
            double mean[TM_LAB_MOST_TASKS] = {0};
            for (size_t s = 0; s < seeds; s++)
                for (size_t j = 0; j < columns; j++)
                    mean[j] += of(&a->chain[first + s])[i * columns + j] / (double)seeds;
            put_row(out, i ? ", " : "", mean, columns);
        }
        tm_buf_char(out, ']');
    }
    tm_buf_char(out, ']');
}

/* What a seed learned, by the file's tasks: scores when just learned, at the end, and of the probes at the end; means over the orders. */
static void put_seed(tm_buf *out, const tm_sequence_file *f, const tm_lab_arm *arm, const tm_lab_arm_result *a, size_t seed, size_t seeds)
{
    size_t T = f->tasks, probes = (size_t)f->probe_name.count, orders = a->chains / seeds;
    double learned[TM_LAB_MOST_TASKS] = {0}, last[TM_LAB_MOST_TASKS] = {0}, probe[TM_LAB_MOST_TASKS] = {0};
    for (size_t o = 0; o < orders; o++) {
        const tm_lab_chain *c = &a->chain[o * seeds + seed];
        for (size_t k = 0; k < T; k++) {
            int32_t task = f->order[c->order * T + k];
            learned[task] += c->r[(k + 1) * T + k] / (double)orders;
            last[task] += c->r[T * T + k] / (double)orders;
        }
        for (size_t k = 0; k < probes; k++)
            probe[k] += c->probe[T * probes + k] / (double)orders;
    }
    tm_buf_printf(out, "{\"seed\": %llu", (unsigned long long)a->chain[seed].seed);
    if (arm->kind == TM_ARM_SEQUENCE)
        put_row(out, ", \"learned\": ", learned, T);
    put_row(out, ", \"last\": ", last, T);
    put_row(out, ", \"probes\": ", probe, probes);
    tm_buf_char(out, '}');
}

static void put_summary(tm_buf *out, const tm_sequence_file *f, const tm_lab_arm *arm, const tm_lab_arm_result *a)
{
    size_t seeds = arm->kind == TM_ARM_FROZEN ? 1 : f->seeds;
    tm_buf_text(out, "   \"seeds\": [");
    for (size_t s = 0; s < seeds; s++) {
        tm_buf_text(out, s ? ",\n    " : "\n    ");
        put_seed(out, f, arm, a, s, seeds);
    }
    tm_buf_char(out, ']');
    put_means(out, "R", a, seeds, r_of, f->tasks + 1, f->tasks);
    if (f->probe_name.count)
        put_means(out, "P", a, seeds, p_of, f->tasks + 1, (size_t)f->probe_name.count);
    if (a->chain[0].routed)
        put_means(out, "routed", a, seeds, routed_of, f->tasks, f->tasks);
}

tm_status tm_sequence_results(const tm_sequence_file *f, const tm_sequence_result *result, const tm_analysis *analysis, bool summary, tm_buf *out, tm_error *err)
{
    tm_buf_text(out, "{\n \"temper\": \"" TM_VERSION "\",\n");
    put_tasks(out, f);
    put_seeds(out, "seeds", f->seed, f->seeds);
    put_seeds(out, "select_seeds", f->select_seed, f->select_seeds);
    tm_buf_printf(out, " \"baseline\": \"%s\",\n \"warnings\": ", f->arm[f->baseline].name);
    put_names(out, f->warnings.item, (size_t)f->warnings.count);
    tm_buf_text(out, ",\n \"matched_learned\": ");
    tm_json_put_number(out, analysis->matched_learned);
    tm_buf_text(out, ",\n \"arms\": [");
    for (size_t i = 0; i < f->arms; i++) {
        tm_buf_text(out, i ? ",\n  " : "\n  ");
        put_arm(out, f, &f->arm[i], &result->arm[i], &analysis->arm[i]);
        if (summary)
            put_summary(out, f, &f->arm[i], &result->arm[i]);
        else
            put_chains(out, f, &result->arm[i]);
        tm_buf_char(out, '}');
    }
    tm_buf_text(out, "]\n}\n");
    return tm_buf_check(out, err);
}

/* --- For people --- */

/* "0.512 ± 0.034": the mean and the half width of its interval. */
static void put_cell(tm_buf *out, const tm_summary *s)
{
    char text[64];
    int n = isnan(s->mean) ? snprintf(text, sizeof text, "-") : snprintf(text, sizeof text, "%.4g", s->mean);
    int columns = n;
    if (!isnan(s->sd)) {
        n += snprintf(text + n, sizeof text - (size_t)n, " ± %.2g", s->high - s->mean);
        columns = n - 1; /* the sign is two bytes */
    }
    tm_buf_printf(out, "  %*s%s", columns < 17 ? 17 - columns : 0, "", text);
}

/* What is left of separate modules when nobody says whose question it is: means over chains. */
static void put_routed(tm_buf *out, const tm_sequence_file *f, const tm_lab_arm *arm, const tm_lab_arm_result *a)
{
    double sum = 0, right = 0, all = 0;
    for (size_t c = 0; c < a->chains; c++)
        for (size_t i = 0; i < f->tasks; i++) {
            sum += a->chain[c].routed[(f->tasks - 1) * f->tasks + i] / (double)(f->tasks * a->chains);
            for (size_t j = 0; j < f->tasks; j++) {
                all += (double)a->chain[c].confusion[i * f->tasks + j];
                right += i == j ? (double)a->chain[c].confusion[i * f->tasks + j] : 0;
            }
        }
    tm_buf_printf(out, "%s: by task id above; chosen by the prompt: average ", arm->name);
    if (isnan(sum))
        tm_buf_text(out, "not known for these metrics");
    else
        tm_buf_printf(out, "%.4g", sum);
    tm_buf_printf(out, ", %.3g %% of prompts went to another task's module\n", all > 0 ? 100 * (1 - right / all) : 0);
}

tm_status tm_sequence_table(const tm_sequence_file *f, const tm_sequence_result *result, const tm_analysis *analysis, tm_buf *out, tm_error *err)
{
    static const int columns[] = {TM_SEQ_average, TM_SEQ_learned, TM_SEQ_bwt, TM_SEQ_forgetting, TM_SEQ_held};
    size_t width = strlen("arm"), count = f->probe_name.count ? 5 : 4;
    for (size_t i = 0; i < f->arms; i++)
        width = strlen(f->arm[i].name) > width ? strlen(f->arm[i].name) : width;
    tm_buf_printf(out, "%-*s", (int)width + 2, "arm");
    for (size_t c = 0; c < count; c++)
        tm_buf_printf(out, "  %17s", tm_sequence_metric_names[columns[c]]);
    tm_buf_printf(out, "  against %s: average, p\n", f->arm[f->baseline].name);
    for (size_t i = 0; i < f->arms; i++) {
        const tm_arm_analysis *a = &analysis->arm[i];
        tm_buf_printf(out, "%-*s%s", (int)width + 1, f->arm[i].name, a->front ? "*" : " ");
        for (size_t c = 0; c < count; c++)
            put_cell(out, &a->summary[columns[c]]);
        const tm_paired *p = &a->against[TM_SEQ_average];
        if (i != f->baseline && !isnan(p->difference.mean)) {
            tm_buf_printf(out, "  %+.4g", p->difference.mean);
            if (!isnan(a->holm[TM_SEQ_average]))
                tm_buf_printf(out, ", %.2g", a->holm[TM_SEQ_average]);
        }
        tm_buf_char(out, '\n');
    }
    for (size_t i = 0; i < f->arms; i++)
        if (tm_lab_diverged(&result->arm[i], f->tasks))
            tm_buf_printf(out, "%s: training diverged in %zu of %zu chains; they count with the model from before\n", f->arm[i].name, tm_lab_diverged(&result->arm[i], f->tasks), result->arm[i].chains);
    for (size_t i = 0; i < f->arms; i++)
        if (result->arm[i].chains && result->arm[i].chain[0].routed)
            put_routed(out, f, &f->arm[i], &result->arm[i]);
    bool rises = tm_metrics[f->task[0].metric].rises, mixed = false;
    for (size_t i = 1; i < f->tasks; i++)
        mixed |= tm_metrics[f->task[i].metric].rises != rises;
    tm_buf_printf(out, "%zu order%s, %zu seed%s; average and learned: %s, bwt: higher, forgetting: lower; ±: 95 %% over seeds; p: Holm; *: no arm learns more and forgets less\n", f->orders,
                  f->orders == 1 ? "" : "s", f->seeds, f->seeds == 1 ? "" : "s", mixed ? "none, the metric of one task rises and of another falls" : rises ? "higher is better" : "lower is better");
    return tm_buf_check(out, err);
}
