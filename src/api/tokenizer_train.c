/* temper tokenizer train: a tokenizer.json out of a file of text. */
#include "base/file.h"
#include "text/tokenizer_train.h"

#include <stdlib.h>
#include <string.h>

static const tm_family *family_of(const char *pattern)
{
    static const char *const names[][2] = {{"gpt2", "gpt-2"}, {"qwen2", "qwen2"}, {"llama3", "llama3"}};
    for (size_t i = 0; i < 3; i++)
        if (!strcmp(pattern, names[i][0]))
            return tm_family_named(names[i][1]);
    return NULL;
}

static tm_status write_out(const char *out, const tm_buf *json, tm_error *err)
{
    char *inside = tm_path_is_dir(out) ? tm_path_join(out, "tokenizer.json", err) : NULL;
    tm_status st = tm_file_write(inside ? inside : out, json->data, json->size, err);
    free(inside);
    return st;
}

tm_status tm_tokenizer_train(const tm_tokenizer_train_request *request, char **text, tm_error *err)
{
    tm_tokenizer_recipe recipe = {.vocab = request->vocab, .least = request->min_frequency};
    tm_word_counts counts = {0};
    tm_tokenizer *cutter = NULL, *result = NULL;
    tm_pool *pool = NULL;
    tm_buf json = {0}, summary = {0};
    tm_status st;
    *text = NULL;
    recipe.family = family_of(request->pattern);
    if (!recipe.family)
        TM_GO(tm_fail(err, TM_USAGE, "the pattern is \"%.40s\", expected gpt2, qwen2 or llama3", request->pattern));
    if (request->vocab > TM_TOKEN_IDS)
        TM_GO(tm_fail(err, TM_USAGE, "a vocabulary of %lld, expected at most %d", (long long)request->vocab, TM_TOKEN_IDS));
    for (size_t i = 0; i < request->special_count; i++)
        TM_GO(tm_names_add(&recipe.special, request->special[i], err));
    TM_GO(tm_pool_create(request->threads, &pool, err));
    TM_GO(tm_tokenizer_learn(&recipe, NULL, &json, err)); /* cuts texts as the result will */
    TM_GO(tm_tokenizer_parse(tm_buf_str(&json), json.size, request->out, &cutter, err));
    TM_GO(tm_words_of_file(cutter, request->data, pool, &counts, err));
    if (!counts.words.ids)
        TM_GO(tm_fail(err, TM_INPUT, "%s: no text to learn from", request->data));
    tm_buf_clear(&json);
    TM_GO(tm_tokenizer_learn(&recipe, &counts, &json, err));
    TM_GO(tm_tokenizer_parse(tm_buf_str(&json), json.size, request->out, &result, err));
    TM_GO(write_out(request->out, &json, err));
    tm_buf_printf(&summary, "%d tokens from %d different pieces of text: %s\n", tm_tokenizer_vocab_size(result), counts.words.ids,
                  request->out);
    TM_GO(tm_buf_check(&summary, err));
    *text = summary.data;
    summary = (tm_buf){0};
out:
    tm_buf_deinit(&json);
    tm_buf_deinit(&summary);
    tm_word_counts_deinit(&counts);
    tm_tokenizer_close(cutter);
    tm_tokenizer_close(result);
    tm_names_deinit(&recipe.special);
    tm_pool_destroy(pool);
    return st;
}
