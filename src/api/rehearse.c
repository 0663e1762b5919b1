/* Rehearsal: see rehearse.h. */
#include "api/rehearse_parts.h"

#include "base/philox.h"
#include "keep/replay.h"

#include <stdarg.h>
#include <stdlib.h>

static const char *folder_of(const tm_recipe *r) { return r->out ? r->out : "runs/run"; }

/* Whether the base chooses the buffer. */
static bool base_chooses(const tm_recipe *r)
{
    return r->replay_buffer && (r->replay_select == TM_SELECT_DIVERSE || r->replay_select == TM_SELECT_LOSS);
}

/* Whether the base is asked for anything; texts, choice: for what. */
static bool asks_base(const tm_recipe *r, bool *texts, bool *choice)
{
    bool trains = r->model && r->data_count && r->method != TM_METHOD_NONE;
    *texts = trains && r->generate_samples && r->generate_fraction > 0;
    *choice = trains && r->replay.path && r->replay_fraction > 0 && base_chooses(r);
    return *texts || *choice;
}

bool tm_rehearsal_to_make(const tm_recipe *r)
{
    bool texts, choice;
    return asks_base(r, &texts, &choice) && !tm_dir_has(folder_of(r), "rehearsal.json");
}

/* --- As sources of a run's data --- */

tm_status tm_rehearsal_of(const tm_recipe *r, bool evaluate, bool plan, tm_rehearsal *out, tm_error *err)
{
    *out = (tm_rehearsal){.replay = !evaluate && r->replay.path && r->replay_fraction > 0,
                          .generate = !evaluate && r->generate_samples && r->generate_fraction > 0};
    if (out->replay)
        out->fraction[out->count++] = r->replay_fraction;
    if (out->generate)
        out->fraction[out->count++] = r->generate_fraction;
    if (out->fraction[0] + out->fraction[1] >= 1) /* before texts are written for it */
        return tm_fail(err, TM_RECIPE, "keep.replay.fraction and keep.generate.fraction: %g of the tokens together; expected less than 1", out->fraction[0] + out->fraction[1]);
    if (plan || !out->count)
        return TM_OK;
    out->texts = tm_path_join(folder_of(r), "rehearsal.jsonl", err);
    out->record = tm_path_join(folder_of(r), "rehearsal.json", err);
    return out->texts && out->record ? TM_OK : TM_NO_MEMORY;
}

void tm_rehearsal_deinit(tm_rehearsal *rehearsal)
{
    free(rehearsal->texts);
    free(rehearsal->record);
    *rehearsal = (tm_rehearsal){0};
}

void tm_rehearsal_entries(const tm_rehearsal *rehearsal, const tm_recipe *r, tm_data_entry *entries)
{
    if (rehearsal->replay)
        *entries++ = r->replay;
    if (rehearsal->generate)
        *entries = (tm_data_entry){.path = rehearsal->texts, .format = TM_FORMAT_TOKENS, .weight = 1};
}

/* The examples that the base chose, as the record has them. */
static tm_status read_chosen(const char *path, int64_t n, bool *keep, tm_error *err)
{
    json_t *json;
    TM_TRY(tm_json_read(path, &json, err));
    const json_t *part = json_object_get(json, "replay"), *chosen = json_object_get(part, "chosen");
    bool good = json_integer_value(json_object_get(part, "examples")) == n && json_is_array(chosen);
    for (size_t i = 0; good && i < json_array_size(chosen); i++) {
        const json_t *index = json_array_get(chosen, i);
        good = json_is_integer(index) && json_integer_value(index) >= 0 && json_integer_value(index) < n;
        if (good)
            keep[json_integer_value(index)] = true;
    }
    json_decref(json);
    return good ? TM_OK : tm_fail(err, TM_INPUT, "%s: replay: expected examples of the %lld of keep.replay.path; remove the file to have them chosen again", path, (long long)n);
}

tm_status tm_rehearsal_select(tm_rehearsal *rehearsal, const tm_recipe *r, const tm_seeds *seeds, tm_dataset *data, tm_error *err)
{
    if (!rehearsal->replay || !r->replay_buffer)
        return TM_OK;
    int64_t source = r->data_count, n = tm_dataset_stats_of(data, source)->examples;
    uint64_t key = tm_philox_key(seeds->subset, TM_PURPOSE_REHEARSAL, UINT32_MAX, 0);
    bool *keep;
    tm_status st;
    rehearsal->looked_at = tm_dataset_stats_of(data, source)->tokens;
    TM_TRY(TM_NEW(&keep, n, err));
    if (r->replay_select == TM_SELECT_RESERVOIR)
        TM_GO(tm_replay_reservoir(key, n, r->replay_buffer, keep, err));
    else if (base_chooses(r) && rehearsal->record)
        TM_GO(read_chosen(rehearsal->record, n, keep, err));
    else
        TM_GO(tm_replay_random(key, n, r->replay_buffer, keep, err));
    tm_dataset_keep(data, source, keep);
out:
    free(keep);
    return st;
}

/* --- What is made before a run --- */

tm_status tm_rehearsal_find(const tm_rehearsal_record *record, const char *part, const json_t *subject, bool *made, tm_error *err)
{
    const json_t *there = json_object_get(record->json, part);
    const char *key;
    json_t *value;
    *made = there != NULL;
    json_object_foreach((json_t *)(uintptr_t)subject, key, value) {
        if (!there || json_equal(json_object_get(there, key), value))
            continue;
        *made = false;
        if (record->begun)
            return tm_fail(err, TM_LOCKED, "%s holds another run: %s of its rehearsal.json is another; choose another out, or remove the folder", record->dir, key);
    }
    return TM_OK;
}

tm_status tm_rehearsal_put(tm_rehearsal_record *record, const char *part, json_t *json, tm_error *err)
{
    char *path = tm_path_join(record->dir, "rehearsal.json", err);
    tm_status st = path ? TM_OK : TM_NO_MEMORY;
    if (!json || json_object_set_new(record->json, part, json) != 0)
        st = tm_fail(err, TM_NO_MEMORY, "out of memory");
    if (st == TM_OK)
        st = tm_json_write(path, record->json, JSON_INDENT(1), err);
    free(path);
    return st;
}

void tm_rehearsal_say(const tm_rehearsal_record *record, const char *fmt, ...)
{
    char text[512];
    va_list args;
    if (!record->callbacks->note)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    record->callbacks->note(record->callbacks->context, text);
}

tm_status tm_rehearsal_go_on(const tm_rehearsal_record *record, tm_error *err)
{
    const tm_callbacks *c = record->callbacks;
    return c->interrupted && c->interrupted(c->context) ? tm_fail(err, TM_FAILED, "interrupted before the first step; the same command begins again") : TM_OK;
}

static tm_status open_record(tm_rehearsal_record *record, tm_error *err)
{
    char *path = tm_path_join(record->dir, "rehearsal.json", err);
    tm_status st = path ? TM_OK : TM_NO_MEMORY;
    if (path && tm_path_exists(path))
        st = tm_json_read(path, &record->json, err);
    if (st == TM_OK && record->json && !json_is_object(record->json))
        st = tm_fail(err, TM_INPUT, "%s: expected an object; remove the file to have it made again", path);
    if (st == TM_OK && !record->json && !(record->json = json_pack("{s:i}", "temper_rehearsal", 1)))
        st = tm_fail(err, TM_NO_MEMORY, "out of memory");
    free(path);
    return st;
}

tm_status tm_rehearsal_prepare(const tm_recipe *r, const tm_callbacks *callbacks, tm_error *err)
{
    tm_rehearsal_record record = {.recipe = r, .seeds = tm_seeds_of(r), .callbacks = callbacks, .dir = folder_of(r)};
    tm_rehearsal what;
    tm_dir_lock lock;
    bool texts, choice;
    TM_TRY(tm_rehearsal_of(r, r->method == TM_METHOD_NONE, true, &what, err));
    if (!asks_base(r, &texts, &choice))
        return TM_OK;
    TM_TRY(tm_dir_create(record.dir, err));
    TM_TRY(tm_dir_lock_take(record.dir, &lock, err));
    record.begun = tm_dir_has(record.dir, "run.json");
    tm_status st = open_record(&record, err);
    if (st == TM_OK && texts)
        st = tm_rehearsal_generate(&record, err);
    if (st == TM_OK && choice)
        st = tm_rehearsal_choose(&record, err);
    json_decref(record.json);
    tm_dir_lock_drop(&lock);
    return st;
}
