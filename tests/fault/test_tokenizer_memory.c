/* Tokenizers when memory runs out: the Nth allocation fails, for every N that opening, encoding,
 * decoding and streaming ask for. Each time the call says so, and nothing leaks or crashes. */
#include "text/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

static long countdown = -1; /* allocations until one fails; -1: none does */
static bool failed;

static bool fails_now(void)
{
    if (countdown < 0 || countdown-- > 0)
        return false;
    failed = true;
    countdown = -1;
    return true;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
ssize_t __real_read(int fd, void *to, size_t size);
ssize_t __real_write(int fd, const void *from, size_t size);
int __real_fsync(int fd);
int __real_rename(const char *from, const char *to);
void *__real_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
ssize_t __wrap_read(int fd, void *to, size_t size);
ssize_t __wrap_write(int fd, const void *from, size_t size);
int __wrap_fsync(int fd);
int __wrap_rename(const char *from, const char *to);
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);

void *__wrap_malloc(size_t size) { return fails_now() ? NULL : __real_malloc(size); }
void *__wrap_calloc(size_t count, size_t size) { return fails_now() ? NULL : __real_calloc(count, size); }
void *__wrap_realloc(void *old, size_t size) { return fails_now() ? NULL : __real_realloc(old, size); }
ssize_t __wrap_read(int fd, void *to, size_t size) { return __real_read(fd, to, size); }
ssize_t __wrap_write(int fd, const void *from, size_t size) { return __real_write(fd, from, size); }
int __wrap_fsync(int fd) { return __real_fsync(fd); }
int __wrap_rename(const char *from, const char *to) { return __real_rename(from, to); }
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    return __real_mmap(at, size, protection, flags, fd, offset);
}

static tm_status everything(const char *path, tm_error *err)
{
    static const char text[] = "Once upon a time \u212b e\u0301 漢字 👍 <s>there</s> was<|im_start|> a long, long word: "
                               "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\xff";
    tm_tokenizer *tok = NULL;
    tm_tokens *scratch = NULL;
    tm_ids ids = {0};
    tm_buf out = {0};
    tm_decode_stream stream = {0};
    tm_status st;
    TM_GO(tm_tokenizer_open(path, &tok, err));
    TM_GO(tm_tokens_create(tok, &scratch, err));
    TM_GO(tm_tokenizer_encode(tok, scratch, text, sizeof text - 1, true, &ids, err));
    TM_GO(tm_tokenizer_decode(tok, ids.id, ids.count, true, &out, err));
    for (size_t i = 0; i < ids.count; i++)
        TM_GO(tm_decode_stream_push(&stream, tok, ids.id[i], &out, err));
    TM_GO(tm_decode_stream_flush(&stream, tok, &out, err));
out:
    tm_decode_stream_deinit(&stream);
    tm_buf_deinit(&out);
    tm_ids_deinit(&ids);
    tm_tokens_destroy(scratch);
    tm_tokenizer_close(tok);
    return st;
}

/* Learning a tokenizer, by one thread: allocations then come in one order. */
static tm_status training(const char *path, tm_error *err)
{
    static char *const special[] = {"<s>", "</s>"};
    tm_tokenizer_train_request request = {path, "/dev/null/nowhere", 300, 0, special, 2, "qwen2", 1};
    char *text = NULL;
    tm_status st = tm_tokenizer_train(&request, &text, err);
    free(text);
    return st == TM_IO ? TM_OK : st; /* all done but the writing, which is tested elsewhere */
}

static void every_allocation_fails(const char *path, tm_status (*run)(const char *path, tm_error *err))
{
    tm_error err = {0};
    long n = 0;
    for (;; n += 1 + n / 200) {
        failed = false;
        countdown = n;
        tm_status st = run(path, &err);
        countdown = -1;
        if (!failed) {
            assert_int_equal(st, TM_OK);
            break;
        }
        if (st != TM_NO_MEMORY)
            fail_msg("allocation %ld failed, status %d: %s", n, st, st ? err.message : "");
    }
    assert_true(n > 40);
}

#define DATA "tests/data/tokenizers/"
static void llama(void **state) { (void)state; every_allocation_fails(DATA "stories260K", everything); }
static void byte_level(void **state) { (void)state; every_allocation_fails(DATA "bytelevel", everything); }
static void unigram(void **state) { (void)state; every_allocation_fails(DATA "unigram", everything); }
static void spm_bpe(void **state) { (void)state; every_allocation_fails(DATA "spm/bpe.model", everything); }
static void spm_unigram(void **state) { (void)state; every_allocation_fails(DATA "spm/unigram.model", everything); }
static void learning(void **state) { (void)state; every_allocation_fails("tests/data/README.md", training); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama), cmocka_unit_test(byte_level), cmocka_unit_test(unigram), cmocka_unit_test(spm_bpe),
        cmocka_unit_test(spm_unigram), cmocka_unit_test(learning),
    };
    return cmocka_run_group_tests_name("tokenizer memory", tests, NULL, NULL);
}
