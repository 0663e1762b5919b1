/* temper verify: a finished run is run again out of its run.json and compared, the trail first, since it
 * names the first step and tensor that differ, then the rows, then the result.
 *
 * 1. The run folder is only read; the second run lives in a folder beside it that is removed at the end.
 * 2. What the run was made from must still be there: another model or data file is said, not trained. */
#include "api/job.h"
#include "api/verify_rows.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "io/hf.h"
#include "io/safetensors.h"
#include "text/dataset.h"
#include "train/trail.h"

#include <libgen.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct check {
    const char *run;   /* the folder, as given */
    json_t *json;      /* its run.json */
    json_t *recipe;    /* borrowed from json */
    char *aside;       /* holds recipe.json and again/ */
    tm_buf text;       /* findings, a line each */
    int64_t findings;  /* differences */
    int64_t steps, tensors; /* of the trail */
} check;

/* --- What it was made from --- */

static void say_changed(check *c, const char *what, const char *path, const char *then, const char *now)
{
    c->findings++;
    tm_buf_printf(&c->text, "%s: the %s has changed since the run: its sha256 is %s, run.json says %s\n", path, what,
                  now, then);
}

/* Whether the system, not the file, is why something could not be read: no verdict on the run then. */
static bool is_of_system(const tm_error *problem) { return problem->status == TM_NO_MEMORY || problem->status == TM_IO; }

static tm_status compare_hash(check *c, const char *what, const char *path, const json_t *then, tm_status st,
                              const tm_sha256 *now, const tm_error *problem, tm_error *err)
{
    const char *stored = json_string_value(then);
    if (!stored || !*stored)
        return TM_OK;
    if (st != TM_OK && is_of_system(problem)) {
        *err = *problem;
        return st;
    }
    if (st != TM_OK) {
        c->findings++;
        tm_buf_printf(&c->text,
                      "the %s of the run cannot be read (paths are those of the folder the run was started in): %s\n",
                      what, problem->message);
    } else if (strcmp(stored, now->hex) != 0)
        say_changed(c, what, path, stored, now->hex);
    return TM_OK;
}

/* The files of a list of the recipe against the hashes that run.json has of them. */
static tm_status check_files(check *c, const char *what, const json_t *entries, const json_t *hashes, tm_error *err)
{
    tm_sha256 now;
    tm_error problem = {0};
    for (size_t i = 0; i < json_array_size(entries); i++) {
        const char *path = json_string_value(json_object_get(json_array_get(entries, i), "path"));
        tm_status st =
            path ? tm_data_path_hash(path, &now, &problem) : tm_fail(&problem, TM_INPUT, "the recipe has no path");
        TM_TRY(compare_hash(c, what, path, json_array_get(hashes, i), st, &now, &problem, err));
    }
    return TM_OK;
}

/* Its hash is that of tokenizer.json, or of the one that other files stand for. */
static tm_status check_tokenizer(check *c, const char *model, const json_t *hash, tm_error *err)
{
    tm_sha256 now;
    tm_error problem = {0};
    tm_tokenizer *tok;
    tm_status st = tm_tokenizer_open(model, &tok, &problem);
    if (st == TM_OK)
        now = *tm_tokenizer_hash(tok);
    tm_tokenizer_close(tok);
    return compare_hash(c, "tokenizer", model, hash, st, &now, &problem, err);
}

static tm_status check_sources(check *c, tm_error *err)
{
    const json_t *hashes = json_object_get(c->json, "sha256");
    const json_t *monitor = json_object_get(json_object_get(c->recipe, "keep"), "monitor");
    const char *model = json_string_value(json_object_get(c->recipe, "model"));
    if (!model)
        return tm_fail(err, TM_INPUT, "%s/run.json: its recipe has no model", c->run);
    tm_sha256 now;
    tm_error problem = {0};
    tm_status st = tm_hf_hash(model, &now, &problem);
    TM_TRY(compare_hash(c, "model", model, json_object_get(hashes, "model"), st, &now, &problem, err));
    TM_TRY(check_tokenizer(c, model, json_object_get(hashes, "tokenizer"), err));
    TM_TRY(check_files(c, "data", json_object_get(c->recipe, "data"), json_object_get(hashes, "data"), err));
    TM_TRY(check_files(c, "evaluation data", json_object_get(c->recipe, "eval"), json_object_get(hashes, "eval"), err));
    TM_TRY(check_files(c, "probe data", json_object_get(monitor, "probes"), json_object_get(hashes, "probes"), err));
    const char *replay = json_string_value(json_object_get(json_object_get(json_object_get(c->recipe, "keep"), "replay"), "path"));
    if (!replay || !json_object_get(hashes, "replay"))
        return TM_OK;
    problem = (tm_error){0};
    st = tm_data_path_hash(replay, &now, &problem);
    return compare_hash(c, "replay data", replay, json_object_get(hashes, "replay"), st, &now, &problem, err);
}

/* --- The second run --- */

static tm_status make_aside(check *c, tm_error *err)
{
    tm_buf name = {0};
    tm_status st = TM_OK;
    char *real = realpath(c->run, NULL), *folder = real ? strdup(real) : NULL;
    if (!folder)
        TM_GO(tm_fail_errno(err, TM_INPUT, "%s", c->run));
    tm_buf_printf(&name, "%s/.%s.verify-XXXXXX", dirname(folder), basename(real));
    TM_GO(tm_buf_check(&name, err));
    if (!mkdtemp(name.data))
        TM_GO(tm_fail_errno(err, TM_IO, "%s: the second run cannot be put beside the first", name.data));
    c->aside = name.data;
    name = (tm_buf){0};
out:
    tm_buf_deinit(&name);
    free(real);
    free(folder);
    return st;
}

static tm_status run_again(check *c, const tm_callbacks *callbacks, tm_error *err)
{
    tm_status st = TM_OK;
    char *file = tm_path_join(c->aside, "recipe.json", err), *out = tm_path_join(c->aside, "again", err),
         *written = NULL;
    if (!file || !out)
        TM_GO(TM_NO_MEMORY);
    int failed = json_object_set_new(c->recipe, "out", json_string(out));
    TM_GO(tm_json_write(file, failed ? NULL : c->recipe, JSON_REAL_PRECISION(17), err));
    st = tm_train(&(tm_recipe_source){.path = file}, callbacks, &written, err);
    const char *status = json_string_value(json_object_get(c->json, "status"));
    if (st == TM_RETENTION && strcmp(status, "done") != 0) /* as it ended the first time */
        st = TM_OK;
out:
    free(written);
    free(file);
    free(out);
    return st;
}

/* --- The products --- */

static void add_shape(tm_row_shape shape[5], int *count, const tm_linear_group *g)
{
    shape[(*count)++] = (tm_row_shape){g->out, g->in, g->weight.dtype};
}

/* Whether the products that this run is made of keep a row's bits on its device, whatever stands beside it. */
static tm_status check_products(check *c, tm_error *err)
{
    tm_recipe *recipe;
    tm_job job;
    tm_device *counting = NULL;
    tm_trainer *t = NULL;
    char *file = tm_path_join(c->aside, "recipe.json", err);
    tm_status st = file ? tm_recipe_load(file, NULL, 0, &recipe, err) : TM_NO_MEMORY;
    free(file);
    TM_TRY(st);
    TM_TRY(tm_job_open(recipe, TM_JOB_PLAN, &job, err));
    tm_row_shape shape[5];
    int count = 0, kept = 0;
    TM_GO(tm_counting_device_create(job.device->traits, &counting, err));
    TM_GO(tm_trainer_create(&job.run, counting, NULL, &t, err));
    const tm_block *b = &t->model.block[0];
    add_shape(shape, &count, &b->qkv);
    add_shape(shape, &count, &b->o);
    add_shape(shape, &count, &b->gate_up);
    add_shape(shape, &count, &b->down);
    add_shape(shape, &count, &t->model.head_group);
    TM_GO(tm_verify_rows(job.device, t->model.settings.act, shape, count, &kept, err));
    tm_buf_printf(&c->text, "products on %s: %d of %d keep the bits of a row, alone and among others\n", job.device->detail, kept, 2 * count);
    c->findings += kept < 2 * count;
out:
    tm_trainer_destroy(t);
    tm_device_destroy(counting);
    tm_job_close(&job);
    return st;
}

/* --- Comparing --- */

typedef struct pair {
    char *a, *b; /* the file of the run, and of the second one */
} pair;

static void pair_free(pair *p)
{
    free(p->a);
    free(p->b);
}

static tm_status pair_make(const check *c, const char *name, pair *p, tm_error *err)
{
    char *again = tm_path_join(c->aside, "again", err);
    *p = (pair){tm_path_join(c->run, name, err), again ? tm_path_join(again, name, err) : NULL};
    free(again);
    if (p->a && p->b)
        return TM_OK;
    pair_free(p);
    return TM_NO_MEMORY;
}

/* A damaged file of the run is a finding; of the second run a failure. */
static tm_status found_damaged(check *c, const tm_error *problem, tm_error *err)
{
    if (is_of_system(problem)) {
        *err = *problem;
        return problem->status;
    }
    c->findings++;
    tm_buf_printf(&c->text, "%s\n", problem->message);
    return TM_OK;
}

static int64_t first_different_line(const tm_map *a, const tm_map *b)
{
    int64_t line = 1;
    size_t n = a->size < b->size ? a->size : b->size;
    for (size_t i = 0; i < n && a->data[i] == b->data[i]; i++)
        line += a->data[i] == '\n';
    return line;
}

static tm_status compare_bytes(check *c, const char *name, const pair *p, tm_error *err)
{
    tm_map a = {0}, b = {0};
    tm_error problem;
    TM_TRY(tm_map_open(p->b, &b, err));
    tm_status st = TM_OK;
    if (tm_map_open(p->a, &a, &problem) != TM_OK)
        st = found_damaged(c, &problem, err);
    else if (a.size == b.size && memcmp(a.data, b.data, a.size) == 0)
        tm_buf_printf(&c->text, "%s: equal\n", name);
    else {
        c->findings++;
        tm_buf_printf(&c->text, "%s/%s:%lld: first difference\n", c->run, name,
                      (long long)first_different_line(&a, &b));
    }
    tm_map_close(&a);
    tm_map_close(&b);
    return st;
}

static void describe_trail(check *c, const tm_trail *a, const tm_trail *b, const tm_trail_difference *d)
{
    unsigned long long step = d->step;
    tm_buf_printf(&c->text, "%s/trail.bin: ", c->run);
    switch (d->verdict) {
    case TM_TRAIL_VALUE:
        tm_buf_printf(&c->text, "first difference after step %llu in tensor %s\n", step, d->tensor);
        break;
    case TM_TRAIL_TENSORS:
        tm_buf_printf(&c->text, "it names other tensors than were trained now (%s)\n", d->tensor ? d->tensor : "fewer");
        break;
    case TM_TRAIL_STEP:
        tm_buf_printf(&c->text, "record %lld is of step %llu, found in no run\n", (long long)d->record, step);
        break;
    default:
        tm_buf_printf(&c->text, "equal over %lld steps, but it has %lld steps%s and the second run %lld\n",
                      (long long)d->record, (long long)a->steps, a->rest ? " and a torn one" : "", (long long)b->steps);
    }
}

static tm_status compare_trails(check *c, tm_error *err)
{
    pair p;
    tm_trail a = {0}, b = {0};
    tm_error problem;
    TM_TRY(pair_make(c, "trail.bin", &p, err));
    tm_status st = tm_trail_open(p.b, &b, err);
    if (st == TM_OK && tm_trail_open(p.a, &a, &problem) != TM_OK)
        st = found_damaged(c, &problem, err);
    else if (st == TM_OK) {
        tm_trail_difference d = tm_trail_compare(&a, &b);
        if (d.verdict == TM_TRAIL_EQUAL) {
            c->steps = a.steps;
            c->tensors = a.tensors.count;
            st = compare_bytes(c, "trail.bin", &p, err);
        } else {
            c->findings++;
            describe_trail(c, &a, &b, &d);
        }
    }
    tm_trail_close(&a);
    tm_trail_close(&b);
    pair_free(&p);
    return st;
}

/* Tensors of two files, both in order of name: the first that differs, and how many do. False: some do. */
static bool compare_tensors(check *c, const char *name, const tm_safetensors *a, const tm_safetensors *b)
{
    int64_t na = tm_safetensors_count(a), nb = tm_safetensors_count(b), i = 0, k = 0, different = 0;
    const char *first = NULL;
    while (i < na || k < nb) {
        const tm_st_tensor *x = i < na ? tm_safetensors_at(a, i) : NULL, *y = k < nb ? tm_safetensors_at(b, k) : NULL;
        int order = !x ? 1 : !y ? -1 : strcmp(x->name, y->name);
        bool same = order == 0 && x->dtype == y->dtype && x->bytes == y->bytes &&
                    memcmp(x->data, y->data, (size_t)x->bytes) == 0;
        if (!same && different++ == 0)
            first = order <= 0 ? x->name : y->name;
        i += order <= 0;
        k += order >= 0;
    }
    if (different) {
        c->findings++;
        tm_buf_printf(&c->text, "%s/%s: %lld of %lld tensors differ, the first is %s\n", c->run, name,
                      (long long)different, (long long)nb, first);
    }
    return !different;
}

static tm_status compare_weights(check *c, const char *name, const pair *p, tm_error *err)
{
    tm_safetensors *a = NULL, *b = NULL;
    tm_error problem;
    TM_TRY(tm_safetensors_open(p->b, &b, err));
    tm_status st = TM_OK;
    if (tm_safetensors_open(p->a, &a, &problem) != TM_OK)
        st = found_damaged(c, &problem, err);
    bool same = a && compare_tensors(c, name, a, b);
    tm_safetensors_close(a);
    tm_safetensors_close(b);
    return same ? compare_bytes(c, name, p, err) : st;
}

static tm_status compare_results(check *c, tm_error *err)
{
    tm_names files = {0};
    char *again = tm_path_join(c->aside, "again", err);
    tm_status st = again ? tm_hf_model_files(again, &files, err) : TM_NO_MEMORY;
    for (int64_t i = 0; st == TM_OK && i < files.count; i++) {
        pair p;
        const char *name = files.item[i], *end = strrchr(name, '.');
        TM_GO(pair_make(c, name, &p, err));
        st = strcmp(end, ".safetensors") == 0 ? compare_weights(c, name, &p, err) : compare_bytes(c, name, &p, err);
        pair_free(&p);
        if (st == TM_OK && (strcmp(name, "adapter_model.safetensors") == 0 || strcmp(name, "adapter.safetensors") == 0)) {
            TM_GO(pair_make(c, "adapter_config.json", &p, err));
            st = compare_bytes(c, "adapter_config.json", &p, err);
            pair_free(&p);
        }
    }
out:
    tm_names_deinit(&files);
    free(again);
    return st;
}

static tm_status compare_all(check *c, tm_error *err)
{
    pair p;
    TM_TRY(compare_trails(c, err));
    TM_TRY(pair_make(c, "metrics.jsonl", &p, err));
    tm_status st = compare_bytes(c, "metrics.jsonl", &p, err);
    pair_free(&p);
    return st == TM_OK ? compare_results(c, err) : st;
}

static tm_status open_run(check *c, tm_error *err)
{
    TM_TRY(tm_json_read_in(c->run, "run.json", &c->json, err));
    const char *status = json_string_value(json_object_get(c->json, "status"));
    c->recipe = json_object_get(c->json, "recipe");
    if (!status || !json_is_object(c->recipe))
        return tm_fail(err, TM_INPUT, "%s/run.json: status and recipe of a run expected", c->run);
    if (strcmp(status, "running") == 0 || strcmp(status, "failed") == 0)
        return tm_fail(err, TM_INPUT,
                       "%s: this run is not finished (status %s): finish it first, with the command that started it",
                       c->run, status);
    if (strcmp(status, "diverged") == 0)
        return tm_fail(err, TM_INPUT, "%s: this run diverged: there is no result to hold against another", c->run);
    const char *version = json_string_value(json_object_get(c->json, "temper"));
    if (version && strcmp(version, TM_VERSION) != 0)
        tm_buf_printf(&c->text, "note: the run was made by temper %s, this is " TM_VERSION "\n", version);
    return TM_OK;
}

tm_status tm_verify(const char *run, const tm_callbacks *callbacks, bool *equal, char **text, tm_error *err)
{
    check c = {.run = run};
    tm_status st = TM_OK;
    tm_error ignored;
    *equal = false;
    *text = NULL;
    TM_GO(open_run(&c, err));
    TM_GO(check_sources(&c, err));
    if (!c.findings) {
        TM_GO(make_aside(&c, err));
        TM_GO(run_again(&c, callbacks, err));
        TM_GO(check_products(&c, err));
        TM_GO(compare_all(&c, err));
    }
    *equal = c.findings == 0;
    if (*equal)
        tm_buf_printf(&c.text, "%s: equal to the bit over %lld steps of %lld tensors\n", run, (long long)c.steps,
                      (long long)c.tensors);
    else
        tm_buf_printf(&c.text, "%s: %s\n", run, c.aside ? "different" : "cannot be run again as it was");
    TM_GO(tm_buf_check(&c.text, err));
    *text = c.text.data;
    c.text = (tm_buf){0};
out:;
    tm_status removed = c.aside ? tm_dir_remove(c.aside, st == TM_OK ? err : &ignored) : TM_OK;
    st = st == TM_OK ? removed : st;
    free(c.aside);
    tm_buf_deinit(&c.text);
    json_decref(c.json);
    if (st != TM_OK) {
        free(*text);
        *text = NULL;
    }
    return st;
}
