/* temper train. */
#include "cli/cli.h"

#include <stdlib.h>

static int run(int argc, char **argv)
{
    cli_recipe_args args;
    int code = cli_recipe_arguments(&cmd_train, argc, argv, &args);
    if (code)
        return code;
    char *out = NULL;
    code = cli_train(&args.source, &out);
    if (out && (code == 0 || code == 5))
        printf("%s\n", out);
    free(out);
    cli_recipe_deinit(&args);
    return code;
}

const tm_command cmd_train = {
    .name = "train", .summary = "fine-tunes or pretrains by a recipe", .run = run,
    .help = "usage: temper train RECIPE.yaml [key=value ...]\n"
            "       temper train --model DIR --data FILE [--out DIR] [key=value ...]\n\n"
            "Prints the run folder: adapter or model, metrics, report.html. A run that was killed goes on\n"
            "with the same command and ends with the same bytes. Keys are listed in docs/recipe.md.\n\n"
            "Exit codes: 0 done, 1 failed, 2 wrong recipe or folder in use, 3 damaged input, 4 does not fit,\n"
            "5 ended by the retention gate.\n\n"
            "example: temper train --model models/stories260K --data data/demo/shakespeare-train.txt \\\n"
            "             --out runs/bard method=lora train.steps=100 train.seq=256\n",
};
