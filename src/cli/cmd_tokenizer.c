/* temper tokenizer train. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

/* "--special a,b": each word of the list; an empty one is none. */
static tm_status add_special(tm_names *list, const char *text, tm_error *err)
{
    while (*text) {
        size_t size = strcspn(text, ",");
        char *word = strndup(text, size);
        tm_status st = word ? tm_names_add(list, word, err) : tm_fail(err, TM_NO_MEMORY, "out of memory");
        free(word);
        if (st != TM_OK)
            return st;
        text += size + (text[size] == ',');
    }
    return TM_OK;
}

static int train(int argc, char **argv, tm_names *special)
{
    tm_tokenizer_train_request request = {.pattern = "gpt2"};
    tm_error err = {0};
    const char *vocab = NULL, *least = NULL, *threads = NULL, *list = NULL;
    int64_t number = 0;
    bool given = false;
    for (int i = 2; i < argc; i++) {
        if (cli_option(argc, argv, &i, "--special", &list)) {
            given = true;
            if (!list || add_special(special, list, &err) != TM_OK)
                return list ? cli_failed(&err) : cli_usage(&cmd_tokenizer, "--special needs a list");
        } else if (!cli_option(argc, argv, &i, "--data", &request.data) && !cli_option(argc, argv, &i, "--out", &request.out) &&
                   !cli_option(argc, argv, &i, "--vocab", &vocab) && !cli_option(argc, argv, &i, "--min-frequency", &least) &&
                   !cli_option(argc, argv, &i, "--pattern", &request.pattern) && !cli_option(argc, argv, &i, "--threads", &threads))
            return cli_usage(&cmd_tokenizer, "unknown argument %s", argv[i]);
    }
    if (!request.data || !request.out || !vocab)
        return cli_usage(&cmd_tokenizer, "--data FILE, --vocab N and --out FILE are needed");
    if (!request.pattern)
        return cli_usage(&cmd_tokenizer, "--pattern needs gpt2, qwen2 or llama3");
    if (!cli_integer(&cmd_tokenizer, "--vocab", vocab, 256, 1 << 22, &request.vocab) ||
        (least && !cli_integer(&cmd_tokenizer, "--min-frequency", least, 0, INT64_MAX, &request.min_frequency)) ||
        (threads && !cli_integer(&cmd_tokenizer, "--threads", threads, 0, 4096, &number)))
        return 2;
    if (!given && tm_names_add(special, "<|endoftext|>", &err) != TM_OK)
        return cli_failed(&err);
    request.threads = (int)number;
    request.special = special->item;
    request.special_count = (size_t)special->count;
    char *text;
    tm_status st = tm_tokenizer_train(&request, &text, &err);
    return cli_end(st, text, &err);
}

static int run(int argc, char **argv)
{
    tm_names special = {0};
    if (argc < 2 || strcmp(argv[1], "train"))
        return cli_usage(&cmd_tokenizer, argc < 2 ? "what to do is missing: train" : "unknown action %s: expected train", argv[1]);
    int code = train(argc, argv, &special);
    tm_names_deinit(&special);
    return code;
}

const tm_command cmd_tokenizer = {
    .name = "tokenizer",
    .summary = "a tokenizer learned from text",
    .run = run,
    .help =
        "usage: temper tokenizer train --data FILE --vocab N --out FILE [--special TOKENS] [--min-frequency N]\n"
        "                              [--pattern gpt2|qwen2|llama3] [--threads N]\n\n"
        "Learns byte-level BPE and writes a tokenizer.json that temper and Hugging Face tokenizers read. The same\n"
        "file for any number of threads.\n\n"
        "  --data FILE          text; of a .jsonl the strings of text, content, prompt, completion, ...\n"
        "  --vocab N            tokens in all: the special ones, 256 bytes, and what is learned\n"
        "  --out FILE           tokenizer.json to write, or a folder for it\n"
        "  --special TOKENS     special tokens, with commas between them; they get the first ids (<|endoftext|>)\n"
        "  --min-frequency N    pairs that come less often are not merged (0)\n"
        "  --pattern NAME       how text is cut into pieces (gpt2)\n"
        "  --threads N          0: all (0)\n\n"
        "example: temper tokenizer train --data README.md --vocab 1000 --out tokenizer.json\n",
};
