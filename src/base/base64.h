/* Base64 (RFC 4648, with padding), as tokenizer files use it. */
#ifndef TM_BASE_BASE64_H
#define TM_BASE_BASE64_H

#include "base/buf.h"

/* Appends the bytes that text stands for; false when it is no base64 (out may hold a part then). */
bool tm_base64_decode(const char *text, size_t size, tm_buf *out);
void tm_base64_encode(const void *bytes, size_t size, tm_buf *out);

#endif
