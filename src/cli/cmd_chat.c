/* temper chat. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void write_text(void *context, const char *text, size_t size)
{
    (void)context;
    fwrite(text, 1, size, stdout);
    fflush(stdout);
}

/* A line that begins with '/'. *quit: that was the last. */
static int command(tm_chat_session *session, const char *line, bool *quit)
{
    tm_error err = {0};
    *quit = strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0;
    if (*quit)
        return 0;
    bool system = strncmp(line, "/system", 7) == 0 && (!line[7] || line[7] == ' ');
    if (!system && strcmp(line, "/reset") != 0) {
        fprintf(stderr, "temper: %s: expected /reset, /system TEXT or /quit\n", line);
        return 0;
    }
    tm_status st = tm_chat_session_reset(session, system ? line + 7 + strspn(line + 7, " ") : NULL, &err);
    return st == TM_OK ? 0 : cli_failed(&err);
}

static int talk(tm_chat_session *session)
{
    bool terminal = isatty(STDIN_FILENO), quit = false;
    char *line = NULL;
    size_t capacity = 0;
    ssize_t size;
    int code = 0;
    if (terminal)
        fprintf(stderr, "/reset starts anew, /system TEXT sets the system message, /quit ends\n");
    while (!quit && !code) {
        if (terminal) {
            fputs("> ", stdout);
            fflush(stdout);
        }
        size = getline(&line, &capacity, stdin);
        if (size < 0)
            break;
        while (size > 0 && (line[size - 1] == '\n' || line[size - 1] == '\r'))
            line[--size] = 0;
        if (!*line)
            continue;
        if (*line == '/') {
            code = command(session, line, &quit);
            continue;
        }
        tm_error err = {0};
        if (tm_chat_session_say(session, line, write_text, NULL, &err) != TM_OK) {
            code = cli_failed(&err);
            code = terminal ? 0 : code; /* a person may go on */
        } else {
            putchar('\n');
            fflush(stdout);
        }
    }
    free(line);
    return code;
}

static int run(int argc, char **argv)
{
    tm_chat_request r = {.max_tokens = 512, .context = 4096, .top_p = 1};
    const char *value;
    int64_t number;
    for (int i = 1; i < argc; i++) {
        if (cli_option(argc, argv, &i, "--model", &r.model) || cli_option(argc, argv, &i, "--adapter", &r.adapter) ||
            cli_option(argc, argv, &i, "--template", &r.chat_template) || cli_option(argc, argv, &i, "--system", &r.system) ||
            cli_option(argc, argv, &i, "--date", &r.date))
            continue;
        if (cli_option(argc, argv, &i, "--max-tokens", &value)) {
            if (!cli_integer(&cmd_chat, "--max-tokens", value, 1, 1 << 24, &r.max_tokens))
                return 2;
        } else if (cli_option(argc, argv, &i, "--context", &value)) {
            if (!cli_integer(&cmd_chat, "--context", value, 2, 1 << 24, &r.context))
                return 2;
        } else if (cli_option(argc, argv, &i, "--temperature", &value)) {
            if (!cli_number(&cmd_chat, "--temperature", value, 0, 100, &r.temperature))
                return 2;
        } else if (cli_option(argc, argv, &i, "--top-p", &value)) {
            if (!cli_number(&cmd_chat, "--top-p", value, 0, 1, &r.top_p))
                return 2;
        } else if (cli_option(argc, argv, &i, "--top-k", &value)) {
            if (!cli_integer(&cmd_chat, "--top-k", value, 0, INT32_MAX, &r.top_k))
                return 2;
        } else if (cli_option(argc, argv, &i, "--seed", &value)) {
            if (!cli_integer(&cmd_chat, "--seed", value, 0, INT64_MAX, &number))
                return 2;
            r.seed = (uint64_t)number;
        } else if (cli_option(argc, argv, &i, "--threads", &value)) {
            if (!cli_integer(&cmd_chat, "--threads", value, 0, 4096, &number))
                return 2;
            r.threads = (int)number;
        } else
            return cli_usage(&cmd_chat, "unknown argument %s", argv[i]);
    }
    if (!r.model)
        return cli_usage(&cmd_chat, "--model DIR is missing");
    tm_error err = {0};
    tm_chat_session *session;
    if (tm_chat_session_open(&r, &session, &err) != TM_OK)
        return cli_failed(&err);
    int code = talk(session);
    tm_chat_session_close(session);
    return code;
}

const tm_command cmd_chat = {
    .name = "chat",
    .summary = "a conversation with a model",
    .run = run,
    .help = "usage: temper chat --model DIR [--adapter DIR] [--template NAME_OR_FILE] [--system TEXT] [options]\n\n"
            "Reads a line, prints the answer; works with a pipe too. /reset starts anew, /system TEXT does so with\n"
            "another system message, /quit or the end of the input ends.\n\n"
            "  --template X       in place of the model's own: chatml, llama3, vicuna, saiga, ..., or a file\n"
            "  --system TEXT      the system message\n"
            "  --max-tokens N     of an answer, at most (512)\n"
            "  --context N        tokens of the whole conversation, at most (4096, or what the model has)\n"
            "  --temperature X    0 = the likeliest token every time (0)\n"
            "  --top-k N          only the N likeliest; 0 = all (0)\n"
            "  --top-p X          only the likeliest with X of the probability (1)\n"
            "  --seed N           another draw (0); the same seed gives the same answers\n"
            "  --date DAY         what the template is told today is, YYYY-MM-DD (2024-07-26)\n"
            "  --threads N        0 = all processors; never changes an answer\n\n"
            "example: echo \"Once upon a time\" | temper chat --model models/stories260K --template vicuna --max-tokens 20\n",
};
