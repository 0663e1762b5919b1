/* temper merge. */
#include "cli/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* "DIR" or "DIR:SCALE"; a folder of that whole name is taken as it is. text is cut at the colon. */
static bool read_source(char *text, tm_merge_source *out)
{
    char *colon = strrchr(text, ':'), *end = NULL;
    double scale = colon ? strtod(colon + 1, &end) : 1;
    *out = (tm_merge_source){text, 1};
    if (!colon || strchr(colon, '/') || end == colon + 1)
        return true;
    if (*end || !isfinite(scale))
        return false;
    out->scale = scale;
    *colon = 0;
    return true;
}

static int run(int argc, char **argv)
{
    enum { MOST = 64 };
    tm_merge_source sources[MOST];
    tm_merge_request request = {.sources = sources};
    const char *how = "sum", *threads = NULL, *adapter;
    tm_error err = {0};
    for (int i = 1; i < argc; i++) {
        adapter = NULL;
        if (cli_option(argc, argv, &i, "--model", &request.model) ||
            cli_option(argc, argv, &i, "--out", &request.out) || cli_option(argc, argv, &i, "--how", &how) ||
            cli_option(argc, argv, &i, "--threads", &threads))
            continue;
        if (!cli_option(argc, argv, &i, "--adapter", &adapter))
            return cli_usage(&cmd_merge, "unknown argument %s", argv[i]);
        if (!adapter || request.source_count == MOST)
            return cli_usage(&cmd_merge, adapter ? "more than 64 adapters" : "--adapter: a folder is missing");
        if (!read_source((char *)(uintptr_t)adapter, &sources[request.source_count++]))
            return cli_usage(&cmd_merge, "--adapter %s: expected DIR or DIR:SCALE", adapter);
    }
    if (!request.model || !request.out || !request.source_count)
        return cli_usage(&cmd_merge, "--model DIR, --adapter DIR[:SCALE] and --out DIR are needed");
    if (!how || strcmp(how, "sum") != 0)
        return cli_usage(&cmd_merge,
                         how && (strcmp(how, "ties") == 0 || strcmp(how, "dare") == 0)
                             ? "--how %s is not there yet; sum is"
                             : "--how: found '%s', expected sum",
                         how ? how : "nothing");
    int64_t number = 0;
    if (threads && !cli_integer(&cmd_merge, "--threads", threads, 0, 4096, &number))
        return 2;
    request.threads = (int)number;
    char *text;
    if (tm_merge(&request, &text, &err) != TM_OK)
        return cli_failed(&err);
    fprintf(stderr, "%s", text);
    free(text);
    printf("%s\n", request.out);
    return 0;
}

const tm_command cmd_merge = {
    .name = "merge",
    .summary = "puts adapters into the weights of a model",
    .run = run,
    .help =
        "usage: temper merge --model DIR --adapter DIR[:SCALE] [--adapter ...] [--how sum] --out DIR\n\n"
        "Writes a model folder with W + sum of SCALE * (W_adapted - W) for every weight W an adapter changes (LoRA, rsLoRA,\n"
        "DoRA, biases, modules_to_save), rounded once to the type the base stores, and says how far its logits are from\n"
        "those of the model with the adapter on. SCALE 1 is the adapter as trained, 0 the base itself, -1 takes it away.\n\n"
        "  --how sum      how several adapters join\n"
        "  --out DIR      a new or empty folder; its path is printed\n"
        "  --threads N    0: all\n\n"
        "example: temper merge --model models/stories260K --adapter runs/demo --out runs/demo-merged\n",
};
