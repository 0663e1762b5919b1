/* temper fisher. */
#include "cli/cli.h"

static int run(int argc, char **argv)
{
    tm_error err = {0};
    cli_recipe_args args;
    tm_fisher_request request = {0};
    for (int i = 1; i < argc; i++) {
        int first = i;
        bool add = cli_option(argc, argv, &i, "--add", &request.add);
        if (!add && !cli_option(argc, argv, &i, "--out", &request.out))
            continue;
        if (!(add ? request.add : request.out))
            return cli_usage(&cmd_fisher, "%s: a value is missing", argv[first]);
        for (; first <= i; first++)
            argv[first] = NULL;
    }
    if (!request.out)
        return cli_usage(&cmd_fisher, "--out FILE is needed");
    int code = cli_recipe_arguments(&cmd_fisher, argc, argv, &args);
    if (code)
        return code;
    tm_progress line;
    char *text = NULL;
    request.source = args.source;
    tm_callbacks callbacks = cli_watch_begin(&line);
    tm_status st = tm_fisher(&request, &callbacks, &text, &err);
    tm_progress_end(&line, NULL);
    cli_recipe_deinit(&args);
    return cli_end(st, text, &err);
}

const tm_command cmd_fisher = {
    .name = "fisher", .summary = "measures which weights old skills depend on, for keep.ewc", .run = run,
    .help = "usage: temper fisher RECIPE.yaml --out FILE [--add OLD] [key=value ...]\n"
            "       temper fisher --model DIR --data FILE --out FILE [--add OLD] [key=value ...]\n\n"
            "Writes a file of importances: a number for every weight that the recipe would change, with mean 1,\n"
            "measured on keep.ewc.path, or on data where that is not given. keep.ewc.importances takes it in any\n"
            "run on the same model; without it a run with keep.ewc measures its own.\n\n"
            "  --out FILE    the file to write (docs/formats/importances.md)\n"
            "  --add OLD     importances of older skills: the new ones are added (keep.ewc.gamma)\n"
            "  key=value     keep.ewc.samples=512, keep.ewc.fisher=sampled|empirical,\n"
            "                keep.ewc.importance=fisher|path, keep.ewc.space=delta|factors, ...\n\n"
            "example: temper fisher --model models/stories260K --data data/demo/shakespeare-dev.txt method=full \\\n"
            "             train.seq=128 keep.ewc.samples=16 --out /tmp/shakespeare.importances\n",
};
