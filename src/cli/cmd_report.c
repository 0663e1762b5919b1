/* temper report. */
#include "cli/cli.h"

#include "base/file.h"
#include "report/report.h"
#include "report/sequence.h"

static int run(int argc, char **argv)
{
    tm_error err = {0};
    const char *dir = NULL;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '-' || dir)
            return cli_usage(&cmd_report,
                             argv[i][0] == '-' ? "unknown option %s" : "one run folder at a time; found also %s",
                             argv[i]);
        dir = argv[i];
    }
    if (!dir)
        return cli_usage(&cmd_report, "a run folder is missing");
    bool sequence = tm_dir_has(dir, "results.json") && !tm_dir_has(dir, "run.json");
    if ((sequence ? tm_sequence_report_write : tm_report_write)(dir, &err) != TM_OK)
        return cli_failed(&err);
    printf("%s/report.html\n", dir);
    return 0;
}

const tm_command cmd_report = {
    .name = "report",
    .summary = "writes report.html of a run or a sequence",
    .run = run,
    .help =
        "usage: temper report RUN\n\n"
        "Writes RUN/report.html out of the files of the run folder, finished or not, and prints its path; likewise of the\n"
        "folder of a finished sequence. The page is one file and asks nothing of the network.\n\n"
        "example: temper report runs/demo\n",
};
