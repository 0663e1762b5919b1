/* Cases of tokenizers: what the tests of tokenizers share. */
#ifndef TM_TESTS_TOKENIZER_CASES_H
#define TM_TESTS_TOKENIZER_CASES_H

#include "text/tokenizer_parts.h"

#include "base/file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DATA "tests/data/tokenizers/"
#define SHARED "../shared/data/"

static tm_error err;

static inline void ok(tm_status st)
{
    if (st != TM_OK)
        fail_msg("%s", err.message);
}

static inline json_t *load(const char *path)
{
    json_error_t problem;
    json_t *json = json_load_file(path, JSON_ALLOW_NUL, &problem);
    if (!json)
        fail_msg("%s:%d: %s", path, problem.line, problem.text);
    return json;
}

static inline tm_tokenizer *open_tokenizer(const char *path)
{
    tm_tokenizer *tok;
    ok(tm_tokenizer_open(path, &tok, &err));
    return tok;
}

static inline bool same_ids(const tm_ids *ids, const json_t *expected)
{
    if (ids->count != json_array_size(expected))
        return false;
    for (size_t i = 0; i < ids->count; i++)
        if (ids->id[i] != json_integer_value(json_array_get(expected, i)))
            return false;
    return true;
}

static inline void check_ids(const tm_tokenizer *tok, tm_tokens *scratch, const char *text, size_t size, bool special,
                      const json_t *expected, const char *where)
{
    tm_ids ids = {0};
    ok(tm_tokenizer_encode(tok, scratch, text, size, special, &ids, &err));
    if (!same_ids(&ids, expected)) {
        tm_buf line = {0};
        for (size_t i = 0; i < ids.count; i++)
            tm_buf_printf(&line, " %d", ids.id[i]);
        char *dump = json_dumps(expected, JSON_COMPACT);
        fail_msg("%s: \"%s\"\n ids%s\n expected %s", where, text, tm_buf_str(&line), dump);
    }
    tm_ids_deinit(&ids);
}

static inline void check_text(const tm_tokenizer *tok, const json_t *list, bool skip, const json_t *expected, const char *where)
{
    size_t n = json_array_size(list);
    int32_t *ids = calloc(n + 1, sizeof *ids);
    tm_buf text = {0};
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    ok(tm_tokenizer_decode(tok, ids, n, skip, &text, &err));
    if (text.size != json_string_length(expected) || memcmp(tm_buf_str(&text), json_string_value(expected), text.size))
        fail_msg("%s: decoded \"%s\", expected \"%s\"", where, tm_buf_str(&text), json_string_value(expected));
    tm_buf_deinit(&text);
    free(ids);
}

/* {"text", "ids", "with_special"?, "decoded"?} */
static inline void check_cases(const tm_tokenizer *tok, const json_t *cases, const char *where)
{
    tm_tokens *scratch;
    ok(tm_tokens_create(tok, &scratch, &err));
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i), *text = json_object_get(c, "text"), *ids = json_object_get(c, "ids");
        const json_t *special = json_object_get(c, "with_special"), *decoded = json_object_get(c, "decoded");
        const char *s = json_string_value(text);
        size_t size = json_string_length(text);
        for (int again = 0; again < 2; again++) { /* the second time out of the cache */
            check_ids(tok, scratch, s, size, false, ids, where);
            check_ids(tok, scratch, s, size, true, special ? special : ids, where);
        }
        if (decoded)
            check_text(tok, ids, false, decoded, where);
    }
    tm_tokens_destroy(scratch);
}

/* Puts a case's parts into the base tokenizer. */
static inline json_t *patched(const json_t *item)
{
    char path[200];
    const char *key;
    json_t *value, *patch = json_object_get(item, "patch");
    snprintf(path, sizeof path, DATA "%s/tokenizer.json", json_string_value(json_object_get(item, "base")));
    json_t *root = load(path);
    json_object_foreach(patch, key, value)
    {
        if (strcmp(key, "model"))
            json_object_set(root, key, value);
        else
            json_object_update(json_object_get(root, key), value);
    }
    return root;
}

/* A list of parts put into a base, each with its cases. */
static inline void check_patches(const char *file, size_t least)
{
    char path[200], where[60];
    snprintf(path, sizeof path, DATA "%s", file);
    json_t *list = load(path);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        json_t *root = patched(item);
        char *text = json_dumps(root, JSON_COMPACT);
        tm_tokenizer *tok;
        snprintf(where, sizeof where, "%s[%zu]", file, i);
        ok(tm_tokenizer_parse(text, strlen(text), where, &tok, &err));
        check_cases(tok, json_object_get(item, "cases"), where);
        tm_tokenizer_close(tok);
        json_decref(root);
        free(text);
    }
    assert_true(json_array_size(list) >= least);
    json_decref(list);
}

static inline void put(const char *dir, const char *name, const char *text)
{
    char *path = tm_path_join(dir, name, &err);
    if (text)
        ok(tm_file_write(path, text, strlen(text), &err));
    else
        unlink(path);
    free(path);
}

#endif
