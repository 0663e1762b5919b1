/* temper plan. */
#include "cli/cli.h"

#include <stdlib.h>

static int run(int argc, char **argv)
{
    tm_error err = {0};
    cli_recipe_args args;
    bool json = false;
    for (int i = 1; i < argc; i++)
        if (cli_is(argv[i], "--json")) {
            json = true;
            argv[i] = NULL;
        }
    int code = cli_recipe_arguments(&cmd_plan, argc, argv, &args);
    if (code)
        return code;
    char *text = NULL;
    tm_status st = tm_plan(&args.source, json, &text, &err);
    if (text)
        fputs(text, stdout);
    free(text);
    cli_recipe_deinit(&args);
    return st == TM_OK ? 0 : cli_failed(&err);
}

const tm_command cmd_plan = {
    .name = "plan", .summary = "memory of a run before it starts", .run = run,
    .help = "usage: temper plan RECIPE.yaml [key=value ...] [--json]\n"
            "       temper plan --model DIR [key=value ...] [--json]\n\n"
            "Builds the run without allocating it and prints its memory by kind, to the byte. A folder\n"
            "with config.json alone is enough as the model. Exit code 4 when it does not fit, with what would.\n\n"
            "  --json    for scripts: peak_bytes, parts, fits, instead\n\n"
            "example: temper plan --model models/stories260K method=full train.seq=256\n",
};
