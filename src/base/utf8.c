/* Validity of UTF-8: see utf8.h. */
#include "base/utf8.h"

#include <stdint.h>
#include <string.h>

size_t tm_utf8_prefix(const char *text, size_t size)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;
    while (i < size) {
        uint64_t eight;
        if (i + 8 <= size && (memcpy(&eight, s + i, 8), !(eight & 0x8080808080808080u))) { /* the common case: ASCII */
            i += 8;
            continue;
        }
        unsigned char c = s[i];
        if (c < 0x80) {
            i++;
            continue;
        }
        size_t n = c >= 0xC2 && c <= 0xDF ? 2 : c >= 0xE0 && c <= 0xEF ? 3 : c >= 0xF0 && c <= 0xF4 ? 4 : 0;
        if (!n || size - i < n)
            return i;
        unsigned char low = c == 0xE0   ? 0xA0
                            : c == 0xF0 ? 0x90
                                        : 0x80,
                      high = c == 0xED   ? 0x9F
                             : c == 0xF4 ? 0x8F
                                         : 0xBF;
        if (s[i + 1] < low || s[i + 1] > high)
            return i;
        for (size_t k = 2; k < n; k++)
            if ((s[i + k] & 0xC0) != 0x80)
                return i;
        i += n;
    }
    return i;
}
