/* temper bench. */
#include "cli/cli.h"

/* Arguments of `bench forgetting`; false: exit code 2. */
static bool forgetting_arguments(int argc, char **argv, tm_forgetting_request *q)
{
    struct number {
        const char *option;
        int most, *to;
        const char *text;
    } numbers[] = {{"--tasks", 5, &q->tasks, NULL}, {"--seeds", 10000, &q->seeds, NULL}, {"--orders", 100, &q->orders, NULL}, {"--steps", 1000000, &q->steps, NULL}, {"--jobs", TM_MOST_JOBS, &q->jobs, NULL}};
    struct flag {
        const char *option;
        bool *to;
    } flags[] = {{"--quick", &q->quick}, {"--fixed", &q->fixed}, {"--recipe", &q->recipe}, {"--json", &q->json}};
    for (int i = 2; i < argc; i++) {
        bool known = cli_option(argc, argv, &i, "--data", &q->data) || cli_option(argc, argv, &i, "--out", &q->out);
        for (int k = 0; !known && k < 5; k++)
            known = cli_option(argc, argv, &i, numbers[k].option, &numbers[k].text);
        for (int k = 0; !known && k < 4; k++)
            if ((known = cli_is(argv[i], flags[k].option)))
                *flags[k].to = true;
        if (!known) {
            cli_usage(&cmd_bench, "unknown argument %s", argv[i]);
            return false;
        }
    }
    for (int k = 0; k < 5; k++) {
        int64_t value = 0;
        if (numbers[k].text && !cli_integer(&cmd_bench, numbers[k].option, numbers[k].text, 1, numbers[k].most, &value))
            return false;
        *numbers[k].to = (int)value;
    }
    return true;
}

static int forgetting(int argc, char **argv)
{
    tm_forgetting_request request = {0};
    tm_error err = {0};
    char *text = NULL;
    if (!forgetting_arguments(argc, argv, &request))
        return 2;
    tm_progress line;
    tm_callbacks callbacks = cli_watch_begin(&line);
    tm_status st = tm_bench_forgetting(&request, &callbacks, &text, &err);
    tm_progress_end(&line, NULL);
    return cli_end(st, text, &err);
}

static int run(int argc, char **argv)
{
    if (argc > 1 && cli_is(argv[1], "forgetting"))
        return forgetting(argc, argv);
    tm_bench_request request = {0};
    const char *threads = NULL;
    int64_t number = 0;
    tm_error err = {0};
    for (int i = 1; i < argc; i++) {
        if (cli_option(argc, argv, &i, "--tokenizer", &request.tokenizer) ||
            cli_option(argc, argv, &i, "--text", &request.text) || cli_option(argc, argv, &i, "--threads", &threads))
            continue;
        if (cli_is(argv[i], "--calibrate"))
            request.calibrate = true;
        else if (cli_is(argv[i], "--json"))
            request.json = true;
        else
            return cli_usage(&cmd_bench, "unknown argument %s", argv[i]);
    }
    if (threads && !cli_integer(&cmd_bench, "--threads", threads, 0, 4096, &number))
        return 2;
    if (!request.tokenizer != !request.text)
        return cli_usage(&cmd_bench, "--tokenizer and --text go together");
    request.threads = (int)number;
    char *text;
    tm_status st = tm_bench(&request, &text, &err);
    return cli_end(st, text, &err);
}

const tm_command cmd_bench = {
    .name = "bench",
    .summary = "rates of this machine; methods that keep skills, compared",
    .run = run,
    .help =
        "usage: temper bench [--threads N] [--tokenizer DIR --text FILE] [--calibrate] [--json]\n\n"
        "Matrix products, memory and (with a text) a tokenizer of the device that a run would take (TEMPER_DEVICE: cpu, cuda);\n"
        "about two seconds, some more with --calibrate. Rates of single ops beside other\n"
        "libraries: make bench.\n\n"
        "  --calibrate      also keeps the rates for temper plan and train, in $TEMPER_CALIBRATION or\n"
        "                   temper/calibration.json of the cache folder\n"
        "  --threads N      0: all\n"
        "  --tokenizer DIR  model folder or tokenizer.json\n"
        "  --text FILE      what it reads; the first MiB is used\n\n"
        "usage: temper bench forgetting [--quick] [--fixed] [--tasks N] [--seeds N] [--orders N] [--steps N] [--jobs N] [--out DIR] [--json]\n"
        "       temper bench forgetting --data DIR | --recipe\n\n"
        "Methods that keep skills, compared on a small model that knows a town's people and plays by heart and is\n"
        "taught five things one after another (docs/forgetting.md). The whole of it is for a GPU, or a night; it goes\n"
        "on where it was killed.\n\n"
        "  --quick          two tasks, four arms; a minute; fails unless joint >= replay >= naive\n"
        "  --fixed          every method as it is set, in place of the best of four configurations on validation rows\n"
        "  --tasks N        only the first N of five\n"
        "  --seeds N, --orders N  of the training (20), of the tasks (3)\n"
        "  --steps N        of a task (120)\n"
        "  --jobs N         chains at a time, as of temper sequence\n"
        "  --data DIR       writes the data there, and nothing else\n"
        "  --recipe         prints the sequence that would be run, and nothing else\n\n"
        "example: temper bench --tokenizer models/stories260K --text data/demo/pushkin-train.txt\n",
};
