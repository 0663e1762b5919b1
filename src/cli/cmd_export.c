/* temper export. */
#include "cli/cli.h"

#include <stdlib.h>

static int run(int argc, char **argv)
{
    tm_export_request request = {0};
    const char *threads = NULL;
    tm_error err = {0};
    for (int i = 1; i < argc; i++) {
        if (cli_option(argc, argv, &i, "--model", &request.model) || cli_option(argc, argv, &i, "--adapter", &request.adapter) ||
            cli_option(argc, argv, &i, "--gguf", &request.gguf) || cli_option(argc, argv, &i, "--type", &request.type) ||
            cli_option(argc, argv, &i, "--threads", &threads))
            continue;
        if (!cli_is(argv[i], "--adapter-only"))
            return cli_usage(&cmd_export, "unknown argument %s", argv[i]);
        request.adapter_only = true;
    }
    if (!request.model || !request.gguf)
        return cli_usage(&cmd_export, "--model DIR and --gguf FILE are needed");
    int64_t number = 0;
    if (threads && !cli_integer(&cmd_export, "--threads", threads, 0, 4096, &number))
        return 2;
    request.threads = (int)number;
    char *text;
    if (tm_export(&request, &text, &err) != TM_OK)
        return cli_failed(&err);
    fprintf(stderr, "%s", text);
    free(text);
    printf("%s\n", request.gguf);
    return 0;
}

const tm_command cmd_export = {
    .name = "export",
    .summary = "writes a model or an adapter as GGUF, for llama.cpp",
    .run = run,
    .help =
        "usage: temper export --model DIR [--adapter DIR] --gguf FILE [--type TYPE] [--adapter-only]\n\n"
        "Writes the model, with the adapter in its weights when one is given, as a GGUF file: sizes, tokenizer and chat\n"
        "template included. The file is read back and its logits are compared with the source's before it gets its name.\n\n"
        "  --model DIR      a model folder, or another GGUF file\n"
        "  --type TYPE      f32, f16 (default), bf16, q8_0 or q4_k_m (most of the model in 4 bits, as llama.cpp mixes it)\n"
        "  --adapter-only   the adapter alone, as a GGUF LoRA (f32 by default), to be used with the base model's GGUF\n"
        "  --threads N      0: all\n\n"
        "example: temper export --model models/stories260K --gguf stories.gguf --type q8_0\n",
};
