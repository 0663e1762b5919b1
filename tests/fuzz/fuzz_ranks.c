/* Fuzzing: the input is a folder's files, with zero bytes between: a list of ranks (tiktoken) or vocab.json with
 * merges.txt, then tokenizer_config.json and added_tokens.json. Whatever opens must encode and decode. */
#include "base/file.h"
#include "text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const tm_tokenizer *tok)
{
    static const char text[] = "A  test: naïve 漢字 <s><|endoftext|> Привет\r\n 123 don't\x01";
    tm_error err;
    tm_tokens *scratch;
    tm_ids ids = {0};
    tm_buf out = {0};
    if (tm_tokens_create(tok, &scratch, &err) != TM_OK)
        return;
    if (tm_tokenizer_encode(tok, scratch, text, sizeof text - 1, true, &ids, &err) == TM_OK &&
        tm_tokenizer_decode(tok, ids.id, ids.count, true, &out, &err) != TM_OK)
        abort();
    tm_buf_deinit(&out);
    tm_ids_deinit(&ids);
    tm_tokens_destroy(scratch);
}

/* The part up to the next zero byte, written as a file; false: nothing left. */
static bool put(const char *dir, const char *name, const uint8_t **data, size_t *size)
{
    char path[128];
    const uint8_t *zero = *size ? memchr(*data, 0, *size) : NULL;
    size_t part = zero ? (size_t)(zero - *data) : *size;
    if (!*size)
        return false;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    if (!file)
        abort();
    fwrite(*data, 1, part, file);
    fclose(file);
    *data += zero ? part + 1 : part;
    *size -= zero ? part + 1 : part;
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const ranks[] = {"qwen.tiktoken"}, *const merges[] = {"vocab.json", "merges.txt"};
    static const char *const settings[] = {"tokenizer_config.json", "added_tokens.json"};
    char dir[64];
    tm_tokenizer *tok;
    tm_error err = {0};
    snprintf(dir, sizeof dir, "/tmp/temper-fuzz-%d", (int)getpid());
    if (tm_dir_remove(dir, &err) != TM_OK || tm_dir_create(dir, &err) != TM_OK)
        abort();
    bool object = size && data[0] == '{';
    for (int i = 0; i < 1 + object; i++)
        put(dir, object ? merges[i] : ranks[i], &data, &size);
    for (int i = 0; i < 2; i++)
        put(dir, settings[i], &data, &size);
    if (tm_tokenizer_open(dir, &tok, &err) == TM_OK)
        use(tok);
    else if (!err.message[0])
        abort();
    tm_tokenizer_close(tok);
    if (tm_dir_remove(dir, &err) != TM_OK)
        abort();
    return 0;
}
