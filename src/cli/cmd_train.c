/* temper train. */
#include "cli/cli.h"

#include "base/buf.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t stop_asked;

static void on_signal(int number)
{
    (void)number;
    stop_asked = 1;
}

static bool interrupted(void *context)
{
    (void)context;
    return stop_asked;
}

static void note(void *context, const char *text)
{
    (void)context;
    fprintf(stderr, "note: %s\n", text);
}

static int run(int argc, char **argv)
{
    tm_error err = {0};
    tm_recipe_source source = {0};
    char **overrides = NULL;
    size_t count = 0, capacity = 0;
    for (int i = 1; i < argc; i++) {
        if (strchr(argv[i], '=') == NULL && !source.path && argv[i][0] != '-') {
            source.path = argv[i];
            continue;
        }
        if (TM_GROW(&overrides, &capacity, count + 1, &err) != TM_OK)
            return cli_failed(&err);
        overrides[count++] = argv[i];
    }
    source.overrides = overrides;
    source.override_count = count;
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    char *out = NULL;
    tm_status st = tm_train(&source, &(tm_callbacks){.note = note, .interrupted = interrupted}, &out, &err);
    if (st == TM_OK)
        printf("%s\n", out);
    free(out);
    free(overrides);
    return st == TM_OK ? 0 : cli_failed(&err);
}

const tm_command cmd_train = {
    .name = "train", .summary = "fine-tunes or pretrains by a recipe", .run = run,
    .help = "usage: temper train RECIPE.yaml [key=value ...]\n",
};
