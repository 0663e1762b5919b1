/* What the commands share. A command is one file cmd_<verb>.c and one row of the table in main.c. */
#ifndef TM_CLI_CLI_H
#define TM_CLI_CLI_H

#include "base/status.h"

typedef struct tm_command {
    const char *name, *summary, *help; /* help: usage, options, an example */
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; gives the exit code */
} tm_command;

#define CLI_COMMANDS(X) X(train)

#define X(name) extern const tm_command cmd_##name;
CLI_COMMANDS(X)
#undef X

/* Prints "temper: message" to stderr and gives the exit code of err. */
int cli_failed(const tm_error *err);
int cli_usage(const tm_command *command, const char *fmt, ...) TM_PRINTF(2, 3);

#endif
