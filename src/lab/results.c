/* results.json of a sequence (docs/formats/sequence.md). */
#include "lab/sequence.h"

#include "base/json.h"
#include "train/score.h"

#include <math.h>

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

static void put_metrics(tm_buf *out, const tm_sequence_metrics *metrics)
{
    const double *value = (const double *)metrics;
    for (int m = 0; m < TM_SEQUENCE_METRIC_COUNT; m++) {
        tm_buf_printf(out, ", \"%s\": ", tm_sequence_metric_names[m]);
        tm_json_put_number(out, value[m]);
    }
}

static void put_arm(tm_buf *out, const tm_sequence_file *f, const tm_lab_arm *arm, const tm_lab_arm_result *a)
{
    static const char *const kinds[] = {"sequence", "joint", "frozen"}, *const betweens[] = {"merge", "continue", "separate"};
    tm_buf_printf(out, "{\"name\": \"%s\", \"kind\": \"%s\", ", arm->name, kinds[arm->kind]);
    if (arm->kind == TM_ARM_SEQUENCE)
        tm_buf_printf(out, "\"between\": \"%s\", ", betweens[arm->between]);
    tm_buf_printf(out, "\"old_data\": %s,\n   \"configurations\": [", arm->old_data ? "true" : "false");
    for (size_t i = 0; i < a->configs; i++) {
        tm_buf_text(out, i ? ",\n    {\"settings\": " : "\n    {\"settings\": ");
        put_names(out, a->config[i].settings.item, (size_t)a->config[i].settings.count);
        put_metrics(out, &a->config[i].metrics);
        tm_buf_printf(out, ", \"chosen\": %s}", i == a->chosen ? "true" : "false");
    }
    tm_buf_text(out, "],\n   \"chains\": [");
    for (size_t i = 0; i < a->chains; i++) {
        const tm_lab_chain *c = &a->chain[i];
        tm_buf_printf(out, "%s\n    {\"order\": %zu, \"seed\": %llu", i ? "," : "", c->order + 1, (unsigned long long)c->seed);
        put_metrics(out, &c->metrics);
        put_matrix(out, "R", c->r, f->tasks + 1, f->tasks);
        if (f->probe_name.count)
            put_matrix(out, "P", c->probe, f->tasks + 1, (size_t)f->probe_name.count);
        tm_buf_char(out, '}');
    }
    tm_buf_text(out, "]}");
}

tm_status tm_sequence_results(const tm_sequence_file *f, const tm_sequence_result *result, tm_buf *out, tm_error *err)
{
    tm_buf_text(out, "{\n \"temper\": \"" TM_VERSION "\",\n");
    put_tasks(out, f);
    put_seeds(out, "seeds", f->seed, f->seeds);
    put_seeds(out, "select_seeds", f->select_seed, f->select_seeds);
    tm_buf_printf(out, " \"baseline\": \"%s\",\n \"warnings\": ", f->arm[f->baseline].name);
    put_names(out, f->warnings.item, (size_t)f->warnings.count);
    tm_buf_text(out, ",\n \"arms\": [");
    for (size_t i = 0; i < f->arms; i++) {
        tm_buf_text(out, i ? ",\n  " : "\n  ");
        put_arm(out, f, &f->arm[i], &result->arm[i]);
    }
    tm_buf_text(out, "]\n}\n");
    return tm_buf_check(out, err);
}
