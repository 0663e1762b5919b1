/* Arguments of commands: see cli.h. */
#include "cli/cli.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

bool cli_is(const char *argument, const char *option) { return argument && strcmp(argument, option) == 0; }

bool cli_option(int argc, char **argv, int *i, const char *name, const char **value)
{
    const char *argument = argv[*i];
    size_t n = strlen(name);
    if (!argument || strncmp(argument, name, n) != 0 || (argument[n] && argument[n] != '='))
        return false;
    if (argument[n] == '=')
        *value = argument + n + 1;
    else
        *value = *i + 1 < argc ? argv[++*i] : NULL;
    return true;
}

bool cli_number(const tm_command *command, const char *option, const char *text, double lo, double hi, double *out)
{
    char *end = NULL;
    double value = text ? strtod(text, &end) : 0;
    if (!text || end == text || *end || isnan(value) || value < lo || value > hi) {
        cli_usage(command, "%s: found '%s', expected a number from %g to %g", option, text ? text : "nothing", lo, hi);
        return false;
    }
    *out = value;
    return true;
}

bool cli_integer(const tm_command *command, const char *option, const char *text, int64_t lo, int64_t hi, int64_t *out)
{
    char *end = NULL;
    errno = 0;
    long long value = text ? strtoll(text, &end, 10) : 0;
    if (text && end != text && (*end == 'e' || *end == 'E')) { /* 1e9 is a whole number, as in recipes */
        double number = strtod(text, &end);
        errno = fabs(number) > 0x1p53 || number != floor(number) ? ERANGE : 0;
        value = errno ? 0 : (long long)number;
    }
    if (!text || end == text || *end || errno || value < lo || value > hi) {
        cli_usage(command, "%s: found '%s', expected a whole number from %lld to %lld", option, text ? text : "nothing", (long long)lo, (long long)hi);
        return false;
    }
    *out = value;
    return true;
}

static int no_memory(void)
{
    fprintf(stderr, "temper: out of memory\n");
    return 1;
}

int cli_recipe_arguments(const tm_command *command, int argc, char **argv, cli_recipe_args *out)
{
    static const char *const options[] = {"--model", "--data", "--out"};
    *out = (cli_recipe_args){0};
    for (int i = 1; i < argc; i++) {
        const char *value;
        bool used = false;
        for (int k = 0; k < 3 && argv[i] && !used; k++) {
            if (!cli_option(argc, argv, &i, options[k], &value))
                continue;
            if (!value)
                return cli_usage(command, "%s: a path is missing", options[k]);
            char text[4200];
            snprintf(text, sizeof text, "%s=%s", options[k] + 2, value);
            if (tm_names_add(&out->overrides, text, NULL) != TM_OK)
                return no_memory();
            used = true;
        }
        if (used || !argv[i])
            continue;
        if (argv[i][0] == '-')
            return cli_usage(command, "unknown option %s", argv[i]);
        if (strchr(argv[i], '=')) {
            if (tm_names_add(&out->overrides, argv[i], NULL) != TM_OK)
                return no_memory();
        } else if (out->source.path)
            return cli_usage(command, "two recipes: %s and %s; other arguments are key=value", out->source.path, argv[i]);
        else
            out->source.path = argv[i];
    }
    if (!out->source.path && !out->overrides.count)
        return cli_usage(command, "a recipe is missing (RECIPE.yaml, or --model DIR --data FILE)");
    out->source.overrides = out->overrides.item;
    out->source.override_count = (size_t)out->overrides.count;
    return 0;
}

void cli_recipe_deinit(cli_recipe_args *args) { tm_names_deinit(&args->overrides); }
