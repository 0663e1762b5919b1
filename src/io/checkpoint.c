/* Checkpoint folders: see checkpoint.h. How a name tells the state of what bears it:
 *
 *   checkpoint-N            finished: filled, manifest written, everything synced, then renamed
 *   .checkpoint-N.partial   being filled, or being removed: never loaded, removed when found
 *   .checkpoint-N.old       the former checkpoint-N while a new one takes its name: put back when found
 *                           without it (a process died between two renames), else removed
 *
 * manifest.json lists size and sha256 of every other file of the folder. The check makes the manifest
 * anew from the files and compares bytes: a missing, added, cut or altered file, or an altered manifest,
 * all show the same way. Names with a leading dot are nobody's and are not looked at. */
#include "io/checkpoint.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_MANIFEST_BYTES = 16 << 20 };

/* dir/prefix + step + suffix; free(). */
static char *step_path(const char *dir, const char *prefix, int64_t step, const char *suffix, tm_error *err)
{
    char name[64];
    snprintf(name, sizeof name, "%s%lld%s", prefix, (long long)step, suffix);
    return tm_path_join(dir, name, err);
}

/* The step in a name of that form, in the form we write it; -1 for any other name. */
static int64_t step_in(const char *name, const char *prefix, const char *suffix)
{
    char again[64];
    size_t n = strlen(prefix);
    if (strncmp(name, prefix, n) != 0 || name[n] < '0' || name[n] > '9')
        return -1;
    int64_t step = strtoll(name + n, NULL, 10);
    snprintf(again, sizeof again, "%s%lld%s", prefix, (long long)step, suffix);
    return strcmp(again, name) == 0 ? step : -1;
}

/* The three names a step can have; zeroed ones may be freed. */
typedef struct places {
    char *final, *partial, *old;
} places;

static void places_deinit(places *p)
{
    free(p->final);
    free(p->partial);
    free(p->old);
}

static tm_status places_init(const char *dir, int64_t step, places *p, tm_error *err)
{
    *p = (places){0};
    p->final = step_path(dir, "checkpoint-", step, "", err);
    p->partial = step_path(dir, ".checkpoint-", step, ".partial", err);
    p->old = step_path(dir, ".checkpoint-", step, ".old", err);
    return p->final && p->partial && p->old ? TM_OK : TM_NO_MEMORY;
}

/* ---- the manifest ---- */

static tm_status put_entry(tm_buf *text, const char *folder, const char *name, bool sync, tm_error *err)
{
    struct stat info;
    tm_sha256 hash;
    char *path = tm_path_join(folder, name, err);
    if (!path)
        return TM_NO_MEMORY;
    tm_status st = TM_OK;
    if (lstat(path, &info) != 0)
        TM_GO(tm_fail_errno(err, TM_IO, "%s: cannot look at it", path));
    if (!S_ISREG(info.st_mode))
        TM_GO(tm_fail(err, TM_INPUT, "%s: a checkpoint holds plain files only", path));
    TM_GO(tm_sha256_file(path, &hash, err));
    if (sync)
        TM_GO(tm_path_sync(path, err));
    tm_buf_text(text, ",\n    ");
    tm_json_put_string(text, name);
    tm_buf_printf(text, ": {\"bytes\": %lld, \"sha256\": \"%s\"}", (long long)info.st_size, hash.hex);
out:
    free(path);
    return st;
}

/* The manifest that the files of a folder call for; sync flushes them on the way. */
static tm_status make_manifest(const char *folder, int64_t step, bool sync, tm_buf *text, tm_error *err)
{
    char **names;
    size_t count;
    tm_status st = TM_OK;
    TM_TRY(tm_dir_list(folder, &names, &count, err));
    tm_buf_printf(text, "{\n  \"format\": 1,\n  \"step\": %lld,\n  \"files\": {", (long long)step);
    size_t first = text->size;
    for (size_t i = 0; i < count && st == TM_OK; i++)
        if (names[i][0] != '.' && strcmp(names[i], "manifest.json") != 0)
            st = put_entry(text, folder, names[i], sync, err);
    if (st == TM_OK && text->size > first) /* the first entry has no comma before it */
        memmove(text->data + first, text->data + first + 1, text->size-- - first);
    tm_buf_text(text, "\n  }\n}\n");
    tm_names_free(names, count);
    return st == TM_OK ? tm_buf_check(text, err) : st;
}

/* What is wrong with a folder whose files call for another manifest: the name in the first line that differs. */
static void say_why(const tm_buf *made, const tm_buf *found, char *why, size_t size)
{
    size_t i = 0, line = 0;
    for (; i < made->size && i < found->size && made->data[i] == found->data[i]; i++)
        if (made->data[i] == '\n')
            line = i + 1;
    if (i + 1 < made->size && made->data[i] == ',' && i < found->size && found->data[i] == '\n')
        line = i + 2; /* one more follows there */
    const char *name = line < made->size && strncmp(made->data + line, "    \"", 5) == 0    ? made->data + line + 5
                       : line < found->size && strncmp(found->data + line, "    \"", 5) == 0 ? found->data + line + 5
                                                                                            : NULL;
    if (name)
        snprintf(why, size, "%.*s is not the file that manifest.json describes", (int)strcspn(name, "\""), name);
    else
        snprintf(why, size, "manifest.json does not describe its files");
}

/* ok: the manifest there is the one its files call for; else why says what is wrong. Fails only where the
 * system does. */
static tm_status verify(const char *folder, int64_t step, bool *ok, char *why, size_t size, tm_error *err)
{
    tm_buf made = {0}, found = {0};
    *ok = false;
    char *path = tm_path_join(folder, "manifest.json", err);
    if (!path)
        return TM_NO_MEMORY;
    tm_status st = tm_file_read(path, MAX_MANIFEST_BYTES, &found, err);
    if (st == TM_OK)
        st = make_manifest(folder, step, false, &made, err);
    if (st == TM_OK)
        *ok = made.size == found.size && memcmp(made.data, found.data, made.size) == 0;
    if (st == TM_OK && !*ok)
        say_why(&made, &found, why, size);
    else if (st == TM_INPUT)
        snprintf(why, size, "%s", err ? err->message : "a file is missing");
    free(path);
    tm_buf_deinit(&made);
    tm_buf_deinit(&found);
    return st == TM_INPUT ? TM_OK : st; /* a file is missing or of the wrong kind: not ok, no more */
}

/* ---- making one ---- */

tm_status tm_checkpoint_begin(const char *run_dir, int64_t step, char **folder, tm_error *err)
{
    places p;
    tm_status st;
    *folder = NULL;
    TM_GO(places_init(run_dir, step, &p, err));
    TM_GO(tm_dir_remove(p.partial, err));
    TM_GO(tm_dir_create(p.partial, err));
    *folder = p.partial;
    p.partial = NULL;
out:
    places_deinit(&p);
    return st;
}

/* Gives the filled folder its name. A former one of the same step steps aside for the moment. */
static tm_status take_name(const places *p, tm_error *err)
{
    bool replace = tm_path_exists(p->final);
    if (replace) {
        TM_TRY(tm_dir_remove(p->old, err));
        TM_TRY(tm_path_move(p->final, p->old, err));
    }
    tm_status st = tm_path_move(p->partial, p->final, err);
    if (replace && st != TM_OK && !tm_path_exists(p->final))
        (void)!rename(p->old, p->final);
    return replace && st == TM_OK ? tm_dir_remove(p->old, err) : st;
}

tm_status tm_checkpoint_commit(const char *run_dir, int64_t step, tm_error *err)
{
    places p;
    tm_buf manifest = {0};
    char *path = NULL;
    tm_status st;
    TM_GO(places_init(run_dir, step, &p, err));
    TM_GO(make_manifest(p.partial, step, true, &manifest, err));
    path = tm_path_join(p.partial, "manifest.json", err);
    if (!path)
        TM_GO(TM_NO_MEMORY);
    TM_GO(tm_file_write(path, manifest.data, manifest.size, err)); /* syncs the folder as well */
    st = take_name(&p, err);
out:
    if (st != TM_OK && p.partial) {
        tm_status tried = tm_dir_remove(p.partial, NULL); /* a full disk needs the room */
        (void)tried;
    }
    free(path);
    tm_buf_deinit(&manifest);
    places_deinit(&p);
    return st;
}

/* ---- finding ---- */

/* Settles what a dead process left under the names that are never loaded. */
static tm_status clean(const char *run_dir, char *const *names, size_t count, tm_error *err)
{
    tm_status st = TM_OK;
    for (size_t i = 0; i < count && st == TM_OK; i++) {
        places p;
        int64_t old = step_in(names[i], ".checkpoint-", ".old");
        int64_t partial = step_in(names[i], ".checkpoint-", ".partial");
        if (old < 0 && partial < 0)
            continue;
        st = places_init(run_dir, old < 0 ? partial : old, &p, err);
        if (st == TM_OK && old >= 0 && !tm_path_exists(p.final))
            st = tm_path_move(p.old, p.final, err);
        else if (st == TM_OK)
            st = tm_dir_remove(old < 0 ? p.partial : p.old, err);
        places_deinit(&p);
    }
    return st;
}

/* Steps of the finished folders, newest first; free(). */
static tm_status list_steps(const char *run_dir, int64_t **steps, size_t *count, tm_error *err)
{
    char **names;
    size_t total;
    *count = 0;
    *steps = NULL;
    TM_TRY(tm_dir_list(run_dir, &names, &total, err));
    tm_status st = TM_NEW(steps, total, err);
    for (size_t i = 0; i < total && st == TM_OK; i++) {
        int64_t step = step_in(names[i], "checkpoint-", "");
        size_t at = *count;
        if (step < 0)
            continue;
        for (; at > 0 && (*steps)[at - 1] < step; at--)
            (*steps)[at] = (*steps)[at - 1];
        (*steps)[at] = step;
        ++*count;
    }
    tm_names_free(names, total);
    return st;
}

static tm_status clean_folder(const char *run_dir, tm_error *err)
{
    char **names;
    size_t count;
    TM_TRY(tm_dir_list(run_dir, &names, &count, err));
    tm_status st = clean(run_dir, names, count, err);
    tm_names_free(names, count);
    return st;
}

tm_status tm_checkpoint_latest(const char *run_dir, int64_t max_step, int64_t *step, char **folder, tm_names *passed,
                               tm_error *err)
{
    int64_t *steps = NULL;
    size_t count = 0;
    tm_status st;
    *step = -1;
    *folder = NULL;
    if (!tm_path_exists(run_dir))
        return TM_OK;
    TM_GO(clean_folder(run_dir, err));
    TM_GO(list_steps(run_dir, &steps, &count, err));
    for (size_t i = 0; i < count && *step < 0; i++) {
        if (max_step >= 0 && steps[i] > max_step)
            continue;
        bool ok;
        char why[1100], line[6000];
        char *path = step_path(run_dir, "checkpoint-", steps[i], "", err);
        st = path ? verify(path, steps[i], &ok, why, sizeof why, err) : TM_NO_MEMORY;
        if (st == TM_OK && !ok && passed) {
            snprintf(line, sizeof line, "%s is passed over: %s", path, why);
            st = tm_names_add(passed, line, err);
        }
        if (st == TM_OK && ok) {
            *step = steps[i];
            *folder = path;
            path = NULL;
        }
        free(path);
        if (st != TM_OK)
            goto out;
    }
out:
    free(steps);
    return st;
}

tm_status tm_checkpoint_prune(const char *run_dir, int64_t keep, int64_t best, tm_error *err)
{
    int64_t *steps;
    size_t count;
    tm_status st = list_steps(run_dir, &steps, &count, err);
    if (keep < 1)
        keep = 1; /* never the last one */
    for (size_t i = (size_t)keep; i < count && st == TM_OK; i++) {
        places p;
        if (steps[i] == best)
            continue;
        st = places_init(run_dir, steps[i], &p, err);
        /* Half removed is as bad as half made, so the name goes first. */
        if (st == TM_OK)
            st = tm_dir_remove(p.partial, err);
        if (st == TM_OK)
            st = tm_path_move(p.final, p.partial, err);
        if (st == TM_OK)
            st = tm_dir_remove(p.partial, err);
        places_deinit(&p);
    }
    free(steps);
    return st;
}
