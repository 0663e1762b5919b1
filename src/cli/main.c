/* temper: the program. What it prints to stdout is its result: when that was lost, whoever printed it, the exit code says so. */
#include "cli/cli.h"

#include "base/names.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const tm_command *const commands[] = {
#define X(name) &cmd_##name,
    CLI_COMMANDS(X)
#undef X
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

int cli_failed(const tm_error *err)
{
    fprintf(stderr, "temper: %s\n", err->message);
    return tm_status_exit_code(err->status);
}

int cli_end(tm_status st, char *text, const tm_error *err)
{
    bool lost = text && (fputs(text, stdout) < 0 || fflush(stdout) != 0);
    free(text);
    if (st != TM_OK)
        return cli_failed(err);
    if (!lost)
        return 0;
    tm_error problem = {0};
    (void)!tm_fail_errno(&problem, TM_IO, "writing the result");
    return cli_failed(&problem);
}

int cli_usage(const tm_command *command, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "temper %s: ", command->name);
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\nsee: temper %s --help\n", command->name);
    va_end(args);
    return 2;
}

static void print_help(FILE *out)
{
    fprintf(out, "temper " TM_VERSION ": fine-tunes language models, and measures what they forget\n\nusage: temper COMMAND [ARGUMENTS]\n\n");
    for (int i = 0; i < COMMANDS; i++)
        fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(out, "\ntemper COMMAND --help explains one, with an example. Start with: temper demo\n");
}

static int run(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("temper " TM_VERSION "\n");
        return 0;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return 0;
    }
    const char *names[COMMANDS];
    for (int i = 0; i < COMMANDS; i++) {
        names[i] = commands[i]->name;
        if (strcmp(argv[1], names[i]) != 0)
            continue;
        for (int k = 2; k < argc; k++)
            if (strcmp(argv[k], "--help") == 0 || strcmp(argv[k], "-h") == 0) {
                fputs(commands[i]->help, stdout);
                return 0;
            }
        return commands[i]->run(argc - 1, argv + 1);
    }
    const char *nearest = tm_nearest(argv[1], names, COMMANDS);
    fprintf(stderr, "temper: unknown command '%s'%s%s%s\n", argv[1], nearest ? "; did you mean " : "", nearest ? nearest : "", nearest ? "?" : "");
    return 2;
}

int main(int argc, char **argv)
{
    int code = run(argc, argv);
    bool lost = ferror(stdout) || fflush(stdout) != 0;
    if (code != 0 || !lost)
        return code;
    tm_error problem = {0};
    (void)!tm_fail_errno(&problem, TM_IO, "writing the result");
    return cli_failed(&problem);
}
