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

static tm_status begin(EVP_MD_CTX **ctx, tm_error *err)
{
    *ctx = EVP_MD_CTX_new();
    if (*ctx && EVP_DigestInit_ex(*ctx, EVP_sha256(), NULL) == 1)
        return TM_OK;
    EVP_MD_CTX_free(*ctx);
    return fail_crypto(err);
}

/* Frees ctx. */
static tm_status finish(EVP_MD_CTX *ctx, tm_sha256 *out, tm_error *err)
{
    unsigned char digest[32];
    int ok = EVP_DigestFinal_ex(ctx, digest, NULL);
    EVP_MD_CTX_free(ctx);
    if (ok != 1)
        return fail_crypto(err);
    for (int i = 0; i < 32; i++)
        snprintf(out->hex + 2 * i, 3, "%02x", digest[i]);
    return TM_OK;
}

tm_status tm_sha256_bytes(const void *data, size_t size, tm_sha256 *out, tm_error *err)
{
    EVP_MD_CTX *ctx;
    TM_TRY(begin(&ctx, err));
    if (EVP_DigestUpdate(ctx, data, size) != 1) {
        EVP_MD_CTX_free(ctx);
        return fail_crypto(err);
    }
    return finish(ctx, out, err);
}

tm_status tm_sha256_file(const char *path, tm_sha256 *out, tm_error *err)
{
    enum { CHUNK = 1 << 20 };
    tm_status st = TM_OK;
    EVP_MD_CTX *ctx = NULL;
    char *chunk = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return tm_fail_errno(err, errno == ENOENT || errno == ENOTDIR ? TM_INPUT : TM_IO, "%s: cannot open", path);
    TM_GO(TM_NEW(&chunk, CHUNK, err));
    TM_GO(begin(&ctx, err));
    for (;;) {
        ssize_t n = read(fd, chunk, CHUNK);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            TM_GO(tm_fail_errno(err, errno == EISDIR ? TM_INPUT : TM_IO, "%s: cannot read", path));
        if (n == 0)
            break;
        if (EVP_DigestUpdate(ctx, chunk, (size_t)n) != 1)
            TM_GO(fail_crypto(err));
    }
    st = finish(ctx, out, err);
    ctx = NULL;
out:
    EVP_MD_CTX_free(ctx);
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
