/* temper init. */
#include "cli/cli.h"

#include "base/file.h"

#include <stdlib.h>
#include <string.h>

static tm_status write_new(const char *path, const char *text, tm_error *err)
{
    if (tm_path_exists(path))
        return tm_fail(err, TM_USAGE, "%s exists already: --out names another file, - prints", path);
    return tm_file_write(path, text, strlen(text), err);
}

static int run(int argc, char **argv)
{
    const char *model = NULL, *data = NULL, *out = "temper.yaml";
    tm_error err = {0};
    for (int i = 1; i < argc; i++)
        if (!cli_option(argc, argv, &i, "--model", &model) && !cli_option(argc, argv, &i, "--data", &data) &&
            !cli_option(argc, argv, &i, "--out", &out))
            return cli_usage(&cmd_init, "unknown argument %s", argv[i]);
    if (!out)
        return cli_usage(&cmd_init, "--out: a file name is missing");
    char *yaml;
    if (tm_init(model, data, &yaml, &err) != TM_OK)
        return cli_failed(&err);
    tm_status st = TM_OK;
    if (strcmp(out, "-") == 0)
        fputs(yaml, stdout);
    else if ((st = write_new(out, yaml, &err)) == TM_OK)
        printf("%s\n", out);
    free(yaml);
    return st == TM_OK ? 0 : cli_failed(&err);
}

const tm_command cmd_init = {
    .name = "init",
    .summary = "writes a commented recipe that fits this machine",
    .run = run,
    .help =
        "usage: temper init [--model DIR] [--data FILE] [--out FILE]\n\n"
        "Writes temper.yaml: every key of a recipe with its value and meaning. With a model, example length and\n"
        "recomputation are chosen so that the run fits into the memory of this machine; with data, the batch so that\n"
        "there are enough steps.\n\n"
        "  --out FILE   another name than temper.yaml; - prints. An existing file is never overwritten\n\n"
        "example: temper init --model models/stories260K --data data/demo/pushkin-train.txt\n",
};
