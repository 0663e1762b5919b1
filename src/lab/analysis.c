/* Analysis of a sequence: see analysis.h. */
#include "lab/analysis.h"

#include "base/philox.h"
#include "train/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double metric_of(const tm_lab_chain *c, int m) { return ((const double *)&c->metrics)[m]; }

/* A metric by seed [seeds], averaged over orders. Chains lie by order, then by seed. */
static void by_seed(const tm_sequence_file *f, const tm_lab_arm_result *a, int m, double *out)
{
    size_t seeds = a->chains < f->seeds ? a->chains : f->seeds, orders = a->chains / seeds;
    for (size_t s = 0; s < f->seeds; s++) {
        out[s] = 0;
        for (size_t o = 0; o < orders; o++)
            out[s] += metric_of(&a->chain[o * seeds + s % seeds], m) / (double)orders;
    }
}

static tm_status spread_of_orders(const tm_sequence_file *f, const tm_lab_arm_result *a, int m, double *out, tm_error *err)
{
    size_t seeds = a->chains < f->seeds ? a->chains : f->seeds, orders = a->chains / seeds;
    double *means;
    tm_summary s;
    TM_TRY(TM_NEW(&means, orders, err));
    for (size_t i = 0; i < a->chains; i++)
        means[i / seeds] += metric_of(&a->chain[i], m) / (double)seeds;
    tm_summary_of(means, (int64_t)orders, &s);
    *out = s.sd;
    free(means);
    return TM_OK;
}

static tm_status one_metric(const tm_sequence_file *f, const tm_sequence_result *result, int m, tm_analysis *out, tm_error *err)
{
    double *values = NULL, *p = NULL, *holm = NULL;
    size_t n = f->seeds;
    tm_status st;
    TM_GO(TM_NEW(&values, n * (f->arms + 1), err));
    TM_GO(TM_NEW(&p, f->arms, err));
    TM_GO(TM_NEW(&holm, f->arms, err));
    const double *base = values + n * f->baseline;
    for (size_t i = 0; i < f->arms; i++)
        by_seed(f, &result->arm[i], m, values + n * i);
    for (size_t i = 0; i < f->arms; i++) {
        tm_arm_analysis *a = &out->arm[i];
        bool frozen = f->arm[i].kind == TM_ARM_FROZEN;
        tm_summary_of(values + n * i, frozen ? 1 : (int64_t)n, &a->summary[m]);
        TM_GO(spread_of_orders(f, &result->arm[i], m, &a->orders_sd[m], err));
        TM_GO(tm_paired_of(values + n * i, base, (int64_t)n, tm_philox_key(0, TM_PURPOSE_SAMPLE, (uint32_t)m, (uint32_t)i), &a->against[m], err));
        p[i] = i == f->baseline ? NAN : a->against[m].p;
    }
    TM_GO(tm_holm(p, (int64_t)f->arms, holm, err));
    for (size_t i = 0; i < f->arms; i++)
        out->arm[i].holm[m] = holm[i];
out:
    free(values);
    free(p);
    free(holm);
    return st;
}

/* 1, or -1 where less is learned with a larger score. */
static double learned_sign(const tm_sequence_file *f, bool valid) { return tm_metrics[valid ? f->task[0].valid_metric : f->task[0].metric].rises ? 1 : -1; }

static void find_fronts(const tm_sequence_file *f, tm_analysis *out)
{
    double x[TM_LAB_MOST_ARMS], y[TM_LAB_MOST_ARMS];
    bool front[TM_LAB_MOST_ARMS];
    for (int group = 0; group < 3; group++) { /* without old data, with, all */
        for (size_t i = 0; i < f->arms; i++) {
            bool in = f->arm[i].kind == TM_ARM_SEQUENCE && (group == 2 || f->arm[i].old_data == (group == 1));
            x[i] = in ? learned_sign(f, false) * out->arm[i].summary[TM_SEQ_learned].mean : NAN;
            y[i] = in ? out->arm[i].summary[TM_SEQ_forgetting].mean : NAN;
        }
        tm_pareto(x, y, (int64_t)f->arms, front);
        for (size_t i = 0; i < f->arms; i++) {
            if (group == 2)
                out->arm[i].front = front[i];
            else if (f->arm[i].old_data == (group == 1))
                out->arm[i].front_alike = front[i];
        }
    }
}

/* Along the configurations none of whose chains diverged: what learned nothing is no point of the curve. */
static bool has_curve(const tm_sequence_file *f, const tm_sequence_result *result, size_t i)
{
    const tm_lab_arm_result *a = &result->arm[i];
    bool some = false;
    for (size_t c = 0; c < a->configs; c++)
        some |= !a->config[c].diverged;
    return f->arm[i].kind == TM_ARM_SEQUENCE && a->configs > 1 && some;
}

static tm_status match(const tm_sequence_file *f, const tm_sequence_result *result, tm_analysis *out, tm_error *err)
{
    double sign = learned_sign(f, true), target = INFINITY;
    for (size_t i = 0; i < f->arms; i++) {
        const tm_lab_arm_result *a = &result->arm[i];
        double most = -INFINITY;
        for (size_t c = 0; c < a->configs; c++)
            most = !a->config[c].diverged && sign * a->config[c].metrics.learned > most ? sign * a->config[c].metrics.learned : most;
        if (has_curve(f, result, i) && most < target)
            target = most;
    }
    out->matched_learned = isinf(target) ? NAN : sign * target;
    for (size_t i = 0; i < f->arms; i++) {
        const tm_lab_arm_result *a = &result->arm[i];
        double *x;
        out->arm[i].matched = NAN;
        if (!has_curve(f, result, i) || isinf(target))
            continue;
        TM_TRY(TM_NEW(&x, 2 * a->configs, err));
        for (size_t c = 0; c < a->configs; c++) {
            x[c] = a->config[c].diverged ? NAN : sign * a->config[c].metrics.learned;
            x[a->configs + c] = a->config[c].metrics.forgetting;
        }
        tm_status st = tm_matched(x, x + a->configs, (int64_t)a->configs, target, &out->arm[i].matched, err);
        free(x);
        if (st != TM_OK)
            return st;
    }
    return TM_OK;
}

tm_status tm_analysis_of(const tm_sequence_file *f, const tm_sequence_result *result, tm_analysis *out, tm_error *err)
{
    *out = (tm_analysis){0};
    tm_status st = TM_NEW(&out->arm, f->arms, err);
    for (int m = 0; st == TM_OK && m < TM_SEQUENCE_METRIC_COUNT; m++)
        st = one_metric(f, result, m, out, err);
    if (st == TM_OK) {
        find_fronts(f, out);
        st = match(f, result, out, err);
    }
    if (st != TM_OK)
        tm_analysis_deinit(out);
    return st;
}

void tm_analysis_deinit(tm_analysis *analysis)
{
    free(analysis->arm);
    *analysis = (tm_analysis){0};
}
