/* temper advise. */
#include "cli/cli.h"

static int run(int argc, char **argv)
{
    tm_error err = {0};
    cli_recipe_args args;
    tm_advise_request request = {0};
    tm_names bases = {0};
    const char *tasks = NULL, *base = NULL;
    for (int i = 1; i < argc; i++) {
        int first = i;
        base = NULL;
        if (cli_is(argv[i], "--json"))
            request.json = true;
        else if (cli_option(argc, argv, &i, "--base", &base)) {
            if (!base || tm_names_add(&bases, base, &err) != TM_OK)
                return cli_usage(&cmd_advise, "--base: a folder is missing");
        } else if (!cli_option(argc, argv, &i, "--tasks", &tasks))
            continue;
        else if (!tasks)
            return cli_usage(&cmd_advise, "--tasks: a value is missing");
        for (; first <= i; first++)
            argv[first] = NULL;
    }
    int code = tasks && !cli_integer(&cmd_advise, "--tasks", tasks, 1, 1000000, &request.tasks) ? 2 : 0;
    if (!code && !(code = cli_recipe_arguments(&cmd_advise, argc, argv, &args))) {
        char *text = NULL;
        request.source = args.source;
        request.bases = bases.item;
        request.base_count = (size_t)bases.count;
        tm_status st = tm_advise_recipe(&request, &text, &err);
        cli_recipe_deinit(&args);
        code = cli_end(st, text, &err);
    }
    tm_names_deinit(&bases);
    return code;
}

const tm_command cmd_advise = {
    .name = "advise", .summary = "base, method and settings for your data, with reasons", .run = run,
    .help = "usage: temper advise RECIPE.yaml [key=value ...] [--base DIR ...] [--tasks N] [--json]\n"
            "       temper advise --model DIR --data FILE [...]\n\n"
            "Looks at the data (how much there is, and how far it is from what the base knows: its mean loss on\n"
            "a sample, beside that on the probes of old skills), at the device and its memory, at whether old\n"
            "data are there (keep.replay.path or keep.ewc.path). Says which method and settings to begin with, why, and what that\n"
            "rests on; ends with a recipe of them, after a line ---. Trains nothing.\n\n"
            "  --base DIR    one of several model folders to choose from\n"
            "  --tasks N     so many tasks come one after another\n"
            "  --json        for scripts\n\n"
            "example: temper advise --model models/stories260K --data data/demo/shakespeare-dev.txt\n",
};
