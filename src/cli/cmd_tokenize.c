/* temper tokenize. */
#include "cli/cli.h"

#include <errno.h>
#include <string.h>

static int run(int argc, char **argv)
{
    tm_tokenize_request request = {.out = stdout};
    for (int i = 1; i < argc; i++) {
        if (cli_option(argc, argv, &i, "--tokenizer", &request.tokenizer) ||
            cli_option(argc, argv, &i, "--jsonl", &request.name))
            continue;
        if (cli_is(argv[i], "--add-special"))
            request.add_special = true;
        else if (cli_is(argv[i], "--decode"))
            request.decode = true;
        else if (cli_is(argv[i], "--skip-special"))
            request.skip_special = true;
        else
            return cli_usage(&cmd_tokenize, "unknown argument %s", argv[i]);
    }
    if (!request.tokenizer || !request.name)
        return cli_usage(&cmd_tokenize, "--tokenizer DIR_OR_FILE and --jsonl FILE are needed");
    if (request.decode ? request.add_special : request.skip_special)
        return cli_usage(&cmd_tokenize, request.decode ? "--add-special does not go with --decode"
                                                       : "--skip-special goes with --decode");
    tm_error err = {0};
    bool standard = strcmp(request.name, "-") == 0;
    request.in = standard ? stdin : fopen(request.name, "re");
    if (!request.in) {
        tm_fail_errno(&err, errno == ENOENT ? TM_INPUT : TM_IO, "%s", request.name);
        return cli_failed(&err);
    }
    tm_status st = tm_tokenize(&request, &err);
    if (!standard)
        fclose(request.in);
    return st == TM_OK ? 0 : cli_failed(&err);
}

const tm_command cmd_tokenize = {
    .name = "tokenize",
    .summary = "texts to token ids and back",
    .run = run,
    .help =
        "usage: temper tokenize --tokenizer DIR_OR_FILE --jsonl FILE [--add-special] [--decode [--skip-special]]\n\n"
        "A JSON string a line in, a JSON array of token ids a line out.\n\n"
        "  --tokenizer X    model folder, or a tokenizer.json\n"
        "  --jsonl FILE     lines to read; - reads standard input\n"
        "  --add-special    with what the tokenizer puts around a text (BOS, EOS)\n"
        "  --decode         the other way: arrays of ids in, strings out\n"
        "  --skip-special   with --decode: leaves special tokens out\n\n"
        "example: echo '\"Once upon a time\"' | temper tokenize --tokenizer models/stories260K --jsonl -\n",
};
