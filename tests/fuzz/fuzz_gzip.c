/* Any bytes as a gzip or zstd file, and as Snappy: an error that names the file, or bytes; the same whatever the
 * size of the pieces. */
#include "io/compress.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static tm_status read_all(const char *path, size_t piece, uint64_t *sum, tm_error *err)
{
    static unsigned char to[1 << 16];
    tm_stream *s;
    *sum = 0;
    TM_TRY(tm_stream_open(path, &s, err));
    tm_status st = TM_OK;
    size_t got = piece;
    for (int i = 0; st == TM_OK && got == piece && i < 4000; i++) {
        st = tm_stream_read(s, to, piece, &got, err);
        for (size_t k = 0; k < got; k++)
            *sum = (*sum ^ to[k]) * 0x100000001b3;
    }
    tm_stream_close(s);
    return st;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    snprintf(path, sizeof path, "/dev/shm/temper-fuzz-%d.gz", (int)getpid());
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0)
        abort();
    tm_error err = {0};
    uint64_t a, b;
    tm_status x = read_all(path, 1 << 16, &a, &err);
    if (x != TM_OK && (err.status != x || !strstr(err.message, path)))
        abort();
    tm_status y = read_all(path, 997, &b, &err);
    if (x == TM_OK && y == TM_OK && a != b && size < 1000)
        abort();
    static unsigned char to[4096];
    if (size > 2) {
        size_t want = (size_t)(data[0] | data[1] << 8) % sizeof to;
        for (int codec = TM_CODEC_NONE; codec <= TM_CODEC_ZSTD; codec++)
            if (tm_unpack((tm_codec)codec, data + 2, size - 2, to, want, &err) == TM_OK && codec == TM_CODEC_NONE &&
                memcmp(to, data + 2, want) != 0)
                abort();
    }
    unlink(path);
    return 0;
}
