/* temper eval. */
#include "cli/cli.h"

#include <string.h>

static int run(int argc, char **argv)
{
    tm_eval_request request = {0};
    const char *logits = NULL;
    tm_names overrides = {0};
    tm_error err = {0};
    for (int i = 1; i < argc; i++) {
        if (cli_option(argc, argv, &i, "--model", &request.model) || cli_option(argc, argv, &i, "--adapter", &request.adapter) ||
            cli_option(argc, argv, &i, "--data", &request.data) || cli_option(argc, argv, &i, "--metric", &request.metric) ||
            cli_option(argc, argv, &i, "--items", &request.items))
            continue;
        if (cli_option(argc, argv, &i, "--logits", &logits))
            continue;
        if (cli_is(argv[i], "--json"))
            request.json = true;
        else if (argv[i][0] != '-' && strchr(argv[i], '=')) {
            if (tm_names_add(&overrides, argv[i], &err) != TM_OK)
                return cli_failed(&err);
        } else
            return cli_usage(&cmd_eval, "unknown argument %s", argv[i]);
    }
    if (!request.model || !request.data)
        return cli_usage(&cmd_eval, "--model DIR and --data FILE are needed");
    char *text = NULL;
    if (logits) {
        tm_status written = tm_eval_logits(request.model, request.adapter, request.data, overrides.item, (size_t)overrides.count, 8, logits, &err);
        tm_names_deinit(&overrides);
        return written == TM_OK ? 0 : cli_failed(&err);
    }
    request.overrides = overrides.item;
    request.override_count = (size_t)overrides.count;
    tm_status st = tm_eval(&request, &text, &err);
    tm_names_deinit(&overrides);
    return cli_end(st, text, &err);
}

const tm_command cmd_eval = {
    .name = "eval", .summary = "scores of a model on a data set: loss, choices, generated answers", .run = run,
    .help = "usage: temper eval --model DIR [--adapter DIR] --data FILE [--metric NAME] [--items FILE] [--json] [key=value ...]\n\n"
            "Loss, perplexity, bits a byte and token accuracy of the rows' own targets; with --metric also:\n\n"
            "  choice       rows {prompt, choices, answer}: the likeliest option, raw (acc) and by length (acc_norm)\n"
            "  exact_match, extracted, rouge_l, sari, round_trip: of text generated behind the prompt\n"
            "               (extracted: the answer behind ####, as GSM8K has it; docs/formats/eval.md explains each)\n\n"
            "  --items F    writes a JSON line an item: what was asked, said and scored\n"
            "  --json       for scripts\n"
            "  --logits F   writes the logits of the first 8 examples to a safetensors file instead\n"
            "  key=value    recipe keys, such as train.seq=256, threads=2, eval.0.format=text, eval.0.max_tokens=64,\n"
            "               eval.0.limit=100\n\n"
            "example: temper eval --model models/stories260K --data data/demo/shakespeare-dev.txt train.seq=256\n",
};
