/* UTF-8 as the rest of the world defines it (RFC 3629): no surrogates, no overlong forms. */
#ifndef TM_BASE_UTF8_H
#define TM_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the longest valid beginning of text: size when all of it is valid. */
size_t tm_utf8_prefix(const char *text, size_t size);
static inline bool tm_utf8_valid(const char *text, size_t size) { return tm_utf8_prefix(text, size) == size; }

#endif
