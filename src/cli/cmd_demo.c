/* temper demo: the main job on the shipped model and data, told as a story with figures. */
#include "cli/cli.h"

#include "base/file.h"
#include "base/json.h"
#include "base/term.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct story {
    const char *lang, *recipe, *new_skill, *prompt, *next;
} stories[] = {
    {"en", "recipes/demo.yaml", "Shakespeare", "Once upon a time", "ROMEO:"},
    {"ru", "recipes/demo-ru.yaml", "Pushkin", "Однажды", "Пугачёв"},
};

/* Goes to the folder that has recipes/, models/ and data/: here, beside the program (a build in its
 * source tree), or where `make install` put them. */
static bool find_root(void)
{
    static const char name[] = "recipes/demo.yaml";
    char path[4200];
    if (!tm_shared_path(name, path, sizeof path))
        return false;
    path[strlen(path) - strlen(name)] = 0;
    return !path[0] || chdir(path) == 0;
}

static void write_text(void *context, const char *text, size_t size)
{
    (void)context;
    fwrite(text, 1, size, stdout);
}

static void show_text(const char *title, const char *adapter, const char *prompt, const tm_term *term)
{
    tm_error err;
    printf("%s%s%s %s", term->color ? "\033[1m" : "", title, term->color ? "\033[0m" : "", prompt);
    tm_generate_request r = {.model = "models/stories260K", .adapter = adapter, .prompt = prompt, .max_tokens = 64, .temperature = 0.7, .top_p = 0.9, .seed = 1, .write = write_text};
    if (tm_generate(&r, &err) != TM_OK)
        printf("(%s)", err.message);
    printf("\n");
}

/* One line of the verdict: name, loss before and after. */
static void show_eval(const json_t *eval, const char *what, const tm_term *term)
{
    double first = json_number_value(json_object_get(eval, "first")), last = json_number_value(json_object_get(eval, "last"));
    double change = first > 0 ? 100 * (last - first) / first : 0;
    const char *color = !term->color ? "" : change <= 0 ? "\033[32m" : "\033[33m";
    printf("  %-28s loss %.3f before, %.3f after: %s%.0f %% %s%s\n", what, first, last, color, change < 0 ? -change : change, change <= 0 ? "better" : "worse", term->color ? "\033[0m" : "");
}

static void show_result(const char *out, const struct story *story)
{
    tm_term term = tm_term_of(STDOUT_FILENO);
    tm_error err;
    json_t *run = NULL;
    char path[4600];
    printf("\n");
    show_text("before:", NULL, story->prompt, &term);
    show_text("after: ", out, story->prompt, &term);
    snprintf(path, sizeof path, "%s/run.json", out);
    if (tm_json_read(path, &run, &err) == TM_OK) {
        char what[64];
        const json_t *evals = json_object_get(run, "evals");
        printf("\n");
        snprintf(what, sizeof what, "new skill (%s)", story->new_skill);
        show_eval(json_array_get(evals, 0), what, &term);
        show_eval(json_array_get(evals, 1), "old skill (its own stories)", &term);
        json_decref(run);
    }
    printf("\nadapter, loads in PEFT   %s\n", out);
    printf("report                   %s/report.html\n", out);
    printf("try next                 temper generate --model models/stories260K --adapter %s --prompt \"%s\" --temperature 0.8\n", out, story->next);
}

/* The first of base, base-2, ... that does not hold a finished demo. */
static void choose_folder(const char *base, char out[4400])
{
    for (int n = 1; n < 1000; n++) {
        char path[4500];
        snprintf(out, 4400, n == 1 ? "%s" : "%s-%d", base, n);
        snprintf(path, sizeof path, "%s/report.html", out);
        if (!tm_path_exists(path))
            return;
    }
}

static int run(int argc, char **argv)
{
    const struct story *story = &stories[0];
    const char *lang = NULL, *given = NULL;
    for (int i = 1; i < argc; i++)
        if (!cli_option(argc, argv, &i, "--lang", &lang) && !cli_option(argc, argv, &i, "--out", &given))
            return cli_usage(&cmd_demo, "unknown argument %s", argv[i]);
    if (lang && strcmp(lang, "ru") == 0)
        story = &stories[1];
    else if (lang && strcmp(lang, "en") != 0)
        return cli_usage(&cmd_demo, "--lang: found '%s', expected en or ru", lang);
    /* Results go below the folder where the command was given, wherever the demo's files are. */
    char start[4096] = "", here[4096] = "", base[4300], chosen[4400], key[4500], *out = NULL;
    bool known = getcwd(start, sizeof start - 1) != NULL;
    if (!find_root()) {
        fprintf(stderr, "temper: the demo's files (recipes/, models/, data/) were not found; run it in temper's folder\n");
        return 1;
    }
    bool moved = known && getcwd(here, sizeof here - 1) && strcmp(start, here) != 0;
    const char *folder = given ? given : story == &stories[1] ? "runs/demo-ru" : "runs/demo";
    snprintf(base, sizeof base, "%s%s%s", moved && folder[0] != '/' ? start : "", moved && folder[0] != '/' ? "/" : "", folder);
    if (given)
        snprintf(chosen, sizeof chosen, "%s", base);
    else
        choose_folder(base, chosen);
    snprintf(key, sizeof key, "out=%s", chosen);
    printf("A model of 260 thousand parameters that knows children's stories learns %s. Old skill watched: its own stories.\n", story->new_skill);
    printf("recipe: %s\n\n", story->recipe);
    fflush(stdout);
    char *overrides[] = {key};
    int code = cli_train(&(tm_recipe_source){story->recipe, overrides, 1}, &out);
    if (code == 0)
        show_result(out, story);
    free(out);
    return code;
}

const tm_command cmd_demo = {
    .name = "demo", .summary = "the main job on the shipped model and data, in a minute", .run = run,
    .help = "usage: temper demo [--lang en|ru] [--out DIR]\n\n"
            "Fine-tunes the shipped 260K-parameter model on Shakespeare (en) or Pushkin (ru) with LoRA while\n"
            "watching its old skill, and shows both before and after.\n\n"
            "example: temper demo --lang ru\n",
};
