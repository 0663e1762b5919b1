/* temper sequence. */
#include "cli/cli.h"

#include <string.h>

static int run(int argc, char **argv)
{
    tm_sequence_request request = {0};
    tm_names overrides = {0};
    tm_error err = {0};
    const char *jobs = NULL;
    int64_t number = 0;
    for (int i = 1; i < argc; i++) {
        if (cli_option(argc, argv, &i, "--out", &request.out) || cli_option(argc, argv, &i, "--jobs", &jobs))
            continue;
        if (cli_is(argv[i], "--json"))
            request.json = true;
        else if (argv[i][0] == '-')
            return cli_usage(&cmd_sequence, "unknown option %s", argv[i]);
        else if (strchr(argv[i], '=')) {
            if (tm_names_add(&overrides, argv[i], &err) != TM_OK)
                return cli_failed(&err);
        } else if (request.path)
            return cli_usage(&cmd_sequence, "two files: %s and %s", request.path, argv[i]);
        else
            request.path = argv[i];
    }
    if (!request.path)
        return cli_usage(&cmd_sequence, "SEQUENCE.yaml is missing");
    if (jobs && !cli_integer(&cmd_sequence, "--jobs", jobs, 1, TM_MOST_JOBS, &number))
        return 2;
    request.jobs = (int)number;
    request.overrides = overrides.item;
    request.override_count = (size_t)overrides.count;
    char *text = NULL;
    tm_progress line;
    tm_callbacks callbacks = cli_watch_begin(&line);
    tm_status st = tm_sequence(&request, &callbacks, &text, &err);
    tm_progress_end(&line, NULL);
    tm_names_deinit(&overrides);
    return cli_end(st, text, &err);
}

const tm_command cmd_sequence = {
    .name = "sequence", .summary = "tasks one after another, with every method: what is learned, what is forgotten", .run = run,
    .help = "usage: temper sequence SEQUENCE.yaml [--out DIR] [--jobs N] [--json] [key=value ...]\n\n"
            "Trains the tasks of the file one after another, in every order, with every seed, by every arm (plain,\n"
            "replay, EWC, ...; joint: all at once; frozen: not at all), and scores all tasks after each. Writes\n"
            "OUT/results.json and OUT/report.html and prints a table: average score, backward and forward transfer,\n"
            "forgetting, with intervals over seeds and orders and against the arm `naive`. Killed, it goes on with\n"
            "the same command. docs/formats/sequence.md explains file and figures.\n\n"
            "  --out DIR    where the runs go; default: the file's out, else runs/sequence\n"
            "  --jobs N     so many chains at a time, each with its share of the processors; default: on the CPU as many as\n"
            "               there are processors and as fit in memory, on a GPU one. No result depends on it\n"
            "  --json       prints results.json in place of the table\n"
            "  key=value    recipe keys for every arm, such as train.steps=20\n\n"
            "example: temper sequence recipes/sequence.yaml\n",
};
