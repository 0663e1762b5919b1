/* Files: see file.h. What holds here:
 *
 * 1. A file or folder that another run may find under its final name is complete and on the disk: it was
 *    synced under an aside name, renamed, and the folder that holds the name was synced.
 * 2. Calls that a signal interrupts are repeated; short reads and writes are continued.
 * 3. A name that is not there, or is of the wrong kind, is the user's input (TM_INPUT); what the system
 *    refuses is TM_IO. */
#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static tm_status fail_open(const char *path, tm_error *err)
{
    bool input = errno == ENOENT || errno == ENOTDIR || errno == EISDIR || errno == ENAMETOOLONG;
    return tm_fail_errno(err, input ? TM_INPUT : TM_IO, "%s: cannot open", path);
}

static int open_retry(const char *path, int flags)
{
    int fd;
    do
        fd = open(path, flags | O_CLOEXEC, 0666);
    while (fd < 0 && errno == EINTR);
    return fd;
}

/* Opens for reading; folders are refused. */
static tm_status open_read(const char *path, int flags, int *fd, struct stat *info, tm_error *err)
{
    *fd = open_retry(path, O_RDONLY | flags);
    if (*fd < 0)
        return fail_open(path, err);
    tm_status st = TM_OK;
    if (fstat(*fd, info) != 0)
        st = tm_fail_errno(err, TM_IO, "%s: cannot look at it", path);
    else if (S_ISDIR(info->st_mode))
        st = tm_fail(err, TM_INPUT, "%s: is a folder, expected a file", path);
    if (st != TM_OK)
        close(*fd);
    return st;
}

tm_status tm_file_read(const char *path, size_t max_bytes, tm_buf *buf, tm_error *err)
{
    int fd;
    struct stat info;
    TM_TRY(open_read(path, 0, &fd, &info, err));
    tm_status st = TM_OK;
    size_t start = buf->size;
    if (S_ISREG(info.st_mode) && (uint64_t)info.st_size > max_bytes)
        TM_GO(tm_fail(err, TM_INPUT, "%s: %lld bytes, expected at most %zu", path, (long long)info.st_size, max_bytes));
    /* The size is a hint only: pipes have none, and files may grow. One more byte finds the end. */
    for (size_t want = S_ISREG(info.st_mode) ? (size_t)info.st_size + 1 : 65536;; want = 65536) {
        char *at = tm_buf_reserve(buf, want);
        TM_GO(tm_buf_check(buf, err));
        ssize_t n = read(fd, at, want);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            TM_GO(tm_fail_errno(err, TM_IO, "%s: cannot read", path));
        if (n == 0)
            break;
        buf->size += (size_t)n;
        buf->data[buf->size] = 0;
        if (buf->size - start > max_bytes)
            TM_GO(tm_fail(err, TM_INPUT, "%s: more than the %zu bytes expected at most", path, max_bytes));
    }
    buf->data[buf->size] = 0;
out:
    close(fd);
    return st;
}

tm_status tm_map_open(const char *path, tm_map *out, tm_error *err)
{
    *out = (tm_map){.data = ""};
    int fd;
    struct stat info;
    TM_TRY(open_read(path, O_NONBLOCK, &fd, &info, err)); /* a named pipe is refused, not waited for */
    tm_status st = TM_OK;
    if (!S_ISREG(info.st_mode))
        st = tm_fail(err, TM_INPUT, "%s: is not a regular file", path);
    else if (info.st_size > 0) {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
            st = tm_fail_errno(err, TM_IO, "%s: cannot map %lld bytes", path, (long long)info.st_size);
        else
            *out = (tm_map){.data = data, .size = (size_t)info.st_size};
    }
    close(fd);
    return st;
}

void tm_map_close(tm_map *map)
{
    if (map->size)
        munmap((void *)map->data, map->size);
    *map = (tm_map){.data = ""};
}

/* ---- writing ---- */

static tm_status sync_fd(int fd, const char *path, tm_error *err)
{
    int r;
    do
        r = fsync(fd);
    while (r != 0 && errno == EINTR);
    /* EINVAL: a file system that has nothing to sync for this kind of file */
    return r == 0 || errno == EINVAL ? TM_OK : tm_fail_errno(err, TM_IO, "%s: cannot sync", path);
}

tm_status tm_path_sync(const char *path, tm_error *err)
{
    int fd = open_retry(path, O_RDONLY);
    if (fd < 0)
        return tm_fail_errno(err, TM_IO, "%s: cannot open", path);
    tm_status st = sync_fd(fd, path, err);
    close(fd);
    return st;
}

/* The folder of a path, "." when it has none; free(). */
static char *parent_of(const char *path, tm_error *err)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return tm_strdup(".", err);
    char *dir = tm_strdup(path, err);
    if (dir)
        dir[slash == path ? 1 : slash - path] = 0;
    return dir;
}

tm_status tm_path_move(const char *from, const char *to, tm_error *err)
{
    char *dir = parent_of(to, err);
    if (!dir)
        return TM_NO_MEMORY;
    tm_status st = TM_OK;
    if (rename(from, to) != 0)
        st = tm_fail_errno(err, TM_IO, "%s: cannot take the place of %s", from, to);
    else
        st = tm_path_sync(dir, err);
    free(dir);
    return st;
}

/* Opens and locks the aside. The lock may be won on a file that its former owner has just renamed away:
 * then the name is another file, and we try again. */
static tm_status open_aside(tm_file_out *out, tm_error *err)
{
    for (int tries = 0; tries < 100; tries++) {
        out->fd = open_retry(out->aside, O_WRONLY | O_CREAT);
        if (out->fd < 0)
            return tm_fail_errno(err, TM_IO, "%s: cannot create", out->aside);
        if (flock(out->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            close(out->fd);
            return tm_fail(err, TM_LOCKED, "%s: another process is writing this file", out->path);
        }
        struct stat ours, named;
        if (fstat(out->fd, &ours) == 0 && stat(out->aside, &named) == 0 && ours.st_ino == named.st_ino &&
            ours.st_dev == named.st_dev) {
            out->open = true;
            if (ftruncate(out->fd, 0) == 0)
                return TM_OK;
            return tm_fail_errno(err, TM_IO, "%s: cannot empty", out->aside);
        }
        close(out->fd);
    }
    return tm_fail(err, TM_IO, "%s: is replaced again and again by another process", out->aside);
}

tm_status tm_file_out_open(const char *path, tm_file_out *out, tm_error *err)
{
    *out = (tm_file_out){.fd = -1};
    tm_status st = TM_OK;
    const char *slash = strrchr(path, '/');
    size_t dir = slash ? (size_t)(slash - path) + 1 : 0;
    out->path = tm_strdup(path, err);
    if (!out->path)
        TM_GO(TM_NO_MEMORY);
    size_t room = strlen(path) + sizeof "..partial";
    TM_GO(TM_NEW(&out->aside, room, err));
    snprintf(out->aside, room, "%.*s.%s.partial", (int)dir, path, path + dir);
    TM_GO(open_aside(out, err));
out:
    if (st != TM_OK)
        tm_file_out_discard(out);
    return st;
}

tm_status tm_file_out_put(tm_file_out *out, const void *data, size_t size, tm_error *err)
{
    for (const char *at = data; size > 0;) {
        ssize_t n = write(out->fd, at, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return tm_fail_errno(err, TM_IO, "%s: cannot write", out->path);
        at += n;
        size -= (size_t)n;
    }
    return TM_OK;
}

tm_status tm_file_out_commit(tm_file_out *out, tm_error *err)
{
    tm_status st;
    TM_GO(sync_fd(out->fd, out->path, err));
    TM_GO(tm_path_move(out->aside, out->path, err));
    close(out->fd);
    out->open = false;
out:
    tm_file_out_discard(out);
    return st;
}

void tm_file_out_discard(tm_file_out *out)
{
    if (out->open) {
        unlink(out->aside);
        close(out->fd);
    }
    free(out->path);
    free(out->aside);
    *out = (tm_file_out){.fd = -1};
}

tm_status tm_file_write(const char *path, const void *data, size_t size, tm_error *err)
{
    tm_file_out out;
    TM_TRY(tm_file_out_open(path, &out, err));
    tm_status st = tm_file_out_put(&out, data, size, err);
    if (st == TM_OK)
        return tm_file_out_commit(&out, err);
    tm_file_out_discard(&out);
    return st;
}

/* ---- names and folders ---- */

bool tm_shared_path(const char *name, char *out, size_t size)
{
    static const char *const from_program[] = {"", "/../..", "/../share/temper"};
    char program[4000];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n > 0 ? n : 0] = 0;
    char *slash = strrchr(program, '/');
    if (slash)
        *slash = 0;
    for (size_t i = 0; slash && i < sizeof from_program / sizeof *from_program; i++)
        if ((size_t)snprintf(out, size, "%s%s/%s", program, from_program[i], name) < size && tm_path_exists(out))
            return true;
    return (size_t)snprintf(out, size, "%s", name) < size && tm_path_exists(out);
}

bool tm_path_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

bool tm_path_same(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool tm_path_is_dir(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool tm_dir_has(const char *dir, const char *name)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s/%s", dir, name);
    return n > 0 && (size_t)n < sizeof path && tm_path_exists(path);
}

char *tm_path_join(const char *a, const char *b, tm_error *err)
{
    size_t n = strlen(a), m = strlen(b);
    bool slash = n > 0 && a[n - 1] != '/';
    char *path = NULL;
    if (tm_alloc((void **)&path, n + m + 2, 1, err) != TM_OK)
        return NULL;
    memcpy(path, a, n);
    if (slash)
        path[n] = '/';
    memcpy(path + n + slash, b, m + 1);
    return path;
}

tm_status tm_dir_create(const char *path, tm_error *err)
{
    char *part = tm_strdup(path, err);
    if (!part)
        return TM_NO_MEMORY;
    tm_status st = TM_OK;
    for (char *at = part;;) {
        at += strspn(at, "/");
        at += strcspn(at, "/");
        char end = *at;
        *at = 0;
        if (*part && mkdir(part, 0777) != 0 && errno != EEXIST)
            TM_GO(tm_fail_errno(err, TM_IO, "%s: cannot create the folder %s", path, part));
        *at = end;
        if (!end)
            break;
    }
    if (!tm_path_is_dir(path))
        st = tm_fail(err, TM_IO, "%s: is there and is not a folder", path);
out:
    free(part);
    return st;
}

tm_status tm_dir_remove(const char *path, tm_error *err)
{
    struct stat info;
    if (lstat(path, &info) != 0)
        return errno == ENOENT ? TM_OK : tm_fail_errno(err, TM_IO, "%s: cannot look at it", path);
    if (!S_ISDIR(info.st_mode))
        return unlink(path) == 0 ? TM_OK : tm_fail_errno(err, TM_IO, "%s: cannot remove", path);
    char **names;
    size_t count;
    TM_TRY(tm_dir_list(path, &names, &count, err));
    tm_status st = TM_OK;
    for (size_t i = 0; i < count && st == TM_OK; i++) {
        char *child = tm_path_join(path, names[i], err);
        st = child ? tm_dir_remove(child, err) : TM_NO_MEMORY;
        free(child);
    }
    tm_names_free(names, count);
    if (st == TM_OK && rmdir(path) != 0)
        st = tm_fail_errno(err, TM_IO, "%s: cannot remove", path);
    return st;
}

static int compare_names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

tm_status tm_dir_list(const char *path, char ***names, size_t *count, tm_error *err)
{
    tm_status st = TM_OK;
    size_t capacity = 0;
    *names = NULL;
    *count = 0;
    DIR *dir = opendir(path);
    if (!dir)
        return fail_open(path, err);
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(dir);
        if (!entry && errno)
            TM_GO(tm_fail_errno(err, TM_IO, "%s: cannot list", path));
        if (!entry)
            break;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        TM_GO(TM_GROW(names, &capacity, *count + 1, err));
        char *name = tm_strdup(entry->d_name, err);
        if (!name)
            TM_GO(TM_NO_MEMORY);
        (*names)[(*count)++] = name;
    }
    if (*count)
        qsort(*names, *count, sizeof **names, compare_names);
out:
    closedir(dir);
    if (st != TM_OK) {
        tm_names_free(*names, *count);
        *names = NULL;
        *count = 0;
    }
    return st;
}

void tm_names_free(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

/* ---- the lock of a folder ---- */

tm_status tm_dir_lock_take(const char *dir, tm_dir_lock *lock, tm_error *err)
{
    lock->fd = -1;
    char *path = tm_path_join(dir, ".lock", err);
    if (!path)
        return TM_NO_MEMORY;
    tm_status st = TM_OK;
    int fd = open_retry(path, O_RDWR | O_CREAT);
    if (fd < 0)
        TM_GO(tm_fail_errno(err, TM_IO, "%s: cannot create", path));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        char pid[32] = "";
        ssize_t n = errno == EWOULDBLOCK ? pread(fd, pid, sizeof pid - 1, 0) : -1;
        st = n < 0 ? tm_fail_errno(err, TM_IO, "%s: cannot lock", path)
                   : tm_fail(err, TM_LOCKED, "%s: in use by another process (%.*s)", dir, (int)strcspn(pid, "\n"),
                             n > 0 ? pid : "starting");
        close(fd);
        goto out;
    }
    /* The number only serves the message above, so a full disk is no reason to refuse the lock. */
    char pid[32];
    int n = snprintf(pid, sizeof pid, "pid %ld\n", (long)getpid());
    if (ftruncate(fd, 0) == 0 && pwrite(fd, pid, (size_t)n, 0) != n)
        (void)!ftruncate(fd, 0);
    lock->fd = fd;
out:
    free(path);
    return st;
}

void tm_dir_lock_drop(tm_dir_lock *lock)
{
    if (lock->fd >= 0) {
        (void)!ftruncate(lock->fd, 0);
        close(lock->fd);
    }
    lock->fd = -1;
}
