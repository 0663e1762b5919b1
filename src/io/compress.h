/* Compressed bytes: files read as a stream, whatever they are packed in, and single blocks (Parquet).
 * docs/formats/data.md states the limits. */
#ifndef TM_IO_COMPRESS_H
#define TM_IO_COMPRESS_H

#include "base/buf.h"

/* A file's content from its beginning to its end, unpacked where it is gzip (RFC 1952, any number of
 * members) or zstd (RFC 8878): which, its first bytes say. Memory does not depend on the file: 64 KiB
 * in, and at most 128 MiB of zstd's window. A file that unpacks to more than TM_STREAM_MAX_RATIO times
 * its size is refused once it is beyond TM_STREAM_FREE_BYTES. */
enum { TM_STREAM_MAX_RATIO = 200, TM_STREAM_FREE_BYTES = 256 << 20 };
typedef struct tm_stream tm_stream;
tm_status tm_stream_open(const char *path, tm_stream **out, tm_error *err) TM_MUST_CHECK;
void tm_stream_close(tm_stream *stream);
/* Up to size bytes; *got is less only at the end. Damaged content is TM_INPUT and names the file. */
tm_status tm_stream_read(tm_stream *stream, void *to, size_t size, size_t *got, tm_error *err) TM_MUST_CHECK;

typedef enum tm_codec { TM_CODEC_NONE, TM_CODEC_SNAPPY, TM_CODEC_GZIP, TM_CODEC_ZSTD } tm_codec;
/* Unpacks a block that must give exactly to_size bytes. TM_INPUT when it does not; names no file. */
tm_status tm_unpack(tm_codec codec, const void *from, size_t from_size, void *to, size_t to_size,
                    tm_error *err) TM_MUST_CHECK;

#endif
