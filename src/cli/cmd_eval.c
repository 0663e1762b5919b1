/* temper eval. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

static int run(int argc, char **argv)
{
    const char *model = NULL, *adapter = NULL, *data = NULL, *logits = NULL;
    bool json = false;
    tm_names overrides = {0};
    tm_error err = {0};
    for (int i = 1; i < argc; i++) {
        if (cli_option(argc, argv, &i, "--model", &model) || cli_option(argc, argv, &i, "--adapter", &adapter) || cli_option(argc, argv, &i, "--data", &data))
            continue;
        if (cli_option(argc, argv, &i, "--logits", &logits))
            continue;
        if (cli_is(argv[i], "--json"))
            json = true;
        else if (argv[i][0] != '-' && strchr(argv[i], '=')) {
            if (tm_names_add(&overrides, argv[i], &err) != TM_OK)
                return cli_failed(&err);
        } else
            return cli_usage(&cmd_eval, "unknown argument %s", argv[i]);
    }
    if (!model || !data)
        return cli_usage(&cmd_eval, "--model DIR and --data FILE are needed");
    char *text = NULL;
    if (logits) {
        tm_status written = tm_eval_logits(model, adapter, data, overrides.item, (size_t)overrides.count, 8, logits, &err);
        tm_names_deinit(&overrides);
        return written == TM_OK ? 0 : cli_failed(&err);
    }
    tm_status st = tm_eval(model, adapter, data, overrides.item, (size_t)overrides.count, json, &text, &err);
    if (text)
        fputs(text, stdout);
    free(text);
    tm_names_deinit(&overrides);
    return st == TM_OK ? 0 : cli_failed(&err);
}

const tm_command cmd_eval = {
    .name = "eval", .summary = "loss, perplexity, bits a byte and accuracy on a data set", .run = run,
    .help = "usage: temper eval --model DIR [--adapter DIR] --data FILE [--json] [key=value ...]\n\n"
            "  --json       for scripts\n"
            "  --logits F   writes the logits of the first 8 examples to a safetensors file instead\n"
            "  key=value    recipe keys, such as train.seq=256, threads=2, eval.0.format=text\n\n"
            "example: temper eval --model models/stories260K --data data/demo/tinyshakespeare_dev.txt train.seq=256\n",
};
