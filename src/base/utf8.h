/* UTF-8 as the rest of the world defines it (RFC 3629): no surrogates, no overlong forms. */
#ifndef TM_BASE_UTF8_H
#define TM_BASE_UTF8_H

#include <stddef.h>

/* Bytes of the longest valid beginning of text: size when all of it is valid. */
size_t tm_utf8_prefix(const char *text, size_t size);

#endif
