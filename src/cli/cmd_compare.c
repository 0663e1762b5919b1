/* temper compare. */
#include "cli/cli.h"

#include <string.h>

static int compare(tm_compare_request *request, const tm_names *paths, const tm_names *overrides)
{
    tm_error err = {0};
    char *text;
    if (paths->count < 2)
        return cli_usage(&cmd_compare, "two or more folders are needed");
    request->paths = paths->item;
    request->path_count = (size_t)paths->count;
    request->overrides = overrides->item;
    request->override_count = (size_t)overrides->count;
    tm_status st = tm_compare(request, &text, &err);
    return cli_end(st, text, &err);
}

static int run(int argc, char **argv)
{
    tm_compare_request request = {0};
    tm_names paths = {0}, overrides = {0};
    tm_error err = {0};
    int code = 0;
    for (int i = 1; i < argc && code == 0; i++) {
        if (cli_option(argc, argv, &i, "--model", &request.model) ||
            cli_option(argc, argv, &i, "--data", &request.data))
            continue;
        if (cli_is(argv[i], "--json"))
            request.json = true;
        else if (argv[i][0] == '-')
            code = cli_usage(&cmd_compare, "unknown option %s", argv[i]);
        else if (tm_names_add(strchr(argv[i], '=') ? &overrides : &paths, argv[i], &err) != TM_OK)
            code = cli_failed(&err);
    }
    if (code == 0)
        code = compare(&request, &paths, &overrides);
    tm_names_deinit(&paths);
    tm_names_deinit(&overrides);
    return code;
}

const tm_command cmd_compare = {
    .name = "compare",
    .summary = "how far adapters, models or runs are apart",
    .run = run,
    .help =
        "usage: temper compare A B [C ...] [--data FILE] [--model DIR] [--json] [key=value ...]\n\n"
        "Folders of adapters, models or runs, made by temper or by PyTorch; the others are held against A: changes of\n"
        "weights by layer (norms, relative distance, cosine), results of runs.\n\n"
        "  --data FILE   also what they predict there: agreement on the top token, mean KL, answers that flip\n"
        "  --model DIR   base model of the adapters; otherwise the one that their config names\n"
        "  --json        everything, by layer and tensor\n"
        "  key=value     recipe keys for the data, such as train.seq=256, threads=2\n\n"
        "example: temper compare runs/demo runs/mine --data data/demo/shakespeare-dev.txt train.seq=256\n",
};
