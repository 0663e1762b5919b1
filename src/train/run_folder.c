/* The run folder: see run_folder.h. */
#include "train/run_folder.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

tm_status tm_run_folder_open(const char *dir, tm_run_folder *out, tm_error *err)
{
    *out = (tm_run_folder){.lock = {.fd = -1}};
    TM_TRY(tm_dir_create(dir, err));
    out->dir = tm_strdup(dir, err);
    if (!out->dir)
        return TM_NO_MEMORY;
    tm_status st = tm_dir_lock_take(dir, &out->lock, err);
    if (st != TM_OK)
        tm_run_folder_close(out);
    return st;
}

/* Opens dir/name for appending with its first `length` bytes kept. */
static tm_status open_cut(const tm_run_folder *folder, const char *name, int64_t length, FILE **out, tm_error *err)
{
    char *path = tm_path_join(folder->dir, name, err);
    if (!path)
        return TM_NO_MEMORY;
    tm_status st = TM_OK;
    struct stat info;
    *out = fopen(path, "ae");
    if (!*out)
        st = tm_fail_errno(err, TM_IO, "%s: cannot open for writing", path);
    else if (fstat(fileno(*out), &info) != 0)
        st = tm_fail_errno(err, TM_IO, "%s: cannot look at it", path);
    else if (info.st_size < length) /* it would be filled with zeros, which are no rows */
        st = tm_fail(err, TM_INPUT, "%s: %lld bytes, and %lld when the checkpoint that the run goes on from was made: rows are missing; put the file back, or remove the folder's checkpoints to begin anew",
                     path, (long long)info.st_size, (long long)length);
    else if (ftruncate(fileno(*out), length) != 0)
        st = tm_fail_errno(err, TM_IO, "%s: cannot cut to %lld bytes", path, (long long)length);
    free(path);
    return st;
}

tm_status tm_run_folder_start(tm_run_folder *folder, const tm_run_position *at, tm_error *err)
{
    TM_TRY(open_cut(folder, "metrics.jsonl", at->metrics, &folder->metrics, err));
    TM_TRY(open_cut(folder, "timing.jsonl", at->timing, &folder->timing, err));
    return open_cut(folder, "trail.bin", at->trail, &folder->trail, err);
}

void tm_run_folder_close(tm_run_folder *folder)
{
    if (folder->metrics)
        fclose(folder->metrics);
    if (folder->timing)
        fclose(folder->timing);
    if (folder->trail)
        fclose(folder->trail);
    if (folder->dir)
        tm_dir_lock_drop(&folder->lock);
    free(folder->dir);
    *folder = (tm_run_folder){.lock = {.fd = -1}};
}

static tm_status append(const tm_run_folder *folder, FILE *file, const void *data, size_t size, tm_error *err)
{
    if (fwrite(data, 1, size, file) != size || fflush(file) != 0)
        return tm_fail_errno(err, TM_IO, "%s: cannot write", folder->dir);
    return TM_OK;
}

tm_status tm_run_folder_row(tm_run_folder *folder, FILE *file, const tm_buf *row, tm_error *err)
{
    TM_TRY(tm_buf_check(row, err));
    return append(folder, file, row->data, row->size, err);
}

tm_status tm_run_folder_trail(tm_run_folder *folder, const void *data, size_t size, tm_error *err)
{
    return append(folder, folder->trail, data, size, err);
}

static tm_status length_of(const tm_run_folder *folder, FILE *file, int64_t *out, tm_error *err)
{
    int failed;
    while ((failed = fsync(fileno(file))) != 0 && errno == EINTR)
        ;
    off_t at = failed ? -1 : lseek(fileno(file), 0, SEEK_END);
    if (at < 0)
        return tm_fail_errno(err, TM_IO, "%s: cannot sync", folder->dir);
    *out = at;
    return TM_OK;
}

tm_status tm_run_folder_position(tm_run_folder *folder, tm_run_position *out, tm_error *err)
{
    TM_TRY(length_of(folder, folder->metrics, &out->metrics, err));
    TM_TRY(length_of(folder, folder->timing, &out->timing, err));
    return length_of(folder, folder->trail, &out->trail, err);
}
