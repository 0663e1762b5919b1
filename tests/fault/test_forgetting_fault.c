/* The world of the forgetting benchmark while memory runs out and the disk fails: said each time, and no file is half
 * there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <time.h>

#include "../unit/folder.h"
#include "fault.h"
#include "lab/forgetting.h"

static void store(const char *name, const char *text)
{
    tm_error err;
    assert_int_equal(tm_file_write(scratch(name), text, strlen(text), &err), TM_OK);
}

static tm_status write_world(tm_error *err)
{
    static char english[512], russian[512];
    snprintf(english, sizeof english, "%s", scratch("english.txt"));
    snprintf(russian, sizeof russian, "%s", scratch("russian.txt"));
    return tm_world_write(&(tm_world){.seed = 1, .people = 2, .new_people = 1, .english = english, .russian_train = russian, .russian_test = russian}, scratch("out"), err);
}

static tm_status write_recipe(tm_error *err)
{
    tm_buf out = {0};
    tm_forgetting_form form = tm_forgetting_form_of(false, "data", "model");
    tm_status st = tm_forgetting_recipe(&form, &out, err);
    tm_buf_deinit(&out);
    return st;
}

/* Files end with a whole row. */
static void check_world(void)
{
    static const char *const names[] = {"out/old/replay.jsonl", "out/people/select.jsonl", "out/conflict/train.jsonl"};
    for (int i = 0; i < 3; i++) {
        size_t size;
        if (!tm_path_exists(scratch(names[i])))
            continue;
        char *text = slurp(scratch(names[i]), &size);
        if (size < 3 || memcmp(text + size - 2, "}\n", 2) != 0)
            fail_msg("%s: %zu bytes that do not end with a row: %s", names[i], size, text);
        free(text);
    }
}

static void world(void **state)
{
    (void)state;
    uint64_t seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    tm_buf text = {0};
    for (int i = 0; i < 60; i++)
        tm_buf_printf(&text, "FIRST CITIZEN:\nLine %d of a play that is not long.\n\n", i);
    store("english.txt", text.data);
    store("russian.txt", text.data);
    tm_buf_deinit(&text);
    fault_sample("world", 6, seed, write_world, check_world);
    fault_sweep("recipe", FAULT_ALLOCS, write_recipe, NULL);
}

int main(void)
{
    fault_begin();
    const struct CMUnitTest tests[] = {cmocka_unit_test(world)};
    return cmocka_run_group_tests(tests, scratch_begin, scratch_end);
}
