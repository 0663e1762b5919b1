/* Any text as a recipe, in YAML and in JSON: an error that says where, or a recipe whose JSON and YAML read
 * back as the same recipe. The first byte chooses: bit 0 JSON, bit 1 the first line
 * is an argument. */
#include "base/file.h"
#include "base/options.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A file of the text whose name ends as it should; the caller removes it. */
static const char *file_of(const char *text, size_t size, bool json)
{
    static char path[64];
    snprintf(path, sizeof path, "/dev/shm/temper-fuzz-%d.%s", (int)getpid(), json ? "json" : "yaml");
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(text, 1, size, f) != size || fclose(f) != 0)
        abort();
    return path;
}

static tm_status load(const char *text, size_t size, bool json, char *argument, tm_recipe **out, tm_error *err)
{
    *err = (tm_error){0};
    const char *path = file_of(text, size, json);
    tm_status st = tm_recipe_load(path, &argument, argument ? 1 : 0, out, err);
    unlink(path);
    if (st != TM_OK && (*out || err->status != st || !err->message[0]))
        abort();
    return st;
}

/* Text read back gives the same JSON. */
static void again(const tm_buf *text, bool json, const tm_buf *expected)
{
    tm_recipe *recipe;
    tm_error err;
    tm_buf out = {0};
    if (load(text->data, text->size, json, NULL, &recipe, &err) != TM_OK ||
        tm_recipe_to_json(recipe, &out, &err) != TM_OK || strcmp(out.data, expected->data) != 0) {
        fprintf(stderr, "%s\n%s\n%s\n", err.message, text->data, tm_buf_str(&out));
        abort();
    }
    tm_buf_deinit(&out);
    tm_recipe_destroy(recipe);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    bool json = data[0] & 1;
    const char *text = (const char *)data + 1;
    size--;
    char *argument = NULL;
    const char *newline = data[0] & 2 ? memchr(text, '\n', size) : NULL;
    if (newline) {
        argument = strndup(text, (size_t)(newline - text));
        size -= (size_t)(newline + 1 - text);
        text = newline + 1;
    }
    tm_recipe *recipe;
    tm_error err;
    tm_buf first = {0}, yaml = {0};
    if (load(text, size, json, argument, &recipe, &err) == TM_OK) {
        if (tm_recipe_to_json(recipe, &first, &err) != TM_OK || tm_recipe_to_yaml(recipe, true, &yaml, &err) != TM_OK)
            abort();
        tm_recipe_destroy(recipe);
        again(&first, true, &first);
        again(&yaml, false, &first);
    }
    tm_buf_deinit(&first);
    tm_buf_deinit(&yaml);
    free(argument);
    return 0;
}
