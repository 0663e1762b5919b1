/* Which files a data entry has: the file it names, the files of a folder (and of folders in it) whose names
 * say that they are data, or what a pattern matches. They are read in the order of their names' bytes, so
 * the order of a directory never enters a result. */
#include "text/dataset_parts.h"
#include "text/rows.h"

#include <errno.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_DEPTH = 16, MAX_FILES = 1000000 };

void tm_data_files_deinit(tm_data_files *files)
{
    tm_names_deinit(&files->path);
    *files = (tm_data_files){0};
}

static tm_status walk(const char *dir, int depth, tm_names *out, tm_error *err)
{
    char **names;
    size_t count;
    if (depth > MAX_DEPTH)
        return tm_fail(err, TM_INPUT, "%s: folders more than %d deep", dir, MAX_DEPTH);
    TM_TRY(tm_dir_list(dir, &names, &count, err));
    tm_status st = TM_OK;
    for (size_t i = 0; i < count && st == TM_OK; i++) {
        if (names[i][0] == '.')
            continue;
        char *path = tm_path_join(dir, names[i], err);
        if (!path)
            st = TM_NO_MEMORY;
        else if (tm_path_is_dir(path))
            st = walk(path, depth + 1, out, err);
        else if (tm_row_source_knows(path))
            st = tm_names_add(out, path, err);
        free(path);
        if (st == TM_OK && out->count > MAX_FILES)
            st = tm_fail(err, TM_INPUT, "%s: more than %d files", dir, MAX_FILES);
    }
    tm_names_free(names, count);
    return st;
}

static tm_status match(const char *pattern, tm_names *out, tm_error *err)
{
    glob_t found = {0};
    int r = glob(pattern, GLOB_NOSORT, NULL, &found);
    tm_status st = TM_OK;
    if (r == GLOB_NOSPACE)
        st = tm_fail(err, TM_NO_MEMORY, "%s: out of memory", pattern);
    else if (r != 0 && r != GLOB_NOMATCH)
        st = tm_fail(err, TM_IO, "%s: cannot look for it", pattern);
    for (size_t i = 0; i < found.gl_pathc && st == TM_OK; i++)
        if (!tm_path_is_dir(found.gl_pathv[i]))
            st = tm_names_add(out, found.gl_pathv[i], err);
    globfree(&found);
    if (st == TM_OK && out->count == 0)
        st = tm_fail(err, TM_INPUT, "%s: no file matches", pattern);
    return st;
}

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Bytes of all paths up to and with the last '/' that they share: not of what the hash is about. */
static size_t common_folder(const tm_names *paths)
{
    const char *first = paths->item[0], *slash = strrchr(first, '/');
    size_t n = slash ? (size_t)(slash - first) + 1 : 0;
    for (int64_t i = 1; i < paths->count; i++)
        while (n > 0 && strncmp(first, paths->item[i], n) != 0)
            for (n--; n > 0 && first[n - 1] != '/'; n--)
                ;
    return n;
}

static tm_status measure(tm_data_files *f, tm_error *err)
{
    tm_buf list = {0};
    tm_status st = TM_OK;
    size_t folder = common_folder(&f->path);
    for (int64_t i = 0; i < f->path.count; i++) {
        const char *path = f->path.item[i];
        struct stat info;
        if (stat(path, &info) != 0)
            TM_GO(tm_fail_errno(err, errno == ENOENT || errno == ENOTDIR ? TM_INPUT : TM_IO, "%s: cannot open", path));
        if (!S_ISREG(info.st_mode))
            TM_GO(tm_fail(err, TM_INPUT, "%s: is not a regular file", path));
        f->bytes += info.st_size;
        TM_GO(tm_sha256_file(path, &f->hash, err));
        tm_buf_add(&list, path + folder, strlen(path + folder) + 1);
        tm_buf_text(&list, f->hash.hex);
        tm_buf_char(&list, '\n');
    }
    TM_GO(tm_buf_check(&list, err));
    if (f->path.count > 1)
        st = tm_sha256_bytes(list.data, list.size, &f->hash, err);
out:
    tm_buf_deinit(&list);
    return st;
}

tm_status tm_data_files_find(const char *path, tm_data_files *out, tm_error *err)
{
    *out = (tm_data_files){0};
    tm_status st;
    if (tm_path_is_dir(path)) {
        TM_GO(walk(path, 0, &out->path, err));
        if (out->path.count == 0)
            TM_GO(tm_fail(err, TM_INPUT, "%s: no data in this folder; expected .jsonl, .json, .csv, .txt (also .gz, .zst) or .parquet", path));
    } else if (strpbrk(path, "*?[") && !tm_path_exists(path))
        TM_GO(match(path, &out->path, err));
    else
        TM_GO(tm_names_add(&out->path, path, err));
    qsort(out->path.item, (size_t)out->path.count, sizeof *out->path.item, by_bytes);
    st = measure(out, err);
out:
    if (st != TM_OK)
        tm_data_files_deinit(out);
    return st;
}

tm_status tm_data_path_hash(const char *path, tm_sha256 *out, tm_error *err)
{
    tm_data_files files;
    TM_TRY(tm_data_files_find(path, &files, err));
    *out = files.hash;
    tm_data_files_deinit(&files);
    return TM_OK;
}
