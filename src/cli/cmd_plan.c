/* temper plan. */
#include "cli/cli.h"

static int run(int argc, char **argv)
{
    tm_error err = {0};
    cli_recipe_args args;
    tm_plan_request request = {0};
    const char *tokens = NULL;
    for (int i = 1; i < argc; i++) {
        int first = i;
        if (cli_is(argv[i], "--json"))
            request.json = true;
        else if (!cli_option(argc, argv, &i, "--gpu", &request.gpu) && !cli_option(argc, argv, &i, "--tokens", &tokens))
            continue;
        else if (!(argv[first][2] == 'g' ? request.gpu : tokens))
            return cli_usage(&cmd_plan, "%s: a value is missing", argv[first]);
        for (; first <= i; first++)
            argv[first] = NULL;
    }
    if (tokens && !cli_integer(&cmd_plan, "--tokens", tokens, 1, 1000000000000000, &request.tokens))
        return 2;
    int code = cli_recipe_arguments(&cmd_plan, argc, argv, &args);
    if (code)
        return code;
    char *text = NULL;
    request.source = args.source;
    tm_status st = tm_plan(&request, &text, &err);
    cli_recipe_deinit(&args);
    return cli_end(st, text, &err);
}

const tm_command cmd_plan = {
    .name = "plan", .summary = "memory and time of a run before it starts", .run = run,
    .help = "usage: temper plan RECIPE.yaml [key=value ...] [--gpu NAME] [--tokens N] [--json]\n"
            "       temper plan --model DIR [key=value ...] [...]\n\n"
            "Builds the run without allocating it: its memory by kind and by layer, to the byte, and what the\n"
            "driver takes beside it; and its time by rates that temper bench --calibrate measured. Then a row\n"
            "for every GPU that temper knows. A folder with config.json alone is enough as the model, and no\n"
            "data are needed: train.seq and train.batch then say what a step has. Exit code 4 when it does not\n"
            "fit, with what would, cheapest first.\n\n"
            "  --gpu NAME    for a GPU that is not here: 4090, \"RTX PRO 6000\", a100-40gb, H200, ...\n"
            "  --tokens N    hours for so many tokens instead of those of the run\n"
            "  --json        for scripts: peak_bytes, parts, reserve_bytes, tokens_per_s, hours, fits, instead,\n"
            "                run_peak_bytes and before: with what the run does before its training\n\n"
            "example: temper plan --model models/stories260K method=full train.seq=256 --gpu 4090 --tokens 1000000\n",
};
