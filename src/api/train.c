/* temper train: a job from recipe to result. */
#include "api/job.h"

#include "base/clock.h"
#include "base/json.h"
#include "io/hf.h"
#include "keep/monitor.h"
#include "plan/calibrate.h"
#include "report/events.h"
#include "report/report.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>

/* --- The model's hash: computed beside the training, since it reads every byte of the model --- */

typedef struct model_hash {
    const char *dir;
    tm_sha256 hash;
    tm_status status;
    tm_error error;
    pthread_t thread;
    bool started;
} model_hash;

static void *hash_model(void *context)
{
    model_hash *h = context;
    h->status = tm_hf_hash(h->dir, &h->hash, &h->error);
    return NULL;
}

static void start_hash(model_hash *h, const char *dir)
{
    *h = (model_hash){.dir = dir};
    h->started = pthread_create(&h->thread, NULL, hash_model, h) == 0;
    if (!h->started)
        hash_model(h);
}

static tm_status finish_hash(model_hash *h, tm_error *err)
{
    if (h->started)
        pthread_join(h->thread, NULL);
    h->started = false;
    if (h->status != TM_OK && err)
        *err = h->error;
    return h->status;
}

/* --- A folder that holds a run already --- */

/* Keys that change memory and speed but no result, and where the folder is: a resumed run may differ in them. */
static const char *const layout_keys[][2] = {{NULL, "out"}, {NULL, "threads"}, {NULL, "cache"}, {"train", "packing"}, {"train", "micro_tokens"}, {"train", "recompute"}, {"train", "recompute_layers"}, {"train", "offload"}, {"train", "graphs"}, {"train", "keep_checkpoints"}};

/* The first key in which two values differ, as text; "" when they agree. */
static void first_difference(json_t *value, json_t *other, const char *name, tm_buf *out)
{
    const char *key, *dot = *name ? "." : "";
    char inner[256];
    json_t *item;
    size_t i;
    if (out->size || json_equal(value, other))
        return;
    if (json_is_object(value) && json_is_object(other)) {
        json_object_foreach(value, key, item) {
            snprintf(inner, sizeof inner, "%s%s%s", name, dot, key);
            first_difference(item, json_object_get(other, key), inner, out);
        }
        return;
    }
    if (json_is_array(value) && json_array_size(value) == json_array_size(other)) {
        json_array_foreach(value, i, item) {
            snprintf(inner, sizeof inner, "%s%s%zu", name, dot, i);
            first_difference(item, json_array_get(other, i), inner, out);
        }
        return;
    }
    char *was = other ? json_dumps(other, JSON_COMPACT | JSON_ENCODE_ANY) : NULL, *is = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    tm_buf_printf(out, "%s is %s, the run there has %s", name, is ? is : "?", was ? was : "none");
    free(was);
    free(is);
}

/* Where a base matrix is trained on a GPU, its gradient is one sum over a micro-batch: then this is no layout. */
static bool micro_batches_count(const tm_job *job)
{
    return job->device->traits.apart && (job->recipe->method == TM_METHOD_FULL || job->recipe->method == TM_METHOD_FREEZE);
}

static void drop_layout(const tm_job *job, json_t *recipe)
{
    for (size_t i = 0; i < sizeof layout_keys / sizeof layout_keys[0]; i++) {
        if (micro_batches_count(job) && (strcmp(layout_keys[i][1], "micro_tokens") == 0 || strcmp(layout_keys[i][1], "packing") == 0))
            continue;
        json_t *group = layout_keys[i][0] ? json_object_get(recipe, layout_keys[i][0]) : recipe;
        if (group)
            json_object_del(group, layout_keys[i][1]);
    }
}

/* One of the run's files: mine and theirs are its hashes. */
static void other_file(const json_t *mine, const json_t *theirs, const char *path, tm_buf *out)
{
    const char *is = json_string_value(mine), *was = json_string_value(theirs);
    if (!out->size && is && was && strcmp(is, was) != 0)
        tm_buf_printf(out, "%s is not what it was when that run was begun", path ? path : "its data");
}

/* A run goes on with what it was begun with: other rows would come in another order. Results and what is measured on the
 * way have hashes too, and are no matter of the start. */
static void other_files(const tm_job *job, const json_t *mine, const json_t *theirs, tm_buf *out)
{
    const tm_recipe *r = job->recipe;
    const char *const lists[] = {"data", "eval", "probes"};
    const int64_t counts[] = {r->data_count, r->eval_count, r->probe_count};
    for (int k = 0; k < 3; k++)
        for (int64_t i = 0; i < counts[k]; i++) {
            const tm_data_entry *entry = k == 0 ? &r->data[i] : k == 1 ? &r->eval[i].data : &r->probes[i].data;
            other_file(json_array_get(json_object_get(mine, lists[k]), (size_t)i), json_array_get(json_object_get(theirs, lists[k]), (size_t)i), entry->path, out);
        }
    other_file(json_object_get(mine, "replay"), json_object_get(theirs, "replay"), r->replay.path, out);
    char model[1024];
    snprintf(model, sizeof model, "the model (weights or config.json of %s)", r->model);
    other_file(json_object_get(mine, "model_sample"), json_object_get(theirs, "model_sample"), model, out);
    other_file(json_object_get(mine, "tokenizer"), json_object_get(theirs, "tokenizer"), "the model's tokenizer", out);
}

/* A run goes on where it was begun: a processor, or a GPU of the same model. */
static void other_device(const tm_job *job, json_t *run, tm_buf *out)
{
    json_t *device = json_object_get(run, "device");
    const char *name = json_string_value(json_object_get(device, "name")), *detail = json_string_value(json_object_get(device, "detail"));
    bool gpu = job->device->traits.apart;
    if (!out->size && name && *name && (strcmp(name, job->device->name) != 0 || (gpu && detail && strcmp(detail, job->device->detail) != 0)))
        tm_buf_printf(out, "it was begun on %s (%s), this is %s (%s)", name, detail ? detail : "", job->device->name, job->device->detail);
}

/* Compares with the run.json of the folder: another recipe, or other data, is refused; *finished: nothing to do. */
static tm_status look_at_folder(tm_job *job, bool *finished, tm_error *err)
{
    *finished = false;
    char *path = tm_path_join(job->folder.dir, "run.json", err);
    if (!path)
        return TM_NO_MEMORY;
    tm_status st = TM_OK;
    json_t *old = NULL, *mine = NULL;
    tm_buf text = {0}, difference = {0};
    if (!tm_path_exists(path))
        goto out;
    TM_GO(tm_json_read(path, &old, err)); /* one that cannot be read might be of a finished run */
    TM_GO(tm_job_describe(job, NULL, "", "", "", &text, err));
    TM_GO(tm_json_parse(text.data, text.size, "recipe", &mine, err));
    json_t *my_recipe = json_object_get(mine, "recipe"), *theirs = json_object_get(old, "recipe");
    drop_layout(job, my_recipe);
    drop_layout(job, theirs);
    first_difference(my_recipe, theirs, "", &difference);
    other_device(job, old, &difference);
    other_files(job, json_object_get(mine, "sha256"), json_object_get(old, "sha256"), &difference);
    TM_GO(tm_buf_check(&difference, err));
    if (difference.size)
        TM_GO(tm_fail(err, TM_LOCKED, "%s holds another run: %s; choose another out, or remove the folder", job->folder.dir, difference.data));
    const char *status = json_string_value(json_object_get(old, "status"));
    *finished = status && strcmp(status, "running") != 0 && strcmp(status, "failed") != 0;
    if (*finished && strcmp(status, "diverged") == 0) /* and would again: the same bits */
        st = tm_fail(err, TM_DIVERGED, "%s: this run diverged before; run.json says where and how; another recipe needs another out", job->folder.dir);
    if (*finished && (strcmp(status, "stopped") == 0 || strcmp(status, "rolled_back") == 0))
        st = tm_fail(err, TM_RETENTION, "%s: the retention gate ended this run before (%s)", job->folder.dir, status);
out:
    json_decref(old);
    json_decref(mine);
    tm_buf_deinit(&text);
    tm_buf_deinit(&difference);
    free(path);
    return st;
}

static tm_status write_run_json(const tm_job *job, const tm_trainer *t, const char *status, const char *model, const char *result, tm_error *err)
{
    tm_buf text = {0};
    char *path = tm_path_join(job->folder.dir, "run.json", err);
    tm_status st = path ? tm_job_describe(job, t, status, model, result, &text, err) : TM_NO_MEMORY;
    if (st == TM_OK)
        st = tm_file_write(path, text.data, text.size, err);
    free(path);
    tm_buf_deinit(&text);
    return st;
}

/* --- Watching --- */

typedef struct watching {
    const tm_callbacks *callbacks;
    double started;
    int64_t first_step, warnings_said;
} watching;

static void on_progress(void *context, const tm_trainer *t)
{
    watching *w = context;
    tm_probe_progress probes[t->run->eval_count + 1];
    int64_t n = 0;
    for (int64_t i = 0; i < t->run->eval_count; i++) {
        const tm_eval_set *set = &t->run->evals[i];
        if (set->probe)
            probes[n++] = (tm_probe_progress){set->entry->name, tm_probe_damage(set, 0), tm_probe_budget(set), set->entry->metric == TM_METRIC_KL};
    }
    for (; w->callbacks->note && w->warnings_said < t->warnings.count; w->warnings_said++)
        w->callbacks->note(w->callbacks->context, t->warnings.item[w->warnings_said]);
    if (!w->callbacks->progress)
        return;
    double elapsed = tm_clock_seconds() - w->started, done = (double)(t->step - w->first_step);
    double rate = t->step_seconds > 0 ? (double)t->result[0].tokens / t->step_seconds : NAN;
    tm_train_progress p = {.step = t->step, .steps = t->run->steps, .loss = t->step > w->first_step ? t->result[0].loss : NAN, .tokens_per_s = rate,
                           .share = tm_trainer_share(t),
                           .seconds_left = done > 0 ? elapsed / done * (double)(t->run->steps - t->step) : NAN, .probes = probes, .probe_count = n};
    w->callbacks->progress(w->callbacks->context, &p);
}

static bool on_interrupted(void *context)
{
    watching *w = context;
    return w->callbacks->interrupted && w->callbacks->interrupted(w->callbacks->context);
}

/* --- The run --- */

/* Settings of a method that nothing switches on. */
static tm_status warn_about_switches(const tm_recipe *r, tm_trainer *t, tm_error *err)
{
    static const char *const switches[][2] = {{"keep.replay", "path"}, {"keep.generate", "samples"}, {"keep.ewc", "lambda"}, {"keep.kl", "beta"}, {"keep.der", "alpha"},
                                              {"keep.average", "kind"}, {"keep.orthogonal", "previous"}, {"keep.monitor", "probes"}};
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++) {
        const char *group = switches[i][0], *set = NULL;
        char key[64];
        size_t n = strlen(group);
        snprintf(key, sizeof key, "%s.%s", group, switches[i][1]);
        if (tm_names_contain(&r->given, key) || (r->replay.path && strcmp(group, "keep.replay") == 0))
            continue;
        for (int64_t k = 0; k < r->given.count && !set; k++)
            set = strncmp(r->given.item[k], group, n) == 0 && (r->given.item[k][n] == '.' || !r->given.item[k][n]) ? r->given.item[k] : NULL;
        if (set)
            TM_TRY(tm_trainer_warn(t, err, "%s is given, but not %s: without it nothing comes of that", set, key));
    }
    return TM_OK;
}

static tm_status warn_about_recipe(const tm_job *job, tm_trainer *t, tm_error *err)
{
    const tm_recipe *r = job->recipe;
    if (job->run.steps < 50 && r->method != TM_METHOD_NONE)
        TM_TRY(tm_trainer_warn(t, err, "only %lld optimiser steps: smaller train.batch or more train.epochs give more", (long long)job->run.steps));
    TM_TRY(warn_about_switches(r, t, err));
    int64_t positions = t->model.config.max_positions;
    if (job->asked.longest > positions && r->init == TM_INIT_WEIGHTS)
        TM_TRY(tm_trainer_warn(t, err, "examples are up to %lld tokens long, and the model was made for %lld (max_position_embeddings): it may know nothing of what is behind; train.seq=%lld cuts there",
                               (long long)job->asked.longest, (long long)positions, (long long)positions));
    for (int64_t i = 0; job->data && i < tm_dataset_sources(job->data); i++) {
        const tm_dataset_stats *s = tm_dataset_stats_of(job->data, i);
        if (s->cut)
            TM_TRY(tm_trainer_warn(t, err, "%s: %lld of %lld rows are longer than train.seq = %lld tokens and were cut (%lld of them dropped: no target left)",
                                   job->entries[i].path, (long long)s->cut, (long long)s->rows, (long long)r->seq, (long long)s->dropped));
    }
    for (int64_t i = 0; i < job->warnings.count; i++)
        TM_TRY(tm_trainer_warn(t, err, "%s", job->warnings.item[i]));
    return TM_OK;
}

static const char *final_status(const tm_trainer *t)
{
    return t->verdict == TM_ROLL_BACK ? "rolled_back" : t->verdict == TM_STOP ? "stopped" : "done";
}

static tm_status hash_result(const tm_job *job, const tm_trainer *t, tm_sha256 *out, tm_error *err)
{
    if (t->recipe->method == TM_METHOD_NONE)
        return TM_OK;
    tm_names files = {0};
    tm_status st = TM_OK;
    if (t->tuning.registers.count) {
        char name[128];
        st = tm_names_add(&files, "registers.json", err);
        for (int64_t i = 0; st == TM_OK && i < t->tuning.registers.count; i++) {
            snprintf(name, sizeof name, "%s/%s", t->tuning.registers.item[i], t->tuning.method->file);
            st = tm_names_add(&files, name, err);
        }
    } else if (t->tuning.adapter_result) {
        st = tm_names_add(&files, "adapter_config.json", err);
        if (st == TM_OK)
            st = tm_names_add(&files, t->tuning.method->file, err);
    } else
        st = tm_hf_model_files(job->folder.dir, &files, err);
    if (st == TM_OK)
        st = tm_sha256_files(job->folder.dir, files.item, (size_t)files.count, out, err);
    tm_names_deinit(&files);
    return st;
}

/* What is made of the folder's files alone. */
static tm_status write_views(const tm_job *job, tm_error *err)
{
    tm_events *events;
    TM_TRY(tm_events_open_run(job->folder.dir, &events, err));
    tm_events_close(events);
    return tm_report_write(job->folder.dir, err);
}

/* Where the folder is removed soon nobody looks at it. */
static bool wants_views(const tm_job *job) { return !job->shop || !job->shop->passing; }

/* That a run diverged, err saying where, is on disk when the caller hears of it. */
static tm_status write_divergence(const tm_job *job, tm_trainer *t, const char *model, tm_error *err)
{
    tm_error problem;
    tm_status st = tm_trainer_warn(t, &problem, "%s", err ? err->message : "training diverged");
    if (st == TM_OK)
        st = write_run_json(job, t, "diverged", model, "", &problem);
    if (st == TM_OK && wants_views(job))
        st = write_views(job, &problem);
    if (st != TM_OK && err)
        *err = problem;
    return st == TM_OK ? TM_DIVERGED : st;
}

static tm_status run_trainer(tm_job *job, tm_trainer *t, watching *w, model_hash *model, tm_error *err)
{
    tm_status st = TM_OK;
    tm_sha256 result = {""};
    TM_TRY(warn_about_recipe(job, t, err));
    for (int64_t i = 0; w->callbacks->note && i < t->tuning.notes.count; i++)
        w->callbacks->note(w->callbacks->context, t->tuning.notes.item[i]);
    TM_TRY(tm_trainer_start(t, err));
    TM_TRY(write_run_json(job, t, "running", "", "", err));
    w->first_step = t->step;
    w->started = tm_clock_seconds();
    st = tm_trainer_run(t, err);
    if (st == TM_OK && t->recipe->method != TM_METHOD_NONE)
        st = tm_trainer_save(t, err);
    if (st == TM_OK)
        st = hash_result(job, t, &result, err);
    tm_error second;
    bool outcome = st == TM_OK || st == TM_DIVERGED;
    tm_status hashed = finish_hash(model, outcome ? err : NULL);
    st = outcome && hashed != TM_OK ? hashed : st;
    if (st == TM_DIVERGED)
        return write_divergence(job, t, model->hash.hex, err);
    tm_status written = write_run_json(job, t, st == TM_OK ? final_status(t) : "failed", model->hash.hex, result.hex, st == TM_OK ? err : &second);
    if (st != TM_OK || written != TM_OK)
        return st != TM_OK ? st : written;
    if (wants_views(job))
        TM_TRY(write_views(job, err));
    if (t->verdict != TM_GO_ON)
        return tm_fail(err, TM_RETENTION, "%s", t->verdict_why ? t->verdict_why : "the retention gate ended the run");
    return TM_OK;
}

static tm_status train_job(tm_job *job, const tm_callbacks *callbacks, tm_error *err)
{
    watching w = {.callbacks = callbacks};
    tm_trainer *trainer = NULL;
    bool finished;
    TM_TRY(tm_hf_sample(job->recipe->model, job->file, &job->model_sample, err));
    TM_TRY(look_at_folder(job, &finished, err));
    if (finished) {
        if (callbacks->note)
            callbacks->note(callbacks->context, "this run is finished already; nothing to do");
        return wants_views(job) && !tm_dir_has(job->folder.dir, "report.html") ? write_views(job, err) : TM_OK;
    }
    TM_TRY(tm_job_fits(job, NULL, NULL, err));
    if (job->no_gpu[0] && callbacks->note)
        callbacks->note(callbacks->context, job->no_gpu);
    job->run.progress = on_progress;
    job->run.interrupted = on_interrupted;
    job->run.context = &w;
    TM_TRY(tm_job_importances(job, callbacks, err));
    model_hash model;
    start_hash(&model, job->recipe->model);
    tm_status st = tm_trainer_create(&job->run, job->device, job->plan.part, &trainer, err);
    if (st == TM_OK) {
        trainer->peak_flops = job->target.timed ? job->target.rates.peak_flops : wants_views(job) ? tm_device_peak_flops(job->device) : 0;
        st = run_trainer(job, trainer, &w, &model, err);
    }
    (void)!finish_hash(&model, NULL);
    tm_trainer_destroy(trainer);
    return st;
}

/* What the base is asked for may take long: a run that cannot be, or has no room, is refused before it. */
static tm_status plan_first(const tm_recipe_source *source, tm_error *err)
{
    tm_recipe *recipe;
    tm_job job;
    TM_TRY(tm_recipe_load(source->path, source->overrides, source->override_count, &recipe, err));
    if (!tm_rehearsal_to_make(recipe)) {
        tm_recipe_destroy(recipe);
        return TM_OK;
    }
    TM_TRY(tm_job_open(recipe, TM_JOB_PLAN, &job, err));
    tm_status st = tm_job_fits(&job, NULL, NULL, err);
    tm_job_close(&job);
    return st;
}

tm_status tm_train(const tm_recipe_source *source, const tm_callbacks *callbacks, char **out, tm_error *err)
{
    tm_recipe *recipe;
    *out = NULL;
    TM_TRY(plan_first(source, err));
    TM_TRY(tm_recipe_load(source->path, source->overrides, source->override_count, &recipe, err));
    return tm_train_recipe(NULL, recipe, callbacks, out, err);
}

tm_status tm_train_recipe(tm_workshop *shop, tm_recipe *recipe, const tm_callbacks *callbacks, char **out, tm_error *err)
{
    static const tm_callbacks silent = {0};
    tm_job job;
    *out = NULL;
    callbacks = callbacks ? callbacks : &silent;
    tm_status st = tm_rehearsal_prepare(recipe, callbacks, err);
    if (st != TM_OK) {
        tm_recipe_destroy(recipe);
        return st;
    }
    TM_TRY(tm_job_open_in(shop, recipe, TM_JOB_TRAIN, &job, err));
    st = train_job(&job, callbacks, err);
    *out = tm_strdup(job.folder.dir, st == TM_OK ? err : NULL);
    if (!*out && st == TM_OK)
        st = TM_NO_MEMORY;
    tm_job_close(&job);
    return st;
}
