/* The file that stands for a chain that is done, and what may go then: see chain.h.
 *
 * A run folder is removed by the names of what runs write, never as a whole: what a person put there stays. */
#include "lab/chain.h"

#include "base/file.h"
#include "base/json.h"
#include "io/hf.h"

#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- The key --- */

/* The recipe, and the contents of the files it names. Folders, threads and caches are nothing to the figures. */
static tm_status put_recipe(const tm_lab_task_chain *c, tm_recipe *recipe, tm_buf *out)
{
    const char *paths[] = {recipe->replay.path, recipe->generate_prompts, recipe->ewc.path, recipe->ewc_importances};
    tm_sha256 hash;
    free(recipe->out);
    free(recipe->cache);
    recipe->out = recipe->cache = NULL;
    recipe->threads = 0;
    TM_TRY(tm_recipe_changes(recipe, out, c->r->err));
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (paths[i]) {
            TM_TRY(tm_lab_hash(c->r, paths[i], &hash));
            tm_buf_printf(out, "%s\n", hash.hex);
        }
    for (int64_t i = 0; i < recipe->data_count + recipe->eval_count + recipe->probe_count; i++) {
        int64_t e = i - recipe->data_count, p = e - recipe->eval_count;
        TM_TRY(tm_lab_hash(c->r, e < 0 ? recipe->data[i].path : p < 0 ? recipe->eval[e].data.path : recipe->probes[p].data.path, &hash));
        tm_buf_printf(out, "%s\n", hash.hex);
    }
    return tm_buf_check(out, c->r->err);
}

/* How the arm learns tasks [count] at once. */
static tm_status put_training(const tm_lab_task_chain *c, const int32_t *tasks, size_t count, tm_buf *out)
{
    tm_names settings = {0};
    tm_recipe *recipe = NULL;
    tm_status st = tm_lab_chain_settings(c, c->r->file->model, NULL, &settings);
    if (st == TM_OK)
        st = tm_lab_chain_recipe(c, tasks, count, &settings, &recipe);
    if (st == TM_OK)
        st = put_recipe(c, recipe, out);
    tm_recipe_destroy(recipe);
    tm_names_deinit(&settings);
    return st;
}

static tm_status put_sets(const tm_lab_task_chain *c, tm_lab_sets sets, tm_buf *out)
{
    tm_lab_runner *r = c->r;
    tm_recipe *recipe;
    TM_TRY(tm_sequence_eval_recipe(r->file, sets, r->overrides, r->override_count, NULL, &recipe, r->err));
    tm_status st = tm_lab_put_sets(r, recipe, out);
    tm_recipe_destroy(recipe);
    return st;
}

static tm_status put_chain(const tm_lab_task_chain *c, tm_buf *out)
{
    const tm_sequence_file *f = c->r->file;
    int32_t all[TM_LAB_MOST_TASKS];
    tm_buf_printf(out, "chain 1\ndevice %s\nmodel %s\nkind %d between %d previous %d%d%d select %d orders %zu\n", c->r->shared->device, c->r->shared->model, c->arm->kind,
                  c->arm->between, c->arm->replay, c->arm->ewc, c->arm->orthogonal, c->select, c->orders);
    for (size_t i = 0; i < c->orders * f->tasks; i++)
        tm_buf_printf(out, "%s\n", f->task[f->order[c->order * f->tasks + i]].name);
    if (c->arm->kind == TM_ARM_JOINT) {
        for (size_t k = 0; k < f->tasks; k++)
            all[k] = (int32_t)k;
        TM_TRY(put_training(c, all, f->tasks, out));
    } else
        for (size_t k = 0; k < f->tasks; k++)
            TM_TRY(put_training(c, f->order + c->order * f->tasks + k, 1, out));
    TM_TRY(put_sets(c, c->select ? TM_SETS_VALID : TM_SETS_TEST, out));
    return f->probes && !c->select ? put_sets(c, TM_SETS_PROBES, out) : tm_buf_check(out, c->r->err);
}

tm_status tm_lab_chain_key(const tm_lab_task_chain *c, tm_sha256 *out)
{
    tm_buf text = {0};
    tm_status st = put_chain(c, &text);
    if (st == TM_OK)
        st = tm_sha256_bytes(text.data, text.size, out, c->r->err);
    tm_buf_deinit(&text);
    return st;
}

/* --- chain.json --- */

static tm_status path_of(const tm_lab_task_chain *c, char **out)
{
    return tm_lab_chain_folder(c, c->arm->kind == TM_ARM_SEQUENCE && !tm_lab_is_separate(c->arm), "chain.json", out);
}

static void put_numbers(tm_buf *out, const char *name, const double *values, size_t count)
{
    tm_buf_printf(out, ", \"%s\": [", name);
    for (size_t i = 0; i < count; i++) {
        tm_buf_text(out, i ? ", " : "");
        tm_json_put_number(out, values[i]);
    }
    tm_buf_char(out, ']');
}

void tm_lab_put_diverged(tm_buf *out, const tm_sequence_file *f, const tm_lab_chain *chain)
{
    const char *before = "";
    if (!tm_lab_chain_diverged(chain, f->tasks))
        return;
    tm_buf_text(out, ", \"diverged\": {");
    for (size_t i = 0; i < f->tasks; i++)
        if (chain->diverged[i] >= 0) {
            tm_buf_printf(out, "%s\"%s\": %lld", before, f->task[i].name, (long long)chain->diverged[i]);
            before = ", ";
        }
    tm_buf_char(out, '}');
}

tm_status tm_lab_chain_write(const tm_lab_task_chain *c, const tm_sha256 *key)
{
    size_t T = c->r->file->tasks, probes = (size_t)c->r->file->probe_name.count;
    tm_buf text = {0};
    char *path = NULL;
    tm_buf_printf(&text, "{\"key\": \"%s\", \"chains\": [", key->hex);
    for (size_t i = 0; i < c->orders; i++) {
        const tm_lab_chain *chain = &c->out[i * c->stride];
        tm_buf_printf(&text, "%s\n {\"order\": %zu", i ? "," : "", chain->order + 1);
        tm_lab_put_diverged(&text, c->r->file, chain);
        put_numbers(&text, "R", chain->r, (T + 1) * T);
        put_numbers(&text, "P", chain->probe, (T + 1) * probes);
        if (chain->routed) {
            put_numbers(&text, "routed", chain->routed, T * T);
            tm_buf_text(&text, ", \"confusion\": [");
            for (size_t k = 0; k < T * T; k++)
                tm_buf_printf(&text, "%s%lld", k ? ", " : "", (long long)chain->confusion[k]);
            tm_buf_char(&text, ']');
        }
        tm_buf_char(&text, '}');
    }
    tm_buf_text(&text, "]}\n");
    tm_status st = tm_buf_check(&text, c->r->err);
    if (st == TM_OK)
        st = path_of(c, &path);
    if (st == TM_OK)
        st = tm_file_write(path, text.data, text.size, c->r->err);
    free(path);
    tm_buf_deinit(&text);
    return st;
}

/* False: the list is no list of so many. */
static bool take_numbers(const json_t *list, double *values, size_t count)
{
    if (json_array_size(list) != count)
        return false;
    for (size_t i = 0; i < count; i++)
        values[i] = json_is_number(json_array_get(list, i)) ? json_number_value(json_array_get(list, i)) : NAN;
    return true;
}

static bool take_routing(const json_t *json, size_t T, double *routed, int64_t *confusion)
{
    const json_t *list = json_object_get(json, "confusion");
    for (size_t i = 0; i < T * T; i++)
        confusion[i] = json_integer_value(json_array_get(list, i));
    return json_array_size(list) == T * T && take_numbers(json_object_get(json, "routed"), routed, T * T);
}

static bool take_diverged(const json_t *json, const tm_sequence_file *f, int64_t *step)
{
    size_t known = 0;
    for (size_t i = 0; i < f->tasks; i++) {
        const json_t *value = json_object_get(json, f->task[i].name);
        step[i] = json_is_integer(value) ? json_integer_value(value) : -1;
        known += step[i] >= 0;
    }
    return !json || (json_is_object(json) && known == json_object_size(json));
}

static tm_status take_chains(const tm_lab_task_chain *c, const json_t *list, bool *whole)
{
    size_t T = c->r->file->tasks, probes = (size_t)c->r->file->probe_name.count;
    bool routed = tm_lab_is_separate(c->arm) && !c->select;
    *whole = json_array_size(list) == c->orders;
    for (size_t i = 0; *whole && i < c->orders; i++) {
        const json_t *json = json_array_get(list, i);
        tm_lab_chain *chain = &c->out[i * c->stride];
        *whole = take_numbers(json_object_get(json, "R"), chain->r, (T + 1) * T) && take_numbers(json_object_get(json, "P"), chain->probe, (T + 1) * probes) &&
                 take_diverged(json_object_get(json, "diverged"), c->r->file, chain->diverged);
        if (*whole && routed) {
            TM_TRY(TM_NEW(&chain->routed, T * T, c->r->err));
            TM_TRY(TM_NEW(&chain->confusion, T * T, c->r->err));
            *whole = take_routing(json, T, chain->routed, chain->confusion);
        }
    }
    return TM_OK;
}

tm_status tm_lab_chain_read(const tm_lab_task_chain *c, const tm_sha256 *key, bool *there)
{
    char *path;
    json_t *json = NULL;
    *there = false;
    TM_TRY(path_of(c, &path));
    tm_status st = TM_OK;
    if (tm_path_exists(path))
        st = tm_json_read(path, &json, c->r->err);
    const char *was = json_string_value(json_object_get(json, "key"));
    *there = was && strcmp(was, key->hex) == 0;
    if (st == TM_OK && *there)
        st = take_chains(c, json_object_get(json, "chains"), there);
    else if (st == TM_OK && json && c->r->file->runs != TM_RUNS_KEEP)
        st = tm_fail(c->r->err, TM_LOCKED, "%s: is of another sequence, of other data or another device, and its runs are gone; choose another out, or remove the file", path);
    json_decref(json);
    free(path);
    return st;
}

/* --- What may go --- */

static bool matches(const char *name, const char *const *patterns)
{
    for (; *patterns; patterns++)
        if (fnmatch(*patterns, name, 0) == 0)
            return true;
    return false;
}

/* Files of a run folder, its checkpoints, merged model and registers (docs/formats/run-folder.md). */
static tm_status remove_run(const char *dir, const char *spared, tm_error *err)
{
    static const char *const files[] = {".lock", "run.json", "eval.json", "valid.json", "probes.json", "metrics.jsonl", "timing.jsonl", "trail.bin", "events.out.tfevents.0.temper", "report.html",
                                        "rehearsal.jsonl", "rehearsal.json", "stm.bin", "adapter_config.json", "*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json",
                                        "tokenizer*", "*.model", "*.tiktoken", "tekken.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template*", "preprocessor_config.json",
                                        "state.json", "manifest.json", "registers.json", ".*.partial", NULL};
    static const char *const folders[] = {"merged", "checkpoint-*", ".checkpoint-*", NULL};
    char **names;
    size_t count;
    if (!tm_path_is_dir(dir))
        return TM_OK;
    TM_TRY(tm_dir_list(dir, &names, &count, err));
    tm_status st = TM_OK;
    for (size_t i = 0; i < count && st == TM_OK; i++) {
        char *path = tm_path_join(dir, names[i], err);
        if (!path)
            st = TM_NO_MEMORY;
        else if (spared && strcmp(names[i], spared) == 0)
            ;
        else if (tm_path_is_dir(path))
            st = matches(names[i], folders) || tm_dir_has(path, "adapter_config.json") ? remove_run(path, NULL, err) : TM_OK;
        else if (matches(names[i], files) && unlink(path) != 0)
            st = tm_fail_errno(err, TM_IO, "%s: cannot remove", path);
        free(path);
    }
    tm_names_free(names, count);
    if (st == TM_OK)
        (void)!rmdir(dir); /* unless something is in it that is not ours */
    return st;
}

tm_status tm_lab_chain_release(const tm_lab_task_chain *c)
{
    const tm_sequence_file *f = c->r->file;
    bool sequence = c->arm->kind == TM_ARM_SEQUENCE, last = f->runs == TM_RUNS_LAST;
    if (f->runs == TM_RUNS_KEEP || (last && (!sequence || tm_lab_is_separate(c->arm))))
        return TM_OK; /* all modules are the result */
    size_t learned = 0; /* of a chain that diverged fewer than all */
    while (learned < f->tasks && c->out->diverged[f->order[c->order * f->tasks + learned]] < 0)
        learned++;
    for (size_t k = 0; k < (sequence ? f->tasks : 1); k++) {
        char *folder;
        if (last && k + 1 == learned)
            continue;
        TM_TRY(sequence ? tm_lab_stage_folder(c, k, &folder) : tm_lab_chain_folder(c, false, "joint", &folder));
        tm_status st = remove_run(folder, last && k + 2 == learned ? "merged" : NULL, c->r->err); /* what the last adapter is on */
        free(folder);
        TM_TRY(st);
    }
    return TM_OK;
}
