/* Stages of a sequence: see stage.h.
 *
 * A state's hash runs over everything that made it: the hash of the state before and of what was trained.
 * eval.json holds it, the sets' settings and their files' hashes; values are taken from it only when all are the same. */
#include "lab/stage.h"

#include "base/file.h"
#include "base/json.h"
#include "io/adapter_kind.h"
#include "text/dataset.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void tm_lab_state_deinit(tm_lab_state *s)
{
    free(s->model);
    free(s->adapter);
    free(s->run);
    *s = (tm_lab_state){0};
}

tm_status tm_lab_set(tm_names *list, const char *key, const char *value, tm_error *err)
{
    tm_buf text = {0};
    tm_buf_printf(&text, "%s=", key);
    if (*value && strchr("[{\"'", *value))
        tm_json_put_string(&text, value);
    else
        tm_buf_text(&text, value);
    tm_status st = tm_buf_check(&text, err);
    if (st == TM_OK)
        st = tm_names_add(list, text.data, err);
    tm_buf_deinit(&text);
    return st;
}

void tm_lab_advance(tm_lab_runner *r, size_t trainings)
{
    tm_lab_shared *s = r->shared;
    if (!trainings)
        return;
    r->trained += trainings;
    pthread_mutex_lock(&s->mutex);
    s->done += trainings;
    if (r->calls->progress)
        r->calls->progress(r->calls->context, s->done, s->total);
    pthread_mutex_unlock(&s->mutex);
}

/* The lock is held. */
static tm_status add_hash(tm_lab_shared *s, const char *path, tm_error *err)
{
    TM_TRY(TM_GROW(&s->hash, &s->hashes, (size_t)s->path.count + 1, err));
    TM_TRY(tm_data_path_hash(path, &s->hash[s->path.count], err));
    return tm_names_add(&s->path, path, err);
}

tm_status tm_lab_hash(tm_lab_runner *r, const char *path, tm_sha256 *out)
{
    tm_lab_shared *s = r->shared;
    int64_t i = 0;
    pthread_mutex_lock(&s->mutex);
    while (i < s->path.count && strcmp(s->path.item[i], path) != 0)
        i++;
    tm_status st = i < s->path.count ? TM_OK : add_hash(s, path, r->err);
    if (st == TM_OK)
        *out = s->hash[i];
    pthread_mutex_unlock(&s->mutex);
    return st;
}

/* --- Evaluations --- */

tm_status tm_lab_put_sets(tm_lab_runner *r, const tm_recipe *recipe, tm_buf *out)
{
    tm_sha256 data;
    tm_buf_printf(out, "seq %lld precision %d batch %lld\n", (long long)recipe->seq, recipe->precision, (long long)recipe->batch);
    for (int64_t i = 0; i < recipe->eval_count; i++) {
        const tm_eval_entry *e = &recipe->eval[i];
        TM_TRY(tm_lab_hash(r, e->data.path, &data));
        tm_buf_printf(out, "%s %s format %d loss %d metric %d limit %lld tokens %lld system %s template %s\n", e->name, data.hex, e->data.format, e->data.loss,
                      e->metric, (long long)e->limit, (long long)e->max_tokens, e->data.system ? e->data.system : "", e->data.template ? e->data.template : "");
        const tm_string_map *maps[] = {&e->data.columns, &e->data.roles};
        for (int m = 0; m < 2; m++)
            for (int64_t k = 0; k < maps[m]->keys.count; k++)
                tm_buf_printf(out, "%s: %s\n", maps[m]->keys.item[k], maps[m]->values.item[k]);
    }
    return tm_buf_check(out, r->err);
}

/* What an evaluation depends on, as one hash. */
static tm_status evaluation_key(tm_lab_runner *r, const tm_lab_state *state, const tm_recipe *recipe, tm_sha256 *out)
{
    tm_buf text = {0};
    tm_buf_printf(&text, "%s\n1\n", state->run ? state->hash : r->shared->model);
    tm_status st = tm_lab_put_sets(r, recipe, &text);
    if (st == TM_OK)
        st = tm_sha256_bytes(text.data, text.size, out, r->err);
    tm_buf_deinit(&text);
    return st;
}

/* Values that were stored under this key. */
static bool stored_values(const char *path, const tm_recipe *recipe, const tm_sha256 *key, double *values)
{
    json_t *json = NULL;
    tm_error ignored;
    if (!tm_path_exists(path) || tm_json_read(path, &json, &ignored) != TM_OK)
        return false;
    const char *was = json_string_value(json_object_get(json, "key"));
    const json_t *list = json_object_get(json, "values");
    bool same = was && strcmp(was, key->hex) == 0 && json_is_object(list);
    for (int64_t i = 0; same && i < recipe->eval_count; i++) {
        const json_t *value = json_object_get(list, recipe->eval[i].name);
        same = value != NULL;
        values[i] = json_is_number(value) ? json_number_value(value) : NAN;
    }
    json_decref(json);
    return same;
}

static tm_status store_values(const char *path, char *const *names, int64_t count, const tm_sha256 *key, const double *values, tm_error *err)
{
    tm_buf text = {0};
    tm_buf_printf(&text, "{\"key\": \"%s\", \"values\": {", key->hex);
    for (int64_t i = 0; i < count; i++) {
        tm_buf_text(&text, i ? ", " : "");
        tm_json_put_string(&text, names[i]);
        tm_buf_text(&text, ": ");
        tm_json_put_number(&text, values[i]);
    }
    tm_buf_text(&text, "}}\n");
    tm_status st = tm_buf_check(&text, err);
    if (st == TM_OK)
        st = tm_file_write(path, text.data, text.size, err);
    tm_buf_deinit(&text);
    return st;
}

static tm_status state_settings(const tm_lab_state *state, tm_names *extra, tm_error *err)
{
    tm_adapter_kind kind;
    char key[32];
    TM_TRY(tm_lab_set(extra, "model", state->model, err));
    if (!state->adapter)
        return TM_OK;
    TM_TRY(tm_adapter_kind_of(state->adapter, &kind, err));
    snprintf(key, sizeof key, "%s.init", tm_adapter_kind_method(kind));
    TM_TRY(tm_lab_set(extra, "method", tm_adapter_kind_method(kind), err));
    return tm_lab_set(extra, key, state->adapter, err);
}

tm_status tm_lab_evaluate(tm_lab_runner *r, const tm_lab_state *state, tm_lab_sets sets, const char *folder, double *values)
{
    static const char *const files[] = {[TM_SETS_TEST] = "eval.json", [TM_SETS_VALID] = "valid.json", [TM_SETS_PROBES] = "probes.json"};
    tm_names extra = {0}, names = {0};
    tm_recipe *recipe = NULL;
    tm_sha256 key;
    tm_status st = TM_OK;
    char *path = tm_path_join(folder, files[sets], r->err);
    if (!path)
        return TM_NO_MEMORY;
    TM_GO(state_settings(state, &extra, r->err));
    TM_GO(tm_sequence_eval_recipe(r->file, sets, r->overrides, r->override_count, &extra, &recipe, r->err));
    TM_GO(evaluation_key(r, state, recipe, &key));
    if (stored_values(path, recipe, &key, values))
        goto out;
    for (int64_t i = 0; i < recipe->eval_count; i++)
        TM_GO(tm_names_add(&names, recipe->eval[i].name, r->err));
    tm_recipe *given = recipe;
    recipe = NULL;
    TM_GO(r->calls->evaluate(r->calls->context, given, r->file->model, values, r->err));
    TM_GO(tm_dir_create(folder, r->err));
    st = store_values(path, names.item, names.count, &key, values, r->err);
out:
    tm_recipe_destroy(recipe);
    tm_names_deinit(&extra);
    tm_names_deinit(&names);
    free(path);
    return st;
}

/* --- Training --- */

/* The hash of a state: of the one before, and of what run.json says was trained. */
static tm_status hash_state(const tm_lab_state *from, const char *folder, char out[65], tm_error *err)
{
    json_t *json = NULL;
    tm_sha256 hash;
    char text[160];
    char *path = tm_path_join(folder, "run.json", err);
    tm_status st = path ? tm_json_read(path, &json, err) : TM_NO_MEMORY;
    if (st == TM_OK) {
        const char *result = json_string_value(json_object_get(json_object_get(json, "sha256"), "result"));
        if (!result || strlen(result) != 64)
            st = tm_fail(err, TM_INPUT, "%s: expected sha256.result of a finished run", path);
        else {
            snprintf(text, sizeof text, "%s %s", from->hash, result);
            st = tm_sha256_bytes(text, strlen(text), &hash, err);
        }
    }
    if (st == TM_OK)
        memcpy(out, hash.hex, 65);
    json_decref(json);
    free(path);
    return st;
}

tm_status tm_lab_train(tm_lab_runner *r, tm_recipe *recipe, const tm_lab_state *from, const char *folder, tm_lab_state *next)
{
    bool whole = recipe->method == TM_METHOD_FULL || recipe->method == TM_METHOD_FREEZE;
    *next = (tm_lab_state){0};
    TM_TRY(r->calls->train(r->calls->context, recipe, r->err));
    tm_lab_advance(r, 1);
    TM_TRY(hash_state(from, folder, next->hash, r->err));
    next->run = tm_strdup(folder, r->err);
    next->model = tm_strdup(whole ? folder : from->model, r->err);
    next->adapter = whole ? NULL : tm_strdup(folder, r->err);
    if (next->run && next->model && (whole || next->adapter))
        return TM_OK;
    tm_lab_state_deinit(next);
    return TM_NO_MEMORY;
}

tm_status tm_lab_diverged_at(const tm_lab_runner *r, const char *folder, int64_t *step)
{
    json_t *json = NULL;
    char *path = tm_path_join(folder, "run.json", r->err);
    tm_status st = path ? TM_OK : TM_NO_MEMORY;
    *step = 0;
    if (st == TM_OK && tm_path_exists(path))
        st = tm_json_read(path, &json, r->err);
    if (json)
        *step = json_integer_value(json_object_get(json, "steps_done")) + 1;
    json_decref(json);
    free(path);
    return st;
}

tm_status tm_lab_merge(tm_lab_runner *r, tm_lab_state *s)
{
    if (!s->adapter)
        return TM_OK;
    char *merged = tm_path_join(s->run, "merged", r->err);
    if (!merged)
        return TM_NO_MEMORY;
    tm_status st = tm_path_exists(merged) ? TM_OK : r->calls->merge(r->calls->context, s->model, s->adapter, merged, r->err);
    if (st != TM_OK) {
        free(merged);
        return st;
    }
    free(s->model);
    free(s->adapter);
    s->model = merged;
    s->adapter = NULL;
    return TM_OK;
}

/* --- Rehearsal --- */

/* The file's name follows from what is in it. */
static tm_status rows_path(const tm_lab_runner *r, const tm_recipe *recipe, const int32_t *tasks, size_t count, tm_buf *out)
{
    tm_buf text = {0};
    tm_sha256 hash;
    tm_buf_printf(&text, "seq %lld replay ", (long long)recipe->seq);
    tm_status st = tm_data_entry_to_json(&recipe->replay, &text, r->err);
    tm_buf_char(&text, '\n');
    for (size_t i = 0; i < count; i++)
        tm_buf_printf(&text, "%s\n", r->file->task[tasks[i]].name);
    if (st == TM_OK)
        st = tm_buf_check(&text, r->err);
    if (st == TM_OK)
        st = tm_sha256_bytes(text.data, text.size, &hash, r->err);
    tm_buf_deinit(&text);
    TM_TRY(st);
    tm_buf_printf(out, "%s/previous", r->out);
    TM_TRY(tm_buf_check(out, r->err));
    TM_TRY(tm_dir_create(out->data, r->err));
    tm_buf_printf(out, "/%.16s.jsonl", hash.hex);
    return tm_buf_check(out, r->err);
}

tm_status tm_lab_rehearse(tm_lab_runner *r, const tm_lab_arm *arm, const int32_t *tasks, size_t count, tm_names *settings)
{
    tm_recipe *recipe;
    tm_buf path = {0};
    if (!count)
        return TM_OK; /* what the arm rehearses anyway is in its recipe */
    TM_TRY(tm_sequence_train_recipe(r->file, arm, tasks, count, r->overrides, r->override_count, settings, &recipe, r->err));
    tm_status st = rows_path(r, recipe, tasks, count, &path);
    pthread_mutex_lock(&r->shared->mutex); /* chains with the same tasks behind them need the same file */
    if (st == TM_OK && !tm_path_exists(path.data))
        st = r->calls->rows(r->calls->context, recipe, path.data, r->err);
    else
        tm_recipe_destroy(recipe);
    pthread_mutex_unlock(&r->shared->mutex);
    if (st == TM_OK)
        st = tm_lab_set(settings, "keep.replay.path", path.data, r->err);
    static const char *const tokens[] = {"format=tokens", "loss=auto", "columns={}", "system=null", "template=null", "roles={}"};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens && st == TM_OK; i++) { /* however the arm's own replay is read: that is in the file */
        char setting[64];
        snprintf(setting, sizeof setting, "keep.replay.%s", tokens[i]);
        st = tm_names_add(settings, setting, r->err);
    }
    tm_buf_deinit(&path);
    return st;
}

/* --- Routing --- */

typedef struct modules {
    tm_lab_runner *r;
    const tm_lab_state *state;
} modules;

static tm_status module_recipe(const void *owner, size_t module, tm_recipe **out, tm_error *err)
{
    const modules *m = owner;
    const tm_lab_runner *r = m->r;
    tm_names extra = {0};
    if (module == r->file->tasks)
        return tm_sequence_route_recipe(r->file, r->overrides, r->override_count, out, err);
    tm_status st = state_settings(&m->state[module], &extra, err);
    if (st == TM_OK)
        st = tm_sequence_eval_recipe(r->file, TM_SETS_TEST, r->overrides, r->override_count, &extra, out, err);
    tm_names_deinit(&extra);
    return st;
}

tm_status tm_lab_route(tm_lab_runner *r, const tm_lab_state *state, const uint64_t *known, size_t sets, double *scores, int64_t *confusion)
{
    modules m = {r, state};
    size_t tasks = r->file->tasks, entries[TM_LAB_MOST_TASKS];
    for (size_t t = 0; t < tasks; t++)
        entries[t] = tm_sequence_entries(r->file, t);
    tm_lab_routing routing = {.tasks = tasks, .entries = entries, .known = known, .sets = sets, .recipe_of = module_recipe, .owner = &m};
    return r->calls->route(r->calls->context, &routing, scores, confusion, r->err);
}
