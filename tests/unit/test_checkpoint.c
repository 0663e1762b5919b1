/* Checkpoints: the newest whole one is found, whatever happened to the others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/json.h"
#include "folder.h"
#include "io/checkpoint.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>

/* A run folder with nothing in it. */
static const char *fresh_run(void)
{
    static char run[256];
    snprintf(run, sizeof run, "%s/run", scratch_dir);
    OK(tm_dir_remove(run, err));
    OK(tm_dir_create(run, err));
    return run;
}

static void put(const char *folder, const char *name, const char *text, size_t size)
{
    char *path = tm_path_join(folder, name, NULL);
    OK(tm_file_write(path, text, size, err));
    free(path);
}

static void make(const char *run, int64_t step, const char *text)
{
    char *folder;
    OK(tm_checkpoint_begin(run, step, &folder, err));
    put(folder, "weights.safetensors", text, strlen(text));
    put(folder, "state.json", "{\"a\":1}", 7);
    put(folder, "empty", "", 0);
    free(folder);
    OK(tm_checkpoint_commit(run, step, err));
}

/* Checks which step is the newest whole one, and that its folder is the right one. */
static void latest_is(const char *run, int64_t max_step, int64_t expected)
{
    int64_t step;
    char *folder, name[64];
    OK(tm_checkpoint_latest(run, max_step, &step, &folder, NULL, err));
    assert_int_equal(step, expected);
    if (expected < 0) {
        assert_null(folder);
        return;
    }
    snprintf(name, sizeof name, "/checkpoint-%lld", (long long)expected);
    assert_string_equal(strrchr(folder, '/'), name);
    free(folder);
}

static void finds_newest(void **state)
{
    (void)state;
    const char *run = fresh_run();
    latest_is(run, -1, -1);
    make(run, 2, "two");
    make(run, 10, "ten");
    make(run, 9, "nine");
    latest_is(run, -1, 10);
    latest_is(run, 10, 10);
    latest_is(run, 9, 9);
    latest_is(run, 8, 2);
    latest_is(run, 1, -1);
    OK(tm_dir_create(scratch("run/checkpoint-99"), err)); /* nothing in it */
    OK(tm_dir_create(scratch("run/checkpoint-0100"), err));
    OK(tm_dir_create(scratch("run/checkpoint-best"), err));
    OK(tm_file_write(scratch("run/checkpoint-77"), "a file", 6, err));
    latest_is(run, -1, 10);
    int64_t step;
    char *folder;
    OK(tm_checkpoint_latest(scratch("no-such-run"), -1, &step, &folder, NULL, err));
    assert_int_equal(step, -1);
}

/* A process that died while filling, or between the two renames of a replacement. */
static void half_made(void **state)
{
    (void)state;
    const char *run = fresh_run();
    char *folder;
    make(run, 1, "one");
    OK(tm_checkpoint_begin(run, 2, &folder, err));
    put(folder, "weights.safetensors", "tw", 2);
    assert_true(tm_path_is_dir(folder));
    latest_is(run, -1, 1);
    assert_false(tm_path_exists(folder));
    free(folder);
    OK(tm_checkpoint_begin(run, 2, &folder, err));
    put(folder, "old", "x", 1);
    free(folder);
    OK(tm_checkpoint_begin(run, 2, &folder, err)); /* again: begins empty */
    char **names;
    size_t count;
    OK(tm_dir_list(folder, &names, &count, err));
    assert_int_equal(count, 0);
    tm_names_free(names, count);
    free(folder);
    make(run, 2, "two");
    OK(tm_path_move(scratch("run/checkpoint-2"), scratch("run/.checkpoint-2.old"), err));
    latest_is(run, -1, 2); /* put back */
    OK(tm_dir_create(scratch("run/.checkpoint-2.old"), err));
    latest_is(run, -1, 2);
    assert_false(tm_path_exists(scratch("run/.checkpoint-2.old")));
    make(run, 2, "two again"); /* in place of the former */
    latest_is(run, -1, 2);
    char *text = slurp(scratch("run/checkpoint-2/weights.safetensors"), NULL);
    assert_string_equal(text, "two again");
    free(text);
    assert_false(tm_path_exists(scratch("run/.checkpoint-2.old")));
    FAILS(TM_INPUT, ".checkpoint-5.partial", tm_checkpoint_commit(run, 5, err)); /* never begun */
}

/* Not synced: this is done some hundred times. */
static void overwrite(const char *path, const char *bytes, size_t size)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

/* Any file of the newest gone, cut at any byte, longer, or with any bit of any byte turned: the one
 * before is loaded; whole again, it is itself. */
static void torn(void **state)
{
    (void)state;
    const char *run = fresh_run();
    static const char *const files[] = {"weights.safetensors", "state.json", "empty", "manifest.json"};
    make(run, 1, "one");
    make(run, 2, "two, longer");
    for (int f = 0; f < 4; f++) {
        char path[512];
        size_t size;
        snprintf(path, sizeof path, "%s/checkpoint-2/%s", run, files[f]);
        char *bytes = slurp(path, &size);
        unlink(path);
        latest_is(run, -1, 1);
        for (size_t n = 0; n <= size + 1; n++) {
            char *grown = calloc(1, size + 2);
            memcpy(grown, bytes, size);
            overwrite(path, grown, n);
            latest_is(run, -1, n == size ? 2 : 1);
            free(grown);
        }
        for (size_t at = 0; at < size; at++) {
            bytes[at] ^= (char)(1 << at % 8);
            overwrite(path, bytes, size);
            latest_is(run, -1, 1);
            bytes[at] ^= (char)(1 << at % 8);
        }
        overwrite(path, bytes, size);
        latest_is(run, -1, 2);
        free(bytes);
    }
    OK(tm_file_write(scratch("run/checkpoint-2/added"), "x", 1, err));
    latest_is(run, -1, 1);
    unlink(scratch("run/checkpoint-2/added"));
    OK(tm_file_write(scratch("run/checkpoint-2/.hidden"), "x", 1, err));
    latest_is(run, -1, 2);
    OK(tm_path_move(scratch("run/checkpoint-2"), scratch("run/checkpoint-3"), err)); /* not its step */
    latest_is(run, -1, 1);
}

/* What was passed over is said, with the file that is to blame. */
static void passed_over(void **state)
{
    (void)state;
    const char *run = fresh_run();
    tm_names passed = {0};
    int64_t step;
    char *folder;
    for (int i = 1; i < 5; i++)
        make(run, i, "weights");
    overwrite(scratch("run/checkpoint-4/state.json"), "{}", 2);
    unlink(scratch("run/checkpoint-3/manifest.json"));
    overwrite(scratch("run/checkpoint-2/zz"), "x", 1);
    OK(tm_checkpoint_latest(run, -1, &step, &folder, &passed, err));
    free(folder);
    assert_int_equal(step, 1);
    assert_int_equal(passed.count, 3);
    assert_non_null(strstr(passed.item[0], "checkpoint-4 is passed over: state.json is not the file"));
    assert_non_null(strstr(passed.item[1], "checkpoint-3 is passed over: "));
    assert_non_null(strstr(passed.item[1], "manifest.json: cannot open"));
    assert_non_null(strstr(passed.item[2], "checkpoint-2 is passed over: zz is not"));
    tm_names_deinit(&passed);
}

static void manifest_form(void **state)
{
    (void)state;
    const char *run = fresh_run();
    make(run, 7, "abc");
    char *text = slurp(scratch("run/checkpoint-7/manifest.json"), NULL);
    assert_string_equal(text, "{\n  \"format\": 1,\n  \"step\": 7,\n  \"files\": {\n"
        "    \"empty\": {\"bytes\": 0, \"sha256\": \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"},\n"
        "    \"state.json\": {\"bytes\": 7, \"sha256\": \"015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862\"},\n"
        "    \"weights.safetensors\": {\"bytes\": 3, \"sha256\": \"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"}\n"
        "  }\n}\n");
    json_t *root;
    OK(tm_json_parse(text, strlen(text), "manifest.json", &root, err));
    json_decref(root);
    free(text);
    char *folder;
    OK(tm_checkpoint_begin(run, 8, &folder, err)); /* one without files is a checkpoint too */
    free(folder);
    OK(tm_checkpoint_commit(run, 8, err));
    latest_is(run, -1, 8);
    OK(tm_checkpoint_begin(run, 9, &folder, err));
    char *inner = tm_path_join(folder, "folder", NULL);
    OK(tm_dir_create(inner, err));
    free(inner);
    free(folder);
    FAILS(TM_INPUT, "plain files only", tm_checkpoint_commit(run, 9, err));
    latest_is(run, -1, 8);
}

/* Makes checkpoints for ever, telling each finished step; only killed. */
static void make_for_ever(const char *run, int64_t step, int told)
{
    char *folder, *path, bytes[5000];
    tm_error err;
    for (;; step++) {
        memset(bytes, (int)step, sizeof bytes);
        if (tm_checkpoint_begin(run, step, &folder, &err) != TM_OK || !(path = tm_path_join(folder, "bytes", &err)) ||
            tm_file_write(path, bytes, sizeof bytes, &err) != TM_OK || tm_checkpoint_commit(run, step, &err) != TM_OK ||
            tm_checkpoint_prune(run, 2, -1, &err) != TM_OK || write(told, &step, sizeof step) != sizeof step)
            _exit(1);
        free(folder);
        free(path);
    }
}

/* Killed at random moments: the newest whole checkpoint is the last that was finished, or one that was
 * just finished and not told yet; its content is its own. */
static void killed(void **state)
{
    (void)state;
    const char *run = fresh_run();
    int64_t last = 0;
    unsigned seed = (unsigned)getpid();
    for (int round = 0; round < 25; round++) {
        int told[2];
        assert_int_equal(pipe(told), 0);
        pid_t child = fork();
        if (child == 0)
            make_for_ever(run, last + 1, told[1]);
        close(told[1]);
        if (round % 2) /* on a busy machine too, half of them die after a finished checkpoint */
            assert_int_equal(poll(&(struct pollfd){.fd = told[0], .events = POLLIN}, 1, 60000), 1);
        usleep((useconds_t)(rand_r(&seed) % 30000));
        kill(child, SIGKILL);
        int status;
        waitpid(child, &status, 0);
        assert_true(WIFSIGNALED(status));
        for (int64_t step; read(told[0], &step, sizeof step) == sizeof step;)
            last = step;
        close(told[0]);
        int64_t step;
        char *folder;
        OK(tm_checkpoint_latest(run, -1, &step, &folder, NULL, err));
        if (step != last && step != last + 1 && !(last == 0 && step == -1))
            fail_msg("round %d, seed from %d: finished %lld, found %lld", round, (int)getpid(), (long long)last, (long long)step);
        if (step > 0) {
            char *path = tm_path_join(folder, "bytes", NULL), *bytes = slurp(path, NULL);
            assert_true(bytes[0] == (char)step && bytes[4999] == (char)step);
            free(bytes);
            free(path);
            last = step;
        }
        free(folder);
    }
    assert_true(last > 0);
}

static void prune(void **state)
{
    (void)state;
    const char *run = fresh_run();
    for (int64_t step = 1; step <= 6; step++)
        make(run, step * 5, "x");
    OK(tm_checkpoint_prune(run, 2, 10, err));
    char **names, all[256] = "";
    size_t count;
    OK(tm_dir_list(run, &names, &count, err));
    for (size_t i = 0; i < count; i++)
        strcat(strcat(all, names[i]), " ");
    tm_names_free(names, count);
    assert_string_equal(all, "checkpoint-10 checkpoint-25 checkpoint-30 ");
    OK(tm_checkpoint_prune(run, 0, -1, err)); /* the last one stays */
    latest_is(run, -1, 30);
    latest_is(run, 29, -1);
}

/* A disk that fills up while a checkpoint is written keeps the finished ones, and room is made again. */
static void full_disk(void **state)
{
    (void)state;
    const char *disk = scratch("disk");
    OK(tm_dir_create(disk, err));
    if (mount("tmpfs", disk, "tmpfs", 0, "size=256k") != 0) {
        print_message("skip: a small disk cannot be mounted here (%s)\n", strerror(errno));
        skip();
    }
    char *folder, big[20000];
    tm_error problem = {0};
    tm_status st = TM_OK;
    memset(big, 'b', sizeof big);
    make(disk, 1, "one");
    int64_t step = 2;
    for (; step < 100; step++) {
        st = tm_checkpoint_begin(disk, step, &folder, &problem);
        for (int i = 0; i < 3 && st == TM_OK; i++) {
            char path[512];
            snprintf(path, sizeof path, "%s/part-%d", folder, i);
            st = tm_file_write(path, big, sizeof big, &problem);
        }
        free(folder);
        if (st == TM_OK)
            st = tm_checkpoint_commit(disk, step, &problem);
        if (st != TM_OK)
            break;
        latest_is(disk, -1, step);
    }
    bool said = st == TM_IO && strstr(problem.message, "No space left on device");
    bool many = step > 2 && step < 100;
    latest_is(disk, -1, step - 1);
    if (said && many) {
        OK(tm_checkpoint_prune(disk, 1, -1, err));
        make(disk, 200, "there is room again");
        latest_is(disk, -1, 200);
    }
    umount(disk);
    assert_true(many);
    assert_true(said);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_newest), cmocka_unit_test(half_made), cmocka_unit_test(torn), cmocka_unit_test(passed_over), cmocka_unit_test(manifest_form),
        cmocka_unit_test(prune), cmocka_unit_test(killed),
        cmocka_unit_test(full_disk),
    };
    return cmocka_run_group_tests_name("checkpoint", tests, scratch_begin, scratch_end);
}
