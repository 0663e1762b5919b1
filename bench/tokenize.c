/* Rate of a tokenizer, and its ids for comparing by hand with another program.
 * usage: tokenize TOKENIZER FILE...          MB/s of each file, cold and with the cache warm
 *        tokenize TOKENIZER --jsonl FILE     a JSON string a line in; a line [ids] with and one [ids] without
 *                                            special tokens, and the text they decode to, out */
#include "base/file.h"
#include "base/json.h"
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* CPU time: on a shared machine the wall clock measures the neighbours. */
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static tm_status rate(const tm_tokenizer *tok, const char *path, tm_error *err)
{
    tm_buf text = {0};
    tm_ids ids = {0};
    tm_tokens *scratch = NULL;
    tm_status st;
    TM_GO(tm_file_read(path, (size_t)1 << 30, &text, err));
    TM_GO(tm_tokens_create(tok, &scratch, err));
    double seconds[2] = {0};
    size_t passes = 1 + (32u << 20) / (text.size + 1);
    for (size_t i = 0; i <= passes; i++) {
        double start = now();
        ids.count = 0;
        TM_GO(tm_tokenizer_encode(tok, scratch, tm_buf_str(&text), text.size, false, &ids, err));
        seconds[i > 0] += now() - start;
    }
    double mb = 1e-6 * (double)text.size;
    printf("%-60s %8.2f MB %9zu ids %7.1f MB/s cold %7.1f MB/s\n", path, mb, ids.count, mb / seconds[0],
           mb * (double)passes / seconds[1]);
out:
    tm_tokens_destroy(scratch);
    tm_ids_deinit(&ids);
    tm_buf_deinit(&text);
    return st;
}

static void put_ids(tm_buf *out, const tm_ids *ids)
{
    tm_buf_char(out, '[');
    for (size_t i = 0; i < ids->count; i++)
        tm_buf_printf(out, i ? ", %d" : "%d", ids->id[i]);
    tm_buf_text(out, "]\n");
}

static tm_status one_line(const tm_tokenizer *tok, tm_tokens *scratch, const char *line, size_t size, tm_buf *out, tm_error *err)
{
    json_t *json;
    tm_ids ids = {0};
    tm_buf text = {0};
    tm_status st;
    json = json_loadb(line, size, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    if (!json_is_string(json))
        TM_GO(tm_fail(err, TM_INPUT, "a line is no JSON string"));
    for (int special = 1; special >= 0; special--) {
        ids.count = 0;
        TM_GO(tm_tokenizer_encode(tok, scratch, json_string_value(json), json_string_length(json), special, &ids, err));
        put_ids(out, &ids);
    }
    TM_GO(tm_tokenizer_decode(tok, ids.id, ids.count, false, &text, err));
    json_t *decoded = json_stringn(tm_buf_str(&text), text.size);
    char *dumped = json_dumps(decoded, JSON_ENCODE_ANY);
    tm_buf_printf(out, "%s\n", dumped);
    free(dumped);
    json_decref(decoded);
    st = tm_buf_check(out, err);
out:
    json_decref(json);
    tm_ids_deinit(&ids);
    tm_buf_deinit(&text);
    return st;
}

static tm_status lines(const tm_tokenizer *tok, const char *path, tm_error *err)
{
    tm_buf text = {0}, out = {0};
    tm_tokens *scratch = NULL;
    tm_status st;
    TM_GO(tm_file_read(path, (size_t)1 << 30, &text, err));
    TM_GO(tm_tokens_create(tok, &scratch, err));
    const char *end = text.data + text.size;
    for (const char *line = text.data, *next; line < end; line = next + 1) {
        next = memchr(line, '\n', (size_t)(end - line));
        if (!next)
            next = end;
        TM_GO(one_line(tok, scratch, line, (size_t)(next - line), &out, err));
    }
    fwrite(tm_buf_str(&out), 1, out.size, stdout);
out:
    tm_tokens_destroy(scratch);
    tm_buf_deinit(&text);
    tm_buf_deinit(&out);
    return st;
}

int main(int argc, char **argv)
{
    tm_error err = {0};
    tm_tokenizer *tok = NULL;
    if (argc < 3) {
        fprintf(stderr, "usage: %s TOKENIZER FILE... | TOKENIZER --jsonl FILE\n", argv[0]);
        return 2;
    }
    double start = now();
    tm_status st = tm_tokenizer_open(argv[1], &tok, &err);
    if (st == TM_OK && !strcmp(argv[2], "--jsonl"))
        st = argc == 4 ? lines(tok, argv[3], &err) : tm_fail(&err, TM_USAGE, "--jsonl takes one file");
    else if (st == TM_OK) {
        printf("opened in %.0f ms, %d ids\n", 1e3 * (now() - start), tm_tokenizer_vocab_size(tok));
        for (int i = 2; st == TM_OK && i < argc; i++)
            st = rate(tok, argv[i], &err);
    }
    if (st != TM_OK)
        fprintf(stderr, "%s: %s\n", argv[0], err.message);
    tm_tokenizer_close(tok);
    return tm_status_exit_code(st);
}
