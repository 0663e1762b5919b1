/* temper sweep. */
#include "cli/cli.h"

#include <string.h>

static int run(int argc, char **argv)
{
    tm_sweep_request request = {0};
    cli_recipe_args args;
    const char *jobs = NULL;
    int64_t number = 0;
    for (int i = 1; i < argc; i++) {
        int first = i;
        bool used = cli_option(argc, argv, &i, "--out", &request.out) || cli_option(argc, argv, &i, "--metric", &request.metric) ||
                    cli_option(argc, argv, &i, "--jobs", &jobs);
        if (!used && cli_is(argv[i], "--json"))
            used = request.json = true;
        for (int k = first; used && k <= i; k++)
            argv[k] = NULL;
    }
    if (jobs && !cli_integer(&cmd_sweep, "--jobs", jobs, 1, TM_MOST_JOBS, &number))
        return 2;
    request.jobs = (int)number;
    int code = cli_recipe_arguments(&cmd_sweep, argc, argv, &args);
    if (code)
        return code;
    request.source = args.source;
    char *text = NULL;
    tm_error err = {0};
    tm_progress line;
    tm_callbacks callbacks = cli_watch_begin(&line);
    tm_status st = tm_sweep_recipe(&request, &callbacks, &text, &err);
    tm_progress_end(&line, NULL);
    cli_recipe_deinit(&args);
    return cli_end(st, text, &err);
}

const tm_command cmd_sweep = {
    .name = "sweep", .summary = "a recipe with several values of some keys, the best by its evaluation", .run = run,
    .help = "usage: temper sweep RECIPE.yaml key=a,b,c [key=x,y ...] [--metric NAME] [--out DIR] [--jobs N] [--json]\n\n"
            "Trains every combination of the values, each as an ordinary run in a folder named by its settings, and\n"
            "prints them from the best to the worst by the last value of the recipe's first evaluation, which should be\n"
            "a validation set (eval, or val_split of data). OUT/sweep.json holds the same. Killed, it goes on with the\n"
            "same command; with more values it keeps the runs that are there.\n\n"
            "  --metric N   the evaluation that decides, by its name\n"
            "  --out DIR    default: runs/sweep\n"
            "  --jobs N     so many runs at a time; default: on the CPU as many as there are processors and as fit in memory\n"
            "  --json       for scripts\n"
            "  key=value    with one value: a recipe key of all runs; lists as [a,b], several as [a],[a,b]\n\n"
            "example: temper sweep recipes/lora.yaml train.lr=5e-4,2e-3 lora.r=4,16 train.steps=20\n",
};
