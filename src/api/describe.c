/* run.json: what a run was, for people, reports and the next start of the same command. */
#include "api/job.h"

#include "base/json.h"
#include "keep/monitor.h"
#include "train/score.h"

#include <math.h>

static void put_key(tm_buf *out, const char *key)
{
    tm_buf_printf(out, ",\n \"%s\": ", key);
}

static void put_text(tm_buf *out, const char *key, const char *value)
{
    put_key(out, key);
    tm_json_put_string(out, value);
}

static void put_integer(tm_buf *out, const char *key, int64_t value)
{
    put_key(out, key);
    tm_buf_printf(out, "%lld", (long long)value);
}

static void put_seeds(tm_buf *out, const tm_seeds *s)
{
    put_key(out, "seeds");
    tm_buf_printf(out, "{\"init\": \"%016llx\", \"order\": \"%016llx\", \"dropout\": \"%016llx\", \"subset\": \"%016llx\"}", (unsigned long long)s->init,
                  (unsigned long long)s->order, (unsigned long long)s->dropout, (unsigned long long)s->subset);
}

/* Of evaluations or of probes, in the recipe's order; what val_split holds out is a part of data. */
static void put_eval_hashes(tm_buf *out, const tm_job *job, bool probes)
{
    bool first = true;
    tm_buf_printf(out, ", \"%s\": [", probes ? "probes" : "eval");
    for (int64_t i = 0; i < job->eval_count; i++) {
        const tm_eval_set *set = &job->evals[i];
        if (set->probe != probes || set->entry == &job->held_out)
            continue;
        tm_buf_printf(out, "%s\"%s\"", first ? "" : ", ", tm_dataset_hash(set->data, 0)->hex);
        first = false;
    }
    tm_buf_char(out, ']');
}

static void put_hashes(tm_buf *out, const tm_job *job, const char *model, const char *result)
{
    put_key(out, "sha256");
    tm_buf_text(out, "{\"model\": ");
    tm_json_put_string(out, model);
    tm_buf_printf(out, ", \"model_sample\": \"%s\", \"tokenizer\": ", job->model_sample.hex);
    tm_json_put_string(out, job->tokenizer ? tm_tokenizer_hash(job->tokenizer)->hex : "");
    tm_buf_text(out, ", \"data\": [");
    for (int64_t i = 0; job->data && i < job->recipe->data_count; i++)
        tm_buf_printf(out, "%s\"%s\"", i ? ", " : "", tm_dataset_hash(job->data, i)->hex);
    tm_buf_char(out, ']');
    put_eval_hashes(out, job, false);
    put_eval_hashes(out, job, true);
    if (job->rehearsal.replay)
        tm_buf_printf(out, ", \"replay\": \"%s\"", tm_dataset_hash(job->data, job->recipe->data_count)->hex);
    if (job->importances)
        tm_buf_printf(out, ", \"importances\": \"%s\"", job->importances_hash.hex);
    for (int64_t i = 0; i < job->previous_hashes.count; i++)
        tm_buf_printf(out, "%s\"%s\"%s", i ? ", " : ", \"previous\": [", job->previous_hashes.item[i], i + 1 == job->previous_hashes.count ? "]" : "");
    tm_buf_text(out, ", \"result\": ");
    tm_json_put_string(out, result);
    tm_buf_char(out, '}');
}

static void put_evals(tm_buf *out, const tm_job *job)
{
    put_key(out, "evals");
    tm_buf_char(out, '[');
    for (int64_t i = 0; i < job->eval_count; i++) {
        const tm_eval_set *set = &job->evals[i];
        int metric = set->entry->metric;
        tm_buf_text(out, i ? ",\n  {\"name\": " : "\n  {\"name\": ");
        tm_json_put_string(out, set->entry->name);
        tm_buf_printf(out, ", \"metric\": \"%s\", \"probe\": %s", tm_metrics[metric].name, set->probe ? "true" : "false");
        const char *keys[] = {"max_drop", "max", "first", "last", "best"};
        double values[] = {set->entry->max_drop, set->entry->max, tm_metric_value(metric, &set->first[0]), tm_metric_value(metric, &set->last[0]), tm_metric_value(metric, &set->best[0])};
        for (int k = 0; k < 5; k++) {
            tm_buf_printf(out, ", \"%s\": ", keys[k]);
            tm_json_put_number(out, values[k]);
        }
        tm_buf_char(out, '}');
    }
    tm_buf_char(out, ']');
}

static void put_plan(tm_buf *out, const tm_memory_plan *plan)
{
    put_integer(out, "planned_bytes", plan->peak);
    put_key(out, "planned_parts");
    tm_buf_char(out, '{');
    for (int i = 0; i < TM_MEM_KINDS; i++)
        tm_buf_printf(out, "%s\"%s\": %lld", i ? ", " : "", tm_memory_label((tm_memory_kind)i), (long long)plan->part[i]);
    tm_buf_char(out, '}');
}

/* How the rows of an entry were read, and what became of them; without the closing brace. */
static void put_source(tm_buf *out, const tm_dataset *data, int64_t i)
{
    static const char *const uses[] = {[TM_CACHE_NONE] = "none", [TM_CACHE_WRITTEN] = "written", [TM_CACHE_USED] = "used"};
    const tm_dataset_stats *s = tm_dataset_stats_of(data, i);
    tm_buf_printf(out, "{\"rows\": %lld, \"examples\": %lld, \"tokens\": %lld, \"targets\": %lld, \"cut\": %lld, \"dropped\": %lld, \"duplicates\": %lld, \"cache\": \"%s\"",
                  (long long)s->rows, (long long)s->examples, (long long)s->tokens, (long long)s->targets,
                  (long long)s->cut, (long long)s->dropped, (long long)s->duplicates, uses[tm_dataset_cache(data, i)]);
}

/* What the order of the whole run takes of a source. */
static void put_drawn(tm_buf *out, const tm_job *job, int64_t source)
{
    int64_t examples = 0, tokens = 0, all = 0;
    for (int64_t s = 0; job->order && s < tm_order_steps(job->order); s++) {
        const int64_t *list;
        int64_t n;
        tm_order_step(job->order, s, &list, &n);
        for (int64_t i = 0; i < n; i++) {
            const tm_example *e = tm_dataset_at(job->data, list[i]);
            all += e->n;
            examples += e->source == source;
            tokens += e->source == source ? e->n : 0;
        }
    }
    tm_buf_printf(out, ", \"drawn\": %lld, \"share\": ", (long long)examples);
    tm_json_put_number(out, all ? (double)tokens / (double)all : 0);
}

static void put_data(tm_buf *out, const tm_job *job)
{
    int64_t task = job->recipe->data_count;
    put_key(out, "data");
    tm_buf_char(out, '[');
    for (int64_t i = 0; job->data && i < task; i++) {
        tm_buf_text(out, i ? ", " : "");
        put_source(out, job->data, i);
        tm_buf_char(out, '}');
    }
    tm_buf_char(out, ']');
    put_key(out, "rehearsal");
    tm_buf_char(out, '[');
    for (int64_t i = task; job->data && i < tm_dataset_sources(job->data); i++) {
        tm_buf_text(out, i > task ? ", " : "");
        put_source(out, job->data, i);
        tm_buf_text(out, ", \"path\": ");
        tm_json_put_string(out, job->entries[i].path);
        tm_buf_text(out, ", \"fraction\": ");
        tm_json_put_number(out, job->rehearsal.fraction[i - task]);
        put_drawn(out, job, i);
        tm_buf_char(out, '}');
    }
    tm_buf_char(out, ']');
}

static void put_warnings(tm_buf *out, const tm_trainer *t, const tm_recipe *recipe)
{
    put_key(out, "warnings");
    tm_buf_char(out, '[');
    const tm_names *lists[] = {t ? &t->tuning.notes : NULL, t ? &t->warnings : NULL, NULL};
    int64_t n = 0;
    for (int k = 0; lists[k]; k++)
        for (int64_t i = 0; i < lists[k]->count; i++) {
            tm_buf_text(out, n++ ? ", " : "");
            tm_json_put_string(out, lists[k]->item[i]);
        }
    tm_buf_char(out, ']');
    put_key(out, "aliases");
    tm_buf_char(out, '[');
    for (int64_t i = 0; i < recipe->aliases_used.count; i++) {
        tm_buf_text(out, i ? ", " : "");
        tm_json_put_string(out, recipe->aliases_used.item[i]);
    }
    tm_buf_char(out, ']');
}

tm_status tm_job_describe(const tm_job *job, const tm_trainer *t, const char *status, const char *model_hash, const char *result_hash, tm_buf *out, tm_error *err)
{
    tm_buf_text(out, "{\"temper\": \"" TM_VERSION "\"");
    put_text(out, "status", status);
    put_key(out, "recipe");
    TM_TRY(tm_recipe_to_json(job->recipe, out, err));
    put_key(out, "device");
    tm_buf_text(out, "{\"name\": ");
    tm_json_put_string(out, job->device ? job->device->name : "");
    tm_buf_text(out, ", \"detail\": ");
    tm_json_put_string(out, job->device ? job->device->detail : "");
    tm_buf_char(out, '}');
    put_seeds(out, &job->seeds);
    put_hashes(out, job, model_hash, result_hash);
    put_text(out, "unicode", "16.0");
    put_integer(out, "steps", job->run.steps);
    put_integer(out, "steps_done", t ? t->step : 0);
    put_integer(out, "tokens", t ? t->tokens : 0);
    put_integer(out, "targets", t ? t->targets : 0);
    if (t && t->loss_scale[0].scale > 0)
        put_integer(out, "skipped_steps", t->loss_scale[0].skipped);
    put_key(out, "seconds");
    tm_buf_printf(out, "%.3f", t ? t->seconds : 0);
    put_plan(out, &job->plan);
    put_integer(out, "peak_bytes", job->device ? job->device->peak_bytes : 0);
    put_integer(out, "parameters", job->plan.parameters);
    put_integer(out, "trained_parameters", job->plan.trained);
    put_data(out, job);
    put_warnings(out, t, job->recipe);
    put_evals(out, job);
    tm_buf_text(out, "}\n");
    return tm_buf_check(out, err);
}
