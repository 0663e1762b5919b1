/* temper template. */
#include "cli/cli.h"

static int run(int argc, char **argv)
{
    tm_template_request request = {0};
    for (int i = 1; i < argc; i++) {
        if (cli_option(argc, argv, &i, "--template", &request.source) || cli_option(argc, argv, &i, "--context", &request.context) ||
            cli_option(argc, argv, &i, "--date", &request.date))
            continue;
        if (cli_is(argv[i], "--as-is"))
            request.as_is = true;
        else
            return cli_usage(&cmd_template, "unknown argument %s", argv[i]);
    }
    if (!request.source || !request.context)
        return cli_usage(&cmd_template, "--template FILE and --context FILE are needed");
    tm_error err = {0};
    char *text = NULL;
    tm_status st = tm_template(&request, &text, &err);
    return cli_end(st, text, &err);
}

const tm_command cmd_template = {
    .name = "template",
    .summary = "the text a chat template gives",
    .run = run,
    .help = "usage: temper template --template FILE --context FILE.json [--date YYYY-MM-DD] [--as-is]\n\n"
            "Prints the text, without a line end of its own.\n\n"
            "  --template FILE  Jinja, a tokenizer_config.json, Saiga's JSON, or one of temper's names (chatml, llama3, ...)\n"
            "  --context FILE   a JSON object: messages, tools, add_generation_prompt, bos_token, ...\n"
            "  --date DAY       what strftime_now says (2024-07-26)\n"
            "  --as-is          messages as they are, also where the template cannot show them\n\n"
            "example: echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}' > /tmp/chat.json\n"
            "         temper template --template chatml --context /tmp/chat.json\n",
};
