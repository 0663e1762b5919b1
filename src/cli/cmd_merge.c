/* temper merge. */
#include "cli/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* "DIR" or "DIR:SCALE"; a folder of that whole name is taken as it is. text is cut at the colon. */
static bool read_source(char *text, bool model, tm_merge_source *out)
{
    char *colon = strrchr(text, ':'), *end = NULL;
    double scale = colon ? strtod(colon + 1, &end) : 1;
    *out = (tm_merge_source){.path = text, .scale = 1, .model = model};
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
    tm_merge_source sources[TM_MERGE_MOST];
    tm_merge_request request = {.sources = sources, .density = 0.5};
    static const char *const hows[] = {"sum", "ties", "dare", "dare_ties"};
    const char *how = "sum", *threads = NULL, *density = NULL, *seed = NULL, *sign = NULL, *adapter, *tuned;
    tm_error err = {0};
    for (int i = 1; i < argc; i++) {
        adapter = tuned = NULL;
        if (cli_option(argc, argv, &i, "--model", &request.model) ||
            cli_option(argc, argv, &i, "--out", &request.out) || cli_option(argc, argv, &i, "--how", &how) ||
            cli_option(argc, argv, &i, "--threads", &threads) || cli_option(argc, argv, &i, "--density", &density) ||
            cli_option(argc, argv, &i, "--seed", &seed) || cli_option(argc, argv, &i, "--sign", &sign))
            continue;
        bool model = cli_option(argc, argv, &i, "--tuned", &tuned);
        const char *name = model ? "--tuned" : "--adapter";
        if (!model && !cli_option(argc, argv, &i, "--adapter", &adapter))
            return cli_usage(&cmd_merge, "unknown argument %s", argv[i]);
        char *source = (char *)(uintptr_t)(model ? tuned : adapter);
        if (!source || request.source_count == TM_MERGE_MOST)
            return source ? cli_usage(&cmd_merge, "more than 64 sources") : cli_usage(&cmd_merge, "%s: a folder is missing", name);
        if (!read_source(source, model, &sources[request.source_count++]))
            return cli_usage(&cmd_merge, "%s %s: expected DIR or DIR:SCALE", name, source);
    }
    if (!request.model || !request.out || !request.source_count)
        return cli_usage(&cmd_merge, "--model DIR, --adapter DIR[:SCALE] or --tuned DIR[:SCALE], and --out DIR are needed");
    bool wise = cli_is(how, "wise");
    if (wise && (request.source_count > 1 || !(sources[0].scale >= 0 && sources[0].scale <= 1)))
        return cli_usage(&cmd_merge, "--how wise is between the base and one other: one --tuned or --adapter, with a SCALE from 0 to 1");
    how = wise ? "sum" : how;
    while (request.how <= TM_MERGE_DARE_TIES && !cli_is(how, hows[request.how]))
        request.how++;
    if (request.how > TM_MERGE_DARE_TIES)
        return cli_usage(&cmd_merge, "--how: found '%s', expected sum, wise, ties, dare or dare_ties", how ? how : "nothing");
    if (request.how == TM_MERGE_SUM && (density || seed || sign))
        return cli_usage(&cmd_merge, "--density, --seed and --sign are for --how ties, dare and dare_ties");
    if (sign && !cli_is(sign, "total") && !cli_is(sign, "frequency"))
        return cli_usage(&cmd_merge, "--sign: found '%s', expected total or frequency", sign);
    request.sign_by_count = cli_is(sign, "frequency");
    int64_t number = 0, start = 0;
    if ((threads && !cli_integer(&cmd_merge, "--threads", threads, 0, 4096, &number)) ||
        (seed && !cli_integer(&cmd_merge, "--seed", seed, 0, INT64_MAX, &start)) ||
        (density && !cli_number(&cmd_merge, "--density", density, 0, 1, &request.density)))
        return 2;
    request.threads = (int)number;
    request.seed = (uint64_t)start;
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
    .summary = "puts adapters, or models tuned from it, into the weights of a model",
    .run = run,
    .help =
        "usage: temper merge --model DIR --adapter DIR[:SCALE] [--adapter ...] [--how sum|wise|ties|dare|dare_ties] --out DIR\n"
        "       temper merge --model DIR --tuned DIR[:SCALE] [--tuned ...] [--how ...] --out DIR\n\n"
        "Writes a model folder with W + sum of SCALE * (W_adapted - W) for every weight W an adapter changes (LoRA, rsLoRA,\n"
        "DoRA, biases, modules_to_save), rounded once to the type the base stores, and says how far its logits are from\n"
        "those of the model with the adapter on. SCALE 1 is the adapter as trained, 0 the base itself, -1 takes it away.\n"
        "--tuned is a whole model that was trained from this one (method: full): W_adapted is its weight.\n\n"
        "  --how sum        several adapters are added; for their mean give each a SCALE of one over their number\n"
        "  --how wise       WiSE-FT (2109.01903): (1 - SCALE) W + SCALE W_adapted, of one source; sum with a SCALE from 0 to 1\n"
        "  --how ties       of every dW = W_adapted - W the largest stay, signs are elected, and those that agree are\n"
        "                   averaged, weighted by SCALE (2306.01708; PEFT's ties_svd without the loss of its SVD)\n"
        "  --how dare       of every dW some elements stay at random, rescaled; then the sum (2311.03099)\n"
        "  --how dare_ties  the first step of dare, the others of ties\n"
        "  --density X      the share that stays; 0.5\n"
        "  --sign total     ties: the sign of the sum; or frequency: the sign that more adapters have\n"
        "  --seed N         dare: what stays; 0\n"
        "  --out DIR        a new or empty folder; its path is printed\n"
        "  --threads N      0: all\n\n"
        "example: temper merge --model models/stories260K --adapter runs/demo --out runs/demo-merged\n"
        "         temper merge --model models/stories260K --tuned runs/full:0.5 --how wise --out runs/between\n",
};
