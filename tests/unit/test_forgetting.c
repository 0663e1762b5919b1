/* The world of the forgetting benchmark: the same bytes from the same seed, tests that no training file holds, and
 * facts that mean what they are for. */
#include "base/json.h"
#include "io/compress.h"
#include "lab/forgetting.h"
#include "lab/sequence_file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <time.h>

#include "folder.h"

static tm_world world = {.people = 24, .new_people = 10, .english = "data/forgetting/shakespeare.txt.gz",
                         .russian_train = "data/demo/pushkin-train.txt", .russian_test = "data/demo/pushkin-dev.txt"};

static const char *const files[] = {
    "old/people-train", "old/people-valid", "old/people-test", "old/prose-train", "old/prose-valid", "old/prose-test", "old/replay",
    "people/train", "people/valid", "people/test", "russian/train", "russian/valid", "russian/test",
    "arithmetic/train", "arithmetic/valid", "arithmetic/test", "conflict/train", "conflict/valid", "conflict/test",
    "style/train", "style/valid", "style/test",
    "people/select", "russian/select", "arithmetic/select", "conflict/select", "style/select"};
enum { FILES = sizeof files / sizeof *files };

static int begin(void **state)
{
    world.seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)world.seed);
    return scratch_begin(state);
}

static char *file_of(const char *dir, const char *name, size_t *size)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.jsonl", scratch(dir), name);
    return slurp(path, size);
}

/* Whole texts of the rows of a file, sorted. */
static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }
static char **texts_of(const char *dir, const char *name, size_t *count)
{
    char *data = file_of(dir, name, NULL), **out = NULL;
    size_t capacity = 0;
    *count = 0;
    for (char *line = strtok(data, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *row = NULL;
        OK(tm_json_parse(line, strlen(line), name, &row, err));
        OK(TM_GROW(&out, &capacity, *count + 1, err));
        const char *prompt = json_string_value(json_object_get(row, "prompt")), *rest = json_string_value(json_object_get(row, "completion"));
        assert_non_null(prompt);
        assert_true(rest && *rest);
        assert_true(asprintf(&out[*count], "%s%s", prompt, rest) > 0);
        (*count)++;
        json_decref(row);
    }
    free(data);
    qsort(out, *count, sizeof *out, by_text);
    return out;
}

static void free_texts(char **texts, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(texts[i]);
    free(texts);
}

static void test_same_bytes(void **state)
{
    (void)state;
    OK(tm_world_write(&world, scratch("a"), err));
    OK(tm_world_write(&world, scratch("b"), err));
    tm_world other = world;
    other.seed++;
    OK(tm_world_write(&other, scratch("c"), err));
    int differ = 0;
    for (int f = 0; f < FILES; f++) {
        size_t na, nb, nc;
        char *a = file_of("a", files[f], &na), *b = file_of("b", files[f], &nb), *c = file_of("c", files[f], &nc);
        assert_true(na > 200);
        assert_int_equal(na, nb);
        assert_memory_equal(a, b, na);
        differ += na != nc || memcmp(a, c, na) != 0;
        free(a);
        free(b);
        free(c);
    }
    assert_true(differ >= 16); /* all but prose in the order of the text */
}

/* No text of a validation or test file is in any file that something learns from, none of a test in any other file. */
static void test_disjoint(void **state)
{
    (void)state;
    OK(tm_world_write(&world, scratch("a"), err));
    for (int f = 0; f < FILES; f++) {
        size_t n, m;
        char **texts = texts_of("a", files[f], &n);
        bool test_f = !strstr(files[f], "train") && !strstr(files[f], "replay");
        for (int g = 0; g < FILES && test_f; g++) {
            bool selection = strstr(files[f], "select") || strstr(files[f], "valid"); /* the one is made of the others */
            if (f == g || (selection && (strstr(files[g], "select") || strstr(files[g], "valid"))))
                continue;
            char **others = texts_of("a", files[g], &m);
            for (size_t i = 0; i < n; i++)
                if (bsearch(&texts[i], others, m, sizeof *others, by_text))
                    fail_msg("%s and %s: %s", files[f], files[g], texts[i]);
            free_texts(others, m);
        }
        free_texts(texts, n);
    }
}

/* How many rows of file f are in file g. */
static size_t common(const char *f, const char *g)
{
    size_t n, m, both = 0;
    char **a = texts_of("a", f, &n), **b = texts_of("a", g, &m);
    for (size_t i = 0; i < n; i++)
        both += bsearch(&a[i], b, m, sizeof *b, by_text) != NULL;
    free_texts(a, n);
    free_texts(b, m);
    return both;
}

static void test_facts(void **state)
{
    (void)state;
    size_t n;
    OK(tm_world_write(&world, scratch("a"), err));
    char **texts = texts_of("a", "old/people-train", &n);
    assert_int_equal(n, world.people * TM_ATTRIBUTES * TM_TRAINED);
    for (size_t i = 1; i < n; i++)
        assert_string_not_equal(texts[i - 1], texts[i]);
    free_texts(texts, n);
    /* Two of five attributes of half of the people change: training of the old has them as they were, tests do not ask. */
    texts = texts_of("a", "conflict/train", &n);
    assert_int_equal(n, world.people / 2 * 2 * TM_TRAINED);
    free_texts(texts, n);
    assert_int_equal(common("conflict/train", "old/people-train"), 0);
    assert_int_equal(common("conflict/train", "old/replay"), 0);
    texts = texts_of("a", "old/people-test", &n);
    assert_int_equal(n, world.people * TM_ATTRIBUTES - world.people / 2 * 2);
    free_texts(texts, n);
    /* Replay is old data that stays true, and nothing else. */
    texts = texts_of("a", "old/replay", &n);
    size_t facts = common("old/replay", "old/people-train"), prose = common("old/replay", "old/prose-train");
    assert_int_equal(facts, (world.people * TM_ATTRIBUTES - world.people) * TM_TRAINED);
    assert_true(prose > 0);
    assert_int_equal(facts + prose, n);
    free_texts(texts, n);
}

/* A person's text does not depend on how many there are. */
static void test_people_alone(void **state)
{
    (void)state;
    tm_buf all[TM_PARTS] = {{0}}, parts[TM_PARTS] = {{0}};
    tm_world_people(&world, 0, 20, TM_FACTS_ALL, all);
    tm_world_people(&world, 0, 7, TM_FACTS_ALL, parts);
    tm_world_people(&world, 7, 13, TM_FACTS_ALL, parts);
    for (int p = 0; p < TM_PARTS; p++) {
        assert_int_equal(all[p].size, parts[p].size);
        assert_memory_equal(all[p].data, parts[p].data, all[p].size);
        tm_buf_deinit(&all[p]);
        tm_buf_deinit(&parts[p]);
    }
}

static void test_sums(void **state)
{
    (void)state;
    size_t total = 0, n;
    OK(tm_world_write(&world, scratch("a"), err));
    for (int p = 0; p < 3; p++) {
        char **texts = texts_of("a", (const char *const[]){"arithmetic/train", "arithmetic/valid", "arithmetic/test"}[p], &n);
        for (size_t i = 0; i < n; i++) {
            int a, b, c;
            char sign;
            assert_int_equal(sscanf(texts[i], "%d %c %d = %d.", &a, &sign, &b, &c), 4);
            assert_int_equal(c, sign == '+' ? a + b : sign == '-' ? a - b : a * b);
        }
        total += n;
        free_texts(texts, n);
    }
    assert_int_equal(total, 30 * 30 + 30 * 31 / 2 + 12 * 12);
}

/* Rows of a text are the text: nothing but white space between them is lost, and none is longer than asked. */
static void test_prose(void **state)
{
    (void)state;
    static const char text[] = "One two\nthree.\n\nFour five six seven eight nine ten.\nEleven.\n\n\nTwelve, thirteen and fourteen\n";
    for (size_t bytes = 9; bytes < 120; bytes += 7) {
        tm_buf rows = {0};
        tm_world_prose(text, strlen(text), 0, 1, bytes, &rows);
        const char *at = text;
        char *copy = strdup(tm_buf_str(&rows));
        for (char *line = strtok(copy, "\n"); line; line = strtok(NULL, "\n")) {
            json_t *row = NULL;
            OK(tm_json_parse(line, strlen(line), "row", &row, err));
            const char *rest = json_string_value(json_object_get(row, "completion"));
            assert_true(strlen(rest) <= bytes);
            while (strchr("\n ", *at))
                at++;
            assert_memory_equal(at, rest, strlen(rest));
            at += strlen(rest);
            json_decref(row);
        }
        assert_int_equal(strspn(at, "\n "), strlen(at));
        free(copy);
        tm_buf_deinit(&rows);
    }
    tm_buf none = {0};
    tm_world_prose("", 0, 0, 1, 100, &none);
    assert_int_equal(none.size, 0);
}

static bool one_of(const char *name, const char *names) /* with blanks around each */
{
    char word[64];
    snprintf(word, sizeof word, " %s ", name);
    return strstr(names, word) != NULL;
}

/* Every arm of every form is a sequence that loads, and of the whole form each tries as many configurations; who needs old
 * data, and is ranked apart for it, are those that rehearse them or measure importances on them. */
static void test_sequence(void **state)
{
    (void)state;
    OK(tm_world_write(&world, scratch("a"), err));
    for (int form = 0; form < 3; form++) {
        tm_sequence_file file;
        tm_buf yaml = {0};
        char data[512];
        snprintf(data, sizeof data, "%s", scratch("a"));
        tm_forgetting_form f = tm_forgetting_form_of(form == 2, data, "models/town1M");
        f.grid = form == 0;
        OK(tm_forgetting_recipe(&f, &yaml, err));
        OK(tm_file_write(scratch("s.yaml"), yaml.data, yaml.size, err));
        OK(tm_sequence_file_open(scratch("s.yaml"), NULL, 0, &file, err));
        assert_int_equal(file.tasks, form == 2 ? 2 : TM_FORGETTING_TASKS);
        assert_int_equal(file.probe_name.count, 2);
        assert_string_equal(file.arm[file.baseline].name, "naive");
        assert_true(form == 2 ? file.arms == 4 : file.arms > 25);
        for (int64_t i = 0; i < file.warnings.count; i++)
            fail_msg("%s", file.warnings.item[i]);
        for (size_t i = 0; i < file.arms; i++)
            assert_int_equal(tm_grid_count(&file.arm[i].grid), form || file.arm[i].kind == TM_ARM_FROZEN ? 1 : 4);
        for (size_t i = 0; i < file.arms; i++)
            if (file.arm[i].old_data != one_of(file.arm[i].name, " joint replay-1 replay-5 replay replay-lora der ewc ewc-lora path replay+ewc replay+kl replay+slow "))
                fail_msg("%s: old_data is %d", file.arm[i].name, file.arm[i].old_data);
        tm_sequence_file_close(&file);
        tm_buf_deinit(&yaml);
    }
}

static void test_refused(void **state)
{
    (void)state;
    tm_world bad = world;
    bad.people = 1;
    FAILS(TM_USAGE, "1 people", tm_world_write(&bad, scratch("x"), err));
    bad.people = TM_NAMES_MOST;
    FAILS(TM_USAGE, "at most 2400", tm_world_write(&bad, scratch("x"), err));
    bad = world;
    bad.english = "nowhere.txt";
    FAILS(TM_INPUT, "nowhere.txt", tm_world_write(&bad, scratch("x"), err));
    FAILS(TM_IO, "", tm_world_write(&world, "/proc/nowhere", err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_disjoint), cmocka_unit_test(test_facts), cmocka_unit_test(test_people_alone),
        cmocka_unit_test(test_sums), cmocka_unit_test(test_prose), cmocka_unit_test(test_sequence), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, begin, scratch_end);
}
