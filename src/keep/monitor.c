/* The monitor: see monitor.h.
 *
 * 1. The evaluation at step 0 is the measure; every later one is held against it.
 * 2. An evaluation that passes every probe keeps a snapshot of what is trained; rollback restores the
 *    last one. The snapshot is part of checkpoints.
 * 3. warn goes on; stop keeps the current weights; rollback restores; the last two end the run. */
#include "keep/monitor.h"

#include "train/score.h"

#include <math.h>
#include <stdlib.h>

typedef struct monitor {
    char **snapshot; /* [R] the trained tensors of a replica, host memory, as the device keeps them */
    int32_t replicas;
} monitor;

double tm_probe_damage(const tm_eval_set *set, int32_t r)
{
    int metric = set->entry->metric;
    double first = tm_metric_value(metric, &set->first[r]), now = tm_metric_value(metric, &set->last[r]);
    if (metric == TM_METRIC_KL)
        return now;
    double worse = tm_metrics[metric].rises ? first - now : now - first;
    return first != 0 ? worse / first : worse > 0 ? INFINITY : 0; /* what was not measured is not a number, and a breach */
}

double tm_probe_budget(const tm_eval_set *set)
{
    return set->entry->metric == TM_METRIC_KL ? set->entry->max : set->entry->max_drop;
}

/* As the run trains them: at its end what is saved may have another shape. */
static tm_tensor value_of(const tm_trainer *t, int32_t r, int64_t i) { return t->trained[r * t->trained_count + i].value; }
static int64_t value_bytes(const tm_trainer *t, int64_t i) { return tm_dtype_bytes(value_of(t, 0, i).dtype, value_of(t, 0, i).rows * value_of(t, 0, i).cols); }

static void move_snapshot(tm_trainer *t, monitor *m, int32_t r, bool restore)
{
    int64_t at = 0;
    for (int64_t i = 0; i < t->trained_count; at += value_bytes(t, i++)) {
        void *value = value_of(t, r, i).data;
        if (restore)
            t->device->calls->upload(t->device, value, m->snapshot[r] + at, value_bytes(t, i));
        else
            t->device->calls->download(t->device, m->snapshot[r] + at, value, value_bytes(t, i));
    }
}

static void drop_snapshot(monitor *m)
{
    for (int32_t r = 0; r < m->replicas; r++)
        free(m->snapshot[r]);
    free(m->snapshot);
}

static tm_status monitor_begin(void *state, tm_trainer *t, tm_error *err)
{
    monitor *m = state;
    int64_t bytes = 0;
    if (t->recipe->on_breach != TM_BREACH_ROLLBACK)
        return TM_OK;
    for (int64_t i = 0; i < t->trained_count; i++)
        bytes += value_bytes(t, i);
    TM_TRY(TM_NEW(&m->snapshot, t->run->replicas, err));
    m->replicas = t->run->replicas;
    for (int32_t r = 0; r < m->replicas; r++) {
        TM_TRY(TM_NEW(&m->snapshot[r], bytes, err));
        move_snapshot(t, m, r, false);
    }
    return TM_OK;
}

/* Said once a probe: the report has the rest. */
static bool said_before(const tm_trainer *t, const char *probe)
{
    char start[128];
    snprintf(start, sizeof start, "probe %s ", probe);
    for (int64_t i = 0; i < t->warnings.count; i++)
        if (strncmp(t->warnings.item[i], start, strlen(start)) == 0)
            return true;
    return false;
}

static tm_status monitor_evaluate(void *state, tm_trainer *t, int32_t r, tm_verdict *verdict, tm_error *err)
{
    static const char *const consequence[] = {"going on", "stopped", "rolled back to the last evaluation within budget"};
    monitor *m = state;
    bool breach = false;
    for (int64_t i = 0; i < t->run->eval_count; i++) {
        const tm_eval_set *set = &t->run->evals[i];
        double damage = set->probe ? tm_probe_damage(set, r) : 0, budget = tm_probe_budget(set);
        if (!set->probe || isnan(budget) || damage <= budget)
            continue;
        breach = true;
        if (t->recipe->on_breach == TM_BREACH_WARN && said_before(t, set->entry->name))
            continue;
        bool nats = set->entry->metric == TM_METRIC_KL;
        TM_TRY(tm_trainer_warn(t, err, nats ? "probe %s is %.4f nats from the base at step %lld, budget %.4f: %s" : "probe %s is %.2f %% worse than at the start at step %lld, budget %.2f %%: %s",
                               set->entry->name, nats ? damage : 100 * damage, (long long)t->step, nats ? budget : 100 * budget, consequence[t->recipe->on_breach]));
        if (t->recipe->on_breach != TM_BREACH_WARN && t->warnings.count)
            t->verdict_why = t->warnings.item[t->warnings.count - 1];
    }
    if (!breach) {
        if (m->snapshot)
            move_snapshot(t, m, r, false);
        return TM_OK;
    }
    if (t->recipe->on_breach == TM_BREACH_STOP)
        *verdict = TM_STOP;
    if (t->recipe->on_breach == TM_BREACH_ROLLBACK) {
        move_snapshot(t, m, r, true);
        *verdict = TM_ROLL_BACK;
    }
    return TM_OK;
}

static void snapshot_path(char path[4096], const char *folder) { snprintf(path, 4096, "%s/snapshot.safetensors", folder); }

/* Through the device's own tensors: the snapshot trades places with the weights, and back. */
static tm_status monitor_save(void *state, tm_trainer *t, int32_t replica, const char *folder, tm_error *err)
{
    monitor *m = state;
    char path[4096];
    if (!m->snapshot)
        return TM_OK;
    monitor now = {0};
    tm_status st = monitor_begin(&now, t, err);
    if (st == TM_OK) {
        move_snapshot(t, m, replica, true);
        snapshot_path(path, folder);
        st = tm_trained_write(t, replica, false, path, err);
        move_snapshot(t, &now, replica, true);
    }
    drop_snapshot(&now);
    return st;
}

static tm_status monitor_load(void *state, tm_trainer *t, int32_t replica, const char *folder, tm_error *err)
{
    monitor *m = state;
    char path[4096];
    if (!m->snapshot)
        return TM_OK;
    monitor now = {0};
    tm_status st = monitor_begin(&now, t, err);
    snapshot_path(path, folder);
    if (st == TM_OK)
        st = tm_trained_read(t, replica, false, path, err);
    if (st == TM_OK) {
        move_snapshot(t, m, replica, false);
        move_snapshot(t, &now, replica, true);
    }
    drop_snapshot(&now);
    return st;
}

static void monitor_destroy(void *state)
{
    monitor *m = state;
    drop_snapshot(m);
    free(m);
}

tm_status tm_monitor_add(tm_trainer *t, tm_error *err)
{
    static const char *const gates[] = {"warn", "stop", "rollback"};
    if (!t->recipe->probe_count)
        return TM_OK;
    bool budget = t->recipe->on_breach == TM_BREACH_WARN;
    for (int64_t i = 0; i < t->run->eval_count; i++)
        budget |= t->run->evals[i].probe && !isnan(tm_probe_budget(&t->run->evals[i]));
    if (!budget)
        TM_TRY(tm_trainer_warn(t, err, "keep.monitor.on_breach: %s, but no probe has a budget (max_drop; max for kl): nothing can end this run", gates[t->recipe->on_breach]));
    monitor *m;
    TM_TRY(TM_NEW(&m, 1, err));
    /* Stopping ends the whole pack: a replica's end would depend on its neighbours. */
    tm_hook hook = {.name = "monitor.on_breach: stop or rollback", .replicas = t->recipe->on_breach == TM_BREACH_WARN, .state = m, .begin = monitor_begin, .evaluate = monitor_evaluate,
                    .save = monitor_save, .load = monitor_load, .destroy = monitor_destroy};
    tm_status st = tm_trainer_add_hook(t, &hook, err);
    if (st != TM_OK)
        monitor_destroy(m);
    return st;
}
