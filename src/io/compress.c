/* Unpacking: see compress.h. zlib and libzstd do the work; Snappy's block format is short enough to be here
 * (format_description.txt of google/snappy). Nothing is believed: sizes are checked before they are used, and
 * every copy stays inside the block it was given. */
#include "io/compress.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

enum { INPUT_BYTES = 64 << 10, ZSTD_WINDOW_LOG = 27 };

struct tm_stream {
    char *path;
    int fd;
    tm_codec codec;
    unsigned char *input; /* [INPUT_BYTES] */
    size_t at, filled;
    bool file_ended, open_member; /* inside a gzip member or zstd frame */
    uint64_t taken, given;        /* bytes of the file used, bytes of content handed out */
    z_stream z;
    bool z_ready;
    ZSTD_DStream *zstd;
};

static void *zlib_alloc(void *unused, unsigned count, unsigned size)
{
    (void)unused;
    return calloc(count, size);
}
static void zlib_free(void *unused, void *block)
{
    (void)unused;
    free(block);
}

void tm_stream_close(tm_stream *s)
{
    if (!s)
        return;
    if (s->z_ready)
        inflateEnd(&s->z);
    ZSTD_freeDStream(s->zstd);
    if (s->fd >= 0)
        close(s->fd);
    free(s->input);
    free(s->path);
    free(s);
}

static tm_status read_some(tm_stream *s, void *to, size_t size, size_t *got, tm_error *err)
{
    ssize_t n;
    do
        n = read(s->fd, to, size);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return tm_fail_errno(err, errno == EISDIR ? TM_INPUT : TM_IO, "%s: cannot read", s->path);
    *got = (size_t)n;
    s->file_ended = n == 0;
    return TM_OK;
}

static tm_status refill(tm_stream *s, tm_error *err)
{
    s->at = 0;
    return s->file_ended ? TM_OK : read_some(s, s->input, INPUT_BYTES, &s->filled, err);
}

static tm_status begin_codec(tm_stream *s, tm_error *err)
{
    const unsigned char *b = s->input;
    if (s->filled >= 2 && b[0] == 0x1f && b[1] == 0x8b) {
        s->codec = TM_CODEC_GZIP;
        s->z = (z_stream){.zalloc = zlib_alloc, .zfree = zlib_free};
        if (inflateInit2(&s->z, 15 + 16) != Z_OK)
            return tm_fail(err, TM_NO_MEMORY, "%s: zlib has no memory", s->path);
        s->z_ready = true;
    } else if (s->filled >= 4 && (memcmp(b, "\x28\xb5\x2f\xfd", 4) == 0 ||
                                  ((b[0] & 0xf0) == 0x50 && memcmp(b + 1, "\x2a\x4d\x18", 3) == 0))) {
        s->codec = TM_CODEC_ZSTD;
        s->zstd = ZSTD_createDStream();
        if (!s->zstd || ZSTD_isError(ZSTD_DCtx_setParameter(s->zstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG)))
            return tm_fail(err, TM_NO_MEMORY, "%s: zstd has no memory", s->path);
    }
    return TM_OK;
}

tm_status tm_stream_open(const char *path, tm_stream **out, tm_error *err)
{
    *out = NULL;
    tm_stream *s;
    struct stat info;
    TM_TRY(TM_NEW(&s, 1, err));
    s->fd = -1;
    tm_status st = TM_OK;
    s->path = tm_strdup(path, err);
    if (!s->path)
        TM_GO(TM_NO_MEMORY);
    do
        s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a named pipe is refused, not waited for */
    while (s->fd < 0 && errno == EINTR);
    if (s->fd < 0)
        TM_GO(tm_fail_errno(err, errno == ENOENT || errno == ENOTDIR || errno == ENAMETOOLONG ? TM_INPUT : TM_IO,
                            "%s: cannot open", path));
    if (fstat(s->fd, &info) != 0)
        TM_GO(tm_fail_errno(err, TM_IO, "%s: cannot look at it", path));
    if (!S_ISREG(info.st_mode))
        TM_GO(tm_fail(err, TM_INPUT, "%s: is not a regular file", path));
    TM_GO(TM_NEW(&s->input, INPUT_BYTES, err));
    TM_GO(refill(s, err));
    TM_GO(begin_codec(s, err));
    *out = s;
    s = NULL;
out:
    tm_stream_close(s);
    return st;
}

static tm_status check_ratio(const tm_stream *s, tm_error *err)
{
    if (s->given <= TM_STREAM_FREE_BYTES || s->given / TM_STREAM_MAX_RATIO <= s->taken)
        return TM_OK;
    return tm_fail(err, TM_INPUT, "%s: unpacks to more than %d times its size; unpack it by hand if it is meant to",
                   s->path, TM_STREAM_MAX_RATIO);
}

/* One step of gzip: *gave bytes. A member that has ended is followed by another, zeros, or the end. */
static tm_status step_gzip(tm_stream *s, void *to, size_t size, size_t *gave, tm_error *err)
{
    if (!s->open_member) {
        while (s->taken > 0 && s->at < s->filled && s->input[s->at] == 0)
            s->at++, s->taken++;
        if (s->at == s->filled)
            return TM_OK;
        if (s->taken > 0 && inflateReset(&s->z) != Z_OK)
            return tm_fail(err, TM_NO_MEMORY, "%s: zlib failed", s->path);
        s->open_member = true;
    }
    s->z.next_in = s->input + s->at;
    s->z.avail_in = (unsigned)(s->filled - s->at);
    s->z.next_out = to;
    s->z.avail_out = size > 1u << 30 ? 1u << 30 : (unsigned)size;
    unsigned room = s->z.avail_out, had = s->z.avail_in;
    int r = inflate(&s->z, Z_NO_FLUSH);
    if (r == Z_MEM_ERROR)
        return tm_fail(err, TM_NO_MEMORY, "%s: zlib has no memory", s->path);
    if (r != Z_OK && r != Z_STREAM_END && r != Z_BUF_ERROR)
        return tm_fail(err, TM_INPUT, "%s: damaged gzip: %s", s->path, s->z.msg ? s->z.msg : "no valid data");
    s->open_member = r != Z_STREAM_END;
    s->at += had - s->z.avail_in;
    s->taken += had - s->z.avail_in;
    *gave = room - s->z.avail_out;
    return TM_OK;
}

static tm_status step_zstd(tm_stream *s, void *to, size_t size, size_t *gave, tm_error *err)
{
    ZSTD_inBuffer in = {s->input + s->at, s->filled - s->at, 0};
    ZSTD_outBuffer to_buffer = {to, size, 0};
    size_t r = ZSTD_decompressStream(s->zstd, &to_buffer, &in);
    if (ZSTD_isError(r))
        return tm_fail(err, ZSTD_getErrorCode(r) == ZSTD_error_memory_allocation ? TM_NO_MEMORY : TM_INPUT,
                       "%s: damaged zstd: %s", s->path, ZSTD_getErrorName(r));
    if (in.pos || to_buffer.pos)
        s->open_member = r != 0;
    s->at += in.pos;
    s->taken += in.pos;
    *gave = to_buffer.pos;
    return TM_OK;
}

static tm_status read_packed(tm_stream *s, char *to, size_t size, size_t *got, tm_error *err)
{
    while (*got < size) {
        if (s->at == s->filled && !s->file_ended)
            TM_TRY(refill(s, err));
        size_t gave = 0;
        if (s->file_ended)
            s->filled = s->at = 0;
        tm_status (*step)(tm_stream *, void *, size_t, size_t *, tm_error *) =
            s->codec == TM_CODEC_GZIP ? step_gzip : step_zstd;
        TM_TRY(step(s, to + *got, size - *got, &gave, err));
        *got += gave;
        s->given += gave;
        TM_TRY(check_ratio(s, err));
        if (s->file_ended && !gave)
            return s->open_member ? tm_fail(err, TM_INPUT, "%s: the compressed file ends too early", s->path) : TM_OK;
    }
    return TM_OK;
}

tm_status tm_stream_read(tm_stream *s, void *to, size_t size, size_t *got, tm_error *err)
{
    *got = 0;
    if (s->codec != TM_CODEC_NONE)
        return read_packed(s, to, size, got, err);
    size_t n = s->filled - s->at < size ? s->filled - s->at : size;
    memcpy(to, s->input + s->at, n);
    s->at += n;
    *got = n;
    while (*got < size && !s->file_ended) {
        TM_TRY(read_some(s, (char *)to + *got, size - *got, &n, err));
        *got += n;
    }
    return TM_OK;
}

/* ---- blocks ---- */

/* Snappy: the length as a varint, then literals and copies from what is already there. */
static bool snappy(const unsigned char *in, size_t in_size, unsigned char *out, size_t size)
{
    const unsigned char *end = in + in_size;
    uint64_t promised = 0;
    for (int shift = 0;; shift += 7) {
        if (in == end || shift > 28)
            return false;
        promised |= (uint64_t)(*in & 127) << shift;
        if (!(*in++ & 128))
            break;
    }
    if (promised != size)
        return false;
    size_t at = 0;
    while (in < end) {
        unsigned tag = *in++, kind = tag & 3;
        size_t length, offset = 0, extra = kind == 0 ? (tag >> 2 >= 60 ? (tag >> 2) - 59 : 0) : kind == 3 ? 4 : kind;
        if ((size_t)(end - in) < extra)
            return false;
        uint32_t number = 0;
        for (size_t i = 0; i < extra; i++)
            number |= (uint32_t)*in++ << (8 * i);
        if (kind == 0) {
            length = (size_t)(extra ? number : tag >> 2) + 1;
            if (length > (size_t)(end - in) || length > size - at)
                return false;
            memcpy(out + at, in, length);
            in += length;
            at += length;
            continue;
        }
        length = kind == 1 ? (tag >> 2 & 7) + 4 : (tag >> 2) + 1;
        offset = kind == 1 ? (tag >> 5) << 8 | number : number;
        if (offset == 0 || offset > at || length > size - at)
            return false;
        for (size_t i = 0; i < length; i++, at++) /* a copy may reach into what it is writing */
            out[at] = out[at - offset];
    }
    return at == size;
}

static tm_status gunzip(const void *from, size_t from_size, void *to, size_t to_size, tm_error *err)
{
    z_stream z = {.zalloc = zlib_alloc, .zfree = zlib_free};
    if (from_size > UINT32_MAX || to_size > UINT32_MAX)
        return tm_fail(err, TM_INPUT, "a gzip block of 4 GiB or more");
    if (inflateInit2(&z, 15 + 32) != Z_OK)
        return tm_fail(err, TM_NO_MEMORY, "zlib has no memory");
    unsigned char none;
    z.next_in = (unsigned char *)from;
    z.avail_in = (unsigned)from_size;
    z.next_out = to_size ? to : &none;
    z.avail_out = (unsigned)to_size;
    int r = inflate(&z, Z_FINISH);
    bool whole = r == Z_STREAM_END && z.avail_out == 0;
    inflateEnd(&z);
    if (r == Z_MEM_ERROR)
        return tm_fail(err, TM_NO_MEMORY, "zlib has no memory");
    return whole ? TM_OK : tm_fail(err, TM_INPUT, "a damaged gzip block");
}

tm_status tm_unpack(tm_codec codec, const void *from, size_t from_size, void *to, size_t to_size, tm_error *err)
{
    switch (codec) {
    case TM_CODEC_NONE:
        if (from_size != to_size)
            break;
        if (to_size)
            memcpy(to, from, to_size);
        return TM_OK;
    case TM_CODEC_SNAPPY:
        if (snappy(from, from_size, to, to_size))
            return TM_OK;
        break;
    case TM_CODEC_GZIP: return gunzip(from, from_size, to, to_size, err);
    case TM_CODEC_ZSTD: {
        size_t n = ZSTD_decompress(to, to_size, from, from_size);
        if (!ZSTD_isError(n) && n == to_size)
            return TM_OK;
        if (ZSTD_isError(n) && ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation)
            return tm_fail(err, TM_NO_MEMORY, "zstd has no memory");
        break;
    }
    }
    return tm_fail(err, TM_INPUT, "a damaged block: it does not unpack to the %zu bytes that were promised", to_size);
}
