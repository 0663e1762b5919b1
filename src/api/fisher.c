/* temper fisher, and the same before a run with keep.ewc: importances of old data, measured by a trainer of their own, which is gone
 * before the run's memory is taken. */
#include "api/job.h"

#include "base/clock.h"
#include "io/hf.h"
#include "keep/measure.h"

#include <math.h>
#include <stdlib.h>

/* A run that measures; the job lends it device, weights and settings. */
typedef struct measuring {
    tm_job *job;
    const tm_callbacks *callbacks;
    tm_recipe recipe;      /* the job's but for what a measurement needs otherwise; borrows */
    tm_run run;
    tm_dataset *own;       /* of keep.ewc.path; NULL: the job's data */
    tm_tokenizer *tokenizer; /* opened for it */
    tm_order *order;
    tm_importance_facts facts;
    tm_memory_plan plan;
    double started;
} measuring;

static void measuring_close(measuring *m)
{
    tm_order_destroy(m->order);
    tm_dataset_destroy(m->own);
    tm_tokenizer_close(m->tokenizer);
}

static bool beneath(const tm_recipe *r) { return r->method == TM_METHOD_LORA && r->ewc_space == TM_EWC_DELTA; }

/* --- Data --- */

static tm_status load_old(measuring *m, tm_error *err)
{
    const tm_recipe *r = m->job->recipe;
    if (!r->ewc.path) {
        m->run.data = m->job->data;
        return m->run.data ? TM_OK : tm_fail(err, TM_RECIPE, "keep.ewc.path: importances are measured on old data: give its path, or data");
    }
    tm_pool *pool = NULL;
    int64_t vocab, seq;
    TM_TRY(tm_job_longest(r, &vocab, &seq, err));
    if (!m->job->tokenizer && tm_tokenizer_is_in(r->model))
        TM_TRY(tm_tokenizer_open(r->model, &m->tokenizer, err));
    tm_data_settings settings = tm_job_data_settings(r, m->job->tokenizer ? m->job->tokenizer : m->tokenizer, vocab, m->job->cache);
    TM_TRY(tm_pool_create((int)r->threads, &pool, err));
    tm_status st = tm_dataset_load(&r->ewc, 1, &settings, pool, &m->own, err);
    tm_pool_destroy(pool);
    m->run.data = m->own;
    return st;
}

/* So many steps of the order as have keep.ewc.samples examples, each example once: chosen by seeds.subset. */
static tm_status choose_examples(measuring *m, tm_error *err)
{
    static const double none[TM_REHEARSALS]; /* of the job's data, not what is rehearsed */
    const tm_recipe *r = &m->recipe;
    tm_order_settings settings = {.seed = m->job->seeds.subset, .mix = r->mix, .shuffle = true, .batch = r->batch, .batch_tokens = r->batch_tokens,
                                  .accumulate = r->accumulate, .epochs = 1, .rehearsal = none, .rehearsals = m->own ? 0 : m->job->rehearsal.count};
    TM_TRY(tm_order_create(m->run.data, NULL, &settings, &m->order, err));
    m->facts.samples = 0;
    for (m->run.steps = 0; m->run.steps < tm_order_steps(m->order) && m->facts.samples < r->ewc_samples; m->run.steps++) {
        const int64_t *examples;
        int64_t n;
        tm_order_step(m->order, m->run.steps, &examples, &n);
        m->facts.samples += n;
    }
    m->run.order = &m->order;
    return TM_OK;
}

/* --- What is measured, said in the file --- */

static tm_status hash_data(const tm_dataset *data, int64_t sources, tm_sha256 *out, tm_error *err)
{
    *out = *tm_dataset_hash(data, 0);
    if (sources == 1)
        return TM_OK;
    tm_buf all = {0};
    for (int64_t i = 0; i < sources; i++)
        tm_buf_text(&all, tm_dataset_hash(data, i)->hex);
    tm_status st = tm_buf_check(&all, err);
    if (st == TM_OK)
        st = tm_sha256_bytes(all.data, all.size, out, err);
    tm_buf_deinit(&all);
    return st;
}

static tm_status gather_facts(measuring *m, tm_error *err)
{
    const tm_recipe *r = m->job->recipe;
    tm_importance_facts *f = &m->facts;
    bool path = r->ewc_importance == TM_IMPORTANCE_PATH;
    const char *from = tm_tuning_from(r);
    f->kind = path ? "path" : "fisher";
    f->labels = path || r->ewc_fisher == TM_FISHER_EMPIRICAL ? "empirical" : "sampled";
    f->space = r->method != TM_METHOD_LORA ? "trained" : beneath(r) ? "delta" : "factors";
    f->seed = m->job->seeds.subset;
    f->gamma = r->ewc_gamma;
    f->weight = 1;
    f->tasks = 1;
    if (path)
        snprintf(f->training, sizeof f->training, "%s, rate %g, batches of %lld", r->optimizer == TM_OPTIM_ADAMW ? "adamw" : "sgd", m->recipe.lr, (long long)r->batch);
    if (from) {
        const tm_method *method;
        TM_TRY(tm_method_find(r->method, &method, err));
        char *file = tm_path_join(from, method->file, err);
        tm_status st = file ? tm_sha256_file(file, &f->start, err) : TM_NO_MEMORY;
        free(file);
        TM_TRY(st);
    }
    TM_TRY(hash_data(m->run.data, m->own ? 1 : r->data_count, &f->data, err));
    return tm_hf_hash(r->model, &f->model, err);
}

/* --- The run that measures --- */

static void on_progress(void *context, const tm_trainer *t)
{
    measuring *m = context;
    if (!m->callbacks->progress)
        return;
    double done = (double)t->step, elapsed = tm_clock_seconds() - m->started;
    tm_train_progress p = {.step = t->step, .steps = t->run->steps, .measuring = true, .loss = NAN, .tokens_per_s = NAN, .share = NAN,
                           .seconds_left = done > 0 ? elapsed / done * (double)(t->run->steps - t->step) : NAN};
    m->callbacks->progress(m->callbacks->context, &p);
}

static bool on_interrupted(void *context)
{
    const measuring *m = context;
    return m->callbacks->interrupted && m->callbacks->interrupted(m->callbacks->context);
}

/* Fisher: no optimiser's state. A path is gone with the recipe's own optimiser, at a constant rate from the first step on; weights under
 * LoRA go with full training's share of the rate. */
static void adapt_recipe(measuring *m)
{
    tm_recipe *r = &m->recipe;
    *r = *m->job->recipe;
    r->eval_count = r->probe_count = 0;
    bool path = r->ewc_importance == TM_IMPORTANCE_PATH;
    r->schedule = TM_SCHEDULE_CONSTANT;
    r->warmup_steps = 0;
    if (beneath(r))
        r->lr *= tm_method_beneath.auto_lr / tm_method_lora.auto_lr;
    if (path)
        return;
    r->batch = r->accumulate = 1;
    r->batch_tokens = 0;
    r->optimizer = TM_OPTIM_SGD;
    r->momentum = 0;
    r->master = TM_MASTER_F32;
}

static tm_status open_measuring(measuring *m, tm_job *job, const tm_callbacks *callbacks, tm_error *err)
{
    static const tm_callbacks silent = {0};
    *m = (measuring){.job = job, .callbacks = callbacks ? callbacks : &silent, .started = tm_clock_seconds()};
    adapt_recipe(m);
    m->run = (tm_run){.recipe = &m->recipe, .method = beneath(job->recipe) ? &tm_method_beneath : NULL, .model_dir = job->run.model_dir, .file = job->run.file, .dtype = job->run.dtype,
                      .replicas = 1, .seeds = job->run.seeds, .prompt_ids = job->run.prompt_ids, .prompt_id_count = job->run.prompt_id_count,
                      .add_hooks = tm_measure_add, .interrupted = on_interrupted, .progress = on_progress, .context = m};
    if (job->recipe->lora_registers.count)
        return tm_fail(err, TM_UNSUPPORTED, "keep.ewc: importances of registers are not measured; leave out lora.registers or keep.ewc");
    TM_TRY(load_old(m, err));
    return choose_examples(m, err);
}

/* As the run itself is laid out and planned, for these examples; *all: their tokens. */
static tm_status plan_measuring(measuring *m, int64_t *all, tm_error *err)
{
    tm_layout asked = m->job->asked;
    int64_t longest = 0, tokens = 0;
    *all = 0;
    for (int64_t s = 0; s < m->run.steps; s++) {
        const int64_t *examples;
        int64_t n, here = 0;
        tm_order_step(m->order, s, &examples, &n);
        for (int64_t i = 0; i < n; i++) {
            int64_t rows = tm_dataset_at(m->run.data, examples[i])->n + (m->recipe.method == TM_METHOD_PROMPT ? m->recipe.prompt_tokens : 0);
            longest = rows > longest ? rows : longest;
            here += rows;
        }
        tokens = here > tokens ? here : tokens;
        *all += here;
    }
    asked.longest = asked.shortest = longest;
    asked.most = tokens;
    return tm_layout_choose(&m->run, &m->recipe, &asked, &m->job->target, &m->plan, err);
}

static tm_status check_fit(const measuring *m, tm_error *err)
{
    if (tm_target_fits(&m->job->target, m->plan.peak))
        return TM_OK;
    return tm_fail(err, TM_NO_FIT, "measuring importances needs %.2f GiB of memory, %.2f are available: fewer lora.target_modules, shorter train.seq, or keep.ewc.importances measured on a larger machine",
                   (double)m->plan.peak / (1 << 30), (double)(m->job->target.memory - m->job->target.reserve) / (1 << 30));
}

/* Mean importance of every block, of what is measured. */
static tm_status put_summary(const char *path, const tm_importance_facts *f, double mean, tm_buf *out, tm_error *err)
{
    tm_safetensors *file;
    TM_TRY(tm_importances_open(path, &file, err));
    int64_t elements = 0;
    for (int64_t i = 0; i < tm_safetensors_count(file); i++)
        elements += tm_safetensors_at(file, i)->count;
    tm_buf_printf(out, "%s: %s (labels %s, space %s) of %lld examples\n%lld tensors, %lld importances, mean 1 (measured: %.4g)", path, f->kind, f->labels, f->space,
                  (long long)f->samples, (long long)tm_safetensors_count(file), (long long)elements, mean);
    if (f->tasks > 1)
        tm_buf_printf(out, "; %lld tasks, gamma %g, weight %g", (long long)f->tasks, f->gamma, f->weight);
    tm_buf_text(out, "\n  mean  max     tensor\n");
    for (int64_t i = 0; i < tm_safetensors_count(file); i++) {
        const tm_st_tensor *t = tm_safetensors_at(file, i);
        double sum = 0, most = 0;
        for (int64_t k = 0; k < t->count; k++) {
            float value;
            memcpy(&value, (const char *)t->data + 4 * k, 4);
            sum += value;
            most = value > most ? value : most;
        }
        tm_buf_printf(out, "  %-5.3g %-7.3g %s\n", sum / (double)t->count, most, t->name);
    }
    tm_safetensors_close(file);
    return tm_buf_check(out, err);
}

static tm_status measure(measuring *m, const char *path, const char *old, double *mean, tm_error *err)
{
    tm_trainer *trainer;
    int64_t tokens;
    TM_TRY(plan_measuring(m, &tokens, err));
    TM_TRY(check_fit(m, err));
    TM_TRY(tm_trainer_create(&m->run, m->job->device, m->plan.part, &trainer, err));
    tm_status st = old ? tm_measure_check(trainer, old, err) : TM_OK;
    if (st == TM_OK)
        st = tm_measure_run(trainer, err);
    if (st == TM_OK)
        st = tm_measure_write(trainer, path, &m->facts, old, mean, err);
    tm_trainer_destroy(trainer);
    return st;
}

/* Before anything is measured: the folder that the file goes to. */
static tm_status check_place(const char *path, tm_error *err)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash && slash > path ? strndup(path, (size_t)(slash - path)) : NULL;
    tm_status st = folder && !tm_path_is_dir(folder) ? tm_fail(err, TM_USAGE, "--out %s: there is no folder %s", path, folder) : TM_OK;
    free(folder);
    return st;
}

tm_status tm_fisher(const tm_fisher_request *request, const tm_callbacks *callbacks, char **text, tm_error *err)
{
    tm_recipe *recipe;
    *text = NULL;
    TM_TRY(check_place(request->out, err));
    TM_TRY(tm_recipe_load(request->source.path, request->source.overrides, request->source.override_count, &recipe, err));
    return tm_fisher_recipe(NULL, recipe, request->out, request->add, callbacks, text, err);
}

tm_status tm_fisher_recipe(tm_workshop *shop, tm_recipe *recipe, const char *path, const char *add, const tm_callbacks *callbacks, char **text, tm_error *err)
{
    tm_job job;
    measuring m = {0};
    tm_buf out = {0};
    double mean;
    tm_status st;
    *text = NULL;
    TM_TRY(tm_job_open_in(shop, recipe, TM_JOB_MEASURE, &job, err));
    if (recipe->method == TM_METHOD_NONE)
        TM_GO(tm_fail(err, TM_RECIPE, "method: none trains nothing: importances are of what is trained"));
    TM_GO(open_measuring(&m, &job, callbacks, err));
    TM_GO(gather_facts(&m, err));
    TM_GO(measure(&m, path, add, &mean, err));
    TM_GO(put_summary(path, &m.facts, mean, &out, err));
    *text = out.data;
    out = (tm_buf){0};
out:
    tm_buf_deinit(&out);
    measuring_close(&m);
    tm_job_close(&job);
    return st;
}

/* --- Before a run --- */

/* Whether the file at path was measured for this very run: by one that was killed. */
static bool measured_before(const char *path, const tm_importance_facts *facts)
{
    tm_safetensors *file;
    tm_error ignored;
    if (!tm_path_exists(path) || tm_importances_open(path, &file, &ignored) != TM_OK)
        return false;
    bool same = tm_importances_match(file, facts);
    tm_safetensors_close(file);
    return same;
}

/* For run.json: which adapters keep.orthogonal stays away from. */
static tm_status hash_previous(tm_job *job, tm_error *err)
{
    const tm_names *previous = &job->recipe->orthogonal_previous;
    for (int64_t i = 0; i < previous->count; i++) {
        tm_sha256 hash;
        char *file = tm_path_join(previous->item[i], tm_method_lora.file, err);
        tm_status st = file ? tm_sha256_file(file, &hash, err) : TM_NO_MEMORY;
        free(file);
        TM_TRY(st);
        TM_TRY(tm_names_add(&job->previous_hashes, hash.hex, err));
    }
    return TM_OK;
}

tm_status tm_job_importances(tm_job *job, const tm_callbacks *callbacks, tm_error *err)
{
    const tm_recipe *r = job->recipe;
    measuring m = {0};
    double mean;
    tm_status st = TM_OK;
    if (r->orthogonal_lambda > 0)
        TM_TRY(hash_previous(job, err));
    if (r->ewc_lambda == 0 || r->method == TM_METHOD_NONE)
        return TM_OK;
    job->importances = r->ewc_importances ? tm_strdup(r->ewc_importances, err) : tm_path_join(job->folder.dir, "importances.safetensors", err);
    if (!job->importances)
        return TM_NO_MEMORY;
    job->run.importances = job->importances;
    if (!r->ewc_importances) {
        if (!r->ewc.path)
            return tm_fail(err, TM_RECIPE, "keep.ewc.lambda: give keep.ewc.importances (temper fisher writes such a file), or old data in keep.ewc.path");
        TM_GO(open_measuring(&m, job, callbacks, err));
        TM_GO(gather_facts(&m, err));
        if (!measured_before(job->importances, &m.facts)) {
            if (callbacks->note)
                callbacks->note(callbacks->context, "measuring importances of old data (keep.ewc)");
            TM_GO(measure(&m, job->importances, NULL, &mean, err));
            job->device->peak_bytes = job->device->used_bytes; /* what follows is the run, whose peak is held against its plan */
        }
    }
    TM_GO(tm_sha256_file(job->importances, &job->importances_hash, err));
out:
    measuring_close(&m);
    return st;
}

/* --- In a plan --- */

bool tm_job_measures(const tm_recipe *r) { return r->ewc_lambda > 0 && !r->ewc_importances && r->ewc.path && r->method != TM_METHOD_NONE; }

struct tm_measuring {
    measuring m;
};

tm_status tm_measuring_open(tm_job *job, tm_measuring **out, tm_error *err)
{
    TM_TRY(TM_NEW(out, 1, err));
    tm_status st = open_measuring(&(*out)->m, job, NULL, err);
    if (st == TM_OK)
        return TM_OK;
    tm_measuring_close(*out);
    *out = NULL;
    return st;
}

void tm_measuring_close(tm_measuring *m)
{
    if (m)
        measuring_close(&m->m);
    free(m);
}

tm_status tm_measuring_plan(tm_measuring *m, tm_memory_plan *plan, int64_t *tokens, tm_error *err)
{
    TM_TRY(plan_measuring(&m->m, tokens, err));
    *plan = m->m.plan;
    return check_fit(&m->m, err);
}
