/* temper advise: what was seen of a recipe's data, base, device and old skills, and what the rules (advise_rules.h) make of it.
 *
 * 1. Nothing is trained and nothing written. The recipe's own choices of method and keep.* are not asked: advice is for the task.
 * 2. Surprise is the mean loss of the first SAMPLE_TARGETS targets of the data under the untouched base. */
#include "api/advise_rules.h"
#include "api/job.h"

#include "base/json.h"

#include <string.h>

#include <math.h>
#include <stdlib.h>

enum { SAMPLE_TARGETS = 20000, SAMPLE_EXAMPLES = 200 };

typedef struct base { /* a model folder that was looked at */
    const char *folder;
    int64_t parameters, lora_peak, full_peak; /* peaks: bytes */
    tm_situation seen;
} base;

/* --- Recipes like the request's --- */

/* The request's recipe with more overrides; model|0. */
static tm_status load(const tm_advise_request *r, const char *model, const char *const *more, size_t count, tm_recipe **out, tm_error *err)
{
    tm_names list = {0};
    tm_buf line = {0};
    tm_status st = TM_OK;
    for (size_t i = 0; i < r->source.override_count; i++)
        TM_GO(tm_names_add(&list, r->source.overrides[i], err));
    if (model) {
        tm_buf_text(&line, "model=");
        tm_json_put_string(&line, model);
        TM_GO(tm_buf_check(&line, err));
        TM_GO(tm_names_add(&list, line.data, err));
    }
    for (size_t i = 0; i < count; i++)
        TM_GO(tm_names_add(&list, more[i], err));
    st = tm_recipe_load(r->source.path, list.item, (size_t)list.count, out, err);
out:
    tm_buf_deinit(&line);
    tm_names_deinit(&list);
    return st;
}

/* Rows of what the model can already that the recipe names; without a path: none. */
static const tm_data_entry *old_rows(const tm_recipe *r) { return r->replay.path ? &r->replay : &r->ewc; }

/* Without what the recipe would do to keep old skills: nothing of it is wanted to look. */
static void drop_keeping(tm_recipe *r)
{
    r->generate_samples = 0;
    r->ewc_lambda = r->l2sp_lambda = r->kl_beta = r->der_alpha = r->stm_threshold = r->stm_fraction = 0;
    r->average_kind = 0;
    free(r->replay.path);
    free(r->ewc.path);
    r->replay.path = r->ewc.path = NULL;
}

/* --- Looking --- */

/* Examples of a set that are enough to know its mean loss; *targets: that they have. */
static int64_t sample_of(const tm_dataset *data, int64_t *targets)
{
    int64_t n = 0, all = tm_dataset_count(data);
    for (*targets = 0; n < all && n < SAMPLE_EXAMPLES && *targets < SAMPLE_TARGETS; n++)
        *targets += tm_dataset_at(data, n)->targets;
    return n;
}

/* Adds losses of a set's sample; counts those that surprise. */
static tm_status add_losses(tm_trainer *t, const tm_dataset *data, double *sum, int64_t *targets, int64_t *surprising, tm_error *err)
{
    int64_t n, examples = sample_of(data, &n);
    float *loss;
    TM_TRY(TM_NEW(&loss, n + 1, err));
    tm_status st = tm_trainer_base_losses(t, data, 0, examples, loss, err);
    for (int64_t i = 0; i < n && st == TM_OK; i++) {
        *sum += (double)loss[i];
        *surprising += (double)loss[i] > log(TM_SURPRISING);
    }
    *targets += n;
    free(loss);
    return st;
}

static tm_status measure(tm_job *job, tm_situation *s, tm_error *err)
{
    tm_trainer *t;
    double sum[2] = {0};
    int64_t targets[2] = {0}, surprising[2] = {0};
    job->run.add_hooks = NULL;
    TM_TRY(tm_plan_memory(&job->run, job->target.traits, job->own, &job->plan, err));
    TM_TRY(tm_job_fits(job, NULL, NULL, err));
    TM_TRY(tm_trainer_create(&job->run, job->device, job->plan.part, &t, err));
    tm_status st = tm_model_load(&t->model, job->file, job->recipe->model, err);
    if (st == TM_OK)
        st = add_losses(t, job->data, &sum[0], &targets[0], &surprising[0], err);
    for (int64_t i = 0; i < job->eval_count && st == TM_OK; i++)
        if (job->evals[i].probe)
            st = add_losses(t, job->evals[i].data, &sum[1], &targets[1], &surprising[1], err);
    tm_trainer_destroy(t);
    s->surprise = targets[0] ? sum[0] / (double)targets[0] : NAN;
    s->surprising = targets[0] ? (double)surprising[0] / (double)targets[0] : NAN;
    s->known = targets[1] ? sum[1] / (double)targets[1] : NAN;
    return st;
}

static bool documents(const tm_recipe *r, const tm_dataset *data)
{
    for (int64_t i = 0; i < r->data_count; i++)
        if (r->data[i].format != TM_FORMAT_TEXT && r->data[i].format != TM_FORMAT_AUTO)
            return false;
    for (int64_t i = 0; i < tm_dataset_count(data); i++) { /* in plain text every token but the first is a target */
        const tm_example *e = tm_dataset_at(data, i);
        if (e->targets < e->n - 1)
            return false;
    }
    return true;
}

/* The data, and the base's losses on them. */
static tm_status look_at_data(const tm_advise_request *r, base *b, tm_error *err)
{
    static const char *const untouched[] = {"method=none"};
    tm_recipe *recipe;
    tm_job job;
    tm_situation *s = &b->seen;
    TM_TRY(load(r, b->folder, untouched, 1, &recipe, err));
    bool old_data = old_rows(recipe)->path != NULL, probes = recipe->probe_count > 0;
    drop_keeping(recipe);
    if (!recipe->data_count) {
        tm_recipe_destroy(recipe);
        return tm_fail(err, TM_RECIPE, "advise: the recipe has no data: expected data: a list of {path: FILE}, or --data FILE");
    }
    if (recipe->init == TM_INIT_RANDOM) {
        tm_recipe_destroy(recipe);
        return tm_fail(err, TM_RECIPE, "advise: a model that starts at random (init: random) knows nothing that could be kept; expected init: weights");
    }
    TM_TRY(tm_job_open(recipe, TM_JOB_MEASURE, &job, err));
    *s = (tm_situation){.examples = tm_dataset_count(job.data), .documents = documents(recipe, job.data), .old_data = old_data, .probes = probes,
                        .tasks = r->tasks > 1 ? r->tasks : 1, .surprise = NAN, .known = NAN, .surprising = NAN};
    for (int64_t i = 0; i < s->examples; i++) {
        s->tokens += tm_dataset_at(job.data, i)->n;
        s->targets += tm_dataset_at(job.data, i)->targets;
    }
    tm_status st = measure(&job, s, err);
    tm_job_close(&job);
    return st;
}

/* Whether importances of examples like the data's can be measured where the job goes. */
static tm_status measuring_fits(tm_job *job, bool *fits, tm_error *err)
{
    tm_measuring *measuring;
    tm_memory_plan plan;
    int64_t tokens;
    TM_TRY(tm_measuring_open(job, &measuring, err));
    tm_status st = tm_measuring_plan(measuring, &plan, &tokens, err);
    tm_measuring_close(measuring);
    *fits = st == TM_OK;
    return st == TM_NO_FIT ? TM_OK : st;
}

/* The same with keep.ewc. What it does not support (DoRA) does not fit either. */
static tm_status look_at_ewc(const tm_advise_request *r, const base *b, const char *method, bool *fits, tm_error *err)
{
    tm_recipe *recipe;
    tm_job job;
    *fits = false;
    TM_TRY(load(r, b->folder, &method, 1, &recipe, err));
    drop_keeping(recipe);
    recipe->ewc_lambda = 1;
    recipe->master = TM_MASTER_F32;
    tm_status st = tm_job_open(recipe, TM_JOB_PLAN, &job, err);
    if (st != TM_OK)
        return st == TM_UNSUPPORTED ? TM_OK : st;
    if (tm_target_fits(&job.target, job.plan.peak))
        st = measuring_fits(&job, fits, err);
    tm_job_close(&job);
    return st == TM_UNSUPPORTED ? TM_OK : st;
}

/* Whether a method fits the device, however it is laid out. */
static tm_status look_at_memory(const tm_advise_request *r, base *b, const char *method, bool *fits, int64_t *peak, tm_error *err)
{
    tm_recipe *recipe;
    tm_job job;
    TM_TRY(load(r, b->folder, &method, 1, &recipe, err));
    drop_keeping(recipe);
    recipe->master = TM_MASTER_F32;
    TM_TRY(tm_job_open(recipe, TM_JOB_PLAN, &job, err));
    *fits = tm_target_fits(&job.target, job.plan.peak);
    *peak = job.plan.peak + job.target.reserve;
    b->parameters = job.plan.parameters;
    tm_job_close(&job);
    return TM_OK;
}

static tm_status look(const tm_advise_request *r, base *b, tm_error *err)
{
    TM_TRY(look_at_data(r, b, err));
    TM_TRY(look_at_memory(r, b, "method=lora", &b->seen.lora_fits, &b->lora_peak, err));
    TM_TRY(look_at_memory(r, b, "method=full", &b->seen.full_fits, &b->full_peak, err));
    if (!b->seen.old_data)
        return TM_OK;
    TM_TRY(look_at_ewc(r, b, "method=lora", &b->seen.lora_ewc_fits, err));
    return look_at_ewc(r, b, "method=full", &b->seen.full_ewc_fits, err);
}

/* The largest that fits: what it knows needs no teaching. */
static const base *choose(const base *all, size_t count)
{
    const base *best = &all[0];
    for (size_t i = 1; i < count; i++)
        if (all[i].seen.lora_fits > best->seen.lora_fits || (all[i].seen.lora_fits == best->seen.lora_fits && all[i].parameters > best->parameters))
            best = &all[i];
    return best;
}

/* --- Saying it --- */

/* Which rows, and how they are read as far as the recipe says: a key a line, the first at `first`, the others at `depth`. */
static tm_status put_rows(const tm_data_entry *entry, const char *first, int depth, tm_buf *out, tm_error *err)
{
    static const char *const keys[] = {"path", "format", "loss", "columns", "system", "template", "roles"};
    tm_buf text = {0};
    json_t *json = NULL;
    tm_status st = tm_data_entry_to_json(entry, &text, err);
    if (st == TM_OK)
        st = tm_json_parse(text.data, text.size, "data", &json, err);
    for (size_t i = 0; i < sizeof keys / sizeof *keys && st == TM_OK; i++) {
        const json_t *value = json_object_get(json, keys[i]);
        bool plain = json_is_null(value) || (json_is_object(value) && !json_object_size(value)) || (json_is_string(value) && i && strcmp(json_string_value(value), "auto") == 0);
        char *written = plain ? NULL : json_dumps(value, JSON_ENCODE_ANY);
        if (written)
            tm_buf_printf(out, "%*s%s%s: %s\n", i ? depth : 0, "", i ? "" : first, keys[i], written);
        free(written);
    }
    json_decref(json);
    tm_buf_deinit(&text);
    return st;
}

/* The settings as YAML: keys of one group stand together. Old rows go with the first key of their group. */
static tm_status put_settings(const tm_counsel *c, const tm_data_entry *old, tm_buf *out, tm_error *err)
{
    const char *before = "";
    for (int i = 0; i < c->count; i++) {
        const char *key = c->item[i].key, *dot;
        if (!key)
            continue;
        size_t same = 0; /* up to the last dot that the one before has too */
        for (size_t k = 0; key[k] && key[k] == before[k]; k++)
            same = key[k] == '.' ? k + 1 : same;
        int depth = 0;
        for (size_t k = 0; k < same; k++)
            depth += key[k] == '.';
        for (const char *at = key + same; (dot = strchr(at, '.')); at = dot + 1, depth++)
            tm_buf_printf(out, "%*s%.*s:\n", 2 * depth, "", (int)(dot - at), at);
        tm_buf_printf(out, "%*s%s: %s\n", 2 * depth, "", strrchr(key, '.') ? strrchr(key, '.') + 1 : key, c->item[i].value);
        before = key;
        if (old->path && (strcmp(key, "keep.replay.fraction") == 0 || strcmp(key, "keep.ewc.lambda") == 0)) {
            tm_buf_printf(out, "%*s", 2 * depth, "");
            TM_TRY(put_rows(old, "", 2 * depth, out, err));
        }
    }
    return TM_OK;
}

static tm_status put_recipe(const tm_recipe *r, const base *b, const tm_counsel *c, tm_buf *out, tm_error *err)
{
    tm_buf_text(out, "model: ");
    tm_json_put_string(out, b->folder);
    tm_buf_text(out, "\ndata:\n");
    for (int64_t i = 0; i < r->data_count; i++)
        TM_TRY(put_rows(&r->data[i], "  - ", 4, out, err));
    return put_settings(c, old_rows(r), out, err);
}

static void put_nats(tm_buf *out, double value) { tm_buf_printf(out, isnan(value) ? "not measured" : "%.2f nats", value); }

static tm_status put_text(const tm_recipe *r, const base *all, size_t count, const base *b, const tm_counsel *c, tm_buf *out, tm_error *err)
{
    static const char *const shift[] = {[TM_SHIFT_NEAR] = "near", [TM_SHIFT_MILD] = "a mild shift", [TM_SHIFT_STRONG] = "far"};
    const tm_situation *s = &b->seen;
    tm_buf_printf(out, "data       %lld examples, %lld tokens, %lld targets%s\n", (long long)s->examples, (long long)s->tokens, (long long)s->targets, s->documents ? "; plain text" : "");
    tm_buf_text(out, "surprise   ");
    put_nats(out, s->surprise);
    tm_buf_text(out, " a target under the base; old skills ");
    put_nats(out, s->known);
    tm_buf_printf(out, ": %s", shift[tm_shift_of(s)]);
    if (!isnan(s->surprising))
        tm_buf_printf(out, "; %.0f %% of targets have a perplexity above %g", 100 * s->surprising, TM_SURPRISING);
    tm_buf_printf(out, "\nold data   %s; %s\n", !s->old_data ? "none given" : r->replay.path ? "keep.replay.path" : "keep.ewc.path", s->probes ? "probes watch old skills" : "no probes");
    for (size_t i = 0; i < count; i++)
        tm_buf_printf(out, "base       %s: %.3g million parameters; LoRA %.2f GB%s, all weights %.2f GB%s; %.2f nats%s\n", all[i].folder, (double)all[i].parameters * 1e-6,
                      (double)all[i].lora_peak * 1e-9, all[i].seen.lora_fits ? "" : " (does not fit)", (double)all[i].full_peak * 1e-9, all[i].seen.full_fits ? "" : " (does not fit)",
                      all[i].seen.surprise, count > 1 && &all[i] == b ? "  <- the largest that fits" : "");
    tm_buf_text(out, "\nadvice\n");
    bool used[TM_EVIDENCE_COUNT] = {false};
    for (int i = 0; i < c->count; i++) {
        const tm_advised *a = &c->item[i];
        if (a->key)
            tm_buf_printf(out, "  %s: %s\n      %s [%d]\n", a->key, a->value, a->reason, (int)a->evidence);
        else
            tm_buf_printf(out, "  %s [%d]\n", a->reason, (int)a->evidence);
        used[a->evidence] = true;
    }
    tm_buf_text(out, "\nwhat it rests on\n");
    for (int i = 0; i < TM_EVIDENCE_COUNT; i++)
        if (used[i])
            tm_buf_printf(out, "  [%d] %s\n", i, tm_evidence_text((tm_evidence)i));
    tm_buf_text(out, "\nrecipe (what it does not name stays as in yours)\n---\n");
    return put_recipe(r, b, c, out, err);
}

static void put_member(tm_buf *out, const char *key, double value)
{
    tm_buf_printf(out, ", \"%s\": ", key);
    tm_json_put_number(out, value);
}

static tm_status put_json(const tm_recipe *r, const base *all, size_t count, const base *b, const tm_counsel *c, tm_buf *out, tm_error *err)
{
    static const char *const shift[] = {[TM_SHIFT_NEAR] = "near", [TM_SHIFT_MILD] = "mild", [TM_SHIFT_STRONG] = "strong"};
    const tm_situation *s = &b->seen;
    tm_buf_printf(out, "{\"examples\": %lld, \"tokens\": %lld, \"targets\": %lld, \"documents\": %s, \"shift\": \"%s\"", (long long)s->examples, (long long)s->tokens, (long long)s->targets,
                  s->documents ? "true" : "false", shift[tm_shift_of(s)]);
    put_member(out, "surprise", s->surprise);
    put_member(out, "known", s->known);
    put_member(out, "surprising", s->surprising);
    tm_buf_printf(out, ", \"old_data\": %s, \"probes\": %s, \"tasks\": %lld, \"retrieve\": %s, \"bases\": [", s->old_data ? "true" : "false", s->probes ? "true" : "false", (long long)s->tasks,
                  c->retrieve ? "true" : "false");
    for (size_t i = 0; i < count; i++) {
        tm_buf_text(out, i ? ", {\"folder\": " : "{\"folder\": ");
        tm_json_put_string(out, all[i].folder);
        tm_buf_printf(out, ", \"parameters\": %lld, \"lora_bytes\": %lld, \"lora_fits\": %s, \"full_bytes\": %lld, \"full_fits\": %s", (long long)all[i].parameters, (long long)all[i].lora_peak,
                      all[i].seen.lora_fits ? "true" : "false", (long long)all[i].full_peak, all[i].seen.full_fits ? "true" : "false");
        put_member(out, "surprise", all[i].seen.surprise);
        tm_buf_printf(out, ", \"chosen\": %s}", &all[i] == b ? "true" : "false");
    }
    tm_buf_text(out, "], \"advice\": [");
    for (int i = 0; i < c->count; i++) {
        const tm_advised *a = &c->item[i];
        tm_buf_text(out, i ? ",\n  {\"key\": " : "\n  {\"key\": ");
        a->key ? tm_json_put_string(out, a->key) : tm_buf_text(out, "null");
        tm_buf_text(out, ", \"value\": ");
        a->key ? tm_json_put_string(out, a->value) : tm_buf_text(out, "null");
        tm_buf_text(out, ", \"reason\": ");
        tm_json_put_string(out, a->reason);
        tm_buf_text(out, ", \"evidence\": ");
        tm_json_put_string(out, tm_evidence_text(a->evidence));
        tm_buf_char(out, '}');
    }
    tm_buf recipe = {0};
    tm_status st = put_recipe(r, b, c, &recipe, err);
    tm_buf_text(out, "], \"recipe\": ");
    out->failed |= recipe.failed;
    tm_json_put_string(out, tm_buf_str(&recipe));
    tm_buf_text(out, "}\n");
    tm_buf_deinit(&recipe);
    return st;
}

tm_status tm_advise_recipe(const tm_advise_request *r, char **text, tm_error *err)
{
    tm_status st = TM_OK;
    tm_recipe *recipe = NULL;
    base *all = NULL;
    tm_buf out = {0};
    tm_counsel counsel;
    size_t count = r->base_count ? r->base_count : 1;
    *text = NULL;
    TM_GO(load(r, NULL, NULL, 0, &recipe, err));
    if (!recipe->model && !r->base_count)
        TM_GO(tm_fail(err, TM_RECIPE, "advise: key model is missing: expected a model folder, or --base DIR"));
    TM_GO(TM_NEW(&all, count, err));
    for (size_t i = 0; i < count; i++) {
        all[i].folder = r->base_count ? r->bases[i] : recipe->model;
        TM_GO(look(r, &all[i], err));
    }
    const base *b = choose(all, count);
    tm_counsel_give(&b->seen, &counsel);
    TM_GO((r->json ? put_json : put_text)(recipe, all, count, b, &counsel, &out, err));
    TM_GO(tm_buf_check(&out, err));
    *text = out.data;
    out = (tm_buf){0};
out:
    tm_buf_deinit(&out);
    free(all);
    tm_recipe_destroy(recipe);
    return st;
}
