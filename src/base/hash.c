/* SHA-256: see hash.h. */
#include "base/hash.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static tm_status fail_crypto(tm_error *err) { return tm_fail(err, TM_NO_MEMORY, "libcrypto gave no SHA-256"); }

tm_status tm_sha256_begin(tm_sha256_stream *s, tm_error *err)
{
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    s->context = context;
    if (context && EVP_DigestInit_ex(context, EVP_sha256(), NULL) == 1)
        return TM_OK;
    tm_sha256_drop(s);
    return fail_crypto(err);
}

tm_status tm_sha256_add(tm_sha256_stream *s, const void *data, size_t size, tm_error *err)
{
    return EVP_DigestUpdate(s->context, data, size) == 1 ? TM_OK : fail_crypto(err);
}

tm_status tm_sha256_end(tm_sha256_stream *s, tm_sha256 *out, tm_error *err)
{
    unsigned char digest[32];
    int ok = EVP_DigestFinal_ex(s->context, digest, NULL);
    tm_sha256_drop(s);
    if (ok != 1)
        return fail_crypto(err);
    for (int i = 0; i < 32; i++)
        snprintf(out->hex + 2 * i, 3, "%02x", digest[i]);
    return TM_OK;
}

void tm_sha256_drop(tm_sha256_stream *s)
{
    EVP_MD_CTX_free(s->context);
    s->context = NULL;
}

tm_status tm_sha256_bytes(const void *data, size_t size, tm_sha256 *out, tm_error *err)
{
    tm_sha256_stream s;
    TM_TRY(tm_sha256_begin(&s, err));
    tm_status st = tm_sha256_add(&s, data, size, err);
    if (st == TM_OK)
        return tm_sha256_end(&s, out, err);
    tm_sha256_drop(&s);
    return st;
}

tm_status tm_sha256_file(const char *path, tm_sha256 *out, tm_error *err)
{
    enum { CHUNK = 1 << 20 };
    tm_status st = TM_OK;
    tm_sha256_stream s = {0};
    char *chunk = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return tm_fail_errno(err, errno == ENOENT || errno == ENOTDIR ? TM_INPUT : TM_IO, "%s: cannot open", path);
    TM_GO(TM_NEW(&chunk, CHUNK, err));
    TM_GO(tm_sha256_begin(&s, err));
    for (;;) {
        ssize_t n = read(fd, chunk, CHUNK);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            TM_GO(tm_fail_errno(err, errno == EISDIR ? TM_INPUT : TM_IO, "%s: cannot read", path));
        if (n == 0)
            break;
        TM_GO(tm_sha256_add(&s, chunk, (size_t)n, err));
    }
    st = tm_sha256_end(&s, out, err);
out:
    tm_sha256_drop(&s);
    free(chunk);
    close(fd);
    return st;
}

tm_status tm_sha256_files(const char *dir, char *const *names, size_t count, tm_sha256 *out, tm_error *err)
{
    tm_buf list = {0};
    tm_status st = TM_OK;
    for (size_t i = 0; i < count; i++) {
        tm_sha256 one;
        char *path = tm_path_join(dir, names[i], err);
        st = path ? tm_sha256_file(path, &one, err) : TM_NO_MEMORY;
        free(path);
        if (st != TM_OK)
            goto out;
        tm_buf_add(&list, names[i], strlen(names[i]) + 1);
        tm_buf_text(&list, one.hex);
        tm_buf_char(&list, '\n');
    }
    TM_GO(tm_buf_check(&list, err));
    st = tm_sha256_bytes(tm_buf_str(&list), list.size, out, err);
out:
    tm_buf_deinit(&list);
    return st;
}
