/* Tokenizers in arrays, as GGUF files hold them: against llama.cpp's ids of the files where they are found, and
 * against the tokenizer.json that the same vocabulary came from. */
#include "text/tokenizer_parts.h"

#include "base/file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#define CASES "../shared/data/tokenizer_cases/llamacpp/"

static tm_error err;

static void ok(tm_status st)
{
    if (st != TM_OK)
        fail_msg("%s", err.message);
}

/* ---- as much of GGUF as a vocabulary takes; the files are trusted ---- */

typedef struct reader {
    const char *p;
    tm_token_text *array[3]; /* owned: tokens, merges, others */
} reader;

static uint64_t number(reader *r, size_t size)
{
    uint64_t value = 0;
    memcpy(&value, r->p, size);
    r->p += size;
    return value;
}

static tm_token_text string(reader *r)
{
    tm_token_text piece;
    piece.size = number(r, 8);
    piece.text = r->p;
    r->p += piece.size;
    return piece;
}

static const size_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static void read_parts(reader *r, tm_tokenizer_parts *parts, char *model, char *pre)
{
    *parts = (tm_tokenizer_parts)TM_TOKENIZER_PARTS_NONE;
    r->p += 4 + 4 + 8; /* magic, version, tensors */
    for (uint64_t left = number(r, 8); left > 0; left--) {
        tm_token_text key = string(r);
        uint32_t type = (uint32_t)number(r, 4);
        const char *name = key.size > 15 && !memcmp(key.text, "tokenizer.ggml.", 15) ? key.text + 15 : "";
        size_t size = *name ? key.size - 15 : 0;
#define IS(text) (size == strlen(text) && !memcmp(name, text, size))
        if (type == 8) {
            tm_token_text value = string(r);
            if (IS("model"))
                snprintf(model, 32, "%.*s", (int)value.size, value.text);
            if (IS("pre"))
                snprintf(pre, 32, "%.*s", (int)value.size, value.text);
        } else if (type == 9) {
            uint32_t of = (uint32_t)number(r, 4);
            uint64_t count = number(r, 8);
            if (of != 8) {
                if (IS("scores"))
                    parts->score = (const float *)(const void *)r->p;
                if (IS("token_type"))
                    parts->type = (const int32_t *)(const void *)r->p;
                r->p += count * sizes[of];
                continue;
            }
            int which = IS("tokens") ? 0 : IS("merges") ? 1 : 2;
            r->array[which] = realloc(r->array[which], (count + 1) * sizeof(tm_token_text));
            for (uint64_t i = 0; i < count; i++)
                r->array[which][i] = string(r);
            *(which == 0 ? &parts->count : which == 1 ? &parts->merge_count : &(size_t){0}) = count;
        } else {
            int32_t value = (int32_t)number(r, sizes[type]);
            if (IS("bos_token_id"))
                parts->bos = value;
            if (IS("eos_token_id"))
                parts->eos = value;
            if (IS("unknown_token_id"))
                parts->unk = value;
            if (IS("add_bos_token"))
                parts->add_bos = value;
            if (IS("add_eos_token"))
                parts->add_eos = value;
            if (IS("add_space_prefix"))
                parts->add_space_prefix = value;
        }
    }
    parts->token = r->array[0];
    parts->merge = r->array[1];
    parts->model = model;
    parts->pre = pre;
}

static void llamacpp(const char *name)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    char path[200], model[32] = "", pre[32] = "";
    snprintf(path, sizeof path, CASES "ggml-vocab-%s.gguf", name);
    if (!tm_path_exists(path)) {
        printf("skip: the vocabularies of the shared data are not there\n");
        skip();
    }
    tm_buf file = {0}, in = {0}, out = {0};
    reader r = {0};
    tm_tokenizer_parts parts;
    tm_tokenizer *tok;
    tm_tokens *scratch;
    ok(tm_file_read(path, 64 << 20, &file, &err));
    /* the arrays of numbers are copied to where they are aligned */
    r.p = file.data;
    read_parts(&r, &parts, model, pre);
    float *score = parts.score ? malloc(parts.count * sizeof *score) : NULL;
    int32_t *type = parts.type ? malloc(parts.count * sizeof *type) : NULL;
    if (score)
        memcpy(score, parts.score, parts.count * sizeof *score);
    if (type)
        memcpy(type, parts.type, parts.count * sizeof *type);
    parts.score = score;
    parts.type = type;
    ok(tm_tokenizer_from_parts(&parts, path, &tok, &err));
    ok(tm_tokens_create(tok, &scratch, &err));
    strcat(path, ".out");
    ok(tm_file_read(path, 1 << 20, &out, &err));
    ok(tm_file_read(CASES "ggml-vocab-all.inp", 1 << 20, &in, &err));
    int count = 0;
    for (char *text = in.data, *line = out.data, *next; text; text = next, count++) {
        char *end = strstr(text, mark), *newline = strchrnul(line, '\n');
        next = end ? end + sizeof mark - 1 : NULL;
        tm_ids ids = {0};
        ok(tm_tokenizer_encode(tok, scratch, text, end ? (size_t)(end - text) : strlen(text), false, &ids, &err));
        char *p = line;
        for (size_t i = 0; i < ids.count; i++) {
            char *after;
            long id = strtol(p, &after, 10);
            if (after == p || after > newline || id != ids.id[i])
                fail_msg("%s, text %d: id %zu is %d, expected %ld", path, count, i, ids.id[i], id);
            p = after;
        }
        assert_int_equal(strspn(p, " "), newline - p);
        tm_ids_deinit(&ids);
        line = *newline ? newline + 1 : newline;
    }
    assert_int_equal(count, 47);
    tm_tokens_destroy(scratch);
    tm_tokenizer_close(tok);
    for (int i = 0; i < 3; i++)
        free(r.array[i]);
    free(score);
    free(type);
    tm_buf_deinit(&file);
    tm_buf_deinit(&in);
    tm_buf_deinit(&out);
}

static void llamacpp_gpt2(void **state) { (void)state; llamacpp("gpt-2"); }
static void llamacpp_llama(void **state) { (void)state; llamacpp("llama-spm"); }

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(llamacpp_gpt2), cmocka_unit_test(llamacpp_llama)};
    return cmocka_run_group_tests_name("tokenizer_arrays", tests, NULL, NULL);
}
