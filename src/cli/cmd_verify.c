/* temper verify. */
#include "cli/cli.h"

#include <stdlib.h>

static int run(int argc, char **argv)
{
    tm_error err = {0};
    const char *folder = NULL, *sample = NULL;
    for (int i = 1; i < argc; i++) {
        int64_t ignored; /* of runs all are run again */
        if (cli_option(argc, argv, &i, "--sample", &sample)) {
            if (!cli_integer(&cmd_verify, "--sample", sample, 1, INT64_MAX, &ignored))
                return 2;
        } else if (argv[i][0] == '-' || folder)
            return cli_usage(&cmd_verify,
                             argv[i][0] == '-' ? "unknown option %s" : "one run folder at a time; found also %s",
                             argv[i]);
        else
            folder = argv[i];
    }
    if (!folder)
        return cli_usage(&cmd_verify, "a run folder is missing");
    tm_progress line;
    tm_callbacks callbacks = cli_watch_begin(&line);
    callbacks.note = NULL; /* the run itself has said them */
    char *text;
    bool equal;
    tm_status st = tm_verify(folder, &callbacks, &equal, &text, &err);
    tm_progress_end(&line, NULL);
    if (st != TM_OK)
        return cli_failed(&err);
    fputs(text, stdout);
    free(text);
    return equal ? 0 : 1;
}

const tm_command cmd_verify = {
    .name = "verify",
    .summary = "runs a run again; equal, or what differs first",
    .run = run,
    .help =
        "usage: temper verify RUN [--sample N]\n\n"
        "Trains the recipe of RUN/run.json again, beside the run, and compares every step's hash of every trained tensor\n"
        "(trail.bin), metrics.jsonl and the result. Exit 0: equal to the bit; 1: different, and the first step and tensor\n"
        "that differ. Start it in the folder that the run was started in.\n\n"
        "  --sample N   of a study: N of its runs (a single run is always run again whole)\n\n"
        "example: temper verify runs/demo\n",
};
