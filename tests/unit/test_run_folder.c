/* The growing files of a run folder: cut to where a checkpoint saw them, refused where a byte of that is gone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "folder.h"
#include "train/run_folder.h"

static const char *const files[] = {"metrics.jsonl", "timing.jsonl", "trail.bin"};

static void put(const char *name, const char *text)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", scratch("run"), name);
    OK(tm_file_write(path, text, strlen(text), err));
}

static char *content(const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", scratch("run"), name);
    return slurp(path, NULL);
}

static void rows_are_cut_to_the_position(void **state)
{
    (void)state;
    static const char *const left[] = {"{}\n{}\n", "", "abc"};
    tm_run_folder folder;
    tm_run_position at = {.metrics = 6, .timing = 0, .trail = 3}, now;
    OK(tm_run_folder_open(scratch("run"), &folder, err));
    put("metrics.jsonl", "{}\n{}\n{}\n");
    put("timing.jsonl", "{}\n");
    put("trail.bin", "abc"); /* exactly what the checkpoint saw */
    OK(tm_run_folder_start(&folder, &at, err));
    OK(tm_run_folder_position(&folder, &now, err));
    assert_true(now.metrics == 6 && now.timing == 0 && now.trail == 3);
    for (int i = 0; i < 3; i++) {
        char *text = content(files[i]);
        assert_string_equal(text, left[i]);
        free(text);
    }
    OK(tm_run_folder_trail(&folder, "de", 2, err));
    OK(tm_run_folder_position(&folder, &now, err));
    assert_int_equal(now.trail, 5);
    tm_run_folder_close(&folder);
    char *trail = content("trail.bin");
    assert_string_equal(trail, "abcde");
    free(trail);
}

/* One byte less is a hole already; nothing is cut or filled then. */
static void a_byte_that_is_gone_is_missed(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        tm_run_folder folder;
        tm_run_position at = {3, 3, 3};
        OK(tm_run_folder_open(scratch("run"), &folder, err));
        for (int k = 0; k < 3; k++)
            put(files[k], k == i ? "ab" : "abc");
        FAILS(TM_INPUT, "2 bytes, and 3 when the checkpoint", tm_run_folder_start(&folder, &at, err));
        tm_run_folder_close(&folder);
        char *text = content(files[i]);
        assert_string_equal(text, "ab");
        free(text);
    }
}

static void a_new_folder_begins_empty(void **state)
{
    (void)state;
    tm_run_folder folder, second;
    tm_run_position at = {0}, now;
    OK(tm_dir_remove(scratch("run"), err));
    OK(tm_run_folder_open(scratch("run"), &folder, err));
    OK(tm_run_folder_start(&folder, &at, err));
    OK(tm_run_folder_position(&folder, &now, err));
    assert_true(now.metrics == 0 && now.timing == 0 && now.trail == 0);
    FAILS(TM_LOCKED, "", tm_run_folder_open(scratch("run"), &second, err));
    tm_run_folder_close(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(rows_are_cut_to_the_position), cmocka_unit_test(a_byte_that_is_gone_is_missed), cmocka_unit_test(a_new_folder_begins_empty)};
    return cmocka_run_group_tests_name("run_folder", tests, scratch_begin, scratch_end);
}
