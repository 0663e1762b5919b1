/* temper inspect. */
#include "cli/cli.h"

#include <string.h>
#include <unistd.h>

static int inspect(tm_inspect_request *request, const tm_names *overrides)
{
    tm_error err = {0};
    char *text;
    if (!request->path)
        return cli_usage(&cmd_inspect, "a path is missing");
    request->overrides = overrides->item;
    request->override_count = (size_t)overrides->count;
    tm_status st = tm_inspect(request, &text, &err);
    return cli_end(st, text, &err);
}

static int run(int argc, char **argv)
{
    tm_inspect_request request = {.color = tm_term_of(STDOUT_FILENO).color};
    tm_names overrides = {0};
    const char *batch = NULL;
    tm_error err = {0};
    int code = 0;
    for (int i = 1; i < argc && code == 0; i++) {
        if (cli_option(argc, argv, &i, "--model", &request.model))
            continue;
        if (cli_option(argc, argv, &i, "--batch", &batch))
            code = cli_integer(&cmd_inspect, "--batch", batch, 1, 1000000, &request.batch) ? 0 : 2;
        else if (argv[i][0] == '-')
            code = cli_usage(&cmd_inspect, "unknown option %s", argv[i]);
        else if (!request.path)
            request.path = argv[i];
        else if (!strchr(argv[i], '='))
            code = cli_usage(&cmd_inspect, "one path at a time; found also %s", argv[i]);
        else if (tm_names_add(&overrides, argv[i], &err) != TM_OK)
            code = cli_failed(&err);
    }
    if (code == 0)
        code = inspect(&request, &overrides);
    tm_names_deinit(&overrides);
    return code;
}

const tm_command cmd_inspect = {
    .name = "inspect",
    .summary = "what is in a model, adapter, data set or run",
    .run = run,
    .help =
        "usage: temper inspect PATH [--model DIR] [--batch N] [key=value ...]\n\n"
        "PATH: a model folder (sizes, types, tuning targets), an adapter (norms of its changes), a run folder, a data file\n"
        "or a recipe (rows, tokens, targets, lengths).\n\n"
        "  --model DIR   whose tokenizer reads a data file\n"
        "  --batch N     the first N examples token by token: trained on or masked; brackets when piped\n"
        "  key=value     recipe keys, such as train.seq=512, data.0.format=completion\n\n"
        "example: temper inspect data/demo/pushkin-dev.txt --model models/stories260K --batch 1 train.seq=64\n",
};
