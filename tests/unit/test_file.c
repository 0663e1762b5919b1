/* Files, folders, locks and hashes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/hash.h"
#include "folder.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void write_then_read(void **state)
{
    (void)state;
    tm_buf buf = {0};
    tm_map map;
    OK(tm_file_write(scratch("a"), "hello", 5, err));
    OK(tm_file_read(scratch("a"), 5, &buf, err));
    OK(tm_file_read(scratch("a"), 5, &buf, err)); /* appends */
    assert_string_equal(buf.data, "hellohello");
    FAILS(TM_INPUT, "5 bytes, expected at most 4", tm_file_read(scratch("a"), 4, &buf, err));
    FAILS(TM_INPUT, "/missing: cannot open: No such file", tm_file_read(scratch("missing"), 4, &buf, err));
    FAILS(TM_INPUT, "is a folder", tm_file_read(scratch_dir, 4, &buf, err));
    tm_buf_deinit(&buf);
    OK(tm_map_open(scratch("a"), &map, err));
    assert_int_equal(map.size, 5);
    assert_memory_equal(map.data, "hello", 5);
    tm_map_close(&map);
    tm_map_close(&map);
}

static void empty_files(void **state)
{
    (void)state;
    tm_buf buf = {0};
    tm_map map;
    OK(tm_file_write(scratch("empty"), NULL, 0, err));
    OK(tm_map_open(scratch("empty"), &map, err));
    assert_int_equal(map.size, 0);
    assert_string_equal(map.data, "");
    tm_map_close(&map);
    OK(tm_file_read(scratch("empty"), 0, &buf, err));
    assert_string_equal(tm_buf_str(&buf), "");
    tm_buf_deinit(&buf);
    FAILS(TM_INPUT, "cannot open", tm_map_open(scratch("none"), &map, err));
    assert_int_equal(mkfifo(scratch("fifo"), 0600), 0);
    FAILS(TM_INPUT, "not a regular file", tm_map_open(scratch("fifo"), &map, err));
}

/* A pipe has no size: it is read to its end, and the limit holds. */
static void pipes_are_read(void **state)
{
    (void)state;
    int ends[2];
    char path[64];
    tm_buf buf = {0};
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], "0123456789", 10), 10);
    close(ends[1]);
    snprintf(path, sizeof path, "/proc/self/fd/%d", ends[0]);
    OK(tm_file_read(path, 10, &buf, err));
    assert_string_equal(buf.data, "0123456789");
    tm_buf_deinit(&buf);
    close(ends[0]);
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], "0123456789", 10), 10);
    close(ends[1]);
    snprintf(path, sizeof path, "/proc/self/fd/%d", ends[0]);
    FAILS(TM_INPUT, "more than the 9 bytes", tm_file_read(path, 9, &buf, err));
    tm_buf_deinit(&buf);
    close(ends[0]);
}

/* Nothing of a write shows before its commit, and a discarded one never. */
static void old_or_new(void **state)
{
    (void)state;
    tm_file_out out, second;
    char *text;
    OK(tm_file_write(scratch("f"), "old", 3, err));
    OK(tm_file_out_open(scratch("f"), &out, err));
    OK(tm_file_out_put(&out, "ne", 2, err));
    FAILS(TM_LOCKED, "/f: another process", tm_file_out_open(scratch("f"), &second, err));
    text = slurp(scratch("f"), NULL);
    assert_string_equal(text, "old");
    free(text);
    OK(tm_file_out_put(&out, "w", 1, err));
    OK(tm_file_out_commit(&out, err));
    text = slurp(scratch("f"), NULL);
    assert_string_equal(text, "new");
    free(text);
    OK(tm_file_out_open(scratch("f"), &out, err));
    OK(tm_file_out_put(&out, "torn", 4, err));
    tm_file_out_discard(&out);
    tm_file_out_discard(&out);
    text = slurp(scratch("f"), NULL);
    assert_string_equal(text, "new");
    free(text);
    assert_false(tm_path_exists(scratch(".f.partial")));
}

/* What a killed writer left aside is reused, shorter content too. */
static void stale_aside(void **state)
{
    (void)state;
    FILE *aside = fopen(scratch(".g.partial"), "w");
    fputs("much longer than what comes", aside);
    fclose(aside);
    OK(tm_file_write(scratch("g"), "short", 5, err));
    char *text = slurp(scratch("g"), NULL);
    assert_string_equal(text, "short");
    free(text);
    assert_false(tm_path_exists(scratch(".g.partial")));
    FAILS(TM_IO, "cannot create", tm_file_write(scratch("no/where"), "x", 1, err));
    OK(tm_dir_create(scratch("folder"), err));
    FAILS(TM_IO, "cannot take the place", tm_file_write(scratch("folder"), "x", 1, err));
    assert_false(tm_path_exists(scratch(".folder.partial")));
}

static void folders(void **state)
{
    (void)state;
    char **names;
    size_t count;
    OK(tm_dir_create(scratch("d/e/f"), err));
    OK(tm_dir_create(scratch("d/e/f"), err));
    OK(tm_dir_create(scratch("d//e/"), err));
    OK(tm_file_write(scratch("d/b"), "", 0, err));
    OK(tm_file_write(scratch("d/B"), "", 0, err));
    OK(tm_file_write(scratch("d/\xd0\xb0"), "", 0, err));
    OK(tm_file_write(scratch("d/e/f/x"), "", 0, err));
    assert_int_equal(symlink("/etc", scratch("d/link")), 0);
    OK(tm_dir_list(scratch("d"), &names, &count, err));
    assert_int_equal(count, 5);
    const char *expected[] = {"B", "b", "e", "link", "\xd0\xb0"};
    for (int i = 0; i < 5; i++)
        assert_string_equal(names[i], expected[i]);
    tm_names_free(names, count);
    assert_true(tm_path_is_dir(scratch("d")));
    assert_false(tm_path_is_dir(scratch("d/b")));
    FAILS(TM_IO, "d/b", tm_dir_create(scratch("d/b"), err));
    FAILS(TM_IO, "d/b", tm_dir_create(scratch("d/b/c"), err));
    OK(tm_path_sync(scratch("d"), err));
    OK(tm_dir_remove(scratch("d"), err));
    OK(tm_dir_remove(scratch("d"), err));
    assert_false(tm_path_exists(scratch("d")));
    assert_true(tm_path_exists("/etc"));
    FAILS(TM_INPUT, "cannot open", tm_dir_list(scratch("d"), &names, &count, err));
    char *joined = tm_path_join("a/", "b", NULL);
    assert_string_equal(joined, "a/b");
    free(joined);
    joined = tm_path_join("a", "b", NULL);
    assert_string_equal(joined, "a/b");
    free(joined);
}

/* Held against this and other processes; gone with its holder. */
static void lock(void **state)
{
    (void)state;
    tm_dir_lock mine, other = {-1};
    char pid[32];
    snprintf(pid, sizeof pid, "pid %ld", (long)getpid());
    OK(tm_dir_lock_take(scratch_dir, &mine, err));
    FAILS(TM_LOCKED, pid, tm_dir_lock_take(scratch_dir, &other, err));
    assert_int_equal(other.fd, -1);
    tm_dir_lock_drop(&mine);
    tm_dir_lock_drop(&mine);
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        tm_error err;
        char ok = tm_dir_lock_take(scratch_dir, &mine, &err) == TM_OK;
        if (write(ready[1], &ok, 1) == 1)
            pause();
        _exit(0);
    }
    char ok = 0;
    assert_int_equal(read(ready[0], &ok, 1), 1);
    assert_true(ok);
    snprintf(pid, sizeof pid, "(pid %ld)", (long)child);
    FAILS(TM_LOCKED, pid, tm_dir_lock_take(scratch_dir, &other, err));
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    OK(tm_dir_lock_take(scratch_dir, &other, err));
    tm_dir_lock_drop(&other);
    close(ready[0]);
    close(ready[1]);
    FAILS(TM_IO, "cannot create", tm_dir_lock_take(scratch("nowhere"), &other, err));
}

/* FIPS 180-2's vectors. */
static void hashes(void **state)
{
    (void)state;
    tm_sha256 h, again;
    OK(tm_sha256_bytes("abc", 3, &h, err));
    assert_string_equal(h.hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    OK(tm_sha256_bytes("", 0, &h, err));
    assert_string_equal(h.hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    char *million = malloc(1000000);
    memset(million, 'a', 1000000);
    OK(tm_file_write(scratch("million"), million, 1000000, err));
    free(million);
    OK(tm_sha256_file(scratch("million"), &h, err));
    assert_string_equal(h.hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    FAILS(TM_INPUT, "cannot open", tm_sha256_file(scratch("none"), &h, err));
    FAILS(TM_INPUT, "cannot read", tm_sha256_file(scratch_dir, &h, err));
    OK(tm_file_write(scratch("abc"), "abc", 3, err));
    char *names[] = {"abc"};
    OK(tm_sha256_files(scratch_dir, names, 1, &h, err));
    char list[80];
    int n = snprintf(list, sizeof list, "abc%c%s\n", 0,
                     "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    OK(tm_sha256_bytes(list, (size_t)n, &again, err));
    assert_string_equal(h.hex, again.hex);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(write_then_read), cmocka_unit_test(empty_files), cmocka_unit_test(pipes_are_read),
        cmocka_unit_test(old_or_new), cmocka_unit_test(stale_aside), cmocka_unit_test(folders),
        cmocka_unit_test(lock), cmocka_unit_test(hashes),
    };
    return cmocka_run_group_tests_name("file", tests, scratch_begin, scratch_end);
}
