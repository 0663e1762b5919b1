/* What the commands share. A command is one file cmd_<verb>.c and one row of the table below. */
#ifndef TM_CLI_CLI_H
#define TM_CLI_CLI_H

#include "base/names.h"
#include "base/term.h"

typedef struct tm_command {
    const char *name, *summary, *help; /* help: usage, options, an example */
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; gives the exit code */
} tm_command;

/* In the order of --help. */
#define CLI_COMMANDS(X) \
    X(demo)             \
    X(train)            \
    X(sweep)            \
    X(sequence)         \
    X(fisher)           \
    X(eval)             \
    X(generate)         \
    X(chat)             \
    X(plan)             \
    X(advise)           \
    X(tokenize)         \
    X(tokenizer)        \
    X(template)         \
    X(report)           \
    X(verify)           \
    X(merge)            \
    X(export)           \
    X(inspect)          \
    X(compare)          \
    X(init)             \
    X(bench)

#define X(name) extern const tm_command cmd_##name;
CLI_COMMANDS(X)
#undef X

bool cli_is(const char *argument, const char *option); /* NULL is none */
/* Prints "temper: message" to stderr and gives the exit code of err. */
int cli_failed(const tm_error *err);
/* The end of a command whose result is a text: prints it (NULL: none), frees it, and gives the exit code of st; err as in cli_failed. */
int cli_end(tm_status st, char *text, const tm_error *err);
/* Prints what is wrong with the arguments; gives 2. */
int cli_usage(const tm_command *command, const char *fmt, ...) TM_PRINTF(2, 3);

/* An option with a value: "--name value" or "--name=value" at argv[*i]. On a match *value is set and *i
 * stands on the last word used; value NULL when it is missing. */
bool cli_option(int argc, char **argv, int *i, const char *name, const char **value);
/* A whole number in [lo, hi], or a number; false with a message to stderr. */
bool cli_integer(const tm_command *command, const char *option, const char *text, int64_t lo, int64_t hi, int64_t *out);
bool cli_number(const tm_command *command, const char *option, const char *text, double lo, double hi, double *out);

/* The arguments of commands that take a recipe: RECIPE.yaml, key=value, --model DIR, --data FILE,
 * --out DIR. Entries of argv that are NULL were used already. Gives 0 or an exit code. */
typedef struct cli_recipe_args {
    tm_recipe_source source;
    tm_names overrides;
} cli_recipe_args;
int cli_recipe_arguments(const tm_command *command, int argc, char **argv, cli_recipe_args *out);
void cli_recipe_deinit(cli_recipe_args *args);

/* The progress line and notes on stderr, and Ctrl-C, for long work; tm_progress_end(line, NULL) ends it. */
tm_callbacks cli_watch_begin(tm_progress *line);

/* Runs tm_train with the progress bar and notes on stderr; *out as tm_train's. */
int cli_train(const tm_recipe_source *source, char **out);

#endif
