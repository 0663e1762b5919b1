/* Files: whole reads, maps, and writes that are either complete or absent. */
#ifndef TM_BASE_FILE_H
#define TM_BASE_FILE_H

#include "base/buf.h"

/* Reads a whole file of at most max_bytes into buf (appended). */
tm_status tm_file_read(const char *path, size_t max_bytes, tm_buf *buf, tm_error *err) TM_MUST_CHECK;

/* A read-only mapping of a whole file; size 0 gives data "" . */
typedef struct tm_map {
    const char *data;
    size_t size;
} tm_map;
tm_status tm_map_open(const char *path, tm_map *out, tm_error *err) TM_MUST_CHECK;
void tm_map_close(tm_map *map);

/* Writes aside, syncs, renames over path, syncs the folder: after a crash the old or the new file is
 * there, whole. */
tm_status tm_file_write(const char *path, const void *data, size_t size, tm_error *err) TM_MUST_CHECK;

/* The same for content that comes in pieces. open, put any number of times, then commit (the file is
 * there, whole) or discard (nothing happened); discard after commit, or of a zeroed one, does nothing.
 * The aside is `.NAME.partial` in the same folder, locked, so that one left by a killed process is
 * reused and two writers of one path do not mix: the second gets TM_LOCKED. */
typedef struct tm_file_out {
    bool open;
    int fd;
    char *path, *aside;
} tm_file_out;
tm_status tm_file_out_open(const char *path, tm_file_out *out, tm_error *err) TM_MUST_CHECK;
tm_status tm_file_out_put(tm_file_out *out, const void *data, size_t size, tm_error *err) TM_MUST_CHECK;
tm_status tm_file_out_commit(tm_file_out *out, tm_error *err) TM_MUST_CHECK;
void tm_file_out_discard(tm_file_out *out);

/* Where a file that comes with temper ("data/calibration.json") is: beside the program (a release, a build in its source
 * tree), where `make install` puts it, or in the current folder. false: nowhere, or its path is too long. */
bool tm_shared_path(const char *name, char *out, size_t size);

bool tm_path_exists(const char *path);
/* Whether both are there and are one, by whatever names. */
bool tm_path_same(const char *a, const char *b);
bool tm_path_is_dir(const char *path);
bool tm_dir_has(const char *dir, const char *name); /* dir/name is there; takes no memory, so it cannot fail */
/* a/b; free with free(). NULL with err filled when memory runs out. */
char *tm_path_join(const char *a, const char *b, tm_error *err);
tm_status tm_dir_create(const char *path, tm_error *err) TM_MUST_CHECK;  /* with parents; existing is fine */
tm_status tm_dir_remove(const char *path, tm_error *err) TM_MUST_CHECK;  /* with contents; missing is fine */
/* Renames a file or folder (a folder over an empty or absent one) and makes the new name durable. */
tm_status tm_path_move(const char *from, const char *to, tm_error *err) TM_MUST_CHECK;
/* Flushes a file or folder that was written by other means. */
tm_status tm_path_sync(const char *path, tm_error *err) TM_MUST_CHECK;
/* Names in a folder, sorted by bytes, without . and ..; free with tm_names_free. */
tm_status tm_dir_list(const char *path, char ***names, size_t *count, tm_error *err) TM_MUST_CHECK;
void tm_names_free(char **names, size_t count);

/* An exclusive lock on a folder (a lock file, held through flock until unlock or death). TM_LOCKED
 * when another process holds it. */
typedef struct tm_dir_lock {
    int fd; /* -1: not held */
} tm_dir_lock;
tm_status tm_dir_lock_take(const char *dir, tm_dir_lock *lock, tm_error *err) TM_MUST_CHECK;
void tm_dir_lock_drop(tm_dir_lock *lock);

#endif
