/* temper generate. */
#include "cli/cli.h"

#include <string.h>

static void write_text(void *context, const char *text, size_t size)
{
    (void)context;
    fwrite(text, 1, size, stdout);
    fflush(stdout);
}

static int run(int argc, char **argv)
{
    tm_generate_request r = {.prompt = "", .max_tokens = 128, .top_p = 1, .write = write_text};
    const char *value;
    int64_t number;
    for (int i = 1; i < argc; i++) {
        if (cli_option(argc, argv, &i, "--model", &value))
            r.model = value;
        else if (cli_option(argc, argv, &i, "--adapter", &value))
            r.adapter = value;
        else if (cli_option(argc, argv, &i, "--register", &r.registers))
            continue;
        else if (cli_option(argc, argv, &i, "--prompt", &value))
            r.prompt = value ? value : "";
        else if (cli_option(argc, argv, &i, "--max-tokens", &value)) {
            if (!cli_integer(&cmd_generate, "--max-tokens", value, 1, 1 << 24, &r.max_tokens))
                return 2;
        } else if (cli_option(argc, argv, &i, "--temperature", &value)) {
            if (!cli_number(&cmd_generate, "--temperature", value, 0, 100, &r.temperature))
                return 2;
        } else if (cli_option(argc, argv, &i, "--top-p", &value)) {
            if (!cli_number(&cmd_generate, "--top-p", value, 0, 1, &r.top_p))
                return 2;
        } else if (cli_option(argc, argv, &i, "--top-k", &value)) {
            if (!cli_integer(&cmd_generate, "--top-k", value, 0, INT32_MAX, &r.top_k))
                return 2;
        } else if (cli_option(argc, argv, &i, "--seed", &value)) {
            if (!cli_integer(&cmd_generate, "--seed", value, 0, INT64_MAX, &number))
                return 2;
            r.seed = (uint64_t)number;
        } else if (cli_option(argc, argv, &i, "--threads", &value)) {
            if (!cli_integer(&cmd_generate, "--threads", value, 0, 4096, &number))
                return 2;
            r.threads = (int)number;
        } else
            return cli_usage(&cmd_generate, "unknown argument %s", argv[i]);
    }
    if (!r.model)
        return cli_usage(&cmd_generate, "--model DIR is missing");
    tm_error err = {0};
    tm_status st = tm_generate(&r, &err);
    if (st == TM_OK)
        putchar('\n');
    return st == TM_OK ? 0 : cli_failed(&err);
}

const tm_command cmd_generate = {
    .name = "generate", .summary = "continues a text", .run = run,
    .help = "usage: temper generate --model DIR [--adapter DIR] [--prompt TEXT] [options]\n\n"
            "Prints the continuation alone; an empty prompt starts from BOS.\n\n"
            "  --register LIST    gates of a bank of registers, NAME=NUMBER,... (those not named are\n"
            "                     off), or auto: chosen by the bank's router\n"
            "  --max-tokens N     at most so many new tokens (128)\n"
            "  --temperature X    0 = the likeliest token every time (0)\n"
            "  --top-k N          only the N likeliest; 0 = all (0)\n"
            "  --top-p X          only the likeliest with X of the probability (1)\n"
            "  --seed N           another draw (0); the same seed gives the same text\n"
            "  --threads N        0 = all processors; never changes the text\n\n"
            "example: temper generate --model models/stories260K --prompt \"Once upon a time\" --max-tokens 60\n",
};
